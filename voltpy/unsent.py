"""Where calls wait to be sent. Each call is in one place, with its deadline:

voltpy.lane           each partition has a lane, where calls wait until its window has room, and so has the
                      coordinator; `voltpy.routing` says which one is a call's
voltpy.router_lane    what is for the router itself, and calls of procedures that we have not heard of
voltpy.held           turned away, to be sent again in a moment
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from voltpy.alarm import Alarm
from voltpy.batch import Group
from voltpy.calls import Command, Everywhere, Pending
from voltpy.errors import Error, Unavailable
from voltpy.held import Held
from voltpy.lane import Lane
from voltpy.router_lane import RouterLane

RESEND_WAIT_S = 0.05  # before a call that was turned away (stale, Unavailable) is tried again


class Unsent:
    """`due`: the lanes where something waits that could be sent, `router` among them; in the order in which it came.

    `urgent`: a lane holds a full frame, and has room for it. Times are seconds of the connection's clock.
    """

    __slots__ = ("_alarm", "due", "held", "router", "urgent")

    def __init__(self, alarm: Alarm) -> None:
        self.router = RouterLane()
        self.held = Held()
        self.due: dict[Any, None] = {}
        self.urgent = False
        self._alarm = alarm

    def enqueue(self, call: Pending) -> None:
        """The call is to go in its lane."""
        call.lane.queue.append(call)
        self.due[call.lane] = None
        self._alarm.put_forward(call.deadline)

    def line_up(self, group: Group, now: float, retry_s: float) -> None:
        """The group is complete: from now on its calls' time counts."""
        group.count = group.left = len(group.rows)
        group.deadline = now + group.batch.timeout
        group.retry_until = now + retry_s
        self._alarm.put_forward(group.deadline)
        group.lane.ready.append(group)
        self.due[group.lane] = None

    def put_back(self, call: Pending) -> None:
        """The call is the next to go in its lane."""
        call.lane.queue.appendleft(call)
        self.due[call.lane] = None

    def put_group_back(self, group: Group) -> None:
        group.lane.ready.appendleft(group)
        self.due[group.lane] = None

    def post(self, call: Everywhere | Command) -> None:
        """The call is for the router itself."""
        self.router.outbox.append(call)
        self.due[self.router] = None

    def ask_router(self) -> None:
        """For the topology: there may be a newer one."""
        self.router.hello_wanted = True
        self.due[self.router] = None

    def ask_for(self, call: Pending, now: float) -> None:
        """The call waits for the router to say whether there is such a procedure."""
        self.router.unknown.append(call)
        self.ask_router()
        self.be_patient(call, now)

    def be_patient(self, call: Pending, now: float) -> None:
        """The call waits for the router, if that is not connected, for as long as it may."""
        if not self.router.ready:
            self._alarm.put_forward(max(now, self.router.patience(call)))

    def hold(self, call: Pending, now: float) -> None:
        """The call was turned away, and is to go again in a moment."""
        when = now + RESEND_WAIT_S
        self.held.add(call, when)
        self._alarm.put_forward(when)

    def look_at(self, lanes: Iterable[Lane]) -> None:
        """Something has changed that may let what waits there go, or fail."""
        for lane in lanes:
            if lane.queue or lane.ready:
                self.due[lane] = None

    def take_expired(self, lanes: Iterable[Lane], now: float) -> list[tuple[Pending, Error]]:
        """Takes out the calls that wait no longer, each with its error."""
        late = [call for lane in lanes for call in lane.take_expired(now)]
        late += self.held.take(lambda call: call.deadline <= now)
        of_router, impatient = self.router.take_expired(now)
        expired: list[tuple[Pending, Error]] = [(call, call.never_left()) for call in [*late, *of_router]]
        for call in impatient:
            expired.append((call, Unavailable(f"{call.procedure}: the router is not connected")))
        return expired

    def take_lanes(self, lanes: Iterable[Lane]) -> tuple[list[Pending], list[Group]]:
        """Takes out what waits in these lanes."""
        calls: list[Pending] = []
        groups: list[Group] = []
        for lane in lanes:
            calls.extend(lane.queue)
            lane.queue.clear()
            groups.extend(lane.ready)
            lane.ready.clear()
            self.due.pop(lane, None)
        return calls, groups

    def take_all(self, lanes: Iterable[Lane]) -> tuple[list[Pending], list[Group]]:
        """Takes out everything."""
        others = [*self.router.take_unknown(), *self.router.take_outbox(), *self.held.take(lambda call: True)]
        calls, groups = self.take_lanes(lanes)
        self.due.clear()
        return [*others, *calls], groups

    def times(self, lanes: Iterable[Lane]) -> list[float]:
        """When something has to be done about what waits."""
        times = [*self.router.times(), *self.held.times()]
        for lane in lanes:
            times += lane.deadlines()
        return times
