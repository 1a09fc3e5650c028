"""Views of a table that has rows, filled from them: those ahead page by page, while calls go on and change the rows;
those behind at once, at a recovery's end. See partitions.store.Store for what comes before and behind that.

What has been counted are the rows on the pages that were read, as with an index that is being built. When a batch is
applied, a row that it has changed leaves its group if it stood on such a page, and enters one if it stands on one now;
the other pages are read later. So no row is counted twice or missed, wherever it moves.

    maintain(None, None, row)     a row of a page that is read
    changed                       a row that a batch has changed, once the batch is in the WAL and on the pages
    end                           from here on the views can follow as the table's others do

What a view can't hold fails the build and not the batch, which has been decided.

Two things are left for the end. Where a row leaves a group whose least or largest value it has, the next one is looked
for then, when all rows are counted: in an index, or for all such groups at once in one pass over the rows. And
sums depend on the order in which rows come: one that is too large meanwhile may be small in the end, and is made anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from operator import add
from typing import Any

import msgspec

from partitions.heap import Heap
from partitions.table import Table
from partitions.view_source import MOST_SUM, Contribution, Maintenance, too_large
from voltpy.errors import Error
from voltpy.schema import Table as TableSchema
from voltpy.view import Expression, View

FEW_GROUPS = 1000  # so many are looked for in an index, and not by a pass over all rows

# What a sum has come to by calls, and decided batches have brought beyond: see partitions.viewed_table.
MOST_SUM_EVER = MOST_SUM + MOST_SUM // 2

_COMBINED: dict[str, Callable[[Any, Any], Any]] = {"sum": add, "min": min, "max": max}


class ViewBuild:
    """`follow` is to be set first. `most_sum`: what one may be at the end. `failed`: it has, and must be given up."""

    follow: Maintenance

    def __init__(
        self,
        heap: Heap,
        decode: Callable[[bytes], Any],
        views: list[Table],
        most_sum: int,
        extreme_by_index: Callable[[View, Contribution, int, Any, bool], tuple[Any] | None],
    ) -> None:
        """`heap`: of the table; `views`: theirs, empty. `extreme_by_index(view, its contribution, argument, group,
        is_max)`: (what it finds,), or None where no index says.
        """
        self.views = views
        self.pages_read = 0
        self.failed: Error | None = None
        self._heap = heap
        self._decode = decode
        self._most_sum = most_sum
        self._extreme_by_index = extreme_by_index
        # Groups, by view: with a sum that has been too large, with an extreme that has left.
        self._beyond: dict[str, set[Any]] = {view.name: set() for view in views}
        self._headless: dict[str, set[Any]] = {view.name: set() for view in views}

    def read_pages(self, pages: int) -> bool:
        """Counts the rows of the next pages, between batches. Whether there are more."""
        heap, maintain, decode = self._heap, self.follow.maintain, self._decode
        first, end = self.pages_read, min(self.pages_read + pages, heap.page_numbers)
        for page in range(first, end):
            for _, image in heap.rows_of_page(page):
                maintain(None, None, decode(image))
        self.pages_read = end
        return end < heap.page_numbers

    def read_all(self, turn_rows: int) -> Iterator[None]:
        """Counts all rows, while none of them changes: in turns, each of which is to be applied."""
        turn = 0
        for image in self._heap.scan():
            self.follow.maintain(None, None, self._decode(image))
            turn += 1
            if turn == turn_rows:
                turn = 0
                yield
        self.end()
        yield

    def changed(self, key: Any, old: Any, was_at: int, row: Any, is_at: int) -> None:
        """A row is another one now, and perhaps elsewhere; `old`, `row` None: there was none, there is none."""
        until = self.pages_read << self._heap.slot_bits
        if self.failed is not None:
            return
        try:
            if old is not None and was_at >= until:
                old = None
            if row is not None and is_at >= until:
                row = None
            if old is not None or row is not None:
                self.follow.maintain(key, old, row)
        except Error as error:
            self.failed = error

    def end(self) -> None:
        """All pages have been read. Raises ConstraintViolation for a sum that is too large."""
        for view, contribution in zip(self.views, self.follow.contributions, strict=True):
            beyond, headless = self._beyond[view.name], self._headless[view.name]
            if beyond or len(headless) > FEW_GROUPS or not self._find_heads(view, contribution, headless):
                self._make_anew(view, contribution, beyond | headless)

    def sum_is_beyond(self, view: TableSchema, column: str, group: Any, before: int | None, total: int) -> int:
        """What to write in place of a sum that is too large: anything will do until `end`."""
        self._beyond[view.name].add(group)
        return 0

    def extreme_has_left(
        self, number: int, argument: int, group: Any, is_max: bool, key: Any, row: Any, batch: Any, without: Any
    ) -> Any:
        """The same in place of a least or largest value whose row leaves. `number`: of the view, among these."""
        self._headless[self.views[number].name].add(group)
        return without

    def _find_heads(self, view: Table, contribution: Contribution, groups: set[Any]) -> bool:
        """Whether an index says what the extremes of these groups are; then that is what they are."""
        of_view, arguments = _of(view)
        for group in groups:
            changes: dict[str, Any] = {}
            for each in of_view.kept:
                if each.kind in ("min", "max") and each.argument is not None:
                    argument = arguments[each.argument]
                    found = self._extreme_by_index(of_view, contribution, argument, group, each.kind == "max")
                    if found is None:
                        return False
                    changes[each.column] = found[0]
            _rewrite(view, group, changes)
        return True

    def _make_anew(self, view: Table, contribution: Contribution, groups: set[Any]) -> None:
        """All sums and extremes of these groups, by a pass over all rows."""
        of_view, arguments = _of(view)
        made = [
            (each.column, _COMBINED[each.kind], arguments[each.argument])
            for each in of_view.kept
            if each.kind in _COMBINED and each.argument is not None
        ]
        values: dict[Any, dict[str, Any]] = {group: {} for group in groups}
        for image in self._heap.scan():
            of = contribution(self._decode(image))
            if of is None or of[0] not in values:
                continue
            columns = values[of[0]]
            for column, combined, argument in made:
                value, before = of[1][argument], columns.get(column)
                if value is not None:
                    columns[column] = value if before is None else combined(before, value)
        for group, columns in values.items():
            for column, combined, _ in made:
                total = columns.setdefault(column, None)
                if combined is add and total is not None and abs(total) > self._most_sum:
                    raise too_large(view.schema, column, total)
            _rewrite(view, group, columns)


def _of(view: Table) -> tuple[View, dict[Expression, int]]:
    """What the table is a view of, and where the values of its aggregates' arguments are in what a row contributes."""
    of_view = view.schema.view
    assert of_view is not None
    return of_view, {argument: position for position, argument in enumerate(of_view.arguments)}


def _rewrite(view: Table, group: Any, changes: dict[str, Any]) -> None:
    row = view.get(group)
    if row is not None:  # else the group is gone
        columns = dict(zip(view.schema.positions, msgspec.structs.astuple(row), strict=True))
        assert view.follow is not None
        view.follow(group, row, *(columns | changes).values())
