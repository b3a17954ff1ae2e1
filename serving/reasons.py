"""Why an item is shown, in words for the user: rules over its features, then what its source says."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import compress

import numpy as np
from numpy.typing import NDArray

from serving.ports import Floats
from serving.surfaces import Reason

AT_MOST = 2


@dataclass(frozen=True)
class Reasons:
    """``columns``: the ranker's features, in order; rules over other features never hold."""

    rules: Sequence[Reason]
    by_source: Mapping[str, str]
    columns: Mapping[str, int]

    def of(
        self,
        features: Floats | None,
        sources: Sequence[tuple[str, ...]],
        attributes: Sequence[Mapping[str, str]],
    ) -> list[tuple[str, ...]]:
        """At most two reasons an item: the first rule that holds for each feature, else what the first sources say.

        Parameters
        ----------
        features : (n, n_features)
            The items' rows, absent where the list was made without features.
        sources, attributes : (n,)
        """
        said = {names: _few(self.by_source[name] for name in names if name in self.by_source) for names in {*sources}}
        told = [said[names] for names in sources]
        if features is None or not self._known:
            return told
        values = features[:, self._columns].astype(np.float64)
        holds = (self._bounds[0] <= values) & (values <= self._bounds[1])  # never of NaN
        for row in np.flatnonzero(holds.any(1)).tolist():
            given: dict[str, str] = {}
            for rule, value in compress(zip(self._known, values[row].tolist(), strict=True), holds[row].tolist()):
                if rule.feature not in given:
                    given[rule.feature] = rule.text.format_map({**attributes[row], "value": value})
            told[row] = _few(given.values())
        return told

    @cached_property
    def _known(self) -> list[Reason]:
        """The rules that can hold."""
        return [rule for rule in self.rules if rule.feature in self.columns]

    @cached_property
    def _columns(self) -> list[int]:
        return [self.columns[rule.feature] for rule in self._known]

    @cached_property
    def _bounds(self) -> NDArray[np.float64]:
        """Lowest and highest value by rule (2, n_rules)."""
        return np.array([[rule.at_least, rule.at_most] for rule in self._known]).T


def _few(reasons: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(reasons))[:AT_MOST]
