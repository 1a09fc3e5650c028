"""PostgreSQL: procedures in PL/pgSQL, prepared, called through psycopg's pipeline mode.

Between two syncs of a pipeline everything is one implicit transaction: one commit and one flush for all, and one
failing call undoes the whole batch. That is cheaper and weaker than what the other peers do, so both are measured:

    BATCH      2 connections in turn, a batch in each, one sync a batch, through `connection.pgconn`, psycopg's libpq.
               The fastest way that was found. Keys are dealt out to the connections, or the batches would deadlock.
    PIPELINE   psycopg as its manual shows it: `with connection.pipeline():` and `cursor.execute`; one sync a batch
    OWN        each call its own transaction: a sync after each one. The calls of a connection then commit one after
               another, and only those of different connections share a flush, so it is 16 connections, pipelined

Calls that lock rows of one another in any order can't share a transaction over several connections: then there are
PIPELINE and OWN. Those of a mix abort, and want to be SERIALIZABLE: see bench.peers.serializable.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import re
import shutil
import subprocess
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from select import select
from signal import SIGQUIT
from time import perf_counter
from typing import Any, Self

import psycopg
from psycopg.pq import ExecStatus

from bench import drive, measure
from bench.peers import serializable
from bench.peers.serializable import numbered
from bench.peers.server import Server
from bench.workload import BenchError, Call, CallStream, Fsync, Line, NotInstalled, Outcome

BATCH = "2 connections, a batch is one transaction"
PIPELINE = "psycopg pipeline, a batch is one transaction"
OWN = "16 connections, each call its own transaction"
CONNECTION_A_TASK = "psycopg async, a connection a task"
A_HOME = "SERIALIZABLE, a connection a warehouse"
ANYWHERE = "SERIALIZABLE, 8 connections"
ANYWHERE_CONNECTIONS = 8
CALLER = "psycopg"
BATCH_CONNECTIONS = 2
OWN_CONNECTIONS = 16

# Sized so that nothing but the calls runs while they are measured: no checkpoint, no vacuum, no compiling.
TUNING = {
    "shared_buffers": "512MB",
    "wal_buffers": "64MB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "1h",
    "autovacuum": "off",
    "jit": "off",
    "max_connections": "200",
    # Found by itself after a second otherwise, in which a mix of transactions stands still.
    "deadlock_timeout": "20ms",
    # Fewer, and rows that are read are remembered by the page, which makes more transactions fail.
    "max_pred_locks_per_transaction": "1024",
}
SYNCHRONOUS_COMMIT = {"always": "on", "everysec": "off", "never": "off"}


class Postgres:
    name = "postgres"

    def __init__(self, directory: Path, fsync: Fsync, **options: str) -> None:
        """`options` of the server, beside those that all of them have."""
        self._programs = _programs()
        self._directory = directory
        # Both refuse to run as root.
        self._user = "postgres" if os.geteuid() == 0 else None
        self._options = TUNING | {
            "synchronous_commit": SYNCHRONOUS_COMMIT[fsync],
            "fsync": "off" if fsync == "never" else "on",
            **options,
        }

    @property
    def settings(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self._options.items())

    def __enter__(self) -> Self:
        if self._user is not None:
            try:
                owner = pwd.getpwnam(self._user)
            except KeyError:
                raise NotInstalled("PostgreSQL does not run as root, and there is no user postgres") from None
            os.chown(self._directory, owner.pw_uid, owner.pw_gid)
        data = self._directory / "data"
        made = subprocess.run(
            [
                self._programs / "initdb",
                "-D",
                data,
                "-U",
                "bench",
                "-A",
                "trust",
                "-E",
                "UTF8",
                "--locale=C",
                "--no-sync",
            ],
            cwd=self._directory,
            capture_output=True,
            text=True,
            user=self._user,
            extra_groups=None if self._user is None else [],
        )
        if made.returncode:
            raise BenchError(f"initdb failed:\n{made.stderr}")
        command: list[str | Path] = [self._programs / "postgres", "-D", data, "-k", self._directory]
        command += ["-c", "listen_addresses="]
        for name, value in self._options.items():
            command += ["-c", f"{name}={value}"]
        # Ended without a last checkpoint: nobody will read its data again.
        self._server = Server(command, self._directory, user=self._user, stop_signal=SIGQUIT)
        self._conninfo = psycopg.conninfo.make_conninfo(host=str(self._directory), user="bench", dbname="postgres")
        self._server.wait_until(self._answers)
        self._connection = psycopg.connect(self._conninfo, autocommit=True)
        return self

    def _answers(self) -> bool:
        try:
            psycopg.connect(self._conninfo).close()
        except psycopg.OperationalError:
            return False
        return True

    def __exit__(self, *_: object) -> None:
        if hasattr(self, "_connection"):
            self._connection.close()
        if hasattr(self, "_server"):
            self._server.stop()

    @property
    def connection(self) -> Any:
        return self._connection

    @contextmanager
    def connections(self, count: int, **options: str) -> Iterator[list[Any]]:
        """As many connections, closed afterwards; `options` are settings of the server for them alone."""
        words = " ".join(f"-c {name}={value}" for name, value in options.items())
        with ExitStack() as stack:
            yield [
                stack.enter_context(psycopg.connect(self._conninfo, autocommit=True, options=words))
                for _ in range(count)
            ]

    def cpu_s(self) -> dict[str, float]:
        return {"server": measure.cpu_s(measure.process_tree(self._server.pid))}

    def ways(self, line: Line) -> tuple[str, ...]:
        if line.postgres is None:
            return ()
        many = (BATCH, PIPELINE, OWN) if line.postgres.batches else (PIPELINE, OWN)
        return {"many": many, "tasks": (CONNECTION_A_TASK,), "lone": (CALLER,), "mix": (A_HOME, ANYWHERE)}[line.drive]

    def load(self, line: Line) -> None:
        assert line.postgres is not None
        self._connection.execute(line.postgres.schema)
        line.postgres.load(self._connection)

    def state(self, line: Line) -> Any:
        assert line.postgres is not None
        return line.postgres.state(self._connection)

    @contextmanager
    def session(self, line: Line, way: str, in_flight: int, tasks: int) -> Iterator[drive.Drive]:
        assert line.postgres is not None
        statements = line.postgres.statements
        if line.drive == "mix":
            by_home = way == A_HOME
            count = line.postgres.homes if by_home else ANYWHERE_CONNECTIONS
            with self.connections(count, default_transaction_isolation="serializable") as connections:
                sessions = [serializable.Session(connection, statements) for connection in connections]
                yield lambda stream, seconds: serializable.drive(sessions, stream, seconds, by_home=by_home)
                for session in sessions:
                    session.leave()
            return
        if way == CONNECTION_A_TASK:
            with asyncio.Runner() as runner:
                connections = runner.run(_connect_async(self._conninfo, tasks))
                callers = [_async_caller(connection, statements) for connection in connections]
                yield lambda stream, seconds: runner.run(drive.tasks(stream, seconds, callers))
                runner.run(_close_async(connections))
            return
        count = {BATCH: BATCH_CONNECTIONS, OWN: OWN_CONNECTIONS}.get(way, 1)
        with self.connections(count) as connections:
            if way == CALLER:
                cursor = connections[0].cursor()

                def call_one(call: Call) -> Any:
                    row = cursor.execute(statements[call[0]], call[1], prepare=True).fetchone()
                    return None if row is None else row[0]

                yield lambda stream, seconds: drive.lone(stream, seconds, call_one)
            elif way == PIPELINE:
                yield lambda stream, seconds: _pipeline(connections[0], statements, stream, seconds, in_flight)
            else:
                lanes = [_Lane(connection, statements, sync_each=way == OWN) for connection in connections]
                yield lambda stream, seconds: _lanes(lanes, stream, seconds, in_flight)
                for lane in lanes:
                    lane.leave()


class _Lane:
    """One connection in pipeline mode, with the statements prepared and at most one batch under way."""

    def __init__(self, connection: Any, statements: dict[str, str], *, sync_each: bool) -> None:
        self._pgconn = connection.pgconn
        self._sync_each = sync_each
        self._syncs_due = 0
        self._statements = {name: name.encode() for name in statements}
        for name, sql in statements.items():
            prepared = self._pgconn.prepare(name.encode(), numbered(sql).encode())
            if prepared.status != ExecStatus.COMMAND_OK:
                raise BenchError(f"postgres: {prepared.error_message.decode(errors='replace')}")
        self._pgconn.enter_pipeline_mode()
        self._pgconn.nonblocking = 1
        self.waiting: deque[Call] = deque()

    def send(self, calls: Sequence[Call]) -> None:
        pgconn, statements = self._pgconn, self._statements
        for name, args in calls:
            pgconn.send_query_prepared(statements[name], [str(value).encode() for value in args])
            if self._sync_each:
                pgconn.pipeline_sync()
        if self._sync_each:
            self._syncs_due = len(calls)
        elif calls:
            pgconn.pipeline_sync()
            self._syncs_due = 1
        pgconn.flush()

    def receive(self, results: list[Any]) -> None:
        """Waits until everything that was sent is answered."""
        pgconn = self._pgconn
        while self._syncs_due:
            while pgconn.is_busy():
                unsent = pgconn.flush()
                select([pgconn.socket], [pgconn.socket] if unsent else [], [])
                pgconn.consume_input()
            result = pgconn.get_result()
            if result is None:  # the end of one statement's results
                continue
            if result.status == ExecStatus.TUPLES_OK:
                results.append(result.get_value(0, 0))
            elif result.status == ExecStatus.COMMAND_OK:
                results.append(None)
            elif result.status == ExecStatus.PIPELINE_SYNC:
                self._syncs_due -= 1
            else:
                raise BenchError(f"postgres: {result.error_message.decode(errors='replace')}")

    def leave(self) -> None:
        self._pgconn.nonblocking = 0
        self._pgconn.exit_pipeline_mode()


def _lanes(lanes: Sequence[_Lane], stream: CallStream, seconds: float, in_flight: int) -> Outcome:
    """Fills the connections in turn. A key always goes to the same one, so that no batch waits for another's rows."""
    outcome = Outcome([], [], [])
    share = max(1, in_flight // len(lanes))
    deadline = perf_counter() + seconds
    at_end = False
    while not at_end:
        for lane in lanes:
            lane.receive(outcome.results)
            at_end = at_end or perf_counter() >= deadline
            waiting = lane.waiting
            while len(waiting) < share and not at_end:
                calls = stream.take(in_flight)
                at_end = not calls
                for call in calls:
                    lanes[hash(call[1][0]) % len(lanes)].waiting.append(call)
            if not at_end:
                batch = [waiting.popleft() for _ in range(share)]
                lane.send(batch)
                outcome.calls += batch
    for lane in lanes:
        lane.receive(outcome.results)
    return outcome


def _pipeline(
    connection: Any, statements: dict[str, str], stream: CallStream, seconds: float, in_flight: int
) -> Outcome:
    outcome = Outcome([], [], [])
    cursors = [connection.cursor() for _ in range(in_flight)]
    deadline = perf_counter() + seconds
    while perf_counter() < deadline:
        calls = stream.take(in_flight)
        if not calls:
            break
        with connection.pipeline():
            for cursor, (name, args) in zip(cursors, calls, strict=False):
                cursor.execute(statements[name], args, prepare=True)
        outcome.calls += calls
        for cursor, _ in zip(cursors, calls, strict=False):
            row = cursor.fetchone() if cursor.description else None
            outcome.results.append(None if row is None else row[0])
    return outcome


def _async_caller(connection: Any, statements: dict[str, str]) -> Any:
    cursor = connection.cursor()

    async def call_one(call: Call) -> Any:
        await cursor.execute(statements[call[0]], call[1], prepare=True)
        return (await cursor.fetchone())[0]

    return call_one


async def _connect_async(conninfo: str, count: int) -> list[Any]:
    return [await psycopg.AsyncConnection.connect(conninfo, autocommit=True) for _ in range(count)]


async def _close_async(connections: Sequence[Any]) -> None:
    for connection in connections:
        await connection.close()


def _programs() -> Path:
    """The folder of the newest PostgreSQL that is installed."""
    if program := shutil.which("initdb"):
        return Path(program).parent
    folders = [folder for folder in Path("/usr/lib/postgresql").glob("*/bin") if (folder / "initdb").exists()]
    if not folders:
        raise NotInstalled("PostgreSQL is not installed")
    return max(folders, key=lambda folder: int(re.sub(r"\D.*", "", folder.parent.name) or 0))
