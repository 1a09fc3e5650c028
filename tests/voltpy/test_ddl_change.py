"""Statements that change a schema: what they make of it, and the place that every error names."""

from __future__ import annotations

import pytest

from voltpy import schema as schema_module
from voltpy.errors import SchemaError
from voltpy.schema import describe
from voltpy.sql.ddl import parse_schema
from voltpy.sql.ddl_change import MAX_CHANGE_TEXT_BYTES, parse_change

BEFORE = parse_schema(
    "CREATE TABLE t (id INT PRIMARY KEY, a STRING); PARTITION TABLE t ON COLUMN id; CREATE INDEX t_a ON t (a);"
    "CREATE TABLE h (x INT NOT NULL);"
)


def described_change(text: str) -> tuple[str, str]:
    """(the SQL of the schema that it makes, without what there was; the kind)"""
    schema, kind = parse_change(text, BEFORE)
    schema_module.check(schema)
    assert schema_module.from_json(schema_module.to_json(schema)) == schema
    added = [line for line in describe(schema).splitlines() if line not in describe(BEFORE).splitlines()]
    return " ".join(line.strip() for line in added), kind


@pytest.mark.parametrize(
    ("text", "made", "kind"),
    [
        (
            "create table n (k int primary key, z float); partition table n on column k",
            "CREATE TABLE n ( k INT NOT NULL, z FLOAT, PRIMARY KEY (k) PARTITION TABLE n ON COLUMN k;",
            "partition table",
        ),
        ("CREATE UNIQUE INDEX u ON t (id, a)", "CREATE UNIQUE INDEX u ON t USING INVERTED (id, a);", "create index"),
        ("CREATE INDEX u ON h (x)", "CREATE INDEX u ON h USING INVERTED (x);", "create index"),
        ("ALTER TABLE t ADD COLUMN b BOOL", "b BOOL,", "alter table"),
        (
            "ALTER TABLE h ADD c INT NOT NULL DEFAULT 3, ADD d STRING;",
            "x INT NOT NULL, c INT NOT NULL DEFAULT 3, d STRING",
            "alter table",
        ),
        ("DROP INDEX t_a;", "", "drop index"),
        ("PARTITION TABLE h ON COLUMN x", "PARTITION TABLE h ON COLUMN x;", "partition table"),
        (
            "create view if not exists v as select a, count(*) as n from t group by a",
            "CREATE VIEW v AS select a, count(*) as n from t group by a;",
            "create view",
        ),
    ],
)  # fmt: skip
def test_statements_change_a_schema(text: str, made: str, kind: str) -> None:
    assert described_change(text) == (made, kind)


@pytest.mark.parametrize(
    "text",
    [
        "CREATE TABLE IF NOT EXISTS t (other STRING)",
        "CREATE INDEX IF NOT EXISTS t_a ON h (x)",
        "DROP TABLE IF EXISTS nothing",
        "DROP INDEX IF EXISTS nothing;",
        "DROP VIEW IF EXISTS nothing",
        "CREATE VIEW IF NOT EXISTS t AS SELECT a, COUNT(*) AS n FROM t GROUP BY a",
        "ALTER TABLE t ADD COLUMN IF NOT EXISTS a INT",
        "PARTITION TABLE t ON COLUMN id",
    ],
)
def test_statement_that_finds_it_done_changes_nothing(text: str) -> None:
    assert parse_change(text, BEFORE)[0] is BEFORE


def test_dropped_table_takes_its_indexes_along_and_leaves_its_number() -> None:
    schema, kind = parse_change("DROP TABLE t", BEFORE)
    assert kind == "drop table"
    assert schema.numbers == {"h": 1}
    assert schema.indexes == ()
    schema, _ = parse_change("CREATE TABLE t (k INT PRIMARY KEY)", schema)
    assert schema.numbers == {"h": 1, "t": 2}
    assert [(table.name, table.dropped) for table in schema.tables] == [("t", True), ("h", False), ("t", False)]


