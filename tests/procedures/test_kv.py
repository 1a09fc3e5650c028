from __future__ import annotations

from typing import Any

import pytest

from voltpy.errors import Aborted


def test_a_value_is_there_after_put_and_gone_after_delete(open_database: Any) -> None:
    db = open_database("kv")
    assert db.call("get", "a") is None
    assert db.call("put", "a", "1") is None
    assert db.call("put", "a", "two") is None
    assert db.call("get", "a") == "two"
    assert db.call("delete", "a") is True
    assert db.call("delete", "a") is False
    assert db.call("get", "a") is None


def test_incr_counts_from_zero_by_any_step(open_database: Any) -> None:
    db = open_database("kv")
    assert [db.call("incr", "n"), db.call("incr", "n", 41), db.call("incr", "n", -50)] == [1, 42, -8]
    assert db.call("get", "n") == "-8"


def test_incr_of_a_text_aborts(open_database: Any) -> None:
    db = open_database("kv")
    db.call("put", "a", "text")
    with pytest.raises(Aborted, match="the value of 'a' is not an integer"):
        db.call("incr", "a")
    assert db.call("get", "a") == "text"


def test_counters_begin_at_zero_and_add_up(open_database: Any) -> None:
    db = open_database("counters")
    assert db.call("value_of", 7) == 0
    assert [db.call("increment", 7), db.call("increment", 7, 10), db.call("increment", 8, 5)] == [1, 11, 5]
    assert db.call("value_of", 7) == 11
    assert db.call("total") == 16
