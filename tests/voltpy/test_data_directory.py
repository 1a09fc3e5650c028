"""Making, opening and refusing data directories, with real files, real locks, and a crash at every step."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from tests.overwrite import overwrite
from voltpy import data_directory
from voltpy.data_directory import (
    DataDirectory,
    StoredProcedures,
    Unflushed,
    coordinator_directory,
    read_procedures,
    read_schema,
    read_source,
)
from voltpy.errors import ClusterError, Corruption, SchemaError
from voltpy.schema import Schema, describe
from voltpy.sql.ddl_change import parse_change

BANK = (
    "CREATE TABLE accounts (id INT PRIMARY KEY, balance INT NOT NULL DEFAULT 0);\n"
    "PARTITION TABLE accounts ON COLUMN id;\n"
)
GROWN = "CREATE TABLE branches (code STRING PRIMARY KEY); -- new\n" + BANK
OTHER = BANK.replace("balance INT", "balance FLOAT")


@pytest.fixture
def procedures(tmp_path: Path) -> Path:
    path = tmp_path / "bank.py"
    path.write_text("# é: the first\n")
    return path


def made(path: Path, partitions: int = 2, text: str = BANK) -> Path:
    """A directory that was made and closed."""
    DataDirectory.open(path, partitions, text).close()
    return path


def contents(path: Path) -> dict[str, bytes]:
    """Every file below the path except LOCK, whose process id is the test's anyway."""
    files = (file for file in path.rglob("*") if file.is_file() and file.name != "LOCK")
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


# -- making one


def test_new_directory_holds_what_was_given(tmp_path: Path, procedures: Path) -> None:
    path = tmp_path / "some" / "where"
    with DataDirectory.open(path, 3, BANK, procedures) as directory:
        assert (directory.path, directory.partitions, directory.schema_sql) == (path, 3, BANK)
        assert [table.name for table in directory.schema.tables] == ["accounts"]
        assert (directory.catalog_version, directory.procedures.source) == (1, "# é: the first\n")
        assert directory.procedures.path == str(procedures)
        cluster_id = directory.cluster_id
    assert len(bytes.fromhex(cluster_id)) == 16
    assert path.stat().st_mode & 0o777 == 0o700
    assert sorted(os.listdir(path)) == [
        "LOCK", "cluster.json", "partition-0", "partition-1", "partition-2", "procedures.json", "schema.json",
        "schema.sql",
    ]  # fmt: skip
    stored = json.loads((path / "cluster.json").read_bytes())
    assert stored == {
        "version": 1, "cluster_id": cluster_id, "partitions": 3, "created_at": directory.created_at,
    }  # fmt: skip
    assert stored["created_at"].endswith("+00:00")
    assert (path / "schema.sql").read_text() == BANK
    assert read_schema(path) == directory.schema
    assert read_procedures(path) == directory.procedures
    assert directory.partition_directory(2) == path / "partition-2"


def test_two_directories_have_two_cluster_ids(tmp_path: Path) -> None:
    ids = {json.loads((made(tmp_path / name) / "cluster.json").read_bytes())["cluster_id"] for name in "ab"}
    assert len(ids) == 2


def test_number_of_partitions_is_that_of_usable_cores_unless_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 2, 4, 5, 7})
    with DataDirectory.open(tmp_path / "d", schema_text=BANK) as directory:
        assert directory.partitions == 5


