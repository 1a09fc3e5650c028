"""What batches of the coordinator's have borrowed and not prepared: keys, entries of unique indexes, whole tables.

    a batch that   lend                       still_held               end               lose, lose_overdue, lose_all
    has no loan    a loan, for LEASE_S        what needs none          –                 lost
    has a loan     more of it, for LEASE_S    what it holds            no loan; all is   lost; all is here again
                   again                                               here again
    is lost        (not asked for)              Unavailable              –                 –

    `decided`                   is what ends a batch: its loan, and that it was lost
    `forget_lost`               a new coordinator has other batches

What is lent is *away*: calls that touch it are set aside until it is here again (partitions.executor). A batch is lost
when its loan ends by itself: LEASE_S after its last Borrow, when a new session begins, when the coordinator is dead. A
batch that is lost can't be prepared any more: so whoever may be prepared has held, without a gap, all that it borrowed.

The values that a batch writes in columns of unique indexes are borrowed as *entries* (partitions.unique_indexes), each
with the row that has it. They are looked at again when the batch prepares or commits.

Keys of copies are not lent, but read: only the coordinator changes those, and it locks them (Borrow.locks) first.
"""

from __future__ import annotations

from math import inf
from typing import Any

import msgspec
from msgspec import Struct

from partitions.batch_changes import Changes, changes_of
from partitions.executor import Executor
from partitions.row_images import UNREADABLE, images_of, keys_of, tables_of
from partitions.store import Store
from partitions.table import Table
from partitions.unique_indexes import Entry
from voltpy.crash_point import crash_point
from voltpy.errors import ProtocolError, Unavailable
from voltpy.messages import LEASE_S, Borrow, Lent, TableChanges, UniqueValues
from voltpy.row import encode

BATCHES_LOST = 4096  # remembered as such, at most
NOBODY = -1  # in the place of a batch

_decode_values = msgspec.msgpack.Decoder(tuple[Any, ...]).decode
_NO_ENTRY = None, None, None
_NO_KEYS: frozenset[Any] = frozenset()


class Loan(Struct, eq=False):
    """What one batch has borrowed: keys by table, entries among them, and tables whole.

    It ends by itself at `until_s`.
    """

    until_s: float
    keys: dict[int, set[Any]]
    tables: set[int]
    entries: dict[int, set[Entry]] = {}  # once more, by table


