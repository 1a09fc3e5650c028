"""voltpy: durable Python stored procedures on every core. The public names; everything else is inside.

The client is loaded when `connect` is first asked for: the processes of a cluster import from here too, and a file of
procedures needs no sockets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from voltpy.errors import (
    Aborted,
    BadArguments,
    ClusterError,
    ConstraintViolation,
    Corruption,
    DataError,
    DuplicateKey,
    Error,
    Indeterminate,
    Overloaded,
    ProcedureError,
    ProcedureTimeout,
    ProtocolError,
    ReadOnly,
    Reentered,
    SchemaError,
    SqlError,
    Unavailable,
    UnknownProcedure,
    WrongPartition,
)

# Eager: the decorator takes the place of the submodule of the same name in this namespace, for good, since a module is
# bound to its package only when it is first loaded. `from voltpy.procedure import …` works all the same.
from voltpy.procedure import procedure

if TYPE_CHECKING:
    from voltpy.aio import AsyncClient, connect_async
    from voltpy.client import Client, connect
    from voltpy.result import Result
    from voltpy.transaction import Transaction

__all__ = [
    "Aborted",
    "AsyncClient",
    "BadArguments",
    "Client",
    "ClusterError",
    "ConstraintViolation",
    "Corruption",
    "DataError",
    "DuplicateKey",
    "Error",
    "Indeterminate",
    "Overloaded",
    "ProcedureError",
    "ProcedureTimeout",
    "ProtocolError",
    "ReadOnly",
    "Reentered",
    "Result",
    "SchemaError",
    "SqlError",
    "Transaction",
    "Unavailable",
    "UnknownProcedure",
    "WrongPartition",
    "connect",
    "connect_async",
    "procedure",
]

_LAZY = {
    "AsyncClient": "voltpy.aio",
    "Client": "voltpy.client",
    "Result": "voltpy.result",
    "Transaction": "voltpy.transaction",
    "connect": "voltpy.client",
    "connect_async": "voltpy.aio",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'voltpy' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value
