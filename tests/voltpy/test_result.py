"""Results as other libraries' tables."""

from __future__ import annotations

import sys
from datetime import UTC, datetime

import pytest

from voltpy.result import Result

AT = datetime(2024, 5, 17, 8, 30, tzinfo=UTC)
RESULT = Result(
    ("id", "share", "name", "closed", "at", "id", "mixed", "nothing"),
    [(2**63 - 1, 0.5, "Kåre", True, AT, 1, 1, None), (None, None, None, None, None, 2, 1.5, None)],
    2,
    ("INT", "FLOAT", "STRING", "BOOL", "TIMESTAMP", "INT", "NUMBER", "NULL"),
    "select",
)


def test_rows_are_counted_and_come_in_order() -> None:
    assert len(RESULT) == 2
    assert [row[5] for row in RESULT] == [1, 2]


def test_pandas_keeps_whole_numbers_exact_and_names_that_occur_twice() -> None:
    pandas = pytest.importorskip("pandas")
    frame = RESULT.to_pandas()
    assert tuple(frame.columns) == RESULT.columns
    assert list(map(str, frame.dtypes)) == [
        "Int64", "Float64", "string", "boolean", "datetime64[us, UTC]", "Int64", "Float64", "object",
    ]  # fmt: skip
    assert frame.iloc[0, 0] == 2**63 - 1
    assert list(frame.iloc[0, 1:5]) == [0.5, "Kåre", True, pandas.Timestamp(AT)]
    assert list(frame.iloc[:, 6]) == [1.0, 1.5]
    assert frame.iloc[1, [0, 1, 2, 3, 4, 7]].isna().all()
    assert Result((), [], 3, (), "update").to_pandas().shape == (0, 0)
    assert Result(("n",), [], 0, ("INT",)).to_pandas().dtypes.tolist() == ["Int64"]


def test_arrow_has_the_columns_types() -> None:
    pyarrow = pytest.importorskip("pyarrow")
    table = RESULT.to_arrow()
    assert tuple(table.column_names) == RESULT.columns
    assert table.schema.types == [
        pyarrow.int64(), pyarrow.float64(), pyarrow.string(), pyarrow.bool_(), pyarrow.timestamp("us", tz="UTC"),
        pyarrow.int64(), pyarrow.float64(), pyarrow.null(),
    ]  # fmt: skip
    assert [column.to_pylist() for column in table.columns] == [list(values) for values in zip(*RESULT, strict=True)]
    assert Result((), [], 3, (), "update").to_arrow().shape == (0, 0)


@pytest.mark.parametrize("library", ["pandas", "pyarrow"])
def test_a_library_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    convert = RESULT.to_pandas if library == "pandas" else RESULT.to_arrow
    with pytest.raises(ImportError, match=f"pip install {library}"):
        convert()
