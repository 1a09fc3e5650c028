"""Stand-ins for router, partitions and coordinator, as processes: they speak the messages and do nothing else.

    stand_in.py cluster DATA [PARTITIONS] [TIMEOUT_S]     the real supervisor over stand-in children
    stand_in.py router …, stand_in.py partition …,        the children, with the real command lines
    stand_in.py coordinator …

What a partition does wrong is in DATA/behaviour-<partition>.json, read at each of its starts, and what the coordinator
does in that with the number after the last. All of these write what they hear, but for questions, to
DATA/heard-<number>.jsonl: the message's name and, where there is one, a number.
`exit` (status) with `message`, `stuck` [client id, call number], `deaf` (ignores SIGTERM), `refuse` (why a load fails),
`says` (lines on stdout before it serves), `once` (the next start behaves).
"""

from __future__ import annotations

import json
import os
import signal
import socket as sockets
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zmq

from voltpy import heartbeat, wire
from voltpy.messages import (
    Admin,
    AdminReply,
    BatchesHeld,
    CheckpointBegun,
    CheckpointHeld,
    CheckpointReleased,
    Hello,
    HoldBatches,
    HoldCheckpoint,
    LoadPrepared,
    Message,
    PrepareLoad,
    ProcedureInfo,
    ReleaseCheckpoint,
    StatusReply,
    StatusRequest,
    SwitchLoad,
    Topology,
    Welcome,
)
from voltpy.parent_death import SUPERVISOR, die_with_parent
from voltpy.schema import Schema


class Directory:
    """As much of a data directory as the supervisor asks for."""

    def __init__(self, path: Path, partitions: int) -> None:
        self.path = path
        self.cluster_id = "c1"
        self.partitions = partitions
        self.schema = Schema((), ())
        self.schema_sql = ""
        self.catalog_version = 1

    def write_procedures(self, catalog_version: int, path: str, source: str) -> None:
        if "disk full" in source:
            raise OSError("No space left on device")
        if "not flushed" in source:
            from voltpy.data_directory import Unflushed  # here, so that children start faster

            raise Unflushed("procedures.json is new, and could not be flushed")
        (self.path / "procedures.json").write_text(json.dumps([catalog_version, path, source]))
        self.catalog_version = catalog_version


def run_cluster(data: Path, partitions: int, timeout_s: float) -> None:
    # Imported here: the children, of which there are many, start faster without.
    from voltpy import events
    from voltpy.cluster import Cluster, Options

    events.configure()
    program = data / "python"  # a test may take it away for a while
    stand_in = (str(program) if program.exists() else sys.executable, __file__)
    Cluster(
        Directory(data, partitions),
        Options(port=0, procedure_timeout_s=timeout_s),
        lambda url: print(f"ready {url}", flush=True),
        router_command=(*stand_in, "router"),
        partition_command=(*stand_in, "partition"),
        coordinator_command=(*stand_in, "coordinator"),
    ).run()


def argument(name: str) -> str:
    return sys.argv[sys.argv.index(name) + 1]


def frames(socket: zmq.Socket[bytes], deaf: bool = False) -> Iterator[list[bytes]]:
    """What arrives, until SIGTERM.

    A signal that comes between the interpreter's last look for one and the wait for a frame would be seen with the next
    frame only, and who is being stopped gets none: killed after the grace period, it never prints what it had said. So
    a signal is a byte to wait for.
    """
    wakeup, writer = sockets.socketpair()
    writer.setblocking(False)
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, signal.SIG_IGN if deaf else lambda number, _: stopping.append(number))
    signal.set_wakeup_fd(writer.fileno())
    poller = zmq.Poller()
    poller.register(socket, zmq.POLLIN)
    poller.register(wakeup, zmq.POLLIN)
    while not stopping:
        if socket in dict(poller.poll()):
            yield socket.recv_multipart()


