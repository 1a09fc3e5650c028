"""The tables as a procedure sees them in the coordinator: rows borrowed from the partitions, in a cache.

A key that the cache knows is present (a row) or absent (None). One that it does not know is a *miss*: it is noted among
`wants`, the run is poisoned, and the body goes on with a *stand-in*, so that one run finds most of what it will need.
Whatever the body makes of a stand-in, the run is undone and repeated with the real row. A stand-in is

    for a row that is read, changed or deleted    the last row of its table that was seen, with this key
    for a row that is inserted                    none: the key is taken to be free
    for a scan, where, range, count               no rows
    for a value in a unique index                 none: it is taken to be free (coordinator.entries)

What is read of a table otherwise than by key is asked of every partition that the call may use; the answers are rows of
the cache too, and what the batch has changed since is laid over them: see `Table`.

`undo` entries are (table, key, row before, whether the key was not changed before by this batch). UNKNOWN for a row:
the key was not in the cache. No table: the run is poisoned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from operator import attrgetter
from typing import Any, NamedTuple, TypeAlias

import msgspec
from msgspec import Raw
from msgspec.structs import replace

from coordinator.entries import EntryWish, UniqueIndex
from voltpy.errors import CODES, ConstraintViolation, DuplicateKey, Error, ProtocolError, SchemaError, WrongPartition
from voltpy.hash_slot import hash_slot, slot_owners
from voltpy.messages import Scan, ScanAnswer, TableChanges, TableKeys
from voltpy.not_here import NotHere
from voltpy.row import RowFormat, encode
from voltpy.row_source import functions, row_source
from voltpy.schema import INT_MAX, INT_MIN, Index, Schema
from voltpy.schema import Table as TableSchema

ANY = -1  # in the place of a partition: whichever one has a copy of the table
UNKNOWN: Any = object()
STAND_INS = 256  # in one run; then it ends
VERIFIED_KEPT = 1 << 14  # values of partition columns
COPIES_KEPT = 1 << 16  # rows of tables that every partition has a copy of, kept from batch to batch

_NO_ARGUMENTS = b"\xc0"
_UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError)
_STAND_IN_VALUES: dict[str, Any] = {
    "INT": 0, "FLOAT": 0.0, "STRING": "", "BOOL": False, "TIMESTAMP": datetime(1970, 1, 1, tzinfo=UTC)
}  # fmt: skip


class KeyWish(NamedTuple):
    """A row that a call needs."""

    partition: int
    table: int
    key: Any


class ScanWish(NamedTuple):
    """A read that is not by key; `arguments` are encoded."""

    partition: int
    table: int
    kind: str
    arguments: bytes


class FragmentWish(NamedTuple):
    """What a partition sends for a SELECT: see voltpy.messages.Fragment, whose fields these are."""

    partition: int
    text: str
    parameters: bytes
    sends_copies: bool
    call: tuple[int, int, datetime] | None


Wish: TypeAlias = KeyWish | EntryWish | ScanWish | FragmentWish
Undo: TypeAlias = tuple["Table | None", Any, Any, bool]

# Each looks in the cache, and checks that the call may use the partition where the row lives: that is known by the
# value in its partition column, and values that were checked are remembered for the length of a run.
_GET = """
def get(_key, /):
    "The row with this primary key (a tuple where it has several columns), or None."
    _row = _row_of(_key, _unknown)
    if _row is _unknown:
        _row = _missed(_key)
{admitted}
    return _row
"""

_UPDATE = """
def update(_key, /, **_changes):
    "Changes columns of the row with this key and returns it. Raises KeyError when there is none."
    _old = _row_of(_key, _unknown)
    if _old is _unknown:
        _old = _missed(_key)
{admitted}
    if _old is None:
        raise _no_row(_key)
    if not _fixed.isdisjoint(_changes):
        _check_fixed(_old, _changes)
    if _type(_key) is not _key_type:
        _key = _key_of(_old)
    _row = _replace(_old, **_changes)
    for _name, _value in _changes.items():
        # What is no number may be too large, or no text; the row is encoded at the end of the batch only.
        if _type(_value) is not _small[_name] or {odd}:
            _row, _ = _validated(_row)
            break
{unique}{changed}
    return _row
"""

# Where the table has unique indexes: at the last moment before anything changes.
_UNIQUE = """    for _index in _unique:
        _index.check(_key, _row, _old)
"""

_CHANGED = """
    if _key in _written:
        _undo.append((_table, _key, _old, False))
    else:
        _written[_key] = _old
        _undo.append((_table, _key, _old, True))
    _rows[_key] = _row
"""

_KEYED = """
def insert({parameters}):
    "Adds a row, columns by position or by name, and returns it. Raises DuplicateKey, ConstraintViolation."
{made}
    _key = {key}
    _old = _row_of(_key, _unknown)
    if _old is _unknown:
        _old = _missed(_key, False)
{admitted}
    if _old is not None:
        raise _duplicate(_key)
{unique}{changed}
    return _row

