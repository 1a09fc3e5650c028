"""Transfers between accounts of a bank, while processes are killed and paused: the money must stay the same.

    python -m tests.campaigns.bank [--seconds 120] [--every 1] [--partitions 2] [--seed N] [--json FILE]

Tellers transfer between random accounts, most of them across partitions, some with a client that retries, some with one
that does not. Auditors ask for the total of all accounts, a read-only transaction over all partitions: it must be the
same every time it is answered. Meanwhile, every `--every` seconds, a random process (a partition, the coordinator, the
router, the supervisor) is killed, or stopped for a while by SIGSTOP. In the end every account must hold what the
answered transfers make of it, give or take those whose outcome their teller was never told.

No call may be without an answer for longer than its timeout. A disturbance counts once it was seen: a killed process's
exit, a stopped one's state in /proc.
"""

from __future__ import annotations

import argparse
import json
import secrets
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random

import voltpy
from tests.campaigns.cluster import COORDINATOR, ROUTER, SUPERVISOR, Cluster, DidNotHappen, happened
from voltpy.client import Client, connect
from voltpy.errors import Aborted, Error, Indeterminate

ACCOUNTS = 200
OPENING_BALANCE = 1000
TIMEOUT_S = 20.0
LATE_S = 2.0  # beyond its timeout, for a machine that is busy with starting processes
PAUSES_S = (0.05, 0.3, 1.5, 3.0)
PAUSE_S = 0.01  # of who was refused

SCHEMA = """
CREATE TABLE accounts (id INT PRIMARY KEY, balance INT NOT NULL);
PARTITION TABLE accounts ON COLUMN id;
"""

PROCEDURES = '''
from voltpy import procedure


@procedure(partition_by="account")
def open_account(tx, account: int, balance: int) -> None:
    tx.accounts.upsert(account, balance)


@procedure(partition_by=("source", "target"))
def transfer(tx, source: int, target: int, amount: int) -> list[int]:
    """Returns both new balances."""
    payer, payee = tx.accounts.get(source), tx.accounts.get(target)
    if payer.balance < amount:
        tx.abort("no funds")
    return [
        tx.accounts.update(source, balance=payer.balance - amount).balance,
        tx.accounts.update(target, balance=payee.balance + amount).balance,
    ]


@procedure(partition_by="account", read_only=True)
def balance(tx, account: int) -> int:
    return tx.accounts.get(account).balance


@procedure(read_only=True)
def total(tx) -> int:
    return sum(row.balance for row in tx.accounts.scan())
'''


@dataclass
class Summary:
    """What came of a campaign. It passed without violations, when every kind of disturbance was seen."""

    seed: int
    seconds: float = 0.0
    transfers: int = 0
    aborted: int = 0
    undecided: int = 0
    failed: int = 0
    totals: int = 0
    disturbances: dict[str, int] = field(default_factory=dict)
    longest_answer_s: float = 0.0
    violations: list[str] = field(default_factory=list)


