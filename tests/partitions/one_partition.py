"""One partition without sockets, for tests: store, executor and, where a directory is given, a real WAL."""

from __future__ import annotations

import weakref
from array import array
from collections.abc import Callable, Hashable, Iterable
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Raw

from partitions.buffer_pool import BufferPool
from partitions.checkpoint import load, read_checkpoint
from partitions.checkpointer import CHECKPOINT_BYTES, Checkpointer
from partitions.executor import Executor
from partitions.page import page_id
from partitions.page_reader import PageReader
from partitions.participant import Participant
from partitions.recovery import recover
from partitions.redo import Redo
from partitions.store import Store
from partitions.wal import Batch, Wal, encode_batch
from voltpy.errors import Error, ReadOnly, from_wire
from voltpy.messages import (
    ELSEWHERE,
    NEVER_SENT,
    Attach,
    Attached,
    CallError,
    CallGroup,
    Decide,
    EverywhereCall,
    Order,
    Orders,
    Ran,
    Report,
    RunDirected,
)
from voltpy.outcome_window import WINDOW_BYTES, OutcomeWindow
from voltpy.record_log import DiskFull
from voltpy.registry import Registry, from_functions
from voltpy.schema import Schema
from voltpy.transaction import unique_ids
from voltpy.wire import joined

CLIENT = 7
ORIGIN = b"client"

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


