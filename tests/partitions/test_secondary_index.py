"""A secondary index against a dict of sets."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from partitions import secondary_index
from partitions.posting_list import size, sorted_ids
from partitions.secondary_index import SecondaryIndex
from voltpy.errors import Corruption
from voltpy.row import RowFormat
from voltpy.schema import Column, Index, IndexKind, Table

TABLE = Table(
    "t", (Column("id", "INT", False), Column("n", "INT", True), Column("s", "STRING", True)), ("id",), False, "id"
)
ROW = RowFormat(TABLE).struct
INDEXES: list[tuple[IndexKind, tuple[str, ...]]] = [
    ("INVERTED", ("n",)), ("INVERTED", ("s",)), ("HASH", ("s", "n")), ("BTREE", ("n",)), ("BTREE", ("s",)),
    ("BTREE", ("s", "n")),
]  # fmt: skip
NUMBERS = st.none() | st.integers(0, 3) | st.integers(-(2**63), 2**63 - 1)
TEXTS = st.none() | st.sampled_from(["", "a", "b", "ab", "a\0"]) | st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.tuples(NUMBERS, TEXTS)


class IndexMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.values: dict[int, tuple[Any, ...]] = {}
        self.next_id = 0

    @initialize(index=st.sampled_from(INDEXES))
    def begin(self, index: tuple[IndexKind, tuple[str, ...]]) -> None:
        self.index = SecondaryIndex(TABLE, Index("i", "t", *index), seed=3)

    def key(self, row_id: int) -> Any:
        return self.index.of_row(ROW(row_id, *self.values[row_id]))

    def expected(self) -> dict[Any, set[int]]:
        rows: dict[Any, set[int]] = {}
        for row_id in self.values:
            rows.setdefault(self.key(row_id), set()).add(row_id)
        return rows

    @rule(rows=st.lists(VALUES, max_size=5), copies=st.sampled_from([1, 1, 3, 300]))
    def add(self, rows: list[tuple[Any, ...]], copies: int) -> None:
        added = []
        for values in rows * copies:
            self.values[self.next_id] = values
            added.append(self.next_id)
            self.next_id += 1
        self.index.add([self.key(row_id) for row_id in added], added)

    @precondition(lambda self: self.values)
    @rule(data=st.data(), most=st.sampled_from([1, 3, 400]))
    def remove(self, data: st.DataObject, most: int) -> None:
        first = data.draw(st.integers(0, len(self.values) - 1))
        gone = sorted(self.values)[first : first + most]
        self.index.remove([self.key(row_id) for row_id in gone], gone)
        for row_id in gone:
            del self.values[row_id]

    @precondition(lambda self: self.values)
    @rule()
    def a_row_that_is_not_there_is_refused(self) -> None:
        with pytest.raises(Corruption):
            self.index.remove([self.key(min(self.values))], [self.next_id])

    @invariant()
    def it_is_what_the_dict_is(self) -> None:
        if not hasattr(self, "index"):
            return
        self.index.check()
        expected = self.expected()
        assert {key: set(sorted_ids(posting)) for key, posting in self.index.items()} == expected
        for key, rows in expected.items():
            posting = self.index.posting(key)
            assert posting is not None
            assert set(sorted_ids(posting)) == rows
        assert self.index.rows == len(self.values)
        assert self.index.keys == len(expected.keys() - {None})
        twice = {key for key, rows in expected.items() if key is not None and len(rows) > 1}
        assert {key for key, _ in self.index.duplicates()} == twice
        assert 0 <= self.index.measured_bytes() <= self.index.bytes

    @rule(data=st.data(), low_excluded=st.booleans(), high_excluded=st.booleans(), reverse=st.booleans())
    def ranges_are_in_order(self, data: st.DataObject, low_excluded: bool, high_excluded: bool, reverse: bool) -> None:
        if not self.index.ordered:
            return
        keys = sorted(self.expected().keys() - {None})
        bounds = st.none() | st.sampled_from(keys) if keys else st.none()
        low, high = data.draw(bounds), data.draw(bounds)
        if low is not None and high is not None and low > high:
            low, high = high, low
        found = self.index.postings(low, high, low_excluded=low_excluded, high_excluded=high_excluded, reverse=reverse)
        expected = [
            key for key in keys
            if (low is None or key > low or (key == low and not low_excluded))
            and (high is None or key < high or (key == high and not high_excluded))
        ]  # fmt: skip
        assert [key for key, _ in found] == (expected[::-1] if reverse else expected)
        assert self.index.key_count(low, high) >= len(expected)


def test_an_index_against_a_dict() -> None:
    run_state_machine_as_test(IndexMachine, settings=settings(max_examples=60, stateful_step_count=20, deadline=None))  # type: ignore[no-untyped-call]


def test_hashes_whose_first_64_bits_are_equal_stand_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("partitions.index_key.xxh3_128_intdigest", lambda data, seed: sum(data) << 41)
    index = SecondaryIndex(TABLE, Index("i", "t", "HASH", ("s",)), seed=3)
    keys = [index.of_row(ROW(0, None, text)) for text in "abcd"]
    assert len(set(keys)) == 4
    index.add([keys[0], keys[1], keys[2], keys[1], keys[0]], [10, 11, 12, 21, 20])
    index.check()
    assert [sorted_ids(index.posting(key) or 0) for key in keys[:3]] == [[10, 20], [11, 21], [12]]
    assert index.posting(keys[3]) is None
    index.remove([keys[0], keys[0]], [10, 20])
    index.check()
    assert [size(index.posting(key)) for key in keys] == [0, 2, 1, 0]
    index.add([keys[3], keys[0], keys[1]], [13, 30, 31])
    index.remove([keys[1], keys[1]], [11, 21])
    index.check()
    assert [sorted_ids(index.posting(key) or 0) for key in keys] == [[30], [31], [12], [13]]


def test_a_million_distinct_values_take_less_than_48_megabytes() -> None:
    for kind, values in (("HASH", range(100_000)), ("BTREE", range(0, 700_000, 7))):
        index = SecondaryIndex(TABLE, Index("i", "t", kind, ("n",)))  # type: ignore[arg-type]
        index.add([*values], [*range(100_000)])
        assert index.measured_bytes() <= 4_800_000
    strings = SecondaryIndex(TABLE, Index("i", "t", "INVERTED", ("s",)))
    strings.add([strings.of_row(ROW(0, 0, f"value {n}")) for n in range(100_000)], [*range(100_000)])
    assert strings.measured_bytes() <= 4_800_000
    assert secondary_index.INDEX_BYTES <= 48


@pytest.mark.parametrize("text", ["{:012d}", "customer-of-the-company-{:012d}"])
@pytest.mark.parametrize("columns", [("s",), ("s", "n")])
def test_a_million_texts_in_order_take_less_than_48_megabytes(text: str, columns: tuple[str, ...]) -> None:
    numbers = random.Random(1).sample(range(10**12), 100_000)
    index = SecondaryIndex(TABLE, Index("i", "t", "BTREE", columns))
    index.add([index.of_row(ROW(0, -number, text.format(number))) for number in numbers], [*range(100_000)])
    assert index.measured_bytes() <= index.bytes <= 4_800_000
