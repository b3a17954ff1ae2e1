"""Which impression each outcome belongs to, on Spark: each outcome has one fate per objective, and none is lost.

::

    events ──each id once──► outcomes ──taken back?──┐
    impressions ──shown items────────────────────────┤ by (request, item), else the newest of (user, item) before it
                                                     ▼
                                    (outcome, impression, fate of each objective) ──► labels, accounting

=====================  =================================================================================================
fate                   an outcome ends so for an objective when
=====================  =================================================================================================
retracted              it was taken back by an event known at the cut-off
not_shown              the list it names, or the user's newest list within the window, did not show its item
without_impression     there is no such list, or the request it names was never logged
before_impression      it happened before the impression that it names
past_window            it happened when the window of its impression was over
too_young              its impression's labels are not final at the cut-off
credited               none of these: it is in the label of its impression
=====================  =================================================================================================

The window of an impression at t is [t, t + window): features fold what is before t, labels what is not.
"""

from bisect import bisect_left
from collections.abc import Callable, Collection
from typing import Any

import pyarrow as pa

from batch.events import Archive, bucketed, fixed_point
from batch.objectives import Labelling, Objective
from headwater.plan import Source
from headwater.records import ENVELOPE
from headwater.settings import Settings
from headwater.topics import EVENTS

CREDITED = "credited"
FATES = (
    CREDITED, "retracted", "too_young", "past_window", "before_impression", "not_shown", "without_impression",
)  # fmt: skip
SCALE = "decimal(38,6)"
"""Sums of values: exact, in the unit of the events."""
_SOURCE = Source(
    name=EVENTS, topic=EVENTS, columns=tuple(ENVELOPE.items()), event_id="event_id", event_time="event_time",
    key="user_id",
)  # fmt: skip


def read_outcomes(
    spark: Any, settings: Settings, labelling: Labelling, cutoff_ms: int, since_ms: int | None = None
) -> tuple[int, Any]:
    """How many outcomes and retractions had arrived before ``cutoff_ms``, and a DataFrame of the distinct ones.

    Those that happened before ``since_ms`` are left out.

    Columns: ``event_id, event_type, event_time, user_id, item_id, request_id, amount`` (millionths), ``named`` (the
    event that a retraction names).
    """
    archive = Archive(spark, settings.events_dir, _SOURCE, since_ms=since_ms)
    kinds = _texts([*labelling.outcomes, *labelling.retractions])
    wanted = f"event_type IN ({kinds}) AND ingest_time < {cutoff_ms} AND event_time < {cutoff_ms}"
    named = " ".join(
        f"WHEN '{kind}' THEN context['{rule.names}']" for kind, rule in labelling.retractions.items() if rule.names
    )
    found = archive.events.where(wanted).selectExpr(
        "event_id", "event_type", "event_time", "user_id", "item_id", "request_id",
        f"{fixed_point('value')} AS amount", f"{f'CASE event_type {named} END' if named else 'NULL'} AS named",
    )  # fmt: skip
    return archive.rows.where(wanted).count(), found


def retracted(outcomes: Any, labelling: Labelling) -> Any:
    """DataFrame ``retraction, outcome`` of event ids: what each retraction takes back, null where nothing.

    Those that name an event come first; then, in order of (event time, event id), each takes the newest one before it
    that still stands.
    """
    kinds = _texts(labelling.retractions) or "NULL"
    users = outcomes.where(f"event_type IN ({kinds})").select("user_id").distinct()
    theirs = outcomes.join(users, "user_id", "left_semi")
    buckets = bucketed(theirs, ["user_id"])
    return buckets.applyInArrow(_retractor(labelling), "retraction string, outcome string")


def attributed(outcomes: Any, retractions: Any, impressions: Any, labelling: Labelling, cutoff_ms: int) -> Any:
    """DataFrame of the outcomes: ``event_id, request_id`` (their impression's) ``, item_id, amount, fate_<objective>``.

    Parameters
    ----------
    impressions
        Distinct ones, the too young among them.
    """
    taken = retractions.where("outcome IS NOT NULL").selectExpr("outcome AS event_id", "true AS _retracted")
    counted = outcomes.where(f"event_type IN ({_texts(labelling.outcomes)})").join(taken, "event_id", "left")
    shown = impressions.selectExpr("request_id", "user_id", "time", "inline(items)").where("shown")
    placed = _by_request(counted, shown, impressions).unionByName(_by_pair(counted, shown))
    fates = [
        f"{_fate(objective, labelling.final_ms, cutoff_ms)} AS fate_{name}"
        for name, objective in labelling.objectives.items()
    ]
    return placed.selectExpr("event_id", "_request AS request_id", "item_id", "amount", *fates)


