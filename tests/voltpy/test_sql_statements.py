"""Running statements: in procedures, from a cache of plans, over indexes, and the plan in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from voltpy import procedure
from voltpy.errors import Aborted, ConstraintViolation, DataError, DuplicateKey, SqlError
from voltpy.sql.catalogue import Catalogue
from voltpy.sql.ddl import parse_schema
from voltpy.sql.planner import plan
from voltpy.sql.statements import Statements
from voltpy.testing import Engine

SCHEMA = """
CREATE TABLE accounts (id INT PRIMARY KEY, owner STRING NOT NULL, city STRING, balance INT NOT NULL DEFAULT 0);
PARTITION TABLE accounts ON COLUMN id;
CREATE TABLE branches (code STRING PRIMARY KEY, city STRING);
CREATE TABLE loose (v INT);
CREATE INDEX accounts_city ON accounts USING INVERTED (city);
CREATE INDEX accounts_owner ON accounts USING INVERTED (owner);
CREATE INDEX accounts_both ON accounts USING HASH (owner, balance);
CREATE INDEX accounts_balance ON accounts USING BTREE (city, balance);
"""


@procedure(partition_by="source")
def move(tx: Any, source: int, target: int, amount: int) -> Any:
    taken = tx.execute("UPDATE accounts SET balance = balance - ? WHERE id = ? RETURNING balance", (amount, source))
    if not taken.rows or taken.rows[0][0] < 0:
        tx.abort("not enough")
    tx.execute("UPDATE accounts SET balance = balance + ? WHERE id = ?", (amount, target))
    return tx.execute("SELECT id, balance FROM accounts ORDER BY id")


@procedure(partition_by="key")
def try_twice(tx: Any, key: int) -> Any:
    tx.execute("UPDATE accounts SET balance = 7 WHERE id = ?", (key,))
    try:
        tx.execute("INSERT INTO accounts VALUES (8, 'Liv', 'Bergen', 1), (?, 'Kari', 'Oslo', 1)", (key,))
    except DuplicateKey:
        tx.execute("INSERT INTO accounts VALUES (9, 'Liv', 'Bergen', 1)")
    return tx.execute("SELECT id, balance FROM accounts ORDER BY id").rows


@procedure(partition_by="key", read_only=True)
def write_anyway(tx: Any, key: int) -> Any:
    tx.execute("DELETE FROM accounts WHERE id = ?", (key,))


@pytest.fixture
def db(voltpy_engine: Callable[..., Engine]) -> Engine:
    engine = voltpy_engine(SCHEMA, [move, try_twice, write_anyway])
    engine.execute("INSERT INTO accounts VALUES (1, 'Kari', 'Oslo', 100), (2, 'Ola', 'Oslo', 5), (3, 'Per', NULL, 0)")
    return engine


def test_statements_in_a_procedure_are_one_transaction(db: Engine) -> None:
    assert db.call("move", 1, 2, 40)[:3] == [["id", "balance"], [[1, 60], [2, 45], [3, 0]], 3]
    with pytest.raises(Aborted, match="not enough"):
        db.call("move", 1, 2, 100)
    assert db.execute("SELECT balance FROM accounts ORDER BY id").rows == [(60,), (45,), (0,)]
    db.check()


def test_a_statement_that_fails_changes_nothing_and_the_call_goes_on(db: Engine) -> None:
    assert db.call("try_twice", 1) == [[1, 7], [2, 5], [3, 0], [9, 1]]
    db.check()


def test_errors_of_statements_reach_the_caller_as_they_are(db: Engine) -> None:
    with pytest.raises(SqlError, match="line 1, column 8: there is no column nme"):
        db.execute("SELECT nme FROM accounts")
    with pytest.raises(DataError, match="division by zero"):
        db.execute("UPDATE accounts SET balance = 1 / (balance - 5)")
    with pytest.raises(ConstraintViolation, match="owner"):
        db.execute("INSERT INTO accounts (id) VALUES (9)")
    with pytest.raises(Exception, match="read_only"):
        db.call("write_anyway", 1)
    with pytest.raises(DataError, match="values of different types meet"):
        db.execute("VALUES (?), (?) ORDER BY 1", (1, "a"))


def test_a_statement_is_planned_once_a_text() -> None:
    schema = parse_schema("CREATE TABLE a (id INT PRIMARY KEY);")
    asked = []
    catalogue = Catalogue(schema)

    def plan_of(text: str) -> Any:
        asked.append(text)
        return plan(text, catalogue)

    statements = Statements(schema, plan_of)
    tx = SimpleNamespace(a=Rows(["id"], [(1,), (2,)]))
    for _ in range(3):
        assert statements.execute(tx, "SELECT id FROM a WHERE id > ?", (1,)).rows == [(2,)]
    assert asked == ["SELECT id FROM a WHERE id > ?"]
    statements.forget()
    statements.execute(tx, "SELECT id FROM a WHERE id > ?", (1,))
    assert len(asked) == 2


def test_the_catalog_is_read_like_tables(db: Engine) -> None:
    assert db.execute("SELECT * FROM db_tables ORDER BY table_id").rows == [
        (0, "accounts", 4, 3, 0, None, None),
        (1, "branches", 2, 0, 0, None, None),
        (2, "loose", 1, 0, None, None, None),
    ]
    rows = db.execute(
        "SELECT column_idx, column_name, column_type, is_indexed, is_nullable FROM db_columns "
        "WHERE table_name = 'accounts' ORDER BY 1"
    ).rows
    assert rows == [
        (0, "id", "INT", True, False),
        (1, "owner", "STRING", True, False),
        (2, "city", "STRING", True, True),
        (3, "balance", "INT", True, False),
    ]
    rows = db.execute("SELECT index_name, index_type, entry_count FROM db_indexes ORDER BY index_id LIMIT 2").rows
    assert rows == [("accounts_city", "INVERTED", 3), ("accounts_owner", "INVERTED", 3)]
    db.execute("CREATE UNIQUE INDEX one_name ON branches (code)")
    assert db.execute("SELECT DISTINCT is_unique, table_name FROM db_indexes ORDER BY 1").rows == [
        (False, "accounts"),
        (True, "branches"),
    ]


def test_explain_says_how_rows_are_found(db: Engine) -> None:
    def explained(sql: str) -> list[str]:
        return [line for (line,) in db.execute(f"EXPLAIN {sql}").rows]

    assert explained("SELECT * FROM accounts WHERE id = ?") == [
        "Partitions: the one of key ?1",
        "Get by key (id) of accounts — 1 row estimated",
    ]
    assert explained("SELECT * FROM accounts WHERE id BETWEEN 1 AND 2 AND city = 'x'") == [
        "Partitions: all; each sends its rows",
        "Index scan of accounts using accounts_city or accounts_balance or the primary key, 3 filters"
        " — using accounts_city, 0 rows estimated",
    ]
    assert explained("SELECT count(*) FROM accounts") == [
        "Partitions: all; each sends its groups, with partial aggregates",
        "Count of all rows of accounts — 3 rows estimated",
    ]
    assert explained("SELECT a.id FROM accounts a JOIN branches b ON a.city = b.city ORDER BY 1 LIMIT 1")[1:] == [
        "Sequential scan of accounts as a — 3 rows estimated",
        "Hash join on (city) of branches as b — 0 rows estimated",
        "Sort, and keep the first rows",
    ]


class Rows:
    """A table for generated code alone, which says which of its indexes were asked for what."""

    def __init__(self, columns: list[str], rows: list[tuple[Any, ...]]) -> None:
        self.rows = [SimpleNamespace(**dict(zip(columns, row, strict=True))) for row in rows]
        self.asked: list[Any] = []

    def scan(self) -> Iterator[Any]:
        self.asked.append("scan")
        return iter(self.rows)

    def range(self, low: int, high: int) -> Iterator[Any]:
        return (row for row in self.rows if low <= row.id < high)

    def get(self, key: int) -> Any:
        return next((row for row in self.rows if row.id == key), None)


def test_joins_of_many_tables_are_flattened_into_lists(db: Engine) -> None:
    count = 30
    tables = ", ".join(f"accounts a{i}" for i in range(count))
    joins = " AND ".join(f"a{i}.balance = a{i + 1}.balance" for i in range(count - 1))
    rows = db.execute(f"SELECT a0.id, a{count - 1}.id FROM {tables} WHERE {joins} ORDER BY 1").rows
    assert rows == [(1, 1), (2, 2), (3, 3)]


def test_a_correlated_subquery_looks_rows_up_in_a_hash(db: Engine) -> None:
    db.execute("INSERT INTO branches VALUES ('a', 'Oslo'), ('b', 'Oslo'), ('c', 'Bergen')")
    sql = "SELECT id, (SELECT count(*) FROM branches b WHERE b.city = a.city) FROM accounts a ORDER BY id"
    assert db.execute(sql).rows == [(1, 2), (2, 2), (3, 0)]
    assert any("Hash join on (city) of branches" in line for (line,) in db.execute(f"EXPLAIN {sql}").rows)
