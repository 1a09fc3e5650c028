"""What a workload is: its calls, the same for everyone, and beside them what each peer needs to carry them out.

A *line* is one figure of the table: `voter/vote`, `kv/get`. Its calls come from a seed. It is driven in one of these
manners:

    many    as many calls in flight as --in-flight says, in whatever manner suits the peer best
    tasks   --tasks asyncio tasks, each awaiting one call at a time
    lone    one call in flight
    mix     calls of several procedures, some of which abort, as many in flight as --in-flight says; results stand
            beside their calls, and an abort is the Aborted itself

After a run the peer is asked for its `state`, and `verify` compares that with what was acknowledged: a figure made of
calls that failed or were lost is an error, not a figure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Literal, TypeVar

from msgspec import Struct

Call = tuple[str, tuple[Any, ...]]  # a procedure's name and its arguments; the first one is the key
Row = TypeVar("Row")
Fsync = Literal["always", "everysec", "never"]


class BenchError(Exception):
    """A run that gives no figure: a peer that failed, or whose tables contradict what it acknowledged."""


class NotInstalled(BenchError):
    """The peer is not on this machine; it is named and skipped."""


class CallStream:
    """Calls one after another, from a list that was made before the clock started."""

    def __init__(self, calls: list[Call], *, cycles: bool) -> None:
        self._calls = calls
        self._cycles = cycles
        self._next = 0

    def take(self, count: int) -> list[Call]:
        """The next calls, at most `count`; none when the stream is at its end, which one that cycles never is."""
        if self._next == len(self._calls) and self._cycles:
            self._next = 0
        calls = self._calls[self._next : self._next + count]
        self._next += len(calls)
        return calls


class Outcome(Struct):
    """Calls that were sent and answered. `results` are in no particular order; latencies only where one was taken."""

    calls: list[Call]
    results: list[Any]
    latencies_us: list[float]


class OnVoltpy(Struct, frozen=True):
    """`procedures` is a name of procedures/<name>.sql and .py. `load` and `state` get a voltpy.Client."""

    procedures: str
    load: Callable[[Any], None]
    state: Callable[[Any], Any]


class OnDicts(Struct, frozen=True):
    """The same procedures on bench.plain_dicts; `load` and `state` get its Transaction.

    `runs`: whether a call is made at all; one that aborts after it has written would leave that behind.
    """

    procedures: str
    load: Callable[[Any], None]
    state: Callable[[Any], Any]
    runs: Callable[[Call], bool] | None = None


class OnRedis(Struct, frozen=True):
    """`library` is loaded with FUNCTION LOAD; `command` turns a call into a command. They get a redis.Redis."""

    library: str
    load: Callable[[Any], None]
    command: Callable[[Call], tuple[Any, ...]]
    state: Callable[[Any], Any]


class OnPostgres(Struct, frozen=True):
    """`statements`: SQL by procedure name, every parameter written %s::type. `state` gets a psycopg connection.

    `batches`: whether calls may share a transaction; not those that lock rows of each other in any order.
    `homes`: of a mix, how many different first arguments there are; calls with different ones seldom conflict.
    """

    schema: str
    load: Callable[[Any], None]
    statements: dict[str, str]
    state: Callable[[Any], Any]
    batches: bool = True
    homes: int = 1


class OnTwoPostgres(Struct, frozen=True):
    """Two servers that each hold a part of the rows, and a transaction on both, with PREPARE TRANSACTION.

    `load` gets a psycopg connection and which of the two it is. Each connection runs `prepared` once. `parts(call)`
    says what each of the two does: a statement that changes one row, or else fails. `state` gets both connections.
    """

    schema: str
    load: Callable[[Any, int], None]
    prepared: str
    parts: Callable[[Call], tuple[str, str]]
    state: Callable[[Any, Any], Any]


class Line(Struct, frozen=True):
    """`calls(seed, count)` makes the stream; `verify(calls, results, state)` raises BenchError.

    `procedures` are those that it calls. `counts`: the one whose calls are the figure, where not all of them are; those
    that abort don't count then. A peer that a line says nothing for is not asked.
    """

    workload: str
    name: str
    drive: Literal["many", "tasks", "lone", "mix"]
    calls: Callable[[int, int], list[Call]]
    count: int
    cycles: bool
    verify: Callable[[Sequence[Call], Sequence[Any], Any], None]
    procedures: tuple[str, ...]
    voltpy: OnVoltpy
    redis: OnRedis | None = None
    postgres: OnPostgres | None = None
    two_postgres: OnTwoPostgres | None = None
    dicts: OnDicts | None = None
    counts: str = ""


def fcall(call: Call) -> tuple[Any, ...]:
    """The call as a Redis function of the same name. The key is declared, as Redis asks."""
    name, args = call
    return ("FCALL", name, 1, *args)


def batches(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    """The rows in lists of `size`, the last one shorter."""
    rest = iter(rows)
    return iter(lambda: list(islice(rest, size)), [])


def send_in_pipelines(client: Any, commands: Sequence[tuple[Any, ...]]) -> None:
    """Sends many commands to a redis.Redis for their effect, before the clock starts."""
    for batch in batches(commands, 10_000):
        pipeline = client.pipeline(transaction=False)
        for command in batch:
            pipeline.execute_command(*command)
        pipeline.execute()


def expect(what: str, found: Any, acknowledged: Any) -> None:
    """Raises BenchError where a table does not hold what was acknowledged."""
    if found != acknowledged:
        raise BenchError(f"{what}: the tables say {found!r}, acknowledged were {acknowledged!r}")
