"""Ctrl-C while the demo runs: nothing of it is left, and the next one goes on where it was."""

import pytest

pytestmark = pytest.mark.integration
INTERRUPTED = 130


def test_it_ends_everything_that_it_started(interrupted):
    assert set(interrupted.statuses) == {INTERRUPTED}
    assert interrupted.left == ()


def test_the_next_demo_goes_on_where_one_was_interrupted(interrupted, demo_state):
    first, second, third = interrupted.told
    assert "done before" not in first + second
    assert "held-out test (done before)" in third
    assert demo_state.told["parts"]["features"]["seconds"] is not None
