"""When a connection next has something to do about time."""

from __future__ import annotations

from math import inf


class Alarm:
    """`time`, in seconds of the connection's clock: by then `Connection.expire` has something to do; inf: never.

    Too early costs a look at everything, too late would let a call wait past its deadline. So whoever makes something
    wait puts it forward, and only who has looked at everything puts it back.
    """

    __slots__ = ("time",)

    def __init__(self) -> None:
        self.time = inf

    def put_forward(self, time: float) -> None:
        """To this time at the latest."""
        if time < self.time:
            self.time = time
