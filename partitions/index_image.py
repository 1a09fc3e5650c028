"""A table's secondary indexes on disk, so that a start need not decode every row.

    image      = header chunk*                  lookups-<table>-<n>-<g>.image, as the n-th checkpoint wrote it
    header       0  magic      8 bytes  b"voltpySX"       16  table         u32
                 8  version    u32      2                 20  CRC           u32   over 0 to 19
                12  owner      u32      partition
    chunk        0  length     u32                         8  payload       MessagePack
                 4  CRC        u32      of the payload
    payload    = Head                           the first chunk: which indexes
               | (position in Head, Part)       entries of one of them
               | nil                            the last one

The entries are copied while the table changes, so a row that has changed meanwhile may be as it was before, as it is
after, twice, or nowhere. But it is known on which pages such rows are: those that have changed since the checkpoint
began. The root of the checkpoint says which; so does every later root, with the pages that have changed since then. A
start takes the image without the rows on those pages (`but`), and reads these pages: they are as of the root's LSN, and
so are the indexes then. Nothing of this costs a write to the table anything. When too many pages have changed since, a
checkpoint writes the image anew.

An image can be done without: where it is missing (in a snapshot it is) or damaged the indexes are built from the rows.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import msgspec
from google_crc32c import value as crc32c
from msgspec import Struct
from pyroaring import BitMap

from partitions.secondary_index import Part, SecondaryIndex
from voltpy.errors import Corruption
from voltpy.schema import Index
from voltpy.schema import Table as TableSchema

CHUNK_ENTRIES = 1 << 12  # at most, and fewer where they are large
CHUNK_BYTES = 1 << 20
MAX_CHUNK_BYTES = 1 << 30

_MAGIC = b"voltpySX"
_VERSION = 2
_HEADER = struct.Struct("<8sIIII")
_CHUNK_HEADER = struct.Struct("<II")


class Head(Struct, array_like=True, forbid_unknown_fields=True):
    """Each index with the seed of its hashes."""

    indexes: list[tuple[Index, int]]


_encode = msgspec.msgpack.Encoder().encode
_decode_head = msgspec.msgpack.Decoder(Head).decode
_decode_part = msgspec.msgpack.Decoder(tuple[int, Part] | None).decode


def image_of(indexes: list[SecondaryIndex], partition: int, table: int) -> Iterator[bytes]:
    """The bytes of an image, piece by piece: between two pieces the indexes may change."""
    header = _HEADER.pack(_MAGIC, _VERSION, partition, table, 0)[:-4]
    yield header + crc32c(header).to_bytes(4, "little")
    yield _chunk(_encode(Head([(index.schema, index.format.seed) for index in indexes])))
    for position, index in enumerate(indexes):
        last = None
        while True:
            last, part = index.part_after(last, CHUNK_ENTRIES, CHUNK_BYTES)
            yield _chunk(_encode((position, part)))
            if last is None:
                break
    yield _chunk(_encode(None))


def read_image(
    path: Path, partition: int, table: int, schema: TableSchema, wanted: list[Index], but: BitMap
) -> list[SecondaryIndex]:
    """Those of the wanted indexes that the image has, without these rows. Raises Corruption, FileNotFoundError."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Corruption(f"{path}: {error.strerror}") from None
    offset = 0
    with file:
        try:
            header = file.read(_HEADER.size)
            if len(header) < _HEADER.size or crc32c(header[:-4]) != int.from_bytes(header[-4:], "little"):
                raise Corruption(f"{path} offset 0: the header is damaged")
            if _HEADER.unpack(header)[:4] != (_MAGIC, _VERSION, partition, table):
                raise Corruption(f"{path} offset 0: not an image of table {table} of partition {partition}")
            offset = file.tell()
            head = _decode_head(_read_chunk(file, path))
            indexes = [SecondaryIndex(schema, index, seed) if index in wanted else None for index, seed in head.indexes]
            while True:
                offset = file.tell()
                found = _decode_part(_read_chunk(file, path))
                if found is None:
                    return [index for index in indexes if index is not None]
                index = indexes[found[0]]
                if index is not None:
                    index.take_part(found[1], but)
        except (msgspec.DecodeError, UnicodeDecodeError, ValueError, IndexError) as error:
            raise Corruption(f"{path} offset {offset}: not a part of an image: {error}") from None
        except OSError as error:
            raise Corruption(f"{path} offset {offset}: {error.strerror}") from None


def _chunk(payload: bytes) -> bytes:
    return _CHUNK_HEADER.pack(len(payload), crc32c(payload)) + payload


def _read_chunk(file: IO[bytes], path: Path) -> bytes:
    offset = file.tell()
    header = file.read(_CHUNK_HEADER.size)
    length, crc = _CHUNK_HEADER.unpack(header) if len(header) == _CHUNK_HEADER.size else (0, 0)
    payload: bytes = file.read(length) if 0 < length <= MAX_CHUNK_BYTES else b""
    if not payload or len(payload) != length or crc32c(payload) != crc:
        raise Corruption(f"{path} offset {offset}: the image is damaged or cut off from here on")
    return payload
