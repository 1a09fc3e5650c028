"""Views in a cluster of two partitions: what several of them have parts of, and what crosses them."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from click.testing import CliRunner

import voltpy
from tests.campaigns.cluster import Cluster
from voltpy.cli import commands
from voltpy.client import connect
from voltpy.errors import ConstraintViolation, SchemaError, SqlError
from voltpy.hash_slot import hash_slot, slot_owners

OWNERS = slot_owners(2)
LEFT, RIGHT = ([key for key in range(100) if OWNERS[hash_slot(key)] == partition] for partition in range(2))

TABLES = """
CREATE TABLE votes (phone INT PRIMARY KEY, state STRING, contestant INT NOT NULL, weight INT NOT NULL);
PARTITION TABLE votes ON COLUMN phone;
CREATE TABLE regions (code STRING PRIMARY KEY, country STRING NOT NULL);
"""
VIEWS = """
CREATE VIEW by_state AS
    SELECT state, COUNT(*) AS n, SUM(weight) AS total, MIN(weight) AS low, MAX(weight) AS high
    FROM votes GROUP BY state;
CREATE VIEW by_phone AS SELECT phone, COUNT(*) AS n, SUM(weight) AS total FROM votes GROUP BY phone;
CREATE VIEW by_country AS SELECT country, COUNT(*) AS n FROM regions GROUP BY country;
"""

PROCEDURES = '''
from voltpy import procedure


@procedure(partition_by="phone")
def vote(tx, phone: int, state: str | None, weight: int) -> list:
    tx.votes.upsert(phone, state, 1, weight)
    here = tx.by_state.get(state)
    return [here.n, here.total, tx.by_phone.get(phone).total]


@procedure(partition_by=("one", "other"))
def vote_twice(tx, one: int, other: int, state: str, weight: int) -> list:
    """Sees what it has written, and what the batch has written before it."""
    tx.votes.upsert(one, state, 1, weight)
    tx.votes.upsert(other, state, 1, weight)
    return tx.execute("SELECT n, total FROM by_state WHERE state = ?", (state,)).rows


@procedure(partition_by=("one", "other"))
def peek(tx, one: int, other: int) -> int:
    return tx.by_state.count()


@procedure(everywhere=True)
def name_region(tx, code: str, country: str) -> list:
    tx.regions.upsert(code, country)
    return sorted((row.country, row.n) for row in tx.by_country.scan())


@procedure(everywhere=True, read_only=True)
def states_here(tx) -> list:
    return [(row.state, row.n) for row in tx.by_state.scan()]
'''


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("views") / "cluster", TABLES + VIEWS, PROCEDURES, partitions=2) as cluster:
        cluster.start()
        yield cluster


@pytest.fixture(scope="module")
def client(cluster: Cluster) -> Iterator[voltpy.Client]:
    with connect(cluster.url, timeout=30.0) as db:
        yield db


@pytest.fixture
def db(client: voltpy.Client) -> voltpy.Client:
    client.execute("DELETE FROM votes")
    client.execute("DELETE FROM regions")
    return client


def grouped(db: voltpy.Client) -> list[Any]:
    return db.execute(
        "SELECT state, COUNT(*), SUM(weight), MIN(weight), MAX(weight) FROM votes GROUP BY state ORDER BY state"
    ).rows


def test_groups_of_several_partitions_are_put_together(db: voltpy.Client) -> None:
    random = Random(5)
    for phone in range(60):
        db.call("vote", phone, random.choice([None, "CA", "NY"]), random.randrange(-9, 9))
    db.execute("DELETE FROM votes WHERE weight > 6")
    db.execute("UPDATE votes SET state = 'TX' WHERE weight = 2")
    assert db.execute("SELECT * FROM by_state ORDER BY state").rows == grouped(db)
    parts = db.call_everywhere("states_here")
    counted: Counter[Any] = Counter()
    for part in parts:
        counted.update(dict(map(tuple, part)))
    assert counted == {state: n for state, n, *_ in grouped(db)}
    assert {len(part) for part in parts} & {3, 4}
    phone, total = db.execute("SELECT phone, weight FROM votes ORDER BY phone LIMIT 1").rows[0]
    assert db.execute("SELECT n, total FROM by_phone WHERE phone = ?", (phone,)).rows == [(1, total)]
    assert db.execute("SELECT COUNT(*) FROM by_phone").rows == db.execute("SELECT COUNT(*) FROM votes").rows
    highest = {state: high for state, _, _, _, high in grouped(db) if state is not None}
    joined = db.execute("SELECT v.phone FROM votes v JOIN by_state s ON s.state = v.state WHERE s.high = v.weight").rows
    votes = db.execute("SELECT phone, state, weight FROM votes").rows
    assert sorted(joined) == sorted((phone,) for phone, state, weight in votes if highest.get(state) == weight)


def test_a_transaction_across_partitions_sees_its_own_writes_in_a_view(db: voltpy.Client) -> None:
    assert db.call("vote", LEFT[0], "CA", 5) == [1, 5, 5]
    assert db.call("vote_twice", LEFT[0], RIGHT[0], "CA", 7) == [[2, 14]]
    assert db.call("vote_twice", LEFT[1], RIGHT[1], "CA", 1) == [[4, 16]]
    futures = [db.submit("vote_twice", LEFT[2 + i], RIGHT[2 + i], "NY", 1) for i in range(10)]
    assert sorted(future.result()[0][0] for future in futures) == [2 * n for n in range(1, 11)]
    assert db.execute("SELECT * FROM by_state ORDER BY state").rows == grouped(db)
    with pytest.raises(SchemaError, match="a procedure that crosses partitions reads a view by SQL"):
        db.call("peek", LEFT[0], RIGHT[0])


def test_a_write_across_partitions_that_a_view_refuses_fails_alone(db: voltpy.Client) -> None:
    with pytest.raises(ConstraintViolation, match="view by_"):
        db.call("vote_twice", LEFT[0], RIGHT[0], "CA", 1 << 60)
    assert db.call("vote_twice", LEFT[0], RIGHT[0], "CA", 1) == [[2, 2]]


def test_a_view_of_copies_is_the_same_everywhere(db: voltpy.Client) -> None:
    assert db.call_everywhere("name_region", "EUR", "FR") == [[["FR", 1]], [["FR", 1]]]
    db.execute("INSERT INTO regions VALUES ('NOK', 'NO'), ('FRF', 'FR')")
    assert db.call_everywhere("name_region", "SEK", "SE") == [[["FR", 2], ["NO", 1], ["SE", 1]]] * 2
    assert db.execute("SELECT n FROM by_country WHERE country = 'FR'").rows == [(2,)]


def test_the_catalog_and_the_shell_know_views(db: voltpy.Client, cluster: Cluster) -> None:
    db.call_many("vote", [(phone, "CA", 1) for phone in (LEFT[0], RIGHT[0], LEFT[1])])
    listed = db.execute("SELECT table_name, column_count, row_count, view_of FROM db_tables ORDER BY table_name").rows
    assert listed == [
        ("by_country", 2, 0, "regions"), ("by_phone", 3, 3, "votes"), ("by_state", 5, 2, "votes"),
        ("regions", 2, 0, None), ("votes", 4, 3, None),
    ]  # fmt: skip
    plan = " ".join(row[0] for row in db.execute("EXPLAIN SELECT * FROM by_phone WHERE phone = 3").rows)
    assert "by key (phone) of by_phone" in plan
    shown = CliRunner().invoke(commands, ["sql", "--url", cluster.url, "-c", "\\d by_state"]).output
    assert (
        "View by_state of votes: 2 rows, parts of its groups wherever rows of them are\nPrimary key: (state)\n" in shown
    )
    shown = CliRunner().invoke(commands, ["sql", "--url", cluster.url, "-c", "\\d by_phone"]).output
    assert "View by_phone of votes: 3 rows, partitioned on phone\n" in shown
    with pytest.raises(SqlError, match="by_state is a view of votes: write to that, and it follows"):
        db.execute("DELETE FROM by_state")


def test_views_come_through_a_kill_and_with_a_new_schema(tmp_path: Path) -> None:
    with Cluster(tmp_path / "cluster", TABLES, PROCEDURES_WITHOUT_VIEWS, partitions=2) as cluster:
        cluster.start()
        with connect(cluster.url, timeout=30.0) as db:
            db.call_many("vote", [(phone, "CA" if phone % 3 else None, phone % 7) for phone in range(80)])
            before = grouped(db)
        assert cluster.end() == 0
        (cluster.directory / "schema.sql").write_text(TABLES + VIEWS)
        cluster.start()
        with connect(cluster.url, timeout=30.0) as db:
            assert db.execute("SELECT * FROM by_state ORDER BY state").rows == before
            db.call("vote_twice", LEFT[0], RIGHT[0], "NY", 9)
            after = grouped(db)
        cluster.end(signal.SIGKILL)
        cluster.end_survivors()
        cluster.start()
        with connect(cluster.url, timeout=30.0) as db:
            assert db.execute("SELECT * FROM by_state ORDER BY state").rows == after == grouped(db)


PROCEDURES_WITHOUT_VIEWS = """
from voltpy import procedure


@procedure(partition_by="phone")
def vote(tx, phone: int, state: str | None, weight: int) -> None:
    tx.votes.upsert(phone, state, 1, weight)


@procedure(partition_by=("one", "other"))
def vote_twice(tx, one: int, other: int, state: str, weight: int) -> None:
    tx.votes.upsert(one, state, 1, weight)
    tx.votes.upsert(other, state, 1, weight)
"""
