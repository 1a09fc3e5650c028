"""Keys and tables that are lent, batches that are prepared and decided, read rounds: one partition's side of them.

Where a test shows an interleaving of the rules of lending and two-phase commit, it is named for it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from google_crc32c import value as crc32c
from msgspec import Raw

from partitions.checkpoint import read_root
from partitions.executor import LENT_WAIT_S
from partitions.in_doubt import RETRY_S
from partitions.set_aside import CALLS_SET_ASIDE, CALLS_WAIT_FOR_LENT
from partitions.verify import Verification
from tests.partitions.one_partition import CLIENT, OnePartition
from voltpy.errors import Aborted, DuplicateKey, Overloaded, ProtocolError, Unavailable
from voltpy.hash_slot import hash_slot, slot_owners
from voltpy.messages import (
    ELSEWHERE,
    HOLD_S,
    LEASE_S,
    Attach,
    Borrow,
    Commit,
    Decide,
    Decided,
    Detach,
    Lent,
    Orders,
    Prepare,
    Ran,
    Read,
    ReadAnswer,
    Recall,
    Recalled,
    Release,
    ReplyGroup,
    RunDirected,
    Scan,
    ScanAnswer,
    TableChanges,
    TableKeys,
    Vote,
)
from voltpy.procedure import procedure
from voltpy.record_log import DiskFull
from voltpy.row import encode
from voltpy.sql.ddl import parse_schema
from voltpy.wire import joined

SCHEMA = parse_schema(
    """
    CREATE TABLE items (id INT PRIMARY KEY, n INT NOT NULL, pad STRING);
    PARTITION TABLE items ON COLUMN id;
    CREATE TABLE names (id INT, name STRING, n INT, PRIMARY KEY (id, name));
    PARTITION TABLE names ON COLUMN id;
    CREATE TABLE notes (owner INT NOT NULL, text STRING);
    PARTITION TABLE notes ON COLUMN owner;
    CREATE TABLE rates (code STRING PRIMARY KEY, n INT);
    """
)
ITEMS, NAMES, NOTES, RATES = range(4)
NONE = Raw(b"\x90")


@procedure(partition_by="key")
def put(tx: Any, key: int, n: int) -> Any:
    tx.items.upsert(key, n)


@procedure(partition_by="key")
def add(tx: Any, key: int, n: int) -> Any:
    row = tx.items.get(key)
    if row is None:
        tx.abort("absent")
    return tx.items.update(key, n=row.n + n).n


@procedure(partition_by="key")
def insert(tx: Any, key: int, n: int) -> Any:
    tx.items.insert(key, n)


@procedure(partition_by="key")
def fill(tx: Any, key: int, length: int) -> Any:
    tx.items.upsert(key, 0, "x" * length)


@procedure(partition_by="key")
def note(tx: Any, key: int, text: str) -> Any:
    tx.notes.insert(key, text)


@procedure(partition_by="key", read_only=True)
def notes(tx: Any, key: int) -> Any:
    return tx.notes.count()


@procedure(partition_by="key", read_only=True)
def get(tx: Any, key: int) -> Any:
    row = tx.items.get(key)
    return None if row is None else row.n


@procedure(partition_by="key", read_only=True)
def count(tx: Any, key: int) -> Any:
    return tx.items.count()


@procedure(partition_by=("source", "target"))
def transfer(tx: Any, source: int, target: int) -> Any:
    tx.items.update(source, n=tx.items.get(source).n - 1)
    tx.items.update(target, n=tx.items.get(target).n + 1)
    return "done"


@procedure
def whole(tx: Any) -> Any:
    return tx.items.count()


@procedure(partition_by="key")
def set_rate_locally(tx: Any, key: int, swallow: bool) -> Any:
    tx.items.upsert(key, 7)
    try:
        tx.rates.upsert("EUR", key)
    except BaseException:
        if not swallow:
            raise
    return "swallowed"


@procedure(partition_by="key", read_only=True)
def rate(tx: Any, key: int) -> Any:
    row = tx.rates.get("EUR")
    return None if row is None else row.n


@procedure(everywhere=True)
def set_rates(tx: Any, codes: list[str], n: int) -> Any:
    for code in codes:
        tx.rates.upsert(code, n)
    tx.rates.delete("gone")
    return [row.id for row in tx.items.scan()]


@procedure(everywhere=True)
def mark(tx: Any, key: int, how: str) -> Any:
    tx.rates.upsert("EUR", 1)
    tx.items.update(key, n=100)
    if how == "abort":
        tx.abort("no")
    if how == "raise":
        raise ValueError("broken")
    return how


PROCEDURES: list[Callable[..., Any]] = [
    put, add, insert, fill, note, notes, get, count, transfer, whole, set_rate_locally, rate, set_rates, mark,
]  # fmt: skip


def opened(directory: Path | None = None, **options: Any) -> OnePartition:
    return OnePartition(SCHEMA, PROCEDURES, directory, **options)


@pytest.fixture
def partition() -> OnePartition:
    made = opened()
    for key in range(1, 6):
        made.call("put", key, key * 10)
    return made


def crashed(partition: OnePartition, directory: Path, **options: Any) -> OnePartition:
    """The partition's next life, after a kill -9."""
    assert partition.wal is not None
    partition.checkpointer.close()
    partition.wal.abandon()
    return opened(directory, **options)


def borrow(batch: int, *keys: int, scans: list[Scan] | None = None, table: int = ITEMS) -> Borrow:
    return Borrow(batch, [TableKeys(table, [encode(key) for key in keys])] if keys else [], scans or [])


def item(key: int, n: int) -> bytes:
    return encode([key, n, None])


def changes(*rows: tuple[int, int], deleted: tuple[int, ...] = ()) -> list[TableChanges]:
    return [TableChanges(ITEMS, [item(*row) for row in rows], [encode(key) for key in deleted])]


def rates(*rows: tuple[str, int]) -> list[TableChanges]:
    return [TableChanges(RATES, [encode(row) for row in rows], [])]


def vote(partition: OnePartition, order: Prepare | Commit) -> str:
    (report,) = partition.order(order)
    assert isinstance(report, Vote)
    assert report.batch == order.batch
    return report.error


def lent(partition: OnePartition, order: Borrow) -> Lent:
    (report,) = partition.order(order)
    assert isinstance(report, Lent)
    assert report.batch == order.batch
    return report


def waits(partition: OnePartition, name: str, *arguments: Any) -> int:
    """A call that is set aside; its number."""
    number = partition.run(name, *arguments)
    partition.seal()
    assert number not in partition.answers
    return number


def items(partition: OnePartition) -> dict[int, int]:
    return {key: row.n for key, row in partition.rows("items").items()}


def finish(partition: OnePartition) -> None:
    if partition.executor.has_ready:
        partition.run_ready()
    partition.store.check()


# ------------------------------------------------------------------------------------------------------ what is lent


def test_a_key_that_is_lent_is_away_until_it_is_given_back(partition: OnePartition) -> None:
    answer = lent(partition, borrow(1, 1, 2, 99))
    assert answer.images == [[item(1, 10), item(2, 20), None]]
    waiting = waits(partition, "add", 1, 5)
    assert partition.call("add", 3, 5) == 35
    assert partition.order(Decide(1, False)) == [Decided(1)]
    partition.run_ready()
    assert partition.answer(waiting) == 15
    finish(partition)


