"""One round: a drawn plan, what is sent to its topics, what the naive fold makes of it, and what to ask."""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.oracle import History, Row
from benchmarks.parity.events import Sent, counted, draw_stream, records
from benchmarks.parity.views import SHAPES, DrawnView, draw_plan
from headwater.kafka_io import Record, Sender
from headwater.online.keys import Key
from headwater.plan import FeaturePlan, View
from headwater.registry.manifest import registry_sha256
from headwater.settings import Settings, addresses

MOST_EVENTS = 12_000
ENTITIES = 400
"""Of a view: half those with the most events, half any."""


@dataclass
class Round:
    """One drawn plan and what is sent to its topics.

    ``histories`` hold what counts online: view to entity to its rows; ``archived`` also what came too late for it.
    """

    number: int
    seed: int
    plan: FeaturePlan
    drawn: Mapping[str, DrawnView]
    streams: Mapping[str, Sequence[Sent]]
    settings: Settings
    histories: Mapping[str, Mapping[Key, History]] = field(init=False)
    archived: Mapping[str, Mapping[Key, History]] = field(init=False)

    def __post_init__(self) -> None:
        self.histories, self.archived = self._histories(online=True), self._histories(online=False)

    def _histories(self, online: bool) -> dict[str, dict[Key, History]]:
        count = {
            source.name: counted(
                self.streams[source.name], self.settings, self.plan.horizon_ms(source.name) if online else None
            )
            for source in self.plan.sources
        }
        return {name: histories(drawn, count[drawn.view.source]) for name, drawn in self.drawn.items()}

    def draws(self) -> np.random.Generator:
        """Begin the draws of one engine, which do not depend on what other engines are asked."""
        return np.random.default_rng(self.seed)

    def sent(self) -> list[Record]:
        """All records of all topics, in the order of their arrival."""
        keys = {shape.source: shape.key for shape in SHAPES}
        each = [records(self.streams[one.name], one.topic, keys[one.name]) for one in self.plan.sources]
        return sorted((one for stream in each for one in stream), key=lambda record: record.timestamp_ms)


def send(settings: Settings, records: Sequence[Record]) -> None:
    """Send records and wait until the broker has them."""
    sender = Sender(addresses(settings).kafka)
    for record in records:
        sender.send(record)
    sender.settle()


def drawn_round(number: int, seed: int, cells: int, settings: Settings) -> Round:
    """Draw a round whose topics and folders are its own, on the servers of ``settings``."""
    chance = random.Random(f"{seed} {number}")
    plan, drawn = draw_plan(chance, f"parity{number}")
    count = min(MOST_EVENTS, max(2_000, cells // 200)) // len(plan.sources)
    streams = {
        source.name: draw_stream(chance, source.name, count, plan.horizon_ms(source.name)) for source in plan.sources
    }
    folder = settings.state_dir / f"round{number}"
    own = settings.model_copy(update={"state_dir": folder / "state", "repo": _repository(folder / "repo", plan)})
    return Round(number, seed * 1_000 + number, plan, drawn, streams, own)


def _repository(repo: Path, plan: FeaturePlan) -> Path:
    """Write what of a Feast repository the engines look at: its compiled manifest, and the registry it is of."""
    (repo / "data").mkdir(parents=True)
    (repo / "feature_store.yaml").write_text(f"project: {plan.project}\nregistry: data/registry.db\n")
    (repo / "data" / "registry.db").write_bytes(b"drawn")
    plan.model_copy(update={"registry_sha256": registry_sha256(repo)}).save(repo / "data" / "manifest.json")
    return repo


def histories(drawn: DrawnView, events: Sequence[Sent]) -> dict[Key, History]:
    """Project events as the view's SQL means them, entity by entity."""
    rows: dict[Key, list[Row]] = {}
    for one in events:
        fields = {**one.fields, "event_time": one.event_time, "at": one.event_time}
        key = tuple(fields[name] for name in drawn.view.join_keys)
        if None not in key and drawn.holds(fields):
            values = {name: meant(fields) for name, meant in drawn.values.items()}
            rows.setdefault(key, []).append(Row(one.event_id, one.event_time, one.ingest_time, key, values))
    return {key: History(drawn.view, own) for key, own in rows.items()}


def entities(held: Mapping[Key, History], chance: np.random.Generator) -> list[Key]:
    """Entities to ask for: the busiest, any others, and one that nobody has heard of; by their newest event."""
    busiest = sorted(held, key=lambda key: len(held[key].rows), reverse=True)
    hot, rest = busiest[: ENTITIES // 2], busiest[ENTITIES // 2 :]
    places = chance.permutation(len(rest))[: ENTITIES - len(hot)]
    chosen = sorted([*hot, *(rest[place] for place in places)], key=lambda key: held[key].newest)
    return [*chosen, tuple("nobody" for _ in busiest[0])] if busiest else []


def instants_each(cells: int, plan: FeaturePlan, asked: Mapping[str, Sequence[Key]]) -> int:
    """How many instants of each entity make up at least so many cells."""
    return math.ceil(cells / sum(len(keys) * len(plan.view(name).features) for name, keys in asked.items()))


def edge(view: View, chance: np.random.Generator, first: int, last: int) -> int:
    """Draw an instant of [first, last]: any, or one at the edge of a hop, where windows lose a tile."""
    any_instant = int(chance.integers(first, last + 1))
    hops = [one.hop_ms for one in view.aggregates if one.hop_ms]
    if chance.random() < 0.3 or not hops:
        return any_instant
    hop = int(chance.choice(hops))
    return min(max(any_instant // hop * hop + int(chance.integers(-1, 2)), first), last)


def reach_ms(view: View) -> int:
    """How long after an event something can still change: the longest window and hop, or the ttl."""
    return max(view.ttl_ms, *((one.window_ms or 0) + (one.hop_ms or 0) for one in view.aggregates), 60_000)