def test_empty_directory_is_taken(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    assert (made(tmp_path / "d") / "cluster.json").exists()


@pytest.mark.parametrize("partitions", [0, -1, 512])
def test_impossible_number_of_partitions_is_refused(tmp_path: Path, partitions: int) -> None:
    with pytest.raises(ClusterError, match="a cluster has 1 to 511"):
        DataDirectory.open(tmp_path / "d", partitions, BANK)


def test_slip_of_the_user_leaves_nothing_behind(tmp_path: Path, procedures: Path) -> None:
    path = tmp_path / "d"
    with pytest.raises(SchemaError, match="line 1, column 1"):
        DataDirectory.open(path, 2, "CRATE TABLE", procedures)
    with pytest.raises(ClusterError, match=r"procedure file .*/nothing.py: No such file"):
        DataDirectory.open(path, 2, BANK, tmp_path / "nothing.py")
    with pytest.raises(ClusterError, match="making a cluster takes a schema"):
        DataDirectory.open(path, 2, None, procedures)
    assert not path.exists()


def test_directory_of_somebody_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "project"
    path.mkdir()
    (path / "schema.sql").write_text("mine")
    with pytest.raises(ClusterError, match=r"is not a data directory, and not empty: it holds 'schema.sql'"):
        DataDirectory.open(path, 2, BANK)
    (path / "LOCK").touch()
    (path / "thesis.tex").write_text("mine")
    with pytest.raises(ClusterError, match=r"is not a data directory: it holds 'thesis.tex'"):
        DataDirectory.open(path, 2, BANK)
    assert contents(path) == {"schema.sql": b"mine", "thesis.tex": b"mine"}


def test_path_that_can_be_no_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ClusterError, match="Not a directory"):
            DataDirectory.open(path, 2, BANK)


# -- opening one again


def test_start_without_options_uses_what_is_stored(tmp_path: Path, procedures: Path) -> None:
    first = DataDirectory.open(tmp_path / "d", 3, BANK, procedures)
    first.close()
    before = contents(tmp_path / "d")
    with DataDirectory.open(tmp_path / "d") as again:
        for name in ("cluster_id", "created_at", "partitions", "schema", "schema_sql", "procedures"):
            assert getattr(again, name) == getattr(first, name), name
    assert contents(tmp_path / "d") == before


def test_same_options_change_no_file(tmp_path: Path, procedures: Path) -> None:
    DataDirectory.open(tmp_path / "d", 3, BANK, procedures).close()
    before = {file: file.stat().st_ino for file in (tmp_path / "d").iterdir()}
    DataDirectory.open(tmp_path / "d", 3, BANK, procedures).close()
    assert {file: file.stat().st_ino for file in (tmp_path / "d").iterdir()} == before


def test_another_number_of_partitions_is_refused_with_the_reason(tmp_path: Path) -> None:
    made(tmp_path / "d", 2)
    with pytest.raises(ClusterError, match=r"has 2 partitions, not 4: each key's place follows from their number"):
        DataDirectory.open(tmp_path / "d", 4)
    DataDirectory.open(tmp_path / "d").close()  # the refused start let go of the lock


def test_schema_that_grew_is_stored_with_old_tables_first(tmp_path: Path) -> None:
    made(tmp_path / "d")
    with DataDirectory.open(tmp_path / "d", schema_text=GROWN) as directory:
        assert [table.name for table in directory.schema.tables] == ["accounts", "branches"]
    with DataDirectory.open(tmp_path / "d") as directory:
        assert [table.name for table in directory.schema.tables] == ["accounts", "branches"]
        assert directory.schema_sql == GROWN


def test_schema_with_other_comments_only_replaces_the_text(tmp_path: Path) -> None:
    made(tmp_path / "d")
    before = (tmp_path / "d" / "schema.json").stat().st_ino
    DataDirectory.open(tmp_path / "d", schema_text="-- newer\n" + BANK).close()
    assert (tmp_path / "d" / "schema.sql").read_text() == "-- newer\n" + BANK
    assert (tmp_path / "d" / "schema.json").stat().st_ino == before


def test_schema_that_changes_a_column_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    made(tmp_path / "d")
    before = contents(tmp_path / "d")
    with pytest.raises(
        SchemaError, match=r"column balance is stored as balance INT NOT NULL DEFAULT 0, now balance FLO"
    ):
        DataDirectory.open(tmp_path / "d", schema_text=OTHER)
    assert contents(tmp_path / "d") == before


