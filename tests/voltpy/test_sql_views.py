"""SELECT on views: what is stored of them, put together, is what their SELECT says. The schema that declares them."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from tests.voltpy.sql_split import Parts, in_some_order
from voltpy.errors import SchemaError, SqlError
from voltpy.schema import Schema, describe, from_json, grown, to_json
from voltpy.sql.catalogue import Catalogue
from voltpy.sql.ddl import parse_schema
from voltpy.sql.plan import compiled
from voltpy.sql.planner import plan
from voltpy.testing import Engine

TABLES = """
CREATE TABLE sales (id INT PRIMARY KEY, shop STRING, kind INT NOT NULL, cents INT, price FLOAT, at TIMESTAMP, big BOOL);
PARTITION TABLE sales ON COLUMN id;
CREATE TABLE shops (shop STRING PRIMARY KEY, city STRING NOT NULL);
"""
BY_SHOP = "SELECT shop, kind % 3 AS k, COUNT(*) AS n, SUM(cents) AS total, MIN(at) AS first FROM sales GROUP BY shop, 2"
BY_ID = "SELECT id, MAX(price) AS price, COUNT(cents) AS counted FROM sales WHERE NOT big GROUP BY id"
BY_MONTH = (
    "SELECT CASE WHEN cents BETWEEN 2 AND 4 THEN 'few' ELSE COALESCE(shop, '-') END AS what, "
    "date_trunc('month', at) AS month, SUM(kind) AS kinds, MAX(cents) AS most "
    "FROM sales WHERE shop LIKE 'O%' OR shop IN ('Bergen', '') OR shop IS NULL GROUP BY 1, 2"
)
BY_CITY = "SELECT city, COUNT(*) AS n FROM shops GROUP BY city"
VIEWS = {"by_shop": BY_SHOP, "by_id": BY_ID, "by_month": BY_MONTH, "by_city": BY_CITY}
SCHEMA = parse_schema(TABLES + "".join(f"CREATE VIEW {name} AS {query};\n" for name, query in VIEWS.items()))

QUERIES = [
    ("SELECT * FROM by_shop", ()),
    ("SELECT * FROM by_shop WHERE shop = ? AND k = 1", ("Oslo",)),
    ("SELECT n FROM by_shop WHERE shop IS NULL", ()),
    ("SELECT SUM(n), MAX(total) FROM by_shop", ()),
    ("SELECT k, SUM(n) FROM by_shop WHERE shop <> 'Oslo' GROUP BY k HAVING SUM(n) > 3", ()),
    ("SELECT * FROM by_shop WHERE total > ? AND k IN (0, 2)", (5,)),
    ("SELECT shop, k FROM by_shop ORDER BY total DESC, shop, k LIMIT 3", ()),
    ("SELECT * FROM by_id WHERE id = ?", (7,)),
    ("SELECT * FROM by_id WHERE id IN (3, 5, 7)", ()),
    ("SELECT COUNT(*), SUM(counted) FROM by_id", ()),
    ("SELECT s.id, v.price FROM sales s LEFT JOIN by_id v ON v.id = s.id WHERE s.kind = 1", ()),
    ("SELECT * FROM by_month WHERE most >= 2", ()),
    ("SELECT what, COUNT(*) FROM by_month GROUP BY what", ()),
    ("SELECT * FROM by_city", ()),
    ("SELECT c.city, v.n FROM shops c JOIN by_shop v ON v.shop = c.shop WHERE v.k = 0", ()),
    ("SELECT c.shop FROM shops c LEFT JOIN by_shop v ON v.shop = c.shop AND v.k = 0 WHERE v.n IS NULL", ()),
    ("SELECT id FROM sales s WHERE cents = (SELECT MAX(most) FROM by_month)", ()),
    ("SELECT id FROM sales s WHERE EXISTS (SELECT 1 FROM by_shop v WHERE v.shop = s.shop AND v.total = s.cents)", ()),
    ("WITH t AS (SELECT shop, SUM(n) AS n FROM by_shop GROUP BY shop) SELECT * FROM t a JOIN t b ON a.n = b.n", ()),
    ("SELECT shop, n FROM by_shop UNION ALL SELECT city, n FROM by_city", ()),
    ("SELECT a.shop FROM by_shop a JOIN by_shop AS b (s, k) ON a.shop = b.s AND a.k = b.k WHERE a.k = 1", ()),
]


def rows(seed: int) -> list[list[Any]]:
    random = Random(seed)
    shops = [None, "Oslo", "Bergen", "", "Odda"]
    return [
        [id, random.choice(shops), random.randrange(-4, 5), random.choice([None, *range(-2, 6)]),
         random.choice([None, 0.5, -2.25]), f"2024-0{random.randrange(1, 5)}-03T00:00:00Z",
         random.choice([True, False, None])]
        for id in range(90)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def parts() -> Parts:
    parts = Parts(SCHEMA, 3)
    parts.insert("sales", rows(11))
    parts.insert("shops", [["Oslo", "Oslo"], ["Bergen", "Bergen"], ["Odda", "Odda"], ["Voss", "Voss"], ["", "Oslo"]])
    for engine in (parts.whole, *parts.engines):
        engine.execute("UPDATE sales SET cents = cents + 1 WHERE kind = 2")
        engine.execute("DELETE FROM sales WHERE id % 9 = 0")
        engine.check()
    return parts


@pytest.mark.parametrize(("sql", "parameters"), QUERIES)
def test_a_view_is_what_its_select_says(sql: str, parameters: Any, parts: Parts) -> None:
    def said(name: str) -> str:
        return f"({VIEWS[name]}) AS {name}"

    plain = sql
    for name in VIEWS:
        for before in ("FROM ", "JOIN "):
            for alias in (" v", " a", " AS b"):
                plain = plain.replace(f"{before}{name}{alias}", f"{before}({VIEWS[name]}){alias}")
            plain = plain.replace(f"{before}{name}", f"{before}{said(name)}")
    expected = in_some_order(parts.whole.execute(plain, parameters).rows)
    assert expected or "IS NULL" in sql
    assert in_some_order(parts.whole.execute(sql, parameters).rows) == expected
    assert in_some_order(parts.select(sql, parameters)) == expected
    across = plan(sql, Catalogue(SCHEMA)).across
    assert across is not None
    run = compiled(across, SCHEMA)
    assert in_some_order(parts.on(parts.whole, lambda tx: run(tx, parameters))) == in_some_order(
        parts.on(parts.whole, lambda tx: tx.execute(plain, parameters).rows)
    )


def test_a_schema_with_views_is_stored_and_described() -> None:
    assert parse_schema(describe(SCHEMA)) == SCHEMA
    assert from_json(to_json(SCHEMA)) == SCHEMA
    assert f"CREATE VIEW by_city AS {BY_CITY};\n" in describe(SCHEMA)


def test_a_schema_may_gain_views_and_not_change_them() -> None:
    without = parse_schema(TABLES)
    assert grown(without, SCHEMA) == SCHEMA
    assert grown(SCHEMA, parse_schema(describe(SCHEMA).replace("GROUP BY city", "GROUP  BY  city"))) == SCHEMA
    with pytest.raises(SchemaError, match="table by_city is stored and missing"):
        grown(SCHEMA, parse_schema(describe(SCHEMA).replace(f"CREATE VIEW by_city AS {BY_CITY};\n", "")))
    with pytest.raises(SchemaError, match="the view is stored as SELECT city"):
        grown(SCHEMA, parse_schema(describe(SCHEMA).replace("COUNT(*) AS n FROM shops", "COUNT(*) AS m FROM shops")))


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("SELECT shop, ▲AVG(cents) AS a FROM sales GROUP BY shop", "keep SUM and COUNT"),
        ("SELECT shop, COUNT(*) AS n FROM sales GROUP BY shop, ▲kind", "every key of GROUP BY must be selected"),
        ("SELECT shop, COUNT(*) ▲+ 1 AS n FROM sales GROUP BY shop", "nothing but a key of GROUP BY, COUNT"),
        ("SELECT ▲price, COUNT(*) AS n FROM sales GROUP BY price", "not FLOAT"),
        ("SELECT shop, ▲SUM(price) AS s FROM sales GROUP BY shop", "SUM in a view is of INTs"),
        ("▲SELECT COUNT(*) AS n FROM sales", "a view has GROUP BY"),
        ("SELECT shop, COUNT(*) AS n FROM sales GROUP BY shop ORDER BY ▲shop", "ORDER BY is not supported"),
        ("SELECT shop, COUNT(*) AS n FROM sales GROUP BY shop HAVING COUNT(*) ▲> 1", "HAVING is not supported"),
        ("SELECT shop, COUNT(*) AS n FROM ▲by_id GROUP BY shop", "by_id is a view itself"),
        ("SELECT shop, COUNT(*) AS n FROM sales WHERE kind = ▲? GROUP BY shop", "parameters"),
        ("SELECT shop, ▲COUNT(DISTINCT cents) AS n FROM sales GROUP BY shop", "DISTINCT and FILTER"),
        ("▲SELECT DISTINCT shop FROM sales GROUP BY shop", "its groups are distinct"),
        ("SELECT shop, ▲COUNT(*) FROM sales GROUP BY shop, COUNT(*)", ""),
        ("SELECT shop, ▲shop AS again FROM sales GROUP BY shop", "stands here already"),
        ("SELECT kind ▲+ 1, COUNT(*) AS n FROM sales GROUP BY 1", "give it a name with AS"),
        ("SELECT shop, MIN(cents) AS x, ▲MAX(cents) AS x FROM sales GROUP BY shop", "two columns x"),
    ],
)
def test_what_can_not_be_kept_up_to_date_is_an_error_at_its_place(query: str, message: str) -> None:
    before, _, after = query.partition("▲")
    text = describe(SCHEMA) + "\nCREATE VIEW v AS\n  "
    with pytest.raises(SchemaError) as raised:
        parse_schema(f"{text}{before}{after};")
    assert message in str(raised.value)
    if message:
        assert f"line {text.count(chr(10)) + 1}, column {len(before) + 3}: " in str(raised.value)


def test_statements_that_write_to_a_view_or_move_its_table_are_refused(parts: Parts) -> None:
    for sql in ("INSERT INTO by_id VALUES (1, 2.0, 3)", "UPDATE by_id SET price = 1", "DELETE FROM by_id"):
        with pytest.raises(SqlError, match="by_id is a view of sales: write to that, and it follows"):
            parts.whole.execute(sql)
    for text in (
        "PARTITION TABLE by_city ON COLUMN n",
        "CREATE INDEX i ON by_city (n)",
        "PARTITION TABLE shops ON COLUMN shop",
    ):
        with pytest.raises(SchemaError, match="view"):
            parse_schema(describe(SCHEMA) + text)


def test_a_table_with_views_gets_columns_and_stays() -> None:
    with Engine(SCHEMA) as db:
        db.execute("INSERT INTO sales (id, shop, kind, cents) VALUES (1, 'Oslo', 1, 5), (2, 'Oslo', 1, 7)")
        db.execute("ALTER TABLE sales ADD COLUMN note STRING DEFAULT 'none'")
        db.execute("INSERT INTO sales (id, shop, kind, cents, note) VALUES (3, 'Oslo', 1, 2, 'new')")
        db.execute("DELETE FROM sales WHERE id = 2")
        assert db.execute("SELECT * FROM by_shop").rows == [("Oslo", 1, 2, 7, None)]
        db.check()
        for sql in (
            "DROP TABLE sales",
            "DROP TABLE by_shop",
            "ALTER TABLE by_shop ADD COLUMN a INT",
            "CREATE VIEW by_shop AS SELECT id, COUNT(*) AS n FROM sales GROUP BY id",
        ):
            with pytest.raises(SchemaError, match="view"):
                db.execute(sql)
        assert db.execute("SELECT n FROM by_shop WHERE shop = 'Oslo' AND k = 1").rows == [(2,)]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"base": "shops"', '"base": "nothing"'),
        ('"base": "shops"', '"base": "by_id"'),
        ('"kind": "rows"', '"kind": "median"'),
        ('"like"', '"__import__"'),
        ('"\\"date_trunc\\""', '"\\"exec\\""'),
        ('"\\"Bergen\\""', '"\\"Bergen"'),
    ],
)
def test_a_stored_view_that_is_damaged_is_an_error(old: str, new: str) -> None:
    stored = to_json(SCHEMA).decode()
    assert old in stored

    def start() -> None:
        Parts(from_json(stored.replace(old, new).encode()), 1)

    with pytest.raises(SchemaError):
        start()


def test_a_schema_of_tables_alone_has_no_views() -> None:
    schema: Schema = parse_schema(TABLES)
    assert schema.views_of("sales") == ()
    assert [view.name for view in SCHEMA.views_of("sales")] == ["by_shop", "by_id", "by_month"]
