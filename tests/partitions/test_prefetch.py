"""Prefetch: what it suggests after which faults, and that it stops and starts again as that pays."""

from __future__ import annotations

import random
from collections import OrderedDict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partitions.page import page_id
from partitions.prefetch import GAP, IN_A_ROW, MOST_AHEAD, STREAMS, TRIAL, WINDOW, Prefetch, Source


def learned_only(pages: int = 1024, room: int = 64) -> Prefetch:
    prefetch = Prefetch(pages, room)
    prefetch.switch("sequential", False)
    return prefetch


class Pool:
    """An LRU pool with a prefetch in front: who asks for a page, gets it."""

    def __init__(self, capacity: int, pages: int = 1024, room: int = 64) -> None:
        self.resident: OrderedDict[int, None] = OrderedDict()
        self.capacity = capacity
        self.waits = 0
        self.prefetch = Prefetch(pages, room, lambda page: page not in self.resident)

    def ask(self, page: int) -> list[int]:
        ahead: list[int] = []
        if page in self.resident:
            self.resident.move_to_end(page)
            return ahead
        if page in self.prefetch:
            ahead = self.prefetch.used(page)
        else:
            self.waits += 1
            ahead = self.prefetch.after(page)
        assert page not in ahead
        assert not self.resident.keys() & set(ahead)
        self.resident[page] = None
        if len(self.resident) > self.capacity:
            self.resident.popitem(last=False)
        dropped = self.prefetch.excess()
        assert all(gone not in self.prefetch for gone in dropped)
        return ahead


# ---------------------------------------------------------------------------------------------------------- sequential


def test_the_third_page_in_a_row_reads_ahead_in_a_growing_window() -> None:
    prefetch = Prefetch(64, 64)
    assert prefetch.after(10) == []
    assert prefetch.after(11) == []
    assert prefetch.after(12) == [13, 14, 15, 16]
    assert prefetch.used(13) == []  # three pages are still ahead
    assert prefetch.used(14) == list(range(17, 23))  # half are used up: 8 from here on
    assert [prefetch.used(page) for page in (15, 16, 17)] == [[], [], []]
    assert prefetch.used(18) == list(range(23, 35))  # 16 from here on
    assert prefetch.usefulness("sequential")[:2] == (6, 0)
    prefetch.check()


def test_a_long_row_waits_three_times_only() -> None:
    pool = Pool(capacity=100)
    longest = 0
    for page in range(2000):
        longest = max(longest, len(pool.ask(page)))
        assert page >= IN_A_ROW - 1 or not len(pool.prefetch)
    assert pool.waits == IN_A_ROW
    assert longest <= MOST_AHEAD
    assert pool.prefetch.usefulness("sequential") == (2000 - IN_A_ROW, 0, True)


def test_rows_of_several_tables_do_not_disturb_each_other() -> None:
    pool = Pool(capacity=1000, room=10_000)
    for number in range(100):
        for table in range(STREAMS):
            pool.ask(page_id(table, number))
    assert pool.waits == STREAMS * IN_A_ROW


def test_a_row_ends_with_its_table() -> None:
    prefetch = Prefetch(64, 64)
    last = page_id(1, 0) - 1
    assert [prefetch.after(page) for page in (last - 3, last - 2, last - 1)] == [[], [], [last]]
    assert prefetch.used(last) == []


def test_pages_that_are_in_memory_are_not_read_and_do_not_end_the_row() -> None:
    here = {13, 15}
    prefetch = Prefetch(64, 64, lambda page: page not in here)
    for page in (10, 11):
        prefetch.after(page)
    assert prefetch.after(12) == [14, 16]
    assert prefetch.used(14) == [17, 18, 19, 20, 21, 22]  # 13 was in memory, and so nobody heard of it
    other = Prefetch(64, 64)
    for page in (10, 11):
        other.after(page)
    assert other.after(12 + GAP) == list(range(13 + GAP, 17 + GAP))
    for page in (110, 111):
        other.after(page)
    assert other.after(113 + GAP) == []


