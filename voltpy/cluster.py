"""The supervisor: starts router, partitions and coordinator of one cluster, watches them, restarts what dies.

One process, one thread, one poll: exits arrive through pidfds, messages through one DEALER a child, output through one
pipe a child, signals through a wakeup socket; heartbeats are looked at on every tick. What to do about any of it is
decided in `voltpy.supervision`; this file only carries it out. It waits for nobody: not for the reader of its stderr
either (voltpy.events).

The runtime directory (mode 0700, under XDG_RUNTIME_DIR or /tmp) lives as long as the cluster:

    r, p0, p1 …          the ipc sockets of the router and the partitions; the last one is the coordinator's
    p0.s, p1.s …         the Unix sockets of the same for clients here (voltpy.stream)
    heartbeat-0 …        see voltpy.heartbeat
    cluster_id           who reads the same id here as in the topology shares the machine

Its path is in the file RUNTIME of the data directory, so that a start after a crash can clear it away.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec
import zmq

from voltpy import heartbeat, wire
from voltpy.actions import Done, Kill, Persist, Ready, Report, Start, Tell, Terminate
from voltpy.address import DEFAULT_PORT
from voltpy.child import ROUTER, ProcessFigures
from voltpy.crash_point import PROCESS, crash_point
from voltpy.data_directory import Unflushed
from voltpy.ending import last_words_of
from voltpy.errors import ClusterError, Error, ProtocolError, SchemaError
from voltpy.events import Outlet, logger_to, stderr_outlet
from voltpy.messages import MAX_FRAME_BYTES, PROTOCOL_VERSION, Admin, AdminReply, Hello, Message
from voltpy.parent_death import SUPERVISOR
from voltpy.schema import Schema
from voltpy.schema_queue import SchemaQueue, Stored
from voltpy.stream import stream_path
from voltpy.supervision import Supervision
from voltpy.warm_schedule import WARM_BYTES_PER_S, WARM_SOURCES

TICK_MS = 100
RECONNECT_MS = 20
IPC_PATH_BYTES = 107  # what a Unix socket address holds
LONGEST_SOCKET = f"/voltpy-{'-' * 8}/p9999"  # in the place for sockets: what mkdtemp makes there, and a partition's
LAST_WORDS_BYTES = 4096
LAST_EVENTS_S = 1.0  # for the reader of stderr to take what still waits, at the end
ROUTER_COMMAND = (sys.executable, "-I", "-m", "coordinator", "router")
COORDINATOR_COMMAND = (sys.executable, "-I", "-m", "coordinator", "transactions")
PARTITION_COMMAND = (sys.executable, "-I", "-m", "partitions")
HUGE_PAGES = "glibc.malloc.hugetlb"


class Directory(Stored, Protocol):
    """What the supervisor needs of an opened data directory (`voltpy.data_directory`), beside what is stored in it."""

    @property
    def path(self) -> Path: ...
    @property
    def cluster_id(self) -> str: ...
    @property
    def partitions(self) -> int: ...
    def write_schema(self, schema: Schema) -> None: ...
    def write_procedures(self, catalog_version: int, path: str, source: str) -> None: ...


class Options(NamedTuple):
    """How the processes are started. `memory_bytes` is for the whole cluster; `port` 0 is any free one."""

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    fsync: str = "always"
    memory_bytes: int = 1 << 30
    procedure_timeout_s: float = 5.0
    warm: tuple[str, ...] = WARM_SOURCES
    warm_bytes_per_s: int = WARM_BYTES_PER_S
    warm_schedule: Path | None = None


class Process:
    """A child's process with the three ways in which the supervisor hears of it."""

    __slots__ = ("output", "pidfd", "popen", "socket", "words")

    def __init__(self, popen: subprocess.Popen[bytes], dealer: zmq.Socket[bytes], words: memoryview | None) -> None:
        if popen.stdout is None:
            raise ValueError("a child is started with a pipe for its output")
        self.popen = popen
        self.pidfd = os.pidfd_open(popen.pid)
        self.output = popen.stdout.fileno()
        os.set_blocking(self.output, False)
        self.socket = dealer
        self.words = words


