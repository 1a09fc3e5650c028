"""Stored procedures: how one is declared, and how its arguments are decoded and checked.

    @procedure(partition_by="account")                                  one partition: where this argument's slot lives
    @procedure(partition_by=None, read_only=True, everywhere=True)      directed: a transaction in each partition
    @procedure, @procedure(partition_by=("source", "target"))           across partitions: a distributed transaction

The decorator returns the function itself with a `Declaration` attached, so a procedure stays a plain callable: a test
can call it with any object in the place of `tx`. What can be wrong about a procedure is said when it is declared or
loaded (voltpy.registry), as a SchemaError that names file, line and what to do; what can be wrong about a call is said
before the body runs, as BadArguments. What annotations say is voltpy.argument_types' business.

A directed procedure that may write a table without partition column is *joint* (see ProcedureInfo): the copies of that
table must stay equal.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, overload

import msgspec
from msgspec import Raw

from voltpy.argument_types import (
    NO_DEFAULT,
    check_key,
    default_text,
    is_immutable,
    parts_of_type,
    refused,
    resolved,
    type_text,
    with_limits,
)
from voltpy.errors import BadArguments, SchemaError
from voltpy.messages import Parameter, ProcedureInfo

Function = TypeVar("Function", bound=Callable[..., Any])

# What `tx` has besides the tables; a table name must be none of these to be reachable as an attribute.
TRANSACTION_NAMES = frozenset({"abort", "execute", "now", "random", "uuid", "unique_id"})

_MARK = "__voltpy_declaration__"
_TRANSACTION_PARAMETERS = ("tx", "_tx")
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

_encode = msgspec.msgpack.Encoder().encode
_split = msgspec.msgpack.Decoder(list[Raw]).decode

_declared: list[Callable[..., Any]] | None = None  # what the file that is being loaded has declared so far


class Declaration(msgspec.Struct, frozen=True):
    """What the decorator was told. `partition_by` holds parameter names; without any, all partitions take part."""

    partition_by: tuple[str, ...] = ()
    read_only: bool = False
    everywhere: bool = False


@overload
def procedure(function: Function, /) -> Function: ...
@overload
def procedure(
    *, partition_by: str | tuple[str, ...] | None = None, read_only: bool = False, everywhere: bool = False
) -> Callable[[Function], Function]: ...
def procedure(
    function: Function | None = None,
    /,
    *,
    partition_by: str | tuple[str, ...] | None = None,
    read_only: bool = False,
    everywhere: bool = False,
) -> Function | Callable[[Function], Function]:
    """Declares a function as a stored procedure and returns the function itself.

    `partition_by` names the arguments whose hash slots say where the procedure runs: in one partition where they agree,
    as one transaction across those partitions where they don't, across all partitions when it names none. An argument
    may be a list of keys. `everywhere=True` runs it in every partition, as an independent transaction in each, or as
    one where it writes copies that all have; `read_only=True` lets it change nothing. Raises SchemaError.
    """
    names = (partition_by,) if isinstance(partition_by, str) else tuple(partition_by or ())
    declaration = Declaration(names, read_only, everywhere)

    def declare(function: Function) -> Function:
        _check_declaration(function, declaration)
        setattr(function, _MARK, declaration)
        if _declared is not None:
            _declared.append(function)
        return function

    return declare if function is None else declare(function)


@contextmanager
def declaring() -> Iterator[list[Callable[..., Any]]]:
    """The functions that are declared meanwhile."""
    global _declared
    outer, _declared = _declared, []
    try:
        yield _declared
    finally:
        _declared = outer


def declaration_of(function: Callable[..., Any]) -> Declaration | None:
    """What its decorator was told; None when it is no procedure."""
    declaration: Declaration | None = getattr(function, _MARK, None)
    return declaration


def _check_declaration(function: Any, declaration: Declaration) -> None:
    """What can be said before annotations are resolved: they may name things that come later in the file."""
    body = inspect.unwrap(function) if callable(function) else function
    if not isinstance(body, types.FunctionType) or not isinstance(function, types.FunctionType):
        raise SchemaError(f"@procedure declares a function, not {function!r}; write it above a plain `def`")
    if not all(part.isidentifier() for part in function.__name__.split(".")):
        raise refused(function, "a procedure is called by its name and this one has none; write it as a `def`")
    if inspect.iscoroutinefunction(body) or inspect.isasyncgenfunction(body):
        raise refused(function, "a procedure runs start to end without waiting; write `def`, not `async def`")
    if inspect.isgeneratorfunction(body):
        raise refused(function, "it yields, and a procedure answers once; return a list instead")
    parameters = list(inspect.signature(function).parameters.values())
    for parameter in parameters:
        if parameter.kind not in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            raise refused(function, f"arguments travel by position: make {str(parameter)!r} a plain parameter")
    if not parameters or parameters[0].name not in _TRANSACTION_PARAMETERS:
        raise refused(function, "its first parameter is the transaction; name it tx")
    arguments = [parameter.name for parameter in parameters[1:]]
    if declaration.everywhere and declaration.partition_by:
        raise refused(function, "everywhere=True runs it in every partition: leave out partition_by, or everywhere")
    for name in declaration.partition_by:
        if not isinstance(name, str) or name not in arguments:
            has = f"its arguments are {', '.join(arguments)}" if arguments else "it has no arguments"
            raise refused(function, f"partition_by names {name!r}; {has}")
    for parameter in parameters[1:]:
        if parameter.default is NO_DEFAULT:
            continue
        if parameter.name in declaration.partition_by:
            raise refused(function, f"{parameter.name!r} decides where it runs, so every call names it: no default")
        if type(parameter.default).__hash__ is None:
            raise refused(function, f"the default of {parameter.name!r} can change from call to call; default to None")


class Procedure:
    """A procedure of a registry: its body, and the decoders that its signature asks for.

    `key_positions` are the keys' places among the arguments (`tx` does not count): none for a directed procedure, and
    for one in which every partition takes part.
    `arguments_are_immutable`: no argument can hold a list, dict or other value that the body could change, so a rerun
    may be given the same tuple again; otherwise decode the arguments again.
    """

    __slots__ = (
        "_decode_arguments",
        "_decoders_of_calls",
        "_defaults",
        "_types",
        "arguments_are_immutable",
        "body",
        "everywhere",
        "info",
        "key_positions",
        "name",
        "read_only",
    )

    def __init__(self, body: Callable[..., Any], namespace: dict[str, Any], *, joint: bool = False) -> None:
        """`joint` is for directed procedures (ProcedureInfo). Raises SchemaError for a bad signature."""
        declaration: Declaration = getattr(body, _MARK)
        parameters = list(inspect.signature(body).parameters.values())[1:]
        annotations = [resolved(body, parameter, namespace) for parameter in parameters]
        names = [parameter.name for parameter in parameters]
        self.name = body.__name__
        self.body = body
        self.key_positions = [names.index(name) for name in declaration.partition_by]
        self.everywhere = declaration.everywhere
        self.read_only = declaration.read_only
        for position in self.key_positions:
            check_key(body, names[position], annotations[position])

        types_of_arguments = tuple(with_limits(annotation) for annotation in annotations)
        self.arguments_are_immutable = True
        for name, annotation, type_ in zip(names, annotations, types_of_arguments, strict=True):
            parts = parts_of_type(body, name, annotation, type_)
            self.arguments_are_immutable &= all(is_immutable(part) for part in parts)
        self._types = [msgspec.msgpack.Decoder(type_).decode for type_ in types_of_arguments]
        self._defaults = tuple(p.default for p in parameters if p.default is not NO_DEFAULT)
        self._decode_arguments = _decoder_of_arguments(types_of_arguments).decode
        # By how many arguments are left out at the end; the one that fitted last comes first.
        self._decoders_of_calls = [
            (
                _decoder_of_calls(types_of_arguments[: len(types_of_arguments) - missing]).decode,
                self._defaults[len(self._defaults) - missing :],
            )
            for missing in range(len(self._defaults) + 1)
        ]
        self.info = ProcedureInfo(
            self.name,
            self.key_positions,
            self.everywhere,
            self.read_only,
            [
                Parameter(
                    parameter.name,
                    type_text(parameter, annotation),
                    parameter.default is NO_DEFAULT,
                    default_text(parameter.default),
                )
                for parameter, annotation in zip(parameters, annotations, strict=True)
            ],
            inspect.getdoc(body) or "",
            joint and declaration.everywhere and not declaration.read_only,
        )

    def decode_many(self, raw: Raw | bytes, calls: int = -1) -> list[tuple[Any, ...]]:
        """The arguments of many calls, out of a MessagePack array of argument arrays, in one pass.

        With `calls` the array must announce exactly so many, which is known before memory is spent on it. Raises
        msgspec.ValidationError if any of it is wrong, without saying whose: `decode_one` does.
        """
        if calls >= 0 and announced_length(raw) != calls:
            raise msgspec.ValidationError(f"expected the arguments of {calls} calls")
        decoders = self._decoders_of_calls
        for place, (decode, defaults) in enumerate(decoders):
            try:
                decoded = decode(raw)
            except Exception:  # noqa: BLE001 a type's __post_init__ is the user's code, and may raise anything
                continue
            if place:
                decoders.insert(0, decoders.pop(place))
            return [arguments + defaults for arguments in decoded] if defaults else decoded
        raise msgspec.ValidationError("some call's arguments don't fit")

    def decode_one(self, raw: Raw | bytes) -> tuple[Any, ...]:
        """The arguments of one call, with defaults filled in. Raises BadArguments, which names the wrong one."""
        try:
            return self._decode_arguments(raw)
        except Exception:  # noqa: BLE001 as in decode_many
            return self._decode_in_turn(raw)

    def check_python(self, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """Arguments given as Python values, as they would arrive over the wire. Raises BadArguments."""
        try:
            return self.decode_one(_encode(arguments))
        except (TypeError, ValueError, OverflowError, RecursionError):
            raise self._unsendable(arguments) from None

    def _decode_in_turn(self, raw: Raw | bytes) -> tuple[Any, ...]:
        parameters = self.info.parameters
        announced = announced_length(raw)
        if announced > len(parameters):  # before memory is spent on it
            raise BadArguments(f"{self.name}() takes {self._signature()}, got {announced}")
        try:
            values = _split(raw)
        except _UNREADABLE as error:
            raise BadArguments(f"{self.name}() was called with what is no array of arguments: {error}") from None
        missing = len(parameters) - len(values)
        if not 0 <= missing <= len(self._defaults):
            raise BadArguments(f"{self.name}() takes {self._signature()}, got {len(values)}")
        arguments = []
        for value, parameter, decode in zip(values, parameters, self._types, strict=False):
            try:
                arguments.append(decode(value))
            except Exception as error:  # noqa: BLE001 as in decode_many
                raise BadArguments(
                    f'{self.name}() argument "{parameter.name}" ({parameter.type_text}): {_in_plain_words(error)}'
                ) from None
        return (*arguments, *self._defaults[len(self._defaults) - missing :])

    def _unsendable(self, arguments: tuple[Any, ...]) -> BadArguments:
        for position, value in enumerate(arguments):
            try:
                _encode(value)
            except (TypeError, ValueError, OverflowError, RecursionError) as error:
                parameters = self.info.parameters
                name = f'"{parameters[position].name}"' if position < len(parameters) else str(position)
                return BadArguments(f"{self.name}() argument {name}: {_in_plain_words(error)}")
        return BadArguments(f"{self.name}() takes {self._signature()}, got {type(arguments).__name__}")

    def _signature(self) -> str:
        parameters = self.info.parameters
        if not parameters:
            return "no arguments"
        most, least = len(parameters), len(parameters) - len(self._defaults)
        count = str(most) if most == least else f"{least} to {most}"
        listed = ", ".join(f"{parameter.name}: {parameter.type_text}" for parameter in parameters)
        return f"{count} argument{'s' if most > 1 else ''} ({listed})"


def _decoder_of_arguments(types_of_arguments: tuple[Any, ...]) -> msgspec.msgpack.Decoder[tuple[Any, ...]]:
    return msgspec.msgpack.Decoder(types.GenericAlias(tuple, types_of_arguments))


def _decoder_of_calls(types_of_arguments: tuple[Any, ...]) -> msgspec.msgpack.Decoder[list[tuple[Any, ...]]]:
    return msgspec.msgpack.Decoder(types.GenericAlias(list, (types.GenericAlias(tuple, types_of_arguments),)))


def announced_length(raw: Raw | bytes) -> int:
    """How many elements a MessagePack array says that it has (fixarray, array 16, array 32); -1 if it is no array."""
    head = bytes(memoryview(raw)[:5])
    if head[:1] and head[0] & 0xF0 == 0x90:
        return head[0] & 0x0F
    if head[:1] == b"\xdc" and len(head) >= 3:
        return int.from_bytes(head[1:3], "big")
    if head[:1] == b"\xdd" and len(head) == 5:
        return int.from_bytes(head[1:5], "big")
    return -1


def _in_plain_words(error: BaseException) -> str:
    """ "Expected `int`, got `str` - at `$[1]`" → "expected int, got str - at [1]"."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if not isinstance(error, (msgspec.MsgspecError, TypeError, ValueError, OverflowError)):
        return f"its type raised {type(error).__name__}"  # whose text is user code too
    text = str(error).replace("`", "").replace(" - at $", " - at ")
    return text[:1].lower() + text[1:]
