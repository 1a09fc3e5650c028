"""The connection's state machine, driven frame by frame against a model of a cluster."""

from __future__ import annotations

import importlib
import itertools
import random
from collections.abc import Iterator
from itertools import islice
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec import Raw

from voltpy import wire
from voltpy.batch import UNSETTLED, Batch
from voltpy.calls import MAX_CALL_BYTES, Command, Everywhere, Lookup, Pending
from voltpy.cluster_changes import TOPOLOGY_WAIT_S
from voltpy.connection import ROUTER_WAIT_S, Connection
from voltpy.errors import (
    Aborted,
    BadArguments,
    Error,
    Indeterminate,
    Overloaded,
    ProcedureTimeout,
    ProtocolError,
    SchemaError,
    Unavailable,
    UnknownProcedure,
)
from voltpy.frame import Frame
from voltpy.hash_slot import hash_slot, slot_owners
from voltpy.lane import COORDINATOR_WINDOW_CALLS, ROUTER, WINDOW_CALLS
from voltpy.messages import (
    CALLS_A_FRAME,
    CALLS_IN_FLIGHT_A_CLIENT,
    ELSEWHERE,
    FRAMES_IN_FLIGHT,
    NEVER_SENT,
    NO_HELLO,
    STALE,
    Admin,
    AdminReply,
    CallError,
    Calls,
    Closing,
    EverywhereCall,
    Hello,
    Lost,
    PartitionAddress,
    ProcedureInfo,
    Refusal,
    Replies,
    ReplyGroup,
    Runaway,
    Topology,
    Welcome,
)

decode_value = msgspec.msgpack.Decoder().decode

PROCEDURES = [
    ProcedureInfo("get", [0], False, True, [], ""),
    ProcedureInfo("put", [0], False, False, [], ""),
    ProcedureInfo("second", [1], False, False, [], ""),
    ProcedureInfo("count", [], True, True, [], ""),
    ProcedureInfo("move", [0, 1], False, False, [], ""),
    ProcedureInfo("sum", [0], False, True, [], ""),
    ProcedureInfo("total", [], False, True, [], ""),
    ProcedureInfo("set_all", [], True, False, [], "", joint=True),
]


class Cluster:
    """What a connection is told, and what the tests answer. Behind the partitions, of several, is the coordinator."""

    def __init__(self, partitions: int = 2, **options: Any) -> None:
        self.connection = Connection(77, **options)
        processes = partitions + (partitions > 1)
        self.incarnations = [1] * processes
        self.lsns = [100] * processes
        self.version = 1
        self.catalog_version = 1
        self.procedures = PROCEDURES
        self.runaways: list[Runaway] = []
        self.cluster_id = "c1"

    def topology(self) -> Topology:
        addresses = [
            PartitionAddress(number, incarnation, f"/run/p{number}", 1000 + number, self.lsns[number])
            for number, incarnation in enumerate(self.incarnations)
        ]
        coordinator = addresses.pop() if len(addresses) > 1 else None
        return Topology(
            self.version,
            self.catalog_version,
            self.cluster_id,
            "/run",
            addresses,
            self.procedures,
            self.runaways,
            coordinator,
        )

    def feed(self, source: int, message: Any, now: float = 0.0) -> bool:
        return self.connection.receive(source, wire.encode(message), now)

    def welcome(self, now: float = 0.0) -> None:
        self.feed(ROUTER, Welcome(1, 0, self.topology()), now)

    def direct(self, now: float = 0.0) -> None:
        for number, incarnation in enumerate(self.incarnations):
            if incarnation:
                self.feed(number, Welcome(1, incarnation, None), now)

    def announce(self, now: float = 0.0) -> None:
        self.version += 1
        self.feed(ROUTER, self.topology(), now)

    def submit(self, procedure: str, *args: Any, now: float = 0.0, timeout: float = 10.0) -> Pending:
        call = Pending()
        self.connection.submit(call, procedure, args, now, timeout)
        return call

    def batch(self, rows: list[Any], procedure: str = "get", now: float = 0.0, timeout: float = 10.0) -> Batch:
        batch = Batch(self.connection.cluster.procedures[procedure], timeout)
        self.connection.fill(batch, rows, now)
        batch.finished = True
        self.connection.push(batch, now)
        return batch

    def frames(self, now: float = 0.0) -> list[Frame]:
        return self.connection.frames(now)

    def answer(self, frame: Frame, now: float = 0.0, value: Any = None) -> None:
        """Replies to each call of a frame with its arguments, or `value`."""
        for group in calls_of(frame).groups:
            values = [value if value is not None else args for args in decode_value(group.args)]
            self.reply(group.partition, group.numbers, values, now, frame.destination)

    def reply(self, partition: int, numbers: list[int], values: list[Any], now: float = 0.0, via: int = 0) -> None:
        self.lsns[partition] += len(numbers)
        groups = [ReplyGroup(77, numbers, Raw(wire.encode(values)))]
        self.feed(via, Replies(partition, self.incarnations[partition], self.lsns[partition], groups, []), now)

    def fail(self, partition: int, number: int, code: str, now: float = 0.0, text: str = "so") -> None:
        incarnation = self.incarnations[partition] if partition >= 0 else 0
        self.feed(max(partition, 0), Replies(partition, incarnation, 0, [], [CallError(77, number, code, text)]), now)


def calls_of(frame: Frame) -> Calls:
    message = wire.decode(frame.data)
    assert isinstance(message, Calls)
    return message


def key_of(partition: int, partitions: int = 2) -> int:
    return keys_of(partition, 1, partitions)[0]


def keys_of(partition: int, count: int, partitions: int = 2) -> list[int]:
    owners = slot_owners(partitions)
    return list(islice((key for key in itertools.count() if owners[hash_slot(key)] == partition), count))


@pytest.fixture
def cluster() -> Cluster:
    made = Cluster()
    made.welcome()
    made.direct()
    return made


def error_of(call: Pending) -> Error:
    assert call.done
    assert call.error is not None
    return call.error


# ── one call ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_call_goes_to_the_partition_of_its_key_and_settles_with_its_result(cluster: Cluster) -> None:
    key = key_of(1)
    call = cluster.submit("put", key, "x")
    (frame,) = cluster.frames()
    (group,) = calls_of(frame).groups
    assert frame.destination == 1
    assert (group.procedure, group.partition, group.incarnation, group.client_id) == ("put", 1, 1, 77)
    assert group.slots == [hash_slot(key)]
    assert group.retry_floor == NEVER_SENT
    assert decode_value(group.args) == [[key, "x"]]
    assert cluster.frames() == []
    cluster.answer(frame, value="done")
    assert (call.done, call.value, call.error) == (True, "done", None)
    assert cluster.connection.outcomes.settled == [call]
    assert not cluster.connection.busy()


@pytest.mark.parametrize("key", [key_of(0), str(key_of(0))])
def test_a_lone_call_takes_the_short_way_with_the_same_result(cluster: Cluster, key: int | str) -> None:
    long, short = cluster.submit("put", key, "x"), Pending()
    (one,) = cluster.frames()
    cluster.answer(one, value="done")
    two = cluster.connection.submit_alone(short, "put", (key, "x"), 0.0, 10.0)
    assert two is not None
    (before,), (after,) = calls_of(one).groups, calls_of(two).groups
    assert (before.slots, bytes(before.args), before.incarnation, one.destination) == (
        after.slots,
        bytes(after.args),
        after.incarnation,
        two.destination,
    )
    assert after.numbers == [before.numbers[0] + 1]
    cluster.answer(two, value="done")
    assert (short.value, cluster.connection.outcomes.settled) == ("done", [long, short])
    assert not cluster.connection.busy()
    assert cluster.connection.cluster.lanes[0].unanswered == cluster.connection.cluster.lanes[0].unanswered_bytes == 0


@pytest.mark.parametrize("args", [(), ([5],), ("\ud800",), (1.5,), (1 << 70,), (1, object()), (1, b"x" * (1 << 21))])
def test_what_is_unusual_goes_the_long_way(cluster: Cluster, args: tuple[Any, ...]) -> None:
    assert cluster.connection.submit_alone(Pending(), "put", args, 0.0, 10.0) is None
    assert not cluster.connection.busy()


def test_calls_of_one_tick_share_a_frame(cluster: Cluster) -> None:
    keys = keys_of(0, 60)
    calls = [cluster.submit("get" if index % 2 else "put", key) for index, key in enumerate(keys)]
    (frame,) = cluster.frames()
    assert sorted(group.procedure for group in calls_of(frame).groups) == ["get", "put"]
    cluster.answer(frame)
    assert [call.value for call in calls] == [[key] for key in keys]


def test_the_key_may_be_any_argument(cluster: Cluster) -> None:
    cluster.submit("second", "a", "Oslo")
    (frame,) = cluster.frames()
    assert calls_of(frame).groups[0].slots == [hash_slot("Oslo")]


