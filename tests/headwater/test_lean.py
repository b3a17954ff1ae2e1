"""Feast as the engine imports it is Feast, less torch and less the checks of what a program defines."""

import json
import subprocess
import sys
from typing import Any

import pytest

TOLD = """
import json, sys, warnings
warnings.simplefilter("ignore")
{before}
from headwater.registry.lean import import_feast
feast = import_feast()
try:
    feast.Entity(name=5)
    checks = False
except Exception:
    checks = True
with_torch = "torch" in sys.modules
from feast.torch_wrapper import get_torch
print(json.dumps([checks, with_torch, get_torch().__name__, feast.Entity(name="user").join_key]))
"""


@pytest.mark.parametrize(("before", "as_it_is"), [("", False), ("import feast", True)])
def test_it_is_without_torch_and_without_checks_unless_it_was_there_before(before: str, as_it_is: bool) -> None:
    program = [sys.executable, "-c", TOLD.format(before=before)]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    found: list[Any] = json.loads(done.stdout)
    assert found == [as_it_is, as_it_is, "torch", "user"]


def test_feasts_command_line_runs_so() -> None:
    program = [sys.executable, "-W", "ignore", "-m", "headwater.registry.lean", "version"]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    assert "Feast SDK Version" in done.stdout
