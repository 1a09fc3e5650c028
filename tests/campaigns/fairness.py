"""How long a lone small caller waits beside one greedy client, by router and straight at a partition.

    python -m tests.campaigns.fairness [--seconds 4] [--kinds nobody arguments results flood] [--paths router direct]

The greedy client is a process of its own with connections made by hand; it reads what it is sent, and always has as
much in flight as its kind says:

    nobody       (the lone caller is alone)
    arguments    64 calls with an argument of 1 MiB each, a call a frame
    results      64 calls with a result of 1 MiB each, eight calls a frame
    flood        16 frames of 512 small calls each that write

The lone caller uses the SDK, makes one small call that writes after another, with PAUSE_S between two, to the same
partition. Its p50, p99 and longest call are shown, with what the greedy client got done meanwhile.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import zmq

import voltpy
from tests.campaigns.cluster import Cluster
from tests.campaigns.counters import PROCEDURES, SCHEMA
from tests.campaigns.many_clients import PARTITIONS, Place, calls_frame, look_up
from voltpy import wire
from voltpy.hash_slot import hash_slot, slot_owners
from voltpy.messages import PROTOCOL_VERSION, Hello, Replies, Welcome
from voltpy.stream import FrameReader, packed

PAUSE_S = 0.001
BEGIN_S = 60.0  # for the greedy client to be at work
GREEDY_ID, GREEDY_COUNTER = 3, 0
PATHS = ("router", "direct")


class Kind(NamedTuple):
    """What a greedy client does: frames of so many calls, so many frames in flight."""

    procedure: str
    arguments: tuple[Any, ...]
    calls: int
    frames: int


KINDS = {
    "nobody": None,
    "arguments": Kind("measure", (GREEDY_COUNTER, "x" * (1 << 20)), 1, 64),
    "results": Kind("fetch", (GREEDY_COUNTER, (1 << 20) - 16), 8, 8),
    "flood": Kind("increment", (GREEDY_COUNTER,), 512, 16),
}


class Figures(NamedTuple):
    """Of the lone caller, in milliseconds; `greedy_calls_a_second` were answered with a result."""

    calls: int
    p50_ms: float
    p99_ms: float
    longest_ms: float
    greedy_calls_a_second: float
    greedy_errors: int


def greed(url: str, kind: str, path: str, orders: Connection) -> None:
    """The process of the greedy client: says when it is answered, is asked twice for what it got done."""
    place = look_up(url)
    wanted = KINDS[kind]
    assert wanted is not None
    send, receive = _by_router(place) if path == "router" else _by_stream(place)
    send(wire.encode(Hello(PROTOCOL_VERSION, GREEDY_ID)))
    while not isinstance(receive(), Welcome):
        pass
    room = threading.Semaphore(wanted.frames * wanted.calls)
    done = [0, 0]

    def read() -> None:
        while True:
            message = receive()
            if isinstance(message, Replies):
                results = sum(len(group.numbers) for group in message.groups)
                done[0] += results
                done[1] += len(message.errors)
                room.release(results + len(message.errors))

    def tell() -> None:
        while True:
            if orders.recv() == "over":
                os._exit(0)
            orders.send((time.monotonic(), *done))

    threading.Thread(target=tell, daemon=True).start()
    if path == "direct":
        threading.Thread(target=read, daemon=True).start()
    number = 1
    rows = [wanted.arguments] * wanted.calls
    while True:
        for _ in range(wanted.calls):
            while not room.acquire(blocking=path == "direct"):
                message = receive()  # a ZeroMQ socket is used by one thread
                if isinstance(message, Replies):
                    results = sum(len(group.numbers) for group in message.groups)
                    done[0] += results
                    done[1] += len(message.errors)
                    room.release(results + len(message.errors))
        send(calls_frame(place, GREEDY_ID, wanted.procedure, rows, number))
        number += wanted.calls


def _by_router(place: Place) -> tuple[Callable[[bytes], Any], Callable[[], Any]]:
    dealer = zmq.Context.instance().socket(zmq.DEALER)
    dealer.setsockopt(zmq.LINGER, 0)
    dealer.connect(place.router)
    return dealer.send, lambda: wire.decode(dealer.recv())


def _by_stream(place: Place) -> tuple[Callable[[bytes], Any], Callable[[], Any]]:
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    stream.connect(place.stream(slot_owners(PARTITIONS)[hash_slot(GREEDY_COUNTER)]))
    reader = FrameReader()
    frames: list[bytes] = []

    def receive() -> Any:
        while not frames:
            frames.extend(reader.feed(stream.recv(1 << 20)))
        return wire.decode(frames.pop(0))

    return lambda frame: stream.sendall(packed(frame)), receive


def call_alone(url: str, seconds: float) -> list[float]:
    """One call after another; how long each took, in milliseconds, sorted."""
    owners = slot_owners(PARTITIONS)
    counter = next(key for key in range(1, 100) if owners[hash_slot(key)] == owners[hash_slot(GREEDY_COUNTER)])
    took_ms = []
    with voltpy.connect(url, timeout=60.0) as db:
        for _ in range(20):
            db.call("increment", counter)
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s:
            began_s = time.perf_counter()
            db.call("increment", counter)
            took_ms.append((time.perf_counter() - began_s) * 1000)
            time.sleep(PAUSE_S)
    return sorted(took_ms)


def run(url: str, kind: str, path: str, seconds: float) -> Figures:
    """One measurement against a cluster with SCHEMA and PROCEDURES."""
    ours, theirs = get_context("spawn").Pipe()
    greedy = None
    if KINDS[kind] is not None:
        greedy = get_context("spawn").Process(target=greed, args=(url, kind, path, theirs), daemon=True)
        greedy.start()
        deadline_s = time.monotonic() + BEGIN_S
        while (told := _told(ours))[1] < 100:
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"the greedy client has had {told[1]} results and {told[2]} errors in {BEGIN_S} s")
            time.sleep(0.05)
    began = _told(ours) if greedy else (time.monotonic(), 0, 0)
    took_ms = call_alone(url if path == "direct" else f"{url}?affinity=off", seconds)
    ended = _told(ours) if greedy else (time.monotonic(), 0, 0)
    if greedy:
        ours.send("over")
        greedy.join()
    return Figures(
        len(took_ms),
        took_ms[len(took_ms) // 2],
        took_ms[len(took_ms) * 99 // 100],
        took_ms[-1],
        (ended[1] - began[1]) / (ended[0] - began[0]),
        ended[2] - began[2],
    )


def _told(ours: Connection) -> tuple[float, int, int]:
    ours.send("tell")
    if not ours.poll(60.0):
        raise TimeoutError("the greedy client does not answer")
    told: tuple[float, int, int] = ours.recv()
    return told


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="for each line")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--paths", nargs="+", default=list(PATHS), choices=PATHS)
    arguments = parser.parse_args()
    print(
        f"{'path':7} {'beside':10} {'calls':>6} {'p50 ms':>8} {'p99 ms':>8} {'max ms':>8} {'greedy calls/s':>14} errors"
    )
    with (
        tempfile.TemporaryDirectory(prefix="voltpy-fair-") as directory,
        Cluster(
            Path(directory) / "cluster", SCHEMA, PROCEDURES, partitions=PARTITIONS, segment_bytes=64 << 20
        ) as cluster,
    ):
        cluster.start()
        for path in arguments.paths:
            for kind in arguments.kinds:
                calls, p50, p99, longest, greedy, errors = run(cluster.url, kind, path, arguments.seconds)
                print(
                    f"{path:7} {kind:10} {calls:6} {p50:8.2f} {p99:8.2f} {longest:8.2f} {greedy:14,.0f} {errors}",
                    flush=True,
                )
        cluster.end(signal.SIGTERM)
    return 0


if __name__ == "__main__":
    sys.exit(main())
