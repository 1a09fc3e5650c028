from __future__ import annotations

from contextlib import suppress
from random import Random
from typing import Any

import pytest

from voltpy.errors import Aborted, DuplicateKey


@pytest.fixture
def db(open_database: Any) -> Any:
    db = open_database("bank")
    db.call("open_account", 42, "Kari", "Oslo")
    return db


def test_deposits_and_withdrawals_return_the_balance(db: Any) -> None:
    assert db.call("deposit", 42, 100) == 100
    assert db.call("withdraw", 42, 30) == 70
    assert db.call("balance", 42) == 70
    assert db.call("total_deposits") == 70
    assert db.tx.accounts.get(42).city == "Oslo"


def test_more_than_there_is_can_not_be_withdrawn(db: Any) -> None:
    db.call("deposit", 42, 100)
    with pytest.raises(Aborted, match="account 42 holds 100, which is less than 101"):
        db.call("withdraw", 42, 101)
    assert db.call("balance", 42) == 100


@pytest.mark.parametrize("amount", [0, -1])
@pytest.mark.parametrize("name", ["deposit", "withdraw"])
def test_an_amount_is_more_than_nothing(db: Any, name: str, amount: int) -> None:
    with pytest.raises(Aborted, match="more than nothing"):
        db.call(name, 42, amount)


@pytest.mark.parametrize(("name", "arguments"), [("deposit", (1, 5)), ("withdraw", (1, 5)), ("balance", (1,))])
def test_an_account_that_is_not_there_aborts(db: Any, name: str, arguments: tuple[int, ...]) -> None:
    with pytest.raises(Aborted, match="there is no account 1"):
        db.call(name, *arguments)


def test_an_account_number_is_given_once(db: Any) -> None:
    with pytest.raises(DuplicateKey):
        db.call("open_account", 42, "Ola")


def balances(db: Any) -> dict[int, int]:
    return {row.id: row.balance for row in db.tx.accounts.scan()}


@pytest.fixture
def two_accounts(db: Any) -> Any:
    db.call("open_account", 43, "Ola")
    db.call("deposit", 42, 100)
    return db


def test_a_transfer_moves_money_and_makes_none(two_accounts: Any) -> None:
    assert two_accounts.call("transfer", 42, 43, 30) is None
    assert balances(two_accounts) == {42: 70, 43: 30}
    assert two_accounts.call("total") == 100


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((42, 43, 101), "account 42 holds 100, which is less than 101"),
        ((43, 42, 1), "account 43 holds 0, which is less than 1"),
        ((42, 43, 0), "more than nothing"),
        ((42, 43, -5), "more than nothing"),
        ((42, 42, 1), "account 42 can't pay itself"),
        ((42, 7, 1), "there is no account 7"),
        ((7, 42, 1), "there is no account 7"),
    ],
)
def test_a_transfer_that_can_not_be_leaves_everything_as_it_was(
    two_accounts: Any, arguments: tuple[int, int, int], reason: str
) -> None:
    with pytest.raises(Aborted, match=reason):
        two_accounts.call("transfer", *arguments)
    assert balances(two_accounts) == {42: 100, 43: 0}


def test_no_sequence_of_transfers_changes_the_total(two_accounts: Any) -> None:
    random = Random(4)
    for _ in range(200):
        source, target = random.sample([42, 43, 44], 2)
        with suppress(Aborted):
            two_accounts.call("transfer", source, target, random.randint(-5, 60))
        assert min(balances(two_accounts).values()) >= 0
    assert two_accounts.call("total") == 100
