"""What the project's modules see instead of the real world, while a simulation runs.

    time, os.urandom, random   the world's clock and chance
    crash_point                a step at which the process that runs may die
    Link, StreamLink           the client's sockets: lines of the simulated network

A process that dies again and again is started anew without long pauses. And what only costs time: pages are read
without the kernel's asynchronous interface, and sizes of the process are those of no process.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import coordinator.server
import partitions.flusher
import partitions.lookups
import partitions.page_reader
import partitions.server
import partitions.store
import voltpy.child
import voltpy.crash_point
import voltpy.links
import voltpy.supervision
import voltpy.timeout
from coordinator.borrowed import Tables
from coordinator.transactions import Transactions
from partitions.executor import Executor
from partitions.schema_change import SchemaChange
from partitions.store import Store
from tests.simulation.network import Line, Network, Stream
from tests.simulation.pastime import Signals, arriving, slowly
from tests.simulation.world import Process, World

USUAL_BYTES = 64 << 20  # what a process takes
ROUTER_PORT = 21212  # partition p listens at the port p above it

_OF_TIME = ("monotonic", "perf_counter", "process_time", "sleep", "time", "time_ns")
_PACKAGES = ("voltpy", "partitions", "coordinator")


class Stage:
    """`world` and `network` are those of the run that is on."""

    def __init__(self) -> None:
        self.world = None
        self.network: Network | None = None

    @property
    def world(self) -> World | None:
        return self._world

    @world.setter
    def world(self, world: World | None) -> None:
        self._world = world
        for name in _OF_TIME:  # so that they are found without `__getattr__`, which takes its time
            setattr(self, name, getattr(time if world is None else world, name))

    def __getattr__(self, name: str) -> Any:
        """As a module `time`."""
        return getattr(time, name)

    def crash_point(self, name: str) -> None:
        world = self._world
        if world is not None and world.running is not None:
            world.running.passes(name)

    def resident_bytes(self) -> int:
        if self.world is None or self.world.running is None:
            return USUAL_BYTES
        return USUAL_BYTES + self.world.running.more_bytes

    def urandom(self, size: int) -> bytes:
        return self.world.rng.randbytes(size) if self.world is not None else _real_urandom(size)


_real_urandom = os.urandom


class Link:
    """A client's connection to one door. See voltpy.link."""

    stage: Stage
    knows_when_empty = False

    def __init__(self, destination: int, incarnation: int, endpoint: str, now: float) -> None:
        world, network = self.stage.world, self.stage.network
        assert world is not None
        assert network is not None
        caller = world.running
        assert isinstance(caller, Process)
        port = int(endpoint.rpartition(":")[2])
        self.wants_to_write = False
        self.destination = destination
        self.incarnation = incarnation
        self.opened = now
        self.welcomed = False
        self.line = Line(
            network, caller, caller.name, "router" if port == ROUTER_PORT else f"p{port - ROUTER_PORT - 1}"
        )
        self.fds = (network.number(),)

    def send(self, frames: list[bytes]) -> int:
        if self.line.is_broken:
            return 0
        for frame in frames:
            self.line.send_up(frame)
        return len(frames)

    def receive(self) -> bytes | None:
        return self.line.arrived.popleft() if self.line.arrived else None

    def may_be_lost(self, fd: int) -> bool:
        return True

    def is_lost(self) -> bool:
        return self.line.is_broken

    def close(self) -> None:
        self.line.close()


class StreamToPartition:
    """The coordinator's connection to one partition. See voltpy.link."""

    stage: Stage

    def __init__(self, destination: int, incarnation: int, path: str, now: float) -> None:
        world, network = self.stage.world, self.stage.network
        assert world is not None
        assert network is not None
        assert world.running is not None
        self.wants_to_write = False
        self.fds = (network.number(),)
        self._process = world.running
        self._line = Stream(network, self._process, self._process.name, f"p{destination}")
        self._process.comes_by("simulation.connecting")

    def send(self, frames: list[bytes]) -> int:
        for sent, frame in enumerate(frames):
            self._process.step("send")
            if self._line.is_broken:
                return sent
            self._line.send_up(frame)
        return len(frames)

    def receive(self) -> bytes | None:
        if not self._line.arrived:
            return None
        self._process.step("receive")
        return self._line.arrived.popleft()

    def read_all(self) -> None:
        self._process.comes_by("simulation.believing")
        self._process.work(1e-5)

    def is_lost(self) -> bool:
        return self._line.is_broken

    def close(self) -> None:
        self._line.close()


@contextmanager
def setting() -> Iterator[Stage]:
    """The stage, until the end of the block. What is imported later stays outside."""
    stage = Stage()
    link = type("StagedLink", (Link,), {"stage": stage})
    with ExitStack() as stack:

        def put(where: Any, name: str, new: Any) -> None:
            stack.enter_context(mock.patch.object(where, name, new))

        real_point = voltpy.crash_point.crash_point
        for module_name, module in sorted(sys.modules.items()):
            if module_name.split(".")[0] not in _PACKAGES:
                continue
            if getattr(module, "time", None) is time:
                put(module, "time", stage)
            if getattr(module, "crash_point", None) is real_point:
                put(module, "crash_point", stage.crash_point)
            if hasattr(module, "resident_bytes"):
                put(module, "resident_bytes", stage.resident_bytes)
        put(voltpy.child, "BACKOFF_FIRST_S", 0.01)
        put(voltpy.child, "BACKOFF_MOST_S", 0.1)
        put(os, "urandom", stage.urandom)
        put(voltpy.links, "Link", link)
        put(voltpy.links, "StreamLink", link)
        put(voltpy.links, "random", SimpleNamespace(uniform=lambda *limits: _world(stage).rng.uniform(*limits)))
        put(voltpy.links, "_same_machine", lambda topology: False)
        put(coordinator.server, "StreamLink", type("StagedStream", (StreamToPartition,), {"stage": stage}))
        put(partitions.flusher, "_glibc", lambda: None)
        put(partitions.page_reader.PageReader, "_set_up", lambda *_: False)
        # Procedures take no time. Builds do: a turn of a partition does a page, or nothing, and calls come meanwhile.
        put(SchemaChange, "step", _stepping(stage, SchemaChange.step))
        put(partitions.server, "BUILD_S", 0.0)
        put(partitions.lookups, "BESIDE_PAGES", 1)
        put(partitions.store, "BESIDE_PAGES", 1)
        put(Store, "read_latency_us", lambda _: {"hot": None, "resident": None})
        # Where calls let time pass (tests.simulation.pastime).
        put(voltpy.timeout, "signal", Signals)
        put(voltpy.supervision, "RUNAWAY_GRACE_S", 0.2)
        put(Executor, "run", arriving(Executor.run))
        put(Transactions, "calls", arriving(Transactions.calls))
        for log in (Store, Tables):
            put(log, "undo_to", slowly(log.undo_to, lambda: _world(stage).rng.uniform(0.0, 0.02)))
        yield stage


def _stepping(stage: Stage, step: Callable[[SchemaChange], None]) -> Callable[[SchemaChange], None]:
    def take(change: SchemaChange) -> None:
        world = _world(stage)
        assert world.running is not None
        if world.rng.random() < world.build_pace:
            step(change)
        world.running.work(world.rng.uniform(2e-4, 3e-3))

    return take


def _world(stage: Stage) -> World:
    assert stage.world is not None
    return stage.world
