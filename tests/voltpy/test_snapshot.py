"""The files of a snapshot: manifest, lengths, checksums; and a data directory that is restored from it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from google_crc32c import value as crc32c

from partitions.wal import Wal
from tests.overwrite import overwrite
from tests.partitions.one_snapshot import SQL, one_snapshot
from tests.partitions.test_checkpoint import Kept, flipped
from voltpy import crash_point, snapshot_check
from voltpy.data_directory import CLUSTER, DataDirectory
from voltpy.errors import ClusterError, Corruption, SchemaError
from voltpy.file_range import copy_range, data_ranges
from voltpy.record_log import RecordLog
from voltpy.restore import restore
from voltpy.snapshot import MANIFEST, UNFINISHED, FileEntry, Manifest, claim, read_manifest, write_manifest
from voltpy.sql.ddl import parse_schema


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, str]]:
    return one_snapshot(tmp_path_factory.mktemp("made"))


@pytest.fixture
def snapshot(made: tuple[Path, dict[int, str]], tmp_path: Path) -> Path:
    shutil.copytree(made[0], tmp_path / "snapshot")
    return tmp_path / "snapshot"


def checked(snapshot: Path) -> list[tuple[str, str]]:
    """(kind, name of the file) of each damage."""
    damage = snapshot_check.check(snapshot, lambda checked, total: None).damage
    return [(one.kind, Path(one.file).name) for one in damage]


# ------------------------------------------------------------------------------------------------------ the manifest


def test_every_flipped_bit_and_every_cut_of_a_manifest_is_refused(snapshot: Path) -> None:
    path = snapshot / MANIFEST
    whole = path.read_bytes()
    manifest = read_manifest(snapshot)
    for bit in range(len(whole) * 8):
        overwrite(path, flipped(whole, bit))
        with pytest.raises((Corruption, ClusterError), match="manifest"):
            read_manifest(snapshot)
    for length in range(len(whole)):
        overwrite(path, whole[:length])
        with pytest.raises(Corruption, match="manifest"):
            read_manifest(snapshot)
    overwrite(path, whole)
    assert read_manifest(snapshot) == manifest


@pytest.mark.parametrize(
    "change",
    [
        {"files": []},
        {"partitions": []},
        {"files": [FileEntry("../../etc/passwd", 1, 1)]},
        {"files": [FileEntry("partition-1/pages", 1, None)]},
    ],
)
def test_a_manifest_that_lists_something_else_is_refused(snapshot: Path, change: dict[str, object]) -> None:
    manifest = read_manifest(snapshot)
    if change.get("files"):
        change = {"files": [*manifest.files, *change["files"]]}  # type: ignore[misc]
    (snapshot / MANIFEST).rename(snapshot / UNFINISHED)
    (snapshot / UNFINISHED).write_bytes(b"")
    write_manifest(snapshot, msgspec.structs.replace(manifest, **change))
    with pytest.raises(Corruption, match=r"manifest\.json offset 0"):
        read_manifest(snapshot)


def test_a_manifest_of_another_version_names_it(snapshot: Path) -> None:
    manifest = msgspec.structs.replace(read_manifest(snapshot), version=3)
    (snapshot / MANIFEST).rename(snapshot / UNFINISHED)
    (snapshot / UNFINISHED).write_bytes(b"")
    write_manifest(snapshot, manifest)
    with pytest.raises(ClusterError, match="has version 3; this program reads up to 2"):
        read_manifest(snapshot)


def test_a_manifest_from_before_there_was_a_coordinator_is_read(snapshot: Path) -> None:
    plain = msgspec.to_builtins(msgspec.structs.replace(read_manifest(snapshot), version=1))
    del plain["coordinator_epoch"]
    inner = msgspec.json.encode(plain)
    (snapshot / MANIFEST).write_bytes(msgspec.json.encode({"crc32c": crc32c(inner), "manifest": msgspec.Raw(inner)}))
    assert read_manifest(snapshot).coordinator_epoch == 0


def test_a_restored_coordinator_goes_on_with_a_higher_epoch(snapshot: Path, tmp_path: Path) -> None:
    manifest = msgspec.structs.replace(read_manifest(snapshot), coordinator_epoch=41)
    (snapshot / MANIFEST).rename(snapshot / UNFINISHED)
    (snapshot / UNFINISHED).write_bytes(b"")
    write_manifest(snapshot, manifest)
    restore(snapshot, tmp_path / "data")
    log = RecordLog.open(tmp_path / "data" / "coordinator", "decisions", 1)
    assert list(log.replay()) == []
    assert log.begin() == 42
    log.close()


def test_a_claim_takes_an_absent_or_empty_directory_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_bytes(b"")
    assert claim(tmp_path / "deep" / "new")
    assert not claim(tmp_path / "empty")
    for name in ("new", "empty"):
        directory = tmp_path / "deep" / name if name == "new" else tmp_path / name
        with pytest.raises(ClusterError, match="holds an unfinished snapshot"):
            claim(directory)
    with pytest.raises(ClusterError, match=r"it holds 'mine\.txt'"):
        claim(tmp_path / "full")
    with pytest.raises(ClusterError, match="Not a directory"):
        claim(tmp_path / "file")
    assert os.listdir(tmp_path / "full") == ["mine.txt"]


# --------------------------------------------------------------------------------------------------------- the check


def test_a_whole_snapshot_is_whole(made: tuple[Path, dict[int, str]]) -> None:
    report = snapshot_check.check(made[0], lambda checked, total: None)
    assert report.damage == []
    (partition,) = report.partitions
    assert partition.rows == {"numbers": len(made[1]), "names": len(made[1])}
    assert partition.lsn == read_manifest(made[0]).partitions[0].lsn > 0
    assert snapshot_check.summary(report)["whole"] is True


def test_flipped_bits_missing_added_and_cut_files_are_found(snapshot: Path) -> None:
    files = [path for path in sorted(snapshot.rglob("*")) if path.is_file() and path.name != MANIFEST]
    assert len(files) > 6
    for path in files:
        whole = path.read_bytes()
        kinds = {"checkpoint": "root", "pages": "page", "schema.json": "schema"}
        kind = "run" if path.suffix == ".run" else kinds.get(path.name, "file")
        overwrite(path, whole[:-1])
        assert ("file", path.name) in checked(snapshot)
        path.unlink()
        found = checked(snapshot)
        assert ("file", path.name) in found
        assert (kind, path.name) in found
        if path.suffix != ".run" and path.name != "pages":
            overwrite(path, flipped(whole, 100))
            assert ("file", path.name) in checked(snapshot)
        overwrite(path, whole)
    (snapshot / "partition-0" / "index-0-99-0000.run").write_bytes(b"")
    assert checked(snapshot) == [("file", "index-0-99-0000.run")]


def test_a_checkpoint_of_another_time_is_found(snapshot: Path) -> None:
    manifest = read_manifest(snapshot)
    (snapshot / MANIFEST).rename(snapshot / UNFINISHED)
    (snapshot / UNFINISHED).write_bytes(b"")
    cut = [msgspec.structs.replace(entry, lsn=entry.lsn + 1) for entry in manifest.partitions]
    write_manifest(snapshot, msgspec.structs.replace(manifest, partitions=cut))
    assert checked(snapshot) == [("root", "checkpoint")]


# ------------------------------------------------------------------------------------------------------- the restore


def test_a_restored_directory_has_the_rows_a_higher_epoch_and_an_identity_of_its_own(
    made: tuple[Path, dict[int, str]], tmp_path: Path
) -> None:
    snapshot, rows = made
    before = {path: path.read_bytes() for path in snapshot.rglob("*") if path.is_file()}
    manifest = restore(snapshot, tmp_path / "data")
    with DataDirectory.open(tmp_path / "data") as directory:
        assert directory.cluster_id != manifest.cluster_id
        assert directory.partitions == 1
        assert directory.schema == parse_schema(SQL)
    kept = Kept(tmp_path / "data" / "partition-0")
    kept.rows = dict(rows)
    kept.verify()
    assert kept.partition.wal is not None
    assert kept.partition.wal.epoch == manifest.partitions[0].epoch + 1
    assert kept.partition.wal.written_lsn == manifest.partitions[0].lsn
    kept.partition.call("put", 1, "after the restore")
    kept.rows[1] = "after the restore"
    kept.close()
    kept.open()
    kept.verify()
    kept.close()
    assert {path: path.read_bytes() for path in snapshot.rglob("*") if path.is_file()} == before


def test_holes_stay_holes(made: tuple[Path, dict[int, str]], tmp_path: Path) -> None:
    snapshot, _ = made
    restore(snapshot, tmp_path / "data")
    source, target = (path / "partition-0" / "pages" for path in (snapshot, tmp_path / "data"))
    assert source.read_bytes() == target.read_bytes()
    assert target.stat().st_blocks <= source.stat().st_blocks


def test_a_wal_that_goes_missing_after_a_restore_is_noticed(made: tuple[Path, dict[int, str]], tmp_path: Path) -> None:
    restore(made[0], tmp_path / "data")
    lsn = read_manifest(made[0]).partitions[0].lsn
    (segment,) = (tmp_path / "data" / "partition-0").glob("wal-*.log")
    segment.unlink()
    wal = Wal.open(tmp_path / "data" / "partition-0", 0, "always")
    with pytest.raises(Corruption, match="the log ends at LSN 0"):
        list(wal.replay(lsn))
    wal.abandon()


@pytest.mark.parametrize("damage", ["checkpoint", "run", "short", "missing"])
def test_a_damaged_snapshot_is_refused_and_nothing_is_left(snapshot: Path, tmp_path: Path, damage: str) -> None:
    partition = snapshot / "partition-0"
    run = next(partition.glob("*.run"))
    if damage == "short":
        (partition / "pages").write_bytes((partition / "pages").read_bytes()[:-8192])
    elif damage == "missing":
        run.unlink()
    else:
        path = run if damage == "run" else partition / "checkpoint"
        overwrite(path, flipped(path.read_bytes(), 300))
    with pytest.raises(Corruption, match="manifest"):
        restore(snapshot, tmp_path / "data")
    assert not (tmp_path / "data").exists()
    (tmp_path / "data").mkdir()
    with pytest.raises(Corruption, match="manifest"):
        restore(snapshot, tmp_path / "data")
    assert os.listdir(tmp_path / "data") == []


def test_what_is_no_snapshot_or_not_yet_one_is_refused(snapshot: Path, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="is not a snapshot"):
        restore(tmp_path, tmp_path / "data")
    (snapshot / MANIFEST).rename(snapshot / UNFINISHED)
    with pytest.raises(ClusterError, match=r"is an unfinished snapshot: manifest\.json was never written"):
        restore(snapshot, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_another_number_of_partitions_is_refused_with_the_reason(snapshot: Path, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"has 1 partitions, not 2: each key's place follows from that"):
        restore(snapshot, tmp_path / "data", 2)
    assert not (tmp_path / "data").exists()
    restore(snapshot, tmp_path / "data", 1)


def test_a_schema_may_add_tables_and_nothing_else(snapshot: Path, tmp_path: Path) -> None:
    more = parse_schema(SQL + "CREATE TABLE more (id INT PRIMARY KEY);")
    other = parse_schema(SQL.replace("id INT PRIMARY KEY", "id STRING PRIMARY KEY"))
    with pytest.raises(SchemaError, match="does not fit snapshot"):
        restore(snapshot, tmp_path / "data", schema=other)
    assert not (tmp_path / "data").exists()
    restore(snapshot, tmp_path / "data", schema=more)


def test_a_directory_with_anything_in_it_is_refused_and_left_alone(snapshot: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.txt").write_text("mine")
    with pytest.raises(ClusterError, match="is not empty"):
        restore(snapshot, tmp_path / "data")
    assert (tmp_path / "data" / "mine.txt").read_text() == "mine"
    (tmp_path / "data" / "mine.txt").unlink()
    restore(snapshot, tmp_path / "data")
    cluster = (tmp_path / "data" / CLUSTER).read_bytes()
    with pytest.raises(ClusterError, match="is not empty"):
        restore(snapshot, tmp_path / "data")
    assert (tmp_path / "data" / CLUSTER).read_bytes() == cluster


def test_a_snapshot_is_not_used_in_place(snapshot: Path) -> None:
    with pytest.raises(ClusterError, match=r"is a snapshot; start with --restore"):
        DataDirectory.open(snapshot, 1, SQL)


@pytest.mark.parametrize("point", [name for name in crash_point.CRASH_POINTS if name.startswith("restore.")])
def test_a_restore_that_is_killed_leaves_nothing_that_passes_for_whole(
    snapshot: Path, tmp_path: Path, point: str
) -> None:
    data = tmp_path / "data"
    program = (
        "from pathlib import Path; from voltpy.restore import restore; import sys; "
        "restore(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    killed = subprocess.run(
        [sys.executable, "-c", program, str(snapshot), str(data)],
        env={**os.environ, crash_point.VARIABLE: point},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    if point == "restore.complete":
        with DataDirectory.open(data) as directory:
            assert directory.partitions == 1
        assert not (data / "RESTORING").exists()
        return
    for schema in (None, SQL):
        with pytest.raises(ClusterError, match=r"holds a restore that did not finish"):
            DataDirectory.open(data, 1, schema)
    with pytest.raises(ClusterError, match=r"holds a restore that did not finish"):
        restore(snapshot, data)
    shutil.rmtree(data)
    restore(snapshot, data)


# -------------------------------------------------------------------------------------------------------- file ranges


def test_a_range_is_copied_where_the_kernel_does_not_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "source").write_bytes(bytes(range(256)) * 64)

    def refuse(*_: object) -> int:
        raise OSError(18, "Invalid cross-device link")

    for patched in (False, True):
        if patched:
            monkeypatch.setattr(os, "copy_file_range", refuse)
        with (tmp_path / "source").open("rb") as source, (tmp_path / f"{patched}").open("w+b") as target:
            copy_range(source.fileno(), target.fileno(), 100, 5000, tmp_path / "source")
            with pytest.raises(Corruption, match=r"source offset 16384: the file ends here, 16 bytes early"):
                copy_range(source.fileno(), target.fileno(), 16000, 400, tmp_path / "source")
        written = (tmp_path / f"{patched}").read_bytes()
        assert written[100:5100] == (bytes(range(256)) * 64)[100:5100]
        assert written[:100] == bytes(100)


def test_data_ranges_leave_holes_out_and_nothing_else(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("w+b") as file:
        file.truncate(1 << 20)
        os.pwrite(file.fileno(), b"here", 512 << 10)
        ranges = list(data_ranges(file.fileno(), 1 << 20))
        assert any(offset <= 512 << 10 < offset + length for offset, length in ranges)
        assert sum(length for _, length in ranges) < 1 << 20 or ranges == [(0, 1 << 20)]
        assert list(data_ranges(file.fileno(), 0)) == []


def test_a_manifest_says_how_large_the_snapshot_is(made: tuple[Path, dict[int, str]]) -> None:
    manifest: Manifest = read_manifest(made[0])
    there = {path.relative_to(made[0]).as_posix(): path for path in made[0].rglob("*") if path.is_file()}
    del there[MANIFEST]
    assert {file.name: file.bytes for file in manifest.files} == {n: p.stat().st_size for n, p in there.items()}
    assert manifest.bytes == sum(path.stat().st_size for path in there.values())
    json.loads((made[0] / MANIFEST).read_text())
