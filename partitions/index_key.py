"""Values of indexed columns → keys of a secondary index's tree, such that equal values have equal keys.

    one column, not STRING     a 64-bit number in the order of the values: the INT itself, 0 or 1 for a BOOL, the
                               microseconds since 1970 of a TIMESTAMP, a FLOAT's bits (negative ones turned around)
    BTREE: one STRING          its UTF-8, which is in the order of the code points
    BTREE: several columns     part*, bytes in the order of the rows, column by column
    else                       87 bits of a hash of the values

    part       = 0x01 body | 0x02                              the second is NULL: behind all values, as in PostgreSQL
    body       = number + 2**63, 8 bytes, big-endian, with 0xFE written as 0xFE 0x01, 0xFF as 0xFE 0x02
               | UTF-8 with 0x00 written as 0x00 0x01, 0x00 0x00      of a STRING

No key contains 0xFF, as no UTF-8 does, so one behind the beginning of a key is behind all that begin so, and
partitions.packed_tree can have it between keys.

In one column alone NULL has no key. It is a value like others among several columns; whether two rows with it are equal
is for the one who asks to say.

A hash of 87 bits instead of the values: 34 bytes a row whatever the values. Two of a billion values share one with a
probability of 1 to 300 million, and then each is found with the other. The hash has a seed that no client knows, so
that nobody can make such values.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from datetime import UTC, datetime
from operator import attrgetter
from typing import Any, TypeAlias

from xxhash import xxh3_128_intdigest

from voltpy.row import encode
from voltpy.schema import INT_MAX, INT_MIN, Index, TypeName
from voltpy.schema import Table as TableSchema

Key: TypeAlias = "int | bytes"

MARK_BITS = 23  # of a hashed key, beside the 64 of the number
_HASH_BITS = 64 + MARK_BITS
_HALF = 1 << 63
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NAN = 0x7FF8000000000000  # greater than all numbers, as in PostgreSQL, and equal to itself
_NULL = b"\x02"
_BEHIND = b"\xff"  # behind the beginning of a key: greater than all that begin so
_bits_of = struct.Struct("<q").unpack
_number_bytes = struct.Struct(">BQ").pack
_float_bytes = struct.Struct("<d").pack


class UnfitValue(TypeError):
    """No row of the column can be equal to such a value, or only Python knows which are."""


def _float_number(value: float) -> int:
    if value != value:
        return _NAN
    bits: int = _bits_of(_float_bytes(value + 0.0))[0]  # -0.0 becomes 0.0
    return bits if bits >= 0 else bits ^ 0x7FFFFFFFFFFFFFFF


def _moment_number(value: datetime) -> int:
    since = value - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


_NUMBERS: dict[TypeName, Callable[[Any], int]] = {
    "INT": int,
    "BOOL": int,
    "FLOAT": _float_number,
    "TIMESTAMP": _moment_number,
}


def _string_part(value: str | None) -> bytes:
    if value is None:
        return _NULL
    body = value.encode()
    if b"\0" in body:
        body = body.replace(b"\0", b"\0\1")
    return b"\x01%b\0\0" % body


def _number_part(number_of: Callable[[Any], int]) -> Callable[[Any], bytes]:
    def part(value: Any) -> bytes:
        if value is None:
            return _NULL
        bare = _number_bytes(1, number_of(value) + _HALF)
        if b"\xfe" in bare or b"\xff" in bare:
            return bare.replace(b"\xfe", b"\xfe\1").replace(b"\xff", b"\xfe\2")
        return bare

    return part


def _hashable(type_name: TypeName) -> Callable[[Any], Any]:
    """Makes values that are equal have equal MessagePack bytes; those that are stored have the column's type."""
    return (lambda value: None if value is None else _float_number(value)) if type_name == "FLOAT" else lambda v: v


