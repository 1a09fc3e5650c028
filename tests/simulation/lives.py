"""What the lives of one process owe to one another: in runs of `--lives`, beside all that can fail in others.

    outlived               the supervisor and all its processes are gone but one, a partition or the coordinator: it
                           works on for those that it knows, while the next supervisor starts another life of it
    begun and gone,        a life ends in a power cut, and all that it has made durable is its epoch
    begun a life and gone  (tests.simulation.ambush)

What was sent over a stream arrives though its sender is dead, as the kernel has it. And a partition that was told that
a coordinator is dead is asked right after that what it has lent.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any

from tests.simulation.ambush import LIFE_KINDS, Ambush
from tests.simulation.world import Process

if TYPE_CHECKING:
    from tests.simulation.run import Run
    from voltpy.errors import ClusterError

OUTLIVED_EVERY_S = 0.4
FAULTS = ("outlived", "refused a second life", "asked after a coordinator's death")  # beside those that wait for it


class Lives:
    """Of one run. `violations`: what no life may do to another."""

    def __init__(self, run: Run) -> None:
        self.violations: list[str] = []
        self.outliving: list[Process] = []  # whose supervisor is gone
        self._run = run
        self._world = run.world
        self._rng = Random(f"lives {run.world.seed}")  # the rest of the run is as it would be without
        run.network.delivers_what_the_dead_sent = True

    def begin(self) -> None:
        """The trouble begins."""
        run, rng = self._run, self._rng
        for kind in rng.sample(sorted(LIFE_KINDS), rng.choice((0, 1, 1))):
            Ambush(run, kind).lay(within_s=0.05)
        if rng.random() < 0.5:
            self._next_outlived()

    def end(self) -> None:
        """Nobody outlives the machine, or the trouble."""
        while self.outliving:
            self.outliving.pop().kill()

    def another_lives(self, process: Process) -> bool:
        """Whether another life of it goes on: then the machine has power, and the disk is in use."""
        lives = (*self.outliving, self._run.processes.get(process.name))
        return any(
            life is not None and life is not process and life.name == process.name and life.is_alive for life in lives
        )

    # What no life may do to another.

    def told_of_the_dead(self, partition: int, metrics: dict[str, Any]) -> None:
        """What a partition says right after it was told that the coordinator is dead, while there is no other."""
        self._world.faults["asked after a coordinator's death"] += 1
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
        self._world.fault("refused a second life", process.name)
        return True

    # Faults.

    def _next_outlived(self) -> None:
        self._world.after(self._rng.expovariate(1 / OUTLIVED_EVERY_S), self._outlive)

    def _outlive(self) -> None:
        run, rng, world = self._run, self._rng, self._world
        if not run.is_troubled:
            return
        self._next_outlived()
        supervisor = run.processes["supervisor"]
        names = [f"p{number}" for number in range(run.options.partitions + 1)]
        alive = [run.processes[name] for name in names if name in run.processes and run.processes[name].is_alive]
        alive = [process for process in alive if process.server is not None]
        if not supervisor.is_alive or not alive or self.outliving:
            return
        survivor = rng.choice(alive)
        world.fault("outlived", survivor.name)
        self.outliving.append(survivor)
        run.network.cast_out(survivor)
        supervisor.kill()
        run.network.process_died(supervisor)
        for name in [*names, "router"]:
            if name in run.processes and run.processes[name] is not survivor:
                run.processes[name].kill()
        world.after(rng.uniform(1e-3, 0.05), run.start_supervisor)
        world.after(rng.choice((0.05, 0.2, 0.5)) * rng.uniform(0.3, 1.0), lambda: self._outlived(survivor))

    def _outlived(self, survivor: Process) -> None:
        if survivor in self.outliving:
            self.outliving.remove(survivor)
            self._world.tell(f"{survivor.name} of old is killed")
            survivor.kill()
