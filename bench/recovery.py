"""`python -m bench recovery`: what a partition does after kill -9, with so much in its checkpoint and so much WAL.

The rows are loaded, and a checkpoint of all of them is made. Then rows are updated, any as likely as the other, until
the WAL behind the checkpoint has the size that was asked for, and the supervisor is killed with everything. The next
start is timed: by the partition's own clock, from its first look at the disk until it can serve, the checkpoint and the
WAL apart, and until what the recovery had left is in the pages too (partitions.redo), while clients read already; and
from outside, until the client has its first answer. Then every row is compared with what was acknowledged.
"""

from __future__ import annotations

import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import click
import msgspec
from msgspec import Struct

from bench import machine
from bench.peers.cluster import Cluster
from bench.table import data_directory, errors_for_the_command_line, load, on_a_disk, say
from bench.workload import BenchError, batches
from bench.workloads.ycsb import LEAST_ROW_BYTES, MOST_ROW_BYTES, Rows
from bench.zipf import uniform
from voltpy.cli.options import size

ROWS_BYTES, WAL_BYTES = 1 << 30, 200_000_000
WANTED_ROWS_PER_S, WANTED_CHANGES_PER_S = 1_000_000, 300_000
MEMORY_TIMES, LEAST_MEMORY_BYTES = 3, 32 << 20  # the rows: nothing leaves
LEASE_S = 60.0
CALLS_A_BATCH = 4096
EVENT_WAIT_S = 60.0


class Results(Struct):
    """Seconds are those of the slowest partition; `rows` and `changes` are of all."""

    machine: machine.Machine
    settings: str
    started_at: str
    row_bytes: int
    rows: int
    checkpoint_s: float
    wal_bytes: int
    changes: int
    replay_s: float
    serves_s: float
    pages_left: int  # when it could serve
    written_s: float  # since the replay began


