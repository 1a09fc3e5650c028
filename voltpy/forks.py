"""A copy of a process that serves would do so from the same sockets, write to the same log and hold its lock."""

from __future__ import annotations

import os
from typing import NoReturn

_EXIT_CRASHED = 1


def forbid_forks() -> None:
    """From here on a fork raises RuntimeError, for this process runs the users' procedures."""

    def refuse() -> NoReturn:
        raise RuntimeError("a procedure can't fork its partition; start another program with subprocess instead")

    os.fork = os.forkpty = refuse
    os.register_at_fork(after_in_child=lambda: os._exit(_EXIT_CRASHED))  # for a fork that does not come by there
