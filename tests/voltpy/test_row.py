"""What a row takes and refuses, how it reads back, and what the errors say."""

from __future__ import annotations

import enum
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest

from partitions.store import Store
from voltpy.errors import ConstraintViolation, Corruption
from voltpy.row import MAX_ROW_BYTES, RowFormat, encode
from voltpy.schema import Column, Schema, Table
from voltpy.sql.ddl import parse_schema

ALL = parse_schema(
    """
    CREATE TABLE everything (
        id INT PRIMARY KEY, f FLOAT, s STRING, b BOOL, at TIMESTAMP,
        n INT NOT NULL DEFAULT 7, must STRING NOT NULL
    );
    PARTITION TABLE everything ON COLUMN id;
    """
).tables[0]
FORMAT = RowFormat(ALL)
MIB = 1 << 20
NOON = datetime(2024, 2, 29, 12, 0, 0, 123456, tzinfo=UTC)


def inserted(table: Table, *values: Any, **columns: Any) -> tuple[Any, bytes]:
    """What `tx.<table>.insert` returns, and the image that it makes."""
    made = Store(Schema((table,), ()), 0, 1, MIB).tables[0]
    row = made.insert(*values, **columns)
    ((image,), _) = made.changes()
    return row, image


def make(*values: Any, **columns: Any) -> tuple[Any, bytes]:
    return inserted(ALL, *values, **columns)


def made(**columns: Any) -> Any:
    row, image = make(**{"id": 1, "must": "x", **columns})
    assert encode(FORMAT.loaded(image)) == encode(row) == image
    return row


@pytest.mark.parametrize("column", ["id", "f", "s", "b", "at", "n", "must"])
@pytest.mark.parametrize(
    "value",
    [0, -1, 2**63 - 1, -(2**63), 1.5, float("inf"), -0.0, "", "héllo 🎈\x00", "x" * 70_000, True, False, NOON,
     datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC), None],
)  # fmt: skip
def test_each_type_takes_its_values_and_no_others(column: str, value: Any) -> None:
    types = {"id": int, "f": float, "s": str, "b": bool, "at": datetime, "n": int, "must": str}
    nullable = column in ("f", "s", "b", "at")
    fits = type(value) is types[column] or (value is None and nullable) or (column == "f" and type(value) is int)
    if fits:
        stored = getattr(made(**{column: value}), column)
        assert stored == (float(value) if column == "f" and value is not None else value)
        assert type(stored) is (type(None) if value is None else types[column])
    else:
        with pytest.raises(ConstraintViolation, match=f"table everything, column {column}"):
            made(**{column: value})


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 2**64, 10**400])
def test_an_int_past_64_bits_is_refused(value: int) -> None:
    with pytest.raises(ConstraintViolation, match=r"table everything.*id"):
        made(id=value)


def test_an_int_in_a_float_column_is_a_float_in_the_image_too() -> None:
    row, image = make(id=1, must="x", f=3)
    assert msgspec.msgpack.decode(image)[1] == 3.0
    assert type(msgspec.msgpack.decode(image)[1]) is float
    assert repr(row.f) == "3.0"


def test_a_timestamp_becomes_utc_and_keeps_its_microseconds() -> None:
    oslo = timezone(timedelta(hours=2))
    row = made(at=datetime(2024, 7, 1, 14, 0, 0, 1, tzinfo=oslo))
    assert row.at == datetime(2024, 7, 1, 12, 0, 0, 1, tzinfo=UTC)
    assert row.at.utcoffset() == timedelta(0)
    assert made(at=datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)).at.microsecond == 999999


def test_text_in_a_timestamp_column_is_a_timestamp_in_the_image_too() -> None:
    assert made(at="2024-07-01T12:00:00Z").at == datetime(2024, 7, 1, 12, tzinfo=UTC)
    with pytest.raises(ConstraintViolation, match="column at"):
        made(at="yesterday")


@pytest.mark.parametrize(
    "at", [datetime(2024, 1, 1), "2024-01-01T00:00:00", datetime.max.replace(tzinfo=timezone(-timedelta(hours=12))), 0]
)
def test_a_naive_or_impossible_timestamp_is_refused(at: Any) -> None:
    with pytest.raises(ConstraintViolation, match="table everything, column at"):
        made(at=at)


def test_what_is_left_out_is_default_null_or_an_error_that_names_it() -> None:
    row = made()
    assert (row.f, row.s, row.b, row.at, row.n) == (None, None, None, None, 7)
    for left_out in ("id", "must"):
        columns = {"id": 1, "must": "x"}
        del columns[left_out]
        with pytest.raises(
            ConstraintViolation, match=f"table everything: column {left_out} is NOT NULL, has no default"
        ):
            make(**columns)


def test_unknown_and_too_many_columns_are_named_with_the_table() -> None:
    with pytest.raises(TypeError, match=r"everything\.insert\(\).*'nope'"):
        made(nope=1)
    with pytest.raises(TypeError, match=r"everything\.insert\(\) takes from 0 to 7 positional"):
        make(*range(8))
    with pytest.raises(TypeError, match=r"everything\.insert\(\).*multiple values.*'id'"):
        make(1, id=2)


class Suit(enum.StrEnum):
    HEARTS = "hearts"


class Text(str):
    __slots__ = ()


