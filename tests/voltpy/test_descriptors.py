"""Clients that take all file descriptors: what is kept for the process, and whose connections end for it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import zmq

from tests.voltpy.test_unread import PATIENCE_S, until
from voltpy import descriptors as descriptors_module
from voltpy.descriptors import RESERVE_LEAST, Descriptors, reserve
from voltpy.door_sockets import Sockets, opened
from voltpy.sockets import context

LIMIT = 1 << 16


@pytest.fixture
def doors(tmp_path: Path) -> Iterator[tuple[Sockets, int]]:
    made_by = context()
    made = opened(made_by, tmp_path / "p0", "127.0.0.1")
    yield made
    made[0].close(0)
    made_by.term()


def limited(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    """So many descriptors are left."""
    lowest = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest)
    monkeypatch.setattr(descriptors_module, "limit", lambda: lowest + free)


def has_ended(stranger: socket.socket) -> bool:
    with suppress(ConnectionResetError):
        while stranger.recv(4096):  # what ZeroMQ says to everybody
            pass
    return True


def test_they_are_short_when_those_that_are_kept_are_in_use_and_not_again_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(descriptors_module, "LOOK_S", 0.0)
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(RESERVE_LEAST)]
    descriptors = Descriptors()
    limited(monkeypatch, LIMIT)
    assert reserve() < LIMIT // 8
    assert not descriptors.are_short()
    limited(monkeypatch, 1)
    assert descriptors.are_short()
    assert not descriptors.are_short()
    descriptors.close()
    for fd in held:
        os.close(fd)


def test_connections_that_say_nothing_end_and_a_client_stays(
    doors: tuple[Sockets, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    served, port = doors
    client = zmq.Context.instance().socket(zmq.DEALER)
    client.setsockopt(zmq.LINGER, 0)
    client.connect(f"tcp://127.0.0.1:{port}")
    client.send(b"hello")
    strangers = [socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) for _ in range(2 * RESERVE_LEAST)]
    assert all(stranger.recv(1) for stranger in strangers)  # they have been accepted
    arrived = None
    while arrived is None:
        served.wait(0.01)
        arrived = served.receive()
    limited(monkeypatch, 1)
    served._descriptors._not_before_s = 0.0
    served.wait(0)
    monkeypatch.undo()
    assert all(has_ended(stranger) for stranger in strangers)
    assert served.ended == []
    assert served.send(arrived[0], b"served")
    assert client.poll(PATIENCE_S * 1000)
    assert client.recv() == b"served"
    client.close()


def test_where_all_have_said_something_the_newest_go(
    doors: tuple[Sockets, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    served, port = doors
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(RESERVE_LEAST)]
    clients, identities = [], []
    for _ in range(4):
        client = zmq.Context.instance().socket(zmq.DEALER)
        client.setsockopt(zmq.LINGER, 0)
        client.connect(f"tcp://127.0.0.1:{port}")
        client.send(b"hello")
        arrived = None
        while arrived is None:
            served.wait(0.01)
            arrived = served.receive()
        clients.append(client)
        identities.append(arrived[0])
    monkeypatch.setattr("voltpy.door_sockets.reserve", lambda: 2)
    limited(monkeypatch, 1)
    served._descriptors._not_before_s = 0.0
    served.wait(0)
    monkeypatch.undo()
    assert served.ended == [identities[3], identities[2]]
    until(lambda: not served.send(identities[3], b"x"))
    assert served.send(identities[0], b"served")
    assert clients[0].poll(PATIENCE_S * 1000)
    for client in clients:
        client.close()
    for fd in held:
        os.close(fd)
