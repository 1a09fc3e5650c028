"""Values in unique indexes, while rows are lent, prepared and decided: never two rows with the same ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec import Raw

from tests.partitions.one_partition import OnePartition
from tests.partitions.test_lending import Full
from voltpy.errors import DuplicateKey, ProcedureError
from voltpy.messages import (
    LEASE_S,
    Borrow,
    Commit,
    Decide,
    Decided,
    Lent,
    Prepare,
    RunDirected,
    Scan,
    TableChanges,
    TableKeys,
    UniqueValues,
    Vote,
)
from voltpy.procedure import procedure
from voltpy.record_log import DiskFull
from voltpy.row import encode
from voltpy.sql.ddl import parse_schema

SCHEMA = parse_schema(
    """
    CREATE TABLE seats (show INT, seat INT, holder STRING, PRIMARY KEY (show, seat));
    PARTITION TABLE seats ON COLUMN show;
    CREATE UNIQUE INDEX one_each ON seats USING HASH (show, holder);
    CREATE TABLE words (code INT PRIMARY KEY, word STRING);
    CREATE UNIQUE INDEX no_word_twice ON words USING BTREE (word);
    """
)
SEATS, WORDS = range(2)
NONE = Raw(b"\x90")


@procedure(partition_by="show")
def book(tx: Any, show: int, seat: int, holder: str | None) -> Any:
    tx.seats.insert(show, seat, holder)


@procedure(partition_by="show")
def change(tx: Any, show: int, seat: int, holder: str | None) -> Any:
    tx.seats.update((show, seat), holder=holder)


@procedure(partition_by="show")
def free(tx: Any, show: int, seat: int) -> Any:
    return tx.seats.delete((show, seat))


@procedure(partition_by="show", read_only=True)
def seats_of(tx: Any, show: int, holder: str) -> Any:
    return [row.seat for row in tx.seats.where(show=show, holder=holder)]


@procedure(everywhere=True)
def name(tx: Any, code: int, word: str) -> Any:
    tx.words.insert(code, word)


PROCEDURES: list[Callable[..., Any]] = [book, change, free, seats_of, name]


def opened(directory: Path | None = None, **options: Any) -> OnePartition:
    return OnePartition(SCHEMA, PROCEDURES, directory, **options)


def crashed(partition: OnePartition, directory: Path) -> OnePartition:
    """The partition's next life, after a kill -9."""
    assert partition.wal is not None
    partition.checkpointer.close()
    partition.wal.abandon()
    return opened(directory)


@pytest.fixture
def partition() -> OnePartition:
    made = opened()
    made.call("book", 1, 1, "ann")
    made.call("book", 1, 2, "bob")
    return made


def changes(*rows: tuple[int, int, str | None], deleted: tuple[tuple[int, int], ...] = ()) -> list[TableChanges]:
    return [TableChanges(SEATS, [encode(list(row)) for row in rows], [encode(key) for key in deleted])]


def borrow(partition: OnePartition, batch: int, *keys: tuple[int, int]) -> None:
    (lent,) = partition.order(Borrow(batch, [TableKeys(SEATS, [encode(key) for key in keys])], []))
    assert isinstance(lent, Lent)
    assert not lent.refused


def borrow_value(partition: OnePartition, batch: int, show: int, holder: str) -> Lent:
    (lent,) = partition.order(Borrow(batch, [], [], [], [UniqueValues(SEATS, "one_each", [encode([show, holder])])]))
    assert isinstance(lent, Lent)
    return lent


def vote(partition: OnePartition, order: Prepare | Commit) -> Vote:
    (report,) = partition.order(order)
    assert isinstance(report, Vote)
    return report


def prepare(partition: OnePartition, batch: int, changed: list[TableChanges]) -> str:
    return vote(partition, Prepare(batch, changed)).error


def waits(partition: OnePartition, name: str, *arguments: Any) -> int:
    number = partition.run(name, *arguments)
    partition.seal()
    assert number not in partition.answers
    return number


def finish(partition: OnePartition) -> dict[tuple[int, int], str | None]:
    if partition.executor.has_ready:
        partition.run_ready()
    partition.store.check()
    return {key: row.holder for key, row in partition.rows("seats").items()}


@pytest.mark.parametrize("order", [Prepare, Commit])
def test_a_value_that_another_row_has_is_a_no_that_says_so(order: Any, partition: OnePartition) -> None:
    borrow(partition, 1, (1, 9))
    arguments = (1, changes((1, 9, "ann"))) + ((NONE,) if order is Commit else ())
    answer = vote(partition, order(*arguments))
    assert answer.error == "DuplicateKey"
    assert "index one_each is unique" in answer.message
    partition.order(Decide(1, False))
    assert partition.call("book", 1, 9, "cid") is None  # nothing is away any more
    assert finish(partition) == {(1, 1): "ann", (1, 2): "bob", (1, 9): "cid"}


