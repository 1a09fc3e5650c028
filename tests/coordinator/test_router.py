"""The router's core, driven directly: what goes where; every call is answered once and every count ends at 0."""

from __future__ import annotations

import random
import tracemalloc
from collections import Counter, deque
from collections.abc import Iterable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from coordinator import router as router_module
from coordinator.router import Destination, Router
from voltpy.door import RESERVED_CALLS, Account, Door
from voltpy.hash_slot import slot_owners
from voltpy.messages import (
    CALLS_IN_FLIGHT_A_CLIENT,
    CALLS_IN_FLIGHT_A_PARTITION,
    MAX_FRAME_BYTES,
    NO_HELLO,
    PROTOCOL_VERSION,
    STALE,
    Admin,
    AdminReply,
    CallError,
    CallGroup,
    Calls,
    Closing,
    Dropped,
    EverywhereCall,
    Hello,
    Lost,
    Message,
    PartitionAddress,
    ProcedureInfo,
    Refusal,
    Replies,
    ReplyGroup,
    Topology,
    Welcome,
)
from voltpy.wire import encode, joined

TOKEN = "the token"
PARTITIONS = 2
OWNERS = slot_owners(PARTITIONS)
SLOT_OF = [OWNERS.index(partition) for partition in range(PARTITIONS)]
NOW_US = 1_700_000_000_000_000


COORDINATOR = PARTITIONS
JOINT = ProcedureInfo("set_all", [], True, False, [], "", joint=True)


def topology(version: int, *incarnations: int, catalog: int = 1, coordinator: int = 0) -> Topology:
    addresses = [PartitionAddress(i, incarnation, f"/p{i}", 0, 0) for i, incarnation in enumerate(incarnations)]
    number = len(addresses)
    behind = PartitionAddress(number, coordinator, f"/p{number}", 0, 0) if coordinator else None
    return Topology(version, catalog, "id", "/run", addresses, [JOINT], [], behind)


class World:
    """A router with a door, and helpers to be its clients, its supervisor and its partitions."""

    def __init__(self, *incarnations: int, coordinator: int = 0) -> None:
        self.door = Door(TOKEN, at_partition=None)
        self.router = Router(self.door, 1)
        self.send(b"supervisor", Hello(PROTOCOL_VERSION, 0, "supervisor", TOKEN))
        if incarnations:
            self.send(b"supervisor", topology(1, *incarnations, coordinator=coordinator))
        self.flush()

    def send(self, identity: bytes, message: Message) -> None:
        passed = self.door.receive(identity, encode(message), self.router.welcome)
        if passed is not None:
            account = self.door.accounts[identity]
            if account.role == "client":
                self.router.client_message(account, passed, NOW_US)
            else:
                self.router.supervisor_message(account, passed)

    def flush(self) -> list[tuple[Destination, Any]]:
        return list(self.router.flush())

    def join(self, *clients: int) -> None:
        for client in clients:
            self.send(b"%d" % client, Hello(PROTOCOL_VERSION, client))
            welcomed = self.router.welcome.topology is not None
            assert self.flush() == ([(b"%d" % client, self.router.welcome)] if welcomed else [])

    def account(self, client: int) -> Account:
        return self.door.by_client[client]

    def calls_to(self, partition: int) -> list[Calls]:
        """What goes to this partition now, and nothing else may go anywhere."""
        frames = []
        for destination, message in self.router.flush():
            assert destination == partition
            assert isinstance(message, Calls)
            frames.append(message)
        return frames

    def errors_to(self, identity: bytes) -> list[tuple[int, str]]:
        """Numbers and codes that this client gets now; nothing else may go anywhere."""
        errors = []
        for destination, message in self.router.flush():
            assert destination == identity
            assert isinstance(message, Replies)
            assert message.groups == []
            errors += [(error.number, error.code) for error in message.errors]
        return errors

    def check_idle(self) -> None:
        for lane in self.router.lanes:
            assert (lane.in_flight, lane.bytes_in_flight, lane.owed) == (0, 0, {})
            assert (lane.windows, lane.windows_bytes) == ({}, 0)
        assert self.door.in_flight == 0
        assert all((account.in_flight, account.bytes_in_flight) == (0, 0) for account in self.door.by_client.values())


def group_of(client: int, numbers: list[int], partition: int = 0, incarnation: int = 5) -> CallGroup:
    args = joined([encode([number]) for number in numbers])
    return CallGroup(client, "vote", partition, incarnation, numbers, [SLOT_OF[partition]] * len(numbers), args)


def replies_of(partition: int, incarnation: int, *groups: tuple[int, list[int]], lsn: int = 9) -> Replies:
    return Replies(
        partition,
        incarnation,
        lsn,
        [ReplyGroup(client, numbers, Raw(encode([number * 2 for number in numbers]))) for client, numbers in groups],
        [],
    )


def test_groups_of_one_round_leave_in_one_frame_a_partition() -> None:
    world = World(5, 6)
    world.join(1, 2)
    first, second = group_of(1, [1, 2]), group_of(1, [3], 1, 6)
    third = group_of(2, [1], 0, 0)
    world.send(b"1", Calls(1, [first, second]))
    world.send(b"2", Calls(1, [third]))
    third.incarnation = 5
    assert world.flush() == [(0, Calls(1, [first, third])), (1, Calls(1, [second]))]
    assert world.flush() == []
    assert [lane.in_flight for lane in world.router.lanes] == [3, 1, 0]
    assert [lane.owed for lane in world.router.lanes] == [{1: 2, 2: 1}, {1: 1}, {}]


def test_replies_leave_in_one_frame_a_client() -> None:
    world = World(5, 6)
    world.join(1, 2)
    world.send(b"1", Calls(1, [group_of(1, [1, 2]), group_of(1, [3])]))
    world.send(b"2", Calls(1, [group_of(2, [1])]))
    world.flush()
    replies = replies_of(0, 5, (1, [2, 1]), (2, [1]))
    replies.errors.append(CallError(1, 3, "Aborted", "no"))
    world.router.partition_message(0, replies)
    assert world.flush() == [
        (b"1", Replies(0, 5, 9, [replies.groups[0]], replies.errors)),
        (b"2", Replies(0, 5, 9, [replies.groups[1]], [])),
    ]
    world.check_idle()


