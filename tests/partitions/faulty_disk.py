"""A disk that fails at the n-th call, and forgets what was not flushed when its power goes.

The files are real ones, in one directory. The calls that reach them are counted on their way, each with a name such as
"pwrite wal" or "fdatasync pages"; so is each page that io_getevents reports as read. `fail(n, fault)` says what happens
at the n-th:

    EIO      the call fails; a write has done a half, and what a flush should have flushed counts as clean from now on,
             though it is not on disk (as Linux has it: the next flush works, and flushes nothing of that)
    ENOSPC   the call fails, and with `stays_full` so does everything that takes room from then on, until `make_room`
    SHORT    a read or write does a half of what it was told, and fails nothing
    CUT      power is cut before the call (PowerCut), or in the middle of it, where it is a write

`cut` leaves in the directory what a disk may have kept. What was flushed is there. Of what was not, each sector may be
there or not. Names are made and removed in their order: the directory is as it was after one of the changes that
followed its last flush. No flush is a real one: that would only take time.
"""

from __future__ import annotations

import ctypes
import errno
import io
import os
import random
import struct
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from unittest import mock

from partitions import page_reader
from partitions.flusher import Flusher
from partitions.page import PAGE_BYTES
from partitions.page_reader import PageReader

EIO, ENOSPC, SHORT, CUT = "EIO", "ENOSPC", "SHORT", "CUT"
SECTOR_BYTES = 512
TAKES_ROOM = ("create", "pwrite", "fallocate", "rename", "fsync", "fdatasync", "flush.start", "flush.done")
MAY_BE_SHORT = ("pwrite", "pread", "preadv", "event")

_contexts: list[int] = []  # of the kernel's, free
_EVENT = struct.Struct("<QQqq")


def may_meet(fault: str, named_call: str) -> bool:
    """Whether the fault can befall a call of this name."""
    call = named_call.split()[0]
    return call in {ENOSPC: TAKES_ROOM, SHORT: MAY_BE_SHORT}.get(fault, (call,))


class PowerCut(BaseException):
    """The process is gone."""


