"""Faults that don't come by chance: each waits for a moment of the protocol, and then does what a rule is there for.

A moment is a crash point (voltpy.crash_point) that some process passes. Whatever is done about it happens at once, but
after the process has come to wait: what it was about to send has left, what it was about to flush may not be flushed.

    checkpoint in doubt         Prepare has left      the coordinator stands still, a partition that is in doubt makes a
                                                      checkpoint and dies
    heard by nobody             calls have written    nobody hears of it; the partition makes a checkpoint, and dies
    decided and gone            a Decide is obeyed    the partition loses its power, soon
    voted and gone              Prepare has left      one partition stands still, another one, which has voted, dies
    lent for too long           rows are lent         the coordinator stands still until the lease is over
    lent to the dead            rows are lent         the coordinator dies
    committed by one alone      a Commit is obeyed    the coordinator dies before it has told anybody
    told and gone               a decision is flushed the coordinator loses its power, soon
    a part has run              a joint's part ran    another partition stands still
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any

from tests.simulation.disk import Disk
from tests.simulation.world import Process, World

if TYPE_CHECKING:
    from tests.simulation.run import Run

AGAIN_S = 0.08  # at least, until the same ambush is laid again


class Ambush:
    """One kind of them, again and again in one run."""

    def __init__(self, run: Run, kind: str) -> None:
        self.kind = kind
        self._run = run
        self._point, self._spring = KINDS[kind]

    def lay(self) -> None:
        """At some time from now on the next one who passes by is caught."""
        self._run.world.after(self._run.world.rng.uniform(0.0, 0.1), self._wait)

    def _wait(self) -> None:
        self._run.world.ambushes[self._point] = self._caught

    def _caught(self, process: Process) -> None:
        world = self._run.world
        del world.ambushes[self._point]
        if self._run.is_troubled:
            world.fault(self.kind, process.name)
            world.after(0.0, lambda: self._spring(Scene(self._run, process)))
            world.after(world.rng.uniform(AGAIN_S, 3 * AGAIN_S), self.lay)


class Scene:
    """What an ambush can do. `process` is the one who was caught."""

    def __init__(self, run: Run, process: Process) -> None:
        self.run = run
        self.process = process
        self.world: World = run.world
        self.rng: Random = run.world.rng

    @property
    def coordinator(self) -> Process:
        return self.run.processes[f"p{self.run.options.partitions}"]

    def partitions(self) -> list[Process]:
        """In an order of chance."""
        alive = [self.run.processes[f"p{number}"] for number in range(self.run.options.partitions)]
        return self.rng.sample(alive, len(alive))

    def soon(self, least_s: float, most_s: float, action: Callable[[], None]) -> None:
        self.world.after(self.rng.uniform(least_s, most_s), lambda: self.run.is_troubled and action())

    def kill(self, process: Process, *, power: bool = False) -> None:
        if process.is_alive:
            self.world.tell(f"{process.name} is killed")
            disk: Disk | None = self.run.disks.get(process.name)
            process.kill()
            if power and disk is not None:
                disk.lose_power()

    def kill_after_checkpoint(self, partition: Process) -> None:
        server: Any = partition.server
        last = server._checkpointer.last.number
        server._checkpointer.request()
        partition.wake()
        self.until(lambda: server._checkpointer.last.number > last, 0.3, lambda: self.kill(partition))

    def until(self, is_so: Callable[[], bool], limit_s: float, action: Callable[[], None]) -> None:
        """Does it as soon as that is so, if it is so in time."""
        if is_so():
            action()
        elif limit_s > 0.0 and self.run.is_troubled:
            self.world.after(5e-4, lambda: self.until(is_so, limit_s - 5e-4, action))


def _checkpoint_in_doubt(scene: Scene) -> None:
    scene.coordinator.pause(0.4)
    partition = scene.partitions()[0]
    scene.until(
        lambda: partition.server is not None and bool(partition.server._loans._prepared),
        0.05,
        lambda: scene.kill_after_checkpoint(partition),
    )


def _heard_by_nobody(scene: Scene) -> None:
    for name in scene.run.processes:
        if name[0] == "c" or name == "router":
            scene.run.network.cut(name, scene.process.name, 0.3)
    scene.kill_after_checkpoint(scene.process)


def _decided_and_gone(scene: Scene) -> None:
    scene.soon(2e-4, 0.02, lambda: scene.kill(scene.process, power=True))


def _voted_and_gone(scene: Scene) -> None:
    slow, *others = scene.partitions()
    slow.pause(0.5)
    scene.soon(0.002, 0.008, lambda: scene.kill(others[0]))


def _lent_for_too_long(scene: Scene) -> None:
    scene.coordinator.pause(scene.rng.uniform(1.02, 2.0))


def _lent_to_the_dead(scene: Scene) -> None:
    scene.soon(0.0, 1e-3, lambda: scene.kill(scene.coordinator))


def _committed_by_one_alone(scene: Scene) -> None:
    scene.soon(0.0, 1e-3, lambda: scene.kill(scene.coordinator))


def _told_and_gone(scene: Scene) -> None:
    scene.soon(0.0, 2e-3, lambda: scene.kill(scene.coordinator, power=True))


def _a_part_has_run(scene: Scene) -> None:
    for other in [partition for partition in scene.partitions() if partition is not scene.process][:1]:
        other.pause(scene.rng.choice((0.02, 0.1, 0.4)))


KINDS: dict[str, tuple[str, Callable[[Scene], None]]] = {
    "checkpoint in doubt": ("coordinator.prepare.sent", _checkpoint_in_doubt),
    "heard by nobody": ("server.append.applied", _heard_by_nobody),
    "decided and gone": ("lending.decide.applied", _decided_and_gone),
    "voted and gone": ("coordinator.prepare.sent", _voted_and_gone),
    "lent for too long": ("lending.lent", _lent_for_too_long),
    "lent to the dead": ("lending.lent", _lent_to_the_dead),
    "committed by one alone": ("lending.commit.applied", _committed_by_one_alone),
    "told and gone": ("coordinator.decide.sent", _told_and_gone),
    "a part has run": ("coordinator.run_directed.sent", _a_part_has_run),
}
