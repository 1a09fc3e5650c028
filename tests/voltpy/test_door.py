"""What passes the door, what is answered there, and that the counts come back to zero."""

from __future__ import annotations

import os
import random
import time

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from voltpy import door as door_module
from voltpy.door import COMMAND_BYTES, FEW_CALLS, RESERVED_CALLS, Door
from voltpy.hash_slot import slot_owners
from voltpy.messages import (
    CALLS_IN_FLIGHT_A_CLIENT,
    CALLS_IN_FLIGHT_A_PARTITION,
    NO_HELLO,
    PROTOCOL_VERSION,
    STALE,
    Admin,
    AdminReply,
    Attach,
    Attached,
    CallGroup,
    Calls,
    Detach,
    DiscardLoad,
    EverywhereCall,
    Hello,
    LoadPrepared,
    Message,
    Orders,
    PrepareLoad,
    Refusal,
    Replies,
    Reports,
    StatusReply,
    StatusRequest,
    SwitchLoad,
    Topology,
    Welcome,
)
from voltpy.wire import decode, encode, joined

TOKEN = "the token"
INCARNATION = 7
TOPOLOGY = Topology(1, 1, "", "", [], [], [])
AT_ROUTER = Welcome(PROTOCOL_VERSION, 0, TOPOLOGY)
AT_PARTITION = Welcome(PROTOCOL_VERSION, INCARNATION, None)
NO_ARGUMENTS = Raw(b"\x90")


def calls_of(
    client_id: int, numbers: list[int], *, partition: int = 0, incarnation: int = INCARNATION, version: int = 1
) -> Calls:
    args = joined([NO_ARGUMENTS] * len(numbers))
    group = CallGroup(client_id, "vote", partition, incarnation, numbers, [0] * len(numbers), args)
    return Calls(version, [group])


def router_door(*clients: int) -> Door:
    door = Door(TOKEN, at_partition=None)
    greet(door, AT_ROUTER, *clients)
    return door


def partition_door(*clients: int, partitions: int = 0) -> Door:
    door = Door(TOKEN, at_partition=0, partitions=partitions)
    greet(door, AT_PARTITION, *clients)
    return door


def greet(door: Door, welcome: Welcome, *clients: int) -> None:
    for client in clients:
        hello = Hello(PROTOCOL_VERSION, client)
        assert door.receive(b"%d" % client, encode(hello), welcome) is None
    assert [message for _, message in door.outbox] == [welcome] * len(clients)
    door.outbox.clear()


def answers(door: Door) -> list[tuple[bytes, Message]]:
    outbox = list(door.outbox)
    door.outbox.clear()
    return outbox


def refusal(door: Door, identity: bytes) -> Refusal:
    [(receiver, message)] = answers(door)
    assert receiver == identity
    assert isinstance(message, Refusal)
    return message


def error_codes(door: Door, identity: bytes) -> list[tuple[int, str]]:
    """Numbers and codes of the calls that the door has answered."""
    found = []
    for receiver, message in answers(door):
        assert receiver == identity
        assert isinstance(message, Replies)
        assert message.groups == []
        found += [(error.number, error.code) for error in message.errors]
    return found


def test_hello_is_welcomed_and_calls_pass() -> None:
    door = router_door(1)
    sent = calls_of(1, [1, 2, 3])
    assert door.receive(b"1", encode(sent), AT_ROUTER) == sent
    account = door.accounts[b"1"]
    assert (account.client_id, account.role, account.in_flight, door.in_flight) == (1, "client", 3, 3)
    assert account.bytes_in_flight == len(encode(sent))
    door.answered(account, 1)
    assert 0 < account.bytes_in_flight < len(encode(sent))
    door.answered(account, 2)
    assert (account.in_flight, account.bytes_in_flight, door.in_flight) == (0, 0, 0)
    assert answers(door) == []


def test_hello_again_is_welcomed_with_what_is_new() -> None:
    door = router_door(1)
    door.receive(b"1", encode(calls_of(1, [1])), AT_ROUTER)
    newer = Welcome(PROTOCOL_VERSION, 0, Topology(2, 1, "", "", [], [], []))
    door.receive(b"1", encode(Hello(PROTOCOL_VERSION, 1)), newer)
    assert answers(door) == [(b"1", newer)]
    assert door.accounts[b"1"].in_flight == 1


