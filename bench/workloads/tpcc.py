"""tpcc: the mix of TPC-C, of which the new orders count. A warehouse in each partition, unless told otherwise.

Terminals don't think: as many calls are under way as the settings say. On plain dicts nothing undoes an order with an
item that there is none of, so those are left out there.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

from bench.tpcc import loading, plpgsql
from bench.tpcc.population import Population, Scale, warehouse_in_each
from bench.tpcc.terminals import DECK, Terminals, is_rolled_back
from bench.workload import BenchError, Call, Line, OnDicts, OnPostgres, OnVoltpy, expect
from procedures import tpcc
from voltpy.errors import Aborted

POPULATION_SEED = 1
CHECK_TIMEOUT_S = 300.0
COUNTED = "new_order"


def lines(partitions: int) -> tuple[Line, ...]:
    """With as many warehouses as partitions, one in each."""
    return (line(Scale(warehouse_in_each(partitions))),)


def line(scale: Scale) -> Line:
    population = Population(scale, POPULATION_SEED)

    def load_postgres(connection: Any) -> None:
        loading.into_postgres(connection, population)
        connection.execute(plpgsql.INDEXES)

    return Line(
        workload="tpcc",
        name="new_order",
        drive="mix",
        calls=lambda seed, count: list(islice(Terminals(scale, seed).calls(), count)),
        count=200_000,
        cycles=True,
        verify=lambda calls, results, state: verify(scale, calls, results, state),
        procedures=tuple(dict.fromkeys(DECK)),
        counts=COUNTED,
        voltpy=OnVoltpy("tpcc", lambda client: loading.into_voltpy(client, population), _state_of_voltpy),
        dicts=OnDicts(
            "tpcc",
            lambda tx: loading.into_dicts(tx, population),
            lambda tx: _state([tpcc.check_consistency(tx)]),
            runs=lambda call: not is_rolled_back(call, scale),
        ),
        postgres=OnPostgres(
            plpgsql.SCHEMA + plpgsql.FUNCTIONS,
            load_postgres,
            plpgsql.STATEMENTS,
            plpgsql.state,
            homes=len(scale.warehouses),
        ),
    )


def verify(scale: Scale, calls: Sequence[Call], results: Sequence[Any], state: dict[str, Any]) -> None:
    """`results` stand beside their calls. Raises BenchError for what was lost, made up, or is inconsistent."""
    if state["inconsistencies"]:
        raise BenchError(f"{len(state['inconsistencies'])} inconsistencies, first {state['inconsistencies'][:3]}")
    done: dict[str, list[Any]] = {}
    for call, result in zip(calls, results, strict=True):
        expect(f"an abort of {call!r:.200}", isinstance(result, Aborted), is_rolled_back(call, scale))
        if not isinstance(result, Aborted):
            done.setdefault(call[0], []).append(result)
    ordered, delivered = len(done.get("new_order", ())), sum(map(_delivered, done.get("delivery", ())))
    expect("orders", state["orders"], scale.orders + ordered)
    expect("payments", state["payments"], scale.orders + len(done.get("payment", ())))
    first_waiting = len(scale.warehouses) * scale.districts * (scale.customers + 1 - scale.first_undelivered)
    expect("orders that wait", state["waiting"], first_waiting + ordered - delivered)


def _delivered(result: Any) -> int:
    """How many orders a delivery took: numbers and None, or PostgreSQL's text of such an array."""
    if isinstance(result, list):
        return sum(order is not None for order in result)
    return sum(order.isdigit() for order in bytes(result).strip(b"{}").split(b","))


def _state_of_voltpy(client: Any) -> dict[str, Any]:
    return _state(client.call_everywhere("check_consistency", timeout=CHECK_TIMEOUT_S))


def _state(reports: list[dict[str, Any]]) -> dict[str, Any]:
    counts = {name: sum(report[name] for report in reports) for name in ("orders", "waiting", "payments")}
    return counts | {"inconsistencies": tpcc.inconsistencies(reports)}
