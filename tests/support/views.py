"""A view that folds every function over several windows, compiled as the registry's are."""

from typing import Any

from headwater.plan import HOUR_MS, Aggregate, View, parse_function
from headwater.registry.compile import _home, _tables

MINUTE_MS = 60_000


def step_sql(kind: str, quantity: str) -> str:
    """Operations on a set, made of the other columns: :func:`stepped` in SQL."""
    value = f"COALESCE(CAST({quantity} AS STRING), 'none')"
    return (
        f"CASE WHEN {kind} = 'z' THEN 'clear' WHEN {kind} = 'x' THEN 'add:' || {value} "
        f"WHEN {kind} = 'y' THEN 'remove:' || {value} ELSE {kind} END AS step"
    )


def stepped(values: dict[str, Any]) -> dict[str, Any]:
    """Projected values of an event, with the operation that they tell."""
    kind, quantity = values["kind"], values["quantity"]
    value = "none" if quantity is None else str(quantity)
    return {**values, "step": {"x": f"add:{value}", "y": f"remove:{value}", "z": "clear"}.get(kind, kind)}


COLUMNS = {"user_id": "string", "kind": "string", "amount": "fixed", "quantity": "int", "step": "string"}
PROJECTION = (
    "SELECT user_id, item_id, session_id, context['kind'] AS kind, value AS amount, "
    "TRY_CAST(context['quantity'] AS BIGINT) AS quantity, "
    + "{step} FROM events WHERE event_type = 'purchase'".format(
        step=step_sql("context['kind']", "TRY_CAST(context['quantity'] AS BIGINT)")
    )
)
_WINDOWS = {"1h": (HOUR_MS, 10 * MINUTE_MS), "3h": (3 * HOUR_MS, HOUR_MS), "ever": (None, None)}
_FUNCTIONS = (
    ("n", "count", None), ("n_amount", "count", "amount"), ("sum_amount", "sum", "amount"),
    ("sum_quantity", "sum", "quantity"), ("mean_amount", "mean", "amount"), ("min_amount", "min", "amount"),
    ("max_quantity", "max", "quantity"), ("spread", "stddev", "amount"), ("kinds", "approx_count_distinct", "kind"),
    ("quantities", "approx_count_distinct", "quantity"), ("last_kinds", "last(2)", "kind"),
    ("last_amounts", "last(3)", "amount"), ("kinds_lately", "last_distinct(2)", "kind"),
    ("amounts_lately", "last_distinct(2)", "amount"), ("quantities_lately", "last_distinct(3)", "quantity"),
    ("cart", "members", "step"), ("small_cart", "members(2)", "step"), ("habit", "decayed_count(30m)", None),
    ("spending", "decayed_sum(45m)", "amount"),
)  # fmt: skip
_FOR_EVER = ("count", "sum", "min", "max", "last")


def every_function(ttl_ms: int = 0, name: str = "everything", keys: tuple[str, ...] = ("user_id",)) -> View:
    """All functions over 1 hour by 10 minutes, 3 hours by 1 hour and, where allowed, for ever."""
    drafts = [
        _draft(f"{feature}_{label}", function, column, window, hop)
        for label, (window, hop) in _WINDOWS.items()
        for feature, function, column in _FUNCTIONS
        if window is not None or function.split("(")[0] in _FOR_EVER
    ]
    tables = _tables(name, drafts)
    placed = tuple(draft.model_copy(update={"table": _home(draft, tables).id}) for draft in drafts)
    return View(
        name=name, join_keys=keys, source="events", ttl_ms=ttl_ms,
        projection=PROJECTION,
        columns={**COLUMNS, "item_id": "string", "session_id": "string"},  # type: ignore[arg-type]
        aggregates=placed, tables=tables,
    )  # fmt: skip


def _draft(feature: str, function: str, column: str | None, window: int | None, hop: int | None) -> Aggregate:
    kind: Any = "int" if column is None else COLUMNS[column]
    return Aggregate(
        feature=feature, function=parse_function(function, feature), column=column, kind=kind, window_ms=window,
        hop_ms=hop, table="",
    )  # fmt: skip