def test_a_frame_before_hello_is_refused_once_and_hello_heals() -> None:
    door = Door(TOKEN, at_partition=None)
    frame = encode(calls_of(1, [1]))
    assert door.receive(b"x", frame, AT_ROUTER) is None
    assert refusal(door, b"x").code == NO_HELLO
    assert door.receive(b"x", frame, AT_ROUTER) is None
    assert answers(door) == []
    greet_frame = encode(Hello(PROTOCOL_VERSION, 1))
    assert door.receive(b"x", greet_frame, AT_ROUTER) is None
    assert answers(door) == [(b"x", AT_ROUTER)]
    assert isinstance(door.receive(b"x", frame, AT_ROUTER), Calls)


@pytest.mark.parametrize("garbage", [b"", b"\xc1", b"hello", b"\x91\x63", os.urandom(200), encode([4, 1, [[1]]])])
def test_garbage_closes_the_account_with_one_refusal(garbage: bytes) -> None:
    door = router_door(1, 2)
    assert door.receive(b"1", garbage, AT_ROUTER) is None
    assert refusal(door, b"1").code == "ProtocolError"
    assert door.accounts[b"1"].closed
    assert door.receive(b"1", encode(calls_of(1, [1])), AT_ROUTER) is None
    assert door.receive(b"1", garbage, AT_ROUTER) is None
    assert answers(door) == []
    assert isinstance(door.receive(b"2", encode(calls_of(2, [1])), AT_ROUTER), Calls)
    greet(door, AT_ROUTER, 1)
    assert isinstance(door.receive(b"1", encode(calls_of(1, [1])), AT_ROUTER), Calls)


def test_a_message_of_several_parts_closes_the_account() -> None:
    door = router_door(1)
    door.garbage(b"1", "3 parts")
    assert refusal(door, b"1") == Refusal("ProtocolError", "3 parts")
    assert door.accounts[b"1"].closed


@pytest.mark.parametrize(
    "hello",
    [
        Hello(PROTOCOL_VERSION + 1, 1),
        Hello(PROTOCOL_VERSION, 0),
        Hello(PROTOCOL_VERSION, -5),
        Hello(PROTOCOL_VERSION, 1 << 63),
        Hello(PROTOCOL_VERSION, 1, "king"),
        Hello(PROTOCOL_VERSION, 1, "supervisor"),
        Hello(PROTOCOL_VERSION, 1, "supervisor", TOKEN + "x"),
        Hello(PROTOCOL_VERSION, 1, "supervisor", "töken"),
    ],
)
def test_a_wrong_hello_is_refused(hello: Hello) -> None:
    door = Door(TOKEN, at_partition=None)
    assert door.receive(b"x", encode(hello), AT_ROUTER) is None
    assert refusal(door, b"x").code == "ProtocolError"
    assert door.accounts[b"x"].closed
    assert door.by_client == {}


def test_without_a_token_nobody_is_trusted() -> None:
    door = Door("", at_partition=0)
    door.receive(b"x", encode(Hello(PROTOCOL_VERSION, 0, "router", "")), AT_PARTITION)
    assert refusal(door, b"x").code == "ProtocolError"


def test_a_router_is_unknown_at_the_router() -> None:
    door = Door(TOKEN, at_partition=None)
    door.receive(b"x", encode(Hello(PROTOCOL_VERSION, 0, "router", TOKEN)), AT_ROUTER)
    assert refusal(door, b"x").code == "ProtocolError"


EVERYWHERE = EverywhereCall(1, 1, "count", 1, NO_ARGUMENTS)
MESSAGES: list[Message] = [
    calls_of(1, [1]), EVERYWHERE, Admin(1, "status", {}), TOPOLOGY, AdminReply(1, "", {}), StatusRequest(1),
    PrepareLoad(1, "", ""), SwitchLoad(1), DiscardLoad(1), AT_ROUTER, Replies(0, 0, 0, [], []), Refusal("", ""),
    StatusReply(1, 0, 0, 0, 0, [], {}), LoadPrepared(1, "", []), Attach(1, 1), Orders(1, 1, 1, []), Detach(1),
    Attached(1, 1, 1, []), Reports(1, 1, 1, []),
]  # fmt: skip


