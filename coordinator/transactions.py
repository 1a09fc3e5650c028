"""The coordinator's core: calls and the partitions' messages go in; orders, decisions and replies come out. No I/O.

Calls wait (coordinator.waiting) until one of these takes them; the kinds take turns:

    a batch     runs the waiting calls on borrowed rows, and commits what they wrote     coordinator.batches
    a joint     lets every partition run its part of a directed call, and commits that   coordinator.joints
    a round     reads what read-only calls want, everywhere at once                      coordinator.reads

While one is under way none of another kind begins; a second batch may borrow while the first one commits.

Its shell does this, over and over:

    calls, everywhere, topology, receive, hold, resume     whatever has arrived
    end                                                    nothing is begun any more
    step(now)                                              what can be done about it
    take_decision()                                        to be flushed to the decision log before anything else; then
    decided(was_room)                                      it counts, or nothing of the batch does
    replies(), notices(), sessions[p].take_frames()        to be sent

No reply of a batch leaves before the batch's outcome, none at all while a round is open. What becomes of a call:

    its partitions are attached          it goes into the next batch, or round
    one is being attached                it waits, ATTACH_WAIT_S at most, then it is Unavailable
    one is down                          it is Unavailable
    its batch is aborted                 see coordinator.batches
    it wrote in a partition that was     it waits until that partition says what became of it (coordinator.inquiries)
    lost while it committed alone
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from coordinator.batch import CHANGES_BYTES, Joint
from coordinator.batches import Batches
from coordinator.bodies import Bodies, Call, Origin
from coordinator.callers import Callers
from coordinator.decision_log import Decision
from coordinator.inquiries import Inquiries
from coordinator.joints import Joints
from coordinator.participants import Participants
from coordinator.reads import Reads
from coordinator.session import ATTACHED, DOWN, REPORTS_DUE_S
from coordinator.waiting import Waiting
from voltpy.answers import Answers
from voltpy.errors import BadArguments, ProtocolError, Unavailable, UnknownProcedure
from voltpy.messages import (
    NEVER_SENT,
    Attached,
    BatchesHeld,
    CallGroup,
    Decided,
    EverywhereCall,
    HoldBatches,
    Lent,
    Message,
    Ran,
    ReadAnswer,
    Refusal,
    Report,
    Reports,
    Topology,
    Vote,
)
from voltpy.outcome_window import OutcomeWindow
from voltpy.procedure import Procedure
from voltpy.registry import Registry
from voltpy.routing import no_such
from voltpy.schema import Schema
from voltpy.sql.plan import Plan

ENDING = "the coordinator is stopping"


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
        reports_due_s: float = REPORTS_DUE_S,
        *,
        overlaps: bool = True,
    ) -> None:
        self.lane = lane  # the coordinator's number, and how many partitions there are
        self.epoch = epoch
        self.bodies = bodies
        self.participants = participants = Participants(lane, epoch, decisions, reports_due_s)
        self.sessions = participants.sessions
        self.acknowledged = participants.acknowledged
        self._counts = counts = {
            "batches": 0, "rounds": 0, "aborted_batches": 0, "overlapped": 0, "reads": 0, "read_rounds": 0,
            "read_retries": 0, "joint_calls": 0,
        }  # fmt: skip
        self._window = window
        self.callers = callers = Callers(window)
        self.waiting = waiting = Waiting(participants, callers)
        self.inquiries = inquiries = Inquiries(waiting, participants, callers, window, runaways, counts)
        self.batches = Batches(bodies, waiting, participants, callers, inquiries, window, counts, overlaps=overlaps)
        self.joints = Joints(bodies.tables, waiting, participants, callers, window, counts)
        self.reads = Reads(bodies, waiting, participants, callers, counts)
        self._turn = 0  # which kind is the first to be looked at for the next work
        self._notices: list[tuple[Origin, Message]] = []
        self._hold: tuple[int, Origin, float] | None = None  # snapshot, who asked, until when
        self._hold_is_told = False
        self._is_ending = False

    # What arrives.

    def calls(self, origin: Origin, group: CallGroup, now_s: float) -> None:
        """Calls from a client. Their arguments are decoded at once; they run in a later step."""
        self.participants.now_s = now_s
        callers = self.callers
        if self._is_ending:
            callers.refuse(origin, group.client_id, group.numbers, Unavailable(ENDING))
            return
        procedure = self.bodies.procedures.get(group.procedure)
        if procedure is None or procedure.everywhere:
            error = _not_callable(group, procedure, self.bodies.procedures)
            callers.refuse(origin, group.client_id, group.numbers, error)
            return
        calls, errors = self.bodies.calls_of(origin, group, procedure)
        if errors:
            callers.answers_to(origin).errors.extend(errors)
        if group.retry_floor != NEVER_SENT:
            self.inquiries.retry(origin, group, calls)
            return
        overtaken = self._window.overtaken(group.client_id, group.numbers)
        pending = callers.pending
        queue = self.waiting.reads if procedure.read_only else self.waiting.batches
        new = {(call.client_id, call.number): call for call in calls}
        if not overtaken and len(new) == len(calls) and pending.keys().isdisjoint(new):
            pending.update(new)
            if calls:
                queue.add(group.client_id, calls)
            return
        for call in calls:
            call_id = call.client_id, call.number
            if overtaken and call.number in overtaken:
                callers.answers_to(origin).drop(call.client_id, 1)
            elif call_id in pending:
                callers.join(call_id, origin)
            else:
                pending[call_id] = call
                queue.add(call.client_id, (call,))

    def everywhere(self, origin: Origin, call: EverywhereCall, now_s: float) -> None:
        """A directed call whose parts are to commit together."""
        self.participants.now_s = now_s
        call_id = call.client_id, call.number
        if call_id in self.callers.pending:
            self.callers.join(call_id, origin)
            return
        if self._is_ending:
            self.callers.refuse(origin, call.client_id, [call.number], Unavailable(ENDING))
            return
        if len(call.args) > CHANGES_BYTES:
            text = f"{call.procedure}: arguments of {len(call.args):,} bytes; the limit is {CHANGES_BYTES:,}"
            self.callers.refuse(origin, call.client_id, [call.number], BadArguments(text))
            return
        joint = self.callers.pending[call_id] = Joint(origin, call)
        self.waiting.joints.add(call.client_id, (joint,))

    def topology(self, topology: Topology, now_s: float) -> None:
        """What the supervisor says about the partitions."""
        self.participants.now_s = now_s
        self.waiting.knows_partitions = True
        for address in topology.partitions:
            if address.partition < len(self.sessions) and self.sessions[address.partition].adopt(address, now_s):
                self._lost(address.partition)

    def connection_lost(self, partition: int, now_s: float) -> None:
        """The connection of the session that there is now has ended: nothing more will come of it."""
        self.participants.now_s = now_s
        self._lose(partition)

    def receive(self, partition: int, message: Message, now_s: float) -> None:
        """A message from the connection to a partition that is there now. Raises Corruption."""
        self.participants.now_s = now_s
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
        self.participants.now_s = now_s
        if self._hold is None or self._hold[0] != message.snapshot:
            self._hold_is_told = False
        self._hold = message.snapshot, origin, now_s + message.lease_s

    def resume(self, snapshot: int) -> None:
        if self._hold is not None and self._hold[0] == snapshot:
            self._hold = None

    def is_held_for_too_long(self, now_s: float) -> bool:
        """Whether its lease is over, and the next step may begin something."""
        return self._hold is not None and now_s >= self._hold[2]

    def take_schema(self, schema: Schema, plan_of: Callable[[str], Plan], registry: Registry) -> None:
        """From the next call on, this schema and these procedures. While batches are held: nothing is under way.

        What waiting calls have found out that they want may be of tables that there are no more.
        """
        self.bodies.take_schema(schema, plan_of, registry)
        for call in self.callers.pending.values():
            if isinstance(call, Call):
                call.wants, call.guessed = None, False

    def end(self) -> None:
        """Begin nothing any more. What comes, and what would run in a later batch or round, is answered Unavailable."""
        self._is_ending = True

    @property
    def is_answered(self) -> bool:
        """Whether partitions have read, or run their parts, what counts if all of them are still there now."""
        return self.reads.is_answered or self.joints.is_answered

    def believe(self, now_s: float) -> None:
        """They are: the sessions that are over have been told of since."""
        self.participants.now_s = now_s
        self.reads.believe()
        self.joints.believe()

    # What comes out.

    def take_decision(self) -> Decision | None:
        """A decision to be made durable. Nothing else happens to the batch until `decided`."""
        decision = self.batches.decision or self.joints.decision
        self.batches.decision = self.joints.decision = None
        return decision

    def decided(self, now_s: float, *, was_room: bool, reason: str = "") -> None:
        """The decision that was taken is on disk; or there is no room for it, and it never will be."""
        self.participants.now_s = now_s
        self.batches.decided(was_room=was_room, reason=reason)
        self.joints.decided(was_room=was_room, reason=reason)

    def replies(self) -> dict[Origin, Answers]:
        """By origin, what may be answered now; nothing while a round is open, or the parts of a joint."""
        return {} if self.reads.is_open or self.joints.is_open else self.callers.take()

    def notices(self) -> list[tuple[Origin, Message]]:
        """What the supervisor waits for."""
        notices, self._notices = self._notices, []
        return notices

    @property
    def last_over(self) -> int:
        return self.participants.last_over

    @property
    def has_work(self) -> bool:
        """Whether a step would do something, though nothing arrives."""
        if self._is_ending or self._hold is not None:
            return False
        if self.reads.round is not None or self.joints.work is not None:
            return False
        waiting = self.waiting
        return self.batches.may_begin or (self._is_idle and bool(waiting.reads or waiting.joints))

    @property
    def is_holding(self) -> bool:
        """Whether nothing is under way, and nothing begins before `resume`."""
        return self._hold is not None and self._is_idle

    @property
    def is_waiting(self) -> bool:
        """Whether something may become overdue."""
        return bool(
            not self._is_idle or self.waiting.stalled or self.inquiries.open or self._hold
            or self.participants.unacknowledged
            or any(session.state not in (ATTACHED, DOWN) for session in self.sessions)
        )  # fmt: skip

    @property
    def owes_answers(self) -> bool:
        """Whether calls are not answered that may be, sooner or later."""
        return bool(self.callers.pending)

    @property
    def in_doubt(self) -> int:
        """Batches that are decided here and not yet known to be on disk in every partition, or not known here."""
        return len(self.participants.unacknowledged) + self.inquiries.in_doubt

    @property
    def counts(self) -> dict[str, int]:
        return {**self._counts, "calls": self.callers.done}

    # What can be done.

    def step(self, now_s: float) -> None:
        """Looks at what is overdue; begins the next batch, joint or round when nothing is in its way."""
        self.participants.now_s = now_s
        self._expire()
        if self._is_ending:
            self.waiting.turn_away(Unavailable(ENDING))
        elif self._hold is not None:
            self._look_at_hold()
        elif self._is_idle:
            self._begin()
        elif self.reads.round is None and self.joints.work is None and self.batches.may_begin:
            self.batches.begin()

    @property
    def _is_idle(self) -> bool:
        batches = self.batches
        return not (batches.borrowing or batches.committing or self.joints.work or self.reads.round)

    def _begin(self) -> None:
        """The kinds take turns, so that none of them starves."""
        kinds = self.joints.begin, self.reads.begin, self.batches.begin
        for place in range(self._turn, self._turn + len(kinds)):
            if kinds[place % len(kinds)]():
                self._turn = (place + 1) % len(kinds)
                return

    def _expire(self) -> None:
        for session in self.sessions:
            if session.is_overdue(self.participants.now_s):
                self._lose(session.partition)
        self.reads.expire()
        self.batches.expire()
        self.waiting.expire()
        self.inquiries.expire()

    def _look_at_hold(self) -> None:
        if self._hold is None:
            return
        snapshot, origin, until_s = self._hold
        if self.participants.now_s >= until_s:
            self._hold = None
        elif not self._hold_is_told and self._is_idle and self.participants.have_decided_all:
            self._hold_is_told = True
            self._notices.append((origin, BatchesHeld(snapshot)))

    # Sessions.

    def _reported(self, partition: int, report: Report) -> None:
        if isinstance(report, Lent):
            self.batches.lent(partition, report)
        elif isinstance(report, Vote):
            self.batches.voted(partition, report)
        elif isinstance(report, Decided):
            self.participants.decided(partition, report.batch)
        elif isinstance(report, ReadAnswer):
            self.reads.answered(partition, report)
        elif isinstance(report, Ran):
            self.joints.ran(partition, report)
        else:
            self.inquiries.recalled(partition, report)

    def _attached(self, partition: int, in_doubt: list[int]) -> None:
        """A session has begun. Raises Corruption."""
        self.participants.attached(partition, in_doubt, self.batches.live | self.joints.live)
        self.inquiries.attached(partition)
        self.waiting.attached()

    def _lose(self, partition: int) -> None:
        """The session is over, and a new one is tried."""
        self.sessions[partition].begin(self.participants.now_s)
        self._lost(partition)

    def _lost(self, partition: int) -> None:
        """Whatever the last session had not reported is unknown; everything unprepared there is given back."""
        self.inquiries.lost(partition)
        self.participants.lost(partition)
        self.reads.lost(partition)
        self.joints.lost(partition)
        self.batches.lost(partition)


def _not_callable(group: CallGroup, procedure: Procedure | None, known: Iterable[str]) -> UnknownProcedure:
    if procedure is None:
        return no_such(group.procedure, known)
    return UnknownProcedure(f"{group.procedure} is declared everywhere=True: use call_everywhere")
