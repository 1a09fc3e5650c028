"""The client for asyncio: `connect_async` gives one. All of it runs in the event loop that it was made in.

Calls made in one tick of the loop leave together at its end, in shared frames; the loop watches the sockets' file
descriptors itself, since a send through zmq.asyncio costs ten times as much as the send alone.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Generator, Iterable
from itertools import islice
from math import inf
from types import TracebackType
from typing import Any, Self, cast

from voltpy.address import LISTENS_AGAIN_S, Address
from voltpy.batch import Batch
from voltpy.builtin import PLAN
from voltpy.calls import Command, Everywhere, Lookup, Pending
from voltpy.connection import Connection
from voltpy.errors import Error, Unavailable
from voltpy.known_statements import KnownStatements, changes_schema, checked_parameters, in_its_words, schema_changed
from voltpy.link import Link, StreamLink
from voltpy.links import DIRECT_WAIT_S, Links
from voltpy.messages import CALLS_A_FRAME, ProcedureInfo
from voltpy.result import Result

ROWS_A_TURN = 256
TURNS_A_TICK = 16  # of call_many, before other tasks have theirs


class _Call(Pending):
    __slots__ = ("future",)
    future: asyncio.Future[Any]

    def begin(self) -> bool:
        return not self.future.done()


class _EverywhereCall(Everywhere):
    __slots__ = ("future",)
    future: asyncio.Future[Any]

    def begin(self) -> bool:
        return not self.future.done()


class _LookupCall(Lookup):
    __slots__ = ("future",)
    future: asyncio.Future[Any]


class _CommandCall(Command):
    __slots__ = ("future",)
    future: asyncio.Future[Any]

    def begin(self) -> bool:
        return not self.future.done()


_Waiting = _Call | _EverywhereCall | _LookupCall | _CommandCall


class Connecting:
    """What `connect_async` returns: `await` it for a client, or use it in `async with` directly."""

    def __init__(self, address: Address, timeout: float, retry_s: float) -> None:
        self._address = address
        self._timeout = timeout
        self._retry_s = retry_s
        self._client: AsyncClient | None = None

    async def _connect(self) -> AsyncClient:
        client = AsyncClient(self._address, timeout=self._timeout, retry_s=self._retry_s)
        try:
            await client._open()
        except BaseException:
            await client.close()
            raise
        return client

    def __await__(self) -> Generator[Any, None, AsyncClient]:
        return self._connect().__await__()

    async def __aenter__(self) -> AsyncClient:
        self._client = await self._connect()
        return self._client

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._client is not None:
            await self._client.close()


def connect_async(url: str = "voltpy://127.0.0.1:21212", *, timeout: float = 10.0, retry_s: float = 0.0) -> Connecting:
    """Connects from a running event loop; arguments and errors as of `voltpy.connect`. It never waits awake."""
    return Connecting(Address(url), timeout, retry_s)


class AsyncClient:
    """A connection to a cluster, for the tasks of one event loop. Made by `voltpy.connect_async`."""

    def __init__(self, address: Address, *, timeout: float, retry_s: float) -> None:
        self._timeout = _positive(timeout)
        if not 0 <= retry_s < inf:
            raise ValueError(f"retry_s is a number of seconds, not {retry_s!r}")
        self._loop = asyncio.get_running_loop()
        self._connection = Connection(secrets.randbits(63) | 1, affinity=address.affinity, retry_s=retry_s)
        self._links = Links(address, self._connection)
        self._statements = KnownStatements()
        self._watched: dict[int, Link | StreamLink] = {}
        self._generation = -1
        self._tick_due = False
        self._timer: asyncio.TimerHandle | None = None
        self._batches: list[tuple[Batch, asyncio.Future[None]]] = []
        self._changed: asyncio.Future[None] | None = None
        self._closed = False

    async def call(self, name: str, /, *args: Any, timeout: float | None = None) -> Any:
        """Calls a procedure where its keys are, be it in several partitions, and returns its result.

        Raises what voltpy.errors lists.
        """
        return await self._submit(name, args, self._timeout if timeout is None else _positive(timeout))

    def submit(self, name: str, /, *args: Any) -> asyncio.Future[Any]:
        """Starts a call. Cancelling the future before the loop's next tick keeps it from being sent."""
        return self._submit(name, args, self._timeout)

    async def call_many(
        self, name: str, rows: Iterable[Any], *, return_exceptions: bool = False, timeout: float | None = None
    ) -> list[Any]:
        """Calls one procedure with each row of arguments (tuples or lists) and returns the results in order.

        `rows` is read as the calls go out. Each call has its own `timeout`. A call that fails puts its error in its
        place with `return_exceptions`; without, the first error is raised as soon as what was sent is settled: the
        other calls that were sent have run, or failed too, and the rest was not sent.
        """
        limit = self._timeout if timeout is None else _positive(timeout)
        self._check_open()
        connection = self._connection
        info = connection.cluster.procedures.get(name)
        if info is None:
            lookup = _LookupCall()
            info = await self._start(lookup, lambda now: connection.lookup(lookup, name, now, limit))
        batch = Batch(info, limit)
        try:
            await self._run_batch(batch, iter(rows), stop_at_error=not return_exceptions)
        except BaseException:
            connection.abandon(batch)
            raise
        if batch.failed and not return_exceptions and (error := batch.first_error()) is not None:
            raise error
        return batch.results

    async def call_everywhere(
        self, name: str, /, *args: Any, return_exceptions: bool = False, timeout: float | None = None
    ) -> list[Any]:
        """Runs a directed procedure in every partition; the result of partition i is at index i.

        Each runs as an independent transaction. Of those that fail the first one's error is raised, which names its
        partition; the others have run. With `return_exceptions` each error is in its place instead.
        Where it writes tables of which every partition has a copy, all of them are one transaction, and its error is
        raised. So is what is known before any of them runs, and that the answers did not come within the timeout.
        """
        call = _EverywhereCall(returns_errors=return_exceptions)
        limit = self._timeout if timeout is None else _positive(timeout)
        result: list[Any] = await self._start(
            call, lambda now: self._connection.everywhere(call, name, args, now, limit)
        )
        return result

    async def execute(self, sql: str, parameters: Iterable[Any] = (), /, *, timeout: float | None = None) -> Result:
        """Runs one SQL statement as a transaction of its own, over all partitions that it needs.

        `?` in it stand for the parameters. How it is routed is asked for once for each text. Raises SqlError for a
        statement that is wrong, DataError where its values don't fit, and what `call` raises.

        Statements that change the schema (CREATE, DROP, ALTER and PARTITION TABLE …) are changes of their own, in all
        partitions or none; they raise SchemaError, and DuplicateKey for a unique index of rows that are not.
        """
        given = checked_parameters(parameters)
        while True:
            version = self._connection.cluster.catalog_version
            try:
                statement = self._statements.get(sql, version)
                if statement is None:
                    if changes_schema(sql, given):
                        return schema_changed((await self._admin("change_schema", {"text": sql}, timeout))["kind"])
                    statement = self._statements.learn(sql, await self.call(PLAN, sql, timeout=timeout))
                name, args = statement.call(given, self._statements.any_key())
                answer = await self.call(name, *args, timeout=timeout)
            except Error as error:
                raise in_its_words(error, given) from None
            if not statement.writes and version != self._connection.cluster.catalog_version:
                continue  # what it was known to answer may have been so under another schema
            return statement.result(answer)

    async def procedures(self) -> list[ProcedureInfo]:
        """The procedures that are loaded, by name."""
        call = _LookupCall()
        await self._start(call, lambda now: self._connection.lookup(call, "", now, self._timeout))
        return sorted(self._connection.cluster.procedures.values(), key=lambda info: info.name)

    async def status(self) -> dict[str, Any]:
        """The state of every process of the cluster, as `voltpy status --json` prints it."""
        return await self._admin("status", {})

    async def stop(self) -> None:
        """Stops the cluster, cleanly."""
        await self._admin("stop", {})

    async def load_procedures(self, source: str, path: str) -> dict[str, Any]:
        """Replaces the procedures by those in `source`, in all partitions or none. `path` names it in tracebacks.

        Raises SchemaError for a source that can't be loaded; then nothing has changed.
        """
        return await self._admin("load_procedures", {"source": source, "path": path})

    async def close(self) -> None:
        """Ends the connection. Calls under way fail; any later one raises Unavailable. May be awaited again."""
        if self._closed or self._links.orphaned:
            return
        self._closed = True
        self._connection.close("the client was closed")
        self._deliver()
        for _batch, waiter in self._batches:
            if not waiter.done():
                waiter.set_result(None)
        self._batches.clear()
        if self._timer is not None:
            self._timer.cancel()
        for fd in self._watched:
            self._loop.remove_reader(fd)
            self._loop.remove_writer(fd)
        self._watched.clear()
        self._links.close()

    def __repr__(self) -> str:
        return f"<voltpy.AsyncClient of {self._links.address.url}{', closed' if self._closed else ''}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # ── inside ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _submit(self, name: str, args: tuple[Any, ...], limit: float) -> asyncio.Future[Any]:
        if self._closed or self._links.orphaned:
            self._check_open()
        call = _Call()
        call.future = future = self._loop.create_future()
        connection = self._connection
        connection.submit(call, name, args, self._loop.time(), limit)
        if connection.unsent.urgent:
            self._tick()
        elif not self._tick_due:
            self._tick_due = True
            self._loop.call_soon(self._end_of_tick)
        return future

    def _start(self, call: _Waiting, start: Callable[[float], None]) -> asyncio.Future[Any]:
        self._check_open()
        call.future = self._loop.create_future()
        start(self._loop.time())
        if not self._tick_due:
            self._tick_due = True
            self._loop.call_soon(self._end_of_tick)
        return call.future

    async def _admin(self, command: str, body: dict[str, Any], timeout: float | None = None) -> dict[str, Any]:
        call = _CommandCall()
        limit = self._timeout if timeout is None else _positive(timeout)
        answer: dict[str, Any] = await self._start(
            call, lambda now: self._connection.admin(call, command, body, now, limit)
        )
        return answer

    async def _run_batch(self, batch: Batch, source: Any, *, stop_at_error: bool) -> None:
        connection = self._connection
        turns = 0
        while True:
            self._check_open()
            now = self._loop.time()
            room = connection.room(batch)
            if room > 0 and not batch.finished:
                rows = list(islice(source, min(room, ROWS_A_TURN)))
                if rows:
                    connection.fill(batch, rows, now)
                else:
                    batch.finished = True
            if batch.failed and stop_at_error and not batch.finished:
                connection.drop_unsent(batch)
            wait = batch.finished or connection.room(batch) <= 0
            if wait:
                connection.push(batch, now)
            self._tick()
            if batch.finished and batch.left == 0:
                return
            turns += 1
            if wait and (batch.finished or connection.room(batch) <= 0):
                waiter = self._loop.create_future()
                self._batches.append((batch, waiter))
                await waiter
                turns = 0
            elif turns % TURNS_A_TICK == 0:
                await asyncio.sleep(0)

    def _end_of_tick(self) -> None:
        self._tick_due = False
        if not self._closed:
            self._tick()

    def _tick(self) -> None:
        """Sends what is queued, hands out what is settled."""
        now = self._loop.time()
        self._links.flush(now)
        self._deliver()
        if self._links.generation != self._generation:
            self._watch()
        when = min(self._connection.alarm.time, self._links.next_time)
        timer = self._timer
        if timer is None or when < timer.when():
            self._set_timer(when)

    def _readable(self, link: Link | StreamLink, fd: int) -> None:
        if self._closed:
            return
        self._links.arrived(link, fd, self._loop.time())
        self._tick()

    def _time_passed(self) -> None:
        self._timer = None
        self._links.step(self._loop.time())
        self._tick()

    def _set_timer(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if when < inf:
            self._timer = self._loop.call_at(when, self._time_passed)

    def _watch(self) -> None:
        links = self._links
        self._generation = links.generation
        wanted = links.fds()
        for fd, link in list(self._watched.items()):
            if wanted.get(fd) is not link:
                self._loop.remove_reader(fd)
                self._loop.remove_writer(fd)
                del self._watched[fd]
        links.bury()
        for fd, link in wanted.items():
            if fd not in self._watched:
                self._watched[fd] = link
                self._loop.add_reader(fd, self._readable, link, fd)
            if link.wants_to_write:
                self._loop.add_writer(fd, self._readable, link, fd)
            else:
                self._loop.remove_writer(fd)

    def _deliver(self) -> None:
        connection = self._connection
        if connection.outcomes.settled:
            for call in cast(list[_Call], connection.outcomes.take()):
                future = call.future
                if future.done():
                    continue
                if call.error is None:
                    future.set_result(call.value)
                else:
                    future.set_exception(call.error)
        if self._batches:
            waiting = []
            for batch, waiter in self._batches:
                ready = batch.left == 0 if batch.finished else connection.room(batch) >= CALLS_A_FRAME
                if not ready:
                    waiting.append((batch, waiter))
                elif not waiter.done():
                    waiter.set_result(None)
            self._batches = waiting
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)

    async def _open(self) -> None:
        connection = self._connection
        began = self._loop.time()
        while not self._links.address.listens():
            if self._loop.time() >= began + connection.retry_s:
                raise self._links.address.silent()
            await asyncio.sleep(LISTENS_AGAIN_S)
        limit = max(self._timeout, connection.retry_s)
        deadline = began + limit
        self._links.step(self._loop.time())
        while connection.cluster.topology is None:
            self._tick()
            if connection.rejected is not None:
                raise connection.rejected
            if self._loop.time() >= deadline:
                raise Unavailable(f"no answer from {self._links.address.url} within {limit:g} s")
            await self._change(deadline)
        deadline = min(deadline, self._loop.time() + DIRECT_WAIT_S)
        while self._links.undecided() and self._loop.time() < deadline:
            self._tick()
            await self._change(deadline)
        self._tick()

    async def _change(self, deadline: float) -> None:
        self._changed = self._loop.create_future()
        timer = self._loop.call_at(deadline, _resolve, self._changed)
        try:
            await self._changed
        finally:
            timer.cancel()
            self._changed = None

    def _check_open(self) -> None:
        if self._links.orphaned:
            raise Unavailable("this client was made by the parent process: after a fork, connect again")
        if self._closed:
            raise Unavailable("the client is closed")


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _positive(timeout: float) -> float:
    if not isinstance(timeout, float | int) or not 0 < timeout < inf:
        raise ValueError(f"a timeout is a positive number of seconds, not {timeout!r}")
    return timeout
