"""Calls that have not begun: what they wait for, and in which order they are taken. Pure.

batches, reads, joints    until it is their turn, each kind in a queue of its own
stalled                   until a partition that they need is attached, ATTACH_WAIT_S at most
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from coordinator.batch import Joint
from coordinator.bodies import Call
from coordinator.callers import Callers
from coordinator.participants import Participants
from coordinator.session import ATTACHED, DOWN
from voltpy.errors import Error, Unavailable

ATTACH_WAIT_S = 2.0


class Waiting:
    """`knows_partitions`: whether the supervisor has said which ones are up."""

    def __init__(self, participants: Participants, callers: Callers) -> None:
        self.knows_partitions = False
        self.batches: deque[Call] = deque()
        self.reads: deque[Call] = deque()
        self.joints: deque[Joint] = deque()
        self.stalled: deque[Call | Joint] = deque()  # the longest waiting first
        self._participants = participants
        self._callers = callers

    def queue_of(self, call: Call) -> deque[Call]:
        return self.reads if call.procedure.read_only and not call.borrows else self.batches

    def put_in_front(self, calls: Iterable[Call]) -> None:
        """Of all others, in their order."""
        for call in reversed(list(calls)):
            self.queue_of(call).appendleft(call)

    def take(self, queue: deque[Call], limit: int) -> list[Call]:
        """The next calls of a queue whose partitions are attached."""
        if self._participants.all_attached:
            taken = [queue.popleft() for _ in range(min(limit, len(queue)))]
            for call in taken:
                call.until_s = 0.0
            return taken
        taken = []
        while queue and len(taken) < limit:
            call = queue.popleft()
            if self._is_ready(call):
                taken.append(call)
        return taken

    def take_joint(self) -> Joint | None:
        while self.joints:
            joint = self.joints.popleft()
            if self._is_ready(joint):
                return joint
        return None

    def _is_ready(self, call: Call | Joint) -> bool:
        """Whether its partitions are attached. If not, it has been answered, or set aside."""
        participants = self._participants
        needed = call.allowed if isinstance(call, Call) and not call.needs_all else participants.everywhere
        is_ready = True
        for partition in needed:
            state = participants.sessions[partition].state
            if state == ATTACHED:
                continue
            is_ready = False
            if state == DOWN and self.knows_partitions:
                self._callers.give_up(call, Unavailable(f"partition {partition} is down"))
                return False
        if not needed and not participants.any_attached:
            is_ready = False  # it may read what every partition has a copy of
        if is_ready:
            call.until_s = 0.0
        else:
            call.until_s = call.until_s or participants.now_s + ATTACH_WAIT_S
            self.stalled.append(call)
        return is_ready

    def attached(self) -> None:
        """A partition is there again: whoever waited for one goes to the front of its queue."""
        stalled, self.stalled = self.stalled, deque()
        for call in reversed(stalled):
            if isinstance(call, Joint):
                self.joints.appendleft(call)
            else:
                self.queue_of(call).appendleft(call)

    def turn_away(self, error: Error) -> None:
        """Answers all of them with this error."""
        for queue in (self.batches, self.reads, self.joints, self.stalled):
            while queue:
                self._callers.give_up(queue.popleft(), error)

    def expire(self) -> None:
        while self.stalled and self._participants.now_s >= self.stalled[0].until_s:
            error = Unavailable("a partition that the call needs does not answer")
            self._callers.give_up(self.stalled.popleft(), error)