@pytest.mark.parametrize(
    ("at_partition", "role", "allowed"),
    [
        (None, "client", {Calls, EverywhereCall, Admin}),
        (None, "supervisor", {Topology, AdminReply, StatusRequest}),
        (0, "client", {Calls}),
        (0, "router", {Calls, EverywhereCall}),
        (0, "supervisor", {StatusRequest, PrepareLoad, SwitchLoad, DiscardLoad, Detach}),
        (0, "coordinator", {Attach, Orders}),
    ],
)
def test_each_role_may_send_its_messages_and_no_others(at_partition: int | None, role: str, allowed: set[type]) -> None:
    welcome = AT_ROUTER if at_partition is None else AT_PARTITION
    for message in MESSAGES:
        door = Door(TOKEN, at_partition=at_partition)
        door.receive(b"x", encode(Hello(PROTOCOL_VERSION, 1, role, TOKEN)), welcome)
        assert answers(door) == [(b"x", welcome)]
        passed = door.receive(b"x", encode(message), welcome)
        if type(message) in allowed:
            assert passed == message
            assert answers(door) == []
        else:
            assert passed is None
            assert refusal(door, b"x").code == "ProtocolError"


def test_calls_under_another_clients_id_are_refused() -> None:
    door = router_door(1, 2)
    assert door.receive(b"1", encode(calls_of(2, [1])), AT_ROUTER) is None
    assert refusal(door, b"1").code == "ProtocolError"
    assert door.receive(b"2", encode(EVERYWHERE), AT_ROUTER) is None
    assert refusal(door, b"2").code == "ProtocolError"
    assert door.in_flight == 0


def group_with(**changes: object) -> bytes:
    """A frame whose one group differs from a valid one in the fields named; not what our own encoder would check."""
    fields: dict[str, object] = {
        "client_id": 1, "procedure": "vote", "partition": 0, "incarnation": INCARNATION,
        "numbers": [1, 2], "slots": [0, 0], "args": [[], []], "retry_floor": -1,
    }  # fmt: skip
    return encode([4, 1, [list((fields | changes).values())]])


def test_the_group_that_the_bad_ones_differ_from_is_valid() -> None:
    door = router_door(1)
    assert isinstance(door.receive(b"1", group_with(), AT_ROUTER), Calls)


@pytest.mark.parametrize(
    "changes",
    [
        {"numbers": [1]}, {"slots": [0]}, {"numbers": [], "slots": []}, {"numbers": [1, 0]}, {"numbers": [1, -2]},
        {"numbers": [1, 1 << 63]}, {"slots": [0, 16384]}, {"slots": [0, -1]}, {"slots": [0, 1.5]}, {"client_id": 0},
        {"numbers": list(range(1, 4098)), "slots": [0] * 4097}, {"retry_floor": -2}, {"procedure": 5},
    ],
)  # fmt: skip
def test_a_malformed_group_is_refused(changes: dict[str, object]) -> None:
    door = router_door(1)
    assert door.receive(b"1", group_with(**changes), AT_ROUTER) is None
    assert refusal(door, b"1").code == "ProtocolError"
    assert door.in_flight == 0


def test_nothing_of_a_frame_counts_when_its_last_group_is_malformed() -> None:
    door = router_door(1)
    calls = calls_of(1, [1, 2])
    calls.groups.append(CallGroup(1, "vote", 0, 0, [3], [0, 0], NO_ARGUMENTS))
    assert door.receive(b"1", encode(calls), AT_ROUTER) is None
    assert refusal(door, b"1").code == "ProtocolError"
    assert door.in_flight == 0


def test_a_frame_of_too_many_calls_is_refused() -> None:
    door = router_door(1)
    calls = Calls(1, [calls_of(1, list(range(1, 4097))).groups[0] for _ in range(3)])
    assert door.receive(b"1", encode(calls), AT_ROUTER) is None
    assert refusal(door, b"1").code == "ProtocolError"


