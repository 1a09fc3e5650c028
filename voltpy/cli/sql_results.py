"""How `voltpy sql` shows what statements answer: aligned tables, a record a row, CSV, or a line of JSON.

Tables and CSV come in pieces of some hundred rows, so that many rows need no second copy in memory, and a reader who
has seen enough stops the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import click
import msgspec
from rich.cells import cell_len

from voltpy.result import Result
from voltpy.sql.values import to_text

ROWS_A_PIECE = 500
MAX_PADDED = 120  # a wider value is shown whole, and what is right of it moves: else it would widen every row
NUMBERS = ("INT", "FLOAT", "NUMBER")
NULL = "NULL"


def table(result: Result, *, styled: bool = False) -> Iterator[str]:
    """Aligned columns, numbers on the right, then how many rows there are. EXPLAIN is shown as the text that it is.

    `styled`: for a terminal, where NULL is told apart from a text that says so.
    """
    if result.kind.startswith("explain"):
        for rows in _by_piece(result):
            yield "".join(f"{shown(row[0])}\n" for row in rows)
        return
    titles = [shown(name) for name in result.columns]
    numbers = [type_name in NUMBERS for type_name in result.types or ("",) * len(titles)]
    columns = list(zip(column_widths(titles, result.rows), numbers, strict=True))
    yield _line(titles, columns) + "-+-".join("-" * width for width, _ in columns) + "\n"
    null = click.style(NULL, dim=True) if styled else NULL
    for rows in _by_piece(result):
        yield "".join(_line([shown(value) for value in row], columns, row, null) for row in rows)
    yield f"({len(result)} row{'' if len(result) == 1 else 's'})\n"


def records(result: Result, *, styled: bool = False) -> Iterator[str]:
    """Each row as lines of `column | value`, for rows that are wider than the screen."""
    if result.kind.startswith("explain"):
        yield from table(result, styled=styled)
        return
    titles = [shown(name) for name in result.columns]
    width = max(map(_width, titles), default=0)
    labels = [title + " " * (width - _width(title)) for title in titles]
    null = click.style(NULL, dim=True) if styled else NULL
    number = 0
    for rows in _by_piece(result):
        lines = []
        for row in rows:
            number += 1
            lines.append(f"-[ row {number} ]".ljust(width + 1, "-") + "+-\n")
            lines += [
                f"{label} | {null if value is None else shown(value)}".rstrip(" ") + "\n"
                for label, value in zip(labels, row, strict=True)
            ]
        yield "".join(lines)
    yield f"({len(result)} row{'' if len(result) == 1 else 's'})\n"


def shown(value: Any) -> str:
    """A value on one line, and harmless to a terminal."""
    if value is None:
        return NULL
    text = to_text(value)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def column_widths(titles: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> list[int]:
    """In cells of a terminal, of which a Chinese character takes two."""
    widths = [_width(title) for title in titles]
    for row in rows:
        for number, value in enumerate(row):
            width = _width(shown(value))
            if widths[number] < width <= MAX_PADDED:
                widths[number] = width
    return widths


def _width(text: str) -> int:
    return len(text) if text.isascii() else cell_len(text)


def _line(
    texts: Sequence[str], columns: list[tuple[int, bool]], row: Sequence[Any] | None = None, null: str = NULL
) -> str:
    """The texts side by side. `columns`: (width, whether it holds numbers). `row`: the values, to know NULL by."""
    cells = []
    for number, (text, (width, is_number)) in enumerate(zip(texts, columns, strict=True)):
        blanks = " " * (width - _width(text))
        if row is not None and row[number] is None:
            text = null
        cells.append(blanks + text if is_number else text + blanks)
    return " | ".join(cells).rstrip(" ") + "\n"


def csv(result: Result) -> Iterator[str]:
    """A header and the rows, as PostgreSQL's COPY writes them: NULL is nothing, and an empty text is \"\"."""
    yield ",".join(map(_field, result.columns)) + "\n"
    for rows in _by_piece(result):
        yield "".join(",".join(map(_field, row)) + "\n" for row in rows)


def _field(value: Any) -> str:
    if value is None:
        return ""
    text = to_text(value)
    if text and not any(character in text for character in ',"\r\n'):
        return text
    return '"' + text.replace('"', '""') + '"'


def json_line(result: Result, seconds: float | None) -> bytes:
    """{"statement": "select", "columns": […], "rows": [[…], …], "rowcount": 1}, with "seconds" if they are known."""
    answer: dict[str, Any] = {
        "statement": result.kind,
        "columns": result.columns,
        "rows": result.rows,
        "rowcount": result.rowcount,
    }
    if seconds is not None:
        answer["seconds"] = round(seconds, 6)
    return msgspec.json.encode(answer) + b"\n"


def _by_piece(result: Result) -> Iterator[list[tuple[Any, ...]]]:
    for first in range(0, len(result), ROWS_A_PIECE):
        yield result.rows[first : first + ROWS_A_PIECE]
