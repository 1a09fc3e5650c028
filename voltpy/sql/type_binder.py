"""Expressions as values of the types that their places want.

Types follow PostgreSQL: INT with INT gives INT, with FLOAT FLOAT; other types mix with themselves only. A string
literal becomes what its place wants. A parameter takes the type of its place too: NUMBER beside numbers, so that 1.5
may be compared with an INT; what nothing tells stays ANY, and is checked when it runs.

    fitted       where a type must stand
    matched      two that are compared
    common       … and `converted`: several that are one column, or branches of a CASE
    assigned     what becomes a column's value
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

from voltpy.errors import DataError, SqlError
from voltpy.schema import Column as TableColumn
from voltpy.sql import syntax
from voltpy.sql.bound import (
    NUMBERS,
    Block,
    BoundQuery,
    Const,
    Expr,
    Field,
    Op,
    Param,
    Rows,
    SqlType,
)
from voltpy.sql.tokens import placed
from voltpy.sql.values import ASSIGNED, text_to_bool, text_to_float, text_to_int, text_to_timestamp

COMPARED = {"=": "eq", "<>": "ne", "<": "lt", "<=": "le", ">": "gt", ">=": "ge"}
_READ: dict[str, Callable[[str], Any]] = {
    "INT": text_to_int, "FLOAT": text_to_float, "BOOL": text_to_bool, "TIMESTAMP": text_to_timestamp,
}  # fmt: skip


class TypeBinder:
    """What a statement says about types. `parameter_types` are known once all of it has been bound."""

    def __init__(self, text: str, parameters: int) -> None:
        self.text = text
        self.parameter_types: list[SqlType] = ["ANY"] * parameters

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

    def matched(self, left: Expr, right: Expr, operator: str, node: syntax.Node) -> tuple[Expr, Expr]:
        """Both as values that can be compared."""
        left = self.adapted(left, right.type, node)
        right = self.adapted(right, left.type, node)
        known = [each.type for each in (left, right) if each.type not in ("ANY", "NULL")]
        if len(known) == 2 and family(known[0]) != family(known[1]):
            raise self.wrong(f"{operator} can't compare {known[0]} with {known[1]}: write a CAST", node.at)
        return left, right

    def compared(self, operator: str, left: Expr, right: Expr, node: syntax.Node) -> Expr:
        left, right = self.matched(left, right, operator, node)
        return Op("BOOL", left.nullable or right.nullable, COMPARED[operator], (left, right))

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

    def wrong(self, message: str, at: int) -> SqlError:
        return SqlError(placed(self.text, at, message))


def family(kind: SqlType) -> str:
    return "number" if kind in NUMBERS else kind
