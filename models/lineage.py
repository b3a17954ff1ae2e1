"""Which code a bundle was made by, and what MLflow calls its signature."""

import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from models.bundle import Trained

ROOT = Path(__file__).parents[1]


def code_version(root: Path = ROOT) -> str:
    """Name the package's version and, of a git checkout, its commit: ``0.1.0+3f2a…``, ``.dirty`` if files differ."""
    package = version("headwater")
    if not (root / ".git").exists():
        return package
    try:
        commit, changed = (_git(root, *words) for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "-uno")))
    except (OSError, subprocess.CalledProcessError):
        return package  # no git here, or it does not trust the folder's owner
    return f"{package}+{commit}{'.dirty' if changed else ''}"


def signature(trained: Trained) -> Any:
    """``mlflow.models.ModelSignature``: the features in order, as float32, and the score."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    features = [ColSpec(DataType.float, name) for name in trained.feature_names]
    return ModelSignature(inputs=Schema(features), outputs=Schema([ColSpec(DataType.float, "score")]))


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()
