"""`python -m bench.prefetch --pages 1000 FILE.txt.gz`: what the buffer pool's learned prefetch gains on traces.

The pool of bench.hit_ratio with W-TinyLFU, without prefetch and with it: then a 64th of its pages (4 at least) is
where prefetched pages wait for their first use, and the policy has the rest. A *hit* is a request that waits for no
read; a prefetched page is read before it is asked for, so reads are counted by themselves.

Sequential read-ahead is off: where a trace numbers its pages in the order of their first use, as those of
docs/eviction.md do, it would know the future.
"""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from bench.hit_ratio import TraceError, read_trace, replay
from bench.policies import DEFAULT, POLICIES
from partitions.prefetch import Prefetch, Usefulness

TABLE_PAGES = 1 << 16
WAITING_SHARE = 64
LEAST_WAITING = 4


class Result(msgspec.Struct, frozen=True):
    trace: str
    pages: int
    requests: int
    hits_without: int
    hits: int
    used: int
    wasted: int
    reads_without: int
    reads: int


def replay_with_prefetch(trace: list[int], pages: int) -> tuple[int, int, Usefulness]:
    """(hits, reads, what became of the prefetched pages) of a pool that starts empty."""
    room = max(LEAST_WAITING, pages // WAITING_SHARE)
    policy = POLICIES[DEFAULT](max(1, pages - room))
    resident: set[int] = set()
    prefetch = Prefetch(TABLE_PAGES, room, lambda page: page not in resident)
    prefetch.switch("sequential", False)
    touched: list[int] = []
    hits = reads = 0
    for page in trace:
        if page in resident:
            touched.append(page)
            continue
        policy.touch(touched)
        hits += len(touched)
        touched.clear()
        if page in prefetch:
            hits += 1
            ahead = prefetch.used(page)
        else:
            reads += 1
            ahead = prefetch.after(page)
        reads += len(ahead)
        policy.admit(page)
        resident.add(page)
        prefetch.excess()
        resident.difference_update(policy.evict())
    return hits + len(touched), reads, prefetch.usefulness("learned")


def measure(name: str, trace: list[int], pages: int) -> Result:
    without = replay(POLICIES[DEFAULT](pages), trace)
    hits, reads, (used, wasted, _) = replay_with_prefetch(trace, pages)
    return Result(name, pages, len(trace), without, hits, used, wasted, len(trace) - without, reads)


def table(results: list[Result]) -> str:
    lines = [
        "| trace | pages | hits without, % | with, % | prefetched and used | wasted | useful, % | reads |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for result in results:
        prefetched = result.used + result.wasted
        useful = f"{100 * result.used / prefetched:.0f}" if prefetched else ""
        more = 100 * (result.reads / result.reads_without - 1) if result.reads_without else 0.0
        percents = [100 * hits / result.requests for hits in (result.hits_without, result.hits)]
        lines.append(
            f"| {result.trace} | {result.pages} | {percents[0]:.2f} | {percents[1]:.2f} | {result.used} "
            f"| {result.wasted} | {useful} | {more:+.1f} % |"
        )
    return "\n".join(lines)


@click.command("prefetch", help="What learned prefetch gains on traces: one page number a line, plain or gzip.")
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--pages", multiple=True, required=True, type=click.IntRange(1), help="Capacities; may be repeated.")
@click.option("--json", "as_json", is_flag=True, help="A document with every figure.")
def main(files: tuple[Path, ...], pages: tuple[int, ...], as_json: bool) -> None:
    results = []
    for file in dict.fromkeys(files):
        try:
            trace = read_trace(file)
        except TraceError as error:
            raise click.ClickException(str(error)) from None
        results += [measure(file.name, trace, size) for size in dict.fromkeys(pages)]
    click.echo(msgspec.json.format(msgspec.json.encode(results)).decode() if as_json else table(results))


if __name__ == "__main__":
    main(prog_name="python -m bench.prefetch")
