"""Transactions over several partitions, in a cluster of real processes."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

import voltpy
from tests.campaigns.bank import ACCOUNTS, COORDINATOR, OPENING_BALANCE, Bank, Disturber
from tests.campaigns.bank import PROCEDURES as BANK_PROCEDURES
from tests.campaigns.bank import SCHEMA as BANK_SCHEMA
from tests.campaigns.cluster import Cluster, happened
from voltpy.client import connect
from voltpy.hash_slot import hash_slot, slot_owners

PARTITIONS = 2
OWNERS = slot_owners(PARTITIONS)
# Accounts of either partition.
LEFT, RIGHT = ([key for key in range(ACCOUNTS) if OWNERS[hash_slot(key)] == partition] for partition in range(2))

SCHEMA = f"""{BANK_SCHEMA}
CREATE TABLE rates (currency STRING PRIMARY KEY, rate INT NOT NULL);
CREATE TABLE notes (author INT NOT NULL, text STRING NOT NULL);
PARTITION TABLE notes ON COLUMN author;
CREATE TABLE badges (account INT, place INT, badge STRING NOT NULL, PRIMARY KEY (account, place));
PARTITION TABLE badges ON COLUMN account;
CREATE UNIQUE INDEX one_each ON badges USING HASH (account, badge);
"""

PROCEDURES = f'''{BANK_PROCEDURES}

@procedure
def set_rate(tx, currency: str, rate: int) -> int:
    """Writes a row that every partition has a copy of."""
    return tx.rates.upsert(currency, rate).rate


@procedure(partition_by="account")
def set_rate_and_pay(tx, account: int, currency: str, rate: int) -> int:
    """One account, and a row that every partition has a copy of."""
    tx.rates.upsert(currency, rate)
    row = tx.accounts.get(account)
    return tx.accounts.update(account, balance=row.balance + rate - rate).balance


@procedure(partition_by="account", read_only=True)
def rate_beside(tx, account: int, currency: str) -> int | None:
    """The rate as the account's partition has it."""
    row = tx.rates.get(currency)
    return None if row is None else row.rate


@procedure(everywhere=True)
def add_rates(tx, rates: list[tuple[str, int]]) -> int:
    for currency, rate in rates:
        tx.rates.insert(currency, rate)
    return tx.rates.count()


@procedure(partition_by=("source", "target"))
def reach_for(tx, source: int, target: int, other: int) -> int:
    return tx.accounts.get(other).balance


@procedure(partition_by=("source", "target"))
def transfer_and_fail(tx, source: int, target: int, amount: int) -> None:
    for account, change in ((source, -amount), (target, amount)):
        row = tx.accounts.get(account)
        tx.accounts.update(account, balance=row.balance + change)
    raise ValueError("on second thoughts")


@procedure(partition_by="accounts")
def collect(tx, accounts: list[int], target: int) -> int:
    """Takes one from each of the accounts, and gives it to the first."""
    for account in accounts[1:]:
        tx.accounts.update(account, balance=tx.accounts.get(account).balance - 1)
    first = tx.accounts.get(accounts[0])
    return tx.accounts.update(accounts[0], balance=first.balance + len(accounts) - 1).balance


@procedure(partition_by=("one", "other"))
def note_both(tx, one: int, other: int, text: str) -> None:
    tx.notes.insert(one, text)
    tx.notes.insert(other, text)


@procedure(partition_by=("one", "other"))
def pin(tx, one: int, other: int, place: int, badge: str) -> None:
    """A badge for both."""
    tx.badges.insert(one, place, badge)
    tx.badges.insert(other, place, badge)


@procedure(partition_by="account", read_only=True)
def places_of(tx, account: int, badge: str) -> list[int]:
    return [row.place for row in tx.badges.where(account=account, badge=badge)]


@procedure(read_only=True)
def notes_with(tx, text: str) -> list[int]:
    return sorted(row.author for row in tx.notes.where(text=text))


@procedure
def pay_everyone(tx, amount: int) -> int:
    """Changes rows that it finds by a scan, and sees its own changes in the next one."""
    for row in list(tx.accounts.scan()):
        tx.accounts.update(row.id, balance=row.balance + amount)
    return sum(row.balance for row in tx.accounts.scan())


@procedure(read_only=True)
def between(tx, low: int, high: int) -> list[int]:
    return [row.id for row in tx.accounts.range(low, high)]
