"""Runs the records of one script, and counts what became of them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tests.sqllogictest.database import Database
from tests.sqllogictest.script import Record, records
from voltpy.errors import Error

# Statements that are no part of the SQL here, by what they are.
_NOT_OURS = [
    (re.compile(pattern, re.IGNORECASE), reason)
    for pattern, reason in [
        (r"\s*(CREATE|DROP)\s+(TEMP\s+|TEMPORARY\s+)?VIEW\b", "a view of any query"),
        (r"\s*(CREATE|DROP)\s+TRIGGER\b", "a trigger"),
        (r"\s*REINDEX\b", "REINDEX"),
        (r"\s*(REPLACE|INSERT\s+OR\s+REPLACE)\b", "REPLACE"),
    ]
]
# What keeps PostgreSQL from running a record, and nothing here.
_NO_LIMIT_HERE = ("PostgreSQL requires AS when renaming output columns",)
# What PostgreSQL refuses too, in a record that it doesn't run for one of those reasons.
_STRICT = "must be in GROUP BY or inside an aggregate"
_VIEW = re.compile(r"\s*CREATE\s+(?:TEMP\s+|TEMPORARY\s+)?VIEW\s+(\w+)", re.IGNORECASE)


class Runs(Protocol):
    """The rows of a statement; raises voltpy's errors."""

    def execute(self, sql: str) -> Sequence[Sequence[Any]]: ...


@dataclass
class Outcome:
    """`failures` in words. `reasons`: what errors said, without their places, for each record that failed with one.
    `skipped`: how many records were, by the reason.
    """

    passed: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    def add(self, other: Outcome) -> None:
        self.passed += other.passed
        self.skipped += other.skipped
        self.failures += other.failures
        self.reasons += other.reasons

    def summary(self) -> str:
        return f"{self.passed:,} passed, {len(self.failures):,} failed, {self.skipped.total():,} skipped"


def run(text: str, name: str = "postgresql", limit: int = 0) -> Outcome:
    """In this process. `name`: what skipif and onlyif call this engine. `limit`: records to run; 0 is all."""
    return run_on(Database(), records(text), name, limit)


def run_on(database: Runs, script: Iterable[Record], name: str = "postgresql", limit: int = 0) -> Outcome:
    outcome = Outcome()
    views: set[str] = set()
    for record in script:
        if limit and outcome.passed + len(outcome.failures) >= limit:
            break
        reason = _why_skipped(record, name, views)
        if reason is not None:
            outcome.skipped[reason] += 1
            continue
        problem: str | None = None
        try:
            rows = database.execute(record.sql)
        except Error as error:
            if any(record.not_for(name)) and _STRICT in str(error):
                outcome.skipped["PostgreSQL has strict column usage for GROUP BY clauses"] += 1
                continue
            if record.succeeds:
                problem = f"{type(error).__name__}: {error}"
                outcome.reasons.append(reason_of(error))
        else:
            if not record.succeeds:
                problem = "it succeeded, and should have failed"
            elif record.kind == "query":
                problem = record.difference(rows)
        if problem is None:
            outcome.passed += 1
        else:
            outcome.failures.append(f"line {record.line}: {problem}\n{record.sql}")
    return outcome


def _why_skipped(record: Record, name: str, views: set[str]) -> str | None:
    """Why the record is not run. `views` are those that a record which was skipped would have made."""
    for word, wanted, comment in record.not_for(name):
        if comment not in _NO_LIMIT_HERE:
            return f"{word} {wanted}{': ' if comment else ''}{comment}"
    for pattern, reason in _NOT_OURS:
        if pattern.match(record.sql):
            if view := _VIEW.match(record.sql):
                views.add(view[1].lower())
            return reason
    if views and not views.isdisjoint(re.findall(r"\w+", record.sql.lower())):
        return "it reads a view that was skipped"
    return None


def reason_of(error: Error) -> str:
    first = str(error).split("\n")[0]
    return re.sub(r"^line \d+, column \d+: ", "", first)[:120]
