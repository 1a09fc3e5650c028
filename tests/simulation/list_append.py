"""Transactions of appends and reads, on lists that live where their numbers' hash slots are.

An operation is (storage, list, value); value 0 reads. What is read is a list of values, an append gives None.

    "row"       a row of text: changed by update
    "elements"  a row an element: appended by inserting a key that was absent; read by range where the list's number is
                even, element by element up to the first absent one where it is odd, or where an odd value is appended
    "copies"    a row of text in every partition: any partition reads it, and it changes in all or in none
    "places"    a row an element, in a place of its own by a unique index, and only that index is asked: appended by
                trying one place after another, an append says in which; what is read is how many places are taken
    "placed"    the same lists, read row by row

Where the schema changes, lists in elements are read in more ways, each of which may be there or not, and tables come:

    "where"     by an index, if there is one
    "select"    the same by a statement
    "view7"     the number, the sum, the least and the largest of the elements, from the view v7; None where it is not
    "t7"        a row of text in the table t7
    "columns"   the columns that the row in lists has got, and what is in them: see `_write`

The lists in places are short ones: their storage ends with a number, "places3", and with their own they are a list.
"""

from __future__ import annotations

import json
from contextlib import suppress

from voltpy import DuplicateKey, procedure
from voltpy.errors import SchemaError, SqlError, WrongPartition

MOST_ELEMENTS = 48
MOST_PLACES = 6
BALLAST = 1000  # lists with numbers from here on
BALLAST_ROWS, BALLAST_CHARACTERS = 8, 3000
WILDERNESS = 1_000_000  # no list with such a number is there
OVERFILLED_ROWS = 16

Operations = list[tuple[str, int, int]]


def _values(text: str) -> list[int]:
    return [int(word) for word in text.split()]


def _take_place(tx, chapter: int, number: int, id: int) -> int:
    """Puts a row into the first place that is free."""
    for place in range(MOST_PLACES):
        try:
            tx.places.insert(number, id, chapter * MOST_PLACES + place)
        except DuplicateKey:
            continue
        return place
    tx.abort("full")


def _places_taken(tx, chapter: int, number: int) -> int:
    place = _take_place(tx, chapter, number, 0)
    tx.places.delete((number, 0))
    return place


