"""A bundle comes back as it was written, or is refused by name."""

import json
import subprocess
import sys
from hashlib import sha256

import numpy as np
import pyarrow.parquet as pq
import pytest
from support import bundles

from headwater.errors import ModelError
from models.bundle import FILES, ITEMS, ITEMS_BEFORE, META, load_bundle, write_bundle
from models.calibration import Platt, fit
from models.heads import Head


@pytest.fixture
def path(tmp_path):
    bundles.write(tmp_path / "7")
    return tmp_path / "7"


def rewrite_meta(path, **fields):
    held = json.loads((path / META).read_text())
    (path / META).write_text(json.dumps(held | fields))


def test_what_is_loaded_is_what_was_written(path):
    given, loaded = bundles.parts(), load_bundle(path, bundles.SCHEMA_HASH)
    users, recent = np.array([0, -1], np.int32), np.array([[3, -1], [0, 5]], np.int32)
    features = bundles.drawn(5, 2)
    assert loaded.version == "7"
    assert loaded.meta.model_dump(exclude={"format_version", "version", "files"}) == bundles.trained().model_dump()
    assert np.array_equal(loaded.encoder.encode(users, recent), given.encoder.encode(users, recent))
    assert np.array_equal(loaded.vectors, given.encoder.items)
    assert np.array_equal(loaded.ranker.score(features), given.ranker.score(features))
    assert np.array_equal(loaded.calibrator(features[:, 0]), given.calibrator(features[:, 0]))
    assert loaded.popularity.tolist() == given.popularity.tolist()
    assert loaded.trending.tolist() == given.trending.tolist()
    assert loaded.users.dense(["u2", "nobody", "u0"]).tolist() == [2, -1, 0]


def test_the_catalogue_numbers_and_describes_its_items(path):
    items = load_bundle(path).items
    assert items.dense(["i11", "none", "i00"]).tolist() == [11, -1, 0]
    assert items.dense([]).dtype == np.int32
    assert items.attributes(np.array([4])) == [{"category": "c1", "name": "Item 4"}]
    assert items.column("category").tolist()[:3] == ["", "c1", "c2"]


def test_the_index_holds_the_tower_s_own_vectors(path):
    loaded = load_bundle(path)
    assert loaded.index.search(loaded.vectors, 1)[:, 0].tolist() == list(range(bundles.N_ITEMS))


def test_contributions_add_up_to_the_score(path):
    ranker, features = load_bundle(path).ranker, bundles.drawn(6, 2)
    assert np.allclose(ranker.contributions(features).sum(1), ranker.score(features), atol=1e-6)


OTHERS = [
    Head("click", bundles.ranker(), Platt(2.0, -1.0)),
    Head("value", bundles.ranker(), fit([0.0, 1.0], [0, 7.5])),
]


@pytest.fixture
def several(tmp_path):
    write_bundle(tmp_path / "8", bundles.trained(objective="order"), bundles.parts(others=OTHERS))
    return tmp_path / "8"


def test_all_heads_come_back_in_order(several):
    loaded, features = load_bundle(several), bundles.drawn(5, 2)
    assert [head.name for head in loaded.heads] == ["order", "click", "value"]
    for head, given in zip(loaded.heads[1:], OTHERS, strict=True):
        assert np.array_equal(head.expected(features), given.expected(features))
    assert loaded.heads[0].ranker is loaded.ranker


@pytest.mark.parametrize("name", ["ranker.click.txt", "calibrator.value.npz"])
def test_another_heads_file_is_held_to_its_hash_too(several, name):
    (several / name).write_bytes((several / name).read_bytes() + b"\n")
    with pytest.raises(ModelError, match=f"bundle 8: {name} was altered"):
        load_bundle(several)
    (several / name).unlink()
    with pytest.raises(ModelError, match=f"bundle 8: {name} is missing"):
        load_bundle(several)


def test_a_bundle_from_before_there_were_objectives_has_one_head(path):
    held = json.loads((path / META).read_text())
    del held["objective"]
    (path / META).write_text(json.dumps(held))
    assert [head.name for head in load_bundle(path).heads] == ["purchase"]


@pytest.mark.parametrize("name", [*FILES, ITEMS])
def test_an_altered_file_is_refused_by_name(path, name):
    held = bytearray((path / name).read_bytes())
    held[len(held) // 2] ^= 1
    (path / name).write_bytes(held)
    with pytest.raises(ModelError, match=f"bundle 7: {name} was altered"):
        load_bundle(path)


@pytest.mark.parametrize("name", [META, *FILES, ITEMS])
def test_a_missing_file_is_refused_by_name(path, name):
    (path / name).unlink()
    with pytest.raises(ModelError, match=f"bundle 7: {name} is missing"):
        load_bundle(path)


def test_another_feature_schema_is_refused_by_name(path):
    with pytest.raises(ModelError, match=f"{bundles.SCHEMA_HASH} of service recommend, but 1234 is applied"):
        load_bundle(path, "1234")


def test_a_bundle_of_format_1_has_its_items_in_parquet(path):
    before = load_bundle(path).items
    ids, told = [*before.ids], before.attributes(np.arange(len(before)))  # the file under them is written over
    pq.write_table(bundles.parts().items, path / ITEMS_BEFORE)
    (path / ITEMS).write_text("what no description names is not read")
    files = json.loads((path / META).read_text())["files"]
    del files[ITEMS]
    files[ITEMS_BEFORE] = sha256((path / ITEMS_BEFORE).read_bytes()).hexdigest()
    rewrite_meta(path, format_version=1, files=files)
    items = load_bundle(path).items
    assert [*items.ids] == ids
    assert items.attributes(np.arange(len(items))) == told
    (path / ITEMS_BEFORE).unlink()
    with pytest.raises(ModelError, match=rf"{ITEMS_BEFORE} is missing"):
        load_bundle(path)


def test_an_unknown_format_is_refused(path):
    rewrite_meta(path, format_version=99)
    with pytest.raises(ModelError, match="format version 99"):
        load_bundle(path)


@pytest.mark.parametrize("fields", [{"colour": "blue"}, {"created_ms": "soon"}])
def test_a_malformed_description_is_refused_by_field(path, fields):
    rewrite_meta(path, **fields)
    with pytest.raises(ModelError, match=next(iter(fields))):
        load_bundle(path)


@pytest.mark.parametrize(
    ("others", "named"),
    [
        ({"encoder": bundles.encoder(n_items=5)}, "item_embeddings.npy is of 5 items, not 12"),
        ({"popularity": np.zeros(3)}, "popularity.npy is of 3 items, not 12"),
        ({"users": ["u0"]}, "towers.npz is of 3 users, not 1"),
        ({"ranker": bundles.ranker(("a", "b"))}, "ranker.txt reads a, b"),
        ({"others": [Head("click", bundles.ranker(("a", "b")), Platt(1, 0))]}, "ranker.click.txt reads a, b"),
    ],
)
def test_parts_that_do_not_fit_are_never_published(tmp_path, others, named):
    with pytest.raises(ModelError, match=named):
        write_bundle(tmp_path / "7", bundles.trained(), bundles.parts(**others))
    assert list(tmp_path.iterdir()) == []


def test_a_version_never_changes(path):
    with pytest.raises(ModelError, match="bundle 7: already written"):
        bundles.write(path)


def test_loading_imports_no_trainer_and_no_engine(path):
    unwanted = {"torch", "mlflow", "feast", "pyspark", "pyflink", "bm25s"}
    code = (
        "import sys; from pathlib import Path; from models.bundle import load_bundle; "
        f"load_bundle(Path({str(path)!r})); print(*({unwanted!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
