"""The page of a version: its figures are those of the functions, and it says what is not known."""

import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import settings as example_settings
from hypothesis import strategies as st
from support import bundles
from support.archived import archive
from typer.testing import CliRunner

from headwater.cli.main import build
from headwater.errors import DataError
from headwater.settings import Settings
from models import registry
from models.bundle import load_bundle, write_bundle
from models.calibration import expected_calibration_error
from models.comparison import compare_on
from models.evaluation import report
from models.evaluation.findings import reliability, rules_of, segments, top
from models.evaluation.metrics import coverage, mean
from models.evaluation.past import Past
from models.ranking import Rows, read_rows

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's use of SQLAlchemy

DAY_MS = 86_400_000
N_REQUESTS, N_ROWS, BEGIN = 30, 8, 200 * DAY_MS
NASTY = "<script>alert('milk & $ugar')</script>"


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> Settings:
    """Two bundles with the same features, an archive, and requests that are newer than both."""
    made = Settings(state_dir=tmp_path_factory.mktemp("state"), repo=tmp_path_factory.mktemp("repo"))
    rng = np.random.default_rng(4)
    frame = pd.DataFrame({
        "user_id": [f"u{n}" for n in rng.integers(0, 3, 400)],
        "item_id": [f"i{n:02d}" for n in rng.integers(0, 12, 400)],
        "event_time": np.sort(rng.integers(1, 230, 400)) * DAY_MS,
    })  # fmt: skip
    archive(made.events_dir, frame)
    write_rows(made.training_dir / "judged", rng)
    items = bundles.parts().items.set_column(2, "name", pa.array([NASTY] * bundles.N_ITEMS))
    for number, parent, telling in (("1", None, 1), ("2", "1", 0)):
        trained = bundles.trained(parent=parent, training_end_ms=220 * DAY_MS)
        parts = bundles.parts(items=items, ranker=bundles.ranker(telling=telling))
        write_bundle(made.bundles_dir / number, trained, parts)
        registry.register(made, made.bundles_dir / number)
    return made


def write_rows(folder, rng, **columns) -> None:
    folder.mkdir(parents=True)
    n = N_REQUESTS * N_ROWS
    at = np.repeat(BEGIN + np.arange(N_REQUESTS) * DAY_MS, N_ROWS)
    features = rng.normal(size=(n, 2)).astype(np.float32)
    table = {
        "request_id": [f"u{number % 3}@{number}" for number in np.repeat(np.arange(N_REQUESTS), N_ROWS)],
        "user_id": [f"u{number % 3}" for number in np.repeat(np.arange(N_REQUESTS), N_ROWS)],
        "item_id": [f"i{item:02d}" for _ in range(N_REQUESTS) for item in rng.choice(12, N_ROWS, replace=False)],
        "event_timestamp": pa.array(at, pa.timestamp("ms", tz="UTC")),
        "label": (features[:, 0] + rng.normal(size=n) > 0.5).astype(np.int8), "weight": np.ones(n, np.float32),
        bundles.FEATURES[0]: features[:, 0], bundles.FEATURES[1]: features[:, 1],
    }  # fmt: skip
    pq.write_table(pa.table(table | columns), folder / "part-0.parquet")


@pytest.fixture
def rows(settings) -> Rows:
    return read_rows(settings.training_dir / "judged", bundles.FEATURES)


class Checked(HTMLParser):
    """Every tag that is opened is closed in order; the text is kept by the id of what holds it."""

    VOID = ("meta", "!doctype")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[tuple[str, str | None]] = []
        self.seen: list[str] = []
        self.text: dict[str | None, str] = {}

    def handle_starttag(self, tag, attrs) -> None:
        self.seen.append(tag)
        if tag not in self.VOID:
            self.open.append((tag, dict(attrs).get("id")))

    def handle_startendtag(self, tag, attrs) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data) -> None:
        for _, name in self.open:
            if name is not None:
                self.text[name] = self.text.get(name, "") + data


