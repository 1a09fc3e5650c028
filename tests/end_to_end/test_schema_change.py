"""The schema of a running cluster changes, while calls run and processes die."""

from __future__ import annotations

import asyncio
import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import voltpy
from tests.campaigns.cluster import COORDINATOR, SUPERVISOR, Cluster, happened
from tests.end_to_end.test_start_stop import Running, eventually
from voltpy import dbapi
from voltpy.client import Client, connect
from voltpy.errors import (
    ConstraintViolation,
    DuplicateKey,
    Error,
    Indeterminate,
    SchemaError,
    SqlError,
    Unavailable,
)
from voltpy.snapshot_taking import take

SCHEMA = """
CREATE TABLE t (id INT PRIMARY KEY, a INT NOT NULL);
PARTITION TABLE t ON COLUMN id;
CREATE TABLE copied (k INT PRIMARY KEY, v STRING);
"""
PROCEDURES = """
from voltpy import procedure


@procedure(partition_by="id")
def put(tx, id: int, a: int) -> None:
    if tx.t.get(id) is None:
        tx.t.insert(id=id, a=a)
    else:
        tx.t.update(id, a=a)


@procedure(partition_by=("x", "y"))
def swap(tx, x: int, y: int) -> None:
    a, b = tx.t.get(x).a, tx.t.get(y).a
    tx.t.update(x, a=b)
    tx.t.update(y, a=a)


@procedure(partition_by="id")
def counted(tx, id: int, table: str) -> int:
    return getattr(tx, table).count()
"""
ROWS = 3000


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("ddl") / "cluster", SCHEMA, PROCEDURES) as cluster:
        cluster.start()
        with connect(cluster.url) as db:
            db.call_many("put", [(key, key % 50) for key in range(ROWS)])
        yield cluster


@pytest.fixture(scope="module")
def db(cluster: Cluster) -> Iterator[Client]:
    with connect(cluster.url, timeout=30) as db:
        yield db


class Traffic:
    """Threads that write rows of `t`, in one partition and across them. What fails is in `failures`."""

    def __init__(self, url: str) -> None:
        self.failures: list[Exception] = []
        self.calls = 0
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(url, seed)) for seed in range(2)]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, url: str, seed: int) -> None:
        rng = random.Random(seed)
        with connect(url, timeout=30, retry_s=30) as db:
            while not self._stop.is_set():
                try:
                    db.call_many("put", [(rng.randrange(ROWS), rng.randrange(50)) for _ in range(50)])
                    db.call("swap", rng.randrange(ROWS), rng.randrange(ROWS))
                    db.execute("SELECT COUNT(*) FROM t WHERE a = ?", (rng.randrange(50),))
                except (SchemaError, SqlError, Unavailable, Indeterminate) as error:
                    self.failures.append(error)
                self.calls += 1


def explained(db: Client, sql: str) -> str:
    return "\n".join(row[0] for row in db.execute(f"EXPLAIN {sql}"))


def catalog(db: Client) -> tuple[Any, ...]:
    """What all three tables of the catalog say, but for counts."""
    return (
        db.execute("SELECT table_name, column_count, view_of FROM db_tables ORDER BY table_id").rows,
        db.execute("SELECT table_name, column_name, is_indexed FROM db_columns ORDER BY table_id, column_idx").rows,
        db.execute("SELECT index_name, columns FROM db_indexes ORDER BY index_name").rows,
    )


def test_index_is_built_while_calls_run_and_is_used_from_then_on(cluster: Cluster, db: Client) -> None:
    sql = "SELECT id FROM t WHERE a = 7 ORDER BY id"
    assert "t_a" not in explained(db, sql)
    with Traffic(cluster.url) as traffic:
        eventually(lambda: traffic.calls > 3)
        assert db.execute("CREATE INDEX t_a ON t (a)").kind == "create index"
        begun = traffic.calls
        eventually(lambda: traffic.calls > begun + 3)
    assert traffic.failures == []
    assert "t_a" in explained(db, sql)
    rows = db.execute("SELECT id, a FROM t").rows
    assert db.execute(sql).rows == sorted((key,) for key, a in rows if a == 7)
    assert db.execute("DROP INDEX t_a").kind == "drop index"
    assert "t_a" not in explained(db, sql)


