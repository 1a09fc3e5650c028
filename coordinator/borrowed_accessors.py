"""get, insert, upsert and update of a borrowed table, made for its columns as partitions make theirs.

Each looks in the cache, and checks that the call may use the partition where the row lives: that is known by the
value in its partition column, and values that were checked are remembered for the length of a run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from voltpy.errors import DuplicateKey
from voltpy.row import RowFormat
from voltpy.row_source import functions, row_source
from voltpy.schema import Table

_GET = """
def get(_key, /):
    "The row with this primary key (a tuple where it has several columns), or None."
    _row = _row_of(_key, _unknown)
    if _row is _unknown:
        _row = _missed(_key)
{admitted}
    return _row
"""

_UPDATE = """
def update(_key, /, **_changes):
    "Changes columns of the row with this key and returns it. Raises KeyError when there is none."
    _old = _row_of(_key, _unknown)
    if _old is _unknown:
        _old = _missed(_key)
{admitted}
    if _old is None:
        raise _no_row(_key)
    if not _fixed.isdisjoint(_changes):
        _check_fixed(_old, _changes)
    if _type(_key) is not _key_type:
        _key = _key_of(_old)
    _row = _replace(_old, **_changes)
    for _name, _value in _changes.items():
        # What is no number may be too large, or no text; the row is encoded at the end of the batch only.
        if _type(_value) is not _small[_name] or {odd}:
            _row, _ = _validated(_row)
            break
{unique}{changed}
    return _row
"""

# Where the table has unique indexes: at the last moment before anything changes.
_UNIQUE = """    for _index in _unique:
        _index.check(_key, _row, _old)
"""

_CHANGED = """
    if _key in _written:
        _undo.append((_table, _key, _old, False))
    else:
        _written[_key] = _old
        _undo.append((_table, _key, _old, True))
    _rows[_key] = _row
"""

_KEYED = """
def insert({parameters}):
    "Adds a row, columns by position or by name, and returns it. Raises DuplicateKey, ConstraintViolation."
{made}
    _key = {key}
    _old = _row_of(_key, _unknown)
    if _old is _unknown:
        _old = _missed(_key, False)
{admitted}
    if _old is not None:
        raise _duplicate(_key)
{unique}{changed}
    return _row

def upsert({parameters}):
    "Inserts a row, or replaces the one with the same key, whole; returns it. Raises ConstraintViolation."
{made}
    _key = {key}
    _old = _row_of(_key, _unknown)
    if _old is _unknown:
        _old = _missed(_key, False)
{admitted}
{unique}{changed}
    return _row
"""

# A key that is new by construction needs no look-up.
_HIDDEN = """
def insert({parameters}):
    "Adds a row, columns by position or by name, and returns it. Raises ConstraintViolation."
    {name} = _new_hidden_key()
{made}
    _old, _key = None, {name}
{admitted}
{unique}{changed}
    return _row

upsert = insert
"""


def accessors(
    schema: Table, row_format: RowFormat, part_of_key: int | None, bound: dict[str, Any], *, unique: bool
) -> tuple[Callable[..., Any], ...]:
    """get, insert, upsert and update. `bound`: what they work on, by the names above.

    `part_of_key`: where the value of the partition column is in a key; -1: the key is that value; None: not in it.
    `unique`: whether the table has unique indexes.
    """

    def duplicate(key: Any) -> DuplicateKey:
        return DuplicateKey(f"table {schema.name}: a row with key {key!r:.100} exists")

    def no_row(key: Any) -> KeyError:
        return KeyError(f"table {schema.name} has no row with key {key!r:.100}")

    rows = row_source(schema, row_format)
    changed = _CHANGED.strip("\n")
    checked = _UNIQUE if unique else ""
    by_row = f"_row.{schema.partition_column}"
    if schema.partition_column is None:
        admitted_key = admitted_row = "    pass"
    elif schema.hidden_key:
        admitted_key = _admission("_old is not None and ", f"_old.{schema.partition_column}", "if")
        admitted_row = _admission("", by_row, "if")
    else:
        admitted_key = _admission("", "_key" if part_of_key == -1 else f"_key[{part_of_key}]", "elif")
        admitted_row = _admission("", by_row, "elif")
    keyed = _HIDDEN if schema.hidden_key else _KEYED
    source = (
        _GET.format(admitted=admitted_key.replace("_old", "_row"))
        + keyed.format(
            parameters=rows.parameters, made=rows.made, key=rows.key, name=schema.primary_key[0],
            admitted=admitted_row, changed=changed, unique=checked,
        )
        + _UPDATE.format(admitted=admitted_key, changed=changed, odd=rows.odd, unique=checked)
    )  # fmt: skip
    small = {name: type_ for name, type_ in rows.bound["_exact"].items() if type_ is not str}
    small |= {column.name: None for column in schema.columns if column.type == "STRING"}
    names = rows.bound | bound | {"_duplicate": duplicate, "_no_row": no_row, "_small": small}
    made = functions(source, "get, insert, upsert, update", names, f"<borrowed {schema.name}>")
    for accessor in made:
        accessor.__qualname__ = f"{schema.name}.{accessor.__name__}"
    return tuple(made)


def _admission(condition: str, part: str, word: str) -> str:
    return f"    {word} {condition}{part} not in _verified:\n        _admitted({part})"
