"""Stored procedures: how one is declared, what its signature says about routing and types, and the set that is loaded.

    @procedure(partition_by="account")                                  one partition: where this argument's slot lives
    @procedure(partition_by=None, read_only=True, everywhere=True)      directed: a transaction in each partition
    @procedure, @procedure(partition_by=("source", "target"))           across partitions: a distributed transaction

The decorator returns the function itself with a `Declaration` attached, so a procedure stays a plain callable: a test
can call it with any object in the place of `tx`. What can be wrong about a procedure is said when it is declared or
loaded, as a SchemaError that names file, line and what to do; what can be wrong about a call is said before the body
runs, as BadArguments. An argument takes what its annotation says; without one, anything. Partition keys need one: int,
str, or a list or tuple of them, all of whose elements are keys.

A directed procedure that may write a table without partition column is *joint* (see ProcedureInfo): the copies of that
table must stay equal. Whether it may is read from its source, before it ever runs.

A procedure file is compiled under its own path, so that tracebacks and debuggers show the user's lines, and executed as
a module with a private name, so that a user's `procedures.py` or `voltpy.py` collides with nothing.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import itertools
import linecache
import os
import sys
import tokenize
import traceback
import types
import typing
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, overload

import msgspec
from msgspec import Meta, Raw

from voltpy.errors import BadArguments, SchemaError
from voltpy.messages import Parameter, PrepareLoad, ProcedureInfo
from voltpy.schema import Schema

Function = TypeVar("Function", bound=Callable[..., Any])

# What `tx` has besides the tables; a table name must be none of these to be reachable as an attribute.
TRANSACTION_NAMES = frozenset({"abort", "execute", "now", "random", "uuid", "unique_id"})

# MessagePack reaches from -2**63 to 2**64 - 1; an INT column, and so an `int` argument, ends at 2**63 - 1.
INT64 = Annotated[int, Meta(le=2**63 - 1)]
# A moment, as a TIMESTAMP column takes it. Without a zone it is one hour here and another there.
AWARE = Annotated[datetime, Meta(tz=True)]

_MARK = "__voltpy_declaration__"
_TRANSACTION_PARAMETERS = ("tx", "_tx")
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_NO_DEFAULT = inspect.Parameter.empty
MAX_DEFAULT_CHARACTERS = 40
_SHOWN = (type(None), bool, int, float, str, bytes)
_CONTAINERS = (list, set, frozenset, tuple, dict)

_encode = msgspec.msgpack.Encoder().encode
_split = msgspec.msgpack.Decoder(list[Raw]).decode

_module_numbers = itertools.count(1)
_declared: list[Callable[..., Any]] | None = None  # what the file that is being loaded has declared so far
_user_modules: set[str] = set()  # modules that procedure files imported from beside themselves


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


def _check_declaration(function: Any, declaration: Declaration) -> None:
    """What can be said before annotations are resolved: they may name things that come later in the file."""
    body = inspect.unwrap(function) if callable(function) else function
    if not isinstance(body, types.FunctionType) or not isinstance(function, types.FunctionType):
        raise SchemaError(f"@procedure declares a function, not {function!r}; write it above a plain `def`")
    if not all(part.isidentifier() for part in function.__name__.split(".")):
        raise _refused(function, "a procedure is called by its name and this one has none; write it as a `def`")
    if inspect.iscoroutinefunction(body) or inspect.isasyncgenfunction(body):
        raise _refused(function, "a procedure runs start to end without waiting; write `def`, not `async def`")
    if inspect.isgeneratorfunction(body):
        raise _refused(function, "it yields, and a procedure answers once; return a list instead")
    parameters = list(inspect.signature(function).parameters.values())
    for parameter in parameters:
        if parameter.kind not in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            raise _refused(function, f"arguments travel by position: make {str(parameter)!r} a plain parameter")
    if not parameters or parameters[0].name not in _TRANSACTION_PARAMETERS:
        raise _refused(function, "its first parameter is the transaction; name it tx")
    arguments = [parameter.name for parameter in parameters[1:]]
    if declaration.everywhere and declaration.partition_by:
        raise _refused(function, "everywhere=True runs it in every partition: leave out partition_by, or everywhere")
    for name in declaration.partition_by:
        if not isinstance(name, str) or name not in arguments:
            has = f"its arguments are {', '.join(arguments)}" if arguments else "it has no arguments"
            raise _refused(function, f"partition_by names {name!r}; {has}")
    for parameter in parameters[1:]:
        if parameter.default is _NO_DEFAULT:
            continue
        if parameter.name in declaration.partition_by:
            raise _refused(function, f"{parameter.name!r} decides where it runs, so every call names it: no default")
        if type(parameter.default).__hash__ is None:
            raise _refused(function, f"the default of {parameter.name!r} can change from call to call; default to None")


def _refused(function: Callable[..., Any], why: str) -> SchemaError:
    code = inspect.unwrap(function).__code__
    return SchemaError(f"{code.co_filename}:{code.co_firstlineno}: procedure {function.__name__}: {why}")


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
        annotations = [_resolved(body, parameter, namespace) for parameter in parameters]
        names = [parameter.name for parameter in parameters]
        self.name = body.__name__
        self.body = body
        self.key_positions = [names.index(name) for name in declaration.partition_by]
        self.everywhere = declaration.everywhere
        self.read_only = declaration.read_only
        for position in self.key_positions:
            _check_key(body, names[position], annotations[position])

        types_of_arguments = tuple(_with_limits(annotation) for annotation in annotations)
        self.arguments_are_immutable = True
        for name, annotation, type_ in zip(names, annotations, types_of_arguments, strict=True):
            parts = _parts_of_type(body, name, annotation, type_)
            self.arguments_are_immutable &= all(_is_immutable(part) for part in parts)
        self._types = [msgspec.msgpack.Decoder(type_).decode for type_ in types_of_arguments]
        self._defaults = tuple(p.default for p in parameters if p.default is not _NO_DEFAULT)
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
                    _type_text(parameter, annotation),
                    parameter.default is _NO_DEFAULT,
                    _default_text(parameter.default),
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


# ---- signatures ----


def _resolved(body: Callable[..., Any], parameter: inspect.Parameter, namespace: dict[str, Any]) -> Any:
    """The annotation of one parameter as a type; a string is evaluated among the names of the procedure's file."""
    if parameter.annotation is _NO_DEFAULT:
        return Any
    holder = types.SimpleNamespace(__annotations__={parameter.name: parameter.annotation})
    try:
        return typing.get_type_hints(holder, globalns=namespace, include_extras=True)[parameter.name]
    except Exception as error:  # noqa: BLE001 evaluating a string annotation runs the user's expression
        raise _refused(
            body,
            f"the annotation of {parameter.name!r}, {parameter.annotation!r}, can't be resolved "
            f"({type(error).__name__}: {error}); use a type that the file imports",
        ) from None