def changed_by(path: Path, text: str, catalog_version: int) -> Schema:
    """As a running cluster's statements change it."""
    with DataDirectory.open(path) as directory:
        schema = replace(parse_change(text, directory.schema)[0], catalog_version=catalog_version)
        directory.write_schema(schema)
        assert directory.catalog_version == catalog_version
    return schema


def test_start_with_the_schema_given_before_keeps_what_statements_have_changed(tmp_path: Path) -> None:
    path = made(tmp_path / "d")
    schema = changed_by(path, "CREATE TABLE more (id INT PRIMARY KEY)", 7)
    for text in (None, BANK, BANK + "-- a comment"):
        with DataDirectory.open(path, schema_text=text) as directory:
            assert directory.schema == schema
            assert directory.catalog_version == 7
    with DataDirectory.open(path, schema_text=BANK + "CREATE TABLE other (id INT PRIMARY KEY);") as directory:
        assert [table.name for table in directory.schema.live][-2:] == ["more", "other"]
        assert directory.catalog_version == 7
        with pytest.raises(ClusterError, match="catalog version 7 is not past the stored one, 7"):
            directory.write_procedures(7, "p.py", "pass")
        with pytest.raises(ClusterError, match="catalog version 6 is not past the stored one, 7"):
            directory.write_schema(replace(directory.schema, catalog_version=6))


def test_missing_schema_text_is_written_out_of_the_schema(tmp_path: Path) -> None:
    made(tmp_path / "d")
    (tmp_path / "d" / "schema.sql").unlink()
    with DataDirectory.open(tmp_path / "d") as directory:
        assert directory.schema_sql == describe(directory.schema)


def test_procedures_make_way_with_the_schema_that_they_came_with(tmp_path: Path) -> None:
    path = made(tmp_path / "d")
    (tmp_path / "new.py").write_text("# new ones\n")
    more = BANK + "CREATE UNIQUE INDEX one ON accounts (id, balance);"
    with DataDirectory.open(path) as directory:
        before = directory.procedures
    with DataDirectory.open(path, None, more, tmp_path / "new.py") as directory:
        assert directory.procedures.source == "# new ones\n"
        assert directory.withdraw_schema() == ["one"]
        assert (directory.procedures.path, directory.procedures.source) == (before.path, before.source)
    assert read_procedures(path) == StoredProcedures(before.catalog_version + 2, before.path, before.source)
    with DataDirectory.open(path, None, more, tmp_path / "new.py") as directory:
        directory.keep_schema()
        directory.withdraw_schema()  # of what has worked nothing goes
        assert read_procedures(path).source == "# new ones\n"


def test_views_and_unique_indexes_that_have_not_worked_can_be_withdrawn(tmp_path: Path) -> None:
    path = made(tmp_path / "d")
    more = BANK + (
        "CREATE TABLE notes (id INT PRIMARY KEY);"
        "CREATE VIEW by_balance AS SELECT balance, COUNT(*) AS n FROM accounts GROUP BY balance;"
        "CREATE UNIQUE INDEX one ON accounts (id, balance); CREATE INDEX two ON accounts (balance);"
    )
    for view in (2, 3):  # the first time it leaves its number behind
        with DataDirectory.open(path, None, more) as directory:
            assert directory.schema.numbers == {"accounts": 0, "notes": 1, "by_balance": view}
            assert read_schema(path) == directory.schema
            assert directory.schema_sql == (path / "schema.sql").read_text() == BANK
            assert directory.withdraw_schema() == ["by_balance", "one"]
        stored = read_schema(path)
        assert (stored.numbers, [index.name for index in stored.indexes]) == ({"accounts": 0, "notes": 1}, ["two"])
        assert stored.tables[view].dropped
    with DataDirectory.open(path, None, BANK) as directory:
        assert directory.schema == stored
    with DataDirectory.open(path, None, more) as directory:
        directory.keep_schema()
        assert directory.withdraw_schema() == []
        assert directory.schema_sql == (path / "schema.sql").read_text() == more
    with DataDirectory.open(path) as directory:
        assert directory.schema.numbers == {"accounts": 0, "notes": 1, "by_balance": 4}


