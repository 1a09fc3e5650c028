"""What the runner talks to: an engine in this process, whose schema grows by the scripts' own CREATE statements.

An engine's schema is fixed, so CREATE and DROP make a new engine and copy the rows.
"""

from __future__ import annotations

from typing import Any

from tests.sqllogictest.definitions import CREATE_INDEX, CREATE_TABLE, DROP, index_columns
from voltpy.errors import Error, SchemaError
from voltpy.schema import describe
from voltpy.sql.ddl import parse_schema
from voltpy.testing import Engine

_BATCH = 500


class Database:
    """`execute` takes any statement of a script, DDL too."""

    def __init__(self) -> None:
        self._tables: dict[str, str] = {}  # name → CREATE TABLE
        self._indexes: dict[str, tuple[str, str]] = {}  # name → (table, CREATE INDEX)
        self._engine: Engine | None = None

    def execute(self, sql: str) -> list[tuple[Any, ...]]:
        """The rows. Raises voltpy's errors."""
        sql = sql.strip().rstrip(";")
        table, index, drop = CREATE_TABLE.match(sql), CREATE_INDEX.match(sql), DROP.match(sql)
        if table is not None:
            self._change(lambda: self._tables.__setitem__(table[1].lower(), sql))
            return []
        if index is not None:
            text = f"CREATE INDEX {index[1]} ON {index[2]} USING BTREE ({index_columns(index[3])})"
            self._change(lambda: self._indexes.__setitem__(index[1].lower(), (index[2].lower(), text)))
            return []
        if drop is not None:
            self._drop(drop[1].upper(), drop[2].lower())
            return []
        if self._engine is None:
            self._engine = Engine("CREATE TABLE nothing_yet (a INT);")
        return self._engine.execute(sql).rows

    def _drop(self, kind: str, name: str) -> None:
        if name not in (self._tables if kind == "TABLE" else self._indexes):
            raise SchemaError(f"there is no {kind.lower()} {name}")
        if kind == "INDEX":
            self._change(lambda: self._indexes.pop(name))
            return
        for index, (table, _) in list(self._indexes.items()):
            if table == name:
                del self._indexes[index]
        self._change(lambda: self._tables.pop(name))

    def _change(self, change: object) -> None:
        before = dict(self._tables), dict(self._indexes)
        change()  # type: ignore[operator]
        texts = [*self._tables.values(), *(text for _, text in self._indexes.values())]
        try:
            engine = Engine(describe(parse_schema(";\n".join(texts)))) if texts else None
        except Error:
            self._tables, self._indexes = before
            raise
        if self._engine is not None and engine is not None:
            for name in self._tables:
                if name in before[0]:
                    _copy(self._engine, engine, name)
        self._engine = engine


def _copy(old: Engine, new: Engine, name: str) -> None:
    rows = old.execute(f"SELECT * FROM {name}").rows
    for start in range(0, len(rows), _BATCH):
        for row in rows[start : start + _BATCH]:
            new.execute(f"INSERT INTO {name} VALUES ({', '.join('?' * len(row))})", row)
