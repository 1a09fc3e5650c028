"""`python -I -m coordinator --runtime DIR --host H --port P`: the router. Started by the supervisor.

Exit status: 0 after SIGTERM or SIGINT, 5 when an address can't be listened on. VOLTPY_TOKEN in the environment proves
to the partitions that this is their router, and to this router who its supervisor is.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from coordinator.router_server import CannotListen, Server
from voltpy.events import configure
from voltpy.parent_death import SUPERVISOR, die_with_parent

CANNOT_LISTEN = 5


def main() -> int:
    parser = argparse.ArgumentParser(prog="coordinator", description="The router of a voltpy cluster.")
    parser.add_argument("--runtime", type=Path, required=True, help="the directory of the cluster's ipc sockets")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True, help="0: any free one")
    options = parser.parse_args()
    die_with_parent(int(os.environ.get(SUPERVISOR, "0")))
    configure()
    try:
        server = Server(options.runtime, options.host, options.port, os.environ.get("VOLTPY_TOKEN", ""))
    except CannotListen as error:
        print(error, file=sys.stderr)
        return CANNOT_LISTEN
    server.serve_until_signal()
    return 0


if __name__ == "__main__":
    sys.exit(main())
