"""The commands that measure a table and its memory: their options, a short run of each, and what they print."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pytest
from click.testing import CliRunner

from bench.__main__ import main
from bench.larger_than_memory import Results
from bench.peers.mariadb import Mariadb
from bench.table import Table
from bench.warm_restart import forget_heat
from bench.workload import NotInstalled

SMALL = ("--memory", "32M", "--ratio", "0.05", "--partitions", "1", "--fsync", "everysec", "--warm-up", "0.5")


@pytest.fixture
def directory():
    """Unlike tmp_path, one that another user can reach: MariaDB does not run as root."""
    with TemporaryDirectory() as path:
        os.chmod(path, 0o755)
        yield Path(path)


def bench(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_the_table_is_as_large_as_the_ratio_says():
    assert Table(1 << 20, 8.0, 1024).rows.count == 8192
    assert "8 times the memory of 1 MiB" in Table(1 << 20, 8.0, 1024).in_words()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--memory", "many"), "is not a size"),
        (("--ratio", "0"), "ratio"),
        (("--row-bytes", "10"), "row-bytes"),
        (("--peers", "voltpy,oracle"), "oracle"),
    ],
)
def test_options_that_make_no_table_are_refused(arguments, message):
    refused = bench("larger-than-memory", *arguments)
    assert refused.exit_code == 2
    assert message in refused.output


@pytest.mark.parametrize("name", ["voltpy", "mariadb"])
def test_a_peer_is_loaded_measured_and_read_cold(name, directory, tmp_path):
    file = tmp_path / "results.json"
    done = bench(
        *("larger-than-memory", *SMALL, "--peers", name, "--seconds", 0.2, "--cold-seconds", 0.1),
        *("--way", "1 client process" if name == "voltpy" else "4 connections"),
        *("--directory", directory, "--json", file),
    )
    assert done.exit_code == 0, done.output
    results = msgspec.json.decode(file.read_bytes(), type=Results)
    if "installed" in results.skipped.get(name, ""):
        pytest.skip(results.skipped[name])
    assert results.skipped == {}
    assert {run.peer for run in results.runs} == {name}
    assert all(run.operations_per_s > 0 and max(run.resident_bytes.values()) > 0 for run in results.runs)
    assert [read.peer for read in results.cold_reads] == [name]
    assert f"| {name} | " in done.stdout
    assert "- AMD" in done.stdout or "cores" in done.stdout


def test_a_peer_without_its_program_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    with pytest.raises(NotInstalled, match="mariadbd"):
        Mariadb(tmp_path, memory_bytes=1 << 24, fsync="always")


def test_a_scan_counts_every_row_beside_the_workload(tmp_path):
    done = bench("scan-resistance", *SMALL, "--seconds", 1, "--directory", tmp_path)
    assert done.exit_code == 0, done.output
    assert "| 1 | " in done.stdout


def test_a_restart_comes_back_warm_and_cold(tmp_path):
    done = bench("warm-restart", *SMALL, "--seconds", 1, "--most", 1, "--directory", tmp_path)
    assert done.exit_code == 0, done.output
    assert "| warm | " in done.stdout
    assert "| cold | " in done.stdout


def test_heat_is_forgotten_and_nothing_else(tmp_path):
    for number in range(2):
        partition = tmp_path / f"partition-{number}"
        partition.mkdir()
        for name in ("heat", "heat.new", "pages", "checkpoint"):
            (partition / name).touch()
    assert forget_heat(tmp_path, 2) == 4
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["checkpoint"] * 2 + ["pages"] * 2
