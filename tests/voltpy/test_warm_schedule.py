"""The warming schedule: what its lines mean, what is wrong with others, and when an entry comes due."""

from __future__ import annotations

import random
import time as clock
from collections.abc import Iterator
from datetime import UTC, datetime, time, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voltpy.errors import ClusterError
from voltpy.warm_schedule import MAX_ENTRIES, Entry, due, parse

BERLIN = ZoneInfo("Europe/Berlin")
EVERY_DAY = frozenset(range(7))


# ------------------------------------------------------------------------------------------------------------ reading


def test_the_example_is_read() -> None:
    text = """
    # time days       tables           rate
    08:55  weekdays   accounts,orders  50MB/s   # before the doors open
    00:30  daily      *
\t23:00  fri-sun,wed  "Audit Trail",Branches 1.5GiB/s
    """
    assert parse(text) == [
        Entry(3, time(8, 55), frozenset(range(5)), ("accounts", "orders"), 50 << 20),
        Entry(4, time(0, 30), EVERY_DAY, (), None),
        Entry(5, time(23, 0), frozenset((2, 4, 5, 6)), ("Audit Trail", "branches"), 3 << 29),
    ]
    assert parse("") == []
    assert parse("# nothing\n\n") == []


@pytest.mark.parametrize(
    ("days", "meant"),
    [
        ("daily", "0123456"), ("weekdays", "01234"), ("Weekends", "56"), ("mon", "0"), ("SUN", "6"),
        ("mon-fri", "01234"), ("sat-mon", "560"), ("sun-sat", "6012345"), ("tue-tue", "1"), ("mon,wed,fri", "024"),
        ("mon-wed,tue-thu", "0123"),
    ],
)  # fmt: skip
def test_days(days: str, meant: str) -> None:
    (entry,) = parse(f"08:55 {days} t")
    assert entry.days == frozenset(map(int, meant))


@pytest.mark.parametrize(
    ("rate", "meant"),
    [("1B/s", 1), ("8192b/s", 8192), ("10KB/s", 10240), ("10kib/s", 10240), ("0.5MB/S", 1 << 19), ("2GB/s", 2 << 30)],
)
def test_rates(rate: str, meant: int) -> None:
    assert parse(f"08:55 daily t {rate}")[0].bytes_per_s == meant


def test_names_in_quotes_may_hold_anything() -> None:
    (entry,) = parse('08:55 daily "a b","c,d","say ""x""","#",Größe 1MB/s # and so on')
    assert entry.tables == ("a b", "c,d", 'say "x"', "#", "größe")
    assert parse("08:55 daily A", tables=["a"])[0].tables == ("a",)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("8:55 daily t", "line 2: '8:55' is no time of day; expected: HH:MM, 00:00 to 23:59"),
        ("24:00 daily t", "line 2: '24:00' is no time of day; expected: HH:MM, 00:00 to 23:59"),
        ("08:60 daily t", "line 2: '08:60' is no time of day; expected: HH:MM, 00:00 to 23:59"),
        ("08:55 funday t", "line 2: 'funday' is no day; expected: daily, weekdays, weekends, or days such as mon-fri"),
        ("08:55 mon- t", "line 2: 'mon-' is no day"),
        ("08:55 mon,,tue t", "line 2: 'mon,,tue' is no day"),
        ("08:55 mon-tue-wed t", "line 2: 'mon-tue-wed' is no day"),
        ("08:55 daily t 50", "line 2: '50' is no rate; expected: one such as 50MB/s"),
        ("08:55 daily t 0MB/s", "line 2: '0MB/s' is no rate"),
        ("08:55 daily t -1MB/s", "line 2: '-1MB/s' is no rate"),
        ("08:55 daily t 9" + "9" * 400 + "GB/s", "is no rate"),
        ("08:55 daily", "line 2: '08:55 daily' has 2 words; expected: time days tables [rate]"),
        ("08:55 daily a b c", "has 5 words; expected: time days tables [rate]"),
        ("08:55 daily a, b", "line 2: 'a,' is no list of tables; expected: * or names with commas between them"),
        ("08:55 daily a,*", "line 2: 'a,*' is no list of tables"),
        ("08:55 daily 1a", "line 2: '1a' is no list of tables"),
        ('08:55 daily ""', "is no list of tables"),
        ('08:55 daily "a"b', "is no list of tables"),
        ("08:55 daily a,b,a", "line 2: table a comes twice"),
        ('08:55 daily "a', "line 2: '\"a' does not end; expected: another \""),
        ("00:30 daily x # again", "line 2: the same as line 1"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(line: str, message: str) -> None:
    with pytest.raises(ClusterError) as raised:
        parse(f"00:30 daily x\n{line}\n")
    assert message in str(raised.value)


def test_tables_that_the_schema_lacks_are_named() -> None:
    with pytest.raises(ClusterError) as raised:
        parse("08:55 daily orders,order", tables=["orders", "accounts"])
    assert str(raised.value) == "line 1: 'order' is no table of the schema; expected: accounts, orders"


def test_a_schedule_is_bounded() -> None:
    lines = [f"{minute // 60:02}:{minute % 60:02} daily t" for minute in range(MAX_ENTRIES + 1)]
    assert len(parse("\n".join(lines[:-1]))) == MAX_ENTRIES
    with pytest.raises(ClusterError, match="line 1001: more than 1000 entries"):
        parse("\n".join(lines))


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.sampled_from('08:5 daily-mn,*"#MB/s\n\t'), max_size=60))
def test_any_text_is_a_schedule_or_an_error_with_a_line(text: str) -> None:
    try:
        parse(text)
    except ClusterError as error:
        assert str(error).startswith("line ")  # noqa: PT017


