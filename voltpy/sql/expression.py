"""An expression's meaning → a Python expression, in the three ways that voltpy.sql.emit tells of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from math import isfinite

from voltpy.errors import DataError
from voltpy.schema import INT_MAX, INT_MIN
from voltpy.sql.bound import BoundQuery, Column, Const, Expr, Op, Param, Slot, Subquery
from voltpy.sql.program import Program, tuple_text
from voltpy.sql.text_functions import like_pattern

_OPERATORS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_OPPOSITE = {"eq": "!=", "ne": "==", "lt": ">=", "le": ">", "gt": "<=", "ge": "<"}
_DYNAMIC = {
    "eq": "equal({0}, {1})", "ne": "(not equal({0}, {1}))", "lt": "less({0}, {1})", "le": "less_or_equal({0}, {1})",
    "gt": "less({1}, {0})", "ge": "less_or_equal({1}, {0})",
}  # fmt: skip
_ANY_ARITHMETIC = {"add": "add", "sub": "subtract", "mul": "multiply", "div": "divide", "mod": "modulo"}
_SYMBOLS = {"add": "+", "sub": "-", "mul": "*"}
_CASTS = {
    ("INT", "FLOAT"): "float({0})", ("INT", "STRING"): "str({0})", ("INT", "BOOL"): "({0} != 0)",
    ("FLOAT", "INT"): "float_to_int({0})", ("FLOAT", "STRING"): "float_to_text({0})", ("BOOL", "INT"): "int({0})",
    ("BOOL", "STRING"): "to_text({0})", ("STRING", "INT"): "text_to_int({0})",
    ("STRING", "FLOAT"): "text_to_float({0})", ("STRING", "BOOL"): "text_to_bool({0})",
    ("STRING", "TIMESTAMP"): "text_to_timestamp({0})", ("TIMESTAMP", "STRING"): "timestamp_to_text({0})",
}  # fmt: skip
_PLAIN_CONDITIONS = ("eq", "ne", "lt", "le", "gt", "ge", "is_null", "is_not_null", "distinct", "same")


class Expressions:
    """Those of one Python function. `use` is told of variables that hold rows, before they are used; `rows_of` gives an
    expression for a query's rows, or for what `single`, `value_set` or `exists` makes of them.
    """

    def __init__(self, program: Program, use: Callable[[str], None], rows_of: Callable[[BoundQuery, str], str]) -> None:
        self.program = program
        self.use = use
        self.rows_of = rows_of
        self.slots: dict[int, str] = {}

    # Expressions: conditions

    def conditions(self, exprs: Sequence[Expr]) -> list[str]:
        return [self.true(expr) for expr in exprs]

    def all_true(self, exprs: Sequence[Expr]) -> str:
        return " and ".join(self.conditions(exprs))

    def true(self, expr: Expr) -> str:
        """Python that is true when the expression is, and false when it is false or NULL."""
        if isinstance(expr, Const):
            return str(expr.value is True)
        if isinstance(expr, Subquery):
            return self.subquery_is(expr, True)
        if not isinstance(expr, Op):
            return self.value(expr)
        name, args = expr.name, expr.args
        if name in ("and", "or"):
            return "(" + f" {name} ".join(self.true(arg) for arg in args) + ")"
        if name == "not":
            return self.false(args[0])
        if name in _OPERATORS:
            return self.comparison(expr, name)
        match name:
            case "is_null" | "is_not_null":
                return self.null_test(args[0], name == "is_null")
            case "is":
                wanted = expr.extra
                if wanted is None:
                    return f"({self.value(args[0])} is None)"
                return self.true(args[0]) if wanted else self.false(args[0])
            case "distinct" | "same":
                sign = "!=" if name == "distinct" else "=="
                return f"({self.value(args[0])} {sign} {self.value(args[1])})"
            case "in":
                return self.in_list(expr, True)
            case "like":
                return self.strict_condition(args, self.like_test(expr))
            case "let":
                return self.let(expr, self.true)
        return self.value(expr)

    def false(self, expr: Expr) -> str:
        """Python that is true when the expression is false, and false when it is true or NULL."""
        if isinstance(expr, Const):
            return str(expr.value is False)
        if isinstance(expr, Subquery):
            return self.subquery_is(expr, False)
        if isinstance(expr, Op):
            name, args = expr.name, expr.args
            if name in ("and", "or"):
                other = "or" if name == "and" else "and"
                return "(" + f" {other} ".join(self.false(arg) for arg in args) + ")"
            if name == "not":
                return self.true(args[0])
            if name in _OPERATORS:
                opposite = {sign: each for each, sign in _OPERATORS.items()}[_OPPOSITE[name]]
                if name in ("eq", "ne") or not self.may_be_nan(args):
                    return self.comparison(expr, opposite)
                return self.strict_condition(args, lambda texts: f"not {texts[0]} {_OPERATORS[name]} {texts[1]}")
            match name:
                case "is_null" | "is_not_null":
                    return self.null_test(args[0], name != "is_null")
                case "is" | "distinct" | "same":
                    return f"(not {self.true(expr)})"
                case "in":
                    return self.in_list(expr, False)
                case "like":
                    test = self.like_test(expr)
                    return self.strict_condition(args, lambda texts: f"not {test(texts)}")
                case "let":
                    return self.let(expr, self.false)
        return f"({self.value(expr)} is False)"

    def may_be_nan(self, args: Sequence[Expr]) -> bool:
        return any(arg.type in ("FLOAT", "NUMBER", "ANY") for arg in args)

    def comparison(self, expr: Op, name: str) -> str:
        """Whether `name` holds between the arguments of a comparison, and neither is NULL."""
        left, right = expr.args
        if left.type in ("ANY", "NULL") and right.type in ("ANY", "NULL"):
            return self.strict_condition(expr.args, lambda texts: _DYNAMIC[name].format(*texts))
        if name == "eq" and not (left.nullable and right.nullable):
            return f"({self.value(left)} == {self.value(right)})"
        if name == "eq":
            text, again = self.operand(left)
            return f"({text} is not None and {again} == {self.value(right)})"
        return self.strict_condition(expr.args, lambda texts: f"{texts[0]} {_OPERATORS[name]} {texts[1]}")

    def strict_condition(self, args: Sequence[Expr], test: Callable[[list[str]], str]) -> str:
        checks, texts = self.checked(args, "is not None")
        return "(" + " and ".join([*checks, test(texts)]) + ")"

    def null_test(self, arg: Expr, wants_null: bool) -> str:
        if not arg.nullable:
            return str(not wants_null)
        return f"({self.value(arg)} {'is' if wants_null else 'is not'} None)"

    def in_list(self, expr: Op, wanted: bool) -> str:
        operand, *items = expr.args
        constants = _constants(items)
        if constants is not None:
            known = self.program.constant(self.set_text(constants))
            if wanted:
                return f"({self.value(operand)} in {known})"
            if not operand.nullable:
                return f"({self.value(operand)} not in {known})"
            text, again = self.operand(operand)
            return f"({text} is not None and {again} not in {known})"
        return f"({self.in_value(expr)} is {wanted})"

    def set_text(self, constants: list[Const]) -> str:
        texts = [self.value(each) for each in constants]
        return f"frozenset({tuple_text(list(dict.fromkeys(texts)))})"

    def like_test(self, expr: Op) -> Callable[[list[str]], str]:
        pattern = expr.args[1]
        escape, any_case = expr.extra
        if isinstance(pattern, Const) and isinstance(pattern.value, str) and _is_pattern(pattern.value, escape):
            made = self.program.constant(f"like_pattern({pattern.value!r}, {escape!r}, {any_case})")
            return lambda texts: f"{made}({texts[0]})"
        return lambda texts: f"like({texts[0]}, {texts[1]}, {escape!r}, {any_case})"

    def let(self, expr: Op, write: Callable[[Expr], str]) -> str:
        name = self.program.new("s")
        text = self.value(expr.args[0])
        self.slots[expr.extra] = name
        return f"(({name} := {text}), {write(expr.args[1])})[1]"

    def subquery_is(self, expr: Subquery, wanted: bool) -> str:
        if expr.kind == "exists":
            rows = self.rows_of(expr.query, "exists")
            return rows if wanted else f"(not {rows})"
        if expr.kind == "scalar":
            return self.value(expr) if wanted else f"({self.value(expr)} is False)"
        operand = expr.operand
        assert operand is not None
        if wanted and not operand.nullable:
            return f"({self.value(operand)} in {self.rows_of(expr.query, 'value_set')}[0])"
        return f"({self.value(expr)} is {wanted})"

    # Expressions: values

    def value(self, expr: Expr) -> str:
        """Python whose value is the expression's."""
        match expr:
            case Const():
                return self.const(expr)
            case Param():
                return f"p{expr.index}"
            case Column():
                text, variable = self.program.texts[expr.source, expr.column]
                self.use(variable)
                return text
            case Slot():
                return self.slots[expr.number]
            case Subquery():
                return self.subquery(expr)
            case Op():
                return self.op(expr)
        raise AssertionError(expr)

    def const(self, expr: Const) -> str:
        value = expr.value
        if isinstance(value, datetime):
            return self.program.constant(f"text_to_timestamp({value.isoformat()!r})")
        if isinstance(value, float) and not isfinite(value):
            return self.program.constant(f"float({str(value)!r})")
        if isinstance(value, int | float) and value < 0:
            return f"({value!r})"
        return repr(value)

    def subquery(self, expr: Subquery) -> str:
        if expr.kind == "exists":
            return self.rows_of(expr.query, "exists")
        if expr.kind == "scalar":
            return self.rows_of(expr.query, "single")
        operand = expr.operand
        assert operand is not None
        return f"in_rows({self.value(operand)}, {self.rows_of(expr.query, 'value_set')})"

    def op(self, expr: Op) -> str:
        name, args = expr.name, expr.args
        if name == "let":
            return self.let(expr, self.value)
        if expr.type == "BOOL" and not expr.nullable and name in (
            "and", "or", "not", "is", "in", "like", *_PLAIN_CONDITIONS,
        ):  # fmt: skip
            return self.true(expr) if name in _PLAIN_CONDITIONS else f"bool({self.true(expr)})"
        if name in ("and", "or"):
            return self.logic(expr)
        if name in _OPERATORS:
            if args[0].type in ("ANY", "NULL") and args[1].type in ("ANY", "NULL"):
                return self.strict(args, lambda texts: _DYNAMIC[name].format(*texts))
            return self.strict(args, lambda texts: f"{texts[0]} {_OPERATORS[name]} {texts[1]}")
        match name:
            case "not":
                return self.strict(args, lambda texts: f"not {texts[0]}")
            case "in":
                return self.in_value(expr)
            case "like":
                test = self.like_test(expr)
                return self.strict(args, lambda texts: f"bool({test(texts)})")
            case "case":
                return self.case(args)
            case "coalesce":
                return self.coalesce(args)
            case "add" | "sub" | "mul" | "div" | "mod":
                return self.arithmetic(expr)
            case "neg":
                return self.negative(expr)
            case "call":
                return self.call(expr)
        return self.other(expr)

    def other(self, expr: Op) -> str:
        name, args = expr.name, expr.args
        match name:
            case "float":
                return self.strict(args, lambda texts: f"float({texts[0]})")
            case "cast":
                return self.strict(args, lambda texts: _CASTS[expr.extra].format(*texts))
            case "cast_any":
                return self.strict(args, lambda texts: f"cast({texts[0]}, {expr.extra!r})")
            case "checked":
                return self.strict(args, lambda texts: f"checked({texts[0]}, {expr.extra!r})")
            case "assign":
                return f"assign({self.value(args[0])}, {expr.extra!r})"
            case "generated":
                return str(expr.extra)
            case "joined":
                return self.strict(args, lambda texts: f"joined({', '.join(texts)})")
            case "concat" | "concat_ws" | "greatest" | "least":
                return f"{name}({', '.join(self.value(arg) for arg in args)})"
            case "left_out":
                return f"left_out{expr.extra!r}"
            case "wide":
                return f"wide({self.value(args[0])})"
            case "tuple":
                return f"tuple({self.value(args[0])})"
            case "fresh_key":
                return f"fresh_key(tx, {self.program.table(expr.extra)})"
        raise AssertionError(name)

    def logic(self, expr: Op) -> str:
        """AND and OR by value: the first term that decides ends it; else it is NULL if any was."""
        decides, other = (False, True) if expr.name == "and" else (True, False)
        pieces, unknown = [], []
        for term in expr.args:
            text = self.value(term)
            if term.nullable:
                first, again = self.reused_unless_atom(term, text)
                pieces.append(f"{decides} if {first} is {decides} else")
                unknown.append(f"{again} is None")
            else:
                pieces.append(f"{decides} if {'' if decides else 'not '}{text} else")
        return f"({' '.join(pieces)} None if {' or '.join(unknown)} else {other})"

    def in_value(self, expr: Op) -> str:
        operand, *items = expr.args
        constants = _constants(items)
        if constants is not None:
            known = self.program.constant(self.set_text(constants))
            return self.strict((operand,), lambda texts: f"{texts[0]} in {known}")
        listed = tuple_text([self.value(item) for item in items])
        return self.strict((operand,), lambda texts: f"in_list({texts[0]}, {listed})")

    def case(self, args: Sequence[Expr]) -> str:
        pieces = []
        for condition, result in zip(args[:-1:2], args[1:-1:2], strict=True):
            test = self.true(condition)
            pieces.append(f"{self.value(result)} if {test} else")
        return f"({' '.join(pieces)} {self.value(args[-1])})"

    def coalesce(self, args: Sequence[Expr]) -> str:
        pieces = []
        for arg in args:
            text = self.value(arg)
            if not arg.nullable or arg is args[-1]:
                pieces.append(text)
                break
            first, again = self.reused_unless_atom(arg, text)
            pieces.append(f"{again} if {first} is not None else")
        return f"({' '.join(pieces)})"

    def arithmetic(self, expr: Op) -> str:
        name, args = expr.name, expr.args
        kinds = [arg.type for arg in args]
        if expr.type == "NUMBER" or "ANY" in kinds:
            return self.strict(args, lambda texts: f"{_ANY_ARITHMETIC[name]}({', '.join(texts)})")
        if name in ("div", "mod"):
            kind = "int" if expr.type == "INT" else "float"
            return self.strict(args, lambda texts: f"{name}_{kind}({', '.join(texts)})")
        result = self.program.new("v")
        sign = _SYMBOLS[name]
        if expr.type == "INT":
            fits = f"({result} if {INT_MIN} <= ({result} := {{0}} {sign} {{1}}) <= {INT_MAX} else int_overflow())"
            return self.strict(args, lambda texts: fits.format(*texts))
        first: list[str] = []
        names: list[str] = []
        checks = []
        for arg in args:
            text, again = self.operand(arg)
            if arg.nullable:
                checks.append(f"{text} is None")
                text = again
            first.append(text)
            names.append(again)
        # Only what is infinite, or no number, is not zero when it is taken from itself.
        is_finite = f"({result} := {first[0]} {sign} {first[1]}) - {result} == 0.0"
        inner = f"({result} if {is_finite} else real({result}, {', '.join(names)}))"
        return f"(None if {' or '.join(checks)} else {inner})" if checks else inner

    def negative(self, expr: Op) -> str:
        if expr.type == "INT":
            result = self.program.new("v")
            return self.strict(
                expr.args, lambda texts: f"({result} if ({result} := -{texts[0]}) <= {INT_MAX} else int_overflow())"
            )
        if expr.type == "FLOAT":
            return self.strict(expr.args, lambda texts: f"-{texts[0]}")
        return self.strict(expr.args, lambda texts: f"negative({texts[0]})")

    def call(self, expr: Op) -> str:
        code = expr.extra.code
        if code == "pi":
            return "pi"
        if "{0}" in code:
            return self.strict(expr.args, lambda texts: code.format(*texts))
        return self.strict(expr.args, lambda texts: f"{code}({', '.join(texts)})")

    def strict(self, args: Sequence[Expr], write: Callable[[list[str]], str]) -> str:
        """What `write` makes of the arguments, or None when one of them is."""
        checks, texts = self.checked(args, "is None")
        # Python warns of what it sees can't be done to None, though it never comes to that.
        made = "None" if "None is None" in checks else write(texts)
        return f"(None if {' or '.join(checks)} else {made})" if checks else f"({made})"

    def checked(self, args: Sequence[Expr], test: str) -> tuple[list[str], list[str]]:
        """(tests of the arguments that can be NULL, texts for all, to be used behind the tests and once each)."""
        checks, texts = [], []
        for arg in args:
            if arg.nullable:
                text, again = self.operand(arg)
                checks.append(f"{text} {test}")
                texts.append(again)
            else:
                texts.append(self.value(arg))
        return checks, texts

    def operand(self, expr: Expr) -> tuple[str, str]:
        """(text for the first use, text for every later one)"""
        return self.reused_unless_atom(expr, self.value(expr))

    def reused_unless_atom(self, expr: Expr, text: str) -> tuple[str, str]:
        return (text, text) if is_atom(expr) else self.reused(text)

    def reused(self, text: str) -> tuple[str, str]:
        name = self.program.new("x")
        return f"({name} := {text})", name


def is_atom(expr: Expr) -> bool:
    return isinstance(expr, Column | Const | Param | Slot)


def _is_pattern(pattern: str, escape: str) -> bool:
    """Whether LIKE takes it; one that ends with the escape character is an error once a row meets it."""
    try:
        like_pattern(pattern, escape, False)
    except DataError:
        return False
    return True


def _constants(items: Sequence[Expr]) -> list[Const] | None:
    """The items, if they are constants and none is NULL."""
    constants = [item for item in items if isinstance(item, Const) and item.value is not None]
    return constants if len(constants) == len(items) else None
