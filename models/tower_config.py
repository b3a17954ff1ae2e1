"""What decides how the towers look and learn."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Literal, get_args

from headwater.errors import ConfigError

UserTowerKind = Literal["mean", "transformer"]
Loss = Literal["softmax", "gbce"]
ItemInput = Literal["own", "sides", "hashed", "words", "numbers"]


@dataclass(frozen=True, slots=True)
class TowerConfig:
    """What decides the result, with the seed; the budget is in examples, never in seconds, so it is repeatable.

    Attributes
    ----------
    user_tower
        What becomes of the recent products: their mean, or the mean and a causal transformer that knows their age.
    item_inputs
        What a product's vector is the sum of: ``own`` row, ``sides`` (department, category, brand), ``hashed`` id (two
        rows of a small table), ``words`` of its name, ``numbers`` of the catalogue.
    loss
        Sampled softmax, or generalised binary cross-entropy with ``calibration`` (1 undoes what sampling inflates).
    from_batch
        Share of the negatives that is drawn from the batch's positives; the others are drawn alike from all products.
    hard_negatives
        So many of the shared negatives, those a trip scores highest, count for it; 0 for all of them.
    factors, factor_weight
        Rank of what is factorised beside what is learned (:mod:`models.two_tower.factors`), 0 for nothing, and what it
        weighs beside the learned cosine.
    trend
        Power of how much more than usual an item sells at the log's end, by which its factors count; for towers that
        are asked at once, not weeks later.
    half_precision
        Compute the towers in bfloat16 where the device has it; weights and losses stay float32.
    """

    dim: int = 64
    hidden: int = 128
    n_recent: int = 20
    user_tower: UserTowerKind = "mean"
    blocks: int = 2
    heads: int = 2
    item_inputs: tuple[ItemInput, ...] = ("own", "sides", "words", "numbers")
    hash_rows: int = 4096
    words: int = 8
    trips_per_batch: int = 512
    negatives: int = 1024
    from_batch: float = 0.5
    hard_negatives: int = 0
    loss: Loss = "softmax"
    calibration: float = 0.75
    temperature: float = 0.12
    learning_rate: float = 0.003
    row_learning_rate: float = 0.02
    passes: int = 2  # a third makes first purchases harder to find (docs/models.md)
    least_steps: int = 200  # small data take more passes
    examples: int = 20_000_000  # at most, whatever the passes
    example_half_life_days: float = 120.0
    repeat_weight: float = 0.3
    factors: int = 0  # in serving what they do to the ranker's lists is not measured yet (docs/models.md)
    factor_weight: float = 10.0
    trend: float = 0.0
    half_precision: bool = True
    seed: int = 7

    def __post_init__(self) -> None:
        _among("user_tower", [self.user_tower], get_args(UserTowerKind))
        _among("loss", [self.loss], get_args(Loss))
        _among("item_inputs", self.item_inputs, get_args(ItemInput))
        if not {"own", "hashed"} & set(self.item_inputs):
            raise ConfigError("item_inputs: products could not be told apart. Name own, or hashed, among them.")
        if self.dim % self.heads:
            raise ConfigError(f"heads: {self.heads} do not divide the {self.dim} dimensions. Choose a divisor.")
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in _SHARES and not 0 <= value <= 1:
                raise ConfigError(f"{field.name}: {value} is no share. Choose a number from 0 to 1.")
            if field.name in _POSITIVE and value <= 0:
                raise ConfigError(f"{field.name}: {value} is not above zero. Choose a larger one.")


_SHARES = ("from_batch", "calibration", "repeat_weight")
_POSITIVE = (
    "dim", "hidden", "n_recent", "blocks", "heads", "hash_rows", "words", "trips_per_batch", "negatives", "temperature",
    "learning_rate", "row_learning_rate", "example_half_life_days",
)  # fmt: skip


def _among(name: str, given: Iterable[str], known: tuple[str, ...]) -> None:
    for value in given:
        if value not in known:
            raise ConfigError(f"{name}: {value!r} is unknown. Choose among {', '.join(known)}.")
