"""Copies the held checkpoints of a running cluster's partitions into a snapshot. Started by name by `voltpy snapshot`.

    python -I -m partitions.copier --data DATA --to SNAPSHOT --partitions N [--rate BYTES_PER_S]

Of `pages` only the places that the root names are copied, to where they are: the copy has holes. It is written in
chunks, each flushed before the next one: a long queue at the disk would hold up the WALs (ENGINE finding 2). What it
prints on stdout, a JSON object a line:

    {"copied": bytes, "total": bytes, "partition": the one at work}                     from time to time
    {"partition": i, "checkpoint": number, "lsn": n, "files": [[name, bytes, CRC-32C or null], …]}    one is on disk

Exit status: 0 when all are on disk, 3 when something is damaged, 1 for any other error, which is the last line on
stderr. That nothing was taken away meanwhile is not known here: whoever holds the checkpoints has the last word.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from array import array
from pathlib import Path
from typing import NamedTuple

from google_crc32c import extend

from partitions.checkpoint import page_table, read_root
from partitions.hold import HELD_ROOT
from partitions.page import PAGE_BYTES
from partitions.page_file import place_of, runs_of, write_all
from voltpy.crash_point import crash_point
from voltpy.data_directory import partition_directory
from voltpy.errors import Corruption
from voltpy.file_range import chunks, copy_range
from voltpy.parent_death import SUPERVISOR, die_with_parent
from voltpy.record_log import flush_directory

CHUNK_BYTES = 64 * PAGE_BYTES  # written and flushed at a time
REPORT_S = 0.1
EXIT_FAILED = 1
EXIT_DAMAGED = 3


class _Plan(NamedTuple):
    """What is to be copied of one partition. `places`, in order: with pages that the root names."""

    partition: int
    source: Path
    target: Path
    checkpoint: int
    lsn: int
    runs: list[str]
    places: array[int]
    total_bytes: int


class Copier:
    """Copies at most `rate` bytes a second; as fast as it goes without one. Reports on stdout."""

    def __init__(self, rate: int | None) -> None:
        self._rate = rate
        # Of a low rate a fifth of a second at a time: a wait is not to be longer than that.
        self._chunk_bytes = CHUNK_BYTES if rate is None else min(max(rate // 5, PAGE_BYTES), CHUNK_BYTES)
        self._began_s = time.monotonic()
        self._reported_s = 0.0
        self._copied = self._total = 0
        self._partition = 0

    def copy(self, plans: list[_Plan]) -> None:
        """All of it. Raises OSError; Corruption when a file is shorter than it must be."""
        self._total = sum(plan.total_bytes for plan in plans)
        for plan in plans:
            self._partition = plan.partition
            plan.target.mkdir(mode=0o700)
            files = [self._file(plan.source / HELD_ROOT, plan.target / "checkpoint")]
            files += [self._file(plan.source / name, plan.target / name) for name in plan.runs]
            files.append(self._pages(plan))
            flush_directory(plan.target)
            crash_point("copier.partition.copied")
            made = {"partition": plan.partition, "checkpoint": plan.checkpoint, "lsn": plan.lsn}
            print(json.dumps({**made, "files": files}), flush=True)
            self._reported_s = 0.0
        flush_directory(plans[0].target.parent)

    def _file(self, source: Path, target: Path) -> tuple[str, int, int | None]:
        """A small file, whole: (name, bytes, CRC)."""
        crc = size = 0
        with source.open("rb", buffering=0) as reading, target.open("xb", buffering=0) as writing:
            while data := reading.read(self._chunk_bytes):
                write_all(writing.fileno(), data, size)
                os.fdatasync(writing.fileno())
                crc, size = extend(crc, data), size + len(data)
                self._advance(len(data))
            os.fsync(writing.fileno())
        return target.name, size, crc

    def _pages(self, plan: _Plan) -> tuple[str, int, int | None]:
        """The pages that the root names. Each has a checksum of its own."""
        end = (plan.places[-1] + 1) * PAGE_BYTES if plan.places else 0
        with (plan.source / "pages").open("rb") as reading, (plan.target / "pages").open("xb") as writing:
            fd = writing.fileno()
            os.ftruncate(fd, end)
            unflushed = 0
            for at, count in runs_of(plan.places):
                for offset, length in chunks(plan.places[at] * PAGE_BYTES, count * PAGE_BYTES, self._chunk_bytes):
                    copy_range(reading.fileno(), fd, offset, length, plan.source / "pages")
                    unflushed += length
                    if unflushed >= CHUNK_BYTES:
                        os.fdatasync(fd)
                        unflushed = 0
                    crash_point("copier.pages.copied")
                    self._advance(length)
            os.fsync(fd)
        return "pages", end, None

    def _advance(self, copied: int) -> None:
        """Tells how far it is, and waits where that is further than the rate allows."""
        self._copied += copied
        now_s = time.monotonic()
        if now_s - self._reported_s >= REPORT_S:
            self._reported_s = now_s
            report = {"copied": self._copied, "total": self._total, "partition": self._partition}
            print(json.dumps(report), flush=True)
        if self._rate is not None:
            time.sleep(max(0.0, self._began_s + self._copied / self._rate - now_s))


def plan(data: Path, to: Path, partition: int) -> _Plan:
    """What there is to copy of a partition. Raises Corruption; OSError when nothing is held."""
    source = partition_directory(data, partition)
    checkpoint = read_root(source / HELD_ROOT, partition)
    tables = checkpoint.root.tables
    places = array("Q", sorted(place_of(entry) for table in tables for entry in page_table(table, source) if entry))
    runs = [run.name for table in tables for run in table.runs]
    total_bytes = len(places) * PAGE_BYTES + sum((source / name).stat().st_size for name in [HELD_ROOT, *runs])
    target = partition_directory(to, partition)
    return _Plan(partition, source, target, checkpoint.number, checkpoint.lsn, runs, places, total_bytes)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m partitions.copier", description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--partitions", type=int, required=True)
    parser.add_argument("--rate", type=int, help="bytes a second")
    arguments = parser.parse_args()
    die_with_parent(int(os.environ.get(SUPERVISOR, "0")))
    try:
        Copier(arguments.rate).copy(
            [plan(arguments.data, arguments.to, partition) for partition in range(arguments.partitions)]
        )
    except Corruption as error:
        print(error, file=sys.stderr)
        return EXIT_DAMAGED
    except OSError as error:
        print(f"{error.filename or arguments.to}: {error.strerror}", file=sys.stderr)
        return EXIT_FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
