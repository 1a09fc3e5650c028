"""The router as a process sees it: real sockets, a partition that echoes, and clients that behave badly."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq
from msgspec import Raw, msgpack

from coordinator import router_server
from coordinator.router_server import CannotListen, Server
from voltpy import descriptors, unread
from voltpy.door import CLIENT, Door
from voltpy.hash_slot import slot_owners
from voltpy.messages import (
    CALLS_IN_FLIGHT_A_CLIENT,
    MAX_FRAME_BYTES,
    NO_HELLO,
    PROTOCOL_VERSION,
    Admin,
    AdminReply,
    CallGroup,
    Calls,
    Closing,
    EverywhereCall,
    Hello,
    Lost,
    Message,
    PartitionAddress,
    Refusal,
    Replies,
    ReplyGroup,
    StatusReply,
    StatusRequest,
    Topology,
    Welcome,
)
from voltpy.sockets import context, door_socket, raise_open_files_limit
from voltpy.wire import decode, encode

TOKEN = "the token"
DEADLINE_S = 10.0
SLOT_OF = [slot_owners(2).index(partition) for partition in range(2)]


def wait_until(condition: Callable[[], bool]) -> None:
    """Polls `condition`; fails when it does not come true in time."""
    deadline = time.monotonic() + DEADLINE_S
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        pause.wait(0.005)


class Peer:
    """A DEALER: a client, or the supervisor."""

    def __init__(self, made_by: zmq.Context[zmq.Socket[bytes]], url: str, **options: int) -> None:
        self.socket = made_by.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVTIMEO, int(DEADLINE_S * 1000))
        for name, value in options.items():
            self.socket.setsockopt(getattr(zmq, name), value)
        self.socket.connect(url)

    def send(self, message: Message) -> None:
        self.socket.send(encode(message))

    def receive(self) -> Message:
        return decode(self.socket.recv())

    def hello(self, client_id: int) -> Welcome:
        self.send(Hello(PROTOCOL_VERSION, client_id))
        welcome = self.receive()
        assert isinstance(welcome, Welcome)
        return welcome

    def replies(self) -> Replies:
        """The next replies; topologies before it are skipped."""
        while True:
            message = self.receive()
            if isinstance(message, Replies):
                return message
            assert isinstance(message, Topology)

    def codes(self) -> list[tuple[int, str]]:
        return [(error.number, error.code) for error in self.replies().errors]


class EchoPartition:
    """Answers each group of calls with its arguments as results, in a thread of its own."""

    def __init__(self, runtime: Path, partition: int, incarnation: int) -> None:
        self.partition = partition
        self.incarnation = incarnation
        self.seen: list[CallGroup] = []
        self.held = threading.Event()  # set: it reads, and does not answer
        self._stopping = threading.Event()
        self._door = Door(TOKEN, at_partition=partition, partitions=2)
        self._context = context()
        self._socket = door_socket(self._context)
        self._socket.bind(f"ipc://{runtime / f'p{partition}'}")
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        welcome = Welcome(PROTOCOL_VERSION, self.incarnation, None)
        while not self._stopping.is_set():
            if not self._socket.poll(10):
                continue
            identity, frame = self._socket.recv_multipart()
            message = self._door.receive(identity, frame, welcome)
            replies = Replies(self.partition, self.incarnation, 0, [], [])
            if isinstance(message, Calls):
                self.seen += message.groups
                replies.groups = [ReplyGroup(group.client_id, group.numbers, group.args) for group in message.groups]
            elif isinstance(message, EverywhereCall):
                replies.groups = [ReplyGroup(message.client_id, [message.number], message.args)]
            if replies.groups and not self.held.is_set():
                self._socket.send_multipart([identity, encode(replies)])
            for receiver, answer in self._door.outbox:
                self._socket.send_multipart([receiver, encode(answer)])
            self._door.outbox.clear()

    def die(self) -> None:
        self._stopping.set()
        self._thread.join()
        self._context.destroy(linger=0)


class Cluster:
    """A router in a thread, a supervisor that is the test, echoing partitions, and clients."""

    def __init__(self, runtime: Path) -> None:
        self.runtime = runtime
        self.context = context()
        self.partitions: dict[int, EchoPartition] = {}
        self.incarnations = [0, 0]
        self.version = 0
        self.port = 0
        self.start_router()

    def start_router(self) -> None:
        self.router = Server(self.runtime, "127.0.0.1", self.port, TOKEN)
        self.port = self.router.port
        self.thread = threading.Thread(target=self.router.serve, daemon=True)
        self.thread.start()
        self.supervisor = Peer(self.context, f"ipc://{self.runtime / 'r'}")
        self.supervisor.send(Hello(PROTOCOL_VERSION, 0, "supervisor", TOKEN))
        assert isinstance(self.supervisor.receive(), Welcome)

    def stop_router(self) -> None:
        self.router.stop()
        self.thread.join()
        self.supervisor.socket.close()

    def announce(self) -> Topology:
        self.version += 1
        addresses = [
            PartitionAddress(partition, incarnation, str(self.runtime / f"p{partition}"), 0, 0)
            for partition, incarnation in enumerate(self.incarnations)
        ]
        topology = Topology(self.version, 1, "id", str(self.runtime), addresses, [], [])
        self.supervisor.send(topology)
        wait_until(lambda: self.router.router.welcome.topology == topology)
        return topology

    def start_partition(self, partition: int) -> EchoPartition:
        self.incarnations[partition] += 1
        self.partitions[partition] = EchoPartition(self.runtime, partition, self.incarnations[partition])
        return self.partitions[partition]

    def client(self, client_id: int, **options: int) -> Peer:
        peer = Peer(self.context, f"tcp://127.0.0.1:{self.port}", **options)
        peer.hello(client_id)
        return peer

    def metrics(self) -> dict[str, int]:
        self.supervisor.send(StatusRequest(5))
        reply = self.supervisor.receive()
        assert isinstance(reply, StatusReply)
        assert (reply.number, reply.incarnation, reply.tcp_port) == (5, 0, self.port)
        return reply.metrics

    def close(self) -> None:
        if self.thread.is_alive():
            self.stop_router()
        for partition in self.partitions.values():
            partition.die()
        self.context.destroy(linger=0)


@pytest.fixture
def runtime() -> Iterator[Path]:
    """A directory with a path short enough for ipc sockets, which tmp_path does not promise."""
    directory = Path(tempfile.mkdtemp(prefix="voltpy-", dir="/tmp"))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def cluster(runtime: Path) -> Iterator[Cluster]:
    cluster = Cluster(runtime)
    cluster.start_partition(0)
    cluster.start_partition(1)
    cluster.announce()
    yield cluster
    cluster.close()


def group_of(client: int, numbers: list[int], partition: int = 0, incarnation: int = 1, text: str = "") -> CallGroup:
    args = Raw(encode([[number, text] for number in numbers]))
    return CallGroup(client, "echo", partition, incarnation, numbers, [SLOT_OF[partition]] * len(numbers), args)


def check_served(client: Peer, client_id: int, number: int) -> None:
    """One call of this client to each partition is answered."""
    for partition in range(2):
        client.send(Calls(1, [group_of(client_id, [number], partition, 0)]))
        replies = client.replies()
        assert replies.errors == []
        assert [(group.client_id, group.numbers) for group in replies.groups] == [(client_id, [number])]


@pytest.mark.parametrize("transport", ["tcp", "ipc"])
def test_calls_travel_to_their_partitions_and_back(cluster: Cluster, transport: str) -> None:
    url = f"tcp://127.0.0.1:{cluster.port}" if transport == "tcp" else f"ipc://{cluster.runtime / 'r'}"
    client = Peer(cluster.context, url)
    welcome = client.hello(1)
    assert welcome.topology is not None
    assert [address.incarnation for address in welcome.topology.partitions] == [1, 1]
    groups = [group_of(1, [1, 2]), group_of(1, [3], 1)]
    client.send(Calls(1, groups))
    by_partition = {replies.partition: replies for replies in (client.replies(), client.replies())}
    for partition, group in enumerate(groups):
        replies = by_partition[partition]
        assert (replies.incarnation, replies.errors) == (1, [])
        assert [(reply.numbers, bytes(reply.results)) for reply in replies.groups] == [
            (group.numbers, bytes(group.args)),
        ]
    assert cluster.metrics()["calls_in_flight"] == 0


def test_a_call_for_every_partition_is_answered_by_each(cluster: Cluster) -> None:
    client = cluster.client(1)
    client.send(EverywhereCall(1, 1, "count", 4, Raw(b"\x90")))
    assert sorted(client.replies().partition for _ in range(2)) == [0, 1]


def test_a_mixed_group_reaches_both_partitions(cluster: Cluster) -> None:
    client = cluster.client(1)
    client.send(Calls(1, [CallGroup(1, "echo", -1, 0, [7, 8], SLOT_OF, Raw(encode([[7], [8]])))]))
    replies = sorted((client.replies() for _ in range(2)), key=lambda reply: reply.partition)
    assert [(reply.groups[0].numbers, msgpack.decode(reply.groups[0].results)) for reply in replies] == [
        ([7], [[7]]),
        ([8], [[8]]),
    ]


def test_many_clients_each_get_their_own_replies(cluster: Cluster) -> None:
    clients = [cluster.client(number) for number in range(1, 31)]
    for number, client in enumerate(clients, start=1):
        for call in range(10):
            client.send(Calls(1, [group_of(number, [call * 2 + 1, call * 2 + 2], call % 2)]))
    for number, client in enumerate(clients, start=1):
        numbers: list[int] = []
        while len(numbers) < 20:
            for group in client.replies().groups:
                assert group.client_id == number
                numbers += group.numbers
        assert sorted(numbers) == list(range(1, 21))
    metrics = cluster.metrics()
    assert (metrics["calls_in_flight"], metrics["calls_forwarded"], metrics["calls"]) == (0, 600, 600)
    assert metrics["clients"] == 30
    assert metrics["rss_bytes"] > 1 << 20
    assert metrics["cpu_s"] > 0


def test_garbage_harms_nobody_else(cluster: Cluster) -> None:
    good, bad = cluster.client(1), cluster.client(2)
    bad.socket.send(b"\xc1 garbage")
    refusal = bad.receive()
    assert isinstance(refusal, Refusal)
    assert refusal.code == "ProtocolError"
    several_parts = cluster.client(3)
    several_parts.socket.send_multipart([b"", encode(Calls(1, [group_of(3, [1])]))])
    assert isinstance(several_parts.receive(), Refusal)
    stranger = Peer(cluster.context, f"tcp://127.0.0.1:{cluster.port}")
    stranger.send(Calls(1, [group_of(4, [1])]))
    refusal = stranger.receive()
    assert isinstance(refusal, Refusal)
    assert refusal.code == NO_HELLO
    with socket.create_connection(("127.0.0.1", cluster.port)) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
        check_served(good, 1, 1)
    check_served(good, 1, 2)


def test_a_router_that_stops_tells_of_what_it_sent_on_and_that_nothing_else_has_run(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coordinator.router_server.FINISH_S", 0.1)
    answered, unanswered = cluster.client(1), cluster.client(2)
    check_served(answered, 1, 1)
    cluster.partitions[0].held.set()
    unanswered.send(Calls(1, [group_of(2, [1])]))
    wait_until(lambda: len(cluster.partitions[0].seen) == 2)
    cluster.stop_router()
    assert answered.receive() == Closing("the router is stopping")
    assert isinstance(unanswered.receive(), Lost)
    assert unanswered.receive() == Closing("the router is stopping")


def test_an_oversized_frame_ends_only_its_own_connection(cluster: Cluster) -> None:
    good, bad = cluster.client(1), cluster.client(2)
    bad.socket.send(b"\x94" * (MAX_FRAME_BYTES + 1))
    bad.send(Calls(1, [group_of(2, [1])]))
    # On the connection that ZeroMQ makes instead, nobody has said Hello.
    refusal = bad.receive()
    assert isinstance(refusal, Refusal)
    assert refusal.code == NO_HELLO
    check_served(good, 1, 1)
    bad.hello(2)
    check_served(bad, 2, 2)


def test_a_client_that_never_reads_loses_its_account_and_harms_nobody(cluster: Cluster) -> None:
    good = cluster.client(1)
    bad = cluster.client(2, RCVHWM=1, RCVBUF=4096, SNDTIMEO=int(DEADLINE_S * 1000))
    text = "x" * 30_000
    number = 0
    while 2 in (clients := dict(cluster.router.router.door.by_client)) and not clients[2].closed:
        number += 1
        bad.send(Calls(1, [group_of(2, [number], number % 2, text=text)]))
        if number % 50 == 0:
            check_served(good, 1, number)
        assert number < 20_000
    check_served(good, 1, 20_000)
    wait_until(lambda: cluster.metrics()["calls_in_flight"] == 0)
    assert cluster.metrics()["clients"] == 1


def test_too_many_calls_in_flight_are_overloaded(cluster: Cluster) -> None:
    cluster.partitions[0].held.set()
    client, other = cluster.client(1), cluster.client(2)
    for first in range(1, CALLS_IN_FLIGHT_A_CLIENT + 1, 128):
        client.send(Calls(1, [group_of(1, list(range(first, first + 128)))]))
    client.send(Calls(1, [group_of(1, [9001, 9002])]))
    assert client.codes() == [(9001, "Overloaded"), (9002, "Overloaded")]
    other.send(Calls(1, [group_of(2, [1], 1)]))
    assert other.replies().groups[0].numbers == [1]


def test_a_partition_dies_and_comes_back(cluster: Cluster) -> None:
    client = cluster.client(1)
    cluster.partitions[0].held.set()
    client.send(Calls(1, [group_of(1, [1])]))
    wait_until(lambda: len(cluster.partitions[0].seen) == 1)
    cluster.partitions[0].die()
    back = cluster.incarnations[0]
    cluster.incarnations[0] = 0
    assert cluster.announce() == client.receive()
    client.send(Calls(1, [group_of(1, [2]), group_of(1, [3], 1)]))
    assert client.codes() == [(2, "Unavailable")]
    assert client.replies().groups[0].numbers == [3]
    cluster.incarnations[0] = back
    again = cluster.start_partition(0)
    assert cluster.announce() == client.receive()
    client.send(Calls(1, [group_of(1, [4], 0, 1), group_of(1, [5], 0, 2)]))
    assert client.codes() == [(4, "Unavailable")]
    assert client.replies().groups[0].numbers == [5]
    assert [group.numbers for group in again.seen] == [[5]]
    assert cluster.metrics()["calls_in_flight"] == 0


def test_frames_that_wait_for_a_dead_process_never_reach_the_next_one(cluster: Cluster) -> None:
    client = cluster.client(1)
    cluster.partitions[0].die()
    for number in range(1, 51):
        client.send(Calls(1, [group_of(1, [number])]))
    wait_until(lambda: cluster.metrics()["calls_forwarded"] == 50)
    # The next process listens where the dead one did before anybody hears of it: ZeroMQ reconnects by itself.
    again = cluster.start_partition(0)
    assert cluster.announce() == client.receive()
    client.send(Calls(1, [group_of(1, [51], 0, 2)]))
    assert client.replies().groups[0].numbers == [51]
    assert [group.numbers for group in again.seen] == [[51]]


def test_a_dead_partitions_last_replies_arrive_before_the_news_of_its_death(cluster: Cluster) -> None:
    client = cluster.client(1)
    for number in range(1, 21):
        client.send(Calls(1, [group_of(1, [number])]))
    wait_until(lambda: len(cluster.partitions[0].seen) == 20)
    wait_until(lambda: cluster.metrics()["calls"] == 20)
    cluster.partitions[0].die()
    cluster.incarnations[0] = 0
    topology = cluster.announce()
    numbers: list[int] = []
    while isinstance(message := client.receive(), Replies):
        assert message.errors == []
        for group in message.groups:
            numbers += group.numbers
    assert sorted(numbers) == list(range(1, 21))
    assert message == topology


def test_a_new_router_asks_clients_for_a_hello(cluster: Cluster) -> None:
    client = cluster.client(1)
    check_served(client, 1, 1)
    cluster.stop_router()
    assert isinstance(client.receive(), Closing)
    cluster.start_router()
    client.send(Calls(1, [group_of(1, [2])]))
    refusal = client.receive()
    assert isinstance(refusal, Refusal)
    assert refusal.code == NO_HELLO
    # It is welcomed when the new router knows the partitions, and not before.
    client.send(Hello(PROTOCOL_VERSION, 1))
    wait_until(lambda: cluster.metrics()["clients"] == 1)
    assert client.socket.poll(0) == 0
    topology = cluster.announce()
    assert client.receive() == Welcome(PROTOCOL_VERSION, 0, topology)
    check_served(client, 1, 3)


def test_commands_reach_the_supervisor_and_its_answers_the_client(cluster: Cluster) -> None:
    client = cluster.client(1)
    client.send(Admin(9, "status", {"x": 1}))
    request = cluster.supervisor.receive()
    assert isinstance(request, Admin)
    assert (request.command, request.body) == ("status", {"x": 1})
    cluster.supervisor.send(AdminReply(request.number, "", {"ok": True}))
    assert client.receive() == AdminReply(9, "", {"ok": True})


def test_only_the_token_makes_a_supervisor(cluster: Cluster) -> None:
    imposter = Peer(cluster.context, f"tcp://127.0.0.1:{cluster.port}")
    imposter.send(Hello(PROTOCOL_VERSION, 0, "supervisor", "guess"))
    assert isinstance(imposter.receive(), Refusal)
    client = cluster.client(1)
    client.send(Topology(99, 1, "", "", [], [], []))
    assert isinstance(client.receive(), Refusal)
    assert cluster.router.router.welcome.topology is not None
    assert cluster.router.router.welcome.topology.version == 1


def test_two_thousand_clients_that_connect_at_once_are_all_served(cluster: Cluster) -> None:
    raise_open_files_limit()
    url = f"tcp://127.0.0.1:{cluster.port}"
    crowd = [Peer(cluster.context, url) for _ in range(2000)]
    for number, client in enumerate(crowd, start=1):
        client.send(Hello(PROTOCOL_VERSION, number))
        client.send(Calls(1, [group_of(number, [1], number % 2)]))
    for number, client in enumerate(crowd, start=1):
        assert isinstance(client.receive(), Welcome)
        assert client.replies().groups[0].client_id == number
    roles = [account.role for account in cluster.router.router.door.accounts.values()]
    assert roles.count(CLIENT) == 2000


def test_connections_that_say_nothing_do_not_take_the_last_descriptors(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = cluster.client(1)
    crowd = [socket.create_connection(("127.0.0.1", cluster.port), timeout=DEADLINE_S) for _ in range(100)]
    assert all(stranger.recv(1) for stranger in crowd)  # they have been accepted
    highest = max(stranger.fileno() for stranger in crowd)
    monkeypatch.setattr(descriptors, "limit", lambda: highest)
    monkeypatch.setattr(unread, "limit", lambda: highest + 200)  # the other ends may be behind
    for stranger in crowd:
        with contextlib.suppress(ConnectionResetError):
            while stranger.recv(4096):  # what ZeroMQ says to everybody
                pass
    monkeypatch.undo()
    client.send(Calls(1, [group_of(1, [1])]))
    assert client.replies().groups[0].numbers == [1]


def test_a_taken_port_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    with pytest.raises(CannotListen, match=str(cluster.port)):
        Server(cluster.runtime / "..", "127.0.0.1", cluster.port, TOKEN)


def start_process(runtime: Path, port: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            sys.executable,
            "-I",
            "-m",
            "coordinator",
            "router",
            "--runtime",
            str(runtime),
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
        ],
        env={**os.environ, "VOLTPY_TOKEN": TOKEN},
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_process_serves_and_stops_cleanly_on_a_signal(runtime: Path, number: signal.Signals) -> None:
    process = start_process(runtime, 0)
    made_by = context()
    supervisor = Peer(made_by, f"ipc://{runtime / 'r'}")
    supervisor.send(Hello(PROTOCOL_VERSION, 0, "supervisor", TOKEN))
    assert isinstance(supervisor.receive(), Welcome)
    supervisor.send(StatusRequest(1))
    status = supervisor.receive()
    assert isinstance(status, StatusReply)
    assert status.metrics["clients"] == 0
    process.send_signal(number)
    assert process.wait(DEADLINE_S) == 0
    assert process.communicate()[1] == ""
    made_by.destroy(linger=0)


def test_the_process_exits_with_5_when_the_port_is_taken(runtime: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = start_process(runtime, port)
        _, errors = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 5
    assert f"can't listen on 127.0.0.1:{port}" in errors


def test_the_process_dies_with_its_parent(runtime: Path) -> None:
    command = [sys.executable, "-I", "-m", "coordinator", "router", "--runtime", str(runtime), "--port", "0"]
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import subprocess; p = subprocess.Popen({command!r}); print(p.pid, flush=True); p.wait()",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    wait_until((runtime / "r").exists)
    parent.kill()
    parent.communicate()

    def is_gone() -> bool:
        try:
            state = Path(f"/proc/{child}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        return state == "Z"  # whoever adopted it has not waited for it yet

    wait_until(is_gone)


def test_clients_that_never_read_are_cut_off_and_others_are_served_meanwhile(
    runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router_server, "UNREAD_BYTES", 24 << 20)
    cluster = Cluster(runtime)
    try:
        cluster.start_partition(0)
        cluster.start_partition(1)
        cluster.announce()
        silent = [cluster.client(client_id, RCVHWM=1, RCVBUF=1 << 16) for client_id in (1, 2, 3)]
        well_behaved = cluster.client(9)
        text = "x" * (1 << 20)
        number = 0
        until_s = time.monotonic() + DEADLINE_S
        while cluster.router.router.metrics()["clients"] > 3:
            number += 1
            assert time.monotonic() < until_s
            for client_id, client in enumerate(silent, 1):
                client.socket.send(encode(Calls(1, [group_of(client_id, [number], 0, 0, text)])), zmq.NOBLOCK)
            check_served(well_behaved, 9, number)
        check_served(well_behaved, 9, number + 1)
    finally:
        cluster.close()
