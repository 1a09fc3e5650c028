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

Expressions are read in voltpy.sql.expression_reader. sqlglot cuts the text into tokens; the grammar is ours, as for DDL
(voltpy.sql.ddl says why): what it does not have is an error that names it, at its place. Depth and size are bounded, so
no text exhausts the stack.
"""

from __future__ import annotations

import re
from difflib import get_close_matches

from voltpy.errors import SchemaError, SqlError
from voltpy.schema import RESERVED_WORDS
from voltpy.sql.expression_reader import ExpressionReader
from voltpy.sql.syntax import (
    Assignment,
    CommonTable,
    Conflict,
    Default,
    Delete,
    Derived,
    Explain,
    Expression,
    From,
    Insert,
    Item,
    Join,
    Literal,
    OrderItem,
    Query,
    Select,
    SetOperation,
    Star,
    Statement,
    TableRef,
    Update,
    Values,
)
from voltpy.sql.token_reader import UNSUPPORTED
from voltpy.sql.tokens import Token, folded, placed, tokens_of

MAX_TEXT_BYTES = 1 << 20
CHANGING = ("CREATE", "DROP", "ALTER", "PARTITION")  # statements that are read elsewhere
MAX_TOKENS = 50_000  # so that planning is over in two seconds: nobody else's statement is planned meanwhile
MAX_COMMENTS = 1000  # sqlglot takes time by the square of how many are in each other
MAX_JOINED = 64  # tables in one FROM
MAX_ORDERED = 1000  # of ORDER BY and GROUP BY

# Words that end a name's place: none of them is an alias without AS.
_NO_ALIAS = RESERVED_WORDS | {
    "JOIN", "INNER", "LEFT", "RIGHT", "FULL", "CROSS", "NATURAL", "OUTER", "SET", "VALUES", "IS", "LIKE", "ILIKE",
    "SIMILAR", "BETWEEN", "ISNULL", "NOTNULL", "OVER", "FILTER", "TABLESAMPLE", "ESCAPE", "NOTHING", "RETURNING",
}  # fmt: skip

_EXPLAINED = ("SELECT", "INSERT", "UPDATE", "DELETE", "VALUES", "WITH")
_STATEMENTS = (*_EXPLAINED, "EXPLAIN")
_FIRST_WORD = re.compile(r"(?:\s|--[^\r\n]*|/\*(?:(?!/\*|\*/)[\s\S])*\*/)*([A-Za-z_]+)")
_ROUGH_TOKEN = re.compile(r"""'[^']*'|"[^"]*"|--[^\r\n]*|\w+|[^\w\s]""")


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
        tokens = tokens_of(text, start)
    except SchemaError as error:
        raise SqlError(str(error)) from None
    reader = _StatementReader(text, tokens)
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
        close = get_close_matches(word, (*expected, *CHANGING), 1) if len(word) <= 40 else []
        hint = UNSUPPORTED.get(word) or (f"did you mean {close[0]}?" if close else "")
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


class _StatementReader(ExpressionReader):
    """Reads one statement off the tokens, one method a rule of the grammar."""

    def __init__(self, text: str, tokens: list[Token]) -> None:
        super().__init__(text, tokens, self.query)

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
            columns = self.names()
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
            columns = self.names()
        self.expect("AS")
        if self.take("NOT"):
            self.expect("MATERIALIZED")
        else:
            self.take("MATERIALIZED")
        if self.sees_symbol("(") and not self.starts_query(1):
            self.at += 1
            raise self.error("SELECT or VALUES")
        return CommonTable(name, columns, self.parenthesized_query(), at=token.start)

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
        if self.sees_symbol("("):
            return self.parenthesized_query()
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
                using = self.names()
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
        if self.is_query_in_parentheses():
            query = self.parenthesized_query()
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
        return self.names()


def _as_query(body: Query | Select | Values | SetOperation) -> Query:
    return body if isinstance(body, Query) else Query(body, at=body.at)
