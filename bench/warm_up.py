"""The measured workload, run until it no longer changes what it finds in memory."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

from msgspec import Struct

from bench.clients import Clients, rate
from bench.pool import Pool, hit_ratio
from bench.windows import settled

WINDOW_S = 3.0


class WarmUp(Struct, frozen=True):
    """`settled`: False when the time was up before rate and hit ratio were steady."""

    seconds: float
    settled: bool
    rates: list[float]
    hit_ratios: list[float]


def warm_up(clients: Clients, pool: Callable[[], Pool], most_s: float) -> WarmUp:
    """Ends when the hit ratio, or the rate where that is not told, was about the same in several windows in a row."""
    rates: list[float] = []
    ratios: list[float] = []
    is_settled = False
    began_s = perf_counter()
    before = pool()
    while not is_settled and (left_s := most_s - (perf_counter() - began_s)) > 0.05:
        rates.append(rate(clients.run(min(WINDOW_S, left_s))))
        after = pool()
        ratio = hit_ratio(before, after)
        before = after
        if ratio is not None:
            ratios.append(ratio)
        is_settled = settled(ratios or rates)
    return WarmUp(perf_counter() - began_s, is_settled, rates, ratios)
