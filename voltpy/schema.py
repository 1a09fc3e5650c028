"""Tables, columns and indexes as every process sees them: plain values, JSON in the data directory.

The SQL text is read by `voltpy.sql.ddl` in the process that starts the cluster; partitions get this, so that none of
them imports a SQL parser.

schema.json is one JSON object, `{"tables": [Table…], "indexes": [Index…], "version": 2, "catalog_version": C}`, with
the fields below in their order. A default is the JSON value of its column's type; a TIMESTAMP is an ISO 8601 string.
The bytes are valid when they decode into these types and `check` finds nothing. Version 1 is the same without dropped
tables, added columns and catalog version.

A schema changes only in ways that leave everything readable that was ever written under an earlier one: tables are
added, and leave their number behind when they are dropped; columns are added at the end, and rows that were written
before are shorter; indexes are made of rows. So a WAL or a checkpoint needs no word about the schema it was written
under: the newest reads them all.
"""

from __future__ import annotations

import keyword
import unicodedata
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any, Literal

import msgspec
from msgspec import Struct

from voltpy.errors import SchemaError
from voltpy.view import View

TypeName = Literal["INT", "FLOAT", "STRING", "BOOL", "TIMESTAMP"]
IndexKind = Literal["INVERTED", "HASH", "BTREE"]
Value = int | float | str | bool | datetime | None

PYTHON_TYPES: dict[TypeName, type] = {"INT": int, "FLOAT": float, "STRING": str, "BOOL": bool, "TIMESTAMP": datetime}
INT_MIN = -(1 << 63)
INT_MAX = (1 << 63) - 1

HIDDEN_KEY = "rowid"  # the primary key of a table that declares none; the last column of its rows
FORMAT_VERSION = 2
VIEW_KINDS = ("rows", "count", "sum", "min", "max")  # of what a view keeps
MAX_COLUMNS = 1000  # declared ones: a hidden key comes on top
MAX_TABLES = 1000
MAX_TABLE_NUMBERS = 10_000  # those of dropped tables among them
MAX_KEY_COLUMNS = 32  # of a primary key or an index
MAX_NAME = 128
# What statements may make of a schema, as JSON: it travels with the procedures in one frame (voltpy.messages).
MAX_CHANGED_BYTES = 8 << 20
# What columns that are added may make an old row longer by: it must still be read, and written.
MAX_ADDED_BYTES = 64 << 10

TX_ATTRIBUTES = frozenset({"abort", "execute", "now", "random", "uuid", "unique_id"})
CATALOG_TABLES = frozenset({"db_tables", "db_columns", "db_indexes"})
# A name among these can be declared only in quotes, as in PostgreSQL: unquoted, no query could use it.
RESERVED_WORDS = frozenset({
    "ALL", "ANALYSE", "ANALYZE", "AND", "ANY", "ARRAY", "AS", "ASC", "ASYMMETRIC", "BOTH", "CASE", "CAST",
    "CHECK", "COLLATE", "COLUMN", "CONSTRAINT", "CREATE", "CURRENT_CATALOG", "CURRENT_DATE", "CURRENT_ROLE",
    "CURRENT_TIME", "CURRENT_TIMESTAMP", "CURRENT_USER", "DEFAULT", "DEFERRABLE", "DESC", "DISTINCT", "DO",
    "ELSE", "END", "EXCEPT", "FALSE", "FETCH", "FOR", "FOREIGN", "FROM", "GRANT", "GROUP", "HAVING", "IN",
    "INITIALLY", "INTERSECT", "INTO", "LATERAL", "LEADING", "LIMIT", "LOCALTIME", "LOCALTIMESTAMP", "NOT",
    "NULL", "OFFSET", "ON", "ONLY", "OR", "ORDER", "PLACING", "PRIMARY", "REFERENCES", "RETURNING", "SELECT",
    "SESSION_USER", "SOME", "SYMMETRIC", "SYSTEM_USER", "TABLE", "THEN", "TO", "TRAILING", "TRUE", "UNION",
    "UNIQUE", "USER", "USING", "VARIADIC", "WHEN", "WHERE", "WINDOW", "WITH",
})  # fmt: skip


