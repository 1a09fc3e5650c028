"""Checkpoints: a crash at any step comes back as the WAL says; damage is named; old files and places go."""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from partitions import checkpointer as checkpointer_module
from partitions.buffer_pool import BufferPool
from partitions.checkpoint import load, read_checkpoint
from partitions.page import PAGE_BYTES
from partitions.page_file import PageFile, runs_of
from partitions.page_reader import PageReader
from partitions.store import Store
from partitions.wal import Wal
from tests.overwrite import overwrite
from tests.partitions.one_partition import OnePartition
from tests.partitions.test_executor import contents
from tests.partitions.test_recovery import opened, run_at_random
from voltpy.errors import Corruption
from voltpy.procedure import procedure
from voltpy.record_log import DiskFull
from voltpy.sql.ddl import parse_schema

SCHEMA = parse_schema("""
CREATE TABLE numbers (id INT PRIMARY KEY, text STRING NOT NULL);
PARTITION TABLE numbers ON COLUMN id;
CREATE TABLE names (name STRING PRIMARY KEY, text STRING NOT NULL);
PARTITION TABLE names ON COLUMN name;
""")


@procedure(partition_by="key")
def put(tx: Any, key: int, text: str) -> None:
    tx.numbers.upsert(key, text)
    tx.names.upsert(f"name {key}", text)


@procedure(partition_by="key")
def drop(tx: Any, key: int) -> bool:
    tx.names.delete(f"name {key}")
    return bool(tx.numbers.delete(key))


