"""A child process that reports: JSON objects on stdout, one a line, and its last words on stderr."""

from __future__ import annotations

import contextlib
import os
import selectors
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import Any, Self

import msgspec

from voltpy.errors import ClusterError
from voltpy.parent_death import SUPERVISOR

LAST_WORDS_BYTES = 4096
_decode = msgspec.json.Decoder(dict[str, Any]).decode


class ReportingChild:
    """Started at once, killed at the end of `with` if it still runs. It gets no Ctrl-C: that is for whoever waits."""

    def __init__(self, command: Sequence[str | Path]) -> None:
        self._errors = TemporaryFile()  # noqa: SIM115  # closed in __exit__
        self.process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, SUPERVISOR: str(os.getpid())},
            start_new_session=True,
        )
        assert self.process.stdout is not None
        self.fd = self.process.stdout.fileno()
        os.set_blocking(self.fd, False)
        self._rest = b""
        self.has_ended = False  # nothing more will be reported

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        self._errors.close()

    def reports(self) -> Iterator[dict[str, Any]]:
        """What it has reported since the last time. Raises ClusterError for what is no report."""
        while not self.has_ended:
            try:
                data = os.read(self.fd, 65536)
            except BlockingIOError:
                return
            self.has_ended = not data
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                try:
                    yield _decode(line)
                except msgspec.DecodeError as error:
                    raise ClusterError(f"process {self.process.pid} said {line[:200]!r}: {error}") from None

    def exit_status(self) -> int:
        """Waits for its end."""
        return self.process.wait()

    def last_words(self) -> str:
        """The last line that it wrote on stderr, or how it ended."""
        self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, self._errors.tell() - LAST_WORDS_BYTES))
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"it ended with status {self.exit_status()}"


def wait_for(children: Sequence[ReportingChild], timeout_s: float) -> None:
    """Returns when one of them has something to say, or after the timeout."""
    with selectors.DefaultSelector() as selector:
        for child in children:
            if not child.has_ended:
                with contextlib.suppress(ValueError):
                    selector.register(child.fd, selectors.EVENT_READ)
        selector.select(timeout_s)
