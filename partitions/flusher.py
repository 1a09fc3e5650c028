"""fdatasync beside the main thread, without a Python thread.

A Python thread that flushes starves on the interpreter lock: beside a busy main thread it managed 9 flushes a second,
where `aio_fsync` manages 2,900. glibc runs that in a thread of its own which never touches the interpreter. Its control
block, on 64-bit glibc, the same on x86-64 and aarch64:

    struct aiocb    0  int       aio_fildes              struct sigevent  (64 bytes)
                    4  int       aio_lio_opcode             0  union sigval  sigev_value
                    8  int       aio_reqprio                8  int           sigev_signo
                   16  void *    aio_buf                   12  int           sigev_notify
                   24  size_t    aio_nbytes                16  48 bytes
                   32  sigevent  aio_sigevent
                   96  64 bytes of glibc's own, and aio_offset

Elsewhere (musl, macOS, 32 bit) the layout is another one; there `start` flushes inline.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys

_SIGEV_NONE = 1
_FOREVER_S = 1 << 30


class _SigEvent(ctypes.Structure):
    _fields_ = (
        ("sigev_value", ctypes.c_void_p),
        ("sigev_signo", ctypes.c_int),
        ("sigev_notify", ctypes.c_int),
        ("pad", ctypes.c_char * 48),
    )


class _AioControlBlock(ctypes.Structure):
    _fields_ = (
        ("aio_fildes", ctypes.c_int),
        ("aio_lio_opcode", ctypes.c_int),
        ("aio_reqprio", ctypes.c_int),
        ("aio_buf", ctypes.c_void_p),
        ("aio_nbytes", ctypes.c_size_t),
        ("aio_sigevent", _SigEvent),
        ("glibc_internal", ctypes.c_char * 32),
        ("aio_offset", ctypes.c_int64),
        ("glibc_reserved", ctypes.c_char * 32),
    )


class _AioInit(ctypes.Structure):
    _fields_ = (
        ("aio_threads", ctypes.c_int),
        ("aio_num", ctypes.c_int),
        ("aio_locks", ctypes.c_int),
        ("aio_usedba", ctypes.c_int),
        ("aio_debug", ctypes.c_int),
        ("aio_numusers", ctypes.c_int),
        ("aio_idle_time", ctypes.c_int),
        ("aio_reserved", ctypes.c_int),
    )


class _TimeSpec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_int64), ("tv_nsec", ctypes.c_int64))


def _glibc() -> tuple[ctypes.PyDLL, ctypes.CDLL] | None:
    """glibc's aio functions, twice: calls that return at once keep the interpreter lock, `aio_suspend` lets it go."""
    if not sys.platform.startswith("linux") or ctypes.sizeof(ctypes.c_void_p) != 8:
        return None
    if not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"):
        return None
    # Before glibc 2.34 they were in a library of their own.
    for name in (None, "librt.so.1"):
        try:
            brief, waiting = ctypes.PyDLL(name, use_errno=True), ctypes.CDLL(name, use_errno=True)
            if all(hasattr(brief, symbol) for symbol in ("aio_init", "aio_fsync", "aio_error", "aio_return")):
                return brief, waiting
        except OSError:
            continue
    return None


class Flusher:
    """At most one flush at a time. Its thread is born at the first `start`, and then has that moment's CPU affinity."""

    def __init__(self) -> None:
        self._block = _AioControlBlock()
        self._running = False
        glibc = _glibc()
        self.is_asynchronous = glibc is not None
        if glibc is None:
            return
        brief, waiting = glibc
        block_pointer = ctypes.byref(self._block)
        self._aio_fsync = brief.aio_fsync
        self._aio_error = brief.aio_error
        self._aio_return = brief.aio_return
        self._aio_return.restype = ctypes.c_ssize_t
        self._aio_suspend = waiting.aio_suspend
        self._pointer = block_pointer
        self._list = (ctypes.POINTER(_AioControlBlock) * 1)(ctypes.pointer(self._block))
        # Two threads, so that the WAL does not wait for a checkpoint. By default a thread ends after an idle second,
        # and the next one is born on the core of a main thread that has been pinned in the meantime.
        brief.aio_init(ctypes.byref(_AioInit(aio_threads=2, aio_num=32, aio_idle_time=_FOREVER_S)))

    def start(self, fd: int) -> None:
        """Begins to flush what is written to the file now. Raises OSError, and RuntimeError when a flush is running."""
        if self._running:
            raise RuntimeError("a flush is running already")
        if not self.is_asynchronous:
            os.fdatasync(fd)
            return
        block = self._block
        ctypes.memset(self._pointer, 0, ctypes.sizeof(block))
        block.aio_fildes = fd
        block.aio_sigevent.sigev_notify = _SIGEV_NONE
        if self._aio_fsync(os.O_DSYNC, self._pointer) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        self._running = True

    def done(self) -> bool:
        """Whether no flush is running (any more). Raises OSError, once, when it failed."""
        if not self._running:
            return True
        number: int = self._aio_error(self._pointer)
        if number == errno.EINPROGRESS:
            return False
        self._running = False
        self._aio_return(self._pointer)
        if number != 0:
            raise OSError(number, os.strerror(number))
        return True

    def wait(self, timeout_s: float | None = None) -> bool:
        """Waits until no flush is running, at most `timeout_s`. Whether that is so. Raises OSError when it failed."""
        timeout = None
        if timeout_s is not None:
            seconds = int(timeout_s)
            timeout = ctypes.byref(_TimeSpec(seconds, int((timeout_s - seconds) * 1e9)))
        while not self.done():
            if self._aio_suspend(self._list, 1, timeout) == 0:
                continue
            number = ctypes.get_errno()
            if number == errno.EAGAIN:
                return self.done()
            if number != errno.EINTR:
                raise OSError(number, os.strerror(number))
        return True
