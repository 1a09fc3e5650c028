"""Runs the records of one script, and counts what became of them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from tests.sqllogictest.database import Database
from tests.sqllogictest.script import records
from voltpy.errors import Error


@dataclass
class Outcome:
    """`failures` in words. `reasons`: what errors said, without their places, for each record that failed with one."""

    passed: int = 0
    left_out: int = 0
    failures: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    def add(self, other: Outcome) -> None:
        self.passed += other.passed
        self.left_out += other.left_out
        self.failures += other.failures

    def summary(self) -> str:
        return f"{self.passed:,} passed, {len(self.failures):,} failed, {self.left_out:,} for other engines"


def run(text: str, name: str = "postgresql", limit: int = 0) -> Outcome:
    """`name`: what skipif and onlyif call this engine. `limit`: records to run; 0 is all."""
    database, outcome = Database(), Outcome()
    for record in records(text):
        if not record.runs_on(name):
            outcome.left_out += 1
            continue
        if limit and outcome.passed + len(outcome.failures) >= limit:
            break
        problem: str | None = None
        try:
            result = database.execute(record.sql)
        except Error as error:
            if record.succeeds:
                problem = f"{type(error).__name__}: {error}"
                outcome.reasons.append(reason_of(error))
        else:
            if not record.succeeds:
                problem = "it succeeded, and should have failed"
            elif record.kind == "query":
                problem = record.difference([] if result is None else result.rows)
        if problem is None:
            outcome.passed += 1
        else:
            outcome.failures.append(f"line {record.line}: {problem}\n{record.sql}")
    return outcome


def reason_of(error: Error) -> str:
    first = str(error).split("\n")[0]
    return re.sub(r"^line \d+, column \d+: ", "", first)[:120]
