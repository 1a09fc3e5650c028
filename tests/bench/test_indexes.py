"""The benchmark of secondary indexes runs, on few rows."""

from pathlib import Path

from click.testing import CliRunner

from bench.indexes import indexes


def test_it_prints_what_indexes_take_and_cost(tmp_path: Path) -> None:
    result = CliRunner().invoke(indexes, ["--rows", "3000", "--directory", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "| INVERTED, 5 distinct INT | " in result.output
    assert "| start from a checkpoint, 3 indexes, a row | " in result.output
    assert list(tmp_path.iterdir()) == []
