"""Asks the SQL front whatever comes: statements by a grammar, damaged ones, and shapes at the limits and far beyond.

    python -m tests.campaigns.sql_fuzz [--seconds 60] [--seed N] [--parallel 2] [--cluster]

A statement may end in an answer or in one of voltpy's errors: SqlError, DataError, what tables refuse. A failure is any
other exception, under a ProcedureError or on the way, where it ends the process that asks; planning or compiling that
takes longer than PLANNED_WITHIN_S; a run that takes RUN_LIMIT_S, unless that is in the statement's own program, where a
cluster ends it (--procedure-timeout); memory past MEMORY_BYTES; and the end of the process. Every statement is planned
for several partitions, and its program, its fragment and its merge are compiled. It is run on one engine that has all
rows, and, if it is a SELECT that is taken apart, on two that divide them.

With --cluster the same texts go to a cluster of two partitions, by db.execute. There a failure is also a process that
ends, a statement that nobody answers, and one that is asked at the end and not answered as at the beginning.

The shapes come first, each of them with few and with very many of what it repeats; then grammar and damage, by turns.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import signal
import sys
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from itertools import chain, islice
from multiprocessing import get_context
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any, NamedTuple

from tests.campaigns.cluster import Cluster
from tests.campaigns.sql_text import CHAINS, NESTED, SCHEMA, Grammar, damaged, nested
from tests.voltpy.sql_split import Parts
from voltpy.client import connect
from voltpy.errors import (
    DataError,
    Error,
    Indeterminate,
    ProcedureError,
    ProcedureTimeout,
    ProtocolError,
    Unavailable,
)
from voltpy.schema import Schema
from voltpy.sql.ddl import parse_schema
from voltpy.sql.plan import FILE, Plan, compiled, streams
from voltpy.sql.planner import plan

PLANNED_WITHIN_S = 6.0  # of processor time, as RUN_LIMIT_S
RUN_LIMIT_S = 3.0
MEMORY_BYTES = 3 << 30  # of address space, more than the process has when it begins
STATEMENTS_AN_ENGINE = 3000  # then the rows are those of the beginning again
DEPTHS = (1, 5, 12, 20, 35, 39, 45, 200, 5000)
COUNTS = (1, 50, 999, 5000, 60_000)  # of what a shape repeats
PARTS = 2


class TooLong(BaseException):
    """No Exception, so that nothing on the way takes it for its own."""


class Outcome(NamedTuple):
    """`failures` in words. `long`: statements whose own program was stopped."""

    statements: int = 0
    answered: int = 0
    refused: int = 0
    long: int = 0
    slowest_plan_s: float = 0.0
    failures: tuple[str, ...] = ()

    def and_(self, other: Outcome) -> Outcome:
        return Outcome(
            self.statements + other.statements, self.answered + other.answered, self.refused + other.refused,
            self.long + other.long, max(self.slowest_plan_s, other.slowest_plan_s), self.failures + other.failures,
        )  # fmt: skip


class Front:
    """The planner, and engines that hold a few rows."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._parts = Parts(schema, PARTS)
        placed = datetime(2024, 5, 17, tzinfo=UTC)
        self._parts.insert("orders", [
            (1, 1, 10, 1.5, "a", True, placed), (2, None, 20, None, None, None, None),
            (3, 1, 30, -0.0, "A%", False, placed), (9, 5, -(1 << 63), 1e308, "ß\U0001f600", True, placed),
        ])  # fmt: skip
        self._parts.insert("lines", [(1, 1, "i1"), (1, 2, None), (3, 1, "i2"), (7, 1, "i1")])
        self._parts.insert("items", [("i1", "k", 1.0), ("i2", None, None)])
        self.slowest_plan_s = 0.0

    def ask(self, text: str, parameters: list[Any]) -> None:
        """Raises voltpy's errors, and whatever is a failure."""
        began_s = time.process_time()
        with _limit(PLANNED_WITHIN_S):
            try:
                made = plan(text, self._parts.catalogue)
                for source in (made.source, made.fragment, made.merge):
                    if source is not None:
                        compiled(source, self._schema)
            finally:
                self.slowest_plan_s = max(self.slowest_plan_s, time.process_time() - began_s)
        given = parameters[: len(made.parameters)]
        with _limit(RUN_LIMIT_S):
            try:
                self._parts.whole.execute(text, given)
                if made.merge is not None:
                    self._in_pieces(made, given)
            except DataError as error:
                # Only parameters can be of types that nobody foresaw.
                if isinstance(_first_cause(error), TypeError) and not made.parameters:
                    raise AssertionError(f"types met that the planner let through: {error}") from error
                raise

    def _in_pieces(self, made: Plan, parameters: list[Any]) -> None:
        assert made.fragment is not None
        assert made.merge is not None
        fragment, merge = compiled(made.fragment, self._schema), compiled(made.merge, self._schema)
        try:
            sent = [
                self._parts.on(engine, lambda tx, first=number == 0: fragment(tx, parameters, first))
                for number, engine in enumerate(self._parts.engines)
            ]
            self._parts.on(self._parts.whole, lambda tx: merge(tx, parameters, streams(sent)))
        except ProcedureError as error:
            if not isinstance(_first_cause(error), TypeError) or not made.parameters:
                raise