def test_a_long_frame_that_carries_no_calls_is_refused_before_it_is_decoded() -> None:
    door = router_door(1, 2)
    bomb = encode([8, 1, "load_procedures", {"x": [{}] * (2 * COMMAND_BYTES)}])
    began = time.process_time()
    assert door.receive(b"1", bomb, AT_ROUTER) is None
    assert time.process_time() - began < 0.01
    assert refusal(door, b"1").code == "ProtocolError"
    long_call = EverywhereCall(1, 2, "load", 1, Raw(encode(["x" * (2 * COMMAND_BYTES)])))
    assert isinstance(door.receive(b"2", encode(long_call), AT_ROUTER), EverywhereCall)


def test_calls_of_another_catalog_are_stale() -> None:
    door = router_door(1)
    door.catalog_version = 2
    assert door.receive(b"1", encode(calls_of(1, [5, 6], version=1)), AT_ROUTER) is None
    assert error_codes(door, b"1") == [(5, STALE), (6, STALE)]
    assert door.receive(b"1", encode(EVERYWHERE), AT_ROUTER) is None
    assert error_codes(door, b"1") == [(1, STALE)]
    assert door.in_flight == 0
    assert isinstance(door.receive(b"1", encode(calls_of(1, [5], version=2)), AT_ROUTER), Calls)


def test_calls_past_the_clients_limit_are_overloaded_and_others_are_not() -> None:
    door = router_door(1, 2)
    number = 0
    for _ in range(CALLS_IN_FLIGHT_A_CLIENT // 128):
        frame = encode(calls_of(1, list(range(number + 1, number + 129))))
        assert isinstance(door.receive(b"1", frame, AT_ROUTER), Calls)
        number += 128
    assert door.receive(b"1", encode(calls_of(1, [90001, 90002])), AT_ROUTER) is None
    assert error_codes(door, b"1") == [(90001, "Overloaded"), (90002, "Overloaded")]
    assert door.receive(b"1", encode(EVERYWHERE), AT_ROUTER) is None
    assert error_codes(door, b"1") == [(1, "Overloaded")]
    assert isinstance(door.receive(b"2", encode(calls_of(2, [1])), AT_ROUTER), Calls)
    door.answered(door.accounts[b"1"], 2)
    assert isinstance(door.receive(b"1", encode(calls_of(1, [90001, 90002])), AT_ROUTER), Calls)
    assert door.accounts[b"1"].in_flight == CALLS_IN_FLIGHT_A_CLIENT


def test_of_a_frame_the_groups_for_which_there_is_room_pass() -> None:
    door = router_door(1)
    door.charge(door.accounts[b"1"], CALLS_IN_FLIGHT_A_CLIENT - 3)
    groups = [calls_of(1, numbers).groups[0] for numbers in ([1, 2], [3, 4], [5])]
    passed = door.receive(b"1", encode(Calls(1, groups)), AT_ROUTER)
    assert isinstance(passed, Calls)
    assert [group.numbers for group in passed.groups] == [[1, 2], [5]]
    assert error_codes(door, b"1") == [(3, "Overloaded"), (4, "Overloaded")]
    assert door.accounts[b"1"].in_flight == CALLS_IN_FLIGHT_A_CLIENT


def test_bytes_in_flight_are_limited_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door_module, "BYTES_IN_FLIGHT_A_CLIENT", 1000)
    door = router_door(1)
    large = calls_of(1, [1])
    large.groups[0].args = Raw(encode([["x" * 600]]))
    assert isinstance(door.receive(b"1", encode(large), AT_ROUTER), Calls)
    large.groups[0].numbers = [2]
    assert door.receive(b"1", encode(large), AT_ROUTER) is None
    assert error_codes(door, b"1") == [(2, "Overloaded")]
    door.answered(door.accounts[b"1"], 1)
    assert isinstance(door.receive(b"1", encode(large), AT_ROUTER), Calls)


