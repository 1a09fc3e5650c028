from __future__ import annotations

from typing import Any


def test_a_row_is_read_whole_and_updated_by_column(open_database: Any) -> None:
    db = open_database("ycsb")
    assert db.call("read_row", 7) is None
    db.call("insert_row", 7, [f"a{number}" for number in range(10)])
    db.call("update_row", 7, 3, "b")
    assert db.call("read_row", 7) == [7, "a0", "a1", "a2", "b", "a4", "a5", "a6", "a7", "a8", "a9"]


def test_a_scan_counts_every_row(open_database: Any) -> None:
    db = open_database("ycsb")
    for key in range(25):
        db.call("insert_row", key, ["x"] * 10)
    assert db.call("scan_rows") == 25
