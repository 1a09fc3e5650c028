"""Keys are in the order of the values, and equal where those are."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from partitions.index_key import KeyFormat, UnfitValue
from voltpy.row import RowFormat
from voltpy.schema import INT_MAX, INT_MIN, Column, Index, IndexKind, Table, TypeName

TYPES: list[TypeName] = ["INT", "FLOAT", "STRING", "BOOL", "TIMESTAMP"]
VALUES: dict[TypeName, st.SearchStrategy[Any]] = {
    "INT": st.integers(INT_MIN, INT_MAX) | st.sampled_from([INT_MIN, INT_MAX, 0, -1, 255, 256]),
    "FLOAT": st.floats(allow_nan=False) | st.sampled_from([0.0, -0.0, math.inf, -math.inf, 5e-324]),
    "STRING": st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
    | st.text("\0a\x01\xff\U0010ffff", max_size=4),
    "BOOL": st.booleans(),
    "TIMESTAMP": st.datetimes(timezones=st.just(UTC)),
}


def format_of(types: tuple[TypeName, ...], kind: IndexKind) -> tuple[KeyFormat, Any]:
    columns = tuple(Column(f"c{i}", type_name, True) for i, type_name in enumerate(types))
    table = Table("t", (Column("id", "INT", False), *columns), ("id",), False, "id")
    index = Index("i", "t", kind, tuple(column.name for column in columns))
    return KeyFormat(table, index, seed=5), RowFormat(table).struct


def in_order(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """NULL behind everything."""
    return tuple((value is None, 0 if value is None else value) for value in values)


@given(data=st.data(), types=st.lists(st.sampled_from(TYPES), min_size=1, max_size=3).map(tuple))
def test_keys_of_an_ordered_index_are_in_the_order_of_the_values(
    data: st.DataObject, types: tuple[TypeName, ...]
) -> None:
    format, struct = format_of(types, "BTREE")
    one = st.tuples(*(st.none() | VALUES[type_name] for type_name in types))
    a, b = data.draw(one), data.draw(one)
    if data.draw(st.booleans()):
        b = (*a[:-1], b[-1])
    key_a, key_b = format.of_row(struct(1, *a)), format.of_row(struct(2, *b))
    assert key_a == format.of_values(a)
    if len(types) == 1 and (a[0] is None or b[0] is None):
        assert (key_a is None) == (a[0] is None)
        return
    assert (key_a == key_b) == (in_order(a) == in_order(b))
    assert (key_a < key_b) == (in_order(a) < in_order(b))  # type: ignore[operator]
    if isinstance(key_a, bytes):
        assert b"\xff" not in key_a


@given(data=st.data(), types=st.lists(st.sampled_from(TYPES), min_size=1, max_size=3).map(tuple))
def test_hashes_are_equal_where_the_values_are(data: st.DataObject, types: tuple[TypeName, ...]) -> None:
    format, struct = format_of(types, "HASH")
    one = st.tuples(*(st.none() | VALUES[type_name] for type_name in types))
    a, b = data.draw(one), data.draw(one)
    assert (format.of_row(struct(1, *a)) == format.of_row(struct(2, *b))) == (a == b)
    assert format.of_values(a) == format.of_row(struct(1, *a))


@given(
    data=st.data(),
    types=st.lists(st.sampled_from(TYPES), min_size=1, max_size=3).map(tuple),
    low_included=st.booleans(),
    high_included=st.booleans(),
)
def test_a_range_has_the_keys_between_its_bounds(
    data: st.DataObject, types: tuple[TypeName, ...], low_included: bool, high_included: bool
) -> None:
    format, struct = format_of(types, "BTREE")
    values = data.draw(st.tuples(*(st.none() | VALUES[type_name] for type_name in types)))
    at = data.draw(st.integers(0, len(types) - 1))
    prefix = (
        values[:at]
        if data.draw(st.booleans())
        else data.draw(st.tuples(*(st.none() | VALUES[type_name] for type_name in types[:at])))
    )
    ends = st.none() | VALUES[types[at]] | st.just(values[at])
    low, high = data.draw(ends), data.draw(ends)
    key = format.of_row(struct(1, *values))
    if key is None:
        return
    lowest, highest, low_excluded, high_excluded = format.bounds(prefix, low, high, low_included, high_included)
    is_in = (lowest is None or key > lowest or (key == lowest and not low_excluded)) and (  # type: ignore[operator]
        highest is None or key < highest or (key == highest and not high_excluded)  # type: ignore[operator]
    )
    value = values[at]
    expected = prefix == values[:at]
    if low is not None:
        expected = expected and value is not None and (value >= low if low_included else value > low)
    if high is not None:
        expected = expected and value is not None and (value <= high if high_included else value < high)
    assert is_in == expected


@given(text=VALUES["STRING"], start=VALUES["STRING"], first=st.integers(0, 1), wanted=st.integers(0, 1))
def test_texts_that_begin_with_others(text: str, start: str, first: int, wanted: int) -> None:
    alone, struct = format_of(("STRING",), "BTREE")
    for beginning in (start, text[:1], text):
        lowest, behind = alone.begins_with((), beginning)
        assert (lowest <= alone.of_row(struct(1, text)) < behind) == text.startswith(beginning)  # type: ignore[operator]
    both, struct = format_of(("INT", "STRING"), "BTREE")
    for beginning in (start, text[:1], text):
        lowest, behind = both.begins_with((wanted,), beginning)
        is_in = lowest <= both.of_row(struct(1, first, text)) < behind  # type: ignore[operator]
        assert is_in == (first == wanted and text.startswith(beginning))


def test_values_of_other_types_are_refused_or_made_the_columns_own() -> None:
    for kind in ("HASH", "BTREE"):
        ints, _ = format_of(("INT",), kind)  # type: ignore[arg-type]
        assert ints.of_values((True,)) == 1
        floats, _ = format_of(("FLOAT",), kind)  # type: ignore[arg-type]
        assert floats.of_values((3,)) == floats.of_values((3.0,))
        moments, _ = format_of(("TIMESTAMP",), kind)  # type: ignore[arg-type]
        utc = datetime(2024, 5, 1, 12, tzinfo=UTC)
        assert moments.of_values((utc.astimezone(timezone(timedelta(hours=2))),)) == moments.of_values((utc,))
        strings, _ = format_of(("STRING",), kind)  # type: ignore[arg-type]
        for format, value in [
            (ints, 1.0), (ints, "1"), (ints, 1 << 63), (floats, "1"), (floats, (1 << 53) + 1), (strings, 1),
            (strings, "\ud800"), (moments, datetime(2024, 5, 1)), (moments, "2024-05-01"),
            (moments, datetime.min.replace(tzinfo=timezone(timedelta(hours=2)))),
        ]:  # fmt: skip
            with pytest.raises(UnfitValue):
                format.of_values((value,))


def test_nan_equals_itself_and_is_greater_than_all() -> None:
    format, _ = format_of(("FLOAT",), "BTREE")
    assert format.of_values((math.nan,)) == format.of_values((-math.nan,)) > format.of_values((math.inf,))  # type: ignore
