"""Procedures that every partition has, and the coordinator: what `voltpy load` and `db.execute` call.

voltpy.plan(text)                            how a statement is routed, and what it answers with
voltpy.query(key, text, parameters)          SELECT in the partition of a key
voltpy.query_keys(keys, …), query_all(…)     … in those of several keys, in all of them
voltpy.execute(key, …), _keys, _all          the same for statements that write
"""

from __future__ import annotations

from functools import cache
from types import FunctionType, MappingProxyType
from typing import Any

from voltpy.errors import ConstraintViolation, DataError, SchemaError, SqlError, Unavailable, WrongPartition
from voltpy.messages import ProcedureInfo
from voltpy.procedure import Procedure, procedure
from voltpy.registry import Registry

Rejected = list[list[Any]]  # [position in the call, error class, reason] of each row that was not inserted

PLAN = "voltpy.plan"
QUERY, QUERY_KEYS, QUERY_ALL = "voltpy.query", "voltpy.query_keys", "voltpy.query_all"
EXECUTE, EXECUTE_KEYS, EXECUTE_ALL = "voltpy.execute", "voltpy.execute_keys", "voltpy.execute_all"


def _insert_each(tx: Any, name: str, rows: list[list[Any]]) -> Rejected:
    table = None if name.startswith("_") else vars(tx).get(name)
    if table is None:
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


def _plan(tx: Any, text: str) -> Any:
    """What a client needs to know of a statement: a voltpy.known_statements.Outline."""
    plan = _statements(tx).prepare(text).plan
    return plan.kind, plan.columns, [field.type for field in plan.fields], len(plan.parameters), plan.routing


def _plan_whole(tx: Any, text: str) -> Any:
    """How a statement is run: a voltpy.sql.plan.Plan."""
    return _statements(tx).prepare(text).plan


def _answer(tx: Any, text: str, parameters: list[Any]) -> Any:
    """Runs a statement: its rows; of one that writes (rows changed, rows of RETURNING)."""
    return _statements(tx).answer(tx, text, parameters)


def _answer_by_key(tx: Any, key: int | str, text: str, parameters: list[Any]) -> Any:
    """Runs a statement that writes, all of whose rows are in the partition of this key."""
    return _answer_where_keys_are(tx, text, parameters)


def _query_by_key(tx: Any, key: int | str, text: str, parameters: list[Any]) -> Any:
    """Runs a SELECT all of whose rows are in the partition of this key: the shortest way, for the most frequent."""
    prepared = tx._prepared.get(text)
    if prepared is None or len(parameters) != prepared.parameters:
        return _statements(tx).answer(tx, text, parameters)
    try:
        return prepared.run(tx, parameters)
    except TypeError as error:
        raise DataError(f"values of different types meet: {error}") from error


def _query_by_keys(tx: Any, keys: list[int | str], text: str, parameters: list[Any]) -> Any:
    """Runs a SELECT all of whose rows are in the partitions of these keys."""
    return _statements(tx).answer(tx, text, parameters)


def _answer_by_keys(tx: Any, keys: list[int | str], text: str, parameters: list[Any]) -> Any:
    """The same for a statement that writes."""
    return _answer_where_keys_are(tx, text, parameters)


def _answer_where_keys_are(tx: Any, text: str, parameters: list[Any]) -> Any:
    """A client that finds that the schema has changed asks for what it has read again; it can't take back a change."""
    statements = _statements(tx)
    prepared = statements.prepared.get(text)
    if prepared is None:
        prepared = statements.prepare(text)
    if prepared.needs_all:  # it did not, when the caller asked
        raise Unavailable("the schema has changed since the statement was planned; it was not executed")
    return statements.run(prepared, tx, parameters)


def _statements(tx: Any) -> Any:
    statements = tx._context.statements
    if statements is None:
        raise SqlError("nothing here knows how to plan statements")
    return statements


@cache
def planning() -> Procedure:
    """What the coordinator runs for a partition that lacks a plan; nobody else calls it."""
    return _named("voltpy.plan_whole", _plan_whole, read_only=True)


@cache
def builtins() -> MappingProxyType[str, Procedure]:
    """By name. The dots keep them apart from users' procedures, whose names are Python identifiers."""
    found = (
        _named("voltpy.load", _load, partition_by="key"),
        _named("voltpy.load_everywhere", _load_everywhere, everywhere=True),
        _named(PLAN, _plan, read_only=True),
        _named(QUERY, _query_by_key, partition_by="key", read_only=True),
        _named(QUERY_KEYS, _query_by_keys, partition_by="keys", read_only=True),
        _named(QUERY_ALL, _answer, read_only=True),
        _named(EXECUTE, _answer_by_key, partition_by="key"),
        _named(EXECUTE_KEYS, _answer_by_keys, partition_by="keys"),
        _named(EXECUTE_ALL, _answer),
    )
    return MappingProxyType({each.name: each for each in found})


def infos(registry: Registry) -> list[ProcedureInfo]:
    """What clients may call once these procedures are in use, by name."""
    return [procedure.info for _, procedure in sorted((builtins() | registry.procedures).items())]


def _named(name: str, body: Any, **declared: Any) -> Procedure:
    body = _copied(body)
    body.__name__ = name
    return Procedure(procedure(**declared)(body), globals(), joint=bool(declared.get("everywhere")))


def _copied(body: Any) -> Any:
    """The same function as one of its own: a declaration is attached to it."""
    copy = FunctionType(body.__code__, body.__globals__, body.__name__, body.__defaults__, body.__closure__)
    copy.__annotations__, copy.__doc__ = body.__annotations__, body.__doc__
    return copy
