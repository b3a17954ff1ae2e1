"""What the simulated world is made of: one readable file, checked when it is read."""

from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from headwater.declared import read_declared
from headwater.errors import ConfigError

FILE = "world.toml"
Probability = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=-50, le=50)]
Day = Annotated[int, Field(ge=0, le=100_000)]
Count = Annotated[int, Field(ge=0, le=1_000_000)]
Mean = Annotated[float, Field(ge=0, le=1000)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Shoppers(_Strict):
    """How many, and how often they come."""

    count: Count
    sessions_a_day: Mean
    lists_a_session: float = Field(ge=1, le=1000)
    new_a_day: Count


class Tastes(_Strict):
    """Weights in the log-odds of a click where one looks, and how tastes move."""

    dimensions: int = Field(ge=1, le=512)
    base: Weight
    affinity: Weight
    popularity: Weight
    habit: Weight
    drift: float = Field(ge=0, le=10)


class Lists(_Strict):
    """What is asked for, and the probability that one looks at each of its places."""

    surface: str
    limit: int = Field(ge=1, le=1000)
    examined: tuple[Probability, ...] = Field(min_length=1, max_length=1000)


class Outcomes(_Strict):
    """Probabilities of what follows a look, each given the step before."""

    click: Probability
    cart: Probability
    purchase: tuple[Probability, Probability]
    returned: Probability
    return_days: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(le=1000)]]
    budget: float = Field(ge=0)

    @model_validator(mode="after")
    def _rises(self) -> Self:
        for name in ("purchase", "return_days"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name}: {low} comes before {high} and is more than it")
        return self


class Unseen(_Strict):
    """Purchases of what was not shown."""

    a_session: Mean
    own: Probability


class NewProducts(_Strict):
    """Products that come without a history."""

    count: Count
    from_day: Day
    a_day: int = Field(ge=1)
    popular: Probability
    liked: float = Field(gt=0, le=1e6)
    spread: float = Field(ge=0, le=10)


class Trend(_Strict):
    """A category that is liked more for some days, both ends included."""

    category: str
    from_day: Day
    to_day: Day
    factor: float = Field(gt=0, le=1e6)

    @model_validator(mode="after")
    def _ends(self) -> Self:
        if self.to_day < self.from_day:
            raise ValueError(f"to_day {self.to_day} is before from_day {self.from_day}")
        return self


class WorldConfig(_Strict):
    """All of it."""

    seed: int = Field(ge=0, lt=2**63)
    fitted_until: datetime
    shoppers: Shoppers
    tastes: Tastes
    lists: Lists
    outcomes: Outcomes
    unseen: Unseen
    new_products: NewProducts
    trends: tuple[Trend, ...] = ()

    @field_validator("fitted_until")
    @classmethod
    def _knows_its_zone(cls, value: datetime) -> datetime:
        if value.tzinfo is None:
            raise ValueError("the time has no zone; write Z after it for UTC")
        return value.astimezone(UTC)

    @property
    def fitted_until_ms(self) -> int:
        return round(self.fitted_until.timestamp() * 1000)

    def seeded(self, seed: int | None) -> "WorldConfig":
        """The same world, drawn with another seed where one is given."""
        return self if seed is None else self.model_copy(update={"seed": seed})

    def peopled(self, count: int | None) -> "WorldConfig":
        """The same world with so many shoppers of the data, where a number is given."""
        if count is None:
            return self
        return self.model_copy(update={"shoppers": self.shoppers.model_copy(update={"count": count})})


def load_world_config(path: Path | None = None) -> WorldConfig:
    """Read a world's file, by default the one that ships with the package.

    Raises
    ------
    ConfigError
        There is no such file, it is not TOML, or a field is unknown or out of bounds.
    """
    try:
        return read_declared(files("simulation") / FILE if path is None else path, WorldConfig)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}. Name a file such as simulation/{FILE} with --world.") from None