def test_a_client_that_joins_later_hears_of_newer_lsns() -> None:
    world = World(5, 6)
    world.join(1)
    world.send(b"1", Calls(1, [group_of(1, [1], 1, 6)]))
    world.flush()
    world.router.partition_message(1, replies_of(1, 6, (1, [1]), lsn=44))
    world.flush()
    world.send(b"2", Hello(PROTOCOL_VERSION, 2))
    [(_, welcome)] = world.flush()
    assert isinstance(welcome, Welcome)
    assert welcome.topology is not None
    assert [address.lsn for address in welcome.topology.partitions] == [0, 44]
    world.send(b"supervisor", topology(2, 5, 6))
    assert world.router.lanes[1].address.lsn == 44


def test_a_mixed_group_is_split_by_hash_slot() -> None:
    world = World(5, 6)
    world.join(1)
    numbers = [1, 2, 3, 4]
    args = joined([encode([number, "ü"]) for number in numbers])
    slots = [SLOT_OF[1], SLOT_OF[0], SLOT_OF[1], SLOT_OF[0] + 1]
    world.send(b"1", Calls(1, [CallGroup(1, "vote", -1, 0, numbers, slots, args)]))
    sent = dict(world.flush())
    for partition, incarnation, expected, hash_slots in (
        (0, 5, [2, 4], [SLOT_OF[0], SLOT_OF[0] + 1]),
        (1, 6, [1, 3], [SLOT_OF[1], SLOT_OF[1]]),
    ):
        calls = sent[partition]
        assert isinstance(calls, Calls)
        [group] = calls.groups
        assert (group.partition, group.incarnation) == (partition, incarnation)
        assert (group.numbers, group.slots) == (expected, hash_slots)
        assert msgspec.msgpack.decode(group.args) == [[number, "ü"] for number in expected]


def test_a_group_for_the_wrong_partition_goes_to_the_right_one() -> None:
    world = World(5, 6)
    world.join(1)
    misrouted = group_of(1, [1, 2], 1, 6)
    misrouted.partition, misrouted.incarnation = 0, 5
    world.send(b"1", Calls(1, [misrouted]))
    [frame] = world.calls_to(1)
    assert frame.groups == [
        CallGroup(1, "vote", 1, 6, [1, 2], [SLOT_OF[1]] * 2, joined([encode([1]), encode([2])])),
    ]


@pytest.mark.parametrize("partition", [-1, 1, 7, 1 << 62, -(1 << 62)])
def test_a_partition_number_is_only_believed_when_the_hash_slots_agree(partition: int) -> None:
    world = World(5, 6)
    world.join(1)
    group = group_of(1, [1])
    group.partition = partition
    world.send(b"1", Calls(1, [group]))
    [frame] = world.calls_to(0)
    assert [g.partition for g in frame.groups] == [0]


@pytest.mark.parametrize("args", [b"\x90", b"\x93\x01\x02\x03", b"\x01", b"\x80", b"\xa1x"])
def test_a_split_needs_one_argument_array_a_call(args: bytes) -> None:
    world = World(5, 6)
    world.join(1)
    world.send(b"1", Calls(1, [CallGroup(1, "vote", -1, 0, [1, 2], SLOT_OF, Raw(args))]))
    assert world.errors_to(b"1") == [(1, "BadArguments"), (2, "BadArguments")]
    world.check_idle()


def test_a_split_of_more_argument_arrays_than_calls_is_refused_before_memory_is_spent_on_it() -> None:
    world = World(5, 6)
    world.join(1)
    arrays = 1 << 20
    args = b"\xdd" + arrays.to_bytes(4, "big") + b"\xc0" * arrays
    frame = Calls(1, [CallGroup(1, "vote", -1, 0, [1, 2], SLOT_OF, Raw(args))])
    passed = world.door.receive(b"1", encode(frame), world.router.welcome)
    assert isinstance(passed, Calls)
    tracemalloc.start()
    world.router.client_message(world.account(1), passed, NOW_US)
    _, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most_bytes < 1 << 16
    assert world.errors_to(b"1") == [(1, "BadArguments"), (2, "BadArguments")]
    world.check_idle()


def test_a_retry_passes_with_its_floor_but_not_to_another_partition() -> None:
    world = World(5, 6)
    world.join(1)
    retry = group_of(1, [1])
    retry.retry_floor = 12
    world.send(b"1", Calls(1, [retry]))
    [frame] = world.calls_to(0)
    assert frame.groups == [retry]
    retry.partition = 1
    world.send(b"1", Calls(1, [retry]))
    assert world.errors_to(b"1") == [(1, "ProtocolError")]


def test_before_the_topology_is_known_calls_are_unavailable() -> None:
    world = World()
    world.join(1)
    world.send(b"1", Calls(1, [group_of(1, [1])]))
    assert world.errors_to(b"1") == [(1, "Unavailable")]
    world.send(b"1", EverywhereCall(1, 1, "count", 2, Raw(b"\x90")))
    assert world.errors_to(b"1") == [(2, "Unavailable")]
    world.check_idle()
    world.send(b"supervisor", topology(1, 5, 6))
    assert world.flush() == [(b"1", Welcome(PROTOCOL_VERSION, 0, topology(1, 5, 6)))]
    world.send(b"supervisor", topology(2, 5, 7))
    assert world.flush() == [(b"1", topology(2, 5, 7))]


def test_calls_of_an_old_catalog_are_stale() -> None:
    world = World(5, 6)
    world.join(1)
    world.send(b"1", Calls(1, [group_of(1, [1])]))
    world.send(b"supervisor", topology(2, 5, 6, catalog=2))
    world.send(b"1", Calls(1, [group_of(1, [2])]))
    world.send(b"1", Calls(2, [group_of(1, [3])]))
    # The first call was routed by the old catalog and says so: its partition decides what becomes of it.
    sent = world.flush()
    assert [message for destination, message in sent if destination == 0] == [
        Calls(1, [group_of(1, [1])]),
        Calls(2, [group_of(1, [3])]),
    ]
    [stale] = [message for _, message in sent if isinstance(message, Replies)]
    assert [(error.number, error.code) for error in stale.errors] == [(2, STALE)]


