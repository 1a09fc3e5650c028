"""Events: one JSON object a line on stderr, `{"event": …, "level": …, "timestamp": …, …}`, from every process."""

from __future__ import annotations

import sys

import structlog


def configure() -> None:
    """Called once, at the start of each process. stdout stays free for what a program reads."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
