"""The Python Database API 2.0 (PEP 249) over a cluster's SQL.

    from voltpy import dbapi

    with dbapi.connect("voltpy://127.0.0.1:21212", timeout=10) as connection:
        cursor = connection.cursor()
        cursor.execute("SELECT id, owner FROM accounts WHERE city = ?", ("Oslo",))
        for id, owner in cursor: ...

**Every statement is a transaction of its own**, durable before `execute` returns: the connection is in autocommit mode,
and in no other. `commit()` does nothing. `rollback()` does nothing as long as nothing was changed since the last
`commit()`; after a statement that changed rows, or a procedure, it raises NotSupportedError: they are committed.
A transaction of several statements is a stored procedure: `cursor.callproc`.

`threadsafety` is 2: threads may share a connection, and each has cursors of its own. Parameters are `?`, and values of
int, float, str, bool, datetime or None; a datetime without a time zone is taken as UTC.

Errors are those of PEP 249. Each has what voltpy raised as its `__cause__`, and its `retry_is_safe`:

    IntegrityError     ConstraintViolation, DuplicateKey
    DataError          DataError
    ProgrammingError   SqlError, SchemaError, BadArguments, UnknownProcedure, WrongPartition
    OperationalError   Overloaded, ReadOnly, Unavailable, Indeterminate, ProcedureTimeout, ClusterError
    InternalError      Corruption
    InterfaceError     ProtocolError, Reentered; use of a connection or cursor that is closed, or has no rows to fetch
    DatabaseError      Aborted, ProcedureError: from procedures
    NotSupportedError  `rollback()` as above
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from types import TracebackType
from typing import Any, Self, TypeAlias, TypeVar

from voltpy import client, errors
from voltpy.known_statements import MANY, is_explained
from voltpy.result import Database, Result

apilevel = "2.0"
threadsafety = 2
paramstyle = "qmark"

_READS = ("select", "explain")
_OF_SCHEMA = (" table", " index", " view")  # the kinds of statements that change it
_CHANGES = ("insert", "update", "delete")  # of rows, if there are any
_NOT_FOR_MANY = "executemany() runs statements that change rows; this one answers some"

T = TypeVar("T")
# (name, type code, display size, internal size, precision, scale, whether it may be NULL)
Description: TypeAlias = tuple[str, str, None, None, None, None, None]

# -- Errors


class Warning(Exception):  # PEP 249's name
    """Never raised; PEP 249 wants it to exist."""


class Error(errors.Error):
    """What all errors of this module are; an `voltpy.Error` too."""


class InterfaceError(Error):
    """The use of this module is wrong, or what answers is no voltpy of this version."""


class DatabaseError(Error):
    """What the database has to say."""


class DataError(DatabaseError):
    """A statement met values that it can't compute with."""


class OperationalError(DatabaseError):
    """The cluster can't do it now."""


class IntegrityError(DatabaseError):
    """A row breaks a rule of its table."""


class InternalError(DatabaseError):
    """Data on disk are damaged."""


class ProgrammingError(DatabaseError):
    """The statement or its parameters are wrong."""


class NotSupportedError(DatabaseError):
    """There are no transactions of several statements."""


# The first that fits: subclasses stand in front.
_TRANSLATIONS: tuple[tuple[type[errors.Error], type[Error]], ...] = (
    (errors.ConstraintViolation, IntegrityError),
    (errors.DataError, DataError),
    (errors.SqlError, ProgrammingError),
    (errors.SchemaError, ProgrammingError),
    (errors.BadArguments, ProgrammingError),
    (errors.UnknownProcedure, ProgrammingError),
    (errors.WrongPartition, ProgrammingError),
    (errors.Overloaded, OperationalError),
    (errors.ReadOnly, OperationalError),
    (errors.Unavailable, OperationalError),
    (errors.Indeterminate, OperationalError),
    (errors.ProcedureTimeout, OperationalError),
    (errors.ClusterError, OperationalError),
    (errors.Corruption, InternalError),
    (errors.ProtocolError, InterfaceError),
    (errors.Reentered, InterfaceError),
)


