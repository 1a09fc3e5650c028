"""A snapshot on disk: a checkpoint of every partition of a cluster, and what else a new data directory needs.

    manifest.json                             what the snapshot consists of; written last
    schema.json, schema.sql, procedures.json  as in voltpy.data_directory
    partition-<i>/checkpoint                  the root of its checkpoint            partitions.checkpoint
                  pages                       only the places that the root names: the file has holes
                  index-….run
    manifest.json.new                         instead of manifest.json: unfinished; whoever makes it has made this first

    manifest.json = {"crc32c": C, "manifest": {…}}    C: CRC-32C of the bytes of the inner object; Manifest says what
                                                      is in it

A directory is a snapshot when its manifest.json is valid and each file that it lists is there, as long as it says and,
where it says so, with that CRC. `pages` has none: each page has its own, `voltpy snapshot --verify` looks at all.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path
from typing import Annotated

import msgspec
from google_crc32c import extend
from google_crc32c import value as crc32c
from msgspec import Meta, Raw, Struct

from voltpy.data_directory import MAX_FILE_BYTES, MAX_PARTITIONS
from voltpy.errors import ClusterError, Corruption
from voltpy.file_range import chunks, copy_range, data_ranges
from voltpy.record_log import flush_directory

VERSION = 2
OLDEST_VERSION = 1  # knew no coordinator
MANIFEST = "manifest.json"
UNFINISHED = "manifest.json.new"

Count = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]


class FileEntry(Struct, frozen=True, forbid_unknown_fields=True):
    """A file: its name within the snapshot, its length, and the CRC of its bytes."""

    name: Annotated[
        str,
        Meta(
            pattern=r"^(schema\.json|schema\.sql|procedures\.json"
            r"|partition-[0-9]{1,3}/(checkpoint|pages|index-[0-9]{1,5}-[0-9]{1,19}-[0-9a-f]{4}(-all)?\.run))$"
        ),
    ]
    bytes: Count
    crc32c: Annotated[int, Meta(ge=0, lt=1 << 32)] | None


class PartitionEntry(Struct, frozen=True, forbid_unknown_fields=True):
    """The moment of one partition's state: everything up to this LSN, and nothing after it."""

    partition: Count
    checkpoint: Count
    lsn: Count
    epoch: Annotated[int, Meta(ge=1, lt=1 << 32)]


class Manifest(Struct, frozen=True, forbid_unknown_fields=True):
    """`cluster_id` and `data`: whence it comes. `created_at`: ISO 8601, UTC.

    `coordinator_epoch`: its unique ids of this epoch and those before may be in the rows. There was nothing undecided.
    """

    version: int
    cluster_id: str
    data: str
    created_at: str
    catalog_version: Count
    partitions: Annotated[list[PartitionEntry], Meta(min_length=1, max_length=MAX_PARTITIONS)]
    files: list[FileEntry]
    coordinator_epoch: Annotated[int, Meta(ge=0, lt=1 << 32)] = 0

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)


class _Sealed(Struct, forbid_unknown_fields=True):
    crc32c: int
    manifest: Raw


class _Versioned(Struct):
    version: int


