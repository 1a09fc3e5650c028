"""Which partitions a statement needs, and how a SELECT is taken apart for several of them.

**Routing.** Every partitioned table in the statement must have its partition column bound to constants or parameters:
by `=`, by IN, by ORs of them, or by `=` to a column that is bound. A condition binds only sources whose rows it can
keep out: WHERE those of its query, ON of a LEFT JOIN its right side, a subquery's WHERE not those around it.

**Taking apart.** When all partitioned tables of a SELECT are joined on their partition columns, no row joins rows of
other partitions, so each partition can do the joins and conditions alone. Then

    no groups, or groups by a partition column      each sends its answer (the first LIMIT + OFFSET rows of it);
                                                    merged: DISTINCT, ORDER BY, LIMIT again
    groups                                          each sends keys and partial aggregates; merged: aggregates of them,
                                                    HAVING, the select list, ORDER BY, …

Anything else is gathered: each partition sends, of each table, the columns and rows that the conditions on that table
alone let through, and the merge is the whole statement over these.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import cast

from msgspec import Struct

from voltpy.schema import Table
from voltpy.sql.bound import (
    Aggregate,
    Block,
    BoundInsert,
    BoundQuery,
    BoundStatement,
    Column,
    Const,
    Expr,
    Field,
    Gather,
    Group,
    Op,
    Param,
    Rows,
    SetOp,
    Source,
    SqlType,
    Subquery,
    all_parts,
    map_query,
    parts,
    query_expressions,
    sources_of,
    tables_of,
)
from voltpy.sql.plan import Key, Routing

Place = tuple[int, int]  # (source, column)
Keys = tuple[Key, ...]


class Pieces(Struct, eq=False):
    """What each partition does for a query, what is done with all that they send, and both in words."""

    fragment: Gather
    merge: BoundQuery
    how: str


# -- Routing


def routing_of(statement: BoundStatement) -> Routing:
    """Which partitions have the rows that the statement reads or writes."""
    bindings = _Bindings()
    if isinstance(statement, BoundQuery):
        bindings.query(statement)
        return bindings.routing()
    if isinstance(statement, BoundInsert):
        if statement.table.partition_column is None:
            return Routing("everywhere")
        bindings.insert(statement)
        return bindings.routing()
    if statement.table.partition_column is None:
        return Routing("everywhere")
    bindings.block(statement.query)
    for each in statement.assignments or ():
        if each.position == statement.table.partition_position:
            bindings.add(_key(each.value, statement.table))
    return bindings.routing()


class _Bindings:
    """What a statement says about the partition columns of its tables, and of other columns on the way."""

    def __init__(self) -> None:
        self.keys: dict[Place, Keys] = {}  # of each place that is bound, the values that it can have
        self.needed: list[Source] = []  # tables that are read
        self.extra: list[Keys] = []  # of rows that are written
        self.everywhere = False

    def add(self, keys: Keys | None) -> None:
        """The statement also touches rows under these keys; None: under any."""
        if keys is None:
            self.everywhere = True
        else:
            self.extra.append(keys)

    def routing(self) -> Routing:
        found: dict[Key, None] = dict.fromkeys(key for keys in self.extra for key in keys)
        needs_keys = bool(self.extra)
        for source in self.needed:
            table = source.table
            if table is None:  # the catalog: its counts are of all partitions
                return Routing("everywhere")
            if table.partition_position is None:
                continue
            keys = self.keys.get((source.number, table.partition_position))
            if keys is None:
                return Routing("everywhere")
            needs_keys = True
            found.update(dict.fromkeys(keys))
        if self.everywhere:
            return Routing("everywhere")
        return Routing("keys", tuple(found)) if needs_keys else Routing("anywhere")

    def insert(self, statement: BoundInsert) -> None:
        table = statement.table
        value = statement.row[table.declared_positions.index(cast("int", table.partition_position))]
        if statement.given is not None:
            self.query(statement.given)
        for expr in (*(each.value for each in statement.assignments), *statement.where, *(statement.returning or ())):
            self.subqueries(expr)
        if not (isinstance(value, Column) and value.source == statement.given_source):
            if not _is_fresh(value):
                self.add(_key(value, statement.table))
            return
        given = cast("BoundQuery", statement.given)
        if isinstance(given.body, Rows):
            for row in given.body.rows:
                if not _is_fresh(row[value.column]):
                    self.add(_key(row[value.column], statement.table))
        else:
            self.add(self.output_keys(given, value.column, statement.table))

    def output_keys(self, query: BoundQuery, position: int, table: Table) -> Keys | None:
        """The values that a column of the query can have, which become keys of the table."""
        body = query.body
        if not isinstance(body, Block):
            return None
        output = body.outputs[position]
        if isinstance(output, Column):
            return self.keys.get((output.source, output.column))
        return _key(output, table)

    def query(self, query: BoundQuery) -> None:
        body = query.body
        if isinstance(body, SetOp):
            self.query(body.left)
            self.query(body.right)
        elif isinstance(body, Rows):
            for row in body.rows:
                for expr in row:
                    self.subqueries(expr)
        else:
            self.block(body)

    def block(self, block: Block) -> None:
        for source in block.sources:
            if source.query is not None:
                self.query(source.query)
                inner = source.query.body
                if isinstance(inner, Block):
                    for position, output in enumerate(inner.outputs[: len(source.fields)]):
                        known = self.keys.get((output.source, output.column)) if isinstance(output, Column) else None
                        if known is not None:
                            self.keys[source.number, position] = known
            elif all(source is not other for other in self.needed):
                self.needed.append(source)
        own = {source.number for source in block.sources if not source.left}
        changed = True
        while changed:
            changed = self.learn_all(block.where, own, block)
            for source in block.sources:
                if source.left:
                    changed = self.learn_all(source.on, {source.number}, block) or changed
        for expr in _direct(block):
            self.subqueries(expr)

    def subqueries(self, expr: Expr) -> None:
        for part in parts(expr):
            if isinstance(part, Subquery):
                self.query(part.query)

    def learn_all(self, conditions: Iterable[Expr], sources: set[int], block: Block) -> bool:
        learnt = False
        for condition in conditions:
            learnt = self.learn(condition, sources, block) or learnt
        return learnt

    def learn(self, condition: Expr, sources: set[int], block: Block) -> bool:
        """Whether the condition binds a column that was not bound."""
        types = {
            (source.number, position): field.type
            for source in block.sources
            for position, field in enumerate(source.fields)
            if source.number in sources and field.type in ("INT", "STRING")
        }
        learnt = False
        for place, kind in types.items():
            if place not in self.keys:
                keys = self.keys_in(condition, place, kind == "INT")
                if keys is not None:
                    self.keys[place] = keys
                    learnt = True
        return learnt

    def keys_in(self, condition: Expr, place: Place, whole: bool) -> Keys | None:
        """The values to which the condition binds the place."""
        if not isinstance(condition, Op):
            return None
        if condition.name == "eq":
            for one, other in (condition.args, reversed(condition.args)):
                if isinstance(one, Column) and (one.source, one.column) == place:
                    if isinstance(other, Column):
                        known = self.keys.get((other.source, other.column))
                        if known is not None:
                            return known
                    key = _constant_key(other, whole)
                    if key is not None:
                        return (key,)
        elif condition.name == "in":
            one, *items = condition.args
            if isinstance(one, Column) and (one.source, one.column) == place:
                keys = [_constant_key(item, whole) for item in items]
                if all(key is not None for key in keys):
                    return tuple(key for key in keys if key is not None)
        elif condition.name == "or":
            found: list[Key] = []
            for term in condition.args:
                keys_of_term = self.keys_in(term, place, whole)
                if keys_of_term is None:
                    return None
                found += keys_of_term
            return tuple(found)
        elif condition.name == "and":
            for term in condition.args:
                keys_of_term = self.keys_in(term, place, whole)
                if keys_of_term is not None:
                    return keys_of_term
        return None


def _direct(block: Block) -> Iterator[Expr]:
    """The block's own expressions, those of its FROM's queries aside."""
    for source in block.sources:
        yield from source.on
    yield from (*block.where, *block.outputs, *block.having)
    if block.group is not None:
        yield from block.group.keys
        for aggregate in block.group.aggregates:
            yield from (each for each in (aggregate.arg, aggregate.condition, aggregate.second) if each is not None)


def _constant_key(expr: Expr, whole: bool) -> Key | None:
    """The value if it is known before the statement runs. `whole`: it is compared with an INT."""
    if isinstance(expr, Param):
        return Key(expr.index, None, whole)
    if isinstance(expr, Const):
        return Key(None, expr.value if isinstance(expr.value, int | float | str) else None, whole)
    return None


def _is_fresh(expr: Expr) -> bool:
    """Whether it is a key that the partition makes up where it runs, so that any partition will do."""
    return isinstance(expr, Op) and expr.name == "fresh_key"


def _key(expr: Expr, table: Table) -> Keys | None:
    """The key of a new row whose partition column is this."""
    if isinstance(expr, Op) and expr.name == "assign":
        expr = expr.args[0]
    key = _constant_key(expr, table.columns[cast("int", table.partition_position)].type == "INT")
    return None if key is None else (key,)


# -- Taking apart


def split(query: BoundQuery) -> Pieces | None:
    """The query in pieces; None where any one partition has all that it reads. Changes the query."""
    if not any(_is_split(source) for source in tables_of(query)):
        return None
    body = query.body
    if isinstance(body, Block) and _is_local(body):
        group = body.group
        if group is None or _groups_are_local(body, group):
            return _split_rows(query, body)
        if not any(isinstance(part, Subquery) for expr in (*body.outputs, *body.having) for part in parts(expr)):
            return _split_groups(query, body, group)
    return _gathered(query)


def _is_split(source: Source) -> bool:
    """Whether one partition has only a part of the rows."""
    return source.table is None or source.table.partition_column is not None


def _is_local(block: Block) -> bool:
    """Whether each partition can do the block's joins and conditions alone."""
    sources = {source.number: source for source in block.sources}
    for source in block.sources:
        if source.kind == "catalog" or (source.query is not None and any(map(_is_split, tables_of(source.query)))):
            return False
    for expr in _direct(block):
        for part in parts(expr):
            if isinstance(part, Subquery) and any(map(_is_split, tables_of(part.query))):
                return False
    divided = [source for source in block.sources if source.table is not None and _is_split(source)]
    first = next((source for source in divided if not source.left), None)
    if first is None:  # all are on the right of LEFT JOINs: every partition would send the rows on the left
        return False
    linked = {first.number}
    changed = True
    while changed:
        changed = False
        for source in divided:
            if source.number in linked:
                continue
            conditions = source.on if source.left else block.where
            if any(_links(condition, source, linked, sources) for condition in conditions):
                linked.add(source.number)
                changed = True
    return len(linked) == len(divided)


