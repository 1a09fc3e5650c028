"""The client for threads, over real sockets against a cluster of threads."""

from __future__ import annotations

import copy
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from math import inf
from typing import Any

import pytest

import voltpy
from tests.readable import readable
from tests.voltpy.fake_cluster import PROCEDURES, FakeCluster, info, wait_until
from voltpy import busy_poll, waiting
from voltpy.address import Address
from voltpy.client import Client
from voltpy.errors import CODES
from voltpy.hash_slot import hash_slot, slot_owners
from voltpy.lane import ROUTER, WINDOW_CALLS
from voltpy.links import Links
from voltpy.messages import Runaway
from voltpy.shared_connection import FRESH_S, SUBMITTED_CALLS, SharedConnection
from voltpy.waiting import WaitingCall


@pytest.fixture(params=["stream", "ipc"])
def cluster(request: pytest.FixtureRequest) -> Iterator[FakeCluster]:
    """With both kinds of connection that a partition on the same machine may have."""
    with FakeCluster(2, streams=request.param == "stream") as made:
        yield made


@pytest.fixture
def db(cluster: FakeCluster) -> Iterator[Client]:
    with voltpy.connect(cluster.url) as client:
        yield client


def key_of(partition: int) -> int:
    owners = slot_owners(2)
    return next(key for key in range(1000) if owners[hash_slot(key)] == partition)


def is_readable(fd: int) -> bool:
    return readable(fd)


def in_threads(count: int, body: Any) -> None:
    failures: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            body(number)
        except (AssertionError, voltpy.Error) as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    if failures:
        raise failures[0]


# ── calls ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_call_returns_its_result_straight_from_the_partition(cluster: FakeCluster, db: Client) -> None:
    assert db.call("echo", 5) == 5
    assert db.call("echo", "a", [1, None, 2.5]) == ["a", [1, None, 2.5]]
    assert {db.call("where", key_of(partition)) for partition in (0, 1)} == {0, 1}
    assert cluster.router is not None
    assert cluster.router.calls() == 0


def test_affinity_off_sends_everything_through_the_router(cluster: FakeCluster) -> None:
    with voltpy.connect(cluster.url + "?affinity=off") as db:
        assert db.call("echo", 5) == 5
        assert db.call_many("echo", [(key,) for key in range(500)]) == list(range(500))
        assert cluster.router is not None
        assert cluster.router.calls() == 501


def test_another_machine_is_reached_by_tcp() -> None:
    with FakeCluster(2, same_machine=False) as cluster, voltpy.connect(cluster.url) as db:
        os.rename(cluster.path("p0"), cluster.path("x0"))
        assert db.call("where", key_of(0)) == 0
        assert db.call("where", key_of(1)) == 1
        assert cluster.router is not None
        assert cluster.router.calls() == 0


def test_a_client_says_what_it_is_and_is_not_copied(cluster: FakeCluster) -> None:
    with voltpy.connect(cluster.url, timeout=10) as db:
        assert repr(db) == f"<voltpy.Client of {cluster.url}>"
        for copied in (pickle.dumps, copy.copy):
            with pytest.raises(TypeError, match="connect again where it goes"):
                copied(db)
    assert repr(db) == f"<voltpy.Client of {cluster.url}, closed>"


def test_an_error_of_the_procedure_is_raised(db: Client) -> None:
    with pytest.raises(voltpy.Aborted, match="3 is odd"):
        db.call("refuse_odd", 3)
    assert db.call("refuse_odd", 4) == 4


def test_what_cannot_be_sent_is_refused_here(cluster: FakeCluster, db: Client) -> None:
    for args in [(object(),), (1, object()), (1 << 70,), (), ("\ud800",), (1.5,)]:
        with pytest.raises(voltpy.BadArguments, match="echo"):
            db.call("echo", *args)
    assert cluster.call_frames() == 0
    assert db.call("echo", 1) == 1


def test_an_unknown_procedure_is_asked_for_before_it_is_refused(cluster: FakeCluster, db: Client) -> None:
    with pytest.raises(voltpy.UnknownProcedure, match=r"no procedure ecko; did you mean echo\?"):
        db.call("ecko", 1)
    with pytest.raises(voltpy.UnknownProcedure, match="fresh"):
        db.call("fresh", 1)
    cluster.procedures["second"] = info("second", 0)
    del cluster.procedures["add"]
    cluster.catalog_version = cluster.partition_catalog_version = 2
    assert db.call("second", key_of(0), key_of(1)) == [key_of(0), key_of(1)]
    assert cluster.partition(0).calls() == 1  # routed by the first argument once the new topology had come
    with pytest.raises(voltpy.UnknownProcedure, match="add"):
        db.call("add", 1, 1)


def test_a_timeout_of_a_call_that_was_sent_is_indeterminate(cluster: FakeCluster, db: Client) -> None:
    cluster.partition(0).deaf.set()
    began = time.monotonic()
    with pytest.raises(voltpy.Indeterminate, match=r"timed out after 0\.3 s"):
        db.call("echo", key_of(0), timeout=0.3)
    assert 0.25 < time.monotonic() - began < 2
    assert db.call("where", key_of(1)) == 1
    cluster.partition(0).deaf.clear()
    assert db.call("where", key_of(0)) == 0


