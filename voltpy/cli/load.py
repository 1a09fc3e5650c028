"""`voltpy load TABLE FILE.csv`."""

from __future__ import annotations

import csv
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from voltpy import csv_load
from voltpy.address import Address
from voltpy.cli.options import json_option, print_value, timeout_option, url_option
from voltpy.client import connect
from voltpy.csv_load import Loader, Rejected, RowReader, Source
from voltpy.errors import ClusterError, Error
from voltpy.schema import Table, from_json

RETRY_S = 30.0  # a partition that is restarted meanwhile does not end the load
SHOWN_REJECTS = 3
REJECTED = 3
INTERRUPTED = 130
STDIN = Path("-")


class Rejects:
    """The file of rejected rows, made when there is one: line, reason, and the row as it was."""

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        self.path = path
        self.first: list[Rejected] = []
        self._names = names
        self._file: Any = None
        self._writer: Any = None

    def add(self, rejected: Rejected) -> None:
        if self._file is None:
            try:
                self._file = self.path.open("w", encoding="utf-8", errors="surrogateescape", newline="")
            except OSError as error:
                raise ClusterError(
                    f"line {rejected.line} can't be loaded ({rejected.reason}), nor kept in {self.path}:"
                    f" {error.strerror or error}; --rejects FILE says where"
                ) from None
            self._writer = csv.writer(self._file)
            self._writer.writerow(["line", "reason", *self._names])
        if len(self.first) < SHOWN_REJECTS:
            self.first.append(rejected)
        self._writer.writerow([rejected.line, rejected.reason, *rejected.fields])

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


@click.command()
@url_option
@timeout_option(120.0)
@json_option
@click.option("--delimiter", default=",", show_default=True, help=r"One character; \t for a tab.")
@click.option(
    "--null", "nulls", multiple=True, metavar="TEXT", help="A spelling of NULL beside the empty field; repeatable."
)
@click.option(
    "--columns", metavar="A,B,C", help="The file's columns; it has no header then. `-`: this field is not loaded."
)
@click.option("--header", is_flag=True, help="With --columns: the file has a header all the same; skip it.")
@click.option(
    "--rejects", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
    help="[default: FILE.rejected.csv; of what is no file: TABLE.rejected.csv]",
)  # fmt: skip
@click.option(
    "--batch",
    type=click.IntRange(1, 100_000),
    default=csv_load.BATCH_ROWS,
    show_default=True,
    help="Rows a transaction.",
)
@click.argument("table_name", metavar="TABLE")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path))
def load(
    url: str,
    timeout: float,
    as_json: bool,
    delimiter: str,
    nulls: tuple[str, ...],
    columns: str | None,
    header: bool,
    rejects: Path | None,
    batch: int,
    table_name: str,
    file: Path,
) -> int:
    """Load a CSV file (.csv, .gz, .zip; -: stdin) into TABLE.

    FILE is - for stdin. The first line names the columns, unless --columns does. Values are read by the types of the
    table's columns: times in ISO 8601, an empty field is NULL. A row that can't be loaded goes to a file of rejected
    rows, with its line and the reason, and the others go on. Ctrl-C stops, and says how far it got.

    Exit status: 0 when every row was loaded, 3 when some were rejected, 1 for an error that ended the load, 130 after
    Ctrl-C.
    """
    delimiter = "\t" if delimiter in ("\\t", "tab") else delimiter
    if len(delimiter) != 1 or delimiter in '"\r\n':
        raise click.BadParameter("one character", param_hint="--delimiter")
    names = [name.strip() for name in columns.split(",")] if columns is not None else None
    is_file = file.is_file() and file != STDIN
    file = Path("/dev/stdin") if file == STDIN else file
    if rejects is None:
        rejects = file.with_name(f"{file.name}.rejected.csv") if is_file else Path(f"{table_name}.rejected.csv")
        _remove(rejects)  # of an earlier load: its rows would pass for this one's
    Address(url).check()  # retried are calls alone: nobody waits for a cluster that is not there
    with connect(url, timeout=timeout, retry_s=RETRY_S) as db:
        status = db.status()
        table = from_json(msgspec.json.encode(status["schema"])).table(table_name)
        summary = _load(
            db, table, len(status["partitions"]), file, delimiter, nulls, names, header, rejects, batch, as_json
        )
    if as_json:
        print_value(summary, as_json=True)
    if summary["interrupted"]:
        return INTERRUPTED
    return REJECTED if summary["rejected"] else 0


