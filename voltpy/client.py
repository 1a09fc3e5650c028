"""The client for threads: `connect` gives one, and any number of threads may share it.

What they share, and how they wait, is in voltpy.shared_connection.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from itertools import chain, islice
from math import inf
from types import TracebackType
from typing import Any, NoReturn, Self

from voltpy.address import Address
from voltpy.batch import Batch
from voltpy.builtin import PLAN
from voltpy.errors import Error, SqlError
from voltpy.known_statements import (
    MANY,
    KnownStatement,
    KnownStatements,
    changes_schema,
    checked_parameters,
    in_its_words,
    schema_changed,
)
from voltpy.messages import ProcedureInfo
from voltpy.result import Result
from voltpy.shared_connection import SharedConnection
from voltpy.waiting import WaitingCommand, WaitingEverywhere, WaitingLookup

BUSY_POLL_US, BUSY_POLL_MAX_US = 200.0, 100_000


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
        self._statements = KnownStatements()
        self._shared = SharedConnection(address, retry_s=retry_s, busy_poll_s=busy_poll_us / 1e6)
        self._connection = self._shared.connection
        self._shared.open(self._timeout)

    # ── calls ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def call(self, name: str, /, *args: Any, timeout: float | None = None) -> Any:
        """Calls a procedure where its keys are, be it in several partitions, and returns its result.

        Raises what voltpy.errors lists.
        """
        return self._shared.call(name, args, self._timeout if timeout is None else _positive(timeout))

    def submit(self, name: str, /, *args: Any) -> Future[Any]:
        """Starts a call. The future can be cancelled until the call is sent, which is soon.

        Waits while 16,384 calls are under way, except in a future's callback.
        """
        return self._shared.submit(name, args, self._timeout)

    def call_many(
        self, name: str, rows: Iterable[Any], *, return_exceptions: bool = False, timeout: float | None = None
    ) -> list[Any]:
        """Calls one procedure with each row of arguments (tuples or lists) and returns the results in order.

        `rows` is read as the calls go out. Each call has its own `timeout`. A call that fails puts its error in its
        place with `return_exceptions`; without, the first error is raised as soon as what was sent is settled: the
        other calls that were sent have run, or failed too, and the rest was not sent.
        """
        limit = self._timeout if timeout is None else _positive(timeout)
        batch = Batch(self._info(name, limit), limit)
        self._shared.run_many(batch, rows, stop_at_error=not return_exceptions)
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
        call = WaitingEverywhere(returns_errors=return_exceptions)
        limit = self._timeout if timeout is None else _positive(timeout)
        result: list[Any] = self._shared.run(
            call, lambda now: self._connection.everywhere(call, name, args, now, limit)
        )
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
        call = WaitingLookup()
        self._shared.run(call, lambda now: self._connection.lookup(call, "", now, self._timeout))
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
        self._shared.close()

    def __repr__(self) -> str:
        return f"<voltpy.Client of {self._shared.url}{', closed' if self._shared.is_closed else ''}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a voltpy.Client is a connection and can't be pickled or copied: connect again where it goes")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ── inside ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _statement(self, sql: str, timeout: float | None, parameters: Sequence[Any]) -> KnownStatement | Result:
        """What is known of the statement; of one that changes the schema, its answer."""
        self._shared.check_open()
        with self._shared.mutex:
            known = self._statements.get(sql, self._connection.cluster.catalog_version)
        if known is None:
            if changes_schema(sql, parameters):
                return schema_changed(self._admin("change_schema", {"text": sql}, timeout)["kind"])
            answer = self.call(PLAN, sql, timeout=timeout)
            with self._shared.mutex:
                known = self._statements.learn(sql, answer)
        return known

    def _info(self, name: str, timeout: float) -> ProcedureInfo:
        info = self._connection.cluster.procedures.get(name)
        if info is None:
            call = WaitingLookup()
            found: ProcedureInfo = self._shared.run(call, lambda now: self._connection.lookup(call, name, now, timeout))
            return found
        return info

    def _admin(self, command: str, body: dict[str, Any], timeout: float | None = None) -> dict[str, Any]:
        call = WaitingCommand()
        limit = self._timeout if timeout is None else _positive(timeout)
        answer: dict[str, Any] = self._shared.run(
            call, lambda now: self._connection.admin(call, command, body, now, limit)
        )
        return answer


def _positive(timeout: float) -> float:
    if not isinstance(timeout, float | int) or not 0 < timeout < inf:
        raise ValueError(f"a timeout is a positive number of seconds, not {timeout!r}")
    return timeout
