"""What passes between the funnel's stages, and what the funnel needs of the parts it is given."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from serving.ports import Floats
    from serving.tuning import Tuned

MAX_LIMIT = 1000


@dataclass(frozen=True, slots=True)
class Request:
    """One call, validated: ``limit`` is from 1 to ``MAX_LIMIT``, ``surface`` is a known one.

    A search has a ``query``; ``require`` are the attributes that its items must have.
    """

    user_id: str
    surface: str
    limit: int
    exclude: frozenset[str] = frozenset()
    include: tuple[str, ...] = ()
    context: Mapping[str, str] = field(default_factory=dict)
    query: str | None = None
    require: Mapping[str, str] = field(default_factory=dict)


class RankedItem(NamedTuple):
    """One line of a reply; ``position`` is from 1."""

    item_id: str
    score: float
    position: int
    sources: tuple[str, ...]
    reasons: tuple[str, ...]
    attributes: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Ranked:
    """A reply: best first, at most ``limit``, no item twice; ``degraded`` names the stages that fell back.

    ``variant``: what the user was dealt, also where something else had to stand in for it.
    """

    request_id: str
    items: Sequence[RankedItem]
    degraded: tuple[str, ...]
    bundle_version: str
    variant: str = "champion"


@dataclass(frozen=True, slots=True)
class Moved:
    """A feature of an item, NaN where it has no value, and what it adds to the score."""

    name: str
    value: float
    contribution: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why an item is in a list, or why not.

    Attributes
    ----------
    stage
        The last that the item reached: ``sources``, ``filter``, ``rerank`` or ``shown``.
    position
        From 1, 0 where it is not shown.
    lines
        For a person to read, one a stage.
    moved
        All features, those that moved the score most first; none where the item was not ranked.
    """

    item_id: str
    stage: str
    position: int
    lines: tuple[str, ...]
    moved: tuple[Moved, ...] = ()


class Recommender(Protocol):
    """What the server holds and swaps."""

    @property
    def version(self) -> str:
        """Of the bundle that ranks."""
        ...

    def tuned(self, how: "Tuned") -> "Recommender":
        """The same bundle with other settings; neither is changed by the other.

        Raises
        ------
        ConfigError
            They name what the bundle does not have.
        """
        ...

    def score(self, surface: str, features: "Floats") -> "Floats":
        """What the bundle makes of candidates (n,) from their features (n, n_features), as lists tell it."""
        ...

    def request(
        self,
        user_id: str,
        surface: str = "",
        limit: int = 0,
        exclude: Sequence[str] = (),
        include: Sequence[str] = (),
        context: Mapping[str, str] | None = None,
    ) -> Request:
        """Validate; empty means the default.

        Raises
        ------
        DataError
            A field is out of bounds; the message names it.
        """
        ...

    def recommend(self, request: Request, wait_s: float | None = None) -> Ranked:
        """A list, whatever part is down.

        Parameters
        ----------
        wait_s
            How long the caller waits, at most; the surface's own deadline is held besides. ``None`` where nobody waits,
            as in an evaluation: then nothing is left out for being late.
        """
        ...

    def search(
        self,
        user_id: str,
        query: str,
        limit: int = 0,
        exclude: Sequence[str] = (),
        require: Mapping[str, str] | None = None,
        context: Mapping[str, str] | None = None,
        wait_s: float | None = None,
    ) -> Ranked:
        """Items that match a text, in the user's order; none but those that have the required attributes.

        Raises
        ------
        DataError
            A field is out of bounds; the message names it.
        """
        ...

    def similar(self, item_id: str, limit: int = 10, exclude: Sequence[str] = ()) -> Ranked:
        """Neighbours of an item.

        Raises
        ------
        DataError
            The item is unknown.
        """
        ...

    def explain(self, request: Request, item_id: str) -> Explanation:
        """Why an item is in the list that the request gets now, or why not.

        Raises
        ------
        DataError
            The item is unknown.
        """
        ...
