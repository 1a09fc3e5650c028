"""What servers take: resident memory at its highest, bytes on disk, bytes read from and written to the disk.

Resident memory is sampled from /proc/<pid>/statm by a thread. A peak between two samples goes unseen; VmHWM would have
it, but from before the measurement too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Event, Thread
from typing import Self

from msgspec import Struct

SAMPLE_S = 0.2
ALLOWED_SHARE = 1.2  # a partition may take this part of its share of --memory …
ALLOWED_BESIDE_BYTES = 60_000_000  # … and so much for the interpreter and what is not data
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
BLOCK_BYTES = 512  # what st_blocks counts in, whatever the file system

Pids = Mapping[str, int]  # by the name of the process: "partition 0", "mariadbd"


class DiskTraffic(Struct, frozen=True):
    """Bytes that went between processes and the disk itself: what the page cache answered is not among them."""

    read_bytes: int
    written_bytes: int

    def since(self, before: DiskTraffic) -> DiskTraffic:
        return DiskTraffic(self.read_bytes - before.read_bytes, self.written_bytes - before.written_bytes)


class Residency:
    """Used as a context. `peaks`: the most that each process had resident, by name, in bytes."""

    def __init__(self, pids: Callable[[], Pids]) -> None:
        self._pids = pids
        self._end = Event()
        self._thread = Thread(target=self._sample, daemon=True)
        self.peaks: dict[str, int] = {}

    def __enter__(self) -> Self:
        self._processes = dict(self._pids())
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _sample(self) -> None:
        while True:
            for name, pid in self._processes.items():
                self.peaks[name] = max(self.peaks.get(name, 0), resident_bytes(pid))
            if self._end.wait(SAMPLE_S):
                return


def allowed_bytes(share_bytes: int) -> int:
    """What a partition may have resident that was given this share of --memory."""
    return int(share_bytes * ALLOWED_SHARE) + ALLOWED_BESIDE_BYTES


def resident_bytes(pid: int) -> int:
    """0 when the process is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES
    except (OSError, IndexError):
        return 0


def disk_traffic(pids: Pids) -> DiskTraffic | None:
    """Of all these processes so far. None where the system does not let us see it."""
    read = written = 0
    for pid in pids.values():
        try:
            lines = Path(f"/proc/{pid}/io").read_text().splitlines()
        except OSError:
            return None
        counts = {name: int(value) for name, _, value in (line.partition(": ") for line in lines)}
        read += counts["read_bytes"]
        written += counts["write_bytes"]
    return DiskTraffic(read, written)


def bytes_on_disk(directory: Path) -> int:
    """What the files below the directory take, holes not counted."""
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            try:
                total += (Path(folder) / name).lstat().st_blocks * BLOCK_BYTES
            except FileNotFoundError:
                continue  # a segment of a log that was removed meanwhile
    return total
