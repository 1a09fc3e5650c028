"""The data directory of one cluster: who may use it, how many partitions it holds, its schema and procedures.

    LOCK             flock held by the process that runs the cluster; the text is its process id, in decimal
    cluster.json     {"version": 1, "cluster_id": 32 hex digits, "partitions": N, "created_at": ISO 8601, UTC}
    RUNTIME          written by voltpy.cluster while it runs
    schema.json      voltpy.schema.to_json
    schema.sql       the schema's text as it was given last, and has worked; schema.json is what counts, and may have
                     moved on since
    procedures.json  {"version": 1, "catalog_version": C, "path": text, "source": text}; no source: no procedures
    partition-<i>/   what partition i keeps, i from 0 to N - 1
    coordinator/     the decision log
    RESTORING        the snapshot whence all of this is being copied; such a directory is not to be used

cluster.json is written last: a directory with one is complete, a directory without one is empty or what a crash left of
its creation, and creation starts over. A file is never changed: a new one is written beside it (`<name>.new`), flushed,
and renamed over it. Each JSON file is valid when it decodes into its struct and holds values within their limits.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from voltpy.crash_point import crash_point
from voltpy.errors import ClusterError, Corruption, SchemaError
from voltpy.registry import Registry, load
from voltpy.schema import FORMAT_VERSION, Schema, describe, from_json, grown, to_json, tombstone

VERSION = 1
MAX_PARTITIONS = 511  # they, and the coordinator with the number after the last, have nine bits of a unique id
MAX_SOURCE_BYTES = 4 << 20
MAX_FILE_BYTES = 64 << 20  # of a file in the directory: a full schema and JSON's escapes stay below

LOCK = "LOCK"
CLUSTER = "cluster.json"
SCHEMA = "schema.json"
SCHEMA_SQL = "schema.sql"
PROCEDURES = "procedures.json"
RESTORING = "RESTORING"
DECISIONS = "decisions"  # how the decision log's files begin
_NEW = ".new"
_COORDINATOR = "coordinator"
_PARTITION_NAME = re.compile(r"partition-(0|[1-9][0-9]*)")
_NAMES_BEFORE_CREATION_ENDS = {LOCK, "RUNTIME", _COORDINATOR} | {
    name + suffix for name in (CLUSTER, SCHEMA, SCHEMA_SQL, PROCEDURES) for suffix in ("", _NEW)
}


class Unflushed(ClusterError):
    """A file has its new content, which a power failure may still take back: nobody may go on with either."""


class _ClusterFile(Struct):
    version: int
    cluster_id: str
    partitions: int
    created_at: str


class StoredProcedures(Struct, frozen=True):
    """The procedures of a cluster. `catalog_version` counts from 1, up with each change; without a `source`: none."""

    catalog_version: int
    path: str
    source: str
    version: int = VERSION


class DataDirectory:
    """An opened data directory; nobody else can open it before `close`. Made by `DataDirectory.open`."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock
        self.cluster_id = ""
        self.created_at = ""
        self.partitions = 0
        self.schema = Schema((), ())
        self.schema_sql = ""
        self.procedures = StoredProcedures(0, "", "")
        self._given: tuple[Schema, str] | None = None  # the schema that this start brings
        self._replaced: StoredProcedures | None = None  # those before the ones that this start brings

    @classmethod
    def open(
        cls,
        path: str | Path,
        partitions: int | None = None,
        schema_text: str | None = None,
        procedures_path: str | Path | None = None,
        try_schema: Callable[[DataDirectory, Schema], None] = lambda directory, schema: None,
    ) -> DataDirectory:
        """Opens the directory; makes it if there is none, with the number of partitions given, else one a usable core.

        What is not given is what is stored, and so is a schema that is given again as it was: what statements have
        changed since then stays. `try_schema` is called with a schema that is about to take the stored one's place;
        what it raises comes out, and the stored schema stays. Raises SchemaError for a bad schema, or one that does
        more than add to the stored one (voltpy.schema.grown); Corruption, naming the file, for one that is damaged;
        ClusterError for anything else in the way: the directory is in use, is something else, has another number of
        partitions.
        """
        path = Path(os.path.abspath(path))
        # Everything given is read first: a slip of the user's leaves nothing behind.
        schema = None if schema_text is None else _parsed(schema_text)
        procedures = None if procedures_path is None else read_source(procedures_path)
        if partitions is not None and partitions not in range(1, MAX_PARTITIONS + 1):
            raise ClusterError(f"{partitions} partitions: a cluster has 1 to {MAX_PARTITIONS}")
        try:
            if not (path / CLUSTER).exists():
                _refuse_what_is_not_ours(path)
                if schema is None:
                    raise ClusterError(f"{path} has no {CLUSTER}: making a cluster takes a schema (--schema FILE)")
                _make_directory(path)
            directory = cls(path, _locked(path))
            try:
                # Under the lock, look again: another process may have made it meanwhile.
                if not (path / CLUSTER).exists() and schema is not None and schema_text is not None:
                    directory._create(partitions or len(os.sched_getaffinity(0)), schema, schema_text, procedures)
                else:
                    (path / RESTORING).unlink(missing_ok=True)  # the restore was over but for this
                    directory._load(partitions)
                    directory._adopt(schema, schema_text, procedures, try_schema)
            except BaseException:
                directory.close()
                raise
        except OSError as error:
            raise ClusterError(f"data directory {path}: {_os_error_text(error, path)}") from error
        return directory

    def close(self) -> None:
        """Lets others open the directory. Does nothing the second time."""
        if self._lock >= 0:
            # Closing is not enough: a child that is about to exec still holds a copy of the descriptor.
            fcntl.flock(self._lock, fcntl.LOCK_UN)
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @property
    def catalog_version(self) -> int:
        """It counts changes of the procedures and, while the cluster runs, of the schema."""
        return max(self.procedures.catalog_version, self.schema.catalog_version)

    def partition_directory(self, partition: int) -> Path:
        return partition_directory(self.path, partition)

    def write_procedures(self, catalog_version: int, path: str, source: str) -> None:
        """Stores procedures for the next start. The catalog version must be past the stored one.

        Raises ClusterError when it isn't, or when they can't be written: then the stored ones are as before; Unflushed.
        """
        self._check_is_past(catalog_version)
        if len(source.encode()) > MAX_SOURCE_BYTES:
            raise ClusterError(f"procedure file {path} is larger than {MAX_SOURCE_BYTES} bytes")
        procedures = StoredProcedures(catalog_version, path, source)
        try:
            _replace(self.path / PROCEDURES, msgspec.json.encode(procedures))
        except OSError as error:
            raise ClusterError(f"{self.path / PROCEDURES}: {_os_error_text(error)}") from error
        self.procedures = procedures

    def write_schema(self, schema: Schema) -> None:
        """Stores the schema that the cluster has from now on; its catalog version must be past the stored one.

        From here on every process that starts has it. Raises ClusterError when it can't be written: then the stored one
        is as before; Unflushed.
        """
        self._check_is_past(schema.catalog_version)
        try:
            _replace(self.path / SCHEMA, to_json(schema))
        except OSError as error:
            raise ClusterError(f"{self.path / SCHEMA}: {_os_error_text(error)}") from error
        self.schema = schema

    def keep_schema(self) -> None:
        """The rows allow what this start's schema adds. From now on its text is the one that was given last."""
        self._replaced = None
        if self._given is not None and self._given[1] != self.schema_sql:
            self.schema_sql = self._given[1]
            _replace(self.path / SCHEMA_SQL, self.schema_sql.encode())

    def withdraw_schema(self) -> list[str]:
        """The rows don't allow it: the views and unique indexes that it adds are dropped. Their names.

        A dropped view leaves its number behind: partitions may have written rows of it already. Tables and columns
        stay, which no rows can be against. The procedures that came with the schema may need what is dropped, and so
        make way for those before them.
        """
        views, indexes = self._untried()
        tables = tuple(tombstone(table) if table.name in views else table for table in self.schema.tables)
        kept = tuple(index for index in self.schema.indexes if index.name not in indexes)
        schema = replace(self.schema, tables=tables, indexes=kept)
        _replace(self.path / SCHEMA, to_json(schema))
        self.schema = schema
        if self._replaced is not None:
            self.write_procedures(self.catalog_version + 1, self._replaced.path, self._replaced.source)
        return sorted(views | indexes)

    def _untried(self) -> tuple[set[str], set[str]]:
        """The views and unique indexes that have been given, though not with a schema that has worked."""
        before = _given_last(self.schema_sql, self.schema)
        given = before if self._given is None else self._given[0]
        views = {table.name for table in self.schema.live if table.view is not None} - before.numbers.keys()
        if self._given is not None:
            views &= given.numbers.keys()  # others have been made by statements
        known = {index.name for index in before.indexes}
        there = {index.name for index in self.schema.indexes}
        return views, {each.name for each in given.indexes if each.unique and each.name in there - known}

    def _check_is_past(self, catalog_version: int) -> None:
        if catalog_version <= self.catalog_version:
            raise ClusterError(f"catalog version {catalog_version} is not past the stored one, {self.catalog_version}")

    def _create(self, partitions: int, schema: Schema, schema_text: str, procedures: tuple[str, str] | None) -> None:
        """Makes the directory complete, from empty or from what a crash left."""
        for number, left in _partition_directories(self.path).items():
            if any(left.iterdir()):
                raise Corruption(f"{self.path / CLUSTER} is missing, and {left} holds data")
            if number >= partitions:
                left.rmdir()
        if coordinator_directory(self.path).exists():
            raise Corruption(f"{self.path / CLUSTER} is missing, and {coordinator_directory(self.path)} is there")
        for number in range(partitions):
            self.partition_directory(number).mkdir(mode=0o700, exist_ok=True)
        self.schema, self.schema_sql = schema, schema_text
        _replace(self.path / SCHEMA, to_json(schema))
        _replace(self.path / SCHEMA_SQL, schema_text.encode())
        self.procedures = StoredProcedures(1, *(procedures or ("", "")))
        _replace(self.path / PROCEDURES, msgspec.json.encode(self.procedures))
        self.partitions = partitions
        self.cluster_id = secrets.token_hex(16)
        self.created_at = datetime.now(UTC).isoformat(timespec="seconds")
        cluster = _ClusterFile(VERSION, self.cluster_id, partitions, self.created_at)
        with contextlib.suppress(PermissionError):  # of a parent that we may not read: not we made the directory in it
            _flush_directory(self.path.parent)
        # From here on the directory is a cluster, so this comes after everything that makes it one.
        _replace(self.path / CLUSTER, msgspec.json.format(msgspec.json.encode(cluster)))

    def _load(self, partitions: int | None) -> None:
        """Reads a complete directory, and checks the number of partitions."""
        _flush_directory(self.path)  # whoever wrote what is read now may have died before that
        cluster = _read_cluster(self.path)
        if partitions is not None and partitions != cluster.partitions:
            raise ClusterError(
                f"data directory {self.path} has {cluster.partitions} partitions, not {partitions}: each key's place "
                f"follows from their number, so it is fixed when the directory is made. Start with --partitions "
                f"{cluster.partitions} (or without it), or make another directory and load the data there"
            )
        found = _partition_directories(self.path)
        for number in range(cluster.partitions):
            if number not in found:
                raise Corruption(f"{self.partition_directory(number)} is missing: {CLUSTER} says {cluster.partitions}")
        for number, extra in found.items():
            if number >= cluster.partitions:
                raise Corruption(f"{extra} is one too many: {CLUSTER} says {cluster.partitions}")
        self.partitions, self.cluster_id, self.created_at = cluster.partitions, cluster.cluster_id, cluster.created_at
        self.schema = read_schema(self.path)
        self.schema_sql = _read_schema_sql(self.path, self.schema)
        self.procedures = read_procedures(self.path)

    def _adopt(
        self,
        schema: Schema | None,
        schema_text: str | None,
        procedures: tuple[str, str] | None,
        try_schema: Callable[[DataDirectory, Schema], None],
    ) -> None:
        """Stores what this start brings that is new."""
        if schema is not None and schema_text is not None:
            try:
                new = grown(self.schema, schema, _given_last(self.schema_sql, self.schema))
            except SchemaError as error:
                raise SchemaError(f"the schema does not fit data directory {self.path}: {error}") from None
            if new != self.schema:
                try_schema(self, new)
                _replace(self.path / SCHEMA, to_json(new))
                self.schema = new
            self._given = schema, schema_text
            if not any(self._untried()):
                self.keep_schema()
        if procedures is not None and procedures != (self.procedures.path, self.procedures.source):
            self._replaced = self.procedures
            self.write_procedures(self.catalog_version + 1, *procedures)