def _placed(tx, chapter: int, number: int) -> list[int]:
    rows = sorted((row.place, row.id) for row in tx.places.where(list=number) if row.place // MOST_PLACES == chapter)
    if [place % MOST_PLACES for place, _ in rows] != list(range(len(rows))):
        tx.abort(f"not one row a place: {rows}")
    return [id for _, id in rows]


def _elements_by_key(tx, number: int) -> list[int]:
    values: list[int] = []
    while len(values) < MOST_ELEMENTS and (row := tx.elements.get((number, len(values)))) is not None:
        values.append(row.value)
    return values


def _in_view(tx, name: str, number: int) -> list[int] | None:
    try:
        if number % 2:
            row = getattr(tx, name).get(number)
            return [0, 0, 0, 0] if row is None else [row.n, row.total, row.least, row.most]
    except (AttributeError, SchemaError):  # it is not there, or this call crosses partitions
        pass
    try:
        rows = tx.execute(f"SELECT n, total, least, most FROM {name} WHERE list = ?", [number]).rows
    except SqlError:
        return None
    return list(rows[0]) if rows else [0, 0, 0, 0]


def _added(row) -> list[str]:
    """The columns that were not there in the beginning: c1, c2, …"""
    return [name for name in row.__struct_fields__ if name[0] == "c" and name[1:].isdigit()]


def _columns(tx, number: int) -> list | None:
    """The last item of the row, how many there are, and of each added column its number and what is in it."""
    row = tx.lists.get(number)
    if row is None:
        return None
    values = _values(row.items)
    return [values[-1], len(values), *([int(name[1:]), getattr(row, name)] for name in _added(row))]


def _write(table, row, number: int, value: int) -> None:
    """The value goes behind the others, and into every column that the row has got."""
    if row is None:
        table.insert(number, str(value))
    else:
        table.update(number, items=f"{row.items} {value}", **dict.fromkeys(_added(row), value))


def _read(tx, storage: str, number: int) -> list[int] | int:
    if storage[:6] == "places":
        return _places_taken(tx, int(storage[6:]), number)
    if storage[:6] == "placed":
        return _placed(tx, int(storage[6:]), number)
    if storage == "elements":
        if number % 2 == 0:
            return [row.value for row in tx.elements.range((number, 0), (number + 1, 0))]
        return _elements_by_key(tx, number)
    if storage == "where":
        return [row.value for row in sorted(tx.elements.where(list=number), key=lambda row: row.position)]
    if storage == "select":
        rows = tx.execute("SELECT position, value FROM elements WHERE list = ? AND value > 0", [number]).rows
        return [value for _, value in sorted(rows)]
    if storage[:4] == "view":
        return _in_view(tx, f"v{storage[4:]}", number)
    if storage == "columns":
        return _columns(tx, number)
    row = _table(tx, storage).get(number)
    return [] if row is None else _values(row.items)


def _table(tx, storage: str):
    """Of lists that have a row each."""
    return tx.lists if storage == "row" else tx.copies if storage == "copies" else getattr(tx, storage)


def _append(tx, storage: str, number: int, value: int) -> int | None:
    if storage[:6] == "places":
        return _take_place(tx, int(storage[6:]), number, value)
    if storage == "elements":
        position = len(_elements_by_key(tx, number) if value % 2 else _read(tx, storage, number))
        if position == MOST_ELEMENTS:
            tx.abort("full")
        tx.elements.insert(number, position, value)
        return None
    table = _table(tx, storage)
    _write(table, table.get(number), number, value)
    return None


def _run(tx, operations: Operations) -> list[list[int] | int | None]:
    results: list[list[int] | int | None] = []
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


@procedure(partition_by="lists", read_only=True)
def look_along(tx, lists: list[int]) -> list:
    """What it reads of each list in elements depends on what it has read of the same list in a row."""
    results: list[list[int] | None] = []
    for number in lists:
        values = _read(tx, "row", number)
        last = values[-1] if values else 0
        results += [values, _read(tx, "elements", number) if last % 3 else None]
    return results


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
def append_copies(tx, number: int, value: int) -> list:
    """Appends in every partition; what the list was before, and the lists in rows that are here."""
    before = _read(tx, "copies", number)
    _append(tx, "copies", number, value)
    return [before, [[row.id, _values(row.items)] for row in tx.lists.scan() if row.id < BALLAST]]


@procedure(partition_by="list")
def fill(tx, list: int, elements: int) -> None:
    """Lists and accounts that nobody asks for: a list of so many elements, long rows, and accounts without money.

    Indexes and views take more than one step to build where these are.
    """
    for number in range(BALLAST_ROWS):
        with suppress(WrongPartition):
            tx.lists.insert(list * BALLAST_ROWS + number, "0" * BALLAST_CHARACTERS)
    for position in range(elements):
        tx.elements.insert(list, position, position + 1)
        with suppress(WrongPartition):
            tx.accounts.insert(list * elements + position, 0)


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


@procedure
def wander(tx, start: int, steps: int) -> int:
    """Where it goes next follows from the row before; none of them is there. Where it came to."""
    at = start
    for _ in range(steps):
        row = tx.lists.get(WILDERNESS + at)
        at = (at * 31 + (17 if row is None else 18)) % 100_003
    return at


@procedure
def overfill(tx) -> None:
    """More than one batch may change in one partition."""
    for number in range(OVERFILLED_ROWS):
        tx.lists.upsert(WILDERNESS + number, "0" * BALLAST_CHARACTERS)


@procedure(partition_by="account", read_only=True)
def total_here(tx, account: int) -> int:
    """Of the accounts that are in the same partition: it reads the table, not by key."""
    return sum(row.balance for row in tx.accounts.scan())
