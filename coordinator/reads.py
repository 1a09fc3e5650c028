"""A read round: everything that the waiting read-only calls want is read in all partitions at once, nothing is lent.

    state      means                                        left when
    reading    Read was sent                                all have read in time → answered; one could not → failed
    answered   everything is read; whether all partitions   `believe` → read
               still live is looked at once more
    read       bodies run on what was read                  –
    failed     it is to be released, and tried again        –

Until it is read no body runs here and nobody is answered: an answer could tell of something that the round does not
see. A session that ends, and an overdue round, fail it.

Why the answers are one moment's: each partition, from when it has read, holds back the replies of what it runs later,
until it hears Release, or for `hold_s` at least: HOLD_S; where statements run STATEMENTS_HOLD_S, and MAX_HOLD_S once
that was too little. All of them began to do so after the round had begun. So when the last answer is here before
`hold_s` are over since then, nobody had heard of anything later than the first read when the last one was made. All
clocks are the same machine's. What a partition held back may only be heard of sooner if that partition dies, and a
retry finds its successor; then its connection had ended before the last read was made: hence the second look.
"""

from __future__ import annotations

from collections.abc import Set

from coordinator.batch import CALLS_A_BATCH, batch_number, groups_of
from coordinator.bodies import Bodies, Call
from coordinator.callers import Callers
from coordinator.fetch import Fetch, one_fetch_each
from coordinator.participants import Participants
from coordinator.waiting import Waiting
from voltpy.errors import Unavailable
from voltpy.messages import HOLD_S, MAX_HOLD_S, Read, ReadAnswer, Release

TRIES = 3  # then a call borrows what it reads
SLOW_KEPT = 4096
READ_BYTES = 4 << 20  # what a round may ask of one partition: it travels in one frame
STATEMENTS_HOLD_S = 1.0

READING, ANSWERED, READ, FAILED = "reading", "answered", "read", "failed"


class Round:
    """`awaited`: who is still to answer."""

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
        return self.state in (READING, ANSWERED)

    def answered(self, partition: int, now_s: float, *, is_here: bool) -> None:
        """`now_s`: no time before the answer was here."""
        self.look(now_s)
        if self.state != READING or partition not in self.awaited:
            return
        self.awaited.remove(partition)
        if not is_here:
            self.state = FAILED
        elif not self.awaited:
            self.state = ANSWERED

    def believe(self) -> None:
        """Every partition was still there after the last answer had come."""
        if self.state == ANSWERED:
            self.state = READ

    def lost(self, partition: int) -> None:
        """The session with this partition is over."""
        if self.is_open and partition in self.fetches:
            self.state = FAILED

    def look(self, now_s: float) -> None:
        if self.state == READING and now_s >= self.due_s:
            self.is_overdue = True
            self.state = FAILED


class Reads:
    """One round at a time, `round`."""

    def __init__(
        self, bodies: Bodies, waiting: Waiting, participants: Participants, callers: Callers, counts: dict[str, int]
    ) -> None:
        self.round: Round | None = None
        self.counts = counts
        self._rounds = 0
        self._limit = CALLS_A_BATCH  # of calls in the next round
        self._slow: set[str] = set()  # texts of statements that have made a round overdue
        self._bodies = bodies
        self._tables = bodies.tables
        self._waiting = waiting
        self._participants = participants
        self._callers = callers

    @property
    def is_open(self) -> bool:
        """Whether nobody may be answered, and no body may run."""
        return self.round is not None and self.round.is_open

    @property
    def is_answered(self) -> bool:
        """Whether it may be believed, if all partitions are still there now."""
        return self.round is not None and self.round.state == ANSWERED

    def begin(self) -> bool:
        participants = self._participants
        calls = self._waiting.take(self._waiting.reads, self._limit)
        if not calls:
            return False
        self._rounds += 1
        self._bodies.begin_batch()
        calls = self._bodies.discover(calls, self._waiting.reads.put_back)
        asked = one_fetch_each(calls, self._tables, participants.one_attached())
        while max((fetch.bytes for fetch in asked.values()), default=0) > READ_BYTES:
            if len(calls) == 1:
                calls[0].borrows = True  # in as many orders as it takes
                calls[0].wants = None  # rows, where it wanted statements' parts
                self._waiting.put_in_front(calls)
                return False
            half = len(calls) // 2
            self._waiting.reads.put_back(calls[half:])
            calls = calls[:half]
            asked = one_fetch_each(calls, self._tables, participants.one_attached())
        number = batch_number(participants.epoch, self._rounds)
        work = self.round = Round(number, calls, asked, participants.now_s, self._slow)
        self.counts["read_rounds"] += 1
        for partition, fetch in asked.items():
            order = Read(work.number, fetch.keys, fetch.scans, fetch.fragments, work.hold_s)
            participants.order(partition, order, fetch.bytes, work.hold_s if fetch.fragments else 0.0)
        if not participants.are_attached(asked):
            for call in calls:
                call.needs_all = True  # which ones they need is known only as they run
            work.state = FAILED
        self._moved(work)
        return True

    def answered(self, partition: int, answer: ReadAnswer) -> None:
        work = self.round
        if work is None or answer.round != work.number or partition not in work.fetches:
            return
        if answer.is_here:
            work.fetches[partition].learn(self._tables, answer.images, answer.scans)
            work.fetches[partition].learn_fragments(self._tables, answer.fragments)
        work.answered(partition, self._participants.now_s, is_here=answer.is_here)
        self._moved(work)

    def believe(self) -> None:
        if self.round is not None:
            self.round.believe()
            self._moved(self.round)

    def lost(self, partition: int) -> None:
        """The session with this partition is over."""
        if self.round is not None:
            self.round.lost(partition)
            self._moved(self.round)

    def expire(self) -> None:
        if self.round is not None:
            self.round.look(self._participants.now_s)
            self._moved(self.round)

    def _moved(self, work: Round) -> None:
        """The bodies run when everything has been read; a round that failed is released, and its calls try again."""
        if work.is_open:
            return
        for partition in work.fetches:
            self._participants.order(partition, Release(work.number))
        if work.state == FAILED:
            if work.is_overdue and work.texts:
                self._took_too_long(work)
            self._end(work.calls)
        else:
            missed, left = self._bodies.run(work.calls)
            again = set(map(id, (*missed, *left)))
            done = [call for call in work.calls if id(call) not in again]
            self._end(missed)
            self._waiting.reads.put_back(left)
            self._limit = max(len(work.calls) - len(left), 1) if left else min(2 * self._limit, CALLS_A_BATCH)
            self._callers.answer_reads(done, [(origin, group) for (origin, _, _), group in groups_of(done).items()])
            self.counts["reads"] += len(done)

    def _took_too_long(self, work: Round) -> None:
        if len(self._slow) >= SLOW_KEPT:
            self._slow.clear()
        self._slow |= work.texts
        for call in [call for call in work.calls if call.tries + 1 >= TRIES]:
            work.calls.remove(call)
            text = f"the call's statements take a partition longer than {work.hold_s:g} s, again and again"
            self._callers.give_up(call, Unavailable(text))

    def _end(self, again: list[Call]) -> None:
        """These calls have to read again; after some tries they borrow what they read."""
        self.round = None
        self._tables.undo.clear()
        self._tables.give_back()
        self.counts["read_retries"] += len(again)
        for call in again:
            call.tries += 1
            if call.tries >= TRIES:
                call.borrows = True
                call.wants = None  # it wants rows now, where it wanted statements' parts
        self._waiting.put_in_front(again)
