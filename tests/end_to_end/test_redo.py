"""A cluster whose partitions were all killed serves while what their recoveries left is still to be written."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.campaigns.cluster import Cluster, Event, happened
from voltpy.client import Client, connect
from voltpy.hash_slot import hash_slot, slot_owners

SCHEMA = """
CREATE TABLE orders (id INT PRIMARY KEY, place STRING NOT NULL, amount INT NOT NULL, pad STRING);
PARTITION TABLE orders ON COLUMN id;
CREATE TABLE places (code STRING PRIMARY KEY, name STRING NOT NULL, pad STRING);
CREATE TABLE others (id INT PRIMARY KEY, amount INT NOT NULL, pad STRING);
PARTITION TABLE others ON COLUMN id;
"""

PROCEDURES = """
from voltpy import procedure


@procedure(partition_by="id")
def order(tx, id: int, place: str, amount: int) -> None:
    tx.orders.upsert(id, place, amount, "o" * 900)


@procedure(partition_by="id")
def other(tx, id: int, amount: int) -> None:
    tx.others.upsert(id, amount, "t" * 900)


@procedure
def name_place(tx, code: str, name: str) -> None:
    tx.places.upsert(code, name, "p" * 900)


@procedure(partition_by="id", read_only=True)
def where_to(tx, id: int) -> str | None:
    row = tx.orders.get(id)
    return None if row is None else tx.places.get(row.place).name


@procedure(partition_by=("source", "target"))
def move(tx, source: int, target: int, amount: int) -> None:
    for id, change in ((source, -amount), (target, amount)):
        tx.orders.update(id, amount=tx.orders.get(id).amount + change)
"""

PARTITIONS = 2
ORDERS, OTHERS, PLACES = 240, 1000, 16
LEASE_S = 60.0


@pytest.fixture(scope="module")
def recovered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """All rows are in a checkpoint, and have changed since: order n has the amount −n, other n too. Nothing is flushed
    that need not be.
    """
    directory = tmp_path_factory.mktemp("recovered")
    options = ("--hold-redo", str(directory / "hold"), "--fsync", "never")
    with Cluster(directory / "cluster", SCHEMA, PROCEDURES, checkpoint_bytes=1 << 40, options=options) as cluster:
        cluster.start()
        with connect(cluster.url, timeout=30.0) as db:
            written(db, 1)
            checkpointed(db)
            written(db, -1)
        cluster.end(signal.SIGKILL)
        cluster.end_survivors()
        hold_of(cluster).touch()
        cluster.start()
        yield cluster


def written(db: Client, sign: int) -> None:
    db.call_many("name_place", [(f"p{n}", f"{'old' if sign > 0 else 'new'} {n}") for n in range(PLACES)])
    db.call_many("order", [(n, f"p{n % PLACES}", sign * n) for n in range(ORDERS)])
    db.call_many("other", [(n, sign * n) for n in range(OTHERS)])


def checkpointed(db: Client) -> None:
    """Every partition makes one: for a snapshot that nobody copies."""
    snapshot = db.begin_snapshot("(none)", os.getpid(), LEASE_S)["snapshot"]
    until_s = time.monotonic() + LEASE_S
    while db.renew_snapshot(snapshot)["state"] != "held":
        assert time.monotonic() < until_s
        time.sleep(0.01)
    db.end_snapshot(snapshot)


def hold_of(cluster: Cluster) -> Path:
    return cluster.directory.parent / "hold"


def is_caught_up(event: Event) -> bool:
    return event.get("event") == "caught_up"


def test_joins_copies_and_transactions_over_partitions_see_what_was_left_while_it_still_is(recovered: Cluster) -> None:
    owners = slot_owners(PARTITIONS)
    here, there = ([n for n in range(1, ORDERS) if owners[hash_slot(n)] == p] for p in range(PARTITIONS))
    left = [event["pages_left"] for event in recovered.events if event.get("event") == "recovered"][-PARTITIONS:]
    assert min(left) > OTHERS // PARTITIONS // 8
    join = "SELECT o.amount, p.name FROM orders o JOIN places p ON p.code = o.place"
    with connect(recovered.url, timeout=30.0) as db:
        assert db.call("where_to", here[0]) == f"new {here[0] % PLACES}"
        assert db.execute(f"{join} WHERE o.id = ?", (there[0],)).rows == [(-there[0], f"new {there[0] % PLACES}")]
        db.call("move", here[1], there[1], 7)
        db.call("name_place", f"p{here[2] % PLACES}", "newest")  # a copy of a row in each partition, left in each
        for n in (here[2], *(n for n in there if n % PLACES == here[2] % PLACES)):
            assert db.call("where_to", n) == "newest"
        amounts = {n: -n for n in range(ORDERS)}
        amounts[here[1]] -= 7
        amounts[there[1]] += 7
        names = {n: f"new {n}" for n in range(PLACES)} | {here[2] % PLACES: "newest"}
        joined = {(amount, names[n % PLACES]) for n, amount in amounts.items()}
        assert set(db.execute(join).rows) == joined  # of all that is left of both tables
        assert db.execute("SELECT COUNT(*), SUM(amount) FROM orders").rows == [(ORDERS, sum(amounts.values()))]
    assert recovered.since(0, is_caught_up) == []


def test_a_stop_while_something_is_left_loses_nothing_of_it(recovered: Cluster) -> None:
    with connect(recovered.url, timeout=30.0) as db:
        db.call("other", 1, 1000)
    for partition in range(PARTITIONS):
        mark, process = recovered.mark(), f"partition-{partition}"
        recovered.kill(process, signal.SIGTERM)
        assert recovered.wait(happened("exited", process), mark)["exit_status"] == 0
        recovered.wait(happened("serving", process), mark)
    assert recovered.end() == 0
    assert recovered.since(0, is_caught_up) == []
    recovered.start()
    with connect(recovered.url, timeout=30.0) as db:
        assert db.execute("SELECT amount FROM others WHERE id = ?", (1,)).rows == [(1000,)]
        mark = recovered.mark()
        hold_of(recovered).unlink()
        for partition in range(PARTITIONS):
            recovered.wait(lambda event, p=partition: is_caught_up(event) and event["partition"] == p, mark)
        total = 1000 - sum(n for n in range(OTHERS) if n != 1)
        assert db.execute("SELECT COUNT(*), SUM(amount) FROM others").rows == [(OTHERS, total)]
