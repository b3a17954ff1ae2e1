"""Two towers whose user tower is a causal transformer over what a user had, in order.

After SASRec (Kang and McAuley, ICDM 2018), trained as later work found it to be best: each place of a sequence tells
the next item among many sampled ones by a softmax (Klenitskiy and Vasilev, RecSys 2023), with norms before the layers
and cosines for scores. An item is its own row and, where the catalogue tells of it, the mean of its words' rows, so
that an item nobody has had yet has a vector too.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from headwater.errors import ModelError
from models.evaluation.metrics import Ints
from models.interactions import Interactions
from models.retrieval.checkpoint import fingerprint
from models.retrieval.losses import NEVER, gbce, softmax
from models.retrieval.protocol import Float32s
from models.retrieval.transformer import Longs, SequenceConfig, SequenceTowers, Words, classes
from models.two_tower import pick_device

SCORED_AT_A_TIME = 2_048
MANY = 2_000_000
"""Interactions from which on every epoch makes a variant."""
TOLD_AT_A_STEP = 1_024
"""Interactions that a step should tell, about."""
LONG = 30
"""Interactions of the mean user from which on histories are long."""
LONG_DROPOUT = 0.2


def suited(log: Interactions, usual: SequenceConfig | None = None) -> SequenceConfig:
    """The usual settings, but for what long histories ask for: fewer of them at a step, and less dropout.

    A step over 128 sequences of 50 tells 6,400 interactions at once, which leaves an epoch few steps. Dropout of .2 for
    users who had much, and of .5 for others, is SASRec's (section IV), and was better here, too (docs/models.md).
    """
    usual = usual or SequenceConfig()
    had = np.bincount(log.user)
    told = np.maximum(had - 1, 0)
    windows = -(-told // usual.length)
    batch = round(TOLD_AT_A_STEP * windows.sum() / max(int(told.sum()), 1))
    long = len(log) >= LONG * max(int((had > 0).sum()), 1)
    return replace(usual, batch=max(1, min(batch, usual.batch)), dropout=LONG_DROPOUT if long else usual.dropout)


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
    gaps
        Whether times count, beside the order.
    most_epochs, every
        Variants are made after each ``every`` epochs, up to so many.
    checkpoint
        Folder in which the state after each epoch is kept, and taken up again.
    """

    words: Words = field(repr=False)
    config: SequenceConfig = field(default=SequenceConfig(), repr=False)
    epochs: int = 20
    gaps: bool = False
    most_epochs: int = field(default=120, repr=False)
    every: int = field(default=4, repr=False)
    checkpoint: Path | None = field(default=None, repr=False)
    patience: ClassVar[int] = 3

    def fit(self, log: Interactions) -> _Scores:
        training = self._begun(log, self.epochs)
        while training.done < self.epochs:
            training.epoch()
        return training.export()

    def variants(self, log: Interactions) -> Iterator[tuple["Sequences", _Scores]]:
        training = self._begun(log, self.most_epochs)
        every = self.every if len(log) < MANY else 1
        while True:
            if training.done and training.done % every == 0:
                yield replace(self, epochs=training.done), training.export()
            if training.done >= self.most_epochs:
                return
            training.epoch()

    def _begun(self, log: Interactions, most: int) -> "Training":
        return Training(log, self.words, replace(self.config, gaps=self.gaps), self.checkpoint, most)


