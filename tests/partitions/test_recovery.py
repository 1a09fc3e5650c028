"""A partition comes back from its WAL as it was, or says what is damaged."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from partitions import index
from partitions.page import PAGE_BYTES
from partitions.store import Store
from partitions.wal import Batch, Wal, encode_batch
from tests.partitions.one_partition import OnePartition
from tests.partitions.test_executor import PROCEDURES, SCHEMA, contents
from voltpy.errors import Corruption, Error, ReadOnly
from voltpy.messages import TableChanges
from voltpy.procedure import procedure
from voltpy.schema import Schema
from voltpy.sql.ddl import parse_schema


def opened(directory: Path, schema: Schema = SCHEMA, **options: Any) -> OnePartition:
    return OnePartition(schema, PROCEDURES, directory, **options)


def abandoned(partition: OnePartition) -> None:
    assert partition.wal is not None
    partition.checkpointer.close()
    partition.wal.abandon()


def run_at_random(partition: OnePartition, rng: random.Random, batches: int) -> None:
    for _ in range(batches):
        for _ in range(rng.randrange(8)):
            key = rng.randrange(30)
            what = rng.choice(["put", "add", "write_then", "insert", "note", "write_then"])
            if what in ("put", "add"):
                partition.run(what, key, rng.randrange(100))
            elif what == "write_then":
                partition.run(what, key, rng.choice(["abort", "raise", "a huge result", "absent row", "duplicate"]))
            elif what == "note":
                partition.run(what, key, "n" * rng.choice([5, 500, 20_000]))
            else:
                partition.run(what, key)
        if rng.random() < 0.2:
            partition.run_everywhere("set_rate", f"c{rng.randrange(5)}", rng.random(), now_us=rng.randrange(1 << 40))
        partition.seal()


@pytest.mark.parametrize("turn_keys", [1, 7, 100_000])
def test_a_reopened_store_is_as_it_was(tmp_path: Path, turn_keys: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "turn_is_full", property(lambda store: store.gathered_keys >= turn_keys))
    rng = random.Random(turn_keys)
    partition = opened(tmp_path, segment_bytes=8192)
    epoch = 0
    for round_ in range(6):
        run_at_random(partition, rng, 20)
        before = contents(partition)
        answers = dict(partition.answers)
        assert partition.wal is not None
        if round_ % 2:
            partition.checkpointer.close()
            partition.wal.close()
        else:
            partition.checkpointer.close()
            partition.wal.abandon()
        again = opened(tmp_path, segment_bytes=8192)
        assert again.wal is not None
        assert again.wal.epoch > epoch
        epoch = again.wal.epoch
        assert contents(again) == before
        again.store.check()
        assert {t.name: t.count() for t in again.store.tables} == {t.name: t.count() for t in partition.store.tables}
        for number in rng.sample(sorted(answers), 10):
            if not isinstance(answers[number], Error) and answers[number] is not None:
                first = again.window.first_result(7, number, 0)
                assert isinstance(first, bytes)
                assert msgspec.msgpack.decode(first) == answers[number]
        again.number = partition.number
        partition = again
    abandoned(partition)


def test_what_was_not_appended_is_not_there(tmp_path: Path) -> None:
    partition = opened(tmp_path)
    partition.call("put", 1, 1)
    partition.run("put", 1, 2)
    partition.run("put", 2, 2)
    abandoned(partition)
    again = opened(tmp_path)
    assert again.call("get", 1) == 1
    assert again.call("get", 2) is None
    abandoned(again)


def test_an_older_wal_serves_a_schema_that_has_grown(tmp_path: Path) -> None:
    partition = opened(tmp_path)
    partition.call("put", 1, 1)
    abandoned(partition)
    more = parse_schema("CREATE TABLE later (id INT PRIMARY KEY); PARTITION TABLE later ON COLUMN id;").tables
    again = opened(tmp_path, Schema(SCHEMA.tables + more, ()))
    assert again.call("get", 1) == 1
    assert again.table("later").count() == 0
    abandoned(again)


def with_record(directory: Path, payload: bytes) -> None:
    """A WAL with one good record and, as record 2, this one."""
    partition = opened(directory)
    partition.call("put", 1, 1)
    assert partition.wal is not None
    partition.wal.append(payload)
    partition.checkpointer.close()
    partition.wal.close()


def record(*changes: TableChanges) -> bytes:
    return encode_batch(Batch(Raw(b"\x90"), list(changes)))


@pytest.mark.parametrize(
    ("payload", "said"),
    [(b"\xc1", "WAL record 2: not a batch"),
     (record(TableChanges(3, [], [])), "WAL record 2 changes table number 3; the schema has no such table"),
     (record(TableChanges(-1, [], [])), "WAL record 2 changes table number -1"),
     (record(TableChanges(0, [b"\x93\x01\x01"], [])), "WAL record 2: table items: a stored row does not decode"),
     (record(TableChanges(0, [b"\x93\xa11\x01\xc0"], [])), "WAL record 2: table items: a stored row does not decode"),
     (record(TableChanges(2, [], [b"\x05"])), "WAL record 2: table rates: a stored key does not decode")],
)  # fmt: skip
def test_a_record_that_is_not_of_this_schema_is_corruption_with_its_number(
    tmp_path: Path, payload: bytes, said: str
) -> None:
    with_record(tmp_path, payload)
    with pytest.raises(Corruption, match=said):
        opened(tmp_path)


def test_deletes_of_absent_keys_are_no_damage(tmp_path: Path) -> None:
    with_record(tmp_path, record(TableChanges(0, [], [b"\x05", b"\x01"]), TableChanges(2, [], [b"\xa1x"])))
    partition = opened(tmp_path)
    assert partition.rows("items") == {}
    partition.store.check()
    abandoned(partition)


def test_without_memory_for_the_data_recovery_says_so(tmp_path: Path) -> None:
    partition = opened(tmp_path)
    for key in range(30):
        partition.run("note", key, "x" * 5000)
    partition.seal()
    abandoned(partition)
    with pytest.raises(ReadOnly, match="--memory"):
        opened(tmp_path, memory_bytes=5 * PAGE_BYTES)


def test_the_wal_is_locked_while_a_partition_has_it(tmp_path: Path) -> None:
    partition = opened(tmp_path)
    with pytest.raises(Error, match="in use"):
        Wal.open(tmp_path, 0, "always")
    abandoned(partition)


TEXTS = parse_schema(
    """CREATE TABLE texts (name STRING PRIMARY KEY, n INT, pad STRING); PARTITION TABLE texts ON COLUMN name;
    CREATE TABLE numbers (id INT PRIMARY KEY, n INT, pad STRING); PARTITION TABLE numbers ON COLUMN id;"""
)


@procedure(partition_by="key")
def write(tx: Any, key: int, n: int, size: int) -> None:
    tx.numbers.upsert(key, n, "x" * size)


@procedure(partition_by="name")
def name(tx: Any, name: str, n: int, size: int) -> None:
    if n < 0:
        tx.texts.delete(name)
    else:
        tx.texts.upsert(name, n, "x" * size)


def with_texts(directory: Path, **options: Any) -> OnePartition:
    return OnePartition(TEXTS, [write, name], directory, **options)


def checkpointed(partition: OnePartition) -> None:
    partition.checkpointer.make(partition.lsn)


def rows_of(partition: OnePartition) -> tuple[dict[str, int], dict[int, int]]:
    texts, numbers = partition.table("texts"), partition.table("numbers")
    return {row.name: row.n for row in texts.scan()}, {row.id: row.n for row in numbers.scan()}


def test_a_page_of_a_run_that_is_damaged_is_named_by_its_own_offset(tmp_path: Path) -> None:
    partition = with_texts(tmp_path)
    for key in range(160):
        partition.run("write", key, key, 1000)
    partition.seal()
    checkpointed(partition)
    for key in range(160):
        partition.run("write", key, -key, 1000)
    partition.seal()
    path = partition.pool._path
    abandoned(partition)
    sound = path.read_bytes()
    for place in (3, 11):
        with path.open("r+b") as file:
            file.seek(place * PAGE_BYTES + 5000)
            file.write(bytes([sound[place * PAGE_BYTES + 5000] ^ 1]))
        with pytest.raises(Corruption, match=f"{path} offset {place * PAGE_BYTES}: the page's checksum is wrong"):
            with_texts(tmp_path)
        with path.open("r+b") as file:  # a whole page, and another one
            file.seek(place * PAGE_BYTES)
            file.write(sound[:PAGE_BYTES])
        with pytest.raises(Corruption, match=f"{path} offset {place * PAGE_BYTES}: holds page"):
            with_texts(tmp_path)
        path.write_bytes(sound)
    again = with_texts(tmp_path)
    assert rows_of(again)[1] == {key: -key for key in range(160)}
    abandoned(again)


@pytest.mark.parametrize("hashes", [1 << 64, 5], ids=["few collide", "most collide"])
@pytest.mark.parametrize("frames", [24, 4096], ids=["less memory than pages", "enough memory"])
def test_a_turn_over_cold_pages_leaves_the_last_image_of_each_key(
    frames: int, hashes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = index.xxh3_64_intdigest
    monkeypatch.setattr(index, "xxh3_64_intdigest", lambda key: digest(key) % hashes)
    rng = random.Random(frames)
    partition = with_texts(tmp_path, memory_bytes=4096 * PAGE_BYTES)
    texts = {f"k{n}": n for n in range(60 if hashes == 5 else 300)}
    for key in range(300):
        partition.run("write", key, key, 900)
    for key, n in texts.items():
        partition.run("name", key, n, 900)
    partition.seal()
    checkpointed(partition)
    numbers = {key: key for key in range(300)}
    for round_ in range(30):
        for _ in range(4):
            key, n = rng.randrange(310), rng.randrange(1000)
            numbers[key] = n
            partition.run("write", key, n, rng.choice([900, 900, 100, 1500]))
        for key in rng.sample([*texts, f"new{round_}"], 3):
            n = rng.randrange(-300, 1000)
            texts.pop(key, None)
            if n >= 0:
                texts[key] = n
            partition.run("name", key, n, rng.choice([900, 100, 1500]))
        partition.seal()
    abandoned(partition)
    again = with_texts(tmp_path, memory_bytes=frames * PAGE_BYTES, frames=frames)
    assert again.pool.faults > 16
    assert rows_of(again) == (texts, numbers)
    again.store.check()
    abandoned(again)


@pytest.mark.parametrize("then", [-1, 7], ids=["went", "became small"])
def test_a_turn_in_which_more_large_rows_go_than_memory_holds_is_replayed(then: int, tmp_path: Path) -> None:
    partition = with_texts(tmp_path, memory_bytes=2048 * PAGE_BYTES)
    for n in range(40):
        partition.run("name", f"k{n}", n, 100_000)
        partition.seal()
    checkpointed(partition)
    for n in range(39):
        partition.run("name", f"k{n}", then, 10)
        partition.seal()
    abandoned(partition)
    again = with_texts(tmp_path, memory_bytes=64 * PAGE_BYTES, frames=64)
    assert rows_of(again)[0] == {**({} if then < 0 else dict.fromkeys([f"k{n}" for n in range(39)], then)), "k39": 39}
    again.store.check()
    abandoned(again)
