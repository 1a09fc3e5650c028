"""TPC-C on a small population: what each transaction does, and that nothing they do is inconsistent."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pytest

import procedures
from bench.plain_dicts import Transaction
from bench.tpcc import loading
from bench.tpcc.population import LOADED_AT, Population, Scale
from bench.tpcc.terminals import Terminals, is_rolled_back
from procedures import tpcc
from voltpy.errors import Aborted
from voltpy.sql.ddl import parse_schema
from voltpy.testing import Engine

FOLDER = Path(procedures.__file__).parent
SCALE = Scale((1, 2), customers=30, items=100)
TABLES = (
    "warehouse", "district", "customer", "history", "new_order", "orders", "order_line", "item", "stock",
    "customer_by_last", "last_order", "next_delivery",
)  # fmt: skip


@pytest.fixture
def db() -> Any:
    with Engine(FOLDER / "tpcc.sql", FOLDER / "tpcc.py") as engine:
        loading.into_voltpy(engine, Population(SCALE, 1))
        yield engine


@pytest.fixture
def tables(db: Any) -> Any:
    return db._store.by_name


@pytest.fixture(scope="module")
def loaded() -> Any:
    tx = Transaction(parse_schema((FOLDER / "tpcc.sql").read_text()))
    loading.into_dicts(tx, Population(SCALE, 1))
    return tx


@pytest.fixture
def tx(loaded: Any) -> Any:
    """The first rows in plain dicts, which come back after the test."""
    before = {name: dict(getattr(loaded, name).rows) for name in TABLES}
    yield loaded
    for name, rows in before.items():
        getattr(loaded, name).rows.clear()
        getattr(loaded, name).rows.update(rows)


def contents(tables: Any) -> dict[str, list[Any]]:
    return {name: sorted(map(repr, tables[name].scan())) for name in TABLES}


def found(db: Any) -> list[str]:
    return tpcc.inconsistencies(db.call_everywhere("check_consistency"))


def test_the_first_rows_are_consistent_and_as_many_as_specified(db: Any, tables: Any) -> None:
    assert found(db) == []
    counts = {name: tables[name].count() for name in TABLES if name not in ("order_line", "customer_by_last")}
    assert counts == {
        "warehouse": 2, "district": 20, "customer": 600, "history": 600, "new_order": 180, "orders": 600,
        "item": 100, "stock": 200, "last_order": 600, "next_delivery": 20,
    }  # fmt: skip
    assert 600 * 5 < tables["order_line"].count() < 600 * 15


def test_a_new_order_takes_from_stock_and_adds_up(db: Any, tables: Any) -> None:
    stock = {key: tables["stock"].get(key) for key in ((1, 5), (2, 6))}
    w, d, c = tables["warehouse"].get(1), tables["district"].get((1, 3)), tables["customer"].get((1, 3, 7))
    answer = db.call("new_order", 1, 3, 7, [5, 6], [1, 2], [4, 9])

    assert answer["o_id"] == d.d_next_o_id == 31
    assert tables["district"].get((1, 3)).d_next_o_id == 32
    prices = [tables["item"].get(item).i_price for item in (5, 6)]
    total = 4 * prices[0] + 9 * prices[1]
    assert answer["total"] == total * (10_000 - c.c_discount) * (10_000 + w.w_tax + d.d_tax) // 10**8
    assert [line[-1] for line in answer["lines"]] == [4 * prices[0], 9 * prices[1]]

    order = tables["orders"].get((1, 3, 31))
    assert (order.o_c_id, order.o_carrier_id, order.o_ol_cnt, order.o_all_local) == (7, None, 2, False)
    assert tables["new_order"].get((1, 3, 31)) is not None
    line = tables["order_line"].get((1, 3, 31, 2))
    assert (line.ol_i_id, line.ol_supply_w_id, line.ol_quantity, line.ol_delivery_d) == (6, 2, 9, None)
    assert line.ol_dist_info == stock[2, 6].s_dist_03
    for (key, old), quantity, remote in zip(stock.items(), (4, 9), (0, 1), strict=True):
        new = tables["stock"].get(key)
        left = old.s_quantity - quantity
        assert new.s_quantity == (left if left >= 10 else left + 91)
        assert (new.s_ytd, new.s_order_cnt, new.s_remote_cnt) == (quantity, 1, remote)
    assert found(db) == []


def test_an_order_of_an_unused_item_leaves_nothing(db: Any, tables: Any) -> None:
    before = contents(tables)
    with pytest.raises(Aborted, match="Item number is not valid"):
        db.call("new_order", 1, 3, 7, [5, 6, SCALE.items + 1], [1, 2, 1], [4, 9, 1])
    assert contents(tables) == before


@pytest.mark.parametrize("arguments", [(9, 1, 1), (1, 11, 1), (1, 1, 31)])
def test_an_order_of_nobody_aborts(db: Any, arguments: tuple[int, int, int]) -> None:
    with pytest.raises(Aborted, match=r"there is no customer \d+ in district \d+ of warehouse \d"):
        db.call("new_order", *arguments, [1], [1], [1])


def test_a_payment_at_another_warehouse_is_kept_where_it_was_made(db: Any, tables: Any) -> None:
    old = tables["customer"].get((2, 4, 9))
    answer = db.call("payment", 1, 3, 2, 4, 9, 5_00)
    assert answer["c_balance"] == old.c_balance - 5_00
    new = tables["customer"].get((2, 4, 9))
    assert (new.c_ytd_payment, new.c_payment_cnt) == (old.c_ytd_payment + 5_00, 2)
    (kept,) = [row for row in tables["history"].scan() if row.h_date != LOADED_AT]
    assert (kept.h_w_id, kept.h_d_id, kept.h_c_w_id, kept.h_c_d_id, kept.h_c_id) == (1, 3, 2, 4, 9)
    names = tables["warehouse"].get(1).w_name, tables["district"].get((1, 3)).d_name
    assert kept.h_data == "    ".join(names)
    assert found(db) == []


def test_only_bad_credit_is_written_about(db: Any, tables: Any) -> None:
    customers = [row for row in tables["customer"].scan() if row.c_w_id == 1]
    bad, good = (next(row for row in customers if row.c_credit == credit) for credit in ("BC", "GC"))
    for row in (bad, good):
        db.call("payment", 1, 3, 1, row.c_d_id, row.c_id, 5_00)
    about = f"{bad.c_id} {bad.c_d_id} 1 3 1 500 "
    assert tables["customer"].get((1, bad.c_d_id, bad.c_id)).c_data == (about + bad.c_data)[:500]
    assert tables["customer"].get((1, good.c_d_id, good.c_id)).c_data == good.c_data


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_of_namesakes_the_middle_one_by_first_name_pays(voltpy_engine: Any, count: int) -> None:
    """Position n / 2, rounded up, of those in the order of their first names."""
    db = voltpy_engine(FOLDER / "tpcc.sql", FOLDER / "tpcc.py")
    loading.into_voltpy(db, Population(Scale((1,), districts=1, customers=count, items=1), 1))
    tables = db._store.by_name
    namesakes = sorted(tables["customer"].scan(), key=lambda row: row.c_first)
    ids = " ".join(str(row.c_id) for row in namesakes)
    tables["customer_by_last"].insert(1, 1, "SMITH", ids)
    middle = -(-count // 2)
    assert db.call("payment", 1, 1, 1, 1, "SMITH", 1)["c_id"] == namesakes[middle - 1].c_id
    assert db.call("order_status", 1, 1, "SMITH")["c_id"] == namesakes[middle - 1].c_id


def test_a_name_that_nobody_has_aborts(db: Any) -> None:
    with pytest.raises(Aborted, match="nobody in district 3 of warehouse 1 is called NOBODY"):
        db.call("payment", 1, 3, 1, 3, "NOBODY", 1)


def test_the_status_is_that_of_the_latest_order(db: Any) -> None:
    first = db.call("order_status", 1, 3, 7)
    assert first["o_id"] <= 30
    db.call("new_order", 1, 3, 7, [5, 6], [1, 2], [4, 9])
    latest = db.call("order_status", 1, 3, 7)
    assert latest["o_id"] == 31
    assert [(supply, item, quantity) for supply, item, quantity, _, _ in latest["lines"]] == [(1, 5, 4), (2, 6, 9)]
    assert latest["o_carrier_id"] is None


def test_delivery_takes_the_oldest_order_of_each_district(db: Any, tables: Any) -> None:
    first = SCALE.first_undelivered
    buyer = tables["orders"].get((1, 3, first)).o_c_id
    before = tables["customer"].get((1, 3, buyer))
    assert db.call("delivery", 1, 8) == [first] * 10
    lines = [row for row in tables["order_line"].scan() if (row.ol_w_id, row.ol_d_id, row.ol_o_id) == (1, 3, first)]
    assert None not in {row.ol_delivery_d for row in lines}
    assert tables["orders"].get((1, 3, first)).o_carrier_id == 8
    after = tables["customer"].get((1, 3, buyer))
    assert after.c_balance == before.c_balance + sum(row.ol_amount for row in lines)
    assert after.c_delivery_cnt == before.c_delivery_cnt + 1
    assert found(db) == []


def test_a_district_without_waiting_orders_is_skipped(db: Any) -> None:
    waiting = SCALE.customers - SCALE.first_undelivered + 1
    for _ in range(waiting):
        db.call("delivery", 1, 8)
    assert db.call("delivery", 1, 8) == [None] * 10
    db.call("new_order", 1, 3, 7, [5], [1], [4])
    assert db.call("delivery", 1, 8) == [31 if district == 3 else None for district in range(1, 11)]
    assert found(db) == []


def test_stock_level_counts_each_item_of_the_last_orders_once(db: Any, tables: Any) -> None:
    recent = {row.ol_i_id for row in tables["order_line"].scan() if (row.ol_w_id, row.ol_d_id) == (1, 3)
              and row.ol_o_id > SCALE.customers - tpcc.RECENT_ORDERS}  # fmt: skip
    assert db.call("stock_level", 1, 3, 1000) == len(recent)
    assert db.call("stock_level", 1, 3, 50) == sum(tables["stock"].get((1, item)).s_quantity < 50 for item in recent)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_any_mix_of_transactions_leaves_the_tables_consistent(db: Any, seed: int) -> None:
    aborted = 0
    for call in islice(Terminals(SCALE, seed).calls(), 400):
        try:
            db.call(call[0], *call[1])
        except Aborted:
            assert is_rolled_back(call, SCALE), f"seed {seed}: {call}"
            aborted += 1
    assert found(db) == [], f"seed {seed}"
    db.check()
    report = db.call_everywhere("check_consistency")[0]
    assert report["orders"] > 600 + 100
    assert report["payments"] > 600 + 100


@pytest.mark.parametrize(
    ("condition", "table", "key", "changes"),
    [
        (1, "warehouse", 1, {"w_ytd": 1}),
        (2, "district", (1, 3), {"d_next_o_id": 40}),
        (3, "new_order", (1, 3, 25), None),
        (4, "order_line", (1, 3, 30, 1), None),
        (5, "new_order", (1, 3, 22), None),
        (5, "orders", (1, 3, 30), {"o_carrier_id": 1}),
        (6, "orders", (1, 3, 30), {"o_ol_cnt": 99}),
        (7, "order_line", (1, 3, 30, 1), {"ol_delivery_d": LOADED_AT}),
        (8, "warehouse", 2, {"w_ytd": 1}),
        (9, "district", (1, 3), {"d_ytd": 1}),
        (10, "customer", (1, 3, 7), {"c_balance": 1}),
        (10, "customer", (1, 3, 7), {"c_ytd_payment": 0, "c_balance": 0}),
        (12, "customer", (1, 3, 7), {"c_ytd_payment": 1}),
    ],
)
def test_what_contradicts_a_condition_is_found(
    tx: Any, condition: int, table: str, key: Any, changes: dict[str, Any] | None
) -> None:
    if changes is None:
        assert getattr(tx, table).delete(key)
    else:
        getattr(tx, table).update(key, **changes)
    found = tpcc.inconsistencies([tpcc.check_consistency(tx)])
    assert any(what.startswith(f"condition {condition},") for what in found), found


def test_payments_of_other_partitions_customers_are_put_together() -> None:
    """Each partition alone has something unexplained; together it adds up, or the tenth condition is broken."""
    empty: dict[str, Any] = {"found": [], "unexplained": [], "paid_elsewhere": []}
    here, there = empty | {"unexplained": [[1, 3, 7, 500]]}, empty | {"paid_elsewhere": [[1, 3, 7, 500]]}
    assert tpcc.inconsistencies([here, there]) == []
    assert tpcc.inconsistencies([here, empty]) == ["condition 10, customer (1, 3, 7): 500 and 0"]
    assert tpcc.inconsistencies([empty, there]) == ["condition 10, customer (1, 3, 7): 0 and 500"]
