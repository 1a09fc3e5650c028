"""Images of secondary indexes: written while the table changes, taken at a start, not needed where they are damaged."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyroaring import BitMap
from xxhash import xxh3_128_intdigest

from partitions import checkpointer as checkpointer_module
from partitions import index_image, lookups
from partitions.index_image import image_of, read_image
from partitions.posting_list import sorted_ids
from partitions.secondary_index import SecondaryIndex
from tests.partitions.one_partition import OnePartition
from tests.partitions.test_checkpoint import flipped, steps
from tests.partitions.test_secondary_index import INDEXES, ROW, TABLE
from voltpy.errors import Corruption
from voltpy.procedure import procedure
from voltpy.registry import from_functions
from voltpy.schema import Index
from voltpy.sql.ddl import parse_schema

TEXT = """
    CREATE TABLE people (id INT PRIMARY KEY, n INT, name STRING, pad STRING);
    PARTITION TABLE people ON COLUMN id;
    CREATE INDEX by_n ON people (n);
    CREATE INDEX by_name ON people USING HASH (name);
    CREATE INDEX names ON people USING BTREE (name, n);
    CREATE UNIQUE INDEX one ON people USING BTREE (id, n);
"""
SCHEMA = parse_schema(TEXT)


@procedure(partition_by="key")
def put(tx: Any, key: int, n: int | None, name: str | None, size: int) -> None:
    tx.people.upsert(key, n, name, "x" * size)


@procedure(partition_by="key")
def drop(tx: Any, key: int) -> None:
    tx.people.delete(key)


class People:
    """A partition on disk beside a dict."""

    def __init__(self, directory: Path, text: str = TEXT) -> None:
        self.directory, self.text = directory, text
        self.rows: dict[int, tuple[int | None, str | None]] = {}
        self.open()

    def open(self) -> None:
        self.partition = OnePartition(parse_schema(self.text), [put, drop], self.directory, segment_bytes=1 << 16)
        self.lost = self.partition.store.lost_images

    @property
    def lookups(self) -> lookups.Lookups:
        return self.partition.table("people").lookups  # type: ignore[no-any-return]

    def change(self, rng: random.Random, count: int = 20) -> None:
        for _ in range(count):
            key = rng.randrange(500)
            if rng.random() < 0.2:
                self.partition.run("drop", key)
                self.rows.pop(key, None)
                continue
            n = rng.choice([None, 1, 2, rng.randrange(1 << 40)])
            name = rng.choice([None, "Kari", "Ola", f"name {rng.randrange(1 << 40)}"])
            self.partition.run("put", key, n, name, rng.choice([1, 100, 900]))
            self.rows[key] = n, name
        self.partition.seal()

    def checkpoint(self, rng: random.Random | None = None) -> None:
        """With a generator, the table changes at every step of it."""
        self.partition.checkpointer.request()
        for _ in steps(self.partition.checkpointer):
            if rng is not None:
                self.change(rng, 3)

    @property
    def image(self) -> Path:
        (path,) = self.directory.glob("lookups-*.image")
        return path

    def reopen(self) -> None:
        self.close()
        self.open()

    def close(self) -> None:
        assert self.partition.wal is not None
        self.partition.wal.flush()
        self.partition.checkpointer.close()
        self.partition.wal.abandon()

    def verify(self) -> None:
        table = self.partition.table("people")
        assert {row.id: (row.n, row.name) for row in table.scan()} == self.rows
        for n in (None, 1, 2):
            expected = sorted(key for key, (value, _) in self.rows.items() if value == n)
            assert sorted(row.id for row in table.where(n=n)) == expected
        assert len(list(table.lookups.range("names"))) == len(self.rows)
        self.partition.store.check()


@pytest.fixture
def people(tmp_path: Path) -> Iterator[People]:
    one = People(tmp_path / "partition")
    yield one
    one.close()


@pytest.mark.parametrize("seed", range(3))
def test_indexes_come_back_from_an_image_that_was_written_while_rows_changed(
    people: People, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(seed)
    monkeypatch.setattr(index_image, "CHUNK_ENTRIES", 16)
    monkeypatch.setattr(lookups, "FEW_PAGES", rng.choice([0, 1000]))
    monkeypatch.setattr(checkpointer_module, "IMAGE_BYTES", rng.choice([100, 1 << 18]))
    for _ in range(30):
        people.change(rng)
    for _ in range(4):
        people.checkpoint(rng)
        seeds = {name: index.format.seed for name, index in people.lookups.indexes.items()}
        for _ in range(rng.randrange(4)):
            people.change(rng)
        people.reopen()
        assert people.lost + people.partition.store.left_out_images == []
        assert {name: index.format.seed for name, index in people.lookups.indexes.items()} == seeds  # not built anew
    people.verify()


def test_an_image_is_written_again_when_many_pages_have_changed_since(people: People) -> None:
    rng = random.Random(1)
    for _ in range(20):
        people.change(rng)
    people.checkpoint()
    first = people.image
    people.change(rng, 1)
    people.checkpoint()
    assert people.image == first
    stale = people.lookups.stale_pages
    assert stale is not None
    assert 0 < len(stale) < 5
    for _ in range(60):
        people.change(rng)
    people.checkpoint()
    assert people.image != first
    assert people.lookups.stale_pages == BitMap()


@pytest.mark.parametrize("damage", ["missing", "cut off", "a flipped bit", "of another table", "empty"])
def test_indexes_are_built_from_the_rows_where_the_image_is_of_no_use(people: People, damage: str) -> None:
    rng = random.Random(damage)
    for _ in range(20):
        people.change(rng)
    people.checkpoint()
    people.change(rng)
    path, data = people.image, people.image.read_bytes()
    people.close()
    if damage == "missing":
        path.unlink()
    elif damage == "cut off":
        path.write_bytes(data[: rng.randrange(1, len(data))])
    elif damage == "a flipped bit":
        path.write_bytes(flipped(data, rng.randrange(8 * len(data))))
    else:
        path.write_bytes(b"" if damage == "empty" else next(image_of([], 0, 7)) + data[24:])
    people.open()
    assert [path.name in reason for reason in people.lost] == [True] * (damage != "missing")
    assert people.partition.store.left_out_images == ["people"] * (damage == "missing")
    people.verify()
    people.checkpoint()
    people.reopen()
    assert people.lost == []
    people.verify()


def test_an_index_that_the_schema_gained_is_built_and_the_others_come_from_the_image(people: People) -> None:
    rng = random.Random(2)
    for _ in range(10):
        people.change(rng)
    people.checkpoint()
    seed = people.lookups.indexes["by_name"].format.seed
    people.text = TEXT + "CREATE INDEX pads ON people USING BTREE (pad);"
    people.change(rng)
    people.reopen()
    assert people.lookups.indexes["by_name"].format.seed == seed
    assert len(list(people.lookups.range("pads"))) == len(people.rows)
    people.verify()
    new = people.lookups.indexes["pads"].format.seed
    people.checkpoint()
    people.reopen()
    assert people.lookups.indexes["pads"].format.seed == new
    people.verify()


def test_cold_rows_that_are_looked_up_are_missed_together(people: People, monkeypatch: pytest.MonkeyPatch) -> None:
    @procedure(partition_by="key")
    def namesakes(tx: Any, key: int, name: str) -> list[int]:
        return sorted(row.id for row in tx.people.where(name=name))

    @procedure(partition_by="key")
    def add(tx: Any, key: int, name: str) -> int:
        tx.people.insert(key, None, name, None)
        return len(tx.people.where(name=name))

    rng = random.Random(4)
    for _ in range(20):
        people.change(rng)
    people.checkpoint()
    partition = people.partition
    partition.executor.use(from_functions([namesakes, add]))
    expected = sorted(key for key, (_, name) in people.rows.items() if name == "Kari")

    def evict() -> None:
        partition.pool.capacity, capacity = 1, partition.pool.capacity
        partition.pool.step(0.0)
        partition.pool.capacity = capacity
        assert people.partition.store.heaps[0].cold > 5

    evict()
    number = partition.run("namesakes", 1, "Kari")
    missed = partition.executor._set_aside._missed_pages
    assert len(missed) > 5
    partition.seal()
    partition.turn_pages()
    assert partition.answer(number) == expected
    assert partition.executor.counts["set_aside"] == 1
    evict()
    monkeypatch.setattr(lookups, "RANGE_PAGES", 5)  # more are read past the frames
    assert partition.call("namesakes", 1, "Kari") == expected
    assert partition.call("add", 1000, "Kari") == len(expected) + 1
    assert partition.executor.counts["set_aside"] == 1
    people.rows[1000] = None, "Kari"
    people.verify()


@pytest.mark.parametrize("kind", [("BTREE", ("s",)), ("INVERTED", ("n",))])
def test_large_entries_make_more_chunks_and_not_larger_ones(kind: tuple[Any, tuple[str, ...]], tmp_path: Path) -> None:
    index = SecondaryIndex(TABLE, Index("i", "t", *kind))
    if kind[0] == "BTREE":
        rows = [ROW(i, None, f"{i}" * 50_000) for i in range(100, 160)]
        ids = list(range(60))
    else:
        rows = [ROW(i, i % 5, None) for i in range(600_000)]
        ids = random.Random(3).sample(range(1 << 26), 600_000)
    index.add([index.of_row(row) for row in rows], ids)
    pieces = list(image_of([index], 0, 5))
    assert len(pieces) > 4
    assert max(map(len, pieces)) < 1.5 * index_image.CHUNK_BYTES
    path = tmp_path / "image"
    path.write_bytes(b"".join(pieces))
    (again,) = read_image(path, 0, 5, TABLE, [index.schema], BitMap())
    again.check()
    assert {key: set(sorted_ids(p)) for key, p in again.items()} == {
        key: set(sorted_ids(p)) for key, p in index.items()
    }


@pytest.mark.parametrize("kind", INDEXES)
def test_every_kind_of_index_is_in_an_image(
    kind: tuple[Any, tuple[str, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_image, "CHUNK_ENTRIES", 64)
    if kind[0] == "HASH":  # some stand aside
        few = ~(((1 << 60) - 1) << 64)
        monkeypatch.setattr(
            "partitions.index_key.xxh3_128_intdigest", lambda data, seed: xxh3_128_intdigest(data, seed) & few
        )
    rng = random.Random(3)
    index = SecondaryIndex(TABLE, Index("i", "t", *kind))
    rows = [ROW(i, rng.choice([None, 7, i, i, 8]), rng.choice([None, "a", f"{i}", f"{i}"])) for i in range(3000)]
    ids = [i * 3 for i in range(3000)]
    index.add([index.of_row(row) for row in rows], ids)
    path = tmp_path / "image"
    path.write_bytes(b"".join(image_of([index], 0, 5)))
    but = BitMap(range(300, 2000)) | BitMap(range(0, 9000, 5))
    (again,) = read_image(path, 0, 5, TABLE, [index.schema], but)
    again.check()
    expected = {key: set(sorted_ids(posting)) - set(but) for key, posting in index.items()}
    assert {key: set(sorted_ids(p)) for key, p in again.items()} == {
        key: rows for key, rows in expected.items() if rows
    }
    (whole,) = read_image(path, 0, 5, TABLE, [index.schema], BitMap())
    whole.check()
    assert whole.bytes == pytest.approx(index.bytes, rel=0.2)  # its leaves may be filled otherwise
    assert read_image(path, 0, 5, TABLE, [], BitMap()) == []
    with pytest.raises(Corruption, match="not an image of table 5 of partition 1"):
        read_image(path, 1, 5, TABLE, [], BitMap())
