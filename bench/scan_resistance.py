"""`python -m bench scan-resistance`: what a scan of the whole table does to the hit ratio of the hot workload.

The workload of larger-than-memory runs all the time. It is warmed up and watched for a while; then every partition
counts its rows by reading each of them, in one call; then the workload is watched again. A pool that lets a scan in
forgets its hot pages, and the hit ratio afterwards is lower until they are back.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from time import perf_counter, sleep

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
from bench.windows import mean
from bench.workload import BenchError, expect

WINDOW_S = 1.0


class Run(Struct, frozen=True):
    """`first_after`: the hit ratio in the first window after the scan, where a loss shows most."""

    repetition: int
    operations_per_s: float
    scan_s: float
    before: float | None
    during: float | None
    first_after: float | None
    after: float | None

    @property
    def lost_points(self) -> float | None:
        """Percentage points between before and after."""
        return None if self.before is None or self.after is None else (self.before - self.after) * 100


class Results(Struct):
    machine: machine.Machine
    table: Table
    settings: str
    page_cache: str
    started_at: str
    runs: list[Run]


@click.command("scan-resistance")
@table_options(memory="128M", ratio=8.0)
@click.option("--seconds", default=10.0, show_default=True, type=click.FloatRange(1, 600), help="Before, and after.")
@click.option("--repeat", default=1, show_default=True, type=click.IntRange(1, 1000))
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
    repeat: int,
) -> None:
    """Hit ratio of a hot workload before, during and after a scan of the whole table."""
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
                with Clients(partial(Pipelined, cluster.url), results.table.rows) as clients:
                    until_warm(clients, cluster.pool, warm_up)
                    for repetition in range(repeat):
                        results.runs.append(_run(results, cluster, clients, repetition, seconds))
                        say(summary(results.runs[-1]))
        finally:
            if json_file is not None:
                json_file.write_bytes(msgspec.json.format(msgspec.json.encode(results)))
    click.echo(markdown(results))


def _run(results: Results, cluster: Cluster, clients: Clients, repetition: int, seconds: float) -> Run:
    with Timeline(cluster.pool, WINDOW_S) as timeline:
        began_s = perf_counter()
        tallies = clients.run(seconds)
        scan_began_s = perf_counter()
        # How long the scan takes is not known before, so the workload goes on in short runs until it is over.
        with ThreadPoolExecutor(1) as thread:
            scan = thread.submit(cluster.scan)
            while not scan.done():
                clients.run(min(WINDOW_S, seconds))
            counted = scan.result()
        scan_ended_s = perf_counter()
        clients.run(seconds)
        ended_s = perf_counter()
        sleep(WINDOW_S)
    if timeline.error is not None:
        raise BenchError(f"no status: {timeline.error!r}")
    expect("rows counted by the scan", sum(counted), results.table.rows.count)
    after = timeline.ratios(scan_ended_s, ended_s)
    return Run(
        repetition,
        rate(tallies),
        scan_ended_s - scan_began_s,
        timeline.mean(began_s, scan_began_s),
        timeline.mean(scan_began_s, scan_ended_s),
        after[0][1] if after else None,
        mean([ratio for _, ratio in after]),
    )


def summary(run: Run) -> str:
    return (
        f"{run.operations_per_s:,.0f} operations/s, scan {run.scan_s:.1f} s; hit ratio before "
        f"{pool.text(run.before, '.2%')}, during {pool.text(run.during, '.2%')}, first window after "
        f"{pool.text(run.first_after, '.2%')}, after {pool.text(run.after, '.2%')}; "
        f"lost {pool.text(run.lost_points, '.2f')} points"
    )


def markdown(results: Results) -> str:
    lines = ["| repetition | before | during | first window after | after | lost, points |", "| ---: |" + " ---: |" * 5]
    for run in results.runs:
        ratios = (run.before, run.during, run.first_after, run.after)
        cells = [str(run.repetition + 1), *(pool.text(ratio, ".2%") for ratio in ratios)]
        lines.append(f"| {' | '.join(cells)} | {pool.text(run.lost_points, '.2f')} |")
    return "\n".join(
        [
            *lines,
            "",
            *(f"- {summary(run)}." for run in results.runs),
            f"- {machine.in_words(results.machine)}",
            f"- {results.table.in_words()}. Zipf 0.99, 5 % updates; {results.settings}; "
            f"the system's page cache: {results.page_cache}.",
            f"- Measured {results.started_at}.",
        ]
    )
