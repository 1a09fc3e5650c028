"""kv: get and put of 100-byte values under 100,000 keys, each equally likely. Redis answers with GET and SET."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.workload import Call, Line, OnDicts, OnPostgres, OnRedis, OnVoltpy, batches, expect, send_in_pipelines
from bench.zipf import uniform

KEYS = 100_000
VALUE_BYTES = 100
NUMBER_DIGITS = 12  # a value begins with a number that says where it came from


def key(number: int) -> str:
    return f"key:{number:07d}"


def value(number: int) -> str:
    return f"{number:0{NUMBER_DIGITS}d}".ljust(VALUE_BYTES, "v")


FIRST_ROWS = [(key(number), value(number)) for number in range(KEYS)]


def gets(seed: int, count: int) -> list[Call]:
    return [("get", (key(number),)) for number in uniform(KEYS, count, seed)]


def puts(seed: int, count: int) -> list[Call]:
    return [("put", (key(number), value(KEYS + i))) for i, number in enumerate(uniform(KEYS, count, seed))]


def verify_gets(calls: Sequence[Call], results: Sequence[Any], state: dict[str, str]) -> None:
    """Every answer is a value that was loaded, and together they are those of the keys that were asked for."""
    expect("length of the values", {len(result) for result in results}, {VALUE_BYTES})
    asked = sum(int(args[0].removeprefix("key:")) for _, args in calls)
    expect("values answered", sum(int(result[:NUMBER_DIGITS]) for result in results), asked)
    expect("rows", state, dict(FIRST_ROWS))


def verify_puts(calls: Sequence[Call], results: Sequence[Any], state: dict[str, str]) -> None:
    """Every key holds a value that was put there, or its first one if none was. Calls in flight have no order."""
    expect("answers", len(results), len(calls))
    allowed: dict[str, set[str]] = {}
    for _, (name, new) in calls:
        allowed.setdefault(name, set()).add(new)
    expect("rows", len(state), KEYS)
    for name, first in FIRST_ROWS:
        if state[name] not in allowed.get(name, (first,)):
            expect(f"key {name}", state[name], "a value that was put there")


def _load_voltpy(client: Any) -> None:
    client.call_many("put", FIRST_ROWS)


def _state_of_voltpy(client: Any) -> dict[str, str]:
    keys = [name for name, _ in FIRST_ROWS]
    return dict(zip(keys, client.call_many("get", [(name,) for name in keys]), strict=True))


def _load_redis(client: Any) -> None:
    send_in_pipelines(client, [("SET", *row) for row in FIRST_ROWS])


def _command(call: Call) -> tuple[Any, ...]:
    name, args = call
    return ("GET" if name == "get" else "SET", *args)


def _state_of_redis(client: Any) -> dict[str, str]:
    state: dict[str, str] = {}
    for rows in batches(FIRST_ROWS, 10_000):
        keys = [name for name, _ in rows]
        state.update((name, found.decode()) for name, found in zip(keys, client.mget(keys), strict=True))
    return state


POSTGRES = "CREATE TABLE kv (key text PRIMARY KEY, value text NOT NULL)"


def _load_postgres(connection: Any) -> None:
    with connection.cursor().copy("COPY kv FROM STDIN") as copy:
        for row in FIRST_ROWS:
            copy.write_row(row)
    connection.execute("ANALYZE kv")


def _load_dicts(tx: Any) -> None:
    for row in FIRST_ROWS:
        tx.kv.insert(*row)


VOLTPY = OnVoltpy("kv", _load_voltpy, _state_of_voltpy)
DICTS = OnDicts("kv", _load_dicts, lambda tx: {row.key: row.value for row in tx.kv.scan()})
REDIS = OnRedis("", _load_redis, _command, _state_of_redis)
GET = "SELECT value FROM kv WHERE key = %s::text"
PUT = "INSERT INTO kv VALUES (%s::text, %s::text) ON CONFLICT (key) DO UPDATE SET value = excluded.value"


def _state_of_postgres(connection: Any) -> dict[str, str]:
    return dict(connection.execute("SELECT key, value FROM kv").fetchall())


def on_postgres(name: str, sql: str) -> OnPostgres:
    return OnPostgres(POSTGRES, _load_postgres, {name: sql}, _state_of_postgres)


LINES = (
    Line(
        workload="kv",
        name="get",
        drive="many",
        calls=gets,
        count=500_000,
        cycles=True,
        verify=verify_gets,
        procedures=("get",),
        voltpy=VOLTPY,
        dicts=DICTS,
        redis=REDIS,
        postgres=on_postgres("get", GET),
    ),
    Line(
        workload="kv",
        name="put",
        drive="many",
        calls=puts,
        count=500_000,
        cycles=True,
        verify=verify_puts,
        procedures=("put",),
        voltpy=VOLTPY,
        dicts=DICTS,
        redis=REDIS,
        postgres=on_postgres("put", PUT),
    ),
)
