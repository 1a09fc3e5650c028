"""Kills processes at every crash point, and checks that no transaction was lost, half applied, or applied twice.

    python -m tests.campaigns.kill [--points all|NAME,…] [--seeds 25] [--parallel 2] [--json FILE]

One run, of one point with one seed: while clients of every kind call (tests.campaigns.workload), the process that has
the point is killed from outside, at a random moment; its next life is armed and dies at the point, at a random passage;
the life after that recovers. Points that take more than calls get it: new procedures, a stop, another process's death.
Then every entry of the ledger is compared with what is there. The runs of a point follow each other on one cluster, and
at the end of them all ledgers are compared once more.

A run counts only if its process said that it dies at this point, and was seen to die of SIGKILL; a partition must come
back with a higher incarnation. Points named `kill.…` are kills from outside at a random moment, without a named point.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import TypeVar

from tests.campaigns import crossing
from tests.campaigns.cluster import (
    COORDINATOR,
    ROUTER,
    SUPERVISOR,
    Cluster,
    DidNotHappen,
    Event,
    crashed_at,
    happened,
)
from tests.campaigns.workload import PROCEDURES, SCHEMA, Clients, Totals, Workload
from voltpy.crash_point import CRASH_POINTS
from voltpy.errors import ClusterError, Error, Indeterminate, Unavailable

T = TypeVar("T")

PARTITIONS = 2
CROSSED_PARTITIONS = 3  # where transactions cross them: some write in two, some in all
AMPLE_BYTES = 512 << 20
LITTLE_BYTES = PARTITIONS << 20  # less than what is loaded: pages leave and come back all the time
ROOMY_BYTES = 16 * LITTLE_BYTES
LOADED_RUNS = 10  # on one such cluster: the indexes, which stay in memory, grow with each
LOADED = ("buffer_pool.", "recovery.", "checkpoint.clean_some.")  # points that want more data than memory
EXTERNAL = ("kill.partition", "kill.router", "kill.supervisor", "kill.everything", "kill.coordinator", "kill.two")
# Points that are passed only while transactions cross partitions. `kill.two`: of partitions and coordinator, at once.
CROSSING = ("participant.", "server.report.", "coordinator.", "decision_log.", "kill.coordinator", "kill.two")
# Passed by no process of a cluster (tests/end_to_end/test_snapshot.py), or only when its schema changes
# (tests/end_to_end/test_schema_change.py).
ELSEWHERE = ("snapshot.", "copier.", "restore.", "schema_change.")
POINTS = tuple(point for point in CRASH_POINTS if not point.startswith(ELSEWHERE)) + EXTERNAL
FIRES_WITHIN_S = 15.0

# What a process needs to get to a point, besides calls: NOTHING, DEATH of a partition, LOAD of procedures, STOP, HOLD
# of the checkpoints; that it starts with LESS memory than what has changed since its last checkpoint takes; that what
# its batch waits for is LATE; or that the coordinator is DOOMED, between its Prepare and its decision.
NOTHING, DEATH, LOAD, STOP, HOLD, LESS = "nothing", "death", "load", "stop", "hold", "less"
LATE, DOOMED = "late", "doomed"
NEEDS = {
    "participant.expired": LATE,
    "participant.abort.": DOOMED,
    "coordinator.stop.": STOP,
    "recovery.checkpoint": LESS,
    "server.load.": LOAD,
    "coordinator.load.": LOAD,
    "hold.": HOLD,
    "supervisor.persist.": LOAD,
    "record_log.close.": STOP,
    "partition.stop.": STOP,
    "supervisor.stop.": STOP,
    "supervisor.bury.": DEATH,
    "supervisor.start.before_child": DEATH,
    "supervisor.start.child_started": DEATH,
    "supervisor.tell.": DEATH,
    "router.topology.": DEATH,
}
# The passages that a run may choose from; where more pass than that, a run would only take longer.
PASSAGES = {
    "record_log.begin.": 1,
    "record_log.close.": 1,
    "record_log.rotate.": 2,
    "record_log.segment.": 3,
    "partition.": 1,
    "hold.": 1,
    "router.start.": 1,
    "router.topology.": 2,
    "server.load.": 1,
    "coordinator.load.": 1,
    "supervisor.persist.": 1,
    "supervisor.bury.": 1,
    "supervisor.tell.": 20,
    "supervisor.start.before_child": 4,
    "supervisor.start.child_started": 4,
    "supervisor.start.": 1,
    "supervisor.stop.all_ended": 1,
    "supervisor.stop.": 3,
    "wal.": 10,
    "recovery.": 1,
    "buffer_pool.": 20,
    "buffer_pool.evict": 3,
    "checkpoint.clean_some.": 3,
    "checkpoint.": 5,
    "page_file.": 10,
    "participant.attached": 1,
    "participant.expired": 1,
    "participant.abort.": 1,
    "participant.commit.": 3,
    "participant.": 20,
    "coordinator.start.": 1,
    "coordinator.stop.": 1,
    "coordinator.run_directed.": 6,
    "coordinator.commit.": 10,
    "coordinator.": 20,
    "decision_log.": 20,
}
COMMIT = ".commit."  # in the name of points that want batches which only one partition writes to
LATE_S = (1.1, 1.5)  # longer than a lease
DOOMS = ("coordinator.prepare.sent", "decision_log.write.before_append", "decision_log.write.appended")
PASSAGES_ELSE = 50
NONE = Totals(0, 0, 0, 0)


@dataclass
class Run:
    """What came of one run. It passed if it `fired` and has no violations."""

    point: str
    seed: int
    target: str = ""
    passage: int = 0
    fired: bool = False
    problem: str = ""
    totals: Totals = NONE
    violations: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        return self.fired and not self.violations and not self.problem


class Session:
    """One cluster with the runs on it, one after another.

    `loaded`: its data are more than its memory. `roomy`: that has room at first, and checkpoints are rare. `crosses`:
    transactions cross partitions.
    """

    def __init__(self, directory: Path, *, loaded: bool = False, roomy: bool = False, crosses: bool = False) -> None:
        self._loaded = loaded
        self._crosses = crosses
        self._procedures = PROCEDURES + crossing.PROCEDURES if crosses else PROCEDURES
        self.cluster = Cluster(
            directory,
            SCHEMA + crossing.SCHEMA if crosses else SCHEMA,
            self._procedures,
            partitions=CROSSED_PARTITIONS if crosses else PARTITIONS,
            memory_bytes=ROOMY_BYTES if roomy else LITTLE_BYTES if loaded else AMPLE_BYTES,
            checkpoint_bytes=ROOMY_BYTES if roomy else 65536,
        )
        self.cluster.start()
        self._clients = Clients(self.cluster.url)
        self._workloads: list[Workload] = []
        self._loads = 0

    def close(self) -> list[str]:
        """Ends everything. Returns the processes that did not end with their supervisors."""
        self._clients.close()
        self.cluster.end(signal.SIGKILL)
        return self.cluster.end_survivors()

    def run(self, point: str, seed: int) -> Run:
        began_s = time.monotonic()
        run = Run(point, seed)
        rng = Random(f"{point}:{seed}")
        name = f"{point}:{seed}"
        workload = Workload(
            self._clients,
            self.cluster.url,
            len(self._workloads) * Workload.WORKERS + 1,
            name,
            loaded=self._loaded,
            crosses=self._crosses,
            sparsely=COMMIT in point or (point in EXTERNAL and seed % 2 == 1),
        )
        self._workloads.append(workload)
        if _of(NEEDS, point, NOTHING) == LESS:
            self._restart(ROOMY_BYTES)
        workload.start()
        try:
            if point in EXTERNAL:
                self._kill(run, rng, workload)
            else:
                self._crash(run, rng, workload)
            if not workload.wait_for(rng.randrange(1, 50)):
                run.violations.append("nothing is answered any more")
        except DidNotHappen as error:
            run.problem = str(error)
        workload.finish()
        self._check(workload)
        run.totals = workload.totals()
        run.violations += workload.violations
        run.seconds = round(time.monotonic() - began_s, 3)
        return run

    def check_all(self) -> list[str]:
        """What has changed since it was checked first."""
        violations = []
        counts = [0, 0, 0, 0]
        for workload in self._workloads:
            known = list(workload.violations)
            counts = [one + other for one, other in zip(counts, self._check(workload), strict=True)]
            violations += [f"later: {violation}" for violation in workload.violations if violation not in known]
        found = [sum(column) for column in zip(*self._row_counts(), strict=True)]
        if found != counts:
            violations.append(f"tables have {found} rows, the ledgers make {counts}")
        return violations

    @property
    def runs(self) -> int:
        return len(self._workloads)

    def _row_counts(self) -> list[list[int]]:
        """A directed call is not retried by its client."""
        deadline_s = time.monotonic() + FIRES_WITHIN_S
        while True:
            try:
                return self._clients.retrying.call_everywhere("row_counts")
            except Unavailable:
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(0.01)

    def _check(self, workload: Workload) -> list[int]:
        try:
            return workload.check()
        except Error as error:
            workload.violations.append(f"can't be checked: {type(error).__name__}: {error}")
            return [0, 0, 0, 0]

    def _workers(self) -> list[str]:
        """The processes that run transactions."""
        return [*(f"partition-{number}" for number in range(self.cluster.partitions)), COORDINATOR]

    def _restart(self, memory_bytes: int) -> None:
        """Kills everything, and starts it with so much memory, unless it has that."""
        cluster = self.cluster
        if cluster.memory_bytes == memory_bytes:
            return
        for name in (*self._workers(), ROUTER, SUPERVISOR):
            cluster.kill(name)
        cluster.wait_end()
        cluster.memory_bytes = memory_bytes
        cluster.start()

    def _kill(self, run: Run, rng: Random, workload: Workload) -> None:
        """A kill from outside, at a random moment."""
        cluster = self.cluster
        workload.wait_for(rng.randrange(1, 300))
        mark = cluster.mark()
        if run.point == "kill.everything":
            run.target = "everything"
            names = [*self._workers(), ROUTER, SUPERVISOR]
            rng.shuffle(names)
            for name in names:
                cluster.kill(name)
        elif run.point == "kill.two":
            names = rng.sample(self._workers(), 2)
            run.target = " and ".join(names)
            for name in names:
                cluster.kill(name)
            run.fired = True
            for name in names:
                run.fired &= cluster.wait(happened("exited", name), mark)["exit_status"] == -signal.SIGKILL
                cluster.wait(happened("serving", name), mark)
            return
        else:
            kind = run.point.partition(".")[2]
            run.target = f"partition-{rng.randrange(cluster.partitions)}" if kind == "partition" else kind
            cluster.kill(run.target)
        if run.point in ("kill.supervisor", "kill.everything"):
            run.fired = cluster.wait_end() == -signal.SIGKILL
            cluster.start()
        else:
            run.fired = cluster.wait(happened("exited", run.target), mark)["exit_status"] == -signal.SIGKILL
            cluster.wait(happened("serving", run.target), mark)

    def _crash(self, run: Run, rng: Random, workload: Workload) -> None:
        """A kill from outside, and then the crash at the point."""
        cluster, point = self.cluster, run.point
        needs = _of(NEEDS, point, NOTHING)
        kind = point.partition(".")[0]
        target = COORDINATOR if kind == "decision_log" else kind
        if kind == "record_log" and self._crosses:  # the coordinator's decisions are in one, too
            target = rng.choice(self._workers())
        if target not in (COORDINATOR, ROUTER, SUPERVISOR):
            target = f"partition-{rng.randrange(cluster.partitions)}"
        run.target, run.passage = target, rng.randrange(1, _of(PASSAGES, point, PASSAGES_ELSE) + 1)
        workload.wait_for(rng.randrange(1, 100))
        mark = cluster.mark()
        incarnation = self._incarnation(target)
        cluster.arm(target, point, run.passage)
        if needs == LESS:
            self._restart(LITTLE_BYTES)
        else:
            cluster.kill(target)
        if target == SUPERVISOR:
            cluster.wait_end()
            if not cluster.start():  # which saw that it died of SIGKILL
                cluster.wait(crashed_at(point), mark)
                run.fired = True
                cluster.start()
                return
        else:
            serves = happened("serving", target)
            cluster.wait(lambda event: serves(event) or crashed_at(point)(event), mark)
        if needs not in (NOTHING, LESS) and not cluster.since(mark, crashed_at(point)):
            workload.wait_for(rng.randrange(1, 50))
            self._provide(needs, target, rng, workload, lambda s: cluster.wait_whether(crashed_at(point), mark, s))
        last_words = cluster.wait_whether(crashed_at(point), mark, FIRES_WITHIN_S)
        if last_words is None:
            run.problem = "the point was never reached"
            return
        if target == SUPERVISOR or needs == STOP:
            status = cluster.wait_end()
            # At a stop nobody reports what a partition died of; its own last words must do.
            run.fired = target != SUPERVISOR or status == -signal.SIGKILL
            cluster.start()
            return
        # That of the kill from outside came before the life that has said so.
        death = cluster.wait(happened("exited", target), cluster.events.index(last_words, mark))
        run.fired = death["exit_status"] == -signal.SIGKILL
        cluster.wait(happened("serving", target), cluster.events.index(death, mark))
        if target != ROUTER and self._incarnation(target) <= incarnation:
            run.violations.append(f"incarnation {self._incarnation(target)} follows {incarnation}")

    def _incarnation(self, process: str) -> int:
        """That of a partition's life that served last; 0 for others."""
        serving = self.cluster.since(0, happened("serving", process))
        return int(serving[-1]["incarnation"]) if serving else 0

    def _provide(
        self, needs: str, target: str, rng: Random, workload: Workload, died: Callable[[float], Event | None]
    ) -> None:
        """What gets the target to its point. `died` waits for that, as many seconds."""
        if needs == DEATH:
            self.cluster.kill(f"partition-{rng.randrange(self.cluster.partitions)}")
        elif needs in (LATE, DOOMED):
            deadline_s = time.monotonic() + FIRES_WITHIN_S
            while not died(0.0) and time.monotonic() < deadline_s:
                if needs == LATE:
                    late = rng.choice([name for name in self._workers() if name != target])
                    self.cluster.kill(late, signal.SIGSTOP)
                    died(rng.uniform(*LATE_S))
                    self.cluster.kill(late, signal.SIGCONT)
                    workload.wait_for(1)  # of what it has kept waiting
                else:
                    self._doom(rng)
        elif needs == STOP:
            self.cluster.kill(SUPERVISOR, signal.SIGTERM)
        elif needs == LOAD:
            self._load()
        elif needs == HOLD:
            self._hold()

    def _doom(self, rng: Random) -> None:
        """The coordinator's next life ends while partitions have something prepared; the one after it serves."""
        mark = self.cluster.mark()
        doom = rng.choice(DOOMS)
        self.cluster.arm(COORDINATOR, doom, rng.randrange(1, 10))
        self.cluster.kill(COORDINATOR)
        died = self.cluster.wait(crashed_at(doom), mark)
        self.cluster.wait(happened("serving", COORDINATOR), self.cluster.events.index(died, mark))

    def _load(self) -> None:
        """Loads procedures; a router that is not there yet, or somebody who dies on the way, may be in its way."""
        deadline_s = time.monotonic() + FIRES_WITHIN_S
        while time.monotonic() < deadline_s:
            self._loads += 1
            try:
                self._clients.retrying.load_procedures(f"{self._procedures}\n# {self._loads}\n", "campaign.py")
            except Unavailable:
                time.sleep(0.01)
                continue
            except Indeterminate:
                pass
            return

    def _hold(self) -> None:
        """Holds the checkpoints as a snapshot does, until somebody dies of it or all of them were let go."""
        deadline_s = time.monotonic() + FIRES_WITHIN_S
        while time.monotonic() < deadline_s:
            try:
                number = self._clients.retrying.begin_snapshot("campaign", 0, 2.0)["snapshot"]
                while True:
                    state = self._clients.retrying.renew_snapshot(number)["state"]
                    if state in ("released", "failed"):
                        return
                    if state == "held":
                        self._clients.retrying.end_snapshot(number)
                    time.sleep(0.01)
            except (Unavailable, ClusterError):
                time.sleep(0.01)
            except Indeterminate:
                pass