def make_restored(path: Path, partitions: int, source: Path, fill: Callable[[Path], None]) -> None:
    """Makes a data directory with a new cluster id of what `fill` puts into it: partitions, schema and procedures.

    Until it is complete a file says that it is being restored, so no crash leaves one that passes for whole; after an
    error nothing is left. Raises ClusterError when there is anything at `path`, and what `fill` raises.
    """
    path = Path(os.path.abspath(path))
    try:
        names = set(os.listdir(path)) if path.exists() else set()
        if RESTORING in names:
            _refuse_what_is_not_ours(path)
        if names - {LOCK}:
            raise ClusterError(f"{path} is not empty: a snapshot is restored into a new data directory")
        was_there = path.exists()
        _make_directory(path)
        lock = _locked(path)
    except OSError as error:
        raise ClusterError(f"data directory {path}: {_os_error_text(error, path)}") from error
    try:
        _replace(path / RESTORING, f"{source}\n".encode())
        crash_point("restore.begun")
        fill(path)
        created_at = datetime.now(UTC).isoformat(timespec="seconds")
        cluster = _ClusterFile(VERSION, secrets.token_hex(16), partitions, created_at)
        crash_point("restore.filled")
        _replace(path / CLUSTER, msgspec.json.format(msgspec.json.encode(cluster)))
        crash_point("restore.complete")
        (path / RESTORING).unlink()
        _flush_directory(path)
    except BaseException as error:
        _remove_contents(path)
        if not was_there:
            path.rmdir()
        if isinstance(error, OSError):
            raise ClusterError(
                f"data directory {path}: {_os_error_text(error, path)}; nothing of it is left"
            ) from error
        raise
    finally:
        os.close(lock)


