"""The steps of the coordinator's batches in the WAL, and the decisions that it is still to be told are on disk.

    step       record                                            what is told, and when
    PREPARE    what the batch is to change                       a Vote or Ran, once the record is on disk
    COMMIT     what it changes, with the outcomes of its calls   the same
    DECIDE     what it changes in views beside                   Decided, once that is on disk, which nobody waits for
    ABORT      nothing                                           the same

    decided, `to_tell` ──► untold ── flushed ──► told: `take_flushed` hands them out
                             │ DECIDED_S after the first one: flushed for their own sake

An ABORT for which there is no room is owed. Its keys and values are others' again, and what these write must not come
into the WAL before it: a recovery would find the batch in doubt, beside rows that took its place.

A decision rides on the flush of what comes next. Other reports need not wait for the decisions before them, which
the coordinator has on disk (or presumes): after a crash it would decide the same.

Pure: the WAL is whoever appends to it, and whoever flushes it says how far.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from math import inf

from msgspec import Raw

from partitions.wal import ABORT, DECIDE, NO_OUTCOMES, Record, Step, encode_batch
from voltpy.errors import ReadOnly
from voltpy.messages import Decided, TableChanges
from voltpy.record_log import DiskFull

DECIDED_S = 0.05


class BatchSteps:
    """`append_record` returns its LSN; it raises DiskFull, or ReadOnly for what is too large."""

    __slots__ = ("_append_record", "_owed", "_run", "_untold", "due_s")

    def __init__(self, append_record: Callable[[bytes], int]) -> None:
        self.due_s = inf  # when the decisions that are untold must be flushed
        self._append_record = append_record
        self._untold: list[Decided] = []
        self._run = 0, 0  # (first, last) LSN of the last run of decisions in the WAL
        self._owed: list[int] = []  # batches that have been aborted without a record

    def append(self, kind: int, batch: int, changes: list[TableChanges], outcomes: bytes = NO_OUTCOMES) -> int:
        """The LSN of the step. Raises DiskFull, or ReadOnly."""
        self.record_aborts()
        return self._record(kind, batch, changes, outcomes)

    def abort(self, batch: int) -> None:
        """Nothing of the batch happened: that is recorded now, or else before anything that comes into the WAL."""
        self._owed.append(batch)
        with suppress(DiskFull, ReadOnly):
            self.record_aborts()

    def record_aborts(self) -> None:
        """To be called before anything is appended. Raises DiskFull, or ReadOnly: then nothing may be."""
        while self._owed:
            self._record(ABORT, self._owed[0], [])
            del self._owed[0]

    def _record(self, kind: int, batch: int, changes: list[TableChanges], outcomes: bytes = NO_OUTCOMES) -> int:
        lsn = self._append_record(encode_batch(Record(Raw(outcomes), changes, Step(kind, batch))))
        if kind in (DECIDE, ABORT):
            first, last = self._run
            self._run = first if last == lsn - 1 else lsn, lsn
        return lsn

    def to_tell(self, batch: int, now_s: float) -> None:
        """It is decided: that is told once it is on disk, also where it was long ago, and the word was lost."""
        if not self._untold:
            self.due_s = now_s + DECIDED_S
        self._untold.append(Decided(batch))

    def rests_on(self, written_lsn: int, now_s: float) -> int:
        """Up to where the WAL must be flushed before what is reported now may leave."""
        first, last = self._run
        return written_lsn if last != written_lsn or now_s >= self.due_s else first - 1

    def take_flushed(self, lsn: float) -> list[Decided]:
        """What may be told, once the WAL is flushed up to this LSN; it is untold no more."""
        if not self._untold or lsn < self._run[1]:
            return []
        untold = self._untold
        self.forget_untold()
        return untold

    def forget_untold(self) -> None:
        """Nobody is there to be told."""
        self._untold = []
        self.due_s = inf