def test_of_sequential_reading_only_the_beginning_is_learned() -> None:
    pool = Pool(capacity=4)
    for _ in range(3):
        for page in range(100):
            pool.ask(page)
    assert pool.prefetch.usefulness("learned").used == 1
    assert pool.waits == 3 * IN_A_ROW - 1


# ------------------------------------------------------------------------------------------------------------ learned


def test_what_came_twice_is_suggested() -> None:
    prefetch = learned_only()
    pages = [50, 7, 90, 33, 1000]
    for _ in range(2):
        assert [prefetch.after(page) for page in pages] == [[]] * 5
        for break_up in (2000, 2002, 2004):
            prefetch.after(break_up)
    # The next three of the same row, the nearest first; 1000 was followed by 2000, 2002 and 2004, as often.
    assert prefetch.after(50) == [7, 90, 33]
    assert prefetch.used(7) == [1000]  # 90 and 33 are under way
    assert prefetch.used(90) == [2000]
    prefetch.check()


@pytest.mark.parametrize(("times_of_four", "suggested"), [(3, True), (1, False)])
def test_what_comes_mostly_is_suggested_and_what_comes_sometimes_is_not(times_of_four: int, suggested: bool) -> None:
    prefetch = learned_only()
    for visit in range(12):
        prefetch.after(7)
        prefetch.after(8 if visit % 4 < times_of_four else 100 + visit)
        for far in (1000, 2000, 3000, 4000):
            prefetch.after(far)
        prefetch.forget(list(prefetch._waiting))
    assert (8 in prefetch.after(7)) is suggested
    prefetch.check()


def test_a_loop_that_does_not_fit_waits_in_the_first_rounds_only() -> None:
    rng = random.Random(5)
    pages = rng.sample(range(100_000), 300)
    pool = Pool(capacity=100, room=8)
    for _ in range(3):
        for page in pages:
            pool.ask(page)
    before = pool.waits
    for _ in range(10):
        for page in pages:
            pool.ask(page)
    assert before <= 2 * len(pages) + 10
    assert pool.waits - before == 0
    assert pool.prefetch.usefulness("learned").on
    pool.prefetch.check()


def test_old_pages_are_forgotten_for_new_ones_but_not_the_ones_that_come_back() -> None:
    prefetch = learned_only(pages=64)
    again = [5, 60, 17, 42]
    for number in range(200):
        for page in again:
            prefetch.forget(prefetch.after(page))
        for other in range(4):
            prefetch.forget(prefetch.after(1_000_000 + 977 * (4 * number + other)))
    assert prefetch.after(5) == [60, 17, 42]
    prefetch.check()
    assert prefetch.after(1_000_000) == []


# -------------------------------------------------------------------------------------------------------- does it pay


def teach(prefetch: Prefetch, pairs: int) -> list[int]:
    """Pages each of which was followed by the next number, three times; none of them is in a row with another."""
    firsts = [1000 + 10 * pair for pair in range(pairs)]
    for _ in range(3):
        for first in firsts:
            prefetch.forget(prefetch.after(first))
            prefetch.forget(prefetch.after(first + 1))
            for gap in range(3):
                prefetch.forget(prefetch.after(10**6 + 10 * first + 3 * gap))
    return firsts


