"""What generated statements call, by name. Runs in partitions, which have no SQL parser: nothing here imports one.

Functions take values that are not NULL, unless they say otherwise; the generated code has looked. None stands for
NULL, and for "unknown" among truth values.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any, NoReturn

from voltpy.errors import ConstraintViolation, DataError, DuplicateKey, WrongPartition
from voltpy.schema import INT_MAX, INT_MIN
from voltpy.sql import arithmetic, row_sets, text_functions, time_functions
from voltpy.sql import values as conversions
from voltpy.sql.catalog_tables import catalog_merged, catalog_rows
from voltpy.sql.estimates import Estimates, estimates_merged
from voltpy.sql.observed import Observed
from voltpy.sql.search import UNKNOWN, Ends, Search, ints_within
from voltpy.sql.values import (
    beyond_int,
    int_overflow,
    text_to_timestamp,
    type_of,
)

NONE: tuple[Any, ...] = ()


# -- Parameters


def number_parameter(value: Any, position: int) -> Any:
    """`position` counts from 1."""
    kind = type(value)
    if kind is int:
        if not INT_MIN <= value <= INT_MAX:
            raise DataError(f"parameter {position}: {beyond_int(value)}")
    elif value is not None and kind is not float:
        raise DataError(f"parameter {position}: a number is wanted here, not {type_of(value)} {value!r:.60}")
    return value


def int_parameter(value: Any, position: int) -> Any:
    if type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is float:
        raise DataError(f"parameter {position}: a whole number is wanted here, not {value!r}")
    return number_parameter(value, position)


def string_parameter(value: Any, position: int) -> Any:
    if value is not None and type(value) is not str:
        raise DataError(f"parameter {position}: a STRING is wanted here, not {type_of(value)} {value!r:.60}")
    return value


def bool_parameter(value: Any, position: int) -> Any:
    if value is not None and type(value) is not bool:
        raise DataError(f"parameter {position}: a BOOL is wanted here, not {type_of(value)} {value!r:.60}")
    return value


def timestamp_parameter(value: Any, position: int) -> Any:
    if type(value) is str:
        return text_to_timestamp(value)
    if value is not None and type(value) is not datetime:
        raise DataError(f"parameter {position}: a TIMESTAMP is wanted here, not {type_of(value)} {value!r:.60}")
    if value is not None and value.utcoffset() is None:
        raise DataError(f"parameter {position}: {value!r} has no time zone")
    return value


def any_parameter(value: Any, position: int) -> Any:
    kind = type(value)
    if kind is int:
        return number_parameter(value, position)
    if kind is datetime:
        return timestamp_parameter(value, position)
    if value is not None and kind not in (str, float, bool):
        raise DataError(f"parameter {position}: {kind.__name__} is no type of a column")
    return value


# -- Comparisons of parameters with each other


def _comparable(left: Any, right: Any) -> None:
    kinds = {int: float}
    if kinds.get(type(left), type(left)) is not kinds.get(type(right), type(right)):
        raise DataError(f"{type_of(left)} and {type_of(right)} can't be compared")


def equal(left: Any, right: Any) -> bool:
    _comparable(left, right)
    return bool(left == right)


def less(left: Any, right: Any) -> bool:
    _comparable(left, right)
    return bool(left < right)


def less_or_equal(left: Any, right: Any) -> bool:
    _comparable(left, right)
    return bool(left <= right)


def checked(value: Any, kind: str) -> Any:
    """A value whose type only the run knows, where one of this type must stand."""
    own = type_of(value)
    if own != kind and not (kind == "NUMBER" and own in ("INT", "FLOAT")):
        raise DataError(f"a value of type {kind} is wanted here, not {own} {value!r:.60}")
    return value


def greatest(*values: Any) -> Any:
    """NULLs are left out."""
    return max((value for value in values if value is not None), default=None)


def least(*values: Any) -> Any:
    return min((value for value in values if value is not None), default=None)


# -- Truth values, which may be None


def in_list(value: Any, items: Iterable[Any]) -> bool | None:
    """`items` may hold None; `value` is not None."""
    unknown = False
    for item in items:
        if item is None:
            unknown = True
        elif item == value:
            return True
    return None if unknown else False


def in_rows(value: Any, rows: tuple[set[Any], bool]) -> bool | None:
    """IN (query): `rows` is the set of its values, and whether NULL was among them."""
    values, has_null = rows
    if value is None:
        return None if values or has_null else False
    if value in values:
        return True
    return None if has_null else False


# -- Aggregates


def number_sum(total: Any) -> Any:
    """A SUM, or None of nothing: one of INTs has 64 bits, too."""
    return total if type(total) is not int or INT_MIN <= total <= INT_MAX else int_overflow()


def average(total: Any, count: int) -> float | None:
    return total / count if count else None


def sum_of(values: Iterable[Any]) -> Any:
    """SUM of an aggregate's distinct values; None of none."""
    total = None
    for value in values:
        total = value if total is None else total + value
    return total


