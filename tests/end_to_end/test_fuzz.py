"""Frames and files that are almost right: the short form of tests.campaigns.fuzz."""

from __future__ import annotations

import pytest

from tests.campaigns.fuzz import TARGETS, fuzz

CASES = 60_000


@pytest.mark.parametrize("target", TARGETS)
def test_whatever_arrives_is_answered_or_refused_and_harms_nothing(target: str) -> None:
    cases = round(CASES * TARGETS[target][1])
    outcome = fuzz(target, cases, seed=1)
    assert outcome.failure == ""
    assert outcome.cases == cases
    assert 0 < outcome.taken < cases  # some were taken for good, so what lies behind the decoder was reached too
