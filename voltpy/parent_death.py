"""A child process must not outlive its supervisor: nobody would watch it, stop it, or tell clients about it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def die_with_parent(parent: int = 0) -> None:
    """From here on the kernel kills this process when its parent dies. Without a Linux kernel it does nothing.

    `parent`: process id of the one who started this process, where it is known: it may be dead by now, and then this
    raises SystemExit. The kernel watches the *thread* that forked: children are to be started by one that stays.
    """
    before = parent or os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != before:
        raise SystemExit("the process that started this one is gone")
