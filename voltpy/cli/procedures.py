"""`voltpy procedures` and `voltpy procedures load FILE`."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec
from rich.table import Table
from rich.text import Text

from voltpy.cli.call import signature
from voltpy.cli.options import console, json_option, print_value, timeout_option, url_option
from voltpy.client import connect
from voltpy.data_directory import read_source
from voltpy.messages import ProcedureInfo
from voltpy.registry import imported_from_beside

ENGINE_PREFIX = "voltpy."  # the engine's own procedures, such as those behind `voltpy load`


@click.group(invoke_without_command=True)
@url_option
@timeout_option(10.0)
@json_option
@click.pass_context
def procedures(context: click.Context, url: str, timeout: float, as_json: bool) -> None:
    """List the stored procedures, or load others."""
    if context.invoked_subcommand is not None:
        return
    with connect(url, timeout=timeout) as db:
        infos = sorted(db.procedures(), key=lambda info: info.name)
    if as_json:
        return print_value([msgspec.structs.asdict(info) for info in infos], as_json=True)
    table = Table(box=None, pad_edge=False)
    for title in ("procedure", "runs", ""):
        table.add_column(title, overflow="fold")
    for info in infos:
        if info.name.startswith(ENGINE_PREFIX):
            continue
        # As Text: what is in brackets would be taken for markup.
        table.add_row(*map(Text, (signature(info), where_it_runs(info), info.doc.partition("\n")[0])))
    console().print(table)


def where_it_runs(info: ProcedureInfo) -> str:
    """by account; by source and target, across partitions; everywhere, in one transaction; …"""
    names = " and ".join(info.parameters[position].name for position in info.key_positions)
    if info.everywhere:
        place = "everywhere, in one transaction" if info.joint else "everywhere"
    elif not names:
        place = "across partitions"
    else:
        place = f"by {names}, across partitions" if _may_cross(info) else f"by {names}"
    return f"{place}, read only" if info.read_only else place


def _may_cross(info: ProcedureInfo) -> bool:
    """Whether a call may have several keys."""
    types = [info.parameters[position].type_text for position in info.key_positions]
    return len(types) > 1 or any("list" in text or "tuple" in text for text in types)


@procedures.command("load")
@url_option
@timeout_option(60.0)
@json_option
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def load_file(url: str, timeout: float, as_json: bool, file: Path) -> None:
    """Replace the stored procedures by those in FILE, between two calls, in the whole cluster or nowhere."""
    path, source = read_source(file)
    with connect(url, timeout=timeout) as db:
        before = {info.name for info in db.procedures()}
        answer = db.load_procedures(source, path)
    if as_json:
        return print_value(answer, as_json=True)
    if modules := imported_from_beside(source, path):
        click.echo(
            f"{', '.join(modules)}: imported from beside {path}, and not stored with it: every start looks there",
            err=True,
        )
    names = [name for name in answer["procedures"] if not name.startswith(ENGINE_PREFIX)]
    count = f"{len(names)} procedure{'' if len(names) == 1 else 's'}"
    click.echo(f"loaded {count}, version {answer['catalog_version']}: {', '.join(names)}")
    if gone := sorted(before.difference(answer["procedures"])):
        click.echo(f"gone, since they are not in {file}: {', '.join(gone)}")
