"""`python -m bench.hit_ratio`: what it prints, and what it says about files that are no traces."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from bench.hit_ratio import Result, main, read_trace

LOOP = list(range(30)) * 20


@pytest.fixture
def loop(tmp_path: Path) -> Path:
    file = tmp_path / "loop.txt.gz"
    file.write_bytes(gzip.compress("".join(f"{page}\n" for page in LOOP).encode()))
    return file


def test_it_prints_the_hit_ratio_in_percent(loop: Path) -> None:
    command = [sys.executable, "-m", "bench.hit_ratio", "--policy", "lru", "--pages", "30", str(loop)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "95.00\n"


def test_several_policies_and_sizes_name_what_they_are(loop: Path) -> None:
    ran = CliRunner().invoke(
        main, ["--policy", "lru", "--policy", "belady", "--pages", "10", "--pages", "30", str(loop)]
    )
    assert ran.exit_code == 0, ran.output
    assert [line.split()[:3] for line in ran.output.splitlines()] == [
        ["loop.txt.gz", pages, policy] for pages in ("10", "30") for policy in ("lru", "belady")
    ]


def test_the_table_has_lru_and_belady_beside_the_policies(loop: Path) -> None:
    ran = CliRunner().invoke(
        main, ["--table", "--time", "--policy", "clock", "--pages", "10", "--pages", "30", str(loop)]
    )
    assert ran.exit_code == 0, ran.output
    lines = ran.output.splitlines()
    assert lines[0] == "| trace | pages | lru | clock | belady | clock, way to Belady |"
    assert lines[2].startswith("| loop.txt.gz | 10 | 0.00 | 0.00 |")
    assert lines[3] == "| loop.txt.gz | 30 | 95.00 | 95.00 | 95.00 |  |"
    assert "µs a touch" in ran.output


def test_a_document_has_every_figure(loop: Path) -> None:
    ran = CliRunner().invoke(main, ["--json", "--time", "--pages", "10", str(loop)])
    (result,) = msgspec.json.decode(ran.output, type=list[Result])
    assert (result.trace, result.policy, result.pages, result.requests) == ("loop.txt.gz", "w-tinylfu", 10, 600)
    assert result.hits == round(result.hit_ratio_percent * 6)
    assert result.touch_us > 0


@pytest.mark.parametrize("text", ["1\n2\n3\n", "1\r\n2\r\n\r\n3", "\n1\n2\n3"])
def test_plain_traces_are_read_too(tmp_path: Path, text: str) -> None:
    file = tmp_path / "trace"
    file.write_bytes(text.encode())
    assert read_trace(file) == [1, 2, 3]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"1\n2\nthree\n4\n", "line 3: 'three' is no page number"),
        (b"1\n-2\n", "line 2: '-2' is no page number"),
        (b"1\n2 3\n", "line 2: '2 3' is no page number"),
        (b"1\n\n9223372036854775808\n", "line 3: '9223372036854775808' is no page number"),
        (b"1" * 5000, "line 1: '1111"),
        (b"\xff\xfe\n", "line 1: "),
        (b"", "holds no requests"),
        (b"\n\n", "holds no requests"),
        (gzip.compress(b"1\n2\n" * 1000, mtime=0)[:20], "cannot be read"),
        (b"\x1f\x8bnot gzip", "cannot be read"),
    ],
)
def test_files_that_are_no_traces_are_named_with_their_line(tmp_path: Path, data: bytes, message: str) -> None:
    file = tmp_path / "bad.txt"
    file.write_bytes(data)
    ran = CliRunner().invoke(main, ["--pages", "10", str(file)])
    assert ran.exit_code == 1
    assert str(file) in ran.output
    assert message in ran.output


def test_a_file_that_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    ran = CliRunner().invoke(main, ["--pages", "10", str(tmp_path / "absent")])
    assert ran.exit_code == 2
    assert "does not exist" in ran.output
