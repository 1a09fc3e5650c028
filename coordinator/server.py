"""The coordinator's loop: sockets, clocks and the decision log around coordinator.transactions.

drain     what the partitions report, then what clients, router and supervisor send: at most CALLS_A_TURN calls
believe   what all partitions have read, if after the last answer every connection is still there; its readers are
          answered at once, since nobody is while the next round is open
step      the core does what can be done about it
decide    a decision goes to the decision log, and is flushed, before anything else leaves
send      replies first, that somebody waits for; then orders to the partitions

RUNTIME/p<N>, p<N>.s    the door, as a partition's: clients, router, supervisor       voltpy.door_sockets
RUNTIME/p<i>.s          one stream to each partition that is up (voltpy.stream); a new one for each session
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Hashable

from msgspec import Raw

from coordinator.decision_log import DecisionLog
from coordinator.session import ATTACHED, DOWN
from coordinator.transactions import ENDING, Transactions
from voltpy.answers import Answers
from voltpy.builtin import infos
from voltpy.crash_point import crash_point
from voltpy.door import CLIENT, ROUTER, Account, Door
from voltpy.door_sockets import Sockets
from voltpy.errors import ProcedureError, ProtocolError, SchemaError, SqlError
from voltpy.events import get_logger
from voltpy.link import StreamLink
from voltpy.messages import (
    PROTOCOL_VERSION,
    Attach,
    Borrow,
    Calls,
    Closing,
    Commit,
    Decide,
    DiscardLoad,
    Dropped,
    EverywhereCall,
    Hello,
    HoldBatches,
    LoadPrepared,
    Message,
    Order,
    Orders,
    PlanReply,
    PlanRequest,
    Prepare,
    PrepareLoad,
    Read,
    ResumeBatches,
    RunDirected,
    StatusReply,
    StatusRequest,
    SwitchLoad,
    Topology,
    Welcome,
)
from voltpy.record_log import DiskFull
from voltpy.registry import Registry
from voltpy.resident import resident_bytes
from voltpy.schema import Schema, from_json
from voltpy.sql.plan import Plan
from voltpy.stream import stream_path
from voltpy.timeout import Timeout
from voltpy.wire import decode, encode

CALLS_A_TURN = 2048
IDLE_WAIT_S = 0.2
NO_PLAN = Raw(b"\xc0")
WAIT_S = 0.01  # while something may become overdue
FINISH_S = 2.0  # at the end, for what is under way

# The crash points before and after orders are sent.
SENDING_POINTS: dict[type, tuple[str, str]] = {
    Borrow: ("coordinator.borrow.before_send", "coordinator.borrow.sent"),
    Prepare: ("coordinator.prepare.before_send", "coordinator.prepare.sent"),
    Commit: ("coordinator.commit.before_send", "coordinator.commit.sent"),
    Decide: ("coordinator.decide.before_send", "coordinator.decide.sent"),
    Read: ("coordinator.read.before_send", "coordinator.read.sent"),
    RunDirected: ("coordinator.run_directed.before_send", "coordinator.run_directed.sent"),
}
_events = get_logger("coordinator")


class Connection:
    """The stream to one partition; `number` is that of the session's when it was made.

    `link` is None once it has ended, or where nobody listens: then a topology will tell why, or the session is overdue.
    """

    __slots__ = ("link", "number")

    def __init__(self, number: int, link: StreamLink | None) -> None:
        self.number = number
        self.link = link


class Server:
    """Serves until `stop`."""

    def __init__(
        self,
        sockets: Sockets,
        tcp_port: int,
        token: str,
        door: Door[Hashable],
        core: Transactions,
        log: DecisionLog,
        timeout: Timeout,
        load: Callable[[PrepareLoad, Schema], Registry],
        schema: Schema,
        planner: Callable[[Schema], Callable[[str], Plan]],
    ) -> None:
        """`planner`: what plans statements for a schema."""
        self.core = core
        self._schema = schema
        self._planner = planner
        core.bodies.plan_with(planner(schema))
        self._sockets = sockets
        self._tcp_port = tcp_port
        self._token = token
        self._door = door
        self._log = log
        self._timeout = timeout
        self._load = load
        self._prepared: Registry | None = None
        self._prepared_schema = schema  # that comes with them
        self._welcome = Welcome(PROTOCOL_VERSION, core.epoch, None)
        self._connections: dict[int, Connection] = {}
        self._flushes = 0
        self._flush_s = 0.0
        self._stopping = False
        self._is_too_late = False  # for everything that is under way

    def stop(self) -> None:
        """Lets `serve` return after this turn. May be called from a signal handler."""
        self._stopping = True

    def serve(self) -> None:
        """Returns after `stop`, with every call that came answered, if that takes no longer than FINISH_S.

        What is under way by then is left as a crash would leave it. Any OSError ends the process.
        """
        wait_s = 0.0
        while not self._stopping:
            self.turn(wait_s)
            wait_s = 0.0 if self.core.has_work else WAIT_S if self.core.is_waiting else IDLE_WAIT_S
        if not self._is_too_late:
            self._finish()
        for connection in self._connections.values():
            self._disconnect(connection)

    def _finish(self) -> None:
        """Ends what is under way, begins nothing, and tells the clients whose calls are answered that no others ran."""
        self.core.end()
        until_s = time.monotonic() + FINISH_S
        self.turn(0.0)
        while self.core.owes_answers and time.monotonic() < until_s:
            self.turn(WAIT_S)
        closing = Closing(ENDING)
        for account in list(self._door.accounts.values()):
            if account.role == CLIENT and not account.closed and not account.in_flight:
                self._send(account.identity, closing)

    def turn(self, wait_s: float) -> None:
        """One pass of the loop, which waits for so long at most when nothing has arrived."""
        self._sockets.wait(wait_s)
        self._timeout.arm()
        self._drain_partitions()
        if self.core.is_answered:
            self._believe()
            self._reply()  # before the next round holds them back
        self._drain_door()
        if self._prepared is not None and self._is_in_doubt_of_schema(self._prepared):
            self.stop()  # the process that follows has what is stored
        else:
            self.core.step(time.monotonic())
        self._timeout.disarm()
        self._decide()
        self._reply()
        self._send_orders()

    # What arrives.

    def _drain_partitions(self, *, all_of_them: bool = False) -> None:
        """Takes one frame of each that has stirred, then the next of each, until there are no more."""
        stirred = self._sockets.stirred
        reading = [
            (partition, connection, connection.link)
            for partition, connection in self._connections.items()
            if connection.link is not None and (all_of_them or connection.link.fds[0] in stirred)
        ]
        stirred.clear()
        while reading:
            left = []
            for partition, connection, link in reading:
                if link.wants_to_write:
                    link.write_on()
                    self._watch(link)
                frame = link.receive()
                if frame is not None:
                    self._take(partition, connection, frame)
                    left.append((partition, connection, link))
                elif link.is_lost():
                    self._lose(partition, connection)
            reading = left

    def _believe(self) -> None:
        """The look before may have found an answer, and been older than the end of the connection beside it.

        Each connection is read to where there is nothing more: one may have ended right behind a frame, and a wait
        tells of so many descriptors only.
        """
        for connection in self._connections.values():
            if connection.link is not None:
                connection.link.read_all()
        self._drain_partitions(all_of_them=True)
        self.core.believe(time.monotonic())

    def _lose(self, partition: int, connection: Connection) -> None:
        self._disconnect(connection)
        session = self.core.sessions[partition]
        # One that ends before the partition has accepted it would end so again: it has until it is overdue.
        if session.state == ATTACHED and session.connection == connection.number:
            self.core.connection_lost(partition, time.monotonic())

    def _take(self, partition: int, connection: Connection, frame: bytes) -> None:
        if connection.number != self.core.sessions[partition].connection:
            return  # of a session that is over
        try:
            message = decode(frame)
        except ProtocolError as error:
            _events.error("not_a_frame_from_partition", partition=partition, reason=str(error))
            return
        if isinstance(message, PlanRequest):
            self._plan(connection, message)
        else:
            self.core.receive(partition, message, time.monotonic())

    def _drain_door(self) -> None:
        receive, door, welcome, core = self._sockets.receive, self._door, self._welcome, self.core
        calls = 0
        while calls < CALLS_A_TURN:
            arrived = receive()
            if arrived is None:
                break
            identity, frame = arrived
            calls += 1
            if frame is None:
                door.garbage(identity, "a message of several frames")
                continue
            message = door.receive(identity, frame, welcome)
            if message is None:
                continue
            crash_point("coordinator.door.received")
            if type(message) is Calls:
                account = door.accounts[identity]
                for group in message.groups:
                    calls += len(group.numbers)
                    core.calls(account, group, time.monotonic())
            elif type(message) is EverywhereCall:
                core.everywhere(door.accounts[identity], message, time.monotonic())
            else:
                self._obey(identity, message)
        while self._sockets.ended:
            door.close(self._sockets.ended.pop())
        if door.outbox:
            outbox, door.outbox = door.outbox, []
            for identity, answer in outbox:
                if type(answer) is Welcome:
                    welcomed = door.accounts.get(identity)
                    self._sockets.admit(identity, first=welcomed is not None and welcomed.role != CLIENT)
                self._send(identity, answer)

    # What leaves.

    def _decide(self) -> None:
        core, log = self.core, self._log
        decision = core.take_decision()
        if decision is not None:
            began_s = time.perf_counter()
            try:
                log.write(decision)
            except DiskFull as error:
                core.decided(time.monotonic(), was_room=False, reason=str(error))
            else:
                core.decided(time.monotonic(), was_room=True)
            self._flush_s += time.perf_counter() - began_s
            self._flushes += 1
        while core.acknowledged:
            log.acknowledged(core.acknowledged.pop())

    def _reply(self) -> None:
        replies = self.core.replies()
        if replies:
            crash_point("coordinator.reply.before")
            for account, answers in replies.items():
                self._answer(account, answers)
                crash_point("coordinator.reply.half_sent")
            crash_point("coordinator.reply.after")
        for identity, notice in self.core.notices():
            self._send(identity, notice)

    def _answer(self, account: Hashable, answers: Answers) -> None:
        """One client's replies, in as many frames as their size asks for, to where it is connected now."""
        if not isinstance(account, Account):
            return
        self._door.answered(account, answers.calls + sum(answers.dropped.values()))
        if account.closed:
            return
        lane, epoch = self.core.lane, self.core.epoch
        if answers.dropped and account.role == ROUTER:
            self._send(account.identity, Dropped(lane, epoch, answers.dropped))
        for replies in answers.frames(lane, epoch, self.core.last_over):
            self._send(account.identity, replies)

    def _send(self, identity: Hashable, message: Message) -> None:
        """A client that is gone, or does not read, loses its account; nobody waits for it."""
        if not self._sockets.send(identity, encode(message)):
            self._door.close(identity)

    def _send_orders(self) -> None:
        for session in self.core.sessions:
            partition = session.partition
            connection = self._connections.get(partition)
            if connection is not None and (connection.number != session.connection or session.state == DOWN):
                self._disconnect(connection)
                connection = None
                del self._connections[partition]
            if session.state == DOWN:
                continue
            if connection is None:
                connection = self._connect(partition)
            for frame in session.take_frames():
                self._send_frame(connection, frame)

    def _send_frame(self, connection: Connection, frame: Attach | Orders) -> None:
        if isinstance(frame, Orders):
            _pass_points(frame.orders, sent=False)
        self._send_to_partition(connection, encode(frame))
        if isinstance(frame, Orders):
            _pass_points(frame.orders, sent=True)

    def _send_to_partition(self, connection: Connection, frame: bytes) -> None:
        link = connection.link
        if link is None:
            return
        waited = link.wants_to_write
        link.send([frame])  # if it has ended, that stirs its descriptor
        if link.wants_to_write != waited:
            self._watch(link)

    def _connect(self, partition: int) -> Connection:
        session = self.core.sessions[partition]
        path = session.address.ipc_path if session.address is not None else ""
        connection = self._connections[partition] = Connection(session.connection, None)
        try:
            connection.link = StreamLink(partition, session.connection, stream_path(path), time.monotonic())
        except OSError as error:  # it is gone already, or its backlog is full
            _events.warning("partition_not_reached", partition=partition, reason=str(error))
        else:
            self._watch(connection.link)
            self._send_to_partition(connection, encode(Hello(PROTOCOL_VERSION, 0, "coordinator", self._token)))
        return connection

    def _watch(self, link: StreamLink) -> None:
        self._sockets.watch(link.fds[0], to_write=link.wants_to_write)

    def _disconnect(self, connection: Connection) -> None:
        link, connection.link = connection.link, None
        if link is not None:
            self._sockets.unwatch(link.fds[0])
            link.close()

    def _plan(self, connection: Connection, message: PlanRequest) -> None:
        """Tells a partition how statements are run, each in a frame of its own."""
        version = self._door.catalog_version
        for text in message.texts:
            planned = self.core.bodies.plan(text)
            if isinstance(planned, Raw):
                reply = PlanReply(text, planned, catalog_version=version)
            elif planned.code == ProcedureError.__name__:  # the planner's fault, whatever the text is
                _events.error("statement_not_planned", text=text[:1000], reason=planned.message)
                reason = f"the statement can't be planned: {planned.message}"
                reply = PlanReply(text, NO_PLAN, SqlError.__name__, reason, version)
            else:
                reply = PlanReply(text, NO_PLAN, planned.code, planned.message, version)
            self._send_to_partition(connection, encode(reply))

    # What the supervisor asks for.

    def _obey(self, identity: Hashable, message: Message) -> None:
        core = self.core
        if isinstance(message, StatusRequest):
            self._send(identity, self._status(message.number))
        elif isinstance(message, Topology):
            # Reports of a partition that has died since may still be here.
            self._drain_partitions(all_of_them=True)
            core.topology(message, time.monotonic())
        elif isinstance(message, PrepareLoad):
            self._send(identity, self._prepare(message))
        elif isinstance(message, SwitchLoad):
            if self._prepared is not None and self._prepared.catalog_version == message.catalog_version:
                self._switch(self._prepared)
            self._send(identity, self._status(0))
        elif isinstance(message, DiscardLoad):
            self._prepared = None
        elif isinstance(message, HoldBatches):
            core.hold(identity, message, time.monotonic())
        elif isinstance(message, ResumeBatches):
            core.resume(message.snapshot)

    def _switch(self, registry: Registry) -> None:
        """From the next call on the new procedures run, on the new schema."""
        if self._prepared_schema is self._schema:
            self.core.bodies.use(registry)
        elif self.core.lane > 1 and not self.core.is_holding:
            _events.warning("schema_comes_too_late", catalog_version=registry.catalog_version)
            # Batches go on already, on the old one: the process that follows has the new one.
            self._is_too_late = True
            self.stop()
            return
        else:
            self._schema = self._prepared_schema
            self.core.take_schema(self._schema, self._planner(self._schema), registry)
        self._door.catalog_version = registry.catalog_version
        self._prepared = None
        crash_point("coordinator.load.switched")

    def _is_in_doubt_of_schema(self, prepared: Registry) -> bool:
        """Whether batches would go on though the new schema may be stored, and partitions may have it already."""
        if self._prepared_schema is self._schema or not self.core.is_held_for_too_long(time.monotonic()):
            return False
        _events.warning("schema_in_doubt", catalog_version=prepared.catalog_version)
        return True

    def _prepare(self, message: PrepareLoad) -> LoadPrepared:
        try:
            self._prepared_schema = from_json(message.schema) if message.schema else self._schema
            self._prepared = self._load(message, self._prepared_schema)
        except SchemaError as error:
            return LoadPrepared(message.catalog_version, str(error), [])
        crash_point("coordinator.load.prepared")
        return LoadPrepared(message.catalog_version, "", infos(self._prepared))

    def _status(self, number: int) -> StatusReply:
        core = self.core
        counts, runs = core.counts, core.bodies.counts
        metrics: dict[str, object] = {
            "pid": os.getpid(),
            **counts,
            "rounds_a_batch": round(counts["rounds"] / counts["batches"], 2) if counts["batches"] else 0.0,
            "reruns": runs["missed"],
            **{f"calls_{name}": runs[name] for name in ("returned", "raised", "timed_out")},
            "flushes": self._flushes,
            "flush_us": round(self._flush_s / self._flushes * 1e6) if self._flushes else 0,
            "in_doubt": core.in_doubt,
            "waiting": len(core.callers.pending),
            "clients": len(self._door.accounts),
            "cpu_s": time.process_time(),
            "rss_bytes": resident_bytes(),
        }
        registry = core.bodies.registry
        return StatusReply(
            number,
            core.epoch,
            core.last_over,
            registry.catalog_version,
            self._tcp_port,
            infos(registry),
            metrics,
        )


def _pass_points(orders: list[Order], *, sent: bool) -> None:
    for order in orders:
        if type(order) in SENDING_POINTS:
            crash_point(SENDING_POINTS[type(order)][sent])
