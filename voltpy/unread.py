"""What a ROUTER holds for peers that do not read, or send no frame to its end; and the end of their connections.

ZeroMQ bounds what it queues for a peer in frames, 64 of up to 4 MiB here, keeps it as long as the connection lasts, and
neither tells how much that is nor ends a connection: a few hundred clients that ask and never read would be gigabytes.
The kernel knows how many bytes the other side of a TCP connection has taken. What was sent less what was taken is an
upper bound of what is held. It is looked at when so much has been sent since the last look that all of it together
could be half of what is too much: nothing a client who reads ever pays for. Where it is too much, those go first for
whom something has been held for most looks, and of these the one with most: many who each hold a little for ever must
not cost a client its connection who takes what it is sent, be that much. Over ipc come the processes of the cluster,
and whoever could kill them: what is held for them is not counted.

A peer takes more than it was sent where it makes ZeroMQ answer it, by pings: a few bytes at the handshake, or any
number, in order that nothing of what is sent then seems to be held. Past SLACK_BYTES a look does not believe it.

The other way round: of a frame that comes in part ZeroMQ keeps what there is, up to 16 MiB for each connection, be it
of a stranger. What the kernel has passed on less the frames that have been taken is that part, at a moment when there
is no frame to take. Past PARTIAL_BYTES of all together, the connections end that have sent part of one for longest.

A connection is found by the descriptor that came with its frames, and is ours only if its cookie (a number that Linux
gives to no other socket) is still the same. `shutdown` ends it, and ZeroMQ frees what it holds for it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
import sys
import termios
import time
from itertools import islice
from typing import NamedTuple

import zmq

from voltpy.descriptors import limit

LOOK_AFTER_BYTES = 16 << 20  # sent since the last look, at least
SLACK_BYTES = 4096
PARTIAL_BYTES = 128 << 20  # as of streams
LOOK_EVERY_S = 0.5
LOOK_SHARE = 200  # of the time goes into looks at frames in part, at most: one part of so many
PEERS = 65536
_SO_COOKIE = 57  # include/uapi/asm-generic/socket.h
_INFO_BYTES = 136
_BYTES = struct.Struct("@Q")  # tcpi_bytes_acked in struct tcp_info
_ACKED_AT, _RECEIVED_AT = 120, 128  # tcpi_bytes_received
_COOKIE_BYTES = 8


class Connection(NamedTuple):
    """Where a peer is: a descriptor of ZeroMQ's, valid as long as the socket behind it has this cookie."""

    fd: int
    cookie: bytes
    family: int


class Peer:
    """`sent` bytes, in ZeroMQ's framing, of which `unread` were not taken when last looked, or sent since.

    `heard` bytes came from it in whole frames; there was part of another one at `stalled` looks in a row, the last time
    behind `heard_before`.

    `marked` is what had been sent at look number `marked_at`, where some of it may not have been taken since.
    """

    __slots__ = (
        "connection", "heard", "heard_before", "is_trusted", "marked", "marked_at", "sent", "stalled", "unread",
    )  # fmt: skip

    def __init__(self, connection: Connection, sent: int) -> None:
        self.connection = connection
        self.sent = sent
        self.unread = 0
        self.heard = self.heard_before = self.stalled = 0
        self.marked = sent
        self.marked_at = 0
        self.is_trusted = connection.family != socket.AF_INET and connection.family != socket.AF_INET6


