"""What the partitions remember of calls that may have been committed in one of them alone. Pure.

Two are in need of that: a batch whose only writer was lost after it was sent Commit, and a retry of a call whose first
attempt may have reached an earlier coordinator. Either waits until the partitions in question have answered, which
those that are down do when they are back, or until its time is up: then it stays indeterminate.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from coordinator.batch import Batch, batch_number
from coordinator.bodies import Call, Origin
from coordinator.callers import Callers
from coordinator.participants import ORDER_BYTES, Participants
from coordinator.session import ATTACHED
from coordinator.waiting import Waiting
from voltpy.call_error import call_error
from voltpy.errors import Error, Indeterminate, ProcedureTimeout, ProtocolError
from voltpy.messages import CallError, CallGroup, Recall, Recalled, ReplyGroup
from voltpy.outcome_window import OutcomeWindow
from voltpy.wire import joined

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


class Inquiries:
    """`runaways`: call ids of calls that took an earlier coordinator with them."""

    def __init__(
        self,
        waiting: Waiting,
        participants: Participants,
        callers: Callers,
        window: OutcomeWindow,
        runaways: Iterable[tuple[int, int]],
        counts: dict[str, int],
    ) -> None:
        self.open: list[Inquiry] = []
        self.counts = counts
        self._waiting = waiting
        self._participants = participants
        self._callers = callers
        self._window = window
        self._runaways = set(runaways)
        self._asked: list[deque[Inquiry]] = [deque() for _ in participants.sessions]  # Recalls that are not answered

    @property
    def in_doubt(self) -> int:
        """Batches of which it is not known whether they were committed."""
        return sum(inquiry.batch is not None for inquiry in self.open)

    def retry(self, origin: Origin, group: CallGroup, calls: list[Call]) -> None:
        """Answers retried calls with their first results; runs those that surely never ran."""
        callers = self._callers
        unknown: list[Call] = []
        for call in calls:
            call_id = call.client_id, call.number
            if call_id in callers.pending:
                callers.join(call_id, origin)
                continue
            if call_id in self._runaways:
                text = f"{call.procedure.name} could only be ended with the coordinator's process"
                callers.refuse(origin, call.client_id, [call.number], ProcedureTimeout(text))
                continue
            try:
                first = self._window.first_result(call.client_id, call.number, group.retry_floor)
            except Indeterminate as error:
                callers.refuse(origin, call.client_id, [call.number], error)
                continue
            self._window.retried(call.client_id, call.number)
            if isinstance(first, CallError):
                callers.answers_to(origin).errors.append(first)
            elif first is not None:
                callers.answers_to(origin).groups.append(ReplyGroup(call.client_id, [call.number], joined([first])))
            else:
                callers.pending[call_id] = call
                if group.retry_floor < batch_number(self._participants.epoch, 0) and not call.procedure.read_only:
                    unknown.append(call)  # an earlier coordinator may have had it committed in one partition
                else:
                    self._waiting.queue_of(call).add(call.client_id, (call,))
        if unknown:
            numbers = [call.number for call in unknown]
            partitions = self._participants.everywhere
            inquiry = Inquiry(group.client_id, numbers, partitions, self._until_s, group.retry_floor)
            inquiry.calls = unknown
            self._ask(inquiry)

    def ask_about(self, batch: Batch) -> None:
        """Its only writer was lost after it was told to commit it."""
        writer, call = batch.commit, batch.first_writer()
        if writer is not None and call is not None:
            inquiry = Inquiry(call.client_id, [call.number], writer.writers, self._until_s)
            inquiry.batch = batch
            self._ask(inquiry)

    @property
    def _until_s(self) -> float:
        return self._participants.now_s + IN_DOUBT_S

    def _ask(self, inquiry: Inquiry) -> None:
        self.open.append(inquiry)
        for partition in sorted(inquiry.awaited):
            self._recall(partition, inquiry)

    def _recall(self, partition: int, inquiry: Inquiry) -> None:
        if self._participants.sessions[partition].state == ATTACHED:
            self._asked[partition].append(inquiry)
            order = Recall(inquiry.client_id, inquiry.numbers)
            self._participants.order(partition, order, ORDER_BYTES + 9 * len(inquiry.numbers))

    def attached(self, partition: int) -> None:
        """A session has begun: the partition is asked what it could not be asked before."""
        for inquiry in self.open:
            if partition in inquiry.awaited:
                self._recall(partition, inquiry)

    def lost(self, partition: int) -> None:
        self._asked[partition].clear()

    def recalled(self, partition: int, recalled: Recalled) -> None:
        """A partition's answer. Raises ProtocolError for one to no question."""
        if not self._asked[partition]:
            raise ProtocolError("a partition recalled what it was not asked for")
        inquiry = self._asked[partition].popleft()
        if inquiry in self.open and inquiry.recalled(partition, recalled.results, recalled.reaches):
            self._close(inquiry, None)

    def expire(self) -> None:
        for inquiry in [inquiry for inquiry in self.open if inquiry.until_s <= self._participants.now_s]:
            self._close(inquiry, Indeterminate("a partition that may have committed the call alone is down"))

    def _close(self, inquiry: Inquiry, given_up: Error | None) -> None:
        """Everybody has answered; or it took too long."""
        self.open.remove(inquiry)
        if inquiry.batch is not None:
            self._close_batch(inquiry, inquiry.batch, given_up)
            return
        for call in inquiry.calls:
            result = inquiry.results.get(call.number)
            if result is not None:
                self._callers.recalled(call, bytes(result))
            elif given_up is not None:
                self._callers.give_up(call, given_up)
            elif inquiry.reaches > inquiry.floor:
                text = "the call was retried so late that its first outcome is no longer remembered"
                self._callers.give_up(call, Indeterminate(text))
            else:
                self._waiting.queue_of(call).add(call.client_id, (call,))

    def _close_batch(self, inquiry: Inquiry, batch: Batch, given_up: Error | None) -> None:
        if inquiry.results:
            self.counts["batches"] += 1
            # It was over before batches that are in the window by now: it goes beside them.
            self._window.remember([group for (_, _, wrote), group in batch.groups.items() if wrote])
            self._callers.answer(batch)
        elif given_up is None and batch.number > inquiry.reaches:
            self.counts["aborted_batches"] += 1
            self._waiting.put_in_front(batch.done)
        else:
            error = given_up or Indeterminate("the partition that may have committed it remembers no more of it")
            # Remembered: its retry must not run, as if it never had.
            self._window.remember([call_error(call.client_id, call.number, error) for call in batch.done])
            for call in batch.done:
                self._callers.give_up(call, error)
