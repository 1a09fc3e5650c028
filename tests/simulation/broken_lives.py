"""As tests.simulation.broken, where lives of one process meet: builds in which one does to another what it must not.

`python -m tests.simulation --broken NAME` runs such a build with `--lives`.
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from coordinator.bodies import Bodies
from coordinator.participants import Participants
from coordinator.transactions import Transactions
from partitions.executor import Executor
from partitions.order_session import OrderSession
from partitions.participant import Participant
from voltpy import record_log
from voltpy.messages import BatchesHeld
from voltpy.record_log import RecordLog, flush_directory
from voltpy.snapshot_holding import Snapshots
from voltpy.supervision import Supervision
from voltpy.timeout import Timeout
from voltpy.transaction import CallContext

Put = Callable[[Any, str, Any], None]


def _logs_are_not_locked(put: Put) -> None:
    """The lock of a file is the real one: simulated processes open the file for themselves, as real ones do."""
    put(record_log, "fcntl", SimpleNamespace(flock=lambda *_: None, LOCK_EX=fcntl.LOCK_EX, LOCK_NB=fcntl.LOCK_NB))


def _epochs_are_durable_with_the_first_record(put: Put) -> None:
    """By then others have heard of them. Until then the new segment may lose its name, and the epoch comes again."""
    begin, append = RecordLog.begin, RecordLog.append
    nameless: set[Path] = set()  # logs whose last segment is

    def begin_unflushed(log: Any) -> int:
        nameless.add(log.directory)
        return begin(log)

    def flush_unless_begun(directory: Path) -> None:
        if directory not in nameless:
            flush_directory(directory)

    def append_to_named(log: Any, payload: bytes) -> int:
        if log.directory in nameless:
            nameless.remove(log.directory)
            flush_directory(log.directory)
        return append(log, payload)

    put(RecordLog, "begin", begin_unflushed)
    put(record_log, "flush_directory", flush_unless_begun)
    put(RecordLog, "append", append_to_named)


def _the_dead_keep_what_was_lent(put: Put) -> None:
    """The supervisor's word that a coordinator is dead is not heeded."""
    put(Participant, "detach", lambda *_: None)


def _late_attaches_are_accepted(put: Put) -> None:
    """Of a coordinator that is dead, or of a session that is over, when a later one has begun."""
    put(OrderSession, "may_begin", lambda *_: True)


def _runaways_are_forgotten(put: Put) -> None:
    """Nobody is told which call has ended its process.

    Where the successor alone is not told, the simulation finds nothing: the topology that names the successor to a
    client names the runaway too, and the client does not send it again. That the successor refuses it all the same is
    what the first two tests of the rule are about.
    """
    real = Supervision.looked

    def looked(core: Any, number: int, beat: Any, now_s: float) -> None:
        real(core, number, beat, now_s)
        core.child(number).runaway = None
        core.runaways = []

    put(Supervision, "looked", looked)


def _runs_have_a_timeout_each(put: Put) -> None:
    put(Timeout, "_spend", lambda *_: 0.0)


def _exceptions_are_raised_anywhere(put: Put) -> None:
    for bodies in (Executor, Bodies):
        put(bodies, "may_be_interrupted", lambda *_: True)


def _runs_are_told_another_time(put: Put) -> None:
    real = CallContext.set_aside

    def set_aside(context: Any) -> None:
        real(context)

    put(CallContext, "set_aside", set_aside)


def _snapshots_are_cut_within_batches(put: Put) -> None:
    """The coordinator says at once that it has nothing under way, and goes on."""

    def hold(core: Any, origin: Any, message: Any, now_s: float) -> None:
        core._notices.append((origin, BatchesHeld(message.snapshot)))

    put(Transactions, "hold", hold)


def _snapshots_are_cut_before_decisions_are_known(put: Put) -> None:
    """The coordinator has decided, and not every partition has heard of it."""
    put(Participants, "have_decided_all", True)


def _batches_go_on_before_all_parts_are_cut(put: Put) -> None:
    """The coordinator goes on when the partitions have been asked for checkpoints, not when all have begun theirs."""
    real = Snapshots._ask_for_checkpoints

    def ask_for_checkpoints(snapshots: Any, snapshot: Any) -> None:
        real(snapshots, snapshot)
        snapshot.cut.resume()

    put(Snapshots, "_ask_for_checkpoints", ask_for_checkpoints)


LIVES_BROKEN: dict[str, Callable[[Put], None]] = {
    name[1:]: function
    for name, function in list(globals().items())
    if name.startswith("_") and callable(function) and getattr(function, "__module__", "") == __name__
}
