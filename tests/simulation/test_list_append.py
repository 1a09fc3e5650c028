"""The workload's procedures on one partition, where the checker must find nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from voltpy.errors import Aborted
from voltpy.testing import Engine

HERE = Path(__file__).parent


@pytest.fixture
def db() -> Engine:
    return Engine(HERE / "list_append.sql", HERE / "list_append.py")


@pytest.mark.parametrize("storage", ["row", "elements"])
@pytest.mark.parametrize("number", [2, 3])
def test_a_list_is_read_as_it_was_appended_to(db: Engine, storage: str, number: int) -> None:
    assert db.call("transact_one", number, [(storage, number, 0), (storage, number, 5), (storage, number, 0)]) == [
        [],
        None,
        [5],
    ]
    db.call("transact_one", number, [(storage, number, 6), (storage, number, 7)])
    assert db.call("look_at_one", number, [(storage, number, 0)]) == [[5, 6, 7]]
    assert db.call("look_at_one", number, [(storage, number + 1, 0)]) == [[]]


def test_a_list_in_places_is_appended_to_and_counted_by_its_unique_index(db: Engine) -> None:
    assert db.call("transact_one", 2, [("places1", 2, 0), ("places1", 2, 7), ("places1", 2, 8)]) == [0, 0, 1]
    assert db.call("transact_one", 2, [("places1", 2, 0), ("placed1", 2, 0), ("placed2", 2, 0)]) == [2, [7, 8], []]
    with pytest.raises(Aborted, match="full"):
        db.call("transact_one", 2, [("places1", 2, value) for value in range(10, 20)])
    assert db.call("look_at_one", 2, [("placed1", 2, 0)]) == [[7, 8]]


def test_copies_are_appended_to_everywhere(db: Engine) -> None:
    assert db.call_everywhere("append_copies", 4, 1) == [[[], []]]
    db.call("transact_one", 9, [("row", 9, 5)])
    assert db.call_everywhere("append_copies", 4, 2) == [[[1], [[9, [5]]]]]
    assert db.call("look_at_one", 9, [("copies", 4, 0)]) == [[1, 2]]


def test_what_is_read_along_depends_on_what_was_read_before(db: Engine) -> None:
    db.call("transact_one", 2, [("row", 2, 6), ("elements", 2, 7)])
    db.call("transact_one", 3, [("row", 3, 8), ("elements", 3, 9)])
    assert db.call("look_along", [2, 3, 4]) == [[6], None, [8], [9], [], None]
