"""`voltpy snapshot`, `voltpy start --restore` and `voltpy snapshot --verify`: real processes throughout."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.end_to_end.test_start_stop import LIMIT_S, Running, eventually, voltpy
from voltpy.client import connect
from voltpy.errors import ClusterError
from voltpy.hash_slot import hash_slot, slot_owners
from voltpy.snapshot_taking import take

PARTITIONS = 2
SCHEMA = """
CREATE TABLE counters (id INT PRIMARY KEY, value INT NOT NULL, text STRING);
PARTITION TABLE counters ON COLUMN id;
CREATE TABLE entries (id INT, number INT, PRIMARY KEY (id, number));
PARTITION TABLE entries ON COLUMN id;
"""
# One counter a worker; an entry for each of its values: those that are there are 1, 2, … up to the counter, or a
# transaction was torn apart.
PROCEDURES = """
from voltpy import procedure


@procedure(partition_by="worker")
def count(tx, worker: int) -> int:
    row = tx.counters.get(worker)
    value = 1 if row is None else row.value + 1
    tx.counters.upsert(id=worker, value=value, text="x" * (value * 7 % 900))
    tx.entries.insert(id=worker, number=value)
    return value


@procedure(partition_by="worker", read_only=True)
def value_of(tx, worker: int) -> list:
    row = tx.counters.get(worker)
    value = 0 if row is None else row.value
    later = [n for n in range(value + 1, value + 50) if tx.entries.get((worker, n)) is not None]
    missing = [n for n in range(1, value + 1) if tx.entries.get((worker, n)) is None]
    return [value, missing, later]
"""


BANK_SCHEMA = """
CREATE TABLE accounts (id INT PRIMARY KEY, balance INT NOT NULL, steps INT NOT NULL);
PARTITION TABLE accounts ON COLUMN id;
"""
BANK_PROCEDURES = """
from voltpy import procedure


@procedure(partition_by="account")
def open_account(tx, account: int) -> None:
    tx.accounts.insert(id=account, balance=1000, steps=0)


@procedure(partition_by=("source", "target"))
def transfer(tx, source: int, target: int) -> None:
    payer, payee = tx.accounts.get(source), tx.accounts.get(target)
    tx.accounts.update(source, balance=payer.balance - 1, steps=payer.steps + 1)
    tx.accounts.update(target, balance=payee.balance + 1, steps=payee.steps + 1)


@procedure(partition_by="account", read_only=True)
def steps(tx, account: int) -> int:
    return tx.accounts.get(account).steps
