"""Warming: which pages to read next, of those that somebody thinks will be needed.

    heat        the pages of the last heat dump, the hottest first (partitions.heat)
    keys        the pages of the keys used most (partitions.access_log), the heaviest first
    schedule    whole tables, because their time has come (voltpy.warm_schedule)
    prefetch    what tends to follow the pages that are being read (partitions.prefetch)

The first three are lists, and take turns: one is read to its end before the next one begins, at its own rate. Prefetch
is worth something at once or never, so it is served beside whatever list has the turn, from a short queue of its own,
out of the room that is left. A rate is kept by a token bucket: what has not been read in BURST_S is not made up for, so
whoever warms calls about that often; `due_s` says when there will be something.

When the pool is full, what the heat dump and the keys would still bring is colder than what is there, since they began
with the hottest: they end. A schedule waits instead, because somebody asked for its tables by name; the pool makes room
for it or does not.

It is pure: the clock is passed in, and pages are only named.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

from partitions.page import PAGE_BYTES
from voltpy.warm_schedule import WARM_SOURCES, Source

Listed = Literal["heat", "keys", "schedule"]

BURST_S = 0.25
LOOKED_AT = 1024  # pages of a list in one call: most of them may be in memory already
QUEUED = 256  # pages to prefetch


class Progress(NamedTuple):
    """How far a source is. `done` counts pages that were read for it, and those that were in memory already.

    `total` is how many it named; a list that ended because the pool was full has done less. `pages_per_s` is how fast
    they have been read since it began. For prefetch `done` and `total` count since the start.
    """

    source: Source
    done: int
    total: int
    pages_per_s: float
    state: Literal["off", "idle", "waiting", "running", "done", "full"]


class Warming:
    """`begin` a list, `offer` pages to prefetch, and read what `next_pages` names."""

    def __init__(self, pages_per_s: float) -> None:
        self._lists: dict[Listed, _List] = {
            "heat": _List(pages_per_s, ends_when_full=True),
            "keys": _List(pages_per_s, ends_when_full=True),
            "schedule": _List(pages_per_s, ends_when_full=False),
        }
        self._prefetch = _Queue(pages_per_s)
        self._on = dict.fromkeys(WARM_SOURCES, True)

    def begin(self, source: Listed, pages: Sequence[int], pages_per_s: float | None = None) -> None:
        """Reads these, in this order, instead of what was left of that source. With the rate that it was made with,
        unless another one is given (`pages_per_second` makes one of bytes).

        The sequence is not copied (a heat dump is an array of up to 16 million).
        """
        self._lists[source].begin(pages, pages_per_s)

    def offer(self, pages: Iterable[int]) -> list[int]:
        """These are to be prefetched; returned are those for which there is no place: they will not be read.

        Beyond QUEUED pages the oldest give way: what they follow was long ago.
        """
        if not self._on["prefetch"]:
            return list(pages)
        return self._prefetch.put(pages)

    def switch(self, source: Source, on: bool) -> list[int]:
        """A list keeps its place while it is off. Returns pages that were to be prefetched, and will not be."""
        self._on[source] = on
        return self._prefetch.clear() if source == "prefetch" and not on else []

    def next_pages(
        self, now_s: float, room: int, is_resident: Callable[[int], bool], *, full: bool = False
    ) -> list[int]:
        """At most `room` pages to read now, each once.

        `is_resident(page)`: it is in memory, under way, or there is no such page (any more). `full`: the pool holds as
        much as it may. No `room` alone does not say so: too many reads may be under way.

        1 µs when nothing may be read, else 0.25 µs a page and 0.15 ms at most, when LOOKED_AT are passed over.
        """
        pages: list[int] = []
        source = self._turn()
        if full:
            for listed in self._lists.values():
                listed.pool_is_full(now_s)
            source = self._turn()
        chosen: set[int] = set()
        if source is not None:
            pages = self._lists[source].next_pages(now_s, room, is_resident)
            chosen = set(pages)
        if self._on["prefetch"] and room > len(pages):
            pages += self._prefetch.next_pages(
                now_s, room - len(pages), lambda page: page in chosen or is_resident(page)
            )
        return pages

    def due_s(self, now_s: float) -> float | None:
        """How long until there is something to read, given room: 0 for at once; None when nothing is left."""
        source = self._turn()
        waits = [] if source is None else [self._lists[source].bucket.due_s(now_s)]
        if self._on["prefetch"] and self._prefetch.pages:
            waits.append(self._prefetch.bucket.due_s(now_s))
        return min(waits, default=None)

    def progress(self, now_s: float) -> list[Progress]:
        """Of each source, in the order of WARM_SOURCES."""
        turn = self._turn()
        found = []
        for source, listed in self._lists.items():
            state: Literal["off", "idle", "waiting", "running", "done", "full"] = "off"
            if self._on[source]:
                state = "running" if source == turn else listed.state
            found.append(Progress(source, listed.at, listed.total, listed.pages_per_s(now_s), state))
        queue = self._prefetch
        state = "off" if not self._on["prefetch"] else "running" if queue.pages else "idle"
        found.append(Progress("prefetch", queue.taken, queue.offered, queue.pages_per_s(now_s), state))
        return found

    def _turn(self) -> Listed | None:
        for source, listed in self._lists.items():
            if self._on[source] and listed.unread:
                return source
        return None

    def check(self) -> None:
        """Verifies every invariant, for tests."""
        assert len(self._prefetch.pages) <= QUEUED
        assert self._prefetch.taken <= self._prefetch.offered
        for listed in self._lists.values():
            assert 0 <= listed.read <= listed.at <= listed.total
            assert len(listed.pages) in (0, listed.total)
            assert 0.0 <= listed.bucket.tokens <= listed.bucket.most


def pages_per_second(bytes_per_s: int) -> float:
    return bytes_per_s / PAGE_BYTES


class _Bucket:
    """Lets through so many pages a second. It fills from the first time that it is asked on."""

    __slots__ = ("_asked_s", "most", "per_s", "tokens")

    def __init__(self, per_s: float) -> None:
        if not per_s > 0:
            raise ValueError(f"a rate of more than 0 pages a second, not {per_s}")
        self.per_s = per_s
        self.most = 1.0 + per_s * BURST_S  # a fraction of a page must not be lost at the top
        self.tokens = 1.0
        self._asked_s: float | None = None

    def available(self, now_s: float) -> int:
        if self._asked_s is not None and now_s > self._asked_s:
            self.tokens = min(self.most, self.tokens + (now_s - self._asked_s) * self.per_s)
        if self._asked_s is None or now_s > self._asked_s:
            self._asked_s = now_s
        return int(self.tokens)

    def take(self, pages: int) -> None:
        self.tokens -= pages

    def due_s(self, now_s: float) -> float:
        """How long until a page may be read."""
        return 0.0 if self.available(now_s) >= 1 else (1.0 - self.tokens) / self.per_s


class _List:
    """Pages that are read in order, from the first to the last."""

    __slots__ = (
        "_default_per_s", "_ends_when_full", "_finished_s", "_started_s", "at", "bucket", "pages", "read", "state",
        "total",
    )  # fmt: skip

    def __init__(self, pages_per_s: float, *, ends_when_full: bool) -> None:
        self._default_per_s = pages_per_s
        self._ends_when_full = ends_when_full
        self.state: Literal["idle", "waiting", "done", "full"] = "idle"
        self._reset((), pages_per_s)

    def _reset(self, pages: Sequence[int], pages_per_s: float) -> None:
        self.bucket = _Bucket(pages_per_s)
        self.pages = pages
        self.total = len(pages)
        self.at = 0
        self.read = 0
        self._started_s: float | None = None
        self._finished_s: float | None = None

    def begin(self, pages: Sequence[int], pages_per_s: float | None) -> None:
        self._reset(pages, self._default_per_s if pages_per_s is None else pages_per_s)
        self.state = "waiting" if self.total else "done"

    @property
    def unread(self) -> bool:
        return self.at < len(self.pages)

    def pool_is_full(self, now_s: float) -> None:
        if self._ends_when_full and self.unread:
            self._end("full", now_s)

    def next_pages(self, now_s: float, room: int, is_resident: Callable[[int], bool]) -> list[int]:
        if self._started_s is None:
            self._started_s = now_s
        wanted = min(room, self.bucket.available(now_s))
        chosen: dict[int, None] = {}
        if wanted <= 0:
            return []
        pages, at = self.pages, self.at
        end = min(at + LOOKED_AT, len(pages))
        while at < end and len(chosen) < wanted:
            page = pages[at]
            at += 1
            if page not in chosen and not is_resident(page):
                chosen[page] = None
        self.at = at
        self.read += len(chosen)
        self.bucket.take(len(chosen))
        if at == len(pages):
            self._end("done", now_s)
        return list(chosen)

    def _end(self, state: Literal["done", "full"], now_s: float) -> None:
        self.state = state
        self.pages = ()  # they may be many
        self._finished_s = now_s

    def pages_per_s(self, now_s: float) -> float:
        if self._started_s is None:
            return 0.0
        until_s = now_s if self._finished_s is None else self._finished_s
        return self.read / (until_s - self._started_s) if until_s > self._started_s else 0.0


class _Queue:
    """Pages that are read soon or not at all."""

    __slots__ = ("_started_s", "bucket", "offered", "pages", "taken")

    def __init__(self, pages_per_s: float) -> None:
        self.bucket = _Bucket(pages_per_s)
        self.pages: deque[int] = deque()
        self.offered = 0
        self.taken = 0
        self._started_s: float | None = None

    def put(self, pages: Iterable[int]) -> list[int]:
        before = len(self.pages)
        self.pages.extend(pages)
        self.offered += len(self.pages) - before
        return [self.pages.popleft() for _ in range(len(self.pages) - QUEUED)]

    def clear(self) -> list[int]:
        left = list(self.pages)
        self.pages.clear()
        return left

    def next_pages(self, now_s: float, room: int, is_resident: Callable[[int], bool]) -> list[int]:
        if self._started_s is None:
            self._started_s = now_s
        wanted = min(room, self.bucket.available(now_s))
        chosen: dict[int, None] = {}
        while self.pages and len(chosen) < wanted:
            page = self.pages.popleft()
            if page not in chosen and not is_resident(page):
                chosen[page] = None
        self.taken += len(chosen)
        self.bucket.take(len(chosen))
        return list(chosen)

    def pages_per_s(self, now_s: float) -> float:
        if self._started_s is None or now_s <= self._started_s:
            return 0.0
        return self.taken / (now_s - self._started_s)
