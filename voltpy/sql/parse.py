"""The text of a statement → `voltpy.sql.syntax`.

    statement  = [ EXPLAIN [ ANALYZE ] ] ( query | insert | update | delete ) [ ";" ]
    query      = [ WITH name [ names ] AS "(" query ")" { "," … } ] set [ ORDER BY order { "," order } ]
                 [ LIMIT ( expression | ALL ) ] [ OFFSET expression [ ROW | ROWS ] ]
    set        = term { ( UNION | EXCEPT ) [ ALL | DISTINCT ] term }
    term       = simple { INTERSECT [ ALL | DISTINCT ] simple }
    simple     = SELECT [ ALL | DISTINCT ] item { "," item } [ FROM from { "," from } ] [ WHERE expression ]
                 [ GROUP BY expression { "," expression } ] [ HAVING expression ]
               | VALUES row { "," row } | "(" query ")"
    from       = source { [ INNER | LEFT [ OUTER ] | RIGHT [ OUTER ] | CROSS | NATURAL ] JOIN source
                 [ ON expression | USING names ] }
    source     = name [ [ AS ] alias [ names ] ] | "(" query ")" [ AS ] alias [ names ] | "(" from ")"
    insert     = INSERT INTO name [ AS alias ] [ names ] ( query | DEFAULT VALUES )
                 [ ON CONFLICT [ names ] DO ( NOTHING | UPDATE SET … [ WHERE expression ] ) ] [ RETURNING … ]
    update     = UPDATE name [ [ AS ] alias ] SET column "=" expression { "," … } [ WHERE … ] [ RETURNING … ]
    delete     = DELETE FROM name [ [ AS ] alias ] [ WHERE … ] [ RETURNING … ]

Operators bind as in PostgreSQL, loosest first: OR, AND, NOT, IS, comparisons, BETWEEN IN LIKE, ||, + -, * / %, ^,
signs, ::. sqlglot cuts the text into tokens; the grammar is read here, as for DDL (voltpy.sql.ddl says why): whatever
it does not have is an error that names it, at its place. Depth and size are bounded, so no text exhausts the stack.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from math import isfinite
from typing import TypeVar

from voltpy.errors import SchemaError, SqlError
from voltpy.schema import RESERVED_WORDS, TypeName
from voltpy.sql.ddl import TYPES
from voltpy.sql.syntax import (
    Assignment,
    Between,
    Binary,
    Call,
    Case,
    Cast,
    CommonTable,
    Conflict,
    Default,
    Delete,
    Derived,
    Exists,
    Explain,
    Expression,
    From,
    InList,
    InQuery,
    Insert,
    IsDistinct,
    IsTest,
    Item,
    Join,
    Like,
    Literal,
    Logic,
    Name,
    OrderItem,
    Parameter,
    Query,
    ScalarQuery,
    Select,
    SetOperation,
    Star,
    Statement,
    TableRef,
    Unary,
    Update,
    Values,
)
from voltpy.sql.tokens import Token, folded, found_as, placed, tokens_of

MAX_TEXT_BYTES = 1 << 20
MAX_DEPTH = 40  # of parentheses, subqueries and operators in each other
MAX_CHAIN = 60  # of operators in a row, other than AND, OR and ||
MAX_NUMBER = 400  # characters
MAX_PARAMETERS = 1000
MAX_TOKENS = 50_000  # so that planning is over in two seconds: nobody else's statement is planned meanwhile
MAX_COMMENTS = 1000  # sqlglot takes time by the square of how many are in each other
MAX_JOINED = 64  # tables in one FROM
MAX_ORDERED = 1000  # of ORDER BY and GROUP BY

T = TypeVar("T")

_COMPARISONS = {"=": "=", "<>": "<>", "!=": "<>", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
_SUMS, _PRODUCTS = ("+", "-"), ("*", "/", "%")
# Words that end a name's place: none of them is an alias without AS.
_NO_ALIAS = RESERVED_WORDS | {
    "JOIN", "INNER", "LEFT", "RIGHT", "FULL", "CROSS", "NATURAL", "OUTER", "SET", "VALUES", "IS", "LIKE", "ILIKE",
    "SIMILAR", "BETWEEN", "ISNULL", "NOTNULL", "OVER", "FILTER", "TABLESAMPLE", "ESCAPE", "NOTHING", "RETURNING",
}  # fmt: skip
# Words after which no name of a column or a function can stand, though they are not reserved for tables.
_NO_COLUMN = RESERVED_WORDS | {"JOIN", "INNER", "CROSS", "NATURAL", "FULL", "IS", "LIKE", "ILIKE", "BETWEEN"}

_UNSUPPORTED = {
    "OVER": "window functions are not supported",
    "WINDOW": "window functions are not supported",
    "FULL": "FULL JOIN is not supported: write a UNION of a LEFT JOIN and the rows that it lacks",
    "LATERAL": "LATERAL is not supported",
    "RECURSIVE": "WITH RECURSIVE is not supported",
    "TABLESAMPLE": "TABLESAMPLE is not supported",
    "FETCH": "FETCH is not supported: write LIMIT",
    "FOR": "FOR UPDATE is not supported: transactions run one after another",
    "SIMILAR": "SIMILAR TO is not supported: write LIKE",
    "~": "regular expressions are not supported: write LIKE",
    "INTERVAL": "INTERVAL is not supported: count in seconds with EXTRACT(EPOCH FROM …) and TO_TIMESTAMP",
    "ARRAY": "arrays are not supported",
    "[": "arrays are not supported",
    "COLLATE": "COLLATE is not supported: strings compare by code point",
    "ROW": "row values are not supported: compare column by column",
    "GROUPING": "GROUPING SETS are not supported",
    "ROLLUP": "ROLLUP is not supported",
    "CUBE": "CUBE is not supported",
    "SOME": "SOME is not supported: write IN or EXISTS",
    "ANY": "ANY is not supported: write IN or EXISTS",
    "SYMMETRIC": "BETWEEN SYMMETRIC is not supported",
    "OPERATOR": "OPERATOR() is not supported",
    "$": "parameters are written ?",
    ":": "parameters are written ?",
    "@": "parameters are written ?",
    "->": "JSON is not supported",
    "->>": "JSON is not supported",
    "MERGE": "MERGE is not supported: write INSERT … ON CONFLICT",
    "TRUNCATE": "TRUNCATE is not supported: write DELETE FROM",
    "BEGIN": "a transaction of several statements is a procedure",
    "START": "a transaction of several statements is a procedure",
    "COMMIT": "a transaction of several statements is a procedure",
    "ROLLBACK": "a transaction of several statements is a procedure",
    "SAVEPOINT": "a transaction of several statements is a procedure",
    "CREATE": "the schema is changed by statements of their own, not by those of a procedure",
    "DROP": "the schema is changed by statements of their own, not by those of a procedure",
    "ALTER": "the schema is changed by statements of their own, not by those of a procedure",
    "PARTITION": "the schema is changed by statements of their own, not by those of a procedure",
    "COPY": "COPY is not supported: load files with `voltpy load`",
    "SET": "there are no settings of a session",
    "SHOW": "SHOW is not supported: read db_tables, db_columns and db_indexes",
    "DECIMAL": "DECIMAL is not supported: count in an INT of the smallest unit, or in FLOAT",
    "NUMERIC": "NUMERIC is not supported: count in an INT of the smallest unit, or in FLOAT",
    "DATE": "DATE is not supported: cast to TIMESTAMP, or use DATE_TRUNC",
    "TIME": "TIME is not supported: cast to TIMESTAMP",
    "UUID": "UUID is not supported: keep a STRING",
    "JSON": "JSON is not supported: keep a STRING",
}
_EXPLAINED = ("SELECT", "INSERT", "UPDATE", "DELETE", "VALUES", "WITH")
_STATEMENTS = (*_EXPLAINED, "EXPLAIN")
_FIRST_WORD = re.compile(r"(?:\s|--[^\r\n]*|/\*(?:(?!/\*|\*/)[\s\S])*\*/)*([A-Za-z_]+)")
_ROUGH_TOKEN = re.compile(r"""'[^']*'|"[^"]*"|--[^\r\n]*|\w+|[^\w\s]""")
_NEGATED_TESTS = ("BETWEEN", "IN", "LIKE", "ILIKE", "SIMILAR")
_NAMED_TIMES = {"CURRENT_TIMESTAMP": "now", "LOCALTIMESTAMP": "now"}


