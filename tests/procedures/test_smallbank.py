from __future__ import annotations

from typing import Any

import pytest

from procedures.smallbank import OVERDRAFT_FEE
from voltpy.errors import Aborted, DuplicateKey


@pytest.fixture
def db(open_database: Any) -> Any:
    db = open_database("smallbank")
    db.call("open_customer", 1, "Ada", 1000, 200)
    return db


def test_balance_is_savings_and_checking_together(db: Any) -> None:
    assert db.call("balance", 1) == 1200


def test_deposit_checking_adds_to_checking(db: Any) -> None:
    assert db.call("deposit_checking", 1, 50) == 250
    assert db.call("balance", 1) == 1250
    with pytest.raises(Aborted, match="not negative"):
        db.call("deposit_checking", 1, -1)


def test_savings_never_go_below_zero(db: Any) -> None:
    assert db.call("transact_savings", 1, -1000) == 0
    with pytest.raises(Aborted, match="do not cover it"):
        db.call("transact_savings", 1, -1)
    assert db.call("transact_savings", 1, 7) == 7


def test_a_check_within_the_total_may_overdraw_checking_for_free(db: Any) -> None:
    assert db.call("write_check", 1, 1200) == -1000
    assert db.call("balance", 1) == 0


def test_a_check_beyond_the_total_costs_a_fee(db: Any) -> None:
    assert db.call("write_check", 1, 1201) == 200 - 1201 - OVERDRAFT_FEE


def test_a_customer_is_loaded_once(db: Any) -> None:
    with pytest.raises(DuplicateKey):
        db.call("open_customer", 1, "Ada", 0, 0)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("balance", ()), ("deposit_checking", (1,)), ("transact_savings", (1,)), ("write_check", (1,))],
)
def test_an_unknown_customer_aborts(db: Any, name: str, arguments: tuple[int, ...]) -> None:
    with pytest.raises(Aborted, match="there is no customer 2"):
        db.call(name, 2, *arguments)


@pytest.fixture
def two_customers(db: Any) -> Any:
    db.call("open_customer", 2, "Grace", 10, 20)
    return db


def test_amalgamate_leaves_one_customer_with_nothing_and_the_other_with_all(two_customers: Any) -> None:
    assert two_customers.call("amalgamate", 1, 2) == 20 + 1000 + 200
    assert two_customers.call("balance", 1) == 0
    assert two_customers.call("balance", 2) == 10 + 20 + 1200


def test_amalgamate_moves_a_debt_too(two_customers: Any) -> None:
    two_customers.call("write_check", 1, 1500)
    assert two_customers.call("amalgamate", 1, 2) == 20 + 1000 + (200 - 1500 - OVERDRAFT_FEE)


def test_a_payment_goes_from_checking_to_checking(two_customers: Any) -> None:
    assert two_customers.call("send_payment", 1, 2, 200) == 0
    assert two_customers.tx.checking.get(2).balance == 220
    assert two_customers.tx.savings.get(1).balance == 1000


@pytest.mark.parametrize(
    ("name", "arguments", "reason"),
    [
        ("send_payment", (1, 2, 201), "the checking of customer 1 does not cover it"),
        ("send_payment", (1, 2, -1), "not negative"),
        ("send_payment", (1, 1, 1), "can't pay themself"),
        ("send_payment", (1, 3, 1), "there is no customer 3"),
        ("send_payment", (3, 1, 1), "there is no customer 3"),
        ("amalgamate", (1, 1), "has that already"),
        ("amalgamate", (1, 3), "there is no customer 3"),
        ("amalgamate", (3, 1), "there is no customer 3"),
    ],
)
def test_what_can_not_be_between_two_customers_changes_nothing(
    two_customers: Any, name: str, arguments: tuple[int, ...], reason: str
) -> None:
    with pytest.raises(Aborted, match=reason):
        two_customers.call(name, *arguments)
    assert (two_customers.call("balance", 1), two_customers.call("balance", 2)) == (1200, 30)
