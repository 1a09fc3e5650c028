"""A session of the coordinator's in this partition: which frames of orders count, and in which frames reports leave.

    begin     a session that is newer than the last one, of a coordinator that is not known to be dead
    takes     each frame of orders by its number: one that came before is dropped, after a gap the session is over
    frames    reports, in numbered frames of bounded size
    end       nobody is there until another begins

Pure: what the orders say, and what becomes of them when a session ends, is partitions.participant's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from voltpy.messages import MAX_FRAME_BYTES, Lent, Orders, Ran, ReadAnswer, Recalled, Report, Reports, TableChanges

REPORT_BYTES = MAX_FRAME_BYTES // 2  # what one order may be answered with
FRAME_BYTES = MAX_FRAME_BYTES // 4  # a frame of reports is closed once it holds so much


class OrderSession:
    """`last`: (epoch, session) of the last that was begun. `is_open`: it has not ended."""

    __slots__ = ("_dead_epoch", "_frames_made", "_frames_taken", "is_open", "last")

    def __init__(self) -> None:
        self.last = 0, 0
        self.is_open = False
        self._dead_epoch = 0  # up to which coordinators are dead
        self._frames_taken = self._frames_made = 0  # of this session

    def may_begin(self, epoch: int, session: int) -> bool:
        """Whether it is newer than the last one, of a coordinator that may live."""
        return epoch > self._dead_epoch and (epoch, session) > self.last

    def begin(self, epoch: int, session: int) -> None:
        self.last = epoch, session
        self.is_open = True
        self._frames_taken = self._frames_made = 0

    def bury(self, epoch: int) -> bool:
        """The coordinator of this epoch is dead, and so is every one before it. Whether the last session was theirs."""
        self._dead_epoch = max(self._dead_epoch, epoch)
        return self.last[0] <= epoch

    def takes(self, frame: Orders) -> Literal["next", "dropped", "gap"]:
        """What this frame is to the session; the next one counts as taken."""
        if not self.is_open or (frame.epoch, frame.session) != self.last or frame.number <= self._frames_taken:
            return "dropped"
        if frame.number > self._frames_taken + 1:
            return "gap"
        self._frames_taken = frame.number
        return "next"

    def frames(self, reports: Iterable[Report]) -> list[Reports]:
        """The reports in as many frames as their size asks for, numbered."""
        frames: list[Reports] = []
        frame_bytes = FRAME_BYTES + 1
        for report in reports:
            if frame_bytes > FRAME_BYTES:
                self._frames_made += 1
                frames.append(Reports(*self.last, self._frames_made, []))
                frame_bytes = 0
            frames[-1].reports.append(report)
            frame_bytes += bytes_of_report(report)
        return frames


def bytes_of_report(report: Report) -> int:
    """About what it takes in a frame."""
    size = 64
    if isinstance(report, Lent):
        size += sum(9 if image is None else len(image) for images in report.entries for image in images)
    if isinstance(report, Lent | ReadAnswer):
        size += sum(9 if image is None else len(image) for images in report.images for image in images)
        size += sum(len(image) for answer in report.scans for image in answer.images)
        if isinstance(report, ReadAnswer):
            size += sum(len(answer.streams) for answer in report.fragments)
    elif isinstance(report, Ran):
        size += len(bytes(report.result)) + sum(map(bytes_of_changes, report.copies))
    elif isinstance(report, Recalled):
        size += sum(map(len, report.results.values()))
    return size


def bytes_of_changes(changes: TableChanges) -> int:
    return sum(map(len, changes.images)) + sum(map(len, changes.deleted))
