"""Waiting for an answer awake: what a lone caller may do where the core that it waits on has nothing else to do.

A thread that sleeps until its answer is there has to be woken, and a core that has stopped has to start again: on a
virtual machine that costs as much as the rest of a call from memory. So the caller looks again and again at first, and
sleeps when the answer takes longer. Each look that finds nothing offers the core to whoever else wants it.

    how the last wait awake ended         the next waits
    the answer came in time               awake
    it did not                            one asleep; twice as many each further time, up to LATE_WAITS
    others had taken the core for long    TAKEN_WAITS asleep; twice as many each further time, until as many in a row
                                          have ended well

Why a limit near the price of a sleep is the right one: A. Karlin et al., "Empirical Studies of Competitive Spinning for
a Shared-Memory Multiprocessor", SOSP 1991.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from os import sched_yield
from time import monotonic
from typing import Protocol

LATE_WAITS = 64
TAKEN_S = 1e-3  # the processes of the cluster work for less at a time, who computes for more
TAKEN_WAITS, MOST_TAKEN_WAITS = 64, 1 << 16


class Poll(Protocol):
    """As select.poll makes it."""

    def poll(self, timeout_ms: float, /) -> list[tuple[int, int]]: ...


class BusyPoll:
    """Waits on poll objects, of one thread at a time. `limit_s`: how long it is awake, at most; 0: never."""

    def __init__(
        self, limit_s: float, *, clock: Callable[[], float] = monotonic, offer_core: Callable[[], object] = sched_yield
    ) -> None:
        self._limit_s = limit_s
        self._clock = clock
        self._offer_core = offer_core
        self._asleep_waits = 0  # that are still to come
        self._late_waits = 1
        self._taken_waits = TAKEN_WAITS
        self._in_a_row = 0  # waits awake that have ended well since others took the core

    def wait(self, poll: Poll, timeout_ms: float) -> list[tuple[int, int]]:
        """As `poll.poll(timeout_ms)`; the timeout is not negative."""
        if not self._limit_s:
            return poll.poll(timeout_ms)
        if self._asleep_waits:
            self._asleep_waits -= 1
            return poll.poll(timeout_ms)
        began_s = self._clock()
        events = self._look(poll, began_s + min(self._limit_s, timeout_ms / 1000.0))
        if events:
            return events
        return poll.poll(max(timeout_ms - (self._clock() - began_s) * 1000.0, 0.0))

    def _look(self, poll: Poll, until_s: float) -> list[tuple[int, int]]:
        clock, offer_core = self._clock, self._offer_core
        offered_s = inf
        while True:
            events = poll.poll(0)
            now_s = clock()
            if now_s - offered_s > TAKEN_S:
                self._core_was_taken()
                return events
            if events:
                self._was_in_time()
                return events
            if now_s >= until_s:
                self._was_late()
                return events
            offered_s = now_s
            offer_core()

    def _was_in_time(self) -> None:
        self._late_waits = 1
        self._in_a_row += 1
        if self._in_a_row >= self._taken_waits:
            self._taken_waits = TAKEN_WAITS

    def _was_late(self) -> None:
        self._asleep_waits = self._late_waits
        self._late_waits = min(2 * self._late_waits, LATE_WAITS)

    def _core_was_taken(self) -> None:
        self._asleep_waits = self._taken_waits
        self._taken_waits = min(2 * self._taken_waits, MOST_TAKEN_WAITS)
        self._in_a_row = 0