def _links(condition: Expr, source: Source, linked: set[int], sources: dict[int, Source]) -> bool:
    """Whether the condition joins the source's partition column with one that is linked already."""
    if not (isinstance(condition, Op) and condition.name == "eq"):
        return False
    for one, other in (condition.args, reversed(condition.args)):
        if (
            _is_partition_column(one, source)
            and isinstance(other, Column)
            and other.source in linked
            and _is_partition_column(other, sources[other.source])
        ):
            return True
    return False


def _is_partition_column(expr: Expr, source: Source) -> bool:
    table = source.table
    return (
        isinstance(expr, Column)
        and table is not None
        and (expr.source, expr.column) == (source.number, table.partition_position)
    )


def _groups_are_local(block: Block, group: Group) -> bool:
    """Whether a partition column is among the keys, so that no group has rows of two partitions."""
    return any(
        _is_partition_column(key, source)
        for key in group.keys
        for source in block.sources
        if source.table is not None and _is_split(source) and not source.left
    )


def _shipped(number: int, fields: list[Field], origin: str = "0") -> Source:
    return Source(number, "shipped", "", fields, origin=origin)  # the statement has no name for them


def _fields(exprs: Iterable[Expr]) -> list[Field]:
    return [Field(f"column{position}", expr.type, expr.nullable) for position, expr in enumerate(exprs)]