def test_calls_to_a_partition_that_is_down_are_unavailable() -> None:
    world = World(5, 0)
    world.join(1)
    world.send(b"1", Calls(1, [group_of(1, [1], 1, 0), group_of(1, [2], 1, 6)]))
    assert world.errors_to(b"1") == [(1, "Unavailable"), (2, "Unavailable")]
    world.check_idle()
    world.send(b"1", Calls(1, [group_of(1, [3])]))
    assert len(world.calls_to(0)) == 1


def test_a_dead_partition_owes_nothing_and_its_late_replies_are_dropped() -> None:
    world = World(5, 6)
    world.join(1, 2)
    world.send(b"1", Calls(1, [group_of(1, [1, 2]), group_of(1, [3], 1, 6)]))
    world.send(b"2", Calls(1, [group_of(2, [1])]))
    world.flush()
    connection = world.router.lanes[0].connection
    world.send(b"supervisor", topology(2, 0, 6))
    assert world.flush() == [(b"1", topology(2, 0, 6)), (b"2", topology(2, 0, 6))]
    assert world.router.lanes[0].connection > connection
    assert (world.account(1).in_flight, world.account(2).in_flight) == (1, 0)
    world.router.partition_message(0, replies_of(0, 5, (1, [1, 2])))
    world.send(b"supervisor", topology(3, 7, 6))
    world.router.partition_message(0, replies_of(0, 5, (1, [1, 2])))
    assert [message for _, message in world.flush()] == [topology(3, 7, 6)] * 2
    world.send(b"1", Calls(1, [group_of(1, [4], 0, 5)]))
    assert world.errors_to(b"1") == [(4, "Unavailable")]
    world.send(b"1", Calls(1, [group_of(1, [5], 0, 7)]))
    assert len(world.calls_to(0)) == 1
    world.router.partition_message(0, replies_of(0, 7, (1, [5])))
    world.router.partition_message(1, replies_of(1, 6, (1, [3])))
    world.flush()
    world.check_idle()


def test_calls_that_had_not_left_when_their_partition_died_are_unavailable_before_clients_hear_of_it() -> None:
    world = World(5, 6)
    world.join(1)
    world.send(b"1", Calls(1, [group_of(1, [1, 2])]))
    world.send(b"1", EverywhereCall(1, 1, "count", 3, Raw(b"\x90")))
    world.send(b"supervisor", topology(2, 0, 6))
    sent = world.flush()
    assert [destination for destination, _ in sent] == [1, b"1", b"1"]
    replies = sent[1][1]
    assert isinstance(replies, Replies)
    # Partition 1 runs the third call, so only partition 0's part of it is refused.
    assert (replies.partition, replies.incarnation) == (0, 5)
    assert sorted((error.number, error.code) for error in replies.errors) == [
        (1, "Unavailable"), (2, "Unavailable"), (3, "Unavailable"),
    ]  # fmt: skip
    assert isinstance(sent[2][1], Topology)
    world.router.partition_message(1, replies_of(1, 6, (1, [3])))
    world.check_idle()


def test_an_older_topology_is_ignored_and_an_impossible_one_refused() -> None:
    world = World(5, 6)
    world.send(b"supervisor", topology(3, 5, 7))
    world.send(b"supervisor", topology(2, 5, 6))
    assert [lane.incarnation for lane in world.router.lanes] == [5, 7, 0]
    assert world.flush() == []
    world.send(b"supervisor", topology(4, 5, 6, 7))
    [(identity, message)] = world.flush()
    assert identity == b"supervisor"
    assert isinstance(message, Refusal)
    assert len(world.router.lanes) == 3


def test_everywhere_calls_reach_every_partition_with_one_time() -> None:
    world = World(5, 6)
    world.join(1)
    call = EverywhereCall(1, 1, "count", 8, Raw(b"\x90"))
    world.send(b"1", call)
    call.now_us = NOW_US
    assert world.flush() == [(0, call), (1, call)]
    assert world.account(1).in_flight == 2
    for partition, incarnation in ((1, 6), (0, 5)):
        replies = replies_of(partition, incarnation, (1, [8]))
        world.router.partition_message(partition, replies)
        assert world.flush() == [(b"1", replies)]
    world.check_idle()


def test_everywhere_calls_are_refused_while_a_partition_is_down() -> None:
    world = World(5, 0)
    world.join(1)
    world.send(b"1", EverywhereCall(1, 1, "count", 8, Raw(b"\x90")))
    assert world.errors_to(b"1") == [(8, "Unavailable")]
    world.check_idle()


def test_past_a_partitions_limit_calls_are_overloaded_and_other_partitions_are_not() -> None:
    world = World(5, 6)
    world.join(1, 2)
    world.router.lanes[0].in_flight = CALLS_IN_FLIGHT_A_PARTITION - 3
    world.send(b"1", Calls(1, [group_of(1, [1, 2]), group_of(1, [3, 4]), group_of(1, [5], 1, 6)]))
    sent = world.flush()
    assert [(destination, [group.numbers for group in message.groups]) for destination, message in sent[:2]] == [
        (0, [[1, 2]]),
        (1, [[5]]),
    ]
    refused = sent[2][1]
    assert isinstance(refused, Replies)
    assert [(error.number, error.code) for error in refused.errors] == [(3, "Overloaded"), (4, "Overloaded")]
    world.router.lanes[0].in_flight = CALLS_IN_FLIGHT_A_PARTITION
    world.send(b"2", EverywhereCall(1, 2, "count", 1, Raw(b"\x90")))
    assert world.errors_to(b"2") == [(1, "Overloaded")]
    assert (world.account(1).in_flight, world.account(2).in_flight) == (3, 0)


