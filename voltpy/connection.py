"""The client's side of the protocol as a state machine: no sockets, no clock, no threads.

A shell (`voltpy.client`, `voltpy.aio`) hands calls in with `submit` and `fill`, sends what `frames` gives it, feeds
what arrives to `receive`, tells of lost connections with `lost` and of time with `expire`. What is settled by that is
in `settled`; a batch's results are in the batch.

    unsent ──frames──► sent ──receive──► settled
      ▲                 │ partition or connection lost, or answered "stale"
      └──── requeued ───┴─────────────► settled: Indeterminate, ProcedureTimeout, …

A call is in one of these places, each a part of its own with the calls' deadlines:

    voltpy.lane           each partition has a lane, where calls wait until its window has room, and so has the
                          coordinator; `voltpy.routing` says which one is a call's
    voltpy.router_lane    what is for the router itself, and calls of procedures that we have not heard of
    voltpy.in_flight      sent, and neither answered nor lost
    voltpy.held           turned away, to be sent again in a moment

Calls leave in frames of at most CALLS_A_FRAME calls and about FRAME_BYTES. A lane is served by a direct connection to
its process once that has welcomed us, else by the router.

Numbers are given to calls when they are sent. A call that is sent again keeps its number: with the client id it is the
call id by which the partition knows whether it ran. Once one attempt of a call was lost it carries `floor`, and from
then on an answer "this attempt never ran" becomes Indeterminate: the lost attempt may have run.

What may be decided without looking further than one call, batch or lane is decided there (`voltpy.calls`,
`voltpy.batch`); here is what needs to know of all of them: when a call goes, where to, whether it goes again.
"""

from __future__ import annotations

from collections import deque
from math import inf
from typing import Any, Final, cast

import msgspec
from msgspec import Raw

from voltpy import wire
from voltpy.batch import OTHER_ROW_FAILED, Batch, Group
from voltpy.calls import MAX_CALL_BYTES, UNENCODABLE, Command, Everywhere, Lookup, Pending, too_large, unencodable
from voltpy.errors import (
    BadArguments,
    Error,
    Indeterminate,
    Overloaded,
    ProcedureTimeout,
    ProtocolError,
    Unavailable,
    UnknownProcedure,
    from_wire,
)
from voltpy.frame import Frame, frame_of_calls
from voltpy.hash_slot import hash_slot
from voltpy.held import Held
from voltpy.in_flight import InFlight
from voltpy.lane import FRAME_BYTES, ROUTER, WINDOW_CALLS, Lane, Lanes
from voltpy.messages import (
    CALLS_A_FRAME,
    ELSEWHERE,
    MAX_FRAME_BYTES,
    NEVER_SENT,
    NO_HELLO,
    PROTOCOL_VERSION,
    STALE,
    Admin,
    AdminReply,
    CallError,
    CallGroup,
    Calls,
    EverywhereCall,
    Hello,
    Lost,
    PartitionAddress,
    ProcedureInfo,
    Refusal,
    Replies,
    Topology,
    Welcome,
)
from voltpy.router_lane import RouterLane
from voltpy.routing import no_such, not_everywhere, route, routes_alike

ROUTER_WAIT_S = 1.0  # how long calls wait for a router that we are connecting to
TOPOLOGY_WAIT_S = 1.0  # how long a lost direct connection waits for the router to say what became of the partition
RESEND_WAIT_S = 0.05  # before a call that was turned away (stale, Unavailable) is tried again

# Errors by which a door or partition says that it did not run this attempt, without having looked for earlier ones.
_NOT_THIS_TIME: Final = (Unavailable, Overloaded, UnknownProcedure)

_encode = wire.encode
_decode_value = msgspec.msgpack.Decoder().decode
_decode_results = msgspec.msgpack.Decoder(list[Any]).decode


