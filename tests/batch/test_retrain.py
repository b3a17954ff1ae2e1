"""The decision, and the scheduled job run in process; the heavy steps are stand-ins."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from support import bundles
from support.archived import archive
from support.archives import Stored, draw, write
from support.shown import AT, arrived, logged, record, vectors, write_impressions

from batch.retrain import REFUSED, Judgement, SparkSteps, Verdict, decide
from headwater.errors import ConfigError, ModelError, UnavailableError
from headwater.events import Event
from headwater.plan import DAY_MS, HOUR_MS, FeaturePlan
from headwater.settings import Settings
from models.gates import Gates, Promotion, Retraining, Rules
from models.registry import CHALLENGER, CHAMPION
from models.rows import read_rows

DAY, NOW = "2017-11-25", 1_511_654_400_000
"""A partition, and its end."""


@dataclass
class Steps:
    """Records what it was told to do; fails in the step that it is told to fail in."""

    champion_version: str | None
    gain: Judgement = field(default_factory=lambda: Judgement(0.01, -0.002, 0.02, 300))
    fails: dict[str, Exception] = field(default_factory=dict)
    applied: list[str] = field(default_factory=lambda: ["f0", "f0"])
    archived_ms: int = 2**62
    done: list[tuple[object, ...]] = field(default_factory=list)

    def _do(self, step: str, *told: object) -> None:
        self.done.append((step, *told))
        if step in self.fails:
            raise self.fails[step]

    def known(self, end_ms: int) -> int:
        return min(end_ms, self.archived_ms)

    def features(self) -> str:
        return self.applied.pop()

    def retriever(self, until_ms: int) -> str:
        self._do("retriever", until_ms)
        return "training/retriever"

    def index(self) -> float:
        return 0.98

    def training_set(self, until_ms: int) -> str:
        self._do("training_set", until_ms)
        return "training/rows"

    def ranker(self, until_ms: int) -> str:
        self._do("ranker", until_ms)
        return "7"

    def champion(self) -> str | None:
        return self.champion_version

    def judge(self, champion: str, version: str, until_ms: int) -> Judgement:
        self._do("judge", champion, version, until_ms)
        return self.gain

    def measure(self, version: str) -> dict[str, float]:
        return {"size_mb": 3.0}

    def name(self, version: str, alias: str) -> None:
        self._do(alias, version)

    def report(self, verdict: Verdict) -> str:
        self._do("report", verdict.decision)
        return f"{verdict.version}.report.html"


def decided(steps: Steps, rules: Rules = Rules()) -> Verdict:  # noqa: B008  # frozen
    champion = steps.champion_version
    return decide(steps, "7", champion, None if champion is None else steps.gain, rules)


def test_a_better_version_becomes_challenger() -> None:
    steps = Steps("3")
    verdict = decided(steps)
    assert (verdict.decision, verdict.champion, verdict.requests) == (CHALLENGER, "3", 300)
    assert steps.done == [("challenger", "7")]


def test_a_version_that_is_no_better_is_refused_and_told_why() -> None:
    steps = Steps("3", Judgement(-0.004, -0.01, 0.001, 300))
    verdict = decided(steps)
    assert verdict.decision == REFUSED
    assert "-0.0040 [-0.0100, +0.0010] against 3 over 300 newer requests; least_gain -0.004" in verdict.reason
    assert steps.done == []


def test_the_first_version_needs_no_champion_but_passes_its_own_gates() -> None:
    assert decided(Steps(None)).decision == CHALLENGER
    refused = decided(Steps(None), Rules(gates=Gates(size_mb=2)))
    assert (refused.decision, refused.reason) == (
        REFUSED, "there is no champion to judge it by; size_mb 3, at most 2",
    )  # fmt: skip


def test_a_better_version_is_refused_by_any_gate_and_serves_only_where_the_rules_let_it() -> None:
    steps = Steps("3", Judgement(0.01, -0.002, 0.02, 300, {"coverage": 0.2, "score_ms": 4.0}))
    verdict = decided(steps, Rules(gates=Gates(worst_gain=0.0, coverage=0.1, score_ms=3)))
    assert verdict.decision == REFUSED
    assert [gate.name for gate in verdict.gates if not gate.holds] == ["worst_gain", "score_ms"]
    assert verdict.reason.endswith("worst_gain -0.002, at least 0; score_ms 4, at most 3")
    assert steps.done == []
    assert decided(steps, Rules(promotion=Promotion(automatic=True))).decision == CHAMPION
    assert steps.done == [("champion", "7")]


def test_what_a_gate_asks_and_nobody_measured_is_refused() -> None:
    verdict = decided(Steps("3"), Rules(gates=Gates(coverage=0.1)))
    assert verdict.decision == REFUSED
    assert verdict.reason.endswith("coverage not measured, at least 0.1")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Dagster's; its tables take seconds to make."""
    from batch.history import dagster_home

    return dagster_home(Settings(state_dir=tmp_path_factory.mktemp("state")))