def test_view_is_made_while_calls_run_and_is_used_from_then_on(cluster: Cluster, db: Client) -> None:
    view = "CREATE VIEW by_a AS SELECT a, COUNT(*) AS n, SUM(id) AS total, MAX(id) AS most FROM t GROUP BY a"
    with Traffic(cluster.url) as traffic:
        eventually(lambda: traffic.calls > 3)
        assert db.execute(view).kind == "create view"
        begun = traffic.calls
        eventually(lambda: traffic.calls > begun + 3)
    assert traffic.failures == []
    grouped = "SELECT a, COUNT(*) AS n, SUM(id) AS total, MAX(id) AS most FROM t GROUP BY a ORDER BY a"
    assert db.execute("SELECT * FROM by_a ORDER BY a").rows == db.execute(grouped).rows
    assert sum(db.call("counted", key, "by_a") for key in (1, 2)) == 100
    assert ("by_a", 4, "t") in catalog(db)[0]
    assert db.execute(view.replace("VIEW", "VIEW IF NOT EXISTS")).kind == "create view"
    for sql, words in (
        (view, "view by_a exists already"),
        ("DROP TABLE t", "view by_a is over t"),
        ("DROP TABLE by_a", "by_a is a view, and goes with DROP VIEW"),
        ("CREATE TABLE by_a (id INT)", "view by_a exists already"),
    ):
        with pytest.raises(SchemaError, match=words):
            db.execute(sql)
    assert db.execute("DROP VIEW by_a").kind == "drop view"
    with pytest.raises(SqlError, match="there is no table by_a"):
        db.execute("SELECT * FROM by_a")


class NotAllowed(NamedTuple):
    """A change that the rows of a table don't allow until they are `mended`. Once it is made it refuses statements."""

    table: str
    rows: str
    change: str
    error: type[Error]
    words: str
    mended: str
    refused: tuple[str, ...]
    refusal: str
    left: tuple[str, list[tuple[int, ...]]]  # a query, its answer
    dropped: str


VIEW = NotAllowed(
    table="CREATE TABLE sums (id INT PRIMARY KEY, part INT NOT NULL, n INT); PARTITION TABLE sums ON COLUMN id",
    rows=f"INSERT INTO sums VALUES (0, 1, {1 << 62}), (8, 1, 1), (1, 1, {1 << 62}), (9, 1, 1)",
    change="CREATE VIEW s AS SELECT part, SUM(n) AS n FROM sums GROUP BY part",
    error=ConstraintViolation,
    words=r"view s, column n: a sum of .*; the limit in a view is",
    mended="UPDATE sums SET n = n + 5; DELETE FROM sums WHERE n > 9",
    refused=("UPDATE sums SET n = 9223372036854775807",),
    refusal="view s",
    left=("SELECT * FROM s", [(1, 12)]),
    dropped="DROP VIEW s; DROP TABLE sums",
)
UNIQUE_INDEX = NotAllowed(
    table="CREATE TABLE pairs (part INT NOT NULL, n INT NOT NULL, PRIMARY KEY (part, n), label STRING);"
    "PARTITION TABLE pairs ON COLUMN part",
    rows="INSERT INTO pairs VALUES (1, 1, 'a'), (1, 2, 'b'), (2, 1, 'a'), (3, 1, 'c'), (3, 2, 'c')",
    change="CREATE UNIQUE INDEX labels ON pairs (part, label)",
    error=DuplicateKey,
    words=r"table pairs: a row with part, label = \(3, 'c'\) exists",
    mended="INSERT INTO pairs VALUES (1, 3, 'a'); DELETE FROM pairs WHERE n > 1",
    refused=(
        "INSERT INTO pairs VALUES (1, 3, 'a')",
        # by the coordinator
        "INSERT INTO pairs VALUES (4, 1, 'z'), (5, 1, 'z'), (6, 1, 'z'), (7, 1, 'z'), (2, 2, 'a')",
    ),
    refusal="index labels",
    left=("SELECT COUNT(*) FROM pairs", [(3,)]),
    dropped="DROP TABLE pairs",
)


