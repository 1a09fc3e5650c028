"""TPC-C's generators keep to the percentages of the specification, and PL/pgSQL does what the procedures do."""

import os
from collections import Counter
from itertools import islice
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import msgspec
import pytest

from bench.experiment import Settings, counted, make_peer, run_once
from bench.peers.dealer import Dealer
from bench.tpcc.population import Population, Scale, last_name, nurand, warehouse_in_each
from bench.tpcc.terminals import Terminals, is_rolled_back
from bench.workload import BenchError, CallStream, NotInstalled, Outcome
from bench.workloads import tpcc
from voltpy.errors import Aborted
from voltpy.hash_slot import hash_slot, slot_owners

FULL = Scale(tuple(range(1, 11)))
SMALL = Scale((1, 2), customers=30, items=100)
SETTINGS = Settings(0.2, 32, 8, 2, "on", "never", 1, 1)


def percent(part: float, whole: float) -> float:
    return 100 * part / whole


@pytest.fixture(scope="module")
def calls():
    return list(islice(Terminals(FULL, 5).calls(), 23_000))


def of(calls, name):
    return [arguments for called, arguments in calls if called == name]


def test_the_mix_is_a_deck_of_cards(calls):
    assert Counter(name for name, _ in calls) == {
        "new_order": 10_000, "payment": 10_000, "order_status": 1000, "delivery": 1000, "stock_level": 1000,
    }  # fmt: skip
    assert [name for name, _ in calls[:46]] != [name for name, _ in calls[46:92]]


def test_orders_have_5_to_15_lines_of_which_1_percent_come_from_elsewhere(calls):
    orders = of(calls, "new_order")
    lines = [(home, supply) for home, _, _, _, supplies, _ in orders for supply in supplies]
    assert {len(supplies) for *_, supplies, _ in orders} == set(range(5, 16))
    assert percent(sum(home != supply for home, supply in lines), len(lines)) == pytest.approx(1, abs=0.15)
    assert {quantity for *_, quantities in orders for quantity in quantities} == set(range(1, 11))
    assert all(len(items) == len(supplies) == len(quantities) for _, _, _, items, supplies, quantities in orders)


def test_1_percent_of_the_orders_are_rolled_back_at_their_last_line(calls):
    doomed = [arguments for name, arguments in calls if is_rolled_back((name, arguments), FULL)]
    assert percent(len(doomed), 10_000) == pytest.approx(1, abs=0.3)
    assert all(max(items[:-1]) <= FULL.items < items[-1] for _, _, _, items, _, _ in doomed)


def test_15_percent_of_the_payments_are_made_elsewhere_and_60_by_last_name(calls):
    payments = of(calls, "payment")
    assert percent(sum(p[0] != p[2] for p in payments), 10_000) == pytest.approx(15, abs=1.2)
    assert all(p[1] == p[3] for p in payments if p[0] == p[2])
    for name, position in (("payment", 4), ("order_status", 2)):
        asked = of(calls, name)
        by_name = sum(isinstance(arguments[position], str) for arguments in asked)
        assert percent(by_name, len(asked)) == pytest.approx(60, abs=5)
    assert min(p[5] for p in payments) >= 1_00
    assert max(p[5] for p in payments) <= 5_000_00


def test_every_warehouse_and_district_is_asked(calls):
    homes = Counter(arguments[0] for _, arguments in calls)
    assert set(homes) == set(FULL.warehouses)
    assert max(homes.values()) < 1.2 * min(homes.values())
    assert {arguments[1] for arguments in of(calls, "new_order")} == set(range(1, 11))


def test_numbers_that_are_not_uniform_favour_some_and_reach_all():
    random = Random(3)
    drawn = Counter(nurand(random, 255, 123, 0, 999) for _ in range(100_000))
    assert set(drawn) <= set(range(1000))
    assert len(drawn) > 950
    tenth = sum(count for _, count in drawn.most_common(100))
    assert percent(tenth, 100_000) > 25


def test_last_names_are_three_syllables():
    assert last_name(0) == "BARBARBAR"
    assert last_name(371) == "PRICALLYOUGHT"
    assert last_name(999) == "EINGEINGEING"


def test_a_seed_makes_the_same_rows_and_another_one_others():
    def rows(seed):
        population = Population(SMALL, seed)
        return [*population.items(), *(row for _, rows in population.tables(2) for row in rows)]

    assert rows(1) == rows(1)
    assert rows(1) != rows(2)


def test_a_tenth_of_the_items_are_original_and_a_tenth_of_the_customers_have_bad_credit():
    scale = Scale((1,), districts=2, customers=2000, items=5000)
    population = Population(scale, 1)
    original = sum("ORIGINAL" in row[4] for row in population.items())
    assert percent(original, 5000) == pytest.approx(10, abs=2)
    rows = {table: list(rows) for table, rows in population.tables(1)}
    assert percent(sum(row[13] == "BC" for row in rows["customer"]), 2000) == pytest.approx(10, abs=2)
    assert len({row[5] for row in rows["customer"]}) == 1000


@pytest.mark.parametrize("partitions", [1, 2, 3, 8])
def test_each_partition_has_one_warehouse(partitions):
    owners = slot_owners(partitions)
    assert {owners[hash_slot(each)] for each in warehouse_in_each(partitions)} == set(range(partitions))
    assert len(warehouse_in_each(partitions)) == partitions


# ---- the line, and the peers ----


@pytest.fixture
def directory():
    with TemporaryDirectory() as path:
        os.chmod(path, 0o755)  # PostgreSQL does not run as root
        yield Path(path)