@pytest.mark.parametrize(
    ("procedure", "args", "words"),
    [
        ("get", (), "needs its key"),
        ("get", (1.5,), "float"),
        ("get", (True,), "bool"),
        ("get", (None,), "NoneType"),
        ("get", ("\ud800",), "get"),
        ("get", (1 << 70,), "get: the arguments can't be sent"),
        ("get", (1, object()), "get: the arguments can't be sent"),
        ("put", (1, -(1 << 63) - 1), "put: the arguments can't be sent"),
        ("put", (1, "\ud800"), "put: the arguments can't be sent"),
        ("put", (1, b"x" * MAX_CALL_BYTES), "limit"),
        ("count", (), "call_everywhere"),
    ],
)
def test_arguments_that_cannot_travel_are_refused_before_sending(
    cluster: Cluster, procedure: str, args: tuple[Any, ...], words: str
) -> None:
    good = cluster.submit("get", key_of(0))
    bad = cluster.submit(procedure, *args)
    error = error_of(bad)
    assert type(error) is BadArguments
    assert words in str(error)
    assert procedure in str(error)
    (frame,) = cluster.frames()
    cluster.answer(frame)
    assert good.error is None


def test_an_error_of_the_procedure_reaches_its_call_alone(cluster: Cluster) -> None:
    calls = [cluster.submit("get", key) for key in keys_of(0, 3)]
    (frame,) = cluster.frames()
    numbers = calls_of(frame).groups[0].numbers
    cluster.fail(0, numbers[1], "Aborted", text="no")
    cluster.reply(0, [numbers[0], numbers[2]], ["a", "c"])
    assert [call.value for call in calls] == ["a", None, "c"]
    assert type(error_of(calls[1])) is Aborted
    assert str(calls[1].error) == "no"


def test_replies_may_come_apart_together_and_in_any_order(cluster: Cluster) -> None:
    calls = [cluster.submit("get", key) for key in keys_of(0, 4)]
    one = cluster.frames()
    more = [cluster.submit("get", key) for key in keys_of(0, 4)]
    two = cluster.frames()
    numbers = [number for frame in one + two for group in calls_of(frame).groups for number in group.numbers]
    order = random.Random(1).sample(numbers, len(numbers))
    cluster.reply(0, order[:3], order[:3])
    cluster.reply(0, order[3:], order[3:])
    assert [call.value for call in calls + more] == numbers


def test_a_reply_that_comes_twice_or_to_nobody_is_ignored(cluster: Cluster) -> None:
    call = cluster.submit("get", key_of(0))
    (frame,) = cluster.frames()
    cluster.answer(frame, value=1)
    cluster.answer(frame, value=2)
    cluster.reply(0, [999], [3])
    cluster.fail(0, 999, "Aborted")
    cluster.feed(0, Replies(0, 1, 1, [ReplyGroup(78, [call.number], Raw(wire.encode([4])))], []))
    assert call.value == 1
    assert cluster.connection.outcomes.settled == [call]


# ── windows ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_frames_hold_128_calls_and_a_window_eight_frames(cluster: Cluster) -> None:
    calls = [cluster.submit("get", key) for key in keys_of(0, 2000)]
    frames = cluster.frames()
    assert [sum(len(group.numbers) for group in calls_of(frame).groups) for frame in frames] == [
        CALLS_A_FRAME
    ] * FRAMES_IN_FLIGHT
    assert cluster.frames() == []
    cluster.answer(frames[2])
    (one_more,) = cluster.frames()
    rest = [one_more]
    for frame in [*frames[:2], *frames[3:]]:
        cluster.answer(frame)
    while more := cluster.frames():
        rest += more
        for frame in more:
            cluster.answer(frame)
    cluster.answer(one_more)
    assert all(call.done and call.error is None for call in calls)
    assert cluster.connection.cluster.lanes[0].unanswered == 0
    assert cluster.connection.cluster.lanes[0].unanswered_bytes == 0


def test_a_withdrawn_call_does_not_hold_back_the_batch_behind_it(cluster: Cluster) -> None:
    cluster.connection.withdraw(cluster.submit("get", key_of(0)))
    batch = cluster.batch([(key_of(0),)])
    (frame,) = cluster.frames()
    cluster.answer(frame)
    assert batch.left == 0


@pytest.mark.parametrize("partitions", [8, 16, 100, 512])
@pytest.mark.parametrize("as_batch", [False, True])
def test_all_partitions_together_stay_within_the_routers_limit(partitions: int, as_batch: bool) -> None:
    cluster = Cluster(partitions, affinity=False)
    cluster.welcome()
    keys = range(2 * CALLS_IN_FLIGHT_A_CLIENT)
    if as_batch:
        batch = Batch(cluster.connection.cluster.procedures["get"], 10.0)
        cluster.connection.fill(batch, [(key,) for key in keys], 0.0)
        batch.finished = True
        cluster.connection.push(batch, 0.0)
    else:
        calls = [cluster.submit("get", key) for key in keys]
    frames = cluster.frames()
    in_flight = sum(len(group.numbers) for frame in frames for group in calls_of(frame).groups)
    limit = CALLS_IN_FLIGHT_A_CLIENT - WINDOW_CALLS  # the rest is for the coordinator
    assert limit * 0.9 < in_flight <= limit
    while frames:
        for frame in frames:
            cluster.answer(frame)
        frames = cluster.frames()
    if as_batch:
        assert batch.left == 0
        assert not batch.failed
    else:
        assert all(call.done and call.error is None for call in calls)


def test_a_full_window_of_one_partition_does_not_hold_back_another(cluster: Cluster) -> None:
    for key in keys_of(0, WINDOW_CALLS + 88):
        cluster.submit("get", key)
    cluster.frames()
    call = cluster.submit("get", key_of(1))
    (frame,) = cluster.frames()
    assert frame.destination == 1
    cluster.answer(frame)
    assert call.done


def test_a_frame_that_fills_up_is_urgent(cluster: Cluster) -> None:
    for key in keys_of(0, CALLS_A_FRAME - 1):
        cluster.submit("get", key)
    assert not cluster.connection.unsent.urgent
    cluster.submit("get", key_of(0))
    assert cluster.connection.unsent.urgent
    cluster.frames()
    assert not cluster.connection.unsent.urgent


def test_large_arguments_make_smaller_frames(cluster: Cluster) -> None:
    value = b"x" * 300_000
    for key in keys_of(0, 8):
        cluster.submit("put", key, value)
    frames = cluster.frames()
    assert [len(calls_of(frame).groups[0].numbers) for frame in frames] == [3, 3, 2]
    batch = cluster.batch([(key, value) for key in keys_of(1, 7)], "put")
    frames = [frame for frame in cluster.frames() if frame.destination == 1]
    assert sum(len(calls_of(frame).groups[0].numbers) for frame in frames) == 7
    assert all(len(frame.data) <= 1 << 20 for frame in frames)
    for frame in frames:
        cluster.answer(frame, value="ok")
    assert batch.results == ["ok"] * 7


def test_through_the_router_calls_for_all_partitions_share_a_frame() -> None:
    cluster = Cluster(4, affinity=False)
    cluster.welcome()
    cluster.direct()  # a connection that is not wanted is not used
    calls = [cluster.submit("get", key_of(partition, 4)) for partition in range(4)]
    (frame,) = cluster.frames()
    assert frame.destination == ROUTER
    assert [group.partition for group in calls_of(frame).groups] == [0, 1, 2, 3]
    cluster.answer(frame)
    assert all(call.error is None and call.done for call in calls)


def test_a_partition_that_has_not_welcomed_us_is_reached_through_the_router() -> None:
    cluster = Cluster()
    cluster.welcome()
    cluster.submit("get", key_of(0))
    assert [frame.destination for frame in cluster.frames()] == [ROUTER]
    cluster.feed(0, Welcome(1, 1, None))
    cluster.submit("get", key_of(0))
    assert [frame.destination for frame in cluster.frames()] == [0]
    cluster.feed(1, Welcome(1, 9, None))  # another incarnation than the router knows
    cluster.submit("get", key_of(1))
    assert [frame.destination for frame in cluster.frames()] == [ROUTER]


# ── batches ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_batch_places_results_in_order(cluster: Cluster) -> None:
    rows = [(key, str(key)) for key in random.Random(2).sample(range(10**6), 700)]
    batch = cluster.batch(rows, "put")
    frames = cluster.frames()
    assert all(len(calls_of(frame).groups[0].numbers) <= CALLS_A_FRAME for frame in frames)
    for frame in reversed(frames):
        cluster.answer(frame)
    assert batch.left == 0
    assert batch.results == [list(row) for row in rows]
    assert not cluster.connection.busy()


def test_a_batch_takes_replies_in_any_pieces_and_errors_between(cluster: Cluster) -> None:
    rng = random.Random(3)
    batch = cluster.batch([(key,) for key in range(300)])
    sent = {}
    for frame in cluster.frames():
        for group in calls_of(frame).groups:
            for number, args in zip(group.numbers, decode_value(group.args), strict=True):
                sent[number] = (group.partition, args[0])
    numbers = rng.sample(sorted(sent), len(sent))
    while numbers:
        piece = [numbers.pop() for _ in range(min(len(numbers), rng.randrange(1, 40)))]
        for partition in (0, 1):
            mine = [number for number in piece if sent[number][0] == partition]
            failing = [number for number in mine if sent[number][1] % 10 == 7]
            good = [number for number in mine if number not in failing]
            cluster.reply(partition, good, [sent[number][1] for number in good])
            cluster.reply(partition, good[:2], ["again"] * len(good[:2]))
            for number in failing:
                cluster.fail(partition, number, "Aborted")
                cluster.fail(partition, number, "SchemaError")
    assert batch.left == 0
    assert [key if type(result) is Aborted else result for key, result in enumerate(batch.results)] == list(range(300))
    assert sum(type(result) is Aborted for result in batch.results) == 30
    assert [lane.unanswered for lane in cluster.connection.cluster.lanes] == [0, 0, 0]
    assert [lane.unanswered_bytes for lane in cluster.connection.cluster.lanes] == [0, 0, 0]
    assert type(batch.first_error()) is Aborted


