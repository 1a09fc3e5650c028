"""`voltpy status` and `voltpy stop`."""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import click
import msgspec
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from voltpy.cli.options import console, json_option, print_value, size_text, timeout_option, url_option
from voltpy.client import Client, connect
from voltpy.ending import ending
from voltpy.errors import ClusterError, Indeterminate, Unavailable

WATCH_INTERVAL_S = 1.0
STOP_LIMIT_S = 30.0
COLUMNS = ("state", "pid", "epoch", "restarts", "memory", "CPU", "calls/s", "calls", "flush", "LSN")
NARROW_COLUMNS = tuple(column for column in COLUMNS if column not in ("CPU", "flush", "LSN"))
_COLOURS = {"serving": "green", "starting": "yellow", "backoff": "yellow", "failed": "bold red"}


@click.command()
@url_option
@timeout_option(10.0)
@json_option
@click.option(
    "--watch",
    is_flag=True,
    help="Show it again every second, until Ctrl-C. Into a file or a pipe: a line each time, while there is a reader.",
)
def status(url: str, timeout: float, as_json: bool, watch: bool) -> None:
    """Show every process: state, memory, calls a second, flushes.

    With --watch, Ctrl-C and a reader that leaves are the normal end: exit status 0.
    """
    with connect(url, timeout=timeout) as db:
        if not watch:
            report = db.status()
            if as_json:
                return print_value(report, as_json=True)
            shown_on = console()
            return shown_on.print(rendered(report, shown_on))
        with suppress(KeyboardInterrupt):
            if as_json or not sys.stdout.isatty():
                _watch_lines(db, as_json=as_json)
            else:
                _watch_live(db)


def _watch_live(db: Client) -> NoReturn:
    with Live(auto_refresh=False) as live:
        while True:
            try:
                live.update(rendered(db.status(), live.console), refresh=True)
            except (Unavailable, Indeterminate) as error:
                # The router is being started again, perhaps: that is what one watches for.
                live.update(Text(str(error), "bold red"), refresh=True)
            time.sleep(WATCH_INTERVAL_S)


def _watch_lines(db: Client, *, as_json: bool) -> None:
    """A line each time. Returns when the reader is gone."""
    reader = select.poll()
    reader.register(sys.stdout.fileno(), 0)  # errors are told without being asked for: also between two lines
    try:
        while True:
            now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            try:
                report = db.status()
                line = msgspec.json.encode(report).decode() if as_json else f"{now} {_summary(report)}"
            except (Unavailable, Indeterminate) as error:  # as above
                code = type(error).__name__
                described = {"error": code, "message": str(error)}
                line = msgspec.json.encode(described).decode() if as_json else f"{now} {code}: {error}"
            click.echo(line)
            if reader.poll(WATCH_INTERVAL_S * 1000):
                return
    except BrokenPipeError:
        # What is left in the buffer would be written at the exit, and fail it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _summary(report: dict[str, Any]) -> str:
    """A status in one line."""
    children = _children(report)
    serving = sum(partition["state"] == "serving" for partition in report["partitions"])
    read_only = sum(bool(partition.get("metrics", {}).get("read_only")) for partition in report["partitions"])
    return (
        f"up {_duration(report['uptime_s'])}, router {report['router']['state']}, "
        f"coordinator {report['coordinator']['state']}, "
        f"{serving} of {len(report['partitions'])} partitions serving, "
        + (f"{read_only} read only, " if read_only else "")
        + f"{sum(child['restarts'] for child in children.values())} restarts, "
        f"{size_text(sum(child.get('rss_bytes', 0) for child in children.values()))}, "
        f"{sum(child.get('calls_per_s', 0.0) for name, child in children.items() if name != 'router'):,.0f} calls/s"
    )