def test_two_transactions_insert_the_same_value__one_of_them_gets_it(partition: OnePartition) -> None:
    borrow(partition, 1, (1, 8))
    assert prepare(partition, 1, changes((1, 8, "cid"))) == ""
    borrow(partition, 2, (1, 9))
    assert prepare(partition, 2, changes((1, 9, "cid"))) == "Unavailable"  # the first one may still be aborted
    assert partition.order(Decide(2, False), Decide(1, True)) == [Decided(2), Decided(1)]
    borrow(partition, 3, (1, 9))
    assert prepare(partition, 3, changes((1, 9, "cid"))) == "DuplicateKey"
    partition.order(Decide(3, False))
    assert finish(partition) == {(1, 1): "ann", (1, 2): "bob", (1, 8): "cid"}


def test_two_rows_of_one_batch_with_the_same_value_are_refused(partition: OnePartition) -> None:
    borrow(partition, 1, (1, 8), (1, 9))
    assert prepare(partition, 1, changes((1, 8, "cid"), (1, 9, "cid"))) == "DuplicateKey"
    borrow(partition, 2, (1, 8), (1, 9))
    assert prepare(partition, 2, changes((1, 8, None), (1, 9, None))) == ""


def test_values_may_move_among_the_rows_of_a_batch(partition: OnePartition) -> None:
    borrow(partition, 1, (1, 1), (1, 2), (1, 3))
    assert prepare(partition, 1, changes((1, 1, "bob"), (1, 3, "ann"), deleted=((1, 2),))) == ""
    partition.order(Decide(1, True))
    assert finish(partition) == {(1, 1): "bob", (1, 3): "ann"}
    assert partition.call("seats_of", 1, "bob") == [1]


@pytest.mark.parametrize("commits", [True, False])
def test_a_value_that_is_prepared_is_kept_from_a_local_insert(commits: bool, partition: OnePartition) -> None:
    borrow(partition, 1, (1, 8))
    assert prepare(partition, 1, changes((1, 8, "cid"))) == ""
    inserting, updating = waits(partition, "book", 1, 9, "cid"), waits(partition, "change", 1, 2, "cid")
    assert partition.call("book", 1, 10, "dan") is None
    assert partition.order(Decide(1, commits)) == [Decided(1)]
    partition.run_ready()
    if commits:
        for waiting in (inserting, updating):
            with pytest.raises(DuplicateKey):
                partition.answer(waiting)
        assert finish(partition) == {(1, 1): "ann", (1, 2): "bob", (1, 8): "cid", (1, 10): "dan"}
    else:
        assert partition.answer(inserting) is None
        with pytest.raises(DuplicateKey):
            partition.answer(updating)
        assert finish(partition) == {(1, 1): "ann", (1, 2): "bob", (1, 9): "cid", (1, 10): "dan"}


@pytest.mark.parametrize("commits", [True, False])
def test_a_value_that_is_about_to_be_given_up_is_waited_for(commits: bool, partition: OnePartition) -> None:
    borrow(partition, 1, (1, 1))
    assert prepare(partition, 1, changes(deleted=((1, 1),))) == ""
    waiting = waits(partition, "book", 1, 9, "ann")
    borrow(partition, 2, (1, 8))
    assert prepare(partition, 2, changes((1, 8, "ann"))) == "Unavailable"
    partition.order(Decide(2, False), Decide(1, commits))
    partition.run_ready()
    if commits:
        assert partition.answer(waiting) is None
    else:
        with pytest.raises(DuplicateKey):
            partition.answer(waiting)
    assert finish(partition) == {(1, 2): "bob", (1, 9) if commits else (1, 1): "ann"}


def test_a_local_insert_that_comes_before_the_vote_has_the_value(partition: OnePartition) -> None:
    borrow(partition, 1, (1, 8))
    assert partition.call("book", 1, 9, "cid") is None
    assert prepare(partition, 1, changes((1, 8, "cid"))) == "DuplicateKey"
    partition.step(LEASE_S)
    assert finish(partition)[1, 9] == "cid"


# Rule 7. A transaction is told that a value is free, or taken. Before its outcome
# somebody inserts a row with the value, and decide makes a duplicate; or it changes hands here after another partition
# has voted and let go of what the transaction read there: then what it was told fits no order.