def _columns(source: Source) -> list[Expr]:
    return [Column(field.type, field.nullable, source.number, position) for position, field in enumerate(source.fields)]


def _fresh(query: BoundQuery) -> int:
    """A number that no source and no query of the statement has."""
    numbers = [query.number, *(source.number for source in tables_of(query))]
    for part in query_expressions(query):
        if isinstance(part, Column):
            numbers.append(part.source)
        elif isinstance(part, Subquery):
            numbers.append(part.query.number)
    return max(numbers) + 1000


def _split_rows(query: BoundQuery, block: Block) -> Pieces:
    limit = query.limit
    if limit is not None and query.offset is not None:
        limit = Op("INT", True, "add", (limit, query.offset))
    order = query.order if limit is not None else []
    fresh = _fresh(query)
    part = BoundQuery(fresh, block, _fields(block.outputs), order, limit)
    shipped = _shipped(fresh + 1, part.fields)
    merge = BoundQuery(
        query.number, Block([shipped], [], _columns(shipped), distinct=block.distinct), query.fields, query.order,
        query.limit, query.offset,
    )  # fmt: skip
    how = "each sends its rows" if limit is None else "each sends its first rows"
    return Pieces(Gather([part], [False]), merge, how)


def _split_groups(query: BoundQuery, block: Block, group: Group) -> Pieces:
    fresh = _fresh(query)
    partial: list[Aggregate] = []
    sent: list[Expr] = []
    for position, key in enumerate(group.keys):
        sent.append(Column(key.type, key.nullable, group.keys_source, position))
    merged: list[Aggregate] = []
    for aggregate in group.aggregates:
        columns: list[Expr] = []
        for one, kind, nullable in _partials(aggregate):
            result: Expr = Column(kind, nullable, group.results_source, len(partial))
            if one.name == "sum_partial":
                result = Op(kind, nullable, "wide", (result,))
            columns.append(Column(kind, nullable, fresh + 1, len(sent)))
            partial.append(one)
            sent.append(result)
        merged.append(_merged(aggregate, columns))
    part_block = Block(
        block.sources,
        block.where,
        sent,
        Group(group.keys, partial, group.keys_source, group.results_source, group.always),
    )
    part = BoundQuery(fresh, part_block, _fields(sent))
    shipped = _shipped(fresh + 1, part.fields)
    keys = _columns(shipped)[: len(group.keys)]
    merge_block = Block(
        [shipped], [], block.outputs,
        Group(keys, merged, group.keys_source, group.results_source, group.always), block.having, block.distinct,
    )  # fmt: skip
    merge = BoundQuery(query.number, merge_block, query.fields, query.order, query.limit, query.offset)
    return Pieces(Gather([part], [False]), merge, "each sends its groups, with partial aggregates")


