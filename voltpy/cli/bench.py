"""`voltpy bench …`: the benchmarks, which are a program of their own."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

import voltpy
from voltpy.errors import ClusterError


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}, add_help_option=False
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def bench(arguments: tuple[str, ...]) -> None:
    """Run the benchmarks: `voltpy bench --help` says more."""
    beside = Path(voltpy.__file__).resolve().parent.parent / "bench" / "__main__.py"
    if not beside.exists():
        raise ClusterError("the benchmarks are not part of this installation")
    # -P: a user's own bench/ in the working directory must not be taken for ours.
    os.execv(sys.executable, [sys.executable, "-P", "-m", "bench", *arguments])
