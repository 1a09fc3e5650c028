"""A change of the schema in one partition: prepared while calls run, then made between two of them.

    SchemaChange        what can't be made of this partition's rows is refused
    step, step, …       indexes and views are built of tables that have rows, some pages at a time, between batches
    switch              tables come, go and get columns; the new indexes and views can be asked
    — or abandon        nothing has happened

From the moment when it is built a unique index refuses duplicates, and a view what it can't hold, though the change may
still come to nothing elsewhere: otherwise what was found here would no longer be so when all partitions have found it.

Nothing of it goes into the WAL, and nothing needs to: see voltpy.schema. Whoever decides that it happens makes the new
schema durable before any partition switches, so a partition that starts again has it, and builds what indexes and views
it lacks. Rows of a view are in the WAL from the switch on, and count once a checkpoint has the view.
"""

from __future__ import annotations

from collections.abc import Iterator

from partitions.store import Store
from voltpy.crash_point import crash_point
from voltpy.errors import SchemaError
from voltpy.schema import Schema, Table, repartitioned


class SchemaChange:
    """`step` until it `is_prepared`, then `switch`, or `abandon`. All of it between batches only."""

    def __init__(self, store: Store, schema: Schema) -> None:
        """Raises SchemaError for what the rows don't allow."""
        self.schema = schema
        self._store = store
        before = store.schema
        # Tables that are in both: with the same number, or it would be another one of that name.
        self._kept = {name for name, _ in before.numbers.items() & schema.numbers.items()}
        self._added = [index for index in schema.indexes if index not in before.indexes and index.table in self._kept]
        self._dropped = [index for index in before.indexes if index not in schema.indexes and index.table in self._kept]
        self._check_indexes()
        self._views = self._new_views()  # by the table that they are over, where that is there already
        if store.partitions > 1:
            self._check_repartitioned()
        self._steps: Iterator[None] | None = self._build() if self._added or self._views else None

    @property
    def is_prepared(self) -> bool:
        return self._steps is None

    @property
    def builds_views(self) -> bool:
        return bool(self._views)

    def step(self) -> None:
        """Builds some of the indexes and views.

        Raises DuplicateKey, DataError, ConstraintViolation, Unavailable, ReadOnly, Corruption, OSError: then `abandon`
        the change.
        """
        for _ in self._steps or ():
            return
        self._steps = None

    def switch(self) -> None:
        """From here on this is the store's schema."""
        store, schema = self._store, self.schema
        before = store.schema
        for index in self._dropped:
            store.drop_index(index.table, index.name)
        for number, (old, new) in enumerate(zip(before.tables, schema.tables, strict=False)):
            if new.dropped and not old.dropped:
                store.drop_table(number)
            elif new != old:
                store.tables[number].alter(new)
        for number in range(len(before.tables), len(schema.tables)):
            store.add_table(schema, number)
        store.schema = schema
        store.follow()
        self._added = []
        crash_point("schema_change.switched")

    def abandon(self) -> None:
        """Takes the indexes and views away again. Nothing, once it was switched."""
        self._steps = None
        for index in self._added:
            self._store.drop_index(index.table, index.name)
        self._added = []
        self._store.forget_views_ahead()

    def _check_indexes(self) -> None:
        """Raises SchemaError for an index that can't be built before the switch."""
        before = self._store.schema
        for name in {index.name for index in self._added} & {index.name for index in self._dropped}:
            raise SchemaError(f"index {name} can't be dropped and made anew by one change: make it two")
        for index in self._added:
            new = [name for name in index.columns if name not in before.table(index.table).positions]
            if new:
                raise SchemaError(f"index {index.name} is on column {new[0]}, which the same change adds: make it two")

    def _new_views(self) -> dict[str, list[Table]]:
        """Raises SchemaError for a view that can't be built before the switch."""
        before, schema = self._store.schema, self.schema
        views: dict[str, list[Table]] = {}
        for table in schema.tables[len(before.tables) :]:
            if table.view is not None and table.view.base in self._kept:
                base = table.view.base
                if schema.table(base) != before.table(base):
                    raise SchemaError(f"view {table.name} is over {base}, which the same change alters: make it two")
                views.setdefault(base, []).append(table)
        return views

    def _check_repartitioned(self) -> None:
        """Raises SchemaError for a table with rows that would have to move."""
        for number in repartitioned(self._store.schema, self.schema):
            table = self._store.tables[number]
            if table.row_count:
                raise SchemaError(
                    f"table {table.name} has rows, of which every partition has a copy: "
                    "PARTITION TABLE is for empty tables"
                )

    def _build(self) -> Iterator[None]:
        for index in self._added:
            yield from self._store.add_index(index)
            crash_point("schema_change.index_built")
        for base, views in self._views.items():
            yield from self._store.build_views_ahead(self.schema, base, views)
            crash_point("schema_change.view_built")


def made_at_once(store: Store, schema: Schema) -> None:
    """The whole change, where nobody else has a say in it, or nothing of it. Raises as SchemaChange and `step` do."""
    change = SchemaChange(store, schema)
    try:
        while not change.is_prepared:
            change.step()
        change.switch()
    finally:
        change.abandon()
