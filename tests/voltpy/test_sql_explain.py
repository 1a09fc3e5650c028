"""EXPLAIN ANALYZE: that each step tells what it met, in one partition and over several, and that nothing else pays."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.voltpy.sql_split import Parts
from voltpy import procedure
from voltpy.errors import DataError, DuplicateKey, SqlError
from voltpy.schema import Schema
from voltpy.sql.catalogue import Catalogue
from voltpy.sql.ddl import parse_schema
from voltpy.sql.plan import compiled
from voltpy.sql.planner import plan as planned
from voltpy.testing import Engine

SCHEMA: Schema = parse_schema(
    """CREATE TABLE people (id INT PRIMARY KEY, city STRING, level INT, score FLOAT);
    PARTITION TABLE people ON COLUMN id;
    CREATE TABLE levels (level INT PRIMARY KEY, title STRING);
    CREATE INDEX by_city ON people USING INVERTED (city);
    CREATE INDEX by_level ON people USING INVERTED (level);
    CREATE INDEX by_score ON people USING BTREE (score);"""
)
ROWS = 400


def without_times(lines: list[tuple[Any, ...]]) -> list[str]:
    return [re.sub(r"[\d.,]+ ms", "T ms", line) for (line,) in lines]


@pytest.fixture(scope="module")
def parts() -> Parts:
    made = Parts(SCHEMA, 2)
    for start in range(0, ROWS, 200):
        rows = [(key, f"c{key % 10}", key % 8, key / 2) for key in range(start, start + 200)]
        made.insert("people", rows)
    made.insert("levels", [(level, f"level {level}") for level in range(5)])
    return made


@pytest.fixture(scope="module")
def db(parts: Parts) -> Engine:
    return parts.whole


@pytest.mark.parametrize(
    ("sql", "parameters", "steps"),
    [
        ("SELECT * FROM people WHERE id = ?", (3,), ["Get by key (id) of people — 1 row estimated, 1 found, 1 kept"]),
        ("SELECT * FROM people WHERE id = ?", (-3,), ["Get by key (id) of people — 1 row estimated, 0 found, 0 kept"]),
        (
            "SELECT id FROM people WHERE score * 2 < 10",
            (),
            ["Sequential scan of people, 1 filter — 400 rows estimated, 400 found, 10 kept"],
        ),
        (
            "SELECT id FROM people WHERE city = 'c3' AND id > 99",
            (),
            ["Index scan of people using by_city or the primary key, 2 filters"
             " — using by_city, 40 rows estimated, 40 found, 30 kept"],
        ),
        (
            "SELECT id FROM people WHERE id BETWEEN 10 AND 19 AND level = 3",
            (),
            ["Index scan of people using by_level or the primary key, 3 filters"
             " — using the primary key, 10 rows estimated, 10 found, 2 kept"],
        ),
        (
            "SELECT count(*) FROM people WHERE city = 'c1' AND level = 1",
            (),
            ["Count of people using by_city, by_level, or else: — using by_city, by_level, 40 rows estimated, 10 found",
             "One group of all rows, 1 aggregate",
             "  Index scan of people using by_city or by_level, 2 filters"],
        ),
        ("SELECT count(*) FROM people", (), ["Count of all rows of people — 400 rows estimated, 400 found"]),
        (
            "SELECT id FROM people ORDER BY score DESC LIMIT 3",
            (),
            ["First rows of people in the order of by_score, or else: — using by_score, 3 rows estimated, 3 found",
             "Sequential scan of people — 3 kept",
             "Sort, and keep the first rows"],
        ),
        (
            "SELECT p.id FROM people p JOIN levels l ON l.level = p.level WHERE p.id IN (1, 6, 1000)",
            (),
            ["Get by a list of keys (id) of people as p — 3 rows estimated, 2 found, 2 kept",
             "Get by key (level) of levels as l — 2 rows estimated, 1 found, 1 kept"],
        ),
        (
            "SELECT l.title, p.id FROM levels l LEFT JOIN people p ON p.score = l.level AND p.city = 'c2'",
            (),
            ["Sequential scan of levels as l — 5 rows estimated, 5 found, 5 kept",
             # c2 has keys 2, 12, …: of the scores 0 to 4 key 2 has 1; NULLs of the others are kept too
             "Index scan of people as p using by_city or by_score, left join, 2 filters"
             " — using by_score, 5 rows estimated, 5 found, 5 kept"],
        ),
        (
            "SELECT level FROM levels WHERE EXISTS (SELECT 1 FROM people WHERE people.level = levels.level + 6)",
            (),
            ["Sequential scan of levels, 1 filter — 5 rows estimated, 5 found, 2 kept",
             "  Subquery, for each row:",
             "    Index scan of people using by_level, 1 filter — using by_level, 100 rows estimated, 2 found, 2 kept"],
        ),
    ],
)  # fmt: skip
def test_each_step_tells_what_it_met(db: Engine, sql: str, parameters: Any, steps: list[str]) -> None:
    result = db.execute(f"EXPLAIN ANALYZE {sql}", parameters)
    assert (result.columns, result.types, result.kind) == (["plan"], ["STRING"], "explain")
    first, whole, *lines = without_times(result.rows)
    assert first == f"{db.execute(f'EXPLAIN {sql}').rows[0][0]}"
    rows = len(db.execute(sql, parameters).rows)
    assert whole == f"Partition 0: {rows} row{'' if rows == 1 else 's'} in T ms"
    assert [line.removeprefix("  ").removesuffix(", T ms") for line in lines] == steps


def test_every_partition_tells_its_own(parts: Parts) -> None:
    sql = "EXPLAIN ANALYZE SELECT city, count(*), avg(score) FROM people WHERE level = 1 GROUP BY city"
    assert parts.plan(sql).merge is not None
    assert without_times([(line,) for (line,) in parts.select(sql)]) == [
        "Partitions: all; each sends its groups, with partial aggregates",
        "Partition 0: 0 rows sent in T ms",
        "  Send:",
        "    Group by 1 key, 3 aggregates",
        "      Index scan of people using by_level, 1 filter — using by_level, 0 rows estimated, 0 found, 0 kept, T ms",
        "Partition 0: 5 rows sent in T ms",  # each of these engines is the only partition of its own
        "  Send:",
        "    Group by 1 key, 3 aggregates",
        "      Index scan of people using by_level, 1 filter"
        " — using by_level, 50 rows estimated, 50 found, 50 kept, T ms",
        "Merge: 5 rows in T ms",
        "  Group by 1 key, 2 aggregates",
        "    Scan of what was sent — 5 rows found, 5 kept, T ms",
    ]


def test_what_is_gathered_is_told_table_by_table(parts: Parts) -> None:
    lines = without_times(parts.select("EXPLAIN ANALYZE SELECT max(a.id) FROM people a, people b WHERE a.level = b.id"))
    assert lines[-4:] == [
        "Merge: 1 row in T ms",
        "  One group of all rows, 1 aggregate",
        "    Scan of what was sent of a — 400 rows found, 400 kept, T ms",
        "    Hash join on (id) of what was sent of b — 400 rows found, 400 kept, T ms",
    ]
    assert sum("200 rows estimated, 200 found, 200 kept" in line for line in lines) == 4


def test_a_statement_that_is_not_analyzed_counts_nothing(parts: Parts) -> None:
    plan = parts.plan("SELECT city, count(*) FROM people GROUP BY city")
    assert "seen" not in plan.source + (plan.fragment or "") + (plan.merge or "")
    assert "seen" in parts.plan("EXPLAIN ANALYZE SELECT id FROM people").source


@pytest.mark.parametrize(
    ("sql", "parameters", "kind", "lines"),
    [
        (
            "UPDATE people SET level = ? WHERE city = 'c1' AND id < 5 RETURNING id",
            (9,),
            "explain update",
            ["1 row changed", "Update of people",
             "  Index scan of people using by_city or the primary key, 2 filters"
             " — using by_city, 2 rows estimated, 2 found, 1 kept"],
        ),
        (
            "DELETE FROM people WHERE id = 3",
            (),
            "explain delete",
            ["1 row changed", "Delete from people", "  Get by key (id) of people — 1 row estimated, 1 found, 1 kept"],
        ),
        (
            "DELETE FROM people WHERE id = 99",
            (),
            "explain delete",
            ["0 rows changed", "Delete from people", "  Get by key (id) of people — 1 row estimated, 0 found, 0 kept"],
        ),
        (
            "INSERT INTO people (id, city) SELECT id + 100, 'new' FROM people WHERE city = 'c2'",
            (),
            "explain insert",
            ["2 rows changed", "Insert into people", "  Query:",
             "    Index scan of people using by_city, 1 filter — using by_city, 2 rows estimated, 2 found, 2 kept"],
        ),
        (
            "INSERT INTO people (id, city) VALUES (1, 'x'), (50, 'y') ON CONFLICT DO NOTHING",
            (),
            "explain insert",
            ["1 row changed", "Insert into people", "  Query:", "    2 rows of VALUES"],
        ),
    ],
)  # fmt: skip
def test_a_statement_that_writes_is_run_and_tells(sql: str, parameters: Any, kind: str, lines: list[str]) -> None:
    analyzed, plain = Engine(SCHEMA), Engine(SCHEMA)
    for db in (analyzed, plain):
        rows = ", ".join(f"({key}, 'c{key % 5}', {key}, {key})" for key in range(10))
        db.execute(f"INSERT INTO people VALUES {rows}")
    result = analyzed.execute(f"EXPLAIN ANALYZE {sql}", parameters)
    assert (result.columns, result.types, result.kind) == (["plan"], ["STRING"], kind)
    assert result.rowcount == len(result.rows)
    first, *told = without_times(result.rows)
    assert first == plain.execute(f"EXPLAIN {sql}").rows[0][0]
    told[0] = told[0].removeprefix("Partition 0: ").removesuffix(" in T ms")
    assert [told[0], *(line.removeprefix("  ").removesuffix(", T ms") for line in told[1:])] == lines
    plain.execute(sql, parameters)
    everything = "SELECT * FROM people ORDER BY id"
    assert analyzed.execute(everything).rows == plain.execute(everything).rows


def test_an_analyzed_change_that_fails_changes_nothing() -> None:
    db = Engine(SCHEMA)
    db.execute("INSERT INTO people (id, level) VALUES (1, 1), (2, 2), (3, 3)")
    for sql, error in (
        ("UPDATE people SET level = 6 / (id - 3)", DataError),
        ("UPDATE people SET id = 3 WHERE id < 3", DuplicateKey),
        ("INSERT INTO people (id) VALUES (7), (8), (3)", DuplicateKey),
    ):
        with pytest.raises(error):
            db.execute(f"EXPLAIN ANALYZE {sql}")
        assert db.execute("SELECT id, level FROM people ORDER BY id").rows == [(1, 1), (2, 2), (3, 3)]


def test_what_reads_a_view_tells_its_steps_on_borrowed_rows() -> None:
    schema = parse_schema(
        "CREATE TABLE t (id INT PRIMARY KEY, g INT); PARTITION TABLE t ON COLUMN id;"
        "CREATE VIEW v AS SELECT g, COUNT(*) AS n FROM t GROUP BY g"
    )
    plan = planned("EXPLAIN ANALYZE SELECT * FROM v", Catalogue(schema))
    assert plan.across is not None
    assert "seen.alone(answer" in plan.across


def test_what_ran_on_borrowed_rows_tells_that_no_index_found_them() -> None:
    sql = "UPDATE people SET score = 1 WHERE city = 'c1' AND level = 3"
    across = planned(f"EXPLAIN ANALYZE {sql}", Catalogue(SCHEMA)).across
    assert across is not None

    @procedure
    def run_it(tx: Any) -> list[list[str]]:
        _, lines = compiled(across, SCHEMA)(tx, (), ())
        return [list(line) for line in lines]

    ran = Engine(SCHEMA, [run_it])
    ran.execute("INSERT INTO people (id, city, level) VALUES (1, 'c1', 3), (2, 'c1', 4), (3, 'c2', 3)")
    assert without_times([tuple(line) for line in ran.call("run_it")]) == [
        "Partitions: all; in the coordinator, on borrowed rows",
        "Partition 0: 1 row changed in T ms",
        "  Update of people",
        "    Sequential scan of people, 2 filters — 3 rows estimated, 3 found, 1 kept, T ms",
    ]
    assert ran.execute("SELECT id FROM people WHERE score = 1").rows == [(1,)]


def test_each_query_of_a_union_is_told(db: Engine) -> None:
    assert [line for (line,) in db.execute("EXPLAIN SELECT 1 UNION SELECT id FROM people").rows][1:] == [
        "UNION",
        "  Query:",
        "    Result, of no table",
        "  Query:",
        "    Sequential scan of people — 400 rows estimated",
    ]


def test_errors_of_the_statement_are_told(db: Engine) -> None:
    with pytest.raises(SqlError, match="parameters"):
        db.execute("EXPLAIN ANALYZE SELECT * FROM people WHERE id = ?")
