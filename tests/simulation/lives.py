"""What the lives of one process owe to one another: in runs of `--lives`, beside all that can fail in others.

    outlived               the supervisor and all its processes are gone but one, a partition or the coordinator: it
                           works on for those that it knows, while the next supervisor starts another life of it
    begun and gone,        a life ends in a power cut, and all that it has made durable is its epoch
    begun a life and gone  (tests.simulation.ambush)

    snapshots              somebody takes them meanwhile, by `voltpy snapshot` (tests.simulation.snapshots)
    calls that last        their timer ticks (tests.simulation.pastime), and ends them when they last too long, in all
                           their runs together; some never return: the supervisor has to end their process

What was sent over a stream arrives though its sender is dead, as the kernel has it. And a partition that was told that
a coordinator is dead is asked right after that what it has lent.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any

from tests.simulation.ambush import LIFE_KINDS, Ambush
from tests.simulation.snapshots import Taker
from tests.simulation.workload import Call
from tests.simulation.world import Process
from voltpy.data_directory import partition_directory
from voltpy.heartbeat import BUSY, CALL_NUMBER, CLIENT_ID

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from tests.simulation.pastime import CallId
    from tests.simulation.run import Run
    from voltpy.errors import ClusterError

SNAPSHOT_S = 30.0  # the last one is made by then
OUTLIVED_EVERY_S = 0.3
TIMEOUT_S = 0.1  # of procedures
MOST_S = 6 * TIMEOUT_S  # that a call may run in one process: ticks are coarse, and runs on stand-ins are another matter
CALLS = {"ponder": 2.0, "ponder_across": 4.0, "wander": 4.0, "never_return": 0.3, "never_return_across": 0.5}
CALLS_ALONE = ("ponder", "never_return")  # in a cluster of one partition
# Beside those that wait for it.
FAULTS = (
    "a snapshot is taken", "a snapshot fails", "a part is cut late", "a call lasts", "a call never returns", "outlived",
    "refused a second life", "asked after a coordinator's death",
)  # fmt: skip


class Lives:
    """Of one run. `violations`: what no life may do to another."""

    def __init__(self, run: Run) -> None:
        self.violations: list[str] = []
        self.outliving: list[Process] = []  # whose supervisor is gone
        self.world = run.world
        self.calls: dict[str, float] = {}  # that last
        self.known: set[CallId] = set()  # that have ended a process, by the supervisor that there is
        self._run = run
        self._rng = Random(f"lives {run.world.seed}")  # the rest of the run is as it would be without
        self._lasted_s: dict[tuple[Process, CallId], float] = {}
        self._now: dict[tuple[Process, CallId], datetime] = {}  # what calls take for the time
        run.network.delivers_what_the_dead_sent = True
        self._taker = Taker(run, Random(f"snapshots {run.world.seed}")) if run.world.seed % 2 else None
        if self._rng.random() < 0.6:
            crosses = run.options.partitions > 1
            self.calls = {kind: weight for kind, weight in CALLS.items() if crosses or kind in CALLS_ALONE}
            run.options = run.options._replace(procedure_timeout_s=TIMEOUT_S, calls_last=True)
            run.ledger.kinds = {**run.ledger.kinds, **self.calls}

    def begin(self) -> None:
        """The trouble begins."""
        run = self._run
        for kind in self.ambushes:
            Ambush(run, kind).lay(within_s=0.05)
        if run.world.seed % 3 == 0:
            self._next_outlived()
        if self._taker is not None:
            run.start("s0", self._taker.run)

    @property
    def ambushes(self) -> list[str]:
        """The one that is laid in this run, or none."""
        kinds = sorted(LIFE_KINDS)
        return kinds[self.world.seed % (len(kinds) + 1) :][:1]

    def lay_out(self) -> None:
        """Whoever copies looks for the partitions' directories in the data directory."""
        data = self._run.options.data
        for number in range(self._run.options.partitions):
            place = partition_directory(data, number)
            if place.exists():
                place.rmdir()
            place.symlink_to(data.parent / f"p{number}")

    def lateness_s(self) -> float:
        """Of the word that a partition is to begin its checkpoint: one begins after others."""
        if self._rng.random() < 0.5:
            return 0.0
        self.world.fault("a part is cut late")
        return self._rng.choice((2e-3, 0.01, 0.04))

    def take_last_snapshot(self) -> None:
        taker, world = self._taker, self.world
        if taker is not None and not world.run(lambda: taker.is_done, SNAPSHOT_S):
            self.violations.append("a snapshot does not come to an end")

    def judged(self) -> list[str]:
        if self._taker is None:
            return self.violations
        return [*self.violations, *self._taker.violations, *self._taker.judge(self._run.ledger.transactions)]

    def end(self) -> None:
        """Nobody outlives the machine, or the trouble."""
        while self.outliving:
            self.outliving.pop().kill()

    def next_call(self, kind: str, number: int) -> Call:
        ledger, rng = self._run.ledger, self._rng
        pause_s = rng.choice((0.001, 0.01, 0.04, 0.12))
        if kind == "wander":
            lists = rng.sample(range(ledger.lists), min(ledger.lists, 3))
            return Call(ledger, number, kind, (lists, rng.choice((0.01, 0.03, 0.045))), [])
        if kind in CALLS_ALONE:
            one = rng.randrange(ledger.lists)
            operations = ledger.operations([one], writes=True)
            where: int | list[int] = one
        else:
            where = rng.sample(range(ledger.lists), 2)
            operations = ledger.operations(where, writes=True, writes_copies=True)
        arguments = (where, operations) if kind.startswith("never") else (where, operations, pause_s)
        return Call(ledger, number, kind, arguments, operations)

    def settled(self, call: Call) -> None:
        if call.error is None and call.procedure_name.startswith("never"):
            self.violations.append(f"T{call.transaction} returned, which never does")
            call.operations = []

    def another_lives(self, process: Process) -> bool:
        """Whether another life of it goes on: then the machine has power, and the disk is in use."""
        lives = (*self.outliving, self._run.processes.get(process.name))
        return any(
            life is not None and life is not process and life.name == process.name and life.is_alive for life in lives
        )

    # What no life may do to another.

    def told_of_the_dead(self, partition: int, metrics: dict[str, Any]) -> None:
        """What a partition says right after it was told that the coordinator is dead, while there is no other."""
        self.world.faults["asked after a coordinator's death"] += 1
        lent = metrics["lent_keys"], metrics["lent_tables"]
        if lent != (0, 0):
            self.violations.append(
                f"p{partition} knows that the coordinator is dead, and lends it (keys, tables) {lent}"
            )

    def explains(self, process: Process, error: ClusterError) -> bool:
        """Whether a life could not begin since an earlier one has the log."""
        if "in use by another process" not in str(error):
            return False
        if not any(other.name == process.name for other in self.outliving):
            self.violations.append(f"{process.name} finds its log taken, by nobody: {error}")
        self.world.fault("refused a second life", process.name)
        return True

    # What calls do that last.

    def lets_pass(self, process: Process, call_id: CallId, time_s: float) -> None:
        key = process, call_id
        before_s = self._lasted_s.get(key)
        if before_s is None:
            self.world.faults["a call lasts"] += 1
            before_s = 0.0
        after_s = self._lasted_s[key] = before_s + time_s
        if before_s <= MOST_S < after_s:
            self.violations.append(f"call {call_id} has run for {after_s:.2f} s in {process.name}, of {TIMEOUT_S:g} s")

    def has_let_pass(self, process: Process, call_id: CallId) -> bool:
        return (process, call_id) in self._lasted_s

    def arrived(self, process: Process, client_id: int, numbers: Iterable[int]) -> None:
        """Calls, which may have come before, and been turned away."""
        for number in numbers:
            key = process, (client_id, number)
            self._now.pop(key, None)
            if key in self._lasted_s:
                self._lasted_s[key] = 0.0

    def takes_for_now(self, process: Process, call_id: CallId, now: datetime) -> None:
        before = self._now.setdefault((process, call_id), now)
        if before != now:
            self.violations.append(
                f"call {call_id} runs again in {process.name}, at {now}, and was told {before} before"
            )

    def hangs(self, process: Process, call_id: CallId) -> None:
        self.world.fault("a call never returns", f"{call_id} in {process.name}")
        if call_id in self.known:
            self.violations.append(f"call {call_id} runs in {process.name}, and has ended a process before")

    def is_ended(self, process: Process) -> None:
        """The supervisor ends it, for the call that it runs."""
        if process.words is not None and process.words[BUSY] % 2:
            self.known.add((process.words[CLIENT_ID], process.words[CALL_NUMBER]))

    # Faults.

    def _next_outlived(self) -> None:
        self.world.after(self._rng.expovariate(1 / OUTLIVED_EVERY_S), self._outlive)

    def _outlive(self) -> None:
        run, rng, world = self._run, self._rng, self.world
        if not run.is_troubled:
            return
        self._next_outlived()
        supervisor = run.processes["supervisor"]
        names = [f"p{number}" for number in range(run.options.partitions + 1)]
        alive = [run.processes[name] for name in names if name in run.processes and run.processes[name].is_alive]
        alive = [process for process in alive if process.server is not None]
        if not supervisor.is_alive or not alive or self.outliving:
            return
        survivor = rng.choice((*alive[:-1], *alive[:-1], alive[-1]))  # the last one has the fewest that know it
        world.fault("outlived", survivor.name)
        self.outliving.append(survivor)
        run.network.cast_out(survivor)
        supervisor.kill()
        run.network.process_died(supervisor)
        for name in [*names, "router"]:
            if name in run.processes and run.processes[name] is not survivor:
                run.processes[name].kill()
        world.after(rng.uniform(1e-3, 0.05), run.start_supervisor)
        world.after(rng.choice((0.1, 0.3, 0.6)) * rng.uniform(0.3, 1.0), lambda: self._outlived(survivor))

    def _outlived(self, survivor: Process) -> None:
        if survivor in self.outliving:
            self.outliving.remove(survivor)
            self.world.tell(f"{survivor.name} of old is killed")
            survivor.kill()
