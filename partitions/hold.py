"""A checkpoint that stays as it is while a snapshot copies it.

    asked for ──a checkpoint begins──► begun ──its root is durable──► kept ──released, or the lease is over──► gone

While it is kept, `checkpoint.held` is a second name of its root, so that the next checkpoint's root, which takes the
first name, does not take the file away; its runs are not deleted, and no place that has been released is written again
(partitions.checkpoint). A process that finds the name at its start removes it: whoever copied has been told that the
partition died.
"""

from __future__ import annotations

import os
from pathlib import Path

from voltpy.crash_point import crash_point

HELD_ROOT = "checkpoint.held"


class Hold:
    """One snapshot's claim. `until_s`: on the clock of whoever made it. `runs`: names of files."""

    __slots__ = ("_directory", "checkpoint", "is_begun", "is_kept", "lsn", "runs", "snapshot", "until_s")

    def __init__(self, directory: Path, snapshot: int, until_s: float) -> None:
        self._directory = directory
        self.snapshot = snapshot
        self.until_s = until_s
        self.is_begun = self.is_kept = False
        self.checkpoint = self.lsn = 0
        self.runs: set[str] = set()

    @staticmethod
    def clear(directory: Path) -> None:
        """Removes what a process left that died while it held a checkpoint."""
        (directory / HELD_ROOT).unlink(missing_ok=True)

    def keep(self, checkpoint: int, lsn: int, runs: set[str]) -> None:
        """The root that is there now is the one. Raises OSError where a file can't have two names."""
        self.clear(self._directory)
        os.link(self._directory / "checkpoint", self._directory / HELD_ROOT)
        crash_point("hold.kept")
        self.checkpoint, self.lsn, self.runs = checkpoint, lsn, runs
        self.is_kept = True

    def drop(self) -> None:
        """It is nobody's any more."""
        self.is_kept = False
        self.clear(self._directory)
        crash_point("hold.dropped")
