"""`voltpy demo`: a cluster in a temporary directory, votes at full speed, a partition killed on the way, a recount."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import click
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

import voltpy
from voltpy.cli.options import json_option, print_value, size_text
from voltpy.client import connect
from voltpy.data_directory import MAX_PARTITIONS
from voltpy.errors import ClusterError, Error

VOTERS = 2  # threads that vote: while one takes in its answers the other keeps the partitions busy
VOTES_A_CHUNK = 2048
CONTESTANTS = ["Alma Reyes", "Bo Lindqvist", "Chidi Okafor", "Dana Whitfield", "Emre Yilmaz", "Freya Holm"]
AREA_CODES = (205, 212, 305, 312, 404, 415, 503, 602, 617, 702, 808, 907)
MAX_VOTES = 3
ACCEPTED = 0
RETRY_S = 30.0
PROBE_INTERVAL_S = 0.002
FRAME_S = 0.5  # between two looks at the cluster
KILL_AT = 0.4  # of the whole time
PROCEDURE_TIMEOUT_S = 30.0  # the recount at the end reads every vote in one procedure
READY_LIMIT_S = 60.0
STOP_LIMIT_S = 15.0


class Killed(NamedTuple):
    """What was done to a partition, and when it served again (seconds from then; None: not yet)."""

    partition: int
    pid: int
    incarnation: int
    at_s: float
    back_after_s: float | None


class Votes:
    """What the voting threads have achieved so far. One lock, taken once a chunk."""

    def __init__(self) -> None:
        self.acknowledged = 0
        self.unknown = 0  # calls without an answer: they may be counted or not
        self.error = ""
        self.latencies_ms: list[float] = []
        self._lock = threading.Lock()

    def add(self, results: list[Any]) -> None:
        accepted = results.count(ACCEPTED)
        failures = [result for result in results if isinstance(result, Exception)]
        with self._lock:
            self.acknowledged += accepted
            self.unknown += len(failures)
            if failures:
                self.error = f"{type(failures[-1]).__name__}: {failures[-1]}"

    def timed(self, latency_ms: float) -> None:
        with self._lock:
            self.acknowledged += 1
            self.latencies_ms.append(latency_ms)

    def percentiles_ms(self) -> tuple[float, float]:
        """p50 and p99 of single calls so far; 0 before the first."""
        with self._lock:
            ordered = sorted(self.latencies_ms)
        if not ordered:
            return 0.0, 0.0
        return ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]


def shipped(name: str) -> Path:
    """A file of the procedures that come with voltpy. By its place: a user's own procedures/ must not win."""
    path = Path(voltpy.__file__).resolve().parent.parent / "procedures" / name
    if not path.exists():
        raise ClusterError(f"{path} is missing from this installation")
    return path


@click.command()
@click.option("--seconds", type=click.FloatRange(min=1), default=10.0, show_default=True, help="How long to vote.")
@click.option("--partitions", type=click.IntRange(1, MAX_PARTITIONS), metavar="N", help="[default: one a core]")
@click.option("--no-kill", is_flag=True, help="Leave all partitions alive.")
@json_option
def demo(seconds: float, partitions: int | None, no_kill: bool, as_json: bool) -> None:
    """Start a cluster, vote, kill a partition, count the votes.

    The cluster is in a temporary directory. Every vote is a durable transaction. Leaves nothing behind, also after
    Ctrl-C.
    """
    # SIGTERM unwinds as Ctrl-C does, so that the processes and the directory go in any case.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    console = Console(stderr=as_json, highlight=False)
    with cluster(partitions) as url, connect(url, timeout=60.0, retry_s=RETRY_S) as db:
        status = db.status()
        count = len(status["partitions"])
        partitions_text = f"{count} partition{'s' if count > 1 else ''}"
        console.print(f"A cluster of {partitions_text} at {url}, every vote flushed to disk.", soft_wrap=True)
        db.call_everywhere("initialize", CONTESTANTS)
        summary = _vote(db, url, seconds, not no_kill, console)
        summary = {"partitions": count, **summary, **_recount(db, summary)}
    if as_json:
        print_value(summary, as_json=True)
    else:
        _tell(summary, console)
    if not summary["complete"]:
        raise ClusterError("the votes in the tables are not those that were acknowledged")


