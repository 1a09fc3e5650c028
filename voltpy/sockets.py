"""The ZeroMQ sockets between clients, router, supervisor and partitions: their options, and why.

What is on one machine and waits for every message, the coordinator and clients that call partitions straight, uses
streams instead: see voltpy.stream.

every socket   LINGER 0             nothing that was queued for a dead peer outlives the socket, or delays an exit
               MAXMSGSIZE           an oversized frame ends its sender's connection before it is in memory
ROUTER (door)  ROUTER_MANDATORY 1   without it a frame that can't be delivered vanishes without an error
               SNDHWM 1024          frames for a client that does not read; then EAGAIN, and its account is closed. The
                                    router is a client of the partitions, and must not be lost in a burst. What
                                    matters is bounded in bytes: see voltpy.unread
               RCVHWM 64            frames of one client that wait in memory; then its connection stalls
               BACKLOG 4096         2,000 clients may connect in the same moment
DEALER         SNDHWM 0             no limit here: the router counts calls and bytes in flight instead, so that a
                                    call for every partition is sent to all of them or to none
"""

from __future__ import annotations

import resource
import socket

import zmq

from voltpy.messages import MAX_FRAME_BYTES
from voltpy.unread import Unread

SNDHWM_CLIENT_FRAMES = 1024
RCVHWM_CLIENT_FRAMES = 64
BACKLOG = 4096
OPEN_FILES = 65536
COPY_FREE_BYTES = 65536  # below it pyzmq's bookkeeping for copy=False costs more than the copy


def raise_open_files_limit() -> None:
    """A connection is a file descriptor, and the usual soft limit of 1,024 leaves every further client unserved."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def context() -> zmq.Context[zmq.Socket[bytes]]:
    made = zmq.Context()
    made.set(zmq.MAX_SOCKETS, OPEN_FILES)
    return made


def door_socket(made_by: zmq.Context[zmq.Socket[bytes]]) -> zmq.Socket[bytes]:
    """A ROUTER that clients connect to; not bound yet."""
    door = made_by.socket(zmq.ROUTER)
    door.setsockopt(zmq.LINGER, 0)
    door.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
    door.setsockopt(zmq.ROUTER_MANDATORY, 1)
    door.setsockopt(zmq.SNDHWM, SNDHWM_CLIENT_FRAMES)
    door.setsockopt(zmq.RCVHWM, RCVHWM_CLIENT_FRAMES)
    door.setsockopt(zmq.BACKLOG, BACKLOG)
    return door


def bind_tcp(door: zmq.Socket[bytes], host: str, port: int) -> int:
    """Binds and returns the port; `port` 0 takes any free one. Raises zmq.ZMQError, or OSError for an unknown host."""
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    numeric = f"[{address[0]}]" if family == socket.AF_INET6 else address[0]
    if family == socket.AF_INET6:
        door.setsockopt(zmq.IPV6, 1)
    door.bind(f"tcp://{numeric}:{port or '*'}")
    return int(door.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2])


def partition_socket(made_by: zmq.Context[zmq.Socket[bytes]], ipc_path: str) -> zmq.Socket[bytes]:
    """A DEALER to one partition process."""
    dealer = made_by.socket(zmq.DEALER)
    dealer.setsockopt(zmq.LINGER, 0)
    dealer.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
    dealer.setsockopt(zmq.SNDHWM, 0)
    dealer.connect(f"ipc://{ipc_path}")
    return dealer


def receive_at_door(door: zmq.Socket[bytes], unread: Unread) -> tuple[bytes, memoryview | None]:
    """The next message that waits at a ROUTER: who sent it, and its one frame, or None when it had several.

    Raises zmq.Again when nothing waits. Half the cost of recv_multipart: it asks the frame itself whether more follows.
    """
    identity = door.recv(zmq.NOBLOCK)
    frame = door.recv(zmq.NOBLOCK, copy=False)
    unread.heard(identity, frame)
    if not frame.more:
        return identity, frame.buffer
    # Read to the end, or the next part would pass for somebody's identity.
    while frame.more:
        frame = door.recv(zmq.NOBLOCK, copy=False)
    return identity, None
