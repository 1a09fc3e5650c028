"""The partition's sockets, as one source of frames: a ROUTER for everybody, streams for who is on this machine.

    RUNTIME/p<i>, tcp://HOST:*   ROUTER: the router, the supervisor, clients elsewhere
    RUNTIME/p<i>.s               Unix socket: the coordinator, clients here (voltpy.stream says why)

Who sent a frame is an *identity*: the ROUTER's routing id, or the stream itself, so that neither can pose as the other.
Streams are read only when nothing that was read before is left, so a client that floods fills its own socket. What a
stream can make this process hold beside that is bounded; past a bound a connection ends, the coordinator's last:

    a frame of a client that was not welcomed    HELLO_BYTES      its own
    frames that have come in part, of all        PARTIAL_BYTES    that of the client with the largest part
    replies that a client has not read           QUEUED_BYTES     its own
    replies that clients have not read, of all   UNSENT_BYTES     that of the client with most of them

The same holds for what clients of the ROUTER have not read (voltpy.unread), with UNREAD_BYTES of its own.
"""

from __future__ import annotations

import errno
import select
import socket as sockets
import time
from collections import deque
from collections.abc import Hashable
from contextlib import suppress
from pathlib import Path
from typing import cast

import zmq
from zmq import zmq_poll

from voltpy.descriptors import Descriptors, reserve
from voltpy.door import HELLO_BYTES
from voltpy.errors import ProtocolError
from voltpy.messages import MAX_FRAME_BYTES
from voltpy.sockets import bind_tcp, door_socket, receive_at_door
from voltpy.stream import READ_BYTES, FrameReader, packed, stream_path
from voltpy.unread import Unread

PARTIAL_BYTES = 128 << 20  # eight of the largest frames; a client's usual frame of calls is a thousandth of one
QUEUED_BYTES = 96 << 20  # more than a client that keeps to FRAMES_IN_FLIGHT can be answered with at once
UNSENT_BYTES = 256 << 20
UNREAD_BYTES = 128 << 20
STREAMS = 16384
ACCEPT_PAUSE_S = 0.1  # while there are no descriptors or buffers for another stream
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_BUFFER_BYTES = 1 << 20  # what a socket may hold; the system may allow less


class Stream:
    """One client's connection."""

    __slots__ = ("first", "frames", "reader", "socket", "unsent", "waits_to_send")

    def __init__(self, socket: sockets.socket) -> None:
        self.socket = socket
        self.reader = FrameReader(HELLO_BYTES)  # until `admit`
        self.frames: deque[bytes] = deque()
        self.unsent = bytearray()
        self.waits_to_send = False
        self.first = False  # whole batches wait for it: see `admit`


