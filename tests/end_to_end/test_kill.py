"""Processes of a running cluster are killed, or stopped for a while: the short form of tests.campaigns.kill."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import voltpy
from tests.campaigns.cluster import ROUTER, Cluster
from tests.campaigns.kill import Session
from tests.campaigns.workload import PROCEDURES, SCHEMA
from voltpy.client import Client
from voltpy.errors import Indeterminate
from voltpy.hash_slot import hash_slot, slot_owners

PAUSE_S = 2.0

POINTS = (
    "record_log.append.half_written",
    "record_log.rotate.old_flushed",
    "record_log.begin.tail_cut",
    "wal.start_flush.after",
    "server.append.appended",
    "server.reply.half_sent",
    "router.calls.forwarded",
    "supervisor.bury.before",
    "record_log.close.marked",
    "kill.everything",
)
CROSSING_POINTS = (
    "participant.prepare.appended",
    "participant.commit.applied",
    "decision_log.write.before_append",
    "decision_log.write.flushed",
    "kill.two",
)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    session = Session(tmp_path_factory.mktemp("killed") / "cluster")
    yield session
    session.close()


@pytest.mark.parametrize("point", POINTS)
def test_no_transaction_is_lost_halved_or_doubled_by_a_kill(session: Session, point: str) -> None:
    run = session.run(point, seed=0)
    assert run.violations == []
    assert run.fired, run.problem
    assert run.totals.done > 0


def test_nothing_has_changed_since_and_nobody_outlived_the_supervisors(session: Session) -> None:
    assert session.check_all() == []
    assert session.close() == []


@pytest.fixture(scope="module")
def crossing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    session = Session(tmp_path_factory.mktemp("crossing") / "cluster", crosses=True)
    yield session
    session.close()


@pytest.mark.parametrize("point", CROSSING_POINTS)
def test_no_transaction_over_partitions_is_lost_halved_or_doubled_by_a_kill(crossing: Session, point: str) -> None:
    run = crossing.run(point, seed=0)
    assert run.violations == []
    assert run.fired, run.problem
    assert run.totals.done > 0


def test_nothing_that_crossed_partitions_has_changed_since(crossing: Session) -> None:
    assert crossing.check_all() == []
    assert crossing.close() == []


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("paused") / "cluster", SCHEMA, PROCEDURES) as cluster:
        cluster.start()
        yield cluster


def test_a_partition_that_is_paused_stops_nobody_else_and_answers_when_it_goes_on(cluster: Cluster) -> None:
    here, there = _worker_of(0), _worker_of(1)
    with voltpy.connect(cluster.url, timeout=30.0) as db, voltpy.connect(f"{cluster.url}?affinity=off") as by_router:
        for worker in (here, there):
            db.call("open_worker", worker)
        with paused(cluster, "partition-0"):
            waiting = [client.submit("count", here, number) for number, client in enumerate((db, by_router))]
            for client in (db, by_router):
                _times_out(client, here)
            for number in range(200):
                assert db.call("count", there, number) == [there, number]
                assert by_router.call("append", there, number, 2) == [there, number]
            assert not any(future.done() for future in waiting)
        assert [future.result(30.0) for future in waiting] == [[here, 0], [here, 1]]
        # Each of the two calls that timed out was waiting too. It may have run, once, or not; nothing hangs on it.
        counted, bumped, _, entries = db.call("state", here, 1)
        assert (counted, entries) == (2, [[-1, 0, True, None]])
        assert 0 <= bumped <= 2
        assert db.call("bump", here, 9) == [here, 9, bumped + 1]
        _nothing_was_restarted(db)


def test_a_router_that_is_paused_stops_only_those_who_need_it(cluster: Cluster) -> None:
    worker = _worker_of(0, past=1000)
    with voltpy.connect(cluster.url, timeout=30.0) as db, voltpy.connect(f"{cluster.url}?affinity=off") as by_router:
        db.call("open_worker", worker)
        with paused(cluster, ROUTER):
            waiting = by_router.submit("count", worker, 0)
            _times_out(by_router, worker)
            for number in range(1, 200):
                assert db.call("count", worker, number) == [worker, number]
            assert not waiting.done()
        assert waiting.result(30.0) == [worker, 0]
        assert db.call("state", worker, 0)[0] == 200
        _nothing_was_restarted(db)


@contextmanager
def paused(cluster: Cluster, process: str) -> Iterator[None]:
    """SIGSTOP; SIGCONT comes PAUSE_S later, and not before the block has ended."""
    cluster.kill(process, signal.SIGSTOP)
    over = threading.Event()
    timer = threading.Timer(PAUSE_S, over.set)
    timer.start()
    try:
        yield
        over.wait()
    finally:
        timer.cancel()
        cluster.kill(process, signal.SIGCONT)


def _times_out(client: Client, worker: int) -> None:
    with pytest.raises(Indeterminate, match=r"0\.3 s"):
        client.call("bump", worker, 0, timeout=0.3)


def _nothing_was_restarted(db: Client) -> None:
    status: dict[str, Any] = db.status()
    assert [child["restarts"] for child in (status["router"], status["coordinator"], *status["partitions"])] == [0] * 4


def _worker_of(partition: int, past: int = 0) -> int:
    owners = slot_owners(2)
    return next(worker for worker in range(past + 1, past + 100) if owners[hash_slot(worker)] == partition)
