"""The commands: what they print, and what they refuse."""

import json

import pytest
import typer
from typer.testing import CliRunner

from headwater.errors import ConfigError, DataError
from headwater.settings import Settings
from models import cli

app = typer.Typer()
app.add_typer(cli.train, name="train")
app.add_typer(cli.feature, name="feature")
for command in (cli.promote, cli.rollback, cli.compare, cli.validate, cli.tune):
    app.command()(command)


@pytest.fixture
def state(tmp_path, monkeypatch) -> Settings:
    settings = Settings(state_dir=tmp_path)
    monkeypatch.setattr(cli, "get_settings", lambda: settings)
    return settings


def run(*arguments):
    return CliRunner().invoke(app, list(arguments))


@pytest.mark.parametrize(
    "name", ["train retriever", "train ranker", "promote", "rollback", "compare", "validate", "tune", "feature trial"]
)
def test_help_opens_with_an_example(name):
    help_text = run(*name.split(), "--help").output
    assert f"Example: headwater {name}" in help_text


def test_the_instant_may_be_written_with_or_without_a_zone(state):
    assert cli._until(state, "1970-01-02") == cli._until(state, "1970-01-02T01:00:00+01:00") == 86_400_000


@pytest.mark.parametrize(
    ("arguments", "error", "reason"),
    [
        (["train", "retriever", "--before", "tomorrow"], ConfigError, "no instant"),
        (["train", "retriever"], DataError, "no events"),
        (["validate"], ConfigError, "--before"),
    ],
)
def test_a_refusal_says_why(state, arguments, error, reason):
    result = run(*arguments)
    assert isinstance(result.exception, error)
    assert reason in str(result.exception)


def test_rules_are_judged_as_one_json_object(state, tmp_path, monkeypatch):
    monkeypatch.setattr("models.comparison.evaluate_rules", lambda settings, home, at_ms: {"at": at_ms})
    result = run("validate", "--before", "1970-01-01T00:00:01", "--json")
    assert json.loads(result.stdout) == {"at": 1000}
