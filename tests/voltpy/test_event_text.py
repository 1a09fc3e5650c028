"""Events as people read them: one line each, and what is no event as it was."""

from __future__ import annotations

import os
import pty
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

import pytest

from voltpy.cli.start import _outlet
from voltpy.event_text import MAX_BEGUN_BYTES, TextOutlet, as_text
from voltpy.events import Outlet

STARTED = (
    b'{"child": "partition 1", "pid": 17, "event": "started", "level": "info",'
    b' "timestamp": "2026-11-28T12:05:03.545579Z"}'
)
EXITED = STARTED.replace(b"started", b"no_room_left").replace(b'"info"', b'"warning"')


@pytest.fixture(autouse=True)
def in_oslo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Europe/Oslo")


@contextmanager
def piped(kind: Callable[[int], Outlet]) -> Iterator[tuple[Outlet, Callable[[], bytes]]]:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    try:
        yield kind(writer), lambda: os.read(reader, 1 << 16)
    finally:
        os.close(reader)
        os.close(writer)


def test_an_event_is_a_line_with_the_time_here_who_what_and_the_rest() -> None:
    assert as_text(STARTED)[2:] == b":05:03 partition 1: started (pid 17)"
    assert as_text(EXITED)[8:] == b" warning: partition 1: no room left (pid 17)"
    assert as_text(EXITED, coloured=True).startswith(b"\x1b[33m")
    assert as_text(EXITED, coloured=True).endswith(b"\x1b[0m")
    checkpoint = STARTED.replace(
        b'"child": "partition 1", "pid": 17', '"partition": 0, "t": 0.5, "names": ["æ", "b\\nc"]'.encode()
    )
    assert as_text(checkpoint)[9:].decode() == "partition 0: started (t 0.5, names æ b c)"


@pytest.mark.parametrize(
    "line", [b"", b"hello", b"[1]", b"{}", b"17", b"{", b"\xff\xfe", b'{"event": 1, "level": 2, "timestamp": 3}']
)
def test_what_is_no_event_is_shown_as_it_is(line: bytes) -> None:
    assert as_text(line) == line


def test_lines_that_come_in_pieces_are_put_together() -> None:
    with piped(TextOutlet) as (outlet, said):
        outlet.write(b"hello\n" + STARTED[:20])
        assert said() == b"hello\n"
        outlet.write(STARTED[20:] + b"\nno end")
        assert said() == as_text(STARTED) + b"\n"
        outlet.flush(0.1)
        assert said() == b"no end"
        outlet.write(b"x" * (MAX_BEGUN_BYTES // 2))
        with pytest.raises(BlockingIOError):
            said()
        outlet.write(b"y" * MAX_BEGUN_BYTES)  # more than a line has
        assert said()[:2] == b"xx"


@pytest.mark.parametrize(("form", "is_text"), [(None, True), ("text", True), ("json", False)])
def test_events_are_text_at_a_terminal_unless_json_is_asked_for(
    form: str | None, is_text: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    master, slave = pty.openpty()
    with open(slave, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        assert isinstance(_outlet(form), TextOutlet) is is_text
    os.close(master)


def test_events_are_json_where_no_terminal_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with open(os.devnull, "w") as file:
        other: TextIO
        for other in (file, None):  # type: ignore[assignment]
            monkeypatch.setattr(sys, "stderr", other)
            assert not isinstance(_outlet(None), TextOutlet)
            assert isinstance(_outlet("text"), TextOutlet)
