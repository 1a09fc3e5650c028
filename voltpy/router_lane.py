"""What is for the router itself, and not for one partition through it; and what waits for its word.

outbox     directed calls, and commands to the supervisor: sent as soon as the router has welcomed us
unknown    calls of procedures that we have not heard of. A Hello asks for the topology, which has all of them:
           a procedure that is not in the answer does not exist.
"""

from __future__ import annotations

from collections.abc import Container

from voltpy.calls import Command, Everywhere, Pending


class RouterLane:
    """The connection to the router, and its two queues. Times are seconds of the connection's clock.

    `ready` once the router has welcomed us. Until `wait_until` a router that is being connected to is waited for.
    `hello_wanted`: a Hello is to be sent, over a connection that has had its first one.
    """

    __slots__ = ("hello_wanted", "hellos_unanswered", "outbox", "ready", "unknown", "wait_until")

    def __init__(self) -> None:
        self.ready = False
        self.wait_until = 0.0
        self.hello_wanted = False
        self.hellos_unanswered = 0
        self.outbox: list[Everywhere | Command] = []
        self.unknown: list[Pending] = []

    def lose(self) -> None:
        """The connection is gone."""
        self.ready = False
        self.wait_until = 0.0
        self.hellos_unanswered = 0

    def take_outbox(self) -> list[Everywhere | Command]:
        outbox, self.outbox = self.outbox, []
        return outbox

    def take_unknown(self) -> list[Pending]:
        unknown, self.unknown = self.unknown, []
        return unknown

    def take_known(self, procedures: Container[str]) -> list[Pending]:
        """Takes out the calls that wait to hear of one of these procedures."""
        known = [call for call in self.unknown if call.procedure in procedures]
        if known:
            self.unknown = [call for call in self.unknown if call.procedure not in procedures]
        return known

    @property
    def has_told_all(self) -> bool:
        """Whether every Hello is answered, so that what is still unknown does not exist."""
        return self.hellos_unanswered == 0 and not self.hello_wanted

    def patience(self, call: Pending) -> float:
        """Until when a call waits for a router that is not connected."""
        return max(call.retry_until, self.wait_until)

    def take_expired(self, now: float) -> tuple[list[Pending], list[Pending]]:
        """Takes out the calls that wait no longer: (those whose deadline has come, those that the router is late for).

        Those that nobody wants any more go with them, and are in neither.
        """
        late: list[Pending] = []
        impatient: list[Pending] = []
        gone: set[int] = set()
        for call in [*self.unknown, *self.outbox]:
            if call.deadline <= now:
                late.append(call)
            elif not self.ready and self.patience(call) <= now:
                impatient.append(call)
            elif not call.done:
                continue
            gone.add(id(call))
        if gone:
            self.unknown = [call for call in self.unknown if id(call) not in gone]
            self.outbox = [other for other in self.outbox if id(other) not in gone]
        return late, impatient

    def times(self) -> list[float]:
        """When something has to be done about what waits here."""
        return [
            call.deadline if self.ready else min(call.deadline, self.patience(call))
            for call in [*self.unknown, *self.outbox]
        ]
