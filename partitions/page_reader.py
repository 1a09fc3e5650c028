"""Reads runs of pages of a page file into frames of the arena, beside the main thread, without a Python thread.

A *run* is pages in places that follow one another; each goes into a frame of its own, or, being read only because it
lies between two that are wanted, nowhere (NO_FRAME). A page by itself is a run of one. In long runs the disk is ten
times as fast as page by page.

A Python thread that reads starves on the interpreter lock, as one that flushes does (partitions.flusher). Linux reads
by itself: io_submit hands over many reads in one system call, the device writes straight into the frames (O_DIRECT),
and io_getevents tells which ones are done. libc has no functions for them, so they are called by number. What the
kernel reads and writes, the same on x86-64 and aarch64:

    struct iocb   0  u64   aio_data        the tag          struct io_event   0  u64   data   the tag
                  8  u32   aio_key         the kernel's                       8  u64   obj    address of the iocb
                 12  u32   aio_rw_flags    0                                 16  s64   res    bytes read, or -errno
                 16  u16   aio_lio_opcode  7 = preadv                        24  s64   res2
                 18  s16   aio_reqprio     0
                 20  u32   aio_fildes                       struct timespec   0  s64   tv_sec
                 24  u64   aio_buf         its iovecs                         8  s64   tv_nsec
                 32  u64   aio_nbytes      how many
                 40  s64   aio_offset      in the file               struct iovec      0  u64   iov_base   the frame
                 48  u64   reserved, u32 aio_flags, u32 aio_resfd: 0                   8  u64   iov_len    PAGE_BYTES

An iocb, with its RUN_PAGES iovecs, belongs to its run until the event is there. Free ones are a stack of pointers, and
the top of that stack is the list that io_submit takes:

    pointers  [ free … free | free, handed to io_submit | in flight … ]
                              └── the last `count` of `_free`

Elsewhere (not Linux, another processor, a sandbox without io_setup, a file system without O_DIRECT) `start` reads at
once, through the system's cache, and `finished` hands out the tags: the caller sees no difference but the time. A run
that can't be read whole is read so too, page by page: the page at fault is named by its own offset.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from partitions.page import PAGE_BYTES

_IOCB = struct.Struct("<QIIHhIQQqQII")
_EVENT = struct.Struct("<QQq8x")
_IOVEC = struct.Struct("<QQ")
_PREADV = 7
_TAG, _PIECES, _OFFSET = 0, 4, 5  # words within an iocb
RUN_PAGES = 128  # at most
NO_FRAME = -1

# The numbers of io_setup, io_destroy, io_submit and io_getevents.
_NUMBERS = {"x86_64": (206, 207, 209, 208), "aarch64": (0, 1, 2, 4)}


def _numbers() -> tuple[int, int, int, int] | None:
    # A 32-bit process on a 64-bit kernel has other numbers and layouts than the machine's name says.
    if not sys.platform.startswith("linux") or ctypes.sizeof(ctypes.c_void_p) != 8:
        return None
    return _NUMBERS.get(os.uname().machine)


def _system_call(library: ctypes.CDLL, number: int, arguments: int) -> Callable[..., int]:
    # By item, not by attribute: that gives a new function each time, whose argtypes are its own.
    function = library["syscall"]
    function.restype = ctypes.c_long
    function.argtypes = [ctypes.c_long] * (1 + arguments)
    return partial(function, number)


def _address(buffer: mmap.mmap | bytearray) -> int:
    """Stays right while a memoryview of the buffer is kept: it can be neither resized nor closed meanwhile."""
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def _open_direct(path: Path, scratch: mmap.mmap) -> int | None:
    """A descriptor that reads around the system's cache, or None where the file system has no such thing."""
    if sys.platform != "linux":
        return None
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return None
        raise
    try:
        os.preadv(fd, [scratch], 0)
    except OSError as error:
        # Some take the flag and refuse the read. Any other error is for whoever wants that page.
        if error.errno == errno.EINVAL:
            os.close(fd)
            return None
    return fd


