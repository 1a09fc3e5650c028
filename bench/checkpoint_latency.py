"""`python -m bench checkpoint-latency`: what a call waits while a checkpoint is made, and while none is.

First as many calls as the client can send, for the peak; then a constant rate, a part of that peak, whatever comes
back. Latency counts from when a call was due, so that a stop of the partition is charged in full. Calls that were due
while a checkpoint ran in any partition are told from the others. Checkpoints are made often, by way of a small
--checkpoint-bytes, for the sake of short runs.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median

import click
import msgspec
from msgspec import Struct

from bench import machine
from bench.checkpoints import Watch
from bench.clients import Clients, rate
from bench.measure import percentile
from bench.peers.cluster import Cluster, OpenLoop
from bench.table import Table, data_directory, durability, errors_for_the_command_line, load, say, table_options
from bench.windows import Interval, split, union
from bench.workload import BenchError
from voltpy.cli.options import size

PERCENTS = (50.0, 99.0, 99.9, 100.0)
HEAD = ("p50, µs", "p99, µs", "p99.9, µs", "max, µs")


class Latencies(Struct, frozen=True):
    """`percentiles_us`: at 50, 99, 99.9 and 100 percent."""

    calls: int
    percentiles_us: list[float]


class Run(Struct, frozen=True):
    repetition: int
    peak_per_s: float
    calls_per_s: float
    checkpoints: int
    checkpoint_s: float
    seconds: float
    during: Latencies
    without: Latencies


class Results(Struct):
    machine: machine.Machine
    table: Table
    settings: str
    update_percent: float
    load_percent: float
    started_at: str
    runs: list[Run]


@click.command("checkpoint-latency")
@table_options(memory="512M", ratio=0.25)
@click.option("--seconds", default=20.0, show_default=True, type=click.FloatRange(0.5, 3600), help="Of one run.")
@click.option("--repeat", default=1, show_default=True, type=click.IntRange(1, 1000))
@click.option(
    "--load", "load_percent", default=50.0, show_default=True, type=click.FloatRange(1, 100), help="% of peak."
)
@click.option(
    "--updates", "update_percent", default=50.0, show_default=True, type=click.FloatRange(0.1, 100), help="%."
)
@click.option("--checkpoint-bytes", default="32M", show_default=True, callback=size, help="Of WAL, for each partition.")
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
    load_percent: float,
    update_percent: float,
    checkpoint_bytes: int,
) -> None:
    """Latency of calls at a constant rate, with a checkpoint running and without one."""
    results = Results(
        machine.describe(directory),
        Table(memory, ratio, row_bytes),
        "",
        update_percent,
        load_percent,
        datetime.now(UTC).isoformat(timespec="seconds"),
        [],
    )
    with errors_for_the_command_line(), data_directory(directory) as own:
        cluster = Cluster(
            own,
            memory_bytes=memory,
            partitions=partitions,
            fsync=durability(fsync),
            partition_options=("--checkpoint-bytes", str(checkpoint_bytes)),
        )
        results.settings = cluster.settings
        try:
            with cluster:
                load(cluster, "voltpy", results.table.rows)
                for repetition in range(repeat):
                    results.runs.append(_run(results, cluster, repetition, seconds, min(warm_up, 5.0)))
                    say(summary(results.runs[-1]))
        finally:
            if json_file is not None:
                json_file.write_bytes(msgspec.json.format(msgspec.json.encode(results)))
    click.echo(markdown(results))


def _run(results: Results, cluster: Cluster, repetition: int, seconds: float, peak_s: float) -> Run:
    rows, updates = results.table.rows, results.update_percent
    with Clients(partial(OpenLoop, cluster.url, 0.0), rows, update_percent=updates) as clients:
        clients.run(peak_s / 5)
        peak = rate(clients.run(peak_s))
    calls_per_s = peak * results.load_percent / 100
    with Clients(partial(OpenLoop, cluster.url, calls_per_s), rows, update_percent=updates) as clients:
        clients.run(1.0)
        with Watch(cluster.partition_directories(), cluster.metrics_by_directory) as watch:
            (tally,) = clients.run(seconds)
        intervals = watch.intervals()
    during, without = split(list(zip(tally.sent_at_s, tally.latencies_us, strict=True)), intervals)
    if not during or not without:
        raise BenchError(
            f"{len(intervals)} checkpoints took {'none' if not during else 'all'} of the time: "
            "there is nothing to compare; try another --checkpoint-bytes or longer --seconds"
        )
    return Run(
        repetition,
        peak,
        calls_per_s,
        len(intervals),
        _total_s(intervals),
        tally.elapsed_s,
        _latencies(during),
        _latencies(without),
    )


def _total_s(intervals: list[Interval]) -> float:
    return sum(end - begin for begin, end in union(intervals))


def _latencies(values_us: list[float]) -> Latencies:
    return Latencies(len(values_us), [percentile(values_us, percent) for percent in PERCENTS])


def summary(run: Run) -> str:
    ratios = ", ".join(
        f"{during / without:.2f}"
        for during, without in zip(run.during.percentiles_us, run.without.percentiles_us, strict=True)
    )
    return (
        f"peak {run.peak_per_s:,.0f}/s, load {run.calls_per_s:,.0f}/s, {run.checkpoints} checkpoints in "
        f"{run.checkpoint_s:.1f} of {run.seconds:.1f} s; p50, p99, p99.9, max with one ÷ without: {ratios}"
    )


def markdown(results: Results) -> str:
    lines = [f"| | calls | {' | '.join(HEAD)} |", "| --- |" + " ---: |" * (1 + len(HEAD))]
    during = [run.during for run in results.runs]
    without = [run.without for run in results.runs]
    for name, group in (("with a checkpoint", during), ("without one", without)):
        cells = [f"{median(one.percentiles_us[at] for one in group):,.0f}" for at in range(len(PERCENTS))]
        lines.append(f"| {name} | {sum(one.calls for one in group):,} | {' | '.join(cells)} |")
    pairs = list(zip(during, without, strict=True))
    ratios = [
        f"{median(one.percentiles_us[at] / other.percentiles_us[at] for one, other in pairs):.2f}"
        for at in range(len(PERCENTS))
    ]
    lines.append(f"| with ÷ without | | {' | '.join(ratios)} |")
    lines += [
        "",
        *(f"- {summary(run)}." for run in results.runs),
        f"- {machine.in_words(results.machine)}",
        f"- {results.table.in_words()}. Zipf 0.99, {results.update_percent:g} % updates; {results.settings}.",
        f"- Measured {results.started_at}.",
    ]
    return "\n".join(lines)
