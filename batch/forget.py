"""Forgetting one entity: what the platform can take out of its stores, and by name what it cannot.

    tombstone  the archive's file, then the online store: from here on nobody writes the entity's past
    delete     online store → archive → data files → compacted topics
    name       Kafka's log, the stream's state, bundles, training sets, what others have in common with it, copies

Every step can be repeated, so a run that was interrupted is finished by the next.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import redis

from headwater import topics
from headwater.clock import StoredClock
from headwater.errors import DataError
from headwater.forgotten import StoredTombstones, Tombstone, computed_in, join_keys_of, save_tombstone
from headwater.kafka_io import Cluster, Record, Sender, describe, offset_bounds, partitions_of
from headwater.online.connect import connect
from headwater.online.erase import erase_entity
from headwater.plan import FeaturePlan
from headwater.settings import Settings, addresses
from streaming.archive_writer import Channel, archive_consumer, channels
from streaming.erasure import Eraser, Rewritten, erase, mentions, rewrite, rows_with, without
from streaming.parquet_log import files_held

CATALOGUES = {"user_id": topics.USERS, "item_id": topics.ITEMS}
"""Compacted topics by the id that is their key."""


@dataclass(frozen=True, slots=True)
class Deleted:
    """What was deleted in one place; ``nulls_sent`` records without a value went to a compacted topic."""

    place: str
    keys: int = 0
    fields: int = 0
    rows: int = 0
    files: int = 0
    nulls_sent: int = 0


@dataclass(frozen=True, slots=True)
class NotReached:
    """What still holds the entity, and why, with the way to be rid of it where there is one."""

    place: str
    reason: str


@dataclass(frozen=True, slots=True)
class Forgotten:
    """``at``: the platform's time from which on the entity may be known again."""

    entity: str
    at: int
    deleted: tuple[Deleted, ...]
    not_reached: tuple[NotReached, ...]


def forget(settings: Settings, plan: FeaturePlan, join_key: str, value: str) -> Forgotten:
    """Take one entity out of the online store, the archive and the data files, and keep its past from coming back.

    Raises
    ------
    DataError
        No view is keyed by that name.
    UnavailableError
        Kafka or the online store does not answer; nothing has been deleted then.
    """
    if join_key not in (known := join_keys_of(plan)):
        raise DataError(
            f"{join_key}: no view of project {plan.project} is keyed by it. Choose from {', '.join(known)}."
        )
    found = channels(settings)
    with connect(addresses(settings).redis) as client:
        cluster = describe(addresses(settings).kafka)
        tombstone = Tombstone(join_key, value, StoredClock(client).now_ms(), _ends(settings, cluster, found))
        with files_held(settings.archive_dir):
            save_tombstone(settings.archive_dir, tombstone)
        StoredTombstones(client, plan.project).save(tombstone)
        online, unknown = _online(client, plan, tombstone)
    archived = [_archived(settings, plan, channel, tombstone) for channel in found]
    deleted = (online, *archived, *_data_files(settings, tombstone), *_catalogue(settings, cluster, tombstone))
    return Forgotten(tombstone.name, tombstone.at_ms, deleted, tuple(_left(settings, plan, tombstone, unknown)))


def _ends(settings: Settings, cluster: Cluster, found: tuple[Channel, ...]) -> dict[str, dict[int, int]]:
    consumer = archive_consumer(addresses(settings).kafka)
    try:
        bounds = {one.topic: offset_bounds(consumer, one.topic, partitions_of(cluster, one.topic)) for one in found}
    finally:
        consumer.close()
    return {topic: {number: end for number, (_, end) in parts.items()} for topic, parts in bounds.items()}


def _online(client: redis.Redis, plan: FeaturePlan, tombstone: Tombstone) -> tuple[Deleted, int]:
    erased = erase_entity(client, plan, tombstone.join_key, tombstone.value)
    return Deleted("online store", keys=erased.keys, fields=erased.fields), erased.unknown


def _archived(settings: Settings, plan: FeaturePlan, channel: Channel, tombstone: Tombstone) -> Deleted:
    done = erase(settings.archive_dir, channel.folder, Eraser(channel.topic, plan, (tombstone,)).kept)
    return Deleted(f"archive {channel.topic}", rows=done.rows, files=done.files)


def _data_files(settings: Settings, tombstone: Tombstone) -> Iterator[Deleted]:
    kept = without(tombstone.join_key, tombstone.value)
    for folder in sorted({path.parent for path in settings.data_dir.rglob("*.parquet")}):
        done = sum((rewrite(path, kept) for path in sorted(folder.glob("*.parquet"))), Rewritten())
        yield Deleted(f"data {folder.relative_to(settings.data_dir)}", rows=done.rows, files=done.files)


