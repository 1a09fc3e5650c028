"""Whether something can be read from a file, pipe or socket: poll takes any descriptor, select those below 1,024."""

from __future__ import annotations

import select
from typing import Any


def readable(file: Any, timeout_s: float = 0.0) -> bool:
    """Waits so long at most. `file`: a descriptor, or something that has one."""
    poll = select.poll()
    poll.register(file, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))
