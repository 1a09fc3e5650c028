"""What a statement answers, and what answers statements."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from msgspec import Struct

from voltpy.errors import Error

if TYPE_CHECKING:
    import pandas
    import pyarrow


class Result(Struct, array_like=True):
    """`rows` are tuples. `rowcount`: rows answered, or rows that INSERT, UPDATE or DELETE changed.

    A statement without rows has no `columns`. `types` says of each column INT, FLOAT, STRING, BOOL or TIMESTAMP; NUMBER
    where it is INT in some rows and FLOAT in others; ANY or NULL where nothing is known. `kind`: select, insert,
    update, delete, explain, explain insert (EXPLAIN ANALYZE INSERT: it was one, too) and its like, …
    """

    columns: list[str]
    rows: list[tuple[Any, ...]]
    rowcount: int
    types: list[str] = []
    kind: str = ""

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def to_arrow(self) -> pyarrow.Table:
        """The rows as a pyarrow.Table. Raises ImportError where pyarrow is not installed."""
        try:
            import pyarrow
        except ImportError as error:
            raise ImportError("to_arrow() needs pyarrow: pip install pyarrow") from error
        types = {
            "INT": pyarrow.int64(),
            "FLOAT": pyarrow.float64(),
            "NUMBER": pyarrow.float64(),
            "STRING": pyarrow.string(),
            "BOOL": pyarrow.bool_(),
            "TIMESTAMP": pyarrow.timestamp("us", tz="UTC"),
        }
        arrays = [pyarrow.array(values, type=types.get(type_name)) for values, type_name in self._by_column()]
        return pyarrow.Table.from_arrays(arrays, names=self.columns)

    def to_pandas(self) -> pandas.DataFrame:
        """The rows as a pandas.DataFrame; NULL is pandas.NA, so that INT stays exact.

        Raises ImportError where pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_pandas() needs pandas: pip install pandas") from error
        types = {
            "INT": "Int64",
            "FLOAT": "Float64",
            "NUMBER": "Float64",
            "STRING": "string",
            "BOOL": "boolean",
            "TIMESTAMP": "datetime64[us, UTC]",
        }
        # By number first: names may occur twice.
        frame = pandas.DataFrame(
            {
                number: pandas.Series(values, dtype=types.get(type_name, "object"))
                for number, (values, type_name) in enumerate(self._by_column())
            }
        )
        frame.columns = pandas.Index(self.columns, dtype="object")
        return frame

    def _by_column(self) -> Iterator[tuple[list[Any], str]]:
        """(values, type) of each column."""
        types = self.types or ["ANY"] * len(self.columns)
        for number, type_name in enumerate(types):
            yield [row[number] for row in self.rows], type_name


class Database(Protocol):
    """Where statements run: a voltpy.Client, or the tests' voltpy.testing.Engine."""

    def execute(self, sql: str, parameters: Sequence[Any] = ..., /) -> Result: ...
    def execute_many(self, sql: str, rows: Iterable[Sequence[Any]], /) -> Sequence[Result | Error]: ...
    def call(self, name: str, /, *args: Any) -> Any: ...
    def close(self) -> None: ...
