"""lone: one call in flight, read-only, on the tables of kv. What counts is the latency."""

from __future__ import annotations

from bench.workload import Line
from bench.workloads import kv

LINES = (
    Line(
        workload="lone",
        name="get",
        drive="lone",
        calls=kv.gets,
        count=200_000,
        cycles=True,
        verify=kv.verify_gets,
        procedures=("get",),
        voltpy=kv.VOLTPY,
        dicts=None,
        redis=kv.REDIS,
        postgres=kv.on_postgres("get", kv.GET),
    ),
)
