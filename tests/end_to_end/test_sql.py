"""SQL statements, in a cluster of real processes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

import voltpy
from tests.campaigns.bank import COORDINATOR
from tests.campaigns.cluster import Cluster, happened
from tests.voltpy.fake_cluster import wait_until
from voltpy import dbapi
from voltpy.calls import MAX_CALL_BYTES
from voltpy.client import connect
from voltpy.errors import BadArguments, ConstraintViolation, DataError, DuplicateKey, SqlError, WrongPartition
from voltpy.hash_slot import hash_slot, slot_owners
from voltpy.result import Result

PARTITIONS = 2
OWNERS = slot_owners(PARTITIONS)
LEFT, RIGHT = ([key for key in range(100) if OWNERS[hash_slot(key)] == partition] for partition in range(2))

SCHEMA = """
CREATE TABLE accounts (id INT PRIMARY KEY, city STRING, balance INT NOT NULL DEFAULT 0);
PARTITION TABLE accounts ON COLUMN id;
CREATE TABLE payments (account INT NOT NULL, number INT NOT NULL, amount INT NOT NULL, PRIMARY KEY (account, number));
PARTITION TABLE payments ON COLUMN account;
CREATE TABLE cities (name STRING PRIMARY KEY, country STRING NOT NULL);
CREATE TABLE notes (author INT NOT NULL, text STRING);
PARTITION TABLE notes ON COLUMN author;
CREATE TABLE tickets (id INT PRIMARY KEY, title STRING NOT NULL);
PARTITION TABLE tickets ON COLUMN id;
"""

PROCEDURES = '''
from voltpy import procedure


@procedure(partition_by="account")
def pay(tx, account: int, amount: int) -> list:
    tx.execute("UPDATE accounts SET balance = balance + ? WHERE id = ?", (amount, account))
    return tx.execute("SELECT city, balance FROM accounts WHERE id = ?", (account,)).rows


@procedure(partition_by="account", read_only=True)
def balance_of(tx, account: int, other: int) -> list:
    return tx.execute("SELECT balance FROM accounts WHERE id = ?", (other,)).rows


@procedure(partition_by="account")
def misspelt(tx, account: int) -> list:
    return tx.execute("SELECT nothing FROM accounts").rows


@procedure(read_only=True, everywhere=True)
def counted_here(tx) -> int:
    return tx.execute("SELECT COUNT(*) FROM accounts").rows[0][0]


@procedure(read_only=True, everywhere=True)
def countries_here(tx) -> int:
    return tx.cities.count()


@procedure(everywhere=True)
def name_country(tx, name: str, country: str) -> int:
    return tx.execute("UPDATE cities SET country = ? WHERE name = ?", (country, name)).rowcount


@procedure(partition_by=("source", "target"))
def transfer(tx, source: int, target: int, amount: int) -> int:
    tx.execute("UPDATE accounts SET balance = balance - ? WHERE id = ?", (amount, source))
    tx.execute("UPDATE accounts SET balance = balance + ? WHERE id = ?", (amount, target))
    return tx.execute("SELECT SUM(balance) FROM accounts WHERE id IN (?, ?)", (source, target)).rows[0][0]


@procedure
def pay_all(tx, amount: int) -> int:
    """Sees its own changes."""
    tx.execute("UPDATE accounts SET balance = balance + ?", (amount,))
    return tx.execute("SELECT SUM(balance) FROM accounts").rows[0][0]


@procedure(partition_by=("source", "target"))
def plan_while_paying(tx, source: int, target: int) -> list:
    """Of a statement that this transaction would borrow rows for: those stay where they are."""
    tx.execute("UPDATE accounts SET balance = balance + 1 WHERE id = ?", (source,))
    return [line for (line,) in tx.execute("EXPLAIN SELECT id FROM accounts").rows]


@procedure(read_only=True)
def total_and_richest(tx) -> list:
    total = tx.execute("SELECT SUM(balance) FROM accounts").rows[0][0]
    return [total, tx.execute("SELECT id FROM accounts ORDER BY balance DESC, id LIMIT 1").rows[0][0]]


@procedure(partition_by="account")
def move_city(tx, account: int, city: str, country: str) -> None:
    """Writes a row that every partition has a copy of."""
    tx.execute("INSERT INTO cities VALUES (?, ?) ON CONFLICT DO NOTHING", (city, country))
    tx.execute("UPDATE accounts SET city = ? WHERE id = ?", (city, account))
'''

CITIES = [("Oslo", "Norway"), ("Bergen", "Norway"), ("Paris", "France")]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("sql") / "cluster", SCHEMA, PROCEDURES, partitions=PARTITIONS) as cluster:
        cluster.start()
        yield cluster


@pytest.fixture(scope="module")
def client(cluster: Cluster) -> Iterator[voltpy.Client]:
    with connect(cluster.url, timeout=30.0) as db:
        yield db


@pytest.fixture
def db(client: voltpy.Client) -> voltpy.Client:
    """Accounts 0 to 19 with balances of ten times their number, in Oslo and Bergen by turns."""
    for table in ("accounts", "payments", "cities", "notes", "tickets"):
        client.execute(f"DELETE FROM {table}")
    client.execute("INSERT INTO cities VALUES (?, ?), (?, ?), (?, ?)", [value for city in CITIES for value in city])
    rows = ", ".join(f"({number}, '{CITIES[number % 2][0]}', {10 * number})" for number in range(20))
    assert client.execute(f"INSERT INTO accounts VALUES {rows}").rowcount == 20
    return client


# Statements of one partition


def test_a_row_is_found_by_its_key_in_either_partition(db: voltpy.Client) -> None:
    for key in (LEFT[0], RIGHT[0]):
        result = db.execute("SELECT id, balance FROM accounts WHERE id = ?", (key,))
        assert (result.columns, result.rows, result.rowcount) == (["id", "balance"], [(key, 10 * key)], 1)
        assert (result.types, result.kind) == (["INT", "INT"], "select")
    assert db.execute("SELECT * FROM accounts WHERE id = ?", (None,)).rows == []
    assert db.execute("SELECT balance FROM accounts WHERE id = 3").rows == [(30,)]


def test_changes_by_key_say_how_many_they_were(db: voltpy.Client) -> None:
    assert db.execute("UPDATE accounts SET balance = 7 WHERE id = ?", (5,)).rowcount == 1
    assert db.execute("UPDATE accounts SET balance = 7 WHERE id = ?", (500,)).rowcount == 0
    returned = db.execute("DELETE FROM accounts WHERE id = ? RETURNING balance, city", (5,))
    assert (returned.rows, returned.rowcount, returned.kind) == ([(7, "Bergen")], 1, "delete")
    assert db.execute("SELECT 1 FROM accounts WHERE id = 5").rows == []


def test_keys_are_assigned_where_they_are_left_out(db: voltpy.Client) -> None:
    keys = {db.execute("INSERT INTO tickets (title) VALUES (?) RETURNING id", ("x",)).rows[0][0] for _ in range(8)}
    assert len(keys) == 8
    assert sorted(row[0] for row in db.execute("SELECT id FROM tickets").rows) == sorted(keys)
    for key in keys:
        assert db.execute("SELECT title FROM tickets WHERE id = ?", (key,)).rows == [("x",)]


# Statements of several


def test_aggregates_joins_and_orders_span_all_partitions(db: voltpy.Client) -> None:
    assert db.execute("SELECT COUNT(*), SUM(balance), MIN(id), AVG(balance) FROM accounts").rows == [(20, 1900, 0, 95)]
    by_country = "SELECT c.country, COUNT(*) FROM accounts a JOIN cities c ON c.name = a.city GROUP BY 1 ORDER BY 1"
    assert db.execute(by_country).rows == [("Norway", 20)]
    assert db.execute("SELECT id FROM accounts ORDER BY balance DESC LIMIT 3 OFFSET 1").rows == [(18,), (17,), (16,)]
    assert db.execute("SELECT id FROM accounts WHERE id IN (?, ?, ?) ORDER BY id", (LEFT[0], RIGHT[0], 77)).rows == [
        (key,) for key in sorted((LEFT[0], RIGHT[0]))
    ]
    above = "SELECT COUNT(*) FROM accounts WHERE balance > (SELECT AVG(balance) FROM accounts)"
    assert db.execute(above).rows == [(10,)]
    assert db.execute("SELECT city FROM accounts UNION SELECT name FROM cities ORDER BY 1").rows == [
        ("Bergen",), ("Oslo",), ("Paris",)
    ]  # fmt: skip


def test_an_answer_of_no_rows_has_its_aggregates(db: voltpy.Client) -> None:
    assert db.execute("SELECT COUNT(*), SUM(amount) FROM payments").rows == [(0, None)]


def test_changes_of_many_rows_span_all_partitions(db: voltpy.Client) -> None:
    assert db.execute("UPDATE accounts SET balance = balance + 1 WHERE city = 'Oslo'").rowcount == 10
    assert db.execute("SELECT SUM(balance) FROM accounts").rows == [(1910,)]
    gone = db.execute("DELETE FROM accounts WHERE balance >= 180 RETURNING id")
    assert (sorted(gone.rows), gone.rowcount) == ([(18,), (19,)], 2)
    moved = "INSERT INTO payments SELECT id, 1, balance FROM accounts WHERE id < 5"
    assert db.execute(moved).rowcount == 5
    assert db.execute("SELECT SUM(amount) FROM payments WHERE account IN (1, 2)").rows == [(31,)]


def test_an_insert_of_several_rows_is_whole_or_not_at_all(db: voltpy.Client) -> None:
    statement = "INSERT INTO accounts (id) VALUES (?), (?), (?)"
    with pytest.raises(DuplicateKey):
        db.execute(statement, (LEFT[-1], RIGHT[-1], 7))
    assert db.execute("SELECT COUNT(*) FROM accounts").rows == [(20,)]
    assert db.execute(statement, (LEFT[-1], RIGHT[-1], LEFT[-2])).rowcount == 3
    assert db.execute("SELECT COUNT(*) FROM accounts").rows == [(23,)]


def test_rows_without_a_key_are_found_and_changed(db: voltpy.Client) -> None:
    for author in (LEFT[0], RIGHT[0], RIGHT[0]):
        db.execute("INSERT INTO notes VALUES (?, 'draft')", (author,))
    assert db.execute("UPDATE notes SET text = 'final' WHERE text = 'draft'").rowcount == 3
    assert db.execute("SELECT author, COUNT(*) FROM notes WHERE text = 'final' GROUP BY author ORDER BY 2").rows == [
        (LEFT[0], 1), (RIGHT[0], 2)
    ]  # fmt: skip


def test_copies_are_read_anywhere_and_change_everywhere(db: voltpy.Client) -> None:
    assert db.execute("UPDATE cities SET country = 'Norge' WHERE country = 'Norway'").rowcount == 2
    for _ in range(4):  # each time another partition answers
        assert db.execute("SELECT country FROM cities WHERE name = 'Oslo'").rows == [("Norge",)]
    assert db.execute("SELECT COUNT(*) FROM cities").rows == [(3,)]


def test_an_async_client_executes_too(cluster: Cluster, db: voltpy.Client) -> None:
    async def run() -> list[list[tuple[object, ...]]]:
        async with voltpy.connect_async(cluster.url) as client:
            results = [client.execute("SELECT balance FROM accounts WHERE id = ?", (key,)) for key in (3, 4)]
            results.append(client.execute("SELECT SUM(balance) FROM accounts"))
            return [result.rows for result in await asyncio.gather(*results)]

    assert asyncio.run(run()) == [[(30,)], [(40,)], [(1900,)]]


# In procedures


def test_a_procedure_executes_where_it_runs(db: voltpy.Client) -> None:
    assert db.call("pay", 3, 5) == [["Bergen", 35]]
    assert db.call("balance_of", 3, 3) == [[35]]
    with pytest.raises(WrongPartition):
        db.call("balance_of", LEFT[0], RIGHT[-1])
    assert sum(db.call_everywhere("counted_here")) == 20
    assert db.call_everywhere("name_country", "Oslo", "Norge") == [1, 1]


def test_a_statement_that_is_wrong_is_the_error_of_its_call(db: voltpy.Client) -> None:
    for _ in range(2):
        with pytest.raises(SqlError, match=r"line 1, column 8.*nothing"):
            db.call("misspelt", LEFT[0])
    with pytest.raises(SqlError, match="line 2, column 8"):
        db.execute("SELECT 1\n  FROM nowhere")
    with pytest.raises(SqlError, match="1 parameters"):
        db.execute("SELECT ? + 1", (1, 2))
    with pytest.raises(DataError, match="zero"):
        db.execute("SELECT 1 / (balance - balance) FROM accounts")
    with pytest.raises(DataError, match="zero"):
        db.execute("SELECT 1 / (balance - balance) FROM accounts WHERE id = 1")


def test_a_procedure_executes_across_partitions(db: voltpy.Client) -> None:
    assert db.call("transfer", LEFT[1], RIGHT[1], 5) == 10 * (LEFT[1] + RIGHT[1])
    assert db.execute("SELECT balance FROM accounts WHERE id = ?", (RIGHT[1],)).rows == [(10 * RIGHT[1] + 5,)]
    assert db.call("pay_all", 1) == 1920
    assert db.call("total_and_richest") == [1920, 19]
    db.call("move_city", RIGHT[1], "Lyon", "France")
    assert db.execute("SELECT country FROM cities WHERE name = 'Lyon'").rows == [("France",)]
    assert db.execute("SELECT id FROM accounts WHERE city = 'Lyon'").rows == [(RIGHT[1],)]


# As transactions


def test_sums_never_see_half_of_a_transfer(cluster: Cluster, db: voltpy.Client) -> None:
    seed = 7
    print("seed", seed)
    done = threading.Event()
    failed: list[voltpy.Error] = []

    def transfer() -> None:
        random = Random(seed)
        try:
            with connect(cluster.url, timeout=30.0) as other:
                while not done.is_set():
                    other.call("transfer", random.choice(LEFT[:8]), random.choice(RIGHT[:8]), random.randrange(5))
        except voltpy.Error as error:
            failed.append(error)

    thread = threading.Thread(target=transfer)
    thread.start()
    try:
        for _ in range(30):
            assert db.execute("SELECT SUM(balance), COUNT(*) FROM accounts").rows == [(1900, 20)]
        assert db.execute("UPDATE accounts SET balance = balance + 1").rowcount == 20
        assert db.execute("SELECT SUM(balance) FROM accounts").rows == [(1920,)]
    finally:
        done.set()
        thread.join()
    assert failed == []


def test_an_answer_that_is_too_large_says_so(db: voltpy.Client) -> None:
    rows = [(key, number, 1) for key in (1, 2) for number in range(300)]
    db.call_many("voltpy.load", [(key, "payments", [row for row in rows if row[0] == key]) for key in (1, 2)])
    wide = "SELECT repeat('x', 4000) FROM payments"
    with pytest.raises(ConstraintViolation, match="the limit is 1,048,576"):
        db.execute(wide)
    assert len(db.execute(wide + " LIMIT 10").rows) == 10


def test_executemany_sends_many_at_once(db: voltpy.Client) -> None:
    with dbapi.connect(db) as connection:
        cursor = connection.cursor()
        keys = range(5000, 8000)
        try:
            cursor.executemany("INSERT INTO accounts (id, city) VALUES (?, ?)", ((key, f"c{key}") for key in keys))
            assert cursor.rowcount == len(keys)
            # Of one account they run one after another; which is the last decides.
            updates = [(n, 5000 + n % 3) for n in range(300)]
            assert cursor.executemany("UPDATE accounts SET balance = ? WHERE id = ?", updates).rowcount == 300
            found = cursor.execute("SELECT balance FROM accounts WHERE id IN (5000, 5001, 5002) ORDER BY id").fetchall()
            assert found == [(297,), (298,), (299,)]
            # It fails where it must, and says so; what is behind it in another batch is not run.
            rows = [(key, "x") for key in (*range(8000, 8010), 5500, *range(8010, 12000))]
            with pytest.raises(dbapi.IntegrityError, match="tuple 11: "):
                cursor.executemany("INSERT INTO accounts (id, city) VALUES (?, ?)", rows)
            changed = cursor.rowcount
            assert 10 <= changed < 1024
            assert cursor.execute("SELECT COUNT(*) FROM accounts WHERE city = 'x'").fetchall() == [(changed,)]
            assert db.execute("SELECT COUNT(*) FROM accounts WHERE id BETWEEN 8000 AND 8009").rows == [(10,)]
            with pytest.raises(dbapi.ProgrammingError, match="2 parameters, and 1 were given"):
                cursor.executemany("UPDATE accounts SET balance = ? WHERE id = ?", [(1, 5000), (1,)])
            assert cursor.executemany("UPDATE cities SET country = ? WHERE name = 'Oslo'", [("N",), ("Norway",)])
            assert db.execute("SELECT country FROM cities WHERE name = 'Oslo'").rows == [("Norway",)]
        finally:
            db.execute("DELETE FROM accounts WHERE id >= 5000")


def test_a_parameter_that_cannot_be_sent_is_named(cluster: Cluster, db: voltpy.Client) -> None:
    words = "^parameter 2: an int of 72 bits; an INT has 64$"

    async def by_asyncio() -> None:
        async with voltpy.connect_async(cluster.url) as other:
            await other.execute("SELECT * FROM accounts WHERE id = ? AND balance = ?", (1, 2**70))

    with pytest.raises(DataError, match=words):
        asyncio.run(by_asyncio())
    with pytest.raises(DataError, match=words):
        db.execute("SELECT * FROM accounts WHERE balance > ? AND id < ?", (1, 2**70))
    (failed,) = db.execute_many("DELETE FROM accounts WHERE city = ? AND id = ?", [("Oslo", 2**70)])
    assert str(failed) == words[1:-1]
    with pytest.raises(BadArguments, match=r"^the statement: arguments of "):
        db.execute("SELECT ?", ("x" * MAX_CALL_BYTES,))


def test_many_runs_of_a_statement_have_their_errors_in_their_places(db: voltpy.Client) -> None:
    key = LEFT[0]
    results = db.execute_many("UPDATE accounts SET balance = balance / ? WHERE id = ?", [(1, key), (0, RIGHT[0])])
    assert isinstance(results[0], Result)
    assert results[0].rowcount == 1
    assert isinstance(results[1], DataError)
    selected = db.execute_many("SELECT id FROM accounts WHERE id = ?", [(LEFT[0],), (RIGHT[0],), (LEFT[0],)])
    assert [result.rows for result in selected if isinstance(result, Result)] == [[(LEFT[0],)], [(RIGHT[0],)], [(key,)]]


# What the cluster says of itself


def test_the_catalog_counts_the_rows_of_all_partitions(db: voltpy.Client) -> None:
    counted = db.execute("SELECT table_name, row_count FROM db_tables ORDER BY table_id").rows
    assert counted == [("accounts", 20), ("payments", 0), ("cities", 3), ("notes", 0), ("tickets", 0)]
    assert db.execute("SELECT COUNT(*) FROM db_columns WHERE table_name = 'accounts'").rows == [(3,)]


def test_explain_tells_partitions_and_access_paths(db: voltpy.Client) -> None:
    by_key = db.execute("EXPLAIN SELECT * FROM accounts WHERE id = ?")
    assert (by_key.columns, by_key.kind) == (["plan"], "explain")
    assert "Partitions: the one of key ?1" in by_key.rows[0][0]
    summed = [row[0] for row in db.execute("EXPLAIN SELECT SUM(balance) FROM accounts").rows]
    assert summed[0].startswith("Partitions: all;")


def test_explain_estimates_in_the_partitions_that_would_run(db: voltpy.Client) -> None:
    db.execute("INSERT INTO payments SELECT id, 1, balance FROM accounts WHERE id < 15")
    owns = [sum(OWNERS[hash_slot(key)] == partition for key in range(15)) for partition in range(2)]

    def explained(sql: str, parameters: tuple[int, ...] = ()) -> list[str]:
        return [line.strip() for (line,) in db.execute(f"EXPLAIN {sql}", parameters).rows]

    assert explained("SELECT COUNT(*) FROM payments WHERE amount > ?") == [
        "Partitions: all; each sends its groups, with partial aggregates",
        "In 2 partitions, together:",
        "Send:",
        "One group of all rows, 1 aggregate",
        "Sequential scan of payments, 1 filter — 15 rows estimated",
        "Merge:",
        "One group of all rows, 1 aggregate",
        "Scan of what was sent",
    ]
    of_one = "SELECT * FROM payments WHERE account = ?"
    for partition, key in enumerate((LEFT[0], RIGHT[0])):
        found = f"Sequential scan of payments, 1 filter — {owns[partition]} rows estimated"
        assert explained(of_one, (key,))[1:] == [found]
    assert explained(of_one)[1:] == ["Sequential scan of payments, 1 filter — 8 rows estimated"]
    assert explained("DELETE FROM payments")[1:] == [
        "Delete from payments",
        "Sequential scan of payments — 15 rows estimated",
    ]
    assert db.execute("SELECT COUNT(*) FROM payments").rows == [(15,)]
    assert db.call("plan_while_paying", LEFT[0], RIGHT[0]) == [
        "Partitions: all; in the coordinator, on borrowed rows",
        "Sequential scan of accounts",
    ]
    with pytest.raises(SqlError, match="has 1 parameters, and 0 were given"):
        db.execute(f"EXPLAIN ANALYZE {of_one}")


def test_explain_analyze_tells_what_each_partition_did(db: voltpy.Client) -> None:
    answer = db.execute("EXPLAIN ANALYZE SELECT COUNT(*) FROM accounts WHERE id >= ?", (0,))
    lines = [line for (line,) in answer.rows]
    assert answer.kind == "explain"
    assert [line.split(":")[0] for line in lines if not line.startswith(" ")] == [
        "Partitions", "Partition 0", "Partition 1", "Merge",
    ]  # fmt: skip
    found = [int(line.split(" estimated, ")[1].split(" found")[0]) for line in lines if " estimated, " in line]
    assert sum(found) == db.execute("SELECT COUNT(*) FROM accounts").rows[0][0]
    (_, alone, *_) = db.execute("EXPLAIN ANALYZE SELECT * FROM accounts WHERE id = ?", (RIGHT[0],)).rows
    assert alone[0].startswith("Partition 1: ")


def test_explain_analyze_of_a_change_is_that_change(db: voltpy.Client) -> None:
    before = db.execute("SELECT SUM(balance) FROM accounts").rows[0][0]
    everywhere = db.execute("EXPLAIN ANALYZE UPDATE accounts SET balance = balance + ? WHERE city = 'Oslo'", (1,))
    lines = [line for (line,) in everywhere.rows]
    assert everywhere.kind == "explain update"
    assert lines[1].startswith("10 rows changed in ")
    assert lines[0] == "Partitions: all; in the coordinator, on borrowed rows"
    assert "Sequential scan of accounts, 1 filter — 20 rows estimated, 20 found, 10 kept, " in lines[3]
    (_, alone, *_) = db.execute("EXPLAIN ANALYZE DELETE FROM accounts WHERE id = ?", (RIGHT[0],)).rows
    assert alone[0].startswith("Partition 1: 1 row changed in ")
    db.execute("EXPLAIN ANALYZE INSERT INTO cities VALUES ('Rome', 'Italy')")
    with pytest.raises(DuplicateKey):
        db.execute("EXPLAIN ANALYZE INSERT INTO accounts (id) VALUES (?), (?), (?)", (LEFT[-1], RIGHT[-1], LEFT[0]))
    gone = 10 * RIGHT[0] + (RIGHT[0] % 2 == 0)
    assert db.execute("SELECT SUM(balance), COUNT(*) FROM accounts").rows == [(before + 10 - gone, 19)]
    assert db.call_everywhere("countries_here") == [4, 4]


def test_parameters_that_no_read_round_takes_are_answered_all_the_same(db: voltpy.Client) -> None:
    large = "x" * (5 << 20)
    assert db.execute("SELECT COUNT(*) FROM accounts WHERE city <> ?", (large,)).rows == [(20,)]
    assert db.execute("SELECT COUNT(*) FROM cities").rows == [(3,)]


def test_a_cluster_of_one_partition_executes_too(tmp_path: Path) -> None:
    with Cluster(tmp_path / "cluster", SCHEMA, PROCEDURES, partitions=1) as cluster:
        cluster.start()
        with connect(cluster.url, timeout=30.0) as db:
            db.execute("INSERT INTO cities VALUES ('Oslo', 'Norway')")
            assert db.execute("INSERT INTO accounts VALUES (1, 'Oslo', 10), (2, 'Oslo', 20)").rowcount == 2
            by_country = "SELECT country, SUM(balance) FROM accounts JOIN cities ON name = city GROUP BY country"
            assert db.execute(by_country).rows == [("Norway", 30)]
            assert db.execute("UPDATE accounts SET balance = balance + 1").rowcount == 2
            assert db.call("pay", 2, 5) == [["Oslo", 26]]
            with pytest.raises(SqlError):
                db.execute("SELECT FROM")


def test_statements_go_on_after_the_coordinator_was_killed(cluster: Cluster, db: voltpy.Client) -> None:
    with connect(cluster.url, timeout=30.0, retry_s=30.0) as patient:
        before = cluster.mark()
        cluster.kill(COORDINATOR)
        cluster.wait(happened("serving", COORDINATOR), before)
        assert patient.execute("SELECT SUM(balance), 'a new text' FROM accounts").rows == [(1900, "a new text")]
        assert patient.execute("SELECT balance, 'another' FROM accounts WHERE id = 4").rows == [(40, "another")]


def test_what_changed_procedures_does_not_stop_known_statements(cluster: Cluster, db: voltpy.Client) -> None:
    db.load_procedures(
        PROCEDURES + "\n\n@procedure(partition_by='key')\ndef new(tx, key: int) -> int:\n    return key\n", "new.py"
    )
    assert db.call("new", 1) == 1
    assert db.execute("SELECT balance FROM accounts WHERE id = ?", (4,)).rows == [(40,)]


def test_what_a_known_select_wants_is_read_off_it_and_not_found_by_a_run(db: voltpy.Client) -> None:
    wide = "SELECT COUNT(*) FROM accounts WHERE balance > ?"
    keyed = "SELECT SUM(balance) FROM accounts WHERE id IN (?, ?)"
    sums = [db.execute(wide, (-1,)).rows, db.execute(keyed, (LEFT[0], RIGHT[0])).rows]

    def counts() -> dict[str, float]:
        found: dict[str, float] = db.status()["coordinator"]["metrics"]
        return found

    def fresh_counts() -> dict[str, float]:
        for _ in range(2):  # the first answer that the supervisor gets may have been on its way already
            stale = counts()
            wait_until(lambda: counts()["cpu_s"] != stale["cpu_s"], "the coordinator tells of itself again", 5)  # noqa: B023 — awaited in the loop
        return counts()

    before = fresh_counts()
    for _ in range(5):
        assert [db.execute(wide, (-1,)).rows, db.execute(keyed, (LEFT[0], RIGHT[0])).rows] == sums
    after = fresh_counts()
    assert after["reads"] == before["reads"] + 10
    assert after["reruns"] == before["reruns"]
    with pytest.raises(DataError):
        db.execute(wide, (1 << 70,))
    with pytest.raises(SqlError, match="1 parameters, and 2 were given"):
        db.execute(wide, (1, 2))
    with pytest.raises(DataError):
        db.execute(wide, ("no number",))
