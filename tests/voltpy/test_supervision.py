"""The supervisor's decisions, without a process."""

from __future__ import annotations

from typing import Any, TypeVar

from voltpy.heartbeat import Beat
from voltpy.messages import (
    AdminReply,
    DiscardLoad,
    LoadPrepared,
    Message,
    Parameter,
    PrepareLoad,
    ProcedureInfo,
    Runaway,
    StatusReply,
    StatusRequest,
    SwitchLoad,
    Topology,
)
from voltpy.supervision import (
    FAILURES_AT_START,
    LOAD_LIMIT_S,
    ROUTER,
    ROUTER_STOP_S,
    STABLE_S,
    STATUS_INTERVAL_S,
    STOP_S,
    Action,
    Done,
    Kill,
    Persist,
    ProcessFigures,
    Ready,
    Start,
    Supervision,
    Tell,
    Terminate,
)

M = TypeVar("M")
VOTE = ProcedureInfo("vote", 0, False, False, [Parameter("phone", "int", True)], "")
COUNT = ProcedureInfo("count", -1, True, True, [], "")
OLD, NEW = [VOTE], [COUNT, VOTE]


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
        for number in range(len(self.core.partitions)):
            self.answer(number)
        self.answer(ROUTER)
        self.answer(ROUTER)
        assert self.core.ready


def of(actions: list[Action], kind: type[M]) -> list[M]:
    return [action for action in actions if isinstance(action, kind)]


def test_everything_is_started_and_asked_at_once() -> None:
    world = World()
    assert of(world.actions, Start) == [Start(ROUTER, None), Start(0, None), Start(1, None)]
    assert world.told(world.actions, 1, StatusRequest) == [StatusRequest(1)]


def test_ready_comes_only_after_the_router_has_read_a_complete_topology() -> None:
    world = World()
    world.answer(ROUTER)
    world.answer(0)
    actions = world.answer(1)
    [topology] = world.told(actions, ROUTER, Topology)
    assert [p.incarnation for p in topology.partitions] == [1, 1]
    assert [p.ipc_path for p in topology.partitions] == ["/run/v/p0", "/run/v/p1"]
    assert [p.tcp_port for p in topology.partitions] == [30000, 30001]
    assert [p.lsn for p in topology.partitions] == [10, 10]
    assert (topology.cluster_id, topology.catalog_version, topology.procedures) == ("c", 4, OLD)
    # The question that confirms it goes out behind the topology.
    kinds = [type(a.message) for a in actions if isinstance(a, Tell) and a.child == ROUTER]
    assert kinds.index(StatusRequest) > kinds.index(Topology)
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
    for number, status in ((0, 3), (1, 4), (ROUTER, 5)):
        world = World()
        others = [n for n in (ROUTER, 0, 1) if n != number]
        actions = world.exit(number, status, "voltpy: it is broken")
        if number == ROUTER:
            assert [a.child for a in of(actions, Terminate)] == others
        else:
            assert [a.child for a in of(actions, Terminate)] == [ROUTER]
        for other in others:
            actions = world.exit(other, 0)
        [done] = of(actions, Done)
        assert done.error.endswith("can't start: voltpy: it is broken")


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


def test_a_child_that_crashes_again_and_again_before_ready_ends_the_start() -> None:
    world = World()
    for _ in range(FAILURES_AT_START):
        assert not world.core.stopping
        world.tick(5.0)
        world.exit(0, 1, "ImportError: no")
    assert world.core.stopping
    world.exit(ROUTER, 0)
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


def prepared(version: int, error: str = "", infos: list[ProcedureInfo] = NEW) -> Message:
    return LoadPrepared(version, error, infos)


