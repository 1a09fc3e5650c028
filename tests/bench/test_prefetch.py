"""`python -m bench.prefetch`: the figures of a loop that does not fit, and of pages that never come back."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import msgspec
from click.testing import CliRunner

from bench.prefetch import Result, main, measure


def write(path: Path, trace: list[int]) -> Path:
    path.write_text("".join(f"{page}\n" for page in trace))
    return path


def test_a_loop_that_does_not_fit_hardly_waits_once_it_is_known(tmp_path: Path) -> None:
    loop = random.Random(1).sample(range(10_000), 200) * 20
    result = measure("loop", loop, 100)
    assert result.hits_without < len(loop) // 2
    assert result.hits > 0.85 * len(loop)  # two of twenty rounds are what it takes
    assert result.used > 0
    assert result.wasted == 0
    ran = CliRunner().invoke(main, ["--json", "--pages", "100", str(write(tmp_path / "loop", loop))])
    assert msgspec.json.decode(ran.output, type=list[Result]) == [result]


def test_pages_that_never_come_back_are_not_prefetched(tmp_path: Path) -> None:
    file = write(tmp_path / "once", list(range(1000)))
    command = [sys.executable, "-m", "bench.prefetch", "--pages", "100", str(file)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines[0].startswith("| trace | pages | hits without, % | with, % |")
    assert lines[2:] == ["| once | 100 | 0.00 | 0.00 | 0 | 0 |  | +0.0 % |"]


def test_a_file_that_is_no_trace_is_named(tmp_path: Path) -> None:
    file = tmp_path / "bad"
    file.write_text("three\n")
    ran = CliRunner().invoke(main, ["--pages", "10", str(file)])
    assert ran.exit_code == 1
    assert "line 1: 'three' is no page number" in ran.output
