"""Statements over secondary indexes: which are used, and that no row is read for a count, or all for a few."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from partitions.lookups import Lookups
from partitions.store import Store
from partitions.table import Table
from partitions.transaction_kinds import LentTable
from voltpy import procedure
from voltpy.not_here import NotHere
from voltpy.schema import Index
from voltpy.sql.ddl import parse_schema
from voltpy.sql.search import Search
from voltpy.testing import Engine

SCHEMA = """
CREATE TABLE people (id INT PRIMARY KEY, city STRING, owner STRING, level INT, score FLOAT, born TIMESTAMP, ok BOOL);
CREATE INDEX by_city ON people USING INVERTED (city);
CREATE INDEX by_owner ON people USING HASH (owner);
CREATE INDEX by_level ON people USING INVERTED (level);
CREATE INDEX by_score ON people USING BTREE (score);
CREATE INDEX in_city ON people USING BTREE (city, level);
CREATE INDEX names ON people USING BTREE (owner);
CREATE INDEX births ON people USING BTREE (born);
CREATE INDEX oks ON people USING INVERTED (ok);
CREATE TABLE plain (id INT PRIMARY KEY, level INT);
"""
ROWS = 2000
CITIES = [f"c{number}" for number in range(20)]


def row_of(key: int) -> tuple[Any, ...]:
    city = None if key % 50 == 0 else CITIES[key % 20]
    born = datetime(2000 + key % 25, 1, 1, tzinfo=UTC)
    return key, city, f"o{key % 300}", key % 100, key / 2, born, key % 10 == 3


PEOPLE = [row_of(key) for key in range(ROWS)]


@procedure(everywhere=True, read_only=True)
def read(tx: Any, sql: str) -> Any:
    return tx.execute(sql).rows


@procedure(everywhere=True)
def change_and_read(tx: Any, change: str, sql: str) -> Any:
    tx.execute(change)
    found = tx.execute(sql).rows
    tx.execute("DELETE FROM people WHERE city = 'c1' AND level = 1")
    return [found, tx.execute(sql).rows]


@pytest.fixture(scope="module")
def loaded() -> Engine:
    db = Engine(SCHEMA, [read, change_and_read], memory_bytes=64 << 20)
    for start in range(0, ROWS, 100):
        some = PEOPLE[start : start + 100]
        values = ", ".join("(?, ?, ?, ?, ?, ?, ?)" for _ in some)
        db.execute(f"INSERT INTO people VALUES {values}", [value for row in some for value in row])
    return db


class Reads:
    """How many rows were read by index, and how often the table was scanned."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows = self.scans = 0
        real_read, real_scan = Lookups._read, Table.scan

        def read(lookups: Lookups, row_ids: list[int]) -> list[Any]:
            self.rows += len(row_ids)
            return real_read(lookups, row_ids)

        def scan(table: Table) -> Any:
            self.scans += 1
            return real_scan(table)

        monkeypatch.setattr(Lookups, "_read", read)
        monkeypatch.setattr(Table, "scan", scan)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    return Reads(monkeypatch)


Test = Callable[[Any], bool]


@pytest.mark.parametrize(
    ("condition", "test", "most"),
    [
        ("city = 'c3'", lambda r: r[1] == "c3", 100),
        ("city = 'c3' AND level = 3", lambda r: r[1] == "c3" and r[3] == 3, 20),
        ("level = 3 AND owner = 'o3'", lambda r: r[3] == 3 and r[2] == "o3", 20),
        ("level = 3 AND ok", lambda r: r[3] == 3 and r[6], 20),
        ("ok AND NOT ok", lambda r: False, 200),
        ("level = 3 AND NOT ok", lambda r: r[3] == 3 and not r[6], 20),
        ("city IS NULL AND level < 50", lambda r: r[1] is None and r[3] < 50, 40),
        ("level IN (3, 5, NULL, 3)", lambda r: r[3] in (3, 5), 40),
        ("level IN (3, 5) AND city = 'c5'", lambda r: r[3] in (3, 5) and r[1] == "c5", 20),
        ("score >= 100 AND score < 110.5", lambda r: 100 <= r[4] < 110.5, 21),
        ("score BETWEEN 10 AND 12 AND level < 22", lambda r: 10 <= r[4] <= 12 and r[3] < 22, 5),
        ("score > 10 AND score > 11 AND score < 13 AND score <= 20", lambda r: 11 < r[4] < 13, 3),
        ("city = 'c7' AND level > 20 AND level < 40", lambda r: r[1] == "c7" and 20 < r[3] < 40, 20),
        ("city = 'c7' AND level > 26.5 AND level <= 27.0", lambda r: r[1] == "c7" and r[3] == 27, 20),
        ("owner LIKE 'o29%'", lambda r: r[2].startswith("o29"), 74),
        ("owner LIKE 'o29_' AND level < 95", lambda r: r[2].startswith("o29") and len(r[2]) == 4 and r[3] < 95, 74),
        ("born = '2003-01-01'", lambda r: r[5].year == 2003, 80),
        ("born < TO_TIMESTAMP(946684800 + 86400)", lambda r: r[5].year == 2000, 80),
        ("level = 2.5", lambda r: False, 0),
        ("level = 3.0 AND city = 'c3'", lambda r: r[3] == 3 and r[1] == "c3", 20),
        ("score = 9007199254740993", lambda r: False, 0),
        ("city = NULL", lambda r: False, 0),
        ("level IN (NULL)", lambda r: False, 0),
        ("score > NULL", lambda r: False, 0),
    ],
)
def test_what_meets_conditions_is_read_and_hardly_more(
    loaded: Engine, reads: Reads, condition: str, test: Test, most: int
) -> None:
    expected = [row[0] for row in PEOPLE if test(row)]
    sql = f"SELECT id FROM people WHERE {condition}"
    assert sorted(row[0] for row in loaded.execute(sql).rows) == expected
    assert reads.rows <= most
    reads.rows = 0
    assert [row[0] for row in loaded.call_everywhere("read", f"{sql} ORDER BY id")[0]] == expected
    assert reads.rows <= most
    assert reads.scans == 0


