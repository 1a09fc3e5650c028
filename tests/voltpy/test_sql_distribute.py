"""Routing, and statements taken apart: what fragments send, and that their merge is the whole's answer."""

from __future__ import annotations

from typing import Any

import pytest

from tests.voltpy.sql_split import Parts, in_some_order
from voltpy.hash_slot import hash_slot
from voltpy.schema import Schema
from voltpy.sql.catalogue import Catalogue
from voltpy.sql.ddl import parse_schema
from voltpy.sql.plan import Plan
from voltpy.sql.planner import plan

SCHEMA: Schema = parse_schema(
    """CREATE TABLE orders (id INT PRIMARY KEY, customer INT, total INT, note STRING);
    PARTITION TABLE orders ON COLUMN id;
    CREATE TABLE lines (order_id INT, n INT, item STRING, price FLOAT, PRIMARY KEY (order_id, n));
    PARTITION TABLE lines ON COLUMN order_id;
    CREATE TABLE people (name STRING PRIMARY KEY, age INT);
    PARTITION TABLE people ON COLUMN name;
    CREATE TABLE items (code STRING PRIMARY KEY, kind STRING);"""
)


def planned(sql: str) -> Plan:
    return plan(sql, Catalogue(SCHEMA))


@pytest.mark.parametrize(
    ("sql", "parameters", "keys"),
    [
        ("SELECT * FROM orders WHERE id = 7", (), [7]),
        ("SELECT * FROM orders WHERE 7 = id AND total > 1", (), [7]),
        ("SELECT * FROM orders WHERE id = ?", (3,), [3]),
        ("SELECT * FROM orders WHERE id = ?", (3.0,), [3]),
        ("SELECT * FROM orders WHERE id = ?", (None,), []),
        ("SELECT * FROM orders WHERE id = ?", (3.5,), []),
        ("SELECT * FROM orders WHERE id IN (1, ?, 3)", (2,), [1, 2, 3]),
        ("SELECT * FROM orders WHERE id = 1 OR (id = 2 AND total > 3)", (), [1, 2]),
        ("SELECT * FROM people WHERE name = ?", ("Kari",), ["Kari"]),
        ("SELECT * FROM orders o JOIN lines l ON l.order_id = o.id WHERE o.id = 5", (), [5]),
        ("SELECT * FROM orders o, lines l WHERE o.id = l.order_id AND l.order_id = ?", (5,), [5]),
        ("SELECT * FROM orders o LEFT JOIN lines l ON l.order_id = o.id WHERE o.id = 5", (), [5]),
        ("SELECT * FROM orders o, people p WHERE o.id = 5 AND p.name = 'x'", (), [5, "x"]),
        ("SELECT *, (SELECT count(*) FROM lines l WHERE l.order_id = o.id) FROM orders o WHERE id = 5", (), [5]),
        ("SELECT * FROM (SELECT id FROM orders WHERE id = 4) AS q", (), [4]),
        ("SELECT 1 FROM orders WHERE id = 1 UNION SELECT 2 FROM orders WHERE id = 2", (), [1, 2]),
        ("UPDATE orders SET total = 1 WHERE id = 9", (), [9]),
        ("UPDATE orders SET id = 10 WHERE id = 9", (), [10, 9]),
        ("DELETE FROM lines WHERE order_id = ? AND n = 1", (4,), [4]),
        ("INSERT INTO orders (id) VALUES (1), (?)", (2,), [1, 2]),
        ("INSERT INTO orders (id, total) SELECT 8, age FROM people WHERE name = 'x'", (), ["x", 8]),
    ],
)
def test_statements_are_routed_by_their_keys(sql: str, parameters: Any, keys: list[Any]) -> None:
    routing = planned(sql).routing
    assert routing.kind == "keys"
    assert sorted(routing.values(parameters), key=str) == sorted(keys, key=str)
    assert routing.slots(parameters) == [hash_slot(key) for key in routing.values(parameters)]


