"""Views of one partition: what they hold against what their rows come to, through everything that can happen to those.

60 examples in the suite; VOLTPY_EXAMPLES=2000 in the environment makes it 2,000.
"""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import Raw

from partitions.checkpointer import Checkpointer
from partitions.view_source import MOST_SUM, string_limit
from partitions.viewed_table import MOST_CHANGE, ViewedTable
from tests.partitions.one_partition import OnePartition
from voltpy.errors import ConstraintViolation, Corruption, DataError, SchemaError
from voltpy.hash_slot import hash_slot, slot_owners
from voltpy.messages import (
    Borrow,
    Commit,
    Decide,
    Lent,
    Prepare,
    Ran,
    RunDirected,
    TableChanges,
    TableKeys,
    Vote,
)
from voltpy.procedure import procedure
from voltpy.row import encode
from voltpy.schema import Schema
from voltpy.sql.ddl import parse_schema

EXAMPLES = int(os.environ.get("VOLTPY_EXAMPLES", "60"))

TABLES = """
    CREATE TABLE sales (id INT PRIMARY KEY, shop STRING, kind INT NOT NULL, cents INT, price INT NOT NULL, rate FLOAT);
    PARTITION TABLE sales ON COLUMN id;
    CREATE TABLE rates (code STRING PRIMARY KEY, region STRING, n INT NOT NULL);
"""
VIEWS = """
    CREATE VIEW by_shop AS
        SELECT shop, COUNT(*) AS n, COUNT(cents) AS counted, SUM(cents) AS total, MIN(cents) AS low, MAX(cents) AS high
        FROM sales GROUP BY shop;
    CREATE VIEW by_kind AS
        SELECT SUM(price) AS paid, MAX(rate) AS best, kind % 3 AS k, shop, SUM(cents) AS total, MIN(shop) AS same,
            MAX(price) AS dearest
        FROM sales WHERE cents > 2 OR cents IS NULL GROUP BY kind % 3, shop;
    CREATE VIEW by_id AS SELECT id, SUM(cents) AS total, MIN(price) AS price FROM sales GROUP BY id;
    CREATE VIEW by_region AS SELECT region, COUNT(*) AS n, SUM(n) AS total FROM rates GROUP BY region;
"""
NO_INDEX = ""
IN_ORDER = "CREATE INDEX shops ON sales USING BTREE (shop, cents);"
BY_SHOP = "CREATE INDEX shops ON sales USING INVERTED (shop);"
SCHEMA = parse_schema(TABLES + VIEWS)
SALES, RATES = 0, 1

Row = tuple[int, str | None, int, int | None, int, float | None]


# ---------------------------------------------------------------------------------------------------- procedures


@procedure(partition_by="id")
def put(tx: Any, id: int, row: list[Any]) -> Any:
    tx.sales.upsert(id, *row)


@procedure(partition_by="id")
def change(tx: Any, id: int, changes: dict[str, Any]) -> Any:
    if tx.sales.get(id) is not None:
        tx.sales.update(id, **changes)


@procedure(partition_by="id")
def delete(tx: Any, id: int) -> Any:
    return tx.sales.delete(id)


@procedure(partition_by="id")
def move(tx: Any, id: int, other: int) -> Any:
    """Two rows of one transaction, which may be of one group."""
    one, two = tx.sales.get(id), tx.sales.get(other)
    if one is not None and two is not None and id != other:
        tx.sales.update(id, cents=two.cents)
        tx.sales.delete(other)


@procedure(partition_by="id")
def abort(tx: Any, id: int, other: int, row: list[Any]) -> Any:
    tx.sales.upsert(id, *row)
    tx.sales.delete(other)
    tx.abort("as told")


@procedure(partition_by="id")
def swallow(tx: Any, id: int, row: list[Any]) -> Any:
    """A write that one of the views refuses, behind others of which it does not: it leaves nothing."""
    try:
        tx.sales.upsert(id, *row[:-1], float("nan"))
    except DataError:
        return "refused"
    return "taken"


@procedure(partition_by="id")
def rate(tx: Any, id: int, code: str, region: str | None, n: int) -> Any:
    tx.rates.upsert(code, region, n)