def test_rows_that_cannot_travel_fail_alone(cluster: Cluster) -> None:
    rows: list[Any] = [(1, "a"), (2, object()), (1.5, "c"), "row", (), (3, "d"), [4, "e"], (5, "\ud800"), (6, 1 << 80)]
    rows.append((7, b"x" * MAX_CALL_BYTES))
    batch = cluster.batch(rows, "put")
    while frames := cluster.frames():
        for frame in frames:
            cluster.answer(frame)
    kinds = [type(result).__name__ for result in batch.results]
    assert kinds == ["list"] + ["BadArguments"] * 4 + ["list"] * 2 + ["BadArguments"] * 3
    assert all("put" in str(result) for result in batch.results if isinstance(result, Error))
    assert batch.left == 0


def test_a_row_that_its_generator_changes_afterwards_is_sent_as_it_was(cluster: Cluster) -> None:
    row = [1, "first"]
    batch = Batch(cluster.connection.cluster.procedures["put"], 10.0)
    cluster.connection.fill(batch, [row], 0.0)
    row[1] = "second"
    batch.finished = True
    cluster.connection.push(batch, 0.0)
    (frame,) = cluster.frames()
    assert decode_value(calls_of(frame).groups[0].args) == [[1, "first"]]


def test_a_batch_of_unreadable_depth_fails_as_bad_arguments(cluster: Cluster) -> None:
    nested: Any = 1
    for _ in range(100_000):
        nested = [nested]
    batch = cluster.batch([(1, nested)], "put")
    assert cluster.frames() == []
    assert type(batch.results[0]) is BadArguments


def test_partial_groups_leave_when_the_lane_would_run_dry(cluster: Cluster) -> None:
    connection = cluster.connection
    batch = Batch(connection.cluster.procedures["get"], 10.0)
    connection.fill(batch, [(key,) for key in keys_of(0, 50)], 0.0)
    assert cluster.frames() == []
    connection.push(batch, 0.0)
    (first,) = cluster.frames()
    connection.fill(batch, [(key,) for key in keys_of(0, 200)], 0.0)
    connection.push(batch, 0.0)
    (second,) = cluster.frames()  # the full frame; the rest is held back while that is under way
    assert len(calls_of(first).groups[0].numbers) == 50
    assert len(calls_of(second).groups[0].numbers) == CALLS_A_FRAME
    connection.push(batch, 0.0)
    assert cluster.frames() == []
    cluster.answer(second)
    connection.push(batch, 0.0)
    (third,) = cluster.frames()
    assert len(calls_of(third).groups[0].numbers) == 72


def test_room_bounds_what_is_read(cluster: Cluster) -> None:
    connection = cluster.connection
    batch = Batch(connection.cluster.procedures["get"], 10.0)
    while (room := connection.room(batch)) > 0:
        connection.fill(batch, [(key,) for key in range(min(room, 256))], 0.0)
    assert batch.left == 3 * WINDOW_CALLS


def test_dropping_the_unsent_leaves_the_sent_to_settle(cluster: Cluster) -> None:
    connection = cluster.connection
    batch = Batch(connection.cluster.procedures["get"], 10.0)
    connection.fill(batch, [(key,) for key in keys_of(0, WINDOW_CALLS + 488)], 0.0)
    frames = cluster.frames()
    connection.drop_unsent(batch)
    assert batch.left == WINDOW_CALLS
    for frame in frames:
        cluster.answer(frame)
    assert batch.left == 0
    assert sum(isinstance(result, Unavailable) for result in batch.results) == 488
    assert cluster.frames() == []


# ── time ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_call_that_was_sent_times_out_as_indeterminate(cluster: Cluster) -> None:
    call = cluster.submit("get", key_of(0), now=100.0, timeout=3.0)
    (frame,) = cluster.frames(100.0)
    cluster.connection.expire(102.9)
    assert not call.done
    cluster.connection.expire(103.0)
    assert type(error_of(call)) is Indeterminate
    assert "timed out after 3 s" in str(call.error)
    assert cluster.connection.cluster.lanes[0].unanswered == 0
    cluster.answer(frame, 104.0)
    assert cluster.connection.cluster.lanes[0].unanswered == 0
    assert cluster.connection.outcomes.settled == [call]


def test_a_call_that_was_never_sent_times_out_as_unavailable(cluster: Cluster) -> None:
    for key in keys_of(0, WINDOW_CALLS):
        cluster.submit("get", key, timeout=60.0)
    call = cluster.submit("get", key_of(0), timeout=2.0)
    cluster.frames()
    cluster.connection.expire(2.0)
    assert type(error_of(call)) is Unavailable


def test_a_batch_times_out_frame_by_frame(cluster: Cluster) -> None:
    batch = cluster.batch([(key,) for key in keys_of(0, WINDOW_CALLS + 188)], timeout=5.0)
    frames = cluster.frames()
    cluster.answer(frames[1])
    cluster.reply(0, calls_of(frames[0]).groups[0].numbers[:5], [0] * 5)
    cluster.connection.expire(5.0)
    kinds = [type(result).__name__ for result in batch.results]
    sent = ["int"] * 5 + ["Indeterminate"] * 123 + ["list"] * 128 + ["Indeterminate"] * (WINDOW_CALLS - 256)
    assert kinds == sent + ["Unavailable"] * 188
    assert cluster.connection.cluster.lanes[0].unanswered == 0
    cluster.answer(frames[3])
    assert type(batch.results[-189]) is Indeterminate
    assert not cluster.connection.busy()


def test_next_time_is_the_earliest_deadline(cluster: Cluster) -> None:
    cluster.submit("get", key_of(0), now=0.0, timeout=10.0)
    cluster.submit("get", key_of(0), now=0.0, timeout=4.0)
    assert cluster.connection.alarm.time == 4.0
    cluster.frames()
    cluster.connection.expire(4.0)
    assert cluster.connection.alarm.time == 10.0


# ── partitions that die ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_partition_that_dies_settles_its_calls_at_once(cluster: Cluster) -> None:
    sent, other = cluster.submit("get", key_of(0)), cluster.submit("get", key_of(1))
    batch = cluster.batch([(key,) for key in keys_of(0, 3)])
    frames = cluster.frames()
    cluster.incarnations[0] = 0
    cluster.announce()
    assert type(error_of(sent)) is Indeterminate
    assert [type(result) for result in batch.results] == [Indeterminate] * 3
    assert not other.done
    late = cluster.submit("get", key_of(0))
    cluster.frames()
    assert type(error_of(late)) is Unavailable
    for frame in frames:
        cluster.answer(frame)
    assert other.error is None
    assert cluster.connection.cluster.lanes[0].unanswered == 0
    cluster.incarnations[0] = 2
    cluster.announce()
    again = cluster.submit("get", key_of(0))
    (frame,) = cluster.frames()
    assert calls_of(frame).groups[0].incarnation == 2
    cluster.answer(frame)
    assert again.error is None


def test_what_waits_for_the_window_survives_a_restart(cluster: Cluster) -> None:
    calls = [cluster.submit("get", key) for key in keys_of(0, WINDOW_CALLS + 5)]
    cluster.frames()
    cluster.incarnations[0] = 2
    cluster.announce()
    assert [type(call.error) for call in calls] == [Indeterminate] * WINDOW_CALLS + [type(None)] * 5
    (frame,) = cluster.frames()
    cluster.answer(frame)
    assert all(call.done for call in calls)


def test_a_runaway_call_gets_its_timeout_and_the_others_do_not(cluster: Cluster) -> None:
    calls = [cluster.submit("get", key) for key in keys_of(0, 2)]
    cluster.frames()
    cluster.incarnations[0] = 0
    cluster.runaways = [Runaway(77, calls[1].number, "get"), Runaway(78, calls[0].number, "get")]
    cluster.announce()
    assert [type(call.error) for call in calls] == [Indeterminate, ProcedureTimeout]


def test_a_lost_connection_waits_for_the_router_to_say_why(cluster: Cluster) -> None:
    call = cluster.submit("get", key_of(0), now=1.0)
    cluster.frames(1.0)
    cluster.connection.lost(0, 2.0)
    cluster.connection.expire(2.0 + TOPOLOGY_WAIT_S / 2)
    assert not call.done
    meanwhile = cluster.submit("get", key_of(0), now=2.6)
    (frame,) = cluster.frames(2.6)
    assert frame.destination == ROUTER
    cluster.connection.expire(2.0 + TOPOLOGY_WAIT_S)
    assert type(error_of(call)) is Indeterminate
    assert not meanwhile.done
    cluster.answer(frame)
    assert meanwhile.error is None


