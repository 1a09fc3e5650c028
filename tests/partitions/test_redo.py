"""What a recovery has left is written while calls are served, and nobody can tell the difference."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec import Raw

from partitions import index, redo, table_redo
from partitions.page import PAGE_BYTES
from tests.partitions.one_partition import OnePartition
from tests.partitions.one_server import SUPERVISOR_AT, OneServer
from voltpy.errors import Corruption
from voltpy.messages import Borrow, Commit, Lent, Prepare, PrepareLoad, Scan, TableChanges, TableKeys, Vote
from voltpy.procedure import procedure
from voltpy.row import encode
from voltpy.schema import Schema, to_json
from voltpy.sql.ddl import parse_schema

SCHEMA = parse_schema(
    """CREATE TABLE numbers (id INT PRIMARY KEY, n INT, pad STRING); PARTITION TABLE numbers ON COLUMN id;
    CREATE TABLE texts (name STRING PRIMARY KEY, n INT, pad STRING); PARTITION TABLE texts ON COLUMN name;
    CREATE TABLE indexed (id INT PRIMARY KEY, n INT, pad STRING); PARTITION TABLE indexed ON COLUMN id;
    CREATE INDEX by_n ON indexed (n);"""
)
NUMBERS, TEXTS, INDEXED = 0, 1, 2


def own_key(table: str, key: int) -> Any:
    return f"k{key}" if table == "texts" else key


@procedure(partition_by="key")
def put(tx: Any, table: str, key: int, n: int, size: int) -> None:
    getattr(tx, table).upsert(own_key(table, key), n, "x" * size)


@procedure(partition_by="key")
def add(tx: Any, table: str, key: int, n: int) -> int | None:
    """What it has become; None: there is no such row."""
    row = getattr(tx, table).get(own_key(table, key))
    if row is None:
        return None
    getattr(tx, table).update(own_key(table, key), n=row.n + n)
    return int(row.n + n)


@procedure(partition_by="key")
def remove(tx: Any, table: str, key: int) -> bool:
    return bool(getattr(tx, table).delete(own_key(table, key)))


@procedure(partition_by="key", read_only=True)
def get(tx: Any, table: str, key: int) -> int | None:
    row = getattr(tx, table).get(own_key(table, key))
    return None if row is None else int(row.n)


@procedure(partition_by="key")
def insert(tx: Any, table: str, key: int, n: int) -> None:
    getattr(tx, table).insert(own_key(table, key), n, "new")


@procedure(partition_by="key", read_only=True)
def total(tx: Any, key: int, how: str) -> int:
    table = tx.numbers
    if how == "count":
        return int(table.count())
    rows = table.scan() if how == "scan" else table.range(-1000, 1000) if how == "range" else table.where(pad="x" * 900)
    return sum(row.n for row in rows)


PROCEDURES = [put, add, remove, get, insert, total]


def opened(directory: Path, *, leaves_cold: bool = True, **options: Any) -> OnePartition:
    return OnePartition(SCHEMA, PROCEDURES, directory, leaves_cold=leaves_cold, **options)


def killed(partition: OnePartition) -> None:
    assert partition.wal is not None
    partition.reader.close()
    partition.checkpointer.close()
    partition.wal.abandon()


def with_changed_rows(directory: Path, *, numbers: int = 160) -> OnePartition:
    """Row n of `numbers` had n in the checkpoint, and has -n since; every tenth is gone. Eight are on a page."""
    partition = opened(directory)
    for key in range(numbers):
        partition.run("put", "numbers", key, key, 900)
        partition.run("put", "indexed", key, key, 900)
    partition.seal()
    partition.checkpointer.make(partition.lsn)
    for key in range(numbers):
        if key % 10:
            partition.run("put", "numbers", key, -key, 900)
        else:
            partition.run("remove", "numbers", key)
        partition.run("put", "indexed", key, -key, 900)
    partition.seal()
    return partition


def reopened(partition: OnePartition, directory: Path, **options: Any) -> OnePartition:
    killed(partition)
    again = opened(directory, **options)
    again.number = partition.number
    return again


@pytest.fixture
def nothing_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what calls wait for is read."""
    monkeypatch.setattr(redo, "PAGES_AHEAD", 0)
    monkeypatch.setattr(redo, "PAGES_THERE", 0)