def test_an_absent_key_is_lent_like_a_row__a_local_insert_waits(partition: OnePartition) -> None:
    assert lent(partition, borrow(1, 99)).images == [[None]]
    waiting = waits(partition, "insert", 99, 1)
    assert vote(partition, Prepare(1, changes((99, 5)))) == ""
    partition.order(Decide(1, True))
    partition.run_ready()
    with pytest.raises(DuplicateKey):
        partition.answer(waiting)
    assert items(partition)[99] == 5


def test_a_key_of_several_columns_is_lent(partition: OnePartition) -> None:
    key = encode((1, "a"))
    (report,) = partition.order(Borrow(1, [TableKeys(NAMES, [key])], []))
    assert report == Lent(1, [[None]], [])
    assert vote(partition, Prepare(1, [TableChanges(NAMES, [encode([1, "a", 3])], [])])) == ""
    partition.order(Decide(1, True))
    assert partition.order(Borrow(2, [TableKeys(NAMES, [key])], [])) == [Lent(2, [[encode([1, "a", 3])]], [])]
    assert vote(partition, Commit(2, [TableChanges(NAMES, [], [key])], NONE)) == ""
    assert partition.rows("names") == {}
    finish(partition)


def test_whatever_touches_a_table_that_is_lent_whole_waits(partition: OnePartition) -> None:
    answer = lent(partition, borrow(1, scans=[Scan(ITEMS, "scan")]))
    assert sorted(answer.scans[0].images) == sorted(item(key, key * 10) for key in range(1, 6))
    waiting = [waits(partition, "add", 1, 1), waits(partition, "insert", 50, 1), waits(partition, "count", 1)]
    waiting.append(waits(partition, "get", 77))
    partition.call("note", 1, "another table")
    assert vote(partition, Prepare(1, changes((3, 33), (60, 1)))) == ""
    partition.run_ready()  # only what is prepared is away now
    assert partition.answer(waiting[0]) == 11
    assert partition.answer(waiting[1]) is None
    assert partition.answer(waiting[3]) is None
    assert partition.executor.waiting == 1  # the count
    partition.order(Decide(1, True))
    partition.run_ready()
    assert partition.answer(waiting[2]) == 7
    assert items(partition) == {1: 11, 2: 20, 3: 33, 4: 40, 5: 50, 50: 1, 60: 1}
    finish(partition)


def test_a_table_can_be_lent_whole_to_the_batch_that_has_keys_of_it(partition: OnePartition) -> None:
    """The borrower never waits on itself."""
    lent(partition, borrow(1, 1))
    answer = lent(partition, borrow(1, 2, scans=[Scan(ITEMS, "count"), Scan(ITEMS, "scan")]))
    assert answer.images == [[item(2, 20)]]
    assert answer.scans[0] == ScanAnswer([], 5)
    assert len(answer.scans[1].images) == 5
    partition.order(Decide(1, False))
    assert partition.call("count", 1) == 5


@pytest.mark.parametrize(
    ("scan", "expected"),
    [
        (Scan(ITEMS, "count"), ScanAnswer([], 5)),
        (Scan(ITEMS, "where", Raw(encode({"n": 20}))), ScanAnswer([item(2, 20)], 1)),
        (Scan(ITEMS, "where", Raw(encode({"id": 2, "n": 20}))), ScanAnswer([item(2, 20)], 1)),
        (Scan(ITEMS, "where", Raw(encode({"id": 2, "n": 21}))), ScanAnswer([], 0)),
        (Scan(ITEMS, "range", Raw(encode([2, 4]))), ScanAnswer([item(2, 20), item(3, 30)], 2)),
        (Scan(ITEMS, "range", Raw(encode([4, 2]))), ScanAnswer([], 0)),
        (Scan(ITEMS, "where", Raw(encode({"x": 1}))), ScanAnswer([], 0, "SchemaError", "table items has no column x")),
        (Scan(NOTES, "scan"), ScanAnswer([], 0)),
    ],
)
def test_a_table_is_read_as_a_procedure_reads_it(scan: Scan, expected: ScanAnswer, partition: OnePartition) -> None:
    assert lent(partition, borrow(1, scans=[scan])).scans == [expected]
    assert partition.executor.has_ready is False
    partition.order(Decide(1, False))
    assert partition.order(Read(1, [], [scan])) == [ReadAnswer(1, [], [expected])]


def test_a_range_of_keys_of_several_columns_is_in_their_order(partition: OnePartition) -> None:
    rows = [encode([key, name, 0]) for key in (1, 2, 3) for name in ("b", "a")]
    keys = [encode((key, name)) for key in (1, 2, 3) for name in ("b", "a")]
    partition.order(Borrow(1, [TableKeys(NAMES, keys)], []))
    assert vote(partition, Commit(1, [TableChanges(NAMES, rows, [])], NONE)) == ""
    scan = Scan(NAMES, "range", Raw(encode([(1, "b"), (3, "b")])))
    (answer,) = lent(partition, borrow(2, scans=[scan])).scans
    assert [msgspec.msgpack.decode(image)[:2] for image in answer.images] == [
        [1, "b"], [2, "a"], [2, "b"], [3, "a"],
    ]  # fmt: skip
    (answer,) = lent(partition, borrow(2, scans=[Scan(NAMES, "range", Raw(encode([1, 2])))])).scans
    assert answer.error == "ConstraintViolation"


def test_rows_of_copies_are_read_without_being_taken() -> None:
    partition = opened(partitions=2)
    here, _ = keys_of(0), keys_of(1)
    assert vote(partition, Commit(1, rates(("EUR", 3)), NONE)) == ""
    assert lent(partition, Borrow(2, [TableKeys(RATES, [encode("EUR")])], [Scan(RATES, "scan")])).images == [
        [encode(["EUR", 3])]
    ]
    assert partition.call("rate", here[0]) == 3
    # What is prepared and undecided may be read by nobody.
    assert vote(partition, Prepare(3, rates(("EUR", 4)))) == ""
    waiting = waits(partition, "rate", here[0])
    assert "Unavailable" in lent(partition, Borrow(4, [TableKeys(RATES, [encode("EUR")])], [])).refused
    assert "Unavailable" in lent(partition, Borrow(4, [], [Scan(RATES, "scan")])).refused
    partition.order(Decide(3, True))
    partition.run_ready()
    assert partition.answer(waiting) == 4


def keys_of(partition: int, partitions: int = 2) -> list[int]:
    owners = slot_owners(partitions)
    return [key for key in range(60) if owners[hash_slot(key)] == partition]


