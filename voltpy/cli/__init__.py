"""The command line: `voltpy start`, `voltpy call`, … One file a command group; this one puts them together.

Exit status: 0 when it worked; 1 with one line on stderr for a `voltpy.Error`; 2 for a command that can't be understood;
3 when `voltpy load` had to reject rows or `voltpy snapshot --verify` found damage; 130 after Ctrl-C.
"""

from __future__ import annotations

import sys
from importlib import import_module

import click

from voltpy.errors import Error

INTERRUPTED = 130
FILES = {  # of the commands
    "bench": "bench", "call": "call", "demo": "demo", "load": "load", "procedures": "procedures",
    "snapshot": "snapshot", "sql": "sql", "start": "start", "status": "status", "stop": "status",
}  # fmt: skip


class Commands(click.Group):
    """Loads the file of a command when that is asked for: together they take longer to load than most take to run."""

    def list_commands(self, context: click.Context) -> list[str]:
        return sorted(FILES)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in FILES:
            return None
        command: click.Command = getattr(import_module(f"voltpy.cli.{FILES[name]}"), name)
        return command


def _show_version(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if not value or context.resilient_parsing:
        return
    from importlib.metadata import PackageNotFoundError, version  # seldom needed, and slow to load

    try:
        number = version("voltpy")
    except PackageNotFoundError:
        number = "unknown"
    click.echo(f"voltpy, version {number}")
    context.exit()


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_show_version,
    help="Show the version and exit.",
)  # fmt: skip
def commands() -> None:
    """A partition-serial OLTP database for Python: durable stored procedures on every core.

    \b
    voltpy demo                                              see it run
    voltpy start --schema S.sql --procedures P.py --data D   start a cluster, in the foreground
    voltpy call NAME ARGUMENT…                               call a stored procedure
    voltpy sql                                               ask in SQL
    """


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