@pytest.mark.parametrize("in_turn", [True, False])
def test_clients_that_flood_a_partition_leave_room_for_one_that_does_not(in_turn: bool) -> None:
    world = World(5, 6)
    flood = list(range(2, 32))
    world.join(1, *flood)
    refused = Counter[int]()
    frames = [(client, first) for first in range(1, CALLS_IN_FLIGHT_A_CLIENT - 128, 128) for client in flood]
    for client, first in frames if in_turn else sorted(frames):
        world.send(b"%d" % client, Calls(1, [group_of(client, list(range(first, first + 128)))]))
        for destination, message in world.flush():
            if isinstance(message, Replies):
                assert {error.code for error in message.errors} == {"Overloaded"}
                refused[int(destination)] += len(message.errors)
    assert len(refused) >= len(flood) - 6
    lane = world.router.lanes[0]
    free = CALLS_IN_FLIGHT_A_PARTITION - lane.in_flight
    assert free >= (CALLS_IN_FLIGHT_A_PARTITION // (len(flood) + 1) - 128 if in_turn else RESERVED_CALLS)
    world.send(b"1", Calls(1, [group_of(1, [1, 2])]))
    assert [group.numbers for frame in world.calls_to(0) for group in frame.groups] == [[1, 2]]


def test_clients_that_flood_with_everywhere_calls_leave_room_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router_module, "CALLS_IN_FLIGHT_A_PARTITION", 100)
    world = World(5, 6)
    world.join(1, 2, 3)
    for number in range(1, 100):
        for client in (2, 3):
            world.send(b"%d" % client, EverywhereCall(1, client, "count", number, Raw(b"\x90")))
    world.flush()
    assert [lane.in_flight for lane in world.router.lanes[:2]] == [67, 67]
    world.send(b"1", EverywhereCall(1, 1, "count", 1, Raw(b"\x90")))
    assert [destination for destination, _ in world.flush()] == [0, 1]


def test_past_a_partitions_bytes_calls_are_overloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """And nobody has more of them than he leaves free."""
    monkeypatch.setattr(router_module, "BYTES_IN_FLIGHT_A_PARTITION", 1000)
    world = World(5, 6)
    world.join(1, 2)
    for client, codes in ((1, []), (2, [(1, "Overloaded")])):
        large = group_of(client, [1])
        large.args = Raw(encode([["x" * 700]]))
        world.send(b"%d" % client, Calls(1, [large]))
        if codes:
            assert world.errors_to(b"%d" % client) == codes
        else:
            assert len(world.calls_to(0)) == 1
    world.send(b"1", Calls(1, [group_of(1, [2])]))
    assert world.errors_to(b"1") == [(2, "Overloaded")]
    world.send(b"2", Calls(1, [group_of(2, [2])]))
    assert len(world.calls_to(0)) == 1
    world.router.partition_message(0, replies_of(0, 5, (1, [1])))
    world.flush()
    world.send(b"1", Calls(1, [group_of(1, [3])]))
    assert len(world.calls_to(0)) == 1


def test_frames_out_are_bounded_by_calls_and_by_bytes() -> None:
    world = World(5, 6)
    world.join(1, 2, 3, 4)
    for first in range(1, 5001, 100):
        world.send(b"1", Calls(1, [group_of(1, list(range(first, first + 100)))]))
    frames = world.calls_to(0)
    assert [sum(len(group.numbers) for group in frame.groups) for frame in frames] == [2000, 2000, 1000]
    assert [number for frame in frames for group in frame.groups for number in group.numbers] == list(range(1, 5001))
    for client in (2, 3, 4):
        large = group_of(client, [1])
        large.args = Raw(encode([["x" * (5 << 20)]]))
        world.send(b"%d" % client, Calls(1, [large]))
    frames = world.calls_to(0)
    assert [len(frame.groups) for frame in frames] == [1, 1, 1]
    assert all(len(encode(frame)) < MAX_FRAME_BYTES for frame in frames)


def test_a_group_that_would_not_fit_into_a_frame_again_is_refused() -> None:
    world = World(5, 6)
    world.join(1)
    group = group_of(1, [1])
    group.args = Raw(encode([["x" * (MAX_FRAME_BYTES - 60)]]))
    call = EverywhereCall(1, 1, "count", 2, group.args)
    world.send(b"1", Calls(1, [group]))
    world.send(b"1", call)
    assert world.errors_to(b"1") == [(1, "BadArguments"), (2, "BadArguments")]
    world.check_idle()


def test_replies_for_a_lost_client_are_dropped_and_counted() -> None:
    world = World(5, 6)
    world.join(1, 2)
    world.send(b"1", Calls(1, [group_of(1, [1, 2])]))
    world.send(b"2", Calls(1, [group_of(2, [1])]))
    world.flush()
    world.router.lost(b"1")
    world.router.partition_message(0, replies_of(0, 5, (1, [1, 2]), (2, [1])))
    assert world.flush() == [(b"2", replies_of(0, 5, (2, [1])))]
    world.check_idle()
    assert list(world.door.by_client) == [2]


def test_calls_that_a_retry_overtook_are_no_longer_in_flight() -> None:
    world = World(5, 6)
    world.join(1, 2)
    world.send(b"1", Calls(1, [group_of(1, [1, 2, 3])]))
    world.send(b"2", Calls(1, [group_of(2, [1])]))
    world.flush()
    world.router.partition_message(0, Dropped(0, 4, {1: 3}))  # of an earlier life of the partition
    assert world.router.lanes[0].in_flight == 4
    world.router.partition_message(0, Dropped(0, 5, {1: 2, 2: 1, 3: 7}))
    assert (world.router.lanes[0].owed, world.account(1).in_flight, world.account(2).in_flight) == ({1: 1}, 1, 0)
    assert world.flush() == []
    world.router.partition_message(0, replies_of(0, 5, (1, [3])))
    world.flush()
    world.check_idle()


def test_replies_reach_a_client_that_has_come_back_on_a_new_connection() -> None:
    world = World(5, 6)
    world.join(1)
    world.send(b"1", Calls(1, [group_of(1, [1])]))
    world.flush()
    world.router.lost(b"1")
    world.send(b"again", Hello(PROTOCOL_VERSION, 1))
    world.flush()
    world.router.partition_message(0, replies_of(0, 5, (1, [1])))
    assert world.flush() == [(b"again", replies_of(0, 5, (1, [1])))]
    world.check_idle()


