"""Thousands of clients connect at once, some of them hostile, and a well-behaved one measures what it notices.

    python -m tests.campaigns.many_clients [--clients 2000] [--silent 200] [--seconds 20]

The crowd, in a few processes: everybody says Hello at the router and at a partition at the same moment, and then makes
a call every CALL_EVERY_S. `--silent` of them send calls with large results as fast as they can for some seconds and
never read a byte, or send garbage, oversized frames, or frames that never end (see `_KINDS`).

The well-behaved client makes one call after another, by router and direct, and notes how long each takes. It must be
answered all the time, and within RECOVERY_S of the crowd's arrival its p99 a second must be back within a small factor
of what it was. Nothing may have been restarted, and the memory of the processes is shown. So is the share of the time
after the crowd's arrival in which each process was ready to run and had no processor: where that is much, what the
others on the machine take is measured, the crowd first of all.
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
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import msgspec
import zmq

import voltpy
from tests.campaigns.cluster import Cluster
from tests.campaigns.counters import PROCEDURES, SCHEMA
from voltpy import wire
from voltpy.errors import Error
from voltpy.hash_slot import hash_slot, slot_owners
from voltpy.messages import MAX_FRAME_BYTES, PROTOCOL_VERSION, CallGroup, Calls, Hello, Replies, Topology, Welcome
from voltpy.sockets import OPEN_FILES, raise_open_files_limit
from voltpy.stream import packed, stream_path

PARTITIONS = 2
CROWD_PROCESSES = 4
RECOVERY_S = 10.0
WELCOME_S = 30.0
CALL_EVERY_S = 4.0  # an ordinary client; with more, this machine's cores would be busy with the crowd itself
TURNS = 80  # over which their calls are spread
FACTOR = 3.0
LEAST_P99_MS = 25.0  # below it a factor means nothing: before, the well-behaved client was alone
RSS_BYTES = 1 << 30

# What the silent ones do: calls whose results nobody reads, at three doors, and four kinds of nonsense.
_KINDS = ("calls_router", "calls_partition", "calls_stream", "garbage", "oversized", "stream_length", "stream_dribble")

_encode = msgspec.msgpack.Encoder().encode


class Place(NamedTuple):
    """Where a cluster's doors are, and what a frame for them must name."""

    router: str
    topology: Topology

    def partition_tcp(self, partition: int) -> str:
        return f"tcp://127.0.0.1:{self.topology.partitions[partition].tcp_port}"

    def stream(self, partition: int) -> str:
        return stream_path(self.topology.partitions[partition].ipc_path)


class Figures(NamedTuple):
    """What a run came to. `recovered_s` is -1.0 when the well-behaved client's p99 never came back."""

    clients: int
    silent: int
    welcomed: int
    welcomed_s: float
    asked: int
    answered: int
    before_p99_ms: dict[str, float]
    worst_p99_ms: dict[str, float]
    after_p99_ms: dict[str, float]
    recovered_s: float
    failed_calls: int
    restarts: int
    rss_mib: dict[str, float]
    without_processor: dict[str, float]

    @property
    def passed(self) -> bool:
        return (
            self.welcomed == self.clients - self.silent
            and self.answered == self.asked
            and 0.0 <= self.recovered_s <= RECOVERY_S
            and self.failed_calls == 0
            and self.restarts == 0
            and max(self.rss_mib.values()) < RSS_BYTES / 2**20
        )


# ── the crowd ──────────────────────────────────────────────────────────────────────────────────────────────────────


def crowd(url: str, ordinary: int, silent: int, seed: int, flood_s: float, orders: Connection) -> None:
    """One process of the crowd. Reports how many were welcomed, when the last one was, calls made, and answered.

    `orders` says when to begin and when to end. (A multiprocessing.Event does not survive a process that exits while
    one of its threads looks at it.)
    """
    raise_open_files_limit()
    rng = Random(seed)
    place = look_up(url)
    context = zmq.Context()
    context.set(zmq.MAX_SOCKETS, OPEN_FILES)
    over = threading.Event()
    orders.recv()
    threading.Thread(target=lambda: (orders.recv(), over.set()), daemon=True).start()
    began_s = time.monotonic()
    hostile = [
        threading.Thread(target=_be_silent, args=(context, place, kind, rng.randbytes(8), flood_s, over), daemon=True)
        for kind in (_KINDS * silent)[seed : seed + silent]
    ]
    for thread in hostile:
        thread.start()
    clients = [_Ordinary(context, place, rng) for _ in range(ordinary)]
    welcomed = sum(client.welcomed(began_s + WELCOME_S) for client in clients)
    welcomed_s = time.monotonic() - began_s
    asked = answered = 0
    while not over.is_set():
        round_s = time.monotonic()
        for turn in range(TURNS):
            if over.is_set():
                break
            part = clients[turn::TURNS]
            asked += len(part)
            for client in part:
                client.call()
            for client in part:
                answered += client.answered(time.monotonic() + WELCOME_S)
            over.wait(max(0.0, CALL_EVERY_S * (turn + 1) / TURNS - (time.monotonic() - round_s)))
    orders.send((welcomed, welcomed_s, asked, answered))
    os._exit(0)  # its sockets go with it: two hundred queues that nobody reads are not to be closed one by one


