"""What a statement means: names resolved, types known. Between `voltpy.sql.bind`, which makes it, and what reads it.

Every source of rows (a table, a query in FROM, the groups of an aggregation) has a number of its own within the
statement, so an expression says where its columns come from without saying where it stands. A column of a source that
is not its query's own makes that query correlated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeAlias

from msgspec import Struct

from voltpy.schema import Table, Value

# NUMBER: an INT or a FLOAT, known when it runs. ANY: a parameter whose place says nothing. NULL: the literal.
SqlType = Literal["INT", "FLOAT", "NUMBER", "STRING", "BOOL", "TIMESTAMP", "ANY", "NULL"]
NUMBERS = ("INT", "FLOAT", "NUMBER")


class Expr(Struct, frozen=True):
    """`nullable`: it can come to NULL."""

    type: SqlType
    nullable: bool


class Const(Expr, frozen=True):
    value: Value
    unknown: bool = False  # a string literal, which becomes what its place wants


class Param(Expr, frozen=True):
    index: int


class Column(Expr, frozen=True):
    source: int
    column: int


class Slot(Expr, frozen=True):
    """What the "let" of this number around it has computed once."""

    number: int


class Op(Expr, frozen=True):
    """An operator or function: see voltpy.sql.expression for what each name does. `extra` is part of its meaning."""

    name: str
    args: tuple[Expr, ...]
    extra: Any = None


class Subquery(Expr, frozen=True, eq=False):
    """`kind` scalar, exists or in; `operand` is what stands in front of IN."""

    kind: str
    query: BoundQuery
    operand: Expr | None = None


class Field(Struct, frozen=True):
    name: str
    type: SqlType
    nullable: bool


class Source(Struct, eq=False):
    """What stands in FROM. `kind` table, catalog, query or shipped (rows that fragments sent).

    `origin`: the catalog table's name; which of the shipped lists of rows. `name` is what the statement calls it.
    `left`: it is the right side of a LEFT JOIN, under the conditions `on`.
    """

    number: int
    kind: str
    name: str
    fields: list[Field]
    table: Table | None = None
    query: BoundQuery | None = None
    left: bool = False
    on: list[Expr] = []
    origin: str = ""


class Aggregate(Struct, frozen=True):
    """COUNT(*) has no `arg`. `second` is string_agg's separator.

    Beside SQL's own there are those of statements over several partitions (voltpy.sql.distribute): `values` and `list`
    ship what they are given, and the `…_merged` put partial results together; avg_merged's `second` is the count.
    """

    name: str
    arg: Expr | None
    distinct: bool = False
    condition: Expr | None = None
    second: Expr | None = None
    merges: str = ""  # the aggregate whose values it brings together


class Group(Struct, eq=False):
    """`keys_source` and `results_source` are the sources whose columns are the keys and the aggregates' results.

    Without keys, and with `always`, there is one group, even of no rows.
    """

    keys: list[Expr]
    aggregates: list[Aggregate]
    keys_source: int
    results_source: int
    always: bool


class Order(Struct, frozen=True):
    """By the output at this position."""

    position: int
    descending: bool
    nulls_first: bool
    nullable: bool


class Block(Struct, eq=False):
    """SELECT. `outputs` beyond the query's width only serve ORDER BY."""

    sources: list[Source]
    where: list[Expr]
    outputs: list[Expr]
    group: Group | None = None
    having: list[Expr] = []
    distinct: bool = False


class Rows(Struct, eq=False):
    """VALUES."""

    rows: list[list[Expr]]


class SetOp(Struct, eq=False):
    operator: str
    all: bool
    left: BoundQuery
    right: BoundQuery


class BoundQuery(Struct, eq=False):
    """`fields` are the columns that it answers with."""

    number: int
    body: Block | Rows | SetOp
    fields: list[Field]
    order: list[Order] = []
    limit: Expr | None = None
    offset: Expr | None = None


class Assigned(Struct, eq=False):
    """A column's new value, of the column's type. `position` is the column's."""

    position: int
    value: Expr


class BoundInsert(Struct, eq=False):
    """`row` makes the new row out of the columns of `given`; `old` and `excluded` are sources for ON CONFLICT.

    `given` None: one row of defaults. `on_conflict` None (raise), "nothing" or "update".
    """

    table: Table
    given: BoundQuery | None
    given_source: int
    row: list[Expr]
    excluded: int
    old: int
    on_conflict: str | None
    conflict_key: bool  # the conflict is about the primary key alone
    assignments: list[Assigned]
    where: list[Expr]
    returning: list[Expr] | None
    fields: list[Field]


class BoundChange(Struct, eq=False):
    """UPDATE, or DELETE where there are no assignments. `returning` sees the new row, or the deleted one."""

    table: Table
    query: Block  # its one source is the table; outputs: the new values
    assignments: list[Assigned] | None
    returning: list[Expr] | None
    fields: list[Field]


class Gather(Struct, eq=False):
    """What a partition sends for a statement: the rows of several queries; those of `copies` one partition alone."""

    queries: list[BoundQuery]
    copies: list[bool]


BoundStatement: TypeAlias = BoundQuery | BoundInsert | BoundChange


def conjuncts(expr: Expr) -> list[Expr]:
    """What must all be true for the expression to be."""
    if isinstance(expr, Op) and expr.name == "and":
        return [each for arg in expr.args for each in conjuncts(arg)]
    return [expr]


def parts(expr: Expr) -> Iterator[Expr]:
    """The expression and all expressions in it, subqueries' insides aside."""
    yield expr
    if isinstance(expr, Op):
        for arg in expr.args:
            yield from parts(arg)
    elif isinstance(expr, Subquery) and expr.operand is not None:
        yield from parts(expr.operand)