@pytest.mark.parametrize(
    ("sql", "kind"),
    [
        ("SELECT 1", "anywhere"),
        ("SELECT * FROM items WHERE kind = 'x'", "anywhere"),
        ("INSERT INTO orders (total) VALUES (1)", "anywhere"),  # its key is made where it runs
        ("SELECT * FROM orders WHERE total = 1", "everywhere"),
        ("SELECT * FROM orders WHERE id = 1 OR total = 1", "everywhere"),
        ("SELECT * FROM orders WHERE id > 1", "everywhere"),
        ("SELECT * FROM orders WHERE NOT id = 1", "everywhere"),
        ("SELECT * FROM orders o JOIN lines l ON l.order_id = o.customer WHERE o.id = 5", "everywhere"),
        ("SELECT * FROM orders o LEFT JOIN lines l ON o.id = 5 AND l.order_id = o.id", "everywhere"),
        ("SELECT * FROM lines l LEFT JOIN orders o ON o.id = l.order_id WHERE o.id = 5", "everywhere"),
        (
            "SELECT (SELECT count(*) FROM lines l WHERE l.order_id = o.customer) FROM orders o WHERE id = 5",
            "everywhere",
        ),
        ("SELECT 1 FROM orders o WHERE EXISTS (SELECT 1 FROM items WHERE o.id = 5)", "everywhere"),
        ("SELECT * FROM db_tables", "everywhere"),
        ("UPDATE items SET kind = 'x'", "everywhere"),
        ("UPDATE orders SET id = id + 1 WHERE id = 1", "everywhere"),
        ("INSERT INTO orders (id) SELECT order_id FROM lines", "everywhere"),
    ],
)
def test_statements_without_keys_go_anywhere_or_everywhere(sql: str, kind: str) -> None:
    assert planned(sql).routing.kind == kind


@pytest.fixture(scope="module")
def parts() -> Parts:
    made = Parts(SCHEMA, 3)
    made.insert("orders", [(i, i % 4, (i * 37) % 11, None if i % 5 == 0 else f"n{i % 3}") for i in range(40)])
    made.insert("lines", [(i % 45, n, f"i{(i + n) % 6}", (i * n) / 2) for i in range(45) for n in range(3)])
    made.insert("people", [(f"p{i}", i % 7) for i in range(12)])
    made.insert("items", [(f"i{i}", "odd" if i % 2 else "even") for i in range(5)])
    return made


@pytest.mark.parametrize(
    ("sql", "how"),
    [
        ("SELECT * FROM orders", "its rows"),
        ("SELECT id FROM orders WHERE total > ? ORDER BY note NULLS FIRST, id DESC", "its rows"),
        ("SELECT id FROM orders ORDER BY total DESC, id LIMIT 5 OFFSET 3", "its first rows"),
        ("SELECT DISTINCT customer, note FROM orders ORDER BY 1, 2", "its rows"),
        ("SELECT DISTINCT customer FROM orders ORDER BY 1 DESC LIMIT 2", "its first rows"),
        ("SELECT note FROM orders ORDER BY total * 2 + id", "its rows"),
        (
            "SELECT count(*), sum(total), avg(total), min(note), max(total), count(note) FROM orders",
            "partial aggregates",
        ),
        ("SELECT count(*), sum(total), avg(total), min(note) FROM orders WHERE id < 0", "partial aggregates"),
        ("SELECT note, count(*), avg(price) FROM orders o JOIN lines l ON o.id = l.order_id GROUP BY note", "partial"),
        (
            "SELECT customer % 2, count(DISTINCT note), sum(DISTINCT total), avg(DISTINCT id) FROM orders GROUP BY 1",
            "partial",
        ),
        (
            "SELECT note, sum(total) AS t FROM orders GROUP BY note HAVING count(*) > 3 ORDER BY t DESC, 1 LIMIT 2",
            "partial",
        ),
        ("SELECT customer FROM orders GROUP BY customer HAVING max(total) > 9", "partial aggregates"),
        ("SELECT count(*) FILTER (WHERE total > 5), bool_and(total > 0), bool_or(total > 9) FROM orders", "partial"),
        (
            "SELECT kind, count(*), sum(price) FROM lines LEFT JOIN items ON code = item GROUP BY kind",
            "partial aggregates",
        ),
        (
            "SELECT order_id, sum(price) FROM lines GROUP BY order_id HAVING sum(price) > 4 ORDER BY 2, 1 LIMIT 7",
            "first rows",
        ),
        ("SELECT id, count(*) FROM orders o LEFT JOIN lines l ON l.order_id = o.id AND n > 1 GROUP BY id", "its rows"),
        ("SELECT * FROM orders WHERE note IN (SELECT 'n' || 1 FROM items)", "its rows"),
        (
            "SELECT a.id, b.id FROM orders a JOIN orders b ON a.customer = b.total WHERE a.id < 9",
            "the merge does all else",
        ),
        ("SELECT name, id FROM people LEFT JOIN orders ON age = id AND total > 2", "the merge does all else"),
        ("SELECT code, id FROM items LEFT JOIN orders ON code = 'i' || id", "the merge does all else"),
        (
            "SELECT id FROM orders o WHERE total > (SELECT avg(total) FROM orders p WHERE p.customer = o.customer)",
            "the merge does all else",
        ),
        (
            "SELECT id FROM orders WHERE EXISTS (SELECT 1 FROM people WHERE age = orders.customer)",
            "the merge does all else",
        ),
        (
            "SELECT total FROM orders UNION SELECT age FROM people EXCEPT SELECT n FROM lines ORDER BY 1",
            "the merge does all else",
        ),
        (
            "SELECT max(c) FROM (SELECT customer, count(*) AS c FROM orders GROUP BY customer) AS q",
            "the merge does all else",
        ),
        (
            "WITH q AS (SELECT id, total FROM orders WHERE id > 3) SELECT count(*) FROM q, q AS r WHERE q.id = r.total",
            "the merge does all else",
        ),
        ("SELECT note, count(*), (SELECT max(age) FROM people) FROM orders GROUP BY note", "the merge does all else"),
    ],
)
def test_fragments_and_their_merge_give_the_whole_answer(parts: Parts, sql: str, how: str) -> None:
    parameters = (4,) * sql.count("?")
    expected, found = parts.whole.execute(sql, parameters).rows, parts.select(sql, parameters)
    assert in_some_order(found) == in_some_order(expected)
    if "ORDER BY" in sql:
        assert found == expected
    assert how in parts.plan(sql).notes[0]


