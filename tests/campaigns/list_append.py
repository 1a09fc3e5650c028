"""Histories of list appends on a real cluster whose processes are killed and paused, judged for strict serializability.

    python -m tests.campaigns.list_append [--runs 20] [--transactions 10000] [--partitions 2] [--seed N] [--json FILE]

Each run: a cluster of its own; callers in threads of clients with affinity and without, some of which retry, append to
and read few lists that live in several partitions, in rows, ranges and copies (tests/simulation/list_append.py).
Meanwhile processes are killed and stopped (tests.campaigns.bank). Afterwards every list is read, and
tests.simulation.checker judges the history, with the real times of one clock.
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random

from tests.campaigns.bank import Disturber
from tests.campaigns.cluster import Cluster, DidNotHappen
from tests.simulation.checker import check
from tests.simulation.workload import PAUSE_S, Call, Ledger
from voltpy.client import Client, connect
from voltpy.errors import Aborted, Error

HERE = Path(__file__).resolve().parent.parent / "simulation"
KINDS = {
    "transact": 5.0, "transact_one": 3.0, "look": 3.0, "look_at_one": 2.0, "transact_and_give_up": 0.5,
    "transact_anywhere": 1.0, "look_anywhere": 1.0, "append_copies": 0.5, "transfer": 1.0, "total": 0.5,
    "total_of_all": 0.5,
}  # fmt: skip
LISTS, ACCOUNTS = 12, 8
CALLERS = 6  # of each client
TIMEOUT_S = 20.0


@dataclass
class Summary:
    """What came of one run. It passed without violations."""

    seed: int
    transactions: int = 0
    seconds: float = 0.0
    checked_in_s: float = 0.0
    outcomes: dict[str, int] = field(default_factory=dict)
    returned: dict[str, int] = field(default_factory=dict)
    disturbances: dict[str, int] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)


class Callers:
    """Threads that call until enough transactions have been made."""

    def __init__(self, url: str, ledger: Ledger, transactions: int) -> None:
        self._ledger = ledger
        self._transactions = transactions
        self._lock = threading.Lock()
        self.clients = [
            connect(url, timeout=TIMEOUT_S, retry_s=TIMEOUT_S),
            connect(f"{url}?affinity=off", timeout=TIMEOUT_S),
            connect(url, timeout=TIMEOUT_S),
        ]
        self._threads = [
            threading.Thread(target=self._call_on, args=(client,), daemon=True)
            for client in self.clients
            for _ in range(CALLERS)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def are_done(self, within_s: float) -> bool:
        deadline_s = time.monotonic() + within_s
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def make(self, call: Call, client: Client) -> None:
        """One call, into the ledger."""
        call.invoked_s = time.monotonic()
        try:
            if call.procedure_name == "append_copies":
                parts = client.call_everywhere(call.procedure_name, *call.arguments, timeout=TIMEOUT_S)
                call.value = self._ledger.of_parts(call, parts)
            else:
                call.value = client.call(call.procedure_name, *call.arguments)
        except Error as error:
            call.error = error
        with self._lock:
            self._ledger.settled(call, time.monotonic())

    def _call_on(self, client: Client) -> None:
        while True:
            with self._lock:
                if len(self._ledger.transactions) >= self._transactions:
                    return
                call = self._ledger.next_call()
            self.make(call, client)
            if call.error is not None and not isinstance(call.error, Aborted):
                time.sleep(PAUSE_S)


def run(seed: int, transactions: int, partitions: int, directory: Path, every_s: float = 1.0) -> Summary:
    """One history, and what the checker says of it."""
    summary = Summary(seed)
    random = Random(seed)
    began_s = time.monotonic()
    ledger = Ledger(Random(f"{seed}:calls"), kinds=KINDS, lists=LISTS, accounts=ACCOUNTS)
    schema, procedures = ((HERE / f"list_append{suffix}").read_text() for suffix in (".sql", ".py"))
    with Cluster(directory / f"lists-{seed}", schema, procedures, partitions=partitions) as cluster:
        cluster.start()
        callers = Callers(cluster.url, ledger, transactions)
        patient = callers.clients[0]
        for call in ledger.open_accounts():
            callers.make(call, patient)
        callers.start()
        disturber = Disturber(cluster, random)
        try:
            while not callers.are_done(every_s):
                disturber.disturb()
        except DidNotHappen as error:
            ledger.violations.append(str(error))
        callers.join()
        for call in ledger.read_all(with_total=True):
            callers.make(call, patient)
        for client in callers.clients:
            client.close()
        cluster.end()
    checked_s = time.monotonic()
    ledger.look_up_lengths()
    summary.violations = ledger.violations + [str(anomaly) for anomaly in check(ledger.transactions)]
    summary.checked_in_s = round(time.monotonic() - checked_s, 2)
    summary.transactions = len(ledger.transactions)
    summary.seconds = round(time.monotonic() - began_s, 1)
    summary.outcomes, summary.returned = ledger.outcomes, ledger.done
    summary.disturbances = dict(sorted(disturber.seen.items()))
    return summary


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--transactions", type=int, default=10_000, help="of each run")
    parser.add_argument("--partitions", type=int, default=2)
    parser.add_argument("--every", type=float, default=1.0, help="seconds between two disturbances")
    parser.add_argument("--seed", type=int, help="of the first run; a random one")
    parser.add_argument("--json", type=Path, help="write every run into this file")
    arguments = parser.parse_args()
    first = secrets.randbelow(1 << 32) if arguments.seed is None else arguments.seed
    summaries: list[Summary] = []
    disturbances: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="voltpy-lists-") as directory:
        for seed in range(first, first + arguments.runs):
            summary = run(seed, arguments.transactions, arguments.partitions, Path(directory), arguments.every)
            summaries.append(summary)
            disturbances.update(summary.disturbances)
            print(json.dumps(asdict(summary)), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(summary) for summary in summaries], indent=1))
    failed = [summary.seed for summary in summaries if summary.violations]
    transactions = sum(summary.transactions for summary in summaries)
    print(f"{len(summaries)} runs, {transactions:,} transactions, {dict(disturbances)}, failed: {failed or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