def test_more_replies_than_calls_do_not_upset_the_counts() -> None:
    world = World(5, 6)
    world.join(1)
    world.send(b"1", Calls(1, [group_of(1, [1])]))
    world.flush()
    for _ in range(2):
        world.router.partition_message(0, replies_of(0, 5, (1, [1, 2, 3]), (99, [4])))
    world.check_idle()


def test_a_partition_that_has_no_account_of_the_router_gets_a_new_connection() -> None:
    world = World(5, 6)
    world.join(1)
    world.send(b"1", Calls(1, [group_of(1, [1])]))
    world.flush()
    lane = world.router.lanes[0]
    connection = lane.connection
    world.router.partition_message(0, Refusal(NO_HELLO, ""))
    assert (lane.connection, lane.incarnation) == (connection + 1, 5)
    assert world.flush() == [(b"1", Lost(0, 5, "partition 0 has lost the router's connection"))]
    world.check_idle()


def test_at_the_end_clients_hear_what_may_have_run_and_that_nothing_else_has() -> None:
    world = World(5, 6)
    world.join(1, 2, 3)
    world.send(b"1", Calls(1, [group_of(1, [1])]))
    world.flush()
    world.send(b"2", Calls(1, [group_of(2, [7])]))
    world.router.lost(b"3")
    world.router.end()
    outbox = world.flush()
    assert outbox[1:] == [(b"1", Lost(0, 5, "the router has stopped"))]
    assert outbox[0][0] == b"2"
    assert [(error.number, error.code) for error in outbox[0][1].errors] == [(7, "Unavailable")]
    world.check_idle()
    world.router.close()
    closing = Closing("the router is stopping")
    assert world.flush() == [(b"1", closing), (b"2", closing)]


def test_calls_that_had_not_left_when_a_connection_was_lost_never_ran() -> None:
    world = World(5, 6)
    world.join(1, 2)
    world.send(b"1", Calls(1, [group_of(1, [1])]))
    world.flush()
    world.send(b"2", Calls(1, [group_of(2, [7])]))
    world.router.partition_message(0, Refusal(NO_HELLO, ""))
    outbox = world.flush()
    assert [(to, type(message)) for to, message in outbox] == [(b"2", Replies), (b"1", Lost)]
    assert [(error.number, error.code) for error in outbox[0][1].errors] == [(7, "Unavailable")]
    world.check_idle()


def test_a_partition_that_refuses_the_router_is_down_until_the_next_topology() -> None:
    world = World(5, 6)
    world.join(1)
    world.router.partition_message(0, Refusal("ProtocolError", "who are you?"))
    world.send(b"1", Calls(1, [group_of(1, [1])]))
    assert world.errors_to(b"1") == [(1, "Unavailable")]
    world.send(b"supervisor", topology(2, 5, 6))
    world.flush()
    world.send(b"1", Calls(1, [group_of(1, [2])]))
    assert len(world.calls_to(0)) == 1


def test_commands_travel_to_the_supervisor_and_back() -> None:
    world = World(5, 6)
    world.join(1, 2)
    world.send(b"1", Admin(7, "status", {}))
    world.send(b"2", Admin(7, "stop", {"now": True}))
    [(first_to, first), (second_to, second)] = world.flush()
    assert (first_to, second_to) == (b"supervisor", b"supervisor")
    assert isinstance(first, Admin)
    assert isinstance(second, Admin)
    assert (first.command, second.command, second.body) == ("status", "stop", {"now": True})
    assert first.number != second.number
    world.send(b"supervisor", AdminReply(second.number, "", {"x": 1}))
    world.send(b"supervisor", AdminReply(second.number, "", {"x": 2}))
    world.send(b"supervisor", AdminReply(first.number, "ClusterError", {}))
    assert world.flush() == [(b"2", AdminReply(7, "", {"x": 1})), (b"1", AdminReply(7, "ClusterError", {}))]
    assert world.router.metrics()["commands_in_flight"] == 0


def test_an_answer_to_a_command_of_the_router_before_reaches_nobody() -> None:
    before, after = World(5, 6), World(5, 6)
    after.router = Router(after.door, 1000)
    after.send(b"supervisor", topology(2, 5, 6))
    passed_on = []
    for world in (before, after):
        world.join(1)
        world.send(b"1", Admin(7, "change_schema", {}))
        [(_, command)] = world.flush()
        assert isinstance(command, Admin)
        passed_on.append(command.number)
    assert passed_on == [1, 1000]
    after.send(b"supervisor", AdminReply(1, "", {"kind": "create view"}))
    assert after.flush() == []
    after.send(b"supervisor", AdminReply(1000, "", {"kind": "create index"}))
    assert after.flush() == [(b"1", AdminReply(7, "", {"kind": "create index"}))]


def test_commands_without_a_supervisor_are_unavailable_and_indeterminate_once_passed_on() -> None:
    world = World(5, 6)
    world.join(1)
    world.send(b"1", Admin(1, "status", {}))
    world.flush()
    world.router.lost(b"supervisor")
    world.send(b"1", Admin(2, "status", {}))
    sent = world.flush()
    assert [(identity, message.number, message.error) for identity, message in sent] == [
        (b"1", 1, "Indeterminate"),
        (b"1", 2, "Unavailable"),
    ]


def test_commands_are_bounded_for_each_client_and_go_with_it() -> None:
    world = World(5, 6)
    world.join(1, 2)
    for number in range(20):
        world.send(b"1", Admin(number, "status", {}))
    world.send(b"2", Admin(1, "status", {}))
    sent = world.flush()
    assert Counter(destination for destination, _ in sent) == {b"supervisor": 17, b"1": 4}
    assert {message.error for destination, message in sent if destination == b"1"} == {"Overloaded"}
    world.router.lost(b"1")
    assert world.router.metrics()["commands_in_flight"] == 1


