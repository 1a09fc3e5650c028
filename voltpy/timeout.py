"""Ending a procedure that runs too long, or takes too much memory, from inside its own process.

While a batch executes a timer ticks. A tick that finds the same call running as `limit_s` ago, or as one tick ago while
the process is larger than it may be, raises Interruption in it, if the procedure's own code, or a read of ours that
holds nothing half done, is what it interrupts; otherwise the next tick tries again. A procedure that swallows the
Interruption is poisoned all the same, and raised at again. One that can't be interrupted at all, since it sits in a C
function that never returns, is the supervisor's: it kills the process (voltpy.heartbeat).
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from types import CodeType, FrameType

from voltpy.errors import ConstraintViolation, Error, ProcedureTimeout
from voltpy.heartbeat import BUSY, Words

MIN_TICK_S, MAX_TICK_S = 0.01, 0.1
OVERDUE_TICK_S = 0.002  # so that a procedure which spends its time in our code is soon met in its own


class Interruption(BaseException):
    """Raised inside a procedure that runs too long. Not an Exception: `except Exception` must not eat it."""


class Timeout:
    """`arm` before a batch, `disarm` after it, `end` after all of them. The main thread only.

    `interrupt` is told of the error with which the running call is to end, before Interruption is raised in it.
    """

    def __init__(
        self,
        interrupt: Callable[[Error], None],
        may_raise_in: Callable[[CodeType], bool],
        running: Words,
        limit_s: float,
        is_too_large: Callable[[], bool] = lambda: False,
    ) -> None:
        """`may_raise_in`: the user's code, and what of ours only reads: stopping it leaves nothing half done."""
        self._interrupt = interrupt
        self._may_raise_in = may_raise_in
        self._running = running
        self._limit_s = limit_s
        self._is_too_large = is_too_large  # the process
        self._tick_s = min(max(limit_s / 10, MIN_TICK_S), MAX_TICK_S)
        self._ticking = False
        self._seen: tuple[int, ...] = ()
        self._since_s = 0.0
        signal.signal(signal.SIGALRM, self._tick)

    def arm(self) -> None:
        self._running[BUSY] += 1  # first: a tick that sees no batch running stops the timer
        if not self._ticking:
            self._ticking = True
            signal.setitimer(signal.ITIMER_REAL, self._tick_s, self._tick_s)

    def disarm(self) -> None:
        """The timer ticks on until it finds nothing running: to set and stop it costs two system calls a batch."""
        self._running[BUSY] += 1

    def end(self) -> None:
        """Before the process ends: Python takes its handler away, and the next tick would kill it."""
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _tick(self, signum: int, frame: FrameType | None) -> None:
        running = tuple(self._running[: BUSY + 1])
        now_s = time.monotonic()
        if running[BUSY] % 2 == 0:
            self._ticking = False
            signal.setitimer(signal.ITIMER_REAL, 0)
        elif running != self._seen:
            self._seen, self._since_s = running, now_s
        elif frame is not None:
            error: Error
            if now_s - self._since_s >= self._limit_s:
                error = ProcedureTimeout("ran past the procedure timeout and was ended")
            elif self._is_too_large():
                error = ConstraintViolation("is a transaction too large for the partition's memory, and was ended")
            else:
                return
            if self._may_raise_in(frame.f_code):
                signal.setitimer(signal.ITIMER_REAL, self._tick_s, self._tick_s)
                self._interrupt(error)
                raise Interruption
            signal.setitimer(signal.ITIMER_REAL, OVERDUE_TICK_S, OVERDUE_TICK_S)
