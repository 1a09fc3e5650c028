"""The client for threads: `connect` gives one, and any number of threads may share it.

Sockets and connection are touched under one mutex, by whichever thread has something to send. Sleeping is done outside
of it, on the sockets' file descriptors, and by one thread at a time: `voltpy.poller` has the states of that role, and
how it passes on. A caller that is alone with the connection sends its call, sleeps, and takes the answer itself. A
second one wakes it through a pipe; that one starts the I/O thread, and waits like the rest. So does `submit`. The I/O
thread ends when for IO_IDLE_S no two calls were outstanding together.

Whoever sends also takes in what has arrived on the same socket, for everyone.

An interrupt (KeyboardInterrupt, or whatever a signal handler raises) may come anywhere. What a thread does for others
is then done once more on the way out: it leaves the role of the poller (`_give_up`), and wakes those whose calls have
ended (`_deliver`).
"""

from __future__ import annotations

import os
import secrets
import select
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from itertools import chain, islice
from math import inf
from threading import get_ident
from time import monotonic
from types import TracebackType
from typing import Any, NoReturn, Self

from voltpy.address import LISTENS_AGAIN_S, Address
from voltpy.batch import Batch
from voltpy.builtin import PLAN
from voltpy.busy_poll import BusyPoll
from voltpy.calls import Command, Everywhere, Lookup, Pending
from voltpy.connection import Connection
from voltpy.errors import Error, Reentered, SqlError, Unavailable
from voltpy.known_statements import (
    MANY,
    KnownStatement,
    KnownStatements,
    changes_schema,
    checked_parameters,
    in_its_words,
    schema_changed,
)
from voltpy.link import Link, StreamLink
from voltpy.links import DIRECT_WAIT_S, Links
from voltpy.messages import CALLS_A_FRAME, ProcedureInfo
from voltpy.poller import CALLER, DISPOSE, NOTHING, START, YIELDING, Duty, Poller
from voltpy.result import Result

BUSY_POLL_US, BUSY_POLL_MAX_US = 200.0, 100_000
IO_IDLE_S = 0.2
SLICE_S = 0.2  # the longest sleep: what is due by time is looked after at least as often
FRESH_S = 0.001  # sockets that were looked at this recently hold no news worth a look before a call
ROWS_A_TURN = 256
SUBMITTED_CALLS = 16384  # past it `submit` waits until half of them are settled


class _Call(Pending):
    """A call whose thread waits for it; `lock` is what it sleeps on when another thread polls."""

    __slots__ = ("lock",)

    def __init__(self) -> None:
        super().__init__()
        self.lock: threading.Lock | None = None


class _EverywhereCall(Everywhere):
    __slots__ = ("lock",)

    def __init__(self, *, returns_errors: bool) -> None:
        super().__init__(returns_errors=returns_errors)
        self.lock: threading.Lock | None = None


class _LookupCall(Lookup):
    __slots__ = ("lock",)

    def __init__(self) -> None:
        super().__init__()
        self.lock: threading.Lock | None = None


class _CommandCall(Command):
    __slots__ = ("lock",)

    def __init__(self) -> None:
        super().__init__()
        self.lock: threading.Lock | None = None


_Waiting = _Call | _EverywhereCall | _LookupCall | _CommandCall


class _Submitted(Pending):
    __slots__ = ("future",)

    def __init__(self) -> None:
        super().__init__()
        self.future: Future[Any] = Future()

    def begin(self) -> bool:
        # A frame that could not be sent is begun twice.
        return self.future.running() or self.future.set_running_or_notify_cancel()


