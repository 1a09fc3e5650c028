"""A piece of one file, copied to the same place in another."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

from voltpy.errors import Corruption

CHUNK_BYTES = 4 << 20
_UNSUPPORTED = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)


def copy_range(source: int, target: int, offset: int, length: int, path: Path) -> None:
    """Within the kernel where it can: some file systems share the blocks.

    Raises Corruption, naming `path`, when the source ends before that; OSError.
    """
    while length:
        try:
            copied = os.copy_file_range(source, target, length, offset, offset)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            copied = os.pwrite(target, os.pread(source, length, offset), offset)
        if not copied:
            raise Corruption(f"{path} offset {offset}: the file ends here, {length} bytes early")
        offset, length = offset + copied, length - copied


def chunks(offset: int, length: int, most: int = CHUNK_BYTES) -> Iterator[tuple[int, int]]:
    """(offset, length) of pieces of at most so many bytes."""
    for at in range(offset, offset + length, most):
        yield at, min(most, offset + length - at)


def data_ranges(fd: int, file_bytes: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of what is no hole, in order. Where a file system has none, of everything."""
    offset = 0
    while offset < file_bytes:
        start, end = offset, file_bytes
        try:
            start = os.lseek(fd, offset, os.SEEK_DATA)
            end = min(end, os.lseek(fd, start, os.SEEK_HOLE))
        except OSError as error:
            if error.errno == errno.ENXIO:  # a hole up to the end
                return
        yield start, end - start
        offset = end
