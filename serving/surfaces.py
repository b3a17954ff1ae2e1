"""The funnel's configuration: one readable file, checked when it is read."""

from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from headwater.declared import read_declared
from serving.contracts import MAX_LIMIT

DEFAULT = "home"
SEARCH = "search"
FILE = "surfaces.toml"


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FeatureNames(_Strict):
    """What the funnel asks of the feature repository."""

    ranker: str
    user: str
    item: str
    own: str
    own_weight: str
    own_newest: str
    recent: int = Field(default=20, ge=1)
    attributes: dict[str, str] = {}


class Explore(_Strict):
    """How much of what is shown is left to chance: :class:`serving.rerank.arrange.Exploring` says what each means."""

    share: float = Field(default=0.0, ge=0, le=1)
    temperature: float = Field(default=0.3, gt=0)
    epsilon: float = Field(default=0.0, ge=0, le=1)
    slot: int = Field(default=10, ge=1, le=MAX_LIMIT)
    among: tuple[str, ...] = ()
    """Sources of which the slot takes its item; any candidate where none is named."""


class Served(_Strict):
    """What was shown ``times`` times within so many ``minutes``, and not had since, is left out."""

    times: int = Field(ge=1)
    minutes: float = Field(gt=0, le=525_600)

    @property
    def window_ms(self) -> int:
        return round(self.minutes * 60_000)


class SourceSettings(_Strict):
    """What the sources need to know."""

    segment: str | None = None
    """Attribute of users, a column of ``users.parquet``, by which there are segments."""
    new_days: int = Field(default=28, ge=1)
    """An item is new for so long after it was first seen."""


class Surface(_Strict):
    """One place where lists are shown."""

    limit: int = Field(ge=1, le=MAX_LIMIT)
    diversity: float = Field(ge=0, le=1)
    method: Literal["mmr", "dpp"] = "mmr"
    window: int = Field(default=0, ge=0)
    caps: dict[str, Annotated[int, Field(ge=1)]] = {}
    explore: Explore = Explore()
    seen: Literal["keep", "hide"]
    served: Served | None = None
    deadline_ms: int = Field(default=150, ge=1)
    """What a reply may take; a part that is not done by then is left out of it."""
    sources: dict[str, int]
    newcomers: dict[str, int] = {}
    """Asked besides where the user has no history."""
    weights: dict[str, Annotated[float, Field(ge=0)]] = {}
    """Of the sources in the reciprocal rank fusion, 1 by default."""

    @model_validator(mode="after")
    def _knows_its_sources(self) -> "Surface":
        for name in self.weights:
            if name not in self.sources and name not in self.newcomers:
                raise ValueError(f"weights: {name} is no source of the surface")
        for name in self.explore.among:
            if name not in self.sources and name not in self.newcomers:
                raise ValueError(f"explore.among: {name} is no source of the surface")
        return self

    def quotas(self, newcomer: bool) -> dict[str, int]:
        """How many candidates each source may propose to a user."""
        return {**self.sources, **self.newcomers} if newcomer else self.sources


_SEARCH = Surface(limit=10, diversity=0.0, seen="keep", sources={"bm25": 200, "popular": 100, "dense": 50, "meant": 50})


class Reason(_Strict):
    """Given where ``at_least <= feature <= at_most``; ``text`` may use ``{value}`` and the item's attributes."""

    feature: str
    at_least: float
    at_most: float = float("inf")
    text: str


class Surfaces(_Strict):
    """All of it."""

    features: FeatureNames
    sources: SourceSettings = SourceSettings()
    surfaces: dict[str, Surface]
    reasons: tuple[Reason, ...] = ()
    source_reasons: dict[str, str] = {}

    @field_validator("surfaces")
    @classmethod
    def _has_the_default(cls, value: dict[str, Surface]) -> dict[str, Surface]:
        if DEFAULT not in value:
            raise ValueError(f"there must be a surface {DEFAULT}")
        return {**value, SEARCH: value.get(SEARCH, _SEARCH)}


def load_surfaces(repo: Path) -> Surfaces:
    """Read the repository's own file, else the one that ships with the package.

    Raises
    ------
    ConfigError
        The file is not TOML, or a field is unknown or out of bounds.
    """
    own = repo / FILE
    return read_declared(own if own.is_file() else files("serving") / FILE, Surfaces)
