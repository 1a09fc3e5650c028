"""increment: asyncio tasks that each await a durable increment, one after another. Redis answers with INCR."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.workload import Call, Line, OnDicts, OnPostgres, OnRedis, OnVoltpy, expect
from bench.zipf import uniform

COUNTERS = 10_000


def calls(seed: int, count: int) -> list[Call]:
    return [("increment", (counter,)) for counter in uniform(COUNTERS, count, seed)]


def verify(calls: Sequence[Call], results: Sequence[Any], total: int) -> None:
    expect("answers", len(results), len(calls))
    expect("sum of the counters", total, len(calls))


def _load_voltpy(client: Any) -> None:
    client.call_many("increment", [(counter, 0) for counter in range(COUNTERS)])


def _load_redis(client: Any) -> None:
    client.mset({f"counter:{counter}": 0 for counter in range(COUNTERS)})


def _state_of_redis(client: Any) -> int:
    return sum(map(int, client.mget([f"counter:{counter}" for counter in range(COUNTERS)])))


POSTGRES = "CREATE TABLE counters (counter bigint PRIMARY KEY, value bigint NOT NULL) WITH (fillfactor = 50)"
INCREMENT = "UPDATE counters SET value = value + 1 WHERE counter = %s::bigint RETURNING value"


def _load_postgres(connection: Any) -> None:
    connection.execute("INSERT INTO counters SELECT n, 0 FROM generate_series(0, %s) AS n", [COUNTERS - 1])
    connection.execute("ANALYZE counters")


def _load_dicts(tx: Any) -> None:
    for counter in range(COUNTERS):
        tx.counters.insert(counter, 0)


LINES = (
    Line(
        workload="increment",
        name="increment",
        drive="tasks",
        calls=calls,
        count=500_000,
        cycles=True,
        verify=verify,
        procedures=("increment",),
        voltpy=OnVoltpy("counters", _load_voltpy, lambda client: sum(client.call_everywhere("total"))),
        dicts=OnDicts("counters", _load_dicts, lambda tx: sum(row.value for row in tx.counters.scan())),
        redis=OnRedis("", _load_redis, lambda call: ("INCR", f"counter:{call[1][0]}"), _state_of_redis),
        postgres=OnPostgres(
            POSTGRES,
            _load_postgres,
            {"increment": INCREMENT},
            lambda connection: int(connection.execute("SELECT sum(value) FROM counters").fetchone()[0]),
        ),
    ),
)
