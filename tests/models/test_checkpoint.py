"""A run that was ended goes on where it was, and finds what it would have found."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.mortal_run import HELD, chosen, walks

from headwater.errors import ModelError
from models.retrieval import choice
from models.retrieval.checkpoint import Checkpoint, fingerprint
from models.retrieval.neighbours import ItemNeighbours
from models.retrieval.sequence import Sequences

FOREVER = float("inf")


class Ended(Exception):
    """Stands for the end of a process."""


@pytest.mark.parametrize("after", [0, 3, 7, 14, 15, 16])
def test_a_choice_that_was_ended_goes_on_and_is_the_same(
    after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, judged, plain = chosen(None), 0, choice.judge

    def ended(*given: Any) -> float:
        nonlocal judged
        judged += 1
        if judged == after + 1:
            raise Ended
        return plain(*given)

    monkeypatch.setattr(choice, "judge", ended)
    with pytest.raises(Ended):
        chosen(tmp_path)
    again = chosen(tmp_path)
    assert judged == len(whole.tried) + 1
    assert (again.tried, again.score, again.untried) == (whole.tried, whole.score, whole.untried)
    assert str(again.model) == str(whole.model)
    assert np.array_equal(again.scorer.scores(HELD.users), whole.scorer.scores(HELD.users))


def test_a_choice_that_was_made_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for until in (FOREVER, 0.0):
        first = chosen(tmp_path / str(until), until)
        with monkeypatch.context() as patch:
            for name in ("fit", "variants"):
                patch.setattr(ItemNeighbours, name, None)
                patch.setattr(Sequences, name, None)
            again = chosen(tmp_path / str(until))
        assert (again.tried, again.untried, str(again.model)) == (first.tried, first.untried, str(first.model))


def test_time_that_was_spent_counts(tmp_path: Path) -> None:
    first = Checkpoint(tmp_path)
    first.began -= 100
    first.add(ItemNeighbours(), ItemNeighbours(decay=0.5), 0.25)
    again = Checkpoint(tmp_path)
    assert 100 <= time.monotonic() - again.began < 160
    assert list(again.tried(ItemNeighbours())) == [(ItemNeighbours(decay=0.5), 0.25)]
    assert not list(again.tried(ItemNeighbours(shrink=0)))


def test_scores_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "choice.json").write_text("{")
    with pytest.raises(ModelError, match=r"choice\.json: cannot be read"):
        Checkpoint(tmp_path)


def test_what_was_kept_is_deleted_and_nothing_else(tmp_path: Path) -> None:
    for n, names in enumerate([["one"], ["one", "other"]]):
        around = tmp_path / str(n)
        runs = [Checkpoint(around / name) for name in names]
        for run in runs:
            run.end(ItemNeighbours(), "done")
        runs[0].clear()
        assert around.exists() == (len(names) > 1)
        assert not (around / "one").exists()
    Checkpoint(tmp_path / "never").clear()


parts = st.one_of(
    st.integers(), st.text(), st.lists(st.integers(0, 9)).map(lambda held: np.array(held, np.int64)),
    st.lists(st.text(max_size=2)).map(lambda held: np.array(held, object)),
)  # fmt: skip


@given(one=st.lists(parts, max_size=3), other=st.lists(parts, max_size=3))
def test_fingerprints_are_equal_where_everything_is(one: list[Any], other: list[Any]) -> None:
    def same(one: Any, other: Any) -> bool:
        return (
            type(one) is type(other)
            and np.array_equal(one, other)
            and getattr(one, "dtype", 0) == getattr(other, "dtype", 0)
        )

    equal = len(one) == len(other) and all(map(same, one, other))
    assert (fingerprint(*one) == fingerprint(*other)) == equal


def test_a_process_that_is_killed_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    """It is killed in the choice's third epoch, then in the third one on the whole log."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "support.mortal_run", str(tmp_path / "kept"), str(tmp_path / "out.npz")]
    around = os.environ | {"PYTHONPATH": f"{root}:{root / 'tests'}"}
    codes = [subprocess.run([*command, str(steps)], cwd=root, env=around).returncode for steps in (10, 36, 1_000)]
    assert codes == [-signal.SIGKILL, -signal.SIGKILL, 0]
    assert len(list((tmp_path / "kept").glob("sequences-*.pt"))) == 2
    model = chosen(None).model
    assert isinstance(model, Sequences)
    whole, found = model.fit(walks()), np.load(tmp_path / "out.npz")
    assert np.array_equal(found["users"], whole.users)
    assert np.array_equal(found["items"], whole.items)
