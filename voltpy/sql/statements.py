"""Statements that have been planned: text → plan → program, each made once, and run on a transaction.

Plans come from `plan_of`, by text. Where the planner is in the same process that is `voltpy.sql.planner.plan`; a
partition has none, and asks for the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from voltpy.errors import DataError, SqlError
from voltpy.result import Result
from voltpy.schema import Schema
from voltpy.sql.plan import Plan, Run, compiled

MAX_CACHED = 4096
MAX_CACHED_BYTES = 64 << 20  # of texts and sources


class Prepared:
    """One statement, ready to run."""

    __slots__ = ("columns", "parameters", "plan", "run", "types", "writes")

    def __init__(self, plan: Plan, schema: Schema) -> None:
        self.plan = plan
        self.columns = plan.columns
        self.types = tuple(str(field.type) for field in plan.fields)
        self.parameters = len(plan.parameters)
        self.writes = plan.kind not in ("select", "explain")
        self.run: Run = compiled(plan.source, schema)


class Undo(Protocol):
    """Where what a statement changed can be taken back: partitions.store.Store."""

    undo_log: list[Any]

    def undo_to(self, mark: int) -> None: ...


class Statements:
    """The statements of one process, by text."""

    def __init__(self, schema: Schema, plan_of: Callable[[str], Plan]) -> None:
        self._schema = schema
        self.plan_of = plan_of
        self.undo: Undo | None = None
        self._prepared: dict[str, Prepared] = {}
        self._bytes = 0

    def on(self, tx: Any) -> Callable[..., Result]:
        """`tx.execute` of this `tx`."""
        return partial(self.execute, tx)

    def execute(self, tx: Any, text: str, parameters: Sequence[Any] = (), /) -> Result:
        """Runs the statement on `tx`. Raises SqlError, DataError and what the tables raise."""
        prepared = self._prepared.get(text)
        if prepared is None:
            prepared = self.prepare(text)
        if len(parameters) != prepared.parameters:
            raise SqlError(f"the statement has {prepared.parameters} parameters, and {len(parameters)} were given")
        if prepared.writes:
            return self._write(prepared, tx, parameters)
        try:
            rows = prepared.run(tx, parameters)
        except TypeError as error:  # parameters of which only the run could know that they don't go together
            raise DataError(f"values of different types meet: {error}") from error
        return Result(prepared.columns, rows, len(rows), prepared.types, prepared.plan.kind)

    def _write(self, prepared: Prepared, tx: Any, parameters: Sequence[Any]) -> Result:
        """A statement that fails changes nothing, also where the procedure goes on after its error."""
        undo = self.undo
        mark = 0 if undo is None else len(undo.undo_log)
        try:
            count, rows = prepared.run(tx, parameters)
        except Exception as error:  # NotHere is none: what it leaves in the log ends the whole call
            if undo is not None:
                undo.undo_to(mark)
            if isinstance(error, TypeError):
                raise DataError(f"values of different types meet: {error}") from error
            raise
        return Result(prepared.columns, rows, count, prepared.types, prepared.plan.kind)

    def prepare(self, text: str) -> Prepared:
        prepared = self._prepared.get(text)
        if prepared is None:
            if type(text) is not str:
                raise SqlError(f"a statement is a str, not {type(text).__name__}")
            prepared = Prepared(self.plan_of(text), self._schema)
            self._bytes += len(text) + len(prepared.plan.source)
            if len(self._prepared) >= MAX_CACHED or self._bytes > MAX_CACHED_BYTES:
                self.forget()
            self._prepared[text] = prepared
        return prepared

    def forget(self) -> None:
        """Drops all plans: the schema has changed, or there are too many."""
        self._prepared.clear()
        self._bytes = 0
