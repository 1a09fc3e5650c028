"""Named places at which a process can be told to kill itself, so that what a crash there leaves behind can be tested.

The environment variable VOLTPY_CRASH_POINT=<name>[:<n>] arms one point for the whole process: its n-th passage (the
first if n is absent) ends the process with SIGKILL, as `kill -9` would: no `finally` runs, nothing is flushed. When the
variable is not set, a passage is a call of an empty function (about 0.03 µs).

    crash_point(name)     dies here when it is this point's turn
    doomed(name)          True when it is: for a caller that first does half of its step, and then calls `die()`
"""

from __future__ import annotations

import os
import signal
from typing import NoReturn

VARIABLE = "VOLTPY_CRASH_POINT"

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
        return self.left == 0

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


# Bound once, at import: a passage costs no look-up of the environment.
crash_point = _off
doomed = _never
if os.environ.get(VARIABLE):
    _armed = _parse(os.environ[VARIABLE])
    crash_point = _armed.crash_point
    doomed = _armed.doomed
