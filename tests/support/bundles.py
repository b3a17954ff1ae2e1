"""A bundle of tiny models, written in well under a second."""

from pathlib import Path

import lightgbm
import numpy as np
import pyarrow as pa

from models.bundle import Meta, Parts, Trained, write_bundle
from models.calibration import fit
from models.encoder import UserEncoder, unit
from models.index import build
from models.ranker import Ranker

N_ITEMS, N_USERS, DIM, HIDDEN = 12, 3, 4, 5
FEATURES = ("user_purchases_7d", "item_purchases_7d")
SCHEMA_HASH = "00c0ffee00c0ffee"


def drawn(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).normal(size=shape).astype(np.float32)


def encoder(n_items: int = N_ITEMS) -> UserEncoder:
    return UserEncoder(
        items=unit(drawn(n_items, DIM)), user=drawn(N_USERS + 1, DIM), traits=np.zeros((N_USERS + 1, 1), np.int32),
        trait=drawn(1, DIM), hidden=drawn(3 * DIM, HIDDEN), hidden_bias=drawn(HIDDEN), out=drawn(HIDDEN, DIM),
        out_bias=drawn(DIM),
    )  # fmt: skip


def ranker(names: tuple[str, ...] = FEATURES, telling: int = 0) -> Ranker:
    features = drawn(60, len(names))
    data = lightgbm.Dataset(features, features[:, telling] > 0, feature_name=list(names))
    settings = {"objective": "binary", "min_data_in_leaf": 2, "num_leaves": 4, "num_threads": 1, "verbosity": -1}
    return Ranker(lightgbm.train(settings, data, num_boost_round=3))


def parts(**others) -> Parts:
    by_number = np.arange(N_ITEMS)
    items = pa.table(
        {
            "item_id": [f"i{n:02d}" for n in by_number],
            "category": [None if n == 0 else f"c{n % 3}" for n in by_number],
            "name": [f"Item {n}" for n in by_number],
        }
    )
    whole = {
        "encoder": encoder(), "index": build(others.get("encoder", encoder()).items), "items": items,
        "users": [f"u{n}" for n in range(N_USERS)], "ranker": ranker(),
        "calibrator": fit([-1.0, 0.0, 1.0], [0, 0, 1]), "popularity": by_number, "trending": by_number[::-1],
    }  # fmt: skip
    return Parts(**whole | others)


def trained(**others) -> Trained:
    whole = {
        "created_ms": 1_500, "service": "recommend", "feature_schema_hash": SCHEMA_HASH, "feature_names": FEATURES,
        "training_start_ms": 0, "training_end_ms": 1_000, "data_hash": "d0", "metrics": {"recall@10": 0.5},
    }  # fmt: skip
    return Trained(**whole | others)


def write(directory: Path, **others) -> Meta:
    return write_bundle(directory, trained(**others), parts())
