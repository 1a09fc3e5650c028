"""A partition as a process, spoken to over its own socket: doors, durability, disks that fill up, ways to end."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
from msgspec import Raw

from voltpy import heartbeat
from voltpy.answers import REPLY_BYTES, pieces
from voltpy.data_directory import DataDirectory
from voltpy.door import CLIENT, COORDINATOR, HELLO_BYTES, ROUTER, SUPERVISOR
from voltpy.errors import Aborted, Error, ReadOnly, from_wire
from voltpy.hash_slot import hash_slot
from voltpy.messages import (
    MAX_FRAME_BYTES,
    NEVER_SENT,
    NO_HELLO,
    PROTOCOL_VERSION,
    STALE,
    Attach,
    Attached,
    Borrow,
    CallGroup,
    Calls,
    Decide,
    Decided,
    DiscardLoad,
    Dropped,
    EverywhereCall,
    Hello,
    Lent,
    LoadPrepared,
    Message,
    Order,
    Orders,
    Prepare,
    PrepareLoad,
    Refusal,
    Replies,
    ReplyGroup,
    Report,
    Reports,
    StatusReply,
    StatusRequest,
    SwitchLoad,
    TableChanges,
    TableKeys,
    Vote,
    Welcome,
)
from voltpy.stream import FrameReader, packed, stream_path
from voltpy.wire import decode, encode, joined

TOKEN = "0123456789abcdef"
PATIENCE_S = 20
ACCOUNTS = (
    "CREATE TABLE accounts (id INT PRIMARY KEY, n INT NOT NULL, pad STRING); PARTITION TABLE accounts ON COLUMN id;"
)
PROCEDURES = '''
from voltpy import procedure

@procedure(partition_by="key")
def add(tx, key: int, n: int):
    row = tx.accounts.get(key)
    if row is None:
        tx.accounts.insert(key, n)
        return n
    return tx.accounts.update(key, n=row.n + n).n

@procedure(partition_by="key", read_only=True)
def get(tx, key: int):
    row = tx.accounts.get(key)
    return None if row is None else row.n

@procedure(partition_by="key")
def fill(tx, key: int, length: int):
    tx.accounts.upsert(key, 0, "x" * length)

@procedure(partition_by="key")
def forget(tx, key: int):
    tx.accounts.delete(key)

@procedure(partition_by="key")
def move(tx, key: int, other: int):
    """A half of it must never be seen."""
    for account, n in ((key, 1), (other, -1)):
        row = tx.accounts.get(account)
        if row is None:
            tx.accounts.insert(account, n)
        else:
            tx.accounts.update(account, n=row.n + n)

@procedure(partition_by="key")
def large(tx, key: int, length: int):
    return "x" * length

@procedure(partition_by="key")
def refuse(tx, key: int):
    tx.accounts.upsert(key, -1)
    tx.abort("no")

@procedure(partition_by="key")
def endless(tx, key: int):
    tx.accounts.upsert(key, -1)
    while True:
        pass

@procedure(partition_by="key")
def surrogate(tx, key: int):
    tx.abort("\\ud800")

@procedure(partition_by="key")
def fork(tx, key: int):
    import os
    os.fork()

@procedure(everywhere=True)
def total(tx):
    return sum(row.n for row in tx.accounts.scan())
'''

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"still waiting for {what}"
        time.sleep(0.01)


class StreamSocket:
    """A stream that looks like a DEALER."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                self.socket.connect(path)
                break
            except (FileNotFoundError, ConnectionRefusedError):
                assert time.monotonic() < deadline, "no stream to connect to"
                time.sleep(0.01)
        self.reader = FrameReader()
        self.frames: list[bytes] = []

    def send(self, frame: bytes) -> None:
        self.socket.sendall(packed(frame))

    def poll(self, timeout_ms: int) -> bool:
        self.socket.settimeout(timeout_ms / 1000)
        try:
            while not self.frames:
                data = self.socket.recv(1 << 18)
                if not data:
                    raise ConnectionResetError("the partition has closed the stream")
                self.frames += self.reader.feed(data)
        except (TimeoutError, BlockingIOError):
            return False
        finally:
            self.socket.settimeout(PATIENCE_S)
        return True

    def recv(self) -> bytes:
        return self.frames.pop(0)

    def close(self, linger_ms: int = 0) -> None:
        self.socket.close()


def dealer(path: str) -> zmq.Socket[bytes]:
    made: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
    made.setsockopt(zmq.LINGER, 0)
    made.setsockopt(zmq.SNDHWM, 0)
    made.connect(path)
    return made


