"""Posting lists against sets, through every change of form; what they take."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroaring import BitMap

from partitions.posting_list import (
    FEW,
    as_bitmap,
    common,
    common_count,
    has_row,
    posting_bytes,
    posting_of,
    size,
    sorted_ids,
    with_rows,
    without_row,
)

IDS = st.sets(st.integers(0, 2000) | st.integers(0, (1 << 32) - 1), max_size=2 * FEW)


def form_of(rows: int) -> type:
    return type(None) if not rows else int if rows == 1 else bytes if rows <= FEW else BitMap


@given(first=IDS, more=IDS, data=st.data())
def test_a_list_holds_what_a_set_holds(first: set[int], more: set[int], data: st.DataObject) -> None:
    more -= first
    posting = posting_of(first)
    assert type(posting) is form_of(len(first))
    expected = set(first)
    if posting is not None and more:
        posting = with_rows(posting, list(more))
        expected |= more
        assert type(posting) is form_of(len(expected))
    while posting is not None:
        assert sorted_ids(posting) == sorted(expected)
        assert as_bitmap(posting) == BitMap(expected)
        assert size(posting) == len(expected)
        assert posting_bytes(posting) >= 0
        gone = data.draw(st.sampled_from(sorted(expected)))
        assert has_row(posting, gone)
        posting = without_row(posting, gone)
        expected.remove(gone)
        if posting is not None:
            assert not has_row(posting, gone)
        if len(expected) > 4:  # many at once, to pass the changes of form
            for row_id in sorted(expected)[: len(expected) // 2]:
                assert posting is not None
                posting = without_row(posting, row_id)
                expected.remove(row_id)
    assert not expected


@given(lists=st.lists(IDS.filter(bool), min_size=1, max_size=4))
def test_rows_in_all_lists_are_found_and_counted(lists: list[set[int]]) -> None:
    postings = [posting for posting in map(posting_of, lists) if posting is not None]
    before = [sorted_ids(posting) for posting in postings]
    expected = set.intersection(*lists)
    found = common(postings)
    assert set(found) == expected
    assert common_count(postings) == len(expected)
    found.add(77)
    assert [sorted_ids(posting) for posting in postings] == before  # the lists are as they were


@pytest.mark.parametrize("rows", [1, 2, FEW, FEW + 1])
def test_a_row_that_is_not_there_can_not_be_taken_out(rows: int) -> None:
    posting = posting_of(range(rows))
    assert posting is not None
    with pytest.raises(KeyError):
        without_row(posting, 5000)


def test_a_list_becomes_bytes_again_well_below_where_it_became_a_bitmap() -> None:
    posting = posting_of(range(FEW + 1))
    for row_id in range(FEW // 2):
        assert type(posting) is BitMap
        posting = without_row(posting, row_id)
    assert posting is not None
    posting = without_row(posting, FEW // 2)
    assert type(posting) is bytes
    assert sorted_ids(posting) == list(range(FEW // 2 + 1, FEW + 1))


def test_five_values_in_a_million_rows_take_less_than_700_kilobytes() -> None:
    rng = random.Random(7)
    ids = [page << 7 | slot for page in range(8000) for slot in range(125)]
    lists: list[list[int]] = [[] for _ in range(5)]
    for row_id in ids:
        lists[rng.randrange(5)].append(row_id)
    postings = [posting_of(rows) for rows in lists]
    assert sum(len(as_bitmap(posting).serialize()) for posting in postings) < 700_000
    assert sum(posting_bytes(posting) for posting in postings if posting is not None) < 700_000
