"""Counts that grow, as rates: how fast each has grown over the last second."""

from __future__ import annotations

WINDOW_S = 1.0


class Rates:
    """`count` often."""

    def __init__(self) -> None:
        self._per_second: dict[str, float] = {}
        self._since_s: float | None = None
        self._before: dict[str, int] = {}

    def count(self, now_s: float, **counts: int) -> None:
        """What the counts are now. Clock: monotonic."""
        if self._since_s is not None and now_s < self._since_s + WINDOW_S:
            return
        if self._since_s is not None:
            took_s = now_s - self._since_s
            self._per_second = {name: round((count - self._before[name]) / took_s, 1) for name, count in counts.items()}
        self._since_s, self._before = now_s, counts

    def per_second(self, name: str) -> float:
        """Over the last whole window; 0 before there was one."""
        return self._per_second.get(name, 0.0)
