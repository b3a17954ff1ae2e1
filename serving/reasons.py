"""Why an item is shown, in words for the user: rules over its features, then what its source says."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from serving.surfaces import Reason

AT_MOST = 2


@dataclass(frozen=True)
class Reasons:
    """``columns``: the ranker's features, in order; rules over other features never hold."""

    rules: Sequence[Reason]
    by_source: Mapping[str, str]
    columns: Mapping[str, int]

    def of(
        self, features: Sequence[float] | None, sources: Sequence[str], attributes: Mapping[str, str]
    ) -> tuple[str, ...]:
        """At most two reasons: the first rule that holds for each feature, else what the first sources say.

        Parameters
        ----------
        features : (n_features,)
            The item's row, absent where the list was made without features.
        """
        given: dict[str, str] = {}
        for rule in self.rules:
            value = self._value(rule.feature, features)
            if value is not None and rule.feature not in given and rule.at_least <= value <= rule.at_most:
                given[rule.feature] = rule.text.format_map({**attributes, "value": value})
        from_sources = [self.by_source[source] for source in sources if source in self.by_source]
        return tuple(dict.fromkeys([*given.values(), *([] if given else from_sources)]))[:AT_MOST]

    def _value(self, feature: str, features: Sequence[float] | None) -> float | None:
        if features is None or feature not in self.columns:
            return None
        value = features[self.columns[feature]]
        return None if math.isnan(value) else value