def test_views_that_statements_have_made_stay_when_those_of_a_start_are_withdrawn(tmp_path: Path) -> None:
    path = made(tmp_path / "d")
    view = "CREATE VIEW {} AS SELECT balance, COUNT(*) AS n FROM accounts GROUP BY balance;"
    with DataDirectory.open(path) as directory:
        schema, _ = parse_change(view.format("made"), directory.schema)
        directory.write_schema(replace(schema, catalog_version=directory.catalog_version + 1))
    with DataDirectory.open(path, None, BANK + view.format("brought")) as directory:
        assert directory.withdraw_schema() == ["brought"]
    with DataDirectory.open(path) as directory:
        assert directory.schema.numbers == {"accounts": 0, "made": 1}


# -- procedures


def test_changed_procedures_count_the_catalog_version_up(tmp_path: Path, procedures: Path) -> None:
    versions = []
    for source in ("# é: the first\n", "# é: the first\n", "# the second\n", "# the third\n"):
        procedures.write_text(source)
        with DataDirectory.open(tmp_path / "d", 2, BANK, procedures) as directory:
            versions.append(directory.catalog_version)
            assert directory.procedures.source == source
    assert versions == [1, 1, 2, 3]
    assert read_procedures(tmp_path / "d").catalog_version == 3


def test_new_procedures_after_a_change_of_the_schema_are_past_both(tmp_path: Path, procedures: Path) -> None:
    with DataDirectory.open(tmp_path / "d", 2, BANK, procedures):
        pass
    changed_by(tmp_path / "d", "CREATE TABLE more (id INT PRIMARY KEY)", 7)
    procedures.write_text("# the second\n")
    with DataDirectory.open(tmp_path / "d", None, None, procedures) as directory:
        assert (directory.catalog_version, directory.procedures.source) == (8, "# the second\n")


def test_written_procedures_are_there_after_a_start(tmp_path: Path) -> None:
    with DataDirectory.open(tmp_path / "d", 2, BANK) as directory:
        assert directory.procedures.source == ""
        directory.write_procedures(7, "/somewhere/p.py", "pass")
        assert directory.catalog_version == 7
        with pytest.raises(ClusterError, match="catalog version 7 is not past the stored one, 7"):
            directory.write_procedures(7, "/somewhere/p.py", "other")
        with pytest.raises(ClusterError, match="larger than 4194304 bytes"):
            directory.write_procedures(8, "/somewhere/p.py", "#" * (4 << 20) + "#")
    with DataDirectory.open(tmp_path / "d") as directory:
        stored = directory.procedures
        assert (stored.catalog_version, stored.path, stored.source) == (7, "/somewhere/p.py", "pass")


def test_procedures_that_cannot_be_written_leave_the_stored_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with DataDirectory.open(tmp_path / "d", 2, BANK) as directory:
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", no_space)
            with pytest.raises(ClusterError, match=r"procedures.json: No space left on device"):
                directory.write_procedures(2, "/p.py", "pass")
        assert directory.catalog_version == read_procedures(directory.path).catalog_version == 1
        directory.write_procedures(2, "/p.py", "pass")
        assert read_procedures(directory.path).source == "pass"