class Kept:
    """A partition on disk beside a dict of what it has committed. `crash` takes a copy of its files, as they are."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.rows: dict[int, str] = {}
        self.open()

    def open(self) -> None:
        self.partition = OnePartition(SCHEMA, [put, drop], self.directory, segment_bytes=16384)
        self.checkpointer = self.partition.checkpointer
        self.checkpointer.failed = lambda _: None

    def change(self, rng: random.Random, keys: int = 300) -> None:
        for _ in range(rng.randrange(1, 12)):
            key = rng.randrange(keys)
            if rng.random() < 0.3:
                self.partition.run("drop", key)
                self.rows.pop(key, None)
            else:
                text = rng.choice("abc") * rng.choice([1, 30, 900, 900, 4000, 20_000])
                self.partition.run("put", key, text)
                self.rows[key] = text
        self.partition.seal()

    def checkpoint(self) -> None:
        number = self.checkpointer.last.number
        self.checkpointer.request()
        for _ in steps(self.checkpointer):
            pass
        assert self.checkpointer.last.number == number + 1

    def close(self) -> None:
        assert self.partition.wal is not None
        self.partition.reader.close()
        self.checkpointer.close()
        self.partition.wal.abandon()

    def crash(self, to: Path) -> Kept:
        """What a process that starts on a copy of the files finds."""
        shutil.copytree(self.directory, to)
        again = Kept.__new__(Kept)
        again.directory, again.rows = to, dict(self.rows)
        again.open()
        return again

    def verify(self) -> None:
        numbers, names = self.partition.table("numbers"), self.partition.table("names")
        assert {row.id: row.text for row in numbers.scan()} == self.rows
        assert {row.name: row.text for row in names.scan()} == {f"name {key}": t for key, t in self.rows.items()}
        for key, text in self.rows.items():
            assert numbers.get(key).text == text
            assert names.get(f"name {key}").text == text
        self.partition.store.check()


def loaded(directory: Path) -> Store:
    """What the checkpoint alone says, all pages looked at."""
    store = Store(SCHEMA, 0, 1, 64 << 20)
    pages = load(directory, 0, read_checkpoint(directory, 0), store)
    pages.close()
    reader = PageReader(pages.path, store.arena.memory)
    store.use(BufferPool(store.heaps, store.arena, reader, pages.path, 64 << 20))
    try:
        store.check()
    finally:
        reader.close()
    return store


def outcomes(partition: OnePartition) -> list[tuple[int, bytes]]:
    """What retried calls are told, without batches that have nothing to tell."""
    return [(lsn, batch) for lsn, batch in partition.window.remembered[1] if batch != b"\x90"]


def flipped(data: bytes, bit: int) -> bytes:
    damaged = bytearray(data)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def steps(checkpointer: Any) -> Iterator[None]:
    """One look at a time, until the checkpoint that is wanted is made or has failed."""
    while checkpointer.step(0.0):
        yield
        checkpointer._flusher.wait()  # how many steps there are must not depend on the disk


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    one = Kept(tmp_path / "partition")
    yield one
    one.close()


@pytest.mark.parametrize("seed", range(4))
def test_a_crash_between_any_two_steps_comes_back(kept: Kept, tmp_path: Path, seed: int, monkeypatch: Any) -> None:
    print("seed", seed)
    rng = random.Random(seed)
    monkeypatch.setattr(checkpointer_module, "CHUNK_PAGES", 4)
    monkeypatch.setattr(checkpointer_module, "RUN_ENTRIES", 50)
    monkeypatch.setattr(checkpointer_module, "FEW_ENTRIES", 0)
    crashes = based = 0
    for made in range(1, 8):
        for _ in range(rng.randrange(1, 25)):
            kept.change(rng, keys=100)
        kept.checkpointer.request()
        for _ in steps(kept.checkpointer):
            if rng.random() < 0.7:
                kept.change(rng, keys=100)
            if rng.random() < 0.04:
                crashed = kept.crash(tmp_path / f"crash-{crashes}")
                crashed.verify()
                if rng.random() < 0.5:  # and it makes a checkpoint over what the crash left
                    crashed.change(rng)
                    crashed.checkpoint()
                    third = crashed.crash(tmp_path / f"again-{crashes}")
                    third.verify()
                    third.close()
                crashed.close()
                crashes += 1
        assert kept.checkpointer.last.number == made
        based += any(run.name.endswith("all.run") for table in kept.checkpointer.last.root.tables for run in table.runs)
    assert crashes > 0
    assert based > 0


@pytest.mark.parametrize("seed", range(3))
def test_a_store_of_every_kind_of_table_comes_back(tmp_path: Path, seed: int) -> None:
    print("seed", seed)
    rng = random.Random(seed)
    partition = opened(tmp_path, segment_bytes=8192)
    for _ in range(5):
        run_at_random(partition, rng, 20)
        partition.checkpointer.request()
        for _ in steps(partition.checkpointer):
            run_at_random(partition, rng, 1)
        run_at_random(partition, rng, rng.randrange(5))
        before = contents(partition)
        remembered = outcomes(partition)
        assert partition.wal is not None
        partition.checkpointer.close()
        partition.wal.abandon()
        again = opened(tmp_path, segment_bytes=8192)
        assert contents(again) == before
        assert outcomes(again) == remembered
        again.store.check()
        again.number = partition.number
        partition = again
    assert partition.wal is not None
    partition.checkpointer.close()
    partition.wal.abandon()


def test_recovery_replays_only_what_came_after(kept: Kept) -> None:
    rng = random.Random(1)
    for _ in range(60):
        kept.change(rng)
    segments = len(list(kept.directory.glob("wal-*.log")))
    assert segments > 5
    kept.checkpoint()
    assert len(list(kept.directory.glob("wal-*.log"))) == 1
    lsn = kept.checkpointer.last.lsn
    assert lsn == kept.partition.lsn
    kept.change(rng)
    kept.close()
    kept.open()
    assert kept.checkpointer.last.lsn == lsn
    assert kept.partition.wal is not None
    assert kept.partition.wal.written_lsn == lsn + 1
    kept.verify()


def test_places_are_used_again_and_the_file_shrinks(kept: Kept) -> None:
    rng = random.Random(2)
    for key in range(400):
        kept.partition.run("put", key, "x" * 900)
        kept.rows[key] = "x" * 900
    kept.partition.seal()
    kept.checkpoint()
    pages = kept.directory / "pages"
    full = pages.stat().st_size
    for _ in range(20):
        for key in rng.sample(range(400), 40):
            kept.partition.run("put", key, "y" * 900)
            kept.rows[key] = "y" * 900
        kept.partition.seal()
        kept.checkpoint()
    assert pages.stat().st_size <= 2 * full
    for key in range(1, 400):
        kept.partition.run("drop", key)
        del kept.rows[key]
    kept.partition.seal()
    kept.checkpoint()
    kept.checkpoint()  # what the first one released lies at the end now
    assert pages.stat().st_size <= full // 10
    kept.close()
    kept.open()
    kept.verify()


def test_a_page_that_is_not_changed_is_not_written_again(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in range(400):
        kept.partition.run("put", key, "x" * 900)
        kept.rows[key] = "x" * 900
    kept.partition.seal()
    kept.checkpoint()
    written: list[int] = []
    write = PageFile.write
    monkeypatch.setattr(PageFile, "write", lambda self, pages: (written.append(len(pages)), write(self, pages))[1])
    kept.checkpoint()
    assert sum(written) == 0
    kept.partition.run("put", 7, "y" * 900)
    kept.rows[7] = "y" * 900
    kept.partition.seal()
    kept.checkpoint()
    assert sum(written) == 2  # one of each table
    kept.verify()


def test_a_full_disk_puts_the_checkpoint_off(kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(3)
    monkeypatch.setattr(checkpointer_module, "CHUNK_PAGES", 2)
    failed: list[DiskFull] = []
    kept.checkpointer.failed = failed.append
    write = PageFile.write
    writes_left = 0

    def write_while_there_is_room(self: PageFile, pages: list[bytes]) -> list[int]:
        nonlocal writes_left
        writes_left -= 1
        if writes_left < 0:
            raise DiskFull("pages: No space left on device")
        return write(self, pages)

    monkeypatch.setattr(PageFile, "write", write_while_there_is_room)
    now_s = 0.0
    for attempt in range(6):
        for _ in range(20):
            kept.change(rng)
        writes_left = attempt
        kept.checkpointer.request()
        while kept.checkpointer.step(now_s):
            kept.change(rng)
            kept.checkpointer._flusher.wait()
        assert len(failed) == attempt + 1
        assert kept.checkpointer.step(now_s) is False  # not at once again
        now_s += 100.0
        crashed = kept.crash(tmp_path / f"crash-{attempt}")
        crashed.verify()
        crashed.close()
    assert kept.checkpointer.last.number == 0
    writes_left = 1 << 30
    while kept.checkpointer.step(now_s):
        kept.change(rng)
        kept.checkpointer._flusher.wait()
    assert kept.checkpointer.last.number == 1
    kept.close()
    kept.open()
    kept.verify()


@pytest.mark.parametrize("step", range(3, 40, 4))
def test_a_disk_that_takes_only_a_part_of_a_write_puts_the_checkpoint_off(
    kept: Kept, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ext4 does when it is nearly full: the call that fills the disk says how much it took, the next one ENOSPC."""
    rng = random.Random(step)
    for _ in range(30):
        kept.change(rng)
    kept.checkpoint()
    for _ in range(30):
        kept.change(rng)
    failed: list[DiskFull] = []
    kept.checkpointer.failed = failed.append
    kept.checkpointer.request()
    full = False
    pwrite = os.pwrite

    def pwrite_until_full(fd: int, data: Any, offset: int) -> int:
        nonlocal full
        if os.readlink(f"/proc/self/fd/{fd}").endswith(".log"):
            return pwrite(fd, data, offset)
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        full = True
        return pwrite(fd, memoryview(data)[: len(data) // 2], offset)

    for taken, _ in enumerate(steps(kept.checkpointer), start=1):
        if taken == step:
            monkeypatch.setattr(os, "pwrite", pwrite_until_full)
    monkeypatch.undo()
    assert (len(failed), kept.checkpointer.last.number) == ((1, 1) if full else (0, 2))
    kept.close()
    kept.open()
    kept.verify()


def test_a_partition_whose_rows_were_all_replaced_starts_with_the_memory_that_it_had(tmp_path: Path) -> None:
    def opened_small() -> OnePartition:
        return OnePartition(SCHEMA, [put, drop], tmp_path, memory_bytes=4 << 20)

    partition = opened_small()
    for turn in range(2):
        for key in range(1000):
            partition.run("put", turn * 10_000 + key, "x" * 900)
            if key % 50 == 49:
                partition.seal()
        if turn == 0:
            partition.checkpointer.request()
            for _ in steps(partition.checkpointer):
                pass
            for key in range(1000):
                partition.run("drop", key)
                if key % 50 == 49:
                    partition.seal()
    assert partition.wal is not None
    partition.checkpointer.close()
    partition.wal.abandon()
    again = opened_small()
    assert again.table("numbers").count() == again.table("names").count() == 1000
    assert again.checkpointer.last.number == 1
    again.checkpointer.close()
    assert again.wal is not None
    again.wal.abandon()


def test_scattered_pages_are_read(tmp_path: Path) -> None:
    file = PageFile(tmp_path / "pages", [])
    file.write([bytes([n % 256]) * PAGE_BYTES for n in range(4000)])
    assert [page[0] for page in file.read(list(range(0, 4000, 2)))] == [n % 256 for n in range(0, 4000, 2)]
    assert list(runs_of([0, 1, 2, 5, 7, 8])) == [(0, 3), (3, 1), (4, 2)]
    assert list(runs_of([])) == []
    file.close()


def test_every_flipped_bit_of_a_root_is_refused(kept: Kept) -> None:
    kept.partition.run("put", 1, "x")
    kept.partition.seal()
    kept.checkpoint()
    path = kept.directory / "checkpoint"
    whole = path.read_bytes()
    for bit in range(len(whole) * 8):
        overwrite(path, flipped(whole, bit))
        with pytest.raises(Corruption, match="checkpoint offset"):
            read_checkpoint(kept.directory, 0)
    for length in range(len(whole)):
        overwrite(path, whole[:length])
        with pytest.raises(Corruption, match="checkpoint offset"):
            read_checkpoint(kept.directory, 0)
    overwrite(path, whole)
    loaded(kept.directory)


def test_every_flipped_bit_of_a_run_is_refused(kept: Kept) -> None:
    kept.partition.run("put", 1, "x")
    kept.partition.seal()
    kept.checkpoint()
    for path in sorted(kept.directory.glob("index-*.run")):
        whole = path.read_bytes()
        for bit in range(len(whole) * 8):
            overwrite(path, flipped(whole, bit))
            with pytest.raises(Corruption, match=path.name):
                loaded(kept.directory)
        for length in range(len(whole)):
            overwrite(path, whole[:length])
            with pytest.raises(Corruption, match=path.name):
                loaded(kept.directory)
        overwrite(path, whole)
    loaded(kept.directory)


def test_every_flipped_bit_of_a_page_is_refused(kept: Kept) -> None:
    kept.partition.run("put", 1, "x" * 30)
    kept.rows[1] = "x" * 30
    kept.partition.seal()
    kept.checkpoint()
    kept.close()
    path = kept.directory / "pages"
    whole = path.read_bytes()
    assert len(whole) == 2 * PAGE_BYTES
    rng = random.Random(4)
    for bit in (*range(24 * 8), *rng.sample(range(len(whole) * 8), 300)):
        overwrite(path, flipped(whole, bit))
        with pytest.raises(Corruption, match=rf"pages offset {bit // 8 // PAGE_BYTES * PAGE_BYTES}"):
            loaded(kept.directory)
    overwrite(path, whole[:PAGE_BYTES] + whole[:PAGE_BYTES])  # a page in another's place
    with pytest.raises(Corruption, match=r"holds page 0 of table 0 .* not page 0 of table 1"):
        loaded(kept.directory)
    overwrite(path, whole[:-1])
    with pytest.raises(Corruption, match="the file ends here"):
        loaded(kept.directory)
    overwrite(path, whole)
    kept.open()
    kept.verify()


def test_an_older_image_of_a_page_is_refused(kept: Kept) -> None:
    for text in ("old", "new"):
        kept.partition.run("put", 1, text)
        kept.rows[1] = text
        kept.partition.seal()
        kept.checkpoint()
    kept.close()
    path = kept.directory / "pages"
    pages = path.read_bytes()
    at = pages.index(b"new")
    place = at // PAGE_BYTES * PAGE_BYTES
    old = pages.index(b"old") // PAGE_BYTES * PAGE_BYTES
    overwrite(path, pages[:place] + pages[old : old + PAGE_BYTES] + pages[place + PAGE_BYTES :])
    with pytest.raises(Corruption, match=rf"pages offset {place}: holds page 0 .* of generation .*, not page 0 "):
        loaded(kept.directory)
    overwrite(path, pages)
    kept.open()


def test_a_wal_that_ends_before_the_checkpoint_is_refused(kept: Kept) -> None:
    rng = random.Random(5)
    for _ in range(20):
        kept.change(rng)
    kept.checkpoint()
    kept.close()
    (segment,) = kept.directory.glob("wal-*.log")
    whole = segment.read_bytes()
    segment.unlink()
    wal = Wal.open(kept.directory, 0, "always")
    with pytest.raises(Corruption, match="the log ends at LSN"):
        list(wal.replay(kept.checkpointer.last.lsn))
    wal.abandon()
    segment.write_bytes(whole)
    kept.open()


def test_leftovers_of_an_unfinished_checkpoint_are_removed(kept: Kept) -> None:
    kept.checkpoint()
    (kept.directory / "index-0-99.run").write_bytes(b"half a run")
    (kept.directory / "checkpoint.new").write_bytes(b"half a root")
    kept.close()
    kept.open()
    assert not (kept.directory / "index-0-99.run").exists()
    assert not (kept.directory / "checkpoint.new").exists()
