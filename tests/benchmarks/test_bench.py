"""A bench's own options, and how a count of faults is told beside ratios."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from headwater.bench import Measure, _cells, _note, _report, own_options
from headwater.errors import ConfigError

FAULTS = Measure("reader", 0, "cells mismatched", "cells compared", 1_234_567, None, 0, True, note="seed 3")
RATIO = Measure("read", 2.0, "ms", "theirs", 5.0, 2.5, 3.0, False)


def measure(size: float, *, cells: int = 10, engines: str = "naive") -> Sequence[Measure]:
    return [FAULTS, RATIO] if (size, cells, engines) == (0.5, 7, "a,b") else []


def test_parameters_by_keyword_are_options_with_the_type_of_their_default() -> None:
    assert own_options("parity", measure, ["--cells", "7", "--engines=a,b"]) == {"cells": 7, "engines": "a,b"}
    assert own_options("parity", measure, []) == {"cells": 10, "engines": "naive"}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--cell", "7"], "--cell is no option. Beside --size and --json it has --cells, --engines"),
        (["--cells", "many"], "invalid int value: 'many'"),
        (["--cells"], "expected one argument"),
        (["more"], "more is no option"),
    ],
)
def test_what_a_bench_does_not_know_is_refused_by_name(given: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        own_options("parity", measure, given)


def test_a_report_says_with_which_options_it_was_made() -> None:
    report = _report("parity", measure, 0.5, {"cells": 7, "engines": "a,b"})
    assert report["options"] == {"size": 0.5, "cells": 7, "engines": "a,b"}
    assert [one["ratio"] for one in report["measures"]] == [None, 2.5]


def test_a_count_has_no_ratio_and_its_target_is_the_most_it_may_be(tmp_path: Path) -> None:
    report = _report("parity", measure, 0.5, {"cells": 7, "engines": "a,b"})
    faults, ratio = (_cells(row) for row in report["measures"])
    assert faults == ["reader", "0 cells mismatched", "cells compared: 1,234,567", "", "≤ 0", "holds; seed 3"]
    assert ratio == ["read", "2 ms", "theirs: 5", "2.5×", "≥ 3×", "missed"]
    _note(tmp_path / "page.md", report)
    assert (
        "| reader | 0 cells mismatched | cells compared: 1,234,567 |  | ≤ 0 | holds; seed 3 |"
        in (tmp_path / "page.md").read_text()
    )
