"""The expressions of a statement, off its tokens: see voltpy.sql.parse.

Operators bind as in PostgreSQL, loosest first: OR, AND, NOT, IS, comparisons, BETWEEN IN LIKE, ||, + -, * / %, ^,
signs, ::.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite

from voltpy.schema import RESERVED_WORDS, TypeName
from voltpy.sql.syntax import (
    Between,
    Binary,
    Call,
    Case,
    Cast,
    Exists,
    Expression,
    InList,
    InQuery,
    IsDistinct,
    IsTest,
    Like,
    Literal,
    Logic,
    Name,
    Parameter,
    Query,
    ScalarQuery,
    Star,
    Unary,
)
from voltpy.sql.token_reader import MAX_DEPTH, TokenReader
from voltpy.sql.tokens import A_TYPE, TYPES, Token, folded

MAX_NUMBER = 400  # characters
MAX_PARAMETERS = 1000

_COMPARISONS = {"=": "=", "<>": "<>", "!=": "<>", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
_SUMS, _PRODUCTS = ("+", "-"), ("*", "/", "%")
_NEGATED_TESTS = ("BETWEEN", "IN", "LIKE", "ILIKE", "SIMILAR")
_NAMED_TIMES = {"CURRENT_TIMESTAMP": "now", "LOCALTIMESTAMP": "now"}
# Words after which no name of a column or a function can stand, though they are not reserved for tables.
_NO_COLUMN = RESERVED_WORDS | {"JOIN", "INNER", "CROSS", "NATURAL", "FULL", "IS", "LIKE", "ILIKE", "BETWEEN"}


class ExpressionReader(TokenReader):
    """One method a rule of the grammar, loosest first. `read_query` reads a subquery; `parameters` counts the ?."""

    def __init__(self, text: str, tokens: list[Token], read_query: Callable[[], Query]) -> None:
        super().__init__(text, tokens)
        self.read_query = read_query
        self.parameters = 0

    def expression(self) -> Expression:
        self.enter()
        terms = [self.conjunction()]
        at = self.peek().start
        while self.take("OR"):
            terms.append(self.conjunction())
        self.leave()
        return terms[0] if len(terms) == 1 else Logic("OR", tuple(terms), at=at)

    def conjunction(self) -> Expression:
        terms = [self.negation()]
        at = self.peek().start
        while self.take("AND"):
            terms.append(self.negation())
        return terms[0] if len(terms) == 1 else Logic("AND", tuple(terms), at=at)

    def negation(self) -> Expression:
        token = self.peek()
        negations = 0
        while self.take("NOT"):
            negations += 1
        operand = self.test()
        # NOT NOT x is x where x is a truth value; that it is one shows in the one NOT that stays.
        for _ in range(2 - negations % 2 if negations else 0):
            operand = Unary("NOT", operand, at=token.start)
        return operand

    def test(self) -> Expression:
        left = self.comparison()
        chain = 0
        while True:
            token = self.peek()
            if self.take("ISNULL"):
                left = IsTest(left, "NULL", False, at=token.start)
            elif self.take("NOTNULL"):
                left = IsTest(left, "NULL", True, at=token.start)
            elif self.take("IS"):
                left = self.is_test(left, token)
            else:
                return left
            chain = self.longer(chain, token)

    def is_test(self, left: Expression, token: Token) -> Expression:
        negated = self.take("NOT")
        for what in ("NULL", "TRUE", "FALSE", "UNKNOWN"):
            if self.take(what):
                return IsTest(left, what, negated, at=token.start)
        if self.take("DISTINCT"):
            self.expect("FROM")
            return IsDistinct(left, self.comparison(), negated, at=token.start)
        raise self.error("NULL, TRUE, FALSE, UNKNOWN or DISTINCT FROM")

    def comparison(self) -> Expression:
        left = self.range_test()
        token = self.peek()
        operator = _COMPARISONS.get(token.value) if token.kind == "symbol" else None
        if operator is None:
            return left
        self.at += 1
        if self.peek().kind == "word" and self.peek().value in ("ANY", "ALL", "SOME"):
            raise self.unsupported(f"{token.value} {self.peek().value} (…)", "write IN or EXISTS")
        right = self.range_test()
        following = self.peek()
        if following.kind == "symbol" and following.value in _COMPARISONS:
            raise self.error("no second comparison: put one of them in parentheses")
        return Binary(operator, left, right, at=token.start)

    def range_test(self) -> Expression:
        left = self.concatenation()
        chain = 0
        while True:
            token = self.peek()
            after = self.tokens[min(self.at + 1, len(self.tokens) - 1)]
            negated = self.sees("NOT") and after.kind == "word" and after.value in _NEGATED_TESTS
            self.at += negated
            if self.take("BETWEEN"):
                left = self.between(left, negated, token)
            elif self.take("IN"):
                left = self.in_test(left, negated, token)
            elif self.sees("LIKE") or self.sees("ILIKE"):
                any_case = self.next().value == "ILIKE"
                pattern = self.concatenation()
                escape = self.concatenation() if self.take("ESCAPE") else None
                left = Like(left, pattern, escape, negated, any_case, at=token.start)
            elif self.sees("SIMILAR") or (self.peek().kind == "symbol" and self.peek().value in ("~", "!~", "~*")):
                raise self.error("LIKE")
            else:
                return left
            chain = self.longer(chain, token)

    def between(self, left: Expression, negated: bool, token: Token) -> Expression:
        if self.sees("SYMMETRIC"):
            raise self.error("an expression")
        self.take("ASYMMETRIC")
        low = self.concatenation()
        self.expect("AND")
        return Between(left, low, self.concatenation(), negated, at=token.start)

    def in_test(self, left: Expression, negated: bool, token: Token) -> Expression:
        if not self.sees_symbol("("):
            raise self.error('"(" and a list or a query')
        if self.is_query_in_parentheses():
            return InQuery(left, self.parenthesized_query(), negated, at=token.start)
        self.at += 1
        items = self.listed(self.expression)
        self.expect_symbol(")")
        return InList(left, items, negated, at=token.start)

    def concatenation(self) -> Expression:
        left = self.sum()
        pieces = [left]
        at = self.peek().start
        while self.take_symbol("||"):
            pieces.append(self.sum())
        return left if len(pieces) == 1 else Call("||", tuple(pieces), at=at)

    def sum(self) -> Expression:
        return self.chain(_SUMS, self.product)

    def product(self) -> Expression:
        return self.chain(_PRODUCTS, self.power)

    def power(self) -> Expression:
        return self.chain(("^",), self.signed)

    def chain(self, operators: tuple[str, ...], operand: Callable[[], Expression]) -> Expression:
        left = operand()
        length = 0
        while self.peek().kind == "symbol" and self.peek().value in operators:
            token = self.next()
            length = self.longer(length, token)
            left = Binary(token.value, left, operand(), at=token.start)
        return left

    def signed(self) -> Expression:
        signs: list[Token] = []
        while self.sees_symbol("-") or self.sees_symbol("+"):
            signs.append(self.next())
        operand = self.converted()
        if len(signs) > MAX_DEPTH:
            raise self.wrong(f"more than {MAX_DEPTH} signs in a row", signs[0].start)
        for token in reversed(signs):
            operand = _with_sign(token, operand)
        return operand

    def converted(self) -> Expression:
        operand = self.primary()
        chain = 0
        while self.sees_symbol("::"):
            token = self.next()
            chain = self.longer(chain, token)
            operand = Cast(operand, self.type_name(), at=token.start)
        if self.sees_symbol("["):
            raise self.error("an operator")
        return operand

    def primary(self) -> Expression:
        token = self.peek()
        if token.kind == "number":
            self.at += 1
            return self.number(token)
        if token.kind == "string":
            self.at += 1
            return Literal(token.value, at=token.start)
        if token.kind == "symbol":
            return self.symbol_primary(token)
        if token.kind == "word":
            return self.word_primary(token)
        if token.kind == "name":
            return self.column()
        raise self.error("an expression")

    def symbol_primary(self, token: Token) -> Expression:
        if self.take_symbol("?"):
            if self.parameters == MAX_PARAMETERS:
                raise self.wrong(f"more than {MAX_PARAMETERS:,} parameters", token.start)
            self.parameters += 1
            return Parameter(self.parameters - 1, at=token.start)
        if self.sees_symbol("("):
            if self.is_query_in_parentheses():
                return ScalarQuery(self.parenthesized_query(), at=token.start)
            self.at += 1
            inner = self.expression()
            if self.sees_symbol(","):
                raise self.unsupported("a row value", "compare column by column")
            self.expect_symbol(")")
            return inner
        raise self.error("an expression")

    def word_primary(self, token: Token) -> Expression:
        word = token.value
        simple = {"NULL": None, "TRUE": True, "FALSE": False}
        if word in simple:
            self.at += 1
            return Literal(simple[word], at=token.start)
        if word == "CASE":
            return self.case()
        if word == "CAST":
            return self.cast()
        if word == "EXISTS" and self.starts_query(1):
            self.at += 1
            return Exists(self.parenthesized_query(), at=token.start)
        if word in _NAMED_TIMES:
            self.at += 1
            return Call(_NAMED_TIMES[word], (), at=token.start)
        if word in ("INTERVAL", "ARRAY", "ROW", "DATE", "TIME") and self.tokens[self.at + 1].kind in (
            "string",
            "symbol",
        ):
            following = self.tokens[self.at + 1]
            if following.kind == "string" or following.value in ("[", "("):
                raise self.error("an expression")
        if word == "TIMESTAMP" or word == "TIMESTAMPTZ":
            literal = self.typed_literal(token)
            if literal is not None:
                return literal
        following = self.tokens[self.at + 1]
        if (
            following.kind == "symbol"
            and following.value == "("
            and (word not in RESERVED_WORDS or word in ("LEFT", "RIGHT"))
        ):
            return self.call(token)
        return self.column()

    def typed_literal(self, token: Token) -> Expression | None:
        start = self.at
        self.at += 1
        if self.take("WITH") or self.take("WITHOUT"):
            self.take("TIME")
            self.take("ZONE")
        literal = self.peek()
        if literal.kind != "string":
            self.at = start
            return None
        self.at += 1
        return Cast(Literal(literal.value, at=literal.start), "TIMESTAMP", at=token.start)

    def number(self, token: Token) -> Literal:
        raw = token.value
        after = self.peek()
        if after.start == token.end and after.kind in ("word", "name"):
            raise self.wrong(f"{raw}{after.value.lower()[:20]} is neither a number nor a name", token.start)
        if len(raw) > MAX_NUMBER:
            raise self.wrong(f"a number of {len(raw):,} characters; the limit is {MAX_NUMBER}", token.start)
        try:
            if raw.isdigit():
                whole = int(raw)
                return Literal(whole if whole < 1 << 64 else float(raw), at=token.start)
            real = float(raw)
        except ValueError:
            raise self.wrong(f"{raw} is not a number", token.start) from None
        if not isfinite(real):
            raise self.wrong(f"{raw[:40]} is too large", token.start)
        return Literal(real, at=token.start)

    def column(self) -> Expression:
        token = self.peek()
        if token.kind == "word" and token.value in _NO_COLUMN:
            raise self.error("an expression")
        name = self.name("an expression")
        if not self.take_symbol("."):
            return Name(None, name, at=token.start)
        column = self.name("the name of a column", any_word=True)
        if self.sees_symbol("."):
            raise self.unsupported("a name qualified by a schema")
        if self.sees_symbol("("):
            raise self.unsupported("a function qualified by a schema")
        return Name(name, column, at=token.start)

    def case(self) -> Expression:
        at = self.expect("CASE").start
        operand = None if self.sees("WHEN") else self.expression()
        branches: list[tuple[Expression, Expression]] = []
        while self.take("WHEN"):
            condition = self.expression()
            self.expect("THEN")
            branches.append((condition, self.expression()))
        if not branches:
            raise self.error("WHEN")
        otherwise = self.expression() if self.take("ELSE") else None
        self.expect("END")
        return Case(operand, tuple(branches), otherwise, at=at)

    def cast(self) -> Expression:
        at = self.expect("CAST").start
        self.expect_symbol("(")
        operand = self.expression()
        self.expect("AS")
        target = self.type_name()
        self.expect_symbol(")")
        return Cast(operand, target, at=at)

    def type_name(self) -> TypeName:
        token = self.peek()
        found = TYPES.get(token.value) if token.kind == "word" else None
        if found is None:
            raise self.error(A_TYPE)
        self.at += 1
        if token.value == "DOUBLE":
            self.take("PRECISION")
        if token.value in ("CHAR", "CHARACTER"):
            self.take("VARYING")
        if token.value in ("CHAR", "CHARACTER", "VARCHAR") and self.take_symbol("("):
            raise self.wrong(f"{token.value}(n) is not supported in a cast: write STRING, and LEFT(…, n)", token.start)
        if token.value == "TIMESTAMP" and (self.take("WITH") or self.take("WITHOUT")):
            self.expect("TIME")
            self.expect("ZONE")
        return found

    # Calls

    def call(self, token: Token) -> Expression:
        name = folded(self.text, token)
        self.at += 1
        self.expect_symbol("(")
        if name in ("extract", "position", "trim", "substring", "overlay"):
            call = self.special_call(name, token)
            if call is not None:
                return call
        distinct = False
        arguments: tuple[Expression, ...] = ()
        star = self.peek()
        if self.take_symbol("*"):
            arguments = (Star(at=star.start),)
        elif not self.sees_symbol(")"):
            if self.take("DISTINCT"):
                distinct = True
            else:
                self.take("ALL")
            arguments = self.listed(self.expression)
            if self.sees("ORDER"):
                raise self.unsupported("ORDER BY inside an aggregate")
        self.expect_symbol(")")
        condition = None
        if self.sees("FILTER"):
            self.at += 1
            self.expect_symbol("(")
            self.expect("WHERE")
            condition = self.expression()
            self.expect_symbol(")")
        if self.sees("OVER") or self.sees("WITHIN"):
            raise self.unsupported("a window function")
        return Call(name, arguments, distinct, condition, at=token.start)

    def special_call(self, name: str, token: Token) -> Expression | None:
        """Calls with words among their arguments; None where they are written with commas."""
        if name == "overlay":
            raise self.unsupported("OVERLAY")
        if name == "extract":
            field = self.peek()
            if field.kind not in ("word", "string"):
                raise self.error("a field such as YEAR or EPOCH")
            self.at += 1
            self.expect("FROM")
            moment = self.expression()
            self.expect_symbol(")")
            return Call("date_part", (Literal(field.value.lower(), at=field.start), moment), at=token.start)
        if name == "position":
            needle = self.concatenation()
            self.expect("IN")
            haystack = self.expression()
            self.expect_symbol(")")
            return Call("strpos", (haystack, needle), at=token.start)
        if name == "trim":
            return self.trim(token)
        start = self.at
        text = self.expression()
        if not (self.sees("FROM") or self.sees("FOR")):
            self.at = start
            return None
        first: Expression = self.expression() if self.take("FROM") else Literal(1, at=token.start)
        arguments = (text, first, self.expression()) if self.take("FOR") else (text, first)
        self.expect_symbol(")")
        return Call("substr", arguments, at=token.start)

    def trim(self, token: Token) -> Expression | None:
        sides = {"BOTH": "btrim", "LEADING": "ltrim", "TRAILING": "rtrim"}
        side = self.peek().value if self.peek().kind == "word" else ""
        function = sides.get(side, "btrim")
        if side in sides:
            self.at += 1
        characters: tuple[Expression, ...] = ()
        if not self.take("FROM"):
            first = self.expression()
            if not self.take("FROM"):
                if self.take_symbol(","):
                    characters = (self.expression(),)
                self.expect_symbol(")")
                return Call(function, (first, *characters), at=token.start)
            characters = (first,)
        text = self.expression()
        self.expect_symbol(")")
        return Call(function, (text, *characters), at=token.start)

    def starts_query(self, ahead: int) -> bool:
        """Whether a query begins `ahead` tokens on, perhaps inside further parentheses."""
        at = self.at + ahead
        while self.tokens[at].kind == "symbol" and self.tokens[at].value == "(":
            at += 1
        token = self.tokens[at]
        return token.kind == "word" and token.value in ("SELECT", "VALUES", "WITH")

    def is_query_in_parentheses(self) -> bool:
        """Whether these parentheses hold a query, and no expression that begins with one: ((SELECT …) + 1)."""
        if not self.starts_query(1):
            return False
        depth, at = 0, self.at
        if self.tokens[at + 1].kind == "word":
            return True
        while True:  # to the end of the second parentheses
            at += 1
            token = self.tokens[at]
            if token.kind == "end":
                return True
            if token.kind == "symbol" and token.value in "()":
                depth += 1 if token.value == "(" else -1
                if depth == 0:
                    break
        following = self.tokens[at + 1]
        return following.kind == "word" and following.value in (
            "UNION", "EXCEPT", "INTERSECT", "ORDER", "LIMIT", "OFFSET",
        )  # fmt: skip

    def parenthesized_query(self) -> Query:
        self.expect_symbol("(")
        query = self.read_query()
        self.expect_symbol(")")
        return query


def _with_sign(token: Token, operand: Expression) -> Expression:
    if isinstance(operand, Literal) and type(operand.value) in (int, float) and token.value == "-":
        return Literal(-operand.value, at=token.start)  # type: ignore[operator]  # a number
    return Unary(token.value, operand, at=token.start)