def parsed(text: str) -> Checked:
    page = Checked()
    page.feed(text)
    page.close()
    assert page.open == []
    return page


def test_the_figures_are_those_of_the_functions(settings, rows):
    registry.promote(settings, "1")
    page = report.make_page(settings, "2")
    first, second = (load_bundle(settings.bundles_dir / name) for name in ("1", "2"))
    compared = compare_on(rows, first, second)
    whole = page.segments[0]
    assert (whole.name, whole.requests, page.reference) == ("all", compared.requests, "1")
    assert whole.ndcg.mean == pytest.approx(compared.second)
    assert whole.gains["version 1"] == compared.gain
    scores = second.ranker.score(rows.features)
    told = expected_calibration_error(second.calibrator(scores), rows.label > 0, weights=rows.weight)
    assert page.reliability.error == told
    source = pq.read_table(settings.training_dir / "judged" / "part-0.parquet").sort_by(
        [("event_timestamp", "ascending"), ("request_id", "ascending"), ("item_id", "ascending")]
    )
    lists = top(rows, second.items.dense(source["item_id"].to_pylist()), scores)
    assert page.exposure["2"].coverage == coverage(lists, 12, 10)
    assert page.measured["coverage"] == coverage(lists, 12, 10)
    times = np.sort(np.bincount(lists[lists >= 0], minlength=12))[::-1]
    assert [shown for _, _, shown in page.most_shown] == times[:10].tolist()
    assert page.rows_told.startswith("Requests newer than all")
    assert [gate.name for gate in page.gates] == ["least_gain"]


def test_the_page_is_whole_and_names_are_escaped(settings):
    path = report.write_report(settings, "2", "1")
    text = path.read_text()
    page = parsed(text)
    assert "script" not in page.seen
    assert "&lt;script&gt;" in text
    assert "milk & $ugar" in page.text["shown"]
    assert page.seen.count("svg") == 6  # gains over three, calibration, scores, contributions
    assert not re.search(r"""(?:href|src)=["'](?!#)""", text)  # self-contained
    made = report.make_page(settings, "2", "1")
    assert f"{made.segments[0].ndcg.mean:.4f}" in page.text["quality"]
    assert page.text["ece"] == f"{made.reliability.error:.4f}"
    assert "0.1.0" not in page.text["lineage"]
    assert "not known: trained before" in page.text["lineage"]
    client = registry._client(settings)
    held = client.get_model_version(registry.MODEL, "2")
    assert path.name in [file.path for file in client.list_artifacts(held.run_id)]


def test_what_is_not_known_is_said(settings, tmp_path, rows):
    (settings.bundles_dir / "aliases.json").unlink(missing_ok=True)
    alone = parsed(report.render(report.make_page(settings, "1")))
    assert "There is no champion or parent to compare it with." in alone.text["rows"]
    assert "No retraining decided about it." in alone.text["decision"]
    assert "nothing to hold it to" in alone.text["gates"]
    assert "none here" in alone.text["quality"]  # no user is new
    write_rows(tmp_path / "own", np.random.default_rng(1))
    bundles.write(settings.bundles_dir / "7", training_end_ms=500 * DAY_MS, feature_schema_hash="f" * 16)
    other = report.make_page(settings, "7", "1", tmp_path / "own")
    assert other.rows_told.startswith("Requests of another training")
    assert other.rows_told.endswith("Version 1 reads other features, so no rows suit both.")
    own = read_rows(tmp_path / "own", bundles.FEATURES).fingerprint()
    bundles.write(settings.bundles_dir / "8", training_end_ms=500 * DAY_MS, data_hash=own)
    assert report.make_page(settings, "8", rows=tmp_path / "own").rows_told.startswith("The later requests of its own")


