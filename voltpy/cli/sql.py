"""`voltpy sql`: statements from a prompt, from the command line, from a file or from a pipe."""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import chain
from time import perf_counter
from typing import Any, Literal, Protocol

import click
import msgspec

from voltpy.cli import sql_results
from voltpy.cli.options import json_option, timeout_option, url_option
from voltpy.client import connect
from voltpy.errors import Error, SqlError
from voltpy.messages import ProcedureInfo
from voltpy.result import Database, Result
from voltpy.sql.catalog_tables import CATALOG
from voltpy.sql.script import Piece, ScriptReader

Form = Literal["table", "csv", "json"]

MAX_INCLUDED = 16  # files that include each other
COUNTED = ("insert", "update", "delete")
SHOWN = ("select", "explain", "explain insert", "explain update", "explain delete")

HELP = r"""A statement may take several lines; its semicolon ends it.
\d          the tables; also \dt
\d TABLE    a table's columns, keys and indexes
\di         the indexes
\df         the stored procedures; `voltpy call` calls them
\i FILE     runs the statements in FILE
\timing     says after each statement how long it took, or stops saying it
\x          shows each row as lines of column and value, or stops doing so
\?          this
\q          leaves; so do exit, quit and Ctrl-D. Ctrl-C drops what is typed, or stops waiting for an answer
"""


class Served(Database, Protocol):
    """What the shell speaks to."""

    def procedures(self) -> list[ProcedureInfo]: ...