def claim(directory: Path) -> bool:
    """Makes the directory, or takes an empty one, for a new snapshot. Whether it was made.

    Raises ClusterError when it holds anything, or somebody else is at it.
    """
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        try:
            directory.mkdir(mode=0o700)
            made = True
        except FileExistsError:
            made = False
            names = sorted(os.listdir(directory))
            if UNFINISHED in names and MANIFEST not in names:
                raise ClusterError(
                    f"{directory} holds an unfinished snapshot: somebody is making it, or died at it; then remove it"
                ) from None
            if names:
                what = "a snapshot" if MANIFEST in names else repr(names[0])
                raise ClusterError(
                    f"{directory} is not empty, it holds {what}: a snapshot takes a new directory"
                ) from None
        (directory / UNFINISHED).open("xb").close()
        flush_directory(directory)
    except OSError as error:
        raise ClusterError(f"{error.filename or directory}: {error.strerror}") from None
    return made


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Makes the directory a snapshot, durably. Everything that the manifest lists must be on disk. Raises OSError."""
    inner = msgspec.json.encode(manifest)
    with (directory / UNFINISHED).open("r+b") as file:
        file.write(msgspec.json.encode(_Sealed(crc32c(inner), Raw(inner))))
        file.flush()
        os.fsync(file.fileno())
    (directory / UNFINISHED).rename(directory / MANIFEST)
    flush_directory(directory)
    flush_directory(directory.parent)


def read_manifest(directory: Path) -> Manifest:
    """Raises Corruption for a damaged manifest; ClusterError for a directory that is no snapshot, or not yet one."""
    path = directory / MANIFEST
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        if (directory / UNFINISHED).exists():
            raise ClusterError(f"{directory} is an unfinished snapshot: {MANIFEST} was never written") from None
        raise ClusterError(f"{directory} is not a snapshot: it has no {MANIFEST}") from None
    except OSError as error:
        raise ClusterError(f"{path}: {error.strerror}") from None
    try:
        sealed = msgspec.json.decode(data, type=_Sealed)
        inner = bytes(sealed.manifest)
        if crc32c(inner) != sealed.crc32c:
            raise Corruption(f"{path} offset 0: the manifest's CRC is wrong")
        version = msgspec.json.decode(inner, type=_Versioned).version
        if not OLDEST_VERSION <= version <= VERSION:
            raise ClusterError(f"{path} has version {version}; this program reads up to {VERSION}: use another voltpy")
        manifest = msgspec.json.decode(inner, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Corruption(f"{path} offset 0: not a manifest: {error}") from None
    _check_complete(manifest, path)
    return manifest


def _check_complete(manifest: Manifest, path: Path) -> None:
    """Raises Corruption unless the manifest lists what every snapshot has, once."""
    names = [file.name for file in manifest.files]
    numbers = range(len(manifest.partitions))
    due = {
        "schema.json",
        "procedures.json",
        *(f"partition-{i}/{name}" for i in numbers for name in ("checkpoint", "pages")),
    }
    folders = {f"partition-{number}" for number in numbers}
    if (
        [entry.partition for entry in manifest.partitions] != list(numbers)
        or len(set(names)) != len(names)
        or not due.issubset(names)
        or not {name.partition("/")[0] for name in names if "/" in name} <= folders
    ):
        raise Corruption(f"{path} offset 0: the manifest lists other files than a snapshot has")


def copy_checked(source: Path, target: Path, entry: FileEntry, copied: Callable[[int], None]) -> None:
    """A file of a snapshot, to a new place, on disk when this returns; holes stay holes. `copied` is told bytes.

    Raises Corruption when it is not as the manifest says, OSError.
    """
    with _opened(source) as reading, target.open("xb", buffering=0) as writing:
        _check_length(reading.fileno(), source, entry)
        os.ftruncate(writing.fileno(), entry.bytes)
        crc = end = 0
        for offset, length in _pieces(reading.fileno(), entry):
            if entry.crc32c is None:
                copy_range(reading.fileno(), writing.fileno(), offset, length, source)
            else:
                data = os.pread(reading.fileno(), length, offset)
                crc = extend(crc, data)
                writing.seek(offset)
                if writing.write(data) != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
            copied(offset + length - end)
            end = offset + length
        _check_crc(crc, source, entry)
        copied(entry.bytes - end)
        os.fsync(writing.fileno())


def check_file(directory: Path, entry: FileEntry) -> None:
    """Raises Corruption, naming file and offset, unless the file is there, as long as it should be, with its CRC."""
    path = directory / entry.name
    try:
        with _opened(path) as reading:
            _check_length(reading.fileno(), path, entry)
            crc = 0
            if entry.crc32c is not None:
                for offset, length in _pieces(reading.fileno(), entry):
                    crc = extend(crc, os.pread(reading.fileno(), length, offset))
            _check_crc(crc, path, entry)
    except OSError as error:
        raise Corruption(f"{path} offset 0: {error.strerror}") from None


def entry_of(directory: Path, name: str) -> FileEntry:
    """What the manifest is to say of a small file that is there. Raises OSError."""
    data = (directory / name).read_bytes()
    return FileEntry(name, len(data), crc32c(data))


def _opened(path: Path) -> FileIO:
    try:
        return path.open("rb", buffering=0)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise Corruption(f"{path} offset 0: the manifest lists this file, and it is missing") from None


def _pieces(fd: int, entry: FileEntry) -> Iterator[tuple[int, int]]:
    """Of a file with a CRC everything, of another what is no hole."""
    ranges = data_ranges(fd, entry.bytes) if entry.crc32c is None else [(0, entry.bytes)]
    for offset, length in ranges:
        yield from chunks(offset, length)


def _check_length(fd: int, path: Path, entry: FileEntry) -> None:
    size = os.fstat(fd).st_size
    if size != entry.bytes:
        raise Corruption(f"{path} offset {min(size, entry.bytes)}: {size} bytes, the manifest says {entry.bytes}")


def _check_crc(crc: int, path: Path, entry: FileEntry) -> None:
    if entry.crc32c is not None and crc != entry.crc32c:
        raise Corruption(f"{path} offset 0: its CRC is not the one in the manifest")
