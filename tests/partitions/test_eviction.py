"""The eviction policies against simple models, hand-computed sequences and what each of them promises."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import OrderedDict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.hit_ratio import belady, replay
from bench.policies import DEFAULT, POLICIES
from partitions.classic_policies import Lru
from partitions.eviction import Policy
from partitions.tiny_lfu import WTinyLfu

ALL = sorted(POLICIES)
RESISTANT = ("w-tinylfu", "arc", "midpoint")

Operation = tuple[str, int]
operations = st.lists(
    st.tuples(st.sampled_from(["use"] * 12 + ["remove", "resize", "pin", "unpin"]), st.integers(0, 40)), max_size=300
)


def hot_and_cold(seed: int, hot: range, length: int) -> list[int]:
    """Half of the requests go to the hot pages, half to pages that are never asked for again."""
    rng = random.Random(seed)
    return [rng.choice(hot) if rng.random() < 0.5 else 1_000_000 * seed + at for at in range(length)]


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=60, deadline=None)
@given(steps=operations, capacity=st.integers(1, 20))
def test_any_operations_keep_the_invariants(name: str, steps: list[Operation], capacity: int) -> None:
    policy = POLICIES[name](capacity)
    resident: set[int] = set()
    pinned: set[int] = set()
    for what, number in steps:
        if what == "use":
            if number in resident:
                policy.touch([number, 10_000])  # the second was evicted long ago
            else:
                policy.admit(number)
                resident.add(number)
        elif what == "remove":
            policy.remove(number)
            resident.discard(number)
            pinned.discard(number)
        elif what == "resize":
            policy.resize(number + 1)
            assert policy.capacity == number + 1
        elif what == "pin" and number in resident:
            pinned.add(number)
        elif what == "unpin":
            pinned.discard(number)
        evicted = policy.evict(pinned)
        policy.check()
        assert len(set(evicted)) == len(evicted)
        assert set(evicted) <= resident - pinned
        resident.difference_update(evicted)
        assert len(policy) == len(resident)
        assert set(policy) == resident
        assert sorted(policy) == sorted(page for page in range(41) if page in policy)
        # Only what is needed leaves, and all that is needed unless it is pinned.
        assert len(resident) <= policy.capacity or resident == pinned
        assert not evicted or len(resident) >= policy.capacity


@settings(max_examples=60, deadline=None)
@given(trace=st.lists(st.integers(0, 12), max_size=200), capacity=st.integers(1, 8))
def test_lru_is_the_model_and_nobody_beats_belady(trace: list[int], capacity: int) -> None:
    model: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for page in trace:
        hits += page in model
        model[page] = None
        model.move_to_end(page)
        if len(model) > capacity:
            model.popitem(last=False)
    assert replay(Lru(capacity), trace) == hits
    assert hits <= belady(trace, capacity) <= optimum(trace, capacity)
    assert all(replay(POLICIES[name](capacity), trace) <= optimum(trace, capacity) for name in ALL)


def optimum(trace: list[int], capacity: int) -> int:
    """Belady's, where the page that has just come may be the one that leaves: not every policy lets each page in."""
    resident: set[int] = set()
    hits = 0
    for at, page in enumerate(trace):
        hits += page in resident
        resident.add(page)
        if len(resident) > capacity:
            rest = trace[at + 1 :]
            resident.remove(max(sorted(resident), key=lambda one: rest.index(one) if one in rest else len(trace)))
    return hits


# Computed by hand.
#   1 2 3 1 4 2 1 with three pages.
#     LRU: 1 hits, 4 evicts 2, 2 evicts 3, 1 hits: 2.
#     Clock: 1 hits and is marked; 4: the hand passes 1, clears it, evicts 2; 2 evicts 3; 1 hits: 2.
#     Midpoint: 1 hits and enters the young part, 4 evicts 2, 2 evicts 3, 1 hits: 2.
#   1 2 1 3 4 5 1 with three pages, a hot page and a small scan.
#     LRU: 1 hits; 4 evicts 2, 5 evicts 1; the last 1 misses: 1.
#     Clock: 1 hits, marked; 4 passes 1, evicts 2; 5 evicts 3 (the ring is 3 1 4); 1 hits: 2.
#     Midpoint: 1 hits, young; 4 evicts 2, 5 evicts 3; 1 hits: 2.
#   1 1 2 3 1 4 5 6 1 with three pages: Clock's mark saves 1 once only.
#     Clock: 1 hits; 1 hits again, marked; 4 passes 1 (ring 2 3 1), evicts 2; 5 evicts 3; 6 evicts 1; 1 misses: 2.
#     LRU: 1 hits twice; 4 evicts 2, 5 evicts 3, 6 evicts 1; 1 misses: 2.
#     Midpoint: 1 hits twice, is young (1 of 3); 4, 5 and 6 evict 2, 3 and 4; 1 hits: 3.
@pytest.mark.parametrize(
    ("name", "trace", "hits"),
    [
        ("lru", [1, 2, 3, 1, 4, 2, 1], 2), ("clock", [1, 2, 3, 1, 4, 2, 1], 2), ("midpoint", [1, 2, 3, 1, 4, 2, 1], 2),
        ("lru", [1, 2, 1, 3, 4, 5, 1], 1), ("clock", [1, 2, 1, 3, 4, 5, 1], 2), ("midpoint", [1, 2, 1, 3, 4, 5, 1], 2),
        ("lru", [1, 1, 2, 3, 1, 4, 5, 6, 1], 2), ("clock", [1, 1, 2, 3, 1, 4, 5, 6, 1], 2),
        ("midpoint", [1, 1, 2, 3, 1, 4, 5, 6, 1], 3),
    ],
)  # fmt: skip
def test_small_sequences_hit_as_computed_by_hand(name: str, trace: list[int], hits: int) -> None:
    assert replay(POLICIES[name](3), trace) == hits


