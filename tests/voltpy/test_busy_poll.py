"""Waiting awake: when it looks, when it sleeps, and when it gives way."""

from __future__ import annotations

from voltpy.busy_poll import TAKEN_S, WANTED_WAITS, BusyPoll

LIMIT_S = 0.001
LOOK_S = 1e-6
ANSWER = [(7, 1)]


class Machine:
    """A clock, a core and a poll object: the next answer is there after `answers_after_s`."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.answers_at_s = 0.0
        self.taken_for_s = 0.0  # whenever the core is offered
        self.slept_ms: list[float] = []
        self.looks = self.offers = 0

    def poll(self, timeout_ms: float, /) -> list[tuple[int, int]]:
        self.now_s += LOOK_S
        if timeout_ms == 0:
            self.looks += 1
        else:
            self.slept_ms.append(timeout_ms)
            self.now_s = max(self.now_s, min(self.answers_at_s, self.now_s + timeout_ms / 1000))
        return ANSWER if self.now_s >= self.answers_at_s else []

    def offer_core(self) -> None:
        self.offers += 1
        self.now_s += self.taken_for_s

    def wait(self, busy_poll: BusyPoll, answers_after_s: float, timeout_ms: float = 200.0) -> list[tuple[int, int]]:
        self.answers_at_s = self.now_s + answers_after_s
        self.slept_ms.clear()
        self.looks = self.offers = 0
        return busy_poll.wait(self, timeout_ms)


def busy_poll_on(machine: Machine, limit_s: float = LIMIT_S) -> BusyPoll:
    return BusyPoll(limit_s, clock=lambda: machine.now_s, offer_core=machine.offer_core)


def test_an_answer_within_the_limit_is_awaited_awake() -> None:
    machine = Machine()
    busy_poll = busy_poll_on(machine)
    for _ in range(3):
        assert machine.wait(busy_poll, LIMIT_S / 2) == ANSWER
        assert not machine.slept_ms
        assert machine.looks == machine.offers + 1 > 100


def test_nobody_is_awake_without_a_limit() -> None:
    machine = Machine()
    assert machine.wait(busy_poll_on(machine, 0.0), LIMIT_S / 2) == ANSWER
    assert (machine.slept_ms, machine.looks) == ([200.0], 0)


def test_past_the_limit_it_sleeps_and_the_next_wait_is_asleep_from_its_beginning() -> None:
    machine = Machine()
    busy_poll = busy_poll_on(machine)
    assert machine.wait(busy_poll, 5 * LIMIT_S) == ANSWER
    assert len(machine.slept_ms) == 1
    assert 1 < machine.looks < LIMIT_S / LOOK_S + 2
    assert machine.wait(busy_poll, 5 * LIMIT_S) == ANSWER
    assert (machine.slept_ms, machine.looks) == ([200.0], 0)


def test_after_one_short_sleep_it_is_awake_again() -> None:
    machine = Machine()
    busy_poll = busy_poll_on(machine)
    machine.wait(busy_poll, 5 * LIMIT_S)
    machine.wait(busy_poll, LIMIT_S / 2)
    assert machine.slept_ms
    machine.wait(busy_poll, LIMIT_S / 2)
    assert not machine.slept_ms


def test_it_gives_way_where_others_take_the_core() -> None:
    machine = Machine()
    busy_poll = busy_poll_on(machine)
    machine.taken_for_s = 2 * TAKEN_S
    assert machine.wait(busy_poll, LIMIT_S / 2) == ANSWER
    assert (machine.looks, len(machine.slept_ms)) == (2, 1)
    machine.taken_for_s = 0.0
    for _ in range(WANTED_WAITS):
        assert machine.wait(busy_poll, LIMIT_S / 2) == ANSWER
        assert machine.looks == 0
    assert machine.wait(busy_poll, LIMIT_S / 2) == ANSWER
    assert not machine.slept_ms


def test_an_answer_that_came_while_the_core_was_taken_is_no_reason_to_sleep() -> None:
    machine = Machine()
    busy_poll = busy_poll_on(machine)
    machine.taken_for_s = 2 * TAKEN_S  # by the partition, which answered
    for _ in range(3):
        assert machine.wait(busy_poll, TAKEN_S) == ANSWER
        assert (machine.looks, machine.slept_ms) == (2, [])


def test_it_is_awake_no_longer_than_it_may_wait() -> None:
    machine = Machine()
    began_s = machine.now_s
    assert machine.wait(busy_poll_on(machine), 1.0, timeout_ms=0.25) == []
    assert machine.now_s - began_s < 0.25e-3 + 10 * LOOK_S


def test_what_is_left_of_the_timeout_is_slept() -> None:
    machine = Machine()
    began_s = machine.now_s
    assert machine.wait(busy_poll_on(machine), 1.0, timeout_ms=5.0) == []
    assert machine.looks > 100
    assert 5e-3 <= machine.now_s - began_s < 5e-3 + 10 * LOOK_S
