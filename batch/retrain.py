"""Retrain, judge on newer data, and name a challenger or say why not. Promotion is somebody else's act, by default.

::

    purchases before the judged period ─► towers, index ─► requests with features ─► ranker ─► bundle
    requests of the judged period, which that bundle has not seen ─► champion and bundle score the same rows

The judged period ends where the label's horizon does, so every judged label is final. :mod:`batch.retraining` runs the
steps as Dagster assets, one partition a day.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow.compute as pc

from headwater.errors import DataError
from headwater.log import get_logger
from headwater.plan import FeaturePlan
from headwater.settings import Settings
from models.draws import PLACKETT_LUCE
from models.evaluation.metrics import PAD
from models.gates import DEFAULT_RULES, Gate, Retraining, Rules, judged
from models.registry import CHALLENGER, CHAMPION
from models.rows import Rows

REFUSED, ROLLOUT = "refused", "rollout"
LEAST_DRAWN = 30
"""Lists that were drawn whole and led to something; the mean of fewer tells nothing."""
log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Verdict:
    """``gain``: NDCG@10 of the new version over the champion's, with its 95 % interval; None without a champion."""

    version: str
    decision: str
    reason: str
    champion: str | None = None
    gain: dict[str, float] | None = None
    requests: int = 0
    gates: tuple[Gate, ...] = ()


@dataclass(frozen=True, slots=True)
class Judgement:
    """Mean difference in NDCG@10 over the same requests, and its 95 % interval; what the gates ask besides."""

    mean: float
    low: float
    high: float
    requests: int
    measured: Mapping[str, float] = field(default_factory=dict)


class Steps(Protocol):
    """The heavy parts, in order; what they make lies in the state folder, and they hand on its paths and versions."""

    def known(self, end_ms: int) -> int:
        """End of what may be known: ``end_ms``, now, or just after the archive's newest event, whichever is first."""
        ...

    def features(self) -> str:
        """Schema hash of the applied feature service."""
        ...

    def retriever(self, until_ms: int) -> str:
        """Train the towers for requests that are known until ``until_ms``; their folder."""
        ...

    def index(self) -> float:
        """Share of the truly nearest items that the index over the towers' items finds."""
        ...

    def training_set(self, until_ms: int) -> str:
        """Draw past requests, known until ``until_ms``, with their features; their folder."""
        ...

    def ranker(self, until_ms: int) -> str:
        """Train the ranker on that set and register a bundle; its version."""
        ...

    def champion(self) -> str | None:
        """Version that serves."""
        ...

    def judge(self, champion: str, version: str, until_ms: int) -> Judgement:
        """Score both on the requests of the judged period, known until ``until_ms``."""
        ...

    def measure(self, version: str) -> Mapping[str, float]:
        """What the gates ask of a version by itself."""
        ...

    def name(self, version: str, alias: str) -> None:
        """Make a version challenger or champion, or begin its rollout."""
        ...

    def report(self, verdict: Verdict) -> str:
        """Write the version's page, and tell the registry what was decided; the page's path."""
        ...


def decide(
    steps: Steps, version: str, champion: str | None, judgement: Judgement | None, rules: Rules = DEFAULT_RULES
) -> Verdict:
    """Name the version challenger, or let it serve where the rules do, unless it fails a gate."""
    measured = dict(steps.measure(version)) if judgement is None else dict(judgement.measured)
    if judgement is None:
        told, gain, requests = "there is no champion to judge it by", None, 0
    else:
        gain = {"mean": judgement.mean, "low": judgement.low, "high": judgement.high}
        measured |= {"least_gain": judgement.mean, "worst_gain": judgement.low}
        told = f"NDCG@10 {judgement.mean:+.4f} [{judgement.low:+.4f}, {judgement.high:+.4f}] against {champion}"
        told, requests = f"{told} over {judgement.requests} newer requests", judgement.requests
    gates = tuple(judged(rules.gates, measured, judgement is not None))
    failed = [str(gate) for gate in gates if not gate.holds]
    serves = CHAMPION if rules.rollout is None or champion is None else ROLLOUT
    decision = REFUSED if failed else serves if rules.promotion.automatic else CHALLENGER
    verdict = Verdict(version, decision, "; ".join([told, *failed]), champion, gain, requests, gates)
    if not failed:
        steps.name(version, decision)
    log.info("retrained", version=version, decision=decision, reason=verdict.reason)
    return verdict


