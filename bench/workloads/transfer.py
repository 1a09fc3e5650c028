"""transfer: money between an account in partition 0 and one in partition 1, either way; every transfer crosses.

All of the money is where it was, and each account holds what the transfers that were answered left it.

Two PostgreSQL servers hold a half of the accounts each. One PostgreSQL server, which has all of them, does a transfer
in one call; it locks the two rows in the order of their numbers, or two transfers would deadlock.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from random import Random
from typing import Any

from bench.workload import Call, Line, OnDicts, OnPostgres, OnTwoPostgres, OnVoltpy, expect
from voltpy.hash_slot import hash_slot, slot_owners

ACCOUNTS_A_SIDE = 50_000
OPENING_BALANCE = 1_000_000_000
MAX_AMOUNT = 10_000

Sides = tuple[list[int], list[int]]


def sides(partitions: int, accounts: int) -> Sides:
    """So many accounts of partition 0, and as many of partition 1. With one partition, they all live there."""
    owners = slot_owners(partitions)
    found: Sides = ([], [])
    for account in count(1):
        side = owners[hash_slot(account)] if partitions > 1 else account % 2
        if side < 2 and len(found[side]) < accounts:
            found[side].append(account)
        elif all(len(each) == accounts for each in found):
            return found
    raise AssertionError("count() ended")


def transfers(found: Sides, seed: int, number: int) -> list[Call]:
    random = Random(seed)
    ones, others = (random.choices(side, k=number) for side in found)
    amounts = random.choices(range(1, MAX_AMOUNT + 1), k=number)
    forwards = random.choices((True, False), k=number)
    return [
        ("transfer", (one, other, amount) if forward else (other, one, amount))
        for one, other, amount, forward in zip(ones, others, amounts, forwards, strict=True)
    ]


def verify(found: Sides, calls: Sequence[Call], results: Sequence[Any], state: tuple[int, dict[int, int]]) -> None:
    """`state`: the total, and the balances by account."""
    total, balances = state
    accounts = [account for side in found for account in side]
    expect("answers", len(results), len(calls))
    expect("money", total, OPENING_BALANCE * len(accounts))
    expected = dict.fromkeys(accounts, OPENING_BALANCE)
    for _, (source, target, amount) in calls:
        expected[source] -= amount
        expected[target] += amount
    wrong = [account for account in accounts if balances.get(account) != expected[account]]
    expect("accounts that hold something else than their transfers left", len(wrong), 0)


TABLE = """
CREATE TABLE accounts (
  id bigint PRIMARY KEY, owner text NOT NULL, city text, balance bigint NOT NULL CHECK (balance >= 0)
) WITH (fillfactor = 50);
"""

POSTGRES = f"""{TABLE}
CREATE FUNCTION transfer(source bigint, target bigint, amount bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  IF amount <= 0 OR source = target THEN RAISE 'that is no transfer'; END IF;
  IF source < target THEN
    UPDATE accounts SET balance = balance - amount WHERE id = source;
    IF NOT FOUND THEN RAISE 'there is no account %', source; END IF;
    UPDATE accounts SET balance = balance + amount WHERE id = target;
    IF NOT FOUND THEN RAISE 'there is no account %', target; END IF;
  ELSE
    UPDATE accounts SET balance = balance + amount WHERE id = target;
    IF NOT FOUND THEN RAISE 'there is no account %', target; END IF;
    UPDATE accounts SET balance = balance - amount WHERE id = source;
    IF NOT FOUND THEN RAISE 'there is no account %', source; END IF;
  END IF;
END $$;
"""

# A part that changes no row fails: a transfer to nobody is none.
TWO_POSTGRES = f"""{TABLE}
CREATE FUNCTION move(account bigint, amount bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  UPDATE accounts SET balance = balance + amount WHERE id = account;
  IF NOT FOUND THEN RAISE 'there is no account %', account; END IF;
END $$;
"""
PREPARED = "PREPARE move (bigint, bigint) AS SELECT move($1, $2)"


def lines(partitions: int) -> tuple[Line, ...]:
    return lines_between(sides(partitions, ACCOUNTS_A_SIDE))


def lines_between(found: Sides) -> tuple[Line, ...]:
    """Many transfers at a time, and one."""
    accounts = [account for side in found for account in side]
    of_second = set(found[1])

    def load_voltpy(client: Any) -> None:
        client.call_many("open_account", [(account, f"owner {account}") for account in accounts])
        client.call_many("deposit", [(account, OPENING_BALANCE) for account in accounts])

    def state_of_voltpy(client: Any) -> tuple[int, dict[int, int]]:
        balances = client.call_many("balance", [(account,) for account in accounts])
        return client.call("total", timeout=60), dict(zip(accounts, balances, strict=True))

    def load_dicts(tx: Any) -> None:
        for account in accounts:
            tx.accounts.insert(account, f"owner {account}", None, OPENING_BALANCE)

    def parts(call: Call) -> tuple[str, str]:
        source, target, amount = call[1]
        taken, given = f"EXECUTE move({source}, {-amount})", f"EXECUTE move({target}, {amount})"
        return (given, taken) if source in of_second else (taken, given)

    def line(name: str, drive: Any, number: int) -> Line:
        return Line(
            workload="transfer",
            name=name,
            drive=drive,
            calls=lambda seed, count: transfers(found, seed, count),
            count=number,
            cycles=True,
            verify=lambda calls, results, state: verify(found, calls, results, state),
            procedures=("transfer",),
            voltpy=OnVoltpy("bank", load_voltpy, state_of_voltpy),
            postgres=OnPostgres(
                POSTGRES,
                lambda connection: _copy(connection, accounts),
                {"transfer": "SELECT transfer(%s::bigint, %s::bigint, %s::bigint)"},
                lambda connection: _totalled(_balances(connection)),
                batches=False,
            ),
            two_postgres=OnTwoPostgres(
                TWO_POSTGRES,
                lambda connection, number: _copy(connection, found[number]),
                PREPARED,
                parts,
                lambda first, second: _totalled(_balances(first) | _balances(second)),
            ),
            dicts=OnDicts(
                "bank", load_dicts, lambda tx: _totalled({row.id: row.balance for row in tx.accounts.scan()})
            ),
        )

    return line("crossing", "many", 500_000), line("lone", "lone", 200_000)


def _copy(connection: Any, accounts: Sequence[int]) -> None:
    with connection.cursor().copy("COPY accounts FROM STDIN") as copy:
        for account in accounts:
            copy.write_row((account, f"owner {account}", None, OPENING_BALANCE))
    connection.execute("ANALYZE")


def _balances(connection: Any) -> dict[int, int]:
    return dict(connection.execute("SELECT id, balance FROM accounts").fetchall())


def _totalled(balances: dict[int, int]) -> tuple[int, dict[int, int]]:
    return sum(balances.values()), balances