@pytest.fixture
def run(home: Path) -> Callable[[Steps], dict[str, object]]:
    """Run the very job that the schedule starts."""
    from batch.retraining import Retraining, run_once

    return lambda steps: run_once(Retraining(steps, retries=False), DAY, home)


@pytest.mark.filterwarnings("ignore")
def test_a_partition_trains_on_what_was_known_at_its_end_and_judges_on_what_is_newer(run, home: Path) -> None:
    import dagster as dg

    steps = Steps("3")
    done = run(steps)
    assert (done["day"], done["decision"], done["report"]) == (DAY, CHALLENGER, "7.report.html")
    trained = NOW - 14 * DAY_MS
    assert steps.done == [
        ("retriever", trained), ("training_set", trained), ("ranker", trained), ("judge", "3", "7", NOW),
        ("challenger", "7"), ("report", "challenger"),
    ]  # fmt: skip
    with dg.DagsterInstance.from_config(str(home)) as history:
        (kept,) = history.get_runs(limit=1)
    assert (kept.job_name, kept.status.value, kept.tags["dagster/partition"]) == ("retrain", "SUCCESS", DAY)
    assert kept.tags["headwater/retraining"] == "one"


@pytest.mark.filterwarnings("ignore")
def test_an_archive_that_ends_earlier_is_the_end_of_what_is_known(run) -> None:
    steps = Steps("3", archived_ms=NOW - 5)
    run(steps)
    assert ("judge", "3", "7", NOW - 5) in steps.done


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("step", "error"),
    [
        ("retriever", ModelError("refused")),
        ("training_set", UnavailableError("away")),
        ("ranker", RuntimeError("a defect")),
        ("judge", ModelError("refused")),
    ],
)
def test_whatever_fails_names_nobody_so_the_champion_serves_on(run, step: str, error: Exception) -> None:
    steps = Steps("3", fails={step: error})
    with pytest.raises(type(error), match=str(error)):
        run(steps)
    assert steps.done[-1][0] == step
    assert not {"challenger", "champion"} & {done for done, *_ in steps.done}


@pytest.mark.filterwarnings("ignore")
def test_a_refusal_is_no_failure_and_has_its_page(run) -> None:
    steps = Steps("3", Judgement(-0.004, -0.01, 0.001, 300))
    assert run(steps)["decision"] == REFUSED
    assert steps.done[-1] == ("report", REFUSED)
    assert not {"challenger", "champion"} & {done for done, *_ in steps.done}


@pytest.mark.filterwarnings("ignore")
def test_features_that_change_meanwhile_end_it(run) -> None:
    steps = Steps("3", applied=["f1", "f0"])
    with pytest.raises(ConfigError, match="made with features f0, others are applied now"):
        run(steps)
    assert steps.done[-1][0] == "training_set"


@pytest.mark.filterwarnings("ignore")
def test_what_is_refused_is_not_tried_again() -> None:
    import dagster as dg

    from batch.retraining import Retraining, _step

    def allows(error: Exception, retries: bool) -> bool:
        context = SimpleNamespace(resources=SimpleNamespace(retraining=Retraining(Steps(None), retries=retries)))
        with pytest.raises(dg.Failure) as failure, _step(context):
            raise error
        return failure.value.allow_retries

    assert allows(UnavailableError("away"), True)
    assert allows(RuntimeError("a defect"), True)
    assert not allows(ModelError("refused"), True)
    assert not allows(UnavailableError("away"), False)


