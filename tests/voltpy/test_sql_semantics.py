"""What values, operators and functions come to: as in PostgreSQL, apart from what docs/sql.md lists."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from voltpy import procedure
from voltpy.errors import BadArguments, ConstraintViolation, DataError, DuplicateKey, SqlError
from voltpy.sql.functions import FUNCTIONS
from voltpy.testing import Engine

SCHEMA = """
CREATE TABLE a (id INT PRIMARY KEY, x INT, f FLOAT, s STRING, b BOOL, t TIMESTAMP);
PARTITION TABLE a ON COLUMN id;
CREATE TABLE pairs (p INT, q STRING, v INT NOT NULL DEFAULT 7, PRIMARY KEY (p, q));
CREATE TABLE loose (v INT);
"""
MOMENT = datetime(2024, 5, 17, 8, 30, 15, 250000, tzinfo=UTC)


@pytest.fixture(scope="module")
def db() -> Engine:
    engine = Engine(SCHEMA, memory_bytes=32 << 20, clock=lambda: MOMENT)
    engine.execute(
        "INSERT INTO a VALUES (1, 10, 1.5, 'one', TRUE, ?), (2, NULL, NULL, NULL, NULL, NULL), "
        "(3, -7, -0.5, 'b', FALSE, ?)",
        (MOMENT, MOMENT),
    )
    return engine


def value(db: Engine, expression: str, parameters: Sequence[Any] = ()) -> Any:
    return db.execute(f"SELECT {expression}", parameters).rows[0][0]


@pytest.mark.parametrize("name", [name for name, function in FUNCTIONS.items() if function.takes])
def test_a_function_of_null_alone_is_null_and_python_warns_of_nothing(db: Engine, name: str) -> None:
    types = {"N": "INT", "I": "INT", "F": "FLOAT", "S": "STRING", "B": "BOOL", "T": "TIMESTAMP"}
    arguments = ", ".join(f"CAST(NULL AS {types[kind]})" for kind in FUNCTIONS[name].takes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert value(db, f"{name}({arguments})") is None


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        # Three values of truth
        ("NULL AND FALSE", False),
        ("NULL AND TRUE", None),
        ("NULL OR TRUE", True),
        ("NULL OR FALSE", None),
        ("NOT NULL", None),
        ("NULL = NULL", None),
        ("NULL <> 1", None),
        ("NULL IS NULL", True),
        ("1 IN (1, NULL)", True),
        ("2 IN (1, NULL)", None),
        ("2 NOT IN (1, NULL)", None),
        ("2 NOT IN (1, 3)", True),
        ("NULL IN (1)", None),
        ("5 BETWEEN 6 AND NULL", False),
        ("5 BETWEEN 1 AND NULL", None),
        ("5 NOT BETWEEN 6 AND NULL", True),
        ("1 IS DISTINCT FROM NULL", True),
        ("NULL IS NOT DISTINCT FROM NULL", True),
        ("NULL IS TRUE", False),
        ("NULL IS NOT TRUE", True),
        ("NULL IS UNKNOWN", True),
        ("NULL LIKE 'a'", None),
        ("1 IN (SELECT v FROM loose)", False),
        ("NULL IN (SELECT v FROM loose)", False),
        ("NULL NOT IN (SELECT v FROM loose)", True),
        ("NULL IN (SELECT 1)", None),
        ("2 IN (SELECT x FROM a)", None),
        ("10 IN (SELECT x FROM a)", True),
        ("(SELECT v FROM loose)", None),
        ("EXISTS (SELECT v FROM loose)", False),
        # Whole numbers
        ("7 / 2", 3),
        ("-7 / 2", -3),
        ("7 / -2", -3),
        ("-7 % 3", -1),
        ("7 % -3", 1),
        ("-9223372036854775808 % -1", 0),
        ("7 / 2.0", 3.5),
        ("1 + 2 * 3 - 4", 3),
        ("2 ^ 3 ^ 2", 64.0),
        ("- 2 ^ 2", 4.0),
        ("9223372036854775807 - 1 + 1", 9223372036854775807),
        ("div(-7, 2)", -3),
        ("abs(-3)", 3),
        ("sign(-2)", -1),
        ("round(15, -1)", 20),
        ("round(2.5)", 2.0),
        ("trunc(-1.7)", -1.0),
        ("ceil(1.2)", 2.0),
        ("floor(-1.2)", -2.0),
        ("sqrt(16)", 4.0),
        ("mod(10, 3)", 1),
        ("greatest(1, NULL, 3.5)", 3.5),
        ("least(2, NULL, 1)", 1),
        # Casts
        ("CAST(2.5 AS INT)", 2),
        ("CAST(3.5 AS INT)", 4),
        ("CAST(' 12 ' AS INT)", 12),
        ("'1.5'::FLOAT + 1", 2.5),
        ("CAST(1.0 AS STRING)", "1"),
        ("CAST(1e15 AS STRING)", "1e+15"),
        ("CAST(0.00001 AS STRING)", "1e-05"),
        ("CAST(TRUE AS STRING)", "true"),
        ("CAST('yes' AS BOOL)", True),
        ("CAST(2 AS BOOL)", True),
        ("CAST(TRUE AS INT)", 1),
        ("CAST(TIMESTAMP '2024-05-17T08:30:15.25Z' AS STRING)", "2024-05-17 08:30:15.25+00"),
        # Strings
        ("'a' || 1 || NULL", None),
        ("'a' || 1.0 || TRUE", "a1true"),
        ("concat('a', NULL, 1)", "a1"),
        ("concat_ws('-', 'a', NULL, 'b')", "a-b"),
        ("'it''s'", "it's"),
        ("length('größe')", 5),
        ("upper('ab') || lower('CD')", "ABcd"),
        ("substr('hello', 2, 3)", "ell"),
        ("substring('hello' FROM 2 FOR 3)", "ell"),
        ("substr('hello', -1, 3)", "h"),
        ("substr('hello', 3)", "llo"),
        ("position('l' IN 'hello')", 3),
        ("strpos('hello', 'x')", 0),
        ("trim('  a ')", "a"),
        ("trim(BOTH 'x' FROM 'xax')", "a"),
        ("trim(LEADING 'x' FROM 'xax')", "ax"),
        ("lpad('a', 3, 'xy')", "xya"),
        ("rpad('abc', 2)", "ab"),
        ("left('abc', -1)", "ab"),
        ("right('abc', 2)", "bc"),
        ("split_part('a,b,c', ',', 2)", "b"),
        ("split_part('a,b,c', ',', -1)", "c"),
        ("initcap('hello wORLD')", "Hello World"),
        ("replace('banana', 'an', 'x')", "bxxa"),
        ("reverse('abc')", "cba"),
        ("chr(ascii('A') + 1)", "B"),
        ("'abc' LIKE 'a%'", True),
        ("'abc' LIKE 'A%'", False),
        ("'abc' ILIKE 'A%'", True),
        ("'abc' LIKE '_b_'", True),
        ("'a\nb' LIKE 'a%b'", True),
        ("'a%c' LIKE 'a!%c' ESCAPE '!'", True),
        ("'abc' LIKE 'a\\%c'", False),
        ("'' LIKE '%'", True),
        ("'aXbXc' LIKE '%X%X%'", True),
        ("'abcab' LIKE '%ab'", True),
        ("'Z' < 'a'", True),
        # Conditions
        ("CASE WHEN NULL THEN 1 ELSE 2 END", 2),
        ("CASE 3 WHEN 1 THEN 'a' WHEN 3 THEN 'c' END", "c"),
        ("CASE NULL WHEN NULL THEN 1 ELSE 2 END", 2),
        ("CASE WHEN FALSE THEN 1 / 0 ELSE 5 END", 5),
        ("COALESCE(NULL, 2.5, 1)", 2.5),
        ("NULLIF(1, 1)", None),
        ("NULLIF(1, 2)", 1),
        # Time
        ("now() = CURRENT_TIMESTAMP", True),
        ("EXTRACT(YEAR FROM now())", 2024.0),
        ("EXTRACT(SECOND FROM now())", 15.25),
        ("date_part('dow', now())", 5.0),
        ("date_trunc('month', now())", datetime(2024, 5, 1, tzinfo=UTC)),
        ("to_timestamp(EXTRACT(EPOCH FROM now()) + 60) > now()", True),
        ("now() > '2024-01-01'", True),
    ],
)
def test_expressions_come_to_what_postgresql_says(db: Engine, expression: str, expected: Any) -> None:
    found = value(db, expression)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("9223372036854775807 + 1", "integer out of range"),
        ("9223372036854775807 * 2", "integer out of range"),
        ("-9223372036854775808 - 1", "integer out of range"),
        ("-9223372036854775808 / -1", "integer out of range"),
        ("- (-9223372036854775807 - 1)", "integer out of range"),
        ("abs(-9223372036854775807 - 1)", "integer out of range"),
        ("1 / 0", "division by zero"),
        ("1 % 0", "division by zero"),
        ("1.5 / 0", "division by zero"),
        ("1e308 * 10", "overflow of a FLOAT"),
        ("power(10.0, 400)", "overflow of a FLOAT"),
        ("CAST(1e20 AS INT)", "integer out of range"),
        ("CAST(lower('X') AS INT)", "invalid input for INT: 'x'"),
        ("CAST(lower('X') AS TIMESTAMP)", "invalid input for TIMESTAMP"),
        ("sqrt(-1)", "square root of a negative number"),
        ("ln(0)", "logarithm of zero"),
        ("chr(0)", "not valid"),
        ("substr('a', 1, -1)", "negative substring length"),
        ("repeat('abc', 10000000)", "the limit is"),
        ("lpad('a', 100000000)", "the limit is"),
        ("'x' LIKE 'a\\'", "must not end with escape"),
        ("(SELECT id FROM a)", "more than one row"),
        ("date_trunc('eon', now())", "nothing that a TIMESTAMP can be cut to"),
    ],
)
def test_values_that_do_not_fit_are_errors(db: Engine, expression: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        value(db, expression)


@pytest.mark.parametrize(
    ("sql", "parameters", "expected"),
    [
        ("SELECT id FROM a WHERE id = ?", (1,), [(1,)]),
        ("SELECT id FROM a WHERE id = ?", (1.0,), [(1,)]),
        ("SELECT id FROM a WHERE id = ?", (1.5,), []),
        ("SELECT id FROM a WHERE id = ?", (None,), []),
        ("SELECT id FROM a WHERE id >= ? ORDER BY 1", (1.5,), [(2,), (3,)]),
        ("SELECT id FROM a WHERE id < ?", (float("nan"),), []),
        ("SELECT id FROM a WHERE id IN (?, ?, 3) ORDER BY 1", (1, None), [(1,), (3,)]),
        ("SELECT id FROM a WHERE t = ? AND id < 2", (MOMENT,), [(1,)]),
        ("SELECT id FROM a WHERE t = ? AND id < 2", ("2024-05-17T08:30:15.25Z",), [(1,)]),
        ("SELECT id FROM a WHERE b = ?", (False,), [(3,)]),
        ("SELECT ? + ?", (1, 2.5), [(3.5,)]),
        ("SELECT 7 / ?", (2,), [(3,)]),
        ("SELECT 7 / ?", (2.0,), [(3.5,)]),
        ("SELECT ? || ?", ("a", 1), [("a1",)]),
        ("SELECT COALESCE(?, 5)", (None,), [(5,)]),
        ("SELECT ?", ("x",), [("x",)]),
        ("SELECT id FROM a ORDER BY id LIMIT ? OFFSET ?", (1, 1), [(2,)]),
        ("SELECT id FROM a ORDER BY id LIMIT ?", (None,), [(1,), (2,), (3,)]),
    ],
)
def test_parameters_take_the_type_of_their_place(db: Engine, sql: str, parameters: Any, expected: Any) -> None:
    assert db.execute(sql, parameters).rows == expected


@pytest.mark.parametrize(
    "value", [1 << 63, -(1 << 63) - 1, 1 << 64, 10**5000], ids=["over", "under", "65 bits", "5000 digits"]
)
@pytest.mark.parametrize(
    "sql",
    [
        "SELECT id FROM a WHERE id = ?",
        "SELECT id FROM a WHERE id IN (1, ?)",
        "SELECT id FROM a WHERE id BETWEEN 0 AND ?",
        "SELECT id FROM a WHERE x < ?",
        "SELECT COUNT(*) FROM a HAVING COUNT(*) <> ?",
        "SELECT id FROM a LIMIT ?",
        "UPDATE a SET x = 1 WHERE id = ?",
        "DELETE FROM a WHERE id <> ?",
        "INSERT INTO a (id) VALUES (?)",
    ],
)
def test_an_int_of_more_than_64_bits_is_an_error_by_db_and_in_a_procedure(db: Engine, sql: str, value: int) -> None:
    @procedure
    def run_it(tx: Any, sql: str) -> None:
        tx.execute(sql, (value,))  # no argument of a call is so large

    engine = Engine(SCHEMA, [run_it], memory_bytes=32 << 20)
    words = r"^parameter 1: an int of [\d,]+ bits; an INT has 64$"
    with pytest.raises(DataError, match=words) as by_db:
        engine.execute(sql, (value,))
    with pytest.raises(DataError, match=words) as by_tx:
        engine.call("run_it", sql)
    assert str(by_db.value) == str(by_tx.value)


@pytest.mark.parametrize(
    ("sql", "parameters", "words"),
    [
        ("SELECT id FROM a WHERE id = ?", ("x",), "parameter 1: a number is wanted here, not STRING 'x'"),
        ("SELECT id FROM a WHERE s = ?", (3,), "parameter 1: a STRING is wanted here, not INT 3"),
        ("SELECT id FROM a WHERE id = ?", (True,), "not BOOL"),
        ("SELECT ? = ?", (1, "a"), "INT and STRING can't be compared"),
        ("SELECT ?", (1 << 63,), "parameter 1: an int of 65 bits; an INT has 64"),
        ("SELECT id FROM a LIMIT ?", (-1,), "must not be negative"),
        ("SELECT ?", ([1],), "list is no type of a column"),
        ("SELECT id FROM a WHERE id IN (?, ?)", (1, -(2**64)), "parameter 2: an int of 65 bits; an INT has 64"),
        ("SELECT ?, ?", ("a", "\ud800"), "parameter 2: str can't be sent: "),
        ("INSERT INTO a (id, x) VALUES (9, ?)", ("q",), "does not fit a column of type INT"),
    ],
)
def test_parameters_that_do_not_fit_are_errors(db: Engine, sql: str, parameters: Any, words: str) -> None:
    with pytest.raises(DataError) as caught:
        db.execute(sql, parameters)
    assert words in str(caught.value)


def test_a_bare_value_in_the_place_of_parameters_is_an_error(db: Engine) -> None:
    given: Any
    for given in (1, None, "x", {"id": 1}):
        words = f"^parameters are a tuple or a list of values, not {type(given).__name__}$"
        with pytest.raises(BadArguments, match=words):
            db.execute("SELECT ?", given)

    @procedure
    def bare(tx: Any) -> None:
        tx.execute("SELECT ?", 1)

    with pytest.raises(SqlError, match=r"^parameters are a tuple or a list of values, not int$"):
        Engine("CREATE TABLE t (id INT PRIMARY KEY);", [bare]).call("bare")


def test_a_time_without_zone_is_no_parameter(db: Engine) -> None:
    naive, aware = datetime(2026, 7, 1, 12), datetime(2026, 7, 1, 12, tzinfo=UTC)
    with pytest.raises(DataError, match=r"^parameter 2: datetime.datetime\(2026, 7, 1, 12, 0\) has no time zone$"):
        db.execute("SELECT ?, ?", (1, naive))
    assert db.execute("SELECT ?, ?", iter([1, aware])).rows == [(1, aware)]


def test_a_wrong_number_of_parameters_is_an_error(db: Engine) -> None:
    with pytest.raises(SqlError, match="has 1 parameters, and 0 were given"):
        db.execute("SELECT ?")


def test_nulls_come_last_going_up_and_first_going_down(db: Engine) -> None:
    assert [row[0] for row in db.execute("SELECT id FROM a ORDER BY x")] == [3, 1, 2]
    assert [row[0] for row in db.execute("SELECT id FROM a ORDER BY x DESC")] == [2, 1, 3]
    assert [row[0] for row in db.execute("SELECT id FROM a ORDER BY x NULLS FIRST, id")] == [2, 3, 1]
    assert [row[0] for row in db.execute("SELECT id FROM a ORDER BY x IS NULL DESC, f DESC")] == [2, 1, 3]


def test_aggregates_of_nothing_and_of_nulls(db: Engine) -> None:
    assert db.execute("SELECT count(*), count(x), sum(x), avg(f), min(s), bool_and(b) FROM a WHERE id > 9").rows == [
        (0, 0, None, None, None, None)
    ]
    assert db.execute("SELECT count(*), count(x), sum(x), avg(x), max(s), bool_or(b) FROM a").rows == [
        (3, 2, 3, 1.5, "one", True)
    ]
    assert db.execute("SELECT x, count(*) FROM a WHERE id > 9 GROUP BY x").rows == []
    assert db.execute("SELECT count(*) FILTER (WHERE x > 0), count(DISTINCT b) FROM a").rows == [(1, 2)]


def test_a_sum_of_whole_numbers_has_64_bits(db: Engine) -> None:
    with pytest.raises(DataError, match="integer out of range"):
        db.execute("SELECT sum(v) FROM (VALUES (9223372036854775807), (1)) AS q(v)")
    assert db.execute("SELECT sum(v) FROM (VALUES (9223372036854775807), (1), (-2)) AS q(v)").rows == [
        (9223372036854775806,)
    ]


def test_the_primary_key_in_group_by_speaks_for_the_row(db: Engine) -> None:
    rows = db.execute("SELECT id, x, s, count(*) FROM a GROUP BY id ORDER BY id").rows
    assert rows == [(1, 10, "one", 1), (2, None, None, 1), (3, -7, "b", 1)]


def test_set_operations_treat_nulls_as_equal(db: Engine) -> None:
    assert db.execute("SELECT x FROM a UNION SELECT NULL").rowcount == 3
    assert db.execute("SELECT x FROM a INTERSECT SELECT NULL").rows == [(None,)]
    assert db.execute("SELECT 1 UNION ALL SELECT 1 EXCEPT ALL SELECT 1").rows == [(1,)]
    assert db.execute("SELECT 1 UNION SELECT 2.5 ORDER BY 1 DESC").rows == [(2.5,), (1.0,)]


def test_names_of_columns_are_postgresqls(db: Engine) -> None:
    sql = (
        "SELECT id, x AS y, count(*), 1 + 1, CASE WHEN TRUE THEN 1 END, CAST(1 AS STRING), EXISTS (SELECT 1) "
        "FROM a GROUP BY id"
    )
    assert db.execute(sql).columns == ["id", "y", "count", "?column?", "case", "string", "exists"]


def test_using_shows_the_common_column_once(db: Engine) -> None:
    sql = "SELECT * FROM (VALUES (1, 'l')) AS l(k, v) JOIN (VALUES (1, 'r'), (2, 's')) AS r(k, w) USING (k)"
    result = db.execute(sql)
    assert result.columns == ["k", "v", "w"]
    assert result.rows == [(1, "l", "r")]
    assert db.execute(sql.replace("JOIN", "NATURAL JOIN").removesuffix(" USING (k)")).rows == [(1, "l", "r")]


def test_a_right_join_is_a_left_join_the_other_way(db: Engine) -> None:
    sql = "SELECT v, w FROM (VALUES (1, 'l')) AS l(k, v) RIGHT JOIN (VALUES (1, 'r'), (2, 's')) AS r(k, w) ON l.k = r.k"
    assert sorted(db.execute(sql).rows, key=str) == [("l", "r"), (None, "s")]


class TestWrites:
    @pytest.fixture
    def db(self) -> Engine:
        return Engine(SCHEMA, memory_bytes=32 << 20)

    def test_rows_go_in_with_defaults_and_come_back(self, db: Engine) -> None:
        result = db.execute("INSERT INTO pairs (q, p) VALUES ('a', 1), ('b', 2) RETURNING *, v + 1 AS next")
        assert result.rows == [(1, "a", 7, 8), (2, "b", 7, 8)]
        assert result.columns == ["p", "q", "v", "next"]
        assert result.rowcount == 2
        assert db.execute("INSERT INTO pairs VALUES (3, 'c'), (4, 'd')").rowcount == 2
        assert (
            db.execute(
                "INSERT INTO pairs SELECT p + 10, q, DEFAULT_V FROM (SELECT p, q, 1 AS default_v FROM pairs) AS z"
            ).rowcount
            == 4
        )
        assert db.execute("SELECT v, count(*) FROM pairs GROUP BY v ORDER BY v").rows == [(1, 4), (7, 4)]
        assert db.execute("INSERT INTO loose DEFAULT VALUES").rowcount == 1
        assert db.execute("SELECT * FROM loose").rows == [(None,)]

    def test_a_key_that_is_left_out_is_made(self, db: Engine) -> None:
        rows = db.execute("INSERT INTO a (x) VALUES (1), (2) RETURNING id").rows
        assert len({row[0] for row in rows}) == 2
        with pytest.raises(ConstraintViolation, match="column q is NOT NULL, has no default and was left out"):
            db.execute("INSERT INTO pairs (p) VALUES (1)")

    def test_a_statement_that_fails_leaves_nothing(self, db: Engine) -> None:
        with pytest.raises(DuplicateKey):
            db.execute("INSERT INTO a (id) VALUES (1), (2), (1)")
        assert db.execute("SELECT count(*) FROM a").rows == [(0,)]

    def test_on_conflict_does_nothing_or_updates(self, db: Engine) -> None:
        db.execute("INSERT INTO a (id, x) VALUES (1, 10)")
        assert db.execute("INSERT INTO a (id, x) VALUES (1, 5), (2, 5) ON CONFLICT DO NOTHING RETURNING id").rows == [
            (2,)
        ]
        sql = (
            "INSERT INTO a (id, x) VALUES (?, ?) "
            "ON CONFLICT (id) DO UPDATE SET x = a.x + EXCLUDED.x WHERE a.x < 100 RETURNING x"
        )
        assert db.execute(sql, (1, 100)).rows == [(110,)]
        assert db.execute(sql, (1, 100)).rows == []
        assert db.execute(sql, (3, 1)).rows == [(1,)]
        with pytest.raises(DataError, match="a second time"):
            db.execute("INSERT INTO a (id) VALUES (4), (4) ON CONFLICT (id) DO UPDATE SET x = 1")
        assert db.execute("SELECT count(*) FROM a").rows == [(3,)]

    def test_an_update_sees_the_rows_as_they_were(self, db: Engine) -> None:
        db.execute("INSERT INTO a (id, x) VALUES (1, 1), (2, 2), (3, 3)")
        assert db.execute("UPDATE a SET x = (SELECT max(x) FROM a) + x RETURNING id, x").rows == [
            (1, 4),
            (2, 5),
            (3, 6),
        ]
        assert db.execute("UPDATE a SET id = id + 1").rowcount == 3
        assert db.execute("SELECT id, x FROM a ORDER BY id").rows == [(2, 4), (3, 5), (4, 6)]
        with pytest.raises(DuplicateKey):
            db.execute("UPDATE a SET id = 9")
        assert db.execute("UPDATE a SET x = DEFAULT, s = 'z' WHERE id IN (2, 77) RETURNING x, s").rows == [(None, "z")]
        assert db.execute("UPDATE a SET x = 1 WHERE id = 77").rowcount == 0

    def test_rows_are_deleted_and_returned(self, db: Engine) -> None:
        db.execute("INSERT INTO a (id, x) VALUES (1, 1), (2, 2), (3, NULL)")
        assert db.execute("DELETE FROM a WHERE x > 1 RETURNING id").rows == [(2,)]
        assert db.execute("DELETE FROM a WHERE NOT EXISTS (SELECT 1 FROM a b WHERE b.id = a.id + 1)").rowcount == 2
        assert db.execute("DELETE FROM a").rowcount == 0

    def test_values_become_what_their_columns_are(self, db: Engine) -> None:
        row = db.execute("INSERT INTO a VALUES (1, 2.5, 3, 'x', 'yes', '2024-05-17') RETURNING *").rows[0]
        assert row == (1, 2, 3.0, "x", True, datetime(2024, 5, 17, tzinfo=UTC))
        assert type(row[2]) is float
        row = db.execute("INSERT INTO a (id, s, t) VALUES (?, ?, ?) RETURNING s, t", (2, 1.5, "2024-05-17")).rows[0]
        assert row == ("1.5", datetime(2024, 5, 17, tzinfo=UTC))
