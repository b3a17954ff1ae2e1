"""What counts as the outcome of an impression: one readable file, checked when it is read."""

from datetime import timedelta
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from headwater.declared import read_declared
from headwater.spans import Span

FILE = "labels.toml"
NAME = r"^[a-z][a-z0-9_]*$"


Name = Annotated[str, Field(pattern=NAME)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Keys(_Strict):
    """Join keys of the feature service that name an impression's user and item."""

    user: str
    item: str


class Objective(_Strict):
    """One label column: whether one of ``events`` followed in [t, t + window), or the sum of their values."""

    events: tuple[Name, ...] = Field(min_length=1)
    fold: Literal["any", "sum"] = "any"
    window: Span = Field(gt=timedelta(0))
    delay: Span = Field(ge=timedelta(0))

    @property
    def window_ms(self) -> int:
        return self.window // timedelta(milliseconds=1)

    @property
    def final_ms(self) -> int:
        """Age at which an impression's label is taken for final."""
        return (self.window + self.delay) // timedelta(milliseconds=1)


class Retraction(_Strict):
    """An event type that takes back one of ``events``, named in its context or the newest of that user and item."""

    events: tuple[Name, ...] = Field(min_length=1)
    within: Span = Field(gt=timedelta(0))
    names: str | None = Field(default=None, pattern=r"^[\w.-]+$")

    @property
    def within_ms(self) -> int:
        return self.within // timedelta(milliseconds=1)


class Labelling(_Strict):
    """All of it."""

    label: str
    keys: Keys
    objectives: dict[Name, Objective] = Field(min_length=1)
    retractions: dict[Name, Retraction] = {}

    @model_validator(mode="after")
    def _agrees(self) -> "Labelling":
        if self.label not in self.objectives:
            raise ValueError(f"label {self.label!r} is not one of the objectives {', '.join(self.objectives)}")
        both = set(self.retractions) & set(self.outcomes)
        if both:
            raise ValueError(f"{sorted(both)[0]!r} is an outcome and a retraction, and can be only one of them")
        retracted = [kind for retraction in self.retractions.values() for kind in retraction.events]
        if len(set(retracted)) < len(retracted):
            raise ValueError("an event type is taken back by two retractions; one of them would have to come first")
        return self

    @property
    def outcomes(self) -> tuple[str, ...]:
        """Event types that count for some objective."""
        return tuple(dict.fromkeys(kind for objective in self.objectives.values() for kind in objective.events))

    @property
    def final_ms(self) -> int:
        """Age at which all labels of an impression are final."""
        return max(objective.final_ms for objective in self.objectives.values())

    @property
    def longest(self) -> timedelta:
        """The longest attribution window."""
        return max(objective.window for objective in self.objectives.values())


def load_labelling(repo: Path) -> Labelling:
    """Read the repository's own file, else the one that ships with the package.

    Raises
    ------
    ConfigError
        The file is not TOML, or a field is unknown or contradicts another.
    """
    own = repo / FILE
    return read_declared(own if own.is_file() else files("batch") / FILE, Labelling)
