"""One connection to a door, from its Hello to its loss: over ZeroMQ, or over a Unix socket. Nothing blocks.

A link is never mended but replaced, so that no frame of an old connection can reach a restarted process. Therefore
reconnecting is put off for ever (the queue of a disconnected socket stays readable: answers that arrived before a
process died still count) and a monitor tells of the loss.
"""

from __future__ import annotations

import os
import socket as sockets
from collections import deque
from typing import Final

import zmq
from zmq import zmq_poll

from voltpy.errors import ProtocolError
from voltpy.messages import MAX_FRAME_BYTES
from voltpy.stream import READ_BYTES, FrameReader, packed

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


def _context() -> zmq.Context[zmq.Socket[bytes]]:
    """One for all clients of the process: a context is a thread."""
    context = _contexts.get(os.getpid())
    if context is None:
        context = zmq.Context()
        context.set(zmq.MAX_SOCKETS, 65535)
        _contexts[os.getpid()] = context
    return context


class Link:
    """One connection to a door. `welcomed` once the door has answered our Hello.

    `knows_when_empty`: whether the last `receive`, which finds nothing, costs nothing.
    """

    knows_when_empty: Final = False
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

    knows_when_empty: Final = True
    __slots__ = (
        "_empty",
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
        self._empty = False  # the last read took all that there was: what comes later wakes whoever watches the socket

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
        if self._empty:
            self._empty = False
            return None
        self._read()
        if self._frames:
            return self._frames.popleft()
        self._empty = False  # this was the look that found nothing
        return None

    def read_all(self) -> None:
        """Takes in whatever has arrived until now, its end too: `receive`, then `is_lost`, have it without a look."""
        while not self._lost and self._read():
            pass
        self._empty = True  # the last look found nothing: `receive` would look once more

    def _read(self) -> bool:
        """Whether there was something to read."""
        try:
            data = self._recv(READ_BYTES)
            self._empty = 0 < len(data) < READ_BYTES
            self._frames.extend(self._reader.feed(data))
        except BlockingIOError:
            return False
        except (OSError, ProtocolError):
            self._lost = True
            return False
        if not data:
            self._lost = True
        return bool(data)

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
