"""How a script's own CREATE statements are written for a cluster, so that tables are divided.

    CREATE TABLE           PARTITION TABLE … ON COLUMN behind it, and NOT NULL at that column
    CREATE UNIQUE INDEX    not unique: that would need the partition column, and scripts don't break it
    CREATE INDEX           a BTREE index; DESC goes, since it is read in both directions

A table is partitioned on the first column of its primary key. One without a primary key is partitioned on its first
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
_INSERT = re.compile(r"\s*INSERT\b", re.IGNORECASE)
_INSERT_NAMED = re.compile(
    r"\s*INSERT\s+INTO\s+(\w+)\s*\(([^()]*)\)\s*VALUES\s*\((.*)\)\s*;?\s*$", re.IGNORECASE | re.DOTALL
)
_STAR = re.compile(r"(SELECT|,|DISTINCT|ALL)\s+\*|\.\*", re.IGNORECASE)
SPREAD = "spread_by"  # the column that only numbers rows


def index_text(found: re.Match[str]) -> str:
    """The statement for a match of CREATE_INDEX."""
    columns = ", ".join(column.split()[0] for column in found[3].split(","))
    return f"CREATE INDEX {found[1]} ON {found[2]} USING BTREE ({columns})"


class Definitions:
    def __init__(self, records: Iterable[Record]) -> None:
        """Of all records of a script, before the first one is run."""
        self._tables: dict[str, Table] = {}  # as they are created last
        self._nullable: set[tuple[str, str]] = set()  # columns that may be NULL in some row
        self._unnamed: set[str] = set()  # tables with an INSERT that could not be numbered
        self._seen_whole = False  # whether a query asks for all columns of something
        self._numbered = 0
        for record in records:
            self._read(record.sql)
        self._spread = {
            table.name
            for table in self._tables.values()
            if not self._seen_whole and table.name not in self._unnamed and self._by_own_column(table) is None
        }

    def rewritten(self, sql: str) -> str:
        """A statement of the script, as the cluster gets it."""
        if CREATE_TABLE.match(sql):
            try:
                table = parse_schema(sql).tables[0]
            except SchemaError:
                return sql  # the cluster says so
            return describe(Schema((self._partitioned(table),), ()))
        if found := CREATE_INDEX.match(sql):
            return index_text(found)
        if self._spread and (insert := _INSERT_NAMED.match(sql)) and insert[1].lower() in self._spread:
            self._numbered += 1
            return f"INSERT INTO {insert[1]} ({SPREAD}, {insert[2]}) VALUES ({self._numbered}, {insert[3]})"
        return sql

    def copies(self) -> list[str]:
        """The tables that are not partitioned."""
        return [table.name for table in self._tables.values() if self._partitioned(table).partition_column is None]

    def _read(self, sql: str) -> None:
        if CREATE_TABLE.match(sql):
            try:
                table = parse_schema(sql).tables[0]
            except SchemaError:
                return
            self._tables[table.name] = table
        elif _INSERT.match(sql):
            self._read_insert(sql)
        elif _STAR.search(sql):
            self._seen_whole = True

    def _read_insert(self, sql: str) -> None:
        try:
            insert, _ = parse_statement(sql)
        except SqlError:
            return
        table = self._tables.get(insert.table.name) if isinstance(insert, syntax.Insert) else None
        if table is None or not isinstance(insert, syntax.Insert):
            return
        if _INSERT_NAMED.match(sql) is None:
            self._unnamed.add(table.name)
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
