"""What the recovery benchmark makes of its measurements, and one small run of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from bench import recovery
from bench.machine import describe
from bench.recovery import Results, main, markdown


def test_rates_are_a_partitions_own_and_held_against_what_is_wanted(tmp_path: Path) -> None:
    results = Results(
        describe(tmp_path), "--partitions 2", "today", 500, 4_000_000, 2.0, 200_000_000, 599_000, 1.0, 3.5, 7, 2.0
    )
    lines = markdown(results, 2).splitlines()
    assert lines[2].endswith("| 4,000,000 | 2.00 | 1,000,000 | 1,000,000 | held |")
    assert lines[3].endswith("| 599,000 | 1.00 | 299,500 | 300,000 | SHORT |")
    assert lines[4] == "| until these are in their pages, 7 of which were left | | 2.00 | 149,750 | | |"
    assert "| 3.50 |" in lines[5]


def test_a_small_table_is_recovered_and_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "CALLS_A_BATCH", 100)
    options = ["--rows", "2M", "--wal", "100K", "--directory", str(tmp_path), "--json", str(tmp_path / "r.json")]
    run = CliRunner().invoke(main, options)
    assert run.exit_code == 0, run.output
    assert "| rows in the checkpoint, 500 bytes each | 4,194 |" in run.output
    assert (tmp_path / "r.json").exists()
