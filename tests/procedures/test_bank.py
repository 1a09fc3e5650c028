from __future__ import annotations

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
