"""LightGBM's trees as one loop over their splits, with the very bits of ``Booster.predict(raw_score=True)``.

A row starts at every leaf of a tree at once, one bit each, and a split that sends it right clears the leaves on its
left: the lowest bit that is left is the leaf that a walk from the root would have reached. So splits may come in any
order, and come by feature and threshold: a loop stops at the first threshold that none of its rows lies above
(QuickScorer, Lucchese and others, SIGIR 2015). Some rows are judged side by side, and a tree's leaves lie in as many
words as it needs. Leaf values are added tree by tree, as LightGBM adds them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import int64, types
from numba.extending import intrinsic

from headwater.errors import ModelError
from headwater.loops import compiled

Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int32]
Words = npt.NDArray[np.uint32]

LANES, WORD = 64, 32
"""Rows judged side by side; leaves a word holds. A tree has words in pairs, so that the usual tree is one read."""
ZERO = np.float32(1e-35)
"""What LightGBM takes for zero, on either side of it."""
NO_MISSING, ZERO_MISSING, NAN_MISSING = 0, 1, 2
RIGHT, LEFT, SET = 0, 1, 2
"""Where a missing value goes; or, that a category goes left if it is in the split's set."""
_CATEGORICAL, _DEFAULT_LEFT = 1, 2
_ALL = (1 << WORD) - 1
_EVERY = np.uint32(_ALL)


class NotCoveredError(ModelError):
    """The model is of a kind that only LightGBM itself scores."""


