"""A script of sqllogictest through voltpy.dbapi, its tables made and divided while the cluster runs."""

from __future__ import annotations

from pathlib import Path

import tests.sqllogictest
from tests.sqllogictest.cluster import ClusterDatabase
from tests.sqllogictest.run import run_on
from tests.sqllogictest.script import records

SCRIPTS = Path(tests.sqllogictest.__file__).parent / "scripts"
# Every column is NULL somewhere, so the table is divided by a column of the runner's own.
NULLS = """
statement ok
CREATE TABLE t (a INTEGER, b INTEGER)

statement ok
INSERT INTO t(b, a) VALUES(NULL, 1)

statement ok
INSERT INTO t(a, b) VALUES(NULL, 2)

query II rowsort
SELECT a, b FROM t
----
1
NULL
NULL
2

statement ok
DROP TABLE t

statement error
SELECT a FROM t
"""


def test_scripts_pass_on_two_partitions(tmp_path: Path) -> None:
    for number, text in enumerate(((SCRIPTS / "index.test").read_text(), NULLS)):
        script = list(records(text))
        with ClusterDatabase(tmp_path / str(number), script, partitions=2) as database:
            outcome = run_on(database, script)
        assert outcome.failures == []
        assert outcome.passed > 5
        assert database.copies == []
