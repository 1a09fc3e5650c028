"""The coordinator's process, with its real sockets and decision log, among fake partitions at real doors."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
import zmq
from msgspec.structs import replace

from coordinator.server import Connection, Server
from coordinator.session import ATTACH_DUE_S, ATTACHED
from tests.coordinator.fake_partition import CLIENT, FakePartition, decode
from voltpy import heartbeat, wire
from voltpy.builtin import builtins
from voltpy.data_directory import DataDirectory, read_schema
from voltpy.door_sockets import Stream, listen, opened
from voltpy.link import StreamLink
from voltpy.messages import (
    NEVER_SENT,
    PROTOCOL_VERSION,
    Attach,
    BatchesHeld,
    CallGroup,
    Calls,
    Closing,
    Hello,
    HoldBatches,
    LoadPrepared,
    Orders,
    PartitionAddress,
    PrepareLoad,
    Replies,
    Reports,
    ResumeBatches,
    StatusReply,
    StatusRequest,
    SwitchLoad,
    Topology,
    Welcome,
)
from voltpy.row import encode
from voltpy.schema import Schema, to_json
from voltpy.sql.ddl_change import parse_change
from voltpy.stream import packed
from voltpy.wire import joined

TOKEN = "secret"
PROGRAM = [sys.executable, "-I", "-m", "coordinator", "transactions"]
WAIT_S = 20.0
SCHEMA_TEXT = """CREATE TABLE accounts (id INT PRIMARY KEY, balance INT NOT NULL DEFAULT 0);
PARTITION TABLE accounts ON COLUMN id;"""
PROCEDURES = """from voltpy import procedure

@procedure
def transfer(tx, source: int, target: int, amount: int) -> int:
    giver, taker = tx.accounts.get(source), tx.accounts.get(target)
    tx.accounts.update(source, balance=giver.balance - amount)
    tx.accounts.update(target, balance=taker.balance + amount)
    return giver.balance - amount

@procedure
def loop(tx) -> None:
    while True:
        pass
"""


class Partitions(threading.Thread):
    """Two fake partitions at their doors."""

    def __init__(self, runtime: Path, schema: Schema) -> None:
        super().__init__(daemon=True)
        self.context = zmq.Context()
        self.fakes = [FakePartition(number, schema) for number in (0, 1)]
        self.lock = threading.Lock()
        self.stopping = False
        self.streams: dict[int, Stream] = {}  # the coordinator's last one, by partition
        self._doors = [opened(self.context, runtime / f"p{number}", "127.0.0.1")[0] for number in (0, 1)]

    def run(self) -> None:
        while not self.stopping:
            for fake, door in zip(self.fakes, self._doors, strict=True):
                door.wait(0.002)
                while (arrived := door.receive()) is not None:
                    identity, frame = arrived
                    assert frame is not None
                    message = wire.decode(frame)
                    answer: Any = None
                    if isinstance(message, Hello):
                        assert (message.role, message.token) == ("coordinator", TOKEN)
                        assert isinstance(identity, Stream)
                        self.streams[fake.number] = identity
                        door.admit(identity)
                        answer = Welcome(PROTOCOL_VERSION, fake.incarnation, None)
                    elif isinstance(message, Attach | Orders):
                        with self.lock:
                            answer = fake.receive(message)
                    if answer is not None:
                        door.send(identity, wire.encode(answer))
        for door in self._doors:
            door.close(0)


class Peer:
    """Somebody at the coordinator's door."""

    def __init__(self, context: zmq.Context[Any], runtime: Path, role: str) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.connect(f"ipc://{runtime / 'p2'}")
        self.send(Hello(PROTOCOL_VERSION, CLIENT if role == "client" else 0, role, TOKEN if role != "client" else ""))
        self.epoch = self.receive(Welcome).incarnation
        self.catalog_version = 1

    def send(self, message: Any) -> None:
        self.socket.send(wire.encode(message))

    def receive(self, kind: type) -> Any:
        deadline_s = time.monotonic() + WAIT_S
        while time.monotonic() < deadline_s:
            if self.socket.poll(100):
                message = wire.decode(self.socket.recv())
                if isinstance(message, kind):
                    return message
        raise AssertionError(f"no {kind.__name__} came")

    def call(self, name: str, *arguments: Any, number: int, floor: int = NEVER_SENT) -> Replies:
        args = joined([encode(arguments)])
        self.send(Calls(self.catalog_version, [CallGroup(CLIENT, name, 2, self.epoch, [number], [0], args, floor)]))
        replies: Replies = self.receive(Replies)
        return replies


