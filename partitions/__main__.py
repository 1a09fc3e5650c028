"""The process of one partition: open, recover, serve. Started by the supervisor, never by hand.

Exit status: 0 after SIGTERM or SIGINT, 3 for damaged data, 4 when schema, procedures, settings or memory don't allow a
start, anything else is a crash, after which the supervisor starts it again.
"""

from __future__ import annotations

import argparse
import gc
import os
import signal
import sys
import time
from collections.abc import Hashable
from pathlib import Path

from partitions.buffer_pool import BufferPool
from partitions.checkpoint import load as load_checkpoint
from partitions.checkpoint import read_checkpoint
from partitions.checkpointer import CHECKPOINT_BYTES, Checkpointer
from partitions.executor import Executor
from partitions.page_reader import PageReader
from partitions.recovery import recover
from partitions.redo import Redo, Stopped
from partitions.server import Server
from partitions.store import Store
from partitions.wal import FSYNC_MODES, Wal
from partitions.warm_up import WarmUp
from voltpy import heartbeat
from voltpy.crash_point import crash_point
from voltpy.data_directory import load_procedures, partition_directory, read_schema
from voltpy.door import Door
from voltpy.door_sockets import opened
from voltpy.errors import ClusterError, ConstraintViolation, Corruption, DataError, Error, ReadOnly, SchemaError
from voltpy.events import Events, configure, get_logger
from voltpy.forks import forbid_forks
from voltpy.outcome_window import WINDOW_BYTES, OutcomeWindow
from voltpy.parent_death import SUPERVISOR, die_with_parent
from voltpy.record_log import SEGMENT_BYTES, DiskFull
from voltpy.registry import load_beside
from voltpy.resident import resident_bytes
from voltpy.sockets import context, raise_open_files_limit
from voltpy.timeout import Timeout
from voltpy.transaction import unique_ids, utc_now
from voltpy.warm_schedule import WARM_BYTES_PER_S, WARM_SOURCES, Entry, parse

# What a partition takes before it has any rows, and for a batch: --memory is for what comes on top of it.
PROCESS_BYTES = 56 << 20
TOO_LARGE_BYTES = 64 << 20  # so much beyond --memory, or a fifth of it where that is more: a long call is ended

EXIT_CRASHED = 1
EXIT_DAMAGED = 3
EXIT_REFUSED = 4
EXIT_UNFIT = 6  # 5 is the router's
LINGER_MS = 1000  # at the end, for replies that are on their way


def main() -> int:
    arguments = _arguments()
    die_with_parent(int(os.environ.get(SUPERVISOR, "0")))
    forbid_forks()
    configure()
    events = get_logger().bind(partition=arguments.partition)
    try:
        return _run(arguments, events)
    except Corruption as error:
        print(f"partition {arguments.partition}: {error}", file=sys.stderr, flush=True)
        return EXIT_DAMAGED
    except ReadOnly as error:
        print(f"partition {arguments.partition}: recovery found no room: {error}", file=sys.stderr, flush=True)
        return EXIT_REFUSED
    except (SchemaError, ClusterError) as error:
        print(f"partition {arguments.partition}: {error}", file=sys.stderr, flush=True)
        return EXIT_REFUSED
    except (DataError, ConstraintViolation) as error:  # a new view or unique index, which the rows don't allow
        print(error, file=sys.stderr, flush=True)
        return EXIT_UNFIT
    except DiskFull as error:  # not even a new segment's header fits: the supervisor tries again and again
        print(f"partition {arguments.partition}: {error}", file=sys.stderr, flush=True)
        return EXIT_CRASHED


