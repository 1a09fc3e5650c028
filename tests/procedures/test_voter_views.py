from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import procedures
from procedures.voter import CONTESTANTS, INVALID_CONTESTANT, OVER_THE_LIMIT, STATE_OF_AREA_CODE, VOTE_ACCEPTED
from voltpy.testing import Engine

FOLDER = Path(procedures.__file__).parent
BOSTON, NOWHERE = 617_555_0123, 111_555_0123


@pytest.fixture
def db() -> Any:
    with Engine(FOLDER / "voter_views.sql", FOLDER / "voter_views.py") as db:
        assert db.call_everywhere("initialize", CONTESTANTS[:6], STATE_OF_AREA_CODE) == [6]
        yield db
        db.check()


def test_a_vote_is_counted_by_its_number_and_for_its_contestant(db: Any) -> None:
    assert [db.call("vote", BOSTON, 3, 2) for _ in range(3)] == [VOTE_ACCEPTED, VOTE_ACCEPTED, OVER_THE_LIMIT]
    assert db.call("vote", NOWHERE, 3, 2) == VOTE_ACCEPTED
    assert db.call("vote", BOSTON + 1, 7, 2) == INVALID_CONTESTANT
    assert db.call("votes_of", BOSTON) == 2
    assert db.call("votes_of", BOSTON + 1) == 0
    assert db.call_everywhere("count_votes") == [3]
    assert [votes for _, _, votes in db.call_everywhere("results")[0]] == [0, 0, 3, 0, 0, 0]
    totals = "SELECT state, num_votes FROM votes_by_contestant WHERE contestant_number = 3 ORDER BY state"
    assert db.execute(totals).rows == [("MA", 2), ("XX", 1)]
