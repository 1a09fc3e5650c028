"""The client's sockets: one link for each door that it talks to, and the steps that both shells share. Nothing blocks.

    Connection ──frames──► Links ──► Link ── DEALER ──► router, partitions
                                └──► StreamLink ── Unix socket ──► partitions of this machine

The sockets' file descriptors are edge-triggered: they wake when something happened since the socket was looked at last.
Whoever sends on a link where answers are due looks at it again afterwards, which `flush` does.
"""

from __future__ import annotations

import os
import random
from math import inf
from weakref import WeakSet

from voltpy.address import Address
from voltpy.connection import Connection
from voltpy.frame import Frame
from voltpy.lane import ROUTER, Lane
from voltpy.link import Link, StreamLink
from voltpy.messages import Topology
from voltpy.stream import stream_path

WELCOME_WAIT_S = 5.0  # a link that is not welcomed by then is replaced
DIRECT_WAIT_S = 0.5  # how long `connect` waits for the partitions; what can't be reached goes through the router
RETRY_FIRST_S = 0.05
RETRY_MAX_S = 2.0

_in_use: WeakSet[Links] = WeakSet()


def _after_fork() -> None:
    for links in _in_use:
        links.orphaned = True


os.register_at_fork(after_in_child=_after_fork)


class Links:
    """All links of one client, and the connection that they serve.

    `next_time` is when `step` has to open or give up a link. `generation` grows when a link was opened or dropped. A
    dropped link stays in `dropped` until `bury`: a shell that watches its file descriptors forgets them first.
    `orphaned`: this is a forked child's copy, whose sockets are the parent's.
    """

    def __init__(self, address: Address, connection: Connection) -> None:
        self.address = address
        self.connection = connection
        self.links: dict[int, Link | StreamLink] = {}
        self.dropped: list[Link | StreamLink] = []
        self.generation = 0
        self.next_time = 0.0
        self.orphaned = False
        _in_use.add(self)
        self._topologies_seen = 0
        self._retry_at: dict[int, float] = {ROUTER: 0.0}
        self._failures: dict[int, int] = {}
        self._unread: set[int] = set()  # links that have not been looked at until they were empty

    def flush(self, now: float) -> None:
        """Sends what can be sent, and takes in what arrived meanwhile on the links that were used."""
        connection = self.connection
        while frames := connection.frames(now):
            to_send: dict[int, list[Frame]] = {}
            for frame in frames:
                to_send.setdefault(frame.destination, []).append(frame)
            used: set[int] = set()
            for destination, together in to_send.items():
                self._send(destination, together, now)
                if destination in self._unread or any(frame.look for frame in together):
                    used.add(destination)
            for destination in used:
                link = self.links.get(destination)
                if link is not None:
                    self._take(link, now)

    def send_alone(self, frame: Frame, now: float) -> None:
        """`flush` for a frame that the caller already has."""
        self._send(frame.destination, [frame], now)
        if frame.destination in self._unread and frame.destination in self.links:
            self._take(self.links[frame.destination], now)

    def pump(self, now: float) -> None:
        """Takes in everything that has arrived, notices what was lost, opens what is missing."""
        for link in list(self.links.values()):
            self._take(link, now)
            if link.is_lost():
                self._take(link, now)
                self._drop(link, now)
        self.step(now)

    def arrived(self, link: Link | StreamLink, fd: int, now: float) -> None:
        """The same for one link whose file descriptor `fd` woke up."""
        if isinstance(link, StreamLink) and link.wants_to_write:
            link.write_on()
            self.generation += not link.wants_to_write
        self._take(link, now)
        if link.may_be_lost(fd) and self.links.get(link.destination) is link and link.is_lost():
            self._take(link, now)
            self._drop(link, now)
        if self.connection.cluster.topologies != self._topologies_seen:
            self.step(now)

    def step(self, now: float) -> None:
        """What time brings: expired calls, links to open."""
        connection = self.connection
        connection.expire(now)
        if ROUTER not in self.links and now >= self._retry_at.get(ROUTER, 0.0):
            self._open(ROUTER, 0, self.address.tcp(self.address.port), now)
        self._topologies_seen = connection.cluster.topologies
        if connection.affinity and connection.cluster.topology is not None:
            for destination in [key for key in self.links if key >= len(connection.cluster.lanes)]:
                self._drop(self.links[destination], now)
            for lane in connection.cluster.lanes:
                self._tend(lane, connection.cluster.topology, now)
        for link in list(self.links.values()):
            if not link.welcomed and now - link.opened >= WELCOME_WAIT_S:
                self._drop(link, now)
        times = [when for destination, when in self._retry_at.items() if destination not in self.links]
        times += [link.opened + WELCOME_WAIT_S for link in self.links.values() if not link.welcomed]
        self.next_time = min(times, default=inf)

    def undecided(self) -> bool:
        """Whether a partition may still welcome us for the first time."""
        return any(not link.welcomed for link in self.links.values())

    def fds(self) -> dict[int, Link | StreamLink]:
        return {fd: link for link in self.links.values() for fd in link.fds}

    def bury(self) -> None:
        for link in self.dropped:
            link.close()
        self.dropped.clear()

    def close(self) -> None:
        self.dropped.extend(self.links.values())
        self.links.clear()
        self.generation += 1
        self.bury()

    def _send(self, destination: int, frames: list[Frame], now: float) -> None:
        link = self.links.get(destination)
        unsent = frames
        if link is not None:
            unsent = frames[link.send([frame.data for frame in frames]) :]
            if link.wants_to_write:
                self.generation += 1  # whoever sleeps on its descriptor has to watch for room too
        if unsent:
            for frame in reversed(unsent):
                self.connection.unsend(frame)
            if link is not None:  # nothing is limited here: the connection has ended
                self._take(link, now)
                self._drop(link, now)

    def _take(self, link: Link | StreamLink, now: float) -> None:
        connection = self.connection
        destination = link.destination
        while (frame := link.receive()) is not None:
            if not connection.receive(destination, frame, now):
                self._drop(link, now)
                return
            if not link.welcomed:
                link.welcomed = True
                self._failures[destination] = 0
            if destination != ROUTER and not link.knows_when_empty and not connection.busy():
                # Nothing else can be due from a partition: the last look is put off until the next frame is on its way,
                # since a lone caller waits for this one.
                self._unread.add(destination)
                return
        self._unread.discard(destination)

    def _tend(self, lane: Lane, topology: Topology, now: float) -> None:
        """Keeps a link to the lane's present process, if there is one."""
        link = self.links.get(lane.partition)
        if link is not None and link.incarnation != lane.incarnation:
            self._drop(link, now)
            self._retry_at[lane.partition] = now
            link = None
        if lane.incarnation == 0:
            self._retry_at.pop(lane.partition, None)
        elif link is None and now >= self._retry_at.get(lane.partition, 0.0):
            address = lane.address
            path = address.ipc_path
            local = bool(path) and _same_machine(topology)
            if local and os.access(stream_path(path), os.W_OK):
                endpoint = stream_path(path)
            elif local and os.access(path, os.W_OK):
                endpoint = f"ipc://{path}"
            else:
                endpoint = self.address.tcp(address.tcp_port)
            self._open(lane.partition, lane.incarnation, endpoint, now)

    def _open(self, destination: int, incarnation: int, endpoint: str, now: float) -> None:
        link: Link | StreamLink
        try:
            opening = StreamLink if endpoint.startswith("/") else Link
            link = opening(destination, incarnation, endpoint, now)
        except OSError:
            self._try_again_later(destination, now)
            return
        if not link.send([self.connection.hello()]):
            link.close()
            self._try_again_later(destination, now)
            return
        self.links[destination] = link
        self.generation += 1
        if destination == ROUTER:
            self.connection.opening_router(now)
        # Its file descriptors wake nobody before it was looked at for the first time.
        self._take(link, now)
        if link.is_lost():
            self._drop(link, now)

    def _drop(self, link: Link | StreamLink, now: float) -> None:
        if self.links.get(link.destination) is not link:
            return
        del self.links[link.destination]
        self.dropped.append(link)
        self._unread.discard(link.destination)
        self.generation += 1
        self._try_again_later(link.destination, now)
        self.connection.lost(link.destination, now)

    def _try_again_later(self, destination: int, now: float) -> None:
        failures = self._failures.get(destination, 0)
        self._failures[destination] = failures + 1
        # The first time at once: it may be back already. Then with jitter: many clients must not come back in step.
        wait = min(RETRY_MAX_S, RETRY_FIRST_S * 2 ** min(failures, 10)) * random.uniform(0.5, 1.5) if failures else 0.0
        self._retry_at[destination] = now + wait
        self.next_time = min(self.next_time, now + wait)


def _same_machine(topology: Topology) -> bool:
    """Whether the cluster's runtime directory, known by the cluster id in it, can be read here."""
    try:
        with open(os.path.join(topology.runtime_directory, "cluster_id"), encoding="ascii") as file:
            return file.read(256).strip() == topology.cluster_id
    except (OSError, UnicodeDecodeError):
        return False
