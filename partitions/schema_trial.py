"""Whether the rows of one partition satisfy the unique indexes that a schema would add, tried before it is stored.

    python -I -m partitions.schema_trial --data DIR --partition I --partitions N --memory BYTES --schema FILE

A process of its own, while no partition runs: `voltpy start` asks it of every partition when its schema adds a
unique index to a table that is there. It recovers under the stored schema, as a start does, builds the indexes, and
forgets them: what it leaves is what a start that was killed during its recovery leaves. FILE holds
voltpy.schema.to_json.

Exit status 0 when all of them can be built, 3 for damaged data, 4 when they can't, with the reason on stderr.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from partitions.buffer_pool import BufferPool
from partitions.checkpoint import load as load_checkpoint
from partitions.checkpoint import read_checkpoint
from partitions.checkpointer import Checkpointer
from partitions.page_reader import PageReader
from partitions.recovery import recover
from partitions.store import Store
from partitions.wal import Wal
from voltpy.data_directory import partition_directory, read_schema
from voltpy.errors import Corruption, Error
from voltpy.outcome_window import WINDOW_BYTES, OutcomeWindow
from voltpy.parent_death import SUPERVISOR, die_with_parent
from voltpy.resident import resident_bytes
from voltpy.schema import Schema, added_unique_indexes, from_json

EXIT_DAMAGED = 3
EXIT_REFUSED = 4


def try_schema(data: Path, partition: int, partitions: int, memory_bytes: int, schema: Schema) -> None:
    """Raises DuplicateKey when two rows are equal in a unique index; ReadOnly, when it finds no room; Corruption."""
    directory = partition_directory(data, partition)
    wal = Wal.open(directory, partition, "always")
    try:
        stored = read_schema(data)
        store = Store(stored, partition, partitions, memory_bytes)
        checkpoint = read_checkpoint(directory, partition)
        pages = load_checkpoint(directory, partition, checkpoint, store)
        reader = PageReader(pages.path, store.arena.memory)
        pool = BufferPool(store.heaps, store.arena, reader, pages.path, memory_bytes + resident_bytes())
        store.use(pool)
        root = checkpoint.root
        window = OutcomeWindow(root.outcomes_reach, min(WINDOW_BYTES, memory_bytes // 16), root.batches_reach)
        checkpointer = Checkpointer(directory, partition, store, window, wal, pages, checkpoint)
        try:
            recover(wal, store, checkpoint, window, checkpointer)
            _build(store, pool, schema)
        finally:
            reader.close()
            checkpointer.close()
    finally:
        wal.abandon()


def _build(store: Store, pool: BufferPool, schema: Schema) -> None:
    store.misses.bring = pool.bring
    # Whether those of undecided batches will count is not known, and nobody decides it while this runs.
    store.prepared.clear()
    for index in added_unique_indexes(store.schema, schema):
        table = store.by_name[index.table]
        table.alter(schema.table(index.table))  # the index may be on a column that comes with it
        for _ in store.add_index(index):
            pool.end_batch()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m partitions.schema_trial", description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--partition", type=int, required=True)
    parser.add_argument("--partitions", type=int, required=True)
    parser.add_argument("--memory", type=int, required=True, help="bytes, for this partition")
    parser.add_argument("--schema", type=Path, required=True)
    arguments = parser.parse_args()
    die_with_parent(int(os.environ.get(SUPERVISOR, "0")))
    try:
        schema = from_json(arguments.schema.read_bytes())
        try_schema(arguments.data, arguments.partition, arguments.partitions, arguments.memory, schema)
    except Corruption as error:
        print(error, file=sys.stderr)
        return EXIT_DAMAGED
    except Error as error:
        print(error, file=sys.stderr)
        return EXIT_REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main())
