"""What the runner talks to in this process: an engine of one partition."""

from __future__ import annotations

from typing import Any

from tests.sqllogictest.definitions import CREATE_INDEX, index_text
from voltpy.testing import Engine


class Database:
    def __init__(self) -> None:
        self._engine = Engine("CREATE TABLE nothing_yet (a INT);")

    def execute(self, sql: str) -> list[tuple[Any, ...]]:
        """The rows of any statement of a script, DDL too. Raises voltpy's errors."""
        index = CREATE_INDEX.match(sql)
        return self._engine.execute(sql if index is None else index_text(index)).rows
