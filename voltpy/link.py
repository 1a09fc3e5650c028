"""The client's sockets: one link for each door that it talks to, and the steps that both shells share. Nothing blocks.

    Connection ──frames──► Links ──► Link ── DEALER ──► router, partitions

A link is one ZeroMQ connection, from its Hello to its loss; it is never mended but replaced, so that no frame of an old
connection can reach a restarted process. Therefore reconnecting is put off for ever (the queue of a disconnected socket
stays readable: answers that arrived before a process died still count) and a monitor tells of the loss.

The sockets' file descriptors are edge-triggered: they wake when something happened since the socket was looked at last.
Whoever sends on a link where answers are due looks at it again afterwards, which `flush` does.
"""

from __future__ import annotations

import os
import random
import socket as sockets
from collections import deque
from math import inf
from typing import Final
from urllib.parse import parse_qsl, urlsplit
from weakref import WeakSet

import zmq
from zmq import zmq_poll

from voltpy.connection import ROUTER, Connection, Frame, Lane
from voltpy.errors import ProtocolError, Unavailable
from voltpy.messages import MAX_FRAME_BYTES, Topology
from voltpy.stream import READ_BYTES, FrameReader, packed, stream_path

DEFAULT_PORT = 21212
WELCOME_WAIT_S = 5.0  # a link that is not welcomed by then is replaced
DIRECT_WAIT_S = 0.5  # how long `connect` waits for the partitions; what can't be reached goes through the router
RETRY_FIRST_S = 0.05
RETRY_MAX_S = 2.0
_NEVER_MS = 3_600_000
_HEARTBEAT_MS = 2_000  # tcp only: a host that vanished says nothing
_HEARTBEAT_TIMEOUT_MS = 6_000

_POLLIN: Final = int(zmq.POLLIN)
_NOBLOCK: Final = int(zmq.NOBLOCK)
_ENDINGS = (
    zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CLOSED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)

_contexts: dict[int, zmq.Context[zmq.Socket[bytes]]] = {}  # by process: a forked child must not touch its parent's
_in_use: WeakSet[Links] = WeakSet()


def _context() -> zmq.Context[zmq.Socket[bytes]]:
    """One for all clients of the process: a context is a thread."""
    context = _contexts.get(os.getpid())
    if context is None:
        context = zmq.Context()
        context.set(zmq.MAX_SOCKETS, 65535)
        _contexts[os.getpid()] = context
    return context


def _after_fork() -> None:
    for links in _in_use:
        links.orphaned = True


os.register_at_fork(after_in_child=_after_fork)


class Address:
    """`voltpy://host[:port][?affinity=on|off]`, taken apart. Raises ValueError for anything else."""

    __slots__ = ("affinity", "host", "port", "url")

    def __init__(self, url: str) -> None:
        form = "voltpy://HOST[:PORT][?affinity=on|off]"
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ValueError(f"{url!r} is no address: {error}; expected {form}") from None
        if parts.scheme != "voltpy":
            raise ValueError(f"{url!r} does not begin with voltpy://; expected {form}")
        if not parts.hostname:
            raise ValueError(f"{url!r} names no host; expected {form}")
        if parts.path not in ("", "/") or parts.fragment or parts.username or parts.password:
            raise ValueError(f"{url!r} has parts that mean nothing here; expected {form}")
        self.url = url
        self.host = parts.hostname
        self.port = DEFAULT_PORT if port is None else port
        self.affinity = True
        for name, value in parse_qsl(parts.query, keep_blank_values=True):
            if name != "affinity":
                raise ValueError(f"{url!r}: unknown option {name!r}; expected {form}")
            if value not in ("on", "off"):
                raise ValueError(f"{url!r}: affinity is on or off, not {value!r}")
            self.affinity = value == "on"

    def check(self) -> None:
        """Raises Unavailable if this machine is meant and nothing listens: that is known at once."""
        if self.host not in ("127.0.0.1", "localhost", "::1"):
            return
        try:
            sockets.create_connection((self.host, self.port), timeout=1.0).close()
        except ConnectionRefusedError:
            raise Unavailable(f"nothing listens at {self.url}: is the cluster started (`voltpy start`)?") from None
        except OSError:
            return  # whatever it is, connecting in earnest will tell

    def tcp(self, port: int) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"tcp://{host}:{port}"