def partition_directory(path: Path, partition: int) -> Path:
    """What the partition keeps is below this, in the data directory at `path`."""
    return path / f"partition-{partition}"


def coordinator_directory(path: Path) -> Path:
    """Where the coordinator of the data directory at `path` keeps its decision log."""
    return path / _COORDINATOR


def read_schema(path: Path) -> Schema:
    """The schema in the data directory at `path`. Raises Corruption, or ClusterError for one of a newer version."""
    file = path / SCHEMA
    data = _read(file)
    _check_version(data, file, FORMAT_VERSION)
    try:
        return from_json(data)
    except SchemaError as error:
        raise Corruption(f"{file} is damaged: {error}") from None


def schema_with(path: Path, given: Schema) -> Schema:
    """What the schema in the directory at `path` would be after a start with the given one. Raises as `grown` does."""
    stored = read_schema(path)
    return grown(stored, given, _given_last(_read_schema_sql(path, stored), stored))


def _read_schema_sql(path: Path, schema: Schema) -> str:
    """The schema's text as it was given last; what it may have been, where that is lost."""
    try:
        return _read(path / SCHEMA_SQL).decode()
    except (Corruption, UnicodeDecodeError):
        return describe(schema)


def _given_last(text: str, stored: Schema) -> Schema:
    try:
        return _parsed(text)
    except SchemaError:
        return stored  # then whatever is stored counts as given


