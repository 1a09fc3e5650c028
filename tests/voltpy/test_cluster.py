"""The supervisor over real processes: stand-ins that speak the messages (see stand_in.py)."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from tests.readable import readable
from voltpy import wire
from voltpy.cluster import loopback, with_huge_pages
from voltpy.errors import ClusterError
from voltpy.messages import PROTOCOL_VERSION, Admin, AdminReply, Hello, Message, Welcome

DEADLINE_S = 15.0
STAND_IN = Path(__file__).with_name("stand_in.py")


def eventually(condition: Callable[[], Any]) -> Any:
    """What the condition gives as soon as it is true."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.01)
    raise AssertionError("it did not happen in time")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Running:
    """A cluster of stand-ins, and a client of its router."""

    def __init__(self, data: Path, partitions: int = 2, timeout_s: float = 5.0, stderr: int | None = None) -> None:
        self.data = data
        command = [sys.executable, str(STAND_IN), "cluster", str(data), str(partitions), str(timeout_s)]
        self.errors = (data / "stderr").open("w+b")
        errors = self.errors if stderr is None else stderr
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors)
        self.number = 0

    def ready(self) -> Running:
        assert self.process.stdout is not None
        assert readable(self.process.stdout, DEADLINE_S), "it is not ready"
        line = self.process.stdout.readline().decode()
        assert line.startswith("ready voltpy://127.0.0.1:"), self.stderr()
        self.port = int(line.rpartition(":")[2])
        return self

    def stderr(self) -> str:
        return (self.data / "stderr").read_text()

    def events(self, name: str) -> list[dict[str, Any]]:
        lines = [line for line in self.stderr().splitlines() if line.startswith("{")]
        return [event for event in map(json.loads, lines) if event["event"] == name]

    def ask(self, *messages: Message) -> Message:
        """Sends messages on a new connection; the answer to the last one."""
        context = zmq.Context()
        dealer: zmq.Socket[bytes] = context.socket(zmq.DEALER)
        dealer.linger = 0
        dealer.connect(f"tcp://127.0.0.1:{self.port}")
        for message in messages:
            dealer.send(wire.encode(message))
        answered = dealer.poll(int(DEADLINE_S * 1000))
        answer = wire.decode(dealer.recv()) if answered else None
        context.destroy()
        assert answer is not None, self.stderr()
        return answer

    def admin(self, command: str, **body: Any) -> AdminReply:
        self.number += 1
        reply = self.ask(Admin(self.number, command, body))
        assert isinstance(reply, AdminReply)
        assert reply.number == self.number
        return reply

    def status(self) -> dict[str, Any]:
        reply = self.admin("status")
        assert reply.error == ""
        return reply.body

    def partition(self, number: int) -> dict[str, Any]:
        status: dict[str, Any] = self.status()["partitions"][number]
        return status

    def topology(self) -> Any:
        welcome = self.ask(Hello(PROTOCOL_VERSION, 99))
        assert isinstance(welcome, Welcome)
        return welcome.topology

    def pids(self) -> list[int]:
        status = self.status()
        children = [status["router"], *status["partitions"], status["coordinator"]]
        return [self.process.pid, *(child["pid"] for child in children)]

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(DEADLINE_S)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    started: list[Running] = []

    def begin(**options: Any) -> Running:
        started.append(Running(tmp_path, **options))
        return started[-1]

    yield begin
    for running in started:
        running.process.kill()
        running.process.wait()
        running.errors.close()
        if running.process.stdout is not None:
            running.process.stdout.close()


def behave(data: Path, partition: int, **behaviour: Any) -> None:
    (data / f"behaviour-{partition}.json").write_text(json.dumps(behaviour))


def heard(data: Path, number: int) -> list[list[Any]]:
    return [json.loads(line) for line in (data / f"heard-{number}.jsonl").read_text().splitlines()]


