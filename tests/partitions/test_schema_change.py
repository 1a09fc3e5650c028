"""The schema of one partition changes: what its rows allow, what is there afterwards, and after a crash."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from partitions import lookups as lookups_module
from partitions.schema_change import SchemaChange, made_at_once
from tests.partitions.one_partition import OnePartition
from voltpy import procedure
from voltpy.errors import DuplicateKey, ReadOnly, SchemaError
from voltpy.messages import Borrow, Decide, Lent, Prepare, TableChanges, TableKeys, Vote
from voltpy.row import encode
from voltpy.schema import Schema
from voltpy.sql.ddl import parse_schema
from voltpy.sql.ddl_change import parse_change

SCHEMA = parse_schema("CREATE TABLE t (id INT PRIMARY KEY, a INT); CREATE TABLE notes (text STRING)")
Model = dict[str, dict[Any, list[Any]]]


@procedure(partition_by="id")
def put(tx: Any, id: int, table: str, values: list[Any]) -> None:
    getattr(tx, table).upsert(id, *values)


@procedure(partition_by="id")
def take(tx: Any, id: int, table: str) -> bool:
    return bool(getattr(tx, table).delete(id))


@procedure(partition_by="id")
def change(tx: Any, id: int, table: str, column: str, value: Any) -> None:
    getattr(tx, table).update(id, **{column: value})


@procedure(partition_by="id")
def found(tx: Any, id: int, table: str, column: str, value: Any) -> list[Any]:
    return sorted(row.id for row in getattr(tx, table).where(**{column: value}))


@procedure(partition_by="id")
def note(tx: Any, id: int, values: list[Any]) -> None:
    tx.notes.insert(*values)


@procedure(partition_by="id")
def read(tx: Any, id: int, table: str, column: str) -> Any:
    return getattr(getattr(tx, table).get(id), column)


PROCEDURES = (put, take, change, found, note, read)


def opened(directory: Path | None, schema: Schema = SCHEMA, **options: Any) -> OnePartition:
    return OnePartition(schema, PROCEDURES, directory, **options)


def altered(partition: OnePartition, text: str) -> Schema:
    """What one partition does when everybody has prepared."""
    schema, _ = parse_change(text, partition.store.schema)
    made_at_once(partition.store, schema)
    partition.executor.take_schema(partition.executor.registry)
    return schema


def killed(partition: OnePartition) -> None:
    assert partition.wal is not None
    partition.checkpointer.close()
    partition.wal.abandon()


def checkpointed(partition: OnePartition, between: Callable[[int], None] = lambda _: None) -> None:
    partition.checkpointer.request()
    steps = 0
    while partition.checkpointer.step(0.0):
        between(steps)
        steps += 1


def bury(partition: OnePartition) -> None:
    partition.turn_pages()
    if not partition.checkpointer.running:
        partition.store.bury()
        assert not partition.store.condemned


@pytest.mark.parametrize("checkpoint", ["none", "before", "after"])
def test_rows_from_before_have_the_default_of_an_added_column(tmp_path: Path, checkpoint: str) -> None:
    partition = opened(tmp_path)
    partition.call("put", 1, "t", [10])
    partition.call("note", 1, ["old"])
    assert [partition.call("read", 1, "t", "a") for _ in range(3)] == [10] * 3  # it is kept decoded
    if checkpoint == "before":
        checkpointed(partition)
    schema = altered(partition, "ALTER TABLE t ADD b INT NOT NULL DEFAULT 7, ADD c STRING")
    schema = altered(partition, "ALTER TABLE notes ADD stars INT DEFAULT 3")
    assert partition.call("read", 1, "t", "b") == 7
    assert partition.rows("t")[1].b == 7
    partition.call("put", 2, "t", [20, 8, "new"])
    partition.call("change", 1, "t", "c", "changed")
    partition.call("note", 1, ["new", 5])
    if checkpoint == "after":
        checkpointed(partition)
    killed(partition)
    again = opened(tmp_path, schema)
    rows = again.rows("t")
    assert [(row.id, row.a, row.b, row.c) for _, row in sorted(rows.items())] == [
        (1, 10, 7, "changed"),
        (2, 20, 8, "new"),
    ]
    assert sorted((row.text, row.stars) for row in again.rows("notes").values()) == [("new", 5), ("old", 3)]
    again.store.check()
    killed(again)


def test_dropped_table_leaves_its_number_and_gives_its_places_back(tmp_path: Path) -> None:
    partition = opened(tmp_path)
    for first in range(0, 4000, 1000):
        partition.run_group("put", [(key, "t", [key]) for key in range(first, first + 1000)])
        partition.seal()
    checkpointed(partition)
    places = partition.checkpointer._file.places
    assert places > 5
    schema = altered(partition, "DROP TABLE t")
    with pytest.raises(SchemaError, match="there is no table t: it was dropped"):
        partition.call("put", 1, "t", [1])
    bury(partition)
    assert partition.store.arena.frames_in_use == 0
    checkpointed(partition)
    checkpointed(partition)  # what the last but one used is free for good
    assert partition.checkpointer._file.places == 0
    schema = altered(partition, "CREATE TABLE t (id INT PRIMARY KEY, text STRING)")
    assert schema.numbers["t"] == 2
    partition.call("put", 1, "t", ["another"])
    killed(partition)
    again = opened(tmp_path, schema)
    assert {key: row.text for key, row in again.rows("t").items()} == {1: "another"}
    again.store.check()
    killed(again)


def test_crash_before_the_checkpoint_after_a_drop_brings_nothing_back(tmp_path: Path) -> None:
    partition = opened(tmp_path)
    partition.call("put", 1, "t", [1])
    checkpointed(partition)
    partition.call("put", 2, "t", [2])
    schema = altered(partition, "DROP TABLE t; CREATE TABLE u (id INT PRIMARY KEY)")
    partition.call("put", 5, "u", [])
    killed(partition)
    again = opened(tmp_path, schema)
    assert set(again.rows("u")) == {5}
    assert [table.row_count for table in again.store.tables] == [0, 0, 1]
    checkpointed(again)
    file = again.checkpointer._file
    assert file.places - file.free_places == 1
    again.store.check()
    killed(again)


def test_table_is_dropped_while_a_checkpoint_writes_it(tmp_path: Path) -> None:
    partition = opened(tmp_path)
    for table in ("t", "notes"):
        rows = [(key, "t", [key]) if table == "t" else (key, ["x" * 100]) for key in range(3000)]
        partition.run_group("put" if table == "t" else "note", rows)
        partition.seal()
    schema = SCHEMA

    def drop(step: int) -> None:
        nonlocal schema
        if step == 2:
            assert partition.checkpointer.running
            schema = altered(partition, "DROP TABLE t")
            assert partition.store.condemned == {0}

    checkpointed(partition, drop)
    assert schema is not SCHEMA
    bury(partition)
    checkpointed(partition)
    partition.store.check()
    killed(partition)
    again = opened(tmp_path, schema)
    assert len(again.rows("notes")) == 3000
    again.store.check()
    killed(again)


def test_table_is_dropped_while_its_pages_are_on_disk_and_coming(tmp_path: Path) -> None:
    schema = parse_schema("CREATE TABLE wide (id INT PRIMARY KEY, text STRING); CREATE TABLE t (id INT PRIMARY KEY)")
    partition = opened(tmp_path, schema, frames=24)
    for first in range(0, 1000, 50):
        partition.run_group("put", [(key, "wide", ["x" * 400]) for key in range(first, first + 50)])
        partition.seal()
        checkpointed(partition)
        partition.turn_pages()
    heap = partition.store.by_name["wide"].storage[0]
    assert heap.cold > 20
    numbers = [partition.run("change", key, "wide", "text", "y") for key in range(0, 1000, 90)]
    partition.seal()
    waiting = [number for number in numbers if number not in partition.answers]
    assert len(waiting) > 3
    partition.pool.fetch(partition.executor.missed_pages())
    partition.pool.step(0.0)  # some are under way
    assert partition.pool.is_any_coming(0)
    after = altered(partition, "DROP TABLE wide")
    partition.store.bury()
    assert partition.store.condemned == {0}  # not before they have come
    bury(partition)
    for number in waiting:
        with pytest.raises(SchemaError, match="there is no table wide: it was dropped"):
            partition.answer(number)
    assert partition.store.arena.frames_in_use == 0
    partition.call("put", 1, "t", [])
    for _ in range(2):
        checkpointed(partition)
    file = partition.checkpointer._file
    assert file.places - file.free_places == 1
    partition.store.check()
    killed(partition)
    again = opened(tmp_path, after, frames=24)
    assert set(again.rows("t")) == {1}
    again.store.check()
    killed(again)


def test_unique_index_of_rows_that_are_not_leaves_nothing() -> None:
    partition = opened(None)
    partition.run_group("put", [(key, "t", [key // 2]) for key in range(5000)])
    partition.seal()
    schema, _ = parse_change("CREATE INDEX plain ON t (a); CREATE UNIQUE INDEX u ON t (a)", partition.store.schema)
    with pytest.raises(DuplicateKey, match=r"table t: a row with a = .* exists, and index u is unique"):
        made_at_once(partition.store, schema)
    assert partition.store.by_name["t"].lookups is None
    partition.call("put", 9999, "t", [0])
    partition.store.check()


@pytest.mark.parametrize("seed", range(4))
def test_index_is_right_though_rows_change_while_it_is_built(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookups_module, "BESIDE_PAGES", 1)
    rng = random.Random(seed)
    partition = opened(None)
    partition.run_group("put", [(key, "t", [rng.randrange(50)]) for key in range(8000)])
    partition.seal()
    schema, _ = parse_change("CREATE INDEX t_a ON t USING BTREE (a)", partition.store.schema)
    building = SchemaChange(partition.store, schema)
    steps = 0
    while not building.is_prepared:
        building.step()
        steps += 1
        for _ in range(20):
            key = rng.randrange(9000)
            if rng.random() < 0.5:
                partition.run("put", key, "t", [rng.randrange(50)])
            else:
                partition.run("take", key, "t")
        partition.seal()
    assert steps > 5
    building.switch()
    partition.executor.take_schema(partition.executor.registry)
    partition.store.check()
    rows = partition.rows("t")
    for value in range(0, 50, 7):
        expected = sorted(key for key, row in rows.items() if row.a == value)
        assert partition.call("found", 1, "t", "a", value) == expected


def test_unique_index_waits_for_what_is_prepared() -> None:
    """A row that is prepared stands on no page: the index would not know of it, and another could take its value."""
    partition = opened(None)
    partition.call("put", 1, "t", [1])
    row = encode([2, 7])
    (lent,) = partition.order(Borrow(1, [TableKeys(0, [encode(2)])], []))
    assert isinstance(lent, Lent)
    (vote,) = partition.order(Prepare(1, [TableChanges(0, [row], [])]))
    assert isinstance(vote, Vote)
    assert not vote.error
    schema, _ = parse_change("CREATE UNIQUE INDEX u ON t (a)", partition.store.schema)
    building = SchemaChange(partition.store, schema)
    for _ in range(10):
        building.step()
    assert not building.is_prepared
    partition.order(Decide(1, commits=True))
    building.step()
    assert building.is_prepared
    with pytest.raises(DuplicateKey):
        partition.call("put", 3, "t", [7])
    building.switch()
    partition.store.check()


def test_index_of_a_table_that_takes_the_name_of_a_dropped_one_is_its_own(tmp_path: Path) -> None:
    partition = opened(tmp_path)
    partition.call("put", 1, "t", [1])
    text = "DROP TABLE t; CREATE TABLE t (id INT PRIMARY KEY, a INT); CREATE UNIQUE INDEX u ON t (a)"
    schema = altered(partition, text)
    partition.store.bury()
    partition.call("put", 2, "t", [1])
    killed(partition)
    again = opened(tmp_path, schema)
    with pytest.raises(DuplicateKey):
        again.call("put", 3, "t", [1])
    assert set(again.rows("t")) == {2}
    again.store.check()
    killed(again)


def test_read_only_procedure_reads_no_row_from_before_while_a_change_is_prepared() -> None:
    """Its view of the table is older than the index, and remembers the row that it has read last."""

    @procedure(partition_by="id", read_only=True)
    def look(tx: Any, id: int) -> Any:
        return tx.t.get(id).a

    partition = OnePartition(SCHEMA, [*PROCEDURES, look], None)
    partition.call("put", 1, "t", [0])
    building = SchemaChange(partition.store, parse_change("CREATE INDEX t_a ON t (a)", SCHEMA)[0])
    while not building.is_prepared:
        building.step()
    seen = []
    for value in (1, 2, 3):
        partition.order(Borrow(value, [TableKeys(0, [encode(1)])], []))
        partition.order(Prepare(value, [TableChanges(0, [encode([1, value])], [])]), Decide(value, commits=True))
        seen += [partition.call("look", 1), partition.call("look", 1)]
        if value == 2:
            building.abandon()
    assert seen == [1, 1, 2, 2, 3, 3]
    partition.store.check()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ALTER TABLE t ADD b INT; CREATE INDEX t_b ON t (b)", "index t_b is on column b, which the same change adds"),
        ("DROP INDEX t_a; CREATE INDEX t_a ON t USING BTREE (a)", "index t_a can't be dropped and made anew by one"),
    ],
)
def test_change_that_takes_two_is_refused(text: str, words: str) -> None:
    partition = opened(None)
    altered(partition, "CREATE INDEX t_a ON t (a)")
    schema, _ = parse_change(text, partition.store.schema)
    with pytest.raises(SchemaError, match=words):
        SchemaChange(partition.store, schema)
    assert set(partition.store.by_name["t"].lookups.indexes) == {"t_a"}


def test_index_that_the_memory_has_no_room_for_is_given_up(tmp_path: Path) -> None:
    partition = opened(tmp_path, memory_bytes=1 << 20)
    for first in range(0, 12000, 1000):
        partition.run_group("put", [(key, "t", [key]) for key in range(first, first + 1000)])
        partition.seal()
        checkpointed(partition)
    schema, _ = parse_change("CREATE INDEX t_a ON t (a); CREATE INDEX b ON t (a, id)", partition.store.schema)
    with pytest.raises(ReadOnly, match=r"with index .*, which is being built, the indexes take"):
        made_at_once(partition.store, schema)
    assert partition.store.by_name["t"].lookups is None
    assert partition.call("take", 5, "t") is True
    killed(partition)


def test_partitioning_a_copied_table_that_has_rows_is_refused() -> None:
    partition = opened(None, partitions=2)
    partition.store.by_name["t"].insert(1, 1)
    partition.store.apply()
    schema, _ = parse_change("PARTITION TABLE t ON COLUMN id", partition.store.schema)
    with pytest.raises(SchemaError, match="table t has rows, of which every partition has a copy"):
        SchemaChange(partition.store, schema)


@pytest.mark.parametrize("seed", range(6))
def test_random_changes_crashes_and_checkpoints_leave_what_was_written(tmp_path: Path, seed: int) -> None:
    """Against a model: tables of rows as lists."""
    rng = random.Random(seed)
    schema = SCHEMA
    partition = opened(tmp_path, segment_bytes=1 << 16)
    model: Model = {"t": {}}
    defaults: dict[str, list[Any]] = {"t": [None]}
    made = 0

    def write() -> None:
        if not model:
            return
        for _ in range(rng.randrange(60)):
            table, key = rng.choice(list(model)), rng.randrange(300)
            if rng.random() < 0.2:
                partition.run("take", key, table)
                model[table].pop(key, None)
            else:
                values = [rng.randrange(40) for _ in defaults[table]]
                partition.run("put", key, table, values)
                model[table][key] = values
        partition.seal()
        partition.turn_pages()  # calls that wait for a page have not run yet

    def alter() -> None:
        nonlocal schema, made
        made += 1
        kind = rng.choice(["create", "drop", "add", "index", "unindex"])
        table = rng.choice(list(model)) if model else ""
        if kind == "create" or not model:
            name = rng.choice([name for name in ("t", "u", "v", "w", "x", f"y{made}") if name not in model])
            schema = altered(partition, f"CREATE TABLE {name} (id INT PRIMARY KEY, a INT DEFAULT {made})")
            model[name], defaults[name] = {}, [made]
        elif kind == "drop":
            schema = altered(partition, f"DROP TABLE {table}")
            del model[table], defaults[table]
        elif kind == "add":
            schema = altered(partition, f"ALTER TABLE {table} ADD c{made} INT NOT NULL DEFAULT {made}")
            defaults[table].append(made)
            for row in model[table].values():
                row.append(made)
        elif kind == "index":
            column = rng.choice(schema.table(table).declared[1:]).name
            how = rng.choice(["INVERTED", "HASH", "BTREE"])
            schema = altered(partition, f"CREATE INDEX i{made} ON {table} USING {how} ({column})")
        elif schema.indexes:
            schema = altered(partition, f"DROP INDEX {rng.choice(schema.indexes).name}")
        if not partition.checkpointer.running:
            bury(partition)

    def checkpoint() -> None:
        step_checkpoint(partition, rng)

    for _ in range(40):
        for step in rng.choices([write, alter, checkpoint], [4, 2, 3], k=3):
            step()
        if rng.random() < 0.2:
            killed(partition)
            partition = opened(tmp_path, schema, segment_bytes=1 << 16)
        partition.turn_pages()
        assert set(partition.store.by_name) == {*model, "notes"}, f"seed {seed}"
        for table, rows in model.items():
            columns = [column.name for column in schema.table(table).declared[1:]]
            stored = {key: [getattr(row, name) for name in columns] for key, row in partition.rows(table).items()}
            assert stored == rows, f"seed {seed}, table {table}"
    partition.bring = partition.pool.bring
    partition.store.misses.bring = partition.pool.bring
    partition.store.check()
    killed(partition)


def step_checkpoint(partition: OnePartition, rng: random.Random) -> None:
    if not partition.checkpointer.running:
        partition.checkpointer.request()
    for _ in range(rng.choice([1, 3, 1000])):
        if not partition.checkpointer.step(0.0):
            break


@pytest.mark.parametrize("with_checkpoint", [False, True])
def test_unique_index_that_a_start_brings_is_refused_where_rows_of_the_wal_are_equal(
    with_checkpoint: bool, tmp_path: Path
) -> None:
    partition = opened(tmp_path)
    partition.call("put", 1, "t", [7])
    if with_checkpoint:
        checkpointed(partition)
    partition.call("put", 2, "t", [7])
    killed(partition)
    schema, _ = parse_change("CREATE UNIQUE INDEX u ON t (a)", SCHEMA)
    with pytest.raises(DuplicateKey, match="index u is unique"):
        opened(tmp_path, schema)
    partition = opened(tmp_path)
    partition.call("change", 2, "t", "a", 8)
    killed(partition)
    partition = opened(tmp_path, schema)
    with pytest.raises(DuplicateKey):
        partition.call("put", 3, "t", [8])
    partition.store.check()
    killed(partition)


def test_unique_index_that_a_start_brings_is_refused_where_what_is_prepared_is_equal_to_a_row(tmp_path: Path) -> None:
    partition = opened(tmp_path)
    partition.call("put", 1, "t", [7])
    partition.order(Borrow(1, [TableKeys(0, [encode(2)])], []))
    (vote,) = partition.order(Prepare(1, [TableChanges(0, [encode([2, 7])], [])]))
    assert isinstance(vote, Vote)
    assert not vote.error
    killed(partition)
    schema, _ = parse_change("CREATE UNIQUE INDEX u ON t (a)", SCHEMA)
    with pytest.raises(DuplicateKey, match="index u is unique"):
        opened(tmp_path, schema)
    partition = opened(tmp_path)
    partition.attach(2)
    partition.order(Decide(1, commits=False))
    killed(partition)
    partition = opened(tmp_path, schema)
    partition.store.check()
    killed(partition)
