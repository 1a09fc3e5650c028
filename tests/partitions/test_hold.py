"""A checkpoint that is held stays as it is, whatever the partition does; and it is not held for ever."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from partitions import checkpointer as checkpointer_module
from partitions.buffer_pool import BufferPool
from partitions.checkpoint import load, read_root
from partitions.copier import Copier, plan
from partitions.hold import HELD_ROOT, Hold
from partitions.page_file import PageFile
from partitions.page_reader import PageReader
from partitions.store import Store
from tests.partitions.test_checkpoint import SCHEMA, Kept, steps
from voltpy.record_log import DiskFull


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    (tmp_path / "data").mkdir()
    one = Kept(tmp_path / "data" / "partition-0")
    yield one
    one.close()


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpointer_module, "CHUNK_PAGES", 4)
    monkeypatch.setattr(checkpointer_module, "FEW_ENTRIES", 0)


class Holding:
    """Asks for a hold, and gathers what is said about it."""

    def __init__(self, kept: Kept) -> None:
        self.kept = kept
        self.said: list[tuple[int, int, str]] = []
        kept.checkpointer.held = lambda hold, error: self.said.append((hold.snapshot, hold.checkpoint, error))

    def hold(self, snapshot: int = 7, until_s: float = 100.0) -> None:
        """Until the checkpoint is there."""
        self.kept.checkpointer.keep(snapshot, until_s)
        for _ in steps(self.kept.checkpointer):
            pass
        assert self.said[-1] == (snapshot, self.kept.checkpointer.last.number, "")


def rows_of(directory: Path) -> dict[int, str]:
    """What the checkpoint in a directory says, without any WAL, all of its pages looked at."""
    store = Store(SCHEMA, 0, 1, 64 << 20)
    pages = load(directory, 0, read_root(directory / "checkpoint", 0), store)
    reader = PageReader(pages.path, store.arena.memory)
    try:
        store.use(BufferPool(store.heaps, store.arena, reader, pages.path, 64 << 20))
        store.check()
        return {row.id: row.text for row in store.by_name["numbers"].scan()}
    finally:
        reader.close()
        pages.close()


def copied(kept: Kept, to: Path) -> Path:
    """The held checkpoint, copied as a snapshot copies it."""
    to.mkdir()
    Copier(None).copy([plan(kept.directory.parent, to, 0)])
    return to / "partition-0"


@pytest.mark.parametrize("seed", range(3))
def test_what_is_held_can_be_copied_whatever_is_written_meanwhile(kept: Kept, tmp_path: Path, seed: int) -> None:
    print("seed", seed)
    rng = random.Random(seed)
    for _ in range(20):
        kept.change(rng, keys=100)
    kept.checkpoint()
    for _ in range(10):
        kept.change(rng, keys=100)
    held_rows = dict(kept.rows)
    holding = Holding(kept)
    holding.hold()
    held = plan(kept.directory.parent, tmp_path, 0)
    pages = {place: _page(kept, place) for place in held.places}
    for _ in range(4):
        for _ in range(15):
            kept.change(rng, keys=100)
        kept.checkpoint()
        assert {place: _page(kept, place) for place in held.places} == pages
    assert rows_of(copied(kept, tmp_path / "copy")) == held_rows
    assert rows_of(kept.directory) == kept.rows != held_rows
    assert kept.checkpointer.let_go(7)
    kept.verify()


def test_a_copy_has_the_pages_that_the_root_names_and_no_others(kept: Kept, tmp_path: Path) -> None:
    rng = random.Random(1)
    for _ in range(3):
        for _ in range(15):
            kept.change(rng, keys=100)
        kept.checkpoint()
    Holding(kept).hold()
    held = set(plan(kept.directory.parent, tmp_path, 0).places)
    source, copy = (kept.directory / "pages").read_bytes(), (copied(kept, tmp_path / "copy") / "pages").read_bytes()
    assert len(copy) == (max(held) + 1) * 8192
    free = 0
    for place in range(len(copy) // 8192):
        page = copy[place * 8192 : (place + 1) * 8192]
        assert page == (source[place * 8192 : (place + 1) * 8192] if place in held else bytes(8192))
        free += place not in held
    assert free > 0, "there was nothing to leave out"


def test_places_and_runs_go_when_the_hold_is_over(kept: Kept) -> None:
    rng = random.Random(2)
    for _ in range(40):
        kept.change(rng, keys=100)
    Holding(kept).hold()
    runs = {run.name for table in kept.checkpointer.last.root.tables for run in table.runs}
    for _ in range(5):
        for _ in range(20):
            kept.change(rng, keys=100)
        kept.checkpoint()
    assert runs < {path.name for path in kept.directory.glob("index-*.run")}, "they are kept, beside others"
    places = kept.checkpointer._file.places
    assert kept.checkpointer.let_go(7)
    assert not (kept.directory / HELD_ROOT).exists()
    for _ in steps(kept.checkpointer):  # letting go makes one due
        pass
    named = {run.name for table in kept.checkpointer.last.root.tables for run in table.runs}
    assert {path.name for path in kept.directory.glob("index-*.run")} == named
    assert kept.checkpointer._file.free_places > 0 or kept.checkpointer._file.places < places
    kept.verify()


def test_a_hold_that_is_asked_for_while_a_checkpoint_is_made_gets_the_next_one(kept: Kept, tmp_path: Path) -> None:
    rng = random.Random(3)
    for _ in range(20):
        kept.change(rng)
    kept.checkpointer.request()
    under_way = steps(kept.checkpointer)
    next(under_way)
    kept.change(rng)
    holding = Holding(kept)
    kept.checkpointer.keep(7, 100.0)
    for _ in under_way:
        pass
    for _ in steps(kept.checkpointer):
        pass
    assert holding.said == [(7, 2, "")]
    assert rows_of(copied(kept, tmp_path / "copy")) == kept.rows


def test_a_hold_ends_when_its_lease_does_and_checkpoints_go_on(kept: Kept) -> None:
    rng = random.Random(4)
    kept.change(rng)
    holding = Holding(kept)
    holding.hold(until_s=5.0)
    kept.checkpointer.keep_longer(7, 9.0)
    kept.checkpointer.keep_longer(8, 99.0)  # another snapshot's
    kept.checkpointer.step(8.9)
    assert kept.checkpointer.hold is not None
    kept.checkpointer.step(9.0)
    assert kept.checkpointer.hold is None
    kept.checkpointer.keep_longer(7, 99.0)  # too late
    assert not kept.checkpointer.let_go(7), "whoever copied must hear that it was not held to the end"
    for _ in range(3):
        kept.change(rng)
        kept.checkpoint()
    kept.verify()


def test_what_is_let_go_before_it_was_there_was_never_held(kept: Kept) -> None:
    kept.change(random.Random(9))
    holding = Holding(kept)
    kept.checkpointer.keep(7, 100.0)
    assert not kept.checkpointer.let_go(7)
    for _ in steps(kept.checkpointer):  # it is made all the same
        pass
    assert holding.said == []
    assert not (kept.directory / HELD_ROOT).exists()


def test_a_full_disk_refuses_the_hold(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    kept.change(random.Random(5))
    holding = Holding(kept)

    def full(*_: Any) -> Any:
        raise DiskFull("pages: No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(PageFile, "write", full)
        kept.checkpointer.keep(7, 100.0)
        for _ in steps(kept.checkpointer):
            pass
    assert holding.said == [(7, 0, "pages: No space left on device")]
    assert kept.checkpointer.hold is None
    holding.hold(8)  # at once, though a checkpoint without a hold would be put off
    assert kept.checkpointer.let_go(8)


def test_a_file_system_without_second_names_refuses_the_hold_and_nothing_else(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept.change(random.Random(6))
    holding = Holding(kept)

    def no_links(*_: Any) -> Any:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    kept.checkpointer.keep(7, 100.0)
    for _ in steps(kept.checkpointer):
        pass
    ((snapshot, _, why),) = holding.said
    assert snapshot == 7
    assert "can't be held: Operation not permitted" in why
    assert kept.checkpointer.last.number == 1
    kept.verify()


def test_a_start_removes_what_a_dead_holder_left(kept: Kept) -> None:
    kept.change(random.Random(7))
    Holding(kept).hold()
    assert (kept.directory / HELD_ROOT).exists()
    kept.close()
    kept.open()
    assert not (kept.directory / HELD_ROOT).exists()
    kept.verify()


def test_a_newer_hold_takes_the_place_of_an_older_one(kept: Kept) -> None:
    kept.change(random.Random(8))
    holding = Holding(kept)
    holding.hold(7)
    holding.hold(8)
    assert not kept.checkpointer.let_go(7)
    assert kept.checkpointer.let_go(8)


def test_clearing_where_nothing_is_held_is_no_error(tmp_path: Path) -> None:
    Hold.clear(tmp_path)


def _page(kept: Kept, place: int) -> bytes:
    return next(kept.checkpointer._file.read([place]))