class KeyFormat:
    """How one index makes keys of rows (`of_row`), and of values that are asked for.

    `number`: the keys are 64-bit numbers; `hashed`: they are hashes; else bytes. All but hashes are in order.
    """

    __slots__ = (
        "_hash_parts",
        "_make",
        "_parts",
        "_types",
        "columns",
        "hashed",
        "number",
        "of_row",
        "seed",
        "values_of",
    )

    def __init__(self, table: TableSchema, index: Index, seed: int) -> None:
        self.columns = index.columns
        self.seed = seed
        self._types: list[TypeName] = [table.column(name).type for name in index.columns]
        self.number = len(self._types) == 1 and self._types[0] != "STRING"
        self.hashed = not self.number and index.kind != "BTREE"
        self._parts = [_string_part if t == "STRING" else _number_part(_NUMBERS[t]) for t in self._types]
        self.values_of: Callable[[Any], Any] = attrgetter(*index.columns)  # a value, or a tuple of several
        self._make = self._maker(seed)
        self.of_row = self._row_maker()

    def _maker(self, seed: int) -> Callable[[Any], Key]:
        """The value, or the tuple of values, → the key. Not for NULL alone."""
        if self.number:
            return _NUMBERS[self._types[0]]
        single = len(self._types) == 1
        if self.hashed:
            shift = 128 - _HASH_BITS
            if "FLOAT" not in self._types:
                return lambda values: xxh3_128_intdigest(encode(values), seed) >> shift
            same = [_hashable(type_name) for type_name in self._types]

            def hash_of(values: Any) -> int:
                alike = [make(value) for make, value in zip(same, values, strict=True)]
                return xxh3_128_intdigest(encode(alike), seed) >> shift

            return hash_of
        if single:
            return str.encode
        parts = self._parts
        if len(parts) == 2:
            first, second = parts
            return lambda values: first(values[0]) + second(values[1])
        return lambda values: b"".join([make(value) for make, value in zip(parts, values, strict=True)])

    def _row_maker(self) -> Callable[[Any], Key | None]:
        make, values_of = self._make, self.values_of
        if len(self._types) > 1:
            return lambda row: make(values_of(row))
        if self._types[0] in ("INT", "BOOL"):
            return values_of  # True is 1 in every tree

        def of_row(row: Any) -> Key | None:
            value = values_of(row)
            return None if value is None else make(value)

        return of_row

    def of_values(self, values: tuple[Any, ...]) -> Key | None:
        """The key of rows with these values, None for NULL alone. Raises UnfitValue."""
        canonical = [self._canonical(position, value) for position, value in enumerate(values)]
        if len(canonical) != len(self._types):
            raise TypeError(f"{len(canonical)} values for the columns {', '.join(self.columns)}")
        if len(canonical) > 1:
            return self._make(tuple(canonical))
        return None if canonical[0] is None else self._make(canonical[0])

    def has_null(self, row: Any) -> bool:
        """Whether one of several columns is NULL: such a row is equal to no other in a unique index."""
        return len(self._types) > 1 and None in self.values_of(row)

    def bounds(
        self,
        prefix: tuple[Any, ...],
        low: Any,
        high: Any,
        low_included: bool,
        high_included: bool,
    ) -> tuple[Key | None, Key | None, bool, bool]:
        """(lowest key, highest key, is the lowest excluded, is the highest excluded) of a range; None: no end there.

        Of the rows whose first columns are as `prefix` says, those whose next column is between `low` and `high`, None
        for no bound, or all where both are None. NULL is in no range with a bound. Raises UnfitValue.
        """
        at = len(prefix)
        if at + (low is not None or high is not None) > len(self._types):
            raise TypeError(f"more bounds than the columns {', '.join(self.columns)}")
        if len(self._types) == 1 and at == 1:
            key = self.of_values(prefix)
            return key, key, False, False
        low = None if low is None else self._canonical(at, low)
        high = None if high is None else self._canonical(at, high)
        if len(self._types) == 1:
            lowest = None if low is None else self._make(low)
            highest = None if high is None else self._make(high)
            return lowest, highest, not low_included, not high_included
        canonical = [self._canonical(position, value) for position, value in enumerate(prefix)]
        head = b"".join([make(value) for make, value in zip(self._parts, canonical, strict=False)])
        if low is None and high is None:
            return (head or None, head + _BEHIND if head else None, False, False)
        first = head + b"\x01" if low is None else head + self._parts[at](low)
        last = head + _NULL if high is None else head + self._parts[at](high)
        # A key begins with the parts of its first columns: those that begin with `first` are behind it.
        return (
            first if low is None or low_included else first + _BEHIND,
            last if high is None or not high_included else last + _BEHIND,
            False,
            True,
        )

    def begins_with(self, prefix: tuple[Any, ...], text: str) -> tuple[Key, Key]:
        """(lowest key, a key behind all) of the rows whose first columns are as `prefix` says and whose next one, a
        STRING, begins with the text. Raises UnfitValue.
        """
        at = len(prefix)
        if self.number or self.hashed or at >= len(self._types) or self._types[at] != "STRING":
            raise TypeError(f"no STRING follows {at} columns of {', '.join(self.columns)}")
        self._canonical(at, text)
        if len(self._types) == 1:
            body = text.encode()
            return body, body + _BEHIND
        canonical = [self._canonical(position, value) for position, value in enumerate(prefix)]
        head = b"".join([make(value) for make, value in zip(self._parts, canonical, strict=False)])
        body = head + _string_part(text)[:-2]
        return body, body + _BEHIND

    def _canonical(self, position: int, value: Any) -> Any:
        """The value as rows of the column hold it."""
        type_name, given = self._types[position], type(value)
        if value is None:
            return None
        if type_name == "INT" and (given is int or given is bool) and INT_MIN <= value <= INT_MAX:
            return int(value)
        if type_name == "FLOAT" and (given is float or (given is int and abs(value) <= 1 << 53)):
            return float(value)
        if type_name == "BOOL" and given is bool:
            return value
        if type_name == "STRING" and given is str:
            try:
                value.encode()
            except UnicodeEncodeError:
                raise UnfitValue(f"{value!r:.100} is no text that UTF-8 can write") from None
            return value
        if type_name == "TIMESTAMP" and given is datetime and value.tzinfo is not None:
            try:
                return value.astimezone(UTC)
            except OverflowError:
                raise UnfitValue(f"{value!r:.100} is behind the calendar's ends in UTC") from None
        raise UnfitValue(f"column {self.columns[position]} is {type_name}, and {value!r:.100} is no such value")
