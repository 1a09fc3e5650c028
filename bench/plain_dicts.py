"""The same procedures on plain dicts: what Python alone can do, and so the yardstick for the engine.

No types are checked, nothing is undone, logged or flushed, and there is one partition. `Transaction(schema)` has the
surface of a procedure's `tx`; rows are immutable objects with attributes, as they are there.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from datetime import UTC, datetime
from operator import attrgetter
from random import Random
from typing import Any, NoReturn
from uuid import UUID

import msgspec

from voltpy import schema as catalog
from voltpy.errors import Aborted, DuplicateKey


class Table:
    """Rows in a dict, by primary key; a composite key is one tuple."""

    __slots__ = ("_key_of", "_name", "_row", "get", "rows")

    def __init__(self, table: catalog.Table) -> None:
        self._name = table.name
        columns = [(column.name, Any, column.default) for column in table.columns]
        self._row: Any = msgspec.defstruct(table.name, columns, frozen=True, gc=False)
        self._key_of: Any = attrgetter(*table.primary_key)
        self.rows: dict[Any, Any] = {}
        self.get = self.rows.get

    def insert(self, *values: Any, **columns: Any) -> Any:
        row = self._row(*values, **columns)
        key = self._key_of(row)
        if key in self.rows:
            raise DuplicateKey(f"table {self._name}: a row with key {key!r} exists")
        self.rows[key] = row
        return row

    def update(self, key: Any, /, **changes: Any) -> Any:
        row = self.rows[key] = msgspec.structs.replace(self.rows[key], **changes)
        return row

    def upsert(self, *values: Any, **columns: Any) -> Any:
        row = self._row(*values, **columns)
        self.rows[self._key_of(row)] = row
        return row

    def delete(self, key: Any) -> bool:
        return self.rows.pop(key, None) is not None

    def where(self, **equalities: Any) -> list[Any]:
        columns = attrgetter(*equalities)
        values = tuple(equalities.values()) if len(equalities) > 1 else next(iter(equalities.values()))
        return [row for row in self.rows.values() if columns(row) == values]

    def range(self, low: Any, high: Any) -> Iterator[Any]:
        return map(self.rows.__getitem__, sorted(key for key in self.rows if low <= key < high))

    def scan(self) -> Iterator[Any]:
        return iter(self.rows.values())

    def count(self) -> int:
        return len(self.rows)


class HiddenKeyTable(Table):
    """A table without primary key: rows are numbered in their last column."""

    __slots__ = ("_next",)

    def __init__(self, table: catalog.Table) -> None:
        super().__init__(table)
        self._next = itertools.count(1).__next__

    def insert(self, *values: Any, **columns: Any) -> Any:
        key = self._next()
        row = self.rows[key] = self._row(*values, **columns, rowid=key)
        return row

    upsert = insert


class Transaction:
    """`tx` over plain dicts; one serves any number of calls, one after another."""

    def __init__(self, schema: catalog.Schema, seed: int = 0) -> None:
        for table in schema.tables:
            setattr(self, table.name, HiddenKeyTable(table) if table.hidden_key else Table(table))
        self.random = Random(seed)
        self.unique_id = itertools.count(1).__next__

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"tx has no table or method {name!r}")

    def abort(self, reason: str = "aborted") -> NoReturn:
        raise Aborted(reason)

    def now(self) -> datetime:
        return datetime.now(UTC)

    def uuid(self) -> UUID:
        return UUID(int=self.random.getrandbits(128), version=4)