def test_procedures_are_stored_then_switched_then_announced_then_confirmed() -> None:
    world = World()
    world.serve()
    world.core.load_procedures(9, "source", "p.py", world.now_s)
    actions = world.take()
    assert [world.told(actions, n, PrepareLoad) for n in (0, 1)] == [[PrepareLoad(5, "source", "p.py")]] * 2
    world.core.said(0, prepared(5), world.now_s)
    assert world.take() == []
    world.core.said(1, prepared(5), world.now_s)
    assert world.take() == [Persist(5, "p.py", "source")]
    assert world.core.catalog_version == 4
    world.core.persisted("")
    actions = world.take()
    assert [world.told(actions, n, SwitchLoad) for n in (0, 1)] == [[SwitchLoad(5)]] * 2
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
    assert [world.told(actions, n, DiscardLoad) for n in (0, 1)] == [[DiscardLoad(5)]] * 2
    assert refused(world, actions) == ("SchemaError", "there is no table votes")
    assert world.core.catalog_version == 4
    # A late answer to it doesn't count for the next one.
    world.core.load_procedures(10, "source", "p.py", world.now_s)
    world.core.said(0, prepared(5), world.now_s)
    world.core.said(1, prepared(6), world.now_s)
    assert of(world.take(), Persist) == []
    world.core.said(0, prepared(6), world.now_s)
    assert of(world.take(), Persist) == [Persist(6, "p.py", "source")]


def test_partitions_that_disagree_about_the_procedures_get_none() -> None:
    world = World()
    world.serve()
    world.core.load_procedures(9, "source", "p.py", world.now_s)
    world.core.said(0, prepared(5, infos=NEW), world.now_s)
    world.core.said(1, prepared(5, infos=OLD), world.now_s)
    assert refused(world, world.take())[0] == "SchemaError"


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
    actions = world.tick(LOAD_LIMIT_S)
    assert refused(world, actions) == ("Unavailable", "no answer from partition 1 within 30 s")
    assert Kill(1) in actions  # the file may never end
    assert Kill(0) not in actions


def test_procedures_that_cannot_be_stored_are_forgotten() -> None:
    world = World()
    world.serve()
    world.core.load_procedures(9, "source", "p.py", world.now_s)
    for number in (0, 1):
        world.core.said(number, prepared(5), world.now_s)
    world.core.persisted("No space left on device")
    actions = world.take()
    assert [world.told(actions, n, DiscardLoad) for n in (0, 1)] == [[DiscardLoad(5)]] * 2
    assert refused(world, actions)[1].endswith("No space left on device")


def test_a_partition_that_missed_the_switch_is_started_again() -> None:
    world = World()
    world.serve()
    world.tick(STATUS_INTERVAL_S)
    world.core.load_procedures(9, "source", "p.py", world.now_s)
    for number in (0, 1):
        world.core.said(number, prepared(5), world.now_s)
    world.take()
    world.core.persisted("")
    # Asked before the switch was sent: the old version is the right answer.
    assert of(world.answer(0, catalog=4), Kill) == []
    world.tick(STATUS_INTERVAL_S)
    assert of(world.answer(0, catalog=4), Kill) == [Kill(0)]
    assert of(world.answer(1, catalog=5), Kill) == []


# ── stopping ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_stop_ends_the_router_first_and_then_the_partitions() -> None:
    world = World()
    world.serve()
    world.core.stop(world.now_s)
    assert of(world.take(), Terminate) == [Terminate(ROUTER)]
    assert of(world.exit(ROUTER, 0), Terminate) == [Terminate(0), Terminate(1)]
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
    assert of(world.tick(ROUTER_STOP_S), Terminate) == [Terminate(0), Terminate(1)]
    assert of(world.tick(STOP_S), Kill) == [Kill(ROUTER), Kill(0), Kill(1)]
    assert of(world.tick(1.0), Kill) == []


def test_a_second_stop_waits_for_nobody() -> None:
    world = World()
    world.serve()
    world.core.stop(world.now_s)
    world.take()
    world.core.stop(world.now_s)
    assert of(world.take(), Kill) == [Kill(ROUTER), Kill(0), Kill(1)]


def test_a_stop_while_a_partition_waits_for_its_restart_does_not_start_it() -> None:
    world = World()
    world.serve()
    world.exit(0, 1)
    world.exit(0, 1)
    assert world.core.child(0).state == "backoff"
    world.core.stop(world.now_s)
    world.take()
    world.exit(ROUTER, 0)
    actions = world.exit(1, 0)
    assert of(actions, Done) == [Done("")]
    assert of(world.tick(60.0), Start) == []
