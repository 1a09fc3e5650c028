"""EXPLAIN: about how many rows each step of a statement would find, by what tables and indexes keep count of.

The planner writes a program for it (voltpy.sql.query_function) that asks for counts and does nothing else: no row is
read, and nothing of the statement runs. A step is a line of the plan in words. Of each,

    rows         that its access path would give
    most         that it can't be more than in all partitions together, or None
    each_time    they are those of one time: the step runs for each row of the steps before it
    used         the indexes that would be asked, or what would be used instead; nothing where there is no choice

Where a statement may need several partitions, each of them answers for its own rows, and the merge puts them together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from voltpy.schema import INT_MAX
from voltpy.sql.search import (
    HALF_OPEN_SHARE,
    HASH,
    NARROW_SHARE,
    PRIMARY_KEY,
    UNKNOWN,
    Ends,
    Foreseen,
    Search,
    ints_within,
    told,
)


class _Step(NamedTuple):
    rows: int
    most: int | None
    each_time: bool
    used: Sequence[str]


class Estimates:
    """Made by a program at its start.

    `each_time` and `copies`: the steps that run often; those of tables that every partition has whole.
    """

    def __init__(self, each_time: set[int], copies: set[int]) -> None:
        self._each_time = each_time
        self._copies = copies
        self._steps: dict[int, _Step] = {}

    # What the program calls.

    def scan(self, number: int, table: Any) -> None:
        self._add(number, table.count())

    def count(self, number: int, table: Any) -> None:
        self._add(number, table.count())

    def key(self, number: int) -> None:
        self._add(number, 1, 1)

    def keys(self, number: int, table: Any, keys: Sequence[Any]) -> None:
        """The primary key is one of a list."""
        unknown = sum(key is UNKNOWN for key in keys)
        most = len({key for key in keys if key is not UNKNOWN and key is not None}) + unknown
        self._add(number, min(most, table.count()), most)

    def key_range(self, number: int, table: Any, lows: Ends, highs: Ends) -> None:
        rows, most = _between(table, lows, highs)
        self._add(number, rows, most)

    def search(
        self,
        number: int,
        search: Search,
        table: Any,
        values: Any,
        *,
        first: int | None = None,
        ranged: tuple[Ends, Ends] | None = None,
        hashed: bool = False,
    ) -> None:
        """By indexes; by a key range where that has fewer keys; or by a hash, of a table that has no index for it."""
        if hashed and not search.helps(table):
            self._each_time.discard(number)  # the hash is made once
            self._add(number, table.count(), used=(HASH,))
            return
        foreseen = search.foreseen(table, values, first)
        if ranged is not None:
            rows, most = _between(table, *ranged)
            if not search.helps(table) or foreseen.rows > (rows if most is None else most):
                self._add(number, rows, most, (PRIMARY_KEY,))
                return
        self._add(number, foreseen.rows, used=foreseen.used)

    def index_count(self, number: int, search: Search, table: Any, values: Any) -> None:
        self._foreseen(number, search.foreseen_count, table, values)

    def in_order(self, number: int, search: Search, table: Any, values: Any, limit: Any, offset: Any) -> None:
        """The first rows: as many as LIMIT and OFFSET say."""
        offset = 0 if offset is None else offset
        if type(limit) is int and type(offset) is int and limit >= 0 and offset >= 0:
            self._foreseen(number, search.foreseen_in_order, table, values, limit + offset)

    def has(self, number: int) -> bool:
        """Whether the step would give the rows, so that the next one need not."""
        return number in self._steps

    def _foreseen(self, number: int, foresee: Callable[..., Foreseen | None], table: Any, *args: Any) -> None:
        foreseen = foresee(table, *args)
        if foreseen is not None:
            self._add(number, foreseen.rows, used=foreseen.used)

    def _add(self, number: int, rows: int, most: int | None = None, used: Sequence[str] = ()) -> None:
        if number in self._copies:
            most = rows  # every partition has the same rows: together they are no more
        self._steps[number] = _Step(rows, most, number in self._each_time, used)

    # What the program returns.

    def alone(self, notes: Sequence[str]) -> list[tuple[str]]:
        """The plan's lines, where the whole statement would run here."""
        return [(line,) for line in (notes[0], *_described(notes[1:], self._steps))]

    def sent(self) -> list[Any]:
        """One list with one row, in which the steps are: to be merged."""
        return [[([(number, *step) for number, step in self._steps.items()],)]]


def estimates_merged(
    sent: Sequence[Any], routed: str, parts: Sequence[str], merge: Sequence[str], apart: bool, keys: int | None
) -> list[tuple[str]]:
    """The plan's lines: the first, and those of what the partitions do and of what is done with it.

    `apart`: they do it each with its own rows; else it is done once with the rows of all. `keys`: it will be those
    partitions that have so many keys, which are not known yet; None: those that have sent something.
    """
    steps = [{number: _Step(*step) for number, *step in steps} for (steps,) in sent]
    partitions = len(steps) if keys is None else min(keys, len(steps))
    share = partitions / max(len(steps), 1)
    together = {
        number: _together([each[number] for each in steps if number in each], len(steps), apart, share)
        for number in range(len(parts))
        if any(number in each for each in steps)
    }
    if not merge:
        lines = [routed, *_described(parts, together)]
    else:
        where = "1 partition" if partitions == 1 else f"{partitions} partitions, together"
        lines = [routed, f"In {where}:", *(f"  {line}" for line in _described(parts, together))]
        lines += ["Merge:", *(f"  {line}" for line in merge)]
    return [(line,) for line in lines]


def _together(steps: Sequence[_Step], partitions: int, apart: bool, share: float) -> _Step:
    """One step, as each partition estimates it; `share` of them will run it."""
    rows = sum(step.rows for step in steps)
    each_time = steps[0].each_time
    if each_time and apart:
        rows = _rounded(rows / partitions)
    elif share < 1:
        rows = _rounded(rows * share)
    most = max((step.most for step in steps if step.most is not None), default=None)
    used = dict.fromkeys(name for step in steps for name in step.used)
    return _Step(rows if most is None else min(rows, most), most, each_time, list(used))


def _rounded(rows: float) -> int:
    return max(round(rows), 1) if rows else 0


def _between(table: Any, lows: Ends, highs: Ends) -> tuple[int, int | None]:
    """(about how many rows have an INT key within all bounds, how many such keys there are)"""
    rows = table.count()
    if any(value is UNKNOWN for value, _ in (*lows, *highs)):
        return round(rows * (NARROW_SHARE if lows and highs else HALF_OPEN_SHARE)), None
    low, high = ints_within(lows, highs)
    keys = min(max(high - low + 1, 0), INT_MAX)  # as it can travel
    return min(keys, rows), keys


def _described(notes: Sequence[str], steps: dict[int, _Step]) -> list[str]:
    lines = []
    for number, note in enumerate(notes):
        step = steps.get(number)
        if step is None:
            lines.append(note)
            continue
        used = f"{told(step.used)}, " if step.used else ""
        rows = "1 row" if step.rows == 1 else f"{step.rows:,} rows"
        lines.append(f"{note} — {used}{rows} estimated{' each time' if step.each_time else ''}")
    return lines
