"""File descriptors, of which every connection takes one, and which a process needs for its files too.

Whoever opens connections, though he says nothing, could have all there are: the next file can't be opened, and the
process ends. So some are kept. When clients have come to those, the connections go that have not sent a frame, and if
these are too few, the clients that came last. Their descriptors come back a little later, when ZeroMQ has seen it.
"""

from __future__ import annotations

import os
import resource
import time

RESERVE_LEAST, RESERVE_MOST = 32, 1024
LOOK_S = 0.01
PAUSE_S = 0.1  # between two times that connections end for it


def reserve() -> int:
    """An eighth of those that the process may have, within bounds."""
    return min(max(limit() // 8, RESERVE_LEAST), RESERVE_MOST)


class Descriptors:
    """`are_short`: whether those that are kept are in use, and it is time to end connections for it."""

    def __init__(self) -> None:
        self._fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._not_before_s = 0.0

    def are_short(self) -> bool:
        """The lowest number that is free is as high as many are in use. Asked often, it looks now and then."""
        now_s = time.monotonic()
        if now_s < self._not_before_s:
            return False
        self._not_before_s = now_s + LOOK_S
        try:
            lowest = os.dup(self._fd)
        except OSError:
            lowest = limit()
        else:
            os.close(lowest)
        if lowest < RESERVE_LEAST or lowest + reserve() < limit():
            return False
        self._not_before_s = now_s + PAUSE_S
        return True

    def close(self) -> None:
        os.close(self._fd)


def limit() -> int:
    """How many the process may have."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if soft != resource.RLIM_INFINITY else 1 << 20