def read_procedures(path: Path) -> StoredProcedures:
    """The procedures in the data directory at `path`. Raises Corruption, or ClusterError for a newer version."""
    procedures = _decoded(path / PROCEDURES, StoredProcedures)
    if procedures.catalog_version < 1:
        raise Corruption(f"{path / PROCEDURES} is damaged: catalog version {procedures.catalog_version}")
    return procedures


def load_procedures(path: Path, schema: Schema) -> Registry:
    """The same, loaded: none where none are stored. Raises SchemaError, too, for procedures that can't be loaded."""
    stored = read_procedures(path)
    catalog_version = max(stored.catalog_version, schema.catalog_version)
    if not stored.source:
        return Registry([], catalog_version)
    return load(stored.source, stored.path, schema, catalog_version)


def read_source(path: str | Path) -> tuple[str, str]:
    """A procedure file: its absolute path and its text. Raises ClusterError when it can't be read."""
    path = os.path.abspath(path)
    try:
        path.encode()
    except UnicodeEncodeError:
        raise ClusterError(f"procedure file {path!r}: its path is not UTF-8 text") from None
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_SOURCE_BYTES + 1)
    except OSError as error:
        raise ClusterError(f"procedure file {path}: {_os_error_text(error, path)}") from None
    if len(data) > MAX_SOURCE_BYTES:
        raise ClusterError(f"procedure file {path} is larger than {MAX_SOURCE_BYTES} bytes")
    try:
        return path, data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ClusterError(f"procedure file {path} is not UTF-8 text, at byte {error.start}") from None


def _parsed(schema_text: str) -> Schema:
    # Imported here: partitions read this module's files, and a SQL parser takes 12 MB of each.
    from voltpy.sql.ddl import parse_schema

    return parse_schema(schema_text)


