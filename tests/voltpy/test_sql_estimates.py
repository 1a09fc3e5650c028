"""EXPLAIN's estimates: exact where indexes count, averages where values are unknown, and nothing runs for them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.voltpy.sql_split import Parts
from voltpy.errors import (
    BadArguments,
    ConstraintViolation,
    DataError,
    Error,
    Indeterminate,
    ProcedureError,
    ProcedureTimeout,
    SqlError,
)
from voltpy.known_statements import KnownStatement, in_its_words
from voltpy.schema import Schema
from voltpy.sql.ddl import parse_schema
from voltpy.sql.statements import Prepared
from voltpy.testing import Engine

SCHEMA: Schema = parse_schema(
    """CREATE TABLE people (id INT PRIMARY KEY, city STRING, level INT, score FLOAT, name STRING);
    PARTITION TABLE people ON COLUMN id;
    CREATE TABLE orders (customer INT, number INT, item STRING, PRIMARY KEY (customer, number));
    PARTITION TABLE orders ON COLUMN customer;
    CREATE TABLE levels (level INT PRIMARY KEY, title STRING);
    CREATE INDEX by_city ON people USING INVERTED (city);
    CREATE INDEX by_level ON people USING INVERTED (level);
    CREATE INDEX by_score ON people USING BTREE (score);
    CREATE INDEX by_name ON people USING BTREE (name, level);
    CREATE INDEX by_customer ON orders USING HASH (customer);"""
)
ROWS = 400
SCANNED = "a sequential scan instead, 400 rows"
BY_KEY = "the primary key, 3 rows"


@pytest.fixture(scope="module")
def parts() -> Parts:
    """Both have 20 rows of each city, 75 of level 0 and 1 each, 25 of level 2 and of NULL; customers have 3 orders."""
    made = Parts(SCHEMA, 2)
    levels = [0, 1, 2, None]
    for start in range(0, ROWS, 200):
        people = []
        for key in range(start, start + 200):
            level = levels[key // 2 % 4] if key // 2 % 8 < 4 else key // 2 % 2
            people.append((key, f"c{key // 2 % 10}", level, key / 2, f"n{key:03}"))
        made.insert("people", people)
    made.insert("orders", [(customer, number, "it") for customer in range(50) for number in range(3)])
    made.insert("levels", [(level, f"level {level}") for level in range(5)])
    return made


@pytest.fixture(scope="module")
def db(parts: Parts) -> Engine:
    return parts.whole


def estimated(lines: list[tuple[Any, ...]]) -> list[str]:
    """What is said of the steps of which anything is."""
    return [line.split(" — ")[1].replace(" estimated", "").removeprefix("using ") for (line,) in lines if " — " in line]


@pytest.mark.parametrize(
    ("sql", "parameters", "here", "together"),
    [
        ("SELECT * FROM people", (), ["400 rows"], ["400 rows"]),
        ("SELECT count(*) FROM people", (), ["400 rows"], ["400 rows"]),
        ("SELECT id FROM people WHERE city = ?", ("c3",), ["by_city, 40 rows"], ["by_city, 40 rows"]),
        ("SELECT id FROM people WHERE city = ?", ("nowhere",), ["by_city, 0 rows"], ["by_city, 0 rows"]),
        ("SELECT id FROM people WHERE city = 'c' || ?", ("3",), ["by_city, 40 rows"], ["by_city, 40 rows"]),
        ("SELECT id FROM people WHERE level IS NULL", (), ["by_level, 50 rows"], ["by_level, 50 rows"]),
        ("SELECT id FROM people WHERE city IN ('c1', ?, ?)", ("c2", "c2"), ["by_city, 80 rows"], ["by_city, 80 rows"]),
        # of what several indexes answer, as many as the one with the fewest rows has
        ("SELECT id FROM people WHERE city = 'c1' AND level = 1", (), ["by_city, by_level, 40 rows"], None),
        ("SELECT count(*) FROM people WHERE city = 'c1' AND level = 1", (), ["by_city, by_level, 40 rows"], None),
        # an index that has nearly all rows isn't asked
        ("SELECT id FROM people WHERE level IN (?, 2, 0)", (1,), [SCANNED], [SCANNED]),
        ("SELECT id FROM people WHERE score > 10 AND score < 20", (), ["by_score, 19 rows"], ["by_score, 19 rows"]),
        ("SELECT id FROM people WHERE score >= 10 AND score <= 20", (), ["by_score, 21 rows"], ["by_score, 21 rows"]),
        ("SELECT id FROM people WHERE score > ?", (189.5,), ["by_score, 20 rows"], ["by_score, 20 rows"]),
        ("SELECT id FROM people WHERE name LIKE 'n12%'", (), ["by_name, 10 rows"], ["by_name, 10 rows"]),
        ("SELECT id FROM people WHERE name = 'n120'", (), ["by_name, 1 row"], ["by_name, 1 row"]),
        ("SELECT id FROM people WHERE id BETWEEN 10 AND ?", (19,), ["10 rows"], ["10 rows"]),
        # by how many keys there may be
        ("SELECT id FROM people WHERE id < 0", (), ["400 rows"], ["400 rows"]),
        ("SELECT id FROM people WHERE ? >= id", (2**63 - 1,), ["400 rows"], ["400 rows"]),
        ("SELECT id FROM people WHERE id BETWEEN 10 AND 12 AND level = 0", (), [BY_KEY], [BY_KEY]),
        ("SELECT id FROM people WHERE id > 10 AND city = 'c1'", (), ["by_city, 40 rows"], ["by_city, 40 rows"]),
        ("SELECT id FROM people ORDER BY score LIMIT 3", (), ["by_score, 3 rows"], ["by_score, 6 rows"]),
        ("SELECT id FROM people ORDER BY score LIMIT ? OFFSET 2", (3,), ["by_score, 5 rows"], ["by_score, 10 rows"]),
        (
            "SELECT 1 FROM people p JOIN levels l ON l.level = p.level",
            (),
            ["400 rows", "1 row each time"],
            ["400 rows", "1 row each time"],
        ),
        (
            "SELECT 1 FROM levels l LEFT JOIN people p ON p.level = l.level",
            (),
            ["5 rows", "by_level, 117 rows each time"],  # 350 rows of 3 levels
            ["5 rows", "400 rows"],
        ),
        (
            "SELECT 1 FROM people p JOIN orders o ON o.customer = p.id WHERE p.city = 'c1'",
            (),
            ["by_city, 40 rows", "by_customer, 3 rows each time"],
            ["by_city, 40 rows", "by_customer, 3 rows each time"],
        ),
        (
            "SELECT level FROM levels WHERE level IN (SELECT level FROM people WHERE city = 'c1')",
            (),
            ["5 rows", "by_city, 40 rows"],
            ["5 rows", "by_city, 40 rows"],
        ),
        (
            "SELECT (SELECT count(*) FROM people p WHERE p.level = l.level AND p.city = 'c1') FROM levels l",
            (),
            ["5 rows", "by_city, by_level, 40 rows each time"],
            ["5 rows", "by_city, 40 rows"],
        ),
    ],
)  # fmt: skip
def test_known_values_are_counted(
    parts: Parts, sql: str, parameters: Any, here: list[str], together: list[str] | None
) -> None:
    assert sorted(estimated(parts.whole.execute(f"EXPLAIN {sql}", parameters).rows)) == sorted(here)
    if together is not None:
        assert sorted(estimated(parts.select(f"EXPLAIN {sql}", parameters))) == sorted(together)


@pytest.mark.parametrize(
    ("sql", "here", "together"),
    [
        ("SELECT * FROM people WHERE id = ?", "1 row", "1 row"),
        ("SELECT * FROM people WHERE id IN (?, ?, 3)", "3 rows", "3 rows"),
        ("SELECT id FROM people WHERE city = ?", "by_city, 40 rows", "by_city, 40 rows"),
        ("SELECT id FROM people WHERE city = lower(?)", "by_city, 40 rows", "by_city, 40 rows"),
        ("SELECT id FROM people WHERE city IN (?, ?)", "by_city, 80 rows", "by_city, 80 rows"),
        ("SELECT id FROM people WHERE level = ?", "by_level, 117 rows", "by_level, 116 rows"),  # 175 / 3, twice
        ("SELECT id FROM people WHERE score > ?", "by_score, 133 rows", "by_score, 134 rows"),
        ("SELECT id FROM people WHERE score BETWEEN ? AND ?", "by_score, 2 rows", "by_score, 2 rows"),
        ("SELECT id FROM people WHERE name LIKE ?", "by_name, 2 rows", "by_name, 2 rows"),
        ("SELECT id FROM people WHERE id > ?", "133 rows", "134 rows"),
        ("SELECT id FROM people ORDER BY score LIMIT ?", "400 rows", "400 rows"),
        # these run in one of the two partitions
        ("SELECT item FROM orders WHERE customer = ?", "by_customer, 3 rows", "by_customer, 3 rows"),
        ("SELECT item FROM orders WHERE customer = ? AND item = 'it'", "by_customer, 3 rows", "by_customer, 3 rows"),
        ("DELETE FROM orders WHERE customer = ?", "by_customer, 3 rows", "by_customer, 3 rows"),
    ],
)  # fmt: skip
def test_unknown_values_are_averages(parts: Parts, sql: str, here: str, together: str) -> None:
    assert estimated(parts.whole.execute(f"EXPLAIN {sql}").rows) == [here]
    assert estimated(parts.select(f"EXPLAIN {sql}")) == [together]


@pytest.mark.parametrize(
    ("sql", "parameters"),
    [
        ("SELECT id FROM people WHERE city = ?", ("c4",)),
        ("SELECT id FROM people WHERE level IS NULL", ()),
        ("SELECT id FROM people WHERE score > ? AND score <= 40", (12,)),
        ("SELECT id FROM people WHERE name LIKE 'n3%'", ()),
        ("SELECT id FROM people WHERE id BETWEEN 100 AND 120", ()),
        ("SELECT item FROM orders WHERE customer IN (?, 9)", (7,)),
    ],
)
def test_what_is_counted_is_what_is_found(db: Engine, sql: str, parameters: Any) -> None:
    found = len(db.execute(sql, parameters).rows)
    (said,) = estimated(db.execute(f"EXPLAIN {sql}", parameters).rows)
    assert said.endswith(f"{found} rows")
    (met,) = estimated(db.execute(f"EXPLAIN ANALYZE {sql}", parameters).rows)
    assert f"{found} rows, {found} found, {found} kept" in met


def test_the_plan_is_the_one_that_runs(parts: Parts) -> None:
    sql = "EXPLAIN SELECT city, count(*), avg(score) FROM people WHERE level = 1 GROUP BY city"
    assert [line for (line,) in parts.select(sql)] == [
        "Partitions: all; each sends its groups, with partial aggregates",
        "In 2 partitions, together:",
        "  Send:",
        "    Group by 1 key, 3 aggregates",
        "      Index scan of people using by_level, 1 filter — using by_level, 150 rows estimated",
        "Merge:",
        "  Group by 1 key, 2 aggregates",
        "    Scan of what was sent",
    ]
    assert [line for (line,) in parts.whole.execute(sql).rows] == [
        "Partitions: all; each sends its groups, with partial aggregates",
        "Group by 1 key, 2 aggregates",
        "  Index scan of people using by_level, 1 filter — using by_level, 150 rows estimated",
    ]


def test_rows_that_would_be_borrowed_are_found_without_indexes(parts: Parts) -> None:
    sql = "EXPLAIN UPDATE people SET level = 1 WHERE city = 'c3'"
    assert estimated(parts.whole.execute(sql).rows) == ["by_city, 40 rows"]
    assert [line for (line,) in parts.select(sql)] == [
        "Partitions: all; in the coordinator, on borrowed rows, if they are several",
        "Update of people",
        "  Sequential scan of people, 1 filter — 400 rows estimated",
    ]


def test_nothing_of_the_statement_runs(parts: Parts, db: Engine) -> None:
    before = db.execute("SELECT count(*), sum(score) FROM people").rows
    for sql in (
        "DELETE FROM people",
        "UPDATE people SET score = 0 WHERE city = 'c1'",
        "INSERT INTO people (id, city) SELECT id + 1000, city FROM people",
        "SELECT 1 / (score - score) FROM people WHERE id < 10",
        "SELECT (SELECT id FROM people)",
    ):
        db.execute(f"EXPLAIN {sql}")
        plan = parts.plan(f"EXPLAIN {sql}")
        assert not plan.writes
        for program in (plan.source, plan.fragment, plan.merge):
            assert not any(call in (program or "") for call in (".scan(t", ".get(", ".delete(", ".insert(", "for r"))
    assert db.execute("SELECT count(*), sum(score) FROM people").rows == before


def test_within_a_batch_across_partitions_only_the_plan_is_told(parts: Parts) -> None:
    plan = parts.plan("EXPLAIN SELECT id FROM people WHERE city = ?")
    rows = Prepared(plan, SCHEMA, across=True).run(None, ())
    assert rows == [
        ("Partitions: all; in the coordinator, on borrowed rows",),
        ("Sequential scan of people, 1 filter",),
    ]


def test_errors_of_values_are_told(db: Engine) -> None:
    with pytest.raises(DataError, match="zero"):
        db.execute("EXPLAIN SELECT id FROM people WHERE level = 1 / ?", (0,))
    with pytest.raises(SqlError, match="has 2 parameters, and 1 were given"):
        db.execute("EXPLAIN SELECT id FROM people WHERE level = ? AND city = ?", (1,))
    with pytest.raises((DataError, BadArguments), match="parameter 1"):
        db.execute("EXPLAIN SELECT id FROM people WHERE level = ?", ("one",))


def test_a_client_asks_all_partitions_when_it_gives_no_values(parts: Parts) -> None:
    sql = "EXPLAIN SELECT * FROM people WHERE id = ?"
    plan = parts.plan(sql)
    known = KnownStatement(sql, ("explain", ["plan"], ["STRING"], 1, plan.routing))
    assert known.call((3,), 9) == ("voltpy.query", (3, sql, (3,)))
    assert known.call((), 9) == ("voltpy.query_all", (sql, ()))
    with pytest.raises(SqlError, match="has 1 parameters, and 2 were given"):
        known.call((1, 2), 9)


def test_a_client_runs_an_analyzed_change_as_the_change() -> None:
    sql = "EXPLAIN ANALYZE DELETE FROM people WHERE id = ?"
    plan = Parts(SCHEMA, 1).plan(sql)
    known = KnownStatement(sql, (plan.kind, ["plan"], ["STRING"], 1, plan.routing))
    assert known.writes
    assert known.call((3,), 9) == ("voltpy.execute", (3, sql, (3,)))
    assert known.result((2, [("a",), ("b",)])).rows == [("a",), ("b",)]
    with pytest.raises(SqlError, match="has 1 parameters, and 0 were given"):
        known.call((), 9)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            ProcedureTimeout("voltpy.query_all ran longer than 5 s (--procedure-timeout) and was ended"),
            "the statement ran longer than 5 s (--procedure-timeout) and was ended",
        ),
        (
            Indeterminate("voltpy.execute: timed out after 1 s; it may have run"),
            "the statement: timed out after 1 s; it may have run",
        ),
        (BadArguments("voltpy.query: arguments are too large"), "the statement: arguments are too large"),
        (ConstraintViolation("voltpython: no call of ours"), "voltpython: no call of ours"),
        (
            ProcedureError("ValueError: voltpy.query: in the middle", "ValueError", "trace"),
            "ValueError: voltpy.query: in",
        ),
    ],
)
def test_an_error_of_the_call_that_ran_a_statement_is_about_the_statement(error: Error, told: str) -> None:
    found = in_its_words(error, (1,))
    assert type(found) is type(error)
    assert str(found).startswith(told)
    assert vars(found) == vars(error)
