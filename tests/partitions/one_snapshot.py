"""A small snapshot of a cluster of one partition, made without processes, for tests of its files."""

from __future__ import annotations

import random
from pathlib import Path

from partitions.copier import Copier, plan
from tests.partitions.test_checkpoint import Kept
from voltpy.data_directory import DataDirectory, partition_directory
from voltpy.snapshot import VERSION as SNAPSHOT_VERSION
from voltpy.snapshot import Manifest, PartitionEntry, claim, entry_of, write_manifest

SQL = """
CREATE TABLE numbers (id INT PRIMARY KEY, text STRING NOT NULL);
PARTITION TABLE numbers ON COLUMN id;
CREATE TABLE names (name STRING PRIMARY KEY, text STRING NOT NULL);
PARTITION TABLE names ON COLUMN name;
"""
SMALL_FILES = ("schema.json", "schema.sql", "procedures.json")


def one_snapshot(directory: Path, *, batches: int = 30, checkpoints: int = 3) -> tuple[Path, dict[int, str]]:
    """The snapshot, and the rows of `numbers` in it. Its runs are several, its pages have holes between them."""
    data, snapshot = directory / "data", directory / "snapshot"
    with DataDirectory.open(data, 1, SQL):
        pass
    kept = Kept(partition_directory(data, 0))
    rng = random.Random(batches)
    for made in range(checkpoints):
        for _ in range(batches):
            kept.change(rng, keys=100)
        if made == checkpoints - 1:
            kept.checkpointer.keep(1, float("inf"))
        kept.checkpoint()
    claim(snapshot)
    one = plan(data, snapshot, 0)
    Copier(None).copy([one])
    names = [f"partition-0/{path.name}" for path in sorted((snapshot / "partition-0").iterdir())]
    for name in SMALL_FILES:
        (snapshot / name).write_bytes((data / name).read_bytes())
    entries = [entry_of(snapshot, name) for name in (*names, *SMALL_FILES)]
    files = [e if not e.name.endswith("/pages") else type(e)(e.name, e.bytes, None) for e in entries]
    cut = [PartitionEntry(0, one.checkpoint, one.lsn, 1)]
    write_manifest(
        snapshot, Manifest(SNAPSHOT_VERSION, "0" * 32, str(data), "2024-01-01T00:00:00+00:00", 1, cut, files)
    )
    kept.checkpointer.let_go(1)
    kept.close()
    return snapshot, kept.rows
