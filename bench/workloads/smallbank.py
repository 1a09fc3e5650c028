"""smallbank: the four transactions of one customer, in equal parts; with --crossing, payments between two as well.

Those lines are made for comparing with each other: the same calls, where the two customers of a payment live in one
partition, and where they live in different ones.

Accounts are opened so well filled that no call aborts and no fee is due: in a pipeline of PostgreSQL one abort would
undo all calls of its batch. So the money in all accounts is what was there before, plus what the calls moved.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from random import Random
from typing import Any

from bench.workload import Call, Line, OnDicts, OnPostgres, OnRedis, OnVoltpy, expect, fcall, send_in_pipelines
from procedures.smallbank import OVERDRAFT_FEE
from voltpy.hash_slot import hash_slot, slot_owners

CUSTOMERS = 100_000
OPENING_BALANCE = 1_000_000_000
MOVED = {"balance": 0, "deposit_checking": 1, "transact_savings": 1, "write_check": -1}  # sign of the amount
MAX_AMOUNT = 10_000

PAYMENT = "send_payment"
CROSSING, WITHIN = "crossing", "within"

CUSTOMER_ROWS = [
    (customer, f"customer {customer:06d}", OPENING_BALANCE, OPENING_BALANCE) for customer in range(CUSTOMERS)
]


def calls(seed: int, count: int) -> list[Call]:
    random = Random(seed)
    names = random.choices(list(MOVED), k=count)
    customers = random.choices(range(CUSTOMERS), k=count)
    amounts = random.choices(range(1, MAX_AMOUNT + 1), k=count)
    return [
        (name, (customer,) if name == "balance" else (customer, amount))
        for name, customer, amount in zip(names, customers, amounts, strict=True)
    ]


def calls_with_payments(partitions: int, percent: float, crosses: bool, seed: int, count: int) -> list[Call]:
    """This percentage of the calls are payments; whether they cross changes nothing but who is paid."""
    owners = slot_owners(partitions)
    customers_of: list[list[int]] = [[] for _ in range(partitions)]
    for customer in range(CUSTOMERS):
        customers_of[owners[hash_slot(customer)]].append(customer)
    random = Random(f"{seed}:payments")
    mixed = calls(seed, count)
    for number, (_, (payer, *_amount)) in enumerate(mixed):
        if random.random() * 100 < percent:
            home, amount, away = (
                owners[hash_slot(payer)],
                random.randint(1, MAX_AMOUNT),
                random.randrange(1, partitions),
            )
            near, far = random.choice(customers_of[home]), random.choice(customers_of[(home + away) % partitions])
            if near == payer:
                near = customers_of[home][0] if payer != customers_of[home][0] else customers_of[home][1]
            mixed[number] = (PAYMENT, (payer, far if crosses else near, amount))
    return mixed


def verify(calls: Sequence[Call], results: Sequence[Any], total: int) -> None:
    expect("answers", sum(result is not None for result in results), len(calls))
    moved = sum(MOVED[name] * args[1] for name, args in calls if name not in ("balance", PAYMENT))
    expect("money", total, 2 * OPENING_BALANCE * CUSTOMERS + moved)


REDIS = f"""#!lua name=smallbank

local function check(customer)
  if redis.call('HEXISTS', 'accounts', customer) == 0 then error('there is no customer ' .. customer) end
end

redis.register_function('balance', function(keys, args)
  local call, customer = redis.call, keys[1]
  check(customer)
  return call('HGET', 'savings', customer) + call('HGET', 'checking', customer)
end)

redis.register_function('deposit_checking', function(keys, args)
  local call, customer, amount = redis.call, keys[1], tonumber(args[1])
  if amount < 0 then return redis.error_reply('a deposit is not negative') end
  check(customer)
  return call('HINCRBY', 'checking', customer, amount)
end)

redis.register_function('transact_savings', function(keys, args)
  local call, customer, amount = redis.call, keys[1], tonumber(args[1])
  check(customer)
  if call('HGET', 'savings', customer) + amount < 0 then return redis.error_reply('not covered') end
  return call('HINCRBY', 'savings', customer, amount)
end)

redis.register_function('write_check', function(keys, args)
  local call, customer, amount = redis.call, keys[1], tonumber(args[1])
  check(customer)
  if call('HGET', 'savings', customer) + call('HGET', 'checking', customer) < amount then
    amount = amount + {OVERDRAFT_FEE}
  end
  return call('HINCRBY', 'checking', customer, -amount)
end)
"""

POSTGRES = f"""
CREATE TABLE accounts (customer bigint PRIMARY KEY, name text NOT NULL);
CREATE TABLE savings (customer bigint PRIMARY KEY, balance bigint NOT NULL) WITH (fillfactor = 50);
CREATE TABLE checking (customer bigint PRIMARY KEY, balance bigint NOT NULL) WITH (fillfactor = 50);

