"""Arithmetic on numbers as PostgreSQL has it: results that are out of range are errors. For generated statements.

Arguments are not NULL.
"""

from __future__ import annotations

import math
from math import isinf, isnan
from typing import Any

from voltpy.errors import DataError
from voltpy.schema import INT_MAX
from voltpy.sql.values import checked_int, int_overflow, type_of

_NUMERIC = (int, float)


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
