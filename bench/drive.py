"""The loops of the `tasks` and `lone` drives, the same for every peer. `many` is written in each peer's own manner."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from time import perf_counter, perf_counter_ns
from typing import Any

from bench.workload import Call, CallStream, Outcome

Drive = Callable[[CallStream, float], Outcome]  # (calls, seconds) → what was sent and answered by the end

TAKEN_AT_ONCE = 16


def lone(stream: CallStream, seconds: float, call_one: Callable[[Call], Any]) -> Outcome:
    """One call in flight, for `seconds` or to the end of the stream."""
    outcome = Outcome([], [], [])
    deadline = perf_counter() + seconds
    while perf_counter() < deadline and (calls := stream.take(TAKEN_AT_ONCE)):
        for call in calls:
            begin_ns = perf_counter_ns()
            result = call_one(call)
            outcome.latencies_us.append((perf_counter_ns() - begin_ns) / 1e3)
            outcome.calls.append(call)
            outcome.results.append(result)
    return outcome


async def tasks(stream: CallStream, seconds: float, callers: Sequence[Callable[[Call], Awaitable[Any]]]) -> Outcome:
    """One task for each caller; each has one call in flight, for `seconds` or to the end of the stream."""
    outcome = Outcome([], [], [])
    deadline = perf_counter() + seconds

    async def work(call_one: Callable[[Call], Awaitable[Any]]) -> None:
        while perf_counter() < deadline and (calls := stream.take(TAKEN_AT_ONCE)):
            for call in calls:
                begin_ns = perf_counter_ns()
                result = await call_one(call)
                outcome.latencies_us.append((perf_counter_ns() - begin_ns) / 1e3)
                outcome.calls.append(call)
                outcome.results.append(result)

    async with asyncio.TaskGroup() as group:
        for caller in callers:
            group.create_task(work(caller))
    return outcome
