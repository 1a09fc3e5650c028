"""The primary index of one table: key → row id, in 34 bytes a row whatever the key.

One LLBTree maps a 64-bit number to a row id: the key itself where it is a single INT, else the XXH3 hash of the key's
MessagePack bytes (stable over processes, unlike `hash`). Keys whose hashes collide share the entry COLLIDED and
stand in a side table. A hash is no proof: whoever looks a key up compares it with the row. A dict would take 106 to 270
bytes a row.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from BTrees.LLBTree import LLBTree
from xxhash import xxh3_64_intdigest

from voltpy.errors import Corruption
from voltpy.row import encode
from voltpy.schema import Table

NOWHERE = -1
COLLIDED = -2
INDEX_BYTES = 34  # a row, in the tree's nodes
_HALF = 1 << 63  # from the hash's unsigned range into the tree's signed one


class _Tree(LLBTree):  # type: ignore[misc]  # BTrees has no types
    """Leaves a little larger than its 120 entries take a few percent less memory, and are as quick to change.

    Larger ones are no quicker to look up, and an insert, which moves half of a leaf, costs more: a quarter at 500.
    """

    max_leaf_size = 160
    max_internal_size = 500


def _hash(key: Any) -> int:
    return xxh3_64_intdigest(encode(key)) - _HALF


def _hash_with_floats(columns: list[bool]) -> Callable[[Any], int]:
    """For keys in which 1 and 1.0, or 0.0 and -0.0, are equal and have different bytes."""
    if len(columns) == 1:
        return lambda key: _hash(key + 0.0)

    def hash_of(key: Any) -> int:
        return _hash(tuple(part + 0.0 if is_float else part for part, is_float in zip(key, columns, strict=True)))

    return hash_of


class PrimaryIndex:
    """`find(key, NOWHERE)`: the row id at which the key may be found, NOWHERE, or COLLIDED: then see `candidates`."""

    __slots__ = ("_changed_numbers", "_changed_row_ids", "_collisions", "_hash", "_tree", "find", "ordered")

    def __init__(self, table: Table) -> None:
        first = table.column(table.primary_key[0])
        self.ordered = len(table.primary_key) == 1 and first.type == "INT" and not first.nullable
        floats = [table.column(name).type == "FLOAT" for name in table.primary_key]
        self._hash: Callable[[Any], int] = _hash_with_floats(floats) if any(floats) else _hash
        self._tree = _Tree()
        # An integer key goes straight into the C function: nearly every miss of the decoded rows passes here.
        self.find: Callable[[Any, int], int] = self._tree.get if self.ordered else self._hashed_find()
        self._collisions: dict[int, list[int]] = {}
        # Every change since the last checkpoint, in order; NOWHERE where an entry went.
        self._changed_numbers, self._changed_row_ids = array("q"), array("q")

    def __len__(self) -> int:
        return len(self._tree) + sum(len(row_ids) - 1 for row_ids in self._collisions.values())

    def candidates(self, key: Any) -> list[int]:
        """Every row id at which the key may be found."""
        row_id = self.find(key, NOWHERE)
        if row_id != COLLIDED:
            return [] if row_id == NOWHERE else [row_id]
        return self._collisions[self._hash(key)]

    def find_source(self, key: str) -> tuple[str, dict[str, Any]]:
        """`find(key, NOWHERE)` for generated functions, as an expression, and the names in it: two calls less."""
        if self.ordered or self._hash is not _hash:
            return f"_find({key}, {NOWHERE})", {"_find": self.find}
        names = {"_find": self._tree.get, "_digest": xxh3_64_intdigest, "_packed": encode}
        return f"_find(_digest(_packed({key})) - {_HALF}, {NOWHERE})", names

    def find_all(self, keys: list[Any]) -> list[int]:
        """`find` for many keys that are all in the index. Raises KeyError for one that is not."""
        numbers = keys if self.ordered else map(self._hash, keys)
        return list(map(self._tree.__getitem__, numbers))

    def extend(self, keys: list[Any], row_ids: list[int]) -> None:
        """Adds keys that are not in the index."""
        if self.ordered:
            tree = self._tree
            for key, row_id in zip(keys, row_ids, strict=True):
                tree[key] = row_id
            self._log(keys, row_ids)
            return
        numbers = list(map(self._hash, keys))
        added = list(map(self._tree.insert, numbers, row_ids))
        self._log(numbers, row_ids)
        if not all(added):
            for is_new, number, row_id in zip(added, numbers, row_ids, strict=True):
                if not is_new:
                    self._collide(number, row_id)

    def move(self, key: Any, old_row_id: int, row_id: int) -> None:
        number = key if self.ordered else self._hash(key)
        if self._tree[number] == COLLIDED:
            row_ids = self._collisions[number]
            row_ids[row_ids.index(old_row_id)] = row_id
        else:
            self._set(number, row_id)

    def remove(self, key: Any, row_id: int) -> None:
        number = key if self.ordered else self._hash(key)
        if self._tree[number] != COLLIDED:
            del self._tree[number]
            self._changed_numbers.append(number)
            self._changed_row_ids.append(NOWHERE)
            return
        row_ids = self._collisions[number]
        row_ids.remove(row_id)
        if len(row_ids) == 1:
            self._set(number, self._collisions.pop(number)[0])

    def range(self, low: Any, high: Any) -> Iterator[tuple[int, int]]:
        """(key, row id) with low <= key < high, in order. Only where `ordered`."""
        yield from self._tree.iteritems(low, high, excludemax=True)

    def row_ids(self) -> Iterator[int]:
        for number, row_id in self._tree.iteritems():
            if row_id == COLLIDED:
                yield from self._collisions[number]
            else:
                yield row_id

    def check(self, name: str) -> None:
        """Raises Corruption unless the side table and the tree agree."""
        for number, row_ids in self._collisions.items():
            if self._tree.get(number, NOWHERE) != COLLIDED or len(row_ids) < 2:
                raise Corruption(f"table {name}: the index's side table is wrong at {number}")
        self._tree._check()

    # Checkpoints.

    def take_changes(self) -> tuple[array[int], array[int]]:
        """(numbers, row ids) of every change since the last time, in order: see `load`."""
        numbers, row_ids = self._changed_numbers, self._changed_row_ids
        self._changed_numbers, self._changed_row_ids = array("q"), array("q")
        if len(numbers) > 2 * len(self._tree):  # the same rows came and went: only the last word on each counts
            last = dict(zip(numbers, row_ids, strict=True))
            return array("q", last.keys()), array("q", last.values())
        return numbers, row_ids

    def give_back_changes(self, numbers: array[int], row_ids: array[int]) -> None:
        """The checkpoint that took them came to nothing."""
        self._changed_numbers, self._changed_row_ids = numbers + self._changed_numbers, row_ids + self._changed_row_ids

    @property
    def collisions(self) -> dict[int, list[int]]:
        """A copy of the side table."""
        return {number: row_ids.copy() for number, row_ids in self._collisions.items()}

    def entries_after(self, number: int | None, count: int) -> tuple[array[int], array[int]]:
        """At most `count` entries that follow the number, in order. An index is copied in slices while it changes."""
        entries = list(islice(self._tree.iteritems(number, None, number is not None), count))
        return array("q", [number for number, _ in entries]), array("q", [row_id for _, row_id in entries])

    def load(self, runs: Iterable[tuple[array[int], array[int]]], collisions: dict[int, list[int]]) -> None:
        """Takes a checkpoint's entries into an empty index: of each number the last one counts."""
        tree = self._tree
        for numbers, row_ids in runs:
            gone = NOWHERE in row_ids
            tree.update(list(zip(numbers, row_ids, strict=True)))
            if gone:
                for number, row_id in zip(numbers, row_ids, strict=True):
                    if row_id == NOWHERE and tree.get(number, NOWHERE) == NOWHERE:
                        tree.pop(number, NOWHERE)
        self._collisions = {number: row_ids.copy() for number, row_ids in collisions.items()}

    def _log(self, numbers: list[int], row_ids: list[int]) -> None:
        # By way of an array: to extend one by a list costs twice as much.
        self._changed_numbers.extend(array("q", numbers))
        self._changed_row_ids.extend(array("q", row_ids))

    def _set(self, number: int, row_id: int) -> None:
        self._tree[number] = row_id
        self._changed_numbers.append(number)
        self._changed_row_ids.append(row_id)

    def _hashed_find(self) -> Callable[[Any, int], int]:
        get, hash_of = self._tree.get, self._hash

        def find(key: Any, default: int) -> int:
            row_id: int = get(hash_of(key), default)
            return row_id

        return find

    def _collide(self, number: int, row_id: int) -> None:
        present = self._tree[number]
        if present != COLLIDED:
            self._collisions[number] = [present]
        self._collisions[number].append(row_id)
        self._set(number, COLLIDED)
