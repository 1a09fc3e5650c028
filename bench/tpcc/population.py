"""The rows that a TPC-C database begins with: clause 4.3.3, scaled down where a test wants it. Pure, from a seed.

Warehouses need not be numbered from 1: which numbers they have decides in which partitions they live. Rows are tuples
in the order of the columns in procedures/tpcc.sql, its three tables in the place of indexes included.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import count
from random import Random
from typing import Any

from msgspec import Struct

from procedures.tpcc import DISTRICTS, ORIGINAL
from voltpy.hash_slot import hash_slot, slot_owners

Row = tuple[Any, ...]

SYLLABLES = ("BAR", "OUGHT", "ABLE", "PRI", "PRES", "ESE", "ANTI", "CALLY", "ATION", "EING")
LAST_NAMES = 1000
FIRST_PAYMENT = 10_00  # cents
DELIVERED_OF_TEN = 7  # 2,100 of 3,000 orders
LOADED_AT = datetime(2024, 1, 1, tzinfo=UTC)
_LETTERS = "".join(Random(0).choices("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", k=65_536))


class Scale(Struct, frozen=True):
    """As many of each as the specification says, unless told otherwise. As many orders a district as customers."""

    warehouses: tuple[int, ...]
    districts: int = DISTRICTS
    customers: int = 3000  # a district
    items: int = 100_000

    @property
    def first_undelivered(self) -> int:
        return self.customers * DELIVERED_OF_TEN // 10 + 1

    @property
    def orders(self) -> int:
        return len(self.warehouses) * self.districts * self.customers


def warehouse_in_each(partitions: int) -> tuple[int, ...]:
    """The smallest numbers with which each partition has one warehouse."""
    owners = slot_owners(partitions)
    found: dict[int, int] = {}
    for warehouse in count(1):
        found.setdefault(owners[hash_slot(warehouse)], warehouse)
        if len(found) == partitions:
            return tuple(sorted(found.values()))
    raise AssertionError("count() ended")


def last_name(number: int) -> str:
    """Clause 4.3.2.3: three syllables, one for each digit of 0 … 999."""
    return SYLLABLES[number // 100] + SYLLABLES[number // 10 % 10] + SYLLABLES[number % 10]


def last_names(scale: Scale) -> int:
    """How many last names there are customers with: all thousand, where there are as many customers."""
    return min(scale.customers, LAST_NAMES)


def nurand(random: Random, a: int, c: int, low: int, high: int) -> int:
    """Clause 2.1.6: a number from low to high, some of which come much more often than others."""
    return ((random.randint(0, a) | random.randint(low, high)) + c) % (high - low + 1) + low


class Population:
    """`tables(warehouse)` makes the rows of one, table by table; `items()` are everybody's."""

    def __init__(self, scale: Scale, seed: int) -> None:
        self.scale = scale
        self._seed = seed
        # Of a run's constant C for last names, clause 2.1.6.1 allows some; the load has its own.
        self._c_last = Random(f"{seed}:c").randint(0, 255)

    def items(self) -> Iterator[Row]:
        random = Random(f"{self._seed}:item")
        for item in range(1, self.scale.items + 1):
            name, data = _text(random, 14, 24), _data(random)
            yield item, random.randint(1, 10_000), name, random.randint(1_00, 100_00), data

    def tables(self, warehouse: int) -> Iterator[tuple[str, Iterator[Row]]]:
        """The warehouse itself comes last: who finds it finds the rest."""
        yield "stock", self._stock(warehouse)
        for district in range(1, self.scale.districts + 1):
            yield from self._district(warehouse, district)
        random = Random(f"{self._seed}:{warehouse}")
        taken = self.scale.districts * self.scale.customers * FIRST_PAYMENT
        yield (
            "warehouse",
            iter([(warehouse, _text(random, 6, 10), *_address(random), random.randint(0, 2000), taken)]),
        )

    def _stock(self, warehouse: int) -> Iterator[Row]:
        random = Random(f"{self._seed}:{warehouse}:stock")
        for item in range(1, self.scale.items + 1):
            texts = [_text(random, 24, 24) for _ in range(10)]
            yield warehouse, item, random.randint(10, 100), *texts, 0, 0, 0, _data(random)

    def _district(self, warehouse: int, district: int) -> Iterator[tuple[str, Iterator[Row]]]:
        scale = self.scale
        customers = list(self._customers(warehouse, district))
        yield "customer", iter(customers)
        # Column 3 is the first name, 5 the last one.
        namesakes: dict[str, list[Row]] = {}
        for customer in sorted(customers, key=lambda row: (row[5], row[3])):
            namesakes.setdefault(customer[5], []).append(customer)
        yield (
            "customer_by_last",
            ((warehouse, district, name, " ".join(str(row[2]) for row in rows)) for name, rows in namesakes.items()),
        )
        random = Random(f"{self._seed}:{warehouse}:{district}")
        yield (
            "history",
            (
                (customer, district, warehouse, district, warehouse, LOADED_AT, FIRST_PAYMENT, _text(random, 12, 24))
                for customer in range(1, scale.customers + 1)
            ),
        )
        buyers = list(range(1, scale.customers + 1))
        random.shuffle(buyers)
        orders: list[Row] = []
        lines: list[Row] = []
        for order, buyer in enumerate(buyers, start=1):
            delivered = order < scale.first_undelivered
            line_count = random.randint(5, 15)
            carrier = random.randint(1, 10) if delivered else None
            orders.append((warehouse, district, order, buyer, LOADED_AT, carrier, line_count, True))
            for number in range(1, line_count + 1):
                item, text = random.randint(1, scale.items), _text(random, 24, 24)
                amount = 0 if delivered else random.randint(1, 9_999_99)
                arrived = LOADED_AT if delivered else None
                lines.append((warehouse, district, order, number, item, warehouse, arrived, 5, amount, text))
        yield "orders", iter(orders)
        yield "order_line", iter(lines)
        yield "last_order", ((warehouse, district, row[3], row[2]) for row in orders)
        yield "new_order", ((warehouse, district, row[2]) for row in orders if row[2] >= scale.first_undelivered)
        yield "next_delivery", iter([(warehouse, district, scale.first_undelivered)])
        address, tax, taken = _address(random), random.randint(0, 2000), scale.customers * FIRST_PAYMENT
        name = _text(random, 6, 10)
        yield "district", iter([(warehouse, district, name, *address, tax, taken, scale.customers + 1)])

    def _customers(self, warehouse: int, district: int) -> Iterator[Row]:
        random = Random(f"{self._seed}:{warehouse}:{district}:customer")
        names = last_names(self.scale)
        for number in range(1, self.scale.customers + 1):
            name = number - 1 if number <= names else nurand(random, 255, self._c_last, 0, names - 1)
            yield (
                warehouse, district, number, _text(random, 8, 16), "OE", last_name(name), *_address(random),
                _digits(random, 16), LOADED_AT, "BC" if random.random() < 0.1 else "GC", 50_000_00,
                random.randint(0, 5000), -FIRST_PAYMENT, FIRST_PAYMENT, 1, 0, _text(random, 300, 500),
            )  # fmt: skip


def _text(random: Random, least: int, most: int) -> str:
    length = least if least == most else least + int(random.random() * (most - least + 1))
    begin = int(random.random() * (len(_LETTERS) - most))
    return _LETTERS[begin : begin + length]


def _digits(random: Random, length: int) -> str:
    return f"{int(random.random() * 10**length):0{length}d}"


def _data(random: Random) -> str:
    """Clause 4.3.3.1: 26 to 50 characters, in one row of ten with ORIGINAL somewhere in them."""
    text = _text(random, 26, 50)
    if random.random() >= 0.1:
        return text
    at = random.randint(0, len(text) - len(ORIGINAL))
    return text[:at] + ORIGINAL + text[at + len(ORIGINAL) :]


def _address(random: Random) -> tuple[str, ...]:
    """Two lines of street, city, state, zip code."""
    street = (_text(random, 10, 20), _text(random, 10, 20))
    return *street, _text(random, 10, 20), _text(random, 2, 2).upper(), _digits(random, 4) + "11111"
