"""`python -m bench isolation`: what transfers between two partitions cost all the others.

The partitions from the third on get deposits, with as many calls in flight as the client allows. In every other phase
another client has the first two partitions transfer money between them as fast as they can. What is compared is what
the others get done for a second of their own processor time, so it does not matter that all of them share a few cores.
Afterwards the money on all accounts is what was there and what was deposited.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from random import Random
from statistics import median
from time import perf_counter
from typing import Any

import click
import msgspec
from msgspec import Struct

import voltpy
from bench import machine, measure
from bench.experiment import Settings
from bench.peers.voltpy import Voltpy
from bench.table import data_directory, durability, errors_for_the_command_line, on_a_disk, say
from bench.workload import BenchError, Line, OnVoltpy, expect
from bench.workloads import transfer
from voltpy.hash_slot import hash_slot, slot_owners

ACCOUNTS_A_PARTITION = 2000
WARM_UP_S = 0.5
AT_ONCE = 8192  # calls of one call_many: a phase ends with the one that is under way
MOST_LOST = 0.03


class Phase(Struct, frozen=True):
    """`deposits` of the other partitions, and their processor time; `transfers_per_s` of the two, where there were."""

    repetition: int
    deposits: int
    elapsed_s: float
    cpu_s: float
    transfers_per_s: float | None

    @property
    def deposits_a_cpu_s(self) -> float:
        return self.deposits / self.cpu_s


class Results(Struct):
    machine: machine.Machine
    settings: Settings
    started_at: str
    phases: list[Phase]


@click.command("isolation")
@click.option("--partitions", default=8, show_default=True, type=click.IntRange(3, 1024))
@click.option("--seconds", default=4.0, show_default=True, type=click.FloatRange(0.1, 600), help="Of one phase.")
@click.option("--repeat", default=5, show_default=True, type=click.IntRange(1, 1000), help="Phases with, and without.")
@click.option("--fsync", default="always", show_default=True, type=click.Choice(["always", "everysec", "never"]))
@click.option("--seed", default=1, show_default=True)
@click.option(
    "--directory",
    default=tempfile.gettempdir(),
    show_default=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    callback=on_a_disk,
    help="Holds the data; a disk, not memory.",
)
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the results here.")
def main(
    partitions: int, seconds: float, repeat: int, fsync: str, seed: int, directory: Path, json_file: Path | None
) -> None:
    """Throughput of some partitions while two others transfer money between them, and while they don't."""
    settings = Settings(seconds, 0, 0, partitions, "on", durability(fsync), repeat, seed)
    results = Results(machine.describe(directory), settings, datetime.now(UTC).isoformat(timespec="seconds"), [])
    with errors_for_the_command_line(), data_directory(directory) as own:
        try:
            _measure(results, own)
        finally:
            if json_file is not None:
                json_file.write_bytes(msgspec.json.format(msgspec.json.encode(results)))
    click.echo(markdown(results))


def _measure(results: Results, directory: Path) -> None:
    settings = results.settings
    sides, others = accounts(settings.partitions)
    every = [*sides[0], *sides[1], *others]

    def load(client: Any) -> None:
        client.call_many("open_account", [(account, f"owner {account}") for account in every])
        client.call_many("deposit", [(account, transfer.OPENING_BALANCE) for account in every])

    bank = OnVoltpy("bank", load, lambda client: sum(client.call_everywhere("total_deposits")))
    line = Line("isolation", "isolation", "many", lambda *_: [], 0, True, lambda *_: None, (), bank)
    deposited = 0
    with Voltpy(directory, settings.fsync, partitions=settings.partitions, affinity="on") as peer:
        peer.load(line)
        with _client(peer.url, "deposit") as depositing, _client(peer.url, "transfer") as transferring:

            def deposit(for_s: float) -> tuple[int, float]:
                tally: tuple[int, float] = depositing.submit(_drive, others, for_s, settings.seed).result()
                nonlocal deposited
                deposited += tally[0]
                return tally

            deposit(WARM_UP_S)
            pids = peer.partition_pids()[2:]
            for repetition in range(settings.repeat):
                for crossing in (False, True):
                    # It begins before the others do, and ends after them.
                    load_s = settings.seconds + 2 * WARM_UP_S
                    transfers = transferring.submit(_drive, sides, load_s, settings.seed) if crossing else None
                    deposit(WARM_UP_S)
                    before_s = _cpu_s(pids)
                    calls, elapsed_s = deposit(settings.seconds)
                    spent_s = _cpu_s(pids) - before_s
                    moved = None if transfers is None else transfers.result()
                    if not spent_s:
                        raise BenchError("the partitions used no processor time that could be measured")
                    rate = None if moved is None else moved[0] / moved[1]
                    results.phases.append(Phase(repetition, calls, elapsed_s, spent_s, rate))
                    say(summary(results.phases[-1]))
        expect("money", peer.state(line), transfer.OPENING_BALANCE * len(every) + deposited)