def test_what_is_addressed_to_the_coordinator_goes_there_whatever_its_slots() -> None:
    world = World(5, 6, coordinator=9)
    world.join(1)
    slots = [SLOT_OF[0], SLOT_OF[1], SLOT_OF[0]]
    group = CallGroup(1, "move", COORDINATOR, 9, [1, 2, 3], slots, Raw(b"\x93\x90\x90\x90"))
    retry = group_of(1, [4])
    retry.partition, retry.incarnation, retry.retry_floor = COORDINATOR, 9, 77
    world.send(b"1", Calls(1, [group, retry]))
    assert world.flush() == [(COORDINATOR, Calls(1, [group, retry]))]
    world.router.partition_message(COORDINATOR, replies_of(COORDINATOR, 9, (1, [1, 2, 3, 4]), lsn=12))
    assert [identity for identity, _ in world.flush()] == [b"1"]
    world.check_idle()
    world.send(b"2", Hello(PROTOCOL_VERSION, 2))
    [(_, welcome)] = world.flush()
    assert welcome.topology.coordinator.lsn == 12


def test_a_coordinator_that_is_down_is_told_to_those_who_need_it() -> None:
    for world in (World(5, 6), World(5, 6, coordinator=9)):
        world.join(1)
        world.send(b"supervisor", topology(2, 5, 6))
        world.flush()
        group = group_of(1, [1, 2])
        group.partition, group.incarnation = COORDINATOR, 9
        world.send(b"1", Calls(1, [group]))
        world.send(b"1", EverywhereCall(1, 1, "set_all", 3, Raw(b"\x90")))
        assert world.errors_to(b"1") == [(1, "Unavailable"), (2, "Unavailable"), (3, "Unavailable")]
        world.send(b"1", Calls(1, [group_of(1, [4])]))
        assert len(world.calls_to(0)) == 1


def test_a_coordinator_that_dies_gives_up_what_never_left() -> None:
    world = World(5, 6, coordinator=9)
    world.join(1)
    group = group_of(1, [1])
    group.partition, group.incarnation = COORDINATOR, 9
    world.send(b"1", Calls(1, [group]))
    world.send(b"supervisor", topology(2, 5, 6, coordinator=10))
    replies = [message for _, message in world.flush() if isinstance(message, Replies)]
    assert [(reply.partition, [error.code for error in reply.errors]) for reply in replies] == [
        (COORDINATOR, ["Unavailable"])
    ]
    group.incarnation = 10
    world.send(b"1", Calls(1, [group]))
    assert len(world.calls_to(COORDINATOR)) == 1


def test_a_joint_call_goes_to_the_coordinator_alone_and_is_answered_once() -> None:
    world = World(5, 6, coordinator=9)
    world.join(1)
    call = EverywhereCall(1, 1, "set_all", 1, Raw(b"\x90"))
    world.send(b"1", call)
    [(destination, sent)] = world.flush()
    assert (destination, sent.number, sent.now_us) == (COORDINATOR, 1, NOW_US)
    reply = Replies(COORDINATOR, 9, 3, [ReplyGroup(1, [1], Raw(encode([["a", "b"]])))], [])
    world.router.partition_message(COORDINATOR, reply)
    assert world.flush() == [(b"1", reply)]
    world.check_idle()


@pytest.mark.parametrize("partition", [-3, -2, -1, 1, 2])
def test_no_number_names_the_coordinator_that_one_partition_does_without(partition: int) -> None:
    world = World(5)
    world.join(1)
    group = group_of(1, [1])
    group.partition, group.incarnation = partition, 0
    world.send(b"1", Calls(1, [group]))
    [frame] = world.calls_to(0)
    assert [(g.partition, g.incarnation) for g in frame.groups] == [(0, 5)]


def test_with_one_partition_nothing_goes_to_a_coordinator() -> None:
    world = World(5)
    world.join(1)
    world.send(b"supervisor", topology(2, 5, coordinator=9))
    world.flush()
    group = group_of(1, [1])
    group.partition, group.incarnation = 1, 9
    world.send(b"1", Calls(1, [group]))
    world.send(b"1", EverywhereCall(1, 1, "set_all", 2, Raw(b"\x90")))
    assert [(destination, type(message)) for destination, message in world.flush()] == [(0, EverywhereCall), (0, Calls)]


def test_metrics_count_calls() -> None:
    world = World(5, 6)
    world.join(1)
    world.send(b"1", Calls(1, [group_of(1, [1, 2]), group_of(1, [3], 0, 4)]))
    world.flush()
    world.router.partition_message(0, replies_of(0, 5, (1, [1])))
    metrics = world.router.metrics()
    assert (metrics["calls_forwarded"], metrics["calls"], metrics["calls_refused"]) == (2, 1, 1)
    assert (metrics["clients"], metrics["calls_in_flight"]) == (1, 1)


