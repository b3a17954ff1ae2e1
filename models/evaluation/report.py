"""One page per model version: ``headwater report VERSION``, and after each training.

A file without links to others, beside the bundle's folder (a bundle holds its own files' hashes, so not inside), and
among the artifacts of its MLflow run.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds

from headwater.errors import DataError, ModelError
from headwater.files import write_whole
from headwater.settings import Settings
from models import registry
from models.bundle import Bundle, load_bundle
from models.contributions import mean_contributions
from models.evaluation import findings, plots
from models.evaluation.metrics import Ints
from models.evaluation.past import look_back
from models.gates import Gate, judged, load_rules, measure
from models.interactions import read_purchases
from models.paths import paths_of
from models.ranking import DEFAULT_RANKER, Rows, read_rows, split
from models.requests import AT, DEFAULT_SAMPLING, REQUEST

NEWER = "Requests newer than all that it was trained on."
LATER = "The later requests of its own training rows, by which it was stopped and calibrated: the figures flatter it."
OTHER = "Requests of another training: it may have learned from some of them, and then the figures flatter it."
TEMPLATE = Path(__file__).with_name("report.html")
SHOWN_MOST = 10


@dataclass(frozen=True)
class Page:
    """All that the page tells; ``reference`` is the version that it is compared with, if there is one."""

    version: str
    reference: str | None
    rows_told: str
    requests: int
    segments: list[findings.Segment]
    reliability: findings.Reliability
    exposure: Mapping[str, findings.Exposure]
    most_shown: list[tuple[str, str, int]]
    contributions: Mapping[str, float]
    gates: list[Gate]
    measured: Mapping[str, float]
    lineage: Mapping[str, str]
    decision: Mapping[str, str]
    plots: Mapping[str, str]

    @property
    def passed(self) -> bool:
        """No gate is failed."""
        return all(gate.holds for gate in self.gates)

    def as_dict(self) -> dict[str, Any]:
        """The figures, without plots."""
        return {name: value for name, value in asdict(self).items() if name != "plots"}


def report_path(settings: Settings, version: str) -> Path:
    """Where a version's page is unless told otherwise."""
    return settings.bundles_dir / f"{version}.report.html"


def write_report(
    settings: Settings, version: str, reference: str | None = None, rows: Path | None = None, out: Path | None = None
) -> Path:
    """Write a version's page and log it with its MLflow run; its path. Arguments as :func:`make_page`.

    Raises
    ------
    ModelError
        A version is refused or not registered.
    DataError
        There are no rows to judge by.
    """
    path = out or report_path(settings, version)
    write_whole(path, render(make_page(settings, version, reference, rows)))
    registry.annotate(settings, version, {}, path)
    return path


def make_page(settings: Settings, version: str, reference: str | None = None, rows: Path | None = None) -> Page:
    """Compute all that the page tells.

    Parameters
    ----------
    reference
        Version to compare with: the champion where none is told, its parent where it is the champion itself.
    rows
        Labelled rows: of the last retraining's judged period if it learned from none as new, else of its training.
    """
    bundle = load_bundle(settings.bundles_dir / version)
    table, where, told = _rows(settings, bundle, rows)
    other, why_not = _reference(settings, bundle, reference)
    user_id, item_id = _ids(where, table)
    at_ms = table.at_ms[table.group]
    bought = read_purchases(settings.events_dir, int(at_ms.max()))
    past = look_back(bought, user_id, item_id, at_ms)
    scores: dict[str, Any] = {version: bundle.ranker.score(table.features)}
    if other is not None:
        scores[f"version {other.version}"] = other.ranker.score(table.features)
        if at_ms.min() < _newest_learned(other):
            told += f" Version {other.version} may have learned from some of them too."
    scores |= findings.rules_of(past)
    found = findings.segments(table, scores, past)
    item = bundle.items.dense(item_id.tolist())
    lists = {name: findings.top(table, item, values) for name, values in scores.items()}
    before = bought[bought["event_time"] < int(at_ms.min())].drop_duplicates(["user_id", "item_id"])
    held = bundle.items.dense(before["item_id"].tolist())
    buyers = np.bincount(held[held >= 0], minlength=len(bundle.items)).astype(np.int32)
    exposure = {
        name: findings.exposure(shown, buyers, before["user_id"].nunique(), _kinds(bundle))
        for name, shown in lists.items()
    }
    reliability = findings.reliability(bundle.calibrator(scores[version]), table.label > 0, table.weight)
    strongest = mean_contributions(bundle.ranker, table.features)
    measured, gates = _gates(
        settings, bundle, table, None if other is None else found[0].gains[f"version {other.version}"]
    )
    rules = [name for name in scores if name != version]
    drawn = {name: plots.gains(found, name) for name in rules if found[0].ndcg is not None} | {
        "calibration": plots.calibration(reliability),
        "scores": plots.scores(scores[version], table.label > 0),
        "contributions": plots.strongest(strongest),
    }
    decided = {
        name: value for name, value in registry.told(settings, version).items() if name in ("decision", "reason")
    }
    return Page(
        version, None if other is None else other.version, f"{told} {why_not}".strip(), len(table.at_ms), found,
        reliability, exposure, _most_shown(bundle, lists[version]), strongest, gates, measured,
        dict(_lineage(bundle)), decided, drawn,
    )  # fmt: skip


