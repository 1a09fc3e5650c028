"""`python -m bench.hit_ratio --policy w-tinylfu --pages 1000 FILE.txt.gz`: hit ratios of eviction policies on traces.

A trace is a text file with one page number in decimal a line, plain or gzip-compressed. The policies are the buffer
pool's own classes; touches reach them in order, drained before every miss. `--table` adds LRU and Belady's optimum,
which evicts the page whose next use is farthest away, and so knows the future.
"""

from __future__ import annotations

import gzip
import heapq
import zlib
from pathlib import Path
from time import perf_counter

import click
import msgspec

from bench.policies import DEFAULT, POLICIES
from partitions.eviction import Policy

GZIP_MAGIC = b"\x1f\x8b"
LARGEST_PAGE = 2**63 - 1
TOUCHES_A_BATCH = 256
TOUCHES_TIMED = 500_000


class TraceError(Exception):
    """A file is not a trace; the message names the file, and the line if there is one."""


class Result(msgspec.Struct, frozen=True):
    trace: str
    policy: str
    pages: int
    requests: int
    hits: int
    hit_ratio_percent: float
    request_us: float  # the whole replay, the pool's part included
    touch_us: float  # a touch of a resident page, in batches


def read_trace(file: Path) -> list[int]:
    try:
        data = file.read_bytes()
        if data.startswith(GZIP_MAGIC):
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise TraceError(f"{file} cannot be read: {error}") from None
    if data.translate(None, b"0123456789\r\n"):
        _explain(file, data)
    lines = data.split()
    if not lines:
        raise TraceError(f"{file} holds no requests")
    if max(map(len, lines)) > len(str(LARGEST_PAGE)):
        _explain(file, data)
    pages = list(map(int, lines))
    if max(pages) > LARGEST_PAGE:
        _explain(file, data)
    return pages


def _explain(file: Path, data: bytes) -> None:
    """Names the first line that is no page number."""
    for number, line in enumerate(data.splitlines(), 1):
        text = line.strip()
        if text and (not text.isdigit() or len(text) > len(str(LARGEST_PAGE)) or int(text) > LARGEST_PAGE):
            raise TraceError(
                f"{file}, line {number}: {text[:40].decode('utf-8', 'replace')!r} is no page number (0 to 2**63 - 1)"
            )


def replay(policy: Policy, trace: list[int]) -> int:
    """Hits of a pool that starts empty and asks this policy what leaves."""
    resident: set[int] = set()
    touched: list[int] = []
    hits = 0
    for page in trace:
        if page in resident:
            touched.append(page)
            continue
        if touched:
            hits += len(touched)
            policy.touch(touched)
            touched.clear()
        policy.admit(page)
        resident.add(page)
        resident.difference_update(policy.evict())
    policy.touch(touched)
    return hits + len(touched)


def belady(trace: list[int], pages: int) -> int:
    """Hits of the optimal policy: evict the page whose next use is farthest away."""
    never = len(trace)
    next_use = [never] * len(trace)
    last: dict[int, int] = {}
    for at in range(len(trace) - 1, -1, -1):
        next_use[at] = last.get(trace[at], never)
        last[trace[at]] = at
    resident: dict[int, int] = {}  # page → its next use
    farthest: list[tuple[int, int]] = []  # (-next use, page); entries that resident contradicts are stale
    hits = 0
    for at, page in enumerate(trace):
        if page in resident:
            hits += 1
        elif len(resident) == pages:
            while True:
                use, out = heapq.heappop(farthest)
                if resident.get(out) == -use:
                    del resident[out]
                    break
        resident[page] = next_use[at]
        heapq.heappush(farthest, (-next_use[at], page))
    return hits


def measure(name: str, pages: int, file: Path, trace: list[int], timed: bool) -> Result:
    started = perf_counter()
    policy: Policy | None = None
    if name == "belady":
        hits = belady(trace, pages)
    else:
        policy = POLICIES[name](pages)
        hits = replay(policy, trace)
    request_us = (perf_counter() - started) / len(trace) * 1e6
    touch_us = _touch_us(policy, trace) if timed and policy is not None else 0.0
    return Result(file.name, name, pages, len(trace), hits, 100 * hits / len(trace), request_us, touch_us)


