"""Directed calls whose parts commit together: each partition runs its part, one decision is about all of them. Pure.

RunDirected → Ran of all, in time, and all are still there? → Release, decision → Decide
"""

from __future__ import annotations

from msgspec import Raw

from coordinator.batch import JointBatch
from coordinator.borrowed import Tables
from coordinator.callers import Callers
from coordinator.decision_log import Decision
from coordinator.participants import ORDER_BYTES, Participants
from coordinator.two_phase import State
from coordinator.waiting import Waiting
from voltpy.answers import REPLY_BYTES
from voltpy.errors import ConstraintViolation, Error, ReadOnly, Unavailable
from voltpy.messages import CallError, Ran, Release, RunDirected
from voltpy.outcome_window import OutcomeWindow

ATTEMPTS = 8  # then a call is given up


class Joints:
    """One at a time, `work`. `decision`: to be flushed, then `decided`."""

    def __init__(
        self,
        tables: Tables,
        waiting: Waiting,
        participants: Participants,
        callers: Callers,
        window: OutcomeWindow,
        counts: dict[str, int],
    ) -> None:
        self.work: JointBatch | None = None
        self.decision: Decision | None = None
        self.counts = counts
        self._tables = tables
        self._waiting = waiting
        self._participants = participants
        self._callers = callers
        self._window = window

    @property
    def is_open(self) -> bool:
        """Whether nobody may be answered."""
        return self.work is not None and self.work.is_open

    @property
    def live(self) -> set[int]:
        """The number of the one that is under way."""
        return set() if self.work is None else {self.work.number}

    def begin(self) -> bool:
        joint = self._waiting.take_joint()
        if joint is None:
            return False
        participants = self._participants
        work = self.work = JointBatch(
            participants.next_batch(), joint, len(participants.everywhere), participants.now_s
        )
        call = joint.call
        for partition, _ in work.commit.take_asks():
            order = RunDirected(
                work.number, call.client_id, call.number, call.procedure, Raw(bytes(call.args)), call.now_us,
                work.hold_s,
            )  # fmt: skip
            participants.order(partition, order, ORDER_BYTES + len(call.procedure) + len(order.args))
        return True

    def ran(self, partition: int, ran: Ran) -> None:
        """A partition has run its part, and voted by that."""
        work = self.work
        if work is None or ran.batch != work.number or partition not in work.commit.awaited:
            return
        work.ran[partition] = ran
        work.commit.voted(partition, yes=ran.error is None)
        if ran.error is not None:
            self._abort(work, ran.error)
        elif self._participants.now_s >= work.due_s:
            self._abort(work, None)

    @property
    def is_answered(self) -> bool:
        """Whether all parts have run, and may be believed if all partitions are still there now."""
        return self.work is not None and self.work.is_answered

    def believe(self) -> None:
        """It is decided, unless something is wrong with what the parts have done."""
        work = self.work
        if work is None or not work.is_answered:
            return
        differing = work.differing()
        if differing is not None:
            text = (
                f"{work.of.call.procedure} changes its copies otherwise in partition {differing} than in partition 0: "
                "what it writes must depend on its arguments and on copied tables alone"
            )
            self._abort(work, ConstraintViolation(text))
            return
        if work.result_bytes > REPLY_BYTES:
            text = f"results of {work.result_bytes:,} bytes together; the limit is {REPLY_BYTES:,}"
            self._abort(work, ConstraintViolation(text))
            return
        work.is_open = False
        self._release(work)
        work.close()
        self.decision = Decision(work.number, sorted(work.commit.writers), Raw(work.outcomes))

    def _release(self, work: JointBatch) -> None:
        for partition in sorted(work.commit.writers):
            self._participants.order(partition, Release(work.number))

    def decided(self, *, was_room: bool, reason: str) -> None:
        work = self.work
        if work is None:
            return
        work.commit.logged(was_room=was_room)
        if was_room:
            self._committed(work)
        else:
            self._abort(work, ReadOnly(f"no room for the decision: {reason}"))

    def lost(self, partition: int) -> None:
        """The session with this partition is over."""
        if self.work is not None:
            self.work.commit.lost(partition)
            if self.work.commit.state is State.ABORTED or self.work.is_open:  # it holds back nothing any more
                self._abort(self.work, None)

    def _committed(self, work: JointBatch) -> None:
        self._participants.commit(work.number, work.commit.writers)
        self._tables.forget_copies()
        self.work = None
        self.counts["joint_calls"] += 1
        self._window.add(work.number, work.outcomes)
        self._callers.answer_joint(work.of, work.close())

    def _abort(self, work: JointBatch, error: Error | CallError | None) -> None:
        """`error` None: through no fault of its own, so it runs again."""
        if work.is_open:
            self._release(work)
        self._participants.abort(work.number, work.commit.writers)
        self.decision = self.work = None
        self.counts["aborted_batches"] += 1
        joint = work.of
        joint.attempts += 1
        if error is None and joint.attempts < ATTEMPTS:
            self._waiting.joints.put_first((joint,))
        else:
            lost = Unavailable("a partition was lost again and again while the call ran")
            self._callers.give_up(joint, error or lost)
