"""Frames that leave: calls are taken out of their lanes, numbered, encoded, and in flight from then on.

Calls leave in frames of at most CALLS_A_FRAME calls and about FRAME_BYTES. A lane is served by a direct connection to
its process once that has welcomed us, else by the router. Numbers are given to calls when they are sent.
"""

from __future__ import annotations

from collections import deque
from typing import cast

from msgspec import Raw

from voltpy import wire
from voltpy.alarm import Alarm
from voltpy.attempts import Attempts
from voltpy.batch import Group
from voltpy.calls import UNENCODABLE, Command, Everywhere, Pending, too_large, unencodable
from voltpy.errors import Unavailable
from voltpy.frame import Frame, frame_of_calls
from voltpy.in_flight import InFlight
from voltpy.known_cluster import KnownCluster
from voltpy.lane import FRAME_BYTES, ROUTER, Lane
from voltpy.messages import (
    CALLS_A_FRAME,
    MAX_FRAME_BYTES,
    NEVER_SENT,
    PROTOCOL_VERSION,
    Admin,
    CallGroup,
    Calls,
    EverywhereCall,
    Hello,
)
from voltpy.outcomes import Outcomes
from voltpy.routing import not_everywhere, routes_alike
from voltpy.unsent import Unsent

_encode = wire.encode


