"""One Spark session for all tests of this room."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.services import service_plan

from batch.session import spark_session
from headwater.plan import FeaturePlan
from headwater.settings import Settings


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A local session with a small heap."""
    session = spark_session(Settings(state_dir=tmp_path_factory.mktemp("spark"), spark_heap_mb=1024))
    yield session
    session.stop()


@pytest.fixture
def plan(tmp_path: Path) -> FeaturePlan:
    """Service ``all``, and ``lists``, which has no place in a training set."""
    return service_plan(tmp_path)
