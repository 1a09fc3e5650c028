"""A child process must not outlive its supervisor: nobody would watch it, stop it, or tell clients about it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

SUPERVISOR = "VOLTPY_SUPERVISOR"  # its process id, in the environment of the children that it starts
_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def die_with_parent(parent: int = 0) -> None:
    """From here on the kernel kills this process when its parent dies; without a Linux kernel it does nothing.

    `parent` is the parent's process id as its own environment told it: without, a parent that died before this call,
    while modules were imported, is not missed. Raises SystemExit when it is gone. The kernel watches the *thread* that
    forked, so children are to be started by a thread that stays.
    """
    parent = parent or os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        raise SystemExit("the process that started this one is gone")
