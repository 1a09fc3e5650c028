"""The buffer pool's eviction policy, and what it remembers of pages that are not resident: see partitions.eviction."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from itertools import chain

from partitions.eviction import NOTHING_PINNED, Pages, oldest_unpinned, valid_capacity
from partitions.frequency_sketch import FrequencySketch
from partitions.lru_shadow import LruShadow


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
        self.capacity = valid_capacity(capacity)
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
        self.capacity = valid_capacity(capacity)
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
            return oldest_unpinned(self._protected, pinned)
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
