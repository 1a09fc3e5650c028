"""`voltpy call NAME ARGUMENT…`."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import click

from voltpy.cli.options import json_option, print_value, timeout_option, url_option
from voltpy.client import connect
from voltpy.errors import BadArguments, ProcedureError, UnknownProcedure
from voltpy.messages import ProcedureInfo
from voltpy.routing import no_such
from voltpy.schema import utc


def argument_value(text: str, name: str, type_text: str) -> Any:
    """What was typed, as a value of the annotated type: text for `str`, ISO 8601 for `datetime`, else JSON.

    `null` is None where the type allows it. Text that is no JSON stays text where the type allows that.
    """
    kinds = {"Any"} if type_text in ("", "Any") else _alternatives(type_text)
    if text == "null" and kinds & {"None", "Any"}:
        return None
    kinds -= {"None"}
    if kinds == {"str"}:
        return text
    if kinds & {"datetime", "datetime.datetime"}:
        try:
            return utc(datetime.fromisoformat(text))
        except (ValueError, OverflowError):
            if len(kinds) == 1:
                raise BadArguments(f"{name}: {text!r} is not a time such as 2013-01-01T10:00:00Z") from None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        if kinds & {"str", "Any"}:
            return text
        raise BadArguments(f"{name}: {text!r} is not {type_text} (JSON)") from None


def _alternatives(type_text: str) -> set[str]:
    """`int | None` → {"int", "None"}; `Optional[int]` is the same; brackets are not looked into."""
    if type_text.startswith("Optional[") and type_text.endswith("]"):
        return _alternatives(type_text[len("Optional[") : -1]) | {"None"}
    parts, depth, part = set(), 0, ""
    for character in type_text + "|":
        depth += {"[": 1, "]": -1}.get(character, 0)
        if character == "|" and depth == 0:
            parts.add(part.strip())
            part = ""
        else:
            part += character
    return parts


def argument_values(info: ProcedureInfo, texts: tuple[str, ...]) -> list[Any]:
    """The arguments of a call. Raises BadArguments, naming the parameter; missing ones are the partition's to find."""
    if len(texts) > len(info.parameters):
        raise BadArguments(f"{signature(info)} takes {len(info.parameters)} arguments, {len(texts)} were given")
    return [
        argument_value(text, parameter.name, parameter.type_text)
        for text, parameter in zip(texts, info.parameters, strict=False)
    ]


def signature(info: ProcedureInfo) -> str:
    """deposit(account: int, amount: int = 100)"""
    parameters = (f"{p.name}: {p.type_text}{'' if p.required else f' = {p.default_text}'}" for p in info.parameters)
    return f"{info.name}({', '.join(parameters)})"


@click.command(context_settings={"ignore_unknown_options": True})
@url_option
@timeout_option(10.0)
@json_option
@click.option("--traceback", "show_traceback", is_flag=True, help="If the procedure raises, show where.")
@click.argument("name")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def call(url: str, timeout: float, as_json: bool, show_traceback: bool, name: str, arguments: tuple[str, ...]) -> None:
    """Call the stored procedure NAME and print what it returns.

    An ARGUMENT is text where the procedure wants a str, a time (2013-01-01T10:00:00Z) where it wants a datetime, and
    JSON otherwise: 42, true, null, '[1, 2]'. Options go before NAME. The procedure runs where its keys are, as one
    transaction also where that is in several partitions. A directed procedure (everywhere=True) runs in every
    partition; its results are printed as an array, one a partition.
    """
    with connect(url, timeout=timeout) as db:
        infos = {info.name: info for info in db.procedures()}
        info = infos.get(name)
        if info is None:
            raise UnknownProcedure(f"{no_such(name, infos)}; `voltpy procedures` lists those that are loaded")
        values = argument_values(info, arguments)
        try:
            result = db.call_everywhere(name, *values) if info.everywhere else db.call(name, *values)
        except ProcedureError as error:
            if show_traceback:
                click.echo(error.traceback_text, err=True)
            raise
    print_value(result, as_json=as_json)
