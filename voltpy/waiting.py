"""Calls that threads wait for: what each sleeps on, and how it is woken."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import Any

from voltpy.calls import Command, Everywhere, Lookup, Pending
from voltpy.errors import Error


class WaitingCall(Pending):
    """A call whose thread waits for it; `lock` is what it sleeps on when another thread polls."""

    __slots__ = ("lock",)

    def __init__(self) -> None:
        super().__init__()
        self.lock: threading.Lock | None = None


class WaitingEverywhere(Everywhere):
    __slots__ = ("lock",)

    def __init__(self, *, returns_errors: bool) -> None:
        super().__init__(returns_errors=returns_errors)
        self.lock: threading.Lock | None = None


class WaitingLookup(Lookup):
    __slots__ = ("lock",)

    def __init__(self) -> None:
        super().__init__()
        self.lock: threading.Lock | None = None


class WaitingCommand(Command):
    __slots__ = ("lock",)

    def __init__(self) -> None:
        super().__init__()
        self.lock: threading.Lock | None = None


Waiting = WaitingCall | WaitingEverywhere | WaitingLookup | WaitingCommand


class SubmittedCall(Pending):
    """A call that has a future."""

    __slots__ = ("future",)

    def __init__(self) -> None:
        super().__init__()
        self.future: Future[Any] = Future()

    def begin(self) -> bool:
        # A frame that could not be sent is begun twice.
        return self.future.running() or self.future.set_running_or_notify_cancel()


def deliver(settled: list[Pending]) -> None:
    """Wakes those who wait; a second time does no harm. Not under the mutex: a future's callbacks may call."""
    for call in settled:
        if isinstance(call, SubmittedCall):
            future = call.future
            if future.done():
                continue
            if call.error is None:
                future.set_result(call.value)
            else:
                _set_error(future, call.error)
        else:
            waiting: Any = call
            if waiting.lock is not None:
                wake(waiting.lock)


def wake(lock: threading.Lock) -> None:
    """Whoever sleeps on it, unless he is awake: then he has it, and needs it no more."""
    if lock.locked():
        lock.release()


def _set_error(future: Future[Any], error: Error) -> None:
    if future.running() or future.set_running_or_notify_cancel():
        future.set_exception(error)


def locked() -> threading.Lock:
    lock = threading.Lock()
    lock.acquire()
    return lock