@pytest.mark.parametrize(
    ("condition", "test"),
    [
        ("city = 'c3'", lambda r: r[1] == "c3"),
        ("city = 'c3' AND level = 3 AND ok", lambda r: r[1] == "c3" and r[3] == 3 and r[6]),
        ("level = 3 AND owner = 'o3' AND ok", lambda r: r[3] == 3 and r[2] == "o3" and r[6]),
        ("city IS NULL", lambda r: r[1] is None),
        ("level IN (3, 5, 3)", lambda r: r[3] in (3, 5)),
        ("level IN (3, 5) AND city = 'c5'", lambda r: r[3] in (3, 5) and r[1] == "c5"),
        ("score >= 100.2", lambda r: r[4] >= 100.2),
        ("score < 10 AND ok", lambda r: r[4] < 10 and r[6]),
        ("owner LIKE 'o29%'", lambda r: r[2].startswith("o29")),
        ("owner LIKE 'o29%' AND level BETWEEN 1 AND 95 AND city = 'c9'",
         lambda r: r[2].startswith("o29") and 1 <= r[3] <= 95 and r[1] == "c9"),
        ("city = 'nowhere'", lambda r: False),
    ],
)  # fmt: skip
def test_a_count_reads_no_row(loaded: Engine, reads: Reads, condition: str, test: Test) -> None:
    expected = sum(bool(test(row)) for row in PEOPLE)
    assert loaded.execute(f"SELECT count(*), count(*) FROM people WHERE {condition}").rows == [(expected, expected)]
    assert (reads.rows, reads.scans) == (0, 0)


def test_a_count_of_what_indexes_cannot_tell_reads_the_rows(loaded: Engine, reads: Reads) -> None:
    for condition, test in (
        ("owner LIKE 'o29_'", lambda r: len(r[2]) == 4 and r[2].startswith("o29")),
        ("city = 'c3' AND id % 3 = 0", lambda r: r[1] == "c3" and r[0] % 3 == 0),
        ("city = 'c3' AND city = owner", lambda r: False),
    ):  # fmt: skip
        expected = sum(bool(test(row)) for row in PEOPLE)
        assert loaded.execute(f"SELECT count(*) FROM people WHERE {condition}").rows == [(expected,)]
    assert 0 < reads.rows <= 300
    assert reads.scans == 0


@pytest.mark.parametrize(
    ("sql", "ids", "most"),
    [
        ("SELECT id FROM people ORDER BY score DESC LIMIT 3", [1999, 1998, 1997], 3),
        ("SELECT id FROM people ORDER BY score LIMIT 2 OFFSET 2", [2, 3], 4),
        ("SELECT id FROM people WHERE score > 50 ORDER BY score LIMIT 1", [101], 1),
        ("SELECT id FROM people WHERE city = 'c7' ORDER BY level DESC, city DESC LIMIT 1", [87], 64),
        ("SELECT id FROM people WHERE score > 50 AND id % 2 = 0 ORDER BY score LIMIT 2", [102, 104], 64),
        ("SELECT id FROM people WHERE city IS NULL ORDER BY score LIMIT 2", [0, 50], 64),
        ("SELECT id FROM people WHERE id > 30 ORDER BY score LIMIT 2", [31, 32], 64),
        ("SELECT id FROM people ORDER BY score LIMIT 0", [], 0),
    ],
)
def test_the_first_rows_in_the_order_of_an_index_are_read_alone(
    loaded: Engine, reads: Reads, sql: str, ids: list[int], most: int
) -> None:
    found = [row[0] for row in loaded.execute(sql).rows]
    assert found == ids or [PEOPLE[key][3] for key in found] == [PEOPLE[key][3] for key in ids]
    assert reads.rows <= most
    assert reads.scans == 0


