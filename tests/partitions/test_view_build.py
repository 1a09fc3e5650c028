"""A view comes to a table that has rows, while calls change them: it is what its SELECT says, or does not come at all.

`Store.check` compares each view with the rows of its table.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from msgspec import Raw

from partitions import store as store_module
from partitions.schema_change import SchemaChange, made_at_once
from partitions.view_source import MOST_SUM
from partitions.viewed_table import MOST_CHANGE
from tests.partitions.one_partition import OnePartition
from tests.partitions.test_views import (
    BY_SHOP,
    IN_ORDER,
    NO_INDEX,
    SALES,
    TABLES,
    VIEWS,
    change,
    closed,
    delete,
    make_checkpoint,
    prepare,
    put,
    rate,
    sold,
)
from voltpy.errors import ConstraintViolation, DataError, Error, ReadOnly, SchemaError
from voltpy.messages import Borrow, Commit, Decide, Prepare, TableChanges, TableKeys, Vote
from voltpy.row import encode
from voltpy.schema import Schema
from voltpy.sql.ddl import parse_schema
from voltpy.sql.ddl_change import parse_change

PROCEDURES = [put, change, delete, rate]
BY_TOTAL = "CREATE VIEW v AS SELECT shop, COUNT(*) AS n, SUM(cents) AS total FROM sales GROUP BY shop"
BY_RATE = "CREATE VIEW v AS SELECT shop, MAX(rate) AS best FROM sales GROUP BY shop"


def opened(directory: Path | None = None, index: str = "", **options: Any) -> OnePartition:
    return OnePartition(parse_schema(TABLES + index), PROCEDURES, directory, **options)


def changed(partition: OnePartition, text: str) -> Schema:
    return parse_change(text, partition.store.schema)[0]


def made(partition: OnePartition, text: str) -> Schema:
    """What one partition does when everybody has prepared."""
    schema = changed(partition, text)
    made_at_once(partition.store, schema)
    partition.executor.take_schema(partition.executor.registry)
    return schema


def prepared(building: SchemaChange) -> SchemaChange:
    while not building.is_prepared:
        building.step()
    return building


def switch(partition: OnePartition, building: SchemaChange) -> None:
    building.switch()
    partition.executor.take_schema(partition.executor.registry)


def rows_of(partition: OnePartition, view: str) -> set[tuple[Any, ...]]:
    columns = partition.store.schema.table(view).declared
    return {tuple(getattr(row, column.name) for column in columns) for row in partition.table(view).scan()}


class Traffic:
    """Random calls and batches of the coordinator's; some of these are left undecided for a while."""

    def __init__(self, partition: OnePartition, rng: random.Random, rows: int) -> None:
        self.partition = partition
        self.rng = rng
        self.rows = rows
        self.batch = 0
        self.undecided: dict[int, list[int]] = {}

    def row(self) -> list[Any]:
        rng = self.rng
        shop = rng.choice([None, "Oslo", "Bergen" * rng.choice([1, 150]), f"shop {rng.randrange(30)}"])
        rate = rng.choice([None, float(rng.randrange(9))])
        return [shop, rng.randrange(9), rng.choice([None, rng.randrange(1000)]), rng.randrange(999), rate]

    def key(self) -> int:
        busy = {key for keys in self.undecided.values() for key in keys}
        return next(key for key in iter(lambda: self.rng.randrange(self.rows), None) if key not in busy)

    def calls(self, count: int) -> None:
        for _ in range(count):
            if self.rng.random() < 0.3:
                self.partition.run("delete", self.key())
            else:
                self.partition.run("put", self.key(), self.row())
        if self.rng.random() < 0.2:
            self.partition.executor.undo_batch()
        self.partition.seal()

    def across(self) -> None:
        self.batch += 1
        keys = sorted({self.key() for _ in range(3)})
        self.partition.order(Borrow(self.batch, [TableKeys(SALES, [encode(key) for key in keys])], []))
        images = [encode([key, *self.row()]) for key in keys[1:]]
        changes = [TableChanges(SALES, images, [encode(keys[0])])]
        commits = self.rng.random() < 0.5
        order = Commit(self.batch, changes, Raw(b"\x90")) if commits else Prepare(self.batch, changes)
        (vote,) = self.partition.order(order)
        assert isinstance(vote, Vote)
        assert vote.error == "", vote.message
        if not commits:
            self.undecided[self.batch] = keys
        if len(self.undecided) > 3:
            self.decide(min(self.undecided))

    def decide(self, batch: int) -> None:
        self.partition.order(Decide(batch, self.rng.random() < 0.7))
        del self.undecided[batch]

    def step(self) -> None:
        self.calls(self.rng.randrange(60))
        if self.rng.random() < 0.5:
            self.across()