class Peer:
    """One connection to the partition, in any role: a stream where the address is a path."""

    next_client_id = 1000

    def __init__(self, path: str, role: str = CLIENT, client_id: int = 0, token: str = TOKEN) -> None:
        self.socket: Any = StreamSocket(path) if path.startswith("/") else dealer(path)
        Peer.next_client_id += 1
        self.client_id = client_id or Peer.next_client_id
        self.number = 0
        self.lsn = 0
        self.incarnation = 0
        self.send(Hello(PROTOCOL_VERSION, self.client_id, role, token if role != CLIENT else ""))
        self.greeting = self.receive()
        if isinstance(self.greeting, Welcome):
            self.incarnation = self.greeting.incarnation

    def close(self) -> None:
        self.socket.close()

    def send(self, message: Message) -> None:
        self.socket.send(encode(message))

    def receive(self, patience_s: float = PATIENCE_S) -> Message:
        assert self.socket.poll(round(patience_s * 1000)), "no answer"
        frame = self.socket.recv()
        assert len(frame) <= MAX_FRAME_BYTES
        return decode(frame)

    def hears_nothing(self) -> bool:
        """So far, and after something that another connection has had answered."""
        return not self.socket.poll(0)

    def group(self, name: str, rows: list[tuple[Any, ...]], **fields: Any) -> CallGroup:
        numbers = list(range(self.number + 1, self.number + 1 + len(rows)))
        self.number += len(rows)
        slots = [hash_slot(row[0]) for row in rows]
        group = CallGroup(self.client_id, name, 0, self.incarnation, numbers, slots, joined(list(map(_encode, rows))))
        for field, value in fields.items():
            setattr(group, field, value)
        return group

    def answers(self, calls: int) -> dict[int, Any]:
        """What the next so many calls are told, by number."""
        answers: dict[int, Any] = {}
        while len(answers) < calls:
            replies = self.receive()
            assert isinstance(replies, Replies), replies
            self.lsn = max(self.lsn, replies.lsn)
            for group in replies.groups:
                answers.update(zip(group.numbers, _decode(bytes(group.results)), strict=True))
            for e in replies.errors:
                answers[e.number] = from_wire(e.code, e.message, e.type_name, e.traceback_text)
                answers[e.number].code = e.code
        return answers

    def call_many(self, name: str, rows: list[tuple[Any, ...]], catalog_version: int = 1, **fields: Any) -> list[Any]:
        group = self.group(name, rows, **fields)
        self.send(Calls(catalog_version, [group]))
        answers = self.answers(len(rows))
        return [answers[number] for number in group.numbers]

    def call(self, name: str, *arguments: Any, **options: Any) -> Any:
        (answer,) = self.call_many(name, [arguments], **options)
        if isinstance(answer, Error):
            raise answer
        return answer

    def status(self) -> StatusReply:
        self.send(StatusRequest(5))
        reply = self.receive()
        assert isinstance(reply, StatusReply)
        return reply


class Partition:
    """Its data directory and, while it runs, its process."""

    def __init__(self, data: Path, schema: str = ACCOUNTS, procedures: str = PROCEDURES) -> None:
        self.data = data
        self.runtime = Path(tempfile.mkdtemp(prefix="voltpy-test-", dir="/tmp"))  # ipc paths are short
        if procedures:
            (self.runtime / "procedures.py").write_text(procedures)
        with DataDirectory.open(data, 1, schema, self.runtime / "procedures.py" if procedures else None):
            pass
        self.process: subprocess.Popen[bytes] | None = None
        self.peers: list[Peer] = []

    @property
    def address(self) -> str:
        return f"ipc://{self.runtime}/p0"

    def start(self, *more: str, memory: int = 1 << 28, timeout_s: float = 5.0) -> subprocess.Popen[bytes]:
        heartbeat.create(heartbeat.path_in(self.runtime, 0))
        command = [
            sys.executable, "-I", "-m", "partitions", "--data", str(self.data), "--partition", "0", "--partitions", "1",
            "--runtime", str(self.runtime), "--host", "127.0.0.1", "--memory", str(memory),
            "--procedure-timeout", str(timeout_s), *more,
        ]  # fmt: skip
        environment = {**os.environ, "VOLTPY_TOKEN": TOKEN}
        self.process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
        return self.process

    def peer(self, role: str = CLIENT, *, stream: bool = False, **options: Any) -> Peer:
        peer = Peer(stream_path(str(self.runtime / "p0")) if stream else self.address, role, **options)
        self.peers.append(peer)
        return peer

    def end(self, with_signal: int = signal.SIGTERM) -> tuple[int, str]:
        """Ends the process; its exit status and what it wrote on stderr."""
        assert self.process is not None
        self.process.send_signal(with_signal)
        return self.ended()

    def ended(self) -> tuple[int, str]:
        assert self.process is not None
        try:
            _, said = self.process.communicate(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        for peer in self.peers:
            peer.close()
        self.peers.clear()
        status = self.process.returncode
        self.process = None
        return status, said.decode()

    def tear_down(self) -> None:
        if self.process is not None:
            self.end(signal.SIGKILL)
        shutil.rmtree(self.runtime)


@pytest.fixture
def partition(tmp_path: Path) -> Iterator[Partition]:
    partition = Partition(tmp_path / "data")
    yield partition
    partition.tear_down()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Partition]:
    """One process for all tests that leave it as it was."""
    partition = Partition(tmp_path_factory.mktemp("server") / "data")
    partition.start(timeout_s=0.3)
    yield partition
    assert partition.end()[0] == 0
    partition.tear_down()


