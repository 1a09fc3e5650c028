"""`voltpy snapshot DIR` and `voltpy snapshot --verify DIR`."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from voltpy import snapshot_check, snapshot_taking
from voltpy.address import Address
from voltpy.cli.options import json_option, print_value, size, size_text, timeout_option, url_option
from voltpy.client import connect

DAMAGED = 3
LINE_S = 5.0  # between two lines of progress, where there is no terminal


@click.command()
@url_option
@timeout_option(30.0)
@json_option
@click.option("--rate", callback=size, metavar="SIZE", help="Copy at most so much a second.  [default: no limit]")
@click.option("--verify", is_flag=True, help="Check the snapshot in DIR instead. Needs no cluster.")
@click.option("--lease", type=click.FloatRange(0.1, 600), default=snapshot_taking.LEASE_S, hidden=True)
@click.argument("directory", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
def snapshot(
    url: str, timeout: float, as_json: bool, rate: int | None, verify: bool, lease: float, directory: Path
) -> int:
    """Copy a running cluster's data into DIR, or check such a copy.

    A checkpoint of every partition is copied, with schema and procedures. DIR must not exist, or be empty; it is on
    the cluster's machine. The cluster works on meanwhile. Everything that was answered before the snapshot began is
    in it. `voltpy start --restore DIR` begins a new data directory from it.

    With --verify every page, index entry and count of a snapshot is checked.

    Exit status: 0 when the snapshot was made, or is whole; 3 when --verify found damage; 1 for an error; 130 after
    Ctrl-C, which leaves nothing behind.
    """
    if rate == 0:
        raise click.BadParameter("at least a byte a second", param_hint="--rate")
    if verify:
        return _verify(directory, as_json=as_json)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a terminated snapshot leaves nothing behind either
    began_s = time.monotonic()
    Address(url).check()
    with connect(url, timeout=timeout, retry_s=timeout) as db, progress_on_stderr(hidden=as_json) as progress:
        manifest = snapshot_taking.take(db, directory, rate=rate, lease_s=lease, progress=progress)
    seconds = time.monotonic() - began_s
    if as_json:
        print_value(
            {
                "directory": str(directory),
                "partitions": [msgspec.structs.asdict(entry) for entry in manifest.partitions],
                "bytes": manifest.bytes,
                "seconds": round(seconds, 3),
                "created_at": manifest.created_at,
            },
            as_json=True,
        )
    else:
        lsns = ", ".join(f"{entry.lsn:,}" for entry in manifest.partitions)
        click.echo(
            f"snapshot {directory}: {len(manifest.partitions)} partitions as of LSN {lsns}, "
            f"{size_text(manifest.bytes)}, in {seconds:.1f} s"
        )
    return 0


def _verify(directory: Path, *, as_json: bool) -> int:
    with progress_on_stderr(hidden=as_json) as progress:
        report = snapshot_check.check(directory, lambda checked, total: progress("checked", checked, total))
    if as_json:
        print_value(snapshot_check.summary(report), as_json=True)
    elif report.damage:
        click.echo(f"snapshot {directory} is damaged; the first of each kind:")
        for damage in report.damage:
            place = damage.file if damage.offset is None else f"{damage.file} offset {damage.offset}"
            more = f" (and {damage.count - 1:,} more)" if damage.count > 1 else ""
            click.echo(f"  {damage.kind}: {place}: {damage.text}{more}")
    else:
        rows = sum(sum(partition.rows.values()) for partition in report.partitions)
        pages = sum(partition.pages for partition in report.partitions)
        click.echo(
            f"snapshot {directory} is whole: {len(report.partitions)} partitions, {rows:,} rows on {pages:,} pages, "
            f"made {report.created_at}"
        )
    return DAMAGED if report.damage else 0


@contextmanager
def progress_on_stderr(*, hidden: bool = False) -> Iterator[snapshot_taking.Progress]:
    """How many bytes are done, on stderr: a bar at a terminal, elsewhere a line now and then."""
    console = Console(stderr=True)
    if hidden:
        yield lambda what, done, total: None
    elif not console.is_terminal:
        yield _lines()
    else:
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("checkpoints", total=None)

            def update(what: str, done: int, total: int) -> None:
                if what == "checkpoints":  # counted, not measured
                    bar.update(task, description=f"checkpoints: {done} of {total}")
                else:
                    bar.update(task, description=what, completed=done, total=total)

            yield update


def _lines() -> Callable[[str, int, int], None]:
    said, said_s = "", float("-inf")

    def say(what: str, done: int, total: int) -> None:
        nonlocal said, said_s
        now_s = time.monotonic()
        if what == said and now_s - said_s < LINE_S:
            return
        said, said_s = what, now_s
        amount = f"{done} of {total}" if what == "checkpoints" else f"{size_text(done)} of {size_text(total)}"
        click.echo(f"{what}: {amount}", err=True)

    return say
