"""The catalog's tables: db_tables, db_columns, db_indexes. They are made when they are read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from voltpy.schema import Schema, Table
from voltpy.sql.bound import Field

CATALOG: dict[str, list[Field]] = {
    "db_tables": [
        Field("table_id", "INT", False),
        Field("table_name", "STRING", False),
        Field("column_count", "INT", False),
        Field("row_count", "INT", False),
        Field("pk_column_idx", "INT", True),
        Field("created_at", "TIMESTAMP", True),
        Field("view_of", "STRING", True),
    ],
    "db_columns": [
        Field("table_id", "INT", False),
        Field("table_name", "STRING", False),
        Field("column_idx", "INT", False),
        Field("column_name", "STRING", False),
        Field("column_type", "STRING", False),
        Field("is_indexed", "BOOL", False),
        Field("is_nullable", "BOOL", False),
        Field("key_position", "INT", True),
        Field("is_partition_column", "BOOL", False),
    ],
    "db_indexes": [
        Field("table_id", "INT", False),
        Field("table_name", "STRING", False),
        Field("index_id", "INT", False),
        Field("index_name", "STRING", False),
        Field("index_type", "STRING", False),
        Field("columns", "STRING", False),
        Field("entry_count", "INT", False),
        Field("is_unique", "BOOL", False),
    ],
}


def catalog_rows(name: str, schema: Schema, tables: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """The rows of one of them. `tables` by name: what `tx` has. Counts are this partition's."""
    make = {"db_tables": _tables, "db_columns": _columns, "db_indexes": _indexes}[name]
    return make(schema, tables)


def catalog_merged(name: str, schema: Schema, rows: Iterable[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """One catalog table out of the rows that all partitions have of it: counts of partitioned tables add up."""
    counted = [position for position, field in enumerate(CATALOG[name]) if field.name in ("row_count", "entry_count")]
    identity = 0 if name == "db_tables" else 2
    merged: dict[tuple[Any, ...], list[Any]] = {}
    for row in rows:
        key = (row[0], row[identity])
        known = merged.get(key)
        if known is None:
            merged[key] = list(row)
        elif schema.tables[row[0]].partition_column is not None:
            for position in counted:
                known[position] += row[position]
    return [tuple(row) for row in merged.values()]


def _tables(schema: Schema, tables: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """A hidden key is no column that anybody declared, so there its index is NULL.

    Of a view that partitions have parts of, each counts its own.
    """
    return [
        (
            number, table.name, len(table.declared), _row_count(tables[table.name]), _first_key(table), None,
            None if table.view is None else table.view.base,
        )
        for number, table in enumerate(schema.tables)
        if not table.dropped
    ]  # fmt: skip


def _columns(schema: Schema, tables: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """`key_position`: where the column stands in the primary key, from 0."""
    rows: list[tuple[Any, ...]] = []
    for number, table in enumerate(schema.tables):
        if table.dropped:
            continue
        indexed = {column for index in schema.indexes_of(table.name) for column in index.columns}
        indexed.update(table.primary_key)
        hidden = len(table.primary_key) - len(table.view.keys) if table.view is not None else 0  # of its key
        rows += [
            (
                number, table.name, position, column.name, column.type, column.name in indexed, column.nullable,
                table.primary_key.index(column.name) - hidden if column.name in table.primary_key else None,
                column.name == table.partition_column,
            )
            for position, column in enumerate(table.declared)
        ]  # fmt: skip
    return rows


def _indexes(schema: Schema, tables: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """Every row has its entry in each of its table's indexes."""
    return [
        (
            schema.numbers[index.table], index.table, number, index.name, index.kind, ", ".join(index.columns),
            _row_count(tables[index.table]), index.unique,
        )
        for number, index in enumerate(schema.indexes)
    ]  # fmt: skip


def _first_key(table: Table) -> int | None:
    """Where its first column that was declared is among those."""
    declared = table.declared_positions
    return next((declared.index(position) for position in table.key_positions if position in declared), None)


def _row_count(table: Any) -> int:
    """The coordinator lets no procedure count a view, but the catalog."""
    count: int = getattr(table, "catalog_count", table.count)()
    return count