class Process:
    def __init__(self, tmp_path: Path) -> None:
        self.data = tmp_path / "data"
        self.runtime = tmp_path / "run"
        self.runtime.mkdir()
        (tmp_path / "p.py").write_text(PROCEDURES)
        with DataDirectory.open(self.data, 2, SCHEMA_TEXT, tmp_path / "p.py") as directory:
            self.schema = directory.schema
        self.partitions = Partitions(self.runtime, self.schema)
        for key in range(20):
            home = self.partitions.fakes[0]
            home.rows[0, encode(key)] = encode([key, 100])
        # Both have all rows: which one a key lives in is the coordinator's to know.
        self.partitions.fakes[1].rows.update(self.partitions.fakes[0].rows)
        self.partitions.start()
        self.context = self.partitions.context
        self.child: subprocess.Popen[str] | None = None

    def start(self, *options: str, **environment: str) -> None:
        heartbeat.create(heartbeat.path_in(self.runtime, 2))
        self.child = subprocess.Popen(
            [
                *PROGRAM, "--data", str(self.data), "--partitions", "2", "--runtime", str(self.runtime),
                "--host", "127.0.0.1", "--procedure-timeout", "0.5", *options,
            ],
            env={**os.environ, "VOLTPY_TOKEN": TOKEN, **environment},
            stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        deadline_s = time.monotonic() + WAIT_S
        while not (self.runtime / "p2.s").exists() and time.monotonic() < deadline_s and self.child.poll() is None:
            time.sleep(0.01)
        self.supervisor = Peer(self.context, self.runtime, "supervisor")
        addresses = [PartitionAddress(number, 1, str(self.runtime / f"p{number}"), 0, 0) for number in (0, 1)]
        self.supervisor.send(Topology(1, 1, "", str(self.runtime), addresses, [], []))

    def kill(self) -> None:
        assert self.child is not None
        self.child.kill()
        self.ended()
        (self.runtime / "p2.s").unlink()

    def ended(self) -> tuple[int, str]:
        assert self.child is not None
        _, errors = self.child.communicate(timeout=WAIT_S)
        return self.child.returncode, errors

    def client(self) -> Peer:
        return Peer(self.context, self.runtime, "client")

    def status(self) -> StatusReply:
        self.supervisor.send(StatusRequest(1))
        reply: StatusReply = self.supervisor.receive(StatusReply)
        return reply

    def close(self) -> None:
        if self.child is not None and self.child.poll() is None:
            self.child.kill()
            self.ended()
        self.partitions.stopping = True
        self.partitions.join()
        self.context.destroy(linger=0)


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    made = Process(tmp_path)
    yield made
    made.close()


def eventually(condition: Callable[[], Any]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def result_of(replies: Replies) -> Any:
    assert not replies.errors, replies.errors
    return decode(replies.groups[0].results)[0]


def test_a_transfer_is_committed_answered_and_remembered_over_a_kill(process: Process) -> None:
    process.start()
    client = process.client()
    replies = client.call("transfer", 1, 2, 30, number=1)
    assert (replies.partition, replies.incarnation) == (2, 1)
    assert result_of(replies) == 70
    status = process.status()
    assert (status.incarnation, status.lsn) == (1, replies.lsn)
    assert {info.name for info in status.procedures} == {"transfer", "loop", *builtins()}
    assert status.metrics["batches"] == 1
    assert status.metrics["calls"] == 1
    eventually(lambda: process.status().metrics["in_doubt"] == 0)
    process.kill()
    process.start()
    client = process.client()
    assert client.epoch == 2
    assert result_of(client.call("transfer", 1, 2, 30, number=1, floor=0)) == 70
    assert result_of(client.call("transfer", 1, 2, 5, number=2)) == 65
    process.supervisor.send(StatusRequest(2))
    assert process.supervisor.receive(StatusReply).incarnation == 2


def test_sigterm_ends_it_with_status_0(process: Process) -> None:
    process.start()
    client = process.client()
    client.call("transfer", 1, 2, 30, number=1)
    assert process.child is not None
    process.child.send_signal(signal.SIGTERM)
    status, errors = process.ended()
    assert status == 0, errors
    assert client.receive(Closing) == Closing("the coordinator is stopping")


def test_a_procedure_that_runs_too_long_is_ended_and_a_runaway_not_run_again(process: Process) -> None:
    process.start("--runaway", f"{CLIENT}:9:loop")
    client = process.client()
    assert client.call("loop", number=1).errors[0].code == "ProcedureTimeout"
    assert client.call("loop", number=9, floor=0).errors[0].code == "ProcedureTimeout"
    assert result_of(client.call("transfer", 1, 2, 30, number=2)) == 70


def test_procedures_are_loaded_and_batches_held_for_the_supervisor(process: Process) -> None:
    process.start()
    supervisor = process.supervisor
    source = "from voltpy import procedure\n\n@procedure\ndef zero(tx) -> int:\n    return 0\n"
    supervisor.send(PrepareLoad(2, "not python", "/p.py"))
    assert supervisor.receive(LoadPrepared).error
    supervisor.send(PrepareLoad(2, source, "/p.py"))
    assert [info.name for info in supervisor.receive(LoadPrepared).procedures][-1] == "zero"
    supervisor.send(SwitchLoad(2))
    assert supervisor.receive(StatusReply).catalog_version == 2
    supervisor.send(HoldBatches(4, 30.0))
    assert supervisor.receive(BatchesHeld).snapshot == 4
    client = process.client()
    client.send(Calls(2, [CallGroup(CLIENT, "zero", 2, client.epoch, [1], [0], joined([encode(())]))]))
    eventually(lambda: process.status().metrics["waiting"] == 1)
    supervisor.send(ResumeBatches(4))
    assert result_of(client.receive(Replies)) == 0


def test_a_hold_that_is_over_ends_a_process_that_does_not_know_which_schema_is_stored(process: Process) -> None:
    process.start()
    supervisor = process.supervisor
    schema, _ = parse_change("ALTER TABLE accounts ADD COLUMN note STRING", read_schema(process.data))
    supervisor.send(PrepareLoad(2, "", "", to_json(replace(schema, catalog_version=2))))
    assert not supervisor.receive(LoadPrepared).error
    supervisor.send(HoldBatches(4, 0.05))
    status, errors = process.ended()
    assert status == 0, errors
    assert "schema_in_doubt" in errors


def test_a_connection_that_ends_is_replaced_at_once(process: Process) -> None:
    process.start()
    client = process.client()
    assert result_of(client.call("transfer", 1, 2, 30, number=1)) == 70
    first = process.partitions.streams[1]
    began_s = time.monotonic()
    first.socket.shutdown(socket.SHUT_RDWR)
    eventually(lambda: process.partitions.streams[1] is not first)
    assert result_of(client.call("transfer", 1, 2, 5, number=2)) == 65
    assert time.monotonic() - began_s < ATTACH_DUE_S  # nothing had to become overdue
    assert set(process.partitions.streams) == {0, 1}


class Shut:
    """A listener that hangs up on whoever knocks, as one with too many streams does."""

    def __init__(self, listener: socket.socket) -> None:
        self.listener = listener
        self.fileno = listener.fileno
        self.close = listener.close
        self.knocks = 0

    def accept(self) -> NoReturn:
        accepted, _ = self.listener.accept()
        accepted.close()
        self.knocks += 1
        raise ConnectionAbortedError(errno.ECONNABORTED, "hung up")


def test_a_partition_that_hangs_up_is_not_called_again_and_again(process: Process) -> None:
    doors = process.partitions._doors
    shut = [Shut(door._listener) for door in doors]
    for door, listener in zip(doors, shut, strict=True):
        door._listener = listener  # type: ignore[assignment]
    process.start()
    eventually(lambda: all(listener.knocks for listener in shut))
    began_s = time.monotonic()
    turns = 0
    while turns < 200 and time.monotonic() - began_s < ATTACH_DUE_S / 2:
        process.status()
        turns += 1
    assert max(listener.knocks for listener in shut) <= 2
    for door, listener in zip(doors, shut, strict=True):
        door._listener = listener.listener
    assert result_of(process.client().call("transfer", 1, 2, 30, number=1)) == 70


def test_a_crash_between_decision_and_decide_is_settled_by_the_next_life(process: Process) -> None:
    process.start(VOLTPY_CRASH_POINT="decision_log.write.flushed")
    client = process.client()
    client.send(Calls(1, [CallGroup(CLIENT, "transfer", 2, client.epoch, [1], [0], joined([encode((1, 2, 30))]))]))
    status, errors = process.ended()
    assert status == -signal.SIGKILL, errors
    (process.runtime / "p2.s").unlink()
    process.start()
    eventually(lambda: process.status().metrics["in_doubt"] == 0)
    assert not any(fake.prepared for fake in process.partitions.fakes)
    assert result_of(process.client().call("transfer", 1, 2, 30, number=1, floor=0)) == 70


def test_a_damaged_decision_log_ends_it_with_status_3(process: Process) -> None:
    process.start()
    client = process.client()
    for number in (1, 2, 3):
        client.call("transfer", 1, 2, 1, number=number)
    process.kill()
    (segment,) = (process.data / "coordinator").glob("decisions-*.log")
    data = bytearray(segment.read_bytes())
    data[90] ^= 0xFF
    segment.write_bytes(data)
    run = subprocess.run(
        [
            *PROGRAM, "--data", str(process.data), "--partitions", "2", "--runtime", str(process.runtime),
            "--host", "127.0.0.1", "--procedure-timeout", "1",
        ],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )  # fmt: skip
    assert (run.returncode, "damaged" in run.stderr) == (3, True), run.stderr


@pytest.mark.parametrize("last", [b"", packed(wire.encode(Reports(1, 1, 1, []))), b"\0"], ids=["", "frame", "part"])
def test_a_round_is_not_believed_whose_partition_has_ended_right_behind_what_it_sent_last(
    last: bytes, tmp_path: Path
) -> None:
    context = zmq.Context()
    sockets, _ = opened(context, tmp_path / "p1", "127.0.0.1")
    listener = listen(str(tmp_path / "p0.s"))
    happened: list[str] = []
    core: Any = SimpleNamespace(
        epoch=1,
        bodies=SimpleNamespace(plan_with=lambda plan_of: None),
        sessions=[SimpleNamespace(connection=1, state=ATTACHED)],
        receive=lambda partition, message, now_s: None,
        connection_lost=lambda partition, now_s: happened.append("lost"),
        believe=lambda now_s: happened.append("believed"),
    )
    nothing: Any = None
    server = Server(sockets, 0, "", nothing, core, nothing, nothing, nothing, nothing, lambda schema: nothing)
    link = StreamLink(0, 1, str(tmp_path / "p0.s"), 0.0)
    server._connections[0] = Connection(1, link)
    server._watch(link)
    partition, _ = listener.accept()
    server._believe()
    assert happened == ["believed"]
    partition.sendall(last)
    partition.close()
    server._believe()
    assert happened == ["believed", "lost", "believed"]
    listener.close()
    sockets.close(0)
    context.destroy(linger=0)
