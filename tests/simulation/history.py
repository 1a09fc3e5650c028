"""What clients did and saw: transactions of appends to lists and reads of whole lists.

Every appended value is unique for its key, so that a list says who wrote it, and in which order: that is what makes
the anomalies of an engine visible from outside (Kingsbury & Alvaro, "Elle: Inferring Isolation Anomalies from
Experimental Observations", VLDB 2020). tests.simulation.checker draws the conclusions.
"""

from __future__ import annotations

from collections.abc import Hashable
from enum import Enum
from math import inf
from typing import NamedTuple

Key = Hashable


class Outcome(Enum):
    """What its client was told. ABORTED: surely without effect. UNKNOWN: it may have happened, or may yet."""

    OK = "ok"
    ABORTED = "aborted"
    UNKNOWN = "unknown"


class Append(NamedTuple):
    """Puts the value at the end of the list."""

    key: Key
    value: int


class Read(NamedTuple):
    """`values`: the whole list as it was seen, own appends included; None where nobody heard of it."""

    key: Key
    values: tuple[int, ...] | None


class Transaction(NamedTuple):
    """One call. `operations` in the order in which it made them; times in seconds, of one clock for the whole history.

    An aborted transaction whose reads have values told its client what it had seen before it was undone: its reads must
    be as true as anybody's.
    """

    number: int
    operations: tuple[Append | Read, ...]
    outcome: Outcome
    invoked_s: float
    completed_s: float = inf

    def __str__(self) -> str:
        shown = []
        for operation in self.operations:
            if isinstance(operation, Append):
                shown.append(f"append {operation.value} to {operation.key}")
            else:
                seen = "?" if operation.values is None else list(operation.values)
                shown.append(f"read {operation.key}: {seen}")
        return (
            f"T{self.number} ({self.outcome.value}, {self.invoked_s:.6f} to {self.completed_s:.6f}): {'; '.join(shown)}"
        )
