"""The router's process: sockets, signals and clocks around coordinator.router. The only file here with a socket.

One pass: take what the partitions sent, take what clients and supervisor sent, give both to the core, send what it
wants sent. A pass is bounded by calls and bytes, not by frames: a client with large frames can't keep others waiting.

    RUNTIME/r, tcp://HOST:PORT   a ROUTER: clients and the supervisor connect here
    RUNTIME/p<i>                 one DEALER to each partition that is up, and to the coordinator; a new one for each new
                                 incarnation
"""

from __future__ import annotations

import gc
import math
import os
import signal
import socket
import time
from pathlib import Path
from typing import NamedTuple

import zmq

from coordinator.router import Router
from voltpy.crash_point import crash_point
from voltpy.descriptors import Descriptors, reserve
from voltpy.door import CLIENT, Door
from voltpy.errors import ProtocolError
from voltpy.events import get_logger
from voltpy.messages import (
    PROTOCOL_VERSION,
    Calls,
    Hello,
    Message,
    Refusal,
    StatusReply,
    StatusRequest,
    Topology,
)
from voltpy.resident import resident_bytes
from voltpy.sockets import (
    COPY_FREE_BYTES,
    bind_tcp,
    context,
    door_socket,
    partition_socket,
    raise_open_files_limit,
    receive_at_door,
)
from voltpy.unread import Unread
from voltpy.wire import decode, encode

PASS_CALLS = 2048  # taken from the clients together, and from each partition, before anything is sent
PASS_BYTES = 4 << 20
UNREAD_BYTES = 128 << 20  # of replies that clients have not read, of all; past it connections end (voltpy.unread)
IDLE_MS = 1000
FINISH_S = 2.0  # at the end, for answers that partitions still owe
LINGER_MS = 500  # … and for what clients have not taken yet
EVENTS_A_SECOND = 20

_events = get_logger("router")


class CannotListen(Exception):
    """An address of the router is taken, or is none."""


class Connection(NamedTuple):
    """The socket to one partition, or to the coordinator; `number` is that of the lane when it was made."""

    number: int
    socket: zmq.Socket[bytes]


