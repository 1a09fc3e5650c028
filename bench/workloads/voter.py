"""voter: a vote reads a contestant, a state and the caller's count, and writes the vote, the count and the caller.

Phone numbers are spread over all area codes and hardly ever return, so nearly every vote is accepted.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from bench.workload import Call, Line, OnDicts, OnPostgres, OnRedis, OnVoltpy, expect, fcall
from procedures.voter import CONTESTANTS, STATE_OF_AREA_CODE, VOTE_ACCEPTED

MAX_VOTES = 2  # by one phone number, as in VoltDB's workload
NUMBERS_AN_AREA = 10_000_000


def calls(seed: int, count: int) -> list[Call]:
    random = Random(seed)
    areas = random.choices(list(STATE_OF_AREA_CODE), k=count)
    numbers = random.choices(range(NUMBERS_AN_AREA), k=count)
    contestants = random.choices(range(1, len(CONTESTANTS) + 1), k=count)
    return [
        ("vote", (area * NUMBERS_AN_AREA + number, contestant, MAX_VOTES))
        for area, number, contestant in zip(areas, numbers, contestants, strict=True)
    ]


def verify(calls: Sequence[Call], results: Sequence[Any], votes: int) -> None:
    accepted = sum(int(result) == VOTE_ACCEPTED for result in results)
    expect("votes", votes, accepted)
    expect("answers", len(results), len(calls))


REDIS = """#!lua name=voter

redis.register_function('vote', function(keys, args)
  local call, phone, contestant = redis.call, keys[1], args[1]
  if call('HEXISTS', 'contestants', contestant) == 0 then return 1 end
  local num_votes = tonumber(call('HGET', 'votes_by_phone', phone) or 0)
  if num_votes >= tonumber(args[2]) then return 2 end
  local state = call('HGET', 'area_code_state', string.sub(phone, 1, 3)) or 'XX'
  call('RPUSH', 'votes', phone .. ':' .. state .. ':' .. contestant)
  call('HSET', 'votes_by_phone', phone, num_votes + 1)
  call('HSET', 'callers', phone, state .. ':' .. contestant)
  return 0
end)
"""

POSTGRES = """
CREATE TABLE contestants (contestant_number bigint PRIMARY KEY, contestant_name text NOT NULL);
CREATE TABLE area_code_state (area_code bigint PRIMARY KEY, state text NOT NULL);
CREATE TABLE votes (phone_number bigint NOT NULL, state text NOT NULL, contestant_number bigint NOT NULL);
CREATE TABLE votes_by_phone (phone_number bigint PRIMARY KEY, num_votes bigint NOT NULL);
CREATE TABLE callers (phone_number bigint PRIMARY KEY, state text NOT NULL, last_contestant bigint NOT NULL);

CREATE FUNCTION vote(phone bigint, contestant bigint, max_votes bigint) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
  so_far bigint;
  home text;
BEGIN
  PERFORM FROM contestants WHERE contestant_number = contestant;
  IF NOT FOUND THEN RETURN 1; END IF;
  SELECT num_votes INTO so_far FROM votes_by_phone WHERE phone_number = phone;
  IF so_far >= max_votes THEN RETURN 2; END IF;
  SELECT state INTO home FROM area_code_state WHERE area_code = phone / 10000000;
  IF NOT FOUND THEN home := 'XX'; END IF;
  INSERT INTO votes VALUES (phone, home, contestant);
  INSERT INTO votes_by_phone AS old VALUES (phone, 1)
    ON CONFLICT (phone_number) DO UPDATE SET num_votes = old.num_votes + 1;
  INSERT INTO callers VALUES (phone, home, contestant)
    ON CONFLICT (phone_number) DO UPDATE SET state = excluded.state, last_contestant = excluded.last_contestant;
  RETURN 0;
END $$;
"""


def _load_voltpy(client: Any) -> None:
    client.call_everywhere("initialize", CONTESTANTS)


def _load_redis(client: Any) -> None:
    client.hset("contestants", mapping=dict(enumerate(CONTESTANTS, start=1)))
    client.hset("area_code_state", mapping=STATE_OF_AREA_CODE)


def _load_postgres(connection: Any) -> None:
    cursor = connection.cursor()
    cursor.executemany("INSERT INTO contestants VALUES (%s, %s)", list(enumerate(CONTESTANTS, start=1)))
    cursor.executemany("INSERT INTO area_code_state VALUES (%s, %s)", list(STATE_OF_AREA_CODE.items()))
    # The other tables stay without statistics: those of an empty table would have the server scan them as they grow.
    connection.execute("ANALYZE contestants, area_code_state")


def _load_dicts(tx: Any) -> None:
    for number, name in enumerate(CONTESTANTS, start=1):
        tx.contestants.insert(number, name)
    for area_code, state in STATE_OF_AREA_CODE.items():
        tx.area_code_state.insert(area_code, state)


LINES = (
    Line(
        workload="voter",
        name="vote",
        drive="many",
        calls=calls,
        count=2_000_000,
        cycles=False,
        verify=verify,
        procedures=("vote",),
        voltpy=OnVoltpy("voter", _load_voltpy, lambda client: sum(client.call_everywhere("count_votes"))),
        dicts=OnDicts("voter", _load_dicts, lambda tx: tx.votes.count()),
        redis=OnRedis(REDIS, _load_redis, fcall, lambda client: client.llen("votes")),
        postgres=OnPostgres(
            POSTGRES,
            _load_postgres,
            {"vote": "SELECT vote(%s::bigint, %s::bigint, %s::bigint)"},
            lambda connection: connection.execute("SELECT count(*) FROM votes").fetchone()[0],
        ),
    ),
)
