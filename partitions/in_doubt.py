"""The batches that are in doubt: prepared here, and for the coordinator to decide.

    a batch that is   prepare                decide: commits             decide: does not       again, RETRY_S later
    not prepared      PREPARE; in doubt      –                           –                      –
    in doubt          (not asked for)        DECIDE; it is over          ABORT; it is over      –
                                             no room: without room
    without room      (same)                 as in doubt                 ABORT; it is over      as if decided again

    PREPARE    its changes are in the WAL; their keys are away, and their values in unique indexes reserved
    DECIDE     its changes, and what follows in views, are in the WAL and in the tables; all is here again
    ABORT      that too is in the WAL, before anything that follows; nothing was changed; all is here again

A batch stays in doubt through any crash: `Store.prepared` has it, from the WAL or the checkpoint's root. A decision
that finds no room is kept, and tried again; to forget what was prepared needs none.

What a batch had to hold before it may be prepared: partitions.loans.
"""

from __future__ import annotations

from math import inf

from partitions.batch_changes import Changes, changes_of, make_room, put, try_views
from partitions.batch_steps import BatchSteps
from partitions.executor import Executor
from partitions.store import Store
from partitions.wal import DECIDE, PREPARE
from voltpy.crash_point import crash_point
from voltpy.errors import Corruption, ProtocolError, ReadOnly
from voltpy.messages import TableChanges
from voltpy.record_log import DiskFull

RETRY_S = 0.1  # after a decision that found no room


class InDoubt:
    """`retry_s`: when decisions that found no room are tried again. All between two batches of calls only."""

    __slots__ = ("_batches", "_executor", "_steps", "_store", "_without_room", "retry_s")

    def __init__(self, store: Store, executor: Executor, steps: BatchSteps) -> None:
        self.retry_s = inf
        self._store = store
        self._executor = executor
        self._steps = steps
        self._batches: dict[int, list[Changes]] = {}  # Store.prepared, decoded
        # Batches whose decision found no room, and is tried again → whether this session waits for the word of it.
        self._without_room: dict[int, bool] = {}
        for batch, encoded in store.prepared.items():
            try:
                changes = changes_of(store, encoded)
            except ProtocolError as error:
                raise Corruption(f"batch {batch}, which is prepared: {error}") from None
            self._keep_away(batch, changes)

    def __contains__(self, batch: int) -> bool:
        return batch in self._batches

    def __len__(self) -> int:
        return len(self._batches)

    def prepare(self, batch: int, encoded: list[TableChanges], changes: list[Changes]) -> None:
        """From here on it is the coordinator's to decide. Raises ReadOnly or DiskFull for want of room.

        Also what views could not follow when it is decided, and NotHere for cold pages of theirs, or for what a
        recovery has left where there is no room before that is written.
        """
        try:
            make_room(self._store, changes)
        except ReadOnly:
            self._store.wait_for_left()
            raise
        try_views(self._store, changes, len(self._batches))
        crash_point("participant.prepare.before_append")
        self._steps.append(PREPARE, batch, encoded)
        crash_point("participant.prepare.appended")
        self._store.prepared[batch] = encoded
        self._keep_away(batch, changes)

    def decide(self, batch: int, commits: bool, now_s: float) -> bool:
        """Whether it is over, as is one that is not in doubt. False when there is no room: it is tried again.

        Raises NotHere for cold pages.
        """
        if batch not in self._batches:
            return True
        if not commits:
            self._abort(batch)
        elif not self._commit(batch, now_s):
            self._without_room[batch] = True
            return False
        return True

    def try_again(self, now_s: float) -> None:
        """Decisions that found no room, if it is time. Pages that are cold are waited for here and now.

        Raises OSError or Corruption when one can't be read.
        """
        if now_s < self.retry_s:
            return
        self.retry_s = inf
        for batch, is_waited_for in list(self._without_room.items()):
            if self._commit_at_once(batch, now_s) and is_waited_for:
                self._steps.to_tell(batch, now_s)

    def end_session(self) -> None:
        """Whoever has decided waits for the word no more."""
        self._without_room = dict.fromkeys(self._without_room, False)

    # Inside.

    def _keep_away(self, batch: int, changes: list[Changes]) -> None:
        """The keys of what is prepared are nobody's until it is decided."""
        self._batches[batch] = changes
        for table, keys, images, deleted in changes:
            table.send_all_away(keys)
            table.send_all_away(deleted)
            if table.lookups is not None:
                table.lookups.unique.reserve(keys, images)

    def _commit(self, batch: int, now_s: float) -> bool:
        """What is prepared counts from now on. False when there is no room."""
        try:
            derived = put(self._store, self._batches[batch], is_decided=True)
            crash_point("participant.decide.before_append")
            self._steps.append(DECIDE, batch, derived)
        except (ReadOnly, DiskFull):
            self._store.undo_batch()
            self.retry_s = now_s + RETRY_S
            return False
        crash_point("participant.decide.appended")
        self._store.apply()
        self._end(batch)
        crash_point("participant.decide.applied")
        return True

    def _commit_at_once(self, batch: int, now_s: float) -> bool:
        """The same, when no order waits for it."""
        misses, pool = self._store.misses, self._store.pool
        bring = misses.bring
        misses.bring = None if pool is None else pool.bring
        try:
            return self._commit(batch, now_s)
        finally:
            misses.bring = bring
            self._store.raise_if_failed()

    def _abort(self, batch: int) -> None:
        """What is prepared never happened. That needs no room: see partitions.batch_steps."""
        crash_point("participant.abort.before_append")
        self._steps.abort(batch)
        crash_point("participant.abort.appended")
        self._end(batch)

    def _end(self, batch: int) -> None:
        """It is decided: what it held is here again."""
        del self._store.prepared[batch]
        self._without_room.pop(batch, None)
        for table, keys, _, deleted in self._batches.pop(batch):
            if table.lookups is not None:
                table.lookups.unique.release(keys)
            self._executor.keys_arrived(table.number, keys + deleted if deleted else keys)
