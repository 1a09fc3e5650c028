"""What the supervisor decides. No processes, sockets or clocks here: inputs come with their time, actions go to `take`.

A child (the router, a partition, or the coordinator) is always in one state:

    state      means                                   left when
    starting   its process runs, it has not answered   it answers a StatusRequest → serving; it exits
    serving    it answered                             it exits
    backoff    it exited, or no process could be had;  the time comes → starting
               its next start has a time
    failed     it refused to go on (exit 3, 4 or 6)    never: an operator looks at it, the others go on
    stopped    the cluster is being stopped            never

An exit leads to backoff, with one exception: exit status 3 (damaged bytes), 4 (schema, procedures or configuration)
and 6 (rows that a new view or unique index does not allow) of a partition or coordinator that did not get to serve
would only repeat themselves. They fail the whole start when they come before the cluster was ever ready, and the child
alone afterwards. That the coordinator's decision log is not the one that the partitions have voted for, it learns from
them only when it serves: that fails it too.

The coordinator is addressed as one more partition, with the number after the last. It learns from the topology where
the partitions are. When its process is gone, the partitions are told so (Detach): what it borrowed is here again.

Loading procedures is a commit in two phases: all who run them, the partitions and the coordinator, compile the new ones
beside the old ones (PrepareLoad); when all of them did, and say the same about them, the new ones are made durable
(Persist), and that is the decision: a process that dies from here on starts with them. Then all switch, and clients
learn the new catalog version.

A change of the schema is such a load, of the procedures that there are for a schema that is new:

    preparing   all compile, check their rows, build indexes: calls go on, for as long as it takes
    quieting    the coordinator ends its batches and begins no more (HoldBatches): none will see half of the change.
                First of all, where the rows must not change between the check and the switch (`holds_first`)
    Persist     schema.json has the new schema: it happens
    switching   each switches between two calls; calls by the old catalog version are answered stale from then on
    done        all have switched, a process that died meanwhile by starting anew: only now clients learn the new
                version, so nobody can hear of the change and then meet a partition where it has not happened

A snapshot is copied by somebody else, who says every now and then that he is still there. Until he says that he is
done, every partition holds a checkpoint for him. All of these are cut between two batches of the coordinator's: it
begins none (HoldBatches) from before the first checkpoint begins until all have begun (CheckpointBegun), so that no
transaction is in one and not in the other.

    state      means                                      left when
    quieting   the coordinator ends its batches           none is under way, or undecided → asked
    asked      the partitions make their checkpoints      all hold one → held
    held       he copies                                  he is done → releasing
    releasing  the partitions are asked whether they      all held theirs all the time → released
               held them to the end
    released   what he has is a snapshot                  the next one begins
    failed     it is not: a partition died, or let go,    the next one begins
               or he was not heard of for `lease_s`, or
               there was no cut within CUT_LIMIT_S
"""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from voltpy.ending import ending
from voltpy.heartbeat import Beat, Watch
from voltpy.messages import (
    MAX_LEASE_S,
    AdminReply,
    BatchesHeld,
    CheckpointBegun,
    CheckpointHeld,
    CheckpointReleased,
    Detach,
    DiscardLoad,
    HoldBatches,
    HoldCheckpoint,
    LoadPrepared,
    Message,
    PartitionAddress,
    PrepareLoad,
    ProcedureInfo,
    Refusal,
    ReleaseCheckpoint,
    RenewHold,
    ResumeBatches,
    Runaway,
    StatusReply,
    StatusRequest,
    SwitchLoad,
    Topology,
    Welcome,
)
from voltpy.schema import Schema, to_json

ROUTER = -1  # the router's place among the children; partitions have their own numbers, the coordinator the next one

EXIT_CORRUPTION = 3
EXIT_CONFIGURATION = 4
EXIT_PORT_TAKEN = 5
EXIT_UNFIT = 6  # its rows don't allow what the schema has

BACKOFF_FIRST_S = 0.1
BACKOFF_MOST_S = 5.0
STABLE_S = 10.0  # a child that served this long starts with a clean record
FAILURES_AT_START = 5  # a child that exits this often before the cluster is ready ends the start
STATUS_INTERVAL_S = 0.5
LOAD_LIMIT_S = 30.0
RUNAWAY_GRACE_S = 1.0  # beyond the procedure timeout, at which the partition ends the call itself
ROUTER_STOP_S = 3.0  # the router's share of STOP_S: replies that are still coming go through it
COORDINATOR_STOP_S = 6.0  # until then the partitions decide with it what it has under way
STOP_S = 10.0
STOP_ANSWER_S = 1.0  # for the answer to a stop command to get through the router
CUT_LIMIT_S = 30.0  # for all partitions to begin a snapshot's checkpoints, while the coordinator begins no batch
CUT_LEASE_S = 2 * CUT_LIMIT_S  # of the coordinator: it must not go on by itself before we have given up
RUNAWAYS_KEPT = 64
STARTING_NOTICE_S = 5.0


class Start(NamedTuple):
    """Start the child's process. `runaway`: the call that its predecessor had to be killed for."""

    child: int
    runaway: Runaway | None


class Terminate(NamedTuple):
    """SIGTERM: finish and exit."""

    child: int


