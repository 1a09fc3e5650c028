"""`get`, `insert` and `upsert` of one table, made for its columns.

They are what a procedure calls most, so they are generated: Python itself binds positions, names and defaults of the
columns; values of exactly the right types, which nearly all are, need no second look; and everything that a call
touches is a local. A loop over columns and a method on `self` would cost two to three times as much.

They know the table's dictionaries, which stay the same objects for as long as the table lives: see partitions.table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from partitions.row import LEFT_OUT, MAX_ROW_BYTES, RowFormat, encode
from voltpy.errors import DuplicateKey
from voltpy.schema import Table as TableSchema

# Column names are the functions' parameters; everything else in them begins with an underscore, as no column may.
_EXACT = {
    "INT": "_type({0}) is _int and -0x8000000000000000 <= {0} <= 0x7FFFFFFFFFFFFFFF",
    "FLOAT": "_type({0}) is _float",
    "STRING": "_type({0}) is _str",
    "BOOL": "_type({0}) is _bool",
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

# A row that was not there goes to `inserted` alone: most new rows are not read soon; those that are, are found there.
_KEYED = """
def insert({parameters}):
    "Adds a row, columns by position or by name, and returns it. Raises DuplicateKey, ConstraintViolation."
{made}
    _key = {key}
    if _get(_key) is not None:
        raise _duplicate(_key)
    _undo.append((_table, _key, None))
    if _key in _updated:
        _updated[_key] = _image
    else:
        _inserted[_key] = _image
    return _row

def upsert({parameters}):
    "Inserts a row, or replaces the one with the same key, whole; returns it. Raises ConstraintViolation."
{made}
    _key = {key}
    _old = _rows.get(_key)
    if _old is None:
        _old = _lookup(_key)
    if _old is not None:
        _rows[_key] = _row
    _undo.append((_table, _key, _old))
    if _key in _inserted or (_old is None and _key not in _updated):
        _inserted[_key] = _image
    else:
        _updated[_key] = _image
    return _row
"""

# A key that is new by construction needs no look-up.
_HIDDEN = """
def insert({parameters}):
    "Adds a row, columns by position or by name, and returns it. Raises ConstraintViolation."
    {key} = _table.new_hidden_key()
{made}
    {owned}
    _undo.append((_table, {key}, None))
    _inserted[{key}] = _image
    return _row

upsert = insert
"""


def accessors(
    table: Any,
    schema: TableSchema,
    format: RowFormat,
    rows: dict[Any, Any],
    inserted: dict[Any, bytes | None],
    updated: dict[Any, bytes | None],
    undo: list[tuple[Any, Any, Any]],
    asked: set[Any],
    lookup: Callable[[Any], Any],
) -> tuple[Callable[[Any], Any], Callable[..., Any], Callable[..., Any]]:
    """(get, insert, upsert). `lookup` finds a row that is not in `rows`; `asked` holds keys that it was asked for."""

    def get(key: Any) -> Any:
        """The row with this primary key (a tuple where it has several columns), or None."""
        row = rows.get(key)
        if row is None:
            row = lookup(key)
            if row is not None:
                # Worth keeping decoded only if it is asked for again: otherwise it goes while it is still in the
                # processor's cache, and displaces nothing.
                if key in asked:
                    rows[key] = row
                else:
                    asked.add(key)
        return row

    def duplicate(key: Any) -> DuplicateKey:
        return DuplicateKey(f"table {schema.name}: a row with key {key!r:.100} exists")

    source, bound = _source(schema)
    bound |= {
        "_get": get, "_struct": format.struct, "_encode": encode, "_validated": format.validated,
        "_table": table, "_rows": rows, "_inserted": inserted, "_updated": updated, "_undo": undo, "_lookup": lookup,
        "_verify": table.verify, "_duplicate": duplicate, "_len": len, "_type": type, "_int": int, "_float": float,
        "_str": str, "_bool": bool, "_UnicodeEncodeError": UnicodeEncodeError,
    }  # fmt: skip
    # A function around them makes all of these locals of an enclosing scope, which are read faster than globals.
    body = source.replace("\n", "\n    ")
    around = f"def bind({', '.join(bound)}):{body}\n    return insert, upsert"
    namespace: dict[str, Any] = {}
    exec(compile(around, f"<table {schema.name}>", "exec"), namespace)
    insert, upsert = namespace["bind"](**bound)
    for accessor in (get, insert, upsert):
        accessor.__qualname__ = (
            f"{schema.name}.{accessor.__name__}"  # what Python names in "got an unexpected argument"
        )
    return get, insert, upsert


def _source(schema: TableSchema) -> tuple[str, dict[str, Any]]:
    """The functions' text, and the defaults of columns that it names."""
    defaults: dict[str, Any] = {}
    parameters, exact = [], []
    given = schema.columns[:-1] if schema.hidden_key else schema.columns
    for position, column in enumerate(given):
        optional = column.has_default or column.nullable
        defaults[f"_default_{position}"] = column.default if optional else LEFT_OUT
        parameters.append(f"{column.name}=_default_{position}")
        check = _EXACT.get(column.type, "False").format(column.name)
        exact.append(f"({column.name} is None or {check})" if column.nullable else f"({check})")
    keys = [f"_row.{name}" for name in schema.primary_key]
    part = schema.partition_column
    made = _MADE.format(
        names=", ".join(column.name for column in schema.columns), exact=" and ".join(exact), limit=MAX_ROW_BYTES
    )
    source = (_HIDDEN if schema.hidden_key else _KEYED).format(
        parameters=", ".join(parameters),
        made=made.strip("\n"),
        key=schema.primary_key[0] if schema.hidden_key else keys[0] if len(keys) == 1 else f"({', '.join(keys)})",
        owned=f"if _row.{part} != _table.owner.verified:\n        _verify(_row.{part})" if part else "",
    )
    return source, defaults
