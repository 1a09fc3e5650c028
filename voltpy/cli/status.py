"""`voltpy status` and `voltpy stop`."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from voltpy.cli.options import console, json_option, print_value, size_text, timeout_option, url_option
from voltpy.client import connect
from voltpy.errors import ClusterError, Indeterminate, Unavailable

WATCH_INTERVAL_S = 1.0
STOP_LIMIT_S = 30.0
_COLOURS = {"serving": "green", "starting": "yellow", "backoff": "yellow", "failed": "bold red"}


@click.command()
@url_option
@timeout_option(10.0)
@json_option
@click.option("--watch", is_flag=True, help="Show it again every second, until Ctrl-C.")
def status(url: str, timeout: float, as_json: bool, watch: bool) -> None:
    """Show the router and every partition: state, memory, calls a second, flushes."""
    with connect(url, timeout=timeout) as db:
        if not watch:
            report = db.status()
            return print_value(report, as_json=True) if as_json else console().print(rendered(report))
        if as_json:
            while True:
                print_value(db.status(), as_json=True)
                time.sleep(WATCH_INTERVAL_S)
        with Live(auto_refresh=False) as live:
            while True:
                try:
                    live.update(rendered(db.status()), refresh=True)
                except Unavailable as error:
                    # The router is being started again, perhaps: that is what one watches for.
                    live.update(Text(str(error), "bold red"), refresh=True)
                time.sleep(WATCH_INTERVAL_S)


def rendered(report: dict[str, Any]) -> RenderableType:
    """A status as a heading and a table."""
    heading = Text.assemble(
        (str(report["url"]), "bold"),
        f"  up {_duration(report['uptime_s'])}, fsync {report['fsync']}, ",
        f"procedures version {report['catalog_version']}, data {report['data']}",
    )
    table = Table(box=None, pad_edge=False)
    for name in ("", "state", "pid", "epoch", "restarts"):
        table.add_column(name, justify="left" if name in ("", "state") else "right")
    for name in ("memory", "CPU", "calls/s", "calls", "flush", "LSN"):
        table.add_column(name, justify="right")
    table.add_row("router", *_cells(report["router"]))
    for partition in report["partitions"]:
        table.add_row(f"partition {partition['partition']}", *_cells(partition))
    problems = [
        Text(f"{child.get('partition', 'router')}: {_end(child)}{child['last_words']}", "red")
        for child in (report["router"], *report["partitions"])
        if child.get("last_words")
    ]
    return Group(heading, table, *problems)


def _end(child: dict[str, Any]) -> str:
    status = child["exit_status"]
    return "" if status is None else f"exit status {status}: "


def _cells(child: dict[str, Any]) -> list[Text | str]:
    metrics = child.get("metrics", {})
    calls = metrics.get("calls", metrics.get("calls_answered"))
    flush_us = metrics.get("flush_us")
    state = child["state"] + (" (read only)" if metrics.get("read_only") else "")
    return [
        Text(state, _COLOURS.get(child["state"], "")),
        str(child["pid"] or "–"),
        str(child.get("incarnation") or "–"),
        str(child["restarts"]),
        size_text(child["rss_bytes"]) if "rss_bytes" in child else "–",
        f"{child['cpu_s']:.1f} s" if "cpu_s" in child else "–",
        f"{child['calls_per_s']:,.0f}" if "calls_per_s" in child else "–",
        f"{calls:,}" if isinstance(calls, int) else "–",
        f"{flush_us:,.0f} µs" if isinstance(flush_us, int | float) else "–",
        f"{child['lsn']:,}" if child.get("incarnation") else "–",
    ]


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


@click.command()
@url_option
@timeout_option(10.0)
@json_option
def stop(url: str, timeout: float, as_json: bool) -> None:
    """Stop the cluster: calls that are under way finish, everything is flushed. Waits for the end."""
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
