"""Why an item is shown, in words for the user: rules over its features, then what its source says."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

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
        if features is not None:
            for rule, column in self._placed:
                value = features[column]
                if rule.at_least <= value <= rule.at_most and rule.feature not in given:  # no NaN is
                    given[rule.feature] = rule.text.format_map({**attributes, "value": value})
        told = given.values() if given else (self.by_source[name] for name in sources if name in self.by_source)
        return tuple(dict.fromkeys(told))[:AT_MOST]

    @cached_property
    def _placed(self) -> list[tuple[Reason, int]]:
        """Rules with their features' columns."""
        return [(rule, self.columns[rule.feature]) for rule in self.rules if rule.feature in self.columns]