class PageReader:
    """At most `depth` runs at a time. `memory` stays mapped until `close`: the kernel writes into it."""

    def __init__(self, path: Path, memory: mmap.mmap, *, depth: int = 64) -> None:
        """Raises OSError when the file is not there."""
        self.path = path
        self._memory = memoryview(memory)
        self._frames = len(memory) // PAGE_BYTES
        self._scratch = mmap.mmap(-1, PAGE_BYTES)  # a mapping, since O_DIRECT wants an aligned buffer
        self._depth = self._free = depth
        self._nowhere = mmap.mmap(-1, PAGE_BYTES)
        self._runs: list[tuple[int, Sequence[int]]] = [(0, ())] * depth  # (place, frames) that each iocb reads
        self._done: list[int] = []
        self._failures: list[OSError] = []
        self._context = 0
        fd = _open_direct(path, self._scratch)
        if fd is not None and self._set_up(fd, memory):
            self._fd = fd
            return
        if fd is not None:
            os.close(fd)
        self._fd = os.open(path, os.O_RDONLY)

    def _set_up(self, fd: int, memory: mmap.mmap) -> bool:
        """Whether the kernel reads for us. It refuses in sandboxes, and when fs.aio-max-nr is used up."""
        numbers = _numbers()
        if numbers is None:
            return False
        setup, destroy, submit, get_events = numbers
        # Calls that return at once keep the interpreter lock, those that wait let it go.
        brief, waiting = ctypes.PyDLL(None, use_errno=True), ctypes.CDLL(None, use_errno=True)
        context = ctypes.c_ulong(0)
        if _system_call(brief, setup, 2)(self._depth, ctypes.addressof(context)) != 0:
            return False
        self._context = context.value
        self._io_destroy = _system_call(waiting, destroy, 1)
        self._io_submit = _system_call(brief, submit, 3)
        self._io_poll = _system_call(brief, get_events, 5)
        self._io_wait = _system_call(waiting, get_events, 5)

        iocbs, pointers = bytearray(_IOCB.size * self._depth), bytearray(8 * self._depth)
        events, timespecs = bytearray(_EVENT.size * self._depth), bytearray(32)
        self._iovecs = bytearray(_IOVEC.size * RUN_PAGES * self._depth)
        self._iovecs_at, self._nowhere_at = _address(self._iovecs), _address(self._nowhere)
        self._arena_at, self._iocbs_at, self._pointers_at = _address(memory), _address(iocbs), _address(pointers)
        self._events_at, self._no_time_at = _address(events), _address(timespecs)
        self._timeout_at = self._no_time_at + 16
        for number in range(self._depth):
            iovecs_at = self._iovecs_at + number * RUN_PAGES * _IOVEC.size
            _IOCB.pack_into(iocbs, number * _IOCB.size, 0, 0, 0, _PREADV, 0, fd, iovecs_at, 0, 0, 0, 0, 0)
        self._iocbs = memoryview(iocbs).cast("Q")
        self._pointers = memoryview(pointers).cast("Q")
        for at in range(self._depth):
            self._pointers[at] = self._iocbs_at + at * _IOCB.size
        self._events = memoryview(events)
        self._timeout = memoryview(timespecs).cast("q")[2:]
        return True

    @property
    def is_asynchronous(self) -> bool:
        return self._context != 0

    @property
    def in_flight(self) -> int:
        """Reads that were started and whose tags were not handed out yet."""
        return self._depth - self.room

    @property
    def room(self) -> int:
        """How many more reads `start` takes now."""
        return self._free - len(self._done) - len(self._failures)

    def start(self, reads: list[tuple[int, int, int]]) -> None:
        """Begins to read each (tag, place, frame), at most `room` of them. What fails is told by `finished`."""
        self.start_runs([(tag, place, (frame,)) for tag, place, frame in reads])

    def start_runs(self, runs: list[tuple[int, int, Sequence[int]]]) -> None:
        """The same for each (tag, first place, frames), of 1 to RUN_PAGES frames; NO_FRAME between others: nowhere.

        Raises ValueError for what is not so.
        """
        count = len(runs)
        if count > self.room:
            raise ValueError(f"{count} reads, but there is room for {self.room}")
        for _, _, frames in runs:
            if not 1 <= len(frames) <= RUN_PAGES:
                raise ValueError(f"a run of {len(frames)} pages")
            if not (min(frames) >= NO_FRAME and max(frames) < self._frames and frames[0] >= 0 <= frames[-1]):
                # The kernel would write over something else.
                raise ValueError(f"frame {min(frames)} or {max(frames)} is outside the arena")
        if not self._context:
            for tag, place, frames in runs:
                self._read_at_once(tag, place, frames)
            return
        if not count:
            return
        first = self._free - count
        iocbs, iocbs_at = self._iocbs, self._iocbs_at
        for pointer, (tag, place, frames) in zip(self._pointers[first : self._free], runs, strict=True):
            number = (pointer - iocbs_at) // _IOCB.size
            self._runs[number] = place, frames
            self._point_at(number, frames)
            iocb = number * _IOCB.size >> 3
            iocbs[iocb + _TAG] = tag
            iocbs[iocb + _PIECES] = len(frames)
            iocbs[iocb + _OFFSET] = place * PAGE_BYTES
        self._free = first
        taken = 0
        while taken < count:
            more = self._io_submit(self._context, count - taken, self._pointers_at + 8 * (first + taken))
            if more > 0:
                taken += more
            elif more == 0 or ctypes.get_errno() != errno.EINTR:
                break
        if taken < count:
            # Too busy, or an error, which the same read in the foreground then meets and names.
            left = count - taken
            self._pointers[first : first + left] = self._pointers[first + taken : first + count]
            self._free = first + left
            for tag, place, frames in runs[taken:]:
                self._read_at_once(tag, place, frames)

    def finished(self) -> list[int]:
        """The tags of reads that are done, each once. Raises OSError, once for every read that failed."""
        if self._free < self._depth:
            self._take(self._io_poll(self._context, 0, self._depth, self._events_at, self._no_time_at))
        return self._hand_out()

    def wait(self, timeout_s: float, least: int = 1) -> list[int]:
        """The same, but it waits until `least` of those in flight are done, or all of them, at most `timeout_s`."""
        if self._free == self._depth or self._done or self._failures:
            return self.finished()
        wanted = min(least, self._depth - self._free)
        deadline = time.monotonic() + timeout_s
        while True:
            left_s = max(deadline - time.monotonic(), 0.0)
            self._timeout[0] = int(left_s)
            self._timeout[1] = int(left_s % 1 * 1e9)
            count = self._io_wait(self._context, wanted, self._depth, self._events_at, self._timeout_at)
            self._take(count)
            if count >= 0:
                return self._hand_out()

    def read(self, place: int, frame: int) -> None:
        """Reads one page now. Raises OSError."""
        if not 0 <= frame < self._frames:
            raise ValueError(f"frame {frame} is outside the arena")
        self._read_into(self._memory[frame * PAGE_BYTES : (frame + 1) * PAGE_BYTES], place)

    def image(self, place: int) -> bytes:
        """One page, read now, and not into the arena. Raises OSError."""
        self._read_into(self._scratch, place)
        return self._scratch[:]

    def close(self) -> None:
        """Waits for what is in flight, and forgets it."""
        if self._fd < 0:
            return
        if self._context:
            # Returns when the last read has ended: from then on the frames are the caller's alone.
            self._io_destroy(self._context)
            self._context = 0
        os.close(self._fd)
        self._fd = -1
        self._depth = self._free = self._frames = 0
        self._done, self._failures = [], []
        self._memory.release()

    def _take(self, count: int) -> None:
        """Sorts what io_getevents returned into done and failed. Negative: nothing, by a signal or an error."""
        if count < 0:
            number = ctypes.get_errno()
            if number != errno.EINTR:
                raise OSError(number, f"{self.path}: io_getevents: {os.strerror(number)}")
            return
        pointers, free, done = self._pointers, self._free, self._done
        for tag, pointer, result in _EVENT.iter_unpack(self._events[: count * _EVENT.size]):
            place, frames = self._runs[(pointer - self._iocbs_at) // _IOCB.size]
            if result == len(frames) * PAGE_BYTES:
                done.append(tag)
            elif len(frames) > 1:
                self._read_again(tag, place, frames, result)
            else:
                self._failures.append(self._failure(place * PAGE_BYTES, result))
            pointers[free] = pointer
            free += 1
        self._free = free

    def _point_at(self, number: int, frames: Sequence[int]) -> None:
        """Has the iovecs of an iocb, the n-th, name these frames."""
        arena_at, nowhere_at, iovecs = self._arena_at, self._nowhere_at, self._iovecs
        at = number * RUN_PAGES * _IOVEC.size
        for frame in frames:
            _IOVEC.pack_into(iovecs, at, nowhere_at if frame < 0 else arena_at + frame * PAGE_BYTES, PAGE_BYTES)
            at += _IOVEC.size

    def _hand_out(self) -> list[int]:
        if self._failures:
            raise self._failures.pop(0)
        done, self._done = self._done, []
        return done

    def _read_at_once(self, tag: int, place: int, frames: Sequence[int]) -> None:
        try:
            for at, frame in enumerate(frames, place):
                if frame != NO_FRAME:
                    self.read(at, frame)
        except OSError as error:
            self._failures.append(error)
        else:
            self._done.append(tag)

    def _read_again(self, tag: int, place: int, frames: Sequence[int], result: int) -> None:
        """A run was not read whole: page by page it shows which one is at fault. It may be one that nobody wants."""
        self._read_at_once(tag, place, frames)
        if self._done and self._done[-1] == tag and NO_FRAME not in frames:
            self._done.pop()
            whole = max(result, 0) // PAGE_BYTES
            self._failures.append(self._failure((place + whole) * PAGE_BYTES, result - whole * PAGE_BYTES))

    def _read_into(self, buffer: memoryview | mmap.mmap, place: int) -> None:
        offset = place * PAGE_BYTES
        try:
            result = os.preadv(self._fd, [buffer], offset)
        except OSError as error:
            raise self._failure(offset, -(error.errno or errno.EIO)) from None
        if result != PAGE_BYTES:
            raise self._failure(offset, result)

    def _failure(self, offset: int, result: int) -> OSError:
        """`result` as the kernel gives it: the bytes that it read, or the error's number with a minus."""
        where = f"{self.path} offset {offset}"
        if result < 0:
            return OSError(-result, f"{where}: {os.strerror(-result)}")
        return OSError(errno.EIO, f"{where}: {result} bytes instead of a page")
