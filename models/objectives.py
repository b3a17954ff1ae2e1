"""What the ranker learns and how it is put together: ``objectives.toml``, beside the definitions.

unshown = "left_out"                   # candidates that were logged and not shown; or "negatives", a no for every head

[objectives.purchase]                  # one head each, the first is the main one
column = "label"                       # of the training rows
learn = "lambdarank"                   # order by yes or no

[objectives.click]
column = "click"
learn = "binary"                       # probability of a yes

[objectives.value]
column = "value"
learn = "graded"                       # order by quarters of what is above nought

[weights.home]                         # by surface: what is ordered by is the sum of weight x what a head expects
purchase = 1.0                         # a surface without weights has the main head's order
value = 0.05

[monotone]                             # the score never falls (1) or never rises (-1) as the feature rises
user_item_purchases_90d = 1

[trees]
least_in_leaf = 200                    # rows; more where few of them say yes
refit = true                           # as many trees once more, of all requests, once the later ones told how many

[position]
correction = "weights"                 # or "feature", or "none"
propensities = [1.0, 0.71, 0.55]       # how often a place is looked at; a place behind the last counts as the last
# estimated = "swaps"                  # instead: each training estimates them from its rows; or "randomised"
# clicks = "click"                     # column of the rows that they are estimated from
clip = 10.0                            # the most that a row may weigh

[calibration]
method = "isotonic"                    # or "platt", or "validated": whichever has the lower log loss
bins = 15                              # of the calibration error that is reported
"""

from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from headwater.declared import read_declared
from headwater.errors import ConfigError

FILE = "objectives.toml"
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
Number = Annotated[float, Field(allow_inf_nan=False)]
Propensity = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Objective(_Strict):
    """One head: the column it learns from, and how."""

    column: str
    learn: Literal["lambdarank", "binary", "graded"] = "lambdarank"


class Position(_Strict):
    """What is done about lists being read from the top: see :mod:`models.position`."""

    correction: Literal["none", "weights", "feature"] = "none"
    propensities: tuple[Propensity, ...] = ()
    estimated: Literal["swaps", "randomised"] | None = None
    clicks: str = "click"
    clip: float = Field(default=10.0, ge=1, allow_inf_nan=False)

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> "Position":
        if self.propensities and self.estimated:
            raise ValueError("propensities are either declared or estimated, not both")
        if self.correction == "weights" and not (self.propensities or self.estimated):
            raise ValueError("weights need propensities. Estimate them: headwater train propensities")
        return self


class Calibration(_Strict):
    """From scores to probabilities, and how many bins tell how far they are off."""

    method: Literal["isotonic", "platt", "validated"] = "isotonic"
    bins: int = Field(default=15, ge=2)


class Trees(_Strict):
    """What is declared of how trees grow, in place of the default; what ``headwater tune`` found comes first."""

    leaves: int | None = Field(default=None, ge=2)
    least_in_leaf: int | None = Field(default=None, ge=1)
    refit: bool = False


class Objectives(_Strict):
    """All of the file."""

    objectives: dict[Name, Objective] = Field(min_length=1)
    weights: dict[str, dict[str, Number]] = {}
    monotone: dict[str, Literal[-1, 1]] = {}
    trees: Trees = Trees()
    position: Position = Position()
    calibration: Calibration = Calibration()
    unshown: Literal["left_out", "negatives"] = "left_out"

    @property
    def main(self) -> str:
        """The objective that bundles are compared, gated and tuned by."""
        return next(iter(self.objectives))

    @field_validator("objectives")
    @classmethod
    def _main_says_yes_or_no(cls, value: dict[str, Objective]) -> dict[str, Objective]:
        name, first = next(iter(value.items()))
        if first.learn == "graded":
            raise ValueError(f"{name!r} is the main one and cannot be graded, for its list is judged by yes and no")
        return value

    @model_validator(mode="after")
    def _agrees(self) -> "Objectives":
        for surface, weights in self.weights.items():
            for name in weights:
                if name not in self.objectives:
                    raise ValueError(f"weights.{surface}: {name!r} is not one of {', '.join(self.objectives)}")
            if not any(weights.values()):
                raise ValueError(f"weights.{surface}: all are nought, so nothing orders the list")
        return self

    def require(self, feature_names: Collection[str]) -> None:
        """Hold the constraints to the features that there are.

        Raises
        ------
        ConfigError
            One is on a feature that the ranker does not read.
        """
        for name in self.monotone:
            if name not in feature_names:
                raise ConfigError(
                    f"{FILE}: monotone.{name}: the ranker reads no such feature. Choose among those of its service: "
                    f"{', '.join(feature_names)}."
                )


DEFAULT_OBJECTIVES = Objectives(objectives={"purchase": Objective(column="label")})


def load_objectives(repo: Path) -> Objectives:
    """Read a repository's file; where there is none, purchases are learned, and nothing else.

    Raises
    ------
    ConfigError
        The file is not TOML, or a field is unknown, out of range or contradicts another.
    """
    try:
        return read_declared(repo / FILE, Objectives)
    except FileNotFoundError:
        return DEFAULT_OBJECTIVES
