"""LightGBM's trees as one loop over their splits, with the very bits of ``Booster.predict(raw_score=True)``.

A row starts at every leaf of a tree at once, one bit each, and a split that sends it right clears the leaves on its
left: the lowest bit that is left is the leaf that a walk from the root would have reached. So splits may come in any
order, and come by feature and threshold: a loop stops at the first threshold that none of its rows lies above
(QuickScorer, Lucchese and others, SIGIR 2015). Some hundred rows are judged side by side, by integers that are ordered
as their floats are, with what is missing below or above all others, where it goes; a tree's leaves lie in as many words
as it needs. Leaf values are added tree by tree, as LightGBM adds them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import int32, int64, types
from numba.extending import intrinsic

from headwater.errors import ModelError
from headwater.loops import compiled

Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int32]
Words = npt.NDArray[np.uint32]
Places = npt.NDArray[np.int64]

LANES, STEP, WORD = 272, 16, 32
"""Most rows judged side by side, of which there is a multiple of a step; leaves a word holds.

A tree has words in pairs, so that the usual tree is one read.
"""
ZERO = np.float32(1e-35)
"""What LightGBM takes for zero, on either side of it."""
NO_MISSING, ZERO_MISSING, NAN_MISSING = 0, 1, 2
RIGHT, LEFT, SET = 0, 1, 2
"""Where a missing value goes; or, that a category goes left if it is in the split's set."""
_CATEGORICAL, _DEFAULT_LEFT = 1, 2
_ALL = (1 << WORD) - 1
_EVERY = np.uint32(_ALL)
_LEAST, _MOST = np.int32(-(2**31)), np.int32(2**31 - 1)
_i8s = types.Array(types.int64, 1, "C")


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
        Order of the greatest float32 that goes left; the leaves that stay where a row goes right; the word that they
        lie in.
    set_ends : (splits + 1,), sets : (words,)
        Categories that go left, 32 a word; those of split i end at ``set_ends[i + 1]``.
    ends : (trees + 1,)
        Words of tree i end at ``ends[i + 1]``; the values of a word's leaves begin at 32 times its number.
    """

    n_features: int
    groups: Ints
    thresholds: Ints
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
        sizes, ends = _sizes(trees)
        leaves, begins, lasts = _laid_out(sizes, _numbers(trees, "left_child"), _numbers(trees, "right_child"))
        values = np.zeros(int(ends[-1]) * WORD)
        tree_of_leaf = np.repeat(np.arange(len(sizes)), sizes + 1)
        first_leaf = np.cumsum(sizes + 1) - sizes - 1
        place = np.arange(len(leaves)) - first_leaf[tree_of_leaf]
        held = _numbers(trees, "leaf_value", np.float64)
        values[ends[tree_of_leaf] * WORD + place] = held[leaves + first_leaf[tree_of_leaf]]
        node, slot, kept = _words(begins, lasts, np.repeat(ends[:-1], sizes))
        thresholds, kinds = _numbers(trees, "threshold", np.float64)[node], _kinds(trees)[node]
        order = np.lexsort((thresholds, *kinds.T[::-1]))
        kinds, thresholds, node = kinds[order], thresholds[order], node[order]
        set_ends, sets = _sets(trees, sizes, kinds, node)
        return cls(
            n_features=int(header["max_feature_idx"]) + 1,
            groups=_groups(kinds),
            thresholds=_orders(_floors(thresholds)),
            kept=kept[order],
            slots=slot[order],
            set_ends=set_ends,
            sets=sets,
            ends=ends.astype(np.int32),
            values=values,
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
        steps = max(1, -(-len(features) // STEP))
        blocks = -(-steps * STEP // LANES)
        found: Float64s = _scores(
            np.ascontiguousarray(features, np.float32), self.groups, self.thresholds, self.kept, self.slots,
            self.set_ends, self.sets, self.ends, self.values, -(-steps // blocks) * STEP,
        )  # fmt: skip
        return found


def _fields(part: str) -> dict[str, str]:
    return {name: value for name, _, value in (line.partition("=") for line in part.splitlines())}


def _not_covered(header: Mapping[str, str], trees: Sequence[Mapping[str, str]]) -> str | None:
    if header.get("num_tree_per_iteration") != "1":
        return f"it has {header.get('num_tree_per_iteration')} outputs"
    if "average_output" in header:
        return "it averages its trees"
    return "its leaves are linear" if any(tree.get("is_linear", "0") != "0" for tree in trees) else None


def _numbers(trees: Sequence[Mapping[str, str]], name: str, kind: Any = np.int64) -> npt.NDArray[Any]:
    """A field of all trees, end to end."""
    return np.fromstring(" ".join(tree.get(name, "") for tree in trees), kind, sep=" ")


def _sizes(trees: Sequence[Mapping[str, str]]) -> tuple[Places, Places]:
    """Splits of each tree (trees,), and where its words end (trees + 1,)."""
    sizes = np.array([int(tree["num_leaves"]) - 1 for tree in trees], np.int64)
    pairs = -(-(sizes + 1) // (2 * WORD))
    return sizes, np.concatenate([[0], np.cumsum(2 * pairs)])


@compiled(types.UniTuple(_i8s, 3)(_i8s, _i8s, _i8s))
def _laid_out(sizes: Places, left: Places, right: Places) -> tuple[Places, Places, Places]:
    """Each tree's leaves from left to right (leaves,), and of those which lie left of each split: first, end (splits,).

    A leaf is the complement of its number.
    """
    leaves, begins = np.empty(len(left) + len(sizes), np.int64), np.full(len(left), -1)
    lasts = np.empty(len(left), np.int64)
    waiting = np.empty(2 * len(left) + 2, np.int64)
    first = done = 0
    for size in sizes:
        begun, depth = done, 1
        waiting[0] = 0 if size else ~0
        while depth:
            depth -= 1
            node = waiting[depth]
            if node < 0:
                leaves[done] = ~node
                done += 1
            elif begins[first + node] < 0:
                begins[first + node] = done - begun
                waiting[depth], waiting[depth + 1], waiting[depth + 2] = right[first + node], node, left[first + node]
                depth += 3
            else:
                lasts[first + node] = done - begun
        first += size
    return leaves, begins, lasts


def _words(begins: Places, ends: Places, first_words: Places) -> tuple[Places, Words, Words]:
    """Of each word that holds some of the leaves on a split's left: the split, the word, and the bits of all others."""
    first, last = begins // WORD, (ends - 1) // WORD
    counts = last - first + 1
    node = np.repeat(np.arange(len(begins)), counts)
    word = first[node] + np.arange(len(node)) - np.repeat(np.cumsum(counts) - counts, counts)
    begin, end = np.maximum(begins[node] - word * WORD, 0), np.minimum(ends[node] - word * WORD, WORD)
    kept = _ALL ^ ((1 << end) - (1 << begin))
    return node, (first_words[node] + word).astype(np.uint32), kept.astype(np.uint32)