def _check_key(body: Callable[..., Any], name: str, annotation: Any) -> None:
    if annotation is Any:
        raise _refused(body, f"{name!r} decides where it runs: annotate it int or str")
    for choice in _choices(annotation):
        if _is_key(choice) or all(_is_key(element) for element in _elements(choice)):
            continue
        text = _text_of_type(annotation)
        raise _refused(body, f"{name!r} decides where it runs and must be int or str, or a list of those, not {text}")


def _choices(annotation: Any) -> tuple[Any, ...]:
    return typing.get_args(annotation) if _is_union(annotation) else (annotation,)


def _is_key(annotation: Any) -> bool:
    return _unwrapped(annotation) in (int, str)


def _elements(annotation: Any) -> tuple[Any, ...]:
    """What `list[…]` and `tuple[…, ...]` hold; (None,), which is no key, for any other type."""
    annotation = _unwrapped(annotation)
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if (origin is list and len(parts) == 1) or (origin is tuple and len(parts) == 2 and parts[1] is Ellipsis):
        return _choices(parts[0])
    return (None,)


def _unwrapped(annotation: Any) -> Any:
    """`Annotated[T, …]` and `NewType("Name", T)` → T."""
    while True:
        if typing.get_origin(annotation) is Annotated:
            annotation = typing.get_args(annotation)[0]
        elif isinstance(annotation, typing.NewType):
            annotation = annotation.__supertype__
        else:
            return annotation


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (Union, types.UnionType)


