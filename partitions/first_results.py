"""What a retried call was answered the first time: in the batch under way, or in the batches before it.

The window (voltpy.outcome_window) knows the batches that are over. But a first attempt and its retry may meet in one
batch.
"""

from __future__ import annotations

import msgspec
from msgspec import Raw

from voltpy.messages import CallError, ReplyGroup
from voltpy.outcome_window import OutcomeWindow, Unlogged

_decode_raws = msgspec.msgpack.Decoder(list[Raw]).decode


class FirstResults:
    """`index` has the answers of the batch under way, by call id, as far as they have been looked through.

    It is made when a retry comes, and goes on where it left off: a client may retry thousands of calls at once, and a
    batch without retries must not pay for it.
    """

    __slots__ = ("_outcomes", "_unlogged", "_window", "index")

    def __init__(self, window: OutcomeWindow) -> None:
        self._window = window
        self.index: dict[tuple[int, int], bytes | CallError] = {}
        self._outcomes = self._unlogged = 0  # how many of each have been looked through

    def of(
        self, client_id: int, number: int, floor: int, outcomes: list[ReplyGroup], unlogged: list[Unlogged]
    ) -> bytes | CallError | None:
        """The call's encoded result, or its error; None if it surely has not taken effect, so that it may run now.

        `outcomes` and `unlogged` are the answers of the batch so far; `floor` is the retry's (see the window). Raises
        Indeterminate when the first attempt may have run so long ago that this is forgotten.
        """
        for group in outcomes[self._outcomes :]:
            self._add(group)
        for answer in unlogged[self._unlogged :]:
            if isinstance(answer, CallError):
                self.index[answer.client_id, answer.number] = answer
            else:
                self._add(answer)
        self._outcomes, self._unlogged = len(outcomes), len(unlogged)
        first = self.index.get((client_id, number))
        return self._window.first_result(client_id, number, floor) if first is None else first

    def begin_batch(self) -> None:
        """The next batch has no answers yet. Not needed where `index` is empty."""
        self.index = {}
        self._outcomes = self._unlogged = 0

    def _add(self, group: ReplyGroup) -> None:
        results = map(bytes, _decode_raws(group.results))
        self.index.update(zip([(group.client_id, number) for number in group.numbers], results, strict=True))
