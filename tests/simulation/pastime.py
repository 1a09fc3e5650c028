"""Time that passes while a call runs in a simulated process, and the ticks of its timer that come meanwhile.

A tick meets a frame, as a signal does: that of a procedure which lets time pass, or one of the engine's that undoes
what the procedure has done. The timer is the real one (voltpy.timeout), its signals are those of the world's clock.
"""

from __future__ import annotations

import signal as real_signal
import sys
from collections.abc import Callable
from datetime import datetime
from math import inf
from types import FrameType
from typing import TYPE_CHECKING, Any

from voltpy.heartbeat import CALL_NUMBER, CLIENT_ID

if TYPE_CHECKING:
    from tests.simulation.lives import Lives
    from tests.simulation.world import Process
    from voltpy.messages import CallGroup

FOR_EVER_S = 1e6

CallId = tuple[int, int]
lives: Lives | None = None  # those of the run that is on


class Alarm:
    """The timer of one process."""

    def __init__(self, handler: Callable[[int, FrameType | None], None]) -> None:
        self.due_s = inf
        self.every_s = 0.0
        self._handler = handler

    def ring(self, frame: FrameType | None) -> None:
        """Raises what the handler raises."""
        self.due_s += self.every_s
        self._handler(real_signal.SIGALRM, frame)


class Signals:
    """As a module `signal`, for the process that runs."""

    SIGALRM, ITIMER_REAL = real_signal.SIGALRM, real_signal.ITIMER_REAL

    @staticmethod
    def signal(number: int, handler: Callable[[int, FrameType | None], None]) -> None:
        _running().alarm = Alarm(handler)

    @staticmethod
    def setitimer(which: int, first_s: float, every_s: float = 0.0) -> None:
        process = _running()
        process.alarm.due_s = process.world.now_s + first_s if first_s else inf
        process.alarm.every_s = every_s


def _running() -> Process:
    assert lives is not None
    running = lives.world.running
    assert running is not None
    return running


def running_call() -> tuple[Process, CallId]:
    process = _running()
    return process, (process.words[CLIENT_ID], process.words[CALL_NUMBER])


# What procedures call.


def let_pass(time_s: float) -> None:
    """The procedure works for so long. Raises whatever a tick raises in it."""
    _pass(time_s, sys._getframe(1))


def hang() -> None:
    """A function that never returns, and that no tick can end: as one in C."""
    process, call_id = running_call()
    assert lives is not None
    lives.hangs(process, call_id)
    while True:
        process.work(FOR_EVER_S)


def witness(now: datetime) -> None:
    """What the procedure takes for the time."""
    if lives is not None:
        lives.takes_for_now(*running_call(), now)


# And the engine.


def slowly(undo_to: Callable[[Any, int], None], time_s: Callable[[], float]) -> Callable[[Any, int], None]:
    """To undo a call that let time pass takes time too; a tick may meet whoever undoes it."""

    def undo(log: Any, mark: int) -> None:
        if lives is not None and lives.world.running is not None and lives.has_let_pass(*running_call()):
            _pass(time_s(), sys._getframe(1))
        undo_to(log, mark)

    return undo


def arriving(take: Callable[..., None]) -> Callable[..., None]:
    """Whoever runs calls takes a group of them."""

    def taken(runs: Any, origin: Any, group: CallGroup, *now_s: float) -> None:
        if lives is not None:
            lives.arrived(_running(), group.client_id, group.numbers)
        take(runs, origin, group, *now_s)

    return taken


def _pass(time_s: float, frame: FrameType) -> None:
    assert lives is not None
    process, call_id = running_call()
    lives.lets_pass(process, call_id, time_s)
    world, alarm = process.world, process.alarm
    until_s = world.now_s + time_s
    if alarm.due_s < world.now_s:  # it rang while nothing ran
        alarm.due_s = world.now_s + alarm.every_s
    while alarm.due_s <= until_s:
        process.work(alarm.due_s - world.now_s)
        alarm.ring(frame)
    process.work(max(until_s - world.now_s, 0.0))
