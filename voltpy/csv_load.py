"""Rows of a CSV file → calls of the engine's own load procedures. What the progress looks like is the command line's.

A file is UTF-8 text, plain, gzip (.gz) or a zip archive of one file (.zip). Its first record names the columns, unless
the names are given. A field is NULL when it is empty or spelled like one of the given spellings; the rest is read by
the type of its column. A column of the table that the file does not have takes its default.

A row is loaded or rejected, each by itself: those that can't be read are rejected here, those that break a rule of the
table (a key that exists, say) by the partition that they belong to. Rows travel in batches to

    voltpy.load(key, table, rows)            for one partition: `key` is the partition key of any of the rows
    voltpy.load_everywhere(table, rows)      for a table that has a full copy in every partition

Both insert what they can, as one transaction, and return `[index, error name, reason]` of each row that they could not.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
import re
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from datetime import datetime
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol, cast

from voltpy.errors import ClusterError, Overloaded, SchemaError
from voltpy.hash_slot import hash_slot, slot_owners
from voltpy.schema import INT_MAX, INT_MIN, Table, TypeName, Value, utc

LOAD = "voltpy.load"
LOAD_EVERYWHERE = "voltpy.load_everywhere"
BATCH_ROWS = 500
BATCH_CHARACTERS = 256 << 10  # a batch is sent when it has this much text, whatever its number of rows
BATCHES_IN_FLIGHT = 4  # for each partition
FIELD_CHARACTERS = 2 << 20  # the csv module's own limit is less than a row may hold
OVERLOADED_PAUSE_S = 0.02
SKIPPED = "-"  # as a column's name: this field is not loaded


class Rejected(NamedTuple):
    """A row that was not loaded. `line` is where its record begins in the file, from 1."""

    line: int
    reason: str
    fields: Sequence[str]


class Batch(NamedTuple):
    """Rows for one partition (or for all of them: partition 0), with where each came from."""

    partition: int
    key: int | str
    rows: list[list[Value]]
    origins: list[tuple[int, Sequence[str]]]


class Client(Protocol):
    """What the loader needs of a `voltpy.Client`."""

    def submit(self, name: str, *arguments: Any) -> Future[Any]: ...
    def call_everywhere(self, name: str, *arguments: Any) -> list[Any]: ...


# ── one field ───────────────────────────────────────────────────────────────────────────────────────────────────────

_INTEGRAL = re.compile(r"\s*([+-]?\d+)\.0*\s*")
_BOOLS = {
    **dict.fromkeys(("true", "t", "yes", "y", "on", "1"), True),
    **dict.fromkeys(("false", "f", "no", "n", "off", "0"), False),
}


def read_int(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        # Tools that keep missing numbers as NaN write the others of that column as 517.0.
        integral = _INTEGRAL.fullmatch(text)
        if integral is None or len(text) > 40:
            raise ValueError(f"{_shown(text)} is not an INT") from None
        value = int(integral[1])
    if "_" in text or not INT_MIN <= value <= INT_MAX:
        raise ValueError(f"{_shown(text)} is not an INT of 64 bits")
    return value


def read_float(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{_shown(text)} is not a FLOAT") from None
    if not math.isfinite(value) or "_" in text:
        raise ValueError(f"{_shown(text)} is not a finite number; if it means NULL, give --null {text.strip()}")
    return value


def read_string(text: str) -> str:
    # Bytes that are not UTF-8 arrive as surrogates, which no encoder takes.
    if not text.isascii() and any("\udc80" <= character <= "\udcff" for character in text):
        raise ValueError("not UTF-8 text")
    return text


def read_bool(text: str) -> bool:
    value = _BOOLS.get(text.strip().lower())
    if value is None:
        raise ValueError(f"{_shown(text)} is not a BOOL (true or false)")
    return value


def read_timestamp(text: str) -> datetime:
    try:
        return utc(datetime.fromisoformat(text.strip()))
    except (ValueError, OverflowError):
        raise ValueError(f"{_shown(text)} is not a TIMESTAMP (ISO 8601: 2013-01-01T10:00:00Z)") from None


READERS: dict[TypeName, Callable[[str], Value]] = {
    "INT": read_int,
    "FLOAT": read_float,
    "STRING": read_string,
    "BOOL": read_bool,
    "TIMESTAMP": read_timestamp,
}


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "…")


def _other_delimiter(names: Sequence[str]) -> str:
    """What to try where a header was not taken apart."""
    found = [delimiter for delimiter in ";\t|" if len(names) == 1 and delimiter in names[0]]
    return f". Are its fields apart by --delimiter {found[0]!r}?" if found else ""


# ── one row ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class RowReader:
    """Fields of a record → values of the table's declared columns, in their order.

    `names` are the file's columns. Raises SchemaError when they don't fit the table.
    """

    def __init__(self, table: Table, names: Sequence[str], nulls: frozenset[str]) -> None:
        columns = table.declared
        known = [column.name for column in columns]
        given = [name for name in names if name != SKIPPED]
        for name in given:
            if name not in known:
                raise SchemaError(
                    f"table {table.name} has no column {name!r}; it has {', '.join(known)}{_other_delimiter(names)}"
                )
            if given.count(name) > 1:
                raise SchemaError(f"column {name} occurs twice in the file")
        for column in columns:
            if column.name not in given and not column.nullable and not column.has_default:
                raise SchemaError(f"column {column.name} of {table.name} must be given and is not in the file")
        self.names = list(names)
        self._nulls = nulls | {""}
        self._template: list[Value] = [None if column.name in given else column.default for column in columns]
        self._steps = [
            (self.names.index(column.name), position, column.name, READERS[column.type], column.nullable)
            for position, column in enumerate(columns)
            if column.name in given
        ]

    def read(self, fields: Sequence[str]) -> list[Value]:
        """Raises ValueError with the reason why these fields are no row of the table."""
        if len(fields) != len(self.names):
            count = f"{len(fields)} field{'' if len(fields) == 1 else 's'}"
            raise ValueError(f"{count} where {len(self.names)} are expected")
        row = self._template.copy()
        nulls = self._nulls
        for source, position, name, reader, nullable in self._steps:
            text = fields[source]
            if text in nulls:
                if not nullable:
                    raise ValueError(f"{name}: NULL ({_shown(text)}) in a NOT NULL column")
                continue
            try:
                row[position] = reader(text)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        return row


# ── one file ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Source:
    """An input file: records with the line on which each begins, and how far the file has been read."""

    def __init__(self, path: Path, delimiter: str) -> None:
        try:
            self.bytes_total = path.stat().st_size  # 0 of a pipe
            self._raw = path.open("rb")
        except OSError as error:
            raise ClusterError(f"{path}: {error.strerror or error}") from None
        self._has_place = self._raw.seekable()
        self._text = _text(self._raw, path)  # kept: it closes the file below it when it goes
        self.line = 0  # the last line that was read
        self._kept: list[str] = []  # the lines of the present record
        csv.field_size_limit(FIELD_CHARACTERS)
        self._reader = csv.reader(_counted(self._text, self), delimiter=delimiter, strict=True)

    @property
    def bytes_read(self) -> int:
        return self._raw.tell() if self._has_place else 0

    def keep(self, line: str) -> None:
        self.line += 1
        self._kept.append(line)

    def records(self) -> Iterator[tuple[int, list[str], str]]:
        """`(line, fields, problem)`; with a problem the one field is the record's text. Blank lines are no records."""
        while True:
            self._kept.clear()
            line = self.line + 1
            try:
                fields = next(self._reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield line, ["".join(self._kept).rstrip("\r\n")[:FIELD_CHARACTERS]], f"not CSV: {error}"
                continue
            except (EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
                raise ClusterError(f"the file is damaged behind line {self.line}: {error}") from None
            if fields:
                yield line, fields, ""

    def close(self) -> None:
        self._raw.close()


def _counted(text: IO[str], source: Source) -> Iterator[str]:
    for line in text:
        source.keep(line)
        yield line


def _text(raw: IO[bytes], path: Path) -> IO[str]:
    """The file's text. Raises ClusterError for an archive that is none, or has more than one file."""
    stream = raw
    if path.suffix == ".gz":
        stream = cast(IO[bytes], gzip.GzipFile(fileobj=raw))
    elif path.suffix == ".zip":
        try:
            archive = zipfile.ZipFile(raw)
        except zipfile.BadZipFile as error:
            raise ClusterError(f"{path} is not a zip archive: {error}") from None
        names = [info.filename for info in archive.infolist() if not info.is_dir()]
        if len(names) != 1:
            raise ClusterError(f"{path} holds {len(names)} files; one is expected")
        stream = archive.open(names[0])
    return io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")


# ── all of it ───────────────────────────────────────────────────────────────────────────────────────────────────────


class Loader:
    """Sends rows in batches, a few at a time to each partition, and hands every rejected one to `on_rejected`."""

    def __init__(
        self,
        client: Client,
        table: Table,
        partitions: int,
        on_rejected: Callable[[Rejected], None],
        *,
        batch_rows: int = BATCH_ROWS,
    ) -> None:
        self.loaded = 0
        self.rejected = 0
        self._client = client
        self._table = table
        self._on_rejected = on_rejected
        self._batch_rows = batch_rows
        self._key_position = table.partition_position
        self._owners = slot_owners(partitions if self._key_position is not None else 1)
        self._batches: dict[int, Batch] = {}
        self._characters: dict[int, int] = {}
        self._in_flight: dict[Future[Any], Batch] = {}
        self._in_flight_limit = BATCHES_IN_FLIGHT * partitions

    def add(self, line: int, fields: Sequence[str], row: list[Value]) -> None:
        """Takes a row; waits while too much is in flight. Raises voltpy.Error when the cluster can't go on."""
        key: Any = 0
        partition = 0
        if self._key_position is not None:
            key = row[self._key_position]
            partition = self._owners[hash_slot(key)]
        batch = self._batches.get(partition)
        if batch is None:
            batch = self._batches[partition] = Batch(partition, key, [], [])
            self._characters[partition] = 0
        batch.rows.append(row)
        batch.origins.append((line, fields))
        self._characters[partition] += sum(map(len, fields))
        if len(batch.rows) >= self._batch_rows or self._characters[partition] >= BATCH_CHARACTERS:
            del self._batches[partition]
            self._send(batch)

    def reject(self, line: int, reason: str, fields: Sequence[str]) -> None:
        self.rejected += 1
        self._on_rejected(Rejected(line, reason, fields))

    def finish(self) -> None:
        """Sends what is left and waits for every answer."""
        for partition in list(self._batches):
            self._send(self._batches.pop(partition))
        while self._in_flight:
            self._wait_for_one()

    def _send(self, batch: Batch) -> None:
        if self._key_position is None:
            answers = self._client.call_everywhere(LOAD_EVERYWHERE, self._table.name, batch.rows)
            # Every copy gives the same answer; were one to differ, its row is not loaded everywhere.
            return self._count(batch, {index: problem for answer in answers for index, *problem in answer})
        while len(self._in_flight) >= self._in_flight_limit:
            self._wait_for_one()
        self._in_flight[self._client.submit(LOAD, batch.key, self._table.name, batch.rows)] = batch

    def _wait_for_one(self) -> None:
        done, _ = wait(self._in_flight, return_when=FIRST_COMPLETED)
        for future in done:
            batch = self._in_flight.pop(future)
            try:
                answer = future.result()
            except Overloaded:
                # It never ran. Others load the cluster too: leave them some room.
                time.sleep(OVERLOADED_PAUSE_S)
                again = self._client.submit(LOAD, batch.key, self._table.name, batch.rows)
                self._in_flight[again] = batch
                continue
            self._count(batch, {index: problem for index, *problem in answer})

    def _count(self, batch: Batch, problems: dict[int, list[str]]) -> None:
        self.loaded += len(batch.rows) - len(problems)
        for index, (code, reason) in sorted(problems.items()):
            line, fields = batch.origins[index]
            self.reject(line, f"{code}: {reason}", fields)