def test_rows_without_a_value_come_where_the_order_says(loaded: Engine, reads: Reads) -> None:
    assert len(loaded.execute("SELECT city, level FROM people ORDER BY city DESC, level DESC LIMIT 41").rows) == 41
    rows = loaded.execute("SELECT city FROM people ORDER BY city DESC, level DESC LIMIT 41").rows
    assert rows == [(None,)] * 40 + [("c9",)]
    assert reads.scans == 0
    rows = loaded.execute("SELECT city FROM people ORDER BY city DESC NULLS LAST, level DESC NULLS LAST LIMIT 1").rows
    assert rows == [("c9",)]
    assert reads.scans == 1  # no index has them so


def test_what_is_found_without_a_sort_is_left_to_it_where_that_is_less(loaded: Engine, reads: Reads) -> None:
    sql = "SELECT id FROM people WHERE owner = 'o7' AND ok = FALSE ORDER BY score DESC LIMIT 5"
    assert [row[0] for row in loaded.execute(sql).rows] == [1807, 1507, 1207, 907, 607]
    assert reads.rows <= 8


def test_a_statement_that_writes_finds_its_rows_by_index(reads: Reads) -> None:
    db = Engine(SCHEMA, [change_and_read], memory_bytes=8 << 20)
    for key in range(200):
        db.execute("INSERT INTO people VALUES (?, ?, ?, ?, ?, ?, ?)", PEOPLE[key])
    reads.rows = 0
    assert db.execute("UPDATE people SET level = level + 1000 WHERE city = 'c3' AND level > 50").rowcount == 4
    assert db.execute("SELECT id FROM people WHERE level >= 1000 AND city = 'c3' ORDER BY level DESC LIMIT 1").rows
    assert db.execute("DELETE FROM people WHERE level IN (1063, 1083)").rowcount == 4
    assert (reads.rows, reads.scans) == (4 + 1 + 4, 0)
    found, left = db.call_everywhere(
        "change_and_read", "UPDATE people SET level = 1 WHERE city = 'c1'", "SELECT id FROM people WHERE level = 1"
    )[0]
    assert sorted(key for (key,) in found) == [key for key in range(200) if key % 20 == 1 or key % 100 == 1]
    assert [key for (key,) in left] == []
    db.check()


def test_joins_look_rows_up(loaded: Engine, reads: Reads) -> None:
    for key in range(5):
        loaded.execute("INSERT INTO plain VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET level = ?", (key, key, key))
    reads.rows = reads.scans = 0
    joined = "FROM plain JOIN people p ON p.level = plain.level AND p.city = 'c3'"
    assert sorted(loaded.execute(f"SELECT p.id {joined}").rows) == [(row[0],) for row in PEOPLE if row[3] == 3]
    assert loaded.execute(
        "SELECT id, (SELECT count(*) FROM people p WHERE p.level = plain.level) FROM plain ORDER BY 1"
    ).rows == [(0, 20), (1, 20), (2, 20), (3, 20), (4, 20)]
    assert reads.scans == 2  # of `plain`


def test_many_rows_are_scanned_rather_than_looked_up(loaded: Engine, reads: Reads) -> None:
    assert len(loaded.execute("SELECT id FROM people WHERE NOT ok").rows) == 1800
    assert (reads.rows, reads.scans) == (0, 1)


def test_a_key_range_is_taken_where_it_has_fewer_rows(loaded: Engine, reads: Reads) -> None:
    sql = "SELECT id FROM people WHERE city = 'c3' AND id BETWEEN ? AND ?"
    assert loaded.execute(sql, (20, 40)).rows == [(23,)]
    assert reads.rows == 0
    assert len(loaded.execute(sql, (0, ROWS)).rows) == 100
    assert reads.rows == 100
    assert reads.scans == 0


def test_explain_names_the_indexes(loaded: Engine) -> None:
    def explained(sql: str) -> list[str]:
        return [line.split(" — ")[0] for (line,) in loaded.execute(f"EXPLAIN {sql}").rows][1:]

    assert explained("SELECT * FROM people WHERE level = ? AND owner = ?") == [
        "Index scan of people using by_owner or by_level or names, 2 filters"
    ]
    assert explained("SELECT * FROM people WHERE score > ?") == ["Index range scan of people using by_score, 1 filter"]
    assert explained("SELECT id FROM people WHERE ok ORDER BY score LIMIT 1") == [
        "First rows of people in the order of by_score, or else:",
        "Index scan of people using oks, 1 filter",
        "Sort, and keep the first rows",
    ]
    assert (
        explained("SELECT count(*) FROM people WHERE city = 'c1'")[0]
        == "Count of people using by_city, in_city, or else:"
    )
    assert explained("SELECT * FROM people WHERE score = RANDOM()") == ["Sequential scan of people, 1 filter"]


