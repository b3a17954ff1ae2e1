"""Structured logs on stderr: an event name and fields, one line per fact an operator acts on."""

import logging
import sys
from typing import Any

import structlog


def configure_logging(level: str = "info") -> None:
    """Readable on a terminal, JSON elsewhere."""
    renderer: Any = structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),  # Flink's workers have a ``print`` of their own
        cache_logger_on_first_use=True,
    )


def get_logger(name: str) -> Any:
    """Return a bound logger that carries its room's name; a process without a configuration gets the default."""
    if not structlog.is_configured():
        configure_logging()
    return structlog.get_logger(room=name)
