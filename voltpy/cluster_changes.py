"""What changes around a connection: connections come and go, processes die and return, procedures are replaced.

    what is lost                              of what was sent there
    the connection to the router              what went through it is lost at once
    a direct connection to a process          waits, in limbo: up to TOPOLOGY_WAIT_S for the router to say what became
                                              of the process, or until a new connection is there; then it is lost
    a connection to a process that stops in   never ran: it goes again, or is Unavailable
    order (Closing says so)
    a process (a topology, or Lost, says so)  what its former incarnation has not answered is lost
    the cluster (another answers instead)     is lost, and goes nowhere again

What was lost goes again or ends: voltpy.attempts. What has not been sent is looked at by voltpy.departures again.
"""

from __future__ import annotations

from collections import deque
from math import inf
from typing import Final

from voltpy.alarm import Alarm
from voltpy.attempts import Attempts
from voltpy.calls import Everywhere, Lookup, Pending
from voltpy.errors import Error, Indeterminate, ProtocolError, Unavailable
from voltpy.in_flight import InFlight
from voltpy.known_cluster import KnownCluster
from voltpy.lane import ROUTER, Lane, Lanes
from voltpy.messages import NEVER_SENT, CallError, Closing, Lost, PartitionAddress, Topology, Welcome
from voltpy.outcomes import Outcomes
from voltpy.routing import no_such
from voltpy.unsent import Unsent

TOPOLOGY_WAIT_S: Final = 1.0  # how long a lost direct connection waits for the router to say what became of the process


