"""Procedures that never end, each in its own way, and some that do, for test_timeout.

They have a file of their own since every frame of a procedure's file counts as the user's code: a tick that is late
may raise in whatever of that file is running, the tests' own loops included.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

from voltpy.procedure import procedure

IN_TIME_S = 0.3


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
    end = time.monotonic() + IN_TIME_S
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
