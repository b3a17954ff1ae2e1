"""Complete Journey's purchases before its test period, for benchmarks that train on them."""

import tempfile
from pathlib import Path

from headwater.datasets import complete_journey
from headwater.datasets.complete_journey import DataSummary
from headwater.settings import Settings
from models.interactions import Dataset, load_dataset


def purchases(households: int | None = None) -> tuple[Dataset, DataSummary]:
    """Of so many households, or of all, and where its periods begin; the files are gone again."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(state_dir=Path(folder))
        summary = complete_journey.prepare(settings, households, replay_days=0)
        home = complete_journey.home_of(settings)
        return load_dataset(settings.events_dir, home, summary.test_start_ms), summary
