"""One connection to a door over a Unix socket."""

from __future__ import annotations

from pathlib import Path

from voltpy.door_sockets import listen
from voltpy.link import StreamLink
from voltpy.stream import packed


def test_what_came_before_the_end_is_received_after_a_frame_that_came_in_two_parts(tmp_path: Path) -> None:
    listener = listen(str(tmp_path / "s"))
    link = StreamLink(0, 1, str(tmp_path / "s"), 0.0)
    partition, _ = listener.accept()
    frame = packed(b"answer")
    partition.sendall(frame[:7])
    assert link.receive() is None
    partition.sendall(frame[7:])
    partition.close()
    assert link.send([b"call"]) == 0
    assert link.receive() == b"answer"
    link.close()
    listener.close()


def test_the_end_is_known_that_came_right_behind_a_frame_once_all_is_read(tmp_path: Path) -> None:
    listener = listen(str(tmp_path / "s"))
    link = StreamLink(0, 1, str(tmp_path / "s"), 0.0)
    partition, _ = listener.accept()
    partition.sendall(packed(b"answer") + packed(b"another")[:3])
    link.read_all()
    assert not link.is_lost()
    partition.close()
    link.read_all()
    assert link.is_lost()
    assert link.receive() == b"answer"
    assert link.receive() is None
    link.close()
    listener.close()