def test_string_agg_comes_together_from_all_parts(parts: Parts) -> None:
    ((found,),) = parts.select("SELECT string_agg(name, ',') FROM people")
    assert sorted(found.split(",")) == sorted(f"p{i}" for i in range(12))


def test_partial_sums_may_pass_64_bits_where_the_whole_does_not() -> None:
    made = Parts(SCHEMA, 2)
    big = 9223372036854775807
    made.insert("orders", [(0, 1, big, ""), (2, 1, big, ""), (1, 1, -big, ""), (3, 1, -big, "")])
    assert made.select("SELECT sum(total) FROM orders") == [(0,)]


def test_the_catalog_counts_all_parts(parts: Parts) -> None:
    rows = parts.select("SELECT table_name, row_count, column_count, pk_column_idx FROM db_tables ORDER BY table_id")
    assert rows == [("orders", 40, 4, 0), ("lines", 135, 4, 0), ("people", 12, 2, 0), ("items", 5, 2, 0)]
    assert parts.select("SELECT count(*) FROM db_columns") == [(12,)]


def test_what_is_sent_is_filtered_and_only_what_is_used() -> None:
    made = planned(
        "SELECT a.id FROM orders a JOIN orders b ON a.customer = b.total WHERE a.note LIKE 'n%' AND b.id > 3"
    )
    assert made.fragment is not None
    assert "note" in made.fragment
    assert "key_range" in made.fragment  # b.id > 3
    assert made.fragment.count("append") == 2
    assert "b.note" not in made.fragment


@pytest.mark.parametrize(
    ("sql", "routed"),
    [
        (
            "UPDATE orders SET total = total + 1 WHERE note = 'x'",
            "all; in the coordinator, on borrowed rows, if they are several",
        ),
        ("UPDATE items SET kind = 'x'", "all; in the coordinator, on borrowed rows, if they are several"),
        (
            "DELETE FROM orders WHERE id IN (3, ?)",
            "those of keys 3, ?1; in the coordinator, on borrowed rows, if they are several",
        ),
        ("INSERT INTO orders (id) VALUES (?)", "the one of key ?1"),
    ],
)
def test_what_writes_runs_whole(sql: str, routed: str) -> None:
    made = planned(sql)
    assert (made.fragment, made.merge) == (None, None)
    assert made.notes[0] == f"Partitions: {routed}"


def test_a_plan_says_what_it_reads_and_writes() -> None:
    made = planned("INSERT INTO orders (id, total) SELECT age, 1 FROM people WHERE name IN (SELECT item FROM lines)")
    assert made.reads == (1, 2)
    assert made.writes == (0,)
    assert planned("SELECT count(*) FROM orders WHERE id IN (SELECT order_id FROM lines)").reads == (0, 1)
