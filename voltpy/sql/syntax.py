"""What a statement says, as a tree: the result of `voltpy.sql.parse`, before names and types mean anything.

`at` is the offset in the text, for errors.
"""

from __future__ import annotations

from typing import TypeAlias

from msgspec import Struct

from voltpy.schema import TypeName


class Node(Struct, frozen=True, kw_only=True):
    at: int = 0


# -- Expressions


class Literal(Node, frozen=True):
    value: int | float | str | bool | None


class Parameter(Node, frozen=True):
    index: int  # counted from 0


class Name(Node, frozen=True):
    table: str | None
    column: str


class Star(Node, frozen=True):
    """`*` or `t.*`, in a select list and in COUNT(*)."""

    table: str | None = None


class Default(Node, frozen=True):
    """DEFAULT in the place of a value, in INSERT and UPDATE."""


class Unary(Node, frozen=True):
    operator: str  # - + NOT
    operand: Expression


class Binary(Node, frozen=True):
    operator: str  # + - * / % ^ || = <> < <= > >=
    left: Expression
    right: Expression


class Logic(Node, frozen=True):
    operator: str  # AND OR
    terms: tuple[Expression, ...]


class IsTest(Node, frozen=True):
    """IS [NOT] NULL, TRUE, FALSE, UNKNOWN."""

    operand: Expression
    what: str
    negated: bool


class IsDistinct(Node, frozen=True):
    left: Expression
    right: Expression
    negated: bool


class Between(Node, frozen=True):
    operand: Expression
    low: Expression
    high: Expression
    negated: bool


class InList(Node, frozen=True):
    operand: Expression
    items: tuple[Expression, ...]
    negated: bool


class InQuery(Node, frozen=True):
    operand: Expression
    query: Query
    negated: bool


class Like(Node, frozen=True):
    operand: Expression
    pattern: Expression
    escape: Expression | None
    negated: bool
    any_case: bool


class Case(Node, frozen=True):
    operand: Expression | None
    branches: tuple[tuple[Expression, Expression], ...]
    otherwise: Expression | None


class Cast(Node, frozen=True):
    operand: Expression
    type: TypeName


class Call(Node, frozen=True):
    name: str
    arguments: tuple[Expression, ...]
    distinct: bool = False
    condition: Expression | None = None  # FILTER (WHERE …)


class ScalarQuery(Node, frozen=True):
    query: Query


class Exists(Node, frozen=True):
    query: Query


Expression: TypeAlias = (
    Literal
    | Parameter
    | Name
    | Star
    | Default
    | Unary
    | Binary
    | Logic
    | IsTest
    | IsDistinct
    | Between
    | InList
    | InQuery
    | Like
    | Case
    | Cast
    | Call
    | ScalarQuery
    | Exists
)

# -- Queries


class TableRef(Node, frozen=True):
    name: str
    alias: str | None = None
    columns: tuple[str, ...] = ()


class Derived(Node, frozen=True):
    query: Query
    alias: str
    columns: tuple[str, ...] = ()


class Join(Node, frozen=True):
    left: From
    right: From
    kind: str  # INNER LEFT CROSS
    condition: Expression | None = None
    using: tuple[str, ...] = ()
    natural: bool = False
    grouped: bool = False  # in parentheses


From: TypeAlias = TableRef | Derived | Join


class Item(Node, frozen=True):
    expression: Expression
    alias: str | None = None


class Select(Node, frozen=True):
    items: tuple[Item, ...]
    distinct: bool = False
    sources: tuple[From, ...] = ()
    where: Expression | None = None
    keys: tuple[Expression, ...] = ()
    having: Expression | None = None


class Values(Node, frozen=True):
    rows: tuple[tuple[Expression, ...], ...]


class SetOperation(Node, frozen=True):
    operator: str  # UNION EXCEPT INTERSECT
    all: bool
    left: Query
    right: Query


class OrderItem(Node, frozen=True):
    expression: Expression
    descending: bool = False
    nulls_first: bool = False


class CommonTable(Node, frozen=True):
    name: str
    columns: tuple[str, ...]
    query: Query


class Query(Node, frozen=True):
    body: Select | Values | SetOperation
    tables: tuple[CommonTable, ...] = ()
    order: tuple[OrderItem, ...] = ()
    limit: Expression | None = None
    offset: Expression | None = None


# -- Statements


class Assignment(Node, frozen=True):
    column: str
    value: Expression


class Conflict(Node, frozen=True):
    """ON CONFLICT. Without assignments, DO NOTHING."""

    columns: tuple[str, ...] = ()
    assignments: tuple[Assignment, ...] = ()
    where: Expression | None = None


class Insert(Node, frozen=True):
    """`source` None: DEFAULT VALUES."""

    table: TableRef
    columns: tuple[tuple[str, int], ...]
    source: Query | None
    conflict: Conflict | None = None
    returning: tuple[Item, ...] = ()
    tables: tuple[CommonTable, ...] = ()


class Update(Node, frozen=True):
    table: TableRef
    assignments: tuple[Assignment, ...]
    where: Expression | None = None
    returning: tuple[Item, ...] = ()
    tables: tuple[CommonTable, ...] = ()


class Delete(Node, frozen=True):
    table: TableRef
    where: Expression | None = None
    returning: tuple[Item, ...] = ()
    tables: tuple[CommonTable, ...] = ()


Statement: TypeAlias = Query | Insert | Update | Delete


class Explain(Node, frozen=True):
    """`analyze`: the statement is run."""

    statement: Statement
    analyze: bool = False