def test_views_keep_their_table_until_they_are_dropped() -> None:
    view = "CREATE VIEW v AS SELECT a, COUNT(*) AS n FROM t GROUP BY a"
    schema, _ = parse_change(view, BEFORE)
    for text, words in (
        ("DROP TABLE t", 'found "t", expected a table without views: view v is over t'),
        ("DROP TABLE v", 'found "v", expected a table: v is a view, and goes with DROP VIEW'),
        (view, "a new name: view v exists already"),
        ("CREATE TABLE v (a INT)", "a new name: view v exists already"),
        ("DROP VIEW w", "the name of a view (v)"),
        ("CREATE VIEW w AS SELECT n, COUNT(*) AS m FROM v GROUP BY n", "v is a view itself"),
    ):
        with pytest.raises(SchemaError) as raised:
            parse_change(text, schema)
        assert words in str(raised.value)
    left, kind = parse_change("DROP VIEW v", schema)
    assert (kind, left.numbers) == ("drop view", BEFORE.numbers)
    left, _ = parse_change("DROP VIEW v; DROP TABLE t; " + view.replace("a,", "x,").replace("t G", "h G")
                           .replace("BY a", "BY x"), schema)  # fmt: skip
    assert left.numbers == {"h": 1, "v": 3}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("CREATE TABLE t (id INT)", 'found "t", expected a new name: table t exists already'),
        ("DROP TABLE nothing", 'found "nothing", expected a table (t, h)'),
        ("DROP INDEX t", 'found "t", expected the name of an index (t_a)'),
        ("DROP VIEW v", 'found "v", expected the name of a view (there is none)'),
        ("DROP VIEW IF EXISTS t", 'found "t", expected a view: t is a table'),
        ("DROP SEQUENCE s", 'found "SEQUENCE", expected TABLE, INDEX or VIEW'),
        ("CREATE VIEW t AS SELECT a, COUNT(*) AS n FROM t GROUP BY a", "a new name: table t exists already"),
        ("CREATE OR REPLACE VIEW t AS SELECT 1", "OR REPLACE is not supported"),
        ("ALTER TABLE t ADD a INT", "a new name: column a exists already"),
        ("ALTER TABLE t ADD b INT NOT NULL", "a column that is nullable, or has a DEFAULT"),
        ("ALTER TABLE t ADD b INT PRIMARY KEY", "a column that is no part of the primary key"),
        ("ALTER TABLE t DROP COLUMN a", "expected ADD: ALTER TABLE adds columns, and does nothing else"),
        ("ALTER TABLE t RENAME TO u", "expected ADD: ALTER TABLE adds columns, and does nothing else"),
        ("ALTER INDEX t_a", "expected TABLE"),
        ("ALTER TABLE h ADD rowid INT", "column rowid exists already"),
        ("PARTITION TABLE t ON COLUMN a", "another table: t is partitioned on id"),
        ("DROP TABLE t CASCADE", "CASCADE is not supported"),
        ("CREATE UNIQUE INDEX u ON t (a)", "id among the columns"),
        ("TRUNCATE t", "expected CREATE TABLE, DROP TABLE, ALTER TABLE"),
        ("SELECT 1", "expected CREATE TABLE, DROP TABLE, ALTER TABLE"),
        (" ; ", "expected CREATE TABLE, DROP TABLE, ALTER TABLE"),
    ],
)
def test_statement_that_changes_no_schema_is_refused_at_its_place(text: str, words: str) -> None:
    with pytest.raises(SchemaError) as raised:
        parse_change(text, BEFORE)
    assert str(raised.value).startswith("line 1, column "), raised.value
    assert words in str(raised.value)


def test_a_schema_that_no_frame_would_hold_is_refused() -> None:
    large = "CREATE TABLE large (id INT PRIMARY KEY, text STRING DEFAULT '{}')"
    schema = parse_schema(large.format("\x01" * 1_000_000))
    schema, _ = parse_change(large.format("\x01" * 120_000).replace("large", "less"), schema)
    schema, _ = parse_change(large.format("\x01" * 120_000).replace("large", "lesser"), schema)
    schema, _ = parse_change(large.format("\x01" * 120_000).replace("large", "least"), schema)
    with pytest.raises(SchemaError, match=r"would take 8,[0-9,]+ bytes; the limit for statements is 8,388,608"):
        parse_change(large.format("\x01" * 120_000).replace("large", "too_large"), schema)


def test_defaults_of_added_columns_leave_old_rows_readable() -> None:
    schema, _ = parse_change(f"ALTER TABLE t ADD COLUMN c1 STRING DEFAULT '{'é' * 32768}'", BEFORE)
    with pytest.raises(SchemaError, match=r"at most 65,536 bytes of defaults in added columns") as caught:
        parse_change("ALTER TABLE t ADD COLUMN c2 INT, ADD COLUMN c3 STRING DEFAULT 'x'", schema)
    assert "line 1, column 45" in str(caught.value)


def test_text_that_is_too_large_is_refused() -> None:
    with pytest.raises(SchemaError, match=r"line 1, column 1: found a change of the schema of 131,073 bytes"):
        parse_change(" " * (MAX_CHANGE_TEXT_BYTES + 1), BEFORE)
