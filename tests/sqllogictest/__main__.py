"""`python -m tests.sqllogictest PATH…`: runs files, or all *.test below folders; says what passed and failed.

In one process with one partition, or with --cluster through voltpy.dbapi on a cluster of real processes, one cluster a
file. The engine's name in skipif and onlyif is postgresql, whose SQL ours follows; --name gives another.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import click

from tests.sqllogictest.cluster import ClusterDatabase
from tests.sqllogictest.run import Outcome, run, run_on
from tests.sqllogictest.script import records


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--cluster", is_flag=True, help="On a cluster of real processes, through voltpy.dbapi.")
@click.option("--partitions", default=2, show_default=True, type=click.IntRange(1, 64), help="Of the cluster.")
@click.option("--name", default="postgresql", show_default=True, help="What skipif and onlyif call this engine.")
@click.option("--shown", default=5, show_default=True, help="Failures that are shown of each file.")
@click.option("--limit", default=0, help="Records run of each file; 0: all.")
@click.option("--every", default=1, show_default=True, type=click.IntRange(1), help="Of the files, every so many-th.")
def main(
    paths: tuple[Path, ...], cluster: bool, partitions: int, name: str, shown: int, limit: int, every: int
) -> None:
    total = Outcome()
    for file in list(_files(paths))[::every]:
        began_s = time.perf_counter()
        text = file.read_text(encoding="utf-8", errors="replace")
        outcome, note = _on_cluster(text, partitions, name, limit) if cluster else (run(text, name, limit), "")
        total.add(outcome)
        print(f"{file}: {outcome.summary()}, {time.perf_counter() - began_s:.1f} s{note}", flush=True)
        for reason, count in outcome.skipped.most_common():
            print(f"    skipped {count:,}: {reason}")
        for failure in outcome.failures[:shown]:
            print("   ", failure.replace("\n", "\n      "))
    print(f"all: {total.summary()}")
    for reason, count in total.skipped.most_common():
        print(f"    skipped {count:,}: {reason}")
    for reason, count in Counter(total.reasons).most_common(40):
        print(f"    {count:7,} × {reason}")
    sys.exit(1 if total.failures else 0)


def _files(paths: tuple[Path, ...]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from sorted(path.rglob("*.test"))
        else:
            yield path


def _on_cluster(text: str, partitions: int, name: str, limit: int) -> tuple[Outcome, str]:
    script = list(records(text))
    with (
        tempfile.TemporaryDirectory(prefix="voltpy-sqllogictest-") as directory,
        ClusterDatabase(Path(directory) / "cluster", script, partitions) as database,
    ):
        outcome = run_on(database, script, name, limit)
    return outcome, f"; full copies: {', '.join(database.copies)}" if database.copies else ""


if __name__ == "__main__":
    main()
