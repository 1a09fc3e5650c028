"""A statement as it travels from the process that plans it to those that run it, which have no SQL parser.

A plan holds Python source (voltpy.sql.emit draws it) that is run with exec, so it is believed: it comes from the
cluster's own processes only. How it is routed:

    anywhere     it reads no partitioned table: any partition has all that it needs
    keys         all rows that it touches have one of the values `keys` in their partition column
    everywhere   anything else: it needs all partitions

Where one partition has all the keys, `source` runs there. Otherwise a SELECT's `fragment` runs in every partition that
takes part, and `merge` makes the answer of the fragments' results; what writes has none, and its `source` runs as a
transaction across partitions, on borrowed rows.

What is stored of a view knows nothing of what a batch of the coordinator's has written. So there a statement that
reads views runs as `across`, with each view's SELECT in the view's place, on the borrowed rows of its table.

A fragment `run(tx, parameters, sends_copies)` returns lists of rows, the same number in each partition;
exactly one of them is told to send copies, of tables that all have. `merge` is `run(tx, parameters, streams)`, a stream
being one of these lists of all partitions, joined.

A statement that writes answers (rows changed, rows of RETURNING); under EXPLAIN ANALYZE, (lines, the lines).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from msgspec import Struct

from voltpy.errors import SqlError
from voltpy.hash_slot import hash_slot
from voltpy.schema import Schema
from voltpy.sql.bound import Field, SqlType
from voltpy.sql.runtime import NAMES, key_of_int

Run = Callable[..., Any]
# "explain insert" and its like run that statement, for EXPLAIN ANALYZE; the plan alone, or a query's, is "explain".
Kind = Literal["select", "insert", "update", "delete", "explain", "explain insert", "explain update", "explain delete"]

FILE = "<sql>"  # that the code of statements says to come from


class Key(Struct, frozen=True, array_like=True):
    """One value of a partition column: a parameter's, or a constant. `whole`: the column is INT."""

    parameter: int | None
    constant: Any
    whole: bool


class Routing(Struct, frozen=True, array_like=True):
    kind: Literal["anywhere", "keys", "everywhere"]
    keys: tuple[Key, ...] = ()

    def values(self, parameters: Sequence[Any]) -> list[int | str]:
        """The keys of a run with these parameters. None at all: no row can be meant, and any partition can say so."""
        found: dict[int | str, None] = {}
        for key in self.keys:
            value = key.constant if key.parameter is None else parameters[key.parameter]
            value = key_of_int(value) if key.whole else value
            if type(value) is int or type(value) is str:
                found[value] = None
        return list(found)

    def slots(self, parameters: Sequence[Any]) -> list[int]:
        """The hash slots of these keys."""
        return [hash_slot(value) for value in self.values(parameters)]


class Plan(Struct, frozen=True, array_like=True):
    """`reads` and `writes` are table numbers. `source` and `fragment` run on `tx`, `merge` on what fragments sent."""

    text: str
    kind: Kind
    fields: tuple[Field, ...]
    parameters: tuple[SqlType, ...]
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    routing: Routing
    source: str
    fragment: str | None
    merge: str | None
    notes: tuple[str, ...]
    returns_rows: bool
    version: int = 0  # the catalog's, when it was made
    across: str | None = None  # `source`, where a batch of the coordinator's runs it and it reads views
    parameters_optional: bool = False  # EXPLAIN says something without them, too

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(field.name for field in self.fields)


def compiled(source: str, schema: Schema) -> Run:
    """The source as a function `run(tx, parameters, shipped)`. Raises SqlError where Python finds it too large."""
    namespace: dict[str, Any] = {**NAMES, "SCHEMA": schema}
    try:
        exec(compile(source, FILE, "exec", dont_inherit=True), namespace)
    except (SyntaxError, RecursionError, MemoryError, OverflowError) as error:
        raise SqlError(f"the statement is too complex: {type(error).__name__}: {error}") from None
    run: Run = namespace["run"]
    return run


def streams(results: Sequence[Sequence[Sequence[Any]]]) -> list[list[tuple[Any, ...]]]:
    """What all partitions' fragments sent, as `merge` takes it."""
    return [[tuple(row) for rows in parts for row in rows] for parts in zip(*results, strict=True)]