def _translated(error: errors.Error, where: str = "") -> Error:
    translation = next((translation for kind, translation in _TRANSLATIONS if isinstance(error, kind)), DatabaseError)
    translated = translation(f"{where}{error}")
    translated.retry_is_safe = error.retry_is_safe
    return translated


def _asked(ask: Callable[[], T]) -> T:
    """What the database answers, its errors as PEP 249 has them."""
    try:
        return ask()
    except errors.Error as error:
        raise _translated(error) from error


# -- Types


class TypeObject:
    """Equal to each of the type codes (`description[i][1]`) that it stands for."""

    def __init__(self, name: str, *codes: str) -> None:
        self._name = name
        self._codes = frozenset(codes)

    def __eq__(self, other: object) -> bool:
        return other is self or other in self._codes

    def __hash__(self) -> int:
        return hash(self._codes)

    def __repr__(self) -> str:
        return f"voltpy.dbapi.{self._name}"


STRING = TypeObject("STRING", "STRING")
NUMBER = TypeObject("NUMBER", "INT", "FLOAT", "NUMBER")
DATETIME = TypeObject("DATETIME", "TIMESTAMP")
BOOLEAN = TypeObject("BOOLEAN", "BOOL")
BINARY = TypeObject("BINARY")  # no column has such a type
ROWID = TypeObject("ROWID")  # nor this one


def Date(year: int, month: int, day: int) -> datetime:  # noqa: N802
    """The day's beginning in UTC: there is no type for dates, and this is a TIMESTAMP."""
    return datetime(year, month, day, tzinfo=UTC)


def Time(hour: int, minute: int, second: int) -> str:  # noqa: N802
    """'13:45:30': there is no type for times of day, and this is a STRING."""
    return f"{hour:02}:{minute:02}:{second:02}"


def Timestamp(  # noqa: N802
    year: int, month: int, day: int, hour: int = 0, minute: int = 0, second: int = 0
) -> datetime:
    """A time in UTC."""
    return datetime(year, month, day, hour, minute, second, tzinfo=UTC)


def DateFromTicks(ticks: float) -> datetime:  # noqa: N802
    """The beginning of the day in UTC that is `ticks` seconds after 1970."""
    return Date(*time.gmtime(ticks)[:3])


def TimeFromTicks(ticks: float) -> str:  # noqa: N802
    """The time of day in UTC."""
    return Time(*time.gmtime(ticks)[3:6])


def TimestampFromTicks(ticks: float) -> datetime:  # noqa: N802
    return datetime.fromtimestamp(ticks, UTC)


def Binary(value: bytes) -> bytes:  # noqa: N802
    """No column takes it."""
    return bytes(value)


# -- Connections


def connect(dsn: str | Database = "voltpy://127.0.0.1:21212", *, timeout: float = 10.0) -> Connection:
    """Connects to the cluster at `dsn`, `voltpy://HOST[:PORT][?affinity=on|off]`, with a limit in seconds a statement.

    Instead of a URL it may be given a `voltpy.Client`, or a `voltpy.testing.Engine`: that one stays open when the
    connection is closed. Raises OperationalError when nobody answers, InterfaceError for a wrong URL.
    """
    if not isinstance(dsn, str):
        return Connection(dsn, owns=False)
    url = dsn
    try:
        opened = _asked(lambda: client.connect(url, timeout=timeout))
    except ValueError as error:
        raise InterfaceError(str(error)) from error
    return Connection(opened, owns=True)


