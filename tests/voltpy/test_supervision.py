"""The supervisor's decisions, without a process."""

from __future__ import annotations

from typing import Any, TypeVar

from voltpy.actions import Action, Done, Kill, Persist, Ready, Report, Start, Tell, Terminate
from voltpy.child import ROUTER, ProcessFigures
from voltpy.cut import CUT_LEASE_S, CUT_LIMIT_S
from voltpy.heartbeat import Beat
from voltpy.loads import LOAD_LIMIT_S
from voltpy.messages import (
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
    Parameter,
    PartitionAddress,
    PrepareLoad,
    ProcedureInfo,
    ReleaseCheckpoint,
    RenewHold,
    ResumeBatches,
    Runaway,
    StatusReply,
    StatusRequest,
    SwitchLoad,
    Topology,
)
from voltpy.schema import Column, Schema, Table, to_json
from voltpy.supervision import (
    COORDINATOR_STOP_S,
    FAILURES_AT_START,
    ROUTER_STOP_S,
    STABLE_S,
    STATUS_INTERVAL_S,
    STOP_S,
    Supervision,
)

M = TypeVar("M")
VOTE = ProcedureInfo("vote", [0], False, False, [Parameter("phone", "int", True)], "")
COUNT = ProcedureInfo("count", [], True, True, [], "")
LOAD = ProcedureInfo("voltpy.load", [0], False, False, [], "")
OLD, NEW = [VOTE], [COUNT, VOTE]
COORDINATOR = 2


class World:
    """A Supervision whose children answer when they are told to, and a record of what it decided."""

    def __init__(self, partitions: int = 2, timeout_s: float = 5.0) -> None:
        self.core = Supervision(
            partitions,
            cluster_id="c",
            runtime="/run/v",
            catalog_version=4,
            procedure_timeout_s=timeout_s,
            first_version=100,
        )
        self.now_s = 1000.0
        self.actions: list[Action] = []
        self.core.begin(self.now_s)
        self.take()

    def take(self) -> list[Action]:
        taken = self.core.take()
        self.actions += taken
        return taken

    def answer(
        self, number: int, *, incarnation: int = 1, catalog: int = 4, infos: list[ProcedureInfo] = OLD, **metrics: Any
    ) -> list[Action]:
        child = self.core.child(number)
        port = 21212 if number == ROUTER else 30000 + number
        reply = StatusReply(child.asked, incarnation, 10 * incarnation, catalog, port, infos, metrics)
        self.core.said(number, reply, self.now_s)
        return self.take()

    def exit(self, number: int, status: int, words: str = "") -> list[Action]:
        self.core.exited(number, status, words, self.now_s)
        return self.take()

    def tick(self, seconds: float) -> list[Action]:
        self.now_s += seconds
        self.core.tick(self.now_s)
        return self.take()

    def told(self, actions: list[Action], number: int, kind: type[M]) -> list[M]:
        return [a.message for a in actions if isinstance(a, Tell) and a.child == number and isinstance(a.message, kind)]

    def serve(self) -> None:
        """Everything up and ready."""
        coordinator = self.core.coordinator.number
        for number in range(coordinator + 1):
            self.answer(number)
        self.answer(ROUTER)
        self.answer(ROUTER)
        self.answer(coordinator)
        assert self.core.ready


def of(actions: list[Action], kind: type[M]) -> list[M]:
    return [action for action in actions if isinstance(action, kind)]


def test_everything_is_started_and_asked_at_once() -> None:
    world = World()
    assert of(world.actions, Start) == [Start(number, None) for number in (ROUTER, 0, 1, COORDINATOR)]
    assert world.told(world.actions, 1, StatusRequest) == [StatusRequest(1)]


def test_ready_comes_only_after_router_and_coordinator_have_read_a_complete_topology() -> None:
    world = World()
    world.answer(ROUTER)
    world.answer(0)
    world.answer(COORDINATOR)
    actions = world.answer(1)
    [topology] = world.told(actions, ROUTER, Topology)
    assert world.told(actions, COORDINATOR, Topology) == [topology]
    assert topology.coordinator == PartitionAddress(COORDINATOR, 1, "/run/v/p2", 30002, 10)
    assert [p.incarnation for p in topology.partitions] == [1, 1]
    assert [p.ipc_path for p in topology.partitions] == ["/run/v/p0", "/run/v/p1"]
    assert [p.tcp_port for p in topology.partitions] == [30000, 30001]
    assert [p.lsn for p in topology.partitions] == [10, 10]
    assert (topology.cluster_id, topology.catalog_version, topology.procedures) == ("c", 4, OLD)
    # The question that confirms it goes out behind the topology.
    for child in (ROUTER, COORDINATOR):
        kinds = [type(a.message) for a in actions if isinstance(a, Tell) and a.child == child]
        assert kinds.index(StatusRequest) > kinds.index(Topology)
    world.answer(COORDINATOR)
    assert not world.core.ready
    assert of(world.answer(ROUTER), Ready) == [Ready(21212)]


def test_versions_of_the_topology_only_grow() -> None:
    world = World()
    world.serve()
    world.exit(0, -9)
    world.answer(0, incarnation=2)
    versions = [t.version for t in world.told(world.actions, ROUTER, Topology)]
    assert versions == sorted(set(versions))
    assert versions[0] > 100


def test_a_partition_that_dies_is_announced_at_once_and_started_again_at_once() -> None:
    world = World()
    world.serve()
    actions = world.exit(1, -9)
    [topology] = world.told(actions, ROUTER, Topology)
    assert [p.incarnation for p in topology.partitions] == [1, 0]
    assert of(actions, Start) == [Start(1, None)]
    [topology] = world.told(world.answer(1, incarnation=2), ROUTER, Topology)
    assert [p.incarnation for p in topology.partitions] == [1, 2]