def rendered(report: dict[str, Any], console: Console) -> RenderableType:
    """A status as a heading and a table, which has short names and fewer columns where the console is narrow."""
    heading = Text.assemble(
        (str(report["url"]), "bold"),
        f"  up {_duration(report['uptime_s'])}, fsync {report['fsync']}, ",
        f"procedures version {report['catalog_version']}, data {report['data']}",
    )
    children = _children(report)
    table = _table(children, COLUMNS)
    # A measure ends at its limit, so that has to lie beyond.
    if console.measure(table, options=console.options.update(max_width=10 * console.width)).maximum > console.width:
        table = _table({_short(name): child for name, child in children.items()}, NARROW_COLUMNS)
    problems = [Text(f"{name}: {_end(child)}", "red") for name, child in children.items() if "exit_status" in child]
    return Group(heading, table, *problems)


def _table(children: dict[str, dict[str, Any]], columns: Sequence[str]) -> Table:
    """A row of one line for each."""
    table = Table(box=None, pad_edge=False)
    for column in ("", *columns):
        table.add_column(column, justify="left" if column in ("", "state") else "right", no_wrap=True)
    for name, child in children.items():
        cells = _cells(child)
        table.add_row(name, *(cells[column] for column in columns))
    return table


def _short(name: str) -> str:
    """partition 3 → p3"""
    return {"coordinator": "coord"}.get(name, name.replace("partition ", "p"))


def _children(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The processes of a status, by name, in the order in which they are shown."""
    partitions = {f"partition {partition['partition']}": partition for partition in report["partitions"]}
    return {"router": report["router"], "coordinator": report["coordinator"], **partitions}


def _end(child: dict[str, Any]) -> str:
    status, last_words = child["exit_status"], child["last_words"]
    if status is None or status < 0 or not last_words:
        return ending(status, last_words)
    return f"exit status {status}: {last_words}"


def _cells(child: dict[str, Any]) -> dict[str, Text | str]:
    """By column: all of COLUMNS."""
    metrics = child.get("metrics", {})
    calls = metrics.get("calls", metrics.get("calls_answered"))
    flush_us = metrics.get("flush_us")
    state = "read only" if metrics.get("read_only") and child["state"] == "serving" else child["state"]
    # What the coordinator counts are batches, from a large number on in each epoch.
    lsn = f"{child['lsn']:,}" if child.get("incarnation") and "partition" in child else "–"
    return {
        "state": Text(state, "yellow" if state == "read only" else _COLOURS.get(state, "")),
        "pid": str(child["pid"] or "–"),
        "epoch": str(child.get("incarnation") or "–"),
        "restarts": str(child["restarts"]),
        "memory": size_text(child["rss_bytes"]) if "rss_bytes" in child else "–",
        "CPU": f"{child['cpu_s']:.1f} s" if "cpu_s" in child else "–",
        "calls/s": f"{child['calls_per_s']:,.0f}" if "calls_per_s" in child else "–",
        "calls": f"{calls:,}" if isinstance(calls, int) else "–",
        "flush": f"{flush_us:,.0f} µs" if isinstance(flush_us, int | float) else "–",
        "LSN": lsn,
    }


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


@click.command()
@url_option
@timeout_option(10.0)
@json_option
def stop(url: str, timeout: float, as_json: bool) -> None:
    """Stop the cluster, and wait for its end.

    Calls that are under way finish, and everything is flushed.
    """
    with connect(url, timeout=timeout) as db:
        runtime = Path(db.status()["runtime_directory"])
        same_machine = runtime.exists()
        # The router may be gone before its answer is here; what counts is whether the cluster is.
        with suppress(Unavailable, Indeterminate):
            db.stop()
    stopped = same_machine and _gone(runtime)
    if same_machine and not stopped:
        raise ClusterError(f"the cluster at {url} was told to stop and still runs after {STOP_LIMIT_S:.0f} s")
    if as_json:
        print_value({"stopped": stopped}, as_json=True)
    else:
        click.echo(f"the cluster at {url} {'has stopped' if stopped else 'is stopping'}")


def _gone(runtime: Path) -> bool:
    """Whether the runtime directory disappears in time: the supervisor removes it last."""
    deadline = time.monotonic() + STOP_LIMIT_S
    while runtime.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
