"""Hit ratio and calls answered over time, window by window, while something else goes on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from time import perf_counter
from typing import Self

from msgspec import Struct

from bench.pool import Pool, hit_ratio
from bench.windows import mean


class Window(Struct, frozen=True):
    """What was told at `at_s` about the time since the window before. The clock is perf_counter."""

    at_s: float
    hit_ratio: float | None


class Timeline:
    """Used as a context. A server that does not answer leaves a gap."""

    def __init__(self, pool: Callable[[], Pool], window_s: float) -> None:
        self._pool = pool
        self._window_s = window_s
        self._end = Event()
        self._thread = ThreadPoolExecutor(1)
        self._watching: Future[None] | None = None
        self.windows: list[Window] = []
        self.error: BaseException | None = None  # that ended the watch; known when it is left

    def __enter__(self) -> Self:
        self._watching = self._thread.submit(self._watch)
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.shutdown()
        if self._watching is not None:
            self.error = self._watching.exception()

    def ratios(self, begin_s: float, end_s: float) -> list[tuple[float, float]]:
        """(when, hit ratio) of the windows that ended in this interval."""
        return [
            (window.at_s, window.hit_ratio)
            for window in self.windows
            if window.hit_ratio is not None and begin_s < window.at_s <= end_s
        ]

    def mean(self, begin_s: float, end_s: float) -> float | None:
        return mean([ratio for _, ratio in self.ratios(begin_s, end_s)])

    def _watch(self) -> None:
        before = self._pool()
        while not self._end.wait(self._window_s):
            after = self._pool()
            self.windows.append(Window(perf_counter(), hit_ratio(before, after)))
            before = after
