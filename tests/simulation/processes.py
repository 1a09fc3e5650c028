"""The processes of a simulated cluster: the real cores, in shells without sockets.

Each function here is one process from its start to its end, as `__main__` and the shells of the real ones are; what
it is given to work with is simulated. The supervisor starts, watches and restarts the others.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Hashable
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from coordinator.__main__ import EXIT_REFUSED, _planner
from coordinator.bodies import Bodies
from coordinator.decision_log import DecisionLog
from coordinator.router import Router
from coordinator.server import Server as Coordinator
from coordinator.session import reports_due_s
from coordinator.transactions import Transactions
from partitions.buffer_pool import BufferPool
from partitions.checkpoint import load as load_checkpoint
from partitions.checkpoint import read_checkpoint
from partitions.checkpointer import Checkpointer
from partitions.executor import Executor
from partitions.page_reader import PageReader
from partitions.recovery import recover
from partitions.server import Server
from partitions.store import Store
from partitions.wal import Wal
from tests.partitions.faulty_disk import PowerCut
from tests.simulation.disk import Disk
from tests.simulation.network import Dealer, Network, Peer
from tests.simulation.network import Door as SimulatedDoor
from tests.simulation.stage import ROUTER_PORT, USUAL_BYTES
from tests.simulation.world import Killed, Process, World
from voltpy import heartbeat
from voltpy.actions import Done, Kill, Persist, Start, Tell, Terminate
from voltpy.child import ROUTER
from voltpy.data_directory import DataDirectory, Unflushed, read_procedures, read_schema
from voltpy.door import CLIENT, Door
from voltpy.errors import ClusterError, Corruption, Error
from voltpy.heartbeat import Words
from voltpy.messages import (
    PROTOCOL_VERSION,
    Admin,
    AdminReply,
    Detach,
    Hello,
    HoldCheckpoint,
    Message,
    PrepareLoad,
    Runaway,
    StatusReply,
    StatusRequest,
    Topology,
)
from voltpy.outcome_window import OutcomeWindow
from voltpy.record_log import DiskFull
from voltpy.registry import Registry, load
from voltpy.schema import Schema, from_json, to_json
from voltpy.schema_queue import SchemaQueue
from voltpy.supervision import Supervision
from voltpy.timeout import Timeout
from voltpy.transaction import unique_ids
from voltpy.wire import decode, encode

if TYPE_CHECKING:
    from tests.simulation.lives import Lives

TOKEN = "token"
MEMORY_BYTES = 2 << 20
SUPERVISOR_ID = 1
PROBE = 1 << 40  # the number of a question that the supervision has not asked
TICK_S = 0.1


class Options(NamedTuple):
    """Of one run. `data`: the data directory."""

    partitions: int
    data: Path
    segment_bytes: int
    checkpoint_bytes: int
    window_bytes: int
    fsync: str
    procedure_timeout_s: float = 5.0
    calls_last: bool = False  # else procedures take no time
    memory_bytes: int = MEMORY_BYTES  # of a partition's pages


@lru_cache(maxsize=64)
def _registry(source: str, path: str, schema: bytes, catalog_version: int) -> Registry:
    return load(source, path, from_json(schema), catalog_version)


def _stored(data: Path) -> tuple[Schema, Registry]:
    """What a process that starts finds."""
    schema, procedures = read_schema(data), read_procedures(data)
    version = max(procedures.catalog_version, schema.catalog_version)
    return schema, _registry(procedures.source, procedures.path, to_json(schema), version)


def _load(message: PrepareLoad, schema: Schema) -> Registry:
    return _registry(message.source, message.path, message.schema, message.catalog_version)


class _NoTimeout:
    """For procedures that take no time."""

    def arm(self) -> None: ...
    def disarm(self) -> None: ...


class _NoWarmUp:
    """Nothing is read before it is asked for."""

    def due_s(self, now_s: float) -> float | None:
        return None

    def step(self, now_s: float) -> None: ...
    def dump(self, *, flush: bool) -> None: ...

    def progress(self, now_s: float) -> list[Any]:
        return []


def _timeout(runs: Executor | Bodies, words: Words, options: Options, *arguments: Any) -> Timeout:
    if not options.calls_last:
        return _NoTimeout()  # type: ignore[return-value]
    return Timeout(runs.interrupt, runs.may_be_interrupted, words, options.procedure_timeout_s, *arguments)


def run_partition(
    process: Process, network: Network, disk: Disk, number: int, options: Options, runaway: Runaway | None
) -> None:
    """As partitions.__main__."""
    world, directory = process.world, disk.path
    disk.process = process
    schema, registry = _stored(options.data)
    wal = Wal.open(directory, number, options.fsync, options.segment_bytes)
    store = Store(schema, number, options.partitions, options.memory_bytes)
    checkpoint = read_checkpoint(directory, number)
    pages = load_checkpoint(directory, number, checkpoint, store)
    reader = PageReader(pages.path, store.arena.memory)
    pool = BufferPool(store.heaps, store.arena, reader, pages.path, options.memory_bytes + USUAL_BYTES)
    store.use(pool)
    root = checkpoint.root
    window = OutcomeWindow(root.outcomes_reach, options.window_bytes, root.batches_reach)
    checkpointer = Checkpointer(
        directory, number, store, window, wal, pages, checkpoint, every_bytes=options.checkpoint_bytes
    )
    recover(wal, store, checkpoint, window, checkpointer, leaves_cold=True)
    epoch = wal.begin()
    checkpointer.begin()
    running = process.words = array("Q", bytes(64))
    executor = Executor(
        store,
        registry,
        window,
        unique_ids(number, epoch),
        running,
        lambda: datetime.fromtimestamp(world.time(), UTC),
    )
    if runaway is not None:
        executor.runaways.add((runaway.client_id, runaway.call_number))
    door = Door[Hashable](TOKEN, at_partition=number, partitions=options.partitions)
    door.catalog_version = registry.catalog_version
    sockets = SimulatedDoor(network, process, f"p{number}")
    server = Server(
        sockets,  # type: ignore[arg-type]
        number,
        ROUTER_PORT + 1 + number,
        door,
        executor,
        store,
        pool,
        _NoWarmUp(),  # type: ignore[arg-type]
        wal,
        checkpointer,
        _timeout(executor, running, options),
        _load,
        world.monotonic,
    )
    process.server = server
    world.tell(f"{process.name} serves, epoch {epoch}")
    try:
        server.serve()
    finally:
        with suppress(Killed, PowerCut, OSError, AttributeError):
            checkpointer._steps.close()  # type: ignore[attr-defined]  # later it would close a stranger's descriptor


def run_coordinator(process: Process, network: Network, disk: Disk, options: Options, runaway: Runaway | None) -> None:
    """As coordinator.__main__."""
    world, lane = process.world, options.partitions
    disk.process = process
    schema, registry = _stored(options.data)
    log = DecisionLog.open(disk.path, lane, segment_bytes=options.segment_bytes, window_bytes=options.window_bytes)
    decisions = log.replay()
    window = OutcomeWindow(log.reaches, options.window_bytes)
    for decision in decisions:
        window.add(decision.batch, bytes(decision.outcomes))
    epoch = log.begin()
    running = process.words = array("Q", bytes(64))
    bodies = Bodies(
        schema,
        lane,
        registry,
        running,
        unique_ids(lane, epoch),
        lambda: datetime.fromtimestamp(world.time(), UTC),
        world.monotonic,
    )
    runaways = [] if runaway is None else [(runaway.client_id, runaway.call_number)]
    core = Transactions(lane, epoch, bodies, decisions, window, runaways, reports_due_s(options.procedure_timeout_s))
    door = Door[Hashable](TOKEN, at_partition=lane, is_coordinator=True)
    door.catalog_version = registry.catalog_version
    server = Coordinator(
        SimulatedDoor(network, process, f"p{lane}"),  # type: ignore[arg-type]
        ROUTER_PORT + 1 + lane,
        TOKEN,
        door,
        core,
        log,
        _timeout(bodies, running, options, lambda: False, bodies.lease),
        _load,
        schema,
        _planner,
    )
    process.server = server
    world.tell(f"{process.name} serves, epoch {epoch}")
    server.serve()


class _RouterShell:
    """As coordinator.router_server."""

    def __init__(self, process: Process, network: Network) -> None:
        self.process = process
        self.network = network
        self.sockets = SimulatedDoor(network, process, "router")
        self.router = Router(Door[bytes](TOKEN, at_partition=None), process.world.time_ns())
        process.server = self
        self.dealers: dict[int, tuple[int, Dealer]] = {}

    def serve(self) -> None:
        while True:
            if not any(dealer.arrived for _, dealer in self.dealers.values()):
                self.sockets.wait(1.0)
            else:
                self.process.work(1e-5)
            for partition in list(self.dealers):
                self._receive_from_partition(partition)
            self._receive_from_clients()
            self._send()

    def _receive_from_partition(self, partition: int) -> None:
        arrived = self.dealers[partition][1].arrived
        while arrived:
            self.process.step("receive")
            self.router.partition_message(partition, decode(arrived.popleft()))

    def _receive_from_clients(self) -> None:
        router, door = self.router, self.router.door
        while (received := self.sockets.receive()) is not None:
            peer, frame = received
            assert isinstance(peer, Peer)
            assert frame is not None
            identity = peer.identity
            message = door.receive(identity, frame, router.welcome)
            if message is None:
                continue
            account = door.accounts[identity]
            if account.role == CLIENT:
                router.client_message(account, message, self.process.world.time_ns() // 1000)
            elif isinstance(message, StatusRequest):
                reply = StatusReply(message.number, 0, 0, door.catalog_version, ROUTER_PORT, [], router.metrics())
                self._send_to_client(identity, encode(reply))
            else:
                if isinstance(message, Topology):
                    for partition in list(self.dealers):
                        self._receive_from_partition(partition)
                router.supervisor_message(account, message)
                self._connect()

    def _connect(self) -> None:
        for lane in self.router.lanes:
            number, dealer = self.dealers.get(lane.partition, (-1, None))
            if dealer is not None and number == lane.connection:
                continue
            if dealer is not None:
                dealer.close()
                del self.dealers[lane.partition]
            if lane.is_up:
                dealer = Dealer(self.network, self.process, "router", f"p{lane.partition}")
                dealer.send_up(encode(Hello(PROTOCOL_VERSION, 0, "router", TOKEN)))
                self.dealers[lane.partition] = (lane.connection, dealer)

    def _send(self) -> None:
        self._connect()
        while outbox := self.router.flush():
            for destination, message in outbox:
                if isinstance(destination, bytes):
                    self._send_to_client(destination, encode(message))
                else:
                    self.process.step("send")
                    self.dealers[destination][1].send_up(encode(message))

    def _send_to_client(self, identity: bytes, frame: bytes) -> None:
        if not self.sockets.send(identity, frame):
            self.router.lost(identity)


def run_router(process: Process, network: Network) -> None:
    _RouterShell(process, network).serve()


class Supervisor:
    """Starts and restarts the others; `topology` is published through the router. As voltpy.cluster.

    `spawn` makes the process of a child.
    """

    def __init__(
        self,
        world: World,
        network: Network,
        options: Options,
        first_version: int,
        spawn: Callable[[int, Runaway | None, Callable[[Process, BaseException | None], None]], Process],
    ) -> None:
        self.world = world
        self.directory: DataDirectory | None = None
        self.core: Supervision | None = None  # until it has read the directory
        self.changes: SchemaQueue | None = None
        self.children: dict[int, Process] = {}
        self.failures: list[str] = []  # what no child may end with
        self.interrupted: Callable[[str, str], None] = lambda kind, phase: None  # a change of the schema, by a death
        self.lives: Lives | None = None  # where lives of one process meet
        self._options = options
        self._first_version = first_version
        self._network = network
        self._spawn = spawn
        self._dealers: dict[int, Dealer] = {}
        self._is_done = False
        self._exits: deque[tuple[int, int, str]] = deque()

    @property
    def is_ready(self) -> bool:
        return self.core is not None and self.core.ready and self.all_serve

    @property
    def all_serve(self) -> bool:
        return self.core is not None and all(child.state == "serving" for child in self.core.children())

    @property
    def is_changing(self) -> bool:
        """A change of the schema is under way, or waits for its turn."""
        return self.core is None or self.changes is None or self.core.is_loading or bool(self.changes._waiting)

    def run(self, process: Process) -> None:
        self.process = process
        self.directory = directory = DataDirectory.open(self._options.data)
        core = self.core = Supervision(
            self._options.partitions,
            cluster_id="cluster",
            runtime="/nowhere",
            catalog_version=directory.catalog_version,
            procedure_timeout_s=self._options.procedure_timeout_s,
            first_version=self._first_version,
        )
        changes = self.changes = SchemaQueue(directory, core, self._answer)
        core.begin(self.world.now_s)
        while not self._is_done:
            self._carry_out(core, directory)
            if not any(dealer.arrived for dealer in self._dealers.values()) and not self._exits:
                process.wait(TICK_S)
            now_s = self.world.now_s
            for number, child in self.children.items() if self._options.calls_last else ():
                if child.is_alive and child.words is not None:
                    core.looked(number, heartbeat.read(child.words), now_s)
            for number, dealer in list(self._dealers.items()):
                while dealer.arrived:
                    message = decode(dealer.arrived.popleft())
                    if isinstance(message, Admin):
                        self._admin(message, now_s)
                    elif isinstance(message, StatusReply) and message.number == PROBE:
                        self._probed(number, message)
                    else:
                        core.said(number, message, now_s)
            while self._exits:
                number, status, words = self._exits.popleft()
                self._dealers.pop(number).close()
                core.exited(number, status, words, now_s)
            while changes.begin_next(now_s):
                self._carry_out(core, directory)
            core.tick(now_s)

    def _carry_out(self, core: Supervision, directory: DataDirectory) -> None:
        while actions := core.take():
            for action in actions:
                if isinstance(action, Tell):
                    self._tell(action.child, action.message)
                elif isinstance(action, Start):
                    self._start(action.child, action.runaway)
                elif isinstance(action, Persist):
                    self._persist(action, core, directory)
                elif isinstance(action, Done):
                    self._is_done = True
                elif isinstance(action, Kill | Terminate):
                    self.world.tell(f"supervisor: {action}")
                    if self.lives is not None:
                        self.lives.is_ended(self.children[action.child])
                    self.children[action.child].kill()

    def _persist(self, persist: Persist, core: Supervision, directory: DataDirectory) -> None:
        assert persist.schema is not None
        self.process.passes("supervisor.persist.before")
        try:
            directory.write_schema(persist.schema)
        except Unflushed:
            raise
        except (OSError, Error) as error:
            self.world.tell(f"supervisor: not stored: {type(error).__name__}")
            core.persisted(str(error))
        else:
            self.world.tell(f"supervisor: catalog version {persist.catalog_version} is stored")
            self.process.passes("supervisor.persist.after")
            core.persisted("")

    def _admin(self, message: Admin, now_s: float) -> None:
        """As voltpy.cluster."""
        core, directory = self.core, self.directory
        assert core is not None
        assert directory is not None
        if message.command == "status":
            status = {**core.status({}, now_s), "data": str(self._options.data), "cluster_id": directory.cluster_id}
            self._answer(message, status, "")
        elif message.command == "begin_snapshot":
            core.begin_snapshot(message.number, message.body, now_s)
        elif message.command == "renew_snapshot":
            core.renew_snapshot(message.number, message.body, now_s)
        elif message.command == "end_snapshot":
            core.end_snapshot(message.number, message.body)
        elif self.changes is not None:
            self.changes.add(message, now_s)

    def _answer(self, message: Admin, body: dict[str, Any], error: str) -> None:
        self._tell(ROUTER, AdminReply(message.number, error, body))

    def died(self, name: str) -> None:
        """A process, or this one; told before anybody has noticed."""
        load = self.core._loads._load if self.core is not None else None
        if load is not None:
            if load.unswitched is not None:
                phase = "switching"
            elif load.is_being_stored:
                phase = "storing"
            else:
                phase = "held" if load.is_cut else "preparing"
            self.interrupted(load.kind.upper(), f"{phase}, {name}")

    def _tell(self, number: int, message: Message) -> None:
        dealer = self._dealers.get(number)
        if dealer is not None:
            if isinstance(message, HoldCheckpoint) and self.lives is not None:
                dealer.stall(self.lives.lateness_s())
            dealer.send_up(encode(message))
            if isinstance(message, Detach) and self.lives is not None:
                dealer.send_up(encode(StatusRequest(PROBE)))

    def _probed(self, number: int, reply: StatusReply) -> None:
        """What a partition says after it was told that a coordinator is dead."""
        if self.children[self._options.partitions].server is None and self.lives is not None:  # there is no other yet
            self.lives.told_of_the_dead(number, reply.metrics)

    def _start(self, number: int, runaway: Runaway | None) -> None:
        self.children[number] = self._spawn(number, runaway, lambda process, error: self._ended(number, process, error))
        door_name = "router" if number == ROUTER else f"p{number}"
        self._dealers[number] = Dealer(self._network, self.process, "supervisor", door_name)
        self._tell(number, Hello(PROTOCOL_VERSION, SUPERVISOR_ID, "supervisor", TOKEN))

    def _ended(self, number: int, process: Process, error: BaseException | None) -> None:
        words = "" if error is None else f"{type(error).__name__}: {error}"
        if error is None:
            status = 0
        elif isinstance(error, Killed | PowerCut):
            status = -9
        elif isinstance(error, Corruption):
            status = 3
            self.failures.append(f"{process.name} found damage: {error}")
        elif isinstance(error, OSError | DiskFull):
            status = 1
        elif isinstance(error, ClusterError) and self.lives is not None and self.lives.explains(process, error):
            status = EXIT_REFUSED
        else:
            status = 1
            self.failures.append(f"{process.name} ended: {words}")
        self.world.tell(f"{process.name} ended: {words}")
        if self.process.is_alive:
            self.died("the router" if number == ROUTER else _role(number, self._options))
            self._exits.append((number, status, words))
            self.world.after(self.world.rng.uniform(1e-4, 2e-3), self.process.wake)


def _role(number: int, options: Options) -> str:
    return "the coordinator" if number == options.partitions else "a partition"
