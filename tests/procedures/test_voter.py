from __future__ import annotations

from typing import Any

import pytest

from procedures.voter import CONTESTANTS, INVALID_CONTESTANT, OVER_THE_LIMIT, STATE_OF_AREA_CODE, VOTE_ACCEPTED

BOSTON, NOWHERE = 617_555_0123, 111_555_0123


@pytest.fixture
def db(open_database: Any) -> Any:
    db = open_database("voter")
    assert db.call("initialize", CONTESTANTS[:6]) == 6
    return db


def test_a_vote_is_counted_for_its_contestant_and_its_caller(db: Any) -> None:
    assert db.call("vote", BOSTON, 3, 2) == VOTE_ACCEPTED
    assert db.call("count_votes") == 1
    assert db.call("votes_of", BOSTON) == 1
    assert [votes for _, _, votes in db.call("results")] == [0, 0, 1, 0, 0, 0]
    [vote] = db.tx.votes.scan()
    assert (vote.phone_number, vote.state, vote.contestant_number) == (BOSTON, "MA", 3)
    caller = db.tx.callers.get(BOSTON)
    assert (caller.state, caller.last_contestant) == ("MA", 3)


def test_a_caller_past_the_limit_changes_nothing(db: Any) -> None:
    assert [db.call("vote", BOSTON, 1, 2) for _ in range(4)] == [0, 0, OVER_THE_LIMIT, OVER_THE_LIMIT]
    assert db.call("count_votes") == 2
    assert db.call("votes_of", BOSTON) == 2


def test_a_vote_for_nobody_changes_nothing(db: Any) -> None:
    assert db.call("vote", BOSTON, 7, 2) == INVALID_CONTESTANT
    assert db.call("vote", BOSTON, 0, 2) == INVALID_CONTESTANT
    assert db.call("count_votes") == 0


def test_a_caller_from_an_unknown_area_votes_in_state_xx(db: Any) -> None:
    assert db.call("vote", NOWHERE, 1, 2) == VOTE_ACCEPTED
    assert db.tx.callers.get(NOWHERE).state == "XX"


def test_results_name_every_contestant_and_add_up_to_the_votes(db: Any) -> None:
    for number in range(30):
        db.call("vote", BOSTON + number, number % 3 + 1, 1)
    assert db.call("results") == [[number, CONTESTANTS[number - 1], 10 if number <= 3 else 0] for number in range(1, 7)]


def test_initialize_again_leaves_everything_as_it_is(db: Any) -> None:
    assert db.call("initialize", ["somebody else"]) == 6
    assert db.tx.contestants.get(1).contestant_name == CONTESTANTS[0]


def test_area_codes_are_three_digits_and_each_is_in_one_state() -> None:
    from procedures import voter

    listed = [code for line in voter._AREA_CODES.split("\n")[1:-1] for code in line.split()[1:]]
    assert len(listed) == len(set(listed)) == len(STATE_OF_AREA_CODE)
    assert all(200 <= code <= 999 for code in STATE_OF_AREA_CODE)
    assert len(set(STATE_OF_AREA_CODE.values())) == 52  # 50 states, DC, Puerto Rico
    assert (STATE_OF_AREA_CODE[212], STATE_OF_AREA_CODE[907], STATE_OF_AREA_CODE[787]) == ("NY", "AK", "PR")
