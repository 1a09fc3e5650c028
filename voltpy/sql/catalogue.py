"""What the planner knows about tables: the schema, and which of its indexes can be read.

Those that are still being built are planned for too: voltpy.sql.search looks at each run at what there is.
"""

from __future__ import annotations

from collections.abc import Collection

from voltpy.schema import Index, Schema, Table


class Catalogue:
    """`usable`: the names of the indexes in which rows can be looked up; None: of all."""

    def __init__(self, schema: Schema, usable: Collection[str] | None = None) -> None:
        self.schema = schema
        self._tables = {table.name: table for table in schema.live}
        self._indexes: dict[str, list[Index]] = {}
        for index in schema.indexes:
            if usable is None or index.name in usable:
                self._indexes.setdefault(index.table, []).append(index)

    def table(self, name: str) -> Table | None:
        return self._tables.get(name)

    def number(self, name: str) -> int:
        return self.schema.numbers[name]

    def names(self) -> list[str]:
        return list(self._tables)

    def indexes(self, table: str) -> list[Index]:
        """Those that can be read."""
        return self._indexes.get(table, [])

    def unique_keys(self, table: Table) -> list[tuple[str, ...]]:
        """The sets of columns in which no two rows agree."""
        return [] if table.hidden_key else [table.primary_key]
