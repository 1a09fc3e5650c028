"""A flush in the background ends, reports its error, and can be waited for."""

from __future__ import annotations

import ctypes
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from partitions import flusher
from partitions.flusher import Flusher


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


def wait_until_done(subject: Flusher) -> int:
    """How often it was asked."""
    deadline = time.monotonic() + 10
    asked = 1
    while not subject.done():
        assert time.monotonic() < deadline
        asked += 1
    return asked


def test_the_control_block_has_the_size_that_glibc_gives_it() -> None:
    assert ctypes.sizeof(flusher._SigEvent) == 64
    assert flusher._AioControlBlock.aio_sigevent.offset == 32
    assert flusher._AioControlBlock.aio_offset.offset == 128
    assert ctypes.sizeof(flusher._AioControlBlock) == 168


def test_a_flush_runs_beside_the_main_thread(file: int) -> None:
    subject = Flusher()
    if not subject.is_asynchronous:
        pytest.skip("not glibc: flushes are inline here")
    asked = 0
    for _ in range(20):
        os.write(file, bytes(100_000))
        subject.start(file)
        asked += wait_until_done(subject)
    assert asked > 20  # start returned while it was under way, at least once
    assert subject.done()


def test_what_was_dirty_is_clean_afterwards(file: int, tmp_path: Path) -> None:
    """The kernel's count of dirty pages of this file, where it tells (Linux 6.5: cachestat)."""
    libc = ctypes.CDLL(None, use_errno=True)

    def dirty_pages() -> int:
        whole_file = (ctypes.c_uint64 * 2)(0, 0)
        counts = (ctypes.c_uint64 * 5)()
        if libc.syscall(451, file, whole_file, counts, 0) != 0:
            pytest.skip("this kernel has no cachestat")
        return counts[1] + counts[2]  # dirty, or being written

    os.write(file, bytes(400_000))
    if dirty_pages() == 0:
        pytest.skip("this file system has no dirty pages")
    subject = Flusher()
    subject.start(file)
    assert subject.wait(10)
    assert dirty_pages() == 0


def test_waiting_ends_when_the_flush_does(file: int) -> None:
    subject = Flusher()
    os.write(file, bytes(1_000_000))
    subject.start(file)
    assert subject.wait(10)
    assert subject.done()
    assert subject.wait(0)


def test_a_file_that_is_not_open_is_an_error() -> None:
    subject = Flusher()
    fd = os.open("/dev/null", os.O_RDWR)
    os.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor") as error:
        subject.start(fd)
    assert error.value.errno == errno.EBADF
    assert subject.done()


@pytest.mark.parametrize("is_polled", [True, False])
def test_an_error_of_the_flush_itself_is_raised_once(file: int, is_polled: bool) -> None:
    """A pipe can be opened for writing, but not be flushed."""
    subject = Flusher()
    reader, writer = os.pipe()

    def flush() -> None:
        subject.start(writer)
        if is_polled:
            wait_until_done(subject)
        else:
            subject.wait()

    with pytest.raises(OSError, match="Invalid argument"):
        flush()
    assert subject.done()
    os.close(reader)
    os.close(writer)
    os.write(file, b"x")
    subject.start(file)
    assert subject.wait(10)


def test_a_second_flush_at_a_time_is_refused(file: int) -> None:
    subject = Flusher()
    if not subject.is_asynchronous:
        pytest.skip("not glibc: flushes are inline here")
    os.write(file, bytes(1_000_000))
    subject.start(file)
    with pytest.raises(RuntimeError, match="running already"):
        subject.start(file)
    assert subject.wait(10)


def test_without_glibc_the_flush_is_inline(file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flusher, "_glibc", lambda: None)
    flushed: list[int] = []
    monkeypatch.setattr(os, "fdatasync", flushed.append)
    subject = Flusher()
    assert not subject.is_asynchronous
    subject.start(file)
    assert flushed == [file]
    assert subject.done()
    assert subject.wait()
