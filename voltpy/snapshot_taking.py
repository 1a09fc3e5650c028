"""Takes a snapshot of a running cluster: `voltpy snapshot DIR`. On the cluster's machine.

    1  claim DIR                                     nothing else may be in it                voltpy.snapshot
    2  every partition makes a checkpoint and holds  asked for and renewed by admin           voltpy.snapshot_holding
       it, as long as we say that we are there; all  commands, at the router
       begin while nothing crosses partitions
    3  a process of its own copies them              started by name                          partitions.copier
    4  schema and procedures are copied
    5  the checkpoints are released                  each partition says whether it held its own to the end
    6  the manifest is written                       from here on it is a snapshot

Whatever goes wrong on the way, the checkpoints are released and what is in DIR is removed; when this process is killed,
DIR stays without a manifest, and the partitions let go after LEASE_S.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from voltpy.client import Client
from voltpy.crash_point import crash_point
from voltpy.data_directory import PROCEDURES, SCHEMA, SCHEMA_SQL
from voltpy.errors import ClusterError, Error, Indeterminate, Unavailable
from voltpy.reporting_child import ReportingChild, wait_for
from voltpy.snapshot import VERSION as SNAPSHOT_VERSION
from voltpy.snapshot import FileEntry, Manifest, PartitionEntry, claim, entry_of, write_manifest

LEASE_S = 10.0
RENEW_S = 1.0
POLL_S = 0.05  # between two looks at whether all partitions have made their checkpoints
COPIER_COMMAND = (sys.executable, "-I", "-m", "partitions.copier")

Progress = Callable[[str, int, int], None]  # what is under way; so much is done; of so much


class _Lease:
    """The hold of all partitions on their checkpoints, renewed by `ask`. `cut`: what each of them holds."""

    def __init__(self, db: Client, directory: Path, lease_s: float) -> None:
        self._db = db
        self._lease_s = lease_s
        self._renewed_s = time.monotonic()
        described = db.begin_snapshot(str(directory), os.getpid(), lease_s)
        self._number: int = described["snapshot"]
        self.cut: list[PartitionEntry] = []
        self.coordinator_epoch: int = described["coordinator_epoch"]

    def ask(self) -> str:
        """Says that we are there. The state that the snapshot is in; raises ClusterError when it has failed."""
        try:
            return self._heard(self._db.renew_snapshot(self._number))
        except (Unavailable, Indeterminate) as error:
            # A router that is started again: the next question may get through, while the lease lasts.
            if time.monotonic() - self._renewed_s > self._lease_s:
                raise ClusterError(f"the cluster was not heard of for {self._lease_s:g} s: {error}") from None
            return "silent"

    def renew(self) -> None:
        """The same, when it is time."""
        if time.monotonic() - self._renewed_s >= min(RENEW_S, self._lease_s / 4):
            self.ask()

    def wait_for(self, state: str, progress: Callable[[int], None] = lambda held: None) -> None:
        while self.ask() != state:
            progress(len(self.cut))
            time.sleep(POLL_S)

    def release(self) -> None:
        """Raises ClusterError unless every partition held its checkpoint until now."""
        with suppress(Unavailable, Indeterminate):
            self._heard(self._db.end_snapshot(self._number))
        while (state := self.ask()) != "released":
            if state == "held":  # it was not heard
                with suppress(Unavailable, Indeterminate):
                    self._heard(self._db.end_snapshot(self._number))
            time.sleep(POLL_S)

    def give_up(self, reason: str) -> None:
        """The snapshot came to nothing. A cluster that does not hear it lets go a little later."""
        with suppress(Error):
            self._db.end_snapshot(self._number, reason)

    def _heard(self, described: dict[str, Any]) -> str:
        self._renewed_s = time.monotonic()
        self.cut = [msgspec.convert(entry, PartitionEntry) for entry in described["partitions"]]
        state: str = described["state"]
        if state == "failed":
            raise ClusterError(described["reason"])
        return state


def take(
    db: Client, directory: Path, *, rate: int | None = None, lease_s: float = LEASE_S, progress: Progress
) -> Manifest:
    """Takes a snapshot into a directory that does not exist, or is empty; it is on disk when this returns.

    `rate`: at most so many bytes a second. Raises ClusterError, which says what has become of the directory.
    """
    status = db.status()
    data = _data_directory(status)
    directory = Path(os.path.abspath(directory))
    if directory.is_relative_to(data):
        raise ClusterError(f"{directory} is in the data directory itself: a snapshot is something beside it")
    made = claim(directory)
    lease: _Lease | None = None
    try:
        crash_point("snapshot.claimed")
        count = len(status["partitions"])
        lease = _Lease(db, directory, lease_s)
        lease.wait_for("held", lambda held: progress("checkpoints", held, count))
        crash_point("snapshot.held")
        files = _copied(lease, data, directory, count, rate, progress)
        files += _small_files(data, directory)
        crash_point("snapshot.copied")
        lease.release()
        crash_point("snapshot.released")
        created_at = datetime.now(UTC).isoformat(timespec="seconds")
        catalog_version: int = status["catalog_version"]
        manifest = Manifest(
            SNAPSHOT_VERSION,
            status["cluster_id"],
            str(data),
            created_at,
            catalog_version,
            lease.cut,
            files,
            lease.coordinator_epoch,
        )
        write_manifest(directory, manifest)
        crash_point("snapshot.complete")
    except BaseException as error:
        if lease is not None:
            lease.give_up(str(error) or type(error).__name__)
        left = _removed(directory, made)
        if isinstance(error, Error | OSError):
            reason = f"{error.filename or directory}: {error.strerror}" if isinstance(error, OSError) else str(error)
            raise ClusterError(f"no snapshot was made: {reason} ({left})") from error
        raise
    return manifest


def _data_directory(status: dict[str, Any]) -> Path:
    """The cluster's, if this is its machine. Raises ClusterError otherwise."""
    data = Path(status["data"])
    try:
        cluster: dict[str, Any] = msgspec.json.decode((data / "cluster.json").read_bytes())
    except (OSError, msgspec.DecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ClusterError(
            f"a snapshot is taken on the cluster's machine, but {data} can't be read: {reason}"
        ) from None
    if cluster.get("cluster_id") != status["cluster_id"]:
        raise ClusterError(f"a snapshot is taken on the cluster's machine, and {data} is another cluster's here")
    return data


def _copied(
    lease: _Lease, data: Path, directory: Path, count: int, rate: int | None, progress: Progress
) -> list[FileEntry]:
    """What the copier has brought over, checked against what the partitions hold."""
    command: list[str | Path] = [*COPIER_COMMAND, "--data", data, "--to", directory, "--partitions", str(count)]
    if rate is not None:
        command += ["--rate", str(rate)]
    files: list[FileEntry] = []
    with ReportingChild(command) as child:
        while not child.has_ended:
            wait_for([child], RENEW_S / 4)
            for report in child.reports():
                if "files" not in report:
                    progress(f"partition {report['partition']}", report["copied"], report["total"])
                    continue
                held = lease.cut[report["partition"]]
                if (report["checkpoint"], report["lsn"]) != (held.checkpoint, held.lsn):
                    raise ClusterError(f"partition {held.partition} holds another checkpoint than it said")
                folder = f"partition-{held.partition}"
                files += [FileEntry(f"{folder}/{name}", size, crc) for name, size, crc in report["files"]]
            lease.renew()
        if child.exit_status():
            lease.ask()  # what it stumbled over may be that nothing is held any more
            raise ClusterError(child.last_words())
    return files


def _small_files(data: Path, directory: Path) -> list[FileEntry]:
    """Schema and procedures: whole at any time, since they are replaced by renaming."""
    entries = []
    for name in (SCHEMA, SCHEMA_SQL, PROCEDURES):
        try:
            content = (data / name).read_bytes()
        except FileNotFoundError:
            if name == SCHEMA_SQL:  # it is for people only
                continue
            raise
        with (directory / name).open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        entries.append(entry_of(directory, name))
    return entries


def _removed(directory: Path, made: bool) -> str:
    """Removes what was made, and says so."""
    try:
        for path in directory.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        if made:
            directory.rmdir()
    except OSError as error:
        return f"what there is of it in {directory} could not be removed: {error.strerror}"
    return f"what there was of it in {directory} has been removed"
