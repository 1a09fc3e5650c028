"""Clients that ask for large results and never read one: what do they make router and partition hold?

    python -m tests.campaigns.never_read [--clients 100] [--mebibytes 30] [--doors router partition stream]

Each of them says Hello, sends valid calls whose results come to so many MiB, and stays connected without reading, at
one of three doors. A well-behaved client calls all the while. Shown are the largest resident sizes that the processes
reach, what they were before, and what the well-behaved client noticed. See "What is held for whom" in
docs/operations.md for the bounds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import zmq

import voltpy
from tests.campaigns.cluster import Cluster
from tests.campaigns.counters import PROCEDURES, SCHEMA
from tests.campaigns.many_clients import Place, calls_frame, look_up
from voltpy import wire
from voltpy.errors import Error
from voltpy.hash_slot import hash_slot, slot_owners
from voltpy.messages import PROTOCOL_VERSION, Hello
from voltpy.sockets import raise_open_files_limit
from voltpy.stream import packed

PARTITIONS = 2
DOORS = ("router", "partition", "stream")
KEY = 0  # its partition is the one that is attacked
RESULT_BYTES = 60_000
CALLS_A_FRAME = 17  # about 1 MiB of results
BUFFER_BYTES = 1 << 16  # what the kernel takes for a client
LOOK_EVERY_S = 0.05


class Figures(NamedTuple):
    """Resident sizes by process; `served`: calls of the well-behaved client, `longest_s` the slowest of them."""

    before_mib: dict[str, float]
    largest_mib: dict[str, float]
    ended_mib: dict[str, float]
    served: int
    failed: int
    longest_s: float


def attack(url: str, door: str, clients: int, mebibytes: int, orders: Connection) -> None:
    """A process of clients that never read. Tells when all is sent, and stays until it is told that it is over."""
    raise_open_files_limit()
    place = look_up(url)
    context = zmq.Context()
    context.set(zmq.MAX_SOCKETS, 65536)
    made = [_client(context, place, door, 1000 + number) for number in range(clients)]
    for number in range(mebibytes):
        for client_id, send in made:
            rows = [(KEY, RESULT_BYTES)] * CALLS_A_FRAME
            frame = calls_frame(place, client_id, "fetch", rows, 1 + number * CALLS_A_FRAME)
            with contextlib.suppress(zmq.Again, OSError):
                send(packed(frame) if door == "stream" else frame)
        time.sleep(0.01)
    orders.send("sent")
    orders.recv()
    os._exit(0)


def _client(context: zmq.Context[zmq.Socket[bytes]], place: Place, door: str, client_id: int) -> tuple[int, Any]:
    hello = wire.encode(Hello(PROTOCOL_VERSION, client_id))
    if door == "stream":
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        stream.connect(place.stream(_partition()))
        stream.settimeout(0.05)
        stream.sendall(packed(hello))
        return client_id, stream.sendall
    dealer = context.socket(zmq.DEALER)
    for option, value in ((zmq.LINGER, 0), (zmq.RCVHWM, 1), (zmq.RCVBUF, BUFFER_BYTES), (zmq.SNDTIMEO, 50)):
        dealer.setsockopt(option, value)
    dealer.connect(place.router if door == "router" else place.partition_tcp(_partition()))
    dealer.send(hello)
    return client_id, dealer.send


def _partition() -> int:
    return slot_owners(PARTITIONS)[hash_slot(KEY)]


def run(directory: Path, door: str, clients: int, mebibytes: int, *, stays_s: float) -> Figures:
    """Starts a cluster, lets the attackers in, and measures until `stays_s` after they have sent everything."""
    with Cluster(directory, SCHEMA, PROCEDURES, partitions=PARTITIONS, segment_bytes=64 << 20) as cluster:
        cluster.start()
        pids = {name: cluster.pid(name) for name in ("router", f"partition-{_partition()}")}
        with voltpy.connect(cluster.url, timeout=60.0) as db:
            db.call("increment", KEY)
            before = {name: _resident_mib(pid) for name, pid in pids.items()}
        largest = dict(before)
        over = threading.Event()
        took_s: list[float] = []
        failed: list[str] = []

        def behave() -> None:
            url = cluster.url if door != "router" else f"{cluster.url}?affinity=off"
            with voltpy.connect(url, timeout=60.0) as db:
                while not over.is_set():
                    began_s = time.monotonic()
                    try:
                        db.call("increment", KEY)
                    except Error as error:
                        failed.append(str(error))
                    took_s.append(time.monotonic() - began_s)
                    over.wait(0.002)

        behaving = threading.Thread(target=behave, daemon=True)
        behaving.start()
        ours, theirs = get_context("spawn").Pipe()
        attacker = get_context("spawn").Process(
            target=attack, args=(cluster.url, door, clients, mebibytes, theirs), daemon=True
        )
        attacker.start()
        until_s = time.monotonic() + 120.0
        while time.monotonic() < until_s:
            if ours.poll(LOOK_EVERY_S):
                ours.recv()
                until_s = time.monotonic() + stays_s
            largest = {name: max(largest[name], _resident_mib(pid)) for name, pid in pids.items()}
        ended = {name: _resident_mib(pid) for name, pid in pids.items()}
        ours.send("over")
        attacker.join(10.0)
        attacker.kill()
        over.set()
        behaving.join()
        for reason in failed[:3]:
            print(f"    failed: {reason}")
        cluster.end(signal.SIGTERM)
    return Figures(before, largest, ended, len(took_s), len(failed), round(max(took_s), 2))


def _resident_mib(pid: int) -> float:
    return round(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--mebibytes", type=int, default=30, help="of results, that each of them asks for")
    parser.add_argument("--doors", nargs="+", default=list(DOORS), choices=DOORS)
    parser.add_argument("--stays", type=float, default=3.0, help="seconds, after everything was sent")
    arguments = parser.parse_args()
    for door in arguments.doors:
        with tempfile.TemporaryDirectory(prefix="voltpy-unread-") as directory:
            figures = run(Path(directory) / "c", door, arguments.clients, arguments.mebibytes, stays_s=arguments.stays)
        print(door, json.dumps(figures._asdict()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
