"""Is a view worth its keep? The ranker with and without it, on the same later requests, and what it costs to serve."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import redis

from headwater.errors import ConfigError
from headwater.online.keys import entity_key, project_prefix
from headwater.online.reader import OnlineReader
from headwater.plan import BatchView, FeaturePlan, View
from models.evaluation.metrics import Interval, mean, paired_bootstrap
from models.ranking import DEFAULT_RANKER, RankerConfig, Rows, grow, split

SEED = 5
SAMPLED = 500
READS = 20


@dataclass(frozen=True)
class Cost:
    """What a view takes online, of :data:`SAMPLED` entities of the store at most.

    Attributes
    ----------
    entities
        How many were looked at; without any, bytes and reading are ``None``.
    bytes_an_entity
        Packed values, without what the store adds.
    read_ms
        CPU milliseconds of this process for reading the view of all of them; only of views with one join key.
    tiles_an_event
        Tiles that an event of the view's source changes, if it passes its filter; 0 where no stream writes it.
    """

    entities: int
    bytes_an_entity: float | None
    read_ms: float | None
    tiles_an_event: int


@dataclass(frozen=True)
class Trial:
    """NDCG@10 of the later requests with and without a view, and the mean difference with its 95 % interval."""

    view: str
    features: tuple[str, ...]
    ndcg_with: float
    ndcg_without: float
    lift: Interval
    requests: int
    cost: Cost | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"lift_excludes_zero": self.lift.excludes_zero}


def features_of(plan: FeaturePlan, service: str, view: str) -> tuple[str, ...]:
    """Columns of a service that go with a view: its own, and those that are computed from it when they are asked for.

    Raises
    ------
    ConfigError
        The service reads nothing of it, or nothing else.
    """
    plan.view(view)
    gone = {view} | {one.name for one in plan.on_demand if view in {source for source, _ in one.inputs}}
    held = plan.service(service).features
    found = tuple(feature.name for feature in held if feature.view in gone)
    if not found:
        raise ConfigError(f"{view}: service {service} reads no feature of it. Add some, and make the rows again.")
    if len(found) == len(held):
        raise ConfigError(f"{view}: without it nothing of service {service} is left to compare with.")
    return found


def lift(
    rows: Rows, names: tuple[str, ...], without: tuple[str, ...], config: RankerConfig = DEFAULT_RANKER
) -> tuple[float, float, Interval, int]:
    """Train twice on the earlier requests; NDCG of the later ones with and without some columns, and the lift.

    Parameters
    ----------
    rows
        Whose features are ``names``.
    """
    kept = [at for at, name in enumerate(names) if name not in without]
    fewer = replace(rows, features=rows.features[:, kept])
    scores = []
    for some, columns in ((rows, names), (fewer, tuple(names[at] for at in kept))):
        earlier, later = split(some, config)
        scores.append(later.ndcg(grow(earlier, later, columns, config).score(later.features)))
    both, alone = scores
    return mean(both), mean(alone), paired_bootstrap(both, alone, SEED), int(np.isfinite(both).sum())


def cost_of(plan: FeaturePlan, view: str, client: "redis.Redis", reader: OnlineReader) -> Cost | None:
    """What a view takes in the store as it is now; ``None`` of one that is computed when it is asked for."""
    found = plan.view(view)
    if not isinstance(found, View | BatchView):
        return None
    tables = [table.field for table in found.tables] if isinstance(found, View) else [found.field]
    base = entity_key(project_prefix(plan.project), found.join_keys[0], "")
    owners = list(islice(client.scan_iter(match=_escaped(base) + b"*", count=1_000), 4 * SAMPLED))
    sizes: dict[bytes, int] = {}
    for owner in owners:
        held: Mapping[bytes, bytes] = client.hgetall(owner)  # type: ignore[assignment]  # may be awaitable, say its types
        for name, value in held.items():
            if name[:8] in tables:
                entity = owner + name[8:]
                sizes[entity] = sizes.get(entity, 0) + len(value)
        if len(sizes) >= SAMPLED:
            break
    written = len(tables) if isinstance(found, View) else 0
    if not sizes:
        return Cost(0, None, None, written)
    read_ms = None
    if len(found.join_keys) == 1:
        keys = [(entity[len(base) :].decode(),) for entity in sizes]
        reader.read_views({view: keys})
        began = time.process_time()
        for _ in range(READS):
            reader.read_views({view: keys})
        read_ms = round((time.process_time() - began) * 1_000 / READS, 3)
    return Cost(len(sizes), round(sum(sizes.values()) / len(sizes), 1), read_ms, written)


def _escaped(prefix: bytes) -> bytes:
    """As the store's patterns want it."""
    return b"".join(b"\\" + bytes([one]) if one in b"*?[]\\" else bytes([one]) for one in prefix)
