"""How calls end: with a value or an error, once. Rows of a batch end in it, single calls wait here for the shell."""

from __future__ import annotations

from typing import Any

from voltpy.calls import Pending
from voltpy.errors import Error


class Outcomes:
    """`settled`: the single calls that have ended since `take`. `outstanding`: how many have not ended."""

    __slots__ = ("outstanding", "settled")

    def __init__(self) -> None:
        self.settled: list[Pending] = []
        self.outstanding = 0

    def settle(self, call: Pending, value: Any, error: Error | None) -> None:
        """Ends the call, unless it has ended."""
        if call.done:
            return
        call.done = True
        call.value = value
        call.error = error
        if call.batch is not None:
            call.batch.place(call.position, value if error is None else error)
            return
        self.outstanding -= 1
        self.settled.append(call)

    def fail(self, call: Pending, error: Error) -> None:
        self.settle(call, None, error)

    def withdraw(self, call: Pending) -> None:
        """Forgets a call that nobody waits for any more. If it was sent it may run all the same."""
        if call.is_submitted and not call.done:
            call.done = True
            self.outstanding -= 1

    def take(self) -> list[Pending]:
        """Takes out the settled calls."""
        # Never the list itself, not even an empty one: where threads share it, another's calls would come into it.
        settled, self.settled = self.settled, []
        return settled