@procedure(partition_by="id", read_only=True)
def shop(tx: Any, id: int, name: str | None) -> Any:
    row = tx.by_shop.get(name)
    return None if row is None else [row.n, row.counted, row.total, row.low, row.high]


@procedure(partition_by="id")
def sell(tx: Any, id: int, name: str | None, cents: int) -> Any:
    tx.sales.insert(id, name, 0, cents, 0)
    return tx.by_shop.get(name).total


@procedure(partition_by="id", read_only=True)
def reads(tx: Any, id: int) -> Any:
    view = tx.by_kind
    return [
        view.count(),
        sorted((row.k, row.shop or "") for row in view.scan()),
        [row.paid for row in view.where(k=1, shop="Oslo")],
        [row.paid for row in view.where(shop="Oslo", k=9)],
        [(row.k, row.shop) for row in view.range((0, "B"), (1, "P"))],
        [row.total for row in tx.by_id.range(0, 3)],
    ]


@procedure(partition_by="id")
def write_to_view(tx: Any, id: int) -> Any:
    tx.by_shop.delete(None)


PROCEDURES = [put, change, delete, move, abort, swallow, rate, shop, sell, reads, write_to_view]


# ---------------------------------------------------------------------------------------------------- the oracle


def expected(rows: dict[int, Row], rates: dict[str, tuple[str | None, int]]) -> dict[str, dict[Any, Any]]:
    """What the views' declared columns hold, by the keys of their groups."""
    shops: dict[Any, list[Row]] = defaultdict(list)
    kinds: dict[Any, list[Row]] = defaultdict(list)
    regions: dict[Any, list[int]] = defaultdict(list)
    for row in rows.values():
        shops[row[1]].append(row)
        if row[3] is None or row[3] > 2:
            sign = 1 if row[2] >= 0 else -1
            kinds[sign * (abs(row[2]) % 3), row[1]].append(row)
    for region, n in rates.values():
        regions[region].append(n)

    def known(values: list[Any]) -> list[Any]:
        return [value for value in values if value is not None]

    def total(values: list[Any]) -> Any:
        return sum(known(values)) if known(values) else None

    by_shop = {
        name: (name, len(of), len(known([r[3] for r in of])), total([r[3] for r in of]),
               min(known([r[3] for r in of]), default=None), max(known([r[3] for r in of]), default=None))
        for name, of in shops.items()
    }  # fmt: skip
    by_kind = {
        key: (
            sum(r[4] for r in of),
            max(known([r[5] for r in of]), default=None),
            *key,
            total([r[3] for r in of]),
            key[1],
            max(r[4] for r in of),
        )
        for key, of in kinds.items()
    }
    by_id = {row[0]: (row[0], row[3], row[4]) for row in rows.values()}
    by_region = {region: (region, len(ns), sum(ns)) for region, ns in regions.items()}
    return {"by_shop": by_shop, "by_kind": by_kind, "by_id": by_id, "by_region": by_region}


def found(partition: OnePartition, schema: Schema = SCHEMA) -> dict[str, dict[Any, Any]]:
    views: dict[str, dict[Any, Any]] = {}
    for table in schema.tables:
        if table.view is not None:
            keys = table.primary_key[1 if table.view.own_key else 0 :]
            views[table.name] = {}
            for row in partition.table(table.name).scan():
                key = tuple(getattr(row, name) for name in keys)
                values = tuple(getattr(row, column.name) for column in table.declared)
                views[table.name][key[0] if len(key) == 1 else key] = values
    return views


# ---------------------------------------------------------------------------------------------------- the model