class Loans:
    """All between two batches of calls only. What is away and not lent is in doubt: partitions.in_doubt."""

    __slots__ = ("_executor", "_loans", "_lost", "_store", "_tables")

    def __init__(self, store: Store, executor: Executor) -> None:
        self._store = store
        self._executor = executor
        self._loans: dict[int, Loan] = {}  # by batch
        self._lost: dict[int, None] = {}  # batches whose loan ended by itself, the first one first
        self._tables: dict[int, int] = {}  # that are lent whole → batch

    @property
    def due_s(self) -> float:
        """When the first loan ends by itself."""
        return min([loan.until_s for loan in self._loans.values()]) if self._loans else inf

    @property
    def lent_keys(self) -> int:
        """How many are lent."""
        return sum(len(keys) for loan in self._loans.values() for keys in loan.keys.values())

    @property
    def lent_tables(self) -> int:
        """How many are lent whole."""
        return len(self._tables)

    def is_lost(self, batch: int) -> bool:
        return batch in self._lost

    # Lending.

    def lend(self, order: Borrow, now_s: float) -> Lent:
        """What is asked for is away, and this is what it was. All of it or, with an error, nothing.

        Raises Unavailable where some of it is another batch's, ConstraintViolation for too much, ProtocolError, NotHere
        for cold pages.
        """
        batch, store = order.batch, self._store
        loan = self._loans.get(batch)
        if loan is None:
            loan = Loan(0.0, {}, set())
        wanted, scanned = keys_of(store, order.keys), tables_of(store, order.scans)
        locked = keys_of(store, order.locks)
        asked = [self._entries(each) for each in order.entries]
        taken = [(table, keys) for table, keys, _, _ in asked if not store.is_copied(table)]
        self.check_free(batch, wanted + locked + [(table, keys) for table, keys, _, _ in asked], scanned)
        holders = [images for _, _, _, images in asked]
        images, answers = images_of(wanted, scanned, order.scans, holders)
        # From here on nothing raises an Error: what was away without a loan would never be here again.
        for table, _, entries, _ in asked:
            if table.lookups is not None and not store.is_copied(table):
                table.lookups.unique.lend(entries)
                loan.entries.setdefault(table.number, set()).update(entries)
        for table, keys in [each for each in wanted if not store.is_copied(each[0])] + locked + taken:
            table.send_all_away(keys)
            loan.keys.setdefault(table.number, set()).update(keys)
        for table in scanned:
            number = table.number
            if not store.is_copied(table) and number not in self._tables:
                self._tables[number] = batch
                self._executor.lend_table(number)
                loan.tables.add(number)
        loan.until_s = now_s + LEASE_S
        self._loans[batch] = loan
        crash_point("participant.lent")
        return Lent(batch, images, answers, "", holders)

    def check_free(self, batch: int, wanted: list[tuple[Table, list[Any]]], scanned: list[Table]) -> None:
        """Raises Unavailable unless all of it is here, or lent to this batch (NOBODY: to none); NotHere."""
        own = self._keys_of(batch)
        for table, keys in wanted:
            self._check_table(table, batch)
            table.redo.wait_for(keys)
            if table.away and not table.away & set(keys) <= own.get(table.number, _NO_KEYS):
                raise Unavailable(f"table {table.name}: a key is lent to another batch, or in doubt")
        for table in scanned:
            self._check_table(table, batch)
            table.redo.wait_for()
            if not table.away <= own.get(table.number, _NO_KEYS):
                raise Unavailable(f"table {table.name}: keys are lent to another batch, or in doubt")

    def _entries(self, asked: UniqueValues) -> tuple[Table, list[Any], list[Entry], list[bytes | None]]:
        """(table, what is lent, the entries among that, the images of the rows that have the values).

        A row that has a value is lent with it: who would take it from that row, or read it, waits for the row.
        Raises ProtocolError, Unavailable, NotHere.
        """
        table = self._store.table_of(asked.table)
        taken: list[Any] = []
        entries: list[Entry] = []
        images: list[bytes | None] = []
        for encoded in asked.values:
            try:
                values = _decode_values(encoded)
                unique = None if table.lookups is None else table.lookups.unique
                entry, key, row = _NO_ENTRY if unique is None else unique.entry(asked.index, values)
            except (*UNREADABLE, TypeError) as error:
                raise ProtocolError(f"table {table.name}: not a value of index {asked.index:.100}: {error}") from None
            if entry is not None:
                taken.append(entry)
                entries.append(entry)
            if row is not None:
                taken.append(key)
            images.append(None if row is None else encode(row))
        return table, taken, entries, images

    # Whether it is held.

    def still_held(self, batch: int, changes: list[TableChanges]) -> list[Changes]:
        """The changes, decoded. Raises Unavailable unless the batch holds, without a gap, what it has borrowed.

        Raises NotHere for what a recovery has left.
        """
        if batch in self._lost:
            raise Unavailable(f"what batch {batch} had borrowed has been taken back")
        held = self._keys_of(batch)
        decoded = changes_of(self._store, changes)
        for table, keys, _, deleted in decoded:
            self._check_table(table, batch)
            if table.number in self._tables:
                continue
            own = held.get(table.number, _NO_KEYS)
            table.redo.wait_for(keys)
            table.redo.wait_for(deleted)
            # What is new by construction, and what only the coordinator changes, it does not borrow first.
            if self._store.is_copied(table) or table.schema.hidden_key:
                if table.away and not table.away & {*keys, *deleted} <= own:
                    raise Unavailable(f"table {table.name}: a key is lent to another batch, or in doubt")
            elif not own.issuperset(keys) or not own.issuperset(deleted):
                raise Unavailable(f"table {table.name}: batch {batch} does not hold a key that it changes")
        return decoded

    def check_unique(self, batch: int, changes: list[Changes]) -> None:
        """Raises DuplicateKey when a unique index has values of these rows, Unavailable when that is in doubt.

        Raises NotHere for cold pages.
        """
        held = self._keys_of(batch)
        for table, keys, images, deleted in changes:
            if table.lookups is not None:
                table.lookups.unique.check_changes(keys, images, deleted, held.get(table.number, _NO_KEYS))

    def _keys_of(self, batch: int) -> dict[int, set[Any]]:
        """By table, what it has borrowed."""
        loan = self._loans.get(batch)
        return {} if loan is None else loan.keys

    def _check_table(self, table: Table, batch: int) -> None:
        if self._tables.get(table.number, batch) != batch:
            raise Unavailable(f"table {table.name} is lent to batch {self._tables[table.number]}")

    # What was lent is here again.

    def end(self, batch: int, prepared: list[Changes] | None = None) -> None:
        """What the batch has borrowed is here again, but for the keys of what is prepared."""
        loan = self._loans.pop(batch, None)
        if loan is not None:
            self._give_back(loan, prepared or [])

    def decided(self, batch: int) -> None:
        """The same; and nobody asks for the batch any more."""
        self._lost.pop(batch, None)
        self.end(batch)

    def lose(self, batch: int) -> None:
        """What the batch has borrowed is here again, and it can't be prepared any more."""
        loan = self._loans.pop(batch, None)
        self._lost[batch] = None
        if len(self._lost) > BATCHES_LOST:
            del self._lost[next(iter(self._lost))]
        if loan is not None:
            self._give_back(loan, [])

    def lose_overdue(self, now_s: float) -> None:
        """Those whose loan has lasted for too long."""
        for batch in [batch for batch, loan in self._loans.items() if loan.until_s <= now_s]:
            self.lose(batch)
            crash_point("participant.expired")

    def lose_all(self) -> None:
        for batch in list(self._loans):
            self.lose(batch)

    def forget_lost(self) -> None:
        """Nobody asks for those any more."""
        self._lost.clear()

    def _give_back(self, loan: Loan, prepared: list[Changes]) -> None:
        kept = {table.number: {*keys, *deleted} for table, keys, _, deleted in prepared}
        for number, entries in loan.entries.items():
            lookups = self._store.tables[number].lookups
            if lookups is not None:
                lookups.unique.take_back(entries)
        for number, keys in loan.keys.items():
            self._executor.keys_arrived(number, keys - kept[number] if number in kept else keys)
        for number in loan.tables:
            del self._tables[number]
            self._executor.table_arrived(number)
