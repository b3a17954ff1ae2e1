"""A generated shop of any size: who bought what and when, as the store holds it, and a bundle of models over it.

Purchases are as skewed as in the example's data: few products make most of them, and a household's products are mostly
its own. Tiles are those that the stream would have written for these purchases, folded here in numpy and packed by
the store's own codec. Nothing is learned: vectors are drawn around common points, and trees are grown on what the
reader gives for drawn pairs, so that their splits lie where values are.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pyarrow as pa
import redis
from numpy.typing import NDArray

from benchmarks.ann_data import blocks
from headwater import folds
from headwater.clock import SystemClock
from headwater.online import codec
from headwater.online.reader import OnlineReader
from headwater.online.writer import Key, OnlineWriter
from headwater.plan import DAY_MS, BatchView, FeaturePlan, Table, View
from models.bundle import Parts, Trained, write_bundle
from models.calibration import fit
from models.encoder import UserEncoder
from models.index import build
from models.ranker import Ranker

DIM, LEAVES = 64, 63
CATEGORIES, WORDS = 300, 500
OWN, TRIPS, DAYS = 150, 4, 360
"""Products a household has had, the median; purchases of each, on average; and over how many days they are spread."""
SALES = 0.2
"""Purchases of the product that is bought most within ninety days, by the number of products; the k-th has a k-th."""
ROWS = 20_000
AT_ONCE = 100_000
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Purchases:
    """Purchases of one day by one owner, each (n,): whose, when the last of them was, how many, their value."""

    owner: Ints
    at_ms: Ints
    count: Ints
    micros: Ints

    def of(self, owner: Ints) -> "Purchases":
        """The same under other owners."""
        return Purchases(owner, self.at_ms, self.count, self.micros)

    def take(self, rows: NDArray[np.bool_]) -> "Purchases":
        return Purchases(self.owner[rows], self.at_ms[rows], self.count[rows], self.micros[rows])


@dataclass(frozen=True)
class Shop:
    """``n_items`` products, the first bought most, and ``n_users`` households, at an instant, epoch ms."""

    n_items: int
    n_users: int
    now_ms: int
    seed: int = 5

    @cached_property
    def own(self) -> tuple[Ints, Ints]:
        """Household and product of each habit."""
        rng = np.random.default_rng(self.seed)
        sizes = np.minimum(rng.lognormal(np.log(OWN), 0.7, self.n_users).astype(int) + 1, self.n_items // 4)
        user = np.repeat(np.arange(self.n_users), sizes)
        item = (self.n_items * rng.random(len(user)) ** 3).astype(np.int64)
        pairs = np.unique(user * self.n_items + item)
        return pairs // self.n_items, pairs % self.n_items

    @cached_property
    def bought(self) -> tuple[Purchases, Ints]:
        """Purchases, whose owner is the household, and the product of each."""
        rng = np.random.default_rng(self.seed + 1)
        user, item = self.own
        times = 1 + rng.poisson(TRIPS - 1, len(user))
        owner, product = np.repeat(user, times), np.repeat(item, times)
        at = self.now_ms - 1 - (DAYS * DAY_MS * rng.random(len(owner)) ** 1.5).astype(np.int64)
        value = rng.integers(500_000, 20_000_000, len(owner))
        return Purchases(owner, at, np.ones(len(owner), np.int64), value), product

    def sold(self, begin: int, end: int) -> Purchases:
        """What everyone else bought of the products from one number to another, a row a day of the last ninety."""
        rng = np.random.default_rng([self.seed, begin])
        mean = SALES * self.n_items / 90 / (1 + np.arange(begin, end))
        items, days = np.nonzero(rng.random((end - begin, 90)) < -np.expm1(-mean)[:, None])
        count = np.maximum(1, rng.poisson(mean[items]))
        at = self.now_ms - 1 - days * DAY_MS - rng.integers(0, DAY_MS // 2, len(days))
        return Purchases(items + begin, at, count, count * 2_500_000)

    @property
    def users(self) -> list[str]:
        return [f"h{number}" for number in range(self.n_users)]

    @property
    def items(self) -> list[str]:
        return [f"p{number}" for number in range(self.n_items)]


def fill(client: redis.Redis, plan: FeaturePlan, shop: Shop) -> None:
    """Write the example's views of the shop."""
    writer = OnlineWriter(client, plan.project)
    bought, product = shop.bought
    category = product % CATEGORIES
    users, items, categories = shop.users, shop.items, [f"c{number}" for number in range(CATEGORIES)]
    _write(writer, plan, "user_activity", [(user,) for user in users], bought, product)
    for view, other, names in (
        ("user_item_activity", product, items), ("user_category_activity", category, categories),
    ):  # fmt: skip
        pairs, owner = np.unique(bought.owner * shop.n_items + other, return_inverse=True)
        keys: list[Key] = [(users[pair // shop.n_items], names[pair % shop.n_items]) for pair in pairs.tolist()]
        _write(writer, plan, view, keys, bought.of(owner), product)
    for begin in range(0, shop.n_items, AT_ONCE):
        end = min(begin + AT_ONCE, shop.n_items)
        sold = shop.sold(begin, end)
        _write(writer, plan, "item_activity", [(item,) for item in items[begin:end]], sold.of(sold.owner - begin))
    rng = np.random.default_rng(shop.seed + 2)
    promoted = rng.permutation(shop.n_items)[: shop.n_items // 20]
    for view, owners in (("household_profile", users), ("item_promotion", [items[at] for at in promoted.tolist()])):
        _write_rows(writer, plan, view, owners, rng, shop.now_ms)


def _write(
    writer: OnlineWriter, plan: FeaturePlan, name: str, keys: list[Key], made: Purchases, product: Ints | None = None
) -> None:
    view = plan.view(name)
    assert isinstance(view, View)
    for table in view.tables:
        owner, columns, groups = folded(table, made)
        payloads = None if table.kind == "fixed" else [_payload(table, made, rows, product) for rows in groups]
        for begin in range(0, len(owner), AT_ONCE):
            part = slice(begin, begin + AT_ONCE)
            some = {column: values[part] for column, values in columns.items()}
            told = [keys[at] for at in owner[part].tolist()]
            writer.write_tiles(table, view.join_keys, told, some, None if payloads is None else payloads[part])


def folded(table: Table, made: Purchases) -> tuple[Ints, dict[str, Ints], Iterator[Ints]]:
    """Owners of a table's tiles (n_tiles,), the tiles' columns, each (n_tiles,), and the rows folded into each."""
    tile = np.zeros(len(made.owner), np.int64) if table.hop_ms is None else made.at_ms // table.hop_ms
    reach = 0 if table.hop_ms is None else int(made.at_ms.max()) // table.hop_ms - table.keep
    order = np.lexsort((made.at_ms, tile, made.owner))
    order = order[tile[order] >= reach]  # what nobody can read is not kept
    owner, tile = made.owner[order], tile[order]
    starts = np.flatnonzero(np.r_[True, (owner[1:] != owner[:-1]) | (tile[1:] != tile[:-1])])
    at, count, value = made.at_ms[order], made.count[order], made.micros[order]
    counts = np.add.reduceat(count, starts)
    told = {
        "count": counts, "sum": np.add.reduceat(value, starts), "min": np.minimum.reduceat(at, starts),
        "max": np.maximum.reduceat(at, starts),
    }  # fmt: skip
    columns = {
        "tile": tile[starts], "slot": np.full(len(starts), codec.LIVE), "count": counts, "newest": told["max"],
        "ingest": told["max"], "hash": np.arange(len(starts)),
    }  # fmt: skip
    columns |= {partial.name: told[partial.kind] for partial in table.partials}
    return owner[starts], columns, (rows for rows in np.split(order, starts[1:]))


def _payload(table: Table, made: Purchases, rows: Ints, product: Ints | None) -> bytes:
    """Baskets of a day, or the last products of it."""
    if table.kind == "distinct":
        return folds.sketch({f"{made.owner[row]}-{made.at_ms[row] // DAY_MS}" for row in rows.tolist()})
    assert product is not None
    last = rows.tolist()[-(table.n or 0) :]
    return codec.pack_entries((int(made.at_ms[row]), f"e{row}", f"p{product[row]}") for row in last)


def _write_rows(
    writer: OnlineWriter, plan: FeaturePlan, name: str, owners: list[str], rng: np.random.Generator, now_ms: int
) -> None:
    view = plan.view(name)
    assert isinstance(view, BatchView)
    columns: dict[str, NDArray[Any]] = {
        column.name: rng.integers(0, 6, len(owners)) if column.dtype == "int64" else rng.random(len(owners))
        for column in view.columns
    }
    times = np.full(len(owners), now_ms - DAY_MS)
    writer.write_rows(view, [(owner,) for owner in owners], codec.encode_rows(view, times, times, columns))


def publish(folder: Path, client: redis.Redis, plan: FeaturePlan, shop: Shop, trees: int, seed: int = 0) -> None:
    """Write a bundle over the shop, whose trees read what the store has."""
    service, rng = plan.service("recommend"), np.random.default_rng(seed)
    vectors = np.concatenate([block for _, block in blocks(shop.n_items, DIM, seed=3)])
    user, item = shop.own
    taste = np.zeros((shop.n_users + 1, DIM), np.float32)
    np.add.at(taste, user + 1, vectors[item])
    taste /= np.maximum(np.linalg.norm(taste, axis=1, keepdims=True), 1e-6)
    small = 0.05 * rng.standard_normal((3 * DIM + DIM, DIM)).astype(np.float32)
    nobody, none = np.zeros((shop.n_users + 1, 1), np.int32), np.zeros((1, DIM), np.float32)
    encoder = UserEncoder(vectors, taste, nobody, none, small[: 3 * DIM], small[0], small[3 * DIM :], small[1])
    number, words = np.arange(shop.n_items), [f"word{at}" for at in range(WORDS)]
    names = [f"{words[at % WORDS]} {words[at // WORDS % WORDS]}" for at in range(shop.n_items)]
    items = pa.table({"item_id": shop.items, "name": names, "category": [f"c{at % CATEGORIES}" for at in number]})
    ranker = _ranker(client, plan, shop, trees, seed)
    trained = Trained(
        created_ms=shop.now_ms, service=service.name, feature_schema_hash=plan.schema_hash(service.name),
        feature_names=service.names, feature_hashes=plan.feature_hashes(service.name), training_start_ms=0,
        training_end_ms=shop.now_ms, data_hash="generated",
    )  # fmt: skip
    write_bundle(folder, trained, Parts(
        encoder=encoder, index=build(vectors), items=items, users=shop.users, ranker=ranker,
        calibrator=fit([-4.0, 0.0, 4.0], [0, 0, 1]),
        popularity=1.0 / (1 + number), trending=rng.permutation(shop.n_items) / shop.n_items,
    ))  # fmt: skip


def _ranker(client: redis.Redis, plan: FeaturePlan, shop: Shop, trees: int, seed: int) -> Ranker:
    """Trees of pairs of which half are habits, for a target that depends on every column."""
    rng = np.random.default_rng(seed + 1)
    user, item = shop.own
    habits = rng.integers(0, len(user), ROWS // 2)
    who = np.r_[user[habits], rng.integers(0, shop.n_users, ROWS // 2)]
    what = np.r_[item[habits], (shop.n_items * rng.random(ROWS // 2) ** 3).astype(np.int64)]
    reader, found = OnlineReader(client, plan, SystemClock()), []
    for part in np.array_split(np.argsort(who, kind="stable"), ROWS // 500):
        entities = {
            "user_id": [f"h{at}" for at in who[part]], "item_id": [f"p{at}" for at in what[part]],
            "category": [f"c{at % CATEGORIES}" for at in what[part]],
        }  # fmt: skip
        found.append(reader.read_matrix("recommend", entities).values)
    features = np.concatenate(found)
    spread = np.nan_to_num(np.nanstd(features, axis=0)) + 1e-6
    target = np.tanh(np.nan_to_num(features / spread)) @ rng.normal(size=features.shape[1])
    told = {"objective": "regression", "num_leaves": LEAVES, "verbose": -1, "num_threads": 1, "seed": 1}
    names = list(plan.service("recommend").names)
    data = lightgbm.Dataset(features, target + rng.normal(0, 1, len(target)), feature_name=names)
    return Ranker(lightgbm.train(told, data, trees))
