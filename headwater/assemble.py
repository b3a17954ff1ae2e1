"""From views' values to a service's matrix: defaults, request-time functions, order, float32.

Training and serving both end here, so a default or an on-demand feature cannot differ between them.
"""

import importlib
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwater.errors import DefinitionError
from headwater.plan import Aggregate, Column, FeaturePlan, OnDemandView, View

Columns = Mapping[tuple[str, str], NDArray[Any]]
OnDemandFunction = Callable[[Mapping[str, NDArray[Any]]], Mapping[str, NDArray[Any]]]
REQUEST_TIME = "request_time"
"""Request input that the platform fills: the clock in serving, the label's time in training (epoch ms, int64)."""


def needed(plan: FeaturePlan, service: str) -> dict[str, list[str]]:
    """Stored views and the features of them that a service reads, on-demand inputs included."""
    wanted: dict[str, list[str]] = {}
    for reference in plan.service(service).features:
        view = plan.view(reference.view)
        pairs = view.inputs if isinstance(view, OnDemandView) else ((reference.view, reference.feature),)
        for name, feature in pairs:
            held = wanted.setdefault(name, [])
            if feature not in held:
                held.append(feature)
    return wanted


def request_inputs(plan: FeaturePlan, service: str) -> list[str]:
    """Request inputs a service needs besides :data:`REQUEST_TIME`."""
    views = {plan.view(reference.view).name: plan.view(reference.view) for reference in plan.service(service).features}
    names = [name for view in views.values() if isinstance(view, OnDemandView) for name in view.request]
    return [name for name in dict.fromkeys(names) if name != REQUEST_TIME]


class Assembly:
    """What a service's rows are made of, looked up once: where each column comes from and what stands in its gaps."""

    def __init__(self, plan: FeaturePlan, service: str) -> None:
        features = plan.service(service).features
        self.names = plan.service(service).names
        self.needed = needed(plan, service)
        self._plan = plan
        self._columns = [(reference.view, reference.feature) for reference in features]
        views = {name: plan.view(name) for name, _ in self._columns}
        self._on_demand = [view for view in views.values() if isinstance(view, OnDemandView)]
        self._inputs = {
            (name, feature): _definition(plan, name, feature).default
            for view in self._on_demand
            for name, feature in view.inputs
        }
        defaults = [
            None if isinstance(views[name], OnDemandView) else _definition(plan, name, feature).default
            for name, feature in self._columns
        ]
        self._defaults = np.array([np.nan if one is None else one for one in defaults], np.float32)[:, None]

    def matrix(self, columns: Columns, request: Mapping[str, NDArray[Any]], n: int) -> NDArray[np.float32]:
        """Assemble n rows.

        Parameters
        ----------
        columns : each float64 (n,)
            Values by (view, feature), NaN where there is none.
        request : each (n,)
            Request inputs by name, :data:`REQUEST_TIME` among them.

        Returns
        -------
        float32 (n, n_features), in the service's order.
        """
        inputs = {key: _filled(columns[key], default) for key, default in self._inputs.items()}
        computed: dict[tuple[str, str], NDArray[Any]] = {}
        for view in self._on_demand:
            found = on_demand(self._plan, view, inputs, request)
            computed.update({(view.name, feature): found[feature] for feature in view.features})
        out = np.empty((len(self._columns), n), np.float32)
        for at, column in enumerate(self._columns):
            out[at] = computed[column] if column in computed else columns[column]
        np.copyto(out, self._defaults, where=np.isnan(out) & ~np.isnan(self._defaults))
        return np.ascontiguousarray(out.T)


def matrix(
    plan: FeaturePlan, service: str, columns: Columns, request: Mapping[str, NDArray[Any]], n: int
) -> NDArray[np.float32]:
    """Assemble n rows of a service, as :meth:`Assembly.matrix` does."""
    return Assembly(plan, service).matrix(columns, request, n)


def on_demand(
    plan: FeaturePlan, view: OnDemandView, columns: Columns, request: Mapping[str, NDArray[Any]]
) -> Mapping[str, NDArray[Any]]:
    """Run a request-time view's function.

    Raises
    ------
    DefinitionError
        The function cannot be imported, or does not return the view's features.
    """
    inputs: dict[str, NDArray[Any]] = {feature: columns[name, feature] for name, feature in view.inputs}
    for name in view.request:
        if name not in request:
            raise DefinitionError(f"{view.name}: request input {name!r} is missing. Pass it with the request.")
        inputs[name] = request[name]
    with np.errstate(divide="ignore", invalid="ignore"):
        result = _load(view.function, plan.repo)(inputs)
    missing = set(view.features) - set(result)
    if missing:
        raise DefinitionError(f"{view.name}: {view.function} did not return {', '.join(sorted(missing))}.")
    return result


def fill_default(plan: FeaturePlan, view: str, feature: str, values: NDArray[Any]) -> NDArray[Any]:
    """Put the feature's declared default where there is no value."""
    return _filled(values, _definition(plan, view, feature).default)


def _filled(values: NDArray[Any], default: float | None) -> NDArray[Any]:
    return values if default is None else np.where(np.isnan(values), default, values)


def _definition(plan: FeaturePlan, view: str, feature: str) -> Aggregate | Column:
    found = plan.view(view)
    if isinstance(found, View):
        return next(aggregate for aggregate in found.aggregates if aggregate.feature == feature)
    return next(column for column in found.columns if column.name == feature)


@lru_cache(maxsize=64)
def _load(function: str, repo: str) -> OnDemandFunction:
    module, name = function.split(":")
    root = str(Path(repo).resolve())
    sys.path.insert(0, root)
    try:
        loaded: OnDemandFunction = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise DefinitionError(
            f"{function}: {error}. The tag headwater.function names module:function, found from {repo}."
        ) from None
    finally:
        sys.path.remove(root)
    return loaded
