"""The orders of the coordinator that have come and not been obeyed, and what the first of them waits for.

    the first order  is due ── is obeyed: `done` ──► gone; the one behind it is due
                        │
                        │ misses pages or plans: `wait_for`
                        ▼
                     waits, and so do those behind it ── the last of them has arrived ──► is due again

An order that has waited so PATIENCE times waits no more (`is_patient` is false): what it misses then is brought here
and now, since pages that came may have left again before the last one did. Keys that are lent are never waited for:
they come back by an order, and orders don't pass one another.

Pure: what an order does is partitions.participant's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from voltpy.messages import Decide, Order, Read, Recall, Release, RunDirected
from voltpy.not_here import PLAN, Miss

PATIENCE = 3  # times that an order waits for cold pages before it waits for each here and now


class OrderQueue:
    """Whoever obeys the `first`, when it `is_due`, says what became of it: `done`, or `wait_for`."""

    __slots__ = ("_attempts", "_awaited", "_missed_pages", "_missed_plans", "_orders")

    def __init__(self) -> None:
        self._orders: deque[Order] = deque()
        self._attempts = 0  # at the first of them
        self._awaited: set[Miss] = set()  # pages that it needs, and plans
        self._missed_pages: list[int] = []  # since `missed_pages` was asked
        self._missed_plans: list[str] = []  # since `missed_plans` was asked

    def extend(self, orders: Iterable[Order]) -> None:
        self._orders.extend(orders)

    def clear(self) -> None:
        """Nobody waits for any of them."""
        self._orders.clear()
        self._attempts = 0
        self._awaited.clear()

    @property
    def is_due(self) -> bool:
        """Whether there is an order, and nothing that it waits for is still to come."""
        return bool(self._orders) and not self._awaited

    @property
    def first(self) -> Order:
        return self._orders[0]

    @property
    def is_patient(self) -> bool:
        """Whether the first one may wait for what it misses."""
        return self._attempts < PATIENCE

    @property
    def yields(self) -> bool:
        """Whether calls that are ready run before the next order: it may take what they have been waiting for."""
        return bool(self._orders) and not isinstance(self._orders[0], Decide | Release | Recall)

    @property
    def runs_a_body(self) -> bool:
        """Whether the next order runs a procedure or a statement, which may have to be ended."""
        if not self._orders:
            return False
        order = self._orders[0]
        return isinstance(order, RunDirected) or (isinstance(order, Read) and bool(order.fragments))

    def done(self) -> None:
        """The first one has been obeyed."""
        self._orders.popleft()
        self._attempts = 0

    def wait_for(self, missed: Iterable[Miss]) -> None:
        """The first one has missed this: it is due again when all of it that may be awaited has arrived."""
        self._awaited = {miss for miss in missed if may_be_awaited(miss)}
        self._missed_pages.extend(miss for miss in self._awaited if isinstance(miss, int))
        self._missed_plans.extend(miss[1] for miss in self._awaited if not isinstance(miss, int))
        self._attempts += 1

    # What is waited for.

    def missed_pages(self) -> list[int]:
        """The pages that orders wait for, since the last time."""
        missed, self._missed_pages = self._missed_pages, []
        return missed

    def missed_plans(self) -> list[str]:
        """The statements whose plans orders wait for, since the last time."""
        missed, self._missed_plans = self._missed_plans, []
        return missed

    def pages_arrived(self, pages: list[int]) -> None:
        """These are in memory."""
        if self._awaited:
            self._awaited.difference_update(pages)

    def plan_arrived(self, text: str) -> None:
        self._awaited.discard((PLAN, text))

    def is_awaited(self, page: int) -> bool:
        return page in self._awaited


def may_be_awaited(miss: Miss) -> bool:
    """Whether an order waits for it: pages and plans come, keys come back by an order, and orders don't pass."""
    return isinstance(miss, int) or miss[0] == PLAN
