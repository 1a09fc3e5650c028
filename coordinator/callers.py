"""Who waits for an answer, and the answers that have not been sent yet. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from coordinator.batch import Batch, Joint
from coordinator.bodies import Call, Origin
from voltpy.answers import Answers
from voltpy.call_error import call_error
from voltpy.errors import Error
from voltpy.messages import CallError, ReplyGroup
from voltpy.outcome_window import OutcomeWindow, Unlogged
from voltpy.wire import joined


class Callers:
    """`pending`: the calls that are not answered, by call id, (client id, number). `done` counts those that are."""

    def __init__(self, window: OutcomeWindow) -> None:
        self.pending: dict[tuple[int, int], Call | Joint] = {}
        self.done = 0
        self._joins = 0  # calls that have come again while they were pending
        self._window = window
        self._answers: dict[Origin, Answers] = {}

    def answers_to(self, origin: Origin) -> Answers:
        answers = self._answers.get(origin)
        if answers is None:
            answers = self._answers[origin] = Answers([], [], {})
        return answers

    def take(self) -> dict[Origin, Answers]:
        """What is to be sent, by origin."""
        answers, self._answers = self._answers, {}
        return answers

    def join(self, call_id: tuple[int, int], origin: Origin) -> None:
        """A pending call has come again: whoever sent it last is answered."""
        call = self.pending[call_id]
        self.answers_to(call.origin).drop(call_id[0], 1)
        call.origin = origin
        self._joins += 1

    def refuse(self, origin: Origin, client_id: int, numbers: Iterable[int], error: Error) -> None:
        """Calls that are not pending get this error."""
        self.answers_to(origin).errors.extend(call_error(client_id, number, error) for number in numbers)

    def give_up(self, call: Call | Joint, error: Error | CallError) -> None:
        """The call is answered with an error; nothing of it happened, or that is what is not known."""
        del self.pending[call.client_id, call.number]
        answer = error if isinstance(error, CallError) else call_error(call.client_id, call.number, error)
        self.answers_to(call.origin).errors.append(answer)
        if answer.code != "Unavailable":  # after which a client may try again, under the same number
            self._window.remember([answer])
        self.done += 1

    def recalled(self, call: Call, result: bytes) -> None:
        """An earlier attempt of a pending call came to this."""
        del self.pending[call.client_id, call.number]
        self.answers_to(call.origin).groups.append(ReplyGroup(call.client_id, [call.number], joined([result])))

    def close(self, batch: Batch) -> None:
        """The batch's calls have run: their results are put together."""
        batch.close_groups(self._joins)

    def answer(self, batch: Batch) -> None:
        """The batch is over: everything in it may be told. What stands in no log is remembered."""
        unlogged: list[Unlogged] = []
        for (origin, _, wrote), group in batch.reply_groups(self._joins).items():
            self.answers_to(origin).groups.append(group)
            if not wrote:
                unlogged.append(group)
        pending = self.pending
        for call in batch.done:
            del pending[call.client_id, call.number]
            if call.error is not None:
                self.answers_to(call.origin).errors.append(call.error)
                unlogged.append(call.error)
        self.done += len(batch.done)
        if unlogged:
            self._window.remember(unlogged)

    def answer_reads(self, calls: list[Call], groups: Iterable[tuple[Origin, ReplyGroup]]) -> None:
        """These calls have read, and nothing else."""
        for origin, group in groups:
            self.answers_to(origin).groups.append(group)
        for call in calls:
            del self.pending[call.client_id, call.number]
            if call.error is not None:
                self.answers_to(call.origin).errors.append(call.error)
        self.done += len(calls)

    def answer_joint(self, joint: Joint, group: ReplyGroup) -> None:
        del self.pending[joint.client_id, joint.number]
        self.answers_to(joint.origin).groups.append(group)
        self.done += 1
