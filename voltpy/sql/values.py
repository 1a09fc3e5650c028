"""Values from one SQL type into another, as PostgreSQL converts them. For the planner and for what it generates."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from math import isfinite, isinf, isnan
from typing import Any, NoReturn

from voltpy.errors import DataError
from voltpy.schema import INT_MAX, INT_MIN, TypeName, utc

MAX_STRING = 1 << 20  # characters: no row could hold a longer one

_WHOLE = re.compile(r"[ \t\n\r\f\v]*([+-]?[0-9]+)[ \t\n\r\f\v]*", re.ASCII)
_REAL = re.compile(
    r"[ \t\n\r\f\v]*([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?|[+-]?inf(?:inity)?|nan)[ \t\n\r\f\v]*",
    re.ASCII | re.IGNORECASE,
)
_TRUE = ("t", "tr", "tru", "true", "y", "ye", "yes", "on", "1")
_FALSE = ("f", "fa", "fal", "fals", "false", "n", "no", "of", "off", "0")


def int_overflow() -> NoReturn:
    raise DataError("integer out of range: an INT has 64 bits")


def beyond_int(value: int) -> str:
    """What is wrong with an int that is none of ours. It may be of any length; one of its bits is its sign."""
    return f"an int of {(value if value >= 0 else ~value).bit_length() + 1:,} bits; an INT has 64"


def checked_int(value: int) -> int:
    if not INT_MIN <= value <= INT_MAX:
        int_overflow()
    return value


def text_to_int(text: str) -> int:
    match = _WHOLE.fullmatch(text)
    if match is None:
        raise DataError(f"invalid input for INT: {text!r:.60}")
    digits = match[1].lstrip("+-").lstrip("0") or "0"
    if len(digits) > 19:  # int() refuses very long texts
        int_overflow()
    return checked_int(int(("-" if match[1][0] == "-" else "") + digits))


def text_to_float(text: str) -> float:
    match = _REAL.fullmatch(text)
    if match is None or len(text) > 400:
        raise DataError(f"invalid input for FLOAT: {text!r:.60}")
    value = float(match[1])
    if isinf(value) and "i" not in match[1].lower():
        raise DataError(f"{text!r:.60} is out of range for FLOAT")
    return value


def text_to_bool(text: str) -> bool:
    word = text.strip().lower()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise DataError(f"invalid input for BOOL: {text!r:.60}")


def text_to_timestamp(text: str) -> datetime:
    try:
        return utc(datetime.fromisoformat(text.strip()))
    except (ValueError, OverflowError):
        raise DataError(f"invalid input for TIMESTAMP: {text!r:.60}; write '2024-05-17T08:30:00Z'") from None


def float_to_int(value: float) -> int:
    """Rounded to the nearest, a half to the even one."""
    if not isfinite(value):
        int_overflow()
    return checked_int(round(value))


def float_to_text(value: float) -> str:
    if isnan(value):
        return "NaN"
    if isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    text = repr(value)
    if 1e15 <= abs(value) < 1e16:  # PostgreSQL changes to an exponent here, Python at the next power
        digits = str(int(value))
        sign, digits = ("-", digits[1:]) if digits[0] == "-" else ("", digits)
        rest = digits[1:].rstrip("0")
        return f"{sign}{digits[0]}{'.' + rest if rest else ''}e+15"
    return text.removesuffix(".0")


def timestamp_to_text(value: datetime) -> str:
    text = value.replace(tzinfo=None).isoformat(" ")
    return (text.rstrip("0") if "." in text else text) + "+00"


def to_text(value: Any) -> str:
    """Any value as PostgreSQL writes it."""
    kind = type(value)
    if kind is str:
        return str(value)
    if kind is bool:
        return "true" if value else "false"
    if kind is float:
        return float_to_text(value)
    if kind is datetime:
        return timestamp_to_text(value)
    return str(value)


def _refuse(target: str) -> Callable[[Any], NoReturn]:
    def refuse(value: Any) -> NoReturn:
        raise DataError(f"a value of type {type_of(value)} can't be cast to {target}")

    return refuse


def _same(value: Any) -> Any:
    return value


TYPE_NAMES: dict[type, TypeName] = {bool: "BOOL", int: "INT", float: "FLOAT", str: "STRING", datetime: "TIMESTAMP"}

# By (from, to): explicit casts. What is missing is an error.
CASTS: dict[tuple[TypeName, TypeName], Callable[[Any], Any]] = {
    ("INT", "FLOAT"): float,
    ("INT", "STRING"): str,
    ("INT", "BOOL"): bool,
    ("FLOAT", "INT"): float_to_int,
    ("FLOAT", "STRING"): float_to_text,
    ("BOOL", "INT"): int,
    ("BOOL", "STRING"): to_text,
    ("STRING", "INT"): text_to_int,
    ("STRING", "FLOAT"): text_to_float,
    ("STRING", "BOOL"): text_to_bool,
    ("STRING", "TIMESTAMP"): text_to_timestamp,
    ("TIMESTAMP", "STRING"): timestamp_to_text,
}


def type_of(value: Any) -> str:
    return TYPE_NAMES.get(type(value), type(value).__name__)


def cast(value: Any, target: TypeName) -> Any:
    """A value that is not NULL, of a type that only the run knows. Raises DataError."""
    own = TYPE_NAMES.get(type(value))
    if own == target:
        return value
    convert = CASTS.get((own, target)) if own is not None else None
    return (convert or _refuse(target))(value)


# What INSERT and UPDATE convert by themselves, besides string literals: PostgreSQL's assignment casts.
ASSIGNED = {("INT", "FLOAT"), ("FLOAT", "INT"), ("INT", "STRING"), ("FLOAT", "STRING"), ("BOOL", "STRING")} | {
    ("TIMESTAMP", "STRING")
}


def assign(value: Any, target: TypeName) -> Any:
    """A parameter's value for a column of this type; text for a TIMESTAMP is read. Raises DataError."""
    if value is None:
        return None
    own = TYPE_NAMES.get(type(value))
    if own == target:
        return value
    if (own, target) in ASSIGNED or (own, target) == ("STRING", "TIMESTAMP"):
        return cast(value, target)
    raise DataError(f"a value of type {type_of(value)} does not fit a column of type {target}")
