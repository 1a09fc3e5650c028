"""The benchmark of statements runs, on few rows, and its peers agree."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from bench import sql
from bench.workload import BenchError


def test_it_prints_lines_peers_and_the_engine(tmp_path: Path) -> None:
    arguments = ["--rows", "400", "--tables", "people", "--seconds", "0.01", "--repeat", "1", "--calls", "200"]
    result = CliRunner().invoke(
        sql.main, [*arguments, "--peers", "voltpy,sqlite", "--partitions", "2", "--directory", str(tmp_path)]
    )
    assert result.exit_code == 0, result.output
    for name in ("three-column AND, count", "range of 100 rows", "GROUP BY of all rows"):
        assert f"| {name} | sqlite | " in result.output
    assert "| in the partitions, pipelined | " in result.output
    assert list(tmp_path.iterdir()) == []


def test_peers_that_disagree_are_told() -> None:
    line = sql.PEOPLE_LINES[0]
    with pytest.raises(BenchError, match="other answered"):
        sql._compare(line, {"one": lambda _: [(1,)], "other": lambda _: [(2,)]}, [("city 1", "plan 1", 1)])
    sql._compare(line, {"one": lambda _: [(1.0000001,)], "other": lambda _: [(1.0,)]}, [("city 1", "plan 1", 1)])