def query_expressions(query: BoundQuery) -> Iterator[Expr]:
    """Every expression that stands in the query, at any depth."""
    for limit in (query.limit, query.offset):
        if limit is not None:
            yield from all_parts(limit)
    body = query.body
    if isinstance(body, SetOp):
        yield from query_expressions(body.left)
        yield from query_expressions(body.right)
    elif isinstance(body, Rows):
        for row in body.rows:
            for expr in row:
                yield from all_parts(expr)
    else:
        yield from block_expressions(body)


def block_expressions(block: Block) -> Iterator[Expr]:
    for source in block.sources:
        for expr in source.on:
            yield from all_parts(expr)
        if source.query is not None:
            yield from query_expressions(source.query)
    for expr in (*block.where, *block.outputs, *block.having):
        yield from all_parts(expr)
    if block.group is not None:
        for expr in block.group.keys:
            yield from all_parts(expr)
        for aggregate in block.group.aggregates:
            for part in (aggregate.arg, aggregate.condition, aggregate.second):
                if part is not None:
                    yield from all_parts(part)


def all_parts(expr: Expr) -> Iterator[Expr]:
    """The expression and everything in it, subqueries' insides too."""
    for part in parts(expr):
        yield part
        if isinstance(part, Subquery):
            yield from query_expressions(part.query)


def sources_of(expr: Expr) -> set[int]:
    """The numbers of all sources whose columns the expression needs, those inside its subqueries included."""
    return {part.source for part in all_parts(expr) if isinstance(part, Column)} - inner_sources(expr)


def inner_sources(expr: Expr) -> set[int]:
    """The numbers of the sources that the expression's subqueries bring along."""
    found: set[int] = set()
    for part in all_parts(expr):
        if isinstance(part, Subquery):
            found |= own_sources(part.query)
    return found


def own_sources(query: BoundQuery) -> set[int]:
    """The numbers of the sources of the query itself and of the queries in its FROM and set operations."""
    body = query.body
    if isinstance(body, SetOp):
        return own_sources(body.left) | own_sources(body.right)
    if isinstance(body, Rows):
        return set()
    found = {source.number for source in body.sources}
    for source in body.sources:
        if source.query is not None:
            found |= own_sources(source.query)
    if body.group is not None:
        found |= {body.group.keys_source, body.group.results_source}
    return found


def outer_sources(query: BoundQuery) -> set[int]:
    """The sources outside the query that it needs: none when it is uncorrelated."""
    needed: set[int] = set()
    inside = own_sources(query)
    for part in query_expressions(query):
        if isinstance(part, Column):
            needed.add(part.source)
        elif isinstance(part, Subquery):
            inside |= own_sources(part.query)
    return needed - inside


def tables_of(query: BoundQuery) -> Iterator[Source]:
    """Every table and catalog table that the query reads, once for each place where it stands."""
    body = query.body
    if isinstance(body, SetOp):
        yield from tables_of(body.left)
        yield from tables_of(body.right)
    elif isinstance(body, Block):
        for source in body.sources:
            if source.query is not None:
                yield from tables_of(source.query)
            elif source.kind in ("table", "catalog"):
                yield source
    for part in query_expressions(query):
        if isinstance(part, Subquery):
            yield from tables_of(part.query)


def mapped(expr: Expr, change: Callable[[Expr], Expr | None], seen: set[int] | None = None) -> Expr:
    """The expression with every part replaced for which `change` has an answer, subqueries' insides too.

    `seen` are the queries whose insides have been replaced: a query of WITH stands in several places.
    """
    seen = set() if seen is None else seen
    new = change(expr)
    if new is not None:
        return new
    if isinstance(expr, Op):
        args = tuple(mapped(arg, change, seen) for arg in expr.args)
        return Op(expr.type, expr.nullable, expr.name, args, expr.extra)
    if isinstance(expr, Subquery):
        map_query(expr.query, change, seen)
        operand = None if expr.operand is None else mapped(expr.operand, change, seen)
        return Subquery(expr.type, expr.nullable, expr.kind, expr.query, operand)
    return expr


def map_query(query: BoundQuery, change: Callable[[Expr], Expr | None], seen: set[int] | None = None) -> None:
    """Replaces parts of all the query's expressions, in place."""
    seen = set() if seen is None else seen
    if query.number in seen:
        return
    seen.add(query.number)

    def one(expr: Expr) -> Expr:
        return mapped(expr, change, seen)

    def maybe(expr: Expr | None) -> Expr | None:
        return None if expr is None else mapped(expr, change, seen)

    query.limit, query.offset = maybe(query.limit), maybe(query.offset)
    body = query.body
    if isinstance(body, SetOp):
        map_query(body.left, change, seen)
        map_query(body.right, change, seen)
        return
    if isinstance(body, Rows):
        body.rows = [[one(expr) for expr in row] for row in body.rows]
        return
    for source in body.sources:
        source.on = [one(expr) for expr in source.on]
        if source.query is not None:
            map_query(source.query, change, seen)
    body.where = [one(expr) for expr in body.where]
    body.outputs = [one(expr) for expr in body.outputs]
    body.having = [one(expr) for expr in body.having]
    if body.group is not None:
        body.group.keys = [one(expr) for expr in body.group.keys]
        body.group.aggregates = [
            Aggregate(
                each.name, maybe(each.arg), each.distinct, maybe(each.condition), maybe(each.second), each.merges
            )
            for each in body.group.aggregates
        ]  # fmt: skip
