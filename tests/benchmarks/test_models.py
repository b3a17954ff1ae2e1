"""The measurements of training and of finding near items run at a small size."""

import pytest
from support.camps import DAY_MS, two_camps

from benchmarks import ann, training


def test_training_is_measured_beside_dense_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "THREADS", 1)  # two that wait for each other take long beside other tests
    monkeypatch.setattr(training, "purchases", lambda size: (two_camps(n_trips=5), 3 * DAY_MS))
    monkeypatch.setattr(training, "DEPTH", 5)
    rate, cpu, recall, memory = training.measure(0.0)
    assert rate.value > 0
    assert rate.baseline_value > 0
    assert cpu.ratio is not None
    assert 0 < recall.value <= 1
    assert 0 < recall.baseline_value <= 1
    assert memory.value < memory.baseline_value + 50


def test_each_kind_of_index_is_measured_beside_an_exact_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ann, "towers", lambda n: ann.clusters(n, 16))
    found = ann.measure(0.0)
    shares = [one for one in found if one.unit == "share"]
    assert len(shares) == 19
    assert all(one.value > 0.9 for one in shares)
    assert all(one.value > 0 for one in found)
