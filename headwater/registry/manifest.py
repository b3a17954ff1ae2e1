"""The compiled plan on disk: what serving loads instead of feast, which takes seconds to import."""

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from headwater.errors import ConfigError, DefinitionError
from headwater.plan import FeaturePlan


def load_plan(repo: Path) -> FeaturePlan:
    """Return the repository's plan, compiled anew in a process of its own when the registry has changed.

    Raises
    ------
    ConfigError
        There is no Feast repository at ``repo``, or nothing has been applied.
    DefinitionError
        The registry holds a view that cannot be compiled exactly.
    """
    if not (repo / "feature_store.yaml").is_file():
        raise ConfigError(f"{repo}: no feature_store.yaml there. Point --repo at a Feast repository.")
    fingerprint = registry_sha256(repo)
    if not fingerprint:
        raise ConfigError(f"{repo}: nothing has been applied yet. Run feast -c {repo} apply.")
    manifest = repo / "data" / "manifest.json"
    if manifest.is_file():
        plan = FeaturePlan.read(manifest)
        if plan.registry_sha256 == fingerprint:
            return plan
    command = [sys.executable, "-W", "ignore", "-m", "headwater.registry.compile", str(repo)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DefinitionError(done.stderr.strip().splitlines()[-1])
    return FeaturePlan.read(manifest)


def registry_sha256(repo: Path) -> str:
    """Fingerprint of the registry file, empty where nothing has been applied."""
    path = registry_file(repo)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def registry_file(repo: Path) -> Path:
    """Where the repository keeps its registry; a relative path is relative to the repository."""
    config: dict[str, Any] = yaml.safe_load((repo / "feature_store.yaml").read_text())
    registry = config.get("registry", "data/registry.db")
    path: str = registry["path"] if isinstance(registry, dict) else registry
    return repo / path