def run_router() -> None:
    socket: zmq.Socket[bytes] = zmq.Context().socket(zmq.ROUTER)
    socket.linger = 200
    socket.bind(f"ipc://{argument('--runtime')}/r")
    port = int(argument("--port"))
    try:
        socket.bind(f"tcp://127.0.0.1:{port or '*'}")
    except zmq.ZMQError:
        print(f"port {port} is taken", file=sys.stderr)
        sys.exit(5)
    port = int(socket.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2])
    supervisor, topology = b"", None
    asked: dict[int, tuple[bytes, int]] = {}
    for identity, frame in frames(socket):
        message = wire.decode(frame)
        answers: list[tuple[bytes, Message]] = []
        match message:
            case Hello(role="supervisor"):
                assert message.token == os.environ["VOLTPY_TOKEN"]
                supervisor = identity
            case Hello():
                answers = [(identity, Welcome(1, 0, topology))]
            case StatusRequest():
                answers = [(identity, StatusReply(message.number, 0, 0, 0, port, [], {"os_pid": os.getpid()}))]
            case Topology():
                topology = message
            case Admin():
                asked[len(asked) + 1] = (identity, message.number)
                answers = [(supervisor, Admin(len(asked), message.command, message.body))]
            case AdminReply():
                client, number = asked[message.number]
                answers = [(client, AdminReply(number, message.error, message.body))]
        for target, answer in answers:
            socket.send_multipart([target, wire.encode(answer)])


def run_worker(partition: int) -> None:
    """A partition, or the coordinator: what only one of them is asked the other never hears."""
    data = Path(argument("--data"))
    runtime = Path(argument("--runtime"))
    path = data / f"behaviour-{partition}.json"
    behaviour: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if behaviour.get("once"):
        path.unlink()
    with (data / f"started-{partition}.jsonl").open("a") as file:
        file.write(json.dumps(sys.argv[2:]) + "\n")
    if "exit" in behaviour:
        print(behaviour.get("message", ""), file=sys.stderr)
        sys.exit(behaviour["exit"])
    incarnation = len((data / f"started-{partition}.jsonl").read_text().splitlines())
    catalog_version = 1
    if (data / "procedures.json").exists():
        catalog_version = json.loads((data / "procedures.json").read_text())[0]
    infos = [ProcedureInfo("vote", [0], False, False, [], "")]
    socket: zmq.Socket[bytes] = zmq.Context().socket(zmq.ROUTER)
    socket.linger = 0
    socket.bind(f"ipc://{runtime}/p{partition}")
    for number in range(behaviour.get("says", 0)):
        print(f"partition {partition} says line {number}", "." * 100)
    print("partition", partition, "serves", flush=True)  # goes to the supervisor's stderr, never to its stdout
    heard = (data / f"heard-{partition}.jsonl").open("a")
    for identity, frame in frames(socket, behaviour.get("deaf", False)):
        message = wire.decode(frame)
        if not isinstance(message, StatusRequest):
            number = getattr(message, "epoch", getattr(message, "snapshot", getattr(message, "version", 0)))
            heard.write(json.dumps([type(message).__name__, number]) + "\n")
            heard.flush()
        replies: list[Message] = []
        match message:
            case StatusRequest():
                replies = [StatusReply(message.number, incarnation, 5, catalog_version, 0, infos, {"calls": 0})]
                if "stuck" in behaviour:
                    words = heartbeat.open_words(heartbeat.path_in(runtime, partition))
                    words[0], words[1] = behaviour["stuck"]
                    words[2] = 1
            case PrepareLoad():
                replies = [LoadPrepared(message.catalog_version, behaviour.get("refuse", ""), infos)]
            case SwitchLoad():
                catalog_version = message.catalog_version
            case HoldBatches():
                replies = [BatchesHeld(message.snapshot)]
            case HoldCheckpoint():
                begun = CheckpointBegun(message.snapshot)
                replies = [begun, CheckpointHeld(message.snapshot, "", 3, 40 + partition, incarnation)]
            case ReleaseCheckpoint():
                replies = [CheckpointReleased(message.snapshot, True)]
        for reply in replies:
            socket.send_multipart([identity, wire.encode(reply)])


if __name__ == "__main__":
    match sys.argv[1]:
        case "cluster":
            run_cluster(Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
        case "router":
            die_with_parent(int(os.environ[SUPERVISOR]))
            run_router()
        case "partition":
            die_with_parent(int(os.environ[SUPERVISOR]))
            run_worker(int(argument("--partition")))
        case "coordinator":
            die_with_parent(int(os.environ[SUPERVISOR]))
            run_worker(int(argument("--partitions")))