class _File:
    """What of a file is on disk, whatever its names are."""

    def __init__(self, durable: bytes = b"") -> None:
        self.durable = durable
        self.last = b""  # its bytes, when it has lost its name
        self.seemingly_clean: set[int] = set()  # sectors that a flush should have flushed, and failed to
        self.version = self.durable_version = 0

    def flushed(self, content: bytes, version: int) -> None:
        if version < self.durable_version:
            return
        kept = bytearray(content)
        for sector in self.seemingly_clean:
            at = sector * SECTOR_BYTES
            if at < len(kept):
                old = self.durable[at : at + SECTOR_BYTES]
                kept[at : at + SECTOR_BYTES] = old.ljust(len(kept[at : at + SECTOR_BYTES]), b"\0")
        self.durable, self.durable_version = bytes(kept), version

    def flush_failed(self, content: bytes) -> None:
        for sector, at in enumerate(range(0, len(content), SECTOR_BYTES)):
            if content[at : at + SECTOR_BYTES] != self.durable[at : at + SECTOR_BYTES]:
                self.seemingly_clean.add(sector)

    def written(self, offset: int, length: int) -> None:
        self.version += 1
        if self.seemingly_clean:
            self.seemingly_clean.difference_update(
                range(offset // SECTOR_BYTES, (offset + length - 1) // SECTOR_BYTES + 1)
            )

    def after_cut(self, content: bytes, rng: random.Random, keeps: float) -> bytes:
        length = len(content) if rng.random() < keeps else len(self.durable)
        old, new = self.durable.ljust(length, b"\0")[:length], content.ljust(length, b"\0")[:length]
        if old == new:
            return old
        left = bytearray(old)
        for sector, at in enumerate(range(0, length, SECTOR_BYTES)):
            if sector not in self.seemingly_clean and rng.random() < keeps:
                left[at : at + SECTOR_BYTES] = new[at : at + SECTOR_BYTES]
        return bytes(left)


class FaultyDisk:
    """In place from `__enter__` to `__exit__`. `calls` are all so far; `fired` is the one that failed."""

    def __init__(self, directory: Path) -> None:
        self.calls: list[str] = []
        self.fired: str | None = None
        self.is_full = False
        self.stays_full = True
        self.refused_for_room = 0
        self._directory = str(directory)
        self._inside = f"{directory}/"
        self._at, self._next, self._fault = 0, "", ""
        self._dead = False
        self._names: dict[str, _File] = {}
        self._durable_names: dict[str, _File] = {}
        self._steps: list[dict[str, _File]] = []  # the names after each change since the directory was flushed
        self._files: dict[int, tuple[_File, str]] = {}  # by descriptor: the file and what it is for
        self._directories: set[int] = set()
        self._probed: set[int] = set()  # descriptors that a PageReader has tried out
        self._readers: list[Any] = []
        self._stack = ExitStack()
        self._real = {name: getattr(os, name) for name in _COUNTED}

    def fail(self, n: int, fault: str) -> None:
        """The n-th call from here on."""
        self.calls.clear()
        self._at, self._fault, self.fired = n, fault, None

    def fail_next(self, call: str, fault: str) -> None:
        """The next call of that name, such as "fdatasync wal"."""
        self.calls.clear()
        self._at, self._next, self._fault, self.fired = 0, call, fault, None

    def make_room(self) -> None:
        self.is_full = False

    def cut(self, rng: random.Random, keeps: float | None = None) -> None:
        """The machine loses its power and has it again: the directory is what the disk kept.

        `keeps`: such a part of the sectors that were not flushed; a random one if it is not given.
        """
        if keeps is None:
            keeps = rng.choice([0.0, 0.0, 0.5, 1.0])
        names = rng.choice([self._durable_names, *self._steps, *self._steps[-1:]])
        left = {
            name: file.after_cut(self._content(file), rng, keeps if name != "LOCK" else 0.0)
            for name, file in names.items()
        }
        for entry in os.scandir(self._directory):
            if not entry.is_dir():
                self._real["unlink"](entry.path)
        self._names = {}
        for name, content in left.items():
            fd = self._real["open"](os.path.join(self._directory, name), os.O_WRONLY | os.O_CREAT, 0o600)
            self._real["pwrite"](fd, content, 0)
            self._real["close"](fd)
            self._names[name] = _File(content)
        self._settled()

    def crashed(self) -> None:
        """The process is gone, with all that it had open; nothing fails any more."""
        for reader in self._readers:
            reader.close()
        self._readers.clear()
        for fd in (*self._files, *self._directories):
            self._real["close"](fd)
        self._files.clear()
        self._probed.clear()
        self._directories.clear()
        self._dead = self.is_full = False

    def __enter__(self) -> Self:
        self._put_files()
        self._put(page_reader, "_system_call", self._system_call(page_reader._system_call))
        self._put(PageReader, "_set_up", self._reader_set_up(PageReader._set_up))
        self._put(PageReader, "_take", self._reader_take(PageReader._take))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _put_files(self) -> None:
        for name in _COUNTED:
            self._put(os, name, getattr(self, f"_{name}"))
        self._put(io, "open", self._opened(io.open))
        for name in ("start", "done", "wait"):
            self._put(Flusher, name, getattr(self, f"_flusher_{name}")(getattr(Flusher, name)))

    def _put(self, where: Any, name: str, new: Any) -> None:
        self._stack.enter_context(mock.patch.object(where, name, new))

    # What is counted.

    def _count(self, call: str, what: str) -> str:
        """The fault that this call meets, or nothing. Raises PowerCut unless a half of the call can be done."""
        if self._dead:
            raise PowerCut
        self.calls.append(f"{call} {what}")
        if self.is_full and call == "fallocate":
            self.refused_for_room += 1
            return ENOSPC
        if len(self.calls) != self._at and self.calls[-1] != self._next:
            return ""
        self._next = ""
        if not may_meet(self._fault, self.calls[-1]):
            return ""
        self.fired = self.calls[-1]
        if self._fault == CUT:
            self._dead = True
            if call != "pwrite":
                raise PowerCut
        self.is_full = self._fault == ENOSPC and self.stays_full
        return self._fault

    def _raise(self, fault: str) -> None:
        if fault in (EIO, ENOSPC):
            number = getattr(errno, fault)
            raise OSError(number, os.strerror(number))

    def _ours(self, path: Any) -> str | None:
        """The name in the directory, "." for itself, None for what is elsewhere."""
        path = os.fspath(path)
        if path == self._directory:
            return "."
        if not path.startswith(self._inside):
            return None
        name: str = path[len(self._inside) :]
        return None if "/" in name else name

    # Files.

    def _open(self, path: Any, flags: int, mode: int = 0o777, **options: Any) -> int:
        name = self._ours(path)
        if name is None:
            return self._real["open"](path, flags, mode, **options)
        is_new = bool(flags & os.O_CREAT) and name not in self._names
        self._raise(self._count("create" if is_new else "open", _what(name)))
        fd: int = self._real["open"](path, flags, mode, **options)
        if name == ".":
            self._directories.add(fd)
            return fd
        if is_new:
            self._names[name] = _File()
            self._named()
        file = self._names[name]
        if flags & os.O_TRUNC:
            file.version += 1
        self._files[fd] = file, _what(name)
        return fd

    def _opened(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def opened(path: Any, *arguments: Any, **options: Any) -> Any:
            if not isinstance(path, str | os.PathLike) or (name := self._ours(path)) is None:
                return real(path, *arguments, **options)
            self._raise(self._count("open", _what(name)))
            return _Reading(real(path, *arguments, **options), self, _what(name))

        return opened

    def _close(self, fd: int) -> None:
        self._files.pop(fd, None)
        self._probed.discard(fd)
        self._directories.discard(fd)
        self._real["close"](fd)

    def _pwrite(self, fd: int, data: Any, offset: int) -> int:
        if fd not in self._files:
            return self._real["pwrite"](fd, data, offset)
        file, what = self._files[fd]
        fault = self._count("pwrite", what)
        if self.is_full and not fault and offset + len(data) > os.fstat(fd).st_size:
            self.refused_for_room += 1
            fault = ENOSPC
        if fault:
            half = memoryview(data)[: len(data) // 2]
            if half:
                file.written(offset, len(half))
                self._real["pwrite"](fd, half, offset)
            if fault == CUT:
                raise PowerCut
            self._raise(fault)
            return len(half)
        file.written(offset, len(data))
        written: int = self._real["pwrite"](fd, data, offset)
        return written

    def _pread(self, fd: int, count: int, offset: int) -> bytes:
        if fd not in self._files:
            return self._real["pread"](fd, count, offset)
        fault = self._count("pread", self._files[fd][1])
        self._raise(fault)
        data: bytes = self._real["pread"](fd, count, offset)
        return data[: (len(data) + 1) // 2] if fault == SHORT else data

    def _preadv(self, fd: int, buffers: Any, offset: int, *flags: int) -> int:
        if fd not in self._files:
            return self._real["preadv"](fd, buffers, offset, *flags)
        fault = self._count("preadv" if fd in self._probed else "probe", self._files[fd][1])
        self._probed.add(fd)
        self._raise(fault)
        read: int = self._real["preadv"](fd, buffers, offset, *flags)
        return read // 2 if fault == SHORT else read

    def _ftruncate(self, fd: int, length: int) -> None:
        if fd in self._files:
            file, what = self._files[fd]
            self._raise(self._count("ftruncate", what))
            file.version += 1
        self._real["ftruncate"](fd, length)

    def _posix_fallocate(self, fd: int, offset: int, length: int) -> None:
        if fd in self._files:
            file, what = self._files[fd]
            self._raise(self._count("fallocate", what))
            file.version += 1
        self._real["posix_fallocate"](fd, offset, length)

    def _fsync(self, fd: int, call: str = "fsync") -> None:
        if fd in self._directories:
            self._raise(self._count(call, "directory"))
            self._durable_names, self._steps = dict(self._names), []
        elif fd in self._files:
            file, what = self._files[fd]
            fault = self._count(call, what)
            if fault:
                file.flush_failed(self._read(fd))
                self._raise(fault)
            file.flushed(self._read(fd), file.version)
        else:
            self._real[call](fd)

    def _fdatasync(self, fd: int) -> None:
        self._fsync(fd, "fdatasync")

    def _rename(self, source: Any, target: Any, **options: Any) -> None:
        name, new_name = self._ours(source), self._ours(target)
        if name is None or new_name is None:
            self._real["rename"](source, target, **options)
            return
        self._raise(self._count("rename", _what(name)))
        if new_name in self._names:
            self._names[new_name].last = self._read_path(os.fspath(target))
        self._real["rename"](source, target, **options)
        self._names[new_name] = self._names.pop(name)
        self._named()

    def _unlink(self, path: Any, **options: Any) -> None:
        name = self._ours(path)
        if name is not None and name in self._names:
            self._raise(self._count("unlink", _what(name)))
            self._names[name].last = self._read_path(os.fspath(path))
            del self._names[name]
            self._named()
        self._real["unlink"](path, **options)

    def _named(self) -> None:
        self._steps.append(dict(self._names))

    def _settled(self) -> None:
        self._durable_names, self._steps = dict(self._names), []

    def _read(self, fd: int) -> bytes:
        return self._read_path(f"/proc/self/fd/{fd}")  # the descriptor itself may be for writing only

    def _read_path(self, path: str) -> bytes:
        fd = self._real["open"](path, os.O_RDONLY)
        try:
            content: bytes = self._real["pread"](fd, os.fstat(fd).st_size, 0)
            return content
        finally:
            self._real["close"](fd)

    def _content(self, file: _File) -> bytes:
        name = next((name for name, other in self._names.items() if other is file), None)
        return file.last if name is None else self._read_path(os.path.join(self._directory, name))

    # Flushes beside execution: done at the second look. Those of other directories are for whoever was here before.

    def _flusher_start(self, real: Callable[..., None]) -> Callable[..., None]:
        def start(flusher: Any, fd: int) -> None:
            if fd not in self._files:
                return real(flusher, fd)
            if flusher._running:
                raise RuntimeError("a flush is running already")
            file, what = self._files[fd]
            self._raise(self._count("flush.start", what))
            flusher._running = True
            flusher.disk = self
            flusher.looks, flusher.under_way = 0, (file, what, self._read(fd), file.version)
            return None

        return start

    def _flusher_done(self, real: Callable[..., bool]) -> Callable[..., bool]:
        def done(flusher: Any) -> bool:
            if not flusher._running:
                return True
            if flusher.disk is not self:
                return real(flusher)
            if not self._is_over(flusher):
                return False
            flusher._running = False
            file, what, content, version = flusher.under_way
            fault = self._count("flush.done", what)
            if fault:
                file.flush_failed(content)
                self._raise(fault)
            file.flushed(content, version)
            return True

        return done

    def _flusher_wait(self, real: Callable[..., bool]) -> Callable[..., bool]:
        def wait(flusher: Any, timeout_s: float | None = None) -> bool:
            while not flusher.done():
                pass
            return True

        return wait

    def _is_over(self, flusher: Any) -> bool:
        flusher.looks += 1
        over: bool = flusher.looks > 1
        return over

    # Reads beside execution: all that were started are reported together, in the order of their tags.

    def _system_call(self, real: Callable[..., Any]) -> Callable[..., Any]:
        """io_destroy takes 20 ms: contexts of readers that were closed are used again."""
        numbers = page_reader._numbers()
        assert numbers is not None
        setup, destroy, _, get_events = numbers

        def system_call(library: ctypes.CDLL, number: int, arguments: int) -> Callable[..., int]:
            call: Callable[..., int] = real(library, number, arguments)

            def set_up(depth: int, at: int) -> int:
                if not _contexts:
                    return call(depth, at)
                ctypes.c_ulong.from_address(at).value = _contexts.pop()
                return 0

            def wait_for_all(context: int) -> int:
                (reader,) = (reader for reader in self._readers if reader._context == context)
                wait = real(library, get_events, 5)
                if reader.in_kernel:
                    wait(
                        context, reader.in_kernel, reader.in_kernel, reader._events_at, ctypes.addressof(reader.forever)
                    )
                _contexts.append(context)
                return 0

            return {setup: set_up, destroy: wait_for_all}.get(number, call)

        return system_call

    def _reader_set_up(self, real: Callable[..., bool]) -> Callable[..., bool]:
        def set_up(reader: Any, *arguments: Any) -> bool:
            if not real(reader, *arguments):
                return False
            self._readers.append(reader)
            submit, wait = reader._io_submit, reader._io_wait
            reader.forever = ctypes.create_string_buffer(struct.pack("<qq", 60, 0))
            reader.in_kernel = 0

            def submit_or_fail(*values: int) -> int:
                if self._count("submit", "pages") == EIO:
                    ctypes.set_errno(errno.EIO)
                    return -1
                taken: int = submit(*values)
                reader.in_kernel += max(taken, 0)
                return taken

            def wait_for_all(context: int, least: int, most: int, events: int, _: int) -> int:
                count: int = wait(context, reader.in_kernel, most, events, ctypes.addressof(reader.forever))
                reader.in_kernel -= max(count, 0)
                return count

            reader._io_submit, reader._io_poll, reader._io_wait = submit_or_fail, wait_for_all, wait_for_all
            return True

        return set_up

    def _reader_take(self, real: Callable[..., None]) -> Callable[..., None]:
        def take(reader: Any, count: int) -> None:
            if count > 0:
                events = sorted(_EVENT.iter_unpack(reader._events[: count * _EVENT.size]))
                for at, (tag, pointer, result, more) in enumerate(events):
                    fault = self._count("event", "pages")
                    outcome = {EIO: -errno.EIO, SHORT: PAGE_BYTES // 2}.get(fault, result)
                    _EVENT.pack_into(reader._events, at * _EVENT.size, tag, pointer, outcome, more)
            real(reader, count)

        return take


_COUNTED = (
    "open", "close", "pwrite", "pread", "preadv", "ftruncate", "posix_fallocate", "fsync", "fdatasync", "rename",
    "unlink",
)  # fmt: skip


class _Reading:
    """A file that is read by Python's own buffered reader."""

    def __init__(self, file: Any, disk: FaultyDisk, what: str) -> None:
        self._file, self._disk, self._what = file, disk, what

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, *count: int) -> Any:
        self._disk._raise(self._disk._count("read", self._what))
        return self._file.read(*count)

    def tell(self) -> int:
        at: int = self._file.tell()
        return at


def _what(name: str) -> str:
    """What the file is for."""
    if ".json" in name or ".sql" in name:
        return "catalog"
    if name in (".", "LOCK", "pages"):
        return {".": "directory", "LOCK": "lock"}.get(name, name)
    return "root" if name.startswith("checkpoint") else {".run": "run", ".image": "image"}.get(Path(name).suffix, "wal")