def test_garbage_from_a_partition_is_a_protocol_error_and_no_hang(cluster: FakeCluster, db: Client) -> None:
    cluster.partition(0).garbage.set()
    with pytest.raises(voltpy.ProtocolError, match="partition 0"):
        db.call("echo", key_of(0))
    assert isinstance(db.submit("echo", key_of(0)).exception(5), voltpy.ProtocolError | None)
    results = db.call_many("echo", [(key_of(0),)] * 3, return_exceptions=True)
    assert all(isinstance(result, voltpy.Error | int) for result in results)
    assert db.call("where", key_of(1)) == 1
    cluster.partition(0).garbage.clear()
    wait_until(lambda: db.call("where", key_of(0)) == 0, "partition 0 answers again")


def test_a_client_finds_a_cluster_that_restarts_its_router(cluster: FakeCluster) -> None:
    with voltpy.connect(cluster.url + "?affinity=off", timeout=5) as db:
        assert db.call("echo", 1) == 1
        cluster.kill_router()
        began = time.monotonic()
        with pytest.raises((voltpy.Unavailable, voltpy.Indeterminate)):
            db.call("echo", 1)
        with pytest.raises(voltpy.Unavailable):
            db.call("echo", 1)
        assert time.monotonic() - began < 1
        cluster.restart_router()

        def answers() -> bool:
            try:
                return bool(db.call("echo", 1) == 1)
            except voltpy.Unavailable:
                return False

        wait_until(answers, "the client is connected again", 10)


def test_the_router_is_not_needed_for_direct_calls(cluster: FakeCluster, db: Client) -> None:
    cluster.kill_router()
    assert db.call("where", key_of(1)) == 1
    assert db.call_many("where", [(key_of(1),)] * 300) == [1] * 300


def test_calls_to_a_router_that_dies_are_indeterminate_at_once(cluster: FakeCluster) -> None:
    with voltpy.connect(cluster.url + "?affinity=off") as db:
        assert cluster.router is not None
        cluster.router.deaf.set()
        future = db.submit("echo", 1)
        router = cluster.router
        wait_until(lambda: router.calls() == 1, "the call has arrived")
        began = time.monotonic()
        cluster.kill_router()
        with pytest.raises(voltpy.Indeterminate, match="router"):
            future.result(5)
        assert time.monotonic() - began < 1


# ── partitions that die ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("announce", [True, False])
def test_a_dead_partition_is_noticed_at_once(cluster: FakeCluster, db: Client, announce: bool) -> None:
    partition = cluster.partition(0)
    partition.deaf.set()
    died: list[float] = []

    def die() -> None:
        wait_until(lambda: partition.calls() == 2, "the calls have arrived")
        died.append(time.monotonic())
        cluster.kill(0, announce=announce)

    thread = threading.Thread(target=die)
    thread.start()
    future = db.submit("echo", key_of(0))
    with pytest.raises(voltpy.Indeterminate, match="partition 0"):
        db.call("echo", key_of(0))
    assert time.monotonic() - died[0] < (0.9 if announce else 2.0)
    with pytest.raises(voltpy.Indeterminate):
        future.result(5)
    thread.join()
    assert db.call("where", key_of(1)) == 1
    if announce:
        with pytest.raises(voltpy.Unavailable):
            db.call("echo", key_of(0))


def test_a_lone_caller_notices_a_dead_partition_at_once(cluster: FakeCluster, db: Client) -> None:
    partition = cluster.partition(0)
    partition.deaf.set()
    died: list[float] = []

    def die() -> None:
        wait_until(lambda: partition.calls() == 1, "the call has arrived")
        died.append(time.monotonic())
        cluster.kill(0)

    thread = threading.Thread(target=die)
    thread.start()
    with pytest.raises(voltpy.Indeterminate, match="partition 0"):
        db.call("echo", key_of(0))
    assert time.monotonic() - died[0] < 0.9
    assert db._shared._thread is None
    thread.join()


def test_an_idle_client_finds_a_restarted_partition_without_an_error(cluster: FakeCluster, db: Client) -> None:
    assert db.call("where", key_of(0)) == 0
    identities = list(cluster.partition(0).clients)
    cluster.kill(0, announce=False)
    cluster.restart(0)
    # Looking at the sockets themselves would take the news from the client.
    wait_until(lambda: is_readable(db._shared._links.links[0].fds[-1]), "the old connection ended")
    wait_until(lambda: is_readable(db._shared._links.links[ROUTER].fds[0]), "the router has told")
    wait_until(lambda: time.monotonic() - db._shared._looked_at > FRESH_S, "the next call looks at its sockets first")
    assert db.call("where", key_of(0)) == 0
    wait_until(lambda: db.call("where", key_of(0)) == 0 and bool(cluster.partition(0).clients), "a new connection")
    assert list(cluster.partition(0).clients) != identities


def test_a_runaway_call_is_a_procedure_timeout(cluster: FakeCluster, db: Client) -> None:
    partition = cluster.partition(0)
    partition.deaf.set()
    future = db.submit("echo", key_of(0))
    wait_until(lambda: partition.calls() == 1, "the call has arrived")
    group = partition.frames[0].groups[0]  # type: ignore[union-attr]  # the one frame is Calls
    cluster.runaways.append(Runaway(group.client_id, group.numbers[0], "echo"))
    cluster.kill(0)
    with pytest.raises(voltpy.ProcedureTimeout):
        future.result(5)


