"""Run a notebook as a reader does, from its folder."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "notebooks"


def executed(name: str, timeout_s: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> nbformat.NotebookNode:
    """The notebook with its outputs; ``timeout_s`` is for a cell, and a cell that fails fails the test."""
    for variable in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    told = {"metadata": {"path": str(FOLDER)}}
    NotebookClient(notebook, timeout=timeout_s, kernel_name="python3", resources=told).execute()
    return notebook