class Training:
    """Epochs over the sequences of a log; an epoch depends on the state before it, the seed and its number alone.

    Parameters
    ----------
    folder
        Where the state after each epoch is kept. What is there of this very training is taken up, unless it has had
        more epochs than ``most``.
    """

    def __init__(
        self, log: Interactions, words: Words, config: SequenceConfig, folder: Path | None = None, most: int = 0
    ) -> None:
        torch.manual_seed(config.seed)
        torch.set_num_threads(config.threads)
        self.config, self.device = config, pick_device()
        self.n_items, self.done = log.n_items, 0
        order = np.argsort(log.user, kind="stable")
        self.item = log.item[order].astype(np.int64)
        self.had = np.unique(self.item)  # what nobody has had is no negative: it would be pushed away from everybody
        self.bounds = np.searchsorted(log.user[order], np.arange(log.n_users + 1))
        self.gap = classes(log.at_ms[order], self.bounds[:-1][np.diff(self.bounds) > 0])
        self.windows = _windows(self.bounds, config.length + 1)
        self.towers = SequenceTowers(log.n_items, words, config).to(self.device)
        self.optimisers = _optimisers(self.towers, config)
        self.file = None
        if folder is not None:
            told = fingerprint(
                config, words.numbers, words.ends, log.n_users, log.n_items, log.user, log.item, log.at_ms
            )
            self.file = folder / f"sequences-{told[:16]}.pt"
            self._resume(self.file, most)

    def epoch(self) -> float:
        """Pass over all sequences once; the mean loss, nats.

        Raises
        ------
        ModelError
            The loss is not finite.
        """
        self.towers.train()
        generator = np.random.default_rng([self.config.seed, self.done])
        torch.manual_seed(int(generator.integers(2**63)))  # for the dropout
        losses = [self._step(self.windows[rows], generator) for rows in self._batches(generator)]
        self.done += 1
        loss = float(np.mean(losses)) if losses else 0.0
        if not np.isfinite(loss):
            raise ModelError(f"sequences: the loss of epoch {self.done} is {loss}. Choose a lower learning rate.")
        if self.file is not None:
            self._save(self.file)
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
            held, gaps = self._cut(np.stack([firsts[who], ends[who]], 1))
            states = self._states(held, items, gaps)
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
        held, gaps = self._cut(windows)
        rows, places = np.nonzero(np.arange(1, held.shape[1]) < (windows[:, 1] - windows[:, 0])[:, None])
        drawn = self.had[generator.integers(0, len(self.had), min(self.config.negatives, len(self.had)))]
        touched, number = np.unique(np.concatenate([held.ravel(), drawn]), return_inverse=True)
        local, negatives = number[: held.size].reshape(held.shape), number[held.size :]
        items = self.towers.items(touched)
        states = self._states(local[:, :-1], items, gaps[:, :-1])[self._tensor(rows), self._tensor(places)]
        states = functional.normalize(states, dim=-1) / self.config.temperature
        vectors = functional.normalize(items, dim=-1)
        wanted, others = self._tensor(local[rows, places + 1]), self._tensor(negatives)
        own = (states * vectors[wanted]).sum(1)
        against = (states @ vectors[others].T).masked_fill(wanted[:, None] == others, NEVER)
        loss = self._loss(own, against).mean()
        for optimiser in self.optimisers:
            optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch gives it no types
        for optimiser in self.optimisers:
            optimiser.step()
        return float(loss.detach())

    def _loss(self, own: Tensor, against: Tensor) -> Tensor:
        if self.config.loss == "softmax":
            return softmax(own, against)
        return gbce(own, against, against.shape[1] / max(len(self.had) - 1, 1), self.config.calibration)

    def _states(self, sequences: Longs, items: Tensor, gaps: Longs) -> Tensor:
        """What users are like after each place; in bfloat16 within, where a GPU has it."""
        halved = self.device == "cuda" and torch.cuda.is_bf16_supported()
        with torch.autocast(self.device, torch.bfloat16, enabled=halved):
            states: Tensor = self.towers(self._tensor(sequences), items, self._tensor(gaps))
        return states.float()

    def _cut(self, windows: Longs) -> tuple[Longs, Longs]:
        """Items of stretches and their gaps, filled up with any (n, length of the longest, at least one)."""
        sizes = windows[:, 1] - windows[:, 0]
        places = windows[:, :1] + np.arange(max(int(sizes.max(initial=0)), 1))
        places = np.minimum(places, len(self.item))
        return np.append(self.item, 0)[places], np.append(self.gap, 0)[places]

    def _tensor(self, array: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def _save(self, file: Path) -> None:
        state = {
            "done": self.done, "towers": self.towers.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
        }  # fmt: skip
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_suffix(".partial")
        torch.save(state, draft)
        draft.replace(file)

    def _resume(self, file: Path, most: int) -> None:
        if not file.exists():
            return
        try:
            state = torch.load(file, map_location=self.device, weights_only=True)
        except (RuntimeError, EOFError, UnpicklingError) as error:
            raise ModelError(f"{file}: cannot be read, {error}. Delete it to begin anew.") from None
        if state["done"] > most:
            return
        self.towers.load_state_dict(state["towers"])
        for optimiser, held in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(held)
        self.done = state["done"]


def _optimisers(towers: SequenceTowers, config: SequenceConfig) -> list[torch.optim.Optimizer]:
    """AdamW; item rows of which a step moves a few alone have an Adam of their own."""
    rate, betas = config.learning_rate, (0.9, 0.98)
    sparse = [towers.own.weight] if towers.own.sparse else []
    dense = [one for one in towers.parameters() if all(one is not other for other in sparse)]
    both: list[torch.optim.Optimizer] = [torch.optim.AdamW(dense, rate, betas, weight_decay=config.weight_decay)]
    if sparse:
        both.append(torch.optim.SparseAdam(sparse, rate, betas))
    return both


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
