"""The offline half: the archive writer on the same topics, and Spark's point-in-time values at any instants."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa

from batch.events import Archive, archive_of
from batch.labels import EVENT_TIMESTAMP, ROW, number_labels
from batch.point_in_time import FOUND, asked, view_values
from batch.session import spark_session
from benchmarks.oracle import History
from benchmarks.parity.cells import Tally, judge
from benchmarks.parity.rounds import Round, edge, entities, instants_each, reach_ms
from headwater.online.keys import Key
from headwater.plan import View
from streaming.archive import catch_up

AS_OF, AS_KNOWN = "Spark, as of", "Spark, as known"
QUESTIONS = 40_000
"""Asked of Spark at a time."""


def compare(one: Round, cells: int, tallies: dict[str, Tally]) -> None:
    """Archive the round's topics, then ask for past and later instants: half of the cells on each clock."""
    catch_up(one.settings)
    spark, chance = spark_session(one.settings), one.draws()
    keys = {view.name: entities(one.archived[view.name], chance) for view in one.plan.views}
    each = instants_each(-(-cells // 2), one.plan, keys)
    for view in one.plan.views:
        archive = archive_of(spark, one.settings, one.plan, view.source)
        held = one.archived[view.name]
        questions = [(key, _instant(view, held[key], chance) if key in held else 0) for key in keys[view.name] * each]
        for first in range(0, len(questions), QUESTIONS):
            part = questions[first : first + QUESTIONS]
            for name, known in ((AS_OF, False), (AS_KNOWN, True)):
                _ask(archive, view, part, held, known, tallies.setdefault(name, Tally()))


def _instant(view: View, history: History, chance: np.random.Generator) -> int:
    """Draw an instant near an event or its arrival, or any from before the first to after all windows have emptied."""
    if chance.random() < 0.5:
        row = history.rows[int(chance.integers(len(history.rows)))]
        return int(chance.choice((row.event_time, row.ingest_time))) + int(chance.integers(0, 2))
    return edge(view, chance, history.rows[0].event_time - 60_000, history.newest + reach_ms(view))


def _ask(
    archive: Archive, view: View, questions: Sequence[tuple[Key, int]], held: Mapping[Key, History], known: bool,
    tally: Tally,
) -> None:  # fmt: skip
    told = _values(archive, view, questions, known)
    values = {
        one.feature: told[one.feature].to_pylist() if one.is_list else _floats(told[one.feature])
        for one in view.aggregates
    }
    nobody = History(view, [])
    naive = [held.get(key, nobody).at(t, known) for key, t in questions]
    judge(tally, view, questions, naive, values, told[FOUND].to_numpy(zero_copy_only=False))


def _values(archive: Archive, view: View, questions: Sequence[tuple[Key, int]], known: bool) -> Any:
    columns: dict[str, Any] = {name: [key[at] for key, _ in questions] for at, name in enumerate(view.join_keys)}
    table = pa.table({**columns, EVENT_TIMESTAMP: pa.array([t for _, t in questions], pa.int64())})
    with TemporaryDirectory() as folder:
        labels = number_labels(table, view.join_keys, Path(folder) / "labels.parquet")
        numbered = asked(archive.spark.read.parquet(str(labels.path)), view)
        return view_values(archive, view, numbered, view.features, known).orderBy(ROW).toArrow().combine_chunks()


def _floats(column: Any) -> Any:
    return column.cast(pa.float64()).to_numpy(zero_copy_only=False)