def _partials(aggregate: Aggregate) -> list[tuple[Aggregate, SqlType, bool]]:
    """What a partition computes for an aggregate: (aggregate, type, can it be NULL)."""
    arg, condition = aggregate.arg, aggregate.condition
    if aggregate.distinct:
        return [(Aggregate("values", arg, True, condition), "ANY", False)]
    if aggregate.name == "avg":
        kind: SqlType = "ANY" if arg is None else arg.type
        return [
            (Aggregate("sum_partial", arg, False, condition), kind, True),
            (Aggregate("count", arg, False, condition), "INT", False),
        ]
    if aggregate.name == "string_agg":
        return [(Aggregate("list", arg, False, condition), "ANY", False)]
    if aggregate.name == "count":
        return [(aggregate, "INT", False)]
    if aggregate.name == "sum":
        return [(Aggregate("sum_partial", arg, False, condition), "ANY" if arg is None else arg.type, True)]
    return [(aggregate, "ANY" if arg is None else arg.type, True)]


def _merged(aggregate: Aggregate, columns: list[Expr]) -> Aggregate:
    name, first = aggregate.name, columns[0]
    if aggregate.distinct:
        return Aggregate("values_merged", first, second=aggregate.second, merges=name)
    if name == "string_agg":
        return Aggregate("list_merged", first, second=aggregate.second, merges=name)
    if name == "avg":
        return Aggregate("avg_merged", first, second=columns[1])
    return Aggregate({"count": "count_merged", "sum": "sum_merged"}.get(name, name), first)


