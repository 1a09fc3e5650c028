"""The client's side of the protocol as a state machine: no sockets, no clock, no threads.

A shell (`voltpy.client`, `voltpy.aio`) hands calls in with `submit` and `fill`, sends what `frames` gives it, feeds
what arrives to `receive`, tells of lost connections with `lost` and of time with `expire`. What is settled by that is
in `outcomes`; a batch's results are in the batch.

    Unsent ──Departures──► InFlight ──Arrivals──► Outcomes
      ▲                       │ answered "not run", or lost: ClusterChanges
      └─────── Attempts ◄─────┘
                  └─────────────────────────────► Outcomes: Indeterminate, ProcedureTimeout, …

Four parts own what there is to know, and know nothing of each other; four move calls between them:

    voltpy.unsent           where calls wait to be sent       voltpy.departures        puts them into frames
    voltpy.in_flight        sent, neither answered nor lost   voltpy.arrivals          takes in answers
    voltpy.outcomes         how they ended                    voltpy.attempts          whether one goes again
    voltpy.known_cluster    processes and procedures          voltpy.cluster_changes   what changes and what is lost

What may be decided without looking further than one call, batch or lane is decided there (`voltpy.calls`,
`voltpy.batch`, `voltpy.lane`). Here is how a call, a frame and the time come in.
"""

from __future__ import annotations

from binascii import crc_hqx
from math import inf
from typing import Any, Final

from msgspec import Raw

from voltpy import wire
from voltpy.alarm import Alarm
from voltpy.arrivals import Arrivals
from voltpy.attempts import Attempts
from voltpy.batch import OTHER_ROW_FAILED, Batch
from voltpy.calls import MAX_CALL_BYTES, UNENCODABLE, Command, Everywhere, Lookup, Pending, too_large, unencodable
from voltpy.cluster_changes import ClusterChanges
from voltpy.departures import Departures
from voltpy.errors import BadArguments, Error, Indeterminate, ProtocolError, Unavailable, from_wire
from voltpy.frame import Frame
from voltpy.hash_slot import hash_slot
from voltpy.in_flight import InFlight
from voltpy.known_cluster import KnownCluster
from voltpy.lane import FRAME_BYTES, ROUTER, WINDOW_CALLS
from voltpy.messages import (
    CALLS_A_FRAME,
    NEVER_SENT,
    NO_HELLO,
    AdminReply,
    CallGroup,
    Calls,
    Closing,
    Lost,
    Refusal,
    Replies,
    Topology,
    Welcome,
)
from voltpy.outcomes import Outcomes
from voltpy.routing import SLOT_MASK, route
from voltpy.unsent import Unsent

ROUTER_WAIT_S: Final = 1.0  # how long calls wait for a router that we are connecting to

_encode = wire.encode


