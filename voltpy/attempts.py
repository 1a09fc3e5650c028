"""What becomes of a call when an attempt of it comes to nothing: it goes again under its number, or ends with an error.

    the attempt                                  the call
    was sent, and its answer will not come       goes again while it may be retried, and carries a floor; else
                                                 Indeterminate, ProcedureTimeout
    was not run: routed by old procedures        waits until newer ones are known, and is routed again
    was not run: it needs the coordinator        goes there
    was not run: Unavailable                     goes again in a moment while it may be retried; else Unavailable
    was answered with another error              ends with it

A call that is sent again keeps its number: with the client id it is the call id by which the partition knows whether it
ran. Once one attempt of a call was lost it carries `floor`, and from then on an answer "this attempt never ran" becomes
Indeterminate: the lost attempt may have run.
"""

from __future__ import annotations

from typing import Final

import msgspec

from voltpy.calls import Pending
from voltpy.errors import (
    BadArguments,
    Error,
    Indeterminate,
    Overloaded,
    ProcedureTimeout,
    Unavailable,
    UnknownProcedure,
    from_wire,
)
from voltpy.in_flight import InFlight
from voltpy.known_cluster import KnownCluster
from voltpy.messages import ELSEWHERE, NEVER_SENT, STALE, CallError
from voltpy.outcomes import Outcomes
from voltpy.unsent import Unsent

# Errors by which a door or partition says that it did not run this attempt, without having looked for earlier ones.
_NOT_THIS_TIME: Final = (Unavailable, Overloaded, UnknownProcedure)

_decode_value = msgspec.msgpack.Decoder().decode


class Attempts:
    """Decides about calls of lanes, one at a time. Times are seconds of the connection's clock."""

    __slots__ = ("_cluster", "_in_flight", "_outcomes", "_unsent")

    def __init__(self, cluster: KnownCluster, unsent: Unsent, in_flight: InFlight, outcomes: Outcomes) -> None:
        self._cluster = cluster
        self._unsent = unsent
        self._in_flight = in_flight
        self._outcomes = outcomes

    def lose(self, call: Pending, why: str, now: float) -> None:
        """The call was sent and its answer will not come."""
        self._in_flight.remove(call)
        if now < call.retry_until and not self._cluster.ran_away(call) and not call.done:
            call.lose()
            self.requeue(call)
        else:
            self._outcomes.fail(call, self.lost_error(call, why))

    def lost_error(self, call: Pending, why: str) -> Error:
        """The error of a call that was sent and is not answered, for the reason `why`."""
        if self._cluster.ran_away(call):
            return ProcedureTimeout(f"{call.procedure}: it ran past the time limit, and its process was restarted")
        return Indeterminate(f"{call.procedure}: {why} after the call was sent; it may have run")

    def answer(self, call: Pending, partition: int, reply: CallError, now: float) -> None:
        """The call, which is in flight no more, is answered with an error, by the partition or (-1) by the router."""
        if reply.code == STALE:
            self._wait_for_procedures(call, now)
            return
        if reply.code == ELSEWHERE and call.lane is not self._cluster.lanes.coordinator:
            self._go_elsewhere(call)
            return
        error = from_wire(reply.code, reply.message, reply.type_name, reply.traceback_text)
        ran_away = self._cluster.ran_away(call)
        may_retry = now < call.retry_until and not ran_away
        if isinstance(error, Indeterminate) and may_retry and (partition < 0 or call.floor == NEVER_SENT):
            # The router's way to say that the partition was lost; of a retry, the partition's own word is the last.
            call.lose()
            self._unsent.hold(call, now)
        elif isinstance(error, Unavailable) and may_retry:
            self._unsent.hold(call, now)
        elif isinstance(error, Indeterminate) and ran_away:
            self._outcomes.fail(call, self.lost_error(call, ""))
        else:
            self._outcomes.fail(call, call.never_ran(error) if isinstance(error, _NOT_THIS_TIME) else error)

    def requeue(self, call: Pending) -> None:
        """The call is to go again, where it went before if that is still its place."""
        if call.done:
            return
        if call.catalog_version != self._cluster.catalog_version or call.lane not in self._cluster.lanes:
            self.route_again(call)
            return
        self._unsent.enqueue(call)

    def route_again(self, call: Pending) -> None:
        """The call is to go by the procedures that are known now."""
        try:
            lane, slot = self._cluster.route(call.procedure, _decode_value(call.args))
        except (BadArguments, UnknownProcedure) as error:
            self._outcomes.fail(call, call.never_ran(error))
            return
        if call.floor != NEVER_SENT and lane is not call.lane:
            # Only where the first attempt went is known whether it ran. The coordinator runs what is a partition's too.
            if call.lane is not self._cluster.lanes.coordinator:
                moved = Unavailable(f"{call.procedure}: its routing has changed")
                self._outcomes.fail(call, call.never_ran(moved))
                return
            lane = call.lane
        call.slot = slot
        call.lane = lane
        self._unsent.enqueue(call)

    def _wait_for_procedures(self, call: Pending, now: float) -> None:
        """Routed by an old set of procedures, and not run: goes again once a newer one is known."""
        if self._cluster.catalog_version != call.catalog_version:
            self.requeue(call)
            return
        self._unsent.ask_router()
        self._unsent.hold(call, now)

    def _go_elsewhere(self, call: Pending) -> None:
        """Its partition has undone it, since it needs the coordinator: goes there, under the same number.

        The coordinator knows nothing of attempts in the partition, so from now on none of them may take effect. None
        has: a partition answers a retry only after it has looked for earlier attempts (`retry_floor`). And none will:
        it remembers this answer as it remembers results, so an attempt that is still on its way there gets the same
        one; and one that is on its way to an earlier process is refused for its incarnation. The floor was an LSN of
        the partition's: for the coordinator this is the first attempt.
        """
        call.floor = NEVER_SENT
        call.lane = self._cluster.lanes.coordinator
        call.lsn = call.lane.lsn
        self.requeue(call)
