"""Transactions of appends and reads, on lists that live where their numbers' hash slots are.

An operation is (storage, list, value); value 0 reads. What is read is a list of values, an append gives None.

    "row"       a row of text: changed by update
    "elements"  a row an element: appended by inserting a key that was absent; read by range where the list's number is
                even, element by element up to the first absent one where it is odd
    "copies"    a row of text in every partition: any partition reads it, and it changes in all or in none
"""

from __future__ import annotations

import json

from voltpy import procedure

MOST_ELEMENTS = 48

Operations = list[tuple[str, int, int]]


def _values(text: str) -> list[int]:
    return [int(word) for word in text.split()]


def _read(tx, storage: str, number: int) -> list[int]:
    if storage == "elements":
        if number % 2 == 0:
            return [row.value for row in tx.elements.range((number, 0), (number + 1, 0))]
        values: list[int] = []
        while len(values) < MOST_ELEMENTS and (row := tx.elements.get((number, len(values)))) is not None:
            values.append(row.value)
        return values
    row = (tx.lists if storage == "row" else tx.copies).get(number)
    return [] if row is None else _values(row.items)


def _append(tx, storage: str, number: int, value: int) -> None:
    if storage == "elements":
        position = len(_read(tx, storage, number))
        if position == MOST_ELEMENTS:
            tx.abort("full")
        tx.elements.insert(number, position, value)
        return
    table = tx.lists if storage == "row" else tx.copies
    row = table.get(number)
    if row is None:
        table.insert(number, str(value))
    else:
        table.update(number, items=f"{row.items} {value}")


def _run(tx, operations: Operations) -> list[list[int] | None]:
    results: list[list[int] | None] = []
    for storage, number, value in operations:
        if value:
            results.append(_append(tx, storage, number, value))
        else:
            results.append(_read(tx, storage, number))
    return results


@procedure(partition_by="lists")
def transact(tx, lists: list[int], operations: Operations) -> list:
    """In one partition where all the lists are there, else across theirs."""
    return _run(tx, operations)


@procedure(partition_by="lists")
def transact_and_give_up(tx, lists: list[int], operations: Operations) -> list:
    """Says what it has seen, and undoes it."""
    tx.abort(json.dumps(_run(tx, operations)))


@procedure(partition_by="lists", read_only=True)
def look(tx, lists: list[int], operations: Operations) -> list:
    return _run(tx, operations)


@procedure(partition_by="list")
def transact_one(tx, list: int, operations: Operations) -> list:
    """A plain single-partition procedure: always where the list is."""
    return _run(tx, operations)


@procedure(partition_by="list", read_only=True)
def look_at_one(tx, list: int, operations: Operations) -> list:
    return _run(tx, operations)


@procedure
def transact_anywhere(tx, operations: Operations) -> list:
    return _run(tx, operations)


@procedure(read_only=True)
def look_anywhere(tx, operations: Operations) -> list:
    return _run(tx, operations)


@procedure(everywhere=True)
def append_copies(tx, number: int, value: int) -> list[int]:
    """Appends in every partition; what the list was before."""
    before = _read(tx, "copies", number)
    _append(tx, "copies", number, value)
    return before


@procedure(partition_by="account")
def open_account(tx, account: int, balance: int) -> None:
    tx.accounts.upsert(account, balance)


@procedure(partition_by=("source", "target"))
def transfer(tx, source: int, target: int, amount: int) -> list[int]:
    """Moves what there is, or gives up. The balances afterwards."""
    there = tx.accounts.get(source).balance
    if there < amount:
        tx.abort(f"account {source} holds {there}, which is less than {amount}")
    if source == target:
        return [there, there]
    left = tx.accounts.update(source, balance=there - amount).balance
    return [left, tx.accounts.update(target, balance=tx.accounts.get(target).balance + amount).balance]


@procedure(partition_by="accounts", read_only=True)
def total(tx, accounts: list[int]) -> int:
    return sum(tx.accounts.get(account).balance for account in accounts)


@procedure(read_only=True)
def total_of_all(tx) -> int:
    return sum(row.balance for row in tx.accounts.scan())