def starts(data: Path, partition: int) -> list[list[str]]:
    path = data / f"started-{partition}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_cluster_serves_describes_itself_and_leaves_nothing_behind(
    start: Callable[..., Running], tmp_path: Path
) -> None:
    running = start().ready()
    status = running.status()
    assert status["url"] == f"voltpy://127.0.0.1:{running.port}"
    assert [p["state"] for p in status["partitions"]] == ["serving", "serving"]
    assert all(p["rss_bytes"] > 1 << 20 and p["cpu_s"] >= 0.0 for p in status["partitions"])
    assert status["router"]["metrics"] == {"os_pid": status["router"]["pid"]}
    topology = running.topology()
    assert [(p.partition, p.incarnation, p.lsn) for p in topology.partitions] == [(0, 1, 5), (1, 1, 5)]
    runtime = Path(topology.runtime_directory)
    assert runtime.stat().st_mode & 0o777 == 0o700
    assert (runtime / "cluster_id").read_text() == topology.cluster_id == "c1"
    assert (tmp_path / "RUNTIME").read_text() == str(runtime)
    [arguments] = starts(tmp_path, 1)
    options = dict(zip(arguments[::2], arguments[1::2], strict=True))
    assert options["--partition"] == "1"
    assert (options["--fsync"], options["--memory"], options["--host"]) == ("always", str(1 << 29), "127.0.0.1")
    assert int(options["--core"]) in os.sched_getaffinity(0)
    pids = running.pids()
    tunables = [b"\0GLIBC_TUNABLES=" in Path(f"/proc/{p['pid']}/environ").read_bytes() for p in status["partitions"]]
    assert tunables == [True, True]
    assert running.stop() == 0
    assert not any(map(alive, pids))
    assert not runtime.exists()
    assert not (tmp_path / "RUNTIME").exists()
    assert running.process.stdout is not None
    assert running.process.stdout.read() == b""  # nothing but the ready line
    assert "partition 1 serves" in running.stderr()


def test_a_killed_partition_comes_back_under_a_new_incarnation(start: Callable[..., Running]) -> None:
    running = start().ready()
    before = running.partition(0)
    os.kill(before["pid"], signal.SIGKILL)
    after = eventually(lambda: (p := running.partition(0)) and p["incarnation"] == 2 and p)
    assert after["pid"] != before["pid"]
    assert (after["state"], after["restarts"]) == ("serving", 1)
    assert eventually(lambda: [p.incarnation for p in running.topology().partitions] == [2, 1])


def test_a_killed_router_comes_back_at_the_same_port_and_knows_the_topology(start: Callable[..., Running]) -> None:
    running = start().ready()
    version = running.topology().version
    os.kill(running.status()["router"]["pid"], signal.SIGKILL)
    topology = eventually(running.topology)
    assert [p.incarnation for p in topology.partitions] == [1, 1]
    assert topology.version >= version
    assert running.status()["router"]["restarts"] == 1


COORDINATOR = 2


def test_a_coordinator_is_started_told_of_the_cluster_and_started_again(
    start: Callable[..., Running], tmp_path: Path
) -> None:
    running = start().ready()
    [arguments] = starts(tmp_path, COORDINATOR)
    options = dict(zip(arguments[::2], arguments[1::2], strict=True))
    runtime = running.topology().runtime_directory
    assert options == {
        "--data": str(tmp_path),
        "--partitions": "2",
        "--runtime": runtime,
        "--host": "127.0.0.1",
        "--memory": str(1 << 29),
        "--procedure-timeout": "5.0",
    }
    assert (Path(runtime) / "heartbeat-2").exists()
    assert ["Topology"] in [message[:1] for message in heard(tmp_path, COORDINATOR)]
    before = running.status()["coordinator"]
    assert (before["state"], before["incarnation"]) == ("serving", 1)
    assert running.topology().coordinator.ipc_path == f"{runtime}/p2"
    os.kill(before["pid"], signal.SIGKILL)
    eventually(lambda: running.topology().coordinator.incarnation == 2)
    eventually(lambda: all(["Detach", 1] in heard(tmp_path, number) for number in (0, 1)))
    assert running.status()["coordinator"]["restarts"] == 1
    assert running.stop() == 0


