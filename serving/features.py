"""One entity's features for a person to look at: float64 and lists, read as a model's are."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwater import assemble
from headwater.clock import Clock
from headwater.errors import DataError, DefinitionError
from headwater.online.reader import OnlineReader, ViewRead
from headwater.plan import FeaturePlan, OnDemandView
from serving.telemetry import Telemetry

Value = float | list[Any] | None


@dataclass(frozen=True, slots=True)
class FeatureValues:
    """``at``: latest instant any view was read at, epoch ms. ``found``: some view has seen its entity."""

    features: Mapping[str, Value]
    at: int
    found: bool
    missing_views: tuple[str, ...]


@dataclass(frozen=True)
class FeatureLookup:
    """Answers for one compiled plan."""

    plan: FeaturePlan
    reader: OnlineReader
    clock: Clock
    telemetry: Telemetry

    def read(
        self, service: str, entities: Mapping[str, str], at: int | None, request: Mapping[str, float]
    ) -> FeatureValues:
        """Values of a service in its order, ``None`` where there is none.

        Raises
        ------
        DataError
            The service is unknown, or a join key or request input is missing.
        NotAnswerableError, UnavailableError
            As :class:`OnlineReader` has it.
        """
        wanted = self._needed(service)
        keys = {view: [self._key(view, entities)] for view in wanted}
        self._require_inputs(service, request)
        reads = self.reader.read_views(keys, at)
        self.telemetry.features(reads)
        now = self.clock.now_ms() if at is None else at
        columns = {
            (view, feature): self._filled(view, feature, reads[view]) for view in wanted for feature in wanted[view]
        }
        inputs = {assemble.REQUEST_TIME: np.array([now], np.int64)}
        inputs |= {name: np.array([value], np.float64) for name, value in request.items()}
        return FeatureValues(
            features=self._named(service, columns, inputs),
            at=max((int(read.at[0]) for read in reads.values()), default=now),
            found=any(bool(read.found[0]) for read in reads.values()),
            missing_views=tuple(view for view, read in reads.items() if not read.found[0]),
        )

    def _needed(self, service: str) -> dict[str, list[str]]:
        try:
            return assemble.needed(self.plan, service)
        except DefinitionError as error:
            raise DataError(str(error)) from None

    def _key(self, view: str, entities: Mapping[str, str]) -> tuple[str, ...]:
        found = self.plan.view(view)
        assert not isinstance(found, OnDemandView)
        missing = [key for key in found.join_keys if not entities.get(key)]
        if missing:
            raise DataError(
                f"entities: {missing[0]!r} is missing, view {view} is keyed by {', '.join(found.join_keys)}. "
                f"Pass --entity {missing[0]}=VALUE."
            )
        return tuple(entities[key] for key in found.join_keys)

    def _require_inputs(self, service: str, request: Mapping[str, float]) -> None:
        for name in assemble.request_inputs(self.plan, service):
            if name not in request:
                raise DataError(f"request: {name!r} is missing, service {service} computes with it. Pass its value.")

    def _filled(self, view: str, feature: str, read: ViewRead) -> Any:
        values = read.values[feature]
        return values if isinstance(values, list) else assemble.fill_default(self.plan, view, feature, values)

    def _named(
        self, service: str, columns: Mapping[tuple[str, str], Any], inputs: Mapping[str, NDArray[Any]]
    ) -> dict[str, Value]:
        named: dict[str, Value] = {}
        computed: dict[str, Mapping[str, NDArray[Any]]] = {}
        for reference in self.plan.service(service).features:
            view = self.plan.view(reference.view)
            if isinstance(view, OnDemandView):
                if view.name not in computed:
                    computed[view.name] = assemble.on_demand(self.plan, view, columns, inputs)
                values = computed[view.name][reference.feature]
            else:
                values = columns[reference.view, reference.feature]
            named[reference.name] = _plain(values[0])
        return named


def _plain(value: Any) -> Value:
    if value is None:
        return None
    if isinstance(value, list):
        return [entry.decode(errors="replace") if isinstance(entry, bytes) else entry for entry in value]
    number = float(value)
    return None if np.isnan(number) else number
