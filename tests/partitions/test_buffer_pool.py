"""Tables that are larger than memory: pages leave, calls that miss them wait and run again, nothing is lost."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from partitions.buffer_pool import SIZES_REMEMBERED
from partitions.flusher import Flusher
from partitions.page import PAGE_BYTES
from partitions.set_aside import TIMES_SET_ASIDE
from tests.partitions.one_partition import OnePartition
from voltpy.errors import Corruption, ReadOnly
from voltpy.procedure import procedure
from voltpy.resident import resident_bytes
from voltpy.sql.ddl import parse_schema

SCHEMA = parse_schema(
    """
    CREATE TABLE items (id INT PRIMARY KEY, n INT NOT NULL, pad STRING);
    PARTITION TABLE items ON COLUMN id;
    CREATE TABLE names (name STRING PRIMARY KEY, n INT NOT NULL, pad STRING);
    PARTITION TABLE names ON COLUMN name;
    CREATE INDEX items_n ON items USING BTREE (n);
    CREATE INDEX names_n ON names (n);
    """
)
FRAMES = 24
LARGE = 20_000


@procedure(partition_by="key")
def put(tx: Any, key: int, n: int, size: int) -> None:
    tx.items.upsert(key, n, "x" * size)


@procedure(partition_by="key")
def get(tx: Any, key: int) -> Any:
    row = tx.items.get(key)
    return None if row is None else [row.n, len(row.pad)]


@procedure(partition_by="key")
def add(tx: Any, key: int, n: int) -> Any:
    row = tx.items.get(key)
    return None if row is None else tx.items.update(key, n=row.n + n).n


@procedure(partition_by="key")
def delete(tx: Any, key: int) -> bool:
    return bool(tx.items.delete(key))


@procedure(partition_by="key")
def sum_of(tx: Any, key: int, count: int) -> int:
    return sum(row.n for row in (tx.items.get(other) for other in range(key, key + count)) if row is not None)


@procedure(partition_by="key")
def between(tx: Any, key: int, until: int) -> list[list[int]]:
    return [[row.id, row.n] for row in tx.items.range(key, until)]


@procedure(partition_by="key")
def ranges_of(tx: Any, key: int, count: int) -> int:
    return sum(row.n for start in range(key, key + count, 10) for row in tx.items.range(start, start + 10))


@procedure(partition_by="key")
def put_and_range(tx: Any, key: int, low: int, high: int) -> int:
    tx.items.upsert(key, 1, "x")
    return len(list(tx.items.range(low, high)))


@procedure(partition_by="key")
def swallow(tx: Any, key: int) -> str:
    try:
        tx.items.get(key)
    except BaseException:  # noqa: BLE001 — what a careless procedure may do
        return "swallowed"
    return "there"


@procedure(partition_by="name")
def name(tx: Any, name: str, n: int, size: int) -> Any:
    before = tx.names.get(name)
    tx.names.upsert(name, n, "x" * size)
    return None if before is None else before.n


@procedure(partition_by="name")
def unname(tx: Any, name: str) -> bool:
    return bool(tx.names.delete(name))


@procedure(partition_by=None, read_only=True, everywhere=True)
def totals(tx: Any) -> list[int]:
    items, names = list(tx.items.scan()), list(tx.names.scan())
    return [len(items), sum(row.n for row in items), len(names), sum(row.n for row in names)]


PROCEDURES = [put, get, add, delete, sum_of, ranges_of, put_and_range, between, swallow, name, unname, totals]


def opened(directory: Path, frames: int = FRAMES) -> OnePartition:
    return OnePartition(SCHEMA, PROCEDURES, directory, memory_bytes=frames * PAGE_BYTES, frames=frames)


def closed(partition: OnePartition) -> None:
    """As a killed process leaves it, but that what was written is on disk."""
    partition.reader.close()
    partition.checkpointer.close()
    assert partition.wal is not None
    partition.wal.abandon()


def checkpointed(partition: OnePartition) -> None:
    partition.checkpointer.request()
    number = partition.checkpointer.last.number
    while partition.checkpointer.last.number == number or partition.checkpointer.running:
        partition.checkpointer._flusher.wait()
        partition.checkpointer.step(0.0)


def evicted(partition: OnePartition, frames: int = 1) -> None:
    pool = partition.pool
    capacity, pool.capacity = pool.capacity, frames
    pool.step(0.0)
    pool.capacity = capacity


def cold_pages(partition: OnePartition) -> int:
    return sum(heap.cold for heap in partition.store.heaps)


def filled(directory: Path, rows: int, size: int = 1000) -> OnePartition:
    """Rows, a checkpoint, and next to nothing of it in memory."""
    partition = opened(directory)
    for key in range(rows):
        partition.call("put", key, key, size)
    checkpointed(partition)
    evicted(partition)
    assert cold_pages(partition) > 0
    return partition


def test_a_call_that_misses_a_page_waits_for_it_and_others_run_meanwhile(tmp_path: Path) -> None:
    partition = filled(tmp_path, 60)
    partition.call("get", 59)
    faults = partition.pool.faults
    partition.answers.clear()
    missing = partition.run("get", 0)
    present = partition.run("get", 59)
    partition.seal()
    assert partition.answers == {present: [59, 1000]}
    assert partition.executor.waiting == 1
    partition.turn_pages()
    assert partition.answers[missing] == [0, 1000]
    assert partition.executor.waiting == 0
    assert partition.pool.faults == faults + 1
    assert partition.executor.counts["set_aside"] == partition.executor.counts["reruns"] > 0
    closed(partition)


def test_calls_that_miss_the_same_page_share_one_read(tmp_path: Path) -> None:
    partition = filled(tmp_path, 60)
    faults = partition.pool.faults
    numbers = partition.run_group("get", [(0,), (1,), (0,)])
    partition.seal()
    partition.turn_pages()
    assert [partition.answers[number] for number in numbers] == [[0, 1000], [1, 1000], [0, 1000]]
    assert partition.pool.faults == faults + 1
    closed(partition)


def test_a_range_misses_all_its_pages_at_once(tmp_path: Path) -> None:
    partition = filled(tmp_path, 60)
    assert partition.call("between", 20, 40) == [[key, key] for key in range(20, 40)]
    assert partition.executor.counts["reruns"] == 1
    closed(partition)


def test_a_long_range_reads_past_the_frames(tmp_path: Path) -> None:
    partition = filled(tmp_path, 900)
    assert cold_pages(partition) > 64
    evictions, in_use = partition.pool.evictions, partition.store.arena.frames_in_use
    assert partition.call("between", 0, 900) == [[key, key] for key in range(900)]
    assert (partition.pool.evictions, partition.store.arena.frames_in_use) == (evictions, in_use)
    assert partition.executor.counts["reruns"] == 0
    closed(partition)


def test_a_scan_displaces_nothing(tmp_path: Path) -> None:
    partition = filled(tmp_path, 300)
    evictions, in_use = partition.pool.evictions, partition.store.arena.frames_in_use
    assert partition.call_everywhere("totals") == [300, sum(range(300)), 0, 0]
    assert (partition.pool.evictions, partition.store.arena.frames_in_use) == (evictions, in_use)
    assert partition.executor.counts["reruns"] == 0
    closed(partition)


def test_a_call_that_needs_one_page_after_another_waits_for_them_in_the_end(tmp_path: Path) -> None:
    partition = filled(tmp_path, 120)
    pages = cold_pages(partition)
    assert partition.call("sum_of", 0, 120) == sum(range(120))
    assert partition.executor.counts["set_aside"] == TIMES_SET_ASIDE < pages
    evicted(partition)
    assert partition.call("ranges_of", 0, 120) == sum(range(120))
    assert partition.executor.counts["set_aside"] == 2 * TIMES_SET_ASIDE
    closed(partition)


def test_a_call_may_read_more_pages_than_there_is_room_for(tmp_path: Path) -> None:
    partition = filled(tmp_path, 400)
    assert cold_pages(partition) > FRAMES
    assert partition.call("sum_of", 0, 400) == sum(range(400))
    closed(partition)


def test_pages_of_decoded_rows_that_a_batch_changes_stay_until_it_is_over(tmp_path: Path) -> None:
    """Nothing is cold when the rows are changed, so nothing is asked about their pages; then room is made."""
    partition = filled(tmp_path, 60)
    partition.pool.capacity = 2 * FRAMES
    for _ in range(2):
        for key in range(60):
            partition.call("get", key)
    assert cold_pages(partition) == 0
    partition.run_group("add", [(key, 1000) for key in range(16)])
    partition.run_group("put", [(key, key, 1000) for key in range(100, 140)])
    needed = partition.table("items").pages_needed([b"x" * 1000] * 56)
    partition.pool.capacity = partition.store.arena.frames_in_use + needed - 5
    partition.seal()
    assert cold_pages(partition) >= 5
    assert [partition.call("get", key) for key in range(16)] == [[1000 + key, 1000] for key in range(16)]
    partition.store.check()
    closed(partition)


def test_a_swallowed_miss_does_not_count(tmp_path: Path) -> None:
    partition = filled(tmp_path, 60)
    assert partition.call("swallow", 59) == "there"
    closed(partition)


def test_a_row_larger_than_a_page_comes_back_whole(tmp_path: Path) -> None:
    partition = opened(tmp_path)
    for key in range(4):
        partition.call("put", key, key, LARGE)
    checkpointed(partition)
    evicted(partition)
    reruns = partition.executor.counts["reruns"]
    assert [partition.call("get", key) for key in range(4)] == [[key, LARGE] for key in range(4)]
    assert partition.executor.counts["reruns"] - reruns <= 8  # the page with its stub, and all the others together
    evicted(partition)
    assert partition.call("delete", 2) is True
    assert partition.call("add", 3, 7) == 10
    assert partition.call("get", 3) == [10, LARGE]
    partition.store.check()
    closed(partition)


def test_a_decoded_row_is_read_without_its_page_and_changed_with_it(tmp_path: Path) -> None:
    partition = filled(tmp_path, 60)
    for _ in range(2):
        partition.call("get", 0)
    evicted(partition)
    reruns = partition.executor.counts["reruns"]
    assert partition.call("get", 0) == [0, 1000]
    assert partition.executor.counts["reruns"] == reruns
    assert partition.call("add", 0, 1) == 1
    assert partition.executor.counts["reruns"] == reruns + 1
    partition.store.check()
    closed(partition)


def test_a_damaged_page_is_named_when_it_is_read(tmp_path: Path) -> None:
    partition = filled(tmp_path, 60)
    data = bytearray((tmp_path / "pages").read_bytes())
    for place in range(len(data) // PAGE_BYTES):
        data[place * PAGE_BYTES + 5000] ^= 1
    (tmp_path / "pages").write_bytes(data)
    with pytest.raises(Corruption, match=r"pages offset \d+: the page's checksum is wrong"):
        partition.call("get", 0)
    closed(partition)


def test_dirty_pages_stay_until_a_checkpoint_has_written_them(tmp_path: Path) -> None:
    partition = opened(tmp_path)
    for key in range(60):
        partition.call("put", key, key, 1000)
    evicted(partition)
    assert cold_pages(partition) == 0
    checkpointed(partition)
    evicted(partition)
    assert cold_pages(partition) > 0
    closed(partition)


def test_a_batch_larger_than_memory_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    partition = filled(tmp_path, 60)
    numbers = partition.run_group("put", [(key, 1, 7000) for key in range(100, 200)])

    def rerun() -> None:
        partition.run_group("put", [(key, 1, 7000) for key in range(100, 200)], numbers)

    assert partition.seal_or_refuse(rerun) is False
    assert {type(partition.answers[number]) for number in numbers} == {ReadOnly}
    assert partition.call_everywhere("totals") == [60, sum(range(60)), 0, 0]
    assert partition.call("put", 100, 1, 7000) is None
    partition.store.check()
    closed(partition)


@pytest.mark.parametrize("seed", range(6))
def test_whatever_is_in_memory_the_answers_are_those_of_a_dict(seed: int, tmp_path: Path) -> None:
    """Random calls on data several times larger than the pool, checkpoints and crashes in between."""
    print("seed", seed)
    rng = random.Random(seed)
    partition = opened(tmp_path, 64)
    items: dict[int, list[int]] = {}
    names: dict[str, int] = {}
    most = evictions = 0
    for turn in range(100):
        expected: dict[int, Any] = {}
        keys = rng.sample(range(1500), 40)
        for key in keys:  # each key once: calls under way together have no order among themselves
            kind, n, size = rng.random(), rng.randrange(1000), rng.choice([10] + [500, 900, 1500] * 6 + [5000, LARGE])
            word = f"name {key}" * 3
            if kind < 0.4:
                expected[partition.run("put", key, n, size)] = None
                items[key] = [n, size]
            elif kind < 0.6:
                expected[partition.run("get", key)] = items.get(key)
            elif kind < 0.75:
                known = items.get(key)
                expected[partition.run("add", key, n)] = None if known is None else known[0] + n
                if known is not None:
                    items[key] = [known[0] + n, known[1]]
            elif kind < 0.85:
                expected[partition.run("delete", key)] = items.pop(key, None) is not None
            elif kind < 0.95:
                expected[partition.run("name", word, n, min(size, 900))] = names.get(word)
                names[word] = n
            else:
                expected[partition.run("unname", word)] = names.pop(word, None) is not None
        partition.answers.clear()
        partition.seal()
        partition.turn_pages()
        assert partition.answers == expected
        assert partition.store.arena.frames_in_use <= partition.pool.capacity
        most = max(most, sum(heap.pages for heap in partition.store.heaps))
        if partition.pool.needs_cleaning or rng.random() < 0.2:
            for _ in range(rng.randrange(40)):
                if not partition.checkpointer.step(0.0):
                    break
        while partition.pool.must_clean:
            assert partition.checkpointer.clean_some()
        if rng.random() < 0.1:
            evictions += partition.pool.evictions
            closed(partition)
            partition = opened(tmp_path, 64)
        if turn % 10 == 0:
            partition.store.check()
            assert partition.call_everywhere("totals") == [
                len(items), sum(n for n, _ in items.values()), len(names), sum(names.values()),
            ]  # fmt: skip
    assert most > 3 * 64
    assert evictions + partition.pool.evictions > 0
    for key, value in items.items():
        assert partition.call("get", key) == value
    partition.store.check()
    closed(partition)


def test_memory_goes_back_when_most_rows_are_deleted(tmp_path: Path) -> None:
    partition = opened(tmp_path, 4096)
    for key in range(0, 12_000, 100):
        partition.run_group("put", [(other, 1, 1000) for other in range(key, key + 100)])
        partition.seal()
    pool, arena = partition.pool, partition.store.arena
    full = arena.resident_bytes
    assert full > 12_000_000
    for key in range(0, 11_900, 100):
        partition.run_group("delete", [(other,) for other in range(key, key + 100)])
        partition.seal()
    pool.steer(resident_bytes())
    assert arena.resident_bytes < full // 4
    assert partition.call_everywhere("totals") == [100, 100, 0, 0]
    partition.store.check()
    closed(partition)


def test_the_capacity_follows_the_size_of_the_process(tmp_path: Path) -> None:
    partition = filled(tmp_path, 300)
    pool, arena = partition.pool, partition.store.arena
    budget = pool._budget_bytes
    pool.steer(arena.resident_bytes)  # nothing but pages
    assert pool.capacity == arena.frames == budget // PAGE_BYTES
    pool.steer(arena.resident_bytes + budget // 2)
    assert pool.capacity == arena.frames  # it may be a batch that takes memory and leaves it again
    for _ in range(SIZES_REMEMBERED):
        pool.steer(arena.resident_bytes + budget // 2)
    assert pool.capacity == arena.frames // 2
    for key in range(300):
        assert partition.call("get", key) == [key, 1000]
        assert arena.frames_in_use <= pool.capacity
    for _ in range(SIZES_REMEMBERED):
        pool.steer(arena.resident_bytes + 2 * budget)
    assert pool.capacity == max(arena.frames // 16, 1)
    assert partition.call("get", 299) == [299, 1000]
    closed(partition)


def test_indexes_that_take_nearly_all_memory_refuse_new_rows(tmp_path: Path) -> None:
    partition = filled(tmp_path, 300)
    partition.store._memory_bytes = 300 * 34
    number = partition.run("put", 1000, 1, 1000)
    assert not partition.seal_or_refuse(lambda: partition.run("put", 1000, 1, 1000, number=number) and None)
    assert isinstance(partition.answers[number], ReadOnly)
    assert "the indexes take" in str(partition.answers[number])
    assert partition.call("get", 299) == [299, 1000]
    closed(partition)


def test_a_long_range_sees_what_its_transaction_has_added(tmp_path: Path) -> None:
    closed(filled(tmp_path, 900))
    partition = opened(tmp_path)
    assert cold_pages(partition) > 64
    assert partition.call("put_and_range", 5000, 0, 6000) == 901
    assert partition.call("put_and_range", 5, 0, 6000) == 901
    closed(partition)


def test_the_status_may_be_asked_while_large_rows_are_on_disk(tmp_path: Path) -> None:
    partition = opened(tmp_path)
    for key in range(4):
        partition.call("put", key, key, LARGE)
    checkpointed(partition)
    evicted(partition)
    (page,) = partition.table("items").pages_of(0)
    partition.pool.bring(page)
    partition.store.misses.bring = None
    assert partition.store.read_latency_us() == {"hot": None, "resident": None}
    assert partition.store.undo_log == []
    closed(partition)


@pytest.mark.parametrize("what", ["write", "flush"])
def test_a_disk_that_fails_in_the_middle_of_a_transaction_is_not_taken_for_its_error(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call waits for pages, which must wait for a checkpoint; the procedure catches whatever it raises."""
    partition = filled(tmp_path, 300)
    for key in range(0, 96, 8):
        partition.call("put", key, key, 1000)
    evicted(partition)
    partition.pool.capacity = partition.store.arena.frames_in_use  # nothing but what has changed
    fired: list[str] = []
    flusher = partition.checkpointer._flusher

    def fail(*_: Any) -> Any:
        fired.append(what)
        while not Flusher.done(flusher):  # a flush that has failed runs no more: the file is closed next
            pass
        raise OSError(5, "bad disk")

    if what == "write":
        monkeypatch.setattr(partition.checkpointer._file, "write", fail)
    else:
        monkeypatch.setattr(flusher, "wait", fail)
        monkeypatch.setattr(flusher, "done", fail)
    partition.bring = partition.pool.bring
    partition.run("sum_of", 100, 150)
    assert fired
    with pytest.raises(OSError, match="bad disk"):
        partition.seal()
    monkeypatch.undo()
    with pytest.raises(OSError, match="bad disk"):
        partition.seal()
    closed(partition)
    partition = opened(tmp_path)
    assert partition.call("sum_of", 0, 300) == sum(range(300))
    partition.store.check()
    closed(partition)


