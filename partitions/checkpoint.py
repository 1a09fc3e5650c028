"""A partition's state as of one LSN, on disk: so that recovery replays only what came after, and the WAL stays short.

    partition directory:
      pages                       places with pages                                   partitions.page_file
      index-<table>-<n>-<g>.run   entries of a primary index that the n-th checkpoint wrote, g being its generation
      lookups-<table>-<n>-<g>.image   secondary indexes of a table                      partitions.index_image
      checkpoint                  the root: which places and which runs make up the last checkpoint
      checkpoint.held             the root that a snapshot copies, while it does         partitions.hold
      wal-….log                   what came after it, and perhaps more                voltpy.record_log

**The root.** Written as checkpoint.new, flushed, renamed over the last one, directory flushed. So there is always one
whole root, and everything that it names was flushed before it got its name. Integers are little-endian.

    root     = header payload
    header     0  magic      8 bytes  b"voltpyCP"       24  LSN           u64
               8  version    u32      1                 32  length        u64   of the payload
              12  owner      u32      partition         40  payload CRC   u32
              16  number     u64      of the checkpoint  44  CRC          u32   over 0 to 43
    payload  = MessagePack of Root
    entry    = u64: (place + 1) << 16 | generation; 0 where there is no page of this number

A *generation* is 16 bits that differ from one attempt at a checkpoint to the next, so that an image of an earlier
attempt in a page's place, left there by a lost write, is not taken for it.

**Runs.** Each checkpoint adds a run of what has changed in an index since the one before, in order; when the runs have
grown longer than the index, all of it is written as a *base run*, and the others are dropped. The base run is copied
while the index changes: what changed meanwhile is in the next run, where the last word on each number counts.

    run      = header chunk*
    header     0  magic      8 bytes  b"voltpyIX"       16  table         u32
               8  version    u32      1                 20  CRC           u32   over 0 to 19
              12  owner      u32      partition
    chunk      0  count      u32      of entries         8  numbers       count × i64
               4  CRC        u32      over the rest         row ids       count × i64; -1 where an entry went

**How a checkpoint is made.** It begins between two batches, at the LSN of the last one. From then on a page that
changes is first remembered as it was, until it has been written; so what is written is exactly the state at that LSN,
while the partition works on. (Images taken at different moments, and replay by key over them, do not come back right:
in 2,000 simulated crashes 42 did at most.) Pages go out in small chunks, each flushed before the next one is written,
since a long queue at the disk would hold up the WAL. The steps are those of `Checkpointer._checkpoint`, top to bottom.
"""

from __future__ import annotations

import errno
import os
import struct
from array import array
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
from google_crc32c import value as crc32c
from msgspec import Meta, Struct
from pyroaring import BitMap

from partitions.flusher import Flusher
from partitions.hold import Hold
from partitions.index import PrimaryIndex
from partitions.index_image import image_of
from partitions.pace import Pace
from partitions.page import sealed
from partitions.page_file import PageFile, entry_of, place_of, write_all
from partitions.store import Store
from partitions.table import Table
from partitions.wal import Wal
from voltpy.crash_point import crash_point
from voltpy.errors import Corruption
from voltpy.messages import TableChanges
from voltpy.outcome_window import OutcomeWindow
from voltpy.record_log import DiskFull, flush_directory

CHECKPOINT_BYTES = 256 << 20  # so much new WAL makes a checkpoint due
CHUNK_PAGES = 32  # written and flushed at a time
HURRIED_PAGES = 256  # while calls can't go on without
RUN_ENTRIES = 1 << 13  # the same for index entries
IMAGE_BYTES = 1 << 18  # of secondary indexes are flushed at a time
FEW_ENTRIES = 1 << 16  # an index's later runs may have so many entries in any case
RETRY_S = 10.0  # after a checkpoint for which the disk had no room