def parse_statement(text: str) -> tuple[Statement | Explain, int]:
    """The statement, and how many parameters it has. Raises SqlError with line, column, and what was expected."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise SqlError(placed(text, error.start, "half a surrogate pair, which UTF-8 can't write")) from None
    if size > MAX_TEXT_BYTES:
        raise SqlError(f"a statement of {size:,} bytes; the limit is {MAX_TEXT_BYTES:,}")
    _check_tokens(text)
    # sqlglot takes EXPLAIN, SHOW and others as commands, and what follows as one string.
    expected: tuple[str, ...] = _STATEMENTS
    start, analyze = 0, False
    first, end = _first_word(text, 0, expected)
    is_explained = first == "EXPLAIN"
    if is_explained:
        expected, start = _EXPLAINED, end
        second, end = _first_word(text, start, ("ANALYZE", *expected))
        if second == "ANALYZE":
            start, analyze = end, True
            _first_word(text, start, expected)
    try:
        tokens = tokens_of(" " * start + text[start:])
    except SchemaError as error:
        raise SqlError(str(error)) from None
    reader = _Reader(text, tokens)
    try:
        statement = reader.whole(expected)
    except RecursionError:  # called from deep inside the user's own program
        raise SqlError("the statement is nested too deeply for the stack that is left") from None
    return Explain(statement, analyze) if is_explained else statement, reader.parameters


def _first_word(text: str, start: int, expected: tuple[str, ...]) -> tuple[str, int]:
    """The word that stands there, and where it ends; "" where there is none. Raises SqlError for any other word."""
    found = _FIRST_WORD.match(text, start)
    if found is None:
        return "", start
    word = found[1].upper()
    if word not in expected:
        hint = _UNSUPPORTED.get(word, "")
        message = f'found "{found[1][:40]}", expected {_any_of(expected)}{"; " + hint if hint else ""}'
        raise SqlError(placed(text, found.start(1), message))
    return word, found.end(1)


def _any_of(words: tuple[str, ...]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"


def _check_tokens(text: str) -> None:
    """Counts them roughly, since cutting takes long."""
    if text.count("/*") > MAX_COMMENTS:
        raise SqlError(placed(text, text.index("/*"), f"more than {MAX_COMMENTS:,} comments"))
    for number, found in enumerate(_ROUGH_TOKEN.finditer(text)):
        if number == MAX_TOKENS:
            raise SqlError(placed(text, found.start(), f"more than {MAX_TOKENS:,} words, values and signs"))


class _Reader:
    """Reads one statement off the tokens, one method a rule of the grammar."""

    def __init__(self, text: str, tokens: list[Token]) -> None:
        self.text = text
        self.tokens = tokens
        self.at = 0
        self.depth = 0
        self.parameters = 0

    # Statements

    def whole(self, expected: tuple[str, ...]) -> Statement:
        """The statement, with nothing behind it. `expected`: words that it could begin with."""
        statement = self.statement(expected)
        self.take_symbol(";")
        if self.peek().kind != "end":
            raise self.error("the end of the statement")
        return statement

    def statement(self, expected: tuple[str, ...]) -> Statement:
        tables = self.common_tables() if self.sees("WITH") else ()
        if self.sees("INSERT"):
            return self.insert(tables)
        if self.sees("UPDATE"):
            return self.update(tables)
        if self.sees("DELETE"):
            return self.delete(tables)
        if self.sees("SELECT") or self.sees("VALUES") or self.sees_symbol("("):
            return self.query(tables)
        raise self.error(_any_of(expected))

    def insert(self, tables: tuple[CommonTable, ...]) -> Insert:
        at = self.expect("INSERT").start
        self.expect("INTO")
        table = self.table_ref(alias_needs_as=True)
        columns: tuple[tuple[str, int], ...] = ()
        if self.sees_symbol("(") and not self.starts_query(1):
            columns = self.names_with_places()
        source = None
        if self.take("DEFAULT"):
            self.expect("VALUES")
        else:
            source = self.query()
        conflict = self.conflict() if self.take("ON") else None
        return Insert(table, columns, source, conflict, self.returning(), tables, at=at)

    def conflict(self) -> Conflict:
        at = self.expect("CONFLICT").start
        columns: tuple[str, ...] = ()
        if self.sees_symbol("("):
            columns = tuple(name for name, _ in self.names_with_places())
        self.expect("DO")
        if self.take("NOTHING"):
            return Conflict(columns, at=at)
        self.expect("UPDATE")
        self.expect("SET")
        if not columns:
            raise self.error("ON CONFLICT (columns) DO UPDATE: it must say of which key", self.tokens[self.at - 1])
        return Conflict(columns, self.assignments(), self.where(), at=at)

    def update(self, tables: tuple[CommonTable, ...]) -> Update:
        at = self.expect("UPDATE").start
        table = self.table_ref()
        self.expect("SET")
        assignments = self.assignments()
        if self.sees("FROM"):
            raise self.unsupported("UPDATE … FROM", "write a subquery")
        return Update(table, assignments, self.where(), self.returning(), tables, at=at)

    def delete(self, tables: tuple[CommonTable, ...]) -> Delete:
        at = self.expect("DELETE").start
        self.expect("FROM")
        table = self.table_ref()
        if self.sees("USING"):
            raise self.unsupported("DELETE … USING", "write a subquery")
        return Delete(table, self.where(), self.returning(), tables, at=at)

    def assignments(self) -> tuple[Assignment, ...]:
        return self.listed(self.assignment)

    def assignment(self) -> Assignment:
        token = self.peek()
        if self.sees_symbol("("):
            raise self.unsupported("SET (…) = …", "assign column by column")
        column = self.name("the name of a column")
        self.expect_symbol("=")
        return Assignment(column, self.value_or_default(), at=token.start)

    def value_or_default(self) -> Expression:
        token = self.peek()
        if self.take("DEFAULT"):
            return Default(at=token.start)
        return self.expression()

    def where(self) -> Expression | None:
        return self.expression() if self.take("WHERE") else None

    def returning(self) -> tuple[Item, ...]:
        return self.listed(self.item) if self.take("RETURNING") else ()

    # Queries

    def query(self, tables: tuple[CommonTable, ...] = ()) -> Query:
        at = self.peek().start
        self.enter()
        if not tables and self.sees("WITH"):
            tables = self.common_tables()
        body = self.set_operations()
        order: tuple[OrderItem, ...] = ()
        if self.take("ORDER"):
            self.expect("BY")
            order = self.listed(self.order_item)
            if len(order) > MAX_ORDERED:
                raise self.wrong(f"more than {MAX_ORDERED:,} expressions in ORDER BY", order[MAX_ORDERED].at)
        limit = offset = None
        while True:
            if limit is None and self.sees("LIMIT"):
                self.at += 1
                limit = Literal(None) if self.take("ALL") else self.expression()
            elif offset is None and self.take("OFFSET"):
                offset = self.expression()
                if not self.take("ROWS"):
                    self.take("ROW")
            else:
                break
        self.leave()
        if isinstance(body, Query):
            if not (tables or order or limit or offset):
                return body
            if body.tables or body.order or body.limit or body.offset:
                # (SELECT … ORDER BY … LIMIT …) ORDER BY …: a query of its own.
                body = Select((Item(Star(at=at), at=at),), sources=(Derived(body, "", at=at),), at=at)
            else:
                body = body.body
        return Query(body, tables, order, limit, offset, at=at)

    def common_tables(self) -> tuple[CommonTable, ...]:
        self.expect("WITH")
        if self.sees("RECURSIVE"):
            raise self.error("the name of a query")
        return self.listed(self.common_table)

    def common_table(self) -> CommonTable:
        token = self.peek()
        name = self.name("the name of a query")
        columns: tuple[str, ...] = ()
        if self.sees_symbol("("):
            columns = tuple(column for column, _ in self.names_with_places())
        self.expect("AS")
        if self.take("NOT"):
            self.expect("MATERIALIZED")
        else:
            self.take("MATERIALIZED")
        self.expect_symbol("(")
        if not self.starts_query(0):
            raise self.error("SELECT or VALUES")
        query = self.query()
        self.expect_symbol(")")
        return CommonTable(name, columns, query, at=token.start)

    def set_operations(self) -> Query | Select | Values | SetOperation:
        left: Query | Select | Values | SetOperation = self.intersections()
        chain = 0
        while self.sees("UNION") or self.sees("EXCEPT"):
            token = self.next()
            chain = self.longer(chain, token)
            kept = self.set_quantifier()
            left = SetOperation(token.value, kept, _as_query(left), _as_query(self.intersections()), at=token.start)
        return left

    def intersections(self) -> Query | Select | Values | SetOperation:
        left: Query | Select | Values | SetOperation = self.simple_query()
        chain = 0
        while self.sees("INTERSECT"):
            token = self.next()
            chain = self.longer(chain, token)
            kept = self.set_quantifier()
            left = SetOperation("INTERSECT", kept, _as_query(left), _as_query(self.simple_query()), at=token.start)
        return left

    def set_quantifier(self) -> bool:
        if self.take("ALL"):
            return True
        self.take("DISTINCT")
        return False

    def simple_query(self) -> Query | Select | Values:
        if self.sees("SELECT"):
            return self.select()
        if self.sees("VALUES"):
            return self.values()
        if self.take_symbol("("):
            query = self.query()
            self.expect_symbol(")")
            return query
        raise self.error('SELECT, VALUES or "("')

    def select(self) -> Select:
        at = self.expect("SELECT").start
        distinct = False
        if self.take("DISTINCT"):
            distinct = True
            if self.sees("ON"):
                raise self.unsupported("DISTINCT ON")
        else:
            self.take("ALL")
        items = self.listed(self.item)
        if self.sees("INTO"):
            raise self.unsupported("SELECT INTO", "write INSERT INTO … SELECT")
        sources = self.listed(self.from_item) if self.take("FROM") else ()
        where = self.where()
        keys: tuple[Expression, ...] = ()
        if self.take("GROUP"):
            self.expect("BY")
            keys = self.listed(self.expression)
            if len(keys) > MAX_ORDERED:
                raise self.wrong(f"more than {MAX_ORDERED:,} expressions in GROUP BY", keys[MAX_ORDERED].at)
        having = self.expression() if self.take("HAVING") else None
        return Select(items, distinct, sources, where, keys, having, at=at)

    def values(self) -> Values:
        at = self.expect("VALUES").start
        rows = self.listed(self.values_row)
        if len({len(row) for row in rows}) > 1:
            raise self.wrong("the rows of VALUES have different lengths", at)
        return Values(rows, at=at)

    def values_row(self) -> tuple[Expression, ...]:
        self.expect_symbol("(")
        row = self.listed(self.value_or_default)
        self.expect_symbol(")")
        return row

    def item(self) -> Item:
        token = self.peek()
        if self.take_symbol("*"):
            return Item(Star(at=token.start), at=token.start)
        following = self.tokens[self.at + 1 : self.at + 3]
        if token.kind in ("word", "name") and [each.value for each in following] == [".", "*"]:
            table = self.name("the name of a table")
            self.at += 2
            return Item(Star(table, at=token.start), at=token.start)
        expression = self.expression()
        return Item(expression, self.alias(any_word_after_as=True), at=token.start)

    def order_item(self) -> OrderItem:
        token = self.peek()
        expression = self.expression()
        descending = self.take("DESC")
        if not descending:
            self.take("ASC")
        nulls_first = descending
        if self.take("NULLS"):
            if not (self.sees("FIRST") or self.sees("LAST")):
                raise self.error("FIRST or LAST")
            nulls_first = self.next().value == "FIRST"
        return OrderItem(expression, descending, nulls_first, at=token.start)

    def from_item(self) -> From:
        self.enter()
        left = self.source()
        joined = 1
        while True:
            token = self.peek()
            natural = self.take("NATURAL")
            if self.take("CROSS"):
                kind = "CROSS"
            elif self.take("INNER"):
                kind = "INNER"
            elif self.sees("LEFT") or self.sees("RIGHT"):
                kind = self.next().value
                self.take("OUTER")
            elif self.sees("JOIN"):
                kind = "INNER"
            elif self.sees("FULL"):
                raise self.error("INNER, LEFT, RIGHT or CROSS JOIN")
            else:
                if natural:
                    raise self.error("JOIN")
                break
            self.expect("JOIN")
            joined += 1
            if joined > MAX_JOINED:
                raise self.wrong(f"more than {MAX_JOINED} tables in FROM", token.start)
            left = self.joined(left, kind, natural, token)
        self.leave()
        return left

    def joined(self, left: From, kind: str, natural: bool, token: Token) -> Join:
        right = self.source()
        condition: Expression | None = None
        using: tuple[str, ...] = ()
        if kind != "CROSS" and not natural:
            if self.take("ON"):
                condition = self.expression()
            elif self.take("USING"):
                using = tuple(name for name, _ in self.names_with_places())
            else:
                raise self.error("ON or USING")
        if kind == "RIGHT":
            if natural or using:
                raise self.wrong("RIGHT JOIN with USING or NATURAL is not supported: write a LEFT JOIN", token.start)
            if isinstance(left, Join):
                raise self.wrong("RIGHT JOIN behind another join is not supported: write a LEFT JOIN", token.start)
            left, right, kind = right, left, "LEFT"
        return Join(left, right, kind, condition, using, natural, at=token.start)

    def source(self) -> From:
        token = self.peek()
        if not self.sees_symbol("("):
            if self.sees("LATERAL"):
                raise self.error("a table")
            return self.table_ref()
        if (self.tokens[self.at + 1].kind == "word" and self.starts_query(1)) or self.is_query_in_parentheses():
            self.at += 1
            query = self.query()
            self.expect_symbol(")")
            alias = self.alias() or ""
            return Derived(query, alias, self.column_aliases(), at=token.start)
        self.at += 1
        inner = self.from_item()
        self.expect_symbol(")")
        if isinstance(inner, Join):
            return Join(
                inner.left, inner.right, inner.kind, inner.condition, inner.using, inner.natural, True, at=inner.at
            )
        return inner

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

    def table_ref(self, alias_needs_as: bool = False) -> TableRef:
        token = self.peek()
        name = self.name("the name of a table")
        if self.sees_symbol("."):
            raise self.unsupported("a name qualified by a schema")
        if self.sees_symbol("("):
            if not alias_needs_as:
                raise self.unsupported("a function in FROM")
            return TableRef(name, at=token.start)
        if alias_needs_as and not self.sees("AS"):
            return TableRef(name, at=token.start)
        alias = self.alias()
        return TableRef(name, alias, self.column_aliases() if alias and not alias_needs_as else (), at=token.start)

    def alias(self, any_word_after_as: bool = False) -> str | None:
        if self.take("AS"):
            token = self.peek()
            if any_word_after_as and token.kind == "word":
                self.at += 1
                return folded(self.text, token)
            return self.name("an alias")
        token = self.peek()
        if token.kind == "name" or (token.kind == "word" and token.value not in _NO_ALIAS):
            self.at += 1
            return folded(self.text, token)
        return None

    def column_aliases(self) -> tuple[str, ...]:
        if not self.sees_symbol("("):
            return ()
        return tuple(name for name, _ in self.names_with_places())

    def names_with_places(self) -> tuple[tuple[str, int], ...]:
        self.expect_symbol("(")

        def one() -> tuple[str, int]:
            token = self.peek()
            return self.name("the name of a column"), token.start

        names = self.listed(one)
        self.expect_symbol(")")
        return names

    # Expressions, loosest first

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
            self.at += 1
            query = self.query()
            self.expect_symbol(")")
            return InQuery(left, query, negated, at=token.start)
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
                self.at += 1
                query = self.query()
                self.expect_symbol(")")
                return ScalarQuery(query, at=token.start)
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
            self.expect_symbol("(")
            query = self.query()
            self.expect_symbol(")")
            return Exists(query, at=token.start)
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
            raise self.error("a type (INT, FLOAT, STRING, BOOL or TIMESTAMP)")
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

    # Names

    def name(self, what: str, any_word: bool = False) -> str:
        """A name as it is stored: an unquoted one in lower case."""
        token = self.peek()
        if token.kind == "name":
            self.at += 1
        elif token.kind != "word":
            raise self.error(what)
        elif token.value in RESERVED_WORDS and not any_word:
            raise self.error(f"{what}: {token.value} is a word of SQL, and a name only in double quotes")
        else:
            self.at += 1
        return folded(self.text, token)

    # Steps

    def listed(self, one: Callable[[], T]) -> tuple[T, ...]:
        found = [one()]
        while self.take_symbol(","):
            found.append(one())
        return tuple(found)

    def enter(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self.wrong(f"nested more than {MAX_DEPTH} deep", self.peek().start)

    def leave(self) -> None:
        self.depth -= 1

    def longer(self, length: int, token: Token) -> int:
        if length == MAX_CHAIN:
            raise self.wrong(f"more than {MAX_CHAIN} operators in a row; use parentheses", token.start)
        return length + 1

    def peek(self) -> Token:
        return self.tokens[self.at]

    def next(self) -> Token:
        self.at += 1
        return self.tokens[self.at - 1]

    def sees(self, word: str) -> bool:
        token = self.tokens[self.at]
        return token.kind == "word" and token.value == word

    def sees_symbol(self, symbol: str) -> bool:
        token = self.tokens[self.at]
        return token.kind == "symbol" and token.value == symbol

    def take(self, word: str) -> bool:
        if not self.sees(word):
            return False
        self.at += 1
        return True

    def take_symbol(self, symbol: str) -> bool:
        if not self.sees_symbol(symbol):
            return False
        self.at += 1
        return True

    def expect(self, word: str) -> Token:
        if not self.sees(word):
            raise self.error(word)
        return self.next()

    def expect_symbol(self, symbol: str) -> None:
        if not self.take_symbol(symbol):
            raise self.error(f'"{symbol}"')

    def error(self, expected: str, token: Token | None = None) -> SqlError:
        """The next token is not what the grammar wants; or a `token` that it did want is wrong in its place."""
        hint = ""
        if token is None:
            token = self.peek()
            if token.kind in ("word", "symbol"):
                hint = _UNSUPPORTED.get(token.value, "")
        message = f"found {found_as(self.text, token)}, expected {expected}{'; ' + hint if hint else ''}"
        return SqlError(placed(self.text, token.start, message))

    def unsupported(self, what: str, hint: str = "") -> SqlError:
        return self.wrong(f"{what} is not supported{': ' + hint if hint else ''}", self.peek().start)

    def wrong(self, message: str, at: int) -> SqlError:
        return SqlError(placed(self.text, at, message))


def _as_query(body: Query | Select | Values | SetOperation) -> Query:
    return body if isinstance(body, Query) else Query(body, at=body.at)


def _with_sign(token: Token, operand: Expression) -> Expression:
    if isinstance(operand, Literal) and type(operand.value) in (int, float) and token.value == "-":
        return Literal(-operand.value, at=token.start)  # type: ignore[operator]  # a number
    return Unary(token.value, operand, at=token.start)
