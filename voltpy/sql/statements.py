"""Statements that have been planned: text → plan → program, each made once, and run on a transaction.

Plans come from `plan_of`, by text. Where the planner is in the same process that is `voltpy.sql.planner.plan`; a
partition has none, and asks for the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

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
        self.types = [str(field.type) for field in plan.fields]
        self.parameters = len(plan.parameters)
        self.writes = plan.kind not in ("select", "explain")
        self.run: Run = compiled(plan.source, schema)

    def execute(self, tx: Any, parameters: Sequence[Any]) -> Result:
        if len(parameters) != self.parameters:
            raise SqlError(f"the statement has {self.parameters} parameters, and {len(parameters)} were given")
        try:
            if self.writes:
                count, rows = self.run(tx, parameters)
                return Result(self.columns, rows, count, self.types, self.plan.kind)
            rows = self.run(tx, parameters)
        except TypeError as error:
            raise DataError(f"values of different types meet: {error}") from error
        return Result(self.columns, rows, len(rows), self.types, self.plan.kind)


class Statements:
    """The statements of one process, by text."""

    def __init__(self, schema: Schema, plan_of: Callable[[str], Plan]) -> None:
        self._schema = schema
        self.plan_of = plan_of
        self._prepared: dict[str, Prepared] = {}
        self._bytes = 0

    def execute(self, tx: Any, text: str, parameters: Sequence[Any] = ()) -> Result:
        """Runs the statement on `tx`. Raises SqlError, DataError and what the tables raise."""
        prepared = self._prepared.get(text)
        if prepared is None:
            prepared = self.prepare(text)
        return prepared.execute(tx, parameters)

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
