"""A simulated world: one clock, one source of chance, and processes that take turns.

A process is a greenlet that runs the project's real code. It gives the others their turn where the real one would wait:
for input, for a timer, for a disk. Nothing else ever interrupts it, and all that is left to chance comes out of one
seed, so the same seed brings the same run.

A process ends by returning, by an error, or by `Killed`, which is raised where it waits, or at the step that it was
doomed to die at (`Process.doom`): a crash point (voltpy.crash_point) or a call to its disk.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

from greenlet import GreenletExit, getcurrent, greenlet

EPOCH_S = 1_000_000.0  # when a world begins, on its monotonic clock


class Killed(BaseException):
    """The process is gone."""


class World:
    """`at` and `after` say what happens when; `run` lets it happen. `faults` counts what went wrong on purpose."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.now_s = EPOCH_S
        self.faults: Counter[str] = Counter()
        self.build_pace = 1.0  # how likely a turn of a partition builds a page of an index or a view, and not nothing
        self.trace: Callable[[str], None] | None = None
        self.running: Process | None = None
        # What happens when a process passes a crash point.
        self.ambushes: defaultdict[str, list[Callable[[Process], None]]] = defaultdict(list)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._counted = 0
        self._hub = getcurrent()

    def at(self, when_s: float, action: Callable[[], None]) -> None:
        self._counted += 1
        heapq.heappush(self._events, (max(when_s, self.now_s), self._counted, action))

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        self.at(self.now_s + delay_s, action)

    def run(self, until: Callable[[], bool], limit_s: float) -> bool:
        """Lets things happen until that is so, or so much time has gone by. Whether it is so."""
        limit_s += self.now_s
        events, pop = self._events, heapq.heappop
        while not until():
            if not events or events[0][0] > limit_s:
                self.now_s = limit_s
                return False
            self.now_s, _, action = pop(events)
            action()
        return True

    def tell(self, text: str) -> None:
        if self.trace is not None:
            self.trace(f"{self.now_s - EPOCH_S:9.6f} {text}")

    def fault(self, kind: str, text: str = "") -> None:
        self.faults[kind] += 1
        self.tell(f"fault: {kind} {text}")

    def enter(self, process: Process, into: greenlet) -> None:
        """Runs a process until it waits or ends."""
        before, self.running = self.running, process
        try:
            into.switch()
        finally:
            self.running = before

    def leave(self) -> None:
        """The process that runs waits."""
        self._hub.switch()

    # What modules take for `time`, so that they live in the world's time.

    def monotonic(self) -> float:
        return self.now_s

    perf_counter = monotonic

    def sleep(self, time_s: float) -> None:
        assert self.running is not None
        self.running.wait(time_s, for_input=False)

    def process_time(self) -> float:
        return 0.0

    def time(self) -> float:
        return 1_700_000_000.0 + self.now_s

    def time_ns(self) -> int:
        return int(self.time() * 1e6) * 1000


class Process:
    """One life of a process. `ended` is told how it ended: None, or the error."""

    def __init__(
        self,
        world: World,
        name: str,
        main: Callable[[Process], None],
        ended: Callable[[Process, BaseException | None], None],
    ) -> None:
        self.world = world
        self.name = name
        self.is_alive = True
        self.paused_until_s = 0.0
        self.ran_s = world.now_s  # when it last had its turn
        self.more_bytes = 0  # that it takes, beside what is usual
        self.cleanup: Callable[[], None] = lambda: None  # what the system does for a process that is gone
        self.server: Any = None  # what runs in it, for those who wait for some state of it
        self.words: Any = None  # its heartbeat
        self.alarm: Any = None  # its timer, where it has one (tests.simulation.pastime)
        self._ended = ended
        self._main = main
        self._greenlet = greenlet(self._run)
        self._waits = False
        self._is_interruptible = True
        self._turn = 0  # a wake-up that is meant for an earlier wait says so by its number
        self._doom: tuple[str, int] | None = None
        world.after(world.rng.uniform(0.001, 0.01), lambda: self._go_on(0))

    def wait(self, timeout_s: float, *, for_input: bool = True) -> None:
        """Called by the process itself: others run until `wake`, or the time is over. Raises Killed.

        Again and again: where a procedure waits, the engine takes the first one for the procedure's own error.
        """
        if not self.is_alive:
            raise Killed
        self._waits = True
        self._is_interruptible = for_input
        self._turn += 1
        turn = self._turn
        world = self.world
        world.at(world.now_s + timeout_s, partial(self._go_on, turn))
        world.leave()
        if not self.is_alive:
            raise Killed

    def work(self, time_s: float) -> None:
        """It is busy, or sits in a system call, for so long."""
        if getcurrent() is self._greenlet:
            self.wait(time_s, for_input=False)

    def wake(self) -> None:
        """Something has arrived for it."""
        if self._waits and self._is_interruptible:
            self._is_interruptible = False
            world = self.world
            world.at(world.now_s + world.rng.uniform(1e-6, 3e-5), partial(self._go_on, self._turn))

    def pause(self, time_s: float) -> None:
        """SIGSTOP, and SIGCONT after so long."""
        self.paused_until_s = max(self.paused_until_s, self.world.now_s + time_s)

    def doom(self, kind: str, steps: int) -> None:
        """It will die at the so many-th step of this kind from here on."""
        self._doom = (kind, steps)

    def passes(self, point: str) -> None:
        """It comes by a crash point. Raises Killed."""
        self.comes_by(point)
        self.step("point")

    def comes_by(self, point: str) -> None:
        """The same, at one that is the simulation's own."""
        waiting = self.world.ambushes.get(point)
        for caught in list(waiting) if waiting else ():
            if self.is_alive:
                caught(self)

    def step(self, kind: str) -> None:
        """It comes by. Raises Killed."""
        if not self.is_alive:
            raise Killed
        if self._doom is not None and self._doom[0] == kind:
            self._doom = (kind, self._doom[1] - 1)
            if self._doom[1] <= 0:
                self._doom = None
                self.is_alive = False
                raise Killed

    def kill(self) -> None:
        """SIGKILL, where it waits."""
        if not self.is_alive:
            return
        self.is_alive = False
        if self.world.running is self:
            raise Killed
        if self._greenlet:
            self.world.enter(self, self._greenlet)  # raises Killed in there
        else:  # it has not begun
            self._finish(Killed())

    def _go_on(self, turn: int) -> None:
        if turn != self._turn or not self.is_alive:
            return
        if self.world.now_s < self.paused_until_s:
            self.world.at(self.paused_until_s, partial(self._go_on, turn))
            return
        self._turn += 1
        self._waits = False
        self.ran_s = self.world.now_s
        self.world.enter(self, self._greenlet)

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            self._main(self)
        except GreenletExit:
            raise
        except BaseException as ended:  # noqa: BLE001 — however a process ends is for its parent to judge
            error = ended
        self._finish(error)

    def _finish(self, error: BaseException | None) -> None:
        self.is_alive = False
        self.cleanup()
        self._ended(self, error)


def choose(rng: random.Random, weights: dict[Any, float]) -> Any:
    return rng.choices(list(weights), list(weights.values()))[0]