def test_a_new_direct_connection_settles_what_was_lost_with_the_old_one(cluster: Cluster) -> None:
    call = cluster.submit("get", key_of(0))
    cluster.frames()
    cluster.connection.lost(0, 0.0)
    cluster.feed(0, Welcome(1, 1, None), 0.1)
    assert type(error_of(call)) is Indeterminate
    next_one = cluster.submit("get", key_of(0), now=0.1)
    (frame,) = cluster.frames(0.1)
    cluster.connection.expire(2.0)
    assert (frame.destination, next_one.done) == (0, False)


def test_a_lost_router_settles_what_went_through_it(cluster: Cluster) -> None:
    direct = cluster.submit("get", key_of(0))
    everywhere = Everywhere()
    cluster.connection.everywhere(everywhere, "count", (), 0.0, 10.0)
    command = Command()
    cluster.connection.admin(command, "status", {}, 0.0, 10.0)
    cluster.frames()
    cluster.connection.lost(ROUTER, 0.0)
    assert type(error_of(everywhere)) is Indeterminate
    assert type(error_of(command)) is Indeterminate
    assert not direct.done
    late = Everywhere()
    cluster.connection.everywhere(late, "count", (), 0.0, 10.0)
    cluster.connection.expire(0.0)
    assert type(error_of(late)) is Unavailable


def test_what_went_through_a_router_that_lost_its_connection_to_a_living_partition_is_settled_at_once() -> None:
    cluster = Cluster(affinity=False)
    cluster.welcome()
    lost, other = cluster.submit("get", key_of(0)), cluster.submit("get", key_of(1))
    everywhere = Everywhere()
    cluster.connection.everywhere(everywhere, "count", (), 0.0, 10.0)
    cluster.frames()
    cluster.feed(ROUTER, Lost(0, 99, "an earlier one"), 0.0)
    assert not lost.done
    cluster.feed(ROUTER, Lost(0, 1, "partition 0 has lost the router's connection"), 0.0)
    assert type(error_of(lost)) is Indeterminate
    assert "has lost the router's connection after the call was sent" in str(lost.error)
    assert not other.done
    assert not everywhere.done  # the other partitions will answer
    again = cluster.submit("get", key_of(0))
    (frame,) = cluster.frames()
    cluster.answer(frame)
    assert again.error is None
    assert not cluster.connection.receive(ROUTER, wire.encode(Lost(7, 1, "there is no such partition")), 0.0)


def test_what_a_process_that_stops_in_order_has_not_answered_never_ran() -> None:
    cluster = Cluster()
    cluster.welcome()
    cluster.direct()
    answered, sent, other = (cluster.submit("put", key_of(number)) for number in (0, 0, 1))
    for frame in cluster.frames():
        if frame.destination == 0:
            cluster.reply(0, [answered.number], ["yes"])
    batch = cluster.batch([(key_of(0),), (key_of(0),)])
    cluster.frames()
    assert not cluster.feed(0, Closing("partition 0 is stopping"))  # the shell closes it, and tells
    cluster.connection.lost(0, 0.0)
    assert answered.value == "yes"
    assert type(error_of(sent)) is Unavailable
    assert str(sent.error) == "partition 0 is stopping"
    assert [type(result) for result in batch.results] == [Unavailable, Unavailable]
    assert not other.done
    through_router = cluster.submit("put", key_of(0))
    (frame,) = cluster.frames()
    assert frame.destination == ROUTER
    parts, none, command = Everywhere(), Everywhere(), Command()
    for directed in (parts, none):
        cluster.connection.everywhere(directed, "count", (), 0.0, 10.0)
    cluster.connection.admin(command, "status", {}, 0.0, 10.0)
    cluster.frames()
    cluster.reply(1, [parts.number], [1])
    assert not cluster.feed(ROUTER, Closing("the cluster is stopping"))
    cluster.connection.lost(ROUTER, 0.0)
    assert type(error_of(through_router)) is Unavailable
    assert type(error_of(none)) is Unavailable
    assert type(error_of(command)) is Unavailable
    assert type(error_of(parts)) is Indeterminate
    assert not other.done  # its partition may still answer


def test_a_call_that_a_closing_process_has_not_run_goes_again_while_it_may() -> None:
    cluster = Cluster(retry_s=5.0)
    cluster.welcome()
    cluster.direct()
    lost, sent = cluster.submit("put", key_of(0)), cluster.submit("put", key_of(0))
    cluster.frames()
    lost.retry_until = 0.0
    lost.floor = 7  # an earlier attempt may have run
    cluster.feed(0, Closing("partition 0 is stopping"))
    cluster.connection.lost(0, 0.0)
    assert type(error_of(lost)) is Indeterminate
    assert not sent.done
    number = sent.number
    cluster.connection.expire(1.0)
    (frame,) = cluster.frames(1.0)
    (group,) = calls_of(frame).groups
    assert (frame.destination, group.numbers, group.retry_floor) == (ROUTER, [number], NEVER_SENT)
    cluster.answer(frame, 1.0)
    assert sent.error is None


def test_without_router_and_direct_connection_a_call_is_unavailable() -> None:
    cluster = Cluster(affinity=False)
    cluster.welcome()
    sent = cluster.submit("get", 1)
    cluster.frames()
    cluster.connection.lost(ROUTER, 0.0)
    assert type(error_of(sent)) is Indeterminate
    call = cluster.submit("get", 1)
    cluster.frames()
    assert type(error_of(call)) is Unavailable


def test_calls_wait_for_a_router_that_is_being_connected_to() -> None:
    cluster = Cluster(affinity=False)
    cluster.welcome()
    connection = cluster.connection
    connection.lost(ROUTER, 5.0)
    connection.opening_router(5.0)
    call, directed, unknown = cluster.submit("get", 1, now=5.0), Everywhere(), cluster.submit("nowhere", 1, now=5.0)
    connection.everywhere(directed, "count", (), 5.0, 10.0)
    assert cluster.frames(5.0) == []
    connection.expire(5.5)
    assert not any(waiting.done for waiting in (call, directed, unknown))
    cluster.welcome(5.6)
    messages = [type(wire.decode(frame.data)) for frame in cluster.frames(5.6)]
    assert sorted(message.__name__ for message in messages) == ["Calls", "EverywhereCall", "Hello"]
    connection.lost(ROUTER, 6.0)
    connection.opening_router(6.0)
    call, directed = cluster.submit("get", 1, now=6.0), Everywhere()
    connection.everywhere(directed, "count", (), 6.0, 10.0)
    assert cluster.frames(6.0) == []
    assert connection.alarm.time <= 6.0 + ROUTER_WAIT_S
    connection.expire(6.0 + ROUTER_WAIT_S)
    cluster.frames(6.0 + ROUTER_WAIT_S)
    assert [type(error_of(waiting)) for waiting in (call, directed)] == [Unavailable, Unavailable]


def test_a_frame_that_could_not_be_sent_was_never_sent(cluster: Cluster) -> None:
    call = cluster.submit("get", key_of(0))
    batch = cluster.batch([(key,) for key in keys_of(0, 3)])
    frames = cluster.frames()
    for frame in reversed(frames):
        cluster.connection.unsend(frame)
    assert cluster.connection.cluster.lanes[0].unanswered == 0
    cluster.connection.lost(0, 0.0)
    cluster.connection.expire(5.0)
    assert not call.done
    again = cluster.frames(5.0)
    assert {frame.destination for frame in again} == {ROUTER}
    for frame in again:
        assert all(group.retry_floor == NEVER_SENT for group in calls_of(frame).groups)
        cluster.answer(frame)
    assert call.error is None
    assert batch.left == 0


# ── retries ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def patient() -> Cluster:
    made = Cluster(retry_s=5.0)
    made.welcome()
    made.direct()
    return made


def test_a_lost_call_is_sent_again_under_its_number_with_the_floor_of_its_first_attempt(patient: Cluster) -> None:
    first = patient.submit("put", key_of(0), "a")
    (frame,) = patient.frames()
    patient.answer(frame)
    floor = patient.lsns[0]
    call = patient.submit("put", key_of(0), "b")
    batch = patient.batch([(key, "c") for key in keys_of(0, 2)], "put")
    patient.frames()
    patient.lsns[0] += 50
    patient.incarnations[0] = 0
    patient.announce()
    assert patient.frames() == []
    patient.incarnations[0] = 2
    patient.announce()
    frames = patient.frames()
    groups = [group for frame in frames for group in calls_of(frame).groups]
    assert [group.numbers for group in groups] == [[call.number, call.number + 1, call.number + 2]]
    assert groups[0].retry_floor == floor
    assert groups[0].incarnation == 2
    for frame in frames:
        patient.answer(frame, value="ok")
    assert (first.error, call.value, batch.results) == (None, "ok", ["ok", "ok"])


def test_a_retry_ends_when_its_time_is_over(patient: Cluster) -> None:
    sent = patient.submit("put", key_of(0))
    patient.frames()
    patient.incarnations[0] = 0
    patient.announce(1.0)
    waiting = patient.submit("put", key_of(0), now=1.0)
    patient.frames(1.0)
    assert not sent.done
    assert not waiting.done
    patient.connection.expire(5.0)
    patient.frames(5.0)
    assert type(error_of(sent)) is Indeterminate
    assert not waiting.done
    patient.connection.expire(6.0)
    patient.frames(6.0)
    assert type(error_of(waiting)) is Unavailable


