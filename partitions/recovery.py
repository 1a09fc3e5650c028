"""A partition comes back: the last checkpoint, then every WAL record after it, in order.

Records are gathered and written in turns: of each turn only the last image of a key goes into a page. A torn tail has
been cut by the time the replay ends (voltpy.record_log); damage that is no torn tail stops it.
"""

from __future__ import annotations

from partitions.checkpoint import Checkpoint
from partitions.outcome_window import OutcomeWindow
from partitions.store import Store
from partitions.wal import Wal, decode_batch

TURN_IMAGES = 100_000
_NO_OUTCOMES = b"\x90"


def recover(wal: Wal, store: Store, checkpoint: Checkpoint) -> tuple[OutcomeWindow, int]:
    """Replays the WAL over the checkpoint, which the store holds. Raises Corruption.

    Returns the window of remembered outcomes, and how many changes were replayed.
    """
    window = OutcomeWindow(checkpoint.root.outcomes_reach)
    for lsn, outcomes in checkpoint.root.outcomes:
        window.add(lsn, outcomes)
    replayed = in_this_turn = gathered_bytes = 0
    for lsn, payload in wal.replay(checkpoint.lsn):
        batch = decode_batch(payload, lsn)
        outcomes = bytes(batch.outcomes)
        if outcomes != _NO_OUTCOMES:
            window.add(lsn, outcomes)
        in_this_turn += store.replay(batch, lsn)
        gathered_bytes += len(payload)
        # While there is little room, batches are written one by one, as they were: in a longer turn rows that came
        # would stand beside rows that went.
        if in_this_turn >= TURN_IMAGES or 4 * gathered_bytes > store.free_bytes:
            store.apply()
            replayed, in_this_turn, gathered_bytes = replayed + in_this_turn, 0, 0
    store.apply()
    return window, replayed + in_this_turn
