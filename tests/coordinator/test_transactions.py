"""The coordinator's core among fake partitions: what the rules of lending and two-phase commit are for."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count, pairwise
from random import Random
from typing import Any

import msgspec
import pytest
from msgspec import Raw
from sqlglot.tokens import Tokenizer

from coordinator import batches
from coordinator.batch import PARTS_HOLD_S, RENEW_S, Batch
from coordinator.batches import OVERLAPS_IN_A_ROW
from coordinator.bodies import BORROWING_S, CALLS_WITHOUT_STAND_INS, Bodies
from coordinator.inquiries import IN_DOUBT_S
from coordinator.session import ATTACHED, REPORTS_DUE_S
from coordinator.waiting import ATTACH_WAIT_S
from tests.coordinator.fake_partition import CLIENT, FakeCluster, first_batch
from voltpy import procedure
from voltpy.call_error import call_error
from voltpy.errors import (
    Aborted,
    BadArguments,
    ConstraintViolation,
    Corruption,
    Indeterminate,
    ProcedureTimeout,
    ReadOnly,
    Unavailable,
    UnknownProcedure,
    WrongPartition,
)
from voltpy.hash_slot import hash_slot, slot_owners
from voltpy.messages import (
    BATCH_BITS,
    HOLD_S,
    LEASE_S,
    MAX_FRAME_BYTES,
    BatchesHeld,
    Borrow,
    CallError,
    Commit,
    Decide,
    HoldBatches,
    Prepare,
    Ran,
    Read,
    Recall,
    Release,
    RunDirected,
    TableChanges,
    Vote,
)
from voltpy.row import encode
from voltpy.sql.catalogue import Catalogue
from voltpy.sql.ddl import parse_schema
from voltpy.sql.emit import emit
from voltpy.sql.parse import parse_statement
from voltpy.sql.plan import Plan
from voltpy.sql.planner import plan
from voltpy.timeout import Interruption

SCHEMA = parse_schema("""
CREATE TABLE accounts (id INT PRIMARY KEY, balance INT NOT NULL DEFAULT 0);
PARTITION TABLE accounts ON COLUMN id;
CREATE TABLE notes (account INT NOT NULL, text STRING);
PARTITION TABLE notes ON COLUMN account;
CREATE TABLE rates (code STRING PRIMARY KEY, rate INT NOT NULL);
""")
OWNERS = slot_owners(2)
AT_0 = [key for key in range(200) if OWNERS[hash_slot(key)] == 0]
AT_1 = [key for key in range(200) if OWNERS[hash_slot(key)] == 1]
KEYS_WITHOUT_END = count(1000)
A, A2, A3 = AT_0[:3]
B, B2, B3 = AT_1[:3]


@procedure(partition_by=("source", "target"))
def transfer(tx, source: int, target: int, amount: int) -> int:
    giver, taker = tx.accounts.get(source), tx.accounts.get(target)
    if giver.balance < amount:
        tx.abort("no funds")
    tx.accounts.update(source, balance=giver.balance - amount)
    tx.accounts.update(target, balance=taker.balance + amount)
    return giver.balance - amount


def _give(tx, source: int, target: int, amount: int) -> int:
    left = tx.accounts.get(source).balance - amount
    if left < 0:
        tx.abort("no funds")
    tx.accounts.update(source, balance=left)
    tx.accounts.update(target, balance=tx.accounts.get(target).balance + amount)
    return left


@procedure(partition_by=("source", "target"))
def gift(tx, source: int, target: int, amount: int) -> int:
    return _give(tx, source, target, amount)


@procedure
def gift_anywhere(tx, source: int, target: int, amount: int) -> int:
    return _give(tx, source, target, amount)


@procedure
def spread(tx, keys: list[int], amount: int) -> int:
    for key in keys:
        tx.accounts.update(key, balance=tx.accounts.get(key).balance + amount)
    return len(keys)


@procedure
def total(tx) -> int:
    return sum(row.balance for row in tx.accounts.scan())


@procedure(read_only=True)
def read_total(tx) -> int:
    return sum(row.balance for row in tx.accounts.scan())


@procedure(partition_by=("one", "two"), read_only=True)
def both(tx, one: int, two: int) -> list:
    return [tx.accounts.get(one).balance, tx.accounts.get(two).balance]


@procedure(read_only=True)
def chase(tx, start: int, steps: int) -> int:
    """Each row names the next one: one more miss in each run."""
    key = start
    for _ in range(steps):
        key = tx.accounts.get(key).balance
    return key


@procedure
def chase_and_mark(tx, start: int, steps: int) -> int:
    key = start
    for _ in range(steps):
        key = tx.accounts.get(key).balance
    tx.accounts.upsert(199, key)
    return key


@procedure
def set_rate(tx, code: str, rate: int) -> None:
    tx.rates.upsert(code, rate)


@procedure
def raise_rate(tx, code: str) -> int:
    return tx.rates.update(code, rate=tx.rates.get(code).rate + 1).rate


@procedure
def swallow(tx, key: int) -> Any:
    try:
        return tx.accounts.get(key).balance
    except BaseException:  # noqa: BLE001 — as a user may write it: rule 25 is about this
        tx.abort("swallowed")


@procedure(partition_by=("source", "target"))
def strange(tx, source: int, target: int, key: int) -> Any:
    return tx.accounts.get(key)


@procedure
def generate(tx, key: int, other: int) -> list:
    values = [str(tx.now()), tx.random.random(), str(tx.uuid()), tx.unique_id()]
    tx.accounts.get(key)
    values.append(tx.unique_id())
    tx.accounts.upsert(key, 1)
    tx.accounts.upsert(other, 1)
    return values


@procedure
def add_note(tx, account: int, text: str) -> None:
    tx.notes.insert(account, text)


@procedure
def note_balance(tx, account: int, about: int) -> None:
    tx.notes.insert(account, str(tx.accounts.get(about).balance))


@procedure
def rate_balance(tx, code: str, about: int) -> None:
    tx.rates.upsert(code, tx.accounts.get(about).balance)


@procedure(partition_by="about")
def rate_of(tx, code: str, about: int) -> None:
    tx.rates.upsert(code, tx.accounts.get(about).balance)


@procedure
def wander(tx) -> None:
    tx.accounts.get(next(KEYS_WITHOUT_END))


@procedure
def rate_at(tx, code: str) -> Any:
    return tx.rates.get(code)


@procedure(read_only=True)
def read_rate_at(tx, code: str) -> Any:
    return tx.rates.get(code)


@procedure
def change(tx, names: list[str]) -> list[str]:
    names.append("x")  # a run that is repeated must get its arguments as they came
    tx.accounts.get(A)
    tx.accounts.get(B)
    return names


@procedure(everywhere=True)
def directed(tx) -> None:
    pass


PROCEDURES = [
    transfer, spread, total, read_total, both, chase, chase_and_mark, set_rate, raise_rate, swallow, strange, generate,
    add_note, note_balance, rate_balance, rate_of, rate_at, read_rate_at, change, directed, gift, gift_anywhere,
]  # fmt: skip


@pytest.fixture
def cluster() -> FakeCluster:
    made = FakeCluster(SCHEMA, PROCEDURES)
    for key in range(100):
        made.put("accounts", key, 100)
    made.settle()
    return made


def orders(cluster: FakeCluster, partition: int, *kinds: type) -> list[Any]:
    return [order for order in cluster.partitions[partition].log if isinstance(order, kinds)]


def balances(cluster: FakeCluster, *keys: int) -> list[int]:
    return [cluster.row("accounts", key).balance for key in keys]


def until(cluster: FakeCluster, condition: Callable[[], Any]) -> None:
    """One frame at a time, until it is so."""
    for _ in range(200):
        if condition():
            return
        cluster.step()
        for partition in range(len(cluster.partitions)):
            if condition():
                return
            cluster.deliver(partition)
        for partition in range(len(cluster.partitions)):
            if condition():
                return
            cluster.report(partition)
    raise AssertionError("it did not come about")


# The usual course.


def test_a_transfer_is_committed_in_both_partitions_with_two_rounds_of_messages(cluster: FakeCluster) -> None:
    assert cluster.call("transfer", A, B, 30) == 70
    assert balances(cluster, A, B) == [70, 130]
    for partition in (0, 1):
        assert [type(order) for order in cluster.partitions[partition].log] == [Borrow, Prepare, Decide]
    assert len(cluster.decisions) == 1
    assert cluster.core.in_doubt == 0  # acknowledged
    assert cluster.core.last_over == first_batch(1)


def test_a_batch_that_writes_in_one_partition_is_committed_by_its_record_after_the_readers_vote(
    cluster: FakeCluster,
) -> None:
    assert cluster.call("chase_and_mark", A, 1) == 100
    writer = OWNERS[hash_slot(199)]
    reader = 1 - writer
    assert [type(order) for order in orders(cluster, writer, Prepare, Commit, Decide)] == [Commit]
    assert cluster.decisions == []
    if reader == 0:
        assert [order.changes for order in orders(cluster, reader, Prepare)] == [[]]


def test_a_batch_that_writes_nothing_is_validated_before_it_is_answered(cluster: FakeCluster) -> None:
    with pytest.raises(Aborted, match="no funds"):
        cluster.call("transfer", A, B, 1000)
    for partition in (0, 1):
        assert [type(order) for order in cluster.partitions[partition].log] == [Borrow, Prepare]
        assert not cluster.partitions[partition].lent


def test_waiting_calls_share_one_batch_and_see_each_other(cluster: FakeCluster) -> None:
    cluster.call("total")  # so that a batch is under way when the others come
    numbers = [
        cluster.send("transfer", A, B, 60),
        cluster.send("transfer", A, B, 60),
        cluster.send("transfer", B, A, 90),
    ]
    before = len(orders(cluster, 0, Prepare))
    cluster.settle()
    assert cluster.answer(numbers[0]) == 40
    with pytest.raises(Aborted):
        cluster.answer(numbers[1])
    assert cluster.answer(numbers[2]) == 70
    assert balances(cluster, A, B) == [130, 70]
    assert len(orders(cluster, 0, Prepare)) == before + 1


def committing(cluster: FakeCluster, name: str, *arguments: Any) -> int:
    """The number of a call whose batch is prepared in every partition, with no vote on its way back yet."""
    number = cluster.send(name, *arguments)
    until(cluster, lambda: cluster.core.batches.committing is not None)
    cluster.collect()
    return number


def test_while_a_batch_commits_the_next_one_borrows_other_rows_and_runs(cluster: FakeCluster) -> None:
    first = committing(cluster, "transfer", A, B, 30)
    second = cluster.send("transfer", A2, B2, 20)
    cluster.step()
    assert cluster.core.counts["overlapped"] == 1
    assert isinstance(cluster.core.batches.borrowing, Batch)
    for partition in (0, 1):
        cluster.deliver(partition)  # Prepare
        cluster.deliver(partition)  # Borrow
        kinds = [type(order) for order in cluster.partitions[partition].log]
        assert kinds == [Borrow, Prepare, Borrow]
    cluster.settle()
    assert cluster.answer(first) == 70
    assert cluster.answer(second) == 80
    assert balances(cluster, A, B, A2, B2) == [70, 130, 80, 120]
    assert [decision.batch for decision in cluster.decisions] == [first_batch(1), first_batch(1) + 1]


def test_the_next_batch_is_not_prepared_before_the_one_that_commits_is_over(cluster: FakeCluster) -> None:
    committing(cluster, "transfer", A, B, 30)
    cluster.send("transfer", A2, B2, 20)
    cluster.step()
    late = cluster.to_partition[1]
    held, cluster.to_partition[1] = list(late)[:1], type(late)(list(late)[1:])  # its Prepare takes a while
    assert [type(order) for order in held[0][1].orders] == [Prepare]
    cluster.settle_without(1)
    assert len(orders(cluster, 0, Prepare)) == 1
    assert cluster.decisions == []
    cluster.to_partition[1].extendleft(held)
    cluster.settle()
    assert balances(cluster, A, B, A2, B2) == [70, 130, 80, 120]


def test_a_call_that_wants_a_row_of_the_batch_that_commits_waits_and_so_do_those_behind_it(
    cluster: FakeCluster,
) -> None:
    first = committing(cluster, "transfer", A, B, 30)
    same_row = cluster.send("transfer", A, B2, 70)
    behind = cluster.send("transfer", A2, B2, 200)  # has the money once the call before it has run
    apart = cluster.send("transfer", A3, B3, 1)
    back = cluster.send("transfer", B2, A2, 170)
    cluster.step()
    assert cluster.core.batches.borrowing is not None
    assert [call.number for call in cluster.core.batches.borrowing.calls] == [apart]
    cluster.settle()
    assert [cluster.answer(number) for number in (first, same_row, apart)] == [70, 0, 99]
    with pytest.raises(Aborted, match="no funds"):
        cluster.answer(behind)
    assert cluster.answer(back) == 0
    assert balances(cluster, A, A2, A3, B, B2, B3) == [0, 270, 99, 130, 0, 101]


def test_nothing_borrows_beside_a_batch_that_holds_a_table(cluster: FakeCluster) -> None:
    first = committing(cluster, "total")
    second = cluster.send("transfer", A2, B2, 20)
    cluster.step()
    assert cluster.core.batches.borrowing is None
    assert not cluster.core.has_work
    cluster.settle()
    assert cluster.answer(first) == 100 * 100
    assert cluster.answer(second) == 80
    assert cluster.core.counts["overlapped"] == 0


def test_nothing_borrows_beside_a_batch_where_no_processor_would_be_idle(cluster: FakeCluster) -> None:
    cluster.core.batches._overlaps = False
    first = committing(cluster, "transfer", A, B, 30)
    second = cluster.send("transfer", A2, B2, 20)
    cluster.step()
    assert cluster.core.batches.borrowing is None
    assert not cluster.core.has_work
    cluster.settle()
    assert [cluster.answer(first), cluster.answer(second)] == [70, 80]
    assert cluster.core.counts["overlapped"] == 0


def test_nothing_borrows_beside_a_batch_that_changes_copies(cluster: FakeCluster) -> None:
    first = committing(cluster, "set_rate", "x", 3)
    second = cluster.send("raise_rate", "x")
    cluster.step()
    assert cluster.core.batches.borrowing is None
    cluster.settle()
    cluster.answer(first)
    assert cluster.answer(second) == 4


def test_a_call_that_wants_a_table_waits_for_the_batch_that_commits(cluster: FakeCluster) -> None:
    first = committing(cluster, "transfer", A, B, 30)
    second = cluster.send("total")
    third = cluster.send("transfer", A2, B2, 20)
    cluster.step()
    assert cluster.core.batches.borrowing is None
    cluster.settle()
    assert cluster.answer(first) == 70
    assert cluster.answer(second) == 100 * 100
    assert cluster.answer(third) == 80


def test_a_body_that_turns_to_a_row_of_the_batch_that_commits_runs_again_when_that_is_over(
    cluster: FakeCluster,
) -> None:
    cluster.put("accounts", A, A2)
    cluster.put("accounts", A3, A)  # whoever follows A3 comes to A, which the batch that commits has changed
    first = committing(cluster, "transfer", A, B, 1)
    second = cluster.send("chase_and_mark", A3, 2)
    cluster.step()
    for partition in (1, 0):
        cluster.deliver(partition)
    for _ in range(6):
        cluster.deliver(0)
        cluster.step()
    cluster.settle()
    assert cluster.answer(first) == A2 - 1
    assert cluster.answer(second) == A2 - 1


@pytest.mark.parametrize("loses", [0, 1])
def test_a_partition_lost_under_two_batches_lets_both_run_again_in_order(cluster: FakeCluster, loses: int) -> None:
    first = committing(cluster, "transfer", A, B, 30)
    second = cluster.send("transfer", A2, B2, 20)
    third = cluster.send("transfer", A, B, 70)
    cluster.step()
    assert cluster.core.counts["overlapped"] == 1
    cluster.restart(loses)
    cluster.settle()
    assert [cluster.answer(number) for number in (first, second, third)] == [70, 80, 0]
    assert balances(cluster, A, B, A2, B2) == [0, 200, 80, 120]
    assert cluster.core.counts["aborted_batches"] == 2


def test_a_batch_that_is_refused_leaves_the_next_one_what_it_has_borrowed(cluster: FakeCluster) -> None:
    first = committing(cluster, "transfer", A, B, 30)
    second = cluster.send("transfer", A2, B2, 20)
    cluster.step()
    cluster.has_room = False
    until(cluster, lambda: first in cluster.answers)
    cluster.has_room = True
    with pytest.raises(ReadOnly):
        cluster.answer(first)
    cluster.settle()
    assert cluster.answer(second) == 80
    assert balances(cluster, A, B, A2, B2) == [100, 100, 80, 120]
    assert cluster.core.counts["aborted_batches"] == 1


def test_reads_do_not_starve_behind_batches_that_overlap(cluster: FakeCluster) -> None:
    committing(cluster, "transfer", A, B, 1)
    read = cluster.send("both", A3, B3)
    for amount in range(1, 20):
        cluster.send("transfer", *((A2, B2) if amount % 2 else (A, B)), 1)
        if cluster.core.counts["batches"] > 1:
            break
        cluster.exchange()
        cluster.step()
    assert read in cluster.answers, "only the batch that was under way went before it"
    cluster.settle()


def test_rule_12_after_some_batches_that_overlap_one_waits_until_everything_is_here_again(cluster: FakeCluster) -> None:
    """A call that reads a whole table waits in its partition while any key of it is lent."""
    committing(cluster, "transfer", A, B, 1)
    for place in range(30):
        cluster.send("transfer", *((A, B) if place % 2 else (A2, B2)), 1)
        cluster.exchange()
        cluster.step()
    cluster.settle()
    at_once: list[int] = []  # in a row, batches that borrowed while one before them held something
    holding: set[int] = set()
    for order in cluster.partitions[0].log:
        if isinstance(order, Borrow):
            at_once.append(at_once[-1] + 1 if holding else 0)
            holding.add(order.batch)
        elif isinstance(order, Decide):
            holding.discard(order.batch)
    assert max(at_once) == OVERLAPS_IN_A_ROW
    assert at_once.count(0) >= 3


def test_a_call_with_many_keys_uses_their_partitions(cluster: FakeCluster) -> None:
    cluster.bodies.procedures["spread"].key_positions = [0]
    assert cluster.call("spread", [A, A2, B], 5) == 3
    assert balances(cluster, A, A2, B) == [105, 105, 105]
    assert cluster.call("spread", [A, A2], 5) == 2
    with pytest.raises(BadArguments):
        cluster.call("spread", ["x"], 5)


def test_a_key_outside_the_declared_partitions_is_wrong(cluster: FakeCluster) -> None:
    assert cluster.call("strange", A, A2, A3) is not None
    with pytest.raises(WrongPartition):
        cluster.call("strange", A, A2, B)


def test_a_body_may_run_again_with_its_arguments_as_they_came(cluster: FakeCluster) -> None:
    assert cluster.call("change", ["a"]) == ["a", "x"]


def test_generated_values_are_the_same_in_every_run(cluster: FakeCluster) -> None:
    runs: list[list[Any]] = []
    body = generate

    @procedure
    def spied(tx: Any, key: int, other: int) -> list:
        values = body(tx, key, other)
        runs.append(values)
        return values

    fresh = FakeCluster(SCHEMA, [spied])
    fresh.settle()
    answer = fresh.call("spied", A, B)
    assert len(runs) > 1
    assert all(run == answer for run in runs)


def test_unknown_procedures_and_directed_ones_are_refused(cluster: FakeCluster) -> None:
    for name in ("nothing", "directed"):
        with pytest.raises(UnknownProcedure):
            cluster.call(name)


def test_a_call_with_wrong_arguments_alone_is_refused(cluster: FakeCluster) -> None:
    with pytest.raises(BadArguments, match="source"):
        cluster.call("transfer", "x", B, 1)


# PROTOCOL: reads.


def test_rule_1_a_read_that_meets_a_lent_key_is_cancelled_and_tried_again(cluster: FakeCluster) -> None:
    """T borrows b; R reads a and not b: nothing of that round may be used."""
    cluster.partitions[1].lent[0, encode(B)] = 99
    number = cluster.send("both", A, B)
    until(cluster, lambda: cluster.core.counts["read_retries"] == 1)
    cluster.put("accounts", A, 1)  # moved meanwhile
    cluster.put("accounts", B, 199)
    cluster.partitions[1].lent.clear()
    cluster.settle()
    assert cluster.answer(number) == [1, 199]
    assert cluster.partitions[0].held_round is None


def test_rule_2_a_body_that_misses_more_reads_everything_again_in_one_round(cluster: FakeCluster) -> None:
    """R reads a; W writes a and c; R's second round must not join the new c to the old a."""
    cluster.put("accounts", A, A2)
    cluster.put("accounts", A2, A3)
    number = cluster.send("chase", A, 2)
    until(cluster, lambda: cluster.core.counts["read_rounds"] == 2)
    cluster.put("accounts", A, B)
    cluster.put("accounts", B, B2)
    cluster.settle()
    assert cluster.answer(number) == B2
    assert all(len(order.keys[0].keys) >= 1 for order in orders(cluster, 0, Read))
    assert encode(A) in orders(cluster, 0, Read)[1].keys[0].keys