def test_a_retried_call_answers_with_its_first_result(cluster: FakeCluster) -> None:
    with voltpy.connect(cluster.url, retry_s=8) as db:
        key = key_of(0)
        assert db.call("add", key, 5) == 5
        first = cluster.partition(0)
        first.swallow_replies = True
        results: list[Any] = []
        thread = threading.Thread(target=lambda: results.append(db.call("add", key, 7)))
        thread.start()
        many: list[Any] = []
        wait_until(lambda: first.totals[key] == 12, "the call ran")
        other = threading.Thread(target=lambda: many.extend(db.call_many("add", [(key, 0)] * 300)))
        other.start()
        wait_until(lambda: first.calls() == 302, "the batch ran")
        cluster.kill(0)
        thread.join(0.05)
        assert thread.is_alive()
        cluster.restart(0)
        thread.join(5)
        other.join(5)
        assert results == [12]
        assert many == [12] * 300
        assert cluster.partition(0).totals[key] == 12
        assert db.call("add", key, 1) == 13


# ── many calls ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_call_many_returns_results_in_order_and_fills_frames(cluster: FakeCluster, db: Client) -> None:
    assert db.call_many("echo", ((key,) for key in range(20_000))) == list(range(20_000))
    assert cluster.call_frames() < 20_000 / 128 * 1.35
    assert db.call_many("echo", []) == []
    assert db.call_many("echo", [[1, "b"]]) == [[1, "b"]]


def test_large_arguments_and_results_pass(db: Client) -> None:
    rows = [(key, chr(65 + key % 26) * 200_000) for key in range(60)]
    assert db.call_many("echo", rows) == [list(row) for row in rows]
    assert [db.submit("echo", *row) for row in rows][-1].result(10) == list(rows[-1])
    assert db.call("echo", 1, "x" * 3_000_000) == [1, "x" * 3_000_000]


def test_call_many_reads_its_rows_as_they_go_out(cluster: FakeCluster, db: Client) -> None:
    cluster.partition(0).deaf.set()
    cluster.partition(1).deaf.set()
    taken = 0

    def rows() -> Iterator[tuple[int]]:
        nonlocal taken
        while True:
            taken += 1
            yield (taken,)

    with pytest.raises(voltpy.Indeterminate):
        db.call_many("echo", rows(), timeout=0.3)
    assert taken < 10_000


def test_call_many_puts_errors_in_their_places_if_asked(db: Client) -> None:
    rows: list[Any] = [(key,) for key in range(1000)]
    rows[10] = (object(),)
    results = db.call_many("refuse_odd", rows, return_exceptions=True)
    assert [type(results[key]) for key in (0, 1, 10)] == [int, voltpy.Aborted, voltpy.BadArguments]
    assert [result for result in results if isinstance(result, int)] == [key for key in range(0, 1000, 2) if key != 10]


def test_call_many_raises_the_first_error_and_stops(cluster: FakeCluster, db: Client) -> None:
    taken = 0

    def rows() -> Iterator[tuple[int]]:
        nonlocal taken
        for key in range(0, 1_000_000, 2):
            taken += 1
            yield (key + 1 if key in (100, 200) else key,)

    with pytest.raises(voltpy.Aborted, match="101 is odd"):
        db.call_many("refuse_odd", rows())
    assert taken < 20_000
    assert db.call_many("refuse_odd", [(2,)]) == [2]
    assert not db._connection.busy()


def test_an_error_in_the_rows_reaches_the_caller(db: Client) -> None:
    def rows() -> Iterator[tuple[int]]:
        for key in range(1000):
            yield (key,)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        db.call_many("echo", rows())
    assert db.call("echo", 1) == 1


def test_the_rows_may_come_from_calls_of_the_same_client(db: Client) -> None:
    rows = ((db.call("echo", key),) for key in range(600))
    assert db.call_many("echo", rows) == list(range(600))


def test_rows_that_block_do_not_hold_up_other_threads(db: Client) -> None:
    go_on = threading.Event()

    def rows() -> Iterator[tuple[int]]:
        yield (1,)
        assert go_on.wait(10)
        yield (2,)

    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.extend(db.call_many("echo", rows())))
    thread.start()
    assert db.call("echo", 7) == 7
    assert db.submit("echo", 8).result(5) == 8
    go_on.set()
    thread.join(5)
    assert results == [1, 2]


def test_call_many_of_an_unknown_procedure(db: Client) -> None:
    with pytest.raises(voltpy.UnknownProcedure):
        db.call_many("nowhere", [(1,)])


def test_call_many_over_a_dying_partition_settles_every_row(cluster: FakeCluster, db: Client) -> None:
    def rows() -> Iterator[tuple[int]]:
        for key in range(30_000):
            if key == 10_000:
                cluster.kill(0)
            if key == 20_000:
                cluster.restart(0)
            yield (key,)

    results = db.call_many("echo", rows(), return_exceptions=True)
    assert len(results) == 30_000
    wrong = [key for key, result in enumerate(results) if not isinstance(result, voltpy.Error) and result != key]
    assert wrong == []
    kinds = {type(result) for result in results if isinstance(result, voltpy.Error)}
    assert kinds <= {voltpy.Indeterminate, voltpy.Unavailable}
    assert db.call("where", key_of(0)) == 0


