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
