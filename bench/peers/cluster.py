"""voltpy with a budget of memory: started, stopped and started again on the same data; its pool, its processes.

Unlike `bench.peers.voltpy`, which runs any line on fresh data, this is for what happens to one table over time.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from threading import Lock
from time import perf_counter, sleep
from typing import Any, Self

import voltpy
from bench import pool
from bench.clients import Tally, Way, kept
from bench.peers.server import Server, free_port
from bench.peers.voltpy import schema_path
from bench.workload import BenchError, Fsync, batches
from bench.workloads.ycsb import Chunk, Rows
from voltpy.data_directory import partition_directory

CLIENT_PROCESSES = {"1 client process": 1, "2 client processes": 2}
LANES = 4  # chunks under way at a time: the partitions never wait for the end of one
LOAD_BATCH = 4096
STOPS_WITHIN_S = 120.0  # with pages to write
TIMEOUT_S = 120.0  # of a call: reads queue up behind the disk
PROCEDURE_TIMEOUT_S = 600.0  # a scan of a whole table is one call
OPEN_LOOP_TICK_S = 0.001
CALLS_AT_ONCE = 64  # of an open loop without a rate


class Cluster:
    """`partition_options` are added to the command lines of the partitions."""

    def __init__(
        self,
        directory: Path,
        *,
        memory_bytes: int,
        partitions: int,
        fsync: Fsync,
        partition_options: Sequence[str] = (),
    ) -> None:
        self.data = directory / "data"
        self.partitions = partitions
        self._directory = directory
        self._memory_bytes = memory_bytes
        self._fsync = fsync
        self._partition_options = partition_options
        self._port = free_port()
        self._server: Server | None = None
        self._client: Any = None

    @property
    def settings(self) -> str:
        words = f"--memory {self._memory_bytes} --partitions {self.partitions} --fsync {self._fsync}"
        return " ".join((words, *self._partition_options))

    @property
    def url(self) -> str:
        return f"voltpy://127.0.0.1:{self._port}"

    @property
    def client(self) -> Any:
        return self._client

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Returns when it serves."""
        command: list[str | Path] = [sys.executable, "-m", "bench.start"]
        command += ["--schema", schema_path("ycsb"), "--procedures", schema_path("ycsb").with_suffix(".py")]
        command += ["--data", self.data, "--port", str(self._port), "--fsync", self._fsync]
        command += ["--partitions", str(self.partitions), "--memory", str(self._memory_bytes)]
        command += ["--procedure-timeout", str(PROCEDURE_TIMEOUT_S), "--", *self._partition_options]
        server = self._server = Server(command, self._directory)
        server.wait_until(lambda: re.search(r"voltpy://\S+", server.output()) is not None)
        self._client = voltpy.connect(self.url, timeout=TIMEOUT_S)

    def stop(self) -> None:
        """Cleanly, as a user would."""
        if self._client is not None:
            self._client.close()
            self._client = None
        if self._server is not None:
            self._server.stop(STOPS_WITHIN_S)
            self._server = None

    def kill(self) -> None:
        """kill -9 of the supervisor; its processes die with it. Returns when they have."""
        pids = [*self.pids().values()]
        self._client.close()
        self._client = None
        assert self._server is not None
        self._server.kill()
        self._server = None
        deadline = perf_counter() + STOPS_WITHIN_S
        while any(Path(f"/proc/{pid}").exists() for pid in pids):
            if perf_counter() > deadline:
                raise BenchError(f"partitions outlived their supervisor: {pids}")
            sleep(0.01)

    def events(self, name: str) -> list[dict[str, Any]]:
        """What its processes have told under this name since it was started."""
        assert self._server is not None
        lines = [line for line in self._server.output().splitlines() if line.startswith("{")]
        return [event for event in map(json.loads, lines) if event.get("event") == name]

    def load(self, rows: Rows, tell: Callable[[int], None]) -> None:
        """BenchError when they don't fit: without a buffer pool, all rows must."""
        done = 0
        for keys in batches(range(rows.count), LOAD_BATCH):
            try:
                self._client.call_many("insert_row", [(key, rows.fields(key)) for key in keys])
            except voltpy.ReadOnly as error:
                raise BenchError(f"the table does not fit into --memory: {error}") from None
            done += len(keys)
            tell(done)

    def ways(self) -> list[Way]:
        return [Way(name, processes, partial(Pipelined, self.url)) for name, processes in CLIENT_PROCESSES.items()]

    @contextmanager
    def reader(self) -> Iterator[Callable[[int], Any]]:
        """For one call at a time."""
        yield lambda key: self._client.call("read_row", key)

    def scan(self) -> list[int]:
        """How many rows each partition has, counted by reading them all."""
        counts: list[int] = self._client.call_everywhere("scan_rows", timeout=PROCEDURE_TIMEOUT_S)
        return counts

    def column(self, key: int, field: int) -> str:
        return str(self._client.call("read_row", key)[1 + field])

    def statuses(self) -> list[dict[str, Any]]:
        """Of the partitions. The supervisor asks them twice a second: it is that old at most."""
        partitions: list[dict[str, Any]] = self._client.status()["partitions"]
        return partitions

    def pool(self) -> pool.Pool:
        return pool.of_partitions([status.get("metrics", {}) for status in self.statuses()])

    def pids(self) -> dict[str, int]:
        return {f"partition {status['partition']}": status["pid"] for status in self.statuses()}

    def metrics_by_directory(self) -> dict[Path, dict[str, Any]]:
        return {
            partition_directory(self.data, status["partition"]): status.get("metrics", {}) for status in self.statuses()
        }

    def partition_directories(self) -> list[Path]:
        return [partition_directory(self.data, number) for number in range(self.partitions)]


