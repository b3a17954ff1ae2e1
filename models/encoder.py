"""The user tower at serving time: a few small matrix products, without torch."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from headwater.errors import ModelError
from models.evaluation.metrics import PAD, Ints

Float32s = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Times = npt.NDArray[np.int64]
Arrays = Mapping[str, npt.NDArray[np.generic]]

RECENT_DECAY = 0.97
"""Weight of a product in the user's state relative to the one bought just after it."""

UNIT_FLOOR = 1e-6
NORM_FLOOR = 1e-5
"""What torch's LayerNorm adds to the variance."""

HOUR_MS = 3_600_000
AGE_EDGES_MS = HOUR_MS * 2 ** np.arange(15, dtype=np.int64)
N_AGES = len(AGE_EDGES_MS) + 1
_SEQUENCE = "sequence_"


def age_buckets(age_ms: Times) -> Ints:
    """Number ages by their logarithm: 0 below an hour, then 1 below two, 2 below four, up to 15 from 16,384 on."""
    return np.searchsorted(AGE_EDGES_MS, age_ms, side="right").astype(np.int32)


def recent_weights(n_recent: int) -> Float32s:
    """Weight by place in the list, newest first (n_recent,)."""
    return np.power(RECENT_DECAY, np.arange(n_recent)).astype(np.float32)


def unit(rows: Float32s) -> Float32s:
    """Scale each row to length one."""
    length = np.sqrt(np.square(rows).sum(-1, keepdims=True))
    return np.asarray(rows / np.maximum(length, UNIT_FLOOR), np.float32)


@dataclass(frozen=True)
class SequenceEncoder:
    """What ``models.two_tower.users.RecentSequence`` computes.

    Attributes
    ----------
    now : (dim,)
    age : (N_AGES, dim)
    place : (n_recent, dim)
    norms : (n_blocks, 4, dim)
        Scale and shift before the attention, scale and shift before the layers.
    joined, joined_bias : (n_blocks, dim, 3, n_heads, dim / n_heads), (n_blocks, 3, n_heads, dim / n_heads)
        Query, key and value of each head.
    out, out_bias, wide, wide_bias, narrow, narrow_bias : (n_blocks, …)
    after : (2, dim)
        Scale and shift of the last norm.
    """

    now: Float32s
    age: Float32s
    place: Float32s
    norms: Float32s
    joined: Float32s
    joined_bias: Float32s
    out: Float32s
    out_bias: Float32s
    wide: Float32s
    wide_bias: Float32s
    narrow: Float32s
    narrow_bias: Float32s
    after: Float32s

    def state(self, recent: Float32s, present: Bools, ages: Ints) -> Float32s:
        """State of the present (n, dim) from vectors of recent products (n, n_recent, dim), newest first."""
        n, length, dim = recent.shape
        told = recent + self.age[ages] + self.place[:length]
        states = np.concatenate([np.broadcast_to(self.now, (n, 1, dim)), told], 1)
        there = np.pad(present, ((0, 0), (1, 0)), constant_values=True)
        places = np.arange(length + 1)
        seen = ((places >= places[:, None]) & there[:, None]) | (places == places[:, None])
        for block in range(len(self.norms)):
            states = self._block(block, states, seen)
        return np.asarray(_norm(states[:, 0], *self.after) / np.sqrt(np.float32(dim)), np.float32)

    def _block(self, at: int, states: Float32s, seen: Bools) -> Float32s:
        parts = np.einsum("nle,ekhd->knhld", _norm(states, *self.norms[at, :2]), self.joined[at], optimize=True)
        query, key, value = parts + self.joined_bias[at][:, None, :, None]
        fit = query @ key.swapaxes(-1, -2) / np.sqrt(np.float32(query.shape[-1]))
        fit = np.where(seen[:, None], fit, -np.inf)
        share = np.exp(fit - fit.max(-1, keepdims=True))
        mixed = (share / share.sum(-1, keepdims=True)) @ value  # (n, n_heads, length, dim / n_heads)
        states = states + mixed.swapaxes(1, 2).reshape(states.shape) @ self.out[at] + self.out_bias[at]
        inner = np.maximum(_norm(states, *self.norms[at, 2:]) @ self.wide[at] + self.wide_bias[at], 0)
        return np.asarray(states + inner @ self.narrow[at] + self.narrow_bias[at], np.float32)


