"""Waiting awake: when it looks, when it sleeps, and when it gives way."""

from __future__ import annotations

import pytest

from voltpy.busy_poll import LATE_WAITS, MOST_TAKEN_WAITS, TAKEN_S, TAKEN_WAITS, BusyPoll

LIMIT_S = 0.005
LOOK_S = 10e-6
WAKE_S = 60e-6
ANSWER = [(7, 1)]
SOON_S, LATE_S = 0.95 * LIMIT_S, 2 * LIMIT_S


class Machine:
    """A clock, a core and a poll object. To be woken takes WAKE_S; others have the core `taken_for_s` when offered."""

    def __init__(self, limit_s: float = LIMIT_S) -> None:
        self.now_s = 100.0
        self.taken_for_s = 0.0
        self.answers_at_s = 0.0
        self.sleeps = self.looks = self.offers = 0
        self.busy_poll = BusyPoll(limit_s, clock=lambda: self.now_s, offer_core=self.offer_core)

    def poll(self, timeout_ms: float, /) -> list[tuple[int, int]]:
        self.now_s += LOOK_S
        if timeout_ms == 0:
            self.looks += 1
        else:
            self.sleeps += 1
            if self.now_s < self.answers_at_s:
                self.now_s = min(self.answers_at_s, self.now_s + timeout_ms / 1000) + WAKE_S
        return ANSWER if self.now_s >= self.answers_at_s else []

    def offer_core(self) -> None:
        self.offers += 1
        self.now_s += self.taken_for_s

    def wait(self, answers_after_s: float, timeout_ms: float = 200.0) -> list[tuple[int, int]]:
        self.answers_at_s = self.now_s + answers_after_s
        self.sleeps = self.looks = self.offers = 0
        return self.busy_poll.wait(self, timeout_ms)

    def asleep(self, count: int, answers_after_s: float = SOON_S) -> int:
        """In how many of so many waits it slept from the beginning."""
        asleep = 0
        for _ in range(count):
            assert self.wait(answers_after_s) == ANSWER
            asleep += not self.looks
        return asleep


def test_an_answer_within_the_limit_is_awaited_awake() -> None:
    machine = Machine()
    for _ in range(3):
        assert machine.wait(SOON_S) == ANSWER
        assert machine.sleeps == 0
        assert machine.looks == machine.offers + 1 > 100


def test_nobody_is_awake_without_a_limit() -> None:
    machine = Machine(0.0)
    assert machine.wait(SOON_S) == ANSWER
    assert (machine.sleeps, machine.looks) == (1, 0)


def test_past_the_limit_it_sleeps_and_tries_more_and_more_seldom() -> None:
    machine = Machine()
    assert machine.wait(LATE_S) == ANSWER
    assert machine.sleeps == 1
    assert 100 < machine.looks < LIMIT_S / LOOK_S + 2
    for asleep in (1, 2, 4, 8, 16, 32, 64, 64):
        assert machine.asleep(asleep, LATE_S) == asleep
        machine.wait(LATE_S)
        assert machine.looks > 100


def test_it_is_awake_again_once_answers_come_in_time() -> None:
    machine = Machine()
    machine.asleep(1000, LATE_S)
    assert machine.asleep(LATE_WAITS + 100) <= LATE_WAITS
    assert machine.asleep(100) == 0
    machine.wait(LATE_S)
    assert machine.asleep(100) == 1


def test_it_gives_way_for_longer_and_longer_where_others_take_the_core() -> None:
    machine = Machine()
    machine.taken_for_s = 2 * TAKEN_S
    waits = TAKEN_WAITS
    while waits < MOST_TAKEN_WAITS:
        assert machine.wait(SOON_S) == ANSWER
        assert (machine.looks, machine.sleeps) == (2, 1)
        assert machine.asleep(waits) == waits
        waits *= 2
    for _ in range(2):
        machine.wait(SOON_S)
        assert machine.asleep(MOST_TAKEN_WAITS) == MOST_TAKEN_WAITS


@pytest.mark.parametrize("well", [TAKEN_WAITS, 2 * TAKEN_WAITS])
def test_others_are_forgotten_once_as_many_waits_have_ended_well(well: int) -> None:
    machine = Machine()
    machine.taken_for_s = 2 * TAKEN_S
    machine.wait(SOON_S)
    machine.taken_for_s = 0.0
    assert machine.asleep(TAKEN_WAITS + well) == TAKEN_WAITS
    machine.taken_for_s = 2 * TAKEN_S
    machine.wait(SOON_S)
    machine.taken_for_s = 0.0
    assert machine.asleep(1000) == (2 * TAKEN_WAITS if well == TAKEN_WAITS else TAKEN_WAITS)


def test_an_answer_that_is_there_when_others_are_done_is_no_sign_that_nobody_wants_the_core() -> None:
    machine = Machine()
    machine.taken_for_s = 2 * TAKEN_S
    assert machine.wait(TAKEN_S) == ANSWER
    assert (machine.looks, machine.sleeps) == (2, 0)
    machine.taken_for_s = 0.0
    assert machine.asleep(1000) == TAKEN_WAITS


def test_who_works_for_the_call_may_have_the_core() -> None:
    machine = Machine()
    machine.taken_for_s = TAKEN_S / 2
    assert machine.asleep(100, TAKEN_S) == 0


def test_a_slow_first_look_is_no_sign_of_others() -> None:
    machine = Machine()
    machine.answers_at_s = machine.now_s + SOON_S
    slow = machine.poll

    def poll_after_a_pause(timeout_ms: float, /) -> list[tuple[int, int]]:
        if not machine.looks:
            machine.now_s += 2 * TAKEN_S
        return slow(timeout_ms)

    machine.poll = poll_after_a_pause  # type: ignore[method-assign]  # of this one only
    assert machine.wait(SOON_S) == ANSWER
    assert machine.sleeps == 0


def test_it_waits_as_long_as_it_may_and_no_longer() -> None:
    for timeout_ms in (2.5, 5.0, 25.0):
        machine = Machine()
        began_s = machine.now_s
        assert machine.wait(1.0, timeout_ms) == []
        assert machine.looks > 100
        assert timeout_ms / 1000 <= machine.now_s - began_s < timeout_ms / 1000 + WAKE_S + 10 * LOOK_S
