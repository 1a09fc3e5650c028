"""What a figure was measured on: processor, cores, kernel, Python, package versions, and what a flush costs here."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryFile
from time import perf_counter_ns

from msgspec import Struct

from bench.measure import percentile

PACKAGES = ("pyzmq", "msgspec", "redis", "hiredis", "psycopg", "mysqlclient", "PyMySQL")


class Machine(Struct, frozen=True):
    """`flush_p50_us`, `flush_p99_us`: fdatasync after an append of 4 KB, in the directory that all data lives in."""

    cpu: str
    cores: int
    memory_gib: float
    kernel: str
    python: str
    packages: dict[str, str]
    filesystem: str
    flush_p50_us: float
    flush_p99_us: float


def describe(directory: Path) -> Machine:
    """Takes a fraction of a second: it measures the flush."""
    flushes_us = flush_times_us(directory)
    return Machine(
        cpu=_cpu(),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        kernel=platform.release(),
        python=f"{platform.python_implementation()} {sys.version.split()[0]}",
        packages=_versions(),
        filesystem=filesystem_of(directory, Path("/proc/self/mounts").read_text()),
        flush_p50_us=percentile(flushes_us, 50),
        flush_p99_us=percentile(flushes_us, 99),
    )


def in_words(machine: Machine) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in machine.packages.items())
    return (
        f"{machine.cpu}, {machine.cores} cores, {machine.memory_gib} GiB; Linux {machine.kernel}; {machine.python}; "
        f"{packages}. Data on {machine.filesystem}, where fdatasync takes {machine.flush_p50_us:.0f} µs (p50), "
        f"{machine.flush_p99_us:.0f} µs (p99)."
    )


def flush_times_us(directory: Path, flushes: int = 200) -> list[float]:
    """What `flushes` appends of 4 KB with fdatasync take, one after another, in microseconds."""
    block = bytes(4096)
    times_us = []
    with TemporaryFile(dir=directory) as file:
        for _ in range(flushes):
            os.write(file.fileno(), block)
            begin = perf_counter_ns()
            os.fdatasync(file.fileno())
            times_us.append((perf_counter_ns() - begin) / 1e3)
    return times_us


def filesystem_of(directory: Path, mounts: str) -> str:
    """The type of the file system that holds `directory`, from the text of /proc/self/mounts."""
    place = directory.resolve()
    best, name = "", "unknown"
    for line in mounts.splitlines():
        _, mount_point, kind, *_ = line.split(" ")
        if place.is_relative_to(mount_point) and len(mount_point) >= len(best):
            best, name = mount_point, kind
    return name


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def _versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