@click.command("recovery")
@click.option("--rows", "rows_bytes", default="1G", show_default=True, callback=size, help="Bytes of all rows.")
@click.option(
    "--wal", "wal_bytes", default="200M", show_default=True, callback=size, help="Bytes behind the checkpoint."
)
@click.option("--row-bytes", default=500, show_default=True, type=click.IntRange(LEAST_ROW_BYTES, MOST_ROW_BYTES))
@click.option("--partitions", default=1, show_default=True, type=click.IntRange(1, 1024))
@click.option(
    "--directory",
    default=tempfile.gettempdir(),
    show_default=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    callback=on_a_disk,
    help="Holds the data; a disk, not memory.",
)
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the results here.")
def main(
    rows_bytes: int, wal_bytes: int, row_bytes: int, partitions: int, directory: Path, json_file: Path | None
) -> None:
    """Recovery after kill -9: rows a second out of the checkpoint, changes a second out of the WAL."""
    rows = Rows(max(1, rows_bytes // row_bytes), row_bytes)
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    with errors_for_the_command_line(), data_directory(directory) as own:
        cluster = Cluster(
            own,
            memory_bytes=max(MEMORY_TIMES * rows_bytes, partitions * LEAST_MEMORY_BYTES),
            partitions=partitions,
            fsync="always",
            partition_options=("--checkpoint-bytes", str(1 << 40)),  # none but the one that is asked for
        )
        with cluster:
            load(cluster, "voltpy", rows)
            _checkpoint(cluster)
            before = _wal_bytes(cluster)
            last = _update(cluster, rows, wal_bytes)
            written_bytes = _wal_bytes(cluster) - before
            say(f"{written_bytes / 1e6:,.0f} MB of WAL behind the checkpoint; killing")
            cluster.kill()
            began_s = perf_counter()
            cluster.start()
            key, value = next(iter(last.items()))
            if cluster.column(key, 0) != value:
                raise BenchError(f"row {key} is not what was acknowledged")
            serves_s = perf_counter() - began_s
            recovered = cluster.events("recovered")
            _verify(cluster, rows, last)
            results = Results(
                machine.describe(directory),
                cluster.settings,
                started_at,
                row_bytes,
                rows.count,
                max(event["checkpoint_seconds"] for event in recovered),
                written_bytes,
                sum(event["changes"] for event in recovered),
                max(event["seconds"] - event["checkpoint_seconds"] for event in recovered),
                serves_s,
                sum(event["pages_left"] for event in recovered),
                max(_written_s(cluster, event) for event in recovered),
            )
    if json_file is not None:
        json_file.write_bytes(msgspec.json.format(msgspec.json.encode(results)))
    click.echo(markdown(results, partitions))


def _checkpoint(cluster: Cluster) -> None:
    """Has every partition make one now, by way of a snapshot that nobody copies."""
    described = cluster.client.begin_snapshot("(none: for a benchmark)", os.getpid(), LEASE_S)
    while (state := cluster.client.renew_snapshot(described["snapshot"]))["state"] != "held":
        if state["state"] == "failed":
            raise BenchError(f"no checkpoint was made: {state['reason']}")
        sleep(0.05)
    cluster.client.end_snapshot(described["snapshot"])


def _update(cluster: Cluster, rows: Rows, wal_bytes: int) -> dict[int, str]:
    """Updates rows until so much was written to the WAL. The first column of each, as acknowledged last."""
    before = _wal_bytes(cluster)
    last: dict[int, str] = {}
    serial = 0
    while _wal_bytes(cluster) - before < wal_bytes:
        keys = dict.fromkeys(uniform(rows.count, CALLS_A_BATCH, serial))
        updates = [(key, 0, rows.value(key, 0, serial + 1)) for key in keys]
        serial += 1
        cluster.client.call_many("update_row", updates)
        last.update((key, value) for key, _, value in updates)
    return last


def _written_s(cluster: Cluster, recovered: dict[str, Any]) -> float:
    """From when the partition began to replay until it had written all that was replayed."""
    written = [recovered] if not recovered["pages_left"] else []
    until_s = perf_counter() + EVENT_WAIT_S
    while not written:
        written = [event for event in cluster.events("caught_up") if event["partition"] == recovered["partition"]]
        if perf_counter() > until_s:
            raise BenchError("not everything that was replayed has been written")
        sleep(0.01)
    return float(written[0]["seconds"] - recovered["checkpoint_seconds"])


def _wal_bytes(cluster: Cluster) -> int:
    """What the partitions have appended to their WALs in this life, as the supervisor hears it twice a second."""
    return sum(metrics["wal_appended_bytes"] for metrics in cluster.metrics_by_directory().values())


def _verify(cluster: Cluster, rows: Rows, last: dict[int, str]) -> None:
    for keys in batches(list(last), CALLS_A_BATCH):
        found = cluster.client.call_many("read_row", [(key,) for key in keys])
        for key, row in zip(keys, found, strict=True):
            if row[1] != last[key]:
                raise BenchError(f"row {key} is not what was acknowledged")
    counted = sum(cluster.scan())
    if counted != rows.count:
        raise BenchError(f"{counted:,} rows of {rows.count:,} are there")


def markdown(results: Results, partitions: int) -> str:
    rows_per_s = results.rows / results.checkpoint_s / partitions
    changes_per_s = results.changes / results.replay_s / partitions
    held = {True: "held", False: "SHORT"}
    return "\n".join(
        [
            "| recovery after kill -9 | | seconds | a second and partition | wanted | |",
            "| --- | ---: | ---: | ---: | ---: | --- |",
            f"| rows in the checkpoint, {results.row_bytes} bytes each | {results.rows:,} | {results.checkpoint_s:.2f} "
            f"| {rows_per_s:,.0f} | {WANTED_ROWS_PER_S:,} | {held[rows_per_s >= WANTED_ROWS_PER_S]} |",
            f"| changes in {results.wal_bytes / 1e6:,.0f} MB of WAL | {results.changes:,} | {results.replay_s:.2f} "
            f"| {changes_per_s:,.0f} | {WANTED_CHANGES_PER_S:,} | {held[changes_per_s >= WANTED_CHANGES_PER_S]} |",
            f"| until these are in their pages, {results.pages_left:,} of which were left | | {results.written_s:.2f} "
            f"| {results.changes / results.written_s / partitions:,.0f} | | |",
            f"| from the start's command to the first answer | | {results.serves_s:.2f} | | | |",
            "",
            "- Replay: until calls are served. What is about cold pages is left then, and written while clients read.",
            "- Every row that was changed was compared with what was acknowledged, and all rows counted.",
            f"- {machine.in_words(results.machine)}",
            f"- {results.settings}",
            f"- Measured {results.started_at}.",
        ]
    )
