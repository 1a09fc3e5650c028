"""Eviction policies of a buffer pool: which page leaves when there is no room.

The pool keeps the pages; a policy only knows their numbers. Five of them stand behind one interface: the pool's own, in
partitions.tiny_lfu, and in partitions.classic_policies those that it is compared with. So the benchmark `python -m
bench.hit_ratio` measures the very class that the pool uses.

    touch(pages)     pages that were used, in order, drained in batches off the hot path; unknown ones are passed over
    admit(page)      a page has come into memory, because it was asked for
    remove(page)     a page is gone for another reason than eviction (freed, its table dropped)
    evict(pinned)    takes out, and names, pages until no more than the capacity are left; never a pinned one
    resize(pages)    the capacity, which may change at any time; evict() follows it
    iteration        the resident pages, roughly the coldest first; reversed(), the hottest, for a heat dump
    check()          verifies every invariant, for tests

They are pure: no clock, no I/O, no randomness and no seeded hash, so the same calls always evict the same pages. Page
numbers are integers from 0 to 2**63 - 1.

Hit ratios and costs: docs/eviction.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

NOTHING_PINNED: Pages = frozenset()


class Pages(Protocol):
    """A set of pages, of which it is only asked whether one is among them."""

    def __contains__(self, page: int, /) -> bool: ...


class Policy(Protocol):
    """What the pool and the benchmark ask of a policy; the module's docstring says what each method means."""

    @property
    def capacity(self) -> int: ...
    def touch(self, pages: Iterable[int]) -> None: ...
    def admit(self, page: int) -> None: ...
    def remove(self, page: int) -> None: ...
    def evict(self, pinned: Pages = NOTHING_PINNED) -> list[int]: ...
    def resize(self, capacity: int) -> None: ...
    def check(self) -> None: ...
    def __len__(self) -> int: ...
    def __contains__(self, page: object) -> bool: ...
    def __iter__(self) -> Iterator[int]: ...
    def __reversed__(self) -> Iterator[int]: ...


def oldest_unpinned(pages: Iterable[int], pinned: Pages) -> int | None:
    """The first page that is not pinned."""
    for page in pages:
        if page not in pinned:
            return page
    return None


def valid_capacity(capacity: int) -> int:
    """The capacity, in pages. Raises ValueError unless it is at least one."""
    if capacity < 1:
        raise ValueError(f"the capacity must be at least one page, not {capacity}")
    return capacity