def test_rule_3_nobody_is_answered_while_a_round_is_open(cluster: FakeCluster) -> None:
    number = cluster.send("both", A, B)
    until(cluster, lambda: orders(cluster, 0, Read))
    refused = cluster.send("nothing")
    cluster.step()
    assert refused not in cluster.answers
    cluster.settle()
    assert cluster.answer(number) == [100, 100]
    assert refused in cluster.answers


def test_rule_4_no_body_runs_while_a_round_is_open_and_overdue_ones_are_cancelled(cluster: FakeCluster) -> None:
    """P2 is stopped: everybody's replies would hang."""
    read = cluster.send("both", A, B)
    until(cluster, lambda: orders(cluster, 0, Read))
    moved = cluster.send("transfer", A, A2, 10)
    cluster.step()
    assert not orders(cluster, 0, Borrow)
    cluster.now += 0.3
    cluster.step()
    assert cluster.core.counts["read_retries"] == 1
    cluster.settle()
    assert cluster.answer(moved) == 90
    assert sum(cluster.answer(read)) == 190
    assert orders(cluster, 0, Release)[0].round == orders(cluster, 0, Read)[0].round


def read_in_one(cluster: FakeCluster) -> None:
    """Partition 0 has read, its answer is here, and it holds replies back."""
    rounds = cluster.core.counts["read_rounds"]
    until(cluster, lambda: cluster.core.counts["read_rounds"] > rounds)
    assert cluster.deliver(0)
    assert cluster.report(0)