class Bank:
    """The threads that use the bank, and their books."""

    def __init__(self, url: str, seed: int, accounts: int = ACCOUNTS) -> None:
        self._url = url
        self._accounts = accounts
        self._seed = seed
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self.moved: Counter[int] = Counter()  # by account, of transfers that were acknowledged
        self.maybe: list[tuple[int, int, int]] = []  # transfers that may have happened
        self.counts: Counter[str] = Counter()
        self.longest_s = 0.0
        self.violations: list[str] = []
        self.is_wrong = threading.Event()  # a thread has added to them

    def open(self) -> None:
        with connect(self._url, timeout=TIMEOUT_S, retry_s=TIMEOUT_S) as db:
            db.call_many("open_account", [(account, OPENING_BALANCE) for account in range(self._accounts)])

    def start(self, tellers: int = 4, auditors: int = 2) -> None:
        for number in range(tellers):
            retry_s = TIMEOUT_S if number % 2 else 0.0
            self._run(self._transfer, Random(f"{self._seed}:{number}"), retry_s)
        for number in range(auditors):
            self._run(self._audit, Random(f"{self._seed}:auditor {number}"), TIMEOUT_S)

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(2 * TIMEOUT_S + LATE_S)
            if thread.is_alive():
                self.violations.append(f"{thread.name} still waits for an answer")

    def check(self, total: int, balances: list[int]) -> None:
        """Compares the books with what the accounts hold."""
        opened = OPENING_BALANCE * self._accounts
        if total != opened or sum(balances) != opened:
            self.violations.append(f"the total is {total}, the sum {sum(balances)}; it was {opened}")
        open_by_account: dict[int, list[int]] = {}
        for source, target, amount in self.maybe:
            open_by_account.setdefault(source, []).append(-amount)
            open_by_account.setdefault(target, []).append(amount)
        for account, balance in enumerate(balances):
            certain = OPENING_BALANCE + self.moved[account]
            perhaps = open_by_account.get(account, [])
            if balance - certain not in _sums(perhaps):
                self.violations.append(
                    f"account {account} holds {balance}, acknowledged transfers make {certain}, undecided {perhaps}"
                )

    def _run(self, body: Callable[[Random, Client], None], random: Random, retry_s: float) -> None:
        def loop() -> None:
            with connect(self._url, timeout=TIMEOUT_S, retry_s=retry_s) as db:
                while not self._stop.is_set():
                    began_s = time.monotonic()
                    body(random, db)
                    took_s = time.monotonic() - began_s
                    with self._lock:
                        self.longest_s = max(self.longest_s, took_s)
                    if took_s > TIMEOUT_S + LATE_S:
                        self._violated(f"a call took {took_s:.1f} s, its timeout is {TIMEOUT_S:g} s")

        thread = threading.Thread(target=loop, name=f"{body.__name__} {len(self._threads)}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _transfer(self, random: Random, db: Client) -> None:
        source, target = random.sample(range(self._accounts), 2)
        amount = random.randrange(1, 100)
        try:
            db.call("transfer", source, target, amount)
        except Aborted:
            outcome = "aborted"
        except Indeterminate:
            outcome = "undecided"
        except Error as error:
            outcome = "failed"
            if not error.retry_is_safe:
                self._violated(f"transfer: {type(error).__name__}: {error}")
            self._stop.wait(PAUSE_S)
        else:
            outcome = "transfers"
        with self._lock:
            self.counts[outcome] += 1
            if outcome == "transfers":
                self.moved[source] -= amount
                self.moved[target] += amount
            elif outcome == "undecided":
                self.maybe.append((source, target, amount))

    def _audit(self, random: Random, db: Client) -> None:
        try:
            total = db.call("total")
        except (Indeterminate, voltpy.Unavailable, voltpy.Overloaded):
            self._stop.wait(PAUSE_S)
            return
        with self._lock:
            self.counts["totals"] += 1
        if total != OPENING_BALANCE * self._accounts:
            self._violated(f"an auditor saw {total}")

    def _violated(self, what: str) -> None:
        with self._lock:
            self.violations.append(what)
        self.is_wrong.set()


def _sums(amounts: list[int]) -> set[int]:
    """What some of these make together."""
    sums = {0}
    for amount in amounts:
        sums |= {known + amount for known in sums}
    return sums


class Disturber:
    """Kills and pauses processes of a cluster, one at a time; `seen` counts what was seen to have happened."""

    def __init__(self, cluster: Cluster, random: Random) -> None:
        self._cluster = cluster
        self._random = random
        self.seen: Counter[str] = Counter()

    def disturb(self) -> None:
        names = [*(f"partition-{number}" for number in range(self._cluster.partitions)), COORDINATOR, ROUTER]
        name = self._random.choice([*names, *names, SUPERVISOR])
        kind = name.partition("-")[0]
        if name == SUPERVISOR:
            self._kill_supervisor()
        elif self._random.random() < 0.6:
            self._kill(name)
            self.seen[f"{kind} killed"] += 1
        elif self._pause(name, self._random.choice(PAUSES_S)):
            self.seen[f"{kind} paused"] += 1

    def _kill(self, name: str) -> None:
        mark = self._cluster.mark()
        self._cluster.kill(name)
        self._cluster.wait(happened("exited", name), mark)
        self._cluster.wait(happened("serving", name), mark)

    def _pause(self, name: str, pause_s: float) -> bool:
        """Whether the process was seen to stand still."""
        pid, mark = self._cluster.pid(name), self._cluster.mark()
        self._cluster.kill(name, signal.SIGSTOP)
        exited = self._cluster.wait_whether(happened("exited", name), mark, pause_s)
        if exited is not None:  # it took so long that the supervisor ended it
            return bool(exited["exit_status"] == -signal.SIGKILL)
        stopped = _state(pid) == "T"
        with suppress(ProcessLookupError):  # the supervisor has been as quick
            self._cluster.kill(name, signal.SIGCONT)
        return stopped

    def _kill_supervisor(self) -> None:
        self._cluster.kill(SUPERVISOR)
        if self._cluster.wait_end() == -signal.SIGKILL:
            self.seen["supervisor killed"] += 1
        self._cluster.start()


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def run(seconds: float, every_s: float, partitions: int, seed: int, directory: Path) -> Summary:
    """One campaign on a cluster of its own."""
    summary = Summary(seed)
    random = Random(seed)
    began_s = time.monotonic()
    with Cluster(directory / "bank", SCHEMA, PROCEDURES, partitions=partitions) as cluster:
        cluster.start()
        bank = Bank(cluster.url, seed)
        bank.open()
        bank.start()
        disturber = Disturber(cluster, random)
        try:
            while time.monotonic() < began_s + seconds and not bank.is_wrong.wait(every_s):
                disturber.disturb()
        except DidNotHappen as error:
            bank.violations.append(str(error))
        bank.stop()
        with connect(cluster.url, timeout=TIMEOUT_S, retry_s=TIMEOUT_S) as db:
            balances = db.call_many("balance", [(account,) for account in range(ACCOUNTS)])
            bank.check(db.call("total"), balances)
        cluster.end()
        bank.violations += [f"{process} outlived its supervisor" for process in cluster.end_survivors()]
    summary.seconds = round(time.monotonic() - began_s, 1)
    summary.transfers, summary.aborted = bank.counts["transfers"], bank.counts["aborted"]
    summary.undecided, summary.failed, summary.totals = (
        bank.counts["undecided"],
        bank.counts["failed"],
        bank.counts["totals"],
    )
    summary.disturbances = dict(sorted(disturber.seen.items()))
    summary.longest_answer_s = round(bank.longest_s, 2)
    summary.violations = bank.violations
    return summary


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--every", type=float, default=1.0, help="seconds between two disturbances")
    parser.add_argument("--partitions", type=int, default=2)
    parser.add_argument("--seed", type=int, help="of what is done to whom; a random one")
    parser.add_argument("--json", type=Path, help="write the summary into this file")
    arguments = parser.parse_args()
    seed = secrets.randbelow(1 << 32) if arguments.seed is None else arguments.seed
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="voltpy-bank-") as directory:
        summary = run(arguments.seconds, arguments.every, arguments.partitions, seed, Path(directory))
    text = json.dumps(asdict(summary), indent=1)
    print(text)
    if arguments.json:
        arguments.json.write_text(text)
    return 1 if summary.violations else 0


if __name__ == "__main__":
    sys.exit(main())