def _first_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


@contextlib.contextmanager
def _limit(seconds: float) -> Iterator[None]:
    signal.setitimer(signal.ITIMER_PROF, seconds, 1.0)  # processor time: others may use the machine
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _stop(_signal: int, frame: FrameType | None) -> None:
    raise TooLong


def shapes(depths: Sequence[int] = DEPTHS, counts: Sequence[int] = COUNTS, *, pairs: bool = True) -> Iterator[str]:
    """`pairs`: also each way of nesting around each other one."""
    for shape in NESTED:
        for depth in depths:
            yield nested(shape, depth)
    for make in CHAINS.values():
        for count in counts:
            yield make(count)
    for outer in NESTED if pairs else ():
        for inner in NESTED:
            before, _, after = NESTED[outer]
            yield f"SELECT {before * 15}{nested(inner, 18)[7:-12]}{after * 15} FROM orders"


def texts(rng: Random) -> Iterator[str]:
    """Without an end."""
    grammar = Grammar(rng)
    previous = grammar.statement()
    while True:
        text = grammar.statement()
        yield text
        yield damaged(rng, text, previous)
        previous = text


def parameters_of(rng: Random) -> list[Any]:
    values = (
        None, 0, 1, -1, 3, 2.0, 1.5, float("inf"), float("nan"), (1 << 63) - 1, 1 << 63, "", "a", "%", True, False,
        "x" * 1000, "2024-01-01", datetime(2024, 5, 17, tzinfo=UTC), datetime(2024, 5, 17), "\U0001f600",
    )  # fmt: skip
    return [rng.choice(values) for _ in range(1000)]


def fuzz(
    seed: int,
    seconds: float = float("inf"),
    first: Iterable[str] = (),
    statements: int = sys.maxsize,
    last: Path | None = None,
) -> Outcome:
    """Until the time is over, or so many are asked besides those that come first, which are asked whatever it takes.

    `last` is a file that holds the text that is being asked.
    """
    handler = signal.signal(signal.SIGPROF, _stop)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY_BYTES, before[1]))
    try:
        return _fuzzed(Random(seed), time.monotonic() + seconds, first, statements, last)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.signal(signal.SIGPROF, handler)


def _fuzzed(rng: Random, ends_s: float, first: Iterable[str], statements: int, last: Path | None) -> Outcome:
    schema = parse_schema(SCHEMA)
    front = Front(schema)
    given = parameters_of(rng)
    outcome = Outcome()
    for text in first:
        outcome = outcome.and_(_asked(front, text, given, last))
    for number, text in enumerate(islice(texts(rng), statements)):
        if time.monotonic() > ends_s:
            break
        if number % STATEMENTS_AN_ENGINE == 0:
            front = Front(schema)
        if number % 50 == 0:
            given = parameters_of(rng)
        outcome = outcome.and_(_asked(front, text, given, last))
    return outcome