class Column(Struct, frozen=True):
    """`default` counts when `has_default`; a nullable column without one defaults to NULL."""

    name: str
    type: TypeName
    nullable: bool
    has_default: bool = False
    default: Any = None  # a Value: msgspec decodes no union of str and datetime, so `from_json` mends and checks it


class Index(Struct, frozen=True):
    """`unique`: no two rows of the table are equal in these columns; with NULL in one of them, they are not equal."""

    name: str
    table: str
    kind: IndexKind
    columns: tuple[str, ...]
    unique: bool = False


class Table(Struct, frozen=True, dict=True):
    """`partition_column` None: a full copy in every partition. A hidden key is a column like others: it stands behind
    those that the table was made with.

    The last `added` columns came when there may have been rows already: those end before them, and have their defaults.
    Of a `dropped` table only the name is kept, and the number that stays behind.

    Positions count the columns from 0. They are worked out once for each Table object.
    """

    name: str
    columns: tuple[Column, ...]
    primary_key: tuple[str, ...]
    hidden_key: bool
    partition_column: str | None
    added: int = 0
    dropped: bool = False
    view: View | None = None  # of another table: nobody but the partition that has it writes it

    def column(self, name: str) -> Column:
        position = self.positions.get(name)
        if position is None:
            raise SchemaError(f"table {self.name} has no column {name}")
        return self.columns[position]

    @cached_property
    def positions(self) -> dict[str, int]:
        """Column name → position."""
        return {column.name: position for position, column in enumerate(self.columns)}

    @cached_property
    def declared_positions(self) -> tuple[int, ...]:
        """Where the columns are that rows are given for: all but a hidden key, and those that a view hides."""
        if self.view is not None:
            return tuple(range(len(self.columns) - self.view.hidden))
        hidden = self.positions[HIDDEN_KEY] if self.hidden_key else -1
        return tuple(position for position in range(len(self.columns)) if position != hidden)

    @cached_property
    def declared(self) -> tuple[Column, ...]:
        """The columns that rows are given for, in the order in which they are."""
        return tuple(self.columns[position] for position in self.declared_positions)

    @cached_property
    def key_positions(self) -> tuple[int, ...]:
        """Where the columns of the primary key are, in the key's order."""
        return tuple(self.positions[name] for name in self.primary_key)

    @cached_property
    def partition_position(self) -> int | None:
        """Where the partition column is; None for a full copy."""
        return None if self.partition_column is None else self.positions[self.partition_column]

    @cached_property
    def partition_key_index(self) -> int | None:
        """Where the partition column is within the primary key; None if it is no part of it (hidden key, full copy)."""
        return self.primary_key.index(self.partition_column) if self.partition_column in self.primary_key else None

    @cached_property
    def python_types(self) -> tuple[type, ...]:
        """The Python type of each column's values; a nullable column holds None too."""
        return tuple(PYTHON_TYPES[column.type] for column in self.columns)

    @cached_property
    def defaults(self) -> tuple[Value, ...]:
        """What each column holds when a row leaves it out. A column that must be given has None here."""
        return tuple(column.default if column.has_default else None for column in self.columns)

    @cached_property
    def required(self) -> tuple[bool, ...]:
        """Which columns an insert must give: NOT NULL, without a default, and not the hidden key."""
        return tuple(
            not column.nullable and not column.has_default and not (self.hidden_key and column.name == HIDDEN_KEY)
            for column in self.columns
        )


