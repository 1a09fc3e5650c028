"""`get`, `insert`, `upsert` and `update` of one table, made for its columns.

They are what a procedure calls most, so they are generated (voltpy.row_source makes the rows), and everything that a
call touches is a local. A loop over columns and methods on `self` would cost two to three times as much.

Each looks for its row in the order of partitions.table. What is usual is spelled out here, since a call to
`Table.find_row` would cost a fifth of the whole; what is not (a key of another type, one that is away, a row of the
generation before, two keys with one hash) goes the long way, through that method.

They know the table's dictionaries, which stay the same objects for as long as the table lives.

The last committed row that was read from its page, and where it is, is remembered (`_seen_…`) until the next `apply`:
most rows that are read once are changed next. `_places` keeps where rows are that the batch changes.
"""

from __future__ import annotations

from binascii import crc_hqx
from collections.abc import Callable
from textwrap import indent
from typing import Any, NamedTuple

from partitions.heap import Heap
from partitions.index import NOWHERE, PrimaryIndex
from voltpy.errors import DuplicateKey
from voltpy.row import MAX_ROW_BYTES, RowFormat
from voltpy.row_source import RowSource, functions, row_source
from voltpy.schema import Column
from voltpy.schema import Table as TableSchema

# That the value in the partition column lives here is checked once for each value in a row: a transaction repeats its
# own. For integers it is hash_slot and Ownership.verify, spelled out: nearly every transaction passes here once.
_OWNED = {
    "INT": """if {0} != _owner.verified:
    if not _owned[_crc_hqx(b"%d" % {0}, 0) & 16383]:
        _verify({0}, _name)
    _owner.verified = {0}
""",
    "STRING": """if {0} != _owner.verified:
    _verify({0}, _name)
""",
}

# Columns of which a value is surely a key, or part of one, when its type is this.
_SIMPLE = {"INT": "_int", "STRING": "_str"}

# The row with `_key`, or None, as `_old`; UNTOUCHED will do for one that the batch has not changed, unless somebody is
# told of it. The key has the right type.
_FOUND = """
    if _key in _inserted and not _table._away:
        _before = _inserted[_key]
        _old = None if _before is None else _row_of(_key) or _decode(_before)
    elif (_old := _row_of(_key)) is None:
        if _table._away or _key in _updated or _key in _table._old:
            _old = _find_row(_key)
        elif _key == _seen_key:
            _old = {seen}
            _places[_key] = _seen_id
        else:
            _row_id = {find}
            if _row_id == {nowhere}:
{owned}
            {fetched}
                _places[_key] = _row_id
"""

# A row is worth keeping decoded only if it is asked for again: otherwise it goes while it is still in the processor's
# cache, and displaces nothing.
_GET = """
def get(_key, /):
    "The row with this primary key (a tuple where it has several columns), or None."
    nonlocal _seen_key, _seen_row, _seen_id
    _old = _row_of(_key)
    if _old is not None:
        return _old
    if {unfit} or _key in _inserted or _key in _updated or _table._away or _key in _table._old:
        _old = _find_row(_key)
    elif _key == _seen_key:
        _old = _seen_row
    else:
        try:
            _row_id = {find}
        except _UnfitKey:
            return _find_row(_key)
        if _row_id == {nowhere}:
{owned}
            _inserted[_key] = None  # whoever asks for it next most likely inserts it
            return None
        {fetched}
            _seen_key = _key
            _seen_row = _old
            _seen_id = _row_id
    if _old is not None:
        if _key in _asked:
            _rows[_key] = _old
        else:
            _ask(_key)
    return _old
"""

# Whether a float, a time or a truth value is a key, and which, needs a closer look than at its type.
_GET_THE_LONG_WAY = """
def get(_key, /):
    "The row with this primary key (a tuple where it has several columns), or None."
    _old = _row_of(_key)
    if _old is None:
        _old = _find_row(_key)
        if _old is not None:
            if _key in _asked:
                _rows[_key] = _old
            else:
                _ask(_key)
    return _old
"""

