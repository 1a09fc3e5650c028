"""A miniature of an LRU pool: that it hits as often as LRU would, and knows when that is more often."""

from __future__ import annotations

import random

import pytest

from partitions.classic_policies import Lru
from partitions.lru_shadow import LruShadow


@pytest.mark.parametrize("pages", [10, 511, 512, 5000, 100_000])
def test_a_shadow_of_lru_hits_like_lru(pages: int) -> None:
    rng = random.Random(7)
    trace = [int(rng.paretovariate(0.6)) % (pages * 5) for _ in range(min(pages * 20, 100_000))]
    shadow, model = LruShadow(pages), Lru(pages)
    sampled = leads = hits = 0
    for page in trace:
        if shadow.samples(page):
            sampled += 1
            hits += page in model
        shadow.lead = 0
        shadow.missed(page)
        leads += shadow.lead
        model.touch([page]) if page in model else model.admit(page)
        model.evict()
    shadow.check()
    assert leads == pytest.approx(hits, abs=0.03 * sampled)
    assert len(shadow) <= max(511, pages // 16)


def test_a_shadow_is_ahead_only_while_lru_does_better() -> None:
    shadow = LruShadow(100)
    for page in range(9):
        shadow.missed(page)
    assert not shadow.is_ahead
    for page in range(9):
        shadow.missed(page)
    assert shadow.is_ahead
    shadow.hit(range(50, 59))  # LRU has not seen them: it would have missed
    assert shadow.lead == 0
    shadow.hit(range(50, 59))
    shadow.resize(5)
    shadow.check()
    assert (len(shadow), shadow.lead) == (5, 0)
    shadow.resize(10_000)  # another sample: nothing is known about it
    assert len(shadow) == 0
    shadow.check()