@pytest.mark.parametrize("seed", range(3))
def test_a_view_is_right_though_rows_change_while_it_is_built_and_after_a_crash(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "BESIDE_PAGES", 1)
    rng = random.Random(seed)
    index = (NO_INDEX, IN_ORDER, BY_SHOP)[seed % 3]
    partition = opened(tmp_path, index, frames=80)
    partition.bring = partition.store.misses.bring = partition.pool.bring
    traffic = Traffic(partition, rng, 1500)
    for _ in range(6):
        traffic.calls(250)
    make_checkpoint(partition)
    building = SchemaChange(partition.store, changed(partition, VIEWS))
    steps = 0
    while not building.is_prepared:
        building.step()
        steps += 1
        traffic.step()
        if not partition.checkpointer.running and rng.random() < 0.3:
            partition.checkpointer.request()
        partition.checkpointer.step(0.0)
    assert steps > 5
    for _ in range(5):
        traffic.step()
    partition.store.check()
    assert "by_shop" not in partition.store.by_name
    switch(partition, building)
    if seed % 2:
        make_checkpoint(partition)
    traffic.step()
    for batch in list(traffic.undecided)[seed % 2 :]:
        traffic.decide(batch)
    partition.store.check()
    before = {view: rows_of(partition, view) for view in ("by_shop", "by_kind", "by_id", "by_region")}
    schema = partition.store.schema
    closed(partition)
    partition = OnePartition(schema, PROCEDURES, tmp_path, frames=80)
    partition.store.misses.bring = partition.pool.bring
    partition.store.check()
    assert {view: rows_of(partition, view) for view in before} == before
    assert len(before["by_id"]) == partition.store.by_name["sales"].row_count
    closed(partition)


def fill(partition: OnePartition, rows: int = 300) -> None:
    for id in range(rows):
        partition.run("put", id, ["Oslo" * 20, 0, 1, 1, 1.0])
    partition.seal()


@pytest.mark.parametrize("when", ["before", "read later", "read already", "prepared", "decided"])
def test_a_row_that_a_view_can_not_hold_refuses_the_view_whenever_it_comes(
    when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "BESIDE_PAGES", 1)
    partition = opened()
    fill(partition)
    if when == "before":
        partition.call("put", 250, ["Oslo", 0, 1, 1, float("nan")])
    building = SchemaChange(partition.store, changed(partition, BY_RATE))
    building.step()
    if when.startswith("read"):
        partition.call("change", 299 if when == "read later" else 0, {"rate": float("nan")})
    elif when == "prepared":
        assert prepare(partition, 1, sold(1, "Oslo", 7, float("nan"))).error == ""
    elif when == "decided":
        assert prepare(partition, 1, sold(1, "Oslo", 7, float("nan"))).error == ""
        partition.order(Decide(1, True))
    with pytest.raises(DataError, match="view v, column best: NaN"):
        prepared(building)
    building.abandon()
    partition.call("put", 600, ["Oslo", 0, 1, 1, float("nan")])  # nothing refuses it
    assert not partition.store.views_ahead
    assert partition.store.bases == []
    frames = partition.store.arena.frames_in_use
    partition.call("put", 250, ["Oslo", 0, 1, 1, None])
    with pytest.raises(DataError):
        made(partition, BY_RATE)
    assert partition.store.arena.frames_in_use == frames
    made(partition, BY_TOTAL)
    partition.store.check()


def test_a_view_that_is_built_refuses_what_it_can_not_hold_until_nothing_comes_of_it() -> None:
    partition = opened()
    fill(partition)
    building = prepared(SchemaChange(partition.store, changed(partition, BY_RATE)))
    with pytest.raises(DataError, match="view v"):
        partition.call("put", 1, ["Oslo", 0, 1, 1, float("nan")])
    assert prepare(partition, 1, sold(1, "Oslo", 7, float("nan"))).error == "DataError"
    assert prepare(partition, 2, sold(1, "Oslo", 7, 5.0)).error == ""
    partition.store.check()
    building.abandon()
    partition.order(Decide(2, True))
    partition.call("put", 2, ["Oslo", 0, 1, 1, float("nan")])
    assert partition.table("sales").get(1).rate == 5.0


def test_what_the_wal_has_of_a_view_before_its_schema_is_stored_is_nothing(tmp_path: Path) -> None:
    partition = opened(tmp_path)
    fill(partition)
    prepared(SchemaChange(partition.store, changed(partition, BY_TOTAL)))
    partition.call("put", 1, ["Oslo", 0, 5, 1, None])
    assert prepare(partition, 1, sold(400, "Oslo", 1), commits=True).error == ""
    assert prepare(partition, 2, sold(401, "Oslo", 1)).error == ""
    make_checkpoint(partition)
    partition.order(Decide(2, True))
    closed(partition)
    partition = opened(tmp_path)
    assert partition.table("sales").row_count == 302
    schema = changed(partition, BY_TOTAL)
    closed(partition)
    partition = OnePartition(schema, PROCEDURES, tmp_path)  # stored, and killed before the switch
    partition.store.check()
    assert rows_of(partition, "v") == {("Oslo", 3, 7), ("Oslo" * 20, 299, 299)}
    closed(partition)