def test_not_a_number_equals_nothing_and_is_in_no_range() -> None:
    db = Engine("CREATE TABLE t (id INT PRIMARY KEY, f FLOAT); CREATE INDEX i ON t USING BTREE (f);", [])
    db.execute("INSERT INTO t VALUES (1, ?), (2, ?), (3, ?), (4, -0.0), (5, 0.0)", (math.nan, math.inf, -math.inf))
    for condition, ids in (
        ("f = ?", []), ("f > ?", []), ("f >= 0", [2, 4, 5]), ("f = 0.0", [4, 5]), ("f <= 0", [3, 4, 5]),
    ):  # fmt: skip
        given = (math.nan,) if "?" in condition else ()
        assert [k for (k,) in db.execute(f"SELECT id FROM t WHERE {condition} ORDER BY id", given).rows] == ids
        assert db.execute(f"SELECT count(*) FROM t WHERE {condition}", given).rows == [(len(ids),)]


def test_ends_of_integers_are_within_ranges() -> None:
    db = Engine("CREATE TABLE t (id INT PRIMARY KEY, n INT); CREATE INDEX i ON t USING BTREE (n);", [])
    least, greatest = -(1 << 63), (1 << 63) - 1
    db.execute("INSERT INTO t VALUES (1, ?), (2, ?), (3, 0)", (least, greatest))
    for condition, given, count in (
        ("n >= ?", greatest, 1), ("n > ?", greatest, 0), ("n <= ?", least, 1), ("n < ?", least, 0),
        ("n < ?", 1e300, 3), ("n > ?", -math.inf, 3), ("n > ?", math.inf, 0), ("n >= ?", 9.3e18, 0),
        ("n = ?", 9.3e18, 0),
    ):  # fmt: skip
        assert db.execute(f"SELECT count(*) FROM t WHERE {condition}", (given,)).rows == [(count,)]
        assert len(db.execute(f"SELECT id FROM t WHERE {condition}", (given,)).rows) == count


def test_like_patterns_with_escapes_are_looked_up_as_far_as_they_are_plain() -> None:
    db = Engine("CREATE TABLE t (id INT PRIMARY KEY, s STRING); CREATE INDEX i ON t USING BTREE (s);", [])
    db.execute("INSERT INTO t VALUES (1, 'a%b'), (2, 'a%bc'), (3, 'axb'), (4, 'a'), (5, ?)", ("a\U0010ffff",))
    for pattern, ids in (
        (r"a\%b%", [1, 2]), ("a%", [1, 2, 3, 4, 5]), ("a", [4]), ("a_b", [1, 3]), ("", []), ("%b", [1, 3]), ("b%", []),
    ):  # fmt: skip
        assert [k for (k,) in db.execute("SELECT id FROM t WHERE s LIKE ? ORDER BY id", (pattern,)).rows] == ids
        assert db.execute("SELECT count(*) FROM t WHERE s LIKE ?", (pattern,)).rows == [(len(ids),)]


def test_an_index_that_is_being_built_is_used_when_it_is_ready(reads: Reads) -> None:
    db = Engine(
        "CREATE TABLE t (id INT PRIMARY KEY, n INT); CREATE INDEX i ON t (n);", [], memory_bytes=8 << 20
    )  # fmt: skip
    for key in range(300):
        db.execute("INSERT INTO t VALUES (?, ?)", (key, key % 7))
    store = db._store
    store.drop_index("t", "i")
    sql = "SELECT count(*) FROM t WHERE n = 3"
    assert db.execute(sql).rows == [(43,)]
    assert reads.scans == 1
    building = store.add_index(Index("i", "t", "INVERTED", ("n",)))
    next(building)
    assert db.execute(sql).rows == [(43,)]
    assert reads.scans == 2
    for _ in building:
        pass
    assert db.execute(sql).rows == [(43,)]
    assert reads.scans == 2


def test_a_table_that_is_lent_whole_lets_nobody_at_its_indexes() -> None:
    store = Store(parse_schema(SCHEMA), 0, 1, 8 << 20)
    lent = LentTable(store.by_name["people"], store.misses)
    search = Search([("equal", "city", "STRING")])
    assert search.helps(store.by_name["people"])
    assert not search.helps(lent)
    assert search.count(lent, ("c1",)) is None
    with pytest.raises(NotHere):
        search.rows(lent, ("c1",))
