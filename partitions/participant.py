"""What the coordinator has of this partition: keys and tables that it borrowed, what it prepared, what it reads.

Orders come in, reports go out, in order; records go to the WAL on the way. No sockets and no clocks: whoever drives
this says what time it is. Orders are obeyed between two batches of calls, so nothing here waits for a call, and no call
ever sees half of what one order does.

    order        what it finds                          what it does                                     report
    Borrow       all is here, or its own                keys, entries, and the tables of scans, are away Lent
                 some is someone else's, or no key      nothing                                          Lent(refused)
    Prepare      all that it borrowed is still its      a record; what it does not change is here again  Vote yes
                 that was taken back, or no room, or    all of it is here again                          Vote no
                 a unique index has the values
    Commit       as Prepare                             one record, which decides too; all is here again Vote
    RunDirected  runs, and changes copies or rows       undone, and prepared; later replies wait         Ran
    Decide       prepared: commits                      a record; the changes count, all is here again   Decided
                 prepared: does not                     a record; all is here again                      Decided
                 only borrowed, or not known            all is here again                                Decided
    Read         all is here                            reads; replies of what runs after it wait        ReadAnswer
                 some is lent or in doubt               nothing                                          … is_here False
    Release                                             the replies may go                               –
    Recall                                              looks for outcomes                               Recalled

An order that needs cold pages waits for them, and those behind it wait too (partitions.order_queue); calls run
meanwhile.

What is borrowed comes back by itself: LEASE_S after the batch's last Borrow, when a new session begins, when the
supervisor says that the coordinator is dead. Then the batch is *lost*: its vote is no. What is prepared stays away
until it is decided, through any crash (`Store.prepared`, the WAL, the checkpoint's root). A decision that finds no room
is kept, and tried again; to forget what was prepared needs none.

That a decision is in the WAL is told when it is on disk, and nobody waits for that: it rides on the flush of what comes
next, or is flushed for its own sake after DECIDED_S. Other reports need not wait for the decisions before them, which
the coordinator has on disk (or presumes): after a crash it would decide the same.

The values that a batch writes in columns of unique indexes are borrowed as *entries* (partitions.unique_indexes), each
with the row that has it. They are looked at again when the batch prepares or commits, and are reserved, with the keys,
while it is prepared.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

import msgspec
from msgspec import Raw, Struct

from partitions.batch_changes import Changes, changes_of, put
from partitions.batch_steps import BatchSteps
from partitions.executor import Executor, Part
from partitions.in_doubt import InDoubt
from partitions.order_queue import OrderQueue, may_be_awaited
from partitions.order_session import REPORT_BYTES, OrderSession, bytes_of_changes
from partitions.read_rounds import ReadRounds
from partitions.row_images import UNREADABLE, images_of, keys_of, tables_of
from partitions.store import Store
from partitions.table import Table
from partitions.unique_indexes import Entry
from partitions.wal import COMMIT
from voltpy.call_error import call_error
from voltpy.crash_point import crash_point
from voltpy.errors import (
    ConstraintViolation,
    Corruption,
    Error,
    ProtocolError,
    ReadOnly,
    Unavailable,
)
from voltpy.messages import (
    LEASE_S,
    Attach,
    Attached,
    Borrow,
    Commit,
    Decide,
    Detach,
    EverywhereCall,
    Fragment,
    FragmentAnswer,
    Lent,
    Order,
    Orders,
    Prepare,
    Ran,
    Read,
    ReadAnswer,
    Recall,
    Recalled,
    Release,
    Report,
    Reports,
    RunDirected,
    TableChanges,
    UniqueValues,
    Vote,
)
from voltpy.not_here import NotHere
from voltpy.outcome_window import OutcomeWindow, decoded_outcomes
from voltpy.record_log import DiskFull
from voltpy.row import encode

BATCHES_LOST = 4096  # remembered as such, at most

_decode_values = msgspec.msgpack.Decoder(tuple[Any, ...]).decode
_NO_ENTRY = None, None, None


class Loan(Struct, eq=False):
    """What a batch has borrowed and not prepared: keys by table, entries among them, and tables whole.

    It ends by itself at `until_s`.
    """

    until_s: float
    keys: dict[int, set[Any]]
    tables: set[int]
    entries: dict[int, set[Entry]] = {}  # once more, by table


class Participant:
    """`append` writes a record to the WAL and returns its LSN; it raises DiskFull, or ReadOnly for what is too large.

    A batch has a Loan while it borrows; it is lost when that ended by itself, and prepared between its vote and the
    decision. Which frames of orders count, and how reports are framed: partitions.order_session. Which replies wait for
    reads: partitions.read_rounds.

    `attach`, then `take` each frame of orders, then `obey` as long as one of `orders` is due; `step` when it is
    `due_s`. `reports` has what is to be sent, once the WAL is flushed as far as it `rests_on`.
    """

    def __init__(self, store: Store, executor: Executor, window: OutcomeWindow, append: Callable[[bytes], int]) -> None:
        self._store = store
        self._executor = executor
        self._window = window
        self.orders = OrderQueue()
        self.rounds = ReadRounds()
        self._session = OrderSession()
        self._steps = BatchSteps(append)
        self._reports: list[Report] = []
        self._loans: dict[int, Loan] = {}  # by batch
        self._lost: dict[int, None] = {}  # batches whose loan ended by itself, the first one first
        self._lent_tables: dict[int, int] = {}  # table → batch
        self._in_doubt = InDoubt(store, executor, self._steps)

    # Sessions.

    def attach(self, message: Attach) -> Attached | None:
        """Begins a session. None for what is none: of a dead coordinator's, or older than the last one.

        What is answered has no `incarnation` yet.
        """
        epoch, session = message.epoch, message.session
        if not self._session.may_begin(epoch, session):
            return None
        self._end_session()
        self.rounds.end_all()  # who attaches anew believes nothing that was read before
        if epoch > self._session.last[0]:
            self._lost.clear()
        self._session.begin(epoch, session)
        crash_point("lending.attached")
        return Attached(epoch, session, 0, sorted(self._store.prepared))

    def detach(self, message: Detach) -> None:
        """The coordinator of this epoch is dead, and so is every one before it."""
        if self._session.bury(message.epoch):
            self._end_session()
            self.rounds.end_all()

    def take(self, frame: Orders) -> None:
        """A frame of orders; after one that is missing nothing more is done or told until the next session."""
        what = self._session.takes(frame)
        if what == "next":
            self.orders.extend(frame.orders)
        elif what == "gap":
            self._end_session()  # not the rounds: the coordinator does not know yet, and may still believe them

    def rests_on(self, written_lsn: int, now_s: float) -> int:
        """Up to where the WAL must be flushed before what is reported now may leave."""
        return self._steps.rests_on(written_lsn, now_s)

    def reports(self, lsn: float = inf) -> list[Reports]:
        """What may be told, once the WAL is flushed up to this LSN, of what has become of orders since the last time.

        In as many frames as their size asks for.
        """
        self._reports[:0] = self._steps.flushed(lsn)
        if not self._reports:
            return []
        reports, self._reports = self._reports, []
        return self._session.frames(reports)

    def _end_session(self) -> None:
        """Nobody waits for what it was to do; what it only borrowed is here again."""
        self._session.is_open = False
        self.orders.clear()
        self._reports.clear()
        self._steps.forget_untold()
        for batch in list(self._loans):
            self._lose(batch)
        self._in_doubt.end_session()

    # Orders, and when it is their turn.

    def obey(self, now_s: float) -> None:
        """Obeys the next order, or finds that it needs cold pages. Between two batches only.

        Raises OSError or Corruption when a page can't be read.
        """
        orders, misses, pool = self.orders, self._store.misses, self._store.pool
        bring = misses.bring
        if not orders.is_patient and pool is not None:
            misses.bring = pool.bring
        try:
            report = self._obeyed(orders.first, now_s)
        except NotHere:
            orders.wait_for(misses)
            misses.clear()
            self._store.undo_batch()
            return
        finally:
            misses.bring = bring
            self._store.raise_if_failed()
        orders.done()
        if report is not None:
            self._reports.append(report)

    def _obeyed(self, order: Order, now_s: float) -> Report | None:
        if isinstance(order, Borrow):
            return self._lend(order, now_s)
        if isinstance(order, Prepare):
            return self._prepare(order)
        if isinstance(order, Commit):
            return self._commit(order)
        if isinstance(order, Decide):
            self._decide(order, now_s)
            return None
        if isinstance(order, Read):
            return self._read(order, now_s)
        if isinstance(order, Release):
            self.rounds.release(order.round)
            return None
        if isinstance(order, Recall):
            return self._recall(order)
        return self._run_directed(order, now_s)

    @property
    def due_s(self) -> float:
        """When `step` has something to do."""
        due_s = min(self._in_doubt.retry_s, self._steps.due_s)
        if not self._loans and not self.rounds:
            return due_s
        for loan in self._loans.values():
            due_s = min(due_s, loan.until_s)
        return min(due_s, self.rounds.due_s)

    def step(self, now_s: float) -> None:
        """Takes back what was lent for too long, ends rounds that are overdue, tries again what found no room.

        Between two batches only. Raises as `obey` does.
        """
        for batch in [batch for batch, loan in self._loans.items() if loan.until_s <= now_s]:
            self._lose(batch)
            crash_point("lending.expired")
        self.rounds.end_overdue(now_s)
        self._in_doubt.try_again(now_s)

    # Lending.

    def _lend(self, order: Borrow, now_s: float) -> Lent:
        batch = order.batch
        loan = self._loans.get(batch)
        if loan is None:
            loan = Loan(0.0, {}, set())
        try:
            if batch in self._lost or batch in self._in_doubt:
                raise Unavailable(f"what batch {batch} had borrowed has been taken back, or prepared")
            wanted, scanned = keys_of(self._store, order.keys), tables_of(self._store, order.scans)
            locked = keys_of(self._store, order.locks)
            asked = [self._entries(each) for each in order.entries]
            taken = [(table, keys) for table, keys, _, _ in asked if not self._store.is_copied(table)]
            self._check_free(batch, loan, wanted + locked + [(table, keys) for table, keys, _, _ in asked], scanned)
            holders = [images for _, _, _, images in asked]
            images, answers = images_of(wanted, scanned, order.scans, holders)
        except Error as error:
            return Lent(batch, [], [], f"{type(error).__name__}: {error}")
        for table, _, entries, _ in asked:
            if table.lookups is not None and not self._store.is_copied(table):
                table.lookups.unique.lend(entries)
                loan.entries.setdefault(table.number, set()).update(entries)
        for table, keys in [each for each in wanted if not self._store.is_copied(each[0])] + locked + taken:
            table.send_all_away(keys)
            loan.keys.setdefault(table.number, set()).update(keys)
        for table in scanned:
            number = table.number
            if not self._store.is_copied(table) and number not in self._lent_tables:
                self._lent_tables[number] = batch
                self._executor.lend_table(number)
                loan.tables.add(number)
        loan.until_s = now_s + LEASE_S
        self._loans[batch] = loan
        crash_point("lending.lent")
        return Lent(batch, images, answers, "", holders)

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

    def _check_free(self, batch: int, loan: Loan, wanted: list[tuple[Table, list[Any]]], scanned: list[Table]) -> None:
        """Raises Unavailable unless all of it is here, or lent to this batch."""
        nothing: set[Any] = set()
        for table, keys in wanted:
            self._check_table(table, batch)
            if table.away and not table.away & set(keys) <= loan.keys.get(table.number, nothing):
                raise Unavailable(f"table {table.name}: a key is lent to another batch, or in doubt")
        for table in scanned:
            self._check_table(table, batch)
            if not table.away <= loan.keys.get(table.number, nothing):
                raise Unavailable(f"table {table.name}: keys are lent to another batch, or in doubt")

    def _check_table(self, table: Table, batch: int) -> None:
        if self._lent_tables.get(table.number, batch) != batch:
            raise Unavailable(f"table {table.name} is lent to batch {self._lent_tables[table.number]}")

    def _lose(self, batch: int) -> None:
        """What the batch has borrowed is here again, and it can't be prepared any more."""
        loan = self._loans.pop(batch, None)
        self._lost[batch] = None
        if len(self._lost) > BATCHES_LOST:
            del self._lost[next(iter(self._lost))]
        if loan is not None:
            self._give_back(loan)

    def _give_back(self, loan: Loan, changes: list[Changes] = []) -> None:  # noqa: B006 — nothing changes it
        """What was borrowed is here again, but for the keys of these changes."""
        kept = {table.number: {*keys, *deleted} for table, keys, _, deleted in changes}
        for number, entries in loan.entries.items():
            lookups = self._store.tables[number].lookups
            if lookups is not None:
                lookups.unique.take_back(entries)
        for number, keys in loan.keys.items():
            self._executor.keys_arrived(number, keys - kept[number] if number in kept else keys)
        for number in loan.tables:
            del self._lent_tables[number]
            self._executor.table_arrived(number)

    # Preparing and deciding.

    def _prepare(self, order: Prepare) -> Vote:
        batch = order.batch
        if batch in self._in_doubt:
            return Vote(batch, "")
        try:
            changes = self._still_held(batch, order.changes)
            self._check_unique(batch, changes)
            if changes:
                self._in_doubt.prepare(batch, order.changes, changes)
        except (Error, DiskFull) as error:
            return self._refused(batch, error)
        loan = self._loans.pop(batch, None)
        if loan is not None:
            self._give_back(loan, changes)
        return Vote(batch, "")

    def _commit(self, order: Commit) -> Vote:
        batch, outcomes = order.batch, bytes(order.outcomes)
        try:
            if batch in self._in_doubt:
                raise ProtocolError(f"batch {batch} is prepared here: others have a say in it")
            changes = self._still_held(batch, order.changes)
            self._check_unique(batch, changes)
            _check_outcomes(outcomes)
            derived = put(self._store, changes)
            crash_point("lending.commit.before_append")
            lsn = self._steps.append(COMMIT, batch, order.changes + derived, outcomes)
        except (Error, DiskFull) as error:
            self._store.undo_batch()
            return self._refused(batch, error)
        crash_point("lending.commit.appended")
        self._store.apply()
        self._window.add(lsn, outcomes, batch)
        loan = self._loans.pop(batch, None)
        if loan is not None:
            self._give_back(loan)
        crash_point("lending.commit.applied")
        return Vote(batch, "")

    def _refused(self, batch: int, error: Error | DiskFull) -> Vote:
        self._lose(batch)
        return Vote(batch, "ReadOnly" if isinstance(error, DiskFull) else type(error).__name__, str(error))

    def _still_held(self, batch: int, changes: list[TableChanges]) -> list[Changes]:
        """The changes, decoded. Raises Unavailable unless the batch holds, without a gap, what it has borrowed."""
        if batch in self._lost:
            raise Unavailable(f"what batch {batch} had borrowed has been taken back")
        loan = self._loans.get(batch)
        nothing: set[Any] = set()
        decoded = changes_of(self._store, changes)
        for table, keys, _, deleted in decoded:
            self._check_table(table, batch)
            if table.number in self._lent_tables:
                continue
            own = nothing if loan is None else loan.keys.get(table.number, nothing)
            # What is new by construction, and what only the coordinator changes, it does not borrow first.
            if self._store.is_copied(table) or table.schema.hidden_key:
                if table.away and not table.away & {*keys, *deleted} <= own:
                    raise Unavailable(f"table {table.name}: a key is lent to another batch, or in doubt")
            elif not own.issuperset(keys) or not own.issuperset(deleted):
                raise Unavailable(f"table {table.name}: batch {batch} does not hold a key that it changes")
        return decoded

    def _check_unique(self, batch: int, changes: list[Changes]) -> None:
        """Raises DuplicateKey when a unique index has values of these rows, Unavailable when that is in doubt.

        Raises NotHere for cold pages.
        """
        loan = self._loans.get(batch)
        nothing: set[Any] = set()
        for table, keys, images, deleted in changes:
            if table.lookups is not None:
                own = nothing if loan is None else loan.keys.get(table.number, nothing)
                table.lookups.unique.check_changes(keys, images, deleted, own)

    def _decide(self, order: Decide, now_s: float) -> None:
        batch = order.batch
        self._lost.pop(batch, None)
        loan = self._loans.pop(batch, None)
        if loan is not None:
            self._give_back(loan)
        if self._in_doubt.decide(batch, order.commits, now_s):
            self._steps.to_tell(batch, now_s)

    # Joint calls.

    def _run_directed(self, order: RunDirected, now_s: float) -> Ran:
        """Raises NotHere when pages are to come."""
        batch = order.batch
        call = EverywhereCall(0, order.client_id, order.procedure, order.number, order.args, order.now_us)
        try:
            part, changes = self._executor.run_part(call)
            self._check_missed(part)
            copies = [_sorted(change) for change in changes if self._store.is_copied(self._store.tables[change.table])]
            if sum(map(bytes_of_changes, copies)) > REPORT_BYTES:
                raise ConstraintViolation(f"{order.procedure} changes more than {REPORT_BYTES:,} bytes of copied rows")
            if changes and part.error is None:
                self._in_doubt.prepare(batch, changes, changes_of(self._store, changes))
        except DiskFull as error:
            part = Part(error=call_error(order.client_id, order.number, ReadOnly(f"no room for the write: {error}")))
        except Error as error:
            part = Part(error=call_error(order.client_id, order.number, error))
        if part.error is not None:
            return Ran(batch, Raw(b"\xc0"), [], part.error)
        self.rounds.open(batch, now_s + order.hold_s)
        return Ran(batch, Raw(part.result), copies)

    def _check_missed(self, part: Part) -> None:
        """Raises NotHere for pages, Unavailable for keys: those come back by an order, and orders don't pass."""
        if part.missed:
            if not all(map(may_be_awaited, part.missed)):
                raise Unavailable("a key is lent to another batch, or in doubt")
            self._store.misses.extend(part.missed)
            raise NotHere

    # Reads that borrow nothing.

    def _read(self, order: Read, now_s: float) -> ReadAnswer:
        nothing = Loan(0.0, {}, set())
        try:
            wanted, scanned = keys_of(self._store, order.keys), tables_of(self._store, order.scans)
            self._check_free(-1, nothing, wanted, scanned)
            images, answers = images_of(wanted, scanned, order.scans)
        except Error:
            return ReadAnswer(order.round, [], [], is_here=False)
        fragments = self._run_fragments(order.fragments) if order.fragments else []
        if fragments is None:
            return ReadAnswer(order.round, [], [], is_here=False)
        self.rounds.open(order.round, now_s + order.hold_s)
        crash_point("lending.read")
        return ReadAnswer(order.round, images, answers, fragments=fragments)

    def _run_fragments(self, fragments: list[Fragment]) -> list[FragmentAnswer] | None:
        """What these say; None where something that they touch is lent or in doubt. Raises NotHere for pages and plans.

        Together they are as large as a frame of reports may be: what finds no room is told so.
        """
        answers: list[FragmentAnswer] = []
        left = REPORT_BYTES
        for fragment in fragments:
            try:
                streams = self._executor.run_fragment(fragment)
                if len(streams) > left:
                    raise ConstraintViolation(
                        f"a partition's part of the answer has {len(streams):,} bytes; the limit is {REPORT_BYTES:,}"
                    )
                left -= len(streams)
                answers.append(FragmentAnswer(Raw(streams)))
            except NotHere:
                if all(map(may_be_awaited, self._store.misses)):
                    raise
                self._store.misses.clear()
                self._store.undo_batch()
                return None
            except Error as error:
                answer = call_error(1, 1, error)
                answers.append(FragmentAnswer(Raw(b"\x90"), answer.code, answer.message))
            self._store.undo_batch()  # it may have been poisoned
        return answers

    def _recall(self, order: Recall) -> Recalled:
        reaches, _ = self._window.batches
        results = self._window.recalled(order.client_id, order.numbers)
        if sum(map(len, results.values())) > REPORT_BYTES:
            results, reaches = {}, (1 << 63) - 1  # as if they were forgotten
        return Recalled(order.client_id, results, reaches)

    def metrics(self) -> dict[str, object]:
        return {
            "lent_keys": sum(len(keys) for loan in self._loans.values() for keys in loan.keys.values()),
            "lent_tables": len(self._lent_tables),
            "prepared_batches": len(self._in_doubt),
            "read_rounds": len(self.rounds),
        }


def _sorted(changes: TableChanges) -> TableChanges:
    """In an order that is the same in every copy."""
    return TableChanges(changes.table, sorted(changes.images), sorted(changes.deleted))


def _check_outcomes(outcomes: bytes) -> None:
    """Raises ProtocolError for what would be damage once it is in the WAL."""
    try:
        decoded_outcomes(outcomes, 0)
    except Corruption as error:
        raise ProtocolError(str(error)) from None
