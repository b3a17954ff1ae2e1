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
ONCE = "once.yaml"
ONCE_CONFIG = """\
# headwater retrain --once: the same history, but output stays on the terminal instead of going through files.
compute_logs:
  module: dagster._core.storage.noop_compute_log_manager
  class: NoOpComputeLogManager
telemetry:
  enabled: false
"""


def dagster_home(settings: Settings) -> Path:
    """``DAGSTER_HOME``, or else a folder of the state folder; made, and configured, where it is not yet."""
    folder = Path(os.environ.get("DAGSTER_HOME") or settings.state_dir / "dagster").resolve()
    for name, text in (("dagster.yaml", CONFIG), (ONCE, ONCE_CONFIG)):
        if not (folder / name).is_file():
            write_whole(folder / name, text)
    return folder
