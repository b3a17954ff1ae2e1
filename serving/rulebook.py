"""Rules on the items of a bundle: what each hides, moves and pins now."""

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headwater.declared import read_declared
from headwater.errors import ConfigError, HeadwaterError
from headwater.log import get_logger
from headwater.text import fold
from serving.ports import Catalogue, Column, Floats, Ints
from serving.rules import Policy, Rule, Rules

log = get_logger("serving")
POLL_S = 1.0
POLICY = "policy"
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Ruled:
    """Rules on one catalogue.

    Attributes
    ----------
    among
        Which items each rule names (n_items,).
    barred : (n_items,)
        What the policy hides.
    """

    rules: tuple[Rule, ...] = ()
    among: tuple[Bools, ...] = ()
    pinned: Mapping[str, Ints] = field(default_factory=dict)
    barred: Bools | None = None

    @classmethod
    def on(cls, rules: Rules, catalogue: Catalogue) -> "Ruled":
        """Find the items.

        Raises
        ------
        ConfigError
            A rule names an attribute that the catalogue does not have.
        """
        among = tuple(_named(rule, catalogue) for rule in rules.rules)
        pinned = {rule.name: _in_order(rule, one, catalogue) for rule, one in zip(rules.rules, among, strict=True)}
        return cls(rules.rules, among, pinned, _barred(rules.policy, catalogue) if rules.policy.words else None)

    def removals(self, surface: str, now_ms: int) -> Mapping[str, Bools]:
        """What may not be shown, by the name of what says so (n_items,)."""
        found = {f"rule {rule.name}": among for rule, among in self._now("hide", surface, now_ms)}
        return found if self.barred is None else {**found, POLICY: self.barred}

    def shift(self, items: Ints, scores: Floats, surface: str, now_ms: int) -> Floats:
        """Scores (n,) of items (n,) with what boosts and buries them."""
        if not len(scores):
            return scores
        moved, distance = scores.copy(), scores.max() - scores.min()
        for sign, deed in ((1, "boost"), (-1, "bury")):
            for rule, among in self._now(deed, surface, now_ms):
                moved += among[items] * np.float32(sign * rule.by) * distance
        return moved

    def pins(self, surface: str, now_ms: int) -> Mapping[int, Ints]:
        """Items by the place that is for one of them, from 1, in the order in which they are named."""
        found: dict[int, Ints] = {}
        for rule, _ in self._now("pin", surface, now_ms):
            earlier = found.get(rule.position, np.empty(0, np.int32))
            found[rule.position] = np.concatenate([earlier, self.pinned[rule.name]])
        return found

    def _now(self, deed: str, surface: str, now_ms: int) -> Iterator[tuple[Rule, Bools]]:
        for rule, among in zip(self.rules, self.among, strict=True):
            if rule.do == deed and rule.holds(surface, now_ms):
                yield rule, among


@dataclass
class RuleBook:
    """Follows the file, looking once a second; one that cannot be read leaves the rules as they were, and is logged."""

    path: Path
    catalogue: Catalogue
    _held: Ruled = field(default_factory=Ruled)
    _seen: tuple[int, int] | None = None
    _looked: float = float("-inf")

    def now(self) -> Ruled:
        """Rules as they are; where the file cannot be looked at, as they were."""
        if time.monotonic() - self._looked > POLL_S:
            self._looked = time.monotonic()
            self._follow()
        return self._held

    def _follow(self) -> None:
        try:
            stamp = self.path.stat()
            seen = (stamp.st_mtime_ns, stamp.st_size)
        except FileNotFoundError:
            self._held, self._seen = Ruled(), None
            return
        except OSError as error:
            log.error("rules_left_as_they_were", reason=str(error))
            return
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._held = Ruled.on(read_declared(self.path, Rules), self.catalogue)
        except Exception as error:  # a list without the rules would show what they hide
            known = isinstance(error, HeadwaterError)
            log.error("rules_left_as_they_were", reason=str(error), exc_info=None if known else error)
            return
        log.info("rules", rules=len(self._held.rules), words=self._held.barred is not None)


def _named(rule: Rule, catalogue: Catalogue) -> Bools:
    among = np.ones(len(catalogue.ids), bool)
    if rule.items:
        numbers = catalogue.dense(rule.items)
        among[:] = False
        among[numbers[numbers >= 0]] = True
    for name, wanted in rule.where.items():
        values = (wanted,) if isinstance(wanted, str) else wanted
        among &= column(catalogue, name, f"rule {rule.name}").among(values)
    return among


def _in_order(rule: Rule, among: Bools, catalogue: Catalogue) -> Ints:
    numbers = catalogue.dense(rule.items)
    numbers = numbers[numbers >= 0]
    return np.asarray(numbers[among[numbers]], np.int32)


def _barred(policy: Policy, catalogue: Catalogue) -> Bools:
    words = "|".join(sorted(re.escape(fold(word)) for word in policy.words))
    pattern = re.compile(rf"(?<!\w)(?:{words})(?!\w)")
    barred = np.zeros(len(catalogue.ids), bool)
    for name in policy.attributes:
        told = column(catalogue, name, POLICY)
        barred |= np.array([bool(pattern.search(fold(text))) for text in told.values], bool)[told.numbers]
    return barred


def column(catalogue: Catalogue, name: str, who: str) -> Column:
    """One attribute of all items (n_items,).

    Raises
    ------
    ConfigError
        There is no such attribute.
    """
    try:
        return catalogue.column(name)
    except KeyError:
        raise ConfigError(f"{who}: the catalogue has no attribute {name!r}. Name one that it has.") from None
