"""What an expression means: which column a name is, what type each part has, which aggregates its query is to make."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from typing import cast

from voltpy.errors import SqlError
from voltpy.schema import INT_MAX, INT_MIN, TypeName
from voltpy.sql import syntax
from voltpy.sql.bound import (
    NUMBERS,
    Aggregate,
    BoundQuery,
    Column,
    Const,
    Expr,
    Op,
    Param,
    Slot,
    Source,
    SqlType,
    Subquery,
    all_parts,
)
from voltpy.sql.functions import AGGREGATES, FUNCTIONS, GENERATED, Function
from voltpy.sql.type_binder import COMPARED, TypeBinder, family
from voltpy.sql.values import CASTS

MAX_LEVELS = 60  # of operators in each other; Python's own parser has limits, too

_ARITHMETIC = {"+": "add", "-": "sub", "*": "mul", "/": "div", "%": "mod"}
_FUNCTION_TYPES: dict[str, SqlType] = {
    "N": "NUMBER", "I": "INT", "F": "FLOAT", "S": "STRING", "B": "BOOL", "T": "TIMESTAMP",
}  # fmt: skip


class Scope:
    """The names that an expression sees. `aggregates` None: none may stand here; `clause` is where that is."""

    def __init__(self, parent: Scope | None, tables: dict[str, BoundQuery]) -> None:
        self.parent = parent
        self.tables = tables  # of WITH
        self.sources: list[Source] = []
        self.merged: set[tuple[int, int]] = set()  # columns that USING hides behind an equal one
        self.aggregates: list[Aggregate] | None = None
        self.results_source = -1
        self.has_keys = False
        self.key_nodes: list[tuple[syntax.Expression, Expr]] = []  # keys of GROUP BY that hold queries
        self.clause = "FROM"


class ExpressionBinder(TypeBinder):
    """One method a kind of expression. `bind_query` binds a subquery; `new_number` is for a source, query or slot."""

    def __init__(
        self,
        text: str,
        parameters: int,
        bind_query: Callable[[syntax.Query, Scope | None, dict[str, BoundQuery]], BoundQuery],
    ) -> None:
        super().__init__(text, parameters)
        self.bind_query = bind_query
        self.new_number = count().__next__
        self.levels = 0

    def expr(self, node: syntax.Expression, scope: Scope) -> Expr:
        self.levels += 1
        if self.levels > MAX_LEVELS:
            raise self.wrong(f"more than {MAX_LEVELS} operators in each other", node.at)
        # A query is equal to itself alone once it is bound, so such keys are known by what was written.
        known = [key for written, key in scope.key_nodes if _is_same(written, node)]
        bound = known[0] if known and scope.aggregates is not None else self.node(node, scope)
        self.levels -= 1
        return bound

    def node(self, node: syntax.Expression, scope: Scope) -> Expr:
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
                return Subquery("BOOL", False, "exists", self.bind_query(node.query, scope, scope.tables))
            case syntax.Star():
                raise self.wrong("* stands for columns in a select list and in COUNT(*) only", node.at)
            case syntax.Default():
                raise self.wrong("DEFAULT stands for a value in INSERT and UPDATE only", node.at)

    def condition(self, node: syntax.Expression, scope: Scope, clause: str) -> Expr:
        return self.fitted(self.expr(node, scope), "BOOL", node, f"{clause} wants")

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

    def found(self, node: syntax.Name, scope: Scope) -> list[Column]:
        """The columns of this scope that the name may mean."""
        found = []
        for source in scope.sources:
            if node.table in (None, source.name):
                for position, field in enumerate(source.fields):
                    if field.name == node.column and (node.table or (source.number, position) not in scope.merged):
                        found.append(column_of(source, position))
        return found

    def named(self, node: syntax.Name, scope: Scope) -> Expr:
        looked: Scope | None = scope
        while looked is not None:
            found = self.found(node, looked)
            if len(found) > 1:
                raise self.wrong(f"column {node.column} is ambiguous: write table.{node.column}", node.at)
            if found:
                return found[0]
            looked = looked.parent
        raise self.unknown(node, scope)

    def unknown(self, node: syntax.Name, scope: Scope) -> SqlError:
        sources: list[Source] = []
        looked: Scope | None = scope
        while looked is not None:
            sources += looked.sources
            looked = looked.parent
        if node.table is not None and not any(source.name == node.table for source in sources):
            names = [source.name for source in sources if source.name]
            return self.wrong(f"there is no table {node.table} in FROM{hint(node.table, names)}", node.at)
        names = [field.name for source in sources if node.table in (None, source.name) for field in source.fields]
        return self.wrong(f"there is no column {node.column}{hint(node.column, names)}", node.at)

    def unary(self, node: syntax.Unary, scope: Scope) -> Expr:
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

    def binary(self, node: syntax.Binary, scope: Scope) -> Expr:
        left, right = self.expr(node.left, scope), self.expr(node.right, scope)
        if node.operator in COMPARED:
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

    def unified(self, nodes: Sequence[syntax.Expression], scope: Scope, node: syntax.Node) -> list[Expr]:
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

    def is_test(self, node: syntax.IsTest, scope: Scope) -> Expr:
        if node.what == "NULL":
            operand = self.expr(node.operand, scope)
            return Op("BOOL", False, "is_not_null" if node.negated else "is_null", (operand,))
        operand = self.condition(node.operand, scope, f"IS {node.what}")
        wanted = {"TRUE": True, "FALSE": False, "UNKNOWN": None}[node.what]
        test = Op("BOOL", False, "is", (operand,), wanted)
        return Op("BOOL", False, "not", (test,)) if node.negated else test

    def is_distinct(self, node: syntax.IsDistinct, scope: Scope) -> Expr:
        left, right = self.matched(self.expr(node.left, scope), self.expr(node.right, scope), "IS DISTINCT FROM", node)
        return Op("BOOL", False, "same" if node.negated else "distinct", (left, right))

    def between(self, node: syntax.Between, scope: Scope) -> Expr:
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

    def in_list(self, node: syntax.InList, scope: Scope) -> Expr:
        operand = self.expr(node.operand, scope)
        items = [self.expr(item, scope) for item in node.items]
        for item in items:
            operand = self.adapted(operand, item.type, node)
        matched = [self.matched(operand, item, "IN", node)[1] for item in items]
        operand = self.matched(operand, matched[0], "IN", node)[0]
        nullable = operand.nullable or any(item.nullable for item in matched)
        test = Op("BOOL", nullable, "in", (operand, *matched))
        return Op("BOOL", nullable, "not", (test,)) if node.negated else test

    def in_query(self, node: syntax.InQuery, scope: Scope) -> Expr:
        operand = self.expr(node.operand, scope)
        query = self.bind_query(node.query, scope, scope.tables)
        self.check_one_column(query, node)
        field = query.fields[0]
        operand = self.adapted(operand, field.type, node)
        if operand.type not in ("ANY", "NULL") and field.type not in ("ANY", "NULL"):
            if isinstance(operand, Const) and operand.unknown:
                operand = self.literal(operand, field.type, node)
            for output in self.outputs_at(query, 0):
                self.matched(operand, output, "IN", node)
            if family(operand.type) != family(field.type):
                self.convert_output(query, 0, operand.type, node)
        test = Subquery("BOOL", operand.nullable or field.nullable, "in", query, operand)
        return Op("BOOL", test.nullable, "not", (test,)) if node.negated else test

    def check_one_column(self, query: BoundQuery, node: syntax.Node) -> None:
        if len(query.fields) != 1:
            raise self.wrong(f"a subquery in an expression must have one column, not {len(query.fields)}", node.at)

    def scalar_query(self, node: syntax.ScalarQuery, scope: Scope) -> Expr:
        query = self.bind_query(node.query, scope, scope.tables)
        self.check_one_column(query, node)
        return Subquery(query.fields[0].type, True, "scalar", query)

    def like(self, node: syntax.Like, scope: Scope) -> Expr:
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

    def case(self, node: syntax.Case, scope: Scope) -> Expr:
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

    def cast(self, node: syntax.Cast, scope: Scope) -> Expr:
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

    def call(self, node: syntax.Call, scope: Scope) -> Expr:
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
            raise self.wrong(f"there is no function {node.name}(){hint(node.name, names)}", node.at)
        return self.function(function, node, scope)

    def check_arguments(self, node: syntax.Call, least: int, most: int | None) -> None:
        given = len(node.arguments)
        if given < least or (most is not None and given > most):
            wanted = str(least) if most == least else f"at least {least}" if most is None else f"{least} to {most}"
            raise self.wrong(f"{node.name}() takes {wanted} arguments, not {given}", node.at)

    def function(self, function: Function, node: syntax.Call, scope: Scope) -> Expr:
        self.check_arguments(node, function.fewest, len(function.takes))
        args = []
        for letter, argument in zip(function.takes, node.arguments, strict=False):
            expr = self.expr(argument, scope)
            kind = _FUNCTION_TYPES[letter]
            args.append(self.fitted(expr, kind, argument, f"{node.name}() wants"))
        kind = args[0].type if function.gives == "same" else cast("SqlType", function.gives)
        return Op(kind, any(arg.nullable for arg in args), "call", tuple(args), function)

    def special_call(self, node: syntax.Call, scope: Scope) -> Expr:
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

    def concatenated(self, node: syntax.Call, scope: Scope) -> Expr:
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

    def aggregate(self, node: syntax.Call, scope: Scope) -> Expr:
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

    def aggregate_parts(self, node: syntax.Call, scope: Scope) -> tuple[Aggregate, SqlType, bool]:
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


def column_of(source: Source, position: int) -> Column:
    field = source.fields[position]
    return Column(field.type, field.nullable or source.left, source.number, position)


def _arithmetic_type(left: SqlType, right: SqlType) -> SqlType:
    kinds = {left, right}
    if "FLOAT" in kinds:
        return "FLOAT"
    if kinds <= {"INT", "NULL"}:
        return "INT"
    return "NUMBER"


def hint(name: str, names: Iterable[str]) -> str:
    known = [each for each in dict.fromkeys(names) if each]
    close = difflib.get_close_matches(name, known, 1)
    if close:
        return f"; did you mean {close[0]}?"
    shown = ", ".join(known[:8]) + (", …" if len(known) > 8 else "")
    return f" ({shown})" if shown else ""
