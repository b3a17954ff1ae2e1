"""Which users see what: ``variants.toml`` of the repository, read anew whenever it changes.

::

    experiment = "towers of last week"  # salts the hash: under another name all users are dealt anew

    [variants.champion]                 # the first is the control and takes what the others leave

    [variants.challenger]
    share = 10                          # percent of the users
    bundle = "challenger"               # an alias; the champion's where none is named

    [variants.varied]                   # the champion's bundle with other settings
    share = 5
    surfaces.home = { diversity = 0.1 } # instead of what surfaces.toml says
    weights.home = { purchase = 1.0, value = 0.1 }  # instead of what objectives.toml says

A user is a point of [0, 1), by a hash of experiment and user id. The second variant has an interval that begins at 0,
the third one that ends at 1, and the first what lies between. So while a share grows, all who see its variant go on
seeing it, whatever the other of the two does. Further variants lie beside these, towards the middle, and move when
one further out changes. (For three growing variants no intervals can stand still that depend on the shares alone:
ARCHITECTURE.md.)
"""

import hashlib
import re
from collections.abc import Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from headwater.declared import parse_declared, read_declared
from headwater.errors import ConfigError
from headwater.files import write_whole

FILE = "variants.toml"
CHAMPION, CHALLENGER = "champion", "challenger"
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*$")]
Number = Annotated[float, Field(allow_inf_nan=False)]
_ROUNDING = 1e-9
_TEMPLATE = f"""# Which users see what: docs/serving.md, Variants. Read again whenever it changes.
experiment = "champion and challenger"

[variants.{CHAMPION}]

[variants.{CHALLENGER}]
share = 0
bundle = "{CHALLENGER}"
"""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Variant(_Strict):
    """What some users see: a bundle, and what is otherwise than in the repository's files."""

    share: Number = Field(default=0.0, ge=0, le=100)
    bundle: Literal["champion", "challenger"] = "champion"
    surfaces: dict[str, dict[str, Any]] = {}
    weights: dict[str, dict[str, Number]] = {}


class Experiment(_Strict):
    """All of the file."""

    experiment: str = Field(min_length=1)
    variants: dict[Name, Variant] = Field(min_length=1)

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        control, first = next(iter(self.variants.items()))
        if first != Variant():
            raise ValueError(
                f"variants.{control}: the first is the control, which takes what the others leave; it has no fields"
            )
        if (total := sum(variant.share for variant in self.variants.values())) > 100 + _ROUNDING:
            raise ValueError(f"the shares come to {total:g} percent, which is more than all users")
        return self

    @property
    def control(self) -> str:
        """The first, which is what the repository's files say on the champion."""
        return next(iter(self.variants))

    @property
    def shares(self) -> dict[str, float]:
        """Percent of the users by variant; they come to 100."""
        others = {name: variant.share for name, variant in self.variants.items() if name != self.control}
        return {self.control: round(max(0.0, 100 - sum(others.values())), 6), **others}

    @cached_property
    def intervals(self) -> tuple[tuple[str, float, float], ...]:
        """Variant, begin and end of all but the control; from the two ends of [0, 1) by turns."""
        found, low, high = [], 0.0, 1.0
        for number, (name, variant) in enumerate([*self.variants.items()][1:]):
            width = variant.share / 100
            if number % 2 == 0:
                found.append((name, low, low := low + width))
            else:
                found.append((name, high := high - width, high + width))
        return tuple(found)

    def variant_of(self, user_id: str) -> str:
        """Name of the variant that a user sees, the same in every process."""
        at = point(self.experiment, user_id)
        return next((name for name, begin, end in self.intervals if begin <= at < end), self.control)


ALONE = Experiment(experiment="none", variants={CHAMPION: Variant()})
"""Everyone sees the champion."""


def point(experiment: str, user_id: str) -> float:
    """Where in [0, 1) a user lies, evenly over users and independently of other experiments."""
    digest = hashlib.blake2b(user_id.encode("utf-8", "replace"), digest_size=8, key=_salt(experiment)).digest()
    return (int.from_bytes(digest, "little") >> 11) / (1 << 53)


@lru_cache(maxsize=16)
def _salt(experiment: str) -> bytes:
    """A key for the hash, which takes 64 bytes at most."""
    return hashlib.blake2b(experiment.encode(), digest_size=32).digest()


def load_experiment(repo: Path) -> Experiment:
    """Read a repository's file; without one everyone sees the champion.

    Raises
    ------
    ConfigError
        The file is not TOML, or a field is unknown, out of range or contradicts another.
    """
    try:
        return read_declared(repo / FILE, Experiment)
    except FileNotFoundError:
        return ALONE


def ramp(repo: Path, shares: Mapping[str, float]) -> Experiment:
    """Write other shares into the file, whose other lines stay as they are; servers take it within a second.

    Raises
    ------
    ConfigError
        There is no such repository, a variant is not in the file, or the shares come to more than 100; nothing has
        changed then.
    """
    path = repo / FILE
    if not repo.is_dir():
        raise ConfigError(f"{repo}: no such folder. Point --repo at a Feast repository.")
    text = path.read_text() if path.is_file() else _TEMPLATE
    known = parse_declared(text, Experiment, path)
    for name, share in shares.items():
        if name not in known.variants or name == known.control:
            others = ", ".join([*known.variants][1:]) or "none"
            why = "takes what the others leave" if name == known.control else "is not in the file"
            raise ConfigError(f"{path}: variant {name!r} {why}. Choose from {others}, or add a table to the file.")
        text = _with_share(text, name, share)
    changed = parse_declared(text, Experiment, path)
    if any(changed.variants[name].share != share for name, share in shares.items()):
        raise ConfigError(f"{path}: has no line 'share = ...' under [variants.{', '.join(shares)}]. Write it by hand.")
    write_whole(path, text)
    return changed


def _with_share(text: str, name: str, share: float) -> str:
    """The text with another share in one table; a table without one gets the line."""
    head, found, rest = _table(text, name)
    if not found:
        return text
    table, *after = re.split(r"(?m)^(?=\s*\[)", rest, maxsplit=1)
    line = f"share = {share:g}"
    changed, count = re.subn(r"(?m)^[ \t]*share[ \t]*=[ \t]*[^\s#]+", line, table, count=1)
    return "".join([head, found, changed if count else f"\n{line}{table}", *after])


def _table(text: str, name: str) -> tuple[str, str, str]:
    """What is before a table's header, the header, and what is after it."""
    found = re.search(rf"(?m)^\s*\[\s*variants\s*\.\s*{re.escape(name)}\s*\][^\n]*", text)
    if found is None:
        return text, "", ""
    return text[: found.start()], found[0], text[found.end() :]
