"""An engine with one partition in your own process, for tests of your procedures: no sockets, no WAL, pdb works.

    from voltpy.testing import Engine

    def test_a_deposit_raises_the_balance():
        with Engine(schema="schema.sql", procedures="procedures.py") as db:
            db.call("open_account", 42, "Kari")
            assert db.call("deposit", 42, 100) == 100

There is one partition, so procedures that cross partitions run in it too, and `call_everywhere` gives one result.
It is the engine that the partitions run, called in the same way: arguments and results take the form that they would
have on the wire, errors are the same, and a ProcedureError carries the original exception as its `__cause__`.
With pytest, the fixture `voltpy_engine` makes engines and closes them:
`db = voltpy_engine("schema.sql", "procedures.py")`.
"""

from __future__ import annotations

import os
import sys
from array import array
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import msgspec

# The one place where voltpy reaches up to the engine, besides the process names in voltpy.cluster.
try:
    from partitions.executor import Executor
except ModuleNotFoundError as error:
    if error.name is None or not error.name.startswith("partitions"):
        raise
    hides = getattr(sys.modules.get("partitions"), "__file__", "nothing")
    raise ImportError(f"voltpy's package partitions is hidden by {hides}: give that another name") from None
from partitions.schema_change import made_at_once
from partitions.store import Store
from voltpy.builtin import builtins
from voltpy.errors import BadArguments, Error, ReadOnly, SchemaError, Unavailable, from_wire
from voltpy.known_statements import changes_schema, checked_parameters, in_its_words, schema_changed
from voltpy.messages import CallGroup, EverywhereCall, ProcedureInfo
from voltpy.outcome_window import OutcomeWindow
from voltpy.procedure import procedure
from voltpy.registry import Registry, from_functions, load_path, procedures_of
from voltpy.result import Result
from voltpy.routing import no_such, not_everywhere, slots_of
from voltpy.schema import Schema
from voltpy.sql.catalogue import Catalogue
from voltpy.sql.ddl import parse_schema
from voltpy.sql.ddl_change import parse_change
from voltpy.sql.planner import plan
from voltpy.sql.statements import Statements
from voltpy.transaction import unique_ids, utc_now
from voltpy.wire import joined

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode
_CLIENT = 1
_EXECUTE = "voltpy.execute"  # the dot keeps it apart from users' procedures
_BUILTINS = builtins()
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Engine:
    """One partition that owns every key. Not for several threads at once.

    `schema`: SQL text; the path of a file of it, as a Path, or as a str that ends with .sql; or a Schema.
    `procedures`: the path of a procedure file, as a Path or a str, which is executed as a cluster does it; a module
    that is imported already; or functions with @procedure, in a list or another iterable. `clock` stands behind
    `tx.now()`.
    """

    def __init__(
        self,
        schema: str | Path | Schema,
        procedures: str | Path | ModuleType | Iterable[Callable[..., Any]] = (),
        *,
        clock: Callable[[], datetime] | None = None,
        memory_bytes: int = 8 << 30,
    ) -> None:
        tables = schema if isinstance(schema, Schema) else _parsed(schema)
        self._procedures = procedures if isinstance(procedures, str | Path) else _functions(procedures)
        registry = self._registry(tables)
        self.statements = _statements(tables)
        self._store = Store(tables, 0, 1, memory_bytes)
        self._executor = Executor(
            self._store, registry, OutcomeWindow(0), unique_ids(0, 1), array("Q", bytes(64)), clock or utc_now
        )
        self._executor.failed = self._remember
        self._executor.plan_with(self.statements)
        self._result: Result | None = None
        self._cause: BaseException | None = None
        self._number = 0
        self._closed = False

    def call(self, name: str, *arguments: Any, timeout: float | None = None) -> Any:
        """Runs one call and returns its result. Raises what the client would raise. `timeout` is not looked at."""
        encoded = self._encoded(name, arguments)
        slots_of(self._info(name), arguments)  # as a client does before it sends
        self._number += 1
        # The hash slot is not looked at either: all of them are here.
        self._executor.run(b"", CallGroup(_CLIENT, name, 0, 0, [self._number], [0], joined([encoded])))
        return self._outcome()

    def submit(self, name: str, *arguments: Any) -> Future[Any]:
        """Runs one call at once; its result, or its error, as a future that is done."""
        future: Future[Any] = Future()
        try:
            future.set_result(self.call(name, *arguments))
        except Error as error:
            future.set_exception(error)
        return future

    def call_many(
        self,
        name: str,
        rows: Iterable[Sequence[Any]],
        *,
        return_exceptions: bool = False,
        timeout: float | None = None,
    ) -> list[Any]:
        """One call an argument tuple; results in order, or the errors in their places."""
        results: list[Any] = []
        for row in rows:
            try:
                results.append(self.call(name, *row))
            except Error as error:
                if not return_exceptions:
                    raise
                results.append(error)
        return results

    def call_everywhere(
        self, name: str, *arguments: Any, return_exceptions: bool = False, timeout: float | None = None
    ) -> list[Any]:
        """Runs a directed procedure; a list with the one partition's result. `timeout` is not looked at.

        With `return_exceptions` its error is in its place; what a client would not have sent is raised all the same.
        """
        encoded = msgspec.Raw(self._encoded(name, arguments))
        if not self._info(name).everywhere:
            raise not_everywhere(name)
        self._number += 1
        now_us = (self._executor.clock() - _EPOCH) // timedelta(microseconds=1)
        self._executor.run_everywhere(b"", EverywhereCall(0, _CLIENT, name, self._number, encoded, now_us))
        try:
            return [self._outcome()]
        except Error as error:
            if not return_exceptions:
                raise
            return [error]

    def execute(self, sql: str, parameters: Iterable[Any] = ()) -> Result:
        """Runs one statement as a transaction of its own: `.columns`, `.rows` (tuples) and `.rowcount`."""
        given = checked_parameters(parameters)
        if changes_schema(sql, given):
            return schema_changed(self._change_schema(sql))
        try:
            self.call_everywhere(_EXECUTE, sql, list(given))
        except Error as error:
            told = in_its_words(error, given)
            if told is error:
                raise  # with its cause
            raise told from None
        result, self._result = self._result, None
        assert result is not None  # the call would have raised
        return result

    def execute_many(self, sql: str, rows: Iterable[Iterable[Any]]) -> list[Result | Error]:
        """Runs one statement for each row of parameters, until one fails: its error is the last of the list."""
        results: list[Result | Error] = []
        for row in rows:
            try:
                results.append(self.execute(sql, row))
            except Error as error:
                return [*results, error]
        return results

    def procedures(self) -> list[ProcedureInfo]:
        return [info for info in self._executor.registry.infos() if info.name != _EXECUTE]

    def check(self) -> None:
        """Raises Corruption unless every invariant of the storage holds."""
        self._store.check()

    def close(self) -> None:
        self._closed = True

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _change_schema(self, text: str) -> str:
        """The kind of the statement, which has changed the schema. Raises SchemaError, DuplicateKey."""
        if self._closed:
            raise Unavailable("the engine is closed")
        schema, kind = parse_change(text, self._store.schema)
        if schema is not self._store.schema:
            registry = self._registry(schema)
            made_at_once(self._store, schema)
            self._store.bury()
            self._executor.take_schema(registry)
            self.statements = _statements(schema)
            self._executor.plan_with(self.statements)
        return kind

    def _registry(self, schema: Schema) -> Registry:
        """The procedures, checked against this schema, and the engine's own. Raises SchemaError."""
        given, own = self._procedures, self._own_procedures()
        if isinstance(given, str | Path):
            registry = load_path(given, schema)
            own_too = from_functions(own, schema=schema).procedures.values()
            procedures = [*registry.procedures.values(), *own_too]
            root = os.path.dirname(registry.path)
            return Registry(procedures, registry.catalog_version, registry.path, registry.source, root)
        return from_functions([*given, *own], schema=schema)

    def _own_procedures(self) -> list[Callable[..., Any]]:
        def execute(tx: Any, sql: str, parameters: list[Any]) -> None:
            self._result = tx.execute(sql, parameters)

        execute.__name__ = _EXECUTE
        return [procedure(everywhere=True)(execute)]

    def _encoded(self, name: str, arguments: tuple[Any, ...]) -> bytes:
        if self._closed:
            raise Unavailable("the engine is closed")
        try:
            return _encode(arguments)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            procedure = self._executor.registry.procedures.get(name)
            if procedure is not None:
                procedure.check_python(arguments)
            raise BadArguments(f"{name}(): {error}") from None

    def _info(self, name: str) -> ProcedureInfo:
        procedure = self._executor.registry.procedures.get(name) or _BUILTINS.get(name)
        if procedure is None:
            raise no_such(name, self._executor.registry.procedures)
        return procedure.info

    def _outcome(self) -> Any:
        """What the call that has just run comes to; its changes are kept."""
        try:
            self._executor.seal()
        except ReadOnly:
            self._executor.undo_batch()
            raise
        self._executor.finished()
        answers = self._executor.replies()[b""]
        if answers.errors:
            described = answers.errors[0]
            error = from_wire(described.code, described.message, described.type_name, described.traceback_text)
            cause, self._cause = self._cause, None
            if cause is not None and not isinstance(cause, Exception | SystemExit):
                # Ctrl-C, pytest.fail: meant for the test, not for the procedure's caller. (sys.exit in a procedure ends
                # the call, as in a partition, and not the whole run of the tests.)
                raise cause
            raise error from cause
        return _decode(bytes(answers.groups[0].results))[0]

    def _remember(self, error: BaseException) -> None:
        self._cause = error


def _statements(schema: Schema) -> Statements:
    catalogue = Catalogue(schema)
    return Statements(schema, lambda text: plan(text, catalogue))


def _functions(procedures: ModuleType | Iterable[Callable[..., Any]]) -> list[Callable[..., Any]]:
    if isinstance(procedures, ModuleType):
        functions = procedures_of(procedures)
        if not functions:
            raise SchemaError(f"module {procedures.__name__} declares no procedure; decorate one with @procedure")
        return functions
    if not isinstance(procedures, Iterable):
        raise TypeError(f"procedures: the path of a file, a module, or a list of functions, not {procedures!r}")
    return list(procedures)


def _parsed(schema: str | Path) -> Schema:
    """Raises SchemaError, with the file's name if it is one."""
    if not isinstance(schema, Path) and (";" in schema or "\n" in schema or Path(schema).suffix != ".sql"):
        return parse_schema(schema)
    try:
        return parse_schema(Path(schema).read_text(encoding="utf-8"))
    except SchemaError as error:
        raise SchemaError(f"{schema}: {error}") from None