def _with_limits(annotation: Any) -> Any:
    """The same type, in which every plain `int` ends at 2**63 - 1 and every plain `datetime` has a time zone."""
    if annotation is int:
        return INT64
    if annotation is datetime:
        return AWARE
    if isinstance(annotation, typing.NewType):
        return _with_limits(annotation.__supertype__)
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        limits = [extra for extra in parts[1:] if isinstance(extra, Meta)]
        has_its_own = any((limit.le, limit.lt, limit.tz) != (None, None, None) for limit in limits)
        inner = parts[0] if has_its_own else _with_limits(parts[0])
        return Annotated.__class_getitem__((inner, *parts[1:]))
    if _is_union(annotation):
        return Union[tuple(_with_limits(part) for part in parts)]  # noqa: UP007 the parts are known at run time
    if origin in _CONTAINERS and parts:
        return types.GenericAlias(origin, tuple(_with_limits(part) for part in parts))
    return annotation


def _parts_of_type(body: Callable[..., Any], name: str, annotation: Any, type_: Any) -> list[Any]:
    """Every part of an argument's type, as msgspec sees it. Raises SchemaError for one that can't travel."""
    try:
        msgspec.msgpack.Decoder(type_)
        parts = list(_walk(msgspec.inspect.type_info(type_), set()))
    except Exception as error:  # noqa: BLE001 msgspec resolves the annotations of the user's classes here
        raise _refused(body, f"{name!r} can't be {_text_of_type(annotation)}: {error}") from None
    for part in parts:
        if isinstance(part, msgspec.inspect.CustomType):
            raise _refused(
                body,
                f"{name!r} can't be {_text_of_type(annotation)}: values of {part.cls.__name__} don't travel; "
                "use int, float, str, bool, datetime, None, and list, dict, tuple, dataclass or msgspec.Struct of them",
            )
    return parts


def _walk(info: Any, seen: set[int]) -> Iterator[Any]:
    if id(info) in seen:
        return
    seen.add(id(info))
    if isinstance(info, msgspec.inspect.Type):
        yield info
    if isinstance(info, msgspec.Struct):
        for field in info.__struct_fields__:
            yield from _walk(getattr(info, field), seen)
    elif isinstance(info, tuple):
        for part in info:
            yield from _walk(part, seen)


_IMMUTABLE_TYPES = tuple(
    getattr(msgspec.inspect, name)
    for name in (
        "NoneType", "BoolType", "IntType", "FloatType", "StrType", "BytesType", "DateTimeType", "DateType", "TimeType",
        "TimeDeltaType", "UUIDType", "DecimalType", "EnumType", "LiteralType", "FrozenSetType", "VarTupleType",
        "TupleType", "NamedTupleType", "UnionType", "Metadata",
    )
)  # fmt: skip


def _is_immutable(part: Any) -> bool:
    if isinstance(part, msgspec.inspect.StructType):
        return part.cls.__struct_config__.frozen
    return isinstance(part, _IMMUTABLE_TYPES)


def _type_text(parameter: inspect.Parameter, annotation: Any) -> str:
    return parameter.annotation if isinstance(parameter.annotation, str) else _text_of_type(annotation)


def _default_text(default: Any) -> str:
    """See Parameter. Values whose repr is not ours to call, or is another one in each process, are not shown."""
    if default is _NO_DEFAULT:
        return ""
    if not all(type(value) in _SHOWN for value in (default if type(default) is tuple else (default,))):
        return "…"
    try:
        text = repr(default)
    except ValueError:  # an int of thousands of digits
        return "…"
    return text if len(text) <= MAX_DEFAULT_CHARACTERS else "…"


def _text_of_type(annotation: Any) -> str:
    return inspect.formatannotation(annotation).replace("typing.", "")


# ---- the set that is loaded ----


