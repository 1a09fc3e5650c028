"""The runner for SQLite's sqllogictest, and two scripts of its format."""

from __future__ import annotations

from pathlib import Path

import pytest

import tests.sqllogictest
from tests.sqllogictest.run import run
from tests.sqllogictest.script import records

SCRIPTS = sorted((Path(tests.sqllogictest.__file__).parent / "scripts").glob("*.test"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_pass(script: Path) -> None:
    outcome = run(script.read_text(encoding="utf-8"))
    assert outcome.failures == []
    assert outcome.passed > 10


def test_what_differs_is_told() -> None:
    outcome = run("query I nosort\nSELECT 1\n----\n2\n\nstatement error\nSELECT 1\n\nstatement ok\nSELECT x\n")
    assert outcome.passed == 0
    assert [failure.split("\n")[0] for failure in outcome.failures[:2]] == [
        "line 1: ['1'], expected ['2']",
        "line 6: it succeeded, and should have failed",
    ]
    assert outcome.reasons == ["there is no column x"]


def test_records_of_other_engines_are_left_out() -> None:
    outcome = run("onlyif mysql\nquery I\nSELECT 1 DIV 1\n----\n1\n\nskipif mysql\nquery I\nSELECT 1\n----\n1\n")
    assert (outcome.passed, outcome.skipped) == (1, {"onlyif mysql": 1})


def test_what_postgresql_refuses_for_another_reason_than_the_one_given_is_left_out() -> None:
    table = "statement ok\nCREATE TABLE t (a INT, b INT)\n\nstatement ok\nINSERT INTO t VALUES (1, 2), (1, 3)\n\n"
    skip = "skipif postgresql # PostgreSQL requires AS when renaming output columns\n"
    query = "query I nosort\nSELECT a c FROM t GROUP BY a{}\n----\n1\n"
    assert run(table + skip + query.format("")).passed == 3
    strict = run(table + skip + query.format(" HAVING b = 2"))
    assert (strict.passed, strict.skipped) == (2, {"PostgreSQL has strict column usage for GROUP BY clauses": 1})
    assert len(run(table + query.format(" HAVING b = 2")).failures) == 1


def test_garbage_is_no_script() -> None:
    with pytest.raises(ValueError, match="line 1: 'nonsense' is no record"):
        list(records("nonsense\n"))
