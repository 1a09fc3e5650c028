"""Figures over time: when a workload has warmed up, what happened inside some interval. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise

SETTLED_WITHIN = 0.03
SETTLED_WINDOWS = 3

Interval = tuple[float, float]  # from, to; in seconds of some clock


def settled(figures: Sequence[float], within: float = SETTLED_WITHIN, windows: int = SETTLED_WINDOWS) -> bool:
    """Whether the last `windows` figures lie within this share of one another: what is still warming up drifts."""
    last = figures[-windows:]
    return len(last) == windows and max(last) - min(last) <= within * max(map(abs, last))


def back_at(figures: Sequence[tuple[float, float]], level: float) -> float | None:
    """When the figure was at this level for the first time and stayed so in the next window. None: never.

    One window at the level may be chance, two in a row hardly are. Pairs are (when, figure).
    """
    for (when, figure), (_, following) in pairwise(figures):
        if figure >= level and following >= level:
            return when
    return None


def split(samples: Sequence[tuple[float, float]], intervals: Sequence[Interval]) -> tuple[list[float], list[float]]:
    """Values of the samples (when, value) inside the intervals, and of those outside. Intervals may overlap."""
    joined = union(intervals)
    begins = [begin for begin, _ in joined]
    inside: list[float] = []
    outside: list[float] = []
    for when, value in samples:
        at = bisect_left(begins, when)
        covered = (at > 0 and when <= joined[at - 1][1]) or (at < len(begins) and begins[at] == when)
        (inside if covered else outside).append(value)
    return inside, outside


def union(intervals: Sequence[Interval]) -> list[Interval]:
    """The same time in intervals that do not touch, in order."""
    joined: list[Interval] = []
    for begin, end in sorted(intervals):
        if joined and begin <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((begin, end))
    return joined


def mean(figures: Sequence[float]) -> float | None:
    return sum(figures) / len(figures) if figures else None
