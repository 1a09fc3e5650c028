"""Faults that don't come by chance: each waits for a moment of the protocol, and then does what a rule is there for.

A moment is a crash point (voltpy.crash_point) that some process passes. Who is to stand still does so as soon as it
waits for something. Who is to die does so when the process that was met waits for something: what that was about to
send has left, what it was about to flush may not be flushed.

    checkpoint in doubt         Prepare has left      the coordinator stands still, a partition that is in doubt makes a
                                                      checkpoint and dies
    heard by nobody             calls have written    nobody hears of it; the partition makes a checkpoint, and dies
    prepared and gone           a Prepare is obeyed   the partition loses its power at once
    a read comes late           a round is sent       one partition gets its part late
    read and gone               a round is sent       the same; meanwhile another one, which has read, dies
    decided and gone            a Decide is obeyed    the partition loses its power, soon
    borrowed in vain            a batch borrows again one of its partitions dies; every second time when the
                                                      coordinator tells somebody something meanwhile
    voted and gone              Prepare has left      one partition stands still, another one, which has voted, dies
    a table is lent             a table is lent       the coordinator stands still for a moment
    lent for too long           rows are lent         the coordinator stands still until the lease is over
    lent to the dead            rows are lent         the coordinator dies
    committed by one alone      a Commit is obeyed    the coordinator dies before it has told anybody
    told and gone               a decision is flushed the coordinator loses its power, soon
    a part has run              joint parts are sent  one partition gets its own late
    a part is of old            joint parts are sent  they come late, and their sessions end before that
    between two rounds          a second one is sent  it gets to the partitions late
    no room to decide           a Decide is obeyed    the disk is full for a moment

Where lives of one process meet (tests.simulation.lives), there are also:

    begun and gone              a first batch borrows the coordinator loses its power at once
    begun a life and gone       an epoch is raised    the process loses its power, soon
    attached too late           a round is sent       a session ends; as the next one is begun the coordinator dies, and
                                                      its Attach arrives in the middle of a round of its successor's
    stands still and is ended   a round is answered,  the coordinator stands still until the supervisor ends it, as if
                                replies wait for it   a call were running that never returns

Under conditions of their own (tests.simulation.conditions) there are also:

    in doubt, and on disk       a Prepare is obeyed   the coordinator stands still; meanwhile the pages of the partition
                                                      go to disk, and leave its memory
    in doubt for long           a Prepare is obeyed   the coordinator stands still for longer than calls may wait
    no room to prepare          a Prepare is obeyed   the disk is full for a moment

Where the schema changes, there are also:

    an index built and gone     an index is built     the partition loses its power, soon
    a view built and gone       a view is built       the same
    prepared a change and gone  a change is prepared  the same; or the coordinator dies
    stored, and one is gone     schema.json is there  one partition dies, or the coordinator, or the router
    one switches late           schema.json is there  one partition hears nothing of it, or the coordinator, or it
                                                      stands still; where holds are short, all hear late of it
    switched and gone           a partition switches  it loses its power, soon
    switched in vain            the coordinator does  it dies
    not stored                  it is to be stored    the disk fails, or is full
    stored, not flushed         it is to be stored    its name can't be flushed; the processes start anew with what is
                                                      there; then the machine loses its power
    the machine stops           it is to be stored    everything stops, in the middle of that or right before or after
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any

from tests.partitions.faulty_disk import CUT, EIO, ENOSPC
from tests.simulation.conditions import HOLD_LEASE_S, SHORT_HOLDS
from tests.simulation.disk import Disk
from tests.simulation.network import Line
from tests.simulation.schema_changes import COLUMN
from tests.simulation.world import Process, World
from voltpy.messages import HOLD_S

if TYPE_CHECKING:
    from tests.simulation.run import Run

POINT_OF_ROUNDS = "coordinator.read.before_send"
TABLES_OF_LISTS = (0, 1)  # lists and elements: in which a list has its place, and most is appended to
LOOK_S = 1e-3  # between two looks at whether something is so
AGAIN_S = 0.08  # at least, until the same ambush is laid again


class Ambush:
    """One kind of them, again and again in one run."""

    def __init__(self, run: Run, kind: str) -> None:
        self.kind = kind
        self._run = run
        point, self._spring = (KINDS | SCHEMA_KINDS | LIFE_KINDS | KINDS_OF_CONDITIONS)[kind]
        self._point, self._next_point = point, TURNS.get(kind, point)
        self._fits = FITTING.get(kind, lambda process: True)

    def lay(self, within_s: float = 0.1) -> None:
        """At some time from now on the next one who passes by is caught."""
        self._run.ledger.kinds = {**self._run.ledger.kinds, **CALLS.get(self.kind, {})}
        if self._run.changes is not None:
            self._run.changes.kinds = {**self._run.changes.kinds, **STATEMENTS.get(self.kind, {})}
        self._run.world.after(self._run.world.rng.uniform(0.0, within_s), self._wait)

    def _wait(self) -> None:
        self._run.world.ambushes[self._point].append(self._caught)

    def _caught(self, process: Process) -> None:
        world = self._run.world
        if not self._fits(process):
            return
        world.ambushes[self._point].remove(self._caught)
        if self._run.is_troubled:
            world.fault(self.kind, process.name)
            self._spring(Scene(self._run, process))
            self._point, self._next_point = self._next_point, self._point
            again_s = SELDOM_S.get(self.kind, AGAIN_S)
            world.after(world.rng.uniform(again_s, 3 * again_s), self.lay)


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

    def read_by_the_round(self) -> list[Process]:
        """The partitions in which the coordinator's round reads lists, in an order of chance."""
        numbers = _read_by_the_round(self.process)
        return [self.run.processes[f"p{number}"] for number in self.rng.sample(numbers, len(numbers))]

    def kill(self, process: Process, *, power: bool = False) -> None:
        """When nobody runs."""

        def happen() -> None:
            if process.is_alive:
                self.world.tell(f"{process.name} is killed")
                disk: Disk | None = self.run.disks.get(process.name)
                process.kill()
                if power and disk is not None:
                    disk.lose_power()

        self.world.after(0.0, happen)

    def kill_after_checkpoint(self, partition: Process) -> None:
        server: Any = partition.server
        last = server._checkpointer.last.number
        server._checkpointer.request()
        partition.wake()
        self.until(lambda: server._checkpointer.last.number > last, 0.3, lambda: self.kill(partition))

    def take_memory(self) -> None:
        """As soon as its pages are on disk, the process takes so much memory for a moment that they have to leave."""
        partition, server = self.process, self.process.server
        if server is None or not partition.is_alive:
            return
        pool, checkpointer = server._pool, server._checkpointer
        last, before = checkpointer.last.number, pool.evictions

        def takes(more_bytes: int) -> None:
            partition.more_bytes = more_bytes
            pool._others_bytes.clear()  # of which the least counts
            server._steer_s = 0.0
            partition.wake()

        def over() -> None:
            takes(0)
            if pool.evictions > before:
                self.world.fault("pages leave", partition.name)

        def begin() -> None:
            self.world.fault("memory is short", partition.name)
            takes(1 << 30)
            self.world.after(self.rng.uniform(0.005, 0.05), over)

        checkpointer.request()
        partition.wake()
        self.until(lambda: checkpointer.last.number > last, 0.2, begin)

    def once(self, point: str, fits: Callable[[Process], bool], action: Callable[[Process], None]) -> None:
        """Does it to the next one who passes by and fits."""

        def caught(process: Process) -> None:
            if self.run.is_troubled and fits(process):
                self.world.ambushes[point].remove(caught)
                action(process)

        self.world.ambushes[point].append(caught)

    def until(self, is_so: Callable[[], bool], limit_s: float, action: Callable[[], None]) -> None:
        """Does it as soon as that is so, if it is so in time."""
        if is_so():
            action()
        elif limit_s > 0.0 and self.run.is_troubled:
            self.world.after(LOOK_S, lambda: self.until(is_so, limit_s - LOOK_S, action))