class Schema(Struct, frozen=True, dict=True):
    """Tables in the order of their creation: a table's position is its number in the WAL, for ever.

    `catalog_version` is that of the change that made this schema of a running cluster's; 0: there was none.
    """

    tables: tuple[Table, ...]
    indexes: tuple[Index, ...]
    version: int = FORMAT_VERSION
    catalog_version: int = 0

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Table name → table number, of those that are not dropped."""
        return {table.name: number for number, table in enumerate(self.tables) if not table.dropped}

    @cached_property
    def live(self) -> tuple[Table, ...]:
        """The tables that are not dropped."""
        return tuple(table for table in self.tables if not table.dropped)

    @cached_property
    def dropped_names(self) -> frozenset[str]:
        """The names of dropped tables that no other table has now."""
        return frozenset(table.name for table in self.tables if table.dropped) - self.numbers.keys()

    def table(self, name: str) -> Table:
        number = self.numbers.get(name)
        if number is None:
            raise SchemaError(f"there is no table {name}")
        return self.tables[number]

    def views_of(self, table: str) -> tuple[Table, ...]:
        return tuple(each for each in self.live if each.view is not None and each.view.base == table)

    def indexes_of(self, table: str) -> tuple[Index, ...]:
        return tuple(index for index in self.indexes if index.table == table)

    def indexes_at(self, number: int) -> tuple[Index, ...]:
        """Those of the table with this number; a dropped one has none, though another may have its name now."""
        table = self.tables[number]
        return () if table.dropped else self.indexes_of(table.name)


def to_json(schema: Schema) -> bytes:
    return msgspec.json.format(msgspec.json.encode(schema))


def from_json(data: bytes) -> Schema:
    """Raises SchemaError when the bytes are not a schema of this version."""
    try:
        schema = msgspec.json.decode(data, type=Schema)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SchemaError(f"not a stored schema: {error}") from None
    if schema.version not in (1, FORMAT_VERSION):
        raise SchemaError(f"the schema has format version {schema.version}; this program reads up to {FORMAT_VERSION}")
    tables = tuple(
        msgspec.structs.replace(table, columns=tuple(map(_with_typed_default, table.columns)))
        for table in schema.tables
    )
    schema = Schema(tables, schema.indexes, catalog_version=schema.catalog_version)
    check(schema)
    return schema


def added_unique_indexes(before: Schema, schema: Schema) -> list[Index]:
    """Those on tables that are in both: rows that are there already may not satisfy them."""
    there = {name for name, _ in before.numbers.items() & schema.numbers.items()}
    return [index for index in schema.indexes if index.unique and index.table in there and index not in before.indexes]


def _with_typed_default(column: Column) -> Column:
    """The column with its default as it was before JSON made it a plain value."""
    if column.type == "TIMESTAMP" and type(column.default) is str:
        try:
            return msgspec.structs.replace(column, default=utc(datetime.fromisoformat(column.default)))
        except (ValueError, OverflowError):
            raise SchemaError(f"column {column.name}: {column.default!r} is not a timestamp") from None
    return column


def utc(moment: datetime) -> datetime:
    """The same moment in UTC; one without a time zone is UTC already. Raises OverflowError at the calendar's ends."""
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def name_problem(name: str) -> str | None:
    """Why a table, column or index can't have this name, or None. Names are attributes in Python (`row.city`)."""
    if not name.isidentifier():
        return "not a Python identifier"
    if keyword.iskeyword(name):
        return "a Python keyword"
    if name.startswith("_"):
        return "a name that begins with _"
    if unicodedata.normalize("NFKC", name) != name:
        return "a name that Python spells otherwise (not in Unicode normal form NFKC)"
    if len(name) > MAX_NAME:
        return f"a name of {len(name)} characters, and {MAX_NAME} is the limit"
    return None


def table_name_problem(name: str) -> str | None:
    """The same for a table: `tx.<table>` must not hide what `tx` has."""
    if name in TX_ATTRIBUTES:
        return f"taken by tx.{name}"
    if name in CATALOG_TABLES:
        return "a table of the catalog"
    return name_problem(name)


def default_fits(column: Column) -> bool:
    """Whether the default is a value that the column can hold."""
    default = column.default
    if not column.has_default or default is None:
        return default is None and not (column.has_default and not column.nullable)
    if type(default) is not PYTHON_TYPES[column.type]:
        return False
    if isinstance(default, datetime):
        return default.utcoffset() == timedelta(0)
    return not isinstance(default, int) or INT_MIN <= default <= INT_MAX