@pytest.mark.parametrize("is_coordinator", [False, True])
def test_at_a_partition_the_bytes_of_all_together_are_limited(
    is_coordinator: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = "BYTES_IN_FLIGHT_AT_COORDINATOR" if is_coordinator else "BYTES_IN_FLIGHT_A_PARTITION"
    monkeypatch.setattr(door_module, limit, 1000)
    door = Door(TOKEN, at_partition=0, is_coordinator=is_coordinator)
    greet(door, AT_PARTITION, 1, 2)
    for client in (1, 2):
        large = calls_of(client, [1])
        large.groups[0].args = Raw(encode([["x" * 600]]))
        passed = door.receive(b"%d" % client, encode(large), AT_PARTITION)
        assert (passed is not None) == (client == 1)
    assert error_codes(door, b"2") == [(1, "Overloaded")]
    door.answered(door.accounts[b"1"], 1)
    assert door.bytes_in_flight == 0
    assert isinstance(door.receive(b"2", encode(large), AT_PARTITION), Calls)


def test_at_a_partition_another_incarnation_is_unavailable() -> None:
    door = partition_door(1)
    for incarnation in (INCARNATION - 1, INCARNATION + 1, 0):
        frame = encode(calls_of(1, [4], incarnation=incarnation))
        assert door.receive(b"1", frame, AT_PARTITION) is None
        assert error_codes(door, b"1") == [(4, "Unavailable")]
    assert isinstance(door.receive(b"1", encode(calls_of(1, [4])), AT_PARTITION), Calls)


def test_at_a_partition_calls_of_another_are_wrong() -> None:
    door = partition_door(1, partitions=2)
    assert door.receive(b"1", encode(calls_of(1, [4], partition=1)), AT_PARTITION) is None
    assert error_codes(door, b"1") == [(4, "WrongPartition")]
    foreign = calls_of(1, [5])
    foreign.groups[0].slots = [slot_owners(2).index(1)]
    assert door.receive(b"1", encode(foreign), AT_PARTITION) is None
    assert error_codes(door, b"1") == [(5, "WrongPartition")]
    home = calls_of(1, [6])
    home.groups[0].slots = [slot_owners(2).index(1) - 1]
    assert isinstance(door.receive(b"1", encode(home), AT_PARTITION), Calls)


def test_the_routers_calls_are_many_clients_calls_up_to_the_partitions_limit() -> None:
    door = partition_door(3)
    door.receive(b"r", encode(Hello(PROTOCOL_VERSION, 0, "router", TOKEN)), AT_PARTITION)
    assert answers(door) == [(b"r", AT_PARTITION)]
    calls = Calls(1, [calls_of(client, [1]).groups[0] for client in (1, 2, 3)])
    assert door.receive(b"r", encode(calls), AT_PARTITION) == calls
    router = door.accounts[b"r"]
    door.charge(router, CALLS_IN_FLIGHT_A_PARTITION - 4)
    assert isinstance(door.receive(b"r", encode(calls_of(2, [2])), AT_PARTITION), Calls)
    assert door.receive(b"r", encode(calls_of(2, [3])), AT_PARTITION) is None
    [(identity, message)] = answers(door)
    assert isinstance(message, Replies)
    assert (identity, message.partition, message.incarnation) == (b"r", 0, INCARNATION)
    assert [(e.client_id, e.number, e.code) for e in message.errors] == [(2, 3, "Overloaded")]
    assert door.receive(b"3", encode(calls_of(3, [9])), AT_PARTITION) is None
    assert error_codes(door, b"3") == [(9, "Overloaded")]
    door.answered(router, CALLS_IN_FLIGHT_A_PARTITION)
    assert (router.in_flight, door.in_flight) == (0, 0)


def test_however_many_flood_a_partition_a_client_with_a_few_calls_finds_room() -> None:
    door = partition_door(*range(1, 12))
    door.receive(b"r", encode(Hello(PROTOCOL_VERSION, 0, "router", TOKEN)), AT_PARTITION)
    for flooder in range(1, 10):
        for first in range(1, CALLS_IN_FLIGHT_A_CLIENT, 256):
            numbers = list(range(first, first + 256))
            door.receive(b"%d" % flooder, encode(calls_of(flooder, numbers)), AT_PARTITION)
    assert door.in_flight == CALLS_IN_FLIGHT_A_PARTITION - RESERVED_CALLS
    answers(door)
    assert door.receive(b"7", encode(calls_of(7, [10_000])), AT_PARTITION) is None
    assert error_codes(door, b"7") == [(10_000, "Overloaded")]
    for number in range(1, FEW_CALLS + 1):
        assert isinstance(door.receive(b"11", encode(calls_of(11, [number])), AT_PARTITION), Calls)
    assert door.receive(b"11", encode(calls_of(11, [FEW_CALLS + 1])), AT_PARTITION) is None
    answers(door)
    many, few = calls_of(1, list(range(20_000, 20_256))).groups[0], calls_of(10, [1]).groups[0]
    passed = door.receive(b"r", encode(Calls(1, [many, few])), AT_PARTITION)
    assert isinstance(passed, Calls)
    assert passed.groups == [few]


def test_a_client_that_returns_finds_its_account_and_loses_the_old_connection() -> None:
    door = router_door(1)
    door.receive(b"1", encode(calls_of(1, [1, 2])), AT_ROUTER)
    account = door.accounts[b"1"]
    door.receive(b"new", encode(Hello(PROTOCOL_VERSION, 1)), AT_ROUTER)
    assert answers(door) == [(b"new", AT_ROUTER)]
    assert door.accounts[b"new"] is account
    assert account.in_flight == 2
    assert door.receive(b"1", encode(calls_of(1, [3])), AT_ROUTER) is None
    assert refusal(door, b"1").code == NO_HELLO
    assert not account.closed


def test_a_lost_client_is_forgotten_when_its_last_call_is_answered() -> None:
    door = router_door(1, 2)
    door.receive(b"1", encode(calls_of(1, [1, 2])), AT_ROUTER)
    account = door.accounts[b"1"]
    door.close(b"1")
    door.close(b"2")
    door.close(b"nobody")
    assert list(door.by_client) == [1]
    door.answered(account, 1)
    door.answered(account, 1)
    assert (door.by_client, door.accounts, door.in_flight) == ({}, {}, 0)


def test_a_lost_client_can_come_back_before_its_last_call_is_answered() -> None:
    door = router_door(1)
    door.receive(b"1", encode(calls_of(1, [1, 2])), AT_ROUTER)
    account = door.accounts[b"1"]
    door.close(b"1")
    greet(door, AT_ROUTER, 2)
    # Its old identity belongs to somebody else by now.
    door.receive(b"1", encode(Hello(PROTOCOL_VERSION, 9)), AT_ROUTER)
    door.receive(b"back", encode(Hello(PROTOCOL_VERSION, 1)), AT_ROUTER)
    assert [identity for identity, _ in answers(door)] == [b"1", b"back"]
    assert door.accounts[b"back"] is account
    assert door.accounts[b"1"].client_id == 9
    door.answered(account, 2)
    assert door.by_client[1] is account
    assert account.in_flight == 0


def test_one_connection_that_changes_its_client_id() -> None:
    door = router_door(1)
    door.receive(b"1", encode(Hello(PROTOCOL_VERSION, 5)), AT_ROUTER)
    assert answers(door) == [(b"1", AT_ROUTER)]
    assert list(door.by_client) == [5]
    assert door.accounts[b"1"].client_id == 5


def test_a_connection_keeps_its_client_id_while_calls_are_in_flight() -> None:
    door = router_door(1)
    door.receive(b"1", encode(calls_of(1, [1])), AT_ROUTER)
    account = door.accounts[b"1"]
    door.receive(b"1", encode(Hello(PROTOCOL_VERSION, 5)), AT_ROUTER)
    assert refusal(door, b"1").code == "ProtocolError"
    assert list(door.by_client) == [1]
    door.answered(account, 1)
    door.receive(b"1", encode(Hello(PROTOCOL_VERSION, 5)), AT_ROUTER)
    assert answers(door) == [(b"1", AT_ROUTER)]
    assert list(door.by_client) == [5]


def test_a_client_is_not_welcomed_before_there_is_a_topology() -> None:
    door = Door(TOKEN, at_partition=None)
    early = Welcome(PROTOCOL_VERSION, 0, None)
    door.receive(b"1", encode(Hello(PROTOCOL_VERSION, 1)), early)
    assert answers(door) == []
    assert not door.accounts[b"1"].closed
    door.receive(b"s", encode(Hello(PROTOCOL_VERSION, 0, "supervisor", TOKEN)), early)
    assert answers(door) == [(b"s", early)]


def test_accounts_are_bounded_and_the_longest_idle_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door_module, "ACCOUNTS", 3)
    door = partition_door()
    door.receive(b"r", encode(Hello(PROTOCOL_VERSION, 0, "router", TOKEN)), AT_PARTITION)
    answers(door)
    greet(door, AT_PARTITION, 1, 2)
    assert isinstance(door.receive(b"1", encode(calls_of(1, [1])), AT_PARTITION), Calls)
    greet(door, AT_PARTITION, 3)
    assert list(door.accounts) == [b"r", b"1", b"3"]
    door.receive(b"garbage", b"\xc1", AT_PARTITION)
    answers(door)
    assert list(door.accounts) == [b"r", b"1", b"garbage"]
    for stranger in range(50):
        door.receive(b"s%d" % stranger, b"\xc1", AT_PARTITION)
    assert list(door.accounts) == [b"r", b"1", b"s49"]
    assert list(door.by_client) == [1]