# ---------------------------------------------------------------------------------------------------- the door


@pytest.mark.parametrize("stream", [False, True])
def test_calls_and_errors_are_answered(stream: bool, running: Partition) -> None:
    client = running.peer(stream=stream)
    assert isinstance(client.greeting, Welcome)
    assert client.incarnation == 1
    before = client.call("get", 1) or 0
    assert client.call("add", 1, 105 - before) == 105
    assert client.call_many("add", [(1, 1)] * 100) == list(range(106, 206))
    assert client.call("add", 1, -100) == 105
    with pytest.raises(Aborted, match="no"):
        client.call("refuse", 1)
    with pytest.raises(Aborted, match="ud800"):
        client.call("surrogate", 1)
    codes = [client.call_many(*call)[0].code for call in (("nope", [(1,)]), ("total", [(1,)]), ("add", [(1, "x")]))]
    assert codes == ["UnknownProcedure", "UnknownProcedure", "BadArguments"]
    assert client.call("get", 1) == 105


def test_a_frame_with_several_groups_is_answered_whole(running: Partition) -> None:
    client = running.peer()
    groups = [client.group("add", [(2, 1)] * 3), client.group("refuse", [(2,)] * 2), client.group("get", [(2,)])]
    client.send(Calls(1, groups))
    answers = client.answers(6)
    assert [answers[number] for number in groups[0].numbers] == [1, 2, 3]
    assert [str(answers[number]) for number in groups[1].numbers] == ["no", "no"]
    assert answers[groups[2].numbers[0]] == 3


def test_a_procedure_that_forks_does_not_double_its_partition(running: Partition) -> None:
    client = running.peer()
    client.send(Calls(1, [client.group("fork", [(3,)])]))
    ((answer),) = client.answers(1).values()
    assert answer.code == "ProcedureError"
    assert "can't fork its partition" in str(answer)


def test_a_list_of_arguments_longer_than_its_group_is_refused_unread(running: Partition) -> None:
    client = running.peer()
    [group] = [client.group("get", [(3,)])]
    group.args = Raw(b"\xdd" + (8 << 20).to_bytes(4, "big") + bytes(8 << 20))
    began_s = time.monotonic()
    client.send(Calls(1, [group]))
    ((answer),) = client.answers(1).values()
    assert "1 calls with 8388608 argument lists" in str(answer)
    assert time.monotonic() - began_s < PATIENCE_S


def test_a_procedure_that_never_ends_is_ended(running: Partition) -> None:
    client, other = running.peer(), running.peer()
    before = client.call("get", 3)
    began_s = time.monotonic()
    client.send(Calls(1, [client.group("endless", [(3,)])]))
    assert other.call("get", 3) == before
    assert time.monotonic() - began_s < 3
    ((answer),) = client.answers(1).values()
    assert answer.code == "ProcedureTimeout"
    assert client.call("get", 3) == before


@pytest.mark.parametrize("stream", [False, True])
def test_results_larger_than_a_frame_come_in_several(stream: bool, running: Partition) -> None:
    client = running.peer(stream=stream)
    results = client.call_many("large", [(1, 900_000)] * 40)
    assert {len(result) for result in results} == {900_000}


