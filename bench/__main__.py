"""`python -m bench WORKLOAD` measures voltpy and its peers; `python -m bench report FILE.json` prints a table again."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from bench import (
    checkpoint_latency,
    engine,
    hit_ratio,
    indexes,
    isolation,
    larger_than_memory,
    machine,
    memory,
    recovery,
    report,
    scan_resistance,
    sql,
    warm_restart,
)
from bench.experiment import PEERS, WORKLOADS, Results, Settings, lines_of, run_all
from bench.options import peers_option
from bench.workload import BenchError, Fsync
from bench.workloads.smallbank import lines_with_payments
from voltpy.errors import Error
from voltpy.messages import CALLS_A_FRAME, FRAMES_IN_FLIGHT

Command = TypeVar("Command", bound=Callable[..., Any])

MEMORY_FILESYSTEMS = ("tmpfs", "ramfs")


@click.group()
def main() -> None:
    """Workloads on voltpy, Redis, PostgreSQL and plain dicts, at equal durability, in one run."""


def _crossing_option(workload: str) -> Callable[[Command], Command]:
    if workload != "smallbank":
        return lambda command: command
    return click.option(
        "--crossing",
        type=click.FloatRange(0, 100),
        help="Instead: so many percent of the calls are payments, between customers of one partition and of two.",
    )


def _command(workload: str) -> click.Command:
    @click.command(
        workload, help=f"Measures {workload}." if workload != "all" else "All whose calls stay in one partition."
    )
    @peers_option(PEERS)
    @click.option("--seconds", default=5.0, show_default=True, type=click.FloatRange(0.1, 600), help="Of one run.")
    @click.option("--in-flight", type=click.IntRange(1, 65536), help="Default: 1,024 a partition, the client's window.")
    @click.option(
        "--tasks", default=64, show_default=True, type=click.IntRange(1, 4096), help="Where tasks await calls."
    )
    @click.option("--partitions", default=2, show_default=True, type=click.IntRange(1, 1024))
    @_crossing_option(workload)
    @click.option("--affinity", default="on", show_default=True, type=click.Choice(["on", "off", "both"]))
    @click.option("--fsync", default="always", show_default=True, type=click.Choice(["always", "everysec", "never"]))
    @click.option("--repeat", default=3, show_default=True, type=click.IntRange(1, 1000), help="Repetitions, in turn.")
    @click.option("--way", default="", help="Only ways of driving a peer whose name contains this.")
    @click.option("--seed", default=1, show_default=True)
    @click.option(
        "--directory",
        default=tempfile.gettempdir(),
        show_default=True,
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        help="Holds everybody's data; a disk, not memory.",
    )
    @click.option(
        "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the results here."
    )
    @click.option("--markdown", type=click.Path(dir_okay=False, path_type=Path), help="Write the table here.")
    def command(
        peers: tuple[str, ...],
        seconds: float,
        in_flight: int | None,
        tasks: int,
        partitions: int,
        affinity: str,
        fsync: Fsync,
        repeat: int,
        way: str,
        seed: int,
        directory: Path,
        json_file: Path | None,
        markdown: Path | None,
        crossing: float | None = None,
    ) -> None:
        if crossing is not None and partitions < 2:
            raise click.UsageError("nothing crosses the partitions when there is one")
        lines = lines_of(workload, partitions) if crossing is None else lines_with_payments(partitions, crossing)
        where = machine.describe(directory)
        if where.filesystem in MEMORY_FILESYSTEMS and fsync != "never":
            raise click.UsageError(f"{directory} is in memory ({where.filesystem}): flushing means nothing there")
        window = FRAMES_IN_FLIGHT * CALLS_A_FRAME * partitions
        settings = Settings(seconds, in_flight or window, tasks, partitions, affinity, fsync, repeat, seed)
        results = Results(where, settings, datetime.now(UTC).isoformat(timespec="seconds"), {}, {}, [])
        try:
            run_all(results, lines, peers, directory, way, lambda run: _tell(report.summary(run)))
        except (BenchError, Error) as error:
            raise click.ClickException(str(error)) from None
        finally:
            # What was measured before a failure is worth keeping.
            if json_file is not None:
                json_file.write_bytes(msgspec.json.format(msgspec.json.encode(results)))
        table = report.markdown(results)
        if markdown is not None:
            markdown.write_text(table)
        click.echo(table)

    return command


@main.command("report")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def report_command(file: Path) -> None:
    """Prints the table of a JSON file that --json wrote."""
    try:
        results = msgspec.json.decode(file.read_bytes(), type=Results)
    except msgspec.DecodeError as error:
        raise click.ClickException(f"{file} holds no results: {error}") from None
    click.echo(report.markdown(results))


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


for _workload in (*WORKLOADS, "all"):
    main.add_command(_command(_workload))

main.add_command(engine.engine)
main.add_command(engine.replay)
main.add_command(indexes.indexes)
main.add_command(hit_ratio.main)
main.add_command(isolation.main)
main.add_command(sql.main)
main.add_command(engine.load_checkpoint)
main.add_command(larger_than_memory.main)
main.add_command(checkpoint_latency.main)
main.add_command(scan_resistance.main)
main.add_command(warm_restart.main)
main.add_command(recovery.main)
main.add_command(memory.main)

if __name__ == "__main__":
    main(prog_name="python -m bench")
