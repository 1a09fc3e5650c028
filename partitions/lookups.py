"""The secondary indexes of one table, as the running transaction sees them.

The indexes know what is committed, row id by row id; `Table.apply` changes them when a batch is in the WAL. What the
batch has changed until then is laid over their answers, so that a transaction reads its own writes, and those before
it in the batch:

    _gone      row ids of committed rows that the batch has changed or deleted: they are taken out of every answer
    _current   key → row as it is now, None where it is deleted, of every row that the batch has changed
    _fresh     of each index, its key → the keys of rows in `_current` that are under it

All of it is brought up to date when it is first needed after a change (`_catch_up`): the undo log says which keys have
changed since, and `restored` which were put back. So a batch that asks no index pays nothing for this, until `apply`.

    find       the rows with these values                              count       how many
    range      … between two bounds, or that begin with a text, in the order of a BTREE index
    matching   the rows that meet several conditions, as `Found`       matching_count

Rows that are found stand on pages all over the heap. Cold ones are missed together; if they are many they are read past
the frames (as in `Table.range`). While any key of the table is away every look-up waits: see partitions.table.

An index that is added to a table with rows is built page by page between batches. Until it is ready it follows changes
of rows on those pages that it has seen, and is asked by nobody.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice, takewhile
from pathlib import Path
from typing import Any, TypeAlias

from pyroaring import BitMap

from partitions.heap import Heap
from partitions.index_image import read_image
from partitions.index_key import Key, UnfitValue
from partitions.page import page_id
from partitions.posting_list import ROW_ID_BITS, Posting, as_bitmap, common, common_count, size, sorted_ids
from partitions.secondary_index import SecondaryIndex
from partitions.unique_indexes import UniqueIndexes
from voltpy.errors import Corruption, ReadOnly, SchemaError
from voltpy.not_here import WHOLE_TABLE
from voltpy.schema import Index

Condition: TypeAlias = "tuple[str, tuple[Any, ...]]"  # an index's name, and the values of its columns

RANGE_PAGES = 64  # a look-up whose cold pages are more is read past the frames
FIRST_ROWS, MOST_ROWS = 64, 1024  # of a range that are read at a time
FEW_ROWS = 32  # so many are looked through rather than made fewer by another index
BUILD_PAGES = 16  # of a step at building indexes while nobody waits
BESIDE_PAGES = 2  # … and beside calls, each of which may have to wait for a step: 1.3 ms where rows are small
# A checkpoint writes the image anew when so large a share of the pages has changed since, and some more.
IMAGE_SHARE, FEW_PAGES = 8, 64


class _Fresh:
    """What the batch has changed, in one index: `keys`, and in their order where the index has one."""

    __slots__ = ("in_order", "keys")

    def __init__(self, ordered: bool) -> None:
        self.keys: dict[Key | None, dict[Any, None]] = {}  # a dict is a set with an order
        self.in_order: list[Any] | None = [] if ordered else None

    def add(self, key: Key | None, primary: Any) -> None:
        if key in self.keys:
            self.keys[key][primary] = None
            return
        self.keys[key] = {primary: None}
        if self.in_order is not None and key is not None:
            insort(self.in_order, key)

    def discard(self, key: Key | None, primary: Any) -> None:
        primaries = self.keys[key]
        del primaries[primary]
        if not primaries:
            del self.keys[key]
            if self.in_order is not None and key is not None:
                del self.in_order[bisect_left(self.in_order, key)]

    def between(self, lowest: Any, highest: Any, low_excluded: bool, high_excluded: bool) -> list[Any]:
        keys = self.in_order or []
        first = 0 if lowest is None else (bisect_right if low_excluded else bisect_left)(keys, lowest)
        last = len(keys) if highest is None else (bisect_left if high_excluded else bisect_right)(keys, highest)
        return keys[first:last]


class Found:
    """Rows that were found and not read yet: committed ones by row id, those of this batch by key.

    `&`, `|` and `-` combine them, of one table and one moment; `len` counts; `rows` reads.
    """

    __slots__ = ("_ids", "_keys", "_lookups")

    def __init__(self, lookups: Lookups, ids: BitMap, keys: Iterable[Any]) -> None:
        self._lookups = lookups
        self._ids = ids  # may be an index's own: not to be changed
        self._keys = frozenset(keys)

    def __len__(self) -> int:
        return len(self._ids) + len(self._keys)

    def __and__(self, other: Found) -> Found:
        return Found(self._lookups, self._ids & other._ids, self._keys & other._keys)

    def __or__(self, other: Found) -> Found:
        return Found(self._lookups, self._ids | other._ids, self._keys | other._keys)

    def __sub__(self, other: Found) -> Found:
        return Found(self._lookups, self._ids - other._ids, self._keys - other._keys)

    def rows(self) -> list[Any]:
        """All of them, in the order of their pages."""
        lookups = self._lookups
        return lookups._read(list(self._ids)) + [lookups._current[key] for key in sorted(self._keys)]

    def some(self, count: int = FIRST_ROWS) -> Iterator[Any]:
        """The same for whoever may not want all: first `count` at a time, then more. To be read before anything else
        is written.
        """
        lookups, ids = self._lookups, iter(self._ids)
        while some := list(islice(ids, count)):
            yield from lookups._read(some)
            count = min(2 * count, MOST_ROWS)
        for key in sorted(self._keys):
            yield lookups._current[key]


class Lookups:
    """`indexes` by name, those that are being built among them; `unique`: of those that are ready, the unique ones.

    `table`: the partitions.table.Table.
    """

    __slots__ = (
        "_current",
        "_fresh",
        "_gone",
        "_heap",
        "_image",
        "_misses",
        "_places",
        "_seen",
        "_stale",
        "_table",
        "_undo",
        "indexes",
        "ready",
        "stale_pages",
        "unique",
    )

    def __init__(self, table: Any, indexes: Iterable[Index]) -> None:
        self._table = table
        self._heap: Heap = table._heap
        self._misses = table._misses
        self._undo: list[Any] = table._undo
        self.indexes: dict[str, SecondaryIndex] = {index.name: SecondaryIndex(table.schema, index) for index in indexes}
        self._current: dict[Any, Any] = {}
        self._gone = BitMap()
        self._places: dict[Any, list[tuple[_Fresh, Key | None]]] = {}  # where a key of `_current` is in `_fresh`
        self._seen = 0  # entries of the undo log
        self._image: Path | None = None
        # The pages that have changed since the image was made, up to the last checkpoint's beginning; None: no image.
        self.stale_pages: BitMap | None = None
        self._stale: set[Any] = set()  # keys that were put back since
        self._fresh: dict[str, _Fresh] = {}
        self.unique = UniqueIndexes(table, self._read)
        self.ready: tuple[Index, ...] = ()  # those that can be asked; another tuple whenever they are others
        self._list_ready()

    # Looking up.

    def find(self, index: str, values: tuple[Any, ...]) -> list[Any]:
        """The rows whose indexed columns have these values, all of them given; None finds NULL.

        Raises SchemaError when there is no such index; UnfitValue, a TypeError, for what is no value of the column.
        """
        self._catch_up()
        found = self._ready(index)
        return self._rows_of(found, found.format.of_values(values))

    def found(self, index: str, values: tuple[Any, ...]) -> Found:
        """The same, not read yet."""
        self._catch_up()
        found = self._ready(index)
        key = found.format.of_values(values)
        return self._without_gone(as_bitmap(found.posting(key)), self._fresh[index].keys.get(key, ()))

    def found_any(self, index: str, several: list[tuple[Any, ...]]) -> Found:
        """The rows with any of these values."""
        self._catch_up()
        ready, fresh = self._ready(index), self._fresh[index].keys
        keys = [ready.format.of_values(values) for values in several]
        ids = BitMap.union(BitMap(), *[as_bitmap(ready.posting(key)) for key in keys])
        return self._without_gone(ids, [primary for key in keys for primary in fresh.get(key, ())])

    def count(self, index: str, values: tuple[Any, ...]) -> int:
        """How many rows have these values. Reads none."""
        self._catch_up()
        found = self._ready(index)
        key = found.format.of_values(values)
        posting = found.posting(key)
        gone = as_bitmap(posting).intersection_cardinality(self._gone) if self._gone else 0
        return size(posting) - gone + len(self._fresh[index].keys.get(key, ()))

    def matching(self, conditions: list[Condition]) -> Found:
        """The rows that meet every condition, by an index each: posting lists intersected, the smallest first."""
        self._catch_up()
        return self._matching(self._keys_of(conditions))

    def matching_count(self, conditions: list[Condition]) -> int:
        """How many rows meet every condition. Reads none."""
        self._catch_up()
        pairs = self._keys_of(conditions)
        if self._current:
            return len(self._matching(pairs))
        postings = [index.posting(key) for index, key in pairs]
        return 0 if None in postings else common_count(p for p in postings if p is not None)

    def range(
        self,
        index: str,
        low: Any = None,
        high: Any = None,
        *,
        prefix: tuple[Any, ...] = (),
        low_included: bool = True,
        high_included: bool = True,
        begins: str | None = None,
        reverse: bool = False,
        limit: int | None = None,
    ) -> Iterator[Any]:
        """The rows in the order of a BTREE index, as they were when the range began; at most `limit`.

        Of those whose first columns are as `prefix` says, the ones whose next column is between the bounds (None: no
        bound there), or a STRING that begins with the text `begins`. NULL is in no range with a bound or a text;
        without any it is behind all values, or before them in reverse.
        """
        self._catch_up()
        ordered = self._ordered(index)
        bounds, with_nulls = _bounds(ordered, prefix, low, high, low_included, high_included, begins)
        return self._in_order(ordered, bounds, with_nulls, reverse, limit)

    def between(self, columns: tuple[str, ...], low: Any, high: Any) -> Iterator[Any] | None:
        """The rows with low <= these columns < high in their order, by a BTREE index on them; None without one.

        The bounds are values of the column, or tuples where there are several.
        """
        for index in self.indexes.values():
            if index.ordered and index.format.columns == columns and index.built_pages is None:
                self._catch_up()
                several = len(columns) > 1
                lowest, highest = (index.format.of_values(end if several else (end,)) for end in (low, high))
                bounds = (lowest, highest, False, True)
                return self._in_order(index, bounds, with_nulls=False, reverse=False, limit=None)
        return None

    def found_between(
        self,
        index: str,
        low: Any = None,
        high: Any = None,
        *,
        prefix: tuple[Any, ...] = (),
        low_included: bool = True,
        high_included: bool = True,
        begins: str | None = None,
    ) -> Found:
        """The rows of a `range`, to be counted or combined with others. It costs 0.1 µs a row."""
        self._catch_up()
        ordered = self._ordered(index)
        bounds, with_nulls = _bounds(ordered, prefix, low, high, low_included, high_included, begins)
        ids, keys = BitMap(), list[Any]()
        fresh = self._fresh[index]
        if bounds is not None:
            ids = ordered.row_set(list(ordered.entries(*bounds)))
            keys = [primary for key in fresh.between(*bounds) for primary in fresh.keys[key]]
        if with_nulls:
            ids |= as_bitmap(ordered.nulls)
            keys += fresh.keys.get(None, ())
        return self._without_gone(ids, keys)

    def estimate(self, index: str, values: tuple[Any, ...] | None = None) -> int:
        """About how many rows have these values, or a value at all: what is committed."""
        known = self._ready(index)
        return known.rows if values is None else size(known.posting(known.format.of_values(values)))

    def average(self, index: str) -> int:
        """About how many rows have any one value: what is committed, NULL aside."""
        known = self._ready(index)
        return round((known.rows - size(known.nulls)) / known.keys) if known.keys else 0

    def estimate_between(
        self,
        index: str,
        low: Any = None,
        high: Any = None,
        *,
        prefix: tuple[Any, ...] = (),
        low_included: bool = True,
        high_included: bool = True,
        begins: str | None = None,
    ) -> int:
        """About how many rows are in a `range`."""
        ordered = self._ordered(index)
        bounds, with_nulls = _bounds(ordered, prefix, low, high, low_included, high_included, begins)
        nulls = size(ordered.nulls)
        count = nulls if with_nulls else 0
        if bounds is not None and ordered.keys:
            keys = ordered.keys if bounds[0] is bounds[1] is None else ordered.key_count(*bounds)
            count += keys * (ordered.rows - nulls) // ordered.keys
        return count

    def candidates(self, equalities: dict[str, Any]) -> list[Any] | None:
        """Rows among which are all that have these values in these columns; None when no index helps.

        By the index with the fewest rows, and by all that fit where those are many.
        """
        fitting: list[tuple[SecondaryIndex, Key | None]] = []
        beginning: tuple[str, tuple[Any, ...]] | None = None
        for name, index in self.indexes.items():
            columns = index.format.columns
            values = [equalities[column] for column in columns if column in equalities]
            if index.built_pages is not None or not values:
                continue
            try:
                if len(values) == len(columns):
                    fitting.append((index, index.format.of_values(tuple(values))))
                elif index.ordered and columns[0] in equalities:
                    prefix = tuple(equalities[name] for name in takewhile(equalities.__contains__, columns))
                    index.format.bounds(prefix, None, None, True, True)
                    if beginning is None or len(prefix) > len(beginning[1]):
                        beginning = name, prefix
            except UnfitValue:
                continue
        if not fitting:
            return None if beginning is None else list(self.range(beginning[0], prefix=beginning[1]))
        self._catch_up()
        if len(fitting) > 1:
            fitting.sort(key=lambda pair: size(pair[0].posting(pair[1])))
            if size(fitting[0][0].posting(fitting[0][1])) > FEW_ROWS:
                return self._matching(fitting).rows()
        return self._rows_of(*fitting[0])

    # What the batch has changed.

    def restored(self, primary: Any, row: Any) -> None:
        """A row is as it was before a transaction; None: there was none."""
        if primary in self._current:
            self._stale.add(primary)
        self.unique.restored(primary, row)

    def undone_to(self, mark: int) -> None:
        """The undo log was shortened to so many entries."""
        self._seen = min(self._seen, mark)

    def forget_changes(self) -> None:
        """The batch is over: its changes are committed, or undone."""
        self._seen = 0
        self.unique.forget_claims()
        if self._current:
            self._current.clear()
            self._places.clear()
            self._stale.clear()
            self._gone = BitMap()
            self._fresh = {name: _Fresh(index.ordered) for name, index in self.indexes.items()}

    def _catch_up(self) -> None:
        """Lays over the indexes what has changed since the last time. Raises NotHere while a key is away."""
        if self._table._away:
            self._misses.raise_for((self._table.number, WHOLE_TABLE))
        undo, seen = self._undo, self._seen
        if seen == len(undo) and not self._stale:
            return
        table = self._table
        changed = dict.fromkeys(key for owner, key, _ in islice(undo, seen, None) if owner is table)
        changed.update(dict.fromkeys(self._stale))
        for primary in changed:
            self._lay_over(primary)
        self._stale.clear()
        self._seen = len(undo)

    def _lay_over(self, primary: Any) -> None:
        table = self._table
        if primary in table._inserted:
            image = table._inserted[primary]
        else:
            image = table._updated[primary]
            if primary not in self._current:
                self._gone.add(table._locate(primary))
        row = None if image is None else table._rows.get(primary) or table._decode(image)
        for fresh, key in self._places.pop(primary, ()):
            fresh.discard(key, primary)
        self._current[primary] = row
        if row is not None:
            places = self._places[primary] = [
                (self._fresh[name], index.of_row(row)) for name, index in self.indexes.items()
            ]
            for fresh, key in places:
                fresh.add(key, primary)

    # Commits: what partitions.table calls from `apply`.

    def remove(self, row_ids: list[int]) -> None:
        """These rows are about to be deleted."""
        rows = self.read_committed(row_ids)
        for index in self._kept:
            ids = row_ids
            keys = list(map(index.of_row, rows))
            if index.built_pages is not None:
                keys, ids = self._seen_pages(index, keys, ids)
            index.remove(keys, ids)

    def add(self, row_ids: list[int], images: list[bytes]) -> None:
        """These rows are new."""
        rows = list(map(self._table._decode, images)) if self._kept else []
        for index in self._kept:
            ids = row_ids
            keys = list(map(index.of_row, rows))
            if index.built_pages is not None:
                keys, ids = self._seen_pages(index, keys, ids)
            index.add(keys, ids)

    def read_committed(self, row_ids: list[int]) -> list[Any]:
        """The rows as they are on their pages, which are in memory."""
        return list(map(self._table._decode, self._heap.read_all(row_ids))) if self._kept else []

    def replace(self, olds: list[Any], old_ids: list[int], images: list[bytes], row_ids: list[int]) -> None:
        """These rows were changed, and may have moved."""
        rows = list(map(self._table._decode, images)) if self._kept else []
        for index in self._kept:
            values_of, of_row = index.format.values_of, index.of_row
            if old_ids == row_ids and list(map(values_of, olds)) == list(map(values_of, rows)):
                continue  # as after most updates
            changed = [
                position
                for position, (old, row, old_id, row_id) in enumerate(zip(olds, rows, old_ids, row_ids, strict=True))
                if old_id != row_id or values_of(old) != values_of(row)
            ]
            if not changed:
                continue
            gone = [of_row(olds[p]) for p in changed], [old_ids[p] for p in changed]
            come = [of_row(rows[p]) for p in changed], [row_ids[p] for p in changed]
            if index.built_pages is not None:
                gone, come = self._seen_pages(index, *gone), self._seen_pages(index, *come)
            index.remove(*gone)
            index.add(*come)

    @property
    def _kept(self) -> list[SecondaryIndex]:
        """The indexes that have seen a page, or all."""
        return [index for index in self.indexes.values() if index.built_pages != 0]

    def _seen_pages(
        self, index: SecondaryIndex, keys: list[Key | None], row_ids: list[int]
    ) -> tuple[list[Key | None], list[int]]:
        """Those on pages that the index, which is being built, has seen; the others it will see."""
        until = (index.built_pages or 0) << self._heap.slot_bits
        pairs = [(key, row_id) for key, row_id in zip(keys, row_ids, strict=True) if row_id < until]
        return [key for key, _ in pairs], [row_id for _, row_id in pairs]

    # Building.

    def add_index(self, schema: Index, may_end: Callable[[], bool]) -> Iterator[None]:
        """Builds another index: each step some pages, between batches. Raises DuplicateKey at its end.

        It ends when it has seen all pages and `may_end`.
        """
        index = SecondaryIndex(self._table.schema, schema)
        index.built_pages = 0
        self.indexes[schema.name] = index
        self.stale_pages = None  # the image lacks it
        self._list_ready()
        return self.build([index], may_end, BESIDE_PAGES)

    def drop_index(self, name: str) -> None:
        """Between batches."""
        self.indexes.pop(name, None)
        self._list_ready()

    def fall_behind(self, image: Path | None = None, stale_pages: BitMap | None = None) -> None:
        """The table was loaded, and the indexes know nothing of it until `catch_up` or `rebuild`."""
        self.indexes = {name: SecondaryIndex(self._table.schema, index.schema) for name, index in self.indexes.items()}
        for index in self.indexes.values():
            index.built_pages = 0
        self._image, self.stale_pages = image, stale_pages
        self._list_ready()

    def catch_up(self, partition: int, bring: Callable[[list[int]], None]) -> None:
        """Takes the indexes from the image, if there is one. The table is as the checkpoint left it.

        `bring` brings pages of the table into memory. Raises Corruption for an image that is damaged, and
        FileNotFoundError where it was left out; then nothing has happened.
        """
        path, self._image = self._image, None
        if path is None or self.stale_pages is None:
            self.fall_behind()  # also where nothing is loaded: a new unique index may not suit what the WAL holds
            return
        heap, table = self._heap, self._table
        bits, stale = heap.slot_bits, self.stale_pages
        gone = BitMap()
        for page in stale:
            gone.add_range(page << bits, (page + 1) << bits)
        wanted = [index.schema for index in self.indexes.values()]
        loaded = read_image(path, partition, table.number, table.schema, wanted, gone)
        pages = [page for page in stale if page < heap.page_numbers]
        for start in range(0, len(pages), RANGE_PAGES):
            some = pages[start : start + RANGE_PAGES]
            bring(some)
            self._add_pages(loaded, some)
        for index in loaded:
            if index.rows != heap.rows:
                raise Corruption(f"{path}: index {index.schema.name} has {index.rows} rows, the table {heap.rows}")
        self.indexes |= {index.schema.name: index for index in loaded}
        self._list_ready()

    @property
    def needs_image(self) -> bool:
        """Whether a checkpoint should write the indexes anew: a start would read too many pages, or has no image."""
        if any(index.built_pages is not None for index in self.indexes.values()):
            return False
        stale, pages = self.stale_pages, self._heap.page_numbers
        return stale is None or len(stale) * IMAGE_SHARE > pages + FEW_PAGES

    def rebuild(self) -> Iterator[None]:
        """Builds the indexes that have seen no page, in steps."""
        behind = [index for index in self.indexes.values() if index.built_pages == 0]
        if behind:
            self.stale_pages = None  # the image lacks them
        return self.build(behind)

    def build(
        self, indexes: list[SecondaryIndex], may_end: Callable[[], bool] = lambda: True, pages: int = BUILD_PAGES
    ) -> Iterator[None]:
        """Reads the pages in the order of their numbers, for indexes that have seen none."""
        heap, page = self._heap, 0 if indexes else self._heap.page_numbers
        while page < heap.page_numbers or not may_end():
            first, page = page, min(page + pages, heap.page_numbers)
            self._add_pages(indexes, range(first, page))
            for index in indexes:
                index.built_pages = page
            yield
        for index in indexes:
            if index.schema.unique:
                self._refuse_duplicates(index)
            index.built_pages = None
        self._list_ready()

    def _add_pages(self, indexes: list[SecondaryIndex], pages: Iterable[int]) -> None:
        found = [pair for page in pages for pair in self._heap.rows_of_page(page)]
        row_ids = [row_id for row_id, _ in found]
        rows = [self._table._decode(image) for _, image in found]
        for index in indexes:
            index.add(list(map(index.of_row, rows)), row_ids)

    def _refuse_duplicates(self, index: SecondaryIndex) -> None:
        for _, posting in index.duplicates():
            row = self._row_past(posting)
            if not index.format.has_null(row):
                raise self.unique.duplicate(index, row)

    def _row_past(self, posting: Posting) -> Any:
        """One of these rows, between batches."""
        return self._table._decode(self._heap.read_past(sorted_ids(posting)[0], {}))

    def _list_ready(self) -> None:
        ready = [index for index in self.indexes.values() if index.built_pages is None]
        self.ready = tuple(index.schema for index in ready)
        self.unique.use([index for index in ready if index.schema.unique])
        self._fresh = {name: _Fresh(index.ordered) for name, index in self.indexes.items()}

    @property
    def table_number(self) -> int:
        number: int = self._table.number
        return number

    @property
    def bytes(self) -> int:
        """About what the indexes take in memory, at most."""
        return sum(index.bytes for index in self.indexes.values())

    def make_sure_of_row_ids(self, pages: int) -> None:
        """Raises ReadOnly when so many more pages would have row ids of more bits than a posting list has."""
        most = 1 << ROW_ID_BITS - self._heap.slot_bits
        if self._heap.page_numbers + pages > most:
            raise ReadOnly(f"table {self._table.name}: with indexes it can't have more than {most:,} pages")

    def check(self) -> None:
        """Raises Corruption unless every index that is ready names the rows of the heap, under their values."""
        ready = [index for index in self.indexes.values() if index.built_pages is None]
        expected: list[dict[Key | None, set[int]]] = [{} for _ in ready]
        for page in range(self._heap.page_numbers):
            for row_id, image in self._heap.rows_of_page(page):
                row = self._table._decode(image)
                for index, rows in zip(ready, expected, strict=True):
                    rows.setdefault(index.of_row(row), set()).add(row_id)
        for index, rows in zip(ready, expected, strict=True):
            index.check()
            where = f"table {self._table.name}, index {index.schema.name}"
            for key, posting in index.items():
                if rows.pop(key, None) != set(sorted_ids(posting)):
                    raise Corruption(f"{where}: other rows than the heap's under {key!r:.50}")
            if rows:
                raise Corruption(f"{where}: keys of rows that it lacks: {list(rows)[:3]!r:.100}")
            if index.schema.unique:
                for _, posting in index.duplicates():
                    if not index.format.has_null(self._row_past(posting)):
                        raise Corruption(f"{where}: it is unique, and rows {sorted_ids(posting)} are equal")

    # Inside.

    def _rows_of(self, index: SecondaryIndex, key: Key | None) -> list[Any]:
        posting = index.posting(key)
        rows = []
        if posting is not None:
            ids = sorted_ids(posting)
            if self._gone:
                gone = self._gone
                ids = [row_id for row_id in ids if row_id not in gone]
            rows = self._read(ids)
        fresh = self._fresh[index.schema.name].keys
        if key in fresh:
            rows += [self._current[primary] for primary in fresh[key]]
        return rows

    def _ready(self, name: str) -> SecondaryIndex:
        index = self.indexes.get(name)
        if index is None or index.built_pages is not None:
            raise SchemaError(
                f"table {self._table.name}: index {name} "
                + ("does not exist" if index is None else "is still being built")
            )
        return index

    def _ordered(self, name: str) -> SecondaryIndex:
        index = self._ready(name)
        if not index.ordered:
            raise SchemaError(f"table {self._table.name}: index {name} has no order: it is not BTREE")
        return index

    def _keys_of(self, conditions: list[Condition]) -> list[tuple[SecondaryIndex, Key | None]]:
        indexes = [(self._ready(name), values) for name, values in conditions]
        return [(index, index.format.of_values(values)) for index, values in indexes]

    def _matching(self, pairs: list[tuple[SecondaryIndex, Key | None]]) -> Found:
        postings = [index.posting(key) for index, key in pairs]
        ids = BitMap() if None in postings else common(p for p in postings if p is not None)
        if not self._current:
            return Found(self, ids, ())
        fresh = [frozenset(self._fresh[index.schema.name].keys.get(key, ())) for index, key in pairs]
        return self._without_gone(ids, frozenset.intersection(*fresh))

    def _without_gone(self, ids: BitMap, keys: Iterable[Any]) -> Found:
        return Found(self, ids - self._gone if self._gone else ids, keys)

    def _in_order(
        self,
        index: SecondaryIndex,
        bounds: tuple[Any, Any, bool, bool] | None,
        with_nulls: bool,
        reverse: bool,
        limit: int | None,
    ) -> Iterator[Any]:
        """Rows in the order of the index; NULL last. What may change while they are read is copied before."""
        gone = self._gone.copy()
        fresh, current = self._fresh[index.schema.name], self._current
        changed: list[tuple[Any, list[Any]]] = []
        if bounds is not None and fresh.in_order:
            changed = [(key, [current[primary] for primary in fresh.keys[key]]) for key in fresh.between(*bounds)]
            if reverse:
                changed.reverse()
        nulls: Iterable[Any] = ()
        if with_nulls:
            changed_nulls = [current[primary] for primary in fresh.keys.get(None, ())]
            nulls = chain((row_id for row_id in as_bitmap(index.nulls) if row_id not in gone), changed_nulls)
        if not (reverse or gone or changed):
            return self._unchanged(index, bounds, nulls, limit)
        merged = self._merged(index, bounds, gone, changed, nulls, reverse)
        if limit is not None and limit <= MOST_ROWS:
            return self._read_some(islice(merged, limit), max(limit, 1))
        return self._read_some(islice(merged, limit), FIRST_ROWS)

    def _merged(
        self,
        index: SecondaryIndex,
        bounds: tuple[Any, Any, bool, bool] | None,
        gone: Any,
        changed: list[tuple[Any, list[Any]]],
        nulls: Iterable[Any],
        reverse: bool,
    ) -> Iterator[Any]:
        """Row ids of committed rows, and rows of this batch, in order."""
        if reverse:
            yield from nulls
        if bounds is not None:
            lowest, highest, low_excluded, high_excluded = bounds
            position = 0
            for key, posting in index.postings(
                lowest, highest, low_excluded=low_excluded, high_excluded=high_excluded, reverse=reverse
            ):
                while position < len(changed) and (
                    changed[position][0] > key if reverse else changed[position][0] < key
                ):
                    yield from changed[position][1]
                    position += 1
                if isinstance(posting, int):
                    if posting not in gone:
                        yield posting
                else:
                    for row_id in sorted_ids(posting):
                        if row_id not in gone:
                            yield row_id
            for _, rows in changed[position:]:
                yield from rows
        if not reverse:
            yield from nulls

    def _unchanged(
        self,
        index: SecondaryIndex,
        bounds: tuple[Any, Any, bool, bool] | None,
        nulls: Iterable[Any],
        limit: int | None,
    ) -> Iterator[Any]:
        """What `_in_order` gives where the batch has changed nothing of it."""
        count = FIRST_ROWS if limit is None or limit > MOST_ROWS else max(limit, 1)
        left = 1 << ROW_ID_BITS if limit is None else limit
        if bounds is not None:
            entries = index.entries(*bounds)
            while left and (some := list(islice(entries, min(count, left)))):
                ids = index.row_ids(some)
                for start in range(0, min(len(ids), left), count):
                    part = ids[start : min(start + count, left)]
                    yield from self._read(part)
                left -= min(len(ids), left)
                count = min(2 * count, MOST_ROWS)
        yield from self._read_some(islice(nulls, left), count)

    def _read_some(self, merged: Iterator[Any], count: int) -> Iterator[Any]:
        """Row ids become rows, some at a time: first `count`, then more."""
        while some := list(islice(merged, count)):
            rows = iter(self._read([each for each in some if type(each) is int]))
            for each in some:
                yield next(rows) if type(each) is int else each
            count = min(2 * count, MOST_ROWS)

    def _read(self, row_ids: list[int]) -> list[Any]:
        # No comprehensions: their frames would be none in which a call can be ended (partitions.executor).
        heap, decode = self._heap, self._table._decode
        rows: list[Any] = []
        if heap.cold:
            cold = {heap.page_of(row_id) for row_id in row_ids if heap.is_cold(row_id)}
            if len(cold) > RANGE_PAGES:
                images: dict[int, bytes] = {}
                for row_id in row_ids:
                    rows.append(decode(heap.read_past(row_id, images)))
                return rows
            if cold:
                self._misses.pages(*(page_id(self._table.number, page) for page in sorted(cold)))
        for image in heap.read_all(row_ids):
            rows.append(decode(image))
        return rows


def _bounds(
    ordered: SecondaryIndex,
    prefix: tuple[Any, ...],
    low: Any,
    high: Any,
    low_included: bool,
    high_included: bool,
    begins: str | None,
) -> tuple[tuple[Key | None, Key | None, bool, bool] | None, bool]:
    """(the bounds of a `Lookups.range`, None where it has NULL alone; whether it has NULL alone or among others)"""
    if begins is not None:
        return (*ordered.format.begins_with(prefix, begins), False, False), False
    if prefix == (None,) and len(ordered.format.columns) == 1:
        return None, True
    bounds = ordered.format.bounds(prefix, low, high, low_included, high_included)
    return bounds, low is None and high is None and not prefix
