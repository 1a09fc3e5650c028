"""The fixture that voltpy brings to pytest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from voltpy.testing import Engine


@pytest.fixture
def voltpy_engine() -> Iterator[Callable[..., Engine]]:
    """Makes in-process engines, `voltpy_engine(schema, procedures)`, and closes them after the test."""
    # Not at the top: pytest loads this file in every project in whose environment voltpy is.
    from voltpy.testing import Engine

    with ExitStack() as engines:

        def make(*arguments: Any, **options: Any) -> Engine:
            return engines.enter_context(Engine(*arguments, **options))

        yield make
