"""`voltpy start` and what a user does to a running cluster from the command line: real processes throughout."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

from voltpy.client import Client, connect
from voltpy.errors import Aborted, Unavailable
from voltpy.hash_slot import hash_slot, slot_owners
from voltpy.messages import NEVER_SENT, PROTOCOL_VERSION, CallGroup, Calls, Hello, Message, Replies, Welcome
from voltpy.wire import decode, encode, joined

LIMIT_S = 60.0

SCHEMA = """
CREATE TABLE accounts (id INT PRIMARY KEY, owner STRING NOT NULL, opened TIMESTAMP, balance INT NOT NULL DEFAULT 0);
PARTITION TABLE accounts ON COLUMN id;
CREATE TABLE branches (code STRING PRIMARY KEY, name STRING);
"""

PROCEDURES = '''
from datetime import datetime

from voltpy import procedure


@procedure(partition_by="account")
def open_account(tx, account: int, owner: str, opened: datetime | None = None) -> None:
    """Opens an account."""
    tx.accounts.insert(id=account, owner=owner, opened=opened)


@procedure(partition_by=("account", "other"))
def open_pair(tx, account: int, other: int) -> None:
    for number in (account, other):
        tx.accounts.insert(id=number, owner="Ola")


@procedure(partition_by="account")
def deposit(tx, account: int, amount: int) -> int:
    row = tx.accounts.get(account)
    if row is None:
        tx.abort("no such account")
    return tx.accounts.update(account, balance=row.balance + amount).balance


@procedure(partition_by="account")
def spin(tx, account: int) -> None:
    while True:
        pass


@procedure(partition_by=None, read_only=True, everywhere=True)
def totals(tx) -> list:
    rows = list(tx.accounts.scan())
    return [len(rows), sum(row.balance for row in rows), tx.branches.count()]
'''


class Running:
    """A cluster started by `voltpy start`."""

    def __init__(self, data: Path, *options: str) -> None:
        self.data = data
        self.errors = data.with_name(data.name + ".stderr")
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "voltpy.cli", "start", "--data", str(data), "--port", "0", *options],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        assert self.process.stdout is not None
        self.ready_line = self.process.stdout.readline()
        assert self.ready_line.startswith("voltpy is ready at voltpy://127.0.0.1:"), self.errors.read_text()
        self.url = self.ready_line.split()[4]
        self.db = connect(self.url, timeout=30.0, retry_s=30.0)

    def run(self, *arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        done = voltpy(*arguments, VOLTPY_URL=self.url)
        assert done.returncode == status, (done.stdout, done.stderr, self.errors.read_text())
        return done

    def json(self, *arguments: str, status: int = 0) -> Any:
        return json.loads(self.run(*arguments, status=status).stdout)

    def end(self, signal_number: int = signal.SIGTERM) -> int:
        self.db.close()
        self.process.send_signal(signal_number)
        return self.process.wait(LIMIT_S)


def voltpy(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "voltpy.cli", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=LIMIT_S, env={**os.environ, **environment}, check=False
    )


def eventually(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError("it did not happen in time")


def written(directory: Path) -> tuple[str, ...]:
    (directory / "bank.sql").write_text(SCHEMA)
    (directory / "bank.py").write_text(PROCEDURES)
    return ("--schema", str(directory / "bank.sql"), "--procedures", str(directory / "bank.py"))


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, ...]:
    return written(tmp_path)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """For tests that leave a cluster as it was, but for accounts of their own."""
    directory = tmp_path_factory.mktemp("shared")
    running = Running(directory / "data", "--partitions", "2", *written(directory))
    yield running
    assert running.end() == 0
    assert running.process.stdout is not None
    running.process.stdout.close()


@pytest.fixture
def start(tmp_path: Path, files: tuple[str, ...]) -> Iterator[Callable[..., Running]]:
    started: list[Running] = []

    def begin(*options: str) -> Running:
        started.append(Running(tmp_path / "data", *(options or ("--partitions", "2", *files))))
        return started[-1]

    yield begin
    for running in started:
        running.db.close()
        running.process.kill()
        running.process.wait()
        assert running.process.stdout is not None
        running.process.stdout.close()


def test_a_cluster_keeps_its_data_over_a_stop_and_needs_nothing_to_start_again(
    start: Callable[..., Running], tmp_path: Path
) -> None:
    running = start()
    assert running.ready_line.endswith(f"(2 partitions, fsync always, data {tmp_path / 'data'})\n")
    assert running.run("call", "open_account", "42", "Kari", "2013-01-01").stdout == "null\n"
    assert running.json("call", "deposit", "42", "100") == 100
    refused = running.run("call", "deposit", "43", "1", status=1)
    assert refused.stderr == "voltpy: Aborted: no such account\n"
    assert running.end(signal.SIGINT) == 0
    assert running.process.stdout is not None
    assert running.process.stdout.read() == ""
    again = start("--fsync", "everysec")
    assert "(2 partitions, fsync everysec," in again.ready_line
    assert again.json("call", "--json", "deposit", "42", "-30") == 70
    assert sum(total[1] for total in again.db.call_everywhere("totals")) == 70
    assert "has stopped" in again.run("stop").stdout
    assert again.process.wait(LIMIT_S) == 0


@pytest.mark.parametrize("options", ["", "?affinity=off"])
def test_of_every_call_at_a_stop_it_is_known_whether_it_ran(options: str, start: Callable[..., Running]) -> None:
    running = start()
    futures: list[Future[None]] = []
    over = threading.Event()

    def flood(db: Client) -> None:
        while not over.is_set():
            account = 3 * len(futures)
            futures.append(db.submit("open_account", account, "Kari"))
            futures.append(db.submit("open_pair", account + 1, account + 2))

    with connect(running.url + options, timeout=30.0) as db:
        flooding = threading.Thread(target=flood, args=(db,), daemon=True)
        flooding.start()
        eventually(lambda: len(futures) > 1000)
        assert running.end() == 0
        over.set()
        flooding.join()
        errors = [future.exception() for future in futures]
    assert {type(error) for error in errors} == {type(None), Unavailable}, Counter(map(repr, errors))
    opened = sum(1 + index % 2 for index, error in enumerate(errors) if error is None)
    again = start("--fsync", "never")
    assert sum(total[0] for total in again.db.call_everywhere("totals")) == opened


def test_starts_that_do_not_fit_the_data_directory_are_refused(
    start: Callable[..., Running], tmp_path: Path, files: tuple[str, ...]
) -> None:
    running = start()
    data = str(tmp_path / "data")
    second = voltpy("start", "--data", data, "--port", "0")
    assert (second.returncode, second.stdout) == (1, "")
    assert f"in use by process {running.process.pid}" in second.stderr
    assert running.db.call_everywhere("totals") == [[0, 0, 0], [0, 0, 0]]  # the first one never noticed
    port = running.url.rpartition(":")[2]
    other = voltpy("start", "--data", str(tmp_path / "other"), "--partitions", "1", *files, "--port", port)
    assert (other.returncode, other.stderr) == (
        1,
        f"voltpy: ClusterError: port {port} of 127.0.0.1 is in use: is another cluster running there? "
        "Choose --port N, or 0\n",
    )
    assert not (tmp_path / "other").exists()
    assert running.end() == 0
    counted = voltpy("start", "--data", data, "--port", "0", "--partitions", "3")
    assert counted.returncode == 1
    assert "has 2 partitions, not 3" in counted.stderr
    (tmp_path / "other.sql").write_text("CREATE TABLE accounts (id INT PRIMARY KEY);")
    changed = voltpy("start", "--data", data, "--port", "0", "--schema", str(tmp_path / "other.sql"))
    assert changed.returncode == 1
    assert "SchemaError" in changed.stderr


def test_a_unique_index_that_the_rows_do_not_satisfy_is_refused_and_the_stored_schema_goes_on(
    start: Callable[..., Running], files: tuple[str, ...], tmp_path: Path
) -> None:
    cluster = start("--partitions", "2", *files)
    names = {number: "Kari" if number < 8 else f"owner {number}" for number in range(16)}
    cluster.db.call_many("open_account", list(names.items()))
    cluster.db.execute("INSERT INTO branches (code, name) VALUES ('a', 'Oslo')")
    cluster.db.execute("INSERT INTO branches (code, name) VALUES ('b', 'Oslo')")
    assert cluster.end() == 0

    wrong = tmp_path / "wrong.sql"
    wrong.write_text(SCHEMA + "CREATE UNIQUE INDEX names ON branches (name);")
    sound = tmp_path / "sound.sql"
    sound.write_text(SCHEMA + "CREATE UNIQUE INDEX owners ON accounts (id, owner);")
    data = ("--data", str(tmp_path / "data"), "--port", "0")
    done = voltpy("start", *data, "--schema", str(wrong))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert "partition 0: table branches: a row with " in done.stderr
    assert "'Oslo' exists, and index names is unique" in done.stderr
    assert "a start without --schema goes on with the stored one" in done.stderr

    cluster = start()
    assert cluster.db.execute("SELECT COUNT(*) FROM accounts").rows == [(16,)]
    cluster.process.kill()  # what the next trial reads is in the WAL, too
    cluster.process.wait()
    assert voltpy("start", *data, "--schema", str(wrong)).returncode == 1
    cluster = start("--schema", str(sound))  # and the former text would do, too
    assert cluster.db.execute("SELECT index_name FROM db_indexes WHERE table_name = 'branches'").rows == []
    assert sorted(cluster.db.execute("SELECT id, owner FROM accounts").rows) == sorted(names.items())


def test_a_view_that_the_rows_do_not_allow_is_withdrawn_with_the_start_that_brought_it(
    start: Callable[..., Running], tmp_path: Path
) -> None:
    (tmp_path / "s.sql").write_text(SCHEMA)
    running = start("--partitions", "1", "--schema", str(tmp_path / "s.sql"))
    running.db.execute("INSERT INTO accounts (id, owner, balance) VALUES (1, 'Kari', 0)")
    assert running.end() == 0
    view = "CREATE VIEW v AS SELECT 1 / balance AS share, COUNT(*) AS n FROM accounts GROUP BY 1 / balance;"
    (tmp_path / "v.sql").write_text(SCHEMA + view)
    refused = voltpy("start", "--data", str(tmp_path / "data"), "--port", "0", "--schema", str(tmp_path / "v.sql"))
    assert refused.returncode == 1
    assert "partition 0 can't start: division by zero; withdrawn from the schema: v" in refused.stderr
    running = start("--fsync", "always")
    running.db.execute("UPDATE accounts SET balance = 1")
    assert running.end() == 0
    assert start("--schema", str(tmp_path / "v.sql")).db.execute("SELECT * FROM v").rows == [(1, 1)]


def test_procedures_that_cannot_be_loaded_end_the_first_start_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "s.sql").write_text(SCHEMA)
    (tmp_path / "p.py").write_text(PROCEDURES.replace('partition_by="account"', 'partition_by="nobody"'))
    data = str(tmp_path / "data")
    files = ("--schema", str(tmp_path / "s.sql"), "--procedures", str(tmp_path / "p.py"))
    failed = voltpy("start", "--data", data, "--partitions", "2", "--port", "0", *files)
    assert (failed.returncode, failed.stdout) == (1, "")
    last = failed.stderr.splitlines()[-1]
    assert last.startswith("voltpy: SchemaError: ")
    assert "nobody" in last
    assert not (tmp_path / "data").exists()
    (tmp_path / "p.py").write_text(PROCEDURES)
    running = Running(tmp_path / "data", *files)
    assert running.end() == 0


def test_whatever_is_killed_comes_back_with_everything_that_was_answered(start: Callable[..., Running]) -> None:
    running = start()
    db = running.db
    for account in range(20):
        db.call("open_account", account, "x")
    status = running.db.status()
    victims = [p["pid"] for p in status["partitions"]]
    for victim in victims:
        os.kill(victim, signal.SIGKILL)
        assert [db.call("deposit", account, 1) for account in range(20)]
    os.kill(status["router"]["pid"], signal.SIGKILL)
    assert [db.call("deposit", account, 1) for account in range(20)] == [3] * 20
    with pytest.raises(Aborted):
        db.call("deposit", 99, 1)
    after = eventually(lambda: _status_when_all_serve(running))
    assert [p["incarnation"] for p in after["partitions"]] == [2, 2]
    assert [p["restarts"] for p in after["partitions"]] == [1, 1]
    assert after["router"]["restarts"] == 1
    assert sum(total[1] for total in running.json("call", "totals")) == 60
    assert running.end() == 0


def _status_when_all_serve(running: Running) -> dict[str, Any] | None:
    try:
        with connect(running.url) as db:
            status = db.status()
    except Unavailable:  # the router is not back yet
        return None
    return status if all(p["state"] == "serving" for p in status["partitions"]) else None


def test_the_children_die_with_their_supervisor_and_the_next_start_recovers(start: Callable[..., Running]) -> None:
    running = start()
    running.db.call("open_account", 1, "Kari")
    status = running.db.status()
    pids = [child["pid"] for child in (status["router"], status["coordinator"], *status["partitions"])]
    running.process.kill()
    running.process.wait()
    eventually(lambda: not any(Path(f"/proc/{pid}/statm").exists() and _runs(pid) for pid in pids))
    again = start()
    assert not Path(status["runtime_directory"]).exists()
    assert again.db.call("deposit", 1, 5) == 5
    assert again.end() == 0


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_new_procedures_are_loaded_while_the_cluster_runs(start: Callable[..., Running], tmp_path: Path) -> None:
    running = start()
    running.db.call("open_account", 1, "Kari")
    listed = running.run("procedures").stdout
    assert "deposit(account: int, amount: int)" in listed
    assert "voltpy." not in listed
    (tmp_path / "next.py").write_text(PROCEDURES.replace("row.balance + amount", "row.balance + 2 * amount"))
    assert (
        "version 2: deposit, open_account, open_pair, spin, totals"
        in running.run("procedures", "load", str(tmp_path / "next.py")).stdout
    )
    assert running.db.call("deposit", 1, 10) == 20
    fewer = PROCEDURES.replace("+ amount", "+ 2 * amount").partition("@procedure(partition_by=None")[0]
    (tmp_path / "next.py").write_text(fewer)
    assert running.run("procedures", "load", str(tmp_path / "next.py")).stdout.splitlines() == [
        "loaded 4 procedures, version 3: deposit, open_account, open_pair, spin",
        f"gone, since they are not in {tmp_path / 'next.py'}: totals",
    ]
    (tmp_path / "bad.py").write_text("from voltpy import procedure\n@procedure(partition_by='x')\ndef f(tx): ...\n")
    refused = running.run("procedures", "load", str(tmp_path / "bad.py"), status=1)
    assert refused.stderr.startswith("voltpy: SchemaError: ")
    assert running.db.call("deposit", 1, 10) == 40
    assert running.end() == 0
    again = start("--fsync", "never")
    assert again.db.call("deposit", 1, 1) == 42


def test_a_module_beside_the_procedures_that_is_gone_is_named_with_the_remedy(
    start: Callable[..., Running], files: tuple[str, ...], tmp_path: Path
) -> None:
    there, moved = tmp_path / "there", tmp_path / "moved"
    there.mkdir()
    (there / "bank_rates.py").write_text("FACTOR = 3\n")
    doubled = PROCEDURES.replace("row.balance + amount", "row.balance + bank_rates.FACTOR * amount")
    (there / "bank.py").write_text("import bank_rates\n" + doubled)
    running = start("--partitions", "1", *files[:2], "--procedures", str(there / "bank.py"))
    events = [json.loads(line) for line in running.errors.read_text().splitlines()]
    assert [event["modules"] for event in events if event["event"] == "modules_not_stored"] == [["bank_rates"]]
    loaded = running.run("procedures", "load", str(there / "bank.py"))
    assert "bank_rates: imported from beside" in loaded.stderr
    assert running.end() == 0
    there.rename(moved)
    failed = voltpy("start", "--data", str(tmp_path / "data"), "--port", "0")
    last = failed.stderr.splitlines()[-1]
    assert (failed.returncode, failed.stdout) == (1, "")
    assert "ModuleNotFoundError: No module named 'bank_rates'" in last
    assert f"it was looked for in {there}. Where the file has moved, start with --procedures FILE" in last
    running = start("--procedures", str(moved / "bank.py"))
    running.db.call("open_account", 1, "Kari")
    assert running.db.call("deposit", 1, 10) == 30


def test_a_procedure_that_never_ends_costs_its_caller_and_nobody_else(
    start: Callable[..., Running], files: tuple[str, ...]
) -> None:
    running = start("--partitions", "2", "--procedure-timeout", "0.5", *files)
    running.db.call("open_account", 1, "Kari")
    ended = running.run("call", "spin", "1", status=1)
    assert ended.stderr.startswith("voltpy: ProcedureTimeout: spin ran longer than ")
    assert " and was ended, at bank.py:" in ended.stderr
    assert eventually(lambda: running.db.call("deposit", 1, 5)) == 5


@pytest.mark.parametrize("as_json", [False, True])
def test_a_watched_status_is_a_line_each_time_until_its_reader_leaves(as_json: bool, shared: Running) -> None:
    command = [sys.executable, "-m", "voltpy.cli", "status", "--url", shared.url, "--watch", *["--json"] * as_json]
    endings = ("reader", "Ctrl-C")
    watches = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in endings]
    for ending, watch in zip(endings, watches, strict=True):
        assert watch.stdout is not None
        assert watch.stderr is not None
        for line in (watch.stdout.readline(), watch.stdout.readline()):
            if as_json:
                assert [partition["state"] for partition in json.loads(line)["partitions"]] == ["serving"] * 2
            else:
                assert "router serving, coordinator serving, 2 of 2 partitions serving, 0 restarts, " in line
        if ending == "reader":
            watch.stdout.close()
        else:
            watch.send_signal(signal.SIGINT)
        assert (watch.wait(LIMIT_S), watch.stderr.read()) == (0, "")
        watch.stderr.close()
        watch.stdout.close()


def test_a_watch_goes_on_while_the_router_is_started_again(start: Callable[..., Running]) -> None:
    running = start()
    pid = running.db.status()["router"]["pid"]
    command = [sys.executable, "-m", "voltpy.cli", "status", "--url", running.url, "--watch", "--json"]
    watch = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert watch.stdout is not None
    assert json.loads(watch.stdout.readline())["router"]["restarts"] == 0
    os.kill(pid, signal.SIGKILL)
    while "router" not in (said := json.loads(watch.stdout.readline())) or said["router"]["restarts"] == 0:
        assert watch.poll() is None
    watch.stdout.close()
    assert watch.wait(LIMIT_S) == 0


def test_calls_that_their_retry_overtook_do_not_fill_the_router(shared: Running) -> None:
    shared.db.call("open_account", 1, "Kari")
    context = zmq.Context()
    dealer: zmq.Socket[bytes] = context.socket(zmq.DEALER)
    dealer.linger, dealer.rcvtimeo = 0, round(LIMIT_S * 1000)
    dealer.connect(shared.url.replace("voltpy", "tcp"))

    def ask(message: Message) -> Message:
        dealer.send(encode(message))
        return decode(dealer.recv())

    welcome = ask(Hello(PROTOCOL_VERSION, 99))
    assert isinstance(welcome, Welcome)
    assert welcome.topology is not None
    partition = slot_owners(2)[hash_slot(1)]
    args = msgspec.msgpack.encode([1, 5])

    def deposits(numbers: list[int], floor: int = NEVER_SENT) -> Calls:
        slots = [hash_slot(1)] * len(numbers)
        group = CallGroup(99, "deposit", partition, 0, numbers, slots, joined([args] * len(numbers)), floor)
        return Calls(welcome.topology.catalog_version, [group])

    numbers = list(range(1, 101))
    answered = 0
    dealer.send(encode(deposits(numbers, 0)))
    while answered < 100:
        replies = decode(dealer.recv())
        assert isinstance(replies, Replies)
        answered += sum(len(group.numbers) for group in replies.groups)
    replies = ask(deposits([*numbers, 101]))
    assert isinstance(replies, Replies)
    assert [group.numbers for group in replies.groups] == [[101]]
    eventually(lambda: shared.db.status()["router"]["metrics"]["calls_in_flight"] == 0)
    assert shared.db.call("deposit", 1, 0) == 505
    context.destroy(linger=0)


def test_a_file_is_loaded_by_the_types_of_its_table(start: Callable[..., Running], tmp_path: Path) -> None:
    running = start()
    rows = [f"{number},owner {number},2013-01-{number % 28 + 1:02}T10:00:00Z,{number}" for number in range(1000)]
    rows[10] = "ten,wrong,,1"
    rows[20] = "20,NA,,1"
    (tmp_path / "accounts.csv").write_text("\n".join(["id,owner,opened,balance", *rows]) + "\n")
    accounts = ("load", "accounts", str(tmp_path / "accounts.csv"), "--null", "NA")
    first = running.json(*accounts, "--json", "--batch", "50", status=3)
    assert (first["rows_read"], first["loaded"], first["rejected"]) == (1000, 998, 2)
    rejected = (tmp_path / "accounts.csv.rejected.csv").read_text().splitlines()
    assert rejected == [
        "line,reason,id,owner,opened,balance",
        "12,id: 'ten' is not an INT,ten,wrong,,1",
        "22,owner: NULL ('NA') in a NOT NULL column,20,NA,,1",
    ]
    assert running.db.call("deposit", 7, 1) == 8
    twice = running.run(*accounts, status=3).stdout
    assert twice.startswith("accounts: 1,000 rows read, 0 loaded, 1,000 rejected")
    assert "DuplicateKey" in twice
    (tmp_path / "branches.csv").write_text("code;name\nO;Oslo\nB;\n")
    branches = ("load", "branches", str(tmp_path / "branches.csv"), "--delimiter", ";", "--json")
    assert running.json(*branches)["loaded"] == 2
    piped = subprocess.run(
        [sys.executable, "-m", "voltpy.cli", "load", "--url", running.url, "branches", "-"],
        input="code,name\nT,Tromsø\nO,Oslo\n", cwd=tmp_path,
        capture_output=True, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip
    assert piped.stdout.startswith("branches: 2 rows read, 1 loaded, 1 rejected")
    assert (piped.returncode, piped.stderr) == (3, "")
    assert "DuplicateKey" in (tmp_path / "branches.rejected.csv").read_text()
    totals = running.db.call_everywhere("totals")
    assert [total[2] for total in totals] == [3, 3]
    assert sum(total[0] for total in totals) == 998
    assert running.run("load", "nowhere", str(tmp_path / "branches.csv"), status=1).stderr == (
        "voltpy: SchemaError: there is no table nowhere\n"
    )


def test_a_load_that_is_interrupted_says_how_far_it_got(start: Callable[..., Running], tmp_path: Path) -> None:
    running = start()
    file = tmp_path / "accounts.csv"
    file.write_text("id,owner\n" + "".join(f"{number},owner\n" for number in range(300_000)))
    process = subprocess.Popen(
        [sys.executable, "-m", "voltpy.cli", "load", "--url", running.url, "--json", "accounts", str(file)],
        stdout=subprocess.PIPE,
        text=True,
    )
    eventually(lambda: sum(total[0] for total in running.db.call_everywhere("totals")))
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=LIMIT_S)
    summary = json.loads(output)
    assert (process.returncode, summary["interrupted"]) == (130, True)
    assert 0 < summary["loaded"] == summary["rows_read"] == summary["last_line"] - 1 < 300_000
    assert sum(total[0] for total in running.db.call_everywhere("totals")) == summary["loaded"]


def test_the_demo_loses_no_vote_and_leaves_nothing_behind(tmp_path: Path) -> None:
    done = voltpy("demo", "--seconds", "3", "--partitions", "2", "--json", TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["acknowledged"] == summary["counted"] > 0
    assert (summary["lost"], summary["counted_twice"], summary["unknown"]) == (0, 0, 0)
    assert summary["killed"]["back_after_s"] is not None
    assert summary["p99_ms"] >= summary["p50_ms"] > 0
    assert list(tmp_path.iterdir()) == []


def test_a_demo_that_is_interrupted_leaves_nothing_behind(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "voltpy.cli", "demo", "--seconds", "60", "--partitions", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert process.stdout is not None
    while "votes/s" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130
    assert errors.strip() == "voltpy: interrupted"
    assert list(tmp_path.iterdir()) == []