class Connection:
    """Made by `connect`. As a context manager it closes itself; the module's docstring says what is a transaction."""

    Warning = Warning
    Error = Error
    InterfaceError = InterfaceError
    DatabaseError = DatabaseError
    DataError = DataError
    OperationalError = OperationalError
    IntegrityError = IntegrityError
    InternalError = InternalError
    ProgrammingError = ProgrammingError
    NotSupportedError = NotSupportedError

    def __init__(self, database: Database, *, owns: bool) -> None:
        self._database: Database | None = database
        self._owns = owns
        self._changed = False  # whether something was changed since the last commit()

    @property
    def autocommit(self) -> bool:
        """True."""
        return True

    @autocommit.setter
    def autocommit(self, value: bool) -> None:
        if not value:
            raise NotSupportedError("every statement is a transaction of its own; several are a stored procedure")

    def cursor(self) -> Cursor:
        self._opened()
        return Cursor(self)

    def commit(self) -> None:
        """Nothing is left to do."""
        self._opened()
        self._changed = False

    def rollback(self) -> None:
        """Does nothing. Raises NotSupportedError when something was changed since the last commit()."""
        self._opened()
        if self._changed:
            self._changed = False  # said once: what is changed next is another matter
            raise NotSupportedError(
                "nothing can be undone: every statement is a transaction of its own, and those that ran are committed"
            )

    def close(self) -> None:
        """Ends the connection, and with it its cursors. Raises InterfaceError when it is closed, as PEP 249 has it."""
        database = self._opened()
        self._database = None
        if self._owns:
            _asked(database.close)

    def __enter__(self) -> Self:
        self._opened()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._database is not None:
            self.close()

    def _opened(self) -> Database:
        if self._database is None:
            raise InterfaceError("the connection is closed")
        return self._database

    def _execute(self, operation: str, parameters: Sequence[Any]) -> Result:
        database = self._opened()
        result = self._run(lambda: database.execute(operation, parameters))
        if result.kind not in _READS and (result.rowcount or result.kind not in _CHANGES):
            self._changed = True
        return result

    def _execute_many(self, operation: str, rows: Sequence[Sequence[Any]]) -> Sequence[Result | errors.Error]:
        database = self._opened()
        results = self._run(lambda: database.execute_many(operation, rows))
        for result in results:
            if isinstance(result, errors.Indeterminate) or (isinstance(result, Result) and result.rowcount):
                self._changed = True
        return results

    def _call(self, name: str, arguments: Sequence[Any]) -> Any:
        database = self._opened()
        value = self._run(lambda: database.call(name, *arguments))
        self._changed = True
        return value

    def _run(self, ask: Callable[[], T]) -> T:
        try:
            return _asked(ask)
        except BaseException as error:
            # After a lost answer, or Ctrl-C, it may have run.
            if not isinstance(error, Error) or isinstance(error.__cause__, errors.Indeterminate):
                self._changed = True
            raise


