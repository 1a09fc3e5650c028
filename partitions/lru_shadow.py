"""What another policy would have hit, had it been asked: see partitions.tiny_lfu."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable


class LruShadow:
    """What LRU would have hit, seen on a sample: a miniature of an LRU pool, of page numbers only.

    A page is in the sample by its hash, and the miniature is smaller by the same factor, so its hit ratio is near that
    of the whole (Waldspurger and others, "Cache Modeling and Optimization using Miniature Simulations", ATC 2017). The
    miniature is a sixteenth of the pool, more of a small one: at least 256 pages, if the pool has as many.

    `lead` counts how many more hits LRU had than the policy, starting over at 0 when it falls below (a CUSUM test): it
    grows only while LRU is better just now.
    """

    __slots__ = ("_limit", "_pages", "lead", "mask")

    SMALLEST = 256
    SIXTEENTH = 15

    def __init__(self, pages: int) -> None:
        self._pages: OrderedDict[int, None] = OrderedDict()
        self.lead = 0
        self.mask = self._limit = 0
        self.resize(pages)

    def __len__(self) -> int:
        return len(self._pages)

    def samples(self, page: int) -> bool:
        return not page * 0x9E3779B1 >> 16 & self.mask

    def hit(self, pages: Iterable[int]) -> None:
        """The policy has hit these pages."""
        shadow, mask = self._pages, self.mask
        move_to_end = shadow.move_to_end
        for page in pages:
            if page * 0x9E3779B1 >> 16 & mask:
                continue
            if page in shadow:
                move_to_end(page)
            else:
                if self.lead:
                    self.lead -= 1
                self._enter(page)

    def missed(self, page: int) -> None:
        """The policy has missed this page."""
        if not self.samples(page):
            return
        if page in self._pages:
            self._pages.move_to_end(page)
            self.lead += 1
        else:
            self._enter(page)

    @property
    def is_ahead(self) -> bool:
        """LRU has had so many more hits that it is no accident: 8 % of its pages."""
        return self.lead > max(4.0, 0.08 * self._limit)

    def _enter(self, page: int) -> None:
        self._pages[page] = None
        if len(self._pages) > self._limit:
            self._pages.popitem(last=False)

    def resize(self, pages: int) -> None:
        mask = 0
        while mask < self.SIXTEENTH and pages // (2 * mask + 2) >= self.SMALLEST:
            mask = 2 * mask + 1
        if mask != self.mask:  # another sample
            self.mask = mask
            self._pages.clear()
            self.lead = 0
        self._limit = max(1, pages // (mask + 1))
        while len(self._pages) > self._limit:
            self._pages.popitem(last=False)

    def check(self) -> None:
        assert len(self._pages) <= self._limit
        assert all(map(self.samples, self._pages))
        assert self.lead >= 0
