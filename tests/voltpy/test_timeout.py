"""Procedures that run too long, ended by real signals in this process."""

from __future__ import annotations

import signal
import sys
import time
from array import array
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.partitions.one_partition import OnePartition
from tests.voltpy import endless_procedures
from tests.voltpy.endless_procedures import BODIES, IN_TIME_S, put, run
from voltpy.errors import ConstraintViolation, Error, ProcedureError, ProcedureTimeout
from voltpy.heartbeat import BUSY, CALL_NUMBER, CLIENT_ID
from voltpy.sql.ddl import parse_schema
from voltpy.timeout import Interruption, Timeout

LIMIT_S = 0.1
LATE_LIMIT_S = 1.2  # more than one call in time takes, with room for a machine that stalls, less than five
SCHEMA = parse_schema("CREATE TABLE t (id INT PRIMARY KEY, n INT NOT NULL); PARTITION TABLE t ON COLUMN id;")

pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timers here")


class Timed:
    def __init__(self, limit_s: float) -> None:
        self.partition = OnePartition(SCHEMA, [run, put])
        self.partition.run_group("put", [(key, key) for key in range(3000)])
        self.partition.seal()
        executor = self.partition.executor
        self.timeout = Timeout(executor.interrupt, executor.may_be_interrupted, self.partition.running, limit_s)

    def batch(self, *bodies: str) -> list[Any]:
        self.timeout.arm()
        assert self.partition.running[BUSY] % 2 == 1
        numbers = [self.partition.run("run", 1, body) for body in bodies]
        self.timeout.disarm()
        assert self.partition.running[BUSY] % 2 == 0
        deadline = time.monotonic() + 5
        while signal.getitimer(signal.ITIMER_REAL) != (0.0, 0.0):  # with nothing to do it stops by itself
            assert time.monotonic() < deadline
        self.partition.seal()
        return [self.partition.answers.pop(number) for number in numbers]


@pytest.fixture(scope="module")
def timed() -> Iterator[Timed]:
    before = signal.getsignal(signal.SIGALRM)
    yield Timed(LIMIT_S)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def timed_late() -> Iterator[Timed]:
    before = signal.getsignal(signal.SIGALRM)
    yield Timed(LATE_LIMIT_S)
    signal.signal(signal.SIGALRM, before)


def test_a_call_in_time_is_left_alone(timed_late: Timed) -> None:
    assert timed_late.batch("quick", "just_in_time", "quick") == [5, "in time", 5]


ENDLESS = sorted(BODIES.keys() - {"quick", "just_in_time", "raise_slow_text"})


@pytest.mark.parametrize("body", ENDLESS)
def test_a_call_that_runs_too_long_is_ended_without_a_trace(body: str, timed: Timed) -> None:
    before = timed.partition.rows("t")
    began_s = time.monotonic()
    answer, after = timed.batch(body, "quick")
    assert time.monotonic() - began_s < 20
    assert isinstance(answer, ProcedureTimeout)
    said, at, where = str(answer).partition(", at ")
    assert said == "run ran longer than 0.1 s (--procedure-timeout) and was ended"
    assert (at, where.split(":")[0]) == (", at ", "endless_procedures.py")
    assert 0 < int(where.split(":")[1]) <= len(Path(endless_procedures.__file__).read_text().splitlines())
    assert after == 5
    timed.partition.call("put", 3, 3)
    timed.partition.call("put", 4, 4)
    timed.partition.store.check()
    assert timed.partition.rows("t") == before
    assert timed.partition.executor.counts["timed_out"] > 0


def test_text_of_an_exception_that_never_ends_is_ended_too(timed: Timed) -> None:
    before = timed.partition.rows("t")
    answer, after = timed.batch("raise_slow_text", "quick")
    assert isinstance(answer, ProcedureError)
    assert "SlowText: (its __str__ raised Interruption)" in str(answer)
    assert after == 5  # the next call is not blamed for it
    timed.partition.call("put", 3, 3)
    timed.partition.call("put", 4, 4)
    assert timed.partition.rows("t") == before