def _norm(rows: Float32s, scale: Float32s, shift: Float32s) -> Float32s:
    centred = rows - rows.mean(-1, keepdims=True)
    deviation = np.sqrt(np.square(centred).mean(-1, keepdims=True) + NORM_FLOOR)
    return np.asarray(centred / deviation * scale + shift, np.float32)


@dataclass(frozen=True)
class UserEncoder:
    """What ``models.two_tower.users.UserTower`` computes; a test holds them equal.

    Attributes
    ----------
    items : (n_items, dim), or (n_items, dim + rank + 1) where there is a profile
        Unit vectors of the item tower, as the index holds them. With a profile, those of the tower, shortened alike,
        then the factors of :mod:`models.two_tower.factors`, then what these lack to one length.
    user : (n_users + 1, dim)
        Row 0 stands for users never seen.
    traits : (n_users + 1, n_traits)
        Rows of ``trait`` that describe each user.
    trait : (n_trait_values, dim)
    hidden, hidden_bias, out, out_bias
        The two layers over (user, traits, recent), side by side.
    sequence
        Absent where the mean of the recent products is all that is told of them.
    profile : (n_users + 1, rank)
        What all that a user ever had says against the items' factors; absent where the towers have learned all.
    """

    items: Float32s
    user: Float32s
    traits: Ints
    trait: Float32s
    hidden: Float32s
    hidden_bias: Float32s
    out: Float32s
    out_bias: Float32s
    sequence: SequenceEncoder | None = None
    profile: Float32s | None = None

    @property
    def dim(self) -> int:
        return int(self.items.shape[1])

    def encode(self, users: Ints, recent: Ints, age_ms: Times | None = None) -> Float32s:
        """Unit vectors (n, self.dim).

        Parameters
        ----------
        users : (n,)
            Dense, -1 for unknown ones.
        recent : (n, n_recent)
            Distinct products, newest first, padded with ``PAD``.
        age_ms : (n, n_recent)
            How long ago each was bought last; whatever stands at a padded place is not looked at.

        Raises
        ------
        ModelError
            There are no ages, but a sequence that reads them.
        """
        rows = users + 1
        state = self._state(recent, age_ms)
        who = self.user[rows]
        known = self.trait[self.traits[rows]].sum(1)
        layers = np.concatenate([who, known, state], 1)
        inner = np.maximum(layers @ self.hidden + self.hidden_bias, 0)
        learned = unit(who + state + inner @ self.out + self.out_bias)
        if self.profile is None:
            return learned
        return unit(np.concatenate([learned, self.profile[rows], np.zeros((len(rows), 1), np.float32)], 1))

    def _state(self, recent: Ints, age_ms: Times | None) -> Float32s:
        """Weighted mean of the recent products' vectors (n, dim), zero for none, and what their sequence adds."""
        present = recent != PAD
        vectors = self.items[np.maximum(recent, 0)]
        if self.profile is not None:
            vectors = unit(vectors[..., : self.user.shape[1]])
        weights = present.astype(np.float32) * recent_weights(recent.shape[1])
        mean = weights / np.maximum(weights.sum(1, keepdims=True), UNIT_FLOOR)
        state = np.asarray(np.einsum("qr,qre->qe", mean, vectors), np.float32)
        if self.sequence is None:
            return state
        if age_ms is None:
            raise ModelError("user tower: reads how long ago products were bought, but was not told. Pass their ages.")
        length = len(self.sequence.place)
        ages = age_buckets(np.where(present, age_ms, 0))[:, :length]
        return state + self.sequence.state(vectors[:, :length], present[:, :length], ages)

    def arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """Everything but the item vectors, which are kept in a file that is mapped."""
        every = {name.name: getattr(self, name.name) for name in fields(self) if name.name not in ("items", "sequence")}
        own = {name: array for name, array in every.items() if array is not None}
        sequence = {} if self.sequence is None else vars(self.sequence)
        return own | {f"{_SEQUENCE}{name}": array for name, array in sequence.items()}

    @classmethod
    def from_arrays(cls, items: Float32s, arrays: Arrays) -> "UserEncoder":
        """Read what ``arrays`` gave; without a sequence where there are none of its arrays."""
        own = {name: array for name, array in arrays.items() if not name.startswith(_SEQUENCE)}
        told = {name.removeprefix(_SEQUENCE): array for name, array in arrays.items() if name not in own}
        sequence = SequenceEncoder(**told) if told else None  # type: ignore[arg-type]  # arrays of one file, by name
        return cls(items, sequence=sequence, **own)  # type: ignore[arg-type]