def wide(total: Any) -> Any:
    """A partial sum as it travels: MessagePack ends at 64 bits, a sum of partitions' sums need not."""
    return total if type(total) is not int or INT_MIN <= total <= INT_MAX else str(total)


def narrow(total: Any) -> Any:
    return int(total) if type(total) is str else total


# -- Reading tables


def key_of_int(value: Any) -> int | None:
    """The INT that equals a number, if there is one: `id = 2.0` finds 2."""
    if type(value) is float and value.is_integer() and INT_MIN <= value <= INT_MAX:
        return int(value)
    return value if type(value) is int else None


def get_row(table: Any, key: Any) -> Any:
    """The row with this key; None when it lives elsewhere."""
    try:
        return table.get(key)
    except WrongPartition:
        return None


def key_range(table: Any, lows: Ends, highs: Ends) -> Iterator[Any]:
    """The rows whose INT primary key is within all bounds, in order. A bound may be a float; None keeps all out."""
    low, high = ints_within(lows, highs)
    if low > high:
        return
    yield from table.range(low, min(high + 1, INT_MAX))
    if high == INT_MAX:
        last = get_row(table, INT_MAX)
        if last is not None:
            yield last


def keys_between(lows: Ends, highs: Ends) -> int:
    """How many INTs are within all bounds."""
    low, high = ints_within(lows, highs)
    return max(high - low + 1, 0)


def keys_of(values: Iterable[Any], whole: bool) -> Iterable[Any]:
    """The different keys among the values of an IN; `whole`: they are INTs."""
    if whole:
        values = map(key_of_int, values)
    keys = dict.fromkeys(values)
    keys.pop(None, None)
    return keys


# -- Writing tables


def left_out(table: str, column: str) -> NoReturn:
    raise ConstraintViolation(f"table {table}: column {column} is NOT NULL, has no default and was left out")


def not_null(value: Any, table: str, column: str) -> Any:
    if value is None:
        raise ConstraintViolation(f"table {table}: column {column} is NOT NULL")
    return value


def fresh_key(tx: Any, table: Any) -> int:
    """A new key for a row that names none: of those that nobody else gets, one whose rows live here."""
    verify = getattr(table, "verify", None)
    for _ in range(1 << 14):
        key: int = tx.unique_id()
        if verify is None or table.schema.partition_column is None:
            return key
        try:
            verify(key)
        except WrongPartition:
            continue
        return key
    raise ConstraintViolation(f"table {table.name}: no fresh key lives here")


def second_time(table: str, key: Any) -> NoReturn:
    raise DataError(f"table {table}: ON CONFLICT DO UPDATE can't change the row with key {key!r:.60} a second time")


def _public(module: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in module.items()
        if callable(value) and not name.startswith("_") and str(value.__module__).startswith("voltpy.sql.")
    }


# What a generated program finds under its names.
NAMES: dict[str, Any] = {
    **_public(vars(conversions)), **_public(vars(arithmetic)), **_public(vars(text_functions)),
    **_public(vars(time_functions)), **_public(vars(row_sets)), **_public(globals()),
    "Search": Search, "Observed": Observed, "catalog_rows": catalog_rows, "catalog_merged": catalog_merged,
    "Estimates": Estimates, "estimates_merged": estimates_merged, "UNKNOWN": UNKNOWN, "DuplicateKey": DuplicateKey,
    "NONE": NONE, "pi": math.pi,
}  # fmt: skip
