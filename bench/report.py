"""Results as a Markdown table, with the machine and the settings that they came from. Pure: Results → text."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from bench.experiment import Results, Run
from bench.machine import in_words
from bench.measure import pairwise_ratio
from bench.targets import targets

BASELINE = "voltpy"
COLUMNS = (
    "line", "peer", "way", "calls/s", "lowest – highest", "voltpy ÷ it", "server CPU, µs a call", "client CPU",
    "p50 / p99, µs",
)  # fmt: skip
TEXT_COLUMNS = 3
HEAD = "\n".join(
    f"| {' | '.join(cells)} |"
    for cells in (COLUMNS, ["---" if column < TEXT_COLUMNS else "---:" for column in range(len(COLUMNS))])
)


def markdown(results: Results) -> str:
    """The table, and below it which targets were held, and what it was measured on."""
    rows = "".join(_row(runs, _baselines(results.runs, runs[0].line)) for runs in _groups(results.runs))
    held = "".join(f"- {line}\n" for line in targets(results))
    return f"{HEAD}\n" + rows + "\n" + (held and f"{held}\n") + conditions(results)


def summary(run: Run) -> str:
    """One run in one line, as it is told while the bench goes on."""
    return f"{run.line:20} {run.peer:9} {run.way:45} {run.calls_per_s:10,.0f}/s  CPU µs {_by_role(run.cpu_us)}" + (
        f"  p50 {run.p50_us:,.0f} p99 {run.p99_us:,.0f} µs" if run.p50_us else ""
    )


def conditions(results: Results) -> str:
    settings = results.settings
    measured = {run.peer for run in results.runs}
    lines = [
        in_words(results.machine),
        f"One client process on the same machine, {settings.seconds:g} s a run, {settings.repeat} repetitions in turn; "
        f"{settings.in_flight} calls in flight, {settings.tasks} where asyncio tasks await them, 1 where it is lone.",
        "Medians of the repetitions; ratios pair by pair, of calls a second, or of p50 latency where the call is lone. "
        "After each run the tables held what was acknowledged.",
        *(f"{name}: {text}." for name, text in results.peers.items() if name in measured),
        *(f"{name}: not measured, {why}." for name, why in results.skipped.items()),
        f"Measured {results.started_at}.",
    ]
    return "\n".join(f"- {line}" for line in lines) + "\n"


def _groups(runs: Sequence[Run]) -> list[list[Run]]:
    """The repetitions of one line on one peer in one way, in the order in which they were first measured."""
    groups: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.line, run.peer, run.way), []).append(run)
    order = list(dict.fromkeys(run.line for run in runs))
    return sorted(groups.values(), key=lambda group: order.index(group[0].line))


def _baselines(runs: Sequence[Run], line: str) -> list[list[Run]]:
    return [group for group in _groups(runs) if group[0].line == line and group[0].peer == BASELINE]


def _row(runs: Sequence[Run], baselines: Sequence[Sequence[Run]]) -> str:
    first = runs[0]
    rates = [run.calls_per_s for run in runs]
    ratios = " / ".join(f"{ratio(baseline, runs):.2f}" for baseline in baselines)
    roles = {role: median(run.cpu_us[role] for run in runs) for role in first.cpu_us}
    client_us = roles.pop("client")
    latency = "" if first.p50_us is None else f"{_median(runs, 'p50_us'):,.0f} / {_median(runs, 'p99_us'):,.0f}"
    return (
        f"| {first.line} | {first.peer} | {first.way} | {median(rates):,.0f} | {min(rates):,.0f} – {max(rates):,.0f} "
        f"| {ratios} | {_by_role(roles)} | {client_us:.1f} | {latency} |\n"
    )


def ratio(ours: Sequence[Run], theirs: Sequence[Run]) -> float:
    """How many times theirs ours is, pair by pair: in calls a second, or in median latency for one call in flight."""
    pairs = list(zip(ours, theirs, strict=False))  # a report of an interrupted bench has one repetition less of some
    if pairs[0][0].drive == "lone":
        return pairwise_ratio([our.p50_us or 0.0 for our, _ in pairs], [their.p50_us or 1.0 for _, their in pairs])
    return pairwise_ratio([our.calls_per_s for our, _ in pairs], [their.calls_per_s for _, their in pairs])


def _median(runs: Sequence[Run], field: str) -> float:
    return median(float(getattr(run, field)) for run in runs)


def _by_role(cpu_us: dict[str, float]) -> str:
    return ", ".join(f"{role} {spent:.1f}" for role, spent in cpu_us.items())
