"""`python -m tests.simulation --seeds N [--first S]`: runs of a simulated cluster, each from its seed.

With `--schema` the schema changes meanwhile, with `--lives` lives of one process meet: those are other runs.

A run that breaks a promise prints what, and the command that repeats it. Exit status 1 when there is one.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from collections import Counter
from contextlib import nullcontext


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--schema", action="store_true", help="runs in which the schema changes meanwhile")
    parser.add_argument("--lives", action="store_true", help="runs of what processes' lives are there for")
    parser.add_argument("--trace", action="store_true", help="print what happens")
    parser.add_argument("--broken", metavar="NAME", help="a build that must be found out; all: how soon each is")
    parser.add_argument("--keep-going", action="store_true", help="after a run that breaks a promise")
    arguments = parser.parse_args()
    if os.environ.get("PYTHONHASHSEED") != "0":  # the order of sets is part of what a seed decides
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "tests.simulation", *sys.argv[1:]])
    from tests.simulation.broken import broken
    from tests.simulation.broken_lives import LIVES_BROKEN
    from tests.simulation.broken_schema import SCHEMA_BROKEN
    from tests.simulation.run import Run
    from tests.simulation.stage import setting

    arguments.schema |= arguments.broken in SCHEMA_BROKEN
    arguments.lives |= arguments.broken in LIVES_BROKEN
    if arguments.broken == "all":
        return _find_out_all(arguments.first, arguments.seeds)
    mode = (" --schema" if arguments.schema else "") + (" --lives" if arguments.lives else "")
    began_s = time.monotonic()
    faults: Counter[str] = Counter()
    seeds_with: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    returned: Counter[str] = Counter()
    changes: Counter[tuple[str, str]] = Counter()
    transactions = done = 0
    failed: list[int] = []
    gc.disable()
    with setting() as stage, broken(arguments.broken) if arguments.broken else nullcontext():
        for seed in range(arguments.first, arguments.first + arguments.seeds):
            run = Run(stage, seed, trace=arguments.trace, changes_schema=arguments.schema, lives=arguments.lives)
            result = run()
            stage.world = stage.network = None
            done += 1
            faults.update(result.faults)
            seeds_with.update(result.faults.keys())
            outcomes.update(result.outcomes)
            returned.update(result.done)
            changes.update(result.changes)
            transactions += result.transactions
            if result.violations:
                failed.append(seed)
                for violation in result.violations[:20]:
                    print(f"seed {seed}: {violation}")
                print(f"repeat it: python -m tests.simulation{mode} --first {seed} --trace", flush=True)
                if not arguments.keep_going:
                    break
            if done % 50 == 0:
                gc.collect()
                took_s = time.monotonic() - began_s
                print(
                    f"{done} seeds, {done / took_s:.1f} a second, {transactions} transactions, {len(failed)} failed",
                    file=sys.stderr,
                )
    took_s = time.monotonic() - began_s
    summary = {
        "seeds": done,
        "failed": failed,
        "seconds": round(took_s, 1),
        "cpu_seconds": round(time.process_time(), 1),
        "seeds_a_second": round(done / took_s, 2),
        "transactions": transactions,
        "outcomes": dict(sorted(outcomes.items())),
        "returned": dict(sorted(returned.items())),
        "faults": {kind: {"fired": faults[kind], "seeds": seeds_with[kind]} for kind in sorted(faults)},
    }
    if arguments.schema:
        kinds = sorted({kind for kind, _ in changes})
        summary["changes"] = {
            kind: {what: count for (of, what), count in sorted(changes.items()) if of == kind} for kind in kinds
        }
    print(json.dumps(summary, indent=2))
    return 1 if failed else 0


def _find_out_all(first: int, seeds: int) -> int:
    """Whether each broken build is found out by so many seeds."""
    from tests.simulation.broken import BROKEN, broken
    from tests.simulation.broken_lives import LIVES_BROKEN
    from tests.simulation.broken_schema import SCHEMA_BROKEN
    from tests.simulation.run import Run
    from tests.simulation.stage import setting

    missed = 0
    gc.disable()
    with setting() as stage:
        for name in (*sorted(BROKEN), *sorted(SCHEMA_BROKEN), *sorted(LIVES_BROKEN)):
            with broken(name):
                for seed in range(first, first + seeds):
                    result = Run(stage, seed, changes_schema=name in SCHEMA_BROKEN, lives=name in LIVES_BROKEN)()
                    if seed % 50 == 0:
                        gc.collect()
                    if result.violations:
                        print(f"{name}: found by seed {seed}: {result.violations[0][:200]}", flush=True)
                        break
                else:
                    missed += 1
                    print(f"{name}: NOT FOUND by {seeds} seeds", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