class Departures:
    """Of one client. What can't leave at all is settled. Times are seconds of the connection's clock."""

    __slots__ = ("_alarm", "_attempts", "_client_id", "_cluster", "_in_flight", "_outcomes", "_unsent")

    def __init__(
        self,
        client_id: int,
        cluster: KnownCluster,
        unsent: Unsent,
        in_flight: InFlight,
        outcomes: Outcomes,
        attempts: Attempts,
        alarm: Alarm,
    ) -> None:
        self._client_id = client_id
        self._cluster = cluster
        self._unsent = unsent
        self._in_flight = in_flight
        self._outcomes = outcomes
        self._attempts = attempts
        self._alarm = alarm

    def hello(self) -> bytes:
        """The frame that opens every connection."""
        return _encode(Hello(PROTOCOL_VERSION, self._client_id))

    def frames(self, now: float) -> list[Frame]:
        """What can be sent now. Everything in a frame counts as sent from here on, unless `unsend` takes it back."""
        unsent = self._unsent
        if not unsent.due:
            return []
        unsent.urgent = False
        due, unsent.due = unsent.due, {}
        out: list[Frame] = []
        if unsent.router in due:
            del due[unsent.router]
            self._take_router_lane(out, now)
        through_router: list[Pending] = []
        for lane in due:
            self._take_lane(lane, out, through_router, now)
            if lane.queue or lane.ready:
                unsent.due[lane] = None
        while through_router:
            count = size = 0
            for call in through_router[:CALLS_A_FRAME]:
                size += len(call.args)
                if size > FRAME_BYTES and count:
                    break
                count += 1
            version = self._cluster.catalog_version
            out.append(frame_of_calls(self._client_id, version, ROUTER, through_router[:count]))
            del through_router[:count]
        return out

    def unsend(self, frame: Frame) -> None:
        """The frame could not be sent, for certain: what is in it has never been sent."""
        for call in frame.calls:
            self._in_flight.remove(call)
            if call.floor == NEVER_SENT:
                call.number = 0
            self._unsent.put_back(call)
        if frame.group is not None:
            self._in_flight.take_back(frame.group)
            self._unsent.put_group_back(frame.group)
        for other in frame.others:
            del self._in_flight.others[other.number]
            self._unsent.post(other)

    def _take_router_lane(self, out: list[Frame], now: float) -> None:
        router = self._unsent.router
        if not router.ready:
            if router.outbox or router.hello_wanted:
                self._unsent.due[router] = None
            return
        if router.hello_wanted:
            router.hello_wanted = False
            router.hellos_unanswered += 1
            out.append(Frame(ROUTER, self.hello()))
        for call in router.take_outbox():
            if call.done:
                continue
            if not call.begin():
                self._outcomes.withdraw(call)
                continue
            number = self._in_flight.last_number + 1
            message: Admin | EverywhereCall | None
            if isinstance(call, Command):
                message = Admin(number, call.procedure, call.body)
            else:
                message = self._directed(call, number, now)
            if message is None:
                continue
            try:
                data = _encode(message)
            except UNENCODABLE as error:
                self._outcomes.fail(call, unencodable(call.procedure, error))
                continue
            if len(data) > MAX_FRAME_BYTES:
                self._outcomes.fail(call, too_large(call.procedure, len(data)))
                continue
            self._in_flight.last_number = call.number = number
            self._in_flight.others[number] = call
            out.append(Frame(ROUTER, data, others=[call]))

    def _directed(self, call: Everywhere, number: int, now: float) -> EverywhereCall | None:
        """A directed call as it is sent; None when it can't be: it has failed then, or is asked for."""
        cluster = self._cluster
        info = cluster.procedures.get(call.procedure)
        if info is None:
            self._unsent.ask_for(call, now)
            return None
        if not info.everywhere:
            self._outcomes.fail(call, not_everywhere(call.procedure))
            return None
        partitions = cluster.lanes.partitions
        lanes = [cluster.lanes.coordinator] if info.joint and partitions > 1 else cluster.lanes.of_partitions
        call.expect({lane.partition: lane.incarnation for lane in lanes}, partitions)
        return EverywhereCall(cluster.catalog_version, self._client_id, call.procedure, number, Raw(call.args))

    def _take_lane(self, lane: Lane, out: list[Frame], through_router: list[Pending], now: float) -> None:
        direct = lane.direct
        if lane.incarnation == 0 or not (direct or self._unsent.router.ready):
            self._turn_away(lane, now)
            return
        via = lane.partition if direct else ROUTER
        version = self._cluster.catalog_version
        queue = lane.queue
        if direct and len(queue) == 1 and lane.has_room():
            call = queue.popleft()  # the usual case, and a lone caller waits for it
            if call.done:
                pass
            elif call.number or call.begin():
                lane.unanswered += 1
                lane.unanswered_bytes += len(call.args)
                self._in_flight.add(call, via, version)
                out.append(frame_of_calls(self._client_id, version, via, [call]))
            else:
                self._outcomes.withdraw(call)
            if not lane.ready:
                return
        while queue and lane.has_room():
            calls = lane.take_calls(self._outcomes.withdraw)
            if not calls:
                break
            for call in calls:
                self._in_flight.add(call, via, version)
            if via == ROUTER:
                through_router.extend(calls)  # calls for several partitions share a frame to the router
            else:
                out.append(frame_of_calls(self._client_id, version, via, calls))
        while lane.ready and lane.has_room():
            group, room = lane.ready[0], lane.window - lane.unanswered
            if group.count > lane.window:  # hundreds of partitions share the router's limit
                lane.ready[0] = group.part(list(range(room, group.count)))
                self._put_group(group.part(list(range(room))), via, out)
            elif group.count > room:
                break
            else:
                self._put_group(lane.ready.popleft(), via, out)

    def _put_group(self, group: Group, via: int, out: list[Frame]) -> None:
        cluster = self._cluster
        info = cluster.procedures.get(group.batch.procedure)
        if info is not group.info:
            if info is None or not routes_alike(group.info, info):
                for call in group.singly():
                    self._attempts.route_again(call)
                return
            group.info = info
        lane = group.lane
        first = self._in_flight.last_number + 1
        group.numbers = numbers = list(range(first, first + group.count))
        # The rows are encoded in place: Raw would cost a second pass over them.
        columns = CallGroup(
            self._client_id,
            group.batch.procedure,
            lane.partition,
            lane.incarnation,
            numbers,
            group.slots,
            cast(Raw, group.rows),
        )
        try:
            data = _encode(Calls(cluster.catalog_version, [columns]))
        except UNENCODABLE as error:
            rest = group.encodable(error)
            if rest is not None:
                self._put_group(rest, via, out)
            return
        if len(data) > FRAME_BYTES and group.cut(len(data)):
            return
        group.via = via
        group.catalog_version = cluster.catalog_version
        group.bytes = len(data)
        self._in_flight.add_group(group)
        out.append(Frame(via, data, group=group))

    def _turn_away(self, lane: Lane, now: float) -> None:
        """The lane leads nowhere: fails what may not wait for it to come back."""
        if lane.incarnation == 0:
            why, patience = f"{lane.name} is down", 0.0
        else:
            why, patience = "the router is not connected", self._unsent.router.wait_until
        waiting: deque[Pending] = deque()
        for call in lane.queue:
            until = max(call.retry_until, patience)
            if now < until:
                waiting.append(call)
                self._alarm.put_forward(until)
            else:
                self._outcomes.fail(call, call.never_ran(Unavailable(f"{call.procedure}: {why}")))
        lane.queue = waiting
        for group in list(lane.ready):
            until = max(group.retry_until, patience)
            if now < until:
                self._alarm.put_forward(until)
                continue
            lane.ready.remove(group)
            group.fail(why)
