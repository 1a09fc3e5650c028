"""Going through the tokens of a statement, one by one: what comes next, and the error where it may not.

Whatever the grammar does not have is an error that names it, at its place, and says of some what to write instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from voltpy.errors import SqlError
from voltpy.schema import RESERVED_WORDS
from voltpy.sql.tokens import Token, folded, found_as, placed

MAX_DEPTH = 40  # of parentheses, subqueries and operators in each other
MAX_CHAIN = 60  # of operators in a row, other than AND, OR and ||

T = TypeVar("T")

UNSUPPORTED = {
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
    "%": "parameters are written ?",
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
    "CALL": "procedures are called by db.call and `voltpy call`",
    "EXEC": "procedures are called by db.call and `voltpy call`",
    "EXECUTE": "procedures are called by db.call and `voltpy call`",
    "PREPARE": "every statement is prepared, by its text: write ? for what changes",
    "VACUUM": "there is nothing to clean up: the partitions do it",
    "ANALYZE": "EXPLAIN ANALYZE runs a statement; nothing need be gathered, since tables and indexes keep counts",
    "LOCK": "there are no locks: transactions run one after another",
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


class TokenReader:
    """`at` is the place of the next token, `depth` how many parentheses and subqueries are open around it."""

    def __init__(self, text: str, tokens: list[Token]) -> None:
        self.text = text
        self.tokens = tokens
        self.at = 0
        self.depth = 0

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

    def listed(self, one: Callable[[], T]) -> tuple[T, ...]:
        found = [one()]
        while self.take_symbol(","):
            found.append(one())
        return tuple(found)

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

    def names_with_places(self) -> tuple[tuple[str, int], ...]:
        """Names of columns in parentheses."""
        self.expect_symbol("(")

        def one() -> tuple[str, int]:
            token = self.peek()
            return self.name("the name of a column"), token.start

        names = self.listed(one)
        self.expect_symbol(")")
        return names

    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.names_with_places())

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

    def error(self, expected: str, token: Token | None = None) -> SqlError:
        """The next token is not what the grammar wants; or a `token` that it did want is wrong in its place."""
        hint = ""
        if token is None:
            token = self.peek()
            if token.kind in ("word", "symbol"):
                hint = UNSUPPORTED.get(token.value, "")
        message = f"found {found_as(self.text, token)}, expected {expected}{'; ' + hint if hint else ''}"
        return SqlError(placed(self.text, token.start, message))

    def unsupported(self, what: str, hint: str = "") -> SqlError:
        return self.wrong(f"{what} is not supported{': ' + hint if hint else ''}", self.peek().start)

    def wrong(self, message: str, at: int) -> SqlError:
        return SqlError(placed(self.text, at, message))
