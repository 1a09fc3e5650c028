"""The read rounds that are open in this partition: replies of what runs after one has read wait until it is over.

A round is opened when this partition has done its part of it, a Read's or a joint call's. It is over when the
coordinator releases it; when it has been held for as long as was promised; when a new session begins. Why that is
enough for those who read: see coordinator.reads. Pure: whoever calls says what time it is.
"""

from __future__ import annotations

from math import inf

from msgspec import Struct


class Round(Struct, eq=False):
    """`opened`: how many had been opened with it. Replies of what ran when there were so many, or more, wait."""

    opened: int
    until_s: float


class ReadRounds:
    """`opened` counts all that there were; whoever runs something remembers how many, for `first_open`."""

    def __init__(self) -> None:
        self.opened = 0
        self._open: dict[int, Round] = {}  # by number: the round's, or the batch's of a joint call

    def __len__(self) -> int:
        """How many are open."""
        return len(self._open)

    def open(self, number: int, until_s: float) -> None:
        """Replies of what runs from here on wait."""
        self.opened += 1
        self._open[number] = Round(self.opened, until_s)

    def release(self, number: int) -> None:
        """The round is over, if it was open."""
        self._open.pop(number, None)

    def end_overdue(self, now_s: float) -> None:
        for number in [number for number, each in self._open.items() if each.until_s <= now_s]:
            del self._open[number]

    def end_all(self) -> None:
        """Replies may go. Whoever believes in one of these rounds must know by then that it is over."""
        self._open.clear()

    @property
    def due_s(self) -> float:
        """When the first one will be overdue."""
        return min([each.until_s for each in self._open.values()]) if self._open else inf

    @property
    def first_open(self) -> float:
        """Replies of what ran when so many rounds had been opened, or more, must wait; infinity when none is open."""
        return min([each.opened for each in self._open.values()]) if self._open else inf
