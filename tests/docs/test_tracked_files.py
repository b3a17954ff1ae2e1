"""What is committed belongs to no machine and names no registry."""

import os
import re
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).parents[2]
HOME = re.compile(r"(?<![\w.:}/-])/(?:home|root|Users|work|tmp|private)/\w")
# Written in two parts, since this file is committed too.
REGISTRIES = [
    ".".join(parts)
    for parts in (
        ("pypi", "org"), ("pythonhosted", "org"), ("maven", "apache", "org"), ("repo1", "maven", "org"),
        ("docker", "io"), ("ghcr", "io"), ("quay", "io"), ("npmjs", "org"), ("anaconda", "org"), ("r-project", "org"),
    )
]  # fmt: skip


def configured() -> list[str]:
    """Hosts of the package indexes that this machine is set up with."""
    named = [value for name, value in os.environ.items() if re.search(r"INDEX_URL|INDEX$", name.upper())]
    for place in ("/etc/pip.conf", "~/.config/pip/pip.conf", "~/.pip/pip.conf", "~/.config/uv/uv.toml"):
        path = Path(place).expanduser()
        if path.is_file():
            named += re.findall(r"https?://\S+", path.read_text())
    hosts = {urlsplit(value.strip("\"'")).hostname for value in named}
    return sorted(host for host in hosts if host and "." in host and host != "127.0.0.1")


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.splitlines() if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    return {str(path.relative_to(ROOT)): path.read_text(errors="replace") for path in tracked()}


@pytest.mark.parametrize("host", [*REGISTRIES, *configured()])
def test_no_file_names_a_registry(texts, host):
    assert [name for name, text in texts.items() if host in text.lower()] == []


def test_no_file_holds_a_path_of_one_machine(texts):
    found = {name: HOME.findall(text) for name, text in texts.items() if name != "tests/docs/test_tracked_files.py"}
    assert {name: paths for name, paths in found.items() if paths} == {}
