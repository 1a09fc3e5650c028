"""What a retried call is told, at every distance from its first attempt."""

from __future__ import annotations

import random

import msgspec
import pytest
from msgspec import Raw

from voltpy.errors import Corruption, Indeterminate
from voltpy.messages import CallError, ReplyGroup
from voltpy.outcome_window import (
    CLIENTS_INDEXED,
    RETRIES_REMEMBERED,
    UNLOGGED_CALLS,
    OutcomeWindow,
    decoded_outcomes,
)

encode = msgspec.msgpack.encode


def outcomes(*groups: tuple[int, dict[int, object]]) -> bytes:
    return encode(
        [ReplyGroup(client, list(results), Raw(encode(list(results.values())))) for client, results in groups]
    )


def test_a_remembered_call_answers_its_first_result() -> None:
    window = OutcomeWindow(0)
    window.add(1, outcomes((7, {1: "a", 2: [1, 2]}), (8, {1: "b"})))
    window.add(2, outcomes((7, {3: None})))
    assert window.first_result(7, 1, 0) == encode("a")
    assert window.first_result(7, 2, 0) == encode([1, 2])
    assert window.first_result(7, 3, 1) == encode(None)
    assert window.first_result(8, 1, 0) == encode("b")
    assert window.first_result(8, 2, 0) is None
    assert window.first_result(9, 1, 0) is None


def test_what_is_added_after_a_look_is_found_too() -> None:
    window = OutcomeWindow(0)
    for lsn in range(1, 50):
        assert window.first_result(7, lsn, 0) is None
        window.add(lsn, outcomes((7, {lsn: lsn})))
        assert window.first_result(7, lsn, 0) == encode(lsn)


def test_a_result_is_remembered_forgotten_or_certainly_absent_never_mistaken() -> None:
    rng = random.Random(2)
    window = OutcomeWindow(0, limit_bytes=4000)
    ran: dict[tuple[int, int], tuple[int, object]] = {}
    answers = {"result": 0, "absent": 0, "unknown": 0}
    for lsn in range(1, 400):
        groups = []
        for client in rng.sample(range(1, 200), 3):
            results: dict[int, object] = {lsn * 10 + i: rng.random() for i in range(rng.randrange(1, 4))}
            groups.append((client, results))
            ran.update({(client, number): (lsn, result) for number, result in results.items()})
        window.add(lsn, outcomes(*groups))
        (client, number), (ran_at, result) = rng.choice(list(ran.items())[-200:])
        floor = rng.randrange(max(ran_at - 10, 0), ran_at)
        try:
            first = window.first_result(client, number, floor)
        except Indeterminate:
            answers["unknown"] += 1
        else:
            assert first == encode(result)
            answers["result"] += 1
        try:
            assert window.first_result(client, number + 5, floor) is None
            answers["absent"] += 1
        except Indeterminate:
            pass
    assert min(answers.values()) > 20


def test_answers_without_an_outcome_are_remembered_too() -> None:
    window = OutcomeWindow(0)
    error = CallError(7, 3, "Aborted", "no")
    window.remember([ReplyGroup(7, [1, 2], Raw(encode(["a", None]))), error, ReplyGroup(8, [3], Raw(encode([5])))])
    assert [window.first_result(7, number, 0) for number in (1, 2, 3, 4)] == [encode("a"), encode(None), error, None]
    window.remember([ReplyGroup(7, [4], Raw(encode([6])))])
    assert [window.first_result(client, number, 0) for client, number in ((7, 4), (8, 3), (8, 1))] == [
        encode(6), encode(5), None,
    ]  # fmt: skip


