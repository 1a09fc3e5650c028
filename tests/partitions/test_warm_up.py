"""A partition that starts again has in memory what it had before, without being asked for it."""

from __future__ import annotations

from datetime import datetime, time, timedelta
from pathlib import Path

import pytest

from partitions import warm_up as warm_up_module
from partitions.heat import read_heat
from partitions.warm_up import HEAT, KEYS, WarmUp
from tests.partitions.one_partition import OnePartition
from tests.partitions.test_buffer_pool import checkpointed, closed, evicted, opened
from voltpy.warm_schedule import WARM_SOURCES, Entry

ALWAYS = frozenset(range(7))


def warmed(partition: OnePartition, *sources: str, schedule: list[Entry] | None = None) -> WarmUp:
    assert partition.wal is not None
    directory = partition.pool._path.parent
    warm_up = WarmUp(
        directory, 0, partition.store, partition.pool, sources=sources, bytes_per_s=1 << 30, schedule=schedule or []
    )
    warm_up.failed = pytest.fail
    warm_up.begin()
    return warm_up


def warm(partition: OnePartition, warm_up: WarmUp, now_s: float = 100.0) -> None:
    """Until there is nothing left to read."""
    while warm_up.due_s(now_s) is not None or partition.pool.is_reading:
        warm_up.step(now_s)
        partition.pool.step(now_s, 1.0)
        now_s += 0.01


def filled(directory: Path, rows: int, frames: int) -> OnePartition:
    partition = opened(directory, frames)
    for key in range(rows):
        partition.call("put", key, key, 1000)
    checkpointed(partition)
    evicted(partition)
    return partition


def resident(partition: OnePartition) -> set[int]:
    (items, _) = partition.store.heaps
    return {page for page in range(items.page_numbers) if items.is_resident(page)}


def test_what_was_in_memory_is_in_memory_after_a_start(tmp_path: Path) -> None:
    partition = filled(tmp_path, 600, 64)
    for key in range(100, 200):
        partition.call("get", key)
    before = resident(partition)
    assert 10 < len(before) < 64
    warmed(partition, *WARM_SOURCES).dump(flush=True)
    closed(partition)
    hottest, _ = read_heat(tmp_path / HEAT, 0)
    assert set(hottest) == before
    partition = opened(tmp_path, 64)
    assert not before <= resident(partition)
    warm_up = warmed(partition, "heat")
    warm(partition, warm_up)
    assert set(hottest[:16]) <= resident(partition)
    assert warm_up.progress(200.0)[0].state in ("full", "done")
    closed(partition)


def test_where_all_fits_all_comes_back(tmp_path: Path) -> None:
    partition = filled(tmp_path, 300, 256)
    closed(partition)
    partition = opened(tmp_path, 256)
    warm(partition, warmed(partition, "heat"))
    assert sum(heap.cold for heap in partition.store.heaps) == 0
    closed(partition)


def test_the_pages_of_hot_keys_come_first(tmp_path: Path) -> None:
    partition = filled(tmp_path, 300, 64)
    warm_up = warmed(partition, "keys")
    for _ in range(3):
        partition.call("get", 17)
    warm_up.dump(flush=True)
    closed(partition)
    (tmp_path / HEAT).unlink()
    partition = opened(tmp_path, 64)
    warm(partition, warmed(partition, "keys"))
    (page,) = partition.table("items").pages_of(17)
    assert resident(partition) == {page}
    closed(partition)


def test_a_source_that_is_off_reads_nothing(tmp_path: Path) -> None:
    partition = filled(tmp_path, 300, 256)
    closed(partition)
    partition = opened(tmp_path, 256)
    warm(partition, warmed(partition))
    assert resident(partition) == set()
    closed(partition)


def test_damaged_hints_are_told_and_harmless(tmp_path: Path) -> None:
    partition = filled(tmp_path, 60, 64)
    warmed(partition, *WARM_SOURCES).dump(flush=True)
    for name in (HEAT, KEYS):
        data = bytearray((tmp_path / name).read_bytes())
        data[-1] ^= 1
        (tmp_path / name).write_bytes(data)
    told: list[str] = []
    warm_up = WarmUp(tmp_path, 0, partition.store, partition.pool, sources=(), bytes_per_s=1 << 20, schedule=[])
    warm_up.failed = told.append
    warm_up.begin()
    assert len(told) == 2
    assert str(tmp_path / HEAT) in told[0]
    closed(partition)


def test_a_schedule_brings_its_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock(datetime):
        at = datetime(2026, 3, 2, 8, 54, 59)

        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]  # as the module calls it
            return cls.at

    monkeypatch.setattr(warm_up_module, "datetime", Clock)
    partition = filled(tmp_path, 300, 256)
    partition.call("name", "someone", 1, 900)
    checkpointed(partition)
    evicted(partition)
    entries = [Entry(1, time(8, 55), ALWAYS, ("items",), None)]
    warm_up = warmed(partition, "schedule", schedule=entries)
    warm(partition, warm_up)
    before = len(resident(partition))
    Clock.at += timedelta(seconds=2)
    warm_up.step(200.0)
    warm(partition, warm_up, 200.0)
    items, names = partition.store.heaps
    assert items.cold == 0
    assert before < len(resident(partition))
    assert names.cold + names.pinned_pages <= names.pages
    closed(partition)


def test_pages_in_a_row_are_read_ahead_and_used(tmp_path: Path) -> None:
    partition = filled(tmp_path, 900, 2048)
    warm_up = warmed(partition, "prefetch")
    now_s = 100.0
    for key in range(700):
        assert partition.call("get", key) == [key, 1000]
        now_s += 0.1
        warm_up.step(now_s)
        while partition.pool.is_reading:
            partition.pool.step(now_s, 1.0)
    used, wasted, is_on = warm_up._prefetch.usefulness("sequential")
    assert used > 50
    assert wasted <= used // 4
    assert is_on
    assert partition.pool.faults < 50
    partition.store.check()
    closed(partition)
