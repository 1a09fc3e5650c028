"""What a retried call is told: its first result, for a bounded window.

The window is the outcomes part of the last WAL batches, as bytes, so remembering costs the hot path nothing; recovery
refills it from the WAL. Only a retry looks inside. A retry names its *floor*: the partition's last LSN that its client
had heard of before the first attempt. If the call ran and wrote, its batch has a higher LSN. So

    in the window                        → the first result
    not in it, and it reaches the floor  → the call never wrote: it may run now
    not in it, but it begins above       → unknown: Indeterminate

Three things are remembered in memory only, since frames for an older incarnation are refused anyway (PROTOCOL rule 23):
errors, and results of calls that could have written and did not, because the client may be told of them after all, and
then the retry must not do what the first attempt did not; and the numbers of retried calls, because a first attempt
that arrives after its retry (through a router that has died since) must not run.
"""

from __future__ import annotations

from collections import deque

import msgspec
from msgspec import Raw

from voltpy.errors import Corruption, Indeterminate
from voltpy.messages import CallError, ReplyGroup

WINDOW_BYTES = 16 << 20
UNLOGGED_CALLS = 1 << 17  # answers that are in no WAL record
UNLOGGED_BYTES = 16 << 20
RETRIES_REMEMBERED = 1 << 16
CLIENTS_INDEXED = 64

_decode_outcomes = msgspec.msgpack.Decoder(list[ReplyGroup]).decode
_decode_results = msgspec.msgpack.Decoder(list[Raw]).decode


Unlogged = ReplyGroup | CallError