class Unread:
    """`total_bytes`: of all peers, an upper bound. Past `most_bytes` those go that have held something for longest."""

    def __init__(self, most_bytes: int) -> None:
        self.total_bytes = 0
        self._most_bytes = most_bytes
        self._look_at_bytes = most_bytes // 2
        self._looks = 0
        self._partial_at_s = 0.0
        self._strangers: dict[bytes, int] = {}  # by cookie, those with part of a frame: for how many looks
        self._peers: dict[bytes, Peer] = {}

    def heard(self, identity: bytes, frame: zmq.Frame) -> None:
        """A frame of this peer has come."""
        peer = self._peers.get(identity)
        if peer is not None:
            peer.heard += _framed(len(frame))
            return
        connection = _connection(frame)
        if connection is None:
            return
        if len(self._peers) >= PEERS:
            self._make_room()
        peer = self._peers[identity] = Peer(connection, _told(connection, _ACKED_AT) or 0)
        peer.heard = _framed(len(frame))

    def trust(self, identity: bytes) -> None:
        """It is a process of the cluster: never cut off, and not counted."""
        peer = self._peers.get(identity)
        if peer is not None:
            self.total_bytes -= peer.unread
            peer.unread = 0
            peer.is_trusted = True

    def sent(self, identity: bytes, frame_bytes: int) -> list[bytes]:
        """The peer was sent a frame. Returns those that have been cut off for it: nothing more reaches them."""
        peer = self._peers.get(identity)
        if peer is None or peer.is_trusted:
            return []
        frame_bytes = _framed(frame_bytes)
        if not peer.unread:
            peer.marked = peer.sent
            peer.marked_at = self._looks
        peer.sent += frame_bytes
        peer.unread += frame_bytes
        self.total_bytes += frame_bytes
        if self.total_bytes <= self._look_at_bytes:
            return []
        self._look()
        cut = self._cut_oldest() if self.total_bytes > self._most_bytes else []
        self._look_at_bytes = max(self._most_bytes // 2, self.total_bytes + LOOK_AFTER_BYTES)
        return cut

    def gone(self, identity: bytes) -> None:
        """Nothing reaches this peer any more. Its descriptor may be somebody else's: the connection is left alone."""
        if identity in self._peers:
            self._forget(identity)

    def cut(self, identity: bytes) -> None:
        """Ends the connection to a peer that does not read: what is held for it is freed."""
        peer = self._peers.get(identity)
        if peer is not None and not peer.is_trusted:
            _end(peer.connection)
            self._forget(identity)

    def make_room(self, port: int, connections: int) -> list[bytes]:
        """Ends so many connections at this port of ours, at least: all that have sent no frame, then the newest others.

        Returns those of the latter.
        """
        for stranger in _strangers(port, {peer.connection.fd for peer in self._peers.values()}):
            _end(stranger)
            connections -= 1
        cut: list[bytes] = []
        for identity in reversed(list(self._peers)):
            if len(cut) >= connections:
                break
            if not self._peers[identity].is_trusted:
                cut.append(identity)
                self.cut(identity)
        return cut

    def end_partial(self, port: int) -> list[bytes]:
        """To be called where there is no frame to take. Returns those that have been cut off, if it is time to look.

        `port`: ours, to know the connections of strangers by.
        """
        began_s = time.monotonic()
        if began_s < self._partial_at_s:
            return []
        parts = self._parts(port)
        cut: list[bytes] = []
        total_bytes = sum(size for _, size, _, _ in parts)
        if total_bytes > PARTIAL_BYTES:
            parts.sort(key=lambda part: part[:2])
        while total_bytes > PARTIAL_BYTES:
            _, size, connection, identity = parts.pop()
            total_bytes -= size
            if identity is None:
                _end(connection)
            else:
                cut.append(identity)
                self.cut(identity)
        took_s = time.monotonic() - began_s
        self._partial_at_s = began_s + max(LOOK_EVERY_S, LOOK_SHARE * took_s)
        return cut

    def _parts(self, port: int) -> list[tuple[int, int, Connection, bytes | None]]:
        """Of each connection with part of a frame: for how many looks, its bytes, and whose it is."""
        parts: list[tuple[int, int, Connection, bytes | None]] = []
        for identity, peer in self._peers.items():
            if peer.is_trusted:
                continue
            size = (_told(peer.connection, _RECEIVED_AT) or 0) - peer.heard
            is_same = peer.heard == peer.heard_before
            peer.heard_before = peer.heard
            if size <= SLACK_BYTES:
                peer.stalled = 0
                continue
            peer.stalled = peer.stalled + 1 if is_same else 0
            parts.append((peer.stalled, size, peer.connection, identity))
        strangers: dict[bytes, int] = {}
        for connection in _strangers(port, {peer.connection.fd for peer in self._peers.values()}):
            size = _told(connection, _RECEIVED_AT) or 0
            if size > SLACK_BYTES:
                stalled = strangers[connection.cookie] = self._strangers.get(connection.cookie, -1) + 1
                parts.append((stalled, size, connection, None))
        self._strangers = strangers
        return parts

    def held_bytes(self) -> int:
        """About as much as is held now."""
        if self.total_bytes > LOOK_AFTER_BYTES:
            self._look()
        return self.total_bytes

    def _look(self) -> None:
        """Asks the kernel about all that were sent something."""
        self._looks += 1
        for identity, peer in list(self._peers.items()):
            if not peer.unread:
                continue
            taken = _told(peer.connection, _ACKED_AT)
            if taken is None:
                self._forget(identity)
                continue
            if taken > peer.sent + SLACK_BYTES:
                peer.sent = taken + peer.unread
            else:
                unread = min(max(peer.sent - taken, 0), peer.unread)
                self.total_bytes -= peer.unread - unread
                peer.unread = unread
                peer.sent = max(peer.sent, taken)
                if taken >= peer.marked:
                    peer.marked = peer.sent
                    peer.marked_at = self._looks

    def _cut_oldest(self) -> list[bytes]:
        holding = [(-peer.marked_at, peer.unread, identity) for identity, peer in self._peers.items() if peer.unread]
        identities = [identity for _, _, identity in sorted(holding)]
        cut = []
        while self.total_bytes > self._most_bytes:
            cut.append(identities.pop())
            self.cut(cut[-1])
        return cut

    def _make_room(self) -> None:
        """Forgets one of those that were heard first, for whom nothing is held."""
        for identity in list(islice(self._peers, 100)):
            peer = self._peers[identity]
            if not peer.unread and not peer.is_trusted:
                self._forget(identity)
                return
            self._peers[identity] = self._peers.pop(identity)
        self._forget(next(iter(self._peers)))

    def _forget(self, identity: bytes) -> None:
        self.total_bytes -= self._peers.pop(identity).unread


def _framed(frame_bytes: int) -> int:
    """With ZMTP's flags and length."""
    return frame_bytes + (2 if frame_bytes < 256 else 9)


def _connection(frame: zmq.Frame) -> Connection | None:
    """The connection that a frame came by; None where there is none any more, or the system does not tell."""
    try:
        fd = int(frame.get(zmq.SRCFD))
        found = socket.socket(fileno=fd)
    except (ValueError, OSError, zmq.ZMQError):
        return None
    try:
        return Connection(fd, found.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, _COOKIE_BYTES), found.family)
    except OSError:  # a system without cookies
        return None
    finally:
        found.detach()  # the descriptor is ZeroMQ's