class Server:
    """Binds in the constructor (raises CannotListen); `serve` returns after SIGTERM, SIGINT or `stop`."""

    def __init__(self, runtime: Path, host: str, port: int, token: str) -> None:
        raise_open_files_limit()
        self.router = Router(Door[bytes](token, at_partition=None), time.time_ns())
        self._token = token
        self._stopping = False
        self._parent = os.getppid()
        self._connections: dict[int, Connection] = {}
        self._frames_in = self._frames_out = self._bytes_in = self._bytes_out = 0
        self._event_second = self._events_this_second = self._events_left_out = 0
        self._context = context()
        self._front = door_socket(self._context)
        self._unread = Unread(UNREAD_BYTES)
        self._descriptors = Descriptors()
        try:
            self._front.bind(f"ipc://{runtime / 'r'}")
            self.port = bind_tcp(self._front, host, port)
        except (zmq.ZMQError, OSError) as error:
            self._context.destroy(linger=0)
            raise CannotListen(f"the router can't listen on {host}:{port}: {error}") from None
        crash_point("router.start.bound")
        # A byte on this pair ends the poll: signals write one, stop() too.
        self._wakeup_reader, self._wakeup_writer = socket.socketpair()
        self._wakeup_reader.setblocking(False)
        self._wakeup_writer.setblocking(False)
        self._poller = zmq.Poller()
        self._poller.register(self._front, zmq.POLLIN)
        self._poller.register(self._wakeup_reader, zmq.POLLIN)

    def stop(self) -> None:
        """Ends `serve`; from any thread."""
        self._stopping = True
        self._wakeup_writer.send(b"\0")

    def serve_until_signal(self) -> None:
        """`serve`, ended by SIGTERM or SIGINT too. In the main thread only."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        signal.set_wakeup_fd(self._wakeup_writer.fileno(), warn_on_full_buffer=False)
        gc.collect()
        gc.freeze()
        self.serve()

    def serve(self) -> None:
        while not self._stopping:
            ready = dict(self._poller.poll(IDLE_MS))
            for partition, connection in self._connections.items():
                if connection.socket in ready:
                    self._receive_from_partition(partition, PASS_CALLS, PASS_BYTES)
            if self._front not in ready or self._receive_from_clients():
                for lost in self._unread.end_partial(self.port):
                    self.router.lost(lost)
                    self._tell("client_sends_in_part")
            if self._descriptors.are_short():
                for lost in self._unread.make_room(self.port, reserve()):
                    self.router.lost(lost)
                self._tell("descriptors_short")
            self._send()
            if os.getppid() != self._parent:  # a kernel that does not kill with the parent
                break
        self._finish()
        self._context.destroy(linger=LINGER_MS)
        self._wakeup_reader.close()
        self._wakeup_writer.close()
        self._descriptors.close()

    def _finish(self) -> None:
        """Takes no more calls, and passes on the answers to those that are with the partitions, for a while.

        Then it tells everybody that there will be no others.
        """
        self._poller.unregister(self._front)
        self._poller.unregister(self._wakeup_reader)
        deadline_s = time.monotonic() + FINISH_S
        while self.router.door.in_flight and self._connections and time.monotonic() < deadline_s:
            ready = dict(self._poller.poll(IDLE_MS // 10))
            for partition, connection in self._connections.items():
                if connection.socket in ready:
                    self._receive_from_partition(partition, math.inf, math.inf)
            self._send()
        self.router.end()
        self._send()
        self.router.close()
        self._send()

    def _on_signal(self, *_: object) -> None:
        self._stopping = True

    def _receive_from_partition(self, partition: int, most_calls: float, most_bytes: float) -> None:
        router = self.router
        receive = self._connections[partition].socket.recv
        calls = received_bytes = 0
        while calls < most_calls and received_bytes < most_bytes:
            try:
                frame = receive(zmq.NOBLOCK)
            except zmq.Again:
                break
            crash_point("router.replies.received")
            self._frames_in += 1
            received_bytes += len(frame)
            calls += 1
            try:
                message = decode(frame)
            except ProtocolError as error:
                _events.error("not_a_frame_from_partition", partition=partition, reason=str(error))
                continue
            if isinstance(message, Refusal):
                _events.error("refused_by_partition", partition=partition, reason=message.message)
            answered = router.calls_answered
            router.partition_message(partition, message)
            calls += router.calls_answered - answered
        self._bytes_in += received_bytes

    def _receive_from_clients(self) -> bool:
        """Whether all that was there has been taken."""
        router, door, front = self.router, self.router.door, self._front
        accounts = door.accounts
        calls = received_bytes = 0
        while calls < PASS_CALLS and received_bytes < PASS_BYTES:
            try:
                identity, frame = receive_at_door(front, self._unread)
            except zmq.Again:
                self._bytes_in += received_bytes
                return True
            self._frames_in += 1
            calls += 1
            if frame is None:
                door.garbage(identity, "a message of several parts; it must be one")
                continue
            received_bytes += len(frame)
            message = door.receive(identity, frame, router.welcome)
            if message is None:
                continue
            account = accounts[identity]
            if account.role == CLIENT:
                crash_point("router.calls.received")
                if isinstance(message, Calls):
                    for group in message.groups:
                        calls += len(group.numbers)
                router.client_message(account, message, time.time_ns() // 1000)
                continue
            self._unread.trust(identity)
            if isinstance(message, StatusRequest):
                self._send_to_client(identity, encode(self._status(message.number)))
            else:
                if isinstance(message, Topology):
                    crash_point("router.topology.received")
                    # Replies of a partition that has died since may still be here: their callers shall have them.
                    for partition in self._connections:
                        self._receive_from_partition(partition, math.inf, math.inf)
                router.supervisor_message(account, message)
                self._connect()
                crash_point("router.topology.adopted")
        self._bytes_in += received_bytes
        return False

    def _connect(self) -> None:
        """Replaces each connection whose lane asks for it; frames queued on the old one are dropped with it."""
        for lane in self.router.lanes:
            partition = lane.partition
            connection = self._connections.get(partition)
            if connection is not None and connection.number == lane.connection:
                continue
            if connection is not None:
                self._poller.unregister(connection.socket)
                connection.socket.close()
                del self._connections[partition]
            if lane.is_up:
                dealer = partition_socket(self._context, lane.address.ipc_path)
                dealer.send(encode(Hello(PROTOCOL_VERSION, 0, "router", self._token)))
                self._poller.register(dealer, zmq.POLLIN)
                self._connections[partition] = Connection(lane.connection, dealer)
                _events.info("connected", to=lane.name, incarnation=lane.incarnation)
            elif connection is not None:
                _events.warning("disconnected", of=lane.name)

    def _send(self) -> None:
        self._connect()
        encoded: Message | None = None
        frame = b""
        while outbox := self.router.flush():  # again where a client turned out to be lost
            for destination, message in outbox:
                if message is not encoded:  # one topology goes to every client, one call to every partition
                    frame = encode(message)
                    encoded = message
                if isinstance(destination, bytes):
                    crash_point("router.replies.before_send")
                    self._send_to_client(destination, frame)
                    crash_point("router.replies.sent")
                    if isinstance(message, Refusal):
                        self._tell("client_refused", code=message.code, reason=message.message)
                else:
                    crash_point("router.calls.before_forward")
                    self._connections[destination].socket.send(frame, zmq.NOBLOCK, copy=len(frame) < COPY_FREE_BYTES)
                    crash_point("router.calls.forwarded")
                    self._frames_out += 1
                    self._bytes_out += len(frame)

    def _send_to_client(self, identity: bytes, frame: bytes) -> None:
        try:
            self._front.send(identity, zmq.SNDMORE | zmq.NOBLOCK)
            self._front.send(frame, zmq.NOBLOCK, copy=len(frame) < COPY_FREE_BYTES)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                raise
            self.router.lost(identity)
            if error.errno == zmq.EAGAIN:
                self._unread.cut(identity)
                self._tell("client_does_not_read")
            else:
                self._unread.gone(identity)
            return
        for lost in self._unread.sent(identity, len(frame)):
            self.router.lost(lost)
            self._tell("client_does_not_read")
        self._frames_out += 1
        self._bytes_out += len(frame)

    def _tell(self, event: str, **details: object) -> None:
        """An event that a hostile client could cause at will: a few a second are told, the others counted."""
        second = int(time.monotonic())
        if second != self._event_second:
            if self._events_left_out:
                _events.warning("events_left_out", count=self._events_left_out)
            self._event_second, self._events_this_second, self._events_left_out = second, 0, 0
        if self._events_this_second < EVENTS_A_SECOND:
            self._events_this_second += 1
            _events.warning(event, **details)
        else:
            self._events_left_out += 1

    def _status(self, number: int) -> StatusReply:
        metrics: dict[str, object] = {
            **self.router.metrics(),
            "frames_in": self._frames_in,
            "frames_out": self._frames_out,
            "bytes_in": self._bytes_in,
            "bytes_out": self._bytes_out,
            "cpu_s": time.process_time(),
            "rss_bytes": resident_bytes(),
        }
        return StatusReply(number, 0, 0, self.router.door.catalog_version, self.port, [], metrics)
