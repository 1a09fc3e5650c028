"""Replies on their way to where the calls came from, and the frames that carry them. No sockets here."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from msgspec import Raw, Struct

from voltpy.messages import MAX_FRAME_BYTES, CallError, Replies, ReplyGroup
from voltpy.wire import joined

ERRORS_A_FRAME = 256  # see MAX_TRACEBACK_CHARACTERS
MAX_RESULT_BYTES = 1 << 20  # of one call
LARGE_RESULT_BYTES = 1 << 12
LARGE_RESULTS_A_BATCH_BYTES = 64 << 20
REPLY_BYTES = MAX_FRAME_BYTES // 4  # a reply frame is closed once it holds so much

_decode_raws = msgspec.msgpack.Decoder(list[Raw]).decode


class Answers(Struct):
    """Replies for one origin. `dropped` calls, counted by client id, get none: a retry overtook them, or was first."""

    groups: list[ReplyGroup]
    errors: list[CallError]
    dropped: dict[int, int] = {}

    def drop(self, client_id: int, calls: int) -> None:
        self.dropped[client_id] = self.dropped.get(client_id, 0) + calls

    def add(self, others: Answers) -> None:
        self.groups.extend(others.groups)
        self.errors.extend(others.errors)
        for client_id, calls in others.dropped.items():
            self.drop(client_id, calls)

    @property
    def calls(self) -> int:
        """How many are answered."""
        return len(self.errors) + sum([len(group.numbers) for group in self.groups])

    def frames(self, partition: int, incarnation: int, lsn: int) -> Iterator[Replies]:
        """One batch's replies, in as many frames as their size asks for; none when nothing is answered."""
        if len(self.groups) == 1 and not self.errors and len(self.groups[0].results) <= REPLY_BYTES:
            yield Replies(partition, incarnation, lsn, self.groups, [])  # the usual case
            return
        groups: list[ReplyGroup] = []
        frame_bytes = 0
        for group in pieces(self.groups):
            group_bytes = len(group.results)
            if groups and frame_bytes + group_bytes > REPLY_BYTES:
                yield Replies(partition, incarnation, lsn, groups, [])
                groups, frame_bytes = [], 0
            groups.append(group)
            frame_bytes += group_bytes
        errors = self.errors
        while len(errors) > ERRORS_A_FRAME:
            yield Replies(partition, incarnation, lsn, [], errors[:ERRORS_A_FRAME])
            errors = errors[ERRORS_A_FRAME:]
        if groups or errors:
            yield Replies(partition, incarnation, lsn, groups, errors)


def pieces(groups: list[ReplyGroup]) -> Iterator[ReplyGroup]:
    """The same results, in groups of about REPLY_BYTES at most: no client takes a frame past MAX_FRAME_BYTES."""
    for group in groups:
        if len(group.results) <= REPLY_BYTES:
            yield group
            continue
        numbers: list[int] = []
        results: list[bytes] = []
        size = 0
        for number, result in zip(group.numbers, map(bytes, _decode_raws(group.results)), strict=True):
            if numbers and size + len(result) > REPLY_BYTES:
                yield ReplyGroup(group.client_id, numbers, joined(results))
                numbers, results, size = [], [], 0
            numbers.append(number)
            results.append(result)
            size += len(result)
        yield ReplyGroup(group.client_id, numbers, joined(results))