def upsert({parameters}):
    "Inserts a row, or replaces the one with the same key, whole; returns it. Raises ConstraintViolation."
{made}
    _key = {key}
    _old = _row_of(_key, _unknown)
    if _old is _unknown:
        _old = _missed(_key, False)
{admitted}
{unique}{changed}
    return _row
"""

# A key that is new by construction needs no look-up.
_HIDDEN = """
def insert({parameters}):
    "Adds a row, columns by position or by name, and returns it. Raises ConstraintViolation."
    {name} = _new_hidden_key()
{made}
    _old, _key = None, {name}
{admitted}
{unique}{changed}
    return _row

upsert = insert
"""


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
        "delete",
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
            self.get, self.insert, self.upsert, self.update, self.delete = self._accessors()

    # What procedures call, besides get, insert, upsert, update and delete.

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
        """get, insert, upsert, update and delete, made for the table's columns."""
        schema, tables = self.schema, self._tables

        def duplicate(key: Any) -> DuplicateKey:
            return DuplicateKey(f"table {schema.name}: a row with key {key!r:.100} exists")

        def no_row(key: Any) -> KeyError:
            return KeyError(f"table {schema.name} has no row with key {key!r:.100}")

        rows = row_source(schema, self._format)
        changed = _CHANGED.strip("\n")
        unique = _UNIQUE if self.unique else ""
        by_row = f"_row.{schema.partition_column}"
        if self.replicated:
            admitted_key = admitted_row = "    pass"
        elif schema.hidden_key:
            admitted_key = _admission("_old is not None and ", f"_old.{schema.partition_column}", "if")
            admitted_row = _admission("", by_row, "if")
        else:
            position = self._part_of_key
            admitted_key = _admission("", "_key" if position == -1 else f"_key[{position}]", "elif")
            admitted_row = _admission("", by_row, "elif")
        keyed = _HIDDEN if schema.hidden_key else _KEYED
        source = (
            _GET.format(admitted=admitted_key.replace("_old", "_row"))
            + keyed.format(
                parameters=rows.parameters, made=rows.made, key=rows.key, name=schema.primary_key[0],
                admitted=admitted_row, changed=changed, unique=unique,
            )
            + _UPDATE.format(admitted=admitted_key, changed=changed, odd=rows.odd, unique=unique)
        )  # fmt: skip
        bound = rows.bound | {
            "_table": self, "_rows": self.rows, "_row_of": self.rows.get, "_written": self.written,
            "_undo": tables.undo, "_unknown": UNKNOWN, "_missed": self._missed, "_verified": tables.verified,
            "_admitted": self._admitted, "_check_fixed": self._check_fixed, "_key_type": self._key_type,
            "_fixed": self._fixed_columns, "_duplicate": duplicate, "_no_row": no_row,
            "_new_hidden_key": tables.new_id, "_unique": self.unique,
            "_small": {name: type_ for name, type_ in rows.bound["_exact"].items() if type_ is not str}
            | {column.name: None for column in schema.columns if column.type == "STRING"},
        }  # fmt: skip
        made = (*functions(source, "get, insert, upsert, update", bound, f"<borrowed {schema.name}>"), self._delete)
        for accessor in made[:-1]:
            accessor.__qualname__ = f"{schema.name}.{accessor.__name__}"
        return made

    def _delete(self, key: Any) -> bool:
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


_ANY_ONE = frozenset({ANY})


def _nowhere(_: Any) -> None:
    return None


