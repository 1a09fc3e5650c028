"""What the runner talks to on a cluster of real processes: `voltpy.dbapi`, and tables of several partitions."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.campaigns.cluster import Cluster
from tests.sqllogictest.definitions import Definitions
from tests.sqllogictest.script import Record
from voltpy import dbapi

TIMEOUT_S = 60.0


class ClusterDatabase:
    """A cluster for the statements of a script, for as long as the `with` lasts; it begins without its tables."""

    def __init__(self, directory: Path, records: Iterable[Record], partitions: int) -> None:
        self._definitions = Definitions(records)
        self._cluster = Cluster(
            directory,
            "CREATE TABLE nothing_yet (a INT);",
            "",
            partitions=partitions,
            segment_bytes=8 << 20,
            checkpoint_bytes=64 << 20,
            procedure_timeout_s=TIMEOUT_S,
        )

    @property
    def copies(self) -> list[str]:
        """The tables that are not partitioned."""
        return self._definitions.copies()

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
        with self._connection.cursor() as cursor:
            cursor.execute(self._definitions.rewritten(sql))
            return cursor.fetchall() if cursor.description else []