class ClusterChanges:
    """Takes in the news. With `affinity` direct connections are used. Times are seconds of the connection's clock."""

    __slots__ = ("_affinity", "_alarm", "_attempts", "_cluster", "_in_flight", "_outcomes", "_unsent")

    def __init__(
        self,
        affinity: bool,
        cluster: KnownCluster,
        unsent: Unsent,
        in_flight: InFlight,
        outcomes: Outcomes,
        attempts: Attempts,
        alarm: Alarm,
    ) -> None:
        self._affinity = affinity
        self._cluster = cluster
        self._unsent = unsent
        self._in_flight = in_flight
        self._outcomes = outcomes
        self._attempts = attempts
        self._alarm = alarm

    # ── connections ────────────────────────────────────────────────────────────────────────────────────────────────

    def welcome(self, source: int, welcome: Welcome, now: float) -> None:
        """A door has answered a Hello. Raises ProtocolError."""
        if source == ROUTER:
            if welcome.topology is None:
                raise ProtocolError("a router's Welcome without topology")
            router = self._unsent.router
            first = not router.ready
            router.ready = True
            if router.hellos_unanswered > 0:
                router.hellos_unanswered -= 1
            self.topology(welcome.topology, now, fresh=first)
            if router.has_told_all:
                self._settle_unknown()
        elif source < len(self._cluster.lanes):
            lane = self._cluster.lanes[source]
            if lane.limbo_until < inf:
                # Before calls of the new connection could be taken for calls of the lost one.
                self._end_limbo(lane, now)
            lane.direct = self._affinity and welcome.incarnation == lane.incarnation

    def lost_connection(self, destination: int, now: float) -> None:
        """The connection to the router, or to a lane's process, is gone."""
        lanes = self._cluster.lanes
        if destination == ROUTER:
            self._unsent.router.lose()
            why = "the connection to the router was lost"
            for call in self._in_flight.single_out(lambda call: call.via == ROUTER):
                self._attempts.lose(call, why, now)
            for other in self._in_flight.take_others():
                self._outcomes.fail(other, Indeterminate(f"{other.procedure}: {why}; it may have happened"))
            self._alarm.put_forward(now)  # what waits for the router gives up, or waits for it to return
        elif destination < len(lanes):
            lane = lanes[destination]
            was_direct, lane.direct = lane.direct, False
            if lane.incarnation and was_direct:
                lane.limbo_until = now + TOPOLOGY_WAIT_S
                self._alarm.put_forward(lane.limbo_until)
        self._unsent.look_at(lanes)

    def distrust(self, destination: int, error: ProtocolError) -> None:
        """The connection is being closed for what has come over it: what went through it ends with this error."""
        for call in self._in_flight.single_out(lambda call: call.via == destination):
            self._in_flight.remove(call)
            self._outcomes.fail(call, error)
        if destination == ROUTER:
            for other in self._in_flight.take_others():
                self._outcomes.fail(other, error)

    def closing(self, source: int, message: Closing, now: float) -> None:
        """The process at the other end has answered what ran, and stops."""
        for call in self._in_flight.single_out(lambda call: call.via == source):
            self._in_flight.remove(call)
            self._attempts.answer(call, source, CallError(0, call.number, "Unavailable", message.reason), now)
        if source == ROUTER:
            for other in self._in_flight.take_others():
                error: Error = Unavailable(f"{other.procedure}: {message.reason}")
                if isinstance(other, Everywhere) and (other.values or other.errors):
                    error = Indeterminate(f"{other.procedure}: {message.reason}; some parts of it have run")
                self._outcomes.fail(other, error)

    def end_limbos(self, now: float) -> None:
        """The router has said nothing for too long."""
        for lane in self._cluster.lanes:
            if lane.limbo_until <= now:
                self._end_limbo(lane, now)

    def _end_limbo(self, lane: Lane, now: float) -> None:
        lane.limbo_until = inf
        for call in self._in_flight.single_out(lambda call: call.lane is lane and call.via != ROUTER):
            self._attempts.lose(call, f"the connection to {lane.name} was lost", now)

    # ── processes ──────────────────────────────────────────────────────────────────────────────────────────────────

    def lost_partition(self, message: Lost, now: float) -> None:
        """What went to a partition through the router will not be answered. Raises ProtocolError."""
        partition = message.partition
        lanes = self._cluster.lanes
        if not 0 <= partition < len(lanes):
            raise ProtocolError(f"partition {partition} is lost, of {lanes.partitions}")
        lane = lanes[partition]
        if lane.incarnation != message.incarnation:
            return  # it was settled when that one died
        for call in self._in_flight.single_out(lambda call: call.lane is lane and call.via == ROUTER):
            self._attempts.lose(call, message.reason, now)
        for other in self._in_flight.directed():
            error = Indeterminate(f"{other.procedure}: {message.reason} after the call was sent; it may have run")
            if self._in_flight.answer_everywhere(other, partition, None, error):
                self._outcomes.settle(other, other.value, other.error)

    def topology(self, topology: Topology, now: float, *, fresh: bool = False) -> None:
        """The router tells how the cluster is. Raises ProtocolError.

        Only a connection's first topology, a `fresh` one, may be older than ours: the cluster began anew.
        """
        cluster = self._cluster
        known = cluster.topology
        if known is not None and not fresh and topology.version < known.version:
            return
        another = cluster.is_another(topology)
        addresses = cluster.learn(topology)
        if another:
            self._replace_lanes(len(topology.partitions), now)
        for lane, address in zip(cluster.lanes, addresses, strict=True):
            lane.address = address
            if lane.incarnation != address.incarnation:
                self._change_process(lane, address, now)
            elif address.lsn > lane.lsn:
                lane.lsn = address.lsn
        if cluster.catalog_version != topology.catalog_version or known is None:
            self._change_procedures(topology)
        for call in self._unsent.held.take(self._may_go_again):
            self._attempts.requeue(call)
        for call in self._unsent.router.take_known(cluster.procedures):
            self._found(call)

    def _replace_lanes(self, partitions: int, now: float) -> None:
        """Another cluster, as far as calls go: nothing of the old one can be asked again."""
        why = "another cluster answers at this address"
        for call in self._in_flight.single_out(lambda call: True):
            call.retry_until = 0.0
            self._attempts.lose(call, why, now)
        calls, groups = self._unsent.take_lanes(self._cluster.lanes)
        for group in groups:
            calls += group.singly()
        self._cluster.lanes = Lanes(partitions)
        for call in calls:
            if call.floor != NEVER_SENT:
                self._outcomes.fail(call, call.never_ran(Unavailable(why)))
            else:
                self._attempts.route_again(call)

    def _change_process(self, lane: Lane, address: PartitionAddress, now: float) -> None:
        """A process died or came back: what the former one had not answered will not be answered."""
        lane.incarnation = address.incarnation
        lane.lsn = address.lsn
        lane.direct = False
        lane.limbo_until = inf
        why = f"{lane.name} was lost"
        for call in self._in_flight.single_out(
            lambda call: call.lane is lane and call.incarnation != address.incarnation
        ):
            self._attempts.lose(call, why, now)
        for other in self._in_flight.directed():
            if lane.partition in other.missing and other.incarnations[lane.partition] != address.incarnation:
                lost = self._attempts.lost_error(other, why)
                if self._in_flight.answer_everywhere(other, lane.partition, None, lost):
                    self._outcomes.settle(other, other.value, other.error)
        self._unsent.look_at([lane])

    def _may_go_again(self, call: Pending) -> bool:
        """Whether what has turned a call away is over: there are other procedures now, or another process."""
        return call.catalog_version != self._cluster.catalog_version or call.incarnation != call.lane.incarnation

    # ── procedures ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _change_procedures(self, topology: Topology) -> None:
        """What is unsent and was routed by an old signature is routed again."""
        changed = self._cluster.learn_procedures(topology)
        if not changed:
            return
        for lane in self._cluster.lanes:
            moved = [call for call in lane.queue if call.procedure in changed]
            if moved:
                lane.queue = deque(call for call in lane.queue if call.procedure not in changed)
            for call in moved:
                self._attempts.route_again(call)

    def _settle_unknown(self) -> None:
        """The router has told of all procedures: of those that are still unknown there is none."""
        procedures = self._cluster.procedures
        for call in self._unsent.router.take_unknown():
            if call.procedure in procedures or not call.procedure:
                self._found(call)
            else:
                self._outcomes.fail(call, no_such(call.procedure, procedures))

    def _found(self, call: Pending) -> None:
        if isinstance(call, Lookup):
            self._outcomes.settle(call, self._cluster.procedures.get(call.procedure), None)
        elif isinstance(call, Everywhere):
            self._unsent.post(call)
        else:
            self._attempts.route_again(call)
