"""The DDL that is read, the place that every error names, and that no text makes it do anything else."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlglot
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlglot import exp

from voltpy.errors import SchemaError
from voltpy.schema import (
    RESERVED_WORDS,
    Column,
    Index,
    IndexKind,
    Schema,
    Table,
    TypeName,
    Value,
    can_be_unique,
    describe,
    name_problem,
)
from voltpy.sql.ddl import MAX_TEXT_BYTES, parse_schema

BANK = """\
-- Accounts and branches.
CREATE TABLE accounts (id INT PRIMARY KEY, owner STRING NOT NULL, city STRING, balance INT NOT NULL DEFAULT 0);
PARTITION TABLE accounts ON COLUMN id;                   -- the column must be part of the primary key
CREATE TABLE branches (code STRING PRIMARY KEY, name STRING);   /* a full copy /* in every */ partition */
CREATE INDEX accounts_city ON accounts USING INVERTED (city);
"""


def columns(text: str) -> tuple[Column, ...]:
    return parse_schema(f"CREATE TABLE t ({text})").tables[0].columns


def only_column(text: str) -> Column:
    """The column that the text declares, of a table without a primary key."""
    declared, hidden = columns(text)
    assert hidden == Column("rowid", "INT", nullable=False)
    return declared


def test_schema_with_partitioned_table_full_copy_and_index() -> None:
    assert parse_schema(BANK) == Schema(
        tables=(
            Table(
                name="accounts",
                columns=(
                    Column("id", "INT", nullable=False),
                    Column("owner", "STRING", nullable=False),
                    Column("city", "STRING", nullable=True),
                    Column("balance", "INT", nullable=False, has_default=True, default=0),
                ),
                primary_key=("id",),
                hidden_key=False,
                partition_column="id",
            ),
            Table(
                name="branches",
                columns=(Column("code", "STRING", nullable=False), Column("name", "STRING", nullable=True)),
                primary_key=("code",),
                hidden_key=False,
                partition_column=None,
            ),
        ),
        indexes=(Index("accounts_city", "accounts", "INVERTED", ("city",)),),
    )


def test_examples_of_the_documentation() -> None:
    page = (Path(__file__).parents[2] / "docs" / "schema.md").read_text()
    statements = page.split("```sql\n")[1].split("```")[0]
    assert [table.name for table in parse_schema(statements).tables] == ["accounts", "branches"]
    with pytest.raises(SchemaError) as raised:
        parse_schema("CREATE TABLE t (\n    id INT PRIMARY KEY,\n    code STRING UNIQUE,\n);")
    assert str(raised.value) in page


@pytest.mark.parametrize(
    ("type_name", "spellings"),
    [
        ("INT", "INT|INTEGER|BIGINT|SMALLINT|TINYINT|INT2|INT4|INT8|int"),
        ("FLOAT", "FLOAT|FLOAT4|FLOAT8|REAL|DOUBLE|DOUBLE PRECISION|Double  Precision|DOUBLE/**/PRECISION"),
        (
            "STRING",
            "STRING|TEXT|VARCHAR|VARCHAR(20)|VARCHAR ( 20 )|CHARACTER VARYING(8)|CHAR VARYING|CHAR(3)|CHARACTER",
        ),
        ("BOOL", "BOOL|BOOLEAN"),
        ("TIMESTAMP", "TIMESTAMP|DATETIME|TIMESTAMPTZ|TIMESTAMP WITH TIME ZONE|TIMESTAMP WITHOUT TIME\nZONE"),
    ],
)
def test_type_synonyms(type_name: TypeName, spellings: str) -> None:
    for spelling in spellings.split("|"):
        assert only_column(f"c {spelling}") == Column("c", type_name, nullable=True), spelling


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("INT DEFAULT 7", 7),
        ("INT DEFAULT -9223372036854775808", -(2**63)),
        ("INT DEFAULT + 9223372036854775807", 2**63 - 1),
        ("INT DEFAULT " + "0" * 6000 + "1", 1),
        ("FLOAT DEFAULT 3", 3.0),
        ("FLOAT DEFAULT -2.5e-3", -0.0025),
        ("STRING DEFAULT ''", ""),
        ("STRING DEFAULT 'it''s \\n \"so\" -- é'", 'it\'s \\n "so" -- é'),
        ("BOOL DEFAULT true", True),
        ("BOOL DEFAULT FALSE", False),
        ("TIMESTAMP DEFAULT '2024-05-17'", datetime(2024, 5, 17, tzinfo=UTC)),
        ("TIMESTAMP DEFAULT '2024-05-17T08:30:00.25+02:00'", datetime(2024, 5, 17, 6, 30, 0, 250_000, tzinfo=UTC)),
        ("TIMESTAMP DEFAULT '2024-05-17 08:30:00Z'", datetime(2024, 5, 17, 8, 30, tzinfo=UTC)),
    ],
)
def test_defaults(text: str, value: object) -> None:
    column = only_column("c " + text + " NOT NULL")
    assert (column.default, type(column.default), column.has_default) == (value, type(value), True)
    assert not column.nullable


def test_default_null_is_no_default() -> None:
    assert only_column("c INT DEFAULT NULL") == only_column("c INT NULL") == Column("c", "INT", nullable=True)


def test_composite_key_makes_its_columns_not_null_in_its_own_order() -> None:
    table = parse_schema("CREATE TABLE t (PRIMARY KEY (c, a), a INT, b INT, c STRING DEFAULT 'x')").tables[0]
    assert table.primary_key == ("c", "a")
    assert [column.nullable for column in table.columns] == [False, True, False]
    assert not table.hidden_key


def test_table_without_primary_key_has_a_hidden_one_last() -> None:
    table = parse_schema("CREATE TABLE t (a STRING NOT NULL, b INT); PARTITION TABLE t ON COLUMN a").tables[0]
    assert [column.name for column in table.columns] == ["a", "b", "rowid"]
    assert (table.primary_key, table.hidden_key, table.partition_column) == (("rowid",), True, "a")


def test_rowid_is_a_name_like_others_where_a_primary_key_is_declared() -> None:
    table = parse_schema("CREATE TABLE t (rowid INT PRIMARY KEY)").tables[0]
    assert (table.primary_key, table.hidden_key) == (("rowid",), False)


def test_unquoted_names_fold_and_quoted_names_keep_their_case() -> None:
    table = parse_schema('CREATE TABLE Orders (ID INT PRIMARY KEY, "Total" INT, "order" INT, Ærlig INT)').tables[0]
    assert table.name == "orders"
    assert [column.name for column in table.columns] == ["id", "Total", "order", "ærlig"]


@pytest.mark.parametrize(
    ("using", "kind"),
    [("USING INVERTED", "INVERTED"), ("using hash", "HASH"), ("USING btree", "BTREE"), ("", "INVERTED")],
)
def test_index_kinds(using: str, kind: IndexKind) -> None:
    schema = parse_schema(f"CREATE TABLE t (a INT, b INT); CREATE INDEX i ON t {using} (b, A)")
    assert schema.indexes == (Index("i", "t", kind, ("b", "a")),)


def test_words_of_other_dialects_are_names() -> None:
    words = ["date", "time", "key", "value", "year", "type", "name", "temp", "text", "partition", "no", "copy"]
    assert [column.name for column in columns(" INT, ".join(words) + " INT")][:-1] == words


def test_blank_statements_and_a_byte_order_mark_are_skipped() -> None:
    assert parse_schema("\ufeff;; CREATE TABLE t (a INT);;\n; ").tables[0].name == "t"


# Each text is wrong at the mark ▲; the message has the words.
def test_a_unique_index_has_the_partition_column_or_a_table_that_is_whole_everywhere() -> None:
    text = "CREATE TABLE t (a INT PRIMARY KEY, b INT); {} CREATE UNIQUE INDEX i ON t USING BTREE ({})"
    for partition, columns in (("PARTITION TABLE t ON COLUMN a;", ("b", "a")), ("", ("b",))):
        schema = parse_schema(text.format(partition, ", ".join(columns)))
        assert schema.indexes == (Index("i", "t", "BTREE", columns, unique=True),)
        assert parse_schema(describe(schema)) == schema


WRONG = [
    # statements
    ("▲", "CREATE TABLE: a schema has at least one table"),
    ("▲-- nothing\n", "found the end of the text"),
    ("▲SELECT 1", 'found "SELECT", expected CREATE TABLE, CREATE INDEX, CREATE VIEW or PARTITION TABLE'),
    ("▲DROP TABLE t", "DROP is a statement for a running cluster"),
    ("▲INSERT INTO t VALUES (1)", "a schema holds no rows"),
    ("▲GRANT ALL ON t TO me", 'found "GRANT"'),
    (
        "CREATE ▲MATERIALIZED VIEW v AS SELECT 1",
        'found "MATERIALIZED", expected TABLE, INDEX or VIEW; write CREATE VIEW',
    ),
    ("CREATE VIEW v AS ▲SELECT 1", 'found "SELECT", expected a table that the view is over, above it'),
    ("CREATE ▲TEMP TABLE t (a INT)", "temporary tables are not supported"),
    ("CREATE ▲OR REPLACE TABLE t (a INT)", "OR REPLACE is not supported"),
    ("CREATE UNIQUE ▲TABLE t (a INT)", 'found "TABLE", expected INDEX'),
    ("CREATE TABLE ▲IF NOT EXISTS t (a INT)", "IF NOT EXISTS is not supported"),
    ("CREATE TABLE t (a INT)\n\n  ▲CREATE TABLE u (a INT)", 'found "CREATE", expected ";" after the statement'),
    ("CREATE TABLE t (a INT) ▲PARTITION TABLE t ON COLUMN a", 'expected ";" after the statement'),
    ("CREATE TABLE t (a INT) ▲PARTITION BY HASH (a)", "PARTITION TABLE … ON COLUMN …"),
    ("CREATE TABLE t (a INT) ▲WITH (fillfactor = 70)", "WITH is not supported here"),
    ("CREATE TABLE t ▲AS SELECT 1", "CREATE TABLE AS is not supported"),
    ("CREATE TABLE t (a INT)▲) ;", 'found ")"'),
    # names
    ("CREATE TABLE public▲.t (a INT)", "names qualified by a schema are not supported"),
    ("CREATE TABLE ▲'t' (a INT)", "found 't', expected the name of a table"),
    ("CREATE TABLE ▲order (a INT)", "ORDER is a word of SQL, and a name only in double quotes"),
    ("CREATE TABLE ▲abort (a INT)", "taken by tx.abort"),
    ("CREATE TABLE ▲db_tables (a INT)", "a table of the catalog"),
    ("CREATE TABLE t (▲class INT)", 'found "class", expected another name for a column: this is a Python keyword'),
    ("CREATE TABLE t (▲_a INT)", "a name that begins with _"),
    (
        'CREATE TABLE t (▲"two words" INT)',
        'found "two words", expected another name for a column: this is not a Python',
    ),
    ('CREATE TABLE t (▲"" INT)', "not a Python identifier"),
    ('CREATE TABLE t (▲"ﬁ" INT)', "NFKC"),
    ("CREATE TABLE t (▲a$b INT)", 'found "a$b", expected the name of a column'),
    (f"CREATE TABLE t (▲{'a' * 129} INT)", "a name of 129 characters, and 128 is the limit"),
    ("CREATE TABLE t (a INT); CREATE TABLE ▲T (a INT)", "expected a new name: table t exists already"),
    ("CREATE TABLE t (a INT, ▲A INT)", "column a exists already"),
    ("CREATE TABLE t (date INT, ▲date INT)", "column date exists already\n"),
    # elements
    ("CREATE TABLE t▲", 'expected "(" and the columns'),
    ("CREATE TABLE t (▲)", "expected the name of a column, or PRIMARY KEY"),
    ("CREATE TABLE t (a INT,▲)", "expected the name of a column, or PRIMARY KEY"),
    ("CREATE TABLE t (a INT▲\n", "found the end of the text, expected"),
    ("CREATE TABLE t (\n  a INT\n\t▲b INT\n)", 'found "b", expected ",", ")", NOT NULL, NULL, DEFAULT or PRIMARY KEY'),
    ("CREATE TABLE t (a INT PRIMARY KEY ▲b STRING)", 'found "b"'),
    ("CREATE TABLE t (▲UNIQUE (a))", "UNIQUE has its own statement: CREATE UNIQUE INDEX … ON … (…);"),
    ("CREATE TABLE t (a INT, ▲CHECK (a > 0))", "CHECK is not supported"),
    ("CREATE TABLE t (a INT, ▲FOREIGN KEY (a) REFERENCES u)", "FOREIGN KEY is not supported"),
    ("CREATE TABLE t (a INT, ▲CONSTRAINT k PRIMARY KEY (a))", "named constraints are not supported"),
    ("CREATE TABLE t (a INT ▲UNIQUE)", "UNIQUE has its own statement"),
    ("CREATE TABLE t (a INT ▲CHECK (a > 0))", "CHECK is not supported"),
    ("CREATE TABLE t (a INT ▲REFERENCES u)", "REFERENCES is not supported"),
    ("CREATE TABLE t (a INT ▲GENERATED ALWAYS AS IDENTITY)", "GENERATED columns are not supported"),
    ("CREATE TABLE t (a TEXT ▲COLLATE c)", "COLLATE is not supported"),
    ("CREATE TABLE t (a INT NOT NULL ▲NULL)", "NOT NULL or NULL once"),
    ("CREATE TABLE t (a INT NOT ▲NIL)", "expected NULL"),
    # types
    ("CREATE TABLE t (a▲)", "expected a type (INT, FLOAT, STRING, BOOL or TIMESTAMP)"),
    ("CREATE TABLE t (a ▲NOSUCH)", 'found "NOSUCH", expected a type'),
    ('CREATE TABLE t (a ▲"INT")', 'found "INT", expected a type'),
    ("CREATE TABLE t (a ▲DECIMAL(8, 2))", "DECIMAL is not supported: keep an INT of the smallest unit"),
    ("CREATE TABLE t (a ▲SERIAL)", "tx.unique_id()"),
    ("CREATE TABLE t (a ▲DATE)", "DATE is not supported"),
    ("CREATE TABLE t (a INT▲[])", "arrays are not supported"),
    ("CREATE TABLE t (a INT▲(11))", 'found "("'),
    ("CREATE TABLE t (a TIMESTAMP▲(3))", 'found "("'),
    ("CREATE TABLE t (a TIMESTAMP WITH ▲ZONE)", "expected TIME"),
    ("CREATE TABLE t (a VARCHAR(▲0))", "expected a number of characters"),
    ("CREATE TABLE t (a VARCHAR(▲n))", "expected a number of characters"),
    ("CREATE TABLE t (a VARCHAR(3 ▲BYTE))", 'found "BYTE", expected ")"'),
    # defaults
    ("CREATE TABLE t (a INT DEFAULT ▲'x')", "found 'x', expected a whole number of 64 bits, for a column of type INT"),
    ("CREATE TABLE t (a INT DEFAULT ▲1.0)", "a whole number of 64 bits"),
    ("CREATE TABLE t (a INT DEFAULT ▲-9223372036854775809)", "a whole number of 64 bits"),
    (f"CREATE TABLE t (a INT DEFAULT ▲{'9' * 5000})", "a whole number of 64 bits"),
    ("CREATE TABLE t (a FLOAT DEFAULT ▲1e999)", "a number, for a column of type FLOAT"),
    ("CREATE TABLE t (a FLOAT DEFAULT ▲1e)", "a number, for a column of type FLOAT"),
    ("CREATE TABLE t (a FLOAT DEFAULT -▲'1')", 'expected a number after "-"'),
    ("CREATE TABLE t (a STRING DEFAULT ▲5)", "a 'string', for a column of type STRING"),
    ("CREATE TABLE t (a BOOL DEFAULT ▲1)", "TRUE or FALSE, for a column of type BOOL"),
    ("CREATE TABLE t (a TIMESTAMP DEFAULT ▲'noon')", "an ISO 8601 string such as"),
    ("CREATE TABLE t (a TIMESTAMP DEFAULT ▲'0001-01-01T00:00:00+05:00')", "an ISO 8601 string such as"),
    ("CREATE TABLE t (a TIMESTAMP DEFAULT ▲now())", "use tx.now() in the procedure"),
    ("CREATE TABLE t (a TIMESTAMP DEFAULT ▲CURRENT_TIMESTAMP)", "use tx.now() in the procedure"),
    ("CREATE TABLE t (a INT DEFAULT ▲(1))", "expected a literal"),
    ("CREATE TABLE t (a INT DEFAULT 1 ▲+ 1)", 'found "+"'),
    ("CREATE TABLE t (a STRING DEFAULT ▲e'x')", "expected a literal"),
    ("CREATE TABLE t (a STRING DEFAULT ▲$$x$$)", "expected a literal"),
    ("CREATE TABLE t (a STRING DEFAULT ▲x'41')", "expected a literal"),
    ("CREATE TABLE t (a INT DEFAULT 1 ▲DEFAULT 2)", "DEFAULT once"),
    ("CREATE TABLE t (a INT NOT NULL DEFAULT ▲NULL)", "the column is NOT NULL"),
    ("CREATE TABLE t (a INT DEFAULT ▲NULL PRIMARY KEY)", "the column is in the primary key"),
    # keys
    ("CREATE TABLE t (▲rowid INT)", "rowid is the hidden key of a table without PRIMARY KEY"),
    ("CREATE TABLE t (a INT PRIMARY KEY, b INT ▲PRIMARY KEY)", "one PRIMARY KEY"),
    ("CREATE TABLE t (a INT PRIMARY KEY, ▲PRIMARY KEY (a))", "one PRIMARY KEY"),
    ("CREATE TABLE t (a INT ▲NULL PRIMARY KEY)", "expected NOT NULL"),
    ("CREATE TABLE t (a INT, PRIMARY KEY (▲b))", 'found "b", expected a column of the table (a)'),
    ("CREATE TABLE t (a INT, PRIMARY KEY (a, ▲a))", "each column once"),
    ("CREATE TABLE t (a INT, PRIMARY KEY (▲))", "expected the name of a column"),
    ("CREATE TABLE t (PRIMARY KEY (a)▲)", "a table has at least one"),
    ("CREATE TABLE t (a INT, PRIMARY KEY (a ▲DESC))", "DESC is not supported"),
    # partitioning
    ("PARTITION ▲t", "expected TABLE"),
    ("PARTITION TABLE ▲t ON COLUMN a", "expected a table created above"),
    ("CREATE TABLE t (a INT PRIMARY KEY); PARTITION TABLE t ▲BY COLUMN a", "expected ON"),
    ("CREATE TABLE t (a INT PRIMARY KEY); PARTITION TABLE t ON ▲a", "expected COLUMN"),
    ("CREATE TABLE t (a INT PRIMARY KEY); PARTITION TABLE t ON COLUMN ▲b", "expected a column of table t (a)"),
    ("CREATE TABLE t (a INT PRIMARY KEY, b INT NOT NULL); PARTITION TABLE t ON COLUMN ▲b", "primary key (a)"),
    ("CREATE TABLE t (a FLOAT PRIMARY KEY); PARTITION TABLE t ON COLUMN ▲a", "of type INT or STRING, not FLOAT"),
    ("CREATE TABLE t (a INT); PARTITION TABLE t ON COLUMN ▲a", "expected a column that is NOT NULL"),
    ("CREATE TABLE t (a INT); PARTITION TABLE t ON COLUMN ▲rowid", "expected a column of table t (a)"),
    (
        "CREATE TABLE t (a INT PRIMARY KEY); PARTITION TABLE t ON COLUMN a; PARTITION TABLE ▲t ON COLUMN a",
        "t is partitioned on a",
    ),
    # indexes
    ("CREATE INDEX i ON ▲t (a)", "expected a table created above"),
    ("CREATE TABLE t (a INT); CREATE INDEX ▲ON t (a)", "expected the name of an index"),
    ("CREATE TABLE t (a INT); CREATE INDEX i ▲(a)", "expected ON"),
    ("CREATE TABLE t (a INT); CREATE INDEX i ON t USING ▲gin (a)", "expected INVERTED, HASH or BTREE"),
    ("CREATE TABLE t (a INT); CREATE INDEX i ON t (▲b)", "expected a column of table t (a)"),
    ("CREATE TABLE t (a INT); CREATE INDEX i ON t (▲rowid)", "expected a column of table t (a)"),
    ("CREATE TABLE t (a INT); CREATE INDEX i ON t (a ▲DESC)", "an index has no direction"),
    ("CREATE TABLE t (a INT); CREATE INDEX i ON t (lower▲(a))", 'expected "," or ")"'),
    ("CREATE TABLE t (a INT); CREATE INDEX i ON t (a) ▲WHERE a > 0", "partial indexes are not supported"),
    (
        "CREATE TABLE t (a INT PRIMARY KEY, b INT); PARTITION TABLE t ON COLUMN a; CREATE UNIQUE INDEX i ON t (▲b)",
        "expected a among the columns: rows that are equal must be in one partition",
    ),
    (
        "CREATE TABLE t (a INT PRIMARY KEY, b INT); CREATE UNIQUE INDEX i ON t (b); PARTITION TABLE t ON COLUMN ▲a",
        "expected a column of index i, which is unique",
    ),
    ("CREATE TABLE t (a INT); CREATE INDEX i ON t (a); CREATE INDEX ▲i ON t (a)", "index i exists already"),
    # what sqlglot cannot cut into tokens, or skips in silence
    ("CREATE TABLE t (a INT DEFAULT ▲'x);\n", "a quote that is never closed, expected ' at its end"),
    ('CREATE TABLE t (▲"a INT);\n', 'a quote that is never closed, expected " at its end'),
    ("CREATE TABLE t (a INT); ▲/* to /* be */ done", "a comment that is never closed, expected */ at its end"),
    ("CREATE TABLE t (a INT); ▲{# hidden #}", 'found "{#"'),
    ("CREATE TABLE t (a INT DEFAULT $$x)▲", "found the end of the text"),
    ("CREATE TABLE t (▲a\x00b INT)", "expected the name of a column"),
    ("▲é𝒳 is no statement", "expected CREATE TABLE"),
    ("CREATE TABLE t (a STRING DEFAULT '𝒳é', ▲'b')", "expected the name of a column"),
]


@pytest.mark.parametrize(("marked", "words"), WRONG)
def test_error_names_the_place_and_what_was_expected(marked: str, words: str) -> None:
    before, _, after = marked.partition("▲")
    line = before.count("\n") + 1
    column = len(before) - (before.rfind("\n") + 1) + 1
    with pytest.raises(SchemaError) as raised:
        parse_schema(before + after)
    message = str(raised.value)
    first, *rest = message.split("\n")
    assert message.startswith(f"line {line}, column {column}: found "), message
    assert "expected " in first
    assert words in message
    assert len(rest) == 2, "the line of the text and the caret"
    assert rest[1].strip() == "^"


def test_caret_stands_under_the_token_after_tabs_and_in_a_long_line() -> None:
    with pytest.raises(SchemaError) as raised:
        parse_schema("CREATE TABLE t (\n\ta INT,\tb NOSUCH\r\n)")
    assert str(raised.value).split("\n")[1:] == ["\ta INT,\tb NOSUCH", "\t      \t  ^"]
    many = ", ".join(f"column_{n} INT" for n in range(500))
    with pytest.raises(SchemaError) as raised:
        parse_schema(f"CREATE TABLE t ({many}, wrong NOSUCH)")
    shown, caret = str(raised.value).split("\n")[1:]
    assert len(shown) <= 120
    assert shown[caret.index("^") :].startswith("NOSUCH")


def test_message_is_harmless_to_a_terminal() -> None:
    with pytest.raises(SchemaError) as raised:
        parse_schema("CREATE TABLE t (a \x1b[31mINT\x07)")
    assert "\x1b" not in str(raised.value)
    assert "\x07" not in str(raised.value)


def test_column_limit() -> None:
    most = ", ".join(f"c{n} INT" for n in range(1000))
    assert len(columns(most)) == 1001
    with pytest.raises(SchemaError, match="at most 1000 columns"):
        columns(most + ", one_more INT")


def test_text_that_is_too_large_or_no_unicode_is_refused() -> None:
    with pytest.raises(SchemaError, match=r"line 1, column 1: found a schema of 1,048,577 bytes"):
        parse_schema(" " * (MAX_TEXT_BYTES + 1))
    with pytest.raises(SchemaError, match="line 2, column 4: found half a surrogate pair"):
        parse_schema("\n-- \ud800")


@pytest.mark.parametrize(
    "piece",
    [
        "(",
        "CREATE TABLE t (a INT DEFAULT (",
        "/*",
        "'",
        "$a$b ",
        "{#",
        "1e",
        "-- \n",
        ";",
        "x /**/ ",
        "PRIMARY KEY (",
        "\r",
    ],
)
def test_a_large_hostile_text_is_refused_soon(piece: str) -> None:
    started = time.process_time()
    with pytest.raises(SchemaError):
        parse_schema((piece * (1 << 16))[: 1 << 16])
    assert time.process_time() - started < 10  # a bound on the order of growth, not a measurement


# -- against sqlglot's own reading of the same text


def test_sqlglot_reads_the_same_tables() -> None:
    text = """
        CREATE TABLE a (x INTEGER PRIMARY KEY, y VARCHAR(9) NOT NULL DEFAULT 'q;(', "Z" DOUBLE PRECISION);
        CREATE TABLE b (p STRING, q TIMESTAMP WITH TIME ZONE, r BOOLEAN DEFAULT TRUE, PRIMARY KEY (q, p));
    """
    ours = parse_schema(text)
    theirs = [tree for tree in sqlglot.parse(text, read="postgres") if tree is not None]
    assert len(theirs) == len(ours.tables) == 2
    for tree, table in zip(theirs, ours.tables, strict=True):
        assert isinstance(tree, exp.Create)
        definitions = list(tree.find_all(exp.ColumnDef))
        declared = [column for column in table.columns if column.name != "rowid"]
        assert [definition.name for definition in definitions] == [column.name for column in declared]


# -- generated schemas and damaged texts

names = st.one_of(
    st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True),
    st.from_regex(r"[A-Za-zæøåπж][A-Za-z0-9_æøåπж]{0,8}", fullmatch=True),
    st.sampled_from(sorted(word.lower() for word in RESERVED_WORDS)),
    st.sampled_from(["date", "key", "partition", "primary_key", "e", "n", "x", "temp", "int"]),
).filter(lambda name: name_problem(name) is None and name != "rowid" and name not in {"abort", "now", "random"})
moments = st.datetimes(timezones=st.just(UTC))
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
values: dict[TypeName, st.SearchStrategy[Value]] = {
    "INT": st.integers(-(2**63), 2**63 - 1),
    "FLOAT": st.floats(allow_nan=False, allow_infinity=False),
    "STRING": texts,
    "BOOL": st.booleans(),
    "TIMESTAMP": moments,
}


kinds: tuple[IndexKind, ...] = ("INVERTED", "HASH", "BTREE")


@st.composite
def column_values(draw: st.DrawFn, name: str) -> Column:
    type_name = draw(st.sampled_from(tuple(values)))
    nullable = draw(st.booleans())
    if draw(st.booleans()):
        return Column(name, type_name, nullable, has_default=True, default=draw(values[type_name]))
    return Column(name, type_name, nullable)


@st.composite
def table_values(draw: st.DrawFn, name: str) -> Table:
    column_names = draw(st.lists(names, min_size=1, max_size=6, unique=True))
    made = [draw(column_values(column)) for column in column_names]
    key = tuple(draw(st.lists(st.sampled_from(column_names), max_size=3, unique=True)))
    made = [Column(c.name, c.type, c.nullable and c.name not in key, c.has_default, c.default) for c in made]
    possible = [c.name for c in made if not c.nullable and c.type in ("INT", "STRING") and (not key or c.name in key)]
    partition_column = draw(st.sampled_from([None, *possible]))
    if not key:
        made.append(Column("rowid", "INT", nullable=False))
    return Table(name, tuple(made), key or ("rowid",), not key, partition_column)


@st.composite
def schemas(draw: st.DrawFn) -> Schema:
    tables = tuple(draw(table_values(name)) for name in draw(st.lists(names, min_size=1, max_size=3, unique=True)))
    indexes = []
    for name in draw(st.lists(names, max_size=3, unique=True)):
        table = draw(st.sampled_from(tables))
        declared = [column.name for column in table.columns if column.name != "rowid"]
        on = tuple(draw(st.lists(st.sampled_from(declared), min_size=1, max_size=3, unique=True)))
        unique = can_be_unique(table, on) and draw(st.booleans())
        indexes.append(Index(name, table.name, draw(st.sampled_from(kinds)), on, unique))
    return Schema(tables, tuple(indexes))


@settings(max_examples=80, deadline=None)
@given(schemas())
def test_described_schema_reads_back_equal(schema: Schema) -> None:
    assert parse_schema(describe(schema)) == schema


PIECES = [
    *re.findall(r"\s+|\w+|[^\w\s]", BANK),
    *("UNIQUE", "CHECK", "(", ")", ",", ";", "'", '"', "/*", "*/", "--", "\n", "$$", "{#", "\x00", "\u2028", "é", "E'"),
    *(
        "-",
        "1e5",
        "DEFAULT",
        "NULL",
        "TIMESTAMP",
        "VARCHAR(3)",
        "PRIMARY KEY",
        "COPY",
        "rowid",
        ".",
        "::",
        "IF NOT",
        "U&'",
    ),
]


@st.composite
def damaged_texts(draw: st.DrawFn) -> str:
    pieces = re.findall(r"\s+|\w+|[^\w\s]", BANK)
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(pieces)))
        until = at + draw(st.integers(0, 4))
        put = draw(st.lists(st.one_of(st.sampled_from(PIECES), st.characters(), texts), max_size=3))
        pieces[at:until] = put
    return "".join(pieces)


@settings(max_examples=250, deadline=None)
@given(st.one_of(damaged_texts(), st.text(max_size=60)))
def test_damaged_text_is_refused_at_a_place_inside_it_or_read(text: str) -> None:
    message = ""
    try:
        schema = parse_schema(text)
    except SchemaError as error:
        message = str(error)
    if not message:
        assert parse_schema(describe(schema)) == schema
        return
    place = re.match(r"line (\d+), column (\d+): found .+, expected .", message, re.DOTALL)
    assert place, message
    lines = text.removeprefix("\ufeff").split("\n")
    line, column = int(place[1]), int(place[2])
    assert 1 <= line <= len(lines)
    assert 1 <= column <= len(lines[line - 1]) + 1