class Accounting:
    """A world in which anything happens, with a book of what became of every call."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.world = World(1, 1, coordinator=1)
        self.incarnations = [1, 1, 1]  # the last one is the coordinator's
        self.last_incarnation = 1
        self.version = 1
        self.next_number = 1
        self.sent: set[tuple[int, int]] = set()  # (client, number); an everywhere call counts once here
        self.everywhere: set[tuple[int, int]] = set()
        self.answered: Counter[tuple[int, int]] = Counter()
        self.joint: set[tuple[int, int]] = set()
        self.at_partition: list[list[tuple[int, int, int]]] = [[], [], []]  # client, number, incarnation
        self.forwarded: Counter[tuple[int, int, int]] = Counter()  # client, number, partition
        self.lost: Counter[tuple[int, int]] = Counter()  # died with a partition, or with the client's connection
        self.world.join(1, 2, 3)

    def step(self) -> None:
        self.rng.choice(
            [self.call, self.call, self.call, self.call_everywhere, self.deliver, self.deliver, self.reply, self.reply,
             self.kill, self.restart, self.lose_client]
        )()  # fmt: skip

    def client(self) -> int:
        client = self.rng.randint(1, 3)
        if self.world.door.accounts.get(b"%d" % client) is None:
            self.world.send(b"%d" % client, Hello(PROTOCOL_VERSION, client))
        return client

    def numbers(self, count: int) -> list[int]:
        first, self.next_number = self.next_number, self.next_number + count
        return list(range(first, first + count))

    def call(self) -> None:
        client = self.client()
        numbers = self.numbers(self.rng.randint(1, 6))
        slots = [self.rng.randrange(16384) for _ in numbers]
        partition = self.rng.choice([-1, 0, 1, COORDINATOR])
        if partition in (0, 1) and self.rng.random() < 0.7:
            slots = [SLOT_OF[partition]] * len(numbers)
        incarnation = self.rng.choice([0, self.incarnations[partition], self.last_incarnation])
        args = joined([encode([number]) for number in numbers])
        self.sent |= {(client, number) for number in numbers}
        self.world.send(
            b"%d" % client, Calls(1, [CallGroup(client, "p", partition, incarnation, numbers, slots, args)])
        )

    def call_everywhere(self) -> None:
        client = self.client()
        [number] = self.numbers(1)
        self.sent.add((client, number))
        procedure = self.rng.choice(["p", "set_all"])
        (self.everywhere if procedure == "p" else self.joint).add((client, number))
        self.world.send(b"%d" % client, EverywhereCall(1, client, procedure, number, Raw(b"\x90")))

    def deliver(self) -> None:
        for destination, message in self.world.flush():
            if isinstance(destination, int):
                self.deliver_to_partition(destination, message)
            elif isinstance(message, Replies):
                client = int(destination)
                for group in message.groups:
                    assert group.client_id == client
                    assert msgspec.msgpack.decode(group.results) == group.numbers
                    self.answered.update((client, number) for number in group.numbers)
                for error in message.errors:
                    assert error.client_id == client
                    parts = PARTITIONS if message.partition == -1 and (client, error.number) in self.everywhere else 1
                    self.answered[client, error.number] += parts

    def deliver_to_partition(self, partition: int, message: Message) -> None:
        assert self.incarnations[partition] != 0
        calls: list[tuple[int, int]] = []
        if isinstance(message, EverywhereCall):
            assert (partition == COORDINATOR) == ((message.client_id, message.number) in self.joint)
            calls.append((message.client_id, message.number))
        else:
            assert isinstance(message, Calls)
            for group in message.groups:
                assert (group.partition, group.incarnation) == (partition, self.incarnations[partition])
                assert partition == COORDINATOR or {OWNERS[slot] for slot in group.slots} == {partition}
                assert msgspec.msgpack.decode(group.args) == [[number] for number in group.numbers]
                calls += [(group.client_id, number) for number in group.numbers]
        for client, number in calls:
            self.forwarded[client, number, partition] += 1
            self.at_partition[partition].append((client, number, self.incarnations[partition]))

    def reply(self) -> None:
        partition = self.rng.randrange(PARTITIONS + 1)
        waiting = self.at_partition[partition]
        count = self.rng.randint(0, len(waiting))
        if count == 0:
            return
        now, self.at_partition[partition] = waiting[:count], waiting[count:]
        replies = Replies(partition, self.incarnations[partition], 1, [], [])
        for client, number, _ in now:
            if self.rng.random() < 0.2:
                replies.errors.append(CallError(client, number, "Aborted", ""))
            else:
                replies.groups.append(ReplyGroup(client, [number], Raw(encode([number]))))
            account = self.world.door.by_client.get(client)
            if account is None or account.closed:
                self.lost[client, number] += 1
        self.world.router.partition_message(partition, replies)

    def kill(self) -> None:
        self.announce(self.rng.randrange(PARTITIONS + 1), 0)

    def restart(self) -> None:
        self.last_incarnation += 1
        self.announce(self.rng.randrange(PARTITIONS + 1), self.last_incarnation)

    def announce(self, partition: int, incarnation: int) -> None:
        if incarnation == self.incarnations[partition]:
            return
        for client, number, _ in self.at_partition[partition]:
            self.lost[client, number] += 1
        self.at_partition[partition] = []
        self.incarnations[partition] = incarnation
        self.version += 1
        *partitions, coordinator = self.incarnations
        self.world.send(b"supervisor", topology(self.version, *partitions, coordinator=coordinator))

    def lose_client(self) -> None:
        self.deliver()
        client = self.rng.randint(1, 3)
        self.world.router.lost(b"%d" % client)

    def finish(self) -> None:
        self.deliver()
        while any(self.at_partition):
            self.reply()
        self.deliver()
        self.world.check_idle()
        assert max(self.forwarded.values(), default=1) == 1
        for call in self.sent:
            parts = PARTITIONS if call in self.everywhere else 1
            # What was under way to a lost client counts as lost, too.
            assert self.answered[call] + self.lost[call] == parts, (call, self.answered[call], self.lost[call])


@given(st.integers(0, 1 << 32), st.integers(1, 200))
@settings(max_examples=200, deadline=None)
def test_every_call_is_forwarded_once_and_answered_once_whatever_happens(seed: int, steps: int) -> None:
    accounting = Accounting(random.Random(seed))
    for _ in range(steps):
        accounting.step()
    accounting.finish()


# ----------------------------------------------------------------------------------------------- large calls


def large_group(client: int, number: int, size: int = 1 << 20) -> CallGroup:
    group = group_of(client, [number])
    group.args = Raw(encode([["x" * size]]))
    return group


def test_large_calls_leave_a_few_at_a_time_and_others_pass_them() -> None:
    world = World(5, 6)
    world.join(1, 2)
    for number in range(1, 11):
        world.send(b"1", Calls(1, [large_group(1, number)]))
    world.send(b"2", Calls(1, [group_of(2, [1])]))
    world.send(b"1", Calls(1, [group_of(1, [11], 1, 6)]))  # to the other partition
    (first, frame), (other, elsewhere) = world.router.flush()
    assert (first, other, elsewhere.groups[0].numbers) == (0, 1, [11])
    assert [(group.client_id, group.numbers) for group in frame.groups] == [(1, [1]), (1, [2]), (1, [3]), (2, [1])]
    assert world.router.lanes[0].owed == {1: 10, 2: 1}
    world.router.partition_message(0, replies_of(0, 5, (2, [1])))
    assert [destination for destination, _ in world.router.flush()] == [b"2"]
    sent = [1, 2, 3]
    for number in range(1, 11):  # in order, each as one is answered
        world.router.partition_message(0, replies_of(0, 5, (1, [number])))
        sent += [
            n for to, message in world.router.flush() if to == 0 for group in message.groups for n in group.numbers
        ]
        assert sent == list(range(1, min(number + 3, 10) + 1))
    world.router.partition_message(1, replies_of(1, 6, (1, [11])))
    world.flush()
    world.check_idle()
    assert world.router.lanes[0].windows == {}


def test_a_client_whose_results_are_large_has_few_calls_at_a_partition() -> None:
    world = World(5, 6)
    world.join(1, 2)
    world.send(b"1", Calls(1, [group_of(1, [1])]))
    world.flush()
    large = Replies(0, 5, 9, [ReplyGroup(1, [1], Raw(encode(["x" * (1 << 20)])))], [])
    world.router.partition_message(0, large)
    world.flush()
    world.send(b"1", Calls(1, [group_of(1, [number]) for number in range(2, 12)]))
    world.send(b"2", Calls(1, [group_of(2, list(range(1, 101)))]))
    (frame,) = world.calls_to(0)
    assert [group.numbers for group in frame.groups] == [[2], [3], [4], list(range(1, 101))]
    world.router.partition_message(0, replies_of(0, 5, (1, [2, 3])))  # these were small
    released = [message for to, message in world.router.flush() if to == 0]
    assert [group.numbers for group in released[0].groups] == [[5], [6]]


@pytest.mark.parametrize("lost", [topology(2, 7, 6), topology(2, 0, 6)], ids=["restarted", "down"])
def test_calls_that_were_held_back_never_ran_when_their_partition_is_lost(lost: Topology) -> None:
    world = World(5, 6)
    world.join(1)
    world.send(b"1", Calls(1, [large_group(1, number) for number in range(1, 7)]))
    assert [len(frame.groups) for frame in world.calls_to(0)] == [3]
    world.send(b"supervisor", lost)
    ((to, replies), (_, news)) = world.router.flush()
    assert (to, news) == (b"1", lost)
    assert [(error.number, error.code) for error in replies.errors] == [(n, "Unavailable") for n in (4, 5, 6)]
    world.check_idle()
    assert world.router.lanes[0].windows == {}


def test_calls_that_were_held_back_leave_under_the_procedures_that_they_were_let_in_under() -> None:
    world = World(5, 6)
    world.join(1)
    world.send(b"1", Calls(1, [large_group(1, number) for number in range(1, 7)]))
    world.flush()
    world.send(b"supervisor", topology(2, 5, 6, catalog=2))
    frames = [message for to, message in world.router.flush() if to == 0]
    assert [(frame.catalog_version, len(frame.groups)) for frame in frames] == [(1, 3)]
    world.router.partition_message(0, replies_of(0, 5, (1, list(range(1, 7)))))
    world.flush()
    world.check_idle()


def test_of_all_large_calls_a_bounded_part_is_at_a_partition_and_none_waits_for_ever() -> None:
    world = World(5, 6)
    clients = list(range(1, 41))
    world.join(*clients)
    for client in clients:
        world.send(b"%d" % client, Calls(1, [large_group(client, number) for number in (1, 2, 3, 4)]))
    sent = world.calls_to(0)
    world.join(50)
    world.send(b"50", Calls(1, [group_of(50, [1])]))
    sent += world.calls_to(0)
    at_partition = [(group.client_id, number) for frame in sent for group in frame.groups for number in group.numbers]
    assert (50, 1) in at_partition
    assert 60 <= len(at_partition) <= 65
    answered: list[tuple[int, int]] = []
    while at_partition:
        client, number = at_partition.pop(0)
        answered.append((client, number))
        world.router.partition_message(0, replies_of(0, 5, (client, [number])))
        at_partition += [
            (group.client_id, number)
            for to, message in world.router.flush()
            if to == 0
            for group in message.groups
            for number in group.numbers
        ]
        assert len(at_partition) <= 65
    assert sorted(answered) == sorted([(client, number) for client in clients for number in (1, 2, 3, 4)] + [(50, 1)])
    world.check_idle()


@pytest.mark.parametrize("size_bytes", [8_000, 1 << 20])
def test_a_call_that_waits_in_a_crowded_lane_has_its_turn(size_bytes: int) -> None:
    world = World(5, 6)
    clients = range(1, 31)
    world.join(*clients)
    numbers = dict.fromkeys(clients, 0)

    def send_one(client: int) -> None:
        numbers[client] += 1
        world.send(b"%d" % client, Calls(1, [large_group(client, numbers[client])]))

    for client in clients:
        for _ in range(12):
            send_one(client)
    under_way = deque(_calls_in(world.calls_to(0)))
    assert len(under_way) < 12 * len(clients)  # the lane is crowded
    world.join(99)
    world.send(b"99", Calls(1, [large_group(99, 1, size_bytes)]))
    for _ in range(500):
        under_way.extend(_calls_in(message for to, message in world.router.flush() if to == 0))
        client, number = under_way.popleft()
        if client == 99:
            return
        world.router.partition_message(0, replies_of(0, 5, (client, [number])))
        send_one(client)
    pytest.fail("the others were always before it")


def test_a_group_that_costs_more_than_a_lane_has_goes_beside_others() -> None:
    world = World(5, 6)
    world.join(1, 2)
    world.send(b"1", Calls(1, [group_of(1, [1])]))
    world.calls_to(0)
    result = Raw(encode(["x" * (1 << 20)]))
    world.router.partition_message(0, Replies(0, 5, 9, [ReplyGroup(1, [1], result)], []))
    world.router.flush()
    world.send(b"2", Calls(1, [large_group(2, 1, 8_000)]))
    assert _calls_in(world.calls_to(0)) == [(2, 1)]
    world.send(b"1", Calls(1, [group_of(1, list(range(2, 102)))]))  # 100 MiB, if all results are as large
    assert _calls_in(world.calls_to(0)) == [(1, number) for number in range(2, 102)]


def _calls_in(messages: Iterable[Message]) -> list[tuple[int, int]]:
    """(client, number) of calls."""
    return [
        (group.client_id, number)
        for message in messages
        if isinstance(message, Calls)
        for group in message.groups
        for number in group.numbers
    ]