'''


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("crossing") / "cluster", SCHEMA, PROCEDURES, partitions=PARTITIONS) as cluster:
        cluster.start()
        yield cluster


@pytest.fixture
def db(cluster: Cluster) -> Iterator[voltpy.Client]:
    with connect(cluster.url, timeout=30.0, retry_s=30.0) as db:
        db.call_many("open_account", [(account, OPENING_BALANCE) for account in range(ACCOUNTS)])
        yield db


@pytest.mark.parametrize("affinity", ["", "?affinity=off"])
def test_a_transfer_between_partitions_moves_the_money(cluster: Cluster, db: voltpy.Client, affinity: str) -> None:
    with connect(cluster.url + affinity, timeout=30.0) as other:
        assert other.call("transfer", LEFT[0], RIGHT[0], 300) == [700, 1300]
        assert other.call("balance", LEFT[0]) == 700
        assert other.call("balance", RIGHT[0]) == 1300
        assert other.call("total") == ACCOUNTS * OPENING_BALANCE


def test_a_transfer_within_a_partition_goes_straight_to_it(db: voltpy.Client) -> None:
    batches = db.status()["coordinator"]["metrics"]["batches"]
    assert db.call("transfer", LEFT[1], LEFT[2], 10) == [990, 1010]
    assert db.status()["coordinator"]["metrics"]["batches"] == batches


def test_an_abort_takes_everything_back(db: voltpy.Client) -> None:
    with pytest.raises(voltpy.Aborted, match="no funds"):
        db.call("transfer", LEFT[3], RIGHT[3], OPENING_BALANCE + 1)
    with pytest.raises(voltpy.ProcedureError, match="on second thoughts") as failed:
        db.call("transfer_and_fail", LEFT[3], RIGHT[3], 5)
    assert failed.value.type_name == "ValueError"
    assert "transfer_and_fail" in failed.value.traceback_text
    assert db.call_many("balance", [(LEFT[3],), (RIGHT[3],)]) == [OPENING_BALANCE, OPENING_BALANCE]


def test_a_participant_that_was_not_declared_is_wrong(cluster: Cluster) -> None:
    # With two partitions every pair that crosses declares both; the keys of one partition declare only that.
    with connect(cluster.url, timeout=30.0) as db, pytest.raises(voltpy.WrongPartition):
        db.call("reach_for", LEFT[0], LEFT[1], RIGHT[0])


def test_many_transfers_at_once_lose_nothing(db: voltpy.Client) -> None:
    random = Random(7)
    rows = [(*random.sample(range(ACCOUNTS), 2), random.randrange(1, 20)) for _ in range(3000)]
    results = db.call_many("transfer", rows, return_exceptions=True)
    assert {type(result) for result in results} <= {list, voltpy.Aborted}
    assert sum(isinstance(result, list) for result in results) > 2000
    expected = [OPENING_BALANCE] * ACCOUNTS
    for (source, target, amount), result in zip(rows, results, strict=True):
        if isinstance(result, list):
            expected[source] -= amount
            expected[target] += amount
    assert db.call_many("balance", [(account,) for account in range(ACCOUNTS)]) == expected
    assert db.call("total") == ACCOUNTS * OPENING_BALANCE


def test_tasks_and_threads_transfer_side_by_side(cluster: Cluster, db: voltpy.Client) -> None:
    async def transfer_all() -> list[list[int]]:
        async with await voltpy.connect_async(cluster.url, timeout=30.0) as other:
            calls = (other.call("transfer", LEFT[i % 20], RIGHT[i % 20], 1) for i in range(200))
            return await asyncio.gather(*calls)

    threads = [
        threading.Thread(target=db.call_many, args=("transfer", [(RIGHT[i], LEFT[i], 1)] * 10)) for i in range(20)
    ]
    for thread in threads:
        thread.start()
    assert len(asyncio.run(transfer_all())) == 200
    for thread in threads:
        thread.join()
    balances = db.call_many("balance", [(account,) for account in range(ACCOUNTS)])
    assert balances == [OPENING_BALANCE] * ACCOUNTS


def test_keys_may_come_as_a_list(db: voltpy.Client) -> None:
    accounts = [LEFT[10], RIGHT[10], RIGHT[11], LEFT[11]]
    assert db.call("collect", accounts, 0) == OPENING_BALANCE + 3
    assert db.call("total") == ACCOUNTS * OPENING_BALANCE
    assert db.call("balance", RIGHT[11]) == OPENING_BALANCE - 1


def test_a_scan_over_all_partitions_sees_the_transactions_own_changes(db: voltpy.Client) -> None:
    assert db.call("pay_everyone", 1) == ACCOUNTS * (OPENING_BALANCE + 1)
    assert db.call("balance", RIGHT[5]) == OPENING_BALANCE + 1
    assert db.call("between", 3, 9) == [3, 4, 5, 6, 7, 8]


def test_rows_with_hidden_keys_are_inserted_in_several_partitions(db: voltpy.Client) -> None:
    db.call("note_both", LEFT[0], RIGHT[0], "hello")
    assert db.call("notes_with", "hello") == sorted([LEFT[0], RIGHT[0]])


def test_frames_that_fill_the_sockets_between_processes_arrive_whole(db: voltpy.Client) -> None:
    """Each call's writes are some of a frame of up to 4 MiB, of which a Unix socket takes a part at a time."""
    texts = [f"{i}" * 800_000 for i in range(8)]
    db.call_many("note_both", [(LEFT[i], RIGHT[i], text) for i, text in enumerate(texts)])
    for i, text in enumerate(texts):
        assert db.call("notes_with", text) == sorted([LEFT[i], RIGHT[i]])


def test_a_unique_index_holds_between_partitions(db: voltpy.Client) -> None:
    pairs = [(LEFT[i % 3], RIGHT[i % 3], i // 3, f"badge {i // 3 % 4}") for i in range(24)]  # each of them twice
    results = db.call_many("pin", pairs, return_exceptions=True)
    assert [type(result) for result in results].count(voltpy.DuplicateKey) == 12
    assert results.count(None) == 12
    for one, other, _, badge in pairs:
        places = [db.call("places_of", account, badge) for account in (one, other)]
        assert len(places[0]) == 1
        assert places[0] == places[1]


def test_a_copied_row_is_written_in_every_partition_or_in_none(db: voltpy.Client) -> None:
    for procedure, args in (("set_rate", ("NOK", 7)), ("set_rate_and_pay", (LEFT[0], "NOK", 8))):
        db.call(procedure, *args)
        seen = [db.call("rate_beside", account, "NOK") for account in (LEFT[0], RIGHT[0])]
        assert seen == [args[-1], args[-1]]


def test_a_directed_call_that_writes_copies_commits_everywhere_at_once(db: voltpy.Client) -> None:
    counts = db.call_everywhere("add_rates", [("SEK", 1), ("DKK", 2)])
    assert len(counts) == PARTITIONS
    assert len(set(counts)) == 1
    with pytest.raises(voltpy.DuplicateKey):
        db.call_everywhere("add_rates", [("ISK", 3), ("SEK", 4)])
    assert [db.call("rate_beside", account, "ISK") for account in (LEFT[0], RIGHT[0])] == [None, None]


def test_single_partition_calls_go_on_without_the_coordinator(cluster: Cluster, db: voltpy.Client) -> None:
    mark = cluster.mark()
    cluster.kill(COORDINATOR, signal.SIGSTOP)
    try:
        assert db.call("balance", LEFT[0]) == OPENING_BALANCE
        db.call_many("open_account", [(account, 5) for account in range(ACCOUNTS, ACCOUNTS + 50)])
    finally:
        cluster.kill(COORDINATOR)
    cluster.wait(happened("serving", COORDINATOR), mark)
    assert db.call("transfer", LEFT[0], RIGHT[0], 1) == [OPENING_BALANCE - 1, OPENING_BALANCE + 1]


def test_the_money_stays_the_same_while_processes_are_killed(tmp_path: Path) -> None:
    seed = 20261127
    with Cluster(tmp_path / "bank", BANK_SCHEMA, BANK_PROCEDURES, partitions=PARTITIONS) as cluster:
        cluster.start()
        bank = Bank(cluster.url, seed)
        bank.open()
        bank.start()
        disturber = Disturber(cluster, Random(seed))
        while sum(disturber.seen.values()) < 8:
            disturber.disturb()
        bank.stop()
        with connect(cluster.url, timeout=30.0, retry_s=30.0) as db:
            bank.check(db.call("total"), db.call_many("balance", [(account,) for account in range(ACCOUNTS)]))
    print(f"seed {seed}: {dict(bank.counts)}, {dict(disturber.seen)}")
    assert bank.violations == []
    assert bank.counts["transfers"] > 0
    assert bank.counts["totals"] > 0
