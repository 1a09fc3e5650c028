"""A statement over several partitions, without a cluster: engines that share a schema and divide the rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from voltpy import procedure
from voltpy.schema import Schema
from voltpy.sql.catalogue import Catalogue
from voltpy.sql.plan import Plan, compiled, streams
from voltpy.sql.planner import plan
from voltpy.sql.row_sets import ordered
from voltpy.testing import Engine

MEMORY_BYTES = 8 << 20


class Parts:
    """`engines[i]` has the rows whose partition column `place` puts there, and all rows of the other tables."""

    def __init__(self, schema: Schema, parts: int, place: Callable[[Any], int] = hash) -> None:
        self.schema = schema
        self.place = place
        self._run: Callable[[Any], Any] = lambda tx: None
        self._result: Any = None

        def run(tx: Any) -> None:
            self._result = self._run(tx)

        procedures = [procedure(everywhere=True)(run)]
        self.engines = [Engine(schema, procedures, memory_bytes=MEMORY_BYTES) for _ in range(parts)]
        self.whole = Engine(schema, procedures, memory_bytes=MEMORY_BYTES)
        self.catalogue = Catalogue(schema)

    def insert(self, table: str, rows: Sequence[Sequence[Any]]) -> None:
        position = self.schema.table(table).partition_position
        self._insert(self.whole, table, rows)
        for number, engine in enumerate(self.engines):
            here = [r for r in rows if position is None or self.place(r[position]) % len(self.engines) == number]
            self._insert(engine, table, here)

    def _insert(self, engine: Engine, table: str, rows: Sequence[Sequence[Any]]) -> None:
        if rows:
            values = ", ".join(f"({', '.join('?' * len(row))})" for row in rows)
            engine.execute(f"INSERT INTO {table} VALUES {values}", [value for row in rows for value in row])

    def on(self, engine: Engine, run: Callable[[Any], Any]) -> Any:
        """What `run` returns for the engine's tx, as it is after travelling."""
        self._run = run
        engine.call_everywhere("run")
        return msgspec.msgpack.decode(msgspec.msgpack.encode(self._result))

    def plan(self, sql: str) -> Plan:
        made = plan(sql, self.catalogue)
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(made), type=Plan) is not None
        return made

    def select(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """The statement's rows, from fragments and their merge."""
        made = self.plan(sql)
        if made.fragment is None:
            keys = made.routing.values(parameters)
            assert made.routing.kind == "anywhere" or len(keys) < 2
            home = self.place(keys[0]) % len(self.engines) if keys else 0
            return self.engines[home].execute(sql, parameters).rows
        assert made.merge is not None
        fragment, merge = compiled(made.fragment, self.schema), compiled(made.merge, self.schema)
        results = [
            self.on(engine, lambda tx, first=number == 0: fragment(tx, parameters, first))
            for number, engine in enumerate(self.engines)
        ]
        rows = merge(None, parameters, streams(results))
        return [tuple(row) for row in rows]


def in_some_order(rows: Sequence[Sequence[Any]]) -> list[tuple[Any, ...]]:
    """Rows that can be compared as sets with repetitions; floats to nine digits."""
    plain = [tuple(_plain(value) for value in row) for row in rows]
    for position in range(len(plain[0]) if plain else 0):
        plain = ordered(plain, ((position, False, False, True),))
    return plain


def _plain(value: Any) -> Any:
    return float(f"{value:.9g}") if type(value) in (int, float, bool) else value
