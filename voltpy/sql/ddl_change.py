"""Statements that change a schema that is in use → the schema that they make of it.

    change     = { [ statement | step ] ";" }
    statement  = as in voltpy.sql.ddl, with [ IF NOT EXISTS ] before a new name
    step       = DROP TABLE [ IF EXISTS ] name
               | DROP INDEX [ IF EXISTS ] name
               | DROP VIEW [ IF EXISTS ] name
               | ALTER TABLE name addition { "," addition }
    addition   = ADD [ COLUMN ] [ IF NOT EXISTS ] name type { NOT NULL | NULL | DEFAULT literal }

A change that fails at one statement is none at all. Errors are as in voltpy.sql.ddl.
"""

from __future__ import annotations

from voltpy.errors import SchemaError
from voltpy.schema import (
    MAX_ADDED_BYTES,
    MAX_CHANGED_BYTES,
    MAX_COLUMNS,
    MAX_TABLE_NUMBERS,
    Schema,
    added_bytes,
    addition_problem,
    to_json,
    tombstone,
    with_column,
)
from voltpy.sql.ddl import ColumnDraft, SchemaReader, check_text, some_of
from voltpy.sql.tokens import Token

MAX_CHANGE_TEXT_BYTES = 128 << 10  # a quarter of a second, in which the supervisor does nothing else


def parse_change(text: str, schema: Schema) -> tuple[Schema, str]:
    """(what the statements make of the schema, the kind of the last one: "create table", …). Raises SchemaError.

    The schema that comes back is the same object where they change nothing.
    """
    check_text(text, "a change of the schema", MAX_CHANGE_TEXT_BYTES)
    return _ChangeReader(text, schema).changed()


