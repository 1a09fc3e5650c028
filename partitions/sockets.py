"""The partition's sockets, as one source of frames: a ROUTER for everybody, streams for clients on this machine.

    RUNTIME/p<i>, tcp://HOST:*   ROUTER: the router, the supervisor, clients elsewhere
    RUNTIME/p<i>.s               Unix socket: clients here (voltpy.stream says why)

Who sent a frame is an *identity*: the ROUTER's routing id, or the stream itself, so that neither can pose as the other.
Streams are read only when nothing that was read before is left, so a client that floods fills its own socket. A client
that does not read its replies loses its connection when QUEUED_BYTES of them wait.
"""

from __future__ import annotations

import select
import socket as sockets
from collections import deque
from collections.abc import Hashable
from contextlib import suppress
from typing import cast

import zmq

from voltpy.errors import ProtocolError
from voltpy.sockets import receive_at_door
from voltpy.stream import READ_BYTES, FrameReader, packed

QUEUED_BYTES = 96 << 20  # more than a client that keeps to FRAMES_IN_FLIGHT can be answered with at once
STREAMS = 16384
ROUTER_FRAMES_IN_A_ROW = 64
_BUFFER_BYTES = 1 << 20  # what a socket may hold; the system may allow less


class Stream:
    """One client's connection."""

    __slots__ = ("frames", "reader", "socket", "unsent", "waits_to_send")

    def __init__(self, socket: sockets.socket) -> None:
        self.socket = socket
        self.reader = FrameReader()
        self.frames: deque[bytes] = deque()
        self.unsent = bytearray()
        self.waits_to_send = False


class Sockets:
    """`ended`: streams that are gone, for the door to forget."""

    def __init__(self, router: zmq.Socket[bytes], listener: sockets.socket) -> None:
        self.ended: list[Hashable] = []
        self._router = router
        self._listener = listener
        self._streams: dict[int, Stream] = {}
        self._ready: deque[Stream] = deque()  # streams with frames that were read and not taken yet
        self._in_a_row = 0
        self._epoll = select.epoll()
        self._epoll.register(listener.fileno(), select.EPOLLIN)
        self._epoll.register(router.fileno(), select.EPOLLIN)

    def receive(self) -> tuple[Hashable, bytes | memoryview | None] | None:
        """The next frame and who sent it (None instead of a frame: several parts), or None when nothing waits."""
        if not self._ready:
            # Where the ROUTER always has more, streams get their turn all the same.
            self._in_a_row = (self._in_a_row + 1) % ROUTER_FRAMES_IN_A_ROW
            if not self._in_a_row:
                self._look(0)
        if not self._ready:
            try:
                return receive_at_door(self._router)
            except zmq.Again:
                self._look(0)
                if not self._ready:
                    return None
        stream = self._ready.popleft()
        frame = stream.frames.popleft()
        if stream.frames:
            self._ready.append(stream)
        return stream, frame

    def has_input(self) -> bool:
        if not self._ready and not self._router_has_input():
            self._look(0)
        return bool(self._ready) or self._router_has_input()

    def wait(self, timeout_s: float) -> None:
        """Returns when something may have arrived."""
        # The ROUTER's descriptor tells of changes since the last look at it, and sending is a look too.
        if not self._ready and not self._router_has_input():
            self._look(timeout_s)

    def send(self, identity: Hashable, frame: bytes) -> bool:
        """False: whoever it is for is gone, or does not read; nobody waits for them."""
        if isinstance(identity, Stream):
            return self._send_to_stream(identity, frame)
        try:
            self._router.send_multipart((cast(bytes, identity), frame), zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                raise
            return False
        return True

    def close(self, linger_ms: int) -> None:
        """Replies that are on their way have `linger_ms` to leave."""
        for stream in list(self._streams.values()):
            stream.socket.settimeout(linger_ms / 1000)
            with suppress(OSError):  # it did not want them
                stream.socket.sendall(stream.unsent)
            stream.socket.close()
        self._listener.close()
        self._epoll.close()
        self._router.close(linger_ms)

    def _router_has_input(self) -> bool:
        return bool(cast(int, self._router.get(zmq.EVENTS)) & zmq.POLLIN)

    def _look(self, timeout_s: float) -> None:
        for fd, events in self._epoll.poll(timeout_s):
            stream = self._streams.get(fd)
            if stream is not None:
                if events & select.EPOLLOUT:
                    self._flush(stream)
                if events & ~select.EPOLLOUT and stream.socket.fileno() >= 0:
                    self._read(stream)
            elif fd == self._listener.fileno():
                self._accept()

    def _accept(self) -> None:
        while True:
            try:
                socket, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError:  # the client is gone already, or there are no descriptors left
                return
            if len(self._streams) >= STREAMS:
                socket.close()
                continue
            socket.setblocking(False)
            socket.setsockopt(sockets.SOL_SOCKET, sockets.SO_SNDBUF, _BUFFER_BYTES)
            self._streams[socket.fileno()] = Stream(socket)
            self._epoll.register(socket.fileno(), select.EPOLLIN)

    def _read(self, stream: Stream) -> None:
        try:
            data = stream.socket.recv(READ_BYTES)
            frames = stream.reader.feed(data)
        except BlockingIOError:
            return
        except (OSError, ProtocolError):
            self._end(stream)
            return
        if not data:
            self._end(stream)
        elif frames:
            if not stream.frames:
                self._ready.append(stream)
            stream.frames.extend(frames)

    def _send_to_stream(self, stream: Stream, frame: bytes) -> bool:
        if stream.socket.fileno() < 0:
            return False
        stream.unsent += packed(frame)
        self._flush(stream)
        if len(stream.unsent) > QUEUED_BYTES:
            self._end(stream)
        return stream.socket.fileno() >= 0

    def _flush(self, stream: Stream) -> None:
        """Sends what the socket takes; the rest when it takes more."""
        try:
            sent = stream.socket.send(stream.unsent)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._end(stream)
            return
        del stream.unsent[:sent]
        if stream.waits_to_send != bool(stream.unsent):
            stream.waits_to_send = bool(stream.unsent)
            interest = select.EPOLLIN | (select.EPOLLOUT if stream.waits_to_send else 0)
            self._epoll.modify(stream.socket.fileno(), interest)

    def _end(self, stream: Stream) -> None:
        """Its frames that were read are still taken: they arrived."""
        fd = stream.socket.fileno()
        if fd < 0:
            return
        self._epoll.unregister(fd)
        del self._streams[fd]
        stream.socket.close()
        self.ended.append(stream)


def listen(path: str) -> sockets.socket:
    """A Unix socket for streams."""
    listener = sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM)
    listener.setblocking(False)
    listener.bind(path)
    listener.listen(4096)
    return listener