def _load(
    db: Any,
    table: Table,
    partitions: int,
    file: Path,
    delimiter: str,
    nulls: tuple[str, ...],
    names: list[str] | None,
    header: bool,
    rejects_path: Path,
    batch_rows: int,
    as_json: bool,
) -> dict[str, Any]:
    """Loads the file; the summary."""
    console = Console(stderr=True)
    began_s = time.monotonic()
    read = 0
    with ExitStack() as stack:
        source = Source(file, delimiter)
        stack.callback(source.close)
        records = source.records()
        if names is None or header:
            _, first, problem = next(records, (0, [], "the file is empty"))
            if problem:
                raise ClusterError(f"{file}: {problem}")
            names = names or [name.strip() for name in first]
        row_reader = RowReader(table, names, frozenset(nulls))
        rejects = Rejects(rejects_path, names)
        stack.callback(rejects.close)
        loader = Loader(db, table, partitions, rejects.add, batch_rows=batch_rows)
        progress = stack.enter_context(_progress(console, hidden=as_json))
        task = progress.add_task(f"{file.name} → {table.name}", total=source.bytes_total or None, loaded=0)
        interrupted = stack.enter_context(_Interrupt())
        stopped = False
        try:
            for line, fields, problem in records:
                read += 1
                try:
                    if problem:
                        raise ValueError(problem)
                    row = row_reader.read(fields)
                except ValueError as error:
                    loader.reject(line, str(error), fields)
                else:
                    loader.add(line, fields, row)
                if read % 1000 == 0:
                    progress.update(task, completed=source.bytes_read, loaded=loader.loaded)
                if interrupted():
                    stopped = True
                    break
            # Also after Ctrl-C: every row up to this line is loaded or rejected, and the next load can begin behind it.
            loader.finish()
        except Error as error:
            reached = f"{loader.loaded:,} rows were loaded and {loader.rejected:,} rejected before line {source.line:,}"
            raise type(error)(f"{error} ({reached}; load the file again: rows that are there are rejected)") from None
        progress.update(task, completed=source.bytes_read, loaded=loader.loaded)
    seconds = time.monotonic() - began_s
    summary = {
        "table": table.name,
        "file": str(file),
        "rows_read": read,
        "loaded": loader.loaded,
        "rejected": loader.rejected,
        "rejects_file": str(rejects.path) if loader.rejected else None,
        "seconds": round(seconds, 3),
        "rows_per_s": round(read / seconds) if seconds else 0,
        "interrupted": stopped,
        "last_line": source.line,
    }
    if not as_json:
        _tell(summary, rejects)
    return summary


def _remove(path: Path) -> None:
    try:
        if path.exists():
            path.unlink()
    except OSError as error:
        raise ClusterError(f"{path}, of an earlier load, can't be removed: {error.strerror or error}") from None


def _tell(summary: dict[str, Any], rejects: Rejects) -> None:
    rows = f"{summary['rows_read']:,} row{'' if summary['rows_read'] == 1 else 's'}"
    click.echo(
        f"{summary['table']}: {rows} read, {summary['loaded']:,} loaded, "
        f"{summary['rejected']:,} rejected in {summary['seconds']:.1f} s ({summary['rows_per_s']:,} rows/s)"
    )
    for rejected in rejects.first:
        click.echo(f"  line {rejected.line}: {rejected.reason}")
    if summary["rejected"]:
        more = "…  " if summary["rejected"] > len(rejects.first) else ""
        click.echo(f"  {more}all rejected rows, with their reasons: {rejects.path}")
    if summary["interrupted"]:
        click.echo(
            f"stopped after line {summary['last_line']:,}: every row up to there is loaded or rejected", err=True
        )


def _progress(console: Console, *, hidden: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TextColumn("{task.fields[loaded]:,} rows"),
        TimeRemainingColumn(),
        console=console,
        disable=hidden or not console.is_terminal,
        transient=True,
    )


class _Interrupt:
    """The first Ctrl-C only sets a flag, so that no row is lost between two steps; the second one ends it all."""

    def __init__(self) -> None:
        self._seen = False
        self._before: Any = None

    def __call__(self) -> bool:
        return self._seen

    def __enter__(self) -> Callable[[], bool]:
        self._before = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _on_signal(self, *_: object) -> None:
        if self._seen:
            sys.exit(INTERRUPTED)
        self._seen = True
