"""Calls that were turned away, and wait for a moment before they are sent again.

What turned them away is most likely over by then: a partition that starts, a set of procedures that is being replaced.
"""

from __future__ import annotations

from collections.abc import Callable

from voltpy.calls import Pending


class Held:
    """Each call with the time when it goes again, in seconds of the connection's clock."""

    __slots__ = ("_calls",)

    def __init__(self) -> None:
        self._calls: list[tuple[float, Pending]] = []

    def add(self, call: Pending, until: float) -> None:
        self._calls.append((until, call))

    def take_due(self, now: float) -> list[Pending]:
        """Takes out the calls whose moment is over."""
        due = [call for until, call in self._calls if until <= now]
        if due:
            self._calls = [(until, call) for until, call in self._calls if until > now]
        return due

    def take(self, wanted: Callable[[Pending], bool]) -> list[Pending]:
        """Takes out the calls that are wanted, whenever they were to go."""
        taken = [call for _until, call in self._calls if wanted(call)]
        if taken:
            self._calls = [(until, call) for until, call in self._calls if not wanted(call)]
        return taken

    def times(self) -> list[float]:
        """When something has to be done about them: they go again, or their deadline comes."""
        return [min(until, call.deadline) for until, call in self._calls]