def test_a_runaway_in_the_coordinator_is_named_to_the_next_one(start: Callable[..., Running], tmp_path: Path) -> None:
    behave(tmp_path, COORDINATOR, stuck=[4242, 17], once=True)
    running = start(timeout_s=0.2).ready()
    eventually(lambda: len(starts(tmp_path, COORDINATOR)) == 2)
    arguments = starts(tmp_path, COORDINATOR)[1]
    assert arguments[arguments.index("--runaway") + 1] == "4242:17:vote"
    eventually(lambda: running.topology().runaways)
    assert running.partition(0)["restarts"] == 0


def test_a_coordinator_that_refuses_the_first_start_ends_it(start: Callable[..., Running], tmp_path: Path) -> None:
    behave(tmp_path, COORDINATOR, exit=3, message="decisions-1.log: damaged at offset 77")
    running = start()
    assert running.process.wait(DEADLINE_S) != 0
    assert "coordinator can't start: decisions-1.log: damaged at offset 77" in running.stderr()


def test_a_snapshot_is_cut_between_two_batches(start: Callable[..., Running], tmp_path: Path) -> None:
    running = start().ready()
    reply = running.admin("begin_snapshot", directory="/s", pid=1, lease_s=60.0)
    number = reply.body["snapshot"]
    eventually(lambda: running.admin("renew_snapshot", snapshot=number).body["state"] == "held")
    eventually(lambda: ["ResumeBatches", number] in heard(tmp_path, COORDINATOR))
    told = [message for message in heard(tmp_path, COORDINATOR) if message[1] == number]
    assert told == [["HoldBatches", number], ["ResumeBatches", number]]
    assert ["HoldCheckpoint", number] in heard(tmp_path, 1)
    running.admin("end_snapshot", snapshot=number)
    assert eventually(lambda: running.admin("renew_snapshot", snapshot=number).body["state"] == "released")


def test_a_closed_terminal_is_a_clean_stop(start: Callable[..., Running]) -> None:
    running = start().ready()
    pids = running.pids()
    running.process.send_signal(signal.SIGHUP)
    assert running.process.wait(DEADLINE_S) == 0
    assert not any(map(alive, pids))


def test_children_do_not_outlive_a_stop_that_they_ignore(start: Callable[..., Running], tmp_path: Path) -> None:
    behave(tmp_path, 1, deaf=True)
    running = start().ready()
    pids = running.pids()
    running.process.send_signal(signal.SIGINT)
    eventually(lambda: not alive(pids[2]))
    assert running.process.poll() is None
    running.process.send_signal(signal.SIGINT)  # the second Ctrl-C waits for nobody
    assert running.process.wait(DEADLINE_S) == 0
    assert not any(map(alive, pids))


@pytest.mark.parametrize(
    ("status", "message"), [(3, "segment 4: damaged at offset 77"), (4, "there is no table votes")]
)
def test_a_partition_that_refuses_the_first_start_ends_it(
    start: Callable[..., Running], tmp_path: Path, status: int, message: str
) -> None:
    behave(tmp_path, 1, exit=status, message=message)
    running = start()
    assert running.process.wait(DEADLINE_S) != 0
    assert f"partition 1 can't start: {message}" in running.stderr()
    assert len(starts(tmp_path, 1)) == 1


def test_a_partition_that_refuses_later_fails_alone(start: Callable[..., Running], tmp_path: Path) -> None:
    running = start().ready()
    behave(tmp_path, 1, exit=3, message="damaged")
    os.kill(running.partition(1)["pid"], signal.SIGKILL)
    failed = eventually(lambda: (p := running.partition(1)) and p["state"] == "failed" and p)
    assert (failed["exit_status"], failed["last_words"]) == (3, "damaged")
    assert running.partition(0)["state"] == "serving"
    assert [p.incarnation for p in running.topology().partitions] == [1, 0]
    assert running.stop() == 0


def test_a_partition_that_flaps_is_started_again_until_it_serves(start: Callable[..., Running], tmp_path: Path) -> None:
    running = start().ready()
    behave(tmp_path, 0, exit=1, message="MemoryError")
    os.kill(running.partition(0)["pid"], signal.SIGKILL)
    eventually(lambda: len(starts(tmp_path, 0)) >= 4)
    exits = running.events("exited")[:3]
    assert [event["restart_in_s"] for event in exits] == [0.0, 0.1, 0.2]
    assert [event["reason"] for event in exits] == ["killed by SIGKILL", "MemoryError", "MemoryError"]
    (tmp_path / "behaviour-0.json").unlink()
    assert eventually(lambda: running.partition(0)["state"] == "serving")


