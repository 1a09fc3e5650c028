"""The disk of one simulated process: it takes its time, fails, fills up, and forgets what was not flushed.

tests.partitions.faulty_disk does the latter three; here its calls become steps of a process in simulated time. Any call
may be the one at which the process dies, a write when half of it is done.
"""

from __future__ import annotations

import os
from math import inf
from pathlib import Path
from typing import Any

from tests.partitions.faulty_disk import CUT, EIO, ENOSPC, FaultyDisk, PowerCut
from tests.simulation.world import Killed, Process, World


class Disk(FaultyDisk):
    """`process` is the one that uses it now; an earlier life of it may do so still."""

    def __init__(self, world: World, directory: Path) -> None:
        super().__init__(directory)
        self.process: Process | None = None
        self._world = world
        self._full_until_s = -inf  # when it last had no room; inf: it has none
        self._opened_by: dict[int, Process | None] = {}  # descriptors

    @property
    def _user(self) -> Process | None:
        """The life that makes this call."""
        running, process = self._world.running, self.process
        return running if running is not None and process is not None and running.name == process.name else process

    def __enter__(self) -> Disk:
        self._put_files()
        return self

    def _count(self, call: str, what: str) -> str:
        user = self._user
        if user is not None and not user.is_alive:
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
            if fault == ENOSPC:
                self._full_until_s = inf
            self._world.fault({CUT: "torn write", EIO: "EIO", ENOSPC: "ENOSPC"}[fault], f"{call} {what}")
            self._at = 0
        return fault

    def _killed(self) -> None:
        user = self._user
        if user is not None:
            user.is_alive = False

    def _open(self, path: Any, flags: int, mode: int = 0o777, **options: Any) -> int:
        fd = super()._open(path, flags, mode, **options)
        if fd in self._files or fd in self._directories:
            self._opened_by[fd] = self._user
        return fd

    def _fsync(self, fd: int, call: str = "fsync") -> None:
        user = self._user
        if user is not None and (fd in self._files or fd in self._directories):
            user.work(self._flush_s())
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
            user = self._user
            if user is not None:
                user.work(1e-5)
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

    def left_by(self, process: Process) -> None:
        """This life is over; another one may have come meanwhile, and goes on."""
        for fd in [*self._files, *self._directories]:
            if self._opened_by.get(fd) is process:
                os.close(fd)
        self._dead = False
        self.make_room()

    def make_room(self) -> None:
        super().make_room()
        if self._full_until_s == inf:
            self._full_until_s = self._world.now_s

    def was_full(self, since_s: float) -> bool:
        """At some time since then."""
        return self._full_until_s >= since_s

    def lose_power(self) -> None:
        """What was not flushed is there in part, or not at all. The process must be gone."""
        self.cut(self._world.rng)

    @property
    def path(self) -> Path:
        return Path(os.fspath(self._directory))