@pytest.mark.filterwarnings("ignore")
def test_days_are_whole_and_over() -> None:
    from batch.retraining import end_of, last_whole_day

    assert end_of(DAY) == NOW
    assert [last_whole_day(NOW + more) for more in (-1, 0, DAY_MS - 1)] == ["2017-11-24", DAY, DAY]
    for wrong in ("25.11.2017", "2009-12-31", "2999-01-01"):
        with pytest.raises(ConfigError, match=wrong):
            end_of(wrong)


@pytest.mark.filterwarnings("ignore")
def test_the_schedule_starts_yesterdays_partition() -> None:
    from datetime import UTC, datetime

    import dagster as dg

    from batch.assets import defs

    schedule = defs.resolve_schedule_def("retrain_schedule")
    assert (schedule.cron_schedule, schedule.execution_timezone) == ("0 3 * * *", "UTC")
    with dg.build_schedule_context(scheduled_execution_time=datetime(2017, 11, 26, 3, tzinfo=UTC)) as context:
        (request,) = schedule.evaluate_tick(context).run_requests
    assert request.partition_key == DAY


@pytest.mark.filterwarnings("ignore")
def test_much_that_is_new_starts_a_retraining_before_the_night() -> None:
    import dagster as dg

    from batch.assets import defs
    from batch.news import News, enough_that_is_new

    assert defs.get_sensor_def("enough_that_is_new").job_name == "retrain"

    def looked(news: News) -> dg.RunRequest | dg.SkipReason:
        return enough_that_is_new(dg.build_sensor_context(), news=lambda: news)

    assert looked(News("3", 99, 100)).skip_message == "99 of 100 purchases since the training of 3"
    assert looked(News(None, 500, 100)).skip_message.endswith("of None")
    assert "names no" in looked(News("3", 500, None)).skip_message
    due = looked(News("3", 250, 100, NOW + 5))
    assert (due.run_key, due.partition_key) == ("3-2", DAY)


@pytest.mark.filterwarnings("ignore")
def test_features_that_have_shifted_start_one_retraining_for_a_champion() -> None:
    import dagster as dg

    from batch.assets import defs
    from batch.news import Shift, features_have_shifted

    assert defs.get_sensor_def("features_have_shifted").job_name == "retrain"

    def looked(shift: Shift) -> dg.RunRequest | dg.SkipReason:
        return features_have_shifted(dg.build_sensor_context(), shift=lambda: shift)

    assert "names no" in looked(Shift("3", ("age",), None)).skip_message
    assert looked(Shift("3", ("age",), 1)).skip_message == "1 features have shifted, 1 are borne"
    due = looked(Shift("3", ("age", "visits"), 1, NOW + 5))
    assert (due.run_key, due.partition_key) == ("3-shifted", DAY)


@pytest.mark.filterwarnings("ignore")
def test_only_purchases_whose_label_is_final_are_new(tmp_path: Path) -> None:
    from batch.news import News, count_news

    settings = Settings(state_dir=tmp_path / "state", repo=tmp_path)
    at_ms = [day * DAY_MS for day in (1, 40, 41, 60, 70)]
    frame = pd.DataFrame({"user_id": ["ann"] * 5, "item_id": ["milk"] * 5, "event_time": at_ms})
    archive(settings.events_dir, frame)
    bundles.write(settings.bundles_dir / "1", training_end_ms=60 * DAY_MS)
    assert count_news(settings) == News(None, 0, None)
    (tmp_path / "promotion.toml").write_text("[retraining]\nnew_purchases = 2")
    (settings.bundles_dir / "aliases.json").write_text('{"champion": "1", "history": []}')
    # of days 32 to 42: the rest is known or not final
    assert count_news(settings) == News("1", 2, 2, 70 * DAY_MS + 1)