class Registry:
    """The procedures of one file: `procedures` by name, in the order of their names. Immutable once built."""

    __slots__ = ("__weakref__", "_directories", "_files", "catalog_version", "path", "procedures", "source")

    def __init__(
        self, procedures: Iterable[Procedure], catalog_version: int, path: str = "", source: str = "", root: str = ""
    ) -> None:
        """`root` is the directory whose modules count as the user's code besides the procedures' own files."""
        listed = sorted(procedures, key=lambda procedure: procedure.name)
        for first, second in itertools.pairwise(listed):
            if first.name == second.name:
                raise _refused(second.body, f"the name is taken by {_place(first.body)}; give each procedure its own")
        self.procedures: dict[str, Procedure] = {procedure.name: procedure for procedure in listed}
        self.catalog_version = catalog_version
        self.path = path
        self.source = source
        self._files = {inspect.unwrap(procedure.body).__code__.co_filename for procedure in listed} | {path}
        self._directories = (os.path.join(root, ""),) if root else ()

    def infos(self) -> list[ProcedureInfo]:
        """What clients and people need to know, by name."""
        return [procedure.info for procedure in self.procedures.values()]

    def is_user_code(self, code: types.CodeType) -> bool:
        """Whether a frame of this code belongs to the procedures: their file, or a module of theirs beside it."""
        return code.co_filename in self._files or _is_beside(code.co_filename, self._directories)


def load(source: str, path: str, schema: Schema | None, catalog_version: int) -> Registry:
    """Compiles and executes a procedure file and returns what it declares.

    `schema` lets a table that does not exist be named here rather than at the first call. The file's directory is
    appended to `sys.path`, behind everything that is there. Modules that an earlier load imported from it are imported
    afresh. Raises SchemaError, with the user's lines, for whatever is wrong.
    """
    global _declared
    path = os.path.abspath(path)
    root = os.path.dirname(path)
    module = types.ModuleType(f"voltpy_procedures_{next(_module_numbers)}")
    module.__file__ = path
    if root not in sys.path:
        sys.path.append(root)
    for name in _user_modules:
        sys.modules.pop(name, None)
    _user_modules.clear()
    importlib.invalidate_caches()

    shown_before = linecache.cache.get(path)
    _show_in_tracebacks(source, path)
    imported_before = set(sys.modules)
    outer, _declared = _declared, []
    # Dataclasses and type hints look their module up by name, at its execution and later.
    sys.modules[module.__name__] = module
    try:
        _execute(source, path, module)
        registry = _registry_of(module, _declared, source, path, schema, catalog_version)
    except BaseException:
        del sys.modules[module.__name__]
        if shown_before is None:
            linecache.cache.pop(path, None)
        else:
            linecache.cache[path] = shown_before
        raise
    finally:
        _declared = outer
        _definitions.cache_clear()  # a syntax tree is large, and a partition's memory is its user's
        _user_modules.update(
            name
            for name in set(sys.modules) - imported_before
            if _is_beside(getattr(sys.modules[name], "__file__", None) or "", (os.path.join(root, ""),))
        )
    _user_modules.discard(module.__name__)
    weakref.finalize(registry, sys.modules.pop, module.__name__, None)
    return registry


def imported_from_beside(source: str, path: str) -> list[str]:
    """The modules in the file's own directory that it imports by name: a cluster doesn't store them. No code is run."""
    root, names = os.path.dirname(os.path.abspath(path)), set[str]()
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []  # loading it will say what is wrong
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.partition(".")[0])
    names -= {"voltpy", *sys.stdlib_module_names}
    return sorted(
        n for n in names if os.path.isfile(os.path.join(root, f"{n}.py")) or os.path.isdir(os.path.join(root, n))
    )


def load_beside(message: PrepareLoad, schema: Schema) -> Registry:
    """The procedures that are to take the place of those in use. Where a new schema comes, they are the same, or none.

    Raises SchemaError as `load` does, and for procedures that the new schema does not do for.
    """
    if not message.schema:
        return load(message.source, message.path, schema, message.catalog_version)
    if not message.source:
        return Registry([], message.catalog_version)
    try:
        return load(message.source, message.path, schema, message.catalog_version)
    except SchemaError as error:
        raise SchemaError(f"the procedures that are loaded do not fit the new schema: {error}") from None


