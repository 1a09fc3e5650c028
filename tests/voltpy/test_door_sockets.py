"""The partition's sockets where the system has no more to give."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import pytest
import zmq

from voltpy import door_sockets as sockets_module
from voltpy.door import HELLO_BYTES
from voltpy.door_sockets import ACCEPT_PAUSE_S, Sockets, listen
from voltpy.messages import MAX_FRAME_BYTES
from voltpy.stream import packed

PATIENCE_S = 20


class Exhausted:
    """A listener that never has a descriptor for whoever knocks."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self.fileno = listener.fileno
        self.close = listener.close
        self.knocks = 0

    def accept(self) -> NoReturn:
        self.knocks += 1
        raise OSError(errno.EMFILE, "Too many open files")


def test_without_descriptors_for_another_stream_it_waits_and_takes_it_later(tmp_path: Path) -> None:
    context = zmq.Context()
    listener = listen(str(tmp_path / "s"))
    exhausted = Exhausted(listener)
    doors = Sockets(context.socket(zmq.ROUTER), exhausted)  # type: ignore[arg-type]
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(tmp_path / "s"))
    client.sendall(packed(b"frame"))
    until_s = time.monotonic() + 3 * ACCEPT_PAUSE_S
    while time.monotonic() < until_s:
        doors.wait(0.02)
    assert 1 <= exhausted.knocks <= 4
    doors._listener = listener
    until_s = time.monotonic() + 10
    while (arrived := doors.receive()) is None and time.monotonic() < until_s:
        doors.wait(0.02)
    assert arrived is not None
    assert bytes(arrived[1] or b"") == b"frame"
    client.close()
    doors.close(0)
    context.term()


def test_clients_that_do_not_read_share_one_wait_at_the_end(tmp_path: Path) -> None:
    context = zmq.Context()
    doors = Sockets(context.socket(zmq.ROUTER), listen(str(tmp_path / "s")))
    clients = []
    for _ in range(5):
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(tmp_path / "s"))
        client.sendall(packed(b"hello"))
        clients.append(client)
    while len(doors._streams) < 5:
        doors.wait(0.02)
    for stream in list(doors._streams.values()):
        assert doors.send(stream, bytes(8 << 20))
    began_s = time.monotonic()
    doors.close(300)
    assert time.monotonic() - began_s < 1.2
    for client in clients:
        client.close()
    context.term()


def test_a_stream_is_not_read_while_frames_of_it_wait(tmp_path: Path) -> None:
    context = zmq.Context()
    doors = Sockets(context.socket(zmq.ROUTER), listen(str(tmp_path / "s")))
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(tmp_path / "s"))
    client.setblocking(False)
    sent = 0
    for _ in range(500):  # each turn takes one frame; the client sends as many as it can
        try:
            while True:
                sent += client.send(packed(bytes(1000)))
        except BlockingIOError:
            pass
        doors.wait(0)
        doors.receive()
    assert sent < 4 << 20  # the rest waits in its own socket
    client.close()
    doors.close(0)
    context.term()


