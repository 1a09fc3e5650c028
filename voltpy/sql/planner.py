"""The text of a statement → its plan: parse, bind, find its routing, split it, and emit Python."""

from __future__ import annotations

from typing import Literal

from msgspec.structs import replace

from voltpy.sql import syntax
from voltpy.sql.bind import bind
from voltpy.sql.bound import BoundChange, BoundInsert, BoundQuery, BoundStatement, Field, Source, tables_of
from voltpy.sql.catalogue import Catalogue
from voltpy.sql.distribute import routing_of, split
from voltpy.sql.emit import Analyze, emit
from voltpy.sql.parse import parse_statement
from voltpy.sql.plan import Plan, Routing

Kind = Literal["select", "insert", "update", "delete", "explain"]


def plan(text: str, catalogue: Catalogue, version: int = 0) -> Plan:
    """Raises SqlError with line and column."""
    statement, parameters = parse_statement(text)
    if isinstance(statement, syntax.Explain):
        if statement.analyze:
            return _analyzed(text, statement, parameters, catalogue, version)
        return _explained(text, statement, parameters, catalogue, version)
    return _planned(text, statement, parameters, catalogue, version)


def _planned(text: str, statement: syntax.Statement, parameters: int, catalogue: Catalogue, version: int) -> Plan:
    bound, types = bind(text, statement, parameters, catalogue)
    routing = routing_of(bound)
    fragment, merge, pieces = None, None, None
    if routing.kind == "everywhere" or len(routing.keys) > 1:
        # `split` gets a statement of its own: what is bound is changed on the way.
        pieces = split(bind(text, statement, parameters, catalogue)[0])
    if pieces is not None:
        fragment = emit(pieces.fragment, types, catalogue, fragment=True)[0]
        merge = emit(pieces.merge, types, catalogue)[0] if pieces.merge is not None else None
    source, notes = emit(bound, types, catalogue)
    reads, writes = _tables(bound, catalogue)
    across = None
    if any(catalogue.schema.tables[number].view is not None for number in reads):
        defined, _ = bind(text, statement, parameters, catalogue, views_as_queries=True)
        across = emit(defined, types, catalogue)[0]
    how = _routed(routing) + ("" if pieces is None else f"; {pieces.how}")
    return Plan(
        text, _kind(bound), tuple(_fields(bound)), tuple(types), reads, writes, routing, source, fragment, merge,
        (f"Partitions: {how}", *notes), _returns_rows(bound),
        _writes_copies(bound), version, across,
    )  # fmt: skip


def _explained(text: str, statement: syntax.Explain, parameters: int, catalogue: Catalogue, version: int) -> Plan:
    explained = _planned(text, statement.statement, parameters, catalogue, version)
    query, types = bind(
        text, syntax.Query(syntax.Values(tuple((syntax.Literal(note),) for note in explained.notes))), 0, catalogue
    )
    source, _ = emit(query, types, catalogue)
    return Plan(
        text, "explain", (Field("plan", "STRING", False),), (), (), (), Routing("anywhere"), source, None, None,
        explained.notes, True, False, version,
    )  # fmt: skip


def _analyzed(text: str, statement: syntax.Explain, parameters: int, catalogue: Catalogue, version: int) -> Plan:
    """The statement's programs, observing themselves; what they answer is the plan in words."""
    explained = statement.statement
    plain = _planned(text, explained, parameters, catalogue, version)
    bound, types = bind(text, explained, parameters, catalogue)
    fragment, merge = None, None
    if plain.merge is not None:
        pieces = split(bind(text, explained, parameters, catalogue)[0])
        assert pieces is not None
        assert pieces.merge is not None
        fragment, parts = emit(pieces.fragment, types, catalogue, fragment=True, analyze=Analyze())
        merge, _ = emit(pieces.merge, types, catalogue, analyze=Analyze(plain.notes[0], tuple(parts)))
    source, _ = emit(bound, types, catalogue, analyze=Analyze(plain.notes[0]))
    return replace(
        plain, kind="explain", fields=(Field("plan", "STRING", False),), source=source, fragment=fragment, merge=merge
    )


def _kind(bound: BoundStatement) -> Kind:
    if isinstance(bound, BoundQuery):
        return "select"
    if isinstance(bound, BoundInsert):
        return "insert"
    return "delete" if bound.assignments is None else "update"


def _fields(bound: BoundStatement) -> list[Field]:
    return bound.fields


def _returns_rows(bound: BoundStatement) -> bool:
    return isinstance(bound, BoundQuery) or bound.returning is not None


def _writes_copies(bound: BoundStatement) -> bool:
    return not isinstance(bound, BoundQuery) and bound.table.partition_column is None


def _tables(bound: BoundStatement, catalogue: Catalogue) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(numbers of the tables that it reads, of those that it writes)"""
    sources: list[Source] = []
    written: list[str] = []
    if isinstance(bound, BoundQuery):
        sources += tables_of(bound)
    elif isinstance(bound, BoundInsert):
        written.append(bound.table.name)
        if bound.given is not None:
            sources += tables_of(bound.given)
    elif isinstance(bound, BoundChange):
        written.append(bound.table.name)
        sources += tables_of(BoundQuery(-1, bound.query, []))
    reads = {catalogue.number(source.table.name) for source in sources if source.table is not None}
    return tuple(sorted(reads)), tuple(catalogue.number(name) for name in written)


def _routed(routing: Routing) -> str:
    if routing.kind == "anywhere":
        return "any one"
    if routing.kind == "keys":
        keys = [f"?{key.parameter + 1}" if key.parameter is not None else repr(key.constant) for key in routing.keys]
        if len(keys) == 1:
            return f"the one of key {keys[0]}"
        return f"those of keys {', '.join(keys[:8])}{', …' if len(keys) > 8 else ''}" if keys else "any one, for no row"
    return "all"