def accounts(partitions: int) -> tuple[transfer.Sides, list[int]]:
    """Accounts of the first two partitions, and of all the others together: as many in each."""
    owners = slot_owners(partitions)
    found: list[list[int]] = [[] for _ in range(partitions)]
    for account in count(1):
        here = found[owners[hash_slot(account)]]
        if len(here) < ACCOUNTS_A_PARTITION:
            here.append(account)
        elif all(len(each) == ACCOUNTS_A_PARTITION for each in found):
            break
    first, second, *rest = found
    return (first, second), [account for each in rest for account in each]


# ---- in the client processes ----

_connected: tuple[Any, str] | None = None  # the client of this process, and what it calls


@contextmanager
def _client(url: str, procedure: str) -> Iterator[ProcessPoolExecutor]:
    executor = ProcessPoolExecutor(1, get_context("spawn"), initializer=_connect, initargs=(url, procedure))
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)


def _connect(url: str, procedure: str) -> None:
    global _connected
    _connected = (voltpy.connect(url, timeout=60), procedure)


def _drive(of: Any, seconds: float, seed: int) -> tuple[int, float]:
    """Calls for so long with accounts of these; how many were answered, and how long that took."""
    assert _connected is not None
    client, procedure = _connected
    if procedure == "deposit":
        rows = [(account, 1) for account in Random(seed).choices(of, k=AT_ONCE)]
    else:
        rows = [arguments for _, arguments in transfer.transfers(of, seed, AT_ONCE)]
    calls, began_s = 0, perf_counter()
    while perf_counter() - began_s < seconds:
        calls += len(client.call_many(procedure, rows))
    return calls, perf_counter() - began_s


def _cpu_s(pids: list[int]) -> float:
    """Of the partitions, and of what they have started for themselves."""
    return measure.cpu_s(child for pid in pids for child in measure.process_tree(pid))


# ---- the report ----


def summary(phase: Phase) -> str:
    beside = "alone" if phase.transfers_per_s is None else f"beside {phase.transfers_per_s:,.0f} transfers/s"
    return f"{phase.deposits_a_cpu_s:,.0f} deposits a CPU second, {phase.deposits / phase.elapsed_s:,.0f}/s, {beside}"


def markdown(results: Results) -> str:
    settings = results.settings
    pairs = [(phase, results.phases[i + 1]) for i, phase in enumerate(results.phases[:-1]) if i % 2 == 0]
    ratios = [beside.deposits_a_cpu_s / alone.deposits_a_cpu_s for alone, beside in pairs]
    lines = ["| repetition | deposits a CPU second, alone | beside transfers | ÷ | transfers/s |", "| ---: " * 5 + "|"]
    for (alone, beside), ratio in zip(pairs, ratios, strict=True):
        lines.append(
            f"| {alone.repetition + 1} | {alone.deposits_a_cpu_s:,.0f} | {beside.deposits_a_cpu_s:,.0f} | {ratio:.3f} "
            f"| {beside.transfers_per_s or 0:,.0f} |"
        )
    if ratios:
        lost = 1 - median(ratios)
        verdict = "held" if lost <= MOST_LOST else "MISSED"
        lines += ["", f"- lost, median: {lost:.1%}, wanted at most {MOST_LOST:.0%}: {verdict}"]
    return "\n".join(
        [
            *lines,
            f"- {settings.partitions} partitions: transfers between the first two, deposits in the other "
            f"{settings.partitions - 2}; {settings.seconds:g} s a phase, in turn; --fsync {settings.fsync}.",
            f"- {machine.in_words(results.machine)}",
            f"- Measured {results.started_at}.",
        ]
    )