@pytest.mark.parametrize("late_s", [HOLD_S, 0.999 * HOLD_S])
def test_answers_that_come_when_replies_may_have_been_let_go_are_not_believed(
    late_s: float, cluster: FakeCluster
) -> None:
    """W runs at P1 after R has read there; its reply is let go; that client writes at P2; R reads that."""
    number = cluster.send("both", A, B)
    read_in_one(cluster)
    cluster.put("accounts", A, 6)
    cluster.now += late_s
    cluster.put("accounts", B, 7)
    cluster.deliver(1)
    cluster.report(1)
    cluster.settle()
    assert cluster.core.counts["read_retries"] == (late_s == HOLD_S)
    assert cluster.answer(number) == ([6, 7] if late_s == HOLD_S else [100, 7])  # the latter: nobody has heard of 6


@pytest.mark.parametrize("is_told", [True, False])
def test_a_round_is_not_believed_when_a_partition_was_lost_before_the_last_answer(
    is_told: bool, cluster: FakeCluster
) -> None:
    """W runs at P1 after R has read there; P1 dies, and its successor answers W's retry."""
    number = cluster.send("both", A, B)
    read_in_one(cluster)
    cluster.deliver(1)
    cluster.put("accounts", A, 6)
    cluster.report(1)
    assert cluster.core.is_answered
    assert number not in cluster.answers
    if is_told:
        cluster.core.connection_lost(0, cluster.now)
        assert not cluster.core.is_answered
    cluster.settle()
    assert cluster.answer(number) == ([6, 100] if is_told else [100, 100])
    assert cluster.core.counts["read_retries"] == is_told


def test_a_read_that_comes_to_nothing_again_and_again_borrows(cluster: FakeCluster) -> None:
    number = cluster.send("both", A, B)
    for _ in range(3):
        read_in_one(cluster)
        cluster.now += HOLD_S
    cluster.settle()
    assert cluster.answer(number) == [100, 100]
    assert len(orders(cluster, 0, Borrow)) == 1


def test_a_read_that_goes_on_and_on_borrows_and_ends(cluster: FakeCluster) -> None:
    keys = AT_0[3:20]
    for key, following in pairwise(keys):
        cluster.put("accounts", key, following)
    assert cluster.call("chase", keys[0], 16) == keys[16]
    assert cluster.core.counts["batches"] >= 1


def test_a_lone_read_releases_in_both_partitions(cluster: FakeCluster) -> None:
    assert cluster.call("read_total") == 10_000
    for partition in (0, 1):
        assert [type(order) for order in cluster.partitions[partition].log] == [Read, Release]


# PROTOCOL: what is lent, and batches.


def test_rule_6_what_was_lent_by_a_partition_s_former_life_is_not_relied_on(cluster: FakeCluster) -> None:
    """T borrows a at P1 to read; P1 restarts; L changes a and c; T must not fetch the new c to the old a."""
    number = cluster.send("transfer", A, B, 30)
    until(cluster, lambda: orders(cluster, 0, Borrow) and orders(cluster, 1, Borrow))
    cluster.restart(0)
    cluster.put("accounts", A, 20)
    cluster.settle()
    with pytest.raises(Aborted):
        cluster.answer(number)
    assert balances(cluster, A, B) == [20, 100]