def check(schema: Schema) -> None:
    """Raises SchemaError for a schema that no SQL text could have made, such as one that was damaged on disk."""
    _refuse(len(schema.numbers) != len(schema.live), "a table name occurs twice")
    _refuse(len(schema.live) > MAX_TABLES, f"more than {MAX_TABLES} tables")
    _refuse(len(schema.tables) > MAX_TABLE_NUMBERS, f"more than {MAX_TABLE_NUMBERS} tables, the dropped ones counted")
    _refuse(schema.catalog_version < 0, f"catalog version {schema.catalog_version}")
    _refuse(len({index.name for index in schema.indexes}) != len(schema.indexes), "an index name occurs twice")
    for table in schema.tables:
        problem = table_name_problem(table.name)
        _refuse(problem is not None, f"table {table.name!r}: {problem}")
        if table.dropped:
            _refuse(table != tombstone(table), f"table {table.name} is dropped, and not gone")
            continue
        _check_columns(table)
        _check_keys(table)
        if table.view is not None:
            _check_view(schema, table, table.view)
    for index in schema.indexes:
        problem = name_problem(index.name)
        _refuse(problem is not None, f"index {index.name!r}: {problem}")
        table = schema.table(index.table)
        for name in index.columns:
            _refuse(table.hidden_key and name == HIDDEN_KEY, f"index {index.name} is on a hidden key")
            table.column(name)
        _check_column_list(index.columns, f"index {index.name}")
        _refuse(
            index.unique and not can_be_unique(table, index.columns),
            f"index {index.name} is unique and without {table.partition_column}",
        )


def can_be_unique(table: Table, columns: tuple[str, ...]) -> bool:
    """Whether rows that are equal in these columns are in one partition, which can see that they are."""
    return table.partition_column is None or table.partition_column in columns


def _check_columns(table: Table) -> None:
    _refuse(len(table.positions) != len(table.columns), f"table {table.name}: a column name occurs twice")
    hidden = table.hidden_key if table.view is None else table.view.hidden
    _refuse(len(table.columns) - hidden not in range(1, MAX_COLUMNS + 1), f"table {table.name}: column count")
    for column in table.columns:
        problem = name_problem(column.name)
        _refuse(problem is not None, f"table {table.name}, column {column.name!r}: {problem}")
        _refuse(not default_fits(column), f"table {table.name}, column {column.name}: the default doesn't fit")
    _refuse(table.added not in range(len(table.columns)), f"table {table.name}: added columns")
    for column in table.columns[len(table.columns) - table.added :]:
        problem = addition_problem(column)
        _refuse(problem is not None, f"table {table.name}, column {column.name}, which was added: {problem}")


def _check_keys(table: Table) -> None:
    _check_column_list(table.primary_key, f"the primary key of {table.name}")
    for name in table.primary_key:
        is_nullable = table.column(name).nullable and table.view is None
        _refuse(is_nullable, f"table {table.name}: {name} is nullable and in the primary key")
    if table.hidden_key:
        hidden = Column(HIDDEN_KEY, "INT", nullable=False)
        _refuse(table.primary_key != (HIDDEN_KEY,), f"table {table.name}: the hidden key is not {HIDDEN_KEY}")
        last = len(table.columns) - table.added - 1
        _refuse(table.columns[last] != hidden, f"table {table.name}: the hidden key is not in its place")
    if table.partition_column is not None:
        column = table.column(table.partition_column)
        _refuse(column.nullable, f"table {table.name}: the partition column {column.name} is nullable")
        _refuse(column.type not in ("INT", "STRING"), f"table {table.name}: partition column of type {column.type}")
        _refuse(
            (column.name in table.primary_key) == table.hidden_key,
            f"table {table.name}: the partition column {column.name} is not a declared part of the primary key",
        )


