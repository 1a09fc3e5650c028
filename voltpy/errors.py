"""Every error that voltpy raises, in one tree: who acts on it, and whether the call may be retried.

    Error
    ├── Aborted               the procedure said no           the application decides         ran, no effect
    ├── ProcedureError        the procedure raised            its author mends it             ran, no effect
    ├── ProcedureTimeout      it ran past its time limit      its author mends it             ran, no effect
    ├── BadArguments          the arguments don't fit         the caller mends the call       never ran
    ├── UnknownProcedure      no procedure has this name      the caller, or load it          never ran
    ├── ConstraintViolation   a row breaks its table's rules  the application decides         ran, no effect
    │   └── DuplicateKey      a row with this key exists      the application decides         ran, no effect
    ├── WrongPartition        a key that lives elsewhere      its author mends the routing    ran, no effect
    ├── SchemaError           the DDL, or its use, is wrong   its author mends it             nothing changed
    ├── SqlError              the statement is wrong          its author mends it             never ran
    ├── DataError             its data don't fit: overflow …  the application decides         ran, no effect
    ├── Overloaded            too much is in flight           retry later: safe               no effect
    ├── ReadOnly              disk or memory is full          the operator makes room: safe   ran, no effect
    ├── Unavailable           the partition is not there      retry later: safe               never ran
    ├── Indeterminate         the answer was lost             look before you retry           may have run
    ├── Reentered             a signal handler's call, …      its author uses another client  never ran
    ├── ProtocolError         bytes that are not a frame      the author of the client        never ran
    ├── Corruption            bytes on disk are damaged       the operator restores           nothing changed
    └── ClusterError          a command can't be carried out  the operator                    nothing changed

"No effect" means that every change of the call is undone. `Indeterminate` alone leaves open whether the call happened;
a call retried by the client itself (`retry_s` of `connect`) carries the same call id, so it can't happen twice.
An error crosses the wire as its class name and message; `from_wire` makes it an exception again.
"""

from __future__ import annotations


class Error(Exception):
    """The root of the tree. `retry_is_safe` says whether the same call may be sent again without running twice."""

    retry_is_safe = False


class Aborted(Error):
    """The procedure called `tx.abort(reason)`; nothing of it remains."""


class ProcedureError(Error):
    """The procedure raised an exception; nothing of it remains.

    `type_name` is the exception's class name and `traceback_text` its traceback as text, both from the partition.
    """

    def __init__(self, message: str, type_name: str = "", traceback_text: str = "") -> None:
        super().__init__(message)
        self.type_name = type_name
        self.traceback_text = traceback_text


class ProcedureTimeout(Error):
    """The procedure ran longer than --procedure-timeout; nothing of it remains."""


class BadArguments(Error):
    """The arguments do not fit the procedure's signature; it never ran."""


class UnknownProcedure(Error):
    """No procedure of this name is loaded."""


class ConstraintViolation(Error):
    """A row breaks a rule of its table: a type, NOT NULL, a size."""


class DuplicateKey(ConstraintViolation):
    """A row with this primary key exists."""


class WrongPartition(Error):
    """A procedure reached for a key that does not live in the partition where it runs."""


class SchemaError(Error):
    """The DDL is wrong, or a procedure uses tables against it or against its own declaration, as one that is declared
    read_only and writes. Names line, column and what was expected."""


class SqlError(Error):
    """A statement is wrong, or asks for what is not supported. Names line, column and what was expected."""


class DataError(Error):
    """A statement met values that it can't compute with: overflow, division by zero, text that is no number."""


class Overloaded(Error):
    """Too many calls, or too large results, are in flight; nothing of this one remains. Retry later."""

    retry_is_safe = True


class ReadOnly(Error):
    """The partition takes no writes until there is room again (disk or memory); the call left nothing behind."""

    retry_is_safe = True


class Unavailable(Error):
    """The partition that owns the key is not there; the call never ran."""

    retry_is_safe = True


class Indeterminate(Error):
    """The call was sent and its answer was lost: it may have run, or not."""


class Reentered(Error):
    """A signal handler, or a future's callback, calls the client whose work in the same thread it interrupts, and which
    could therefore not be answered. Neither call is harmed."""


class ProtocolError(Error):
    """Bytes that are not a valid frame, or a frame that is not allowed where it arrived."""


class Corruption(Error):
    """Bytes on disk are damaged in a way that no crash explains. Names the file and the offset."""


class ClusterError(Error):
    """A command about a cluster can't be carried out: data directory in use, another partition count, …"""


CODES: dict[str, type[Error]] = {
    cls.__name__: cls
    for cls in (
        Aborted, ProcedureError, ProcedureTimeout, BadArguments, UnknownProcedure, ConstraintViolation, DuplicateKey,
        WrongPartition, SchemaError, SqlError, DataError, Overloaded, ReadOnly, Unavailable, Indeterminate,
        Reentered, ProtocolError, Corruption, ClusterError,
    )
}  # fmt: skip


def from_wire(code: str, message: str, type_name: str = "", traceback_text: str = "") -> Error:
    """The exception that a partition or router described; an unknown code becomes ProtocolError."""
    cls = CODES.get(code)
    if cls is None:
        return ProtocolError(f"unknown error code {code!r}: {message}")
    if cls is ProcedureError:
        return ProcedureError(message, type_name, traceback_text)
    return cls(message)