def test_a_lease_that_ended_is_a_no_and_the_batch_runs_again_on_what_is_there_now(cluster: FakeCluster) -> None:
    number = cluster.send("transfer", A, B, 30)
    until(cluster, lambda: orders(cluster, 0, Borrow))
    cluster.partitions[0].expire_leases()
    cluster.put("accounts", A, 50)
    cluster.settle()
    assert cluster.answer(number) == 20
    assert balances(cluster, A, B) == [20, 130]
    assert cluster.core.counts["aborted_batches"] == 1


def test_rule_8_a_scan_sees_what_the_batch_has_written(cluster: FakeCluster) -> None:
    """T updates a, then sums the table: the borrower never waits on itself."""
    first = cluster.send("transfer", A, B, 30)
    second = cluster.send("total")
    cluster.settle()
    assert (cluster.answer(first), cluster.answer(second)) == (70, 10_000)


def test_rule_9_a_copied_table_is_written_in_every_partition_under_one_decision(cluster: FakeCluster) -> None:
    cluster.call("set_rate", "x", 1)
    numbers = [cluster.send("raise_rate", "x") for _ in range(3)]
    cluster.settle()
    assert [cluster.answer(number) for number in numbers] == [2, 3, 4]
    assert [cluster.row("rates", "x", partition).rate for partition in (0, 1)] == [4, 4]
    assert cluster.call("raise_rate", "x") == 5
    borrowed = [key for p in (0, 1) for order in orders(cluster, p, Borrow) for key in order.keys]
    assert len(borrowed) == 1  # C keeps copies from batch to batch, nobody else writes them


@pytest.mark.parametrize(("name", "place", "table"), [("note_balance", B, "notes"), ("rate_balance", "x", "rates")])
def test_nobody_can_change_what_was_read_and_then_miss_what_was_written_elsewhere(
    name: str, place: int | str, table: str, cluster: FakeCluster
) -> None:
    """T reads a at P1 and inserts n at P2; P1 votes and gives a back; W changes a; then L finds no n at P2."""
    read = cluster.schema.numbers["accounts"], encode(A)
    written = cluster.schema.numbers[table]
    reader, writer = cluster.partitions
    number = cluster.send(name, place, A)
    until(cluster, lambda: not reader.is_free(read))
    while number not in cluster.answers:
        while cluster.deliver(0) or cluster.report(0):
            pass
        if reader.is_free(read):
            prepared = {key for changes in writer.prepared.values() for key in writer._keys(changes)}
            assert written in {of for of, _ in {*writer.rows, *writer.lent, *prepared}}, "it is there, or is waited for"
        cluster.step()
        if not cluster.to_partition[0] and not cluster.report(1):
            cluster.deliver(1)  # as late as can be
    assert cluster.answer(number) is None


def test_an_aborted_write_of_a_copied_table_is_not_remembered(cluster: FakeCluster) -> None:
    cluster.call("set_rate", "x", 1)
    cluster.has_room = False
    with pytest.raises(ReadOnly):
        cluster.call("raise_rate", "x")
    cluster.has_room = True
    assert cluster.call("raise_rate", "x") == 2


def test_rule_11_no_reply_of_a_batch_leaves_before_its_outcome(cluster: FakeCluster) -> None:
    """T1 empties an account; T2 is told "no funds"; the batch aborts: T2 must not have been told."""
    first = cluster.send("transfer", A, B, 100)
    second = cluster.send("transfer", A, B, 100)
    cluster.partitions[1].refuses[first_batch(1)] = Vote(0, "ReadOnly", "full")
    until(cluster, lambda: orders(cluster, 1, Prepare))
    assert cluster.answers == {}
    cluster.put("accounts", A, 0)
    cluster.put("accounts", A, 300)
    cluster.settle()
    with pytest.raises(ReadOnly):  # it wrote where there was no room
        cluster.answer(first)
    assert cluster.answer(second) == 200  # it had only read: it ran again


def test_rule_12_the_next_batch_borrows_after_the_decision_of_the_one_before(cluster: FakeCluster) -> None:
    first = cluster.send("transfer", A, B, 1)
    until(cluster, lambda: orders(cluster, 0, Prepare))
    second = cluster.send("transfer", A, B, 2)
    cluster.step()
    cluster.exchange()
    assert len(orders(cluster, 0, Borrow)) == 1
    cluster.settle()
    kinds = [type(order) for order in cluster.partitions[0].log]
    assert kinds == [Borrow, Prepare, Decide, Borrow, Prepare, Decide]
    assert (cluster.answer(first), cluster.answer(second)) == (99, 97)


def test_rule_13_what_misses_on_after_some_rounds_goes_on_in_the_next_batch(cluster: FakeCluster) -> None:
    keys = AT_0[3:30]
    for key, following in pairwise(keys):
        cluster.put("accounts", key, following)
    long = cluster.send("chase_and_mark", keys[0], 20)
    short = cluster.send("transfer", A, B, 1)
    cluster.settle()
    assert cluster.answer(long) == keys[20]
    assert cluster.answer(short) == 99
    first_borrow_of_second_batch = next(
        order for order in orders(cluster, 0, Borrow) if order.batch == first_batch(1) + 1
    )
    assert len(first_borrow_of_second_batch.keys[0].keys) >= 8


def test_a_body_that_wants_other_rows_in_each_run_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "UNFINISHED_BATCHES", 3)
    cluster = FakeCluster(SCHEMA, [*PROCEDURES, wander])
    cluster.put("accounts", A, 100)
    cluster.put("accounts", B, 100)
    cluster.settle()
    numbers = [cluster.send("wander"), cluster.send("transfer", A, B, 1)]
    cluster.settle()
    with pytest.raises(ConstraintViolation, match="wander still wants rows that it has not read after 3 batches"):
        cluster.answer(numbers[0])
    assert cluster.answer(numbers[1]) == 99


def test_rule_13_a_full_disk_fails_only_those_who_write_there(cluster: FakeCluster) -> None:
    cluster.partitions[1].refuses[None] = Vote(0, "ReadOnly", "full")
    there, elsewhere = cluster.send("transfer", A, B, 1), cluster.send("transfer", A, A2, 1)
    cluster.settle()
    with pytest.raises(ReadOnly, match="full"):
        cluster.answer(there)
    assert cluster.answer(elsewhere) == 99
    assert balances(cluster, A, B, A2) == [99, 100, 101]


def test_rule_13_a_refused_batch_is_halved_until_the_culprit_is_alone(cluster: FakeCluster) -> None:
    culprit = AT_1[10]
    real = cluster.partitions[1]._vote

    def vote(order: Any) -> Any:
        if any(cluster.partitions[1].formats[0].decode(i).id == culprit for c in order.changes for i in c.images):
            return Vote(order.batch, "DuplicateKey", "taken")
        return real(order)

    cluster.partitions[1]._vote = vote  # type: ignore[method-assign]
    numbers = {key: cluster.send("transfer", A, key, 1) for key in AT_1[5:15]}
    cluster.settle()
    for key, number in numbers.items():
        if key == culprit:
            with pytest.raises(ConstraintViolation, match="taken"):
                cluster.answer(number)
        else:
            assert cluster.answer(number) >= 0
    assert balances(cluster, A) == [91]


def test_a_transaction_too_large_for_a_frame_is_refused(cluster: FakeCluster) -> None:
    @procedure
    def bulk(tx: Any, rows: int) -> None:
        for number in range(rows):
            tx.notes.insert(number, "x" * 100_000)

    large = FakeCluster(SCHEMA, [bulk])
    large.settle()
    large.call("bulk", 20)
    with pytest.raises(ConstraintViolation, match="bytes in one partition"):
        large.call("bulk", 400)


def test_keys_that_no_frame_holds_together_are_asked_for_in_several(cluster: FakeCluster) -> None:
    """A client chooses how long its keys are; what does not fit into a frame would end the session, again and again."""
    numbers = [cluster.send(name, f"{n}" * (5 << 20)) for n in range(5) for name in ("rate_at", "read_rate_at")]
    cluster.settle()
    assert [cluster.answer(number) for number in numbers] == [None] * 10
    assert [session.number for session in cluster.core.sessions] == [1, 1]


def test_a_directed_call_that_no_frame_holds_is_refused(cluster: FakeCluster) -> None:
    number = cluster.send_everywhere("directed", "x" * (MAX_FRAME_BYTES - 50))
    cluster.settle()
    with pytest.raises(BadArguments, match="the limit is"):
        cluster.answer(number)