def _checkpoint_in_doubt(scene: Scene) -> None:
    scene.coordinator.pause(0.4)
    partition = scene.partitions()[0]
    scene.until(
        lambda: partition.server is not None and bool(partition.server._participant._in_doubt),
        0.05,
        lambda: scene.kill_after_checkpoint(partition),
    )


def _heard_by_nobody(scene: Scene) -> None:
    for name in scene.run.processes:
        if name[0] == "c" or name == "router":
            scene.run.network.cut(name, scene.process.name, 0.3)
    scene.kill_after_checkpoint(scene.process)


def _prepared_and_gone(scene: Scene) -> None:
    scene.soon(0.0, 1e-3, lambda: scene.kill(scene.process, power=True))


def _a_read_comes_late(scene: Scene) -> None:
    time_s = scene.rng.choice((0.005, 0.02, 0.1, 0.3, 0.45))
    scene.run.network.cut(scene.coordinator.name, scene.read_by_the_round()[0].name, time_s)


def _read_and_gone(scene: Scene) -> None:
    late, gone, *_ = scene.read_by_the_round()
    time_s = scene.rng.uniform(0.6, 0.95) * HOLD_S
    scene.run.network.cut(scene.coordinator.name, late.name, time_s)
    scene.soon(2e-3, 0.03, lambda: scene.kill(gone))