def test_answers_without_an_outcome_are_forgotten_oldest_first() -> None:
    window = OutcomeWindow(0)
    rounds = UNLOGGED_CALLS // 1000 + 50
    for at in range(rounds):
        numbers = list(range(at * 1000, at * 1000 + 1000))
        window.remember([ReplyGroup(1 + at % 7, numbers, Raw(encode(numbers)))])
    assert window._unlogged_calls <= UNLOGGED_CALLS
    assert sum(len(answers) for answers in window._unlogged.values()) == len(window._unlogged_order) < rounds
    assert window._unlogged_bytes == sum(size for _, _, size, _ in window._unlogged_order)
    with pytest.raises(Indeterminate):
        window.first_result(1, 0, 0)  # it may be one of those that were forgotten
    assert window.first_result(1, 0, 1) is None
    assert window.first_result(1 + (rounds - 1) % 7, rounds * 1000 - 1, 0) == encode(rounds * 1000 - 1)


def test_memory_is_bounded() -> None:
    window = OutcomeWindow(0, limit_bytes=10_000)
    for lsn in range(1, 2000):
        window.add(lsn, outcomes((lsn, {1: "x" * 100})))
        if lsn % 3 == 0:
            window.first_result(lsn, 1, lsn - 1)
    assert window._bytes <= 10_000
    assert len(window._batches) < 100
    assert len(window._indexed) <= CLIENTS_INDEXED
    window.add(2000, outcomes((1, {1: "x" * 50_000})))  # alone it is too much
    with pytest.raises(Indeterminate):
        window.first_result(1, 1, 1999)
    assert window.first_result(1, 2, 2000) is None


def test_before_its_beginning_a_window_knows_nothing() -> None:
    window = OutcomeWindow(100)
    with pytest.raises(Indeterminate):
        window.first_result(1, 1, 99)
    assert window.first_result(1, 1, 100) is None


def test_numbers_of_retried_calls_are_remembered_within_bounds() -> None:
    window = OutcomeWindow(0)
    assert window.overtaken(7, [1, 2, 3]) == set()
    window.retried(7, 2)
    window.retried(7, 2)
    assert window.overtaken(7, [1, 2, 3]) == {2}
    assert window.overtaken(8, [1, 2, 3]) == set()
    for number in range(RETRIES_REMEMBERED):
        window.retried(9, number)
    assert window.overtaken(7, [2]) == set()
    assert len(window._retried) == len(window._retried_order) == RETRIES_REMEMBERED


@pytest.mark.parametrize(
    "damaged",
    [b"", b"\xc0", b"\x91\xc0", b"\x91\x93\x01\x91\xa1x\x90", b"\x91\x93\x01\x91\x01",
     b"\x91\x93\x01\x92\x01\x02\x91\x05", b"\x91\x93\x01\x91\x01\x01", b"\x91\x93\x01\x91\x01\xa1x"],
)  # fmt: skip
def test_outcomes_that_do_not_decode_are_corruption(damaged: bytes) -> None:
    window = OutcomeWindow(0)
    window.add(12, damaged)
    with pytest.raises(Corruption, match="WAL record 12: the outcomes do not decode"):
        window.first_result(1, 1, 0)


def test_outcomes_decode_into_groups() -> None:
    (group,) = decoded_outcomes(outcomes((7, {1: "a"})), 1)
    assert (group.client_id, group.numbers, bytes(group.results)) == (7, [1], encode(["a"]))


def test_many_clients_that_retry_in_turn_cost_one_look_each(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[int] = []

    def counted(encoded: bytes, lsn: int) -> list[ReplyGroup]:
        looked_at.append(lsn)
        return decoded_outcomes(encoded, lsn)

    monkeypatch.setattr("voltpy.outcome_window.decoded_outcomes", counted)
    window = OutcomeWindow(0)
    window.add(1, outcomes((1, {1: "a"})))
    for _ in range(3):
        for client in range(1, CLIENTS_INDEXED + 1):
            window.first_result(client, 1, 0)
    assert len(looked_at) == CLIENTS_INDEXED
    window.add(2, outcomes((1, {2: "b"})))
    assert window.first_result(1, 2, 0) == encode("b")
    assert looked_at[CLIENTS_INDEXED:] == [2]  # what is new, and nothing again
