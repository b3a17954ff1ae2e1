"""``headwater evaluate --policy --log``."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import bundles
from support.logged import rows, shuffled
from typer.testing import CliRunner

from headwater.cli.main import build
from headwater.errors import ConfigError
from headwater.settings import Settings, get_settings
from models.draws import draw_weights
from serving.rerank import arrange
from serving.surfaces import Explore


def test_the_command_tells_what_a_table_would_have_earned(tmp_path: Path) -> None:
    """The policy that was logged is worth what it earned."""
    log, new = tmp_path / "shown", tmp_path / "new.parquet"
    log.mkdir()
    table = rows(200)
    pq.write_table(shuffled(table), log / "part.parquet")
    shown = table.filter(table["shown"]).rename_columns(
        ["probability" if name == "position_propensity" else name for name in table.column_names]
    )
    pq.write_table(shown, new)
    done = CliRunner().invoke(build("evaluate"), ["evaluate", "--policy", str(new), "--log", str(log), "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["lists"], told["places"], told["effective_lists"]) == (200, 3, 200)
    assert {name: one["value"] for name, one in told["estimates"].items()} == pytest.approx(
        dict.fromkeys(("ips", "snips", "ips_by_place", "snips_by_place"), told["logged"]["value"])
    )


@given(st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=8), st.floats(0.05, 3))
def test_a_bundles_policy_draws_as_serving_explores(drawn: list[float], temperature: float) -> None:
    """The scores' own order, as far as it goes, has the probabilities that serving would log."""
    scores = np.array(drawn, np.float32)
    weights = draw_weights(scores, np.zeros(len(scores), np.int64), 1, temperature)
    always = Explore(share=1.0, temperature=temperature)
    shown = arrange(scores, np.eye(len(scores), dtype=np.float32), 3, method="mmr", diversity=0.0, exploring=always)
    above = np.cumsum(weights[shown.rows]) - weights[shown.rows]
    assert shown.propensity.tolist() == pytest.approx(weights[shown.rows] / (weights.sum() - above))


@pytest.fixture
def champion(settings: Settings, monkeypatch: pytest.MonkeyPatch, promote: Callable[..., None]) -> Iterator[None]:
    """A bundle whose ranker reads what is logged."""
    monkeypatch.setenv("HEADWATER_STATE_DIR", str(settings.state_dir))
    get_settings.cache_clear()
    bundles.write(settings.bundles_dir / "v7")
    promote("v7")
    yield
    get_settings.cache_clear()


def test_a_bundle_is_a_policy_by_its_alias(tmp_path: Path, champion: None) -> None:
    """With so much left to chance all orders are alike, which is how the log was drawn."""
    log = tmp_path / "log.parquet"
    pq.write_table(rows(400), log)
    asked = ["--policy", "champion", "--log", str(log), "--temperature", "1e9", "--json"]
    done = CliRunner().invoke(build("evaluate"), ["evaluate", *asked])
    assert done.exit_code == 0, done.output or done.exception
    told = json.loads(done.stdout)
    assert told["effective_lists"] == 400
    assert {*told["estimates"]} == {"ips", "snips", "ips_by_place", "snips_by_place", "dr"}
    assert told["estimates"]["ips"] == told["logged"]
    assert told["estimates"]["dr"]["low"] < told["logged"]["value"] < told["estimates"]["dr"]["high"]


@pytest.mark.parametrize(("learned", "counted"), [(None, 0), (-1, 0), (0, 1), (29, 30), (1_000, 400)])
def test_lists_that_a_bundle_learned_from_are_counted(
    tmp_path: Path, settings: Settings, champion: None, learned: int | None, counted: int
) -> None:
    log, table = tmp_path / "log.parquet", rows(400)
    at_ms = [int(request[1:]) for request in table["request_id"].to_pylist()]
    pq.write_table(table.append_column("event_timestamp", pa.array(at_ms, pa.timestamp("ms", tz="UTC"))), log)
    bundles.write(settings.bundles_dir / "v8", learned_until_ms=learned)
    asked = ["--policy", "v8", "--log", str(log), "--temperature", "1e9", "--json"]
    done = CliRunner().invoke(build("evaluate"), ["evaluate", *asked])
    assert done.exit_code == 0, done.output or done.exception
    assert json.loads(done.stdout)["learned_from"] == counted


def test_a_policy_without_a_log_and_one_that_is_not_there_are_refused(tmp_path: Path) -> None:
    evaluate = build("evaluate")
    done = CliRunner().invoke(evaluate, ["evaluate", "--policy", "3"])
    assert isinstance(done.exception, ConfigError)
    pq.write_table(rows(), tmp_path / "log.parquet")
    done = CliRunner().invoke(evaluate, ["evaluate", "--policy", "never", "--log", str(tmp_path / "log.parquet")])
    assert "never: neither a Parquet file nor a bundle" in str(done.exception)
