"""The page: 8,192 bytes with rows of one table, or a piece of one row that is larger than a page.

    offset  bytes
    0       8     page id, u64: table number << 48 | page number within the table
    8       4     checksum, u32: CRC-32C of the page with this field 0; set when the page is written to a file
    12      2     rows, u16: slots in use
    14      2     flags, u16: bit 0 = overflow page
    16      2     slots, u16: length of the slot directory
    18      2     floor, u16: offset of the lowest row
    20      2     dead, u16: bytes between floor and the end that belong to no row
    22      2     generation, u16: differs between attempts at a checkpoint; set with the checksum
    24      4 × slots   slot directory: offset u16, length u16 of each row; offset 0 = free slot
    …                   free space
    floor …             rows, newest lowest

A length with its top bit set (OVERFLOWS) belongs to a stub of 12 bytes instead of a row: the number of the first
overflow page, u64, and the row's length, u32. An overflow page has, after its header,

    24      8     number of the next overflow page, u64; ALL_ONES for the last
    32      …     bytes of the row; their count is in `dead`

All integers are little-endian. A page is valid when its checksum is right, the slot directory ends at or below the
floor, every row lies between floor and the end, no two overlap, and `rows` and `dead` add up: `check_page`.

Pages live in an arena: one anonymous mapping, cut into frames of a page each. A free frame keeps its memory, since most
are taken again at once, until `give_back`. The arena is read through two views: as bytes, and as u16 words for headers
and slot directories.
"""

from __future__ import annotations

import mmap
import struct
import sys
from array import array
from collections.abc import Mapping
from itertools import accumulate
from operator import sub
from types import MappingProxyType

from google_crc32c import extend
from google_crc32c import value as crc32c

from voltpy.errors import Corruption, ReadOnly

PAGE_BYTES = 8192
PAGE_WORDS = PAGE_BYTES // 2
HEADER_BYTES = 24
HEADER_WORDS = HEADER_BYTES // 2
SLOT_BYTES = 4
MAX_INLINE_BYTES = PAGE_BYTES - HEADER_BYTES - SLOT_BYTES
STUB_BYTES = 12
OVERFLOW_BYTES = PAGE_BYTES - HEADER_BYTES - 8
LENGTH_MASK = 0x7FFF
OVERFLOWS = 0x8000
OVERFLOW_PAGE = 1
TABLE_SHIFT = 48  # in a page id
PAGE_NUMBERS = (1 << TABLE_SHIFT) - 1  # the part of a page id that is the number within the table
ALL_ONES = 0xFFFF_FFFF_FFFF_FFFF
NO_ROWS: Mapping[int, bytes] = MappingProxyType({})

_EMPTY = struct.Struct("<Q6xHxxH8172x")  # page id, flags, floor; old rows in the free space would go to disk with it
_SEAL = struct.Struct("<QI10xH")  # page id, checksum, generation
_CHECKED_HEAD = struct.Struct("<Q4x")  # what the checksum covers in front of it: page id, and itself as 0
_MAP_NORESERVE = 0x4000 if sys.platform == "linux" else 0  # the mmap module names it from Python 3.13 on

# Word positions within the header.
ROWS, FLAGS, SLOTS, FLOOR, DEAD = 6, 7, 8, 9, 10

if sys.byteorder != "little":
    raise ImportError("pages are read in place, so voltpy needs a little-endian machine")


