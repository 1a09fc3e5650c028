"""What is wanted of the figures of transactions that cross partitions, and whether these hold it. Pure: runs → text.

Where a peer was driven in several ways, it is the one that was fastest that counts. Ratios are taken pair by pair.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median

from bench.experiment import Results, Run
from bench.measure import pairwise_ratio
from bench.workloads.smallbank import CROSSING, WITHIN

TRANSFERS_A_SECOND = 60_000
TIMES_TWO_SERVERS = 50
TIMES_ONE_SERVER = 2
FLUSHES_OF_A_LONE_TRANSFER = 3
BESIDE_THE_FLUSHES_US = 1000.0
TIMES_PLPGSQL = 4
CPU_TIMES_DICTS = 3
SHARE_WHEN_CROSSING = 0.85


def targets(results: Results) -> list[str]:
    """A line for each target that the results say something about."""
    return [*_transfers(results), *_lone(results), *_tpcc(results), *_crossing(results)]


def _transfers(results: Results) -> Iterator[str]:
    ours = _fastest(results, "transfer/crossing", "voltpy")
    if not ours:
        return
    yield _at_least("transfers a second", median(run.calls_per_s for run in ours), TRANSFERS_A_SECOND)
    for peer, what, times in (
        ("two_postgres", "two PostgreSQL servers with PREPARE TRANSACTION", TIMES_TWO_SERVERS),
        ("postgres", "one call on one PostgreSQL server, pipelined", TIMES_ONE_SERVER),
    ):
        if theirs := _fastest(results, "transfer/crossing", peer):
            yield _at_least(f"transfers a second ÷ {what}", _rates(ours, theirs), times)


def _lone(results: Results) -> Iterator[str]:
    if ours := _fastest(results, "transfer/lone", "voltpy"):
        most_us = FLUSHES_OF_A_LONE_TRANSFER * results.machine.flush_p50_us + BESIDE_THE_FLUSHES_US
        p50_us = median(run.p50_us or 0.0 for run in ours)
        yield _at_most(f"a lone transfer's p50, µs; {FLUSHES_OF_A_LONE_TRANSFER} flushes + 1 ms", p50_us, most_us)


def _tpcc(results: Results) -> Iterator[str]:
    ours = _fastest(results, "tpcc/new_order", "voltpy")
    if not ours:
        return
    if theirs := _fastest(results, "tpcc/new_order", "postgres"):
        yield _at_least("new orders a second ÷ PL/pgSQL", _rates(ours, theirs), TIMES_PLPGSQL)
    if theirs := _fastest(results, "tpcc/new_order", "dicts"):
        cpu = pairwise_ratio(*_paired([_server_us(run) for run in ours], [run.cpu_us["client"] for run in theirs]))
        yield _at_most("servers' CPU a new order ÷ the same procedures on plain dicts", cpu, CPU_TIMES_DICTS)


def _crossing(results: Results) -> Iterator[str]:
    for line in dict.fromkeys(run.line for run in results.runs):
        if CROSSING in line:
            ours = _fastest(results, line, "voltpy")
            within = _fastest(results, line.replace(CROSSING, WITHIN), "voltpy")
            if ours and within:
                yield _at_least(f"{line}, calls a second ÷ none crossing", _rates(ours, within), SHARE_WHEN_CROSSING)


def _fastest(results: Results, line: str, peer: str) -> list[Run]:
    """The repetitions of the peer's fastest way; none where it was not measured."""
    ways: dict[str, list[Run]] = {}
    for run in results.runs:
        if (run.line, run.peer) == (line, peer):
            ways.setdefault(run.way, []).append(run)
    return max(ways.values(), key=lambda runs: median(run.calls_per_s for run in runs), default=[])


def _rates(ours: Sequence[Run], theirs: Sequence[Run]) -> float:
    return pairwise_ratio(*_paired([run.calls_per_s for run in ours], [run.calls_per_s for run in theirs]))


def _paired(ours: list[float], theirs: list[float]) -> tuple[list[float], list[float]]:
    """An interrupted bench has one repetition less of some."""
    pairs = min(len(ours), len(theirs))
    return ours[:pairs], theirs[:pairs]


def _server_us(run: Run) -> float:
    return sum(spent_us for role, spent_us in run.cpu_us.items() if role != "client")


def _at_least(what: str, found: float, least: float) -> str:
    return f"{what}: {found:,.2f}, wanted at least {least:,g}: {'held' if found >= least else 'MISSED'}"


def _at_most(what: str, found: float, most: float) -> str:
    return f"{what}: {found:,.2f}, wanted at most {most:,.6g}: {'held' if found <= most else 'MISSED'}"