def look_up(url: str) -> Place:
    """Asks the router, as any client does."""
    endpoint = url.replace("voltpy", "tcp")
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
    with context.socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.connect(endpoint)
        dealer.send(wire.encode(Hello(PROTOCOL_VERSION, 1)))
        welcome = wire.decode(dealer.recv())
    assert isinstance(welcome, Welcome)
    assert welcome.topology is not None
    return Place(endpoint, welcome.topology)


class _Ordinary:
    """A client with a connection to the router and one to a partition, made by hand."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], place: Place, rng: Random) -> None:
        self.place = place
        self.client_id = rng.getrandbits(62) | 1
        self.counter = rng.getrandbits(40)
        self.partition = slot_owners(PARTITIONS)[hash_slot(self.counter)]
        self.number = 0
        self.sockets = [_dealer(context, endpoint) for endpoint in (place.router, place.partition_tcp(self.partition))]
        self.waiting: list[zmq.Socket[bytes]] = []
        for dealer in self.sockets:
            dealer.send(wire.encode(Hello(PROTOCOL_VERSION, self.client_id)))

    def welcomed(self, deadline_s: float) -> bool:
        return all(isinstance(_receive(dealer, deadline_s, Welcome), Welcome) for dealer in self.sockets)

    def call(self) -> None:
        self.number += 1
        dealer = self.sockets[self.number % 2]
        dealer.send(calls_frame(self.place, self.client_id, "increment", [(self.counter,)], self.number))
        self.waiting.append(dealer)

    def answered(self, deadline_s: float) -> int:
        count = sum(isinstance(_receive(dealer, deadline_s, Replies), Replies) for dealer in self.waiting)
        self.waiting.clear()
        return count


def _be_silent(
    context: zmq.Context[zmq.Socket[bytes]],
    place: Place,
    kind: str,
    secret: bytes,
    flood_s: float,
    over: threading.Event,
) -> None:
    """One hostile client, in a thread of its own: it floods for a while, and stays connected without ever reading."""
    client_id = int.from_bytes(secret, "little") >> 2 | 1
    partition = client_id % PARTITIONS
    key = next(key for key in range(100) if slot_owners(PARTITIONS)[hash_slot(key)] == partition)
    hello = wire.encode(Hello(PROTOCOL_VERSION, client_id))
    rng = Random(client_id)
    number = 1
    until_s = time.monotonic() + flood_s
    with contextlib.suppress(zmq.ZMQError, OSError), contextlib.ExitStack() as open_sockets:
        if "stream" in kind:
            send = _stream(open_sockets, place.stream(partition))
            send(packed(hello))
        else:
            endpoint = place.partition_tcp(partition) if kind == "calls_partition" else place.router
            dealer = open_sockets.enter_context(_dealer(context, endpoint, received=1))
            dealer.setsockopt(zmq.SNDTIMEO, 100)
            send = dealer.send
            send(hello)
        if kind == "stream_dribble":
            send(MAX_FRAME_BYTES.to_bytes(4, "little"))
        while time.monotonic() < until_s and not over.is_set():
            with contextlib.suppress(zmq.Again, BlockingIOError, TimeoutError):
                if kind.startswith("calls"):
                    frame = calls_frame(place, client_id, "fetch", [(key, 2000)] * 128, number)
                    send(packed(frame) if kind == "calls_stream" else frame)
                    number += 128
                elif kind == "garbage":
                    send(hello)
                    send(rng.randbytes(rng.randrange(2000)))
                    time.sleep(0.001)
                elif kind == "oversized":
                    send(bytes(MAX_FRAME_BYTES + 1))
                    time.sleep(0.1)
                elif kind == "stream_length":
                    with contextlib.suppress(ConnectionError):
                        send(b"\xff\xff\xff\xff" + bytes(1000))
                    time.sleep(0.01)
                    send = _stream(open_sockets, place.stream(partition))
                    send(packed(hello))
                else:
                    send(bytes(100))
                    time.sleep(0.0005)
        over.wait()


def _stream(open_sockets: contextlib.ExitStack, path: str) -> Callable[[bytes], Any]:
    stream = open_sockets.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    stream.settimeout(0.1)
    stream.connect(path)
    return stream.sendall


def calls_frame(place: Place, client_id: int, name: str, rows: list[tuple[Any, ...]], first: int) -> bytes:
    """Calls of one procedure with one key, addressed as the topology says."""
    slot = hash_slot(rows[0][0])
    address = place.topology.partitions[slot_owners(PARTITIONS)[slot]]
    numbers = list(range(first, first + len(rows)))
    args = wire.joined([_encode(row) for row in rows])
    group = CallGroup(client_id, name, address.partition, address.incarnation, numbers, [slot] * len(rows), args)
    return wire.encode(Calls(place.topology.catalog_version, [group]))


def _dealer(context: zmq.Context[zmq.Socket[bytes]], endpoint: str, received: int = 0) -> zmq.Socket[bytes]:
    """`received`: how many frames ZeroMQ may take from the network before somebody wants them; 0 for any number."""
    dealer = context.socket(zmq.DEALER)
    dealer.setsockopt(zmq.LINGER, 0)
    dealer.setsockopt(zmq.RCVHWM, received)
    dealer.connect(endpoint)
    return dealer


def _receive(dealer: zmq.Socket[bytes], deadline_s: float, kind: type) -> Any:
    """The next message of this kind; None when it does not come in time."""
    while dealer.poll(max(0, int((deadline_s - time.monotonic()) * 1000))):
        message = wire.decode(dealer.recv())
        if isinstance(message, kind):
            return message
    return None


# ── the well-behaved client ────────────────────────────────────────────────────────────────────────────────────────


class Measured(NamedTuple):
    """One call: when it began, and how long it took."""

    at_s: float
    took_s: float


def measure(url: str, counter: int, over: threading.Event, calls: list[Measured], failed: list[str]) -> None:
    """One call after another until `over`."""
    with voltpy.connect(url, timeout=30.0) as db:
        while not over.is_set():
            began_s = time.monotonic()
            try:
                db.call("increment", counter)
            except Error as error:
                failed.append(f"{type(error).__name__}: {error}")
            calls.append(Measured(began_s, time.monotonic() - began_s))
            over.wait(0.002)


def p99_ms(calls: list[Measured], from_s: float, to_s: float) -> float:
    took = sorted(call.took_s for call in calls if from_s <= call.at_s < to_s)
    return took[min(len(took) - 1, len(took) * 99 // 100)] * 1000 if took else 0.0


def by_second(calls: list[Measured], from_s: float) -> Iterator[tuple[float, float]]:
    """(where a second ends, its p99 in ms), until the last call. A second without a call counts as long as it was."""
    last_s = max(call.at_s for call in calls)
    second_s = from_s
    while second_s + 1.0 <= last_s:
        # A call counts where it began, however late it was answered: a pause shows in the second in which it began.
        yield second_s + 1.0, p99_ms(calls, second_s, second_s + 1.0) or 1000.0
        second_s += 1.0


def run(directory: Path, clients: int, silent: int, *, before_s: float, flood_s: float, seconds: float) -> Figures:
    """Starts a cluster, measures for `before_s`, lets the crowd in, and measures on.

    For at least `seconds`, and at most until RECOVERY_S have passed, if the p99 is not back by then.
    """
    spawn = get_context("spawn")
    processes = min(CROWD_PROCESSES, clients)
    with Cluster(directory, SCHEMA, PROCEDURES, partitions=PARTITIONS, segment_bytes=64 << 20) as cluster:
        cluster.start()
        orders = [spawn.Pipe() for _ in range(processes)]
        shares = [
            (len(range(number, clients - silent, processes)), len(range(number, silent, processes)))
            for number in range(processes)
        ]
        crowds = [
            spawn.Process(target=crowd, args=(cluster.url, *share, number, flood_s, orders[number][1]), daemon=True)
            for number, share in enumerate(shares)
        ]
        for process in crowds:
            process.start()
        enough = threading.Event()
        urls = {"direct": cluster.url, "router": f"{cluster.url}?affinity=off"}
        calls: dict[str, list[Measured]] = {name: [] for name in urls}
        failed: list[str] = []
        threads = [
            threading.Thread(target=measure, args=(url, number, enough, calls[name], failed), daemon=True)
            for number, (name, url) in enumerate(urls.items())
        ]
        for thread in threads:
            thread.start()
        time.sleep(1.0 + before_s)  # the crowd's processes start in the first second
        arrival_s = time.monotonic()
        before = {name: p99_ms(calls[name], arrival_s - before_s, arrival_s) for name in urls}
        pids = {name: cluster.pid(name) for name in ("router", *(f"partition-{n}" for n in range(PARTITIONS)))}
        for ours, _ in orders:
            ours.send("go")
        waited_s = {name: -_waited_s(pid) for name, pid in pids.items()}
        looked_s = min(RECOVERY_S, seconds)
        time.sleep(looked_s)
        waited_s = {name: waited_s[name] + _waited_s(pid) for name, pid in pids.items()}
        time.sleep(seconds - looked_s)
        while time.monotonic() < arrival_s + RECOVERY_S and not all(
            _recovered_s(list(by_second(calls[name], arrival_s)), before[name], arrival_s) >= 0.0 for name in urls
        ):
            time.sleep(0.1)
        with voltpy.connect(cluster.url, timeout=30.0) as db:
            status = db.status()
        enough.set()
        for ours, _ in orders:
            ours.send("over")
        for thread in threads:
            thread.join()
        for ours, _ in orders:
            if not ours.poll(3 * WELCOME_S):
                raise TimeoutError("a process of the crowd has not reported")
        reported = [ours.recv() for ours, _ in orders]
        for process in crowds:
            process.join(10.0)
            process.kill()
        cluster.end(signal.SIGTERM)
    per_second = {name: list(by_second(calls[name], arrival_s)) for name in urls}
    children = {name: status[name] for name in ("router", "coordinator")}
    children |= {f"partition {p['partition']}": p for p in status["partitions"]}
    for reason in failed[:5]:
        print(f"    failed: {reason}")
    return Figures(
        clients,
        silent,
        sum(one[0] for one in reported),
        round(max(one[1] for one in reported), 2),
        sum(one[2] for one in reported),
        sum(one[3] for one in reported),
        _rounded(before),
        _rounded({name: max((p99 for _, p99 in seconds), default=0.0) for name, seconds in per_second.items()}),
        _rounded({name: seconds[-1][1] if seconds else 0.0 for name, seconds in per_second.items()}),
        max(_recovered_s(per_second[name], before[name], arrival_s) for name in urls),
        len(failed),
        sum(child["restarts"] for child in children.values()),
        _rounded({name: child["rss_bytes"] / 2**20 for name, child in children.items()}),
        _rounded({name: seconds / looked_s for name, seconds in waited_s.items()}),
    )


def _waited_s(pid: int) -> float:
    """How long the main thread of a process has been ready to run, and did not."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except OSError:  # a kernel without it, or the process was restarted, which is told
        return 0.0