def test_a_child_that_keeps_dying_is_started_less_and_less_often() -> None:
    world = World()
    world.serve()
    waits = []
    for _ in range(9):
        world.exit(0, 1)
        child = world.core.child(0)
        waits.append(round(child.backoff_until_s - world.now_s, 6))
        if child.state == "backoff":
            assert of(world.tick(waits[-1] - 0.01), Start) == []
            assert of(world.tick(0.02), Start) == [Start(0, None)]
    assert waits == [0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


def test_a_child_that_served_for_a_while_starts_with_a_clean_record() -> None:
    world = World()
    world.serve()
    for _ in range(4):
        world.exit(0, 1)
        world.tick(5.0)
    world.answer(0, incarnation=2)
    world.tick(STABLE_S)
    assert of(world.exit(0, 1), Start) == [Start(0, None)]


def test_a_router_that_comes_back_gets_the_topology_again() -> None:
    world = World()
    world.serve()
    assert of(world.exit(ROUTER, -9), Start) == [Start(ROUTER, None)]
    [topology] = world.told(world.answer(ROUTER), ROUTER, Topology)
    assert [p.incarnation for p in topology.partitions] == [1, 1]


def test_a_refusal_at_the_first_start_ends_the_start_with_its_message() -> None:
    for number, status in ((0, 3), (1, 4), (0, 6), (COORDINATOR, 3), (ROUTER, 5)):
        world = World()
        actions = world.exit(number, status, "voltpy: it is broken")
        stopped = []
        for other in [n for n in (ROUTER, COORDINATOR, 0, 1) if n != number]:
            stopped += [a.child for a in of(actions, Terminate)]
            assert other in stopped
            actions = world.exit(other, 0)
        [done] = of(actions, Done)
        assert done.error.endswith("can't start: voltpy: it is broken")
        assert world.core.is_schema_unfit == (status == 6)


def test_a_partition_that_refuses_later_fails_alone() -> None:
    world = World()
    world.serve()
    world.exit(1, -9)
    actions = world.exit(1, 3, "damaged at offset 12")
    assert of(actions, Start) == []
    assert world.core.child(1).state == "failed"
    world.tick(60.0)
    assert world.core.child(1).state == "failed"
    assert not world.core.stopping
    status = world.core.status({}, world.now_s)["partitions"]
    assert (status[1]["state"], status[1]["last_words"]) == ("failed", "damaged at offset 12")
    assert status[0]["state"] == "serving"


def test_a_procedure_that_ends_its_process_like_a_refusal_does_not_fail_the_partition() -> None:
    world = World()
    world.serve()
    assert of(world.exit(1, 3), Start) == [Start(1, None)]
    assert world.core.child(1).state == "starting"


def test_a_coordinator_that_learns_of_another_decision_log_than_its_own_fails() -> None:
    world = World()
    world.serve()
    assert of(world.exit(COORDINATOR, 3, "its decision log has been lost"), Start) == []
    assert world.core.child(COORDINATOR).state == "failed"
    assert not world.core.stopping


def test_a_child_that_crashes_again_and_again_before_ready_ends_the_start() -> None:
    world = World()
    for _ in range(FAILURES_AT_START):
        assert not world.core.stopping
        world.tick(5.0)
        world.exit(0, 1, "ImportError: no")
    assert world.core.stopping
    world.exit(ROUTER, 0)
    world.exit(COORDINATOR, 0)
    [done] = of(world.exit(1, 0), Done)
    assert done.error == f"partition 0 ended {FAILURES_AT_START} times while starting: ImportError: no"


def test_a_taken_port_is_no_reason_to_give_up_once_the_cluster_serves() -> None:
    world = World()
    world.serve()
    world.exit(ROUTER, -9)
    world.exit(ROUTER, 5, "port 21212 is taken")
    assert world.core.child(ROUTER).state == "backoff"
    assert of(world.tick(0.2), Start) == [Start(ROUTER, None)]


def test_a_runaway_is_killed_listed_and_handed_to_the_next_process() -> None:
    world = World(timeout_s=5.0)
    world.serve()
    stuck = Beat(77, 12, 3, 0)
    world.core.looked(0, stuck, world.now_s)
    world.core.looked(0, stuck, world.now_s + 5.9)
    assert world.take() == []
    world.core.looked(0, stuck, world.now_s + 6.1)
    assert of(world.take(), Kill) == [Kill(0)]
    call = Runaway(77, 12, "vote")
    actions = world.exit(0, -9)
    [topology] = world.told(actions, ROUTER, Topology)
    assert (topology.runaways, topology.partitions[0].incarnation) == ([call], 0)
    assert of(actions, Start) == [Start(0, call)]
    # It is named again until a process has taken note of it and serves.
    assert of(world.exit(0, 1) + world.tick(0.2), Start) == [Start(0, call)]
    world.answer(0, incarnation=3)
    assert of(world.exit(0, -9) + world.tick(0.5), Start) == [Start(0, None)]


def test_a_process_that_stands_still_and_runs_no_call_is_killed_and_no_call_is_called_a_runaway() -> None:
    world = World(timeout_s=5.0)
    world.serve()
    world.core.looked(0, Beat(0, 12, 3, 0), world.now_s)
    world.core.looked(0, Beat(0, 12, 3, 0), world.now_s + 6.1)
    assert of(world.take(), Kill) == [Kill(0)]
    actions = world.exit(0, -9)
    [topology] = world.told(actions, ROUTER, Topology)
    assert topology.runaways == []
    assert of(actions, Start) == [Start(0, None)]


def test_only_the_last_runaways_are_kept() -> None:
    world = World(timeout_s=1.0)
    world.serve()
    for number in range(1, 101):
        world.core.looked(0, Beat(5, number, 1, 0), world.now_s)
        world.core.looked(0, Beat(5, number, 1, 0), world.now_s + 3)
    kept = world.core.topology().runaways
    assert [call.call_number for call in kept] == list(range(37, 101))


def test_questions_do_not_pile_up_before_a_child_that_does_not_answer() -> None:
    world = World()
    world.serve()
    assert world.told(world.tick(STATUS_INTERVAL_S), 0, StatusRequest)
    for _ in range(100):
        assert world.told(world.tick(STATUS_INTERVAL_S), 0, StatusRequest) == []
    world.answer(0)
    assert len(world.told(world.tick(STATUS_INTERVAL_S), 0, StatusRequest)) == 1


def test_an_answer_that_nobody_asked_for_does_not_end_the_questions() -> None:
    world = World()
    world.serve()
    world.core.said(0, StatusReply(0, 1, 10, 4, 30000, OLD, {}), world.now_s)
    assert world.told(world.tick(STATUS_INTERVAL_S), 0, StatusRequest)


def test_status_has_rates_and_what_the_system_says() -> None:
    world = World()
    world.serve()
    world.tick(STATUS_INTERVAL_S)
    world.answer(0, calls=100)
    world.tick(STATUS_INTERVAL_S)
    world.answer(0, calls=600)
    world.core.started(0, 4711)
    status = world.core.status({0: ProcessFigures(1 << 20, 2.5)}, world.now_s)["partitions"][0]
    assert status["calls_per_s"] == 500 / STATUS_INTERVAL_S
    assert (status["pid"], status["rss_bytes"], status["cpu_s"], status["restarts"]) == (4711, 1 << 20, 2.5, 0)
    assert (status["incarnation"], status["lsn"], status["metrics"]) == (1, 10, {"calls": 600})


# ── loading procedures ──────────────────────────────────────────────────────────────────────────────────────────────


WORKERS = (0, 1, COORDINATOR)


def prepared(version: int, error: str = "", infos: list[ProcedureInfo] = NEW) -> Message:
    return LoadPrepared(version, error, infos)


def test_procedures_are_stored_then_switched_then_announced_then_confirmed() -> None:
    world = World()
    world.serve()
    world.core.load_procedures(9, "source", "p.py", world.now_s)
    actions = world.take()
    assert [world.told(actions, n, PrepareLoad) for n in WORKERS] == [[PrepareLoad(5, "source", "p.py")]] * 3
    world.core.said(0, prepared(5), world.now_s)
    world.core.said(COORDINATOR, prepared(5), world.now_s)
    assert world.take() == []
    world.core.said(1, prepared(5), world.now_s)
    assert world.take() == [Persist(5, "p.py", "source")]
    assert world.core.catalog_version == 4
    world.core.persisted("")
    actions = world.take()
    assert [world.told(actions, n, SwitchLoad) for n in WORKERS] == [[SwitchLoad(5)]] * 3
    to_router = [a.message for a in actions if isinstance(a, Tell) and a.child == ROUTER]
    assert isinstance(to_router[0], Topology)
    assert (to_router[0].catalog_version, to_router[0].procedures) == (5, NEW)
    assert to_router[1] == AdminReply(9, "", {"catalog_version": 5, "procedures": ["count", "vote"]})


def refused(world: World, actions: list[Action]) -> tuple[str, str]:
    [reply] = world.told(actions, ROUTER, AdminReply)
    return reply.error, reply.body["message"]


def test_procedures_that_one_partition_refuses_are_forgotten_by_all() -> None:
    world = World()
    world.serve()
    world.core.load_procedures(9, "source", "p.py", world.now_s)
    world.core.said(0, prepared(5), world.now_s)
    world.core.said(1, prepared(5, "there is no table votes"), world.now_s)
    actions = world.take()
    assert [world.told(actions, n, DiscardLoad) for n in WORKERS] == [[DiscardLoad(5)]] * 3
    assert refused(world, actions) == ("SchemaError", "there is no table votes")
    assert world.core.catalog_version == 4
    # A late answer to it doesn't count for the next one.
    world.core.load_procedures(10, "source", "p.py", world.now_s)
    world.core.said(0, prepared(5), world.now_s)
    world.core.said(1, prepared(6), world.now_s)
    world.core.said(COORDINATOR, prepared(6), world.now_s)
    assert of(world.take(), Persist) == []
    world.core.said(0, prepared(6), world.now_s)
    assert of(world.take(), Persist) == [Persist(6, "p.py", "source")]


def test_partitions_that_disagree_about_the_procedures_get_none() -> None:
    world = World()
    world.serve()
    world.core.load_procedures(9, "source", "p.py", world.now_s)
    for number, infos in ((0, NEW), (COORDINATOR, NEW), (1, OLD)):
        world.core.said(number, prepared(5, infos=infos), world.now_s)
    assert refused(world, world.take())[0] == "SchemaError"


def test_the_coordinator_need_not_know_the_engines_own_procedures() -> None:
    world = World()
    world.serve()
    world.core.load_procedures(9, "source", "p.py", world.now_s)
    for number, infos in ((COORDINATOR, NEW), (0, [*NEW, LOAD]), (1, [*NEW, LOAD])):
        world.core.said(number, prepared(5, infos=infos), world.now_s)
    world.core.persisted("")
    assert world.core.topology().procedures == [*NEW, LOAD]
    # Each child's heartbeat counts its own.
    for number, procedure in ((0, "voltpy.load"), (COORDINATOR, "vote")):
        world.core.looked(number, Beat(7, 1, 1, 1), world.now_s)
        world.core.looked(number, Beat(7, 1, 1, 1), world.now_s + 7)
        assert world.core.runaways[-1].procedure == procedure


def test_a_load_is_refused_while_a_partition_is_down_or_another_load_runs() -> None:
    world = World()
    world.serve()
    world.exit(1, -9)
    world.core.load_procedures(9, "source", "p.py", world.now_s)
    assert refused(world, world.take()) == ("Unavailable", "partition 1 can't take part: not serving")
    world.answer(1, incarnation=2)
    world.core.load_procedures(10, "source", "p.py", world.now_s)
    world.take()
    world.core.load_procedures(11, "source", "p.py", world.now_s)
    assert refused(world, world.take()) == ("Unavailable", "another load of procedures is under way")


def test_a_partition_that_dies_or_sleeps_ends_the_load() -> None:
    world = World()
    world.serve()
    world.core.load_procedures(9, "source", "p.py", world.now_s)
    world.core.said(0, prepared(5), world.now_s)
    assert refused(world, world.exit(1, -9))[0] == "Unavailable"
    world.answer(1, incarnation=2)
    world.core.load_procedures(10, "source", "p.py", world.now_s)
    world.core.said(0, prepared(6), world.now_s)
    world.core.said(COORDINATOR, prepared(6), world.now_s)
    actions = world.tick(LOAD_LIMIT_S)
    assert refused(world, actions) == ("Unavailable", "no answer from partition 1 within 30 s")
    assert Kill(1) in actions  # the file may never end
    assert Kill(0) not in actions


def test_procedures_that_cannot_be_stored_are_forgotten() -> None:
    world = World()
    world.serve()
    world.core.load_procedures(9, "source", "p.py", world.now_s)
    for number in WORKERS:
        world.core.said(number, prepared(5), world.now_s)
    world.core.persisted("No space left on device")
    actions = world.take()
    assert [world.told(actions, n, DiscardLoad) for n in WORKERS] == [[DiscardLoad(5)]] * 3
    assert refused(world, actions)[1].endswith("No space left on device")


def test_a_partition_that_missed_the_switch_is_started_again() -> None:
    world = World()
    world.serve()
    world.tick(STATUS_INTERVAL_S)
    world.core.load_procedures(9, "source", "p.py", world.now_s)
    for number in WORKERS:
        world.core.said(number, prepared(5), world.now_s)
    world.take()
    world.core.persisted("")
    # Asked before the switch was sent: the old version is the right answer.
    assert of(world.answer(0, catalog=4), Kill) == []
    world.tick(STATUS_INTERVAL_S)
    assert of(world.answer(0, catalog=4), Kill) == [Kill(0)]
    assert of(world.answer(1, catalog=5), Kill) == []


# ── stopping ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_stop_ends_the_router_first_then_the_coordinator_and_then_the_partitions() -> None:
    world = World()
    world.serve()
    world.core.stop(world.now_s)
    assert of(world.take(), Terminate) == [Terminate(ROUTER)]
    assert of(world.exit(ROUTER, 0), Terminate) == [Terminate(COORDINATOR)]
    assert of(world.exit(COORDINATOR, 0), Terminate) == [Terminate(0), Terminate(1)]
    assert of(world.exit(0, 0), Start) == []
    assert of(world.exit(1, 0), Done) == [Done("")]


def test_a_stop_command_is_answered_through_the_router_before_it_stops() -> None:
    world = World()
    world.serve()
    world.core.stop_command(3, {"pid": 1}, world.now_s)
    actions = world.take()
    assert world.told(actions, ROUTER, AdminReply) == [AdminReply(3, "", {"pid": 1})]
    assert of(actions, Terminate) == []
    assert of(world.answer(ROUTER), Terminate) == [Terminate(ROUTER)]
    # A router that doesn't answer is not waited for.
    world = World()
    world.serve()
    world.core.stop_command(3, {"pid": 1}, world.now_s)
    assert of(world.tick(0.5), Terminate) == []
    assert of(world.tick(0.6), Terminate) == [Terminate(ROUTER)]


def test_a_stop_does_not_wait_for_ever() -> None:
    world = World()
    world.serve()
    world.core.stop(world.now_s)
    world.take()
    assert of(world.tick(ROUTER_STOP_S), Terminate) == [Terminate(COORDINATOR)]
    assert of(world.tick(COORDINATOR_STOP_S - ROUTER_STOP_S), Terminate) == [Terminate(0), Terminate(1)]
    assert of(world.tick(STOP_S), Kill) == [Kill(number) for number in (ROUTER, 0, 1, COORDINATOR)]
    assert of(world.tick(1.0), Kill) == []


def test_a_second_stop_waits_for_nobody() -> None:
    world = World()
    world.serve()
    world.core.stop(world.now_s)
    world.take()
    world.core.stop(world.now_s)
    assert of(world.take(), Kill) == [Kill(number) for number in (ROUTER, 0, 1, COORDINATOR)]


def test_a_stop_while_a_partition_waits_for_its_restart_does_not_start_it() -> None:
    world = World()
    world.serve()
    world.exit(0, 1)
    world.exit(0, 1)
    assert world.core.child(0).state == "backoff"
    world.core.stop(world.now_s)
    world.take()
    world.exit(ROUTER, 0)
    world.exit(COORDINATOR, 0)
    actions = world.exit(1, 0)
    assert of(actions, Done) == [Done("")]
    assert of(world.tick(60.0), Start) == []


# ── snapshots ───────────────────────────────────────────────────────────────────────────────────────────────────────


def quieting(world: World) -> int:
    """A snapshot is begun, and the coordinator is asked to hold its batches; its number."""
    world.core.begin_snapshot(1, {"directory": "/s", "pid": 4711, "lease_s": 10.0}, world.now_s)
    actions = world.take()
    (reply,) = world.told(actions, ROUTER, AdminReply)
    assert (reply.error, reply.body["state"]) == ("", "quieting")
    number: int = reply.body["snapshot"]
    assert world.told(actions, COORDINATOR, HoldBatches) == [HoldBatches(number, CUT_LEASE_S)]
    assert world.told(actions, 0, HoldCheckpoint) == []
    return number


def begun(world: World) -> int:
    """A snapshot is begun, and the partitions are asked for it; its number."""
    number = quieting(world)
    world.core.said(COORDINATOR, BatchesHeld(number), world.now_s)
    actions = world.take()
    assert [world.told(actions, n, HoldCheckpoint) for n in (0, 1)] == [[HoldCheckpoint(number, 10.0)]] * 2
    assert asked(world, number) == ("asked", "")
    return number


def begins(world: World, partition: int, number: int) -> list[Action]:
    world.core.said(partition, CheckpointBegun(number), world.now_s)
    return world.take()


def holds(world: World, partition: int, number: int, error: str = "") -> list[Action]:
    begins(world, partition, number)
    world.core.said(partition, CheckpointHeld(number, error, 3, 40 + partition, 1), world.now_s)
    return world.take()


def lets_go(world: World, partition: int, number: int, *, was_held: bool = True) -> list[Action]:
    world.core.said(partition, CheckpointReleased(number, was_held), world.now_s)
    return world.take()


def asked(world: World, number: int) -> tuple[str, str]:
    """(state, reason) that whoever copies is told, who says with it that he is there."""
    world.core.renew_snapshot(2, {"snapshot": number}, world.now_s)
    (reply,) = world.told(world.take(), ROUTER, AdminReply)
    return reply.body["state"], reply.body["reason"]


def held_by_all() -> tuple[World, int]:
    world = World()
    world.serve()
    number = begun(world)
    for partition in (0, 1):
        holds(world, partition, number)
    return world, number


def test_a_snapshot_is_held_by_all_renewed_released_by_all_and_then_made() -> None:
    world = World()
    world.serve()
    number = begun(world)
    holds(world, 0, number)
    assert asked(world, number) == ("asked", "")
    holds(world, 1, number)
    for _ in range(5):
        assert not of(world.tick(9.0), Report)
        world.core.renew_snapshot(2, {"snapshot": number}, world.now_s)
        actions = world.take()
        assert [world.told(actions, n, RenewHold) for n in (0, 1)] == [[RenewHold(number, 10.0)]] * 2
    (reply,) = world.told(actions, ROUTER, AdminReply)
    assert reply.body["state"] == "held"
    assert [entry["lsn"] for entry in reply.body["partitions"]] == [40, 41]
    world.core.end_snapshot(3, {"snapshot": number, "reason": ""})
    actions = world.take()
    assert [world.told(actions, n, ReleaseCheckpoint) for n in (0, 1)] == [[ReleaseCheckpoint(number)]] * 2
    lets_go(world, 0, number)
    assert asked(world, number) == ("releasing", "")
    lets_go(world, 1, number)
    assert asked(world, number) == ("released", "")
    assert begun(world) > number


def test_a_second_snapshot_is_refused_until_the_first_is_over() -> None:
    world, number = held_by_all()
    world.core.begin_snapshot(9, {"directory": "/t", "pid": 1, "lease_s": 10.0}, world.now_s)
    code, text = refused(world, world.take())
    assert code == "ClusterError"
    assert "a snapshot into /s is under way (process 4711)" in text
    world.core.end_snapshot(3, {"snapshot": number, "reason": "given up"})
    world.take()
    assert asked(world, number) == ("failed", "given up")
    begun(world)


def test_a_snapshot_whose_copier_is_silent_ends_with_its_lease() -> None:
    world, number = held_by_all()
    assert not of(world.tick(9.9), Report)
    actions = world.tick(0.2)
    assert [world.told(actions, n, ReleaseCheckpoint) for n in (0, 1)] == [[ReleaseCheckpoint(number)]] * 2
    assert of(actions, Report)[0].event == "snapshot_failed"
    assert asked(world, number) == ("failed", "nothing was heard of who copies it for 10 s")
    world.core.renew_snapshot(2, {"snapshot": number}, world.now_s)
    assert world.told(world.take(), 0, RenewHold) == [], "a hold that has ended is not renewed"


def test_a_partition_that_dies_refuses_or_let_go_too_early_fails_the_snapshot() -> None:
    world, number = held_by_all()
    world.exit(1, -9)
    assert asked(world, number) == ("failed", "partition 1 died")

    world = World()
    world.serve()
    number = begun(world)
    holds(world, 0, number)
    actions = holds(world, 1, number, "no room")
    assert world.told(actions, 0, ReleaseCheckpoint) == [ReleaseCheckpoint(number)]
    assert asked(world, number) == ("failed", "partition 1: no room")

    world, number = held_by_all()
    world.core.end_snapshot(3, {"snapshot": number})
    world.take()
    lets_go(world, 0, number)
    lets_go(world, 1, number, was_held=False)
    assert asked(world, number) == ("failed", "partition 1 did not hold its checkpoint to the end")


def test_a_snapshot_that_is_ended_before_it_is_held_or_is_another_one_is_none() -> None:
    world = World()
    world.serve()
    number = begun(world)
    holds(world, 0, number - 1)
    holds(world, 1, number - 1)
    assert asked(world, number) == ("asked", "")
    world.core.end_snapshot(3, {"snapshot": number})
    world.take()
    assert asked(world, number)[0] == "failed"
    for step in (world.core.end_snapshot, lambda n, body: world.core.renew_snapshot(n, body, world.now_s)):
        step(4, {"snapshot": number + 1})
        assert refused(world, world.take())[0] == "ClusterError"


def test_the_coordinator_goes_on_when_all_checkpoints_have_begun() -> None:
    world = World()
    world.serve()
    number = begun(world)
    assert world.told(begins(world, 0, number), COORDINATOR, ResumeBatches) == []
    world.core.said(0, CheckpointHeld(number, "", 3, 40, 1), world.now_s)
    assert world.told(begins(world, 0, number), COORDINATOR, ResumeBatches) == []
    assert world.told(begins(world, 1, number - 1), COORDINATOR, ResumeBatches) == []
    assert world.told(begins(world, 1, number), COORDINATOR, ResumeBatches) == [ResumeBatches(number)]
    assert world.told(begins(world, 1, number), COORDINATOR, ResumeBatches) == [], "once"
    # From here on the coordinator may die: what it was to do for the snapshot is done.
    world.exit(COORDINATOR, -9)
    assert asked(world, number) == ("asked", "")
    holds(world, 1, number)
    assert asked(world, number) == ("held", "")


def test_a_snapshot_fails_when_the_coordinator_dies_before_the_cut_or_takes_too_long_for_it() -> None:
    for step in (quieting, begun):
        world = World()
        world.serve()
        number = step(world)
        world.exit(COORDINATOR, -9)
        assert asked(world, number) == ("failed", "the coordinator died")

        world = World()
        world.serve()
        number = step(world)
        begins(world, 0, number)
        for _ in range(5):
            world.tick(CUT_LIMIT_S / 6)
            asked(world, number)
        actions = world.tick(CUT_LIMIT_S / 6)
        assert world.told(actions, COORDINATOR, ResumeBatches) == [ResumeBatches(number)]
        told = world.told(actions, 1, ReleaseCheckpoint)
        assert told == ([] if step is quieting else [ReleaseCheckpoint(number)])
        assert asked(world, number)[0] == "failed"
        world.core.said(COORDINATOR, BatchesHeld(number), world.now_s)
        begins(world, 1, number)
        assert asked(world, number)[0] == "failed"


def test_a_checkpoint_that_was_heard_to_begin_too_late_makes_no_cut() -> None:
    world = World()
    world.serve()
    number = begun(world)
    begins(world, 0, number)
    world.now_s += CUT_LIMIT_S  # this process was stopped meanwhile: no tick came
    begins(world, 1, number)
    assert asked(world, number) == ("asked", "")
    world.tick(0.0)
    assert asked(world, number)[0] == "failed"


def test_a_snapshot_that_is_given_up_lets_the_coordinator_go_on() -> None:
    world = World()
    world.serve()
    number = quieting(world)
    world.core.end_snapshot(3, {"snapshot": number, "reason": "Ctrl-C"})
    assert world.told(world.take(), COORDINATOR, ResumeBatches) == [ResumeBatches(number)]
    begun(world)


def test_a_snapshot_of_one_partition_does_not_ask_the_coordinator() -> None:
    world = World(1)
    world.serve()
    world.core.begin_snapshot(1, {"directory": "/s", "pid": 4711, "lease_s": 10.0}, world.now_s)
    actions = world.take()
    assert world.told(actions, 1, HoldBatches) == []
    (hold,) = world.told(actions, 0, HoldCheckpoint)
    begins(world, 0, hold.snapshot)
    world.core.said(0, CheckpointHeld(hold.snapshot, "", 3, 40, 1), world.now_s)
    assert asked(world, hold.snapshot) == ("held", "")


def test_a_snapshot_is_refused_while_the_coordinator_is_down() -> None:
    world = World()
    world.serve()
    world.exit(COORDINATOR, -9)
    world.core.begin_snapshot(1, {"directory": "/s", "pid": 1, "lease_s": 1}, world.now_s)
    assert refused(world, world.take()) == ("Unavailable", "coordinator can't take part: not serving")


# ── the coordinator ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_coordinator_that_dies_is_announced_to_the_router_and_as_dead_to_the_partitions() -> None:
    world = World()
    world.serve()
    actions = world.exit(COORDINATOR, -9)
    assert [world.told(actions, n, Detach) for n in (0, 1)] == [[Detach(1)]] * 2
    [topology] = world.told(actions, ROUTER, Topology)
    assert topology.coordinator is not None
    assert topology.coordinator.incarnation == 0
    assert of(actions, Start) == [Start(COORDINATOR, None)]
    actions = world.answer(COORDINATOR, incarnation=2)
    [topology] = world.told(actions, COORDINATOR, Topology)
    assert world.told(actions, ROUTER, Topology) == [topology]
    assert topology.coordinator is not None
    assert topology.coordinator.incarnation == 2


def test_partitions_that_start_while_the_coordinator_is_down_hear_that_it_is_dead() -> None:
    world = World()
    world.serve()
    world.exit(0, -9)
    actions = world.exit(COORDINATOR, -9)
    assert [world.told(actions, n, Detach) for n in (0, 1)] == [[], [Detach(1)]]
    assert world.told(world.answer(0, incarnation=2), 0, Detach) == [Detach(1)]
    world.answer(COORDINATOR, incarnation=2)
    world.exit(1, -9)
    assert world.told(world.answer(1, incarnation=2), 1, Detach) == []


def test_a_coordinator_that_dies_before_it_serves_was_nobody() -> None:
    world = World()
    world.answer(0)
    assert world.told(world.exit(COORDINATOR, 1), 0, Detach) == []


def test_the_coordinator_hears_of_every_change() -> None:
    world = World()
    world.serve()
    for actions, incarnations in ((world.exit(1, -9), [1, 0]), (world.answer(1, incarnation=2), [1, 2])):
        [topology] = world.told(actions, COORDINATOR, Topology)
        assert [p.incarnation for p in topology.partitions] == incarnations
    assert topology.coordinator is not None


def test_with_one_partition_the_coordinator_runs_and_clients_know_none() -> None:
    world = World(1)
    world.serve()
    assert world.core.child(1).state == "serving"
    assert world.core.topology().coordinator is None


def test_a_runaway_in_the_coordinator_is_handed_to_the_next_one() -> None:
    world = World(timeout_s=5.0)
    world.serve()
    stuck = Beat(77, 12, 3, 0)
    world.core.looked(COORDINATOR, stuck, world.now_s)
    world.core.looked(COORDINATOR, stuck, world.now_s + 6.1)
    assert of(world.take(), Kill) == [Kill(COORDINATOR)]
    assert of(world.exit(COORDINATOR, -9), Start) == [Start(COORDINATOR, Runaway(77, 12, "vote"))]


def test_a_coordinator_that_refuses_later_fails_alone_and_loads_wait_for_it() -> None:
    world = World()
    world.serve()
    world.exit(COORDINATOR, -9)
    assert of(world.exit(COORDINATOR, 3, "the decision log is damaged at offset 12"), Start) == []
    status = world.core.status({}, world.now_s)["coordinator"]
    assert (status["state"], status["last_words"]) == ("failed", "the decision log is damaged at offset 12")
    world.core.load_procedures(9, "source", "p.py", world.now_s)
    assert refused(world, world.take()) == ("Unavailable", "coordinator can't take part: not serving")


def test_a_snapshot_is_refused_while_a_partition_is_down_and_for_wrong_arguments() -> None:
    world = World()
    world.serve()
    for body in ({}, {"directory": "/s", "pid": 1, "lease_s": 0}, {"directory": "/s", "pid": 1, "lease_s": 1e9}):
        world.core.begin_snapshot(1, body, world.now_s)
        assert refused(world, world.take())[0] == "BadArguments"
    world.exit(1, -9)
    world.core.begin_snapshot(1, {"directory": "/s", "pid": 1, "lease_s": 1}, world.now_s)
    assert refused(world, world.take()) == ("Unavailable", "partition 1 can't take part: not serving")


# ── changing the schema ─────────────────────────────────────────────────────────────────────────────────────────────

TABLE = Table("t", (Column("id", "INT", nullable=False),), ("id",), hidden_key=False, partition_column="id")
NEW_SCHEMA = Schema((TABLE,), ())
FIFTH = Schema((TABLE,), (), catalog_version=5)
ENCODED = to_json(FIFTH)


def changing(*, cuts_first: bool = False) -> World:
    world = World()
    world.serve()
    world.core.change_schema(9, NEW_SCHEMA, "create table", "source", "p.py", world.now_s, cuts_first=cuts_first)
    return world


def all_prepared(world: World) -> list[Action]:
    for number in WORKERS:
        world.core.said(number, prepared(5, infos=OLD), world.now_s)
    return world.take()


def held(world: World, actions: list[Action]) -> list[Action]:
    [hold] = world.told(actions, COORDINATOR, HoldBatches)
    world.core.said(COORDINATOR, BatchesHeld(hold.snapshot), world.now_s)
    return world.take()


def decided(world: World) -> list[Action]:
    """Up to the decision, which is carried out."""
    assert of(held(world, all_prepared(world)), Persist) == [Persist(5, "p.py", "source", FIFTH)]
    world.core.persisted("")
    return world.take()


def versions(actions: list[Action]) -> list[int]:
    return [a.message.catalog_version for a in actions if isinstance(a, Tell) and isinstance(a.message, Topology)]


def test_schema_is_prepared_then_batches_held_then_stored_then_switched_then_announced() -> None:
    world = changing()
    actions = world.take()
    assert [world.told(actions, n, PrepareLoad) for n in WORKERS] == [[PrepareLoad(5, "source", "p.py", ENCODED)]] * 3
    assert not world.told(actions, COORDINATOR, HoldBatches)
    actions = decided(world)
    assert [world.told(actions, n, SwitchLoad) for n in WORKERS] == [[SwitchLoad(5)]] * 3
    assert versions(actions) == []
    for number in (0, COORDINATOR):
        actions = world.answer(number, catalog=5)
        assert not of(actions, Kill)
        assert versions(actions) == []
    actions = world.exit(1, -9)  # it has the new schema when it comes back
    assert set(versions(actions)) == {4}
    actions = world.answer(1, incarnation=2, catalog=5)
    assert versions(actions)[-1] == 5
    assert len(world.told(actions, COORDINATOR, ResumeBatches)) == 1
    assert world.told(actions, ROUTER, AdminReply) == [
        AdminReply(9, "", {"catalog_version": 5, "kind": "create table"})
    ]
    assert not world.core.is_loading


def test_a_partition_that_dies_while_the_schema_is_being_stored_does_not_undo_what_is_stored() -> None:
    world = changing()
    [hold] = world.told(all_prepared(world), COORDINATOR, HoldBatches)
    world.core.said(COORDINATOR, BatchesHeld(hold.snapshot), world.now_s)  # now it is to be stored …
    actions = world.exit(1, -9)  # … and before it is, another descriptor is ready
    assert of(actions, Persist) == [Persist(5, "p.py", "source", FIFTH)]
    assert world.told(actions, ROUTER, AdminReply) == []
    assert world.told(actions, 0, DiscardLoad) == []
    assert world.told(world.tick(LOAD_LIMIT_S), ROUTER, AdminReply) == []
    world.core.persisted("")
    assert world.told(world.take(), 0, SwitchLoad) == [SwitchLoad(5)]
    for number in (0, COORDINATOR):
        world.answer(number, catalog=5)
    actions = world.answer(1, incarnation=2, catalog=5)
    assert not of(actions, Kill)
    assert [reply.error for reply in world.told(actions, ROUTER, AdminReply)] == [""]


def test_procedures_that_are_being_stored_are_not_given_up_for_a_partition_that_dies() -> None:
    world = World()
    world.serve()
    world.core.load_procedures(9, "source", "p.py", world.now_s)
    for number in WORKERS:
        world.core.said(number, prepared(5), world.now_s)
    assert world.told(world.exit(1, -9), ROUTER, AdminReply) == []
    world.core.persisted("")
    assert [reply.error for reply in world.told(world.take(), ROUTER, AdminReply)] == [""]
    assert not of(world.answer(1, incarnation=2, catalog=5), Kill)


def test_batches_are_held_before_the_check_where_rows_must_not_change_after_it() -> None:
    world = changing(cuts_first=True)
    actions = world.take()
    assert not world.told(actions, 0, PrepareLoad)
    actions = held(world, actions)
    assert [world.told(actions, n, PrepareLoad) for n in WORKERS] == [[PrepareLoad(5, "source", "p.py", ENCODED)]] * 3
    assert of(all_prepared(world), Persist) == [Persist(5, "p.py", "source", FIFTH)]


def test_a_schema_is_not_stored_when_batches_may_go_on_before_it_is() -> None:
    """Rows were looked at while none could come, and the last one says so when that is over."""
    world = changing(cuts_first=True)
    held(world, world.take())
    world.now_s += CUT_LIMIT_S
    assert not of(all_prepared(world), Persist)
    world.core.tick(world.now_s)
    actions = world.take()
    assert [world.told(actions, n, DiscardLoad) for n in WORKERS] == [[DiscardLoad(5)]] * 3
    assert refused(world, actions)[0] == "Unavailable"


def test_schema_that_one_partition_refuses_is_forgotten_by_all_and_says_what_is_wrong() -> None:
    world = changing()
    world.core.said(0, prepared(5, infos=OLD), world.now_s)
    world.core.said(1, LoadPrepared(5, "two rows are equal", [], "DuplicateKey"), world.now_s)
    actions = world.take()
    assert [world.told(actions, n, DiscardLoad) for n in WORKERS] == [[DiscardLoad(5)]] * 3
    assert refused(world, actions) == ("DuplicateKey", "two rows are equal")
    assert world.core.catalog_version == 4


def test_death_before_the_decision_ends_a_change_of_the_schema() -> None:
    for child in WORKERS:
        world = changing()
        actions = all_prepared(world)
        assert len(world.told(actions, COORDINATOR, HoldBatches)) == 1
        actions = world.exit(child, -9)
        code, text = refused(world, actions)
        assert code == "Unavailable"
        assert "nothing changed" in text
        assert child == COORDINATOR or world.told(actions, COORDINATOR, ResumeBatches)
        assert not world.core.is_loading


def test_change_of_the_schema_waits_for_indexes_as_long_as_the_partition_answers() -> None:
    world = changing()
    world.take()
    for _ in range(20):
        for number in range(COORDINATOR + 1):
            world.answer(number)
        assert not of(world.tick(LOAD_LIMIT_S / 4), Kill)
    assert world.core.is_loading
    actions: list[Action] = []
    for _ in range(5):
        world.answer(0)
        world.answer(COORDINATOR)
        actions += world.tick(LOAD_LIMIT_S / 4)
    assert refused(world, actions)[0] == "Unavailable"
    assert of(actions, Kill) == [Kill(1)]


def test_change_of_the_schema_is_given_up_where_transactions_do_not_end() -> None:
    world = changing()
    [hold] = world.told(all_prepared(world), COORDINATOR, HoldBatches)
    assert hold.lease_s == CUT_LEASE_S
    actions = world.tick(CUT_LIMIT_S)
    assert "transactions across partitions were not over" in refused(world, actions)[1]
    assert len(world.told(actions, COORDINATOR, ResumeBatches)) == 1
    world.core.said(COORDINATOR, BatchesHeld(hold.snapshot), world.now_s)
    assert not of(world.take(), Persist)


def test_snapshots_and_changes_of_the_schema_keep_apart() -> None:
    world = changing()
    world.take()
    world.core.begin_snapshot(10, {"directory": "/s", "pid": 1, "lease_s": 5.0}, world.now_s)
    assert "a change of the schema is under way" in refused(world, world.take())[1]
    world = World()
    world.serve()
    world.core.begin_snapshot(10, {"directory": "/s", "pid": 1, "lease_s": 5.0}, world.now_s)
    world.take()
    world.core.change_schema(9, NEW_SCHEMA, "create table", "source", "p.py", world.now_s, cuts_first=False)
    assert "a snapshot into /s is under way" in refused(world, world.take())[1]
