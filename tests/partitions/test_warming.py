"""Warming: who has the turn, at which rate, how much at a time, and when it ends."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partitions.warming import BURST_S, LOOKED_AT, QUEUED, Listed, Progress, Warming, pages_per_second
from voltpy.warm_schedule import WARM_SOURCES, Source


class Pool:
    """What has been read is resident. Time goes on by a burst's worth a call."""

    def __init__(self, warming: Warming) -> None:
        self.warming = warming
        self.resident: set[int] = set()
        self.now_s = 100.0

    def step(self, room: int = 1000, *, full: bool = False, wait_s: float = BURST_S) -> list[int]:
        self.now_s += wait_s
        pages = self.warming.next_pages(self.now_s, room, self.resident.__contains__, full=full)
        self.warming.check()
        assert len(pages) == len(set(pages)) <= max(room, 0)
        assert self.resident.isdisjoint(pages)
        self.resident.update(pages)
        return pages

    def of(self, source: Source) -> Progress:
        return self.warming.progress(self.now_s)[WARM_SOURCES.index(source)]


def test_nothing_to_do_is_nothing_to_read() -> None:
    pool = Pool(Warming(4096))
    assert pool.step() == []
    assert pool.warming.due_s(pool.now_s) is None
    assert pool.warming.progress(0.0) == [Progress(source, 0, 0, 0.0, "idle") for source in WARM_SOURCES]


def test_lists_are_read_one_after_another_in_their_order() -> None:
    pool = Pool(Warming(pages_per_s=8))  # two a call
    pool.warming.begin("schedule", [30, 31])
    pool.warming.begin("keys", [20, 10, 21])
    pool.warming.begin("heat", array("Q", [12, 10, 11]))
    assert [each.state for each in pool.warming.progress(pool.now_s)] == ["running", "waiting", "waiting", "idle"]
    read = [pool.step() for _ in range(8)]
    assert read == [[12], [10, 11], [20], [21], [30], [31], [], []]
    assert [each[:3] for each in pool.warming.progress(pool.now_s)] == [
        ("heat", 3, 3), ("keys", 3, 3), ("schedule", 2, 2), ("prefetch", 0, 0)
    ]  # fmt: skip
    assert [each.state for each in pool.warming.progress(pool.now_s)] == ["done", "done", "done", "idle"]
    assert pool.warming.due_s(pool.now_s) is None


def test_the_order_of_a_list_is_kept_and_what_is_there_is_passed_over() -> None:
    pool = Pool(Warming(4096))
    pool.resident = {2, 4}
    pool.warming.begin("heat", [5, 4, 3, 5, 2, 1])
    assert pool.step(wait_s=0) == [5]  # a bucket begins with one page
    assert pool.step() == [3, 1]
    assert pool.of("heat")[:3] == ("heat", 6, 6)


def test_no_more_than_there_is_room_for() -> None:
    pool = Pool(Warming(pages_per_s=1e6))
    pool.warming.begin("heat", range(100))
    pool.step(room=0)
    assert pool.of("heat") == ("heat", 0, 100, 0.0, "running")
    assert pool.step(room=7) == list(range(7))
    assert pool.step(room=0) == []
    assert pool.step(room=-3) == []
    assert pool.step(room=93) == list(range(7, 100))


@pytest.mark.parametrize("per_s", [0.5, 3.0, 100.0, 4096.0])
@pytest.mark.parametrize("every_s", [0.001, 0.1, BURST_S])
def test_the_rate_is_kept(per_s: float, every_s: float) -> None:
    pool = Pool(Warming(pages_per_s=per_s))
    pool.warming.begin("heat", range(10**6))
    calls = round(20 / every_s)
    read = sum(len(pool.step(10**6, wait_s=every_s)) for _ in range(calls))
    elapsed_s = (calls - 1) * every_s
    assert per_s * elapsed_s - 1 <= read <= 1 + per_s * elapsed_s + 1e-6
    assert pool.of("heat").pages_per_s == pytest.approx(read / elapsed_s)


def test_what_was_slept_through_is_not_made_up_for() -> None:
    pool = Pool(Warming(pages_per_s=100))
    pool.warming.begin("heat", range(1000))
    assert len(pool.step()) == 1
    assert len(pool.step(wait_s=3600.0)) == 26
    assert len(pool.step(wait_s=0.0)) == 0
    assert len(pool.step(wait_s=-5.0)) == 0  # no clock goes back; nothing would break
    assert len(pool.step(wait_s=5.105)) == 10


def test_it_says_when_there_will_be_something() -> None:
    pool = Pool(Warming(pages_per_s=10))
    pool.warming.begin("heat", range(3))
    assert pool.warming.due_s(pool.now_s) == 0.0
    assert pool.step(wait_s=0.0) == [0]
    assert pool.warming.due_s(pool.now_s) == pytest.approx(0.1)
    assert pool.step(wait_s=0.05) == []
    assert pool.warming.due_s(pool.now_s) == pytest.approx(0.05)
    assert pool.step(wait_s=0.051) == [1]
    pool.warming.offer([7])
    assert pool.warming.due_s(pool.now_s) == 0.0