def labels_of(found: Any, labelling: Labelling) -> Any:
    """DataFrame ``request_id, item_id`` and a column an objective, of the impressions that have some outcome."""
    from pyspark.sql.functions import expr

    folds = []
    for name, objective in labelling.objectives.items():
        credited = f"fate_{name} = '{CREDITED}'"
        if objective.fold == "any":
            folds.append(f"CAST(MAX(IF({credited}, 1, 0)) AS TINYINT) AS {name}")
        else:
            total = f"SUM(IF({credited}, CAST(COALESCE(amount, 0) AS DECIMAL(28,0)), 0))"
            folds.append(f"CAST({total} * 0.000001BD AS {SCALE}) AS {name}")
    some = " OR ".join(f"fate_{name} = '{CREDITED}'" for name in labelling.objectives)
    return found.where(some).groupBy("request_id", "item_id").agg(*map(expr, folds))


def _by_request(outcomes: Any, shown: Any, impressions: Any) -> Any:
    """Outcomes that name their request: the item in its list."""
    lists = impressions.selectExpr("request_id", "time AS _list")
    items = shown.selectExpr("request_id", "item_id", "request_id AS _request", "time AS _time")
    named = outcomes.where("request_id IS NOT NULL")
    return named.join(lists, "request_id", "left").join(items, ["request_id", "item_id"], "left")


def _by_pair(outcomes: Any, shown: Any) -> Any:
    """Outcomes that name none: the newest impression of that item to that user, at the latest in the same millisecond.

    Among impressions of one instant the greatest request id is the newest. Spark's windows spill to disk, so a user or
    an item that everything is about needs no more memory than another.
    """
    rest = outcomes.where("request_id IS NULL").selectExpr("*", "event_time AS _at", "1 AS _after")
    lists = shown.selectExpr("request_id AS _shown", "user_id", "item_id", "time AS _at", "0 AS _after")
    both = rest.unionByName(lists, allowMissingColumns=True)
    order = "order by _at, _after, _shown rows between unbounded preceding and current row"
    impression = "IF(_after = 0, struct(_shown, _at), NULL)"
    newest = f"last({impression}, true) over (partition by user_id, item_id {order}) AS _newest"
    newest_list = f"last(IF(_after = 0, _at, NULL), true) over (partition by user_id {order}) AS _list"
    placed = both.selectExpr("*", newest, newest_list).where("_after = 1")
    return placed.selectExpr("*", "_newest._shown AS _request", "_newest._at AS _time").drop(
        "_newest", "_shown", "_at", "_after"
    )


def _fate(objective: Objective, final_ms: int, cutoff_ms: int) -> str:
    window = objective.window_ms
    return (
        f"CASE WHEN event_type NOT IN ({_texts(objective.events)}) THEN NULL WHEN _retracted THEN 'retracted' "
        f"WHEN _time IS NULL AND _list IS NOT NULL AND (request_id IS NOT NULL OR event_time < _list + {window}) "
        "THEN 'not_shown' WHEN _time IS NULL THEN 'without_impression' "
        "WHEN event_time < _time THEN 'before_impression' "
        f"WHEN event_time >= _time + {window} THEN 'past_window' "
        f"WHEN _time + {final_ms} > {cutoff_ms} THEN 'too_young' ELSE '{CREDITED}' END"
    )


def _retractor(labelling: Labelling) -> Callable[[pa.Table], pa.Table]:
    def retract(rows: pa.Table) -> pa.Table:
        ordered = rows.select(["event_time", "event_id", "event_type", "user_id", "item_id", "named"]).sort_by(
            [("event_time", "ascending"), ("event_id", "ascending")]
        )
        pairs = pair_retractions(ordered.to_pylist(), labelling)
        return pa.table({
            "retraction": pa.array([left for left, _ in pairs], pa.string()),
            "outcome": pa.array([right for _, right in pairs], pa.string()),
        })  # fmt: skip

    return retract


def pair_retractions(rows: list[dict[str, Any]], labelling: Labelling) -> list[tuple[str, str | None]]:
    """(retraction, what it takes back) among events in their total order."""
    place = {row["event_id"]: at for at, row in enumerate(rows)}
    of_pair: dict[tuple[str, str | None], list[int]] = {}
    for at, row in enumerate(rows):
        of_pair.setdefault((row["user_id"], row["item_id"]), []).append(at)
    retractions = [at for at, row in enumerate(rows) if row["event_type"] in labelling.retractions]
    standing = set(range(len(rows)))
    pairs = []
    for at in sorted(retractions, key=lambda at: (rows[at]["named"] is None, at)):
        row, rule = rows[at], labelling.retractions[rows[at]["event_type"]]
        oldest = row["event_time"] - rule.within_ms
        if row["named"] is not None:
            among = [place[row["named"]]] if row["named"] in place else []
        else:
            among = of_pair[row["user_id"], row["item_id"]] if row["item_id"] is not None else []
        taken = next(
            (
                other
                for other in reversed(among[: bisect_left(among, at)])
                if other in standing
                and rows[other]["user_id"] == row["user_id"]
                and rows[other]["event_type"] in rule.events
                and rows[other]["event_time"] >= oldest
            ),
            None,
        )
        standing.discard(-1 if taken is None else taken)
        pairs.append((row["event_id"], None if taken is None else rows[taken]["event_id"]))
    return pairs


def _texts(names: Collection[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
