"""W-TinyLFU: how its window follows what is asked for, and what it remembers of pages that have left."""

from __future__ import annotations

import random

from bench.hit_ratio import replay
from partitions.classic_policies import Lru
from partitions.tiny_lfu import Ghosts, WTinyLfu


def test_a_first_window_without_hits_is_cut_when_the_pool_is_full() -> None:
    first = 6400 * WTinyLfu.FIRST_WINDOW
    for hits, left in ((first - 1, first * WTinyLfu.UNUSED), (first, first)):
        policy = WTinyLfu(6400)
        for page in range(6400):
            policy.admit(page)
            if page < hits:
                policy.touch([page])
        assert policy.evict() == []
        assert policy.window_target == first
        policy.admit(6400)
        assert policy.evict()
        assert policy.window_target == left
        policy.check()


def test_the_window_grows_for_recency_and_shrinks_for_frequency() -> None:
    policy = WTinyLfu(200)
    # A working set that drifts: each page is used a few times within a while, and never again.
    rng = random.Random(5)
    drifting = [at // 8 + rng.randrange(150) for at in range(40_000)]
    recency = replay(policy, drifting)
    assert recency > 0.97 * replay(Lru(200), drifting)
    wide = policy.window_target
    assert wide > 20
    for page in list(policy):
        policy.remove(page)
    zipf = [1_000_000 + int(rng.paretovariate(0.8)) for _ in range(60_000)]
    replay(policy, zipf)
    policy.check()
    assert policy.window_target < wide


def test_a_working_set_that_moves_on_is_followed_from_the_start() -> None:
    rng = random.Random(9)
    moving = [at // 4 + rng.randrange(300) for at in range(8000)]
    assert replay(WTinyLfu(400), moving) > 0.97 * replay(Lru(400), moving)


def test_ghosts_remember_the_last_half_at_least() -> None:
    ghosts = Ghosts(10)
    for page in range(100):
        ghosts.add(page)
        ghosts.check()
        assert all(recent in ghosts for recent in range(max(0, page - 4), page + 1))
    ghosts.resize(4)
    assert len(ghosts) == 0
