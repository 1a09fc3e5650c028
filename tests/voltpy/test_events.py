"""The outlet for events, on real pipes: it never waits, and says what is missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.readable import readable
from voltpy.events import WAITING_BYTES, Outlet

LINE = b"x" * 99 + b"\n"


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    for fd in (reader, writer):
        with suppress(OSError):
            os.close(fd)


def read_all(reader: int, outlet: Outlet) -> bytes:
    said = b""
    while True:
        outlet.flush()
        if not readable(reader):
            return said
        said += os.read(reader, 1 << 16)


def test_what_a_stalled_reader_missed_is_counted_and_told_where_it_is_missing(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    outlet = Outlet(writer)
    lines = 3 * WAITING_BYTES // len(LINE)
    for _ in range(lines):
        outlet.write(LINE)
    outlet.write("a later line\n")
    assert os.get_blocking(writer)  # others share it
    said = read_all(reader, outlet)
    *kept, blank, told = said.splitlines()
    assert set(kept) == {LINE[:-1]}
    assert blank == b""
    event = json.loads(told)
    assert (event["event"], event["lines"]) == ("lines_dropped", lines - len(kept) + 1)
    assert len(kept) * len(LINE) > WAITING_BYTES
    outlet.write("a line\n")
    assert read_all(reader, outlet) == b"a line\n"


def test_a_reader_that_has_left_costs_nothing(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    outlet = Outlet(writer)
    os.close(reader)
    for _ in range(2 * WAITING_BYTES // len(LINE)):
        outlet.write(LINE)
    outlet.flush()
    Outlet(None).write(LINE)


def test_at_the_end_a_reader_that_never_reads_is_not_waited_for_long(pipe: tuple[int, int]) -> None:
    _, writer = pipe
    outlet = Outlet(writer)
    for _ in range(WAITING_BYTES // len(LINE)):
        outlet.write(LINE)
    began_s = time.monotonic()
    outlet.flush(0.1)
    assert 0.1 <= time.monotonic() - began_s < 5


def test_what_a_procedure_printed_before_its_process_died_is_there() -> None:
    program = "import os; from voltpy import events; events.configure(); print('said'); os.kill(os.getpid(), 9)"
    died = subprocess.run([sys.executable, "-I", "-c", program], stdout=subprocess.PIPE, check=False)
    assert (died.stdout, died.returncode) == (b"said\n", -9)
