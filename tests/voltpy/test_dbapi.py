"""PEP 249: the suite that any driver must pass, then what is voltpy's own."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import dbapi20
import pytest

import voltpy
from voltpy import dbapi, errors, procedure
from voltpy.result import Result
from voltpy.testing import Engine

BOOZE = """
CREATE TABLE dbapi20test_booze (name VARCHAR(20));
CREATE TABLE dbapi20test_barflys (name VARCHAR(20), drink VARCHAR(30));
"""


@procedure
def lower(tx: Any, text: str) -> str:
    return text.lower()


class Compliance(dbapi20.DatabaseAPI20Test):  # type: ignore[misc]
    """The suite of dbapi-compliance. Its tables are there from the beginning."""

    driver = dbapi

    def setUp(self) -> None:
        self.engine = Engine(BOOZE, [lower])
        self.connect_args = (self.engine,)

    def tearDown(self) -> None:
        self.engine.close()

    def executeDDL1(self, cursor: dbapi.Cursor) -> None:  # noqa: N802
        cursor.execute("DELETE FROM dbapi20test_booze")

    def executeDDL2(self, cursor: dbapi.Cursor) -> None:  # noqa: N802
        cursor.execute("DELETE FROM dbapi20test_barflys")

    def test_nextset(self) -> None:
        """Optional, and a statement has one result."""
        assert not hasattr(dbapi.Cursor, "nextset")

    def test_setoutputsize(self) -> None:
        with self._connect() as connection:
            cursor = connection.cursor()
            cursor.setoutputsize(1)
            assert cursor.execute("SELECT 'longer than 1'").fetchall() == [("longer than 1",)]


SCHEMA = """
CREATE TABLE accounts (id INT PRIMARY KEY, owner STRING NOT NULL, balance FLOAT, opened TIMESTAMP, closed BOOL);
PARTITION TABLE accounts ON COLUMN id;
"""


@procedure(partition_by="id")
def open_account(tx: Any, id: int, owner: str) -> int:
    if owner == "nobody":
        tx.abort("an account has an owner")
    tx.accounts.insert(id=id, owner=owner)
    return id


@pytest.fixture
def connection() -> Iterator[dbapi.Connection]:
    with Engine(SCHEMA, [open_account]) as engine, dbapi.connect(engine) as connection:
        yield connection


@pytest.fixture
def cursor(connection: dbapi.Connection) -> dbapi.Cursor:
    return connection.cursor()


def test_columns_are_described_with_types_that_compare_equal(cursor: dbapi.Cursor) -> None:
    cursor.execute("SELECT id, owner, balance AS b, opened, closed, NULL AS nothing FROM accounts")
    assert cursor.description is not None
    assert [column[0] for column in cursor.description] == ["id", "owner", "b", "opened", "closed", "nothing"]
    codes = [column[1] for column in cursor.description]
    kinds = [dbapi.NUMBER, dbapi.STRING, dbapi.NUMBER, dbapi.DATETIME, dbapi.BOOLEAN]
    assert codes[:5] == kinds
    assert codes == ["INT", "STRING", "FLOAT", "TIMESTAMP", "BOOL", "NULL"]
    objects = (dbapi.NUMBER, dbapi.STRING, dbapi.DATETIME, dbapi.BOOLEAN, dbapi.BINARY, dbapi.ROWID)
    assert [sum(kind == code for kind in objects) for code in codes] == [1, 1, 1, 1, 1, 0]


def test_values_go_in_and_come_out_as_they_are(cursor: dbapi.Cursor) -> None:
    opened = dbapi.Timestamp(2024, 5, 17, 8, 30)
    row = (2**63 - 1, "Kåre's \N{BEER MUG}?", 0.1, opened, True)
    cursor.execute("INSERT INTO accounts VALUES (?, ?, ?, ?, ?)", row)
    assert (cursor.rowcount, cursor.description, cursor.lastrowid) == (1, None, None)
    assert cursor.execute("SELECT * FROM accounts").fetchall() == [row]
    cursor.executemany("UPDATE accounts SET opened = ? WHERE id = ?", [(datetime(2026, 7, 1, 12), row[0])])
    cursor.execute("SELECT 1 FROM accounts WHERE opened = ?", [datetime(2026, 7, 1, 12)])  # in UTC
    assert len(cursor.fetchall()) == 1
    cursor.execute("SELECT opened FROM accounts")
    assert cursor.fetchone() == (datetime(2026, 7, 1, 12, tzinfo=UTC),)
    cursor.execute("INSERT INTO accounts (id, owner) VALUES (?, ?) RETURNING id, balance", [1, "Kari"])
    assert (cursor.rowcount, list(cursor)) == (1, [(1, None)])


def test_constructors_make_times_in_utc() -> None:
    assert dbapi.Date(2002, 12, 25) == datetime(2002, 12, 25, tzinfo=UTC)
    ticks = datetime(2002, 12, 25, 13, 45, 30, tzinfo=UTC).timestamp()
    assert dbapi.TimestampFromTicks(ticks) == dbapi.Timestamp(2002, 12, 25, 13, 45, 30)
    assert dbapi.DateFromTicks(ticks) == dbapi.Date(2002, 12, 25)
    assert dbapi.TimeFromTicks(ticks) == dbapi.Time(13, 45, 30) == "13:45:30"


def test_a_statement_that_fails_in_executemany_leaves_those_before_it(cursor: dbapi.Cursor) -> None:
    insert = "INSERT INTO accounts (id, owner) VALUES (?, ?)"
    with pytest.raises(dbapi.IntegrityError, match="tuple 3: "):
        cursor.executemany(insert, iter([(1, "a"), (2, "b"), (1, "c"), (3, "d")]))
    assert cursor.rowcount == 2
    assert cursor.execute("SELECT id FROM accounts ORDER BY id").fetchall() == [(1,), (2,)]
    assert cursor.executemany(insert, []).rowcount == 0
    with pytest.raises(dbapi.ProgrammingError, match="change rows"):
        cursor.executemany("SELECT ?", [(1,)])
    with pytest.raises(dbapi.InterfaceError):
        cursor.fetchall()


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE made (k INT PRIMARY KEY)",
        "CREATE INDEX made ON accounts (owner)",
        "CREATE VIEW made AS SELECT owner, COUNT(*) AS n FROM accounts GROUP BY owner",
    ],
)
def test_a_change_of_the_schema_counts_no_rows(cursor: dbapi.Cursor, statement: str) -> None:
    for each in (statement, f"DROP {statement.split()[1]} made"):
        assert cursor.execute(each).rowcount == -1


def test_executemany_refuses_to_explain_before_anything_runs(cursor: dbapi.Cursor) -> None:
    for explain in ("EXPLAIN ANALYZE", "-- why\r/* so */ explain analyze", "EXPLAIN"):
        with pytest.raises(dbapi.ProgrammingError, match="change rows"):
            cursor.executemany(f"{explain} INSERT INTO accounts (id, owner) VALUES (?, ?)", [(1, "a"), (2, "b")])
        assert cursor.rowcount == -1
    assert cursor.execute("SELECT count(*) FROM accounts").fetchone() == (0,)


def test_what_is_committed_can_not_be_rolled_back(connection: dbapi.Connection) -> None:
    cursor = connection.cursor()
    cursor.execute("SELECT count(*) FROM accounts")
    cursor.execute("DELETE FROM accounts WHERE id = 7")  # there is none
    with pytest.raises(dbapi.ProgrammingError):
        cursor.execute("SELECT nothing FROM nowhere")
    connection.rollback()
    cursor.execute("INSERT INTO accounts (id, owner) VALUES (1, 'Kari') RETURNING id")
    connection.commit()
    connection.rollback()
    assert cursor.execute("EXPLAIN ANALYZE UPDATE accounts SET owner = 'Per'").rowcount > 1
    with pytest.raises(dbapi.NotSupportedError, match="committed"):
        connection.rollback()
    connection.commit()
    cursor.execute("UPDATE accounts SET owner = 'Ola'")
    with pytest.raises(dbapi.NotSupportedError, match="committed"):
        connection.rollback()
    assert cursor.execute("SELECT owner FROM accounts").fetchone() == ("Ola",)
    assert connection.autocommit
    connection.autocommit = True
    with pytest.raises(dbapi.NotSupportedError):
        connection.autocommit = False


def test_a_procedure_is_a_transaction_of_several_statements(connection: dbapi.Connection) -> None:
    cursor = connection.cursor()
    assert cursor.callproc("open_account", (1, "Kari")) == (1, "Kari")
    assert cursor.fetchall() == [(1,)]
    with pytest.raises(dbapi.NotSupportedError):
        connection.rollback()
    with pytest.raises(dbapi.DatabaseError, match="an account has an owner") as raised:
        cursor.callproc("open_account", (2, "nobody"))
    assert type(raised.value) is dbapi.DatabaseError
    assert isinstance(raised.value.__cause__, voltpy.Aborted)


@pytest.mark.parametrize("parameters", ["ab", b"ab", {"a": 1}, 7, {1, 2}])
def test_parameters_are_a_tuple_or_a_list(cursor: dbapi.Cursor, parameters: Any) -> None:
    with pytest.raises(dbapi.ProgrammingError, match=f"not {type(parameters).__name__}"):
        cursor.execute("SELECT ?, ?", parameters)
    assert cursor.rowcount == -1


@pytest.mark.parametrize(
    ("statement", "parameters", "kind", "cause"),
    [
        ("SELECT nothing FROM accounts", (), dbapi.ProgrammingError, errors.SqlError),
        ("SELECT ?", (), dbapi.ProgrammingError, errors.SqlError),
        ("SELECT 1 / ?", (0,), dbapi.DataError, errors.DataError),
        ("INSERT INTO accounts (id, owner) VALUES (1, 'b'), (1, 'c')", (), dbapi.IntegrityError, errors.DuplicateKey),
        (
            "INSERT INTO accounts (id, owner) VALUES (?, ?)", (1, None), dbapi.IntegrityError,
            errors.ConstraintViolation,
        ),
    ],
)  # fmt: skip
def test_errors_keep_their_cause(
    cursor: dbapi.Cursor, statement: str, parameters: Any, kind: type[dbapi.Error], cause: type[errors.Error]
) -> None:
    with pytest.raises(dbapi.Error) as raised:
        cursor.execute(statement, parameters)
    assert type(raised.value) is kind
    assert type(raised.value.__cause__) is cause
    assert str(raised.value) == str(raised.value.__cause__)
    assert isinstance(raised.value, voltpy.Error)
    assert (cursor.rowcount, cursor.description) == (-1, None)


class Failing:
    """A database that answers everything with one error."""

    def __init__(self, error: errors.Error) -> None:
        self.error = error

    def execute(self, sql: str, parameters: Any = (), /) -> Result:
        raise self.error

    def call(self, name: str, /, *args: Any) -> Any:
        raise self.error

    def close(self) -> None:
        raise AssertionError("it was lent")


TRANSLATED = {
    "Aborted": dbapi.DatabaseError,
    "ProcedureError": dbapi.DatabaseError,
    "ProcedureTimeout": dbapi.OperationalError,
    "BadArguments": dbapi.ProgrammingError,
    "UnknownProcedure": dbapi.ProgrammingError,
    "ConstraintViolation": dbapi.IntegrityError,
    "DuplicateKey": dbapi.IntegrityError,
    "WrongPartition": dbapi.ProgrammingError,
    "SchemaError": dbapi.ProgrammingError,
    "SqlError": dbapi.ProgrammingError,
    "DataError": dbapi.DataError,
    "Overloaded": dbapi.OperationalError,
    "ReadOnly": dbapi.OperationalError,
    "Unavailable": dbapi.OperationalError,
    "Indeterminate": dbapi.OperationalError,
    "Reentered": dbapi.InterfaceError,
    "ProtocolError": dbapi.InterfaceError,
    "Corruption": dbapi.InternalError,
    "ClusterError": dbapi.OperationalError,
}


def test_an_answer_that_was_lost_counts_as_a_change() -> None:
    with dbapi.connect(Failing(errors.Indeterminate("lost"))) as connection:
        with pytest.raises(dbapi.OperationalError):
            connection.cursor().execute("DELETE FROM accounts")
        with pytest.raises(dbapi.NotSupportedError):
            connection.rollback()


@pytest.mark.parametrize("name", errors.CODES)
def test_every_error_has_its_place_in_the_standard(name: str) -> None:
    original = errors.CODES[name]("what happened")
    with dbapi.connect(Failing(original)) as connection, pytest.raises(dbapi.Error, match="what happened") as raised:
        connection.cursor().execute("SELECT 1")
    assert type(raised.value) is TRANSLATED[name]
    assert raised.value.__cause__ is original
    assert raised.value.retry_is_safe == original.retry_is_safe


def test_what_is_closed_refuses_everything(connection: dbapi.Connection) -> None:
    cursor, other = connection.cursor(), connection.cursor()
    with other:
        other.execute("SELECT 1")
    other.close()
    for use in (lambda: other.execute("SELECT 1"), other.fetchone, other.fetchall, lambda: next(other)):
        with pytest.raises(dbapi.InterfaceError, match="cursor is closed"):
            use()
    cursor.execute("SELECT 1")
    connection.close()
    uses = (cursor.fetchone, connection.cursor, connection.commit, connection.rollback, connection.close)
    for use in (lambda: cursor.execute("SELECT 1"), connection.__enter__, *uses):
        with pytest.raises(dbapi.InterfaceError, match="connection is closed"):
            use()


def test_a_lent_database_stays_open() -> None:
    with Engine(SCHEMA) as engine:
        with dbapi.connect(engine) as connection:
            connection.cursor().execute("INSERT INTO accounts (id, owner) VALUES (1, 'Kari')")
        assert engine.execute("SELECT owner FROM accounts").rows == [("Kari",)]


def test_a_cluster_that_is_not_there_and_a_url_that_is_none() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        with pytest.raises(dbapi.OperationalError, match=str(port)) as raised:
            dbapi.connect(f"voltpy://127.0.0.1:{port}", timeout=0.2)
    assert isinstance(raised.value.__cause__, voltpy.Unavailable)
    with pytest.raises(dbapi.InterfaceError, match="voltpy://"):
        dbapi.connect("postgres://localhost/")
