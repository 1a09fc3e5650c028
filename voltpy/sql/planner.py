"""The text of a statement → its plan: parse, bind, find its routing, split it, and emit Python."""

from __future__ import annotations

from msgspec.structs import replace

from voltpy.sql import syntax
from voltpy.sql.bind import bind
from voltpy.sql.bound import BoundChange, BoundInsert, BoundQuery, BoundStatement, Field, Gather, Source, tables_of
from voltpy.sql.catalogue import Catalogue
from voltpy.sql.distribute import routing_of, split
from voltpy.sql.emit import Analyze, emit, emit_estimates
from voltpy.sql.parse import parse_statement
from voltpy.sql.plan import Kind, Plan, Routing


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
        _writes_copies(bound), version, across=across,
    )  # fmt: skip


def _explained(text: str, statement: syntax.Explain, parameters: int, catalogue: Catalogue, version: int) -> Plan:
    """Programs that estimate what the statement's would find, and say so beside the plan in words.

    They go where the statement goes; without parameters, everywhere. Within a transaction across partitions, which
    would borrow rows to count them, only the plan is told.
    """
    explained = statement.statement
    plain = _planned(text, explained, parameters, catalogue, version)
    bound, types = bind(text, explained, parameters, catalogue)
    source, parts = emit_estimates(bound, types, catalogue, routed=plain.notes[0])
    fragment, merge = None, None
    routing = plain.routing
    if routing.kind != "anywhere":
        merged: list[str] = []
        in_one = routing.kind == "keys" and len(routing.keys) < 2
        is_split = plain.merge is not None and not in_one
        part: BoundStatement | Gather = bind(text, explained, parameters, catalogue)[0]
        if is_split:
            pieces = split(bind(text, explained, parameters, catalogue)[0])
            assert pieces is not None
            assert pieces.merge is not None
            part, merged = pieces.fragment, emit(pieces.merge, types, catalogue)[1]
        apart = in_one or is_split
        fragment, parts = emit_estimates(part, types, catalogue, indexed=apart)
        merge = _estimates_merged(plain.notes[0], parts, merged, apart, routing)
    return replace(
        plain, kind="explain", fields=(Field("plan", "STRING", False),), source=source, fragment=fragment, merge=merge,
        across=_told(plain.notes), writes=(), reads=tuple(sorted({*plain.reads, *plain.writes})), returns_rows=True,
        writes_copies=False, parameters_optional=True,
    )  # fmt: skip


def _estimates_merged(routed: str, parts: list[str], merge: list[str], apart: bool, routing: Routing) -> str:
    """`routed` is the plan's first line; `parts` and `merge` are those of its halves."""
    keys = len(routing.keys) if any(key.parameter is not None for key in routing.keys) else None
    if_unknown = f"None if p else {keys}" if keys is not None else "None"
    return (
        "def run(tx, p, shipped=()):\n"
        f"    return estimates_merged(shipped[0], {[routed]!r}, {parts!r}, {merge!r}, {apart}, {if_unknown})\n"
    )


def _told(notes: tuple[str, ...]) -> str:
    """A program that answers with the plan in words."""
    return f"def run(tx, p, shipped=()):\n    return {[(note,) for note in notes]!r}\n"


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
    across = None
    if plain.across is not None:
        defined, _ = bind(text, explained, parameters, catalogue, views_as_queries=True)
        across, _ = emit(defined, types, catalogue, analyze=Analyze(plain.notes[0]))
    return replace(
        plain, kind=_ANALYZED[_kind(bound)], fields=(Field("plan", "STRING", False),), source=source,
        fragment=fragment, merge=merge, across=across, returns_rows=True,
    )  # fmt: skip


_ANALYZED: dict[Kind, Kind] = {
    "select": "explain", "insert": "explain insert", "update": "explain update", "delete": "explain delete",
}  # fmt: skip


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