@pytest.mark.parametrize("commits", [True, False])
def test_rule_7_a_value_that_was_free_is_kept_from_a_local_insert(commits: bool, partition: OnePartition) -> None:
    assert borrow_value(partition, 1, 1, "cid").entries == [[None]]
    inserting, updating = waits(partition, "book", 1, 9, "cid"), waits(partition, "change", 1, 2, "cid")
    assert partition.call("book", 2, 1, "cid") is None  # another value
    assert partition.call("change", 1, 1, "dan") is None
    borrow(partition, 1, (1, 8))
    if commits:
        assert prepare(partition, 1, changes((1, 8, "cid"))) == ""
        if partition.executor.has_ready:
            partition.run_ready()
        assert not partition.answers.keys() & {inserting, updating}
    partition.order(Decide(1, commits))
    partition.run_ready()
    if commits:
        with pytest.raises(DuplicateKey):
            partition.answer(inserting)
    else:
        assert partition.answer(inserting) is None
    with pytest.raises(DuplicateKey):
        partition.answer(updating)
    assert finish(partition)[1, 8 if commits else 9] == "cid"


def test_rule_7_a_value_that_was_taken_is_not_given_up_meanwhile(partition: OnePartition) -> None:
    assert borrow_value(partition, 1, 1, "ann").entries == [[encode([1, 1, "ann"])]]
    deleting, taking = waits(partition, "free", 1, 1), waits(partition, "book", 1, 9, "ann")
    changing = waits(partition, "change", 1, 1, "cid")
    assert partition.call("change", 1, 2, "dan") is None
    assert prepare(partition, 1, []) == ""
    partition.run_ready()
    assert partition.answer(deleting) is True
    assert partition.answer(taking) is None  # it came before the next
    with pytest.raises(ProcedureError, match="no row with key"):
        partition.answer(changing)
    assert finish(partition) == {(1, 2): "dan", (1, 9): "ann"}


def test_a_value_that_is_lent_to_one_batch_or_in_doubt_is_not_lent_to_another(partition: OnePartition) -> None:
    assert not borrow_value(partition, 1, 1, "cid").refused
    assert not borrow_value(partition, 1, 1, "cid").refused  # its own
    assert "Unavailable" in borrow_value(partition, 2, 1, "cid").refused
    borrow(partition, 1, (1, 8))
    assert prepare(partition, 1, changes((1, 8, "cid"))) == ""
    assert "Unavailable" in borrow_value(partition, 2, 1, "cid").refused
    borrow(partition, 3, (1, 1))
    assert "Unavailable" in borrow_value(partition, 4, 1, "ann").refused  # the row that has it is lent
    partition.order(Decide(1, False), Decide(3, False))
    assert borrow_value(partition, 5, 1, "cid").entries == [[None]]
    partition.step(LEASE_S)
    assert partition.call("book", 1, 9, "cid") is None
    assert prepare(partition, 5, []) == "Unavailable"
    finish(partition)


def test_a_value_that_no_index_could_have_is_refused(partition: OnePartition) -> None:
    for values in ([1], [1, 2], [1, None, 3], 7):
        (lent,) = partition.order(Borrow(1, [], [], [], [UniqueValues(SEATS, "one_each", [encode(values)])]))
        assert isinstance(lent, Lent)
        assert lent.refused.startswith("ProtocolError")
    assert partition.call("book", 1, 9, "cid") is None


def test_values_of_copies_are_read_and_not_taken() -> None:
    partition = opened(partitions=2)
    partition.call_joint(1, "name", 1, "one")
    asked = [UniqueValues(WORDS, "no_word_twice", [encode(["one"]), encode(["two"])])]
    (lent,) = partition.order(Borrow(2, [], [], [], asked))
    assert isinstance(lent, Lent)
    assert lent.entries == [[encode([1, "one"]), None]]
    assert not partition.store.tables[WORDS].away


def test_a_write_that_one_unique_index_refuses_has_no_claim_in_another() -> None:
    schema = parse_schema(
        """
        CREATE TABLE pairs (id INT PRIMARY KEY, a INT, b INT);
        CREATE UNIQUE INDEX no_a_twice ON pairs USING HASH (a);
        CREATE UNIQUE INDEX no_b_twice ON pairs USING HASH (b);
        """
    )

    @procedure(partition_by="id")
    def put(tx: Any, id: int, a: int, b: int) -> Any:
        tx.pairs.upsert(id, a, b)

    partition = OnePartition(schema, [put], None)
    partition.call("put", 1, 1, 1)
    partition.call("put", 2, 2, 2)
    refused, put_instead = partition.run("put", 1, 3, 2), partition.run("put", 3, 3, 3)  # in one batch
    partition.seal()
    with pytest.raises(DuplicateKey):
        partition.answer(refused)
    assert partition.answer(put_instead) is None


