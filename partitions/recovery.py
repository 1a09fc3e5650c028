"""A partition comes back: the last checkpoint, then every WAL record after it, in order.

Records are gathered and written in turns, as long as memory allows (Store.turn_is_full): of each turn only the last
image of a key goes into a page. Most pages are cold: one at a time, records would come at 14,000 a second. So a turn
goes through the page file once, in long runs of pages, and changes those that have come while the next ones are read.
Of the last turn, what is about cold pages may be left until calls are served (partitions.redo). A torn tail has been
cut by the time the replay ends (voltpy.record_log); damage that is no torn tail stops it.

What was prepared for a batch of the coordinator's, and not decided, is in `Store.prepared` afterwards: see
partitions.in_doubt, which keeps its keys from everybody until the decision is known.
"""

from __future__ import annotations

from partitions.checkpoint import Checkpoint
from partitions.checkpointer import Checkpointer
from partitions.store import Store
from partitions.wal import COMMIT, NO_OUTCOMES, Wal, decode_batch
from voltpy.crash_point import crash_point
from voltpy.outcome_window import OutcomeWindow


def recover(
    wal: Wal,
    store: Store,
    checkpoint: Checkpoint,
    window: OutcomeWindow,
    checkpointer: Checkpointer,
    *,
    leaves_cold: bool = False,
) -> int:
    """Replays the WAL over the checkpoint, which the store holds. Raises Corruption. How many changes were replayed.

    `leaves_cold`: what is left then is for a Redo to write. Where more pages have changed than there is memory for,
    checkpoints are made on the way.
    """
    pool = store.pool
    store.misses.bring = None if pool is None else pool.bring
    store.catch_up_indexes()
    root = checkpoint.root
    batches = dict(root.batches)
    for lsn, outcomes in root.outcomes:
        window.add(lsn, outcomes, batches.get(lsn, 0))
    store.take_prepared(root.prepared)
    replayed = 0
    lsn = checkpoint.lsn
    for lsn, payload in wal.replay(checkpoint.lsn):
        batch = decode_batch(payload, lsn)
        outcomes = bytes(batch.outcomes)
        step = batch.step
        if outcomes != NO_OUTCOMES:
            window.add(lsn, outcomes, step.number if step is not None and step.kind == COMMIT else 0)
        replayed += store.replay(batch, lsn)
        if store.turn_is_full:
            store.apply_turn()
            crash_point("recovery.turn.applied")
            if pool is not None and pool.must_clean:
                checkpointer.make(lsn)
                crash_point("recovery.checkpoint")
    store.apply_turn(leaves_cold=leaves_cold and pool is not None)
    store.rebuild_indexes()
    for _ in store.build_views():
        if pool is not None and pool.must_clean:
            checkpointer.make(lsn)
    store.try_prepared()
    store.misses.bring = None
    return replayed
