"""What statements do with sets of rows: subqueries, ORDER BY, LIMIT, DISTINCT and the set operations.

For generated statements.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from heapq import nlargest, nsmallest
from itertools import chain
from operator import itemgetter
from types import SimpleNamespace
from typing import Any

from voltpy.errors import DataError
from voltpy.sql.values import type_of

Row = tuple[Any, ...]


def once(make: Callable[[], Any]) -> Callable[[], Any]:
    """An uncorrelated subquery: run when its result is first asked for, and not again."""
    found: list[Any] = []

    def result() -> Any:
        if not found:
            found.append(make())
        return found[0]

    return result


def single(rows: list[Row]) -> Any:
    """A scalar subquery's value."""
    if not rows:
        return None
    if len(rows) > 1:
        raise DataError("more than one row returned by a subquery used as an expression")
    return rows[0][0]


def value_set(rows: Iterable[Row]) -> tuple[set[Any], bool]:
    """The values of an IN's subquery, and whether NULL is among them."""
    values = {row[0] for row in rows}
    has_null = None in values
    values.discard(None)
    return values, has_null


def null_row(names: Sequence[str]) -> Any:
    """What a LEFT JOIN puts in the place of a row of a table."""
    return SimpleNamespace(**dict.fromkeys(names))


Orders = tuple[tuple[int, bool, bool, bool], ...]  # position, descending, nulls first, nullable


def ordered(rows: list[Row], orders: Orders, limit: int | None = None) -> list[Row]:
    """The rows in order; only the first `limit` of them, if given."""
    if len(rows) < 2:
        return rows
    directions = {descending for _, descending, _, _ in orders}
    if len(directions) == 1:
        descending = directions.pop()
        key = _sort_key(orders, descending)
        if limit is not None and limit < len(rows) // 4:
            return (nlargest if descending else nsmallest)(limit, rows, key)
        rows.sort(key=key, reverse=descending)
        return rows
    for one in reversed(orders):
        rows.sort(key=_sort_key((one,), one[1]), reverse=one[1])
    return rows


def _sort_key(orders: Orders, descending: bool) -> Callable[[Row], Any]:
    if not any(nullable for _, _, _, nullable in orders):
        return itemgetter(*(position for position, _, _, _ in orders))
    # (is it behind the values?, value): None is only ever compared with itself, and found the same.
    wanted = [(position, nulls_first != descending) for position, _, nulls_first, _ in orders]
    if len(wanted) == 1:
        position, first = wanted[0]
        if first:
            return lambda row: (row[position] is not None, row[position])
        return lambda row: (row[position] is None, row[position])
    return lambda row: [((row[at] is not None) if first else (row[at] is None), row[at]) for at, first in wanted]


def row_limit(value: Any, what: str) -> int | None:
    """LIMIT's or OFFSET's number; None: there is none."""
    if value is None:
        return None
    if type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is not int:
        raise DataError(f"{what} wants a whole number, not {type_of(value)}")
    if value < 0:
        raise DataError(f"{what} must not be negative")
    return value


def sliced(rows: list[Row], limit: int | None, offset: int | None) -> list[Row]:
    start = offset or 0
    return rows[start:] if limit is None else rows[start : start + limit]


def distinct(rows: Iterable[Row]) -> list[Row]:
    return list(dict.fromkeys(rows))


def union(left_rows: list[Row], right_rows: list[Row]) -> list[Row]:
    return list(dict.fromkeys(chain(left_rows, right_rows)))


def except_rows(left_rows: list[Row], right_rows: list[Row]) -> list[Row]:
    gone = set(right_rows)
    return [row for row in dict.fromkeys(left_rows) if row not in gone]


def intersect_rows(left_rows: list[Row], right_rows: list[Row]) -> list[Row]:
    kept = set(right_rows)
    return [row for row in dict.fromkeys(left_rows) if row in kept]


def _counted(rows: list[Row]) -> dict[Row, int]:
    counts: dict[Row, int] = {}
    for row in rows:
        counts[row] = counts.get(row, 0) + 1
    return counts


def except_all(left_rows: list[Row], right_rows: list[Row]) -> list[Row]:
    gone = _counted(right_rows)
    kept = []
    for row in left_rows:
        if gone.get(row, 0):
            gone[row] -= 1
        else:
            kept.append(row)
    return kept


def intersect_all(left_rows: list[Row], right_rows: list[Row]) -> list[Row]:
    left_over = _counted(right_rows)
    kept = []
    for row in left_rows:
        if left_over.get(row, 0):
            left_over[row] -= 1
            kept.append(row)
    return kept
