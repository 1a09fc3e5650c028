"""Statements that change the schema, waiting for their turn: one after another, each by what the one before has left.

No processes or sockets here: whoever hears of them tells the time, and sends the answers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from voltpy.data_directory import StoredProcedures
from voltpy.errors import Error
from voltpy.messages import Admin
from voltpy.schema import Schema, repartitioned
from voltpy.supervision import Supervision

CHANGE_WAIT_S = 5.0  # for processes that are being started, before a change of the schema is refused


class Stored(Protocol):
    """What is stored now (`voltpy.data_directory`)."""

    @property
    def schema(self) -> Schema: ...
    @property
    def procedures(self) -> StoredProcedures: ...
    @property
    def catalog_version(self) -> int: ...


class SchemaQueue:
    """`answer(message, body, error)` is called for those that come to an end at once; `error` is a class, or empty."""

    def __init__(self, stored: Stored, core: Supervision, answer: Callable[[Admin, dict[str, Any], str], None]) -> None:
        self._stored = stored
        self._core = core
        self._answer = answer
        self._waiting: deque[tuple[Admin, float]] = deque()  # until when for a process that is being started

    def add(self, message: Admin, now_s: float) -> None:
        self._waiting.append((message, now_s + CHANGE_WAIT_S))

    def begin_next(self, now_s: float) -> bool:
        """Answers the next one, or lets the core begin with it. False: there is none, or it has to wait."""
        if not self._waiting or self._core.is_loading:
            return False
        message, until_s = self._waiting[0]
        if not self._core.all_serve and now_s < until_s:
            return False
        self._waiting.popleft()
        self._begin(message, now_s)
        return True

    def _begin(self, message: Admin, now_s: float) -> None:
        from voltpy.sql.ddl_change import parse_change  # its tokenizer takes a while to load

        text, stored = message.body.get("text"), self._stored
        if not isinstance(text, str):
            return self._answer(message, {"message": "change_schema takes a text"}, "BadArguments")
        try:
            schema, kind = parse_change(text, stored.schema)
        except Error as error:
            return self._answer(message, {"message": str(error)}, type(error).__name__)
        if schema is stored.schema:
            return self._answer(message, {"kind": kind, "catalog_version": stored.catalog_version}, "")
        procedures = stored.procedures
        self._core.change_schema(
            message.number, schema, kind, procedures.source, procedures.path, now_s,
            cuts_first=bool(repartitioned(stored.schema, schema)),
        )  # fmt: skip
