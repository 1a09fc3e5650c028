"""A view as procedures have it: they read it, and nobody but its table's writes changes it.

It counts as lent while its table has lent keys: what the view will say then is on its way. So reads wait, as those of
the table do that are not by key. Its key are the keys of its SELECT alone: of a view that several partitions have parts
of, what is read are this partition's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from partitions.table import Table
from voltpy.not_here import WHOLE_TABLE, Misses
from voltpy.transaction import ReadOnlyTable


class ViewReader(ReadOnlyTable):
    __slots__ = ("_base", "_has_null_keys", "_key_columns", "_misses", "_own", "_own_column", "_table")

    def __init__(self, table: Table, base: Table, misses: Misses, own_key: int) -> None:
        super().__init__(table, f"it is a view of {base.name}: write to that, and it follows")
        view = table.schema.view
        assert view is not None
        self._table = table
        self._base = base
        self._misses = misses
        self._own = (own_key,) if view.own_key else ()
        self._own_column = view.own_key
        self._key_columns = frozenset(table.schema.primary_key) - {view.own_key}
        self._has_null_keys = any(table.schema.column(name).nullable for name in table.schema.primary_key)
        self.get = self._get if self._own else self._plain_get()
        self.where, self.range = self._where, self._range
        self.scan, self.count = self._scan, self._count

    def _wait(self) -> None:
        if self._base.away:
            self._misses.raise_for((self._base.number, WHOLE_TABLE))

    def _plain_get(self) -> Callable[[Any], Any]:
        away, wait, read = self._base.away, self._wait, self._table.get  # locals: procedures call this most

        def get(key: Any, /) -> Any:
            """The group with this key (a tuple where it has several columns), or None."""
            if away:
                wait()
            return read(key)

        return get

    def _get(self, key: Any, /) -> Any:
        """The same, of this partition's parts of groups."""
        self._wait()
        return self._table.get((*self._own, *key) if type(key) is tuple else (*self._own, key))

    def _where(self, /, **equalities: Any) -> list[Any]:
        """The groups whose columns equal the values given."""
        self._wait()
        if self._own and self._key_columns <= equalities.keys():
            equalities = {self._own_column: self._own[0], **equalities}
        return self._table.where(**equalities)

    def _range(self, low: Any, high: Any) -> Iterator[Any]:
        """The groups with low <= key < high, in the order of their keys; those with NULL in them are in no range."""
        self._wait()
        if self._own:
            low, high = ((*self._own, *(key if type(key) is tuple else (key,))) for key in (low, high))
        if not self._has_null_keys:
            return self._table.range(low, high)
        return self._without_nulls(low, high)

    def _without_nulls(self, low: Any, high: Any) -> Iterator[Any]:
        table = self._table
        low, high = table.checked_key(low), table.checked_key(high)
        key_of = table.key_of
        for end in (low, high):
            if end is None or (type(end) is tuple and None in end):
                return
        found = []
        for row in table.scan():
            key = key_of(row)
            if key is not None and not (type(key) is tuple and None in key) and low <= key < high:
                found.append((key, row))
        yield from (row for _, row in sorted(found, key=lambda pair: pair[0]))

    def _scan(self) -> Iterator[Any]:
        """All groups of this partition, in no particular order."""
        self._wait()
        return self._table.scan()

    def _count(self) -> int:
        """The number of groups in this partition."""
        self._wait()
        return self._table.count()