@pytest.mark.parametrize(
    "garbage",
    [b"", b"\x00", b"\xff" * 100, b"GET / HTTP/1.1\r\n\r\n", b"\x91" * 5000, b"\xdd\xff\xff\xff\xff", b"\x94\x04",
     encode(StatusRequest(1)), encode(PrepareLoad(2, "", "")), encode(EverywhereCall(1, 5, "total", 1, Raw(b"\x90")))],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_garbage_and_forbidden_frames_end_only_their_own_connection(
    stream: bool, garbage: bytes, running: Partition
) -> None:
    client, other = running.peer(stream=stream), running.peer(stream=stream)
    client.socket.send(garbage)
    refusal = client.receive()
    assert isinstance(refusal, Refusal)
    assert refusal.code == "ProtocolError"
    client.send(Calls(1, [client.group("add", [(4, 1)])]))
    assert other.call("get", 4) is None
    assert client.hears_nothing()
    client.send(Hello(PROTOCOL_VERSION, client.client_id))
    assert isinstance(client.receive(), Welcome)
    assert client.call("get", 4) is None


def test_several_parts_are_no_message(running: Partition) -> None:
    client = running.peer()
    client.socket.send_multipart([b"", encode(Calls(1, [client.group("get", [(1,)])]))])
    assert isinstance(client.receive(), Refusal)


def test_a_frame_before_hello_is_refused(running: Partition) -> None:
    client = running.peer()
    stranger = dealer(running.address)
    stranger.send(encode(Calls(1, [client.group("add", [(4, 1)])])))
    assert stranger.poll(PATIENCE_S * 1000)
    refusal = decode(stranger.recv())
    assert refusal == Refusal(NO_HELLO, "no Hello came before this frame")
    stranger.close(0)
    assert client.call("get", 4) is None


@pytest.mark.parametrize("role", [ROUTER, SUPERVISOR])
def test_the_token_is_what_makes_a_supervisor(role: str, running: Partition) -> None:
    assert isinstance(running.peer(role, token="guess").greeting, Refusal)
    assert isinstance(running.peer(role, token="").greeting, Refusal)
    assert isinstance(running.peer(role).greeting, Welcome)


def test_calls_for_somebody_else_do_not_run(running: Partition) -> None:
    client = running.peer()
    codes = {}
    for what, fields in {
        "incarnation": {"incarnation": 2}, "earlier": {"incarnation": 0}, "partition": {"partition": 1},
    }.items():  # fmt: skip
        codes[what] = client.call_many("add", [(4, 1)], **fields)[0].code
    codes["catalog"] = client.call_many("add", [(4, 1)], catalog_version=2)[0].code
    assert codes == {
        "incarnation": "Unavailable", "earlier": "Unavailable", "partition": "WrongPartition", "catalog": STALE,
    }  # fmt: skip
    client.send(Calls(1, [client.group("add", [(4, 1)], client_id=client.client_id + 1)]))
    assert isinstance(client.receive(), Refusal)
    assert running.peer().call("get", 4) is None


def test_the_router_runs_directed_calls_of_any_client(running: Partition) -> None:
    client, router = running.peer(), running.peer(ROUTER)
    client.call("add", 5, 10)
    router.send(EverywhereCall(1, 77, "total", 1, Raw(b"\x90"), 1_000_000))
    (total,) = router.answers(1).values()
    assert total >= 10
    router.send(Calls(1, [CallGroup(78, "get", 0, 1, [9], [hash_slot(5)], joined([_encode((5,))]))]))
    assert router.answers(1) == {9: 10}


def test_the_router_hears_of_calls_that_a_retry_overtook(running: Partition) -> None:
    router, client = running.peer(ROUTER), running.peer()

    def group(client_id: int, name: str, number: int, floor: int = NEVER_SENT) -> CallGroup:
        return CallGroup(client_id, name, 0, 1, [number], [hash_slot(8)], joined([_encode((8,))]), floor)

    client.call("add", 9, 1)
    floor = client.lsn
    for number in (1, 2):
        router.send(Calls(1, [group(81, "get", number, floor), group(82, "get", number, floor)]))
        assert router.answers(1) == {number: None}
    router.send(Calls(1, [group(81, "get", 1), group(81, "get", 2), group(82, "get", 2), group(82, "get", 3)]))
    assert router.receive() == Dropped(0, 1, {81: 2, 82: 1})
    assert router.answers(1) == {3: None}
    assert client.call("get", 8, retry_floor=floor) is None
    client.number -= 1
    client.send(Calls(1, [client.group("get", [(8,)]), client.group("get", [(8,)])]))
    assert client.answers(1) == {client.number: None}  # a client knows what it has retried, and is not told


def test_status_says_how_it_is(running: Partition) -> None:
    client, supervisor = running.peer(), running.peer(SUPERVISOR)
    client.call("add", 6, 1)
    status = supervisor.status()
    assert (status.number, status.incarnation, status.catalog_version) == (5, 1, 1)
    assert status.lsn >= client.lsn > 0
    assert {info.name for info in status.procedures} >= {"add", "get", "total"}
    assert running.process is not None
    assert status.metrics["pid"] == running.process.pid
    rows = status.metrics["rows"]
    assert rows["accounts"] >= 1
    assert status.tcp_port > 0
    over_tcp = Peer(f"tcp://127.0.0.1:{status.tcp_port}")
    assert over_tcp.call("get", 6) == 1
    over_tcp.close()


def test_connections_that_vanish_leave_nothing_in_flight(running: Partition) -> None:
    """In sum they send more calls than may be in flight at once."""
    other = running.peer()
    other.call("fill", 1, 1)
    for _ in range(10):
        client = Peer(running.address)
        client.send(Calls(1, [client.group("get", [(1,)] * 4000), client.group("get", [(1,)] * 4000)]))
        client.socket.close(1000)
        other.call("get", 1)
    client = running.peer(client_id=500)
    for _ in range(3):  # one client that comes back again and again, with calls in flight each time
        client.send(Calls(1, [client.group("get", [(1,)] * 4000)]))
        client = running.peer(client_id=500)
    assert other.call("get", 1) == 0
    wait_for(lambda: not isinstance(client.call_many("get", [(1,)])[0], Error), "room")
    assert not any(isinstance(answer, Error) for answer in client.call_many("get", [(1,)] * 4000))


@pytest.mark.parametrize(("length", "calls"), [(200_000, 400), (2_000, 20_000)])
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_never_reads_harms_nobody(stream: bool, length: int, calls: int, running: Partition) -> None:
    deaf, other = running.peer(stream=stream), running.peer(stream=True)
    slowest_s = 0.0
    try:
        for number in range(1, calls + 1):
            deaf.send(Calls(1, [deaf.group("large", [(1, length)])]))
            if number % (calls // 20) == 0:
                began_s = time.monotonic()
                assert other.call("large", 1, 10) == "x" * 10
                slowest_s = max(slowest_s, time.monotonic() - began_s)
    except (BrokenPipeError, ConnectionResetError, TimeoutError):
        assert stream  # it was shown the door
    assert slowest_s < 2


@pytest.mark.parametrize("stream", [False, True])
def test_whoever_floods_one_door_does_not_shut_the_other(stream: bool, running: Partition) -> None:
    """Frames that the door answers itself cost their sender nothing."""
    flood = subprocess.Popen([sys.executable, "-c", FLOOD, running.address, str(stream), str(running.runtime / "p0")])
    try:
        other = running.peer(stream=not stream)
        for _ in range(50):
            began_s = time.monotonic()
            assert other.call("large", 1, 10) == "x" * 10
            assert time.monotonic() - began_s < 2
    finally:
        flood.kill()
        flood.wait()


FLOOD = """
import socket, sys, zmq
from voltpy.messages import CallGroup, Calls, Hello
from voltpy.stream import packed, stream_path
from voltpy.wire import encode, joined
frames = [Hello(1, 99), Calls(1, [CallGroup(99, "get", 0, 7, [1], [1], joined([b"\\x91\\x01"]))])]
hello, calls = map(encode, frames)
if sys.argv[2] == "True":
    flood = socket.socket(socket.AF_UNIX)
    flood.connect(stream_path(sys.argv[3]))
    flood.sendall(packed(hello))
    flood.setblocking(False)
    calls = packed(calls) * 1000
    at = 0
    while True:
        try:
            flood.recv(1 << 20)
        except BlockingIOError:
            pass
        try:
            at = (at + flood.send(calls[at:])) % len(calls)
        except BlockingIOError:
            pass
flood = zmq.Context.instance().socket(zmq.DEALER)
flood.connect(sys.argv[1])
flood.send(hello)
while True:
    try:
        while True:
            flood.recv(zmq.NOBLOCK)
    except zmq.Again:
        pass
    for _ in range(100):
        flood.send(calls)
"""


def test_a_stream_that_is_cut_anywhere_harms_nobody(running: Partition) -> None:
    frame = packed(encode(Hello(PROTOCOL_VERSION, 4321)))
    other = running.peer(stream=True)
    for cut in range(len(frame)):
        stranger = StreamSocket(stream_path(str(running.runtime / "p0")))
        stranger.socket.sendall(frame[:cut])
        stranger.close()
    drips = StreamSocket(stream_path(str(running.runtime / "p0")))
    for at in range(len(frame)):
        drips.socket.sendall(frame[at : at + 1])
    assert drips.poll(PATIENCE_S * 1000)
    assert isinstance(decode(drips.recv()), Welcome)
    drips.close()
    assert other.call("large", 1, 1) == "x"


def test_a_length_that_no_frame_has_ends_the_stream(running: Partition) -> None:
    client, other = running.peer(stream=True), running.peer(stream=True)
    client.socket.socket.sendall((MAX_FRAME_BYTES + 1).to_bytes(4, "little") + b"x" * 100)
    with pytest.raises(ConnectionResetError):
        client.socket.poll(PATIENCE_S * 1000)
    assert other.call("large", 1, 1) == "x"


def test_a_large_frame_before_hello_ends_the_stream(running: Partition) -> None:
    stranger, other = StreamSocket(stream_path(str(running.runtime / "p0"))), running.peer(stream=True)
    stranger.socket.sendall((HELLO_BYTES + 1).to_bytes(4, "little"))
    with pytest.raises(ConnectionResetError):
        stranger.poll(PATIENCE_S * 1000)
    stranger.close()
    assert other.call("large", 1, 1) == "x"


def test_a_large_frame_in_many_pieces_does_not_stall_the_others(running: Partition) -> None:
    client, other = running.peer(stream=True), running.peer(stream=True)
    client.socket.socket.sendall((12 << 20).to_bytes(4, "little") + bytes(11 << 20))
    slowest_s = 0.0
    for number in range(400):
        client.socket.socket.sendall(b"x")
        if number % 20 == 0:
            began_s = time.monotonic()
            assert other.call("large", 1, 1) == "x"
            slowest_s = max(slowest_s, time.monotonic() - began_s)
    assert slowest_s < 1


def test_groups_are_cut_where_frames_would_be_too_large() -> None:
    results = [_encode("x" * size) for size in (10, REPLY_BYTES, 5, REPLY_BYTES // 2, REPLY_BYTES // 2, 7)]
    small = ReplyGroup(1, [1], joined([_encode(1)]))
    cut = list(pieces([small, ReplyGroup(2, [1, 2, 3, 4, 5, 6], joined(results))]))
    assert cut[0] is small
    assert [group.numbers for group in cut[1:]] == [[1], [2], [3, 4], [5, 6]]
    assert [len(text) for group in cut[1:] for text in _decode(bytes(group.results))] == [
        10, REPLY_BYTES, 5, REPLY_BYTES // 2, REPLY_BYTES // 2, 7,
    ]  # fmt: skip


# ---------------------------------------------------------------------------------------------------- loading


def test_procedures_are_prepared_and_then_switched_or_discarded(partition: Partition) -> None:
    partition.start()
    client, supervisor = partition.peer(), partition.peer(SUPERVISOR)
    client.call("add", 1, 1)
    new = (
        PROCEDURES.replace('tx.abort("no")', 'tx.abort("never")')
        + "\n\n@procedure(partition_by='key')\ndef more(tx, key: int):\n    return 'more'\n"
    )
    path = str(partition.runtime / "procedures.py")

    def prepared(version: int, source: str) -> LoadPrepared:
        supervisor.send(PrepareLoad(version, source, path))
        reply = supervisor.receive()
        assert isinstance(reply, LoadPrepared)
        assert reply.catalog_version == version
        return reply

    assert "not valid Python" in prepared(2, "def (").error
    assert "there is no table acounts" in prepared(2, PROCEDURES.replace("tx.accounts", "tx.acounts")).error
    assert prepared(2, new).error == ""
    supervisor.send(DiscardLoad(2))
    supervisor.send(SwitchLoad(2))  # what was discarded can't be switched to
    reply = supervisor.receive()
    assert isinstance(reply, StatusReply)
    assert reply.catalog_version == 1
    assert client.call_many("more", [(1,)])[0].code == "UnknownProcedure"

    ready = prepared(2, new)
    assert "more" in {info.name for info in ready.procedures}
    assert str(client.call_many("refuse", [(1,)])[0]) == "no"  # prepared is not switched
    supervisor.send(SwitchLoad(2))
    reply = supervisor.receive()
    assert isinstance(reply, StatusReply)
    assert reply.catalog_version == 2
    assert client.call_many("get", [(1,)])[0].code == STALE
    assert client.call("get", 1, catalog_version=2) == 1
    assert client.call("more", 1, catalog_version=2) == "more"
    assert str(client.call_many("refuse", [(1,)], catalog_version=2)[0]) == "never"


# ---------------------------------------------------------------------------------------------------- ends and starts


def test_a_stop_is_clean_and_a_start_finds_everything(partition: Partition) -> None:
    partition.start()
    client = partition.peer()
    client.call_many("add", [(key, key) for key in range(500)])
    floor = client.lsn
    assert client.call("add", 7, 1) == 8
    last = client.number
    status, said = partition.end(signal.SIGINT)
    assert status == 0, said
    partition.start("--runaway", f"{client.client_id}:9999:add")
    again = partition.peer(client_id=client.client_id)
    assert again.incarnation == 2
    again.number = last - 1
    assert again.call("add", 7, 1, retry_floor=floor) == 8  # its first result
    assert again.call_many("get", [(key,) for key in range(500)]) == [key + (key == 7) for key in range(500)]
    assert again.call_many("add", [(1, 1)], incarnation=1)[0].code == "Unavailable"
    again.number = 9998
    assert again.call_many("add", [(1, 1)], retry_floor=floor)[0].code == "ProcedureTimeout"
    assert again.call("get", 1) == 1
    assert partition.end() == (0, partition_events())


def partition_events() -> Any:
    class Anything:
        def __eq__(self, other: object) -> bool:
            return True

    return Anything()


@pytest.mark.parametrize("fsync", ["always", "everysec"])
def test_what_was_acknowledged_survives_kill_9(fsync: str, partition: Partition) -> None:
    """The process dies at a random moment under load, several times. (The machine lives, so fsync matters little.)"""
    rng = random.Random(fsync)
    acknowledged: dict[int, int] = {}
    sent: dict[int, int] = {}
    for _ in range(2):
        partition.start("--fsync", fsync)
        client = partition.peer()
        for key, n in zip(sent, client.call_many("get", [(key,) for key in sent]) if sent else [], strict=True):
            assert acknowledged.get(key, 0) <= (n or 0) <= sent[key]
            acknowledged[key] = sent[key] = n or 0
        keys = {}
        for _ in range(60):
            group = client.group("add", [(rng.randrange(40), 1) for _ in range(rng.randrange(1, 60))])
            rows = [row[0] for row in _decode(bytes(group.args))]
            for number, key in zip(group.numbers, rows, strict=True):
                keys[number] = key
                sent[key] = sent.get(key, 0) + 1
            client.send(Calls(1, [group, client.group("move", [(1000, 1001)])]))
        for _ in range(rng.randrange(5, 40)):
            replies = client.receive()
            assert isinstance(replies, Replies)
            assert not replies.errors
            for answered in replies.groups:
                for number in answered.numbers:
                    if number in keys:
                        acknowledged[keys[number]] = acknowledged.get(keys[number], 0) + 1
            if sum(acknowledged.values()) == sum(sent.values()):
                break
        assert partition.process is not None
        partition.end(signal.SIGKILL)
    partition.start()
    client = partition.peer()
    for key, n in zip(sent, client.call_many("get", [(key,) for key in sent]), strict=True):
        assert acknowledged.get(key, 0) <= (n or 0) <= sent[key]
    there, back = client.call_many("get", [(1000,), (1001,)])
    assert there is None or there + back == 0


def test_writes_that_fit_are_not_refused_with_those_that_do_not(partition: Partition) -> None:
    partition.start(memory=256 * 8192)
    client, other, supervisor = partition.peer(), partition.peer(), partition.peer(SUPERVISOR)
    assert client.call("add", 1, 1) == 1
    assert client.call_many("fill", [(key, 5000) for key in range(10, 40)]) == [None] * 30
    floor = client.lsn
    groups = [
        client.group("add", [(1, 1)]),
        client.group("fill", [(key, 5000) for key in range(100, 500)]),
        client.group("get", [(1,), (100,), (10,)]),
        client.group("forget", [(key,) for key in range(10, 40)]),
        client.group("add", [(1, 1), (3, 7)]),
        client.group("refuse", [(1,)]),
        client.group("get", [(10,), (1,)]),
    ]
    client.send(Calls(1, groups))
    answers = client.answers(sum(len(group.numbers) for group in groups))
    added, filled, got, forgot, added_more, refused, got_more = ([answers[n] for n in g.numbers] for g in groups)
    assert {type(answer) for answer in filled} == {ReadOnly}
    assert "no room for the write" in str(filled[0])
    assert (added, got, forgot, added_more, got_more) == ([2], [2, None, 0], [None] * 30, [3, 7], [None, 3])
    assert isinstance(refused[0], Aborted)
    assert supervisor.status().metrics["read_only"] is True
    assert other.call_many("fill", [(key, 5000) for key in range(100, 130)]) == [None] * 30
    assert supervisor.status().metrics["read_only"] is False
    assert client.hears_nothing()
    client.send(Calls(1, [client.group("add", [(1, 1)], numbers=groups[0].numbers, retry_floor=floor)]))
    assert client.answers(1) == {groups[0].numbers[0]: 2}
    partition.end(signal.SIGKILL)
    partition.start()
    client = partition.peer()
    assert client.call_many("get", [(key,) for key in (1, 3, 10, 100, 130)]) == [3, 7, None, 0, None]


def test_a_full_disk_refuses_writes_and_serves_reads_until_there_is_room(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", small], check=False).returncode
    ):
        pytest.skip("mounting a small file system takes root")
    partition = Partition(small / "data")
    try:
        ballast = small / "ballast"
        ballast.write_bytes(bytes(1 << 20))
        partition.start()
        client = partition.peer()
        acknowledged = {}
        for key in range(1, 5000):
            (answer,) = client.call_many("fill", [(key, 5000)])
            if isinstance(answer, Error):
                break
            acknowledged[key] = answer
        assert isinstance(answer, ReadOnly), answer
        assert "no room for the write" in str(answer)
        assert len(acknowledged) > 100
        for _ in range(3):  # a mixed batch: reads are answered, writes are not
            client.send(
                Calls(
                    1,
                    [
                        client.group("get", [(1,)]),
                        client.group("fill", [(9999, 5000)] * 2),
                        client.group("get", [(9999,)]),
                    ],
                )
            )
            answers = list(client.answers(4).values())
            assert sorted(map(type, answers), key=str) == sorted([int, ReadOnly, ReadOnly, type(None)], key=str)
        supervisor = partition.peer(SUPERVISOR)
        assert supervisor.status().metrics["read_only"] is True
        ballast.unlink()
        assert client.call("fill", 9999, 5000) is None
        assert supervisor.status().metrics["read_only"] is False
        acknowledged[9999] = None
        assert partition.end(signal.SIGKILL)[0] == -signal.SIGKILL
        partition.start()
        client = partition.peer()
        keys = list(acknowledged)
        assert client.call_many("get", [(key,) for key in keys]) == [0] * len(keys)
    finally:
        partition.tear_down()
        subprocess.run(["umount", "-l", small], check=True)


def test_damage_in_the_middle_of_the_wal_is_refused(partition: Partition) -> None:
    partition.start()
    client = partition.peer()
    for key in range(20):
        client.call("add", key, 1)
    partition.end(signal.SIGKILL)
    (segment,) = (partition.data / "partition-0").glob("wal-*.log")
    data = bytearray(segment.read_bytes())
    data[40 + 600] ^= 1
    segment.write_bytes(data)
    partition.start()
    status, said = partition.ended()
    assert status == 3
    assert segment.name in said
    assert "offset" in said
    assert "damaged" in said


@pytest.mark.parametrize("what", ["schema.json", "procedures.json", "source", "memory", "fsync"])
def test_what_does_not_allow_a_start_is_said(what: str, partition: Partition) -> None:
    expected = {"schema.json": 3, "procedures.json": 3, "source": 4, "memory": 4, "fsync": 2}[what]
    memory = 1 << 28
    if what in ("schema.json", "procedures.json"):
        (partition.data / what).write_text("{}")
    elif what == "source":
        broken = {"version": 1, "catalog_version": 1, "path": "/p.py", "source": "def ("}
        (partition.data / "procedures.json").write_bytes(msgspec.json.encode(broken))
    elif what == "memory":
        partition.start()
        partition.peer().call_many("fill", [(key, 5000) for key in range(50)])
        partition.end()
        memory = 5 * 8192
    partition.start(*(["--fsync", "sometimes"] if what == "fsync" else []), memory=memory)
    status, said = partition.ended()
    assert status == expected, said
    assert {"source": "not valid Python", "memory": "--memory", "fsync": "sometimes"}.get(what, what) in said


def test_a_cluster_without_procedures_starts(tmp_path: Path) -> None:
    partition = Partition(tmp_path / "data", procedures="")
    try:
        partition.start()
        assert partition.peer().call_many("get", [(1,)])[0].code == "UnknownProcedure"
        assert partition.peer().call("voltpy.load", 1, "accounts", [[1, 2], [1, 3]])[0][:2] == [1, "DuplicateKey"]
        assert partition.end()[0] == 0
    finally:
        partition.tear_down()


def test_a_second_process_on_the_same_data_is_refused(partition: Partition) -> None:
    partition.start()
    partition.peer()
    first = partition.process
    partition.start()
    status, said = partition.ended()
    assert status == 4, said
    assert "in use by another process" in said
    partition.process = first


def test_the_status_tells_of_the_buffer_pool(partition: Partition) -> None:
    partition.start()
    client, supervisor = partition.peer(), partition.peer(SUPERVISOR)
    assert client.call_many("fill", [(key, 5000) for key in range(50)]) == [None] * 50
    deadline_s = time.monotonic() + 20
    metrics: dict[str, Any] = {}
    while not metrics.get("buffer_pool_hit_ratio"):
        assert time.monotonic() < deadline_s, metrics
        client.call_many("get", [(key,) for key in range(50, 60)] + [(key,) for key in range(50)])
        metrics = dict(supervisor.status().metrics)
    assert metrics["buffer_pool_hit_ratio"] == 1.0
    assert metrics["buffer_pool_hits"] > 0
    assert metrics["buffer_pool_misses"] == 0
    assert 0.0 < metrics["buffer_pool_dirty_pages_ratio"] <= 1.0
    assert metrics["page_faults_per_second"] == metrics["eviction_rate_per_sec"] == 0.0
    assert metrics["memory_fragmentation_ratio"] > 0.5
    assert 0.0 < metrics["read_latency_us"]["resident"] < 10_000
    assert [source["source"] for source in metrics["warming"]] == ["heat", "keys", "schedule", "prefetch"]


# ----------------------------------------------------------------------------------------------------- the coordinator


def ordered(coordinator: Peer, number: int, *orders: Order) -> list[Report]:
    """What is reported of the session's next frame of orders."""
    coordinator.send(Orders(1, 1, number, list(orders)))
    reports = coordinator.receive()
    assert isinstance(reports, Reports)
    assert (reports.epoch, reports.session, reports.number) == (1, 1, number)
    return reports.reports


@pytest.mark.parametrize("stream", [False, True])
def test_what_was_voted_for_is_kept_through_a_kill_whatever_fsync_says(stream: bool, partition: Partition) -> None:
    partition.start("--fsync", "never")
    client, coordinator = partition.peer(), partition.peer(COORDINATOR, stream=stream)
    client.call("add", 1, 10)
    coordinator.send(Attach(1, 1))
    assert coordinator.receive() == Attached(1, 1, coordinator.incarnation, [])
    borrow = Borrow(5, [TableKeys(0, [_encode(1), _encode(2)])], [])
    assert ordered(coordinator, 1, borrow) == [Lent(5, [[_encode([1, 10, None]), None]], [])]
    waiting = client.group("add", [(1, 1)])
    client.send(Calls(1, [waiting]))
    changes = [TableChanges(0, [_encode([1, 11, None]), _encode([2, 22, None])], [])]
    assert ordered(coordinator, 2, Prepare(5, changes)) == [Vote(5, "")]
    assert client.hears_nothing()
    partition.end(signal.SIGKILL)

    partition.start("--fsync", "never")
    client, coordinator = partition.peer(), partition.peer(COORDINATOR, stream=stream)
    coordinator.send(Attach(1, 1))
    assert coordinator.receive() == Attached(1, 1, coordinator.incarnation, [5])
    assert client.call("add", 3, 1) == 1
    waiting = client.group("add", [(1, 1)])
    client.send(Calls(1, [waiting]))
    assert ordered(coordinator, 1, Decide(5, True)) == [Decided(5)]
    assert client.answers(1) == {waiting.numbers[0]: 12}
    assert client.call("get", 2) == 22
    assert partition.end()[0] == 0