class OutcomeWindow:
    """Outcomes by LSN, and answers without one, bounded in bytes; retried calls, bounded in number."""

    __slots__ = (
        "_batches",
        "_batches_reach",
        "_bytes",
        "_indexed",
        "_last_lsn",
        "_limit_bytes",
        "_numbered",
        "_reaches",
        "_retried",
        "_retried_order",
        "_unlogged",
        "_unlogged_bytes",
        "_unlogged_calls",
        "_unlogged_indexed",
        "_unlogged_order",
        "_unlogged_reaches",
    )

    def __init__(self, lsn: int, limit_bytes: int = WINDOW_BYTES, batches_reach: int = 0) -> None:
        self._limit_bytes = limit_bytes
        self._numbered: deque[tuple[int, int]] = deque()  # (LSN, number) of the coordinator's batches among these
        self._batches_reach = batches_reach  # the highest number of those that have been forgotten
        self._batches: deque[tuple[int, bytes]] = deque()
        self._bytes = 0
        self._reaches = lsn  # outcomes of every batch after this LSN are here
        self._indexed: dict[int, tuple[int, dict[int, bytes]]] = {}  # client → (last LSN looked at, number → result)
        self._retried: set[tuple[int, int]] = set()
        self._retried_order: deque[tuple[int, int]] = deque()
        self._unlogged: dict[int, deque[Unlogged]] = {}  # by client
        self._unlogged_order: deque[tuple[int, int, int, int]] = (
            deque()
        )  # (client, calls, bytes, LSN), the oldest first
        self._unlogged_calls = self._unlogged_bytes = 0
        self._last_lsn = lsn
        self._unlogged_reaches = -1  # some answer that was given when this was the last LSN has been forgotten
        self._unlogged_indexed: dict[int, dict[int, bytes | CallError]] = {}  # client → number → answer, while it lasts

    def add(self, lsn: int, outcomes: bytes, number: int = 0) -> None:
        """Remembers a batch: its outcomes as they stand in the WAL, a MessagePack array of ReplyGroups.

        `number`: by which the coordinator knows it, if it is one of its own.
        """
        self._last_lsn = lsn
        self._batches.append((lsn, outcomes))
        if number:
            self._numbered.append((lsn, number))
        self._bytes += len(outcomes) + 100
        while self._bytes > self._limit_bytes:
            self._reaches, forgotten = self._batches.popleft()
            self._bytes -= len(forgotten) + 100
            self._indexed.clear()
        while self._numbered and self._numbered[0][0] <= self._reaches:
            self._batches_reach = max(self._batches_reach, self._numbered.popleft()[1])

    def recalled(self, client_id: int, numbers: list[int]) -> dict[int, bytes]:
        """Encoded results of those of a client's calls whose outcomes are here."""
        results = self._results_of(client_id)
        return {number: results[number] for number in numbers if number in results}

    @property
    def batches(self) -> tuple[int, list[tuple[int, int]]]:
        """(the highest number of the coordinator's batches that have been forgotten, (LSN, number) of the others)."""
        return self._batches_reach, list(self._numbered)

    @property
    def remembered(self) -> tuple[int, list[tuple[int, bytes]]]:
        """(LSN after which nothing has been forgotten, the batches with their LSNs): what `add` was given."""
        return self._reaches, list(self._batches)

    def remember(self, answers: list[Unlogged]) -> None:
        """Remembers a batch's answers that are not among its outcomes."""
        self._unlogged_indexed.clear()
        for answer in answers:
            if isinstance(answer, CallError):
                calls, size = 1, 100 + len(answer.message) + len(answer.traceback_text)
            else:
                calls, size = len(answer.numbers), 100 + memoryview(answer.results).nbytes
            self._unlogged.setdefault(answer.client_id, deque()).append(answer)
            self._unlogged_order.append((answer.client_id, calls, size, self._last_lsn))
            self._unlogged_calls += calls
            self._unlogged_bytes += size
        while self._unlogged_calls > UNLOGGED_CALLS or self._unlogged_bytes > UNLOGGED_BYTES:
            client_id, calls, size, self._unlogged_reaches = self._unlogged_order.popleft()
            self._unlogged_calls -= calls
            self._unlogged_bytes -= size
            of_client = self._unlogged[client_id]
            of_client.popleft()
            if not of_client:
                del self._unlogged[client_id]

    def first_result(self, client_id: int, number: int, floor: int) -> bytes | CallError | None:
        """The encoded result of the call, or its error; None if it surely wrote nothing. Raises Indeterminate."""
        result: bytes | CallError | None = self._results_of(client_id).get(number)
        if result is None:
            result = self._unlogged_of(client_id).get(number)
        if result is None and (floor < self._reaches or floor <= self._unlogged_reaches):
            raise Indeterminate("the call was retried so late that its first outcome is no longer remembered")
        return result

    def retried(self, client_id: int, number: int) -> None:
        """A retry has been handled: its first attempt must not run if it arrives now."""
        call_id = (client_id, number)
        if call_id not in self._retried:
            self._retried.add(call_id)
            self._retried_order.append(call_id)
            if len(self._retried_order) > RETRIES_REMEMBERED:
                self._retried.discard(self._retried_order.popleft())

    def overtaken(self, client_id: int, numbers: list[int]) -> set[int]:
        """Those of these first attempts whose retry has been here already."""
        if not self._retried:
            return set()
        return {number for number in numbers if (client_id, number) in self._retried}

    def _unlogged_of(self, client_id: int) -> dict[int, bytes | CallError]:
        answers = self._unlogged_indexed.get(client_id)
        if answers is None:
            answers = self._unlogged_indexed[client_id] = {}
            for answer in self._unlogged.get(client_id, ()):
                if isinstance(answer, CallError):
                    answers[answer.number] = answer
                else:
                    answers.update(zip(answer.numbers, map(bytes, _decode_results(answer.results)), strict=True))
        return answers

    def _results_of(self, client_id: int) -> dict[int, bytes]:
        looked_at, results = self._indexed.get(client_id, (-1, {}))
        # The newest first: the window may hold 100,000 batches, and a crash is followed by thousands of retries.
        for lsn, outcomes in reversed(self._batches):
            if lsn <= looked_at:
                break
            for group in decoded_outcomes(outcomes, lsn):
                if group.client_id == client_id:
                    results.update(_results(group, lsn))
        if client_id not in self._indexed and len(self._indexed) >= CLIENTS_INDEXED:
            del self._indexed[next(iter(self._indexed))]  # the first that came
        if self._batches:
            self._indexed[client_id] = (self._batches[-1][0], results)
        return results


def _results(group: ReplyGroup, lsn: int) -> dict[int, bytes]:
    """The encoded results of a group, by call number."""
    try:
        return dict(zip(group.numbers, map(bytes, _decode_results(group.results)), strict=True))
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
        raise Corruption(f"WAL record {lsn}: the outcomes do not decode: {error}") from None


def decoded_outcomes(outcomes: bytes, lsn: int) -> list[ReplyGroup]:
    """Raises Corruption for bytes that are no outcomes."""
    try:
        return _decode_outcomes(outcomes)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Corruption(f"WAL record {lsn}: the outcomes do not decode: {error}") from None