@pytest.mark.parametrize("case", [VIEW, UNIQUE_INDEX], ids=["view", "unique index"])
def test_change_that_rows_do_not_allow_fails_and_leaves_nothing(db: Client, case: NotAllowed) -> None:
    db.execute(case.table)
    db.execute(case.rows)
    before = catalog(db)
    with pytest.raises(case.error, match=case.words):
        db.execute(case.change)
    assert catalog(db) == before
    for sql in case.mended.split("; "):  # of which nothing refuses the first
        db.execute(sql)
    db.execute(case.change)
    for sql in case.refused:
        with pytest.raises(case.error, match=case.refusal):
            db.execute(sql)
    query, answer = case.left
    assert db.execute(query).rows == answer
    db.execute(case.dropped)


def test_tables_come_and_go_for_every_client(cluster: Cluster, db: Client) -> None:
    with connect(cluster.url) as other:
        with pytest.raises(SqlError, match="there is no table fresh"):
            other.execute("SELECT * FROM fresh")
        db.execute("CREATE TABLE fresh (id INT PRIMARY KEY, x FLOAT); PARTITION TABLE fresh ON COLUMN id;")
        other.execute("INSERT INTO fresh VALUES (1, 0.5), (2, 1.5), (3, 2.5)")
        assert other.execute("SELECT SUM(x) FROM fresh").rows == [(4.5,)]
        assert sum(other.call("counted", key, "fresh") for key in (1, 3)) in (2, 3, 4)
        db.execute("DROP TABLE fresh")
        with pytest.raises(SchemaError, match="there is no table fresh: it was dropped"):
            other.call("counted", 1, "fresh")
        with pytest.raises(SqlError, match="there is no table fresh"):
            other.execute("SELECT * FROM fresh")
        other.execute("CREATE TABLE fresh (name STRING PRIMARY KEY)")  # another one, copied
        other.execute("INSERT INTO fresh VALUES ('a')")
        assert db.execute("SELECT * FROM fresh").rows == [("a",)]
        other.execute("DROP TABLE fresh")


def test_table_that_a_procedure_names_is_not_dropped(db: Client) -> None:
    with pytest.raises(SchemaError, match=r"loaded do not fit the new schema: .*procedure put: there is no table t"):
        db.execute("DROP TABLE t")
    assert db.execute("SELECT COUNT(*) FROM t").rows == [(ROWS,)]


def test_added_column_has_its_default_in_old_rows_and_calls_go_on(cluster: Cluster, db: Client) -> None:
    db.execute("INSERT INTO copied VALUES (1, 'old')")
    with Traffic(cluster.url) as traffic:
        eventually(lambda: traffic.calls > 3)
        db.execute("ALTER TABLE t ADD COLUMN note STRING DEFAULT 'none', ADD COLUMN n INT")
        db.execute("ALTER TABLE copied ADD w INT NOT NULL DEFAULT 5")
        begun = traffic.calls
        eventually(lambda: traffic.calls > begun + 3)
    assert traffic.failures == []
    assert db.execute("SELECT note, n, COUNT(*) FROM t GROUP BY note, n").rows == [("none", None, ROWS)]
    db.execute("UPDATE t SET note = 'new', n = 1 WHERE id = 5")
    assert db.execute("SELECT id, note, n FROM t WHERE id IN (5, 6) ORDER BY id").rows == [
        (5, "new", 1),
        (6, "none", None),
    ]
    db.execute("INSERT INTO copied VALUES (2, 'new', 6)")
    assert db.execute("SELECT * FROM copied ORDER BY k").rows == [(1, "old", 5), (2, "new", 6)]
    db.execute("DELETE FROM copied")


