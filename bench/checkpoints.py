"""When checkpoints ran, seen from outside: from the files of a partition, which tell it to some hundredths of a second.

A checkpoint ends when `checkpoint` is replaced. It began, at the latest, when the first file changed that only it
writes: `pages` or a run of an index. A buffer pool writes evicted pages to `pages` too; where the partitions tell
`checkpoint_running` among their metrics, that is believed instead, though it is up to half a second old.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from threading import Event, Thread
from time import perf_counter
from typing import Any, Self

from msgspec import Struct

from bench.windows import Interval

EVERY_S = 0.02
ASKED_EVERY = 10  # looks: the status is not newer anyway


class Seen(Struct, frozen=True):
    """One look at a partition's directory: when its root and its other checkpoint files were last written."""

    at_s: float
    root: int
    others: int
    told_running: bool | None = None


class Timeline:
    """From looks, in order, to the intervals in which a checkpoint ran. Pure."""

    def __init__(self) -> None:
        self.intervals: list[Interval] = []
        self._last: Seen | None = None
        self._began_s: float | None = None

    def look(self, seen: Seen) -> None:
        last, self._last = self._last, seen
        if last is None:
            return
        if seen.told_running is not None:
            running = seen.told_running
        elif seen.root != last.root:
            running = False
        else:
            running = self._began_s is not None or seen.others != last.others
        if running and self._began_s is None:
            self._began_s = last.at_s
        elif not running and (self._began_s is not None or seen.root != last.root):
            # One that began and ended between two looks took the time between them.
            self.intervals.append((last.at_s if self._began_s is None else self._began_s, seen.at_s))
            self._began_s = None

    def end(self) -> list[Interval]:
        """The intervals, with that of a checkpoint that is still running."""
        if self._began_s is not None and self._last is not None:
            self.intervals.append((self._began_s, self._last.at_s))
            self._began_s = None
        return self.intervals


class Watch:
    """Used as a context: looks at the directories until it is left. `metrics` are the partitions', by directory."""

    def __init__(self, directories: Iterable[Path], metrics: Callable[[], Mapping[Path, Mapping[str, Any]]]) -> None:
        self._timelines = {directory: Timeline() for directory in directories}
        self._metrics = metrics
        self._end = Event()
        self._thread = Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def intervals(self) -> list[Interval]:
        """Those of all partitions: the client has calls at each of them."""
        return [interval for timeline in self._timelines.values() for interval in timeline.end()]

    def _look(self) -> None:
        looks = 0
        metrics: Mapping[Path, Mapping[str, Any]] = {}
        tells = True
        while not self._end.wait(EVERY_S):
            if tells and looks % ASKED_EVERY == 0:
                metrics = self._metrics()
                tells = any("checkpoint_running" in found for found in metrics.values())
            looks += 1
            for directory, timeline in self._timelines.items():
                running = metrics.get(directory, {}).get("checkpoint_running")
                timeline.look(look(directory, running))


def look(directory: Path, told_running: bool | None) -> Seen:
    files = [directory / "pages", *directory.glob("index-*.run")]
    others = max(map(_changed_ns, files))
    return Seen(perf_counter(), _changed_ns(directory / "checkpoint"), others, told_running)


def _changed_ns(file: Path) -> int:
    """0 when there is no such file."""
    try:
        return file.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