def _gathered(query: BoundQuery) -> Pieces:
    """Sends what the tables have, and does everything else at once."""
    conditions, sources = _own_conditions(query)
    fresh = _fresh(query)
    queries: list[BoundQuery] = []
    copies: list[bool] = []
    renumbered: dict[Place, Column] = {}
    used = {(part.source, part.column) for part in query_expressions(query) if isinstance(part, Column)}
    for source in sources.values():
        columns = [position for position in range(len(source.fields)) if (source.number, position) in used]
        origin = str(len(queries))
        if source.kind == "catalog":
            columns = list(range(len(source.fields)))
            origin += f" {source.origin}"
        mine = Source(source.number, source.kind, source.name, source.fields, source.table, origin=source.origin)
        outputs: list[Expr] = []
        for new, position in enumerate(columns):
            field = source.fields[position]
            outputs.append(Column(field.type, field.nullable, source.number, position))
            renumbered[source.number, position] = Column(field.type, field.nullable or source.left, source.number, new)
        where = [] if source.kind == "catalog" else conditions.get(source.number, [])
        fields = [source.fields[position] for position in columns]
        queries.append(BoundQuery(fresh + len(queries), Block([mine], where, outputs), fields))
        copies.append(not _is_split(source))
        source.kind, source.table, source.origin, source.fields = "shipped", None, origin, fields

    def change(expr: Expr) -> Expr | None:
        return renumbered.get((expr.source, expr.column)) if isinstance(expr, Column) else None

    map_query(query, change)
    return Pieces(Gather(queries, copies), query, "each sends the rows that are needed, and the merge does all else")


def _own_conditions(query: BoundQuery) -> tuple[dict[int, list[Expr]], dict[int, Source]]:
    """Of every table, the conditions on it alone that keep its rows out of the statement; and the tables."""
    conditions: dict[int, list[Expr]] = {}
    sources: dict[int, Source] = {}
    for block in _blocks(query):
        for source in block.sources:
            if source.query is None and source.number not in sources:
                sources[source.number] = source
                candidates = source.on if source.left else block.where
                conditions[source.number] = [
                    condition
                    for condition in candidates
                    if sources_of(condition) == {source.number}
                    and not any(isinstance(part, Subquery) for part in all_parts(condition))
                ]
    return conditions, sources


def _blocks(query: BoundQuery) -> Iterator[Block]:
    """All SELECTs in it, one of WITH as often as it is named."""
    body = query.body
    if isinstance(body, SetOp):
        yield from _blocks(body.left)
        yield from _blocks(body.right)
        return
    if isinstance(body, Block):
        yield body
        for source in body.sources:
            if source.query is not None:
                yield from _blocks(source.query)
        exprs = _direct(body)
    else:
        exprs = (expr for row in body.rows for expr in row)
    for expr in exprs:
        for part in parts(expr):
            if isinstance(part, Subquery):
                yield from _blocks(part.query)
