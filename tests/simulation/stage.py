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
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import zmq

import coordinator.server
import partitions.flusher
import partitions.page_reader
import partitions.server
import voltpy.child
import voltpy.crash_point
import voltpy.links
from partitions.store import Store
from tests.simulation.network import Dealer, Line, Network
from tests.simulation.world import Process, World

ROUTER_PORT = 21212  # partition p listens at the port p above it

_PACKAGES = ("voltpy", "partitions", "coordinator")


class Stage:
    """`world` and `network` are those of the run that is on."""

    def __init__(self) -> None:
        self.world: World | None = None
        self.network: Network | None = None

    def __getattr__(self, name: str) -> Any:
        """As a module `time`."""
        return getattr(self.world if self.world is not None else time, name)

    def crash_point(self, name: str) -> None:
        if self.world is not None and self.world.running is not None:
            self.world.running.passes(name)

    def urandom(self, size: int) -> bytes:
        return self.world.rng.randbytes(size) if self.world is not None else _real_urandom(size)


_real_urandom = os.urandom


class Link:
    """A client's connection to one door. See voltpy.link."""

    stage: Stage

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


class DealerSocket:
    """The coordinator's connection to one partition."""

    def __init__(self, stage: Stage, path: str) -> None:
        world, network = stage.world, stage.network
        assert world is not None
        assert network is not None
        assert world.running is not None
        self._process = world.running
        self.line = Dealer(network, self._process, self._process.name, path.rpartition("/")[2])

    def send(self, frame: bytes, flags: int = 0, *, copy: bool = True) -> None:
        self._process.step("send")
        self.line.send_up(frame)

    def recv(self, flags: int = 0) -> bytes:
        if not self.line.arrived:
            raise zmq.Again
        self._process.step("receive")
        return self.line.arrived.popleft()

    def fileno(self) -> int:
        return 0

    def close(self) -> None:
        self.line.close()


def _polled(items: list[tuple[DealerSocket, int]], timeout_ms: int) -> list[tuple[DealerSocket, int]]:
    return [(socket, events) for socket, events in items if socket.line.arrived]


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
                put(module, "resident_bytes", lambda: 64 << 20)
        put(voltpy.child, "BACKOFF_FIRST_S", 0.01)
        put(voltpy.child, "BACKOFF_MOST_S", 0.1)
        put(os, "urandom", stage.urandom)
        put(voltpy.links, "Link", link)
        put(voltpy.links, "StreamLink", link)
        put(voltpy.links, "random", SimpleNamespace(uniform=lambda *limits: _world(stage).rng.uniform(*limits)))
        put(voltpy.links, "_same_machine", lambda topology: False)
        put(coordinator.server, "partition_socket", lambda _, path: DealerSocket(stage, path))
        put(coordinator.server, "zmq_poll", _polled)
        put(partitions.flusher, "_glibc", lambda: None)
        put(partitions.page_reader.PageReader, "_set_up", lambda *_: False)
        put(Store, "read_latency_us", lambda _: {"hot": None, "resident": None})
        yield stage


def _world(stage: Stage) -> World:
    assert stage.world is not None
    return stage.world
