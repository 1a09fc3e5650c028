"""A cluster of threads that speak voltpy's messages over real sockets, and misbehave when told to.

    with FakeCluster(partitions=2) as cluster: connect(cluster.url) …

Clients reach the partitions by Unix stream; without `streams` by ipc, and if not on the `same_machine` by tcp.

The procedures are `PROCEDURES` below. Behind several partitions there is one for the coordinator, with the next number.
Each remembers what each call id answered, so a retried call answers with its first result. Run as a program it serves
until its standard input closes, and prints its URL: for measurements.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
import zmq
from msgspec import Raw

from voltpy import wire
from voltpy.errors import Aborted, Error
from voltpy.messages import (
    ELSEWHERE,
    NEVER_SENT,
    STALE,
    Admin,
    AdminReply,
    CallError,
    CallGroup,
    Calls,
    EverywhereCall,
    Hello,
    Message,
    PartitionAddress,
    ProcedureInfo,
    Refusal,
    Replies,
    ReplyGroup,
    Runaway,
    Topology,
    Welcome,
)
from voltpy.stream import FrameReader, packed, stream_path

decode_value = msgspec.msgpack.Decoder().decode


def _echo(node: FakePartition, *args: Any) -> Any:
    return args[0] if len(args) == 1 else list(args)


def _add(node: FakePartition, key: Any, amount: int) -> int:
    node.totals[key] += amount
    return node.totals[key]


def _refuse_odd(node: FakePartition, key: int) -> int:
    if key % 2:
        raise Aborted(f"{key} is odd")
    return key


def _where(node: FakePartition, *args: Any) -> int:
    return node.number


def _rename(node: FakePartition, *args: Any) -> int:
    """Writes what every partition has a copy of."""
    if node.number < node.cluster.partition_count:
        raise _Elsewhere("it needs the coordinator")
    return node.number


def _where_all(node: FakePartition, *args: Any) -> Any:
    return node.number if node.number < node.cluster.partition_count else list(range(node.number))


def _refuse_in_odd(node: FakePartition, *args: Any) -> int:
    return _refuse_odd(node, node.number)


class _Elsewhere(Error):
    """What it is raised in is for the coordinator."""


def info(name: str, *key_positions: int, everywhere: bool = False, joint: bool = False) -> ProcedureInfo:
    return ProcedureInfo(name, list(key_positions), everywhere, False, [], "", joint)


PROCEDURES: dict[str, tuple[ProcedureInfo, Callable[..., Any]]] = {
    "add": (info("add", 0), _add),
    "echo": (info("echo", 0), _echo),
    "refuse_odd": (info("refuse_odd", 0), _refuse_odd),
    "second": (info("second", 1), _echo),
    "where": (info("where", 0), _where),
    "where_all": (info("where_all", everywhere=True), _where),
    "refuse_in_odd": (info("refuse_in_odd", everywhere=True), _refuse_in_odd),
    "move": (info("move", 0, 1), _where),
    "anywhere": (info("anywhere"), _where),
    "rename": (info("rename", 0), _rename),
    "set_all": (info("set_all", everywhere=True, joint=True), _where_all),
}


class Node:
    """One ROUTER socket served by one thread. `frames` is every frame that arrived after Hellos, decoded."""

    def __init__(self, cluster: FakeCluster, ipc_path: str, tcp_port: int = 0, *, streams: bool = False) -> None:
        self.cluster = cluster
        self.ipc_path = ipc_path
        self.socket = cluster.context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self.socket.setsockopt(zmq.BACKLOG, 4096)
        self.socket.bind(f"ipc://{ipc_path}")
        self.socket.bind(f"tcp://127.0.0.1:{tcp_port or '*'}")
        self.tcp_port = int(self.socket.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2])
        self.listener: socket.socket | None = None
        self.streams: dict[bytes, tuple[socket.socket, FrameReader]] = {}  # by identity
        if streams:
            self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.listener.bind(stream_path(ipc_path))
            self.listener.listen(128)
        self.clients: dict[bytes, Hello] = {}
        self.frames: list[Message] = []
        self.deaf = threading.Event()  # takes frames and answers none
        self.garbage = threading.Event()  # answers clients' frames with bytes that are none
        self.delay_s = 0.0
        self._stop = threading.Event()
        self._posted: list[tuple[bytes, bytes]] = []
        self._pipe_in, self._pipe_out = os.pipe()
        self.thread = threading.Thread(target=self._serve, daemon=True)

    def stop(self) -> None:
        """Abruptly: what has not been answered never will be."""
        if not self._stop.is_set():
            self._stop.set()
            os.write(self._pipe_out, b"\0")
            self.thread.join()
            os.close(self._pipe_in)
            os.close(self._pipe_out)

    def calls(self) -> int:
        return sum(
            len(group.numbers) for frame in list(self.frames) if isinstance(frame, Calls) for group in frame.groups
        )

    def call_frames(self) -> int:
        return sum(isinstance(frame, Calls) for frame in list(self.frames))

    def post(self, identity: bytes, message: Message) -> None:
        """Sends from another thread."""
        self._posted.append((identity, wire.encode(message)))
        if not self._stop.is_set():
            os.write(self._pipe_out, b"\0")

    def send(self, identity: bytes, message: Message) -> None:
        self.send_bytes(identity, wire.encode(message))

    def send_bytes(self, identity: bytes, data: bytes) -> None:
        try:
            if identity in self.streams:
                self.streams[identity][0].sendall(packed(data))
            else:
                self.socket.send_multipart([identity, data], zmq.NOBLOCK)
        except (zmq.ZMQError, OSError):
            self.clients.pop(identity, None)

    def poll_also(self, poller: zmq.Poller) -> None: ...

    def ready(self, ready: dict[Any, int]) -> None: ...

    def greet(self, identity: bytes) -> None: ...

    def take(self, identity: bytes, message: Message) -> None: ...

    def _serve(self) -> None:
        poller = zmq.Poller()
        poller.register(self.socket, zmq.POLLIN)
        poller.register(self._pipe_in, zmq.POLLIN)
        self.poll_also(poller)
        if self.listener is not None:
            poller.register(self.listener, zmq.POLLIN)
        while not self._stop.is_set():
            ready = dict(poller.poll())
            if self._pipe_in in ready:
                os.read(self._pipe_in, 4096)
                while self._posted:
                    self.send_bytes(*self._posted.pop(0))
            if self._stop.is_set():
                break
            self.ready(ready)
            if self.socket in ready:
                if self.delay_s:
                    time.sleep(self.delay_s)
                identity, data = self.socket.recv_multipart()
                self._take(identity, data)
            self._serve_streams(poller, ready)
        self.socket.close(0)
        for stream, _reader in self.streams.values():
            stream.close()
        if self.listener is not None:
            self.listener.close()
            os.unlink(stream_path(self.ipc_path))

    def _serve_streams(self, poller: zmq.Poller, ready: dict[Any, int]) -> None:
        if self.listener is not None and self.listener.fileno() in ready:
            stream, _ = self.listener.accept()
            self.streams[os.urandom(8)] = (stream, FrameReader())
            poller.register(stream, zmq.POLLIN)
        for identity, (stream, reader) in list(self.streams.items()):
            if stream.fileno() in ready:
                try:
                    data = stream.recv(1 << 16)
                except ConnectionError:
                    data = b""
                for frame in reader.feed(data):
                    self._take(identity, frame)
                if not data:
                    poller.unregister(stream)
                    stream.close()
                    del self.streams[identity]
                    self.clients.pop(identity, None)

    def _take(self, identity: bytes, data: bytes) -> None:
        message = wire.decode(data)
        if isinstance(message, Hello):
            self.clients[identity] = message
            self.greet(identity)
            return
        self.frames.append(message)
        if identity not in self.clients:
            self.send(identity, Refusal("ProtocolError", "say Hello first"))
        elif self.garbage.is_set() and self.clients[identity].role == "client":
            self.send_bytes(identity, b"\xc1 this is no frame")
        elif not self.deaf.is_set():
            self.take(identity, message)


class FakePartition(Node):
    def __init__(self, cluster: FakeCluster, number: int, incarnation: int, before: FakePartition | None) -> None:
        self.number = number
        self.incarnation = incarnation
        self.totals: Counter[Any] = before.totals if before else Counter()
        self.answers: dict[tuple[int, int], Any] = before.answers if before else {}
        self.lsn: int = before.lsn if before else 0
        self.swallow_replies = False  # runs the calls, and dies with the answers
        super().__init__(cluster, cluster.path(f"p{number}"), streams=cluster.streams)
        if before:
            self.frames = before.frames
        self.thread.start()

    def greet(self, identity: bytes) -> None:
        self.send(identity, Welcome(1, self.incarnation, None))

    def take(self, identity: bytes, message: Message) -> None:
        if isinstance(message, Calls):
            groups: list[ReplyGroup] = []
            errors: list[CallError] = []
            for group in message.groups:
                self._run(message, group, groups, errors)
        elif isinstance(message, EverywhereCall):
            name, number, client = message.procedure, message.number, message.client_id
            groups, errors = [], []
            try:
                value = PROCEDURES[name][1](self, *decode_value(message.args))
                groups.append(ReplyGroup(client, [number], Raw(wire.encode([value]))))
            except Error as error:
                errors.append(CallError(client, number, type(error).__name__, str(error)))
        else:
            return
        if not self.swallow_replies:
            self.send(identity, Replies(self.number, self.incarnation, self.lsn, groups, errors))

    def _run(self, calls: Calls, group: CallGroup, groups: list[ReplyGroup], errors: list[CallError]) -> None:
        client = group.client_id
        if calls.catalog_version != self.cluster.partition_catalog_version:
            errors += [CallError(client, number, STALE, "") for number in group.numbers]
            return
        if group.incarnation != self.incarnation or group.partition != self.number:
            errors += [CallError(client, number, "Unavailable", "another incarnation") for number in group.numbers]
            return
        body = PROCEDURES[group.procedure][1]
        numbers: list[int] = []
        values: list[Any] = []
        for number, args in zip(group.numbers, decode_value(group.args), strict=True):
            if group.retry_floor != NEVER_SENT and (client, number) in self.answers:
                value = self.answers[client, number]
            else:
                assert (client, number) not in self.answers or not self.cluster.remember, "a call came twice"
                try:
                    value = body(self, *args)
                except Error as error:
                    code = ELSEWHERE if isinstance(error, _Elsewhere) else type(error).__name__
                    errors.append(CallError(client, number, code, str(error)))
                    continue
                self.lsn += 1
                if self.cluster.remember:
                    self.answers[client, number] = value
            numbers.append(number)
            values.append(value)
        groups.append(ReplyGroup(client, numbers, Raw(wire.encode(values))))


class FakeRouter(Node):
    """Sends calls on to the partitions over sockets of its own."""

    def __init__(self, cluster: FakeCluster, tcp_port: int = 0) -> None:
        self.dealers: dict[int, tuple[int, zmq.Socket[bytes]]] = {}
        self.callers: dict[int, bytes] = {}
        super().__init__(cluster, cluster.path("r"), tcp_port)
        self.thread.start()

    def poll_also(self, poller: zmq.Poller) -> None:
        self.poller = poller

    def greet(self, identity: bytes) -> None:
        self.send(identity, Welcome(1, 0, self.cluster.topology()))

    def ready(self, ready: dict[Any, int]) -> None:
        for _incarnation, dealer in list(self.dealers.values()):
            if dealer in ready:
                data = dealer.recv()
                message = wire.decode(data)
                if isinstance(message, Replies):
                    clients = {group.client_id for group in message.groups} | {e.client_id for e in message.errors}
                    for client in clients:
                        self.send_bytes(self.callers[client], data)

    def take(self, identity: bytes, message: Message) -> None:
        client = self.clients[identity].client_id
        self.callers[client] = identity
        if isinstance(message, Calls):
            for group in message.groups:
                dealer = self._dealer(group.partition)
                if dealer is not None:
                    dealer.send(wire.encode(Calls(message.catalog_version, [group])))
                    continue
                errors = [CallError(client, number, "Unavailable", "it is down") for number in group.numbers]
                self.send(identity, Replies(-1, 0, 0, [], errors))
        elif isinstance(message, EverywhereCall):
            partitions = list(range(self.cluster.partition_count))
            if PROCEDURES[message.procedure][0].joint and len(partitions) > 1:
                partitions = [len(partitions)]
            for number in partitions:
                dealer = self._dealer(number)
                if dealer is not None:
                    dealer.send(wire.encode(message))
                else:
                    errors = [CallError(client, message.number, "Unavailable", "it is down")]
                    self.send(identity, Replies(number, 0, 0, [], errors))
        elif isinstance(message, Admin):
            if message.command == "fail":
                reply = AdminReply(message.number, "SchemaError", {"message": "line 3: no"})
            else:
                reply = AdminReply(message.number, "", {"command": message.command, "body": message.body})
            self.send(identity, reply)

    def _dealer(self, number: int) -> zmq.Socket[bytes] | None:
        partition = self.cluster.processes[number]
        known = self.dealers.get(number)
        if known is not None and (partition is None or known[0] != partition.incarnation):
            self.poller.unregister(known[1])
            known[1].close(0)
            del self.dealers[number]
        if partition is None:
            return None
        if number not in self.dealers:
            dealer = self.cluster.context.socket(zmq.DEALER)
            dealer.setsockopt(zmq.LINGER, 0)
            dealer.connect(f"ipc://{partition.ipc_path}")
            dealer.send(wire.encode(Hello(1, 1, "router")))
            self.dealers[number] = (partition.incarnation, dealer)
            self.poller.register(dealer, zmq.POLLIN)
        return self.dealers[number][1]


class FakeCluster:
    def __init__(
        self, partitions: int = 2, *, remember: bool = True, same_machine: bool = True, streams: bool = True
    ) -> None:
        self.streams = streams
        self.context = zmq.Context()
        self.directory = tempfile.mkdtemp(prefix="voltpy-")
        self.cluster_id = os.urandom(8).hex()
        with open(self.path("cluster_id"), "w", encoding="ascii") as file:
            file.write(self.cluster_id if same_machine else "another")
        self.remember = remember
        self.version = 1
        self.catalog_version = 1
        self.partition_catalog_version = 1
        self.procedures = {name: info for name, (info, _body) in PROCEDURES.items()}
        self.runaways: list[Runaway] = []
        self.former: dict[int, FakePartition] = {}
        self.partition_count = partitions
        self.processes: list[FakePartition | None] = []  # the partitions, and behind several the coordinator
        for number in range(partitions + (partitions > 1)):
            self.processes.append(FakePartition(self, number, 1, None))
        self.router: FakeRouter | None = FakeRouter(self)
        self.url: str = f"voltpy://127.0.0.1:{self.router.tcp_port}"

    def path(self, name: str) -> str:
        return os.path.join(self.directory, name)

    def partition(self, number: int) -> FakePartition:
        found = self.processes[number]
        assert found is not None
        return found

    def topology(self) -> Topology:
        addresses = []
        for number, partition in enumerate(self.processes):
            if partition is None:
                addresses.append(PartitionAddress(number, 0, "", 0, 0))
            else:
                addresses.append(
                    PartitionAddress(
                        number, partition.incarnation, partition.ipc_path, partition.tcp_port, partition.lsn
                    )
                )
        coordinator = addresses.pop() if self.partition_count > 1 else None
        return Topology(
            self.version,
            self.catalog_version,
            self.cluster_id,
            self.directory,
            addresses,
            list(self.procedures.values()),
            list(self.runaways),
            coordinator,
        )

    def announce(self) -> None:
        """Tells all clients of the router what the cluster looks like now."""
        self.version += 1
        if self.router is not None:
            for identity in list(self.router.clients):
                self.router.post(identity, self.topology())

    def kill(self, number: int, *, announce: bool = True) -> None:
        partition = self.partition(number)
        self.former[number] = partition
        self.processes[number] = None
        partition.stop()
        if announce:
            self.announce()

    def restart(self, number: int) -> None:
        before = self.former[number]
        self.processes[number] = FakePartition(self, number, before.incarnation + 1, before)
        self.announce()

    def kill_router(self) -> None:
        assert self.router is not None
        self.router_port = self.router.tcp_port
        self.router.stop()
        self.router = None

    def restart_router(self) -> None:
        self.router = FakeRouter(self, self.router_port)

    def call_frames(self) -> int:
        return sum(node.call_frames() for node in [*self.processes, self.router] if node is not None)

    def close(self) -> None:
        for node in [*self.processes, self.router]:
            if node is not None:
                node.stop()
        if self.router is not None:
            for _incarnation, dealer in self.router.dealers.values():
                dealer.close(0)
        self.context.destroy(0)
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> FakeCluster:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.002)


if __name__ == "__main__":
    with FakeCluster(int(sys.argv[1]) if len(sys.argv) > 1 else 2, remember=False) as served:
        print(served.url, flush=True)
        sys.stdin.read()
