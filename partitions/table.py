"""One table of one partition: heap, primary index and decoded rows, kept together.

The image on the page is the truth; decoded rows are a bounded cache in front of it, and the only thing that a running
transaction touches. What a batch of transactions changed is kept as images by key, `_inserted` (keys that are not in
the index) and `_updated` (keys that are; None = deleted), and goes into pages and index when the batch is in the WAL
(`apply`): a row that is updated a hundred times in a batch is written to its page once, and new rows are appended in
bulk.

So there are four places, and a key is looked for in this order:

    _rows      decoded rows of the young generation
    _inserted, _updated
    _old       the generation before; a hit moves the row to the young one
    index → heap, decoded

Rows that the batch changed may be in `_rows` too, as they are now. `_inserted` also remembers, as None, keys that the
batch has found absent. A row is decoded for keeping when it is asked for the second time, be it to read it or to
change it. When the young generation is full, it becomes the old one, between batches, and the old one is dropped.
Bounded memory then costs nothing on a hit.

The undo log has the row before a change, or UNTOUCHED for the first change of a committed row that was not decoded: its
page has it still. Not where somebody is told what the row was (secondary indexes, views).

`_places` has the row ids of some committed rows that were changed, so that `apply` need not look for them again: a
look-up among a million rows costs as much as writing the row does.

A key that is lent is in `_away`, and never in `_rows` or `_old`, so that a hit need not ask. Touching one raises
NotHere; so does a read that is not by key while any key of the table is away. A row whose page is on disk raises it too
when it is read there, or changed; decoded, it may be read without its page. Pages of rows that a batch has changed stay
in memory until it is over, so `apply` finds them.
"""

from __future__ import annotations

import sys
from binascii import crc_hqx
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from collections.abc import Set as AbstractSet
from itertools import chain, islice, repeat
from operator import attrgetter, itemgetter
from time import perf_counter
from typing import Any, NoReturn
from weakref import ref

import msgspec

from partitions.accessors import UNTOUCHED, accessors
from partitions.heap import Heap
from partitions.index import COLLIDED, NOWHERE, PrimaryIndex
from partitions.lookups import Lookups
from partitions.ownership import Ownership
from partitions.page import Arena, page_id
from partitions.table_redo import TableRedo
from voltpy.errors import ConstraintViolation, Corruption, DuplicateKey, ProtocolError, SchemaError
from voltpy.hash_slot import hash_slot
from voltpy.not_here import WHOLE_TABLE, Misses
from voltpy.row import MAX_ROW_BYTES, RowFormat, encode
from voltpy.schema import Index, tombstone
from voltpy.schema import Table as TableSchema

_INVALID = (msgspec.ValidationError, TypeError, OverflowError, UnicodeEncodeError)
ASKED_KEYS = 1 << 16  # remembered as asked for once, at most
ASKED_BYTES = 100  # that each of them takes
PLACES = 1 << 14  # of rows that were changed, remembered between two batches at most: 100 bytes each
SAMPLED_READS = 32  # to say what a read costs, or a decoded row takes
LEAST_DECODED = 256  # rows of a generation, however large they are
RANGE_PAGES = 64  # a range whose cold pages are more is read past the frames

# (table, key, row before; None = there was none; or UNTOUCHED). A miss appends (None, None, None): see Store.undo_to.
UndoLog = list[tuple[Any, Any, Any]]


