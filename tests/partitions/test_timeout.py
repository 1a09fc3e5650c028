"""Procedures that run too long, ended by real signals in this process."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from partitions.timeout import Timeout
from tests.partitions.one_partition import OnePartition
from voltpy.errors import ConstraintViolation, Error, ProcedureError, ProcedureTimeout
from voltpy.heartbeat import BUSY
from voltpy.procedure import procedure
from voltpy.sql.ddl import parse_schema

LIMIT_S = 0.1
SCHEMA = parse_schema("CREATE TABLE t (id INT PRIMARY KEY, n INT NOT NULL); PARTITION TABLE t ON COLUMN id;")

pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timers here")


def loop(tx: Any) -> None:
    while True:
        pass


def nested(tx: Any) -> None:
    def inner() -> None:
        loop(tx)

    for each in [inner for _ in range(2)]:
        each()


def loop_of_reads(tx: Any) -> None:
    while True:
        tx.t.get(1)


def loop_of_misses(tx: Any) -> None:
    key = 10
    while True:
        key += 1
        tx.t.get(key % 50_000)


def loop_of_writes(tx: Any) -> None:
    n = 0
    while True:
        n += 1
        tx.t.upsert(n % 100, n)
        tx.t.delete(n % 100)
        tx.t.upsert(n % 100, n)


def loop_of_wheres(tx: Any) -> None:
    while True:
        tx.t.where(n=5)


def endless_scans(tx: Any) -> Any:
    result = []
    while True:
        result = list(tx.t.scan())
    return result


def endless_ranges(tx: Any) -> None:
    while True:
        list(tx.t.range(0, 3000))


def sleep(tx: Any) -> None:
    time.sleep(60)


def swallow_once(tx: Any) -> str:
    with contextlib.suppress(BaseException):
        loop(tx)
    tx.t.upsert(77, 77)
    return "as if nothing had happened"


def swallow_thrice(tx: Any) -> None:
    for _ in range(3):
        try:
            while True:
                tx.t.upsert(77, 77)
        except BaseException:  # noqa: BLE001 as users do
            continue


def swallow_and_raise(tx: Any) -> None:
    try:
        loop(tx)
    except BaseException:  # noqa: BLE001 as users do
        raise ValueError("mine") from None


class SlowText(Exception):
    def __str__(self) -> str:
        while True:
            pass


def raise_slow_text(tx: Any) -> None:
    raise SlowText


def quick(tx: Any) -> Any:
    return tx.t.upsert(5, 5).n


def just_in_time(tx: Any) -> str:
    end = time.monotonic() + LIMIT_S / 2
    while time.monotonic() < end:
        pass
    return "in time"


BODIES: dict[str, Callable[[Any], Any]] = {
    body.__name__: body
    for body in (
        loop, nested, loop_of_reads, loop_of_misses, loop_of_writes, loop_of_wheres, endless_scans, endless_ranges,
        sleep, swallow_once, swallow_thrice, swallow_and_raise, raise_slow_text, quick, just_in_time,
    )
}  # fmt: skip


@procedure(partition_by="key")
def run(tx: Any, key: int, body: str) -> Any:
    tx.t.upsert(3, 333)
    tx.t.delete(4)
    return BODIES[body](tx)


@procedure(partition_by="key")
def put(tx: Any, key: int, n: int) -> Any:
    return tx.t.upsert(key, n).n


class Timed:
    def __init__(self) -> None:
        self.partition = OnePartition(SCHEMA, [run, put])
        self.partition.run_group("put", [(key, key) for key in range(3000)])
        self.partition.seal()
        self.timeout = Timeout(self.partition.executor, self.partition.running, LIMIT_S)

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
    yield Timed()
    signal.signal(signal.SIGALRM, before)


def test_a_call_in_time_is_left_alone(timed: Timed) -> None:
    assert timed.batch("quick", "just_in_time", "just_in_time", "just_in_time", "quick") == [5, *["in time"] * 3, 5]
    timed.partition.call("put", 3, 3)
    timed.partition.call("put", 4, 4)


ENDLESS = sorted(BODIES.keys() - {"quick", "just_in_time", "raise_slow_text"})


@pytest.mark.parametrize("body", ENDLESS)
def test_a_call_that_runs_too_long_is_ended_without_a_trace(body: str, timed: Timed) -> None:
    before = timed.partition.rows("t")
    began_s = time.monotonic()
    answer, after = timed.batch(body, "quick")
    assert time.monotonic() - began_s < 2
    assert isinstance(answer, ProcedureTimeout)
    assert str(answer) == "run ran past the procedure timeout and was ended"
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


def test_time_starts_afresh_with_each_call(timed: Timed) -> None:
    answers = timed.batch(*["just_in_time"] * 5)
    assert not any(isinstance(answer, Error) for answer in answers)


def test_a_transaction_that_takes_too_much_memory_is_ended_and_undone() -> None:
    partition = OnePartition(SCHEMA, [run])
    timeout = Timeout(partition.executor, partition.running, 60.0, lambda: len(partition.store.undo_log) > 10_000)
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
