"""A server process of a peer: started on a free port or socket, awaited, ended by its own id."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from signal import SIGTERM, Signals
from time import monotonic, sleep

from bench.workload import BenchError

STARTS_WITHIN_S = 30.0
STOPS_WITHIN_S = 20.0


class Server:
    """`stop_signal` is the one that ends it cleanly. Output goes to `directory`/server.txt, and into a BenchError."""

    def __init__(
        self,
        command: Sequence[str | Path],
        directory: Path,
        *,
        user: str | None = None,
        stop_signal: Signals = SIGTERM,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._name = Path(command[0]).name
        self._output = directory / "server.txt"
        self._stop_signal = stop_signal
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                cwd=directory,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=environment,
                user=user,
                extra_groups=None if user is None else [],
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def output(self) -> str:
        """What it has printed so far."""
        return self._output.read_text(errors="replace")

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Returns when `ready()` is true; BenchError when the process ends before, or takes too long."""
        deadline = monotonic() + STARTS_WITHIN_S
        while not ready():
            if self._process.poll() is not None:
                raise BenchError(f"{self._name} ended with status {self._process.returncode}:\n{self.output()[-2000:]}")
            if monotonic() > deadline:
                raise BenchError(f"{self._name} was not ready in {STARTS_WITHIN_S:.0f} s:\n{self.output()[-2000:]}")
            sleep(0.02)

    def stop(self, within_s: float = STOPS_WITHIN_S) -> None:
        """Ends it, cleanly if it can in this time."""
        if self._process.poll() is None:
            self._process.send_signal(self._stop_signal)
            try:
                self._process.wait(within_s)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def kill(self) -> None:
        """kill -9."""
        self._process.kill()
        self._process.wait()


def free_port() -> int:
    """A port of the loopback interface that nobody listens at right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
