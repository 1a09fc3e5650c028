"""One run: a cluster comes up, clients call while everything that can fail fails, all is mended, and it is judged.

begin     until the cluster is ready; the bank's accounts are opened
trouble   clients call; faults of a few kinds, drawn for this run, happen at random, or when a process comes to
          where it is waited for
peace     nothing fails any more; every call that is under way must be answered
judgement the lists and the bank are read, and the history goes to the checker

Where the schema changes meanwhile (tests.simulation.schema_changes), one more client asks for that, during the trouble;
and at the end all processes must have one schema, with all that it must have, and everything agrees with the rows.
"""

from __future__ import annotations

import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from tests.partitions.faulty_disk import CUT, EIO, ENOSPC, PowerCut
from tests.simulation import pastime
from tests.simulation.ambush import ALONE, LONG, LOOKED_ON, SCHEMA_KINDS, Ambush, Scene
from tests.simulation.ambush import KINDS as AMBUSHES
from tests.simulation.checker import check
from tests.simulation.conditions import AMBUSHES as AMBUSHES_OF
from tests.simulation.conditions import (
    CROWD,
    CROWD_ANSWER_S,
    FILL,
    LITTLE_MEMORY,
    LITTLE_MEMORY_BYTES,
    LITTLE_PATIENCE,
    MANY_CALLERS,
    SHORT_EVERY_S,
    SHORT_HOLDS,
    conditions_of,
    conditions_of_changes,
    crowd_of,
    in_place,
)
from tests.simulation.disk import Disk
from tests.simulation.fairness import Fairness
from tests.simulation.lives import Lives
from tests.simulation.network import Network
from tests.simulation.processes import Options, Supervisor, run_coordinator, run_partition, run_router
from tests.simulation.schema_changes import Changes
from tests.simulation.stage import Stage
from tests.simulation.workload import IN_ONE_PARTITION, Call, Client, Ledger
from tests.simulation.world import Killed, Process, World, choose
from voltpy.child import ROUTER
from voltpy.data_directory import DataDirectory
from voltpy.errors import ClusterError, Corruption
from voltpy.hash_slot import hash_slot, slot_owners
from voltpy.messages import Runaway

HERE = Path(__file__).parent
READY_S = 20.0
ANSWER_S = 30.0  # in peace, everything is answered by then
KINDS = {
    "transact_one": 5.0, "look_at_one": 3.0, "transact": 6.0, "transact_and_give_up": 1.0, "look": 3.0,
    "look_along": 1.0, "transact_anywhere": 1.0, "look_anywhere": 1.0, "append_copies": 1.0, "transfer": 3.0,
    "total": 2.0, "total_of_all": 1.0,
}  # fmt: skip
BY_VIEWS = {"total_by_view": 2.0}  # where the schema changes
FAULTS = {
    "kill": 3.0, "kill at a step": 3.0, "torn write": 1.5, "power cut": 0.7, "pause": 2.0, "cut": 1.5, "break": 2.0,
    "slow": 1.0, "EIO": 1.0, "ENOSPC": 1.0, "restart all": 0.4,
    "duplicate frame": 1.0,
}  # fmt: skip


class Result(NamedTuple):
    """`violations`: empty where all is as promised."""

    seed: int
    violations: list[str]
    faults: dict[str, int]
    outcomes: dict[str, int]
    done: dict[str, int]
    transactions: int
    simulated_s: float
    events: int
    changes: dict[tuple[str, str], int]  # of the schema: (statement, what became of it, or whose death met it)