@pytest.mark.parametrize("name", ["total", "read_total"])
def test_what_a_partition_will_never_lend_fails_its_call_at_once(name: str, cluster: FakeCluster) -> None:
    cluster.partitions[1].is_too_large = True
    numbers = [cluster.send(name), cluster.send("transfer", A, B, 1)]
    cluster.settle()
    with pytest.raises(ConstraintViolation, match="9 bytes of rows at once"):
        cluster.answer(numbers[0])
    assert cluster.answer(numbers[1]) == 99
    assert cluster.core.counts["aborted_batches"] <= 2


def test_rule_25_a_body_that_swallows_its_miss_runs_again(cluster: FakeCluster) -> None:
    assert cluster.call("swallow", A) == 100


def test_a_body_that_loops_on_stand_ins_runs_without_them(cluster: FakeCluster) -> None:
    """A tick of the timeout, as the process has it, ends the run on stand-ins only."""
    runs: list[int] = []

    @procedure
    def loops(tx: Any, key: int) -> int:
        row = tx.accounts.get(key)
        runs.append(row.balance)
        if row.balance == 0:
            fresh.bodies.interrupt(ProcedureTimeout("ran longer than 5 s (--procedure-timeout) and was ended"))
            raise KeyboardInterrupt
        return row.balance

    fresh = FakeCluster(SCHEMA, [loops])
    fresh.put("accounts", A, 5)
    fresh.settle()
    assert fresh.call("loops", A) == 5
    assert runs == [0, 5]


def test_a_procedure_that_looped_on_stand_ins_gets_them_again_after_a_while() -> None:
    runs: list[int] = []

    @procedure
    def loops(tx: Any, key: int, other: int) -> int:
        row = tx.accounts.get(key)
        runs.append(row.balance)
        if row.balance == 0:
            fresh.bodies.interrupt(ProcedureTimeout("ran for too long"))
            raise KeyboardInterrupt
        return row.balance + tx.accounts.get(other).balance

    fresh = FakeCluster(SCHEMA, [loops])
    fresh.put("accounts", A, 5)
    fresh.put("accounts", B, 5)
    fresh.settle()

    def rounds() -> int:
        before = fresh.core.counts["rounds"]
        assert fresh.call("loops", A, B) == 10
        return fresh.core.counts["rounds"] - before

    assert rounds() == 2  # without stand-ins each row takes one
    assert [rounds() for _ in range(CALLS_WITHOUT_STAND_INS)] == [2] * CALLS_WITHOUT_STAND_INS
    assert rounds() == 1  # now they are like a row that was seen
    assert runs.count(0) == 1


def test_planning_may_be_interrupted_wherever_it_is(cluster: FakeCluster) -> None:
    may = cluster.bodies.may_be_interrupted
    assert may(parse_statement.__code__)
    assert may(emit.__code__)
    assert may(Tokenizer.tokenize.__code__)
    assert not may(Bodies.run.__code__)


def test_what_a_partition_asks_to_have_planned_is_planned_and_ended_as_a_call_is(cluster: FakeCluster) -> None:
    bodies = cluster.bodies
    catalogue = Catalogue(SCHEMA)

    def plan_of(text: str) -> Plan:
        if text == "fault":
            raise KeyError("a fault of the planner's")
        if text == "endless":
            bodies.interrupt(ProcedureTimeout("ran longer than 5 s (--procedure-timeout) and was ended"))
            raise Interruption
        return plan(text, catalogue)

    bodies.plan_with(plan_of)
    planned = bodies.plan("SELECT balance FROM accounts WHERE id = ?")
    assert isinstance(planned, Raw)
    assert list(msgspec.msgpack.decode(planned, type=Plan).columns) == ["balance"]
    for text, code, words in (
        ("SELECT nothing FROM accounts", "SqlError", "nothing"),
        ("fault", "ProcedureError", "KeyError"),
        ("endless", "ProcedureTimeout", "--procedure-timeout"),
    ):
        refused = bodies.plan(text)
        assert isinstance(refused, CallError)
        assert (refused.code, words in refused.message) == (code, True)
    assert isinstance(bodies.plan("SELECT id FROM accounts"), Raw)
    assert cluster.call("transfer", A, B, 30) == 70


def test_a_body_that_runs_too_long_on_real_rows_is_ended(cluster: FakeCluster) -> None:
    @procedure
    def loops(tx: Any, key: int) -> int:
        if tx.accounts.get(key).balance == 5:
            fresh.bodies.interrupt(ProcedureTimeout("ran longer than 5 s (--procedure-timeout) and was ended"))
        tx.accounts.update(key, balance=9)
        return 1

    fresh = FakeCluster(SCHEMA, [loops])
    fresh.put("accounts", A, 5)
    fresh.settle()
    with pytest.raises(ProcedureTimeout, match="loops ran longer"):
        fresh.call("loops", A)
    assert fresh.row("accounts", A).balance == 5


def test_a_statement_whose_part_a_partition_has_ended_is_a_procedure_timeout(cluster: FakeCluster) -> None:
    @procedure
    def asks(tx: Any) -> None:
        raise ProcedureTimeout(
            "the statement ran longer than 5 s (--procedure-timeout) and was ended"
        )  # as coordinator.across

    with pytest.raises(ProcedureTimeout, match="the statement ran longer"):
        FakeCluster(SCHEMA, [asks]).call("asks")


def test_a_body_on_borrowed_rows_is_to_end_before_they_are_taken_back(cluster: FakeCluster) -> None:
    limits: list[Any] = []

    @procedure
    def asks(tx: Any, key: int) -> None:
        limits.append(fresh.bodies.lease())
        tx.accounts.get(key)
        limits.append(fresh.bodies.lease())
        tx.accounts.update(key, balance=9)

    fresh = FakeCluster(SCHEMA, [asks])
    fresh.put("accounts", A, 5)
    fresh.settle()
    fresh.call("asks", A)
    assert limits[0] is None  # the first run has nothing yet
    assert limits[-1] == (BORROWING_S, "ran for 0.6 s on rows that partitions lend for 1 s, and was ended")
    assert BORROWING_S + RENEW_S < LEASE_S


def test_leases_are_renewed_while_a_batch_waits_for_another_partition(cluster: FakeCluster) -> None:
    number = cluster.send("transfer", A, B, 1)
    cluster.step()
    assert cluster.deliver(0)
    assert cluster.report(0)
    before = len(orders(cluster, 0, Borrow))
    assert before == 1
    assert cluster.core.batches.borrowing is not None
    while cluster.now < cluster.core.batches.borrowing.renewed_until_s:
        cluster.now += RENEW_S
        cluster.step()
        cluster.deliver(0)
        cluster.report(0)
    renewed = orders(cluster, 0, Borrow)[before:]
    assert [(order.keys, order.scans, order.entries) for order in renewed] == [([], [], [])] * len(renewed)
    assert RENEW_S * len(renewed) > LEASE_S  # and no longer: others wait
    cluster.settle()
    cluster.answer(number)


def test_a_lease_that_is_renewed_too_late_aborts_the_batch_at_once(cluster: FakeCluster) -> None:
    number = cluster.send("transfer", A, B, 1)
    cluster.step()
    assert cluster.deliver(0)
    assert cluster.report(0)
    cluster.partitions[0].expire_leases()
    cluster.now += RENEW_S
    cluster.step()
    cluster.deliver(0)
    cluster.report(0)
    assert cluster.core.counts["aborted_batches"] == 1
    cluster.settle()
    cluster.answer(number)


# PROTOCOL: commit and recovery.


def test_rule_16_an_inquiry_about_the_live_batch_is_answered_after_its_decision(cluster: FakeCluster) -> None:
    """P1 votes, crashes, asks while P2's vote is on its way: it must not be told abort."""
    number = cluster.send("transfer", A, B, 30)
    until(cluster, lambda: cluster.partitions[0].prepared and orders(cluster, 1, Prepare))
    cluster.report(0)  # the vote of P1 has arrived
    assert cluster.core.in_doubt == 0
    cluster.restart(0)
    cluster.deliver(0)
    cluster.report(0)
    assert cluster.core.sessions[0].state == ATTACHED
    assert cluster.partitions[0].prepared
    cluster.settle()
    assert cluster.answer(number) == 70
    assert balances(cluster, A, B) == [70, 130]
    assert not cluster.partitions[0].prepared


def test_a_partition_that_is_lost_before_its_vote_aborts_the_batch_and_it_runs_again(cluster: FakeCluster) -> None:
    number = cluster.send("transfer", A, B, 30)
    until(cluster, lambda: cluster.partitions[0].prepared)
    cluster.restart(0)  # its yes is on disk, and nobody has heard of it
    cluster.settle()
    assert cluster.answer(number) == 70
    assert balances(cluster, A, B) == [70, 130]
    assert cluster.core.counts["aborted_batches"] == 1
    assert not any(partition.prepared for partition in cluster.partitions)


