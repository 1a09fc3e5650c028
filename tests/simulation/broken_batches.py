"""As tests.simulation.broken, of the rules about batches and about those who wait for what is lent: 10, 12, 13 and 14.

Most of these builds answer nothing wrong. They let somebody wait, or fail, who need not: tests.simulation.fairness
finds them, under conditions (tests.simulation.conditions) in which that can happen.

Rule 10 was that a lent row stays in memory. In this engine it may leave: what was lent went out as an image, and an
order that finds its rows on disk waits for their pages, as calls do, with all orders behind it. So there is nothing to
be switched off that keeps rows in memory; what is switched off instead is that a decision waits.

Of rule 12, in which order those run who waited for the same row is not looked at: they are under way at the same time,
and have no order. That all of them run before the next batch has the row is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from coordinator import batches
from coordinator.batch import CALLS_A_BATCH, Batch
from coordinator.batches import Batches
from partitions import executor
from partitions.executor import Executor
from partitions.in_doubt import InDoubt
from partitions.order_queue import OrderQueue
from partitions.participant import Participant
from partitions.set_aside import CallsSetAside
from voltpy.errors import CODES, Overloaded
from voltpy.messages import Borrow
from voltpy.not_here import NotHere

Put = Callable[[Any, str, Any], None]


# Rule 10: what becomes of rows that are lent, or in doubt, and not in memory.


def _decisions_do_not_wait_for_pages(put: Put) -> None:
    """A decision about rows that are on disk comes to nothing: nobody in this partition hears of it again."""
    real = InDoubt.decide

    def decide(in_doubt: Any, batch: int, commits: bool, now_s: float) -> bool:
        try:
            return real(in_doubt, batch, commits, now_s)
        except NotHere:
            in_doubt._store.misses.clear()
            in_doubt._store.undo_batch()
            return True

    put(InDoubt, "decide", decide)


# Rule 12: one batch borrows at a time, and those who waited run in between.


def _the_next_borrow_comes_before_those_who_waited(put: Put) -> None:
    put(OrderQueue, "yields", property(lambda orders: False))


def _overlaps_have_no_end(put: Put) -> None:
    """Keys come back, but never all of them at a time."""
    put(batches, "OVERLAPS_IN_A_ROW", 1 << 30)


def _two_batches_borrow_the_same(put: Put) -> None:
    put(Batch, "lets", lambda batch, calls: True)
    real = Batches._taken_beside

    def taken_beside(batches: Any, committing: Any) -> Any:
        held, committing.held = committing.held, [set() for _ in committing.held]
        taken = real(batches, committing)
        committing.held = held
        return taken

    put(Batches, "_taken_beside", taken_beside)


def _lends_wait_for_those_who_wait_for_what_is_lent(put: Put) -> None:
    """A batch that has borrowed one row waits, for another one, for a call that waits for the first."""
    real, begin = OrderQueue.is_due.fget, Participant.__init__  # type: ignore[attr-defined]
    executors: dict[int, Executor] = {}

    def init(participant: Any, store: Any, executor: Any, *rest: Any) -> None:
        begin(participant, store, executor, *rest)
        executors[id(participant.orders)] = executor

    def is_due(orders: Any) -> bool:
        if not real(orders):
            return False
        return not (isinstance(orders.first, Borrow) and executors[id(orders)].waiting_for_lent)

    put(Participant, "__init__", init)
    put(OrderQueue, "is_due", property(is_due))


# Rule 13: a batch ends soon, and fails those alone whose fault it is.


def _batches_borrow_without_end(put: Put) -> None:
    put(batches, "ROUNDS", 1 << 30)


def _a_full_disk_fails_whole_batches(put: Put) -> None:
    """Also those of its calls that write elsewhere."""
    put(batches, "_wrote_some", lambda *_: True)


def _refused_batches_run_again_as_they_were(put: Put) -> None:
    real = Batches._requeue_aborted

    def requeue(batches: Any, batch: Any) -> None:
        real(batches, batch)
        batches._limit = CALLS_A_BATCH

    put(Batches, "_requeue_aborted", requeue)


def _refused_batches_fail_as_a_whole(put: Put) -> None:
    real = Batches._requeue_aborted

    def requeue(batches: Any, batch: Any) -> None:
        code, message = batch.refusal
        if not code or code in ("Unavailable", "ReadOnly"):
            real(batches, batch)
            return
        for call in list(batch.calls):
            batches._callers.give_up(call, CODES[code](message))

    put(Batches, "_requeue_aborted", requeue)


# Rule 14: who waits for what is lent is in nobody's way, and not for ever.


def _who_waits_for_what_is_lent_waits_for_ever(put: Put) -> None:
    put(Executor, "give_up", lambda executor: False)


def _all_who_wait_share_one_limit(put: Put) -> None:
    """Those who wait for the disk are refused because others wait for what is lent."""

    def has_room(calls: Any, *, for_lent: bool) -> bool:
        return len(calls) < executor.CALLS_WAIT_FOR_LENT

    put(CallsSetAside, "has_room", has_room)


def _nobody_runs_while_many_wait(put: Put) -> None:
    real = Executor.run

    def run(executor_: Any, origin: Any, group: Any) -> None:
        if executor_.waiting_for_lent < executor.CALLS_WAIT_FOR_LENT:
            real(executor_, origin, group)
            return
        first = next(call for call in executor_._set_aside._calls.values() if call.waits_for_lent)
        lacks = executor_._lacks(first.missed)
        executor_._refuse(origin, group, Overloaded(f"calls wait for rows that are lent already, and {lacks}"))

    put(Executor, "run", run)


def _all_are_given_up_with_the_first(put: Put) -> None:
    """Once one has waited for too long for a key, so have those who have just come, or wait for others."""
    real = CallsSetAside.overdue

    def overdue(calls: Any, lent_since_s: float) -> Any:
        if not real(calls, lent_since_s):
            return []
        return [call for call in calls._calls.values() if call.waits_for_lent and call.missing]

    put(CallsSetAside, "overdue", overdue)


BATCHES_BROKEN: dict[str, Callable[[Put], None]] = {
    name[1:]: function
    for name, function in list(globals().items())
    if name.startswith("_") and callable(function) and getattr(function, "__module__", "") == __name__
}