class _ChangeReader(SchemaReader):
    """Reads statements that change a schema."""

    a_statement = (
        "CREATE TABLE, DROP TABLE, ALTER TABLE, PARTITION TABLE, CREATE INDEX, DROP INDEX, CREATE VIEW or DROP VIEW"
    )

    def __init__(self, text: str, schema: Schema) -> None:
        super().__init__(text)
        self.before = schema
        self.tables = {table.name: table for table in schema.live}
        self.indexes = {index.name: index for index in schema.indexes}
        self.numbers = dict(schema.numbers)  # of the tables that were there before, and still are
        self.kind = ""

    def changed(self) -> tuple[Schema, str]:
        while self.peek().kind != "end":
            if self.take_symbol(";"):
                continue
            words = " ".join(token.value.lower() for token in self.tokens[self.at : self.at + 2])
            self.statement()
            self.kind = "create index" if words == "create unique" else words
            if self.peek().kind != "end" and not self.take_symbol(";"):
                raise self.error('";" after the statement')
        if not self.kind:
            raise self.error(self.a_statement)
        kept = {number: name for name, number in self.numbers.items()}
        tables = [
            self.tables[kept[number]] if number in kept else tombstone(table)
            for number, table in enumerate(self.before.tables)
        ]
        tables += [table for name, table in self.tables.items() if name not in self.numbers]
        schema = Schema(tuple(tables), tuple(self.indexes.values()), catalog_version=self.before.catalog_version)
        if len(tables) > MAX_TABLE_NUMBERS:
            raise SchemaError(
                f"there have been {MAX_TABLE_NUMBERS:,} tables, the dropped ones counted, and there can't be more"
            )
        if schema == self.before:
            return self.before, self.kind
        size = len(to_json(schema))
        if size > MAX_CHANGED_BYTES:
            raise SchemaError(
                f"the schema would take {size:,} bytes; the limit for statements is {MAX_CHANGED_BYTES:,}"
            )
        return schema, self.kind

    def statement(self) -> None:
        if self.take_words("DROP", "TABLE"):
            self.drop_table()
        elif self.take_words("DROP", "INDEX"):
            self.drop_index()
        elif self.take_words("DROP", "VIEW"):
            self.drop_view()
        elif self.take_words("DROP"):
            raise self.error("TABLE, INDEX or VIEW")
        elif self.take_words("ALTER"):
            self.expect_words("TABLE")
            self.alter_table()
        else:
            super().statement()

    def partition_table(self) -> None:
        """Of a table that is partitioned so already: nothing, as a statement that is sent again may be it."""
        at = self.at
        table = self.existing_table()
        if table.view is None and table.partition_column is not None:
            self.expect_words("ON", "COLUMN")
            if self.existing_column(table).name == table.partition_column:
                return
        self.at = at
        super().partition_table()

    def drop_table(self) -> None:
        may_be_missing = self.may_be_missing()
        token = self.peek()
        name = self.name("the name of a table")
        if name not in self.tables:
            if may_be_missing:
                return
            raise self.error(self.a_table(), token)
        if self.tables[name].view is not None:
            raise self.error(f"a table: {name} is a view, and goes with DROP VIEW", token)
        self.refuse_views_over(name, token)
        del self.tables[name]
        self.numbers.pop(name, None)
        self.indexes = {of: index for of, index in self.indexes.items() if index.table != name}

    def drop_index(self) -> None:
        may_be_missing = self.may_be_missing()
        token = self.peek()
        name = self.name("the name of an index")
        if self.indexes.pop(name, None) is None and not may_be_missing:
            names = ", ".join(list(self.indexes)[:8])
            raise self.error(f"the name of an index ({names or 'there is none'})", token)

    def drop_view(self) -> None:
        may_be_missing = self.may_be_missing()
        token = self.peek()
        name = self.name("the name of a view")
        if name in self.tables and self.tables[name].view is not None:
            del self.tables[name]
            self.numbers.pop(name, None)
        elif name in self.tables:
            raise self.error(f"a view: {name} is a table", token)
        elif not may_be_missing:
            views = {view: 0 for view, table in self.tables.items() if table.view is not None}
            raise self.error(f"the name of a view ({some_of(views) or 'there is none'})", token)

    def alter_table(self) -> None:
        token = self.peek()
        table = self.existing_table()
        if table.view is not None:
            raise self.error(f"a table: {table.name} is a view of {table.view.base}", token)
        while True:
            if not self.take_words("ADD"):
                raise self.error("ADD: ALTER TABLE adds columns, and does nothing else", self.peek())
            self.take_words("COLUMN")
            may_exist = self.may_exist()
            token = self.peek()
            key: list[Token] = []
            known: dict[str, ColumnDraft] = {}
            draft = self.column(known, key)
            if key:
                raise self.error("a column that is no part of the primary key", token)
            column = draft.finished()
            problem = addition_problem(column)
            if problem is not None:
                raise self.error("a column that is nullable, or has a DEFAULT, which old rows get", token)
            if column.name in table.positions:
                if not may_exist:
                    raise self.error(f"a new name: column {column.name} exists already", token)
            elif len(table.declared) == MAX_COLUMNS:
                raise self.error(f"at most {MAX_COLUMNS} columns", token)
            else:
                table = self.tables[table.name] = with_column(table, column)
                if isinstance(column.default, str) and added_bytes(table) > MAX_ADDED_BYTES:
                    raise self.error(
                        f"at most {MAX_ADDED_BYTES:,} bytes of defaults in added columns, which old rows get", token
                    )
            if not self.take_symbol(","):
                return

    def may_exist(self) -> bool:
        if not self.take_words("IF"):
            return False
        self.expect_words("NOT", "EXISTS")
        return True

    def may_be_missing(self) -> bool:
        if not self.take_words("IF"):
            return False
        self.expect_words("EXISTS")
        return True

    def a_table(self) -> str:
        return f"a table ({some_of(dict.fromkeys(self.tables, 0)) or 'there is none'})"

    def hint_of_pair(self) -> str:
        return "" if self.peek().value == "IF" else super().hint_of_pair()
