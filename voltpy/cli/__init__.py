"""The command line: `voltpy start`, `voltpy call`, … One file a command group; this one puts them together.

Exit status: 0 when it worked; 1 with one line on stderr for a `voltpy.Error`; 2 for a command that can't be understood;
3 when `voltpy load` had to reject rows or `voltpy snapshot --verify` found damage; 130 after Ctrl-C.
"""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version

import click

from voltpy.cli.bench import bench
from voltpy.cli.call import call
from voltpy.cli.demo import demo
from voltpy.cli.load import load
from voltpy.cli.procedures import procedures
from voltpy.cli.snapshot import snapshot
from voltpy.cli.sql import sql
from voltpy.cli.start import start
from voltpy.cli.status import status, stop
from voltpy.errors import Error

INTERRUPTED = 130


def _version() -> str:
    try:
        return version("voltpy")
    except PackageNotFoundError:
        return "unknown"


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(_version(), prog_name="voltpy")
def commands() -> None:
    """A partition-serial OLTP database for Python: durable stored procedures on every core.

    \b
    voltpy demo                                              see it run
    voltpy start --schema S.sql --procedures P.py --data D   start a cluster, in the foreground
    voltpy call NAME ARGUMENT…                               call a stored procedure
    voltpy sql                                               ask in SQL
    """


for command in (start, status, stop, call, sql, procedures, load, snapshot, demo, bench):
    commands.add_command(command)


def main(arguments: list[str] | None = None) -> None:
    """The program. Ends the process with the exit status that the module's docstring lists."""
    try:
        status = commands.main(arguments, prog_name="voltpy", standalone_mode=False)
    except Error as error:
        _fail(f"{type(error).__name__}: {error}", 1)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # The reader has what it wanted (`voltpy status | head`).
        sys.stderr.close()
        sys.exit(1)
    sys.exit(status if isinstance(status, int) else 0)


def _fail(message: str, status: int) -> None:
    lines = message.strip().splitlines() or [""]
    click.echo("voltpy: " + "\n".join(line.rstrip() for line in lines), err=True)
    sys.exit(status)
