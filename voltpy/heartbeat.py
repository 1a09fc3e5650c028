"""The heartbeat: four words that a partition writes and its supervisor reads, to see what runs without asking.

A file of one page, mapped by both. Words are unsigned, 64 bits, in the byte order of the machine:

    word       0           1          2      3            4 … 511
           ┌───────────┬──────────┬───────┬────────────┬─────────┐
           │ client id │ number   │ busy  │ procedure  │ zeros   │
           └───────────┴──────────┴───────┴────────────┴─────────┘
            the running call's id   odd while a batch   its place among the
                                    executes, else even  sorted procedure names

The client id is 0 until the first call of a batch runs: an earlier one may be committed, and is no runaway.

There is no checksum and no lock: a reader may see a mixture of two moments. Only words that stay the same from look to
look mean anything, and those can't be mixed. The file lives in the runtime directory and never outlives the cluster.
"""

from __future__ import annotations

import mmap
import os
from array import array
from pathlib import Path
from typing import NamedTuple, TypeAlias

Words: TypeAlias = "memoryview[int] | array[int]"  # or an array, where nobody looks

FILE_BYTES = 4096
CLIENT_ID, CALL_NUMBER, BUSY, PROCEDURE = range(4)


class Beat(NamedTuple):
    """What the words said at one look."""

    client_id: int
    call_number: int
    busy: int
    procedure: int


def path_in(runtime: Path, partition: int) -> Path:
    return runtime / f"heartbeat-{partition}"


def create(path: Path) -> None:
    """A fresh file of zeros. By rename, so that what a dead process left mapped is not written into this one."""
    fresh = path.with_name(path.name + ".new")
    fresh.write_bytes(bytes(FILE_BYTES))
    fresh.replace(path)


def open_words(path: Path) -> memoryview:
    """The words of an existing file, to read and write by index. Raises OSError, or ValueError when it is too short."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        return memoryview(mmap.mmap(descriptor, FILE_BYTES)).cast("Q")
    finally:
        os.close(descriptor)


def read(words: memoryview) -> Beat:
    return Beat(words[CLIENT_ID], words[CALL_NUMBER], words[BUSY], words[PROCEDURE])


class Watch:
    """Tells when one call has been running for longer than `limit_s`. No clock inside: every look brings its time."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._last: Beat | None = None
        self._since_s = 0.0

    def look(self, beat: Beat, now_s: float) -> Beat | None:
        """The beat that has not moved for longer than the limit while its partition was busy, else None."""
        if self._last is None or beat[:3] != self._last[:3]:
            self._last = beat
            self._since_s = now_s
            return None
        if beat.busy % 2 == 1 and now_s - self._since_s > self._limit_s:
            return beat
        return None

    def forget(self) -> None:
        """The process is gone; whatever comes next begins anew."""
        self._last = None