@contextmanager
def cluster(partitions: int | None) -> Iterator[str]:
    """A cluster in a temporary directory, at a free port: its URL. Gone afterwards, whatever happens."""
    directory = Path(tempfile.mkdtemp(prefix="voltpy-demo-"))
    command = [sys.executable, "-I", "-m", "voltpy.cli", "start", "--with-parent", "--port", "0"]
    command += ["--schema", str(shipped("voter.sql")), "--procedures", str(shipped("voter.py"))]
    command += ["--data", str(directory / "data"), "--procedure-timeout", str(PROCEDURE_TIMEOUT_S)]
    if partitions is not None:
        command += ["--partitions", str(partitions)]
    events = (directory / "events").open("w+b")
    # In a session of its own: Ctrl-C ends the votes here first, and then the cluster.
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=events, start_new_session=True
    )
    try:
        yield _url_of(process, directory / "events")
    finally:
        process.terminate()
        try:
            process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        events.close()
        shutil.rmtree(directory, ignore_errors=True)


def _url_of(process: subprocess.Popen[bytes], events: Path) -> str:
    """The URL in the ready line. Raises ClusterError with what the cluster said last when there is none."""
    if process.stdout is None:
        raise ClusterError("the cluster has no output")
    watchdog = threading.Timer(READY_LIMIT_S, process.kill)
    watchdog.start()
    line = process.stdout.readline().decode()
    watchdog.cancel()
    words = line.split()
    if line.startswith("voltpy is ready at ") and len(words) > 4:
        return words[4]
    process.wait()
    said = events.read_text(errors="replace").strip().splitlines()
    raise ClusterError(f"the cluster could not be started: {said[-1] if said else 'it said nothing'}")


# ── voting ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _vote(db: Any, url: str, seconds: float, kill: bool, console: Console) -> dict[str, Any]:
    """Votes for so long, shows it, kills a partition; what happened."""
    votes = Votes()
    end = threading.Event()
    threads = [threading.Thread(target=_vote_in_chunks, args=(db, votes, end, n), daemon=True) for n in range(VOTERS)]
    # The latency that a single caller sees beside all the others, on a connection of its own.
    threads.append(threading.Thread(target=_vote_singly, args=(url, votes, end), daemon=True))
    began_s = time.monotonic()
    killed: Killed | None = None
    for thread in threads:
        thread.start()
    try:
        with _display(console) as show:
            before, before_s = 0, 0.0
            while True:
                now_s = time.monotonic() - began_s
                status = db.status()
                if kill and killed is None and now_s >= seconds * KILL_AT:
                    killed = _kill_one(status, now_s)
                elif killed is not None and killed.back_after_s is None:
                    killed = _back(killed, status, now_s)
                rate = (votes.acknowledged - before) / max(now_s - before_s, 1e-9)
                before, before_s = votes.acknowledged, now_s
                show(now_s, rate, votes, status, killed)
                waiting_for_it = killed is not None and killed.back_after_s is None and now_s < seconds + RETRY_S
                if now_s >= seconds and not waiting_for_it:
                    break
                time.sleep(FRAME_S if not waiting_for_it else FRAME_S / 10)
    finally:
        end.set()
        for thread in threads:
            thread.join(RETRY_S + 5)
    elapsed_s = time.monotonic() - began_s
    p50_ms, p99_ms = votes.percentiles_ms()
    return {
        "seconds": round(elapsed_s, 3),
        "acknowledged": votes.acknowledged,
        "unknown": votes.unknown,
        "error": votes.error,
        "votes_per_s": round(votes.acknowledged / elapsed_s),
        "p50_ms": round(p50_ms, 3),
        "p99_ms": round(p99_ms, 3),
        "killed": killed._asdict() if killed is not None else None,
    }


