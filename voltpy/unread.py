"""What a ROUTER holds for peers that do not read, and the end of those for whom it holds most.

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

A connection is found by the descriptor that came with its frames, and is ours only if its cookie (a number that Linux
gives to no other socket) is still the same. `shutdown` ends it, and ZeroMQ frees what it holds for it.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from itertools import islice
from typing import NamedTuple

import zmq

LOOK_AFTER_BYTES = 16 << 20  # sent since the last look, at least
SLACK_BYTES = 4096
PEERS = 65536
_SO_COOKIE = 57  # include/uapi/asm-generic/socket.h
_INFO_BYTES = 128
_ACKED = struct.Struct("@Q")  # tcpi_bytes_acked in struct tcp_info
_ACKED_AT = 120
_COOKIE_BYTES = 8


class Connection(NamedTuple):
    """Where a peer is: a descriptor of ZeroMQ's, valid as long as the socket behind it has this cookie."""

    fd: int
    cookie: bytes
    family: int


class Peer:
    """`sent` bytes, in ZeroMQ's framing, of which `unread` were not taken when last looked, or sent since.

    `marked` is what had been sent at look number `marked_at`, where some of it may not have been taken since.
    """

    __slots__ = ("connection", "is_trusted", "marked", "marked_at", "sent", "unread")

    def __init__(self, connection: Connection, sent: int) -> None:
        self.connection = connection
        self.sent = sent
        self.unread = 0
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
        self._peers: dict[bytes, Peer] = {}

    def heard(self, identity: bytes, frame: zmq.Frame) -> None:
        """A frame of this peer has come."""
        if identity in self._peers:
            return
        connection = _connection(frame)
        if connection is None:
            return
        if len(self._peers) >= PEERS:
            self._make_room()
        self._peers[identity] = Peer(connection, _taken(connection) or 0)

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
        frame_bytes += 2 if frame_bytes < 256 else 9  # ZMTP: flags and length
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
            taken = _taken(peer.connection)
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


def _taken(connection: Connection) -> int | None:
    """How many bytes the other side has taken; None when the connection is gone, or is none over TCP."""
    try:
        found = socket.socket(connection.family, socket.SOCK_STREAM, fileno=connection.fd)
    except OSError:
        return None
    try:
        if found.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, _COOKIE_BYTES) != connection.cookie:
            return None
        info = found.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
        return int(_ACKED.unpack_from(info, _ACKED_AT)[0])
    except (OSError, struct.error):  # struct.error: a system that does not count what was taken
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