def test_only_new_orders_that_were_not_rolled_back_count():
    line = tpcc.line(SMALL)
    made = Outcome([("new_order", ()), ("payment", ()), ("new_order", ())], [{}, {}, Aborted("unused")], [])
    assert counted(line, made) == 1


def test_what_was_lost_is_noticed():
    good = {"inconsistencies": [], "orders": 601, "waiting": 180, "payments": 601}
    order, unused = (1, 1, 1, [1], [1], [1]), (1, 1, 1, [101], [1], [1])
    calls = [("new_order", order), ("payment", ()), ("delivery", ()), ("new_order", unused)]
    results = [{}, {}, [None] * 9 + [22], Aborted("unused")]
    tpcc.verify(SMALL, calls, results, good)
    tpcc.verify(SMALL, calls, [b"", b"", b"{NULL,22}", Aborted("unused")], good)
    for name in ("orders", "waiting", "payments"):
        with pytest.raises(BenchError, match=name.removesuffix("ing")):
            tpcc.verify(SMALL, calls, results, good | {name: good[name] - 1})
    with pytest.raises(BenchError, match="abort"):
        tpcc.verify(SMALL, calls, [*results[:3], {}], good)
    with pytest.raises(BenchError, match="1 inconsistencies"):
        tpcc.verify(SMALL, calls, results, good | {"inconsistencies": ["condition 1"]})


def test_plain_dicts_stay_consistent(directory):
    line = tpcc.line(SMALL)
    run = run_once("dicts", line, "a loop, in process", line.calls(1, 2000), 0, SETTINGS, directory)
    assert run.calls > 0


SUMS = {
    "stock": ("s_quantity", "s_ytd", "s_order_cnt", "s_remote_cnt"),
    "customer": ("c_balance", "c_ytd_payment", "c_payment_cnt", "c_delivery_cnt"),
    "order_line": ("ol_amount", "ol_quantity"),
    "history": ("h_amount", "h_c_id"),
}


def test_plpgsql_does_what_the_procedures_do(directory):
    """The same calls, one after another: the same sums, texts about bad credit, and totals of orders.

    Then calls side by side, some of which have to be made again: nothing is lost, done twice or inconsistent.
    """
    serializable = pytest.importorskip("bench.peers.serializable", reason="psycopg is not installed")
    line = msgspec.structs.replace(tpcc.line(SMALL), cycles=False)
    calls = [call for call in line.calls(7, 300) if not is_rolled_back(call, SMALL)]
    twice = (1, 3, 7, [5, 6, 5], [1, 2, 1], [4, 9, 1])  # of the same stock: the way line by line
    calls += [("new_order", twice), ("stock_level", (1, 3, 60))]
    try:
        postgres = make_peer("postgres", directory, SETTINGS)
    except NotInstalled as reason:
        pytest.skip(str(reason))
    dicts = make_peer("dicts", directory, SETTINGS)
    with postgres, dicts:
        postgres.load(line)
        dicts.load(line)
        with postgres.connections(1) as connections, dicts.session(line, "", 1, 1) as loop:
            session = serializable.Session(connections[0], line.postgres.statements)
            ours = loop(CallStream(calls, cycles=False), 60.0)
            theirs = serializable.drive([session], CallStream(calls, cycles=False), 60.0, by_home=False)
            session.leave()
        assert theirs.calls == ours.calls == calls
        for (name, _), our, their in zip(calls, ours.results, theirs.results, strict=True):
            if name == "new_order":
                assert their.split(b",")[0] == b"(%d" % our["o_id"]
                assert b",%d," % our["total"] in their
            elif name == "payment":
                assert their.split(b",")[0] == b"(%d" % our["c_id"]
            elif name == "stock_level":
                assert int(their) == our
        tx, query = dicts._tx, postgres.connection.execute
        for table, columns in SUMS.items():
            rows = list(getattr(tx, table).scan())
            summed = ", ".join(f"sum({column})::bigint" for column in columns)
            assert query(f"SELECT {summed} FROM {table}").fetchone() == tuple(
                sum(getattr(row, column) for row in rows) for column in columns
            )
        texts = "SELECT c_data FROM customer ORDER BY c_w_id, c_d_id, c_id"
        by_key = sorted(tx.customer.scan(), key=lambda row: (row.c_w_id, row.c_d_id, row.c_id))
        assert [text for (text,) in query(texts)] == [row.c_data for row in by_key]

        made, results = theirs.calls, theirs.results
        for way in postgres.ways(line):
            with postgres.session(line, way, 32, 1) as drive:
                outcome = drive(CallStream(line.calls(1, 2000), cycles=True), 0.2)
            assert outcome.calls
            made, results = made + outcome.calls, results + outcome.results
        line.verify(made, results, postgres.state(line))


def test_a_home_keeps_its_connection_and_what_failed_comes_first():
    stream = CallStream([("a", (1,)), ("a", (2,)), ("b", (2,)), ("b", (1,))], cycles=False)
    dealer = Dealer(["first", "second"], stream, by_home=True)
    assert dealer.next(1, open_to_new=True) == ("a", (2,))
    dealer.put_back(1, [("a", (2,))])
    assert [dealer.next(1, open_to_new=True) for _ in range(3)] == [("a", (2,)), ("b", (2,)), None]
    assert [dealer.next(0, open_to_new=False) for _ in range(3)] == [("a", (1,)), ("b", (1,)), None]
    assert dealer.is_empty()
