"""Which version serves: registered in MLflow, named in ``bundles/aliases.json``.

Serving follows that file and never imports MLflow. It is replaced in one step, after MLflow has been told, so an error
leaves what serves as it was, and doing it again mends MLflow.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headwater.errors import ModelError
from headwater.files import write_whole
from headwater.log import get_logger
from headwater.settings import Settings
from models.bundle import Meta, check_bundle
from models.lineage import signature

log = get_logger("models")

MODEL = "headwater"
CHAMPION, CHALLENGER, SHADOW = ALIASES = ("champion", "challenger", "shadow")
HISTORY = "history"
"""Champions before the present one, oldest first."""
VERSION_TAG = "bundle_version"
LINEAGE = {
    "service", "feature_schema_hash", "data_hash", "parent", "code_version", "training_start_ms", "training_end_ms",
}  # fmt: skip
ARTIFACT = "bundle"
"""Folder of a run's artifacts where ``MLmodel`` names the features and the score; the bundle itself stays in place."""

Aliases = dict[str, Any]


def next_version(settings: Settings) -> str:
    """Return a number above that of every bundle written so far."""
    names = (path.name for path in settings.bundles_dir.glob("*"))
    return str(1 + max((int(name) for name in names if name.isdecimal()), default=0))


def register(settings: Settings, bundle_dir: Path, metrics: Mapping[str, float] | None = None) -> str:
    """Enter a bundle of ``settings.bundles_dir`` and its metrics, the bundle's own unless given; the version.

    Raises
    ------
    ModelError
        The bundle is refused, lies elsewhere, or is registered already.
    """
    if bundle_dir.resolve().parent != settings.bundles_dir.resolve():
        raise ModelError(f"{bundle_dir}: not in {settings.bundles_dir}, where bundles are served from. Move it there.")
    meta = check_bundle(bundle_dir)
    client = _client(settings)
    if _registered(client, meta.version) is not None:
        raise ModelError(f"bundle {meta.version}: registered already. Promote it: headwater promote {meta.version}.")
    tags = {name: str(value) for name, value in meta.model_dump(mode="json", include=LINEAGE).items()}
    tags[VERSION_TAG] = meta.version
    run = client.create_run(_experiment(settings, client), tags=tags, run_name=f"bundle {meta.version}").info.run_id
    for name, value in (meta.metrics if metrics is None else metrics).items():
        client.log_metric(run, name.replace("@", "_at_"), value)
    _log_model(client, run, meta)
    client.set_terminated(run)
    client.create_model_version(MODEL, bundle_dir.resolve().as_uri(), run, tags)
    log.info("bundle_registered", version=meta.version)
    return meta.version


def annotate(settings: Settings, version: str, tags: Mapping[str, str], *files: Path) -> None:
    """Tell MLflow more of a registered version: tags, and files among the artifacts of its run.

    Raises
    ------
    ModelError
        It is not registered.
    """
    client = _client(settings)
    number = _registered(client, version)
    if number is None:
        raise ModelError(f"bundle {version}: not registered. Train one: headwater train.")
    for name, value in tags.items():
        client.set_model_version_tag(MODEL, number, name, value)
    run = client.get_model_version(MODEL, number).run_id
    for file in files:
        client.log_artifact(run, str(file))


def told(settings: Settings, version: str) -> dict[str, str]:
    """Tags that MLflow has of a version; none where it is not registered."""
    client = _client(settings)
    number = _registered(client, version)
    return {} if number is None else dict(client.get_model_version(MODEL, number).tags)


def promote(
    settings: Settings,
    version: str,
    alias: str = CHAMPION,
    schema_hash: str | None = None,
    applied: Mapping[str, str] | None = None,
) -> None:
    """Give a registered version an alias; as the champion it is served from the next poll on.

    Raises
    ------
    ModelError
        The bundle is refused, not registered, or the alias unknown; nothing has changed.
    """
    if alias not in ALIASES:
        raise ModelError(f"alias: {alias!r} is unknown. Choose from {', '.join(ALIASES)}.")
    aliases = read_aliases(settings)
    current, history = aliases.get(CHAMPION), aliases.get(HISTORY, [])
    if alias == CHAMPION:
        history = history if current in (None, version) else [*history, current]
    aliases = {name: held for name, held in aliases.items() if held != version or name == CHAMPION}  # it has one
    check_bundle(settings.bundles_dir / version, schema_hash, applied)
    _publish(settings, {**aliases, alias: version, HISTORY: history})


