"""Values of unique indexes in the coordinator: borrowed before a body is told that one is taken or free."""

from __future__ import annotations

from typing import Any

import pytest

from tests.coordinator.fake_partition import FakeCluster
from voltpy.errors import DuplicateKey
from voltpy.hash_slot import hash_slot, slot_owners
from voltpy.messages import Borrow, Commit, Prepare
from voltpy.procedure import procedure
from voltpy.row import encode
from voltpy.sql.ddl import parse_schema

SCHEMA = parse_schema(
    """
    CREATE TABLE seats (show INT, seat INT, holder STRING, PRIMARY KEY (show, seat));
    PARTITION TABLE seats ON COLUMN show;
    CREATE UNIQUE INDEX one_each ON seats USING HASH (show, holder);
    """
)
OWNERS = slot_owners(2)
LEFT, RIGHT = (next(show for show in range(1, 99) if OWNERS[hash_slot(show)] == side) for side in (0, 1))


@procedure(partition_by=("one", "other"))
def book_both(tx: Any, one: int, other: int, seat: int, holder: str) -> str:
    """Books a seat in both shows, or says why not."""
    tx.seats.insert(one, seat, holder)
    try:
        tx.seats.insert(other, seat, holder)
    except DuplicateKey as error:
        tx.seats.delete((one, seat))
        return str(error)
    return "booked"


@procedure(partition_by=("one", "other"))
def book_or_fail(tx: Any, one: int, other: int, seat: int, holder: str) -> None:
    tx.seats.insert(one, seat, holder)
    tx.seats.insert(other, seat, holder)


@procedure(partition_by=("one", "other"))
def swap(tx: Any, one: int, other: int, seat: int, next_seat: int) -> list[Any]:
    """Those who sit beside each other in one show change places; in the other show somebody new comes."""
    first, second = tx.seats.get((one, seat)), tx.seats.get((one, next_seat))
    tx.seats.update((one, seat), holder=None)
    tx.seats.update((one, next_seat), holder=first.holder)
    tx.seats.update((one, seat), holder=second.holder)
    tx.seats.upsert(other, seat, first.holder)
    return [tx.seats.get((one, seat)).holder, tx.seats.get((one, next_seat)).holder]


@pytest.fixture
def cluster() -> FakeCluster:
    made = FakeCluster(SCHEMA, [book_both, book_or_fail, swap], partitions=2)
    made.settle()
    return made


def orders(cluster: FakeCluster, partition: int, *kinds: type) -> list[Any]:
    return [order for order in cluster.partitions[partition].log if isinstance(order, kinds)]


def test_rule_7_a_body_is_told_of_a_duplicate_as_it_is_in_one_partition(cluster: FakeCluster) -> None:
    cluster.put("seats", RIGHT, 7, "ann")
    said = cluster.call("book_both", LEFT, RIGHT, 1, "ann")
    assert said == f"table seats: a row with show, holder = ({RIGHT}, 'ann') exists, and index one_each is unique"
    assert cluster.row("seats", (LEFT, 1)) is None
    with pytest.raises(DuplicateKey):
        cluster.call("book_or_fail", LEFT, RIGHT, 1, "ann")
    assert cluster.core.counts["aborted_batches"] == 0
    assert cluster.call("book_both", LEFT, RIGHT, 1, "bob") == "booked"


def test_rule_7_a_value_is_held_in_all_partitions_before_anybody_is_asked_for_a_vote(cluster: FakeCluster) -> None:
    assert cluster.call("book_both", LEFT, RIGHT, 1, "ann") == "booked"
    for partition in (0, 1):
        borrowed = orders(cluster, partition, Borrow, Prepare, Commit)
        show = (LEFT, RIGHT)[partition]
        assert encode([show, "ann"]) in [value for each in borrowed[0].entries for value in each.values]
        assert [type(order) for order in borrowed] == [Borrow, Prepare]  # one round was enough


def test_values_change_hands_within_a_batch(cluster: FakeCluster) -> None:
    for seat, holder in ((1, "ann"), (2, "bob")):
        cluster.put("seats", LEFT, seat, holder)
    assert cluster.call("swap", LEFT, RIGHT, 1, 2) == ["bob", "ann"]
    first, second, third = (
        cluster.send(name, LEFT, RIGHT, *arguments)
        for name, *arguments in (("book_or_fail", 3, "cid"), ("book_or_fail", 4, "cid"), ("book_both", 4, "dan"))
    )
    cluster.settle()
    assert cluster.answer(first) is None
    with pytest.raises(DuplicateKey):
        cluster.answer(second)
    assert cluster.answer(third) == "booked"
    assert [cluster.row("seats", (RIGHT, seat)).holder for seat in (1, 3, 4)] == ["ann", "cid", "dan"]