def test_sums_may_be_large_on_the_way_and_not_in_the_end(tmp_path: Path) -> None:
    """In which order rows stand on pages depends on much, and a recovery meets them in that order."""
    partition = opened(tmp_path)
    large = MOST_SUM - 1
    for id in range(8):
        partition.call("put", id, ["Oslo", 0, large if id < 4 else -large, 1, None])
    partition.call("put", 8, ["Bergen", 0, 1, 1, None])
    schema = made(partition, BY_TOTAL)
    assert rows_of(partition, "v") == {("Oslo", 8, 0), ("Bergen", 1, 1)}
    closed(partition)
    partition = OnePartition(schema, PROCEDURES, tmp_path)
    partition.store.check()
    partition.call("delete", 4)
    with pytest.raises(ConstraintViolation, match="the limit in a view"):
        partition.call("delete", 5)
    closed(partition)
    partition = opened(None)
    for id in range(2):
        partition.call("put", id, ["Oslo", 0, large, 1, None])
    with pytest.raises(
        ConstraintViolation, match=r"view v, column total: a sum of 9,223,372,036,854,775,806; the limit"
    ):
        made(partition, BY_TOTAL)


def test_what_is_prepared_is_not_refused_by_a_recovery_for_a_sum_that_calls_have_filled(tmp_path: Path) -> None:
    partition = opened(tmp_path)
    schema = made(partition, BY_TOTAL)
    assert prepare(partition, 1, sold(1, "Oslo", MOST_CHANGE)).error == ""
    partition.call("put", 2, ["Oslo", 0, MOST_SUM, 0, None])
    closed(partition)
    partition = OnePartition(schema, PROCEDURES, tmp_path)
    partition.attach(2)
    partition.order(Decide(1, True))
    closed(partition)
    partition = OnePartition(schema, PROCEDURES, tmp_path)
    assert rows_of(partition, "v") == {("Oslo", 2, MOST_SUM + MOST_CHANGE)}
    partition.store.check()
    closed(partition)


def test_a_view_goes_and_its_table_is_as_if_it_had_never_been(tmp_path: Path) -> None:
    partition = opened(tmp_path)
    fill(partition)
    made(partition, VIEWS + BY_RATE)
    schema = made(partition, "DROP VIEW v; DROP VIEW by_kind")
    partition.store.bury()
    partition.call("put", 1, ["Oslo", 0, 1, 1, float("nan")])
    partition.store.check()
    make_checkpoint(partition)
    closed(partition)
    partition = OnePartition(schema, PROCEDURES, tmp_path)
    partition.store.misses.bring = partition.pool.bring
    partition.store.check()
    schema = made(partition, "DROP VIEW by_shop; DROP VIEW by_id; CREATE VIEW by_shop AS SELECT shop, COUNT(*) AS n "
                             "FROM sales GROUP BY shop; DROP VIEW by_region; DROP TABLE rates")  # fmt: skip
    assert rows_of(partition, "by_shop") == {("Oslo", 1), ("Oslo" * 20, 299)}
    partition.call("delete", 1)
    partition.store.check()
    made(partition, "DROP VIEW by_shop")
    partition.store.bury()
    assert partition.store.bases == []
    assert partition.table("sales").maintain is None
    assert partition.call("delete", 2) is True
    partition.store.check()
    closed(partition)


def test_a_view_of_a_table_that_the_same_change_makes_is_there_and_of_one_that_it_alters_is_not() -> None:
    partition = opened()
    made(partition, "CREATE TABLE t (id INT PRIMARY KEY, a INT); "
                    "CREATE VIEW v AS SELECT a, COUNT(*) AS n FROM t GROUP BY a")  # fmt: skip
    partition.table("t").insert(1, 5)
    assert rows_of(partition, "v") == {(5, 1)}
    with pytest.raises(SchemaError, match="view w is over sales, which the same change alters: make it two"):
        made(partition, "ALTER TABLE sales ADD x INT; CREATE VIEW w AS SELECT x, COUNT(*) AS n FROM sales GROUP BY x")


def test_a_view_that_the_memory_has_no_room_for_beside_calls_is_given_up(tmp_path: Path) -> None:
    partition = opened(tmp_path, frames=40)
    partition.bring = partition.store.misses.bring = partition.pool.bring
    for first in range(0, 4000, 500):
        for id in range(first, first + 500):
            partition.run("put", id, [f"a shop with a long name, number {id}", 0, 1, 1, None])
        partition.seal()
        make_checkpoint(partition)
    frames = partition.store.arena.frames_in_use
    with pytest.raises(ReadOnly, match="view v, which is being made, needs more than a quarter of the memory"):
        made(partition, BY_TOTAL)
    assert partition.store.arena.frames_in_use <= frames
    assert partition.store.bases == []
    partition.call("delete", 5)
    closed(partition)


def test_errors_of_a_view_tell_nothing_but_voltpy_errors() -> None:
    partition = opened()
    fill(partition)
    for text in (
        "CREATE VIEW v AS SELECT 1 / (price - 1) AS k, COUNT(*) AS n FROM sales GROUP BY 1 / (price - 1)",
        "CREATE VIEW v AS SELECT shop, SUM(cents * 9223372036854775807 * 2) AS n FROM sales GROUP BY shop",
    ):
        with pytest.raises(Error):
            made(partition, text)
        partition.store.check()
