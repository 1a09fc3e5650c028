"""The decision log: what was decided about batches that several partitions prepared. A record log, owner N.

One record is one decision to commit, a MessagePack array; there is none for an abort, which is presumed:

    decision     = [batch, [partition, …], outcomes]
    partition    = one that changes something, and must be told
    outcomes     = [[client id, [call number, …], [result, …]], …]     voltpy.messages.ReplyGroup

A record is valid when it decodes so, its batch is above that of the record before it and of no later epoch than its
segment. It is flushed before anybody hears of it. Nothing is written when a partition acknowledges: after a restart all
are asked what they are in doubt of, and one that is in doubt of nothing has acknowledged everything.

Records are forgotten, a segment at a time, when everybody has acknowledged them and their outcomes are so many bytes
back that no retry asks for them (voltpy.outcome_window). The first record that is left tells where the window begins.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path

import msgspec
from msgspec import Raw, Struct

from voltpy.crash_point import crash_point
from voltpy.errors import Corruption
from voltpy.messages import BATCH_BITS
from voltpy.outcome_window import WINDOW_BYTES, decoded_outcomes
from voltpy.record_log import RecordLog

SEGMENT_BYTES = 16 << 20


class Decision(Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    """The batch is committed. `outcomes` stay encoded."""

    batch: int
    participants: list[int]
    outcomes: Raw


class _Kept(Struct):
    """A record that has not been forgotten."""

    lsn: int
    batch: int
    bytes: int


encode_decision = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Decision).decode


class DecisionLog:
    """`open`, which takes the directory's lock; `replay`; `begin`; then `write` and `acknowledged`; `close`."""

    def __init__(self, log: RecordLog, window_bytes: int = WINDOW_BYTES) -> None:
        self._log = log
        self._window_bytes = window_bytes
        self._kept: deque[_Kept] = deque()
        self._kept_bytes = 0
        self._unacknowledged: set[int] = set()

    @classmethod
    def open(
        cls, directory: Path, owner: int, *, segment_bytes: int = SEGMENT_BYTES, window_bytes: int = WINDOW_BYTES
    ) -> DecisionLog:
        """Raises ClusterError when another process holds the lock, Corruption."""
        return cls(RecordLog.open(directory, "decisions", owner, segment_bytes=segment_bytes), window_bytes)

    def replay(self) -> list[Decision]:
        """What was decided, in order. Raises Corruption."""
        decisions: list[Decision] = []
        for lsn, payload in self._log.replay():
            decision = self._decoded(lsn, payload)
            if decisions and decision.batch <= decisions[-1].batch:
                raise Corruption(f"decision {lsn} is about batch {decision.batch}, after {decisions[-1].batch}")
            self._keep(lsn, decision.batch, len(payload))
            decisions.append(decision)
        return decisions

    @property
    def reaches(self) -> int:
        """The outcomes of every batch above this one are in the log, as far as they are decided here."""
        if not self._kept or self._kept[0].lsn == 1:
            return 0
        return self._kept[0].batch - 1

    def begin(self) -> int:
        """Makes what was replayed durable, raises the epoch, and returns it."""
        epoch = self._log.begin()
        last = self._kept[-1].batch if self._kept else 0
        if last >> BATCH_BITS >= epoch:
            raise Corruption(f"{self._log.directory}: a decision about batch {last} before epoch {epoch}")
        return epoch

    def write(self, decision: Decision) -> None:
        """The decision is on disk when this returns. Raises DiskFull: then it is not, and never will be; OSError."""
        payload = encode_decision(decision)
        crash_point("decision_log.write.before_append")
        lsn = self._log.append(payload)
        crash_point("decision_log.write.appended")
        self._log.flush()
        crash_point("decision_log.write.flushed")
        self._keep(lsn, decision.batch, len(payload))
        self._forget()

    def acknowledged(self, batch: int) -> None:
        """Every participant has it on disk."""
        self._unacknowledged.discard(batch)

    def close(self) -> None:
        self._log.close()

    def abandon(self) -> None:
        """Lets go of it as a killed process does."""
        self._log.abandon()

    def _keep(self, lsn: int, batch: int, payload_bytes: int) -> None:
        self._kept.append(_Kept(lsn, batch, payload_bytes))
        self._kept_bytes += payload_bytes
        self._unacknowledged.add(batch)

    def _forget(self) -> None:
        kept = self._kept
        while len(kept) > 1 and self._kept_bytes - kept[0].bytes > self._window_bytes:
            if kept[0].batch in self._unacknowledged:
                break
            forgotten = kept.popleft()
            self._kept_bytes -= forgotten.bytes
            self._log.forget(forgotten.lsn)

    def _decoded(self, lsn: int, payload: bytes) -> Decision:
        try:
            decision = _decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Corruption(f"{self._log.directory}: record {lsn} is no decision: {error}") from None
        decoded_outcomes(bytes(decision.outcomes), lsn)
        return decision