def _phone_numbers(voter: int) -> Iterator[int]:
    """Ten digits each, none given twice before all are used up: so a vote that were counted twice could be seen."""
    a_voters_share = 10_000_000 // (VOTERS + 1)
    for number in (number for _ in range(MAX_VOTES) for number in range(a_voters_share)):
        for area_code in AREA_CODES:
            yield area_code * 10_000_000 + voter * a_voters_share + number


def _vote_in_chunks(db: Any, votes: Votes, end: threading.Event, voter: int) -> None:
    chance = random.Random(voter)
    numbers = _phone_numbers(voter)
    while not end.is_set():
        rows = [
            (number, chance.randrange(1, len(CONTESTANTS) + 1), MAX_VOTES) for number in islice(numbers, VOTES_A_CHUNK)
        ]
        try:
            votes.add(db.call_many("vote", rows, return_exceptions=True))
        except Error as error:
            votes.add([error] * len(rows))
            return


def _vote_singly(url: str, votes: Votes, end: threading.Event) -> None:
    chance = random.Random(VOTERS)
    numbers = _phone_numbers(VOTERS)
    with connect(url, timeout=60.0, retry_s=RETRY_S) as db:
        for number in numbers:
            if end.wait(PROBE_INTERVAL_S):
                return
            began_s = time.perf_counter()
            try:
                result = db.call("vote", number, chance.randrange(1, len(CONTESTANTS) + 1), MAX_VOTES)
            except Error as error:
                votes.add([error])
                return
            if result == ACCEPTED:
                votes.timed((time.perf_counter() - began_s) * 1000)


def _kill_one(status: dict[str, Any], now_s: float) -> Killed | None:
    """kill -9, as a crash or the kernel would do it; None when no partition can be killed just now."""
    victim = status["partitions"][-1]
    if victim["state"] != "serving":
        return None
    os.kill(victim["pid"], signal.SIGKILL)
    return Killed(victim["partition"], victim["pid"], victim["incarnation"], now_s, None)


def _back(killed: Killed, status: dict[str, Any], now_s: float) -> Killed:
    partition = status["partitions"][killed.partition]
    if partition["state"] != "serving" or partition["incarnation"] == killed.incarnation:
        return killed
    return killed._replace(back_after_s=max(0.0, now_s - partition["state_s"] - killed.at_s))


def _recount(db: Any, summary: dict[str, Any]) -> dict[str, Any]:
    """Counts the votes where they are: the ones acknowledged, no fewer and no more than have no answer."""
    counts = db.call_everywhere("count_votes")
    tally: dict[str, int] = {}
    for rows in db.call_everywhere("results"):
        for _, name, votes in rows:
            tally[name] = tally.get(name, 0) + votes
    counted = sum(counts)
    lost = max(0, summary["acknowledged"] - counted)
    twice = max(0, counted - summary["acknowledged"] - summary["unknown"])
    return {
        "counted": counted,
        "counted_by_partition": counts,
        "lost": lost,
        "counted_twice": twice,
        "complete": lost == 0 and twice == 0,
        "results": dict(sorted(tally.items(), key=lambda item: -item[1])),
    }


# ── showing ─────────────────────────────────────────────────────────────────────────────────────────────────────────

Show = Callable[[float, float, Votes, dict[str, Any], Killed | None], None]


