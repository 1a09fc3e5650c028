"""Named places at which a process can be told to kill itself, so that what a crash there leaves behind can be tested.

The environment variable VOLTPY_CRASH_POINT=<name>[:<n>] arms one point for the whole process: its n-th passage (the
first if n is absent) ends the process with SIGKILL, as `kill -9` would: no `finally` runs, nothing is flushed. Its last
words on stderr are "crash point <name>". When the variable is not set, a passage is a call of an empty function (about
0.03 µs).

In a cluster the variable names a directory instead (a value with a slash in it): a process that is born and finds a
file of its own name there, `supervisor`, `router` or `partition-<i>`, deletes it and takes its content as the value. So
one life of one process is armed, and the next one is not, unless the file is there again. The supervisor tells its
children their names in VOLTPY_PROCESS.

    crash_point(name)     dies here when it is this point's turn
    doomed(name)          True when it is: for a caller that first does half of its step, and then calls `die()`
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import NoReturn

VARIABLE = "VOLTPY_CRASH_POINT"
PROCESS = "VOLTPY_PROCESS"

CRASH_POINTS: tuple[str, ...] = (
    # Appending a record
    "record_log.append.before_write",
    "record_log.append.half_written",
    "record_log.append.after_write",
    # Flushing inline
    "record_log.flush.before_fsync",
    "record_log.flush.after_fsync",
    # The next segment, when a record does not fit
    "record_log.rotate.before_allocate",
    "record_log.rotate.allocated",
    "record_log.rotate.old_flushed",
    "record_log.rotate.old_trimmed",
    # A segment comes into being: at a start and at each rotation
    "record_log.segment.header_written",
    "record_log.segment.header_flushed",
    "record_log.segment.renamed",
    "record_log.segment.directory_flushed",
    # A start: the tail is settled, the epoch is raised
    "record_log.begin.replayed",
    "record_log.begin.tail_rewritten",
    "record_log.begin.tail_cut",
    "record_log.begin.tail_flushed",
    "record_log.begin.epoch_raised",
    # A clean stop
    "record_log.close.flushed",
    "record_log.close.marked",
    "record_log.close.trimmed",
    # Flushing beside execution
    "wal.start_flush.before",
    "wal.start_flush.after",
    "wal.finish_flush.before",
    "wal.finish_flush.after",
    # A checkpoint, in the order of its steps
    "checkpoint.begun",
    "page_file.write.before",
    "page_file.write.part_written",
    "checkpoint.pages.written",
    "checkpoint.pages.flushed",
    "checkpoint.run.written",
    "checkpoint.image.written",
    "checkpoint.root.written",
    "checkpoint.root.flushed",
    "checkpoint.root.renamed",
    "checkpoint.places.settled",
    "checkpoint.files.removed",
    "checkpoint.wal.shortened",
    # A checkpoint is kept for a snapshot, and let go
    "hold.kept",
    "hold.dropped",
    # A snapshot: who takes it, and who copies for it
    "snapshot.claimed",
    "snapshot.held",
    "copier.pages.copied",
    "copier.partition.copied",
    "snapshot.copied",
    "snapshot.released",
    "snapshot.complete",
    # A snapshot is restored
    "restore.begun",
    "restore.file.copied",
    "restore.partition.copied",
    "restore.filled",
    "restore.complete",
    "checkpoint.clean_some.cleaned",
    # Pages leave memory, and come back
    "buffer_pool.evict",
    "buffer_pool.read.started",
    "buffer_pool.read.taken_in",
    "buffer_pool.run.taken_in",
    "buffer_pool.bring",
    # A recovery in turns, with checkpoints on the way
    "recovery.turn.applied",
    "recovery.checkpoint",
    # What it has left is written while calls are served
    "buffer_pool.ahead.taken_in",
    "redo.written",
    "redo.over",
    # A partition starts and stops
    "partition.start.registry_read",
    "partition.start.wal_opened",
    "partition.start.recovered",
    "partition.start.bound",
    "partition.stop.served",
    "partition.stop.socket_closed",
    # The steps of a batch
    "server.drain.received",
    "server.execute.ran",
    "server.append.appended",
    "server.append.applied",
    "server.reply.before",
    "server.reply.half_sent",
    "server.reply.after",
    # What the coordinator borrows of a partition, and has done there
    "participant.attached",
    "participant.lent",
    "participant.expired",
    "participant.read",
    "participant.prepare.before_append",
    "participant.prepare.appended",
    "participant.decide.before_append",
    "participant.decide.appended",
    "participant.decide.applied",
    "participant.abort.before_append",
    "participant.abort.appended",
    "participant.commit.before_append",
    "participant.commit.appended",
    "participant.commit.applied",
    "server.report.before_flush",
    "server.report.before",
    "server.report.sent",
    # New procedures and a new schema, at a partition
    "schema_change.index_built",
    "schema_change.view_built",
    "schema_change.switched",
    "server.load.prepared",
    "server.load.switched",
    # The router: calls on their way there and back
    "router.start.bound",
    "router.calls.received",
    "router.calls.before_forward",
    "router.calls.forwarded",
    "router.replies.received",
    "router.replies.before_send",
    "router.replies.sent",
    "router.topology.received",
    "router.topology.adopted",
    # The coordinator: a start, new procedures, calls, orders to the partitions, the decision log, replies
    "coordinator.start.replayed",
    "coordinator.start.bound",
    "coordinator.load.prepared",
    "coordinator.load.switched",
    "coordinator.door.received",
    "coordinator.borrow.before_send",
    "coordinator.borrow.sent",
    "coordinator.prepare.before_send",
    "coordinator.prepare.sent",
    "coordinator.commit.before_send",
    "coordinator.commit.sent",
    "coordinator.run_directed.before_send",
    "coordinator.run_directed.sent",
    "coordinator.read.before_send",
    "coordinator.read.sent",
    "decision_log.write.before_append",
    "decision_log.write.appended",
    "decision_log.write.flushed",
    "coordinator.reply.before",
    "coordinator.reply.half_sent",
    "coordinator.reply.after",
    "coordinator.decide.before_send",
    "coordinator.decide.sent",
    "coordinator.stop.served",
    # The supervisor: children, messages, procedures, a stop
    "supervisor.start.before_child",
    "supervisor.start.child_started",
    "supervisor.start.before_ready",
    "supervisor.start.ready",
    "supervisor.tell.before",
    "supervisor.tell.after",
    "supervisor.bury.before",
    "supervisor.bury.after",
    "supervisor.persist.before",
    "supervisor.persist.after",
    "supervisor.stop.before_signal",
    "supervisor.stop.signalled",
    "supervisor.stop.all_ended",
)


def die() -> NoReturn:
    """Ends this process as `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("SIGKILL cannot be survived")


def _off(name: str) -> None:
    pass


def _never(name: str) -> bool:
    return False


class _Armed:
    """Counts the passages of one point."""

    def __init__(self, name: str, passage: int) -> None:
        self.name = name
        self.left = passage

    def doomed(self, name: str) -> bool:
        if name != self.name:
            return False
        self.left -= 1
        if self.left:
            return False
        os.write(2, f"crash point {name}\n".encode())
        return True

    def crash_point(self, name: str) -> None:
        if self.doomed(name):
            die()


def _parse(text: str) -> _Armed:
    """`name[:n]`. Raises ValueError for a name that is no crash point: a campaign that arms nothing shows nothing."""
    name, _, passage = text.partition(":")
    if name not in CRASH_POINTS:
        raise ValueError(f"{VARIABLE}={text}: no such crash point")
    if passage and (not passage.isdecimal() or int(passage) < 1):
        raise ValueError(f"{VARIABLE}={text}: the passage is a number from 1")
    return _Armed(name, int(passage or 1))


def _order() -> str:
    """What this process was told, by the variable or by its file; empty when nothing."""
    value = os.environ.get(VARIABLE, "")
    if "/" not in value:
        return value
    file = Path(value) / os.environ.get(PROCESS, "supervisor")
    try:
        value = file.read_text()
        file.unlink()
    except FileNotFoundError:
        return ""
    return value


# Bound once, at import: a passage costs no look-up of the environment.
crash_point = _off
doomed = _never
if _value := _order():
    _armed = _parse(_value)
    crash_point = _armed.crash_point
    doomed = _armed.doomed