class Tables:
    """All tables, and what the running call may do with them.

    `begin` before each run. `allowed`: the partitions that it may use; `verified`: values of partition columns, with
    their partitions, that are known to be among them. `wants`: what the run has missed. Equal sets of partitions had
    better be the same object.
    """

    def __init__(self, schema: Schema, partitions: int, new_id: Callable[[], int]) -> None:
        self.partitions = partitions
        self.owners = slot_owners(partitions)
        self.everywhere = frozenset(range(partitions))
        self.new_id = new_id
        self.undo: list[Undo] = []
        self.verified: dict[Any, int] = {}
        self.allowed: frozenset[int] = self.everywhere
        self.wants: dict[Wish, None] = {}
        self.in_round = False  # whether the running call is answered from a read round: nobody writes
        # What partitions sent for SELECTs, or (class name of voltpy.errors, message).
        self.fragments: dict[FragmentWish, list[list[list[Any]]] | tuple[str, str]] = {}
        self._stand_ins = 0  # that this run may still use
        self._may_stand_in = False
        self.take_schema(schema)

    def take_schema(self, schema: Schema) -> None:
        """The tables are these; nothing is known of their rows. Between batches."""
        self.tables = [
            Table(table, number, self, schema.indexes_at(number)) for number, table in enumerate(schema.tables)
        ]
        self.by_name = {table.name: table for table in self.tables if not table.schema.dropped}

    def begin(
        self, allowed: frozenset[int], verified: Mapping[Any, int], stand_ins: bool, in_round: bool = False
    ) -> None:
        """A run begins. What was verified for the run before stays so where it might use the same partitions."""
        self.in_round = in_round
        if allowed is not self.allowed or len(self.verified) > VERIFIED_KEPT:
            self.allowed = allowed
            self.verified.clear()
        self.verified.update(verified)
        self._stand_ins = STAND_INS if stand_ins else 0
        self._may_stand_in = stand_ins

    def owner_of(self, part: Any) -> int:
        """The partition where rows with this value in the partition column live."""
        return self.owners[hash_slot(part)]

    @property
    def undo_log(self) -> list[Undo]:
        return self.undo

    def miss(self, wish: Wish) -> None:
        """The run needs this, and is poisoned: it will be undone. Raises NotHere where it may have no stand-in."""
        self.wants[wish] = None
        self.undo.append((None, None, None, False))
        if not self._stand_ins:
            raise NotHere
        self._stand_ins -= 1

    def miss_all(self, wishes: Iterable[Wish]) -> None:
        """The same for several at once: they have one stand-in."""
        for wish in wishes:
            self.wants[wish] = None
        self.miss(wish)

    def undo_to(self, mark: int) -> None:
        """Takes back what was changed since the undo log had this length."""
        undo = self.undo
        while len(undo) > mark:
            table, key, row, was_first = undo.pop()
            if table is not None:
                if was_first:
                    del table.written[key]
                if row is UNKNOWN:
                    del table.rows[key]
                else:
                    table.rows[key] = row

    def knows(self, wish: Wish) -> bool:
        if isinstance(wish, FragmentWish):
            return wish in self.fragments
        return self.tables[wish.table].knows(wish)

    def changes(self) -> dict[int, dict[int, TableChanges]]:
        """What the batch has changed, by partition (ANY: in all of them) and table number."""
        changed: dict[int, dict[int, TableChanges]] = {}
        for table in self.tables:
            if table.written:
                for home, of_table in table.changes().items():
                    changed.setdefault(home, {})[table.number] = of_table
        return changed

    def not_borrowed(self) -> dict[int, list[TableKeys]]:
        """Keys that the batch has changed without borrowing them, by partition (ANY: of all of them): those of copied
        tables, and hidden ones, which are new or in a part of the table that is lent whole."""
        keys: dict[int, list[TableKeys]] = {}
        for table in self.tables:
            if table.written and (table.replicated or table.schema.hidden_key):
                for home, encoded in table.changed_keys().items():
                    keys.setdefault(home, []).append(TableKeys(table.number, encoded))
        return keys

    def borrowed_keys(self) -> list[set[Any]]:
        """The keys that the cache knows, by table; none of tables that every partition has a copy of."""
        return [set() if table.replicated else set(table.rows) for table in self.tables]

    def changed_keys(self, changes: list[TableChanges]) -> set[tuple[int, Any]]:
        """(table number, key) of everything in these changes, which `changes` has made."""
        keys: set[tuple[int, Any]] = set()
        for change in changes:
            table = self.tables[change.table]
            keys.update((change.table, table.key_of_image(image)) for image in change.images)
            keys.update((change.table, table.decoded_key(key)) for key in change.deleted)
        return keys

    @property
    def is_on_stand_ins(self) -> bool:
        """Whether what the run has got is not all real."""
        return self._may_stand_in and bool(self.wants)

    @property
    def has_borrowed(self) -> bool:
        """Whether the cache has rows, or knows of absent ones, that were lent for the call that runs."""
        return not self.in_round and any(
            not table.replicated and (table.rows or table.whole or table.answers) for table in self.tables
        )

    def give_back(self) -> None:
        """What was borrowed is not ours any more. Copies of tables that every partition has are kept, with changes."""
        self.fragments.clear()
        for table in self.tables:
            if not table.replicated:
                table.forget()
            else:
                table.answers.clear()
                for index in table.unique:
                    index.forget()
                if len(table.rows) > COPIES_KEPT and not table.written:
                    table.forget()

    def settle(self, *, commits: bool) -> None:
        """The batch's changes count, or never happened."""
        for table in self.tables:
            if table.replicated:
                if commits:
                    table.written.clear()
                else:
                    table.take_back()

    def forget_copies(self) -> None:
        """Others have changed tables that every partition has a copy of."""
        for table in self.tables:
            if table.replicated:
                table.forget()


def _admission(condition: str, part: str, word: str) -> str:
    return f"    {word} {condition}{part} not in _verified:\n        _admitted({part})"


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


def scan_of(wish: ScanWish) -> Scan:
    return Scan(wish.table, wish.kind, Raw(wish.arguments))