CREATE FUNCTION balance(who bigint) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE saved bigint; checked bigint;
BEGIN
  PERFORM FROM accounts WHERE customer = who;
  IF NOT FOUND THEN RAISE 'there is no customer %', who; END IF;
  SELECT s.balance INTO saved FROM savings s WHERE s.customer = who;
  SELECT c.balance INTO checked FROM checking c WHERE c.customer = who;
  RETURN saved + checked;
END $$;

CREATE FUNCTION deposit_checking(who bigint, amount bigint) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE result bigint;
BEGIN
  IF amount < 0 THEN RAISE 'a deposit is not negative'; END IF;
  PERFORM FROM accounts WHERE customer = who;
  IF NOT FOUND THEN RAISE 'there is no customer %', who; END IF;
  UPDATE checking c SET balance = c.balance + amount WHERE c.customer = who RETURNING c.balance INTO result;
  RETURN result;
END $$;

CREATE FUNCTION transact_savings(who bigint, amount bigint) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE result bigint;
BEGIN
  PERFORM FROM accounts WHERE customer = who;
  IF NOT FOUND THEN RAISE 'there is no customer %', who; END IF;
  UPDATE savings s SET balance = s.balance + amount WHERE s.customer = who AND s.balance + amount >= 0
    RETURNING s.balance INTO result;
  IF NOT FOUND THEN RAISE 'the savings of customer % do not cover it', who; END IF;
  RETURN result;
END $$;

CREATE FUNCTION write_check(who bigint, amount bigint) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE saved bigint; result bigint;
BEGIN
  PERFORM FROM accounts WHERE customer = who;
  IF NOT FOUND THEN RAISE 'there is no customer %', who; END IF;
  SELECT s.balance INTO saved FROM savings s WHERE s.customer = who;
  UPDATE checking c
    SET balance = c.balance - amount - CASE WHEN saved + c.balance < amount THEN {OVERDRAFT_FEE} ELSE 0 END
    WHERE c.customer = who RETURNING c.balance INTO result;
  RETURN result;
END $$;
"""

STATEMENTS = {
    name: f"SELECT {name}(%s::bigint)" if name == "balance" else f"SELECT {name}(%s::bigint, %s::bigint)"
    for name in MOVED
}


def _load_voltpy(client: Any) -> None:
    client.call_many("open_customer", CUSTOMER_ROWS)


def _state_of_voltpy(client: Any) -> int:
    return sum(client.call_many("balance", [(customer,) for customer in range(CUSTOMERS)]))


def _load_redis(client: Any) -> None:
    commands: list[tuple[Any, ...]] = []
    for customer, name, savings, checking in CUSTOMER_ROWS:
        commands.append(("HSET", "accounts", customer, name))
        commands.append(("HSET", "savings", customer, savings))
        commands.append(("HSET", "checking", customer, checking))
    send_in_pipelines(client, commands)


def _state_of_redis(client: Any) -> int:
    return sum(map(int, client.hvals("savings"))) + sum(map(int, client.hvals("checking")))


def _load_postgres(connection: Any) -> None:
    cursor = connection.cursor()
    for table, column in (("accounts", 1), ("savings", 2), ("checking", 3)):
        with cursor.copy(f"COPY {table} FROM STDIN") as copy:
            for row in CUSTOMER_ROWS:
                copy.write_row((row[0], row[column]))
    connection.execute("ANALYZE")


def _state_of_postgres(connection: Any) -> int:
    total = "SELECT (SELECT sum(balance) FROM savings) + (SELECT sum(balance) FROM checking)"
    return int(connection.execute(total).fetchone()[0])


def _load_dicts(tx: Any) -> None:
    for customer, name, savings, checking in CUSTOMER_ROWS:
        tx.accounts.insert(customer, name)
        tx.savings.insert(customer, savings)
        tx.checking.insert(customer, checking)


def _state_of_dicts(tx: Any) -> int:
    return sum(row.balance for table in (tx.savings, tx.checking) for row in table.scan())


LINES = (
    Line(
        workload="smallbank",
        name="mix",
        drive="many",
        calls=calls,
        count=500_000,
        cycles=True,
        verify=verify,
        procedures=tuple(MOVED),
        voltpy=OnVoltpy("smallbank", _load_voltpy, _state_of_voltpy),
        dicts=OnDicts("smallbank", _load_dicts, _state_of_dicts),
        redis=OnRedis(REDIS, _load_redis, fcall, _state_of_redis),
        postgres=OnPostgres(POSTGRES, _load_postgres, STATEMENTS, _state_of_postgres),
    ),
)


def lines_with_payments(partitions: int, percent: float) -> list[Line]:
    """Two lines: no payment crosses partitions, and each of them does. There must be several partitions."""
    return [
        Line(
            workload="smallbank",
            name=f"{name} {percent:g} %",
            drive="many",
            calls=partial(calls_with_payments, partitions, percent, name == CROSSING),
            count=500_000,
            cycles=True,
            verify=verify,
            procedures=(*MOVED, PAYMENT),
            voltpy=OnVoltpy("smallbank", _load_voltpy, _state_of_voltpy),
        )
        for name in (WITHIN, CROSSING)
    ]
