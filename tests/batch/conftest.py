"""One Spark session for all tests of this room."""

from collections.abc import Iterator
from typing import Any

import pytest

from batch.session import spark_session
from headwater.settings import Settings


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A local session with a small heap."""
    session = spark_session(Settings(state_dir=tmp_path_factory.mktemp("spark"), spark_heap_mb=1024))
    yield session
    session.stop()