class Connection:
    """One client's conversation with a cluster. Times are seconds of one monotonic clock, given as `now`."""

    def __init__(self, client_id: int, *, affinity: bool = True, retry_s: float = 0.0) -> None:
        self.client_id = client_id
        self.affinity = affinity
        self.retry_s = retry_s
        self.topology: Topology | None = None
        self.topologies = 0  # how many were taken in: a shell compares it to see that something changed
        self.procedures: dict[str, ProcedureInfo] = {}
        self.lanes = Lanes(0)
        self.router = RouterLane()
        self.rejected: Error | None = None  # why the router refused our Hello
        self.settled: list[Pending] = []
        self.outstanding = 0  # single calls that are not settled
        self.urgent = False  # a lane holds a full frame, and has room for it
        self.next_time = inf  # when `expire` has something to do
        self.catalog_version = 0  # names the set of procedures that it routes by
        self._owners = self.lanes.owners  # at hand, for each call
        self._coordinator = self.lanes.coordinator  # likewise
        self._last_number = 0
        self._in_flight = InFlight()
        self._calls = self._in_flight.calls  # at hand, for lone calls
        self._due: dict[Any, None] = {}  # lanes where something waits to be sent, the router's among them
        self._held = Held()
        self._runaways: set[int] = set()

    # ── calls come in ──────────────────────────────────────────────────────────────────────────────────────────────

    def submit(self, call: Pending, procedure: str, args: tuple[Any, ...], now: float, timeout: float) -> None:
        """Queues one call. What is wrong with it settles it here; an unknown procedure is first asked for."""
        self.outstanding += 1
        call.procedure = procedure
        call.timeout = timeout
        call.deadline = deadline = now + timeout
        call.retry_until = now + self.retry_s
        if deadline < self.next_time:
            self.next_time = deadline
        try:
            call.args = _encode(args)
        except UNENCODABLE as error:
            self._fail(call, unencodable(procedure, error))
            return
        info = self.procedures.get(procedure)
        if info is None:
            self._ask_for(call, now)
            return
        try:
            call.lane, call.slot = lane, _ = route(info, args, self._owners, self._coordinator)
        except BadArguments as bad:
            self._fail(call, bad)
            return
        if len(call.args) > MAX_CALL_BYTES:
            self._fail(call, too_large(procedure, len(call.args)))
            return
        lane.queue.append(call)
        self._due[lane] = None
        if len(lane.queue) >= CALLS_A_FRAME and lane.has_room():
            self.urgent = True

    def submit_alone(
        self, call: Pending, procedure: str, args: tuple[Any, ...], now: float, timeout: float
    ) -> Frame | None:
        """`submit` and `frames` in one step, for a caller that waits for this call only. None: go the long way.

        It saves a third of what a lone call costs here, which is worth the second copy of the usual path.
        """
        info = self.procedures.get(procedure)
        if info is None or self._due:
            return None
        if len(info.key_positions) != 1:
            return None
        position = info.key_positions[0]
        if position >= len(args):
            return None
        key = args[position]
        if type(key) is not int and type(key) is not str:
            return None
        try:
            slot = hash_slot(key)
            call.args = encoded = _encode(args)
        except UNENCODABLE:
            return None
        lane = self._owners[slot]
        if not lane.direct or lane.unanswered or len(encoded) > FRAME_BYTES:
            return None
        self.outstanding += 1
        call.procedure = procedure
        call.timeout = timeout
        call.deadline = deadline = now + timeout
        call.retry_until = now + self.retry_s
        if deadline < self.next_time:
            self.next_time = deadline
        call.slot = slot
        call.lane = lane
        lane.unanswered = 1
        lane.unanswered_bytes = len(encoded)
        self._last_number = call.number = number = self._last_number + 1
        call.lsn = lane.lsn
        call.via = partition = lane.partition
        call.incarnation = incarnation = lane.incarnation
        call.catalog_version = catalog_version = self.catalog_version
        self._calls[number] = call
        raw = Raw(b"\x91" + encoded)
        group = CallGroup(self.client_id, procedure, partition, incarnation, [number], [slot], raw)
        frame = Frame(partition, _encode(Calls(catalog_version, [group])))
        frame.calls.append(call)
        frame.look = False
        return frame

    def lookup(self, call: Lookup, procedure: str, now: float, timeout: float) -> None:
        """Settles with the procedure's ProcedureInfo, from the router; an empty name is a look at the topology."""
        self.outstanding += 1
        call.procedure = procedure
        call.timeout = timeout
        call.deadline = now + timeout
        call.retry_until = now + self.retry_s
        self.next_time = min(self.next_time, call.deadline)
        self._ask_for(call, now)

    def everywhere(self, call: Everywhere, procedure: str, args: tuple[Any, ...], now: float, timeout: float) -> None:
        """Queues a directed call, through the router. It is never sent twice: no partition remembers its number."""
        self._start_other(call, procedure, now, timeout)
        try:
            call.args = _encode(args)
        except UNENCODABLE as error:
            self._fail(call, unencodable(procedure, error))
            return
        if len(call.args) > MAX_CALL_BYTES:
            self._fail(call, too_large(procedure, len(call.args)))
            return
        self._post(call)

    def admin(self, call: Command, command: str, body: dict[str, Any], now: float, timeout: float) -> None:
        """Queues a command to the supervisor."""
        self._start_other(call, command, now, timeout)
        call.body = body
        self._post(call)

    def withdraw(self, call: Pending) -> None:
        """Forgets a call that nobody waits for any more. If it was sent it may run all the same."""
        if not call.done:
            call.done = True
            self.outstanding -= 1

    # ── many calls of one procedure ────────────────────────────────────────────────────────────────────────────────

    def room(self, batch: Batch) -> int:
        """How many more rows of the batch it is worth reading now: half a window more than can be under way."""
        return (3 * WINDOW_CALLS * self.lanes.partitions) // 2 - batch.left

    def fill(self, batch: Batch, rows: list[Any], now: float) -> None:
        """Deals rows (tuples or lists of arguments) out to the lanes of their keys."""
        if batch.info is not self.procedures.get(batch.procedure):
            self._route_batch_again(batch, now)
        for group in batch.deal(rows, self.lanes):
            self._line_up(group, now)

    def push(self, batch: Batch, now: float) -> None:
        """Lets groups go that are not full: of lanes about to run dry, and all of them when no more rows will come."""
        batch.reopen(self.lanes)
        for lane, group in batch.open.items():
            if group.rows and (batch.finished or (lane.unanswered < CALLS_A_FRAME and not lane.ready)):
                self._line_up(batch.take(lane), now)

    def abandon(self, batch: Batch) -> None:
        """Forgets what is unsent; what is sent may run, and its results are of no interest."""
        batch.abandon()
        for lane in self.lanes:
            for group in [group for group in lane.ready if group.batch is batch]:
                lane.ready.remove(group)
                group.fail(OTHER_ROW_FAILED)

    def drop_unsent(self, batch: Batch) -> None:
        """After a failure: what is unsent settles as never run, what is sent will settle by itself."""
        self.abandon(batch)
        for lane in self.lanes:
            for call in [call for call in lane.queue if call.batch is batch and call.floor == NEVER_SENT]:
                lane.queue.remove(call)
                self._settle(call, None, Unavailable(f"{call.procedure}: {OTHER_ROW_FAILED}"))

    def _route_batch_again(self, batch: Batch, now: float) -> None:
        info = self.procedures.get(batch.procedure)
        if info is None:
            return  # the rows fail as they leave
        for group in batch.change(info, self.lanes):
            self._line_up(group, now)

    def _line_up(self, group: Group, now: float) -> None:
        group.count = group.left = len(group.rows)
        group.deadline = now + group.batch.timeout
        group.retry_until = now + self.retry_s
        if group.deadline < self.next_time:
            self.next_time = group.deadline
        group.lane.ready.append(group)
        self._due[group.lane] = None

    # ── frames go out ──────────────────────────────────────────────────────────────────────────────────────────────

    def hello(self) -> bytes:
        """The frame that opens every connection."""
        return _encode(Hello(PROTOCOL_VERSION, self.client_id))

    def frames(self, now: float) -> list[Frame]:
        """What can be sent now. Everything in a frame counts as sent from here on, unless `unsend` takes it back."""
        if not self._due:
            return []
        self.urgent = False
        due, self._due = self._due, {}
        out: list[Frame] = []
        if self.router in due:
            del due[self.router]
            self._take_router_lane(out, now)
        through_router: list[Pending] = []
        for lane in due:
            self._take_lane(lane, out, through_router, now)
            if lane.queue or lane.ready:
                self._due[lane] = None
        while through_router:
            count = size = 0
            for call in through_router[:CALLS_A_FRAME]:
                size += len(call.args)
                if size > FRAME_BYTES and count:
                    break
                count += 1
            out.append(frame_of_calls(self.client_id, self.catalog_version, ROUTER, through_router[:count]))
            del through_router[:count]
        return out

    def unsend(self, frame: Frame) -> None:
        """The frame could not be sent, for certain: what is in it has never been sent."""
        for call in frame.calls:
            self._in_flight.remove(call)
            if call.floor == NEVER_SENT:
                call.number = 0
            call.lane.queue.appendleft(call)
            self._due[call.lane] = None
        group = frame.group
        if group is not None:
            self._in_flight.take_back(group)
            group.lane.ready.appendleft(group)
            self._due[group.lane] = None
        for other in frame.others:
            del self._in_flight.others[other.number]
            self._post(other)

    def _take_router_lane(self, out: list[Frame], now: float) -> None:
        router = self.router
        if not router.ready:
            if router.outbox or router.hello_wanted:
                self._due[router] = None
            return
        if router.hello_wanted:
            router.hello_wanted = False
            router.hellos_unanswered += 1
            out.append(Frame(ROUTER, self.hello()))
        for call in router.take_outbox():
            if call.done:
                continue
            if not call.begin():
                self.withdraw(call)
                continue
            number = self._last_number + 1
            message: Admin | EverywhereCall | None
            if isinstance(call, Command):
                message = Admin(number, call.procedure, call.body)
            else:
                message = self._directed(call, number, now)
            if message is None:
                continue
            try:
                frame = Frame(ROUTER, _encode(message))
            except UNENCODABLE as error:
                self._fail(call, unencodable(call.procedure, error))
                continue
            if len(frame.data) > MAX_FRAME_BYTES:
                self._fail(call, too_large(call.procedure, len(frame.data)))
                continue
            self._last_number = call.number = number
            self._in_flight.others[number] = call
            frame.others.append(call)
            out.append(frame)

    def _directed(self, call: Everywhere, number: int, now: float) -> EverywhereCall | None:
        """A directed call as it is sent; None when it can't be: it has failed then, or is asked for."""
        info = self.procedures.get(call.procedure)
        if info is None:
            self._ask_for(call, now)
            return None
        if not info.everywhere:
            self._fail(call, not_everywhere(call.procedure))
            return None
        partitions = self.lanes.partitions
        lanes = [self._coordinator] if info.joint and partitions > 1 else self.lanes.of_partitions
        call.expect({lane.partition: lane.incarnation for lane in lanes}, partitions)
        return EverywhereCall(self.catalog_version, self.client_id, call.procedure, number, Raw(call.args))

    def _take_lane(self, lane: Lane, out: list[Frame], through_router: list[Pending], now: float) -> None:
        if lane.incarnation == 0 or not (lane.direct or self.router.ready):
            self._turn_away(lane, now)
            return
        via = lane.partition if lane.direct else ROUTER
        queue = lane.queue
        if len(queue) == 1 and lane.direct and lane.has_room():
            call = queue.popleft()  # the usual case, and a lone caller waits for it
            if call.done:
                pass
            elif call.number or call.begin():
                lane.unanswered += 1
                lane.unanswered_bytes += len(call.args)
                self._send(call, lane, via)
                out.append(frame_of_calls(self.client_id, self.catalog_version, via, [call]))
            else:
                self.withdraw(call)
            if not lane.ready:
                return
        while queue and lane.has_room():
            calls = lane.take_calls(self.withdraw)
            if not calls:
                break
            for call in calls:
                self._send(call, lane, via)
            if via == ROUTER:
                through_router.extend(calls)  # calls for several partitions share a frame to the router
            else:
                out.append(frame_of_calls(self.client_id, self.catalog_version, via, calls))
        while lane.ready and lane.has_room():
            group, room = lane.ready[0], lane.window - lane.unanswered
            if group.count > lane.window:  # hundreds of partitions share the router's limit
                lane.ready[0] = group.part(list(range(room, group.count)))
                self._put_group(group.part(list(range(room))), via, out)
            elif group.count > room:
                break
            else:
                self._put_group(lane.ready.popleft(), via, out)

    def _send(self, call: Pending, lane: Lane, via: int) -> None:
        if call.number == 0:
            self._last_number += 1
            call.number = self._last_number
            call.lsn = lane.lsn
        call.via = via
        call.incarnation = lane.incarnation
        call.catalog_version = self.catalog_version
        self._calls[call.number] = call

    def _put_group(self, group: Group, via: int, out: list[Frame]) -> None:
        lane = group.lane
        info = self.procedures.get(group.batch.procedure)
        if info is not group.info:
            if info is None or not routes_alike(group.info, info):
                for call in group.singly():
                    self._route_again(call)
                return
            group.info = info
        first = self._last_number + 1
        group.numbers = numbers = list(range(first, first + group.count))
        # The rows are encoded in place: Raw would cost a second pass over them.
        columns = CallGroup(
            self.client_id,
            group.batch.procedure,
            lane.partition,
            lane.incarnation,
            numbers,
            group.slots,
            cast(Raw, group.rows),
        )
        try:
            data = _encode(Calls(self.catalog_version, [columns]))
        except UNENCODABLE as error:
            rest = group.encodable(error)
            if rest is not None:
                self._put_group(rest, via, out)
            return
        if len(data) > FRAME_BYTES and group.cut(len(data)):
            return
        self._last_number += group.count
        group.first = first
        group.via = via
        group.incarnation = lane.incarnation
        group.catalog_version = self.catalog_version
        group.lsn = lane.lsn
        group.bytes = len(data)
        self._in_flight.add_group(group)
        frame = Frame(via, data)
        frame.group = group
        out.append(frame)

    def _turn_away(self, lane: Lane, now: float) -> None:
        """The lane leads nowhere: fails what may not wait for it to come back."""
        if lane.incarnation == 0:
            why, patience = f"{lane.name} is down", 0.0
        else:
            why, patience = "the router is not connected", self.router.wait_until
        waiting: deque[Pending] = deque()
        for call in lane.queue:
            until = max(call.retry_until, patience)
            if now < until:
                waiting.append(call)
                self.next_time = min(self.next_time, until)
            else:
                self._fail(call, call.never_ran(Unavailable(f"{call.procedure}: {why}")))
        lane.queue = waiting
        for group in list(lane.ready):
            until = max(group.retry_until, patience)
            if now < until:
                self.next_time = min(self.next_time, until)
                continue
            lane.ready.remove(group)
            group.fail(why)

    # ── frames come in ─────────────────────────────────────────────────────────────────────────────────────────────

    def receive(self, source: int, frame: bytes, now: float) -> bool:
        """Takes in one frame from the router or a lane's process. False: the connection can't be trusted; close it."""
        try:
            message = wire.decode(frame)
            if isinstance(message, Replies):
                if not self._reply_alone(message):
                    self._replies(message, now)
            elif isinstance(message, Welcome):
                self._welcome(source, message, now)
            elif isinstance(message, Topology):
                self._take_topology(message, now)
            elif isinstance(message, AdminReply):
                self._admin_reply(message)
            elif isinstance(message, Lost):
                self._lost_behind_router(message, now)
            elif isinstance(message, Refusal):
                if message.code != NO_HELLO:  # then it knows us no more: what was sent is as with any lost connection
                    self._refused(source, message)
                return False
            else:
                raise ProtocolError(f"a client can't receive {type(message).__name__}")
        except ProtocolError as error:
            self._fail_all_through(source, ProtocolError(f"{self._place(source)} sent what is no answer: {error}"))
            return False
        return True

    def _welcome(self, source: int, welcome: Welcome, now: float) -> None:
        if source == ROUTER:
            if welcome.topology is None:
                raise ProtocolError("a router's Welcome without topology")
            router = self.router
            first = not router.ready
            router.ready = True
            if router.hellos_unanswered > 0:
                router.hellos_unanswered -= 1
            self._take_topology(welcome.topology, now, fresh=first)
            if router.has_told_all:
                self._settle_unknown()
        elif source < len(self.lanes):
            lane = self.lanes[source]
            if lane.limbo_until < inf:
                # Before calls of the new connection could be taken for calls of the lost one.
                self._end_limbo(lane, now)
            lane.direct = self.affinity and welcome.incarnation == lane.incarnation

    def _reply_alone(self, replies: Replies) -> bool:
        """The usual answer to a lone call. False: go the long way."""
        if replies.errors or len(replies.groups) != 1 or len(replies.groups[0].numbers) != 1:
            return False
        group = replies.groups[0]
        call = self._calls.get(group.numbers[0])
        if call is None or call.batch is not None or call.done or group.client_id != self.client_id:
            return False
        lane = call.lane
        if replies.partition != lane.partition or not replies.incarnation == lane.incarnation == call.incarnation:
            return False
        try:
            (call.value,) = _decode_results(group.results)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError):
            return False
        del self._calls[call.number]
        if replies.lsn > lane.lsn:
            lane.lsn = replies.lsn
        lane.unanswered -= 1
        lane.unanswered_bytes -= len(call.args)
        call.done = True
        self.outstanding -= 1
        self.settled.append(call)
        return True

    def _replies(self, replies: Replies, now: float) -> None:
        partition = replies.partition
        if partition >= len(self.lanes):
            raise ProtocolError(f"replies of partition {partition}, of {self.lanes.partitions}")
        if partition >= 0:
            lane = self.lanes[partition]
            if replies.incarnation == lane.incarnation and replies.lsn > lane.lsn:
                lane.lsn = replies.lsn
        for group in replies.groups:
            if group.client_id != self.client_id:
                continue
            try:
                values = _decode_value(group.results)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise ProtocolError(f"results that don't decode: {error}") from None
            if type(values) is not list or len(values) != len(group.numbers):
                raise ProtocolError("results that don't match their calls")
            for call in self._in_flight.answer(partition, replies.incarnation, group.numbers, values):
                self._settle(call, call.value, call.error)
        for error_reply in replies.errors:
            if error_reply.client_id == self.client_id:
                self._call_error(partition, replies.incarnation, error_reply, now)

    def _call_error(self, partition: int, incarnation: int, reply: CallError, now: float) -> None:
        if reply.number in self._in_flight.others:
            self._other_error(partition, reply)
            return
        call = self._in_flight.take(partition, incarnation, reply.number)
        if call is None:
            return
        if reply.code == STALE:
            self._stale(call, now)
            return
        if reply.code == ELSEWHERE and call.lane is not self._coordinator:
            self._go_elsewhere(call)
            return
        error = from_wire(reply.code, reply.message, reply.type_name, reply.traceback_text)
        may_retry = now < call.retry_until and call.number not in self._runaways
        if isinstance(error, Indeterminate) and may_retry and (partition < 0 or call.floor == NEVER_SENT):
            # The router's way to say that the partition was lost; of a retry, the partition's own word is the last.
            call.lose()
            self._hold(call, now)
        elif isinstance(error, Unavailable) and may_retry:
            self._hold(call, now)
        elif isinstance(error, Indeterminate) and call.number in self._runaways:
            self._fail(call, self._lost_error(call, ""))
        else:
            self._fail(call, call.never_ran(error) if isinstance(error, _NOT_THIS_TIME) else error)

    def _stale(self, call: Pending, now: float) -> None:
        """Routed by an old set of procedures, and not run: goes again once a newer one is known."""
        if self.catalog_version != call.catalog_version:
            self._requeue(call)
            return
        self._ask_router()
        self._hold(call, now)

    def _go_elsewhere(self, call: Pending) -> None:
        """Its partition has undone it, since it needs the coordinator: goes there, under the same number.

        The coordinator knows nothing of attempts in the partition, so from now on none of them may take effect. None
        has: a partition answers a retry only after it has looked for earlier attempts (`retry_floor`). And none will:
        it remembers this answer as it remembers results, so an attempt that is still on its way there gets the same
        one; and one that is on its way to an earlier process is refused for its incarnation. The floor was an LSN of
        the partition's: for the coordinator this is the first attempt.
        """
        call.floor = NEVER_SENT
        call.lane = self._coordinator
        call.lsn = call.lane.lsn
        self._requeue(call)

    def _hold(self, call: Pending, now: float) -> None:
        when = now + RESEND_WAIT_S
        self._held.add(call, when)
        self.next_time = min(self.next_time, when)

    def _other_error(self, partition: int, reply: CallError) -> None:
        call = self._in_flight.others.get(reply.number)
        if not isinstance(call, Everywhere):
            return
        error = from_wire(reply.code, reply.message, reply.type_name, reply.traceback_text)
        if reply.code == STALE:
            # Not sent again: another partition may have run it.
            error = Unavailable(f"{call.procedure}: the procedures or the schema changed meanwhile")
            self._ask_router()
        if partition < 0:
            del self._in_flight.others[reply.number]
            self._fail(call, error)
        elif self._in_flight.answer_everywhere(call, partition, None, error):
            self._settle(call, call.value, call.error)

    def _admin_reply(self, reply: AdminReply) -> None:
        call = self._in_flight.others.pop(reply.number, None)
        if call is None:
            return
        if reply.error:
            self._fail(call, from_wire(reply.error, str(reply.body.get("message", ""))))
        else:
            self._settle(call, reply.body, None)

    def _refused(self, source: int, refusal: Refusal) -> None:
        error = from_wire(refusal.code, refusal.message)
        if not isinstance(error, ProtocolError):
            error = ProtocolError(f"{refusal.code}: {refusal.message}")
        if source == ROUTER and not self.router.ready:
            self.rejected = error
        self._fail_all_through(source, ProtocolError(f"{self._place(source)} refused a frame: {error}"))

    # ── the cluster changes ────────────────────────────────────────────────────────────────────────────────────────

    def opening_router(self, now: float) -> None:
        """A connection to the router is being made: calls for it wait up to ROUTER_WAIT_S."""
        self.router.wait_until = now + ROUTER_WAIT_S

    def lost(self, destination: int, now: float) -> None:
        """The connection is gone. What went through the router is settled at once; what went straight to a partition
        waits up to TOPOLOGY_WAIT_S for the router to say what became of it."""
        if destination == ROUTER:
            self.router.lose()
            why = "the connection to the router was lost"
            for call in self._in_flight.single_out(lambda call: call.via == ROUTER):
                self._lose(call, why, now)
            for other in self._in_flight.take_others():
                self._fail(other, Indeterminate(f"{other.procedure}: {why}; it may have happened"))
            self.next_time = now  # what waits for the router gives up, or waits for it to return
        elif destination < len(self.lanes):
            lane = self.lanes[destination]
            was_direct, lane.direct = lane.direct, False
            if lane.incarnation and was_direct:
                lane.limbo_until = now + TOPOLOGY_WAIT_S
                self.next_time = min(self.next_time, lane.limbo_until)
        for lane in self.lanes:
            if lane.queue or lane.ready:
                self._due[lane] = None

    def _lost_behind_router(self, message: Lost, now: float) -> None:
        """What went to a partition through the router will not be answered."""
        partition = message.partition
        if not 0 <= partition < len(self.lanes):
            raise ProtocolError(f"partition {partition} is lost, of {self.lanes.partitions}")
        lane = self.lanes[partition]
        if lane.incarnation != message.incarnation:
            return  # it was settled when that one died
        for call in self._in_flight.single_out(lambda call: call.lane is lane and call.via == ROUTER):
            self._lose(call, message.reason, now)
        for other in list(self._in_flight.others.values()):
            if isinstance(other, Everywhere):
                error = Indeterminate(f"{other.procedure}: {message.reason} after the call was sent; it may have run")
                if self._in_flight.answer_everywhere(other, partition, None, error):
                    self._settle(other, other.value, other.error)

    def expire(self, now: float) -> None:
        """Settles what has waited for too long. Cheap before `next_time`."""
        if now < self.next_time:
            return
        for lane in self.lanes:
            if lane.limbo_until <= now:
                self._end_limbo(lane, now)
        for call in self._held.take_due(now):
            self._requeue(call)
        self._expire_sent(now)
        self._expire_unsent(now)
        self._reset_next_time()

    def _end_limbo(self, lane: Lane, now: float) -> None:
        lane.limbo_until = inf
        for call in self._in_flight.single_out(lambda call: call.lane is lane and call.via != ROUTER):
            self._lose(call, f"the connection to {lane.name} was lost", now)

    def close(self, why: str) -> None:
        """Settles everything: the client is going away."""
        for call in self._in_flight.single_out(lambda call: True):
            self._in_flight.remove(call)
            self._fail(call, Indeterminate(f"{call.procedure}: {why}; it may have run"))
        for other in self._in_flight.take_others():
            self._fail(other, Indeterminate(f"{other.procedure}: {why}; it may have happened"))
        unsent = [*self.router.take_unknown(), *self.router.take_outbox(), *self._held.take(lambda call: True)]
        for lane in self.lanes:
            unsent.extend(lane.queue)
            lane.queue.clear()
            for group in lane.ready:
                group.fail(why)
            lane.ready.clear()
        for call in unsent:
            self._fail(call, call.never_ran(Unavailable(f"{call.procedure}: {why}")))
        self._due.clear()
        self.router.ready = False

    def _take_topology(self, topology: Topology, now: float, *, fresh: bool = False) -> None:
        """Only a connection's first topology may be older than ours: the cluster began anew."""
        known = self.topology
        if known is not None and not fresh and topology.version < known.version:
            return
        addresses = _addresses_in(topology)
        self.topology = topology
        self.topologies += 1
        self._runaways = {runaway.call_number for runaway in topology.runaways if runaway.client_id == self.client_id}
        partitions = len(topology.partitions)
        if self.lanes.partitions != partitions or (known is not None and known.cluster_id != topology.cluster_id):
            self._replace_lanes(partitions, now)
        for lane, address in zip(self.lanes, addresses, strict=True):
            lane.address = address
            if lane.incarnation != address.incarnation:
                self._change_lane(lane, address, now)
            elif address.lsn > lane.lsn:
                lane.lsn = address.lsn
        if self.catalog_version != topology.catalog_version or known is None:
            self._change_catalog(topology)
        for call in self._held.take(self._may_go_again):
            self._requeue(call)
        router = self.router
        found = [call for call in router.unknown if call.procedure in self.procedures]
        if found:
            router.unknown = [call for call in router.unknown if call.procedure not in self.procedures]
            for call in found:
                self._found(call)

    def _may_go_again(self, call: Pending) -> bool:
        """Whether what has turned a call away is over: there are other procedures now, or another process."""
        return call.catalog_version != self.catalog_version or call.incarnation != call.lane.incarnation

    def _replace_lanes(self, partitions: int, now: float) -> None:
        """Another cluster, as far as calls go: nothing of the old one can be asked again."""
        for call in self._in_flight.single_out(lambda call: True):
            call.retry_until = 0.0
            self._lose(call, "another cluster answers at this address", now)
        unsent = [call for lane in self.lanes for call in lane.queue]
        for lane in self.lanes:
            for group in lane.ready:
                unsent.extend(group.singly())
        self.lanes = Lanes(partitions)
        self._owners = self.lanes.owners
        self._coordinator = self.lanes.coordinator
        self._due = {self.router: None}
        for call in unsent:
            if call.floor != NEVER_SENT:
                self._fail(call, call.never_ran(Unavailable("another cluster answers at this address")))
            else:
                self._route_again(call)

    def _change_lane(self, lane: Lane, address: PartitionAddress, now: float) -> None:
        """A process died or came back: what the former one had not answered will not be answered."""
        lane.incarnation = address.incarnation
        lane.lsn = address.lsn
        lane.direct = False
        lane.limbo_until = inf
        why = f"{lane.name} was lost"
        for call in self._in_flight.single_out(
            lambda call: call.lane is lane and call.incarnation != address.incarnation
        ):
            self._lose(call, why, now)
        for other in self._in_flight.directed():
            if lane.partition in other.missing and other.incarnations[lane.partition] != address.incarnation:
                lost = self._lost_error(other, why)
                if self._in_flight.answer_everywhere(other, lane.partition, None, lost):
                    self._settle(other, other.value, other.error)
        if lane.queue or lane.ready:
            self._due[lane] = None

    def _change_catalog(self, topology: Topology) -> None:
        """What is unsent and was routed by an old signature is routed again."""
        former = self.procedures
        self.procedures = {info.name: info for info in topology.procedures}
        self.catalog_version = topology.catalog_version
        changed = {name for name, info in former.items() if not routes_alike(info, self.procedures.get(name))}
        if not changed:
            return
        for lane in self.lanes:
            moved = [call for call in lane.queue if call.procedure in changed]
            if moved:
                lane.queue = deque(call for call in lane.queue if call.procedure not in changed)
            for call in moved:
                self._route_again(call)

    def _route_again(self, call: Pending) -> None:
        info = self.procedures.get(call.procedure)
        try:
            if info is None:
                raise no_such(call.procedure, self.procedures)
            lane, slot = route(info, _decode_value(call.args), self._owners, self._coordinator)
        except (BadArguments, UnknownProcedure) as error:
            self._fail(call, call.never_ran(error))
            return
        if call.floor != NEVER_SENT and lane is not call.lane:
            # Only where the first attempt went is known whether it ran. The coordinator runs what is a partition's too.
            if call.lane is not self._coordinator:
                self._fail(call, call.never_ran(Unavailable(f"{call.procedure}: its routing has changed")))
                return
            lane = call.lane
        call.slot = slot
        call.lane = lane
        self._enqueue(call)

    def _settle_unknown(self) -> None:
        for call in self.router.take_unknown():
            if call.procedure in self.procedures or not call.procedure:
                self._found(call)
            else:
                self._fail(call, no_such(call.procedure, self.procedures))

    def _found(self, call: Pending) -> None:
        if isinstance(call, Lookup):
            self._settle(call, self.procedures.get(call.procedure), None)
        elif isinstance(call, Everywhere):
            self._post(call)
        else:
            self._route_again(call)

    # ── inside ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def busy(self) -> bool:
        """Whether anything is under way: single calls, or what is sent of batches."""
        return self.outstanding > 0 or bool(self._in_flight.groups) or bool(self._calls)

    def _settle(self, call: Pending, value: Any, error: Error | None) -> None:
        if call.done:
            return
        call.done = True
        call.value = value
        call.error = error
        if call.batch is not None:
            call.batch.place(call.position, value if error is None else error)
            return
        self.outstanding -= 1
        self.settled.append(call)

    def _fail(self, call: Pending, error: Error) -> None:
        self._settle(call, None, error)

    def _lost_error(self, call: Pending, why: str) -> Error:
        if call.number in self._runaways:
            return ProcedureTimeout(f"{call.procedure}: it ran past the time limit, and its process was restarted")
        return Indeterminate(f"{call.procedure}: {why} after the call was sent; it may have run")

    def _lose(self, call: Pending, why: str, now: float) -> None:
        """The call was sent and its answer will not come: settles it, or sends it again under its number."""
        self._in_flight.remove(call)
        if now < call.retry_until and call.number not in self._runaways and not call.done:
            call.lose()
            self._requeue(call)
        else:
            self._fail(call, self._lost_error(call, why))

    def _requeue(self, call: Pending) -> None:
        if call.done:
            return
        if call.catalog_version != self.catalog_version or call.lane not in self.lanes:
            self._route_again(call)
            return
        self._enqueue(call)

    def _enqueue(self, call: Pending) -> None:
        lane = call.lane
        lane.queue.append(call)
        self._due[lane] = None
        self.next_time = min(self.next_time, call.deadline)

    def _ask_for(self, call: Pending, now: float) -> None:
        self.router.unknown.append(call)
        self._ask_router()
        if not self.router.ready:
            self.next_time = min(self.next_time, max(now, self.router.patience(call)))

    def _ask_router(self) -> None:
        self.router.hello_wanted = True
        self._due[self.router] = None

    def _post(self, call: Everywhere | Command) -> None:
        self.router.outbox.append(call)
        self._due[self.router] = None

    def _start_other(self, call: Pending, procedure: str, now: float, timeout: float) -> None:
        self.outstanding += 1
        call.procedure = procedure
        call.timeout = timeout
        call.deadline = now + timeout
        call.retry_until = now
        self.next_time = min(self.next_time, call.deadline)
        if not self.router.ready:
            self.next_time = min(self.next_time, max(now, self.router.patience(call)))

    def _fail_all_through(self, destination: int, error: ProtocolError) -> None:
        for call in self._in_flight.single_out(lambda call: call.via == destination):
            self._in_flight.remove(call)
            self._fail(call, error)
        if destination == ROUTER:
            for other in self._in_flight.take_others():
                self._fail(other, error)

    def _expire_sent(self, now: float) -> None:
        for call in self._in_flight.take_expired(now):
            self._due[call.lane] = None
            self._fail(call, call.timed_out())
        for other in self._in_flight.take_expired_others(now):
            self._fail(other, other.timed_out())

    def _expire_unsent(self, now: float) -> None:
        for lane in self.lanes:
            for call in lane.take_expired(now):
                self._fail(call, call.never_left())
        for call in self._held.take(lambda call: call.deadline <= now):
            self._fail(call, call.never_left())
        late, impatient = self.router.take_expired(now)
        for call in late:
            self._fail(call, call.never_left())
        for call in impatient:
            self._fail(call, Unavailable(f"{call.procedure}: the router is not connected"))

    def _reset_next_time(self) -> None:
        times = [*self._in_flight.deadlines(), *self.router.times(), *self._held.times()]
        for lane in self.lanes:
            times += lane.deadlines()
        self.next_time = min(times, default=inf)

    def _place(self, destination: int) -> str:
        return self.lanes[destination].name if 0 <= destination < len(self.lanes) else "the router"


def _addresses_in(topology: Topology) -> list[PartitionAddress]:
    """Where the partitions are, in order, and then the coordinator where there is one. Raises ProtocolError."""
    addresses = sorted(topology.partitions, key=lambda address: address.partition)
    partitions = len(addresses)
    if not addresses or [address.partition for address in addresses] != list(range(partitions)):
        raise ProtocolError("a topology without partitions 0, 1, …")
    if partitions > 1:
        addresses.append(topology.coordinator or PartitionAddress(partitions, 0, "", 0, 0))
        if addresses[-1].partition != partitions:
            raise ProtocolError("a topology whose coordinator has not the number after the last partition's")
    return addresses
