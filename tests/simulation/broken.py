"""Builds of the engine that are broken on purpose, each by one rule switched off: the simulation must find every one.

`python -m tests.simulation --broken NAME` runs such a build; `--broken all` looks how soon each of them is found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from math import inf
from typing import Any
from unittest import mock

from coordinator.batch import JointBatch
from coordinator.batches import Batches
from coordinator.borrowed import Tables
from coordinator.borrowed_table import Table as BorrowedTable
from coordinator.decision_log import DecisionLog
from coordinator.inquiries import Inquiries
from coordinator.reads import Reads, Round
from coordinator.transactions import Transactions
from partitions.batch_changes import changes_of
from partitions.batch_steps import BatchSteps
from partitions.executor import Executor
from partitions.in_doubt import InDoubt
from partitions.loans import Loans
from partitions.participant import Participant
from partitions.read_rounds import ReadRounds
from partitions.server import Server
from partitions.store import Store
from partitions.table import Table
from partitions.unique_indexes import Entry
from partitions.wal import ABORT, COMMIT, DECIDE, PREPARE, Wal
from tests.simulation.broken_batches import BATCHES_BROKEN
from tests.simulation.broken_lives import LIVES_BROKEN
from tests.simulation.broken_schema import SCHEMA_BROKEN
from voltpy.messages import Orders, Vote
from voltpy.outcome_window import OutcomeWindow
from voltpy.record_log import RecordLog

Put = Callable[[Any, str, Any], None]


def _replies_before_flush(put: Put) -> None:
    put(Wal, "durable_lsn", property(lambda wal: wal.written_lsn))


def _reports_before_flush(put: Put) -> None:
    real = Server._lend

    def lend(server: Any) -> None:
        real(server)
        while server._unreported:
            server._send(server._coordinator, server._unreported.popleft()[1])

    put(Server, "_lend", lend)


def _votes_are_not_logged(put: Put) -> None:
    """A participant forgets its prepare in a crash."""
    real = BatchSteps.append
    commit = InDoubt._commit
    undecided: dict[BatchSteps, Any] = {}  # what is decided just now

    def append(steps: Any, kind: int, batch: int, changes: Any, *outcomes: bytes) -> int:
        if kind in (PREPARE, ABORT):
            return 0
        if kind == DECIDE:  # what was not prepared on disk is written with the decision, so that the WAL stays readable
            return real(steps, COMMIT, batch, undecided[steps])
        return real(steps, kind, batch, changes, *outcomes)

    def commit_what_is_known(in_doubt: Any, batch: int, now_s: float) -> bool:
        undecided[in_doubt._steps] = in_doubt._store.prepared[batch]
        return commit(in_doubt, batch, now_s)

    put(BatchSteps, "append", append)
    put(InDoubt, "_commit", commit_what_is_known)


def _decisions_are_not_logged(put: Put) -> None:
    def write(log: Any, decision: Any) -> None:
        log._unacknowledged.add(decision.batch)

    put(DecisionLog, "write", write)


def _decisions_are_not_flushed(put: Put) -> None:
    real = DecisionLog.write

    def write(log: Any, decision: Any) -> None:
        with mock.patch.object(RecordLog, "flush"):
            real(log, decision)

    put(DecisionLog, "write", write)


def _decides_are_acknowledged_before_flush(put: Put) -> None:
    real = Server._lend

    def lend(server: Any) -> None:
        real(server)
        server._unreported.extend((0, frame) for frame in server._participant.reports(inf))

    put(Server, "_lend", lend)


def _lent_keys_are_not_guarded(put: Put) -> None:
    real = Participant._lend

    def lend(participant: Any, order: Any, now_s: float) -> Any:
        with mock.patch.object(Table, "send_all_away"):
            return real(participant, order, now_s)

    put(Participant, "_lend", lend)


def _absent_keys_are_not_lent(put: Put) -> None:
    real = Participant._lend
    send_all_away = Table.send_all_away

    def send_those_that_are_there(table: Any, keys: Any) -> None:
        entries = [key for key in keys if isinstance(key, Entry)]
        rows = [key for key in keys if not isinstance(key, Entry)]
        there = zip(rows, table.images_of(rows), strict=True)
        send_all_away(table, entries + [key for key, image in there if image is not None])

    def lend(participant: Any, order: Any, now_s: float) -> Any:
        with mock.patch.object(Table, "send_all_away", send_those_that_are_there):
            return real(participant, order, now_s)

    put(Participant, "_lend", lend)


def _unique_values_are_not_lent(put: Put) -> None:
    """A body is told that a value is free or taken, and both may change before its outcome."""
    real = Loans._entries

    def entries(loans: Any, asked: Any) -> Any:
        table, _, _, images = real(loans, asked)
        return table, [], [], images

    put(Loans, "_entries", entries)


def _lent_tables_are_not_guarded(put: Put) -> None:
    put(Executor, "lend_table", lambda executor, table: executor._kinds.lent.add(table))


def _prepared_keys_are_free_after_a_crash(put: Put) -> None:
    real = InDoubt.__init__

    def init(in_doubt: Any, *arguments: Any) -> None:
        with mock.patch.object(Table, "send_all_away"):
            real(in_doubt, *arguments)

    put(InDoubt, "__init__", init)


def _prepared_keys_are_free(put: Put) -> None:
    real = Participant._prepare

    def prepare(participant: Any, order: Any) -> Any:
        vote = real(participant, order)
        for table, keys, _, deleted in participant._in_doubt._batches.get(order.batch, []):
            participant._executor.keys_arrived(table.number, [*keys, *deleted])
        return vote

    put(Participant, "_prepare", prepare)


def _lost_loans_are_forgotten(put: Put) -> None:
    """A partition votes yes although it took back, or lost in a crash, what it had lent."""
    put(Loans, "still_held", lambda loans, batch, changes: changes_of(loans._store, changes))


def _checkpoints_forget_prepares(put: Put) -> None:
    put(Store, "take_prepared", lambda store, prepared: None)
    replay = Store.replay

    def replay_what_is_known(store: Any, record: Any, lsn: int) -> int:
        from partitions.wal import DECIDE

        step = record.step
        if step is not None and step.kind == DECIDE and step.number not in store.prepared:
            return 0
        return replay(store, record, lsn)

    put(Store, "replay", replay_what_is_known)


def _replies_are_not_held_behind_reads(put: Put) -> None:
    put(ReadRounds, "first_open", property(lambda rounds: inf))


def _parts_of_joint_calls_hold_nothing_back(put: Put) -> None:
    real = Participant._run_directed

    def run_directed(participant: Any, order: Any, now_s: float) -> Any:
        ran = real(participant, order, now_s)
        if order.batch in participant._in_doubt:
            participant.rounds._open[order.batch].opened = 1 << 62
        return ran

    put(Participant, "_run_directed", run_directed)


def _late_answers_are_believed(put: Put) -> None:
    """Of read rounds, and of the parts of joint calls: when somebody may have heard of what the first one missed."""
    put(Round, "look", lambda *_: None)
    real = JointBatch.__init__

    def begin(work: Any, *arguments: Any) -> None:
        real(work, *arguments)
        work.due_s = inf

    put(JointBatch, "__init__", begin)


def _answers_of_the_lost_are_believed(put: Put) -> None:
    """Of read rounds: a successor lets out what was held back."""
    real = Round.lost

    def lost(work: Any, partition: int) -> None:
        if partition in work.awaited:
            real(work, partition)

    put(Round, "lost", lost)


def _bodies_run_while_a_round_is_open(put: Put) -> None:
    """And their callers are answered."""
    begin = Reads.begin
    put(Reads, "begin", lambda reads: reads.round is None and begin(reads))
    put(Reads, "is_open", property(lambda reads: False))

    def is_idle(core: Any) -> bool:
        return not (core.batches.borrowing or core.batches.committing or core.joints.work)

    put(Transactions, "_is_idle", property(is_idle))


def _reads_come_from_several_rounds(put: Put) -> None:
    real = Reads._end

    def end(reads: Any, again: Any) -> None:
        if again:
            with mock.patch.object(Tables, "give_back"):
                real(reads, again)
        else:
            real(reads, again)

    put(Reads, "_end", end)


def _reads_do_not_wait_for_what_is_lent(put: Put) -> None:
    put(Loans, "check_free", lambda *_: None)


def _replies_leave_before_the_outcome(put: Put) -> None:
    real = Batches._abort

    def abort(batches: Any, batch: Any) -> None:
        if batch.done and batch.groups:
            again = list(batch.waiting)
            batches._callers.answer(batch)
            batch.done, batch.waiting = [], again
        real(batches, batch)

    put(Batches, "_abort", abort)


def _failed_calls_are_told_at_once(put: Put) -> None:
    """An abort rests on what the batch did before, which may be undone."""
    real = Batches._run

    def run(batches: Any, batch: Any) -> None:
        real(batches, batch)
        if batches.borrowing is batch:
            for call in [call for call in batch.done if call.error is not None]:
                batches._callers.give_up(call, call.error)
                batch.done.remove(call)

    put(Batches, "_run", run)


def _everybody_in_doubt_is_told_no(put: Put) -> None:
    """Even about the batch that is under way, which may commit yet."""
    put(Batches, "live", property(lambda batches: frozenset()))


def _in_doubt_means_no(put: Put) -> None:
    """A coordinator that comes back has forgotten what its decision log says."""
    real = Transactions.__init__

    def init(core: Any, lane: int, epoch: int, bodies: Any, decisions: Any, *rest: Any) -> None:
        real(core, lane, epoch, bodies, [], *rest)

    put(Transactions, "__init__", init)


def _no_is_taken_for_yes(put: Put) -> None:
    """One who votes no is taken for one who votes yes."""
    real = Batches.voted

    def voted(batches: Any, partition: int, vote: Any) -> None:
        real(batches, partition, Vote(vote.batch, ""))

    put(Batches, "voted", voted)


def _copies_are_written_in_one_partition(put: Put) -> None:
    from coordinator.batch import Batch

    real = Batch.close

    def close(batch: Any, changes: Any, everywhere: Any) -> None:
        real(batch, changes, list(everywhere)[:1])

    put(Batch, "close", close)


def _retries_run_again(put: Put) -> None:
    """Nothing is remembered of what ran."""
    put(OutcomeWindow, "first_result", lambda *_: None)


def _checkpoints_forget_outcomes(put: Put) -> None:
    """A retry whose first attempt was followed by a checkpoint and a crash runs again."""
    put(OutcomeWindow, "remembered", property(lambda window: (window._reaches, [])))
    put(OutcomeWindow, "batches", property(lambda window: (window._batches_reach, [])))


def _scans_do_not_see_what_the_batch_has_written(put: Put) -> None:
    real = BorrowedTable._read

    def read(table: Any, kind: str, arguments: bytes, partitions: Any) -> Iterator[Any]:
        for row in list(real(table, kind, arguments, partitions)):
            before = table.written.get(table._key_of(row), row)
            if before is not None:
                yield before

    put(BorrowedTable, "_read", read)


def _stand_ins_are_taken_for_rows(put: Put) -> None:
    """A run that has some real rows, and misses others, counts."""
    real = Tables.miss

    def miss(tables: Any, wish: Any) -> None:
        if not tables.has_borrowed:
            real(tables, wish)

    put(Tables, "miss", miss)


def _one_phase_outcomes_are_not_asked_for(put: Put) -> None:
    """A new coordinator runs retries without asking whether an earlier one had them committed in one partition."""

    def ask(inquiries: Any, inquiry: Any) -> None:
        for call in inquiry.calls:
            inquiries._waiting.queue_of(call).append(call)

    put(Inquiries, "_ask", ask)


def _torn_tails_are_kept(put: Put) -> None:
    """What is read after a crash counts as flushed."""
    put(RecordLog, "_settle_tail", lambda log, path: None)


def _restarted_partitions_answer_old_orders(put: Put) -> None:
    """Whose orders they are, and of which session, is not looked at."""

    def take(participant: Any, frame: Any) -> None:
        participant._session.is_open = True
        participant.orders.extend(frame.orders)

    put(Participant, "take", take)
    real = Server._obey

    def obey(server: Any, identity: Any, message: Any) -> None:
        real(server, server._coordinator if isinstance(message, Orders) else identity, message)

    put(Server, "_obey", obey)


def _leases_end_in_silence(put: Put) -> None:
    """Keys come back by themselves, and the batch may still be prepared."""

    def lose(loans: Any, batch: int) -> None:
        loan = loans._loans.get(batch)
        if loan is not None:
            loan.until_s = inf
            loans._give_back(loan, [])
            loan.tables.clear()

    put(Loans, "lose", lose)


def _nobody_is_released(put: Put) -> None:
    """Replies behind a read are held for ever."""
    real = Participant._obeyed

    def obeyed(participant: Any, order: Any, now_s: float) -> Any:
        from voltpy.messages import Release

        if isinstance(order, Release):
            for each in participant.rounds._open.values():
                each.until_s = inf
            return None
        return real(participant, order, now_s)

    put(Participant, "_obeyed", obeyed)


BROKEN: dict[str, Callable[[Put], None]] = BATCHES_BROKEN | {
    name[1:]: function
    for name, function in list(globals().items())
    if name.startswith("_") and callable(function) and getattr(function, "__module__", "") == __name__
}


@contextmanager
def broken(name: str) -> Iterator[None]:
    """The build is broken so until the end of the block."""
    with ExitStack() as stack:
        breaking = (BROKEN | SCHEMA_BROKEN | LIVES_BROKEN)[name]
        breaking(lambda where, what, new: stack.enter_context(mock.patch.object(where, what, new)))
        yield