def _kinds(trees: Sequence[Mapping[str, str]]) -> Places:
    """Feature of each split, what is missing there, and where that goes (splits, 3)."""
    feature, decision = _numbers(trees, "split_feature"), _numbers(trees, "decision_type")
    is_set = decision & _CATEGORICAL > 0
    missing = np.where(is_set, NO_MISSING, decision >> 2 & 3)
    return np.stack([feature, missing, np.where(is_set, SET, np.where(decision & _DEFAULT_LEFT, LEFT, RIGHT))], axis=1)


def _sets(trees: Sequence[Mapping[str, str]], sizes: Places, kinds: Places, node: Places) -> tuple[Ints, Words]:
    """Where each split's categories end (splits + 1,), and they."""
    ends, sets = np.zeros(len(node) + 1, np.int64), [np.empty(0, np.uint32)]
    tree_of, first = np.repeat(np.arange(len(sizes)), sizes), np.cumsum(sizes) - sizes
    for at in np.flatnonzero(kinds[:, 2] == SET).tolist():
        tree = trees[tree_of[node[at]]]
        number = int(float(tree["threshold"].split()[node[at] - first[tree_of[node[at]]]]))
        bounds = tree["cat_boundaries"].split()
        sets.append(np.array(tree["cat_threshold"].split()[int(bounds[number]) : int(bounds[number + 1])], np.uint32))
        ends[at + 1] = len(sets[-1])
    return np.cumsum(ends).astype(np.int32), np.concatenate(sets)


def _groups(kinds: Places) -> Ints:
    """Runs of splits of one kind: it, the first of them, their end (groups, 5)."""
    begins = np.flatnonzero(np.r_[True, (kinds[1:] != kinds[:-1]).any(1)][: len(kinds)])
    return np.column_stack([kinds[begins], begins, np.append(begins[1:], len(kinds))[: len(begins)]]).astype(np.int32)


