"""The disk of one simulated process: it takes its time, fails, fills up, and forgets what was not flushed.

tests.partitions.faulty_disk does the latter three; here its calls become steps of a process in simulated time. Any call
may be the one at which the process dies, a write when half of it is done.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tests.partitions.faulty_disk import CUT, EIO, ENOSPC, FaultyDisk, PowerCut
from tests.simulation.world import Killed, Process, World


class Disk(FaultyDisk):
    """`process` is the one that uses it now."""

    def __init__(self, world: World, directory: Path) -> None:
        super().__init__(directory)
        self.process: Process | None = None
        self._world = world

    def __enter__(self) -> Disk:
        self._put_files()
        return self

    def _count(self, call: str, what: str) -> str:
        if self.process is not None and not self.process.is_alive:
            raise Killed
        self._at -= len(self.calls)  # they are counted from here on, so that the list stays short
        self.calls.clear()
        before = self.fired
        try:
            fault = super()._count(call, what)
        except PowerCut:
            self._killed()
            raise
        if self.fired != before and fault:
            if fault == CUT:
                self._killed()
            self._world.fault({CUT: "torn write", EIO: "EIO", ENOSPC: "ENOSPC"}[fault], f"{call} {what}")
            self._at = 0
        return fault

    def _killed(self) -> None:
        if self.process is not None:
            self.process.is_alive = False

    def _fsync(self, fd: int, call: str = "fsync") -> None:
        if self.process is not None and (fd in self._files or fd in self._directories):
            self.process.work(self._flush_s())
        super()._fsync(fd, call)

    def _fdatasync(self, fd: int) -> None:
        self._fsync(fd, "fdatasync")

    def _flush_s(self) -> float:
        rng = self._world.rng
        return rng.uniform(0.002, 0.05) if rng.random() < 0.02 else rng.uniform(5e-5, 5e-4)

    def _is_over(self, flusher: Any) -> bool:
        """A flush in the background is over when its time has come; who has nothing else to do waits for it."""
        until_s = getattr(flusher, "until_s", None)
        if until_s is None:
            flusher.until_s = self._world.now_s + self._flush_s()
            return False
        if self._world.now_s < until_s:
            if self.process is not None:
                self.process.work(1e-5)
            return False
        flusher.until_s = None
        return True

    def fail_soon(self, fault: str) -> None:
        """One of the next calls that can fail so does."""
        calls = {
            EIO: ("fdatasync wal", "fdatasync wal", "pwrite wal", "flush.done wal", "pwrite pages", "fdatasync pages"),
            CUT: ("pwrite wal", "pwrite wal", "pwrite wal", "pwrite pages", "pwrite run", "pwrite root"),
            ENOSPC: ("pwrite wal", "fallocate wal", "pwrite pages", "fdatasync wal"),
        }
        self.fail_next(self._world.rng.choice(calls[fault]), fault)

    def lose_power(self) -> None:
        """What was not flushed is there in part, or not at all. The process must be gone."""
        self.cut(self._world.rng)

    @property
    def path(self) -> Path:
        return Path(os.fspath(self._directory))