def test_a_partition_that_no_process_can_be_had_for_is_started_when_there_is_one(
    start: Callable[..., Running], tmp_path: Path
) -> None:
    program, away = tmp_path / "python", tmp_path / "away"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    program.chmod(0o700)
    running = start().ready()
    program.rename(away)
    pid = running.partition(1)["pid"]
    os.kill(pid, signal.SIGKILL)
    failed = eventually(lambda: [event for event in running.events("exited") if event["exit_status"] is None][2:])
    assert "no process can be started: " in failed[0]["reason"]
    assert failed[0]["restart_in_s"] > 0
    partition = running.partition(1)
    assert (partition["state"], partition["pid"]) == ("backoff", 0)
    assert "no process can be started: " in partition["last_words"]
    assert running.partition(0)["state"] == "serving"
    away.rename(program)
    eventually(lambda: running.partition(1)["state"] == "serving")
    assert len(starts(tmp_path, 1)) == 2
    assert running.stop() == 0


def test_a_first_start_for_which_no_process_can_be_had_says_so(start: Callable[..., Running], tmp_path: Path) -> None:
    (tmp_path / "python").write_text("no program\n")
    running = start()
    assert running.process.wait(DEADLINE_S) == 1
    assert "ended 5 times while starting: no process can be started: " in running.stderr()


def test_a_reader_that_stalls_does_not_stall_the_supervisor(start: Callable[..., Running], tmp_path: Path) -> None:
    reader, writer = os.pipe()
    for partition in (0, 1):
        behave(tmp_path, partition, says=10_000)
    running = start(stderr=writer)
    os.close(writer)
    running.ready()
    pid = running.partition(1)["pid"]
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: running.partition(1)["restarts"] == 1 and running.partition(1)["state"] == "serving")
    said = b""
    while b"lines_dropped" not in said:
        said += os.read(reader, 1 << 16)
    while not said.endswith(b"\n"):
        said += os.read(reader, 1 << 16)
    event = json.loads(next(line for line in said.splitlines() if b"lines_dropped" in line))
    assert event["level"] == "warning"
    # Three starts say 10,000 lines each, and what is lost is whole: the counts agree.
    assert len(re.findall(rb"says line", said)) + event["lines"] >= 30_000
    os.kill(running.partition(0)["pid"], signal.SIGKILL)
    while b'"exited"' not in said:
        said += os.read(reader, 1 << 16)
    os.close(reader)  # and one who leaves does not end it
    os.kill(running.partition(0)["pid"] or running.process.pid, 0)
    eventually(lambda: running.partition(0)["state"] == "serving" and running.partition(0)["restarts"] == 1)
    assert running.stop() == 0


def test_a_runaway_costs_its_partition_and_is_named_to_the_next_process(
    start: Callable[..., Running], tmp_path: Path
) -> None:
    behave(tmp_path, 1, stuck=[4242, 17], once=True)
    running = start(timeout_s=0.2).ready()
    eventually(lambda: len(starts(tmp_path, 1)) == 2)
    arguments = starts(tmp_path, 1)[1]
    assert arguments[arguments.index("--runaway") + 1] == "4242:17:vote"
    assert eventually(lambda: running.partition(1)["incarnation"] == 2)
    [call] = running.topology().runaways
    assert (call.client_id, call.call_number, call.procedure) == (4242, 17, "vote")
    assert running.partition(0)["restarts"] == 0


def test_new_procedures_are_stored_and_switched_everywhere(start: Callable[..., Running], tmp_path: Path) -> None:
    running = start().ready()
    reply = running.admin("load_procedures", source="x = 1", path="p.py")
    assert (reply.error, reply.body) == ("", {"catalog_version": 2, "procedures": ["vote"]})
    assert json.loads((tmp_path / "procedures.json").read_text()) == [2, "p.py", "x = 1"]
    assert running.topology().catalog_version == 2
    os.kill(running.partition(0)["pid"], signal.SIGKILL)
    assert eventually(lambda: running.partition(0)["incarnation"] == 2)
    assert running.topology().catalog_version == 2