def _asked(front: Front, text: str, parameters: list[Any], last: Path | None) -> Outcome:
    if last is not None:
        last.write_text(text, encoding="utf-8", errors="surrogatepass")
    answered = refused = long = 0
    failure = ""
    try:
        front.ask(text, parameters)
        answered = 1
    except TooLong as error:
        # In the statement's own program it would be ended by the procedure timeout, and anywhere else by nothing.
        if any(frame.f_code.co_filename == FILE for frame, _ in traceback.walk_tb(error.__traceback__)):
            long = 1
        else:
            failure = f"took too long\n{_trace(error)}"
    except ProcedureError as error:
        cause = _first_cause(error)
        if isinstance(cause, MemoryError | TooLong) and FILE in _trace(cause):
            long = 1
        else:
            failure = _trace(cause)
    except Error:
        refused = 1
    except (AssertionError, MemoryError) as error:
        failure = _trace(error)
    failures = (f"{text[:1500]!r}\n{failure}",) if failure else ()
    return Outcome(1, answered, refused, long, front.slowest_plan_s, failures)


def fuzz_cluster(seed: int, seconds: float, first: Iterable[str], directory: Path, last: Path) -> Outcome:
    """The same with a cluster of real processes."""
    rng, outcome, ends_s = Random(seed), Outcome(), time.monotonic() + seconds
    given = parameters_of(rng)
    with Cluster(directory / "cluster", SCHEMA, "", partitions=PARTS, procedure_timeout_s=RUN_LIMIT_S) as cluster:
        cluster.start()
        with connect(cluster.url, timeout=60.0) as db:
            db.execute("INSERT INTO orders (id, total) VALUES (-1, 7), (-2, 8), (-3, 9)")
            mark = cluster.mark()
            for text in chain(first, texts(rng)):
                if time.monotonic() > ends_s:
                    break
                # Rows that go are missed by what comes after.
                text = text.replace("DELETE FROM", "SELECT * FROM").replace("RETURNING", "--")
                parameters = given[: min(text.count("?"), 1000)]
                last.write_text(text, encoding="utf-8", errors="surrogatepass")
                answered = refused = long = 0
                failure = ""
                try:
                    db.execute(text, parameters)
                    answered = 1
                except ProcedureTimeout:
                    long = 1
                except (ProcedureError, Unavailable, Indeterminate, ProtocolError) as error:
                    failure = _trace(error)
                except Error:
                    refused = 1
                ended = cluster.since(mark, lambda event: event.get("event") in ("exited", "statement_not_planned"))
                if ended:
                    failure += f"\n{ended}"
                    mark = cluster.mark()
                failures = (f"{text[:1500]!r}\n{failure}",) if failure else ()
                outcome = outcome.and_(Outcome(1, answered, refused, long, failures=failures))
            rows = db.execute("SELECT COUNT(*) FROM orders WHERE id IN (-1, -2, -3)").rows
            if rows != [(3,)]:
                outcome = outcome.and_(Outcome(failures=(f"in the end there were {rows} of the three first rows",)))
    return outcome


def _trace(error: BaseException) -> str:
    lines = traceback.format_exception(error)
    return "".join([*lines[:2], *lines[-12:]])[-3000:]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--parallel", type=int, default=2)
    parser.add_argument("--cluster", action="store_true", help="ask a cluster, not this process")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else Random().randrange(1 << 32)
    print(f"seed {seed}", flush=True)
    total, broken = Outcome(), []
    with TemporaryDirectory(prefix="voltpy-sql-fuzz-") as name:
        directory = Path(name)
        lasts = [directory / str(number) for number in range(1 if arguments.cluster else arguments.parallel)]
        with ProcessPoolExecutor(len(lasts), mp_context=get_context("spawn")) as pool:
            if arguments.cluster:
                first = list(shapes(pairs=False))
                futures = [pool.submit(fuzz_cluster, seed, arguments.seconds, first, directory, lasts[0])]
            else:
                first = list(shapes())
                futures = [
                    pool.submit(fuzz, seed + number, arguments.seconds, () if number else first, last=last)
                    for number, last in enumerate(lasts)
                ]
            for future, last in zip(futures, lasts, strict=True):
                error = future.exception()
                if error is None:
                    total = total.and_(future.result())
                else:
                    text = last.read_text(errors="replace")[:2000] if last.exists() else ""
                    broken.append(f"{_trace(error)}\nit ended a run, which was asked\n{text!r}")
    for failure in (*total.failures[:20], *broken):
        print(f"--\n{failure}")
    print(
        f"{total.statements:,} statements: {total.answered:,} answered, {total.refused:,} refused, {total.long:,} "
        f"stopped in their own programs, {len(total.failures)} failures; slowest plan {total.slowest_plan_s:.2f} s"
    )
    return 1 if total.failures or broken else 0


if __name__ == "__main__":
    sys.exit(main())