def connect(
    url: str = "voltpy://127.0.0.1:21212",
    *,
    timeout: float = 10.0,
    retry_s: float = 0.0,
    busy_poll_us: float = BUSY_POLL_US,
) -> Client:
    """Connects to the cluster at `url`, `voltpy://HOST[:PORT][?affinity=on|off]`.

    `timeout` is the limit in seconds for connecting, and for each call that sets no other. With `retry_s` a call whose
    partition or router is lost is sent again, under its call id so that it can't run twice, until it is answered or
    `retry_s` seconds have passed since it was made; without, it fails at once. A cluster that is being started
    is waited for as long.

    A thread that is alone with its call waits awake at first, for `busy_poll_us` microseconds (0 to 100,000) at most,
    and only while answers come so fast and nobody else wants the core (voltpy.busy_poll): a call from memory is
    answered sooner, and the core is busy meanwhile. With 0 it always sleeps.

    Raises Unavailable when nobody answers, ProtocolError when what answers is no voltpy of this version, ValueError for
    a wrong URL, or for a number out of its range.
    """
    return Client(Address(url), timeout=timeout, retry_s=retry_s, busy_poll_us=busy_poll_us)


class Client:
    """A connection to a cluster, for any number of threads. Made by `voltpy.connect`."""

    def __init__(self, address: Address, *, timeout: float, retry_s: float, busy_poll_us: float) -> None:
        self._timeout = _positive(timeout)
        if not 0 <= retry_s < inf:
            raise ValueError(f"retry_s is a number of seconds, not {retry_s!r}")
        if not 0 <= busy_poll_us <= BUSY_POLL_MAX_US:
            raise ValueError(f"busy_poll_us is from 0 to {BUSY_POLL_MAX_US:,} microseconds, not {busy_poll_us!r}")
        self._connection = Connection(secrets.randbits(63) | 1, affinity=address.affinity, retry_s=retry_s)
        self._links = Links(address, self._connection)
        self._statements = KnownStatements()
        self._mutex = threading.RLock()
        # Whether this thread holds it, as a signal handler may find; threading.Condition asks in the same way.
        self._is_inside: Callable[[], bool] = self._mutex._is_owned  # type: ignore[attr-defined]
        self._room = threading.Condition(self._mutex)
        self._submitters = 0  # threads that wait for room
        self._poller = Poller()
        self._thread: threading.Thread | None = None  # the I/O thread
        self._contended_at = 0.0
        self._looked_at = 0.0
        self._batches: list[tuple[Batch, threading.Lock]] = []
        self._wake_in, self._wake_out = os.pipe()
        os.set_blocking(self._wake_in, False)
        os.set_blocking(self._wake_out, False)
        self._poll = select.poll()
        self._busy_poll = BusyPoll(busy_poll_us / 1e6)
        self._by_fd: dict[int, Link | StreamLink] = {}
        self._generation = -1
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    # ── calls ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def call(self, name: str, /, *args: Any, timeout: float | None = None) -> Any:
        """Calls a procedure where its keys are, be it in several partitions, and returns its result.

        Raises what voltpy.errors lists.
        """
        call = _Call()
        limit = self._timeout if timeout is None else _positive(timeout)
        if self._links.orphaned:
            self._check_open()
        poller = self._poller
        me = get_ident()
        if poller.thread == me or self._is_inside():
            self._refuse_to_wait()
        try:
            with self._mutex:
                if poller.closed:
                    self._check_open()
                now = monotonic()
                alone, sleep = poller.take(me), None
                if alone:
                    if now - self._looked_at > FRESH_S:
                        self._look(now)
                    frame = self._connection.submit_alone(call, name, args, now, limit)
                    if frame is not None:
                        self._links.send_alone(frame, now)
                    else:
                        self._connection.submit(call, name, args, now, limit)
                        self._links.flush(now)
                    if not call.done:
                        sleep = self._prepare_sleep(now)
                else:
                    self._connection.submit(call, name, args, now, limit)
                    self._hand_over(now)
                    call.lock = _locked() if not call.done else None
            if alone:
                self._poll_for(call, sleep)
            if call.lock is not None:
                call.lock.acquire()
        except BaseException:
            self._give_up(call)
            raise
        if call.error is not None:
            raise call.error
        return call.value

    def submit(self, name: str, /, *args: Any) -> Future[Any]:
        """Starts a call. The future can be cancelled until the call is sent, which is soon.

        Waits while SUBMITTED_CALLS calls are under way, except in a future's callback.
        """
        call = _Submitted()
        self._check_open()
        self._refuse_inside()
        settled: list[Pending] = []
        try:
            with self._mutex:
                if self._connection.outcomes.outstanding >= SUBMITTED_CALLS:
                    self._wait_for_room()
                self._check_open()
                now = monotonic()
                self._connection.submit(call, name, args, now, self._timeout)
                self._hand_over(now)
                self._take_settled(settled)
            _deliver(settled)
        except BaseException:
            _deliver(settled)
            self._give_up(call)
            raise
        return call.future

    def call_many(
        self, name: str, rows: Iterable[Any], *, return_exceptions: bool = False, timeout: float | None = None
    ) -> list[Any]:
        """Calls one procedure with each row of arguments (tuples or lists) and returns the results in order.

        `rows` is read as the calls go out. Each call has its own `timeout`. A call that fails puts its error in its
        place with `return_exceptions`; without, the first error is raised as soon as what was sent is settled: the
        other calls that were sent have run, or failed too, and the rest was not sent.
        """
        self._check_open()
        self._refuse_to_wait()
        limit = self._timeout if timeout is None else _positive(timeout)
        info = self._info(name, limit)
        batch = Batch(info, limit)
        source = iter(rows)
        settled: list[Pending] = []
        try:
            while self._advance(batch, source, settled, stop_at_error=not return_exceptions):
                settled.clear()
        except BaseException:
            _deliver(settled)
            self._give_up(batch)
            raise
        if batch.failed and not return_exceptions and (error := batch.first_error()) is not None:
            raise error
        return batch.results

    def call_everywhere(
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
        result: list[Any] = self._run(call, lambda now: self._connection.everywhere(call, name, args, now, limit))
        return result

    def execute(self, sql: str, parameters: Iterable[Any] = (), /, *, timeout: float | None = None) -> Result:
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
                known = self._statement(sql, timeout, given)
                if isinstance(known, Result):
                    return known
                name, args = known.call(given, self._statements.any_key())
                answer = self.call(name, *args, timeout=timeout)
            except Error as error:
                raise in_its_words(error, given) from None
            if not known.writes and version != self._connection.cluster.catalog_version:
                continue  # what it was known to answer may have been so under another schema
            return known.result(answer)

    def execute_many(
        self, sql: str, rows: Iterable[Iterable[Any]], /, *, timeout: float | None = None
    ) -> list[Result | Error]:
        """Runs a statement once for each row of parameters, each time as a transaction of its own, many at a time.

        Rows with the same value in the partition column run in their order, others in any. A run that fails has its
        error in its place, and those that were under way beside it have run, or failed too; the rest was not sent, and
        the list is shorter than the rows. Each run has its own `timeout`.
        """
        results: list[Result | Error] = []
        following = iter(checked_parameters(row) for row in rows)
        ahead: list[Sequence[Any]] = []
        while not any(isinstance(result, Error) for result in results[-MANY:]):
            first = ahead or list(islice(following, 1))
            if not first:
                break
            known = self._statement(sql, timeout, first[0])
            if isinstance(known, Result):
                results.append(known)
                ahead = []
                continue
            try:
                name, calls, ahead = known.calls(chain(first, following), self._statements.any_key)
            except SqlError as error:
                return [*results, error]
            answers = self.call_many(name, calls, return_exceptions=True, timeout=timeout)
            for answer, (*_, parameters) in zip(answers, calls, strict=True):
                failed = isinstance(answer, Error)
                results.append(in_its_words(answer, parameters) if failed else known.result(answer))
        return results

    # ── the cluster ────────────────────────────────────────────────────────────────────────────────────────────────

    def procedures(self) -> list[ProcedureInfo]:
        """The procedures that are loaded, by name."""
        call = _LookupCall()
        self._run(call, lambda now: self._connection.lookup(call, "", now, self._timeout))
        return sorted(self._connection.cluster.procedures.values(), key=lambda info: info.name)

    def status(self) -> dict[str, Any]:
        """The state of every process of the cluster, as `voltpy status --json` prints it."""
        return self._admin("status", {})

    def stop(self) -> None:
        """Stops the cluster, cleanly."""
        self._admin("stop", {})

    def load_procedures(self, source: str, path: str) -> dict[str, Any]:
        """Replaces the procedures by those in `source`, in all partitions or none. `path` names it in tracebacks.

        Raises SchemaError for a source that can't be loaded; then nothing has changed.
        """
        return self._admin("load_procedures", {"source": source, "path": path})

    def begin_snapshot(self, directory: str, pid: int, lease_s: float) -> dict[str, Any]:
        """Makes every partition hold a checkpoint (see `voltpy.snapshot_taking`), until `lease_s` pass in silence.

        `directory` and `pid` say in messages who copies. Raises ClusterError while another snapshot is under way.
        """
        return self._admin("begin_snapshot", {"directory": directory, "pid": pid, "lease_s": lease_s})

    def renew_snapshot(self, snapshot: int) -> dict[str, Any]:
        """Tells that somebody still copies, and how the snapshot is: its states are in `voltpy.snapshot_holding`."""
        return self._admin("renew_snapshot", {"snapshot": snapshot})

    def end_snapshot(self, snapshot: int, reason: str = "") -> dict[str, Any]:
        """Lets the checkpoints go. Whether they were held to the end is for `renew_snapshot` to tell.

        `reason`: why it came to nothing, if it did.
        """
        return self._admin("end_snapshot", {"snapshot": snapshot, "reason": reason})

    def close(self) -> None:
        """Ends the connection. Calls under way fail; any later one raises Unavailable. May be called again."""
        if self._links.orphaned:
            return
        self._refuse_inside()
        self._end("the client was closed")
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def __repr__(self) -> str:
        return f"<voltpy.Client of {self._links.address.url}{', closed' if self._poller.closed else ''}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a voltpy.Client is a connection and can't be pickled or copied: connect again where it goes")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ── one caller ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _run(self, call: _Waiting, start: Callable[[float], None]) -> Any:
        self._check_open()
        self._refuse_to_wait()
        try:
            with self._mutex:
                self._check_open()
                now = monotonic()
                alone = self._poller.take(get_ident())
                if alone:
                    self._look(now)
                    start(now)
                    self._links.flush(now)
                else:
                    start(now)
                    self._hand_over(now)
                    call.lock = _locked() if not call.done else None
            if alone:
                self._poll_for(call)
            if call.lock is not None:
                call.lock.acquire()
        except BaseException:
            self._give_up(call)
            raise
        if call.error is not None:
            raise call.error
        return call.value

    def _poll_for(self, call: _Waiting, sleep: tuple[select.poll, float] | None = None) -> None:
        """Polls until the call is settled, or until the I/O thread has to take over.

        `sleep`: that of `_prepare_sleep`, if it was asked already.
        """
        events: list[tuple[int, int]] | None = None
        if sleep is not None:
            events = self._busy_poll.wait(*sleep)
        settled: list[Pending] = []
        try:
            while True:
                with self._mutex:
                    if events is not None:
                        self._wake_up(events, monotonic())
                    if call.done or self._poller.role is YIELDING:
                        if not call.done:
                            call.lock = _locked()
                        self._leave(self._connection.busy())
                        self._take_settled(settled)
                        break
                    sleep = self._prepare_sleep(monotonic())
                events = self._busy_poll.wait(*sleep)
            _deliver(settled)
        except BaseException:
            _deliver(settled)
            raise

    def _look(self, now: float) -> None:
        """While nobody polled, a partition may have died, or the procedures may have changed."""
        self._refresh_poll()
        if self._poll.poll(0) or now >= self._links.next_time:
            self._links.pump(now)
        self._looked_at = now

    def _hand_over(self, now: float) -> None:
        """Leaves what is queued to the poller, but for full frames."""
        if self._connection.unsent.urgent:
            self._links.flush(now)
        self._carry_out(self._poller.need_io())

    def _leave(self, busy: bool) -> None:
        """Stops being the poller, if we are; somebody else has to poll if the client is `busy`."""
        duty = self._poller.leave(get_ident(), busy)
        if duty is not NOTHING:
            self._carry_out(duty)

    def _carry_out(self, duty: Duty) -> None:
        if duty is START:
            self._start_io()
        elif duty is DISPOSE:
            self._dispose()
        elif duty is not NOTHING:
            os.write(self._wake_out, b"\0")

    def _give_up(self, given_up: Pending | Batch) -> None:
        """An interrupt, or another error: nobody waits for that any more. What others wait for goes on."""
        settled: list[Pending] = []
        try:
            with self._mutex:
                if isinstance(given_up, Batch):
                    self._connection.abandon(given_up)
                    self._batches = [(batch, lock) for batch, lock in self._batches if batch is not given_up]
                else:
                    self._connection.withdraw(given_up)
                self._leave(self._connection.busy())
                self._take_settled(settled)
            _deliver(settled)
        except BaseException:  # no thread can be started, or there was a second interrupt
            if self._poller.thread == get_ident():
                with self._mutex:
                    self._poller.end()
                self._end("no thread could be started for it")
            raise

    # ── call_many ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _advance(self, batch: Batch, source: Any, settled: list[Pending], *, stop_at_error: bool) -> bool:
        """Reads some rows, sends what makes a frame, waits where there is no room for more. False: all is settled.

        The other calls that this settles are added to `settled`, and delivered.
        """
        connection = self._connection
        room = connection.room(batch)
        # Without the mutex, and without being the poller: the iterable is the user's, and may take its time.
        rows = [] if batch.finished or room <= 0 else list(islice(source, min(room, ROWS_A_TURN)))
        lock: threading.Lock | None = None
        with self._mutex:
            self._check_open()
            now = monotonic()
            alone = self._poller.take(get_ident())
            if alone and now - self._looked_at > FRESH_S:
                self._look(now)
            if rows:
                connection.fill(batch, rows, now)
            elif room > 0:
                batch.finished = True
            if batch.failed and stop_at_error and not batch.finished:
                connection.drop_unsent(batch)
            if batch.finished or connection.room(batch) <= 0:
                connection.push(batch, now)
            self._links.flush(now)
            over = batch.finished and batch.left == 0
            wait = not over and (batch.finished or connection.room(batch) <= 0)
            self._take_settled(settled)
            sleep: tuple[select.poll, float] | None = None
            if not alone:
                if wait:
                    lock = _locked()
                    self._batches.append((batch, lock))
                # The flush may have taken in what the poller waits for, or have opened what it does not watch.
                if wait or self._poller.role is CALLER or self._links.generation != self._generation:
                    self._carry_out(self._poller.need_io())
            elif wait and not settled:  # a callback of what has settled may call, which the poller can't
                sleep = self._prepare_sleep(now)
            else:
                self._pause()
        _deliver(settled)
        if lock is not None:
            lock.acquire()
        elif sleep is not None:
            poll, wait_ms = sleep
            events = poll.poll(wait_ms)
            with self._mutex:
                self._wake_up(events, monotonic())
                self._pause()
                self._take_settled(settled)
            _deliver(settled)
        return not over

    def _pause(self) -> None:
        """Stops being the poller for as long as the user's iterable is read; whoever comes meanwhile may take over."""
        self._leave(self._connection.outcomes.outstanding > 0)

    def _statement(self, sql: str, timeout: float | None, parameters: Sequence[Any]) -> KnownStatement | Result:
        """What is known of the statement; of one that changes the schema, its answer."""
        with self._mutex:
            known = self._statements.get(sql, self._connection.cluster.catalog_version)
        if known is None:
            if changes_schema(sql, parameters):
                return schema_changed(self._admin("change_schema", {"text": sql}, timeout)["kind"])
            answer = self.call(PLAN, sql, timeout=timeout)
            with self._mutex:
                known = self._statements.learn(sql, answer)
        return known

    def _info(self, name: str, timeout: float) -> ProcedureInfo:
        info = self._connection.cluster.procedures.get(name)
        if info is None:
            call = _LookupCall()
            found: ProcedureInfo = self._run(call, lambda now: self._connection.lookup(call, name, now, timeout))
            return found
        return info

    # ── sleeping ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _refresh_poll(self) -> None:
        links = self._links
        if self._generation != links.generation:
            self._generation = links.generation
            self._poll = poll = select.poll()
            poll.register(self._wake_in, select.POLLIN)
            self._by_fd = links.fds()
            for fd, link in self._by_fd.items():
                poll.register(fd, select.POLLIN | select.POLLOUT if link.wants_to_write else select.POLLIN)
            links.bury()

    def _prepare_sleep(self, now: float) -> tuple[select.poll, float]:
        links = self._links
        if self._generation != links.generation:
            self._refresh_poll()
        self._poller.asleep = True
        # As min and max have it, at a third of their price.
        until, alarm = now + SLICE_S, self._connection.alarm.time
        if alarm < until:
            until = alarm
        if links.next_time < until:
            until = links.next_time
        return self._poll, (until - now) * 1000.0 if until > now else 0.0

    def _wake_up(self, events: list[tuple[int, int]], now: float) -> None:
        self._poller.asleep = False
        self._looked_at = now
        links = self._links
        for fd, _mask in events:
            link = self._by_fd.get(fd)
            if link is not None:
                links.arrived(link, fd, now)
            elif fd == self._wake_in:
                os.read(self._wake_in, 4096)
        if not events:
            links.pump(now)  # a slice is over
        elif now >= self._connection.alarm.time or now >= links.next_time:
            links.step(now)
        if self._connection.unsent.due:
            links.flush(now)

    # ── the I/O thread ─────────────────────────────────────────────────────────────────────────────────────────────

    def _start_io(self) -> None:
        self._contended_at = monotonic()
        thread = threading.Thread(target=self._serve, name="voltpy-io", daemon=True)
        thread.start()
        self._poller.started()
        self._thread = thread

    def _serve(self) -> None:
        with self._mutex:
            if not self._poller.begin(get_ident()):
                return
            self._thread = threading.current_thread()
        events: list[tuple[int, int]] = []
        idle = False
        try:
            while True:
                settled: list[Pending] = []
                with self._mutex:
                    now = monotonic()
                    self._wake_up(events, now)
                    idle = self._is_idle(now)
                    if idle:
                        self._thread = None
                        self._carry_out(self._poller.end())
                    else:
                        poll, wait_ms = self._prepare_sleep(now)
                    self._take_settled(settled)
                _deliver(settled)
                if idle:
                    return
                events = poll.poll(wait_ms)
        finally:
            if not idle:  # a defect: nobody may be left waiting for a thread that is gone
                with self._mutex:
                    duty = self._poller.end()
                self._end("the client's I/O thread failed")
                self._carry_out(duty)

    def _is_idle(self, now: float) -> bool:
        if self._poller.closed:
            return True
        connection = self._connection
        if connection.outcomes.outstanding > 1 or self._batches:
            self._contended_at = now
        return not connection.busy() and not self._batches and now - self._contended_at > IO_IDLE_S

    def _take_settled(self, settled: list[Pending]) -> None:
        """Adds what has settled to the list, for `_deliver`."""
        if self._batches:
            waiting = []
            for batch, lock in self._batches:
                ready = batch.left == 0 if batch.finished else self._connection.room(batch) >= CALLS_A_FRAME
                if ready:
                    _wake(lock)
                else:
                    waiting.append((batch, lock))
            self._batches = waiting
        if self._submitters and self._connection.outcomes.outstanding <= SUBMITTED_CALLS // 2:
            self._room.notify_all()
        settled += self._connection.outcomes.take()

    def _release_batches(self) -> None:
        """The client is closed: their threads look, and raise."""
        for _batch, lock in self._batches:
            _wake(lock)
        self._batches.clear()

    def _wait_for_room(self) -> None:
        if self._poller.thread == get_ident():
            return  # a callback: it would wait for itself
        self._submitters += 1
        try:
            self._room.wait_for(
                lambda: self._poller.closed or self._connection.outcomes.outstanding <= SUBMITTED_CALLS // 2
            )
        finally:
            self._submitters -= 1

    # ── opening and closing ────────────────────────────────────────────────────────────────────────────────────────

    def _open(self) -> None:
        began = monotonic()
        connection = self._connection
        links = self._links
        while not links.address.listens():
            if monotonic() >= began + connection.retry_s:
                raise links.address.silent()
            time.sleep(LISTENS_AGAIN_S)
        limit = max(self._timeout, connection.retry_s)
        direct_until = inf
        while True:
            with self._mutex:
                now = monotonic()
                links.pump(now)
                if connection.cluster.topology is not None:
                    direct_until = min(direct_until, now + DIRECT_WAIT_S)
                    if now >= direct_until or not links.undecided():
                        return
                if connection.rejected is not None:
                    raise connection.rejected
                if now - began >= limit:
                    raise Unavailable(f"no answer from {links.address.url} within {limit:g} s")
                poll, wait_ms = self._prepare_sleep(now)
                self._poller.asleep = False
                left_ms = (min(began + limit, direct_until) - now) * 1000.0
            poll.poll(max(0.0, min(wait_ms, left_ms)))

    def _end(self, why: str) -> None:
        """Ends all calls; the poller closes the sockets, if there is one."""
        settled: list[Pending] = []
        try:
            with self._mutex:
                if self._poller.closed:
                    return
                duty = self._poller.close()
                self._connection.close(why)
                self._take_settled(settled)
                self._release_batches()
                self._room.notify_all()
                self._carry_out(duty)
        finally:
            _deliver(settled)

    def _dispose(self) -> None:
        self._links.close()
        os.close(self._wake_in)
        os.close(self._wake_out)

    def _check_open(self) -> None:
        """Not under the mutex: in a forked child it may be locked for ever."""
        if self._links.orphaned:
            raise Unavailable("this client was made by the parent process: after a fork, connect again")
        if self._poller.closed:
            raise Unavailable("the client is closed")

    def _refuse_inside(self) -> None:
        """Amid the client's own work in this thread: nothing is as it should be then."""
        if self._is_inside():
            raise Reentered("a signal handler, or a finalizer, uses the client amid a call of the same thread")

    def _refuse_to_wait(self) -> None:
        """Nor may a thread wait while others, or a call of its own, wait for it to poll."""
        self._refuse_inside()
        if self._poller.thread == get_ident():
            raise Reentered(
                "a signal handler can't call amid a call of the same client in the same thread, nor can a future's "
                "callback: use submit there, or another client"
            )

    def _admin(self, command: str, body: dict[str, Any], timeout: float | None = None) -> dict[str, Any]:
        call = _CommandCall()
        limit = self._timeout if timeout is None else _positive(timeout)
        answer: dict[str, Any] = self._run(call, lambda now: self._connection.admin(call, command, body, now, limit))
        return answer


def _deliver(settled: list[Pending]) -> None:
    """Wakes those who wait; a second time does no harm. Not under the mutex: a future's callbacks may call."""
    for call in settled:
        if isinstance(call, _Submitted):
            future = call.future
            if future.done():
                continue
            if call.error is None:
                future.set_result(call.value)
            else:
                _set_error(future, call.error)
        else:
            waiting: Any = call
            if waiting.lock is not None:
                _wake(waiting.lock)


def _wake(lock: threading.Lock) -> None:
    """Whoever sleeps on it, unless he is awake: then he has it, and needs it no more."""
    if lock.locked():
        lock.release()


def _set_error(future: Future[Any], error: Error) -> None:
    if future.running() or future.set_running_or_notify_cancel():
        future.set_exception(error)


def _locked() -> threading.Lock:
    lock = threading.Lock()
    lock.acquire()
    return lock


def _positive(timeout: float) -> float:
    if not isinstance(timeout, float | int) or not 0 < timeout < inf:
        raise ValueError(f"a timeout is a positive number of seconds, not {timeout!r}")
    return timeout