IDS = st.integers(0, 9)
SHOPS = st.sampled_from([None, "Oslo", "Bergen", ""])
CENTS = st.none() | st.integers(-3, 6)
ROWS = st.tuples(SHOPS, st.integers(-4, 4), CENTS, st.integers(0, 5), st.none() | st.sampled_from([0.0, -1.5, 2.5]))
CHANGES = st.fixed_dictionaries(
    {}, optional={"shop": SHOPS, "kind": st.integers(-4, 4), "cents": CENTS, "price": st.integers(0, 5)}
)
BATCH = st.dictionaries(IDS, st.none() | ROWS, min_size=1, max_size=4)
STEPS = st.one_of(
    st.tuples(st.just("put"), IDS, ROWS),
    st.tuples(st.just("change"), IDS, CHANGES),
    st.tuples(st.just("delete"), IDS),
    st.tuples(st.just("move"), IDS, IDS),
    st.tuples(st.just("abort"), IDS, IDS, ROWS),
    st.tuples(st.just("swallow"), IDS, ROWS),
    st.tuples(st.just("rate"), st.sampled_from(["EUR", "NOK"]), st.sampled_from([None, "north"]), st.integers(0, 3)),
    st.tuples(st.just("seal")),
    st.tuples(st.just("undo")),
    st.tuples(st.just("decide"), BATCH, st.booleans(), st.lists(st.tuples(IDS, ROWS), max_size=2)),
    st.tuples(st.just("commit"), BATCH),
    st.tuples(st.just("checkpoint"), st.integers(1, 40)),
    st.tuples(st.just("crash")),
)


class Model:
    """`rows` as the open batch leaves them, `sealed` as it found them."""

    def __init__(self, schema: Schema, directory: Path) -> None:
        self.schema = schema
        self.directory = directory
        self.rows: dict[int, Row] = {}
        self.rates: dict[str, tuple[str | None, int]] = {}
        self.batches = 0
        self.sealed: tuple[dict[int, Row], dict[str, tuple[str | None, int]]] = {}, {}
        self.partition = self.opened()

    def opened(self) -> OnePartition:
        partition = OnePartition(self.schema, PROCEDURES, self.directory, memory_bytes=32 << 20, frames=40)
        partition.bring = partition.store.misses.bring = partition.pool.bring
        return partition

    def step(self, name: str, *arguments: Any) -> None:
        getattr(self, name)(*arguments)

    def call(self, name: str, *arguments: Any) -> None:
        self.partition.run(name, *arguments)  # what it says is not looked at: what it leaves is

    def put(self, id: int, row: Any) -> None:
        self.call("put", id, list(row))
        self.rows[id] = (id, *row)

    def change(self, id: int, changes: dict[str, Any]) -> None:
        self.call("change", id, changes)
        if id in self.rows:
            names = ("id", "shop", "kind", "cents", "price", "rate")
            self.rows[id] = tuple(changes.get(n, v) for n, v in zip(names, self.rows[id], strict=True))  # type: ignore[assignment]

    def delete(self, id: int) -> None:
        self.call("delete", id)
        self.rows.pop(id, None)

    def move(self, id: int, other: int) -> None:
        self.call("move", id, other)
        if id in self.rows and other in self.rows and id != other:
            old = self.rows[id]
            self.rows[id] = (*old[:3], self.rows.pop(other)[3], *old[4:])

    def abort(self, id: int, other: int, row: Any) -> None:
        self.call("abort", id, other, list(row))

    def swallow(self, id: int, row: Any) -> None:
        number = self.partition.run("swallow", id, [row[0], row[1], None, *row[3:]])  # so that by_kind looks at it
        self.seal()
        assert self.partition.answer(number) == "refused"

    def rate(self, code: str, region: str | None, n: int) -> None:
        self.call("rate", 0, code, region, n)
        self.rates[code] = (region, n)

    def seal(self) -> None:
        self.partition.seal()
        self.sealed = dict(self.rows), dict(self.rates)

    def undo(self) -> None:
        self.partition.executor.undo_batch()
        self.rows, self.rates = dict(self.sealed[0]), dict(self.sealed[1])

    def borrow(self, batch: dict[int, Any]) -> list[TableChanges]:
        self.seal()
        self.batches += 1
        keys = [TableKeys(SALES, [encode(id) for id in batch])]
        (lent,) = self.partition.order(Borrow(self.batches, keys, []))
        assert isinstance(lent, Lent)
        assert lent.refused == ""
        images = [encode([id, *row]) for id, row in batch.items() if row is not None]
        return [TableChanges(SALES, images, [encode(id) for id, row in batch.items() if row is None])]

    def take(self, batch: dict[int, Any]) -> None:
        for id, row in batch.items():
            self.rows.pop(id, None)
            if row is not None:
                self.rows[id] = (id, *row)

    def decide(self, batch: dict[int, Any], commits: bool, meanwhile: list[tuple[int, Any]]) -> None:
        """Prepares, lets others write to the same groups, and decides."""
        changes = self.borrow(batch)
        (vote,) = self.partition.order(Prepare(self.batches, changes))
        assert isinstance(vote, Vote)
        assert vote.error == "", vote.message
        for id, row in meanwhile:
            if id not in batch:
                self.put(id, row)
        self.seal()
        self.partition.order(Decide(self.batches, commits))
        if commits:
            self.take(batch)
        self.sealed = dict(self.rows), dict(self.rates)

    def commit(self, batch: dict[int, Any]) -> None:
        changes = self.borrow(batch)
        (vote,) = self.partition.order(Commit(self.batches, changes, Raw(b"\x90")))
        assert isinstance(vote, Vote)
        assert vote.error == "", vote.message
        self.take(batch)
        self.sealed = dict(self.rows), dict(self.rates)

    def checkpoint(self, slices: int) -> None:
        self.seal()
        if not self.partition.checkpointer.running:
            self.partition.checkpointer.request()
        for _ in range(slices):
            self.partition.checkpointer._flusher.wait()
            if not self.partition.checkpointer.step(0.0):
                break

    def crash(self) -> None:
        self.seal()
        assert self.partition.wal is not None
        self.partition.wal.flush()
        self.close()
        self.partition = self.opened()

    def close(self) -> None:
        self.partition.checkpointer.close()
        assert self.partition.wal is not None
        self.partition.wal.abandon()

    def compare(self) -> None:
        assert found(self.partition, self.schema) == expected(self.rows, self.rates)
        assert {row.id for row in self.partition.table("sales").scan()} == set(self.rows)


