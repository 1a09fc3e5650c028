"""A moment at which no transaction crosses partitions: the coordinator ends its batches, and begins none until told.

hold     HoldBatches, with a lease that is longer than `until_s` is away
is held  BatchesHeld came in time: none is under way, or undecided
resume   ResumeBatches; by its lease the coordinator goes on too where that does not reach it, or ends where it has
         prepared a schema that may be stored by then
"""

from __future__ import annotations

from math import inf

from voltpy.actions import Actions
from voltpy.child import Child
from voltpy.messages import BatchesHeld, HoldBatches, ResumeBatches

CUT_LIMIT_S = 30.0  # from when the coordinator is asked until the cut must have been made use of
CUT_LEASE_S = 2 * CUT_LIMIT_S  # of the coordinator: it must not go on by itself before we have given up


class Cut:
    """`until_s`: until when the coordinator holds its batches for it; inf where it does not."""

    def __init__(self, number: int, coordinator: Child, actions: Actions) -> None:
        self.number = number
        self.until_s = inf
        self._coordinator = coordinator
        self._actions = actions

    def hold(self, now_s: float) -> None:
        self.until_s = now_s + CUT_LIMIT_S
        self._actions.tell(self._coordinator, HoldBatches(self.number, CUT_LEASE_S))

    def is_held(self, message: BatchesHeld, now_s: float) -> bool:
        """Whether the message says so. Heard too late, it says nothing: the coordinator may have gone on before."""
        return message.snapshot == self.number and self.is_good(now_s)

    def is_good(self, now_s: float) -> bool:
        return now_s < self.until_s < inf

    def resume(self) -> None:
        if self.until_s < inf:
            self.until_s = inf
            if self._coordinator.state == "serving":
                self._actions.tell(self._coordinator, ResumeBatches(self.number))