def _decided_and_gone(scene: Scene) -> None:
    scene.soon(2e-4, 0.02, lambda: scene.kill(scene.process, power=True))


def _borrowed_in_vain(scene: Scene) -> None:
    batch = scene.process.server.core.batches.borrowing
    partition = scene.run.processes[f"p{scene.rng.choice(sorted(batch.participants))}"]
    scene.soon(0.0, 1e-3, lambda: scene.kill(partition))


def _voted_and_gone(scene: Scene) -> None:
    slow, *others = scene.partitions()
    slow.pause(0.5)
    scene.soon(0.002, 0.008, lambda: scene.kill(others[0]))


def _a_table_is_lent(scene: Scene) -> None:
    scene.coordinator.pause(scene.rng.choice((0.02, 0.1)))


def _lent_for_too_long(scene: Scene) -> None:
    scene.coordinator.pause(scene.rng.uniform(1.02, 1.9))


def _lent_to_the_dead(scene: Scene) -> None:
    scene.soon(0.0, 1e-3, lambda: scene.kill(scene.coordinator))


def _committed_by_one_alone(scene: Scene) -> None:
    scene.soon(0.0, 1e-3, lambda: scene.kill(scene.coordinator))


def _told_and_gone(scene: Scene) -> None:
    if scene.rng.random() < 0.5:  # one partition knows, another one asks
        scene.run.network.cut(scene.coordinator.name, scene.partitions()[0].name, 0.02)
    scene.soon(0.0, 2e-3, lambda: scene.kill(scene.coordinator, power=True))


def _a_part_has_run(scene: Scene) -> None:
    late, time_s = scene.partitions()[0], scene.rng.choice((0.1, 1.2))
    scene.run.network.cut(scene.coordinator.name, late.name, time_s)


def _a_part_is_of_old(scene: Scene) -> None:
    for line in scene.run.network.connections:
        if line.caller is scene.process and scene.rng.random() < 0.7:
            line.duplicates = 1.0  # which ends the session with the next report
            line.stall(scene.rng.uniform(0.06, 0.2))


def _between_two_rounds(scene: Scene) -> None:
    time_s = scene.rng.choice((0.02, 0.05, 0.1))
    for partition in scene.partitions():
        scene.run.network.cut(scene.coordinator.name, partition.name, time_s)


def _no_room_to_decide(scene: Scene) -> None:
    disk = scene.run.disks[scene.process.name]
    disk.fail_next("pwrite wal", ENOSPC)
    scene.world.after(scene.rng.uniform(0.02, 0.2), disk.make_room)


def _no_room_to_prepare(scene: Scene) -> None:
    disk = scene.run.disks[scene.process.name]
    disk.fail_next("pwrite wal", ENOSPC)
    scene.world.after(scene.rng.uniform(0.005, 0.05), disk.make_room)


