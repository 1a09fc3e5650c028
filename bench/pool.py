"""The buffer pool as `voltpy status` and InnoDB's status tell of it. What is not told is None, and printed as "-"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

Metrics = Mapping[str, Any]

# Metrics of a partition, in the order in which they are printed; some are sums over the partitions, others means.
SUMS = ("resident_pages", "pages", "eviction_rate_per_sec", "page_faults_per_second")
MEANS = ("buffer_pool_dirty_pages_ratio", "memory_fragmentation_ratio")


class Pool(Struct, frozen=True):
    """`hits` and `misses` since the start where they are counted; `hit_ratio` is what the server says of late."""

    hits: int | None
    misses: int | None
    hit_ratio: float | None
    figures: dict[str, float]
    read_latency_us: list[Any]


def of_partitions(partitions: Sequence[Metrics]) -> Pool:
    figures: dict[str, float] = {}
    for name in SUMS:
        if values := _values(partitions, name):
            figures[name] = sum(values)
    for name in MEANS:
        if values := _values(partitions, name):
            figures[name] = sum(values) / len(values)
    ratios = _values(partitions, "buffer_pool_hit_ratio")
    hits = _values(partitions, "buffer_pool_hits")
    misses = _values(partitions, "buffer_pool_misses")
    return Pool(
        hits=int(sum(hits)) if hits else None,
        misses=int(sum(misses)) if misses else None,
        hit_ratio=sum(ratios) / len(ratios) if ratios else None,
        figures=figures,
        read_latency_us=[found for metrics in partitions if (found := metrics.get("read_latency_us"))],
    )


def hit_ratio(before: Pool, after: Pool) -> float | None:
    """The part of all look-ups between the two that found their page in memory."""
    if before.hits is not None and before.misses is not None and after.hits is not None and after.misses is not None:
        hits, misses = after.hits - before.hits, after.misses - before.misses
        return hits / (hits + misses) if hits + misses > 0 else None
    return after.hit_ratio


def misses(before: Pool, after: Pool) -> int | None:
    if before.misses is None or after.misses is None:
        return None
    return after.misses - before.misses


def _values(partitions: Sequence[Metrics], name: str) -> list[float]:
    return [value for metrics in partitions if isinstance(value := metrics.get(name), int | float)]


def text(value: float | None, form: str = ",.0f") -> str:
    return "-" if value is None else format(value, form)