class Kill(NamedTuple):
    """SIGKILL."""

    child: int


class Tell(NamedTuple):
    child: int
    message: Message


class Persist(NamedTuple):
    """Make new procedures durable, or the new schema if there is one, then call `persisted`."""

    catalog_version: int
    path: str
    source: str
    schema: bytes = b""


class Ready(NamedTuple):
    """Everything serves; clients connect to `port`."""

    port: int


class Done(NamedTuple):
    """All processes have ended. `error`: why the start failed, empty after a stop."""

    error: str


class Report(NamedTuple):
    """Something that an operator may want to know. `level` is "info" or "warning"."""

    event: str
    fields: dict[str, Any]
    level: str = "info"


Action = Start | Terminate | Kill | Tell | Persist | Ready | Done | Report


class ProcessFigures(NamedTuple):
    """What the operating system says about a child's process."""

    rss_bytes: int
    cpu_s: float


class Child:
    """One supervised process. See the table of states above."""

    __slots__ = (
        "answered", "asked", "asked_at_s", "backoff_until_s", "exit_status", "failures", "heard_at_s", "heard_before_s",
        "incarnation", "last_words", "name", "noticed_at_s", "number", "pid", "procedures", "reply", "reply_before",
        "restarts", "runaway", "since_s", "state", "switch_asked", "tcp_port", "watch",
    )  # fmt: skip

    def __init__(self, number: int, name: str, runaway_limit_s: float) -> None:
        self.number = number
        self.name = name
        self.state = "stopped"
        self.pid = 0
        self.since_s = 0.0  # when it took on its state
        self.noticed_at_s = 0.0
        self.failures = 0  # exits since it last served for STABLE_S
        self.restarts = -1
        self.backoff_until_s = 0.0
        self.exit_status: int | None = None
        self.last_words = ""
        self.incarnation = 0
        self.tcp_port = 0
        self.asked = 0  # the number of the last StatusRequest that it was sent
        self.answered = 0  # the number of the last one that it answered
        self.asked_at_s = 0.0
        self.switch_asked = 0  # the same, when it was last told to switch procedures
        self.reply: StatusReply | None = None
        self.reply_before: StatusReply | None = None
        self.heard_at_s = 0.0
        self.heard_before_s = 0.0
        self.procedures: list[str] = []  # names, in the order in which its heartbeat counts them
        self.runaway: Runaway | None = None
        self.watch = Watch(runaway_limit_s)

    @property
    def runs(self) -> bool:
        return self.state in ("starting", "serving")

    def enter(self, state: str, now_s: float) -> None:
        self.state = state
        self.since_s = self.noticed_at_s = now_s

    def backoff_s(self) -> float:
        """The wait before the next start: 0, 0.1, 0.2, 0.4 … 5 s."""
        if self.failures <= 1:
            return 0.0
        return min(BACKOFF_MOST_S, BACKOFF_FIRST_S * 2.0 ** min(self.failures - 2, 16))

    def rate_a_second(self, metric: str) -> float:
        """How fast a counter grew between the last two answers."""
        if self.reply is None or self.reply_before is None or self.heard_at_s <= self.heard_before_s:
            return 0.0
        newer, older = self.reply.metrics.get(metric, 0), self.reply_before.metrics.get(metric, 0)
        if not isinstance(newer, int | float) or not isinstance(older, int | float):
            return 0.0
        return max(0.0, (newer - older) / (self.heard_at_s - self.heard_before_s))


class Load(Struct, eq=False):
    """A load of procedures between its first message and its decision; a change of the schema until all have switched.

    `schema`: the new one, as messages have it; empty: procedures alone are loaded. `kind`: of the statement.
    """

    admin_number: int
    catalog_version: int
    path: str
    source: str
    deadline_s: float
    prepared: dict[int, list[ProcedureInfo]]
    schema: bytes = b""
    kind: str = ""
    hold: int = 0  # the number by which the coordinator knows that it holds its batches
    is_held: bool = False
    cut_until_s: float = inf  # when it has held them for so long that the change is given up
    unswitched: set[int] | None = None  # who has still to switch, once it is decided

    @property
    def is_decided(self) -> bool:
        return self.unswitched is not None


class Snapshot:
    """The snapshot under way, or the last one. `directory` and `pid`: where to, and who copies; for people.

    `begun`: the partitions whose state is fixed. `cut_until_s`: until when the coordinator holds its batches for it;
    inf once all have begun.
    """

    __slots__ = (
        "begun", "coordinator_epoch", "cut_until_s", "directory", "held", "lease_s", "number", "pid", "reason",
        "released", "state", "until_s",
    )  # fmt: skip

    def __init__(
        self, number: int, directory: str, pid: int, lease_s: float, coordinator_epoch: int, now_s: float
    ) -> None:
        self.number = number
        self.coordinator_epoch = coordinator_epoch
        self.directory = directory
        self.pid = pid
        self.lease_s = lease_s
        self.until_s = now_s + lease_s
        self.cut_until_s = inf
        self.state = "asked"
        self.reason = ""  # why it failed
        self.begun: set[int] = set()
        self.held: dict[int, CheckpointHeld] = {}
        self.released: set[int] = set()

    @property
    def is_under_way(self) -> bool:
        return self.state in ("quieting", "asked", "held", "releasing")

    def described(self) -> dict[str, Any]:
        """As plain values, for whoever copies."""
        return {
            "snapshot": self.number,
            "state": self.state,
            "reason": self.reason,
            "coordinator_epoch": self.coordinator_epoch,
            "partitions": [
                {"partition": number, "checkpoint": held.checkpoint, "lsn": held.lsn, "epoch": held.epoch}
                for number, held in sorted(self.held.items())
            ],
        }


