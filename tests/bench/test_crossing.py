"""Workloads whose calls cross partitions: what they call, what their verification notices, what is wanted of them."""

import os
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pytest

from bench import isolation, report
from bench.experiment import Results, Run, Settings, make_peer
from bench.machine import Machine
from bench.targets import targets
from bench.workload import BenchError, CallStream, NotInstalled, Outcome
from bench.workloads import smallbank, transfer
from voltpy.hash_slot import hash_slot, slot_owners

SETTINGS = Settings(0.2, 64, 8, 2, "on", "never", 1, 1)
MACHINE = Machine("A Processor", 2, 8.0, "6.1", "CPython 3.11.7", {}, "ext4", 180.0, 440.0)
SIDES = transfer.sides(2, 20)


owners = cache(slot_owners)


def owner(key, partitions=2):
    return owners(partitions)[hash_slot(key)]


# ---- transfer ----


@pytest.mark.parametrize("partitions", [2, 5])
def test_every_transfer_crosses_either_way(partitions):
    found = transfer.sides(partitions, 50)
    calls = transfer.transfers(found, 1, 500)
    ways = {tuple(owner(account, partitions) for account in args[:2]) for _, args in calls}
    assert ways == {(0, 1), (1, 0)}


def test_a_transfer_that_was_lost_or_done_by_half_is_noticed():
    calls = [("transfer", (SIDES[0][0], SIDES[1][0], 5))]
    balances = dict.fromkeys([*SIDES[0], *SIDES[1]], transfer.OPENING_BALANCE)
    done = balances | {SIDES[0][0]: transfer.OPENING_BALANCE - 5, SIDES[1][0]: transfer.OPENING_BALANCE + 5}
    transfer.verify(SIDES, calls, [None], (sum(done.values()), done))
    with pytest.raises(BenchError, match="accounts that hold something else"):
        transfer.verify(SIDES, calls, [None], (sum(balances.values()), balances))
    half = balances | {SIDES[0][0]: transfer.OPENING_BALANCE - 5}
    with pytest.raises(BenchError, match="money"):
        transfer.verify(SIDES, calls, [None], (sum(half.values()), half))


@pytest.fixture
def directory():
    with TemporaryDirectory() as path:
        os.chmod(path, 0o755)  # PostgreSQL does not run as root
        yield Path(path)


def started(name, directory):
    try:
        return make_peer(name, directory, SETTINGS)
    except NotInstalled as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("name", ["postgres", "two_postgres", "dicts"])
def test_no_way_of_driving_a_peer_loses_money(name, directory):
    """Few accounts, so that transfers wait for one another."""
    many, lone = transfer.lines_between(SIDES)
    made: Outcome = Outcome([], [], [])
    with started(name, directory) as peer:
        peer.load(many)
        for line in (many, lone):
            for way in peer.ways(line):
                with peer.session(line, way, 64, 1) as drive:
                    outcome = drive(CallStream(line.calls(1, 2000), cycles=True), 0.1)
                assert outcome.calls
                made.calls += outcome.calls
                made.results += outcome.results
        many.verify(made.calls, made.results, peer.state(many))
        if name == "two_postgres":
            to_nobody = [("transfer", (SIDES[0][0], -1, 5))]
            with (
                pytest.raises(BenchError, match="there is no account -1"),
                peer.session(lone, peer.ways(lone)[0], 1, 1) as drive,
            ):
                drive(CallStream(to_nobody, cycles=False), 5.0)
            many.verify(made.calls, made.results, peer.state(many))


# ---- smallbank with payments ----


def test_lines_with_payments_differ_in_who_is_paid_alone():
    within, crossing = (line.calls(3, 4000) for line in smallbank.lines_with_payments(2, 10))
    paid = [(one[1], other[1]) for one, other in zip(within, crossing, strict=True) if one[0] == smallbank.PAYMENT]
    assert 300 < len(paid) < 500
    for (payer, near, amount), (same_payer, far, same_amount) in paid:
        assert (payer, amount) == (same_payer, same_amount)
        assert payer != near
        assert owner(payer) == owner(near) != owner(far)
    others = [(one, other) for one, other in zip(within, crossing, strict=True) if one[0] != smallbank.PAYMENT]
    assert all(one == other for one, other in others)


