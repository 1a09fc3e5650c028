"""Runs the waiting calls batch by batch, on borrowed rows, and has them committed. Pure.

Two batches at most are under way: one that borrows and runs, and before it one that commits. The second one begins
with calls that want nothing of what the first one holds, and asks for votes when that is over. The first one borrows
nothing any more, so nobody waits in a circle. A batch that holds tables, or changes what all partitions have copies of,
is alone. After OVERLAPS_IN_A_ROW one begins when nothing is lent: who waits in a partition for a whole table, or for
several rows, would else never find all of them there.

What becomes of a call whose batch is aborted: it goes into the next one, which is half as large, in front of all
others; but it gets the error if it was alone, or wrote where there is no room.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

from msgspec import Raw

from coordinator.batch import CALLS_A_BATCH, CHANGES_BYTES, NO_OUTCOMES, ROUNDS, Batch, wants_keys_only
from coordinator.bodies import Bodies, Call
from coordinator.callers import Callers
from coordinator.decision_log import Decision
from coordinator.fetch import Fetch, fetches
from coordinator.inquiries import Inquiries
from coordinator.participants import ORDER_BYTES, Participants
from coordinator.session import ATTACHED
from coordinator.two_phase import Ask, State
from coordinator.waiting import Waiting
from coordinator.wishes import ANY
from voltpy.errors import CODES, ConstraintViolation, Unavailable
from voltpy.messages import Borrow, Commit, Lent, Prepare, TableKeys, Vote
from voltpy.outcome_window import OutcomeWindow

ATTEMPTS = 8  # aborted batches of its own, after which a call is given up
UNFINISHED_BATCHES = 256  # of ROUNDS each, after which a call that misses still more is given up
DISCOVERED_BESIDE = 64  # calls of a batch that are run on stand-ins while another one waits for votes
OVERLAPS_IN_A_ROW = 8  # then a batch waits until the one before it is over


class Batches:
    """`decision`: to be flushed, then `decided`; nothing else happens to that batch until then.

    `overlaps`: whether the next batch borrows while one commits. It only pays where a processor would be idle.
    """

    def __init__(
        self,
        bodies: Bodies,
        waiting: Waiting,
        participants: Participants,
        callers: Callers,
        inquiries: Inquiries,
        window: OutcomeWindow,
        counts: dict[str, int],
        *,
        overlaps: bool,
    ) -> None:
        self.borrowing: Batch | None = None
        self.committing: Batch | None = None
        self.decision: Decision | None = None
        self.counts = counts
        self._overlaps = overlaps
        self._bodies = bodies
        self._tables = bodies.tables
        self._waiting = waiting
        self._participants = participants
        self._callers = callers
        self._inquiries = inquiries
        self._window = window
        self._limit = CALLS_A_BATCH  # of calls in the next batch
        self._is_held_up = False  # every call that is looked at wants something of the batch that commits
        self._overlapped = 0  # batches in a row, up to the last one, that began while another one committed

    @property
    def live(self) -> set[int]:
        """The numbers of those that are under way."""
        return {batch.number for batch in (self.borrowing, self.committing) if batch is not None}

    # A batch begins.

    @property
    def may_begin(self) -> bool:
        """Whether some call may be fit for a batch that borrows now."""
        if self.borrowing is not None or not self._waiting.batches:
            return False
        committing = self.committing
        return committing is None or not (
            not self._overlaps or self._is_held_up or committing.is_alone or self._waiting.reads or self._waiting.joints
            or not self._participants.all_attached or self._overlapped == OVERLAPS_IN_A_ROW
        )  # fmt: skip

    def begin(self) -> bool:
        if self.committing is None:
            calls = self._waiting.take(self._waiting.batches, self._limit)
        else:
            calls = self._taken_beside(self.committing)
        if not calls:
            return False
        self._overlapped = 0 if self.committing is None else self._overlapped + 1
        self.counts["overlapped"] += self.committing is not None
        batch = self.borrowing = Batch(self._participants.next_batch(), calls, self._participants.now_s)
        self._bodies.begin_batch()
        self._bodies.discover(calls)
        self._borrow(batch)
        return True

    def _taken_beside(self, committing: Batch) -> list[Call]:
        """Calls that want nothing of what this batch holds. None overtakes another one that wants the same rows."""
        queue, held = self._waiting.batches, committing.held
        taken: list[Call] = []
        left: list[Call] = []
        left_keys: list[set[Any]] = [set() for _ in held]
        discovered = 0
        while queue and len(taken) < self._limit and len(left) < CALLS_A_BATCH:
            call = queue.popleft()
            if call.wants is None and not self._bodies.guess(call):
                if discovered == DISCOVERED_BESIDE:
                    queue.appendleft(call)
                    break
                self._bodies.discover((call,))
                discovered += 1
            wants: Any = call.wants or ()
            if not (call.guessed or wants_keys_only(wants)):
                queue.appendleft(call)
                break
            for _, table, key in wants:
                if key in held[table] or key in left_keys[table]:
                    for home, of_table, wanted in wants:
                        if home != ANY:
                            left_keys[of_table].add(wanted)
                    left.append(call)
                    break
            else:
                call.until_s = 0.0
                taken.append(call)
        queue.extendleft(reversed(left))
        self._is_held_up = not taken
        return taken

    # It borrows, and its calls run.

    def _borrow(self, batch: Batch) -> None:
        """Asks for everything that is missing, of all partitions at once; without any, the bodies run."""
        asked = fetches(batch.waiting, self._tables, self._participants.one_attached())
        if not self._participants.are_attached(asked):  # lost since the batch began, and nobody would ever answer
            for call in batch.waiting:
                call.needs_all = True  # which ones they need is known only as they run
            self._abort(batch)
            return
        for partition, of_partition in asked.items():
            batch.awaited[partition] = deque(of_partition)
            for fetch in of_partition:
                if fetch.takes:
                    batch.participants.add(partition)
                    batch.is_alone |= bool(fetch.scans)
                order = Borrow(batch.number, fetch.keys, fetch.scans, [], fetch.entries)
                self._participants.order(partition, order, fetch.bytes)
        if asked:
            batch.rounds += 1
            self.counts["rounds"] += 1
        else:
            self._run(batch)

    def lent(self, partition: int, lent: Lent) -> None:
        batch = self.borrowing
        if batch is None or lent.batch != batch.number or partition not in batch.awaited:
            return
        if lent.refused:
            code, _, message = lent.refused.partition(": ")
            batch.refusal = (code, message) if code in CODES else ("Unavailable", lent.refused)
            self._abort(batch)
            return
        awaited = batch.awaited[partition]
        awaited.popleft().learn(self._tables, lent.images, lent.scans, lent.entries)
        if not awaited:
            del batch.awaited[partition]
        if batch.awaited:
            return
        if batch.is_closed:
            self._begin_commit(batch)
        else:
            self._run(batch)

    def _run(self, batch: Batch) -> None:
        batch.ran(self._bodies.run(batch.waiting))
        if self.committing is None:
            self._go_on(batch)
        elif batch.waiting and batch.rounds < ROUNDS and self.committing.lets(batch.waiting):
            self._borrow(batch)

    def _go_on(self, batch: Batch) -> None:
        """Its calls have run as far as they could, and no other batch is in its way."""
        if batch.waiting and batch.rounds < ROUNDS:
            self._borrow(batch)
        else:
            self._commit(batch)

    def _commit(self, batch: Batch) -> None:
        """The batch has all that it will ever borrow: what is left goes into the next one."""
        if not batch.done:
            self._abort(batch)
            return
        unfinished, batch.waiting = batch.waiting, []
        self._put_off(unfinished)
        batch.close(self._tables.changes(), self._tables.everywhere)
        self._callers.close(batch)
        undo = self._tables.undo
        batch.undo = undo[:]
        undo.clear()
        for partition, size in batch.changes_bytes.items():
            if size + len(batch.outcomes) > CHANGES_BYTES:
                text = f"the transaction changes {size:,} bytes in one partition; the limit is {CHANGES_BYTES:,}"
                batch.refusal = "ConstraintViolation", text
                self._abort(batch)
                return
            if self._participants.sessions[partition].state != ATTACHED:
                for call in batch.done:
                    call.needs_all |= _wrote_copies(batch, call)
                self._abort(batch)
                return
        locks = self._tables.not_borrowed()
        if locks and len(batch.participants | batch.changes.keys()) > 1:
            self._lock(batch, locks)
        else:
            self._begin_commit(batch)

    def _lock(self, batch: Batch, locks: dict[int, list[TableKeys]]) -> None:
        """Borrows what the batch changes and did not have to read, before anybody is asked for a vote: the first one
        to vote lets go of what it lent to be read, and by then nobody may see elsewhere that the batch is not over.
        """
        in_all = locks.pop(ANY, [])
        for partition in sorted(batch.changes if in_all else locks):
            keys = [*locks.get(partition, ()), *in_all]
            batch.awaited[partition] = deque([Fetch()])
            batch.participants.add(partition)
            size = ORDER_BYTES + sum(len(key) + 5 for of_table in keys for key in of_table.keys)
            self._participants.order(partition, Borrow(batch.number, [], [], keys), size)
        self.counts["rounds"] += 1

    def expire(self) -> None:
        """Leases must not end while the batch waits, for a slow partition or for the batch before it."""
        batch, participants = self.borrowing, self._participants
        if batch is not None:
            for partition in batch.renews(participants.now_s):
                batch.awaited[partition] = deque([Fetch()])
                participants.order(partition, Borrow(batch.number, [], []))

    # It commits.

    def _begin_commit(self, batch: Batch) -> None:
        """From here on the cache is the next batch's, except for the copies that this one has changed."""
        batch.begin_commit(self._tables.borrowed_keys())
        self.borrowing, self.committing = None, batch
        self._tables.give_back()
        self._carry_on(batch)

    def voted(self, partition: int, vote: Vote) -> None:
        batch = self.committing
        if batch is None or vote.batch != batch.number or batch.commit is None:
            return
        if vote.error and partition in batch.commit.awaited:
            batch.refusal = vote.error, vote.message
        batch.commit.voted(partition, yes=not vote.error)
        self._carry_on(batch)

    def decided(self, *, was_room: bool, reason: str = "") -> None:
        """The decision is on disk; or there is no room for it, and it never will be."""
        batch = self.committing
        if batch is None or batch.commit is None:
            return
        if not was_room:
            batch.refusal = "ReadOnly", f"no room for the decision: {reason}"
        batch.commit.logged(was_room=was_room)
        self._carry_on(batch)

    def lost(self, partition: int) -> None:
        """The session with this partition is over: everything unprepared there is given back."""
        batch = self.borrowing
        if batch is not None and (partition in batch.participants or partition in batch.awaited):
            self._abort(batch)
        committing = self.committing
        if committing is not None and committing.commit is not None:
            committing.commit.lost(partition)
            self._carry_on(committing)

    def _carry_on(self, batch: Batch) -> None:
        """Asks for what the commit protocol says, and does what its state says."""
        commit = batch.commit
        if commit is None:
            return
        for partition, ask in commit.take_asks():
            changes = batch.changes.get(partition, [])
            size = ORDER_BYTES + batch.changes_bytes.get(partition, 0)
            if ask is Ask.PREPARE:
                self._participants.order(partition, Prepare(batch.number, changes), size)
            else:
                order = Commit(batch.number, changes, Raw(batch.outcomes))
                self._participants.order(partition, order, size + len(batch.outcomes))
        if commit.state is State.COMMITTED:
            self._committed(batch)
        elif commit.state is State.ABORTED:
            self._abort(batch)
        elif commit.state is State.UNKNOWN:
            self._ask_what_became_of(batch)
        elif commit.state is State.LOGGING and self.decision is None:
            self.decision = Decision(batch.number, sorted(commit.writers), Raw(batch.outcomes))

    def _committed(self, batch: Batch) -> None:
        if batch.commit is not None and len(batch.commit.writers) > 1:
            self._participants.commit(batch.number, batch.commit.writers)
        else:
            self._participants.is_over(batch.number)
        if batch.changes_copies:
            self._tables.settle(commits=True)
        self._limit = min(2 * self._limit, CALLS_A_BATCH)
        self.counts["batches"] += 1
        if batch.outcomes != NO_OUTCOMES:
            self._window.add(batch.number, batch.outcomes)
        self._callers.answer(batch)
        self._commit_is_over()

    def _ask_what_became_of(self, batch: Batch) -> None:
        """Its only writer was lost, and may have committed it: the next batch need not wait until that is known."""
        if batch.changes_copies:
            self._tables.forget_copies()
        self._inquiries.ask_about(batch)
        self._commit_is_over()

    def _commit_is_over(self) -> None:
        """One way or the other: the batch that has borrowed meanwhile goes on."""
        self.committing = None
        self._is_held_up = False
        if self.borrowing is not None and not self.borrowing.awaited:
            self._go_on(self.borrowing)

    # It is aborted.

    def _abort(self, batch: Batch) -> None:
        """Nothing of it happened. Everything that was borrowed goes back, and its calls run again: fewer together."""
        commit = batch.commit
        self._participants.abort(batch.number, batch.participants | (commit.writers if commit is not None else set()))
        if batch is self.borrowing:
            self.borrowing = None
            self._tables.undo.clear()
            self._tables.give_back()
            self._tables.settle(commits=False)
            self._requeue_aborted(batch)
            return
        if batch.changes_copies:
            self._tables.settle(commits=False)
        self._requeue_aborted(batch)
        self._commit_is_over()

    def _requeue_aborted(self, batch: Batch) -> None:
        """Its calls run again, fewer together, but for those whose fault it was."""
        commit = batch.commit
        calls = list(batch.calls)
        if not batch.done and not batch.refusal[0] and commit is None and batch.rounds >= ROUNDS:
            self._put_off(calls)
            return
        self.counts["aborted_batches"] += 1
        code, message = batch.refusal
        refused_by = commit.refused_by if commit is not None else None
        failed: set[int] = set()
        if code == "ReadOnly":
            written = None
            if refused_by is not None:
                written = self._tables.changed_keys(batch.changes[refused_by])
            for call in batch.done:
                if call.wrote and (written is None or _wrote_some(batch, call, written)):
                    failed.add(id(call))
        elif len(calls) == 1 and ((code and code != "Unavailable") or calls[0].attempts >= ATTEMPTS):
            failed.add(id(calls[0]))
        if not failed:
            self._limit = max(len(calls) // 2, 1)
        again = []
        for call in calls:
            if id(call) in failed:
                self._callers.give_up(
                    call, CODES.get(code or "Unavailable", Unavailable)(message or "its batches were aborted")
                )
            else:
                call.attempts += len(calls) == 1
                again.append(call)
        self._waiting.put_in_front(again)

    def _put_off(self, calls: Iterable[Call]) -> None:
        """They have only begun to know what they want. One that never will is given up: it slows all others down."""
        again = []
        for call in calls:
            call.unfinished += 1
            if call.unfinished < UNFINISHED_BATCHES:
                again.append(call)
                continue
            text = f"{call.procedure.name} still wants rows that it has not read after {call.unfinished} batches"
            self._callers.give_up(call, ConstraintViolation(text))
        self._waiting.put_in_front(again)


def _wrote_some(batch: Batch, call: Call, keys: set[tuple[int, object]]) -> bool:
    """Whether the call changed one of these keys."""
    first, last = call.changed
    return any(table is not None and (table.number, key) in keys for table, key, _, _ in batch.undo[first:last])


def _wrote_copies(batch: Batch, call: Call) -> bool:
    """Whether the call changed a table that every partition has a copy of."""
    first, last = call.changed
    return any(table is not None and table.replicated for table, _, _, _ in batch.undo[first:last])