def test_nobody_reaches_an_index_of_a_table_that_is_lent_whole(partition: OnePartition) -> None:
    (lent,) = partition.order(Borrow(1, [], [Scan(SEATS, "scan")]))
    assert isinstance(lent, Lent)
    waiting = [waits(partition, "seats_of", 1, "ann"), waits(partition, "book", 1, 9, "cid")]
    assert prepare(partition, 1, changes((1, 1, "cid"))) == ""
    partition.run_ready()
    assert not partition.answers  # the one needs the whole table, the other what is prepared
    partition.order(Decide(1, True))
    partition.run_ready()
    assert partition.answer(waiting[0]) == []
    with pytest.raises(DuplicateKey):
        partition.answer(waiting[1])
    finish(partition)


@pytest.mark.parametrize("commits", [True, False])
@pytest.mark.parametrize("with_checkpoint", [True, False])
def test_what_is_in_doubt_keeps_its_values_through_a_crash(
    commits: bool, with_checkpoint: bool, tmp_path: Path
) -> None:
    partition = opened(tmp_path)
    partition.call("book", 1, 1, "ann")
    borrow(partition, 7, (1, 1), (1, 8))
    assert prepare(partition, 7, changes((1, 8, "cid"), deleted=((1, 1),))) == ""
    if with_checkpoint:
        partition.checkpointer.make(partition.lsn)
    partition = crashed(partition, tmp_path)
    assert partition.attach(2).in_doubt == [7]
    inserting, taking = waits(partition, "book", 1, 9, "cid"), waits(partition, "book", 1, 10, "ann")
    borrow(partition, 9, (1, 11))
    assert prepare(partition, 9, changes((1, 11, "cid"))) == "Unavailable"
    assert partition.order(Decide(9, False), Decide(7, commits)) == [Decided(9), Decided(7)]
    partition.run_ready()
    taken, given = (inserting, taking) if commits else (taking, inserting)
    with pytest.raises(DuplicateKey):
        partition.answer(taken)
    assert partition.answer(given) is None
    expected = {(1, 8): "cid", (1, 10): "ann"} if commits else {(1, 1): "ann", (1, 9): "cid"}
    assert finish(partition) == expected
    assert finish(crashed(partition, tmp_path)) == expected


def test_the_part_of_a_joint_call_finds_the_value_taken() -> None:
    partition = opened(partitions=2)
    partition.call_joint(1, "name", 1, "one")
    with pytest.raises(DuplicateKey):
        partition.call_joint(2, "name", 2, "one")
    partition.order(RunDirected(3, 7, 99, "name", Raw(encode([3, "three"])), 0))
    with pytest.raises(Exception, match="in doubt"):
        partition.call_joint(4, "name", 4, "three")
    partition.order(Decide(3, True))
    with pytest.raises(DuplicateKey):
        partition.call_joint(5, "name", 4, "three")
    assert {row.word for row in partition.rows("words").values()} == {"one", "three"}
    finish(partition)


def test_the_rows_that_have_the_values_are_brought_from_disk_before_the_vote(tmp_path: Path) -> None:
    partition = opened(tmp_path)
    partition.run_group("book", [(show, 1, f"{show}" + "x" * 900) for show in range(200)])
    partition.seal()
    partition.checkpointer.make(partition.lsn)
    partition = crashed(partition, tmp_path)
    assert partition.store.heaps[SEATS].cold
    borrow(partition, 1, (150, 2))
    assert prepare(partition, 1, changes((150, 2, "150" + "x" * 900))) == "DuplicateKey"
    borrow(partition, 2, (150, 2))
    assert partition.call("free", 150, 1)
    assert prepare(partition, 2, changes((150, 2, "150" + "x" * 900))) == ""


@pytest.mark.parametrize("by", ["a call", "a batch"])
def test_an_abort_without_room_is_recorded_before_what_takes_its_place(tmp_path: Path, by: str) -> None:
    partition = opened(tmp_path)
    full = Full(partition)
    borrow(partition, 1, (1, 9))
    assert prepare(partition, 1, changes((1, 9, "cid"))) == ""
    full.is_full = True
    assert partition.order(Decide(1, False)) == [Decided(1)]
    if by == "a call":
        with pytest.raises(DiskFull):
            partition.call("book", 1, 3, "cid")
        partition.executor.undo_batch()
    else:
        borrow(partition, 2, (1, 3))
        assert prepare(partition, 2, changes((1, 3, "cid"))) == "ReadOnly"
    early = crashed(partition, tmp_path)
    assert list(early.store.prepared) == [
        1
    ]  # nothing has come after it: the coordinator says once more that it is none
    partition = early
    full = Full(partition)
    full.is_full = True
    assert partition.order(Decide(1, False)) == [Decided(1)]
    full.is_full = False
    if by == "a call":
        partition.call("book", 1, 3, "cid")
    else:
        borrow(partition, 3, (1, 3))
        assert vote(partition, Commit(3, changes((1, 3, "cid")), NONE)).error == ""
    partition = crashed(partition, tmp_path)
    assert not partition.store.prepared
    assert finish(partition) == {(1, 3): "cid"}
