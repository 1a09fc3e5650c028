"""Checks a snapshot, whole: `voltpy snapshot --verify DIR`. No cluster is needed.

The manifest and what it lists is looked at here; checkpoints, runs and pages by a process a partition, started by name
(partitions.verify), several at a time.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from voltpy.data_directory import CLUSTER
from voltpy.errors import ClusterError, Corruption
from voltpy.reporting_child import ReportingChild, wait_for
from voltpy.snapshot import MANIFEST, UNFINISHED, FileEntry, Manifest, check_file, read_manifest

WAIT_S = 1.0
VERIFY_COMMAND = (sys.executable, "-I", "-m", "partitions.verify")
_PLACE = re.compile(r"(.*?) offset (\d+): (.*)", re.DOTALL)


class Damage(Struct, frozen=True):
    """The first damage of a kind, of which there are `count`; `offset` None: it is not at one place of the file."""

    kind: str
    file: str
    offset: int | None
    text: str
    count: int = 1


class PartitionReport(Struct, frozen=True):
    """What a process of partitions.verify says at its end. `rows`: by table."""

    partition: int
    lsn: int
    pages: int
    rows: dict[str, int]
    damage: list[Damage]


class Report(Struct, frozen=True):
    """`damage` is empty when the snapshot is whole. `created_at` is empty where the manifest can't be read."""

    directory: str
    created_at: str
    bytes: int
    partitions: list[PartitionReport]
    damage: list[Damage]


def check(directory: Path, progress: Callable[[int, int], None]) -> Report:
    """`progress` is told bytes: checked, and in all. Raises ClusterError when it can't be checked at all."""
    if _is_unfinished(directory):
        missing = Damage("manifest", str(directory / MANIFEST), None, f"{MANIFEST} was never written, or is gone")
        return Report(str(directory), "", 0, [], [missing])
    try:
        manifest = read_manifest(directory)
    except Corruption as error:
        return Report(str(directory), "", 0, [], [_damage("manifest", directory / MANIFEST, error)])
    damage = _listed_files(directory, manifest)
    partitions = _partitions(directory, manifest, progress)
    for partition in partitions:
        damage += partition.damage
    return Report(str(directory), manifest.created_at, manifest.bytes, partitions, damage)


def _is_unfinished(directory: Path) -> bool:
    """Whether this would be a snapshot, if it had a manifest."""
    if (directory / MANIFEST).exists() or (directory / CLUSTER).exists():
        return False
    return (directory / UNFINISHED).exists() or (directory / "partition-0").exists()


def _listed_files(directory: Path, manifest: Manifest) -> list[Damage]:
    """The first file that is not as the manifest says, if any."""
    found: list[Damage] = []
    for entry in manifest.files:
        try:
            check_file(directory, entry)
        except Corruption as error:
            found.append(_damage("file", directory / entry.name, error))
    found += _unlisted_files(directory, manifest.files)
    return [msgspec.structs.replace(found[0], count=len(found))] if found else []


def _unlisted_files(directory: Path, files: list[FileEntry]) -> list[Damage]:
    """Nothing of a partition is missing in the manifest: every run there is listed."""
    listed = {entry.name for entry in files}
    there = {path.relative_to(directory).as_posix() for path in directory.glob("partition-*/*")}
    text = "the manifest does not list it"
    return [Damage("file", str(directory / name), None, text) for name in sorted(there - listed)]


def _partitions(directory: Path, manifest: Manifest, progress: Callable[[int, int], None]) -> list[PartitionReport]:
    waiting = [entry.partition for entry in manifest.partitions]
    running: dict[int, ReportingChild] = {}
    how_far = dict.fromkeys(waiting, (0, 0))
    reports: dict[int, PartitionReport] = {}
    with ExitStack() as stack:
        while waiting or running:
            while waiting and len(running) < len(os.sched_getaffinity(0)):
                number = waiting.pop(0)
                child = ReportingChild([*VERIFY_COMMAND, directory, "--partition", str(number)])
                running[number] = stack.enter_context(child)
            wait_for(list(running.values()), WAIT_S)
            for number, child in list(running.items()):
                for said in child.reports():
                    if "damage" in said:
                        reports[number] = _of_manifest(msgspec.convert(said, PartitionReport), directory, manifest)
                    else:
                        how_far[number] = (said["checked"], said["total"])
                if child.has_ended:
                    if number not in reports:
                        raise ClusterError(f"partition {number} could not be checked: {child.last_words()}")
                    del running[number]
            progress(sum(checked for checked, _ in how_far.values()), sum(total for _, total in how_far.values()))
    return [reports[number] for number in sorted(reports)]


def _of_manifest(report: PartitionReport, directory: Path, manifest: Manifest) -> PartitionReport:
    """The report; damaged too where a whole checkpoint is not the one that the manifest speaks of."""
    due = manifest.partitions[report.partition].lsn
    if report.damage or report.lsn == due:
        return report
    path = directory / f"partition-{report.partition}" / "checkpoint"
    text = f"the checkpoint is as of LSN {report.lsn}, the manifest says {due}"
    return msgspec.structs.replace(report, damage=[Damage("root", str(path), None, text)])


def _damage(kind: str, path: Path, error: Exception) -> Damage:
    match = _PLACE.fullmatch(str(error))
    if match is None:
        return Damage(kind, str(path), None, str(error))
    return Damage(kind, match[1], int(match[2]), match[3])


def summary(report: Report) -> dict[str, Any]:
    """The report as plain values, for programs."""
    plain: dict[str, Any] = msgspec.to_builtins(report)
    return {"whole": not report.damage, **plain}
