"""A read round: everything that the waiting read-only calls want is read in all partitions at once, nothing is lent.

    state      means                                        left when
    reading    Read was sent                                all have read → releasing; one could not → failed
    releasing  everything is read; until all say that they  all say so → read; one let go before → failed
               held back what came later, it may be missing
               something that somebody has heard of
    read       bodies run on what was read                  –
    failed     it is to be released, and tried again        –

While it is reading or releasing no body runs here and nobody is answered: an answer could tell of something that the
round does not see. A session that ends, and an overdue round, fail it. The partitions hold nothing back for longer
than it takes to be overdue: HOLD_S; where statements run STATEMENTS_HOLD_S, and MAX_HOLD_S once that was too little.
"""

from __future__ import annotations

from collections.abc import Set

from coordinator.bodies import Call
from coordinator.fetch import Fetch
from voltpy.messages import HOLD_S, MAX_HOLD_S

TRIES = 3  # then a call borrows what it reads
STATEMENTS_HOLD_S = 1.0

READING, RELEASING, READ, FAILED = "reading", "releasing", "read", "failed"


class Round:
    """`awaited`: who is still to answer in this state."""

    __slots__ = ("awaited", "calls", "due_s", "fetches", "hold_s", "is_overdue", "number", "state", "texts")

    def __init__(
        self, number: int, calls: list[Call], fetches: dict[int, Fetch], now_s: float, slow: Set[str] = frozenset()
    ) -> None:
        """`slow`: texts of statements that have made a round overdue."""
        self.texts = {fragment.text for fetch in fetches.values() for fragment in fetch.fragments}
        self.hold_s = HOLD_S
        if self.texts:
            self.hold_s = MAX_HOLD_S if self.texts & slow else STATEMENTS_HOLD_S
        self.due_s = now_s + self.hold_s
        self.is_overdue = False
        self.number = number
        self.calls = calls
        self.fetches = fetches
        self.awaited = set(fetches)
        self.state = READING if fetches else READ

    @property
    def is_open(self) -> bool:
        return self.state in (READING, RELEASING)

    def answered(self, partition: int, *, is_here: bool) -> None:
        if self.state != READING or partition not in self.awaited:
            return
        self.awaited.remove(partition)
        if not is_here:
            self.state = FAILED
        elif not self.awaited:
            self.state = RELEASING
            self.awaited = set(self.fetches)

    def released(self, partition: int, *, was_held: bool) -> None:
        if self.state != RELEASING or partition not in self.awaited:
            return
        self.awaited.remove(partition)
        if not was_held:
            self.state = FAILED
        elif not self.awaited:
            self.state = READ

    def lost(self, partition: int) -> None:
        """The session with this partition is over."""
        if self.is_open and partition in self.fetches:
            self.state = FAILED

    def look(self, now_s: float) -> None:
        if self.is_open and now_s > self.due_s:
            self.is_overdue = True
            self.state = FAILED
