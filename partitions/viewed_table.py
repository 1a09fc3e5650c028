"""A table that views are over, which follow each change of its rows at once: see partitions.view_source.

Changes that come from elsewhere (`put`: what the coordinator has decided) are followed in the same way, when they are
put: what is prepared does not say what becomes of a group, since other rows of it may change until it is decided. That
must not fail then, so what is prepared is put on trial (`check_changes`), and sums are kept so far from 64 bits that a
few batches can't get them there (see MOST_SUM).

The least or largest value of a group is only looked for when the row that had it goes, or has another one: in an index,
if there is one whose first columns are the view's keys; else among all rows of the table.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator
from itertools import chain, islice
from typing import Any

from partitions.table import Table
from partitions.view_source import MOST_SUM, Maintenance, Of, maintenance
from voltpy.errors import ConstraintViolation, Corruption
from voltpy.schema import Schema
from voltpy.view import View

MOST_PREPARED = 64  # batches that wait for their decision, where one of them changes a table with views
MOST_CHANGE = MOST_SUM // (2 * MOST_PREPARED)  # of a sum, by one of them

_NONE_AWAY: set[Any] = set()


class ViewedTable(Table):
    """`views`: their tables. `is_decided`: what is put must be taken, whatever becomes of sums."""

    __slots__ = ("_follow", "_views_of", "is_decided", "views")

    def follow_with(self, views: list[Table], schema: Schema, undo_to: Callable[[int], None], own_key: int) -> None:
        """From now on these views follow what is written here."""
        self.views = views
        self.is_decided = False

        def follow(some: list[Table]) -> Maintenance:
            of = [Of(view.schema, own_key, view.get, _follow_of(view), view.delete) for view in some]
            return maintenance(schema, self.schema, of, self._undo, undo_to, self._extreme, lambda: self.is_decided)

        self._views_of = follow
        self._follow = follow(views)
        self.maintain = self._follow.maintain
        self._make_accessors()

    def delete(self, key: Any) -> bool:
        """Removes the row with this key; False when there was none."""
        old = self._rows.get(key)
        if old is None:
            old = self._find_row(key)
            if old is None:
                return False
        self._follow.maintain(self._key_of(old), old, None)
        return super().delete(key)

    def put(self, keys: list[Any], images: list[bytes], deleted: list[Any]) -> None:
        """As of any table; the views follow. Raises DataError and ConstraintViolation for what they can't hold."""
        before = self._committed([*keys, *deleted])
        super().put(keys, images, deleted)
        batch: dict[Any, Any] = dict(zip(keys, map(self._decode, images), strict=True))
        batch.update(dict.fromkeys(deleted))
        for (key, row), old in zip(batch.items(), before, strict=True):
            self._follow.maintain(key, old, row, batch)

    def check_changes(self, keys: list[Any], images: list[bytes], deleted: list[Any]) -> None:
        """Puts these changes, to be undone: raises what could keep the views from following them later."""
        before = self._committed([*keys, *deleted])
        rows = [*map(self._decode, images), *(None for _ in deleted)]
        for view, contribution in zip(self.views, self._follow.contributions, strict=True):
            changes: dict[Any, list[int]] = {}
            for row, sign in (*((row, 1) for row in rows), *((row, -1) for row in before)):
                of = None if row is None else contribution(row)
                if of is not None:
                    group, arguments = of
                    summed = changes.setdefault(group, [0] * len(arguments))
                    for position, value in enumerate(arguments):
                        if type(value) is int:
                            summed[position] += sign * value
            if _sums(view) and any(abs(each) > MOST_CHANGE for summed in changes.values() for each in summed):
                raise ConstraintViolation(
                    f"view {view.name}: across partitions a sum may change by {MOST_CHANGE:,} at once, and no more"
                )
        self.put(keys, images, deleted)

    def build(self, views: list[Table], turn_rows: int) -> Iterator[None]:
        """Fills these views, which are empty, from the rows that are here: in turns, each of which is to be applied."""
        maintain = self._views_of(views).maintain
        turn = 0
        for row in self.scan():
            maintain(None, None, row)
            turn += 1
            if turn == turn_rows:
                turn = 0
                yield
        yield

    def check(self) -> None:
        """The same for the views: that they are what their SELECT says about the rows here."""
        super().check()
        away, self._away = self._away, _NONE_AWAY  # what is lent counts as it was
        try:
            for view, contribution in zip(self.views, self._follow.contributions, strict=True):
                self._check_view(view, contribution)
        finally:
            self._away = away

    # Inside.

    def _committed(self, keys: list[Any]) -> list[Any]:
        """The rows with these keys as they are between two batches, lent or not."""
        decode = self._decode
        return [None if image is None else decode(image) for image in self.images_of(keys)]

    def _extreme(
        self,
        number: int,
        argument: int,
        group: Any,
        is_max: bool,
        key: Any,
        row: Any,
        batch: dict[Any, Any] | None,
        without: Any,
    ) -> Any:
        """The least or largest value in a group, once the row with this key (the rows of this batch) is as it will be;
        `without` any.

        What is lent counts as it was: that is what the group has of it, until it comes back.
        """
        changed = {key: row} if batch is None else batch
        contribution, key_of = self._follow.contributions[number], self._key_of
        view = self.views[number].schema.view
        assert view is not None

        def values(rows: Iterable[Any], but: Container[Any] = ()) -> Iterator[Any]:
            for each in rows:
                of = contribution(each)
                if of is not None and of[0] == group and of[1][argument] is not None and key_of(each) not in but:
                    yield of[1][argument]

        away, self._away = self._away, _NONE_AWAY
        try:
            rows, are_in_order = self._of_group(view, argument, group, is_max)
            committed = islice(values(rows, but=changed), 1 if are_in_order else None)
            coming = values(each for each in changed.values() if each is not None)
            return (max if is_max else min)(chain(committed, coming), default=without)
        finally:
            self._away = away

    def _of_group(self, view: View, argument: int, group: Any, is_max: bool) -> tuple[Iterable[Any], bool]:
        """Rows among which are all of a group, and whether the first one has the extreme value."""
        if self.lookups is None:
            return self.scan(), False
        values = group if type(group) is tuple else (group,)
        values = values[len(values) - len(view.keys) :]
        plain = {
            expression.extra: value
            for expression, value in zip(view.keys, values, strict=True)
            if expression.kind == "column"
        }
        wanted = view.arguments[argument]
        if len(plain) == len(values) and None not in values and wanted.kind == "column":
            for index in self.lookups.ready:
                first, last = index.columns[: len(values)], index.columns[len(values) :]
                if index.kind == "BTREE" and set(first) == set(plain) and last[:1] == (wanted.extra,):
                    prefix = tuple(plain[name] for name in first)
                    return self.lookups.range(index.name, prefix=prefix, reverse=is_max), True
        candidates = self.lookups.candidates(plain) if plain else None
        return (self.scan(), False) if candidates is None else (candidates, False)

    def _check_view(self, view: Table, contribution: Callable[[Any], Any]) -> None:
        """Raises Corruption unless the view is what its SELECT says."""
        schema = view.schema
        assert schema.view is not None
        kept, arguments = schema.view.kept, schema.view.arguments
        groups: dict[Any, list[tuple[Any, ...]]] = {}
        for row in self.scan():
            of = contribution(row)
            if of is not None:
                groups.setdefault(of[0], []).append(of[1])
        for row in view.scan():
            group = view._key_of(row)
            rows = groups.pop(group, [])
            for each in kept:
                values: list[Any] = [None] * len(rows)
                if each.argument is not None:
                    position = arguments.index(each.argument)
                    values = [of_row[position] for of_row in rows if of_row[position] is not None]
                found, expected = getattr(row, each.column), _aggregated(each.kind, values)
                if found != expected or not rows:
                    raise Corruption(
                        f"view {view.name}, group {group!r:.100}: {each.column} is {found!r:.60}, and its {len(rows)} "
                        f"rows make {expected!r:.60}"
                    )
        if groups:
            raise Corruption(f"view {view.name}: groups that it lacks: {list(groups)[:5]!r:.200}")


def _follow_of(view: Table) -> Callable[..., None]:
    assert view.follow is not None  # it is a view
    return view.follow


def _aggregated(kind: str, values: list[Any]) -> Any:
    if kind in ("rows", "count"):
        return len(values)
    if not values:
        return None
    return sum(values) if kind == "sum" else max(values) if kind == "max" else min(values)


def _sums(view: Table) -> bool:
    return view.schema.view is not None and any(each.kind == "sum" for each in view.schema.view.kept)