@pytest.mark.parametrize("code", ["Unavailable", "Overloaded", "UnknownProcedure"])
def test_a_retried_call_never_reports_that_it_did_not_run(patient: Cluster, code: str) -> None:
    call = patient.submit("put", key_of(0))
    patient.frames()
    patient.incarnations[0] = 2
    patient.announce()
    patient.frames()
    patient.fail(0, call.number, code, now=5.0)
    assert type(error_of(call)) is Indeterminate


def test_the_partitions_word_on_a_retry_is_the_last(patient: Cluster) -> None:
    call = patient.submit("put", key_of(0))
    patient.frames()
    patient.incarnations[0] = 2
    patient.announce()
    patient.frames()
    patient.fail(0, call.number, "Indeterminate", text="too long ago")
    assert str(error_of(call)) == "too long ago"


def test_a_call_that_was_turned_away_goes_again_as_a_first_attempt(patient: Cluster) -> None:
    call = patient.submit("put", key_of(0))
    patient.frames()
    patient.fail(0, call.number, "Unavailable")
    assert patient.frames() == []
    assert not call.done
    patient.connection.expire(1.0)
    (frame,) = patient.frames(1.0)
    assert calls_of(frame).groups[0].retry_floor == NEVER_SENT
    patient.answer(frame, 1.0)
    assert call.error is None


def test_a_late_answer_of_a_dead_incarnation_does_not_settle_a_retry(patient: Cluster) -> None:
    call = patient.submit("put", key_of(0))
    patient.frames()
    patient.incarnations[0] = 2
    patient.announce()
    patient.frames()
    patient.feed(0, Replies(0, 1, 500, [ReplyGroup(77, [call.number], Raw(wire.encode(["old"])))], []))
    assert not call.done
    assert patient.connection.cluster.lanes[0].lsn < 500


def test_a_runaway_call_is_not_sent_again(patient: Cluster) -> None:
    call = patient.submit("put", key_of(0))
    patient.frames()
    patient.incarnations[0] = 2
    patient.runaways = [Runaway(77, call.number, "put")]
    patient.announce()
    assert type(error_of(call)) is ProcedureTimeout
    assert patient.frames() == []


def test_what_went_through_a_lost_router_goes_again_when_it_is_back() -> None:
    cluster = Cluster(affinity=False, retry_s=5.0)
    cluster.welcome()
    call = cluster.submit("put", 1)
    cluster.frames()
    cluster.connection.lost(ROUTER, 0.0)
    assert cluster.frames() == []
    cluster.welcome(1.0)
    (frame,) = cluster.frames(1.0)
    assert calls_of(frame).groups[0].numbers == [call.number]
    assert calls_of(frame).groups[0].retry_floor == 100
    cluster.answer(frame, 1.0)
    assert call.error is None


# ── procedures change ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_stale_call_goes_again_after_the_new_topology(cluster: Cluster) -> None:
    call = cluster.submit("put", key_of(0))
    batch = cluster.batch([(key,) for key in keys_of(0, 2)], "put")
    frames = cluster.frames()
    for frame in frames:
        for number in calls_of(frame).groups[0].numbers:
            cluster.fail(0, number, STALE)
    (hello,) = cluster.frames()
    assert isinstance(wire.decode(hello.data), Hello)
    cluster.catalog_version = 2
    cluster.version += 1
    cluster.welcome()
    again = cluster.frames()
    assert {calls_of(frame).catalog_version for frame in again} == {2}
    assert all(group.retry_floor == NEVER_SENT for frame in again for group in calls_of(frame).groups)
    for frame in again:
        cluster.answer(frame, value=5)
    assert (call.value, batch.results) == (5, [5, 5])


def test_a_stale_call_goes_again_at_once_when_the_new_topology_came_first(cluster: Cluster) -> None:
    call = cluster.submit("put", key_of(0))
    cluster.frames()
    cluster.catalog_version = 2
    cluster.announce()
    cluster.fail(0, call.number, STALE)
    (frame,) = cluster.frames()
    assert calls_of(frame).catalog_version == 2


def test_a_stale_call_ends_at_its_deadline(cluster: Cluster) -> None:
    call = cluster.submit("put", key_of(0), timeout=2.0)
    now = 0.0
    while not call.done:
        for frame in cluster.frames(now):
            if frame.destination == 0:
                cluster.fail(0, call.number, STALE, now)
        now += 0.1
        assert now < 2.5
        cluster.connection.expire(now)
    assert type(error_of(call)) is Unavailable


def test_unsent_calls_are_routed_by_the_new_signature(cluster: Cluster) -> None:
    other_key = key_of(1)
    queued = [cluster.submit("put", key, other_key) for key in keys_of(0, WINDOW_CALLS + 2)][-2:]
    cluster.frames()
    gone = cluster.submit("get", key_of(0))
    cluster.catalog_version = 2
    cluster.procedures = [ProcedureInfo("put", [1], False, False, [], "")]
    cluster.announce()
    assert type(error_of(gone)) is UnknownProcedure
    (frame,) = cluster.frames()
    (group,) = calls_of(frame).groups
    assert (frame.destination, group.slots) == (1, [hash_slot(other_key)] * 2)
    cluster.answer(frame)
    assert all(call.error is None for call in queued)


def test_a_batch_survives_a_new_signature(cluster: Cluster) -> None:
    connection = cluster.connection
    batch = Batch(connection.cluster.procedures["put"], 10.0)
    rows = [(key, key_of(1)) for key in keys_of(0, 900)]
    connection.fill(batch, rows[:700], 0.0)
    frames = cluster.frames()
    cluster.catalog_version = 2
    cluster.procedures = [ProcedureInfo("put", [1], False, False, [], "")]
    cluster.announce()
    connection.fill(batch, rows[700:], 0.0)
    batch.finished = True
    connection.push(batch, 0.0)
    for frame in frames:
        cluster.answer(frame)
    while more := cluster.frames():
        for frame in more:
            assert (frame.destination, calls_of(frame).catalog_version) == (1, 2)
            cluster.answer(frame)
    assert batch.results == [list(row) for row in rows]


def test_an_unknown_procedure_is_asked_for_once(cluster: Cluster) -> None:
    call = cluster.submit("fresh", key_of(0))
    unknown = cluster.submit("nowhere", key_of(0))
    lookup = Lookup()
    cluster.connection.lookup(lookup, "fresh", 0.0, 10.0)
    (hello,) = cluster.frames()
    assert (hello.destination, type(wire.decode(hello.data))) == (ROUTER, Hello)
    assert cluster.frames() == []
    cluster.procedures = [*PROCEDURES, ProcedureInfo("fresh", [0], False, False, [], "")]
    cluster.catalog_version = 2
    cluster.version += 1
    cluster.welcome()
    assert type(error_of(unknown)) is UnknownProcedure
    assert "nowhere" in str(unknown.error)
    assert lookup.value.name == "fresh"
    (frame,) = cluster.frames()
    assert calls_of(frame).groups[0].procedure == "fresh"
    cluster.answer(frame)
    assert call.error is None


# ── everywhere, commands ───────────────────────────────────────────────────────────────────────────────────────────


def everywhere(cluster: Cluster, name: str = "count") -> Everywhere:
    call = Everywhere()
    cluster.connection.everywhere(call, name, ("x",), 0.0, 10.0)
    return call


def test_a_directed_call_collects_one_result_a_partition(cluster: Cluster) -> None:
    call = everywhere(cluster)
    (frame,) = cluster.frames()
    message = wire.decode(frame.data)
    assert isinstance(message, EverywhereCall)
    assert (frame.destination, decode_value(message.args)) == (ROUTER, ["x"])
    cluster.reply(1, [message.number], ["one"], via=ROUTER)
    cluster.reply(1, [message.number], ["twice"], via=ROUTER)
    assert not call.done
    cluster.reply(0, [message.number], ["zero"], via=ROUTER)
    assert call.value == ["zero", "one"]


def test_a_directed_call_waits_for_all_before_it_fails(cluster: Cluster) -> None:
    call = everywhere(cluster)
    cluster.frames()
    cluster.fail(1, call.number, "Aborted", text="second")
    assert not call.done
    cluster.fail(0, call.number, "SchemaError", text="first")
    assert type(error_of(call)) is SchemaError


def test_a_directed_call_that_the_router_refuses_fails_at_once(cluster: Cluster) -> None:
    call = everywhere(cluster)
    cluster.frames()
    cluster.fail(-1, call.number, "Overloaded")
    assert type(error_of(call)) is Overloaded


def test_a_partition_that_dies_during_a_directed_call_leaves_it_indeterminate(cluster: Cluster) -> None:
    call = everywhere(cluster)
    cluster.frames()
    cluster.reply(1, [call.number], [1], via=ROUTER)
    cluster.incarnations[0] = 0
    cluster.announce()
    assert type(error_of(call)) is Indeterminate


def test_everywhere_is_for_directed_procedures(cluster: Cluster) -> None:
    call = everywhere(cluster, "get")
    assert cluster.frames() == []
    assert type(error_of(call)) is BadArguments


