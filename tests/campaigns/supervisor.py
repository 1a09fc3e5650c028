"""`voltpy start` for campaigns: the same cluster, which starts what died again at once, however often it dies.

Run by tests.campaigns.cluster. Small WAL segments, so that short runs go through rotations too.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from voltpy import child, events
from voltpy.cluster import COORDINATOR_COMMAND, PARTITION_COMMAND, Cluster, Options
from voltpy.data_directory import DataDirectory
from voltpy.errors import Error
from voltpy.parent_death import die_with_parent
from voltpy.warm_schedule import WARM_SOURCES


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--partitions", type=int, required=True)
    parser.add_argument("--schema", type=Path, required=True)
    parser.add_argument("--procedures", type=Path, help="for the first start: later ones use what is stored")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--segment-bytes", type=int, required=True)
    parser.add_argument("--checkpoint-bytes", type=int, required=True)
    parser.add_argument("--memory", type=int, required=True, help="bytes, of all partitions; `voltpy start` wants more")
    parser.add_argument("--procedure-timeout", type=float, default=5.0)
    parser.add_argument("--fsync", default="always")
    parser.add_argument("--hold-redo", type=Path, help="see tests.campaigns.held_redo")
    arguments = parser.parse_args()
    die_with_parent()
    events.configure()
    # A child that is killed on purpose again and again is not to be waited for longer and longer.
    child.BACKOFF_MOST_S = 0.0
    command = PARTITION_COMMAND
    if arguments.hold_redo is not None:
        command = (sys.executable, "-I", str(Path(__file__).with_name("held_redo.py")), str(arguments.hold_redo))
    partition_command = (
        *command,
        *("--segment-bytes", str(arguments.segment_bytes)),
        *("--checkpoint-bytes", str(arguments.checkpoint_bytes)),
    )
    options = Options(
        port=arguments.port,
        memory_bytes=arguments.memory,
        procedure_timeout_s=arguments.procedure_timeout,
        fsync=arguments.fsync,
        warm=WARM_SOURCES if arguments.hold_redo is None else (),  # pages that come have what was left written too
    )
    try:
        with DataDirectory.open(
            arguments.data, arguments.partitions, arguments.schema.read_text(), arguments.procedures
        ) as directory:
            Cluster(
                directory,
                options,
                _ready,
                partition_command=partition_command,
                coordinator_command=(*COORDINATOR_COMMAND, "--segment-bytes", str(arguments.segment_bytes)),
            ).run()
    except Error as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


def _ready(url: str) -> None:
    print(url, flush=True)


if __name__ == "__main__":
    sys.exit(main())
