"""How fast a checkpoint may write: its chunks wait for one another as long as the WAL's own flushes ask for.

A flush of the WAL that has to queue behind pages makes every call wait. So after each chunk the disk is left to the WAL
for a multiple of the time that the chunk took; the multiple follows what the flushes take with a checkpoint under way,
compared with what they take without one: it grows by half when they take twice as long, and shrinks slowly when not.
"""

from __future__ import annotations

LEAST, MOST = 0.25, 8.0
SLOWER = 2.0  # a flush that takes so many times what it takes otherwise asks for a longer pause
_RECENT = 0.05  # weight of the last flush in the mean


class Pace:
    """`flushed` tells of every flush of the WAL; `pause_s` says how long to wait after a chunk."""

    def __init__(self) -> None:
        self._alone_s: float | None = None  # a flush without a checkpoint, on average of late
        self._multiple = 1.0

    def flushed(self, took_s: float, *, beside_checkpoint: bool) -> None:
        if not beside_checkpoint:
            self._alone_s = took_s if self._alone_s is None else self._alone_s + _RECENT * (took_s - self._alone_s)
        elif self._alone_s is not None and took_s > SLOWER * self._alone_s:
            self._multiple = min(self._multiple * 1.5, MOST)
        else:
            self._multiple = max(self._multiple * 0.97, LEAST)

    def pause_s(self, chunk_s: float) -> float:
        return self._multiple * chunk_s
