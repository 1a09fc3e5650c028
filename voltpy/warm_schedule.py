"""The warming schedule: which tables are brought into memory at which time of day, before they are needed.

    # time days       tables           rate
    08:55  weekdays   accounts,orders  50MB/s
    00:30  daily      *
    23:00  fri-sun,wed  "Audit Trail"

    schedule = line*             a line is an entry, empty, or a comment after `#`
    entry    = time days tables [rate]
    time     = HH:MM             local time, 00:00 to 23:59
    days     = daily | weekdays | weekends | day-or-range (, day-or-range)*      range = day-day, over Sunday too
    tables   = * | name (, name)*     names as in CREATE TABLE: lower-cased unless in double quotes; * = all of them
    rate     = <number>[K|M|G][i]B/s  powers of 1024, as with --memory; how much each partition reads at most

No spaces stand around the commas and hyphens. `due` says what has come due; it reads no clock.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from datetime import date, datetime, time, timedelta
from typing import Literal, NamedTuple, get_args

from voltpy.errors import ClusterError

Source = Literal["heat", "keys", "schedule", "prefetch"]
WARM_SOURCES: tuple[Source, ...] = get_args(Source)
WARM_BYTES_PER_S = 128 << 20  # of each partition, where nobody says otherwise
MAX_ENTRIES = 1000
LOOK_BACK_DAYS = 8  # every entry comes due within a week

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_NAMED_DAYS = {
    "daily": frozenset(range(7)),
    "weekdays": frozenset(range(5)),
    "weekends": frozenset((5, 6)),
}
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_TIME = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])")
_RATE = re.compile(r"([0-9]+(?:\.[0-9]+)?)(?:([KMG])I?)?B/S")
# A word ends at a space that is not in double quotes; so does a name at a comma.
_WORD = re.compile(r'(?:"(?:[^"]|"")*"|[^\s"#])+')
_NAME = re.compile(r'"((?:[^"]|"")+)"|([^\W\d]\w*)')


class Entry(NamedTuple):
    """A line of the schedule. `days`: 0 = Monday; `tables` is empty for all; `bytes_per_s` None: as otherwise."""

    line: int
    at: time
    days: frozenset[int]
    tables: tuple[str, ...]
    bytes_per_s: int | None


def parse(text: str, tables: Collection[str] | None = None) -> list[Entry]:
    """The entries in the order of their lines. With `tables`, these are all that there are.

    Raises ClusterError naming the line, what is wrong there and what was expected.
    """
    entries: list[Entry] = []
    seen: dict[tuple[object, ...], int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words, rest = _words(line)
        if rest:
            raise _error(number, rest, "does not end", 'another "')
        if not words:
            continue
        if not 3 <= len(words) <= 4:
            raise _error(number, line.strip(), f"has {len(words)} words", "time days tables [rate]")
        entry = Entry(
            number,
            _time(words[0], number),
            _days(words[1], number),
            _tables(words[2], number, tables),
            _bytes_per_s(words[3], number) if len(words) == 4 else None,
        )
        if entry[1:] in seen:
            raise ClusterError(f"line {number}: the same as line {seen[entry[1:]]}")
        seen[entry[1:]] = number
        entries.append(entry)
        if len(entries) > MAX_ENTRIES:
            raise ClusterError(f"line {number}: more than {MAX_ENTRIES} entries")
    return entries


def due(schedule: list[Entry], last_check: datetime, now: datetime) -> list[Entry]:
    """The entries whose time has come after `last_check` and up to `now`, the earliest first, each once.

    However long the process slept, nothing is left out that came due in the meantime, and nothing is returned twice for
    that. Both moments are naive, in the system's time zone, or both are aware, and days and times are those of `now`'s
    zone. A time that a change to summer time leaves out comes due as long after the change as it lies after its
    beginning (02:30 at 03:30); one that comes twice is due the first time only.

    When the clock is set back nothing comes due. The caller then keeps `last_check` as it is until the clock has come
    past it again: so nothing comes due a second time on one day.
    """
    since, until = last_check.timestamp(), now.timestamp()
    if (last_check.tzinfo is None) != (now.tzinfo is None):
        raise ValueError("one of the moments has a time zone, the other has none")
    if until <= since:
        return []
    first_day = last_check.date() if now.tzinfo is None else last_check.astimezone(now.tzinfo).date()
    # A day earlier: 23:30 may be left out as well, and comes due at 00:30 then.
    day = max(first_day - timedelta(days=1), now.date() - timedelta(days=LOOK_BACK_DAYS))
    moments: dict[int, float] = {}  # line → when its time came last
    while day <= now.date():
        for entry in schedule:
            if day.weekday() in entry.days:
                came = _timestamp(day, entry.at, now)
                if since < came <= until:
                    moments[entry.line] = came
        day += timedelta(days=1)
    return sorted((entry for entry in schedule if entry.line in moments), key=lambda entry: moments[entry.line])


def _timestamp(day: date, at: time, now: datetime) -> float:
    return datetime.combine(day, at, tzinfo=now.tzinfo).timestamp()


def _words(line: str) -> tuple[list[str], str]:
    """(words up to the comment, what can't be read)."""
    words: list[str] = []
    at = 0
    while at < len(line):
        if line[at].isspace():
            at += 1
        elif line[at] == "#":
            break
        else:
            match = _WORD.match(line, at)
            if match is None:
                return words, line[at:]
            words.append(match[0])
            at = match.end()
    return words, ""


def _time(word: str, line: int) -> time:
    match = _TIME.fullmatch(word)
    if match is None:
        raise _error(line, word, "is no time of day", "HH:MM, 00:00 to 23:59")
    return time(int(match[1]), int(match[2]))


def _days(word: str, line: int) -> frozenset[int]:
    named = _NAMED_DAYS.get(word.lower())
    if named is not None:
        return named
    days: set[int] = set()
    for part in word.lower().split(","):
        first, hyphen, last = part.partition("-")
        if first not in _DAYS or (hyphen and last not in _DAYS):
            raise _error(line, part or word, "is no day", "daily, weekdays, weekends, or days such as mon-fri,sun")
        start = _DAYS.index(first)
        end = _DAYS.index(last) if hyphen else start
        days.update(day % 7 for day in range(start, end + 1 if end >= start else end + 8))
    return frozenset(days)


def _tables(word: str, line: int, known: Collection[str] | None) -> tuple[str, ...]:
    if word == "*":
        return ()
    names: list[str] = []
    at = 0
    while True:
        match = _NAME.match(word, at)
        if match is None or (match.end() < len(word) and word[match.end()] != ","):
            raise _error(line, word, "is no list of tables", "* or names with commas between them")
        name = match[1].replace('""', '"') if match[1] is not None else match[2].lower()
        if known is not None and name not in known:
            raise _error(line, name, "is no table of the schema", ", ".join(sorted(known)) or "one that there is")
        if name in names:
            raise ClusterError(f"line {line}: table {name} comes twice")
        names.append(name)
        at = match.end() + 1
        if at > len(word):
            return tuple(names)


def _bytes_per_s(word: str, line: int) -> int:
    match = _RATE.fullmatch(word.upper())
    rate = int(float(match[1]) * _UNITS[match[2] or ""]) if match is not None and len(word) <= 24 else 0
    if rate <= 0:
        raise _error(line, word, "is no rate", "one such as 50MB/s")
    return rate


def _error(line: int, what: str, wrong: str, expected: str) -> ClusterError:
    shown = what if len(what) <= 60 else f"{what[:60]}…"
    return ClusterError(f"line {line}: {shown!r} {wrong}; expected: {expected}")
