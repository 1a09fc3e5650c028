"""EXPLAIN ANALYZE: what a statement met, step by step, while it really ran.

The planner writes another program for it, in which every step counts (voltpy.sql.query_function); the program of the
statement alone has nothing of this. A step is a line of the plan in words. Of each,

    estimated    rows, by what indexes and tables say of themselves, where they were asked: the sum over all times
    found        rows that its access path gave, over all times
    kept         of these, those that its filters let through
    used         the indexes that were asked, or what was used instead; nothing where there was no choice
    seconds      spent in the access path alone, not in what is done with its rows

In a statement over several partitions each fragment sends its steps along, as one more list of one row, in the order of
the partitions; the merge observes itself and writes all of it down.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from time import perf_counter
from typing import Any

from voltpy.sql.search import SCAN, told

_ASKED = frozenset({"find", "found", "found_any", "found_between", "range", "count"})


class _Step:
    __slots__ = ("estimated", "found", "kept", "seconds", "used")

    def __init__(self) -> None:
        self.estimated: int | None = None
        self.found: int | None = None
        self.kept: int | None = None
        self.seconds = 0.0
        self.used: dict[str, None] = {}

    def estimate(self, rows: int) -> None:
        self.estimated = rows if self.estimated is None else self.estimated + rows


class Observed:
    """Made by a program at its start; `steps` is how many lines its plan has."""

    def __init__(self, steps: int) -> None:
        self._steps = [_Step() for _ in range(steps)]
        self._partition: int | None = None

    # What the program calls.

    def table(self, table: Any) -> Any:
        """The table as it is; one of a partition's tells which that is."""
        self._partition = getattr(table, "partition", None)
        return table

    def rows(self, number: int, rows: Iterable[Any]) -> Iterator[Any]:
        """The rows of a step, counted."""
        step = self._steps[number]
        step.kept = step.kept or 0
        return self._counted(step, rows)

    def _counted(self, step: _Step, rows: Iterable[Any]) -> Iterator[Any]:
        step.found = step.found or 0
        following = iter(rows).__next__
        while True:
            began_s = perf_counter()
            try:
                row = following()
            except StopIteration:
                return
            finally:
                step.seconds += perf_counter() - began_s
            step.found += 1
            yield row

    def kept(self, number: int) -> None:
        step = self._steps[number]
        step.kept = (step.kept or 0) + 1

    def get(self, number: int, get: Callable[[Any], Any], key: Any) -> Any:
        """One row by its key, or None."""
        step = self._steps[number]
        began_s = perf_counter()
        row = get(key)
        step.seconds += perf_counter() - began_s
        step.estimate(1)
        step.found = (step.found or 0) + (row is not None)
        step.kept = step.kept or 0
        return row

    def timed(self, number: int, make: Callable[[], Any]) -> Any:
        """What `make` makes: an index's count, or a dictionary for a hash join."""
        began_s = perf_counter()
        made = make()
        self._steps[number].seconds += perf_counter() - began_s
        return made

    def counted(self, number: int, count: int | None) -> int | None:
        if count is not None:
            self._steps[number].found = count
        return count

    def scanned(self, number: int, table: Any) -> Any:
        self._steps[number].estimate(table.count())
        return table.scan()

    def instead(self, number: int, used: str, rows: Any) -> Any:
        """The rows, which something else than an index has given."""
        self._steps[number].used[used] = None
        return rows

    def estimated(self, number: int, rows: int, table: Any, given: Iterable[Any]) -> Iterable[Any]:
        """`given`, of which there are about `rows`, and never more than the table has."""
        self._steps[number].estimate(min(rows, table.count()))
        return given

    def searched(self, number: int, search: Any, table: Any, values: Any, first: int | None = None) -> Iterable[Any]:
        """Search.rows, and which indexes it asked."""
        step = self._steps[number]
        step.estimate(search.foreseen(table, values, first).rows)
        return self.timed(number, lambda: search.rows(_Table(table, step), values, first))  # type: ignore[no-any-return]

    def in_order(self, number: int, search: Any, table: Any, values: Any, limit: int | None) -> Iterable[Any] | None:
        """Search.in_order, its rows counted."""
        step = self._steps[number]
        foreseen = search.foreseen_in_order(table, values, limit)
        if foreseen is not None:
            step.estimate(foreseen.rows)
        found = self.timed(number, lambda: search.in_order(_Table(table, step), values, limit))
        return None if found is None else self._counted(step, found)

    def table_count(self, number: int, table: Any) -> int:
        count: int = self.timed(number, table.count)
        self._steps[number].estimate(count)
        self.counted(number, count)
        return count

    def index_count(self, number: int, search: Any, table: Any, values: Any) -> int | None:
        step = self._steps[number]
        foreseen = search.foreseen_count(table, values)
        if foreseen is not None:
            step.estimate(foreseen.rows)
        return self.counted(number, self.timed(number, lambda: search.count(_Table(table, step), values)))

    # What the program returns.

    def sent(self, answer: Callable[[], list[Any]]) -> list[Any]:
        """A fragment's lists of rows, and one more with one row: the partition, seconds, rows sent, its steps."""
        began_s = perf_counter()
        lists = answer()
        took_s = perf_counter() - began_s
        return [*lists, [(self._partition, took_s, sum(map(len, lists)), self._rows_of_steps())]]

    def alone(self, answer: Callable[[], list[Any]], notes: Sequence[str]) -> list[tuple[str]]:
        """The plan's lines, where the whole statement ran here."""
        began_s = perf_counter()
        count = len(answer())
        return self._told(f"{_count(count)} in {_ms(perf_counter() - began_s)}", notes)

    def changed(self, answer: Callable[[], tuple[int, Any]], notes: Sequence[str]) -> tuple[int, list[tuple[str]]]:
        """The same for a statement that writes: (how many lines, the lines)."""
        began_s = perf_counter()
        count, _ = answer()
        lines = self._told(f"{_count(count)} changed in {_ms(perf_counter() - began_s)}", notes)
        return len(lines), lines

    def _told(self, whole: str, notes: Sequence[str]) -> list[tuple[str]]:
        where = "" if self._partition is None else f"Partition {self._partition}: "
        lines = [notes[0], where + whole, *_described(notes[1:], self._rows_of_steps())]
        return [(line,) for line in lines]

    def merged(
        self, answer: Callable[[], list[Any]], fragments: Sequence[Any], notes: Sequence[str], parts: Sequence[str]
    ) -> list[tuple[str]]:
        """The plan's lines: of each fragment, `parts`, and of the merge, `notes` behind the first."""
        began_s = perf_counter()
        count = len(answer())
        took_s = perf_counter() - began_s
        lines = [notes[0]]
        for position, (partition, seconds, sent, steps) in enumerate(fragments):
            number = position if partition is None else partition
            lines.append(f"Partition {number}: {_count(sent)} sent in {_ms(seconds)}")
            lines += _described(parts, steps)
        lines.append(f"Merge: {_count(count)} in {_ms(took_s)}")
        lines += _described(notes[1:], self._rows_of_steps())
        return [(line,) for line in lines]

    def _rows_of_steps(self) -> list[tuple[Any, ...]]:
        return [(step.estimated, step.found, step.kept, step.seconds, list(step.used)) for step in self._steps]