def _check_view(schema: Schema, table: Table, view: View) -> None:
    base = schema.table(view.base)
    where = f"view {table.name}"
    is_first = schema.numbers[base.name] < schema.numbers[table.name]
    _refuse(base.view is not None or not is_first, f"{where}: {base.name} is no table that stands before it")
    own = (view.own_key,) if view.own_key else ()
    keys = table.primary_key[len(own) :]
    _refuse(table.primary_key[: len(own)] != own or len(keys) != len(view.keys), f"{where}: its keys")
    kept = [each.column for each in view.kept]
    _refuse(sorted((*own, *keys, *kept)) != sorted(table.positions), f"{where}: its columns")
    _refuse([each.kind for each in view.kept].count("rows") != 1, f"{where}: no count of rows")
    for each in view.kept:
        has_argument = (each.argument is not None) == (each.kind != "rows")
        _refuse(each.kind not in VIEW_KINDS or not has_argument, f"{where}, column {each.column}")
        _refuse(each.count != "" and each.count not in kept, f"{where}, column {each.column}: its count")
    _refuse((base.partition_column is None) != (table.partition_column is None), f"{where}: where its rows live")


def _check_column_list(names: tuple[str, ...], of: str) -> None:
    _refuse(len(names) not in range(1, MAX_KEY_COLUMNS + 1) or len(set(names)) != len(names), f"the columns of {of}")


def _refuse(wrong: bool, what: str) -> None:
    if wrong:
        raise SchemaError(f"not a valid schema: {what}")


def tombstone(table: Table) -> Table:
    """What is left of a table that is dropped."""
    return Table(table.name, (Column(HIDDEN_KEY, "INT", nullable=False),), (HIDDEN_KEY,), True, None, dropped=True)


def addition_problem(column: Column) -> str | None:
    """Why the column can't be added to a table that may have rows, or None."""
    return None if column.nullable or column.has_default else "NOT NULL without a DEFAULT: what would old rows have?"


def with_column(table: Table, column: Column) -> Table:
    """The table with one more column, behind all others."""
    return msgspec.structs.replace(table, columns=(*table.columns, column), added=table.added + 1)


def added_bytes(table: Table) -> int:
    """How much longer the texts that added columns default to make a row which was written before."""
    defaults = (column.default for column in table.columns[len(table.columns) - table.added :])
    return sum(len(default.encode()) for default in defaults if isinstance(default, str))


def repartitioned(old: Schema, new: Schema) -> list[int]:
    """The numbers of the tables whose rows would live elsewhere in the new schema."""
    return [
        number
        for number, (before, after) in enumerate(zip(old.tables, new.tables, strict=False))
        if not after.dropped and before.partition_column != after.partition_column
    ]


def grown(stored: Schema, given: Schema, before: Schema | None = None) -> Schema:
    """The stored schema with what the given one adds to it: tables, indexes, columns at a table's end.

    `before` is the schema that was given last: the stored one may have moved on since, by statements. What they added
    stays, though the given schema lacks it; what they dropped stays dropped, though the given schema has it still.
    Raises SchemaError, naming the table and column, when the given one does more than add.
    """
    before = stored if before is None else before
    tables = [table if table.dropped else _grown_table(table, given, before) for table in stored.tables]
    known = stored.numbers.keys() | before.numbers.keys()
    tables += [table for table in given.live if table.name not in known]
    indexes = list(stored.indexes)
    by_name, stored_by_name, before_by_name = (
        {index.name: index for index in schema.indexes} for schema in (given, stored, before)
    )
    for index in stored.indexes:
        now = by_name.get(index.name)
        if now is None and index.name in before_by_name:
            raise SchemaError(f"index {index.name} is stored and missing from the new schema; {_ONLY_GROWS}")
        if now is not None and now != index and now != before_by_name.get(index.name):
            raise SchemaError(
                f"index {index.name}: stored as {index_text(index)}, now {index_text(now)}; {_ONLY_GROWS}"
            )
    numbers = {table.name for table in tables if not table.dropped}
    for index in given.indexes:
        if index.name not in stored_by_name and index != before_by_name.get(index.name):
            if index.table not in numbers:
                raise SchemaError(f"index {index.name} is on table {index.table}, which has been dropped since")
            indexes.append(index)
    schema = Schema(tuple(tables), tuple(indexes), catalog_version=stored.catalog_version)
    check(schema)
    return schema


_ONLY_GROWS = "a stored schema may only gain tables, indexes, and columns at the end of a table"