@pytest.mark.parametrize(
    ("column", "value"),
    [("s", "\ud800"), ("must", "ok\udfff"), ("s", b"bytes"), ("s", object()), ("s", [1]), ("s", {"a": 1}), ("b", 1),
     ("f", "1.0"), ("id", "1"), ("id", 1.0), ("n", None), ("s", Text("sub"))],
)  # fmt: skip
def test_a_value_that_no_column_can_hold_is_refused_by_name(column: str, value: Any) -> None:
    with pytest.raises(ConstraintViolation, match=f"table everything, column {column}"):
        made(**{column: value})


def test_an_enum_is_stored_as_its_value() -> None:
    row = made(s=Suit.HEARTS)
    assert row.s == "hearts"
    assert type(row.s) is str


def test_a_row_of_one_mebibyte_fits_and_a_larger_one_does_not() -> None:
    overhead = len(make(id=1, must="x", s="y" * 100_000)[1]) - 100_000
    row, image = make(id=1, must="x", s="y" * (MAX_ROW_BYTES - overhead))
    assert len(image) == MAX_ROW_BYTES
    for extra in ("y", "y" * 5_000_000):
        with pytest.raises(
            ConstraintViolation, match=r"table everything: a row of [0-9,]+ bytes; the limit is 1,048,576"
        ):
            make(id=1, must="x", s=row.s + extra)


def test_columns_may_be_called_as_python_calls_its_own_things() -> None:
    names = ["type", "len", "int", "str", "float", "bool", "row", "image", "struct", "self", "d0", "UnicodeEncodeError",
             "insert", "values", "columns", "key", "encode"]  # fmt: skip
    types: list[Any] = ["INT", "STRING", "FLOAT", "BOOL"]
    columns = tuple(Column(name, types[at % 4], at > 0) for at, name in enumerate(names))
    table = Table("odd", columns, ("type",), False, "type")
    values = [(1, "s", 1.5, True)[at % 4] for at in range(len(names))]
    row, image = inserted(table, *values)
    assert [getattr(row, name) for name in names] == values
    assert inserted(table, **dict(zip(names, values, strict=True)))[1] == image


def test_a_row_is_immutable() -> None:
    with pytest.raises(AttributeError):
        made().n = 8


# ---------------------------------------------------------------------------------------------------- keys


def keyed(*types: str) -> RowFormat:
    columns = tuple(Column(f"k{i}", t, False) for i, t in enumerate(types))  # type: ignore[arg-type]  # the test's own
    return RowFormat(Table("t", columns, tuple(c.name for c in columns), False, None))


@pytest.mark.parametrize(
    ("types", "key"),
    [(("INT",), 5), (("STRING",), "a"), (("FLOAT",), 1.5), (("BOOL",), True), (("TIMESTAMP",), NOON), (("FLOAT",), 1),
     (("INT", "STRING"), (1, "a")), (("STRING", "FLOAT"), ("a", 2)),
     (("TIMESTAMP",), NOON.astimezone(timezone(timedelta(hours=3))))],
)  # fmt: skip
def test_a_key_of_the_right_type_passes(types: tuple[str, ...], key: Any) -> None:
    assert keyed(*types).checked_key(key) == key


@pytest.mark.parametrize(
    ("types", "key"),
    [(("INT",), "5"), (("INT",), True), (("INT",), 1.0), (("INT",), None), (("INT",), 2**63), (("INT",), (1,)),
     (("STRING",), 5), (("STRING",), b"a"), (("STRING",), "\ud800"), (("FLOAT",), float("nan")), (("FLOAT",), "1"),
     (("TIMESTAMP",), "2024-01-01T00:00:00Z"), (("TIMESTAMP",), datetime(2024, 1, 1)), (("BOOL",), 1),
     (("INT", "STRING"), (1,)), (("INT", "STRING"), (1, "a", 2)), (("INT", "STRING"), 1), (("INT", "STRING"), (1, 2)),
     (("INT", "STRING"), [1, "a"]), (("STRING", "FLOAT"), ("a", float("nan"))), (("INT",), object())],
)  # fmt: skip
def test_a_key_of_the_wrong_type_is_refused_with_what_was_expected(types: tuple[str, ...], key: Any) -> None:
    expected = ", ".join(f"k{i} {type_}" for i, type_ in enumerate(types))
    with pytest.raises(ConstraintViolation, match=rf"table t: .* is not a key \({expected}\)"):
        keyed(*types).checked_key(key)


# ---------------------------------------------------------------------------------------------------- from disk


@pytest.mark.parametrize(
    "image",
    [b"", b"\xc1", b"\x90", b"\x97", encode([1, None, None, None, None, 7]),
     encode([1, None, None, None, None, 7, "x", 1]),
     encode([1, None, None, None, None, 7, "x"]) + b"\x00", encode(["1", None, None, None, None, 7, "x"]),
     encode([None, None, None, None, None, 7, "x"]), encode([2**63, None, None, None, None, 7, "x"]),
     encode({"id": 1}), b"\x97\x01\xc0\xa1\xff\xc0\xc0\x07\xa1x", b"\xdd\xff\xff\xff\xff", b"\x91" * 5000],
)  # fmt: skip
def test_bytes_that_are_no_row_of_the_table_are_corruption(image: bytes) -> None:
    with pytest.raises(Corruption, match="table everything: a stored row does not decode"):
        FORMAT.loaded(image)


def test_every_cut_of_an_image_is_corruption() -> None:
    image = encode([1, 2.5, "text", True, NOON, 7, "x"])
    assert FORMAT.loaded(image).at == NOON
    for cut in range(len(image)):
        with pytest.raises(Corruption):
            FORMAT.loaded(image[:cut])
