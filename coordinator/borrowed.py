"""All borrowed tables, and what the call that runs in the coordinator may do with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from coordinator.borrowed_table import UNKNOWN, Table, Undo
from coordinator.wishes import FragmentWish, Wish
from voltpy.hash_slot import hash_slot, slot_owners
from voltpy.messages import TableChanges, TableKeys
from voltpy.not_here import NotHere
from voltpy.schema import Schema

STAND_INS = 256  # in one run; then it ends
VERIFIED_KEPT = 1 << 14  # values of partition columns
COPIES_KEPT = 1 << 16  # rows of tables that every partition has a copy of, kept from batch to batch


class Tables:
    """All tables, and what the running call may do with them.

    `begin` before each run. `allowed`: the partitions that it may use; `verified`: values of partition columns, with
    their partitions, that are known to be among them. `wants`: what the run has missed. Equal sets of partitions had
    better be the same object.
    """

    def __init__(self, schema: Schema, partitions: int, new_id: Callable[[], int]) -> None:
        self.partitions = partitions
        self.owners = slot_owners(partitions)
        self.everywhere = frozenset(range(partitions))
        self.new_id = new_id
        self.undo: list[Undo] = []
        self.verified: dict[Any, int] = {}
        self.allowed: frozenset[int] = self.everywhere
        self.wants: dict[Wish, None] = {}
        self.in_round = False  # whether the running call is answered from a read round: nobody writes
        # What partitions sent for SELECTs, or (class name of voltpy.errors, message).
        self.fragments: dict[FragmentWish, list[list[list[Any]]] | tuple[str, str]] = {}
        self._stand_ins = 0  # that this run may still use
        self._may_stand_in = False
        self.take_schema(schema)

    def take_schema(self, schema: Schema) -> None:
        """The tables are these; nothing is known of their rows. Between batches."""
        self.tables = [
            Table(table, number, self, schema.indexes_at(number)) for number, table in enumerate(schema.tables)
        ]
        self.by_name = {table.name: table for table in self.tables if not table.schema.dropped}

    def begin(
        self, allowed: frozenset[int], verified: Mapping[Any, int], stand_ins: bool, in_round: bool = False
    ) -> None:
        """A run begins. What was verified for the run before stays so where it might use the same partitions."""
        self.in_round = in_round
        if allowed is not self.allowed or len(self.verified) > VERIFIED_KEPT:
            self.allowed = allowed
            self.verified.clear()
        self.verified.update(verified)
        self._stand_ins = STAND_INS if stand_ins else 0
        self._may_stand_in = stand_ins

    def owner_of(self, part: Any) -> int:
        """The partition where rows with this value in the partition column live."""
        return self.owners[hash_slot(part)]

    @property
    def undo_log(self) -> list[Undo]:
        return self.undo

    def miss(self, wish: Wish) -> None:
        """The run needs this, and is poisoned: it will be undone. Raises NotHere where it may have no stand-in."""
        self.wants[wish] = None
        self.undo.append((None, None, None, False))
        if not self._stand_ins:
            raise NotHere
        self._stand_ins -= 1

    def miss_all(self, wishes: Iterable[Wish]) -> None:
        """The same for several at once: they have one stand-in."""
        for wish in wishes:
            self.wants[wish] = None
        self.miss(wish)

    def undo_to(self, mark: int) -> None:
        """Takes back what was changed since the undo log had this length."""
        undo = self.undo
        while len(undo) > mark:
            table, key, row, was_first = undo.pop()
            if table is not None:
                if was_first:
                    del table.written[key]
                if row is UNKNOWN:
                    del table.rows[key]
                else:
                    table.rows[key] = row

    def knows(self, wish: Wish) -> bool:
        if isinstance(wish, FragmentWish):
            return wish in self.fragments
        return self.tables[wish.table].knows(wish)

    def changes(self) -> dict[int, dict[int, TableChanges]]:
        """What the batch has changed, by partition (ANY: in all of them) and table number."""
        changed: dict[int, dict[int, TableChanges]] = {}
        for table in self.tables:
            if table.written:
                for home, of_table in table.changes().items():
                    changed.setdefault(home, {})[table.number] = of_table
        return changed

    def not_borrowed(self) -> dict[int, list[TableKeys]]:
        """Keys that the batch has changed without borrowing them, by partition (ANY: of all of them): those of copied
        tables, and hidden ones, which are new or in a part of the table that is lent whole."""
        keys: dict[int, list[TableKeys]] = {}
        for table in self.tables:
            if table.written and (table.replicated or table.schema.hidden_key):
                for home, encoded in table.changed_keys().items():
                    keys.setdefault(home, []).append(TableKeys(table.number, encoded))
        return keys

    def borrowed_keys(self) -> list[set[Any]]:
        """The keys that the cache knows, by table; none of tables that every partition has a copy of."""
        return [set() if table.replicated else set(table.rows) for table in self.tables]

    def changed_keys(self, changes: list[TableChanges]) -> set[tuple[int, Any]]:
        """(table number, key) of everything in these changes, which `changes` has made."""
        keys: set[tuple[int, Any]] = set()
        for change in changes:
            table = self.tables[change.table]
            keys.update((change.table, table.key_of_image(image)) for image in change.images)
            keys.update((change.table, table.decoded_key(key)) for key in change.deleted)
        return keys

    @property
    def is_on_stand_ins(self) -> bool:
        """Whether what the run has got is not all real."""
        return self._may_stand_in and bool(self.wants)

    @property
    def has_borrowed(self) -> bool:
        """Whether the cache has rows, or knows of absent ones, that were lent for the call that runs."""
        return not self.in_round and any(
            not table.replicated and (table.rows or table.whole or table.answers) for table in self.tables
        )

    def give_back(self) -> None:
        """What was borrowed is not ours any more. Copies of tables that every partition has are kept, with changes."""
        self.fragments.clear()
        for table in self.tables:
            if not table.replicated:
                table.forget()
            else:
                table.answers.clear()
                for index in table.unique:
                    index.forget()
                if len(table.rows) > COPIES_KEPT and not table.written:
                    table.forget()

    def settle(self, *, commits: bool) -> None:
        """The batch's changes count, or never happened."""
        for table in self.tables:
            if table.replicated:
                if commits:
                    table.written.clear()
                else:
                    table.take_back()

    def forget_copies(self) -> None:
        """Others have changed tables that every partition has a copy of."""
        for table in self.tables:
            if table.replicated:
                table.forget()
