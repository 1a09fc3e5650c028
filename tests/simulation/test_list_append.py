"""The workload's procedures on one partition, where the checker must find nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

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


def test_copies_are_appended_to_everywhere(db: Engine) -> None:
    assert db.call_everywhere("append_copies", 4, 1) == [[]]
    assert db.call_everywhere("append_copies", 4, 2) == [[1]]
    assert db.call("look_at_one", 9, [("copies", 4, 0)]) == [[1, 2]]
