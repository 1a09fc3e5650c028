"""The text of a statement → its plan: parse, bind, find its routing, take it apart, and emit Python."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from voltpy.sql import syntax
from voltpy.sql.bind import bind
from voltpy.sql.bound import BoundChange, BoundInsert, BoundQuery, BoundStatement, Field, Gather, Source, tables_of
from voltpy.sql.catalogue import Catalogue
from voltpy.sql.distribute import Pieces, routing_of, split
from voltpy.sql.emit import Analyze, emit, emit_estimates
from voltpy.sql.parse import parse_statement
from voltpy.sql.plan import Kind, Plan, Routing

_ANALYZED: dict[Kind, Kind] = {
    "select": "explain", "insert": "explain insert", "update": "explain update", "delete": "explain delete",
}  # fmt: skip
_BORROWED = "in the coordinator, on borrowed rows"
_PLAN_IN_WORDS = (Field("plan", "STRING", False),)


def plan(text: str, catalogue: Catalogue, version: int = 0) -> Plan:
    """`version`: the catalog's. Raises SqlError with line and column."""
    statement, parameters = parse_statement(text)
    if not isinstance(statement, syntax.Explain):
        return _Planner(text, statement, parameters, catalogue, version).plan()
    planner = _Planner(text, statement.statement, parameters, catalogue, version)
    return planner.analyzed() if statement.analyze else planner.explained()


class _Planner:
    """Plans one statement, or its EXPLAIN.

    What is bound is changed where it is taken apart, and where a view's SELECT takes the view's place: those are bound
    anew. `pieces` None: it runs as a whole, in one partition or across them.
    """

    def __init__(
        self, text: str, statement: syntax.Statement, parameters: int, catalogue: Catalogue, version: int
    ) -> None:
        self.text = text
        self.catalogue = catalogue
        self.version = version
        self.bound, self.types = bind(text, statement, parameters, catalogue)
        self.kind = _kind(self.bound)
        self.reads, self.writes = _tables(self.bound, catalogue)
        self.routing = routing_of(self.bound)
        self.in_one = self.routing.kind != "everywhere" and len(self.routing.keys) < 2
        self.pieces: Pieces | None = None
        if not self.in_one:
            whole, _ = bind(text, statement, parameters, catalogue)
            self.pieces = split(whole) if isinstance(whole, BoundQuery) else None
        self.without_views: BoundStatement | None = None
        if any(catalogue.schema.tables[number].view is not None for number in self.reads):
            self.without_views, _ = bind(text, statement, parameters, catalogue, views_as_queries=True)
        self.routed = f"Partitions: {_routed(self.routing)}"  # the first line of the plan in words
        if self.pieces is not None:
            self.routed += f"; {self.pieces.how}"
        elif not self.in_one:
            self.routed += f"; {_BORROWED}, if they are several"

    def plan(self) -> Plan:
        fragment = merge = across = None
        if self.pieces is not None:
            fragment, _ = emit(self.pieces.fragment, self.types, self.catalogue, fragment=True)
            merge, _ = emit(self.pieces.merge, self.types, self.catalogue)
        source, steps = emit(self.bound, self.types, self.catalogue)
        if self.without_views is not None:
            across, _ = emit(self.without_views, self.types, self.catalogue)
        returns_rows = isinstance(self.bound, BoundQuery) or self.bound.returning is not None
        return Plan(
            self.text, self.kind, tuple(self.bound.fields), tuple(self.types), self.reads, self.writes, self.routing,
            source, fragment, merge, (self.routed, *steps), returns_rows, self.version, across,
        )  # fmt: skip

    def explained(self) -> Plan:
        """Programs that estimate what the statement's would find, and say so beside the plan in words.

        They go where the statement goes; without parameters, everywhere. Within a transaction across partitions, which
        would borrow rows to count them, only the plan is told.
        """
        source, _ = emit_estimates(self.bound, self.types, self.catalogue, routed=self.routed)
        fragment = merge = None
        if self.routing.kind != "anywhere":
            borrowed = self.pieces is None and not self.in_one
            part: BoundStatement | Gather = self.bound if self.pieces is None else self.pieces.fragment
            fragment, steps = emit_estimates(part, self.types, self.catalogue, borrowed=borrowed)
            then = [] if self.pieces is None else emit(self.pieces.merge, self.types, self.catalogue)[1]
            merge = _estimates_merged(self.routed, steps, then, not borrowed, self.routing)
        _, steps = emit_estimates(self.without_views or self.bound, self.types, self.catalogue, borrowed=True)
        across = _told([f"Partitions: {_routed(self.routing)}; {_BORROWED}", *steps])
        return replace(
            self.plan(), kind="explain", fields=_PLAN_IN_WORDS, source=source, fragment=fragment, merge=merge,
            across=across, writes=(), reads=tuple(sorted({*self.reads, *self.writes})), returns_rows=True,
            parameters_optional=True,
        )  # fmt: skip

    def analyzed(self) -> Plan:
        """The statement's programs, observing themselves; what they answer is the plan in words."""
        alone = Analyze(self.routed)
        fragment = merge = None
        if self.pieces is not None:
            fragment, steps = emit(self.pieces.fragment, self.types, self.catalogue, fragment=True, analyze=Analyze())
            together = Analyze(self.routed, tuple(steps))
            merge, _ = emit(self.pieces.merge, self.types, self.catalogue, analyze=together)
        source, _ = emit(self.bound, self.types, self.catalogue, analyze=alone)
        borrowed = Analyze(f"Partitions: {_routed(self.routing)}; {_BORROWED}", borrowed=True)
        across, _ = emit(self.without_views or self.bound, self.types, self.catalogue, analyze=borrowed)
        return replace(
            self.plan(), kind=_ANALYZED[self.kind], fields=_PLAN_IN_WORDS, source=source, fragment=fragment,
            merge=merge, across=across, returns_rows=True,
        )  # fmt: skip


def _kind(bound: BoundStatement) -> Kind:
    if isinstance(bound, BoundQuery):
        return "select"
    if isinstance(bound, BoundInsert):
        return "insert"
    return "delete" if bound.assignments is None else "update"


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


def _estimates_merged(routed: str, steps: Sequence[str], merge: Sequence[str], apart: bool, routing: Routing) -> str:
    """A program that makes the plan in words of what the partitions estimate: see voltpy.sql.estimates.

    `steps` and `merge` are the lines of its halves.
    """
    keys = len(routing.keys) if any(key.parameter is not None for key in routing.keys) else None
    if_unknown = f"None if p else {keys}" if keys is not None else "None"
    return (
        "def run(tx, p, shipped=()):\n"
        f"    return estimates_merged(shipped[0], {routed!r}, {steps!r}, {merge!r}, {apart}, {if_unknown})\n"
    )


def _told(lines: Sequence[str]) -> str:
    """A program that answers with these lines."""
    return f"def run(tx, p, shipped=()):\n    return {[(line,) for line in lines]!r}\n"
