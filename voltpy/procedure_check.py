"""`python -m voltpy.procedure_check FILE`, with a stored schema on stdin: would the partitions load this file?

A process of its own, because loading runs the user's code, and the supervisor must survive that. Exit status 0, or 4
with the reason on stderr.
"""

from __future__ import annotations

import sys

from voltpy.data_directory import read_source
from voltpy.errors import ClusterError, SchemaError
from voltpy.registry import load
from voltpy.schema import from_json

EXIT_REFUSED = 4


def main() -> int:
    try:
        path, source = read_source(sys.argv[1])
        load(source, path, from_json(sys.stdin.buffer.read()), 1)
    except (SchemaError, ClusterError) as error:
        print(error, file=sys.stderr)
        return EXIT_REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main())
