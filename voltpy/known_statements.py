"""What a client knows of the statements that it has executed: which call runs one, and what it answers with."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any

import msgspec
from msgspec import Struct

from voltpy.builtin import EXECUTE, EXECUTE_ALL, EXECUTE_KEYS, QUERY, QUERY_ALL, QUERY_KEYS
from voltpy.calls import UNENCODABLE
from voltpy.errors import BadArguments, DataError, Error, ProtocolError, SqlError
from voltpy.result import Result
from voltpy.sql.plan import Routing
from voltpy.sql.values import beyond_int
from voltpy.wire import encode

_OURS = re.compile(r"voltpy\.\w+(?=[: ])")  # what a message begins with that is about the call
# What may stand before a statement's first word. Only the planner reads comments in each other.
_BLANKS = r"(?:\s|--[^\r\n]*|/\*.*?\*/)*+"
_CHANGES_SCHEMA = re.compile(rf"{_BLANKS}(?:CREATE|DROP|ALTER|PARTITION)\b", re.IGNORECASE | re.DOTALL)
_EXPLAINS = re.compile(rf"{_BLANKS}EXPLAIN\b", re.IGNORECASE | re.DOTALL)

MANY = 1024  # calls of one statement that are under way together
MAX_KNOWN = 4096
MAX_KNOWN_CHARACTERS = 16 << 20


class Outline(Struct, array_like=True, frozen=True):
    """What voltpy.plan answers: the kind of statement, its columns, their types, how many parameters it has."""

    kind: str
    columns: list[str]
    types: list[str]
    parameters: int
    routing: Routing


class KnownStatement:
    """One statement. `call` says how it is run, `result` takes the answer."""

    __slots__ = (
        "_alone", "_by_key", "_by_keys", "_everywhere", "_outline", "_parameters", "_routing", "text", "writes",
    )  # fmt: skip

    def __init__(self, text: str, answer: Any) -> None:
        """`answer`: of voltpy.plan(text). Raises ProtocolError."""
        try:
            outline = msgspec.convert(answer, Outline)
        except msgspec.ValidationError as error:
            raise ProtocolError(f"not what a plan's outline looks like: {error}") from None
        self.text = text
        self._outline = outline
        self._parameters = outline.parameters
        self._routing = routing = outline.routing
        self.writes = outline.kind not in ("select", "explain")
        names = (EXECUTE, EXECUTE_KEYS, EXECUTE_ALL) if self.writes else (QUERY, QUERY_KEYS, QUERY_ALL)
        self._by_key, self._by_keys, self._everywhere = names  # procedures
        keys = routing.keys
        # The usual case: the parameter that alone is the key.
        self._alone = keys[0].parameter if routing.kind == "keys" and len(keys) == 1 else None

    def call(self, parameters: Sequence[Any], any_key: int) -> tuple[str, tuple[Any, ...]]:
        """(procedure, arguments). `any_key` is one for a statement that any partition can run. Raises SqlError."""
        if len(parameters) != self._parameters:
            if not parameters and self._outline.kind == "explain":  # estimates without values, or says what is wrong
                return self._everywhere, (self.text, parameters)
            raise SqlError(f"the statement has {self._parameters} parameters, and {len(parameters)} were given")
        if self._alone is not None:
            key = parameters[self._alone]
            if type(key) is int:
                return self._by_key, (key, self.text, parameters)
        routing = self._routing
        if routing.kind == "everywhere":
            return self._everywhere, (self.text, parameters)
        keys = routing.values(parameters) or [any_key]
        if len(keys) == 1:
            return self._by_key, (keys[0], self.text, parameters)
        return self._by_keys, (keys, self.text, parameters)

    def calls(
        self, rows: Iterator[Sequence[Any]], any_key: Callable[[], int]
    ) -> tuple[str, list[tuple[Any, ...]], list[Sequence[Any]]]:
        """(procedure, arguments of several calls that may be under way together, the rows that were taken too far).

        None of them has a key that another one has, so that they may run in any order. Raises SqlError where the first
        row does not fit.
        """
        name = ""
        calls: list[tuple[Any, ...]] = []
        seen: set[Any] = set()
        for row in rows:
            try:
                procedure, arguments = self.call(row, any_key())
            except SqlError:
                if not calls:
                    raise
                return name, calls, [row]
            keys = () if procedure == self._everywhere else arguments[0]
            keys = keys if isinstance(keys, list) else (keys,)
            if calls and (procedure != name or not keys or not seen.isdisjoint(keys)):
                return name, calls, [row]
            name = procedure
            calls.append(arguments)
            seen.update(keys)
            if len(calls) == MANY:
                break
        return name, calls, []

    def result(self, answer: Any) -> Result:
        """What the call's answer says. Raises ProtocolError where it can't be one."""
        outline = self._outline
        try:
            if self.writes:
                count, rows = answer
                return Result(outline.columns, list(map(tuple, rows)), count, outline.types, outline.kind)
            return Result(outline.columns, list(map(tuple, answer)), len(answer), outline.types, outline.kind)
        except (TypeError, ValueError):
            raise ProtocolError("what was answered is not what a statement answers") from None


class KnownStatements:
    """By text, of one client, for one catalog."""

    def __init__(self) -> None:
        self._known: dict[str, KnownStatement] = {}
        self._characters = 0
        self._catalog_version = 0
        self._executed = 0

    def get(self, text: str, catalog_version: int) -> KnownStatement | None:
        """None: ask voltpy.plan, and `learn` its answer."""
        if catalog_version != self._catalog_version:
            self._known.clear()
            self._characters = 0
            self._catalog_version = catalog_version
        return self._known.get(text)

    def learn(self, text: str, answer: Any) -> KnownStatement:
        """Keeps what voltpy.plan(text) answers; all others are forgotten when they are too many.

        Raises ProtocolError for what is no answer.
        """
        statement = KnownStatement(text, answer)
        self._characters += len(text)
        if len(self._known) >= MAX_KNOWN or self._characters > MAX_KNOWN_CHARACTERS:
            self._known.clear()
            self._characters = len(text)
        self._known[text] = statement
        return statement

    def any_key(self) -> int:
        """Another one each time, so that all partitions have their share."""
        self._executed += 1
        return self._executed


def changes_schema(text: Any, parameters: Sequence[Any]) -> bool:
    """Whether the statement changes the schema, so that no partition is asked for it. Raises SqlError."""
    if not isinstance(text, str) or _CHANGES_SCHEMA.match(text) is None:
        return False
    if parameters:
        raise SqlError("a statement that changes the schema has no parameters")
    return True


def is_explained(text: Any) -> bool:
    """Whether the statement begins with EXPLAIN, so that it answers a plan."""
    return isinstance(text, str) and _EXPLAINS.match(text) is not None


def schema_changed(kind: str) -> Result:
    """What a statement answers that changes the schema."""
    return Result([], [], 0, [], kind)


def checked_parameters(parameters: Iterable[Any]) -> Sequence[Any]:
    """A statement's parameters as they travel.

    Raises BadArguments for a bare value: a text is hardly meant as a list of its characters. Raises DataError for a
    datetime without zone: it would travel as text, which is taken as UTC, and is hardly meant so.
    """
    if type(parameters) is not tuple and type(parameters) is not list:
        if isinstance(parameters, str | bytes | dict) or not isinstance(parameters, Iterable):
            raise BadArguments(f"parameters are a tuple or a list of values, not {type(parameters).__name__}")
        parameters = list(parameters)
    if datetime in map(type, parameters):
        for position, value in enumerate(parameters, 1):
            if type(value) is datetime and value.tzinfo is None:
                raise DataError(f"parameter {position}: {value!r} has no time zone")
    return parameters


def in_its_words(error: Error, parameters: Sequence[Any]) -> Error:
    """What a statement with these parameters raises where the call that was to run it raises this error.

    The call is of a procedure that nobody but us has heard of: it is called the statement, and what can't be sent is
    named as a parameter.
    """
    if isinstance(error, BadArguments):
        for position, value in enumerate(parameters, 1):
            try:
                encode(value)
            except UNENCODABLE as reason:
                if isinstance(value, int):
                    return DataError(f"parameter {position}: {beyond_int(value)}")
                return DataError(f"parameter {position}: {type(value).__name__} can't be sent: {reason}")
    text = str(error)
    ours = _OURS.match(text)
    if ours is not None:
        error.args = (f"the statement{text[ours.end() :]}",)
    return error
