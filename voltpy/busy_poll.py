"""Waiting for an answer awake: what a lone caller may do where the core that it waits on has nothing else to do.

A thread that sleeps until its answer is there has to be woken, and a core that has stopped has to start again: on a
virtual machine that costs as much as the rest of a call from memory. So the caller looks again and again at first, and
sleeps only when the answer takes longer. A look that finds nothing offers the core to whoever else wants it.

    the last wait took longer than `limit_s`    asleep from the beginning: most likely it would be awake in vain
    the core was taken while it was offered     asleep, and so are the next WANTED_WAITS: others have work for it
    otherwise                                   awake for `limit_s` at most, then asleep

Why a limit near the price of a sleep is the right one: A. Karlin et al., "Empirical Studies of Competitive Spinning for
a Shared-Memory Multiprocessor", SOSP 1991.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from os import sched_yield
from time import monotonic
from typing import Protocol

TAKEN_S = 20e-6  # between two looks: ten times what they take where nobody else wants the core
WANTED_WAITS = 64


class Poll(Protocol):
    """A select.poll object."""

    def poll(self, timeout_ms: float, /) -> list[tuple[int, int]]: ...


class BusyPoll:
    """Waits on poll objects, of one thread at a time. `limit_s` 0: always asleep."""

    def __init__(
        self, limit_s: float, *, clock: Callable[[], float] = monotonic, offer_core: Callable[[], object] = sched_yield
    ) -> None:
        self._limit_s = limit_s
        self._clock = clock
        self._offer_core = offer_core
        self._asleep_waits = 0  # how many of the next ones are asleep from the beginning

    def wait(self, poll: Poll | select.poll, timeout_ms: float) -> list[tuple[int, int]]:
        """As `poll.poll(timeout_ms)`."""
        if not self._limit_s:
            return poll.poll(timeout_ms)
        began_s = self._clock()
        if self._asleep_waits:
            self._asleep_waits -= 1
        elif events := self._look(poll, began_s, min(self._limit_s, timeout_ms / 1000.0)):
            return events
        else:
            timeout_ms = max(timeout_ms - (self._clock() - began_s) * 1000.0, 0.0)
        events = poll.poll(timeout_ms)
        if self._clock() - began_s > self._limit_s:
            self._asleep_waits = max(self._asleep_waits, 1)
        return events

    def _look(self, poll: Poll | select.poll, began_s: float, limit_s: float) -> list[tuple[int, int]]:
        clock, offer_core = self._clock, self._offer_core
        until_s = began_s + limit_s
        looked_s = began_s
        while not (events := poll.poll(0)):
            now_s = clock()
            if now_s - looked_s > TAKEN_S:
                self._asleep_waits = WANTED_WAITS
                break
            if now_s >= until_s:
                break
            looked_s = now_s
            offer_core()
        return events
