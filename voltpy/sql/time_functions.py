"""Functions on TIMESTAMPs. For generated statements."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from voltpy.errors import DataError

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
