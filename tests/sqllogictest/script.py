"""The format of SQLite's sqllogictest: a file's text → its records.

    file       = { record | comment | blank line }
    record     = { "skipif" name | "onlyif" name } ( statement | query ), ended by a blank line
    statement  = "statement" ( "ok" | "error" ) newline sql
    query      = "query" types [ sort ] [ label ] newline sql newline "----" newline results
    sort       = "nosort" | "rowsort" | "valuesort"
    results    = one value a line, or "N values hashing to" MD5
    control    = "hash-threshold" N | "halt"

Types are letters, one a column: I a whole number, R a real number, T text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import md5
from typing import Any

_HASHED = re.compile(r"(\d+) values hashing to ([0-9a-f]{32})")


@dataclass
class Record:
    """`kind` statement or query. `conditions` are ("skipif" or "onlyif", name, the comment behind it)."""

    line: int
    kind: str
    sql: str
    succeeds: bool = True
    types: str = ""
    sort: str = "nosort"
    expected: list[str] = field(default_factory=list)
    conditions: list[tuple[str, str, str]] = field(default_factory=list)
    label: str = ""

    def not_for(self, name: str) -> Iterator[tuple[str, str, str]]:
        """The conditions that keep the record from this engine."""
        return (each for each in self.conditions if (each[1] == name) != (each[0] == "onlyif"))

    def difference(self, rows: Sequence[Sequence[Any]]) -> str | None:
        """How the rows differ from what is expected; None where they don't."""
        if any(len(row) != len(self.types) for row in rows):
            return f"{len(rows[0])} columns, expected {len(self.types)}"
        values = arranged(rows, self.types, self.sort)
        hashed = _HASHED.fullmatch(self.expected[0]) if len(self.expected) == 1 else None
        if hashed is not None:
            digest = md5("".join(f"{value}\n" for value in values).encode()).hexdigest()
            if len(values) != int(hashed[1]) or digest != hashed[2]:
                return f"{len(values)} values hashing to {digest}, expected {self.expected[0]}; they begin {values[:8]}"
            return None
        expected = self.expected
        if self.sort == "valuesort":
            expected = sorted(expected)
        if values != expected:
            return f"{values[:20]}, expected {expected[:20]}"
        return None


def arranged(rows: Iterable[Sequence[Any]], types: str, sort: str) -> list[str]:
    """The values as the format writes and sorts them."""
    written = [[written_value(value, kind) for value, kind in zip(row, types, strict=True)] for row in rows]
    if sort == "rowsort":
        written.sort()
    values = [value for row in written for value in row]
    if sort == "valuesort":
        values.sort()
    return values


def written_value(value: Any, kind: str) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        value = int(value)
    if kind == "I":
        try:
            return str(int(value))
        except (ValueError, OverflowError):
            return "0"
    if kind == "R":
        return f"{float(value):.3f}"
    text = str(value)
    if not text:
        return "(empty)"
    return "".join(one if " " <= one <= "~" else "@" for one in text)


def records(text: str) -> Iterator[Record]:
    """Raises ValueError, with the line, for what is no sqllogictest."""
    lines = text.splitlines()
    conditions: list[tuple[str, str, str]] = []
    at = 0
    while at < len(lines):
        line = lines[at]
        words = line.split("#")[0].split()
        at += 1
        if not words:
            continue
        match words[0]:
            case "skipif" | "onlyif":
                conditions.append((words[0], words[1], line.partition("#")[2].strip(" :")))
            case "halt":
                if not any(Record(at, "halt", "", conditions=conditions).not_for("voltpy")):
                    return
                conditions = []
            case "hash-threshold":
                conditions = []
            case "statement" | "query":
                record = Record(at, words[0], "", conditions=conditions)
                conditions = []
                if words[0] == "statement":
                    record.succeeds = words[1] == "ok"
                else:
                    record.types = words[1]
                    record.sort = words[2] if len(words) > 2 else "nosort"
                    record.label = words[3] if len(words) > 3 else ""
                at = _read(record, lines, at)
                yield record
            case other:
                raise ValueError(f"line {at}: {other!r} is no record")


def _read(record: Record, lines: list[str], at: int) -> int:
    """Reads a record's SQL and results; returns where the next one begins."""
    sql: list[str] = []
    while at < len(lines) and lines[at].strip() and lines[at] != "----":
        sql.append(lines[at])
        at += 1
    record.sql = "\n".join(sql)
    if record.kind == "query" and at < len(lines) and lines[at] == "----":
        at += 1
        while at < len(lines) and lines[at].strip():
            record.expected.append(lines[at])
            at += 1
    return at
