"""voter with views: a vote is three reads and one write, and its totals are kept by the database.

The procedures are those of `voter`; what `results` reads of every vote there, it reads of some hundred totals here.
"""

from collections import Counter

from voltpy import procedure

VOTE_ACCEPTED, INVALID_CONTESTANT, OVER_THE_LIMIT = 0, 1, 2
UNKNOWN_STATE = "XX"


@procedure(everywhere=True)
def initialize(tx, contestants: list[str], state_of_area_code: dict[int, str]) -> int:
    """Sets up the contestants, numbered from 1, and the area codes, once; returns how many contestants there are."""
    if tx.contestants.count() == 0:
        for number, name in enumerate(contestants, start=1):
            tx.contestants.insert(number, name)
        for area_code, state in state_of_area_code.items():
            tx.area_code_state.insert(area_code, state)
    return tx.contestants.count()


@procedure(partition_by="phone_number")
def vote(tx, phone_number: int, contestant_number: int, max_votes: int) -> int:
    """Counts one vote: 0 accepted, 1 no such contestant, 2 this phone number has voted `max_votes` times."""
    if tx.contestants.get(contestant_number) is None:
        return INVALID_CONTESTANT
    caller = tx.votes_by_phone.get(phone_number)
    if caller is not None and caller.num_votes >= max_votes:
        return OVER_THE_LIMIT
    area_code = tx.area_code_state.get(phone_number // 10_000_000)
    state = UNKNOWN_STATE if area_code is None else area_code.state
    tx.votes.insert(phone_number, state, contestant_number)
    return VOTE_ACCEPTED


@procedure(partition_by="phone_number", read_only=True)
def votes_of(tx, phone_number: int) -> int:
    """How many votes of this phone number were counted."""
    row = tx.votes_by_phone.get(phone_number)
    return 0 if row is None else row.num_votes


@procedure(partition_by=None, read_only=True, everywhere=True)
def count_votes(tx) -> int:
    """How many votes this partition has counted."""
    return tx.votes.count()


@procedure(partition_by=None, read_only=True, everywhere=True)
def results(tx) -> list[tuple[int, str, int]]:
    """(contestant number, name, votes in this partition) of every contestant."""
    votes: Counter[int] = Counter()
    for row in tx.votes_by_contestant.scan():
        votes[row.contestant_number] += row.num_votes
    contestants = sorted(tx.contestants.scan(), key=lambda row: row.contestant_number)
    return [(row.contestant_number, row.contestant_name, votes[row.contestant_number]) for row in contestants]
