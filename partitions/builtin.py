"""Procedures that every partition has: what `voltpy load` calls."""

from __future__ import annotations

from typing import Any

from partitions.table import Table
from voltpy.errors import ConstraintViolation, SchemaError, WrongPartition
from voltpy.procedure import Procedure, procedure
from voltpy.transaction import ReadOnlyTable

Rejected = list[list[Any]]  # [position in the call, error class, reason] of each row that was not inserted


def _insert_each(tx: Any, name: str, rows: list[list[Any]]) -> Rejected:
    table = vars(tx).get(name)
    if not isinstance(table, Table | ReadOnlyTable):
        raise SchemaError(f"there is no table {name}")
    rejected: Rejected = []
    for position, row in enumerate(rows):
        try:
            table.insert(*row)
        except (ConstraintViolation, WrongPartition, TypeError) as error:
            rejected.append([position, type(error).__name__, str(error)])
    return rejected


def _load(tx: Any, key: int | str, table: str, rows: list[list[Any]]) -> Rejected:
    """Inserts the rows that fit, all in one transaction, into a partitioned table; `key` is any of their keys."""
    return _insert_each(tx, table, rows)


def _load_everywhere(tx: Any, table: str, rows: list[list[Any]]) -> Rejected:
    """Inserts the rows that fit into a table that every partition has a copy of."""
    return _insert_each(tx, table, rows)


def builtins() -> dict[str, Procedure]:
    """By name. The dots keep them apart from users' procedures, whose names are Python identifiers."""
    _load.__name__, _load_everywhere.__name__ = "voltpy.load", "voltpy.load_everywhere"
    found = (
        Procedure(procedure(partition_by="key")(_load), globals()),
        Procedure(procedure(everywhere=True)(_load_everywhere), globals(), joint=True),
    )
    return {each.name: each for each in found}