class Shell:
    """Runs statements and commands, and shows what they answer.

    `form`: how. `keep_going`: after an error too. `is_prompt`: a person looks on; long tables are paged.
    `quiet`: says nothing of what a statement did, besides the rows that it answers.
    """

    def __init__(
        self, db: Served, form: Form = "table", *, keep_going: bool = False, is_prompt: bool = False,
        quiet: bool = False,
    ) -> None:  # fmt: skip
        self._db = db
        self._form = form
        self._keep_going = keep_going
        self._is_prompt = is_prompt
        self._is_quiet = quiet
        self._times = False
        self._is_expanded = False
        self._included = 0
        self._has_shown = False
        self.failed = False
        self.schema_may_differ = False  # since somebody last set this
        self._commands: dict[str, Callable[[str], bool]] = {
            "d": self._describe,
            "dt": self._describe,
            "di": self._list_indexes,
            "df": self._list_procedures,
            "i": self._include,
            "timing": self._switch_timing,
            "x": self._switch_expanded,
            "?": self._help,
            "q": self._quit,
        }

    def script(self, lines: Iterable[str], name: str = "") -> bool:
        """Runs all statements of a script; `name` is what errors call it. False: no more is to run."""
        reader = ScriptReader()
        try:
            for line in lines:
                for piece in reader.feed(line):
                    if not self._run(piece, name):
                        return False
        except UnicodeDecodeError as error:
            self._report(SqlError(f"what follows is not UTF-8: {error}"), Piece("", reader.line, 1), name)
            return False
        rest = reader.rest()
        return rest is None or self._run(rest, name)

    def tables(self) -> dict[str, list[str]]:
        """The columns of each table, by name."""
        rows = self._db.execute("SELECT table_name, column_name FROM db_columns ORDER BY table_id, column_idx", ())
        tables = {name: [field.name for field in fields] for name, fields in CATALOG.items()}
        for table, column in rows:
            tables.setdefault(table, []).append(column)
        return tables

    def _run(self, piece: Piece, name: str) -> bool:
        """False: no more is to run."""
        try:
            if piece.is_command:
                return self._command(piece.text)
            self._statement(piece.text)
        except Error as error:
            return self._report(error, piece, name)
        return True

    def _report(self, error: Error, piece: Piece, name: str) -> bool:
        """Whether to go on after it."""
        self.failed = True
        kind, message = type(error).__name__, piece.placed(str(error))
        if self._form == "json":
            line = {"error": kind, "message": message, "line": piece.line}
            click.echo(msgspec.json.encode(line))
        where = f"{name}:{piece.line}: " if name else ""
        text = f"{where}{kind}: {message}"
        if self._is_prompt:
            click.secho(text, err=True, fg="red")
        else:
            click.echo(f"voltpy: {text}", err=True)
        return self._keep_going

    # Statements

    def _statement(self, text: str) -> None:
        began = perf_counter()
        result = self._db.execute(text, ())
        seconds = perf_counter() - began
        if result.kind not in COUNTED and result.kind not in SHOWN:
            self.schema_may_differ = True
        self._show(result, seconds)
        if self._times and self._form != "json":
            click.echo(f"Time: {seconds * 1000:.3f} ms", err=self._form == "csv")

    def _show(self, result: Result, seconds: float | None = None) -> None:
        if self._form == "json":
            return click.echo(sql_results.json_line(result, seconds if self._times else None), nl=False)
        if self._form == "csv":
            return _write(sql_results.csv(result) if result.columns else ())
        if result.columns:
            self._show_table(result)
        if self._is_quiet or result.kind in SHOWN:
            return
        click.echo(f"{result.kind.upper()} {result.rowcount}" if result.kind in COUNTED else result.kind.upper())

    def _show_table(self, result: Result) -> None:
        shown = sql_results.records if self._is_expanded else sql_results.table
        pieces = shown(result, styled=sys.stdout.isatty())
        if not self._is_prompt:
            _write(["\n"] if self._has_shown else [])  # between two tables
            self._has_shown = True
            return _write(pieces)
        width, height = shutil.get_terminal_size()
        first = next(pieces, "")
        if len(result) + 4 > height or len(first.partition("\n")[0]) > width:
            click.echo_via_pager(chain([first], pieces))
        else:
            _write(chain([first], pieces))

    # Commands

    def _command(self, text: str) -> bool:
        words = text[1:].rstrip("; \t").split(None, 1)
        name, argument = (*words, "", "")[:2]
        command = self._commands.get(name)
        if command is None:
            advice = _INSTEAD.get(name, "\\? lists them")
            raise SqlError(f"there is no command \\{name}; {advice}")
        return command(argument)

    def _describe(self, name: str) -> bool:
        self.schema_may_differ = True
        if not name:
            self._show(self._db.execute(_LISTED, ()))
            return True
        table = name[1:-1].replace('""', '"') if name.startswith('"') and name.endswith('"') else name.lower()
        if table in CATALOG:
            fields: list[tuple[Any, ...]] = [
                (field.name, str(field.type), field.nullable, False) for field in CATALOG[table]
            ]
            self._show(_described(fields))
            return True
        counts = self._db.execute("SELECT row_count, view_of FROM db_tables WHERE table_name = ?", (table,)).rows
        if not counts:
            raise SqlError(f"there is no table {table}; \\d lists them")
        rows = self._db.execute(
            f"SELECT {', '.join(_DESCRIBED)}, key_position, is_partition_column FROM db_columns"
            " WHERE table_name = ? ORDER BY column_idx",
            (table,),
        ).rows
        indexes = self._db.execute(
            "SELECT index_name, index_type, columns, entry_count, is_unique FROM db_indexes WHERE table_name = ?"
            " ORDER BY index_name",
            (table,),
        )
        if self._form == "table":
            [(count, base)] = counts
            _write(["\n"] if self._has_shown else [])
            what, where = f"Table {table}", _partitioned(rows)
            if base is not None:
                what = f"View {table} of {base}"
                if self._is_partitioned(base) and not where.startswith("partitioned"):
                    where = "parts of its groups wherever rows of them are"
            _write([f"{what}: {count:,} row{'' if count == 1 else 's'}, {where}\n", _key(rows)])
        self._show(_described([row[:4] for row in rows]))
        if indexes.rows or self._form == "json":
            self._show(indexes)
        return True

    def _is_partitioned(self, table: str) -> bool:
        return bool(
            self._db.execute("SELECT 1 FROM db_columns WHERE table_name = ? AND is_partition_column", (table,)).rows
        )

    def _include(self, path: str) -> bool:
        if not path:
            raise SqlError("\\i takes the path of a file")
        if self._included == MAX_INCLUDED:
            raise SqlError(f"{path}: {MAX_INCLUDED} files include each other")
        try:
            lines = open_script(os.path.expanduser(path))
        except OSError as error:
            raise SqlError(f"{path}: {error.strerror or error}") from error
        self._included += 1
        try:
            with lines:
                return self.script(lines, path)
        finally:
            self._included -= 1

    def _list_indexes(self, _argument: str) -> bool:
        self._show(self._db.execute(_INDEXES, ()))
        return True

    def _list_procedures(self, _argument: str) -> bool:
        from voltpy.cli.call import signature
        from voltpy.cli.procedures import ENGINE_PREFIX, where_it_runs

        infos = sorted(self._db.procedures(), key=lambda info: info.name)
        rows = [(signature(info), where_it_runs(info)) for info in infos if not info.name.startswith(ENGINE_PREFIX)]
        self._show(Result(["procedure", "runs"], rows, len(rows), ["STRING", "STRING"], "select"))
        return True

    def _switch_timing(self, argument: str) -> bool:
        self._times = _switched("timing", argument, self._times)
        if self._is_prompt:
            click.echo(f"Timing is {'on' if self._times else 'off'}.")
        return True

    def _switch_expanded(self, argument: str) -> bool:
        self._is_expanded = _switched("x", argument, self._is_expanded)
        if self._is_prompt:
            click.echo(f"Expanded display is {'on' if self._is_expanded else 'off'}.")
        return True

    def _help(self, _argument: str) -> bool:
        click.echo(HELP, nl=False, err=not self._is_prompt)
        return True

    def _quit(self, _argument: str) -> bool:
        raise Quit


def _switched(command: str, argument: str, was_on: bool) -> bool:
    if argument not in ("", "on", "off"):
        raise SqlError(f"\\{command} takes on or off, not {argument}")
    return argument == "on" or (argument == "" and not was_on)