@pytest.mark.usefixtures("nothing_by_itself")
def test_a_call_for_a_row_that_was_left_waits_for_its_page_alone(tmp_path: Path) -> None:
    partition = reopened(with_changed_rows(tmp_path), tmp_path)
    left = partition.redo.pages_left
    assert left >= 20
    assert partition.pool.faults == partition.store.tables[INDEXED].pages  # of `numbers` none
    number = partition.run("get", "numbers", 33)
    partition.seal()
    assert number not in partition.answers
    partition.turn_pages()
    assert partition.answer(number) == -33
    assert partition.redo.pages_left == left - 1
    assert partition.call("get", "numbers", 30) is None
    assert partition.call("insert", "numbers", 40, 7) is None
    assert partition.call("add", "numbers", 41, 1) == -40
    assert partition.call("remove", "numbers", 42) is True
    assert partition.call("remove", "numbers", 50) is False
    assert partition.store.is_behind
    again = reopened(partition, tmp_path)
    assert [again.call("get", "numbers", key) for key in (33, 30, 40, 41, 42, 50)] == [-33, None, 7, -40, None, None]
    killed(again)


@pytest.mark.usefixtures("nothing_by_itself")
@pytest.mark.parametrize("how", ["count", "scan", "range", "where"])
def test_a_read_that_is_not_by_key_waits_until_nothing_is_left_of_its_table(how: str, tmp_path: Path) -> None:
    partition = reopened(with_changed_rows(tmp_path), tmp_path)
    assert partition.call("total", 1, how) == (144 if how == "count" else -sum(key for key in range(160) if key % 10))
    assert partition.redo.is_over
    partition.store.check()
    killed(partition)


def test_what_was_left_is_written_by_itself_and_then_a_checkpoint_may_begin(tmp_path: Path) -> None:
    partition = reopened(with_changed_rows(tmp_path), tmp_path)
    over: list[bool] = []
    partition.redo.done = lambda: over.append(partition.store.is_behind)
    partition.checkpointer.request()
    assert not partition.checkpointer.step(1.0)
    assert not partition.checkpointer.clean_some()
    assert partition.checkpointer.last.number == 1
    partition.finish_redo()
    assert over == [False]
    while partition.checkpointer.step(2.0):
        pass
    assert partition.checkpointer.last.number == 2
    again = reopened(partition, tmp_path)
    assert again.redo.is_over
    assert {key: row.n for key, row in again.rows("numbers").items()} == {key: -key for key in range(160) if key % 10}
    killed(again)


@pytest.mark.parametrize("rows", [40, 400, 1600])
def test_a_long_wal_is_left_whole_as_long_as_memory_holds_it_with_its_pages(rows: int, tmp_path: Path) -> None:
    partition = opened(tmp_path)
    for key in range(rows):
        partition.run("put", "numbers", key, key, 900)
    partition.seal()
    partition.checkpointer.make(partition.lsn)
    for key in range(0, rows, 2):
        partition.run("put", "numbers", key, -key, 900)
        if key % 20 == 0:
            partition.seal()
    partition.seal()
    frames = 2 * partition.store.tables[NUMBERS].pages
    partition = reopened(partition, tmp_path, memory_bytes=frames * PAGE_BYTES, frames=frames)
    assert partition.pool.faults == 0
    assert partition.redo.pages_left == partition.store.tables[NUMBERS].pages
    assert not partition.redo.is_pressed
    expected = {key: key if key % 2 else -key for key in range(rows)}
    assert {key: row.n for key, row in partition.rows("numbers").items()} == expected
    killed(partition)


def test_a_turn_ends_before_what_it_changes_needs_more_memory_than_there_is(tmp_path: Path) -> None:
    partition = opened(tmp_path)
    for key in range(1600):
        partition.run("put", "numbers", key, key, 900)
    partition.seal()
    partition.checkpointer.make(partition.lsn)
    for key in range(0, 1600, 3):
        partition.run("put", "numbers", key, -key, 900)
        partition.seal()
    frames = partition.store.tables[NUMBERS].pages // 2
    partition = reopened(partition, tmp_path, memory_bytes=frames * PAGE_BYTES, frames=frames)
    assert partition.checkpointer.last.number > 1  # on the way
    assert partition.pool.pinned_pages + partition.redo.pages_left < frames
    expected = {key: key if key % 3 else -key for key in range(1600)}
    assert {key: row.n for key, row in partition.rows("numbers").items()} == expected
    partition.store.check()
    killed(partition)