class Door:
    """The partition's sockets, and clients of its streams."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.context = zmq.Context()
        self.sockets = Sockets(self.context.socket(zmq.ROUTER), listen(path))
        self.clients: list[socket.socket] = []

    def client(self, *, admitted: bool = True, first: bool = False) -> socket.socket:
        """A connection on which one frame has been taken; a client that does not wait for anything."""
        client = socket.socket(socket.AF_UNIX)
        client.connect(self.path)
        self.clients.append(client)
        client.sendall(packed(b"hello"))
        identity, _ = self.frame()
        assert isinstance(identity, Hashable)
        if admitted:
            self.sockets.admit(identity, first=first)
        client.setblocking(False)
        return client

    def frame(self) -> tuple[object, bytes]:
        """The next frame, and its stream."""
        while (arrived := self.sockets.receive()) is None:
            self.sockets.wait(0.02)
        return arrived[0], bytes(arrived[1] or b"")

    def until(self, condition: Callable[[], bool]) -> None:
        until_s = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < until_s
            self.sockets.wait(0.02)

    def takes(self, client: socket.socket, data: bytes) -> None:
        """Sends all of it, and has it read."""
        at = 0
        while at < len(data):
            try:
                at += client.send(data[at:])
            except BlockingIOError:
                self.sockets.wait(0.02)
        while self.sockets.has_input() and self.sockets.receive() is None:
            pass

    def close(self) -> None:
        for client in self.clients:
            client.close()
        self.sockets.close(0)
        self.context.term()


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    door = Door(str(tmp_path / "s"))
    yield door
    door.close()


def is_closed(client: socket.socket) -> bool:
    """Whether nothing more comes, after what has come."""
    try:
        while client.recv(1 << 20):
            pass
    except BlockingIOError:
        return False
    except ConnectionResetError:
        pass
    return True


def test_a_client_that_was_not_welcomed_announces_no_large_frame(door: Door) -> None:
    stranger, guest = door.client(admitted=False), door.client()
    stranger.sendall(packed(bytes(HELLO_BYTES)))
    assert len(door.frame()[1]) == HELLO_BYTES
    guest.sendall((MAX_FRAME_BYTES).to_bytes(4, "little"))
    stranger.sendall((HELLO_BYTES + 1).to_bytes(4, "little"))
    door.until(lambda: is_closed(stranger))
    assert not is_closed(guest)
    assert len(door.sockets.ended) == 1


def test_where_too_many_frames_come_in_part_the_largest_part_is_lost(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets_module, "PARTIAL_BYTES", 1 << 20)
    announced = (4 << 20).to_bytes(4, "little")
    small, large, last = door.client(), door.client(), door.client()
    door.takes(small, announced + bytes(200_000))
    door.takes(large, announced + bytes(600_000))
    for _ in range(20):  # frames that are complete are none of it
        door.takes(last, packed(bytes(90_000)))
    door.until(lambda: door.sockets._partial_bytes == 800_008)
    assert not door.sockets.ended
    door.takes(last, announced + bytes(300_000))
    door.until(lambda: is_closed(large))
    assert (is_closed(small), is_closed(last)) == (False, False)
    assert door.sockets._partial_bytes == 500_008
    small.close()
    last.sendall(bytes(1))
    door.until(lambda: door.sockets._partial_bytes == 300_005)


def test_a_frame_that_is_too_large_leaves_nothing_in_the_count(door: Door) -> None:
    client = door.client()
    door.takes(client, (MAX_FRAME_BYTES + 1).to_bytes(4, "little")[:3])
    door.until(lambda: door.sockets._partial_bytes == 3)
    door.takes(client, (MAX_FRAME_BYTES + 1).to_bytes(4, "little")[3:] + bytes(100))
    door.until(lambda: is_closed(client))
    assert door.sockets._partial_bytes == 0


def test_where_too_many_replies_are_unread_the_client_with_most_of_them_is_lost(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets_module, "UNSENT_BYTES", 33 << 20)
    clients = [door.client() for _ in range(3)]
    streams = list(door.sockets._streams.values())
    for stream, mebibytes in zip(streams, (8, 18, 6), strict=True):
        assert door.sockets.send(stream, bytes(mebibytes << 20))
    # Those who read make room for the others.
    expected = 4 + (8 << 20)
    while expected:
        door.sockets.wait(0)
        with suppress(BlockingIOError):
            expected -= len(clients[0].recv(1 << 20))
    unread_bytes = sum(len(stream.unsent) for stream in streams)
    assert (door.sockets._unsent_bytes, len(streams[0].unsent)) == (unread_bytes, 0)
    assert not door.sockets.ended
    assert door.sockets.send(streams[0], bytes(17 << 20))  # the others are the ones who do not read
    assert door.sockets.ended == [streams[1]]
    assert not door.sockets.send(streams[1], b"x")
    assert is_closed(clients[1])
    assert door.sockets._unsent_bytes == len(streams[0].unsent) + len(streams[2].unsent) > 15 << 20
    clients[0].close()
    door.until(lambda: door.sockets._unsent_bytes == len(streams[2].unsent))


def test_who_was_admitted_first_is_heard_before_the_others(door: Door) -> None:
    clients = [door.client(first=number == 2) for number in range(3)]
    for number, client in enumerate(clients):
        client.sendall(packed(b"%d: one" % number) + packed(b"%d: two" % number))
    door.sockets.wait(PATIENCE_S)  # what was sent over a Unix socket is there
    heard = []
    while (arrived := door.sockets.receive()) is not None:
        heard.append(bytes(arrived[1] or b""))
    assert heard[0] == b"2: one"
    assert heard.index(b"2: two") > 1  # the others have their turn too
    assert sorted(heard) == sorted(b"%d: %s" % (number, word) for number in range(3) for word in (b"one", b"two"))


def test_who_was_admitted_first_and_always_has_a_frame_keeps_nobody_from_being_heard(door: Door) -> None:
    coordinator, client = door.client(first=True), door.client()
    client.sendall(packed(b"call"))
    heard = []
    for _ in range(4):  # a partition's batches: each ends with an order
        coordinator.sendall(packed(b"order"))
        door.sockets.wait(PATIENCE_S)
        heard.append(door.frame()[1])
    assert heard == [b"order", b"call", b"order", b"order"]


def test_what_a_client_that_is_gone_did_not_take_leaves_nothing_in_the_count(door: Door) -> None:
    client = door.client()
    (stream,) = door.sockets._streams.values()
    client.close()
    assert not door.sockets.send(stream, bytes(1000))
    assert not door.sockets.send(stream, bytes(1000))
    assert (door.sockets.held_bytes, len(stream.unsent)) == (0, 0)
    assert door.sockets.ended == [stream]


def test_whoever_is_hung_up_on_has_what_was_sent_and_then_the_end(door: Door) -> None:
    client, other = door.client(first=True), door.client()
    (stream, _) = door.sockets._streams.values()
    assert door.sockets.send(stream, b"last")
    door.sockets.hang_up(stream)
    assert client.recv(100) == packed(b"last")
    assert is_closed(client)
    assert not is_closed(other)
    assert not door.sockets.send(stream, b"more")


def test_who_was_admitted_first_goes_last_where_somebody_has_to_go(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets_module, "UNSENT_BYTES", 33 << 20)
    coordinator, client = door.client(first=True), door.client()
    streams = list(door.sockets._streams.values())
    assert door.sockets.send(streams[1], bytes(14 << 20))
    assert door.sockets.send(streams[0], bytes(28 << 20))
    assert door.sockets.ended == [streams[1]]
    assert (is_closed(client), is_closed(coordinator)) == (True, False)


def test_a_watched_descriptor_stirs_for_what_comes_and_for_room(door: Door) -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    door.sockets.watch(ours.fileno())
    door.sockets.wait(0)
    assert door.sockets.stirred == set()
    theirs.send(b"x")
    door.sockets.wait(PATIENCE_S)
    assert door.sockets.stirred == {ours.fileno()}
    ours.recv(1)
    door.sockets.stirred.clear()
    with suppress(BlockingIOError):
        while True:
            ours.send(bytes(1 << 16))
    door.sockets.watch(ours.fileno(), to_write=True)
    door.sockets.wait(0)
    assert door.sockets.stirred == set()
    while not door.sockets.stirred:
        assert theirs.recv(1 << 16)
        door.sockets.wait(0)
    assert door.sockets.stirred == {ours.fileno()}
    door.sockets.unwatch(ours.fileno())
    assert door.sockets.stirred == set()
    ours.close()
    theirs.close()
