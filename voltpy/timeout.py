"""Ending a procedure that runs too long, or takes too much memory, from inside its own process.

While a batch executes a timer ticks. A tick that finds the same call running as `limit_s` ago, or as one tick ago while
the process is larger than it may be, raises Interruption in it, if the procedure's own code, or a read of ours that
holds nothing half done, is what it interrupts; otherwise the next tick tries again. A procedure that swallows the
Interruption is poisoned all the same, and raised at again. One that can't be interrupted at all, since it sits in a C
function that never returns, is the supervisor's: it kills the process (voltpy.heartbeat).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType

from voltpy.errors import ConstraintViolation, Error, ProcedureTimeout
from voltpy.heartbeat import BUSY, CALL_NUMBER, CLIENT_ID, Words

MIN_TICK_S, MAX_TICK_S = 0.01, 0.1
OVERDUE_TICK_S = 0.002  # so that a procedure which spends its time in our code is soon met in its own
CALLS_MET = 256  # whose time is remembered
_OURS = tuple(
    f"{Path(__file__).parent.parent / package}{os.sep}" for package in ("voltpy", "partitions", "coordinator")
)


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
        shorter: Callable[[], tuple[float, str] | None] = lambda: None,
    ) -> None:
        """`may_raise_in`: the user's code, and what of ours only reads: stopping it leaves nothing half done.

        `shorter`: seconds after which the run that is on must end already, and what it is told then; None: it need not.
        """
        self._interrupt = interrupt
        self._may_raise_in = may_raise_in
        self._running = running
        self._limit_s = limit_s
        self._is_too_large = is_too_large  # the process
        self._shorter = shorter
        self._tick_s = min(max(limit_s / 10, MIN_TICK_S), MAX_TICK_S)
        self._ticking = False
        self._seen: tuple[int, ...] = ()
        self._ended: tuple[int, ...] = ()
        self._since_s = 0.0
        self._ticked_s = 0.0
        self._run_s = 0.0  # by ticks, of the run that was seen
        self._spent_s: dict[tuple[int, int], float] = {}  # by ticks, in all runs, by call id; the last met at the end
        signal.signal(signal.SIGALRM, self._tick)

    def arm(self) -> None:
        self._running[CLIENT_ID] = 0  # nobody's yet: the last call may be committed, and is no runaway
        self._running[BUSY] += 1  # before the timer is set: a tick that sees no batch running stops it
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
            return
        tick_s = min(now_s - self._ticked_s, self._tick_s)
        self._ticked_s = now_s
        if running != self._seen:
            self._seen, self._since_s, self._run_s = running, now_s, 0.0
        else:
            self._run_s += tick_s
        spent_s = self._spend((running[CLIENT_ID], running[CALL_NUMBER]), tick_s)
        if frame is None or (not self._run_s and spent_s < self._limit_s):  # it has only just been met
            return
        error: Error
        shorter = self._shorter()
        if now_s - self._since_s >= self._limit_s or spent_s >= self._limit_s or running == self._ended:
            limit = f"ran longer than {self._limit_s:g} s (--procedure-timeout)"
            error = ProcedureTimeout(f"{limit} and was ended{_place(frame)}")
        elif shorter is not None and self._run_s >= shorter[0]:
            error = ProcedureTimeout(shorter[1])
        elif self._run_s and self._is_too_large():
            error = ConstraintViolation("is a transaction too large for the partition's memory, and was ended")
        else:
            return
        if self._may_raise_in(frame.f_code):
            signal.setitimer(signal.ITIMER_REAL, self._tick_s, self._tick_s)
            self._ended = running  # it may swallow this, and will be met again; if it runs again, its clock does so too
            self._spent_s.pop((running[CLIENT_ID], running[CALL_NUMBER]), None)
            self._interrupt(error)
            raise Interruption
        signal.setitimer(signal.ITIMER_REAL, OVERDUE_TICK_S, OVERDUE_TICK_S)

    def _spend(self, call_id: tuple[int, int], tick_s: float) -> float:
        """The call runs: for how long it has, in all its runs."""
        if not call_id[0]:
            return 0.0  # nobody's
        spent_s = self._spent_s.pop(call_id, 0.0) + tick_s
        self._spent_s[call_id] = spent_s
        if len(self._spent_s) > CALLS_MET:
            del self._spent_s[next(iter(self._spent_s))]
        return spent_s


def _place(frame: FrameType | None) -> str:
    """Where in the user's files that is: `, at bank.py:17`."""
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith(("<", *_OURS)):
            return f", at {os.path.basename(name)}:{frame.f_lineno}"
        frame = frame.f_back
    return ""
