"""The partition as a participant in the coordinator's batches, joint calls and reads: it obeys orders, one by one.

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

This file says what each order does, and what becomes of everything when a session begins or ends. Beside it:

    order_session   which frames of orders count, and how reports are framed
    order_queue     the orders that have come, and the cold pages that the first of them waits for
    loans           what batches have borrowed; it comes back by itself when they are late, and then their vote is no
    in_doubt        what they have prepared; it stays away until it is decided, through any crash
    batch_steps     their records in the WAL; which decisions are on disk, and to be told
    read_rounds     which replies wait for reads
    row_images, batch_changes, joint_parts     rows that are asked for, rows that are brought, bodies that run here
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from msgspec import Raw

from partitions.batch_changes import changes_of, put
from partitions.batch_steps import BatchSteps
from partitions.executor import Executor, Part
from partitions.in_doubt import InDoubt
from partitions.joint_parts import fragments_of, part_of
from partitions.loans import NOBODY, Loans
from partitions.order_queue import OrderQueue
from partitions.order_session import REPORT_BYTES, OrderSession
from partitions.read_rounds import ReadRounds
from partitions.row_images import images_of, keys_of, tables_of
from partitions.store import Store
from partitions.wal import COMMIT
from voltpy.call_error import call_error
from voltpy.crash_point import crash_point
from voltpy.errors import (
    Corruption,
    Error,
    ProtocolError,
    ReadOnly,
    Unavailable,
)
from voltpy.messages import (
    Attach,
    Attached,
    Borrow,
    Commit,
    Decide,
    Detach,
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
    Vote,
)
from voltpy.not_here import NotHere
from voltpy.outcome_window import OutcomeWindow, decoded_outcomes
from voltpy.record_log import DiskFull


class Participant:
    """`append` writes a record to the WAL and returns its LSN; it raises DiskFull, or ReadOnly for what is too large.

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
        self._loans = Loans(store, executor)
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
            self._loans.forget_lost()
        self._session.begin(epoch, session)
        crash_point("participant.attached")
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

    def record_aborts(self) -> None:
        """To be called before calls' changes come into the WAL. Raises DiskFull, or ReadOnly: then they must not."""
        self._steps.record_aborts()

    def rests_on(self, written_lsn: int, now_s: float) -> int:
        """Up to where the WAL must be flushed before what is reported now may leave."""
        return self._steps.rests_on(written_lsn, now_s)

    def reports(self, lsn: float = inf) -> list[Reports]:
        """What may be told, once the WAL is flushed up to this LSN, of what has become of orders since the last time.

        In as many frames as their size asks for.
        """
        self._reports[:0] = self._steps.take_flushed(lsn)
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
        self._loans.lose_all()
        self._in_doubt.end_session()

    # Orders, and when it is their turn.

    def obey(self, now_s: float) -> None:
        """Obeys the next order, or finds that it needs cold pages. Between two batches only.

        Raises OSError or Corruption when a page can't be read.
        """
        orders, misses, pool = self.orders, self._store.misses, self._store.pool
        bring = misses.bring
        if not orders.is_patient and pool is not None and not self._store.is_behind:
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
        return min(self._loans.due_s, self._in_doubt.retry_s, self._steps.due_s, self.rounds.due_s)

    def step(self, now_s: float) -> None:
        """Takes back what was lent for too long, ends rounds that are overdue, tries again what found no room.

        Between two batches only. Raises as `obey` does.
        """
        self._loans.lose_overdue(now_s)
        self.rounds.end_overdue(now_s)
        self._in_doubt.try_again(now_s)

    # What each order does: see the table above.

    def _lend(self, order: Borrow, now_s: float) -> Lent:
        batch = order.batch
        try:
            if self._loans.is_lost(batch) or batch in self._in_doubt:
                raise Unavailable(f"what batch {batch} had borrowed has been taken back, or prepared")
            return self._loans.lend(order, now_s)
        except Error as error:
            return Lent(batch, [], [], f"{type(error).__name__}: {error}")

    def _prepare(self, order: Prepare) -> Vote:
        batch = order.batch
        if batch in self._in_doubt:
            return Vote(batch, "")
        try:
            changes = self._loans.still_held(batch, order.changes)
            self._loans.check_unique(batch, changes)
            if changes:
                self._in_doubt.prepare(batch, order.changes, changes)
        except (Error, DiskFull) as error:
            return self._refused(batch, error)
        self._loans.end(batch, changes)
        return Vote(batch, "")

    def _commit(self, order: Commit) -> Vote:
        batch, outcomes = order.batch, bytes(order.outcomes)
        try:
            if batch in self._in_doubt:
                raise ProtocolError(f"batch {batch} is prepared here: others have a say in it")
            changes = self._loans.still_held(batch, order.changes)
            self._loans.check_unique(batch, changes)
            _check_outcomes(outcomes)
            try:
                derived = put(self._store, changes)
            except ReadOnly:
                self._store.wait_for_left()
                raise
            crash_point("participant.commit.before_append")
            lsn = self._steps.append(COMMIT, batch, order.changes + derived, outcomes)
        except (Error, DiskFull) as error:
            self._store.undo_batch()
            return self._refused(batch, error)
        crash_point("participant.commit.appended")
        self._store.apply()
        self._window.add(lsn, outcomes, batch)
        self._loans.end(batch)
        crash_point("participant.commit.applied")
        return Vote(batch, "")

    def _refused(self, batch: int, error: Error | DiskFull) -> Vote:
        self._loans.lose(batch)
        return Vote(batch, "ReadOnly" if isinstance(error, DiskFull) else type(error).__name__, str(error))

    def _decide(self, order: Decide, now_s: float) -> None:
        batch = order.batch
        self._loans.decided(batch)
        if self._in_doubt.decide(batch, order.commits, now_s):
            self._steps.to_tell(batch, now_s)

    def _run_directed(self, order: RunDirected, now_s: float) -> Ran:
        """Raises NotHere when pages are to come."""
        batch = order.batch
        try:
            part, changes, copies = part_of(order, self._store, self._executor)
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

    def _read(self, order: Read, now_s: float) -> ReadAnswer:
        try:
            wanted, scanned = keys_of(self._store, order.keys), tables_of(self._store, order.scans)
            self._loans.check_free(NOBODY, wanted, scanned)
            images, answers = images_of(wanted, scanned, order.scans)
        except Error:
            return ReadAnswer(order.round, [], [], is_here=False)
        fragments = fragments_of(order.fragments, self._store, self._executor) if order.fragments else []
        if fragments is None:
            return ReadAnswer(order.round, [], [], is_here=False)
        self.rounds.open(order.round, now_s + order.hold_s)
        crash_point("participant.read")
        return ReadAnswer(order.round, images, answers, fragments=fragments)

    def _recall(self, order: Recall) -> Recalled:
        reaches, _ = self._window.batches
        results = self._window.recalled(order.client_id, order.numbers)
        if sum(map(len, results.values())) > REPORT_BYTES:
            results, reaches = {}, (1 << 63) - 1  # as if they were forgotten
        return Recalled(order.client_id, results, reaches)

    def metrics(self) -> dict[str, object]:
        return {
            "lent_keys": self._loans.lent_keys,
            "lent_tables": self._loans.lent_tables,
            "prepared_batches": len(self._in_doubt),
            "read_rounds": len(self.rounds),
        }


def _check_outcomes(outcomes: bytes) -> None:
    """Raises ProtocolError for what would be damage once it is in the WAL."""
    try:
        decoded_outcomes(outcomes, 0)
    except Corruption as error:
        raise ProtocolError(str(error)) from None