def test_belady_keeps_what_comes_back_first() -> None:
    # 1 2 3: 3 comes last of them, so it never stays: 1 and 2 hit, and 3 hits only where nothing else is coming.
    assert belady([1, 2, 3, 1, 2, 3, 1, 2], 2) == 3
    assert belady([1, 2, 1, 2, 1], 1) == 0


@pytest.mark.parametrize("name", ALL)
def test_pages_that_are_pinned_stay_and_leave_when_they_are_not(name: str) -> None:
    policy = POLICIES[name](4)
    for page in range(8):
        policy.admit(page)
    assert policy.evict(set(range(8))) == []
    policy.check()
    assert sorted(policy.evict({0, 1, 2, 3, 4})) == [5, 6, 7]  # one too many are pinned
    assert len(policy.evict({1, 2, 3})) == 1
    assert {1, 2, 3} <= set(policy)


@pytest.mark.parametrize("name", ALL)
def test_a_smaller_capacity_is_reached_at_once_and_a_larger_one_is_used(name: str) -> None:
    policy = POLICIES[name](100)
    replay(policy, list(range(200)))
    policy.resize(10)
    assert len(policy.evict()) == 90
    policy.resize(50)
    assert replay(policy, [*range(1000, 1040)] * 2) >= 40 - 10
    policy.check()
    with pytest.raises(ValueError, match="at least one page, not 0"):
        policy.resize(0)
    with pytest.raises(ValueError, match="at least one page, not -3"):
        POLICIES[name](-3)


@pytest.mark.parametrize("name", ALL)
def test_batches_of_touches_come_to_the_same_as_single_ones(name: str) -> None:
    def run(batch: int) -> list[int]:
        policy = POLICIES[name](50)
        rng = random.Random(3)
        for page in range(50):
            policy.admit(page)
        touches = [int(rng.paretovariate(1)) % 50 for _ in range(60)]
        for at in range(0, len(touches), batch):
            policy.touch(touches[at : at + batch])
        policy.resize(20)
        return policy.evict()

    # W-TinyLFU looks at the time between batches only: 60 touches are more than one of its epochs.
    assert name == DEFAULT or run(1) == run(60) == run(7)
    assert run(6) == run(6)


@pytest.mark.parametrize("name", ALL)
def test_the_same_calls_evict_the_same_pages_in_every_process(name: str) -> None:
    program = f"""
import random
from bench.policies import POLICIES
rng, policy, gone = random.Random(1), POLICIES[{name!r}](64), []
for _ in range(5000):
    page = int(rng.paretovariate(0.7)) % 1000
    policy.touch([page]) if page in policy else policy.admit(page)
    gone += policy.evict()
print(sum(at * page for at, page in enumerate(gone, 1)))
"""
    printed = {
        subprocess.run(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1


@pytest.mark.parametrize("name", RESISTANT)
def test_a_scan_does_not_displace_the_hot_pages(name: str) -> None:
    policy = POLICIES[name](200)
    hot = list(range(100))
    replay(policy, hot * 20)
    for page in range(10_000, 15_000):
        policy.admit(page)
        policy.evict()
    assert sum(page in policy for page in hot) >= 95


def test_a_loop_larger_than_the_pool_hits_as_much_as_it_can() -> None:
    trace = list(range(300)) * 100
    assert replay(POLICIES["lru"](200), trace) == 0
    assert replay(WTinyLfu(200), trace) > 0.9 * belady(trace, 200)


def test_pages_that_were_popular_once_give_way() -> None:
    policy = WTinyLfu(100)
    replay(policy, hot_and_cold(1, range(80), 20_000))
    replay(policy, hot_and_cold(2, range(500, 580), 20_000))
    assert sum(page in policy for page in range(500, 580)) >= 70
    assert sum(page in policy for page in range(80)) <= 20


@pytest.mark.parametrize("name", ALL)
def test_a_page_admitted_twice_is_touched(name: str) -> None:
    policy = POLICIES[name](4)
    for page in (1, 2, 3, 1):
        policy.admit(page)
    assert len(policy) == 3
    policy.check()


@pytest.mark.parametrize("name", ALL)
def test_what_is_not_resident_is_bounded(name: str) -> None:
    policy = POLICIES[name](64)
    replay(policy, [(page * page) % 5003 for page in range(30_000)])
    policy.check()  # ghosts and sketch have their bounds there
    assert len(policy) == 64


def test_the_policies_are_what_the_pool_asks_for() -> None:
    policies: list[Policy] = [policy(10) for policy in POLICIES.values()]
    assert len(policies) == 5
    assert DEFAULT in POLICIES