def _grown_table(table: Table, given: Schema, before: Schema) -> Table:
    """A stored table with the columns that the given schema has beyond it."""
    if table.name not in given.numbers:
        if table.name in before.numbers:
            raise SchemaError(f"table {table.name} is stored and missing from the new schema; {_ONLY_GROWS}")
        return table
    new = given.table(table.name)
    old = before.table(table.name) if table.name in before.numbers else table
    if new == old:
        return table  # nothing new was given, whatever statements have made of it
    difference = _difference(table, new, old)
    if difference is not None:
        raise SchemaError(f"table {table.name}: {difference}; {_ONLY_GROWS}")
    for column in new.declared[len(table.declared) :]:
        table = with_column(table, column)
    return table


def _difference(stored: Table, new: Table, before: Table) -> str | None:
    """The first difference between two definitions of one table that is no addition, in words."""
    if stored == new:
        return None
    if (stored.view is None) != (new.view is None):
        return "one is a view, and the other is none"
    if stored.view is not None and new.view is not None and stored.view.query != new.view.query:
        return f"the view is stored as {stored.view.query}, now {new.view.query}"
    for column in stored.declared:
        if column.name not in new.positions and column.name in before.positions:
            return f"column {column.name} is stored and missing from the new schema"
    for column in new.declared:
        if column.name not in stored.positions:
            problem = addition_problem(column)
            if problem is not None:
                return f"column {column.name} is new, and {problem}"
            continue
        then, now = column_text(stored.column(column.name)), column_text(column)
        if then != now:
            return f"column {column.name} is stored as {then}, now {now}"
    if stored.primary_key != new.primary_key:
        return f"the primary key is stored as ({', '.join(stored.primary_key)}), now ({', '.join(new.primary_key)})"
    if stored.partition_column != new.partition_column and new.partition_column != before.partition_column:
        return (
            f"stored as {_partition_words(stored.partition_column)}, and the new schema has it "
            f"{_partition_words(new.partition_column)}"
        )
    shorter, longer = sorted((stored.declared, new.declared), key=len)
    if longer[: len(shorter)] != shorter:
        return "its columns stand in another order"
    return None


def _partition_words(column: str | None) -> str:
    return "a full copy in every partition" if column is None else f"partitioned on {column}"


def describe(schema: Schema) -> str:
    """The schema as SQL, from which `voltpy.sql.ddl.parse_schema` makes one with the same tables and indexes."""
    return "".join(map(_table_text, schema.live)) + "".join(f"{index_text(index)};\n" for index in schema.indexes)


def _table_text(table: Table) -> str:
    if table.view is not None:
        return f"CREATE VIEW {_quoted(table.name)} AS {table.view.query};\n"
    lines = [column_text(column) for column in table.declared]
    if not table.hidden_key:
        lines.append(f"PRIMARY KEY ({_names(table.primary_key)})")
    text = f"CREATE TABLE {_quoted(table.name)} (\n    " + ",\n    ".join(lines) + "\n);\n"
    if table.partition_column is not None:
        text += f"PARTITION TABLE {_quoted(table.name)} ON COLUMN {_quoted(table.partition_column)};\n"
    return text


def column_text(column: Column) -> str:
    """A column as SQL: `balance INT NOT NULL DEFAULT 0`."""
    text = f"{_quoted(column.name)} {column.type}"
    if not column.nullable:
        text += " NOT NULL"
    if column.has_default:
        text += f" DEFAULT {_literal(column.default)}"
    return text


def index_text(index: Index) -> str:
    """An index as SQL, without the semicolon."""
    create = "CREATE UNIQUE INDEX" if index.unique else "CREATE INDEX"
    return f"{create} {_quoted(index.name)} ON {_quoted(index.table)} USING {index.kind} ({_names(index.columns)})"


def _literal(value: Value) -> str:
    if value is None or isinstance(value, bool):
        return {None: "NULL", True: "TRUE", False: "FALSE"}[value]
    if isinstance(value, datetime):
        return f"'{value.isoformat()}'"
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return repr(value)


def _names(names: tuple[str, ...]) -> str:
    return ", ".join(map(_quoted, names))


def _quoted(name: str) -> str:
    return name if name == name.lower() and name.upper() not in RESERVED_WORDS else f'"{name}"'
