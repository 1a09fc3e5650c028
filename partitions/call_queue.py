"""Calls that have come and wait for their batch, the client first that has had least.

Start-time fair queueing (Goyal, Vin, Cheng 1996): a group of calls has a *tag*, what its client had cost when it came,
and the group with the smallest tag goes first. A client that was silent begins at the tag of whatever went last: it has
no credit for its silence, and goes before all who have had more since. So however many clients flood, and with
whatever, the calls of one that asks now and then are in the next batch. Calls of one client keep their order.

Costs are in bytes: those of arguments, for each call as many as can be moved while one runs, and what the client's
calls of that procedure have cost beyond that the last time: the bytes of large results, and for runs that take long as
many as a batch has, BATCH_BYTES for BATCH_S.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from heapq import heappop, heappush
from typing import Generic, TypeVar

from voltpy import arguments
from voltpy.errors import ProtocolError
from voltpy.messages import CallGroup
from voltpy.wire import joined

CALL_COST_BYTES = 4096
BATCH_BYTES = 2048 * CALL_COST_BYTES  # 2,048 small calls, or fewer large ones
BATCH_S = 0.1  # that a batch runs, at least where others wait for the next one
CLIENTS_REMEMBERED = 4096  # that have nothing here, and have had more than others
GUESSES = 4096

Request = TypeVar("Request")


class CallQueue(Generic[Request]):
    """`calls` and `held_bytes`, of arguments, wait.

    `heavy_bytes`: what a client's call of a procedure has cost of late beyond others; only of those that have.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.held_bytes = 0
        self.heavy_bytes: dict[tuple[int, str], int] = {}
        self._waiting: dict[int, deque[tuple[Request, int, int, int]]] = {}  # by client: see `add`
        self._order: list[tuple[int, int, int]] = []  # a heap: (tag of a client's first group, order, client)
        self._added = 0
        self._now = 0  # the tag of what went last
        self._tags: dict[int, int] = {}  # what clients have cost, where that is more than `_now`

    def __bool__(self) -> bool:
        return bool(self._order)

    def has(self, client_id: int) -> bool:
        """Whether calls of this client wait."""
        return client_id in self._waiting

    def add(self, client_id: int, procedure: str, request: Request, calls: int, held_bytes: int) -> None:
        """`held_bytes`: what this request keeps in memory."""
        cost_bytes = held_bytes + calls * (CALL_COST_BYTES + self.heavy_bytes.get((client_id, procedure), 0))
        waiting = self._waiting.get(client_id)
        if waiting is None:
            self._waiting[client_id] = deque([(request, calls, held_bytes, cost_bytes)])
            self._put(client_id, max(self._tags.pop(client_id, 0), self._now))
        else:
            waiting.append((request, calls, held_bytes, cost_bytes))
        self.calls += calls
        self.held_bytes += held_bytes

    def take(self, most_bytes: float) -> Iterator[Request]:
        """The next ones, until they cost so much. Whoever ends it earlier has taken those that it was given.

        Nothing may be added meanwhile.
        """
        cost_bytes = 0
        while self._order and cost_bytes < most_bytes:
            tag, _, client_id = heappop(self._order)
            self._now = tag
            waiting = self._waiting[client_id]
            request, calls, held_bytes, cost = waiting.popleft()
            cost_bytes += cost
            self.calls -= calls
            self.held_bytes -= held_bytes
            if waiting:
                self._put(client_id, tag + cost)
            else:
                del self._waiting[client_id]
                self._tags[client_id] = tag + cost
            if not self._order:
                self._now = 0
                self._tags.clear()
            elif len(self._tags) > CLIENTS_REMEMBERED:
                self._tags = {client_id: tag for client_id, tag in self._tags.items() if tag > self._now}
            yield request

    def pieces(self, group: CallGroup, most_bytes: int) -> list[CallGroup]:
        """The same calls, in groups that cost about so much if each costs what its client's last ones did."""
        size = self.heavy_bytes.get((group.client_id, group.procedure), 0)
        if size * len(group.numbers) <= most_bytes:
            return [group]
        try:
            split = arguments.split(group)
        except ProtocolError:
            return [group]  # it will be refused
        length = max(most_bytes // size, 1)
        return [
            CallGroup(
                group.client_id,
                group.procedure,
                group.partition,
                group.incarnation,
                group.numbers[at : at + length],
                group.slots[at : at + length],
                joined([bytes(raw) for _, raw in split[at : at + length]]),
                group.retry_floor,
            )
            for at in range(0, len(split), length)
        ]

    def ran(self, group: CallGroup, large_bytes: int, took_s: float) -> None:
        """Its large results took so many bytes together, and its runs so long: the next ones may do so too."""
        key = group.client_id, group.procedure
        before = self.heavy_bytes.get(key, 0)
        if before or took_s > BATCH_S:
            large_bytes += int(took_s / BATCH_S * BATCH_BYTES)
        size = max(large_bytes // max(len(group.numbers), 1), before // 2)
        if size >= CALL_COST_BYTES:
            if len(self.heavy_bytes) >= GUESSES:
                self.heavy_bytes.clear()
            self.heavy_bytes[key] = size
        else:
            self.heavy_bytes.pop(key, None)

    def _put(self, client_id: int, tag: int) -> None:
        self._added += 1
        heappush(self._order, (tag, self._added, client_id))
