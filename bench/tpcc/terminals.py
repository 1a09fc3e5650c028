"""What the terminals of TPC-C ask for: its five transactions in the specified mix, without thinking in between. Pure.

Clause 5.2.3 wants at least 43 % payments and 4 % of each of the last three. As a deck of 23 cards is dealt (5.2.4.2),
they come to 43.5 % and 4.3 %, and 43.5 % remain for new orders.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from bench.tpcc.population import Scale, last_name, last_names, nurand
from bench.workload import Call

DECK = ("new_order",) * 10 + ("payment",) * 10 + ("order_status", "delivery", "stock_level")
ROLLED_BACK_PERCENT = 1  # of the new orders, clause 2.4.1.4
REMOTE_LINE_PERCENT = 1  # of the order lines, clause 2.4.1.5
REMOTE_PAYMENT_PERCENT = 15  # clause 2.5.1.2
BY_LAST_NAME_PERCENT = 60  # of the customers who pay or ask, clauses 2.5.1.2 and 2.6.1.2


class Terminals:
    """An endless stream of calls, from a seed. A card deck for all terminals; each call picks its warehouse."""

    def __init__(self, scale: Scale, seed: int) -> None:
        self._scale = scale
        self._random = random = Random(f"{seed}:terminals")
        self._c_last = random.randint(0, 255)
        self._c_customer = random.randint(0, 1023)
        self._c_item = random.randint(0, 8191)
        self._make = {
            "new_order": self._new_order,
            "payment": self._payment,
            "order_status": self._order_status,
            "delivery": self._delivery,
            "stock_level": self._stock_level,
        }

    def calls(self) -> Iterator[Call]:
        deck = list(DECK)
        while True:
            self._random.shuffle(deck)
            for name in deck:
                yield name, self._make[name]()

    def _new_order(self) -> tuple[object, ...]:
        random, scale = self._random, self._scale
        home = random.choice(scale.warehouses)
        count = random.randint(5, 15)
        items = [nurand(random, 8191, self._c_item, 1, scale.items) for _ in range(count)]
        if self._happens(ROLLED_BACK_PERCENT):
            items[-1] = scale.items + 1
        supply = [self._other(home) if self._happens(REMOTE_LINE_PERCENT) else home for _ in range(count)]
        quantities = [random.randint(1, 10) for _ in range(count)]
        return home, self._district(), self._number(), items, supply, quantities

    def _payment(self) -> tuple[object, ...]:
        home = self._random.choice(self._scale.warehouses)
        district = paying_district = self._district()
        paying = home
        if self._happens(REMOTE_PAYMENT_PERCENT) and len(self._scale.warehouses) > 1:
            paying, paying_district = self._other(home), self._district()
        return home, district, paying, paying_district, self._customer(), self._random.randint(1_00, 5_000_00)

    def _order_status(self) -> tuple[object, ...]:
        return self._random.choice(self._scale.warehouses), self._district(), self._customer()

    def _delivery(self) -> tuple[object, ...]:
        return self._random.choice(self._scale.warehouses), self._random.randint(1, 10)

    def _stock_level(self) -> tuple[object, ...]:
        return self._random.choice(self._scale.warehouses), self._district(), self._random.randint(10, 20)

    def _happens(self, percent: int) -> bool:
        return self._random.random() * 100 < percent

    def _other(self, home: int) -> int:
        """Another warehouse, each as likely; the same where it is the only one."""
        others = [warehouse for warehouse in self._scale.warehouses if warehouse != home]
        return self._random.choice(others) if others else home

    def _district(self) -> int:
        return self._random.randint(1, self._scale.districts)

    def _number(self) -> int:
        return nurand(self._random, 1023, self._c_customer, 1, self._scale.customers)

    def _customer(self) -> int | str:
        if self._happens(BY_LAST_NAME_PERCENT):
            return last_name(nurand(self._random, 255, self._c_last, 0, last_names(self._scale) - 1))
        return self._number()


def is_rolled_back(call: Call, scale: Scale) -> bool:
    """Whether this is a new order with an item that there is none of."""
    name, arguments = call
    return name == "new_order" and arguments[3][-1] > scale.items