def test_a_schedule_has_its_own_rate() -> None:
    assert pages_per_second(50 << 20) == 6400.0
    pool = Pool(Warming(pages_per_s=8))
    pool.warming.begin("schedule", range(1000), pages_per_second(800 * 8192))
    assert [len(pool.step()) for _ in range(3)] == [1, 200, 200]
    pool.warming.begin("schedule", range(1000, 2000))
    assert [len(pool.step()) for _ in range(3)] == [1, 2, 2]


def test_a_list_that_is_nearly_all_there_is_looked_through_in_slices() -> None:
    pool = Pool(Warming(4096))
    pool.resident = set(range(3 * LOOKED_AT))
    pool.warming.begin("heat", range(3 * LOOKED_AT + 1))
    assert [pool.step() for _ in range(4)] == [[], [], [], [3 * LOOKED_AT]]


# ---------------------------------------------------------------------------------------------------------- a full pool


def test_heat_and_keys_end_when_the_pool_is_full_and_a_schedule_goes_on() -> None:
    pool = Pool(Warming(pages_per_s=8))
    for number, source in enumerate(("heat", "keys", "schedule")):
        pool.warming.begin(source, range(10 * number, 10 * number + 4))  # type: ignore[arg-type]
    pool.step()
    assert pool.step(room=2, full=False) == [1, 2]
    assert pool.step(room=0, full=False) == []  # reads are under way: that is not full
    assert pool.step(room=0, full=True) == []
    assert [each[1:3] for each in pool.warming.progress(pool.now_s)] == [(3, 4), (0, 4), (0, 4), (0, 0)]
    assert [each.state for each in pool.warming.progress(pool.now_s)] == ["full", "full", "running", "idle"]
    assert pool.of("heat").pages_per_s == pytest.approx(3 / 0.75)
    assert [pool.step(room=1, full=True) for _ in range(4)] == [[20], [21], [22], [23]]
    pool.warming.begin("heat", [3])
    assert pool.step() == [3]


# ------------------------------------------------------------------------------------------------------------- prefetch


def test_prefetch_is_served_beside_the_list_that_has_the_turn() -> None:
    pool = Pool(Warming(pages_per_s=8))
    pool.warming.begin("heat", range(10))
    assert pool.warming.offer([100, 0, 101, 100]) == []
    assert pool.step() == [0, 100]
    assert pool.step() == [1, 2, 101]
    assert pool.step(room=2) == [3, 4]
    assert pool.of("prefetch")[:3] == ("prefetch", 2, 4)


def test_old_prefetches_give_way_and_the_caller_hears_of_them() -> None:
    pool = Pool(Warming(pages_per_s=1e6))
    assert pool.warming.offer(range(QUEUED)) == []
    assert pool.warming.offer([1000, 1001]) == [0, 1]
    pool.step(room=1)
    pool.step(room=1)
    assert pool.resident == {2, 3}
    assert pool.warming.switch("prefetch", False) == [*range(4, QUEUED), 1000, 1001]
    assert pool.warming.offer([5]) == [5]
    assert pool.step() == []
    assert pool.of("prefetch").state == "off"
    assert pool.warming.switch("prefetch", True) == []
    assert pool.warming.offer([5]) == []
    assert pool.step() == [5]


@pytest.mark.parametrize("off", ["heat", "keys", "schedule"])
def test_a_list_that_is_switched_off_keeps_its_place(off: Listed) -> None:
    pool = Pool(Warming(pages_per_s=1e6))
    lists: dict[Listed, Sequence[int]] = {"heat": [1, 2], "keys": [3, 4], "schedule": [5, 6]}
    for source, pages in lists.items():
        pool.warming.begin(source, pages)
    pool.warming.switch(off, False)
    assert pool.of(off).state == "off"
    for _ in range(20):
        pool.step(room=1)
    assert pool.resident == {1, 2, 3, 4, 5, 6} - set(lists[off])
    assert pool.warming.due_s(pool.now_s) is None
    pool.warming.switch(off, True)
    pool.step()
    pool.step()
    assert pool.resident == {1, 2, 3, 4, 5, 6}


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan")])
def test_a_rate_of_nothing_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="more than 0 pages"):
        Warming(rate)


@settings(max_examples=80, deadline=None)
@given(
    lists=st.fixed_dictionaries({name: st.lists(st.integers(0, 60)) for name in ("heat", "keys", "schedule")}),
    calls=st.lists(
        st.tuples(st.integers(0, 9), st.floats(0, 1), st.lists(st.integers(0, 60), max_size=4)), max_size=40
    ),
    resident=st.sets(st.integers(0, 60)),
)
def test_everything_is_read_once_and_nothing_that_nobody_named(
    lists: dict[Listed, list[int]], calls: list[tuple[int, float, list[int]]], resident: set[int]
) -> None:
    pool = Pool(Warming(pages_per_s=20))
    pool.resident = set(resident)
    named = set(resident)
    for source, pages in lists.items():
        pool.warming.begin(source, pages)
        named.update(pages)
    for room, wait_s, offered in calls:
        pool.warming.offer(offered)
        named.update(offered)
        pool.step(room, wait_s=wait_s)  # it checks the bounds
    while pool.warming.due_s(pool.now_s) is not None:
        pool.step()
    assert pool.resident == named
    assert [each.done for each in pool.warming.progress(pool.now_s)[:3]] == [
        len(lists[source]) for source in ("heat", "keys", "schedule")
    ]
