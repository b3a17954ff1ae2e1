"""A logger that is kept writes to wherever stderr leads at the time."""

import io
import sys

from headwater.log import configure_logging, get_logger


def test_a_logger_outlives_the_stream_that_was_stderr_when_it_was_made(monkeypatch):
    first, second = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", first)
    configure_logging()
    logger = get_logger("room")
    logger.info("one")
    first_text = first.getvalue()
    first.close()
    monkeypatch.setattr(sys, "stderr", second)
    logger.info("two")
    assert '"one"' in first_text
    assert '"two"' in second.getvalue()
