"""How often pages were used lately, in 24 to 96 bytes a page: see partitions.tiny_lfu."""

from __future__ import annotations

from collections.abc import Iterable

_M32 = (1 << 32) - 1
_M64 = (1 << 64) - 1


class FrequencySketch:
    """How often a page was counted lately: a count-min sketch of four rows of 4-bit counters, halved now and then.

    Only the smallest of a page's four counters grow (conservative update), and they stop at 15. Two rows share the
    bytes of a table, one in the low and one in the high half of each: one translate() halves both. Room for 12 to 24
    counters a page in each row, a power of two, is 24 to 48 bytes a page; after the pages have become fewer, for twice
    as many.

    A table of more than SLICE bytes is halved over several calls, so that no call stalls for long.
    """

    __slots__ = ("_halved_to", "_high", "_low", "_mask", "_until_halving", "pages")

    COUNTERS_A_PAGE = 12
    PERIOD = 40  # a first halving after so many uses a page of capacity, then every half of that
    SLICE = 1 << 16

    _HALVES = bytes((byte >> 1) & 0x77 for byte in range(256))

    def __init__(self, pages: int) -> None:
        self.pages = pages
        size = self._size(pages)
        self._mask = size - 1
        self._low = bytearray(size)  # rows 0 and 1
        self._high = bytearray(size)  # rows 2 and 3
        self._until_halving = self.PERIOD * pages
        self._halved_to = size  # a halving has come to here; at the end there is none under way

    @classmethod
    def _size(cls, pages: int) -> int:
        return max(64, 1 << (cls.COUNTERS_A_PAGE * pages - 1).bit_length())

    def add(self, pages: Iterable[int]) -> None:
        """Counts pages."""
        mask, low, high = self._mask, self._low, self._high
        for page in pages:
            mixed = page * 0x9E3779B97F4A7C15 & _M64
            mixed = (mixed ^ mixed >> 32) * 0xD6E8FEB86659FD93 & _M64
            first = mixed >> 32
            step = mixed & _M32 | 1
            second = first + step & mask
            third = first + 2 * step & mask
            fourth = first + 3 * step & mask
            first &= mask
            a, b, c, d = low[first] & 15, low[second] >> 4, high[third] & 15, high[fourth] >> 4
            least = a if a < b else b
            if c < least:
                least = c
            if d < least:
                least = d
            if least < 15:
                if a == least:
                    low[first] += 1
                if b == least:
                    low[second] += 16
                if c == least:
                    high[third] += 1
                if d == least:
                    high[fourth] += 16

    def estimate(self, page: int) -> int:
        mask, low, high = self._mask, self._low, self._high
        mixed = page * 0x9E3779B97F4A7C15 & _M64
        mixed = (mixed ^ mixed >> 32) * 0xD6E8FEB86659FD93 & _M64
        first = mixed >> 32
        step = mixed & _M32 | 1
        a, b = low[first & mask] & 15, low[first + step & mask] >> 4
        c, d = high[first + 2 * step & mask] & 15, high[first + 3 * step & mask] >> 4
        if b < a:
            a = b
        if d < c:
            c = d
        return a if a < c else c

    def age(self, uses: int) -> None:
        """So many uses have passed, counted or not."""
        size = self._mask + 1
        if self._halved_to < size:
            self._halve(self._halved_to, self._halved_to + self.SLICE)
        self._until_halving -= uses
        if self._until_halving <= 0:
            self._until_halving = self.PERIOD * self.pages // 2
            if self._halved_to < size:  # few, large batches: finish the one before
                self._halve(self._halved_to, size)
            self._halve(0, self.SLICE)

    def _halve(self, start: int, end: int) -> None:
        self._low[start:end] = self._low[start:end].translate(self._HALVES)
        self._high[start:end] = self._high[start:end].translate(self._HALVES)
        self._halved_to = min(end, self._mask + 1)

    def resize(self, pages: int) -> None:
        """Keeps all counts: an index is the hash modulo a power of two, so tables double and fold.

        They fold only where a quarter would do, since that takes 0.2 µs a counter: a capacity that wavers about a power
        of two would have them fold and double again and again.
        """
        if self._halved_to <= self._mask:
            self._halve(self._halved_to, self._mask + 1)
        size = self._size(pages)
        while len(self._low) < size:
            self._low = self._low + self._low
            self._high = self._high + self._high
        while len(self._low) > 2 * size:
            self._low, self._high = _folded(self._low), _folded(self._high)
        size = len(self._low)
        self._mask = size - 1
        self._halved_to = size
        self._until_halving = min(max(1, self._until_halving * pages // self.pages), self.PERIOD * pages)
        self.pages = pages

    def check(self) -> None:
        size = self._mask + 1
        assert len(self._low) == len(self._high) == size
        assert size in (self._size(self.pages), 2 * self._size(self.pages))
        assert size & self._mask == 0
        assert 0 < self._until_halving <= self.PERIOD * self.pages
        assert 0 < self._halved_to <= size


def _folded(table: bytearray) -> bytearray:
    """One half laid over the other, each counter the larger of the two."""
    half = len(table) // 2
    return bytearray(
        max(one & 15, other & 15) | max(one & 240, other & 240)
        for one, other in zip(table[:half], table[half:], strict=True)
    )