class Table:
    """What a procedure sees as `tx.<table>`, with the seams for undo, batches and recovery below."""

    __slots__ = (
        "_asked",
        "_asked_limit",
        "_away",
        "_decode",
        "_decoded_bytes",
        "_dying",
        "_find",
        "_fixed_columns",
        "_forget_last_seen",
        "_forget_seen",
        "_format",
        "_former_accessors",
        "_heap",
        "_index",
        "_inserted",
        "_key_columns",
        "_key_of",
        "_key_type",
        "_misses",
        "_old",
        "_partition_of_key",
        "_places",
        "_rows",
        "_rows_limit",
        "_unchanged_rows",
        "_undo",
        "_updated",
        "follow",
        "get",
        "insert",
        "lookups",
        "maintain",
        "name",
        "new_hidden_key",
        "note",
        "number",
        "owner",
        "redo",
        "schema",
        "update",
        "upsert",
    )
    get: Callable[[Any], Any]
    _forget_last_seen: Callable[[], None]

    def __init__(
        self,
        schema: TableSchema,
        number: int,
        arena: Arena,
        owner: Ownership,
        undo: UndoLog,
        misses: Misses,
        indexes: tuple[Index, ...] = (),
    ) -> None:
        self.name = schema.name
        self.number = number
        self._take_schema(schema)
        # Keys equal to the row's own, but of another type (True, 1.0), must not get among the batch's changes.
        single = schema.column(schema.primary_key[0]).type if len(schema.primary_key) == 1 else ""
        self._key_type = {"INT": int, "STRING": str}.get(single)
        self._heap = Heap(schema, arena, number)
        self._heap.bring = lambda page: misses.pages(page_id(number, page))
        self._index = PrimaryIndex(schema)
        self._find = self._index.find
        self._rows: dict[Any, Any] = {}
        self._old: dict[Any, Any] = {}
        self._dying: dict[Any, Any] = {}
        self._decoded_bytes = 8 << 20  # what a generation of decoded rows may take
        self._rows_limit = LEAST_DECODED
        self._asked_limit = ASKED_KEYS
        self._inserted: dict[Any, bytes | None] = {}
        self._updated: dict[Any, bytes | None] = {}
        self._asked: set[Any] = set()
        self._places: dict[Any, int] = {}
        self._unchanged_rows = 0  # rows that the batch had changed before that was undone
        self._undo = undo
        self.owner = owner
        self._away: set[Any] = set()
        self._misses = misses
        self.redo = TableRedo(self)
        self.new_hidden_key: Callable[[], int] | None = None
        # Told of keys that are used often: see partitions.warm_up.
        self.note: Callable[[int, Collection[Any]], None] = lambda _, __: None
        self.lookups = Lookups(self, indexes) if indexes else None  # its secondary indexes
        self.maintain: Callable[..., None] | None = None  # makes views follow: see partitions.viewed_table
        self._forget_seen: Callable[[], None] = _nothing
        # Accessors that have been: `get`, and what makes it forget the row that it has read last.
        self._former_accessors: list[tuple[ref[Any], Callable[[], None]]] = []
        self._make_accessors()

    # What procedures call, besides get, insert, upsert and update, which partitions.accessors makes.

    def delete(self, key: Any) -> bool:
        """Removes the row with this key; False when there was none."""
        old = self._rows.pop(key, None)
        if old is None:
            old = self._find_row(key)
        if old is None:
            return False
        if type(key) is not self._key_type:
            key = self._key_of(old)
        if self.maintain is not None:
            self.maintain(key, old, None)
        if self._heap.cold:
            self.need(key)
        self._undo.append((self, key, old))
        if key in self._inserted:
            self._inserted[key] = None
        else:
            self._updated[key] = None
        return True

    def count(self) -> int:
        """The number of rows in this partition."""
        if self._away:
            self._wait_for_table()
        return self.row_count

    def scan(self) -> Iterator[Any]:
        """All rows of this partition, in no particular order, page by page; the cache is left as it is."""
        if self._away:
            self._wait_for_table()
        decode, key_of, updated = self._decode, self._key_of, self._updated
        for image in self._heap.scan():
            row = decode(image)
            if updated:
                key = key_of(row)
                if key in updated:
                    current = updated[key]
                    if current is None:
                        continue
                    row = decode(current)
            yield row
        for key in list(self._inserted):
            new = self._inserted.get(key)
            if new is not None:
                yield decode(new)

    def where(self, /, **equalities: Any) -> list[Any]:
        """The rows whose columns equal the values given."""
        unknown = equalities.keys() - {column.name for column in self.schema.columns}
        if unknown:
            raise TypeError(f"table {self.name} has no column {', '.join(sorted(unknown))}")
        if not equalities:
            return list(self.scan())
        if self._key_columns <= equalities.keys():
            key = tuple(equalities[name] for name in self.schema.primary_key)
            row = self.get(key if len(key) > 1 else key[0])
            candidates: Any = () if row is None else (row,)
        else:
            found = None if self.lookups is None else self.lookups.candidates(equalities)
            candidates = self.scan() if found is None else found
        columns = attrgetter(*equalities)
        wanted = tuple(equalities.values()) if len(equalities) > 1 else next(iter(equalities.values()))
        rows = [row for row in candidates if columns(row) == wanted]
        if not rows and self.schema.partition_column in equalities:
            part = equalities[self.schema.partition_column]
            if type(part) is int or type(part) is str:
                self.owner.verify(part, self.name)
        return rows

    def range(self, low: Any, high: Any) -> Iterator[Any]:
        """The rows with low <= primary key < high, in the order of their keys."""
        low, high = self._format.checked_key(low), self._format.checked_key(high)
        if self._away:
            self._wait_for_table()
        if not self._index.ordered:
            found = None if self.lookups is None else self.lookups.between(self.schema.primary_key, low, high)
            if found is not None:
                yield from found
                return
            key_of = self._key_of
            yield from sorted((row for row in self.scan() if low <= key_of(row) < high), key=key_of)
            return
        fresh = sorted(key for key, image in self._inserted.items() if image is not None and low <= key < high)
        stored = [key for key, _ in self._index.range(low, high)] if low < high else []
        get = self._range_get(stored) if self._heap.cold else self.get
        for key in sorted(stored + fresh) if fresh else stored:
            row = get(key)
            if row is not None:
                yield row

    def need(self, key: Any) -> None:
        """Makes sure that the row with this key, which exists, can be changed: its page is in memory until `apply`."""
        if key not in self._inserted and key not in self._updated:
            place = self._places.get(key)
            if place is None:
                place = self._places[key] = self._locate(key)
            self._heap.need(place)

    def pages_to_write(self) -> set[int]:
        """The page numbers that `apply` will change, those of new rows aside: they must stay in memory."""
        heap, candidates = self._heap, self._index.candidates
        pages = set(heap.needed)
        for key in self._updated:
            for row_id in candidates(key):
                pages.update(heap.pages_of(row_id))
        return pages

    @property
    def changed_rows(self) -> int:
        """How often the batch has begun to change a row that existed before it."""
        return len(self._updated) + self._unchanged_rows

    @property
    def is_followed(self) -> bool:
        """Whether indexes or views follow its rows, or it is one."""
        return self.lookups is not None or self.maintain is not None or self.schema.view is not None

    def key_of(self, row: Any) -> Any:
        """A row's primary key."""
        return self._key_of(row)

    def checked_key(self, key: Any) -> Any:
        """The key, if it is one. Raises ConstraintViolation."""
        return self._format.checked_key(key)

    # Undo, and keys that are not here.

    def restore(self, key: Any, old: Any) -> None:
        """Puts back what a transaction changed. Its images stay marked as changed: logging them again is harmless."""
        if old is UNTOUCHED:
            self._rows.pop(key, None)
            self._updated.pop(key, None)
            self._unchanged_rows += 1
            return
        if self.lookups is not None:
            self.lookups.restored(key, old)
        image = None if old is None else encode(old)
        changed = self._inserted if key in self._inserted else self._updated
        changed[key] = image
        if old is None or key in self._away:
            self._rows.pop(key, None)
        else:
            self._rows[key] = old

    def send_all_away(self, keys: Iterable[Any]) -> None:
        """From now on these keys are not here, until `bring_all_back`. Between transactions only."""
        self._forget_decoded(keys)
        self._away.update(keys)

    def bring_all_back(self, keys: Iterable[Any]) -> None:
        """These keys are here again."""
        self._away.difference_update(keys)

    @property
    def away(self) -> AbstractSet[Any]:
        """The keys that are not here."""
        return self._away

    @property
    def all_here(self) -> bool:
        return not self._away

    def hide_keys_with(self, new_hidden_key: Callable[[], int]) -> None:
        """Where the keys of new rows come from, in a table that declares none."""
        if self.schema.hidden_key:
            self.new_hidden_key = new_hidden_key

    # What is read and changed between two transactions, as images, for the coordinator. Whether a key is away is not
    # looked at, and nothing is kept decoded.

    def keys_of(self, encoded: list[bytes]) -> list[Any]:
        """Decoded keys. Raises ProtocolError for one that is none of this table's, or does not live here."""
        try:
            keys = list(map(self._format.decode_key, encoded))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ProtocolError(f"table {self.name}: not a key: {error}") from None
        position = self._partition_of_key
        if position is not None:
            owned = self.owner.owned
            parts = keys if position < 0 else [key[position] for key in keys]
            if self._key_type is int:
                slots = [crc_hqx(b"%d" % part, 0) & 16383 for part in parts]
            else:
                slots = list(map(hash_slot, parts))
            if not all(map(owned.__getitem__, slots)):
                raise ProtocolError(f"table {self.name}: a key that does not live here")
        return keys

    def keys_of_images(self, images: list[bytes]) -> list[Any]:
        """The primary keys of rows. Raises ProtocolError for an image that is no row of this table's."""
        try:
            keys = list(map(self._key_of, map(self._decode, images)))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ProtocolError(f"table {self.name}: not a row: {error}") from None
        if images and max(map(len, images)) > MAX_ROW_BYTES:
            raise ProtocolError(f"table {self.name}: a row of more than {MAX_ROW_BYTES:,} bytes")
        return keys

    def images_of(self, keys: list[Any]) -> list[bytes | None]:
        """The rows with these keys; None for one that is absent. Raises NotHere for cold pages, of all of them."""
        self.redo.wait_for(keys)
        find, read = self._find, self._heap.read
        row_ids = [find(key, NOWHERE) for key in keys]
        if self._heap.cold:
            self._miss_cold(chain.from_iterable(map(self._index.candidates, keys)))
        if self._index.ordered:
            return [None if row_id < 0 else read(row_id) for row_id in row_ids]
        return [None if row_id == NOWHERE else self._image_at(key) for key, row_id in zip(keys, row_ids, strict=True)]

    def scan_images(self) -> list[bytes]:
        """All rows of this partition. Raises NotHere."""
        self.redo.wait_for()
        return list(self._heap.scan())

    def where_images(self, equalities: dict[str, Any]) -> list[bytes]:
        """The rows whose columns equal the values given. Raises SchemaError for a column that there is not."""
        unknown = equalities.keys() - {column.name for column in self.schema.columns}
        if unknown:
            raise SchemaError(f"table {self.name} has no column {', '.join(sorted(unknown))}")
        self.redo.wait_for()
        if not equalities:
            return self.scan_images()
        columns = attrgetter(*equalities)
        wanted = tuple(equalities.values()) if len(equalities) > 1 else next(iter(equalities.values()))
        decode = self._decode
        if self._key_columns <= equalities.keys():
            key = tuple(equalities[name] for name in self.schema.primary_key)
            found = self.images_of([self._format.checked_key(key if len(key) > 1 else key[0])])
            return [image for image in found if image is not None and columns(decode(image)) == wanted]
        return [image for image in self._heap.scan() if columns(decode(image)) == wanted]

    def range_images(self, low: Any, high: Any) -> list[bytes]:
        """The rows with low <= primary key < high, in the order of their keys. Raises ConstraintViolation, NotHere."""
        low, high = self._format.checked_key(low), self._format.checked_key(high)
        self.redo.wait_for()
        if not low < high:
            return []
        if not self._index.ordered:
            decode, key_of = self._decode, self._key_of
            found = [(key_of(decode(image)), image) for image in self._heap.scan()]
            return [image for key, image in sorted(found, key=itemgetter(0)) if low <= key < high]
        row_ids = [row_id for _, row_id in self._index.range(low, high)]
        pages = {self._heap.page_of(row_id) for row_id in row_ids if self._heap.is_cold(row_id)}
        if len(pages) > RANGE_PAGES:
            past: dict[int, bytes] = {}
            return [self._heap.read_past(row_id, past) for row_id in row_ids]
        self._miss_cold(row_ids)
        return list(map(self._heap.read, row_ids))

    def put(self, keys: list[Any], images: list[bytes], deleted: list[Any]) -> None:
        """Makes these changes the batch's; nothing undoes them but `forget_changes`.

        Raises NotHere for cold pages, of all of them; then nothing has changed, as far as `forget_changes` knows.
        """
        inserted, updated, find = self._inserted, self._updated, self._find
        self.redo.wait_for(keys)
        self.redo.wait_for(deleted)
        if self._heap.cold:
            self._miss_cold(chain.from_iterable(map(self._index.candidates, chain(keys, deleted))))
        self._forget_decoded(keys)
        self._forget_decoded(deleted)
        needed: list[int] = []
        is_ordered, places = self._index.ordered, self._places
        for key, image in zip(keys, images, strict=True):
            row_id = find(key, NOWHERE) if is_ordered else self._locate(key, NOWHERE)
            if row_id == NOWHERE:
                inserted[key] = image
            else:
                needed.append(row_id)
                updated[key] = image
                places[key] = row_id
        for key in deleted:
            row_id = self._locate(key, NOWHERE)
            if row_id != NOWHERE:
                needed.append(row_id)
                updated[key] = None
        self._heap.need_all(needed)

    def _forget_decoded(self, keys: Iterable[Any]) -> None:
        for decoded in (self._rows, self._old):
            if decoded:
                forget = decoded.pop
                for key in keys:
                    forget(key, None)

    def _image_at(self, key: Any) -> bytes | None:
        for row_id in self._index.candidates(key):
            image = self._heap.read(row_id)
            if self._key_of(self._decode(image)) == key:
                return image
        return None

    def _miss_cold(self, row_ids: Iterable[int]) -> None:
        is_cold, page_of = self._heap.is_cold, self._heap.page_of
        cold = {page_of(row_id) for row_id in row_ids if row_id >= 0 and is_cold(row_id)}
        if cold:
            self._misses.pages(*(page_id(self.number, page) for page in sorted(cold)))

    # Batches.

    def changes(self) -> tuple[list[bytes], list[bytes]]:
        """What the batch changed: images of rows as they are now, and encoded keys of rows that are gone."""
        images: list[bytes] = [*filter(None, self._inserted.values()), *filter(None, self._updated.values())]
        deleted = [encode(key) for key, image in self._updated.items() if image is None]
        return images, deleted

    def pages_needed(self, images: list[bytes]) -> int:
        """Frames that `apply` could take at most for these images."""
        return self._heap.pages_needed(len(images), sum(map(len, images)))

    def apply(self) -> None:
        """Writes the batch's images into pages and index. The arena has `pages_needed` frames."""
        updated = self._updated
        self._forget_seen()
        if updated and None in updated.values():  # first: what they leave is room for the rest
            gone = [key for key, image in updated.items() if image is None]
            self._delete_at(gone, self._places_of(gone))
            updated = {key: image for key, image in updated.items() if image is not None}
        if self._inserted:
            images = [*filter(None, self._inserted.values())]
            keys = list(self._inserted)
            if len(images) < len(keys):
                keys = [key for key, image in self._inserted.items() if image is not None]
            if images:  # not so where keys were only asked for, and are in no row
                row_ids = self._heap.extend(images)
                self._index.extend(keys, row_ids)
                if self.lookups is not None:
                    self.lookups.add(row_ids, images)
            self._inserted.clear()
        if updated:
            keys = list(updated)
            self._replace_at(keys, self._places_of(keys), list(updated.values()))
        self._updated.clear()
        self._unchanged_rows = 0
        if len(self._places) > PLACES:
            self._places.clear()
        if self.lookups is not None:
            self.lookups.forget_changes()
        if len(self._rows) > self._rows_limit:
            self._age()
        if self._dying:
            # Gone by the time that the young generation is half full.
            self._drop_dying(len(self._dying) - self._rows_limit + 2 * len(self._rows))
        if len(self._asked) > self._asked_limit:
            self._asked.clear()

    def forget_changes(self) -> None:
        """The whole batch was undone: pages and index are as they were before it."""
        self._inserted.clear()
        self._updated.clear()
        self._unchanged_rows = 0
        if self.lookups is not None:
            self.lookups.forget_changes()

    def limit_decoded(self, decoded_bytes: int) -> None:
        """Bounds each generation of decoded rows, with the keys that were asked for, to about so many bytes.

        It is looked at between batches: one batch may decode more.
        """
        self._decoded_bytes = decoded_bytes
        row_bytes = self._decoded_row_bytes()
        if not row_bytes:  # it is known as soon as there are a few
            self._rows_limit = LEAST_DECODED
            return
        self._rows_limit = max(decoded_bytes // (row_bytes + ASKED_BYTES), LEAST_DECODED)
        self._asked_limit = min(2 * self._rows_limit, ASKED_KEYS)  # as many as there are rows in both generations

    def add_index(self, index: Index, may_end: Callable[[], bool] = lambda: True) -> Generator[None, None, None]:
        """Builds another index, some pages a step, between batches; the last step makes it ready.

        Raises DuplicateKey when it is unique and the rows are not: then nothing is left of it.
        """
        if self.lookups is None:
            self.lookups = Lookups(self, ())
        try:
            yield from self.lookups.add_index(index, may_end)
        except (DuplicateKey, Corruption, OSError, GeneratorExit):
            self.drop_index(index.name)
            raise
        self._make_accessors()

    def drop_index(self, name: str) -> None:
        """Between batches. Does nothing when there is none of this name."""
        if self.lookups is not None:
            self.lookups.drop_index(name)
            if not self.lookups.indexes:
                self.lookups = None
        self._make_accessors()

    def alter(self, schema: TableSchema) -> None:
        """The table has more columns from now on, or another partition column. Between batches.

        Rows that are stored stay as they are: what was added to them has its default (voltpy.row).
        """
        self._take_schema(schema)
        for decoded in (self._rows, self._old, self._dying):
            decoded.clear()
        self._make_accessors()

    def bury(self) -> None:
        """The table is dropped, and empty from now on. Between batches, while no checkpoint writes its pages."""
        self._heap.discard()
        schema = tombstone(self.schema)
        self._index = PrimaryIndex(schema)
        self._find = self._index.find
        self.lookups = None
        self._key_type = int
        for forgotten in (self._inserted, self._updated, self._asked, self._away, self._places):
            forgotten.clear()
        self.alter(schema)

    def note_decoded(self) -> None:
        """Says which keys are in the young generation, though it is not full."""
        self.note(self.number, self._rows)

    def pages_of(self, key: Any) -> list[int]:
        """The page numbers where the row with this key may be; none for what is no key of this table."""
        try:
            self._format.checked_key(key)
            row_ids = self._index.candidates(key)
        except (ConstraintViolation, *_INVALID):
            return []
        return [self._heap.page_of(row_id) for row_id in row_ids]

    @property
    def storage(self) -> tuple[Heap, PrimaryIndex]:
        """Where what is committed is; for checkpoints."""
        return self._heap, self._index

    @property
    def row_count(self) -> int:
        """Rows as the running transaction sees them: what the pages hold, and what the batch has changed since."""
        stored = self._heap.rows
        if self._inserted:
            stored += len(self._inserted) - list(self._inserted.values()).count(None)
        if self._updated:
            stored -= list(self._updated.values()).count(None)
        return stored

    @property
    def changed(self) -> bool:
        return bool(self._inserted or self._updated)

    @property
    def image_bytes(self) -> int:
        return self._heap.image_bytes

    @property
    def pages(self) -> int:
        return self._heap.pages

    @property
    def decoded_rows(self) -> int:
        return len(self._rows) + len(self._old) + len(self._dying)

    def read_latency_us(self) -> tuple[float | None, float | None]:
        """(of a decoded row, of one on a page in memory), the mean of a few; None where there is none."""
        keys = list(islice(self._rows, SAMPLED_READS))
        row_ids = self._heap.some_row_ids(SAMPLED_READS)
        hot = resident = None
        if keys:
            began_s = perf_counter()
            for key in keys:
                self.get(key)
            hot = round((perf_counter() - began_s) / len(keys) * 1e6, 2)
        if row_ids:
            began_s = perf_counter()
            for row_id in row_ids:
                self._decode(self._heap.read(row_id))
            resident = round((perf_counter() - began_s) / len(row_ids) * 1e6, 2)
        return hot, resident

    @property
    def decoded_bytes(self) -> int:
        """About what the decoded rows take."""
        return self.decoded_rows * self._decoded_row_bytes()

    def _decoded_row_bytes(self) -> int:
        """About what a decoded row takes, by a sample; 0 when there is none."""
        sample = list(islice(self._rows.values() or self._old.values(), SAMPLED_READS))
        return sum(map(_decoded_bytes, sample)) // len(sample) if sample else 0

    def check(self) -> None:
        """Raises Corruption unless heap, index, counts and decoded rows agree. Between batches only."""
        self._heap.check()
        self._index.check(self.name)
        if not len(self._index) == self._heap.rows == self.row_count:
            raise Corruption(
                f"table {self.name}: {len(self._index)} index entries, {self._heap.rows} stored rows, "
                f"{self.row_count} counted"
            )
        if sorted(self._heap.row_ids()) != sorted(self._index.row_ids()):
            raise Corruption(f"table {self.name}: the index names other row ids than the heap")
        cached, places = self._old | self._rows, self._places.copy()
        images: dict[int, bytes] = {}
        for row_id in sorted(self._index.row_ids()):
            image = self._heap.read_past(row_id, images)
            key = self._key_of(self._format.loaded(image))
            if row_id not in self._index.candidates(key):
                raise Corruption(f"table {self.name}: the row at {row_id} is indexed under another key")
            if places.pop(key, row_id) != row_id:
                raise Corruption(f"table {self.name}: key {key!r:.100} is remembered at another place than {row_id}")
            row = cached.pop(key, None)
            if row is not None and encode(row) != image and self._decode(image) != row:
                raise Corruption(f"table {self.name}: key {key!r} is cached as {row!r}, stored as {image!r}")
        if self.lookups is not None:
            self.lookups.check()
        if cached or places:
            stray = [*cached, *places][:5]
            raise Corruption(f"table {self.name}: keys that are cached and not stored: {stray!r}")

    # Inside.

    def _wait_for_table(self) -> NoReturn:
        self.redo.wait_for()
        self._misses.raise_for((self.number, WHOLE_TABLE))

    def _take_schema(self, schema: TableSchema) -> None:
        self.schema = schema
        self._format = RowFormat(schema)
        self._decode = self._format.decode
        self._key_of = self._format.key_of
        self._key_columns = frozenset(schema.primary_key)
        self._fixed_columns = self._key_columns | {column for column in (schema.partition_column,) if column}
        self._partition_of_key = _partition_position(schema)

    def _make_accessors(self) -> None:
        """For the columns, and again when a unique index has come or gone."""
        if self.schema.dropped:  # nobody calls what it has no columns for
            self._forget_seen, self._former_accessors = _nothing, []
            return
        if self._forget_seen is not _nothing:
            self._former_accessors.append((ref(self.get), self._forget_last_seen))
        made = accessors(self, self._format, self._index, self._heap)
        self.get, self.insert, self.upsert, self.update, self.follow, self._forget_last_seen = made
        self._forget_seen = self._forget_all_seen if self._former_accessors else self._forget_last_seen

    def _forget_all_seen(self) -> None:
        """Somebody may still read by accessors that have been replaced, such as a read-only view of this table."""
        self._forget_last_seen()
        self._former_accessors = [(get, forget) for get, forget in self._former_accessors if get() is not None]
        for _, forget in self._former_accessors:
            forget()
        if not self._former_accessors:
            self._forget_seen = self._forget_last_seen

    def _check_fixed(self, changes: dict[str, Any]) -> None:
        """Raises for changes that would move a row to another key or another partition."""
        if not self._key_columns.isdisjoint(changes):
            raise ConstraintViolation(f"table {self.name}: a primary key can't be changed; delete and insert instead")
        part = changes[self.schema.partition_column or ""]
        if type(part) is int or type(part) is str:
            self.owner.verify(part, self.name)

    def _find_row(self, key: Any) -> Any:
        """The row from behind the young generation, or None. An absent key must at least be one that could be here."""
        if self._away and key in self._away:
            self.redo.wait_for((key,))
            self._misses.raise_for((self.number, key))
        inserted = self._inserted
        if key in inserted or key in self._updated:
            image = inserted[key] if key in inserted else self._updated[key]
            return None if image is None else self._decode(image)
        if key in self._old:
            self._asked.add(key)
            return self._old.pop(key)
        try:
            row_id = self._find(key, NOWHERE)
        except (TypeError, OverflowError, UnicodeEncodeError):
            self._format.checked_key(key)
            raise
        if row_id != NOWHERE:
            for candidate in (row_id,) if row_id >= 0 else self._index.candidates(key):
                row = self._decode(self._heap.read(candidate))
                if self._key_of(row) == key:
                    return row
        position = self._partition_of_key
        if type(key) is self._key_type:
            if position is not None and key != self.owner.verified:
                self.owner.verify(key, self.name)
            inserted[key] = None  # whoever asks for it next most likely inserts it
            return None
        self._format.checked_key(key)
        if position is not None:
            self.verify(key if position < 0 else key[position])
        return None

    def _range_get(self, keys: list[int]) -> Callable[[int], Any]:
        """How a range gets the rows with these keys, all of them in the index.

        Their cold pages are missed together; if they are many, they are read past the frames instead, so that a long
        range, like a scan, displaces nothing.
        """
        heap, find, get_decoded = self._heap, self._find, self._rows.get
        cold = set()
        for key in keys:
            row_id = find(key, NOWHERE)
            if heap.is_cold(row_id) and get_decoded(key) is None and key not in self._old:
                cold.add(heap.page_of(row_id))
        if not cold:
            return self.get
        if len(cold) <= RANGE_PAGES:
            self._misses.pages(*(page_id(self.number, page) for page in sorted(cold)))
            return self.get
        images: dict[int, bytes] = {}

        def get(key: int) -> Any:
            row = get_decoded(key)
            if row is not None:
                return row
            row_id = find(key, NOWHERE)
            if key in self._inserted or key in self._updated or key in self._old or not heap.is_cold(row_id):
                return self.get(key)
            return self._decode(heap.read_past(row_id, images))

        return get

    @property
    def partition(self) -> int:
        """The number of the partition that it is part of."""
        return self.owner.partition

    def verify(self, part: Any) -> None:
        """Raises WrongPartition unless rows with this value in the partition column live here."""
        self.owner.verify(part, self.name)

    def _replace_at(self, keys: list[Any], row_ids: list[int], images: list[Any]) -> None:
        olds = None if self.lookups is None else self.lookups.read_committed(row_ids)
        new_row_ids = self._heap.update(row_ids, images)
        if self.lookups is not None and olds is not None:
            self.lookups.replace(olds, row_ids, images, new_row_ids)
        if new_row_ids != row_ids:
            for key, row_id, new_row_id in zip(keys, row_ids, new_row_ids, strict=True):
                if new_row_id != row_id:
                    self._index.move(key, row_id, new_row_id)
                    self._places[key] = new_row_id

    def _delete_at(self, keys: list[Any], row_ids: list[int]) -> None:
        if self.lookups is not None:
            self.lookups.remove(row_ids)
        for key, row_id in zip(keys, row_ids, strict=True):
            self._heap.delete(row_id)
            self._index.remove(key, row_id)
            self._places.pop(key, None)

    def _places_of(self, keys: list[Any]) -> list[int]:
        """The row ids of committed rows, which are in `_places` from now on."""
        places = self._places
        row_ids: list[int] = list(map(places.get, keys))  # type: ignore[arg-type]  # None only until below
        if None in row_ids:
            lacking = [key for key, row_id in zip(keys, row_ids, strict=True) if row_id is None]
            found = self._index.find_all(lacking)
            if COLLIDED in found:
                found = [self._locate(key) for key in lacking]
            places.update(zip(lacking, found, strict=True))
            if len(lacking) == len(keys):
                return found
            row_ids = list(map(places.__getitem__, keys))
        return row_ids

    def _locate(self, key: Any, default: int | None = None) -> int:
        row_id = self._find(key, NOWHERE)
        if row_id >= 0 and (default is None or self._index.ordered):
            return row_id
        for row_id in self._index.candidates(key):
            if self._key_of(self._format.loaded(self._heap.read(row_id))) == key:
                return row_id
        if default is None:
            raise Corruption(f"table {self.name}: key {key!r:.100} is not in the index")
        return default

    def _age(self) -> None:
        """The young generation becomes the old one. Dropping a large dict at once would stall, so it goes in slices."""
        self.limit_decoded(self._decoded_bytes)  # by what rows are like now
        self.note(self.number, self._rows)
        self._drop_dying(len(self._dying))
        self._dying, self._old = self._old, self._rows.copy()
        self._rows.clear()  # it stays the same object: the accessors hold it

    def _drop_dying(self, rows: int) -> None:
        forget = self._dying.popitem
        for _ in repeat(None, min(rows, len(self._dying))):
            forget()


def _nothing() -> None:
    pass


def _partition_position(schema: TableSchema) -> int | None:
    """Where the partition column is in a key: -1, it is the key; None, a key does not tell."""
    if schema.partition_column is None or schema.hidden_key:
        return None
    if len(schema.primary_key) == 1:
        return -1
    return schema.primary_key.index(schema.partition_column)


def _decoded_bytes(row: Any) -> int:
    """About what a decoded row costs: the Struct, its values, its key and its place in a dict."""
    return sum(map(_allocated_bytes, filter(None, msgspec.structs.astuple(row)))) + _allocated_bytes(row) + 140


def _allocated_bytes(value: Any) -> int:
    """What an object takes: CPython hands out up to 512 bytes in steps of 16, malloc more, with 8 of its own."""
    size = sys.getsizeof(value)
    return (size + 15 if size <= 512 else size + 23) // 16 * 16