def test_payments_move_no_money_out_of_the_bank():
    calls = [("send_payment", (1, 2, 50)), ("deposit_checking", (1, 5))]
    total = 2 * smallbank.OPENING_BALANCE * smallbank.CUSTOMERS
    smallbank.verify(calls, [1, 1], total + 5)
    with pytest.raises(BenchError, match="money"):
        smallbank.verify(calls, [1, 1], total + 55)


# ---- isolation ----


def test_the_others_have_accounts_in_every_partition_but_the_first_two():
    sides, others = isolation.accounts(4)
    assert [{owner(account, 4) for account in side} for side in sides] == [{0}, {1}]
    assert {owner(account, 4) for account in others} == {2, 3}


def test_what_the_others_lose_is_the_median_of_the_pairs():
    phases = [
        isolation.Phase(number // 2, deposits, 2.0, 1.0, None if number % 2 == 0 else 50_000.0)
        for number, deposits in enumerate([100_000, 98_000, 100_000, 99_000, 100_000, 90_000])
    ]
    text = isolation.markdown(isolation.Results(MACHINE, SETTINGS, "", phases))
    assert "| 1 | 100,000 | 98,000 | 0.980 | 50,000 |" in text
    assert "lost, median: 2.0%, wanted at most 3%: held" in text
    assert "MISSED" in isolation.markdown(isolation.Results(MACHINE, SETTINGS, "", phases[4:]))


# ---- targets ----


def run(line, peer, way, rate, cpu_us=None, p50_us=None):
    return Run(line, "many", peer, way, 0, int(rate), 1.0, cpu_us or {"client": 1.0}, p50_us, p50_us)


def results_of(*runs):
    return Results(MACHINE, SETTINGS, "", {}, {}, list(runs))


def test_transfers_are_held_against_the_fastest_way_of_each_peer():
    lines = targets(
        results_of(
            run("transfer/crossing", "voltpy", "straight", 80_000),
            run("transfer/crossing", "two_postgres", "16 pairs", 1000),
            run("transfer/crossing", "two_postgres", "64 pairs", 2000),
            run("transfer/crossing", "postgres", "pipeline", 10_000),
        )
    )
    assert lines[0] == "transfers a second: 80,000.00, wanted at least 60,000: held"
    assert ": 40.00, wanted at least 50: MISSED" in lines[1]
    assert ": 8.00, wanted at least 2: held" in lines[2]


def test_a_lone_transfer_may_take_three_flushes_and_a_millisecond():
    (held,) = targets(results_of(run("transfer/lone", "voltpy", "straight", 700, p50_us=1500.0)))
    assert "wanted at most 1,540: held" in held
    (missed,) = targets(results_of(run("transfer/lone", "voltpy", "straight", 700, p50_us=1541.0)))
    assert missed.endswith("MISSED")


def test_tpcc_is_held_against_plpgsql_and_plain_dicts():
    ours = {"client": 50.0, "partition": 300.0, "coordinator": 20.0, "router": 1.0, "supervisor": 0.0}
    lines = targets(
        results_of(
            run("tpcc/new_order", "voltpy", "straight", 4000, ours),
            run("tpcc/new_order", "postgres", "serializable", 900, {"client": 300.0, "server": 2000.0}),
            run("tpcc/new_order", "dicts", "a loop", 9000, {"client": 100.0}),
        )
    )
    assert "÷ PL/pgSQL: 4.44, wanted at least 4: held" in lines[0]
    assert "plain dicts: 3.21, wanted at most 3: MISSED" in lines[1]


def test_crossing_is_held_against_the_same_percentage_within():
    runs = [
        run("smallbank/within 10 %", "voltpy", "straight", 100_000),
        run("smallbank/crossing 10 %", "voltpy", "straight", 90_000),
    ]
    (line,) = targets(results_of(*runs))
    assert line.startswith("smallbank/crossing 10 %")
    assert ": 0.90, wanted at least 0.85: held" in line
    assert f"- {line}\n" in report.markdown(results_of(*runs))
    assert targets(results_of(*runs[:1])) == []


def test_targets_survive_a_file(tmp_path):
    results = results_of(run("transfer/lone", "voltpy", "straight", 700, p50_us=1500.0))
    again = msgspec.json.decode(msgspec.json.encode(results), type=Results)
    assert targets(again) == targets(results)
