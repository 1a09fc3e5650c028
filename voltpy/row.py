"""Rows: what a procedure holds, and the bytes that stand for them.

A row is an immutable msgspec Struct with one attribute a column. Its image is a MessagePack array of the columns in
the order of the schema, NULL as nil:

    image := array(columns) value*          value := int64 | float64 | str | bool | timestamp (ext -1) | nil

One that was written before columns were added to the table ends before them, and they have their defaults. An image is
valid when it decodes into the table's Struct: column count, types, NOT NULL and the 64-bit range are all checked by
that one call, so `RowFormat.validated` is both the type check of a new row and its canonical form (an int in
a FLOAT column becomes a float there, a timestamp becomes UTC).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from operator import attrgetter
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw, Struct

from voltpy.errors import ConstraintViolation, Corruption
from voltpy.schema import Column, Table

MAX_ROW_BYTES = 1 << 20

_INT = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
_ANNOTATIONS: dict[str, Any] = {
    "INT": _INT,
    "FLOAT": float,
    "STRING": str,
    "BOOL": bool,
    "TIMESTAMP": Annotated[datetime, Meta(tz=True)],
}
LEFT_OUT = object()  # a column without default that an insert did not name

encode = msgspec.msgpack.Encoder().encode


def _annotation(column: Column) -> Any:
    return _ANNOTATIONS[column.type] | None if column.nullable else _ANNOTATIONS[column.type]


class RowFormat:
    """How one table's rows are made, encoded, decoded and keyed."""

    __slots__ = ("_decode_head", "_table", "decode", "decode_key", "key_of", "struct")

    def __init__(self, table: Table) -> None:
        self._table = table
        fields: list[Any] = [(column.name, _annotation(column)) for column in table.columns]
        for position in range(len(fields) - table.added, len(fields)):
            fields[position] += (table.defaults[position],)
        self.struct: type[Struct] = msgspec.defstruct(
            table.name,
            fields,
            frozen=True,
            array_like=True,
            forbid_unknown_fields=True,
            gc=False,
        )
        self.decode: Callable[[bytes], Any] = msgspec.msgpack.Decoder(self.struct).decode
        # A row's key: the column's value, or a tuple where the primary key has several columns.
        self.key_of: Callable[[Any], Any] = attrgetter(*table.primary_key)
        # As much of a row as its key needs: what comes behind is only skipped.
        length = 1 + max(table.positions[name] for name in table.primary_key)
        head = [
            (column.name, _annotation(column) if column.name in table.primary_key else Raw)
            for column in table.columns[:length]
        ]
        self._decode_head: Callable[[bytes], Any] = msgspec.msgpack.Decoder(
            msgspec.defstruct(table.name, head, frozen=True, array_like=True, gc=False)
        ).decode
        key_types = tuple(map(_annotation, map(table.column, table.primary_key)))
        key_type = key_types[0] if len(key_types) == 1 else tuple.__class_getitem__(key_types)
        self.decode_key: Callable[[bytes], Any] = msgspec.msgpack.Decoder(key_type).decode

    def validated(self, row: Any) -> tuple[Any, bytes]:
        """The row as it will be read back, and its image. Raises ConstraintViolation naming the column."""
        try:
            row_as_read = self.decode(encode(row))
            image = encode(row_as_read)
            if len(image) > MAX_ROW_BYTES:
                raise ConstraintViolation(
                    f"table {self._table.name}: a row of {len(image):,} bytes; the limit is {MAX_ROW_BYTES:,}"
                )
            return row_as_read, image
        except (msgspec.ValidationError, TypeError, OverflowError, UnicodeEncodeError) as error:
            raise ConstraintViolation(self._explained(row, str(error))) from None

    def loaded(self, image: bytes) -> Any:
        """The row of an image that comes from disk. Raises Corruption when it is none of this table's."""
        try:
            return self.decode(image)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Corruption(f"table {self._table.name}: a stored row does not decode: {error}") from None

    def stored_keys(self, images: list[bytes]) -> list[Any]:
        """The primary keys of images that come from disk. Raises Corruption for what can be none of this table's.

        Of columns behind the key no more is looked at than where they end, which takes a fifth of the time: `verify`.
        """
        try:
            return list(map(self.key_of, map(self._decode_head, images)))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Corruption(f"table {self._table.name}: a stored row does not decode: {error}") from None

    def verify(self, images: Mapping[Any, bytes | None]) -> None:
        """Raises Corruption, with the key, for images that come from disk and are none of this table's."""
        try:
            for _ in map(self.decode, filter(None, images.values())):
                pass
        except (msgspec.DecodeError, UnicodeDecodeError):
            for key, image in [(key, image) for key, image in images.items() if image is not None]:  # whose it is
                try:
                    self.decode(image)
                except (msgspec.DecodeError, UnicodeDecodeError) as error:
                    what = f"table {self._table.name}, key {key!r:.100}"
                    raise Corruption(f"{what}: a stored row does not decode: {error}") from None

    def checked_key(self, key: Any) -> Any:
        """The key, when its types are those of the primary key. Raises ConstraintViolation otherwise."""
        try:
            decoded = self.decode_key(encode(key))
            if decoded != key:  # text that reads as a timestamp; NaN, which nothing would ever find again
                raise TypeError("no row could be found under it")
            return decoded
        except (msgspec.ValidationError, TypeError, OverflowError, UnicodeEncodeError) as error:
            columns = ", ".join(f"{name} {self._table.column(name).type}" for name in self._table.primary_key)
            raise ConstraintViolation(
                f"table {self._table.name}: {key!r:.100} is not a key ({columns}): {error}"
            ) from None

    def _explained(self, row: Any, message: str) -> str:
        """The error in terms of a column: which, what its type is, what was given."""
        at = re.search(r"\$\[(\d+)\]", message)
        columns = self._table.columns
        if at is not None and int(at.group(1)) < len(columns):
            column = columns[int(at.group(1))]
            value = getattr(row, column.name)
            rule = column.type + ("" if column.nullable else " NOT NULL")
            why = message.partition(" - at ")[0]
            return f"table {self._table.name}, column {column.name} ({rule}): {value!r:.100} does not fit: {why}"
        for column in columns:
            value = getattr(row, column.name)
            if value is LEFT_OUT:
                return f"table {self._table.name}: column {column.name} is NOT NULL, has no default and was left out"
            try:
                encode(value)
            except (TypeError, OverflowError, UnicodeEncodeError) as error:
                return f"table {self._table.name}, column {column.name} ({column.type}): {value!r:.100}: {error}"
        return f"table {self._table.name}: {message}"