def _in_doubt_for_long(scene: Scene) -> None:
    scene.coordinator.pause(scene.rng.uniform(1.0, 1.6))


def _in_doubt_and_on_disk(scene: Scene) -> None:
    scene.coordinator.pause(0.25)
    scene.take_memory()


def _built_and_gone(scene: Scene) -> None:
    scene.soon(0.0, 2e-3, lambda: scene.kill(scene.process, power=True))


def _prepared_a_change_and_gone(scene: Scene) -> None:
    victim = scene.rng.choice((scene.process, scene.process, scene.coordinator))
    scene.soon(0.0, 3e-3, lambda: scene.kill(victim, power=True))


def _stored_and_one_is_gone(scene: Scene) -> None:
    victim = scene.rng.choice((*scene.partitions(), scene.coordinator, scene.run.processes["router"]))
    scene.soon(0.0, 1e-3, lambda: scene.kill(victim, power=True))


def _one_switches_late(scene: Scene) -> None:
    workers = [*scene.partitions(), scene.coordinator]
    late, time_s = [scene.rng.choice(workers)], scene.rng.choice((0.02, 0.2, 0.7))
    if SHORT_HOLDS in scene.run.conditions:
        late, time_s = workers, HOLD_LEASE_S + scene.rng.uniform(0.02, 0.2)
    if scene.rng.random() < 0.7 or len(late) > 1:  # it works on, and does not know yet
        for process in late:
            scene.run.network.cut("supervisor", process.name, time_s)
    else:
        late[0].pause(time_s)


def _switched_and_gone(scene: Scene) -> None:
    scene.soon(0.0, 5e-4, lambda: scene.kill(scene.process, power=True))


def _switched_in_vain(scene: Scene) -> None:
    scene.soon(0.0, 5e-4, lambda: scene.kill(scene.coordinator, power=True))


def _begun_and_gone(scene: Scene) -> None:
    scene.soon(0.0, 1e-3, lambda: scene.kill(scene.process, power=True))


def _begun_a_life_and_gone(scene: Scene) -> None:
    scene.soon(5e-4, 0.02, lambda: scene.kill(scene.process, power=True))


def _attached_too_late(scene: Scene) -> None:
    network, coordinator = scene.run.network, scene.process
    lost = scene.read_by_the_round()[0]

    def line_to(partition: Process) -> Line | None:
        lines = [line for line in network.connections if line.caller is coordinator]
        return next((line for line in reversed(lines) if line.door_name == partition.name), None)

    def begins_anew(process: Process) -> bool:
        return process is coordinator and (line := line_to(lost)) is not None and line.peer is None

    def dies(_: Process) -> None:
        line = line_to(lost)
        assert line is not None
        line.hold()
        scene.soon(1e-3, 5e-3, lambda: scene.kill(coordinator))
        scene.once(POINT_OF_ROUNDS, reads_there, lambda successor: arrives(successor, line))

    def reads_there(process: Process) -> bool:
        numbers = _read_by_the_round(process)
        return process is not coordinator and len(numbers) > 1 and int(lost.name[1:]) in numbers

    def arrives(successor: Process, line: Line) -> None:
        late = next(each for each in Scene(scene.run, successor).read_by_the_round() if each is not lost)
        network.cut(successor.name, late.name, scene.rng.uniform(0.12, 0.22))
        scene.soon(5e-3, 0.03, line.let_go)

    line = line_to(lost)
    if line is not None:
        scene.once("simulation.connecting", begins_anew, dies)
        scene.soon(0.0, 1e-3, line.break_)


def _stands_still_and_is_ended(scene: Scene) -> None:
    scene.process.pause(0.7)


_STORING = ("create catalog", "pwrite catalog", "fsync catalog", "rename catalog", "fsync directory")


def _not_stored(scene: Scene) -> None:
    disk = scene.run.catalog_disk
    assert disk is not None
    call = scene.rng.choice(_STORING)
    disk.fail_next(call, scene.rng.choice((EIO, ENOSPC) if call != "fsync directory" else (EIO,)))
    scene.world.after(scene.rng.uniform(0.02, 0.2), disk.make_room)