@contextmanager
def _display(console: Console) -> Iterator[Show]:
    """A live table at a terminal, else a line a second."""
    if console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            yield lambda *frame: live.update(_frame(*frame), refresh=True)
        return
    last_s = -1.0

    def line(now_s: float, rate: float, votes: Votes, status: dict[str, Any], killed: Killed | None) -> None:
        nonlocal last_s
        if now_s - last_s < 0.95:
            return
        last_s = now_s
        p50_ms, p99_ms = votes.percentiles_ms()
        states = " ".join(
            f"{p['calls_per_s']:,.0f}/s" if "calls_per_s" in p else p["state"] for p in status["partitions"]
        )
        console.print(
            f"{now_s:5.1f} s  {rate:>9,.0f} votes/s  p50 {p50_ms:.2f} ms  p99 {p99_ms:.2f} ms  partitions: {states}"
            + (f"  [{_killed_text(killed)}]" if killed is not None else ""),
            soft_wrap=True,
            markup=False,
        )

    yield line


def _frame(now_s: float, rate: float, votes: Votes, status: dict[str, Any], killed: Killed | None) -> Group:
    p50_ms, p99_ms = votes.percentiles_ms()
    head = Text.assemble(
        (f"{rate:>10,.0f} votes/s", "bold green"),
        f"   p50 {p50_ms:.2f} ms   p99 {p99_ms:.2f} ms   {votes.acknowledged:,} acknowledged   {now_s:.0f} s",
    )
    table = Table(box=None, pad_edge=False)
    for name in ("", "state", "epoch", "votes/s", "memory", "flush"):
        table.add_column(name, justify="left" if name in ("", "state") else "right")
    for partition in status["partitions"]:
        metrics = partition.get("metrics", {})
        table.add_row(
            f"partition {partition['partition']}",
            Text(partition["state"], "green" if partition["state"] == "serving" else "bold red"),
            str(partition["incarnation"] or "–"),
            f"{partition.get('calls_per_s', 0):,.0f}",
            size_text(partition.get("rss_bytes", 0)),
            f"{metrics.get('flush_us', 0):,.0f} µs",
        )
    lines: list[Any] = [head, table]
    if killed is not None:
        lines.append(Text(_killed_text(killed), "yellow"))
    return Group(*lines)


def _killed_text(killed: Killed) -> str:
    back = "recovering" if killed.back_after_s is None else f"serving again after {killed.back_after_s:.1f} s"
    return f"kill -9 of partition {killed.partition} (process {killed.pid}) at {killed.at_s:.1f} s: {back}"


def _tell(summary: dict[str, Any], console: Console) -> None:
    def say(text: str, style: str = "") -> None:
        console.print(text, style=style, soft_wrap=True, markup=False)

    say("")
    say(f"{summary['acknowledged']:>12,} votes acknowledged, {summary['votes_per_s']:,} a second")
    by_partition = " + ".join(f"{count:,}" for count in summary["counted_by_partition"])
    say(f"{summary['counted']:>12,} votes in the tables: {by_partition}")
    if summary["unknown"]:
        say(f"{summary['unknown']:>12,} calls without an answer ({summary['error']})")
    if summary["killed"] is not None:
        say(_killed_text(Killed(**summary["killed"])))
    if summary["complete"]:
        say("No vote was lost, and none was counted twice.", "bold green")
    else:
        say(f"{summary['lost']:,} votes lost, {summary['counted_twice']:,} counted twice.", "bold red")
    winner = next(iter(summary["results"]), "nobody")
    say(f"{winner} wins with {summary['results'].get(winner, 0):,} votes.")
    say("\nTry next, in two terminals:", "bold")
    program = _program()
    say(f"  {program} start --schema {shipped('voter.sql')} --procedures {shipped('voter.py')} --data voter-data")
    for command in (
        """call initialize '["Alma Reyes", "Bo Lindqvist"]'""",
        "call vote 2125550100 1 3",
        "call results",
        "procedures",
        "status --watch",
        "stop",
    ):
        say(f"  {program} {command}")


def _program() -> str:
    """How this program can be called again from the user's shell."""
    script = Path(sys.argv[0])
    if script.name != "voltpy":
        return f"{sys.executable} -m voltpy.cli"
    return "voltpy" if shutil.which("voltpy") == str(script.absolute()) else str(script)
