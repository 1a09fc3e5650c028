"""voltpy itself: `voltpy start` on a fresh data directory, and the SDK of voltpy.connect and voltpy.connect_async."""

from __future__ import annotations

import asyncio
import re
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any, Self

import procedures
import voltpy
from bench import drive, measure
from bench.peers.server import Server, free_port
from bench.workload import Call, CallStream, Fsync, Line, Outcome
from voltpy.client import BUSY_POLL_US
from voltpy.errors import Aborted
from voltpy.messages import CALLS_A_FRAME, FRAMES_IN_FLIGHT

STRAIGHT = "straight to the partitions"
ROUTED = "through the router"
ASLEEP = "straight to the partitions, asleep while it waits"

# As the `voltpy` command, without asking where it was installed.
START = "from voltpy.cli import main; main()"
# Far more calls than are in flight, so that the moment without any at the end of a call_many does not count.
CALL_MANY_WINDOWS = 64


class Voltpy:
    name = "voltpy"

    def __init__(self, directory: Path, fsync: Fsync, *, partitions: int, affinity: str) -> None:
        self._directory = directory
        self._fsync = fsync
        self._partitions = partitions
        self._affinity = affinity
        self._port = free_port()
        self._client: Any = None

    @property
    def settings(self) -> str:
        return (
            f"--fsync {self._fsync} --partitions {self._partitions}; "
            f"busy_poll_us={BUSY_POLL_US:g}, or 0 where the client is asleep"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._client is not None:
            self._client.close()
        if hasattr(self, "_server"):
            self._server.stop()

    def partition_pids(self) -> list[int]:
        """By the partitions' numbers. The supervisor's word, half a second old at most."""
        partitions: list[dict[str, Any]] = self._client.status()["partitions"]
        return [status["pid"] for status in sorted(partitions, key=lambda status: status["partition"])]

    def cpu_s(self) -> dict[str, float]:
        seconds: dict[str, float] = {"partition": 0.0, "coordinator": 0.0, "router": 0.0, "supervisor": 0.0}
        supervisor, *children = measure.process_tree(self._server.pid)
        roles = {supervisor: "supervisor"}
        for pid in children:
            words = measure.command_line(pid)
            # What a partition starts for itself (to flush, say) counts as the partition.
            if "coordinator" not in words:
                roles[pid] = "partition"
            else:
                roles[pid] = "coordinator" if "transactions" in words else "router"
        for pid, role in roles.items():
            seconds[role] += measure.cpu_s([pid])
        return seconds

    def ways(self, line: Line) -> tuple[str, ...]:
        straight = (STRAIGHT, ASLEEP) if line.drive == "lone" else (STRAIGHT,)
        return {"on": straight, "off": (ROUTED,), "both": (*straight, ROUTED)}[self._affinity]

    def load(self, line: Line) -> None:
        name = line.voltpy.procedures
        command: list[str | Path] = [sys.executable, "-c", START, "start"]
        command += ["--schema", schema_path(name), "--procedures", schema_path(name).with_suffix(".py")]
        command += ["--data", self._directory / "data", "--port", str(self._port), "--fsync", self._fsync]
        command += ["--partitions", str(self._partitions)]
        self._server = Server(command, self._directory)
        self._server.wait_until(self._has_printed_its_url)
        self._client = voltpy.connect(self.url, timeout=60)
        line.voltpy.load(self._client)

    def _has_printed_its_url(self) -> bool:
        return re.search(r"voltpy://\S+", self._server.output()) is not None

    @property
    def url(self) -> str:
        return f"voltpy://127.0.0.1:{self._port}"

    def state(self, line: Line) -> Any:
        return line.voltpy.state(self._client)

    @contextmanager
    def session(self, line: Line, way: str, in_flight: int, tasks: int) -> Iterator[drive.Drive]:
        url = self.url + ("?affinity=off" if way == ROUTED else "")
        if line.drive == "tasks":
            with asyncio.Runner() as runner:
                db = runner.run(_connect_async(url))

                async def await_one(call: Call) -> Any:
                    return await db.call(call[0], *call[1])

                yield lambda stream, seconds: runner.run(drive.tasks(stream, seconds, [await_one] * tasks))
                runner.run(db.close())
            return
        with voltpy.connect(url, timeout=60, busy_poll_us=0.0 if way == ASLEEP else BUSY_POLL_US) as client:
            if line.drive == "lone":
                yield lambda stream, seconds: drive.lone(stream, seconds, lambda call: client.call(call[0], *call[1]))
                return
            # The client keeps at most these in flight by itself; for fewer, one call_many at a time has that many.
            window = FRAMES_IN_FLIGHT * CALLS_A_FRAME * self._partitions
            calls_at_once = in_flight if in_flight < window else CALL_MANY_WINDOWS * window
            if line.drive == "mix":
                yield lambda stream, seconds: _submit(client, stream, seconds, in_flight)
            elif len(line.procedures) == 1:
                yield lambda stream, seconds: _call_many(client, stream, seconds, calls_at_once)
            else:
                with ThreadPoolExecutor(len(line.procedures)) as threads:
                    yield lambda stream, seconds: _call_several(client, threads, stream, seconds, calls_at_once)


def _call_many(client: Any, stream: CallStream, seconds: float, calls_at_once: int) -> Outcome:
    outcome = Outcome([], [], [])
    deadline = perf_counter() + seconds
    while perf_counter() < deadline:
        calls = stream.take(calls_at_once)
        if not calls:
            break
        outcome.results += client.call_many(calls[0][0], [args for _, args in calls])
        outcome.calls += calls
    return outcome


def _call_several(
    client: Any, threads: ThreadPoolExecutor, stream: CallStream, seconds: float, calls_at_once: int
) -> Outcome:
    """Several procedures: a call_many of each, side by side, since threads may share a client."""
    outcome = Outcome([], [], [])
    deadline = perf_counter() + seconds
    while perf_counter() < deadline:
        calls = stream.take(calls_at_once)
        if not calls:
            break
        rows: dict[str, list[Any]] = {}
        for name, args in calls:
            rows.setdefault(name, []).append(args)
        for results in threads.map(client.call_many, rows.keys(), rows.values()):
            outcome.results += results
        outcome.calls += calls
    return outcome


def _submit(client: Any, stream: CallStream, seconds: float, in_flight: int) -> Outcome:
    """Call by call, in the order of the stream, with `in_flight` unanswered ones; the oldest is awaited."""
    outcome = Outcome([], [], [])
    waiting: deque[tuple[Call, Any]] = deque()

    def await_down_to(count: int) -> None:
        while len(waiting) > count:
            call, future = waiting.popleft()
            try:
                result = future.result()
            except Aborted as abort:
                result = abort
            outcome.calls.append(call)
            outcome.results.append(result)

    deadline = perf_counter() + seconds
    while perf_counter() < deadline and (calls := stream.take(drive.TAKEN_AT_ONCE)):
        for call in calls:
            waiting.append((call, client.submit(call[0], *call[1])))
        await_down_to(in_flight)
    await_down_to(0)
    return outcome


async def _connect_async(url: str) -> Any:
    return await voltpy.connect_async(url, timeout=60)


def schema_path(name: str) -> Path:
    """procedures/<name>.sql, which lies beside <name>.py."""
    return Path(procedures.__path__[0]) / f"{name}.sql"
