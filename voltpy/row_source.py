"""Source text for making and changing rows of one table, for the functions that are generated for its columns.

A partition's tables (partitions.accessors) and those that the coordinator borrows (coordinator.borrowed) look for rows
in different places, but make them alike: Python itself binds positions, names and defaults of the columns; values of
exactly the right types, which nearly all are, need no second look; others go through RowFormat.validated.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from textwrap import indent
from types import CodeType
from typing import Any, NamedTuple

from msgspec.structs import replace

from voltpy.row import LEFT_OUT, MAX_ROW_BYTES, RowFormat, encode
from voltpy.schema import Table

# Column names are the functions' parameters; everything else in them begins with an underscore, as no column may.
_EXACT = {
    # The smallest of 64 bits has 64 too, and goes the long way. To compare with both ends costs twice as much.
    "INT": "_type({0}) is _int and {0}.bit_length() < 64",
    "FLOAT": "_type({0}) is _float",
    "STRING": "_type({0}) is _str",
    "BOOL": "_type({0}) is _bool",
    "TIMESTAMP": "_type({0}) is _datetime and {0}.tzinfo is _utc",
}

_MADE = """
    _row = _struct({names})
    if {exact}:
        try:
            _image = _encode(_row)
        except _UnicodeEncodeError:
            _row, _image = _validated(_row)
        if _len(_image) > {limit}:
            _validated(_row)
    else:
        _row, _image = _validated(_row)
"""

_EXACT_TYPES: dict[str, type] = {"INT": int, "FLOAT": float, "STRING": str, "BOOL": bool, "TIMESTAMP": datetime}

# What of a changed column's `_value` of the right type has to be looked at more closely.
_ODD_INT = "(_type(_value) is _int and _value.bit_length() > 63)"
_ODD_TIMESTAMP = "(_type(_value) is _datetime and _value.tzinfo is not _utc)"


class RowSource(NamedTuple):
    """Pieces of a table's functions.

    `parameters` of an insert; `made`, which makes `_row` and `_image` out of them; `key`, that of `_row`; `odd`: the
    condition under which an updated `_value` of the right type needs a second look. `bound` are the names that they
    use, with their values.
    """

    parameters: str
    made: str
    key: str
    odd: str
    bound: dict[str, Any]


def row_source(schema: Table, format: RowFormat) -> RowSource:
    defaults: dict[str, Any] = {}
    parameters, exact = [], []
    given = schema.declared if schema.view is None else schema.columns  # those that a view hides are kept, too
    for position, column in enumerate(given):
        optional = column.has_default or column.nullable
        defaults[f"_default_{position}"] = column.default if optional else LEFT_OUT
        parameters.append(f"{column.name}=_default_{position}")
        check = _EXACT.get(column.type, "False").format(column.name)
        exact.append(f"({column.name} is None or {check})" if column.nullable else f"({check})")
    made = _MADE.format(
        names=", ".join(column.name for column in schema.columns), exact=" and ".join(exact), limit=MAX_ROW_BYTES
    ).strip("\n")
    key = f"_row.{schema.primary_key[0]}"
    if len(schema.primary_key) > 1:
        key = f"({', '.join(f'_row.{name}' for name in schema.primary_key)})"
    bound = {
        **defaults, "_struct": format.struct, "_encode": encode, "_decode": format.decode,
        "_validated": format.validated, "_key_of": format.key_of, "_replace": replace,
        # A value of exactly this type fits its column; anything else is looked at more closely.
        "_exact": {column.name: _EXACT_TYPES.get(column.type) for column in schema.columns},
        "_len": len, "_type": type, "_int": int, "_float": float, "_str": str, "_bool": bool,
        "_datetime": datetime, "_utc": UTC, "_UnicodeEncodeError": UnicodeEncodeError,
    }  # fmt: skip
    has_timestamps = any(column.type == "TIMESTAMP" for column in schema.columns)
    odd = f"{_ODD_INT} or {_ODD_TIMESTAMP}" if has_timestamps else _ODD_INT
    return RowSource(", ".join(parameters), made, key, odd, bound)


def functions(source: str, names: str, bound: dict[str, Any], file: str) -> tuple[Callable[..., Any], ...]:
    """The functions that the source defines under these names, with commas. `bound` are the names that it uses."""
    # A function around them makes all of these locals of an enclosing scope, which are read faster than globals.
    around = f"def bind({', '.join(bound)}):{indent(source, '    ')}\n    return {names}"
    namespace: dict[str, Any] = {}
    exec(_compiled(around, file), namespace)
    made: tuple[Callable[..., Any], ...] = namespace["bind"](**bound)
    return made


# Tests open many engines of one schema.
@lru_cache(maxsize=256)
def _compiled(source: str, file: str) -> CodeType:
    code: CodeType = compile(source, file, "exec", dont_inherit=True)
    return code
