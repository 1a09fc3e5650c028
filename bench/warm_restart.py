"""`python -m bench warm-restart`: how long a restart takes to come back to the hit ratio before, warm and cold.

The workload of larger-than-memory runs until it is steady. Then the cluster is stopped and started: *warm* as a user
would, so that it reads back the pages that its heat dump names, *cold* after that dump was removed. Both times the
workload begins as soon as the cluster serves, and what is measured is the time from then until the hit ratio of a
window, and that of the next one, is within two points of what it was. Beside it: how long the start itself took.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from time import perf_counter

import click
import msgspec
from msgspec import Struct

from bench import machine, pool
from bench.clients import Clients, rate
from bench.page_cache import forgetting
from bench.peers.cluster import Cluster, Pipelined
from bench.table import Table, data_directory, durability, errors_for_the_command_line, load, say, table_options
from bench.timeline import Timeline
from bench.warm_up import warm_up as until_warm
from bench.windows import back_at
from bench.workload import BenchError
from voltpy.data_directory import partition_directory

WINDOW_S = 1.0
WITHIN = 0.02
WAYS = ("warm", "cold")


class Run(Struct, frozen=True):
    """`back_s`: None when the hit ratio was not back in time, or is not told. `ratios`: (seconds, hit ratio)."""

    way: str
    repetition: int
    before: float | None
    operations_per_s_before: float
    stop_s: float
    start_s: float
    back_s: float | None
    ratios: list[tuple[float, float]]
    operations_per_s: float
    heat_files: int


class Results(Struct):
    machine: machine.Machine
    table: Table
    settings: str
    page_cache: str
    started_at: str
    runs: list[Run]


def forget_heat(data: Path, partitions: int) -> int:
    """Removes what a stopped cluster would warm up from. How many files there were."""
    found = [file for number in range(partitions) for file in partition_directory(data, number).glob("heat*")]
    for file in found:
        file.unlink()
    return len(found)


@click.command("warm-restart")
@table_options(memory="128M", ratio=8.0)
@click.option("--seconds", default=10.0, show_default=True, type=click.FloatRange(1, 600), help="Watched before.")
@click.option("--most", default=60.0, show_default=True, type=click.FloatRange(1, 3600), help="Seconds watched after.")
@click.option("--repeat", default=1, show_default=True, type=click.IntRange(1, 1000), help="Of warm and cold, in turn.")
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
    seconds: float,
    most: float,
    repeat: int,
) -> None:
    """Time until the hit ratio is what it was before a restart: with the heat dump, and without it."""
    results = Results(
        machine.describe(directory),
        Table(memory, ratio, row_bytes),
        "",
        page_cache,
        datetime.now(UTC).isoformat(timespec="seconds"),
        [],
    )
    with errors_for_the_command_line(), data_directory(directory) as own:
        cluster = Cluster(own, memory_bytes=memory, partitions=partitions, fsync=durability(fsync))
        results.settings = cluster.settings
        try:
            with cluster, forgetting(cluster.data, page_cache):
                load(cluster, "voltpy", results.table.rows)
                for repetition in range(repeat):
                    for way in WAYS:
                        results.runs.append(_run(results, cluster, way, repetition, warm_up, seconds, most))
                        say(summary(results.runs[-1]))
        finally:
            if json_file is not None:
                json_file.write_bytes(msgspec.json.format(msgspec.json.encode(results)))
    click.echo(markdown(results))


def _run(
    results: Results, cluster: Cluster, way: str, repetition: int, warm_up_s: float, seconds: float, most_s: float
) -> Run:
    rows = results.table.rows
    with Clients(partial(Pipelined, cluster.url), rows) as clients:
        until_warm(clients, cluster.pool, warm_up_s)
        with Timeline(cluster.pool, WINDOW_S) as timeline:
            began_s = perf_counter()
            rate_before = rate(clients.run(seconds))
            before = timeline.mean(began_s, perf_counter())
    _expect_status(timeline)
    began_s = perf_counter()
    cluster.stop()
    stop_s = perf_counter() - began_s
    heat_files = len(_heat_files(cluster)) if way == "warm" else forget_heat(cluster.data, cluster.partitions)
    with Clients(partial(Pipelined, cluster.url), rows) as clients:
        clients.prepare()
        began_s = perf_counter()
        cluster.start()
        serving_s = perf_counter()
        with Timeline(cluster.pool, WINDOW_S) as timeline:
            rates, back = _come_back(clients, timeline, before, serving_s, most_s)
    _expect_status(timeline)
    ratios = [(at_s - serving_s, ratio) for at_s, ratio in timeline.ratios(serving_s, perf_counter())]
    return Run(
        way,
        repetition,
        before,
        rate_before,
        stop_s,
        serving_s - began_s,
        None if back is None else back - serving_s,
        ratios,
        sum(rates) / len(rates),
        heat_files,
    )


def _come_back(
    clients: Clients, timeline: Timeline, before: float | None, serving_s: float, most_s: float
) -> tuple[list[float], float | None]:
    """Runs the workload until the hit ratio is back, or the time is up: the rates, and when it was back."""
    rates = []
    while True:
        rates.append(rate(clients.run(min(2 * WINDOW_S, most_s))))
        if before is None:  # nobody tells a hit ratio: there is nothing to wait for
            return rates, None
        back = back_at(timeline.ratios(serving_s, perf_counter()), before - WITHIN)
        if back is not None or perf_counter() - serving_s >= most_s:
            return rates, back


def _heat_files(cluster: Cluster) -> list[Path]:
    return [file for directory in cluster.partition_directories() for file in directory.glob("heat*")]


def _expect_status(timeline: Timeline) -> None:
    if timeline.error is not None:
        raise BenchError(f"no status: {timeline.error!r}")


def summary(run: Run) -> str:
    course = ", ".join(f"{seconds:.0f} s {ratio:.1%}" for seconds, ratio in _thinned(run.ratios))
    return (
        f"{run.way}: before {pool.text(run.before, '.2%')} at {run.operations_per_s_before:,.0f}/s; stopped in "
        f"{run.stop_s:.1f} s, started in {run.start_s:.1f} s, back after {pool.text(run.back_s, '.1f')} s, "
        f"{run.heat_files} heat files; {course or 'no hit ratio is told'}"
    )


def _thinned(ratios: Sequence[tuple[float, float]], most: int = 8) -> Sequence[tuple[float, float]]:
    return ratios[:: max(1, -(-len(ratios) // most))]


def markdown(results: Results) -> str:
    lines = ["| restart | hit ratio before | started in, s | back after, s | operations/s until then |"]
    lines.append("| --- |" + " ---: |" * 4)
    lines += [
        f"| {run.way} | {pool.text(run.before, '.2%')} | {run.start_s:.1f} | {pool.text(run.back_s, '.1f')} "
        f"| {run.operations_per_s:,.0f} |"
        for run in results.runs
    ]
    return "\n".join(
        [
            *lines,
            "",
            *(f"- {summary(run)}." for run in results.runs),
            f"- {machine.in_words(results.machine)}",
            f"- {results.table.in_words()}. Zipf 0.99, 5 % updates; {results.settings}; "
            f"the system's page cache: {results.page_cache}; windows of {WINDOW_S:g} s.",
            f"- Measured {results.started_at}.",
        ]
    )
