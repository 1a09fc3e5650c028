"""One secondary index: key → posting list. It knows committed rows only, by their row ids.

    HASH, INVERTED   rows by the values of all columns
    BTREE            that, and in the order of the values, with the first columns given or a range of the next one

A tree maps each key to its row id, or to a place among the longer posting lists: a key that has one row costs 34 bytes
where it is a number (partitions.index_key says what a key is).

    entry      = row id                where the key has one row
               | -2 - place            in `_lists`, where it has more
    hashed     = mark << 40 | entry & (2**40 - 1)          a hash has 23 bits more than the tree's keys: its mark

Measured, 1 million distinct values at random: bytes a row, µs to insert one, to find one, to read 100 in order:

    INT       LLBTree                       23       1.1    0.8    11
              LOBTree (entries are objects) 56       1.1    1.3    16
              OOBTree                       88       3.2    3.1     9
              sortedcontainers.SortedDict  117       4.8    0.7    21
              dict                         106       0.4    0.6     -
    STRING    PackedTree of UTF-8           18       2.5    1.6     9
    of 12     OLBTree of UTF-8              73       2.4    2.4     5
              OOBTree of str               120       4.4    2.5     8
              SortedDict                   138       5.0    0.8    13

So: numbers in an LLBTree, hashes too; bytes in a partitions.packed_tree, for BTREE indexes with a STRING or several
columns alone.

A unique index is like any other: nothing here refuses a second row, since within a batch values move from row to row.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, Protocol

from BTrees.LLBTree import LLBTree
from msgspec import Struct
from pyroaring import BitMap

from partitions.index import INDEX_BYTES, NOWHERE
from partitions.index_key import MARK_BITS, Key, KeyFormat
from partitions.packed_tree import SEPARATOR, PackedTree
from partitions.posting_list import (
    ROW_ID_BITS,
    Posting,
    as_bitmap,
    posting_bytes,
    posting_of,
    size,
    sorted_ids,
    with_rows,
    without_row,
)
from voltpy.errors import Corruption
from voltpy.schema import INT_MAX, INT_MIN, Index
from voltpy.schema import Table as TableSchema

LIST_BYTES, LIST_ROW_BYTES = 160, 4  # of a posting list, at most
_HALF = 1 << 63
_ENTRY_BITS = 40
_ENTRY_MASK = (1 << _ENTRY_BITS) - 1
_SIGN = 1 << (_ENTRY_BITS - 1)
_MARK_MASK = (1 << MARK_BITS) - 1
_ROW_ID_MASK = (1 << ROW_ID_BITS) - 1


class _NumberTree(LLBTree):  # type: ignore[misc]  # BTrees has no types
    max_leaf_size = 500
    max_internal_size = 500

    def insert_all(self, keys: list[int], entries: list[int]) -> list[int]:
        """Of each 1 when it was added, 0 when the key is there."""
        return list(map(self.insert, keys, entries))

    def extend(self, keys: Iterable[int], entries: Iterable[int]) -> None:
        self.update(list(zip(keys, entries, strict=True)))

    def reversed_items(
        self, lowest: int | None, highest: int | None, low_excluded: bool, high_excluded: bool
    ) -> Iterator[tuple[int, int]]:
        """What `iteritems` gives, from the last to the first."""
        least = INT_MIN if lowest is None else lowest + low_excluded
        bound = INT_MAX if highest is None else highest - high_excluded
        while bound >= least:
            try:
                key = self.maxKey(bound)
            except ValueError:  # nothing is before it
                return
            if key < least:
                return
            yield key, self[key]
            bound = key - 1

    def count(self, lowest: int | None, highest: int | None, low_excluded: bool, high_excluded: bool) -> int:
        return len(self.keys(lowest, highest, low_excluded, high_excluded))


class Part(Struct, array_like=True, forbid_unknown_fields=True):
    """Some of an index's entries: keys with one row, and posting lists. See partitions.index_image.

    `keys`: 64-bit numbers, or as bytes; `entries`: a 64-bit number each, as in the tree. In `lists` a key has its mark.
    """

    keys: bytes | list[bytes]
    entries: bytes
    lists: list[tuple[int | bytes | None, int, bytes, bool]]  # row ids as bytes; or True: a bitmap


class _Entries(Protocol):
    """What an index needs of its tree: key → entry."""

    def get(self, key: Any, default: int) -> int: ...
    def insert(self, key: Any, entry: int) -> int: ...
    def insert_all(self, keys: Any, entries: list[int]) -> list[int]: ...
    def __setitem__(self, key: Any, entry: int) -> None: ...
    def __delitem__(self, key: Any) -> None: ...
    def iteritems(self) -> Iterable[tuple[Any, int]]: ...


class _HashedEntries:
    """Keys of 87 bits in a tree of 64-bit numbers. Keys with the same number, hardly ever, stand aside in a dict."""

    __slots__ = ("_get", "_insert", "_tree", "aside")

    def __init__(self, tree: _NumberTree) -> None:
        self._tree = tree
        self._get: Callable[[int, int], int] = self._tree.get
        self._insert: Callable[[int, int], int] = self._tree.insert
        self.aside: dict[int, int] = {}

    def get(self, key: int, default: int) -> int:
        marked = self._get((key >> MARK_BITS) - _HALF, NOWHERE)
        if marked >= 0 and marked >> _ENTRY_BITS == key & _MARK_MASK:
            return ((marked & _ENTRY_MASK) ^ _SIGN) - _SIGN
        return self.aside.get(key, default) if self.aside else default

    def insert_all(self, keys: list[int], entries: list[int]) -> list[int]:
        """Of each 1 when it was added, 0 when the key is there."""
        if self.aside:
            return list(map(self.insert, keys, entries))
        added = list(
            map(
                self._insert,
                [(key >> MARK_BITS) - _HALF for key in keys],
                [(key & _MARK_MASK) << _ENTRY_BITS | entry for key, entry in zip(keys, entries, strict=True)],
            )
        )
        if not all(added):
            for position, is_new in enumerate(added):
                if not is_new:
                    added[position] = self.insert(keys[position], entries[position])
        return added

    def insert(self, key: int, entry: int) -> int:
        if self.aside and key in self.aside:
            return 0
        number, mark = (key >> MARK_BITS) - _HALF, key & _MARK_MASK
        if self._insert(number, mark << _ENTRY_BITS | entry & _ENTRY_MASK):
            return 1
        if self._tree[number] >> _ENTRY_BITS == mark:
            return 0
        self.aside[key] = entry
        return 1

    def __setitem__(self, key: int, entry: int) -> None:
        if not self.insert(key, entry):
            if key in self.aside:
                self.aside[key] = entry
            else:
                self._tree[(key >> MARK_BITS) - _HALF] = (key & _MARK_MASK) << _ENTRY_BITS | entry & _ENTRY_MASK

    def __delitem__(self, key: int) -> None:
        if key in self.aside:
            del self.aside[key]
        else:
            del self._tree[(key >> MARK_BITS) - _HALF]

    def iteritems(self) -> Iterator[tuple[int, int]]:
        for number, marked in self._tree.iteritems():
            key = (number + _HALF) << MARK_BITS | marked >> _ENTRY_BITS
            yield key, ((marked & _ENTRY_MASK) ^ _SIGN) - _SIGN
        yield from self.aside.items()


class SecondaryIndex:
    """`of_row` makes a row's key. `rows` and `keys` count; NULL alone is no key: see `nulls`.

    `built_pages` None: it has every row. Else those of the pages before this page number: see partitions.lookups.
    """

    __slots__ = (
        "_entries",
        "_free",
        "_get",
        "_insert_all",
        "_lists",
        "_tree",
        "built_pages",
        "format",
        "keys",
        "nulls",
        "of_row",
        "ordered",
        "rows",
        "schema",
    )

    def __init__(self, table: TableSchema, index: Index, seed: int | None = None) -> None:
        self.schema = index
        self.format = KeyFormat(table, index, int.from_bytes(os.urandom(8), "little") if seed is None else seed)
        self.of_row: Callable[[Any], Key | None] = self.format.of_row
        self.ordered = index.kind == "BTREE"
        self.rows = self.keys = 0
        self.nulls: Posting | None = None
        self.built_pages: int | None = None
        self._tree: _NumberTree | PackedTree
        self._entries: _Entries
        if self.format.hashed:
            self._tree = _NumberTree()
            self._entries = _HashedEntries(self._tree)
        else:
            self._tree = self._entries = _NumberTree() if self.format.number else PackedTree()
        self._get: Callable[[Any, int], int] = self._entries.get
        self._insert_all: Callable[[Any, list[int]], list[int]] = self._entries.insert_all
        self._lists: list[Posting] = []
        self._free: list[int] = []  # places in it

    def __repr__(self) -> str:
        return f"<index {self.schema.name}: {self.rows} rows, {self.keys} keys>"

    # Looking up.

    def posting(self, key: Key | None) -> Posting | None:
        """The rows with this key, None for none. A BitMap is the index's own."""
        if key is None:
            return self.nulls
        entry = self._get(key, NOWHERE)
        return self._lists[-2 - entry] if entry < NOWHERE else None if entry == NOWHERE else entry

    def postings(
        self,
        lowest: Key | None,
        highest: Key | None,
        *,
        low_excluded: bool = False,
        high_excluded: bool = False,
        reverse: bool = False,
    ) -> Iterator[tuple[Key, Posting]]:
        """(key, its rows) in the order of the keys. Only where `ordered`. The index must not change meanwhile."""
        lists, between = self._lists, _between(lowest, highest, low_excluded, high_excluded)
        items = self._tree.reversed_items(*between) if reverse else self._tree.iteritems(*between)
        for key, entry in items:
            yield key, lists[-2 - entry] if entry < NOWHERE else entry

    def entries(
        self, lowest: Key | None, highest: Key | None, low_excluded: bool, high_excluded: bool
    ) -> Iterator[int]:
        """What the tree holds, in the order of the keys: `row_ids` makes rows of it. Only where `ordered`."""
        return iter(self._tree.itervalues(*_between(lowest, highest, low_excluded, high_excluded)))

    def row_ids(self, entries: list[int]) -> list[int]:
        """The rows of these entries, in their order."""
        if not entries or min(entries) > NOWHERE:
            return entries
        ids: list[int] = []
        for entry in entries:
            if entry > NOWHERE:
                ids.append(entry)
            else:
                ids += sorted_ids(self._lists[-2 - entry])
        return ids

    def row_set(self, entries: list[int]) -> BitMap:
        """The rows of these entries."""
        rows = BitMap(filter(NOWHERE.__lt__, entries))
        if entries and min(entries) < NOWHERE:
            lists = [as_bitmap(self._lists[-2 - entry]) for entry in entries if entry < NOWHERE]
            rows = BitMap.union(rows, *lists)
        return rows

    def key_count(
        self, lowest: Key | None, highest: Key | None, low_excluded: bool = False, high_excluded: bool = False
    ) -> int:
        """How many keys are between the two. It takes 1 µs for 3,000."""
        return self._tree.count(*_between(lowest, highest, low_excluded, high_excluded))

    # Changes.

    def add(self, keys: list[Key | None], row_ids: list[int]) -> None:
        """Adds rows that it does not have."""
        if None in keys:
            nulls = [row_id for key, row_id in zip(keys, row_ids, strict=True) if key is None]
            self.nulls = posting_of(nulls) if self.nulls is None else with_rows(self.nulls, nulls)
            self.rows += len(nulls)
            row_ids = [row_id for key, row_id in zip(keys, row_ids, strict=True) if key is not None]
            keys = [key for key in keys if key is not None]
        self.rows += len(keys)
        added = self._insert_all(keys, row_ids)
        new = sum(added)
        self.keys += new
        if new < len(keys):
            more: dict[Key | None, list[int]] = {}
            for key, row_id, is_new in zip(keys, row_ids, added, strict=True):
                if not is_new:
                    if key in more:
                        more[key].append(row_id)
                    else:
                        more[key] = [row_id]
            for key, ids in more.items():
                self._lengthen(key, ids)

    def remove(self, keys: list[Key | None], row_ids: list[int]) -> None:
        """Takes rows out. Raises Corruption when it does not have one under its key."""
        get, lists = self._get, self._lists
        try:
            for key, row_id in zip(keys, row_ids, strict=True):
                if key is None:
                    self.nulls = without_row(_some(self.nulls, row_id), row_id)
                    continue
                entry = get(key, NOWHERE)
                if entry == row_id:
                    self._drop(key)
                elif entry >= NOWHERE:
                    raise KeyError(row_id)
                else:
                    place = -2 - entry
                    posting = without_row(lists[place], row_id)
                    if type(posting) is int:
                        lists[place] = 0
                        self._free.append(place)
                        self._entries[key] = posting
                    else:
                        lists[place] = posting  # type: ignore[assignment]
        except KeyError:
            raise Corruption(f"index {self.schema.name}: the row {row_id} is not where it should be") from None
        self.rows -= len(keys)

    def _lengthen(self, key: Key | None, row_ids: list[int]) -> None:
        entry = self._get(key, NOWHERE)
        if entry < NOWHERE:
            place = -2 - entry
            self._lists[place] = with_rows(self._lists[place], row_ids)
            return
        self._entries[key] = -2 - self._place(with_rows(entry, row_ids))

    def _place(self, posting: Posting) -> int:
        if self._free:
            place = self._free.pop()
            self._lists[place] = posting
        else:
            place = len(self._lists)
            self._lists.append(posting)
        return place

    def _drop(self, key: Key) -> None:
        del self._entries[key]
        self.keys -= 1

    # Images.

    def part_after(self, last: int | bytes | None, count: int, size_bytes: int) -> tuple[Any, Part]:
        """Entries that follow this key of the tree, and the last one's key; None at the end.

        They are `count`, or as many as reach this size: keys and posting lists may be long. The index may change
        between two parts. What does not is in exactly one of them.
        """
        hashed = self.format.hashed
        is_bytes = not hashed and not self.format.number
        keys, entries = [], []
        lists: list[tuple[int | bytes | None, int, bytes, bool]] = []
        reached: Any = None
        for key, marked in islice(self._tree.iteritems(*_between(last, None, True, False)), count):
            reached = key
            mark, entry = 0, marked
            if hashed:
                mark, entry = marked >> _ENTRY_BITS, ((marked & _ENTRY_MASK) ^ _SIGN) - _SIGN
            if entry >= 0:
                keys.append(key)
                entries.append(marked)
            else:
                packed, is_bitmap = _packed(self._lists[-2 - entry])
                lists.append((key, mark, packed, is_bitmap))
                size_bytes -= len(packed)
            if is_bytes:
                size_bytes -= len(key)
            if size_bytes <= 0:
                break
        if reached is None:
            if self.nulls is not None:
                lists.append((None, 0, *_packed(self.nulls)))
            if isinstance(self._entries, _HashedEntries):
                for key, entry in self._entries.aside.items():
                    posting = self._lists[-2 - entry] if entry < NOWHERE else entry
                    lists.append(((key >> MARK_BITS) - _HALF, key & _MARK_MASK, *_packed(posting)))
        part = Part(keys if is_bytes else array("q", keys).tobytes(), array("q", entries).tobytes(), lists)
        return reached, part

    def take_part(self, part: Part, but: BitMap) -> None:
        """Adds the entries of a part, but for these rows. Raises ValueError when it is no part of this index."""
        entries = array("q", part.entries)
        keys: Any = part.keys if isinstance(part.keys, list) else array("q", part.keys)
        if len(keys) != len(entries) or isinstance(part.keys, list) != isinstance(self._tree, PackedTree):
            raise ValueError("as many keys as entries")
        if but:
            kept = [position for position, entry in enumerate(entries) if entry & _ROW_ID_MASK not in but]
            if len(kept) < len(entries):
                keys, entries = [keys[p] for p in kept], array("q", [entries[p] for p in kept])
        self._tree.extend(keys, entries)
        self.rows += len(keys)
        self.keys += len(keys)
        for key, mark, data, is_bitmap in part.lists:
            ids = BitMap.deserialize(data) if is_bitmap else BitMap(array("I", data))
            posting = posting_of(ids - but)
            if posting is None:
                continue
            self.rows += size(posting)
            if key is None:
                self.nulls = posting
                continue
            if isinstance(key, bytes) != isinstance(self._tree, PackedTree) or (
                isinstance(key, bytes) and SEPARATOR in key
            ):
                raise ValueError("a key that is none of this index")
            if self.format.hashed and isinstance(key, int):
                key = (key + _HALF) << MARK_BITS | mark
            if not self._entries.insert(key, posting if isinstance(posting, int) else -2 - self._place(posting)):
                raise ValueError("a key occurs twice")
            self.keys += 1

    # All of it.

    def items(self) -> Iterator[tuple[Key | None, Posting]]:
        """(key, its rows) of all, in no order; NULL is the last."""
        for key, entry in self._entries.iteritems():
            yield key, self._lists[-2 - entry] if entry < NOWHERE else entry
        if self.nulls is not None:
            yield None, self.nulls

    def duplicates(self) -> Iterator[tuple[Key, Posting]]:
        """The keys with several rows. Those with NULL among several columns are among them."""
        if len(self._lists) > len(self._free):
            for key, entry in self._entries.iteritems():
                if entry < NOWHERE:
                    yield key, self._lists[-2 - entry]

    @property
    def bytes(self) -> int:
        """About what it takes in memory, at most: bitmaps count as if their rows were scattered."""
        lists = len(self._lists) - len(self._free) + (self.nulls is not None)
        return (
            self._tree_bytes
            + 8 * len(self._lists)
            + LIST_BYTES * lists
            + LIST_ROW_BYTES * (self.rows - self.keys + lists)
        )

    def measured_bytes(self) -> int:
        """The same, with a look at every posting list."""
        tree = self._tree
        keys = tree.measured_bytes() if isinstance(tree, PackedTree) else self._tree_bytes
        return keys + 8 * len(self._lists) + sum(map(posting_bytes, self._lists)) + posting_bytes(self.nulls or 0)

    @property
    def _tree_bytes(self) -> int:
        return self._tree.size_bytes if isinstance(self._tree, PackedTree) else INDEX_BYTES * self.keys

    def check(self) -> None:
        """Raises Corruption unless its counts and forms are right."""
        name = self.schema.name
        if isinstance(self._tree, PackedTree):
            self._tree.check(name)
        rows = keys = 0
        places = []
        for key, entry in self._entries.iteritems():
            keys += 1
            if entry < NOWHERE:
                posting = self._lists[-2 - entry]
                places.append(-2 - entry)
                if type(posting) is int or size(posting) != len(set(sorted_ids(posting))) or size(posting) < 2:
                    raise Corruption(f"index {name}: the list of {key!r:.50} is no list")
                rows += size(posting)
            else:
                rows += 1
            if self._get(key, NOWHERE) != entry:
                raise Corruption(f"index {name}: {key!r:.50} is not found")
        rows += size(self.nulls)
        if (rows, keys) != (self.rows, self.keys):
            raise Corruption(f"index {name}: {rows} rows and {keys} keys, {self.rows} and {self.keys} counted")
        if sorted(places + self._free) != list(range(len(self._lists))):
            raise Corruption(f"index {name}: its lists are not those that are named")


def _between(lowest: Any, highest: Any, low_excluded: bool, high_excluded: bool) -> tuple[Any, Any, bool, bool]:
    """What a tree is asked with. Where there is no bound, BTrees would leave out the first or the last key instead."""
    return lowest, highest, low_excluded and lowest is not None, high_excluded and highest is not None


def _packed(posting: Posting) -> tuple[bytes, bool]:
    if isinstance(posting, BitMap):
        return posting.serialize(), True
    return posting if isinstance(posting, bytes) else array("I", (posting,)).tobytes(), False


def _some(posting: Posting | None, row_id: int) -> Posting:
    if posting is None:
        raise KeyError(row_id)
    return posting