def test_procedures_that_one_partition_or_the_disk_refuses_change_nothing(
    start: Callable[..., Running], tmp_path: Path
) -> None:
    behave(tmp_path, 1, refuse="line 3: no such table")
    running = start().ready()
    reply = running.admin("load_procedures", source="x = 1", path="p.py")
    assert (reply.error, reply.body["message"]) == ("SchemaError", "line 3: no such table")
    (tmp_path / "behaviour-1.json").unlink()
    os.kill(running.partition(1)["pid"], signal.SIGKILL)
    eventually(lambda: running.partition(1)["incarnation"] == 2)
    reply = running.admin("load_procedures", source="disk full", path="p.py")
    assert reply.error == "ClusterError"
    assert "No space left" in reply.body["message"]
    assert not (tmp_path / "procedures.json").exists()
    assert running.topology().catalog_version == 1


def test_a_supervisor_that_can_not_flush_what_it_stores_ends_and_answers_nothing(
    start: Callable[..., Running],
) -> None:
    running = start().ready()
    context = zmq.Context()
    dealer: zmq.Socket[bytes] = context.socket(zmq.DEALER)
    dealer.linger = 0
    dealer.connect(f"tcp://127.0.0.1:{running.port}")
    for message in (Hello(PROTOCOL_VERSION, 5), Admin(1, "load_procedures", {"source": "not flushed", "path": "p.py"})):
        dealer.send(wire.encode(message))
    assert running.process.wait(DEADLINE_S) != 0
    answers = [wire.decode(dealer.recv()) for _ in iter(lambda: dealer.poll(0), 0)]
    assert not any(isinstance(answer, AdminReply) for answer in answers)
    context.destroy()
    assert "could not be flushed" in running.stderr()


def test_wrong_admin_commands_are_refused_and_the_schema_is_told(start: Callable[..., Running]) -> None:
    running = start().ready()
    assert running.admin("dance").error == "BadArguments"
    assert running.admin("load_procedures", source=3).error == "BadArguments"
    assert running.admin("change_schema", text=3).error == "BadArguments"
    refused = running.admin("change_schema", text="DROP TABLE nothing")
    assert (refused.error, refused.body["message"].splitlines()[0]) == (
        "SchemaError", 'line 1, column 12: found "nothing", expected a table (there is none)'
    )  # fmt: skip
    assert running.status()["schema"] == {"tables": [], "indexes": [], "version": 2, "catalog_version": 0}


def test_a_stop_command_is_answered_before_everything_ends(start: Callable[..., Running]) -> None:
    running = start().ready()
    reply = running.admin("stop")
    assert reply.body["pid"] == running.process.pid
    assert running.process.wait(DEADLINE_S) == 0
    assert not Path(reply.body["runtime_directory"]).exists()


def test_what_a_killed_supervisor_left_is_cleared_by_the_next_start(
    start: Callable[..., Running], tmp_path: Path
) -> None:
    running = start().ready()
    left = Path(running.topology().runtime_directory)
    running.process.kill()
    running.process.wait()
    assert left.exists()
    again = start().ready()
    assert not left.exists()
    assert again.stop() == 0


def test_huge_pages_are_asked_for_beside_what_the_environment_says_and_not_against_it() -> None:
    assert with_huge_pages({"A": "b"}) == {"A": "b", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    other = {"GLIBC_TUNABLES": "glibc.malloc.check=3"}
    assert with_huge_pages(other) == {"GLIBC_TUNABLES": "glibc.malloc.check=3:glibc.malloc.hugetlb=1"}
    refused = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}
    assert with_huge_pages(refused) == refused


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.7", "example.org", "*", "::1", ""])
def test_an_address_that_others_could_reach_is_refused(host: str) -> None:
    with pytest.raises(ClusterError, match="no authentication"):
        loopback(host)


def test_loopback_addresses_are_accepted() -> None:
    assert [loopback(host) for host in ("localhost", "127.0.0.1", "127.0.0.2")] == ["127.0.0.1"] * 2 + ["127.0.0.2"]
