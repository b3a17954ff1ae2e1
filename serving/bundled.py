"""The candidate sources of a loaded bundle, by the names that surfaces.toml calls them."""

from collections.abc import Collection, Mapping

import numpy as np

from headwater.errors import ConfigError
from headwater.log import get_logger
from headwater.plan import DAY_MS
from models.bundle import Bundle
from models.segments import Segments
from models.trends import best_first
from serving.coldstart import Exploration, InSegment, NewItems, little_shown
from serving.nearby import Content, ItemToItem, RecentNeighbours
from serving.ports import Ints, Source
from serving.sources import BuyItAgain, Fixed, TwoTower
from serving.surfaces import SourceSettings

log = get_logger("serving")
NOTHING = Fixed(np.empty(0, np.int32))
LATER = ("item_to_item", "content", "popular_in_segment", "trending_in_segment", "new_items", "exploration")
"""Read tables that bundles of before do not have."""


def sources_of(bundle: Bundle, settings: SourceSettings) -> Mapping[str, Source]:
    """All sources; one whose table the bundle lacks proposes nothing.

    Raises
    ------
    ConfigError
        The declared attribute is none that the bundle has segments by.
    """
    popular, trending = bundle.popular, best_first(bundle.trending)
    tables = bundle.tables
    found: dict[str, Source] = {
        "buy_it_again": BuyItAgain(),
        "two_tower": TwoTower(bundle.encoder, bundle.index),
        "recent_neighbours": RecentNeighbours(bundle.vectors, bundle.index),
        "popular": Fixed(popular),
        "trending": Fixed(trending),
        **dict.fromkeys(LATER, NOTHING),
    }
    if tables.neighbours is not None:
        found["item_to_item"] = ItemToItem(tables.neighbours)
    if tables.texts is not None:
        found["content"] = Content(tables.texts)
    if settings.segment is not None and tables.segments is not None:
        found |= _in_segments(tables.segments, settings.segment, popular, trending)
    if tables.first_seen is not None:
        since_ms = bundle.meta.training_end_ms - settings.new_days * DAY_MS
        found["new_items"] = NewItems(tables.first_seen, bundle.popularity, settings.new_days)
        found["exploration"] = Exploration(little_shown(bundle.popularity, tables.first_seen, since_ms))
    return found


def tell_idle(version: str, sources: Mapping[str, Source], wanted: Collection[str]) -> None:
    """Log which of the sources that surfaces name have nothing to propose from, if any."""
    idle = sorted({name for name in wanted if sources.get(name) is NOTHING})
    if idle:
        log.warning(
            "sources_idle", bundle=version, sources=idle,
            remedy="train anew, as the bundle lacks their tables, and declare sources.segment where one is by segment",
        )  # fmt: skip


def _in_segments(segments: Segments, attribute: str, popular: Ints, trending: Ints) -> dict[str, Source]:
    if attribute not in segments.users:
        raise ConfigError(
            f"sources.segment: users have no attribute {attribute!r}. Choose from {', '.join(segments.users)}."
        )
    held, of_user = segments.of(attribute), segments.users[attribute]
    return {
        "popular_in_segment": InSegment({value: one.popular for value, one in held.items()}, popular, of_user),
        "trending_in_segment": InSegment({value: one.trending for value, one in held.items()}, trending, of_user),
    }
