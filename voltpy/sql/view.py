"""CREATE VIEW … AS SELECT keys and aggregates FROM a table [WHERE …] GROUP BY keys → the view, as the schema has it.

The SELECT is read and bound as any statement is; then it is looked at whether a partition can keep its answer up to
date, row by row. Whatever it can't is an error at its place.
"""

from __future__ import annotations

import re
from typing import NoReturn

from voltpy.errors import DataError, SchemaError, SqlError
from voltpy.schema import MAX_COLUMNS, MAX_KEY_COLUMNS, Column, Schema, Table, TypeName, name_problem
from voltpy.sql import syntax
from voltpy.sql.bind import bind
from voltpy.sql.bound import Aggregate, Block, BoundQuery, Expr
from voltpy.sql.bound import Column as BoundColumn
from voltpy.sql.catalogue import Catalogue
from voltpy.sql.parse import parse_statement
from voltpy.sql.stored_expression import stored
from voltpy.sql.tokens import Token, placed
from voltpy.view import Expression, Kept, View

_KEY_TYPES: tuple[TypeName, ...] = ("INT", "STRING", "BOOL", "TIMESTAMP")
_BEFORE_PARENTHESES = frozenset({
    "SELECT", "WHERE", "BY", "AND", "OR", "NOT", "IN", "BETWEEN", "LIKE", "ILIKE",
    "WHEN", "THEN", "ELSE", "CASE", "AS",
})  # fmt: skip
_WANTED = "a key of GROUP BY, COUNT, SUM, MIN or MAX"


def view_of(text: str, name: str, tokens: list[Token], schema: Schema) -> Table:
    """The view whose SELECT are these tokens of the text, over a table of the schema, which has one at least.

    Raises SchemaError with line and column.
    """
    start, end = tokens[0].start, tokens[-1].end
    alone = re.sub(r"[^\n]", " ", text[:start]) + text[start:end]  # so that errors have their places in the whole
    reader = _Reader(alone, name, schema)
    query = _spaced(text, tokens)
    try:
        return reader.view(query)
    except (SqlError, DataError) as error:
        raise SchemaError(str(error)) from None


def _spaced(text: str, tokens: list[Token]) -> str:
    """The tokens with as many spaces between them as one would write."""
    query = ""
    last = tokens[0]
    for token in tokens:
        calls = token.value == "(" and last.kind == "word" and last.value not in _BEFORE_PARENTHESES
        if query and not (token.value in (",", ")", ".") or last.value in ("(", ".") or calls):
            query += " "
        query += text[token.start : token.end]
        last = token
    return query