def test_a_process_that_stands_still_before_it_runs_a_call_names_none(timed: Timed) -> None:
    assert timed.batch("quick") == [5]
    words = timed.partition.running
    assert words[CLIENT_ID]  # the last call of the batch, which may be committed by now
    timed.timeout.arm()
    assert (words[CLIENT_ID], words[BUSY] % 2) == (0, 1)
    timed.timeout.disarm()


def test_time_starts_afresh_with_each_call(timed_late: Timed) -> None:
    assert 5 * IN_TIME_S > LATE_LIMIT_S
    assert timed_late.batch(*["just_in_time"] * 5) == ["in time"] * 5


class Ticking:
    """A Timeout whose ticks come by hand, at times of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, limit_s: float, **options: Any) -> None:
        self.now_s = 100.0
        self.running = array("Q", bytes(64))
        self.said: list[Error] = []
        monkeypatch.setattr("voltpy.timeout.time", SimpleNamespace(monotonic=lambda: self.now_s))
        monkeypatch.setattr(
            "voltpy.timeout.signal",
            SimpleNamespace(signal=lambda *_: None, setitimer=lambda *_: None, SIGALRM=0, ITIMER_REAL=0),
        )
        self.timeout = Timeout(self.said.append, lambda code: True, self.running, limit_s, **options)

    def run(self, number: int, time_s: float, tick_s: float = 0.1) -> str:
        """One run of call `number`: what ended it, or nothing."""
        self.timeout.arm()
        self.running[CLIENT_ID], self.running[CALL_NUMBER] = 1, number
        try:
            for _ in range(round(time_s / tick_s)):
                self.now_s += tick_s
                self.timeout._tick(0, sys._getframe())
        except Interruption:
            return str(self.said[-1])
        finally:
            self.timeout.disarm()
        return ""


def test_rule_26_reruns_share_one_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    ticking = Ticking(monkeypatch, 1.0)
    assert [ticking.run(1, 0.3) for _ in range(3)] == [""] * 3
    assert ticking.run(2, 0.9) == ""  # another one's
    assert "ran longer than 1 s" in ticking.run(1, 0.3)
    assert ticking.run(1, 0.9) == ""  # as without stand-ins, after a run on them was ended
    assert [ticking.run(3, 0.1) for _ in range(9)] == [""] * 9  # no tick meets the same run twice
    assert "ran longer than 1 s" in ticking.run(3, 0.1) + ticking.run(3, 0.1)


def test_a_run_that_must_end_early_is_ended_by_the_ticks_that_met_it(monkeypatch: pytest.MonkeyPatch) -> None:
    ticking = Ticking(monkeypatch, 5.0, shorter=lambda: (0.6, "took too long on what is lent"))
    assert ticking.run(1, 0.5) == ""
    assert ticking.run(1, 0.5) == ""
    assert ticking.run(2, 8.0, tick_s=4.0) == ""  # the process was stopped meanwhile
    assert ticking.run(1, 0.9) == "took too long on what is lent"


def test_a_transaction_that_takes_too_much_memory_is_ended_and_undone() -> None:
    partition = OnePartition(SCHEMA, [run])
    executor = partition.executor
    timeout = Timeout(
        executor.interrupt,
        executor.may_be_interrupted,
        partition.running,
        60.0,
        lambda: len(partition.store.undo_log) > 10_000,
    )
    began_s = time.monotonic()
    try:
        timeout.arm()
        number = partition.run("run", 1, "loop_of_writes")
        timeout.disarm()
    finally:
        timeout.end()
    partition.seal()
    assert time.monotonic() - began_s < 30
    answer = partition.answers[number]
    assert isinstance(answer, ConstraintViolation)
    assert "too large for the partition's memory" in str(answer)
    assert partition.rows("t") == {}
