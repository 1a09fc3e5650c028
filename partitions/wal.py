"""The write-ahead log of one partition: a record log of batches, and when each of them counts as durable.

One record is one batch: everything that calls changed between two appends, as after-images, with their results. It is a
MessagePack array, so that results, rows and keys go in as they were encoded for the reply and the heap:

    batch    = [outcomes, changes]                                 what calls did here
             | [outcomes, changes, [step, number]]                 a step of a batch of the coordinator's
    outcomes = [[client id, [call number, …], [result, …]], …]     voltpy.messages.ReplyGroup
    changes  = [[table, [image, …], [key, …]], …]                  one element a table that changed
    table    = its position in the schema
    image    = bin: the row, a MessagePack array in column order   it replaces the row with its primary key
    key      = bin: the primary key, MessagePack                   its row is deleted

A batch is applied whole or not at all, and each key occurs once in it: a batch holds what its calls left behind.

    step        outcomes   changes                  what it means for what comes after
    1 prepare   none       of that batch, here      they do not count yet; their keys are locked until 2, 3 or for ever
    2 decide    none       none                     what that batch has prepared counts from here on
    3 abort     none       none                     it never will; without this record it need not either
    4 commit    of calls   of that batch, here      they count at once: the batch changes nothing anywhere else

Records of steps are flushed before anyone hears of them, whatever the mode is: `flushed_lsn`, not `durable_lsn`.

    --fsync     replies may leave when                 flushed
    always      their record is flushed                after each batch
    everysec    their record is written                in the background, once a second
    never       their record is written                when a segment is finished, and at the end

At most one flush runs in the background; what is appended meanwhile is covered by the next one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Raw, Struct

from partitions.flusher import Flusher
from voltpy.crash_point import crash_point
from voltpy.errors import ClusterError, Corruption
from voltpy.messages import TableChanges
from voltpy.record_log import SEGMENT_BYTES, RecordLog

FSYNC_MODES = ("always", "everysec", "never")
FLUSH_INTERVAL_S = 1.0  # of everysec


class Batch(Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    """`outcomes` stay encoded: only a retried call ever looks inside (voltpy.outcome_window)."""

    outcomes: Raw
    changes: list[TableChanges]


PREPARE, DECIDE, ABORT, COMMIT = 1, 2, 3, 4


class Step(Struct, array_like=True, forbid_unknown_fields=True, frozen=True, gc=False):
    """Of a batch of the coordinator's, by its number."""

    kind: Annotated[int, Meta(ge=PREPARE, le=COMMIT)]
    number: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]


class Record(Batch, array_like=True, forbid_unknown_fields=True, gc=False):
    """A batch as it is read: with a step or, as most are, without."""

    step: Step | None = None


NO_OUTCOMES = b"\x90"

encode_batch = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Record).decode


def decode_batch(payload: bytes, lsn: int | None = None) -> Record:
    """The batch in a record. Raises Corruption for bytes that are none, naming the LSN."""
    try:
        return _decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Corruption(f"WAL record {'' if lsn is None else lsn}: not a batch: {error}") from None