class Arena:
    """Frames of PAGE_BYTES in one mapping, `limit_bytes` of them; only what is used takes memory.

    There are `spare_bytes` more for whoever sees to it that they are not used for long.
    """

    __slots__ = ("_free", "_given_back", "_is_huge", "_mapped", "_used", "frames", "memory", "words")

    def __init__(self, limit_bytes: int, spare_bytes: int = 0) -> None:
        self.frames = max(limit_bytes // PAGE_BYTES, 1)
        self._mapped = self.frames + spare_bytes // PAGE_BYTES
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        self.memory = mmap.mmap(-1, self._mapped * PAGE_BYTES, flags=flags)
        self._is_huge = sys.platform == "linux"
        if self._is_huge:
            # Rows are read at random: with pages of 2 MiB a read that misses the caches costs a fifth less.
            self.memory.madvise(mmap.MADV_HUGEPAGE)
        self.words = memoryview(self.memory).cast("H")
        self._free: list[int] = []
        self._given_back: list[int] = []  # free too, and without memory
        self._used = 0

    @property
    def frames_left(self) -> int:
        return self.frames - self.frames_in_use

    @property
    def frames_in_use(self) -> int:
        return self._used - len(self._free) - len(self._given_back)

    @property
    def resident_bytes(self) -> int:
        """What the frames take of the system's memory."""
        return (self._used - len(self._given_back)) * PAGE_BYTES

    def take(self) -> int:
        """A frame, with anything in it. Raises ReadOnly when the arena is full."""
        if self._free:
            return self._free.pop()
        if self._given_back:
            return self._given_back.pop()
        if self._used == self._mapped:
            raise ReadOnly("the partition's memory is full (--memory)")
        self._used += 1
        return self._used - 1

    def allocate(self, page_id: int, flags: int = 0) -> int:
        """A frame with an empty page in it. Raises ReadOnly when the arena is full."""
        frame = self.take()
        start = frame * PAGE_BYTES
        self.memory[start : start + PAGE_BYTES] = _EMPTY.pack(page_id, flags, PAGE_BYTES)
        return frame

    def free(self, frame: int) -> None:
        self._free.append(frame)

    def give_back(self, keep: int) -> int:
        """Gives the memory of free frames back to the system, but for `keep` of them. How many frames'."""
        going = sorted(self._free[keep:])
        if not going:
            return 0
        if self._is_huge:
            # The kernel would fill the holes again by itself, to make a page of 2 MiB of them.
            self._is_huge = False
            self.memory.madvise(mmap.MADV_NOHUGEPAGE)
        del self._free[keep:]
        first = 0
        for at in range(1, len(going) + 1):
            if at == len(going) or going[at] != going[at - 1] + 1:
                self.memory.madvise(mmap.MADV_DONTNEED, going[first] * PAGE_BYTES, (at - first) * PAGE_BYTES)
                first = at
        self._given_back += going
        return len(going)


def free_bytes(words: memoryview, frame: int) -> int:
    """Bytes that a row and its slot could take after compaction."""
    base = frame * PAGE_WORDS
    return words[base + FLOOR] - HEADER_BYTES - words[base + SLOTS] * SLOT_BYTES + words[base + DEAD]


def compact(arena: Arena, frame: int, replaced: Mapping[int, bytes] = NO_ROWS) -> None:
    """Moves the rows together, so that the dead bytes join the free space. Slots keep their numbers.

    `replaced`: by slot, what takes the places of rows. The caller has made sure that all of it fits.
    """
    words, memory = arena.words, arena.memory
    base, start = frame * PAGE_WORDS, frame * PAGE_BYTES
    image = memory[start : start + PAGE_BYTES]
    directory = array("H", image[HEADER_BYTES : HEADER_BYTES + words[base + SLOTS] * SLOT_BYTES])
    offsets, flagged = directory[0::2], directory[1::2]
    lengths = [length & LENGTH_MASK for length in flagged]
    rows = [image[offset : offset + length] for offset, length in zip(offsets, lengths, strict=True)]
    for slot, row in replaced.items():
        rows[slot] = row
        lengths[slot] = flagged[slot] = len(row)
    floors = list(accumulate(lengths, sub, initial=PAGE_BYTES))
    rows.reverse()
    memory[start + floors[-1] : start + PAGE_BYTES] = b"".join(rows)
    directory[0::2] = array("H", [floor if offset else 0 for offset, floor in zip(offsets, floors[1:], strict=True)])
    directory[1::2] = flagged
    memory[start + HEADER_BYTES : start + HEADER_BYTES + len(directory) * 2] = directory.tobytes()
    words[base + FLOOR] = floors[-1]
    words[base + DEAD] = 0


def page_id(table: int, page: int) -> int:
    return table << TABLE_SHIFT | page


def sealed(image: bytes, generation: int) -> bytes:
    """The page as it goes into a file, with generation and checksum."""
    page = bytearray(image)
    page[8:12] = b"\0\0\0\0"
    page[22:24] = (generation & 0xFFFF).to_bytes(2, "little")
    page[8:12] = crc32c(bytes(page)).to_bytes(4, "little")
    return bytes(page)


def check_sealed(image: bytes, page_id: int, generation: int, where: str) -> None:
    """Raises Corruption unless this is the page, whole, as the checkpoint of this generation wrote it."""
    if len(image) != PAGE_BYTES:
        raise Corruption(f"{where}: {len(image)} bytes instead of a page")
    fault = seal_fault(image, 0, page_id, generation)
    if fault is not None:
        raise Corruption(f"{where}: {fault}")


def seal_fault(memory: bytes | mmap.mmap, start: int, page_id: int, generation: int) -> str | None:
    """What keeps the bytes from `start` on from being the page, as the checkpoint of this generation wrote it."""
    found_id, checksum, found_generation = _SEAL.unpack_from(memory, start)
    # Of its own 12 bytes the checksum covers the page id; the rest is copied once, since crc32c wants bytes.
    if extend(crc32c(_CHECKED_HEAD.pack(found_id)), memory[start + 12 : start + PAGE_BYTES]) != checksum:
        return "the page's checksum is wrong"
    if (found_id, found_generation) != (page_id, generation & 0xFFFF):
        return (
            f"holds {_named(found_id)} of generation {found_generation}, "
            f"not {_named(page_id)} of generation {generation & 0xFFFF}"
        )
    return None


def check_page(image: bytes, page_id: int, where: str) -> None:
    """Raises Corruption unless every invariant of the layout holds. Says nothing about the rows' contents."""
    if len(image) != PAGE_BYTES:
        raise Corruption(f"{where}: {len(image)} bytes instead of a page")
    if int.from_bytes(image[:8], "little") != page_id:
        raise Corruption(f"{where}: holds {_named(int.from_bytes(image[:8], 'little'))} instead of {_named(page_id)}")
    words = array("H", image)
    rows, flags, slots, floor, dead = (words[at] for at in (ROWS, FLAGS, SLOTS, FLOOR, DEAD))
    if flags & OVERFLOW_PAGE:
        if dead > OVERFLOW_BYTES:
            raise Corruption(f"{where}: an overflow page claims {dead} bytes")
        return
    directory_end = HEADER_BYTES + slots * SLOT_BYTES
    if not directory_end <= floor <= PAGE_BYTES:
        raise Corruption(f"{where}: floor {floor} with {slots} slots")
    extents = []
    for slot in range(slots):
        offset, length = words[HEADER_WORDS + 2 * slot], words[HEADER_WORDS + 2 * slot + 1]
        if offset:
            if length & OVERFLOWS and length & LENGTH_MASK != STUB_BYTES:
                raise Corruption(f"{where}: slot {slot} has a stub of {length & LENGTH_MASK} bytes")
            extents.append((offset, offset + (length & LENGTH_MASK), slot))
    if len(extents) != rows:
        raise Corruption(f"{where}: {len(extents)} slots in use, the header says {rows}")
    extents.sort()
    end = floor
    for begin, finish, slot in extents:
        if begin < end or finish > PAGE_BYTES:
            raise Corruption(f"{where}: the row in slot {slot} lies at {begin} to {finish}, over another or outside")
        end = finish
    if sum(finish - begin for begin, finish, _ in extents) + dead != PAGE_BYTES - floor:
        raise Corruption(f"{where}: {dead} dead bytes do not add up")


def _named(page_id: int) -> str:
    return f"page {page_id & PAGE_NUMBERS} of table {page_id >> TABLE_SHIFT}"