# ------------------------------------------------------------------------------------------------------------ when due


def lines_due(text: str, last_check: datetime, now: datetime) -> list[int]:
    return [entry.line for entry in due(parse(text), last_check, now)]


def at(day: int, hour: int, minute: int = 0, second: int = 0) -> datetime:
    return datetime(2026, 6, day, hour, minute, second, tzinfo=BERLIN)  # 1 June 2026 is a Monday


def test_an_entry_is_due_when_its_minute_begins_and_once() -> None:
    text = "08:55 daily t"
    assert lines_due(text, at(1, 8, 54), at(1, 8, 54, 59)) == []
    assert lines_due(text, at(1, 8, 54, 59), at(1, 8, 55)) == [1]
    assert lines_due(text, at(1, 8, 55), at(1, 8, 55, 1)) == []
    assert lines_due(text, at(1, 8, 55), at(2, 8, 54)) == []
    assert lines_due(text, at(1, 8, 55), at(1, 8, 55)) == []


def test_a_minute_that_was_slept_through_is_due_and_days_of_sleep_are_due_once() -> None:
    text = "08:55 daily a\n12:00 daily b\n08:00 mon c"
    assert lines_due(text, at(1, 8, 50), at(1, 11)) == [1]
    assert lines_due(text, at(1, 8, 50), at(1, 13)) == [1, 2]
    assert lines_due(text, at(1, 8, 50), at(4, 10)) == [2, 1]  # in the order of when their time came last
    assert lines_due(text, at(1, 8, 50), at(30, 7)) == [3, 1, 2]
    assert lines_due(text, datetime(1990, 1, 1, tzinfo=BERLIN), at(30, 7)) == [3, 1, 2]


def test_days_of_the_week_are_kept() -> None:
    text = "08:55 mon-fri a\n08:55 sat,sun b"
    found = [lines_due(text, at(day, 8), at(day, 9)) for day in range(1, 8)]
    assert found == [[1], [1], [1], [1], [1], [2], [2]]


def test_midnight_belongs_to_the_day_that_begins() -> None:
    assert lines_due("00:00 tue t", at(1, 23, 59), at(2, 0)) == [1]
    assert lines_due("00:00 mon t", at(1, 23, 59), at(2, 0)) == []


