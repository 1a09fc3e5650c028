"""The whole cluster from a few seeds; `python -m tests.simulation --seeds N` for thousands."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.simulation.ambush import KINDS as AMBUSHES
from tests.simulation.ambush import KINDS_OF_CONDITIONS
from tests.simulation.ambush import LIFE_KINDS as LIFE_AMBUSHES
from tests.simulation.ambush import SCHEMA_KINDS as SCHEMA_AMBUSHES
from tests.simulation.broken import BROKEN, broken
from tests.simulation.broken_batches import BATCHES_BROKEN
from tests.simulation.broken_lives import LIVES_BROKEN
from tests.simulation.broken_schema import SCHEMA_BROKEN
from tests.simulation.conditions import (
    CONDITIONS,
    CROWD,
    FULL_DISKS,
    LITTLE_MEMORY,
    LITTLE_PATIENCE,
    conditions_of,
)
from tests.simulation.lives import FAULTS as LIFE_FAULTS
from tests.simulation.rules import RULES
from tests.simulation.run import FAULTS, Run
from tests.simulation.stage import Stage, setting

SEEDS = range(1, 52)
SCHEMA_SEEDS = (7, 11, 13, 14, 21, 28, 36, 37)  # in which the schema changes, and each kind of fault fires soon
LIVES_SEEDS = range(1, 13)
STATEMENTS = (
    "ADD COLUMN", "CREATE INDEX", "CREATE TABLE", "CREATE UNIQUE INDEX", "CREATE VIEW", "DROP INDEX", "DROP TABLE",
    "DROP VIEW", "PARTITION TABLE",
)  # fmt: skip
SEEDS_OF_BROKEN = range(1, 401)  # until the first that finds it out
TESTS = Path(__file__).parent.parent
# Broken builds for which a few seeds are enough; for all of them: `python -m tests.simulation --broken all --seeds N`.
SOON_FOUND = (
    "decisions_are_not_logged",
    "lent_keys_are_not_guarded",
    "nobody_is_released",
    "prepared_keys_are_free",
    "reports_before_flush",
    "retries_run_again",
    "changes_given_up_stay",
    "logs_are_not_locked",
    "epochs_are_durable_with_the_first_record",
    "the_dead_keep_what_was_lent",
    "runaways_are_forgotten",
    "runs_have_a_timeout_each",
    "runs_are_told_another_time",
    "exceptions_are_raised_anywhere",
    "snapshots_are_cut_within_batches",
    "snapshots_are_cut_before_decisions_are_known",
    "batches_go_on_before_all_parts_are_cut",
)
# Where builds that are broken in a rule about batches show it.
SHOWS_UNDER = {
    "decisions_do_not_wait_for_pages": {LITTLE_MEMORY},
    "the_next_borrow_comes_before_those_who_waited": {CROWD},
    "overlaps_have_no_end": {CROWD},
    "two_batches_borrow_the_same": {CROWD},
    "lends_wait_for_those_who_wait_for_what_is_lent": {CROWD},
    "batches_borrow_without_end": {CROWD},
    "a_full_disk_fails_whole_batches": {FULL_DISKS},
    "refused_batches_run_again_as_they_were": {CROWD},
    "refused_batches_fail_as_a_whole": {CROWD},
    "who_waits_for_what_is_lent_waits_for_ever": {LITTLE_PATIENCE},
    "all_who_wait_share_one_limit": {LITTLE_PATIENCE, LITTLE_MEMORY},
    "nobody_runs_while_many_wait": {LITTLE_PATIENCE},
    "all_are_given_up_with_the_first": {LITTLE_PATIENCE},
}


@pytest.fixture
def stage() -> Iterator[Stage]:
    with setting() as made:
        yield made
        made.world = made.network = None


def test_a_cluster_in_which_everything_fails_keeps_its_promises(stage: Stage) -> None:
    faults: Counter[str] = Counter()
    for seed in SEEDS:
        result = Run(stage, seed)()
        repeat = f"python -m tests.simulation --first {seed} --trace"
        assert result.violations == [], f"repeat it: {repeat}"
        faults.update(result.faults)
    assert set(FAULTS) <= set(faults)  # each kind has fired
    assert {*CONDITIONS, "memory is short", "pages leave", "rounds are used up"} <= set(faults)
    assert set(KINDS_OF_CONDITIONS) <= set(faults)
    assert len(set(AMBUSHES) - set(faults)) <= 2  # in a few seeds


def test_a_schema_that_changes_while_everything_fails_is_the_same_everywhere(stage: Stage) -> None:
    faults: Counter[str] = Counter()
    changes: Counter[tuple[str, str]] = Counter()
    for seed in SCHEMA_SEEDS:
        result = Run(stage, seed, changes_schema=True)()
        repeat = f"python -m tests.simulation --schema --first {seed} --trace"
        assert result.violations == [], f"repeat it: {repeat}"
        faults.update(result.faults)
        changes.update(result.changes)
    assert len(set(SCHEMA_AMBUSHES) - set(faults)) <= 1
    assert all(changes[statement, "made"] for statement in STATEMENTS)
    assert changes["CREATE UNIQUE INDEX", "refused"]
    assert any(what == "asked again" for _, what in changes)
    deaths = {what for _, what in changes}
    assert {"preparing, a partition", "switching, a partition", "storing, the machine"} <= deaths


def test_lives_of_one_process_that_meet_do_nothing_to_one_another(stage: Stage) -> None:
    faults: Counter[str] = Counter()
    for seed in LIVES_SEEDS:
        result = Run(stage, seed, lives=True)()
        repeat = f"python -m tests.simulation --lives --first {seed} --trace"
        assert result.violations == [], f"repeat it: {repeat}"
        faults.update(result.faults)
    assert set(LIFE_FAULTS) <= set(faults)  # each kind has fired
    assert len(set(LIFE_AMBUSHES) - set(faults)) <= 1  # in a few seeds


@pytest.mark.parametrize("kind", ["", "changes_schema", "lives"])
def test_a_seed_brings_the_same_run_again(stage: Stage, kind: str) -> None:
    told: list[list[str]] = []
    for _ in range(2):
        run = Run(stage, 2, changes_schema=kind == "changes_schema", lives=kind == "lives")
        told.append([])
        run.world.trace = lambda text: told[-1].append(re.sub(r"simulation-\w+", "", text))
        run()
    assert told[0] == told[1]
    assert len(told[0]) > 100


@pytest.mark.parametrize("name", SOON_FOUND)
def test_a_broken_build_is_found_out(stage: Stage, name: str) -> None:
    with broken(name):
        kind = {"changes_schema": name in SCHEMA_BROKEN, "lives": name in LIVES_BROKEN}
        assert any(Run(stage, seed, **kind)().violations for seed in SEEDS_OF_BROKEN)


@pytest.mark.parametrize("name", BATCHES_BROKEN)
def test_a_build_that_lets_somebody_wait_or_fail_who_need_not_is_found_out(stage: Stage, name: str) -> None:
    with broken(name):
        seeds = [seed for seed in SEEDS_OF_BROKEN if SHOWS_UNDER[name] <= conditions_of(seed, partitions=2)]
        assert any(Run(stage, seed)().violations for seed in seeds)


def test_every_rule_has_its_tests_and_every_broken_build_its_rule() -> None:
    for number, rule in RULES.items():
        assert bool(rule.builds) != bool(rule.no_build), f"rule {number}"
        for test in rule.tests:
            name, _, function = test.partition("::")
            text = (TESTS / name).read_text(encoding="utf-8")
            assert f"def {function}(" in text, f"rule {number}: {test}"
    assert set(RULES) == set(range(1, 27)) - {15}
    builds = sorted(build for rule in RULES.values() for build in rule.builds)
    assert builds == sorted([*BROKEN, *LIVES_BROKEN])


def test_every_broken_build_has_something_to_break(stage: Stage) -> None:
    for name in (*BROKEN, *SCHEMA_BROKEN, *LIVES_BROKEN):
        with broken(name):
            pass
