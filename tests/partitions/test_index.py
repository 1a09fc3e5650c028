"""The primary index: integer keys, hashed keys, and hashes that collide."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from partitions import index as index_module
from partitions.index import COLLIDED, NOWHERE, PrimaryIndex
from voltpy.errors import Corruption
from voltpy.schema import Column, Table


def table(*types: str) -> Table:
    columns = tuple(Column(f"c{i}", t, False) for i, t in enumerate(types))  # type: ignore[arg-type]  # the test's own
    return Table("t", columns, tuple(c.name for c in columns), False, "c0")


def run_against_a_dict(index: PrimaryIndex, new_key: Callable[[random.Random], Any], rng: random.Random) -> None:
    model: dict[Any, int] = {}
    row_ids = iter(range(1_000_000))
    for _ in range(400):
        what = rng.random()
        if what < 0.4 or not model:
            fresh = {key: next(row_ids) for key in {new_key(rng) for _ in range(rng.randrange(5))} - model.keys()}
            index.extend(list(fresh), list(fresh.values()))
            model.update(fresh)
        elif what < 0.7:
            key = rng.choice(list(model))
            moved_to = next(row_ids)
            index.move(key, model[key], moved_to)
            model[key] = moved_to
        else:
            key = rng.choice(list(model))
            index.remove(key, model.pop(key))
        index.check("t")
        assert len(index) == len(model)
        assert sorted(index.row_ids()) == sorted(model.values())
        for key in (*rng.sample(list(model), min(5, len(model))), new_key(rng)):
            found, candidates = index.find(key, NOWHERE), index.candidates(key)
            if key in model:
                assert model[key] in candidates
                assert found in (model[key], COLLIDED)
            elif index.ordered:
                assert (found, candidates) == (NOWHERE, [])


@pytest.mark.parametrize("seed", range(3))
def test_integer_keys_equal_a_dict(seed: int) -> None:
    index = PrimaryIndex(table("INT"))
    assert index.ordered
    run_against_a_dict(
        index, lambda rng: rng.choice([rng.randrange(-20, 20), -(2**63), 2**63 - 1]), random.Random(seed)
    )


@pytest.mark.parametrize("types", [("STRING",), ("INT", "STRING"), ("FLOAT",), ("STRING", "FLOAT")])
def test_hashed_keys_equal_a_dict(types: tuple[str, ...]) -> None:
    values: dict[str, Callable[[random.Random], Any]] = {
        "STRING": lambda rng: f"k{rng.randrange(40)}", "INT": lambda rng: rng.randrange(5),
        "FLOAT": lambda rng: rng.randrange(9) / 2,
    }  # fmt: skip

    def new_key(rng: random.Random) -> Any:
        key = tuple(values[type_](rng) for type_ in types)
        return key if len(key) > 1 else key[0]

    index = PrimaryIndex(table(*types))
    assert not index.ordered
    run_against_a_dict(index, new_key, random.Random(str(types)))


@pytest.mark.parametrize("hashes", [1, 2, 7])
def test_keys_whose_hashes_collide_equal_a_dict(monkeypatch: pytest.MonkeyPatch, hashes: int) -> None:
    monkeypatch.setattr(index_module, "_hash", lambda key: int(key[1:]) % hashes - (1 << 63))
    index = PrimaryIndex(table("STRING"))
    run_against_a_dict(index, lambda rng: f"k{rng.randrange(30)}", random.Random(hashes))


def test_equal_floats_are_one_key() -> None:
    index = PrimaryIndex(table("FLOAT"))
    index.extend([0.0, 1.0], [10, 11])
    assert [index.candidates(key) for key in (0.0, -0.0, 0, 1, 1.0, 2.0)] == [[10], [10], [10], [11], [11], []]
    index = PrimaryIndex(table("STRING", "FLOAT"))
    index.extend([("a", 0.0)], [10])
    assert index.candidates(("a", -0.0)) == index.candidates(("a", 0)) == [10]


def test_a_range_is_ordered_and_half_open() -> None:
    index = PrimaryIndex(table("INT"))
    keys = [-(2**63), -5, 0, 3, 7, 2**63 - 1]
    index.extend(keys[::-1], range(6, 0, -1))
    assert [key for key, _ in index.range(-5, 7)] == [-5, 0, 3]
    assert [key for key, _ in index.range(-(2**63), 2**63 - 1)] == keys[:-1]
    assert list(index.range(3, 3)) == []
    assert list(index.range(4, 6)) == []


def test_a_wrong_side_table_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "_hash", lambda key: 5)
    index = PrimaryIndex(table("STRING"))
    index.extend(["a", "b"], [1, 2])
    index.check("t")
    index._collisions[5].pop()
    with pytest.raises(Corruption, match="side table is wrong at 5"):
        index.check("t")
