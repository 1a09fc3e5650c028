"""Calls that wait, in turns: one of each client, then the next of each. Pure.

Whoever makes one call after another waits for one call of each of the others, however many these have sent. Calls that
have been taken and come to nothing go in front of all: others were let by for their sake, or wait for what they hold.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Generic, Protocol, TypeVar


class OfClient(Protocol):
    @property
    def client_id(self) -> int: ...


Waiting = TypeVar("Waiting", bound=OfClient)


class Turns(Generic[Waiting]):
    """Calls of one client keep their order."""

    def __init__(self) -> None:
        self._first: deque[Waiting] = deque()
        self._waiting: dict[int, deque[Waiting]] = {}  # by client; never an empty one
        self._order: deque[int] = deque()  # of the clients in `_waiting`

    def __bool__(self) -> bool:
        return bool(self._first or self._order)

    def add(self, client_id: int, calls: Iterable[Waiting]) -> None:
        """Calls of this client, at least one, that have come."""
        waiting = self._waiting.get(client_id)
        if waiting is None:
            self._waiting[client_id] = deque(calls)
            self._order.append(client_id)
        else:
            waiting.extend(calls)

    def take(self) -> Waiting:
        """The next one. Raises IndexError where there is none."""
        if self._first:
            return self._first.popleft()
        client_id = self._order.popleft()
        waiting = self._waiting[client_id]
        call = waiting.popleft()
        if waiting:
            self._order.append(client_id)
        else:
            del self._waiting[client_id]
        return call

    def take_some(self, limit: int) -> list[Waiting]:
        """The next ones, so many at most."""
        taken: list[Waiting] = []
        while self and len(taken) < limit:
            taken.append(self.take())
        return taken

    def put_first(self, calls: Iterable[Waiting]) -> None:
        """In front of all others, in their order."""
        self._first.extendleft(reversed(list(calls)))

    def put_back(self, calls: Iterable[Waiting]) -> None:
        """They were taken too early: each is the first of its client's again, and those who were next still are."""
        for call in reversed(list(calls)):
            client_id = call.client_id
            waiting = self._waiting.get(client_id)
            if waiting is None:
                self._waiting[client_id] = deque((call,))
                self._order.appendleft(client_id)
            else:
                waiting.appendleft(call)
