"""A CRC-framed append-only file of opaque records: the WAL and the decision log are both one.

A record log is a directory with numbered *segments* and a lock. Integers are little-endian, CRCs are CRC32C.

    log      = LOCK segment+                    segments in the order of their first LSN
    segment  = file <prefix>-<first LSN, 16 hex digits>.log
             = header frame* [marker] rest
    rest     = zero bytes (preallocated), or nothing

    header   (40 bytes)                         frame    (40 bytes + payload, padded to a multiple of 8)
       0  magic         8 bytes  b"voltpyRL"       0  tag           u32   of the segment
       8  version       u32      1                 4  header CRC    u32   over salt and bytes 8 to 39
      12  owner         u32      partition         8  payload CRC   u32   over the payload
      16  epoch         u32                       12  length        u32   of the payload, or MARKER
      20  first LSN     u64                       16  LSN           u64
      28  tag           u32      random           24  flushed LSN   u64   < LSN
      32  salt          u32      random           32  epoch         u32   as in the segment's header
      36  CRC           u32      over 0 to 35     36  owner         u32   as in the segment's header

    marker   = frame with length MARKER, the LSN of the last record, the same as flushed LSN, no payload

LSNs count records: the first is 1, each next one is one more, across segments. A frame's *flushed LSN* is the last LSN
that was certainly on disk when the frame was written. Tag and salt are unknown outside the file, so that no payload can
be made to look like a frame. The *marker* says that the log was stopped cleanly.

**How a segment is begun.** It is written as <prefix>.new: space is allocated, then everything in the segment before is
flushed, then the header is written and flushed, then the file gets its name and the directory is flushed. So a segment
with a name has a whole header, and its first LSN says that everything before it is on disk. Each start begins one, and
that is how the epoch is raised: it is durable when the directory is. A segment that is finished is cut to its length.

**What is read.** Frames in order, up to the first one that is not valid: a CRC is wrong, or it reaches past the end of
the file. Let x be the LSN that was due there.

  - A segment follows: it must begin at x, else records are missing.
  - It is the last segment: a frame header further on that is valid and has flushed LSN ≥ x proves that x was on disk.
    It was damaged since. Otherwise nobody was told that x is durable, and nothing after it is either: a *torn tail*,
    which a crash while writing explains. `begin` cuts it off, durably, before anything is appended.

Damage, wrong headers, missing segments, and valid frames that are not the ones due there raise Corruption with the file
and the offset. What is returned has been checked by two CRCs and by its place in the sequence.

**What was read may not be on disk.** When an fsync fails, the kernel keeps the pages and calls them clean: the next
process reads them, and its fsync has nothing to write. So `begin` writes again what no frame says was flushed, and then
flushes.

A failed flush can't be repeated for the same reason: after one, the log refuses everything, and the process must end.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import struct
from collections.abc import Generator, Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, NoReturn

from google_crc32c import extend, value

from voltpy.crash_point import crash_point, die, doomed
from voltpy.errors import ClusterError, Corruption

FORMAT_VERSION = 1
SEGMENT_BYTES = 64 << 20
MAX_RECORD_BYTES = 1 << 30

_MAGIC = b"voltpyRL"
_HEADER = struct.Struct("<8sIIIQIII")
_FRAME = struct.Struct("<IIIIQQII")
_FRAME_PREFIX = struct.Struct("<II")
_FRAME_REST = struct.Struct("<IIQQII")  # what the header CRC covers
_FRAME_BYTES = _FRAME.size
_HEADER_BYTES = _HEADER.size
_MARKER = 0xFFFFFFFF
_CHUNK_BYTES = 1 << 20
_ZEROS = bytes(_CHUNK_BYTES)
_FULL = (errno.ENOSPC, errno.EDQUOT)


class DiskFull(Exception):
    """There is no room for the record. The log is as it was before; the same append may be tried again later."""


class _Segment(NamedTuple):
    path: Path
    epoch: int
    first_lsn: int
    tag: int
    seed: int  # CRC of the salt: where header CRCs start from


class RecordLog:
    """One process's log. `open`, then `replay` to its end, then `begin`, then `append` and `flush`, then `close`.

    `written_lsn` and `flushed_lsn` are the last LSNs that are in the file and on disk. `fd` is the file to flush when
    that is done elsewhere: `flush_started` before, `mark_flushed` or `flush_failed` after.
    `torn_tail` names the file and the offset where `replay` found one, for the operator's eyes.
    """

    def __init__(self, directory: Path, prefix: str, owner: int, segment_bytes: int, lock_fd: int) -> None:
        self.directory = directory
        self.epoch = 0
        self.written_lsn = 0
        self.flushed_lsn = 0
        self.fd = -1
        self.torn_tail: tuple[Path, int] | None = None
        self._prefix = prefix
        self._owner = owner
        self._segment_bytes = segment_bytes
        self._lock_fd = lock_fd
        self._path = directory / f"{prefix}.new"
        self._tag = 0
        self._seed = 0
        self._offset = 0  # where the next frame goes
        self._limit = 0  # where the segment ends
        self._flush_running = False
        self._failed = False
        self._segments: list[_Segment] = []
        self._replayed = False
        self._replayed_is_flushed = False
        self._tail_offset = 0  # where the last segment's valid frames end
        self._doubtful_offset = 0  # from where on they may not be on disk

    # ------------------------------------------------------------------------------------------------ opening

    @classmethod
    def open(cls, directory: Path, prefix: str, owner: int, *, segment_bytes: int = SEGMENT_BYTES) -> RecordLog:
        """Takes the directory's lock and reads the segment headers. Makes the directory if there is none.

        Raises ClusterError when another process holds the lock, Corruption when a header is damaged.
        """
        if not directory.exists():
            directory.mkdir()
            flush_directory(directory.parent)
        lock_fd = os.open(directory / "LOCK", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            log = cls(directory, prefix, owner, segment_bytes, lock_fd)
            log._unfinished_path.unlink(missing_ok=True)
            log._segments = log._read_headers()
        except BlockingIOError:
            os.close(lock_fd)
            raise ClusterError(f"{directory} is in use by another process") from None
        except BaseException:
            os.close(lock_fd)
            raise
        return log

    @property
    def _unfinished_path(self) -> Path:
        return self.directory / f"{self._prefix}.new"

    @property
    def first_lsn(self) -> int:
        """Of the first record that can be there: what came before has been forgotten, or is missing."""
        return self._segments[0].first_lsn if self._segments else 1

    def _read_headers(self) -> list[_Segment]:
        """The segments in order. Each header is whole, ours, and later than the one before."""
        name = re.compile(re.escape(self._prefix) + r"-([0-9a-f]{16})\.log")
        paths = sorted(path for path in self.directory.iterdir() if name.fullmatch(path.name))
        segments = [self._read_header(path) for path in paths]
        for before, after in pairwise(segments):
            if after.epoch < before.epoch:
                raise Corruption(f"{after.path} offset 16: epoch {after.epoch} after epoch {before.epoch}")
        return segments

    def _read_header(self, path: Path) -> _Segment:
        with path.open("rb") as file:
            header = file.read(_HEADER_BYTES)
        if len(header) < _HEADER_BYTES:
            raise Corruption(f"{path} offset 0: the segment header is cut off after {len(header)} bytes")
        magic, version, owner, epoch, first_lsn, tag, salt, crc = _HEADER.unpack(header)
        if magic != _MAGIC or crc != value(header[:-4]):
            raise Corruption(f"{path} offset 0: the segment header is damaged")
        if version != FORMAT_VERSION:
            raise ClusterError(f"{path} has format version {version}; this program reads {FORMAT_VERSION}")
        if owner != self._owner:
            raise Corruption(f"{path} offset 12: the segment belongs to {owner}, not to {self._owner}")
        if path.name != f"{self._prefix}-{first_lsn:016x}.log":
            raise Corruption(f"{path} offset 20: the segment begins at LSN {first_lsn}, not where its name says")
        return _Segment(path, epoch, first_lsn, tag, value(salt.to_bytes(4, "little")))

    @classmethod
    def make_after(cls, directory: Path, prefix: str, owner: int, lsn: int, epoch: int) -> None:
        """Makes a log without records, durably, whose next one comes after this LSN and whose next epoch after this.

        For a restored directory: what came before is in its checkpoint. So a log that is missing stays an error.
        Raises ClusterError when there is a log already, DiskFull.
        """
        log = cls.open(directory, prefix, owner)
        try:
            if log._segments:
                raise ClusterError(f"{directory} has a log already: {log._segments[-1].path.name}")
            log.written_lsn = log.flushed_lsn = lsn
            log.epoch = epoch
            log._start_segment(log._allocate(0), 0)
        finally:
            log.abandon()

    # ------------------------------------------------------------------------------------------------ reading

    def replay(self, after_lsn: int = 0) -> Iterator[tuple[int, bytes]]:
        """Every record after an LSN, in order, as (LSN, payload). Holds a chunk of a file, or one record, in memory.

        Raises Corruption where a record is damaged or missing; the records before it have been returned then. OSError
        when the disk can't be read.
        """
        if self.fd >= 0:
            raise RuntimeError("a log is replayed before it is begun")
        self._replayed = False
        self.torn_tail = None
        segments = self._segments_after(after_lsn)
        lsn = segments[0].first_lsn if segments else 1
        for index, segment in enumerate(segments):
            if segment.first_lsn != lsn:
                before = segments[index - 1].path
                raise Corruption(
                    f"{before} offset {self._tail_offset}: no valid record with LSN {lsn}, "
                    f"but {segment.path.name} begins at LSN {segment.first_lsn}"
                )
            is_last = index == len(segments) - 1
            fd = os.open(segment.path, os.O_RDONLY)
            try:
                records = self._replay_segment(fd, segment, is_last)
                lsn = yield from records if lsn > after_lsn else _skip(records, after_lsn)
            finally:
                os.close(fd)
        if lsn <= after_lsn:
            raise Corruption(
                f"{self._path_of_last()} offset {self._tail_offset}: the log ends at LSN {lsn - 1}; "
                f"it was flushed up to LSN {after_lsn} at least"
            )
        self.written_lsn = lsn - 1
        self._replayed = True

    def flush_replayed(self) -> None:
        """Before `begin`: the last segment, whose end may have been written without being flushed, is flushed.

        It is written again first, as by `begin`: see above.
        """
        if self._replayed_is_flushed:
            return
        fd = os.open(self._path_of_last(), os.O_RDWR)
        try:
            offset = 0
            while data := os.pread(fd, _CHUNK_BYTES, offset):
                if data != _ZEROS[: len(data)]:
                    _write_all(fd, data, offset)
                offset += len(data)
            os.fdatasync(fd)
        finally:
            os.close(fd)
        self._replayed_is_flushed = True

    def _segments_after(self, lsn: int) -> list[_Segment]:
        """The segments that hold what came after an LSN. Raises Corruption when the first of it is missing."""
        segments = self._segments
        while len(segments) > 1 and segments[1].first_lsn <= lsn + 1:
            segments = segments[1:]
        if segments and segments[0].first_lsn > lsn + 1:
            raise Corruption(
                f"{segments[0].path}: the first segment begins at LSN {segments[0].first_lsn}; earlier ones are missing"
            )
        return segments

    def _path_of_last(self) -> Path:
        return self._segments[-1].path if self._segments else self.directory

    def _replay_segment(self, fd: int, segment: _Segment, is_last: bool) -> Generator[tuple[int, bytes], None, int]:
        """Returns the LSN that is due after the segment."""
        unpack, crc_of, crc_from, frame_bytes = _FRAME.unpack_from, value, extend, _FRAME_BYTES
        tag_due, seed, epoch_due, owner_due = segment.tag, segment.seed, segment.epoch, self._owner
        file_bytes = os.fstat(fd).st_size
        lsn_due = segment.first_lsn
        flushed_lsn = lsn_due - 1
        chunk_starts: list[tuple[int, int]] = []  # (offset, LSN due there): from where a rewrite may begin
        base, data, data_bytes, at = _HEADER_BYTES, b"", 0, 0  # data is the file from base on; at counts from base
        stopped_cleanly = False
        while True:
            start = at + frame_bytes
            if start > data_bytes:
                base += at
                data = _read_all(fd, _CHUNK_BYTES, base)
                data_bytes, at, start = len(data), 0, frame_bytes
                if start > data_bytes:
                    break
                chunk_starts.append((base, lsn_due))
            tag, header_crc, payload_crc, length, lsn, flushed, epoch, owner = unpack(data, at)
            if tag != tag_due or crc_from(seed, data[at + 8 : start]) != header_crc:
                break
            if length == _MARKER:
                if lsn != lsn_due - 1 or epoch != epoch_due or owner != owner_due:
                    raise Corruption(f"{segment.path} offset {base + at}: an end marker for LSN {lsn} of epoch {epoch}")
                stopped_cleanly = True
                flushed_lsn = flushed
                at = start
                break
            end = start + length
            if end > data_bytes:
                if base + end > file_bytes:
                    break
                base += at
                data = _read_all(fd, max(_CHUNK_BYTES, frame_bytes + length), base)
                data_bytes, at, start, end = len(data), 0, frame_bytes, frame_bytes + length
                if end > data_bytes:
                    break
                chunk_starts.append((base, lsn_due))
            payload = data[start:end]
            if crc_of(payload) != payload_crc:
                break
            if lsn != lsn_due or epoch != epoch_due or owner != owner_due:
                raise Corruption(
                    f"{segment.path} offset {base + at}: record {lsn} of epoch {epoch}, owner {owner}, "
                    f"where record {lsn_due} of epoch {epoch_due}, owner {owner_due} is due"
                )
            yield lsn, payload
            lsn_due += 1
            flushed_lsn = flushed
            at = (end + 7) & ~7
        self._tail_offset = base + at
        if is_last:
            if not stopped_cleanly:
                self._judge_tail(fd, segment, lsn_due)
            self._doubtful_offset = max(
                (offset for offset, lsn in chunk_starts if lsn <= flushed_lsn + 1), default=_HEADER_BYTES
            )
        return lsn_due

    def _judge_tail(self, fd: int, segment: _Segment, lsn_due: int) -> None:
        """Looks for a proof, further on, that the record that is due at the tail was on disk: Corruption then.

        Only headers are checked, so the search is linear in the file, whatever lengths they claim.
        """
        tag = segment.tag.to_bytes(4, "little")
        base = self._tail_offset
        data = _read_all(fd, _CHUNK_BYTES, base)
        while data:
            if data != _ZEROS[: len(data)]:
                self.torn_tail = (segment.path, self._tail_offset)
                at = data.find(tag)
                while 0 <= at <= len(data) - _FRAME_BYTES:
                    _, header_crc, _, _, lsn, flushed, _, _ = _FRAME.unpack_from(data, at)
                    if flushed >= lsn_due and extend(segment.seed, data[at + 8 : at + _FRAME_BYTES]) == header_crc:
                        raise Corruption(
                            f"{segment.path} offset {self._tail_offset}: record {lsn_due} is damaged; "
                            f"record {lsn} at offset {base + at} says that it was flushed"
                        )
                    at = data.find(tag, at + 1)
            if len(data) < _CHUNK_BYTES:
                break
            # The next chunk begins with what was too short for a frame header at the end of this one.
            base += _CHUNK_BYTES - _FRAME_BYTES + 1
            data = _read_all(fd, _CHUNK_BYTES, base)

    # ------------------------------------------------------------------------------------------------ starting

    def begin(self) -> int:
        """Makes what was replayed durable, cuts a torn tail off, raises the epoch durably, and returns it.

        On a full disk the new segment has no space allocated, so that a process can start and serve reads. Raises
        DiskFull when there is not even room for a header; OSError otherwise, and the process must end.
        """
        if self.fd >= 0:
            raise RuntimeError("the log is begun already")
        if not self._replayed:
            for _ in self.replay():
                pass
        crash_point("record_log.begin.replayed")
        self.epoch = 1
        if self._segments:
            self._settle_tail(self._segments[-1].path)
            self.epoch = self._segments[-1].epoch + 1
        self.flushed_lsn = self.written_lsn
        try:
            fd = self._allocate(self._segment_bytes)
        except DiskFull:
            fd = self._allocate(0)
        self._start_segment(fd, self._segment_bytes)
        crash_point("record_log.begin.epoch_raised")
        return self.epoch

    def _settle_tail(self, path: Path) -> None:
        fd = os.open(path, os.O_RDWR)
        try:
            # The same bytes again: they may be in the page cache only, under pages that count as clean.
            offset = self._doubtful_offset
            while offset < self._tail_offset:
                data = os.pread(fd, min(_CHUNK_BYTES, self._tail_offset - offset), offset)
                if not data:
                    break
                offset += os.pwrite(fd, data, offset)
            crash_point("record_log.begin.tail_rewritten")
            os.ftruncate(fd, self._tail_offset)
            crash_point("record_log.begin.tail_cut")
            os.fsync(fd)
            crash_point("record_log.begin.tail_flushed")
        finally:
            os.close(fd)

    def _allocate(self, size: int) -> int:
        """The descriptor of a new file of `size` zeros, without a name of its own yet. DiskFull leaves nothing."""
        path = self._unfinished_path
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        except OSError as error:
            raise _full_or(error, path) from None
        try:
            if size:
                os.posix_fallocate(fd, 0, size)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:  # a file system without it: frames extend the file
                os.close(fd)
                path.unlink()
                raise _full_or(error, path) from None
        return fd

    def _start_segment(self, fd: int, limit: int) -> None:
        """Makes the allocated file the segment that begins after `written_lsn`, all of which is flushed.

        DiskFull leaves the log as it was.
        """
        unfinished = self._unfinished_path
        path = self.directory / f"{self._prefix}-{self.written_lsn + 1:016x}.log"
        tag = int.from_bytes(os.urandom(4), "little") | 0x01010101  # no byte is zero: it is not found in zeros
        salt = int.from_bytes(os.urandom(4), "little")
        fields = (_MAGIC, FORMAT_VERSION, self._owner, self.epoch, self.written_lsn + 1, tag, salt, 0)
        header = _HEADER.pack(*fields)[:-4]
        try:
            _write_all(fd, header + value(header).to_bytes(4, "little"), 0)
        except OSError as error:
            os.close(fd)
            unfinished.unlink()
            raise _full_or(error, unfinished) from None
        crash_point("record_log.segment.header_written")
        os.fsync(fd)
        crash_point("record_log.segment.header_flushed")
        try:
            unfinished.rename(path)
        except OSError as error:
            os.close(fd)
            unfinished.unlink()
            raise _full_or(error, path) from None
        crash_point("record_log.segment.renamed")
        flush_directory(self.directory)
        crash_point("record_log.segment.directory_flushed")
        self.fd = fd
        self._path = path
        if self._segments and self._segments[-1].path == path:  # an empty one of the last start: it was replaced
            del self._segments[-1]
        self._segments.append(_Segment(path, self.epoch, self.written_lsn + 1, tag, value(salt.to_bytes(4, "little"))))
        self._tag = tag
        self._seed = value(salt.to_bytes(4, "little"))
        self._offset = _HEADER_BYTES
        self._limit = limit

    # ------------------------------------------------------------------------------------------------ writing

    def append(self, payload: bytes) -> int:
        """Writes one record and returns its LSN. It is durable once `flushed_lsn` has reached that.

        Raises DiskFull and leaves the log as it was; OSError, after which the process must end; ValueError when the
        record has more than MAX_RECORD_BYTES.
        """
        length = len(payload)
        if self._offset + _FRAME_BYTES + length > self._limit:
            self._rotate(length)
        offset = self._offset
        lsn = self.written_lsn + 1
        frame = self._frame(length, value(payload), lsn, self.flushed_lsn) + payload
        crash_point("record_log.append.before_write")
        if doomed("record_log.append.half_written"):
            os.pwrite(self.fd, frame[: len(frame) // 2], offset)
            die()
        try:
            written = os.pwrite(self.fd, frame, offset)
            if written != len(frame):
                _write_all(self.fd, frame[written:], offset + written)  # says why, in most cases
        except OSError as error:
            self._take_back(error)
        crash_point("record_log.append.after_write")
        self.written_lsn = lsn
        self._offset = (offset + _FRAME_BYTES + length + 7) & ~7
        return lsn

    def fits(self, payload_bytes: int) -> bool:
        """Whether a record of this size goes into the segment. If not, `append` flushes it and begins another."""
        return self._offset + _FRAME_BYTES + payload_bytes <= self._limit

    def _frame(self, length: int, payload_crc: int, lsn: int, flushed_lsn: int) -> bytes:
        rest = _FRAME_REST.pack(payload_crc, length, lsn, flushed_lsn, self.epoch, self._owner)
        return _FRAME_PREFIX.pack(self._tag, extend(self._seed, rest)) + rest

    def _take_back(self, error: OSError) -> NoReturn:
        """Removes what a failed write left behind. The space that was allocated behind it goes too."""
        if error.errno not in _FULL:
            self._fail()
            raise error
        try:
            os.ftruncate(self.fd, self._offset)
        except OSError:
            self._fail()
            raise
        raise DiskFull(f"{self._path}: {error.strerror}") from None

    def _rotate(self, payload_bytes: int) -> None:
        """Finishes the segment and begins the next one. DiskFull leaves the log as it was, but flushed."""
        if payload_bytes > MAX_RECORD_BYTES:
            raise ValueError(f"a record of {payload_bytes} bytes; the limit is {MAX_RECORD_BYTES}")
        self._must_be_usable()
        if self._flush_running:
            # One of two flushes at a time gets the kernel's error report; the other one would believe that it worked.
            raise RuntimeError("a segment can't be finished while it is being flushed elsewhere")
        crash_point("record_log.rotate.before_allocate")
        size = max(self._segment_bytes, _HEADER_BYTES + _FRAME_BYTES + payload_bytes)
        finished_fd, finished_bytes = self.fd, self._offset
        try:
            fd = self._allocate(size)
            crash_point("record_log.rotate.allocated")
            self.flush()
            crash_point("record_log.rotate.old_flushed")
            self._start_segment(fd, size)
            # Not flushed: should the zeros come back, they are read as the end of the segment.
            os.ftruncate(finished_fd, finished_bytes)
            crash_point("record_log.rotate.old_trimmed")
            os.close(finished_fd)
        except OSError:
            self._fail()
            raise

    def forget(self, lsn: int) -> None:
        """Removes segments with nothing after this LSN, the oldest first: what is left has no gap."""
        while len(self._segments) > 1 and self._segments[1].first_lsn <= lsn + 1:
            self._segments[0].path.unlink()
            del self._segments[0]

    # ------------------------------------------------------------------------------------------------ flushing

    def flush(self) -> None:
        """Makes everything that is written durable. After an OSError the process must end: see above."""
        if self.flushed_lsn == self.written_lsn:
            return
        self._must_be_usable()
        if self._flush_running:
            raise RuntimeError("the log is being flushed elsewhere")
        crash_point("record_log.flush.before_fsync")
        try:
            os.fdatasync(self.fd)
        except OSError:
            self._fail()
            raise
        crash_point("record_log.flush.after_fsync")
        self.flushed_lsn = self.written_lsn

    def flush_started(self) -> int:
        """To be called before a flush of `fd` elsewhere. Returns the LSN that it covers."""
        self._must_be_usable()
        self._flush_running = True
        return self.written_lsn

    def mark_flushed(self, lsn: int) -> None:
        """The flush that was started has worked; it covers the LSN that `flush_started` returned."""
        self._flush_running = False
        self.flushed_lsn = lsn

    def flush_failed(self) -> None:
        """The flush that was started has failed: nothing can be appended or flushed any more."""
        self._flush_running = False
        self._fail()

    def _fail(self) -> None:
        self._failed = True
        self._limit = -1  # the next append asks for a new segment, and is refused there

    def _must_be_usable(self) -> None:
        if self._failed:
            raise OSError(errno.EIO, "an earlier write or flush failed", str(self._path))
        if self.fd < 0:
            raise RuntimeError("the log is not begun, or closed")

    # ------------------------------------------------------------------------------------------------ closing

    def close(self) -> None:
        """Flushes, writes the end marker, and lets go of the files. Raises OSError when the flush fails."""
        try:
            if self.fd >= 0 and not self._failed:
                self.flush()
                crash_point("record_log.close.flushed")
                self._write_marker()
        finally:
            self.abandon()

    def _write_marker(self) -> None:
        end = self._offset + _FRAME_BYTES
        try:
            _write_all(self.fd, self._frame(_MARKER, 0, self.written_lsn, self.flushed_lsn), self._offset)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            end = self._offset  # on a full disk the log does without
        crash_point("record_log.close.marked")
        os.ftruncate(self.fd, end)
        crash_point("record_log.close.trimmed")
        os.fsync(self.fd)

    def abandon(self) -> None:
        """Lets go of the files and the lock as a killed process does: nothing is flushed, no end marker is written."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1
        self._limit = -1


