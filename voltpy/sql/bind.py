"""Syntax → meaning: which column a name is, what type an expression has, what is grouped. All checks of a statement.

Types follow PostgreSQL: INT with INT gives INT, with FLOAT FLOAT; other types mix with themselves only. A string
literal becomes what its place wants. A parameter takes the type of its place too: NUMBER beside numbers, so that 1.5
may be compared with an INT; what nothing tells stays ANY, and is checked when it runs.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from typing import Any, cast

from voltpy.errors import DataError, SqlError
from voltpy.schema import HIDDEN_KEY, INT_MAX, INT_MIN, Table, TypeName
from voltpy.schema import Column as TableColumn
from voltpy.sql import syntax
from voltpy.sql.bound import (
    NUMBERS,
    Aggregate,
    Assigned,
    Block,
    BoundChange,
    BoundInsert,
    BoundQuery,
    BoundStatement,
    Column,
    Const,
    Expr,
    Field,
    Group,
    Op,
    Order,
    Param,
    Rows,
    SetOp,
    Slot,
    Source,
    SqlType,
    Subquery,
    all_parts,
    conjuncts,
    mapped,
    parts,
)
from voltpy.sql.catalog import CATALOG
from voltpy.sql.catalogue import Catalogue
from voltpy.sql.functions import AGGREGATES, FUNCTIONS, GENERATED, Function
from voltpy.sql.parse import parse_statement
from voltpy.sql.tokens import placed
from voltpy.sql.values import ASSIGNED, CASTS, text_to_bool, text_to_float, text_to_int, text_to_timestamp
from voltpy.view import View

MAX_LEVELS = 60  # of operators in each other; Python's own parser has limits, too
MAX_SOURCES = 64
MAX_OUTPUTS = 1000
MAX_SUBQUERIES = 200

_COMPARED = {"=": "eq", "<>": "ne", "<": "lt", "<=": "le", ">": "gt", ">=": "ge"}
_ARITHMETIC = {"+": "add", "-": "sub", "*": "mul", "/": "div", "%": "mod"}
_READ: dict[str, Callable[[str], Any]] = {
    "INT": text_to_int, "FLOAT": text_to_float, "BOOL": text_to_bool, "TIMESTAMP": text_to_timestamp,
}  # fmt: skip
_FUNCTION_TYPES: dict[str, SqlType] = {
    "N": "NUMBER",
    "I": "INT",
    "F": "FLOAT",
    "S": "STRING",
    "B": "BOOL",
    "T": "TIMESTAMP",
}
TRUE = Const("BOOL", False, True)


class _Scope:
    """The names that an expression sees. `aggregates` None: none may stand here; `clause` is where that is."""

    def __init__(self, parent: _Scope | None, tables: dict[str, BoundQuery]) -> None:
        self.parent = parent
        self.tables = tables  # of WITH
        self.sources: list[Source] = []
        self.merged: set[tuple[int, int]] = set()  # columns that USING hides behind an equal one
        self.aggregates: list[Aggregate] | None = None
        self.results_source = -1
        self.has_keys = False
        self.key_nodes: list[tuple[syntax.Expression, Expr]] = []  # keys of GROUP BY that hold queries
        self.clause = "FROM"


def bind(
    text: str, statement: syntax.Statement, parameters: int, catalogue: Catalogue, *, views_as_queries: bool = False
) -> tuple[BoundStatement, list[SqlType]]:
    """The statement's meaning, and the types that its parameters should have. Raises SqlError.

    `views_as_queries`: what is read of a view is not what is stored of it, but what its SELECT says about its table.
    """
    binder = _Binder(text, parameters, catalogue, views_as_queries)
    bound: BoundStatement
    if isinstance(statement, syntax.Query):
        bound = binder.query(statement, None, {})
    elif isinstance(statement, syntax.Insert):
        bound = binder.insert(statement)
    else:
        bound = binder.change(statement)
    return bound, binder.parameter_types


class _Binder:
    def __init__(self, text: str, parameters: int, catalogue: Catalogue, views_as_queries: bool) -> None:
        self.text = text
        self.views_as_queries = views_as_queries
        self.catalogue = catalogue
        self.parameter_types: list[SqlType] = ["ANY"] * parameters
        self.grouped_views: set[int] = set()  # sources that are views, with a query that groups
        self.new_number = count().__next__
        self.levels = 0
        self.subqueries = 0  # one of WITH counts, with all in it, wherever it is named
        self.sizes: dict[int, int] = {}  # number of a query of WITH → how many queries it is

    # Queries

    def query(self, node: syntax.Query, parent: _Scope | None, tables: dict[str, BoundQuery]) -> BoundQuery:
        self.count_queries(1, node.at)
        tables = self.common_tables(node.tables, parent, tables)
        body = node.body
        if isinstance(body, syntax.Select):
            query = self.select(body, node.order, parent, tables)
        elif isinstance(body, syntax.Values):
            query = self.values(body, parent, tables)
            query.order = self.order_by_output(node.order, query)
        else:
            query = self.set_operation(body, parent, tables)
            query.order = self.order_by_output(node.order, query)
        scope = _Scope(parent, tables)
        scope.clause = "LIMIT"
        query.limit = self.limit(node.limit, scope)
        query.offset = self.limit(node.offset, scope)
        return query

    def count_queries(self, count: int, at: int) -> None:
        self.subqueries += count
        if self.subqueries > MAX_SUBQUERIES:
            raise self.wrong(f"more than {MAX_SUBQUERIES} queries in one statement", at)

    def common_tables(
        self, nodes: Sequence[syntax.CommonTable], parent: _Scope | None, tables: dict[str, BoundQuery]
    ) -> dict[str, BoundQuery]:
        if not nodes:
            return tables
        tables = dict(tables)
        new: set[str] = set()
        for node in nodes:
            if node.name in new:
                raise self.wrong(f"WITH names {node.name} twice", node.at)
            new.add(node.name)
            before = self.subqueries
            query = self.query(node.query, parent, tables)
            self.sizes[query.number] = self.subqueries - before
            tables[node.name] = query
            query.fields = self.renamed(query.fields, node.columns, node.at)
        return tables

    def renamed(self, fields: list[Field], names: Sequence[str], at: int) -> list[Field]:
        if len(names) > len(fields):
            raise self.wrong(f"{len(names)} names for {len(fields)} columns", at)
        new = [Field(name, field.type, field.nullable) for name, field in zip(names, fields, strict=False)]
        return new + fields[len(new) :]

    def limit(self, node: syntax.Expression | None, scope: _Scope) -> Expr | None:
        if node is None or (isinstance(node, syntax.Literal) and node.value is None):
            return None
        expr = self.fitted(self.expr(node, scope), "INT", node, "LIMIT and OFFSET want")
        if any(isinstance(part, Column) for part in parts(expr)):
            raise self.wrong("LIMIT and OFFSET can't depend on columns", node.at)
        return expr

    def order_by_output(self, nodes: Sequence[syntax.OrderItem], query: BoundQuery) -> list[Order]:
        """ORDER BY of a set operation or VALUES: output columns, by name or position."""
        orders = []
        for node in nodes:
            position = self.output_position(node.expression, [field.name for field in query.fields])
            if position is None:
                raise self.wrong("ORDER BY of UNION, EXCEPT or INTERSECT names a column of the result", node.at)
            orders.append(Order(position, node.descending, node.nulls_first, query.fields[position].nullable))
        return orders

    def output_position(self, node: syntax.Expression, names: list[str]) -> int | None:
        """Which output a key of ORDER BY or GROUP BY names by its place or name, if it does."""
        if isinstance(node, syntax.Literal):
            if type(node.value) is not int:
                raise self.wrong("a constant orders nothing: write a column, or its position", node.at)
            if not 1 <= node.value <= len(names):
                raise self.wrong(f"position {node.value} is not among the {len(names)} columns", node.at)
            return node.value - 1
        if isinstance(node, syntax.Name) and node.table is None and node.column in names:
            return names.index(node.column)
        return None

    def values(self, node: syntax.Values, parent: _Scope | None, tables: dict[str, BoundQuery]) -> BoundQuery:
        scope = _Scope(parent, tables)
        scope.clause = "VALUES"
        rows = [[self.expr(each, scope) for each in row] for row in node.rows]
        fields = []
        for position in range(len(rows[0])):
            column = [row[position] for row in rows]
            kind = self.common(column, node)
            for row in rows:
                row[position] = self.converted(row[position], kind, node)
            fields.append(Field(f"column{position + 1}", kind, any(row[position].nullable for row in rows)))
        return BoundQuery(self.new_number(), Rows(rows), fields)

    def set_operation(
        self, node: syntax.SetOperation, parent: _Scope | None, tables: dict[str, BoundQuery]
    ) -> BoundQuery:
        left = self.query(node.left, parent, tables)
        right = self.query(node.right, parent, tables)
        if len(left.fields) != len(right.fields):
            raise self.wrong(
                f"{node.operator} of {len(left.fields)} and {len(right.fields)} columns: each side needs as many",
                node.at,
            )
        fields = []
        for position, (one, other) in enumerate(zip(left.fields, right.fields, strict=True)):
            kind = self.common([*self.outputs_at(left, position), *self.outputs_at(right, position)], node)
            self.convert_output(left, position, kind, node)
            self.convert_output(right, position, kind, node)
            fields.append(Field(one.name, kind, one.nullable or other.nullable))
        return BoundQuery(self.new_number(), SetOp(node.operator, node.all, left, right), fields)

    def outputs_at(self, query: BoundQuery, position: int) -> list[Expr]:
        """What stands in this column, in all branches of set operations."""
        body = query.body
        if isinstance(body, Block):
            return [body.outputs[position]]
        if isinstance(body, Rows):
            return [row[position] for row in body.rows]
        return self.outputs_at(body.left, position) + self.outputs_at(body.right, position)

    def convert_output(self, query: BoundQuery, position: int, kind: SqlType, node: syntax.Node) -> None:
        body = query.body
        if isinstance(body, Block):
            body.outputs[position] = self.converted(body.outputs[position], kind, node)
        elif isinstance(body, Rows):
            for row in body.rows:
                row[position] = self.converted(row[position], kind, node)
        else:
            self.convert_output(body.left, position, kind, node)
            self.convert_output(body.right, position, kind, node)
        field = query.fields[position]
        query.fields[position] = Field(field.name, kind, field.nullable)

    def select(
        self,
        node: syntax.Select,
        order: Sequence[syntax.OrderItem],
        parent: _Scope | None,
        tables: dict[str, BoundQuery],
    ) -> BoundQuery:
        scope = _Scope(parent, tables)
        block = Block([], [], [])
        for source in node.sources:
            self.from_item(source, scope, block)
        block.sources = scope.sources
        scope.clause = "WHERE"
        if node.where is not None:
            block.where += conjuncts(self.condition(node.where, scope, "WHERE"))
        self.ask_views_less(block)
        items = self.expanded(node.items, scope)
        keys = self.group_keys(node.keys, items, scope)
        scope.clause, scope.aggregates, scope.has_keys = "the select list", [], bool(keys)
        scope.results_source = self.new_number()
        names = [name for _, name in items]
        block.outputs = [each if isinstance(each, Expr) else self.expr(each, scope) for each, _ in items]
        width = len(block.outputs)
        if node.having is not None:
            scope.clause = "HAVING"
            block.having = conjuncts(self.condition(node.having, scope, "HAVING"))
        block.distinct = node.distinct
        orders = self.orders(order, names, block, scope)
        if keys or scope.aggregates or node.having is not None:
            block.group = Group(keys, scope.aggregates, self.new_number(), scope.results_source, not keys)
            self.regroup(block, node)
            orders = [
                Order(o.position, o.descending, o.nulls_first, block.outputs[o.position].nullable) for o in orders
            ]
        fields = [Field(name, expr.type, expr.nullable) for name, expr in zip(names, block.outputs, strict=False)]
        return BoundQuery(self.new_number(), block, fields[:width], orders)

    def expanded(self, nodes: Sequence[syntax.Item], scope: _Scope) -> list[tuple[syntax.Expression | Expr, str]]:
        """The items of a select list, * as the columns that it stands for, with their names."""
        items: list[tuple[syntax.Expression | Expr, str]] = []
        for node in nodes:
            expression = node.expression
            if isinstance(expression, syntax.Star):
                items += self.starred(expression, scope)
            else:
                items.append((expression, node.alias or _name_of(expression)))
        if len(items) > MAX_OUTPUTS:
            raise self.wrong(f"{len(items):,} columns; the limit is {MAX_OUTPUTS:,}", nodes[0].at)
        return items

    def starred(self, node: syntax.Star, scope: _Scope) -> list[tuple[syntax.Expression | Expr, str]]:
        sources = [source for source in scope.sources if node.table in (None, source.name)]
        if not sources:
            wanted = f"there is no {node.table} in FROM" if node.table else "SELECT * needs a FROM"
            raise self.wrong(wanted, node.at)
        items: list[tuple[syntax.Expression | Expr, str]] = []
        for source in sources:
            for position, field in enumerate(source.fields):
                hidden = source.table is not None and position not in source.table.declared_positions
                if not hidden and (node.table or (source.number, position) not in scope.merged):
                    items.append((_column(source, position), field.name))
        return items

    def group_keys(
        self, nodes: Sequence[syntax.Expression], items: list[tuple[syntax.Expression | Expr, str]], scope: _Scope
    ) -> list[Expr]:
        keys: list[Expr] = []
        names = [name for _, name in items]
        for node in nodes:
            scope.clause = "GROUP BY"
            chosen: syntax.Expression | Expr = node
            if isinstance(node, syntax.Literal) or (
                isinstance(node, syntax.Name) and node.table is None and not self.found(node, scope)
            ):
                position = self.output_position(node, names)
                if position is not None:
                    chosen = items[position][0]
            keys.append(chosen if isinstance(chosen, Expr) else self.expr(chosen, scope))
            if not isinstance(chosen, Expr) and any(isinstance(part, Subquery) for part in parts(keys[-1])):
                scope.key_nodes.append((chosen, keys[-1]))
        return keys

    def orders(self, nodes: Sequence[syntax.OrderItem], names: list[str], block: Block, scope: _Scope) -> list[Order]:
        orders = []
        width = len(names)
        for node in nodes:
            scope.clause = "ORDER BY"
            position = self.output_position(node.expression, names)
            if position is None:
                expr = self.expr(node.expression, scope)
                if expr in block.outputs:
                    position = block.outputs.index(expr)
                elif block.distinct:
                    raise self.wrong("ORDER BY with DISTINCT: only what is selected can order the rows", node.at)
                else:
                    position = len(block.outputs)
                    block.outputs.append(expr)
            elif names[:width].count(names[position]) > 1 and isinstance(node.expression, syntax.Name):
                same = {id(block.outputs[i]) if isinstance(block.outputs[i], Subquery) else block.outputs[i]
                        for i in range(width) if names[i] == names[position]}  # fmt: skip
                if len(same) > 1:
                    raise self.wrong(f"ORDER BY {names[position]} is ambiguous", node.at)
            orders.append(Order(position, node.descending, node.nulls_first, block.outputs[position].nullable))
        return orders

    def regroup(self, block: Block, node: syntax.Select) -> None:
        """Above the groups there are keys and results of aggregates only."""
        group = cast("Group", block.group)
        own = {source.number: source for source in block.sources}
        keyed = {key for key in group.keys if isinstance(key, Column)}

        def change(expr: Expr) -> Expr | None:
            for position, key in enumerate(group.keys):
                if expr == key:
                    return Column(key.type, key.nullable, group.keys_source, position)
            if isinstance(expr, Column) and expr.source in own:
                source = own[expr.source]
                table = source.table
                if table is not None and all(
                    _column(source, position) in keyed for position in table.key_positions
                ):  # the primary key says what the row is
                    group.keys.append(expr)
                    return Column(expr.type, expr.nullable, group.keys_source, len(group.keys) - 1)
                name = source.fields[expr.column].name
                raise self.wrong(
                    f"{source.name}.{name} must be in GROUP BY or inside an aggregate: it differs within a group",
                    node.at,
                )
            return None

        block.outputs = [mapped(expr, change) for expr in block.outputs]
        block.having = [mapped(expr, change) for expr in block.having]

    # FROM

    def from_item(self, node: syntax.From, scope: _Scope, block: Block) -> None:
        if isinstance(node, syntax.Join):
            self.join(node, scope, block)
        else:
            self.add_source(self.source(node, scope), scope, node.at)

    def add_source(self, source: Source, scope: _Scope, at: int) -> None:
        if source.name and any(other.name == source.name for other in scope.sources):
            raise self.wrong(f"{source.name} stands twice in FROM: give it an alias", at)
        if len(scope.sources) == MAX_SOURCES:
            raise self.wrong(f"more than {MAX_SOURCES} tables in FROM", at)
        scope.sources.append(source)

    def join(self, node: syntax.Join, scope: _Scope, block: Block) -> None:
        first = len(scope.sources)
        self.from_item(node.left, scope, block)
        middle = len(scope.sources)
        if node.kind == "LEFT" and isinstance(node.right, syntax.Join):
            raise self.wrong("LEFT JOIN of a join in parentheses is not supported: write a subquery", node.at)
        self.from_item(node.right, scope, block)
        lefts, rights = scope.sources[first:middle], scope.sources[middle:]
        if node.kind == "LEFT":
            rights[0].left = True
        if node.natural:
            mine = {field.name for source in lefts for field in self.visible(source)}
            shared = tuple(field.name for source in rights for field in self.visible(source) if field.name in mine)
            on = self.merged_columns(shared, lefts, rights, scope, node)
        elif node.using:
            on = self.merged_columns(node.using, lefts, rights, scope, node)
        elif node.condition is not None:
            inner = _Scope(scope.parent, scope.tables)
            inner.sources, inner.clause = lefts + rights, "JOIN … ON"
            inner.merged = scope.merged
            on = conjuncts(self.condition(node.condition, inner, "ON"))
        else:
            on = []
        if node.kind == "LEFT":
            rights[0].on = on
        else:
            block.where += on

    def visible(self, source: Source) -> list[Field]:
        if source.table is None:
            return source.fields
        return [source.fields[position] for position in source.table.declared_positions]

    def merged_columns(
        self, names: Sequence[str], lefts: list[Source], rights: list[Source], scope: _Scope, node: syntax.Join
    ) -> list[Expr]:
        on = []
        for name in names:
            left = self.only(name, lefts, scope, node)
            right = self.only(name, rights, scope, node)
            on.append(self.compared("=", left, right, node))
            scope.merged.add((right.source, right.column))
        return on

    def only(self, name: str, sources: list[Source], scope: _Scope, node: syntax.Join) -> Column:
        found = [
            _column(source, position)
            for source in sources
            for position, field in enumerate(source.fields)
            if field.name == name and (source.number, position) not in scope.merged
        ]
        if len(found) != 1:
            raise self.wrong(f"column {name} of USING stands {len(found)} times on one side of the JOIN", node.at)
        return found[0]

    def source(self, node: syntax.TableRef | syntax.Derived, scope: _Scope) -> Source:
        if isinstance(node, syntax.Derived):
            query = self.query(node.query, scope.parent, scope.tables)
            fields = self.renamed(query.fields, node.columns, node.at)
            return Source(self.new_number(), "query", node.alias, fields, query=query)
        name = node.alias or node.name
        shared = scope.tables.get(node.name)
        if shared is not None:
            self.count_queries(self.sizes[shared.number], node.at)
            fields = self.renamed(shared.fields, node.columns, node.at)
            return Source(self.new_number(), "query", name, fields, query=shared)
        if node.name in CATALOG:
            fields = self.renamed(CATALOG[node.name], node.columns, node.at)
            return Source(self.new_number(), "catalog", name, fields, origin=node.name)
        table = self.table(node, scope.tables)
        view = table.view
        if view is not None and (self.views_as_queries or view.is_partial):
            query = self.query_of(view) if self.views_as_queries else self.parts_together(table, view)
            fields = self.renamed(query.fields, node.columns, node.at)
            source = Source(self.new_number(), "query", name, fields, query=query)
            self.grouped_views.add(source.number)
            return source
        fields = self.renamed(_fields(table), node.columns, node.at)
        return Source(self.new_number(), "table", name, fields, table)

    def ask_views_less(self, block: Block) -> None:
        """What is asked of keys alone of a view's groups is asked before they are made."""
        for source in block.sources:
            if source.number not in self.grouped_views or source.left:
                continue
            inner = cast("BoundQuery", source.query).body
            assert isinstance(inner, Block)
            group = cast("Group", inner.group)
            keys = {
                (source.number, position): group.keys[output.column]
                for position, output in enumerate(inner.outputs)
                if isinstance(output, Column) and output.source == group.keys_source
            }
            for condition in block.where:
                found = list(all_parts(condition))
                places = {(part.source, part.column) for part in found if isinstance(part, Column)}
                if places and places <= keys.keys() and not any(isinstance(part, Subquery) for part in found):
                    inner.where.append(mapped(condition, _from(keys)))

    def query_of(self, view: View) -> BoundQuery:
        """What the view's SELECT says."""
        statement, _ = parse_statement(view.query)
        return self.query(cast("syntax.Query", statement), None, {})

    def parts_together(self, table: Table, view: View) -> BoundQuery:
        """The groups of a view of which several partitions may have parts."""
        source = Source(self.new_number(), "table", table.name, _fields(table), table)
        columns = [_column(source, position) for position in range(len(table.columns))]
        keys = [columns[position] for position in table.key_positions[1:]]  # behind the partition's own
        results, keys_source = self.new_number(), self.new_number()
        how = {each.column: "sum" if each.kind in ("rows", "count") else each.kind for each in view.kept}
        aggregates: list[Aggregate] = []
        outputs: list[Expr] = []
        for column, schema in zip(columns, table.declared, strict=False):
            if schema.name in how:
                outputs.append(Column(column.type, column.nullable, results, len(aggregates)))
                aggregates.append(Aggregate(how[schema.name], column))
            else:
                outputs.append(Column(column.type, column.nullable, keys_source, keys.index(column)))
        block = Block([source], [], outputs, Group(list(keys), aggregates, keys_source, results, False))
        fields = [Field(each.name, each.type, each.nullable) for each in table.declared]
        return BoundQuery(self.new_number(), block, fields)

    def table(self, node: syntax.TableRef, tables: Iterable[str] = ()) -> Table:
        table = self.catalogue.table(node.name)
        if table is None:
            names = [*self.catalogue.names(), *tables, *CATALOG]
            raise self.wrong(f"there is no table {node.name}{_hint(node.name, names)}", node.at)
        return table

    # Statements that write

    def target(self, node: syntax.TableRef) -> tuple[Table, Source]:
        if node.name in CATALOG:
            raise self.wrong(f"{node.name} is the catalog's, and can't be written", node.at)
        table = self.table(node)
        if table.view is not None:
            raise self.wrong(f"{table.name} is a view of {table.view.base}: write to that, and it follows", node.at)
        return table, Source(self.new_number(), "table", node.alias or node.name, _fields(table), table)

    def insert(self, node: syntax.Insert) -> BoundInsert:
        table, old = self.target(node.table)
        tables = self.common_tables(node.tables, None, {})
        positions = self.insert_positions(node, table)
        given_source = self.new_number()
        given: BoundQuery | None = None
        row = [self.default(table, position) for position in table.declared_positions]
        if node.source is not None:
            given = self.given(node, table, positions, tables)
            for place, position in enumerate(positions):
                field = given.fields[place]
                column = Column(field.type, field.nullable, given_source, place)
                row[table.declared_positions.index(position)] = self.assigned(column, table.columns[position], node)
        declared = [_fields(table)[position] for position in table.declared_positions]
        excluded = Source(self.new_number(), "query", "excluded", declared)
        scope = _Scope(None, tables)
        scope.sources = [old, excluded]
        on_conflict, conflict_key, assignments, where = None, False, [], []
        if node.conflict is not None:
            on_conflict = "update" if node.conflict.assignments else "nothing"
            conflict_key = bool(node.conflict.columns)
            self.check_conflict(node.conflict, table)
            assignments = self.assignments(node.conflict.assignments, table, scope)
            if node.conflict.where is not None:
                scope.clause = "WHERE"
                where = conjuncts(self.condition(node.conflict.where, scope, "WHERE"))
        returning, fields = self.returning(node.returning, old, tables)
        return BoundInsert(
            table, given, given_source, row, excluded.number, old.number, on_conflict, conflict_key, assignments, where,
            returning, fields,
        )  # fmt: skip

    def insert_positions(self, node: syntax.Insert, table: Table) -> list[int]:
        if not node.columns:
            return list(table.declared_positions)
        positions: list[int] = []
        for name, at in node.columns:
            position = self.writable(table, name, at)
            if position in positions:
                raise self.wrong(f"column {name} stands twice", at)
            positions.append(position)
        return positions

    def writable(self, table: Table, name: str, at: int) -> int:
        position = table.positions.get(name)
        if position is None or (table.hidden_key and name == HIDDEN_KEY):
            names = [column for column in table.positions if not (table.hidden_key and column == HIDDEN_KEY)]
            raise self.wrong(f"table {table.name} has no column {name}{_hint(name, names)}", at)
        return position

    def given(
        self, node: syntax.Insert, table: Table, positions: list[int], tables: dict[str, BoundQuery]
    ) -> BoundQuery:
        """The rows to insert; those of VALUES with the types of their columns already."""
        query = cast("syntax.Query", node.source)
        body = query.body
        plain = isinstance(body, syntax.Values) and not (query.order or query.limit or query.offset or query.tables)
        if not plain:
            bound = self.query(query, None, tables)
            self.check_width(len(bound.fields), positions, node)
            return bound
        scope = _Scope(None, tables)
        scope.clause = "VALUES"
        rows: list[list[Expr]] = []
        for values in cast("syntax.Values", body).rows:
            self.check_width(len(values), positions, node)
            row = []
            for place, value in enumerate(values):
                column = table.columns[positions[place]]
                if isinstance(value, syntax.Default):
                    row.append(self.default(table, positions[place]))
                else:
                    row.append(self.assigned(self.expr(value, scope), column, value))
            rows.append(row)
        if not node.columns and rows and len(rows[0]) < len(positions):
            del positions[len(rows[0]) :]
        fields = [Field(table.columns[position].name, table.columns[position].type, True) for position in positions]
        return BoundQuery(self.new_number(), Rows(rows), fields)

    def check_width(self, width: int, positions: list[int], node: syntax.Insert) -> None:
        """Fewer values than columns are allowed where the columns are not named: the last ones get their defaults."""
        if width > len(positions) or (node.columns and width < len(positions)):
            raise self.wrong(f"INSERT has {width} values for {len(positions)} columns", node.at)
        if not node.columns and not isinstance(cast("syntax.Query", node.source).body, syntax.Values):
            del positions[width:]

    def default(self, table: Table, position: int) -> Expr:
        """What a column holds that an INSERT leaves out."""
        column = table.columns[position]
        if column.has_default or column.nullable:
            return Const(column.type, column.default is None, column.default)
        if table.primary_key == (column.name,) and column.type == "INT":
            return Op("INT", False, "fresh_key", (), table.name)
        return Op(column.type, False, "left_out", (), (table.name, column.name))

    def assigned(self, expr: Expr, column: TableColumn, node: syntax.Node) -> Expr:
        """The expression as a value of the column's type."""
        kind = column.type
        if expr.type == kind and not (isinstance(expr, Const) and expr.unknown):
            return expr
        if isinstance(expr, Const) and (expr.value is None or expr.unknown):
            return self.literal(expr, kind, node)
        if expr.type in ("ANY", "NUMBER"):
            return Op(kind, True, "assign", (expr,), kind)
        if expr.type == "NULL":
            return expr
        if (expr.type, kind) not in ASSIGNED:
            raise self.wrong(f"column {column.name} is of type {kind}, and the value of type {expr.type}", node.at)
        if isinstance(expr, Const) and kind == "FLOAT":
            return Const(kind, False, float(cast("int", expr.value)))
        return Op(kind, expr.nullable, "cast", (expr,), (expr.type, kind))

    def assignments(self, nodes: Sequence[syntax.Assignment], table: Table, scope: _Scope) -> list[Assigned]:
        assigned: list[Assigned] = []
        scope.clause = "SET"
        for node in nodes:
            position = self.writable(table, node.column, node.at)
            if any(each.position == position for each in assigned):
                raise self.wrong(f"column {node.column} is set twice", node.at)
            if isinstance(node.value, syntax.Default):
                value = self.default(table, position)
            else:
                value = self.assigned(self.expr(node.value, scope), table.columns[position], node.value)
            assigned.append(Assigned(position, value))
        return assigned

    def check_conflict(self, node: syntax.Conflict, table: Table) -> None:
        if node.columns:
            for name in node.columns:
                self.writable(table, name, node.at)
            keys = self.catalogue.unique_keys(table)
            if set(node.columns) not in [set(key) for key in keys]:
                known = " or ".join(f"({', '.join(key)})" for key in keys) or "none: it declares no primary key"
                raise self.wrong(f"ON CONFLICT names columns that are no key of table {table.name}: {known}", node.at)

    def returning(
        self, nodes: Sequence[syntax.Item], source: Source, tables: dict[str, BoundQuery]
    ) -> tuple[list[Expr] | None, list[Field]]:
        if not nodes:
            return None, []
        scope = _Scope(None, tables)
        scope.sources, scope.clause = [source], "RETURNING"
        items = self.expanded(nodes, scope)
        exprs = [each if isinstance(each, Expr) else self.expr(each, scope) for each, _ in items]
        names = [name for _, name in items]
        return exprs, [Field(name, expr.type, expr.nullable) for name, expr in zip(names, exprs, strict=True)]

    def change(self, node: syntax.Update | syntax.Delete) -> BoundChange:
        table, source = self.target(node.table)
        tables = self.common_tables(node.tables, None, {})
        scope = _Scope(None, tables)
        scope.sources, scope.clause = [source], "WHERE"
        where = [] if node.where is None else conjuncts(self.condition(node.where, scope, "WHERE"))
        assignments = None
        if isinstance(node, syntax.Update):
            assignments = self.assignments(node.assignments, table, scope)
        outputs = [each.value for each in assignments or ()]
        returning, fields = self.returning(node.returning, source, tables)
        return BoundChange(table, Block([source], where, outputs), assignments, returning, fields)

    # Expressions

    def expr(self, node: syntax.Expression, scope: _Scope) -> Expr:
        self.levels += 1
        if self.levels > MAX_LEVELS:
            raise self.wrong(f"more than {MAX_LEVELS} operators in each other", node.at)
        # A query is equal to itself alone once it is bound, so such keys are known by what was written.
        known = [key for written, key in scope.key_nodes if _is_same(written, node)]
        bound = known[0] if known and scope.aggregates is not None else self.node(node, scope)
        self.levels -= 1
        return bound

    def node(self, node: syntax.Expression, scope: _Scope) -> Expr:
        match node:
            case syntax.Literal():
                return self.constant(node)
            case syntax.Parameter():
                return Param(self.parameter_types[node.index], True, node.index)
            case syntax.Name():
                return self.named(node, scope)
            case syntax.Unary():
                return self.unary(node, scope)
            case syntax.Binary():
                return self.binary(node, scope)
            case syntax.Logic():
                terms = tuple(self.condition(term, scope, node.operator) for term in node.terms)
                return Op("BOOL", any(term.nullable for term in terms), node.operator.lower(), terms)
            case syntax.IsTest():
                return self.is_test(node, scope)
            case syntax.IsDistinct():
                return self.is_distinct(node, scope)
            case syntax.Between():
                return self.between(node, scope)
            case syntax.InList():
                return self.in_list(node, scope)
            case syntax.InQuery():
                return self.in_query(node, scope)
            case syntax.Like():
                return self.like(node, scope)
            case syntax.Case():
                return self.case(node, scope)
            case syntax.Cast():
                return self.cast(node, scope)
            case syntax.Call():
                return self.call(node, scope)
            case syntax.ScalarQuery():
                return self.scalar_query(node, scope)
            case syntax.Exists():
                return Subquery("BOOL", False, "exists", self.query(node.query, scope, scope.tables))
            case syntax.Star():
                raise self.wrong("* stands for columns in a select list and in COUNT(*) only", node.at)
            case syntax.Default():
                raise self.wrong("DEFAULT stands for a value in INSERT and UPDATE only", node.at)

    def constant(self, node: syntax.Literal) -> Const:
        value = node.value
        if value is None:
            return Const("NULL", True, None)
        if type(value) is bool:
            return Const("BOOL", False, value)
        if type(value) is int:
            if not INT_MIN <= value <= INT_MAX:
                raise self.wrong(f"{value} is out of range: an INT has 64 bits", node.at)
            return Const("INT", False, value)
        if type(value) is float:
            return Const("FLOAT", False, value)
        return Const("STRING", False, value, True)

    def found(self, node: syntax.Name, scope: _Scope) -> list[Column]:
        """The columns of this scope that the name may mean."""
        found = []
        for source in scope.sources:
            if node.table in (None, source.name):
                for position, field in enumerate(source.fields):
                    if field.name == node.column and (node.table or (source.number, position) not in scope.merged):
                        found.append(_column(source, position))
        return found

    def named(self, node: syntax.Name, scope: _Scope) -> Expr:
        looked: _Scope | None = scope
        while looked is not None:
            found = self.found(node, looked)
            if len(found) > 1:
                raise self.wrong(f"column {node.column} is ambiguous: write table.{node.column}", node.at)
            if found:
                return found[0]
            looked = looked.parent
        raise self.unknown(node, scope)

    def unknown(self, node: syntax.Name, scope: _Scope) -> SqlError:
        sources: list[Source] = []
        looked: _Scope | None = scope
        while looked is not None:
            sources += looked.sources
            looked = looked.parent
        if node.table is not None and not any(source.name == node.table for source in sources):
            names = [source.name for source in sources if source.name]
            return self.wrong(f"there is no table {node.table} in FROM{_hint(node.table, names)}", node.at)
        names = [field.name for source in sources if node.table in (None, source.name) for field in source.fields]
        return self.wrong(f"there is no column {node.column}{_hint(node.column, names)}", node.at)

    def unary(self, node: syntax.Unary, scope: _Scope) -> Expr:
        if node.operator == "NOT":
            operand = self.condition(node.operand, scope, "NOT")
            return Op("BOOL", operand.nullable, "not", (operand,))
        operand = self.expr(node.operand, scope)
        if node.operator == "+" and operand.type not in ("ANY", "NULL"):
            return operand  # of any type, as in SQLite
        operand = self.fitted(operand, "NUMBER", node, f"{node.operator} wants")
        if node.operator == "+" or operand.type == "NULL":
            return operand
        return Op(operand.type, operand.nullable, "neg", (operand,))

    def binary(self, node: syntax.Binary, scope: _Scope) -> Expr:
        left, right = self.expr(node.left, scope), self.expr(node.right, scope)
        if node.operator in _COMPARED:
            return self.compared(node.operator, left, right, node)
        if "TIMESTAMP" in (left.type, right.type):
            raise self.wrong(
                "TIMESTAMPs are not counted with: use EXTRACT(EPOCH FROM …) and TO_TIMESTAMP(seconds)", node.at
            )
        wanted = f"{node.operator} wants"
        if right.type in NUMBERS:
            left = self.adapted(left, right.type, node)
        if left.type in NUMBERS:
            right = self.adapted(right, left.type, node)
        left, right = self.fitted(left, "NUMBER", node, wanted), self.fitted(right, "NUMBER", node, wanted)
        nullable = left.nullable or right.nullable
        if node.operator == "^":
            return Op("FLOAT", nullable, "call", (left, right), FUNCTIONS["power"])
        return Op(_arithmetic_type(left.type, right.type), nullable, _ARITHMETIC[node.operator], (left, right))

    def compared(self, operator: str, left: Expr, right: Expr, node: syntax.Node) -> Expr:
        left, right = self.matched(left, right, operator, node)
        return Op("BOOL", left.nullable or right.nullable, _COMPARED[operator], (left, right))

    def matched(self, left: Expr, right: Expr, operator: str, node: syntax.Node) -> tuple[Expr, Expr]:
        """Both as values that can be compared."""
        left = self.adapted(left, right.type, node)
        right = self.adapted(right, left.type, node)
        known = [each.type for each in (left, right) if each.type not in ("ANY", "NULL")]
        if len(known) == 2 and _family(known[0]) != _family(known[1]):
            raise self.wrong(f"{operator} can't compare {known[0]} with {known[1]}: write a CAST", node.at)
        return left, right

    def adapted(self, expr: Expr, kind: SqlType, node: syntax.Node) -> Expr:
        """A literal or a parameter as what stands beside it."""
        if kind in ("ANY", "NULL"):
            return expr
        if isinstance(expr, Const) and expr.unknown and kind != "STRING":
            return self.literal(expr, kind, node)
        if isinstance(expr, Param) and expr.type == "ANY":
            return self.parameter(expr, "NUMBER" if kind in NUMBERS else kind)
        return expr

    def parameter(self, expr: Param, kind: SqlType) -> Param:
        self.parameter_types[expr.index] = kind
        return Param(kind, True, expr.index)

    def literal(self, expr: Const, kind: SqlType, node: syntax.Node) -> Const:
        """NULL, or a string literal, as a value of this type."""
        if kind == "NUMBER":
            kind = "FLOAT" if isinstance(expr.value, str) and not expr.value.strip().lstrip("+-").isdigit() else "INT"
        if expr.value is None:
            return Const(kind, True, None)
        if kind in ("STRING", "ANY", "NULL"):
            return Const("STRING", False, expr.value)
        try:
            return Const(kind, False, _READ[kind](cast("str", expr.value)))
        except DataError as error:
            raise self.wrong(str(error), node.at) from None

    def fitted(self, expr: Expr, kind: SqlType, node: syntax.Node, wanted: str) -> Expr:
        """The expression where a value of this type must stand; NUMBER takes INT and FLOAT, and FLOAT any number."""
        if expr.type == kind and not (isinstance(expr, Const) and expr.unknown):
            return expr
        if isinstance(expr, Const) and (expr.unknown or expr.type == "NULL"):
            return self.literal(expr, kind, node)
        if isinstance(expr, Param) and expr.type == "ANY":
            return self.parameter(expr, "NUMBER" if kind == "FLOAT" else kind)
        if expr.type in NUMBERS and kind in ("NUMBER", "FLOAT"):
            return expr
        if expr.type == "NUMBER" and kind == "INT":
            return expr
        if expr.type in ("NULL", "ANY"):
            return Op(kind, True, "checked", (expr,), kind)
        raise self.wrong(f"{wanted} {'a number' if kind == 'NUMBER' else kind}, not {expr.type}", node.at)

    def condition(self, node: syntax.Expression, scope: _Scope, clause: str) -> Expr:
        return self.fitted(self.expr(node, scope), "BOOL", node, f"{clause} wants")

    def common(self, exprs: Sequence[Expr], node: syntax.Node) -> SqlType:
        """The one type that values from all of them can have."""
        known = {each.type for each in exprs if not (isinstance(each, Const) and each.unknown)} - {"ANY", "NULL"}
        if not known:
            if any(isinstance(each, Const) and each.unknown for each in exprs):
                return "STRING"
            return "ANY" if any(each.type == "ANY" for each in exprs) else "NULL"
        if known <= set(NUMBERS):
            return "FLOAT" if "FLOAT" in known else "NUMBER" if "NUMBER" in known else "INT"
        if len(known) > 1:
            raise self.wrong(f"values of the types {' and '.join(sorted(known))} stand for one: write a CAST", node.at)
        return known.pop()

    def converted(self, expr: Expr, kind: SqlType, node: syntax.Node) -> Expr:
        """The expression as a value of the type that `common` found."""
        if kind in ("ANY", "NULL") or (expr.type == kind and not (isinstance(expr, Const) and expr.unknown)):
            return expr
        if isinstance(expr, Const) and (expr.unknown or expr.value is None):
            return self.literal(expr, kind, node)
        if isinstance(expr, Param) and expr.type == "ANY":
            expr = self.parameter(expr, "NUMBER" if kind in NUMBERS else kind)
        if kind == "FLOAT" and expr.type in NUMBERS and expr.type != "FLOAT":
            if isinstance(expr, Const) and isinstance(expr.value, int):
                return Const("FLOAT", False, float(expr.value))
            return Op("FLOAT", expr.nullable, "float", (expr,))
        return expr

    def unified(self, nodes: Sequence[syntax.Expression], scope: _Scope, node: syntax.Node) -> list[Expr]:
        exprs = [self.expr(each, scope) for each in nodes]
        kind = self.common(exprs, node)
        return [self.converted(each, kind, node) for each in exprs]

    def once(self, operand: Expr, make: Callable[[Expr], Expr]) -> Expr:
        """What `make` builds upon the operand, which is computed once."""
        if isinstance(operand, Column | Const | Param | Slot):
            return make(operand)
        slot = Slot(operand.type, operand.nullable, self.new_number())
        body = make(slot)
        return Op(body.type, body.nullable, "let", (operand, body), slot.number)

    def is_test(self, node: syntax.IsTest, scope: _Scope) -> Expr:
        if node.what == "NULL":
            operand = self.expr(node.operand, scope)
            return Op("BOOL", False, "is_not_null" if node.negated else "is_null", (operand,))
        operand = self.condition(node.operand, scope, f"IS {node.what}")
        wanted = {"TRUE": True, "FALSE": False, "UNKNOWN": None}[node.what]
        test = Op("BOOL", False, "is", (operand,), wanted)
        return Op("BOOL", False, "not", (test,)) if node.negated else test

    def is_distinct(self, node: syntax.IsDistinct, scope: _Scope) -> Expr:
        left, right = self.matched(self.expr(node.left, scope), self.expr(node.right, scope), "IS DISTINCT FROM", node)
        return Op("BOOL", False, "same" if node.negated else "distinct", (left, right))

    def between(self, node: syntax.Between, scope: _Scope) -> Expr:
        low, high = self.expr(node.low, scope), self.expr(node.high, scope)
        operand = self.expr(node.operand, scope)
        for bound in (low, high):
            operand = self.adapted(operand, bound.type, node)

        def make(value: Expr) -> Expr:
            first = self.compared(">=", value, low, node)
            second = self.compared("<=", value, high, node)
            both = Op("BOOL", first.nullable or second.nullable, "and", (first, second))
            return Op("BOOL", both.nullable, "not", (both,)) if node.negated else both

        return self.once(operand, make)

    def in_list(self, node: syntax.InList, scope: _Scope) -> Expr:
        operand = self.expr(node.operand, scope)
        items = [self.expr(item, scope) for item in node.items]
        for item in items:
            operand = self.adapted(operand, item.type, node)
        matched = [self.matched(operand, item, "IN", node)[1] for item in items]
        operand = self.matched(operand, matched[0], "IN", node)[0]
        nullable = operand.nullable or any(item.nullable for item in matched)
        test = Op("BOOL", nullable, "in", (operand, *matched))
        return Op("BOOL", nullable, "not", (test,)) if node.negated else test

    def in_query(self, node: syntax.InQuery, scope: _Scope) -> Expr:
        operand = self.expr(node.operand, scope)
        query = self.query(node.query, scope, scope.tables)
        self.check_one_column(query, node)
        field = query.fields[0]
        operand = self.adapted(operand, field.type, node)
        if operand.type not in ("ANY", "NULL") and field.type not in ("ANY", "NULL"):
            if isinstance(operand, Const) and operand.unknown:
                operand = self.literal(operand, field.type, node)
            for output in self.outputs_at(query, 0):
                self.matched(operand, output, "IN", node)
            if _family(operand.type) != _family(field.type):
                self.convert_output(query, 0, operand.type, node)
        test = Subquery("BOOL", operand.nullable or field.nullable, "in", query, operand)
        return Op("BOOL", test.nullable, "not", (test,)) if node.negated else test

    def check_one_column(self, query: BoundQuery, node: syntax.Node) -> None:
        if len(query.fields) != 1:
            raise self.wrong(f"a subquery in an expression must have one column, not {len(query.fields)}", node.at)

    def scalar_query(self, node: syntax.ScalarQuery, scope: _Scope) -> Expr:
        query = self.query(node.query, scope, scope.tables)
        self.check_one_column(query, node)
        return Subquery(query.fields[0].type, True, "scalar", query)

    def like(self, node: syntax.Like, scope: _Scope) -> Expr:
        word = "ILIKE" if node.any_case else "LIKE"
        operand = self.fitted(self.expr(node.operand, scope), "STRING", node, f"{word} wants")
        pattern = self.fitted(self.expr(node.pattern, scope), "STRING", node, f"{word} wants")
        escape = "\\"
        if node.escape is not None:
            if not isinstance(node.escape, syntax.Literal) or not isinstance(node.escape.value, str):
                raise self.wrong("ESCAPE wants a string literal", node.escape.at)
            escape = node.escape.value
            if len(escape) > 1:
                raise self.wrong("ESCAPE wants one character, or none", node.escape.at)
        nullable = operand.nullable or pattern.nullable
        test = Op("BOOL", nullable, "like", (operand, pattern), (escape, node.any_case))
        return Op("BOOL", nullable, "not", (test,)) if node.negated else test

    def case(self, node: syntax.Case, scope: _Scope) -> Expr:
        """Args: condition, value, condition, value, …, what else."""
        results: list[syntax.Expression] = [result for _, result in node.branches]
        otherwise = node.otherwise or syntax.Literal(None, at=node.at)
        values = self.unified([*results, otherwise], scope, node)
        kind = self.common(values, node)
        nullable = any(value.nullable for value in values)

        def with_conditions(conditions: list[Expr]) -> Expr:
            args = [each for pair in zip(conditions, values[:-1], strict=True) for each in pair]
            return Op(kind, nullable, "case", (*args, values[-1]))

        if node.operand is None:
            return with_conditions([self.condition(when, scope, "WHEN") for when, _ in node.branches])
        operand = self.expr(node.operand, scope)
        whens = [self.expr(when, scope) for when, _ in node.branches]
        for when in whens:
            operand = self.adapted(operand, when.type, node)
        return self.once(
            operand, lambda value: with_conditions([self.compared("=", value, when, node) for when in whens])
        )

    def cast(self, node: syntax.Cast, scope: _Scope) -> Expr:
        operand = self.expr(node.operand, scope)
        kind: TypeName = node.type
        if isinstance(operand, Const) and (operand.unknown or operand.value is None):
            return self.literal(operand, kind, node)
        if operand.type == kind:
            return operand
        if operand.type in ("ANY", "NUMBER", "NULL"):
            return Op(kind, True, "cast_any", (operand,), kind)
        if (operand.type, kind) not in CASTS:
            raise self.wrong(f"{operand.type} can't be cast to {kind}", node.at)
        return Op(kind, operand.nullable, "cast", (operand,), (operand.type, kind))

    # Calls

    def call(self, node: syntax.Call, scope: _Scope) -> Expr:
        if node.name in AGGREGATES:
            return self.aggregate(node, scope)
        if node.distinct or node.condition is not None:
            raise self.wrong(f"{node.name}() is no aggregate: neither DISTINCT nor FILTER has a meaning", node.at)
        if any(isinstance(argument, syntax.Star) for argument in node.arguments):
            raise self.wrong(f"{node.name}(*) has no meaning", node.at)
        if node.name in ("coalesce", "greatest", "least", "nullif", "||", "concat", "concat_ws"):
            return self.special_call(node, scope)
        generated = GENERATED.get(node.name)
        if generated is not None:
            self.check_arguments(node, 0, 0)
            return Op(cast("SqlType", generated[0]), False, "generated", (), generated[1])
        function = FUNCTIONS.get(node.name)
        if function is None:
            names = [*FUNCTIONS, *AGGREGATES, *GENERATED, "coalesce", "greatest", "least", "nullif", "concat"]
            raise self.wrong(f"there is no function {node.name}(){_hint(node.name, names)}", node.at)
        return self.function(function, node, scope)

    def check_arguments(self, node: syntax.Call, least: int, most: int | None) -> None:
        given = len(node.arguments)
        if given < least or (most is not None and given > most):
            wanted = str(least) if most == least else f"at least {least}" if most is None else f"{least} to {most}"
            raise self.wrong(f"{node.name}() takes {wanted} arguments, not {given}", node.at)

    def function(self, function: Function, node: syntax.Call, scope: _Scope) -> Expr:
        self.check_arguments(node, function.fewest, len(function.takes))
        args = []
        for letter, argument in zip(function.takes, node.arguments, strict=False):
            expr = self.expr(argument, scope)
            kind = _FUNCTION_TYPES[letter]
            args.append(self.fitted(expr, kind, argument, f"{node.name}() wants"))
        kind = args[0].type if function.gives == "same" else cast("SqlType", function.gives)
        return Op(kind, any(arg.nullable for arg in args), "call", tuple(args), function)

    def special_call(self, node: syntax.Call, scope: _Scope) -> Expr:
        name = node.name
        if name == "||":
            return self.concatenated(node, scope)
        if name in ("concat", "concat_ws"):
            self.check_arguments(node, 1 if name == "concat" else 2, None)
            args = [self.expr(argument, scope) for argument in node.arguments]
            if name == "concat_ws":
                args[0] = self.fitted(args[0], "STRING", node.arguments[0], "concat_ws() wants")
            return Op("STRING", name == "concat_ws" and args[0].nullable, name, tuple(args))
        if name == "nullif":
            self.check_arguments(node, 2, 2)
            left, right = self.matched(
                self.expr(node.arguments[0], scope), self.expr(node.arguments[1], scope), "NULLIF", node
            )
            if isinstance(left, Const) and left.unknown:
                left = self.literal(left, "STRING", node)
            return self.once(
                left,
                lambda value: Op(
                    left.type,
                    True,
                    "case",
                    (self.compared("=", value, right, node), Const(left.type, True, None), value),
                ),
            )
        self.check_arguments(node, 1, None)
        args = self.unified(node.arguments, scope, node)
        kind = self.common(args, node)
        if name == "coalesce":
            return Op(kind, all(arg.nullable for arg in args), "coalesce", tuple(args))
        if kind == "ANY":
            raise self.wrong(f"the types of {name}()'s arguments are not known: write a CAST", node.at)
        return Op(kind, all(arg.nullable for arg in args), name, tuple(args))

    def concatenated(self, node: syntax.Call, scope: _Scope) -> Expr:
        args = [self.expr(argument, scope) for argument in node.arguments]
        kinds = {arg.type for arg in args}
        if not kinds & {"STRING", "ANY", "NULL"}:
            raise self.wrong(f"|| joins strings, not {' and '.join(sorted(kinds))}: write a CAST", node.at)
        texts = []
        for arg in args:
            if isinstance(arg, Const) and (arg.unknown or arg.value is None):
                arg = self.literal(arg, "STRING", node)
            elif arg.type in ("ANY", "NUMBER"):
                arg = Op("STRING", True, "cast_any", (arg,), "STRING")
            elif arg.type not in ("STRING", "NULL"):
                arg = Op("STRING", arg.nullable, "cast", (arg,), (arg.type, "STRING"))
            texts.append(arg)
        return Op("STRING", any(arg.nullable for arg in texts), "joined", tuple(texts))

    def aggregate(self, node: syntax.Call, scope: _Scope) -> Expr:
        if scope.aggregates is None:
            raise self.wrong(f"{node.name}() is an aggregate, and none can stand in {scope.clause}", node.at)
        found, clause = scope.aggregates, scope.clause
        scope.aggregates, scope.clause = None, "another aggregate"
        aggregate, kind, nullable = self.aggregate_parts(node, scope)
        scope.aggregates, scope.clause = found, clause
        own = {source.number for source in scope.sources}
        columns = [
            part.source
            for expr in (aggregate.arg, aggregate.condition)
            if expr is not None
            for part in all_parts(expr)
            if isinstance(part, Column)
        ]
        if columns and own.isdisjoint(columns):
            raise self.wrong("an aggregate of an outer query's columns is not supported in a subquery", node.at)
        if aggregate not in found:
            found.append(aggregate)
        return Column(kind, nullable, scope.results_source, found.index(aggregate))

    def aggregate_parts(self, node: syntax.Call, scope: _Scope) -> tuple[Aggregate, SqlType, bool]:
        """The aggregate, its type, and whether it can come to NULL."""
        name = "bool_and" if node.name == "every" else node.name
        condition = None if node.condition is None else self.condition(node.condition, scope, "FILTER")
        if name == "count" and len(node.arguments) == 1 and isinstance(node.arguments[0], syntax.Star):
            return Aggregate("count", None, False, condition), "INT", False
        self.check_arguments(node, 2 if name == "string_agg" else 1, 2 if name == "string_agg" else 1)
        arg = self.expr(node.arguments[0], scope)
        if isinstance(arg, Const) and arg.unknown:
            arg = self.literal(arg, "STRING", node)
        nullable = not scope.has_keys or arg.nullable or condition is not None
        if name == "count":
            return Aggregate(name, arg, node.distinct, condition), "INT", False
        if name in ("min", "max"):
            if arg.type == "BOOL":
                raise self.wrong(f"{name}() does not order BOOLs: use bool_and() or bool_or()", node.at)
            return Aggregate(name, arg, False, condition), arg.type, nullable
        if name in ("sum", "avg"):
            arg = self.fitted(arg, "NUMBER", node, f"{name}() wants")
            kind: SqlType = "FLOAT" if name == "avg" else "INT" if arg.type == "NULL" else arg.type
            return Aggregate(name, arg, node.distinct, condition), kind, nullable
        if name == "string_agg":
            arg = self.fitted(arg, "STRING", node, "string_agg() wants")
            separator = self.fitted(self.expr(node.arguments[1], scope), "STRING", node, "string_agg() wants")
            if not isinstance(separator, Const | Param):
                raise self.wrong("string_agg() wants a literal or a parameter as its separator", node.at)
            return Aggregate(name, arg, node.distinct, condition, separator), "STRING", nullable
        arg = self.fitted(arg, "BOOL", node, f"{node.name}() wants")
        return Aggregate(name, arg, False, condition), "BOOL", nullable

    def wrong(self, message: str, at: int) -> SqlError:
        return SqlError(placed(self.text, at, message))


