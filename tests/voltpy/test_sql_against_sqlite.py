"""Random schemas, rows and queries: the engine, the same rows divided over engines, and SQLite give one answer.

The engines have indexes, of all kinds. They are asked for what is committed, and for what a transaction has changed.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, note, settings

from tests.voltpy.sql_queries import Case, cases, looked_up_cases
from tests.voltpy.sql_split import MEMORY_BYTES, Parts, in_some_order
from voltpy import procedure
from voltpy.sql import search
from voltpy.sql.ddl import parse_schema
from voltpy.testing import Engine

EXAMPLES = int(os.environ.get("VOLTPY_EXAMPLES", "100"))


def sqlite_with(case: Case) -> sqlite3.Connection:
    database = sqlite3.connect(":memory:")
    database.execute("PRAGMA case_sensitive_like = ON")
    for statement in case.schema.split(";"):
        if statement.strip().startswith("CREATE"):
            database.execute(statement.replace("FLOAT", "REAL").replace("STRING", "TEXT"))
    for table, rows in case.rows.items():
        database.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * 6)})", rows)
    return database


def compared(rows: Any, query: str) -> list[tuple[Any, ...]]:
    """Rows in an order that says the same wherever the query does not say one."""
    rows = list(rows)
    plain = in_some_order(rows)
    if "ORDER BY" in query:
        return [in_some_order([row])[0] for row in rows]
    return plain


def check(case: Case) -> None:
    database = sqlite_with(case)
    parts = Parts(parse_schema(case.schema + case.indexes), 2)
    note(case.schema + case.indexes)
    unsettled = Engine(parts.schema, [procedure(everywhere=True)(changed_and_asked)], memory_bytes=MEMORY_BYTES)
    for table, rows in case.rows.items():
        parts.insert(table, rows)
        insert(unsettled, table, [*rows[: case.settled], *((*row[:-1], "junk") for row in rows[case.settled :])])
    answers = unsettled.call_everywhere("changed_and_asked", case.rows, case.settled, case.queries)[0]
    unsettled.check()
    for query, answer in zip(case.queries, answers, strict=True):
        note(query)
        expected = compared(database.execute(query.replace("FLOAT", "REAL")), query)
        found = parts.whole.execute(query).rows
        assert compared(found, query) == expected
        assert compared(parts.select(query), query) == expected
        assert compared(answer, query) == expected


def insert(on: Any, table: str, rows: Sequence[Sequence[Any]]) -> None:
    if rows:
        values = ", ".join(f"({', '.join('?' * len(row))})" for row in rows)
        on.execute(f"INSERT INTO {table} VALUES {values}", [value for row in rows for value in row])


def changed_and_asked(tx: Any, tables: dict[str, list[Any]], settled: int, queries: list[str]) -> list[Any]:
    """What the queries answer in the transaction in which rows come to be what they are."""
    for table, rows in tables.items():
        tx.execute(f"DELETE FROM {table} WHERE u = 'junk'")
        insert(tx, table, rows[settled:])
    return [tx.execute(query).rows for query in queries]


@pytest.fixture
def few_rows_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that indexes are combined for the few rows that there are."""
    monkeypatch.setattr(search, "FEW_ROWS", 1)
    monkeypatch.setattr(search, "SCANNED_SHARE", 2.0)


@settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True,
    phases=[Phase.reuse, Phase.generate, Phase.shrink],
)  # fmt: skip
@given(cases())
@pytest.mark.usefixtures("few_rows_are_many")
def test_queries_answer_as_in_sqlite_whole_and_divided(case: Case) -> None:
    check(case)


@settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True,
    phases=[Phase.reuse, Phase.generate, Phase.shrink],
)  # fmt: skip
@given(looked_up_cases())
@pytest.mark.usefixtures("few_rows_are_many")
def test_what_indexes_answer_is_as_in_sqlite(case: Case) -> None:
    check(case)