class Clock:
    """Says a later second at each look."""

    def __init__(self) -> None:
        self.now = datetime(2024, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now


class OnePartition:
    """`run` calls, then `seal` the batch; `answers` gathers what each call, by its number, was told.

    A partition that a test drops has been killed: its files are closed when it is collected, and nothing more is done.
    """

    closes_files = True  # not, where something else does

    def __init__(
        self,
        schema: Schema,
        procedures: Iterable[Callable[..., Any]],
        directory: Path | None = None,
        *,
        partition: int = 0,
        partitions: int = 1,
        memory_bytes: int = 256 << 20,
        clock: Callable[[], datetime] | None = None,
        segment_bytes: int = 1 << 20,
        window_bytes: int = WINDOW_BYTES,
        frames: int = 0,
        fsync: str = "always",
        checkpoint_bytes: int = CHECKPOINT_BYTES,
        leaves_cold: bool = False,
    ) -> None:
        self.store = Store(schema, partition, partitions, memory_bytes)
        self.wal: Wal | None = None
        self.window = OutcomeWindow(0, window_bytes)
        epoch = 1
        self._lsn = 0
        if directory is not None:
            files = ExitStack()
            if self.closes_files:
                weakref.finalize(self, files.close).atexit = False
            self.wal = Wal.open(directory, partition, fsync, segment_bytes)
            files.callback(self.wal.abandon)
            checkpoint = read_checkpoint(directory, partition)
            pages = load(directory, partition, checkpoint, self.store)
            files.callback(pages.close)
            self.reader = PageReader(pages.path, self.store.arena.memory)
            files.callback(self.reader.close)
            self.pool = BufferPool(self.store.heaps, self.store.arena, self.reader, pages.path, memory_bytes)
            if frames:
                self.pool.capacity = frames + frames // 2
            self.store.use(self.pool)
            root = checkpoint.root
            self.window = OutcomeWindow(root.outcomes_reach, window_bytes, root.batches_reach)
            self.checkpointer = Checkpointer(
                directory, partition, self.store, self.window, self.wal, pages, checkpoint, every_bytes=checkpoint_bytes
            )
            files.callback(self.checkpointer._flusher.wait)  # not what knows the server, which knows this partition
            recover(self.wal, self.store, checkpoint, self.window, self.checkpointer, leaves_cold=leaves_cold)
            self.redo = Redo(self.store, self.pool)
            epoch = self.wal.begin()
            self.checkpointer.begin()
        self.running = array("Q", bytes(64))
        self.executor = Executor(
            self.store,
            registry(tuple(procedures)),
            self.window,
            unique_ids(partition, epoch),
            self.running,
            clock or Clock(),
        )
        if directory is not None:
            self.pool.capacity = frames or self.pool.capacity
            self.pool.is_wanted = self.executor.is_awaited
            self.pool.clean_some = self.checkpointer.clean_some
        self.participant = Participant(self.store, self.executor, self.window, self._append_step)
        self.now_s = 0.0
        self.epoch = self.session = self._frames = 0  # of the coordinator
        # Set, calls wait for cold pages instead of missing them.
        self.bring: Callable[[int], None] | None = None
        self.number = 0
        self.answers: dict[int, Any] = {}
        self.origins: dict[int, Hashable] = {}
        self.dropped: dict[Hashable, int] = {}

    @property
    def lsn(self) -> int:
        return self._lsn if self.wal is None else self.wal.written_lsn

    def table(self, name: str) -> Any:
        """The table, to look into: cold pages come by themselves, until the next call."""
        if self.wal is not None:
            self.finish_redo()
            self.store.misses.bring = self.pool.bring
        return self.store.by_name[name]

    def run(
        self,
        name: str,
        *arguments: Any,
        number: int | None = None,
        client: int = CLIENT,
        floor: int = NEVER_SENT,
        origin: bytes = ORIGIN,
    ) -> int:
        """Runs one call in the batch that is open; its number."""
        return self.run_group(
            name, [arguments], [number] if number else None, client=client, floor=floor, origin=origin
        )[0]

    def run_group(
        self,
        name: str,
        rows: list[tuple[Any, ...]],
        numbers: list[int] | None = None,
        *,
        client: int = CLIENT,
        floor: int = NEVER_SENT,
        origin: bytes = ORIGIN,
    ) -> list[int]:
        if numbers is None:
            numbers = list(range(self.number + 1, self.number + 1 + len(rows)))
            self.number += len(rows)
        args = joined([_encode(row) for row in rows])
        self.store.misses.bring = self.bring
        self.executor.run(origin, CallGroup(client, name, 0, 1, numbers, [0] * len(numbers), args, floor))
        return numbers

    def run_everywhere(self, name: str, *arguments: Any, number: int | None = None, now_us: int = 0) -> int:
        if number is None:
            number = self.number = self.number + 1
        args = Raw(_encode(arguments))
        self.store.misses.bring = self.bring
        self.executor.run_everywhere(ORIGIN, EverywhereCall(1, CLIENT, name, number, args, now_us))
        return number

    def seal(self) -> None:
        """Ends the batch as the server does, and gathers the answers. Raises ReadOnly or DiskFull without room."""
        changes, outcomes = self.executor.seal()
        if not changes and not outcomes:
            self.executor.finished()
        else:
            encoded = _encode(outcomes)
            self._lsn += 1
            lsn = self._lsn
            if self.wal is not None:
                self.participant.record_aborts()
                lsn = self.wal.append(encode_batch(Batch(Raw(encoded), changes)))
            self.executor.committed(lsn, encoded)
        self.gather()

    def seal_or_refuse(self, rerun: Callable[[], None]) -> bool:
        """The same; without room the batch is undone and `rerun` with writes refused. Whether there was room."""
        try:
            self.seal()
        except (ReadOnly, DiskFull) as error:
            self.executor.undo_batch()
            self.executor.refuse_writes(f"no room: {error}")
            if self.executor.has_ready:
                self.executor.run_ready()
            rerun()
            self.executor.finished()
            self.executor.accept_writes()
            self.gather()
            return False
        return True

    def gather(self) -> None:
        for origin, answers in self.executor.replies().items():
            self.dropped[origin] = self.dropped.get(origin, 0) + sum(answers.dropped.values())
            for group in answers.groups:
                results = _decode(bytes(group.results))
                assert len(results) == len(group.numbers)
                for number, result in zip(group.numbers, results, strict=True):
                    self._answered(origin, number, result)
            for error in answers.errors:
                self._answered(origin, error.number, error if error.code == ELSEWHERE else raised(error))

    def _answered(self, origin: Hashable, number: int, answer: Any) -> None:
        self.answers[number] = answer
        self.origins[number] = origin

    def call(self, name: str, *arguments: Any, **options: Any) -> Any:
        """One call in a batch of its own; its result. Raises what the caller would get."""
        number = self.run(name, *arguments, **options)
        self.seal()
        self.turn_pages()
        return self.answer(number)

    def call_everywhere(self, name: str, *arguments: Any, **options: Any) -> Any:
        number = self.run_everywhere(name, *arguments, **options)
        self.seal()
        self.turn_pages()
        return self.answer(number)

    def answer(self, number: int) -> Any:
        answer = self.answers.pop(number)
        if isinstance(answer, Error):
            raise answer
        return answer

    # As the coordinator.

    def attach(self, epoch: int = 1) -> Attached:
        """Begins a new session."""
        self.epoch = epoch
        self.session += 1
        self._frames = 0
        attached = self.participant.attach(Attach(epoch, self.session))
        assert attached is not None
        return attached

    def send(self, *orders: Order) -> None:
        """One frame of orders, which are obeyed as far as that goes without pages from disk."""
        if not self.session:
            self.attach()
        self._frames += 1
        self.participant.take(Orders(self.epoch, self.session, self._frames, list(orders)))
        self.obey()

    def obey(self) -> None:
        self.store.misses.bring = None
        self.executor.now_s = self.now_s
        while self.participant.orders.is_due:
            if self.executor.has_ready and self.participant.orders.yields:
                self.run_ready()
            self.participant.obey(self.now_s)

    def order(self, *orders: Order) -> list[Report]:
        """What is reported of these orders, once their pages have come."""
        self.send(*orders)
        self.turn_pages()
        return self.reports()

    def reports(self) -> list[Report]:
        return [report for frame in self.participant.reports() for report in frame.reports]

    def step(self, seconds: float) -> None:
        """Time passes."""
        self.now_s += seconds
        self.executor.now_s = self.now_s
        if self.now_s >= self.participant.due_s:
            self.participant.step(self.now_s)

    def call_joint(self, batch: int, name: str, *arguments: Any, number: int | None = None, now_us: int = 0) -> Any:
        """This partition's part of a joint call, committed. Raises what the caller would get."""
        if number is None:
            number = self.number = self.number + 1
        (ran,) = self.order(RunDirected(batch, CLIENT, number, name, Raw(_encode(arguments)), now_us))
        assert isinstance(ran, Ran)
        self.order(Decide(batch, ran.error is None))
        if ran.error is not None:
            raise raised(ran.error)
        return _decode(ran.result)

    def _append_step(self, record: bytes) -> int:
        self._lsn += 1
        return self._lsn if self.wal is None else self.wal.append(record)

    def arrive(self, table: str, *keys: Any) -> None:
        self.executor.keys_arrived(self.table(table).number, keys)

    def turn_pages(self) -> None:
        """Between two batches, as the server does: reads what calls have missed, and runs them again."""
        if self.wal is None:
            return
        while True:
            self.pool.fetch(self.executor.missed_pages() + self.participant.orders.missed_pages())
            arrived = self.pool.step(0.0, 1.0)
            self.redo.step(arrived)
            self.executor.pages_arrived(arrived)
            self.participant.orders.pages_arrived(arrived)
            if self.executor.has_ready:
                self.run_ready()
            elif self.participant.orders.is_due:
                self.obey()
            elif not self.pool.is_reading:
                return

    def finish_redo(self) -> None:
        """What the recovery has left is written."""
        for table in self.store.tables:
            self.pool.fetch([page_id(table.number, page) for page in table.redo.left_pages])
        while not self.redo.is_over:
            arrived = self.pool.step(0.0, 1.0)
            self.redo.step(arrived)
            self.executor.pages_arrived(arrived)

    def run_ready(self) -> None:
        self.executor.run_ready()
        self.seal()

    def rows(self, name: str) -> dict[Any, Any]:
        table = self.table(name)
        return {table._key_of(row): row for row in table.scan()}


@cache
def registry(procedures: tuple[Callable[..., Any], ...]) -> Registry:
    """Made once: partitions open by hundreds, and what a signature says takes a millisecond a procedure."""
    return from_functions(procedures)


def raised(error: CallError) -> Error:
    """What the caller gets."""
    return from_wire(error.code, error.message, error.type_name, error.traceback_text)
