"""What the runner talks to on a cluster of real processes: `voltpy.dbapi`, and tables of several partitions."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.campaigns.cluster import Cluster
from tests.sqllogictest.definitions import CREATE_INDEX, CREATE_TABLE, DROP, Definitions
from tests.sqllogictest.script import Record
from voltpy import dbapi
from voltpy.errors import SchemaError
from voltpy.sql.ddl import parse_schema

TIMEOUT_S = 60.0


class ClusterDatabase:
    """A cluster with all tables of a script, for as long as the `with` lasts.

    Tables are created and dropped by looking at who is there: see `Definitions`.
    """

    def __init__(self, directory: Path, records: Iterable[Record], partitions: int) -> None:
        self._definitions = Definitions(records)
        self.copies = self._definitions.copies()
        self._tables: set[str] = set()
        self._indexes: dict[str, str] = {}  # name → table
        self._cluster = Cluster(
            directory,
            self._definitions.schema(),
            "",
            partitions=partitions,
            segment_bytes=8 << 20,
            checkpoint_bytes=64 << 20,
            procedure_timeout_s=TIMEOUT_S,
        )

    def __enter__(self) -> Self:
        self._cluster.__enter__()
        self._cluster.start()
        self._connection = dbapi.connect(self._cluster.url, timeout=TIMEOUT_S)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()
        self._cluster.__exit__(kind, error, trace)

    def execute(self, sql: str) -> list[tuple[object, ...]]:
        """The rows of any statement of a script, DDL too. Raises voltpy's errors."""
        if (table := CREATE_TABLE.match(sql)) is not None:
            parse_schema(sql)
            _must(table[1].lower() not in self._tables, f"table {table[1]} is there already")
            self._tables.add(table[1].lower())
        elif (index := CREATE_INDEX.match(sql)) is not None:
            _must(index[2].lower() in self._tables, f"there is no table {index[2]}")
            _must(index[1].lower() not in self._indexes, f"index {index[1]} is there already")
            self._indexes[index[1].lower()] = index[2].lower()
        elif (drop := DROP.match(sql)) is not None:
            self._drop(drop[1].upper(), drop[2].lower())
        else:
            return self._run(self._definitions.rewritten(sql))
        return []

    def _drop(self, kind: str, name: str) -> None:
        if kind == "INDEX":
            _must(name in self._indexes, f"there is no index {name}")
            del self._indexes[name]
            return
        _must(name in self._tables, f"there is no table {name}")
        self._tables.remove(name)
        self._indexes = {index: table for index, table in self._indexes.items() if table != name}
        self._run(f"DELETE FROM {name}")

    def _run(self, sql: str) -> list[tuple[object, ...]]:
        with self._connection.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchall() if cursor.description else []


def _must(holds: bool, otherwise: str) -> None:
    if not holds:
        raise SchemaError(otherwise)
