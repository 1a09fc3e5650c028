"""The rows of one value in a secondary index: row ids, in the smallest form that their number allows.

    int       one row: the row id
    bytes     2 to FEW rows: 32-bit little-endian row ids, in no order
    BitMap    more

A list changes its form by itself, down again at half of FEW, so that a row that comes and goes costs one change of form
at most. Row ids are below 2**32 and dense (partitions.heap), or bitmaps would be large.

Measured, 1 million rows at 25 a page, values at random; resident bytes a row beside the tree of the values:

    rows a value     bytes   array("I")   set   tuple of int   BitMap
          200,000      4.0          4.0    79             38      1.2   (0.6 with full pages: see the tests)
            1,000      4.1          4.1    64             38      2.6
              100      4.4          5.0   113             38       16
               10      7.3           12    98             38       67
              3.3       16           25   130             43       99

A bitmap has a container for each 65,536 row ids with 50 bytes of its own, so scattered rows cost more in it than in
plain bytes until there are about 400. Appending to 1 KB of bytes copies it in 0.03 µs; to take one row out costs 1.5.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import TypeAlias

from pyroaring import BitMap

Posting: TypeAlias = "int | bytes | BitMap"

FEW = 256
ROW_ID_BITS = 32
_ID_BYTES = 4


def posting_of(row_ids: Iterable[int]) -> Posting | None:
    """The list of these rows, each of which occurs once; None for none."""
    ids = array("I", row_ids)
    if len(ids) > FEW:
        return BitMap(ids)
    if len(ids) > 1:
        return ids.tobytes()
    return ids[0] if ids else None


def with_rows(posting: Posting, row_ids: list[int]) -> Posting:
    """The list with more rows, none of which it has. A BitMap is changed in place."""
    if isinstance(posting, BitMap):
        posting.update(row_ids)
        return posting
    first = posting if isinstance(posting, bytes) else posting.to_bytes(_ID_BYTES, "little")
    ids = first + array("I", row_ids).tobytes()
    return ids if len(ids) <= FEW * _ID_BYTES else BitMap(array("I", ids))


def without_row(posting: Posting, row_id: int) -> Posting | None:
    """The list without this row; None when it was the only one. Raises KeyError when the list has no such row.

    A BitMap is changed in place.
    """
    if isinstance(posting, int):
        if posting != row_id:
            raise KeyError(row_id)
        return None
    if isinstance(posting, bytes):
        ids = array("I", posting)
        try:
            ids.remove(row_id)
        except ValueError:
            raise KeyError(row_id) from None
        return ids.tobytes() if len(ids) > 1 else ids[0]
    posting.remove(row_id)
    return posting if len(posting) > FEW // 2 else posting.to_array().tobytes()


def size(posting: Posting | None) -> int:
    """How many rows it has."""
    if isinstance(posting, BitMap):
        return len(posting)
    if isinstance(posting, bytes):
        return len(posting) // _ID_BYTES
    return 0 if posting is None else 1


def sorted_ids(posting: Posting) -> list[int]:
    if isinstance(posting, int):
        return [posting]
    return sorted(array("I", posting)) if isinstance(posting, bytes) else list(posting)


def as_bitmap(posting: Posting | None) -> BitMap:
    """The same rows as a bitmap, which is the list itself where it is one: not to be changed."""
    if isinstance(posting, BitMap):
        return posting
    if isinstance(posting, bytes):
        return BitMap(array("I", posting))
    return BitMap() if posting is None else BitMap((posting,))


def has_row(posting: Posting, row_id: int) -> bool:
    if isinstance(posting, BitMap):
        return row_id in posting
    return row_id in array("I", posting) if isinstance(posting, bytes) else posting == row_id


def common(postings: Iterable[Posting]) -> BitMap:
    """The rows that are in all of the lists, of which there is at least one; a new bitmap."""
    first, *others = sorted(postings, key=size)
    rows = as_bitmap(first)
    if not others:
        return rows.copy()
    for posting in others:
        rows = rows & as_bitmap(posting)
        if not rows:
            break
    return rows


def common_count(postings: Iterable[Posting]) -> int:
    """How many rows are in all of the lists: the last step counts without making a list."""
    *firsts, last = sorted(postings, key=size)
    return common(firsts).intersection_cardinality(as_bitmap(last)) if firsts else size(last)


def posting_bytes(posting: Posting) -> int:
    """About what it takes in memory, at most, without its place in the tree."""
    if isinstance(posting, BitMap):
        return 120 + min(2 * len(posting), (posting.max() >> 3) + 1)
    return 48 + len(posting) if isinstance(posting, bytes) else 0
