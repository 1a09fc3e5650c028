"""Every peer that is installed, started for real: it runs each workload, and answers as the Python procedures do."""

import os
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import msgspec
import pytest

from bench import experiment
from bench.experiment import Settings, make_peer, run_once
from bench.workload import BenchError, Call, CallStream, Line, NotInstalled
from bench.workloads import increment, lone, smallbank, voter

SETTINGS = Settings(0.1, 256, 8, 1, "on", "everysec", 1, 1)
PEERS = ("redis", "postgres", "dicts")
CALLS = 4000


@pytest.fixture
def directory():
    """Unlike tmp_path, one that another user can reach: PostgreSQL does not run as root."""
    with TemporaryDirectory() as path:
        os.chmod(path, 0o755)
        yield Path(path)


def started(name, directory):
    try:
        return make_peer(name, directory, SETTINGS)
    except NotInstalled as reason:
        pytest.skip(str(reason))


def answers(name: str, line: Line, calls: list[Call], directory: Path) -> list[int]:
    """What a fresh peer answers to these calls, one after another."""
    one_by_one = msgspec.structs.replace(line, drive="lone")
    with started(name, directory) as peer:
        peer.load(one_by_one)
        with peer.session(one_by_one, peer.ways(one_by_one)[0], 1, 1) as drive:
            outcome = drive(CallStream(calls, cycles=False), 10.0)
    assert outcome.calls == calls
    return [int(result) for result in outcome.results]


def votes(seed: int) -> list[Call]:
    """Few phones, so that the limit is reached; contestants and area codes that do not exist."""
    random = Random(seed)
    phones = [2_120_000_001, 2_120_000_002, 9_990_000_003, 1_000_000_004]
    return [("vote", (random.choice(phones), random.randrange(0, 15), 3)) for _ in range(40)]


def payments(seed: int) -> list[Call]:
    """Few customers and large checks, so that fees become due."""
    random = Random(seed)
    amounts = {"deposit_checking": 10**8, "transact_savings": 10**8, "write_check": 6 * smallbank.OPENING_BALANCE}
    calls: list[Call] = []
    for _ in range(60):
        name, customer = random.choice(list(smallbank.MOVED)), random.randrange(3)
        calls.append((name, (customer,) if name == "balance" else (customer, random.randrange(amounts[name]))))
    return calls


@pytest.mark.parametrize("name", ["redis", "postgres"])
@pytest.mark.parametrize(("line", "calls"), [(voter.LINES[0], votes(3)), (smallbank.LINES[0], payments(4))])
def test_a_peer_answers_what_the_python_procedures_answer(name, line, calls, directory):
    expected = answers("dicts", line, calls, directory)
    assert answers(name, line, calls, directory) == expected
    if line.workload == "voter":
        assert set(expected) == {voter.VOTE_ACCEPTED, 1, 2}
    else:
        assert min(expected) < 0


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("line", [voter.LINES[0], increment.LINES[0]], ids=lambda line: line.workload)
def test_every_way_of_driving_a_peer_leaves_the_tables_as_acknowledged(name, line, directory):
    calls = line.calls(1, CALLS)
    for way in started(name, directory).ways(line):
        run = run_once(name, msgspec.structs.replace(line, cycles=True), way, calls, 0, SETTINGS, directory)
        assert run.calls > 0
        assert run.elapsed_s > 0
        assert set(run.cpu_us) == ({"client"} if name == "dicts" else {"client", "server"})
    assert not list(directory.iterdir())


def test_a_lone_call_is_measured_by_its_latency(directory):
    started("redis", directory)
    line = lone.LINES[0]
    run = run_once("redis", line, "redis-py, Unix socket", line.calls(1, CALLS), 0, SETTINGS, directory)
    assert run.p50_us is not None
    assert run.p99_us is not None
    assert 0 < run.p50_us <= run.p99_us


def test_a_run_whose_tables_contradict_it_gives_no_figure(directory):
    line = voter.LINES[0]
    forgetful = msgspec.structs.replace(
        line, cycles=True, dicts=msgspec.structs.replace(line.dicts, state=lambda tx: 0)
    )
    with pytest.raises(BenchError, match=r"voter/vote on dicts.*the tables say 0"):
        run_once("dicts", forgetful, "a loop, in process", line.calls(1, CALLS), 0, SETTINGS, directory)


def test_a_stream_that_ends_before_the_clock_starts_gives_no_figure(directory):
    line = voter.LINES[0]
    with pytest.raises(BenchError, match="used up"):
        run_once("dicts", line, "a loop, in process", line.calls(1, 10), 0, SETTINGS, directory)


@pytest.mark.parametrize("name", ["redis", "postgres"])
def test_a_server_that_cannot_start_says_why(name, directory):
    peer = started(name, directory)
    peer._options["no-such-option"] = "1"
    with pytest.raises(BenchError, match=r"no.such.option"), peer:
        pass


def test_a_peer_without_its_program_is_named_and_skipped(directory, monkeypatch):
    monkeypatch.setenv("PATH", str(directory))
    results = experiment.Results(None, SETTINGS, "", {}, {}, [])  # type: ignore[arg-type]  # no machine is described
    experiment.run_all(results, [], ["redis", "dicts"], directory, "", lambda run: None)
    assert "redis" in results.skipped
    assert list(results.peers) == ["dicts"]
