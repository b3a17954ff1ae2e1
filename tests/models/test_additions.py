"""A bundle with items that came later: what it knew is as it was, and the new are found by what they share."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from support import bundles

from models import bm25
from models.additions import place, with_items
from models.bundle import Bundle, load_bundle
from models.evaluation.metrics import PAD
from models.item_texts import describe_items
from models.neighbour_table import NeighbourTable
from models.side_tables import SideTables

NEW = pa.table({"item_id": ["i05", "later", "odd"], "category": ["c0", "c1", None], "name": ["x", "Item 4", "Quince"]})
AT = np.array([7, 8, 9], np.int64)


@pytest.fixture
def bundle(tmp_path) -> Bundle:
    bundles.write(tmp_path / "v1")
    held = load_bundle(tmp_path / "v1")
    n = len(held.items)
    tables = SideTables(
        NeighbourTable(np.zeros((n, 3), np.int32), np.ones((n, 3), np.float32)), None, np.arange(n, dtype=np.int64),
        describe_items(held.items.text, held.popularity, lambda texts: bundles.drawn(len(texts), 4)),
    )  # fmt: skip
    return replace(held, tables=tables)


def test_what_was_known_is_as_it_was_and_an_item_that_is_known_is_not_added(bundle: Bundle) -> None:
    found, n = with_items(bundle, NEW, AT), len(bundle.items)
    assert [*found.items.ids] == [*bundle.items.ids, "later", "odd"]
    assert found.items.attributes(np.arange(n)) == bundle.items.attributes(np.arange(n))
    assert np.array_equal(found.vectors[:n], bundle.vectors)
    assert np.array_equal(found.encoder.items, found.vectors)
    assert (found.popularity[n:].tolist(), found.trending[n:].tolist()) == ([0, 0], [0, 0])
    assert found.items.attributes(np.array([n, n + 1])) == [
        {"category": "c1", "name": "Item 4"}, {"category": "", "name": "Quince"},
    ]  # fmt: skip
    queries = bundles.drawn(5, bundles.DIM)
    before = np.arange(n + 2) < n
    assert np.array_equal(found.index.search(queries, 4, before), bundle.index.search(queries, 4))
    for query in ("item", "item 7", "c1"):
        old, new = bundle.words.match(query), found.words.match(query, before)
        assert (old.items.tolist(), old.scores.tolist()) == (new.items.tolist(), new.scores.tolist())
    assert len(bundle.items) == n
    assert with_items(bundle, NEW.slice(0, 1), AT[:1]) is bundle


def test_it_stands_where_its_kind_stands(bundle: Bundle) -> None:
    """The mean of each attribute's own mean, over how many share it; nothing shared is the middle of all."""
    found, n = with_items(bundle, NEW, AT), len(bundle.items)
    kind = np.flatnonzero(bundle.items.column("category").having("c1"))
    own = bundle.vectors[kind].mean(0) / len(kind) + bundle.vectors[4]
    middle = bundle.vectors.mean(0)
    assert np.allclose(found.vectors[n], own / np.linalg.norm(own), atol=1e-6)
    assert np.allclose(found.vectors[n + 1], middle / np.linalg.norm(middle), atol=1e-6)
    assert found.index.search(found.vectors[n:], 1)[:, 0].tolist() == [n, n + 1]
    assert place(bundle.items, {"category": np.array(["c2"], object)}).shape == (1, bundles.DIM)


def test_it_is_found_by_its_words_and_is_of_the_age_of_its_arrival(bundle: Bundle) -> None:
    found, n = with_items(bundle, NEW, AT), len(bundle.items)
    assert found.words.match("quince").items.tolist() == [n + 1]
    every = found.words.match("item")
    score = dict(zip(every.items.tolist(), every.scores.tolist(), strict=True))
    assert n in score
    assert score[n] == pytest.approx(np.median([score[item] for item in range(n)]))
    tables = found.tables
    assert tables.first_seen is not None
    assert tables.first_seen[n:].tolist() == [8, 9]
    assert tables.neighbours is not None
    assert (tables.neighbours.items[n:] == PAD).all()
    assert tables.texts is not None
    assert tables.texts.texts[n:].tolist() == [tables.texts.texts[4], PAD]  # "Item 4, c1" is told word for word
    assert tables.texts.about(np.array([n], np.int32), np.ones(1, np.float32), 3).size


def test_words_that_are_added_are_what_a_new_index_finds() -> None:
    text = {"name": np.array(["red wine", "white wine", "bread"], object)}
    more = {"name": np.array(["rye bread", "", "green wine"], object)}
    whole = bm25.index_words(6, {"name": np.concatenate([text["name"], more["name"]])})
    added = bm25.index_words(3, text).plus(more)
    for query in ("wine", "bread", "rye", "green bread", "white", "none"):
        assert added.match(query).items.tolist() == whole.match(query).items.tolist()
        assert added.match(query).words.tolist() == whole.match(query).words.tolist()
    assert bm25.index_words(0, {}).plus({"name": np.array(["new"], object)}).match("new").items.tolist() == [0]
