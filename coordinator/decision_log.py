"""The decision log: what was decided about batches that several partitions prepared. A record log, owner N.

One record is one decision to commit, a MessagePack array; there is none for an abort, which is presumed:

    decision     = [batch, [partition, …], outcomes, forgotten]
    partition    = one that changes something, and must be told
    outcomes     = [[client id, [call number, …], [result, …]], …]     voltpy.messages.ReplyGroup
    forgotten    = LSN up to which records may be missing from now on

A record is valid when it decodes so, its batch is above that of the record before it and of no later epoch than its
segment. It is flushed before anybody hears of it. Nothing is written when a partition acknowledges: after a restart all
are asked what they are in doubt of, and one that is in doubt of nothing has acknowledged everything.

Records are forgotten, a segment at a time, when everybody has acknowledged them and their outcomes are so many bytes
back that no retry asks for them (voltpy.outcome_window). The first record that is left tells where the window begins.
That records may be missing is on disk before they are: otherwise one that is missing is damage.
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


class _Record(Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    batch: int
    participants: list[int]
    outcomes: Raw
    forgotten: int


class _Kept(Struct):
    """A record that has not been forgotten."""

    lsn: int
    batch: int
    bytes: int


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Record).decode


class DecisionLog:
    """`open`, which takes the directory's lock; `replay`; `begin`; then `write` and `acknowledged`; `close`."""

    def __init__(self, log: RecordLog, window_bytes: int = WINDOW_BYTES) -> None:
        self._log = log
        self._window_bytes = window_bytes
        self._kept: deque[_Kept] = deque()
        self._kept_bytes = 0
        self._unacknowledged: set[int] = set()
        self._forgotten = 0  # LSN up to which records may be missing

    @classmethod
    def open(
        cls, directory: Path, owner: int, *, segment_bytes: int = SEGMENT_BYTES, window_bytes: int = WINDOW_BYTES
    ) -> DecisionLog:
        """Raises ClusterError when another process holds the lock, Corruption."""
        return cls(RecordLog.open(directory, "decisions", owner, segment_bytes=segment_bytes), window_bytes)

    def replay(self) -> list[Decision]:
        """What was decided, in order. Raises Corruption."""
        decisions: list[Decision] = []
        before = self._log.first_lsn - 1
        for lsn, payload in self._log.replay(before):
            record = self._decoded(lsn, payload)
            if decisions and record.batch <= decisions[-1].batch:
                raise Corruption(f"decision {lsn} is about batch {record.batch}, after {decisions[-1].batch}")
            self._keep(lsn, record.batch, len(payload))
            self._forgotten = record.forgotten
            decisions.append(Decision(record.batch, record.participants, record.outcomes))
        if before > self._forgotten:
            raise Corruption(f"{self._log.directory}: decisions up to LSN {before} are missing")
        return decisions

    @property
    def reaches(self) -> int:
        """The outcomes of every batch above this one are in the log, as far as they are decided here."""
        return self._kept[0].batch - 1 if self._forgotten else 0

    def begin(self) -> int:
        """Makes what was replayed durable, raises the epoch, and returns it."""
        epoch = self._log.begin()
        last = self._kept[-1].batch if self._kept else 0
        if last >> BATCH_BITS >= epoch:
            raise Corruption(f"{self._log.directory}: a decision about batch {last} before epoch {epoch}")
        return epoch

    def write(self, decision: Decision) -> None:
        """The decision is on disk when this returns. Raises DiskFull: then it is not, and never will be; OSError."""
        forgotten = self._to_forget()
        payload = _encode(_Record(decision.batch, decision.participants, decision.outcomes, forgotten))
        crash_point("decision_log.write.before_append")
        lsn = self._log.append(payload)
        crash_point("decision_log.write.appended")
        self._log.flush()
        crash_point("decision_log.write.flushed")
        self._keep(lsn, decision.batch, len(payload))
        self._forget(forgotten)

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

    def _to_forget(self) -> int:
        """The LSN up to which no record is needed any more."""
        forgotten, kept_bytes = self._forgotten, self._kept_bytes
        for kept in self._kept:
            kept_bytes -= kept.bytes
            if kept_bytes < self._window_bytes or kept.batch in self._unacknowledged:
                break
            forgotten = kept.lsn
        return forgotten

    def _forget(self, lsn: int) -> None:
        """The record that says so is on disk."""
        self._forgotten = lsn
        while self._kept[0].lsn <= lsn:
            self._kept_bytes -= self._kept.popleft().bytes
        self._log.forget(lsn)

    def _decoded(self, lsn: int, payload: bytes) -> _Record:
        try:
            record = _decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Corruption(f"{self._log.directory}: record {lsn} is no decision: {error}") from None
        decoded_outcomes(bytes(record.outcomes), lsn)
        return record