def test_a_table_that_an_index_follows_is_written_before_calls_are_served(tmp_path: Path) -> None:
    partition = reopened(with_changed_rows(tmp_path), tmp_path)
    assert partition.store.tables[NUMBERS].redo.left_pages
    assert not partition.store.tables[INDEXED].redo.left_pages
    lookups = partition.store.tables[INDEXED].lookups
    assert lookups is not None
    partition.store.misses.bring = partition.pool.bring
    assert [row.id for row in lookups.find("by_n", (-17,))] == [17]
    killed(partition)


def test_a_server_writes_what_was_left_between_calls_and_all_of_it_before_the_schema_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redo, "PAGES_AHEAD", 1)
    killed(with_changed_rows(tmp_path))
    server = OneServer(SCHEMA, PROCEDURES, tmp_path, leaves_cold=True)
    store = server.partition.store
    assert store.is_behind
    number = server.call(1, "get", "numbers", 33)
    answers: dict[int, Any] = {}
    while number not in answers:
        server.turn()
        answers.update(server.answers(1))
    assert answers[number] == -33
    while store.is_behind:
        server.turn()
    assert server.server._status(0).metrics["redo_pages_left"] == 0
    server.kill()
    server = OneServer(SCHEMA, PROCEDURES, tmp_path, leaves_cold=True)
    more = parse_schema("CREATE TABLE more (id INT PRIMARY KEY); PARTITION TABLE more ON COLUMN id;").tables
    changed = Schema(SCHEMA.tables + more, SCHEMA.indexes)
    server.turn()
    assert server.partition.store.is_behind
    server.say(SUPERVISOR_AT, PrepareLoad(2, "", "", to_json(changed)))
    server.turn()
    assert not server.partition.store.is_behind
    server.kill()


def test_with_hardly_a_free_frame_what_was_left_is_written_all_the_same(tmp_path: Path) -> None:
    partition = reopened(with_changed_rows(tmp_path), tmp_path)
    pool, store = partition.pool, partition.store
    while not partition.redo.is_over:
        pool.capacity = store.dirty_pages + 12  # what is written may take some more pages
        partition.redo.step(pool.step(0.0, 1.0))
    assert {key: row.n for key, row in partition.rows("numbers").items()} == {n: -n for n in range(160) if n % 10}
    killed(partition)


def squeezed(directory: Path, capacity: Callable[[OnePartition], int]) -> OneServer:
    """Killed and started again, with a capacity that stays so."""
    killed(with_changed_rows(directory))
    server = OneServer(SCHEMA, PROCEDURES, directory, leaves_cold=True)
    server.partition.pool.steer = lambda _: None  # type: ignore[method-assign]
    server.partition.pool.capacity = capacity(server.partition)
    assert server.partition.store.is_behind
    return server


@pytest.mark.parametrize("begins_before", [False, True])
@pytest.mark.parametrize("spare", [0, 3])
def test_what_was_left_is_written_where_the_pages_that_have_changed_take_all_frames(
    spare: int, begins_before: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redo, "PAGES_AHEAD", 1)
    server = squeezed(tmp_path, lambda partition: partition.store.dirty_pages + spare)
    pool = server.partition.pool
    number = server.call(1, "total", 1, "count")
    if begins_before:
        capacity, pool.capacity = pool.capacity, 4 * pool.capacity
        server.turn()
        pool.capacity = capacity
        assert server.partition.store.is_behind
    answers: dict[int, Any] = {}
    while number not in answers:  # it waits for all that was left, and no frame is free
        server.turn()
        answers.update(server.answers(1))
    assert answers == {number: 144}
    while pool.pinned_pages > pool.capacity // 2 or server.partition.checkpointer.running:
        server.turn()
    server.partition.store.check()
    server.kill()


