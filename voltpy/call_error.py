"""What becomes of an exception that a procedure raises: the CallError that its caller gets.

This is where text of the user's code is let out, so here it is bounded and made fit to travel. See the table of
errors in voltpy.errors for what each code means to the caller.
"""

from __future__ import annotations

import re
import traceback
from types import CodeType

from voltpy.errors import (
    CODES,
    Aborted,
    ConstraintViolation,
    DataError,
    Overloaded,
    ProcedureError,
    ProcedureTimeout,
    ReadOnly,
    SchemaError,
    SqlError,
    WrongPartition,
)
from voltpy.messages import CallError

MAX_MESSAGE_CHARACTERS = 2000  # 256 errors travel in a frame: see partitions.server
MAX_TRACEBACK_CHARACTERS = 8000
_UNSENDABLE = (TypeError, ValueError, OverflowError, RecursionError)
_UNSUPPORTED = re.compile(r"Encoding objects of type (\S+) is unsupported")
_ITERABLES = frozenset(
    {"generator", "map", "filter", "zip", "enumerate", "range", "reversed", "dict_keys", "dict_values", "dict_items"}
)


class ResultsWait(Overloaded):
    """A call whose result found no room beside the others that wait to be sent. It is undone, and may be retried."""


# What may come out of a procedure and be believed; a plain Overloaded, say, would claim that it never ran. A
# ProcedureTimeout comes from a partition that ended its part of a statement of the procedure.
BELIEVED = (
    Aborted, ConstraintViolation, WrongPartition, SchemaError, SqlError, DataError, ReadOnly, ResultsWait,
    ProcedureTimeout,
)  # fmt: skip


def call_error(client_id: int, number: int, error: BaseException) -> CallError:
    code = next(cls.__name__ for cls in type(error).__mro__ if CODES.get(cls.__name__) is cls)
    if isinstance(error, ProcedureError):
        return CallError(client_id, number, code, str(error), error.type_name, error.traceback_text)
    return CallError(client_id, number, code, _message(error))


def described_error(error: BaseException, procedure: str, caller: CodeType) -> ProcedureError:
    """An exception of the user's code as it travels: type, message and the traceback below the procedure's frame.

    `caller` is the code of ours that called the procedure.
    """
    # The frames above the procedure's are ours. An exception that is raised again has those of last time in front.
    frames = trace = error.__traceback__
    is_ours = False
    while trace is not None:
        if trace.tb_frame.f_code is caller:
            frames = trace.tb_next
            is_ours = frames is None
        trace = trace.tb_next
    message = _message(error)
    if is_ours and isinstance(error, _UNSENDABLE):  # the procedure returned, and its result was encoded in our frame
        return ProcedureError(f"{procedure}: the result can't be sent: {_unsent(message)}", type(error).__name__)
    try:
        text = "".join(traceback.format_exception(type(error), error, frames))
    except BaseException:  # noqa: BLE001 — as in _message
        text = ""
    name = type(error).__name__
    text = text if len(text) <= MAX_TRACEBACK_CHARACTERS else "…" + text[-MAX_TRACEBACK_CHARACTERS:]
    described = f"{procedure}: {name}: {message}" if message else f"{procedure}: {name}"
    return ProcedureError(described, name, _encodable(text))


def _unsent(message: str) -> str:
    """What msgspec says of a value that it can't encode, shorter; with what to do where that is known."""
    unsupported = _UNSUPPORTED.fullmatch(message)
    if unsupported is None:
        return message
    name = unsupported[1]
    article = "an" if name[0].lower() in "aeiou" else "a"
    return f"{article} {name}" + ("; return a list" if name in _ITERABLES or name.endswith("iterator") else "")


def let_go(error: BaseException) -> None:
    """An exception that a procedure keeps and raises in every call would hold on to more and more frames."""
    error.__traceback__ = None


def _message(error: BaseException) -> str:
    """What the exception says, in so many characters and of such a kind that it can travel."""
    try:
        message = str(error)
    except BaseException as in_str:  # noqa: BLE001 — the procedure boundary: an exception's __str__ is user code too
        return f"(its __str__ raised {type(in_str).__name__})"
    return _encodable(message if len(message) <= MAX_MESSAGE_CHARACTERS else message[:MAX_MESSAGE_CHARACTERS] + "…")


def _encodable(text: str) -> str:
    """Lone surrogates can't travel."""
    return text.encode("utf-8", "backslashreplace").decode()
