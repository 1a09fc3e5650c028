"""What holds for every module of tests."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

# Whoever runs the tests in the background may have them ignore these, and so would every process that they start.
for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, usual)

# What starts clusters, or times what it does: one after the other, in one of the processes that share the tests.
WHOLE_CLUSTERS = ("end_to_end/", "bench/", "voltpy/test_cluster.py", "voltpy/test_cli.py", "voltpy/test_client.py")
FILES = ("pages", "LOCK", "wal-", "decisions-", "root-", "run-")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests of one file stay together, and those that start clusters too (pytest-xdist's `--dist loadgroup`)."""
    for item in items:
        name = item.path.relative_to(Path(__file__).parent).as_posix()
        item.add_marker(pytest.mark.xdist_group("clusters" if name.startswith(WHOLE_CLUSTERS) else name))


def files_of_databases() -> dict[int, str]:
    """The open descriptors of what is in data directories."""
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        try:
            path = os.readlink(entry)
        except OSError:  # the one that lists them
            continue
        if os.path.basename(path).startswith(FILES):
            found[int(entry.name)] = path
    return found


@pytest.fixture(scope="module", autouse=True)
def _no_file_stays_open() -> Iterator[None]:
    """Files that each test leaves open are a thousand in the end, and whatever runs then fails for want of them."""
    before = files_of_databases()
    yield
    if files_of_databases().keys() - before.keys():
        gc.collect()  # what was dropped is closed
    left = sorted(path for fd, path in files_of_databases().items() if before.get(fd) != path)
    assert not left, f"{len(left)} files are left open, such as {left[0]}"
