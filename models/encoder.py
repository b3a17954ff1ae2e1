"""The user tower at serving time: a few small matrix products, without torch."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.evaluation.metrics import PAD, Ints

Float32s = npt.NDArray[np.float32]
Arrays = Mapping[str, npt.NDArray[np.generic]]

RECENT_DECAY = 0.97
"""Weight of a product in the user's state relative to the one bought just after it."""

UNIT_FLOOR = 1e-6


def recent_weights(n_recent: int) -> Float32s:
    """Weight by place in the list, newest first (n_recent,)."""
    return np.power(RECENT_DECAY, np.arange(n_recent)).astype(np.float32)


def unit(rows: Float32s) -> Float32s:
    """Scale each row to length one."""
    length = np.sqrt(np.square(rows).sum(-1, keepdims=True))
    return np.asarray(rows / np.maximum(length, UNIT_FLOOR), np.float32)


@dataclass(frozen=True)
class UserEncoder:
    """What ``models.two_tower.UserTower`` computes; a test holds them equal.

    Attributes
    ----------
    items : (n_items, dim)
        Unit vectors of the item tower, as the index holds them.
    user : (n_users + 1, dim)
        Row 0 stands for users never seen.
    traits : (n_users + 1, n_traits)
        Rows of ``trait`` that describe each user.
    trait : (n_trait_values, dim)
    hidden, hidden_bias, out, out_bias
        The two layers over (user, traits, recent), side by side.
    """

    items: Float32s
    user: Float32s
    traits: Ints
    trait: Float32s
    hidden: Float32s
    hidden_bias: Float32s
    out: Float32s
    out_bias: Float32s

    @property
    def dim(self) -> int:
        return int(self.items.shape[1])

    def encode(self, users: Ints, recent: Ints) -> Float32s:
        """Unit vectors (n, dim) of dense users (n,), -1 for unknown, with recent products (n, n_recent), padded."""
        rows = users + 1
        state = self._state(recent)
        who = self.user[rows]
        known = self.trait[self.traits[rows]].sum(1)
        layers = np.concatenate([who, known, state], 1)
        inner = np.maximum(layers @ self.hidden + self.hidden_bias, 0)
        return unit(who + state + inner @ self.out + self.out_bias)

    def _state(self, recent: Ints) -> Float32s:
        """Weighted mean of the recent products' vectors (n, dim); zero for none."""
        present = (recent != PAD).astype(np.float32) * recent_weights(recent.shape[1])
        mean = present / np.maximum(present.sum(1, keepdims=True), UNIT_FLOOR)
        return np.asarray(np.einsum("qr,qre->qe", mean, self.items[np.maximum(recent, 0)]), np.float32)

    def arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """Everything but the item vectors, which are kept in a file that is mapped."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "items"}

    @classmethod
    def from_arrays(cls, items: Float32s, arrays: Arrays) -> "UserEncoder":
        return cls(items, **{name: arrays[name] for name in cls.__dataclass_fields__ if name != "items"})  # type: ignore[arg-type]
