"""All tables and indexes of a script, of which a cluster can be started before the script's first statement.

    CREATE TABLE     its columns; once more after a DROP they must be the same ones
    CREATE INDEX     a BTREE index, not unique: a unique one needs the partition column, and scripts don't break them
    DROP TABLE       the table is emptied
    DROP INDEX       nothing: which rows a query finds does not depend on indexes

Each table is partitioned on the first column of its primary key. One without a primary key is partitioned on its first
INT or STRING column that all INSERTs of the script fill. Where each of them is NULL somewhere, the table gets one more
column, which INSERTs number, if no query of the script could see it; else all partitions hold copies.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from msgspec.structs import replace

from tests.sqllogictest.script import Record
from voltpy.errors import SchemaError, SqlError
from voltpy.schema import Column, Schema, Table, describe
from voltpy.sql import syntax
from voltpy.sql.ddl import parse_schema
from voltpy.sql.parse import parse_statement

CREATE_TABLE = re.compile(r"\s*CREATE\s+TABLE\s+(\w+)", re.IGNORECASE)
CREATE_INDEX = re.compile(r"\s*CREATE\s+(?:UNIQUE\s+)?INDEX\s+(\w+)\s+ON\s+(\w+)\s*\(([^)]*)\)\s*;?\s*$", re.IGNORECASE)
DROP = re.compile(r"\s*DROP\s+(TABLE|INDEX)\s+(?:IF\s+EXISTS\s+)?(\w+)", re.IGNORECASE)
_INSERT = re.compile(r"\s*INSERT\b", re.IGNORECASE)
_INSERT_NAMED = re.compile(
    r"\s*INSERT\s+INTO\s+(\w+)\s*\(([^()]*)\)\s*VALUES\s*\((.*)\)\s*;?\s*$", re.IGNORECASE | re.DOTALL
)
_STAR = re.compile(r"(SELECT|,|DISTINCT|ALL)\s+\*|\.\*", re.IGNORECASE)
SPREAD = "spread_by"  # the column that only numbers rows


def index_columns(written: str) -> str:
    """`a DESC, b` → `a, b`: an index is read in both directions."""
    return ", ".join(column.split()[0] for column in written.split(","))


class Definitions:
    def __init__(self, records: Iterable[Record]) -> None:
        """Raises SchemaError where a table comes back with other columns."""
        self.tables: dict[str, Table] = {}
        self._indexes: dict[tuple[str, str], str] = {}  # (table, columns) → its name
        self._named: dict[str, list[bool]] = {}  # of each INSERT, whether it can be rewritten
        self._nullable: set[tuple[str, str]] = set()  # columns that may be NULL in some row
        self._seen_whole = False  # whether a query asks for all columns of something
        self._numbered = 0
        for record in records:
            self._read(record.sql)
        self._spread = {
            table.name for table in self.tables.values()
            if not self._seen_whole and self._by_own_column(table) is None
            and all(position_named for position_named in self._named.get(table.name, [False]))
        }  # fmt: skip

    def rewritten(self, sql: str) -> str:
        """A statement as the cluster's tables want it."""
        found = _INSERT_NAMED.match(sql) if self._spread else None
        if found is None or found[1].lower() not in self._spread:
            return sql
        self._numbered += 1
        return f"INSERT INTO {found[1]} ({SPREAD}, {found[2]}) VALUES ({self._numbered}, {found[3]})"

    def schema(self) -> str:
        tables = tuple(self._partitioned(table) for table in self.tables.values())
        text = describe(Schema(tables, ()))
        for number, (table, columns) in enumerate(self._indexes):
            if table in self.tables:
                text += f"CREATE INDEX script_index_{number} ON {table} USING BTREE ({columns});\n"
        return text or "CREATE TABLE nothing_yet (a INT);"

    def copies(self) -> list[str]:
        """The tables that are not partitioned."""
        return [table.name for table in self.tables.values() if self._partitioned(table).partition_column is None]

    def _read(self, sql: str) -> None:
        if CREATE_TABLE.match(sql):
            try:
                table = parse_schema(sql).tables[0]
            except SchemaError:
                return  # when it is run, its record fails
            if self.tables.setdefault(table.name, table) != table:
                raise SchemaError(f"table {table.name} is created a second time, with other columns")
        elif found := CREATE_INDEX.match(sql):
            self._indexes.setdefault((found[2].lower(), index_columns(found[3].lower())), found[1])
        elif _INSERT.match(sql):
            self._read_insert(sql)
        elif _STAR.search(sql):
            self._seen_whole = True

    def _read_insert(self, sql: str) -> None:
        try:
            insert, _ = parse_statement(sql)
        except SqlError:
            return
        table = self.tables.get(insert.table.name) if isinstance(insert, syntax.Insert) else None
        if table is None or not isinstance(insert, syntax.Insert):
            return
        self._named.setdefault(table.name, []).append(_INSERT_NAMED.match(sql) is not None)
        names = [column.name for column in table.columns]
        given = [name for name, _ in insert.columns] or names
        may_be_null = set(names) - set(given)
        body = None if insert.source is None else insert.source.body
        if isinstance(body, syntax.Values):
            for row in body.rows:
                may_be_null |= {name for name, value in zip(given, row, strict=False) if not _is_given(value)}
        else:
            may_be_null |= set(names)
        self._nullable |= {(table.name, name) for name in may_be_null}

    def _partitioned(self, table: Table) -> Table:
        if table.name in self._spread:
            columns = (*table.columns[:-1], Column(SPREAD, "INT", False), table.columns[-1])
            return replace(table, columns=columns, partition_column=SPREAD)
        name = self._by_own_column(table)
        if name is None:
            return table
        columns = tuple(replace(each, nullable=False) if each.name == name else each for each in table.columns)
        return replace(table, columns=columns, partition_column=name)

    def _by_own_column(self, table: Table) -> str | None:
        names = table.primary_key if not table.hidden_key else [column.name for column in table.columns[:-1]]
        for name in names:
            filled = not (table.hidden_key and (table.name, name) in self._nullable)
            if filled and table.column(name).type in ("INT", "STRING"):
                return name
        return None


def _is_given(value: syntax.Expression) -> bool:
    return isinstance(value, syntax.Literal) and value.value is not None
