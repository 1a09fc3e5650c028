"""The front: what is read, what is refused by name and place, and that no text does worse than be refused."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voltpy.errors import Error, SqlError
from voltpy.schema import Schema
from voltpy.sql.catalogue import Catalogue
from voltpy.sql.ddl import parse_schema
from voltpy.sql.parse import MAX_TEXT_BYTES, parse_statement
from voltpy.sql.plan import compiled
from voltpy.sql.planner import plan
from voltpy.sql.token_reader import MAX_DEPTH

SCHEMA: Schema = parse_schema(
    """CREATE TABLE a (id INT PRIMARY KEY, x INT, f FLOAT, s STRING, b BOOL, t TIMESTAMP);
    PARTITION TABLE a ON COLUMN id;
    CREATE TABLE c (code STRING PRIMARY KEY, n INT);"""
)


def planned(text: str) -> None:
    made = plan(text, Catalogue(SCHEMA))
    for source in (made.source, made.fragment, made.merge):
        if source is not None:
            compiled(source, SCHEMA)


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("SELECT 1 FROM a FULL JOIN c ON TRUE", "line 1, column 17", "FULL JOIN is not supported"),
        ("SELECT x,\n  rank() OVER (ORDER BY x) FROM a", "line 2, column 10", "a window function is not supported"),
        ("SELECT DISTINCT ON (x) x FROM a", "line 1, column 17", "DISTINCT ON is not supported"),
        ("WITH RECURSIVE r AS (SELECT 1) SELECT 1", "line 1, column 6", "WITH RECURSIVE is not supported"),
        ("SELECT * FROM a, LATERAL (SELECT 1) z", "line 1, column 18", "LATERAL is not supported"),
        ("SELECT x FROM a FOR UPDATE", "line 1, column 17", "transactions run one after another"),
        ("SELECT x FROM a WHERE (x, f) = (1, 2)", "line 1, column 25", "a row value is not supported"),
        ("SELECT x FROM a WHERE x = ANY (SELECT n FROM c)", "line 1, column 27", "= ANY (…) is not supported"),
        ("SELECT s ~ 'a' FROM a", "line 1, column 10", "regular expressions are not supported"),
        ("SELECT INTERVAL '1 day'", "line 1, column 8", "INTERVAL is not supported"),
        ("SELECT CAST(x AS NUMERIC) FROM a", "line 1, column 18", "NUMERIC is not supported"),
        ("SELECT public.a.x FROM a", "line 1, column 16", "qualified by a schema"),
        ("UPDATE a SET x = 1 FROM c", "line 1, column 20", "UPDATE … FROM is not supported"),
        ("INSERT INTO a VALUES (1) ON CONFLICT DO UPDATE SET x = 1", "line 1, column 48", "of which key"),
        ("BEGIN", "line 1, column 1", "a transaction of several statements is a procedure"),
        ("SHOW TABLES", "line 1, column 1", "read db_tables"),
        ("SELECT 1; SELECT 2", "line 1, column 11", "the end of the statement"),
        ("SELECT 12abc", "line 1, column 8", "neither a number nor a name"),
        ("SELECT :x", "line 1, column 8", "parameters are written ?"),
        ("SELECT 1 WHERE 1 = %s", "line 1, column 20", "parameters are written ?"),
        ("CALL deposit(1, 2)", "line 1, column 1", "procedures are called by db.call"),
        ("VACUUM", "line 1, column 1", "nothing to clean up"),
        ("SELEC 1", "line 1, column 1", "or EXPLAIN; did you mean SELECT?"),
        ("CREAT TABLE t (id INT)", "line 1, column 1", "or EXPLAIN; did you mean CREATE?"),
        ("SELECT 'open", "line 1, column 8", "never closed"),
        ("SELECT x FROM a ORDER x", "line 1, column 23", "expected BY"),
        ("EXPLAIN ANALYZE DELETE a", "line 1, column 24", "expected FROM"),
        ("EXPLAIN EXPLAIN SELECT 1", "line 1, column 9", 'found "EXPLAIN", expected ANALYZE, SELECT, INSERT'),
        ("EXPLAIN ANALYZE\nEXPLAIN SELECT 1", "line 2, column 1", 'found "EXPLAIN", expected SELECT, INSERT'),
        ("EXPLAIN ANALYZE", "line 1, column 16", "found the end of the text, expected SELECT, INSERT"),
        ("EXPLAIN SELECT 'open", "line 1, column 16", "never closed, expected ' at its end\nEXPLAIN SELECT"),
        ("SELECT 1 < 2 < 3", "line 1, column 14", "no second comparison"),
    ],
)
def test_what_is_not_supported_is_named_at_its_place(text: str, place: str, words: str) -> None:
    with pytest.raises(SqlError) as caught:
        parse_statement(text)
    assert str(caught.value).startswith(place)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("SELECT nme FROM a", "there is no column nme"),
        ("SELECT z.x FROM a", "there is no table z in FROM"),
        ("SELECT * FROM aa", "there is no table aa; did you mean a?"),
        ("SELECT lenght(s) FROM a", "did you mean length?"),
        ("SELECT length(s, s) FROM a", "length() takes 1 arguments, not 2"),
        ("SELECT id, count(*) FROM a", "must be in GROUP BY"),
        ("SELECT x FROM a WHERE sum(x) > 1", "none can stand in WHERE"),
        ("SELECT sum(count(*)) FROM a", "none can stand in another aggregate"),
        ("SELECT x FROM a WHERE x", "WHERE wants BOOL, not INT"),
        ("SELECT x FROM a WHERE x = s", "= can't compare INT with STRING"),
        ("SELECT x = 'q' FROM a", "invalid input for INT: 'q'"),
        ("SELECT t + 1 FROM a", "TIMESTAMPs are not counted with"),
        ("SELECT CASE WHEN b THEN 1 ELSE s END FROM a", "INT and STRING stand for one"),
        ("SELECT x FROM a UNION SELECT x, f FROM a", "UNION of 1 and 2 columns"),
        ("SELECT x FROM a, a AS d", "column x is ambiguous"),
        ("SELECT 1 FROM a, a", "a stands twice in FROM"),
        ("SELECT x FROM a ORDER BY 2", "position 2 is not among the 1 columns"),
        ("SELECT DISTINCT x FROM a ORDER BY f", "only what is selected"),
        ("SELECT (SELECT x, f FROM a)", "must have one column, not 2"),
        ("SELECT 9223372036854775808", "out of range"),
        ("INSERT INTO a (id, id) VALUES (1, 2)", "column id stands twice"),
        ("INSERT INTO a (id) VALUES (1, 2)", "INSERT has 2 values for 1 columns"),
        ("INSERT INTO a (id, x) VALUES (1, TRUE)", "column x is of type INT, and the value of type BOOL"),
        ("INSERT INTO a VALUES (1) ON CONFLICT (x) DO NOTHING", "no key of table a: (id)"),
        ("UPDATE a SET x = 1, x = 2", "column x is set twice"),
        ("UPDATE db_tables SET row_count = 1", "can't be written"),
        ("DELETE FROM a WHERE y = 1", "there is no column y"),
        ("SELECT x FROM a LIMIT x", "there is no column x"),
        ("SELECT s LIKE 'a' ESCAPE 'xy' FROM a", "ESCAPE wants one character"),
    ],
)
def test_what_has_no_meaning_is_said(text: str, words: str) -> None:
    with pytest.raises(SqlError, match="line 1, column") as caught:
        planned(text)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "SELECT " + "(" * 38 + "1" + ")" * 38,
        "SELECT " + "NOT " * 39 + "TRUE",
        "SELECT " + " + ".join("1" * 50),
        "SELECT 1 WHERE " + " AND ".join(["1 = 1"] * 2000),
        "SELECT " + " || ".join(["'x'"] * 500),
        "SELECT 1 FROM a WHERE x IN (" + ", ".join(map(str, range(5000))) + ")",
        "SELECT CASE " + "WHEN x = 1 THEN 2 " * 100 + "END FROM a",
        "INSERT INTO c VALUES " + ", ".join(f"('{i}', {i})" for i in range(2000)),
        " UNION ALL ".join(["SELECT 1"] * 60),
    ],
)
def test_long_statements_are_planned(text: str) -> None:
    planned(text)


@pytest.mark.parametrize(
    "text",
    [
        "SELECT " + "(" * 2000 + "1" + ")" * 2000,
        "SELECT " + "(SELECT " * 500 + "1" + ")" * 500,
        "SELECT " + "abs(" * 1000 + "1" + ")" * 1000,
        "SELECT " + "- " * 5000 + "1",
        "SELECT " + " + ".join("1" * 5000),
        "SELECT x" + "::INT" * 500 + " FROM a",
        "SELECT 1" + " IS NULL" * 500,
        " UNION ".join(["SELECT 1"] * 1000),
        "SELECT " + "CASE WHEN TRUE THEN " * 500 + "1" + " END" * 500,
        "SELECT " + "9" * 500,
        "SELECT 1e999",
        "SELECT * FROM " + ", ".join(f"a x{i}" for i in range(100)),
        "SELECT " + ", ".join("1" * 2000),
        "SELECT " + ", ".join("?" * 2000),
        "SELECT '" + "x" * MAX_TEXT_BYTES + "'",
        "SELECT '\ud800'",
        "SELECT * FROM " + "(SELECT * FROM " * 60 + "a" + ") q" * 60,
    ],
)
def test_what_is_too_deep_or_too_large_is_refused(text: str) -> None:
    with pytest.raises(SqlError):
        planned(text)


def test_depth_counts_what_is_nested() -> None:
    with pytest.raises(SqlError, match=f"nested more than {MAX_DEPTH} deep"):
        parse_statement("SELECT " + "(" * 45 + "1" + ")" * 45)


_WORDS = [
    "SELECT",
    "FROM",
    "WHERE",
    "GROUP",
    "BY",
    "HAVING",
    "ORDER",
    "LIMIT",
    "OFFSET",
    "JOIN",
    "LEFT",
    "ON",
    "AND",
    "OR",
    "NOT",
    "IN",
    "IS",
    "NULL",
    "LIKE",
    "BETWEEN",
    "CASE",
    "WHEN",
    "THEN",
    "ELSE",
    "END",
    "CAST",
    "AS",
    "UNION",
    "ALL",
    "EXCEPT",
    "DISTINCT",
    "EXISTS",
    "WITH",
    "INSERT",
    "INTO",
    "VALUES",
    "UPDATE",
    "SET",
    "DELETE",
    "RETURNING",
    "CONFLICT",
    "DO",
    "NOTHING",
    "EXPLAIN",
    "INT",
    "STRING",
    "TRUE",
    "a",
    "c",
    "x",
    "id",
    "s",
    "count",
    "sum",
    "(",
    ")",
    "(",
    ")",
    ",",
    ",",
    ".",
    "*",
    "+",
    "-",
    "/",
    "%",
    "=",
    "<",
    ">",
    "<>",
    "||",
    "::",
    "?",
    ";",
    "1",
    "2.5",
    "'a'",
    "''",
    '"a"',
    "1e5",
    "$1",
    "--",
    "/*",
    "*/",
    "~",
    "[",
    "]",
    ":",
    "@",
    "#",
    "'",
    '"',
    "\\",
    "é",
    "\x00",
    "ASC",
    "DESC",
    "NULLS",
    "FIRST",
    "FILTER",
    "OVER",
    "DEFAULT",
    "USING",
    "NATURAL",
    "CROSS",
]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(_WORDS), max_size=25))
def test_token_soup_only_raises_errors_of_ours(words: list[str]) -> None:
    for text in (" ".join(words), "SELECT " + " ".join(words), "SELECT x FROM a WHERE " + "".join(words)):
        try:
            planned(text)
        except Error:
            continue


def test_statements_with_a_token_changed_only_raise_errors_of_ours() -> None:
    seed = 20240517
    print(f"seed {seed}")
    dice = random.Random(seed)
    statements = [
        "SELECT a.id, count(*) FROM a LEFT JOIN c ON s = code WHERE x BETWEEN 1 AND ? GROUP BY a.id ORDER BY 2 LIMIT 3",
        "INSERT INTO a (id, x) VALUES (1, 2), (3, ?) ON CONFLICT (id) DO UPDATE SET x = EXCLUDED.x + a.x RETURNING *",
        "WITH w AS (SELECT n FROM c) SELECT CASE WHEN n IN (SELECT x FROM a) THEN 1 ELSE CAST(n AS INT) END FROM w",
        "UPDATE a SET x = x + 1, s = s || 'b' WHERE EXISTS (SELECT 1 FROM c WHERE c.n = a.x) RETURNING id",
    ]
    planned_count = 0
    for _ in range(600):
        words = dice.choice(statements).replace("(", " ( ").replace(")", " ) ").replace(",", " , ").split()
        for _ in range(dice.randint(1, 3)):
            words[dice.randrange(len(words))] = dice.choice(_WORDS)
        try:
            planned(" ".join(words))
            planned_count += 1
        except Error:
            continue
    assert planned_count > 0
