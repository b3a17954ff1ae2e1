"""Boards and alerts ask for metrics that the code exports, in the units and bounds that it has; and their counts."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

from batch.audit import FRESH_S
from headwater.online.reader import ViewRead
from serving.scores import BUCKETS, Scores
from serving.telemetry import Telemetry
from streaming import telemetry as stream
from streaming.health import Health
from streaming.telemetry import Checkpoints, Facts, Refused, StreamCollector, Written

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = [rule for group in yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"]
         for rule in group["rules"]]  # fmt: skip
PROMETHEUS_OWN = {"up"}


def expressions() -> dict[str, str]:
    """PromQL of every panel and alert, by where it stands."""
    found = {f"alert {rule['alert']}": rule["expr"] for rule in RULES}
    for board in sorted((DEPLOY / "grafana").glob("*.json")):
        for panel in json.loads(board.read_text())["panels"]:
            for target in panel["targets"]:
                found[f"{board.stem} {panel['title']} {target['refId']}"] = target["expr"]
    return found


@pytest.fixture(scope="module")
def exported() -> str:
    """What Prometheus reads of a server and of a stream job to which everything has happened once."""
    told = Telemetry()
    told.call("Recommend", "OK", 0.1)
    told.degraded("rank", ValueError("no trees"))
    told.impression("logged")
    told.removed(["seen"], np.array([0], np.int16))
    told.features({"user": ViewRead({"f": np.ones(1)}, np.ones(1, bool), np.array([5]), np.array([1]))})
    told.listed("home", "champion", np.array([0.1], np.float32))
    told.shadow("scored")
    told.shares({"champion": 100})
    told.settings(False)
    told.bundle("v1")
    with told.stage("rank"):
        pass
    facts = Facts(
        None, Health("RUNNING"), None, {("events", 0): 1}, {("events", 0): 1}, 1.0, Written(1, 1, 1),
        Refused(1, {"too_late": 1}), Checkpoints(1.0, 1), (),
    )  # fmt: skip
    registry = CollectorRegistry()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "gather", lambda *_: facts)
        patch.setattr(stream, "connect", lambda _: None)
        registry.register(StreamCollector(None, None, lambda: None))
        return (generate_latest(told.registry) + generate_latest(registry)).decode()


@pytest.mark.parametrize(("where", "asked"), expressions().items(), ids=lambda value: value[:40])
def test_what_is_asked_for_is_exported(exported, where, asked):
    names = set(re.findall(r"\bheadwater_\w+|\bup\b", asked))
    known = {re.split(r"[{ ]", line)[0] for line in exported.splitlines() if not line.startswith("#")}
    assert names
    assert names <= known | PROMETHEUS_OWN
    for label, value in re.findall(r'(le|job)="([^"]+)"', asked):
        assert label == "job" or f'le="{value}"' in exported
    for labels in re.findall(r"by \(([\w, ]+)\)", asked):
        assert all(f'{label}="' in exported for label in labels.split(", "))


def test_prometheus_reads_the_alerts_and_has_the_job_that_they_name():
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    assert config["rule_files"] == ["alerts.yml"]
    assert {"serving", "stream"} <= {job["job_name"] for job in config["scrape_configs"]}
    mounted = yaml.safe_load((DEPLOY.parent / "docker-compose.yml").read_text())["services"]["prometheus"]["volumes"]
    assert "./deploy/prometheus/alerts.yml:/etc/prometheus/alerts.yml:ro" in mounted


def test_every_alert_says_what_to_do():
    assert {"HeadwaterSlow", "HeadwaterErrors", "HeadwaterStale"} <= {rule["alert"] for rule in RULES}
    for rule in RULES:
        assert set(rule["annotations"]) == {"summary", "remedy"}


def test_the_freshness_that_is_alerted_on_is_the_one_that_the_audit_allows():
    (stale,) = (rule["expr"] for rule in RULES if rule["alert"] == "HeadwaterStale")
    assert f'le="{float(FRESH_S)}"' in stale


lists = st.lists(
    st.tuples(
        st.sampled_from(["home", "search"]), st.sampled_from(["champion", "varied"]),
        st.lists(st.floats(0, 2, width=32) | st.sampled_from([float(np.float32(bound)) for bound in BUCKETS])),
    ), max_size=6,
)  # fmt: skip


@given(lists)
@settings(deadline=None)
def test_lists_and_scores_are_those_of_counting_one_by_one(drawn):
    scores, registry = Scores(), CollectorRegistry()
    registry.register(scores)
    for surface, variant, held in drawn:
        scores.observe(surface, variant, np.array(held, np.float32))
    for surface, variant in {one[:2] for one in drawn}:
        labels = {"surface": surface, "variant": variant}
        mine = [held for *place, held in drawn if tuple(place) == (surface, variant)]
        flat = [score for held in mine for score in held]
        assert registry.get_sample_value("headwater_lists_total", labels) == len(mine)
        assert registry.get_sample_value("headwater_score_count", labels) == len(flat)
        assert registry.get_sample_value("headwater_score_sum", labels) == pytest.approx(sum(flat))
        for bound in BUCKETS:
            below = registry.get_sample_value("headwater_score_bucket", {**labels, "le": str(bound)})
            assert below == sum(score <= bound for score in flat)