class Quit(Exception):
    r"""\q, from wherever it stands."""


_LISTED = """
SELECT t.table_name, column_count, row_count, c.column_name AS partition_column, view_of
FROM db_tables t LEFT JOIN db_columns c ON c.table_id = t.table_id AND c.is_partition_column
ORDER BY t.table_name
"""
_INDEXES = """
SELECT index_name, table_name, index_type, columns, entry_count, is_unique FROM db_indexes
ORDER BY table_name, index_name
"""
_INSTEAD = {  # of psql's commands
    "copy": "`voltpy load` reads a file, and `voltpy sql --csv -c` writes one",
    "dv": "\\d shows views, too",
    "d+": "\\d shows all that there is",
}
_DESCRIBED = ["column_name", "column_type", "is_nullable", "is_indexed"]


def _described(columns: list[tuple[Any, ...]]) -> Result:
    return Result(_DESCRIBED, columns, len(columns), ["STRING", "STRING", "BOOL", "BOOL"], "select")


# Of rows that end with key_position and is_partition_column.


def _partitioned(columns: list[tuple[Any, ...]]) -> str:
    names = [name for name, *_, is_partition_column in columns if is_partition_column]
    return f"partitioned on {names[0]}" if names else "a full copy in every partition"


def _key(columns: list[tuple[Any, ...]]) -> str:
    key = sorted((position, name) for name, *_, position, _ in columns if position is not None)
    return f"Primary key: {'(' + ', '.join(name for _, name in key) + ')' if key else 'hidden'}\n"


def open_script(path: str) -> io.TextIOWrapper:
    return open(path, encoding="utf-8-sig")


def _write(pieces: Iterable[str]) -> None:
    for piece in pieces:
        click.echo(piece, nl=False)


@click.command()
@url_option
@timeout_option(10.0)
@click.option("-c", "--command", "commands", multiple=True, metavar="STATEMENT", help="Run this. May be repeated.")
@json_option
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@click.option("-q", "--quiet", is_flag=True, help="Leave out what statements did: INSERT 2, CREATE TABLE.")
@click.option("--keep-going", is_flag=True, help="Run the rest of a script after an error.")
@click.argument("file", required=False, metavar="[FILE]", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
def sql(
    url: str, timeout: float, commands: tuple[str, ...], as_json: bool, as_csv: bool, quiet: bool, keep_going: bool,
    file: str | None,
) -> int:  # fmt: skip
    """Run SQL from -c, a FILE or a pipe, or at a prompt.

    Statements end with a semicolon. Each is a transaction of its own. At the first error the rest is left out, and the
    exit status is 1; with --keep-going it is 1 in the end. \\? lists the prompt's commands: they work in scripts too.

    --json prints a line for each statement: {"statement": …, "columns": […], "rows": [[…], …], "rowcount": …}, or
    {"error": …, "message": …, "line": …}. --csv prints a header and rows; NULL is nothing there, and an empty text "".
    """
    if as_json and as_csv:
        raise click.UsageError("--json or --csv, not both")
    if commands and file is not None:
        raise click.UsageError("-c or a FILE, not both")
    form: Form = "json" if as_json else "csv" if as_csv else "table"
    is_prompt = not commands and file is None and sys.stdin.isatty() and sys.stdout.isatty()
    with connect(url, timeout=timeout) as client:
        shell = Shell(
            client, form, keep_going=keep_going, is_prompt=is_prompt,
            quiet=quiet,
        )  # fmt: skip
        try:
            if is_prompt:
                return _ask(shell, url)
            _run_given(shell, commands, file)
        except Quit:
            pass
    return 1 if shell.failed else 0


def _run_given(shell: Shell, commands: tuple[str, ...], file: str | None) -> None:
    if commands:
        for command in commands:
            if not shell.script(io.StringIO(command)):
                return
    elif file is not None and file != "-":
        with open_script(file) as lines:
            shell.script(lines, file)
    else:
        shell.script(io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8-sig"), "<stdin>")


def _ask(shell: Shell, url: str) -> int:
    """The prompt. What fails there was seen by who typed it, so the exit status is 0."""
    from voltpy.cli.sql_prompt import Prompt  # a prompt's library takes a while to load

    os.environ.setdefault("LESS", "-SFRX")  # long lines scroll sideways; what fits stays on the screen
    click.echo(f"voltpy at {url}; \\? for help")
    prompt = Prompt(shell.tables())
    while True:
        try:
            text = prompt.ask()
        except KeyboardInterrupt:
            continue
        except EOFError:
            return 0
        try:
            shell.script(io.StringIO(text))
        except KeyboardInterrupt:
            click.echo("Interrupted: a statement under way may have run, or not.", err=True)
        except Quit:
            return 0
        if shell.schema_may_differ:
            with suppress(Error):  # then what was known before must do
                prompt.tables = shell.tables()
                shell.schema_may_differ = False