def _catalogue(settings: Settings, cluster: Cluster, tombstone: Tombstone) -> Iterator[Deleted]:
    """A record without a value, which compaction takes for a deletion."""
    topic = CATALOGUES.get(tombstone.join_key)
    if topic in cluster.partitions:
        sender = Sender(addresses(settings).kafka)
        sender.send(Record(topic, tombstone.value.encode(), None, tombstone.at_ms))
        sender.settle()
        yield Deleted(f"kafka {topic}", nulls_sent=1)


def _left(settings: Settings, plan: FeaturePlan, tombstone: Tombstone, unknown: int) -> Iterator[NotReached]:
    yield from _in_kafka(tombstone)
    yield from _in_the_stream(settings, plan, tombstone)
    yield from _in_models(settings, tombstone)
    yield from _in_sources(settings, plan, tombstone)
    if unknown:
        yield NotReached(
            "online store",
            f"{unknown} fields of definitions that are applied no more lie under other entities' keys, and what they "
            "are keyed by is not known. Delete them with the view, by feast apply, or empty the store.",
        )
    yield NotReached(
        "aggregates of others",
        "what other entities have in common with it, such as an item's counts, was folded from its events and stays "
        "online; offline it is computed without them from now on, so an audit tells the difference.",
    )
    yield NotReached("copies", "backups, snapshots, the store's append-only file until BGREWRITEAOF, exported files.")
    yield NotReached("tombstone", "its name, the time and the offsets are kept, so that its past cannot come back.")


def _in_kafka(tombstone: Tombstone) -> Iterator[NotReached]:
    log = "single records of a log cannot be deleted; they go with the topic's retention"
    for topic in tombstone.ends:
        yield NotReached(f"kafka {topic}", f"{log}. Until then neither the stream nor the archive reads them again.")
    yield NotReached(f"kafka {topics.DEAD_LETTER}", f"{log}. Refused records keep the bytes that were sent.")
    if tombstone.join_key in CATALOGUES:
        compacted = CATALOGUES[tombstone.join_key]
        yield NotReached(
            f"kafka {compacted}", "older records go when the broker compacts their segments, in its own time."
        )


def _in_the_stream(settings: Settings, plan: FeaturePlan, tombstone: Tombstone) -> Iterator[NotReached]:
    computed = computed_in(plan, tombstone.join_key)
    yield NotReached(
        "stream state",
        f"{settings.checkpoints_dir} holds its tiles, which are not written any more. Its later events are archived at "
        "once, and count online once the stream has begun with fresh state: end it, remove that folder, start it.",
    )
    if computed:
        yield NotReached(
            f"views {', '.join(computed)}",
            f"{tombstone.join_key} is computed there, so no column tells whose a record is: archived rows were looked "
            "for in other columns alone, and online these views never show the entity again.",
        )


def _in_models(settings: Settings, tombstone: Tombstone) -> Iterator[NotReached]:
    for folder in _folders(settings.bundles_dir):
        if _rows_in(folder, tombstone):
            yield NotReached(
                f"bundle {folder.name}",
                "the model was trained with it and has it in its id map. Train and promote anew.",
            )
    for folder in _folders(settings.training_dir):
        if rows := _rows_in(folder, tombstone):
            yield NotReached(f"training set {folder}", f"{rows} rows, which its counts and hash name. Make it anew.")


def _in_sources(settings: Settings, plan: FeaturePlan, tombstone: Tombstone) -> Iterator[NotReached]:
    ours = settings.data_dir.resolve()
    for view in plan.batch_views:
        path = Path(view.path).resolve()
        if tombstone.join_key in view.join_keys and ours not in path.parents and _rows_in(path, tombstone):
            yield NotReached(f"source of {view.name}", f"{path} has it and is not ours; the next write brings it back.")
    if shown := mentions(settings.impressions_dir, tombstone.join_key, tombstone.value):
        yield NotReached("archive impressions", f"{shown} impressions of others name it, as what they were shown.")
    yield NotReached(
        "imports",
        "history or files that are brought in again bring it in again, as new records; so does a backfill that "
        "is running now, after which this has to be run again.",
    )


def _folders(parent: Path) -> list[Path]:
    """What lies in a folder, files among it."""
    return sorted(path for path in parent.glob("*") if path.is_dir() or path.suffix == ".parquet")


def _rows_in(place: Path, tombstone: Tombstone) -> int:
    files = sorted(place.rglob("*.parquet")) if place.is_dir() else [place] if place.is_file() else []
    return sum(rows_with(path, tombstone.join_key, tombstone.value) for path in files)
