"""Two towers whose user tower is a causal transformer over what a user had, in order.

After SASRec (Kang and McAuley, ICDM 2018), trained as later work found it to be best: each place of a sequence tells
the next item among many sampled ones by a softmax (Klenitskiy and Vasilev, RecSys 2023), with norms before the layers
and cosines for scores. An item is its own row and, where the catalogue tells of it, the mean of its words' rows, so
that an item nobody has had yet has a vector too.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from headwater.errors import ModelError
from models.evaluation.metrics import Ints
from models.interactions import Interactions
from models.retrieval.protocol import Float32s
from models.two_tower import pick_device

Longs = npt.NDArray[np.int64]
SCORED_AT_A_TIME = 2_048
MANY = 2_000_000
"""Interactions from which on every epoch makes a variant."""


@dataclass(frozen=True, slots=True)
class SequenceConfig:
    """What decides the result, with the seed and the number of epochs.

    Two threads wait for each other: beside other work they took a hundred times as long as one.
    """

    length: int = 50
    dim: int = 128
    blocks: int = 2
    heads: int = 2
    dropout: float = 0.5
    batch: int = 128
    negatives: int = 2_048
    temperature: float = 0.1
    learning_rate: float = 0.001
    weight_decay: float = 0.1
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
        self.own = nn.Embedding(n_items, config.dim)
        self.word = nn.EmbeddingBag(max(words.n_words, 1), config.dim, mode="mean", include_last_offset=True)
        self.place = nn.Embedding(config.length, config.dim)
        for rows in (self.own, self.word, self.place):
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

    def forward(self, sequences: Tensor, items: Tensor) -> Tensor:
        """What a user is like after each place (n, length, dim).

        Parameters
        ----------
        sequences : (n, length)
            Rows of ``items``, oldest first; what they are filled up with at the end changes nothing before it.
        """
        states = items[sequences] * self.config.dim**0.5 + self.place.weight[: sequences.shape[1]]
        states = functional.dropout(states, self.config.dropout, self.training)
        for block in self.blocks:
            states = block(states)
        after: Tensor = self.after(states)
        return after


@dataclass(frozen=True)
class _Scores:
    users: Float32s
    items: Float32s

    def scores(self, users: Ints) -> Float32s:
        return np.asarray(self.users[users] @ self.items.T, np.float32)


@dataclass(frozen=True)
class Sequences:
    """The transformer as a model among others.

    Attributes
    ----------
    epochs
        Passes over all sequences.
    most_epochs, every
        Variants are made after each ``every`` epochs, up to so many.
    """

    words: Words = field(repr=False)
    config: SequenceConfig = field(default=SequenceConfig(), repr=False)
    epochs: int = 20
    most_epochs: int = field(default=120, repr=False)
    every: int = field(default=4, repr=False)
    patience: ClassVar[int] = 3

    def fit(self, log: Interactions) -> _Scores:
        training = Training(log, self.words, self.config)
        for _ in range(self.epochs):
            training.epoch()
        return training.export()

    def variants(self, log: Interactions) -> Iterator[tuple["Sequences", _Scores]]:
        training = Training(log, self.words, self.config)
        every = self.every if len(log) < MANY else 1
        for epoch in range(1, self.most_epochs + 1):
            training.epoch()
            if epoch % every == 0:
                yield replace(self, epochs=epoch), training.export()


class Training:
    """Epochs over the sequences of a log; an epoch depends on the seed and its number alone."""

    def __init__(self, log: Interactions, words: Words, config: SequenceConfig) -> None:
        torch.manual_seed(config.seed)
        torch.set_num_threads(config.threads)
        self.config, self.device = config, pick_device()
        self.n_items, self.done = log.n_items, 0
        order = np.argsort(log.user, kind="stable")
        self.item = log.item[order].astype(np.int64)
        self.had = np.unique(self.item)  # what nobody has had is no negative: it would be pushed away from everybody
        self.bounds = np.searchsorted(log.user[order], np.arange(log.n_users + 1))
        self.windows = _windows(self.bounds, config.length + 1)
        self.towers = SequenceTowers(log.n_items, words, config).to(self.device)
        self.optimiser = torch.optim.AdamW(
            self.towers.parameters(), config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.98)
        )

    def epoch(self) -> float:
        """Pass over all sequences once; the mean loss, nats.

        Raises
        ------
        ModelError
            The loss is not finite.
        """
        self.towers.train()
        generator = np.random.default_rng([self.config.seed, self.done])
        losses = [self._step(self.windows[rows], generator) for rows in self._batches(generator)]
        self.done += 1
        loss = float(np.mean(losses)) if losses else 0.0
        if not np.isfinite(loss):
            raise ModelError(f"sequences: the loss of epoch {self.done} is {loss}. Choose a lower learning rate.")
        return loss

    @torch.no_grad()
    def export(self) -> _Scores:
        """Unit vectors of all users, after all they had, and of all items; zeros for who had nothing."""
        self.towers.eval()
        every = np.array_split(np.arange(self.n_items), max(1, self.n_items // SCORED_AT_A_TIME))
        items = torch.cat([self.towers.items(part) for part in every])
        ends, firsts = self.bounds[1:], np.maximum(self.bounds[:-1], self.bounds[1:] - self.config.length)
        users = torch.zeros(len(ends), self.config.dim, device=self.device)
        by_size = np.argsort(ends - firsts, kind="stable")
        by_size = by_size[(ends > firsts)[by_size]]
        for who in np.array_split(by_size, range(SCORED_AT_A_TIME, len(by_size), SCORED_AT_A_TIME)):
            states = self.towers(self._tensor(self._cut(np.stack([firsts[who], ends[who]], 1))), items)
            last = self._tensor(ends[who] - firsts[who] - 1)
            users[self._tensor(who)] = states[torch.arange(len(who), device=self.device), last]
        vectors = (functional.normalize(part, dim=-1) for part in (users, items))
        return _Scores(*map(_numpy, vectors))

    def _batches(self, generator: np.random.Generator) -> Iterator[Longs]:
        """Windows of like length together, since all are filled up to the longest; in an order that is drawn."""
        drawn = generator.permutation(len(self.windows))
        sizes = self.windows[drawn, 1] - self.windows[drawn, 0]
        drawn = drawn[np.argsort(sizes, kind="stable")]
        parts = np.array_split(drawn, range(self.config.batch, len(drawn), self.config.batch)) if len(drawn) else []
        for at in generator.permutation(len(parts)):
            yield parts[at]

    def _step(self, windows: Longs, generator: np.random.Generator) -> float:
        held = self._cut(windows)
        rows, places = np.nonzero(np.arange(1, held.shape[1]) < (windows[:, 1] - windows[:, 0])[:, None])
        drawn = self.had[generator.integers(0, len(self.had), min(self.config.negatives, len(self.had)))]
        touched, number = np.unique(np.concatenate([held.ravel(), drawn]), return_inverse=True)
        local, negatives = number[: held.size].reshape(held.shape), number[held.size :]
        items = self.towers.items(touched)
        states = self.towers(self._tensor(local[:, :-1]), items)[self._tensor(rows), self._tensor(places)]
        states = functional.normalize(states, dim=-1) / self.config.temperature
        vectors = functional.normalize(items, dim=-1)
        wanted, others = self._tensor(local[rows, places + 1]), self._tensor(negatives)
        own = (states * vectors[wanted]).sum(1)
        against = (states @ vectors[others].T).masked_fill(wanted[:, None] == others, -torch.inf)
        loss = (torch.logaddexp(own, torch.logsumexp(against, 1)) - own).mean()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch gives it no types
        self.optimiser.step()
        return float(loss.detach())

    def _cut(self, windows: Longs) -> Longs:
        """Items of stretches, filled up with any item (n, length of the longest, at least one)."""
        sizes = windows[:, 1] - windows[:, 0]
        places = windows[:, :1] + np.arange(max(int(sizes.max(initial=0)), 1))
        found: Longs = np.append(self.item, 0)[np.minimum(places, len(self.item))]
        return found

    def _tensor(self, array: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)


def _windows(bounds: Longs, longest: int) -> Longs:
    """First and end of stretches of each user's items (n, 2), from the newest back, two items at least.

    What a stretch begins with is told by the one before it, so they have one item in common.
    """
    found = []
    for first, end in pairwise(bounds.tolist()):
        while end - first > 1:
            begin = max(first, end - longest)
            found.append((begin, end))
            end = begin + 1
    return np.array(found, np.int64).reshape(-1, 2)


def _numpy(tensor: Tensor) -> Float32s:
    return np.ascontiguousarray(tensor.detach().cpu().numpy(), np.float32)
