"""Statements at the limits, far beyond them, and with damage: the short form of tests.campaigns.sql_fuzz."""

from __future__ import annotations

from typing import Any

import pytest

from tests.campaigns.sql_fuzz import fuzz, shapes
from tests.campaigns.sql_text import CHAINS
from voltpy.errors import SqlError
from voltpy.sql import runtime
from voltpy.sql.parse import parse_statement


def test_whatever_is_asked_is_answered_or_refused() -> None:
    outcome = fuzz(1, first=shapes((5, 39, 300), (50, 400), pairs=False), statements=300)
    assert outcome.failures == ()
    assert outcome.answered > 100
    assert outcome.refused > 100


def test_the_campaign_finds_what_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(text: str, count: int) -> Any:
        raise KeyError(count)

    monkeypatch.setitem(runtime.NAMES, "left", broken)
    outcome = fuzz(1, first=["SELECT LEFT(note, 1) FROM orders", "SELECT RIGHT(note, 1) FROM orders"], statements=0)
    assert (outcome.answered, len(outcome.failures)) == (1, 1)
    assert "KeyError" in outcome.failures[0]


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ("joins", "more than 64 tables in FROM"),
        ("ORDER BY", "more than 1,000 expressions in ORDER BY"),
        ("GROUP BY", "more than 1,000 expressions in GROUP BY"),
        ("VALUES", "more than 50,000 words, values and signs"),
    ],
)
def test_what_would_take_the_planner_long_is_refused_by_its_size(shape: str, words: str) -> None:
    with pytest.raises(SqlError, match=words):
        parse_statement(CHAINS[shape](20_000 if shape == "VALUES" else 3000))


def test_queries_of_with_count_wherever_they_are_named() -> None:
    outcome = fuzz(1, first=[CHAINS["WITH twice"](6), CHAINS["WITH twice"](7)], statements=0)
    assert (outcome.answered, outcome.refused, outcome.failures) == (1, 1, ())


def test_comments_in_each_other_are_read_or_refused_by_their_number() -> None:
    depth = 49  # sqlglot's nesting and ours must not differ in where the comment ends
    for text in (f"SELECT {'/*' * depth}{'*/' * depth} 1", f"SELECT {'/*' * depth}{'*/' * (depth - 1)} 1"):
        outcome = fuzz(1, first=[text], statements=0)
        assert (outcome.statements, outcome.failures) == (1, ())
    with pytest.raises(SqlError, match="more than 1,000 comments"):
        parse_statement(CHAINS["comments in each other"](1001))