def test_a_command_settles_with_its_answer(cluster: Cluster) -> None:
    good, bad = Command(), Command()
    cluster.connection.admin(good, "status", {"a": 1}, 0.0, 10.0)
    cluster.connection.admin(bad, "load_procedures", {}, 0.0, 10.0)
    messages = [wire.decode(frame.data) for frame in cluster.frames()]
    assert [message.command for message in messages if isinstance(message, Admin)] == ["status", "load_procedures"]
    cluster.feed(ROUTER, AdminReply(good.number, "", {"up": True}))
    cluster.feed(ROUTER, AdminReply(bad.number, "SchemaError", {"message": "line 3"}))
    assert good.value == {"up": True}
    assert (type(bad.error), str(bad.error)) == (SchemaError, "line 3")


# ── what can't be trusted ──────────────────────────────────────────────────────────────────────────────────────────


def bad_frames() -> Iterator[tuple[str, bytes]]:
    yield "no MessagePack", b"\xc1"
    yield "empty", b""
    yield "a message for servers", wire.encode(Hello(1, 5))
    yield "too few results", wire.encode(Replies(0, 1, 1, [ReplyGroup(77, [1, 2], Raw(b"\x91\x01"))], []))
    yield "no list of results", wire.encode(Replies(0, 1, 1, [ReplyGroup(77, [1], Raw(b"\x01"))], []))
    yield "a partition that does not exist", wire.encode(Replies(9, 1, 1, [], []))
    yield "a lone surrogate", wire.encode(Replies(0, 1, 1, [ReplyGroup(77, [1], Raw(b"\x91\xa3\xed\xa0\x80"))], []))
    yield "a topology with holes", wire.encode(Topology(9, 1, "c1", "/", [PartitionAddress(1, 1, "", 0, 0)], [], []))


@pytest.mark.parametrize(("what", "frame"), list(bad_frames()), ids=[what for what, _ in bad_frames()])
def test_garbage_from_a_partition_fails_its_calls_and_no_others(cluster: Cluster, what: str, frame: bytes) -> None:
    call, other = cluster.submit("get", key_of(0)), cluster.submit("get", key_of(1))
    batch = cluster.batch([(key,) for key in keys_of(0, 3)])
    cluster.frames()
    assert cluster.connection.receive(0, frame, 0.0) is False
    assert type(error_of(call)) is ProtocolError
    assert "partition 0" in str(call.error)
    assert [type(result) for result in batch.results] == [ProtocolError] * 3
    assert not other.done


def test_a_refusal_fails_the_calls_of_that_connection(cluster: Cluster) -> None:
    call, other = cluster.submit("get", key_of(0)), cluster.submit("get", key_of(1))
    cluster.frames()
    assert cluster.feed(0, Refusal("ProtocolError", "not like this")) is False
    assert type(error_of(call)) is ProtocolError
    assert "not like this" in str(call.error)
    assert not other.done


def test_a_process_that_asks_for_a_hello_leaves_the_calls_to_the_end_of_the_connection(cluster: Cluster) -> None:
    call = cluster.submit("get", key_of(0))
    cluster.frames()
    assert cluster.feed(0, Refusal(NO_HELLO, "no Hello came before this frame")) is False
    assert not call.done
    cluster.connection.lost(0, 0.0)
    cluster.connection.expire(TOPOLOGY_WAIT_S)
    assert type(error_of(call)) is Indeterminate


def test_an_unknown_error_code_is_a_protocol_error(cluster: Cluster) -> None:
    call = cluster.submit("get", key_of(0))
    cluster.frames()
    cluster.fail(0, call.number, "NoSuchError")
    assert type(error_of(call)) is ProtocolError


def test_an_older_topology_is_ignored_unless_it_opens_a_connection(cluster: Cluster) -> None:
    cluster.version = 5
    cluster.feed(ROUTER, cluster.topology())
    cluster.version = 3
    cluster.incarnations[0] = 9
    cluster.feed(ROUTER, cluster.topology())
    assert cluster.connection.cluster.lanes[0].incarnation == 1
    cluster.connection.lost(ROUTER, 0.0)
    cluster.welcome()
    assert cluster.connection.cluster.lanes[0].incarnation == 9


def test_another_cluster_at_the_same_address_takes_over() -> None:
    cluster = Cluster(2, retry_s=5.0)
    cluster.welcome()
    cluster.direct()
    sent = cluster.submit("put", 1)
    batch = cluster.batch([(key,) for key in range(4000)])
    frames = cluster.frames()
    cluster.connection.lost(ROUTER, 0.0)
    cluster.cluster_id, cluster.incarnations, cluster.lsns = "c2", [1, 1, 1, 1], [0, 0, 0, 0]
    cluster.welcome()
    assert type(error_of(sent)) is Indeterminate
    for frame in frames:
        cluster.answer(frame)
    while more := cluster.frames():
        for frame in more:
            cluster.answer(frame)
    assert batch.left == 0
    assert {type(result) for result in batch.results} == {Indeterminate, list}


def test_closing_settles_everything(cluster: Cluster) -> None:
    sent = cluster.submit("get", key_of(0))
    command = everywhere(cluster)
    batch = cluster.batch([(key,) for key in keys_of(1, 600)])
    cluster.frames()
    queued = cluster.submit("get", key_of(0))
    unknown = cluster.submit("nowhere", 1)
    cluster.connection.close("closed")
    assert [type(call.error) for call in (sent, command, queued, unknown)] == [
        Indeterminate,
        Indeterminate,
        Unavailable,
        Unavailable,
    ]
    assert batch.left == 0
    assert not cluster.connection.busy()


# ── across partitions ──────────────────────────────────────────────────────────────────────────────────────────────

COORDINATOR = 2


def test_a_call_whose_keys_are_in_several_partitions_goes_to_the_coordinator(cluster: Cluster) -> None:
    here, also_here = keys_of(0, 2)
    there = key_of(1)
    local = cluster.submit("move", here, also_here)
    (frame,) = cluster.frames()
    assert frame.destination == 0
    assert calls_of(frame).groups[0].slots == [hash_slot(here)]
    cluster.answer(frame, value="moved")
    for procedure, args in (("move", (here, there)), ("sum", ([here, there],)), ("total", ())):
        call = cluster.submit(procedure, *args)
        (frame,) = cluster.frames()
        (group,) = calls_of(frame).groups
        assert (frame.destination, group.partition, group.incarnation) == (COORDINATOR, COORDINATOR, 1)
        assert group.slots == [hash_slot(here) if args else 0]
        cluster.answer(frame, value="so")
        assert (call.value, call.error) == ("so", None)
    assert local.value == "moved"
    assert not cluster.connection.busy()


def test_the_coordinator_gets_two_batches_of_calls_and_no_more_before_it_answers(cluster: Cluster) -> None:
    for _ in range(COORDINATOR_WINDOW_CALLS + 88):
        cluster.submit("move", key_of(0), key_of(1))
    frames = cluster.frames()
    assert {frame.destination for frame in frames} == {COORDINATOR}
    lane = cluster.connection.cluster.lanes.coordinator
    assert sum(len(frame.calls) for frame in frames) == lane.unanswered == COORDINATOR_WINDOW_CALLS == 2 * WINDOW_CALLS
    assert cluster.frames() == []
    cluster.answer(frames[0])
    (frame,) = cluster.frames()
    assert len(frame.calls) == 88


def test_a_lone_call_with_two_keys_goes_the_long_way(cluster: Cluster) -> None:
    assert cluster.connection.submit_alone(Pending(), "move", (1, 2), 0.0, 10.0) is None
    assert cluster.connection.submit_alone(Pending(), "total", (), 0.0, 10.0) is None
    assert cluster.connection.submit_alone(Pending(), "sum", ([1, 2],), 0.0, 10.0) is None


def test_with_one_partition_there_is_no_coordinator() -> None:
    cluster = Cluster(1)
    cluster.welcome()
    cluster.direct()
    for procedure, args in (("move", (1, 2)), ("sum", ([1, 2, 3],)), ("total", ())):
        cluster.submit(procedure, *args)
    (frame,) = cluster.frames()
    assert frame.destination == 0
    assert {group.partition for group in calls_of(frame).groups} == {0}
    batch = cluster.batch([(1, 2), (3, 4)], "move")
    (frame,) = cluster.frames()
    cluster.answer(frame)
    assert batch.results == [[1, 2], [3, 4]]


ROWS = {
    "move": [(key, key * 7 + 1) for key in range(700)],
    "sum": [([key, key + 1],) if key % 3 else (key,) for key in range(700)],
    "total": [(key,) for key in range(700)],
}
ODD_ROWS = {
    "move": [(key, str(key * 7)) if key % 2 else [key, key] for key in range(300)],
    "sum": [((key,),) for key in range(300)],
}


@pytest.mark.parametrize(("procedure", "rows"), [*ROWS.items(), *ODD_ROWS.items()])
def test_rows_are_dealt_to_where_each_alone_would_go(cluster: Cluster, procedure: str, rows: list[Any]) -> None:
    expected = {}
    for row in rows:
        cluster.submit(procedure, *row)
    for frame in cluster.frames():
        for group in calls_of(frame).groups:
            for slot, args in zip(group.slots, decode_value(group.args), strict=True):
                expected[str(args)] = (frame.destination, slot)
    made = Cluster()
    made.welcome()
    made.direct()
    batch = made.batch(rows, procedure)
    dealt = {}
    while frames := made.frames():
        for frame in frames:
            for group in calls_of(frame).groups:
                for slot, args in zip(group.slots, decode_value(group.args), strict=True):
                    dealt[str(args)] = (frame.destination, slot)
            made.answer(frame)
    assert dealt == expected
    assert batch.results == [list(map(_as_sent, row)) for row in rows]


