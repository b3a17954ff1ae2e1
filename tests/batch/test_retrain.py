"""The decision, and the scheduled job run in process; the heavy steps are stand-ins."""

from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import pytest
from support import bundles
from support.archived import archive

from batch.retrain import REFUSED, Judgement, retrain
from headwater.settings import Settings
from models.gates import Gates, Promotion, Rules
from models.registry import CHALLENGER, CHAMPION

DAY_MS = 86_400_000
NOW = 100 * DAY_MS


@dataclass
class Steps:
    """Records what it was told to do."""

    champion_version: str | None
    gain: Judgement = field(default_factory=lambda: Judgement(0.01, -0.002, 0.02, 300))
    done: list[tuple[object, ...]] = field(default_factory=list)

    def train(self, until_ms: int) -> str:
        self.done.append(("train", until_ms))
        return "7"

    def champion(self) -> str | None:
        return self.champion_version

    def judge(self, champion: str, version: str, until_ms: int) -> Judgement:
        self.done.append(("judge", champion, version, until_ms))
        return self.gain

    def measure(self, version: str) -> dict[str, float]:
        return {"size_mb": 3.0}

    def name(self, version: str, alias: str) -> None:
        self.done.append((alias, version))


def test_a_better_version_becomes_challenger_on_requests_it_has_not_seen() -> None:
    steps = Steps("3")
    verdict = retrain(steps, NOW)
    assert (verdict.decision, verdict.champion, verdict.requests) == (CHALLENGER, "3", 300)
    assert steps.done == [("train", NOW - 14 * DAY_MS), ("judge", "3", "7", NOW), ("challenger", "7")]


def test_a_version_that_is_no_better_is_refused_and_told_why() -> None:
    steps = Steps("3", Judgement(-0.004, -0.01, 0.001, 300))
    verdict = retrain(steps, NOW)
    assert verdict.decision == REFUSED
    assert "-0.0040 [-0.0100, +0.0010] against 3 over 300 newer requests; least_gain -0.004" in verdict.reason
    assert ("challenger", "7") not in steps.done


def test_the_first_version_needs_no_champion_but_passes_its_own_gates() -> None:
    assert retrain(Steps(None), NOW).decision == CHALLENGER
    refused = retrain(Steps(None), NOW, Rules(gates=Gates(size_mb=2)))
    assert (refused.decision, refused.reason) == (
        REFUSED, "there is no champion to judge it by; size_mb 3, at most 2",
    )  # fmt: skip


def test_a_better_version_is_refused_by_any_gate_and_serves_only_where_the_rules_let_it() -> None:
    gain = Judgement(0.01, -0.002, 0.02, 300, {"coverage": 0.2, "score_ms": 4.0})
    careful = Rules(gates=Gates(worst_gain=0.0, coverage=0.1, score_ms=3))
    steps = Steps("3", gain)
    verdict = retrain(steps, NOW, careful)
    assert verdict.decision == REFUSED
    assert [gate.name for gate in verdict.gates if not gate.holds] == ["worst_gain", "score_ms"]
    assert verdict.reason.endswith("worst_gain -0.002, at least 0; score_ms 4, at most 3")
    assert steps.done[-1][0] == "judge"
    assert retrain(steps, NOW, Rules(promotion=Promotion(automatic=True))).decision == CHAMPION
    assert steps.done[-1] == ("champion", "7")


def test_what_a_gate_asks_and_nobody_measured_is_refused() -> None:
    verdict = retrain(Steps("3"), NOW, Rules(gates=Gates(coverage=0.1)))
    assert verdict.decision == REFUSED
    assert verdict.reason.endswith("coverage not measured, at least 0.1")


@pytest.mark.filterwarnings("ignore")
def test_the_scheduled_job_does_the_same_in_process() -> None:
    """The job that the schedule starts, with its own definitions but for the steps."""
    import dagster as dg

    from batch.assets import Retraining, bundle, defs, judgement, verdict

    assert defs.get_schedule_def("retrain_schedule").cron_schedule == "0 3 * * *"
    steps = Steps("3")
    result = dg.materialize([bundle, judgement, verdict], resources={"retraining": Retraining(steps, NOW)})
    assert result.success
    assert result.output_for_node("verdict")["decision"] == CHALLENGER
    assert [step for step, *_ in steps.done] == ["train", "judge", "challenger"]


@pytest.mark.filterwarnings("ignore")
def test_much_that_is_new_starts_a_retraining_before_the_night() -> None:
    import dagster as dg

    from batch.assets import News, defs, enough_that_is_new

    assert defs.get_sensor_def("enough_that_is_new").job_name == "retrain"

    def looked(news: News) -> dg.RunRequest | dg.SkipReason:
        return enough_that_is_new(dg.build_sensor_context(), news=lambda: news)

    assert looked(News("3", 99, 100)).skip_message == "99 of 100 purchases since the training of 3"
    assert looked(News(None, 500, 100)).skip_message.endswith("of None")
    assert "names no" in looked(News("3", 500, None)).skip_message
    assert looked(News("3", 250, 100)).run_key == "3-2"


@pytest.mark.filterwarnings("ignore")
def test_only_purchases_whose_label_is_final_are_new(tmp_path: Path) -> None:
    from batch.assets import News, count_news

    settings = Settings(state_dir=tmp_path / "state", repo=tmp_path)
    at_ms = [day * DAY_MS for day in (1, 40, 41, 60, 70)]
    frame = pd.DataFrame({"user_id": ["ann"] * 5, "item_id": ["milk"] * 5, "event_time": at_ms})
    archive(settings.events_dir, frame)
    bundles.write(settings.bundles_dir / "1", training_end_ms=60 * DAY_MS)
    assert count_news(settings) == News(None, 0, None)
    (tmp_path / "promotion.toml").write_text("[retraining]\nnew_purchases = 2")
    (settings.bundles_dir / "aliases.json").write_text('{"champion": "1", "history": []}')
    assert count_news(settings) == News("1", 2, 2)  # of days 32 to 42: the rest is known or not final


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
