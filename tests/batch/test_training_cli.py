"""What makes no sense together is refused before anything is started."""

import pytest
import typer
from typer.testing import CliRunner

from batch.cli import training_set

APP = typer.Typer()
APP.command()(training_set)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--labels", "x.parquet", "--from-impressions"], "not both"),
        (["--from-impressions", "--label", "good"], "labels.toml names the labels"),
        (["--from-impressions", "--as-of"], "features are as known"),
        (["--until", "2024-01-01"], "belong to --from-impressions"),
        (["--from-impressions", "--gap", "2d"], "--gap needs --train-until"),
    ],
)
def test_options_that_contradict_each_other_are_misuse(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(APP, arguments)
    assert done.exit_code == 2
    assert message in " ".join(done.output.replace("│", " ").split())