class Sockets:
    """`ended`: streams that are gone, for the door to forget. `stirred`: which of the watched descriptors have had
    something since their owner last emptied it."""

    def __init__(self, router: zmq.Socket[bytes], listener: sockets.socket, tcp_port: int = 0) -> None:
        self._tcp_port = tcp_port
        self._descriptors = Descriptors()
        self.ended: list[Hashable] = []
        self.stirred: set[int] = set()
        self._router = router
        self._listener = listener
        self._streams: dict[int, Stream] = {}
        self._watched: set[int] = set()
        self._partial_bytes = 0  # of all streams
        self._unsent_bytes = 0  # of all streams
        self._unread = Unread(UNREAD_BYTES)
        self._router_items = [(router, int(zmq.POLLIN))]
        self._router_waits = False  # it may have frames
        self._router_used = True  # since it was last asked and had none
        self._buffer = bytearray(READ_BYTES)  # a fresh one for each read would be mapped and unmapped by the system
        self._buffer_view = memoryview(self._buffer)
        self._routers_turn = False  # where both have some, they alternate
        self._firsts_turn = True  # so do who goes first and the others: a frame of it ends the partition's batch
        self._ready: deque[Stream] = deque()  # streams with frames that were read and not taken yet
        self._accepts_at_s = 0.0  # not 0: the listener is not watched until then
        self._epoll = select.epoll()
        self._epoll.register(listener.fileno(), select.EPOLLIN)
        self._epoll.register(router.fileno(), select.EPOLLIN)

    @property
    def held_bytes(self) -> int:
        """What has come in part, and what clients have not read; bounded by itself."""
        return self._partial_bytes + self._unsent_bytes + self._unread.held_bytes()

    def watch(self, fd: int, *, to_write: bool = False) -> None:
        """`wait` returns when there is something at this descriptor too, which is its owner's to read, or room.

        May be called again to change `to_write`.
        """
        change = self._epoll.modify if fd in self._watched else self._epoll.register
        change(fd, select.EPOLLIN | select.EPOLLOUT if to_write else select.EPOLLIN)
        self._watched.add(fd)

    def unwatch(self, fd: int) -> None:
        self._watched.remove(fd)
        self.stirred.discard(fd)
        self._epoll.unregister(fd)

    def wait(self, timeout_s: float) -> None:
        """Looks at all sockets. Returns when something may have arrived, at the latest after `timeout_s`."""
        # The ROUTER's descriptor tells of changes since the last look at it, and sending is a look too: ask it first.
        if self._router_used:
            self._router_waits = self._router_has_input()
        if self._look(0 if self._ready or self._router_waits else timeout_s):
            self._router_waits = self._router_has_input()
        if not self._router_waits:
            self.ended.extend(self._unread.end_partial(self._tcp_port))
        if self._descriptors.are_short():
            self.ended.extend(self._unread.make_room(self._tcp_port, reserve()))

    def receive(self) -> tuple[Hashable, bytes | memoryview | None] | None:
        """The next frame that the last `wait` found, and who sent it; None when there is none left.

        None instead of a frame: the message had several parts.
        """
        while self._ready or self._router_waits:
            if self._router_waits and (self._routers_turn or not self._ready):
                self._routers_turn = False
                try:
                    return receive_at_door(self._router, self._unread)
                except zmq.Again:
                    self._router_waits = False
                    continue
            self._routers_turn = True
            stream = self._ready.popleft()
            self._firsts_turn = not stream.first
            frame = stream.frames.popleft()
            if stream.frames:
                self._ready.append(stream)
            return stream, frame
        return None

    def has_input(self) -> bool:
        """Whether something waits now."""
        if not self._ready:
            self.wait(0)
        return bool(self._ready) or self._router_waits

    def admit(self, identity: Hashable, *, first: bool = False) -> None:
        """Its Hello was accepted: from now on its frames may be as large as any.

        `first`: it is a process of the cluster. On a stream its frames are taken before those of others that came with
        them; and it goes last where one has to go.
        """
        if isinstance(identity, Stream):
            identity.reader.limit_bytes = MAX_FRAME_BYTES
            identity.first = first
        elif first:
            self._unread.trust(cast(bytes, identity))

    def send(self, identity: Hashable, frame: bytes) -> bool:
        """False: whoever it is for is gone, or does not read; nobody waits for them."""
        if isinstance(identity, Stream):
            return self._send_to_stream(identity, frame)
        self._router_used = True
        peer = cast(bytes, identity)
        try:
            self._router.send_multipart((peer, frame), zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                raise
            (self._unread.cut if error.errno == zmq.EAGAIN else self._unread.gone)(peer)
            return False
        cut = self._unread.sent(peer, len(frame))
        self.ended.extend(cut)
        return peer not in cut

    def hang_up(self, identity: Hashable) -> None:
        """Ends a stream. What it was sent and its socket has taken arrives; nothing else ever will."""
        if isinstance(identity, Stream):
            self._end(identity)

    def close(self, linger_ms: int) -> None:
        """Replies that are on their way have `linger_ms` to leave."""
        deadline_s = time.monotonic() + linger_ms / 1000
        for stream in list(self._streams.values()):
            stream.socket.settimeout(max(deadline_s - time.monotonic(), 0.0))
            with suppress(OSError):  # it did not want them
                stream.socket.sendall(stream.unsent)
            stream.socket.close()
        self._listener.close()
        self._epoll.close()
        self._descriptors.close()
        self._router.close(linger_ms)

    def _router_has_input(self) -> bool:
        self._router_used = bool(zmq_poll(self._router_items, 0))  # a third of the price of getsockopt(EVENTS)
        return self._router_used

    def _look(self, timeout_s: float) -> bool:
        """Reads the streams that have something, and takes new ones. Whether the ROUTER stirred."""
        if self._accepts_at_s and time.monotonic() >= self._accepts_at_s:
            self._accepts_at_s = 0.0
            self._epoll.register(self._listener.fileno(), select.EPOLLIN)
        router_stirred = False
        for fd, events in self._epoll.poll(timeout_s):
            stream = self._streams.get(fd)
            if stream is not None:
                if events & select.EPOLLOUT:
                    self._flush(stream)
                if events & ~select.EPOLLOUT and not stream.frames and stream.socket.fileno() >= 0:
                    self._read(stream)
            elif fd == self._listener.fileno():
                self._accept()
            elif fd in self._watched:
                self.stirred.add(fd)
            else:
                router_stirred = True
        return router_stirred

    def _accept(self) -> None:
        while True:
            try:
                socket, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _NO_ROOM:  # it would be ready for ever, and no wait would wait
                    self._epoll.unregister(self._listener.fileno())
                    self._accepts_at_s = time.monotonic() + ACCEPT_PAUSE_S
                return  # or the client is gone already
            if len(self._streams) >= STREAMS:
                socket.close()
                continue
            socket.setblocking(False)
            socket.setsockopt(sockets.SOL_SOCKET, sockets.SO_SNDBUF, _BUFFER_BYTES)
            self._streams[socket.fileno()] = Stream(socket)
            self._epoll.register(socket.fileno(), select.EPOLLIN)

    def _read(self, stream: Stream) -> None:
        reader = stream.reader
        partial_bytes = reader.partial_bytes
        try:
            data = bytes(self._buffer_view[: stream.socket.recv_into(self._buffer)])
            frames = reader.feed(data)
        except BlockingIOError:
            return
        except (OSError, ProtocolError):
            self._partial_bytes += reader.partial_bytes - partial_bytes
            self._end(stream)
            return
        self._partial_bytes += reader.partial_bytes - partial_bytes
        if not data:
            self._end(stream)
        elif frames:
            if not stream.frames:
                goes_ahead = stream.first and self._firsts_turn
                (self._ready.appendleft if goes_ahead else self._ready.append)(stream)
            stream.frames.extend(frames)
        if self._partial_bytes > PARTIAL_BYTES:
            self._end(max(self._streams.values(), key=lambda other: (not other.first, other.reader.partial_bytes)))

    def _send_to_stream(self, stream: Stream, frame: bytes) -> bool:
        if stream.socket.fileno() < 0:
            return False
        data = packed(frame)
        if not stream.unsent:
            sent = self._taken(stream, data)
            if sent == len(data):
                return True
            if stream.socket.fileno() < 0:
                return False
            data = data[sent:]
        stream.unsent += data
        self._unsent_bytes += len(data)
        self._flush(stream)
        if len(stream.unsent) > QUEUED_BYTES:
            self._end(stream)
        elif self._unsent_bytes > UNSENT_BYTES:
            self._end(max(self._streams.values(), key=lambda other: (not other.first, len(other.unsent))))
        return stream.socket.fileno() >= 0

    def _flush(self, stream: Stream) -> None:
        """Sends what the socket takes; the rest when it takes more."""
        sent = self._taken(stream, stream.unsent)
        if stream.socket.fileno() < 0:
            return
        del stream.unsent[:sent]
        self._unsent_bytes -= sent
        if stream.waits_to_send != bool(stream.unsent):
            stream.waits_to_send = bool(stream.unsent)
            interest = select.EPOLLIN | (select.EPOLLOUT if stream.waits_to_send else 0)
            self._epoll.modify(stream.socket.fileno(), interest)

    def _taken(self, stream: Stream, data: bytes | bytearray) -> int:
        """How many of the bytes the socket takes now. A client that is gone takes none, and its stream ends."""
        try:
            return stream.socket.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            self._end(stream)
            return 0

    def _end(self, stream: Stream) -> None:
        """Its frames that were read are still taken: they arrived."""
        fd = stream.socket.fileno()
        if fd < 0:
            return
        self._epoll.unregister(fd)
        del self._streams[fd]
        stream.socket.close()
        # Its account may outlive it, and with that this object.
        self._partial_bytes -= stream.reader.partial_bytes
        stream.reader = FrameReader()
        self._unsent_bytes -= len(stream.unsent)
        stream.unsent = bytearray()
        self.ended.append(stream)


def listen(path: str) -> sockets.socket:
    """A Unix socket for streams."""
    listener = sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM)
    listener.setblocking(False)
    listener.bind(path)
    listener.listen(4096)
    return listener


def opened(made_by: zmq.Context[zmq.Socket[bytes]], ipc_path: Path, host: str) -> tuple[Sockets, int]:
    """Both doors of a process, and the tcp port of its ROUTER. What a dead predecessor left in their places goes."""
    router = door_socket(made_by)
    ipc_path.unlink(missing_ok=True)
    router.bind(f"ipc://{ipc_path}")
    tcp_port = bind_tcp(router, host, 0)
    path = Path(stream_path(str(ipc_path)))
    path.unlink(missing_ok=True)
    return Sockets(router, listen(str(path)), tcp_port), tcp_port
