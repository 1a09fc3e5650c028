"""What a procedure's annotations say: what its arguments may be, and which of them can be keys.

An argument takes what its annotation says; without one, anything. Partition keys need one: int, str, or a list or tuple
of them, all of whose elements are keys.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Annotated, Any, Union

import msgspec
from msgspec import Meta

from voltpy.errors import SchemaError

# MessagePack reaches from -2**63 to 2**64 - 1; an INT column, and so an `int` argument, ends at 2**63 - 1.
INT64 = Annotated[int, Meta(le=2**63 - 1)]
# A moment, as a TIMESTAMP column takes it. Without a zone it is one hour here and another there.
AWARE = Annotated[datetime, Meta(tz=True)]

NO_DEFAULT = inspect.Parameter.empty
MAX_DEFAULT_CHARACTERS = 40
_SHOWN = (type(None), bool, int, float, str, bytes)
_CONTAINERS = (list, set, frozenset, tuple, dict)


def refused(function: Callable[..., Any], why: str) -> SchemaError:
    """What is wrong with a procedure, with the place in its file."""
    code = inspect.unwrap(function).__code__
    return SchemaError(f"{code.co_filename}:{code.co_firstlineno}: procedure {function.__name__}: {why}")


def resolved(body: Callable[..., Any], parameter: inspect.Parameter, namespace: dict[str, Any]) -> Any:
    """The annotation of one parameter as a type; a string is evaluated among the names of the procedure's file."""
    if parameter.annotation is NO_DEFAULT:
        return Any
    holder = types.SimpleNamespace(__annotations__={parameter.name: parameter.annotation})
    try:
        return typing.get_type_hints(holder, globalns=namespace, include_extras=True)[parameter.name]
    except Exception as error:  # noqa: BLE001 evaluating a string annotation runs the user's expression
        raise refused(
            body,
            f"the annotation of {parameter.name!r}, {parameter.annotation!r}, can't be resolved "
            f"({type(error).__name__}: {error}); use a type that the file imports",
        ) from None


def check_key(body: Callable[..., Any], name: str, annotation: Any) -> None:
    if annotation is Any:
        raise refused(body, f"{name!r} decides where it runs: annotate it int or str")
    for choice in _choices(annotation):
        if _is_key(choice) or all(_is_key(element) for element in _elements(choice)):
            continue
        text = _text_of_type(annotation)
        raise refused(body, f"{name!r} decides where it runs and must be int or str, or a list of those, not {text}")


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


def with_limits(annotation: Any) -> Any:
    """The same type, in which every plain `int` ends at 2**63 - 1 and every plain `datetime` has a time zone."""
    if annotation is int:
        return INT64
    if annotation is datetime:
        return AWARE
    if isinstance(annotation, typing.NewType):
        return with_limits(annotation.__supertype__)
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        limits = [extra for extra in parts[1:] if isinstance(extra, Meta)]
        has_its_own = any((limit.le, limit.lt, limit.tz) != (None, None, None) for limit in limits)
        inner = parts[0] if has_its_own else with_limits(parts[0])
        return Annotated.__class_getitem__((inner, *parts[1:]))
    if _is_union(annotation):
        return Union[tuple(with_limits(part) for part in parts)]  # noqa: UP007 the parts are known at run time
    if origin in _CONTAINERS and parts:
        return types.GenericAlias(origin, tuple(with_limits(part) for part in parts))
    return annotation


def parts_of_type(body: Callable[..., Any], name: str, annotation: Any, type_: Any) -> list[Any]:
    """Every part of an argument's type, as msgspec sees it. Raises SchemaError for one that can't travel."""
    try:
        msgspec.msgpack.Decoder(type_)
        parts = list(_walk(msgspec.inspect.type_info(type_), set()))
    except Exception as error:  # noqa: BLE001 msgspec resolves the annotations of the user's classes here
        raise refused(body, f"{name!r} can't be {_text_of_type(annotation)}: {error}") from None
    for part in parts:
        if isinstance(part, msgspec.inspect.CustomType):
            raise refused(
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


def is_immutable(part: Any) -> bool:
    if isinstance(part, msgspec.inspect.StructType):
        return part.cls.__struct_config__.frozen
    return isinstance(part, _IMMUTABLE_TYPES)


def type_text(parameter: inspect.Parameter, annotation: Any) -> str:
    return parameter.annotation if isinstance(parameter.annotation, str) else _text_of_type(annotation)


def default_text(default: Any) -> str:
    """See Parameter. Values whose repr is not ours to call, or is another one in each process, are not shown."""
    if default is NO_DEFAULT:
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
