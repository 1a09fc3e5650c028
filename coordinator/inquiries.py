"""What the partitions remember of calls that may have been committed in one of them alone. Pure.

Two are in need of that: a batch whose only writer was lost after it was sent Commit, and a retry of a call whose first
attempt may have reached an earlier coordinator. Either waits until the partitions in question have answered, which
those that are down do when they are back, or until its time is up: then it stays indeterminate.
"""

from __future__ import annotations

from collections.abc import Iterable

from coordinator.batch import Batch
from coordinator.bodies import Call

IN_DOUBT_S = 10.0


class Inquiry:
    """`numbers` of one client are asked for. For `batch`, or for retried `calls`, with their `floor`."""

    __slots__ = ("awaited", "batch", "calls", "client_id", "floor", "numbers", "reaches", "results", "until_s")

    def __init__(
        self, client_id: int, numbers: list[int], partitions: Iterable[int], until_s: float, floor: int = 0
    ) -> None:
        self.client_id = client_id
        self.numbers = numbers
        self.awaited = set(partitions)
        self.until_s = until_s
        self.floor = floor
        self.batch: Batch | None = None
        self.calls: list[Call] = []
        self.results: dict[int, bytes] = {}
        self.reaches = 0

    def recalled(self, partition: int, results: dict[int, bytes], reaches: int) -> bool:
        """A partition's answer. True: it was the last one."""
        if partition not in self.awaited:
            return False
        self.awaited.remove(partition)
        self.results.update(results)
        self.reaches = max(self.reaches, reaches)
        return not self.awaited
