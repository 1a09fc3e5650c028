"""Keeps the system's page cache from answering for the disk.

On a machine with memory to spare it soon holds every page that a server has read with `pread`, and a table that is
larger than the server's memory is not larger than the machine's. A server that reads with O_DIRECT, as MariaDB does
here, has no such help, so nobody gets any: files are forgotten again and again while they are measured.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from typing import Self

EVERY_S = 0.2


class Forgetting:
    """Used as a context. `files` says each time which there are."""

    def __init__(self, files: Callable[[], Iterable[Path]]) -> None:
        self._files = files
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
            forget(self._files())
            if self._end.wait(EVERY_S):
                return


def forget(files: Iterable[Path]) -> None:
    """What of them is clean leaves the page cache. Dirty pages stay until they are written."""
    for path in files:
        with suppress(FileNotFoundError):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
