"""A hint file: what a start would like to know, and can do without.

    file     = header payload
    header     0  magic      8 bytes  says what is in it          24  length        u64   of the payload
               8  version    u32      1                           32  payload CRC   u32
              12  owner      u32      partition                   36  CRC           u32   over 0 to 35
              16  count      u64      of entries

Integers are little-endian, CRCs are CRC-32C. A file is whole when both CRCs are right and it ends where the payload
does. It is written as <name>.new, flushed, and renamed over the last one, so a crash leaves one of the two. A file that
is not whole, of another partition or of another version says nothing: its reader gets a reason instead, for the
operator's eyes, and the start goes on without it.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

from google_crc32c import value as crc32c

from partitions.page_file import write_all

_VERSION = 1
_HEADER = struct.Struct("<8sIIQQII")
HEADER_BYTES = _HEADER.size


def write_hint(path: Path, magic: bytes, partition: int, count: int, payload: bytes, *, flush: bool = True) -> None:
    """Replaces the file. Raises OSError, a full disk's too: then the one before is there, whole, and nothing else.

    Without `flush` nothing waits for the disk, and a crash of the machine (not of the process) may cost the hint.
    """
    header = _HEADER.pack(magic, _VERSION, partition, count, len(payload), crc32c(payload), 0)[:-4]
    new = path.with_name(path.name + ".new")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        try:
            write_all(fd, header + crc32c(header).to_bytes(4, "little"), 0)
            write_all(fd, payload, HEADER_BYTES)
            if flush:
                os.fsync(fd)
        finally:
            os.close(fd)
        new.rename(path)
    except OSError:
        new.unlink(missing_ok=True)
        raise


def read_hint(path: Path, magic: bytes, partition: int, most_bytes: int) -> tuple[int, bytes, str | None]:
    """(count, payload, why there is none). A file that is missing is no reason: (0, b"", None).

    Raises nothing: whatever is the matter with a hint, a start must not stop for it. A file with a payload of more than
    `most_bytes` is not read.
    """
    try:
        # O_NONBLOCK: should the name be a pipe's, nobody waits for its writer.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            size = os.fstat(fd).st_size
            if size > HEADER_BYTES + most_bytes:
                return 0, b"", f"{path}: {size} bytes, more than the {HEADER_BYTES + most_bytes} that it may have"
            data = os.read(fd, size)
            while len(data) < size and (piece := os.read(fd, size - len(data))):
                data += piece
        finally:
            os.close(fd)
    except FileNotFoundError:
        return 0, b"", None
    except OSError as error:
        return 0, b"", f"{path}: {error.strerror}"
    if len(data) < HEADER_BYTES:
        return 0, b"", f"{path} offset 0: cut off after {len(data)} bytes"
    if crc32c(data[: HEADER_BYTES - 4]) != int.from_bytes(data[HEADER_BYTES - 4 : HEADER_BYTES], "little"):
        return 0, b"", f"{path} offset 0: the header is damaged"
    found_magic, version, owner, count, length, payload_crc, _ = _HEADER.unpack_from(data)
    if found_magic != magic:
        return 0, b"", f"{path} offset 0: no {magic.decode()} file"
    if version != _VERSION:
        return 0, b"", f"{path} offset 8: version {version}; this program reads {_VERSION}"
    if owner != partition:
        return 0, b"", f"{path} offset 12: belongs to partition {owner}, not to {partition}"
    payload = data[HEADER_BYTES:]
    if len(payload) != length or crc32c(payload) != payload_crc:
        return 0, b"", f"{path} offset {HEADER_BYTES}: damaged"
    return count, payload, None
