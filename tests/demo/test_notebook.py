"""The notebook holds what it says, on the platform that the demo leaves behind."""

import json
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Jupyter's own packages
def test_one_event_is_followed_from_kafka_to_a_changed_recommendation(platform, monkeypatch, tmp_path):
    for name, value in platform.environment.items():
        monkeypatch.setenv(name, value)
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    notebook = nbformat.read(ROOT / "notebooks" / "follow_one_event.ipynb", as_version=4)
    NotebookClient(
        notebook, timeout=180, kernel_name="python3", resources={"metadata": {"path": str(ROOT / "notebooks")}}
    ).execute()
    assert all(cell.outputs for cell in notebook.cells[1:-1] if cell.cell_type == "code")


def test_parts_that_are_up_say_so(platform):
    told = json.loads(platform.run("status", "--json").stdout)
    assert {part["name"] for part in told["parts"] if part["ready"]} == {
        "kafka",
        "valkey",
        "stream",
        "archive",
        "serve",
    }
