"""The README tells what there is."""

import re
import subprocess
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from headwater.settings import Settings

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def section(title: str) -> str:
    return README.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def test_every_command_has_a_line_and_every_line_a_command():
    told = re.findall(r"^\| `headwater ([\w-]+)` \| .+ \|$", section("Commands"), re.MULTILINE)
    assert sorted(told) == sorted(entry.name for entry in entry_points(group="headwater.commands"))


def test_every_setting_is_told_with_its_default():
    rows = re.findall(r"^\| `HEADWATER_(\w+)` \| (\S+) \|", section("Configuration"), re.MULTILINE)
    told = {name.lower(): default.strip("`") for name, default in rows}
    held = {name: field.default for name, field in Settings.model_fields.items()}
    assert told == {name: "none" if default is None else str(default) for name, default in held.items()}


def test_the_map_names_the_folders_that_there_are():
    told = {folder.rstrip("/") for folder in re.findall(r"\[`([\w-]+/)`\]", section("Map"))}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    tops = {line.split("/")[0] for line in tracked.splitlines() if "/" in line}
    assert told == {top for top in tops if not top.startswith(".")}


def test_the_definition_shown_is_the_one_that_is_used():
    (shown,) = re.findall(r"```python\n(.*?)```", section("One feature definition"), re.DOTALL)
    assert shown in (ROOT / "feature_repo" / "views.py").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_that_there_are(page):
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


def test_the_index_of_the_documents_names_each():
    index = (ROOT / "docs" / "README.md").read_text()
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert {page for page in pages if f"]({page})" not in index} == set()


def test_every_measurement_has_its_place_in_the_performance_page():
    page = (ROOT / "docs" / "performance.md").read_text()
    for entry in entry_points(group="headwater.benches"):
        assert page.index(f"<!-- bench {entry.name} -->") < page.index(f"<!-- end {entry.name} -->")
