"""The procedures of list_append, and calls that take their time, or never end: for tests.simulation.lives."""

from __future__ import annotations

from tests.simulation.list_append import *  # noqa: F403
from tests.simulation.list_append import Operations, _run
from tests.simulation.pastime import hang, let_pass, witness
from voltpy import procedure

HOPS = 24


def _ponder(tx, operations: Operations, pause_s: float) -> list:
    witness(tx.now())
    results: list = []
    for operation in operations:
        results += _run(tx, [operation])
        let_pass(pause_s)
    return results


@procedure(partition_by="list")
def ponder(tx, list: int, operations: Operations, pause_s: float) -> list:
    """So many seconds behind each operation."""
    return _ponder(tx, operations, pause_s)


@procedure(partition_by="lists")
def ponder_across(tx, lists: list[int], operations: Operations, pause_s: float) -> list:
    return _ponder(tx, operations, pause_s)


@procedure(partition_by="list")
def never_return(tx, list: int, operations: Operations) -> None:
    _run(tx, operations)
    hang()


@procedure(partition_by="lists")
def never_return_across(tx, lists: list[int], operations: Operations) -> None:
    _run(tx, operations)
    hang()


@procedure(partition_by="lists")
def wander(tx, lists: list[int], pause_s: float) -> int:
    """Where it looks next depends on what it has just seen: each run finds one key more that is not here."""
    witness(tx.now())
    let_pass(pause_s)
    place = seen = 0
    for _ in range(HOPS):
        row = tx.elements.get((lists[place % len(lists)], place))
        seen += row is not None
        place = (31 * place + (7 if row is None else row.value)) % 1009
    return seen
