"""The heat dump: which pages were in memory, the hottest first, so that a start can read them again in that order.

    file     = a hint file (partitions.hint_file) with magic b"voltpyHT"; count = pages
    payload  = count × u64: page ids (partitions.page), below 2**63, the hottest first

A policy (partitions.eviction) names its pages the coldest first: `write_heat(path, 3, reversed(list(policy)))`.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from partitions.hint_file import read_hint, write_hint

MAX_PAGES = 1 << 24  # 128 GiB of pages, a dump of 128 MiB

_MAGIC = b"voltpyHT"


def write_heat(path: Path, partition: int, pages: Iterable[int], *, flush: bool = True) -> None:
    """Replaces the dump: page ids, the hottest first; beyond MAX_PAGES the coldest are left out.

    Takes about 0.15 µs a page, and the flush. Raises OSError: then the dump before is still there, whole.
    """
    ids = array("Q", islice(pages, MAX_PAGES))
    write_hint(path, _MAGIC, partition, len(ids), ids.tobytes(), flush=flush)


def read_heat(path: Path, partition: int, most: int = MAX_PAGES) -> tuple[array[int], str | None]:
    """(page ids, the hottest first; why there are none). Raises nothing. 8 bytes a page, where a list would take 40.

    No file is no reason: (empty, None). A file with more than `most` pages is not read.
    """
    ids = array("Q")
    count, payload, reason = read_hint(path, _MAGIC, partition, most * ids.itemsize)
    if reason is not None or not payload:
        return ids, reason
    if len(payload) != count * ids.itemsize:
        return ids, f"{path}: {len(payload)} bytes for {count} pages"
    ids.frombytes(payload)
    if max(ids) >= 1 << 63:
        return array("Q"), f"{path}: page id {max(ids)} is none"
    return ids, None
