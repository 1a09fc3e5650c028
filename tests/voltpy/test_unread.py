"""What a ROUTER holds for peers that don't read: real sockets, over tcp and ipc."""

from __future__ import annotations

import os
import resource
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import zmq

from voltpy import unread as unread_module
from voltpy.sockets import context, door_socket, receive_at_door
from voltpy.unread import LOOK_AFTER_BYTES, Unread

MOST_BYTES = 24 << 20  # more than the kernel takes for a peer that reads nothing
FRAME = bytes(1 << 20)
PATIENCE_S = 5


class Place:
    """A ROUTER and its peers."""

    def __init__(self, directory: Path) -> None:
        self.unread = Unread(MOST_BYTES)
        self.context, self.peers_context = context(), context()
        self.router = door_socket(self.context)
        self.router.bind(f"ipc://{directory / 's'}")
        port = self.router.bind_to_random_port("tcp://127.0.0.1")
        self.endpoints = {"tcp": f"tcp://127.0.0.1:{port}", "ipc": f"ipc://{directory / 's'}"}

    def peer(self, transport: str = "tcp") -> tuple[zmq.Socket[bytes], bytes]:
        """A DEALER that is read from when the test does, and its identity."""
        dealer = self.peers_context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.RCVHWM, 1)
        dealer.setsockopt(zmq.RCVBUF, 1 << 16)
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.setsockopt(zmq.RCVTIMEO, PATIENCE_S * 1000)
        dealer.connect(self.endpoints[transport])
        dealer.send(b"hello")
        assert self.router.poll(PATIENCE_S * 1000)
        identity, _ = receive_at_door(self.router, self.unread)
        return dealer, identity

    def send(self, identity: bytes) -> list[bytes]:
        """Sends a frame of 1 MiB; who was cut off for it."""
        self.router.send_multipart((identity, FRAME), zmq.NOBLOCK)
        return self.unread.sent(identity, len(FRAME))

    def is_gone(self, identity: bytes) -> bool:
        try:
            self.router.send_multipart((identity, b"x"), zmq.NOBLOCK)
        except zmq.ZMQError as error:
            return error.errno == zmq.EHOSTUNREACH
        return False


@pytest.fixture
def place() -> Iterator[Place]:
    with tempfile.TemporaryDirectory(prefix="voltpy-") as directory:
        place = Place(Path(directory))
        yield place
        place.peers_context.destroy(linger=0)
        place.context.destroy(linger=0)


def until(condition: Callable[[], bool]) -> None:
    until_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until_s
        time.sleep(0.002)


def test_who_reads_may_be_sent_any_amount(place: Place) -> None:
    dealer, identity = place.peer()
    for _ in range(4 * MOST_BYTES >> 20):
        assert place.send(identity) == []
        assert len(dealer.recv()) == len(FRAME)
    assert place.unread.held_bytes() <= LOOK_AFTER_BYTES


def test_who_reads_nothing_is_cut_off_where_too_much_is_held_and_others_are_served(place: Place) -> None:
    _, silent = place.peer()
    little, slow = place.peer()
    reader, reading = place.peer()
    cut: list[bytes] = []
    for number in range(200):
        if not cut:
            cut = place.send(silent)
        if number < 4:
            assert place.send(slow) == []
        cut += place.send(reading)
        assert len(reader.recv()) == len(FRAME)
        # What the kernel has taken for the silent one is not held here: up to some megabytes.
        assert place.unread.total_bytes <= MOST_BYTES + LOOK_AFTER_BYTES + len(FRAME)
    assert cut == [silent]
    until(lambda: place.is_gone(silent))
    assert [len(little.recv()) for _ in range(4)] == [len(FRAME)] * 4
    assert not place.is_gone(reading)


