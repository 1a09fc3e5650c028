"""The images of rows that an order asks for: by their keys, and by reads that are not by key.

    keys     TableKeys: of each key its image, or None where there is no such row
    scan     a Scan: the images of all rows of a table, of those with some values, or of a range of keys
    count    a Scan that has a number for an answer

What a table says no to, such as a range where there is no order, is the answer of that Scan. Nothing here looks at what
is lent, and nothing is changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import msgspec

from partitions.order_session import REPORT_BYTES
from partitions.store import Store
from partitions.table import Table
from voltpy.errors import ConstraintViolation, ProtocolError, SchemaError
from voltpy.messages import Scan, ScanAnswer, TableKeys

UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)  # what bytes that are no MessagePack raise

_decode_equalities = msgspec.msgpack.Decoder(dict[str, Any]).decode
_decode_bounds = msgspec.msgpack.Decoder(tuple[Any, Any]).decode


def keys_of(store: Store, keys: list[TableKeys]) -> list[tuple[Table, list[Any]]]:
    """The keys, decoded, with their tables. Raises ProtocolError."""
    return [(table := store.table_of(each.table), table.keys_of(each.keys)) for each in keys]


def tables_of(store: Store, scans: list[Scan]) -> list[Table]:
    """The table of each scan. Raises ProtocolError."""
    return [store.table_of(scan.table) for scan in scans]


def images_of(
    wanted: list[tuple[Table, list[Any]]],
    scanned: list[Table],
    scans: list[Scan],
    holders: Sequence[list[bytes | None]] = (),
) -> tuple[list[list[bytes | None]], list[ScanAnswer]]:
    """What was asked for. Raises ConstraintViolation when it is too much, ProtocolError, NotHere.

    `holders` are sent with it.
    """
    images = [table.images_of(keys) for table, keys in wanted]
    answers = [_scanned(table, scan) for table, scan in zip(scanned, scans, strict=True)]
    size = sum(len(image) for of_table in chain(images, holders) for image in of_table if image is not None)
    size += sum(len(image) for answer in answers for image in answer.images)
    if size > REPORT_BYTES:
        raise ConstraintViolation(f"{size:,} bytes of rows at once; the limit is {REPORT_BYTES:,}")
    return images, answers


def _scanned(table: Table, scan: Scan) -> ScanAnswer:
    try:
        if scan.kind == "count":
            return ScanAnswer([], table.row_count)
        if scan.kind == "scan":
            images = table.scan_images()
        elif scan.kind == "where":
            images = table.where_images(_decode_equalities(scan.arguments))
        elif scan.kind == "range":
            low, high = _decode_bounds(scan.arguments)
            images = table.range_images(_as_key(low), _as_key(high))
        else:
            raise ProtocolError(f"a read of a kind that there is not: {scan.kind[:40]!r}")
    except (SchemaError, ConstraintViolation) as error:
        return ScanAnswer([], 0, type(error).__name__, str(error))
    except UNREADABLE as error:
        raise ProtocolError(f"table {table.name}: not what {scan.kind} takes: {error}") from None
    return ScanAnswer(images, len(images))


def _as_key(bound: Any) -> Any:
    """A key of several columns is a tuple."""
    return tuple(bound) if isinstance(bound, list) else bound
