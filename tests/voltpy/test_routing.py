"""Where a call runs, by its keys."""

from __future__ import annotations

from typing import Any

import pytest

from partitions.ownership import Ownership
from voltpy.errors import BadArguments
from voltpy.hash_slot import HASH_SLOTS, hash_slot, slot_owners, slots_in
from voltpy.messages import Parameter, ProcedureInfo
from voltpy.routing import no_such, route, slots_of

OWNERS = slot_owners(4)
COORDINATOR = 4
KEYS = [next(key for key in range(1000) if OWNERS[hash_slot(key)] == partition) for partition in range(4)]
ALSO_OF_0 = next(key for key in range(KEYS[0] + 1, 1000) if OWNERS[hash_slot(key)] == 0)


def info(*key_positions: int, everywhere: bool = False) -> ProcedureInfo:
    parameters = [Parameter("source", "int", True), Parameter("target", "list[int]", True)]
    return ProcedureInfo("move", list(key_positions), everywhere, False, parameters, "")


def place(procedure: ProcedureInfo, *args: Any) -> int:
    return route(procedure, args, OWNERS, COORDINATOR)[0]


def test_a_call_whose_keys_share_a_partition_runs_there() -> None:
    first, second = KEYS[0], ALSO_OF_0
    assert hash_slot(first) != hash_slot(second)
    assert route(info(0, 1), (first, second, "x"), OWNERS, COORDINATOR) == (0, hash_slot(first))
    assert route(info(1, 0), (first, second, "x"), OWNERS, COORDINATOR) == (0, hash_slot(second))
    assert place(info(0, 1), first, [second, str(first)]) == 0
    assert place(info(0, 1), first, ()) == 0
    assert place(info(1), "x", (second,)) == 0


def test_a_call_whose_keys_live_in_several_partitions_runs_in_the_coordinator() -> None:
    assert route(info(0, 1), (KEYS[1], KEYS[2]), OWNERS, COORDINATOR) == (COORDINATOR, hash_slot(KEYS[1]))
    assert place(info(0), KEYS[1:3]) == COORDINATOR
    assert place(info(0, 1), KEYS[3], [KEYS[3], KEYS[0]]) == COORDINATOR


def test_a_procedure_without_keys_runs_in_the_coordinator() -> None:
    assert route(info(), ("x",), OWNERS, COORDINATOR) == (COORDINATOR, 0)


def test_in_a_cluster_of_one_partition_everything_runs_there() -> None:
    owners = slot_owners(1)
    for procedure, args in ((info(), ()), (info(0, 1), (1, 2)), (info(0), ([1, 2, 3],))):
        assert route(procedure, args, owners, 0)[0] == 0


@pytest.mark.parametrize(
    ("procedure", "args", "words"),
    [
        (info(0, 1), (1,), "move needs target, argument 2; 1 were given"),
        (info(0), (), "move needs source, argument 1; 0 were given"),
        (info(0, 1), (1, 2.5), "move, argument 2: .* not float"),
        (info(0), ([1, True],), "move, argument 1: .* not bool"),
        (info(0), ([[1]],), "move, argument 1: .* not list"),
        (info(0), (["\ud800"],), "move, argument 1: "),
        (info(0), ([],), "no key in argument 1, so nothing says where it runs"),
        (info(0, 1), ([], ()), "no key in argument 1 and 2"),
        (info(everywhere=True), (), "use call_everywhere"),
    ],
)
def test_a_call_that_cannot_be_routed_is_refused(procedure: ProcedureInfo, args: Any, words: str) -> None:
    with pytest.raises(BadArguments, match=words):
        route(procedure, args, OWNERS, COORDINATOR)


def test_the_slots_of_a_call_are_those_of_all_its_keys() -> None:
    assert slots_of(info(0, 1), (7, ["a", 7])) == [hash_slot(7), hash_slot("a"), hash_slot(7)]
    assert slots_of(info(), (7,)) == []


@pytest.mark.parametrize("partitions", [1, 2, 3, 7, 61, 1000])
def test_hash_slots_are_dealt_out_in_runs(partitions: int) -> None:
    owners = [slot * partitions // HASH_SLOTS for slot in range(HASH_SLOTS)]
    assert slot_owners(partitions) == owners
    for partition in {0, partitions // 2, partitions - 1}:
        assert list(slots_in(partition, partitions)) == [s for s, owner in enumerate(owners) if owner == partition]
        assert Ownership(partition, partitions).owned == bytes(owner == partition for owner in owners)


def test_a_name_that_is_nearly_right_is_answered_with_the_right_one() -> None:
    known = {"top_up": 1, "transfer": 2, "voltpy.top_us": 3}
    assert str(no_such("top_us", known)) == "there is no procedure top_us; did you mean top_up?"
    for name in ("vote", "voltpy.top_u", "", "top_up" * 1_000_000):
        assert str(no_such(name, known)) == f"there is no procedure {name}"
    assert no_such("top_us", known) is not no_such("top_us", known)