def _refuse_what_is_not_ours(path: Path) -> None:
    """Raises ClusterError for a path where no data directory is and none can be made."""
    try:
        names = sorted(os.listdir(path))
    except FileNotFoundError:
        return
    except OSError as error:
        raise ClusterError(f"data directory {path}: {_os_error_text(error, path)}") from None
    if RESTORING in names:
        raise ClusterError(
            f"{path} holds a restore that did not finish: remove the directory, and start with --restore again"
        )
    if "manifest.json" in names:  # voltpy.snapshot
        raise ClusterError(f"{path} is a snapshot; start with --restore {path} and a --data directory of its own")
    if names and LOCK not in names:  # the first file that we make
        raise ClusterError(f"{path} is not a data directory, and not empty: it holds {names[0]!r}")
    for name in names:
        if name not in _NAMES_BEFORE_CREATION_ENDS and not _PARTITION_NAME.fullmatch(name):
            raise ClusterError(f"{path} is not a data directory: it holds {name!r}")


def _remove_contents(path: Path) -> None:
    for entry in path.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _make_directory(path: Path) -> None:
    if not path.exists():
        _make_directory(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)
        _flush_directory(path.parent)


def _locked(path: Path) -> int:
    """The open descriptor that holds the lock. It is never unlinked: two processes could then hold two locks."""
    lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(lock, 0)
        os.pwrite(lock, b"%d\n" % os.getpid(), 0)
    except BlockingIOError:
        holder = os.pread(lock, 32, 0).decode("ascii", "replace").strip()
        os.close(lock)
        by = f"process {holder}" if holder.isdecimal() else "another process"
        raise ClusterError(f"data directory {path} is in use by {by}") from None
    except BaseException:
        os.close(lock)
        raise
    return lock


def _partition_directories(path: Path) -> dict[int, Path]:
    """The directories of partitions, by number."""
    names = (_PARTITION_NAME.fullmatch(name) for name in os.listdir(path))
    return {int(match[1]): path / match[0] for match in names if match and (path / match[0]).is_dir()}


def _replace(path: Path, data: bytes) -> None:
    """Makes `data` the file's content, or leaves the file as it was, whenever the machine stops.

    Raises OSError when the file is as it was; Unflushed.
    """
    new = path.with_name(path.name + _NEW)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        offset = 0
        while offset < len(data):
            offset += os.pwrite(descriptor, data[offset:], offset)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.rename(new, path)
    try:
        _flush_directory(path.parent)
    except OSError as error:
        raise Unflushed(f"{path} is new, and could not be flushed: {_os_error_text(error, path)}") from error


def _flush_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(file: Path) -> bytes:
    """The file's bytes. Raises Corruption when it is missing or beyond any size that was written."""
    try:
        with open(file, "rb") as source:
            data = source.read(MAX_FILE_BYTES + 1)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise Corruption(f"{file}: {_os_error_text(error, file)}") from None
    if len(data) > MAX_FILE_BYTES:
        raise Corruption(f"{file} is damaged: more than {MAX_FILE_BYTES} bytes")
    return data


class _Versioned(Struct):
    version: int


def _check_version(data: bytes, file: Path, ours: int) -> None:
    """Raises ClusterError for a file that a newer program wrote, whatever else it holds."""
    try:
        version = msgspec.json.decode(data, type=_Versioned).version
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Corruption(f"{file} is damaged: {error}") from None
    if version > ours:
        raise ClusterError(f"{file} has version {version}; this program reads up to {ours}: use a newer voltpy")
    if version < 1:
        raise Corruption(f"{file} is damaged: version {version}")


_Stored = TypeVar("_Stored", _ClusterFile, StoredProcedures)


def _decoded(file: Path, kind: type[_Stored]) -> _Stored:
    data = _read(file)
    _check_version(data, file, VERSION)
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Corruption(f"{file} is damaged: {error}") from None


def _read_cluster(path: Path) -> _ClusterFile:
    cluster = _decoded(path / CLUSTER, _ClusterFile)
    if cluster.partitions not in range(1, MAX_PARTITIONS + 1):
        raise Corruption(f"{path / CLUSTER} is damaged: {cluster.partitions} partitions")
    if not re.fullmatch("[0-9a-f]{32}", cluster.cluster_id):
        raise Corruption(f"{path / CLUSTER} is damaged: cluster id {cluster.cluster_id[:64]!r}")
    return cluster


def _os_error_text(error: OSError, named: str | Path | None = None) -> str:
    """What went wrong and with which file, unless that is the one that is named already."""
    text = error.strerror or str(error)
    return text if not error.filename or str(error.filename) == str(named) else f"{text} ({error.filename})"