def _recovered_s(seconds: list[tuple[float, float]], before_ms: float, arrival_s: float) -> float:
    """From when on every second's p99 is near what it was before; -1.0 when the last one is not."""
    limit_ms = max(LEAST_P99_MS, FACTOR * before_ms)
    recovered_s = 0.0
    for end_s, p99 in seconds:
        if p99 > limit_ms:
            recovered_s = end_s - arrival_s
    if not seconds or seconds[-1][1] > limit_ms:
        return -1.0
    return round(recovered_s, 2)


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 2) for name, value in values.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=2000)
    parser.add_argument("--silent", type=int, default=200, help="of them")
    parser.add_argument("--before", type=float, default=3.0, help="seconds of measuring before the crowd comes")
    parser.add_argument("--flood", type=float, default=4.0, help="seconds for which the silent ones send")
    parser.add_argument("--seconds", type=float, default=20.0, help="of measuring after the crowd has come")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="voltpy-crowd-") as directory:
        figures = run(
            Path(directory) / "cluster",
            arguments.clients,
            arguments.silent,
            before_s=arguments.before,
            flood_s=arguments.flood,
            seconds=arguments.seconds,
        )
    print(json.dumps(figures._asdict(), indent=1))
    verdict = "passed" if figures.passed else "FAILED"
    print(f"the well-behaved client's p99 was back after {figures.recovered_s} s: {verdict}")
    return 0 if figures.passed else 1


if __name__ == "__main__":
    sys.exit(main())