# ── threads ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_threads_share_frames_and_the_io_thread_ends_with_them(cluster: FakeCluster, db: Client) -> None:
    def body(number: int) -> None:
        for index in range(50):
            assert db.call("echo", number * 1000 + index) == number * 1000 + index

    in_threads(32, body)
    assert cluster.partition(0).calls() + cluster.partition(1).calls() == 1600
    assert cluster.call_frames() < 1200
    wait_until(lambda: db._shared._thread is None, "the I/O thread has ended", 3)
    assert db.call("echo", 1) == 1
    assert db._shared._thread is None


def test_threads_mix_every_kind_of_call(db: Client) -> None:
    def body(number: int) -> None:
        for index in range(8):
            key = number * 100 + index
            if number % 4 == 0:
                assert db.call("echo", key) == key
            elif number % 4 == 1:
                assert db.call_many("echo", [(key + row,) for row in range(700)]) == [key + row for row in range(700)]
            elif number % 4 == 2:
                assert db.call_everywhere("where_all") == [0, 1]
            else:
                futures = [db.submit("echo", key + row) for row in range(200)]
                assert [future.result(10) for future in futures] == [key + row for row in range(200)]

    in_threads(12, body)
    assert not db._connection.busy()


def test_submit_returns_a_future(db: Client) -> None:
    futures = [db.submit("refuse_odd", key) for key in range(2000)]
    for key, future in enumerate(futures):
        if key % 2:
            assert isinstance(future.exception(5), voltpy.Aborted)
        else:
            assert future.result(5) == key
    assert isinstance(db.submit("nowhere", 1).exception(5), voltpy.UnknownProcedure)
    assert isinstance(db.submit("echo", object()).exception(5), voltpy.BadArguments)


def test_a_future_can_be_cancelled_until_it_is_sent(cluster: FakeCluster, db: Client) -> None:
    partition = cluster.partition(0)
    partition.deaf.set()
    futures = [db.submit("echo", key_of(0)) for _ in range(WINDOW_CALLS + 88)]
    wait_until(lambda: partition.calls() == WINDOW_CALLS, "the window is full")
    assert not futures[0].cancel()
    assert futures[-1].cancel()
    partition.deaf.clear()
    cluster.kill(0)
    errors = [type(future.exception(5)) for future in futures[:-1]]
    assert errors == [voltpy.Indeterminate] * WINDOW_CALLS + [voltpy.Unavailable] * 87


def test_a_future_callback_may_call_again(db: Client) -> None:
    results: list[Any] = []
    done = threading.Event()

    def again(future: Any) -> None:
        results.append(future.result())
        if len(results) == 50:
            done.set()
        else:
            db.submit("echo", len(results)).add_done_callback(again)

    db.submit("echo", 0).add_done_callback(again)
    assert done.wait(5)
    assert results == list(range(50))


def test_submit_waits_while_too_much_is_under_way(cluster: FakeCluster, db: Client) -> None:
    for partition in (0, 1):
        cluster.partition(partition).deaf.set()
    submitted = 0

    def body() -> None:
        nonlocal submitted
        for key in range(SUBMITTED_CALLS + 10):
            db.submit("echo", key)
            submitted += 1

    thread = threading.Thread(target=body)
    thread.start()
    wait_until(lambda: submitted == SUBMITTED_CALLS, "the limit is reached", 20)
    thread.join(0.1)
    assert thread.is_alive()
    cluster.kill(0)
    cluster.kill(1)
    thread.join(20)
    assert not thread.is_alive()


# ── the cluster ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_call_everywhere_gives_one_result_a_partition() -> None:
    with FakeCluster(3) as cluster, voltpy.connect(cluster.url) as db:
        assert db.call_everywhere("where_all") == [0, 1, 2]
        with pytest.raises(voltpy.BadArguments, match="use call"):
            db.call_everywhere("echo", 1)
        with pytest.raises(voltpy.BadArguments, match="call_everywhere"):
            db.call("where_all")
        with pytest.raises(voltpy.UnknownProcedure):
            db.call_everywhere("nowhere")
        cluster.kill(1)
        db.procedures()  # the router has told by now
        with pytest.raises(voltpy.Unavailable):
            db.call_everywhere("where_all")


def test_a_partition_that_refuses_a_directed_call_is_named_or_has_its_error_in_its_place() -> None:
    with FakeCluster(4) as cluster, voltpy.connect(cluster.url) as db:
        with pytest.raises(voltpy.Aborted, match=r"^partition 1: 1 is odd$"):
            db.call_everywhere("refuse_in_odd")
        zero, first, two, third = db.call_everywhere("refuse_in_odd", return_exceptions=True)
        assert (zero, two) == (0, 2)
        assert isinstance(first, voltpy.Aborted)
        assert [str(first), str(third)] == ["partition 1: 1 is odd", "partition 3: 3 is odd"]
        assert db.call_everywhere("where_all", return_exceptions=True) == [0, 1, 2, 3]
        with pytest.raises(voltpy.UnknownProcedure):
            db.call_everywhere("nowhere", return_exceptions=True)


def test_calls_across_partitions_reach_the_coordinator(cluster: FakeCluster, db: Client) -> None:
    here, there = key_of(0), key_of(1)
    for _ in range(2):  # through the router at first, perhaps, and straight to it
        assert db.call("move", here, here) == 0
        assert db.call("move", here, there) == 2
        assert db.call("anywhere") == 2
        wait_until(lambda: 2 in db._shared._links.links, "a link to the coordinator")
    assert db.submit("move", there, here).result(5) == 2
    rows = [(here, there), (there, there), (here, here)] * 300
    assert db.call_many("move", rows) == [2, 1, 0] * 300
    assert db.call_many("anywhere", [()] * 10) == [2] * 10
    assert db.call_everywhere("set_all") == [0, 1]
    with pytest.raises(voltpy.BadArguments, match="use call"):
        db.call_everywhere("anywhere")


