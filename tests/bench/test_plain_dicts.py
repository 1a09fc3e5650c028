from __future__ import annotations

from datetime import UTC
from typing import Any

import pytest

from bench.plain_dicts import Transaction
from voltpy.errors import Aborted, DuplicateKey
from voltpy.sql.ddl import parse_schema

SCHEMA = parse_schema("""
    CREATE TABLE stock (shop INT, item STRING, pieces INT NOT NULL DEFAULT 5, note STRING, PRIMARY KEY (shop, item));
    PARTITION TABLE stock ON COLUMN shop;
    CREATE TABLE sales (shop INT NOT NULL, item STRING NOT NULL);
    PARTITION TABLE sales ON COLUMN shop;
""")


@pytest.fixture
def tx() -> Any:
    return Transaction(SCHEMA)


def test_rows_are_found_by_their_composite_key(tx: Any) -> None:
    row = tx.stock.insert(1, "nail")
    assert (row.shop, row.item, row.pieces, row.note) == (1, "nail", 5, None)
    assert tx.stock.get((1, "nail")) is row
    assert tx.stock.get((2, "nail")) is None
    with pytest.raises(DuplicateKey, match=r"table stock: a row with key \(1, 'nail'\) exists"):
        tx.stock.insert(shop=1, item="nail", pieces=7)


def test_changes_make_new_rows(tx: Any) -> None:
    old = tx.stock.insert(1, "nail", 3)
    assert tx.stock.update((1, "nail"), pieces=2).pieces == tx.stock.get((1, "nail")).pieces == 2
    assert old.pieces == 3
    assert tx.stock.upsert(1, "nail", note="new").pieces == 5
    assert [tx.stock.delete((1, "nail")), tx.stock.delete((1, "nail"))] == [True, False]
    with pytest.raises(KeyError):
        tx.stock.update((1, "nail"), pieces=1)
    with pytest.raises(AttributeError):
        old.pieces = 4


def test_rows_are_found_by_equality_and_by_range(tx: Any) -> None:
    for shop, item in [(2, "b"), (1, "a"), (3, "c"), (1, "b")]:
        tx.stock.insert(shop, item)
    assert {row.shop for row in tx.stock.where(item="b")} == {1, 2}
    assert [row.item for row in tx.stock.where(shop=1, item="a")] == ["a"]
    assert [(row.shop, row.item) for row in tx.stock.range((1, "b"), (3, "c"))] == [(1, "b"), (2, "b")]
    assert len(list(tx.stock.scan())) == tx.stock.count() == 4


def test_a_table_without_key_numbers_its_rows(tx: Any) -> None:
    assert [tx.sales.insert(1, "nail").rowid, tx.sales.insert(shop=1, item="nail").rowid] == [1, 2]
    assert tx.sales.get(2).item == "nail"


def test_abort_and_generated_values(tx: Any) -> None:
    with pytest.raises(Aborted, match="no"):
        tx.abort("no")
    assert tx.now().tzinfo is UTC
    assert tx.unique_id() != tx.unique_id()
    assert tx.uuid().version == 4
    assert 0 <= tx.random.random() < 1
    with pytest.raises(AttributeError, match="tx has no table or method 'stok'"):
        tx.stok.get(1)