def _is_same(one: object, other: object) -> bool:
    """Whether two pieces of syntax are the same but for their places."""
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_is_same, one, other))
    if type(one) is not type(other):
        return False
    if isinstance(one, syntax.Node):
        names = [name for name in one.__struct_fields__ if name != "at"]
        return all(_is_same(getattr(one, name), getattr(other, name)) for name in names)
    return one == other


def _fields(table: Table) -> list[Field]:
    return [Field(column.name, column.type, column.nullable) for column in table.columns]


def _from(places: dict[tuple[int, int], Expr]) -> Callable[[Expr], Expr | None]:
    return lambda expr: places.get((expr.source, expr.column)) if isinstance(expr, Column) else None


def _column(source: Source, position: int) -> Column:
    field = source.fields[position]
    return Column(field.type, field.nullable or source.left, source.number, position)


def _family(kind: SqlType) -> str:
    return "number" if kind in NUMBERS else kind


def _arithmetic_type(left: SqlType, right: SqlType) -> SqlType:
    kinds = {left, right}
    if "FLOAT" in kinds:
        return "FLOAT"
    if kinds <= {"INT", "NULL"}:
        return "INT"
    return "NUMBER"


def _name_of(node: syntax.Expression) -> str:
    """The name of an output that has no alias, as PostgreSQL gives it."""
    match node:
        case syntax.Name():
            return node.column
        case syntax.Call() if node.name != "||":
            return node.name
        case syntax.Case():
            return "case"
        case syntax.Cast():
            inner = _name_of(node.operand)
            return inner if inner != "?column?" else node.type.lower()
        case syntax.Exists():
            return "exists"
        case syntax.ScalarQuery():
            body = node.query.body
            if isinstance(body, syntax.Select) and len(body.items) == 1:
                return body.items[0].alias or _name_of(body.items[0].expression)
    return "?column?"


def _hint(name: str, names: Iterable[str]) -> str:
    known = [each for each in dict.fromkeys(names) if each]
    close = difflib.get_close_matches(name, known, 1)
    if close:
        return f"; did you mean {close[0]}?"
    shown = ", ".join(known[:8]) + (", …" if len(known) > 8 else "")
    return f" ({shown})" if shown else ""
