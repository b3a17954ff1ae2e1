"""``headwater simulate``: what is asked for reaches the run, and what is told says that it is simulated."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from headwater.errors import UnavailableError
from headwater.runtime.ports import free_port
from headwater.settings import Settings
from simulation import cli, run
from simulation.config import load_world_config
from simulation.run import Asked

APP = typer.Typer()
APP.command()(cli.simulate)


def test_options_come_before_the_file(monkeypatch, tmp_path):
    asked: list[Asked] = []

    def simulate(settings, wanted, report):
        asked.append(wanted)
        report(0, 1, 2)
        return {"simulated": True, "days": wanted.days}

    monkeypatch.setattr(run, "simulate", simulate)
    options = ["--out", str(tmp_path), "--days", "3", "--seed", "9", "--users", "5", "--connections", "2", "--json"]
    done = CliRunner().invoke(APP, options)
    assert json.loads(done.stdout) == {"simulated": True, "days": 3}
    assert asked == [Asked(load_world_config().seeded(9).peopled(5), 3, tmp_path, 8, 2)]


def test_without_a_store_no_run_begins(tmp_path: Path):
    """Its clock would be the wall's."""
    settings = Settings(state_dir=tmp_path / "state", redis=f"redis://127.0.0.1:{free_port()}/0")
    with pytest.raises(UnavailableError, match="headwater up"):
        run.simulate(settings, Asked(load_world_config(), 1, tmp_path / "run"), lambda *_: None)
    assert not (tmp_path / "run").exists()