def test_a_call_that_turns_out_to_need_the_coordinator_goes_there_unseen(cluster: FakeCluster, db: Client) -> None:
    assert db.call("rename", key_of(0)) == 2
    assert db.call_many("rename", [(key,) for key in range(300)]) == [2] * 300


def test_a_coordinator_that_dies_and_comes_back(cluster: FakeCluster) -> None:
    with voltpy.connect(cluster.url, retry_s=5.0) as patient, voltpy.connect(cluster.url) as db:
        cluster.kill(2)
        db.procedures()  # the router has told by now
        with pytest.raises(voltpy.Unavailable, match="the coordinator is down"):
            db.call("anywhere")
        assert db.call("where", key_of(1)) == 1
        future = patient.submit("anywhere")
        cluster.restart(2)
        assert future.result(5) == 2


def test_commands_reach_the_cluster(cluster: FakeCluster, db: Client) -> None:
    assert db.status() == {"command": "status", "body": {}}
    db.stop()
    assert db.load_procedures("x = 1", "p.py")["body"] == {"source": "x = 1", "path": "p.py"}
    assert [entry.name for entry in db.procedures()] == sorted(cluster.procedures)
    with pytest.raises(voltpy.SchemaError, match="line 3"):
        db._admin("fail", {})


# ── connecting and closing ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("busy_poll_us", [-1, 1e9, float("inf"), float("nan")])
def test_nobody_waits_awake_for_ever(cluster: FakeCluster, busy_poll_us: float) -> None:
    with pytest.raises(ValueError, match="busy_poll_us"):
        voltpy.connect(cluster.url, busy_poll_us=busy_poll_us)


