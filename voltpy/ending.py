"""How a process ended, in words: its signal or exit status, and the last line that it wrote and that is no event."""

from __future__ import annotations

import signal

import msgspec

_event_of = msgspec.json.Decoder(dict[str, object]).decode


def ending(exit_status: int | None, last_words: str) -> str:
    """killed by SIGKILL; killed by SIGABRT: Fatal Python error: Aborted; MemoryError; exit status 1.

    `exit_status` is negative for a signal, None for a process that there never was. Who ends with a status of its own
    has said why. A signal comes between any two lines, so the last one need not be about it.
    """
    if exit_status is None or exit_status >= 0:
        return last_words or ("it never started" if exit_status is None else f"exit status {exit_status}")
    try:
        killed = f"killed by {signal.Signals(-exit_status).name}"
    except ValueError:
        killed = f"killed by signal {-exit_status}"
    return f"{killed}: {last_words}" if last_words and exit_status != -signal.SIGKILL else killed


def last_words_of(output: bytes) -> str:
    """The last line of what a process wrote that is neither blank nor an event (voltpy.events)."""
    lines = map(str.strip, reversed(output.decode(errors="replace").split("\n")))
    return next((line for line in lines if line and not _is_event(line)), "")


def _is_event(line: str) -> bool:
    if not line.startswith("{"):
        return False
    try:
        return "event" in _event_of(line)
    except msgspec.DecodeError:
        return False