class Supervision:
    """The supervisor's state machine.

    `catalog_version` is that of the stored procedures; `first_version` must be larger than any topology version that an
    earlier supervisor of this cluster may have published: clients that stay connected compare them.
    """

    def __init__(
        self,
        partitions: int,
        *,
        cluster_id: str,
        runtime: str,
        catalog_version: int,
        procedure_timeout_s: float,
        first_version: int = 1,
    ) -> None:
        limit_s = procedure_timeout_s + RUNAWAY_GRACE_S
        self.router = Child(ROUTER, "router", limit_s)
        self.partitions = [Child(number, f"partition {number}", limit_s) for number in range(partitions)]
        self.coordinator = Child(partitions, "coordinator", limit_s)
        self.catalog_version = catalog_version  # that every worker must have
        self._announced = catalog_version  # that clients route by
        self.procedures: list[ProcedureInfo] = []
        self._procedures_known = False  # the first partition that serves tells them
        self.runaways: list[Runaway] = []
        self.ready = False
        self.stopping = False
        self.is_schema_unfit = False  # the start has failed, since rows don't allow what the schema has
        self._cluster_id = cluster_id
        self._runtime = runtime
        self._version = first_version
        self._catalog_versions_used = catalog_version
        self._ready_asked: dict[int, int] = {}  # by child: the question whose answer says that it knows the topology
        self._dead_epoch = 0  # of the coordinator that died last
        self._load: Load | None = None
        self._snapshot: Snapshot | None = None
        self._snapshots_begun = first_version  # no number of an earlier supervisor's is given again
        self._stop_asked = 0  # the router's answer to this question comes behind the answer to a stop command
        self._stop_at_s = 0.0
        self._told_to_stop: set[int] = set()
        self._killed = False
        self._done = False
        self._error = ""
        self._actions: list[Action] = []

    def take(self) -> list[Action]:
        """The actions decided since the last call, to carry out in this order."""
        actions, self._actions = self._actions, []
        return actions

    def child(self, number: int) -> Child:
        if number == self.coordinator.number:
            return self.coordinator
        return self.router if number == ROUTER else self.partitions[number]

    def children(self) -> Iterator[Child]:
        """In the order in which they are started."""
        yield self.router
        yield from self.partitions
        yield self.coordinator

    def workers(self) -> Iterator[Child]:
        """Those who run procedures."""
        yield from self.partitions
        yield self.coordinator

    # ── inputs ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def begin(self, now_s: float) -> None:
        for child in self.children():
            self._start(child, now_s)

    def started(self, number: int, pid: int) -> None:
        self.child(number).pid = pid

    def exited(self, number: int, exit_status: int | None, last_words: str, now_s: float) -> None:
        """The child's process is gone. `exit_status` is negative for a signal; `last_words` the last line
        of its output that is no event.

        Without an exit status there never was one: the system had no process, memory or descriptor to spare.
        """
        child = self.child(number)
        served_s = now_s - child.since_s if child.state == "serving" else 0.0
        if served_s >= STABLE_S:
            child.failures = 0
        child.failures += 1
        child.exit_status = exit_status
        child.last_words = last_words
        child.pid = 0
        epoch, child.incarnation = child.incarnation, 0
        child.reply = child.reply_before = None
        child.watch.forget()
        if self.stopping:
            child.enter("stopped", now_s)
            return self._stop_on(now_s)
        if self._load is not None and not self._load.is_decided and number != ROUTER:
            what = "schema" if self._load.schema else "procedures"
            self._end_load("Unavailable", f"{child.name} died while the new {what} was being prepared; nothing changed")
        if child is self.coordinator:
            self._coordinator_died(epoch)
        elif number != ROUTER:
            self._fail_snapshot(f"{child.name} died")
        self._after_exit(child, now_s)
        if number != ROUTER:
            self._publish()

    def said(self, number: int, message: Message, now_s: float) -> None:
        """A message from the child's present process, other than Admin (see `load_procedures`, `stop`)."""
        child = self.child(number)
        if isinstance(message, StatusReply):
            self._answered(child, message, now_s)
        elif isinstance(message, LoadPrepared):
            self._prepared(child, message, now_s)
        elif isinstance(message, BatchesHeld):
            self._batches_held(message, now_s)
        elif isinstance(message, CheckpointBegun):
            self._checkpoint_begun(child, message, now_s)
        elif isinstance(message, CheckpointHeld):
            self._checkpoint_held(child, message)
        elif isinstance(message, CheckpointReleased):
            self._checkpoint_released(child, message)
        elif isinstance(message, Refusal):
            self._warn("refused", child=child.name, code=message.code, reason=message.message)
        elif not isinstance(message, Welcome):
            self._warn("unexpected_message", child=child.name, message=type(message).__name__)

    def looked(self, number: int, beat: Beat, now_s: float) -> None:
        """The heartbeat of a worker, read now. A call that nothing could end costs the process."""
        child = self.child(number)
        if child.state != "serving":
            return
        stuck = child.watch.look(beat, now_s)
        if stuck is None:
            return
        names = child.procedures
        procedure = names[stuck.procedure] if stuck.procedure < len(names) else "?"
        if stuck.client_id:
            child.runaway = Runaway(stuck.client_id, stuck.call_number, procedure)
            self.runaways = [*self.runaways[1 - RUNAWAYS_KEPT :], child.runaway]
        child.watch.forget()
        self._warn("runaway_killed", child=child.name, procedure=procedure, client_id=stuck.client_id)
        self._actions.append(Kill(number))

    def tick(self, now_s: float) -> None:
        """Whatever is due. Call it at least a few times a second."""
        if self.stopping:
            return self._stop_on(now_s)
        for child in self.children():
            if child.state == "backoff" and now_s >= child.backoff_until_s:
                self._start(child, now_s)
            elif child.state == "serving" and child.answered == child.asked:
                # One question at a time: they don't pile up before a child that is busy for long.
                if now_s - child.asked_at_s >= STATUS_INTERVAL_S:
                    self._ask(child, now_s)
            elif child.state == "starting" and now_s - child.noticed_at_s >= STARTING_NOTICE_S:
                child.noticed_at_s = now_s
                self._report("still_starting", child=child.name, seconds=round(now_s - child.since_s))
        if self._stop_asked and now_s - self._stop_at_s >= STOP_ANSWER_S:
            return self.stop(now_s)
        if self._snapshot is not None and now_s >= self._snapshot.until_s:
            self._fail_snapshot(f"nothing was heard of who copies it for {self._snapshot.lease_s:g} s")
        elif self._snapshot is not None and now_s >= self._snapshot.cut_until_s:
            self._fail_snapshot(f"not all partitions began their checkpoints within {CUT_LIMIT_S:g} s")
        if self._load is not None and not self._load.is_decided:
            self._look_at_load(self._load, now_s)

    def _look_at_load(self, load: Load, now_s: float) -> None:
        if now_s >= load.cut_until_s:
            why = f"transactions across partitions were not over within {CUT_LIMIT_S:.0f} s; nothing changed"
            return self._end_load("Unavailable", why)
        if now_s >= load.deadline_s:
            late = [child for child in self.workers() if child.number not in load.prepared]
            if load.schema:  # an index may take its time, as long as the process can say so
                late = [child for child in late if now_s - child.heard_at_s > LOAD_LIMIT_S]
                if not late:
                    return
            names = ", ".join(child.name for child in late)
            self._end_load("Unavailable", f"no answer from {names} within {LOAD_LIMIT_S:.0f} s")
            # The file may never end when it is executed: started again, they have the old one.
            for child in late:
                self._warn("killed_in_load", child=child.name)
                self._actions.append(Kill(child.number))

    def load_procedures(self, admin_number: int, source: str, path: str, now_s: float) -> None:
        """Replace the procedures; the answer to `admin_number` follows when it has worked or failed."""
        refusal = self._why_no_load()
        if refusal:
            return self._refuse(admin_number, "Unavailable", refusal)
        self._load = Load(admin_number, self._next_version(), path, source, now_s + LOAD_LIMIT_S, {})
        self._ask_to_prepare(self._load)

    def change_schema(
        self, admin_number: int, schema: Schema, kind: str, source: str, path: str, now_s: float, *, holds_first: bool
    ) -> None:
        """Replace the schema; the procedures stay what they are. The answer follows when it has worked or failed."""
        refusal = self._why_no_load()
        snapshot = self._snapshot
        if not refusal and snapshot is not None and snapshot.is_under_way:
            refusal = f"a snapshot into {snapshot.directory} is under way (process {snapshot.pid}); try again later"
        if refusal:
            return self._refuse(admin_number, "Unavailable", refusal)
        version = self._next_version()
        encoded = to_json(msgspec.structs.replace(schema, catalog_version=version))
        self._snapshots_begun += 1
        load = self._load = Load(
            admin_number, version, path, source, now_s + LOAD_LIMIT_S, {}, encoded, kind, self._snapshots_begun
        )
        self._report("schema_change_begun", kind=kind, catalog_version=version)
        if holds_first and len(self.partitions) > 1:
            self._hold_batches(load, now_s)
        else:
            self._ask_to_prepare(load)

    @property
    def is_loading(self) -> bool:
        return self._load is not None

    @property
    def all_serve(self) -> bool:
        """Whether every worker does that has not failed for good."""
        return all(child.state in ("serving", "failed") for child in self.workers())

    def _why_no_load(self) -> str:
        """Why neither procedures nor a schema can be loaded now; empty: they can."""
        down = [child.name for child in self.workers() if child.state != "serving"]
        if self.stopping:
            return "the cluster is stopping"
        if self._load is not None:
            return f"{'a change of the schema' if self._load.schema else 'another load of procedures'} is under way"
        return f"{', '.join(down)} can't take part: not serving" if down else ""

    def _next_version(self) -> int:
        """A number of its own for every attempt: a late answer to an attempt that was given up names that one."""
        self._catalog_versions_used += 1
        return self._catalog_versions_used

    def _ask_to_prepare(self, load: Load) -> None:
        for child in self.workers():
            message = PrepareLoad(load.catalog_version, load.source, load.path, load.schema)
            self._actions.append(Tell(child.number, message))

    def _hold_batches(self, load: Load, now_s: float) -> None:
        load.cut_until_s = now_s + CUT_LIMIT_S
        self._actions.append(Tell(self.coordinator.number, HoldBatches(load.hold, CUT_LEASE_S)))

    def persisted(self, error: str) -> None:
        """The answer to Persist; `error` is empty when the new procedures, or the new schema, are durable."""
        load = self._load
        if load is None:
            return
        if error:
            what = "schema" if load.schema else "procedures"
            return self._end_load("ClusterError", f"the {what} could not be stored: {error}")
        self.catalog_version = load.catalog_version
        for child in self.workers():
            child.switch_asked = child.asked
            child.procedures = _names(load.prepared[child.number])
            self._actions.append(Tell(child.number, SwitchLoad(load.catalog_version)))
        if load.schema:
            load.unswitched = {child.number for child in self.workers()}
            return
        self._load = None
        self._announced = self.catalog_version
        self.procedures = load.prepared[0]
        # Before the answer: its reader's next call shall already be routed by the new procedures.
        self._publish()
        names = _names(self.procedures)
        self._report("procedures_switched", catalog_version=load.catalog_version, path=load.path)
        body = {"catalog_version": load.catalog_version, "procedures": names}
        self._actions.append(Tell(ROUTER, AdminReply(load.admin_number, "", body)))

    def _switched(self, child: Child) -> None:
        """The child has the new schema, or will not come back. The change is over when that is true of all."""
        load = self._load
        if load is None or load.unswitched is None:
            return
        load.unswitched.discard(child.number)
        if load.unswitched:
            return
        self._load = None
        self._announced = load.catalog_version
        self.procedures = load.prepared[0]
        self._resume_after(load)
        self._publish()
        self._report("schema_changed", kind=load.kind, catalog_version=load.catalog_version)
        body = {"catalog_version": load.catalog_version, "kind": load.kind}
        self._actions.append(Tell(ROUTER, AdminReply(load.admin_number, "", body)))

    def _resume_after(self, load: Load) -> None:
        if load.cut_until_s < inf and self.coordinator.state == "serving":
            self._actions.append(Tell(self.coordinator.number, ResumeBatches(load.hold)))

    def begin_snapshot(self, admin_number: int, body: dict[str, Any], now_s: float) -> None:
        """Let every partition hold a checkpoint of now. The answer comes at once, `renew_snapshot` tells how it goes.

        With one partition nothing crosses partitions, and the coordinator has no batches to hold.
        """
        directory, pid, lease_s = body.get("directory"), body.get("pid"), body.get("lease_s")
        if not (isinstance(directory, str) and isinstance(pid, int) and isinstance(lease_s, int | float)):
            return self._refuse(admin_number, "BadArguments", "begin_snapshot takes a directory, a pid and a lease_s")
        if not 0 < lease_s <= MAX_LEASE_S:
            return self._refuse(admin_number, "BadArguments", f"a lease is of at most {MAX_LEASE_S:g} s")
        other = self._snapshot
        if other is not None and other.is_under_way:
            return self._refuse(
                admin_number,
                "ClusterError",
                f"a snapshot into {other.directory} is under way (process {other.pid}); where that has died, the "
                f"cluster forgets it after {other.lease_s:g} s",
            )
        down = [child.name for child in self.workers() if child.state != "serving"]
        if self.stopping or down:
            why = "the cluster is stopping" if self.stopping else f"{', '.join(down)} can't take part: not serving"
            return self._refuse(admin_number, "Unavailable", why)
        if self._load is not None and self._load.schema:
            return self._refuse(admin_number, "Unavailable", "a change of the schema is under way; try again later")
        self._snapshots_begun += 1
        snapshot = self._snapshot = Snapshot(
            self._snapshots_begun, directory, pid, float(lease_s), self.coordinator.incarnation, now_s
        )
        if len(self.partitions) > 1:
            snapshot.state, snapshot.cut_until_s = "quieting", now_s + CUT_LIMIT_S
            self._actions.append(Tell(self.coordinator.number, HoldBatches(snapshot.number, CUT_LEASE_S)))
        else:
            self._ask_for_checkpoints(snapshot)
        self._report("snapshot_begun", directory=directory, pid=pid)
        self._actions.append(Tell(ROUTER, AdminReply(admin_number, "", snapshot.described())))

    def renew_snapshot(self, admin_number: int, body: dict[str, Any], now_s: float) -> None:
        """Whoever copies is still there, and asks how it goes."""
        snapshot = self._named_snapshot(admin_number, body)
        if snapshot is None:
            return
        if snapshot.is_under_way:
            snapshot.until_s = now_s + snapshot.lease_s
            for child in self.partitions if snapshot.state != "quieting" else ():
                self._actions.append(Tell(child.number, RenewHold(snapshot.number, snapshot.lease_s)))
        self._actions.append(Tell(ROUTER, AdminReply(admin_number, "", snapshot.described())))

    def end_snapshot(self, admin_number: int, body: dict[str, Any]) -> None:
        """Everything is copied, or it has come to nothing: then `body` has a reason."""
        snapshot = self._named_snapshot(admin_number, body)
        if snapshot is None:
            return
        reason = body.get("reason")
        if isinstance(reason, str) and reason:
            self._fail_snapshot(reason)
        elif snapshot.state == "held":
            snapshot.state = "releasing"
            for child in self.partitions:
                self._actions.append(Tell(child.number, ReleaseCheckpoint(snapshot.number)))
        elif snapshot.state in ("quieting", "asked"):
            self._fail_snapshot("it was ended before there was anything to copy")
        self._actions.append(Tell(ROUTER, AdminReply(admin_number, "", snapshot.described())))

    def stop_command(self, admin_number: int, body: dict[str, Any], now_s: float) -> None:
        """Answer with `body`, and stop when the router has had the time to pass it on."""
        self._actions.append(Tell(ROUTER, AdminReply(admin_number, "", body)))
        if not self.stopping and not self._stop_asked:
            self._ask(self.router, now_s)
            self._stop_asked, self._stop_at_s = self.router.asked, now_s

    def stop(self, now_s: float, error: str = "") -> None:
        """Stop everything in order: the router takes no more calls, then the coordinator finishes, then the partitions,
        then Done.

        A second call doesn't wait for anybody any more.
        """
        if self.stopping:
            self._kill_all()
            return
        self.stopping = True
        self._error = error
        self._stop_at_s = now_s
        for child in self.children():
            if not child.runs:
                child.enter("stopped", now_s)
        self._stop_on(now_s)

    # ── what can be asked ───────────────────────────────────────────────────────────────────────────────────────────

    def topology(self) -> Topology:
        *partitions, coordinator = [
            PartitionAddress(
                child.number,
                child.incarnation,
                f"{self._runtime}/p{child.number}",
                child.tcp_port,
                child.reply.lsn if child.reply is not None else 0,
            )
            for child in self.workers()
        ]
        return Topology(
            self._version,
            self._announced,
            self._cluster_id,
            self._runtime,
            partitions,
            self.procedures,
            self.runaways,
            coordinator if len(partitions) > 1 else None,
        )

    def status(self, figures: dict[int, ProcessFigures], now_s: float) -> dict[str, Any]:
        """All children as plain values; `figures` by child number, where there is a process."""
        return {
            "cluster_id": self._cluster_id,
            "topology_version": self._version,
            "catalog_version": self.catalog_version,
            "ready": self.ready,
            "router": _child_status(self.router, figures, now_s),
            "coordinator": _child_status(self.coordinator, figures, now_s),
            "partitions": [
                {"partition": child.number, **_child_status(child, figures, now_s)} for child in self.partitions
            ],
            "runaways": [msgspec.structs.asdict(runaway) for runaway in self.runaways],
        }

    # ── steps ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _start(self, child: Child, now_s: float) -> None:
        child.enter("starting", now_s)
        child.restarts += 1
        self._actions.append(Start(child.number, child.runaway))
        self._ask(child, now_s)

    def _ask(self, child: Child, now_s: float) -> None:
        child.asked += 1
        child.asked_at_s = now_s
        self._actions.append(Tell(child.number, StatusRequest(child.asked)))

    def _answered(self, child: Child, reply: StatusReply, now_s: float) -> None:
        if not child.runs:
            return
        moved = (child.incarnation, child.tcp_port) != (reply.incarnation, reply.tcp_port)
        child.reply_before, child.heard_before_s = child.reply, child.heard_at_s
        child.reply, child.heard_at_s = reply, now_s
        child.answered = max(child.answered, reply.number)
        child.incarnation, child.tcp_port = reply.incarnation, reply.tcp_port
        if child.state == "starting":
            child.enter("serving", now_s)
            child.runaway = None
            self._report("serving", child=child.name, incarnation=reply.incarnation, restarts=child.restarts)
            if child.number == ROUTER:
                self._publish()
            elif child is not self.coordinator and self.coordinator.state != "serving" and self._dead_epoch:
                self._actions.append(Tell(child.number, Detach(self._dead_epoch)))
        if child.number != ROUTER:
            self._check_catalog(child, reply)
            if moved:
                self._publish()
        if child.number == ROUTER and self._stop_asked and reply.number >= self._stop_asked and not self.stopping:
            self.stop(now_s)
        elif not self.ready:
            self._ready_on(now_s)

    def _check_catalog(self, child: Child, reply: StatusReply) -> None:
        """Every worker must use the stored procedures; one that doesn't gets them by starting again."""
        if reply.catalog_version == self.catalog_version:
            child.procedures = _names(reply.procedures)
            if not self._procedures_known and child is not self.coordinator:
                self._procedures_known = True
                self.procedures = reply.procedures
                self._publish()
            self._switched(child)
        elif reply.number > child.switch_asked:
            # Asked after it was told to switch, and messages keep their order: it will not switch any more.
            self._warn("wrong_procedures", child=child.name, catalog_version=reply.catalog_version)
            self._actions.append(Kill(child.number))

    def _ready_on(self, now_s: float) -> None:
        if any(child.state != "serving" for child in self.children()):
            self._ready_asked.clear()
        elif not self._ready_asked:
            # Their answers to this one say that they have read the topology before it.
            for child in (self.router, self.coordinator):
                self._ask(child, now_s)
                self._ready_asked[child.number] = child.asked
        elif all(self.child(number).answered >= asked for number, asked in self._ready_asked.items()):
            self.ready = True
            self._actions.append(Ready(self.router.tcp_port))

    def _after_exit(self, child: Child, now_s: float) -> None:
        refused = (EXIT_PORT_TAKEN,) if child.number == ROUTER else (EXIT_CORRUPTION, EXIT_CONFIGURATION, EXIT_UNFIT)
        why = ending(child.exit_status, child.last_words)
        if not self.ready:
            if child.exit_status in refused:
                child.enter("failed", now_s)
                self.is_schema_unfit = child.exit_status == EXIT_UNFIT
                return self.stop(now_s, f"{child.name} can't start: {why}")
            if child.failures >= FAILURES_AT_START:
                child.enter("failed", now_s)
                return self.stop(now_s, f"{child.name} ended {child.failures} times while starting: {why}")
        elif child.number != ROUTER and (
            (child.state == "starting" and child.exit_status in refused)
            or (child is self.coordinator and child.exit_status == EXIT_CORRUPTION)
        ):
            child.enter("failed", now_s)
            self._switched(child)
            return self._warn("failed", child=child.name, exit_status=child.exit_status, reason=why)
        child.enter("backoff", now_s)
        wait_s = child.backoff_s()
        child.backoff_until_s = now_s + wait_s
        exit_fields = {"exit_status": child.exit_status, "reason": why}
        self._warn("exited", child=child.name, **exit_fields, restart_in_s=wait_s)
        if wait_s == 0.0:
            self._start(child, now_s)

    def _publish(self) -> None:
        self._version += 1
        if not self._procedures_known:
            return  # a client would believe that there are none under this catalog version
        for child in (self.router, self.coordinator):
            if child.state == "serving":
                self._actions.append(Tell(child.number, self.topology()))

    def _coordinator_died(self, epoch: int) -> None:
        """What a coordinator had borrowed, and not prepared, need not wait for its successor."""
        if self._snapshot is not None and self._snapshot.cut_until_s < inf:
            self._fail_snapshot("the coordinator died")
        if epoch:  # otherwise it never knew the partitions
            self._dead_epoch = epoch
            for child in self.partitions:
                if child.state == "serving":
                    self._actions.append(Tell(child.number, Detach(epoch)))

    def _prepared(self, child: Child, message: LoadPrepared, now_s: float) -> None:
        load = self._load
        if load is None or message.catalog_version != load.catalog_version or load.is_decided:
            return
        if message.error:
            return self._end_load(message.code, message.error)
        load.prepared[child.number] = message.procedures
        if len(load.prepared) <= len(self.partitions):
            return
        if any(_of_users(infos) != _of_users(load.prepared[0]) for infos in load.prepared.values()):
            return self._end_load("SchemaError", "the partitions read different procedures out of the same file")
        if load.schema and not load.is_held and len(self.partitions) > 1:
            self._hold_batches(load, now_s)
        else:
            self._actions.append(Persist(load.catalog_version, load.path, load.source, load.schema))

    def _held_for_load(self, load: Load) -> None:
        """Nothing crosses partitions any more, until the change is over."""
        load.is_held = True
        if load.prepared:
            self._actions.append(Persist(load.catalog_version, load.path, load.source, load.schema))
        else:
            self._ask_to_prepare(load)

    def _end_load(self, code: str, message: str) -> None:
        load = self._load
        if load is None:
            return
        self._load = None
        for child in self.workers():
            if child.state == "serving":
                self._actions.append(Tell(child.number, DiscardLoad(load.catalog_version)))
        self._resume_after(load)
        self._refuse(load.admin_number, code, message)

    def _named_snapshot(self, admin_number: int, body: dict[str, Any]) -> Snapshot | None:
        snapshot = self._snapshot
        if snapshot is None or snapshot.number != body.get("snapshot"):
            self._refuse(admin_number, "ClusterError", "the cluster knows nothing of this snapshot (any more)")
            return None
        return snapshot

    def _ask_for_checkpoints(self, snapshot: Snapshot) -> None:
        for child in self.partitions:
            self._actions.append(Tell(child.number, HoldCheckpoint(snapshot.number, snapshot.lease_s)))

    def _batches_held(self, message: BatchesHeld, now_s: float) -> None:
        load, snapshot = self._load, self._snapshot
        if load is not None and message.snapshot == load.hold and not load.is_held and now_s < load.cut_until_s < inf:
            return self._held_for_load(load)
        if snapshot is None or message.snapshot != snapshot.number or snapshot.state != "quieting":
            return
        if now_s < snapshot.cut_until_s:
            snapshot.state = "asked"
            self._ask_for_checkpoints(snapshot)

    def _checkpoint_begun(self, child: Child, message: CheckpointBegun, now_s: float) -> None:
        snapshot = self._snapshot
        if snapshot is None or message.snapshot != snapshot.number or snapshot.state not in ("asked", "held"):
            return
        # Heard too late, it says nothing: the coordinator may have gone on before.
        if now_s < snapshot.cut_until_s < inf:
            snapshot.begun.add(child.number)
            if len(snapshot.begun) == len(self.partitions):
                self._resume_batches(snapshot)
                self._hold_if_complete(snapshot)

    def _resume_batches(self, snapshot: Snapshot) -> None:
        if snapshot.cut_until_s < inf:
            snapshot.cut_until_s = inf
            if self.coordinator.state == "serving":
                self._actions.append(Tell(self.coordinator.number, ResumeBatches(snapshot.number)))

    def _hold_if_complete(self, snapshot: Snapshot) -> None:
        if len(snapshot.held) == len(self.partitions) and snapshot.cut_until_s == inf:
            snapshot.state = "held"

    def _checkpoint_held(self, child: Child, message: CheckpointHeld) -> None:
        snapshot = self._snapshot
        if snapshot is None or message.snapshot != snapshot.number or snapshot.state != "asked":
            return
        if message.error:
            return self._fail_snapshot(f"{child.name}: {message.error}")
        snapshot.held[child.number] = message
        self._hold_if_complete(snapshot)

    def _checkpoint_released(self, child: Child, message: CheckpointReleased) -> None:
        snapshot = self._snapshot
        if snapshot is None or message.snapshot != snapshot.number or snapshot.state != "releasing":
            return
        if not message.was_held:
            return self._fail_snapshot(f"{child.name} did not hold its checkpoint to the end")
        snapshot.released.add(child.number)
        if len(snapshot.released) == len(self.partitions):
            snapshot.state = "released"
            self._report("snapshot_made", directory=snapshot.directory)

    def _fail_snapshot(self, reason: str) -> None:
        snapshot = self._snapshot
        if snapshot is None or not snapshot.is_under_way:
            return
        asked = snapshot.state != "quieting"
        snapshot.state, snapshot.reason = "failed", reason
        self._resume_batches(snapshot)
        for child in self.partitions:
            if child.state == "serving" and asked:
                self._actions.append(Tell(child.number, ReleaseCheckpoint(snapshot.number)))
        self._warn("snapshot_failed", directory=snapshot.directory, reason=reason)

    def _refuse(self, admin_number: int, code: str, message: str) -> None:
        self._actions.append(Tell(ROUTER, AdminReply(admin_number, code, {"message": message})))

    def _stop_on(self, now_s: float) -> None:
        waited_s = now_s - self._stop_at_s
        self._terminate(self.router)
        if self.router.state == "stopped" or waited_s >= ROUTER_STOP_S:
            self._terminate(self.coordinator)
            if self.coordinator.state == "stopped" or waited_s >= COORDINATOR_STOP_S:
                for child in self.partitions:
                    self._terminate(child)
        if waited_s >= STOP_S:
            self._kill_all()
        if not self._done and all(child.state == "stopped" for child in self.children()):
            self._done = True
            self._actions.append(Done(self._error))

    def _terminate(self, child: Child) -> None:
        """Once."""
        if child.runs and child.number not in self._told_to_stop:
            self._told_to_stop.add(child.number)
            self._actions.append(Terminate(child.number))

    def _kill_all(self) -> None:
        if self._killed:
            return
        self._killed = True
        for child in self.children():
            if child.runs:
                self._warn("killed_at_stop", child=child.name)
                self._actions.append(Kill(child.number))

    def _report(self, event: str, **fields: Any) -> None:
        self._actions.append(Report(event, fields))

    def _warn(self, event: str, **fields: Any) -> None:
        self._actions.append(Report(event, fields, "warning"))


def _names(infos: list[ProcedureInfo]) -> list[str]:
    return sorted(info.name for info in infos)


def _of_users(infos: list[ProcedureInfo]) -> list[ProcedureInfo]:
    """Without the engine's own, which have a dot in their names: only partitions have those."""
    return [info for info in infos if "." not in info.name]


def _child_status(child: Child, figures: dict[int, ProcessFigures], now_s: float) -> dict[str, Any]:
    status: dict[str, Any] = {
        "state": child.state,
        "pid": child.pid,
        "restarts": max(0, child.restarts),
        "state_s": round(now_s - child.since_s, 3),
        "tcp_port": child.tcp_port,
    }
    if child.number != ROUTER:
        status["incarnation"] = child.incarnation
    if child.number in figures:
        status.update(figures[child.number]._asdict())
    if child.reply is not None:
        status["lsn"] = child.reply.lsn
        status["silent_s"] = round(now_s - child.heard_at_s, 3)
        status["calls_per_s"] = round(child.rate_a_second("calls"), 1)
        status["metrics"] = child.reply.metrics
    if child.state in ("failed", "backoff"):
        status["exit_status"] = child.exit_status
        status["last_words"] = child.last_words
    return status
