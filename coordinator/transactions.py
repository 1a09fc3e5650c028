"""The coordinator's core: calls and the partitions' messages go in; orders, decisions and replies come out. No I/O.

At any time it does one of these, and begins the next when that is over; the kinds take turns:

    a batch     runs the waiting calls on borrowed rows, and commits what they wrote     coordinator.batch
    a joint     lets every partition run its part of a directed call, and commits that   coordinator.batch
    a round     reads what read-only calls want, everywhere at once                      coordinator.reads

A batch that commits borrows nothing any more. Meanwhile the next one borrows and runs, unless a joint or a round waits:
calls that want nothing of what the first one holds. It commits when the first one is over, so there are two batches at
most, and what the second one waits for never waits for it.

Its shell does this, over and over:

    calls, everywhere, topology, receive, hold, resume     whatever has arrived
    step(now)                                              what can be done about it
    take_decision()                                        to be flushed to the decision log before anything else; then
    decided(was_room)                                      it counts, or nothing of the batch does
    replies(), notices(), sessions[p].take_frames()        to be sent

No reply of a batch leaves before the batch's outcome, none at all while a round is open. What becomes of a call:

    its partitions are attached          it goes into the next batch, or round
    one is being attached                it waits, ATTACH_WAIT_S at most, then it is Unavailable
    one is down                          it is Unavailable
    its batch is aborted                 it goes into the next one, which is half as large, in front of all others; but
                                         it gets the error if it was alone, or wrote where there is no room
    it wrote in a partition that was     it waits until that partition says what became of it (coordinator.inquiries)
    lost while it committed alone
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable
from typing import Any

from msgspec import Raw

from coordinator.batch import (
    CALLS_A_BATCH,
    CHANGES_BYTES,
    ROUNDS,
    Batch,
    Joint,
    JointBatch,
    batch_number,
    groups_of,
    wants_keys_only,
)
from coordinator.bodies import Bodies, Call
from coordinator.borrowed import ANY
from coordinator.decision_log import Decision
from coordinator.fetch import Fetch, fetches, one_fetch_each
from coordinator.inquiries import IN_DOUBT_S, Inquiry
from coordinator.reads import FAILED, READ, RELEASING, TRIES, Round
from coordinator.session import ATTACHED, DOWN, Session
from coordinator.two_phase import Ask, State
from voltpy.answers import REPLY_BYTES, Answers
from voltpy.call_error import call_error
from voltpy.errors import (
    CODES,
    BadArguments,
    ConstraintViolation,
    Corruption,
    Error,
    Indeterminate,
    ProcedureTimeout,
    ProtocolError,
    ReadOnly,
    Unavailable,
    UnknownProcedure,
)
from voltpy.messages import (
    NEVER_SENT,
    Attached,
    BatchesHeld,
    Borrow,
    CallError,
    CallGroup,
    Commit,
    Decide,
    Decided,
    EverywhereCall,
    HoldBatches,
    Lent,
    Message,
    Order,
    Prepare,
    Ran,
    Read,
    ReadAnswer,
    Recall,
    Recalled,
    Refusal,
    Release,
    Released,
    ReplyGroup,
    Report,
    Reports,
    RunDirected,
    TableKeys,
    Topology,
    Vote,
)
from voltpy.outcome_window import OutcomeWindow, Unlogged
from voltpy.procedure import Procedure
from voltpy.wire import joined

Origin = Hashable

ATTACH_WAIT_S = 2.0
ATTEMPTS = 8  # aborted batches of its own, after which a call is given up
UNFINISHED_BATCHES = 256  # of ROUNDS each, after which a call that misses still more is given up
DISCOVERED_BESIDE = 64  # calls of a batch that are run on stand-ins while another one waits for votes
SLOW_KEPT = 4096
READ_BYTES = 4 << 20  # what a round may ask of one partition: it travels in one frame
ORDER_BYTES = 32  # of one without keys, changes or arguments


class Transactions:
    """`window` holds the outcomes of `decisions`, and reaches as far back as the decision log.

    `acknowledged` gathers batches that the decision log need not keep for the partitions' sake. `counts` are figures
    for people.
    """

    def __init__(
        self,
        lane: int,
        epoch: int,
        bodies: Bodies,
        decisions: Iterable[Decision],
        window: OutcomeWindow,
        runaways: Iterable[tuple[int, int]] = (),
    ) -> None:
        self.lane = lane  # the coordinator's number, and how many partitions there are
        self.epoch = epoch
        self.bodies = bodies
        self.sessions = [Session(partition, epoch) for partition in range(lane)]
        self.last_over = batch_number(epoch, 0)
        self.acknowledged: list[int] = []
        self.counts = {
            "batches": 0, "rounds": 0, "calls": 0, "aborted_batches": 0, "overlapped": 0, "reads": 0, "read_rounds": 0,
            "read_retries": 0, "joint_calls": 0,
        }  # fmt: skip
        self._tables = bodies.tables
        self._window = window
        self._runaways = set(runaways)
        self._now_s = 0.0
        self._count = 0  # of batches
        self._rounds = 0  # of reads
        self._slow: set[str] = set()  # texts of statements that have made a round overdue
        self._limit = CALLS_A_BATCH  # of calls in the next batch
        self._queue: deque[Call] = deque()
        self._reads: deque[Call] = deque()
        self._joints: deque[Joint] = deque()
        self._stalled: deque[Call | Joint] = deque()  # until a partition is attached; the longest waiting first
        self._pending: dict[tuple[int, int], Call | Joint] = {}  # all of them, by call id
        self._work: Batch | JointBatch | Round | None = None
        self._committing: Batch | None = None  # beside the work, which is a batch then, or none
        self._is_held_up = False  # every call that is looked at wants something of the batch that commits
        self._turn = 0  # which kind is the first to be looked at for the next work
        self._decision: Decision | None = None
        self._inquiries: list[Inquiry] = []
        self._asked: list[deque[Inquiry]] = [deque() for _ in self.sessions]  # whose Recalls have not been answered
        # Who has a decision still to acknowledge, by batch; and the aborts that sessions have not reported on.
        self._unacknowledged = {decision.batch: set(decision.participants) for decision in decisions}
        self._aborts: list[set[int]] = [set() for _ in self.sessions]
        self._has_topology = False
        self._answers: dict[Origin, Answers] = {}
        self._notices: list[tuple[Origin, Message]] = []
        self._hold: tuple[int, Origin, float] | None = None  # snapshot, who asked, until when
        self._hold_is_told = False

    # What arrives.

    def calls(self, origin: Origin, group: CallGroup, now_s: float) -> None:
        """Calls from a client. Their arguments are decoded at once; they run in a later step."""
        self._now_s = now_s
        procedure = self.bodies.procedures.get(group.procedure)
        if procedure is None or procedure.everywhere:
            self._refuse(origin, group.client_id, group.numbers, UnknownProcedure(_not_callable(group, procedure)))
            return
        calls, errors = self.bodies.calls_of(origin, group, procedure)
        if errors:
            self._answers_to(origin).errors.extend(errors)
        if group.retry_floor != NEVER_SENT:
            self._retry(origin, group, calls)
            return
        overtaken = self._window.overtaken(group.client_id, group.numbers)
        pending = self._pending
        queue = self._reads if procedure.read_only else self._queue
        new = {(call.client_id, call.number): call for call in calls}
        if not overtaken and len(new) == len(calls) and pending.keys().isdisjoint(new):
            pending.update(new)
            queue.extend(calls)
            return
        for call in calls:
            call_id = call.client_id, call.number
            if overtaken and call.number in overtaken:
                self._answers_to(origin).drop(call.client_id, 1)
            elif call_id in pending:
                self._join(call_id, origin)
            else:
                pending[call_id] = call
                queue.append(call)

    def everywhere(self, origin: Origin, call: EverywhereCall, now_s: float) -> None:
        """A directed call whose parts are to commit together."""
        self._now_s = now_s
        call_id = call.client_id, call.number
        if call_id in self._pending:
            self._join(call_id, origin)
            return
        if len(call.args) > CHANGES_BYTES:
            text = f"{call.procedure}: arguments of {len(call.args):,} bytes; the limit is {CHANGES_BYTES:,}"
            self._refuse(origin, call.client_id, [call.number], BadArguments(text))
            return
        joint = self._pending[call_id] = Joint(origin, call)
        self._joints.append(joint)

    def topology(self, topology: Topology, now_s: float) -> None:
        """What the supervisor says about the partitions."""
        self._now_s = now_s
        self._has_topology = True
        for address in topology.partitions:
            if address.partition < len(self.sessions) and self.sessions[address.partition].adopt(address, now_s):
                self._lost(address.partition)

    def receive(self, partition: int, message: Message, now_s: float) -> None:
        """A message from the connection to a partition that is there now. Raises Corruption."""
        self._now_s = now_s
        session = self.sessions[partition]
        if isinstance(message, Reports):
            reports = session.reports(message, now_s)
            if reports is None:
                self._lose(partition)
                return
            for report in reports:
                try:
                    self._reported(partition, report)
                except ProtocolError:
                    self._lose(partition)
                    return
        elif isinstance(message, Attached):
            if session.attached(message):
                self._attached(partition, message.in_doubt)
        elif isinstance(message, Refusal):
            self._lose(partition)

    def hold(self, origin: Origin, message: HoldBatches, now_s: float) -> None:
        """Begin nothing until `resume`, or until the lease is over; `notices` will tell when nothing is under way."""
        self._now_s = now_s
        if self._hold is None or self._hold[0] != message.snapshot:
            self._hold_is_told = False
        self._hold = message.snapshot, origin, now_s + message.lease_s

    def resume(self, snapshot: int) -> None:
        if self._hold is not None and self._hold[0] == snapshot:
            self._hold = None

    # What comes out.

    def take_decision(self) -> Decision | None:
        """A decision to be made durable. Nothing else happens to the batch until `decided`."""
        decision, self._decision = self._decision, None
        return decision

    def decided(self, now_s: float, *, was_room: bool, reason: str = "") -> None:
        """The decision that was taken is on disk; or there is no room for it, and it never will be."""
        self._now_s = now_s
        work, batch = self._work, self._committing
        if batch is not None and batch.commit is not None:
            if not was_room:
                batch.refusal = "ReadOnly", f"no room for the decision: {reason}"
            batch.commit.logged(was_room=was_room)
            self._carry_on(batch)
        elif isinstance(work, JointBatch):
            work.commit.logged(was_room=was_room)
            if was_room:
                self._joint_committed(work)
            else:
                self._joint_aborted(work, ReadOnly(f"no room for the decision: {reason}"))

    def replies(self) -> dict[Origin, Answers]:
        """By origin, what may be answered now; nothing while a round is open."""
        if isinstance(self._work, Round) and self._work.is_open:
            return {}
        answers, self._answers = self._answers, {}
        return answers

    def notices(self) -> list[tuple[Origin, Message]]:
        """What the supervisor waits for."""
        notices, self._notices = self._notices, []
        return notices

    @property
    def has_work(self) -> bool:
        """Whether a step would do something, though nothing arrives."""
        if self._hold is not None:
            return False
        if self._work is not None:
            return False
        if self._committing is not None:
            return bool(self._queue) and self._may_begin_beside(self._committing)
        return bool(self._queue or self._reads or self._joints)

    @property
    def is_waiting(self) -> bool:
        """Whether something may become overdue."""
        return bool(
            self._work or self._committing or self._stalled or self._inquiries or self._hold or self._unacknowledged
            or any(session.state not in (ATTACHED, DOWN) for session in self.sessions)
        )  # fmt: skip

    @property
    def waiting(self) -> int:
        """Calls that are not answered."""
        return len(self._pending)

    @property
    def in_doubt(self) -> int:
        """Batches that are decided here and not yet known to be on disk in every partition, or not known here."""
        return len(self._unacknowledged) + sum(inquiry.batch is not None for inquiry in self._inquiries)

    # What can be done.

    def step(self, now_s: float) -> None:
        """Looks at what is overdue; begins the next batch, joint or round when nothing is under way."""
        self._now_s = now_s
        self._expire()
        if self._hold is not None:
            self._look_at_hold()
        elif self._work is None:
            self._begin()

    def _begin(self) -> None:
        """The kinds take turns, so that none of them starves."""
        if self._committing is not None:
            if self._may_begin_beside(self._committing):
                self._begin_batch()
            return
        kinds = self._begin_joint, self._begin_round, self._begin_batch
        for place in range(self._turn, self._turn + len(kinds)):
            if kinds[place % len(kinds)]():
                self._turn = (place + 1) % len(kinds)
                return

    def _expire(self) -> None:
        now_s = self._now_s
        for session in self.sessions:
            if session.is_overdue(now_s):
                self._lose(session.partition)
        if isinstance(self._work, Round):
            self._work.look(now_s)
            self._round_moved(self._work)
        while self._stalled and now_s >= self._stalled[0].until_s:
            self._give_up(self._stalled.popleft(), Unavailable("a partition that the call needs does not answer"))
        for inquiry in [inquiry for inquiry in self._inquiries if inquiry.until_s <= now_s]:
            self._inquired(inquiry, Indeterminate("a partition that may have committed the call alone is down"))

    def _look_at_hold(self) -> None:
        if self._hold is None:
            return
        snapshot, origin, until_s = self._hold
        if self._now_s >= until_s:
            self._hold = None
        elif not (self._hold_is_told or self._work or self._committing or self._unacknowledged or any(self._aborts)):
            self._hold_is_told = True
            self._notices.append((origin, BatchesHeld(snapshot)))

    # Calls before they run.

    def _is_ready(self, call: Call | Joint) -> bool:
        """Whether its partitions are attached. If not, it has been answered, or set aside."""
        partitions = call.allowed if isinstance(call, Call) and not call.needs_all else self._tables.everywhere
        is_ready = True
        for partition in partitions:
            session = self.sessions[partition]
            if session.state == ATTACHED:
                continue
            is_ready = False
            if session.state == DOWN and self._has_topology:
                self._give_up(call, Unavailable(f"partition {partition} is down"))
                return False
        if not partitions and not any(session.state == ATTACHED for session in self.sessions):
            is_ready = False  # it may read what every partition has a copy of
        if is_ready:
            call.until_s = 0.0
        else:
            call.until_s = call.until_s or self._now_s + ATTACH_WAIT_S
            self._stalled.append(call)
        return is_ready

    def _taken(self, queue: deque[Call], limit: int) -> list[Call]:
        if all(session.state == ATTACHED for session in self.sessions):
            taken = [queue.popleft() for _ in range(min(limit, len(queue)))]
            for call in taken:
                call.until_s = 0.0
            return taken
        taken = []
        while queue and len(taken) < limit:
            call = queue.popleft()
            if self._is_ready(call):
                taken.append(call)
        return taken

    def _queue_of(self, call: Call) -> deque[Call]:
        return self._reads if call.procedure.read_only and not call.borrows else self._queue

    def _requeue(self, calls: Iterable[Call]) -> None:
        """In front of all others, in their order."""
        for call in reversed(list(calls)):
            self._queue_of(call).appendleft(call)

    # Batches.

    def _may_begin_beside(self, committing: Batch) -> bool:
        """Whether the next batch may borrow while this one commits, and some call may be fit for it."""
        return not (
            self._is_held_up or committing.is_alone or self._reads or self._joints
            or any(session.state != ATTACHED for session in self.sessions)
        )  # fmt: skip

    def _taken_beside(self, committing: Batch) -> list[Call]:
        """Calls that want nothing of what this batch holds. None overtakes another one that wants the same rows."""
        queue, held = self._queue, committing.held
        taken: list[Call] = []
        left: list[Call] = []
        left_keys: list[set[Any]] = [set() for _ in held]
        discovered = 0
        while queue and len(taken) < self._limit and len(left) < CALLS_A_BATCH:
            call = queue.popleft()
            if call.wants is None and self.bodies.guess((call,)):
                if discovered == DISCOVERED_BESIDE:
                    queue.appendleft(call)
                    break
                self.bodies.discover((call,))
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

    def _begin_batch(self) -> bool:
        if self._committing is None:
            calls = self._taken(self._queue, self._limit)
        else:
            calls = self._taken_beside(self._committing)
        if not calls:
            return False
        self._count += 1
        self.counts["overlapped"] += self._committing is not None
        batch = self._work = Batch(batch_number(self.epoch, self._count), calls)
        self.bodies.begin_batch()
        self.bodies.discover(calls)
        self._borrow(batch)
        return True

    def _borrow(self, batch: Batch) -> None:
        """Asks for everything that is missing, of all partitions at once; without any, the bodies run."""
        asked = fetches(batch.waiting, self._tables, self._attached_partition())
        if not self._all_attached(asked):  # lost since the batch began, and nobody would ever answer
            self._wait_for_all(batch.waiting)
            self._abort(batch)
            return
        for partition, of_partition in asked.items():
            batch.awaited[partition] = deque(of_partition)
            for fetch in of_partition:
                if fetch.takes:
                    batch.participants.add(partition)
                    batch.is_alone |= bool(fetch.scans)
                self._order(partition, Borrow(batch.number, fetch.keys, fetch.scans), fetch.bytes)
        if asked:
            batch.rounds += 1
            self.counts["rounds"] += 1
        else:
            self._run(batch)

    def _lent(self, partition: int, lent: Lent) -> None:
        batch = self._work
        if not isinstance(batch, Batch) or lent.batch != batch.number or partition not in batch.awaited:
            return
        if lent.refused:
            code, _, message = lent.refused.partition(": ")
            batch.refusal = (code, message) if code in CODES else ("Unavailable", lent.refused)
            self._abort(batch)
            return
        awaited = batch.awaited[partition]
        awaited.popleft().learn(self._tables, lent.images, lent.scans)
        if not awaited:
            del batch.awaited[partition]
        if batch.awaited:
            return
        if batch.is_closed:
            self._begin_commit(batch)
        else:
            self._run(batch)

    def _run(self, batch: Batch) -> None:
        batch.ran(self.bodies.run(batch.waiting))
        if self._committing is None:
            self._go_on(batch)
        elif batch.waiting and batch.rounds < ROUNDS and self._committing.lets(batch.waiting):
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
        undo = self._tables.undo
        batch.undo = undo[:]
        undo.clear()
        for partition, size in batch.changes_bytes.items():
            if size + len(batch.outcomes) > CHANGES_BYTES:
                text = f"the transaction changes {size:,} bytes in one partition; the limit is {CHANGES_BYTES:,}"
                batch.refusal = "ConstraintViolation", text
                self._abort(batch)
                return
            if self.sessions[partition].state != ATTACHED:
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
            self._order(partition, Borrow(batch.number, [], [], keys), size)
        self.counts["rounds"] += 1

    def _begin_commit(self, batch: Batch) -> None:
        """From here on the cache is the next batch's, except for the copies that this one has changed."""
        batch.begin_commit(self._tables.borrowed_keys())
        self._work, self._committing = None, batch
        self._tables.give_back()
        self._carry_on(batch)

    def _commit_is_over(self) -> None:
        """One way or the other: the batch that has borrowed meanwhile goes on."""
        self._committing = None
        self._is_held_up = False
        if isinstance(self._work, Batch) and not self._work.awaited:
            self._go_on(self._work)

    def _put_off(self, calls: Iterable[Call]) -> None:
        """They have only begun to know what they want. One that never will is given up: it slows all others down."""
        again = []
        for call in calls:
            call.unfinished += 1
            if call.unfinished < UNFINISHED_BATCHES:
                again.append(call)
                continue
            text = f"{call.procedure.name} still wants rows that it has not read after {call.unfinished} batches"
            self._give_up(call, ConstraintViolation(text))
        self._requeue(again)

    def _carry_on(self, batch: Batch) -> None:
        """Asks for what the commit protocol says, and does what its state says."""
        commit = batch.commit
        if commit is None:
            return
        for partition, ask in commit.take_asks():
            changes = batch.changes.get(partition, [])
            size = ORDER_BYTES + batch.changes_bytes.get(partition, 0)
            if ask is Ask.PREPARE:
                self._order(partition, Prepare(batch.number, changes), size)
            else:
                order = Commit(batch.number, changes, Raw(batch.outcomes))
                self._order(partition, order, size + len(batch.outcomes))
        if commit.state is State.COMMITTED:
            self._committed_batch(batch)
        elif commit.state is State.ABORTED:
            self._abort(batch)
        elif commit.state is State.UNKNOWN:
            self._inquire_about(batch)
        elif commit.state is State.LOGGING and self._decision is None:
            self._decision = Decision(batch.number, sorted(commit.writers), Raw(batch.outcomes))

    def _committed_batch(self, batch: Batch) -> None:
        commit = batch.commit
        if commit is not None and len(commit.writers) > 1:
            self._decide(batch.number, commit.writers)
        if batch.changes_copies:
            self._tables.settle(commits=True)
        self.last_over = max(self.last_over, batch.number)
        self._limit = min(2 * self._limit, CALLS_A_BATCH)
        self.counts["batches"] += 1
        if batch.outcomes != b"\x90":
            self._window.add(batch.number, batch.outcomes)
        self._answer(batch)
        self._commit_is_over()

    def _decide(self, number: int, writers: Iterable[int]) -> None:
        """The decision is on disk. Those who can't be told now ask when they are attached again."""
        self._unacknowledged[number] = set(writers)
        for partition in sorted(writers):
            self._order(partition, Decide(number, True), ORDER_BYTES)

    def _answer(self, batch: Batch) -> None:
        """The batch is over: everything in it may be told."""
        unlogged: list[Unlogged] = []
        for (origin, _, wrote), group in batch.reply_groups().items():
            self._answers_to(origin).groups.append(group)
            if not wrote:
                unlogged.append(group)
        pending = self._pending
        for call in batch.done:
            del pending[call.client_id, call.number]
            if call.error is not None:
                self._answers_to(call.origin).errors.append(call.error)
                unlogged.append(call.error)
        self.counts["calls"] += len(batch.done)
        if unlogged:
            self._window.remember(unlogged)

    def _abort(self, batch: Batch) -> None:
        """Nothing of it happened. Everything that was borrowed goes back, and its calls run again: fewer together."""
        commit = batch.commit
        told = batch.participants | (set(commit.writers) if commit is not None else set())
        for partition in sorted(told):
            self._order(partition, Decide(batch.number, False), ORDER_BYTES)
            if self.sessions[partition].state == ATTACHED:
                self._aborts[partition].add(batch.number)
        self.last_over = max(self.last_over, batch.number)
        if batch is self._work:
            self._work = None
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
                self._give_up(
                    call, CODES.get(code or "Unavailable", Unavailable)(message or "its batches were aborted")
                )
            else:
                call.attempts += len(calls) == 1
                again.append(call)
        self._requeue(again)

    # Joint directed calls.

    def _begin_joint(self) -> bool:
        while self._joints:
            joint = self._joints.popleft()
            if not self._is_ready(joint):
                continue
            self._count += 1
            work = self._work = JointBatch(batch_number(self.epoch, self._count), joint, self.lane)
            call = joint.call
            for partition, _ in work.commit.take_asks():
                order = RunDirected(
                    work.number, call.client_id, call.number, call.procedure, Raw(bytes(call.args)), call.now_us
                )
                self._order(partition, order, ORDER_BYTES + len(call.procedure) + len(order.args))
            return True
        return False

    def _ran(self, partition: int, ran: Ran) -> None:
        work = self._work
        if not isinstance(work, JointBatch) or ran.batch != work.number or partition not in work.commit.awaited:
            return
        work.ran[partition] = ran
        work.commit.voted(partition, yes=ran.error is None)
        if ran.error is not None:
            self._joint_aborted(work, ran.error)
        elif work.commit.state is State.LOGGING:
            differing = work.differing()
            if differing is not None:
                self._joint_aborted(
                    work,
                    ConstraintViolation(
                        f"{work.of.call.procedure} changes its copies otherwise in partition {differing} than in "
                        "partition 0: what it writes must depend on its arguments and on copied tables alone"
                    ),
                )
                return
            if work.result_bytes > REPLY_BYTES:
                text = f"results of {work.result_bytes:,} bytes together; the limit is {REPLY_BYTES:,}"
                self._joint_aborted(work, ConstraintViolation(text))
                return
            work.close()
            self._decision = Decision(work.number, sorted(work.commit.writers), Raw(work.outcomes))

    def _joint_committed(self, work: JointBatch) -> None:
        self._decide(work.number, work.commit.writers)
        self._tables.forget_copies()
        self._work = None
        self.last_over = work.number
        self.counts["joint_calls"] += 1
        self.counts["calls"] += 1
        self._window.add(work.number, work.outcomes)
        del self._pending[work.of.client_id, work.of.number]
        self._answers_to(work.of.origin).groups.append(work.close())

    def _joint_aborted(self, work: JointBatch, error: Error | CallError | None) -> None:
        """`error` None: through no fault of its own, so it runs again."""
        for partition in sorted(work.commit.writers):
            self._order(partition, Decide(work.number, False), ORDER_BYTES)
            if self.sessions[partition].state == ATTACHED:
                self._aborts[partition].add(work.number)
        self._decision = None
        self._work = None
        self.last_over = work.number
        self.counts["aborted_batches"] += 1
        joint = work.of
        joint.attempts += 1
        if error is None and joint.attempts < ATTEMPTS:
            self._joints.appendleft(joint)
        else:
            self._give_up(joint, error or Unavailable("a partition was lost again and again while the call ran"))

    # Read rounds.

    def _begin_round(self) -> bool:
        calls = self._taken(self._reads, CALLS_A_BATCH)
        if not calls:
            return False
        self._rounds += 1
        self.bodies.begin_batch()
        self.bodies.discover(calls)
        asked = one_fetch_each(calls, self._tables, self._attached_partition())
        while max((fetch.bytes for fetch in asked.values()), default=0) > READ_BYTES:
            if len(calls) == 1:
                calls[0].borrows = True  # in as many orders as it takes
                self._requeue(calls)
                return False
            half = len(calls) // 2
            self._requeue(calls[half:])
            calls = calls[:half]
            asked = one_fetch_each(calls, self._tables, self._attached_partition())
        work = self._work = Round(batch_number(self.epoch, self._rounds), calls, asked, self._now_s, self._slow)
        self.counts["read_rounds"] += 1
        for partition, fetch in asked.items():
            order = Read(work.number, fetch.keys, fetch.scans, fetch.fragments, work.hold_s)
            self._order(partition, order, fetch.bytes, work.hold_s if fetch.fragments else 0.0)
        if not self._all_attached(asked):
            self._wait_for_all(calls)
            work.state = FAILED
        self._round_moved(work)
        return True

    def _read_answered(self, partition: int, answer: ReadAnswer) -> None:
        work = self._work
        if not isinstance(work, Round) or answer.round != work.number or partition not in work.fetches:
            return
        if answer.is_here:
            work.fetches[partition].learn(self._tables, answer.images, answer.scans)
            work.fetches[partition].learn_fragments(self._tables, answer.fragments)
        work.answered(partition, is_here=answer.is_here)
        if work.state == RELEASING:
            for each in work.fetches:
                self._order(each, Release(work.number), ORDER_BYTES)
        self._round_moved(work)

    def _released(self, partition: int, released: Released) -> None:
        work = self._work
        if isinstance(work, Round) and released.round == work.number:
            work.released(partition, was_held=released.was_held)
            self._round_moved(work)

    def _round_moved(self, work: Round) -> None:
        """The bodies run when everything has been read; a round that failed is released, and its calls try again."""
        if work.state == FAILED:
            for partition in work.fetches:
                self._order(partition, Release(work.number), ORDER_BYTES)
            if work.is_overdue and work.texts:
                if len(self._slow) >= SLOW_KEPT:
                    self._slow.clear()
                self._slow |= work.texts
                for call in [call for call in work.calls if call.tries + 1 >= TRIES]:
                    work.calls.remove(call)
                    text = f"the call's statements take a partition longer than {work.hold_s:g} s, again and again"
                    self._give_up(call, Unavailable(text))
            self._end_round(work.calls)
        elif work.state == READ:
            missed = self.bodies.run(work.calls)
            again = set(map(id, missed))
            done = [call for call in work.calls if id(call) not in again]
            self._end_round(missed)
            for (origin, _, _), group in groups_of(done).items():
                self._answers_to(origin).groups.append(group)
            for call in done:
                del self._pending[call.client_id, call.number]
                if call.error is not None:
                    self._answers_to(call.origin).errors.append(call.error)
            self.counts["reads"] += len(done)
            self.counts["calls"] += len(done)

    def _end_round(self, again: list[Call]) -> None:
        """These calls have to read again; after some tries they borrow what they read."""
        self._work = None
        self._tables.undo.clear()
        self._tables.give_back()
        self.counts["read_retries"] += len(again)
        for call in again:
            call.tries += 1
            if call.tries >= TRIES:
                call.borrows = True
                call.wants = None  # it wants rows now, where it wanted statements' parts
        self._requeue(again)

    # Retries, and what is not known.

    def _retry(self, origin: Origin, group: CallGroup, calls: list[Call]) -> None:
        """Answers retried calls with their first results; runs those that surely never ran."""
        unknown: list[Call] = []
        for call in calls:
            call_id = call.client_id, call.number
            if call_id in self._pending:
                self._join(call_id, origin)
                continue
            if call_id in self._runaways:
                text = f"{call.procedure.name} could only be ended with the coordinator's process"
                self._refuse(origin, call.client_id, [call.number], ProcedureTimeout(text))
                continue
            try:
                first = self._window.first_result(call.client_id, call.number, group.retry_floor)
            except Indeterminate as error:
                self._refuse(origin, call.client_id, [call.number], error)
                continue
            self._window.retried(call.client_id, call.number)
            if isinstance(first, CallError):
                self._answers_to(origin).errors.append(first)
            elif first is not None:
                results = joined([first])
                self._answers_to(origin).groups.append(_one(call, results))
            else:
                self._pending[call_id] = call
                if group.retry_floor < batch_number(self.epoch, 0) and not call.procedure.read_only:
                    unknown.append(call)  # an earlier coordinator may have had it committed in one partition
                else:
                    self._queue_of(call).append(call)
        if unknown:
            numbers = [call.number for call in unknown]
            until_s = self._now_s + IN_DOUBT_S
            inquiry = Inquiry(group.client_id, numbers, range(self.lane), until_s, group.retry_floor)
            inquiry.calls = unknown
            self._inquire(inquiry)

    def _inquire_about(self, batch: Batch) -> None:
        """Its only writer was lost, and may have committed it: the next batch need not wait until that is known."""
        if batch.changes_copies:
            self._tables.forget_copies()
        writer, call = batch.commit, batch.first_writer()
        if writer is not None and call is not None:
            until_s = self._now_s + IN_DOUBT_S
            inquiry = Inquiry(call.client_id, [call.number], writer.writers, until_s)
            inquiry.batch = batch
            self._inquire(inquiry)
        self._commit_is_over()

    def _inquire(self, inquiry: Inquiry) -> None:
        self._inquiries.append(inquiry)
        for partition in sorted(inquiry.awaited):
            self._recall(partition, inquiry)

    def _recall(self, partition: int, inquiry: Inquiry) -> None:
        if self.sessions[partition].state == ATTACHED:
            self._asked[partition].append(inquiry)
            order = Recall(inquiry.client_id, inquiry.numbers)
            self._order(partition, order, ORDER_BYTES + 9 * len(inquiry.numbers))

    def _recalled(self, partition: int, recalled: Recalled) -> None:
        if not self._asked[partition]:
            raise ProtocolError("a partition recalled what it was not asked for")
        inquiry = self._asked[partition].popleft()
        if inquiry in self._inquiries and inquiry.recalled(partition, recalled.results, recalled.reaches):
            self._inquired(inquiry, None)

    def _inquired(self, inquiry: Inquiry, given_up: Error | None) -> None:
        """Everybody has answered; or it took too long."""
        self._inquiries.remove(inquiry)
        batch = inquiry.batch
        if batch is not None:
            if inquiry.results:
                self.counts["batches"] += 1
                self._remember_outcomes(batch)
                self._answer(batch)
            elif given_up is None and batch.number > inquiry.reaches:
                self.counts["aborted_batches"] += 1
                self._requeue(batch.done)
            else:
                error = given_up or Indeterminate("the partition that may have committed it remembers no more of it")
                # Remembered: its retry must not run, as if it never had.
                self._window.remember([call_error(call.client_id, call.number, error) for call in batch.done])
                for call in batch.done:
                    self._give_up(call, error)
            return
        for call in inquiry.calls:
            result = inquiry.results.get(call.number)
            if result is not None:
                del self._pending[call.client_id, call.number]
                self._answers_to(call.origin).groups.append(_one(call, joined([bytes(result)])))
            elif given_up is not None:
                self._give_up(call, given_up)
            elif inquiry.reaches > inquiry.floor:
                text = "the call was retried so late that its first outcome is no longer remembered"
                self._give_up(call, Indeterminate(text))
            else:
                self._queue_of(call).append(call)

    def _remember_outcomes(self, batch: Batch) -> None:
        """It was over before batches that are in the window by now: it goes beside them."""
        self._window.remember([group for (_, _, wrote), group in batch.groups.items() if wrote])

    # Sessions.

    def _reported(self, partition: int, report: Report) -> None:
        if isinstance(report, Lent):
            self._lent(partition, report)
        elif isinstance(report, Vote):
            self._voted(partition, report)
        elif isinstance(report, Decided):
            self._acknowledged(partition, report.batch)
        elif isinstance(report, ReadAnswer):
            self._read_answered(partition, report)
        elif isinstance(report, Released):
            self._released(partition, report)
        elif isinstance(report, Ran):
            self._ran(partition, report)
        else:
            self._recalled(partition, report)

    def _voted(self, partition: int, vote: Vote) -> None:
        batch = self._committing
        if batch is None or vote.batch != batch.number or batch.commit is None:
            return
        if vote.error and partition in batch.commit.awaited:
            batch.refusal = vote.error, vote.message
        batch.commit.voted(partition, yes=not vote.error)
        self._carry_on(batch)

    def _acknowledged(self, partition: int, number: int) -> None:
        self._aborts[partition].discard(number)
        waited_for = self._unacknowledged.get(number)
        if waited_for is not None:
            waited_for.discard(partition)
            if not waited_for:
                del self._unacknowledged[number]
                self.acknowledged.append(number)

    def _attached(self, partition: int, in_doubt: list[int]) -> None:
        """A session has begun. What is in doubt there is decided, unless it is the batch that is under way.

        Raises Corruption for a batch that comes after all that was ever begun by this decision log: whatever became of
        it stands in another one.
        """
        last = batch_number(self.epoch, self._count)
        if in_doubt and max(in_doubt) > last:
            raise Corruption(
                f"partition {partition} is in doubt of batch {max(in_doubt)}, and the coordinator has begun none after "
                f"{last}: its decision log has been lost, or is an older one"
            )
        live = {work.number for work in (self._work, self._committing) if isinstance(work, Batch | JointBatch)}
        for number in in_doubt:
            if number not in live:
                commits = number in self._unacknowledged
                self._order(partition, Decide(number, commits), ORDER_BYTES)
                if not commits:
                    self._aborts[partition].add(number)
        for number in [number for number, waited_for in self._unacknowledged.items() if partition in waited_for]:
            if number not in in_doubt:
                self._acknowledged(partition, number)  # it is on disk there; only the word of it was lost
        for inquiry in self._inquiries:
            if partition in inquiry.awaited:
                self._recall(partition, inquiry)
        stalled, self._stalled = self._stalled, deque()
        for call in reversed(stalled):
            if isinstance(call, Joint):
                self._joints.appendleft(call)
            else:
                self._queue_of(call).appendleft(call)

    def _lose(self, partition: int) -> None:
        """The session is over, and a new one is tried."""
        self.sessions[partition].begin(self._now_s)
        self._lost(partition)

    def _lost(self, partition: int) -> None:
        """Whatever the last session had not reported is unknown; everything unprepared there is given back."""
        self._asked[partition].clear()
        self._aborts[partition].clear()
        work = self._work
        if isinstance(work, Round):
            work.lost(partition)
            self._round_moved(work)
        elif isinstance(work, JointBatch):
            work.commit.lost(partition)
            if work.commit.state is State.ABORTED:
                self._joint_aborted(work, None)
        elif isinstance(work, Batch) and (partition in work.participants or partition in work.awaited):
            self._abort(work)
        committing = self._committing
        if committing is not None and committing.commit is not None:
            committing.commit.lost(partition)
            self._carry_on(committing)

    def _order(self, partition: int, order: Order, order_bytes: int, takes_s: float = 0.0) -> None:
        """Orders for a partition that is not attached are void: it is told what it needs when it is attached."""
        session = self.sessions[partition]
        if session.state == ATTACHED:
            session.order(order, order_bytes, self._now_s, takes_s)

    def _all_attached(self, partitions: Iterable[int]) -> bool:
        return all(self.sessions[partition].state == ATTACHED for partition in partitions)

    def _wait_for_all(self, calls: Iterable[Call]) -> None:
        """Which partitions these calls need is known only as they run: they begin when all of them are there."""
        for call in calls:
            call.needs_all = True

    def _attached_partition(self) -> int:
        return next((session.partition for session in self.sessions if session.state == ATTACHED), 0)

    # Answers.

    def _answers_to(self, origin: Origin) -> Answers:
        answers = self._answers.get(origin)
        if answers is None:
            answers = self._answers[origin] = Answers([], [], {})
        return answers

    def _refuse(self, origin: Origin, client_id: int, numbers: Iterable[int], error: Error) -> None:
        self._answers_to(origin).errors.extend(call_error(client_id, number, error) for number in numbers)

    def _give_up(self, call: Call | Joint, error: Error | CallError) -> None:
        """The call is answered with an error; nothing of it happened, or that is what is not known."""
        del self._pending[call.client_id, call.number]
        answer = error if isinstance(error, CallError) else call_error(call.client_id, call.number, error)
        self._answers_to(call.origin).errors.append(answer)
        self.counts["calls"] += 1

    def _join(self, call_id: tuple[int, int], origin: Origin) -> None:
        """A call that is under way has come again: whoever sent it last is answered."""
        call = self._pending[call_id]
        self._answers_to(call.origin).drop(call_id[0], 1)
        call.origin = origin
        for batch in (self._work, self._committing):
            if isinstance(batch, Batch):
                batch.is_joined = True
        for inquiry in self._inquiries:
            if inquiry.batch is not None:
                inquiry.batch.is_joined = True


def _one(call: Call, results: Raw) -> ReplyGroup:
    return ReplyGroup(call.client_id, [call.number], results)


def _wrote_some(batch: Batch, call: Call, keys: set[tuple[int, object]]) -> bool:
    """Whether the call changed one of these keys."""
    first, last = call.changed
    return any(table is not None and (table.number, key) in keys for table, key, _, _ in batch.undo[first:last])


def _wrote_copies(batch: Batch, call: Call) -> bool:
    """Whether the call changed a table that every partition has a copy of."""
    first, last = call.changed
    return any(table is not None and table.replicated for table, _, _, _ in batch.undo[first:last])


def _not_callable(group: CallGroup, procedure: Procedure | None) -> str:
    if procedure is None:
        return f"there is no procedure {group.procedure!r}"
    return f"{group.procedure} is declared everywhere=True: use call_everywhere"