def test_copied_table_with_rows_is_not_partitioned_and_an_empty_one_is(db: Client) -> None:
    db.execute("CREATE TABLE later (id INT PRIMARY KEY)")
    db.execute("INSERT INTO later VALUES (1)")
    with pytest.raises(SchemaError, match="PARTITION TABLE is for empty tables"):
        db.execute("PARTITION TABLE later ON COLUMN id")
    db.execute("DELETE FROM later")
    db.execute("PARTITION TABLE later ON COLUMN id")
    db.execute("INSERT INTO later VALUES (1), (2), (3), (4)")
    assert db.execute("SELECT COUNT(*) FROM later").rows == [(4,)]
    db.execute("DROP TABLE later")


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        ("CREATE TABLE t (id INT PRIMARY KEY)", "table t exists already"),
        ("ALTER TABLE t ADD q INT NOT NULL", "nullable, or has a DEFAULT"),
        ("DROP INDEX nothing", "the name of an index"),
        ("CREATE INDEX i ON nothing (x)", 'found "nothing"'),
        ("ALTER TABLE t DROP COLUMN a", "expected ADD"),
    ],
)
def test_statement_that_makes_no_schema_is_refused_with_its_place(db: Client, sql: str, words: str) -> None:
    with pytest.raises(SchemaError, match=words) as raised:
        db.execute(sql)
    assert str(raised.value).startswith("line 1, column ")
    with pytest.raises(SqlError, match="has no parameters"):
        db.execute(sql, (1,))


def test_other_clients_change_the_schema_too(cluster: Cluster) -> None:
    async def by_asyncio() -> list[tuple[Any, ...]]:
        async with await voltpy.connect_async(cluster.url) as db:
            await db.execute("CREATE TABLE IF NOT EXISTS loops (id INT PRIMARY KEY)")
            await db.execute("INSERT INTO loops VALUES (3)")
            return (await db.execute("SELECT * FROM loops")).rows

    assert asyncio.run(by_asyncio()) == [(3,)]
    with dbapi.connect(cluster.url) as connection:
        cursor = connection.cursor()
        cursor.execute("ALTER TABLE loops ADD b BOOL DEFAULT TRUE")
        assert (cursor.description, cursor.rowcount) == (None, -1)
        assert cursor.execute("SELECT * FROM loops").fetchall() == [(3, True)]
        cursor.execute("DROP TABLE loops")


def test_change_waits_for_a_process_that_is_being_started(cluster: Cluster, db: Client) -> None:
    for process in ("partition-0", COORDINATOR):
        mark = cluster.mark()
        cluster.kill(process)
        cluster.wait(happened("exited", process), mark)
        db.execute("CREATE TABLE meanwhile (id INT PRIMARY KEY)")
        db.execute("DROP TABLE meanwhile")


