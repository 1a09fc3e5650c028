"""The page file of one partition: where the pages of its checkpoints are.

    file  = place*            place = one page (partitions.page), with its checksum and generation set

A *place* is the file's n-th piece of PAGE_BYTES. What is in which place is known to the checkpoint alone (its page
table): the file says nothing about itself, and which places are free is what the page table leaves over.

A page that is in the last checkpoint is never written over: a crash in the middle of it would leave neither the old
page nor the new one. So a changed page goes to a free place, and its old place becomes free only when a checkpoint
that does without it is durable:

    free ──write──► in use ──release──► released ──settle──► free

A checkpoint that comes to nothing changes none of this: what it wrote is in use (the page may have left memory since),
and what it released is still the last checkpoint's. After a crash, what the last checkpoint does not name is free.
"""

from __future__ import annotations

import errno
import heapq
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from partitions.page import PAGE_BYTES
from voltpy.crash_point import crash_point
from voltpy.errors import Corruption
from voltpy.record_log import DiskFull

GENERATION_BITS = 16
READ_PAGES = 128  # in one system call, where many follow one another


def entry_of(place: int, generation: int) -> int:
    """What a page table says of a page; 0 is left for a page that is nowhere."""
    return (place + 1) << GENERATION_BITS | generation


def place_of(entry: int) -> int:
    return (entry >> GENERATION_BITS) - 1


def generation_of(entry: int) -> int:
    return entry & (1 << GENERATION_BITS) - 1


class PageFile:
    """`write` pages, `release` places, and `settle` both. `fd` is to be flushed in between, by the caller."""

    def __init__(self, path: Path, used: Iterable[int]) -> None:
        """Opens the file, or makes it. `used`: the places of the last checkpoint; Corruption when one is missing."""
        self.path = path
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        in_use = set(used)
        self._places = os.fstat(self.fd).st_size // PAGE_BYTES
        if in_use and max(in_use) >= self._places:
            end = self._places * PAGE_BYTES
            os.close(self.fd)
            raise Corruption(f"{path} offset {end}: the file ends here; the checkpoint has pages up to {max(in_use)}")
        self._free = [place for place in range(self._places) if place not in in_use]  # ascending, so it is a heap
        self._released: list[int] = []

    @property
    def places(self) -> int:
        return self._places

    @property
    def free_places(self) -> int:
        return len(self._free)

    def write(self, pages: list[bytes]) -> list[int]:
        """Writes sealed pages into free places and returns these, in order. Raises DiskFull: then nothing is taken."""
        places = [heapq.heappop(self._free) for _ in range(min(len(pages), len(self._free)))]
        places += range(self._places, self._places + len(pages) - len(places))
        crash_point("page_file.write.before")
        try:
            for first, run in runs_of(places):
                write_all(self.fd, b"".join(pages[first : first + run]), places[first] * PAGE_BYTES)
                crash_point("page_file.write.part_written")
        except OSError as error:
            for place in places:
                if place < self._places:
                    heapq.heappush(self._free, place)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                os.ftruncate(self.fd, self._places * PAGE_BYTES)
                raise DiskFull(f"{self.path}: {error.strerror}") from None
            raise
        self._places = max(self._places, places[-1] + 1) if places else self._places
        return places

    def read(self, places: list[int]) -> Iterator[bytes]:
        """The pages in these places, unchecked. Places that follow one another are read together."""
        for first, run in runs_of(places):
            for at in range(first, first + run, READ_PAGES):
                count = min(READ_PAGES, first + run - at)
                data = os.pread(self.fd, count * PAGE_BYTES, places[at] * PAGE_BYTES)
                for start in range(0, count * PAGE_BYTES, PAGE_BYTES):
                    yield data[start : start + PAGE_BYTES]

    def release(self, place: int) -> None:
        """The page that is here has gone elsewhere, or nowhere."""
        self._released.append(place)

    def settle(self) -> None:
        """A checkpoint that does without what was released is durable: it is free; what is at the end goes back."""
        for place in self._released:
            heapq.heappush(self._free, place)
        self._released = []
        free = set(self._free)
        end = self._places
        while end - 1 in free:
            end -= 1
        if end < self._places:
            os.ftruncate(self.fd, end * PAGE_BYTES)
            self._places = end
            self._free = sorted(place for place in free if place < end)

    def close(self) -> None:
        if self.fd >= 0:  # closed twice, the number would be another file's
            os.close(self.fd)
            self.fd = -1


def runs_of(places: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(index of the first, how many) of every stretch of places that follow one another."""
    first = 0
    for at in range(1, len(places) + 1):
        if at == len(places) or places[at] != places[at - 1] + 1:
            yield first, at - first
            first = at


def runs_across_gaps(places: Sequence[int], gap_pages: int, most_pages: int) -> Iterator[tuple[int, int]]:
    """The same for ascending places, also across gaps of at most so many; a run spans `most_pages` at most."""
    first = 0
    for at in range(1, len(places) + 1):
        if at == len(places) or places[at] - places[at - 1] > gap_pages + 1 or places[at] - places[first] >= most_pages:
            yield first, at - first
            first = at


def write_all(fd: int, data: bytes, offset: int) -> None:
    """Writes all of it, or raises OSError. On a nearly full disk one call may write a part and raise nothing."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written
