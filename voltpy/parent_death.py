"""A child process must not outlive its supervisor: nobody would watch it, stop it, or tell clients about it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def die_with_parent() -> None:
    """From here on the kernel kills this process when its parent dies; without a Linux kernel it does nothing.

    Raises SystemExit when the parent died just now. The kernel watches the *thread* that forked, so children are to be
    started by a thread that stays.
    """
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        raise SystemExit("the process that started this one is gone")
