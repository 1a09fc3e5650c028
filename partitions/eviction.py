"""Eviction policies of a buffer pool: which page leaves when there is no room.

The pool keeps the pages; a policy only knows their numbers. Five of them stand behind one interface, so that the
benchmark `python -m bench.hit_ratio` measures the very class that the pool uses:

    touch(pages)     pages that were used, in order, drained in batches off the hot path; unknown ones are passed over
    admit(page)      a page has come into memory, because it was asked for
    remove(page)     a page is gone for another reason than eviction (freed, its table dropped)
    evict(pinned)    takes out, and names, pages until no more than the capacity are left; never a pinned one
    resize(pages)    the capacity, which may change at any time; evict() follows it
    iteration        the resident pages, roughly the coldest first; reversed(), the hottest, for a heat dump
    check()          verifies every invariant, for tests

They are pure: no clock, no I/O, no randomness and no seeded hash, so the same calls always evict the same pages. Page
numbers are integers from 0 to 2**63 - 1.

Sources: Clock: Corbató, "A Paging Experiment with the Multics System" (1968). ARC: Megiddo and Modha, "ARC: A
Self-Tuning, Low Overhead Replacement Cache" (FAST 2003). Midpoint LRU: MySQL's manual, "Buffer Pool LRU Algorithm".
W-TinyLFU: see its class. Hit ratios and costs: docs/eviction.md.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Protocol

NOTHING_PINNED: Pages = frozenset()

_M32 = (1 << 32) - 1
_M64 = (1 << 64) - 1


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


def _oldest(pages: Iterable[int], pinned: Pages) -> int | None:
    """The first page that is not pinned."""
    for page in pages:
        if page not in pinned:
            return page
    return None


def _valid(capacity: int) -> int:
    if capacity < 1:
        raise ValueError(f"the capacity must be at least one page, not {capacity}")
    return capacity


class Lru:
    """The least recently used page leaves."""

    __slots__ = ("_pages", "capacity")

    def __init__(self, capacity: int) -> None:
        self.capacity = _valid(capacity)
        self._pages: OrderedDict[int, None] = OrderedDict()  # the least recently used first

    def __len__(self) -> int:
        return len(self._pages)

    def __contains__(self, page: object) -> bool:
        return page in self._pages

    def __iter__(self) -> Iterator[int]:
        return iter(self._pages)

    def __reversed__(self) -> Iterator[int]:
        return reversed(self._pages)

    def touch(self, pages: Iterable[int]) -> None:
        resident = self._pages
        move_to_end = resident.move_to_end
        for page in pages:
            if page in resident:
                move_to_end(page)

    def admit(self, page: int) -> None:
        self._pages[page] = None
        self._pages.move_to_end(page)

    def remove(self, page: int) -> None:
        self._pages.pop(page, None)

    def evict(self, pinned: Pages = NOTHING_PINNED) -> list[int]:
        evicted: list[int] = []
        while len(self._pages) > self.capacity:
            page = _oldest(self._pages, pinned)
            if page is None:
                break
            del self._pages[page]
            evicted.append(page)
        return evicted

    def resize(self, capacity: int) -> None:
        self.capacity = _valid(capacity)

    def check(self) -> None:
        assert self.capacity >= 1


class Clock:
    """Second chance: the hand passes over a page that was touched since it last came by, and clears its mark.

    The ring is a queue whose head is under the hand; a page that is passed over goes to the tail.
    """

    __slots__ = ("_admitted", "_ring", "capacity")

    def __init__(self, capacity: int) -> None:
        self.capacity = _valid(capacity)
        self._ring: OrderedDict[int, bool] = OrderedDict()  # page → touched since the hand came by
        self._admitted: dict[int, None] = {}  # since the last eviction: the hand has yet to reach their places

    def __len__(self) -> int:
        return len(self._ring)

    def __contains__(self, page: object) -> bool:
        return page in self._ring

    def __iter__(self) -> Iterator[int]:
        return chain(
            [page for page, touched in self._ring.items() if not touched],
            [page for page, touched in self._ring.items() if touched],
        )

    def __reversed__(self) -> Iterator[int]:
        return reversed(list(self))

    def touch(self, pages: Iterable[int]) -> None:
        ring = self._ring
        for page in pages:
            if page in ring:
                ring[page] = True

    def admit(self, page: int) -> None:
        if page in self._ring:
            self._ring[page] = True
        else:
            self._ring[page] = False
            self._admitted[page] = None

    def remove(self, page: int) -> None:
        self._ring.pop(page, None)
        self._admitted.pop(page, None)

    def evict(self, pinned: Pages = NOTHING_PINNED) -> list[int]:
        evicted: list[int] = []
        ring, admitted = self._ring, self._admitted
        passed = 0  # in a row; after two rounds only what is pinned or new is left
        while len(ring) > self.capacity:
            page, touched = next(iter(ring.items()))
            if passed > 2 * len(ring):
                unpinned = _oldest(ring, pinned)
                if unpinned is None:
                    break
                page = unpinned
            elif touched or page in pinned or page in admitted:
                # A pinned page keeps its mark: it is in use.
                ring[page] = touched and page in pinned
                ring.move_to_end(page)
                passed += 1
                continue
            else:
                passed = 0
            del ring[page]
            evicted.append(page)
        if evicted:
            # They take the places of those that left, which is just behind the hand.
            for page in [page for page in admitted if page in ring]:
                ring.move_to_end(page)
        admitted.clear()
        return evicted

    def resize(self, capacity: int) -> None:
        self.capacity = _valid(capacity)

    def check(self) -> None:
        assert self.capacity >= 1


class MidpointLru:
    """InnoDB's LRU list: a new page enters at five eighths of it, and reaches its head when it is touched again.

    InnoDB waits a second before a touch counts (innodb_old_blocks_time); there is no clock here, so the first one does.
    """

    __slots__ = ("_old", "_young", "capacity")

    YOUNG_SHARE = 5 / 8

    def __init__(self, capacity: int) -> None:
        self.capacity = _valid(capacity)
        self._young: OrderedDict[int, None] = OrderedDict()
        self._old: OrderedDict[int, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def __contains__(self, page: object) -> bool:
        return page in self._young or page in self._old

    def __iter__(self) -> Iterator[int]:
        return chain(self._old, self._young)

    def __reversed__(self) -> Iterator[int]:
        return chain(reversed(self._young), reversed(self._old))

    def touch(self, pages: Iterable[int]) -> None:
        young, old = self._young, self._old
        move_to_end = young.move_to_end
        for page in pages:
            if page in young:
                move_to_end(page)
            elif page in old:
                del old[page]
                young[page] = None
                self._balance()

    def admit(self, page: int) -> None:
        if page in self:
            self.touch((page,))
        else:
            self._old[page] = None

    def remove(self, page: int) -> None:
        if page in self._young:
            del self._young[page]
        else:
            self._old.pop(page, None)

    def evict(self, pinned: Pages = NOTHING_PINNED) -> list[int]:
        evicted: list[int] = []
        while len(self) > self.capacity:
            page = _oldest(chain(self._old, self._young), pinned)
            if page is None:
                break
            self.remove(page)
            evicted.append(page)
        return evicted

    def resize(self, capacity: int) -> None:
        self.capacity = _valid(capacity)
        self._balance()

    def _young_limit(self) -> int:
        return max(1, int(self.capacity * self.YOUNG_SHARE))

    def _balance(self) -> None:
        """The young part keeps its share; what leaves it is the youngest of the old."""
        while len(self._young) > self._young_limit():
            page, _ = self._young.popitem(last=False)
            self._old[page] = None

    def check(self) -> None:
        assert self._young.keys().isdisjoint(self._old)
        assert len(self._young) <= self._young_limit()


class Arc:
    """ARC: pages seen once and pages seen again, each an LRU list, with ghosts of both that move the line between them.

    ARC proper evicts before it admits; here the new page is in already, which is the same once the pool is full.
    The ghosts are as many as the pages: some 150 bytes a page of capacity.
    """

    __slots__ = ("_again", "_ghost_of_again", "_ghost_of_once", "_once", "_once_target", "capacity")

    def __init__(self, capacity: int) -> None:
        self.capacity = _valid(capacity)
        self._once: OrderedDict[int, None] = OrderedDict()  # T1
        self._again: OrderedDict[int, None] = OrderedDict()  # T2
        self._ghost_of_once: OrderedDict[int, None] = OrderedDict()  # B1
        self._ghost_of_again: OrderedDict[int, None] = OrderedDict()  # B2
        self._once_target = 0.0  # p

    def __len__(self) -> int:
        return len(self._once) + len(self._again)

    def __contains__(self, page: object) -> bool:
        return page in self._once or page in self._again

    def __iter__(self) -> Iterator[int]:
        return chain(self._once, self._again)

    def __reversed__(self) -> Iterator[int]:
        return chain(reversed(self._again), reversed(self._once))

    def touch(self, pages: Iterable[int]) -> None:
        once, again = self._once, self._again
        move_to_end = again.move_to_end
        for page in pages:
            if page in again:
                move_to_end(page)
            elif page in once:
                del once[page]
                again[page] = None

    def admit(self, page: int) -> None:
        of_once, of_again = self._ghost_of_once, self._ghost_of_again
        if page in self:
            self.touch((page,))
        elif page in of_once:
            self._once_target = min(self._once_target + max(1.0, len(of_again) / len(of_once)), float(self.capacity))
            del of_once[page]
            self._again[page] = None
        elif page in of_again:
            self._once_target = max(self._once_target - max(1.0, len(of_once) / len(of_again)), 0.0)
            del of_again[page]
            self._again[page] = None
        else:
            self._once[page] = None
        self._trim()

    def remove(self, page: int) -> None:
        self._once.pop(page, None)
        self._again.pop(page, None)
        self._ghost_of_once.pop(page, None)
        self._ghost_of_again.pop(page, None)

    def evict(self, pinned: Pages = NOTHING_PINNED) -> list[int]:
        evicted: list[int] = []
        once, again = self._once, self._again
        while len(once) + len(again) > self.capacity:
            first, second = (once, again) if len(once) > self._once_target else (again, once)
            page = _oldest(first, pinned)
            if page is None:
                page = _oldest(second, pinned)
            if page is None:
                break
            if page in once:
                del once[page]
                self._ghost_of_once[page] = None
            else:
                del again[page]
                self._ghost_of_again[page] = None
            evicted.append(page)
        self._trim()
        return evicted

    def resize(self, capacity: int) -> None:
        self._once_target *= _valid(capacity) / self.capacity
        self.capacity = capacity
        self._trim()

    def _trim(self) -> None:
        of_once, of_again, capacity = self._ghost_of_once, self._ghost_of_again, self.capacity
        while of_once and len(self._once) + len(of_once) > capacity:
            of_once.popitem(last=False)
        while of_again and len(self) + len(of_once) + len(of_again) > 2 * capacity:
            of_again.popitem(last=False)

    def check(self) -> None:
        lists = (self._once, self._again, self._ghost_of_once, self._ghost_of_again)
        assert len(set(chain(*lists))) == sum(map(len, lists))
        assert len(self._ghost_of_once) <= self.capacity
        assert len(self._ghost_of_again) <= 2 * self.capacity
        assert 0.0 <= self._once_target <= self.capacity


class FrequencySketch:
    """How often a page was counted lately: a count-min sketch of four rows of 4-bit counters, halved now and then.

    Only the smallest of a page's four counters grow (conservative update), and they stop at 15. Two rows share the
    bytes of a table, one in the low and one in the high half of each: one translate() halves both. Room for 12 to 24
    counters a page in each row, a power of two, is 24 to 48 bytes a page.

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
        """Keeps all counts: an index is the hash modulo a power of two, so tables double and fold."""
        if self._halved_to <= self._mask:
            self._halve(self._halved_to, self._mask + 1)
        size = self._size(pages)
        while len(self._low) < size:
            self._low = self._low + self._low
            self._high = self._high + self._high
        while len(self._low) > size:
            self._low, self._high = _folded(self._low), _folded(self._high)
        self._mask = size - 1
        self._halved_to = size
        self._until_halving = min(max(1, self._until_halving * pages // self.pages), self.PERIOD * pages)
        self.pages = pages

    def check(self) -> None:
        size = self._mask + 1
        assert len(self._low) == len(self._high) == size == self._size(self.pages)
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


class Ghosts:
    """The last pages that left somewhere, in two generations: at least `limit` / 2 of them, at most `limit`."""

    __slots__ = ("_older", "_younger", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._younger: set[int] = set()
        self._older: set[int] = set()

    def __len__(self) -> int:
        return len(self._younger) + len(self._older)

    def __contains__(self, page: object) -> bool:
        return page in self._younger or page in self._older

    def __iter__(self) -> Iterator[int]:
        return chain(self._older, self._younger)

    def add(self, page: int) -> None:
        self._older.discard(page)
        self._younger.add(page)
        if len(self._younger) * 2 >= self.limit:
            self._older, self._younger = self._younger, set()

    def discard(self, page: int) -> None:
        self._older.discard(page)
        self._younger.discard(page)

    def resize(self, limit: int) -> None:
        self.limit = limit
        if len(self) > limit:
            self._older, self._younger = set(), set()

    def check(self) -> None:
        assert self._younger.isdisjoint(self._older)
        assert len(self) <= self.limit


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


class WTinyLfu:
    """W-TinyLFU: a window for new pages, and a main part that a page enters if it was used more often than another.

    After Einziger, Friedman and Manes, "TinyLFU: A Highly Efficient Cache Admission Policy" (2017) and Einziger, Eytan,
    Friedman and Manes, "Adaptive Software Cache Management" (Middleware 2018). New pages enter the window, an LRU list.
    The page that falls out of it is the *candidate*. It enters the main part only if the sketch has seen it more often
    than the *victim* there; else it leaves. The main part is a segmented LRU: a page enters probation, and another
    touch moves it to the protected part. Differences from the papers, each for a reason:

    - The victim is the least frequent of the oldest SAMPLE pages on probation, not the very oldest: with few hits
      between evictions, age says little there. A scan yields several victims, used up before the next.
    - The window is not moved by trial, as hill climbing does, but by evidence, as in ARC: a page that is asked for
      again soon after the window let it go says that the window is too small; one that the main part gave up for
      another says that the main part is. Both come at the moment in which the space was missed, where a trial has to
      outlast the noise of a whole period. The second weighs a little more: it is a proven page that was lost.
    - Where LRU has been ahead for a while, the window grows by a large step at once: half of the capacity, then a
      quarter, a sixth …. A working set that moves on is lost sooner than small steps could follow. See LruShadow.
    - A first window that is of no use is cut when the pool is full for the first time: with fewer hits than it has
      pages, it keeps a fifth of them. Later the other signals move it.
    - A page that the main part has just given up goes straight back, if it is more frequent than the next victim.
    - Uses of a page that follow each other closely, within an eighth to a quarter of the capacity's number of uses,
      count once (correlated references, as in LRU-K: O'Neil, O'Neil and Weikum, 1993). They are one piece of work more
      often than a sign of popularity.
    - The sketch forgets slowly: see FrequencySketch.

    A page that floods the sketch by intent cannot lock others out for good: counters stop at 15, and halve.

    What is kept for pages that are not resident, in bytes a page of capacity: the sketch 24 to 48, the ghosts 25 as
    measured, the shadow 11. Together 60 to 85, a hundredth of an 8 KB page; the shadow of a pool of less than 4,096
    pages is larger, 80 KB at most.
    """

    __slots__ = (
        "_displaced",
        "_epoch",
        "_probation",
        "_protected",
        "_rejected",
        "_shadow",
        "_sketch",
        "_strides",
        "_uses",
        "_victims",
        "_was_full",
        "_window",
        "_window_hits",
        "_window_target",
        "capacity",
    )

    FIRST_WINDOW = 1 / 64
    UNUSED = 0.2  # of the first window, where it is of no use
    LARGEST_WINDOW = 0.98
    PROTECTED = 0.9  # of the main part
    GHOSTS = 0.25
    SAMPLE = 40
    SHRINK = 1.25  # a displaced page's weight against a rejected one's 1
    STRIDE = 0.5
    EPOCHS = 8  # in one capacity's number of uses; uses in the same or the next epoch are correlated

    def __init__(self, capacity: int) -> None:
        self.capacity = _valid(capacity)
        # All lists: the least recently used first; the value is the epoch of the last use.
        self._window: OrderedDict[int, int] = OrderedDict()
        self._probation: OrderedDict[int, int] = OrderedDict()
        self._protected: OrderedDict[int, int] = OrderedDict()
        self._window_target = max(1.0, capacity * self.FIRST_WINDOW)
        self._window_hits = 0  # until the pool is full for the first time
        self._was_full = False
        self._rejected = Ghosts(self._ghosts())  # by the main part, when they fell out of the window
        self._displaced = Ghosts(self._ghosts())  # from the main part
        self._sketch = FrequencySketch(capacity)
        self._shadow = LruShadow(capacity)
        self._strides = 0  # large steps of the window
        self._victims: list[int] = []  # from the last scan of probation, the least frequent last
        self._uses = 0
        self._epoch = 0

    def _ghosts(self) -> int:
        return max(2, int(self.capacity * self.GHOSTS))

    def __len__(self) -> int:
        return len(self._window) + len(self._probation) + len(self._protected)

    def __contains__(self, page: object) -> bool:
        return page in self._protected or page in self._window or page in self._probation

    def __iter__(self) -> Iterator[int]:
        return chain(self._window, self._probation, self._protected)

    def __reversed__(self) -> Iterator[int]:
        return chain(reversed(self._protected), reversed(self._probation), reversed(self._window))

    @property
    def window_target(self) -> float:
        """Pages that the window is to hold, as adapted so far."""
        return self._window_target

    def touch(self, pages: Iterable[int]) -> None:
        window, probation, protected = self._window, self._probation, self._protected
        window_to_end, protected_to_end = window.move_to_end, protected.move_to_end
        epoch = self._epoch
        correlated = epoch - 1
        counted: list[int] = []
        count = counted.append
        used: list[int] = []
        note = used.append
        promoted = 0
        for page in pages:
            if page in protected:
                protected_to_end(page)
                last = protected[page]
                if last != epoch:
                    protected[page] = epoch
            elif page in window:
                window_to_end(page)
                last = window[page]
                if last != epoch:
                    window[page] = epoch
            elif page in probation:
                last = probation.pop(page)
                protected[page] = epoch
                promoted += 1
            else:
                continue
            note(page)
            if last < correlated:
                count(page)
        if counted:
            self._sketch.add(counted)
        if not self._was_full:
            self._window_hits += sum(map(window.__contains__, used))  # the loop took no page into it or out of it
        self._shadow.hit(used)
        if promoted:
            self._demote()
        self._pass(len(used))

    def admit(self, page: int) -> None:
        if page in self:
            self.touch((page,))
            return
        sketch, shadow = self._sketch, self._shadow
        sketch.add((page,))
        shadow.missed(page)
        if shadow.is_ahead:
            shadow.lead = 0
            self._strides += 1
            self._widen(self.capacity * self.STRIDE / self._strides)
        if page in self._rejected:
            self._rejected.discard(page)
            self._widen(1.0)
            self._window[page] = self._epoch
        elif page in self._displaced:
            self._displaced.discard(page)
            self._window_target = max(self._window_target - self.SHRINK, 1.0, self.capacity * 0.01)
            victim = self._victim(NOTHING_PINNED)
            if victim is None or sketch.estimate(page) > sketch.estimate(victim):
                self._to_probation(page, self._epoch)
            else:
                self._window[page] = self._epoch
        else:
            self._window[page] = self._epoch
        self._pass(1)
        if len(self) <= self.capacity:
            self._overflow()

    def remove(self, page: int) -> None:
        if page in self._protected:
            del self._protected[page]
        elif page in self._window:
            del self._window[page]
        else:
            self._probation.pop(page, None)
        self._rejected.discard(page)
        self._displaced.discard(page)

    def evict(self, pinned: Pages = NOTHING_PINNED) -> list[int]:
        evicted: list[int] = []
        excess = len(self) - self.capacity
        if excess <= 0:
            return evicted
        if not self._was_full:
            self._was_full = True
            if self._window_hits < self._window_target:
                self._window_target = max(1.0, self._window_target * self.UNUSED)
        self._demote()
        estimate, window = self._sketch.estimate, self._window
        for _ in range(excess):
            victim = self._victim(pinned)
            candidate = None
            if len(window) > self._window_target or victim is None:
                candidate = self._candidate(pinned)
            if candidate is None:
                if victim is None:
                    break
                self._displace(victim)
                evicted.append(victim)
            elif victim is not None and estimate(candidate) > estimate(victim):
                self._displace(victim)
                self._to_probation(candidate, window.pop(candidate))
                evicted.append(victim)
            else:
                del window[candidate]
                self._rejected.add(candidate)
                self._displaced.discard(candidate)
                evicted.append(candidate)
        self._overflow()
        return evicted

    def resize(self, capacity: int) -> None:
        share = self._window_target / self.capacity
        self.capacity = _valid(capacity)
        self._window_target = max(1.0, capacity * min(share, self.LARGEST_WINDOW))
        self._rejected.resize(self._ghosts())
        self._displaced.resize(self._ghosts())
        self._sketch.resize(capacity)
        self._shadow.resize(capacity)
        self._pass(0)  # epochs have another length now
        if len(self) <= capacity:
            self._overflow()
        self._demote()

    def _pass(self, uses: int) -> None:
        self._uses += uses
        self._sketch.age(uses)
        length = max(1, self.capacity // self.EPOCHS)
        if self._uses >= length:
            self._epoch += self._uses // length
            self._uses %= length

    def _widen(self, pages: float) -> None:
        self._window_target = min(self._window_target + pages, max(1.0, self.capacity * self.LARGEST_WINDOW))

    def _to_probation(self, page: int, epoch: int) -> None:
        self._probation[page] = epoch
        if len(self._probation) <= self.SAMPLE:
            self._victims.clear()  # the last scan would have seen it

    def _overflow(self) -> None:
        """While there is room, what falls out of the window needs no comparison."""
        window = self._window
        while len(window) > self._window_target:
            self._to_probation(*window.popitem(last=False))

    def _demote(self) -> None:
        protected = self._protected
        limit = self._protected_limit()
        while len(protected) > limit:
            self._to_probation(*protected.popitem(last=False))

    def _protected_limit(self) -> float:
        return max(1.0, (self.capacity - self._window_target) * self.PROTECTED)

    def _displace(self, page: int) -> None:
        if self._probation.pop(page, None) is None:
            del self._protected[page]
        self._displaced.add(page)
        self._rejected.discard(page)

    def _candidate(self, pinned: Pages) -> int | None:
        """The page that falls out of the window. Pinned ones start over, or each eviction would pass by all of them."""
        window = self._window
        for _ in range(len(window)):
            page = next(iter(window))
            if page not in pinned:
                return page
            window.move_to_end(page)
        return None

    def _victim(self, pinned: Pages) -> int | None:
        """The page that the main part would give up; None if there is none that is not pinned."""
        probation, victims = self._probation, self._victims
        while victims:
            page = victims[-1]
            if page in probation and page not in pinned:
                return page
            victims.pop()
        scanned: list[int] = []
        passed_by: list[int] = []
        for page in probation:
            if page in pinned:
                passed_by.append(page)
            else:
                scanned.append(page)
                if len(scanned) == self.SAMPLE:
                    break
        for page in passed_by:
            probation.move_to_end(page)  # as in the window
        if not scanned:
            return _oldest(self._protected, pinned)
        # The sort is stable and the list is reversed before and after: of equals the oldest comes last.
        scanned.reverse()
        scanned.sort(key=self._sketch.estimate, reverse=True)
        self._victims = scanned[-max(1, len(scanned) // 4) :]
        return self._victims[-1]

    def check(self) -> None:
        lists = (self._window, self._probation, self._protected)
        resident = set(chain(*lists))
        assert len(resident) == len(self)
        assert 1.0 <= self._window_target <= max(1.0, self.capacity * self.LARGEST_WINDOW)
        assert len(self._protected) <= self._protected_limit() + self.SHRINK * 2
        assert all(epoch <= self._epoch for pages in lists for epoch in pages.values())
        assert len(self._victims) <= self.SAMPLE
        assert 0 <= self._uses < max(1, self.capacity // self.EPOCHS)
        for ghosts in (self._rejected, self._displaced):
            ghosts.check()
            assert resident.isdisjoint(ghosts)
            assert ghosts.limit == self._ghosts()
        assert set(self._rejected).isdisjoint(self._displaced)
        self._shadow.check()
        self._sketch.check()
        assert self._sketch.pages == self.capacity


POLICIES: dict[str, type[Lru] | type[Clock] | type[MidpointLru] | type[Arc] | type[WTinyLfu]] = {
    "w-tinylfu": WTinyLfu,
    "lru": Lru,
    "clock": Clock,
    "arc": Arc,
    "midpoint": MidpointLru,
}
DEFAULT = "w-tinylfu"