_FOUND_THE_LONG_WAY = """
    _old = _row_of(_key)
    if _old is None:
        _old = _find_row(_key)
"""

# The row comes where none was. It goes to `inserted` alone: most new rows are not read soon; those that are, are found
# there.
_COME = """    _undo.append((_table, _key, None))
    if _key in _updated:
        _updated[_key] = _image
    else:
        _inserted[_key] = _image
"""

# The row comes in the place of `_old`.
_OVER = """        if _heap.cold:
            _need(_key)
        _undo.append((_table, _key, _old))
        if _key in _rows or _key in _asked:
            _rows[_key] = _row
        else:
            _ask(_key)
        if _key in _inserted:
            _inserted[_key] = _image
        else:
            _updated[_key] = _image
"""

_KEYED = """
def insert({parameters}):
    "Adds a row, columns by position or by name, and returns it. Raises DuplicateKey, ConstraintViolation."
{made}
    _key = {key}
{found}
    if _old is not None:
        raise _duplicate(_key)
{unique}{views}{come}    return _row

def upsert({parameters}):
    "Inserts a row, or replaces the one with the same key, whole; returns it. Raises ConstraintViolation."
{made}
    _key = {key}
{found}
{unique}{views}    if _old is not None:
{over}        return _row
{come}    return _row
"""

# A key that is new by construction needs no look-up.
_HIDDEN = """
def insert({parameters}):
    "Adds a row, columns by position or by name, and returns it. Raises ConstraintViolation."
    {key} = _table.new_hidden_key()
{made}
{owned}
{unique}{views}    _undo.append((_table, {key}, None))
    _inserted[{key}] = _image
    return _row

upsert = insert
"""

# A row that is not kept decoded, and was not asked for before, is not kept now either: see _GET.
_UPDATE = """
def update(_key, /, **_changes):
    "Changes columns of the row with this key and returns it. Raises KeyError when there is none."
    _old = _undone = _row_of(_key)
    _is_kept = _old is not None
    if _old is None:
{sought}
        if _old is None:
            raise _no_row(_key)
        _is_kept = _key in _asked
        if _undone is None:
            _undone = _old
    if not _fixed.isdisjoint(_changes):
        _check_fixed(_changes)
    if {unfit}:
        _key = _key_of(_old)
    if _heap.cold:
        _need(_key)
    _row = _replace(_old, **_changes)
    for _name, _value in _changes.items():
        if _type(_value) is not _exact[_name] or {odd}:
            _row, _ = _validated(_row)
            break
    try:
        _image = _encode(_row)
    except _UnicodeEncodeError:
        _validated(_row)
        raise
    if _len(_image) > {limit}:
        _validated(_row)
{unique}{views}    _undo.append((_table, _key, _undone))
    if _is_kept:
        _rows[_key] = _row
    else:
        _ask(_key)
    if _key in _inserted:
        _inserted[_key] = _image
    else:
        _updated[_key] = _image
    return _row
"""

_SOUGHT = """
        if {unfit} or _key in _inserted or _key in _updated or _table._away or _key in _table._old:
            _old = _find_row(_key)
        elif _key == _seen_key:
            _old = _seen_row
            _places[_key] = _seen_id
            _undone = _untouched
        else:
            try:
                _row_id = {find}
            except _UnfitKey:
                _row_id = {nowhere}
            if _row_id == {nowhere}:
                _old = _find_row(_key)
            {fetched}
                _places[_key] = _row_id
                _undone = _untouched
"""

_SOUGHT_THE_LONG_WAY = """
        _old = _find_row(_key)
"""

_FORGET = """
def forget_seen():
    nonlocal _seen_key, _seen_row
    _seen_key = _seen_row = None
"""