class Wal:
    """`open`, then `replay` to its end, then `begin`, then `append` and a kind of flush, then `close`.

    `append` raises voltpy.record_log.DiskFull and leaves the WAL as it was. Any OSError from any method means that the
    process must end: what is on disk is known again only after a restart.
    """

    def __init__(self, log: RecordLog, fsync: str) -> None:
        self._log = log
        self._flusher = Flusher()
        self._replies_wait = fsync == "always"
        self._flushes_by_the_clock = fsync == "everysec"
        self._flush_running = False
        self._flush_lsn = 0  # covered by the flush that is running
        self._flush_due_s: float | None = None
        self.appended_bytes = 0  # payloads, those replayed included
        self.flushed_in: Callable[[float], None] = lambda _: None  # told how long each flush took, in seconds
        self._flush_began_s = 0.0

    @classmethod
    def open(cls, directory: Path, partition: int, fsync: str, segment_bytes: int = SEGMENT_BYTES) -> Wal:
        """Takes the directory's lock. Raises ClusterError when it is held or the mode is unknown, Corruption."""
        if fsync not in FSYNC_MODES:
            raise ClusterError(f"--fsync {fsync}: one of {', '.join(FSYNC_MODES)} was expected")
        return cls(RecordLog.open(directory, "wal", partition, segment_bytes=segment_bytes), fsync)

    def replay(self, after_lsn: int = 0) -> Iterator[tuple[int, bytes]]:
        """Every record after an LSN as (LSN, payload), in order. Raises Corruption."""
        for lsn, payload in self._log.replay(after_lsn):
            self.appended_bytes += len(payload)
            yield lsn, payload

    def begin(self) -> int:
        """Makes what was replayed durable, whatever the mode is, and raises the epoch, which it returns.

        To be called before the process is pinned to a core: the flusher's thread is born here.
        """
        epoch = self._log.begin()
        self._flusher.start(self._log.fd)
        self._flusher.wait()
        return epoch

    def flush_replayed(self) -> None:
        """During replay: what is in the files is durable from now on, whoever wrote it."""
        self._log.flush_replayed()

    @property
    def epoch(self) -> int:
        return self._log.epoch

    @property
    def written_lsn(self) -> int:
        return self._log.written_lsn

    @property
    def flushed_lsn(self) -> int:
        return self._log.flushed_lsn

    @property
    def durable_lsn(self) -> int:
        """Replies that rest on records up to this one may leave."""
        return self._log.flushed_lsn if self._replies_wait else self._log.written_lsn

    @property
    def torn_tail(self) -> tuple[Path, int] | None:
        """File and offset where `replay` found a torn tail."""
        return self._log.torn_tail

    @property
    def flush_running(self) -> bool:
        return self._flush_running

    def append(self, payload: bytes) -> int:
        """Writes one record and returns its LSN."""
        if self._flush_running and not self._log.fits(len(payload)):
            self.wait_flush()
        lsn = self._log.append(payload)
        self.appended_bytes += len(payload)
        return lsn

    def forget(self, lsn: int) -> None:
        """Records up to this LSN are not needed any more: their segments go, once nothing else is in them."""
        self._log.forget(lsn)

    def flush(self) -> None:
        """Makes everything that is written durable, here and now."""
        if self._flush_running:
            self.wait_flush()
        began_s = time.monotonic()
        self._log.flush()
        self.flushed_in(time.monotonic() - began_s)

    def start_flush(self) -> None:
        """Begins to flush in the background what is written so far, unless a flush runs or none is needed."""
        if self._flush_running or self._log.flushed_lsn == self._log.written_lsn:
            return
        self._flush_lsn = self._log.flush_started()
        self._flush_running = True
        self._flush_began_s = time.monotonic()
        crash_point("wal.start_flush.before")
        try:
            self._flusher.start(self._log.fd)
        except OSError:
            self._flush_failed()
            raise
        crash_point("wal.start_flush.after")

    def poll_flush(self) -> bool:
        """Whether no flush is running in the background (any more)."""
        if not self._flush_running:
            return True
        try:
            is_done = self._flusher.done()
        except OSError:
            self._flush_failed()
            raise
        if is_done:
            self._finish_flush()
        return is_done

    def wait_flush(self) -> None:
        """Waits for the flush that is running in the background."""
        if not self._flush_running:
            return
        try:
            self._flusher.wait()
        except OSError:
            self._flush_failed()
            raise
        self._finish_flush()

    def _finish_flush(self) -> None:
        crash_point("wal.finish_flush.before")
        self._flush_running = False
        self._log.mark_flushed(self._flush_lsn)
        self.flushed_in(time.monotonic() - self._flush_began_s)
        crash_point("wal.finish_flush.after")

    def _flush_failed(self) -> None:
        self._flush_running = False
        self._log.flush_failed()

    def tick(self, now_s: float) -> None:
        """To be called between batches, at least once a second, with a monotonic clock: everysec flushes here."""
        if not self._flushes_by_the_clock or not self.poll_flush():
            return
        if self._log.flushed_lsn == self._log.written_lsn:
            self._flush_due_s = None
        elif self._flush_due_s is None:
            self._flush_due_s = now_s + FLUSH_INTERVAL_S
        elif now_s >= self._flush_due_s:
            self.start_flush()
            self._flush_due_s = now_s + FLUSH_INTERVAL_S

    def close(self) -> None:
        """Flushes, marks the WAL as stopped cleanly, and lets go of it."""
        try:
            self.wait_flush()
        finally:
            self._log.close()

    def abandon(self) -> None:
        """Lets go of the WAL as a killed process does."""
        try:
            self.wait_flush()  # it uses memory and a file of ours
        finally:
            self._log.abandon()