def test_a_partition_that_is_lost_after_the_decision_hears_of_it_when_it_is_back(cluster: FakeCluster) -> None:
    number = cluster.send("transfer", A, B, 30)
    until(cluster, lambda: number in cluster.answers)
    cluster.take_down(1)
    cluster.settle()
    assert cluster.core.in_doubt == 1
    assert not cluster.partitions[1].is_free((0, encode(B)))
    cluster.bring_up(1)
    cluster.settle()
    assert balances(cluster, A, B) == [70, 130]
    assert cluster.core.in_doubt == 0
    assert cluster.core.acknowledged == [first_batch(1)]


def test_rule_18_a_new_coordinator_decides_what_is_in_doubt_from_its_log(cluster: FakeCluster) -> None:
    cluster.send("transfer", A, B, 30)
    until(cluster, lambda: cluster.decisions)
    cluster.crash()
    cluster.settle()
    assert balances(cluster, A, B) == [70, 130]
    assert cluster.core.in_doubt == 0


def test_a_new_coordinator_aborts_what_is_not_in_its_log(cluster: FakeCluster) -> None:
    cluster.send("transfer", A, B, 30)
    until(cluster, lambda: all(partition.prepared for partition in cluster.partitions))
    cluster.crash()
    cluster.settle()
    assert balances(cluster, A, B) == [100, 100]
    assert not any(partition.prepared for partition in cluster.partitions)
    assert cluster.call("transfer", A, B, 10) == 90


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_coordinator_whose_decision_log_is_an_older_one_decides_nothing(epoch: int, cluster: FakeCluster) -> None:
    cluster.crash()
    assert cluster.epoch == 2
    cluster.send("transfer", A, B, 30)
    until(cluster, lambda: cluster.partitions[1].prepared)
    for partition in (0, 1):
        cluster.restart(partition)
    cluster.epoch = epoch - 1
    cluster.crash()
    with pytest.raises(Corruption, match="in doubt of batch"):
        cluster.exchange()
    assert not orders(cluster, 1, Decide)


def test_no_room_for_the_decision_fails_the_writers_and_keeps_nothing_prepared(cluster: FakeCluster) -> None:
    cluster.has_room = False
    with pytest.raises(ReadOnly, match="no room for the decision"):
        cluster.call("transfer", A, B, 30)
    assert balances(cluster, A, B) == [100, 100]
    assert not any(partition.prepared or partition.lent for partition in cluster.partitions)


@pytest.mark.parametrize("was_applied", [True, False])
def test_rule_18_a_commit_in_one_partition_whose_vote_was_lost_is_asked_for(
    cluster: FakeCluster, was_applied: bool
) -> None:
    number = cluster.send("transfer", A, A2, 30)
    until(cluster, lambda: cluster.core.batches.committing is not None)
    if was_applied:
        cluster.deliver(0)
        assert orders(cluster, 0, Commit)
    cluster.restart(0)
    other = cluster.send("transfer", B, B2, 1)  # need not wait for that
    cluster.settle()
    assert cluster.answer(other) == 99
    assert cluster.answer(number) == 70
    assert balances(cluster, A, A2) == [70, 130]
    assert orders(cluster, 0, Recall)
    assert cluster.core.counts["aborted_batches"] == (not was_applied)


def test_a_commit_in_a_partition_that_stays_away_is_indeterminate_and_its_retry_too(cluster: FakeCluster) -> None:
    number = cluster.send("transfer", A, A2, 30)
    until(cluster, lambda: cluster.core.batches.committing is not None)
    cluster.deliver(0)
    cluster.take_down(0)
    cluster.now += IN_DOUBT_S
    cluster.step()
    with pytest.raises(Indeterminate):
        cluster.answer(number)
    cluster.bring_up(0)
    cluster.send("transfer", A, A2, 30, number=number, floor=first_batch(1) - 1)
    cluster.settle()
    with pytest.raises(Indeterminate):
        cluster.answer(number)
    assert balances(cluster, A, A2) == [70, 130]  # once


# Partitions that are away.


def test_a_call_whose_partition_is_down_is_unavailable_and_others_run(cluster: FakeCluster) -> None:
    cluster.take_down(1)
    with pytest.raises(Unavailable, match="partition 1 is down"):
        cluster.call("transfer", A, B, 1)
    with pytest.raises(Unavailable):
        cluster.call("total")
    assert cluster.call("transfer", A, A2, 1) == 99
    cluster.bring_up(1)
    cluster.settle()
    assert cluster.call("transfer", A, B, 1) == 98


def test_a_call_waits_a_while_for_a_partition_that_is_being_attached(cluster: FakeCluster) -> None:
    cluster.restart(1)
    number, late = cluster.send("transfer", A, B, 1), cluster.send("transfer", A, B, 1)
    cluster.step()
    assert cluster.answers == {}
    cluster.settle()
    assert [cluster.answer(number), cluster.answer(late)] == [99, 98]
    cluster.restart(1)
    number = cluster.send("transfer", A, B, 1)
    cluster.step()
    cluster.now += ATTACH_WAIT_S
    cluster.step()
    with pytest.raises(Unavailable):
        cluster.answer(number)


@pytest.mark.parametrize("procedure_name", ["gift", "gift_anywhere"])
def test_a_partition_that_is_lost_before_a_later_round_needs_it_holds_nobody_up(
    cluster: FakeCluster, procedure_name: str
) -> None:
    """What it was ordered then would be void, and never answered."""
    cluster.put("accounts", A, 1000)  # unlike any row seen before: on stand-ins the body gives up, and never comes to B
    number = cluster.send(procedure_name, A, B, 500)
    until(cluster, lambda: cluster.partitions[0].log)
    assert not cluster.partitions[1].log
    cluster.take_down(1)
    cluster.settle()
    with pytest.raises(Unavailable):
        cluster.answer(number)
    cluster.bring_up(1)
    cluster.settle()
    assert cluster.call(procedure_name, A, B, 500) == 500


def test_a_partition_that_restarts_before_a_later_round_needs_it_is_waited_for(cluster: FakeCluster) -> None:
    cluster.put("accounts", A, 1000)
    number = cluster.send("gift_anywhere", A, B, 500)
    until(cluster, lambda: cluster.partitions[0].log)
    cluster.restart(1)
    cluster.settle()
    assert cluster.answer(number) == 500
    assert balances(cluster, A, B) == [500, 600]


def test_a_write_to_every_copy_waits_for_all_partitions(cluster: FakeCluster) -> None:
    cluster.call("set_rate", "x", 1)
    cluster.take_down(1)
    with pytest.raises(Unavailable):
        cluster.call("raise_rate", "x")
    assert cluster.row("rates", "x", 0).rate == 1


def test_a_write_to_every_copy_that_must_wait_leaves_the_others_of_its_batch_alone() -> None:
    cluster = FakeCluster(SCHEMA, PROCEDURES, partitions=3)
    owners = slot_owners(3)
    one, two = (next(key for key in range(200) if owners[hash_slot(key)] == partition) for partition in (0, 1))
    for key in (one, two):
        cluster.put("accounts", key, 100)
    cluster.put("rates", "x", 1)
    cluster.settle()
    cluster.take_down(2)
    numbers = [cluster.send("transfer", one, two, 1), cluster.send("rate_of", "x", one)]
    cluster.settle()
    assert cluster.answer(numbers[0]) == 99
    with pytest.raises(Unavailable, match="partition 2 is down"):
        cluster.answer(numbers[1])


def test_reports_that_do_not_come_end_the_session_and_the_batch(cluster: FakeCluster) -> None:
    number = cluster.send("transfer", A, B, 30)
    cluster.step()
    assert cluster.to_partition[1]
    cluster.to_partition[1].clear()  # lost on the way
    cluster.exchange()
    cluster.now += REPORTS_DUE_S + 0.1
    cluster.settle()
    assert cluster.core.sessions[1].number == 2
    assert cluster.answer(number) == 70
    assert balances(cluster, A, B) == [70, 130]


def test_frames_of_an_earlier_session_are_dropped(cluster: FakeCluster) -> None:
    """Rule 24: ZeroMQ delivers the queued frame to the restarted partition."""
    cluster.send("transfer", A, B, 30)
    cluster.step()
    old = [frame for _, frame in cluster.to_partition[1]]
    cluster.restart(1)
    cluster.exchange()
    for frame in old:
        assert cluster.partitions[1].receive(frame) is None
    cluster.settle()
    assert balances(cluster, A, B) == [70, 130]


# Calls.


