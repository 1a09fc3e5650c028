"""Frames on a byte stream: cut anywhere, they come out whole; a length that can't be is the end."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voltpy.errors import ProtocolError
from voltpy.messages import MAX_FRAME_BYTES
from voltpy.stream import FrameReader, packed


def test_a_reader_takes_no_frame_past_its_limit() -> None:
    reader = FrameReader(10)
    assert reader.feed(packed(bytes(10)) + packed(bytes(11))[:3]) == [bytes(10)]
    assert reader.partial_bytes == 3
    with pytest.raises(ProtocolError, match="a frame of 11 bytes; the limit is 10"):
        reader.feed(packed(bytes(11))[3:])


@given(
    frames=st.lists(st.binary(max_size=300), max_size=20), cuts=st.lists(st.integers(1, 64), min_size=1, max_size=50)
)
def test_frames_come_out_whole_wherever_the_stream_is_cut(frames: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(map(packed, frames))
    reader = FrameReader()
    found: list[bytes] = []
    at = turn = 0
    while at < len(stream):
        size = cuts[turn % len(cuts)]
        found += reader.feed(stream[at : at + size])
        at, turn = at + size, turn + 1
    assert found == frames


def test_a_length_past_the_limit_is_refused_before_its_bytes_arrive() -> None:
    reader = FrameReader()
    assert reader.feed(packed(b"first")) == [b"first"]
    with pytest.raises(ProtocolError, match=str(MAX_FRAME_BYTES + 1)):
        reader.feed((MAX_FRAME_BYTES + 1).to_bytes(4, "little"))


def test_a_large_frame_that_drips_in_is_not_copied_with_every_byte() -> None:
    reader = FrameReader()
    stream = packed(bytes(8 << 20))
    reader.feed(stream[:-2000])
    began_s = time.process_time()
    for at in range(len(stream) - 2000, len(stream) - 1):
        assert reader.feed(stream[at : at + 1]) == []
    assert time.process_time() - began_s < 0.5  # copying took seconds
    assert reader.feed(stream[-1:]) == [bytes(8 << 20)]


def test_a_frame_of_the_largest_size_is_taken() -> None:
    frame = bytes(MAX_FRAME_BYTES)
    assert FrameReader().feed(packed(frame)) == [frame]