def _stored_and_not_flushed(scene: Scene) -> None:
    disk, run = scene.run.catalog_disk, scene.run
    assert disk is not None
    disk.fail_next("fsync directory", EIO)
    run.machine_keeps_power = True
    before = run.supervisor
    scene.until(
        lambda: run.supervisor is not before and run.is_ready,
        0.5,
        lambda: scene.soon(0.05, 0.3, run.stop_machine),
    )


def _the_machine_stops(scene: Scene) -> None:
    disk = scene.run.catalog_disk
    assert disk is not None
    if scene.rng.random() < 0.7:
        disk.fail_next(scene.rng.choice(_STORING), CUT)
    else:
        scene.process.doom("point", 1)  # where it is now
        scene.world.after(0.0, scene.run.stop_machine)


KINDS: dict[str, tuple[str, Callable[[Scene], None]]] = {
    "checkpoint in doubt": ("coordinator.prepare.sent", _checkpoint_in_doubt),
    "heard by nobody": ("server.append.applied", _heard_by_nobody),
    "prepared and gone": ("participant.prepare.appended", _prepared_and_gone),
    "a read comes late": (POINT_OF_ROUNDS, _a_read_comes_late),
    "read and gone": (POINT_OF_ROUNDS, _read_and_gone),
    "decided and gone": ("participant.decide.applied", _decided_and_gone),
    "borrowed in vain": ("coordinator.borrow.sent", _borrowed_in_vain),
    "voted and gone": ("coordinator.prepare.sent", _voted_and_gone),
    "a table is lent": ("participant.lent", _a_table_is_lent),
    "lent for too long": ("participant.lent", _lent_for_too_long),
    "lent to the dead": ("participant.lent", _lent_to_the_dead),
    "committed by one alone": ("participant.commit.applied", _committed_by_one_alone),
    "told and gone": ("coordinator.decide.before_send", _told_and_gone),
    "a part has run": ("coordinator.run_directed.before_send", _a_part_has_run),
    "a part is of old": ("coordinator.run_directed.before_send", _a_part_is_of_old),
    "between two rounds": (POINT_OF_ROUNDS, _between_two_rounds),
    "no room to decide": ("participant.decide.before_append", _no_room_to_decide),
}

# Under conditions of their own (tests.simulation.conditions).
KINDS_OF_CONDITIONS: dict[str, tuple[str, Callable[[Scene], None]]] = {
    "in doubt, and on disk": ("participant.prepare.appended", _in_doubt_and_on_disk),
    "in doubt for long": ("participant.prepare.appended", _in_doubt_for_long),
    "no room to prepare": ("participant.prepare.before_append", _no_room_to_prepare),
}

# Where the schema changes.
SCHEMA_KINDS: dict[str, tuple[str, Callable[[Scene], None]]] = {
    "an index built and gone": ("schema_change.index_built", _built_and_gone),
    "a view built and gone": ("schema_change.view_built", _built_and_gone),
    "prepared a change and gone": ("server.load.prepared", _prepared_a_change_and_gone),
    "stored, and one is gone": ("supervisor.persist.after", _stored_and_one_is_gone),
    "one switches late": ("supervisor.persist.after", _one_switches_late),
    "switched and gone": ("server.load.switched", _switched_and_gone),
    "switched in vain": ("coordinator.load.switched", _switched_in_vain),
    "not stored": ("supervisor.persist.before", _not_stored),
    "stored, not flushed": ("supervisor.persist.before", _stored_and_not_flushed),
    "the machine stops": ("supervisor.persist.before", _the_machine_stops),
}

# Where lives of one process meet.
LIFE_KINDS: dict[str, tuple[str, Callable[[Scene], None]]] = {
    "attached too late": (POINT_OF_ROUNDS, _attached_too_late),
    "begun and gone": ("coordinator.borrow.sent", _begun_and_gone),
    "stands still and is ended": ("simulation.believing", _stands_still_and_is_ended),
    "begun a life and gone": ("record_log.begin.epoch_raised", _begun_a_life_and_gone),
}