def load_path(path: str | Path, schema: Schema | None = None, catalog_version: int = 1) -> Registry:
    """`load` of a file on disk. Raises SchemaError also when it can't be read."""
    try:
        with tokenize.open(path) as file:  # honours the encoding that a Python file declares
            source = file.read()
    except OSError as error:
        raise SchemaError(f"the procedure file {path} can't be read: {error.strerror or error}") from None
    except (SyntaxError, UnicodeDecodeError) as error:
        raise SchemaError(f"the procedure file {path} can't be read: {error}") from None
    return load(source, str(path), schema, catalog_version)


def from_functions(
    functions: Iterable[Callable[..., Any]], catalog_version: int = 1, schema: Schema | None = None
) -> Registry:
    """A registry of procedures that are in memory already, as in a test. Raises SchemaError."""
    copies = _tables_of_copies(schema)
    procedures = []
    for function in functions:
        if not hasattr(function, _MARK):
            raise SchemaError(f"{_place(function)}: {function!r} is no procedure; decorate it with @procedure")
        procedures.append(_procedure_of(function, copies))
    if not procedures:
        raise SchemaError("there is no procedure; decorate one with @procedure")
    return Registry(procedures, catalog_version)


def _execute(source: str, path: str, module: types.ModuleType) -> None:
    try:
        code = compile(source, path, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        text = "".join(traceback.format_exception_only(error)).rstrip()
        raise SchemaError(f"the procedure file {path} is not valid Python:\n{text}") from None
    try:
        exec(code, module.__dict__)
    except (SchemaError, KeyboardInterrupt):
        raise
    except BaseException as error:  # noqa: BLE001 the procedure boundary: executing the file is user code
        lines = _users_lines(error, path)
        if isinstance(error, ModuleNotFoundError):
            # In the last line, which is all that a supervisor has of a partition that can't start.
            lines += (
                ". A module beside a procedure file is not stored with it: it was looked for in "
                f"{os.path.dirname(path)}. Where the file has moved, start with --procedures FILE"
            )
        raise SchemaError(f"the procedure file {path} failed when it was loaded:\n{lines}") from None


def _registry_of(
    module: types.ModuleType,
    declared: list[Callable[..., Any]],
    source: str,
    path: str,
    schema: Schema | None,
    catalog_version: int,
) -> Registry:
    functions = procedures_of(module, declared)
    if not functions:
        advice = "decorate one with @procedure"
        if declared:  # in a module that it imports
            advice = f"import those of {declared[0].__module__} by name: from {declared[0].__module__} import …"
        raise SchemaError(f"the procedure file {path} declares no procedure; {advice}")
    if schema is not None:
        _check_tables(functions, source, path, schema)
    copies = _tables_of_copies(schema)
    procedures = [_procedure_of(function, copies) for function in functions]
    return Registry(procedures, catalog_version, path, source, os.path.dirname(path))


def procedures_of(module: types.ModuleType, declared: Sequence[Callable[..., Any]] = ()) -> list[Callable[..., Any]]:
    """The procedures that a file declares, also those whose name was taken again, and those that it imports.

    `declared`: all that @procedure has seen meanwhile; without, those that a name still stands for are found.
    """
    own = [function for function in declared if function.__module__ == module.__name__]
    found = {id(value): value for value in (*vars(module).values(), *own) if _is_declared(value)}
    for value in list(found.values()):  # a decorator above @procedure wraps it: the outermost is the procedure
        inner = getattr(value, "__wrapped__", None)
        while inner is not None:
            found.pop(id(inner), None)
            inner = getattr(inner, "__wrapped__", None)
    return list(found.values())


def _is_declared(value: Any) -> bool:
    return isinstance(value, types.FunctionType) and hasattr(value, _MARK)


def _check_tables(functions: list[Callable[..., Any]], source: str, path: str, schema: Schema) -> None:
    """Raises SchemaError where a procedure says `tx.name` and there is neither such a table nor such a method."""
    tables = {table.name for table in schema.live}
    definitions = _definitions(source)
    for function in functions:
        code = inspect.unwrap(function).__code__
        definition = definitions.get(code.co_firstlineno)
        if definition is None or code.co_filename != path:
            continue
        names = list(ast.walk(definition))
        if any(isinstance(n, ast.Name) and n.id == "tx" and isinstance(n.ctx, ast.Store) for n in names):
            continue  # `tx` is made to mean something else
        for use in names:
            if not (isinstance(use, ast.Attribute) and isinstance(use.value, ast.Name) and use.value.id == "tx"):
                continue
            if use.attr in tables or use.attr in TRANSACTION_NAMES or use.attr.startswith("_"):
                continue
            close = difflib.get_close_matches(use.attr, tables | TRANSACTION_NAMES, 1)
            hint = f"did you mean {close[0]}?" if close else f"the tables are {', '.join(sorted(tables)) or 'none'}"
            raise SchemaError(
                f"{path}:{use.lineno}: procedure {function.__name__}: there is no table {use.attr}; {hint}"
            )


@lru_cache(maxsize=8)  # a file has many procedures, and in tests each engine asks for those of the test's file again
def _definitions(source: str) -> dict[int, ast.FunctionDef]:
    """The functions of a source text, by their first line: a decorator's, where there is one."""
    return {
        min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]): node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef)
    }


