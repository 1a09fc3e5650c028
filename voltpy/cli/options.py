"""Options that several commands share, and how they show values."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from voltpy.address import Address

if TYPE_CHECKING:
    from rich.console import Console

WIDTH_IN_A_FILE = 200
DEFAULT_URL = "voltpy://127.0.0.1:21212"
Command = TypeVar("Command", bound=Callable[..., Any])

_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(?:([KMGT])(?:I?B)?|B)?\s*", re.IGNORECASE)
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def url_option(command: Command) -> Command:
    return click.option(
        "--url",
        default=DEFAULT_URL,
        envvar="VOLTPY_URL",
        show_default=True,
        show_envvar=True,
        metavar="URL",
        callback=_url,
        help="Where the cluster is.",
    )(command)


def _url(context: click.Context, parameter: click.Parameter, value: str) -> str:
    try:
        Address(value)
    except ValueError as error:
        raise click.BadParameter(str(error), context, parameter) from None
    return value


def timeout_option(default_s: float) -> Callable[[Command], Command]:
    return click.option(
        "--timeout",
        type=click.FloatRange(min=0, min_open=True),
        default=default_s,
        show_default=True,
        metavar="SECONDS",
        help="How long to wait for an answer.",
    )


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


def one_file(context: click.Context, parameter: click.Parameter, values: tuple[Path, ...]) -> Path | None:
    """A click callback for an option with `multiple`: else of several files click would take the last."""
    if len(values) > 1:
        raise click.BadParameter(
            f"give one file, not {len(values)}; one procedure file imports what others declare by name",
            context, parameter,
        )  # fmt: skip
    return values[0] if values else None


def size(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """A click callback: a number of bytes as 2G, 512MB, 1.5GiB or 4096. The units are powers of 1024."""
    if value is None:
        return None
    match = _SIZE.fullmatch(value)
    if match is None:
        raise click.BadParameter(f"{value!r} is not a size such as 2G, 512MB or 4096", context, parameter)
    return int(float(match[1]) * _UNITS[(match[2] or "").upper()])


def size_text(size_bytes: float) -> str:
    """1536 → 1.5 KiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.0f} B" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} TiB"


def console() -> Console:
    """For tables on stdout. In a file or a pipe, rows are not folded to the width of a terminal that isn't there."""
    from rich.console import Console  # slow to load, and most commands print a line

    return Console() if sys.stdout.isatty() else Console(width=WIDTH_IN_A_FILE)


def print_value(value: Any, *, as_json: bool) -> None:
    """A value as JSON: one line for a program, coloured and indented for a person at a terminal."""
    data = msgspec.json.encode(value)
    if as_json:
        click.echo(data)
    elif sys.stdout.isatty():
        console().print_json(data.decode())
    else:
        click.echo(msgspec.json.format(data))
