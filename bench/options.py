"""An option that several commands have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


def peers_option(known: Sequence[str]) -> Callable[[Command], Command]:
    """--peers: some of those that are known, all of them by default; a tuple."""

    def read(_context: click.Context, _parameter: click.Parameter, text: str) -> tuple[str, ...]:
        names = tuple(text.split(","))
        for name in names:
            if name not in known:
                raise click.BadParameter(f"there is no peer {name!r}; choose from {','.join(known)}")
        return names

    return click.option("--peers", default=",".join(known), show_default=True, callback=read)