def _run(arguments: argparse.Namespace, events: Events) -> int:
    schema = read_schema(arguments.data)
    registry = load_procedures(arguments.data, schema)
    crash_point("partition.start.registry_read")

    began_s = time.perf_counter()
    others_bytes = max(PROCESS_BYTES, resident_bytes() + PROCESS_BYTES // 8)
    wal_directory = partition_directory(arguments.data, arguments.partition)
    wal = Wal.open(wal_directory, arguments.partition, arguments.fsync, arguments.segment_bytes)
    crash_point("partition.start.wal_opened")
    store = Store(schema, arguments.partition, arguments.partitions, arguments.memory)
    gc.disable()
    checkpoint = read_checkpoint(wal_directory, arguments.partition)
    pages = load_checkpoint(wal_directory, arguments.partition, checkpoint, store)
    loaded_s = time.perf_counter()
    reader = PageReader(pages.path, store.arena.memory)
    pool = BufferPool(store.heaps, store.arena, reader, pages.path, arguments.memory + others_bytes)
    store.use(pool)
    root = checkpoint.root
    window = OutcomeWindow(root.outcomes_reach, min(WINDOW_BYTES, arguments.memory // 16), root.batches_reach)
    checkpointer = Checkpointer(
        wal_directory,
        arguments.partition,
        store,
        window,
        wal,
        pages,
        checkpoint,
        every_bytes=arguments.checkpoint_bytes,
    )
    changes = recover(wal, store, checkpoint, window, checkpointer, leaves_cold=True)
    redo = Redo(store, pool)
    redo.done = lambda: events.info("caught_up", seconds=round(time.perf_counter() - began_s, 3))
    for table in store.left_out_images:
        events.info("indexes_built", table=table, reason="no image: built from the rows")
    for reason in store.lost_images:
        events.warning("indexes_built", reason=reason)
    epoch = wal.begin()
    checkpointer.begin()
    checkpointer.failed = lambda error: events.warning("checkpoint_put_off", reason=str(error))
    checkpointer.done = lambda made: events.info("checkpoint", number=made.number, lsn=made.lsn)
    schedule: list[Entry] = []
    if arguments.warm_schedule is not None:
        try:
            schedule = parse(arguments.warm_schedule.read_text(encoding="utf-8"), store.by_name)
        except (ClusterError, OSError, UnicodeDecodeError) as error:  # it was sound when the cluster was started
            events.warning("warming_failed", reason=f"{arguments.warm_schedule}: {error}")
    warm_up = WarmUp(
        wal_directory,
        arguments.partition,
        store,
        pool,
        sources=arguments.warm.split(","),
        bytes_per_s=arguments.warm_rate,
        schedule=schedule,
    )
    warm_up.failed = lambda reason: events.warning("warming_failed", reason=reason)
    pool.steer(resident_bytes())
    warm_up.begin()
    crash_point("partition.start.recovered")
    # Nothing that recovery made is garbage, and walking over it again and again would cost more than it could find.
    gc.freeze()
    gc.enable()
    gc.set_threshold(50_000, 20, 50)
    events.info(
        "recovered",
        checkpoint=checkpoint.number,
        changes=changes,
        checkpoint_seconds=round(loaded_s - began_s, 3),
        seconds=round(time.perf_counter() - began_s, 3),
        pages_left=redo.pages_left,
        epoch=epoch,
    )

    running = heartbeat.open_words(heartbeat.path_in(arguments.runtime, arguments.partition))
    ids = unique_ids(arguments.partition, epoch)
    executor = Executor(store, registry, window, ids, running, utc_now)
    if arguments.runaway is not None:
        executor.runaways.add(arguments.runaway)
    door = Door[Hashable](
        os.environ.get("VOLTPY_TOKEN", ""), at_partition=arguments.partition, partitions=arguments.partitions
    )
    door.catalog_version = registry.catalog_version

    raise_open_files_limit()
    sockets = context()
    doors, tcp_port = opened(sockets, arguments.runtime / f"p{arguments.partition}", arguments.host)
    crash_point("partition.start.bound")
    if arguments.core is not None:
        # Only the main thread: those of ZeroMQ and of the flusher exist by now, and go where there is room.
        os.sched_setaffinity(0, {arguments.core})

    most_bytes = arguments.memory + max(arguments.memory // 5, TOO_LARGE_BYTES) + others_bytes
    timeout = Timeout(
        executor.interrupt,
        executor.may_be_interrupted,
        running,
        arguments.procedure_timeout,
        lambda: resident_bytes() > most_bytes,
    )
    server = Server(
        doors,
        arguments.partition,
        tcp_port,
        door,
        executor,
        store,
        pool,
        warm_up,
        wal,
        checkpointer,
        timeout,
        load_beside,
        redo=redo,
    )

    def stop(*_: object) -> None:
        server.stop()
        redo.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    try:
        server.serve()
    except Stopped:  # between two batches
        server.end()
    finally:
        timeout.end()
    crash_point("partition.stop.served")
    doors.close(LINGER_MS)
    sockets.term()
    crash_point("partition.stop.socket_closed")
    try:
        reader.close()
        checkpointer.close()
    finally:
        wal.close()
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m partitions", description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--partition", type=int, required=True)
    parser.add_argument("--partitions", type=int, required=True)
    parser.add_argument("--runtime", type=Path, required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--fsync", choices=FSYNC_MODES, default="always")
    parser.add_argument("--memory", type=int, required=True, help="bytes, for this partition")
    parser.add_argument("--procedure-timeout", type=float, required=True, help="seconds")
    parser.add_argument("--core", type=int, help="pin the main thread to this core")
    parser.add_argument(
        "--checkpoint-bytes", type=int, default=CHECKPOINT_BYTES, help="of new WAL make a checkpoint due"
    )
    parser.add_argument(
        "--warm", default=",".join(WARM_SOURCES), help="what brings pages into memory before they are needed"
    )
    parser.add_argument("--warm-rate", type=int, default=WARM_BYTES_PER_S, help="bytes a second")
    parser.add_argument("--warm-schedule", type=Path, help="see voltpy.warm_schedule")
    parser.add_argument("--segment-bytes", type=int, default=SEGMENT_BYTES, help="of the WAL, before the next begins")
    parser.add_argument("--runaway", type=_call_id, help="CLIENT:NUMBER:PROCEDURE that the last process was killed for")
    return parser.parse_args()


def _call_id(text: str) -> tuple[int, int]:
    client_id, number, _ = text.split(":", 2)
    return int(client_id), int(number)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Error as error:
        print(error, file=sys.stderr, flush=True)
        sys.exit(1)
