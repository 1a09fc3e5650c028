"""voter_views: the votes of `voter`, where the database keeps the totals as views: see procedures/voter_views.sql.

In one run with `voter` it says what two views cost that are kept with every row: `all` does not have it, since no peer
has such views.
"""

from __future__ import annotations

from bench.workload import Line, OnVoltpy
from bench.workloads.voter import calls, verify
from procedures.voter import CONTESTANTS, STATE_OF_AREA_CODE
from voltpy.client import Client


def _load(client: Client) -> None:
    client.call_everywhere("initialize", CONTESTANTS, STATE_OF_AREA_CODE)


def _state(client: Client) -> int:
    """The votes, as both views have them."""
    by_phone = client.execute("SELECT SUM(num_votes) FROM votes_by_phone").rows[0][0]
    by_contestant = client.execute("SELECT SUM(num_votes) FROM votes_by_contestant").rows[0][0]
    votes = sum(client.call_everywhere("count_votes"))
    return votes if by_phone == by_contestant == (votes or None) else -1


LINES = (
    Line(
        workload="voter_views",
        name="vote",
        drive="many",
        calls=calls,
        count=2_000_000,
        cycles=False,
        verify=verify,
        procedures=("vote",),
        voltpy=OnVoltpy("voter_views", _load, _state),
    ),
)