@given(st.binary(max_size=60))
def test_no_bytes_make_the_door_raise(frame: bytes) -> None:
    door = router_door(1)
    door.receive(b"stranger", frame, AT_ROUTER)
    door.receive(b"1", frame, AT_ROUTER)
    assert len(door.outbox) <= 2


def valid_frames() -> list[bytes]:
    many = calls_of(1, list(range(1, 40)))
    many.groups.append(calls_of(1, [77]).groups[0])
    hello = Hello(PROTOCOL_VERSION, 1, "supervisor", TOKEN)
    return [encode(message) for message in [*MESSAGES, many, hello, Hello(PROTOCOL_VERSION, 1)]]


def mutated(rng: random.Random, frame: bytes) -> bytes:
    """A frame with a few bits flipped, cut, doubled, spliced or replaced."""
    changed = bytearray(frame)
    for _ in range(rng.choice([0, 1, 1, 2, 4])):
        place = rng.randrange(len(changed) + 1)
        match rng.randrange(5):
            case 0 if place < len(changed):
                changed[place] ^= 1 << rng.randrange(8)
            case 1:
                del changed[place:]
            case 2:
                changed[place:place] = rng.randbytes(rng.randint(1, 9))
            case 3:
                changed[place:place] = rng.choice(
                    [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"]
                )
            case _:
                changed[place : place + 9] = changed[: rng.randint(0, 9)]
    return bytes(changed)


def test_fuzz_mutated_frames_and_random_bytes() -> None:
    seed = int(os.environ.get("VOLTPY_SEED", "0")) or random.SystemRandom().randrange(1 << 32)
    print(f"VOLTPY_SEED={seed}")
    rng = random.Random(seed)
    frames = valid_frames()
    doors = [(router_door(1), AT_ROUTER), (partition_door(1, partitions=2), AT_PARTITION)]
    passed = 0
    for _ in range(20_000):
        frame = mutated(rng, rng.choice(frames)) if rng.random() < 0.8 else rng.randbytes(rng.randrange(64))
        door, welcome = rng.choice(doors)
        identity = b"1" if rng.random() < 0.7 else b"%d" % rng.randrange(50)
        message = door.receive(identity, frame, welcome)
        if message is not None:
            passed += 1
            account = door.accounts[identity]
            assert not account.closed
            assert decode(encode(message)) is not None
            if isinstance(message, Calls):
                for group in message.groups:
                    assert len(group.numbers) == len(group.slots)
                    assert group.client_id == account.client_id or account.role == "router"
        assert len(door.outbox) <= 1
        door.outbox.clear()
        if door.accounts.get(identity) is None or door.accounts[identity].closed:
            door.receive(identity, encode(Hello(PROTOCOL_VERSION, int(identity) or 1)), welcome)
            door.outbox.clear()
        assert sum(account.in_flight for account in door.by_client.values()) <= door.in_flight
    assert passed > 100
    for door, _ in doors:
        for account in list(door.by_client.values()):
            door.answered(account, account.in_flight)
        for account in list(door.accounts.values()):
            door.answered(account, account.in_flight)
        assert door.in_flight == 0


def test_a_raw_array_of_calls_is_not_decoded_by_the_door() -> None:
    door = router_door(1)
    frame = msgspec.msgpack.encode(calls_of(1, [1]))
    passed = door.receive(b"1", frame, AT_ROUTER)
    assert isinstance(passed, Calls)
    assert isinstance(passed.groups[0].args, Raw)
