"""Two PostgreSQL servers, and transactions on both that a Python client commits in two phases.

Both servers get BEGIN, their part and PREPARE TRANSACTION in one message; when both have prepared, both get COMMIT
PREPARED in the next. Many pairs of connections are kept going by one loop, without a thread each. In the servers'
favour, the client writes no record of its decisions, without which none could be resolved after it crashed.

Two transactions may each wait for what the other has prepared on the other server, which neither server sees: a short
lock_timeout ends that, and the call is made again.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from selectors import EVENT_READ, EVENT_WRITE, DefaultSelector
from time import perf_counter
from typing import Any, Self

from psycopg.pq import DiagnosticField, ExecStatus

from bench import drive
from bench.peers.postgres import Postgres
from bench.workload import BenchError, Call, CallStream, Fsync, Line, OnTwoPostgres, Outcome

PAIRS = {f"{pairs} pairs of connections, PREPARE TRANSACTION": pairs for pairs in (16, 64)}
LONE = "PREPARE TRANSACTION on both"
LOCK_TIMEOUT = "100ms"
RETRIED = (b"55P03", b"40P01", b"40001")  # lock_not_available, deadlock_detected, serialization_failure


class TwoPostgres:
    name = "two_postgres"

    def __init__(self, directory: Path, fsync: Fsync) -> None:
        self._directory = directory
        self._folders = [directory / name for name in ("first", "second")]
        self._servers = [Postgres(folder, fsync, max_prepared_transactions="200") for folder in self._folders]
        self._stack = ExitStack()

    @property
    def settings(self) -> str:
        return f"two servers, each with {self._servers[0].settings}"

    def __enter__(self) -> Self:
        os.chmod(self._directory, 0o755)  # the servers run as another user, and have to get to their folders
        with ExitStack() as stack:
            for folder, server in zip(self._folders, self._servers, strict=True):
                folder.mkdir()
                stack.push(server)  # left also where it does not get as far as serving
                server.__enter__()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def cpu_s(self) -> dict[str, float]:
        return {"server": sum(server.cpu_s()["server"] for server in self._servers)}

    def ways(self, line: Line) -> tuple[str, ...]:
        if line.two_postgres is None:
            return ()
        return {"many": tuple(PAIRS), "lone": (LONE,)}.get(line.drive, ())

    def load(self, line: Line) -> None:
        assert line.two_postgres is not None
        for number, server in enumerate(self._servers):
            server.connection.execute(line.two_postgres.schema)
            line.two_postgres.load(server.connection, number)

    def state(self, line: Line) -> Any:
        assert line.two_postgres is not None
        first, second = self._servers
        return line.two_postgres.state(first.connection, second.connection)

    @contextmanager
    def session(self, line: Line, way: str, in_flight: int, tasks: int) -> Iterator[drive.Drive]:
        assert line.two_postgres is not None
        workload = line.two_postgres
        pairs = PAIRS.get(way, 1)
        with ExitStack() as stack:
            first, second = (
                stack.enter_context(server.connections(pairs, lock_timeout=LOCK_TIMEOUT)) for server in self._servers
            )
            for connection in (*first, *second):
                connection.execute(workload.prepared)
            ready = [Pair([_Side(one), _Side(other)], workload) for one, other in zip(first, second, strict=True)]
            if way == LONE:
                yield lambda stream, seconds: drive.lone(stream, seconds, lambda call: _run_alone(ready[0], call))
            else:
                yield lambda stream, seconds: _run(ready, stream, seconds)


class _Side:
    """One of a pair's two connections. `is_done` when everything that was sent is answered; `error` if any."""

    def __init__(self, connection: Any) -> None:
        self.pgconn = connection.pgconn
        self.pgconn.nonblocking = 1
        self.is_done = True
        self.error: Any = None

    def send(self, sql: str) -> None:
        self.is_done, self.error = False, None
        self.pgconn.send_query(sql.encode())

    def receive(self) -> None:
        self.pgconn.consume_input()
        while not self.is_done and not self.pgconn.is_busy():
            result = self.pgconn.get_result()
            if result is None:
                self.is_done = True
            elif result.status == ExecStatus.FATAL_ERROR:
                self.error = result


class Pair:
    """A transaction on two servers at a time: prepare on both, then the same end on both."""

    _names = count(1)

    def __init__(self, sides: list[_Side], workload: OnTwoPostgres) -> None:
        self.sides = sides
        self.call: Call | None = None
        self._workload = workload
        self._name = ""
        self._is_prepared = False  # so the second message is under way
        self._to_repeat: Call | None = None

    def begin(self, call: Call) -> None:
        self.call, self._is_prepared = call, False
        self._name = f"t{next(self._names)}"
        for side, sql in zip(self.sides, self._workload.parts(call), strict=True):
            side.send(f"BEGIN; {sql}; PREPARE TRANSACTION '{self._name}'")

    def receive(self) -> Call | None:
        """Takes what has arrived, and goes on. The call when it is over: then `call` is None, if it was committed."""
        for side in self.sides:
            side.receive()
        if self.call is None or not all(side.is_done for side in self.sides):
            return None
        if self._is_prepared:
            self._expect_no_error()
            call, self.call = self.call, self._to_repeat
            self._to_repeat = None
            return call
        self._is_prepared = True
        errors = [side.error for side in self.sides if side.error is not None]
        if not errors:
            for side in self.sides:
                side.send(f"COMMIT PREPARED '{self._name}'")
            return None
        if any(error.error_field(DiagnosticField.SQLSTATE) not in RETRIED for error in errors):
            self._expect_no_error()
        self._to_repeat = self.call
        for side in self.sides:
            side.send("ROLLBACK" if side.error is not None else f"ROLLBACK PREPARED '{self._name}'")
        return None

    def _expect_no_error(self) -> None:
        for side in self.sides:
            if side.error is not None:
                raise BenchError(f"two_postgres: {side.error.error_message.decode(errors='replace')}")


def _run_alone(pair: Pair, call: Call) -> None:
    outcome = _run([pair], CallStream([call], cycles=False), float("inf"))
    assert outcome.calls == [call]


def _run(pairs: Sequence[Pair], stream: CallStream, seconds: float) -> Outcome:
    """Keeps all pairs busy for `seconds`, or to the end of the stream, and then waits for what is under way."""
    outcome = Outcome([], [], [])
    again: deque[Call] = deque()
    deadline = perf_counter() + seconds
    with DefaultSelector() as selector:
        for pair in pairs:
            for side in pair.sides:
                selector.register(side.pgconn.socket, EVENT_READ, pair)
        ready = set(pairs)
        while ready:
            for pair in ready:
                if (call := pair.receive()) is not None:
                    if pair.call is None:
                        outcome.calls.append(call)
                        outcome.results.append(None)
                    else:
                        again.append(call)
                        pair.call = None
                if pair.call is None:
                    calls = [again.popleft()] if again else stream.take(1) if perf_counter() < deadline else []
                    if calls:
                        pair.begin(calls[0])
                for side in pair.sides:
                    unsent = side.pgconn.flush()
                    selector.modify(side.pgconn.socket, EVENT_READ | EVENT_WRITE if unsent else EVENT_READ, pair)
            under_way = any(pair.call is not None for pair in pairs)
            ready = {key.data for key, _ in selector.select()} if under_way else set()
    return outcome
