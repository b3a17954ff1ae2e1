"""Training rows: what the ranker learns from, and is judged by."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from headwater.errors import DataError
from models.evaluation.metrics import Floats, Ints, top_k_grouped
from models.evaluation.metrics import ndcg as ndcg_of
from models.objectives import DEFAULT_OBJECTIVES, Objectives
from models.requests import AT, REQUEST, WEIGHT

Float32s = npt.NDArray[np.float32]
DEPTH = 10
SHOWN, POSITION = "shown", "position"
"""Columns of rows that come from impressions: whether the label means anything, and where the item stood, from 1."""


@dataclass(frozen=True)
class Rows:
    """Training rows, requests contiguous and by time.

    Attributes
    ----------
    features : (n, n_features) float32
    label, weight : (n,)
        Of the main objective; what each row stands for, where some were left out.
    group : (n,) int32
        Number of each row's request, ascending from 0.
    item : (n,) int32
        Number of each row's item among those of all rows.
    at_ms : (n_groups,)
    outcomes : each (n,) float64
        What the rows hold of the other objectives, by name.
    position : (n,) float32
        From 1, NaN where unknown; absent where rows have no positions.
    """

    features: Float32s
    label: npt.NDArray[np.int8]
    weight: Float32s
    group: Ints
    item: Ints
    at_ms: npt.NDArray[np.int64]
    outcomes: Mapping[str, Floats] = field(default_factory=dict)
    position: Float32s | None = None

    def __len__(self) -> int:
        return len(self.label)

    def take(self, groups: npt.NDArray[np.bool_]) -> "Rows":
        """Only the requests where ``groups`` (n_groups,) is true."""
        kept = groups[self.group]
        _, group = np.unique(self.group[kept], return_inverse=True)
        return Rows(
            self.features[kept], self.label[kept], self.weight[kept], group.astype(np.int32), self.item[kept],
            self.at_ms[groups], {name: held[kept] for name, held in self.outcomes.items()},
            None if self.position is None else self.position[kept],
        )  # fmt: skip

    def told_by(self, label: npt.ArrayLike) -> "Rows":
        """The same with another label (n,), whole numbers from 0."""
        return replace(self, label=np.asarray(label).astype(np.int8))

    def ndcg(self, scores: Float32s) -> Floats:
        """NDCG at 10 of each request among its own candidates (n_groups,); NaN where nothing was bought."""
        n = len(self.at_ms)
        lists = top_k_grouped(self.group, np.arange(len(self), dtype=np.int32), scores, n, DEPTH)
        hits = (lists >= 0) & (self.label[np.maximum(lists, 0)] > 0)
        return ndcg_of(hits, np.bincount(self.group, self.label > 0, minlength=n).astype(np.int32), DEPTH)

    def fingerprint(self) -> str:
        """Hex sha256 of all that is learned from."""
        digest = sha256()
        arrays = [self.features, self.label, self.weight, self.group, *self.outcomes.values()]
        for array in arrays if self.position is None else [*arrays, self.position]:
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def read_rows(
    directory: Path,
    feature_names: Sequence[str],
    declared: Objectives = DEFAULT_OBJECTIVES,
    only: pc.Expression | None = None,
) -> Rows:
    """Read what the training set job wrote; candidates that were logged but not shown have no label: see ``unshown``.

    Parameters
    ----------
    only
        Which rows, of whole requests.

    Raises
    ------
    DataError
        There are no rows, a column is missing, or a label or weight is no number.
    """
    if not any(directory.rglob("*.parquet")):
        raise DataError(f"{directory}: no training rows. Make them first: headwater training-set")
    source = ds.dataset(directory)
    there, label = set(source.schema.names), declared.objectives[declared.main].column
    missing = {REQUEST, AT, label, WEIGHT, "item_id", *feature_names} - there
    there -= set(feature_names)
    if missing:
        raise DataError(
            f"{directory}: no column {', '.join(sorted(missing))}. Make the rows anew: headwater training-set"
        )
    others = {
        name: objective.column
        for name, objective in declared.objectives.items()
        if name != declared.main and objective.column in there
    }
    own = [REQUEST, "item_id", AT, label, WEIGHT, *others.values(), *({POSITION} & there)]
    shown = pc.field(SHOWN) if SHOWN in there and declared.unshown == "left_out" else pc.scalar(True)
    table = source.to_table(
        columns=list(dict.fromkeys([*own, *feature_names])), filter=shown if only is None else shown & only
    )
    if not table.num_rows:
        raise DataError(f"{directory}: no training rows. Make them first: headwater training-set")
    ordered = table.sort_by([(AT, "ascending"), (REQUEST, "ascending"), ("item_id", "ascending")])
    return _rows(ordered, feature_names, label, others, POSITION in there)


def _rows(
    table: pa.Table, feature_names: Sequence[str], label: str, others: Mapping[str, str], has_position: bool
) -> Rows:
    codes = table[REQUEST].combine_chunks().dictionary_encode().indices.to_numpy()
    changed = np.append(True, codes[1:] != codes[:-1])
    features = np.empty((table.num_rows, len(feature_names)), np.float32)
    for column, name in enumerate(feature_names):
        features[:, column] = table[name].to_numpy()
    at_ms = table[AT].cast(pa.timestamp("ms", tz="UTC")).cast(pa.int64()).to_numpy()
    position = table[POSITION].cast(pa.float32()).to_numpy() if has_position else None
    return Rows(
        features, _numbers(table, label).astype(np.int8), _numbers(table, WEIGHT).astype(np.float32),
        (np.cumsum(changed) - 1).astype(np.int32),
        table["item_id"].combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int32), at_ms[changed],
        {name: _numbers(table, column) for name, column in others.items()}, position,
    )  # fmt: skip


def _numbers(table: pa.Table, column: str) -> npt.NDArray[Any]:
    """A label or weight (n,) float64, of which none may be absent."""
    try:
        held: npt.NDArray[np.float64] = table[column].cast(pa.float64()).to_numpy()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise DataError(f"{column}: {table[column].type} is no number, and a label or weight is. Cast it.") from None
    odd = int((~np.isfinite(held)).sum())
    if odd:
        raise DataError(f"{column}: {odd} of {len(held)} training rows have no finite number there. Drop or mend them.")
    return held