def _floors(thresholds: Float64s) -> Float32s:
    """Greatest float32 that is not above each: a float32 is at most the one exactly if it is at most the other."""
    with np.errstate(over="ignore"):
        near = thresholds.astype(np.float32)
    return np.where(near > thresholds, np.nextafter(near, np.float32(-np.inf)), near).astype(np.float32)


def _orders(numbers: Float32s) -> Ints:
    """Integers ordered as the numbers, of which none is missing, are."""
    bits = (numbers + np.float32(0)).view(np.int32)  # of the two zeros one is left
    return bits ^ (bits >> 31 & _MOST)


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
def _aligned(n: int) -> Any:
    """n words, to be filled, from the beginning of a line of the cache: else each vector would lie in two."""
    room = np.empty(n + 16, np.uint32)
    begin = -(room.ctypes.data // 4) % 16
    return room[begin : begin + n]


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
        _frozen(_f4, 2), _frozen(_i4, 2), _frozen(_i4), _frozen(_u4), _frozen(_u4), _frozen(_i4), _frozen(_u4),
        _frozen(_i4), _frozen(_f8), int64,
    )
)  # fmt: skip
def _scores(
    features: Float32s, groups: Ints, thresholds: Ints, kept: Words, slots: Words, set_ends: Ints, sets: Words,
    ends: Ints, values: Float64s, lanes: int,
) -> Float64s:  # fmt: skip
    """Score rows; a loop over ``lanes`` is vectorized where its body is simple, so what rarely differs lies around it.

    What all rows of a block answer alike is asked once: of ``common``, which has one row, instead of ``alive``.
    """
    n, out = len(features), np.empty(len(features), np.float64)
    bits, orders, leaves = _aligned(lanes).view(np.int32), _aligned(lanes).view(np.int32), _aligned(lanes)
    held, sums = bits.view(np.float32), _aligned(2 * lanes).view(np.float64)
    alive, common = _aligned(int64(ends[-1]) * lanes), _aligned(int64(ends[-1]))
    for begin in range(0, n, lanes):
        alive[:] = _EVERY
        common[:] = _EVERY
        for at in range(len(groups)):
            feature, missing, kind, first, end = groups[at]
            for lane in range(lanes):  # the last row stands in for those that a block lacks
                held[lane] = features[min(begin + lane, n - 1), feature]
            if kind != SET:
                no_zero, no_nan = np.float32(np.nan if missing == ZERO_MISSING else 0), missing != NAN_MISSING
                for lane in range(lanes):
                    value = held[lane]
                    held[lane] = no_zero if abs(value) <= ZERO or (no_nan and value != value) else value
            least, most, lost = _MOST, _LEAST, _LEAST if kind == LEFT else _MOST
            for lane in range(lanes):
                order = bits[lane] ^ (bits[lane] >> int32(31) & _MOST)
                orders[lane] = order = lost if held[lane] != held[lane] else order
                least, most = min(least, order), max(most, order)
            alike = least == most
            if kind == SET:
                judged, m = (common, 1) if alike else (alive, lanes)
                for split in range(first, end):
                    base, categories = m * int64(slots[split]), sets[set_ends[split] : set_ends[split + 1]]
                    for lane in range(m):
                        if not _is_in(held[lane], categories):
                            judged[base + lane] &= kept[split]
                continue
            for split in range(first, first + np.searchsorted(thresholds[first:end], most)):
                if alike:
                    common[slots[split]] &= kept[split]
                    continue
                base, word, threshold = lanes * int64(slots[split]), kept[split], thresholds[split]
                for lane in range(lanes):
                    alive[base + lane] &= word if orders[lane] > threshold else _EVERY
        sums[:] = 0
        for tree in range(len(ends) - 1):
            first = int64(ends[tree])
            shared = _pair(common, first, 1)
            if ends[tree + 1] == first + 2:
                for lane in range(lanes):
                    leaves[lane] = _lowest(_pair(alive, first * lanes + lane, lanes) & shared)
                for lane in range(lanes):
                    sums[lane] += values[first * WORD + int64(leaves[lane])]
                continue
            for lane in range(lanes):
                word, pair = first, _pair(alive, first * lanes + lane, lanes) & shared
                while pair == 0:
                    word += 2
                    pair = _pair(alive, word * lanes + lane, lanes) & _pair(common, word, 1)
                sums[lane] += values[word * WORD + int64(_lowest(pair))]
        last = min(lanes, n - begin)
        out[begin : begin + last] = sums[:last]
    return out
