"""Random schemas, rows and queries: the engine, the same rows divided over engines, and SQLite give one answer."""

from __future__ import annotations

import os
import sqlite3
from typing import Any

from hypothesis import HealthCheck, Phase, given, note, settings

from tests.voltpy.sql_queries import Case, cases
from tests.voltpy.sql_split import Parts, in_some_order
from voltpy.sql.ddl import parse_schema

EXAMPLES = int(os.environ.get("VOLTPY_EXAMPLES", "300"))


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
    parts = Parts(parse_schema(case.schema), 2)
    for table, rows in case.rows.items():
        parts.insert(table, rows)
    note(case.schema)
    for query in case.queries:
        note(query)
        expected = compared(database.execute(query.replace("FLOAT", "REAL")), query)
        found = parts.whole.execute(query).rows
        assert compared(found, query) == expected
        assert compared(parts.select(query), query) == expected


@settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True,
    phases=[Phase.reuse, Phase.generate, Phase.shrink],
)  # fmt: skip
@given(cases())
def test_queries_answer_as_in_sqlite_whole_and_divided(case: Case) -> None:
    check(case)
