"""In which order calls that wait are taken."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from coordinator.turns import Turns


class Named(NamedTuple):
    client_id: int
    number: int


def of(client_id: int, *numbers: int) -> list[Named]:
    return [Named(client_id, number) for number in numbers]


def taken(turns: Turns[Named], limit: int = 100) -> list[tuple[int, int]]:
    return [tuple(call) for call in turns.take_some(limit)]


def test_a_client_that_has_sent_many_calls_lets_the_others_have_theirs() -> None:
    turns: Turns[Named] = Turns()
    turns.add(1, of(1, 1, 2, 3, 4))
    turns.add(2, of(2, 1))
    assert taken(turns, 2) == [(1, 1), (2, 1)]
    turns.add(1, of(1, 5))
    turns.add(3, of(3, 1, 2))
    assert taken(turns) == [(1, 2), (3, 1), (1, 3), (3, 2), (1, 4), (1, 5)]
    assert not turns
    with pytest.raises(IndexError):
        turns.take()


def test_calls_that_came_to_nothing_go_first() -> None:
    turns: Turns[Named] = Turns()
    turns.add(1, of(1, 1, 2, 3))
    begun = turns.take_some(2)
    turns.add(2, of(2, 1))
    turns.put_first(begun)
    assert taken(turns) == [(1, 1), (1, 2), (1, 3), (2, 1)]


def test_calls_that_were_taken_too_early_are_the_first_of_their_clients_again() -> None:
    turns: Turns[Named] = Turns()
    turns.add(1, of(1, 1, 2, 3))
    early = turns.take_some(3)
    turns.add(2, of(2, 1, 2))
    turns.put_back(early[1:])
    assert taken(turns) == [(1, 2), (2, 1), (1, 3), (2, 2)]
    turns.add(2, of(2, 3))
    turns.put_back([*of(2, 2), *of(3, 1)])
    assert taken(turns) == [(3, 1), (2, 2), (2, 3)]
