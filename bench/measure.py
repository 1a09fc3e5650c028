"""Arithmetic of a measurement: percentiles, pairwise ratios, and the processor time of other processes.

Processor time is read from /proc/<pid>/stat: fields utime and stime, plus cutime and cstime, what children that are
gone have used. The kernel counts it in ticks of 10 ms, so a run of a second is good to a percent.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median

from bench.workload import BenchError

TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` percent of the values do not exceed."""
    if not values:
        raise ValueError("there is no percentile of nothing")
    ranked = sorted(values)
    rank = -(-len(ranked) * percent // 100)
    return ranked[max(0, int(rank) - 1)]


def pairwise_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of ours ÷ theirs, repetition by repetition: what drifts from one to the next cancels out."""
    return median(our / their for our, their in zip(ours, theirs, strict=True))


def cpu_ticks(stat: str) -> int:
    """Processor time in ticks, own and of children waited for, from the text of /proc/<pid>/stat."""
    # The second field is the program's name in parentheses, and may hold spaces and parentheses itself.
    fields = stat.rpartition(")")[2].split()
    return sum(map(int, fields[11:15]))


def cpu_s(pids: Iterable[int]) -> float:
    """Processor time of these processes in seconds. BenchError when one of them is gone."""
    ticks = 0
    for pid in pids:
        try:
            ticks += cpu_ticks(Path(f"/proc/{pid}/stat").read_text())
        except FileNotFoundError:
            raise BenchError(f"process {pid} ended while it was measured") from None
    return ticks / TICKS_A_SECOND


def process_tree(root: int) -> list[int]:
    """The process and all that descend from it, parents first."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            stat = _text(f"/proc/{entry}/stat")
            if stat:
                parent = int(stat.rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry))
    pids = [root]
    for pid in pids:
        pids.extend(children.get(pid, ()))
    return pids


def command_line(pid: int) -> list[str]:
    """The words that the process was started with; none when it is gone."""
    return _text(f"/proc/{pid}/cmdline").split("\0")


def _text(file: str) -> str:
    try:
        return Path(file).read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""