# Of a view: the row of a group that its maintenance has just read. It is as in `upsert`, but for what that looks up.
_FOLLOW = """
def follow(_key, _old, {parameters}):
    "Puts a row in the place of `_old`, which `get` has found under this key; None: it has found none."
{made}
    if _old is not None:
{over}{place}
        return
{come}"""

# Where the table has a unique index: at the last moment before anything changes.
_UNIQUE = """    _check_unique({key}, _row, {old})
"""


# Where the table has views: behind all that could refuse the row.
_VIEWS = """    _maintain({key}, {old}, _row)
"""

# In the undo log, instead of the row before: as it is on its page. A batch would keep the decoded rows of all that it
# changes until its end, in memory that is in no cache; so each takes the place of the one before it.
UNTOUCHED = object()


class Accessors(NamedTuple):
    """What a procedure calls as `tx.<table>.get(key)` and so on."""

    get: Callable[[Any], Any]
    insert: Callable[..., Any]
    upsert: Callable[..., Any]
    update: Callable[..., Any]
    follow: Callable[..., None] | None  # of a view
    forget_seen: Callable[[], None]  # not for procedures: committed rows are about to change


def accessors(table: Any, format: RowFormat, index: PrimaryIndex, heap: Heap) -> Accessors:
    """The accessors of `table`, a partitions.table.Table."""
    schema: TableSchema = table.schema

    def duplicate(key: Any) -> DuplicateKey:
        return DuplicateKey(f"table {schema.name}: a row with key {key!r:.100} exists")

    def no_row(key: Any) -> KeyError:
        return KeyError(f"table {schema.name} has no row with key {key!r:.100}")

    rows = row_source(schema, format)
    has_unique, has_views = table.lookups is not None and bool(table.lookups.unique), table.maintain is not None
    is_told = table.lookups is not None or has_views  # somebody, of the row before: UNTOUCHED won't do
    find, names_of_find = index.find_source("_key")
    source = _source(schema, index, rows, find, is_told=is_told, has_unique=has_unique, has_views=has_views)
    bound = rows.bound | names_of_find | {
        "_table": table, "_rows": table._rows, "_row_of": table._rows.get, "_inserted": table._inserted,
        "_places": table._places,
        "_untouched": None if is_told else UNTOUCHED,
        "_updated": table._updated, "_asked": table._asked, "_ask": table._asked.add, "_undo": table._undo,
        "_owner": table.owner, "_owned": table.owner.owned, "_crc_hqx": crc_hqx,
        "_verify": table.owner.verify, "_name": schema.name, "_find_row": table._find_row,
        "_check_fixed": table._check_fixed,
        "_check_unique": None if table.lookups is None else table.lookups.unique.check,
        "_maintain": table.maintain, "_read": heap.read,
        "_heap": heap, "_need": table.need, "_key_type": table._key_type, "_tuple": tuple,
        "_fixed": table._fixed_columns,
        "_duplicate": duplicate, "_no_row": no_row, "_UnfitKey": (OverflowError, UnicodeEncodeError),
    }  # fmt: skip
    source = f"\n_seen_key = _seen_row = None; _seen_id = {NOWHERE}{source}"
    names = f"get, insert, upsert, update, {'None' if schema.view is None else 'follow'}, forget_seen"
    made = Accessors(*functions(source, names, bound, f"<table {schema.name}>"))
    for accessor in filter(None, made):
        # What Python names in "got an unexpected argument".
        accessor.__qualname__ = f"{schema.name}.{accessor.__name__}"
    return made


