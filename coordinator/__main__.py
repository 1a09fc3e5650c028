"""The processes in front of the partitions. Started by the supervisor, never by hand.

    python -I -m coordinator router --runtime DIR --host H --port P            the router
    python -I -m coordinator transactions --data DIR --partitions N …          cross-partition transactions

Exit status: 0 after SIGTERM or SIGINT, 3 for a damaged decision log, 4 when schema, procedures or settings don't allow
a start, 5 when an address can't be listened on; anything else is a crash, after which the supervisor starts it again.
VOLTPY_TOKEN in the environment proves to the partitions who this is, and to this process who its supervisor is.
"""

from __future__ import annotations

import argparse
import gc
import os
import signal
import sys
from collections.abc import Callable, Hashable
from pathlib import Path

from coordinator.bodies import Bodies
from coordinator.decision_log import SEGMENT_BYTES, DecisionLog
from coordinator.router_server import CannotListen
from coordinator.router_server import Server as RouterServer
from coordinator.server import Server
from coordinator.session import reports_due_s
from coordinator.transactions import Transactions
from voltpy import heartbeat
from voltpy.crash_point import crash_point
from voltpy.data_directory import coordinator_directory, load_procedures, read_schema
from voltpy.door import Door
from voltpy.door_sockets import opened
from voltpy.errors import ClusterError, Corruption, Error, SchemaError
from voltpy.events import configure, get_logger
from voltpy.forks import forbid_forks
from voltpy.outcome_window import OutcomeWindow
from voltpy.parent_death import SUPERVISOR, die_with_parent
from voltpy.record_log import DiskFull
from voltpy.registry import load_beside
from voltpy.resident import resident_bytes
from voltpy.schema import Schema
from voltpy.sockets import context, raise_open_files_limit
from voltpy.sql.catalogue import Catalogue
from voltpy.sql.plan import Plan
from voltpy.timeout import Timeout
from voltpy.transaction import unique_ids, utc_now

EXIT_CRASHED = 1
EXIT_DAMAGED = 3
EXIT_REFUSED = 4
CANNOT_LISTEN = 5
LINGER_MS = 1000  # at the end, for replies that are on their way
TOO_LARGE_BYTES = 64 << 20  # beyond --memory: a long call is ended
# Two batches at a time keep processors busy that would wait otherwise. With two cores there are none, and batches are
# smaller: without it transfers were 0.92 to 1.13 times as many there (four pairs of runs in turn, median 1.09).
OVERLAPPING_CORES = 2


def main() -> int:
    options = _options()
    die_with_parent(int(os.environ.get(SUPERVISOR, "0")))
    configure()
    if options.process == "router":
        return _route(options)
    forbid_forks()
    try:
        return _coordinate(options)
    except Corruption as error:
        print(f"coordinator: {error}", file=sys.stderr, flush=True)
        return EXIT_DAMAGED
    except (SchemaError, ClusterError) as error:
        print(f"coordinator: {error}", file=sys.stderr, flush=True)
        return EXIT_REFUSED
    except DiskFull as error:  # not even a new segment's header fits: the supervisor tries again and again
        print(f"coordinator: {error}", file=sys.stderr, flush=True)
        return EXIT_CRASHED


def _route(options: argparse.Namespace) -> int:
    try:
        server = RouterServer(options.runtime, options.host, options.port, os.environ.get("VOLTPY_TOKEN", ""))
    except CannotListen as error:
        print(error, file=sys.stderr)
        return CANNOT_LISTEN
    server.serve_until_signal()
    return 0


def _coordinate(options: argparse.Namespace) -> int:
    lane = options.partitions
    token = os.environ.get("VOLTPY_TOKEN", "")
    events = get_logger("coordinator")
    schema = read_schema(options.data)
    registry = load_procedures(options.data, schema)
    log = DecisionLog.open(coordinator_directory(options.data), lane, segment_bytes=options.segment_bytes)
    decisions = log.replay()
    crash_point("coordinator.start.replayed")
    window = OutcomeWindow(log.reaches)
    for decision in decisions:
        window.add(decision.batch, bytes(decision.outcomes))
    epoch = log.begin()

    running = heartbeat.open_words(heartbeat.path_in(options.runtime, lane))
    bodies = Bodies(schema, lane, registry, running, unique_ids(lane, epoch), utc_now)
    runaways = [options.runaway] if options.runaway is not None else []
    due_s = reports_due_s(options.procedure_timeout)
    overlaps = len(os.sched_getaffinity(0)) > OVERLAPPING_CORES
    core = Transactions(lane, epoch, bodies, decisions, window, runaways, due_s, overlaps=overlaps)
    door = Door[Hashable](token, at_partition=lane, is_coordinator=True)
    door.catalog_version = registry.catalog_version

    raise_open_files_limit()
    sockets = context()
    doors, tcp_port = opened(sockets, options.runtime / f"p{lane}", options.host)
    crash_point("coordinator.start.bound")
    most_bytes = options.memory + TOO_LARGE_BYTES + resident_bytes() if options.memory else 0
    timeout = Timeout(
        bodies.interrupt,
        bodies.may_be_interrupted,
        running,
        options.procedure_timeout,
        lambda: bool(most_bytes) and resident_bytes() > most_bytes,
        bodies.lease,
    )
    server = Server(
        doors,
        tcp_port,
        token,
        door,
        core,
        log,
        timeout,
        load_beside,
        schema,
        _planner,
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.stop())
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    events.info("coordinator_started", epoch=epoch, decisions=len(decisions))
    try:
        server.serve()
    finally:
        timeout.end()
    crash_point("coordinator.stop.served")
    doors.close(LINGER_MS)
    sockets.term()
    log.close()
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m coordinator", description=__doc__)
    processes = parser.add_subparsers(dest="process", required=True)
    router = processes.add_parser("router", help="the router of a voltpy cluster")
    router.add_argument("--runtime", type=Path, required=True, help="the directory of the cluster's ipc sockets")
    router.add_argument("--host", default="127.0.0.1")
    router.add_argument("--port", type=int, required=True, help="0: any free one")
    transactions = processes.add_parser("transactions", help="runs what crosses partitions")
    transactions.add_argument("--data", type=Path, required=True)
    transactions.add_argument("--partitions", type=int, required=True)
    transactions.add_argument("--runtime", type=Path, required=True)
    transactions.add_argument("--host", required=True)
    transactions.add_argument("--procedure-timeout", type=float, required=True, help="seconds")
    transactions.add_argument("--memory", type=int, default=0, help="bytes beyond which a long call is ended")
    transactions.add_argument("--segment-bytes", type=int, default=SEGMENT_BYTES, help="of the decision log")
    transactions.add_argument(
        "--runaway", type=_call_id, help="CLIENT:NUMBER:PROCEDURE that the last process was killed for"
    )
    return parser.parse_args()


def _call_id(text: str) -> tuple[int, int]:
    client_id, number, _ = text.split(":", 2)
    return int(client_id), int(number)


def _planner(schema: Schema) -> Callable[[str], Plan]:
    """Plans statements. The parser is large, and loaded for the first of them."""
    catalogue = Catalogue(schema)

    def plan_of(text: str) -> Plan:
        from voltpy.sql.planner import plan

        return plan(text, catalogue)

    return plan_of


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Error as error:
        print(error, file=sys.stderr, flush=True)
        sys.exit(1)
