"""How checkpoints are made, while the partition works on. Their files are those of partitions.checkpoint.

A checkpoint begins between two batches, at the LSN of the last one. From then on a page that
changes is first remembered as it was, until it has been written; so what is written is exactly the state at that LSN,
while the partition works on. (Images taken at different moments, and replay by key over them, do not come back right:
in 2,000 simulated crashes 42 did at most.) Pages go out in small chunks, each flushed before the next one is written,
since a long queue at the disk would hold up the WAL. The steps are those of `Checkpointer._checkpoint`, top to bottom.
"""

from __future__ import annotations

import errno
import os
from array import array
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
from google_crc32c import value as crc32c
from pyroaring import BitMap

from partitions.checkpoint import RUN_ENTRIES, Checkpoint, Root, Run, TableRoot, encoded_root, run_chunk, run_header
from partitions.flusher import Flusher
from partitions.hold import Hold
from partitions.index import PrimaryIndex
from partitions.index_image import image_of
from partitions.pace import Pace
from partitions.page import sealed
from partitions.page_file import PageFile, entry_of, place_of, write_all
from partitions.store import Store
from partitions.table import Table
from partitions.wal import Wal
from voltpy.crash_point import crash_point
from voltpy.errors import Corruption
from voltpy.outcome_window import OutcomeWindow
from voltpy.record_log import DiskFull, flush_directory

CHECKPOINT_BYTES = 256 << 20  # so much new WAL makes a checkpoint due
CHUNK_PAGES = 32  # written and flushed at a time
HURRIED_PAGES = 256  # while calls can't go on without
IMAGE_BYTES = 1 << 18  # of secondary indexes are flushed at a time
FEW_ENTRIES = 1 << 16  # an index's later runs may have so many entries in any case
RETRY_S = 10.0  # after a checkpoint for which the disk had no room


@dataclass(slots=True)
class _Part:
    """One table's share in the checkpoint under way: `pages` numbers, of which `changed` are to be written."""

    table: Table
    root: TableRoot
    pages: int
    changed: int
    gone: list[int]
    numbers: array[int]
    row_ids: array[int]
    has_new_image: bool = False


