"""Client processes: each makes its operations, drives a server with them for some time, and says how many it managed.

Operations are made before the clock starts, as many as the last run managed and a third more; only beyond those does
making them cost time that is measured. A client lives through several runs: what it made of its popular keys stays.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import count
from multiprocessing import get_context
from typing import Any, NamedTuple, Protocol, Self

from msgspec import Struct

from bench.workloads.ycsb import CALLS_A_CHUNK, Chunk, Operations, Rows, Update

FIRST_GUESS_A_SECOND = 20_000
MOST_PREPARED = 4000  # chunks: some hundred megabytes
UPDATES_KEPT = 500


class Tally(Struct):
    """What one client did in one run. `updated`: some of its last updates; `sent_at_s`, `latencies_us` where taken."""

    operations: int
    elapsed_s: float
    updated: list[Update]
    sent_at_s: list[float] = []
    latencies_us: list[float] = []

    @property
    def rate(self) -> float:
        return self.operations / self.elapsed_s


class Driver(Protocol):
    """A client's connection to a server. Raises BenchError for an answer that is wrong."""

    def run(self, chunks: Iterator[Chunk], seconds: float) -> Tally: ...
    def close(self) -> None: ...


class Way(NamedTuple):
    """One manner of driving a server that is measured."""

    name: str
    processes: int
    open_driver: Callable[[], Driver]


class _Client:
    def __init__(self, open_driver: Callable[[], Driver], rows: Rows, update_percent: float, seed: int) -> None:
        self._operations = Operations(rows, seed, update_percent)
        self._driver = open_driver()
        self._rate = float(FIRST_GUESS_A_SECOND)

    def run(self, seconds: float) -> Tally:
        prepared = min(int(self._rate * 4 / 3 * seconds / CALLS_A_CHUNK) + 1, MOST_PREPARED)
        chunks = self._operations.chunks(prepared)
        # Hundreds of thousands of tuples that wait for their turn, and answers that pile up: a collection in the middle
        # would walk over all of them, and what it takes would be told as the server's.
        gc.collect()
        gc.disable()
        tally = self._driver.run(chunks, seconds)
        gc.enable()
        self._rate = tally.rate
        return tally


_seeds = count(1)
_client: _Client | None = None  # of this process, once it is a client


def _begin(*arguments: Any) -> None:
    global _client
    _client = _Client(*arguments)


def _ready() -> bool:
    return _client is not None


def _run(seconds: float) -> Tally:
    if _client is None:
        raise RuntimeError("this process is no client")
    return _client.run(seconds)


class Clients:
    """Used as a context. `open_driver` is called in each client process, and so has to travel there.

    No two client processes draw the same keys: a second run would find what the first one left in memory.
    """

    def __init__(
        self, open_driver: Callable[[], Driver], rows: Rows, *, processes: int = 1, update_percent: float = 5.0
    ) -> None:
        # An executor each, since one executor may give both runs to the same process.
        self._executors = [
            ProcessPoolExecutor(
                1, get_context("spawn"), initializer=_begin, initargs=(open_driver, rows, update_percent, next(_seeds))
            )
            for _ in range(processes)
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for executor in self._executors:
            executor.shutdown(cancel_futures=True)

    def prepare(self) -> None:
        """Starts the processes now instead of with the first run, which then is under way at once."""
        for future in [executor.submit(_ready) for executor in self._executors]:
            future.result()

    def run(self, seconds: float) -> list[Tally]:
        return [future.result() for future in [executor.submit(_run, seconds) for executor in self._executors]]


def rate(tallies: list[Tally]) -> float:
    """Operations a second of all clients together."""
    return sum(tally.rate for tally in tallies)


def kept(updates: list[Update]) -> list[Update]:
    return updates[-UPDATES_KEPT:]
