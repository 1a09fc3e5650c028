"""What the planner knows about tables: the schema, by the names that statements use.

Indexes that are still being built are planned for too: voltpy.sql.search looks at each run at what there is.
"""

from __future__ import annotations

from voltpy.schema import Index, Schema, Table


class Catalogue:
    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self._tables = {table.name: table for table in schema.live}
        self._indexes: dict[str, list[Index]] = {}
        for index in schema.indexes:
            self._indexes.setdefault(index.table, []).append(index)

    def table(self, name: str) -> Table | None:
        return self._tables.get(name)

    def number(self, name: str) -> int:
        return self.schema.numbers[name]

    def names(self) -> list[str]:
        return list(self._tables)

    def indexes(self, table: str) -> list[Index]:
        return self._indexes.get(table, [])

    def unique_keys(self, table: Table) -> list[tuple[str, ...]]:
        """The sets of columns in which no two rows agree."""
        return [] if table.hidden_key else [table.primary_key]