def test_many_who_hold_a_little_for_ever_go_before_one_who_takes_much(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unread_module, "LOOK_AFTER_BYTES", 2 << 20)
    holders = [place.peer() for _ in range(4)]
    reader, reading = place.peer()
    for _, holder in holders:
        for _ in range(6):
            until(lambda: place.unread.held_bytes() <= MOST_BYTES - 2 * len(FRAME))  # the kernel takes some of it
            assert place.send(holder) == []
    cut: set[bytes] = set()
    for _ in range(8):
        for _ in range((MOST_BYTES >> 21) + 1):  # more than any other has, while it is on its way
            cut.update(place.send(reading))
        for _ in range((MOST_BYTES >> 21) + 1):
            assert len(reader.recv()) == len(FRAME)
    assert cut
    assert cut <= {holder for _, holder in holders}


def test_who_has_taken_more_than_it_was_sent_has_no_credit_for_it(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pings make ZeroMQ answer. Here a peer has taken a gibibyte of answers, and then reads nothing."""
    _, identity = place.peer()
    monkeypatch.setattr(unread_module, "_told", lambda connection, at: 1 << 30)
    sent = 0
    while identity not in place.send(identity):
        sent += len(FRAME)
        assert sent <= MOST_BYTES + LOOK_AFTER_BYTES
    until(lambda: place.is_gone(identity))


def test_a_connection_ends_though_the_process_has_no_descriptor_left(place: Place) -> None:
    _, identity = place.peer()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        place.unread.cut(identity)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    until(lambda: place.is_gone(identity))


@pytest.mark.parametrize("transport", ["tcp", "ipc"])
def test_a_process_of_the_cluster_is_never_cut_off(place: Place, transport: str) -> None:
    dealer, identity = place.peer(transport)
    if transport == "tcp":
        place.unread.trust(identity)
    for _ in range(2 * MOST_BYTES >> 20):
        assert place.send(identity) == []
    assert place.unread.total_bytes == 0
    assert len(dealer.recv()) == len(FRAME)


def test_a_peer_that_is_gone_leaves_nothing_in_the_count(place: Place) -> None:
    dealer, identity = place.peer()
    for _ in range((MOST_BYTES >> 20) - 1):
        place.send(identity)
    assert place.unread.total_bytes > LOOK_AFTER_BYTES
    dealer.close()
    until(lambda: place.is_gone(identity))
    place.peer()  # may get the same descriptor
    assert place.unread.held_bytes() == 0


def test_who_is_cut_off_may_come_back(place: Place) -> None:
    dealer, identity = place.peer()
    place.unread.cut(identity)
    until(lambda: place.is_gone(identity))
    again = b""
    until_s = time.monotonic() + PATIENCE_S
    while not again:
        assert time.monotonic() < until_s
        with suppress(zmq.Again):
            dealer.send(b"hello again", zmq.NOBLOCK)
        if place.router.poll(50):
            again, _ = receive_at_door(place.router, place.unread)
    assert again != identity
    assert place.send(again) == []
    assert len(dealer.recv()) == len(FRAME)


GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
READY = b"\x05READY\x0bSocket-Type\0\0\0\x06DEALER"


def half_a_frame(endpoint: str, half_bytes: int) -> socket.socket:
    """A peer that has sent so much of a frame that is twice as long."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    peer = socket.create_connection((host, int(port)), timeout=PATIENCE_S)
    peer.sendall(GREETING + b"\x04" + bytes([len(READY)]) + READY)
    peer.sendall(b"\x02" + (2 * half_bytes).to_bytes(8, "big") + bytes(half_bytes))
    return peer


def test_frames_that_stay_half_are_bounded_and_those_who_send_whole_ones_are_served(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unread_module, "PARTIAL_BYTES", 4 << 20)
    monkeypatch.setattr(unread_module, "LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(unread_module, "LOOK_SHARE", 0)
    port = int(place.endpoints["tcp"].rpartition(":")[2])
    dealer, identity = place.peer()
    rude = [half_a_frame(place.endpoints["tcp"], 1 << 20) for _ in range(9)]
    until(lambda: sum(size for _, size, _, _ in place.unread._parts(port)) >= 9 << 20)
    assert place.unread.end_partial(port) == []  # strangers all of them
    until(lambda: sum(size for _, size, _, _ in place.unread._parts(port)) <= 4 << 20)
    ended = 0
    for peer in rude:
        peer.setblocking(False)
        with suppress(BlockingIOError, ConnectionResetError):
            while peer.recv(4096):
                pass
            ended += 1
        peer.close()
    assert ended == 6  # there is the handshake too
    assert place.send(identity) == []
    assert len(dealer.recv()) == len(FRAME)


def test_a_client_that_stays_in_the_midst_of_a_frame_goes_before_one_that_has_just_begun(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unread_module, "PARTIAL_BYTES", 4 << 20)
    monkeypatch.setattr(unread_module, "LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(unread_module, "LOOK_SHARE", 0)
    port = int(place.endpoints["tcp"].rpartition(":")[2])
    with half_a_frame(place.endpoints["tcp"], 2 << 20):
        until(lambda: len(place.unread._parts(port)) == 1)
        assert place.unread.end_partial(port) == []
        with half_a_frame(place.endpoints["tcp"], 3 << 20) as busy:
            until(lambda: sum(size for _, size, _, _ in place.unread._parts(port)) >= 5 << 20)
            place.unread.end_partial(port)
            until(lambda: [size >> 20 for _, size, _, _ in place.unread._parts(port)] == [3])
            busy.sendall(bytes(3 << 20))
            assert place.router.poll(PATIENCE_S * 1000)
            assert len(receive_at_door(place.router, place.unread)[1] or b"") == 6 << 20
            assert place.unread._parts(port) == []


def test_whole_frames_are_none_in_part(place: Place) -> None:
    port = int(place.endpoints["tcp"].rpartition(":")[2])
    dealer, _ = place.peer()
    for size in (0, 1, 254, 255, 256, 257, 65535, 65536, *([255] * 3000), *([256] * 3000)):
        dealer.send(bytes(size))
        assert place.router.poll(PATIENCE_S * 1000)
        receive_at_door(place.router, place.unread)
    [peer] = place.unread._peers.values()
    assert 0 < (unread_module._told(peer.connection, unread_module._RECEIVED_AT) or 0) - peer.heard < 512
    assert place.unread._parts(port) == []


class Frame(bytes):
    """A frame that came by a descriptor."""

    fd: int

    def get(self, option: int) -> int:
        return self.fd


def frame_from(fd: int) -> Any:
    frame = Frame()
    frame.fd = fd
    return frame


def test_who_got_the_descriptor_of_one_that_has_left_at_once_is_not_cut_off_for_it(place: Place) -> None:
    """The frame of the first is taken when the second is connected already, with the descriptor of the first."""
    dealer, identity = place.peer()
    dealer.send(b"again")
    assert place.router.poll(PATIENCE_S * 1000)
    place.router.recv()
    fd = int(place.router.recv(copy=False).get(zmq.SRCFD))
    place.unread.heard(b"left at once", frame_from(fd))
    place.unread.gone(b"left at once")
    place.unread.gone(b"never heard")
    assert place.send(identity) == []
    assert len(dealer.recv()) == len(FRAME)


def test_where_the_system_does_not_tell_nobody_is_counted_or_cut_off(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unread_module, "_INFO_BYTES", 64)  # an old struct tcp_info
    dealer, identity = place.peer()
    for _ in range(2 * MOST_BYTES >> 20):
        assert place.send(identity) == []
    monkeypatch.setattr(unread_module, "_SO_COOKIE", 9999)
    uncounted, other = place.peer()
    for _ in range(2 * MOST_BYTES >> 20):
        assert place.send(other) == []
    assert place.unread.held_bytes() == 0
    assert [len(dealer.recv()), len(uncounted.recv())] == [len(FRAME)] * 2


def test_a_descriptor_that_is_no_socket_any_more_is_let_go(place: Place) -> None:
    reader, writer = os.pipe()
    before = len(os.listdir("/proc/self/fd"))
    place.unread.heard(b"left", frame_from(reader))
    assert len(os.listdir("/proc/self/fd")) == before
    os.close(reader)
    os.close(writer)
    place.unread.heard(b"left", frame_from(reader))
    assert place.unread.sent(b"left", 1 << 30) == []
