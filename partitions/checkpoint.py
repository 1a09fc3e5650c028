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

partitions.checkpointer makes them.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
from google_crc32c import value as crc32c
from msgspec import Meta, Struct
from pyroaring import BitMap

from partitions.page_file import PageFile, place_of
from partitions.store import Store
from voltpy.errors import Corruption
from voltpy.messages import TableChanges

RUN_ENTRIES = 1 << 13  # in a chunk of a run, at most

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


def encoded_root(checkpoint: Checkpoint, partition: int) -> bytes:
    """The file of a root."""
    payload = _encode(checkpoint.root)
    fields = (_ROOT_MAGIC, _VERSION, partition, checkpoint.number, checkpoint.lsn)
    header = _ROOT_HEADER.pack(*fields, len(payload), crc32c(payload), 0)[:-4]
    crc: bytes = crc32c(header).to_bytes(4, "little")
    return header + crc + payload


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


def run_header(partition: int, table: int) -> bytes:
    """With it the file of a run begins."""
    header = _RUN_HEADER.pack(_RUN_MAGIC, _VERSION, partition, table, 0)[:-4]
    crc: bytes = crc32c(header).to_bytes(4, "little")
    return header + crc


def run_chunk(numbers: array[int], row_ids: array[int]) -> bytes:
    """At most RUN_ENTRIES entries of a run."""
    data = numbers.tobytes() + row_ids.tobytes()
    return _CHUNK_HEADER.pack(len(numbers), crc32c(data)) + data
