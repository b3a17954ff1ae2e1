"""``make install`` on machines that lack something: one sentence, exit 1, nothing half-done."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the installation reads, copied elsewhere."""
    folder = tmp_path / "checkout"
    shutil.copytree(ROOT / "scripts", folder / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def make_install(checkout: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "MAKE", "PYTHON"))}
    return subprocess.run(
        ["make", "install"], cwd=checkout, env={**kept, **environment}, capture_output=True, text=True, timeout=120
    )


def path_with(folder: Path, *names: str, says: str) -> str:
    """A PATH whose ``names`` are Pythons that say this version, besides the shell's own tools."""
    folder.mkdir()
    for tool in ("sh", "make", "dirname", "env"):
        (folder / tool).symlink_to(shutil.which(tool) or tool)
    for name in names:
        (folder / name).write_text(f"#!/bin/sh\n{says}\n")
        (folder / name).chmod(0o755)
    return str(folder)


def test_another_python_is_refused_by_its_version(checkout: Path, tmp_path: Path) -> None:
    done = make_install(checkout, PATH=path_with(tmp_path / "bin", "python3", "python", says="echo 3.13"))
    assert done.returncode != 0
    assert done.stderr.splitlines()[0] == (
        "python: python3 is 3.13, python is 3.13, and Headwater needs Python 3.11 or 3.12. "
        "Install one of them, or name it: make install PYTHON=/path/to/python3.11"
    )
    assert not (checkout / ".bootstrap").exists()


def test_a_shim_that_starts_nothing_is_not_taken_for_a_python(checkout: Path, tmp_path: Path) -> None:
    shim = "echo 'python3.11: command not found' >&2; exit 127"
    done = make_install(checkout, PATH=path_with(tmp_path / "bin", "python3.11", "python3.12", says=shim))
    assert done.stderr.startswith("python: nothing found on the PATH runs, and Headwater needs Python 3.11 or 3.12.")


def test_without_network_one_sentence_is_told_and_a_second_try_starts_clean(checkout: Path) -> None:
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_NO_CACHE_DIR": "1", "PYTHON": sys.executable}
    for _ in range(2):
        done = make_install(checkout, **nowhere)
        assert done.returncode != 0
        told = [line for line in done.stderr.splitlines() if not line.startswith(("installing", "  done", "make"))]
        assert told == [
            "network: uv, the installer could not be fetched. Connect the machine and run it again; "
            "what is fetched is kept."
        ]
    assert not (checkout / ".venv").exists()