def _skip(records: Generator[tuple[int, bytes], None, int], after_lsn: int) -> Generator[tuple[int, bytes], None, int]:
    """The same records, from the first one after an LSN on; returns what they return."""
    while True:
        try:
            lsn, payload = next(records)
        except StopIteration as end:
            due: int = end.value
            return due
        if lsn > after_lsn:
            yield lsn, payload


def _read_all(fd: int, count: int, offset: int) -> bytes:
    """So many bytes; fewer at the file's end only.

    A read that comes to a sector that can't be read returns what is in front of it, and no error: taken for the end of
    the file, that would pass for a torn tail, and be cut off. The next read begins at that sector, and raises OSError.
    """
    data = os.pread(fd, count, offset)
    while len(data) < count and (more := os.pread(fd, count - len(data), offset + len(data))):
        data += more
    return data


def _write_all(fd: int, data: bytes, offset: int) -> None:
    while data:
        written = os.pwrite(fd, data, offset)
        data = data[written:]
        offset += written


def flush_directory(directory: Path) -> None:
    """Makes the directory's entries durable: names of files that were made, renamed or removed."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _full_or(error: OSError, path: Path) -> Exception:
    """DiskFull if that is what the error says, else the error itself."""
    if error.errno in _FULL:
        return DiskFull(f"{path}: {error.strerror}")
    return error
