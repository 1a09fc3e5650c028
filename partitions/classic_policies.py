"""The eviction policies that others use, to compare W-TinyLFU with: see partitions.eviction.

Clock: Corbató, "A Paging Experiment with the Multics System" (1968). ARC: Megiddo and Modha, "ARC: A Self-Tuning, Low
Overhead Replacement Cache" (FAST 2003). Midpoint LRU: MySQL's manual, "Buffer Pool LRU Algorithm".
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from itertools import chain

from partitions.eviction import NOTHING_PINNED, Pages, oldest_unpinned, valid_capacity


class Lru:
    """The least recently used page leaves."""

    __slots__ = ("_pages", "capacity")

    def __init__(self, capacity: int) -> None:
        self.capacity = valid_capacity(capacity)
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
            page = oldest_unpinned(self._pages, pinned)
            if page is None:
                break
            del self._pages[page]
            evicted.append(page)
        return evicted

    def resize(self, capacity: int) -> None:
        self.capacity = valid_capacity(capacity)

    def check(self) -> None:
        assert self.capacity >= 1


class Clock:
    """Second chance: the hand passes over a page that was touched since it last came by, and clears its mark.

    The ring is a queue whose head is under the hand; a page that is passed over goes to the tail.
    """

    __slots__ = ("_admitted", "_ring", "capacity")

    def __init__(self, capacity: int) -> None:
        self.capacity = valid_capacity(capacity)
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
                unpinned = oldest_unpinned(ring, pinned)
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
        self.capacity = valid_capacity(capacity)

    def check(self) -> None:
        assert self.capacity >= 1


class MidpointLru:
    """InnoDB's LRU list: a new page enters at five eighths of it, and reaches its head when it is touched again.

    InnoDB waits a second before a touch counts (innodb_old_blocks_time); there is no clock here, so the first one does.
    """

    __slots__ = ("_old", "_young", "capacity")

    YOUNG_SHARE = 5 / 8

    def __init__(self, capacity: int) -> None:
        self.capacity = valid_capacity(capacity)
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
            page = oldest_unpinned(chain(self._old, self._young), pinned)
            if page is None:
                break
            self.remove(page)
            evicted.append(page)
        return evicted

    def resize(self, capacity: int) -> None:
        self.capacity = valid_capacity(capacity)
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
        self.capacity = valid_capacity(capacity)
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
            page = oldest_unpinned(first, pinned)
            if page is None:
                page = oldest_unpinned(second, pinned)
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
        self._once_target *= valid_capacity(capacity) / self.capacity
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