def _of(table: dict[str, T], point: str, otherwise: T) -> T:
    """The entry for the longest beginning of the point's name."""
    return next((table[key] for key in sorted(table, key=len, reverse=True) if point.startswith(key)), otherwise)


def run_point(point: str, seeds: Sequence[int], directory: Path, crosses: bool = False) -> list[Run]:
    """All runs of one point; `crosses` where it need not.

    A cluster that has shown something wrong is left behind for a look, and a new one made.
    """
    runs: list[Run] = []
    session: Session | None = None
    for seed in seeds:
        if session is None:
            place = Path(tempfile.mkdtemp(prefix=f"{point}-", dir=directory))
            loaded = point.startswith(LOADED)
            session = Session(
                place,
                loaded=loaded,
                roomy=_of(NEEDS, point, NOTHING) == LESS,
                crosses=point.startswith(CROSSING) or (crosses and not loaded),
            )
        run = session.run(point, seed)
        is_full = point.startswith(LOADED) and session.runs == LOADED_RUNS
        if seed == seeds[-1] or is_full or not run.passed:
            if not run.problem:
                run.violations += session.check_all()
            run.violations += [f"{process} outlived its supervisor" for process in session.close()]
            session = None
            if run.passed:
                shutil.rmtree(place)
        runs.append(run)
    return runs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", default="all", help="names, or beginnings of names, separated by commas")
    parser.add_argument("--seeds", type=int, default=25, help="runs of each point")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--crossing", action="store_true", help="transactions cross partitions at all points")
    parser.add_argument("--parallel", type=int, default=2, help="clusters at the same time")
    parser.add_argument("--directory", type=Path, help="where the clusters' data go; a temporary directory")
    parser.add_argument("--json", type=Path, help="write every run into this file")
    arguments = parser.parse_args()
    wanted = tuple(arguments.points.split(","))
    points = [point for point in POINTS if wanted == ("all",) or point.startswith(wanted)]
    if not points:
        parser.error(f"no crash point begins with {arguments.points}")
    directory = arguments.directory or Path(tempfile.mkdtemp(prefix="voltpy-kill-"))
    directory.mkdir(exist_ok=True)
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    print(f"{len(points)} points × {len(seeds)} seeds ({seeds[0]} to {seeds[-1]}), clusters in {directory}", flush=True)
    print(
        f"{'point':<36} {'runs':>5} {'fired':>5} {'passed':>6} {'calls':>7} {'open':>5} {'undecided':>9} {'s a run':>7}"
    )

    began_s = time.monotonic()
    runs: list[Run] = []
    with ProcessPoolExecutor(arguments.parallel, get_context("spawn")) as pool:
        submitted = {pool.submit(run_point, point, seeds, directory, arguments.crossing): point for point in points}
        for done in as_completed(submitted):
            error = done.exception()
            of_point = [Run(submitted[done], -1, problem=_text(error))] if error is not None else done.result()
            runs += of_point
            _print(of_point)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(run) for run in runs], indent=1))
    passed = sum(run.passed for run in runs)
    calls = sum(run.totals.done for run in runs)
    print(
        f"{len(points)} points, {len(runs)} runs, {sum(run.fired for run in runs)} crashes seen, {passed} passed, "
        f"{calls:,} calls acknowledged, {time.monotonic() - began_s:.0f} s"
    )
    if passed == len(runs):
        shutil.rmtree(directory, ignore_errors=True)
        return 0
    print(f"What is left of the clusters that failed is in {directory}")
    return 1


def _text(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def _print(runs: list[Run]) -> None:
    fired, passed = sum(run.fired for run in runs), sum(run.passed for run in runs)
    done, either = sum(run.totals.done for run in runs), sum(run.totals.either for run in runs)
    undecided = sum(run.totals.undecided_by_retries for run in runs)
    seconds = sum(run.seconds for run in runs) / len(runs)
    print(
        f"{runs[0].point:<36} {len(runs):>5} {fired:>5} {passed:>6} {done:>7} {either:>5} {undecided:>9} "
        f"{seconds:>7.2f}",
        flush=True,
    )
    for run in runs:
        if not run.passed:
            print(f"    seed {run.seed}: {run.target}, passage {run.passage}, {'fired' if run.fired else 'NOT FIRED'}")
            for line in [*run.violations[:10], *run.problem.splitlines()]:
                print("        " + line.rstrip().replace("\n", "\n        "), flush=True)


if __name__ == "__main__":
    sys.exit(main())