class Checkpointer:
    """Makes checkpoints, a slice of the work at a time: `step` between batches. `last` is the last one that is durable.

    Made before the recovery, which may need `make`; after it, `begin`. `step` raises OSError when the disk fails: the
    process must end. A full disk only puts the checkpoint off.
    """

    def __init__(
        self,
        directory: Path,
        partition: int,
        store: Store,
        window: OutcomeWindow,
        wal: Wal,
        file: PageFile,
        last: Checkpoint,
        *,
        every_bytes: int = CHECKPOINT_BYTES,
    ) -> None:
        self.last = _slimmed(last)
        self.running = False
        self.failed: Callable[[DiskFull], None] = lambda _: None
        self.done: Callable[[Checkpoint], None] = lambda _: None
        self.begun: Callable[[Hold], None] = lambda _: None  # what is to be held is fixed
        self.held: Callable[[Hold, str], None] = lambda _, __: None  # the second: why not, empty when it is
        self.hold: Hold | None = None
        self._directory = directory
        self._partition = partition
        self._store = store
        self._window = window
        self._wal = wal
        self._file = file
        self._every_bytes = every_bytes
        self._begun_at_bytes = 0  # of WAL
        self._attempts = 0
        self._wanted = False
        self._steps: Iterator[None] = iter(())
        self._not_before_s = 0.0
        self._now_s = 0.0
        self._busy = False
        self.pace = Pace()
        self._hurried = False
        self._cleanings = 0
        self._flusher = Flusher()
        # The flusher's thread is born here, before the process is pinned to a core.
        self._flusher.start(file.fd)
        self._flusher.wait()
        self._replayed_lsn: int | None = 0  # None once the recovery is over
        Hold.clear(directory)  # what a crash left
        self._remove_unnamed()

    def make(self, lsn: int) -> None:
        """Makes a checkpoint here and now, during recovery: the store is as the WAL says up to this LSN."""
        self._replayed_lsn = lsn
        self._hurried = True
        for _ in self._checkpoint():
            pass
        self._hurried = False

    def begin(self) -> None:
        """The recovery is over."""
        self._replayed_lsn = None
        flush_directory(self._directory)
        self._wal.forget(self.last.lsn)

    def request(self) -> None:
        """A checkpoint is due, whatever the WAL's length."""
        self._wanted = True

    def keep(self, snapshot: int, until_s: float) -> None:
        """The next checkpoint that begins stays as it is, until `let_go` or the time `until_s`; it is due now.

        Checkpoints after it are made, and take other places: nothing that this one names is freed. `held` is called
        when it is durable, or when it can't be had.
        """
        self._drop_hold()
        self.hold = Hold(self._directory, snapshot, until_s)
        self._not_before_s = 0.0
        self.request()

    def keep_longer(self, snapshot: int, until_s: float) -> None:
        """The hold of this snapshot ends later. Does nothing when it has ended."""
        if self.hold is not None and self.hold.snapshot == snapshot:
            self.hold.until_s = until_s

    def let_go(self, snapshot: int) -> bool:
        """Ends the hold of this snapshot. Whether its checkpoint was held until now."""
        if self.hold is None or self.hold.snapshot != snapshot:
            return False
        was_held = self.hold.is_kept
        self._drop_hold()
        return was_held

    def step(self, now_s: float, *, busy: bool = False) -> bool:
        """Does a slice of the checkpoint that is running or due. Whether there is more to do.

        `busy`: calls have come since the last time. Then the disk is left to the WAL for a while after each chunk: see
        partitions.pace.
        """
        self._now_s, self._busy = now_s, busy
        if self.hold is not None and now_s >= self.hold.until_s:
            self._drop_hold()
        if not self.running:
            if self._store.is_behind:
                return False
            due = (
                self._wanted
                or self._store.needs_cleaning
                or self._wal.appended_bytes - self._begun_at_bytes >= self._every_bytes
            )
            if not due or now_s < self._not_before_s:
                return False
            self._wanted = False
            self.running = True
            self._steps = self._checkpoint()
        try:
            next(self._steps, None)
        except DiskFull as error:
            self._remove_unnamed()
            self._not_before_s = now_s + RETRY_S
            self._wanted = True
            self._refuse_hold(str(error))
            self.failed(error)
        return self.running

    def clean_some(self) -> bool:
        """Waits until a chunk of dirty pages is on disk; begins a checkpoint for it.

        False when nothing is dirty, the disk is full, or the recovery has left something: to wait would not help.

        Between execution and end of a batch too: what is committed is in the pages, and nothing else.
        """
        if not self.running and (self._store.is_behind or not self._store.dirty_pages):
            return False
        self._wanted |= not self.running
        cleanings = self._cleanings
        self._hurried = True
        while self._cleanings == cleanings and self._not_before_s <= self._now_s:
            is_running = self.step(self._now_s)
            self._wal.wait_flush()
            if not is_running:
                break
        self._hurried = False
        crash_point("checkpoint.clean_some.cleaned")
        return self._not_before_s <= self._now_s

    def close(self) -> None:
        """Lets go of the page file. A checkpoint that is under way leaves nothing that counts."""
        try:
            self._flusher.wait()
        except OSError as error:
            if not isinstance(_full_or(error, self._directory), DiskFull):
                raise
        finally:
            self._file.close()

    def _checkpoint(self) -> Iterator[None]:
        """One checkpoint, from the first page to the last old file: each `yield` is a place to serve calls."""
        number = self.last.number + 1
        self._attempts += 1
        told_apart_by = (self._wal.epoch, number, self._attempts, self._replayed_lsn or 0)
        generation = crc32c(b"%d %d %d %d" % told_apart_by) & 0xFFFF
        try:
            base_runs = yield from self._base_runs(number, generation)
            lsn, parts, root = self._begin(base_runs)
            try:
                for part in parts:
                    yield from self._write_pages(generation, part)
                    yield from self._write_changes(number, generation, part)
                    yield from self._write_image(number, generation, part)
                yield from self._wal_reaches(lsn)
                yield from self._switch_root(Checkpoint(number, lsn, root))
            except DiskFull:
                self._take_back(parts)
                raise
            self._images_are_made(parts)
            self._keep_if_held()
            yield
            if self.hold is None or not self.hold.is_kept:
                self._file.settle()
            crash_point("checkpoint.places.settled")
            yield
            self._remove_unnamed()
            crash_point("checkpoint.files.removed")
            yield
            if self._replayed_lsn is None:
                self._wal.forget(lsn)
            crash_point("checkpoint.wal.shortened")
            self.done(self.last)
        finally:
            self.running = False

    def _base_runs(self, number: int, generation: int) -> Generator[None, None, dict[int, Run]]:
        """Copies whole those indexes whose runs have grown long; by table number."""
        base_runs: dict[int, Run] = {}
        for table, root in zip(self._store.tables, self.last.root.tables, strict=False):
            _, index = table.storage
            if sum(run.entries for run in root.runs) > 2 * len(index) + FEW_ENTRIES and len(index):
                name = f"index-{table.number}-{number}-{generation:04x}-all.run"
                base_runs[table.number] = yield from self._write_run(name, table.number, _slices(index))
        return base_runs

    def _begin(self, base_runs: dict[int, Run]) -> tuple[int, list[_Part], Root]:
        """The moment whose state the checkpoint is: from here on the store remembers how it is now."""
        self._begun_at_bytes = self._wal.appended_bytes
        if self.hold is not None and not self.hold.is_begun:
            self.hold.is_begun = True
            self.begun(self.hold)
        last = self.last.root.tables
        parts = []
        for table in self._store.tables:
            heap, index = table.storage
            runs = list[Run]()
            if table.number < len(last) and not table.schema.dropped:
                base = base_runs.get(table.number)
                runs = last[table.number].runs.copy() if base is None else [base]
            lookups, image, stale_pages = table.lookups, "", b""
            if lookups is not None and lookups.stale_pages is not None and table.number < len(last):
                lookups.stale_pages |= BitMap(heap.changed_pages)
                image, stale_pages = last[table.number].image, lookups.stale_pages.serialize()
            changed, gone = heap.begin_checkpoint()
            root = TableRoot(
                table.name, heap.slot_bits, b"", heap.rows, heap.image_bytes, runs, index.collisions, image, stale_pages
            )
            parts.append(_Part(table, root, heap.page_numbers, changed, gone, *index.take_changes()))
        reach, outcomes = self._window.remembered
        crash_point("checkpoint.begun")
        lsn = self._wal.written_lsn if self._replayed_lsn is None else self._replayed_lsn
        batches_reach, batches = self._window.batches
        prepared = list(self._store.prepared.items())
        tables = [part.root for part in parts]
        behind = sorted(self._store.views_behind)
        return lsn, parts, Root(tables, reach, outcomes, prepared, batches, batches_reach, behind)

    def _write_pages(self, generation: int, part: _Part) -> Iterator[None]:
        """Writes the pages that have changed; the heap's own page table says at once where they are now.

        So at the end it is this checkpoint's: but for pages that it wrote, nothing changes place.
        """
        heap, _ = part.table.storage
        entries = heap.entries
        written = 0
        while changed := heap.take_changed(HURRIED_PAGES if self._hurried else CHUNK_PAGES):
            places = self._file.write([sealed(image, generation) for _, image in changed])
            for (page, _), place in zip(changed, places, strict=True):
                self._forget_place(entries[page])
                entries[page] = entry_of(place, generation)
            written += len(changed)
            crash_point("checkpoint.pages.written")
            yield from self._flushed(self._file.fd, self._file.path)
            self._cleaned(part.table)
            crash_point("checkpoint.pages.flushed")
        if written != part.changed:
            raise Corruption(f"table {part.root.name}: {written} of {part.changed} changed pages were written")
        for page in part.gone:
            self._forget_place(entries[page])
            entries[page] = 0
        part.root.pages = entries[: part.pages].tobytes()

    def _cleaned(self, table: Table) -> None:
        """A chunk is on disk: its pages may leave memory, if they have not changed again."""
        heap, _ = table.storage
        pages = heap.written()
        if self._store.pool is not None:
            self._store.pool.cleaned(table.number, pages)
        self._cleanings += 1

    def _forget_place(self, entry: int) -> None:
        if entry:
            self._file.release(place_of(entry))

    def _write_changes(self, number: int, generation: int, part: _Part) -> Iterator[None]:
        if part.numbers:
            name = f"index-{part.table.number}-{number}-{generation:04x}.run"
            chunks = (
                (part.numbers[at : at + RUN_ENTRIES], part.row_ids[at : at + RUN_ENTRIES])
                for at in range(0, len(part.numbers), RUN_ENTRIES)
            )
            run = yield from self._write_run(name, part.table.number, chunks)
            part.root.runs.append(run)

    def _write_image(self, number: int, generation: int, part: _Part) -> Iterator[None]:
        """Writes a table's secondary indexes, if it is time for that, while they change: see partitions.index_image."""
        lookups = part.table.lookups
        if lookups is None or not lookups.needs_image:
            return
        heap, _ = part.table.storage
        name = f"lookups-{part.table.number}-{number}-{generation:04x}.image"
        indexes = list(lookups.indexes.values())
        with _new_file(self._directory / name) as fd:
            offset = flushed = 0
            for data in image_of(indexes, self._partition, part.table.number):
                write_all(fd, data, offset)
                offset += len(data)
                if offset - flushed > IMAGE_BYTES:
                    flushed = offset
                    yield from self._flushed(fd, self._directory / name)
                else:
                    yield
            yield from self._flushed(fd, self._directory / name)
            crash_point("checkpoint.image.written")
        if indexes == list(lookups.indexes.values()):  # else one has come or gone
            part.root.image, part.root.stale_pages = name, BitMap(heap.changed_pages).serialize()
            part.has_new_image = True

    def _write_run(
        self, name: str, table: int, chunks: Iterable[tuple[array[int], array[int]]]
    ) -> Generator[None, None, Run]:
        entries = 0
        header = run_header(self._partition, table)
        with _new_file(self._directory / name) as fd:
            write_all(fd, header, 0)
            offset = len(header)
            for numbers, row_ids in chunks:
                data = run_chunk(numbers, row_ids)
                write_all(fd, data, offset)
                offset += len(data)
                entries += len(numbers)
                yield from self._flushed(fd, self._directory / name)
            crash_point("checkpoint.run.written")
        return Run(name, entries)

    def _wal_reaches(self, lsn: int) -> Iterator[None]:
        """A root must not know of what the WAL may still lose."""
        wal = self._wal
        if self._replayed_lsn is not None:
            wal.flush_replayed()
            return
        while wal.flushed_lsn < lsn:
            wal.start_flush()
            yield
            wal.poll_flush()

    def _switch_root(self, checkpoint: Checkpoint) -> Iterator[None]:
        path = self._directory / "checkpoint.new"
        with _new_file(path) as fd:
            write_all(fd, encoded_root(checkpoint, self._partition), 0)
            crash_point("checkpoint.root.written")
            yield from self._flushed(fd, path)
        flush_directory(self._directory)  # the runs' names, before the root that names them
        crash_point("checkpoint.root.flushed")
        try:
            path.rename(self._directory / "checkpoint")
        except OSError as error:
            raise _full_or(error, path) from None
        crash_point("checkpoint.root.renamed")
        flush_directory(self._directory)
        self.last = _slimmed(checkpoint)

    def _flushed(self, fd: int, path: Path) -> Iterator[None]:
        """The file is flushed beside what the partition does. Once an fsync has failed nothing may be believed."""
        began_s = self._now_s
        try:
            self._flusher.start(fd)  # which flushes at once where there is no aio
            yield
            while not (self._flusher.wait() if self._hurried else self._flusher.done()):
                yield
        except OSError as error:
            # Some file systems look for room only now. What was written is free again, to be written anew.
            raise _full_or(error, path) from None
        resume_s = self._now_s + self.pace.pause_s(self._now_s - began_s)
        while self._busy and self._now_s < resume_s and not self._store.is_pressed:
            yield

    def _take_back(self, parts: list[_Part]) -> None:
        """No room: what this checkpoint took and did not write is for the next one.

        What it wrote is where the pages are now; the places that they had are still the last checkpoint's.
        """
        for part in parts:
            heap, index = part.table.storage
            heap.abandon_checkpoint(part.gone)
            index.give_back_changes(part.numbers, part.row_ids)

    def _images_are_made(self, parts: list[_Part]) -> None:
        """The root is durable: from here on pages that change are stale beside the new images."""
        for part in parts:
            if part.table.lookups is not None and part.has_new_image:
                part.table.lookups.stale_pages = BitMap.deserialize(part.root.stale_pages)

    def _keep_if_held(self) -> None:
        """From here on nothing of the last checkpoint goes, if it began after somebody asked for that."""
        hold = self.hold
        if hold is None or not hold.is_begun or hold.is_kept:
            return
        try:
            hold.keep(self.last.number, self.last.lsn, self._runs_of_last())
        except OSError as error:  # the partition can do without
            self._refuse_hold(f"{self._directory}: the checkpoint can't be held: {error.strerror}")
        else:
            self.held(hold, "")

    def _refuse_hold(self, reason: str) -> None:
        hold = self.hold
        if hold is not None and not hold.is_kept:
            self.hold = None
            self.held(hold, reason)

    def _drop_hold(self) -> None:
        """What only the held checkpoint still needed goes with the next one, which is due."""
        if self.hold is not None:
            if self.hold.is_kept:
                self.request()
            self.hold.drop()
            self.hold = None

    def _runs_of_last(self) -> set[str]:
        return {run.name for table in self.last.root.tables for run in table.runs}

    def _remove_unnamed(self) -> None:
        """Runs that no checkpoint needs: neither the last one nor the held one names them."""
        named = self._runs_of_last()
        if self.hold is not None:
            named |= self.hold.runs
        for path in self._directory.glob("index-*.run"):
            if path.name not in named:
                path.unlink()
        images = {table.image for table in self.last.root.tables}
        for path in self._directory.glob("lookups-*.image"):
            if path.name not in images:
                path.unlink()


def _slices(index: PrimaryIndex) -> Iterator[tuple[array[int], array[int]]]:
    """All entries, in slices; the index may change in between."""
    last = None
    while True:
        numbers, row_ids = index.entries_after(last, RUN_ENTRIES)
        if not numbers:
            return
        last = numbers[-1]
        yield numbers, row_ids


@contextmanager
def _new_file(path: Path) -> Iterator[int]:
    """The descriptor of an empty file. What the disk has no room for is DiskFull."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            yield fd
        finally:
            os.close(fd)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise _full_or(error, path) from None


def _full_or(error: OSError, what: object) -> Exception:
    """DiskFull if that is what the error says, else the error itself."""
    return DiskFull(f"{what}: {error.strerror}") if error.errno in (errno.ENOSPC, errno.EDQUOT) else error


def _slimmed(checkpoint: Checkpoint) -> Checkpoint:
    """The runs are needed for the next one; page tables are the heaps' own, outcomes would only take memory."""
    root = checkpoint.root
    tables = [msgspec.structs.replace(table, pages=b"", stale_pages=b"") for table in root.tables]
    return checkpoint._replace(root=Root(tables, root.outcomes_reach, []))