def _tables_of_copies(schema: Schema | None) -> frozenset[str]:
    """The tables that every partition has a copy of, and that procedures can write."""
    tables = () if schema is None else schema.live
    return frozenset(table.name for table in tables if table.partition_column is None and table.view is None)


def _procedure_of(function: Callable[..., Any], copies: frozenset[str]) -> Procedure:
    declaration: Declaration = getattr(function, _MARK)
    joint = declaration.everywhere and not declaration.read_only and _may_touch(function, copies)
    return Procedure(function, inspect.unwrap(function).__globals__, joint=joint)


def _may_touch(function: Callable[..., Any], tables: frozenset[str]) -> bool:
    """Whether a procedure may touch one of these tables: it says tx.<table>, or does with `tx` what hides the table."""
    if not tables:
        return False
    code = inspect.unwrap(function).__code__
    if hasattr(function, "__wrapped__"):
        return True  # the decorator has `tx` too
    try:
        definition = _definitions("".join(linecache.getlines(code.co_filename))).get(code.co_firstlineno)
    except SyntaxError:
        definition = None
    if definition is None:
        return True
    name = code.co_varnames[0]
    seen = list(ast.walk(definition))
    plain = {id(use.value) for use in seen if isinstance(use, ast.Attribute)}
    if any(isinstance(use, ast.Name) and use.id == name and id(use) not in plain for use in seen):
        return True  # passed on, kept, or made to mean something else
    uses = {
        use.attr
        for use in seen
        if isinstance(use, ast.Attribute) and isinstance(use.value, ast.Name) and use.value.id == name
    }
    return not uses.isdisjoint(tables) or any(use == "execute" or use.startswith("_") for use in uses)


def _show_in_tracebacks(source: str, path: str) -> None:
    # A modification time of None keeps linecache from looking at the disk, where the file may have changed since.
    linecache.cache[path] = (len(source), None, source.splitlines(keepends=True), path)


def _users_lines(error: BaseException, path: str) -> str:
    """The traceback from the user's file on: what is above it is ours."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename != path:
        trace = trace.tb_next
    return "".join(traceback.format_exception(type(error), error, trace)).rstrip()


def _place(function: Callable[..., Any]) -> str:
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code is not None else repr(function)


_PACKAGES = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_OURS = tuple(os.path.join(_PACKAGES, name, "") for name in ("voltpy", "partitions", "coordinator"))
_STANDARD_LIBRARY = os.path.join(os.path.dirname(os.__file__), "")


def _is_beside(filename: str, directories: tuple[str, ...]) -> bool:
    """Whether a file lies in one of the directories and is neither ours, nor installed, nor the standard library's."""
    for directory in directories:
        if filename.startswith(directory) and not filename.startswith((*_OURS, _STANDARD_LIBRARY)):
            below = filename[len(directory) :].split(os.sep)
            return "site-packages" not in below and "dist-packages" not in below
    return False
