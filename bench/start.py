"""`python -m bench.start OPTIONS -- PARTITION-OPTIONS`: `voltpy start`, with options for the partitions' processes.

The latter are no options of `voltpy start`, since no user needs them: how much WAL makes a checkpoint due, for example.
"""

from __future__ import annotations

import sys
from functools import partial

from voltpy.cli import main
from voltpy.cli import start as command
from voltpy.cluster import PARTITION_COMMAND, Cluster


def start(words: list[str]) -> None:
    end = words.index("--") if "--" in words else len(words)
    vars(command)["Cluster"] = partial(Cluster, partition_command=(*PARTITION_COMMAND, *words[end + 1 :]))
    main(["start", *words[:end]])


if __name__ == "__main__":
    start(sys.argv[1:])