"""


def workers_of(partition: int, count: int = 4) -> list[int]:
    owners = slot_owners(PARTITIONS)
    return [worker for worker in range(1, 200) if owners[hash_slot(worker)] == partition][:count]


WORKERS = [worker for partition in range(PARTITIONS) for worker in workers_of(partition)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    directory = tmp_path_factory.mktemp("files")
    (directory / "counters.sql").write_text(SCHEMA)
    (directory / "counters.py").write_text(PROCEDURES)
    return ("--schema", str(directory / "counters.sql"), "--procedures", str(directory / "counters.py"))


@pytest.fixture(scope="module")
def cluster(files: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = Running(tmp_path_factory.mktemp("cluster") / "data", "--partitions", str(PARTITIONS), *files)
    yield running
    assert running.end() == 0


class Load:
    """Workers that count, in a thread; `acknowledged` has the last value that each was told."""

    def __init__(self, url: str) -> None:
        self.acknowledged = dict.fromkeys(WORKERS, 0)
        self._stop = threading.Event()
        self._url = url
        self._executor = ThreadPoolExecutor(1)

    def __enter__(self) -> Load:
        self._counting = self._executor.submit(self._run)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._counting.result(LIMIT_S)
        self._executor.shutdown()

    def _run(self) -> None:
        with connect(self._url, timeout=30.0, retry_s=30.0) as db:
            while not self._stop.is_set():
                for worker, value in zip(WORKERS, db.call_many("count", [(w,) for w in WORKERS]), strict=True):
                    self.acknowledged[worker] = value

    def has_grown_by(self, calls: int) -> None:
        before = sum(self.acknowledged.values())
        eventually(lambda: self._counting.done() or sum(self.acknowledged.values()) >= before + calls)


class Snapshot:
    """`voltpy snapshot` as a process of its own."""

    def __init__(self, url: str, directory: Path, *options: str, **environment: str) -> None:
        self.directory = directory
        command = [sys.executable, "-m", "voltpy.cli", "snapshot", str(directory), "--url", url, *options]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
            start_new_session=True,
        )

    def copies(self) -> None:
        """Waits until it is copying."""
        eventually(lambda: (self.directory / "partition-0").exists() or self.process.poll() is not None)
        assert self.process.poll() is None, self.process.communicate()

    def ended(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=LIMIT_S)
        return self.process.returncode, out, err


def held(cluster: Running) -> list[bool]:
    return [partition["metrics"]["checkpoint_held"] for partition in cluster.db.status()["partitions"]]


def makes_checkpoints(cluster: Running, directory: Path) -> None:
    """Another snapshot can be made, at once or as soon as the last lease is over; nothing is held afterwards."""

    def made() -> bool:
        try:
            take(cluster.db, directory, progress=lambda what, done, total: None)
        except ClusterError as error:
            if "is under way" not in str(error):
                raise
            return False
        return True

    eventually(made)
    eventually(lambda: held(cluster) == [False, False])


def restored(snapshot: Path, data: Path, *options: str) -> Running:
    return Running(data, "--restore", str(snapshot), *options)


def test_a_snapshot_under_load_holds_a_prefix_with_all_that_was_acknowledged_before(
    cluster: Running, tmp_path: Path
) -> None:
    with Load(cluster.url) as load:
        load.has_grown_by(200)
        before = dict(load.acknowledged)
        report = cluster.json("snapshot", str(tmp_path / "snapshot"), "--rate", "2M", "--json")
        after = dict(load.acknowledged)
        load.has_grown_by(100)
    assert [partition["partition"] for partition in report["partitions"]] == [0, 1]
    assert all(partition["lsn"] > 0 for partition in report["partitions"])
    verified = cluster.run("snapshot", "--verify", str(tmp_path / "snapshot"))
    assert "is whole: 2 partitions" in verified.stdout
    again = restored(tmp_path / "snapshot", tmp_path / "data")
    try:
        values = {}
        for worker in WORKERS:
            value, missing, later = again.db.call("value_of", worker)
            assert (missing, later) == ([], [])
            # What came after the snapshot had ended can't be in it; one call each may have run, and not been answered.
            assert before[worker] <= value <= after[worker] + 1
            values[worker] = value
        assert any(values[worker] < load.acknowledged[worker] for worker in WORKERS), "nothing was written meanwhile"
        counted = {worker: again.db.call("count", worker) for worker in WORKERS}
        assert counted == {worker: value + 1 for worker, value in values.items()}
        status = again.db.status()
        assert [p["incarnation"] for p in status["partitions"]] == [p["epoch"] + 1 for p in report["partitions"]]
        assert status["cluster_id"] != cluster.db.status()["cluster_id"]
        os.kill(again.db.status()["partitions"][0]["pid"], signal.SIGKILL)
        assert {worker: again.db.call("value_of", worker)[0] for worker in WORKERS} == counted
    finally:
        assert again.end() == 0


def test_a_snapshot_amid_transfers_between_partitions_holds_all_the_money(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (tmp_path / "bank.sql").write_text(BANK_SCHEMA)
    (tmp_path / "bank.py").write_text(BANK_PROCEDURES)
    files = ("--schema", str(tmp_path / "bank.sql"), "--procedures", str(tmp_path / "bank.py"))
    pairs = list(zip(workers_of(0), workers_of(1), strict=True))
    keys = [key for pair in pairs for key in pair]
    cluster = Running(tmp_path_factory.mktemp("bank") / "data", "--partitions", str(PARTITIONS), *files)
    cluster.db.call_many("open_account", [(key,) for key in keys])
    stop, moved = threading.Event(), [0]

    def transfers() -> None:
        with connect(cluster.url, timeout=30.0, retry_s=30.0) as db:
            while not stop.is_set():
                db.call_many("transfer", [pair if moved[0] % 3 else pair[::-1] for pair in pairs])
                moved[0] += 1

    with ThreadPoolExecutor(1) as executor:
        transferring = executor.submit(transfers)
        try:
            snapshots = []
            for number in range(2):
                wanted = moved[0] + 3
                eventually(lambda wanted=wanted: transferring.done() or moved[0] > wanted)
                snapshots.append(tmp_path / f"snapshot-{number}")
                cluster.run("snapshot", str(snapshots[-1]))
        finally:
            stop.set()
        transferring.result(LIMIT_S)
    assert cluster.end() == 0
    seen = []
    for number, snapshot in enumerate(snapshots):
        again = restored(snapshot, tmp_path / f"again-{number}")
        balances = dict(again.db.execute("SELECT id, balance FROM accounts").rows)
        assert sum(balances.values()) == 1000 * len(keys)
        assert [again.db.call("steps", key) for key, _ in pairs] == [again.db.call("steps", key) for _, key in pairs]
        seen.append(balances)
        assert again.end() == 0
    assert seen[0] != seen[1]  # they were taken amid it


def test_a_second_snapshot_is_refused_while_one_is_made_and_ctrl_c_leaves_nothing(
    cluster: Running, tmp_path: Path
) -> None:
    first = Snapshot(cluster.url, tmp_path / "first", "--rate", "100")
    first.copies()
    refused = cluster.run("snapshot", str(tmp_path / "second"), status=1)
    assert f"a snapshot into {tmp_path / 'first'} is under way (process {first.process.pid})" in refused.stderr
    assert not (tmp_path / "second").exists()
    again = cluster.run("snapshot", str(tmp_path / "first"), status=1)
    assert "holds an unfinished snapshot" in again.stderr
    eventually(lambda: held(cluster) == [True, True])
    first.process.send_signal(signal.SIGINT)
    status, _, said = first.ended()
    assert (status, said.splitlines()[-1]) == (130, "voltpy: interrupted")
    assert not (tmp_path / "first").exists()
    makes_checkpoints(cluster, tmp_path / "third")


def test_a_snapshot_that_is_killed_lets_go_when_its_lease_is_over_and_passes_for_no_snapshot(
    cluster: Running, tmp_path: Path
) -> None:
    killed = Snapshot(cluster.url, tmp_path / "killed", "--rate", "100", "--lease", "1")
    killed.copies()
    eventually(lambda: held(cluster) == [True, True])
    killed.process.kill()
    assert killed.ended()[0] == -signal.SIGKILL
    makes_checkpoints(cluster, tmp_path / "next")
    verify = cluster.run("snapshot", "--verify", str(tmp_path / "killed"), status=3)
    assert "manifest.json was never written, or is gone" in verify.stdout
    start = voltpy("start", "--restore", str(tmp_path / "killed"), "--data", str(tmp_path / "data"))
    assert start.returncode == 1
    assert "is an unfinished snapshot" in start.stderr
    assert not (tmp_path / "data").exists()


def test_a_partition_that_dies_ends_the_snapshot_and_not_the_cluster(cluster: Running, tmp_path: Path) -> None:
    snapshot = Snapshot(cluster.url, tmp_path / "snapshot", "--rate", "1K")
    snapshot.copies()
    os.kill(cluster.db.status()["partitions"][1]["pid"], signal.SIGKILL)
    status, _, said = snapshot.ended()
    assert status == 1
    assert "no snapshot was made: partition 1 died" in said
    assert f"what there was of it in {tmp_path / 'snapshot'} has been removed" in said
    assert not (tmp_path / "snapshot").exists()
    eventually(lambda: all(p["state"] == "serving" for p in cluster.db.status()["partitions"]))
    makes_checkpoints(cluster, tmp_path / "next")


@pytest.mark.parametrize(
    "point", ["snapshot.claimed", "snapshot.held", "copier.pages.copied", "copier.partition.copied", "snapshot.copied",
              "snapshot.released", "snapshot.complete"]
)  # fmt: skip
def test_a_crash_at_any_step_leaves_a_whole_snapshot_or_none(cluster: Running, tmp_path: Path, point: str) -> None:
    cluster.db.call_many("count", [(worker,) for worker in WORKERS])  # there are pages to copy
    of_copier = point.startswith("copier.")
    # What is killed holds the checkpoints until its lease is over; the copier's parent lets go of them at once.
    lease = "30" if of_copier else "0.5"
    crashed = Snapshot(cluster.url, tmp_path / "crashed", "--lease", lease, VOLTPY_CRASH_POINT=point)
    status, _, said = crashed.ended()
    if of_copier:  # the other process, and this one cleans up after it
        assert status == 1
        assert f"no snapshot was made: crash point {point}" in said
        assert not (tmp_path / "crashed").exists()
    else:
        assert status == -signal.SIGKILL
        whole = point == "snapshot.complete"
        cluster.run("snapshot", "--verify", str(tmp_path / "crashed"), status=0 if whole else 3)
    makes_checkpoints(cluster, tmp_path / "next")


def test_a_full_disk_ends_the_snapshot_and_leaves_nothing(cluster: Running, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(small)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False).returncode:
        pytest.skip("mounting a small file system takes root")
    with Load(cluster.url) as load:
        load.has_grown_by(100)
    try:
        refused = cluster.run("snapshot", str(small / "snapshot"), status=1)
        assert "No space left on device" in refused.stderr
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", "-l", small], check=True)
    makes_checkpoints(cluster, tmp_path / "next")


def test_places_that_no_snapshot_can_take_are_refused_before_anything_is_held(cluster: Running, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    before = cluster.errors.read_text().count("snapshot_begun")
    for directory, why in (
        (tmp_path / "full", r"is not empty, it holds 'mine\.txt'"),
        (cluster.data / "snapshot", "is in the data directory itself"),
        (Path("/proc/snapshot"), "No such file or directory"),
    ):
        with pytest.raises(ClusterError, match=why):
            take(cluster.db, directory, progress=lambda what, done, total: None)
    cluster.run("snapshot", str(tmp_path / "new"), "--rate", "0", status=2)
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine"
    assert cluster.errors.read_text().count("snapshot_begun") == before


def test_verify_names_file_and_offset_of_damage(cluster: Running, tmp_path: Path) -> None:
    take(cluster.db, tmp_path / "snapshot", progress=lambda what, done, total: None)
    pages = tmp_path / "snapshot" / "partition-1" / "pages"
    data = bytearray(pages.read_bytes())
    place = next(place for place in range(len(data) // 8192) if any(data[place * 8192 : (place + 1) * 8192]))
    data[place * 8192 + 8000] ^= 1
    pages.write_bytes(data)
    report = cluster.json("snapshot", "--verify", str(tmp_path / "snapshot"), "--json", status=3)
    (damage,) = report["damage"]
    assert report["whole"] is False
    assert (damage["kind"], damage["file"], damage["offset"]) == ("page", str(pages), place * 8192)
    told = cluster.run("snapshot", "--verify", str(tmp_path / "snapshot"), status=3)
    assert f"page: {pages} offset {place * 8192}: the page's checksum is wrong" in told.stdout


def test_a_restore_takes_new_tables_and_refuses_other_partitions_and_directories_in_use(
    cluster: Running, files: tuple[str, ...], tmp_path: Path
) -> None:
    take(cluster.db, tmp_path / "snapshot", progress=lambda what, done, total: None)
    (tmp_path / "more.sql").write_text(SCHEMA + "CREATE TABLE more (id INT PRIMARY KEY);")

    def refused(*options: str) -> str:
        return voltpy("start", "--restore", str(tmp_path / "snapshot"), "--port", "0", *options).stderr

    data = str(tmp_path / "data")
    assert "has 2 partitions, not 3" in refused("--data", data, "--partitions", "3")
    assert not (tmp_path / "data").exists()
    again = restored(tmp_path / "snapshot", tmp_path / "data", "--schema", str(tmp_path / "more.sql"))
    try:
        tables = {table["name"] for table in again.db.status()["schema"]["tables"]}
        assert tables == {"counters", "entries", "more"}
        assert again.db.call("value_of", WORKERS[0])[1:] == [[], []]
    finally:
        assert again.end() == 0
    lines = [line for line in again.errors.read_text().splitlines() if '"event": "restored"' in line]
    assert json.loads(lines[0])["partitions"] == PARTITIONS
