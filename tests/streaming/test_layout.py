"""Programs of one layout are one graph to Flink, with one type of state: else it would refuse the checkpoint."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]
TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    """Graph and types by plan, as Flink's planner tells them."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "support.graphs", str(tmp_path_factory.mktemp("flink"))],
        env={**os.environ, "PYTHONPATH": str(TESTS)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_any_views_of_a_layout_make_one_graph_whose_folds_are_given_columns_of_the_same_types(graphs):
    """Whether a key can be null, all tables last for ever, a cut is there or a kind has no table left."""
    wanted = graphs.pop("lists and sums")
    assert sum(operator == "GlobalGroupAggregate" for operator, _ in wanted["operators"]) == 2
    assert len(graphs) == 13
    assert {name: graph for name, graph in graphs.items() if graph != wanted} == {}


def test_every_operator_is_connected_to_every_other(graphs):
    """What is not, Flink starts again alone: a sink whose beats run on is given their worker, which may be dead."""
    operators = graphs["no lists"]["operators"]
    reached, edge = set(), {0}
    linked = [{place, fed} for place, (_, feeds) in enumerate(operators) for fed, _ in feeds]
    while edge:
        reached |= edge
        edge = {place for link in linked if link & reached for place in link} - reached
    assert reached == set(range(len(operators)))
    assert sum(kind.startswith("Source: ") for kind, _ in operators) == 2
