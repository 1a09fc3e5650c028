"""`voltpy start`."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from voltpy import events
from voltpy.address import DEFAULT_PORT
from voltpy.cli.options import one_file, size, size_text
from voltpy.cluster import Cluster, Options, loopback, usable_cores, usable_memory_bytes
from voltpy.data_directory import MAX_PARTITIONS, SCHEMA, DataDirectory, read_schema, schema_with
from voltpy.errors import ClusterError, SchemaError
from voltpy.parent_death import die_with_parent
from voltpy.registry import imported_from_beside
from voltpy.reporting_child import ReportingChild
from voltpy.schema import Schema, added_unique_indexes, to_json
from voltpy.warm_schedule import WARM_BYTES_PER_S, WARM_SOURCES, parse

NOT_STORED = "the procedures import them from there at every start"
FILE = click.Path(dir_okay=False, path_type=Path)
EVENT_FORMS = ("text", "json")
FSYNC_MODES = ("always", "everysec", "never")
TRIAL_COMMAND = (sys.executable, "-I", "-m", "partitions.schema_trial")
LEAST_MEMORY_BYTES = 16 << 20  # for each partition


def _loopback(context: click.Context, parameter: click.Parameter, value: str) -> str:
    try:
        return loopback(value)
    except ClusterError as error:
        raise click.UsageError(str(error), context) from None


def _text_of(path: Path | None) -> str | None:
    """The text of a schema file. Raises SchemaError, with the file's name, unless it is one."""
    if path is None:
        return None
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ClusterError(f"schema file {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ClusterError(f"schema file {path}: {error}") from None
    try:
        _parsed(text)
    except SchemaError as error:
        raise SchemaError(f"{path}: {error}") from None
    return text


def _warm_sources(_context: click.Context, _parameter: click.Parameter, text: str) -> tuple[str, ...]:
    sources = () if text == "none" else tuple(text.split(","))
    for source in sources:
        if source not in WARM_SOURCES:
            raise click.BadParameter(f"{source!r}: one of {', '.join(WARM_SOURCES)} was expected, or none")
    return sources


@click.command()
@click.option("--schema", multiple=True, callback=one_file, type=FILE, metavar="S.sql", help="Tables and indexes.")
@click.option(
    "--procedures", multiple=True, callback=one_file, type=FILE, metavar="P.py", help="The stored procedures."
)
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("voltpy-data"),
    show_default=True,
    metavar="DIR",
    help="The data directory; made if there is none.",
)
@click.option(
    "--partitions", type=click.IntRange(1, MAX_PARTITIONS), metavar="N", help="When DIR is made.  [default: one a core]"
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=DEFAULT_PORT,
    show_default=True,
    help="Of the router; 0: any free one.",
)
@click.option("--host", default="127.0.0.1", show_default=True, callback=_loopback, help="A loopback address.")
@click.option(
    "--fsync",
    type=click.Choice(FSYNC_MODES),
    default="always",
    show_default=True,
    help="always: flushed before the answer. everysec: a crash of the machine costs up to a second. never: when the "
    "system likes.",
)
@click.option(
    "--memory", callback=size, metavar="SIZE", help="For all partitions together.  [default: half of what there is]"
)
@click.option(
    "--procedure-timeout",
    type=click.FloatRange(min=0.01),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="A procedure that runs longer is ended and undone.",
)
@click.option(
    "--restore",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="SNAPSHOT",
    help="Begin a new data directory from a snapshot (`voltpy snapshot`), which stays as it is.",
)
@click.option(
    "--warm",
    default=",".join(WARM_SOURCES),
    show_default=True,
    callback=_warm_sources,
    metavar="SOURCES",
    help="What brings pages into memory before calls need them; or: none.",
)
@click.option("--warm-rate", callback=size, metavar="SIZE", help="A second, for each partition.  [default: 128MB]")
@click.option(
    "--warm-schedule",
    type=click.Path(exists=True, dir_okay=False, resolve_path=True, path_type=Path),
    help="Tables to bring into memory at times of the day; see docs/operations.md.",
)
@click.option(
    "--events",
    "form",
    type=click.Choice(EVENT_FORMS),
    help="How events look.  [default: text at a terminal, else json]",
)
@click.option("--with-parent", is_flag=True, hidden=True, help="Die with the process that started this one.")
def start(
    schema: Path | None,
    procedures: Path | None,
    data: Path,
    partitions: int | None,
    port: int,
    host: str,
    fsync: str,
    memory: int | None,
    procedure_timeout: float,
    restore: Path | None,
    warm: tuple[str, ...],
    warm_rate: int | None,
    warm_schedule: Path | None,
    form: str | None,
    with_parent: bool,
) -> None:
    """Start a cluster, in the foreground.

    A router, a coordinator and one partition a core, watched and restarted. Prints one line when it is ready, with
    its URL; ends with exit status 0 after Ctrl-C, SIGTERM or `voltpy stop`. Events go to stderr, a line
    each.

    --schema and --procedures are kept in the data directory: a later start needs neither. A new schema may add to it.
    """
    if with_parent:
        die_with_parent()
    outlet = _outlet(form)
    events.configure(outlet)
    _check_port(host, port)
    schema_text = _text_of(schema)
    _check_procedures(procedures, schema_text, data if restore is None else restore)
    if restore is not None:
        _restore(restore, data, partitions, schema_text)
    memory_bytes = memory if memory is not None else usable_memory_bytes() // 2

    def try_schema(directory: DataDirectory, schema: Schema) -> None:
        _try_schema(directory, schema, memory_bytes // directory.partitions)

    with DataDirectory.open(data, partitions, schema_text, procedures, try_schema) as directory:
        count = directory.partitions
        if memory_bytes < LEAST_MEMORY_BYTES * count:
            raise ClusterError(
                f"--memory {size_text(memory_bytes)}: {count} partition{'s need' if count > 1 else ' needs'} at least"
                f" {LEAST_MEMORY_BYTES >> 20} MiB{' each' if count > 1 else ''}"
            )

        def ready(url: str) -> None:
            with contextlib.suppress(OSError):  # then what it adds counts as untried at the next start, too
                directory.keep_schema()
            words = f"{count} partition{'s' if count > 1 else ''}, fsync {fsync}, data {directory.path}"
            click.echo(f"voltpy is ready at {url} ({words})")

        if procedures is not None:
            _warn_of_modules(directory)
        if warm_schedule is not None:
            _check_schedule(warm_schedule, directory)
        options: dict[str, Any] = {"host": host, "port": port, "fsync": fsync, "memory_bytes": memory_bytes}
        options |= {"warm": warm, "warm_bytes_per_s": warm_rate or WARM_BYTES_PER_S, "warm_schedule": warm_schedule}
        try:
            Cluster(directory, Options(**options, procedure_timeout_s=procedure_timeout), ready, outlet=outlet).run()
        except SchemaError as error:
            withdrawn = directory.withdraw_schema()
            raise SchemaError(f"{error}; withdrawn from the schema: {', '.join(withdrawn) or 'nothing'}") from None


def _outlet(form: str | None) -> events.Outlet:
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    if form == "json" or (form is None and not is_terminal):
        return events.stderr_outlet()
    from voltpy.event_text import TextOutlet

    coloured = is_terminal and not os.environ.get("NO_COLOR")
    return events.stderr_outlet(lambda fd: TextOutlet(fd, coloured=coloured))


def _check_port(host: str, port: int) -> None:
    """Raises ClusterError for a port that the router would not get, before a data directory is made for nothing."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as ZeroMQ does: those of the dead don't count
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise ClusterError(
                    f"port {port} of {host} is in use: is another cluster running there? Choose --port N, or 0"
                ) from None
            raise ClusterError(f"--port {port}: {host} can't be listened on there: {error.strerror}") from None


def _parsed(schema_text: str) -> Schema:
    from voltpy.sql.ddl import parse_schema  # a large parser, which a start without --schema does without

    return parse_schema(schema_text)


def _restore(snapshot: Path, data: Path, partitions: int | None, schema_text: str | None) -> None:
    from voltpy.cli.snapshot import progress_on_stderr
    from voltpy.restore import restore as restore_snapshot

    schema = None if schema_text is None else _parsed(schema_text)
    with progress_on_stderr(hidden=not sys.stderr.isatty()) as progress:  # elsewhere events go there
        manifest = restore_snapshot(
            snapshot, data, partitions, schema, lambda copied, total: progress("restored", copied, total)
        )
    event = events.get_logger().bind(snapshot=str(snapshot), made=manifest.created_at)
    event.info("restored", bytes=manifest.bytes, partitions=len(manifest.partitions))


def _check_schedule(path: Path, directory: DataDirectory) -> None:
    """Raises ClusterError for a schedule that the partitions would refuse."""
    try:
        parse(path.read_text(encoding="utf-8"), [table.name for table in directory.schema.live])
    except (ClusterError, OSError, UnicodeDecodeError) as error:
        raise ClusterError(f"{path}: {error}") from None


def _try_schema(directory: DataDirectory, schema: Schema, memory_bytes: int) -> None:
    """Raises SchemaError for unique indexes that the rows of a partition don't satisfy: with them, none could start."""
    if not added_unique_indexes(directory.schema, schema):
        return
    with tempfile.NamedTemporaryFile(prefix="voltpy-schema-") as file, contextlib.ExitStack() as stack:
        file.write(to_json(schema))
        file.flush()
        where = ("--data", directory.path, "--partitions", str(directory.partitions), "--schema", file.name)
        command = (*TRIAL_COMMAND, *where, "--memory", str(memory_bytes), "--partition")
        waiting = list(range(directory.partitions))
        while waiting:
            some, waiting = waiting[: len(usable_cores())], waiting[len(usable_cores()) :]
            children = [stack.enter_context(ReportingChild([*command, str(number)])) for number in some]
            for number, child in zip(some, children, strict=True):
                if child.exit_status() != 0:
                    raise SchemaError(
                        f"the schema does not fit the rows in {directory.path}: "
                        f"partition {number}: {child.last_words()}. "
                        "Nothing has changed: a start without --schema goes on with the stored one"
                    )


def _warn_of_modules(directory: DataDirectory) -> None:
    stored = directory.procedures
    modules = imported_from_beside(stored.source, stored.path)
    if modules:
        where = str(Path(stored.path).parent)
        events.get_logger().warning("modules_not_stored", modules=modules, directory=where, reason=NOT_STORED)


def _check_procedures(procedures: Path | None, schema_text: str | None, data: Path) -> None:
    """Raises SchemaError for a file that the partitions would refuse, before it is stored and they can't start."""
    if procedures is None or (schema_text is None and not (data / SCHEMA).exists()):
        return
    if schema_text is None:
        schema = read_schema(data)
    else:
        schema = _parsed(schema_text)
        if (data / SCHEMA).exists():
            schema = schema_with(data, schema)
    check = subprocess.run(
        [sys.executable, "-I", "-m", "voltpy.procedure_check", str(procedures)],
        input=to_json(schema),
        stdout=sys.stderr,
        stderr=subprocess.PIPE,
        check=False,
    )
    if check.returncode != 0:
        raise SchemaError(
            check.stderr.decode(errors="replace").strip() or f"{procedures}: loading it ended the process"
        )