def _strangers(port: int, known: set[int]) -> list[Connection]:
    """The TCP connections at this port whose descriptors are not known."""
    try:
        fds = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:  # that takes a descriptor
        fds = list(range(limit()))
    found = []
    for fd in fds:
        if fd in known:
            continue
        try:
            one = socket.socket(fileno=fd)
        except OSError:  # no socket, or closed meanwhile
            continue
        try:
            if one.family in (socket.AF_INET, socket.AF_INET6) and one.getsockname()[1] == port:
                one.getpeername()  # OSError: it is what listens
                cookie = one.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, _COOKIE_BYTES)
                found.append(Connection(fd, cookie, one.family))
        except OSError:
            pass
        finally:
            one.detach()
    return found


def _told(connection: Connection, at: int) -> int | None:
    """How many bytes the other side has taken, or ZeroMQ from the other side. None when the connection is gone, or is
    none over TCP."""
    try:
        found = socket.socket(connection.family, socket.SOCK_STREAM, fileno=connection.fd)
    except OSError:
        return None
    try:
        if found.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, _COOKIE_BYTES) != connection.cookie:
            return None
        info = found.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
        told = int(_BYTES.unpack_from(info, at)[0])
        if at == _RECEIVED_AT:  # less what it still has
            told -= int.from_bytes(fcntl.ioctl(found, termios.FIONREAD, bytes(4)), sys.byteorder)
        return told
    except (OSError, struct.error):  # struct.error: a system that does not count them
        return None
    finally:
        found.detach()


def _end(connection: Connection) -> None:
    """Ends the connection, if it is still the same."""
    try:
        fd = os.dup(connection.fd)  # no other socket can take its place meanwhile
    except OSError as error:
        if error.errno != errno.EMFILE:
            return
        fd = connection.fd  # what is held must not stay for want of a descriptor, of which the peer may have them all
    found = None
    try:
        found = socket.socket(fileno=fd)
        if found.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, _COOKIE_BYTES) == connection.cookie:
            found.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # it has ended by itself
    finally:
        if found is not None:
            found.detach()
        if fd != connection.fd:
            os.close(fd)
