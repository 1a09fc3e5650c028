"""`python -m tests.sqllogictest FILE…`: runs the files, and says what passed, failed and was left out, and why.

The engine's name in skipif and onlyif is postgresql, whose SQL ours follows; --name gives another.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path

import click

from tests.sqllogictest.run import Outcome, run


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--name", default="postgresql", show_default=True, help="What skipif and onlyif call this engine.")
@click.option("--shown", default=5, show_default=True, help="Failures that are shown of each file.")
@click.option("--limit", default=0, help="Records run of each file; 0: all.")
def main(files: tuple[Path, ...], name: str, shown: int, limit: int) -> None:
    total = Outcome()
    reasons: Counter[str] = Counter()
    for file in files:
        began_s = time.perf_counter()
        outcome = run(file.read_text(encoding="utf-8", errors="replace"), name, limit)
        total.add(outcome)
        reasons.update(outcome.reasons)
        print(f"{file}: {outcome.summary()}, {time.perf_counter() - began_s:.1f} s")
        for failure in outcome.failures[:shown]:
            print("   ", failure.replace("\n", "\n      "))
    print(f"all: {total.summary()}")
    for reason, count in reasons.most_common(40):
        print(f"    {count:7,} × {reason}")
    sys.exit(1 if total.failures else 0)


if __name__ == "__main__":
    main()
