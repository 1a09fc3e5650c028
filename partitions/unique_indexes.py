"""The unique indexes of one table: which values a row may have, while batches change others and lend some away.

What an index knows is committed. Beside it, of each index,

    claims      its key → rows that were let have it in this batch
    reserved    its key → what whoever wants it must wait for: the key of a row that may come back with it (`reserve`),
                or the Entry itself, which is lent (`lend`)

A row that has had a value, or claimed it, may have lost it in the batch: so both only name those who may have it, and
their rows tell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Set
from typing import Any, NamedTuple

from msgspec import Struct

from partitions.index_key import Key, UnfitValue
from partitions.posting_list import sorted_ids
from partitions.secondary_index import SecondaryIndex
from voltpy.errors import DuplicateKey, Unavailable


class Entry(Struct, frozen=True):
    """A value of a unique index, by its key there. Lent, it is among the keys of its table that are away."""

    index: str
    key: Key


class _Unique(NamedTuple):
    """One of them, with its claims and what is reserved in it."""

    of: SecondaryIndex
    claims: dict[Key, tuple[Any, ...]]
    reserved: dict[Key, Any]


class UniqueIndexes:
    """`table`: the partitions.table.Table; `read` reads rows by their row ids, and raises NotHere for cold pages."""

    __slots__ = ("_indexes", "_misses", "_read", "_table")

    def __init__(self, table: Any, read: Callable[[list[int]], list[Any]]) -> None:
        self._table = table
        self._misses = table._misses
        self._read = read
        self._indexes: dict[str, _Unique] = {}  # by name

    def __bool__(self) -> bool:
        return bool(self._indexes)

    def use(self, indexes: Iterable[SecondaryIndex]) -> None:
        """From now on these are there. What is reserved in one of the same name stays so. Between batches."""
        reserved = {name: unique.reserved for name, unique in self._indexes.items()}
        self._indexes = {
            index.schema.name: _Unique(index, {}, reserved.get(index.schema.name, {})) for index in indexes
        }

    def check(self, primary: Any, row: Any, old: Any) -> None:
        """Raises DuplicateKey when another row has the values of this one, which replaces `old`, in a unique index.

        Who was let pass, in all indexes, is noted as a claimant of its values, until the batch is over. Whether a
        claimant still has them is looked at when the next one comes.
        """
        passed: list[tuple[dict[Key, tuple[Any, ...]], Key]] = []
        for index, claims, reserved in self._indexes.values():
            key = index.of_row(row)
            if key is None or (old is not None and index.of_row(old) == key) or index.format.has_null(row):
                continue
            if reserved and key in reserved:
                self._misses.raise_for((self._table.number, reserved[key]))
            claimants = claims.get(key)
            if claimants is not None:
                for other in claimants:
                    if other != primary and self._has_now(index, other, key):
                        self._refuse(index, row, other)
            posting = index.posting(key)
            if posting is not None:
                for there in self._read(sorted_ids(posting)):
                    other = self._table._key_of(there)
                    if other != primary and self._has_now(index, other, key):
                        self._refuse(index, row, other)
            passed.append((claims, key))
        for claims, key in passed:
            claims[key] = (primary,)

    def check_changes(self, keys: list[Any], images: list[bytes], deleted: list[Any], borrowed: Set[Any]) -> None:
        """Raises DuplicateKey when the table could not have all of these changes at once. Between batches only.

        For changes that come from elsewhere, with the primary keys of the rows that they make and delete. Of what is
        away, the rows that whoever makes them has `borrowed` are as they were when they left; where others may come
        back with these values, or without them, it raises Unavailable. NotHere for cold pages.
        """
        rows = list(map(self._table._decode, images)) if self._indexes else []
        changed = {*keys, *deleted}
        for index, _, reserved in self._indexes.values():
            taken: dict[Key, Any] = {}
            for primary, row in zip(keys, rows, strict=True):
                key = index.of_row(row)
                if key is None or index.format.has_null(row):
                    continue
                if taken.setdefault(key, primary) != primary:
                    raise self.duplicate(index, row)
                awaited = reserved.get(key, primary)
                if awaited != primary and awaited not in borrowed:
                    raise self._in_doubt(index)
            postings = [posting for posting in map(index.posting, taken) if posting is not None]
            for row in self._read([row_id for posting in postings for row_id in sorted_ids(posting)]):
                primary = self._table._key_of(row)
                if primary in changed:
                    continue
                if primary in self._table._away and primary not in borrowed:
                    raise self._in_doubt(index)
                raise self.duplicate(index, row)

    def entry(self, name: str, values: tuple[Any, ...]) -> tuple[Entry | None, Any, Any]:
        """(the entry of these values, the key of the row that has them, the row; None for both where none has).

        Between batches only. All None where there is no unique index of this name that could be asked. Raises
        Unavailable when it is in doubt whether a row has them, UnfitValue for values of other types, NotHere for cold
        pages.
        """
        if name not in self._indexes:
            return None, None, None
        index, _, reserved = self._indexes[name]
        columns = index.format.columns
        if len(values) != len(columns) or None in values or (key := index.format.of_values(values)) is None:
            raise UnfitValue(f"an entry is a value for each of {', '.join(columns)}, none of them NULL")
        if key in reserved and not isinstance(reserved[key], Entry):
            raise self._in_doubt(index)
        posting = index.posting(key)
        rows = [] if posting is None else self._read(sorted_ids(posting))
        for row in rows:
            return Entry(name, key), self._table._key_of(row), row
        return Entry(name, key), None, None

    def lend(self, entries: Iterable[Entry]) -> None:
        """Until `take_back` nobody gets these values: who asks for one waits for its entry. Between batches only."""
        for entry in entries:
            self._indexes[entry.index].reserved[entry.key] = entry

    def take_back(self, entries: Iterable[Entry]) -> None:
        """They are here again, unless they are reserved for rows by now."""
        for entry in entries:
            unique = self._indexes.get(entry.index)  # which may have been dropped
            if unique is not None and unique.reserved.get(entry.key) == entry:
                del unique.reserved[entry.key]

    def reserve(self, keys: list[Any], images: list[bytes]) -> None:
        """These rows, whose keys are away, may come back so: until `release` nobody else gets their unique values.

        Who asks for one waits for the key of its row.
        """
        rows = list(map(self._table._decode, images)) if self._indexes else []
        for index, _, reserved in self._indexes.values():
            for primary, row in zip(keys, rows, strict=True):
                key = index.of_row(row)
                if key is not None and not index.format.has_null(row):
                    reserved[key] = primary

    def release(self, keys: Iterable[Any]) -> None:
        """It is decided what becomes of these rows."""
        primaries = set(keys)
        for unique in self._indexes.values():
            for key in [key for key, primary in unique.reserved.items() if primary in primaries]:
                del unique.reserved[key]

    def restored(self, primary: Any, row: Any) -> None:
        """A row is as it was before a transaction; None: there was none."""
        for index, claims, _ in self._indexes.values():
            key = None if row is None else index.of_row(row)
            if key is not None:  # another one may have claimed it since, and is undone too, or will be
                claims[key] = (*claims.get(key, ()), primary)

    def forget_claims(self) -> None:
        """The batch is over: its changes are committed, or undone."""
        for unique in self._indexes.values():
            unique.claims.clear()

    def duplicate(self, index: SecondaryIndex, row: Any) -> DuplicateKey:
        """Another row has these values of this one."""
        columns, values = ", ".join(index.schema.columns), index.format.values_of(row)
        return DuplicateKey(
            f"table {self._table.name}: a row with {columns} = {values!r:.100} exists, and index {index.schema.name} "
            "is unique"
        )

    # Inside.

    def _has_now(self, index: SecondaryIndex, primary: Any, key: Key) -> bool:
        """Whether this row, which has had the key, still has it."""
        table = self._table
        if primary in table._inserted:
            image = table._inserted[primary]
        elif primary in table._updated:
            image = table._updated[primary]
        else:
            return True
        return image is not None and index.of_row(table._decode(image)) == key

    def _refuse(self, index: SecondaryIndex, row: Any, other: Any) -> None:
        """The row with key `other` has these values. If that is lent, it may have others when it comes back."""
        table = self._table
        if table._away and other in table._away:
            self._misses.raise_for((table.number, other))
        raise self.duplicate(index, row)

    def _in_doubt(self, index: SecondaryIndex) -> Unavailable:
        return Unavailable(
            f"table {self._table.name}: index {index.schema.name} is unique, "
            "and whether another row has these values is in doubt"
        )
