"""The stored schema, what is derived from it, and how it may grow."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from voltpy.errors import SchemaError
from voltpy.schema import (
    Column,
    Index,
    Schema,
    Table,
    check,
    column_text,
    describe,
    from_json,
    grown,
    index_text,
    to_json,
)
from voltpy.sql.ddl import parse_schema
from voltpy.sql.ddl_change import parse_change

LINES = Table(
    name="lines",
    columns=(
        Column("number", "INT", nullable=False),
        Column("made", "TIMESTAMP", nullable=False, has_default=True, default=datetime(2024, 5, 17, 8, 30, tzinfo=UTC)),
        Column("order_id", "STRING", nullable=False),
        Column("price", "FLOAT", nullable=True, has_default=True, default=1.0),
        Column("paid", "BOOL", nullable=False, has_default=True, default=False),
        Column("note", "STRING", nullable=True, has_default=True, default="2024-05-17"),
    ),
    primary_key=("order_id", "number"),
    hidden_key=False,
    partition_column="order_id",
)
EVENTS = Table(
    name="events",
    columns=(
        Column("what", "STRING", nullable=True),
        Column("host", "STRING", nullable=False),
        Column("rowid", "INT", nullable=False),
    ),
    primary_key=("rowid",),
    hidden_key=True,
    partition_column="host",
)
COPY = Table("copy", (Column("code", "INT", nullable=False),), ("code",), hidden_key=False, partition_column=None)
BY_NOTE = Index("by_note", "lines", "BTREE", ("note", "made"))
SCHEMA = Schema((LINES, EVENTS, COPY), (BY_NOTE,))


def changed(table: Table, **fields: Any) -> Table:
    values = {name: getattr(table, name) for name in table.__struct_fields__}
    return Table(**{**values, **fields})


def with_column(table: Table, position: int, column: Column) -> Table:
    return changed(table, columns=(*table.columns[:position], column, *table.columns[position + 1 :]))


def test_json_round_trip_keeps_every_default_and_its_type() -> None:
    again = from_json(to_json(SCHEMA))
    assert again == SCHEMA
    for before, after in zip(SCHEMA.tables, again.tables, strict=True):
        for old, new in zip(before.columns, after.columns, strict=True):
            assert type(old.default) is type(new.default)
    assert again.tables[0].columns[1].default == datetime(2024, 5, 17, 8, 30, tzinfo=UTC)


def test_stored_timestamp_of_another_zone_is_read_as_utc() -> None:
    stored = to_json(SCHEMA).replace(b"2024-05-17T08:30:00Z", b"2024-05-17T10:30:00+02:00")
    assert b"+02:00" in stored
    assert from_json(stored) == SCHEMA


def test_derived_positions() -> None:
    assert LINES.positions == {"number": 0, "made": 1, "order_id": 2, "price": 3, "paid": 4, "note": 5}
    assert (LINES.key_positions, LINES.partition_position, LINES.partition_key_index) == ((2, 0), 2, 0)
    assert (EVENTS.key_positions, EVENTS.partition_position, EVENTS.partition_key_index) == ((2,), 1, None)
    assert (COPY.key_positions, COPY.partition_position, COPY.partition_key_index) == ((0,), None, None)
    assert LINES.python_types == (int, datetime, str, float, bool, str)
    assert LINES.defaults == (None, datetime(2024, 5, 17, 8, 30, tzinfo=UTC), None, 1.0, False, "2024-05-17")
    assert LINES.required == (True, False, True, False, False, False)
    assert EVENTS.required == (False, True, False)
    assert LINES.key_positions is LINES.key_positions, "worked out once"


def test_look_up_by_name() -> None:
    assert SCHEMA.numbers == {"lines": 0, "events": 1, "copy": 2}
    assert SCHEMA.table("events") is EVENTS
    assert LINES.column("paid").type == "BOOL"
    assert SCHEMA.indexes_of("lines") == (BY_NOTE,)
    assert SCHEMA.indexes_of("copy") == ()
    with pytest.raises(SchemaError, match="there is no table line"):
        SCHEMA.table("line")
    with pytest.raises(SchemaError, match="table copy has no column x"):
        COPY.column("x")


def test_reading_a_stored_schema_imports_no_sql_parser() -> None:
    program = (
        "import sys, voltpy.schema, voltpy.data_directory\n"
        "sys.exit(bool({'sqlglot', 'click', 'numpy', 'zmq'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"tables": [], "indexes": []' + b" " * 9,
        b'{"tables": 5, "indexes": []}',
        b'{"tables": [], "indexes": [], "version": "1"}',
        b"[" * 100_000,
    ],
)
def test_bytes_that_are_no_schema_are_refused(data: bytes) -> None:
    with pytest.raises(SchemaError, match="not a stored schema"):
        from_json(data)


def test_another_version_is_refused() -> None:
    with pytest.raises(SchemaError, match="has format version 3; this program reads up to 2"):
        from_json(to_json(Schema((), (), version=3)))
    assert from_json(to_json(Schema((LINES,), (), version=1))) == Schema((LINES,), ())


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (["tables", 0, "name"], "abort", "table 'abort': taken by tx.abort"),
        (["tables", 0, "name"], "events", "a table name occurs twice"),
        (["tables", 0, "name"], "a b", "not a Python identifier"),
        (["tables", 0, "columns"], [], "column count"),
        (["tables", 0, "columns", 0, "name"], "_x", "begins with _"),
        (["tables", 0, "columns", 0, "name"], "made", "a column name occurs twice"),
        (["tables", 0, "columns", 0, "type"], "ANT", "not a stored schema"),
        (["tables", 0, "columns", 0, "nullable"], True, "number is nullable and in the primary key"),
        (["tables", 0, "columns", 1, "default"], "noon", "'noon' is not a timestamp"),
        (["tables", 0, "columns", 1, "default"], "0001-01-01T00:00:00+01:00", "is not a timestamp"),
        (["tables", 0, "columns", 1, "default"], 5, "the default doesn't fit"),
        (["tables", 0, "columns", 1, "default"], None, "the default doesn't fit"),
        (["tables", 0, "columns", 3, "default"], 1, "the default doesn't fit"),
        (["tables", 0, "columns", 3, "default"], [1], "the default doesn't fit"),
        (["tables", 0, "columns", 4, "has_default"], False, "the default doesn't fit"),
        (["tables", 0, "primary_key"], [], "the columns of the primary key of lines"),
        (["tables", 0, "primary_key"], ["order_id", "order_id"], "the columns of the primary key of lines"),
        (["tables", 0, "primary_key"], ["number"], "partition column order_id is not a declared part"),
        (["tables", 0, "primary_key"], ["nothing"], "table lines has no column nothing"),
        (["tables", 0, "partition_column"], "paid", "partition column of type BOOL"),
        (["tables", 0, "partition_column"], "note", "the partition column note is nullable"),
        (["tables", 0, "hidden_key"], True, "the hidden key is not rowid"),
        (["tables", 1, "partition_column"], "rowid", "not a declared part of the primary key"),
        (["tables", 1, "columns", 2, "type"], "FLOAT", "the hidden key is not in its place"),
        (["indexes", 0, "name"], "", "not a Python identifier"),
        (["indexes", 0, "table"], "nothing", "there is no table nothing"),
        (["indexes", 0, "columns"], ["nothing"], "table lines has no column nothing"),
        (["indexes", 0, "columns"], [], "the columns of index by_note"),
    ],
)
def test_damaged_schema_is_refused(path: list[Any], value: object, words: str) -> None:
    stored = json.loads(to_json(SCHEMA))
    place = stored
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(SchemaError, match=words):
        from_json(json.dumps(stored).encode())


def test_default_outside_64_bits_or_utc_is_no_default() -> None:
    table = with_column(COPY, 0, Column("code", "INT", nullable=False, has_default=True, default=1 << 63))
    with pytest.raises(SchemaError, match="the default doesn't fit"):
        check(Schema((table,), ()))
    east = datetime(2024, 5, 17, tzinfo=timezone(timedelta(hours=2)))
    with pytest.raises(SchemaError, match="the default doesn't fit"):
        check(Schema((with_column(LINES, 1, Column("made", "TIMESTAMP", False, True, east)),), ()))


def test_grown_keeps_the_numbers_of_stored_tables() -> None:
    new_table = changed(COPY, name="aaa")
    by_what = Index("by_what", "events", "HASH", ("what",))
    on_new = Index("on_new", "aaa", "HASH", ("code",))
    new = Schema((new_table, COPY, EVENTS, LINES), (on_new, BY_NOTE, by_what))
    result = grown(SCHEMA, new)
    assert [table.name for table in result.tables] == ["lines", "events", "copy", "aaa"]
    assert result.indexes == (BY_NOTE, on_new, by_what)
    assert grown(SCHEMA, SCHEMA) == SCHEMA
    check(result)


@pytest.mark.parametrize(
    ("new", "words"),
    [
        (Schema((LINES, COPY), (BY_NOTE,)), "table events is stored and missing from the new schema"),
        (Schema((LINES, EVENTS, COPY), ()), "index by_note is stored and missing"),
        (
            Schema((LINES, EVENTS, COPY), (Index("by_note", "lines", "HASH", ("note",)),)),
            r"index by_note: stored as CREATE INDEX by_note ON lines USING BTREE \(note, made\), now CREATE .* HASH",
        ),
        (
            Schema((changed(LINES, columns=LINES.columns[:-1]), EVENTS, COPY), (BY_NOTE,)),
            "table lines: column note is stored and missing",
        ),
        (
            Schema((changed(COPY, columns=(*COPY.columns, Column("x", "INT", False))), EVENTS, LINES), (BY_NOTE,)),
            "table copy: column x is new, and NOT NULL without a DEFAULT",
        ),
        (
            Schema((with_column(LINES, 3, Column("price", "INT", True)), EVENTS, COPY), (BY_NOTE,)),
            "table lines: column price is stored as price FLOAT DEFAULT 1.0, now price INT;",
        ),
        (
            Schema((changed(LINES, primary_key=("number", "order_id")), EVENTS, COPY), (BY_NOTE,)),
            r"table lines: the primary key is stored as \(order_id, number\), now \(number, order_id\)",
        ),
        (
            Schema((LINES, changed(EVENTS, partition_column=None), COPY), (BY_NOTE,)),
            "table events: stored as partitioned on host, and the new schema has it a full copy in every partition",
        ),
        (
            Schema((changed(LINES, columns=LINES.columns[::-1]), EVENTS, COPY), (BY_NOTE,)),
            "table lines: its columns stand in another order",
        ),
    ],
)
def test_schema_that_does_more_than_grow_is_refused(new: Schema, words: str) -> None:
    with pytest.raises(SchemaError, match=words) as raised:
        grown(SCHEMA, new)
    assert "may only gain tables, indexes, and columns at the end" in str(raised.value)


def made_by(text: str, schema: Schema) -> Schema:
    return parse_change(text, schema)[0]


FILE = "CREATE TABLE a (id INT PRIMARY KEY, x INT); CREATE TABLE b (id INT PRIMARY KEY); CREATE INDEX b_id ON b (id);"


def test_schema_that_was_given_before_keeps_what_statements_have_changed_since() -> None:
    given = parse_schema(FILE)
    stored = made_by(
        "ALTER TABLE a ADD y INT; PARTITION TABLE a ON COLUMN id; DROP TABLE b; CREATE TABLE c (id INT PRIMARY KEY);"
        "CREATE INDEX a_x ON a (x)",
        given,
    )
    assert grown(stored, given, given) == stored
    with pytest.raises(SchemaError, match="table a: column y is stored and missing"):
        grown(stored, given)  # where nobody knows what was given before
    again = made_by("DROP TABLE a; CREATE TABLE a (other STRING PRIMARY KEY)", stored)
    assert grown(again, given, given) == again


def test_schema_that_is_given_anew_adds_to_what_statements_have_made() -> None:
    before = parse_schema(FILE)
    stored = made_by("DROP TABLE b; CREATE TABLE c (id INT PRIMARY KEY)", before)
    given = parse_schema(
        FILE.replace("x INT", "x INT, y STRING DEFAULT 'n'") + "CREATE TABLE d (id INT); CREATE INDEX a_x ON a (x)"
    )
    result = grown(stored, given, before)
    assert [(table.name, table.dropped, table.added) for table in result.tables] == [
        ("a", False, 1), ("b", True, 0), ("c", False, 0), ("d", False, 0)
    ]  # fmt: skip
    assert [index.name for index in result.indexes] == ["a_x"]
    check(result)
    # What statements have added may be written into the file, too.
    same = parse_schema(FILE.replace("CREATE TABLE b (id INT PRIMARY KEY); CREATE INDEX b_id ON b (id);", ""))
    with pytest.raises(SchemaError, match="table c is"):
        grown(stored, same)
    both = parse_schema(FILE + "CREATE TABLE c (id INT PRIMARY KEY);")
    assert grown(stored, both, before) == stored


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (FILE.replace("x INT", "y INT"), "table a: column x is stored and missing"),
        (FILE.replace("x INT", "x FLOAT"), "table a: column x is stored as x INT, now x FLOAT"),
        (FILE.replace("x INT", "y INT, x INT"), "table a: its columns stand in another order"),
        (FILE + "CREATE INDEX b_2 ON b (id);", "index b_2 is on table b, which has been dropped since"),
        (FILE.replace("CREATE TABLE a (id INT PRIMARY KEY, x INT);", ""), "table a is stored and missing"),
        (
            FILE + "CREATE TABLE c (id STRING PRIMARY KEY);",
            "table c: column id is stored as id INT NOT NULL, now id ST",
        ),
    ],
)
def test_schema_that_contradicts_what_statements_have_made_is_refused(text: str, words: str) -> None:
    before = parse_schema(FILE)
    stored = made_by("DROP TABLE b; CREATE TABLE c (id INT PRIMARY KEY)", before)
    with pytest.raises(SchemaError, match=words):
        grown(stored, parse_schema(text), before)


def test_hidden_key_stays_where_it_is_when_columns_are_added() -> None:
    table = made_by("ALTER TABLE h ADD y INT DEFAULT 1", parse_schema("CREATE TABLE h (x INT)")).table("h")
    assert [column.name for column in table.columns] == ["x", "rowid", "y"]
    assert [column.name for column in table.declared] == ["x", "y"]
    assert parse_schema(describe(Schema((table,), ()))).table("h").declared == table.declared


def test_dropped_table_leaves_its_number() -> None:
    schema = made_by("DROP TABLE a; CREATE TABLE a (id INT PRIMARY KEY)", parse_schema(FILE))
    assert schema.numbers == {"b": 1, "a": 2}
    assert schema.dropped_names == frozenset()
    assert [table.name for table in schema.live] == ["b", "a"]
    assert from_json(to_json(schema)) == schema
    assert "CREATE TABLE a" in describe(schema)
    with pytest.raises(SchemaError, match="table a is dropped, and not gone"):
        check(Schema((changed(LINES, name="a", dropped=True),), ()))


def test_described() -> None:
    assert describe(SCHEMA) == (
        "CREATE TABLE lines (\n"
        "    number INT NOT NULL,\n"
        "    made TIMESTAMP NOT NULL DEFAULT '2024-05-17T08:30:00+00:00',\n"
        "    order_id STRING NOT NULL,\n"
        "    price FLOAT DEFAULT 1.0,\n"
        "    paid BOOL NOT NULL DEFAULT FALSE,\n"
        "    note STRING DEFAULT '2024-05-17',\n"
        "    PRIMARY KEY (order_id, number)\n"
        ");\n"
        "PARTITION TABLE lines ON COLUMN order_id;\n"
        "CREATE TABLE events (\n"
        "    what STRING,\n"
        "    host STRING NOT NULL\n"
        ");\n"
        "PARTITION TABLE events ON COLUMN host;\n"
        "CREATE TABLE copy (\n"
        "    code INT NOT NULL,\n"
        "    PRIMARY KEY (code)\n"
        ");\n"
        "CREATE INDEX by_note ON lines USING BTREE (note, made);\n"
    )


def test_names_that_need_quotes_get_them() -> None:
    assert column_text(Column("Order", "INT", nullable=True)) == '"Order" INT'
    assert index_text(Index("i", "order", "HASH", ("a", "B"))) == 'CREATE INDEX i ON "order" USING HASH (a, "B")'
    assert column_text(Column("s", "STRING", True, True, "it's")) == "s STRING DEFAULT 'it''s'"


def test_schemas_of_a_time_before_unique_indexes_are_read() -> None:
    stored = to_json(Schema((LINES, EVENTS, COPY), (BY_NOTE,)))
    older = re.sub(rb',\s*"unique": false', b"", stored)
    assert older != stored
    assert from_json(older).indexes == (BY_NOTE,)


def test_a_unique_index_without_the_partition_column_is_no_valid_schema() -> None:
    by_what = Index("by_what", "events", "HASH", ("what",), unique=True)
    with pytest.raises(SchemaError, match="index by_what is unique and without host"):
        check(Schema((LINES, EVENTS, COPY), (by_what,)))
    check(Schema((LINES, EVENTS, COPY), (Index("by_both", "events", "HASH", ("what", "host"), unique=True),)))