@pytest.mark.parametrize("when", ["pressed", "no room for a batch"])
def test_a_stop_does_not_wait_until_what_was_left_is_written_and_the_next_start_leaves_it_again(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redo, "PAGES_AHEAD", 1)
    spare = 0 if when == "pressed" else 1
    server = squeezed(
        tmp_path, lambda partition: (1 + spare) * (partition.store.dirty_pages + partition.redo.pages_left)
    )
    serving, store = server.server, server.partition.store
    left = serving._redo.pages_left
    assert serving._redo.is_pressed is (when == "pressed")

    def stop_at(name: str) -> None:
        if name == "redo.written" and serving._redo.pages_left < left // 2:
            serving.stop()
            serving._redo.stop()

    monkeypatch.setattr(redo, "crash_point", stop_at)
    told = server.call(1, "add", "numbers", 33, 1)
    if when != "pressed":
        for key in range(server.partition.pool.capacity):
            server.call(1, "put", "texts", key, key, 7000)
    with pytest.raises(redo.Stopped):
        serving.serve()
    serving.end()
    assert store.is_behind
    assert 0 < serving._redo.pages_left < left // 2
    answers = server.answers(1)
    assert told not in answers
    server.kill()
    again = opened(tmp_path)
    assert again.redo.pages_left == left
    assert {key: row.n for key, row in again.rows("numbers").items()} == {n: -n for n in range(160) if n % 10}
    assert again.rows("texts") == {}
    again.store.check()
    killed(again)


def test_calls_that_find_no_room_beside_what_was_left_run_when_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redo, "PAGES_AHEAD", 1)
    server = squeezed(tmp_path, lambda partition: 2 * (partition.store.dirty_pages + partition.redo.pages_left))
    capacity = server.partition.pool.capacity
    numbers = [server.call(1, "put", "texts", key, key, 7000) for key in range(capacity)]
    answers: dict[int, Any] = {}
    while len(answers) < len(numbers):
        server.turn()
        answers.update(server.answers(1))
    assert answers == dict.fromkeys(numbers)
    server.kill()


@pytest.mark.parametrize("how", [Prepare, Commit])
def test_a_batch_that_finds_no_room_beside_what_was_left_waits_until_it_is_written(
    how: type[Prepare | Commit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redo, "PAGES_AHEAD", 1)
    server = squeezed(tmp_path, lambda partition: 2 * (partition.store.dirty_pages + partition.redo.pages_left))
    server.attach()
    keys = [f"k{key}" for key in range(2 * server.partition.pool.capacity)]
    changes = [TableChanges(TEXTS, [encode((key, 5, "x" * 900)) for key in keys], [])]
    server.order(Borrow(1, [TableKeys(TEXTS, list(map(encode, keys)))], [], []))
    server.order(Prepare(1, changes) if how is Prepare else Commit(1, changes, Raw(encode([]))))
    reports = server.reports()
    while not any(isinstance(report, Vote) for report in reports):
        server.turn()
        reports += server.reports()
    assert reports[-1] == Vote(1, "")
    server.kill()


@pytest.mark.usefixtures("nothing_by_itself")
def test_a_damaged_page_of_what_was_left_is_named_by_its_own_offset(tmp_path: Path) -> None:
    partition = with_changed_rows(tmp_path)
    path = partition.pool._path
    killed(partition)
    page = partition.store.tables[NUMBERS].pages_of(33)[0]
    offset = (partition.store.heaps[NUMBERS].entries[page] >> 16) * PAGE_BYTES - PAGE_BYTES
    with path.open("r+b") as file:
        file.seek(offset + 5000)
        file.write(b"\0\1\2\3")
    again = opened(tmp_path)
    assert again.call("get", "numbers", 131) == -131
    with pytest.raises(Corruption, match=f"{path} offset {offset}: the page's checksum is wrong"):
        again.call("get", "numbers", 33)
    killed(again)


@pytest.mark.usefixtures("nothing_by_itself")
def test_the_coordinator_borrows_rows_as_they_are_when_what_was_left_is_written(tmp_path: Path) -> None:
    partition = reopened(with_changed_rows(tmp_path), tmp_path)
    keys = [TableKeys(NUMBERS, [encode(33), encode(40)])]
    (lent,) = partition.order(Borrow(1, keys, [], []))
    assert isinstance(lent, Lent)
    assert (lent.refused, lent.images) == ("", [[encode((33, -33, "x" * 900)), None]])
    (vote,) = partition.order(Prepare(1, [TableChanges(NUMBERS, [encode((33, 5, ""))], [])]))
    assert vote == Vote(1, "")
    again = reopened(partition, tmp_path)  # what is in doubt is over the row as it was
    assert not again.store.tables[NUMBERS].redo.left_pages
    assert list(again.store.prepared) == [1]
    partition = again
    (counted,) = partition.order(Borrow(2, [], [Scan(INDEXED, "count", b"")], []))
    assert isinstance(counted, Lent)
    assert [answer.count for answer in counted.scans] == [160]
    killed(partition)


@pytest.mark.usefixtures("nothing_by_itself")
def test_orders_wait_behind_one_that_scans_what_was_left_and_calls_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_redo, "LEFT_PAGES", 2)
    killed(with_changed_rows(tmp_path))
    server = OneServer(SCHEMA, PROCEDURES, tmp_path, leaves_cold=True)
    server.attach()
    server.order(
        Borrow(1, [], [Scan(NUMBERS, "count", b"")], []), Borrow(2, [TableKeys(TEXTS, [encode("k1")])], [], [])
    )
    answers: dict[int, Any] = {}
    asked = 0
    while server.partition.store.is_behind:
        assert server.reports() == []
        number = server.call(1, "get", "indexed", asked)
        while number not in answers:
            server.turn()
            answers.update(server.answers(1))
        assert answers[number] == -asked
        asked += 1
    assert asked >= 3
    server.turn()
    counted, lent = server.reports()
    assert isinstance(counted, Lent)
    assert isinstance(lent, Lent)
    assert [answer.count for answer in counted.scans] == [144]
    assert (lent.batch, lent.refused, lent.images) == (2, "", [[None]])
    server.kill()