def _as_sent(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def test_rows_that_cannot_be_routed_fail_alone(cluster: Cluster) -> None:
    batch = cluster.batch([(1, 2), (1,), (1, 2.5), "x", (3, 4)], "move")
    for frame in cluster.frames():
        cluster.answer(frame)
    assert [type(result) for result in batch.results] == [list, BadArguments, BadArguments, BadArguments, list]


def test_a_coordinator_that_is_down_fails_what_needs_it_and_nothing_else(cluster: Cluster) -> None:
    sent = cluster.submit("total")
    cluster.frames()
    cluster.incarnations[COORDINATOR] = 0
    cluster.announce()
    assert type(error_of(sent)) is Indeterminate
    assert "the coordinator was lost" in str(sent.error)
    call, local = cluster.submit("total"), cluster.submit("put", key_of(0))
    (frame,) = cluster.frames()
    assert type(error_of(call)) is Unavailable
    assert "the coordinator is down" in str(call.error)
    cluster.answer(frame)
    assert local.error is None


def test_a_call_that_the_coordinator_lost_goes_again_with_the_floor_of_its_first_attempt(patient: Cluster) -> None:
    first = patient.submit("total")
    (frame,) = patient.frames()
    patient.answer(frame)
    floor = patient.lsns[COORDINATOR]
    call = patient.submit("total")
    patient.frames()
    patient.incarnations[COORDINATOR] = 2
    patient.announce()
    (frame,) = patient.frames()
    (group,) = calls_of(frame).groups
    assert (group.partition, group.numbers, group.retry_floor) == (COORDINATOR, [call.number], floor)
    patient.answer(frame)
    assert (first.error, call.error) == (None, None)


def test_a_topology_whose_coordinator_is_a_partition_is_refused(cluster: Cluster) -> None:
    topology = cluster.topology()
    topology.version += 1
    topology.coordinator = PartitionAddress(1, 1, "/run/p1", 1, 0)
    assert not cluster.feed(ROUTER, topology)


def test_a_call_that_needs_the_coordinator_goes_there_under_its_number(cluster: Cluster) -> None:
    call = cluster.submit("put", key_of(0))
    batch = cluster.batch([(key,) for key in keys_of(0, 3)], "put")
    cluster.frames()
    for number in (call.number, call.number + 2):
        cluster.fail(0, number, ELSEWHERE)
    (frame,) = cluster.frames()
    (group,) = calls_of(frame).groups
    assert (frame.destination, group.partition, group.incarnation) == (COORDINATOR, COORDINATOR, 1)
    assert (group.numbers, group.retry_floor) == ([call.number, call.number + 2], NEVER_SENT)
    cluster.answer(frame, value="there")
    cluster.reply(0, [call.number + 1, call.number + 3], ["here", "here"])
    assert (call.value, batch.results) == ("there", ["here", "there", "here"])
    assert [lane.unanswered for lane in cluster.connection.cluster.lanes] == [0, 0, 0]


def test_a_call_that_is_elsewhere_in_the_coordinator_too_fails(cluster: Cluster) -> None:
    call = cluster.submit("total")
    cluster.frames()
    cluster.fail(COORDINATOR, call.number, ELSEWHERE)
    assert call.done
    assert cluster.frames() == []


@pytest.mark.parametrize("why", ["the partition died", "the connection was lost"])
def test_a_retry_that_needs_the_coordinator_is_a_first_attempt_there(patient: Cluster, why: str) -> None:
    patient.lsns[COORDINATOR] = 555
    patient.announce()
    call = patient.submit("put", key_of(0))
    patient.frames()
    if why == "the partition died":
        patient.incarnations[0] = 2
        patient.announce()
    else:
        patient.connection.lost(0, 0.0)
        patient.connection.expire(TOPOLOGY_WAIT_S)
    (frame,) = patient.frames(TOPOLOGY_WAIT_S)
    assert calls_of(frame).groups[0].retry_floor == 100
    patient.fail(0, call.number, ELSEWHERE)
    (frame,) = patient.frames(2.0)
    (group,) = calls_of(frame).groups
    assert (group.partition, group.numbers, group.retry_floor) == (COORDINATOR, [call.number], NEVER_SENT)
    patient.fail(0, call.number, ELSEWHERE)  # the answer to the first attempt, late
    assert patient.frames(2.0) == []
    # What is lost there is asked for there, by what the coordinator counts.
    patient.incarnations[COORDINATOR] = 2
    patient.announce()
    (frame,) = patient.frames(2.0)
    (group,) = calls_of(frame).groups
    assert (group.partition, group.numbers, group.retry_floor) == (COORDINATOR, [call.number], 555)


def test_a_retry_stays_with_the_coordinator_when_the_procedure_changes(patient: Cluster) -> None:
    call, batch = patient.submit("move", key_of(0), key_of(1)), patient.batch([(key_of(0), key_of(1))], "move")
    patient.frames()
    patient.incarnations[COORDINATOR] = 0
    patient.announce()
    patient.catalog_version += 1
    patient.procedures = [ProcedureInfo("move", [0], False, False, [], "")]
    patient.incarnations[COORDINATOR] = 2
    patient.announce()
    (frame,) = patient.frames()
    assert {group.partition for group in calls_of(frame).groups} == {COORDINATOR}
    patient.answer(frame)
    assert call.error is None
    assert batch.results == [[key_of(0), key_of(1)]]


def test_unsent_calls_follow_a_new_signature_to_the_coordinator_and_back(cluster: Cluster) -> None:
    rows = [(key, key + 1) for key in keys_of(0, 4)]
    calls = [cluster.submit("move", *row) for row in rows]
    cluster.catalog_version += 1
    cluster.procedures = [ProcedureInfo("move", [], False, False, [], "")]
    cluster.announce()
    (frame,) = cluster.frames()
    assert frame.destination == COORDINATOR
    cluster.answer(frame)
    assert [call.value for call in calls] == [list(row) for row in rows]


def test_a_joint_call_is_answered_by_the_coordinator_with_one_list(cluster: Cluster) -> None:
    call = Everywhere()
    cluster.connection.everywhere(call, "set_all", (1,), 0.0, 10.0)
    (frame,) = cluster.frames()
    assert frame.destination == ROUTER
    cluster.reply(0, [call.number], ["no business of its"])
    assert not call.done
    cluster.reply(COORDINATOR, [call.number], [["a", "b"]])
    assert (call.value, call.error) == (["a", "b"], None)
    assert not cluster.connection.busy()


def test_a_joint_call_fails_whole(cluster: Cluster) -> None:
    refused, lost, wrong = Everywhere(), Everywhere(), Everywhere()
    for call in (refused, lost, wrong):
        cluster.connection.everywhere(call, "set_all", (1,), 0.0, 10.0)
    cluster.frames()
    cluster.fail(COORDINATOR, refused.number, "Aborted")
    assert type(error_of(refused)) is Aborted
    groups = [ReplyGroup(77, [wrong.number], Raw(wire.encode([["only one"]])))]
    assert not cluster.feed(ROUTER, Replies(COORDINATOR, 1, 101, groups, []))
    cluster.incarnations[COORDINATOR] = 0
    cluster.announce()
    assert {type(error_of(call)) for call in (lost, wrong)} <= {Indeterminate, ProtocolError}


def test_with_one_partition_a_joint_call_is_as_any_directed_one() -> None:
    cluster = Cluster(1)
    cluster.welcome()
    call = Everywhere()
    cluster.connection.everywhere(call, "set_all", (1,), 0.0, 10.0)
    cluster.frames()
    cluster.reply(0, [call.number], ["a"])
    assert call.value == ["a"]


# ── all of it, at random ───────────────────────────────────────────────────────────────────────────────────────────


REFUSALS = [None] * 6 + ["Unavailable", STALE, "Overloaded"] + [ELSEWHERE] * 3


class AnyHistory(RuleBasedStateMachine):
    """Calls, deaths, losses and answers in any order, against processes that remember what they ran.

    A partition may find that a call needs the coordinator, unless it has run it; then its process never runs it. Each
    call settles once. None runs twice, none that reports "never ran" has run. What is sent again carries its number and
    a floor; first attempts carry none.
    """

    @initialize(retry=st.booleans(), affinity=st.booleans())
    def start(self, retry: bool, affinity: bool) -> None:
        self.now = 0.0
        self.cluster = Cluster(2, retry_s=30.0 if retry else 0.0, affinity=affinity)
        self.retry = retry
        self.cluster.welcome()
        self.cluster.direct()
        self.wire: list[tuple[int, int, int, Calls]] = []  # router epoch, link epoch, destination, message
        self.answers: list[tuple[int, int, int, Replies]] = []
        self.ran: dict[int, int] = {}  # number → how often
        self.ran_in: dict[int, int] = {}  # number → partition, or coordinator
        self.moved: set[int] = set()  # numbers that were sent to the coordinator
        self.told: set[tuple[int, int]] = set()  # (incarnation, number) of what was found to need the coordinator
        self.ran_as_retry: set[int] = set()
        self.results: dict[int, int] = {}
        self.seen: dict[int, int] = {}  # number → times sent
        self.first_floor: dict[int, int] = {}
        self.calls: list[Pending] = []
        self.batches: list[tuple[Batch, list[int]]] = []
        self.settled: list[Pending] = []
        self.router_epoch = 0
        self.link_epoch = [0, 0, 0]
        self.former = [0, 0, 0]
        self.router_up = True

    def teardown(self) -> None:
        if not hasattr(self, "cluster"):
            return
        self.cluster.connection.close("over")
        self.collect()
        assert all(call.done for call in self.calls)
        assert len({id(call) for call in self.settled}) == len(self.settled) == len(self.calls)
        assert self.cluster.connection.outcomes.outstanding == 0
        for call in self.calls:
            self.check(call.number, call.error, call.value)
        values = [value for batch, _keys in self.batches for value in batch.results if isinstance(value, int)]
        assert len(set(values)) == len(values)
        assert all(self.ran[value // 10] == 1 for value in values)
        assert all(batch.left == 0 for batch, _keys in self.batches)

    def check(self, number: int, error: Error | None, value: Any) -> None:
        if error is None:
            assert self.ran[number] == 1
            assert value == self.results[number]
        elif not isinstance(error, Indeterminate | ProtocolError):
            assert self.ran.get(number, 0) == 0, f"{error!r} of a call that ran"

    def collect(self) -> None:
        self.settled += self.cluster.connection.outcomes.take()

    @rule(count=st.integers(1, 200), seed=st.integers(0, 1000))
    def submit(self, count: int, seed: int) -> None:
        for index in range(count):
            self.calls.append(self.cluster.submit("put", seed + index, now=self.now, timeout=60.0))

    @rule(count=st.integers(1, 200), seed=st.integers(0, 1000), as_batch=st.booleans())
    def move(self, count: int, seed: int, as_batch: bool) -> None:
        rows = [(seed + index, 2 * seed + index) for index in range(count)]
        if as_batch:
            self.batches.append((self.cluster.batch(rows, "move", self.now, 60.0), []))
        else:
            self.calls += [self.cluster.submit("move", *row, now=self.now, timeout=60.0) for row in rows]

    @rule(key=st.integers(0, 1000), sent=st.booleans())
    def submit_alone(self, key: int, sent: bool) -> None:
        call = Pending()
        frame = self.cluster.connection.submit_alone(call, "put", (key,), self.now, 60.0)
        if frame is None:
            self.cluster.connection.submit(call, "put", (key,), self.now, 60.0)
        elif sent:
            self.transmit(frame)
        else:
            self.cluster.connection.unsend(frame)
        self.calls.append(call)

    @rule(count=st.integers(1, 400), seed=st.integers(0, 1000))
    def fill(self, count: int, seed: int) -> None:
        keys = list(range(seed, seed + count))
        self.batches.append((self.cluster.batch([(key,) for key in keys], "put", self.now, 60.0), keys))

    @rule()
    def send(self) -> None:
        for frame in self.cluster.frames(self.now):
            if isinstance(wire.decode(frame.data), Calls):
                self.transmit(frame)

    def transmit(self, frame: Frame) -> None:
        message = calls_of(frame)
        assert sum(len(group.numbers) for group in message.groups) <= CALLS_A_FRAME
        for group in message.groups:
            for number in group.numbers:
                again = self.seen.get(number, 0)
                self.seen[number] = again + 1
                if group.retry_floor != NEVER_SENT:
                    assert again
                    assert self.retry
                    assert group.retry_floor <= self.first_floor[number]
                    if group.partition != COORDINATOR:
                        assert group.retry_floor == self.first_floor[number]
                elif not again or (group.partition == COORDINATOR and number not in self.moved):
                    self.first_floor[number] = self.cluster.connection.cluster.lanes[group.partition].lsn
                if group.partition == COORDINATOR:
                    assert number in self.moved or group.retry_floor == NEVER_SENT
                    self.moved.add(number)
        destination = frame.destination
        epoch = self.link_epoch[destination] if destination >= 0 else 0
        self.wire.append((self.router_epoch, epoch, destination, message))

    def alive(self, router_epoch: int, link_epoch: int, destination: int) -> bool:
        if destination == ROUTER:
            return self.router_up and router_epoch == self.router_epoch
        return link_epoch == self.link_epoch[destination]

    @precondition(lambda self: self.wire)
    @rule(pick=st.integers(0, 10**6), refuse=st.sampled_from(REFUSALS))
    def run(self, pick: int, refuse: str | None) -> None:
        """A partition takes a frame and runs it, even when nobody is there to hear the answer."""
        router_epoch, link_epoch, destination, message = self.wire.pop(pick % len(self.wire))
        for group in message.groups:
            here = self.cluster.incarnations[group.partition]
            numbers: list[int] = []
            errors: list[CallError] = []
            for number in group.numbers:
                if here != group.incarnation:
                    errors.append(CallError(77, number, "Unavailable", "gone"))
                elif group.partition != COORDINATOR and (
                    (here, number) in self.told or (refuse == ELSEWHERE and number not in self.ran)
                ):
                    self.told.add((here, number))
                    errors.append(CallError(77, number, ELSEWHERE, ""))
                elif refuse and refuse != ELSEWHERE:
                    errors.append(CallError(77, number, refuse, "not now"))
                else:
                    assert self.ran_in.setdefault(number, group.partition) == group.partition, "it ran in two places"
                    if number not in self.ran:
                        self.ran[number] = 1
                        self.results[number] = number * 10
                        if group.retry_floor != NEVER_SENT:
                            self.ran_as_retry.add(number)
                    elif number not in self.ran_as_retry:
                        # A first attempt that its retry has overtaken is known by the partition.
                        assert group.retry_floor != NEVER_SENT, "a call would have run twice"
                    numbers.append(number)
            self.cluster.lsns[group.partition] += len(numbers)
            values = [self.results[number] for number in numbers]
            replies = Replies(
                group.partition if here else -1,
                here,
                self.cluster.lsns[group.partition],
                [ReplyGroup(77, numbers, Raw(wire.encode(values)))],
                errors,
            )
            self.answers.append((router_epoch, link_epoch, destination, replies))

    @precondition(lambda self: self.answers)
    @rule(pick=st.integers(0, 10**6), twice=st.booleans())
    def answer(self, pick: int, twice: bool) -> None:
        router_epoch, link_epoch, destination, replies = self.answers.pop(pick % len(self.answers))
        for _ in range(1 + twice):
            if self.alive(router_epoch, link_epoch, destination):
                assert self.cluster.feed(destination, replies, self.now)
        self.collect()

    @rule(partition=st.integers(0, 2), returns=st.booleans())
    def die(self, partition: int, returns: bool) -> None:
        cluster = self.cluster
        if cluster.incarnations[partition] == 0:
            return
        self.former[partition] = cluster.incarnations[partition]
        cluster.incarnations[partition] = self.former[partition] + 1 if returns else 0
        self.link_epoch[partition] += 1
        self.cluster.connection.lost(partition, self.now)
        if self.router_up:
            cluster.announce(self.now)
            cluster.direct(self.now)

    @rule(partition=st.integers(0, 2))
    def come_back(self, partition: int) -> None:
        if self.cluster.incarnations[partition] == 0:
            self.cluster.incarnations[partition] = self.former[partition] + 1
            if self.router_up:
                self.cluster.announce(self.now)
                self.cluster.direct(self.now)

    @rule(partition=st.integers(0, 2))
    def lose_link(self, partition: int) -> None:
        self.link_epoch[partition] += 1
        self.cluster.connection.lost(partition, self.now)

    @rule()
    def relink(self) -> None:
        if self.router_up:
            self.cluster.direct(self.now)

    @rule()
    def router_goes(self) -> None:
        if self.router_up:
            self.router_up = False
            self.router_epoch += 1
            self.cluster.connection.lost(ROUTER, self.now)

    @rule()
    def router_returns(self) -> None:
        if not self.router_up:
            self.router_up = True
            self.cluster.version += 1
            self.cluster.welcome(self.now)
            self.cluster.direct(self.now)

    @rule(seconds=st.sampled_from([0.01, 0.1, 1.0, 20.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.cluster.connection.expire(self.now)
        self.collect()

    @invariant()
    def windows_hold(self) -> None:
        if hasattr(self, "cluster"):
            lanes = self.cluster.connection.cluster.lanes
            for lane in lanes.of_partitions:
                assert 0 <= lane.unanswered <= WINDOW_CALLS
            for lane in lanes[lanes.partitions :]:
                assert 0 <= lane.unanswered <= COORDINATOR_WINDOW_CALLS
            for lane in lanes:
                assert lane.unanswered_bytes >= 0
            for batch, _keys in self.batches:
                assert batch.left == sum(result is UNSETTLED for result in batch.results)


TestAnyHistory = AnyHistory.TestCase
TestAnyHistory.settings = settings(
    max_examples=120, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True
)


@pytest.mark.parametrize("name", ["batch", "calls", "connection", "frame", "in_flight", "lane", "routing"])
def test_the_module_needs_no_sockets_and_no_clock(name: str) -> None:
    module = importlib.import_module(f"voltpy.{name}")
    assert not {"zmq", "socket", "time", "threading", "asyncio"} & set(vars(module))
