"""The index of words against BM25 written out."""

import json
from collections import Counter
from math import log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as tries
from hypothesis import strategies as st
from structlog.testing import capture_logs
from support import bundles

from headwater.errors import ModelError
from headwater.text import words
from models.bm25 import FIELDS, FILES, K1, B, WordIndex, index_words
from models.bundle import META, load_bundle

SAID = ("milk", "oat", "whole", "2%", "apples", "CRÈME")
texts = st.lists(st.sampled_from(SAID), max_size=4).map(" ".join)
items = st.lists(st.fixed_dictionaries(dict.fromkeys(FIELDS, texts)), min_size=1, max_size=12)
queries = st.lists(st.sampled_from([*SAID, "unheard"]), max_size=4).map(" ".join)


def index_of(items):
    columns = {name: np.array([item[name] for item in items], object) for name in FIELDS}
    return index_words(len(items), columns)


def bm25(items, query):
    """Scores by item number, those with a word alone: Robertson's formula with Lucene's idf, nothing left out."""
    documents = [[word for name, weight in FIELDS.items() for word in words(item[name]) * weight] for item in items]
    average = sum(map(len, documents)) / len(documents)
    scores = {}
    for number, document in enumerate(documents):
        for word in set(words(query)) & set(document):
            having, times = sum(word in other for other in documents), Counter(document)[word]
            idf = log(1 + (len(documents) - having + 0.5) / (having + 0.5))
            length = K1 * (1 - B + B * len(document) / average)
            scores[number] = scores.get(number, 0.0) + idf * times / (times + length)
    return scores


@given(items, queries)
@tries(deadline=None)
def test_scores_are_the_formula_s(items, query):
    found, expected = index_of(items).match(query), bm25(items, query)
    assert found.items.tolist() == sorted(expected)
    assert found.scores.tolist() == pytest.approx([expected[number] for number in sorted(expected)], rel=1e-5)
    held = [{word for name in FIELDS for word in words(items[number][name])} for number in found.items]
    assert found.words.tolist() == [len(set(words(query)) & each) for each in held]


@given(items, queries, st.data())
@tries(deadline=None)
def test_what_is_not_allowed_is_left_out_and_changes_no_other_score(items, query, data):
    allowed = np.array(data.draw(st.lists(st.booleans(), min_size=len(items), max_size=len(items))))
    index = index_of(items)
    whole, part = index.match(query), index.match(query, allowed)
    kept = allowed[whole.items]
    assert part.items.tolist() == whole.items[kept].tolist()
    assert part.scores.tolist() == whole.scores[kept].tolist()
    assert part.words.tolist() == whole.words[kept].tolist()


def test_a_word_is_the_same_however_it_is_written():
    assert words("Crème BRÛLÉE, 2% apples\u200b") == words("creme; brulee\0２ apple")
    assert words("\ud800 🥛 ... _") == []


def test_what_no_field_names_is_not_searched():
    columns = {"name": np.array(["milk", "bread"], object), "audience": np.array(["staff", "staff"], object)}
    assert index_words(2, columns).match("staff").items.tolist() == []


def test_no_text_at_all_matches_nothing(tmp_path):
    for number, columns in enumerate(({}, {"name": np.array(["", "?!"], object)})):
        folder = tmp_path / str(number)
        folder.mkdir()
        index_words(2, columns).save(folder)
        assert WordIndex.load(folder, 2).match("milk").items.tolist() == []


@pytest.fixture
def path(tmp_path):
    bundles.write(tmp_path / "7")
    return tmp_path / "7"


def test_a_bundle_maps_the_index_of_its_items(path):
    loaded = load_bundle(path)
    assert isinstance(loaded.words.postings, np.memmap)
    found, fresh = loaded.words.match("item 4"), index_words(len(loaded.items), loaded.items.text).match("item 4")
    assert found.items.tolist() == list(range(bundles.N_ITEMS))
    assert found.scores.tolist() == fresh.scores.tolist()
    assert found.scores.argmax() == 4


def test_a_bundle_from_before_there_was_search_is_indexed_when_it_is_loaded(path):
    mapped = load_bundle(path).words.match("item 4")
    held = json.loads((path / META).read_text())
    for name in FILES:
        (path / name).unlink()
        del held["files"][name]
    (path / META).write_text(json.dumps(held))
    with capture_logs() as logs:
        made = load_bundle(path).words.match("item 4")
    assert [line["event"] for line in logs] == ["words_indexed_at_load"]
    assert made.scores.tolist() == mapped.scores.tolist()


@pytest.mark.parametrize("name", FILES)
def test_an_altered_index_is_refused_by_name(path, name):
    (path / name).write_bytes((path / name).read_bytes() + b"\n")
    with pytest.raises(ModelError, match=f"bundle 7: {name} was altered"):
        load_bundle(path)
