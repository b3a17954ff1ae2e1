"""Where Dagster keeps its runs: one folder for the schedule, the web page and ``headwater retrain --once``."""

import os
from pathlib import Path

from headwater.files import write_whole
from headwater.settings import Settings

CONFIG = """\
# Retrainings share the folder training, so there is one at a time; a run whose process is gone is marked as failed.
concurrency:
  runs:
    tag_concurrency_limits:
      - key: headwater/retraining
        limit: 1
run_monitoring:
  enabled: true
telemetry:
  enabled: false
"""


def dagster_home(settings: Settings) -> Path:
    """``DAGSTER_HOME``, or else a folder of the state folder; made, and configured, if it is not there."""
    folder = Path(os.environ.get("DAGSTER_HOME") or settings.state_dir / "dagster").resolve()
    if not (folder / "dagster.yaml").is_file():
        write_whole(folder / "dagster.yaml", CONFIG)
    return folder