def test_damage_in_the_middle_of_a_transaction_is_not_taken_for_its_error(tmp_path: Path) -> None:
    partition = filled(tmp_path, 300)
    data = bytearray((tmp_path / "pages").read_bytes())
    for place in range(len(data) // PAGE_BYTES):
        data[place * PAGE_BYTES + 4000] ^= 1
    (tmp_path / "pages").write_bytes(data)
    partition.run_everywhere("totals")
    with pytest.raises(Corruption, match=r"pages offset \d+"):
        partition.seal()
    closed(partition)


@pytest.mark.parametrize("tables", [1, 12])
def test_a_recovery_with_less_memory_finds_room_for_every_table(tables: int, tmp_path: Path) -> None:
    schema = parse_schema(
        "".join(
            f"CREATE TABLE t{i} (id INT PRIMARY KEY, pad STRING); PARTITION TABLE t{i} ON COLUMN id;"
            for i in range(tables)
        )
    )

    @procedure(partition_by="key")
    def fill(tx: Any, key: int, size: int) -> None:
        for i in range(tables):
            getattr(tx, f"t{i}").upsert(key, "x" * size)

    partition = OnePartition(schema, [fill], tmp_path, memory_bytes=8192 * PAGE_BYTES)
    for key in range(1200 // tables):
        partition.call("fill", key, 7000)
    closed(partition)
    partition = OnePartition(schema, [fill], tmp_path, memory_bytes=128 * PAGE_BYTES, frames=128)
    assert sum(table.row_count for table in partition.store.tables) == 1200 // tables * tables
    partition.store.check()
    closed(partition)
