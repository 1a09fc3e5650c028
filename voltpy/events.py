"""Events: one JSON object a line on stderr, `{"event": …, "level": …, "timestamp": …, …}`, from every process.

Those of the router and the partitions go through the supervisor, which must not wait for its reader: see Outlet.
"""

from __future__ import annotations

import io
import json
import os
import select
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TextIO, cast

# Every process loads structlog through this file. It would load rich where that is installed, for a console that these
# events never see, and pygments with it: 4 MB of each process, and a fifth of its start.
_hidden = sys.modules.setdefault("rich", cast(Any, None)) is None
import structlog  # noqa: E402  # after that
from structlog.typing import FilteringBoundLogger  # noqa: E402

if _hidden:
    del sys.modules["rich"]

Events = FilteringBoundLogger
WAITING_BYTES = 1 << 20  # a start of 500 partitions says less
_PIPE_BUF_BYTES = select.PIPE_BUF


class Outlet:
    """Writes to a descriptor and never waits for its reader. What finds no room is dropped, counted, and told later.

    The descriptor stays as it is: others share it, and O_NONBLOCK would be theirs too. So it is asked before each
    write, and given no more than what a pipe that has room takes at once.
    """

    def __init__(self, fd: int | None) -> None:
        self._fd = fd
        self._waiting = bytearray()
        self._dropped_lines = 0
        self._poll = select.poll()
        if fd is not None:
            self._poll.register(fd, select.POLLOUT)

    def write(self, text: str | bytes) -> None:
        data = text.encode(errors="backslashreplace") if isinstance(text, str) else text
        # After the first that was dropped all are, until the reader is told: it sees where something is missing.
        if self._dropped_lines or len(self._waiting) + len(data) > WAITING_BYTES:
            self._dropped_lines += data.count(b"\n")
        elif self._fd is not None:
            self._waiting += data
        self.flush()

    def flush(self, patience_s: float = 0.0) -> None:
        """Writes what the reader makes room for within that time. To be called from time to time."""
        until_s = time.monotonic() + patience_s
        waiting = self._waiting
        while self._fd is not None and (waiting or self._dropped_lines):
            if not waiting:
                waiting += _dropped(self._dropped_lines)
                self._dropped_lines = 0
            if not self._poll.poll(max(until_s - time.monotonic(), 0.0) * 1000):
                return
            try:
                written = os.write(self._fd, waiting[:_PIPE_BUF_BYTES])
            except OSError:  # the reader has left; a database does not die of that
                waiting.clear()
                self._dropped_lines = 0
                return
            del waiting[:written]


def stderr_outlet(kind: Callable[[int | None], Outlet] = Outlet) -> Outlet:
    """For this process's stderr, if it has one: closed at the start, its number may be anybody's by now."""
    try:
        return kind(sys.stderr.fileno())
    except (AttributeError, OSError, ValueError):
        return kind(None)


def _dropped(lines: int) -> bytes:
    timestamp = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    event = {"event": "lines_dropped", "lines": lines, "level": "warning", "timestamp": timestamp}
    return b"\n" + json.dumps(event).encode() + b"\n"


def get_logger(*names: str) -> Events:
    logger: Events = structlog.get_logger(*names)
    return logger


def logger_to(outlet: Outlet) -> Events:
    logger: Events = structlog.wrap_logger(structlog.WriteLogger(cast(TextIO, outlet)))
    return logger


def configure(outlet: Outlet | None = None) -> None:
    """Called once, at the start of each process: events go to the outlet, or to stderr, whose reader they wait for.

    stdout stays free for what a program reads.

    In the processes of a cluster it is a pipe, and what a procedure prints there is to be seen when it is printed.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # None where the process has none
        sys.stdout.reconfigure(line_buffering=True)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr if outlet is None else cast(TextIO, outlet)),
        cache_logger_on_first_use=True,
    )
