"""Runs lines on peers side by side: the same calls, the same durability, in turn, repetition by repetition.

Each run has a server of its own on fresh data. It is warmed up, measured, and asked for its tables, which must hold
what it acknowledged. Figures of one repetition stand close together in time: ratios are taken pair by pair.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Any

from msgspec import Struct

from bench.machine import Machine
from bench.measure import percentile
from bench.workload import BenchError, Call, CallStream, Fsync, Line, NotInstalled, Outcome
from voltpy.errors import Aborted

PEERS = ("voltpy", "redis", "postgres", "two_postgres", "dicts")
IN_ONE_PARTITION = ("voter", "kv", "smallbank", "increment", "lone")
WORKLOADS = (*IN_ONE_PARTITION, "voter_views", "transfer", "tpcc")
WARM_UP_S = 0.5
MOST_CALLS_A_SECOND = 500_000  # a stream that does not cycle is made this long, and no longer


class Settings(Struct, frozen=True):
    seconds: float
    in_flight: int
    tasks: int
    partitions: int
    affinity: str
    fsync: Fsync
    repeat: int
    seed: int


class Run(Struct, frozen=True):
    """`calls`: those that count. `cpu_us`: processor time for each of them, by role: client, and server or partition,
    coordinator, router, supervisor."""

    line: str
    drive: str
    peer: str
    way: str
    repetition: int
    calls: int
    elapsed_s: float
    cpu_us: dict[str, float]
    p50_us: float | None
    p99_us: float | None

    @property
    def calls_per_s(self) -> float:
        return self.calls / self.elapsed_s


class Results(Struct):
    """`peers`: how each one was set. `skipped`: why one was not measured."""

    machine: Machine
    settings: Settings
    started_at: str
    peers: dict[str, str]
    skipped: dict[str, str]
    runs: list[Run]


def lines_of(workload: str, partitions: int) -> list[Line]:
    """Where it matters which partitions a key lives in, a workload makes its lines for so many."""
    names = IN_ONE_PARTITION if workload == "all" else (workload,)
    modules = [import_module(f"bench.workloads.{name}") for name in names]
    return [
        line for module in modules for line in (module.lines(partitions) if hasattr(module, "lines") else module.LINES)
    ]


def make_peer(name: str, directory: Path, settings: Settings) -> Any:
    """The peer, not started yet; its data will be in `directory`. NotInstalled when it can't be."""
    try:
        module = import_module(f"bench.peers.{name}")
    except ModuleNotFoundError as error:
        raise NotInstalled(f"the Python package {error.name} is not installed") from None
    if name == "voltpy":
        return module.Voltpy(directory, settings.fsync, partitions=settings.partitions, affinity=settings.affinity)
    return getattr(module, name.title().replace("_", ""))(directory, settings.fsync)


def run_all(
    results: Results,
    lines: Sequence[Line],
    peers: Sequence[str],
    directory: Path,
    only_way: str,
    tell: Callable[[Run], None],
) -> None:
    """Adds to `results` as it goes. `only_way`: a part of the name of the ways that are wanted; "" for all."""
    settings = results.settings
    for name in peers:
        try:
            results.peers[name] = make_peer(name, directory, settings).settings
        except NotInstalled as reason:
            results.skipped[name] = str(reason)
    for _, together in groupby(lines, key=lambda line: line.workload):
        # Lines of one workload are compared with one another too: they take turns.
        streams = [(line, _stream(line, settings)) for line in together]
        gc.collect()
        gc.freeze()  # millions of tuples that never go away: no collection has to look at them
        for repetition in range(settings.repeat):
            for line, calls in streams:
                for name, way in _turns(results, line, only_way, directory):
                    run = run_once(name, line, way, calls, repetition, settings, directory)
                    results.runs.append(run)
                    tell(run)
        gc.unfreeze()


def _stream(line: Line, settings: Settings) -> list[Call]:
    return line.calls(settings.seed, min(line.count, int((settings.seconds + 2 * WARM_UP_S) * MOST_CALLS_A_SECOND)))


def _turns(results: Results, line: Line, only_way: str, directory: Path) -> Iterator[tuple[str, str]]:
    for name in results.peers:
        for way in make_peer(name, directory, results.settings).ways(line):
            if only_way in way:
                yield name, way


def counted(line: Line, outcome: Outcome) -> int:
    """How many calls the figure is made of."""
    if not line.counts:
        return len(outcome.calls)
    return sum(
        call[0] == line.counts and not isinstance(result, Aborted)
        for call, result in zip(outcome.calls, outcome.results, strict=True)
    )


def run_once(
    name: str, line: Line, way: str, calls: list[Call], repetition: int, settings: Settings, directory: Path
) -> Run:
    """One peer, one line, one way, once. BenchError when its tables contradict what it acknowledged."""
    stream = CallStream(calls, cycles=line.cycles)
    with TemporaryDirectory(dir=directory, prefix="voltpy-bench-") as own, make_peer(name, Path(own), settings) as peer:
        peer.load(line)
        with peer.session(line, way, settings.in_flight, settings.tasks) as drive:
            warm_up = drive(stream, min(WARM_UP_S, settings.seconds / 4))
            gc.collect()
            server_before_s = peer.cpu_s()
            client_before_s, begin_s = process_time(), perf_counter()
            measured = drive(stream, settings.seconds)
            elapsed_s = perf_counter() - begin_s
            cpu_s = {"client": process_time() - client_before_s}
            cpu_s |= {role: after_s - server_before_s[role] for role, after_s in peer.cpu_s().items()}
        if not measured.calls:
            raise BenchError(f"{name}, {way}: the calls were used up before the measurement began")
        try:
            line.verify(warm_up.calls + measured.calls, warm_up.results + measured.results, peer.state(line))
        except BenchError as error:
            raise BenchError(f"{line.workload}/{line.name} on {name}, {way}: {error}") from None
    count = counted(line, measured)
    if not count:
        raise BenchError(f"{line.workload}/{line.name} on {name}, {way}: no {line.counts} was finished")
    return Run(
        line=f"{line.workload}/{line.name}",
        drive=line.drive,
        peer=name,
        way=way,
        repetition=repetition,
        calls=count,
        elapsed_s=elapsed_s,
        cpu_us={role: spent_s * 1e6 / count for role, spent_s in cpu_s.items()},
        p50_us=percentile(measured.latencies_us, 50) if measured.latencies_us else None,
        p99_us=percentile(measured.latencies_us, 99) if measured.latencies_us else None,
    )
