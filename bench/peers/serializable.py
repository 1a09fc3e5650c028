"""Calls to PostgreSQL over several connections, each a SERIALIZABLE transaction, made again where that fails.

A connection has some calls on their way at a time, with a sync after each one: the server takes the next one without
waiting for the client, and each commits by itself. What the function raises (SQLSTATE P0001) is an Aborted.

Two ways of dealing out the calls are measured: to whichever connection has room, and each home (the first argument)
to a connection of its own, so that only transactions of different homes are ever under way at the same time.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from selectors import EVENT_READ, EVENT_WRITE, DefaultSelector
from time import perf_counter
from typing import Any

from psycopg.pq import DiagnosticField, ExecStatus

from bench.peers.dealer import Dealer
from bench.workload import BenchError, Call, CallStream, Outcome
from voltpy.errors import Aborted

RETRIED = (b"40001", b"40P01")  # serialization_failure, deadlock_detected
RAISED = b"P0001"
CALLS_A_CONNECTION = 8


class Session:
    """One connection in pipeline mode. `sent` are the calls that wait for an answer, in their order."""

    def __init__(self, connection: Any, statements: dict[str, str]) -> None:
        self.pgconn = connection.pgconn
        self.sent: deque[Call] = deque()
        self._answer: Any = None  # to the first of `sent`, until its sync
        self._statements = {name: name.encode() for name in statements}
        for name, sql in statements.items():
            prepared = self.pgconn.prepare(name.encode(), numbered(sql).encode())
            if prepared.status != ExecStatus.COMMAND_OK:
                raise BenchError(f"postgres: {prepared.error_message.decode(errors='replace')}")
        self.pgconn.enter_pipeline_mode()
        self.pgconn.nonblocking = 1

    def send(self, call: Call) -> None:
        name, arguments = call
        self.pgconn.send_query_prepared(self._statements[name], [as_text(value) for value in arguments])
        self.pgconn.pipeline_sync()
        self.sent.append(call)

    def receive(self, outcome: Outcome) -> list[Call]:
        """Takes what has arrived; returns the calls that have to be made again."""
        pgconn = self.pgconn
        pgconn.consume_input()
        failed: list[Call] = []
        while self.sent and not pgconn.is_busy():
            result = pgconn.get_result()
            if result is None:  # the end of one statement's results
                continue
            if result.status != ExecStatus.PIPELINE_SYNC:
                self._answer = result
                continue
            call, answer = self.sent.popleft(), self._answer
            if answer.status == ExecStatus.TUPLES_OK:
                outcome.calls.append(call)
                outcome.results.append(answer.get_value(0, 0))
                continue
            message = answer.error_message.decode(errors="replace")
            state = answer.error_field(DiagnosticField.SQLSTATE)
            if state in RETRIED:
                failed.append(call)
            elif state == RAISED:
                outcome.calls.append(call)
                outcome.results.append(Aborted(message))
            else:
                raise BenchError(f"postgres: {call[0]}: {message}")
        return failed

    def leave(self) -> None:
        self.pgconn.nonblocking = 0
        self.pgconn.exit_pipeline_mode()


def drive(sessions: Sequence[Session], stream: CallStream, seconds: float, *, by_home: bool) -> Outcome:
    """Keeps all connections busy for `seconds`, and then waits for what was taken, repetitions included."""
    outcome = Outcome([], [], [])
    dealer = Dealer(sessions, stream, by_home=by_home)
    deadline = perf_counter() + seconds
    with DefaultSelector() as selector:
        for session in sessions:
            selector.register(session.pgconn.socket, EVENT_READ)
        ready = {session.pgconn.socket for session in sessions}
        while ready:
            for number, session in enumerate(sessions):
                if session.pgconn.socket not in ready and session.sent:
                    continue
                dealer.put_back(number, session.receive(outcome))
                while len(session.sent) < CALLS_A_CONNECTION:
                    call = dealer.next(number, perf_counter() < deadline)
                    if call is None:
                        break
                    session.send(call)
                unsent = session.pgconn.flush()
                selector.modify(session.pgconn.socket, EVENT_READ | EVENT_WRITE if unsent else EVENT_READ)
            under_way = any(session.sent for session in sessions) or not dealer.is_empty()
            ready = {key.fd for key, _ in selector.select()} if under_way else set()
    return outcome


def as_text(value: Any) -> bytes:
    """A value as PostgreSQL reads it; a list of numbers as an array."""
    if isinstance(value, list):
        return b"{%s}" % ",".join(map(str, value)).encode()
    return str(value).encode()


def numbered(sql: str) -> str:
    """psycopg writes parameters %s, the server $1, $2 …"""
    parts = re.split(r"%s", sql)
    return parts[0] + "".join(f"${number}{part}" for number, part in enumerate(parts[1:], start=1))
