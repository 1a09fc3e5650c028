"""The client for asyncio, over real sockets against a cluster of threads."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

import voltpy
from tests.voltpy.fake_cluster import FakeCluster, wait_until
from voltpy.address import Address
from voltpy.aio import AsyncClient
from voltpy.hash_slot import hash_slot, slot_owners


@pytest.fixture(params=["stream", "ipc"])
def cluster(request: pytest.FixtureRequest) -> Iterator[FakeCluster]:
    """With both kinds of connection that a partition on the same machine may have."""
    with FakeCluster(2, streams=request.param == "stream") as made:
        yield made


def key_of(partition: int) -> int:
    owners = slot_owners(2)
    return next(key for key in range(1000) if owners[hash_slot(key)] == partition)


def run(cluster: FakeCluster, body: Callable[[AsyncClient], Awaitable[Any]], **options: Any) -> None:
    """Runs `body` with a client; one that hangs fails the test."""
    url = cluster.url + options.pop("query", "")

    async def main() -> None:
        async with asyncio.timeout(20), voltpy.connect_async(url, **options) as db:
            await body(db)

    asyncio.run(main())


def test_calls_across_partitions_are_awaited(cluster: FakeCluster) -> None:
    here, there = key_of(0), key_of(1)

    async def body(db: AsyncClient) -> None:
        calls = [
            db.call("move", here, there),
            db.call("move", here, here),
            db.call("anywhere"),
            db.call("rename", here),
        ]
        assert await asyncio.gather(*calls) == [2, 0, 2, 2]
        assert await db.call_many("move", [(here, there), (there, there)] * 200) == [2, 1] * 200
        assert await db.call_everywhere("set_all") == [0, 1]

    run(cluster, body)


async def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.002)


def test_a_call_is_awaited(cluster: FakeCluster) -> None:
    async def body(db: AsyncClient) -> None:
        assert await db.call("echo", 5) == 5
        assert await db.call("echo", "a", [1, None]) == ["a", [1, None]]
        assert await asyncio.gather(*(db.call("where", key_of(number)) for number in (0, 1))) == [0, 1]
        with pytest.raises(voltpy.Aborted, match="3 is odd"):
            await db.call("refuse_odd", 3)
        with pytest.raises(voltpy.BadArguments, match="echo"):
            await db.call("echo", object())
        with pytest.raises(voltpy.UnknownProcedure, match="nowhere"):
            await db.call("nowhere", 1)
        with pytest.raises(ValueError, match="timeout"):
            await db.call("echo", 1, timeout=0)

    run(cluster, body)
    assert cluster.router is not None
    assert cluster.router.calls() == 0


def test_the_connection_may_be_awaited_or_entered(cluster: FakeCluster) -> None:
    async def main() -> None:
        async with await voltpy.connect_async(cluster.url) as db:
            assert await db.call("echo", 1) == 1
        async with voltpy.connect_async(cluster.url) as db:
            assert await db.call("echo", 2) == 2
        db = await voltpy.connect_async(cluster.url)
        assert await db.call("echo", 3) == 3
        await db.close()
        await db.close()
        with pytest.raises(voltpy.Unavailable, match="closed"):
            await db.call("echo", 4)
        with pytest.raises(voltpy.Unavailable, match="closed"):
            await db.call_many("echo", [(4,)])

    asyncio.run(main())


def test_tasks_that_each_await_one_call_share_frames(cluster: FakeCluster) -> None:
    async def body(db: AsyncClient) -> None:
        async def task(number: int) -> None:
            for index in range(50):
                assert await db.call("echo", number * 1000 + index) == number * 1000 + index

        await asyncio.gather(*(task(number) for number in range(64)))

    run(cluster, body)
    assert sum(cluster.partition(number).calls() for number in (0, 1)) == 3200
    assert cluster.call_frames() < 3200 / 8


def test_calls_of_one_tick_leave_in_one_frame_a_partition(cluster: FakeCluster) -> None:
    async def body(db: AsyncClient) -> None:
        await asyncio.gather(*(db.call("echo", key) for key in range(100)))
        assert cluster.call_frames() == 2
        await asyncio.gather(*(db.call("echo", key) for key in range(1000)))
        assert cluster.call_frames() <= 2 + 10

    run(cluster, body)


def test_through_the_router_one_tick_is_one_frame(cluster: FakeCluster) -> None:
    async def body(db: AsyncClient) -> None:
        await asyncio.gather(*(db.call("echo", key) for key in range(100)))
        assert cluster.router is not None
        assert cluster.router.call_frames() == 1

    run(cluster, body, query="?affinity=off")


def test_submit_returns_a_future_that_can_be_cancelled_until_it_is_sent(cluster: FakeCluster) -> None:
    async def body(db: AsyncClient) -> None:
        futures = [db.submit("echo", key) for key in range(10)]
        assert futures[3].cancel()
        assert await asyncio.gather(*futures[:3], *futures[4:]) == [0, 1, 2, 4, 5, 6, 7, 8, 9]
        late = db.submit("echo", 11)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        late.cancel()
        assert await db.call("echo", 12) == 12

    run(cluster, body)
    # The cancelled call was sent, but nobody awaited its partition, which may read it only now.
    wait_until(lambda: sum(cluster.partition(number).calls() for number in (0, 1)) == 11, "11 calls came")


def test_a_cancelled_task_leaves_the_client_usable(cluster: FakeCluster) -> None:
    async def body(db: AsyncClient) -> None:
        cluster.partition(0).deaf.set()
        one = asyncio.create_task(db.call("echo", key_of(0)))
        many = asyncio.create_task(db.call_many("echo", [(key_of(0),)] * 5000))
        await until(lambda: cluster.partition(0).calls() > 300, "the calls have arrived")
        one.cancel()
        many.cancel()
        assert [type(error) for error in await asyncio.gather(one, many, return_exceptions=True)] == [
            asyncio.CancelledError
        ] * 2
        assert await db.call("where", key_of(1)) == 1

    run(cluster, body)


def test_call_many_returns_results_in_order(cluster: FakeCluster) -> None:
    async def body(db: AsyncClient) -> None:
        assert await db.call_many("echo", ((key,) for key in range(20_000))) == list(range(20_000))
        assert cluster.call_frames() < 20_000 / 128 * 1.35
        rows: list[Any] = [(key,) for key in range(1000)]
        rows[10] = (object(),)
        results = await db.call_many("refuse_odd", rows, return_exceptions=True)
        assert [type(results[key]) for key in (0, 1, 10)] == [int, voltpy.Aborted, voltpy.BadArguments]
        with pytest.raises(voltpy.Aborted, match="1 is odd"):
            await db.call_many("refuse_odd", [(key,) for key in range(1000)])
        assert await db.call_many("echo", []) == []
        with pytest.raises(voltpy.UnknownProcedure):
            await db.call_many("nowhere", [(1,)])

    run(cluster, body)


def test_large_arguments_and_results_pass(cluster: FakeCluster) -> None:
    async def body(db: AsyncClient) -> None:
        rows = [(key, chr(65 + key % 26) * 200_000) for key in range(60)]
        assert await db.call_many("echo", rows) == [list(row) for row in rows]
        assert await asyncio.gather(*(db.call("echo", *row) for row in rows)) == [list(row) for row in rows]

    run(cluster, body)


def test_call_many_leaves_room_for_other_tasks(cluster: FakeCluster) -> None:
    async def body(db: AsyncClient) -> None:
        many = asyncio.create_task(db.call_many("echo", [(key,) for key in range(100_000)]))
        answered = 0
        while not many.done():
            await db.call("echo", 1)
            answered += 1
        assert answered > 10
        assert len(await many) == 100_000

    run(cluster, body)


def test_several_batches_at_once(cluster: FakeCluster) -> None:
    async def body(db: AsyncClient) -> None:
        batches = [db.call_many("echo", [(start + key,) for key in range(3000)]) for start in range(0, 50_000, 10_000)]
        for start, results in zip(range(0, 50_000, 10_000), await asyncio.gather(*batches), strict=True):
            assert results == list(range(start, start + 3000))

    run(cluster, body)


@pytest.mark.parametrize("announce", [True, False])
def test_a_dead_partition_is_noticed_at_once(cluster: FakeCluster, announce: bool) -> None:
    async def body(db: AsyncClient) -> None:
        cluster.partition(0).deaf.set()
        calls = [asyncio.create_task(db.call("echo", key_of(0))) for _ in range(10)]
        await until(lambda: cluster.partition(0).calls() == 10, "the calls have arrived")
        began = time.monotonic()
        cluster.kill(0, announce=announce)
        errors = await asyncio.gather(*calls, return_exceptions=True)
        assert time.monotonic() - began < (0.9 if announce else 2)
        assert [type(error) for error in errors] == [voltpy.Indeterminate] * 10
        assert await db.call("where", key_of(1)) == 1
        if announce:
            with pytest.raises(voltpy.Unavailable):
                await db.call("echo", key_of(0))
            cluster.restart(0)
            await until(lambda: db._connection.cluster.lanes[0].direct, "connected to the new process")
            assert await db.call("where", key_of(0)) == 0

    run(cluster, body)


def test_a_retried_call_answers_with_its_first_result(cluster: FakeCluster) -> None:
    async def body(db: AsyncClient) -> None:
        key = key_of(0)
        first = cluster.partition(0)
        assert await db.call("add", key, 5) == 5
        first.swallow_replies = True
        call = asyncio.create_task(db.call("add", key, 7))
        await until(lambda: first.totals[key] == 12, "the call ran")
        cluster.kill(0)
        cluster.restart(0)
        assert await call == 12
        assert await db.call("add", key, 1) == 13

    run(cluster, body, retry_s=8)


def test_a_restarted_router_is_found_again(cluster: FakeCluster) -> None:
    async def body(db: AsyncClient) -> None:
        assert await db.call("echo", 1) == 1
        cluster.kill_router()
        with pytest.raises((voltpy.Indeterminate, voltpy.Unavailable)):
            await db.call("echo", 1)
        cluster.restart_router()
        await until(lambda: db._connection.unsent.router.ready, "connected again")
        assert await db.call("echo", 2) == 2

    run(cluster, body, query="?affinity=off")


def test_a_slow_partition_leaves_a_call_indeterminate(cluster: FakeCluster) -> None:
    async def body(db: AsyncClient) -> None:
        cluster.partition(0).deaf.set()
        began = time.monotonic()
        with pytest.raises(voltpy.Indeterminate, match=r"timed out after 0\.2 s"):
            await db.call("echo", key_of(0), timeout=0.2)
        assert 0.15 < time.monotonic() - began < 2
        results = await db.call_many("echo", [(key,) for key in range(100)], return_exceptions=True, timeout=0.2)
        assert {type(result) for result in results} == {int, voltpy.Indeterminate}

    run(cluster, body)


def test_garbage_from_a_partition_is_a_protocol_error(cluster: FakeCluster) -> None:
    async def body(db: AsyncClient) -> None:
        cluster.partition(0).garbage.set()
        with pytest.raises(voltpy.ProtocolError, match="partition 0"):
            await db.call("echo", key_of(0))
        cluster.partition(0).garbage.clear()
        await until(lambda: db._connection.cluster.lanes[0].direct, "connected again")
        assert await db.call("echo", key_of(0)) == key_of(0)

    run(cluster, body)


def test_call_everywhere_and_commands(cluster: FakeCluster) -> None:
    async def body(db: AsyncClient) -> None:
        assert await db.call_everywhere("where_all") == [0, 1]
        with pytest.raises(voltpy.BadArguments):
            await db.call_everywhere("echo", 1)
        with pytest.raises(voltpy.Aborted, match=r"^partition 1: 1 is odd$"):
            await db.call_everywhere("refuse_in_odd")
        zero, first = await db.call_everywhere("refuse_in_odd", return_exceptions=True)
        assert (zero, str(first)) == (0, "partition 1: 1 is odd")
        assert await db.status() == {"command": "status", "body": {}}
        assert (await db.load_procedures("x = 1", "p.py"))["body"] == {"source": "x = 1", "path": "p.py"}
        await db.stop()
        assert [entry.name for entry in await db.procedures()] == sorted(cluster.procedures)

    run(cluster, body)


def test_nobody_there_is_unavailable_and_no_hang() -> None:
    async def main() -> None:
        with pytest.raises(voltpy.Unavailable, match="nothing listens"):
            await voltpy.connect_async("voltpy://127.0.0.1:1", timeout=0.3)

    began = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - began < 2


def test_a_cluster_that_is_being_started_is_waited_for_as_long_as_calls_are_retried(cluster: FakeCluster) -> None:
    url = cluster.url
    cluster.kill_router()
    wait_until(lambda: not Address(url).listens(), "the router's socket is closed")

    async def main() -> None:
        with pytest.raises(voltpy.Unavailable, match="nothing listens"):
            await voltpy.connect_async(url, retry_s=0.3)
        asyncio.get_running_loop().call_later(0.2, cluster.restart_router)
        async with asyncio.timeout(20), voltpy.connect_async(url, retry_s=30.0) as db:
            assert await db.call("echo", 1) == 1

    asyncio.run(main())


def test_a_wrong_url_is_named_before_anything_is_awaited() -> None:
    with pytest.raises(ValueError, match="unknown option"):
        voltpy.connect_async("voltpy://h?x=1")


def test_closing_ends_what_is_under_way(cluster: FakeCluster) -> None:
    async def body(db: AsyncClient) -> None:
        cluster.partition(0).deaf.set()
        calls = [
            asyncio.create_task(db.call("echo", key_of(0))),
            asyncio.create_task(db.call_many("echo", [(key_of(0),)] * 5000)),
        ]
        await until(lambda: cluster.partition(0).calls() > 300, "the calls have arrived")
        await db.close()
        errors = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(error) for error in errors} <= {voltpy.Indeterminate, voltpy.Unavailable}

    run(cluster, body)


def test_clients_leave_no_file_descriptors_behind(cluster: FakeCluster) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    async def body(db: AsyncClient) -> None:
        await db.call("echo", 1)

    run(cluster, body)
    before = descriptors()
    for _ in range(10):
        run(cluster, body)
    wait_until(lambda: descriptors() <= before + 4, "sockets are closed")
