"""The code in the documents is read, and what defines features is applied."""

import ast
import json
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from headwater.plan import View
from headwater.registry.manifest import load_plan

ROOT = Path(__file__).parents[2]
READERS = {"python": ast.parse, "json": json.loads, "yaml": yaml.safe_load}


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """(language, text) of each fenced block."""
    for fenced in re.finditer(r"^( *)```(\w+)\n(.*?)^\1```", page.read_text(), re.DOTALL | re.MULTILINE):
        yield fenced[2], textwrap.dedent(fenced[3])


PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
CODE = [(page.name, *block) for page in PAGES for block in blocks(page) if block[0] in READERS]


@pytest.mark.parametrize(("page", "language", "text"), CODE, ids=lambda value: value[:12])
def test_a_block_is_of_its_language(page, language, text):
    READERS[language](text)


def test_the_repository_in_the_feast_page_can_be_applied(tmp_path):
    found = dict(blocks(ROOT / "docs" / "feast.md"))
    (tmp_path / "feature_store.yaml").write_text(found["yaml"])
    (tmp_path / "features.py").write_text(found["python"])
    feast = Path(sys.executable).parent / "feast"
    done = subprocess.run([feast, "-c", tmp_path, "apply"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    plan = load_plan(tmp_path)
    view = plan.view("user_activity")
    assert isinstance(view, View)
    assert [str(aggregate.function) for aggregate in view.aggregates] == ["count", "mean", "last(5)"]
    assert plan.service("now").names == ("clicks_24h", "mean_value_24h", "last_items")