class _Table:
    """A table for a Search, whose step hears which indexes are asked."""

    def __init__(self, table: Any, step: _Step) -> None:
        self._table = table
        self._step = step
        lookups = getattr(table, "lookups", None)
        self.lookups = None if lookups is None else _Lookups(lookups, step)

    def scan(self) -> Any:
        self._step.used[SCAN] = None
        return self._table.scan()


class _Lookups:
    def __init__(self, lookups: Any, step: _Step) -> None:
        self._lookups = lookups
        self._step = step

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._lookups, name)
        used = self._step.used
        if name in ("matching", "matching_count"):

            def ask_several(conditions: list[tuple[str, Any]]) -> Any:
                used.update((index, None) for index, _ in conditions)
                return found(conditions)

            return ask_several
        if name not in _ASKED:
            return found

        def ask(index: str, *args: Any, **named: Any) -> Any:
            used[index] = None
            return found(index, *args, **named)

        return ask


def _described(notes: Sequence[str], steps: Sequence[Sequence[Any]]) -> list[str]:
    lines = []
    for note, (estimated, found, kept, seconds, used) in zip(notes, steps, strict=True):
        said = [told(used)] if used else []
        if estimated is not None:
            said.append(f"{_count(estimated)} estimated")
        if found is not None:
            said.append(f"{_count(found) if estimated is None else format(found, ',')} found")
        if kept is not None:
            said.append(f"{kept:,} kept")
        if found is not None:
            said.append(_ms(seconds))
        lines.append(f"  {note}{' — ' + ', '.join(said) if said else ''}")
    return lines


def _count(rows: int) -> str:
    return "1 row" if rows == 1 else f"{rows:,} rows"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:,.3f} ms"