class Connection:
    """One client's conversation with a cluster. Times are seconds of one monotonic clock, given as `now`.

    A shell reads `cluster` for what is known, `outcomes` for what is settled, `alarm` for when `expire` is due, and
    `unsent` for what should leave soon. `rejected`: why the router has refused our Hello.
    """

    def __init__(self, client_id: int, *, affinity: bool = True, retry_s: float = 0.0) -> None:
        self.client_id = client_id
        self.affinity = affinity
        self.retry_s = retry_s
        self.rejected: Error | None = None
        self.cluster = cluster = KnownCluster(client_id)
        self.alarm = alarm = Alarm()
        self.unsent = unsent = Unsent(alarm)
        self.outcomes = outcomes = Outcomes()
        self._in_flight = in_flight = InFlight()
        self._calls, self._groups = in_flight.calls, in_flight.groups  # at hand, for lone calls
        attempts = Attempts(cluster, unsent, in_flight, outcomes)
        self._attempts = attempts
        self._arrivals = Arrivals(client_id, cluster, unsent, in_flight, outcomes, attempts)
        self._changes = ClusterChanges(affinity, cluster, unsent, in_flight, outcomes, attempts, alarm)
        departures = Departures(client_id, cluster, unsent, in_flight, outcomes, attempts, alarm)
        # Not by way of methods: each call would pay for the step between.
        self.hello = departures.hello
        self.frames = departures.frames
        self.unsend = departures.unsend

    # ── calls come in ──────────────────────────────────────────────────────────────────────────────────────────────

    def submit(self, call: Pending, procedure: str, args: tuple[Any, ...], now: float, timeout: float) -> None:
        """Queues one call. What is wrong with it settles it here; an unknown procedure is first asked for."""
        self.outcomes.outstanding += 1
        call.procedure = procedure
        call.timeout = timeout
        call.deadline = deadline = now + timeout
        call.retry_until = now + self.retry_s
        alarm = self.alarm
        if deadline < alarm.time:
            alarm.time = deadline
        try:
            call.args = _encode(args)
        except UNENCODABLE as error:
            self.outcomes.fail(call, unencodable(procedure, error))
            return
        cluster = self.cluster
        info = cluster.procedures.get(procedure)
        unsent = self.unsent
        if info is None:
            unsent.ask_for(call, now)
            return
        lanes = cluster.lanes
        try:
            lane, call.slot = route(info, args, lanes.owners, lanes.coordinator)
        except BadArguments as bad:
            self.outcomes.fail(call, bad)
            return
        if len(call.args) > MAX_CALL_BYTES:
            self.outcomes.fail(call, too_large(procedure, len(call.args)))
            return
        call.lane = lane
        queue = lane.queue
        queue.append(call)
        unsent.due[lane] = None
        if len(queue) >= CALLS_A_FRAME and lane.has_room():
            unsent.urgent = True

    def submit_alone(
        self, call: Pending, procedure: str, args: tuple[Any, ...], now: float, timeout: float
    ) -> Frame | None:
        """`submit` and `frames` in one step, for a caller that waits for this call only. None: go the long way.

        It saves a third of what a lone call costs here, which is worth the second copy of the usual path.
        """
        cluster = self.cluster
        info = cluster.procedures.get(procedure)
        if info is None or self.unsent.due:
            return None
        positions = info.key_positions
        if len(positions) != 1 or positions[0] >= len(args):
            return None
        key = args[positions[0]]
        kind = type(key)
        if kind is not int and kind is not str:
            return None
        try:
            # hash_slot, spelled out for integers
            slot = crc_hqx(b"%d" % key, 0) & SLOT_MASK if kind is int else hash_slot(key)
            call.args = encoded = _encode(args)
        except UNENCODABLE:
            return None
        lane = cluster.lanes.owners[slot]
        size = len(encoded)
        if not lane.direct or lane.unanswered or size > FRAME_BYTES:
            return None
        self.outcomes.outstanding += 1
        call.procedure = procedure
        call.timeout = timeout
        call.deadline = deadline = now + timeout
        call.retry_until = now + self.retry_s
        alarm = self.alarm
        if deadline < alarm.time:
            alarm.time = deadline
        call.slot = slot
        call.lane = lane
        lane.unanswered = 1
        lane.unanswered_bytes = size
        in_flight = self._in_flight
        in_flight.last_number = call.number = number = in_flight.last_number + 1
        call.lsn = lane.lsn
        call.via = partition = lane.partition
        call.incarnation = incarnation = lane.incarnation
        call.catalog_version = catalog_version = cluster.catalog_version
        self._calls[number] = call
        raw = Raw(b"\x91" + encoded)
        group = CallGroup(self.client_id, procedure, partition, incarnation, [number], [slot], raw)
        return Frame(partition, _encode(Calls(catalog_version, [group])), [call], False)

    def lookup(self, call: Lookup, procedure: str, now: float, timeout: float) -> None:
        """Settles with the procedure's ProcedureInfo, from the router; an empty name is a look at the topology."""
        self._start(call, procedure, now, timeout, self.retry_s)
        self.unsent.ask_for(call, now)

    def everywhere(self, call: Everywhere, procedure: str, args: tuple[Any, ...], now: float, timeout: float) -> None:
        """Queues a directed call, through the router. It is never sent twice: no partition remembers its number."""
        self._start(call, procedure, now, timeout)
        try:
            call.args = _encode(args)
        except UNENCODABLE as error:
            self.outcomes.fail(call, unencodable(procedure, error))
            return
        if len(call.args) > MAX_CALL_BYTES:
            self.outcomes.fail(call, too_large(procedure, len(call.args)))
            return
        self.unsent.post(call)

    def admin(self, call: Command, command: str, body: dict[str, Any], now: float, timeout: float) -> None:
        """Queues a command to the supervisor."""
        self._start(call, command, now, timeout)
        call.body = body
        self.unsent.post(call)

    def _start(self, call: Pending, procedure: str, now: float, timeout: float, retry_s: float = 0.0) -> None:
        self.outcomes.outstanding += 1
        call.procedure = procedure
        call.timeout = timeout
        call.deadline = now + timeout
        call.retry_until = now + retry_s
        self.alarm.put_forward(call.deadline)
        self.unsent.be_patient(call, now)

    def withdraw(self, call: Pending) -> None:
        """Forgets a call that nobody waits for any more. If it was sent it may run all the same."""
        self.outcomes.withdraw(call)

    def busy(self) -> bool:
        """Whether anything is under way: single calls, or what is sent of batches."""
        return self.outcomes.outstanding > 0 or bool(self._groups) or bool(self._calls)

    # ── many calls of one procedure ────────────────────────────────────────────────────────────────────────────────

    def room(self, batch: Batch) -> int:
        """How many more rows of the batch it is worth reading now: half a window more than can be under way."""
        return (3 * WINDOW_CALLS * self.cluster.lanes.partitions) // 2 - batch.left

    def fill(self, batch: Batch, rows: list[Any], now: float) -> None:
        """Deals rows (tuples or lists of arguments) out to the lanes of their keys."""
        if batch.info is not self.cluster.procedures.get(batch.procedure):
            self._route_batch_again(batch, now)
        for group in batch.deal(rows, self.cluster.lanes):
            self.unsent.line_up(group, now, self.retry_s)

    def push(self, batch: Batch, now: float) -> None:
        """Lets groups go that are not full: of lanes about to run dry, and all of them when no more rows will come."""
        batch.reopen(self.cluster.lanes)
        for lane, group in batch.open.items():
            if group.rows and (batch.finished or (lane.unanswered < CALLS_A_FRAME and not lane.ready)):
                self.unsent.line_up(batch.take(lane), now, self.retry_s)

    def abandon(self, batch: Batch) -> None:
        """Forgets what is unsent; what is sent may run, and its results are of no interest."""
        batch.abandon()
        for lane in self.cluster.lanes:
            for group in [group for group in lane.ready if group.batch is batch]:
                lane.ready.remove(group)
                group.fail(OTHER_ROW_FAILED)

    def drop_unsent(self, batch: Batch) -> None:
        """After a failure: what is unsent settles as never run, what is sent will settle by itself."""
        self.abandon(batch)
        for lane in self.cluster.lanes:
            for call in [call for call in lane.queue if call.batch is batch and call.floor == NEVER_SENT]:
                lane.queue.remove(call)
                self.outcomes.fail(call, Unavailable(f"{call.procedure}: {OTHER_ROW_FAILED}"))

    def _route_batch_again(self, batch: Batch, now: float) -> None:
        info = self.cluster.procedures.get(batch.procedure)
        if info is None:
            return  # the rows fail as they leave
        for group in batch.change(info, self.cluster.lanes):
            self.unsent.line_up(group, now, self.retry_s)

    # ── frames come in ─────────────────────────────────────────────────────────────────────────────────────────────

    def receive(self, source: int, frame: bytes, now: float) -> bool:
        """Takes in one frame from the router or a lane's process. False: the connection can't be trusted; close it."""
        try:
            message = wire.decode(frame)
            if isinstance(message, Replies):
                if not self._arrivals.reply_alone(message):
                    self._arrivals.replies(message, now)
            elif isinstance(message, Welcome):
                self._changes.welcome(source, message, now)
            elif isinstance(message, Topology):
                self._changes.topology(message, now)
            elif isinstance(message, AdminReply):
                self._arrivals.admin_reply(message)
            elif isinstance(message, Lost):
                self._changes.lost_partition(message, now)
            elif isinstance(message, Closing):
                self._changes.closing(source, message, now)
                return False
            elif isinstance(message, Refusal):
                if message.code != NO_HELLO:  # then it knows us no more: what was sent is as with any lost connection
                    self._refused(source, message)
                return False
            else:
                raise ProtocolError(f"a client can't receive {type(message).__name__}")
        except ProtocolError as error:
            name = self.cluster.name_of(source)
            self._changes.distrust(source, ProtocolError(f"{name} sent what is no answer: {error}"))
            return False
        return True

    def _refused(self, source: int, refusal: Refusal) -> None:
        error = from_wire(refusal.code, refusal.message)
        if not isinstance(error, ProtocolError):
            error = ProtocolError(f"{refusal.code}: {refusal.message}")
        if source == ROUTER and not self.unsent.router.ready:
            self.rejected = error
        name = self.cluster.name_of(source)
        self._changes.distrust(source, ProtocolError(f"{name} refused a frame: {error}"))

    # ── connections and time ───────────────────────────────────────────────────────────────────────────────────────

    def opening_router(self, now: float) -> None:
        """A connection to the router is being made: calls for it wait up to ROUTER_WAIT_S."""
        self.unsent.router.wait_until = now + ROUTER_WAIT_S

    def lost(self, destination: int, now: float) -> None:
        """The connection is gone. What went through the router is settled at once; what went straight to a partition
        waits up to TOPOLOGY_WAIT_S for the router to say what became of it."""
        self._changes.lost_connection(destination, now)

    def expire(self, now: float) -> None:
        """Settles what has waited for too long. Cheap before `alarm.time`."""
        if now < self.alarm.time:
            return
        in_flight, lanes, outcomes, unsent = self._in_flight, self.cluster.lanes, self.outcomes, self.unsent
        self._changes.end_limbos(now)
        for call in unsent.held.take_due(now):
            self._attempts.requeue(call)
        for call in in_flight.take_expired(now):
            unsent.due[call.lane] = None
            outcomes.fail(call, call.timed_out())
        for other in in_flight.take_expired_others(now):
            outcomes.fail(other, other.timed_out())
        for call, error in unsent.take_expired(lanes, now):
            outcomes.fail(call, error)
        self.alarm.time = min([*in_flight.deadlines(), *unsent.times(lanes)], default=inf)

    def close(self, why: str) -> None:
        """Settles everything: the client is going away."""
        in_flight, outcomes, unsent = self._in_flight, self.outcomes, self.unsent
        for call in in_flight.single_out(lambda call: True):
            in_flight.remove(call)
            outcomes.fail(call, Indeterminate(f"{call.procedure}: {why}; it may have run"))
        for other in in_flight.take_others():
            outcomes.fail(other, Indeterminate(f"{other.procedure}: {why}; it may have happened"))
        calls, groups = unsent.take_all(self.cluster.lanes)
        for call in calls:
            outcomes.fail(call, call.never_ran(Unavailable(f"{call.procedure}: {why}")))
        for group in groups:
            group.fail(why)
        unsent.router.ready = False
