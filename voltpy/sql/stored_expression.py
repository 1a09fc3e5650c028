"""Expressions of a view's SELECT: as the schema stores them (voltpy.view.Expression) ⇄ as SQL is bound.

    Column          ["column", type, nullable, its name]
    Const           ["constant", type, nullable, JSON of the value; of a FLOAT or TIMESTAMP its text]
    Slot            ["slot", type, nullable, JSON of its number]
    Op              [its name, type, nullable, JSON of its extra; of a function its name, arguments]

Whoever reads this may have found it on disk: what is not well-formed, or names nothing that there is, is a SchemaError.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, cast, get_args

import msgspec

from voltpy.errors import SchemaError
from voltpy.schema import Table, utc
from voltpy.sql.bound import Column, Const, Expr, Op, Slot, SqlType
from voltpy.sql.functions import FUNCTIONS, Function
from voltpy.view import Expression

# Those that depend on a row alone: not on the call (generated), on other rows, or on the table that is written.
OPERATORS = frozenset({
    "and", "or", "not", "eq", "ne", "lt", "le", "gt", "ge", "is_null", "is_not_null", "is", "distinct", "same", "in",
    "like", "let", "case", "coalesce", "add", "sub", "mul", "div", "mod", "neg", "call", "float", "cast", "joined",
    "concat", "concat_ws", "greatest", "least",
})  # fmt: skip
MAX_DEPTH = 100
_TYPES = frozenset(get_args(SqlType))
_encode = msgspec.json.Encoder().encode


def stored(expr: Expr, base: Table) -> Expression:
    """Raises ValueError, with the operator's name, for what can't be stored."""
    match expr:
        case Column():
            return Expression("column", expr.type, expr.nullable, base.columns[expr.column].name)
        case Const():
            value: Any = expr.value
            if isinstance(value, float):
                value = repr(value)
            elif isinstance(value, datetime):
                value = value.isoformat()
            return Expression("constant", expr.type, expr.nullable, _encode(value).decode())
        case Slot():
            return Expression("slot", expr.type, expr.nullable, _encode(expr.number).decode())
        case Op() if expr.name in OPERATORS:
            extra = expr.extra
            if isinstance(extra, Function):
                extra = next(name for name, function in FUNCTIONS.items() if function == extra)
            arguments = tuple(stored(each, base) for each in expr.args)
            return Expression(expr.name, expr.type, expr.nullable, _encode(extra).decode(), arguments)
        case Op():
            raise ValueError(expr.name)
    raise ValueError(type(expr).__name__.lower())


def bound(expression: Expression, base: Table, source: int = 0, depth: int = 0) -> Expr:
    """The expression on rows of `base`, which are those of this source. Raises SchemaError."""
    kind, extra = expression.kind, expression.extra
    if expression.type not in _TYPES or depth > MAX_DEPTH:
        raise SchemaError(f"not a stored expression: of type {expression.type!r:.40}, at depth {depth}")
    type_ = cast("SqlType", expression.type)
    if kind == "column":
        return Column(type_, base.column(extra).nullable, source, base.positions[extra])
    try:
        value = msgspec.json.decode(extra)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise SchemaError(f"not a stored expression: {extra!r:.60} is no JSON") from None
    arguments = tuple(bound(each, base, source, depth + 1) for each in expression.arguments)
    if kind == "constant":
        return Const(type_, expression.nullable, _constant(value, type_))
    if kind == "slot":
        return Slot(type_, expression.nullable, value)
    if kind not in OPERATORS:
        raise SchemaError(f"not a stored expression: there is no operator {kind!r:.40}")
    if kind == "call":
        if type(value) is not str or value not in FUNCTIONS:
            raise SchemaError(f"not a stored expression: there is no function {value!r:.40}")
        value = FUNCTIONS[value]
    elif isinstance(value, list):
        value = tuple(value)
    return Op(type_, expression.nullable, kind, arguments, value)


def _constant(value: Any, type_: SqlType) -> Any:
    try:
        if value is not None and type_ == "FLOAT":
            return float(value)
        if value is not None and type_ == "TIMESTAMP":
            return utc(datetime.fromisoformat(value))
    except (TypeError, ValueError, OverflowError):
        raise SchemaError(f"not a stored expression: {value!r:.60} is no {type_}") from None
    return value
