"""`python -m bench larger-than-memory`: a table several times the memory, few of whose rows are hot.

Each peer is loaded once; then, repetition by repetition, each way of driving each peer is warmed up and measured in
turn. At the end of a repetition comes the lone cold read: one call at a time, any key as likely as the other, so that
most rows come from the disk. Updates that were acknowledged are looked up at the end.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from statistics import median
from time import perf_counter, perf_counter_ns
from typing import Any, Protocol, Self

import click
import msgspec
from msgspec import Struct

from bench import machine, pool, residency
from bench.clients import Clients, Way, rate
from bench.measure import pairwise_ratio, percentile
from bench.options import peers_option
from bench.page_cache import forgetting
from bench.pool import Pool
from bench.residency import Residency
from bench.table import Table, data_directory, durability, errors_for_the_command_line, load, say, table_options
from bench.warm_up import warm_up
from bench.workload import BenchError, Fsync, NotInstalled
from bench.workloads.ycsb import Rows, Update, cold_keys, verify_updated

BASELINE = "voltpy"
PEERS = (BASELINE, "voltpy-in-memory", "mariadb")
IN_MEMORY = 3  # times the bytes of the columns: pages, indexes and decoded rows of all
IN_MEMORY_BESIDE_BYTES = 256 << 20
UPDATES_VERIFIED = 200
COLUMNS = (
    "peer", "way", "operations/s", "lowest – highest", "voltpy ÷ it", "hit ratio", "misses an operation",
    "disk read, MB/s", "disk written, MB/s",
)  # fmt: skip
TEXT_COLUMNS = 2


class Run(Struct, frozen=True):
    peer: str
    way: str
    repetition: int
    operations_per_s: float
    hit_ratio: float | None
    misses_per_operation: float | None
    warm_up_s: float
    warmed_up: bool
    resident_bytes: dict[str, int]  # each process's highest
    disk_bytes: int
    disk_read_per_s: float | None
    disk_written_per_s: float | None
    figures: dict[str, float]


class ColdRead(Struct, frozen=True):
    peer: str
    repetition: int
    reads: int
    p50_us: float
    p99_us: float
    disk_read_bytes_a_read: float | None


class Results(Struct):
    """`allowed_bytes`: what each partition of a voltpy peer may have resident. `skipped`: why one was not measured."""

    machine: machine.Machine
    table: Table
    seconds: float
    repeat: int
    fsync: Fsync
    page_cache: str
    started_at: str
    peers: dict[str, str]
    load_s: dict[str, float]
    allowed_bytes: dict[str, int]
    skipped: dict[str, str]
    runs: list[Run]
    cold_reads: list[ColdRead]


class Server(Protocol):
    """A peer that holds the table, while it is used as a context."""

    @property
    def settings(self) -> str: ...
    @property
    def data(self) -> Path: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...
    def load(self, rows: Rows, tell: Callable[[int], None]) -> None: ...
    def ways(self) -> list[Way]: ...
    def reader(self) -> AbstractContextManager[Callable[[int], Any]]: ...
    def column(self, key: int, field: int) -> str: ...
    def pids(self) -> dict[str, int]: ...
    def pool(self) -> Pool: ...


@click.command("larger-than-memory")
@table_options(memory="128M", ratio=8.0)
@peers_option(PEERS)
@click.option("--seconds", default=10.0, show_default=True, type=click.FloatRange(0.1, 600), help="Of one run.")
@click.option("--cold-seconds", default=5.0, show_default=True, type=click.FloatRange(0.1, 600), help="Of cold reads.")
@click.option("--repeat", default=1, show_default=True, type=click.IntRange(1, 1000), help="Repetitions, in turn.")
@click.option(
    "--innodb-page-size", default="8k", show_default=True, type=click.Choice(["4k", "8k", "16k"]), help="Of MariaDB."
)
@click.option("--way", default="", help="Only ways of driving a peer whose name contains this.")
def main(
    memory: int,
    ratio: float,
    row_bytes: int,
    partitions: int,
    fsync: str,
    warm_up: float,
    page_cache: str,
    directory: Path,
    json_file: Path | None,
    peers: Sequence[str],
    seconds: float,
    cold_seconds: float,
    repeat: int,
    innodb_page_size: str,
    way: str,
) -> None:
    """A table several times the memory, under a skewed load of reads and few updates."""
    results = Results(
        machine=machine.describe(directory),
        table=Table(memory, ratio, row_bytes),
        seconds=seconds,
        repeat=repeat,
        fsync=durability(fsync),
        page_cache=page_cache,
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        peers={},
        load_s={},
        allowed_bytes={},
        skipped={},
        runs=[],
        cold_reads=[],
    )
    try:
        with errors_for_the_command_line(), ExitStack() as stack:
            parent = stack.enter_context(data_directory(directory))
            os.chmod(parent, 0o755)  # MariaDB runs as another user
            servers = dict(_loaded(results, peers, partitions, innodb_page_size, parent, stack))
            for repetition in range(repeat):
                for name, server in servers.items():
                    for one in server.ways():
                        if way in one.name:
                            results.runs.append(_run(results, name, server, one, repetition, warm_up))
                            say(summary(results.runs[-1]))
                for name, server in servers.items():
                    results.cold_reads.append(_read_cold(results, name, server, repetition, cold_seconds))
    finally:
        # What was measured before a failure is worth keeping.
        if json_file is not None:
            json_file.write_bytes(msgspec.json.format(msgspec.json.encode(results)))
    click.echo(markdown(results))


def _loaded(
    results: Results, peers: Sequence[str], partitions: int, innodb_page_size: str, parent: Path, stack: ExitStack
) -> Iterator[tuple[str, Server]]:
    """The peers that could be started and hold the table."""
    for name in peers:
        own = parent / name
        own.mkdir()
        try:
            server = _make(name, own, results.table, partitions, innodb_page_size, results.fsync)
            with ExitStack() as undo:
                undo.enter_context(server)
                results.load_s[name] = load(server, name, results.table.rows)
                stack.push(undo.pop_all())
        except (NotInstalled, BenchError) as reason:
            say(f"{name}: {reason}")
            results.skipped[name] = str(reason)
            shutil.rmtree(own)
            continue
        results.peers[name] = server.settings
        if name == BASELINE:
            results.allowed_bytes[name] = residency.allowed_bytes(results.table.memory_bytes // partitions)
        yield name, server


def _make(name: str, directory: Path, table: Table, partitions: int, innodb_page_size: str, fsync: Fsync) -> Server:
    if name == "mariadb":
        server: Server = import_module("bench.peers.mariadb").Mariadb(
            directory, memory_bytes=table.memory_bytes, page_size=innodb_page_size, fsync=fsync
        )
        return server
    columns_bytes = table.rows.count * table.row_bytes
    in_memory = max(table.memory_bytes, columns_bytes * IN_MEMORY + IN_MEMORY_BESIDE_BYTES)
    server = import_module("bench.peers.cluster").Cluster(
        directory,
        memory_bytes=table.memory_bytes if name == BASELINE else in_memory,
        partitions=partitions,
        fsync=fsync,
    )
    return server


def _run(results: Results, name: str, server: Server, way: Way, repetition: int, warm_up_s: float) -> Run:
    with (
        forgetting(server.data, results.page_cache),
        Clients(way.open_driver, results.table.rows, processes=way.processes) as clients,
    ):
        warmth = warm_up(clients, server.pool, warm_up_s)
        before, traffic_before = server.pool(), residency.disk_traffic(server.pids())
        with Residency(server.pids) as resident:
            began_s = perf_counter()
            tallies = clients.run(results.seconds)
            took_s = perf_counter() - began_s
        after, traffic_after = server.pool(), residency.disk_traffic(server.pids())
    _verify(server, [update for tally in tallies for update in tally.updated])
    operations = sum(tally.operations for tally in tallies)
    misses = pool.misses(before, after)
    if misses is None and "page_faults_per_second" in after.figures:
        misses = int(after.figures["page_faults_per_second"] * took_s)
    traffic = None if traffic_before is None or traffic_after is None else traffic_after.since(traffic_before)
    return Run(
        peer=name,
        way=way.name,
        repetition=repetition,
        operations_per_s=rate(tallies),
        hit_ratio=pool.hit_ratio(before, after),
        misses_per_operation=None if misses is None else misses / operations,
        warm_up_s=warmth.seconds,
        warmed_up=warmth.settled,
        resident_bytes=resident.peaks,
        disk_bytes=residency.bytes_on_disk(server.data),
        disk_read_per_s=None if traffic is None else traffic.read_bytes / took_s,
        disk_written_per_s=None if traffic is None else traffic.written_bytes / took_s,
        figures=after.figures,
    )


def _verify(server: Server, updates: Sequence[Update]) -> None:
    """Every updated column holds an update: this one, or a later one to the same column."""
    for key, field, _ in updates[-UPDATES_VERIFIED:]:
        verify_updated(key, field, server.column(key, field))


def _read_cold(results: Results, name: str, server: Server, repetition: int, seconds: float) -> ColdRead:
    latencies_us: list[float] = []
    keys = cold_keys(results.table.rows, 200_000, seed=100 + repetition)
    with forgetting(server.data, results.page_cache), server.reader() as read:
        traffic_before = residency.disk_traffic(server.pids())
        deadline = perf_counter() + seconds
        for key in keys:
            begin_ns = perf_counter_ns()
            answer = read(key)
            latencies_us.append((perf_counter_ns() - begin_ns) / 1e3)
            if int(answer[0]) != key:
                raise BenchError(f"{name} answered with row {answer[0]!r} to {key}")
            if perf_counter() >= deadline:
                break
        traffic_after = residency.disk_traffic(server.pids())
    read_bytes = None
    if traffic_before is not None and traffic_after is not None:
        read_bytes = traffic_after.since(traffic_before).read_bytes / len(latencies_us)
    return ColdRead(
        name, repetition, len(latencies_us), percentile(latencies_us, 50), percentile(latencies_us, 99), read_bytes
    )


def summary(run: Run) -> str:
    """One run in one line, as it is told while the bench goes on."""
    resident = ", ".join(f"{name} {peak / 2**20:,.0f} MiB" for name, peak in run.resident_bytes.items())
    return (
        f"{run.peer:17} {run.way:45} {run.operations_per_s:9,.0f}/s  hit ratio {pool.text(run.hit_ratio, '.2%')}  "
        f"warm-up {run.warm_up_s:.0f} s{'' if run.warmed_up else ', not steady'}  {resident}"
    )


def markdown(results: Results) -> str:
    """The tables, and below them what they were measured on."""
    head = [f"| {' | '.join(COLUMNS)} |"]
    head.append(f"| {' | '.join('---' if column < TEXT_COLUMNS else '---:' for column in range(len(COLUMNS)))} |")
    groups = _groups(results.runs)
    best = max(
        (group for group in groups if group[0].peer == BASELINE),
        key=lambda group: median(run.operations_per_s for run in group),
        default=None,
    )
    lines = head + [_row(group, best) for group in groups]
    lines += [
        "",
        "| lone cold read | reads | p50, µs | p99, µs | bytes read from disk a read |",
        "| --- |" + " ---: |" * 4,
    ]
    for name in dict.fromkeys(read.peer for read in results.cold_reads):
        reads = [read for read in results.cold_reads if read.peer == name]
        lines.append(
            f"| {name} | {sum(read.reads for read in reads):,} | {median(read.p50_us for read in reads):,.0f} "
            f"| {median(read.p99_us for read in reads):,.0f} | {pool.text(reads[0].disk_read_bytes_a_read)} |"
        )
    lines += ["", "| | resident at most, MiB | allowed, MiB | on disk, MiB | loaded in |", "| --- |" + " ---: |" * 4]
    for name in results.peers:
        lines += _space(results, name)
    return "\n".join([*lines, "", *(f"- {line}" for line in _conditions(results))])


def _groups(runs: Sequence[Run]) -> list[list[Run]]:
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.peer, run.way), []).append(run)
    return list(groups.values())


def _row(runs: Sequence[Run], best: Sequence[Run] | None) -> str:
    rates = [run.operations_per_s for run in runs]
    ratio = ""
    if best is not None:
        pairs = list(zip([run.operations_per_s for run in best], rates, strict=False))
        ratio = f"{pairwise_ratio([ours for ours, _ in pairs], [theirs for _, theirs in pairs]):.2f}"
    cells = [
        runs[0].peer,
        runs[0].way,
        f"{median(rates):,.0f}",
        f"{min(rates):,.0f} – {max(rates):,.0f}",
        ratio,
        pool.text(_median(run.hit_ratio for run in runs), ".2%"),
        pool.text(_median(run.misses_per_operation for run in runs), ".3f"),
        pool.text(_megabytes(run.disk_read_per_s for run in runs), ",.1f"),
        pool.text(_megabytes(run.disk_written_per_s for run in runs), ",.1f"),
    ]
    return f"| {' | '.join(cells)} |"


def _space(results: Results, name: str) -> list[str]:
    runs = [run for run in results.runs if run.peer == name]
    if not runs:
        return []
    allowed = results.allowed_bytes.get(name)
    rows = []
    for process in runs[0].resident_bytes:
        peak = max(run.resident_bytes.get(process, 0) for run in runs)
        over = " (over)" if allowed is not None and peak > allowed else ""
        rows.append(
            f"| {name}, {process} | {peak / 2**20:,.0f}{over} "
            f"| {pool.text(None if allowed is None else allowed / 2**20)} | | |"
        )
    on_disk = max(run.disk_bytes for run in runs) / 2**20
    return [*rows, f"| {name} | | | {on_disk:,.0f} | {results.load_s[name]:,.0f} s |"]


def _median(values: Iterable[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return median(found) if found else None


def _megabytes(values: Iterable[float | None]) -> float | None:
    found = _median(values)
    return None if found is None else found / 1e6


def _conditions(results: Results) -> list[str]:
    figures = {
        run.peer: ", ".join(f"{name} {value:,.4g}" for name, value in run.figures.items()) for run in results.runs
    }
    return [
        machine.in_words(results.machine),
        f"{results.table.in_words()}. Zipf 0.99 over scattered keys, 95 % reads of a row, 5 % updates of a column.",
        f"{results.seconds:g} s a run after a warm-up, {results.repeat} repetitions in turn, fsync {results.fsync}; "
        f"the system's page cache: {results.page_cache}. Medians; ratios pair by pair, of voltpy's best way.",
        *(f"{name}: {text}." for name, text in results.peers.items()),
        *(f"{name} at the end: {text}." for name, text in figures.items() if text),
        *(f"{name}: not measured, {why}." for name, why in results.skipped.items()),
        f"Measured {results.started_at}.",
    ]