@dataclass(frozen=True, slots=True)
class CompiledTrees:
    """A forest laid out for the loop.

    Attributes
    ----------
    groups : (groups, 5)
        Splits that ask one feature in one way, by rising threshold: feature, what is missing, kind, first split, end.
    thresholds, kept, slots : (splits,)
        The greatest float32 that goes left; the leaves that stay where a row goes right; the word that they lie in.
    set_ends : (splits + 1,), sets : (words,)
        Categories that go left, 32 a word; those of split i end at ``set_ends[i + 1]``.
    ends : (trees + 1,)
        Words of tree i end at ``ends[i + 1]``; the values of a word's leaves begin at 32 times its number.
    """

    n_features: int
    groups: Ints
    thresholds: Float32s
    kept: Words
    slots: Words
    set_ends: Ints
    sets: Words
    ends: Ints
    values: Float64s

    @classmethod
    def of(cls, text: str) -> "CompiledTrees":
        """Lay out a model given in LightGBM's text format.

        Raises
        ------
        NotCoveredError
            It has several outputs, linear leaves, or averages its trees.
        """
        header, *trees = [_fields(part) for part in text.partition("\nend of trees")[0].split("\nTree=")]
        if reason := _not_covered(header, trees):
            raise NotCoveredError(f"ranker: {reason}, which is not compiled. LightGBM scores it, several times slower.")
        ends, values, splits = [0], [np.empty(0)], []
        for tree in trees:
            leaves, held = _laid_out(tree, ends[-1])
            padded = np.zeros(-(-len(leaves) // (2 * WORD)) * 2 * WORD)
            padded[: len(leaves)] = np.array(tree["leaf_value"].split(), np.float64)[leaves]
            values.append(padded)
            ends.append(ends[-1] + len(padded) // WORD)
            splits += held
        splits.sort(key=lambda split: (*split.group, split.threshold))
        return cls(
            n_features=int(header["max_feature_idx"]) + 1,
            groups=_groups(splits),
            thresholds=_floors(np.array([split.threshold for split in splits], np.float64)),
            kept=np.array([split.kept for split in splits], np.uint32),
            slots=np.array([split.slot for split in splits], np.uint32),
            set_ends=np.cumsum([0, *(len(split.categories) for split in splits)]).astype(np.int32),
            sets=np.array([word for split in splits for word in split.categories], np.uint32),
            ends=np.array(ends, np.int32),
            values=np.concatenate(values),
        )

    def raw_scores(self, features: Float32s) -> Float64s:
        """Sum of the leaves that each row reaches (n,), from features (n, n_features).

        Raises
        ------
        ModelError
            The rows have another number of features.
        """
        if features.ndim != 2 or features.shape[1] != self.n_features:
            raise ModelError(f"features: {features.shape} is not (rows, {self.n_features}). Build them as in training.")
        found: Float64s = _scores(
            np.ascontiguousarray(features, np.float32), self.groups, self.thresholds, self.kept, self.slots,
            self.set_ends, self.sets, self.ends, self.values, LANES,
        )  # fmt: skip
        return found


@dataclass(frozen=True, slots=True)
class _Split:
    """A split, or the part of it that concerns one word of its tree's leaves."""

    group: tuple[int, int, int]
    threshold: float
    categories: tuple[int, ...]
    slot: int
    kept: int


def _fields(part: str) -> dict[str, str]:
    return {name: value for name, _, value in (line.partition("=") for line in part.splitlines())}


def _not_covered(header: Mapping[str, str], trees: Sequence[Mapping[str, str]]) -> str | None:
    if header.get("num_tree_per_iteration") != "1":
        return f"it has {header.get('num_tree_per_iteration')} outputs"
    if "average_output" in header:
        return "it averages its trees"
    return "its leaves are linear" if any(tree.get("is_linear", "0") != "0" for tree in trees) else None


def _laid_out(tree: Mapping[str, str], first_word: int) -> tuple[list[int], list[_Split]]:
    """Leaves from left to right, and what each split does to the words that hold them."""
    left, right, features, decisions = (
        list(map(int, tree.get(name, "").split()))
        for name in ("left_child", "right_child", "split_feature", "decision_type")
    )
    bounds, words = (list(map(int, tree.get(name, "").split())) for name in ("cat_boundaries", "cat_threshold"))
    thresholds = list(map(float, tree.get("threshold", "").split()))
    leaves: list[int] = []
    begins: dict[int, int] = {}
    splits: list[_Split] = []
    waiting = [0] if left else [~0]  # a leaf is the complement of its number
    while waiting:
        node = waiting.pop()
        if node < 0:
            leaves.append(~node)
        elif node not in begins:
            begins[node] = len(leaves)
            waiting += [right[node], node, left[node]]
        else:
            group = _group(features[node], decisions[node])
            categories: tuple[int, ...] = ()
            if group[2] == SET:
                at = int(thresholds[node])
                categories = tuple(words[bounds[at] : bounds[at + 1]])
            for word, kept in _kept(begins[node], len(leaves)):
                splits.append(_Split(group, thresholds[node], categories, first_word + word, kept))
    return leaves, splits


def _group(feature: int, decision: int) -> tuple[int, int, int]:
    if decision & _CATEGORICAL:
        return feature, NO_MISSING, SET
    return feature, decision >> 2 & 3, LEFT if decision & _DEFAULT_LEFT else RIGHT


def _kept(begin: int, end: int) -> Iterator[tuple[int, int]]:
    """Words that hold the leaves from ``begin`` to ``end``, each with the bits of all others."""
    for word in range(begin // WORD, (end - 1) // WORD + 1):
        first, last = max(begin - word * WORD, 0), min(end - word * WORD, WORD)
        yield word, _ALL ^ ((1 << last) - (1 << first))


def _groups(splits: Sequence[_Split]) -> Ints:
    found, first = [], 0
    for group, held in groupby(splits, lambda split: split.group):
        end = first + len(list(held))
        found.append((*group, first, end))
        first = end
    return np.array(found, np.int32).reshape(-1, 5)


def _floors(thresholds: Float64s) -> Float32s:
    """Greatest float32 that is not above each: a float32 is at most the one exactly if it is at most the other."""
    with np.errstate(over="ignore"):
        near = thresholds.astype(np.float32)
    return np.where(near > thresholds, np.nextafter(near, np.float32(-np.inf)), near).astype(np.float32)


@intrinsic  # type: ignore[untyped-decorator]  # numba's, which has no types
def _lowest(typing_context: Any, word: Any) -> Any:
    """Place of the lowest bit that is set, of which there is one."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], context.get_constant(types.boolean, 1))

    return types.uint64(types.uint64), generate


def _frozen(kind: Any, dimensions: int = 1) -> Any:
    return types.Array(kind, dimensions, "C", readonly=True)


_i4, _u4, _f4, _f8 = types.int32, types.uint32, types.float32, types.float64


@compiled()
def _pair(alive: Words, at: int, lanes: int) -> Any:
    """Leaves that are left in a word and the next one of a row, 64 bits."""
    return np.uint64(alive[at]) | np.uint64(alive[at + lanes]) << np.uint64(WORD)


@compiled()
def _is_in(value: float, words: Words) -> Any:
    """Whether a category, cut to an integer as C does, is in a set; what is no category is in none."""
    if not -1 < value < 32 * len(words):
        return False
    category = int64(value)
    return words[category // 32] >> np.uint32(category % 32) & np.uint32(1) != 0


@compiled(
    types.Array(_f8, 1, "C")(
        _frozen(_f4, 2), _frozen(_i4, 2), _frozen(_f4), _frozen(_u4), _frozen(_u4), _frozen(_i4), _frozen(_u4),
        _frozen(_i4), _frozen(_f8), int64,
    )
)  # fmt: skip
def _scores(
    features: Float32s, groups: Ints, thresholds: Float32s, kept: Words, slots: Words, set_ends: Ints, sets: Words,
    ends: Ints, values: Float64s, lanes: int,
) -> Float64s:  # fmt: skip
    """Score rows; a loop over ``lanes`` is vectorized, where one over a constant would be unrolled instead."""
    n, out = len(features), np.empty(len(features), np.float64)
    held, sums = np.empty(lanes, np.float32), np.empty(lanes, np.float64)
    alive = np.empty(int64(ends[-1]) * lanes, np.uint32)
    for begin in range(0, n, lanes):
        alive[:] = _EVERY
        for at in range(len(groups)):
            feature, missing, kind, first, end = groups[at]
            most, odd = np.float32(-np.inf), False
            for lane in range(lanes):  # the last row stands in for those that a block lacks
                value = features[min(begin + lane, n - 1), feature]
                if kind != SET:
                    if abs(value) <= ZERO or (missing != NAN_MISSING and np.isnan(value)):
                        value = np.float32(np.nan if missing == ZERO_MISSING else 0)
                    odd |= np.isnan(value)
                    most = max(most, value) if value == value else most
                held[lane] = value
            if kind == SET:
                for split in range(first, end):
                    base, categories = lanes * int64(slots[split]), sets[set_ends[split] : set_ends[split + 1]]
                    for lane in range(lanes):
                        if not _is_in(held[lane], categories):
                            alive[base + lane] &= kept[split]
            elif kind == RIGHT and odd:
                for split in range(first, end):
                    base, word, threshold = lanes * int64(slots[split]), kept[split], thresholds[split]
                    for lane in range(lanes):
                        alive[base + lane] &= _EVERY if held[lane] <= threshold else word
            else:
                for split in range(first, first + np.searchsorted(thresholds[first:end], most)):
                    base, word, threshold = lanes * int64(slots[split]), kept[split], thresholds[split]
                    for lane in range(lanes):
                        alive[base + lane] &= word if held[lane] > threshold else _EVERY
        sums[:] = 0
        for tree in range(len(ends) - 1):
            first = int64(ends[tree])
            for lane in range(lanes):
                word, pair = first, _pair(alive, first * lanes + lane, lanes)
                while pair == 0:
                    word += 2
                    pair = _pair(alive, word * lanes + lane, lanes)
                sums[lane] += values[word * WORD + int64(_lowest(pair))]
        last = min(lanes, n - begin)
        out[begin : begin + last] = sums[:last]
    return out
