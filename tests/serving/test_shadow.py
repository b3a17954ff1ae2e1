"""A shadow scores what is shown, is logged, and keeps nobody waiting, whatever it does."""

import json
import threading
import time
from concurrent.futures import Future

import numpy as np
import pytest
import redis

from headwater.errors import UnavailableError
from headwater.online.reader import Matrix
from serving.impressions import ImpressionLog
from serving.shadow import QUEUED, Shadow, settle
from serving.telemetry import Telemetry


class Sink:
    """A log that takes everything at once."""

    def __init__(self):
        self.records = []

    def append(self, topic, key, value, timestamp_ms):
        self.records.append(json.loads(value))
        done: Future[None] = Future()
        done.set_result(None)
        return done


class Drawn:
    """An online store of numbers drawn for each row."""

    def read_matrix(self, service, entities, *, items, held=None):
        rows = len(next(iter(entities.values())))
        values = np.random.default_rng(rows).random((rows, 4)).astype(np.float32)
        return Matrix(values, ("a", "b", "c", "d"), 0, {}, {})


@pytest.fixture
def told():
    return Telemetry()


@pytest.fixture
def shown(funnel, told):
    """``shown(score)``: a funnel with such a shadow, its log, and what the log has taken."""
    opened = []

    def make(score, queued=QUEUED):
        sink, shadow = Sink(), Shadow("v2", score, told, queued)
        log = ImpressionLog(sink, told)
        opened.append((log, shadow))
        made = funnel(redis.Redis(port=1), features=Drawn(), impressions=log, telemetry=told, shadow=shadow)
        return made, log, sink.records

    yield make
    for _, shadow in opened:
        shadow.close()


def outcomes(told):
    held = {name: told.registry.get_sample_value("headwater_shadow_total", {"outcome": name}) for name in
            ("scored", "dropped", "late", "failed")}  # fmt: skip
    return {name: int(count) for name, count in held.items() if count}


UNSCORED = {"bundle_version": "v2", "items": None, "others": None}


def doubled(surface, features):
    return 2 * features[:, 0]


def test_what_the_shadow_makes_of_the_candidates_is_logged_beside_what_was_shown(shown, told):
    made, log, records = shown(doubled)
    ranked = made.recommend(made.request("u1"))
    log.close()
    (record,) = records
    assert record["bundle_version"] == ranked.bundle_version == "v1"
    assert record["shadow"]["bundle_version"] == "v2"
    for rows, scores in (("items", "items"), ("others", "others")):
        first = [np.float32(row["features"][0]) for row in record[rows]]
        assert record["shadow"][scores] == [float(2 * value) for value in first]
    assert [item.item_id for item in ranked.items] == [row["item_id"] for row in record["items"]]
    assert outcomes(told) == {"scored": 1}


def test_a_shadow_that_hangs_delays_no_reply_and_loses_no_impression(shown, told):
    back = threading.Event()

    def hang(surface, features):
        back.wait(60)
        return features[:, 0]

    made, log, records = shown(hang)
    plain, *_ = shown(doubled)
    plain.recommend(plain.request("u1"))  # warm
    n = QUEUED + 40
    took = []
    for _ in range(n):
        started = time.monotonic()
        made.recommend(made.request("u1"))
        took.append(time.monotonic() - started)
    log.close()
    back.set()
    assert len(records) == n
    assert all(record["shadow"] == UNSCORED for record in records)
    assert np.median(took) < 0.1  # the shadow would take 60 s
    counted = outcomes(told)
    assert counted["dropped"] + counted["late"] == n
    assert counted["dropped"] >= 39


def test_a_shadow_that_fails_is_counted_and_the_list_is_as_ever(shown, told):
    def fails(surface, features):
        raise UnavailableError("no trees")

    made, log, records = shown(fails)
    assert len(made.recommend(made.request("u1")).items) == 10
    log.close()
    assert records[0]["shadow"] == UNSCORED
    assert outcomes(told) == {"failed": 1}


def test_scores_that_are_no_numbers_are_null_and_too_few_are_a_failure(shown, told):
    """Neither loses the impression."""
    made, log, records = shown(lambda surface, features: np.where(features[:, 0] < 0.5, np.nan, 1).astype(np.float32))
    made.recommend(made.request("u1"))
    log.close()
    assert {*records[0]["shadow"]["items"], *records[0]["shadow"]["others"]} == {None, 1.0}
    made, log, records = shown(lambda surface, features: features[1:, 0])
    made.recommend(made.request("u1"))
    log.close()
    assert records[0]["shadow"] == UNSCORED
    assert outcomes(told) == {"scored": 1, "failed": 1}


def test_without_features_there_is_nothing_to_score(shown, funnel, told):
    made, log, records = shown(doubled)
    lame = funnel(redis.Redis(port=1), impressions=made.impressions, telemetry=told, shadow=made.shadow)
    lame.recommend(lame.request("u1"))
    log.close()
    assert records[0]["shadow"] is None
    assert outcomes(told) == {}


def test_what_is_not_done_in_time_is_let_go(told):
    began, back = threading.Event(), threading.Event()

    def hang(surface, features):
        began.set()
        back.wait(60)
        return features[:, 0]

    shadow = Shadow("v2", hang, told)
    shades = [shadow.ask("home", np.ones((2, 1), np.float32)) for _ in range(3)]
    assert began.wait(60)
    assert settle([*shades, None], 0.05) == 3
    assert [shade.scores.cancelled() for shade in shades] == [False, True, True]
    assert [shade.told() for shade in shades] == [None, None, None]
    back.set()
    shadow.close()
