"""Crash points are off unless armed, and then end the process at exactly the passage that was asked for."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from coordinator.server import SENDING_POINTS
from voltpy import crash_point as points

PROGRAM = """
from voltpy.crash_point import crash_point
for passage in range(1, 6):
    print(passage, flush=True)
    crash_point("record_log.flush.before_fsync")
    crash_point("record_log.flush.after_fsync")
"""


def run_armed(value: str | None) -> subprocess.CompletedProcess[str]:
    environment = {name: text for name, text in os.environ.items() if name != points.VARIABLE}
    if value is not None:
        environment[points.VARIABLE] = value
    return subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=30, check=False
    )


def test_nothing_happens_when_no_point_is_armed() -> None:
    assert run_armed(None).stdout.split() == ["1", "2", "3", "4", "5"]
    assert run_armed("").returncode == 0


@pytest.mark.parametrize(
    ("value", "printed"), [("record_log.flush.after_fsync", 1), ("record_log.flush.before_fsync:3", 3)]
)
def test_the_process_is_killed_at_the_passage_that_was_armed(value: str, printed: int) -> None:
    process = run_armed(value)
    assert process.returncode == -signal.SIGKILL
    assert process.stdout.split() == [str(passage) for passage in range(1, printed + 1)]


@pytest.mark.parametrize("value", ["no.such.point", "record_log.flush.after_fsync:0", "record_log.flush.after_fsync:x"])
def test_a_point_that_does_not_exist_is_refused(value: str) -> None:
    process = run_armed(value)
    assert process.returncode == 1
    assert f"ValueError: VOLTPY_CRASH_POINT={value}" in process.stderr


def test_every_point_is_listed_once() -> None:
    assert len(set(points.CRASH_POINTS)) == len(points.CRASH_POINTS)


def test_a_file_in_the_directory_arms_one_life_of_the_process_it_is_named_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = tmp_path / "partition-1"
    order.write_text("record_log.flush.before_fsync:2")
    monkeypatch.setenv(points.PROCESS, "partition-0")
    assert run_armed(f"{tmp_path}/").returncode == 0
    assert order.exists()
    monkeypatch.setenv(points.PROCESS, "partition-1")
    process = run_armed(f"{tmp_path}/")
    assert process.returncode == -signal.SIGKILL
    assert (process.stdout.split(), process.stderr) == (["1", "2"], "crash point record_log.flush.before_fsync\n")
    assert not order.exists()
    assert run_armed(f"{tmp_path}/").returncode == 0
    monkeypatch.delenv(points.PROCESS)
    (tmp_path / "supervisor").write_text("record_log.flush.after_fsync")
    assert run_armed(f"{tmp_path}/").returncode == -signal.SIGKILL


def test_every_point_that_is_listed_is_passed_somewhere_and_the_other_way_round() -> None:
    root = Path(points.__file__).parents[1]
    sources = [
        file.read_text() for folder in ("voltpy", "partitions", "coordinator") for file in (root / folder).glob("*.py")
    ]
    passed = re.findall(r'(?:crash_point|doomed)\(\s*"([a-z_.]+)"', "\n".join(sources))
    passed += [name for pair in SENDING_POINTS.values() for name in pair]
    assert sorted(passed) == sorted(points.CRASH_POINTS)