def test_rule_23_a_retry_of_a_pending_call_joins_it(cluster: FakeCluster) -> None:
    number = cluster.send("transfer", A, B, 30)
    until(cluster, lambda: orders(cluster, 0, Prepare))
    cluster.send("transfer", A, B, 30, number=number, floor=cluster.core.last_over, origin="b")
    cluster.settle()
    assert cluster.answer(number) == 70
    assert cluster.dropped == 1
    assert balances(cluster, A, B) == [70, 130]


@pytest.mark.parametrize("arguments", [("transfer", A, B, 30), ("transfer", A, A2, 30), ("transfer", A, B, 1000)])
def test_rule_23_a_retry_gets_the_first_result(cluster: FakeCluster, arguments: tuple[Any, ...]) -> None:
    floor = cluster.core.last_over
    number = cluster.send(*arguments)
    cluster.settle()
    first = repr(cluster.answers.pop(number))
    cluster.put("accounts", A, 10_000)
    cluster.send(*arguments, number=number, floor=floor)
    cluster.settle()
    assert repr(cluster.answers.pop(number)) == first
    assert balances(cluster, A) == [10_000]


def test_rule_23_a_retry_that_was_under_way_gets_the_first_error(cluster: FakeCluster) -> None:
    """The disk is full; the call's client is told so, and then its retry arrives, and there is room again."""
    floor = cluster.core.last_over
    cluster.partitions[1].refuses[None] = Vote(0, "ReadOnly", "no space")
    number = cluster.send("transfer", A, B, 30)
    cluster.settle()
    with pytest.raises(ReadOnly):
        cluster.answer(number)
    cluster.answers.pop(number, None)
    cluster.partitions[1].refuses.clear()
    cluster.send("transfer", A, B, 30, number=number, floor=floor)
    cluster.settle()
    with pytest.raises(ReadOnly):
        cluster.answer(number)
    assert balances(cluster, A, B) == [100, 100]


@pytest.mark.parametrize("partition", [0, 1])
def test_a_joint_call_is_not_waited_for_when_a_partition_is_lost_that_has_run_its_part(
    partition: int, cluster: FakeCluster
) -> None:
    number = cluster.send_everywhere("load", 1)
    cluster.step()
    assert cluster.deliver(partition)
    assert cluster.report(partition)
    cluster.take_down(partition)
    cluster.settle()
    with pytest.raises(Unavailable, match="is down"):
        cluster.answer(number)
    assert cluster.partitions[1 - partition].held_round is None


def test_a_first_attempt_that_comes_after_its_retry_does_not_run(cluster: FakeCluster) -> None:
    number = cluster.send("transfer", A, B, 30, number=77, floor=cluster.core.last_over)
    cluster.settle()
    assert cluster.answer(number) == 70
    cluster.send("transfer", A, B, 30, number=77)
    cluster.settle()
    assert cluster.answers == {}
    assert cluster.dropped == 1
    assert balances(cluster, A, B) == [70, 130]


@pytest.mark.parametrize("target", [B, A2])
def test_a_retry_at_a_new_coordinator_gets_the_first_result(cluster: FakeCluster, target: int) -> None:
    """The decision log tells of what was prepared, the partition of what it committed alone."""
    floor = cluster.core.last_over
    number = cluster.send("transfer", A, target, 30)
    cluster.settle()
    assert cluster.answer(number) == 70
    cluster.crash()
    cluster.settle()
    cluster.send("transfer", A, target, 30, number=number, floor=floor)
    cluster.settle()
    assert cluster.answer(number) == 70
    assert balances(cluster, A, target) == [70, 130]


def test_a_retry_that_surely_never_ran_runs_at_a_new_coordinator(cluster: FakeCluster) -> None:
    floor = cluster.core.last_over
    cluster.crash()
    cluster.settle()
    cluster.send("transfer", A, B, 30, number=5, floor=floor)
    cluster.settle()
    assert cluster.answer(5) == 70


def test_a_retry_that_a_partition_may_have_forgotten_is_indeterminate(cluster: FakeCluster) -> None:
    floor = cluster.core.last_over
    cluster.partitions[1].reaches = floor + 5
    cluster.crash()
    cluster.settle()
    cluster.send("transfer", A, B, 30, number=5, floor=floor)
    cluster.settle()
    with pytest.raises(Indeterminate):
        cluster.answer(5)


def test_a_retry_waits_for_a_partition_that_is_down_and_then_is_indeterminate(cluster: FakeCluster) -> None:
    floor = cluster.core.last_over
    cluster.crash()
    cluster.settle()
    cluster.take_down(1)
    cluster.send("transfer", A, B, 30, number=5, floor=floor)
    cluster.settle()
    assert cluster.answers == {}
    cluster.now += IN_DOUBT_S
    cluster.step()
    with pytest.raises(Indeterminate):
        cluster.answer(5)


def test_rule_26_a_runaway_is_not_run_again(cluster: FakeCluster) -> None:
    cluster.core.inquiries._runaways.add((CLIENT, 5))
    cluster.send("transfer", A, B, 30, number=5, floor=0)
    cluster.settle()
    with pytest.raises(ProcedureTimeout):
        cluster.answer(5)


# Joint directed calls.


def set_copies(partition: Any, order: Any) -> Ran:
    image = encode(["x", 5])
    return Ran(order.batch, Raw(encode(partition.number * 10)), [TableChanges(2, [image], [])])


def test_a_joint_call_commits_in_every_partition_and_answers_with_all_results(cluster: FakeCluster) -> None:
    cluster.call("set_rate", "x", 1)
    for partition in cluster.partitions:
        partition.directed = set_copies
    number = cluster.send_everywhere("load", 1)
    cluster.settle()
    assert cluster.answer(number) == [0, 10]
    assert [cluster.row("rates", "x", partition).rate for partition in (0, 1)] == [5, 5]
    assert cluster.call("raise_rate", "x") == 6  # C has forgotten its own copy
    assert len(cluster.decisions) == 3


def test_rule_3_replies_wait_until_all_parts_of_a_joint_call_have_run(cluster: FakeCluster) -> None:
    """E's part at P1 reads a; W changes a and is answered, and its client writes at P2; E's part there sees that."""
    number = cluster.send_everywhere("load", 1)
    cluster.step()
    assert cluster.deliver(0)
    assert cluster.partitions[0].held_round is not None
    unknown = cluster.send("nothing")
    cluster.report(0)
    cluster.step()
    assert unknown not in cluster.answers  # the coordinator's own replies wait too
    assert not orders(cluster, 0, Release)
    cluster.deliver(1)
    cluster.report(1)
    cluster.step()
    assert len(cluster.decisions) == 1
    cluster.settle()
    assert cluster.answer(number) == [0, 1]
    with pytest.raises(UnknownProcedure):
        cluster.answer(unknown)
    assert [partition.held_round for partition in cluster.partitions] == [None, None]


def test_a_joint_call_whose_replies_were_let_go_before_all_parts_had_run_runs_again(cluster: FakeCluster) -> None:
    number = cluster.send_everywhere("load", 1)
    cluster.step()
    assert cluster.deliver(0)
    cluster.now += PARTS_HOLD_S
    cluster.settle()
    assert cluster.answer(number) == [0, 1]
    first, second = orders(cluster, 0, RunDirected)
    assert first.hold_s < second.hold_s
    assert [order.commits for order in orders(cluster, 0, Decide)] == [False, True]


@pytest.mark.parametrize("lost", [0, 1])
def test_a_joint_call_runs_again_when_a_partition_is_lost_before_it_is_believed(
    lost: int, cluster: FakeCluster
) -> None:
    number = cluster.send_everywhere("load", 1)
    cluster.step()
    cluster.exchange()
    assert cluster.core.is_answered
    cluster.restart(lost)
    cluster.settle()
    assert cluster.answer(number) == [0, 1]
    assert len(orders(cluster, 1 - lost, RunDirected)) == 2


def test_a_joint_call_whose_copies_differ_is_undone(cluster: FakeCluster) -> None:
    for partition in cluster.partitions:
        partition.directed = lambda partition, order: Ran(
            order.batch, Raw(b"\xc0"), [TableChanges(2, [encode(["x", partition.number])], [])]
        )
    number = cluster.send_everywhere("load", 1)
    cluster.settle()
    with pytest.raises(ConstraintViolation, match="partition 1"):
        cluster.answer(number)
    assert cluster.row("rates", "x") is None
    assert not any(partition.prepared for partition in cluster.partitions)


def test_a_joint_call_that_fails_in_one_partition_is_undone_in_all(cluster: FakeCluster) -> None:
    cluster.partitions[0].directed = set_copies
    cluster.partitions[1].directed = lambda partition, order: Ran(
        order.batch, Raw(b"\xc0"), [], call_error(order.client_id, order.number, Aborted("no"))
    )
    number = cluster.send_everywhere("load", 1)
    cluster.settle()
    with pytest.raises(Aborted, match="no"):
        cluster.answer(number)
    assert cluster.row("rates", "x") is None
    assert not any(partition.prepared for partition in cluster.partitions)