_VERSION = 1
_ROOT_MAGIC, _RUN_MAGIC = b"voltpyCP", b"voltpyIX"
_ROOT_HEADER = struct.Struct("<8sIIQQQII")
_RUN_HEADER = struct.Struct("<8sIIII")
_CHUNK_HEADER = struct.Struct("<II")
RUN_HEADER_BYTES, CHUNK_HEADER_BYTES = _RUN_HEADER.size, _CHUNK_HEADER.size


class Run(Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """A file of index entries."""

    name: Annotated[str, Meta(pattern=r"^index-[0-9]+-[0-9]+-[0-9a-f]{4}(-all)?\.run$")]
    entries: Annotated[int, Meta(gt=0)]


class TableRoot(Struct, array_like=True, forbid_unknown_fields=True):
    """One table: its page table (an entry a page number), what its heap counts, and the runs of its index.

    `image` of its secondary indexes, "" for none; `stale_pages`, a bitmap: those that have changed since it was begun.
    """

    name: str
    slot_bits: Annotated[int, Meta(ge=1, le=12)]
    pages: bytes
    rows: Annotated[int, Meta(ge=0)]
    image_bytes: Annotated[int, Meta(ge=0)]
    runs: list[Run]
    collisions: dict[int, Annotated[list[Annotated[int, Meta(ge=0)]], Meta(min_length=2)]]
    image: Annotated[str, Meta(pattern=r"^(lookups-[0-9]+-[0-9]+-[0-9a-f]{4}\.image)?$")] = ""
    stale_pages: bytes = b""


class Root(Struct, array_like=True, forbid_unknown_fields=True):
    """What a checkpoint is made of, and what only the WAL before it knew: outcomes that retried calls are told.

    Of the coordinator's batches: what is prepared and undecided, by their numbers; the numbers of those whose outcomes
    are among `outcomes`, by LSN; and the highest number of those whose outcomes were there once. Roots that were
    written before there were such batches end before these. `views_behind`: the numbers of views that a
    recovery was still to build.
    """

    tables: list[TableRoot]
    outcomes_reach: int
    outcomes: list[tuple[int, bytes]]
    prepared: list[tuple[int, list[TableChanges]]] = []
    batches: list[tuple[int, int]] = []
    batches_reach: Annotated[int, Meta(ge=0)] = 0
    views_behind: list[int] = []


class Checkpoint(NamedTuple):
    """A root that was read, or the beginning of everything."""

    number: int
    lsn: int
    root: Root


@dataclass(slots=True)
class _Part:
    """One table's share in the checkpoint under way: `pages` numbers, of which `changed` are to be written."""

    table: Table
    root: TableRoot
    pages: int
    changed: int
    gone: list[int]
    numbers: array[int]
    row_ids: array[int]
    has_new_image: bool = False


_decode_root = msgspec.msgpack.Decoder(Root).decode
_encode = msgspec.msgpack.Encoder().encode


def read_checkpoint(directory: Path, partition: int) -> Checkpoint:
    """The last checkpoint's root. Raises Corruption, naming file and offset."""
    (directory / "checkpoint.new").unlink(missing_ok=True)
    try:
        return read_root(directory / "checkpoint", partition)
    except FileNotFoundError:
        return Checkpoint(0, 0, Root([], 0, []))


def read_root(path: Path, partition: int) -> Checkpoint:
    """The root in this file. Raises Corruption, naming file and offset; FileNotFoundError."""
    data = path.read_bytes()
    header_bytes = _ROOT_HEADER.size
    if len(data) < header_bytes or crc32c(data[: header_bytes - 4]) != int.from_bytes(
        data[header_bytes - 4 : header_bytes], "little"
    ):
        raise Corruption(f"{path} offset 0: the checkpoint's header is damaged")
    magic, version, owner, number, lsn, length, payload_crc, _ = _ROOT_HEADER.unpack_from(data)
    if magic != _ROOT_MAGIC or version != _VERSION:
        raise Corruption(f"{path} offset 0: no checkpoint of version {_VERSION}")
    if owner != partition:
        raise Corruption(f"{path} offset 12: the checkpoint belongs to partition {owner}, not to {partition}")
    payload = data[header_bytes:]
    if len(payload) != length or crc32c(payload) != payload_crc:
        raise Corruption(f"{path} offset {header_bytes}: the checkpoint is damaged")
    try:
        root = _decode_root(payload)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Corruption(f"{path} offset {header_bytes}: not a checkpoint's root: {error}") from None
    lsns = [outcome_lsn for outcome_lsn, _ in root.outcomes]
    if lsns != sorted(set(lsns)) or (lsns and not 0 < lsns[0] <= lsns[-1] <= lsn):
        raise Corruption(f"{path} offset {header_bytes}: outcomes of LSNs that are none before {lsn}")
    return Checkpoint(number, lsn, root)


def load(directory: Path, partition: int, checkpoint: Checkpoint, store: Store) -> PageFile:
    """Puts the checkpoint's tables into an empty store, their pages cold: each is looked at when it is first needed.

    Raises Corruption for what is damaged or missing.
    """
    roots = checkpoint.root.tables
    if [root.name for root in roots] != [table.name for table in store.tables[: len(roots)]]:
        raise Corruption(f"{directory / 'checkpoint'}: its tables are not those of the schema")
    views = [table.number for table in store.tables if table.schema.view is not None]
    store.views_behind = {number for number in views if number >= len(roots) or number in checkpoint.root.views_behind}
    for number in store.views_behind.intersection(range(len(roots))):  # what there was of it is built again
        roots[number] = msgspec.structs.replace(
            roots[number], pages=b"", rows=0, image_bytes=0, runs=[], collisions={}, image="", stale_pages=b""
        )
    page_tables = [
        array("Q") if store.schema.tables[number].dropped else page_table(root, directory)
        for number, root in enumerate(roots)
    ]
    used = [place_of(entry) for entries in page_tables for entry in entries if entry]
    if len(set(used)) != len(used):
        raise Corruption(f"{directory / 'checkpoint'}: two pages in one place")
    with ExitStack() as unless_loaded:
        file = PageFile(directory / "pages", used)
        unless_loaded.callback(file.close)
        for number, (root, entries) in enumerate(zip(roots, page_tables, strict=True)):
            if store.schema.tables[number].dropped:
                continue
            heap, index = store.tables[number].storage
            heap.load(entries, root.slot_bits, root.rows, root.image_bytes)
            runs = (chunk for run in root.runs for chunk in read_run(directory, partition, number, run))
            index.load(runs, root.collisions)
            lookups = store.tables[number].lookups
            if lookups is not None:
                image = directory / root.image if root.image else None
                lookups.fall_behind(image, BitMap.deserialize(root.stale_pages) if image else None)
            if len(index) != heap.rows:
                raise Corruption(f"table {root.name}: the checkpoint has {len(index)} index entries, {heap.rows} rows")
        unless_loaded.pop_all()
    return file


def page_table(root: TableRoot, directory: Path) -> array[int]:
    """Page number → entry. Raises Corruption."""
    entries = array("Q")
    if len(root.pages) % entries.itemsize:
        raise Corruption(f"{directory / 'checkpoint'}: a page table of {len(root.pages)} bytes")
    entries.frombytes(root.pages)
    if any(0 < entry < 1 << 16 for entry in entries):
        raise Corruption(f"{directory / 'checkpoint'}: a page table with a page in no place")
    return entries


def read_run(directory: Path, partition: int, table: int, run: Run) -> Iterator[tuple[array[int], array[int]]]:
    """The (numbers, row ids) of each chunk. Raises Corruption, naming file and offset."""
    path = directory / run.name
    try:
        file = path.open("rb")
    except (FileNotFoundError, IsADirectoryError):
        raise Corruption(f"{path}: the checkpoint names this file, and it is missing") from None
    with file:
        header = file.read(_RUN_HEADER.size)
        if len(header) < _RUN_HEADER.size or crc32c(header[:-4]) != int.from_bytes(header[-4:], "little"):
            raise Corruption(f"{path} offset 0: the header is damaged")
        if _RUN_HEADER.unpack(header)[:4] != (_RUN_MAGIC, _VERSION, partition, table):
            raise Corruption(f"{path} offset 0: not a run of table {table} of partition {partition}")
        left = run.entries
        while left:
            offset = file.tell()
            head = file.read(_CHUNK_HEADER.size)
            count, crc = _CHUNK_HEADER.unpack(head) if len(head) == _CHUNK_HEADER.size else (0, 0)
            data = file.read(16 * count) if 0 < count <= min(left, RUN_ENTRIES) else b""
            if not data or len(data) != 16 * count or crc32c(data) != crc:
                raise Corruption(f"{path} offset {offset}: the entries from here on are damaged or missing")
            numbers, row_ids = array("q"), array("q")
            numbers.frombytes(data[: 8 * count])
            row_ids.frombytes(data[8 * count :])
            yield numbers, row_ids
            left -= count


class Checkpointer:
    """Makes checkpoints, a slice of the work at a time: `step` between batches. `last` is the last one that is durable.

    Made before the recovery, which may need `make`; after it, `begin`. `step` raises OSError when the disk fails: the
    process must end. A full disk only puts the checkpoint off.
    """

    def __init__(
        self,
        directory: Path,
        partition: int,
        store: Store,
        window: OutcomeWindow,
        wal: Wal,
        file: PageFile,
        last: Checkpoint,
        *,
        every_bytes: int = CHECKPOINT_BYTES,
    ) -> None:
        self.last = _slimmed(last)
        self.running = False
        self.failed: Callable[[DiskFull], None] = lambda _: None
        self.done: Callable[[Checkpoint], None] = lambda _: None
        self.begun: Callable[[Hold], None] = lambda _: None  # what is to be held is fixed
        self.held: Callable[[Hold, str], None] = lambda _, __: None  # the second: why not, empty when it is
        self.hold: Hold | None = None
        self._directory = directory
        self._partition = partition
        self._store = store
        self._window = window
        self._wal = wal
        self._file = file
        self._every_bytes = every_bytes
        self._begun_at_bytes = 0  # of WAL
        self._attempts = 0
        self._wanted = False
        self._steps: Iterator[None] = iter(())
        self._not_before_s = 0.0
        self._now_s = 0.0
        self._busy = False
        self.pace = Pace()
        self._hurried = False
        self._cleanings = 0
        self._flusher = Flusher()
        # The flusher's thread is born here, before the process is pinned to a core.
        self._flusher.start(file.fd)
        self._flusher.wait()
        self._replayed_lsn: int | None = 0  # None once the recovery is over
        Hold.clear(directory)  # what a crash left
        self._remove_unnamed()

    def make(self, lsn: int) -> None:
        """Makes a checkpoint here and now, during recovery: the store is as the WAL says up to this LSN."""
        self._replayed_lsn = lsn
        self._hurried = True
        for _ in self._checkpoint():
            pass
        self._hurried = False

    def begin(self) -> None:
        """The recovery is over."""
        self._replayed_lsn = None
        flush_directory(self._directory)
        self._wal.forget(self.last.lsn)

    def request(self) -> None:
        """A checkpoint is due, whatever the WAL's length."""
        self._wanted = True

    def keep(self, snapshot: int, until_s: float) -> None:
        """The next checkpoint that begins stays as it is, until `let_go` or the time `until_s`; it is due now.

        Checkpoints after it are made, and take other places: nothing that this one names is freed. `held` is called
        when it is durable, or when it can't be had.
        """
        self._drop_hold()
        self.hold = Hold(self._directory, snapshot, until_s)
        self._not_before_s = 0.0
        self.request()

    def keep_longer(self, snapshot: int, until_s: float) -> None:
        """The hold of this snapshot ends later. Does nothing when it has ended."""
        if self.hold is not None and self.hold.snapshot == snapshot:
            self.hold.until_s = until_s

    def let_go(self, snapshot: int) -> bool:
        """Ends the hold of this snapshot. Whether its checkpoint was held until now."""
        if self.hold is None or self.hold.snapshot != snapshot:
            return False
        was_held = self.hold.is_kept
        self._drop_hold()
        return was_held

    def step(self, now_s: float, *, busy: bool = False) -> bool:
        """Does a slice of the checkpoint that is running or due. Whether there is more to do.

        `busy`: calls have come since the last time. Then the disk is left to the WAL for a while after each chunk: see
        partitions.pace.
        """
        self._now_s, self._busy = now_s, busy
        if self.hold is not None and now_s >= self.hold.until_s:
            self._drop_hold()
        if not self.running:
            if self._store.is_behind:
                return False
            due = (
                self._wanted
                or self._store.needs_cleaning
                or self._wal.appended_bytes - self._begun_at_bytes >= self._every_bytes
            )
            if not due or now_s < self._not_before_s:
                return False
            self._wanted = False
            self.running = True
            self._steps = self._checkpoint()
        try:
            next(self._steps, None)
        except DiskFull as error:
            self._remove_unnamed()
            self._not_before_s = now_s + RETRY_S
            self._wanted = True
            self._refuse_hold(str(error))
            self.failed(error)
        return self.running

    def clean_some(self) -> bool:
        """Waits until a chunk of dirty pages is on disk; begins a checkpoint for it.

        False when nothing is dirty, the disk is full, or the recovery has left something: to wait would not help.

        Between execution and end of a batch too: what is committed is in the pages, and nothing else.
        """
        if not self.running and (self._store.is_behind or not self._store.dirty_pages):
            return False
        self._wanted |= not self.running
        cleanings = self._cleanings
        self._hurried = True
        while self._cleanings == cleanings and self._not_before_s <= self._now_s:
            is_running = self.step(self._now_s)
            self._wal.wait_flush()
            if not is_running:
                break
        self._hurried = False
        crash_point("checkpoint.clean_some.cleaned")
        return self._not_before_s <= self._now_s

    def close(self) -> None:
        """Lets go of the page file. A checkpoint that is under way leaves nothing that counts."""
        try:
            self._flusher.wait()
        except OSError as error:
            if not isinstance(_full_or(error, self._directory), DiskFull):
                raise
        finally:
            self._file.close()

    def _checkpoint(self) -> Iterator[None]:
        """One checkpoint, from the first page to the last old file: each `yield` is a place to serve calls."""
        number = self.last.number + 1
        self._attempts += 1
        told_apart_by = (self._wal.epoch, number, self._attempts, self._replayed_lsn or 0)
        generation = crc32c(b"%d %d %d %d" % told_apart_by) & 0xFFFF
        try:
            base_runs = yield from self._base_runs(number, generation)
            lsn, parts, root = self._begin(base_runs)
            try:
                for part in parts:
                    yield from self._write_pages(generation, part)
                    yield from self._write_changes(number, generation, part)
                    yield from self._write_image(number, generation, part)
                yield from self._wal_reaches(lsn)
                yield from self._switch_root(Checkpoint(number, lsn, root))
            except DiskFull:
                self._take_back(parts)
                raise
            self._images_are_made(parts)
            self._keep_if_held()
            yield
            if self.hold is None or not self.hold.is_kept:
                self._file.settle()
            crash_point("checkpoint.places.settled")
            yield
            self._remove_unnamed()
            crash_point("checkpoint.files.removed")
            yield
            if self._replayed_lsn is None:
                self._wal.forget(lsn)
            crash_point("checkpoint.wal.shortened")
            self.done(self.last)
        finally:
            self.running = False

    def _base_runs(self, number: int, generation: int) -> Generator[None, None, dict[int, Run]]:
        """Copies whole those indexes whose runs have grown long; by table number."""
        base_runs: dict[int, Run] = {}
        for table, root in zip(self._store.tables, self.last.root.tables, strict=False):
            _, index = table.storage
            if sum(run.entries for run in root.runs) > 2 * len(index) + FEW_ENTRIES and len(index):
                name = f"index-{table.number}-{number}-{generation:04x}-all.run"
                base_runs[table.number] = yield from self._write_run(name, table.number, _slices(index))
        return base_runs

    def _begin(self, base_runs: dict[int, Run]) -> tuple[int, list[_Part], Root]:
        """The moment whose state the checkpoint is: from here on the store remembers how it is now."""
        self._begun_at_bytes = self._wal.appended_bytes
        if self.hold is not None and not self.hold.is_begun:
            self.hold.is_begun = True
            self.begun(self.hold)
        last = self.last.root.tables
        parts = []
        for table in self._store.tables:
            heap, index = table.storage
            runs = list[Run]()
            if table.number < len(last) and not table.schema.dropped:
                base = base_runs.get(table.number)
                runs = last[table.number].runs.copy() if base is None else [base]
            lookups, image, stale_pages = table.lookups, "", b""
            if lookups is not None and lookups.stale_pages is not None and table.number < len(last):
                lookups.stale_pages |= BitMap(heap.changed_pages)
                image, stale_pages = last[table.number].image, lookups.stale_pages.serialize()
            changed, gone = heap.begin_checkpoint()
            root = TableRoot(
                table.name, heap.slot_bits, b"", heap.rows, heap.image_bytes, runs, index.collisions, image, stale_pages
            )
            parts.append(_Part(table, root, heap.page_numbers, changed, gone, *index.take_changes()))
        reach, outcomes = self._window.remembered
        crash_point("checkpoint.begun")
        lsn = self._wal.written_lsn if self._replayed_lsn is None else self._replayed_lsn
        batches_reach, batches = self._window.batches
        prepared = list(self._store.prepared.items())
        tables = [part.root for part in parts]
        behind = sorted(self._store.views_behind)
        return lsn, parts, Root(tables, reach, outcomes, prepared, batches, batches_reach, behind)

    def _write_pages(self, generation: int, part: _Part) -> Iterator[None]:
        """Writes the pages that have changed; the heap's own page table says at once where they are now.

        So at the end it is this checkpoint's: but for pages that it wrote, nothing changes place.
        """
        heap, _ = part.table.storage
        entries = heap.entries
        written = 0
        while changed := heap.take_changed(HURRIED_PAGES if self._hurried else CHUNK_PAGES):
            places = self._file.write([sealed(image, generation) for _, image in changed])
            for (page, _), place in zip(changed, places, strict=True):
                self._forget_place(entries[page])
                entries[page] = entry_of(place, generation)
            written += len(changed)
            crash_point("checkpoint.pages.written")
            yield from self._flushed(self._file.fd, self._file.path)
            self._cleaned(part.table)
            crash_point("checkpoint.pages.flushed")
        if written != part.changed:
            raise Corruption(f"table {part.root.name}: {written} of {part.changed} changed pages were written")
        for page in part.gone:
            self._forget_place(entries[page])
            entries[page] = 0
        part.root.pages = entries[: part.pages].tobytes()

    def _cleaned(self, table: Table) -> None:
        """A chunk is on disk: its pages may leave memory, if they have not changed again."""
        heap, _ = table.storage
        pages = heap.written()
        if self._store.pool is not None:
            self._store.pool.cleaned(table.number, pages)
        self._cleanings += 1

    def _forget_place(self, entry: int) -> None:
        if entry:
            self._file.release(place_of(entry))

    def _write_changes(self, number: int, generation: int, part: _Part) -> Iterator[None]:
        if part.numbers:
            name = f"index-{part.table.number}-{number}-{generation:04x}.run"
            chunks = (
                (part.numbers[at : at + RUN_ENTRIES], part.row_ids[at : at + RUN_ENTRIES])
                for at in range(0, len(part.numbers), RUN_ENTRIES)
            )
            run = yield from self._write_run(name, part.table.number, chunks)
            part.root.runs.append(run)

    def _write_image(self, number: int, generation: int, part: _Part) -> Iterator[None]:
        """Writes a table's secondary indexes, if it is time for that, while they change: see partitions.index_image."""
        lookups = part.table.lookups
        if lookups is None or not lookups.needs_image:
            return
        heap, _ = part.table.storage
        name = f"lookups-{part.table.number}-{number}-{generation:04x}.image"
        indexes = list(lookups.indexes.values())
        with _new_file(self._directory / name) as fd:
            offset = flushed = 0
            for data in image_of(indexes, self._partition, part.table.number):
                write_all(fd, data, offset)
                offset += len(data)
                if offset - flushed > IMAGE_BYTES:
                    flushed = offset
                    yield from self._flushed(fd, self._directory / name)
                else:
                    yield
            yield from self._flushed(fd, self._directory / name)
            crash_point("checkpoint.image.written")
        if indexes == list(lookups.indexes.values()):  # else one has come or gone
            part.root.image, part.root.stale_pages = name, BitMap(heap.changed_pages).serialize()
            part.has_new_image = True

    def _write_run(
        self, name: str, table: int, chunks: Iterable[tuple[array[int], array[int]]]
    ) -> Generator[None, None, Run]:
        entries = 0
        header = _RUN_HEADER.pack(_RUN_MAGIC, _VERSION, self._partition, table, 0)[:-4]
        header += crc32c(header).to_bytes(4, "little")
        with _new_file(self._directory / name) as fd:
            write_all(fd, header, 0)
            offset = len(header)
            for numbers, row_ids in chunks:
                data = numbers.tobytes() + row_ids.tobytes()
                data = _CHUNK_HEADER.pack(len(numbers), crc32c(data)) + data
                write_all(fd, data, offset)
                offset += len(data)
                entries += len(numbers)
                yield from self._flushed(fd, self._directory / name)
            crash_point("checkpoint.run.written")
        return Run(name, entries)

    def _wal_reaches(self, lsn: int) -> Iterator[None]:
        """A root must not know of what the WAL may still lose."""
        wal = self._wal
        if self._replayed_lsn is not None:
            wal.flush_replayed()
            return
        while wal.flushed_lsn < lsn:
            wal.start_flush()
            yield
            wal.poll_flush()

    def _switch_root(self, checkpoint: Checkpoint) -> Iterator[None]:
        payload = _encode(checkpoint.root)
        fields = (_ROOT_MAGIC, _VERSION, self._partition, checkpoint.number, checkpoint.lsn)
        header = _ROOT_HEADER.pack(*fields, len(payload), crc32c(payload), 0)[:-4]
        path = self._directory / "checkpoint.new"
        with _new_file(path) as fd:
            write_all(fd, header + crc32c(header).to_bytes(4, "little") + payload, 0)
            crash_point("checkpoint.root.written")
            yield from self._flushed(fd, path)
        flush_directory(self._directory)  # the runs' names, before the root that names them
        crash_point("checkpoint.root.flushed")
        try:
            path.rename(self._directory / "checkpoint")
        except OSError as error:
            raise _full_or(error, path) from None
        crash_point("checkpoint.root.renamed")
        flush_directory(self._directory)
        self.last = _slimmed(checkpoint)

    def _flushed(self, fd: int, path: Path) -> Iterator[None]:
        """The file is flushed beside what the partition does. Once an fsync has failed nothing may be believed."""
        began_s = self._now_s
        try:
            self._flusher.start(fd)  # which flushes at once where there is no aio
            yield
            while not (self._flusher.wait() if self._hurried else self._flusher.done()):
                yield
        except OSError as error:
            # Some file systems look for room only now. What was written is free again, to be written anew.
            raise _full_or(error, path) from None
        resume_s = self._now_s + self.pace.pause_s(self._now_s - began_s)
        while self._busy and self._now_s < resume_s and not self._store.is_pressed:
            yield

    def _take_back(self, parts: list[_Part]) -> None:
        """No room: what this checkpoint took and did not write is for the next one.

        What it wrote is where the pages are now; the places that they had are still the last checkpoint's.
        """
        for part in parts:
            heap, index = part.table.storage
            heap.abandon_checkpoint(part.gone)
            index.give_back_changes(part.numbers, part.row_ids)

    def _images_are_made(self, parts: list[_Part]) -> None:
        """The root is durable: from here on pages that change are stale beside the new images."""
        for part in parts:
            if part.table.lookups is not None and part.has_new_image:
                part.table.lookups.stale_pages = BitMap.deserialize(part.root.stale_pages)

    def _keep_if_held(self) -> None:
        """From here on nothing of the last checkpoint goes, if it began after somebody asked for that."""
        hold = self.hold
        if hold is None or not hold.is_begun or hold.is_kept:
            return
        try:
            hold.keep(self.last.number, self.last.lsn, self._runs_of_last())
        except OSError as error:  # the partition can do without
            self._refuse_hold(f"{self._directory}: the checkpoint can't be held: {error.strerror}")
        else:
            self.held(hold, "")

    def _refuse_hold(self, reason: str) -> None:
        hold = self.hold
        if hold is not None and not hold.is_kept:
            self.hold = None
            self.held(hold, reason)

    def _drop_hold(self) -> None:
        """What only the held checkpoint still needed goes with the next one, which is due."""
        if self.hold is not None:
            if self.hold.is_kept:
                self.request()
            self.hold.drop()
            self.hold = None

    def _runs_of_last(self) -> set[str]:
        return {run.name for table in self.last.root.tables for run in table.runs}

    def _remove_unnamed(self) -> None:
        """Runs that no checkpoint needs: neither the last one nor the held one names them."""
        named = self._runs_of_last()
        if self.hold is not None:
            named |= self.hold.runs
        for path in self._directory.glob("index-*.run"):
            if path.name not in named:
                path.unlink()
        images = {table.image for table in self.last.root.tables}
        for path in self._directory.glob("lookups-*.image"):
            if path.name not in images:
                path.unlink()


def _slices(index: PrimaryIndex) -> Iterator[tuple[array[int], array[int]]]:
    """All entries, in slices; the index may change in between."""
    last = None
    while True:
        numbers, row_ids = index.entries_after(last, RUN_ENTRIES)
        if not numbers:
            return
        last = numbers[-1]
        yield numbers, row_ids


@contextmanager
def _new_file(path: Path) -> Iterator[int]:
    """The descriptor of an empty file. What the disk has no room for is DiskFull."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            yield fd
        finally:
            os.close(fd)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise _full_or(error, path) from None


def _full_or(error: OSError, what: object) -> Exception:
    """DiskFull if that is what the error says, else the error itself."""
    return DiskFull(f"{what}: {error.strerror}") if error.errno in (errno.ENOSPC, errno.EDQUOT) else error


def _slimmed(checkpoint: Checkpoint) -> Checkpoint:
    """The runs are needed for the next one; page tables are the heaps' own, outcomes would only take memory."""
    root = checkpoint.root
    tables = [msgspec.structs.replace(table, pages=b"", stale_pages=b"") for table in root.tables]
    return checkpoint._replace(root=Root(tables, root.outcomes_reach, []))
