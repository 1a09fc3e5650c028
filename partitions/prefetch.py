"""Prefetch: which pages to read ahead, learned from the order in which pages had to be read.

It is fed with *faults*, pages that were asked for and not in memory, and with the first use of a page that it had
prefetched, which would have been a fault. Two sources, each measured and switched on and off by itself:

    sequential    three pages of a table in a row: the next 4, and twice as many each time, up to 32
    learned       pages that came soon after this one, most times that it was read

What is prefetched costs room and a read, so each source must pay: of the last WINDOW pages of its that were used or
dropped, half were used. Otherwise it is off, and only one suggestion in TRIAL is followed, until half of a window is
useful again. It goes on learning meanwhile.

**Learned** pages are kept in a table of fixed size, sets of WAYS pages; in a set CLOCK decides what leaves. Of each
page it knows up to SUCCESSORS others, with counters of how many of its visits they followed within the next REACH:
46 bytes a page. A successor is suggested when it has followed twice at least, and half of the visits. This is a bounded
form of the probability graph of Griffioen and Appleton, "Reducing File System Latency using a Predictive Approach"
(USENIX Summer 1994). Read-ahead that goes on when a prefetched page is first used: Smith, "Cache Memories" (1982).

Pages that were prefetched are not to be shown to the eviction policy before they are used: they wait in a queue of
`room` pages, from whose end they drop unused. So a bad guess costs one of those places, and displaces nothing.

It is pure: no clock, no I/O, no randomness and no seeded hash.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

from partitions.page import TABLE_SHIFT

Source = Literal["sequential", "learned"]
SOURCES: tuple[Source, ...] = ("sequential", "learned")

SUCCESSORS = 4
WAYS = 8
REACH = 3
VISITS = 16  # of a page; then its counters are halved
WINDOW = 64
TRIAL = 16
STREAMS = 32
LEAST_AHEAD, MOST_AHEAD = 4, 32
IN_A_ROW = 3
GAP = 4  # pages of a row that were in memory already, at most

_M64 = (1 << 64) - 1
_NONE = -1


class Usefulness(NamedTuple):
    """How a source has done since the start: pages used and pages dropped unused, and whether it is on."""

    used: int
    wasted: int
    on: bool


class Prefetch:
    """`after` a fault and `used` name what to read ahead; `wasted` and `excess` are how it learns of bad guesses."""

    def __init__(self, pages: int, room: int, wanted: Callable[[int], bool] = lambda _: True) -> None:
        """Knows the successors of at least `pages` pages; at most `room` pages wait for their first use.

        `wanted(page)`: the page exists, and is neither in memory nor under way.
        """
        if room < 1:
            raise ValueError(f"room for at least one page, not {room}")
        self.room = room
        self._wanted = wanted
        self._waiting: OrderedDict[int, Source] = OrderedDict()  # prefetched, not used yet; the oldest first
        self._streams = _Streams()
        self._successors = _Successors(pages)
        self._trials: dict[Source, _Trial] = {source: _Trial() for source in SOURCES}

    def __contains__(self, page: object) -> bool:
        """Whether the page waits for its first use."""
        return page in self._waiting

    def __len__(self) -> int:
        return len(self._waiting)

    def after(self, page: int) -> list[int]:
        """The page had to be read: what to read ahead now. Each of these is then told about by one of the calls below.

        2 to 3 µs for pages in a row, 7 to 8 for others (CPython 3.11), beside some 70 for the read itself.
        """
        self._waiting.pop(page, None)  # it was to be read, but was asked for before
        following, in_a_row = self._streams.after(page)
        ahead: list[int] = []
        self._take(following, "sequential", ahead)
        if not (in_a_row and self._trials["sequential"].followed):  # no need to learn what can be seen
            self._take(self._successors.visit(page), "learned", ahead)
        return ahead

    def used(self, page: int) -> list[int]:
        """The page was asked for, for the first time since it was prefetched: what to read ahead now."""
        source = self._waiting.pop(page, None)
        if source is not None:
            self._trials[source].note(useful=True)
        return self.after(page)

    def wasted(self, page: int) -> None:
        """The page left memory, and was not used since it was prefetched. Nothing happens for any other page."""
        source = self._waiting.pop(page, None)
        if source is not None:
            self._trials[source].note(useful=False)

    def forget(self, pages: Iterable[int]) -> None:
        """These were not read after all: nobody can say whether they would have been used."""
        for page in pages:
            self._waiting.pop(page, None)

    def excess(self) -> list[int]:
        """The pages that have waited longest, beyond `room`: they are counted as wasted, and are to be dropped."""
        dropped = []
        while len(self._waiting) > self.room:
            page, source = self._waiting.popitem(last=False)
            self._trials[source].note(useful=False)
            dropped.append(page)
        return dropped

    def usefulness(self, source: Source) -> Usefulness:
        trial = self._trials[source]
        return Usefulness(trial.used, trial.wasted, trial.on)

    def switch(self, source: Source, on: bool) -> None:
        """Off, a source suggests nothing, whatever it could gain; on again, it has to show that it pays."""
        self._trials[source].allowed = on

    def _take(self, suggested: Iterable[int], source: Source, ahead: list[int]) -> None:
        waiting, wanted = self._waiting, self._wanted
        new = [page for page in suggested if page not in waiting and wanted(page)]
        if new and self._trials[source].lets_through():
            for page in new[: self.room]:
                waiting[page] = source
                ahead.append(page)

    def check(self) -> None:
        """Verifies every invariant, for tests. To be called when the excess has been taken."""
        assert len(self._waiting) <= self.room
        self._streams.check()
        self._successors.check()


class _Trial:
    """Whether a source pays."""

    __slots__ = ("_in_window", "_passed", "_useful", "allowed", "on", "used", "wasted")

    def __init__(self) -> None:
        self.allowed = True
        self.on = True
        self.used = 0
        self.wasted = 0
        self._in_window = 0
        self._useful = 0
        self._passed = 0  # suggestions while it was off

    def note(self, *, useful: bool) -> None:
        self._in_window += 1
        if useful:
            self.used += 1
            self._useful += 1
        else:
            self.wasted += 1
        if self._in_window == WINDOW:
            self.on = 2 * self._useful >= WINDOW
            self._in_window = self._useful = 0

    @property
    def followed(self) -> bool:
        return self.allowed and self.on

    def lets_through(self) -> bool:
        """To be asked once a suggestion."""
        if not self.allowed or self.on:
            return self.allowed
        self._passed += 1
        return self._passed % TRIAL == 0


class _Streams:
    """Pages of one table that are read in a row; of STREAMS such rows at once, those that went on most lately."""

    __slots__ = ("_streams",)

    def __init__(self) -> None:
        # page that is due next → (pages in a row, how many to read ahead, first page that was not read ahead)
        self._streams: OrderedDict[int, tuple[int, int, int]] = OrderedDict()

    def after(self, page: int) -> tuple[range, bool]:
        """(What to read ahead, whether the page is one of several in a row.)"""
        streams = self._streams
        length, ahead, end = 0, 0, 0
        for due in range(page, page - GAP - 1, -1):
            if due in streams:
                length, ahead, end = streams.pop(due)
                break
        length += 1
        due = page + 1
        start = max(due, end)
        if length >= IN_A_ROW and start - due <= ahead // 2:
            ahead = min(max(2 * ahead, LEAST_AHEAD), MOST_AHEAD)
            end = min(due + ahead, ((page >> TABLE_SHIFT) + 1) << TABLE_SHIFT)  # the table's number is above
        else:
            end = start
        streams[due] = (length, ahead, end)
        if len(streams) > STREAMS:
            streams.popitem(last=False)
        return range(start, end), length >= IN_A_ROW

    def check(self) -> None:
        assert len(self._streams) <= STREAMS
        assert all(due <= end <= due + ahead + 1 or not ahead for due, (_, ahead, end) in self._streams.items())


class _Successors:
    """What came after a page, of a bounded number of pages. Flat arrays, so that it is all the memory that it takes."""

    __slots__ = ("_counters", "_hands", "_lately", "_marks", "_pages", "_shift", "_successors", "_visits")

    def __init__(self, pages: int) -> None:
        sets = 1 << max(-(-pages // WAYS) - 1, 1).bit_length()
        self._shift = 65 - sets.bit_length()
        self._pages = array("q", [_NONE]) * (sets * WAYS)
        self._visits = bytearray(sets * WAYS)
        self._marks = bytearray(sets * WAYS)  # visited again since the hand came by
        self._successors = array("q", [_NONE]) * (sets * WAYS * SUCCESSORS)
        self._counters = bytearray(sets * WAYS * SUCCESSORS)
        self._hands = bytearray(sets)
        self._lately: deque[tuple[int, int]] = deque(maxlen=REACH)  # (page, the place that it had)

    def _find(self, page: int) -> int:
        """The page's place, or -1."""
        start = ((page * 0x9E3779B97F4A7C15 & _M64) >> self._shift) * WAYS
        here = self._pages[start : start + WAYS]
        return start + here.index(page) if page in here else -1

    def visit(self, page: int) -> list[int]:
        """The page is visited, after those before it: what used to come next, the likeliest first."""
        pages, lately = self._pages, self._lately
        for earlier, at in lately:
            if pages[at] == earlier != page:
                self._follow(at, page)
        at = self._find(page)
        likely: list[int] = []
        if at < 0:
            at = self._enter(page)
        else:
            likely = self._likely(at)
            self._marks[at] = 1
            self._visits[at] += 1
            if self._visits[at] == VISITS:
                self._halve(at)
        lately.append((page, at))
        return likely

    def _likely(self, at: int) -> list[int]:
        """What came after at least half of the visits, and twice at least."""
        first, least = at * SUCCESSORS, max(2, (self._visits[at] + 1) // 2)
        counters = self._counters[first : first + SUCCESSORS]
        if max(counters) < least:
            return []
        found = sorted((-count, first + way) for way, count in enumerate(counters) if count >= least)
        return [self._successors[successor] for _, successor in found]

    def _halve(self, at: int) -> None:
        self._visits[at] //= 2
        for successor in range(at * SUCCESSORS, (at + 1) * SUCCESSORS):
            self._counters[successor] //= 2

    def _follow(self, at: int, page: int) -> None:
        first = at * SUCCESSORS
        counters = self._counters
        known = self._successors[first : first + SUCCESSORS]
        if page in known:
            successor = first + known.index(page)
            counters[successor] = min(counters[successor] + 1, self._visits[at])
            return
        # A newcomer takes the place of one that came once. Those that came more often age with the page's visits.
        weakest = min(range(first, first + SUCCESSORS), key=counters.__getitem__)
        if counters[weakest] <= 1:
            self._successors[weakest] = page
            counters[weakest] = 1

    def _enter(self, page: int) -> int:
        number = (page * 0x9E3779B97F4A7C15 & _M64) >> self._shift
        start, hand = number * WAYS, self._hands[number]
        while self._marks[start + hand]:
            self._marks[start + hand] = 0
            hand = (hand + 1) % WAYS
        at = start + hand
        self._hands[number] = (hand + 1) % WAYS
        self._pages[at] = page
        self._visits[at] = 1
        for successor in range(at * SUCCESSORS, (at + 1) * SUCCESSORS):
            self._successors[successor] = _NONE
            self._counters[successor] = 0
        return at

    def check(self) -> None:
        for at, page in enumerate(self._pages):
            assert page == _NONE or self._find(page) == at
            assert self._visits[at] < VISITS
            counters = self._counters[at * SUCCESSORS : (at + 1) * SUCCESSORS]
            assert max(counters) <= self._visits[at]
            known = [known for known in self._successors[at * SUCCESSORS : (at + 1) * SUCCESSORS] if known != _NONE]
            assert len(known) == len(set(known))
            assert page not in known or page == _NONE
