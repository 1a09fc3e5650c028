"""Events as people read them, a line each: `14:05:03 partition 1: recovered (changes 12, seconds 0.361)`.

What is no event, such as what a procedure prints, is shown as it is.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from voltpy.events import Outlet

MAX_BEGUN_BYTES = 1 << 16  # of a line that does not end
_COLOURS = {"warning": b"\x1b[33m", "error": b"\x1b[31m", "critical": b"\x1b[31m"}


class TextOutlet(Outlet):
    """An outlet to which events go as people read them."""

    def __init__(self, fd: int | None, *, coloured: bool = False) -> None:
        super().__init__(fd)
        self._coloured = coloured
        self._begun = b""  # of a line whose end has not come

    def write(self, text: str | bytes) -> None:
        data = self._begun + (text.encode(errors="backslashreplace") if isinstance(text, str) else text)
        whole, newline, self._begun = data.rpartition(b"\n")
        if len(self._begun) > MAX_BEGUN_BYTES:
            whole, newline, self._begun = data, b"", b""
        if whole or newline:
            lines = (as_text(line, coloured=self._coloured) for line in whole.split(b"\n"))
            super().write(b"\n".join(lines) + newline)

    def flush(self, patience_s: float = 0.0) -> None:
        if patience_s and self._begun:  # nothing more comes
            begun, self._begun = self._begun, b""
            super().write(begun)
        super().flush(patience_s)


def as_text(line: bytes, *, coloured: bool = False) -> bytes:
    """An event's line of JSON as text; any other line as it is."""
    try:
        event = json.loads(line)
        name, level, moment = event.pop("event"), event.pop("level"), event.pop("timestamp")
        clock = datetime.fromisoformat(moment).astimezone().strftime("%H:%M:%S")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
        return line
    words = f"{level}: " if level != "info" else ""
    words += f"{_subject(event)}{str(name).replace('_', ' ')}"
    if event:
        words += f" ({', '.join(f'{key} {_shown(value)}' for key, value in event.items())})"
    colour = _COLOURS.get(level, b"") if coloured else b""
    text = f"{clock} {words}".encode(errors="backslashreplace")
    return colour + text + b"\x1b[0m" if colour else text


def _subject(event: dict[str, Any]) -> str:
    """Who it happened to, which is not said twice."""
    if "child" in event:
        return f"{event.pop('child')}: "
    if "partition" in event:
        return f"partition {event.pop('partition')}: "
    return ""


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(_shown, value))
    if isinstance(value, str):
        return " ".join(value.split())
    return json.dumps(value, ensure_ascii=False)