@pytest.mark.parametrize("hashes", [1 << 64, 5], ids=["few collide", "most collide"])
@pytest.mark.parametrize("ahead", [0, 2])
@pytest.mark.parametrize("frames", [4096, 192], ids=["enough memory", "less memory than pages"])
def test_calls_at_random_see_every_row_as_it_was_left(
    ahead: int, hashes: int, frames: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redo, "PAGES_AHEAD", ahead)
    digest = index.xxh3_64_intdigest
    monkeypatch.setattr(index, "xxh3_64_intdigest", lambda key: digest(key) % hashes)
    rng = random.Random(ahead + hashes)
    sizes = [100, 900, 900, 1500, 30_000]
    keys = [("numbers", n) for n in range(160)] + [("texts", n) for n in range(40 if hashes == 5 else 160)]
    rows: dict[tuple[str, int], int] = {}
    partition = opened(tmp_path)

    def change(key: tuple[str, int]) -> None:
        what = rng.random()
        if what < 0.6:
            rows[key] = rng.randrange(1000)
            partition.call("put", *key, rows[key], rng.choice(sizes))
        elif what < 0.8:
            rows.pop(key, None)
            partition.call("remove", *key)
        elif key in rows:
            rows[key] += 1
            partition.call("add", *key, 1)

    for key in keys:
        change(key)
    some_left = 0
    for life in range(6):
        if life % 2 == 0:
            partition.finish_redo()
            partition.checkpointer.make(partition.lsn)
            partition.checkpointer._replayed_lsn = None
        for key in rng.sample(keys, 80):
            change(key)
        partition = reopened(partition, tmp_path, memory_bytes=frames * PAGE_BYTES, frames=frames)
        some_left += partition.redo.pages_left
        for _ in range(40):
            key = rng.choice(keys)
            match rng.randrange(4):
                case 0:
                    assert partition.call("get", *key) == rows.get(key)
                case 1:
                    if key in rows:
                        rows[key] += 3
                    assert partition.call("add", *key, 3) == rows.get(key)
                case 2:
                    assert partition.call("remove", *key) is (rows.pop(key, None) is not None)
                case 3:
                    rows[key] = rng.randrange(1000)
                    partition.call("put", *key, rows[key], rng.choice(sizes))
        if life % 3 == 0:
            for name in ("numbers", "texts"):
                found = {key: row.n for key, row in partition.rows(name).items()}
                assert found == {own_key(name, key): n for (table, key), n in rows.items() if table == name}
            partition.store.check()
    assert some_left > (20 if frames == 4096 else 0)
    killed(partition)