def loopback(host: str) -> str:
    """The address to bind. Raises ClusterError for one that other machines could reach: there is no authentication."""
    if host == "localhost":
        return "127.0.0.1"
    with contextlib.suppress(ValueError):
        if ipaddress.IPv4Address(host).is_loopback:
            return host
    raise ClusterError(
        f"--host {host}: only loopback addresses (127.0.0.1) can be served: voltpy has no authentication yet, "
        "so anybody who reaches the port could run every procedure"
    )


def usable_cores() -> list[int]:
    return sorted(os.sched_getaffinity(0))


def usable_memory_bytes() -> int:
    """Physical memory, or what the control group allows where that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return total


class Cluster:
    """One run of a cluster, from start to stop. `on_ready` is called once, with the URL, when everything serves."""

    def __init__(
        self,
        directory: Directory,
        options: Options,
        on_ready: Callable[[str], None],
        *,
        outlet: Outlet | None = None,
        router_command: Sequence[str] = ROUTER_COMMAND,
        partition_command: Sequence[str] = PARTITION_COMMAND,
        coordinator_command: Sequence[str] = COORDINATOR_COMMAND,
    ) -> None:
        self._directory = directory
        self._options = options._replace(host=loopback(options.host))
        self._port = options.port
        self._on_ready = on_ready
        self._router_command = router_command
        self._partition_command = partition_command
        self._coordinator_command = coordinator_command
        self._stderr = stderr_outlet() if outlet is None else outlet
        self._events = logger_to(self._stderr)
        self._cores = usable_cores()
        self._token = secrets.token_hex(16)
        self._client_id = 1 + secrets.randbits(62)
        self._processes: dict[int, Process] = {}
        self._last_words: dict[int, bytes] = {}
        self._context = zmq.Context()
        self._poller = zmq.Poller()
        self._started_at = time.time()
        self._done: Done | None = None
        self._signals = 0

    def run(self) -> None:
        """Serve until a signal or a command says stop.

        Raises ClusterError when the cluster can't be started; SchemaError where rows don't allow what the schema has.
        """
        with _runtime_directory(self._directory) as runtime, _signal_socket(self._on_signal) as wakeup:
            self._runtime = runtime
            self._core = Supervision(
                self._directory.partitions,
                cluster_id=self._directory.cluster_id,
                runtime=str(runtime),
                catalog_version=self._directory.catalog_version,
                procedure_timeout_s=self._options.procedure_timeout_s,
                # Clients that outlive a supervisor compare the next one's versions with its: time only grows.
                first_version=int(time.time() * 1000),
            )
            self._changes = SchemaQueue(self._directory, self._core, self._answer)
            self._poller.register(wakeup, zmq.POLLIN)
            try:
                self._core.begin(time.monotonic())
                while self._done is None:
                    self._carry_out()
                    self._hear(wakeup)
            finally:
                self._end_all()
                self._context.destroy(linger=0)
                self._stderr.flush(LAST_EVENTS_S)
        if self._done is not None and self._done.error:
            raise (SchemaError if self._core.is_schema_unfit else ClusterError)(self._done.error)

    # ── hearing ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _hear(self, wakeup: socket.socket) -> None:
        ready: dict[Any, int] = dict(self._poller.poll(TICK_MS))
        if wakeup.fileno() in ready:
            wakeup.recv(64)
        self._stderr.flush()
        now_s = time.monotonic()
        while self._signals:
            self._signals -= 1
            self._core.stop(now_s)
        for number, process in list(self._processes.items()):
            if process.output in ready:
                self._forward_output(number, process)
            if process.socket in ready:
                self._read_messages(number, process, now_s)
            if process.words is not None:
                self._core.looked(number, heartbeat.read(process.words), now_s)
            if process.pidfd in ready:
                self._bury(number, process, now_s)
        while self._changes.begin_next(now_s):
            self._carry_out()
        self._core.tick(now_s)

    def _on_signal(self) -> None:
        self._signals += 1

    def _read_messages(self, number: int, process: Process, now_s: float) -> None:
        while True:
            try:
                message = wire.decode(process.socket.recv(zmq.NOBLOCK))
            except zmq.Again:
                return
            except ProtocolError as error:
                self._report("bad_frame", child=self._core.child(number).name, reason=str(error))
                continue
            if isinstance(message, Admin):
                self._admin(message, now_s)
            else:
                self._core.said(number, message, now_s)

    def _forward_output(self, number: int, process: Process) -> bool:
        """What a child prints goes to stderr: stdout has the ready line and nothing else. False: nothing was there."""
        try:
            output = os.read(process.output, 65536)
        except BlockingIOError:
            return False
        if not output:
            self._unregister(process.output)
            return False
        self._last_words[number] = (self._last_words.get(number, b"") + output)[-LAST_WORDS_BYTES:]
        self._stderr.write(output)
        return True

    def _bury(self, number: int, process: Process, now_s: float) -> None:
        crash_point("supervisor.bury.before")
        exit_status = process.popen.wait()
        while self._forward_output(number, process):
            pass
        last_words = last_words_of(self._last_words.pop(number, b""))
        self._forget(number, process)
        self._core.exited(number, exit_status, last_words, now_s)
        crash_point("supervisor.bury.after")

    def _admin(self, message: Admin, now_s: float) -> None:
        body = message.body
        if message.command == "status":
            self._answer(message, self._status(now_s))
        elif message.command == "stop":
            # The runtime directory disappears last: who can see it can wait for that.
            body = {"pid": os.getpid(), "runtime_directory": str(self._runtime)}
            self._core.stop_command(message.number, body, now_s)
        elif message.command == "load_procedures":
            source, path = body.get("source"), body.get("path")
            if isinstance(source, str) and isinstance(path, str):
                self._core.load_procedures(message.number, source, path, now_s)
            else:
                self._answer(message, {"message": "load_procedures takes a source and a path"}, "BadArguments")
        elif message.command == "change_schema":
            self._changes.add(message, now_s)
        elif message.command == "begin_snapshot":
            self._core.begin_snapshot(message.number, body, now_s)
        elif message.command == "renew_snapshot":
            self._core.renew_snapshot(message.number, body, now_s)
        elif message.command == "end_snapshot":
            self._core.end_snapshot(message.number, body)
        else:
            self._answer(message, {"message": f"there is no admin command {message.command!r}"}, "BadArguments")

    def _answer(self, message: Admin, body: dict[str, Any], error: str = "") -> None:
        self._tell(ROUTER, AdminReply(message.number, error, body))

    def _status(self, now_s: float) -> dict[str, Any]:
        figures = {number: _figures(process.popen.pid) for number, process in self._processes.items()}
        return {
            "url": self._url(),
            "data": str(self._directory.path),
            "pid": os.getpid(),
            "uptime_s": round(time.time() - self._started_at, 3),
            "fsync": self._options.fsync,
            "memory_bytes": self._options.memory_bytes,
            "runtime_directory": str(self._runtime),
            "schema": msgspec.to_builtins(self._directory.schema),
            **self._core.status({n: f for n, f in figures.items() if f is not None}, now_s),
        }

    # ── doing ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _carry_out(self) -> None:
        actions = self._core.take()
        while actions:
            for action in actions:
                match action:
                    case Tell():
                        self._tell(action.child, action.message)
                    case Start():
                        self._start(action)
                    case Terminate():
                        crash_point("supervisor.stop.before_signal")
                        self._signal(action.child, signal.SIGTERM)
                        crash_point("supervisor.stop.signalled")
                    case Kill():
                        self._signal(action.child, signal.SIGKILL)
                    case Persist():
                        self._persist(action)
                    case Ready():
                        self._port = action.port
                        crash_point("supervisor.start.before_ready")
                        self._on_ready(self._url())
                        crash_point("supervisor.start.ready")
                    case Report():
                        self._report(action.event, action.level, **action.fields)
                    case Done():
                        crash_point("supervisor.stop.all_ended")
                        self._done = action
            actions = self._core.take()

    def _start(self, start: Start) -> None:
        crash_point("supervisor.start.before_child")
        try:
            process = self._spawn(start)
        except (OSError, zmq.ZMQError) as error:
            # A machine that is short of processes, memory or descriptors for a while must not cost the whole cluster.
            self._core.exited(start.child, None, f"no process can be started: {error}", time.monotonic())
            return
        self._processes[start.child] = process
        for source in (process.pidfd, process.output, process.socket):
            self._poller.register(source, zmq.POLLIN)
        pid = process.popen.pid
        self._core.started(start.child, pid)
        crash_point("supervisor.start.child_started")
        self._tell(start.child, Hello(PROTOCOL_VERSION, self._client_id, "supervisor", self._token))
        self._report("started", "info", child=self._core.child(start.child).name, pid=pid)

    def _spawn(self, start: Start) -> Process:
        """The child's process. When that fails, nothing of it is left."""
        with contextlib.ExitStack() as undo:
            words = None
            if start.child != ROUTER:
                path = heartbeat.path_in(self._runtime, start.child)
                heartbeat.create(path)
                words = heartbeat.open_words(path)
            dealer = self._context.socket(zmq.DEALER)
            undo.callback(dealer.close)
            dealer.setsockopt(zmq.LINGER, 0)
            dealer.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
            dealer.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
            # Queued until the child has bound its end; a new process gets a new socket, so nothing meant for the old.
            dealer.connect(f"ipc://{self._runtime}/{_socket_name(start.child)}")
            popen = subprocess.Popen(
                self._command_line(start),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={
                    **(with_huge_pages(os.environ) if self._is_partition(start.child) else os.environ),
                    "VOLTPY_TOKEN": self._token,
                    SUPERVISOR: str(os.getpid()),
                    PROCESS: self._process_name(start.child),
                },
                # The terminal's Ctrl-C is for the supervisor alone: it stops the others in order.
                start_new_session=True,
            )
            undo.enter_context(popen)  # closes the pipe and waits …
            undo.callback(popen.kill)  # … after this
            process = Process(popen, dealer, words)
            undo.pop_all()
        return process

    def _is_partition(self, child: int) -> bool:
        return child not in (ROUTER, self._core.coordinator.number)

    def _command_line(self, start: Start) -> list[str]:
        options = self._options
        if start.child == ROUTER:
            return [
                *self._router_command,
                *("--runtime", str(self._runtime), "--host", options.host, "--port", str(self._router_port())),
            ]
        if start.child == self._core.coordinator.number:
            line = [*self._coordinator_command]
        else:
            line = [
                *(*self._partition_command, "--partition", str(start.child), "--fsync", options.fsync),
                *("--core", str(self._cores[start.child % len(self._cores)])),
                *("--warm", ",".join(options.warm), "--warm-rate", str(options.warm_bytes_per_s)),
            ]
            if options.warm_schedule is not None:
                line += ["--warm-schedule", str(options.warm_schedule)]
        line += [
            *("--data", str(self._directory.path), "--partitions", str(self._directory.partitions)),
            *("--runtime", str(self._runtime), "--host", options.host),
            *("--memory", str(options.memory_bytes // self._directory.partitions)),
            *("--procedure-timeout", str(options.procedure_timeout_s)),
        ]
        if start.runaway is not None:
            call = start.runaway
            line += ["--runaway", f"{call.client_id}:{call.call_number}:{call.procedure}"]
        return line

    def _process_name(self, child: int) -> str:
        """As crash points call it."""
        return f"partition-{child}" if 0 <= child < self._directory.partitions else self._core.child(child).name

    def _router_port(self) -> int:
        # A router that comes back must be found where the first one was, also when that had chosen its port.
        return self._core.router.tcp_port or self._port

    def _tell(self, number: int, message: Message) -> None:
        process = self._processes.get(number)
        if process is None:
            return
        crash_point("supervisor.tell.before")
        try:
            process.socket.send(wire.encode(message), zmq.NOBLOCK)
        except zmq.Again:
            self._report("message_dropped", child=self._core.child(number).name, message=type(message).__name__)
        crash_point("supervisor.tell.after")

    def _signal(self, number: int, signal_number: signal.Signals) -> None:
        process = self._processes.get(number)
        if process is not None:
            process.popen.send_signal(signal_number)

    def _persist(self, persist: Persist) -> None:
        crash_point("supervisor.persist.before")
        try:
            if persist.schema is not None:
                self._directory.write_schema(persist.schema)
            else:
                self._directory.write_procedures(persist.catalog_version, persist.path, persist.source)
        except Unflushed:  # whether it has happened, the next start will know
            raise
        except (OSError, Error) as error:
            self._core.persisted(str(error))
        else:
            crash_point("supervisor.persist.after")
            self._core.persisted("")

    def _forget(self, number: int, process: Process) -> None:
        del self._processes[number]
        for source in (process.pidfd, process.output, process.socket):
            self._unregister(source)
        os.close(process.pidfd)
        process.socket.close()
        if process.popen.stdout is not None:
            process.popen.stdout.close()

    def _unregister(self, source: Any) -> None:
        if source in self._poller:
            self._poller.unregister(source)

    def _end_all(self) -> None:
        """Nothing is left behind, whatever went wrong."""
        for number, process in list(self._processes.items()):
            process.popen.kill()
            process.popen.wait()
            self._forget(number, process)

    def _url(self) -> str:
        return f"voltpy://{self._options.host}:{self._router_port()}"

    def _report(self, event: str, level: str = "warning", **fields: Any) -> None:
        (self._events.warning if level == "warning" else self._events.info)(event, **fields)


def _socket_name(child: int) -> str:
    return "r" if child == ROUTER else f"p{child}"


def _figures(pid: int) -> ProcessFigures | None:
    """Resident memory and CPU time of a process, from /proc; None when it has just gone."""
    try:
        resident_pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        # The second field is the program's name in brackets and may hold anything; behind it utime and stime are
        # the 12th and 13th.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, IndexError):
        return None
    ticks = int(fields[11]) + int(fields[12])
    return ProcessFigures(resident_pages * os.sysconf("SC_PAGE_SIZE"), ticks / os.sysconf("SC_CLK_TCK"))


@contextlib.contextmanager
def _runtime_directory(directory: Directory) -> Iterator[Path]:
    """A fresh runtime directory; that of a supervisor which died without clearing up is removed first."""
    pointer = directory.path / "RUNTIME"
    with contextlib.suppress(OSError, ValueError):  # whatever is in there: it only helps to clear up
        left = Path(pointer.read_text().strip())
        if left.name.startswith("voltpy-") and (left / "cluster_id").read_text() == directory.cluster_id:
            shutil.rmtree(left, ignore_errors=True)
    runtime = Path(tempfile.mkdtemp(prefix="voltpy-", dir=_runtime_parent()))
    try:
        (runtime / "cluster_id").write_text(directory.cluster_id)
        try:
            pointer.unlink(missing_ok=True)  # not through a link
            pointer.write_text(str(runtime))
        except OSError as error:
            raise ClusterError(f"{pointer} can't be written: {error.strerror}") from error
        yield runtime
    finally:
        shutil.rmtree(runtime, ignore_errors=True)
        with contextlib.suppress(OSError):
            pointer.unlink(missing_ok=True)


def with_huge_pages(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment for a process whose malloc asks the kernel for huge pages, unless it says otherwise already.

    A look-up in an index of a million rows touches a dozen places all over the heap, and finding each of them among
    pages of 4 KiB costs about as much as the cache miss itself. Only glibc, from 2.35 on, heeds this.
    """
    tunables = environ.get("GLIBC_TUNABLES", "")
    if HUGE_PAGES in tunables:
        return dict(environ)
    return {**environ, "GLIBC_TUNABLES": f"{tunables}:{HUGE_PAGES}=1".lstrip(":")}


def _runtime_parent() -> str:
    """XDG_RUNTIME_DIR when it can be used and leaves room for socket names, else the place for temporary files."""
    for parent in (os.environ.get("XDG_RUNTIME_DIR", ""), tempfile.gettempdir(), "/tmp"):
        longest = len(os.fsencode(parent)) + len(stream_path(LONGEST_SOCKET))
        if parent and longest <= IPC_PATH_BYTES and os.access(parent, os.W_OK | os.X_OK):
            return parent
    raise ClusterError("no place for sockets: neither XDG_RUNTIME_DIR nor /tmp can be written")


@contextlib.contextmanager
def _signal_socket(on_signal: Callable[[], None]) -> Iterator[socket.socket]:
    """A socket that becomes readable when a signal to stop arrives, after `on_signal` was called. Main thread only."""
    reader, writer = socket.socketpair()
    reader.setblocking(False)
    writer.setblocking(False)
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup: to outlive the terminal is meant
        numbers.append(signal.SIGHUP)
    before = [signal.signal(number, lambda *_: on_signal()) for number in numbers]
    descriptor = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(descriptor)
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
        reader.close()
        writer.close()
