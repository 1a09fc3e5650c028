"""The text of a schema → `Schema`.

    schema     = { [ statement ] ";" }                             the last ";" may be left out
    statement  = CREATE TABLE name "(" element { "," element } ")"
               | PARTITION TABLE name ON COLUMN name
               | CREATE VIEW name AS query                               see voltpy.sql.view
               | CREATE [ UNIQUE ] INDEX name ON name [ USING ( INVERTED | HASH | BTREE ) ] names
    element    = name type { NOT NULL | NULL | DEFAULT literal | PRIMARY KEY }
               | PRIMARY KEY names
    names      = "(" name { "," name } ")"
    literal    = [ "+" | "-" ] number | string | TRUE | FALSE | NULL
    type       = INT | INTEGER | BIGINT | SMALLINT | TINYINT | INT2 | INT4 | INT8
               | FLOAT | FLOAT4 | FLOAT8 | REAL | DOUBLE [ PRECISION ]
               | STRING | TEXT | ( VARCHAR | ( CHAR | CHARACTER ) [ VARYING ] ) [ "(" number ")" ]
               | BOOL | BOOLEAN
               | DATETIME | TIMESTAMPTZ | TIMESTAMP [ ( WITH | WITHOUT ) TIME ZONE ]

sqlglot cuts the text into tokens (its PostgreSQL dialect, so comments and quotes are PostgreSQL's); the grammar above
is read here. sqlglot's own parser is not used for DDL: it takes unknown statements, unknown types and constraints that
nothing here would enforce without a word, and its errors don't say what was expected. By this grammar, anything else is
an error at its place, and nothing recurses, so no nesting of parentheses can exhaust the stack.

Every error is a SchemaError: `line L, column C: found …, expected …`, counted from 1, then the line and a caret.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from math import isfinite

from msgspec.structs import replace

from voltpy.errors import SchemaError
from voltpy.schema import (
    HIDDEN_KEY,
    INT_MAX,
    INT_MIN,
    MAX_COLUMNS,
    MAX_KEY_COLUMNS,
    MAX_TABLES,
    RESERVED_WORDS,
    Column,
    Index,
    IndexKind,
    Schema,
    Table,
    TypeName,
    Value,
    can_be_unique,
    name_problem,
    table_name_problem,
    utc,
)
from voltpy.sql.tokens import A_TYPE, TYPES, Token, error_at, folded, found_as, tokens_of

MAX_TEXT_BYTES = 1 << 20

_WITH_LENGTH = ("VARCHAR", "CHAR", "CHARACTER")
_A_STATEMENT = "CREATE TABLE, CREATE INDEX, CREATE VIEW or PARTITION TABLE"
_REAL = r"[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?"
_AFTER_A_TYPE = '",", ")", NOT NULL, NULL, DEFAULT or PRIMARY KEY'
_COLUMN_ENDS = (",", ")", ";")
_A_LITERAL = "a literal (a number, a 'string', TRUE, FALSE or NULL)"
_FITTING: dict[TypeName, str] = {
    "INT": "a whole number of 64 bits, for a column of type INT",
    "FLOAT": "a number, for a column of type FLOAT",
    "STRING": "a 'string', for a column of type STRING",
    "BOOL": "TRUE or FALSE, for a column of type BOOL",
    "TIMESTAMP": "an ISO 8601 string such as '2024-05-17T08:30:00Z', for a column of type TIMESTAMP",
}

# What people bring from other databases, answered by name where the grammar stops at it.
_UNSUPPORTED = {
    "CHECK": "CHECK is not supported: check values in the procedure",
    "UNIQUE": "UNIQUE has its own statement: CREATE UNIQUE INDEX … ON … (…);",
    "REFERENCES": "REFERENCES is not supported: look the other row up in the procedure",
    "FOREIGN": "FOREIGN KEY is not supported: look the other row up in the procedure",
    "CONSTRAINT": "named constraints are not supported: write PRIMARY KEY without CONSTRAINT",
    "GENERATED": "GENERATED columns are not supported",
    "IDENTITY": "IDENTITY columns are not supported: tx.unique_id() makes numbers",
    "AUTO_INCREMENT": "AUTO_INCREMENT is not supported: tx.unique_id() makes numbers",
    "AUTOINCREMENT": "AUTOINCREMENT is not supported: tx.unique_id() makes numbers",
    "COLLATE": "COLLATE is not supported",
    "IF NOT": "IF NOT EXISTS is not supported: a schema names each table and index once",
    "OR REPLACE": "OR REPLACE is not supported",
    "CASCADE": "CASCADE is not supported: a table's indexes go with it; drop its views first",
    "TEMP": "temporary tables are not supported",
    "TEMPORARY": "temporary tables are not supported",
    "UNLOGGED": "UNLOGGED is not supported",
    "MATERIALIZED": "write CREATE VIEW: every view is kept up to date",
    "AS": "CREATE TABLE AS is not supported",
    "INHERITS": "INHERITS is not supported",
    "WITH": "WITH is not supported here",
    "PARTITION BY": "partitioning has its own statement: PARTITION TABLE … ON COLUMN …;",
    "CONCURRENTLY": "CONCURRENTLY is not supported",
    "INCLUDE": "INCLUDE is not supported",
    "WHERE": "partial indexes are not supported",
    "ASC": "ASC is not supported: an index has no direction",
    "DESC": "DESC is not supported: an index has no direction",
    "NULLS": "NULLS FIRST and NULLS LAST are not supported",
    "ALTER": "a schema file says what there is: ALTER is a statement for a running cluster (voltpy sql, db.execute)",
    "DROP": "a schema file says what there is: DROP is a statement for a running cluster (voltpy sql, db.execute)",
    "INSERT": "a schema holds no rows: load them afterwards",
    "DECIMAL": "DECIMAL is not supported: keep an INT of the smallest unit (cents), or a FLOAT",
    "NUMERIC": "NUMERIC is not supported: keep an INT of the smallest unit (cents), or a FLOAT",
    "MONEY": "MONEY is not supported: keep an INT of the smallest unit (cents)",
    "SERIAL": "SERIAL is not supported: use INT, and tx.unique_id() to make numbers",
    "BIGSERIAL": "BIGSERIAL is not supported: use INT, and tx.unique_id() to make numbers",
    "UUID": "UUID is not supported: keep a STRING",
    "DATE": "DATE is not supported: keep a TIMESTAMP or a STRING",
    "TIME": "TIME is not supported: keep a TIMESTAMP or a STRING",
    "INTERVAL": "INTERVAL is not supported: keep an INT of seconds",
    "JSON": "JSON is not supported: keep a STRING",
    "JSONB": "JSONB is not supported: keep a STRING",
    "BYTEA": "BYTEA is not supported: keep a STRING",
    "BLOB": "BLOB is not supported: keep a STRING",
    "CURRENT_TIMESTAMP": "a default is a literal: use tx.now() in the procedure",
    "NOW": "a default is a literal: use tx.now() in the procedure",
    ".": "names qualified by a schema are not supported",
    "[": "arrays are not supported",
}


def parse_schema(text: str) -> Schema:
    """The schema that the text creates. Raises SchemaError with line, column, and what was found and expected there."""
    text = text.removeprefix("\ufeff")
    check_text(text, "a schema", MAX_TEXT_BYTES)
    return SchemaReader(text).schema()


def check_text(text: str, what: str, most: int) -> None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise error_at(text, error.start, "half a surrogate pair", "text that UTF-8 can write") from None
    if size > most:
        raise error_at(text, 0, f"{what} of {size:,} bytes", f"at most {most:,}")


# -- The grammar


@dataclass(slots=True)
class ColumnDraft:
    """A column while its clauses are read. `not_null` None: neither NOT NULL nor NULL stands there."""

    token: Token
    name: str
    type: TypeName
    not_null: bool | None = None
    has_default: bool = False
    default: Value = None
    default_token: Token | None = None
    null_token: Token | None = None

    def finished(self) -> Column:
        # DEFAULT NULL on a nullable column says nothing.
        return Column(
            self.name, self.type, not self.not_null, self.has_default and self.default is not None, self.default
        )


class SchemaReader:
    """Reads statements off the tokens, one method a rule of the grammar. voltpy.sql.ddl_change has more of them."""

    a_statement = _A_STATEMENT

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = tokens_of(text)
        self.at = 0
        self.tables: dict[str, Table] = {}
        self.indexes: dict[str, Index] = {}

    def schema(self) -> Schema:
        while self.peek().kind != "end":
            if self.take_symbol(";"):
                continue
            self.statement()
            if self.peek().kind != "end" and not self.take_symbol(";"):
                raise self.error('";" after the statement')
        if not self.tables:
            raise self.error("CREATE TABLE: a schema has at least one table")
        return Schema(tuple(self.tables.values()), tuple(self.indexes.values()))

    def statement(self) -> None:
        if self.take_words("CREATE", "TABLE"):
            self.create_table()
        elif self.take_words("CREATE", "INDEX"):
            self.create_index(unique=False)
        elif self.take_words("CREATE", "UNIQUE"):
            self.expect_words("INDEX")
            self.create_index(unique=True)
        elif self.take_words("CREATE", "VIEW"):
            self.create_view()
        elif self.take_words("PARTITION", "TABLE"):
            self.partition_table()
        elif self.take_words("CREATE"):
            raise self.error("TABLE, INDEX or VIEW")
        elif self.take_words("PARTITION"):
            raise self.error("TABLE")
        else:
            raise self.error(self.a_statement)

    # CREATE TABLE

    def create_table(self) -> None:
        may_exist = self.may_exist()
        name = self.new_table_name("a table", may_exist=may_exist)
        columns, key = self.table_elements()
        if name in self.tables:
            return
        self.tables[name] = _table(name, columns, key) if key else self.hidden_key_table(name, columns)

    def new_table_name(self, what: str, *, may_exist: bool = False) -> str:
        name_token = self.peek()
        name = self.name(f"the name of {what}")
        problem = table_name_problem(name)
        if problem is not None:
            raise self.error(f"another name for {what}: this is {problem}", name_token)
        if name in self.tables and not may_exist:
            there = "table" if self.tables[name].view is None else "view"
            raise self.error(f"a new name: {there} {name} exists already", name_token)
        if len(self.tables) == MAX_TABLES:
            raise self.error(f"at most {MAX_TABLES} tables", name_token)
        return name

    # CREATE VIEW

    def create_view(self) -> None:
        from voltpy.sql.view import view_of  # it reads statements, which takes 30 ms to load

        may_exist = self.may_exist()
        name = self.new_table_name("a view", may_exist=may_exist)
        self.expect_words("AS")
        first = self.at
        if not self.tables:
            raise self.error("a table that the view is over, above it")
        if self.peek().value != "SELECT":
            raise self.error("SELECT")
        while self.peek().kind != "end" and not (self.peek().kind == "symbol" and self.peek().value == ";"):
            self.at += 1
        known = Schema(tuple(self.tables.values()), tuple(self.indexes.values()))
        view = view_of(self.text, name, self.tokens[first : self.at], known)
        if name not in self.tables:
            self.tables[name] = view

    def hidden_key_table(self, name: str, columns: dict[str, ColumnDraft]) -> Table:
        if HIDDEN_KEY in columns:
            raise self.error(
                f"another name: {HIDDEN_KEY} is the hidden key of a table without PRIMARY KEY",
                columns[HIDDEN_KEY].token,
            )
        hidden = Column(HIDDEN_KEY, "INT", nullable=False)
        return Table(
            name=name,
            columns=(*(column.finished() for column in columns.values()), hidden),
            primary_key=(HIDDEN_KEY,),
            hidden_key=True,
            partition_column=None,
        )

    def table_elements(self) -> tuple[dict[str, ColumnDraft], tuple[str, ...]]:
        """The columns by name, and the names in the primary key: none when it is not declared."""
        columns: dict[str, ColumnDraft] = {}
        key: list[Token] = []  # read after all columns, since PRIMARY KEY may stand in front of those that it names
        self.expect_symbol("(", '"(" and the columns')
        while True:
            key_token = self.peek()
            if self.take_words("PRIMARY", "KEY"):
                self.refuse_second_key(key, key_token)
                key = self.name_tokens("the name of a column")
            else:
                column = self.column(columns, key)
                columns[column.name] = column
            if self.take_symbol(")"):
                break
            self.expect_symbol(",", '"," or ")"')
        if not columns:
            raise self.error("a column: a table has at least one", self.tokens[self.at - 1])
        return columns, self.key_names(columns, key)

    def column(self, columns: dict[str, ColumnDraft], key: list[Token]) -> ColumnDraft:
        """One column with its clauses. PRIMARY KEY adds its name to `key`."""
        token = self.peek()
        name = self.name("the name of a column, or PRIMARY KEY")
        if name in columns:
            raise self.error(f"a new name: column {name} exists already", token)
        if len(columns) == MAX_COLUMNS:
            raise self.error(f"at most {MAX_COLUMNS} columns", token)
        self.refuse_bad_name(name, token, "a column")
        column = ColumnDraft(token, name, self.column_type())
        while self.peek().kind != "end" and (self.peek().value not in _COLUMN_ENDS or self.peek().kind != "symbol"):
            self.column_clause(column, key)
        if column.not_null and column.has_default and column.default is None:
            raise self.error("a value, or no default: the column is NOT NULL", column.default_token)
        return column

    def column_clause(self, column: ColumnDraft, key: list[Token]) -> None:
        token = self.peek()
        if self.take_words("PRIMARY", "KEY"):
            self.refuse_second_key(key, token)
            key.append(column.token)
        elif self.take_words("NOT", "NULL") or self.take_words("NULL"):
            if column.not_null is not None:
                raise self.error("NOT NULL or NULL once for a column", token)
            column.not_null = token.value == "NOT"
            column.null_token = token
        elif self.take_words("DEFAULT"):
            if column.has_default:
                raise self.error("DEFAULT once for a column", token)
            column.default_token = self.peek()
            column.default = self.literal(column.type)
            column.has_default = True
        elif self.take_words("NOT"):
            raise self.error("NULL")
        else:
            raise self.error(_AFTER_A_TYPE)

    def column_type(self) -> TypeName:
        token = self.peek()
        type_name = TYPES.get(token.value) if token.kind == "word" else None
        if type_name is None:
            raise self.error(A_TYPE)
        self.at += 1
        if token.value == "DOUBLE":
            self.take_words("PRECISION")
        if token.value in ("CHAR", "CHARACTER"):
            self.take_words("VARYING")
        if token.value in _WITH_LENGTH and self.take_symbol("("):
            length = self.peek()
            if length.kind != "number" or not re.fullmatch("0*[1-9][0-9]*", length.value):
                raise self.error("a number of characters")
            self.at += 1
            self.expect_symbol(")", '")"')
        if token.value == "TIMESTAMP" and (self.take_words("WITH") or self.take_words("WITHOUT")):
            self.expect_words("TIME", "ZONE")
        return type_name

    def literal(self, type_name: TypeName) -> Value:
        """A literal that fits a column of this type."""
        first = self.peek()
        sign = ""
        if self.take_symbol("-") or self.take_symbol("+"):
            sign = first.value
            if self.peek().kind != "number":
                raise self.error(f'a number after "{sign}"')
        token = self.peek()
        if token.kind not in ("number", "string") and token.value not in ("TRUE", "FALSE", "NULL"):
            raise self.error(_A_LITERAL)
        self.at += 1
        if token.kind == "word" and token.value == "NULL":
            return None
        value = _value(type_name, token, sign)
        if value is None:
            raise self.error(_FITTING[type_name], first)
        return value

    def refuse_second_key(self, key: list[Token], token: Token) -> None:
        if key:
            raise self.error("one PRIMARY KEY: for several columns write PRIMARY KEY (a, b) after them", token)

    def key_names(self, columns: dict[str, ColumnDraft], key: list[Token]) -> tuple[str, ...]:
        """The names in the primary key, whose columns become NOT NULL."""
        for token in key:
            name = folded(self.text, token)
            column = columns.get(name)
            if column is None:
                raise self.error(f"a column of the table ({some_of(columns)})", token)
            if column.not_null is False:
                raise self.error("NOT NULL: the column is in the primary key", column.null_token)
            if column.has_default and column.default is None:
                raise self.error("a value, or no default: the column is in the primary key", column.default_token)
            column.not_null = True
        return tuple(folded(self.text, token) for token in key)

    # PARTITION TABLE

    def partition_table(self) -> None:
        table_token = self.peek()
        table = self.existing_table()
        if table.view is not None:
            raise self.error(f"a table: {table.name} is a view, and lives where its rows' groups do", table_token)
        self.refuse_views_over(table.name, table_token)
        if table.partition_column is not None:
            raise self.error(f"another table: {table.name} is partitioned on {table.partition_column}", table_token)
        self.expect_words("ON", "COLUMN")
        token = self.peek()
        column = self.existing_column(table)
        if not table.hidden_key and column.name not in table.primary_key:
            raise self.error(f"a column of the primary key ({', '.join(table.primary_key)})", token)
        if column.nullable:
            raise self.error("a column that is NOT NULL", token)
        if column.type not in ("INT", "STRING"):
            raise self.error(f"a column of type INT or STRING, not {column.type}", token)
        partitioned = replace(table, partition_column=column.name)
        for index in self.indexes.values():
            if index.table == table.name and index.unique and not can_be_unique(partitioned, index.columns):
                raise self.error(f"a column of index {index.name}, which is unique", token)
        self.tables[table.name] = partitioned

    def refuse_views_over(self, table: str, token: Token) -> None:
        for other in self.tables.values():
            if other.view is not None and other.view.base == table:
                raise self.error(f"a table without views: view {other.name} is over {table}", token)

    # CREATE INDEX

    def create_index(self, *, unique: bool) -> None:
        may_exist = self.may_exist()
        name_token = self.peek()
        name = self.name("the name of an index")
        self.refuse_bad_name(name, name_token, "an index")
        if name in self.indexes and not may_exist:
            raise self.error(f"a new name: index {name} exists already", name_token)
        self.expect_words("ON")
        table_token = self.peek()
        table = self.existing_table()
        if table.view is not None:
            raise self.error(f"a table: {table.name} is a view, which has its key alone", table_token)
        kind: IndexKind = "INVERTED"
        if self.take_words("USING"):
            kind = self.index_kind()
        tokens = self.name_tokens("the name of a column", opening='"(" and the columns of the index')
        columns = tuple(self.column_of(table, token).name for token in tokens)
        if unique and not can_be_unique(table, columns):
            raise self.error(
                f"{table.partition_column} among the columns: rows that are equal must be in one partition. What is to"
                " be unique in all of them is the primary key of another table, with a row for each value",
                tokens[0],
            )
        if name not in self.indexes:
            self.indexes[name] = Index(name, table.name, kind, columns, unique)

    def index_kind(self) -> IndexKind:
        kinds: tuple[IndexKind, ...] = ("INVERTED", "HASH", "BTREE")
        for kind in kinds:
            if self.take_words(kind):
                return kind
        raise self.error("INVERTED, HASH or BTREE")

    def may_exist(self) -> bool:
        """Whether the next name may be taken already. A schema names each table and index once."""
        return False

    # Names

    def existing_table(self) -> Table:
        token = self.peek()
        table = self.tables.get(self.name("the name of a table"))
        if table is None:
            raise self.error(self.a_table(), token)
        return table

    def a_table(self) -> str:
        return "a table created above"

    def existing_column(self, table: Table) -> Column:
        token = self.peek()
        self.name("the name of a column")
        return self.column_of(table, token)

    def column_of(self, table: Table, token: Token) -> Column:
        name = folded(self.text, token)
        if name not in table.positions or (table.hidden_key and name == HIDDEN_KEY):
            raise self.error(f"a column of table {table.name} ({some_of(table.positions)})", token)
        return table.column(name)

    def name_tokens(self, what: str, opening: str = '"("') -> list[Token]:
        """The tokens of names in parentheses, each one once."""
        tokens: list[Token] = []
        names: set[str] = set()
        self.expect_symbol("(", opening)
        while True:
            token = self.peek()
            name = self.name(what)
            if name in names:
                raise self.error(f"each column once: {name} stands here already", token)
            if len(names) == MAX_KEY_COLUMNS:
                raise self.error(f"at most {MAX_KEY_COLUMNS} columns", token)
            names.add(name)
            tokens.append(token)
            if self.take_symbol(")"):
                return tokens
            self.expect_symbol(",", '"," or ")"')

    def name(self, what: str) -> str:
        """A name as it is stored: an unquoted one in lower case."""
        token = self.peek()
        if token.kind == "name":
            self.at += 1
        elif token.kind != "word" or self.hint_of_pair():
            raise self.error(what)
        elif token.value in RESERVED_WORDS:
            raise self.error(f"{what}: {token.value} is a word of SQL, and a name only in double quotes")
        else:
            self.at += 1
        if self.peek().kind == "symbol" and self.peek().value == ".":
            raise self.error("one name")
        return folded(self.text, token)

    def refuse_bad_name(self, name: str, token: Token, of: str) -> None:
        problem = name_problem(name)
        if problem is not None:
            raise self.error(f"another name for {of}: this is {problem}", token)

    # Steps

    def peek(self) -> Token:
        return self.tokens[self.at]

    def take_words(self, *words: str) -> bool:
        """Whether these unquoted words come next; if so they are behind us."""
        following = self.tokens[self.at : self.at + len(words)]
        if tuple(token.value for token in following if token.kind == "word") != words:
            return False
        self.at += len(words)
        return True

    def expect_words(self, *words: str) -> None:
        for word in words:
            if not self.take_words(word):
                raise self.error(word)

    def take_symbol(self, symbol: str) -> bool:
        token = self.peek()
        if token.kind != "symbol" or token.value != symbol:
            return False
        self.at += 1
        return True

    def expect_symbol(self, symbol: str, expected: str) -> None:
        if not self.take_symbol(symbol):
            raise self.error(expected)

    def error(self, expected: str, token: Token | None = None) -> SchemaError:
        """The next token is not what the grammar wants; or a `token` that it did want is wrong in its place."""
        hint = self.hint() if token is None else ""
        token = token or self.peek()
        return error_at(self.text, token.start, found_as(self.text, token), expected, hint)

    def hint(self) -> str:
        """What to say about the next token beyond its being wrong here."""
        token = self.peek()
        if token.kind not in ("word", "symbol"):
            return ""
        return self.hint_of_pair() or _UNSUPPORTED.get(token.value, "")

    def hint_of_pair(self) -> str:
        """The same for the next two tokens, where only both together mean something: PARTITION BY, IF NOT EXISTS."""
        return _UNSUPPORTED.get(" ".join(token.value for token in self.tokens[self.at : self.at + 2]), "")


def some_of(names: dict[str, ColumnDraft] | dict[str, int]) -> str:
    """A few of the names, to choose from."""
    shown = [name for name in names if name != HIDDEN_KEY][:8]
    return ", ".join(shown) + (", …" if len(names) > len(shown) + 1 else "")


def _table(name: str, columns: dict[str, ColumnDraft], key: tuple[str, ...]) -> Table:
    return Table(
        name=name,
        columns=tuple(column.finished() for column in columns.values()),
        primary_key=key,
        hidden_key=False,
        partition_column=None,
    )


def _value(type_name: TypeName, token: Token, sign: str) -> Value:
    """The value of a literal in a column of this type; None when it doesn't fit."""
    if type_name == "INT" and token.kind == "number" and re.fullmatch("[0-9]+", token.value):
        digits = token.value.lstrip("0") or "0"
        number = int(sign + digits) if len(digits) <= 19 else INT_MAX + 1  # int() refuses very long texts
        return number if INT_MIN <= number <= INT_MAX else None
    if type_name == "FLOAT" and token.kind == "number" and re.fullmatch(_REAL, token.value) and len(token.value) <= 400:
        real = float(sign + token.value)
        return real if isfinite(real) else None
    if type_name == "STRING" and token.kind == "string":
        return token.value
    if type_name == "BOOL" and token.kind == "word":
        return token.value == "TRUE"
    if type_name == "TIMESTAMP" and token.kind == "string":
        try:
            return utc(datetime.fromisoformat(token.value))
        except (ValueError, OverflowError):
            return None
    return None