def test_a_schema_that_is_in_place_and_not_flushed_passes_for_neither_the_old_nor_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def broken(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(5, "Input/output error")
        real(descriptor)

    with DataDirectory.open(tmp_path / "d", 2, BANK) as directory:
        schema = replace(directory.schema, catalog_version=2)
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", broken)
            with pytest.raises(Unflushed, match=r"schema.json is new, and could not be flushed: Input/output error"):
                directory.write_schema(schema)
        assert directory.schema.catalog_version == 0
        assert read_schema(directory.path) == schema  # a partition that started now would have it: nobody may go on
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", broken)
        with pytest.raises(ClusterError, match="Input/output error"):  # it may still not be on disk
            DataDirectory.open(tmp_path / "d")
    with DataDirectory.open(tmp_path / "d") as directory:
        assert directory.schema == schema


def test_procedure_file_that_is_no_text_or_too_large_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "p.py"
    file.write_bytes(b"x = '\xff'")
    with pytest.raises(ClusterError, match="is not UTF-8 text, at byte 5"):
        read_source(file)
    file.write_bytes(b"#" * ((4 << 20) + 1))
    with pytest.raises(ClusterError, match="larger than 4194304 bytes"):
        read_source(file)
    with pytest.raises(ClusterError, match="its path is not UTF-8 text"):
        read_source(os.fsdecode(bytes(tmp_path) + b"/\xff.py"))
    file.write_bytes(b"\xef\xbb\xbfpass")
    assert read_source(file) == (str(file), "pass")


# -- the lock


def test_second_opener_is_told_who_holds_the_directory(tmp_path: Path) -> None:
    with (
        DataDirectory.open(tmp_path / "d", 2, BANK),
        pytest.raises(ClusterError, match=rf"data directory .*/d is in use by process {os.getpid()}$"),
    ):
        DataDirectory.open(tmp_path / "d")
    DataDirectory.open(tmp_path / "d").close()


def test_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    program = (
        "import sys, time\nfrom voltpy.data_directory import DataDirectory\n"
        f"directory = DataDirectory.open({str(tmp_path / 'd')!r}, 2, {BANK!r})\n"
        "print('open', flush=True)\ntime.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"open\n"
        with pytest.raises(ClusterError, match=f"in use by process {holder.pid}$"):
            DataDirectory.open(tmp_path / "d")
        holder.send_signal(signal.SIGKILL)
    with DataDirectory.open(tmp_path / "d") as directory:
        assert directory.partitions == 2
        assert (tmp_path / "d" / "LOCK").read_text() == f"{os.getpid()}\n"


def test_child_that_outlives_the_holder_does_not_keep_the_lock(tmp_path: Path) -> None:
    program = (
        "import subprocess, sys\nfrom voltpy.data_directory import DataDirectory\n"
        f"directory = DataDirectory.open({str(tmp_path / 'd')!r}, 2, {BANK!r})\n"
        "child = \"print('child', flush=True); sys.stdin.read()\"\n"
        "subprocess.run([sys.executable, '-c', 'import sys;' + child], close_fds=False)\n"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"child\n"
        holder.kill()
        holder.wait()
        DataDirectory.open(tmp_path / "d").close()  # the child lives until its input ends, below
        assert holder.stdin is not None
        holder.stdin.close()
        assert holder.stdout.read() == b""


def test_closing_twice_is_closing_once(tmp_path: Path) -> None:
    directory = DataDirectory.open(tmp_path / "d", 2, BANK)
    directory.close()
    directory.close()
    DataDirectory.open(tmp_path / "d").close()


# -- damage


@pytest.mark.parametrize("name", ["cluster.json", "schema.json", "procedures.json"])
@pytest.mark.parametrize(
    "data", [b"", b"{", b"[1]", b"null", b"\xff", b'{"version": "1"}', b'{"version": 0}', b"[" * 99_999]
)
def test_damaged_file_is_named(tmp_path: Path, name: str, data: bytes) -> None:
    path = made(tmp_path / "d")
    (path / name).write_bytes(data)
    with pytest.raises(Corruption, match=rf"/d/{name} is damaged"):
        DataDirectory.open(path)
    (path / name).write_bytes(data)
    with pytest.raises(Corruption, match=rf"/d/{name} is damaged"):
        DataDirectory.open(path, 2, BANK)


@pytest.mark.parametrize(("name", "ours"), [("cluster.json", 1), ("schema.json", 2), ("procedures.json", 1)])
def test_file_of_a_newer_version_is_refused(tmp_path: Path, name: str, ours: int) -> None:
    path = made(tmp_path / "d")
    (path / name).write_bytes(b'{"version": %d, "new": {"things": []}}' % (ours + 1))
    words = rf"/d/{name} has version {ours + 1}; this program reads up to {ours}: use a newer voltpy"
    with pytest.raises(ClusterError, match=words):
        DataDirectory.open(path)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("partitions", 0, "damaged: 0 partitions"),
        ("partitions", 10**9, "damaged: 1000000000 partitions"),
        ("partitions", 3, "partition-2 is missing: cluster.json says 3"),
        ("partitions", 1, "partition-1 is one too many: cluster.json says 1"),
        ("partitions", "2", "damaged"),
        ("cluster_id", "../../x", "damaged: cluster id '../../x'"),
    ],
)
def test_damaged_cluster_file_is_refused(tmp_path: Path, field: str, value: Any, words: str) -> None:
    path = made(tmp_path / "d", 2)
    stored = json.loads((path / "cluster.json").read_bytes())
    (path / "cluster.json").write_text(json.dumps({**stored, field: value}))
    with pytest.raises(Corruption, match=words):
        DataDirectory.open(path)


@pytest.mark.parametrize("name", ["schema.json", "procedures.json"])
def test_missing_file_is_named(tmp_path: Path, name: str) -> None:
    path = made(tmp_path / "d")
    (path / name).unlink()
    with pytest.raises(Corruption, match=rf"/d/{name}: No such file"):
        DataDirectory.open(path, 2, BANK)


def test_missing_partition_directory_is_named(tmp_path: Path) -> None:
    path = made(tmp_path / "d")
    (path / "partition-1").rmdir()
    with pytest.raises(Corruption, match=r"/d/partition-1 is missing: cluster.json says 2"):
        DataDirectory.open(path)


def test_cluster_file_lost_beside_a_decision_log_is_not_made_anew(tmp_path: Path) -> None:
    path = made(tmp_path / "d")
    coordinator_directory(path).mkdir()
    assert DataDirectory.open(path).close() is None
    (path / "cluster.json").unlink()
    with pytest.raises(Corruption, match=r"cluster.json is missing, and .*/d/coordinator is there"):
        DataDirectory.open(path, 2, BANK)


def test_cluster_file_lost_beside_data_is_not_made_anew(tmp_path: Path) -> None:
    path = made(tmp_path / "d")
    (path / "partition-1" / "wal-1").write_bytes(b"data")
    (path / "cluster.json").unlink()
    with pytest.raises(Corruption, match=r"cluster.json is missing, and .*/partition-1 holds data"):
        DataDirectory.open(path, 2, BANK)
    assert (path / "partition-1" / "wal-1").read_bytes() == b"data"
    with pytest.raises(ClusterError, match=r"has no cluster.json: making a cluster takes a schema"):
        DataDirectory.open(path)


def test_every_bit_of_the_cluster_file_flipped_is_read_or_refused(tmp_path: Path) -> None:
    path = made(tmp_path / "d", 2)
    good = (path / "cluster.json").read_bytes()
    for bit in range(len(good) * 8):
        flipped = bytearray(good)
        flipped[bit // 8] ^= 1 << bit % 8
        overwrite(path / "cluster.json", flipped)
        message = ""
        try:
            with DataDirectory.open(path) as directory:
                partitions = directory.partitions
        except (Corruption, ClusterError) as error:
            message = str(error)
        assert "cluster.json" in message if message else partitions == 2


# -- crashes


class _Crash(BaseException):
    """Stands for the end of the process: nothing catches it."""


STEPS = ("mkdir", "rmdir", "open", "fsync", "rename", "ftruncate", "pwrite")


def crashing(monkeypatch: pytest.MonkeyPatch, step: int, *, after: bool) -> list[str]:
    """Makes the step-th system call that changes something the last one: done (`after`) or not. Returns the calls."""
    calls: list[str] = []

    def patch(name: str) -> None:
        real = getattr(os, name)

        def call(*arguments: Any, **options: Any) -> Any:
            if len(calls) > step:
                raise _Crash
            calls.append(name)
            if len(calls) > step and not after:
                raise _Crash
            result = real(*arguments, **options)
            if len(calls) > step:
                if name == "open":
                    os.close(result)
                raise _Crash
            return result

        monkeypatch.setattr(os, name, call)

    for name in STEPS:
        patch(name)
    return calls


@pytest.mark.parametrize("after", [False, True])
def test_creation_that_crashed_at_any_step_starts_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, procedures: Path, after: bool
) -> None:
    finished = False
    steps = 0
    while not finished:
        path = tmp_path / f"d{steps}"
        with monkeypatch.context() as patched:
            calls = crashing(patched, steps, after=after)
            try:
                DataDirectory.open(path, 3, BANK, procedures).close()
                finished = True
            except _Crash:
                steps += 1
        assert finished or calls, "a crash is a crash at a call"
        complete = (path / "cluster.json").exists()
        # Another number of partitions is fine as long as the directory was not complete.
        with DataDirectory.open(path, 3 if complete else 2, BANK, procedures) as directory:
            assert directory.partitions == (3 if complete else 2)
            assert directory.procedures.source == procedures.read_text()
        with DataDirectory.open(path) as directory:
            assert (directory.schema_sql, directory.catalog_version) == (BANK, 1)
    assert steps > 15


@pytest.mark.parametrize("after", [False, True])
def test_growth_that_crashed_at_any_step_is_old_or_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, procedures: Path, after: bool
) -> None:
    first = tmp_path / "first"
    DataDirectory.open(first, 1, BANK, procedures).close()
    procedures.write_text("# new\n")
    finished = False
    steps = 0
    while not finished:
        path = tmp_path / f"d{steps}"
        shutil.copytree(first, path)
        with monkeypatch.context() as patched:
            crashing(patched, steps, after=after)
            try:
                DataDirectory.open(path, None, GROWN, procedures).close()
                finished = True
            except _Crash:
                steps += 1
        with DataDirectory.open(path) as directory:
            assert len(directory.schema.tables) in (1, 2)
            stored = directory.procedures
            assert (stored.catalog_version, stored.source) in ((1, "# é: the first\n"), (2, "# new\n"))
        with DataDirectory.open(path, None, GROWN, procedures) as directory:
            assert len(directory.schema.tables) == 2
            assert (directory.catalog_version, directory.procedures.source) == (2, "# new\n")
    assert steps > 8


@pytest.mark.parametrize(
    "left", ["cluster.json.new", "schema.json.new", "procedures.json.new", "schema.sql", "schema.json"]
)
def test_half_written_files_of_a_crashed_creation_are_written_anew(tmp_path: Path, left: str) -> None:
    path = tmp_path / "d"
    path.mkdir()
    (path / "LOCK").touch()
    (path / "partition-0").mkdir()
    (path / left).write_bytes(b'{"ver')
    with DataDirectory.open(path, 2, BANK) as directory:
        assert directory.partitions == 2
    assert not list(path.glob("*.new"))


def test_files_are_small_enough_to_be_read_again(tmp_path: Path) -> None:
    many = ", ".join(f"c{n} INT" for n in range(1000))
    text = "".join(f"CREATE TABLE t{n} ({many});\n" for n in range(30))
    made(tmp_path / "d", 1, text)
    with DataDirectory.open(tmp_path / "d") as directory:
        assert len(directory.schema.tables) == 30
        directory.write_procedures(2, "/p.py", "\x01" * data_directory.MAX_SOURCE_BYTES)
    with DataDirectory.open(tmp_path / "d") as directory:
        assert directory.procedures.source == "\x01" * data_directory.MAX_SOURCE_BYTES
