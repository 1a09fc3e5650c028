"""Syntax → meaning: what each query reads and answers with, what is grouped, what is written; and all checks of it.

Expressions are bound in voltpy.sql.expression_binder, and voltpy.sql.type_binder says what their types are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import cast

from voltpy.schema import HIDDEN_KEY, Table
from voltpy.sql import syntax
from voltpy.sql.bound import (
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
    Rows,
    SetOp,
    Source,
    SqlType,
    Subquery,
    all_parts,
    conjuncts,
    mapped,
    parts,
)
from voltpy.sql.catalog_tables import CATALOG
from voltpy.sql.catalogue import Catalogue
from voltpy.sql.expression_binder import ExpressionBinder, Scope, column_of, hint
from voltpy.sql.parse import parse_statement
from voltpy.view import View

MAX_SOURCES = 64
MAX_OUTPUTS = 1000
MAX_SUBQUERIES = 200


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


class _Binder(ExpressionBinder):
    """Queries, and what writes."""

    def __init__(self, text: str, parameters: int, catalogue: Catalogue, views_as_queries: bool) -> None:
        super().__init__(text, parameters, self.query)
        self.views_as_queries = views_as_queries
        self.catalogue = catalogue
        self.grouped_views: set[int] = set()  # sources that are views, with a query that groups
        self.subqueries = 0  # one of WITH counts, with all in it, wherever it is named
        self.sizes: dict[int, int] = {}  # number of a query of WITH → how many queries it is

    # Queries

    def query(self, node: syntax.Query, parent: Scope | None, tables: dict[str, BoundQuery]) -> BoundQuery:
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
        scope = Scope(parent, tables)
        scope.clause = "LIMIT"
        query.limit = self.limit(node.limit, scope)
        query.offset = self.limit(node.offset, scope)
        return query

    def count_queries(self, count: int, at: int) -> None:
        self.subqueries += count
        if self.subqueries > MAX_SUBQUERIES:
            raise self.wrong(f"more than {MAX_SUBQUERIES} queries in one statement", at)

    def common_tables(
        self, nodes: Sequence[syntax.CommonTable], parent: Scope | None, tables: dict[str, BoundQuery]
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

    def limit(self, node: syntax.Expression | None, scope: Scope) -> Expr | None:
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

    def values(self, node: syntax.Values, parent: Scope | None, tables: dict[str, BoundQuery]) -> BoundQuery:
        scope = Scope(parent, tables)
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
        self, node: syntax.SetOperation, parent: Scope | None, tables: dict[str, BoundQuery]
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

    def select(
        self,
        node: syntax.Select,
        order: Sequence[syntax.OrderItem],
        parent: Scope | None,
        tables: dict[str, BoundQuery],
    ) -> BoundQuery:
        scope = Scope(parent, tables)
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

    def expanded(self, nodes: Sequence[syntax.Item], scope: Scope) -> list[tuple[syntax.Expression | Expr, str]]:
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

    def starred(self, node: syntax.Star, scope: Scope) -> list[tuple[syntax.Expression | Expr, str]]:
        sources = [source for source in scope.sources if node.table in (None, source.name)]
        if not sources:
            wanted = f"there is no {node.table} in FROM" if node.table else "SELECT * needs a FROM"
            raise self.wrong(wanted, node.at)
        items: list[tuple[syntax.Expression | Expr, str]] = []
        for source in sources:
            for position, field in enumerate(source.fields):
                hidden = source.table is not None and position not in source.table.declared_positions
                if not hidden and (node.table or (source.number, position) not in scope.merged):
                    items.append((column_of(source, position), field.name))
        return items

    def group_keys(
        self, nodes: Sequence[syntax.Expression], items: list[tuple[syntax.Expression | Expr, str]], scope: Scope
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

    def orders(self, nodes: Sequence[syntax.OrderItem], names: list[str], block: Block, scope: Scope) -> list[Order]:
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
                    column_of(source, position) in keyed for position in table.key_positions
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

    def from_item(self, node: syntax.From, scope: Scope, block: Block) -> None:
        if isinstance(node, syntax.Join):
            self.join(node, scope, block)
        else:
            self.add_source(self.source(node, scope), scope, node.at)

    def add_source(self, source: Source, scope: Scope, at: int) -> None:
        if source.name and any(other.name == source.name for other in scope.sources):
            raise self.wrong(f"{source.name} stands twice in FROM: give it an alias", at)
        if len(scope.sources) == MAX_SOURCES:
            raise self.wrong(f"more than {MAX_SOURCES} tables in FROM", at)
        scope.sources.append(source)

    def join(self, node: syntax.Join, scope: Scope, block: Block) -> None:
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
            inner = Scope(scope.parent, scope.tables)
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
        self, names: Sequence[str], lefts: list[Source], rights: list[Source], scope: Scope, node: syntax.Join
    ) -> list[Expr]:
        on = []
        for name in names:
            left = self.only(name, lefts, scope, node)
            right = self.only(name, rights, scope, node)
            on.append(self.compared("=", left, right, node))
            scope.merged.add((right.source, right.column))
        return on

    def only(self, name: str, sources: list[Source], scope: Scope, node: syntax.Join) -> Column:
        found = [
            column_of(source, position)
            for source in sources
            for position, field in enumerate(source.fields)
            if field.name == name and (source.number, position) not in scope.merged
        ]
        if len(found) != 1:
            raise self.wrong(f"column {name} of USING stands {len(found)} times on one side of the JOIN", node.at)
        return found[0]

    def source(self, node: syntax.TableRef | syntax.Derived, scope: Scope) -> Source:
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
        columns = [column_of(source, position) for position in range(len(table.columns))]
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
            raise self.wrong(f"there is no table {node.name}{hint(node.name, names)}", node.at)
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
        scope = Scope(None, tables)
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
            raise self.wrong(f"table {table.name} has no column {name}{hint(name, names)}", at)
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
        scope = Scope(None, tables)
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

    def assignments(self, nodes: Sequence[syntax.Assignment], table: Table, scope: Scope) -> list[Assigned]:
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
        scope = Scope(None, tables)
        scope.sources, scope.clause = [source], "RETURNING"
        items = self.expanded(nodes, scope)
        exprs = [each if isinstance(each, Expr) else self.expr(each, scope) for each, _ in items]
        names = [name for _, name in items]
        return exprs, [Field(name, expr.type, expr.nullable) for name, expr in zip(names, exprs, strict=True)]

    def change(self, node: syntax.Update | syntax.Delete) -> BoundChange:
        table, source = self.target(node.table)
        tables = self.common_tables(node.tables, None, {})
        scope = Scope(None, tables)
        scope.sources, scope.clause = [source], "WHERE"
        where = [] if node.where is None else conjuncts(self.condition(node.where, scope, "WHERE"))
        assignments = None
        if isinstance(node, syntax.Update):
            assignments = self.assignments(node.assignments, table, scope)
        outputs = [each.value for each in assignments or ()]
        returning, fields = self.returning(node.returning, source, tables)
        return BoundChange(table, Block([source], where, outputs), assignments, returning, fields)


def _fields(table: Table) -> list[Field]:
    return [Field(column.name, column.type, column.nullable) for column in table.columns]


def _from(places: dict[tuple[int, int], Expr]) -> Callable[[Expr], Expr | None]:
    return lambda expr: places.get((expr.source, expr.column)) if isinstance(expr, Column) else None


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