def _touch_us(policy: Policy, trace: list[int]) -> float:
    """Touches only, of the pages that are resident at the end, in the trace's order, repeated if they are few."""
    touches = [page for page in trace if page in policy][:TOUCHES_TIMED]
    touches *= max(1, TOUCHES_TIMED // len(touches))
    batches = [touches[at : at + TOUCHES_A_BATCH] for at in range(0, len(touches), TOUCHES_A_BATCH)]
    touch = policy.touch
    started = perf_counter()
    for batch in batches:
        touch(batch)
    return (perf_counter() - started) / len(touches) * 1e6


def table(results: list[Result], policies: tuple[str, ...]) -> str:
    """One row a trace and size: LRU, the policies, Belady, and how far each is on the way from LRU to Belady."""
    columns = ["lru", *(name for name in policies if name != "lru"), "belady"]
    of = {(result.trace, result.pages, result.policy): result.hit_ratio_percent for result in results}
    measured = columns[1:-1]
    lines = [
        "| trace | pages | " + " | ".join(columns) + "".join(f" | {name}, way to Belady" for name in measured) + " |",
        "| --- |" + " ---: |" * (1 + len(columns) + len(measured)),
    ]
    ways: dict[str, list[float]] = {name: [] for name in measured}
    for trace, pages in dict.fromkeys((result.trace, result.pages) for result in results):
        ratios = [of[trace, pages, name] for name in columns]
        room = ratios[-1] - ratios[0]
        cells = [f"{ratio:.2f}" for ratio in ratios]
        for name, ratio in zip(measured, ratios[1:], strict=False):
            if room > 0:
                ways[name].append((ratio - ratios[0]) / room)
                cells.append(f"{ways[name][-1]:.2f}")
            else:
                cells.append("")
        lines.append(f"| {trace} | {pages} | " + " | ".join(cells) + " |")
    for name, values in ways.items():
        if len(values) > 1:
            lines.append(f"\n{name}: {sum(values) / len(values):.3f} of the way from LRU to Belady, mean of the rows.")
    return "\n".join(lines)


@click.command("hit-ratio", help="Hit ratios of eviction policies on traces: one page number a line, plain or gzip.")
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--policy",
    "policies",
    multiple=True,
    default=[DEFAULT],
    show_default=True,
    type=click.Choice([*POLICIES, "belady"]),
)
@click.option("--pages", multiple=True, required=True, type=click.IntRange(1), help="Capacities; may be repeated.")
@click.option("--table", "as_table", is_flag=True, help="A Markdown table, with LRU and Belady beside the policies.")
@click.option("--json", "as_json", is_flag=True, help="A document with every figure.")
@click.option("--time", "timed", is_flag=True, help="Microseconds a touch and a request, too.")
def main(
    files: tuple[Path, ...],
    policies: tuple[str, ...],
    pages: tuple[int, ...],
    as_table: bool,
    as_json: bool,
    timed: bool,
) -> None:
    policies = tuple(dict.fromkeys(policies))
    run = tuple(dict.fromkeys((*policies, "lru", "belady"))) if as_table else policies
    several = len(files) * len(run) * len(set(pages)) > 1
    results: list[Result] = []
    for file in dict.fromkeys(files):
        try:
            trace = read_trace(file)
        except TraceError as error:
            raise click.ClickException(str(error)) from None
        for size in dict.fromkeys(pages):
            for name in run:
                result = measure(name, size, file, trace, timed)
                results.append(result)
                if not as_json and not as_table:
                    label = f"{result.trace} {size} {name} " if several else ""
                    click.echo(f"{label}{result.hit_ratio_percent:.2f}{_times(result) if timed else ''}")
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(results)).decode())
    elif as_table:
        click.echo(table(results, tuple(name for name in policies if name != "belady")))
        if timed:
            for result in results:
                click.echo(f"{result.trace} {result.pages} {result.policy}{_times(result)}")


def _times(result: Result) -> str:
    return f" ({result.touch_us:.2f} µs a touch, {result.request_us:.2f} µs a request)"


if __name__ == "__main__":
    main(prog_name="python -m bench.hit_ratio")