@dataclass(frozen=True)
class SparkSteps:
    """The real steps: towers and ranker by the models room, features by Spark.

    ``home`` holds ``items.parquet`` and ``users.parquet``; ``now_ms`` tells the platform's time; ``rules`` say what is
    learned from. Impressions carry the features that were served, so the towers may learn from all that came before;
    requests that are made of purchases must lie behind what the towers know.
    """

    settings: Settings
    plan: FeaturePlan
    service: str
    home: Path
    now_ms: Callable[[], int]
    rules: Retraining = DEFAULT_RULES.retraining
    passes: int | None = None
    progress: Callable[[str], None] = field(default=lambda step: None)

    def known(self, end_ms: int) -> int:
        return known_until(self.settings, min(end_ms, self.now_ms()))

    def features(self) -> str:
        return self.plan.schema_hash(self.service)

    def retriever(self, until_ms: int) -> str:
        from batch.catalogue import write_catalogue
        from models.paths import paths_of
        from models.requests import DEFAULT_SAMPLING
        from models.training import train_retriever

        self.progress("towers")
        cutoff_ms = until_ms if self._of_impressions else DEFAULT_SAMPLING.start_ms(until_ms)
        train_retriever(self.settings, write_catalogue(self.settings, self.home), cutoff_ms, self.passes)
        return str(paths_of(self.settings).retriever)

    def index(self) -> float:
        from models.index.building import ASKED, DEPTH, exact, found_share
        from models.paths import paths_of
        from models.retriever import Retriever

        self.progress("index")
        held = Retriever.load(paths_of(self.settings).retriever)
        users = np.arange(min(ASKED, len(held.users)), dtype=np.int32)
        queries = held.encoder.encode(users, np.full((len(users), held.provenance.n_recent), PAD, np.int32))
        return found_share(held.index, queries, exact(held.index.vectors, queries, min(DEPTH, len(held.items))))

    def training_set(self, until_ms: int) -> str:
        from batch.shown import Asked, build_shown_rows
        from batch.training_set import build_ranking_rows
        from models.paths import paths_of

        self.progress("features")
        what = (self._spark(), self.settings, self.plan, self.service)
        if self._of_impressions:
            return build_shown_rows(
                *what, Asked.of(self.settings, until_ms, items=self._items), paths_of(self.settings).rows
            ).path
        return build_ranking_rows(*what, until_ms).path

    def ranker(self, until_ms: int) -> str:
        from batch.objectives import load_labelling
        from models.training import Service, train_ranker

        self.progress("ranker")
        names, schema = self.plan.service(self.service).names, self.plan.schema_hash(self.service)
        service = Service(self.service, names, schema, self.plan.feature_hashes(self.service))
        gap = load_labelling(self.settings.repo).longest if self._of_impressions else None
        meta, _ = train_ranker(self.settings, service, self.now_ms(), until_ms, home=self.home, gap=gap)
        return meta.version

    def champion(self) -> str | None:
        from models import registry

        found = registry.champion(self.settings)
        return None if found is None else found.name

    def judge(self, champion: str, version: str, until_ms: int) -> Judgement:
        from models.bundle import load_bundle
        from models.comparison import compare_on
        from models.gates import measure

        self.progress("judging")
        bundles = [load_bundle(self.settings.bundles_dir / name) for name in (champion, version)]
        table = self._judged(until_ms, bundles[1].meta.feature_names)
        found = compare_on(table, *bundles)
        measured = measure(bundles[1], self.settings.bundles_dir / version, table)
        return Judgement(found.gain.mean, found.gain.low, found.gain.high, found.requests, measured)

    def _judged(self, until_ms: int, names: Sequence[str]) -> Rows:
        """Rows of the judged period; of impressions the lists that were drawn whole: others favour who ordered them.

        Where few of these led to anything, all lists judge.
        """
        from batch.shown import Asked, Split, build_shown_rows
        from batch.training_set import build_ranking_rows
        from models.ranking import read_rows
        from models.requests import DEFAULT_SAMPLING

        out, what = self.settings.training_dir / "judged", (self._spark(), self.settings, self.plan, self.service)
        if not self._of_impressions:
            sampling = replace(DEFAULT_SAMPLING, span=self.rules.judged, per_user=1)
            build_ranking_rows(*what, until_ms, sampling, out)
            return read_rows(out, names)
        begin_ms = until_ms - self.rules.judged // timedelta(milliseconds=1)
        newer = Split(begin_ms, timedelta(0), keeps_train=False)
        build_shown_rows(*what, Asked.of(self.settings, until_ms, newer, self._items), out)
        with suppress(DataError):  # there is none
            drawn = read_rows(out, names, only=pc.field("policy") == PLACKETT_LUCE)
            if len(np.unique(drawn.group[drawn.label > 0])) >= LEAST_DRAWN:
                return drawn
        log.warning("few_drawn_lists", least=LEAST_DRAWN, instead="all lists", remedy="draw more: docs/serving.md")
        return read_rows(out, names)

    @property
    def _items(self) -> Path | None:
        """The catalogue that the towers learned from, once they have."""
        from models.paths import paths_of

        table = paths_of(self.settings).catalogue / "items.parquet"
        return table if table.is_file() else None

    @property
    def _of_impressions(self) -> bool:
        return self.rules.learns_from == "impressions"

    def measure(self, version: str) -> Mapping[str, float]:
        from models.bundle import load_bundle
        from models.gates import measure

        files = self.settings.bundles_dir / version
        return measure(load_bundle(files), files, None)

    def name(self, version: str, alias: str) -> None:
        from batch.rollout import rollouts_of
        from models import registry

        if alias == ROLLOUT:
            rollouts_of(self.settings, self.features(), self.now_ms).begin(version)
        else:
            registry.promote(self.settings, version, alias, self.features())

    def report(self, verdict: Verdict) -> str:
        from models import registry
        from models.evaluation.report import write_report

        self.progress("report")
        registry.annotate(self.settings, verdict.version, {"decision": verdict.decision, "reason": verdict.reason})
        return str(write_report(self.settings, verdict.version, verdict.champion))

    def _spark(self) -> Any:
        from batch.session import spark_session

        return spark_session(self.settings)


def known_until(settings: Settings, now_ms: int) -> int:
    """End of what may be learned from: now, or just after the archive's newest event where that is earlier.

    Raises
    ------
    DataError
        The archive is empty.
    """
    from models.interactions import newest_ms

    return min(now_ms, newest_ms(settings.events_dir) + 1)