def test_what_another_batch_has_is_refused_and_stays_where_it_is(partition: OnePartition) -> None:
    lent(partition, borrow(1, 1))
    lent(partition, borrow(1, scans=[Scan(NAMES, "count")]))
    for order in (
        borrow(2, 1, 2), borrow(2, scans=[Scan(ITEMS, "count")]), borrow(2, scans=[Scan(NAMES, "count")]),
        Borrow(2, [TableKeys(NAMES, [encode((1, "a"))])], []),
    ):  # fmt: skip
        assert lent(partition, order).refused.startswith("Unavailable: ")
    assert vote(partition, Prepare(2, changes((1, 0)))) == "Unavailable"
    assert partition.call("add", 2, 1) == 21  # of the order that was refused nothing was taken
    assert vote(partition, Prepare(1, changes((1, 11)))) == ""
    partition.order(Decide(1, True))
    assert items(partition)[1] == 11


@pytest.mark.parametrize(
    "order",
    [
        Borrow(1, [TableKeys(ITEMS, [encode("text")])], []), Borrow(1, [TableKeys(ITEMS, [b"\xc1"])], []),
        Borrow(1, [TableKeys(9, [encode(1)])], []), Borrow(1, [TableKeys(-1, [encode(1)])], []),
        Borrow(1, [], [Scan(ITEMS, "guess")]), Borrow(1, [], [Scan(ITEMS, "where", Raw(encode(5)))]),
        Borrow(1, [], [Scan(ITEMS, "range", Raw(encode([1])))]), Borrow(1, [], [Scan(9, "count")]),
        Borrow(1, [TableKeys(NAMES, [encode(1)])], []),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(order: Borrow, partition: OnePartition) -> None:
    assert lent(partition, order).refused.startswith("ProtocolError: ")
    assert partition.order(Read(1, order.keys, order.scans)) == [ReadAnswer(1, [], [], is_here=False)]
    assert partition.participant.metrics() == {
        "lent_keys": 0,
        "lent_tables": 0,
        "prepared_batches": 0,
        "read_rounds": 0,
    }


def test_a_key_that_lives_elsewhere_is_refused_rather_than_called_absent() -> None:
    partition = opened(partitions=2)
    assert "does not live here" in lent(partition, borrow(1, keys_of(1)[0])).refused
    assert lent(partition, borrow(1, keys_of(0)[0])).refused == ""


def test_more_than_a_frame_holds_is_refused(partition: OnePartition) -> None:
    for key in range(10):
        partition.call("fill", key, 1_000_000)
    assert "at once" in lent(partition, borrow(1, *range(10))).refused
    assert "at once" in lent(partition, borrow(1, scans=[Scan(ITEMS, "scan")])).refused
    assert lent(partition, borrow(1, *range(7))).refused == ""
    assert partition.call("get", 9) == 0


def test_reports_are_parted_into_frames_that_fit(partition: OnePartition) -> None:
    for key in range(8):
        partition.call("fill", key, 1_000_000)
    partition.send(*(borrow(1, key) for key in range(8)))
    frames = partition.participant.reports()
    assert [frame.number for frame in frames] == [1, 2]
    assert [len(frame.reports) for frame in frames] == [5, 3]


def test_what_is_lent_comes_back_by_itself(partition: OnePartition) -> None:
    lent(partition, borrow(1, 1, scans=[Scan(NAMES, "count")]))
    waiting = waits(partition, "add", 1, 1)
    partition.step(LEASE_S / 2)
    assert not partition.executor.has_ready
    lent(partition, borrow(1, 2))  # it is alive
    partition.step(LEASE_S * 0.9)
    assert not partition.executor.has_ready
    partition.step(LEASE_S * 0.1)
    partition.run_ready()
    assert partition.answer(waiting) == 11
    assert lent(partition, borrow(1, 1)).refused
    assert vote(partition, Prepare(1, changes((1, 0)))) == "Unavailable"
    assert vote(partition, Prepare(1, [])) == "Unavailable"
    assert partition.order(Decide(1, False)) == [Decided(1)]
    assert items(partition)[1] == 11
    assert partition.participant.due_s == float("inf")


# ---------------------------------------------------------------------------------------------- preparing, deciding


def test_prepare_gives_back_what_is_not_changed(partition: OnePartition) -> None:
    lent(partition, borrow(1, 1, 2, 3))
    first, second = waits(partition, "add", 1, 1), waits(partition, "add", 2, 1)
    assert vote(partition, Prepare(1, changes((1, 100), deleted=(3,)))) == ""
    partition.run_ready()
    assert partition.answer(second) == 21
    assert first not in partition.answers
    assert items_stored(partition)[1] == 10  # undecided
    assert partition.order(Decide(1, True)) == [Decided(1)]
    partition.run_ready()
    assert partition.answer(first) == 101
    assert items(partition) == {1: 101, 2: 21, 4: 40, 5: 50}
    finish(partition)


def items_stored(partition: OnePartition) -> dict[int, int]:
    """Without looking at what is away."""
    rows = map(msgspec.msgpack.decode, partition.store.tables[ITEMS].scan_images())
    return {row[0]: row[1] for row in rows}


def test_a_reader_says_yes_once_and_lets_go(partition: OnePartition) -> None:
    lent(partition, borrow(1, 1))
    waiting = waits(partition, "add", 1, 1)
    assert vote(partition, Prepare(1, [])) == ""
    partition.run_ready()
    assert partition.answer(waiting) == 11
    assert partition.store.prepared == {}
    assert partition.order(Decide(1, True)) == [Decided(1)]


def test_an_abort_leaves_everything_as_it_was(partition: OnePartition) -> None:
    lent(partition, borrow(1, 1, 2))
    vote(partition, Prepare(1, changes((1, 0), deleted=(2,))))
    waiting = waits(partition, "count", 1)
    assert partition.order(Decide(1, False)) == [Decided(1)]
    partition.run_ready()
    assert partition.answer(waiting) == 5
    assert items(partition) == {key: key * 10 for key in range(1, 6)}
    finish(partition)


def test_decide_may_be_repeated_and_may_be_about_nothing(partition: OnePartition) -> None:
    lent(partition, borrow(1, 1))
    vote(partition, Prepare(1, changes((1, 7))))
    assert partition.order(Decide(1, True), Decide(1, True), Decide(8, True), Decide(9, False)) == [
        Decided(1), Decided(1), Decided(8), Decided(9),
    ]  # fmt: skip
    assert items(partition)[1] == 7


def test_a_batch_that_changes_what_it_does_not_hold_is_refused(partition: OnePartition) -> None:
    lent(partition, borrow(1, 1))
    assert vote(partition, Prepare(1, changes((1, 1), (2, 2)))) == "Unavailable"
    assert partition.call("add", 1, 1) == 11  # it has lost what it had


@pytest.mark.parametrize(
    "wrong",
    [
        [TableChanges(ITEMS, [encode([1])], [])], [TableChanges(ITEMS, [b"\xc1"], [])],
        [TableChanges(ITEMS, [], [b"\xa1x"])], [TableChanges(9, [], [])],
        [TableChanges(ITEMS, [encode([1, 1, "x" * (1 << 20)])], [])],
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["prepare", "commit"])
def test_changes_that_are_none_are_refused(wrong: list[TableChanges], kind: str, partition: OnePartition) -> None:
    lent(partition, borrow(1, 1))
    order: Prepare | Commit = Prepare(1, wrong) if kind == "prepare" else Commit(1, wrong, NONE)
    assert vote(partition, order) == "ProtocolError"
    assert partition.call("add", 1, 1) == 11


def test_outcomes_that_are_none_never_reach_the_wal(partition: OnePartition) -> None:
    lent(partition, borrow(1, 1))
    assert vote(partition, Commit(1, changes((1, 0)), Raw(encode([1, 2])))) == "ProtocolError"
    assert items(partition)[1] == 10


def test_new_rows_of_a_table_with_hidden_keys_are_prepared_without_being_borrowed(partition: OnePartition) -> None:
    image = encode([1, "text", 1 << 40])
    assert vote(partition, Prepare(1, [TableChanges(NOTES, [image], [])])) == ""
    assert vote(partition, Prepare(2, [TableChanges(NOTES, [image], [])])) == "Unavailable"
    partition.order(Decide(1, True))
    assert [row.text for row in partition.rows("notes").values()] == ["text"]


def test_what_is_locked_without_being_read_is_away_until_the_decision() -> None:
    partition = opened(partitions=2)
    here, _ = keys_of(0), keys_of(1)
    assert vote(partition, Commit(1, rates(("EUR", 3)), NONE)) == ""
    hidden = 1 << 40
    notes = [TableChanges(NOTES, [encode([here[0], "text", hidden])], [])]
    locks = [TableKeys(RATES, [encode("EUR")]), TableKeys(NOTES, [encode(hidden)])]
    assert lent(partition, Borrow(2, [], [], locks)) == Lent(2, [], [])
    waiting = [waits(partition, "rate", here[0]), waits(partition, "notes", here[0])]
    assert vote(partition, Prepare(2, [*rates(("EUR", 4)), *notes])) == ""
    partition.run_ready()
    assert not partition.answers
    partition.order(Decide(2, True))
    partition.run_ready()
    assert [partition.answer(number) for number in waiting] == [4, 1]
    assert lent(partition, Borrow(3, [], [], locks)) == Lent(3, [], [])
    partition.step(LEASE_S + 1)
    assert partition.call("rate", here[0]) == 4
    assert vote(partition, Prepare(3, rates(("EUR", 5)))) == "Unavailable"


def test_a_commit_in_one_phase_counts_at_once_and_is_recalled(partition: OnePartition) -> None:
    lent(partition, borrow(1, 1, 2))
    waiting = waits(partition, "add", 1, 1)
    outcomes = [ReplyGroup(70, [4, 5], joined([encode("a"), encode("b")]))]
    assert vote(partition, Commit(1, changes((1, 100), deleted=(2,)), Raw(encode(outcomes)))) == ""
    partition.run_ready()
    assert partition.answer(waiting) == 101
    assert 2 not in items(partition)
    assert partition.order(Recall(70, [3, 5]), Recall(71, [5])) == [
        Recalled(70, {5: encode("b")}, 0), Recalled(71, {}, 0),
    ]  # fmt: skip
    finish(partition)


def test_rows_that_were_hot_before_their_table_was_lent_are_not_taken_for_what_they_were(
    partition: OnePartition,
) -> None:
    for _ in range(3):
        assert [partition.call("get", key) for key in (1, 2)] == [10, 20]
    lent(partition, borrow(1, scans=[Scan(ITEMS, "scan")]))
    waiting = [waits(partition, "add", 1, 1), waits(partition, "add", 2, 1)]
    assert vote(partition, Commit(1, changes((1, 100), deleted=(2,)), NONE)) == ""
    partition.run_ready()
    assert partition.answer(waiting[0]) == 101
    with pytest.raises(Aborted, match="absent"):
        partition.answer(waiting[1])
    finish(partition)


def test_what_is_forgotten_of_commits_in_one_phase_is_known_after_a_crash_too(tmp_path: Path) -> None:
    partition = opened(tmp_path, window_bytes=2000)
    batches = [(1 << 40) + number for number in range(1, 30)]
    for batch in batches:
        lent(partition, borrow(batch, 1))
        outcomes = [ReplyGroup(70, [batch], joined([encode("r" * 50)]))]
        vote(partition, Commit(batch, changes((1, batch)), Raw(encode(outcomes))))
    (recalled,) = partition.order(Recall(70, batches))
    assert isinstance(recalled, Recalled)
    assert recalled.reaches > 1 << 40
    assert sorted(recalled.results) == [batch for batch in batches if batch > recalled.reaches]
    partition.checkpointer.make(partition.lsn)
    partition = crashed(partition, tmp_path, window_bytes=2000)
    assert partition.order(Recall(70, batches)) == [recalled]
    partition = crashed(partition, tmp_path, window_bytes=1000)
    (less,) = partition.order(Recall(70, batches))
    assert isinstance(less, Recalled)
    assert less.reaches > recalled.reaches
    assert sorted(less.results) == [batch for batch in batches if batch > less.reaches]


# ------------------------------------------------------------------------------------------------------- crashes


def prepared_and_crashed(directory: Path) -> OnePartition:
    partition = opened(directory)
    for key in range(1, 6):
        partition.call("put", key, key * 10)
    lent(partition, borrow(7, 1, 2, 3, 99))
    lent(partition, borrow(7, 4))
    assert vote(partition, Prepare(7, changes((1, 11), (99, 99), deleted=(2,)))) == ""
    lent(partition, borrow(8, 5))
    return crashed(partition, directory)


@pytest.mark.parametrize("commits", [True, False])
def test_in_doubt_keys_stay_away_through_a_crash_and_only_they(commits: bool, tmp_path: Path) -> None:
    partition = prepared_and_crashed(tmp_path)
    assert partition.attach(2).in_doubt == [7]
    waiting = [waits(partition, "add", 1, 1), waits(partition, "get", 2), waits(partition, "insert", 99, 1)]
    waiting.append(waits(partition, "count", 1))
    assert [partition.call("add", key, 1) for key in (3, 4, 5)] == [31, 41, 51]
    assert partition.order(Read(1, [TableKeys(ITEMS, [encode(1)])], [])) == [ReadAnswer(1, [], [], is_here=False)]
    assert lent(partition, borrow(9, 1)).refused
    assert partition.order(Decide(7, commits)) == [Decided(7)]
    partition.run_ready()
    assert partition.answer(waiting[0]) == (12 if commits else 11)
    assert partition.answer(waiting[1]) == (None if commits else 20)
    if commits:
        with pytest.raises(DuplicateKey):
            partition.answer(waiting[2])
    assert partition.answer(waiting[3]) == (5 if commits else 6)
    before = items(partition)
    again = crashed(partition, tmp_path)
    assert again.attach(3).in_doubt == []
    assert items(again) == before
    again.store.check()


def test_prepare__checkpoint__wal_cut__crash__commit(tmp_path: Path) -> None:
    """PROTOCOL rule 17."""
    partition = opened(tmp_path, segment_bytes=4096)
    partition.call("put", 1, 10)
    lent(partition, borrow(7, 1, 2))
    assert vote(partition, Prepare(7, changes((1, 11), (2, 22)))) == ""
    for n in range(100):
        partition.call("put", 3, n)
    assert partition.wal is not None
    partition.checkpointer.request()
    while partition.checkpointer.step(partition.now_s):
        pass
    assert not (tmp_path / "wal-0000000000000001.log").exists()
    partition = crashed(partition, tmp_path, segment_bytes=4096)
    assert partition.attach().in_doubt == [7]
    waits(partition, "get", 2)
    partition = crashed(partition, tmp_path, segment_bytes=4096)
    partition.attach()
    partition.order(Decide(7, True))
    assert items(partition) == {1: 11, 2: 22, 3: 99}
    partition = crashed(partition, tmp_path, segment_bytes=4096)
    assert partition.attach().in_doubt == []
    assert items(partition) == {1: 11, 2: 22, 3: 99}
    partition.store.check()


def test_a_snapshot_that_was_cut_within_a_batch_is_damaged(tmp_path: Path) -> None:
    partition = opened(tmp_path)
    lent(partition, borrow(7, 1))
    vote(partition, Prepare(7, changes((1, 11))))
    for commits in (None, True):
        if commits:
            partition.order(Decide(7, True))
        partition.checkpointer.request()
        while partition.checkpointer.step(partition.now_s):
            pass
        verification = Verification(tmp_path, 0, lambda *_: None)
        verification.run(SCHEMA.tables)
        assert [damage.text for damage in verification.damage] == (
            [] if commits else ["undecided batches (7): who decides them is in no snapshot"]
        )


def test_a_decision_after_the_checkpoint_finds_what_the_root_has(tmp_path: Path) -> None:
    partition = opened(tmp_path)
    lent(partition, borrow(7, 1))
    vote(partition, Prepare(7, changes((1, 11))))
    partition.checkpointer.request()
    while partition.checkpointer.step(partition.now_s):
        pass
    partition.order(Decide(7, True))
    partition = crashed(partition, tmp_path)
    assert partition.attach().in_doubt == []
    assert items(partition) == {1: 11}


def test_a_root_from_before_there_were_batches_is_read(tmp_path: Path) -> None:
    partition = opened(tmp_path)
    partition.call("put", 1, 10)
    partition.checkpointer.request()
    while partition.checkpointer.step(partition.now_s):
        pass
    path = tmp_path / "checkpoint"
    data = path.read_bytes()
    header = struct.Struct("<8sIIQQQII")
    fields = list(header.unpack_from(data))
    payload = encode(msgspec.msgpack.decode(data[header.size :])[:3])
    fields[5:7] = len(payload), crc32c(payload)
    head = header.pack(*fields)[:-4]
    path.write_bytes(head + crc32c(head).to_bytes(4, "little") + payload)
    assert read_root(path, 0).root.prepared == []
    partition = crashed(partition, tmp_path)
    assert items(partition) == {1: 10}


def test_a_restarted_partition_votes_no_for_what_it_lent_in_its_former_life(tmp_path: Path) -> None:
    """PROTOCOL rule 6: T borrows a at P1; P1 restarts; L changes a and c; T fetches c: old a, new c."""
    partition = opened(tmp_path)
    partition.call("put", 1, 10)
    partition.call("put", 3, 30)
    lent(partition, borrow(7, 1))
    partition = crashed(partition, tmp_path)
    partition.attach(1)
    assert partition.call("add", 1, 1) == 11  # it need not wait
    assert lent(partition, borrow(7, 3)).images == [[item(3, 30)]]
    assert vote(partition, Prepare(7, changes((1, 9), (3, 31)))) == "Unavailable"
    assert items(partition) == {1: 11, 3: 30}


# ------------------------------------------------------------------------------------------------------- sessions


def test_a_new_session_returns_what_the_former_one_borrowed(partition: OnePartition) -> None:
    lent(partition, borrow(1, 1, 2))
    lent(partition, borrow(2, 3, scans=[Scan(NAMES, "count")]))
    vote(partition, Prepare(1, changes((1, 11))))
    first, second = waits(partition, "add", 1, 1), waits(partition, "add", 3, 1)
    partition.order(Read(5, [TableKeys(ITEMS, [encode(4)])], []))
    assert partition.attach().in_doubt == [1]
    partition.run_ready()
    assert partition.answer(second) == 31
    assert first not in partition.answers
    assert partition.participant.metrics() == {
        "lent_keys": 0,
        "lent_tables": 0,
        "prepared_batches": 1,
        "read_rounds": 0,
    }
    assert vote(partition, Prepare(2, changes((3, 0)))) == "Unavailable"
    assert vote(partition, Prepare(2, [])) == "Unavailable"
    assert partition.order(Release(5), Decide(1, True)) == [Decided(1)]
    partition.run_ready()
    assert partition.answer(first) == 12


def test_frames_twice__of_another_session__and_after_a_gap(partition: OnePartition) -> None:
    """PROTOCOL rule 24."""
    partition.attach(3)
    participant, session = partition.participant, partition.session
    one = Orders(3, session, 1, [borrow(1, 1)])

    def told(frame: Orders) -> int:
        participant.take(frame)
        partition.obey()
        return len(partition.reports())

    assert told(one) == 1
    assert told(one) == 0  # a duplicate
    assert told(Orders(3, session + 1, 2, [borrow(1, 2)])) == 0
    assert told(Orders(2, session, 2, [borrow(1, 2)])) == 0
    assert told(Orders(3, session, 2, [borrow(1, 2)])) == 1
    waiting = waits(partition, "add", 1, 1)
    assert told(Orders(3, session, 4, [borrow(1, 3)])) == 0  # a gap: over
    partition.run_ready()
    assert partition.answer(waiting) == 11
    assert told(Orders(3, session, 3, [borrow(1, 3)])) == 0
    assert participant.attach(Attach(3, session)) is None
    assert participant.attach(Attach(2, session + 5)) is None
    assert participant.attach(Attach(3, session + 1)) is not None
    assert told(Orders(3, session + 1, 1, [borrow(9, 1)])) == 1


def test_a_dead_coordinators_loans_end_and_it_does_not_come_back(partition: OnePartition) -> None:
    partition.attach(3)
    lent(partition, borrow(1, 1, 2))
    vote(partition, Prepare(1, changes((1, 11))))
    lent(partition, borrow(2, 3))
    partition.order(Read(5, [TableKeys(ITEMS, [encode(4)])], []))
    first, second = waits(partition, "add", 3, 1), waits(partition, "add", 1, 1)
    partition.participant.detach(Detach(2))  # of an earlier one
    assert partition.participant.metrics()["lent_keys"] == 1
    partition.participant.detach(Detach(3))
    partition.run_ready()
    assert partition.answer(first) == 31
    assert second not in partition.answers  # in doubt: the next coordinator knows
    assert partition.participant.rounds.first_open == float("inf")
    assert partition.participant.attach(Attach(3, 99)) is None
    partition.participant.take(Orders(3, partition.session, 99, [Decide(1, False)]))
    assert not partition.participant.orders.is_due
    partition.session = 0
    assert partition.attach(4).in_doubt == [1]
    partition.order(Decide(1, True))
    partition.run_ready()
    assert partition.answer(second) == 12


# ---------------------------------------------------------------------------------------------------------- order


def test_decide_and_the_next_borrow_arrive_together__the_local_call_does_not_starve(partition: OnePartition) -> None:
    """PROTOCOL rule 12."""
    lent(partition, borrow(1, 1))
    vote(partition, Prepare(1, changes((1, 11))))
    waiting = waits(partition, "add", 1, 1)
    decided, again = partition.order(Decide(1, True), borrow(2, 1))
    assert decided == Decided(1)
    assert partition.answer(waiting) == 12
    assert again == Lent(2, [[item(1, 12)]], [])


def test_calls_run_again_in_the_order_in_which_they_came(partition: OnePartition) -> None:
    lent(partition, borrow(1, 1, 2))
    numbers = [waits(partition, "add", key, 1) for key in (1, 2, 1, 2)]
    partition.order(Decide(1, False))
    partition.run_ready()
    assert [partition.answer(number) for number in numbers] == [11, 21, 12, 22]
    assert sorted(numbers) == numbers


def test_a_retry_of_a_call_that_waits_for_a_lent_key_joins_it(partition: OnePartition) -> None:
    """PROTOCOL rule 23: a call is set aside, its retry arrives, both rerun."""
    lent(partition, borrow(1, 1))
    number = waits(partition, "add", 1, 1)
    partition.run("add", 1, 1, number=number, floor=0)
    partition.seal()
    partition.order(Decide(1, False))
    partition.run_ready()
    assert partition.answer(number) == 11
    assert items(partition)[1] == 11


# ------------------------------------------------------------------------------------------------------ read rounds


def test_a_fragment_never_waits_for_what_is_lent(partition: OnePartition) -> None:
    """PROTOCOL rule 1: R reads a = 100 at P1 and is set aside at P2; T moves 10; R then reads b = 110."""
    lent(partition, borrow(1, 1))
    keys = [TableKeys(ITEMS, [encode(2), encode(1)])]
    assert partition.order(Read(1, keys, [])) == [ReadAnswer(1, [], [], is_here=False)]
    assert partition.order(Read(2, [], [Scan(ITEMS, "count")])) == [ReadAnswer(2, [], [], is_here=False)]
    assert partition.participant.rounds.first_open == float("inf")  # nothing is held back
    vote(partition, Prepare(1, changes((1, 11))))
    assert partition.order(Read(3, keys, [])) == [ReadAnswer(3, [], [], is_here=False)]
    partition.order(Decide(1, True))
    assert partition.order(Read(4, keys, [])) == [ReadAnswer(4, [[item(2, 20), item(1, 11)]], [])]
    assert partition.participant.rounds.first_open < float("inf")
    assert partition.order(Release(4)) == []
    assert partition.participant.rounds.first_open == float("inf")


def test_several_rounds_are_open_until_each_is_released(partition: OnePartition) -> None:
    participant = partition.participant
    partition.order(Read(1, [TableKeys(ITEMS, [encode(1)])], []))
    before_second = participant.rounds.opened
    partition.order(Read(2, [TableKeys(ITEMS, [encode(2)])], []))
    after_second = participant.rounds.opened
    assert participant.rounds.first_open <= before_second
    assert partition.order(Release(1)) == []
    assert before_second < participant.rounds.first_open <= after_second
    assert partition.call("add", 1, 1) == 11  # it is only told later
    assert partition.order(Release(2), Release(2), Release(9)) == []
    assert participant.rounds.first_open > after_second


def test_a_round_that_nobody_ends_ends_by_itself(partition: OnePartition) -> None:
    partition.order(Read(1, [TableKeys(ITEMS, [encode(1)])], []))
    assert partition.participant.due_s == HOLD_S
    partition.step(0.999 * HOLD_S)
    assert partition.participant.rounds.first_open < float("inf")
    partition.step(HOLD_S)
    assert partition.participant.rounds.first_open == float("inf")
    assert partition.order(Release(1)) == []


def test_a_round_outlives_a_session_that_ends_without_the_coordinator_s_knowledge(partition: OnePartition) -> None:
    """It may have all answers by now, and believe them."""
    participant = partition.participant
    partition.attach(3)
    partition.order(Read(1, [TableKeys(ITEMS, [encode(1)])], []))
    participant.take(Orders(3, partition.session, 99, []))  # behind a gap
    assert participant.rounds.first_open < float("inf")
    partition.attach(3)
    assert participant.rounds.first_open == float("inf")


# ------------------------------------------------------------------------------------------------------ joint calls


def directed(batch: int, name: str, *arguments: Any, number: int = 1) -> RunDirected:
    return RunDirected(batch, CLIENT, number, name, Raw(encode(arguments)), 0)


def test_a_part_of_a_joint_call_is_prepared_and_tells_what_must_be_equal_everywhere() -> None:
    copies: list[Any] = []
    for number in range(2):
        partition = opened(partition=number, partitions=2)
        here = keys_of(number)[0]
        partition.call("put", here, 1)
        vote(partition, Commit(1, rates(("gone", 1)), NONE))
        codes = ["EUR", "CHF", "USD"] if number else ["USD", "EUR", "CHF"]
        (ran,) = partition.order(directed(2, "set_rates", codes, 5))
        assert isinstance(ran, Ran)
        assert (ran.error, msgspec.msgpack.decode(ran.result)) == (None, [here])
        copies.append(ran.copies)
        waiting = waits(partition, "rate", here)
        partition.order(Decide(2, True))
        partition.run_ready()
        assert partition.answer(waiting) == 5
        assert sorted(partition.rows("rates")) == ["CHF", "EUR", "USD"]
        finish(partition)
    assert copies[0] == copies[1]
    assert copies[0][0].deleted == [encode("gone")]


def test_rule_3_replies_wait_from_the_part_of_a_joint_call_until_it_is_released(partition: OnePartition) -> None:
    before = partition.participant.rounds.opened
    partition.order(directed(2, "set_rates", [], 5))
    assert partition.participant.rounds.first_open == before + 1
    assert partition.order(Release(2)) == []
    assert partition.participant.rounds.first_open == float("inf")
    partition.order(directed(3, "set_rates", [], 5, number=2))
    assert partition.participant.rounds.first_open < float("inf")
    partition.step(HOLD_S)
    assert partition.participant.rounds.first_open == float("inf")


def test_a_part_that_changes_nothing_is_not_prepared(partition: OnePartition) -> None:
    (ran,) = partition.order(directed(2, "set_rates", [], 5))
    assert isinstance(ran, Ran)
    assert (ran.copies, partition.store.prepared) == ([], {})
    assert partition.order(Decide(2, True)) == [Decided(2)]


@pytest.mark.parametrize(
    ("order", "code"),
    [
        (directed(2, "mark", 1, "abort"), "Aborted"),
        (directed(2, "mark", 1, "raise"), "ProcedureError"),
        (directed(2, "mark", 88, "return"), "ProcedureError"),
        (directed(2, "mark", "one", "return"), "BadArguments"),
        (directed(2, "nothing"), "UnknownProcedure"),
        (directed(2, "put", 1, 1), "UnknownProcedure"),
        (RunDirected(2, CLIENT, 1, "set_rates", Raw(encode([[], 1])), 1 << 62), "ProtocolError"),
    ],
)
def test_a_part_that_fails_leaves_nothing(order: RunDirected, code: str, partition: OnePartition) -> None:
    (ran,) = partition.order(order)
    assert isinstance(ran, Ran)
    assert ran.error is not None
    assert ran.error.code == code
    assert partition.store.prepared == {}
    assert partition.rows("rates") == {}
    assert items(partition)[1] == 10
    assert partition.call("add", 1, 1) == 11
    assert CLIENT not in partition.answers
    finish(partition)


def test_a_part_that_needs_a_lent_key_is_unavailable_at_once(partition: OnePartition) -> None:
    lent(partition, borrow(1, 1))
    waiting = waits(partition, "add", 1, 1)
    (ran,) = partition.order(directed(2, "mark", 1, "return"))
    assert isinstance(ran, Ran)
    assert ran.error is not None
    assert ran.error.code == "Unavailable"
    partition.order(Decide(1, False))
    partition.run_ready()
    assert partition.answer(waiting) == 11


def test_a_part_survives_a_crash_in_doubt(tmp_path: Path) -> None:
    partition = opened(tmp_path)
    partition.call("put", 1, 10)
    partition.order(directed(2, "mark", 1, "return"))
    partition = crashed(partition, tmp_path)
    assert partition.attach(2).in_doubt == [2]
    waits(partition, "rate", 1)
    partition.order(Decide(2, True))
    partition.run_ready()
    assert partition.call("rate", 1) == 1
    assert items(partition) == {1: 100}


# ------------------------------------------------------------------------------------------------------- no room


class Full:
    """A WAL that may be full."""

    def __init__(self, partition: OnePartition) -> None:
        self.is_full = False
        self._append = partition.participant._steps._append_record
        partition.participant._steps._append_record = self

    def __call__(self, record: bytes) -> int:
        if self.is_full:
            raise DiskFull("no space left")
        return self._append(record)


def test_without_room_the_vote_is_no_and_the_keys_come_back(partition: OnePartition) -> None:
    full = Full(partition)
    full.is_full = True
    for batch, order in enumerate([Prepare(0, changes((1, 0))), Commit(1, changes((1, 0)), NONE)]):
        lent(partition, borrow(batch, 1))
        assert vote(partition, order) == "ReadOnly"
        assert partition.call("add", 1, 1) == 11 + batch
        partition.order(Decide(batch, False))
    (ran,) = partition.order(directed(2, "mark", 1, "return"))
    assert isinstance(ran, Ran)
    assert ran.error is not None
    assert ran.error.code == "ReadOnly"
    assert partition.call("add", 1, 1) == 13
    finish(partition)


def test_a_decision_that_finds_no_room_is_tried_again(partition: OnePartition) -> None:
    full = Full(partition)
    lent(partition, borrow(1, 1))
    vote(partition, Prepare(1, changes((1, 11))))
    waiting = waits(partition, "add", 1, 1)
    full.is_full = True
    assert partition.order(Decide(1, True), borrow(2, 2)) == [Lent(2, [[item(2, 20)]], [])]
    assert lent(partition, borrow(2, 1)).refused
    partition.step(RETRY_S)
    assert partition.reports() == []
    assert not partition.executor.has_ready
    full.is_full = False
    partition.step(RETRY_S)
    assert partition.reports() == [Decided(1)]
    partition.run_ready()
    assert partition.answer(waiting) == 12
    finish(partition)


def test_a_decision_that_waits_for_room_outlives_its_session(partition: OnePartition) -> None:
    full = Full(partition)
    lent(partition, borrow(1, 1))
    vote(partition, Prepare(1, changes((1, 11))))
    full.is_full = True
    partition.order(Decide(1, True))
    assert partition.attach().in_doubt == [1]
    full.is_full = False
    partition.step(RETRY_S)
    assert partition.reports() == []  # of this session nobody asked
    assert items(partition)[1] == 11
    assert partition.order(Decide(1, True)) == [Decided(1)]


def test_an_abort_needs_no_room(partition: OnePartition) -> None:
    full = Full(partition)
    lent(partition, borrow(1, 1))
    vote(partition, Prepare(1, changes((1, 11))))
    full.is_full = True
    assert partition.order(Decide(1, False)) == [Decided(1)]
    assert partition.call("add", 1, 1) == 11


def test_memory_that_is_full_refuses_the_batch(tmp_path: Path) -> None:
    partition = opened(tmp_path, memory_bytes=1 << 20)
    while partition.store.free_bytes > 200_000:
        partition.call("fill", partition.number, 60_000)
    lent(partition, borrow(1, *range(1000, 1100)))
    large = [TableChanges(ITEMS, [encode([key, 0, "x" * 60_000]) for key in range(1000, 1100)], [])]
    assert vote(partition, Prepare(1, large)) == "ReadOnly"
    lent(partition, borrow(2, 1))
    assert vote(partition, Commit(2, changes(deleted=(1,)), NONE)) == ""
    assert partition.call("get", 1) is None
    partition.store.check()
    crashed(partition, tmp_path, memory_bytes=1 << 20)


# ----------------------------------------------------------------------------------------------------- cold pages


def with_cold_rows(directory: Path, rows: int = 40) -> OnePartition:
    """A partition that has just started: nothing of its rows is in memory."""
    partition = opened(directory)
    for key in range(rows):
        partition.call("fill", key, 3000)
    partition.checkpointer.request()
    while partition.checkpointer.step(partition.now_s):
        pass
    return crashed(partition, directory)


def test_a_borrow_waits_for_cold_pages_and_so_do_the_orders_behind_it(tmp_path: Path) -> None:
    partition = with_cold_rows(tmp_path)
    partition.send(borrow(1, *range(40)), Recall(70, [1]))
    assert partition.reports() == []
    assert not partition.participant.orders.is_due
    missed = partition.participant.orders.missed_pages()
    assert len(missed) >= 15  # all of them at once
    partition.participant.orders._missed_pages.extend(missed)
    partition.call("put", 1000, 1)
    first, second = partition.reports()
    assert isinstance(first, Lent)
    assert isinstance(second, Recalled)
    assert [len(image) for image in first.images[0] if image is not None] == [len(encode([1, 0, "x" * 3000]))] * 40


@pytest.mark.parametrize("kind", ["decide", "commit", "read", "scan", "directed"])
def test_every_order_waits_for_its_pages(kind: str, tmp_path: Path) -> None:
    partition = with_cold_rows(tmp_path)
    before = partition.pool.faults
    if kind in ("decide", "commit"):
        lent(partition, borrow(1, *range(40)))
        everything = [TableChanges(ITEMS, [item(key, 1) for key in range(30)], [encode(k) for k in range(30, 40)])]
        if kind == "decide":
            vote(partition, Prepare(1, everything))
            partition = crashed(partition, tmp_path)  # its pages are cold again
            partition.attach()
            before = partition.pool.faults
            assert partition.order(Decide(1, True)) == [Decided(1)]
        else:
            assert vote(partition, Commit(1, everything, NONE)) == ""
        assert items(partition) == dict.fromkeys(range(30), 1)
    elif kind == "read":
        (answer,) = partition.order(Read(1, [TableKeys(ITEMS, [encode(key) for key in range(40)])], []))
        assert isinstance(answer, ReadAnswer)
        assert len(answer.images[0]) == 40
    elif kind == "scan":
        answer = lent(partition, borrow(1, scans=[Scan(ITEMS, "range", Raw(encode([5, 25])))]))
        assert answer.scans[0].count == 20
    else:
        (ran,) = partition.order(directed(1, "mark", 7, "return"))
        assert isinstance(ran, Ran)
        assert ran.error is None
    assert partition.pool.faults > before
    partition.store.check()


def test_a_lend_under_pressure_ends_though_its_pages_leave_again(tmp_path: Path) -> None:
    with_cold_rows(tmp_path, 200)
    partition = crashed(with_cold_rows(tmp_path / "other", 200), tmp_path / "other", frames=12, memory_bytes=1 << 20)
    answer = lent(partition, borrow(1, *range(200)))
    assert sum(image is not None for image in answer.images[0]) == 200


# --------------------------------------------------------------------------------- calls that the coordinator runs


def test_a_call_with_keys_of_several_partitions_is_sent_elsewhere_without_running() -> None:
    partition = opened(partitions=2)
    here, there = keys_of(0), keys_of(1)
    for key in here[:2]:
        partition.call("put", key, 10)
    numbers = partition.run_group("transfer", [(here[0], here[1]), (here[0], there[0]), (there[0], here[0])])
    partition.seal()
    assert partition.answer(numbers[0]) == "done"
    assert [partition.answer(number).code for number in numbers[1:]] == [ELSEWHERE, ELSEWHERE]
    assert partition.executor.counts["elsewhere"] == 2
    number = partition.run("whole")
    partition.seal()
    assert partition.answer(number).code == ELSEWHERE


@pytest.mark.parametrize("swallow", [False, True])
def test_a_local_write_to_copies_is_undone_and_sent_elsewhere(swallow: bool) -> None:
    """PROTOCOL rule 9, and rule 25: whatever the body does with what it is told."""
    partition = opened(partitions=2)
    key = keys_of(0)[0]
    number = partition.run("set_rate_locally", key, swallow)
    partition.seal()
    assert partition.answer(number).code == ELSEWHERE
    assert items(partition) == partition.rows("rates") == {}
    partition.run("set_rate_locally", key, swallow, number=number, floor=0)  # the first may be running there
    partition.seal()
    assert partition.answer(number).code == ELSEWHERE
    number = partition.run_everywhere("set_rates", ["EUR"], 1)
    partition.seal()
    assert partition.answer(number).code == ELSEWHERE


def test_alone_a_partition_runs_everything_itself() -> None:
    partition = opened()
    partition.call("put", 1, 10)
    partition.call("put", 2, 10)
    assert partition.call("transfer", 1, 2) == "done"
    assert partition.call("whole") == 2
    assert partition.call("set_rate_locally", 3, False) == "swallowed"
    assert partition.call("rate", 3) == 3
    assert partition.call_everywhere("set_rates", ["CHF"], 1) == [1, 2, 3]
    lent(partition, Borrow(1, [TableKeys(RATES, [encode("EUR")])], []))
    waits(partition, "set_rate_locally", 5, False)  # others than the coordinator write it here: so it is taken


# ------------------------------------------------------------------------------------------------- bounded waiting


def test_one_key_in_doubt_fills_no_limit_of_others(tmp_path: Path) -> None:
    """PROTOCOL rule 14."""
    assert CALLS_WAIT_FOR_LENT < CALLS_SET_ASIDE
    partition = with_cold_rows(tmp_path)
    lent(partition, borrow(1, 1))
    vote(partition, Prepare(1, changes((1, 0))))
    numbers = partition.run_group("get", [(1,)] * (CALLS_WAIT_FOR_LENT + 5))
    cold = partition.run_group("get", [(key,) for key in range(20, 40)])
    partition.seal()
    assert {type(partition.answers[number]) for number in numbers[CALLS_WAIT_FOR_LENT:]} == {Overloaded}
    partition.turn_pages()
    assert [partition.answer(number) for number in cold] == [0] * 20
    assert partition.executor.waiting_for_lent == CALLS_WAIT_FOR_LENT


def test_calls_that_wait_under_one_number_fill_no_limit_for_ever(partition: OnePartition) -> None:
    lent(partition, borrow(1, 1))
    number = waits(partition, "add", 1, 1)
    for _ in range(3):
        partition.run("add", 1, 1, number=number)
    partition.seal()
    assert partition.executor.waiting_for_lent == partition.executor.waiting == 1
    with pytest.raises(ProtocolError, match="waits already"):
        partition.answer(number)
    partition.order(Decide(1, False))
    partition.run_ready()
    assert partition.answer(number) == 11
    assert partition.executor.waiting_for_lent == partition.executor.waiting == 0


def test_a_call_that_has_waited_too_long_for_what_is_lent_is_told_so(partition: OnePartition) -> None:
    lent(partition, borrow(1, 1))
    vote(partition, Prepare(1, changes((1, 11))))
    early = waits(partition, "add", 1, 1)
    partition.step(LENT_WAIT_S / 2)
    late, scan = waits(partition, "add", 1, 1), waits(partition, "count", 1)
    partition.step(LENT_WAIT_S / 2)
    assert partition.executor.give_up()
    partition.gather()
    with pytest.raises(Unavailable, match=r"add: items 1 is lent to an undecided transaction"):
        partition.answer(early)
    assert (partition.executor.waiting, partition.executor.waiting_for_lent) == (2, 2)
    partition.run("add", 1, 1, number=early, floor=0)  # who was told that it did not run must be able to believe it
    partition.seal()
    with pytest.raises(Unavailable):
        partition.answer(early)
    partition.order(Decide(1, True))
    partition.run_ready()
    assert partition.answer(late) == 12
    assert partition.answer(scan) == 5
    assert not partition.executor.give_up()
    assert (partition.executor.waiting, partition.executor.waiting_for_lent) == (0, 0)


def test_the_deadline_counts_over_reruns(partition: OnePartition) -> None:
    lent(partition, borrow(1, scans=[Scan(ITEMS, "count")]))
    number = waits(partition, "count", 1)
    partition.step(LEASE_S / 2)
    vote(partition, Prepare(1, changes((1, 11))))
    partition.run_ready()  # the table is here, and one key of it is not
    assert number not in partition.answers
    partition.step(LENT_WAIT_S - LEASE_S / 2)
    assert partition.executor.give_up()
    partition.gather()
    with pytest.raises(Unavailable, match="count: items, or a key of it, is lent"):
        partition.answer(number)


def test_a_batch_that_is_undone_counts_its_waiting_calls_once(partition: OnePartition) -> None:
    lent(partition, borrow(1, 1))
    partition.run("add", 1, 1)
    partition.executor.undo_batch()
    assert partition.executor.waiting_for_lent == 0
    number = waits(partition, "add", 1, 1)
    partition.order(Decide(1, False))
    partition.executor.run_ready()
    partition.executor.undo_batch()
    assert partition.executor.waiting_for_lent == 1
    partition.run_ready()
    assert partition.answer(number) == 11
    assert partition.executor.waiting_for_lent == 0
