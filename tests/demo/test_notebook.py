"""The notebook holds what it says, on the platform that the demo leaves behind."""

import json

import pytest
from support.notebooks import executed

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Jupyter's own packages
def test_one_event_is_followed_from_kafka_to_a_changed_recommendation(platform, monkeypatch, tmp_path):
    for name, value in platform.environment.items():
        monkeypatch.setenv(name, value)
    notebook = executed("follow_one_event", 180, monkeypatch, tmp_path)
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
