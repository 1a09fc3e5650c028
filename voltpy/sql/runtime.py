"""What generated statements call. Runs in partitions, which have no SQL parser, so nothing here imports one.

Functions take values that are not NULL, unless they say otherwise; the generated code has looked. None stands for
NULL, and for "unknown" among truth values.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from heapq import nlargest, nsmallest
from itertools import chain
from math import isinf, isnan
from operator import itemgetter
from types import SimpleNamespace
from typing import Any, NoReturn

from voltpy.errors import ConstraintViolation, DataError, DuplicateKey, WrongPartition
from voltpy.schema import INT_MAX, INT_MIN
from voltpy.sql import values as conversions
from voltpy.sql.catalog_tables import catalog_merged, catalog_rows
from voltpy.sql.estimates import Estimates, estimates_merged
from voltpy.sql.observed import Observed
from voltpy.sql.search import UNKNOWN, Ends, Search, ints_within
from voltpy.sql.values import (
    MAX_STRING,
    beyond_int,
    checked_int,
    int_overflow,
    text_to_timestamp,
    to_text,
    type_of,
)

Row = tuple[Any, ...]

NONE: tuple[Any, ...] = ()
_NUMERIC = (int, float)


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


# -- Arithmetic


def real(value: float, *operands: Any) -> float:
    """A result that is not finite, when an operand was not either. Raises DataError for an overflow."""
    if isinf(value) and not any(type(each) is float and isinf(each) for each in operands):
        raise DataError("value out of range: overflow of a FLOAT")
    return value


def number(value: Any, *operands: Any) -> Any:
    """The result of an operation on numbers of which only the run knows the types."""
    return checked_int(value) if type(value) is int else real(value, *operands)


def _numbers(left: Any, right: Any) -> None:
    for each in (left, right):
        if type(each) not in _NUMERIC:
            raise DataError(f"a number is wanted here, not {type_of(each)} {each!r:.60}")


def add(left: Any, right: Any) -> Any:
    _numbers(left, right)
    return number(left + right, left, right)


def subtract(left: Any, right: Any) -> Any:
    _numbers(left, right)
    return number(left - right, left, right)


def multiply(left: Any, right: Any) -> Any:
    _numbers(left, right)
    return number(left * right, left, right)


def divide(left: Any, right: Any) -> Any:
    _numbers(left, right)
    return div_int(left, right) if type(left) is int is type(right) else div_float(left, right)


def modulo(left: Any, right: Any) -> Any:
    _numbers(left, right)
    return mod_int(left, right) if type(left) is int is type(right) else mod_float(left, right)


def negative(value: Any) -> Any:
    _numbers(value, value)
    return number(-value)


def div_int(left: int, right: int) -> int:
    """Towards zero."""
    if right == 0:
        raise DataError("division by zero")
    quotient = left // right if (left >= 0) == (right > 0) else -(-left // right)
    return quotient if quotient <= INT_MAX else int_overflow()


def mod_int(left: int, right: int) -> int:
    """With the sign of the left."""
    if right == 0:
        raise DataError("division by zero")
    rest = abs(left) % abs(right)
    return rest if left >= 0 else -rest


def div_float(left: float, right: float) -> float:
    if right == 0:
        raise DataError("division by zero")
    return real(left / right, left, right)


def mod_float(left: float, right: float) -> float:
    if right == 0:
        raise DataError("division by zero")
    return math.nan if isinf(left) else math.fmod(left, right)


def power(left: float, right: float) -> float:
    try:
        value = math.pow(left, right)
    except OverflowError:
        raise DataError("value out of range: overflow of a FLOAT") from None
    except ValueError:
        raise DataError(
            "zero raised to a negative power is undefined"
            if left == 0
            else "a negative number raised to a power that is not whole is undefined"
        ) from None
    return real(value, left, right)


def absolute(value: Any) -> Any:
    return checked_int(abs(value)) if type(value) is int else abs(value)


def ceiling(value: Any) -> Any:
    return value if type(value) is int or not math.isfinite(value) else float(math.ceil(value))


def floor(value: Any) -> Any:
    return value if type(value) is int or not math.isfinite(value) else float(math.floor(value))


def sign(value: Any) -> Any:
    if type(value) is int:
        return (value > 0) - (value < 0)
    return value if isnan(value) else float((value > 0) - (value < 0))


def rounded(value: Any, digits: int = 0) -> Any:
    """A half of an INT goes away from zero, as NUMERIC's does; of a FLOAT to the even one."""
    if type(value) is int:
        if digits >= 0:
            return value
        if digits < -20:
            return 0
        unit = 10**-digits
        result = (abs(value) + unit // 2) // unit * unit
        return checked_int(result if value >= 0 else -result)
    if not math.isfinite(value) or digits > 400:
        return value
    return round(value, max(digits, -400))


def truncated(value: Any, digits: int = 0) -> Any:
    if type(value) is int:
        if digits >= 0:
            return value
        unit = 10 ** min(-digits, 20)
        result = abs(value) // unit * unit
        return result if value >= 0 else -result
    if not math.isfinite(value) or digits > 300:
        return value
    if digits == 0:
        return float(math.trunc(value))
    scale = 10.0 ** max(digits, -300)
    scaled = value * scale
    return math.trunc(scaled) / scale if math.isfinite(scaled) else value


def square_root(value: float) -> float:
    if value < 0:
        raise DataError("cannot take the square root of a negative number")
    return math.sqrt(value)


def exponential(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        raise DataError("value out of range: overflow of a FLOAT") from None


def natural_log(value: float) -> float:
    if value <= 0:
        raise DataError(f"cannot take the logarithm of {'zero' if value == 0 else 'a negative number'}")
    return math.log(value)


def log(first: float, second: float | None = None) -> float:
    """LOG(x) is to base 10, LOG(b, x) to base b."""
    if second is None:
        natural_log(first)
        return math.log10(first)
    base = natural_log(first)
    if base == 0:
        raise DataError("division by zero")
    return natural_log(second) / base


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


# -- Strings


def bounded(text: str) -> str:
    if len(text) > MAX_STRING:
        raise DataError(f"a string of {len(text):,} characters; the limit is {MAX_STRING:,}")
    return text


def concat(*values: Any) -> str:
    """CONCAT: NULLs are left out."""
    return bounded("".join(to_text(value) for value in values if value is not None))


def concat_ws(separator: Any, *values: Any) -> str | None:
    """NULLs are left out, except that a NULL separator gives NULL."""
    if separator is None:
        return None
    return bounded(separator.join(to_text(value) for value in values if value is not None))


def joined(*values: str) -> str:
    """||"""
    return bounded("".join(values))


def initcap(text: str) -> str:
    return re.sub(r"[^\W_]+", lambda word: word[0][0].upper() + word[0][1:].lower(), text)


def trimmed(text: str, characters: str = " ") -> str:
    return text.strip(characters) if characters else text


def left_trimmed(text: str, characters: str = " ") -> str:
    return text.lstrip(characters) if characters else text


def right_trimmed(text: str, characters: str = " ") -> str:
    return text.rstrip(characters) if characters else text


def substring(text: str, start: int, length: int | None = None) -> str:
    """Counted from 1; a start before it takes from the length."""
    begin = start - 1
    if length is None:
        return text[max(begin, 0) :]
    if length < 0:
        raise DataError("negative substring length not allowed")
    return text[max(begin, 0) : max(begin + length, 0)]


def left(text: str, count: int) -> str:
    return text[:count]


def right(text: str, count: int) -> str:
    if count < 0:
        return text[-count:]
    return text[-count:] if count else ""


def left_padded(text: str, length: int, fill: str = " ") -> str:
    return _padding(text, length, fill) + text[: max(length, 0)]


def right_padded(text: str, length: int, fill: str = " ") -> str:
    return text[: max(length, 0)] + _padding(text, length, fill)


def _padding(text: str, length: int, fill: str) -> str:
    missing = length - len(text)
    if missing <= 0 or not fill:
        return ""
    if length > MAX_STRING:
        raise DataError(f"a string of {length:,} characters; the limit is {MAX_STRING:,}")
    return (fill * (missing // len(fill) + 1))[:missing]


def repeated(text: str, count: int) -> str:
    if count > 0 and len(text) * count > MAX_STRING:
        raise DataError(f"a string of {len(text) * count:,} characters; the limit is {MAX_STRING:,}")
    return text * max(count, 0)


def replaced(text: str, old: str, new: str) -> str:
    if not old:
        return text
    growth = (len(new) - len(old)) * text.count(old)
    if len(text) + growth > MAX_STRING:
        raise DataError(f"a string of {len(text) + growth:,} characters; the limit is {MAX_STRING:,}")
    return text.replace(old, new)


def split_part(text: str, separator: str, position: int) -> str:
    if position == 0:
        raise DataError("field position must not be zero")
    pieces = text.split(separator) if separator else [text]
    index = position - 1 if position > 0 else len(pieces) + position
    return pieces[index] if 0 <= index < len(pieces) else ""


def ascii_code(text: str) -> int:
    return ord(text[0]) if text else 0


def character(code: int) -> str:
    if not 0 < code <= 0x10FFFF or 0xD800 <= code <= 0xDFFF:
        raise DataError(f"requested character {code} is not valid")
    return chr(code)


@lru_cache(maxsize=256)
def like_pattern(pattern: str, escape: str, any_case: bool) -> Callable[[str], Any]:
    """What says, by something true, whether a string matches a LIKE pattern."""
    pieces: list[str] = []
    plain: list[str] = []
    is_plain, stars = True, 0
    position = 0
    while position < len(pattern):
        one = pattern[position]
        if escape and one == escape:
            position += 1
            if position == len(pattern):
                raise DataError("LIKE pattern must not end with escape character")
            pieces.append(re.escape(pattern[position]))
            plain.append(pattern[position])
        elif one == "%":
            if not pieces or pieces[-1] != ".*?":
                pieces.append(".*?")
                stars += 1
            is_plain = is_plain and position == len(pattern) - 1
        elif one == "_":
            pieces.append(".")
            is_plain = False
        else:
            pieces.append(re.escape(one))
            plain.append(one)
        position += 1
    if is_plain and not any_case:
        text = "".join(plain)
        return (lambda value: value.startswith(text)) if stars else (lambda value: value == text)
    return _wildcards(pieces, any_case)


def _wildcards(pieces: list[str], any_case: bool) -> Callable[[str], Any]:
    """Piece by piece between the %s, each at the first place where it fits: no pattern makes that slow."""
    flags = re.DOTALL | (re.IGNORECASE if any_case else 0)
    runs: list[list[str]] = [[]]
    for piece in pieces:
        if piece == ".*?":
            runs.append([])
        else:
            runs[-1].append(piece)
    if len(runs) == 1:
        return re.compile("".join(runs[0]), flags).fullmatch
    first = re.compile("".join(runs[0]), flags)
    middle = [re.compile("".join(run), flags) for run in runs[1:-1] if run]
    last, last_length = re.compile("".join(runs[-1]), flags), len(runs[-1])

    def matches(value: str) -> bool:
        start = first.match(value)
        if start is None:
            return False
        at = start.end()
        for each in middle:
            found = each.search(value, at)
            if found is None:
                return False
            at = found.end()
        return len(value) - last_length >= at and last.fullmatch(value, len(value) - last_length) is not None

    return matches


def like(value: str, pattern: str, escape: str, any_case: bool) -> bool:
    return bool(like_pattern(pattern, escape, any_case)(value))


# -- Time

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_PARTS: dict[str, Callable[[datetime], float]] = {
    "year": lambda t: t.year,
    "quarter": lambda t: (t.month + 2) // 3,
    "month": lambda t: t.month,
    "week": lambda t: t.isocalendar()[1],
    "isoyear": lambda t: t.isocalendar()[0],
    "day": lambda t: t.day,
    "doy": lambda t: t.timetuple().tm_yday,
    "dow": lambda t: t.isoweekday() % 7,
    "isodow": lambda t: t.isoweekday(),
    "hour": lambda t: t.hour,
    "minute": lambda t: t.minute,
    "second": lambda t: t.second + t.microsecond / 1e6,
    "milliseconds": lambda t: t.second * 1e3 + t.microsecond / 1e3,
    "microseconds": lambda t: t.second * 1e6 + t.microsecond,
    "epoch": lambda t: (t - _EPOCH) / timedelta(seconds=1),
    "decade": lambda t: t.year // 10,
    "century": lambda t: (t.year + 99) // 100,
    "millennium": lambda t: (t.year + 999) // 1000,
}


def date_part(part: str, moment: datetime) -> float:
    get = _PARTS.get(part.lower())
    if get is None:
        raise DataError(f"{part!r:.40} is no field of a TIMESTAMP ({', '.join(_PARTS)})")
    return float(get(moment))


def date_trunc(part: str, moment: datetime) -> datetime:
    part = part.lower()
    day = moment.replace(hour=0, minute=0, second=0, microsecond=0)
    if part == "week":
        try:
            return day - timedelta(days=day.weekday())
        except OverflowError:
            raise DataError("timestamp out of range") from None
    cuts: dict[str, Callable[[], datetime]] = {
        "microseconds": lambda: moment,
        "milliseconds": lambda: moment.replace(microsecond=moment.microsecond // 1000 * 1000),
        "second": lambda: moment.replace(microsecond=0),
        "minute": lambda: moment.replace(second=0, microsecond=0),
        "hour": lambda: moment.replace(minute=0, second=0, microsecond=0),
        "day": lambda: day,
        "month": lambda: day.replace(day=1),
        "quarter": lambda: day.replace(month=(day.month - 1) // 3 * 3 + 1, day=1),
        "year": lambda: day.replace(month=1, day=1),
        "decade": lambda: day.replace(year=max(day.year // 10 * 10, 1), month=1, day=1),
        "century": lambda: day.replace(year=(day.year - 1) // 100 * 100 + 1, month=1, day=1),
        "millennium": lambda: day.replace(year=(day.year - 1) // 1000 * 1000 + 1, month=1, day=1),
    }
    if part not in cuts:
        raise DataError(f"{part!r:.40} is nothing that a TIMESTAMP can be cut to ({', '.join(cuts)}, week)")
    return cuts[part]()


def to_timestamp(seconds: float) -> datetime:
    try:
        return _EPOCH + timedelta(seconds=seconds)
    except (OverflowError, ValueError):
        raise DataError("timestamp out of range") from None


# -- Queries


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
    **_public(vars(conversions)), **_public(globals()),
    "Search": Search, "Observed": Observed, "catalog_rows": catalog_rows, "catalog_merged": catalog_merged,
    "Estimates": Estimates, "estimates_merged": estimates_merged, "UNKNOWN": UNKNOWN, "DuplicateKey": DuplicateKey,
    "NONE": NONE, "pi": math.pi,
}  # fmt: skip
