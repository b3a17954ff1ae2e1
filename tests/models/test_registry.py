"""Aliases move in one step, forwards and back, and MLflow says the same as the file that serving follows."""

import json
import os
import shutil
import subprocess
from importlib import metadata

import pytest
from support import bundles

from headwater.errors import ModelError
from headwater.runtime.parts import has_champion
from headwater.settings import Settings
from models import registry
from models.lineage import code_version
from serving.aliases import champion as champion_that_serving_reads

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's use of SQLAlchemy


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A state folder with three registered bundles; MLflow's tables take seconds to make."""
    state = tmp_path_factory.mktemp("template")
    settings = Settings(state_dir=state)
    for number in ("1", "2", "3"):
        assert registry.next_version(settings) == number
        bundles.write(settings.bundles_dir / number)
        assert registry.register(settings, settings.bundles_dir / number) == number
    return state


@pytest.fixture
def settings(template, tmp_path):
    return Settings(state_dir=shutil.copytree(template, tmp_path / "state"))


def in_mlflow(settings):
    """Bundle versions by alias, as MLflow has them."""
    client = registry._client(settings)
    aliases = client.get_registered_model(registry.MODEL).aliases
    return {name: client.get_model_version(registry.MODEL, number).tags["bundle_version"]
            for name, number in aliases.items()}  # fmt: skip


def test_nothing_serves_until_something_is_promoted(settings):
    assert registry.champion(settings) is None
    assert not has_champion(settings)


def test_the_promoted_version_is_the_one_that_serving_reads(settings):
    registry.promote(settings, "2")
    assert registry.champion(settings) == settings.bundles_dir / "2"
    assert champion_that_serving_reads(settings) == "2"
    assert has_champion(settings)
    assert in_mlflow(settings) == {"champion": "2"}


def test_rolling_back_retraces_every_promotion(settings):
    for version in ("1", "2", "2", "3"):
        registry.promote(settings, version)
    assert registry.rollback(settings) == "2"
    assert registry.rollback(settings) == "1"
    assert in_mlflow(settings) == {"champion": "1"}
    with pytest.raises(ModelError, match="none before it"):
        registry.rollback(settings)
    assert champion_that_serving_reads(settings) == "1"


def test_the_first_champion_may_have_been_a_challenger(settings):
    registry.promote(settings, "1", registry.CHALLENGER)
    assert champion_that_serving_reads(settings) is None
    registry.promote(settings, "1")
    assert in_mlflow(settings) == {"champion": "1"}


def test_a_challenger_that_wins_is_no_longer_a_challenger(settings):
    registry.promote(settings, "1")
    registry.promote(settings, "2", registry.CHALLENGER)
    registry.promote(settings, "1", registry.SHADOW)
    assert in_mlflow(settings) == {"champion": "1", "challenger": "2", "shadow": "1"}
    registry.promote(settings, "2")
    assert in_mlflow(settings) == {"champion": "2", "shadow": "1"}
    assert registry.read_aliases(settings) == {"champion": "2", "shadow": "1", "history": ["1"]}


def test_what_is_refused_changes_nothing(settings):
    registry.promote(settings, "1")
    (settings.bundles_dir / "2" / "ranker.txt").write_text("tree")
    bundles.write(settings.bundles_dir / "4")
    attempts = {
        "ranker.txt was altered": ("2",),
        "is applied": ("3", registry.CHAMPION, "another hash"),
        "bundle 4: not registered": ("4",),
        "bundle 9: bundle.json is missing": ("9",),
        "alias: 'winner' is unknown": ("3", "winner"),
    }
    for reason, attempt in attempts.items():
        with pytest.raises(ModelError, match=reason):
            registry.promote(settings, *attempt)
    assert registry.read_aliases(settings) == {"champion": "1", "history": []}
    assert in_mlflow(settings) == {"champion": "1"}


def test_a_promotion_that_is_cut_off_leaves_the_old_champion_and_can_be_repeated(settings, monkeypatch):
    registry.promote(settings, "1")
    with monkeypatch.context() as cut:
        cut.setattr(os, "replace", lambda *paths: (_ for _ in ()).throw(OSError("cut off")))
        with pytest.raises(OSError, match="cut off"):
            registry.promote(settings, "2")
    assert champion_that_serving_reads(settings) == "1"
    registry.promote(settings, "2")
    assert json.loads((settings.bundles_dir / "aliases.json").read_text()) == {"champion": "2", "history": ["1"]}


def test_a_bundle_is_registered_once_and_only_where_it_is_served_from(settings, tmp_path):
    with pytest.raises(ModelError, match="bundle 1: registered already"):
        registry.register(settings, settings.bundles_dir / "1")
    bundles.write(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match="served from"):
        registry.register(settings, tmp_path / "elsewhere")


def test_mlflow_holds_the_metrics(settings):
    client = registry._client(settings)
    run = client.get_run(client.get_model_version(registry.MODEL, "1").run_id)
    assert run.data.metrics == {"recall_at_10": 0.5}
    assert run.data.tags["feature_schema_hash"] == bundles.SCHEMA_HASH


def test_mlflow_holds_lineage_and_signature(settings):
    import mlflow

    bundles.write(settings.bundles_dir / "4", code_version="0.1.0+abc", parent="3", data_hash="d4")
    registry.register(settings, settings.bundles_dir / "4")
    client = registry._client(settings)
    held = client.get_model_version(registry.MODEL, "4")
    told = {name: held.tags[name] for name in ("code_version", "parent", "data_hash", "training_end_ms")}
    assert told == {"code_version": "0.1.0+abc", "parent": "3", "data_hash": "d4", "training_end_ms": "1000"}
    mlflow.set_tracking_uri(settings.mlflow_uri)
    found = mlflow.models.get_model_info(f"runs:/{held.run_id}/{registry.ARTIFACT}").signature
    assert found.inputs.input_names() == list(bundles.FEATURES)
    assert found.outputs.input_names() == ["score"]


def test_what_becomes_known_of_a_version_is_kept_with_it(settings, tmp_path):
    page = tmp_path / "page.html"
    page.write_text("<p>good</p>")
    registry.annotate(settings, "2", {"decision": "refused"}, page)
    client = registry._client(settings)
    held = client.get_model_version(registry.MODEL, "2")
    assert held.tags["decision"] == "refused"
    assert [file.path for file in client.list_artifacts(held.run_id)] == ["bundle", "page.html"]
    with pytest.raises(ModelError, match="bundle 9: not registered"):
        registry.annotate(settings, "9", {})


def test_the_code_is_named_by_package_and_commit(tmp_path):
    git = ["git", "-c", "user.name=ann", "-c", "user.email=ann@localhost", "-C", str(tmp_path)]
    assert code_version(tmp_path) == metadata.version("headwater")
    (tmp_path / "code.py").write_text("1")
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert code_version(tmp_path) == f"{metadata.version('headwater')}+{commit}"
    (tmp_path / "code.py").write_text("2")
    assert code_version(tmp_path) == f"{metadata.version('headwater')}+{commit}.dirty"
