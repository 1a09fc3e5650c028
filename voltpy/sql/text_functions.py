"""Functions on strings, LIKE among them. For generated statements.

Arguments are not NULL, unless it is said.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from voltpy.errors import DataError
from voltpy.sql.values import MAX_STRING, to_text


def bounded(text: str) -> str:
    if len(text) > MAX_STRING:
        raise DataError(f"a string of {len(text):,} characters; the limit is {MAX_STRING:,}")
    return text


def concat(*values: Any) -> str:
    """CONCAT: NULLs are left out."""
    return bounded("".join(to_text(value) for value in values if value is not None))


def concat_ws(separator: Any, *values: Any) -> str | None:
    """NULLs are left out, except that a NULL separator gives NULL."""
    if separator is None:
        return None
    return bounded(separator.join(to_text(value) for value in values if value is not None))


def joined(*values: str) -> str:
    """||"""
    return bounded("".join(values))


def initcap(text: str) -> str:
    return re.sub(r"[^\W_]+", lambda word: word[0][0].upper() + word[0][1:].lower(), text)


def trimmed(text: str, characters: str = " ") -> str:
    return text.strip(characters) if characters else text


def left_trimmed(text: str, characters: str = " ") -> str:
    return text.lstrip(characters) if characters else text


def right_trimmed(text: str, characters: str = " ") -> str:
    return text.rstrip(characters) if characters else text


def substring(text: str, start: int, length: int | None = None) -> str:
    """Counted from 1; a start before it takes from the length."""
    begin = start - 1
    if length is None:
        return text[max(begin, 0) :]
    if length < 0:
        raise DataError("negative substring length not allowed")
    return text[max(begin, 0) : max(begin + length, 0)]


def left(text: str, count: int) -> str:
    return text[:count]


def right(text: str, count: int) -> str:
    if count < 0:
        return text[-count:]
    return text[-count:] if count else ""


def left_padded(text: str, length: int, fill: str = " ") -> str:
    return _padding(text, length, fill) + text[: max(length, 0)]


def right_padded(text: str, length: int, fill: str = " ") -> str:
    return text[: max(length, 0)] + _padding(text, length, fill)


def _padding(text: str, length: int, fill: str) -> str:
    missing = length - len(text)
    if missing <= 0 or not fill:
        return ""
    if length > MAX_STRING:
        raise DataError(f"a string of {length:,} characters; the limit is {MAX_STRING:,}")
    return (fill * (missing // len(fill) + 1))[:missing]


def repeated(text: str, count: int) -> str:
    if count > 0 and len(text) * count > MAX_STRING:
        raise DataError(f"a string of {len(text) * count:,} characters; the limit is {MAX_STRING:,}")
    return text * max(count, 0)


def replaced(text: str, old: str, new: str) -> str:
    if not old:
        return text
    growth = (len(new) - len(old)) * text.count(old)
    if len(text) + growth > MAX_STRING:
        raise DataError(f"a string of {len(text) + growth:,} characters; the limit is {MAX_STRING:,}")
    return text.replace(old, new)


def split_part(text: str, separator: str, position: int) -> str:
    if position == 0:
        raise DataError("field position must not be zero")
    pieces = text.split(separator) if separator else [text]
    index = position - 1 if position > 0 else len(pieces) + position
    return pieces[index] if 0 <= index < len(pieces) else ""


def ascii_code(text: str) -> int:
    return ord(text[0]) if text else 0


def character(code: int) -> str:
    if not 0 < code <= 0x10FFFF or 0xD800 <= code <= 0xDFFF:
        raise DataError(f"requested character {code} is not valid")
    return chr(code)


@lru_cache(maxsize=256)
def like_pattern(pattern: str, escape: str, any_case: bool) -> Callable[[str], Any]:
    """What says, by something true, whether a string matches a LIKE pattern."""
    pieces: list[str] = []
    plain: list[str] = []
    is_plain, stars = True, 0
    position = 0
    while position < len(pattern):
        one = pattern[position]
        if escape and one == escape:
            position += 1
            if position == len(pattern):
                raise DataError("LIKE pattern must not end with escape character")
            pieces.append(re.escape(pattern[position]))
            plain.append(pattern[position])
        elif one == "%":
            if not pieces or pieces[-1] != ".*?":
                pieces.append(".*?")
                stars += 1
            is_plain = is_plain and position == len(pattern) - 1
        elif one == "_":
            pieces.append(".")
            is_plain = False
        else:
            pieces.append(re.escape(one))
            plain.append(one)
        position += 1
    if is_plain and not any_case:
        text = "".join(plain)
        return (lambda value: value.startswith(text)) if stars else (lambda value: value == text)
    return _wildcards(pieces, any_case)


def _wildcards(pieces: list[str], any_case: bool) -> Callable[[str], Any]:
    """Piece by piece between the %s, each at the first place where it fits: no pattern makes that slow."""
    flags = re.DOTALL | (re.IGNORECASE if any_case else 0)
    runs: list[list[str]] = [[]]
    for piece in pieces:
        if piece == ".*?":
            runs.append([])
        else:
            runs[-1].append(piece)
    if len(runs) == 1:
        return re.compile("".join(runs[0]), flags).fullmatch
    first = re.compile("".join(runs[0]), flags)
    middle = [re.compile("".join(run), flags) for run in runs[1:-1] if run]
    last, last_length = re.compile("".join(runs[-1]), flags), len(runs[-1])

    def matches(value: str) -> bool:
        start = first.match(value)
        if start is None:
            return False
        at = start.end()
        for each in middle:
            found = each.search(value, at)
            if found is None:
                return False
            at = found.end()
        return len(value) - last_length >= at and last.fullmatch(value, len(value) - last_length) is not None

    return matches


def like(value: str, pattern: str, escape: str, any_case: bool) -> bool:
    return bool(like_pattern(pattern, escape, any_case)(value))
