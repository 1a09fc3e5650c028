"""A table and the memory that it is larger than: the options of the commands that measure one, and how it is loaded."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, Protocol, TypeVar

import click
from msgspec import Struct

from bench import machine
from bench.workload import BenchError, Fsync
from bench.workloads.ycsb import LEAST_ROW_BYTES, MOST_ROW_BYTES, Rows
from voltpy.cli.options import size
from voltpy.errors import Error

MEMORY_FILESYSTEMS = ("tmpfs", "ramfs")
TOLD_EVERY_S = 2.0
Command = TypeVar("Command", bound=Callable[..., Any])


class Table(Struct, frozen=True):
    """`ratio`: how many times the memory the rows are, as the sum of their columns."""

    memory_bytes: int
    ratio: float
    row_bytes: int

    @property
    def rows(self) -> Rows:
        return Rows(max(1, int(self.memory_bytes * self.ratio / self.row_bytes)), self.row_bytes)

    def in_words(self) -> str:
        mebibytes = self.rows.count * self.row_bytes / 2**20
        return (
            f"{self.rows.count:,} rows of 10 columns, {self.row_bytes:,} bytes each, {mebibytes:,.0f} MiB together: "
            f"{self.ratio:g} times the memory of {self.memory_bytes / 2**20:,.0f} MiB"
        )


class Loadable(Protocol):
    def load(self, rows: Rows, tell: Callable[[int], None]) -> None: ...


def table_options(memory: str, ratio: float) -> Callable[[Command], Command]:
    """--memory, --ratio and --row-bytes, and what every command has beside them."""
    options = (
        click.option("--memory", default=memory, show_default=True, callback=size, help="For all partitions together."),
        click.option(
            "--ratio", default=ratio, show_default=True, type=click.FloatRange(0, min_open=True), help="Data ÷ memory."
        ),
        click.option(
            "--row-bytes", default=1000, show_default=True, type=click.IntRange(LEAST_ROW_BYTES, MOST_ROW_BYTES)
        ),
        click.option("--partitions", default=2, show_default=True, type=click.IntRange(1, 1024)),
        click.option(
            "--fsync", default="always", show_default=True, type=click.Choice(["always", "everysec", "never"])
        ),
        click.option(
            "--warm-up", default=60.0, show_default=True, type=click.FloatRange(0, 3600), help="Seconds, most."
        ),
        click.option(
            "--page-cache",
            default="forget",
            show_default=True,
            type=click.Choice(["forget", "keep"]),
            help="forget: the system's page cache answers for no disk.",
        ),
        click.option(
            "--directory",
            default=tempfile.gettempdir(),
            show_default=True,
            type=click.Path(exists=True, file_okay=False, path_type=Path),
            callback=on_a_disk,
            help="Holds everybody's data; a disk, not memory.",
        ),
        click.option(
            "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the results here."
        ),
    )

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def on_a_disk(_context: click.Context, _parameter: click.Parameter, directory: Path) -> Path:
    """Refuses a --directory that is in memory."""
    filesystem = machine.filesystem_of(directory, Path("/proc/self/mounts").read_text())
    if filesystem in MEMORY_FILESYSTEMS:
        raise click.BadParameter(f"{directory} is in memory ({filesystem}): it is not read from a disk there")
    return directory


def load(server: Loadable, name: str, rows: Rows) -> float:
    """Puts the rows in, with progress on stderr. How many seconds it took."""
    began_s = told_s = perf_counter()

    def tell(done: int) -> None:
        nonlocal told_s
        now_s = perf_counter()
        if now_s - told_s >= TOLD_EVERY_S or done == rows.count:
            told_s = now_s
            say(f"{name}: {done:,} of {rows.count:,} rows loaded, {done / (now_s - began_s):,.0f} a second")

    server.load(rows, tell)
    return perf_counter() - began_s


@contextmanager
def data_directory(parent: Path) -> Iterator[Path]:
    with TemporaryDirectory(dir=parent, prefix="voltpy-bench-") as path:
        yield Path(path)


@contextmanager
def errors_for_the_command_line() -> Iterator[None]:
    try:
        yield
    except (BenchError, Error) as error:
        raise click.ClickException(str(error)) from None


def durability(text: str) -> Fsync:
    return "always" if text == "always" else "everysec" if text == "everysec" else "never"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
