"""Frames on a byte stream: the way between a partition, the coordinator, and the clients on their machine.

A partition listens on a Unix socket beside its ipc one. Messages, limits and checks are those of every door; only the
transport differs: no I/O threads, so a call wakes two threads instead of six, and takes a third of the time
(bare echo, measured in one run: 19 µs against 51 µs for ZeroMQ over ipc and 39 µs for redis-py).

    stream := (length, u32 little-endian; frame of so many bytes)*

A length past the reader's limit is no frame: nothing that follows it can be trusted, and the connection ends. The limit
is MAX_FRAME_BYTES; a partition takes no more than a Hello from a client that it has not welcomed. No sockets here.
"""

from __future__ import annotations

from voltpy.errors import ProtocolError
from voltpy.messages import MAX_FRAME_BYTES

LENGTH_BYTES = 4
READ_BYTES = 1 << 18  # what one look at a socket takes


def stream_path(ipc_path: str) -> str:
    """Where the partition whose ZeroMQ socket is at `ipc_path` listens for streams."""
    return ipc_path + ".s"


def packed(frame: bytes) -> bytes:
    """The frame as it goes into the stream."""
    return len(frame).to_bytes(LENGTH_BYTES, "little") + frame


class FrameReader:
    """Cuts a stream into frames again. `limit_bytes` a frame; whoever raises it does so between two frames."""

    __slots__ = ("_due", "_tail", "limit_bytes")

    def __init__(self, limit_bytes: int = MAX_FRAME_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self._tail = bytearray()
        self._due = 0  # until the tail has so many bytes it holds no frame: it only grows, uncopied

    @property
    def partial_bytes(self) -> int:
        """What it holds of a frame that is not complete."""
        return len(self._tail)

    def feed(self, data: bytes) -> list[bytes]:
        """The frames that are complete with these bytes. Raises ProtocolError for a length past the limit."""
        if self._tail:
            self._tail += data
            if len(self._tail) < self._due:
                return []
            data = bytes(self._tail)
        elif int.from_bytes(data[:LENGTH_BYTES], "little") == len(data) - LENGTH_BYTES <= self.limit_bytes:
            return [data[LENGTH_BYTES:]]  # the usual case: one frame, and nothing else
        frames = []
        at = 0
        due = LENGTH_BYTES
        end = len(data)
        while end - at >= LENGTH_BYTES:
            length = int.from_bytes(data[at : at + LENGTH_BYTES], "little")
            if length > self.limit_bytes:
                raise ProtocolError(f"a frame of {length} bytes; the limit is {self.limit_bytes}")
            if end - at - LENGTH_BYTES < length:
                due += length
                break
            at += LENGTH_BYTES
            frames.append(data[at : at + length])
            at += length
        self._tail = bytearray(data[at:])
        self._due = due
        return frames
