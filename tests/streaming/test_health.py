"""What is said of a running job, against Flink's replies as they were recorded and a slow count."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.core import HistogramMetricFamily

from headwater.settings import Settings
from streaming import health, telemetry
from streaming.job import ALONE_S, UNWELL_S, patience_s
from streaming.sink import DELAY_BUCKETS_MS, tally

ALL_RUN = [("RUNNING", 14), ("SCHEDULED", 0)]


@pytest.mark.parametrize(
    ("said", "tasks", "managers", "missing", "state"),
    [
        ("RUNNING", ALL_RUN, 1, 0, "RUNNING"),
        ("RUNNING", ALL_RUN, 0, 0, "NO_TASK_MANAGER"),
        ("RUNNING", [("RUNNING", 13), ("SCHEDULED", 1)], 1, 0, "DEPLOYING"),
        ("RUNNING", ALL_RUN, 1, 1, "WAITING_FOR_WORKERS"),
        ("RESTARTING", ALL_RUN, 1, 0, "RESTARTING"),
        ("RESTARTING", ALL_RUN, 0, 0, "NO_TASK_MANAGER"),
        ("FAILED", [("FAILED", 14)], 0, 2, "FAILED"),
    ],
)
def test_flinks_running_is_not_enough(said, tasks, managers, missing, state):
    assert health.judge(said, tasks, managers, missing) == state


def test_a_job_whose_flink_does_not_answer_is_unreachable():
    job = health.RunFacts(1, "job", "http://127.0.0.1:9", "group", 2)
    assert health.look(job, telemetry.connect(Settings())).state == "UNREACHABLE"


def test_a_mini_cluster_without_its_task_manager_is_given_up_soon():
    assert patience_s("NO_TASK_MANAGER") == ALONE_S < UNWELL_S == patience_s("UNREACHABLE")


def test_the_cause_told_is_the_innermost_that_says_why():
    stack = """java.lang.RuntimeException: outer
\tat a.b(C.java:1)
Caused by: java.io.IOException: No space left on device
\tat d.e(F.java:2)
Caused by: java.util.concurrent.CancellationException
\t... 27 more"""
    assert health.root_cause(stack) == "java.io.IOException: No space left on device"
    assert health.root_cause("alone: no trace") == "alone: no trace"
    assert health.root_cause("") == "no reason was given"


@given(st.lists(st.integers(-1_000, 10_000_000), min_size=1, max_size=50), st.sampled_from([0.5, 0.99, 1.0]))
def test_a_delays_share_is_that_of_the_sorted_delays(delays, share):
    """The tally of a batch, read back, against counting one delay at a time."""
    now = 1_700_000_000_000
    newest, *told = tally(np.array([now - 5] * len(delays)), np.array([now - delay for delay in delays]), now)
    counts = dict(zip(told[::2], told[1::2], strict=True))
    held = telemetry.Written(
        tiles=counts["online_writes"], newest_event_ms=newest, delay_sum_ms=counts["delay_ms"],
        delays=tuple(counts.get(f"delay_{bucket}", 0) for bucket in range(len(DELAY_BUCKETS_MS) + 1)),
    )  # fmt: skip
    taken = sorted(max(delay, 0) for delay in delays)
    nth = taken[math.ceil(share * len(taken)) - 1]
    assert held.tiles == len(delays)
    assert held.delay_sum_ms == sum(taken)
    assert held.newest_event_ms == now - 5
    assert held.delay_within_ms(share) == next((bound for bound in DELAY_BUCKETS_MS if nth <= bound), None)
    (histogram,) = [one for one in telemetry._of_writes(held, 0.0) if isinstance(one, HistogramMetricFamily)]
    buckets = {one.labels["le"]: one.value for one in histogram.samples if "le" in one.labels}
    for bound in DELAY_BUCKETS_MS:
        assert buckets[str(bound / 1000)] == sum(delay <= bound for delay in taken)
    assert buckets["+Inf"] == len(taken)


def test_a_heap_is_full_when_collections_take_most_of_a_minute(monkeypatch):
    spent = {0: 5_000, 70: 9_000, 75: 70_000, 140: 66_000, 210: None, 280: 130_000}
    asked = []

    def metrics(url, names):
        asked.append(now)
        if spent[now] is None:
            raise OSError
        return {names[0]: spent[now]}

    monkeypatch.setattr(health, "metrics", metrics)
    monkeypatch.setattr(health.time, "monotonic", lambda: now)
    watch = health.HeapWatch(health.RunFacts(1, "job", "http://127.0.0.1:9", "group", 1))
    shares = {}
    for now in spent:
        shares[now] = watch.full_share()
    assert asked == [0, 70, 140, 210, 280], "once a minute"
    assert {at for at, share in shares.items() if share} == {140}
    assert shares[140] == pytest.approx(57 / 70)
