"""A cluster that a campaign starts, arms with crash points, kills, and starts again on the same data directory."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from voltpy.crash_point import VARIABLE

LIMIT_S = 60.0  # for anything that must happen; it takes a second where nothing is wrong
SURVIVORS_S = 2.0  # for what was being started when its supervisor died: it looks for that after its imports
SUPERVISOR = "supervisor"
ROUTER = "router"
COORDINATOR = "coordinator"

Event = Mapping[str, Any]


class DidNotHappen(Exception):
    """Something that the cluster owes did not come within its limit. Carries the last events."""


class Cluster:
    """Data, schema and procedures under `directory`; `start` and `end` as often as wanted. Also a context manager.

    `memory_bytes`, for all partitions together, may be changed between two starts. `options`: more of
    tests.campaigns.supervisor's.
    `events` is what all supervisors printed on stderr, decoded where it is JSON; other lines are {"line": …}.
    Processes go by the names that crash points know them by: `supervisor`, `router`, `coordinator`, `partition-<i>`.
    """

    def __init__(
        self,
        directory: Path,
        schema: str,
        procedures: str,
        *,
        partitions: int = 2,
        segment_bytes: int = 32768,
        checkpoint_bytes: int = 65536,
        procedure_timeout_s: float = 5.0,
        memory_bytes: int = 512 << 20,
        options: Sequence[str] = (),
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.partitions = partitions
        self.port = _free_port()
        self.memory_bytes = memory_bytes
        self.url = f"voltpy://127.0.0.1:{self.port}"
        self.events: list[Event] = []
        self._arrived = threading.Condition()
        self._points = directory / "points"
        self._points.mkdir()
        (directory / "schema.sql").write_text(schema)
        (directory / "procedures.py").write_text(procedures)
        self._command = [
            *(sys.executable, "-m", "tests.campaigns.supervisor", "--data", str(directory / "data")),
            *("--partitions", str(partitions), "--schema", str(directory / "schema.sql"), "--port", str(self.port)),
            *("--segment-bytes", str(segment_bytes), "--checkpoint-bytes", str(checkpoint_bytes)),
            *("--procedure-timeout", str(procedure_timeout_s)),
            *options,
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self._readers: list[threading.Thread] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end(signal.SIGKILL)
        self.end_survivors()

    def start(self) -> bool:
        """Starts the supervisor. False when it was killed before everything served.

        In the main thread only: the supervisor dies with the thread that starts it. Raises DidNotHappen.
        """
        command = [*self._command, "--memory", str(self.memory_bytes)]
        if not (self.directory / "data" / "cluster.json").exists():
            command = [*command, "--procedures", str(self.directory / "procedures.py")]
        process = self._process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, VARIABLE: f"{self._points}/"},
        )
        mark = self.mark()
        for pipe, name in ((process.stdout, "ready"), (process.stderr, "")):
            assert pipe is not None
            reader = threading.Thread(target=self._read, args=(pipe, name), daemon=True)
            reader.start()
            self._readers.append(reader)
        event = self.wait(lambda event: "ready" in event or event.get("end_of") == "ready", mark)
        if "ready" in event:
            return True
        status = self.wait_end()
        if status == -signal.SIGKILL:
            return False
        raise DidNotHappen(f"the start failed with status {status}\n{self.last_words()}")

    def end(self, signal_number: signal.Signals = signal.SIGTERM) -> int:
        """Sends the supervisor a signal, unless it has ended, and returns its exit status."""
        if self._process is None:
            return 0
        self._process.send_signal(signal_number)
        return self.wait_end()

    def wait_end(self) -> int:
        """The exit status of the supervisor, once all that it printed is in `events`. Raises DidNotHappen."""
        if self._process is None:
            return 0
        process, self._process = self._process, None
        try:
            status = process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise DidNotHappen(f"the supervisor did not end\n{self.last_words()}") from None
        for reader in self._readers:
            reader.join(LIMIT_S)
        self._readers.clear()
        return status

    def end_survivors(self) -> list[str]:
        """Children that are still there SURVIVORS_S after the last supervisor; ends them, and says which they were."""
        started = {int(event["pid"]): str(event["child"]) for event in self.events if event.get("event") == "started"}
        deadline_s = time.monotonic() + SURVIVORS_S
        survivors = []
        for pid, child in started.items():
            if not self._is_ours(pid):
                continue
            try:
                pidfd = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            ended, _, _ = select.select([pidfd], [], [], max(0.0, deadline_s - time.monotonic()))
            if not ended:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                survivors.append(f"{child} (process {pid})")
            os.close(pidfd)
        return survivors

    def _is_ours(self, pid: int) -> bool:
        """Whether the process lives and was started for this cluster: process ids are used again."""
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            return False
        return str(self.port).encode() in command or str(self.directory / "data").encode() in command

    # ── crash points ───────────────────────────────────────────────────────────────────────────────────────────────

    def arm(self, process: str, point: str, passage: int = 1) -> None:
        """The next life of that process dies at this passage of that point, and no life after it."""
        self._armed(process).with_suffix(".new").write_text(f"{point}:{passage}")
        self._armed(process).with_suffix(".new").rename(self._armed(process))

    def is_armed(self, process: str) -> bool:
        """Whether no process of that name was born since `arm`."""
        return self._armed(process).exists()

    def kill(self, process: str, signal_number: signal.Signals = signal.SIGKILL) -> None:
        """Sends a signal to a process, by its pid, as anybody could."""
        if process == SUPERVISOR:
            assert self._process is not None
            self._process.send_signal(signal_number)
        else:
            os.kill(self.pid(process), signal_number)

    def pid(self, process: str) -> int:
        name = process.replace("-", " ")
        return next(int(e["pid"]) for e in reversed(self.events) if e.get("event") == "started" and e["child"] == name)

    # ── events ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def mark(self) -> int:
        """A place in `events`, for the questions below."""
        return len(self.events)

    def since(self, mark: int, condition: Callable[[Event], Any]) -> list[Event]:
        return [event for event in self.events[mark:] if condition(event)]

    def wait(self, condition: Callable[[Event], Any], mark: int, limit_s: float = LIMIT_S) -> Event:
        """The first event since `mark` that fulfils the condition. Raises DidNotHappen."""
        event = self.wait_whether(condition, mark, limit_s)
        if event is None:
            raise DidNotHappen(f"not within {limit_s:.0f} s\n{self.last_words()}")
        return event

    def wait_whether(self, condition: Callable[[Event], Any], mark: int, limit_s: float) -> Event | None:
        """The same for what need not happen; None when it did not."""
        deadline_s = time.monotonic() + limit_s
        looked = mark
        with self._arrived:
            while True:
                for event in self.events[looked:]:
                    if condition(event):
                        return event
                looked = len(self.events)
                left_s = deadline_s - time.monotonic()
                if left_s <= 0:
                    return None
                self._arrived.wait(left_s)

    def last_words(self) -> str:
        return "\n".join(json.dumps(event) for event in self.events[-20:])

    def _read(self, pipe: Any, name: str) -> None:
        with pipe:
            for raw in pipe:
                line = raw.decode(errors="replace").rstrip("\n")
                event: Event = {name: line} if name else _event(line)
                with self._arrived:
                    self.events.append(event)
                    self._arrived.notify_all()
        with self._arrived:
            self.events.append({"line": "", "end_of": name or "events"})
            self._arrived.notify_all()

    def _armed(self, process: str) -> Path:
        return self._points / process


def crashed_at(point: str) -> Callable[[Event], bool]:
    """The last words of a process that dies at a crash point."""
    return lambda event: event.get("line") == f"crash point {point}"


def happened(what: str, process: str) -> Callable[[Event], bool]:
    """An event of the supervisor about one child: started, serving, exited."""
    name = process.replace("-", " ")
    return lambda event: event.get("event") == what and event.get("child") == name


def _event(line: str) -> Event:
    if line.startswith("{"):
        try:
            event = json.loads(line)
        except ValueError:
            return {"line": line}
        if isinstance(event, dict):
            return event
    return {"line": line}


def _free_port() -> int:
    """A port that a router may take, again and again: outside of what the system gives to outgoing connections."""
    for _ in range(1000):
        port = 10000 + int.from_bytes(os.urandom(2), "little") % 20000
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise DidNotHappen("no free port")
