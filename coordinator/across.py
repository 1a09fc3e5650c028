"""Statements in the coordinator: on borrowed rows, or made of what the partitions' fragments send.

in a batch             the whole statement runs on `tx`, as any code of a procedure: rows are borrowed by key, tables
                       by scan, and it sees what the batch has written
in a read round        nothing is written, so a SELECT that can be taken apart is: each partition that the call may
                       use runs its fragment, all of them at once, and what they sent is merged here
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from coordinator.borrowed import Tables
from coordinator.wishes import FragmentWish
from voltpy.errors import CODES, DataError, ProtocolError
from voltpy.heartbeat import CALL_NUMBER, CLIENT_ID, Words
from voltpy.row import encode
from voltpy.schema import Schema
from voltpy.sql.plan import Plan, streams
from voltpy.sql.statements import Prepared, Statements

_UNSENDABLE = (TypeError, ValueError, OverflowError, RecursionError)


class StatementsAcross(Statements):
    across = True

    def __init__(self, schema: Schema, plan_of: Callable[[str], Plan], tables: Tables, running: Words) -> None:
        super().__init__(schema, plan_of)
        self.undo = tables
        self._tables = tables
        self._running = running

    def run(self, prepared: Prepared, tx: Any, parameters: Sequence[Any]) -> Any:
        tables = self._tables
        if not tables.in_round or prepared.plan.merge is None or not tables.allowed:
            return super().run(prepared, tx, parameters)
        prepared.check(parameters)
        call = None
        if prepared.uses_generated:
            call = self._running[CLIENT_ID], self._running[CALL_NUMBER], tx.now()
        wishes = _wishes(prepared, parameters, tables.allowed, call)
        if wishes is None:
            return super().run(prepared, tx, parameters)  # which says what is wrong with them
        answers = [tables.fragments.get(wish) for wish in wishes]
        sent: Any = _NOTHING
        if None in answers:
            tables.miss_all([wish for wish, answer in zip(wishes, answers, strict=True) if answer is None])
        else:
            for answer in answers:
                if isinstance(answer, tuple):
                    raise CODES.get(answer[0], ProtocolError)(answer[1])
            sent = streams(answers)  # type: ignore[arg-type]
        try:
            return prepared.merge(tx, parameters, sent)
        except TypeError as error:
            raise DataError(f"values of different types meet: {error}") from error

    def wishes(self, text: str, parameters: list[Any], allowed: frozenset[int]) -> list[FragmentWish] | None:
        """What a read round is asked for this statement alone; None where only a run can tell."""
        prepared = self.prepared.get(text)
        if prepared is None or prepared.plan.merge is None or prepared.uses_generated:
            return None
        if len(parameters) != prepared.parameters:
            return None
        return _wishes(prepared, parameters, allowed, None)


def _wishes(
    prepared: Prepared, parameters: Sequence[Any], allowed: frozenset[int], call: tuple[int, int, datetime] | None
) -> list[FragmentWish] | None:
    """A fragment of each partition, the first of which speaks for what all have a copy of; None: it can't be sent."""
    try:
        encoded = encode(list(parameters))
    except _UNSENDABLE:
        return None
    first = min(allowed, default=0)
    text = prepared.plan.text
    return [FragmentWish(partition, text, encoded, partition == first, call) for partition in sorted(allowed)]


class _Nothing:
    """What is merged on stand-ins: no rows from anywhere, in however many streams the statement has."""

    def __getitem__(self, stream: int) -> list[Any]:
        return []


_NOTHING = _Nothing()
