"""A table as a procedure sees it in the coordinator: rows borrowed from the partitions, in a cache.

A key that the cache knows is present (a row) or absent (None). One that it does not know is a *miss*: it is noted among
`wants`, the run is poisoned, and the body goes on with a *stand-in*, so that one run finds most of what it will need.
Whatever the body makes of a stand-in, the run is undone and repeated with the real row. A stand-in is

    for a row that is read, changed or deleted    the last row of its table that was seen, with this key
    for a row that is inserted                    none: the key is taken to be free
    for a scan, where, range, count               no rows
    for a value in a unique index                 none: it is taken to be free (coordinator.entries)

What is read of a table otherwise than by key is asked of every partition that the call may use; the answers are rows of
the cache too, and what the batch has changed since is laid over them.

`undo` entries are (table, key, row before, whether the key was not changed before by this batch). UNKNOWN for a row:
the key was not in the cache. No table: the run is poisoned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
from msgspec.structs import replace

from coordinator.borrowed_accessors import accessors
from coordinator.entries import EntryWish, UniqueIndex
from coordinator.wishes import ANY, KeyWish, ScanWish
from voltpy.errors import CODES, ConstraintViolation, Error, ProtocolError, SchemaError, WrongPartition
from voltpy.hash_slot import hash_slot
from voltpy.messages import Scan, ScanAnswer, TableChanges
from voltpy.row import RowFormat, encode
from voltpy.schema import INT_MAX, INT_MIN, Index
from voltpy.schema import Table as TableSchema

if TYPE_CHECKING:
    from coordinator.borrowed import Tables

UNKNOWN: Any = object()

_NO_ARGUMENTS = b"\xc0"
_ANY_ONE = frozenset({ANY})
_UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError)
_STAND_IN_VALUES: dict[str, Any] = {
    "INT": 0, "FLOAT": 0.0, "STRING": "", "BOOL": False, "TIMESTAMP": datetime(1970, 1, 1, tzinfo=UTC)
}  # fmt: skip

Undo: TypeAlias = tuple["Table | None", Any, Any, bool]


class Table:
    """What a procedure has as `tx.<table>`. Results and errors are those of partitions.table.

    `rows`: what the cache knows, by key. `written`: the keys that this batch has changed, with the rows as they were
    before it. `whole`: the partitions of whose part of the table the cache knows every row. `answers`: those to reads
    that are not by key, as the partitions gave them, without this batch's changes. `unique`: its unique indexes.
    """

    __slots__ = (
        "_fixed_columns",
        "_format",
        "_key_columns",
        "_key_of",
        "_key_type",
        "_part_of_key",
        "_tables",
        "answers",
        "get",
        "insert",
        "name",
        "number",
        "part_of",
        "replicated",
        "rows",
        "sample",
        "schema",
        "unique",
        "update",
        "upsert",
        "whole",
        "written",
    )

    def __init__(self, schema: TableSchema, number: int, tables: Tables, indexes: Iterable[Index] = ()) -> None:
        self.schema = schema
        self.name = schema.name
        self.number = number
        self.replicated = schema.partition_column is None
        self._tables = tables
        self._format = RowFormat(schema)
        self._key_of = self._format.key_of
        self._key_columns = frozenset(schema.primary_key)
        self._fixed_columns = self._key_columns | {column for column in (schema.partition_column,) if column}
        single = schema.column(schema.primary_key[0]).type if len(schema.primary_key) == 1 else ""
        self._key_type = {"INT": int, "STRING": str}.get(single)
        index = schema.partition_key_index
        self._part_of_key = None if index is None else -1 if len(schema.primary_key) == 1 else index
        self.part_of: Callable[[Any], Any] = attrgetter(schema.partition_column or schema.primary_key[0])
        self.rows: dict[Any, Any] = {}
        self.written: dict[Any, Any] = {}
        self.whole: set[int] = set()
        self.answers: dict[tuple[int, str, bytes], list[Any] | int | Error] = {}
        self.sample: Any = None  # a row as rows of this table are like
        self.unique = [
            UniqueIndex(index, schema, number, self.rows, self._home, tables.miss) for index in indexes if index.unique
        ]
        if not schema.dropped:
            self.get, self.insert, self.upsert, self.update = self._accessors()

    # What procedures call, besides get, insert, upsert and update.

    def delete(self, key: Any, /) -> bool:
        """Removes the row with this key; False when there was none."""
        old = self.get(key)
        if old is None:
            return False
        key = self._key_of(old)
        is_first = key not in self.written
        if is_first:
            self.written[key] = old
        self._tables.undo.append((self, key, old, is_first))
        self.rows[key] = None
        return True

    def count(self) -> int:
        """The number of rows in the partitions that the call may use."""
        partitions = self._partitions()
        others = partitions - self.whole
        counted = sum(answer for answer in self._asked("count", _NO_ARGUMENTS, others) if isinstance(answer, int))
        for key, before in self.written.items():
            now = self.rows[key]
            if (now is None) != (before is None) and self._home(key, before if now is None else now) in others:
                counted += 1 if before is None else -1
        return counted + sum(1 for _ in self._all(partitions & self.whole))

    def scan(self) -> Iterator[Any]:
        """All rows of the partitions that the call may use, in no particular order."""
        yield from self._read("scan", _NO_ARGUMENTS, self._partitions())

    def where(self, /, **equalities: Any) -> list[Any]:
        """The rows whose columns equal the values given."""
        schema = self.schema
        unknown = equalities.keys() - schema.positions.keys()
        if unknown:
            raise TypeError(f"table {self.name} has no column {', '.join(sorted(unknown))}")
        if not equalities:
            return list(self.scan())
        candidates: Iterable[Any]
        if self._key_columns <= equalities.keys() and not schema.hidden_key:
            key = tuple(equalities[name] for name in schema.primary_key)
            row = self.get(key if len(key) > 1 else key[0])
            candidates = () if row is None else (row,)
        else:
            partitions = self._partitions()
            part = None if self.replicated else equalities.get(schema.partition_column or "")
            if type(part) is int or type(part) is str:
                partitions = frozenset({self._admitted(part)})
            arguments = _encoded_equalities(equalities)
            if arguments is None:
                candidates = self._read("scan", _NO_ARGUMENTS, partitions)
            else:
                candidates = self._read("where", arguments, partitions)
        columns = attrgetter(*equalities)
        wanted = tuple(equalities.values()) if len(equalities) > 1 else next(iter(equalities.values()))
        return [row for row in candidates if columns(row) == wanted]

    def range(self, low: Any, high: Any) -> Iterator[Any]:
        """The rows with low <= primary key < high, in the order of their keys."""
        low, high = self._format.checked_key(low), self._format.checked_key(high)
        partitions = self._partitions()
        if self._part_of_key == 0 and low[0] == high[0]:
            partitions = frozenset({self._admitted(low[0])})
        candidates = self._read("range", encode([low, high]), partitions)
        key_of, rows = self._key_of, self.rows
        for key in sorted(key for row in candidates if low <= (key := key_of(row)) < high):
            row = rows.get(key)
            if row is not None:  # whoever goes through the rows may delete some
                yield row

    # What the batch does with it.

    def learn(self, keys: list[Any], images: list[bytes | None]) -> None:
        """A partition's answer for keys, image by image. Raises ProtocolError for what is no row."""
        rows, decode = self.rows, self._format.decode
        row = None
        try:
            for key, image in zip(keys, images, strict=True):
                if key not in rows:
                    if image is None:
                        rows[key] = None
                    else:
                        rows[key] = row = decode(image)
        except _UNDECODABLE as error:
            raise ProtocolError(f"table {self.name}: no row came from a partition: {error}") from None
        if row is not None:
            self.sample = row

    def learn_entries(self, index: str, values: list[bytes], images: list[bytes | None]) -> None:
        """A partition's answer for entries of a unique index: the rows that have these values. Raises ProtocolError."""
        rows, held = self.rows, next((each.held for each in self.unique if each.name == index), {})
        for value, image in zip(values, images, strict=True):
            key = None
            if image is not None:
                row = self._row(image)
                key = self._key_of(row)
                rows.setdefault(key, row)  # it is borrowed too
            held.setdefault(value, key)

    def learn_answer(self, partition: int, scan: Scan, answer: ScanAnswer) -> None:
        """A partition's answer to a read that is not by key. Raises ProtocolError."""
        place = (partition, scan.kind, bytes(scan.arguments))
        if answer.error:
            self.answers[place] = CODES.get(answer.error, ProtocolError)(answer.message)
            return
        if scan.kind == "count":
            self.answers[place] = answer.count
            return
        keys = []
        rows, key_of = self.rows, self._key_of
        for image in answer.images:
            row = self._row(image)
            key = key_of(row)
            if key not in rows:
                rows[key] = row
            keys.append(key)
        if scan.kind == "scan":
            self.whole.add(partition)
        else:
            self.answers[place] = keys

    def changes(self) -> dict[int, TableChanges]:
        """The rows that the batch has left other than they were, by partition (ANY: in all of them)."""
        rows, number = self.rows, self.number
        # Most homes were looked up for the calls' own keys.
        home_of = self._tables.verified.get if self._part_of_key == -1 else _nowhere
        changes: dict[int, TableChanges] = {}
        for key, before in self.written.items():
            row = rows[key]
            if row is before:
                continue
            home = home_of(key)
            if home is None:
                home = self._home(key, before if row is None else row)
            of_home = changes.get(home)
            if of_home is None:
                of_home = changes[home] = TableChanges(number, [], [])
            if row is None:
                of_home.deleted.append(encode(key))
            else:
                of_home.images.append(encode(row))
        return changes

    def changed_keys(self) -> dict[int, list[bytes]]:
        """The encoded keys of those rows, by partition (ANY: in all of them)."""
        keys: dict[int, list[bytes]] = {}
        for key, before in self.written.items():
            row = self.rows[key]
            if row is not before:
                keys.setdefault(self._home(key, before if row is None else row), []).append(encode(key))
        return keys

    def knows(self, wish: KeyWish | EntryWish | ScanWish) -> bool:
        """Whether the cache has what is wished for."""
        if isinstance(wish, EntryWish):
            return any(index.name == wish.name and wish.values in index.held for index in self.unique)
        if isinstance(wish, KeyWish):
            return wish.key in self.rows or wish.partition in self.whole
        return wish.partition in self.whole or (wish.partition, wish.kind, wish.arguments) in self.answers

    def key_of_image(self, image: bytes) -> Any:
        return self._key_of(self._format.decode(image))

    def decoded_key(self, key: bytes) -> Any:
        return self._format.decode_key(key)

    def home_of_key(self, key: Any, verified: dict[Any, int]) -> int | None:
        """The partition of the row with this key, if it is a plain one and in a partition among these; ANY: a copy."""
        if type(key) is not self._key_type or (type(key) is int and not INT_MIN <= key <= INT_MAX):
            return None
        return ANY if self.replicated else verified.get(key) if self._part_of_key == -1 else None

    def forget(self) -> None:
        """Nothing is borrowed any more."""
        self.rows.clear()
        self.written.clear()
        self.whole.clear()
        self.answers.clear()
        for index in self.unique:
            index.forget()

    def take_back(self) -> None:
        """The batch never happened."""
        for key, before in self.written.items():
            self.rows[key] = before
        self.written.clear()

    # Inside.

    def _row(self, image: bytes) -> Any:
        try:
            self.sample = row = self._format.decode(image)
        except _UNDECODABLE as error:
            raise ProtocolError(f"table {self.name}: no row came from a partition: {error}") from None
        return row

    def _missed(self, key: Any, as_present: bool = True) -> Any:
        """The key is not in the cache: a stand-in for its row, or None where it is known to be absent after all."""
        tables, rows = self._tables, self.rows
        if self._key_type is not int or type(key) is not int or not INT_MIN <= key <= INT_MAX:
            key = self._format.checked_key(key)
            known = rows.get(key, UNKNOWN)
            if known is not UNKNOWN:
                return known
        if self.schema.hidden_key:
            if self.whole.issuperset(self._partitions()):
                return None
            raise SchemaError(
                f"table {self.name} has no primary key of its own: across partitions its rows are reached by where "
                f"and scan, and {key!r:.100} was not among those that were read"
            )
        home = ANY
        if not self.replicated:
            position = self._part_of_key
            home = self._admitted(key if position == -1 else key[position])
        if home in self.whole:
            return None
        tables.miss(KeyWish(home, self.number, key))
        stand_in = self._stand_in(key) if as_present else None
        tables.undo.append((self, key, UNKNOWN, False))
        rows[key] = stand_in
        return stand_in

    def _stand_in(self, key: Any) -> Any:
        schema = self.schema
        if self.sample is None:
            values = [
                None if column.nullable else column.default if column.has_default else _STAND_IN_VALUES[column.type]
                for column in schema.columns
            ]
            self.sample = self._format.struct(*values)
        columns = schema.primary_key
        if len(columns) == 1:
            return replace(self.sample, **{columns[0]: key})
        return replace(self.sample, **dict(zip(columns, key, strict=True)))

    def _partitions(self) -> frozenset[int]:
        """Those that the call may use."""
        return _ANY_ONE if self.replicated else self._tables.allowed

    def _admitted(self, part: Any) -> int:
        """The partition where rows with this value in the partition column live. Raises WrongPartition."""
        tables = self._tables
        home = tables.verified.get(part)
        if home is None:
            if type(part) is not int and type(part) is not str:  # equal to a key that is in the cache: True, 1.0
                raise ConstraintViolation(f"table {self.name}: {part!r:.100} is no value of its partition column")
            slot = hash_slot(part)
            home = tables.owners[slot]
            if home not in tables.allowed:
                raise WrongPartition(
                    f"table {self.name}: key {part!r:.100} (hash slot {slot}) lives in partition {home}, which is "
                    "none of those where this procedure was routed by its partition_by arguments"
                )
            tables.verified[part] = home
        return home

    def _home(self, key: Any, row: Any) -> int:
        """The partition of a row."""
        if self.replicated:
            return ANY
        position = self._part_of_key
        part = self.part_of(row) if position is None else key if position < 0 else key[position]
        return self._tables.owner_of(part)

    def _all(self, partitions: frozenset[int]) -> Iterator[Any]:
        """The rows of these partitions, of which the cache has all."""
        rows = self.rows
        is_all = self.replicated or len(partitions) == self._tables.partitions
        for key in list(rows) if partitions else ():
            row = rows.get(key)
            if row is not None and (is_all or self._home(key, row) in partitions):
                yield row

    def _read(self, kind: str, arguments: bytes, partitions: frozenset[int]) -> Iterator[Any]:
        """The rows as they are now that these partitions name, those that the batch has changed among them."""
        others = partitions - self.whole
        answers = self._asked(kind, arguments, others)
        if len(others) < len(partitions):
            yield from self._all(partitions & self.whole)
        if not others:
            return
        keys: dict[Any, None] = {}
        for answer in answers:
            if not isinstance(answer, int):
                keys.update(dict.fromkeys(answer))
        rows = self.rows
        for key in self.written:
            row = rows[key]
            if row is not None and self._home(key, row) in others:
                keys[key] = None
        for key in keys:
            row = rows.get(key)
            if row is not None:
                yield row

    def _asked(self, kind: str, arguments: bytes, partitions: frozenset[int]) -> list[list[Any] | int]:
        """The partitions' answers; of those that have not been asked it is a miss. Raises what one of them said."""
        answers: list[list[Any] | int] = []
        for partition in sorted(partitions):
            answer = self.answers.get((partition, kind, arguments))
            if answer is None:
                self._tables.miss(ScanWish(partition, self.number, kind, arguments))
            elif isinstance(answer, Error):
                raise type(answer)(str(answer))
            else:
                answers.append(answer)
        return answers

    def _check_fixed(self, row: Any, changes: dict[str, Any]) -> None:
        """Raises for changes that would move a row to another key or another partition."""
        if not self._key_columns.isdisjoint(changes):
            raise ConstraintViolation(f"table {self.name}: a primary key can't be changed; delete and insert instead")
        part = changes[self.schema.partition_column or ""]
        if (type(part) is int or type(part) is str) and self._admitted(part) != self._home(None, row):
            raise WrongPartition(
                f"table {self.name}: rows with {part!r:.100} live in another partition; delete and insert instead"
            )

    def _accessors(self) -> tuple[Callable[..., Any], ...]:
        tables = self._tables
        bound = {
            "_table": self, "_rows": self.rows, "_row_of": self.rows.get, "_written": self.written,
            "_undo": tables.undo, "_unknown": UNKNOWN, "_missed": self._missed, "_verified": tables.verified,
            "_admitted": self._admitted, "_check_fixed": self._check_fixed, "_key_type": self._key_type,
            "_fixed": self._fixed_columns, "_new_hidden_key": tables.new_id, "_unique": self.unique,
        }  # fmt: skip
        return accessors(self.schema, self._format, self._part_of_key, bound, unique=bool(self.unique))


def _nowhere(_: Any) -> None:
    return None


def _encoded_equalities(equalities: dict[str, Any]) -> bytes | None:
    """As they travel; None where a partition could not see the same values."""
    for value in equalities.values():
        if isinstance(value, datetime):
            if value.tzinfo is None:
                return None
        elif type(value) not in (int, float, str, bool, type(None)):
            return None
    try:
        return encode(dict(sorted(equalities.items())))
    except (OverflowError, UnicodeEncodeError):
        return None