def test_many_clients_change_the_schema_at_once_and_all_of_it_happens(cluster: Cluster, db: Client) -> None:
    def make(number: int) -> None:
        with connect(cluster.url, timeout=30) as own:
            own.execute(f"CREATE TABLE many{number} (id INT PRIMARY KEY)")

    threads = [threading.Thread(target=make, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    names = [name for (name,) in db.execute("SELECT table_name FROM db_tables WHERE table_name LIKE 'many%'")]
    assert sorted(names) == [f"many{number}" for number in range(4)]
    db.execute("; ".join(f"DROP TABLE many{number}" for number in range(4)))


def test_snapshot_carries_what_statements_have_changed(cluster: Cluster, db: Client, tmp_path: Path) -> None:
    db.execute("CREATE TABLE kept (id INT PRIMARY KEY); PARTITION TABLE kept ON COLUMN id; CREATE TABLE gone (id INT)")
    db.execute("INSERT INTO kept VALUES (1), (2), (3)")
    db.execute("INSERT INTO gone VALUES (1)")
    db.execute("ALTER TABLE kept ADD s STRING DEFAULT 'd'")
    db.execute("CREATE VIEW counts AS SELECT s, COUNT(*) AS n FROM kept GROUP BY s")
    db.execute("DROP TABLE gone")
    before = catalog(db)
    take(db, tmp_path / "snapshot", progress=lambda what, done, total: None)
    again = Running(tmp_path / "data", "--restore", str(tmp_path / "snapshot"))
    try:
        assert "is whole" in again.run("snapshot", "--verify", str(tmp_path / "snapshot")).stdout
        assert catalog(again.db) == before
        assert again.db.execute("SELECT * FROM kept ORDER BY id").rows == [(1, "d"), (2, "d"), (3, "d")]
        assert again.db.execute("SELECT * FROM counts").rows == [("d", 3)]
        again.db.execute("DROP VIEW counts; DROP TABLE kept; CREATE TABLE gone (id INT PRIMARY KEY)")
    finally:
        assert again.end() == 0
    db.execute("DROP VIEW counts; DROP TABLE kept")


# Who dies where, and whether the change has happened then.
CRASHES = [
    ("partition-1", "schema_change.view_built", False),  # and the index before it
    (COORDINATOR, "coordinator.load.prepared", False),
    (SUPERVISOR, "supervisor.persist.after", True),
    ("partition-0", "schema_change.switched", True),
    (COORDINATOR, "coordinator.load.switched", True),
]


@pytest.mark.parametrize(("process", "point", "happens"), CRASHES)
def test_crash_in_the_middle_leaves_the_old_schema_or_the_new_one_everywhere(
    cluster: Cluster, process: str, point: str, happens: bool
) -> None:
    """Then the other one can be had by the same statements."""
    text = """
        CREATE INDEX crash ON t (a);
        ALTER TABLE copied ADD crash INT DEFAULT 3;
        CREATE TABLE crashed (id INT PRIMARY KEY);
        CREATE VIEW crashes AS SELECT a, COUNT(*) AS n, MIN(id) AS least FROM t GROUP BY a;
    """
    crashes = "SELECT a, COUNT(*), MIN(id) FROM t GROUP BY a ORDER BY a"
    with connect(cluster.url, timeout=30) as before:
        before.execute("INSERT INTO copied (k, v) VALUES (1, 'a')")
    # The next life of the process is the one that dies: it begins now.
    cluster.arm(process, point)
    if process == SUPERVISOR:
        cluster.end()
        cluster.start()
    else:
        cluster.kill(process)
        eventually(lambda: not cluster.is_armed(process))
        serving(cluster)
    with connect(cluster.url, timeout=30, retry_s=30) as db:
        try:
            db.execute(text)
            answered = True
        except (Unavailable, Indeterminate):
            answered = False
        if process == SUPERVISOR:
            assert cluster.wait_end() == -signal.SIGKILL
            cluster.end_survivors()
    if process == SUPERVISOR:
        cluster.start()
    else:
        serving(cluster)
        assert answered == happens
    with connect(cluster.url, timeout=30, retry_s=30) as db:
        if not happens:
            assert not {("crashed", 1, None), ("crashes", 3, "t")} & set(catalog(db)[0])
            assert "crash" not in explained(db, "SELECT id FROM t WHERE a = 7")
            db.execute("SELECT k, v FROM copied")
            db.execute(text)
        assert {("crashed", 1, None), ("crashes", 3, "t")} <= set(catalog(db)[0])
        assert db.execute("SELECT * FROM crashes ORDER BY a").rows == db.execute(crashes).rows
        assert "crash" in explained(db, "SELECT id FROM t WHERE a = 7")
        rows = db.execute("SELECT id, a FROM t").rows
        assert db.execute("SELECT id FROM t WHERE a = 7 ORDER BY id").rows == sorted((k,) for k, a in rows if a == 7)
        assert db.execute("SELECT crash FROM copied").rows == [(3,)]
        db.execute("INSERT INTO crashed VALUES (1)")
        db.call_many("put", [(key, key % 50) for key in range(100)])
        assert db.execute("SELECT * FROM crashes ORDER BY a").rows == db.execute(crashes).rows
        db.execute(
            "DROP TABLE crashed; DROP INDEX crash; DROP VIEW crashes; DROP TABLE copied; "
            "CREATE TABLE copied (k INT PRIMARY KEY, v STRING)"
        )


def serving(cluster: Cluster) -> None:
    """Every process of the cluster serves."""

    def all_serve() -> bool:
        try:
            with connect(cluster.url) as db:
                status = db.status()
        except Error:
            return False
        return all(each["state"] == "serving" for each in (*status["partitions"], status["coordinator"]))

    eventually(all_serve)