class Run:
    """`seed` decides everything. `trace` prints what happens. `changes_schema`: the schema changes meanwhile.

    `lives`: lives of one process meet, end by what they run, and are copied while they last (tests.simulation.lives).
    """

    def __init__(
        self, stage: Stage, seed: int, *, trace: bool = False, changes_schema: bool = False, lives: bool = False
    ) -> None:
        self.world = world = World(seed)
        self.network = Network(world)
        stage.world, stage.network = world, self.network
        rng = world.rng
        self.options = Options(
            partitions=rng.choice((1, 2, 2, 2, 2, 2, 3, 3, 3)),
            data=Path(),
            segment_bytes=rng.choice((1 << 12, 1 << 14, 1 << 16)),
            checkpoint_bytes=rng.choice((1 << 12, 1 << 14, 1 << 30)),
            window_bytes=rng.choice((1 << 12, 1 << 20)),
            fsync="always",
        )
        if trace:
            world.trace = lambda text: print(text, flush=True)
        kinds = KINDS if self.options.partitions > 1 else IN_ONE_PARTITION
        self.conditions = frozenset() if changes_schema or lives else conditions_of(seed, self.options.partitions)
        if changes_schema:
            self.conditions = conditions_of_changes(seed)
        if CROWD in self.conditions:
            kinds = crowd_of(seed).kinds
        if LITTLE_MEMORY in self.conditions:
            self.options = self.options._replace(memory_bytes=LITTLE_MEMORY_BYTES)
            kinds = {**kinds, "fill": FILL}
        accounts = crowd_of(seed).accounts if CROWD in self.conditions else 4
        self.ledger = Ledger(rng, kinds=kinds, lists=rng.choice((2, 3, 6)), accounts=accounts)
        self.processes: dict[str, Process] = {}
        self.disks: dict[str, Disk] = {}
        self.clients: list[Client] = []
        self.violations: list[str] = []
        self.is_troubled = self.is_over = False
        self.machine_keeps_power = False  # when it stops for the next time
        self.loses_power = rng.random() < 0.5  # whoever dies may have lost what it had not flushed
        self.fairness = Fairness(self)
        self.ledger.told = self.fairness.told
        self._limits = ExitStack()  # those that the conditions set, until it is judged
        self._supervisors = 0
        self.supervisor: Supervisor | None = None
        self.catalog_disk: Disk | None = None  # where the schema is, and may change
        self.changes: Changes | None = None
        self.lives = self.ledger.lives = pastime.lives = Lives(self) if lives else None
        if changes_schema:
            self.changes = self.ledger.changes = Changes(seed, self.ledger)
            world.build_pace = self.changes.rng.choice((1.0, 1.0, 0.15, 0.03))
            if self.options.partitions > 1:
                self.ledger.kinds = {**self.ledger.kinds, **BY_VIEWS}

    def __call__(self) -> Result:
        world = self.world
        directory = Path(
            tempfile.mkdtemp(prefix="voltpy-simulation-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
        )
        try:
            with ExitStack() as stack:
                stack.enter_context(self._limits)
                self._limits.enter_context(in_place(self.conditions))
                for number in range(self.options.partitions + 1):
                    place = directory / f"p{number}"
                    place.mkdir()
                    self.disks[f"p{number}"] = stack.enter_context(Disk(world, place))
                self.options = self.options._replace(data=directory / "data")
                if self.changes is not None:
                    self.catalog_disk = stack.enter_context(Disk(world, self.options.data))
                text = (HERE / "list_append.sql").read_text(encoding="utf-8")
                procedures = HERE / ("list_append.py" if self.lives is None else "long_calls.py")
                DataDirectory.open(self.options.data, self.options.partitions, text, procedures).close()
                if self.lives is not None:
                    self.lives.lay_out()
                self._run()
                self.is_over = True
                for process in list(self.processes.values()):
                    process.kill()
                if self.lives is not None:
                    self.lives.end()
        finally:
            pastime.lives = None
            shutil.rmtree(directory, ignore_errors=True)
        self.violations += self.fairness.violations
        self.ledger.look_up_lengths()
        self.violations += self.ledger.violations
        if self.changes is not None:
            self.violations += self.changes.judge_reads()
        if self.lives is not None:
            self.violations += self.lives.judged()
        if self.supervisor is not None:
            self.violations += self.supervisor.failures
        self.violations += [str(anomaly) for anomaly in check(self.ledger.transactions)]
        return Result(
            world.seed,
            self.violations,
            dict(world.faults),
            self.ledger.outcomes,
            self.ledger.done,
            len(self.ledger.transactions),
            world.now_s,
            world._counted,
            {} if self.changes is None else dict(self.changes.counts),
        )

    def _run(self) -> None:
        world, rng = self.world, self.world.rng
        self.start_supervisor()
        if not world.run(lambda: self.is_ready, READY_S):
            self.violations.append("the cluster did not get ready")
            return
        for number in range(rng.choice((1, 2, 3))):
            client = Client(
                world,
                self.ledger,
                100 + number,
                affinity=rng.random() < 0.7,
                retry_s=rng.choice((0.0, 3.0)),
                callers=MANY_CALLERS if self.conditions & {CROWD, LITTLE_PATIENCE} else rng.choice((2, 4, 8)),
            )
            if CROWD in self.conditions:
                client.think_s, client.timeout_s = 0.001, CROWD_ANSWER_S
            self.clients.append(client)
            self.start(f"c{number}", client.run)
        first = self.clients[0]
        first.queued = self.ledger.open_accounts()
        if self.changes is not None:
            first.queued += self.changes.fill()
        opened = len(first.queued)
        world.run(lambda: first.is_done, READY_S)
        if self.ledger.outcomes != {"ok": opened}:
            self.violations.append("the accounts were not opened")
            return
        life_ambushes = [] if self.lives is None else self.lives.ambushes
        ambushes = [] if ALONE.intersection(life_ambushes) else self._ambushes()
        schema_ambushes = self._schema_ambushes()
        if LOOKED_ON.intersection(ambushes + schema_ambushes + life_ambushes):
            self._add_onlooker()
        if self.changes is not None:
            changing = Client(
                world,
                self.ledger,
                99,
                affinity=rng.random() < 0.5,
                retry_s=rng.choice((0.0, 3.0)),
                callers=rng.choice((1, 1, 2)),
            )
            changing.next_call, changing.settled = self.changes.next_call, self.changes.settled
            changing.timeout_s = rng.choice((0.3, 2.0, 10.0))
            self.clients.append(changing)
            self.start(f"c{len(self.clients) - 1}", changing.run)
            # In front of the other half, and behind it, are rows that will change.
            more = self.changes.fill()
            world.after(rng.uniform(0.0, 0.2), lambda: first.queued.extend(more if self.is_troubled else ()))
        for number, client in enumerate(self.clients):
            client.calling = True
            self.processes[f"c{number}"].wake()
        if LITTLE_MEMORY in self.conditions:
            first.queued += self.ledger.begin_lists()
            first.queued += [self.ledger.fill(self.ledger.next_number()) for _ in range(2 * self.options.partitions)]
        self.is_troubled = True
        kinds = rng.sample(sorted(FAULTS), rng.randrange(1, len(FAULTS)))
        every_s = rng.choice((0.02, 0.06, 0.2))
        enough, time_s = rng.choice((60, 120, 250)), rng.uniform(0.3, 2.0)
        for condition in sorted(self.conditions):
            world.fault(condition)
            if condition in AMBUSHES_OF:
                Ambush(self, AMBUSHES_OF[condition]).lay(within_s=0.03)
        if LITTLE_MEMORY in self.conditions:
            self._memory_is_short_now_and_then()
        if CROWD in self.conditions:
            kinds, enough, time_s = [], crowd_of(world.seed).calls, 3.0
        if ambushes or ALONE.intersection(life_ambushes):
            # What the rules are there for is rare: more of that, and less of what comes by chance, or nothing.
            for kind in ambushes:
                Ambush(self, kind).lay(within_s=0.03)  # the shortest runs are over after a tenth of a second
            kinds = kinds[: rng.choice((0, 0, 1, 3))]
        longer = [LONG[kind] for kind in (*ambushes, *life_ambushes) if kind in LONG]
        enough = max([enough, *(calls for calls, _ in longer)])
        time_s += max([0.0, *(seconds for _, seconds in longer)])
        if self.changes is not None:
            enough, time_s = max(enough, 500), time_s + 1.0
            if not ambushes:
                kinds = kinds[: rng.choice((0, 0, 1, 3))]
            for client in self.clients[:-1]:
                client.think_s = min(client.think_s, 0.002)
            for kind in schema_ambushes:
                Ambush(self, kind).lay(within_s=0.1)
        if self.lives is not None:
            self.lives.begin()
        if kinds:
            self._next_fault({kind: FAULTS[kind] for kind in kinds}, every_s)
        returned, unfair = self.ledger.outcomes, self.fairness.violations
        world.run(lambda: returned.get("ok", 0) > enough or bool(unfair), time_s)
        if unfair:
            return  # some of these would go on for ever
        self._make_peace()
        for client in self.clients:
            client.calling = False
        if not world.run(lambda: all(client.is_done for client in self.clients), ANSWER_S):
            pending = sum(client.under_way for client in self.clients)
            self.violations.append(f"{pending} calls have not been answered {ANSWER_S:g} s after peace")
        self._judge()

    def _add_onlooker(self) -> None:
        world = self.world
        onlooker = Client(world, self.ledger, 98, affinity=world.rng.random() < 0.7, retry_s=3.0, callers=4)
        onlooker.next_call = self.ledger.next_call_in_one_partition
        onlooker.think_s = 0.003
        self.clients.append(onlooker)
        self.start(f"c{len(self.clients) - 1}", onlooker.run)

    def _ambushes(self) -> list[str]:
        """The kinds that are laid in this run: one or two in most, none in some."""
        seed, all_kinds = self.world.seed, sorted(AMBUSHES)
        if self.options.partitions == 1 or seed % 5 == 4 or (self.changes is not None and seed % 2):
            return []
        first = seed % len(all_kinds)
        second = (first + 1 + seed // len(all_kinds)) % len(all_kinds)
        return [all_kinds[place] for place in dict.fromkeys((first, second))]

    def _schema_ambushes(self) -> list[str]:
        """The same for changes of the schema: one in most, two in some, none in some."""
        seed, all_kinds = self.world.seed, sorted(SCHEMA_KINDS)
        if self.changes is None or seed % 7 == 6:
            return []
        if SHORT_HOLDS in self.conditions:
            return ["one switches late"]
        first = seed % len(all_kinds)
        second = (first + seed // len(all_kinds)) % len(all_kinds)
        return [all_kinds[place] for place in dict.fromkeys((first, second))]

    @property
    def is_ready(self) -> bool:
        return self.supervisor is not None and self.supervisor.is_ready

    @property
    def _all_serve(self) -> bool:
        return self.supervisor is not None and self.supervisor.all_serve

    def _judge(self) -> None:
        if not self.world.run(lambda: self._all_serve, READY_S):
            self.violations.append("not every process serves again")
        self._limits.close()
        if self.lives is not None:
            self.lives.take_last_snapshot()
        client = self.clients[0]
        client.timeout_s = 10.0
        client.connection.retry_s = 10.0
        failed: list[str] = []

        def answered(call: Call) -> None:
            if call.error is not None:
                failed.append(f"{call.procedure_name}{call.arguments}, long after peace: {call.error!r}")

        client.answered = answered
        client.queued = self.ledger.read_all(with_total=self.options.partitions > 1)
        self.processes["c0"].wake()
        if not self.world.run(lambda: client.is_done, ANSWER_S):
            self.violations.append("the lists can't be read when everything is over")
        self.violations += failed
        if self.changes is not None and self._all_serve:
            self._judge_schema(self.changes)

    def _judge_schema(self, changes: Changes) -> None:
        """All have the same schema, which has what it must have; in every partition everything agrees with the rows."""
        supervisor = self.supervisor
        servers = [self.processes[f"p{number}"].server for number in range(self.options.partitions)]

        def is_over() -> bool:
            return not supervisor.is_changing and all(server._change is None for server in servers)

        if supervisor is None or not self.world.run(is_over, ANSWER_S):
            self.violations.append("a change of the schema does not come to an end")
            return
        assert supervisor.directory is not None
        stored, version = supervisor.directory.schema, supervisor.directory.catalog_version
        self.violations += changes.judge(stored)
        for name in sorted(self.disks):
            server = self.processes[name].server
            is_partition = name != f"p{self.options.partitions}"
            schema = server._store.schema if is_partition else server._schema
            registry = (server._executor if is_partition else server.core.bodies).registry
            if schema != stored:
                self.violations.append(f"{name} has another schema than what is stored, {schema} not {stored}")
            versions = {registry.catalog_version, server._door.catalog_version}
            if versions - {version}:
                self.violations.append(f"{name} has catalog versions {versions}, not {version}")
            if is_partition:
                try:
                    server._store.check()
                    lookups = server._store.lookups
                    indexes = {index for table in lookups for index in table.indexes}
                    ahead = server._store.views_ahead
                    self.violations += _strangers(name, server, self.options.partitions)
                    if indexes != {index.name for index in schema.indexes} or ahead:
                        self.violations.append(f"{name} has the indexes {sorted(indexes)}, and {ahead}")
                except Corruption as error:
                    self.violations.append(f"{name}: {error}")
        door = self.processes["router"].server.router.door
        if not self.world.run(lambda: door.catalog_version == version, ANSWER_S):
            self.violations.append(f"the router has catalog version {door.catalog_version}, not {version}")

    # ── processes ──────────────────────────────────────────────────────────────────────────────────────────────────

    def start(self, name: str, main: object) -> Process:
        process = Process(self.world, name, main, self._client_ended)  # type: ignore[arg-type]
        self.processes[name] = process
        return process

    def _client_ended(self, process: Process, error: BaseException | None) -> None:
        if not isinstance(error, Killed):
            self.violations.append(f"{process.name} ended: {error!r}")

    def start_supervisor(self) -> None:
        if self.processes.get("supervisor") is not None and self.processes["supervisor"].is_alive:
            return  # somebody was faster
        self._supervisors += 1
        if self.supervisor is not None:
            self.violations += self.supervisor.failures
        supervisor = Supervisor(self.world, self.network, self.options, self._supervisors * 10_000, self._spawn)
        supervisor.lives = self.lives
        self.supervisor = supervisor
        process = Process(self.world, "supervisor", supervisor.run, self._supervisor_ended)
        self.processes["supervisor"] = process
        if self.changes is not None:
            supervisor.interrupted = self.changes.interrupted
        if self.catalog_disk is not None:
            self.catalog_disk.process = process

        def cleanup() -> None:
            if self.catalog_disk is not None:
                self.catalog_disk.crashed()
            elif supervisor.directory is not None:
                supervisor.directory.close()

            if self.lives is not None:
                self.lives.known.clear()

        process.cleanup = cleanup

    def _supervisor_ended(self, process: Process, error: BaseException | None) -> None:
        """A start that failed is tried again by whoever looks after the machine's services; so is what stops itself."""
        if error is None:
            self.world.after(0.1, self.start_supervisor)
        elif isinstance(error, ClusterError | OSError | PowerCut) and self.catalog_disk is not None:
            self.world.tell(f"supervisor ended: {error!r}")
            self.world.after(0.0, self.stop_machine)
        elif not isinstance(error, Killed):
            self.violations.append(f"{process.name} ended: {error!r}")

    def _spawn(self, number: int, runaway: Runaway | None, ended: object) -> Process:
        name = "router" if number == ROUTER else f"p{number}"
        disk = self.disks.get(name)

        def main(process: Process) -> None:
            if disk is None:
                run_router(process, self.network)
            elif number == self.options.partitions:
                run_coordinator(process, self.network, disk, self.options, runaway)
            else:
                run_partition(process, self.network, disk, number, self.options, runaway)

        process = Process(self.world, name, main, ended)  # type: ignore[arg-type]
        self.processes[name] = process

        def cleanup() -> None:
            self.network.process_died(process)
            if disk is not None:
                disk.left_by(process)
                has_power = self.lives is not None and self.lives.another_lives(process)
                if not has_power and self.is_troubled and self.loses_power and self.world.rng.random() < 0.5:
                    self.world.fault("power cut", name)
                    disk.lose_power()

        process.cleanup = cleanup
        return process

    # ── trouble ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _memory_is_short_now_and_then(self) -> None:
        world = self.world

        def happen() -> None:
            if self.is_troubled:
                Scene(self, self.processes[f"p{world.rng.randrange(self.options.partitions)}"]).take_memory()
                self._memory_is_short_now_and_then()

        world.after(world.rng.expovariate(1 / SHORT_EVERY_S), happen)

    def _next_fault(self, kinds: dict[str, float], every_s: float) -> None:
        def happen() -> None:
            if self.is_troubled:
                self._fault(choose(self.world.rng, kinds))
                self._next_fault(kinds, every_s)

        self.world.after(self.world.rng.expovariate(1 / every_s), happen)

    def _fault(self, kind: str) -> None:
        world, rng, network = self.world, self.world.rng, self.network
        victims = [name for name, process in self.processes.items() if process.is_alive and name[0] in "pr"]
        if not victims:
            return
        name = rng.choice(victims)
        process, disk = self.processes[name], self.disks.get(name)
        if kind == "kill":
            world.fault(kind, name)
            process.kill()
        elif kind == "kill at a step":
            what = rng.choice(("point", "send", "receive"))
            process.doom(what, rng.randrange(1, 40))
            world.after(0.3, lambda: process.doom("", 1))
            world.fault(kind, f"{name} {what}")
        elif kind == "pause":
            time_s = rng.choice((0.01, 0.3, 1.5))
            world.fault(kind, f"{name} for {time_s} s")
            process.pause(time_s)
        elif kind == "cut":
            others = [other for other in self.processes if other != name]
            other = rng.choice(others)
            world.fault(kind, f"{name} {other}")
            network.cut(name, other, rng.choice((0.01, 0.2, 1.0)))
        elif kind == "break":
            lane = f"p{self.options.partitions}"  # between it and the partitions the protocol mends what breaks
            lines = [line for line in network.connections if not line.reconnects or line.caller_name == lane]
            if not lines:
                return
            line = rng.choice(lines)
            world.fault(kind, f"{line.caller_name} {line.door_name}")
            line.break_()
        elif kind == "duplicate frame":
            for line in network.connections:
                if line.caller_name == f"p{self.options.partitions}":  # they are numbered there
                    line.duplicates = 0.05
        elif kind == "slow":
            world.fault(kind)
            network.slowness = rng.choice((1.0, 5.0, 30.0))
        elif kind == "restart all":
            self._restart_all()
        elif disk is None:
            return
        elif kind == "power cut":
            world.fault(kind, name)
            process.kill()
            disk.lose_power()
        elif kind == "torn write":
            disk.fail_soon(CUT)
        elif kind == "EIO":
            disk.fail_soon(EIO)
        elif kind == "ENOSPC":
            disk.fail_soon(ENOSPC)
            world.after(rng.choice((0.05, 0.5)), disk.make_room)

    def _restart_all(self) -> None:
        """The machine goes down, and comes back."""
        if not self.processes["supervisor"].is_alive:
            return
        self.world.fault("restart all")
        self.stop_machine()

    def stop_machine(self) -> None:
        """The supervisor may have gone before."""
        world, rng = self.world, self.world.rng
        if self.supervisor is not None:
            self.supervisor.died("the machine")
        self.processes["supervisor"].kill()
        if self.lives is not None:
            self.lives.end()
        for name, process in list(self.processes.items()):
            if name[0] in "pr":
                process.kill()
        keeps_power, self.machine_keeps_power = self.machine_keeps_power, False
        for disk in self.disks.values() if not keeps_power else ():
            disk.lose_power()
        if self.catalog_disk is not None and self.is_troubled and not keeps_power:
            self.catalog_disk.lose_power()
        world.after(rng.uniform(0.01, 0.3), self.start_supervisor)

    def _make_peace(self) -> None:
        self.is_troubled = False
        if self.lives is not None:
            self.lives.end()
        self.network.heal()
        for disk in self.disks.values():
            disk.fail(0, "")
            disk.make_room()
        if self.catalog_disk is not None:
            self.catalog_disk.fail(0, "")
            self.catalog_disk.make_room()
        for process in self.processes.values():
            process.paused_until_s = 0.0
            process.doom("", 1)


def _strangers(name: str, server: object, partitions: int) -> list[str]:
    """Rows in a partition that live in another one."""
    store = server._store  # type: ignore[attr-defined]
    owners, wrong = slot_owners(partitions), []
    for number, table in enumerate(store.schema.tables):
        column = table.partition_column
        if column is None or table.dropped or table.view is not None:
            continue
        keys = {getattr(row, column) for row in store.tables[number].scan()}
        strange = sorted(key for key in keys if owners[hash_slot(key)] != int(name[1:]))
        if strange:
            wrong.append(f"{name} has rows of {table.name} that live elsewhere: {strange[:5]}")
    return wrong