class Cursor:
    """Runs statements of its connection, one after another, and hands out what the last one answered."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.arraysize = 1  # rows that fetchmany() takes where it is not told
        self.description: list[Description] | None = None
        self.rowcount = -1  # rows answered or changed; -1 as long as nobody knows
        self.lastrowid = None  # rows have keys: INSERT … RETURNING tells them
        self._rows: list[tuple[Any, ...]] | None = None
        self._next = 0
        self._closed = False

    def execute(self, operation: str, parameters: Sequence[Any] | None = None) -> Self:
        """Runs one statement. Returns the cursor, so that `for row in cursor.execute(…)` can be written."""
        self._begin()
        result = self.connection._execute(operation, _checked(parameters))
        self.rowcount = -1 if result.kind.endswith(_OF_SCHEMA) else result.rowcount
        if result.columns:
            types = result.types or ("ANY",) * len(result.columns)
            self._answer(list(zip(result.columns, types, strict=True)), result.rows)
        return self

    def executemany(self, operation: str, seq_of_parameters: Iterable[Sequence[Any]]) -> Self:
        """Runs a statement once for each tuple of parameters, each time as a transaction of its own, many at a time.

        Tuples with the same value for the partition column run in their order, others in any. When one fails, the
        error says which, those before it stay, and so may some behind it, which were under way already; the rest is not
        run. `rowcount` says how many rows were changed. What RETURNING answers is dropped. Raises ProgrammingError for
        a SELECT or EXPLAIN.
        """
        self._begin()
        if is_explained(operation):  # before it runs: under ANALYZE it may change rows
            raise ProgrammingError(_NOT_FOR_MANY)
        self.rowcount = 0
        following = iter(seq_of_parameters)
        done = 0
        while some := [_checked(parameters) for parameters in islice(following, MANY)]:
            failed: tuple[int, errors.Error] | None = None
            for number, result in enumerate(self.connection._execute_many(operation, some), done + 1):
                if isinstance(result, errors.Error):
                    failed = failed or (number, result)
                elif result.kind in _READS:
                    self.rowcount = -1
                    raise ProgrammingError(_NOT_FOR_MANY)
                else:
                    self.rowcount += result.rowcount
            if failed is not None:
                number, error = failed
                raise _translated(error, f"tuple {number}: ") from error
            done += len(some)
        return self

    def callproc(self, procname: str, parameters: Sequence[Any] = ()) -> Sequence[Any]:
        """Calls a stored procedure. What it returns is the result: one row of one column.

        Returns the parameters: none of them is changed.
        """
        self._begin()
        value = self.connection._call(procname, _checked(parameters))
        self.rowcount = 1
        self._answer([(procname, "ANY")], [(value,)])
        return parameters

    def fetchone(self) -> tuple[Any, ...] | None:
        """The next row, or None. This and the following raise InterfaceError where no statement with rows was run."""
        rows = self.fetchmany(1)
        return rows[0] if rows else None

    def fetchmany(self, size: int | None = None) -> list[tuple[Any, ...]]:
        """The next `size` rows; fewer at the end."""
        rows = self._fetchable()
        begin = self._next
        self._next = min(len(rows), begin + max(0, self.arraysize if size is None else size))
        return rows[begin : self._next]

    def fetchall(self) -> list[tuple[Any, ...]]:
        """All rows that are left."""
        rows = self._fetchable()
        begin, self._next = self._next, len(rows)
        return rows[begin:]

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[Any, ...]:
        row = self.fetchone()
        if row is None:
            raise StopIteration
        return row

    def setinputsizes(self, sizes: Sequence[Any]) -> None:
        """Does nothing: values are of any size."""

    def setoutputsize(self, size: int, column: int | None = None) -> None:
        """Does nothing: values come whole."""

    def close(self) -> None:
        """Lets go of the rows. May be called again; anything else raises InterfaceError from now on."""
        self._closed = True
        self._rows = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _begin(self) -> None:
        """Forgets the last statement."""
        if self._closed:
            raise InterfaceError("the cursor is closed")
        self.connection._opened()
        self.description = None
        self.rowcount = -1
        self._rows = None

    def _answer(self, columns: list[tuple[str, str]], rows: list[tuple[Any, ...]]) -> None:
        self.description = [(name, code, None, None, None, None, None) for name, code in columns]
        self._rows = rows
        self._next = 0

    def _fetchable(self) -> list[tuple[Any, ...]]:
        if self._closed:
            raise InterfaceError("the cursor is closed")
        self.connection._opened()
        if self._rows is None:
            raise InterfaceError("there are no rows to fetch: no statement was run, or it answers none")
        return self._rows


def _checked(parameters: Sequence[Any] | None) -> Sequence[Any]:
    if parameters is None:
        return ()
    if isinstance(parameters, str | bytes | Mapping) or not isinstance(parameters, Sequence):
        raise ProgrammingError(f"parameters are a tuple or a list, not {type(parameters).__name__}")
    if any(map(_is_naive, parameters)):
        return [value.replace(tzinfo=UTC) if _is_naive(value) else value for value in parameters]
    return parameters


def _is_naive(value: Any) -> bool:
    return isinstance(value, datetime) and value.tzinfo is None