class _Reader:
    """Reads one view. `text` has its SELECT in its place, and blanks before it."""

    def __init__(self, text: str, name: str, schema: Schema) -> None:
        self.text = text
        self.name = name
        self.schema = schema
        self.base = schema.tables[0]  # until the SELECT says which; where it names none, `bind` raises

    def view(self, query: str) -> Table:
        statement, parameters = parse_statement(self.text)
        whole, select = self.checked(statement, parameters)
        bound, _ = bind(self.text, whole, 0, Catalogue(self.schema))
        assert isinstance(bound, BoundQuery)
        block = bound.body
        assert isinstance(block, Block)
        group = block.group
        assert group is not None
        if len(group.keys) != len(select.keys):
            self.wrong("every column that is selected must be in GROUP BY or inside an aggregate", select.items[0].at)

        keys: dict[int, Column] = {}
        kept: list[Kept] = []
        columns: list[Column] = []
        for item, output, field in zip(select.items, block.outputs, bound.fields, strict=True):
            place = item.expression.at
            problem = name_problem(field.name)
            if problem is not None:
                self.wrong(f"give it a name with AS: {field.name!r} is {problem}", place)
            if any(column.name == field.name for column in columns):
                self.wrong(f"there are two columns {field.name}: give one another name with AS", place)
            if not isinstance(output, BoundColumn):
                self.wrong(f"a view has nothing but {_WANTED}", place)
            if output.source == group.keys_source:
                if output.column in keys:
                    self.wrong("this key stands here already", place)
                column = keys[output.column] = self.key(field.name, group.keys[output.column], place)
            else:
                column, one = self.aggregate(field.name, group.aggregates[output.column], place)
                kept.append(one)
            columns.append(column)
        for position, node in enumerate(select.keys):
            if position not in keys:
                self.wrong("every key of GROUP BY must be selected, too", node.at)
        if len(columns) > MAX_COLUMNS or len(keys) >= MAX_KEY_COLUMNS:
            self.wrong(f"at most {MAX_KEY_COLUMNS - 1} keys and {MAX_COLUMNS:,} columns", select.items[0].at)
        ordered = [keys[position] for position in range(len(keys))]
        stored_keys = tuple(self.stored(group.keys[position], select.keys[position].at) for position in sorted(keys))
        condition = 0 if select.where is None else select.where.at
        where = tuple(self.stored(each, condition) for each in block.where)
        return self.table(query, columns, ordered, stored_keys, where, kept)

    def checked(
        self, statement: syntax.Statement | syntax.Explain, parameters: int
    ) -> tuple[syntax.Query, syntax.Select]:
        """The query, whose SELECT is of a kind that can be kept up to date; what is in it is looked at later."""
        if not isinstance(statement, syntax.Query):
            self.wrong("a view is made of a SELECT", 0)
        body = statement.body
        if parameters:
            self.wrong("a view can't have parameters", self.text.index("?"))
        if not isinstance(body, syntax.Select):
            self.wrong("a view is made of one SELECT, without UNION, EXCEPT, INTERSECT or VALUES", body.at)
        for what, node in (
            ("WITH", statement.tables), ("ORDER BY", statement.order), ("LIMIT", statement.limit),
            ("OFFSET", statement.offset), ("HAVING", body.having),
        ):  # fmt: skip
            if node:
                place = node[0].at if isinstance(node, tuple) else node.at
                self.wrong(f"{what} is not supported in a view: say it where the view is read", place)
        if body.distinct:
            self.wrong("DISTINCT is not supported in a view: its groups are distinct", body.at)
        source = body.sources[0] if len(body.sources) == 1 else None
        if not isinstance(source, syntax.TableRef):
            self.wrong("a view is over one table: joins and subqueries are not supported in it", body.at)
        base = self.schema.numbers.get(source.name)
        if base is not None:  # bind says what else there is
            self.base = self.schema.tables[base]
            if self.base.view is not None:
                self.wrong(f"{source.name} is a view itself: a view is over a table", source.at)
        if not body.keys:
            self.wrong("a view has GROUP BY, with at least one key", body.at)
        for item in body.items:
            if isinstance(item.expression, syntax.Star):
                self.wrong(f"* is not supported in a view: {_WANTED}", item.expression.at)
        return statement, body

    def key(self, name: str, expr: Expr, place: int) -> Column:
        """The view's column for a key of GROUP BY."""
        for kind in _KEY_TYPES:
            if expr.type == kind:
                return Column(name, kind, expr.nullable)
        self.wrong(f"a key of a view is {', '.join(_KEY_TYPES[:-1])} or {_KEY_TYPES[-1]}, not {expr.type}", place)

    def aggregate(self, name: str, aggregate: Aggregate, place: int) -> tuple[Column, Kept]:
        """The view's column for an aggregate, and how it is kept."""
        if aggregate.distinct or aggregate.condition is not None:
            self.wrong("DISTINCT and FILTER are not supported in a view", place)
        argument, kind = aggregate.arg, aggregate.name
        if kind == "avg":
            self.wrong("AVG is not supported in a view: keep SUM and COUNT, and divide where the view is read", place)
        if kind not in ("count", "sum", "min", "max"):
            self.wrong(f"{kind.upper()} is not supported in a view: {_WANTED}", place)
        if argument is None:
            return Column(name, "INT", False), Kept(name, "rows")
        one = Kept(name, kind, self.stored(argument, place))
        if kind == "count":
            return Column(name, "INT", False), one
        if kind == "sum":
            if argument.type != "INT":
                self.wrong(
                    f"SUM in a view is of INTs, not of {argument.type}: a sum of FLOATs depends on the order in which "
                    "they come and go; keep an INT of the smallest unit (cents)", place,
                )  # fmt: skip
            return Column(name, "INT", argument.nullable), one
        for type_ in (*_KEY_TYPES, "FLOAT"):
            if argument.type == type_:
                return Column(name, type_, argument.nullable), one
        self.wrong(f"{kind.upper()} of {argument.type} is not supported in a view", place)

    def stored(self, expr: Expr, place: int) -> Expression:
        try:
            return stored(expr, self.base)
        except ValueError as error:
            what = {"generated": "what differs from call to call", "subquery": "a subquery"}.get(str(error), str(error))
            self.wrong(f"{what} is not supported in a view: it depends on more than a row", place)

    def table(
        self,
        query: str,
        columns: list[Column],
        keys: list[Column],
        stored_keys: tuple[Expression, ...],
        where: tuple[Expression, ...],
        kept: list[Kept],
    ) -> Table:
        """The view as a table, with its hidden columns."""
        declared = len(columns)

        def hide(wanted: str) -> str:
            name = wanted
            while any(column.name == name for column in columns):
                name += "_"
            columns.append(Column(name, "INT", False))
            return name

        counts = {each.argument: each.column for each in kept if each.kind == "count"}
        for position, each in enumerate(kept):
            argument = each.argument
            if each.kind == "sum" and argument is not None and argument.nullable:
                if argument not in counts:
                    counts[argument] = hide(f"count_of_{each.column}"[:120])
                    kept.append(Kept(counts[argument], "count", argument))
                kept[position] = Kept(each.column, "sum", argument, counts[argument])
        rows = [each for each in kept if each.kind == "rows"]
        if not rows:
            kept.append(Kept(hide("row_count"), "rows"))
        elif len(rows) > 1:
            self.wrong(f"COUNT(*) stands here twice: as {rows[0].column} and {rows[1].column}", self.start)
        partition_column = own = ""
        if self.base.partition_column is not None:
            by_key = {each.extra: key for each, key in zip(stored_keys, keys, strict=True) if each.kind == "column"}
            if self.base.partition_column in by_key:
                partition_column = by_key[self.base.partition_column].name
            else:
                partition_column = own = hide("partition_key")
        view = View(self.base.name, query, where, stored_keys, tuple(kept), len(columns) - declared, own)
        primary_key = (*([own] if own else []), *(key.name for key in keys))
        return Table(self.name, tuple(columns), primary_key, False, partition_column or None, view=view)

    @property
    def start(self) -> int:
        """Where the SELECT begins."""
        return len(self.text) - len(self.text.lstrip())

    def wrong(self, message: str, at: int) -> NoReturn:
        raise SchemaError(placed(self.text, max(at, self.start), message))
