"""Deals calls out to several sessions of a peer; a call that could not be serialized is dealt again."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from bench.workload import Call, CallStream


class Dealer:
    """What goes to which session next: calls that are made again first."""

    def __init__(self, sessions: Sequence[object], stream: CallStream, *, by_home: bool) -> None:
        self._stream = stream
        self._numbers: dict[Any, int] = {}  # of the homes, as they come
        self._by_home = by_home
        shared: deque[Call] = deque()
        self._waiting = [deque[Call]() if by_home else shared for _ in sessions]

    def put_back(self, session: int, calls: Sequence[Call]) -> None:
        self._waiting[session].extendleft(reversed(calls))

    def next(self, session: int, open_to_new: bool) -> Call | None:
        """None: there is nothing to do for it now."""
        waiting = self._waiting[session]
        while not waiting and open_to_new and (calls := self._stream.take(1)):
            self._waiting[self._session_of(calls[0]) if self._by_home else session].append(calls[0])
        return waiting.popleft() if waiting else None

    def is_empty(self) -> bool:
        return not any(self._waiting)

    def _session_of(self, call: Call) -> int:
        return self._numbers.setdefault(call[1][0], len(self._numbers)) % len(self._waiting)
