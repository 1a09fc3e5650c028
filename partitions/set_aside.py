"""Calls that are set aside, and what each of them waits for.

    add ──► waits ── arrived, of the last thing that it missed ──► ready ── next_group ──► runs, and is here no more
              │                                                                              │ misses something else
              └── overdue: answered, `drop`ped                            add, in its old place in the order ◄──┘

A call waits for *misses* (voltpy.not_here): pages on disk, keys and tables that are lent, plans of statements. They are
counted twice, since two questions are asked. `_awaiting` says whom a miss that is still to come will make ready. How
many calls want it until they have run, be it here already or not, is in `_awaited`: a page that has just been read
must not leave memory again before the calls that wanted it have run.

A batch may be undone (partitions.executor), and then all of this must be as it was when the batch began: `_before`
remembers that of every call that the batch added or took out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable
from datetime import datetime
from typing import TypeAlias

from msgspec import Struct

from voltpy.not_here import PLAN, Miss
from voltpy.procedure import Procedure
from voltpy.transaction import Generated

Origin: TypeAlias = Hashable  # whoever gets the replies: the shell knows who that is
CallId: TypeAlias = tuple[int, int]  # (client id, number)

CALLS_SET_ASIDE = 8192  # for pages from disk
CALLS_WAIT_FOR_LENT = 4096  # fewer than a client may have in flight
CALLS_A_RERUN = 128
TIMES_SET_ASIDE = 4  # then a call waits for each page that it needs, and all others with it


class SetAside(Struct, eq=False):
    """A call that waits. Its arguments are kept encoded: the run that was undone may have changed a list among them.

    The first eight fields are the caller's; the others are what `CallsSetAside.add` makes of them.
    """

    origin: Origin
    client_id: int
    number: int
    procedure: Procedure
    arguments: bytes
    directed_now: datetime | None  # what `tx.now()` is in all parts of a directed call; None: the call is none
    generated: Generated | None  # what `tx` has generated for it, to be the same when it runs again
    missed: tuple[Miss, ...]
    missing: int = 0  # how many of these are still to come
    arrival: int = 0  # its place in the order in which calls were first set aside
    times: int = 1  # how often it has been set aside
    lent_since_s: float | None = None  # since when it has waited for what is lent; None: for nothing of that kind

    @property
    def waits_for_lent(self) -> bool:
        return self.lent_since_s is not None


class CallsSetAside:
    """`ready` are those that have all that they missed, in the order in which they were first set aside.

    `for_lent` counts those that wait, or have waited, for what is lent. `is_changed`: this batch has added calls, taken
    some out, or given one another origin.
    """

    def __init__(self) -> None:
        self.ready: deque[SetAside] = deque()
        self.for_lent = 0
        self.is_changed = False
        self._calls: dict[CallId, SetAside] = {}
        self._arrivals = 0
        self._awaiting: dict[Miss, list[SetAside]] = {}
        self._awaited: dict[Miss, int] = {}
        self._missed_pages: list[int] = []  # since `missed_pages` was asked
        self._missed_plans: list[str] = []  # since `missed_plans` was asked
        self._before: dict[CallId, SetAside | None] = {}  # as it waited when the batch began; None: it did not
        self._former_origins: list[tuple[SetAside, Origin]] = []  # of calls that this batch has seen a retry of

    def __len__(self) -> int:
        return len(self._calls)

    def get(self, call_id: CallId) -> SetAside | None:
        return self._calls.get(call_id)

    def has_room(self, *, for_lent: bool) -> bool:
        """Whether one more may wait. Apart: one key that is in doubt must not keep out whoever waits for the disk."""
        if for_lent:
            return self.for_lent < CALLS_WAIT_FOR_LENT
        return len(self._calls) - self.for_lent < CALLS_SET_ASIDE

    def add(self, call: SetAside, again: SetAside | None, lent_since_s: float | None) -> None:
        """Sets a call aside. `again` is what it was when it last waited, if this was a rerun.

        `lent_since_s`: the time, where it misses something that is lent; its first such wait counts.
        """
        call.missing = len(call.missed)
        call.lent_since_s = lent_since_s
        if again is None:
            self._arrivals += 1
            call.arrival = self._arrivals
        else:
            call.arrival = again.arrival
            call.times = again.times + 1
            if again.waits_for_lent:
                call.lent_since_s = again.lent_since_s
        self._put(call)
        self._before.setdefault((call.client_id, call.number), None)
        self.is_changed = True
        awaiting, awaited = self._awaiting, self._awaited
        for miss in call.missed:
            awaited[miss] = awaited.get(miss, 0) + 1
            if miss in awaiting:
                awaiting[miss].append(call)
            else:
                awaiting[miss] = [call]
                if isinstance(miss, int):
                    self._missed_pages.append(miss)
                elif miss[0] == PLAN:
                    self._missed_plans.append(miss[1])

    def arrived(self, misses: Iterable[Miss]) -> None:
        """All of this is here: calls that missed nothing else are ready."""
        awaiting, ready = self._awaiting, self.ready
        if not awaiting:
            return
        for miss in misses:
            for call in awaiting.pop(miss, ()):
                call.missing -= 1
                if not call.missing:
                    ready.append(call)
        self._put_in_order()

    def is_awaited(self, miss: Miss) -> bool:
        """Whether a call that is set aside, and has not run again, has missed this."""
        return miss in self._awaited

    def missed_pages(self) -> list[int]:
        """The pages that calls have been set aside for since the last time."""
        missed, self._missed_pages = self._missed_pages, []
        return missed

    def missed_plans(self) -> list[str]:
        """The statements that calls have been set aside for, since the last time: their plans are needed."""
        missed, self._missed_plans = self._missed_plans, []
        return missed

    def next_group(self) -> list[SetAside]:
        """Takes out the first that is ready, and those behind it that may run in one group with it: that costs half."""
        first = self.ready.popleft()
        calls = [first]
        if _may_be_grouped(first):
            while self.ready and len(calls) < CALLS_A_RERUN and _belong_together(first, self.ready[0]):
                calls.append(self.ready.popleft())
        for call in calls:
            call_id = call.client_id, call.number
            self._take(call_id)
            self._want_no_more(call)
            self._before.setdefault(call_id, call)
        self.is_changed = True
        return calls

    def answer_to(self, call: SetAside, origin: Origin) -> None:
        """Its client has asked again, from there: that is where the reply goes."""
        self._former_origins.append((call, call.origin))
        call.origin = origin
        self.is_changed = True

    def overdue(self, lent_since_s: float) -> list[SetAside]:
        """Those that have waited for what is lent since then or longer, and are not ready."""
        return [
            call
            for call in self._calls.values()
            if call.lent_since_s is not None and call.lent_since_s <= lent_since_s and call.missing
        ]

    def drop(self, call: SetAside) -> None:
        """It waits no longer, for anything."""
        self._take((call.client_id, call.number))
        for miss in call.missed:
            calls = self._awaiting.get(miss, [])
            if call in calls:
                calls.remove(call)
        self._want_no_more(call)

    def take_all(self) -> list[SetAside]:
        """Takes out all of them, ready or not."""
        calls = list(self._calls.values())
        for call in calls:
            self.drop(call)
        self.ready.clear()
        return calls

    def begin_batch(self) -> None:
        """What was changed until now is not undone any more. Not needed where `is_changed` is false."""
        self._before = {}
        self._former_origins = []
        self.is_changed = False

    def undo_batch(self) -> None:
        """All is as when the batch began, but for what has arrived since. Those that it ran again are ready again."""
        for call_id, before in self._before.items():
            call = self._calls.get(call_id)
            if call is not None:
                self.drop(call)
            if before is not None:
                self._put(before)
                for miss in before.missed:
                    self._awaited[miss] = self._awaited.get(miss, 0) + 1
        # Run again, the retry must find who waited before it, or that one's calls would never be told as dropped.
        for call, origin in reversed(self._former_origins):
            call.origin = origin
        self.ready.clear()
        self.ready.extend(call for call in self._calls.values() if not call.missing)
        self._put_in_order()
        self.begin_batch()

    def _put(self, call: SetAside) -> None:
        self._calls[call.client_id, call.number] = call
        self.for_lent += call.waits_for_lent

    def _take(self, call_id: CallId) -> None:
        self.for_lent -= self._calls.pop(call_id).waits_for_lent

    def _want_no_more(self, call: SetAside) -> None:
        awaited = self._awaited
        for miss in call.missed:
            calls = awaited[miss]
            if calls == 1:
                del awaited[miss]
            else:
                awaited[miss] = calls - 1

    def _put_in_order(self) -> None:
        if len(self.ready) > 1:
            ordered = sorted(self.ready, key=lambda call: call.arrival)
            self.ready.clear()
            self.ready.extend(ordered)


def _may_be_grouped(call: SetAside) -> bool:
    return call.directed_now is None and call.generated is None and call.times < TIMES_SET_ASIDE


def _belong_together(first: SetAside, call: SetAside) -> bool:
    return (
        call.procedure is first.procedure
        and call.client_id == first.client_id
        and call.origin == first.origin
        and _may_be_grouped(call)
    )
