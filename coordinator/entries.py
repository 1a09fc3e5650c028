"""Values in the unique indexes of one table, as procedures in the coordinator find them taken or free.

An *entry* is a value of a unique index (of its columns together): some row has it, or none. A body that gives a row a
value which that row had not must know its entry, as it must know the row: an entry that is not in the cache is missed,
taken to be free while the run goes on, and borrowed. So what the body is told rests on what is held until the batch is
over, like all that it reads.

    held      value → key of the row that had it before the batch; None: no row had it
    claims    value → keys of the rows that were let have it in this batch

A row that once had a value may have lost it since, by the batch or by an undo. So both only name those who may have it,
and their rows tell.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any, NamedTuple

from voltpy.errors import DuplicateKey
from voltpy.row import encode
from voltpy.schema import Index, Table

_UNKNOWN: Any = object()
_NAN = float("nan")


class EntryWish(NamedTuple):
    """An entry of the unique index with this name that a call needs; `values` are encoded, as one array."""

    partition: int
    table: int
    name: str
    values: bytes


class UniqueIndex:
    """`rows`: what the cache knows of the table, by key. `home`: (key, row) → partition. `miss` notes a wish."""

    __slots__ = ("_columns", "_floats", "_home", "_miss", "_rows", "_table", "_values_of", "claims", "held", "name")

    def __init__(
        self,
        index: Index,
        table: Table,
        number: int,
        rows: dict[Any, Any],
        home: Callable[[Any, Any], int],
        miss: Callable[[EntryWish], None],
    ) -> None:
        self.name = index.name
        self.held: dict[bytes, Any] = {}
        self.claims: dict[bytes, list[Any]] = {}
        self._columns = index.columns
        self._table = table.name, number
        self._values_of = attrgetter(*index.columns)
        self._floats = any(table.column(name).type == "FLOAT" for name in index.columns)
        self._rows = rows
        self._home = home
        self._miss = miss

    def check(self, key: Any, row: Any, old: Any) -> None:
        """The row comes in place of `old`, or of none. Raises DuplicateKey when another one has its values."""
        values = self.values_of(row)
        if values is None or (old is not None and self.values_of(old) == values):
            return
        holder = self.held.get(values, _UNKNOWN)
        if holder is _UNKNOWN:
            self._miss(EntryWish(self._home(key, row), self._table[1], self.name, values))
        elif holder is not None and holder != key and self._has(self._rows.get(holder, _UNKNOWN), values):
            raise self._duplicate(row)
        claims = self.claims.get(values)
        if claims is None:
            self.claims[values] = [key]
            return
        for other in claims:
            if other != key and self._has(self._rows.get(other), values):
                raise self._duplicate(row)
        if key not in claims:
            claims.append(key)

    def values_of(self, row: Any) -> bytes | None:
        """Encoded, equal where the values are; None where one of them is NULL: such rows are equal to no other."""
        values = self._values_of(row)
        if len(self._columns) == 1:
            values = (values,)
        if None in values:
            return None
        if self._floats:
            values = tuple(_canonical(value) if type(value) is float else value for value in values)
        return encode(values)

    def forget(self) -> None:
        """Nothing is borrowed any more."""
        self.held.clear()
        self.claims.clear()

    def _has(self, row: Any, values: bytes) -> bool:
        """Whether this row has them. One that was not changed by the batch need not be in the cache."""
        return row is _UNKNOWN or (row is not None and self.values_of(row) == values)

    def _duplicate(self, row: Any) -> DuplicateKey:
        columns = ", ".join(self._columns)
        return DuplicateKey(
            f"table {self._table[0]}: a row with {columns} = {self._values_of(row)!r:.100} exists, and index "
            f"{self.name} is unique"
        )


def _canonical(value: float) -> float:
    """Indexes take -0.0 for 0.0, and every NaN for the same."""
    return value + 0.0 if value == value else _NAN
