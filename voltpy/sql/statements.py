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

_GENERATED = ("tx.now", "tx.random", "tx.uuid")


class Prepared:
    """One statement, ready to run. `uses_generated`: its fragment asks for values that belong to the call.

    `needs_all`: no keys tell where its rows are, so it needs all partitions. `across`: it runs on rows that are
    borrowed from several partitions.
    """

    __slots__ = (
        "_fragment", "_merge", "_schema", "columns", "needs_all", "parameters", "plan", "run", "types",
        "uses_generated", "writes",
    )  # fmt: skip

    def __init__(self, plan: Plan, schema: Schema, across: bool = False) -> None:
        self.plan = plan
        self.columns = list(plan.columns)
        self.types = [str(field.type) for field in plan.fields]
        self.parameters = len(plan.parameters)
        self.needs_all = plan.routing.kind == "everywhere"
        self.writes = plan.kind not in ("select", "explain")
        self.uses_generated = plan.fragment is not None and any(name in plan.fragment for name in _GENERATED)
        source = plan.across if across and plan.across is not None else plan.source
        self.run: Run = compiled(source, schema)
        self._schema = schema
        self._fragment: Run | None = None
        self._merge: Run | None = None

    @property
    def fragment(self) -> Run:
        """What each partition runs for it. Raises SqlError where it has none."""
        if self._fragment is None:
            self._fragment = self._compiled(self.plan.fragment)
        return self._fragment

    @property
    def merge(self) -> Run:
        """What makes its answer of theirs."""
        if self._merge is None:
            self._merge = self._compiled(self.plan.merge)
        return self._merge

    def check(self, parameters: Sequence[Any]) -> None:
        """Raises SqlError unless they are as many as the statement has."""
        try:
            given = len(parameters)
        except TypeError:
            name = type(parameters).__name__
            raise SqlError(f"parameters are a tuple or a list of values, not {name}") from None
        if given != self.parameters and (given or not self.plan.parameters_optional):
            raise SqlError(f"the statement has {self.parameters} parameters, and {given} were given")

    def _compiled(self, source: str | None) -> Run:
        if source is None:
            raise SqlError("the statement does not run in pieces")
        return compiled(source, self._schema)


class Undo(Protocol):
    """Where what a statement changed can be taken back: a partition's Store, the coordinator's Tables."""

    @property
    def undo_log(self) -> list[Any]: ...

    def undo_to(self, mark: int) -> None: ...


class Statements:
    """The statements of one process: `prepared` by text."""

    across = False

    def __init__(self, schema: Schema, plan_of: Callable[[str], Plan]) -> None:
        self.schema = schema
        self.plan_of = plan_of
        self.undo: Undo | None = None
        self.prepared: dict[str, Prepared] = {}  # always the same object
        self._bytes = 0

    def on(self, tx: Any) -> Callable[..., Result]:
        """`tx.execute` of this `tx`."""
        return partial(self.execute, tx)

    def execute(self, tx: Any, text: str, parameters: Sequence[Any] = (), /) -> Result:
        """Runs the statement on `tx`. Raises SqlError, DataError and what the tables raise."""
        prepared = self.prepared.get(text)
        if prepared is None:
            prepared = self.prepare(text)
        rows = self.run(prepared, tx, parameters)
        if prepared.writes:
            return Result(prepared.columns, rows[1], rows[0], prepared.types, prepared.plan.kind)
        return Result(prepared.columns, rows, len(rows), prepared.types, prepared.plan.kind)

    def answer(self, tx: Any, text: str, parameters: Sequence[Any]) -> Any:
        """As `execute`, without what is the same for all runs: rows, or (rows changed, rows of RETURNING)."""
        prepared = self.prepared.get(text)
        if prepared is None:
            prepared = self.prepare(text)
        return self.run(prepared, tx, parameters)

    def run(self, prepared: Prepared, tx: Any, parameters: Sequence[Any]) -> Any:
        """What `answer` answers."""
        try:
            fits = len(parameters) == prepared.parameters
        except TypeError:  # `check` says what it is
            fits = False
        if not fits:
            prepared.check(parameters)
        if prepared.writes:
            return self._write(prepared, tx, parameters)
        try:
            return prepared.run(tx, parameters)
        except TypeError as error:  # parameters of which only the run could know that they don't go together
            raise DataError(f"values of different types meet: {error}") from error

    def _write(self, prepared: Prepared, tx: Any, parameters: Sequence[Any]) -> Any:
        """A statement that fails changes nothing, also where the procedure goes on after its error."""
        undo = self.undo
        mark = 0 if undo is None else len(undo.undo_log)
        try:
            return prepared.run(tx, parameters)
        except Exception as error:  # NotHere is none: what it leaves in the log ends the whole call
            if undo is not None:
                undo.undo_to(mark)
            if isinstance(error, TypeError):
                raise DataError(f"values of different types meet: {error}") from error
            raise

    def prepare(self, text: str) -> Prepared:
        """Raises SqlError, and what `plan_of` raises."""
        if type(text) is not str:
            raise SqlError(f"a statement is a str, not {type(text).__name__}")
        prepared = self.prepared.get(text)
        if prepared is None:
            prepared = Prepared(self.plan_of(text), self.schema, self.across)
            self._bytes += len(text) + len(prepared.plan.source)
            if len(self.prepared) >= MAX_CACHED or self._bytes > MAX_CACHED_BYTES:
                self.forget()
            self.prepared[text] = prepared
        return prepared

    def forget(self) -> None:
        """Drops all plans: the schema has changed, or there are too many."""
        self.prepared.clear()
        self._bytes = 0
