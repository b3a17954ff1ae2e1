"""The network of :mod:`models.retrieval.sequence`: both towers, and what decides how they are trained."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

Longs = npt.NDArray[np.int64]
GAPS = 48
"""Classes of times: none before, then one for each power of two of milliseconds, the last some thousand years."""


@dataclass(frozen=True, slots=True)
class SequenceConfig:
    """What decides the result, with the seed and the number of epochs.

    Two threads wait for each other: beside other work they took a hundred times as long as one.

    Attributes
    ----------
    loss, calibration
        ``softmax``, or ``gbce`` with its t: 0 is plain binary cross-entropy, 1 makes up for all that is not drawn.
    gaps
        Whether a place knows how long before it the user had had something.
    sparse_from
        Items from which on a step moves the rows of those that it met alone, without their decay: to move all of a
        million takes longer than everything else in a step.
    """

    length: int = 50
    dim: int = 128
    blocks: int = 2
    heads: int = 2
    dropout: float = 0.5
    batch: int = 128
    negatives: int = 2_048
    loss: Literal["softmax", "gbce"] = "softmax"
    calibration: float = 0.75
    gaps: bool = False
    temperature: float = 0.1
    learning_rate: float = 0.001
    weight_decay: float = 0.1
    sparse_from: int = 200_000
    threads: int = 1
    seed: int = 7


@dataclass(frozen=True)
class Words:
    """What the catalogue tells of each item: ``numbers`` end to end, those of item i end at ``ends[i + 1]``."""

    numbers: Longs
    ends: Longs
    n_words: int

    @classmethod
    def of(cls, texts: Sequence[Sequence[str]]) -> "Words":
        """Number the words of each item; one that a single item has tells nothing, and is left out."""
        counts = Counter(word for words in texts for word in set(words))
        number = {word: at for at, word in enumerate(sorted(word for word, count in counts.items() if count > 1))}
        held = [[number[word] for word in dict.fromkeys(words) if word in number] for words in texts]
        return cls(
            np.array([word for words in held for word in words], np.int64),
            np.cumsum([0, *map(len, held)]).astype(np.int64), len(number),
        )  # fmt: skip

    def of_items(self, items: Longs) -> tuple[Longs, Longs]:
        """Words of some items end to end, and where each item's begin, and the end of all (len(items) + 1,)."""
        sizes = self.ends[items + 1] - self.ends[items]
        begins = np.cumsum([0, *sizes])
        return self.numbers[np.repeat(self.ends[items] - begins[:-1], sizes) + np.arange(begins[-1])], begins


class Block(nn.Module):
    """Attention to what came before, and two layers, each added to what it is given."""

    def __init__(self, config: SequenceConfig) -> None:
        super().__init__()
        self.heads, self.dropout = config.heads, config.dropout
        self.before, self.between = nn.LayerNorm(config.dim), nn.LayerNorm(config.dim)
        self.joined = nn.Linear(config.dim, 3 * config.dim)
        self.out = nn.Linear(config.dim, config.dim)
        self.layers = nn.Sequential(
            nn.Linear(config.dim, 4 * config.dim), nn.GELU(), nn.Dropout(config.dropout),
            nn.Linear(4 * config.dim, config.dim),
        )  # fmt: skip

    def forward(self, states: Tensor) -> Tensor:
        n, length, dim = states.shape
        parts = self.joined(self.before(states)).view(n, length, 3, self.heads, dim // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        kept = self.dropout if self.training else 0.0
        seen = functional.scaled_dot_product_attention(query, key, value, is_causal=True, dropout_p=kept)
        states = states + self._dropped(self.out(seen.transpose(1, 2).reshape(n, length, dim)))
        return states + self._dropped(self.layers(self.between(states)))

    def _dropped(self, states: Tensor) -> Tensor:
        return functional.dropout(states, self.dropout, self.training)


class SequenceTowers(nn.Module):
    """Both towers."""

    def __init__(self, n_items: int, words: Words, config: SequenceConfig) -> None:
        super().__init__()
        self.config, self.words = config, words
        self.own = nn.Embedding(n_items, config.dim, sparse=n_items >= config.sparse_from)
        self.word = nn.EmbeddingBag(max(words.n_words, 1), config.dim, mode="mean", include_last_offset=True)
        self.place = nn.Embedding(config.length, config.dim)
        self.gap = nn.Embedding(GAPS, config.dim) if config.gaps else None
        for rows in (self.own, self.word, self.place, self.gap):
            if rows is not None:
                nn.init.normal_(rows.weight, std=0.02)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.after = nn.LayerNorm(config.dim)

    def items(self, items: Longs) -> Tensor:
        """Rows of some items (len(items), dim)."""
        device = self.own.weight.device
        rows: Tensor = self.own(torch.from_numpy(items).to(device))
        if not self.words.n_words:
            return rows
        numbers, begins = (torch.from_numpy(part).to(device) for part in self.words.of_items(items))
        told: Tensor = self.word(numbers, begins)
        return rows + told

    def forward(self, sequences: Tensor, items: Tensor, gaps: Tensor) -> Tensor:
        """What a user is like after each place (n, length, dim).

        Parameters
        ----------
        sequences : (n, length)
            Rows of ``items``, oldest first; what they are filled up with at the end changes nothing before it.
        gaps : (n, length)
            Classes of the time before each place, as :func:`classes` has them.
        """
        states = items[sequences] * self.config.dim**0.5 + self.place.weight[: sequences.shape[1]]
        if self.gap is not None:
            states = states + self.gap(gaps)
        states = functional.dropout(states, self.config.dropout, self.training)
        for block in self.blocks:
            states = block(states)
        after: Tensor = self.after(states)
        return after


def classes(at_ms: Longs, firsts: Longs) -> Longs:
    """Class of the time since the interaction before (n,): 0 for those at ``firsts``, else 1 + log2 of 1 + it, cut."""
    since = np.maximum(np.diff(at_ms, prepend=at_ms[:1]), 0)
    found: Longs = np.minimum(1 + np.log2(1.0 + since).astype(np.int64), GAPS - 1)
    found[firsts] = 0
    return found
