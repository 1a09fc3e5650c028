"""Frames that are almost right: what a fuzzer sends."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import msgspec

_decode = msgspec.msgpack.Decoder().decode
_encode = msgspec.msgpack.Encoder().encode

# Where a MessagePack value of a kind begins, with lengths that the bytes behind them do not keep.
_HEADS = (
    b"\xc0", b"\xc1", b"\xc2", b"\xc3", b"\xc4\x05", b"\xc4\xff", b"\xc5\xff\xff", b"\xc6\xff\xff\xff\xff",
    b"\xc6\x00\xff\xff\xff", b"\xc7\x08\x01", b"\xc8\xff\xff\x00", b"\xc9\xff\xff\xff\xff\x7f",
    b"\xca\x7f\xc0\x00\x00", b"\xcb\x7f\xf0\x00\x00\x00\x00\x00\x00",
    b"\xcb\xff\xf8\x00\x00\x00\x00\x00\x01", b"\xcc\xff", b"\xcd\xff\xff",
    b"\xce\xff\xff\xff\xff", b"\xcf\xff\xff\xff\xff\xff\xff\xff\xff", b"\xcf\x7f\xff\xff\xff\xff\xff\xff\xff",
    b"\xcf\x80\x00\x00\x00\x00\x00\x00\x00", b"\xd0\x80", b"\xd1\x80\x00", b"\xd2\x80\x00\x00\x00",
    b"\xd3\x80\x00\x00\x00\x00\x00\x00\x00", b"\xd4\xff\x00", b"\xd6\xff\x00\x00\x00\x00",
    b"\xd7\xff\xff\xff\xff\xff\xff\xff\xff\xff", b"\xd8\xff", b"\xd9\xff", b"\xd9\x02\xc3\x28", b"\xda\xff\xff",
    b"\xdb\xff\xff\xff\xff", b"\xdb\x00\x0f\xff\xff", b"\xdc\xff\xff", b"\xdd\xff\xff\xff\xff",
    b"\xdd\x00\x01\x00\x00", b"\xdd\x00\x00\x00\x02", b"\xde\xff\xff", b"\xdf\xff\xff\xff\xff",
    b"\xdf\x00\x00\x00\x02", b"\x80", b"\x81", b"\x8f", b"\x90",
    b"\x91", b"\x9f", b"\xa0", b"\xa3abc", b"\xbf", b"\xe0",
    b"\xff", b"\x00", b"\x7f", b"\xa1\xff", b"\xa3\xed\xa0\x80",
)  # fmt: skip

# What may stand where something else belongs.
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 127, 128, 255, 16383, 16384, 65536, 2**31, 2**53, 2**63 - 1, 2**64 - 1, -(2**63),
    0.0, -0.0, 1.5, 1e308, float("inf"), float("nan"), "", "a", "client", "router", "supervisor", "\x00", "é" * 40,
    "x" * 300, b"", b"\x00", b"x" * 300, [], [[]], [1], [None] * 20, [[1, 2], [3]], {}, {"a": 1}, {1: 2},
    {"": {"": []}},
)  # fmt: skip

_DEEP = [
    opening * depth for depth in (10, 100, 1000, 20_000) for opening in (b"\x91", b"\x81\xa1a", b"\xdd\x00\x00\x00\x01")
]
_BYTES_KEPT = 1 << 16  # a frame that mutations have made longer is cut


def _tree(frame: bytes) -> Any:
    try:
        return _decode(frame)
    except msgspec.DecodeError:  # not MessagePack, or with something around it
        return None


class Mutation:
    """An endless source of frames made from `corpus`, the same for the same seed."""

    def __init__(self, corpus: Sequence[bytes], rng: Random) -> None:
        self._corpus = corpus
        self._rng = rng
        self._trees = [tree for tree in map(_tree, corpus) if isinstance(tree, list)]
        self._ways = (
            (self._flip, 20), (self._overwrite, 15), (self._cut, 8), (self._splice, 8), (self._insert, 12),
            (self._repeat, 5), (self._lie, 15), (self._exchange, 35), (self._nest, 1), (self._noise, 6),
        )  # fmt: skip
        self._choices = [way for way, weight in self._ways for _ in range(weight)]

    def frame(self) -> bytes:
        """The next one; sometimes several mutations on top of each other, sometimes none."""
        rng = self._rng
        frame = rng.choice(self._corpus)
        draw = rng.random()
        if draw < 0.02:
            return frame
        frame = rng.choice(self._choices)(frame)
        while draw > 0.7 and frame:
            draw -= 0.1
            frame = rng.choice(self._choices)(frame)
        return frame[:_BYTES_KEPT]

    def bytes_of(self, frame: bytes) -> bytes:
        """A mutation of these bytes, which need not be MessagePack."""
        rng = self._rng
        way = rng.choice((self._flip, self._flip, self._overwrite, self._cut, self._insert, self._repeat, self._zero))
        return way(frame)

    def _flip(self, frame: bytes) -> bytes:
        if not frame:
            return frame
        mutated = bytearray(frame)
        for _ in range(self._rng.choice((1, 1, 1, 2, 4, 16))):
            mutated[self._rng.randrange(len(mutated))] ^= 1 << self._rng.randrange(8)
        return bytes(mutated)

    def _overwrite(self, frame: bytes) -> bytes:
        """Bytes at one place become other ones: a value of another kind, or anything."""
        at = self._rng.randrange(len(frame) + 1)
        patch = self._rng.choice(_HEADS) if self._rng.random() < 0.6 else self._rng.randbytes(self._rng.randrange(1, 9))
        return frame[:at] + patch + frame[at + len(patch) :]

    def _zero(self, frame: bytes) -> bytes:
        at = self._rng.randrange(len(frame) + 1)
        length = min(self._rng.choice((1, 8, 64, 512, 4096)), len(frame) - at)
        return frame[:at] + bytes(length) + frame[at + length :]

    def _cut(self, frame: bytes) -> bytes:
        at = self._rng.randrange(len(frame) + 1)
        return frame[:at] if self._rng.random() < 0.8 else frame[at:]

    def _splice(self, frame: bytes) -> bytes:
        other = self._rng.choice(self._corpus)
        return frame[: self._rng.randrange(len(frame) + 1)] + other[self._rng.randrange(len(other) + 1) :]

    def _insert(self, frame: bytes) -> bytes:
        at = self._rng.randrange(len(frame) + 1)
        what = self._rng.choice(_HEADS) if self._rng.random() < 0.5 else self._rng.randbytes(self._rng.randrange(1, 17))
        return frame[:at] + what + frame[at:]

    def _repeat(self, frame: bytes) -> bytes:
        begin = self._rng.randrange(len(frame) + 1)
        end = min(len(frame), begin + self._rng.randrange(1, 64))
        return frame[:end] + frame[begin:end] * self._rng.choice((1, 1, 2, 50)) + frame[end:]

    def _lie(self, frame: bytes) -> bytes:
        """The length of an array, a map, a string or bytes becomes another one."""
        places = [
            at for at, byte in enumerate(frame[:4096]) if 0x80 <= byte <= 0xBF or 0xC4 <= byte <= 0xC6 or byte >= 0xD9
        ]
        if not places:
            return self._flip(frame)
        at = self._rng.choice(places)
        byte = frame[at]
        if byte <= 0x8F:
            head = bytes([0x80 | self._rng.randrange(16)])
        elif byte <= 0x9F:
            head = bytes([0x90 | self._rng.randrange(16)])
        elif byte <= 0xBF:
            head = bytes([0xA0 | self._rng.randrange(32)])
        else:
            return frame[: at + 1] + self._rng.randbytes(self._rng.randrange(1, 5)) + frame[at + 5 :]
        return frame[:at] + head + frame[at + 1 :]

    def _exchange(self, frame: bytes) -> bytes:
        """A whole value inside the message becomes another: types and lengths are wrong, the encoding is right."""
        rng = self._rng
        if not self._trees:
            return self._flip(frame)
        copied = root = list(rng.choice(self._trees))
        while True:
            if not copied:
                return _encode(root)
            at = rng.randrange(len(copied))
            node = copied[at]
            if isinstance(node, list) and node and rng.random() < 0.75:
                copied[at] = copied = list(node)
                continue
            draw = rng.random()
            if draw < 0.7:
                copied[at] = rng.choice(_VALUES)
            elif draw < 0.8:
                del copied[at]
            elif draw < 0.9:
                copied.insert(at, rng.choice(_VALUES))
            else:
                copied[at] = [copied[at]] * rng.choice((1, 2, 5, 300))
            return _encode(root)

    def _nest(self, frame: bytes) -> bytes:
        at = self._rng.randrange(len(frame) + 1)
        return frame[:at] + self._rng.choice(_DEEP) + frame[at:]

    def _noise(self, frame: bytes) -> bytes:
        return self._rng.randbytes(self._rng.choice((0, 1, 2, 4, 8, 16, 64, 256, 2000)))
