"""flights: questions about a year of real flights, and seats sold on them.

A plane's day and an airport's hour are asked in every partition, and the caller joins the answers: flights live with
their destination. Selling seats and moving passengers happens on one route, so in one partition. Until indexes are
served, `where` reads every flight of the partition; booking and rebooking go by key alone.
"""

from voltpy import procedure

SEATS_WHEN_THE_PLANE_IS_UNKNOWN = 50


@procedure(partition_by=None, read_only=True, everywhere=True)
def plane_day(tx, year: int, month: int, day: int, tailnum: str) -> list[dict]:
    """The flights of one plane on one day that end in this partition's destinations, in the order of their times."""
    flights = tx.flights.where(year=year, month=month, day=day, tailnum=tailnum)
    return [_described(tx, flight) for flight in sorted(flights, key=_scheduled)]


@procedure(partition_by=None, read_only=True, everywhere=True)
def airport_hour(tx, year: int, month: int, day: int, origin: str, hour: int) -> list[dict]:
    """What was to leave an airport in one hour for this partition's destinations, each with that hour's weather."""
    flights = tx.flights.where(year=year, month=month, day=day, origin=origin, hour=hour)
    board = []
    for flight in sorted(flights, key=_scheduled):
        entry = _described(tx, flight)
        weather = tx.weather.get((origin, flight.time_hour))
        if weather is not None:
            entry |= {"temp": weather.temp, "wind_speed": weather.wind_speed, "visib": weather.visib}
        board.append(entry)
    return board


@procedure(partition_by="dest", read_only=True)
def arrivals(tx, dest: str, year: int, month: int, day: int, hour: int) -> list[dict]:
    """What was to arrive at an airport from New York in one hour. One destination, so one partition answers."""
    flights = tx.flights.where(dest=dest, year=year, month=month, day=day)
    due = [flight for flight in flights if flight.sched_arr_time // 100 == hour]
    return [_described(tx, flight) for flight in sorted(due, key=lambda flight: flight.sched_arr_time)]


@procedure(partition_by=None, read_only=True, everywhere=True)
def cancellations(tx) -> dict[str, int]:
    """Cancelled flights to this partition's destinations, by the airline's name; the caller adds up the partitions."""
    cancelled: dict[str, int] = {}
    for flight in tx.flights.scan():
        if flight.dep_time is None:
            cancelled[flight.carrier] = cancelled.get(flight.carrier, 0) + 1
    return {_airline(tx, carrier): count for carrier, count in sorted(cancelled.items())}


@procedure(partition_by="dest")
def put_on_sale(tx, dest: str, origin: str, year: int, month: int, day: int) -> int:
    """Opens the flights of one route on one day for booking, with the seats that their planes have; returns how many.

    Flights that are on sale stay as they are.
    """
    if tx.departures.get((dest, origin, year, month, day, 1)) is not None:
        tx.abort(f"{origin} to {dest} on {year}-{month:02}-{day:02} is on sale already")
    flights = tx.flights.where(dest=dest, origin=origin, year=year, month=month, day=day)
    for number, flight in enumerate(sorted(flights, key=_scheduled), start=1):
        plane = None if flight.tailnum is None else tx.planes.get(flight.tailnum)
        tx.departures.insert(
            dest=dest,
            origin=origin,
            year=year,
            month=month,
            day=day,
            number=number,
            carrier=flight.carrier,
            flight=flight.flight,
            sched_dep_time=flight.sched_dep_time,
            seats=SEATS_WHEN_THE_PLANE_IS_UNKNOWN if plane is None else plane.seats,
        )
    return len(flights)


@procedure(partition_by="dest")
def book(
    tx, dest: str, origin: str, year: int, month: int, day: int, passenger: str, carrier: str, flight: int
) -> dict:
    """Sells a seat on one flight. A passenger flies a route once a day: a second booking is a DuplicateKey."""
    on_sale = _departures(tx, dest, origin, year, month, day)
    wanted = [departure for departure in on_sale if (departure.carrier, departure.flight) == (carrier, flight)]
    if not wanted:
        tx.abort(f"{carrier} {flight} from {origin} to {dest} is not on sale on {year}-{month:02}-{day:02}")
    departure = wanted[0]
    if departure.sold >= departure.seats:
        tx.abort(f"{carrier} {flight} is sold out")
    tx.bookings.insert(dest, origin, year, month, day, passenger, departure.number)
    return _ticket(_take_seats(tx, departure, 1))


@procedure(partition_by="dest")
def rebook(tx, dest: str, origin: str, year: int, month: int, day: int, passenger: str) -> dict:
    """Moves a passenger off a cancelled flight to the next one of the day that flies and has a seat; that flight."""
    route_day = (dest, origin, year, month, day)
    booking = tx.bookings.get((*route_day, passenger))
    if booking is None:
        tx.abort(f"{passenger} has no booking from {origin} to {dest} on {year}-{month:02}-{day:02}")
    booked = tx.departures.get((*route_day, booking.number))
    if not _is_cancelled(tx, booked):
        tx.abort(f"{booked.carrier} {booked.flight} was not cancelled")
    later = _departures(tx, *route_day, after=booking.number)
    possible = [d for d in later if d.sold < d.seats and not _is_cancelled(tx, d)]
    if not possible:
        tx.abort(f"no later flight from {origin} to {dest} has a seat on {year}-{month:02}-{day:02}")
    departure = possible[0]
    tx.bookings.update((*route_day, passenger), number=departure.number)
    _take_seats(tx, booked, -1)
    return _ticket(_take_seats(tx, departure, 1))


def _departures(tx, dest, origin, year, month, day, after=0):
    number = after + 1
    while (departure := tx.departures.get((dest, origin, year, month, day, number))) is not None:
        yield departure
        number += 1


def _take_seats(tx, departure, seats):
    key = (departure.dest, departure.origin, departure.year, departure.month, departure.day, departure.number)
    return tx.departures.update(key, sold=departure.sold + seats)


def _is_cancelled(tx, departure):
    key = (departure.dest, departure.origin, departure.year, departure.month, departure.day)
    return tx.flights.get((*key, departure.carrier, departure.flight)).dep_time is None


def _scheduled(flight):
    return flight.sched_dep_time, flight.carrier, flight.flight


def _ticket(departure):
    return {
        "carrier": departure.carrier,
        "flight": departure.flight,
        "sched_dep_time": departure.sched_dep_time,
        "seats_left": departure.seats - departure.sold,
    }


def _described(tx, flight):
    airport = tx.airports.get(flight.dest)
    return {
        "carrier": _airline(tx, flight.carrier),
        "flight": flight.flight,
        "tailnum": flight.tailnum,
        "origin": flight.origin,
        "dest": flight.dest if airport is None else airport.name,
        "sched_dep_time": flight.sched_dep_time,
        "dep_delay": flight.dep_delay,
        "arr_delay": flight.arr_delay,
        "cancelled": flight.dep_time is None,
    }


def _airline(tx, carrier):
    airline = tx.airlines.get(carrier)
    return carrier if airline is None else airline.name
