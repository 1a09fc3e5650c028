"""A new data directory from a snapshot: `voltpy start --restore`.

Files are copied, never used in place, so a snapshot can be restored as often as wanted. What the partitions had in
their WALs is in their checkpoints; each gets an empty WAL that goes on behind its checkpoint's LSN, under a higher
epoch. Nothing was undecided, so the coordinator's decision log is empty too; its epoch goes on, for the sake of unique
ids. The cluster id is a new one: it is another cluster, with the same beginning.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from voltpy.crash_point import crash_point
from voltpy.data_directory import (
    DECISIONS,
    coordinator_directory,
    make_restored,
    partition_directory,
    schema_with,
)
from voltpy.errors import ClusterError, SchemaError
from voltpy.record_log import DiskFull, RecordLog, flush_directory
from voltpy.schema import Schema
from voltpy.snapshot import Manifest, copy_checked, read_manifest


def restore(
    snapshot: Path,
    data: Path,
    partitions: int | None = None,
    schema: Schema | None = None,
    progress: Callable[[int, int], None] = lambda copied, total: None,
) -> Manifest:
    """Makes the data directory, durably. `progress` is told bytes: copied, and in all.

    Raises ClusterError when the snapshot is none, has another number of partitions or `data` holds anything;
    SchemaError when `schema` does more than add to the snapshot's; Corruption, naming file and offset, for damage that
    shows in copying: pages are looked at when they are first needed, or by `voltpy snapshot --verify`.
    """
    manifest = read_manifest(snapshot)
    count = len(manifest.partitions)
    if partitions is not None and partitions != count:
        raise ClusterError(
            f"snapshot {snapshot} has {count} partitions, not {partitions}: each key's place follows from that. "
            f"Start with --partitions {count} (or without it)"
        )
    if schema is not None:
        try:
            schema_with(snapshot, schema)
        except SchemaError as error:
            raise SchemaError(f"the schema does not fit snapshot {snapshot}: {error}") from None
    make_restored(data, count, snapshot, lambda directory: _fill(snapshot, manifest, directory, progress))
    return manifest


def _fill(snapshot: Path, manifest: Manifest, data: Path, progress: Callable[[int, int], None]) -> None:
    done = 0

    def copied(size: int) -> None:
        nonlocal done
        done += size
        progress(done, manifest.bytes)

    for entry in manifest.partitions:
        partition_directory(data, entry.partition).mkdir(mode=0o700)
    for file in manifest.files:
        copy_checked(snapshot / file.name, data / file.name, file, copied)
        crash_point("restore.file.copied")
    for entry in manifest.partitions:
        directory = partition_directory(data, entry.partition)
        try:
            RecordLog.make_after(directory, "wal", entry.partition, entry.lsn, entry.epoch)
        except DiskFull as error:
            raise ClusterError(str(error)) from None
        flush_directory(directory)
        crash_point("restore.partition.copied")
    if manifest.coordinator_epoch:
        directory = coordinator_directory(data)
        try:
            RecordLog.make_after(directory, DECISIONS, len(manifest.partitions), 0, manifest.coordinator_epoch)
        except DiskFull as error:
            raise ClusterError(str(error)) from None
        flush_directory(directory)
    flush_directory(data)
