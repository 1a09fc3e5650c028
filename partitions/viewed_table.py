"""A table that views may be over, which follow each change of its rows at once: see partitions.view_source.

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
from partitions.view_build import ViewBuild
from partitions.view_source import MOST_SUM, Maintained, maintenance, too_large
from voltpy.errors import ConstraintViolation, Corruption
from voltpy.schema import Schema
from voltpy.schema import Table as TableSchema
from voltpy.view import View

MOST_PREPARED = 64  # batches that wait for their decision, where one of them changes a table with views
MOST_CHANGE = MOST_SUM // (2 * MOST_PREPARED)  # of a sum, by one of them

_NONE_AWAY: set[Any] = set()


class ViewedTable(Table):
    """`views`: their tables. `build` of others, while it is under way: those follow what is applied.

    `is_decided`: what is put must be taken, whatever becomes of sums.
    """

    __slots__ = ("_contributions", "build", "is_decided", "views")

    def __init__(self, *arguments: Any) -> None:
        self.views: list[Table] = []
        self.build: ViewBuild | None = None
        self.is_decided = False
        self._contributions: list[Callable[[Any], Any]] = []
        super().__init__(*arguments)

    def follow_with(self, views: list[Table], schema: Schema, undo_to: Callable[[int], None], own_key: int) -> None:
        """From now on these views, and no others, follow what is written here. Between batches."""
        self.views = views
        self.maintain, self._contributions = None, []
        if views:
            maintained = _maintained(views, own_key)
            made = maintenance(schema, self.schema, maintained, self._undo, undo_to, self._extreme, self._beyond)
            self.maintain, self._contributions = made
        self._make_accessors()

    def put(self, keys: list[Any], images: list[bytes], deleted: list[Any]) -> None:
        """As of any table; the views follow. Raises DataError and ConstraintViolation for what they can't hold."""
        if self.maintain is None:
            super().put(keys, images, deleted)
            return
        before = self._committed([*keys, *deleted])
        super().put(keys, images, deleted)
        batch: dict[Any, Any] = dict(zip(keys, map(self._decode, images), strict=True))
        batch.update(dict.fromkeys(deleted))
        for (key, row), old in zip(batch.items(), before, strict=True):
            self.maintain(key, old, row, batch)

    def check_changes(self, keys: list[Any], images: list[bytes], deleted: list[Any]) -> None:
        """Puts these changes, to be undone: raises what could keep the views from following them later."""
        if not self.views:
            return
        before = self._committed([*keys, *deleted])
        rows = [*map(self._decode, images), *(None for _ in deleted)]
        for view, contribution in zip(self.views, self._contributions, strict=True):
            changes: dict[Any, list[int]] = {}
            for row, sign in (*((row, 1) for row in rows), *((row, -1) for row in before)):
                of = None if row is None else contribution(row)
                if of is not None:
                    group, arguments = of
                    summed = changes.setdefault(group, [0] * len(arguments))
                    for position, value in enumerate(arguments):
                        if type(value) is int:
                            summed[position] += sign * value
            if _has_sums(view) and any(abs(each) > MOST_CHANGE for summed in changes.values() for each in summed):
                raise ConstraintViolation(
                    f"view {view.name}: across partitions a sum may change by {MOST_CHANGE:,} at once, and no more"
                )
        self.put(keys, images, deleted)

    def new_build(
        self, views: list[Table], schema: Schema, undo_to: Callable[[int], None], own_key: int, most_sum: int
    ) -> ViewBuild:
        """Of these views, which are empty."""
        build = ViewBuild(self._heap, self._decode, views, most_sum, self._extreme_by_index)
        maintained = _maintained(views, own_key)
        build.follow = maintenance(
            schema, self.schema, maintained, self._undo, undo_to, build.extreme_has_left, build.sum_is_beyond
        )
        return build

    def apply(self) -> None:
        build = self.build
        if build is None:
            super().apply()
            return
        images = {key: image for key, image in self._inserted.items() if image is not None}
        changed = list(self._updated)
        images.update(self._updated)
        row_ids = self._places_of(changed)
        olds = map(self._decode, self._heap.read_all(row_ids))
        before = dict(zip(changed, zip(olds, row_ids, strict=True), strict=True))
        super().apply()
        left = [key for key, image in images.items() if image is not None]
        after = dict(zip(left, self._places_of(left), strict=True))
        for key, image in images.items():
            old, was_at = before.get(key, (None, 0))
            build.changed(key, old, was_at, None if image is None else self._decode(image), after.get(key, 0))

    def check(self) -> None:
        """The same for the views: that they are what their SELECT says about the rows here."""
        super().check()
        with _NothingAway(self):
            for view, contribution in zip(self.views, self._contributions, strict=True):
                self._check_view(view, contribution)

    # Inside.

    def _beyond(self, view: TableSchema, column: str, group: Any, before: int | None, total: int) -> int:
        """A sum that may stay beyond: it was decided, or comes nearer to 0 from where a decided one was. Else raises
        ConstraintViolation.
        """
        if abs(total) >= abs(before or 0) and not self.is_decided:
            raise too_large(view, column, total)
        return total

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
        """
        changed = {key: row} if batch is None else batch
        contribution, key_of = self._contributions[number], self._key_of
        view = self.views[number].schema.view
        assert view is not None

        def values(rows: Iterable[Any], but: Container[Any] = ()) -> Iterator[Any]:
            for each in rows:
                of = contribution(each)
                if of is not None and of[0] == group and of[1][argument] is not None and key_of(each) not in but:
                    yield of[1][argument]

        with _NothingAway(self):
            found = self._of_group(view, argument, group, is_max)
            rows, are_in_order = (self.scan(), False) if found is None else found
            committed = islice(values(rows, but=changed), 1 if are_in_order else None)
            coming = values(each for each in changed.values() if each is not None)
            return (max if is_max else min)(chain(committed, coming), default=without)

    def _extreme_by_index(
        self, view: View, contribution: Callable[[Any], Any], argument: int, group: Any, is_max: bool
    ) -> tuple[Any] | None:
        """(the least or largest value of what is committed,) if an index says."""
        with _NothingAway(self):
            found = self._of_group(view, argument, group, is_max)
            if found is None:
                return None
            of = (each for each in map(contribution, found[0]) if each is not None and each[0] == group)
            values = (each[1][argument] for each in of if each[1][argument] is not None)
            return ((max if is_max else min)(islice(values, 1 if found[1] else None), default=None),)

    def _of_group(self, view: View, argument: int, group: Any, is_max: bool) -> tuple[Iterable[Any], bool] | None:
        """Rows among which are all of a group, and whether the first one has the extreme value; None: no index says."""
        if self.lookups is None:
            return None
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
        return None if candidates is None else (candidates, False)

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


class _NothingAway:
    """While it lasts, what is lent counts as it was: that is what groups have of it, until it comes back."""

    __slots__ = ("_away", "_table")

    def __init__(self, table: ViewedTable) -> None:
        self._table = table
        self._away = table._away

    def __enter__(self) -> None:
        self._table._away = _NONE_AWAY

    def __exit__(self, *_: object) -> None:
        self._table._away = self._away


def _maintained(views: list[Table], own_key: int) -> list[Maintained]:
    return [Maintained(view.schema, own_key, view.get, _follow_of(view), view.delete) for view in views]


def _follow_of(view: Table) -> Callable[..., None]:
    assert view.follow is not None  # it is a view
    return view.follow


def _aggregated(kind: str, values: list[Any]) -> Any:
    if kind in ("rows", "count"):
        return len(values)
    if not values:
        return None
    return sum(values) if kind == "sum" else max(values) if kind == "max" else min(values)


def _has_sums(view: Table) -> bool:
    return view.schema.view is not None and any(each.kind == "sum" for each in view.schema.view.kept)
