"""How one batch commits: what to ask of whom, and what follows from the answers. Pure.

*Readers* lent what the batch has read, and change nothing; *writers* change something. A yes says that everything the
batch borrowed there has been held from the lend until now. A writer's yes is on disk: it stands, whatever comes.
The parts of a joint directed call are writers, all of them, even where there is only one: a part that has run is a yes.

    state        entered                              what is asked
    validating   readers, and one writer or none      Prepare, empty, of the readers
    preparing    several writers                      Prepare of all
    committing   the only writer is left              Commit of it: its record is the decision
    logging      everybody voted yes, several wrote   nothing: the decision is being written and flushed here
    unknown      the only writer was lost             nothing: it is asked later what became of the batch
    committed    it is decided
    aborted      it is decided, or presumed

                 yes                      no          lost                  logged      not logged
    validating   last, a writer → committing   → aborted   of one that has not voted, or of the writer → aborted
                 last, none     → committed
    preparing    last           → logging      → aborted   of one that has not voted → aborted
    committing                  → committed    → aborted   → unknown
    logging                                                                 → committed → aborted

What the table leaves blank changes nothing: a vote that comes twice, from somebody who was not asked, or too late; the
loss of a partition that has voted, or takes no part.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum


class State(Enum):
    VALIDATING = "validating"
    PREPARING = "preparing"
    COMMITTING = "committing"
    LOGGING = "logging"
    UNKNOWN = "unknown"
    COMMITTED = "committed"
    ABORTED = "aborted"


class Ask(Enum):
    PREPARE = "prepare"
    COMMIT = "commit"


class TwoPhase:
    """`begin`, then what happens; `asks` are to be carried out after each of these. `refused_by`: whose no it was."""

    __slots__ = ("asks", "awaited", "readers", "refused_by", "state", "writers")

    def __init__(self, readers: Iterable[int], writers: Iterable[int], *, is_joint: bool = False) -> None:
        self.writers = frozenset(writers)
        self.readers = frozenset(readers) - self.writers
        self.asks: list[tuple[int, Ask]] = []
        self.awaited: set[int] = set()  # who has not voted
        self.refused_by: int | None = None
        self.state = State.PREPARING if len(self.writers) > 1 or is_joint else State.VALIDATING
        self._ask(self.readers if self.state is State.VALIDATING else self.readers | self.writers, Ask.PREPARE)
        if not self.awaited:
            self._all_said_yes()

    @property
    def is_over(self) -> bool:
        return self.state in (State.COMMITTED, State.ABORTED, State.UNKNOWN)

    def voted(self, partition: int, *, yes: bool) -> None:
        if partition not in self.awaited:
            return
        self.awaited.remove(partition)
        if not yes:
            self.refused_by = partition
            self._abort()
        elif not self.awaited:
            self._all_said_yes()

    def lost(self, partition: int) -> None:
        """The session with this partition is over."""
        # What the writer had lent is lost with its session, though it has not been asked for anything yet.
        loses_loan = self.state is State.VALIDATING and partition in self.writers
        if partition not in self.awaited and not loses_loan:
            return
        if self.state is State.COMMITTING:
            self.awaited.clear()
            self.state = State.UNKNOWN
        else:
            self._abort()

    def logged(self, *, was_room: bool) -> None:
        """The decision is on disk; or it can't be written, and nobody will ever find it."""
        if self.state is State.LOGGING:
            self.state = State.COMMITTED if was_room else State.ABORTED

    def take_asks(self) -> list[tuple[int, Ask]]:
        asks, self.asks = self.asks, []
        return asks

    def _ask(self, partitions: frozenset[int], ask: Ask) -> None:
        self.awaited.update(partitions)
        self.asks.extend((partition, ask) for partition in sorted(partitions))

    def _all_said_yes(self) -> None:
        if self.state is State.PREPARING:
            self.state = State.LOGGING
        elif self.state is State.VALIDATING and self.writers:
            self.state = State.COMMITTING
            self._ask(self.writers, Ask.COMMIT)
        else:
            self.state = State.COMMITTED

    def _abort(self) -> None:
        self.awaited.clear()
        self.state = State.ABORTED