def test_a_joint_call_runs_again_when_a_partition_is_lost(cluster: FakeCluster) -> None:
    for partition in cluster.partitions:
        partition.directed = set_copies
    number = cluster.send_everywhere("load", 1)
    until(cluster, lambda: cluster.partitions[0].prepared)
    cluster.restart(0)
    cluster.settle()
    assert cluster.answer(number) == [0, 10]
    assert [cluster.row("rates", "x", partition).rate for partition in (0, 1)] == [5, 5]


# The end.


@pytest.mark.parametrize("kind", ["transfer", "both", "everywhere"])
def test_at_the_end_what_is_under_way_is_answered_and_what_has_not_begun_never_runs(
    kind: str, cluster: FakeCluster
) -> None:
    def send() -> int:
        if kind == "everywhere":
            return cluster.send_everywhere("directed")
        return cluster.send(kind, A, B, *([1] if kind == "transfer" else []))

    first = send()
    cluster.settle_without(0)  # it has begun
    waits = cluster.send("transfer", A2, B2, 1)
    waits_too = cluster.send("both", A2, B2)
    cluster.core.end()
    late = send()
    cluster.settle()
    assert not isinstance(cluster.answer(first), Exception)
    for number in (waits, waits_too, late):
        with pytest.raises(Unavailable, match="the coordinator is stopping"):
            cluster.answer(number)
    assert not cluster.core.owes_answers
    assert cluster.row("accounts", A2).balance == 100


# Snapshots.


def test_rule_22_no_batch_begins_while_they_are_held_and_it_is_told_when_none_is_under_way(
    cluster: FakeCluster,
) -> None:
    first = cluster.send("transfer", A, B, 1)
    until(cluster, lambda: orders(cluster, 0, Prepare))
    cluster.core.hold("supervisor", HoldBatches(3, 10.0), cluster.now)
    second = cluster.send("transfer", A, B, 1)
    cluster.step()
    assert cluster.core.notices() == []
    cluster.settle()
    assert cluster.answer(first) == 99
    assert cluster.core.notices() == [("supervisor", BatchesHeld(3))]
    assert second not in cluster.answers
    cluster.core.resume(2)  # of another snapshot
    cluster.settle()
    assert second not in cluster.answers
    cluster.core.resume(3)
    cluster.settle()
    assert cluster.answer(second) == 98


def test_rule_22_a_new_coordinator_is_asked_to_hold__a_partition_in_doubt_attaches__only_then_it_is_told(
    cluster: FakeCluster,
) -> None:
    cluster.send("transfer", A, B, 30)
    until(cluster, lambda: all(partition.prepared for partition in cluster.partitions))
    cluster.crash()
    cluster.core.hold("supervisor", HoldBatches(3, 10.0), cluster.now)
    cluster.step()
    cluster.settle_without(1)
    assert cluster.partitions[1].prepared
    assert cluster.core.notices() == []
    cluster.settle()
    assert not any(partition.prepared for partition in cluster.partitions)
    assert cluster.core.notices() == [("supervisor", BatchesHeld(3))]


def test_a_hold_ends_by_itself(cluster: FakeCluster) -> None:
    cluster.core.hold("supervisor", HoldBatches(3, 10.0), cluster.now)
    number = cluster.send("transfer", A, B, 1)
    cluster.settle()
    assert cluster.answers == {}
    cluster.now += 10.0
    cluster.settle()
    cluster.settle()
    assert cluster.answer(number) == 99


# Everything at once.


def move(balance: dict[int, int], source: int, target: int, amount: int) -> None:
    balance[source] -= amount
    balance[target] += amount


def possible(balance: dict[int, int], in_doubt: list[tuple[int, int, int]]) -> list[dict[int, int]]:
    """What the balances may be, when each of these transfers has happened or not."""
    found = [balance]
    for transferred in in_doubt:
        for one in list(found):
            other = dict(one)
            move(other, *transferred)
            found.append(other)
    return found


@pytest.mark.parametrize("seed", range(30))
def test_transfers_keep_the_total_and_are_answered_once_whatever_is_lost(seed: int) -> None:
    """Partitions restart, sessions are lost, leases end, the coordinator dies: nothing is lost, halved or doubled."""
    random = Random(seed)
    print("seed", seed)
    partitions = 3
    cluster = FakeCluster(SCHEMA, PROCEDURES, partitions=partitions)
    accounts = 12
    for key in range(accounts):
        cluster.put("accounts", key, 100)
    cluster.settle()
    expected: dict[int, tuple[int, int, int]] = {}
    reads: list[int] = []
    unanswered: set[int] = set()
    floors: dict[int, int] = {}
    names: dict[int, tuple[str, tuple[Any, ...]]] = {}

    def send(name: str, *arguments: Any) -> int:
        floor = cluster.core.last_over
        number = cluster.send(name, *arguments)
        floors[number] = floor
        names[number] = name, arguments
        unanswered.add(number)
        return number

    def look() -> None:
        for number in [number for number in unanswered if number in cluster.answers]:
            unanswered.discard(number)

    events = 0
    while events < 600:
        events += 1
        kind = random.random()
        if kind < 0.15:
            source, target = random.sample(range(accounts), 2)
            number = send("transfer", source, target, random.randrange(1, 30))
            expected[number] = source, target, names[number][1][2]
        elif kind < 0.18:
            reads.append(send("read_total"))
        elif kind < 0.19:
            reads.append(send("total"))
        elif kind < 0.20:
            cluster.restart(random.randrange(partitions))
        elif kind < 0.205:
            random.choice(cluster.partitions).expire_leases()
        elif kind < 0.215:
            random.choice(cluster.to_partition + cluster.to_core).clear()  # frames are lost: a gap
        elif kind < 0.225:
            cluster.now += random.choice((0.1, 0.3, REPORTS_DUE_S + 1))
        elif kind < 0.23:
            look()
            cluster.crash()
            for number in sorted(unanswered):  # their clients ask again
                name, arguments = names[number]
                cluster.send(name, *arguments, number=number, floor=floors[number])
        else:
            cluster.random_event(random)
        look()
    for _ in range(6):
        cluster.now += REPORTS_DUE_S + 1
        cluster.settle()
    look()
    assert unanswered == set()
    balance = dict.fromkeys(range(accounts), 100)
    in_doubt = []
    for number, transferred in expected.items():
        answer = cluster.answers[number]
        if isinstance(answer, int):
            move(balance, *transferred)
        elif isinstance(answer, Indeterminate):
            in_doubt.append(transferred)
        else:
            assert isinstance(answer, Aborted | Unavailable), answer
    stored = {key: cluster.row("accounts", key).balance for key in balance}
    assert sum(stored.values()) == 100 * accounts
    assert len(in_doubt) > 10 or stored in possible(balance, in_doubt)
    for number in reads:
        answer = cluster.answers[number]
        assert answer == 100 * accounts or isinstance(answer, Unavailable | Indeterminate), answer
    for partition in cluster.partitions:
        assert not partition.prepared
        assert not partition.lent
        assert not partition.lent_tables
    assert cluster.core.in_doubt == 0
    assert len(cluster.core.callers.pending) == 0
    assert max((decision.batch >> BATCH_BITS for decision in cluster.decisions), default=1) <= cluster.epoch


# Habits.


def test_calls_that_get_rows_by_their_arguments_are_soon_guessed_and_not_run_on_stand_ins() -> None:
    runs: list[int] = []

    @procedure(partition_by=("source", "target"))
    def move_one(tx: Any, source: int, target: int) -> None:
        runs.append(source)
        for key, amount in ((source, -1), (target, 1)):
            tx.accounts.update(key, balance=tx.accounts.get(key).balance + amount)
        if source == A3:
            tx.rates.get("x")  # what no habit tells

    cluster = FakeCluster(SCHEMA, [move_one])
    for key in range(100):
        cluster.put("accounts", key, 100)
    cluster.settle()
    for _ in range(8):
        cluster.call("move_one", A, B)
    assert len(runs) == 16
    for _ in range(8):
        cluster.call("move_one", A, B2)
    assert len(runs) == 24
    cluster.call("move_one", A3, B)  # one run that misses, one that does not; and the habit is over
    cluster.call("move_one", A, B3)
    assert len(runs) == 28
    assert [len(order.keys) for order in orders(cluster, 0, Borrow)][-3:] == [1, 1, 1]
    assert balances(cluster, A, A3, B, B2, B3) == [83, 99, 109, 108, 101]
