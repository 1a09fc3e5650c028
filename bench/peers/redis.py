"""Redis: procedures as a Lua library of FUNCTIONs, plain commands where they are enough; redis-py with hiredis.

Ways of keeping many calls in flight: redis-py's own Pipeline of all of them, sent and then read; and several
connections with a part of them each, where one part is being executed while another is packed or read, through the same
`pack_commands`, `send_packed_command` and `read_response` that the Pipeline uses. Neither is a MULTI.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any, Self, TypeAlias

import hiredis  # noqa: F401  # redis-py takes it by itself when it is there; without it the comparison would be unfair
import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.retry import Retry

from bench import drive, measure
from bench.peers.server import Server, free_port
from bench.workload import BenchError, Call, CallStream, Fsync, Line, NotInstalled, Outcome

CONNECTION_COUNT = 16
CONNECTIONS = f"{CONNECTION_COUNT} connections, a pipeline each"
PIPELINE = "Pipeline of redis-py"
POOL = "redis.asyncio, connection pool"
CALLER = "redis-py, loopback"
UNIX_CALLER = "redis-py, Unix socket"

Command: TypeAlias = Callable[[Call], tuple[Any, ...]]

APPENDFSYNC = {"always": "always", "everysec": "everysec", "never": "no"}


class Redis:
    name = "redis"

    def __init__(self, directory: Path, fsync: Fsync) -> None:
        program = shutil.which("redis-server")
        if program is None:
            raise NotInstalled("redis-server is not installed")
        self._directory = directory
        self._options = {
            "appendonly": "yes",
            "appendfsync": APPENDFSYNC[fsync],
            "auto-aof-rewrite-percentage": "0",
            "save": "",
        }
        self._program = program
        self._port = free_port()
        self._socket = directory / "redis.sock"

    @property
    def settings(self) -> str:
        return ", ".join(f"{name} {value or repr(value)}" for name, value in self._options.items())

    def __enter__(self) -> Self:
        command: list[str | Path] = [self._program, "--port", str(self._port), "--unixsocket", self._socket]
        command += ["--dir", self._directory, "--bind", "127.0.0.1", "--loglevel", "warning"]
        for name, value in self._options.items():
            command += [f"--{name}", value]
        self._server = Server(command, self._directory)
        # By itself it would wait between attempts for longer than a start takes.
        once = Retry(NoBackoff(), 0)
        self._client = redis.Redis(unix_socket_path=str(self._socket), retry=once)
        self._server.wait_until(self._answers)
        return self

    def _answers(self) -> bool:
        try:
            return bool(self._client.ping())
        except redis.ConnectionError:
            return False

    def __exit__(self, *_: object) -> None:
        self._client.close()
        self._server.stop()

    def cpu_s(self) -> dict[str, float]:
        return {"server": measure.cpu_s(measure.process_tree(self._server.pid))}

    def ways(self, line: Line) -> tuple[str, ...]:
        if line.redis is None or line.drive == "mix":
            return ()
        return {"many": (CONNECTIONS, PIPELINE), "tasks": (POOL,), "lone": (CALLER, UNIX_CALLER)}[line.drive]

    def load(self, line: Line) -> None:
        assert line.redis is not None
        if line.redis.library:
            self._client.function_load(line.redis.library)
        line.redis.load(self._client)

    def state(self, line: Line) -> Any:
        assert line.redis is not None
        return line.redis.state(self._client)

    @contextmanager
    def session(self, line: Line, way: str, in_flight: int, tasks: int) -> Iterator[drive.Drive]:
        assert line.redis is not None
        command = line.redis.command
        if way == POOL:
            with asyncio.Runner() as runner:
                pool: Any = redis.asyncio.Redis(unix_socket_path=str(self._socket), max_connections=tasks)

                async def call_one(call: Call) -> Any:
                    return await pool.execute_command(*command(call))

                yield lambda stream, seconds: runner.run(drive.tasks(stream, seconds, [call_one] * tasks))
                runner.run(pool.aclose())
            return
        # Much data goes faster over loopback, with its larger buffers; a lone call over the Unix socket.
        over_unix = way == UNIX_CALLER
        client: Any = redis.Redis(unix_socket_path=str(self._socket)) if over_unix else redis.Redis(port=self._port)
        with client:
            if way in (CALLER, UNIX_CALLER):
                yield lambda stream, seconds: drive.lone(
                    stream, seconds, lambda call: client.execute_command(*command(call))
                )
            elif way == PIPELINE:
                yield lambda stream, seconds: _pipeline(client, command, stream, seconds, in_flight)
            else:
                connections = [client.connection_pool.get_connection() for _ in range(CONNECTION_COUNT)]
                yield lambda stream, seconds: _connections(connections, command, stream, seconds, in_flight)
                for connection in connections:
                    client.connection_pool.release(connection)


def _pipeline(client: Any, command: Command, stream: CallStream, seconds: float, in_flight: int) -> Outcome:
    """All calls in one Pipeline: what most people write."""
    outcome = Outcome([], [], [])
    deadline = perf_counter() + seconds
    while perf_counter() < deadline:
        calls = stream.take(in_flight)
        if not calls:
            break
        pipeline = client.pipeline(transaction=False)
        for call in calls:
            pipeline.execute_command(*command(call))
        outcome.calls += calls
        outcome.results += pipeline.execute()
    return outcome


def _connections(
    connections: Sequence[Any], command: Command, stream: CallStream, seconds: float, in_flight: int
) -> Outcome:
    """The calls over several connections in turn: while one part is packed or read, the server has the others."""
    outcome = Outcome([], [], [])
    results = outcome.results
    share = max(1, in_flight // len(connections))
    unanswered = [0] * len(connections)
    deadline = perf_counter() + seconds
    at_end = False
    while not at_end:
        for i, connection in enumerate(connections):
            read = connection.read_response
            for _ in range(unanswered[i]):
                results.append(read())
            at_end = at_end or perf_counter() >= deadline
            calls = [] if at_end else stream.take(share)
            unanswered[i] = len(calls)
            if calls:
                connection.send_packed_command(connection.pack_commands([command(call) for call in calls]))
                outcome.calls += calls
            else:
                at_end = True
    for i, connection in enumerate(connections):
        results.extend(connection.read_response() for _ in range(unanswered[i]))
    if any(isinstance(result, Exception) for result in results):
        raise BenchError(f"redis: {next(result for result in results if isinstance(result, Exception))}")
    return outcome