@pytest.mark.parametrize("index", [NO_INDEX, IN_ORDER, BY_SHOP])
def test_views_equal_what_their_rows_come_to(index: str) -> None:
    schema = parse_schema(TABLES + VIEWS + index)

    @settings(max_examples=EXAMPLES // 3, deadline=None, print_blob=True, suppress_health_check=list(HealthCheck))
    @given(st.lists(STEPS, min_size=5, max_size=30), st.booleans())
    def run(steps: list[Any], checkpointed: bool) -> None:
        with TemporaryDirectory(prefix="voltpy-views-") as directory:
            model = Model(schema, Path(directory))
            try:
                if checkpointed:  # from here on a recovery builds no view anew
                    make_checkpoint(model.partition)
                for step in steps:
                    model.step(*step)
                    model.compare()
                model.seal()
                model.partition.store.check()
                model.crash()
                model.compare()
                model.partition.store.check()
            finally:
                model.close()

    run()


# ---------------------------------------------------------------------------------------------------- one by one


@pytest.fixture
def partition() -> OnePartition:
    return OnePartition(SCHEMA, PROCEDURES)


def sold(id: int, name: str | None, cents: int | None, rate: float | None = None) -> bytes:
    return encode([id, name, 0, cents, 0, rate])


def extremes(partition: OnePartition) -> tuple[Any, Any]:
    (row,) = partition.table("by_shop").where(shop="Oslo")
    return row.low, row.high


def prepare(partition: OnePartition, batch: int, *images: bytes, commits: bool = False) -> Vote:
    keys = [msgspec.msgpack.decode(image)[0] for image in images]
    changes = [TableChanges(SALES, list(images), [])]
    partition.order(Borrow(batch, [TableKeys(SALES, [encode(key) for key in keys])], []))
    (vote,) = partition.order(Commit(batch, changes, Raw(b"\x90")) if commits else Prepare(batch, changes))
    assert isinstance(vote, Vote)
    return vote


def test_a_transaction_reads_in_the_view_what_it_has_written(partition: OnePartition) -> None:
    assert partition.call("sell", 1, "Oslo", 5) == 5
    assert partition.call("sell", 2, "Oslo", -7) == -2
    assert partition.call("shop", 1, "Oslo") == [2, 2, -2, -7, 5]
    assert partition.call("shop", 1, "Bergen") is None


def test_reads_of_a_view_take_the_keys_of_its_select(partition: OnePartition) -> None:
    for id, name, kind, price in ((0, "Oslo", 1, 5), (1, "Bergen", 3, 6), (2, "Oslo", 4, 7), (3, None, 0, 8)):
        partition.call("put", id, [name, kind, None, price, None])
    assert partition.call("reads", 0) == [
        3, [[0, ""], [0, "Bergen"], [1, "Oslo"]], [12], [], [[0, "Bergen"], [1, "Oslo"]], [None, None, None],
    ]  # fmt: skip


def test_a_view_is_not_written(partition: OnePartition) -> None:
    with pytest.raises(SchemaError, match="by_shop: it is a view of sales: write to that, and it follows"):
        partition.call("write_to_view", 0)


def test_reads_of_a_view_wait_while_a_key_of_its_table_is_lent(partition: OnePartition) -> None:
    partition.call("sell", 1, "Oslo", 5)
    partition.order(Borrow(1, [TableKeys(SALES, [encode(1)])], []))
    reading = partition.run("shop", 2, "Oslo")
    writing = partition.run("put", 2, ["Oslo", 0, 3, 0, None])
    partition.seal()
    assert reading not in partition.answers
    assert partition.answer(writing) is None  # the other rows of the group may change
    assert prepare_again(partition, 1, sold(1, "Oslo", 50)).error == ""
    partition.order(Decide(1, True))
    partition.run_ready()
    assert partition.answer(reading) == [2, 2, 53, 3, 50]


def prepare_again(partition: OnePartition, batch: int, *images: bytes) -> Vote:
    (vote,) = partition.order(Prepare(batch, [TableChanges(SALES, list(images), [])]))
    assert isinstance(vote, Vote)
    return vote


def test_the_least_value_is_found_again_beside_a_lent_row_that_has_it(partition: OnePartition) -> None:
    for id, cents in ((1, 5), (2, 3), (3, 4)):
        partition.call("sell", id, "Oslo", cents)
    partition.order(Borrow(1, [TableKeys(SALES, [encode(2)])], []))
    partition.call("delete", 3)
    partition.call("delete", 1)
    assert found(partition)["by_shop"] == {"Oslo": ("Oslo", 1, 1, 3, 3, 3)}
    partition.order(Decide(1, False))
    partition.store.check()


@pytest.mark.parametrize("index", [NO_INDEX, IN_ORDER, BY_SHOP])
def test_the_next_extreme_is_looked_for_when_a_row_goes(index: str, monkeypatch: pytest.MonkeyPatch) -> None:
    partition = OnePartition(parse_schema(TABLES + VIEWS + index), PROCEDURES)
    for id, cents in enumerate([None, 5, 3, 4, 9, 7, None]):
        partition.call("put", id, ["Oslo", 0, cents, 0, None])
        partition.call("put", 10 + id, ["Bergen", 0, 20, 0, None])
    if index:
        monkeypatch.setattr(ViewedTable, "scan", None)  # nothing else than the index is read
    low_and_high = []
    for id in (2, 4, 5, 1, 0, 3):
        partition.call("delete", id)
        low_and_high.append(extremes(partition))
    assert low_and_high == [(4, 9), (4, 7), (4, 5), (4, 4), (4, 4), (None, None)]
    monkeypatch.undo()
    partition.store.check()


@pytest.mark.parametrize("index", [NO_INDEX, IN_ORDER, BY_SHOP])
def test_an_extreme_goes_in_a_batch_that_brings_the_next_one(index: str) -> None:
    partition = OnePartition(parse_schema(TABLES + VIEWS + index), PROCEDURES)
    for id, cents in ((1, 1), (2, 5), (3, 1)):
        partition.call("put", id, ["Oslo", 0, cents, 0, None])
    keys = [TableKeys(SALES, [encode(id) for id in (1, 2, 3, 4)])]
    partition.order(Borrow(1, keys, []))
    changes = [TableChanges(SALES, [sold(4, "Oslo", 1), sold(2, "Oslo", 6)], [encode(1), encode(3)])]
    (vote,) = partition.order(Commit(1, changes, Raw(b"\x90")))
    assert isinstance(vote, Vote)
    assert vote.error == ""
    assert found(partition)["by_shop"] == {"Oslo": ("Oslo", 2, 2, 7, 1, 6)}
    partition.store.check()


def test_what_a_view_can_not_hold_is_refused_when_it_is_prepared(partition: OnePartition) -> None:
    for number, image, error in (
        (1, sold(1, "x" * (string_limit(partition.table("by_shop").schema) + 1), 1), "ConstraintViolation"),
        (2, sold(1, "Oslo", 1 << 62), "ConstraintViolation"),
        (3, sold(1, "Oslo", 5, float("nan")), "DataError"),
    ):
        assert prepare(partition, number, image).error == error
    assert prepare(partition, 4, sold(1, "Oslo", 1 << 62), commits=True).error == ""
    assert prepare(partition, 5, sold(2, "Oslo", 1), commits=True).error == "ConstraintViolation"
    partition.store.check()
    assert found(partition)["by_shop"] == {"Oslo": ("Oslo", 1, 1, 1 << 62, 1 << 62, 1 << 62)}


def test_a_sum_that_calls_have_filled_has_room_for_what_is_prepared(partition: OnePartition) -> None:
    assert prepare(partition, 1, sold(1, "Oslo", MOST_CHANGE)).error == ""
    partition.call("put", 2, ["Oslo", 0, MOST_SUM, 0, None])
    with pytest.raises(ConstraintViolation, match="the limit in a view"):
        partition.call("put", 3, ["Oslo", 0, 1, 0, None])
    partition.order(Decide(1, True))
    assert partition.table("by_shop").where(shop="Oslo")[0].total == MOST_SUM + MOST_CHANGE
    partition.call("sell", 4, "Oslo", -1)  # smaller it may become
    partition.call("delete", 2)
    partition.store.check()


def test_what_a_joint_call_changes_in_views_follows_its_decision() -> None:
    @procedure(everywhere=True)
    def raise_all(tx: Any) -> Any:
        for row in list(tx.rates.scan()):
            tx.rates.update(row.code, n=row.n + 1)
        return [row.total for row in tx.by_region.scan()]

    partition = OnePartition(SCHEMA, [*PROCEDURES, raise_all], partitions=2)
    partition.order(Borrow(1, [], [], [TableKeys(RATES, [encode("EUR")])]))
    (vote,) = partition.order(Commit(1, [TableChanges(RATES, [encode(["EUR", "north", 5])], [])], Raw(b"\x90")))
    assert isinstance(vote, Vote)
    assert vote.error == ""
    (ran,) = partition.order(RunDirected(2, 7, 1, "raise_all", Raw(b"\x90"), 0))
    assert isinstance(ran, Ran)
    assert bytes(ran.result) == encode([6])
    assert [change.table for change in ran.copies] == [RATES]
    assert found(partition)["by_region"] == {"north": ("north", 1, 5)}
    partition.order(Decide(2, True))
    assert found(partition)["by_region"] == {"north": ("north", 1, 6)}
    partition.store.check()


@pytest.mark.parametrize("with_checkpoint", [False, True])
def test_a_view_over_rows_that_are_there_is_built_when_it_comes(with_checkpoint: bool, tmp_path: Path) -> None:
    partition = OnePartition(parse_schema(TABLES), [put, rate], tmp_path)
    for id in range(3000):
        partition.run("put", id, [f"shop {id % 7}" if id % 8 else None, id % 5, id % 11, 1, None])
    partition.run("rate", 0, "EUR", None, 3)
    partition.seal()
    if with_checkpoint:
        make_checkpoint(partition)
    for times in range(2):  # what was built and in no checkpoint is built again
        closed(partition)
        partition = OnePartition(SCHEMA, PROCEDURES, tmp_path)
        partition.store.check()
        assert sum(row[1] for row in found(partition)["by_shop"].values()) == 3000 + times
        partition.call("sell", 5000 + times, "Oslo", 5)
    partition.store.check()
    make_checkpoint(partition)
    closed(partition)
    partition = OnePartition(SCHEMA, PROCEDURES, tmp_path)
    assert partition.store.views_behind == set()
    partition.store.check()
    assert found(partition)["by_region"] == {None: (None, 1, 3)}
    assert found(partition)["by_shop"]["Oslo"][1] == 2
    closed(partition)


def test_a_view_that_comes_while_a_batch_is_in_doubt_is_tried_on_what_that_has_prepared(tmp_path: Path) -> None:
    without = parse_schema(TABLES)
    partition = OnePartition(without, [put], tmp_path)
    partition.call("put", 1, ["Oslo", 0, 5, 1, None])
    partition.attach()
    assert prepare(partition, 1, sold(2, "Oslo", 7, float("nan"))).error == ""
    for _ in range(2):
        closed(partition)
        with pytest.raises(DataError, match="NaN"):
            OnePartition(SCHEMA, PROCEDURES, tmp_path)
        partition = OnePartition(without, [put], tmp_path)
    assert set(partition.store.prepared) == {1}
    closed(partition)
    fits = parse_schema(TABLES + "CREATE VIEW shops AS SELECT shop, COUNT(*) AS n FROM sales GROUP BY shop;")
    partition = OnePartition(fits, [put], tmp_path)
    assert [(row.shop, row.n) for row in partition.table("shops").scan()] == [("Oslo", 1)]
    partition.attach(2)
    partition.order(Decide(1, True))
    assert [(row.shop, row.n) for row in partition.table("shops").scan()] == [("Oslo", 2)]
    partition.store.check()
    closed(partition)


def test_a_view_that_was_half_built_when_a_checkpoint_was_made_is_built_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partition = OnePartition(parse_schema(TABLES), [put], tmp_path)
    for id in range(1500):
        partition.run("put", id, [f"shop {id % 997}", id % 5, id % 11, 1, None])
        if id % 500 == 499:
            partition.seal()
    make_checkpoint(partition)
    closed(partition)
    behind: list[set[int]] = []
    make = Checkpointer.make

    def noted(checkpointer: Checkpointer, lsn: int) -> None:
        behind.append(set(checkpointer._store.views_behind))
        make(checkpointer, lsn)

    monkeypatch.setattr(Checkpointer, "make", noted)
    for _ in range(2):  # nothing but the checkpoints on the way knows of the views
        partition = OnePartition(SCHEMA, PROCEDURES, tmp_path, frames=9)
        assert behind
        assert all(behind)
        behind.clear()
        assert len(found(partition)["by_id"]) == 1500
        partition.store.check()
        closed(partition)
    partition = OnePartition(SCHEMA, PROCEDURES, tmp_path)
    make_checkpoint(partition)
    closed(partition)
    partition = OnePartition(SCHEMA, PROCEDURES, tmp_path)
    assert partition.store.views_behind == set()
    partition.table("by_id")  # cold pages come by themselves
    partition.store.check()
    closed(partition)


def make_checkpoint(partition: OnePartition) -> None:
    partition.checkpointer.request()
    while partition.checkpointer.step(0.0):
        partition.checkpointer._flusher.wait()


def closed(partition: OnePartition) -> None:
    assert partition.wal is not None
    partition.wal.flush()
    partition.checkpointer.close()
    partition.wal.abandon()


@pytest.mark.parametrize("what", ["value", "group", "lost group"])
def test_check_finds_a_view_that_is_not_what_its_rows_come_to(what: str, partition: OnePartition) -> None:
    partition.call("sell", 1, "Oslo", 5)
    partition.store.check()
    view = partition.table("by_shop")
    key = (next(iter(view.scan())).partition_key, "Oslo")
    if what == "value":
        view.update(key, total=6)
    elif what == "group":
        view.upsert("Bergen", 1, 0, None, None, None, key[0])
    else:
        view.delete(key)
    partition.store.changes()
    partition.store.apply()
    with pytest.raises(Corruption, match="view by_shop"):
        partition.store.check()


def test_parts_of_groups_are_filed_under_a_key_of_their_partition() -> None:
    owners = slot_owners(3)
    for number in range(3):
        partition = OnePartition(SCHEMA, PROCEDURES, partition=number, partitions=3)
        id = next(id for id in range(100) if owners[hash_slot(id)] == number)
        partition.call("sell", id, None, 5)
        (row,) = partition.table("by_shop").scan()
        assert owners[hash_slot(row.partition_key)] == number
        assert isinstance(partition.table("sales"), ViewedTable)
        assert partition.call("shop", id, None) == [1, 1, 5, 5, 5]
