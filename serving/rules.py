"""What people decide about what is shown: ``rules.toml`` of the repository, read anew whenever it changes.

::

    [[rules]]
    name = "Christmas on top"
    do = "boost"                       # hide, boost, bury or pin
    where = { department = "GIFTS" }   # or items = ["123"]; both where an item must be in both
    surfaces = ["home"]                # all of them where none is named
    since = 2026-12-01T00:00:00Z
    until = 2026-12-25T00:00:00Z
    by = 0.2                           # of the distance between the best score and the worst

    [policy]
    words = ["absinthe"]               # hidden wherever an item's name has one of them
"""

import re
from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, model_validator

from headwater.text import fold
from serving.contracts import MAX_LIMIT

FILE = "rules.toml"


def _some_letters(word: str) -> str:
    if not re.search(r"\w", fold(word)):
        raise ValueError(f"{word!r} has no letter or digit")
    return word


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Rule(_Strict):
    """One decision, for some items, on some surfaces, for some time."""

    name: str = Field(min_length=1)
    do: Literal["hide", "boost", "bury", "pin"]
    items: tuple[str, ...] = ()
    where: dict[str, str | tuple[str, ...]] = {}
    surfaces: tuple[str, ...] = ()
    since: AwareDatetime | None = None
    until: AwareDatetime | None = None
    by: float = Field(default=0.2, gt=0)
    position: int = Field(default=1, ge=1, le=MAX_LIMIT)

    @model_validator(mode="after")
    def _names_items(self) -> Self:
        if not self.items and not self.where:
            raise ValueError(f"rule {self.name!r} names neither items nor where, so it would hold for everything")
        if self.do == "pin" and not self.items:
            raise ValueError(f"rule {self.name!r} pins, so it must name its items")
        return self

    def holds(self, surface: str, now_ms: int) -> bool:
        """Whether it counts on a surface at an instant, ``since`` included and ``until`` not."""
        return (
            (not self.surfaces or surface in self.surfaces)
            and (self.since is None or now_ms >= _ms(self.since))
            and (self.until is None or now_ms < _ms(self.until))
        )


class Policy(_Strict):
    """Words that hide an item, whole words wherever they stand in one of the attributes."""

    words: tuple[Annotated[str, AfterValidator(_some_letters)], ...] = ()
    attributes: tuple[str, ...] = ("name",)


class Rules(_Strict):
    """All of the file."""

    rules: tuple[Rule, ...] = ()
    policy: Policy = Policy()

    @model_validator(mode="after")
    def _each_name_once(self) -> Self:
        names = [rule.name for rule in self.rules]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two rules are named {twice[0]!r}")
        return self


def _ms(instant: datetime) -> int:
    return round(instant.timestamp() * 1000)