def test_threads_are_answered_beside_one_that_waits_awake(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(busy_poll, "TAKEN_S", inf)  # however busy the machine is
    with voltpy.connect(cluster.url, busy_poll_us=100_000) as db:
        assert [db.call("echo", number) for number in range(200)] == list(range(200))
        assert db._shared._busy_poll._in_a_row > 0  # the partitions are threads of this process, and may be slow
        in_threads(4, lambda number: [db.call("echo", number) for _ in range(100)])
        cluster.partition(0).deaf.set()
        ended = []

        def body(number: int) -> None:
            if number:
                wait_until(lambda: db._shared._poller.asleep, "the other thread waits", 3)
                assert db.call("where", key_of(1)) == 1
                assert not ended
            else:
                with pytest.raises(voltpy.Indeterminate):
                    db.call("where", key_of(0), timeout=0.5)
                ended.append(number)

        in_threads(2, body)
        assert ended == [0]


@pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan"), "5"])
def test_a_timeout_is_positive(db: Client, timeout: Any) -> None:
    with pytest.raises(ValueError, match=r"^a timeout is a positive number of seconds, not "):
        db.call("echo", 1, timeout=timeout)


def test_nobody_there_is_known_at_once() -> None:
    began = time.monotonic()
    with pytest.raises(voltpy.Unavailable, match=r"nothing listens at voltpy://127\.0\.0\.1:1"):
        voltpy.connect("voltpy://127.0.0.1:1", timeout=5)
    assert time.monotonic() - began < 1


def test_a_cluster_that_is_being_started_is_waited_for_as_long_as_calls_are_retried(cluster: FakeCluster) -> None:
    url = cluster.url
    cluster.kill_router()
    wait_until(lambda: not Address(url).listens(), "the router's socket is closed")
    began = time.monotonic()
    with pytest.raises(voltpy.Unavailable, match="nothing listens"):
        voltpy.connect(url, retry_s=0.3)
    assert time.monotonic() - began >= 0.3
    starting = threading.Timer(0.2, cluster.restart_router)
    starting.start()
    with voltpy.connect(url, retry_s=30.0) as db:
        assert db.call("echo", 1) == 1
    starting.join()


def test_a_listener_that_says_nothing_is_unavailable_after_the_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"voltpy://127.0.0.1:{silent.getsockname()[1]}"
        began = time.monotonic()
        with pytest.raises(voltpy.Unavailable, match=r"within 0\.4 s"):
            voltpy.connect(url, timeout=0.4)
        assert 0.3 < time.monotonic() - began < 2


def test_after_close_calls_are_unavailable(cluster: FakeCluster) -> None:
    db = voltpy.connect(cluster.url)
    assert db.submit("echo", 1).result(5) == 1
    db.close()
    db.close()
    for call in (lambda: db.call("echo", 1), lambda: db.submit("echo", 1), lambda: db.call_many("echo", [(1,)])):
        with pytest.raises(voltpy.Unavailable, match="closed"):
            call()


def test_closing_ends_the_calls_of_other_threads(cluster: FakeCluster) -> None:
    db = voltpy.connect(cluster.url)
    partition = cluster.partition(0)
    partition.deaf.set()
    errors: list[BaseException] = []

    def body(call: Any) -> None:
        try:
            call()
        except voltpy.Error as error:
            errors.append(error)

    calls = [
        lambda: db.call("echo", key_of(0)),
        lambda: db.submit("echo", key_of(0)).result(10),
        lambda: db.call_many("echo", [(key_of(0),)] * 10),
        lambda: db.call_many("echo", [(key_of(0),)] * 5000),
    ]
    threads = [threading.Thread(target=body, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    wait_until(lambda: partition.calls() > 300, "the calls have arrived")
    began = time.monotonic()
    db.close()
    for thread in threads:
        thread.join(5)
    assert time.monotonic() - began < 2
    assert len(errors) == 4
    assert {type(error) for error in errors} <= {voltpy.Indeterminate, voltpy.Unavailable}


def test_closing_ends_a_lone_call(cluster: FakeCluster) -> None:
    db = voltpy.connect(cluster.url)
    partition = cluster.partition(0)
    partition.deaf.set()

    def close() -> None:
        wait_until(lambda: partition.calls() == 1, "the call has arrived")
        db.close()

    thread = threading.Thread(target=close)
    thread.start()
    with pytest.raises(voltpy.Indeterminate, match="closed"):
        db.call("echo", key_of(0))
    thread.join()


def test_clients_leave_no_file_descriptors_behind(cluster: FakeCluster) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    def use() -> None:
        with voltpy.connect(cluster.url) as db:
            db.call("echo", 1)
            db.submit("echo", 1).result(5)

    use()
    before = descriptors()
    for _ in range(20):
        use()
    wait_until(lambda: descriptors() <= before + 4, "sockets are closed")


def test_a_keyboard_interrupt_leaves_the_client_usable(cluster: FakeCluster) -> None:
    db = voltpy.connect(cluster.url, timeout=1)
    partition = cluster.partition(0)

    def interrupt() -> None:
        wait_until(lambda: partition.deaf.is_set() and partition.calls() > sent, "the call has arrived")
        os.kill(os.getpid(), signal.SIGINT)

    calls: list[Any] = [
        lambda: db.call("echo", key_of(0)),
        lambda: db.call_many("echo", [(key_of(0),)] * 1000),
        lambda: [db.submit("echo", key_of(1)), db.call("echo", key_of(0))],
    ]
    for call in calls:
        sent = partition.calls()
        partition.deaf.set()
        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            call()
        thread.join()
        partition.deaf.clear()
        assert db.call("where", key_of(1)) == 1
        # What was sent to the deaf partition fills its window until it times out.
        assert db.call("where", key_of(0), timeout=5) == 0
    db.close()


def interrupt_once(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, *, after: bool = False) -> None:
    """The next use of owner.name in this thread ends with KeyboardInterrupt: before it, or `after` it is done."""
    body, thread = getattr(owner, name), threading.current_thread()

    def interrupted(*args: Any, **options: Any) -> Any:
        if threading.current_thread() is not thread:
            return body(*args, **options)
        monkeypatch.setattr(owner, name, body)
        if after:
            body(*args, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(owner, name, interrupted)


@pytest.mark.parametrize(
    "use",
    [
        lambda db: db.call("where", key_of(0)),
        lambda db: db.call("move", key_of(0), key_of(1)),
        lambda db: db.call("where", key_of(0), timeout=5.0),
        lambda db: db.call_many("where", [(key_of(0),)]),
        lambda db: db.call_everywhere("where_all"),
        lambda db: db.status(),
    ],
    ids=["alone", "the long way", "a timeout", "call_many", "call_everywhere", "status"],
)
@pytest.mark.parametrize(
    ("owner", "name", "after"),
    [
        (Links, "_send", False),
        (Links, "_send", True),
        (SharedConnection, "_prepare_sleep", False),
        (SharedConnection, "_prepare_sleep", True),
        (SharedConnection, "_poll_for", False),
        (SharedConnection, "_wake_up", False),
        (SharedConnection, "_leave", False),
        (SharedConnection, "_leave", True),
        (SharedConnection, "_start_io", False),
        (threading.Thread, "start", False),
        (threading.Thread, "start", True),
    ],
)
def test_an_interrupt_leaves_the_client_to_other_threads(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch, use: Any, owner: Any, name: str, after: bool
) -> None:
    with voltpy.connect(cluster.url, timeout=2.0) as db:
        assert db.call("where", key_of(0)) == 0
        answers: list[int] = []
        other = threading.Thread(target=lambda: answers.append(db.call("where", key_of(1))), daemon=True)
        interrupt_once(monkeypatch, owner, name, after=after)
        with suppress(KeyboardInterrupt):  # not every use passes there
            use(db)
        monkeypatch.undo()
        other.start()
        other.join(20)
        assert answers == [1]
        assert db.call("where", key_of(0), timeout=5.0) == 0


@pytest.mark.parametrize("name", ["_leave", "_start_io", "_take_settled"])
@pytest.mark.parametrize("after", [False, True])
def test_an_interrupt_as_the_role_passes_on_leaves_nobody_waiting(
    cluster: FakeCluster, db: Client, monkeypatch: pytest.MonkeyPatch, name: str, after: bool
) -> None:
    partition = cluster.partition(0)
    partition.deaf.set()
    answers: list[int] = []
    others = [
        threading.Thread(target=lambda: answers.append(db.call("where", key_of(1))), daemon=True) for _ in range(2)
    ]

    def start_others() -> None:
        wait_until(lambda: partition.calls() == 1 and db._shared._poller.asleep, "the call has arrived")
        for other in others:
            other.start()

    starting = threading.Thread(target=start_others)
    starting.start()
    interrupt_once(monkeypatch, SharedConnection, name, after=after)
    with pytest.raises(KeyboardInterrupt):
        db.call("where", key_of(0))
    starting.join()
    for other in others:
        other.join(20)
    assert answers == [1, 1]


def test_an_interrupt_amid_waking_others_wakes_them_all(
    cluster: FakeCluster, db: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    locks = [threading.Lock() for _ in range(3)]
    settled: list[Any] = []
    for lock in locks:
        lock.acquire()
        call = WaitingCall()
        call.lock = lock
        call.done = True
        settled.append(call)
    assert db.call("where", key_of(0)) == 0
    take, wake = SharedConnection._take_settled, waiting.wake
    woken = 0

    def interrupted(lock: Any) -> None:
        nonlocal woken
        woken += 1
        wake(lock)
        if woken == 2:
            raise KeyboardInterrupt

    def take_settled(self: SharedConnection, into: list[Any]) -> None:
        monkeypatch.setattr(SharedConnection, "_take_settled", take)
        take(self, into)
        into += settled

    monkeypatch.setattr(waiting, "wake", interrupted)
    monkeypatch.setattr(SharedConnection, "_take_settled", take_settled)
    with pytest.raises(KeyboardInterrupt):
        db.call("where", key_of(0))
    assert not any(lock.locked() for lock in locks)


def test_a_client_that_can_start_no_thread_fails_all_calls_instead_of_keeping_them_waiting(
    cluster: FakeCluster, db: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    partition = cluster.partition(0)
    partition.deaf.set()
    errors: list[BaseException] = []

    def body() -> None:
        try:
            db.call("where", key_of(0))
        except (RuntimeError, voltpy.Error) as error:
            errors.append(error)

    def fail(connection: SharedConnection) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(SharedConnection, "_start_io", fail)
    threads = [threading.Thread(target=body) for _ in range(3)]
    for thread in threads:
        thread.start()
        wait_until(lambda: db._shared._poller.asleep or bool(errors), "it waits")
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()
    assert (
        {RuntimeError} < {type(error) for error in errors} <= {RuntimeError, voltpy.Indeterminate, voltpy.Unavailable}
    )
    with pytest.raises(voltpy.Unavailable, match="closed"):
        db.call("where", key_of(1))


# ── calls amid calls ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def on_signal() -> Iterator[Callable[[Callable[[], Any]], list[Any]]]:
    """What the first SIGUSR1 does, in the main thread amid whatever that does; what came of it is in the list."""

    def set_handler(use: Callable[[], Any]) -> list[Any]:
        outcomes: list[Any] = []
        begun = False

        def handle(number: int, frame: Any) -> None:
            nonlocal begun
            if begun:
                return
            begun = True
            try:
                outcomes.append(use())
            except voltpy.Error as error:
                outcomes.append(error)

        signal.signal(signal.SIGUSR1, handle)
        return outcomes

    yield set_handler
    signal.signal(signal.SIGUSR1, lambda number, frame: None)  # one may still come, and would end the process


def answer_after_signal(monkeypatch: pytest.MonkeyPatch, db: Client, outcomes: list[Any]) -> None:
    """The procedure `add` sends the signal as soon as its caller waits, and answers when that was handled.

    It sends it again and again: one that comes just before the caller sleeps on a lock does not wake it.
    """
    caller = threading.get_ident()

    def body(node: Any, key: Any, amount: int) -> int:
        wait_until(lambda: db._shared._poller.asleep, "the caller waits")
        wait_until(lambda: bool(outcomes) or signal.pthread_kill(caller, signal.SIGUSR1), "the signal is handled")
        return amount

    monkeypatch.setitem(PROCEDURES, "add", (PROCEDURES["add"][0], body))


WAITING_USES: list[Callable[[Client], Any]] = [
    lambda db: db.call("where", key_of(1)),
    lambda db: db.call_many("where", [(key_of(1),)]),
    lambda db: db.call_everywhere("where_all"),
    lambda db: db.execute("SELECT 1"),
    lambda db: db.procedures(),
    lambda db: db.status(),
]
OTHER_USES: list[Callable[[Client], Any]] = [lambda db: db.submit("where", key_of(1)), lambda db: db.close()]


@pytest.mark.parametrize("use", WAITING_USES)
def test_a_signal_handler_that_calls_amid_the_wait_of_a_call_is_refused(
    db: Client, monkeypatch: pytest.MonkeyPatch, on_signal: Any, use: Callable[[Client], Any]
) -> None:
    outcomes = on_signal(lambda: use(db))
    answer_after_signal(monkeypatch, db, outcomes)
    assert db.call("add", key_of(0), 7) == 7
    (refused,) = outcomes
    assert isinstance(refused, voltpy.Reentered)
    assert "signal handler" in str(refused)
    assert db.call("where", key_of(1)) == 1
    assert db._shared._thread is None  # it was alone all the time


@pytest.mark.parametrize("use", WAITING_USES + OTHER_USES)
@pytest.mark.parametrize("place", [(Links, "_send"), (Links, "_take"), (SharedConnection, "_leave")])
def test_a_signal_handler_that_uses_the_client_amid_its_work_is_refused(
    db: Client, monkeypatch: pytest.MonkeyPatch, on_signal: Any, use: Callable[[Client], Any], place: tuple[Any, str]
) -> None:
    body = getattr(*place)
    outcomes = on_signal(lambda: use(db))

    def interrupted(*args: Any, **options: Any) -> Any:
        if not outcomes:
            signal.raise_signal(signal.SIGUSR1)
        return body(*args, **options)

    monkeypatch.setattr(*place, interrupted)
    assert db.call("move", key_of(0), key_of(1)) == 2
    (refused,) = outcomes
    assert isinstance(refused, voltpy.Reentered)
    monkeypatch.undo()
    assert db.call("where", key_of(1)) == 1
    assert db._shared._thread is None


def test_a_signal_handler_may_submit_amid_the_wait_of_a_call(
    db: Client, monkeypatch: pytest.MonkeyPatch, on_signal: Any
) -> None:
    outcomes = on_signal(lambda: db.submit("where", key_of(1)))
    answer_after_signal(monkeypatch, db, outcomes)
    assert db.call("add", key_of(0), 7) == 7
    assert outcomes[0].result(5) == 1


def test_a_signal_handler_may_close_amid_the_wait_of_a_call(
    db: Client, monkeypatch: pytest.MonkeyPatch, on_signal: Any
) -> None:
    outcomes = on_signal(db.close)
    answer_after_signal(monkeypatch, db, outcomes)
    with pytest.raises(voltpy.Indeterminate, match="closed"):
        db.call("add", key_of(0), 7)
    assert outcomes == [None]
    with pytest.raises(voltpy.Unavailable, match="closed"):
        db.call("where", key_of(1))


def test_a_signal_handler_may_call_while_another_thread_polls(
    cluster: FakeCluster, db: Client, monkeypatch: pytest.MonkeyPatch, on_signal: Any
) -> None:
    outcomes = on_signal(lambda: db.call("where", key_of(1)))
    db.submit("echo", 1).result(5)  # the I/O thread polls
    answer_after_signal(monkeypatch, db, outcomes)
    assert db.call("add", key_of(0), 7) == 7
    assert outcomes == [1]


def test_a_call_in_a_callback_of_the_thread_that_polls_is_refused(db: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes: list[Any] = []
    done = threading.Event()

    def call(future: Any) -> None:
        for use in (lambda: db.call("echo", 1), lambda: db.call_many("echo", [(1,)])):
            try:
                outcomes.append(use())
            except voltpy.Error as error:
                outcomes.append(error)
        done.set()

    go = threading.Event()
    monkeypatch.setitem(PROCEDURES, "add", (PROCEDURES["add"][0], lambda node, key, amount: go.wait(5)))
    db.submit("add", 2, 1).add_done_callback(call)
    go.set()  # and not before: the callback would run in this thread
    assert done.wait(5)
    assert [type(outcome) for outcome in outcomes] == [voltpy.Reentered] * 2
    assert db.call("echo", 4) == 4


@pytest.mark.parametrize("use", [lambda db: db.call("echo", 1), lambda db: db.execute("SELECT 1")])
def test_a_forked_child_is_told_to_connect_again(
    cluster: FakeCluster, db: Client, use: Callable[[Client], Any]
) -> None:
    assert db.call("echo", 1) == 1
    held, forked = threading.Event(), threading.Event()

    def hold() -> None:
        with db._shared.mutex:  # nobody will ever release that of the child
            held.set()
            forked.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    child = os.fork()
    if child == 0:
        signal.alarm(10)
        status = 1
        try:
            use(db)
        except voltpy.Unavailable as error:
            status = 0 if "fork" in str(error) else 2
        db.close()
        os._exit(status)
    forked.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert db.call("echo", 2) == 2


def test_a_version_that_is_not_ours_is_a_protocol_error(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    from voltpy.messages import Refusal

    assert cluster.router is not None
    router = cluster.router
    monkeypatch.setattr(router, "greet", lambda identity: router.send(identity, Refusal("ProtocolError", "version 2")))
    with pytest.raises(voltpy.ProtocolError, match="version 2"):
        voltpy.connect(cluster.url, timeout=5)


# ── the package ────────────────────────────────────────────────────────────────────────────────────────────────────


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "first",
    ["import voltpy", "import voltpy.procedure", "from voltpy.procedure import Procedure", "import voltpy.wire"],
)
def test_procedure_is_the_decorator_whatever_is_imported_first(first: str) -> None:
    code = f"""
{first}
from voltpy import procedure
import voltpy, voltpy.procedure
from voltpy.procedure import Procedure, procedure as same
assert procedure is voltpy.procedure is same
@voltpy.procedure(partition_by="key")
def get(tx, key: int) -> int: ...
assert callable(get)
"""
    run_python(code)


def test_the_package_loads_no_sockets_until_a_client_is_asked_for() -> None:
    heavy = "{'zmq', 'asyncio', 'numpy', 'rich', 'click', 'sqlglot'}"
    assert run_python(f"import sys, voltpy; print(sorted({heavy} & set(sys.modules)))") == "[]"
    loaded = run_python(f"import sys, voltpy; voltpy.connect; print(sorted({heavy} & set(sys.modules)))")
    assert "zmq" in loaded
    assert "numpy" not in loaded


def test_public_names_are_there() -> None:
    assert all(getattr(voltpy, name) is not None for name in voltpy.__all__)
    assert set(CODES) <= set(voltpy.__all__)  # every error
    with pytest.raises(AttributeError, match="conect"):
        voltpy.conect  # noqa: B018 — the access is the test