# Those that wait at two points by turns, and the second one: of a batch that is not over nobody is told anything, so a
# sound build seldom comes by.
TURNS = {"borrowed in vain": "coordinator.reply.after", "the machine stops": "supervisor.persist.after"}

# What clients call more often, so that it is there to be caught, and to be seen by others.
CALLS: dict[str, dict[str, float]] = {
    "a part has run": {"append_copies": 3.0, "transact_one": 60.0},
    "a part is of old": {"append_copies": 6.0, "transact": 12.0},
    "a table is lent": {"transact": 12.0, "transact_one": 40.0},
    "a read comes late": {"look": 9.0, "transact_one": 12.0},
    "borrowed in vain": {"transact": 25.0, "transact_and_give_up": 25.0, "transact_one": 12.0},
    "attached too late": {"look": 12.0, "transact_one": 30.0},
    "read and gone": {"look": 6.0, "transact_one": 40.0, "look_at_one": 20.0},
    "between two rounds": {"look_along": 12.0, "transact_one": 40.0},
    "in doubt for long": {"transact_one": 60.0, "look_at_one": 20.0},
    "lent for too long": {"transact": 9.0, "transact_one": 12.0, "transfer": 9.0},
    "no room to decide": {"transact": 9.0, "look": 9.0},
}

# The same of what is asked for where the schema changes.
STATEMENTS: dict[str, dict[str, float]] = {
    "one switches late": {COLUMN: 12.0},
    "stored, not flushed": {COLUMN: 12.0},
}

# Where somebody looks on meanwhile who calls in one partition only: whoever does more waits until it is over.
LOOKED_ON = frozenset(
    {"a read comes late", "read and gone", "attached too late", "one switches late", "stored, not flushed"}
)

# Those that go on for longer before they may come again than AGAIN_S.
SELDOM_S = {"attached too late": 0.4}
# And those beside which others would come in between.
ALONE = frozenset({"attached too late"})

# How many calls return at least before it is over, and for how many seconds more it lasts, where a run needs longer.
LONG: dict[str, tuple[int, float]] = {
    "a part has run": (300, 1.5),
    "a read comes late": (300, 1.0),
    "read and gone": (300, 1.0),
    "attached too late": (300, 1.0),
    "a table is lent": (300, 0.5),
    "between two rounds": (300, 0.5),
    "borrowed in vain": (300, 0.5),
    "lent for too long": (600, 2.0),
}


def _borrows_again(coordinator: Process) -> bool:
    batch = coordinator.server.core.batches.borrowing
    return batch is not None and batch.first_writer() is not None and bool(batch.participants)


def _reads_in_several(coordinator: Process) -> bool:
    return len(_read_by_the_round(coordinator)) > 1


def _read_by_the_round(coordinator: Process) -> list[int]:
    round_ = coordinator.server.core.reads.round
    fetches = {} if round_ is None else round_.fetches
    return sorted(
        partition
        for partition, fetch in fetches.items()
        if any(asked.table in TABLES_OF_LISTS for asked in (*fetch.keys, *fetch.scans))
    )


def _has_only_begun(coordinator: Process) -> bool:
    return not coordinator.server.core.counts["batches"]


def _reads_again(coordinator: Process) -> bool:
    round_ = coordinator.server.core.reads.round
    return round_ is not None and any(call.tries for call in round_.calls)


# Whether whoever passes by is the one who is waited for, where not everybody is.
FITTING: dict[str, Callable[[Process], bool]] = {
    "a read comes late": _reads_in_several,
    "attached too late": _reads_in_several,
    "read and gone": _reads_in_several,
    "borrowed in vain": _borrows_again,
    "begun and gone": _has_only_begun,
    "stands still and is ended": lambda process: bool(process.server.core.callers._answers),
    "a table is lent": lambda process: bool(process.server._participant._loans.lent_tables),
    "between two rounds": _reads_again,
}
