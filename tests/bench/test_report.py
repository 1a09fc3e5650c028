"""From runs to the table: medians, ratios pair by pair, and the conditions."""

from bench import report
from bench.experiment import Results, Run, Settings
from bench.machine import Machine

MACHINE = Machine("A Processor", 2, 8.0, "6.1", "CPython 3.11.7", {"redis": "8.1.0"}, "ext4", 180.0, 440.0)
SETTINGS = Settings(5.0, 1024, 64, 2, "both", "always", 3, 1)


def runs_of(peer: str, way: str, rates: list[float], cpu_us: dict[str, float]) -> list[Run]:
    return [
        Run("voter/vote", "many", peer, way, i, int(rate * 5), 5.0, cpu_us, None, None) for i, rate in enumerate(rates)
    ]


def results_of(*groups: list[Run]) -> Results:
    in_turn = sorted((run for group in groups for run in group), key=lambda run: run.repetition)
    return Results(MACHINE, SETTINGS, "2025-01-01T00:00:00+00:00", {"redis": "appendonly yes"}, {}, in_turn)


OURS = runs_of("voltpy", "straight", [300_000, 240_000, 330_000], {"client": 1.1, "partition": 3.9, "router": 0.0})
ROUTED = runs_of("voltpy", "routed", [200_000, 160_000, 220_000], {"client": 1.2, "partition": 3.9, "router": 0.9})
REDIS = runs_of("redis", "Pipeline", [60_000, 80_000, 66_000], {"client": 5.6, "server": 12.0})


def test_a_row_has_medians_and_a_ratio_to_each_way_of_voltpy():
    table = report.markdown(results_of(OURS, ROUTED, REDIS))
    assert (
        "| voter/vote | redis | Pipeline | 66,000 | 60,000 – 80,000 | 5.00 / 3.33 | server 12.0 | 5.6 |  |\n" in table
    )
    assert (
        "| voltpy | straight | 300,000 | 240,000 – 330,000 | 1.00 / 0.67 | partition 3.9, router 0.0 | 1.1 |" in table
    )


def test_without_voltpy_there_are_no_ratios():
    assert "| 60,000 – 80,000 |  | server 12.0 |" in report.markdown(results_of(REDIS))


def test_one_call_in_flight_is_compared_by_latency():
    ours = [Run("lone/get", "lone", "voltpy", "straight", 0, 5000, 1.0, {"client": 1.0}, 120.0, 300.0)]
    theirs = [Run("lone/get", "lone", "redis", "loopback", 0, 9000, 1.0, {"client": 1.0}, 100.0, 200.0)]
    table = report.markdown(results_of(ours, theirs))
    assert "| lone/get | redis | loopback | 9,000 | 9,000 – 9,000 | 1.20 |  | 1.0 | 100 / 200 |" in table


def test_an_interrupted_bench_is_reported_from_the_pairs_that_it_has():
    assert "| 5.00 |" in report.markdown(results_of(OURS[:1], REDIS[:2])).replace("5.00 / ", "")


def test_conditions_name_machine_settings_peers_and_who_was_skipped():
    results = results_of(REDIS)
    results.skipped["postgres"] = "PostgreSQL is not installed"
    text = report.conditions(results)
    for words in ("A Processor, 2 cores, 8.0 GiB", "fdatasync takes 180 µs", "1024 calls in flight", "redis 8.1.0"):
        assert words in text
    assert "- redis: appendonly yes.\n" in text
    assert "- postgres: not measured, PostgreSQL is not installed.\n" in text