class Pipelined:
    """A client with as many calls under way as the SDK allows: reads through call_many, updates through submit.

    It connects when it is first used: a client may be there before the cluster is.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._client: Any = None

    def close(self) -> None:
        if self._client is not None:
            self._client.close()

    def run(self, chunks: Iterator[Chunk], seconds: float) -> Tally:
        if self._client is None:
            self._client = voltpy.connect(self._url, timeout=TIMEOUT_S)
        taking = Lock()
        deadline = perf_counter() + seconds

        def work() -> Tally:
            tally = Tally(0, 0.0, [])
            while perf_counter() < deadline:
                with taking:
                    chunk = next(chunks)
                self._send(chunk)
                tally.operations += len(chunk.operations)
                tally.updated = kept(tally.updated + chunk.updates)
            return tally

        began_s = perf_counter()
        with ThreadPoolExecutor(LANES) as threads:
            lanes = [threads.submit(work) for _ in range(LANES)]
        total = Tally(0, perf_counter() - began_s, [])
        for lane in lanes:
            error = lane.exception()
            if error is not None:
                raise BenchError(f"voltpy: {error!r}") from error
            total.operations += lane.result().operations
            total.updated += lane.result().updated
        return total

    def _send(self, chunk: Chunk) -> None:
        client = self._client
        updates = [client.submit("update_row", *update) for update in chunk.updates]
        answers = client.call_many("read_row", chunk.reads)
        if [answer[0] for answer in answers] != [key for (key,) in chunk.reads]:
            raise BenchError("voltpy answered with another row than was asked for")
        for update in updates:
            update.result()


class OpenLoop:
    """A client that sends at a constant rate, whatever comes back: a call's latency counts from when it was due.

    So a server that stops for a while is charged for every call that would have come meanwhile. 0 a second: as fast as
    this client can, which gives the peak that rates are parts of.
    """

    def __init__(self, url: str, calls_per_s: float) -> None:
        self._client = voltpy.connect(url, timeout=TIMEOUT_S)
        self._calls_per_s = calls_per_s

    def close(self) -> None:
        self._client.close()

    def run(self, chunks: Iterator[Chunk], seconds: float) -> Tally:
        submit = self._client.submit
        operations = (operation for chunk in chunks for operation in chunk.operations)
        answered: list[
            tuple[float, float, Exception | None]
        ] = []  # when it was due, when answered, and what went wrong
        sent = 0
        began_s = due_s = perf_counter()
        while due_s - began_s < seconds:
            if self._calls_per_s:
                due_s += OPEN_LOOP_TICK_S
                sleep(max(0.0, due_s - perf_counter()))
                due = int((due_s - began_s) * self._calls_per_s)
            else:
                due_s, due = perf_counter(), sent + CALLS_AT_ONCE
            for operation in islice(operations, due - sent):
                name = "read_row" if len(operation) == 1 else "update_row"
                submit(name, *operation).add_done_callback(partial(_note, answered, due_s))
            sent = due
        deadline = perf_counter() + TIMEOUT_S
        while len(answered) < sent:
            if perf_counter() > deadline:
                raise BenchError(f"{sent - len(answered)} calls were not answered")
            sleep(0.01)
        elapsed_s = perf_counter() - began_s
        if failed := [error for *_, error in answered if error is not None]:
            raise BenchError(f"{len(failed)} calls failed, the first one with {failed[0]!r}")
        return Tally(
            sent,
            elapsed_s,
            [],
            sent_at_s=[due_s for due_s, _, _ in answered],
            latencies_us=[(done_s - due_s) * 1e6 for due_s, done_s, _ in answered],
        )


def _note(answered: list[tuple[float, float, Exception | None]], due_s: float, future: Any) -> None:
    answered.append((due_s, perf_counter(), future.exception()))