def test_a_clock_that_is_set_back_makes_nothing_due() -> None:
    assert lines_due("08:55 daily t", at(1, 9), at(1, 8)) == []
    assert lines_due("08:55 daily t", at(1, 9), at(1, 9, 30)) == []


def test_a_time_that_summer_time_leaves_out_is_due_after_the_change() -> None:
    text = "02:30 sun t\n03:15 sun u"  # 29 March 2026: 02:00 becomes 03:00
    midnight = datetime(2026, 3, 29, tzinfo=BERLIN)
    minutes = [(midnight.astimezone(UTC) + timedelta(minutes=n)).astimezone(BERLIN) for n in range(300)]
    found = [(now.hour, now.minute, lines_due(text, last, now)) for last, now in pairwise(minutes)]
    assert [each for each in found if each[2]] == [(3, 15, [2]), (3, 30, [1])]


def test_a_time_that_comes_twice_is_due_the_first_time() -> None:
    text = "02:30 daily t"  # 25 October 2026: 03:00 becomes 02:00
    start = datetime(2026, 10, 24, 22, tzinfo=UTC)
    minutes = [(start + timedelta(minutes=n)).astimezone(BERLIN) for n in range(24 * 60)]
    found = [now for last, now in pairwise(minutes) if lines_due(text, last, now)]
    assert [(now.hour, now.minute, now.fold) for now in found] == [(2, 30, 0)]


def test_a_midnight_that_is_left_out_is_due_on_its_own_day() -> None:
    havana = ZoneInfo("America/Havana")  # 8 March 2026: 00:00 becomes 01:00
    start = datetime(2026, 3, 8, 4, 0, tzinfo=UTC)  # 23:00 on Saturday
    minutes = [(start + timedelta(minutes=n)).astimezone(havana) for n in range(300)]
    found = [now for last, now in pairwise(minutes) if lines_due("00:30 sun t", last, now)]
    assert [(now.day, now.hour, now.minute) for now in found] == [(8, 1, 30)]


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/Havana", "Australia/Lord_Howe", "Asia/Kathmandu", "UTC"])
@pytest.mark.parametrize("seed", range(2))
def test_over_a_year_every_day_is_due_once(zone: str, seed: int) -> None:
    print("seed", seed)
    rng = random.Random(seed)
    schedule = parse("00:15 daily a\n02:15 daily b\n02:45 daily c\n23:59 daily d")
    now = datetime(2026, 1, 1, 12, tzinfo=UTC)
    last = now.astimezone(ZoneInfo(zone))
    counts = dict.fromkeys("abcd", 0)
    while now < datetime(2027, 1, 1, 12, tzinfo=UTC):
        now += timedelta(seconds=rng.randrange(1, 4 * 3600))
        local = now.astimezone(ZoneInfo(zone))
        for entry in due(schedule, last, local):
            counts[entry.tables[0]] += 1
        last = local
    assert set(counts.values()) <= {365, 366}  # the last step may come past a time of the day after


@pytest.fixture
def berlin_time(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    clock.tzset()
    yield
    monkeypatch.undo()
    clock.tzset()


@pytest.mark.usefixtures("berlin_time")
def test_moments_without_a_zone_are_in_the_systems() -> None:
    text = "02:30 daily t"
    assert lines_due(text, datetime(2026, 6, 1, 2), datetime(2026, 6, 1, 3)) == [1]
    assert lines_due(text, datetime(2026, 3, 29, 1, 59), datetime(2026, 3, 29, 3, 29)) == []
    assert lines_due(text, datetime(2026, 3, 29, 3, 29), datetime(2026, 3, 29, 3, 30)) == [1]
    first, again = datetime(2026, 10, 25, 2, 29), datetime(2026, 10, 25, 2, 31, fold=1)
    assert lines_due(text, first, datetime(2026, 10, 25, 2, 30)) == [1]
    assert lines_due(text, datetime(2026, 10, 25, 2, 31), again) == []
    assert lines_due(text, first, again) == [1]


def test_moments_of_two_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match="one of the moments has a time zone"):
        due([], datetime(2026, 6, 1), at(1, 9))