def _source(
    schema: TableSchema,
    index: PrimaryIndex,
    rows: RowSource,
    find: str,
    *,
    is_told: bool,
    has_unique: bool,
    has_views: bool,
) -> str:
    """The functions' text."""
    views = _VIEWS.format(key="_key", old="_old") if has_views else ""
    unique = _UNIQUE.format(key="_key", old="_old") if has_unique else ""
    part = schema.partition_column
    owned = _OWNED[schema.column(part).type] if part else "pass"
    owned_row = owned.format(f"_row.{part}")
    # An integer key is the index's own, so what is found under it is its row; a hash may be another key's too.
    fetched = "else:\n    _old = _decode(_read(_row_id))"
    if not index.ordered:
        fetched = "elif _row_id < 0 or _key_of(_old := _decode(_read(_row_id))) != _key:\n"
        fetched += "    _old = _find_row(_key)\nelse:"
    key_columns = [schema.column(name) for name in schema.primary_key]
    key_types = {column.type for column in key_columns}
    is_null_a_key = len(key_columns) == 1 and key_columns[0].nullable  # of a view; `_seen_key` is None for none
    if schema.hidden_key:
        keyed = _HIDDEN.format(
            parameters=rows.parameters,
            made=rows.made,
            key=schema.primary_key[0],
            owned=indent(owned_row, 4 * " "),
            unique=_UNIQUE.format(key=schema.primary_key[0], old=None) if has_unique else "",
            views=_VIEWS.format(key=schema.primary_key[0], old=None) if has_views else "",
        )
    else:
        found = _FOUND_THE_LONG_WAY if "FLOAT" in key_types or is_null_a_key else _FOUND
        owned_row = indent(owned_row, 16 * " ")
        if is_told:
            there, seen = fetched, "_seen_row"
        else:
            there = ("else:" if index.ordered else fetched) + "\n    _old = _untouched"
            seen = "_untouched"
        found = found.format(owned=owned_row, find=find, nowhere=NOWHERE, fetched=_inside(there, 12), seen=seen)
        found = found.strip("\n")
        keyed = _KEYED.format(
            parameters=rows.parameters, made=rows.made, key=rows.key, found=found, unique=unique, views=views,
            come=_COME, over=_OVER,
        )  # fmt: skip
    owned_key = owned.format(_part_of_key(schema)) if part in schema.primary_key else "pass"
    is_simple = key_types <= _SIMPLE.keys() and not is_null_a_key
    unfit = _unfit(key_columns) if is_simple else "_type(_key) is not _key_type"
    get = _GET if is_simple else _GET_THE_LONG_WAY
    get = get.format(
        owned=indent(owned_key, 12 * " "), unfit=unfit, find=find, nowhere=NOWHERE, fetched=_inside(fetched, 8)
    )
    sought = _SOUGHT if is_simple else _SOUGHT_THE_LONG_WAY
    sought = sought.format(unfit=unfit, find=find, nowhere=NOWHERE, fetched=_inside(fetched, 12)).strip("\n")
    update = _UPDATE.format(limit=MAX_ROW_BYTES, odd=rows.odd, unique=unique, views=views, sought=sought, unfit=unfit)
    follow = ""
    if schema.view is not None:
        place = "            if _key == _seen_key:\n                _places[_key] = _seen_id" if is_simple else ""
        follow = _FOLLOW.format(parameters=rows.parameters, made=rows.made, place=place, come=_COME, over=_OVER)
    return get + keyed + update + follow + _FORGET


def _part_of_key(schema: TableSchema) -> str:
    """The value in the partition column, which is in the key, of `_key`."""
    if len(schema.primary_key) == 1:
        return "_key"
    return f"_key[{schema.primary_key.index(str(schema.partition_column))}]"


def _unfit(key_columns: list[Column]) -> str:
    """The condition under which `_key` is none, or equal to one and of another type (True, 1.0)."""
    if len(key_columns) == 1:
        return "_type(_key) is not _key_type"
    parts = [f"_type(_key[{at}]) is not {_SIMPLE[column.type]}" for at, column in enumerate(key_columns)]
    return " or ".join(["_type(_key) is not _tuple", f"_len(_key) != {len(key_columns)}", *parts])


def _inside(text: str, spaces: int) -> str:
    """The lines of a text from the second on, as deep as the first stands."""
    return text.replace("\n", "\n" + spaces * " ")