@pytest.mark.filterwarnings("ignore")
def test_what_was_served_since_the_training_is_held_to_its_rows(tmp_path: Path, monkeypatch) -> None:
    from batch import news
    from headwater.errors import DataError

    settings = Settings(state_dir=tmp_path / "state", repo=tmp_path)
    archive(settings.events_dir, pd.DataFrame({"user_id": ["ann"], "item_id": ["milk"], "event_time": [70 * DAY_MS]}))
    bundles.write(settings.bundles_dir / "1", training_end_ms=60 * DAY_MS)
    (settings.bundles_dir / "aliases.json").write_text('{"champion": "1", "history": []}')
    assert news.find_shift(settings) == news.Shift("1", (), None)
    (tmp_path / "promotion.toml").write_text("[retraining]\nshifted_features = 0")
    asked = []

    def skew(settings: Settings, rows: Path, since_ms: int) -> SimpleNamespace:
        asked.append((rows, since_ms))
        return SimpleNamespace(shifted=["age"])

    monkeypatch.setattr("batch.skew.skew", skew)
    assert news.find_shift(settings) == news.Shift("1", ("age",), 0, 70 * DAY_MS + 1)
    assert asked == [(settings.training_dir / "rows", 60 * DAY_MS)]
    monkeypatch.setattr("batch.skew.skew", lambda *told, **more: (_ for _ in ()).throw(DataError("nothing served")))
    assert news.find_shift(settings) == news.Shift("1", (), 0, 70 * DAY_MS + 1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mismatched", [0, 3])
def test_the_scheduled_audit_fails_where_a_cell_is_mismatched(mismatched: int) -> None:
    import dagster as dg

    from batch.assets import defs, served_equals_offline
    from batch.audit import Audit, Tally

    assert defs.get_schedule_def("audit_schedule").cron_schedule == "17 * * * *"
    tally = Tally(compared=40, mismatched=mismatched, defect=mismatched)
    found = Audit(2, 0, 40, 40, mismatched, by_feature={"age": tally})
    result = dg.materialize([served_equals_offline], resources={"auditing": lambda: found}, raise_on_error=False)
    assert result.success == (mismatched == 0)
    if mismatched:
        told = result.get_step_failure_events()[0].step_failure_data.user_failure_data.description
        assert told == "audit: 3 of 40 cells are mismatched (age 3)."


def impressions_state(folder: Path, plan: FeaturePlan, policy: str) -> Settings:
    """Ten days of lists of three, of which the first is clicked; every second list was made by ``policy``."""
    settings = Settings(state_dir=folder, repo=folder)
    begin, held = AT, vectors(plan, "a", "b", "c")
    records, clicks = [], []
    for number in range(80):
        at = begin + number * 3 * HOUR_MS
        records.append(record(f"r{number:02}", at, "1", ["a", "b", "c"], [], held, **logged(plan)))
        records[-1]["policy"] = policy if number % 2 else "greedy"
        clicked = Event(f"o{number}", "click", at + 1, "1", "a", request_id=f"r{number:02}")
        clicks.append(Stored(clicked, at + 1, 0, 10_000 + number))
    write_impressions(arrived(records), settings.impressions_dir)
    write([*draw(20, late=False), *clicks], settings.events_dir)
    (folder / "labels.toml").write_text(
        'label = "click"\n[keys]\nuser = "user_id"\nitem = "item_id"\n'
        '[objectives.click]\nevents = ["click"]\nwindow = "1h"\ndelay = "0s"\n'
    )
    return settings


@pytest.mark.integration
@pytest.mark.parametrize(("policy", "judging"), [("plackett_luce", 8), ("slot", 16)])
def test_impressions_are_learned_from_up_to_the_judged_period(
    spark: Any, plan: FeaturePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str, judging: int
) -> None:
    settings = impressions_state(tmp_path, plan, policy)
    monkeypatch.setattr(SparkSteps, "_spark", lambda _: spark)
    monkeypatch.setattr("batch.retrain.LEAST_DRAWN", 8)
    rules = Retraining(learns_from="impressions", judged=timedelta(days=2))
    steps = SparkSteps(settings, plan, "all", tmp_path, lambda: 0, rules)
    end = AT + 80 * 3 * HOUR_MS
    learned = read_rows(Path(steps.training_set(end - 2 * DAY_MS)), plan.service("all").names)
    assert learned.at_ms.max() < end - 2 * DAY_MS <= learned.at_ms.max() + 4 * HOUR_MS
    assert (len(learned), int(learned.label.sum())) == (3 * 64, 64)
    judged = steps._judged(end, plan.service("all").names)
    assert judged.at_ms.min() >= end - 2 * DAY_MS
    assert len(judged.at_ms) == judging
