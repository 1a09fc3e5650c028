"""The same procedures on plain Python dicts in this process: no types, no undo, no flush. The physical limit."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any, Self

from bench import drive
from bench.peers.voltpy import schema_path
from bench.plain_dicts import Transaction
from bench.workload import Call, CallStream, Fsync, Line, Outcome
from voltpy.sql.ddl import parse_schema

LOOP = "a loop, in process"
CALLS_A_CHUNK = 1024


class Dicts:
    name = "dicts"
    settings = "plain Python dicts in the client's process; not durable"

    def __init__(self, directory: Path, fsync: Fsync) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def cpu_s(self) -> dict[str, float]:
        return {}

    def ways(self, line: Line) -> tuple[str, ...]:
        return () if line.dicts is None else (LOOP,)

    def load(self, line: Line) -> None:
        assert line.dicts is not None
        self._procedures = importlib.import_module(f"procedures.{line.dicts.procedures}")
        self._tx = Transaction(parse_schema(schema_path(line.dicts.procedures).read_text()))
        line.dicts.load(self._tx)

    def state(self, line: Line) -> Any:
        assert line.dicts is not None
        return line.dicts.state(self._tx)

    @contextmanager
    def session(self, line: Line, way: str, in_flight: int, tasks: int) -> Iterator[drive.Drive]:
        assert line.dicts is not None
        runs = line.dicts.runs
        bodies = {name: getattr(self._procedures, name) for name in line.procedures}

        def call_one(call: Call) -> Any:
            return bodies[call[0]](self._tx, *call[1])

        if line.drive == "lone":
            yield lambda stream, seconds: drive.lone(stream, seconds, call_one)
        else:
            yield lambda stream, seconds: _loop(bodies, self._tx, stream, seconds, runs)


def _loop(
    bodies: dict[str, Any],
    tx: Transaction,
    stream: CallStream,
    seconds: float,
    runs: Callable[[Call], bool] | None = None,
) -> Outcome:
    outcome = Outcome([], [], [])
    deadline = perf_counter() + seconds
    while perf_counter() < deadline:
        calls = stream.take(CALLS_A_CHUNK)
        if not calls:
            break
        if runs is not None:
            calls = list(filter(runs, calls))
        outcome.results += [bodies[name](tx, *args) for name, args in calls]
        outcome.calls += calls
    return outcome