def test_what_was_learned_from_is_not_called_newer(settings, tmp_path):
    """Labels of impressions are final within days, so the newest request that was learned from is what counts."""
    write_rows(tmp_path / "own", np.random.default_rng(1))
    newest = int(read_rows(tmp_path / "own", bundles.FEATURES).at_ms.max())
    for version, learned, told in (
        ("10", newest, "Requests of another training"),
        ("11", 0, "Requests newer than all"),
    ):
        bundles.write(settings.bundles_dir / version, training_end_ms=220 * DAY_MS, learned_until_ms=learned)
        assert report.make_page(settings, version, rows=tmp_path / "own").rows_told.startswith(told)


def test_rows_that_name_no_user_are_refused(settings, tmp_path):
    write_rows(tmp_path / "rows", np.random.default_rng(1))
    held = pq.read_table(tmp_path / "rows" / "part-0.parquet").drop_columns(["user_id"])
    pq.write_table(held, tmp_path / "rows" / "part-0.parquet")
    with pytest.raises(DataError, match="no column user_id"):
        report.make_page(settings, "1", rows=tmp_path / "rows")


def test_the_command_writes_where_it_is_told(settings, tmp_path, monkeypatch):
    monkeypatch.setattr("models.cli.get_settings", lambda: settings)
    out = tmp_path / "page.html"
    done = CliRunner().invoke(build(), ["report", "2", "--against", "1", "--out", str(out), "--json"])
    assert done.exit_code == 0
    assert str(out) in done.stdout
    assert parsed(out.read_text()).text["verdict"].endswith("by promotion.toml as it is now.")


sizes = st.integers(0, 60).map(lambda days: days * DAY_MS)


@example_settings(max_examples=15)
@given(st.data())
def test_segments_part_requests_and_labels_as_a_loop_does(data):
    n_groups, wide = data.draw(st.integers(2, 6)), 4
    n = n_groups * wide
    group = np.repeat(np.arange(n_groups), wide).astype(np.int32)

    def some(values, count):
        return np.array(data.draw(st.lists(values, min_size=count, max_size=count)))

    label, user_count = some(st.integers(0, 1), n), np.repeat(some(st.integers(0, 9), n_groups), wide)
    user_age, item_age = np.repeat(some(sizes, n_groups), wide), some(sizes, n)
    past = Past(user_count, some(st.integers(0, 9), n), some(st.integers(0, 2), n), user_age, item_age, np.zeros(n))
    rows = Rows(
        np.zeros((n, 1), np.float32), label.astype(np.int8), np.ones(n, np.float32), group, group, np.arange(n_groups)
    )
    scores = {"ours": some(st.integers(0, 9), n).astype(np.float32)} | rules_of(past)
    usual = [user_count[g * wide] for g in range(n_groups) if user_age[g * wide] > 28 * DAY_MS]
    relevant = {
        "all": lambda row: True, "repeats": lambda row: past.pair_count[row] > 0,
        "first purchases": lambda row: past.pair_count[row] == 0, "new users": lambda row: user_age[row] <= 28 * DAY_MS,
        "light users": lambda row: user_age[row] > 28 * DAY_MS and user_count[row] < np.median(usual),
        "heavy users": lambda row: user_age[row] > 28 * DAY_MS and user_count[row] >= np.median(usual),
        "new items": lambda row: item_age[row] <= 28 * DAY_MS,
    }  # fmt: skip
    for one in segments(rows, scores, past):
        kept = np.array([label[row] if relevant[one.name](row) else 0 for row in range(n)], np.int8)
        values = Rows(rows.features, kept, rows.weight, group, group, rows.at_ms).ndcg(scores["ours"])
        assert one.requests == np.isfinite(values).sum()
        assert one.requests < 2 or one.ndcg.mean == pytest.approx(mean(values))


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 1), st.floats(0.5, 3)), min_size=1, max_size=80))
def test_the_curve_has_the_error_that_is_told(rows):
    told, label, weight = (np.array(column) for column in zip(*rows, strict=True))
    found = reliability(told, label, weight)
    gaps = np.abs(found.told - found.found) @ found.weight / found.weight.sum()
    assert found.error == pytest.approx(gaps)
    assert found.weight.sum() == pytest.approx(weight.sum())
