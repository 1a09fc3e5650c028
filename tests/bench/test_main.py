"""The command line, from the arguments to the files that it leaves."""

import msgspec
import pytest
from click.testing import CliRunner

from bench.__main__ import main
from bench.experiment import Results


def bench(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def results_file(tmp_path):
    json_file, markdown_file = tmp_path / "results.json", tmp_path / "table.md"
    done = bench(
        *("increment", "--peers", "dicts", "--seconds", 0.1, "--repeat", 2, "--fsync", "never"),
        *("--directory", tmp_path, "--json", json_file, "--markdown", markdown_file),
    )
    assert done.exit_code == 0, done.output
    assert "| increment/increment | dicts |" in done.stdout
    assert markdown_file.read_text() in done.stdout
    return json_file


def test_results_are_written_as_json_and_reported_again(results_file):
    results = msgspec.json.decode(results_file.read_bytes(), type=Results)
    assert [run.repetition for run in results.runs] == [0, 1]
    assert results.settings.in_flight == 2048
    again = bench("report", results_file)
    assert again.exit_code == 0
    assert (results_file.parent / "table.md").read_text() in again.stdout


def test_a_file_that_holds_no_results_is_refused(tmp_path):
    file = tmp_path / "other.json"
    file.write_text('{"runs": 1}')
    refused = bench("report", file)
    assert refused.exit_code == 1
    assert "holds no results" in refused.output


def test_an_unknown_peer_is_refused_with_the_known_ones():
    refused = bench("voter", "--peers", "voltpy,oracle")
    assert refused.exit_code == 2
    assert "oracle" in refused.output
    assert "voltpy,redis,postgres,two_postgres,dicts" in refused.output
