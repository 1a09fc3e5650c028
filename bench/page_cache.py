"""Keeps the system's page cache from answering for the disk.

On a machine with memory to spare it soon holds every page that a server has read with `pread`, and a table that is
larger than the server's memory is not larger than the machine's. A server that reads with O_DIRECT, as MariaDB does
here, has no such help, so nobody gets any: files are forgotten again and again while they are measured.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any, Self

EVERY_S = 0.2


def forgetting(directory: Path, page_cache: str) -> AbstractContextManager[Any]:
    """As --page-cache says."""
    return Forgetting(directory) if page_cache == "forget" else nullcontext()


class Forgetting:
    """Used as a context: what lies below the directory is forgotten again and again."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._end = Event()
        self._thread = Thread(target=self._forget, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _forget(self) -> None:
        while True:
            # Unlike Path.rglob, os.walk takes it that a folder disappears while it is walked.
            forget(Path(folder) / name for folder, _, names in os.walk(self._directory) for name in names)
            if self._end.wait(EVERY_S):
                return


def forget(files: Iterable[Path]) -> None:
    """What of them is clean leaves the page cache. Dirty pages stay until they are written."""
    for path in files:
        with suppress(OSError):  # gone meanwhile, or a socket
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
