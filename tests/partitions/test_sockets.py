"""The partition's sockets where the system has no more to give."""

from __future__ import annotations

import errno
import socket
import time
from pathlib import Path
from typing import NoReturn

import zmq

from partitions.sockets import ACCEPT_PAUSE_S, Sockets, listen
from voltpy.stream import packed


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
