"""What the supervisor decides. No processes, sockets or clocks here: inputs come with their time, actions go to `take`.

An exit leads to backoff, with one exception: exit status 3 (damaged bytes), 4 (schema, procedures or configuration)
and 6 (rows that a new view or unique index does not allow) of a partition or coordinator that did not get to serve
would only repeat themselves. They fail the whole start when they come before the cluster was ever ready, and the child
alone afterwards. That the coordinator's decision log is not the one that the partitions have voted for, it learns from
them only when it serves: that fails it too.

The coordinator is addressed as one more partition, with the number after the last. It learns from the topology where
the partitions are. When its process is gone, the partitions are told so (Detach): what it borrowed is here again.

The states of a process: voltpy.child. Loads of procedures and changes of the schema: voltpy.loads. Snapshots:
voltpy.snapshot_holding.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import msgspec

from voltpy.actions import Action, Actions, Done, Kill, Ready, Start, Terminate
from voltpy.child import ROUTER, Child, ProcessFigures
from voltpy.ending import ending
from voltpy.heartbeat import Beat
from voltpy.loads import Loads
from voltpy.messages import (
    BatchesHeld,
    CheckpointBegun,
    CheckpointHeld,
    CheckpointReleased,
    Detach,
    LoadPrepared,
    Message,
    PartitionAddress,
    Refusal,
    Runaway,
    StatusReply,
    StatusRequest,
    Topology,
    Welcome,
)
from voltpy.schema import Schema
from voltpy.snapshot_holding import Snapshots

EXIT_CORRUPTION = 3
EXIT_CONFIGURATION = 4
EXIT_PORT_TAKEN = 5
EXIT_UNFIT = 6  # its rows don't allow what the schema has

STABLE_S = 10.0  # a child that served this long starts with a clean record
FAILURES_AT_START = 5  # a child that exits this often before the cluster is ready ends the start
STATUS_INTERVAL_S = 0.5
RUNAWAY_GRACE_S = 1.0  # beyond the procedure timeout, at which the partition ends the call itself
ROUTER_STOP_S = 3.0  # the router's share of STOP_S: replies that are still coming go through it
COORDINATOR_STOP_S = 6.0  # until then the partitions decide with it what it has under way
STOP_S = 10.0
STOP_ANSWER_S = 1.0  # for the answer to a stop command to get through the router
RUNAWAYS_KEPT = 64
STARTING_NOTICE_S = 5.0


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
        self.runaways: list[Runaway] = []
        self.ready = False
        self.stopping = False
        self.is_schema_unfit = False  # the start has failed, since rows don't allow what the schema has
        self._cluster_id = cluster_id
        self._runtime = runtime
        self._version = first_version
        self._ready_asked: dict[int, int] = {}  # by child: the question whose answer says that it knows the topology
        self._dead_epoch = 0  # of the coordinator that died last
        self._actions = Actions()
        new_number = count(first_version + 1).__next__  # no number of an earlier supervisor's is given again
        self._loads = Loads(
            self.partitions, self.coordinator, self._actions, catalog_version, new_number, self._publish
        )
        self._snapshots = Snapshots(self.partitions, self.coordinator, self._actions, new_number)
        self._stop_asked = 0  # the router's answer to this question comes behind the answer to a stop command
        self._stop_at_s = 0.0
        self._told_to_stop: set[int] = set()
        self._killed = False
        self._done = False
        self._error = ""

    def take(self) -> list[Action]:
        """The actions decided since the last call, to carry out in this order."""
        return self._actions.take()

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
        if number != ROUTER:
            self._loads.worker_died(child)
        if child is self.coordinator:
            self._coordinator_died(epoch)
        elif number != ROUTER:
            self._snapshots.fail(f"{child.name} died")
        self._after_exit(child, now_s)
        if number != ROUTER:
            self._publish()

    def said(self, number: int, message: Message, now_s: float) -> None:
        """A message from the child's present process, other than Admin (see `load_procedures`, `stop`)."""
        child = self.child(number)
        if isinstance(message, StatusReply):
            self._answered(child, message, now_s)
        elif isinstance(message, LoadPrepared):
            self._loads.prepared(child, message, now_s)
        elif isinstance(message, BatchesHeld):
            self._loads.batches_held(message, now_s)
            self._snapshots.batches_held(message, now_s)
        elif isinstance(message, CheckpointBegun):
            self._snapshots.checkpoint_begun(child, message, now_s)
        elif isinstance(message, CheckpointHeld):
            self._snapshots.checkpoint_held(child, message)
        elif isinstance(message, CheckpointReleased):
            self._snapshots.checkpoint_released(child, message)
        elif isinstance(message, Refusal):
            self._actions.warn("refused", child=child.name, code=message.code, reason=message.message)
        elif not isinstance(message, Welcome):
            self._actions.warn("unexpected_message", child=child.name, message=type(message).__name__)

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
        self._actions.warn("runaway_killed", child=child.name, procedure=procedure, client_id=stuck.client_id)
        self._actions.add(Kill(number))

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
                self._actions.report("still_starting", child=child.name, seconds=round(now_s - child.since_s))
        if self._stop_asked and now_s - self._stop_at_s >= STOP_ANSWER_S:
            return self.stop(now_s)
        self._snapshots.tick(now_s)
        self._loads.tick(now_s)

    def load_procedures(self, admin_number: int, source: str, path: str, now_s: float) -> None:
        """Replace the procedures; the answer to `admin_number` follows when it has worked or failed."""
        self._loads.load_procedures(admin_number, source, path, self._refusal(self._other_load()), now_s)

    def change_schema(
        self, admin_number: int, schema: Schema, kind: str, source: str, path: str, now_s: float, *, cuts_first: bool
    ) -> None:
        """Replace the schema; the procedures stay what they are. The answer follows when it has worked or failed.

        `cuts_first`: no row may change between the check of the rows and the switch.
        """
        other, snapshot = self._other_load(), self._snapshots.under_way
        if not other and snapshot is not None:
            other = f"a snapshot into {snapshot.directory} is under way (process {snapshot.pid}); try again later"
        refusal = self._refusal(other)
        self._loads.change_schema(admin_number, schema, kind, source, path, refusal, now_s, cuts_first=cuts_first)

    def persisted(self, error: str) -> None:
        """The answer to Persist; `error` is empty when the new procedures, or the new schema, are durable."""
        self._loads.persisted(error)

    @property
    def is_loading(self) -> bool:
        return self._loads.is_loading

    @property
    def catalog_version(self) -> int:
        """That every worker must have."""
        return self._loads.version

    @property
    def all_serve(self) -> bool:
        """Whether every worker does that has not failed for good."""
        return all(child.state in ("serving", "failed") for child in self.workers())

    def begin_snapshot(self, admin_number: int, body: dict[str, Any], now_s: float) -> None:
        """Let every partition hold a checkpoint of now. The answer comes at once, `renew_snapshot` says how it goes."""
        other = "a change of the schema is under way; try again later" if self._loads.is_changing_schema else ""
        self._snapshots.begin(admin_number, body, self._refusal(other), now_s)

    def renew_snapshot(self, admin_number: int, body: dict[str, Any], now_s: float) -> None:
        """Whoever copies is still there, and asks how it goes."""
        self._snapshots.renew(admin_number, body, now_s)

    def end_snapshot(self, admin_number: int, body: dict[str, Any]) -> None:
        """Everything is copied, or it has come to nothing: then `body` has a reason."""
        self._snapshots.end(admin_number, body)

    def stop_command(self, admin_number: int, body: dict[str, Any], now_s: float) -> None:
        """Answer with `body`, and stop when the router has had the time to pass it on."""
        self._actions.answer(admin_number, body)
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
            self._loads.announced,
            self._cluster_id,
            self._runtime,
            partitions,
            self._loads.procedures,
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
            "router": self.router.status(figures, now_s),
            "coordinator": self.coordinator.status(figures, now_s),
            "partitions": [{"partition": child.number, **child.status(figures, now_s)} for child in self.partitions],
            "runaways": [msgspec.structs.asdict(runaway) for runaway in self.runaways],
        }

    # ── steps ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _start(self, child: Child, now_s: float) -> None:
        child.enter("starting", now_s)
        child.restarts += 1
        self._actions.add(Start(child.number, child.runaway))
        self._ask(child, now_s)

    def _ask(self, child: Child, now_s: float) -> None:
        child.asked += 1
        child.asked_at_s = now_s
        self._actions.tell(child, StatusRequest(child.asked))

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
            self._actions.report("serving", child=child.name, incarnation=reply.incarnation, restarts=child.restarts)
            if child.number == ROUTER:
                self._publish()
            elif child is not self.coordinator and self.coordinator.state != "serving" and self._dead_epoch:
                self._actions.tell(child, Detach(self._dead_epoch))
        if child.number != ROUTER:
            self._loads.check(child, reply)
            if moved:
                self._publish()
        if child.number == ROUTER and self._stop_asked and reply.number >= self._stop_asked and not self.stopping:
            self.stop(now_s)
        elif not self.ready:
            self._ready_on(now_s)

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
            self._actions.add(Ready(self.router.tcp_port))

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
            self._loads.switched(child)
            return self._actions.warn("failed", child=child.name, exit_status=child.exit_status, reason=why)
        child.enter("backoff", now_s)
        wait_s = child.backoff_s()
        child.backoff_until_s = now_s + wait_s
        exit_fields = {"exit_status": child.exit_status, "reason": why}
        self._actions.warn("exited", child=child.name, **exit_fields, restart_in_s=wait_s)
        if wait_s == 0.0:
            self._start(child, now_s)

    def _publish(self) -> None:
        self._version += 1
        if not self._loads.known:
            return  # a client would believe that there are none under this catalog version
        for child in (self.router, self.coordinator):
            if child.state == "serving":
                self._actions.tell(child, self.topology())

    def _coordinator_died(self, epoch: int) -> None:
        """What a coordinator had borrowed, and not prepared, need not wait for its successor."""
        self._snapshots.coordinator_died()
        if epoch:  # otherwise it never knew the partitions
            self._dead_epoch = epoch
            for child in self.partitions:
                if child.state == "serving":
                    self._actions.tell(child, Detach(epoch))

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
            self._actions.add(Done(self._error))

    def _terminate(self, child: Child) -> None:
        """Once."""
        if child.runs and child.number not in self._told_to_stop:
            self._told_to_stop.add(child.number)
            self._actions.add(Terminate(child.number))

    def _kill_all(self) -> None:
        if self._killed:
            return
        self._killed = True
        for child in self.children():
            if child.runs:
                self._actions.warn("killed_at_stop", child=child.name)
                self._actions.add(Kill(child.number))

    def _other_load(self) -> str:
        if self._loads.is_changing_schema:
            return "a change of the schema is under way"
        return "another load of procedures is under way" if self._loads.is_loading else ""

    def _refusal(self, other: str) -> str:
        """Why nothing new can begin, be it for something other; empty: it can."""
        down = [child.name for child in self.workers() if child.state != "serving"]
        if self.stopping:
            return "the cluster is stopping"
        return other or (f"{', '.join(down)} can't take part: not serving" if down else "")