def withdraw(settings: Settings, version: str) -> None:
    """Take a version's aliases away, but for champion; it stays registered."""
    aliases = read_aliases(settings)
    left = {name: held for name, held in aliases.items() if held != version or name not in (CHALLENGER, SHADOW)}
    if left != aliases:
        _publish(settings, left)


def rollback(settings: Settings, schema_hash: str | None = None) -> str:
    """Serve the champion before the present one; its version.

    Raises
    ------
    ModelError
        There is none, or it is refused; nothing has changed.
    """
    aliases = read_aliases(settings)
    history = aliases.get(HISTORY, [])
    if not history:
        raise ModelError("champion: there was none before it. Promote a version instead: headwater promote VERSION.")
    *older, previous = history
    check_bundle(settings.bundles_dir / previous, schema_hash)
    _publish(settings, {**aliases, CHAMPION: previous, HISTORY: older})
    return str(previous)


def champion(settings: Settings) -> Path | None:
    """Return the serving bundle's directory, ``None`` where none has been promoted."""
    version = read_aliases(settings).get(CHAMPION)
    return None if version is None else settings.bundles_dir / str(version)


def read_aliases(settings: Settings) -> Aliases:
    """Versions by alias, and ``history``; empty where nothing has been promoted.

    Raises
    ------
    ModelError
        The file is malformed.
    """
    path = _path(settings)
    try:
        held = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ModelError(f"{path}: not JSON, {error}. Remove it and promote a version anew.") from None
    return dict(held)


def _publish(settings: Settings, aliases: Aliases) -> None:
    named = {alias: str(aliases[alias]) for alias in ALIASES if alias in aliases}
    _tell_mlflow(settings, named)
    write_whole(_path(settings), json.dumps(aliases, indent=2) + "\n")
    log.info("aliases_changed", **named)


def _path(settings: Settings) -> Path:
    return settings.bundles_dir / "aliases.json"


def _tell_mlflow(settings: Settings, named: Mapping[str, str]) -> None:
    client = _client(settings)
    numbers = {alias: _registered(client, version) for alias, version in named.items()}
    for alias, number in numbers.items():
        if number is None:
            raise ModelError(f"bundle {named[alias]}: not registered. Train one: headwater train.")
    for alias in ALIASES:
        if alias in numbers:
            client.set_registered_model_alias(MODEL, alias, numbers[alias])
        else:
            client.delete_registered_model_alias(MODEL, alias)


def _client(settings: Settings) -> Any:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it would report to its makers
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    settings.state_dir.mkdir(parents=True, exist_ok=True)
    client = MlflowClient(settings.mlflow_uri, settings.mlflow_uri)
    try:
        client.get_registered_model(MODEL)
    except MlflowException:
        client.create_registered_model(MODEL)
    return client


def _experiment(settings: Settings, client: Any) -> str:
    found = client.get_experiment_by_name(MODEL)
    if found is not None:
        return str(found.experiment_id)
    return str(client.create_experiment(MODEL, settings.bundles_dir.resolve().as_uri()))


def _log_model(client: Any, run: str, meta: Meta) -> None:
    """Write MLflow's own description, so that ``mlflow.models.get_model_info`` reads the signature."""
    from mlflow.models import Model

    flavor = {"headwater": {"version": meta.version, "service": meta.service, "code": meta.code_version}}
    model = Model(ARTIFACT, run, flavors=flavor, signature=signature(meta))
    client.log_text(run, model.to_yaml(), f"{ARTIFACT}/MLmodel")


def _registered(client: Any, version: str) -> str | None:
    """MLflow's own number of a bundle."""
    found = client.search_model_versions(f"name = '{MODEL}' and tags.{VERSION_TAG} = '{version}'")
    return str(found[0].version) if found else None