def test_it_stops_when_less_than_half_is_used_and_tries_again_later() -> None:
    prefetch = learned_only(pages=1 << 14, room=1)
    firsts = teach(prefetch, 400)
    assert prefetch.usefulness("learned") == (0, 0, True)
    given = 0
    for first in firsts[:100]:
        ahead = prefetch.after(first)
        given += bool(ahead)
        for page in ahead:
            prefetch.wasted(page)
        if not prefetch.usefulness("learned").on:
            break
    assert prefetch.usefulness("learned") == (0, WINDOW, False)
    assert given == WINDOW
    # Off: one suggestion in TRIAL. All of these are used, so after a window it is on.
    tried = []
    for round_ in range(100):
        for at, first in enumerate(firsts[100:]):
            ahead = prefetch.after(first)
            if ahead:
                tried.append(300 * round_ + at)
                for page in ahead:
                    prefetch.used(page)
            if prefetch.usefulness("learned").on:
                break
        if prefetch.usefulness("learned").on:
            break
    assert prefetch.usefulness("learned") == (WINDOW, WINDOW, True)
    assert len(tried) == WINDOW
    assert tried[-1] >= (WINDOW - 1) * (TRIAL // 2)


def test_exactly_half_pays() -> None:
    for wasted, on in ((WINDOW // 2, True), (WINDOW // 2 + 1, False)):
        prefetch = Prefetch(64, 2 * WINDOW)
        outcomes = [False] * wasted + [True] * (WINDOW - wasted)
        page = 0
        for useful in outcomes:
            prefetch._waiting[page] = "sequential"
            if useful:
                prefetch.used(page)
            else:
                prefetch.wasted(page)
            page += 1000
        assert prefetch.usefulness("sequential") == (WINDOW - wasted, wasted, on)
        assert prefetch.usefulness("learned").on


def test_what_waits_too_long_is_dropped_oldest_first() -> None:
    prefetch = Prefetch(64, room=4)
    for page in (10, 11, 12):
        prefetch.after(page)
    assert prefetch.excess() == []
    for page in (110, 111, 112):
        prefetch.after(page)
    prefetch.used(13)
    assert prefetch.excess() == [14, 15, 16]
    assert [page in prefetch for page in (13, 16, 113, 116)] == [False, False, True, True]
    assert prefetch.usefulness("sequential")[:2] == (1, 3)
    prefetch.forget([113, 114])
    assert len(prefetch) == 2
    prefetch.wasted(114)  # nobody waits for it
    assert prefetch.usefulness("sequential")[:2] == (1, 3)
    prefetch.check()


def test_a_page_that_is_asked_for_before_it_was_read_proves_nothing() -> None:
    prefetch = Prefetch(64, 64)
    for page in (10, 11, 12):
        prefetch.after(page)
    assert 13 in prefetch
    prefetch.after(13)
    assert 13 not in prefetch
    assert prefetch.usefulness("sequential") == (0, 0, True)


@pytest.mark.parametrize("source", ["sequential", "learned"])
def test_a_source_that_is_switched_off_says_nothing(source: Source) -> None:
    prefetch = Prefetch(1024, 64)
    prefetch.switch(source, False)
    for _ in range(5):
        for page in [*range(10), 50, 40, 60, 30]:
            prefetch.used(page)
        for page in list(prefetch._waiting):
            assert prefetch._waiting[page] != source
            prefetch.used(page)
    assert prefetch.usefulness(source)[:2] == (0, 0)
    other: Source = "learned" if source == "sequential" else "sequential"
    assert prefetch.usefulness(other).used > 0


@pytest.mark.parametrize("seed", range(3))
def test_random_faults_are_left_alone(seed: int) -> None:
    print("seed", seed)
    rng = random.Random(seed)
    pool = Pool(capacity=500, pages=4096, room=8)
    for _ in range(20_000):
        pool.ask(rng.randrange(5000))
    pool.prefetch.check()
    used, wasted, _ = pool.prefetch.usefulness("learned")
    assert used + wasted < 500
    used, wasted, _ = pool.prefetch.usefulness("sequential")
    assert used + wasted < 500


@settings(max_examples=60, deadline=None)
@given(
    asked=st.lists(st.one_of(st.integers(0, 30), st.integers(100, 140)), max_size=300),
    capacity=st.integers(1, 20),
    room=st.integers(1, 8),
    pages=st.integers(0, 40),
)
def test_any_sequence_keeps_the_invariants(asked: list[int], capacity: int, room: int, pages: int) -> None:
    one, two = Pool(capacity, pages, room), Pool(capacity, pages, room)
    for page in asked:
        assert one.ask(page) == two.ask(page)  # nothing is left to chance
        one.prefetch.check()
    for source in ("sequential", "learned"):
        assert one.prefetch.usefulness(source) == two.prefetch.usefulness(source)


def test_room_for_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one page"):
        Prefetch(64, 0)