def render(page: Page) -> str:
    """The page as HTML; names are escaped."""
    return plots.set_into(TEMPLATE, page.plots, page=page)


def _rows(settings: Settings, bundle: Bundle, rows: Path | None) -> tuple[Rows, Path, str]:
    """Rows to judge by, where they lie, and what they are to this bundle."""
    paths, names = paths_of(settings), bundle.meta.feature_names
    if rows is None and any((paths.root / "judged").rglob("*.parquet")):
        newer = read_rows(paths.root / "judged", names)
        if newer.at_ms.min() >= _newest_learned(bundle):
            return newer, paths.root / "judged", NEWER
    where = rows or paths.rows
    table = read_rows(where, names)
    if table.at_ms.min() >= _newest_learned(bundle):
        return table, where, NEWER
    if table.fingerprint() == bundle.meta.data_hash:
        return split(table, DEFAULT_RANKER)[1], where, LATER
    return table, where, OTHER


def _newest_learned(bundle: Bundle) -> int:
    """From there on no request was learned from."""
    if bundle.meta.learned_until_ms is not None:
        return bundle.meta.learned_until_ms + 1
    # A label of a later request would not have been final.
    return bundle.meta.training_end_ms - DEFAULT_SAMPLING.horizon // timedelta(milliseconds=1)


def _reference(settings: Settings, bundle: Bundle, told: str | None) -> tuple[Bundle | None, str]:
    """The bundle to compare with, or why there is none."""
    champion = registry.champion(settings)
    name = told or (None if champion is None else champion.name)
    if name == bundle.version:
        name = bundle.meta.parent
    if name is None or name == bundle.version:
        return None, "There is no champion or parent to compare it with."
    try:
        other = load_bundle(settings.bundles_dir / name)
    except ModelError as error:
        return None, f"It could not be compared: {error}"
    if other.meta.feature_schema_hash != bundle.meta.feature_schema_hash:
        return None, f"Version {name} reads other features, so no rows suit both."
    return other, ""


def _ids(where: Path, table: Rows) -> tuple[Any, Any]:
    """User and item ids of the rows (n,), in their order."""
    source = ds.dataset(where)
    if "user_id" not in source.schema.names:
        raise DataError(f"{where}: no column user_id, so nothing is known of whose requests these are. Make them anew.")
    held = source.to_table(columns=[REQUEST, "user_id", "item_id", AT]).sort_by(
        [(AT, "ascending"), (REQUEST, "ascending"), ("item_id", "ascending")]
    )
    skipped = held.num_rows - len(table)  # the later requests are the last rows
    return (held[name].to_numpy()[skipped:] for name in ("user_id", "item_id"))  # type: ignore[return-value]


def _kinds(bundle: Bundle) -> Ints | None:
    named = bundle.items.text.get("category")
    return None if named is None else named.numbers


def _gates(settings: Settings, bundle: Bundle, table: Rows, gain: Any) -> tuple[Mapping[str, float], list[Gate]]:
    """What the gates ask, and what ``promotion.toml`` says to it as it is now."""
    measured = measure(bundle, settings.bundles_dir / bundle.version, table)
    if gain is not None:
        measured |= {"least_gain": gain.mean, "worst_gain": gain.low}
    return measured, list(judged(load_rules(settings.repo).gates, measured, gain is not None))


def _most_shown(bundle: Bundle, lists: Ints) -> list[tuple[str, str, int]]:
    """Id, name and times of what the lists show most."""
    times = np.bincount(lists[lists >= 0], minlength=len(bundle.items))
    best = np.argsort(-times, kind="stable")[:SHOWN_MOST]
    ids, told = bundle.items.ids.take(best), bundle.items.attributes(best)
    shown = zip(ids, told, times[best].tolist(), strict=True)
    return [(item_id, known.get("name", ""), often) for item_id, known, often in shown if often]


def _lineage(bundle: Bundle) -> Iterator[tuple[str, str]]:
    meta = bundle.meta
    for name in ("training_start_ms", "training_end_ms", "created_ms"):
        instant = datetime.fromtimestamp(getattr(meta, name) / 1000, UTC)
        yield name.removesuffix("_ms").replace("_", " "), f"{instant:%Y-%m-%d %H:%M:%S} UTC"
    yield "parent", meta.parent or "none"
    yield "code version", meta.code_version or "not known: trained before it was kept"
    yield "data hash", meta.data_hash
    yield "feature service", meta.service
    yield "feature schema hash", meta.feature_schema_hash
    yield "features", str(len(meta.feature_names))
    yield "items, users", f"{len(bundle.items):,}, {len(bundle.users):,}"
    for name, value in meta.metrics.items():
        yield f"in training: {name}", f"{value:.4g}"