class Link:
    """One connection to a door. `welcomed` once the door has answered our Hello."""

    __slots__ = (
        "_items",
        "_monitor",
        "_monitor_items",
        "_recv",
        "_send",
        "destination",
        "fds",
        "incarnation",
        "opened",
        "socket",
        "wants_to_write",
        "welcomed",
    )

    def __init__(self, destination: int, incarnation: int, endpoint: str, now: float) -> None:
        self.wants_to_write = False  # never: the socket takes everything
        self.destination = destination
        self.incarnation = incarnation
        self.opened = now
        self.welcomed = False
        self.socket = socket = _context().socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDHWM, 0)  # the connection bounds what is in flight
        socket.setsockopt(zmq.RCVHWM, 0)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        socket.setsockopt(zmq.RECONNECT_IVL, _NEVER_MS)
        if endpoint.startswith("tcp://"):
            socket.setsockopt(zmq.HEARTBEAT_IVL, _HEARTBEAT_MS)
            socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, _HEARTBEAT_TIMEOUT_MS)
            socket.setsockopt(zmq.IPV6, 1)
        self._monitor = socket.get_monitor_socket(_ENDINGS)
        socket.connect(endpoint)
        self.fds = (int(socket.getsockopt(zmq.FD)), int(self._monitor.getsockopt(zmq.FD)))
        self._items = [(socket, _POLLIN)]
        self._monitor_items = [(self._monitor, _POLLIN)]
        self._recv = socket.recv
        self._send = socket.send

    def send(self, frames: list[bytes]) -> int:
        """How many of the frames, from the first on, were sent: not all of them when the connection has ended."""
        for sent, frame in enumerate(frames):
            try:
                self._send(frame, _NOBLOCK)
            except zmq.Again:
                return sent
        return len(frames)

    def receive(self) -> bytes | None:
        """The next frame that has arrived, if any."""
        return self._recv(_NOBLOCK) if zmq_poll(self._items, 0) else None  # half the price of getsockopt(EVENTS)

    def may_be_lost(self, fd: int) -> bool:
        """Whether a wake-up of `fd` is reason enough to ask `is_lost`."""
        return fd != self.fds[0]

    def is_lost(self) -> bool:
        """Whether the connection has ended. What arrived before can still be received."""
        return bool(zmq_poll(self._monitor_items, 0))

    def close(self) -> None:
        self.socket.disable_monitor()
        self._monitor.close(0)
        self.socket.close(0)


class StreamLink:
    """A connection to a partition on this machine: the same as a Link, over a Unix socket (see voltpy.stream).

    `wants_to_write` while the socket could not take all that was sent. Raises OSError when nobody listens.
    """

    __slots__ = (
        "_frames",
        "_lost",
        "_reader",
        "_recv",
        "_send",
        "_unsent",
        "destination",
        "fds",
        "incarnation",
        "opened",
        "socket",
        "wants_to_write",
        "welcomed",
    )

    def __init__(self, destination: int, incarnation: int, path: str, now: float) -> None:
        self.destination = destination
        self.incarnation = incarnation
        self.opened = now
        self.welcomed = False
        self.wants_to_write = False
        self.socket = unix = sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM)
        unix.setblocking(False)
        try:
            unix.connect(path)
        except OSError:
            unix.close()
            raise
        unix.setsockopt(sockets.SOL_SOCKET, sockets.SO_SNDBUF, 1 << 20)
        self.fds = (unix.fileno(),)
        self._recv = unix.recv
        self._send = unix.send
        self._reader = FrameReader()
        self._frames: deque[bytes] = deque()
        self._unsent = b""
        self._lost = False

    def send(self, frames: list[bytes]) -> int:
        """How many of the frames were sent: none when the connection has ended.

        They leave together: the partition wakes up once, and finds a whole batch.
        """
        data = packed(frames[0]) if len(frames) == 1 else b"".join(map(packed, frames))
        if self._unsent:
            self._unsent += data
            return len(frames)
        try:
            sent = self._send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            return 0
        if sent < len(data):
            self._unsent = data[sent:]
            self.wants_to_write = True
        return len(frames)

    def receive(self) -> bytes | None:
        """The next frame that has arrived, if any."""
        if self._frames:
            return self._frames.popleft()
        try:
            data = self._recv(READ_BYTES)
            self._frames.extend(self._reader.feed(data))
        except BlockingIOError:
            return None
        except (OSError, ProtocolError):
            self._lost = True
            return None
        if not data:
            self._lost = True
        return self._frames.popleft() if self._frames else None

    def write_on(self) -> None:
        """The socket takes more now."""
        data, self._unsent = self._unsent, b""
        try:
            sent = self._send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._lost = True
            return
        self._unsent = data[sent:]
        self.wants_to_write = bool(self._unsent)

    def may_be_lost(self, fd: int) -> bool:
        return self._lost

    def is_lost(self) -> bool:
        """Whether the connection has ended. What arrived before can still be received."""
        return self._lost

    def close(self) -> None:
        self.socket.close()


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
        if self.connection.topologies != self._topologies_seen:
            self.step(now)

    def step(self, now: float) -> None:
        """What time brings: expired calls, links to open."""
        connection = self.connection
        connection.expire(now)
        if ROUTER not in self.links and now >= self._retry_at.get(ROUTER, 0.0):
            self._open(ROUTER, 0, self.address.tcp(self.address.port), now)
        self._topologies_seen = connection.topologies
        if connection.affinity and connection.topology is not None:
            for destination in [key for key in self.links if key >= len(connection.lanes)]:
                self._drop(self.links[destination], now)
            for lane in connection.lanes:
                self._tend(lane, connection.topology, now)
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
            if destination != ROUTER and not connection.busy():
                # Nothing else can be due from a partition: the last look is put off until the next frame is on its way,
                # since a lone caller waits for this one.
                self._unread.add(destination)
                return
        self._unread.discard(destination)

    def _tend(self, lane: Lane, topology: Topology, now: float) -> None:
        """Keeps a link to the partition's present process, if there is one."""
        link = self.links.get(lane.partition)
        if link is not None and link.incarnation != lane.incarnation:
            self._drop(link, now)
            self._retry_at[lane.partition] = now
            link = None
        if lane.incarnation == 0:
            self._retry_at.pop(lane.partition, None)
        elif link is None and now >= self._retry_at.get(lane.partition, 0.0):
            address = next(entry for entry in topology.partitions if entry.partition == lane.partition)
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
