"""The command ``headwater archive``."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwater.cli.output import JsonFlag, RepoOption, emit

if TYPE_CHECKING:
    from headwater.settings import Settings
    from streaming.verification import TopicReport


def archive(
    until_caught_up: Annotated[
        bool, typer.Option("--until-caught-up", help="End when all that Kafka holds now is archived.")
    ] = False,
    compact: Annotated[bool, typer.Option("--compact", help="Bring small files together, and end.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Hold what is archived against Kafka's offsets; exit 1 where it differs.")
    ] = False,
    repo: RepoOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Example: headwater archive --verify --json.

    Write events and impressions from Kafka to Parquet, each record once. Without an option it goes on until Ctrl-C, as
    `headwater up` runs it. --compact and --verify work beside a running writer.
    """
    from headwater.settings import get_settings
    from streaming.archive import catch_up, main

    if sum((until_caught_up, compact, verify)) > 1:
        raise typer.BadParameter("--until-caught-up, --compact and --verify: give one of them")
    settings = get_settings()
    if repo is not None:
        settings = settings.model_copy(update={"repo": repo})
    if compact:
        emit({"topics": _compact(settings)}, as_json, "Compacted")
    elif verify:
        _verify(settings, as_json)
    elif until_caught_up:
        done = catch_up(settings)
        counts = {"archived": done.archived, "dead_letters": done.dead_letters, "partitions": done.partitions}
        emit(counts, as_json, "Archive")
    else:
        raise typer.Exit(main(settings=settings))


def _compact(settings: "Settings") -> dict[str, Any]:
    from streaming.archive_writer import channels
    from streaming.compaction import compact

    return {
        channel.topic: asdict(compact(settings.archive_dir, channel.folder))
        for channel in channels(settings)
        if channel.folder.exists()
    }


def _verify(settings: "Settings", as_json: bool) -> None:
    from streaming.verification import verify

    found = verify(settings)
    is_exact = all(topic.is_exact for topic in found)
    if as_json:
        emit({"exact": is_exact, "topics": [asdict(topic) for topic in found]}, as_json)
    else:
        _show(found)
    if not is_exact:
        raise typer.Exit(1)


def _show(found: "list[TopicReport]") -> None:
    from rich.console import Console
    from rich.table import Table

    columns = ("topic", "partition", "rows", "offsets", "next", "in Kafka", "gaps", "doubles", "explained", "exact")
    table = Table(*columns, title="Archive against Kafka")
    for topic in found:
        for part in topic.partitions:
            explained = {name: getattr(part, name) for name in ("refused", "forgotten", "no_record", "expired")}
            table.add_row(
                topic.topic, str(part.partition), str(part.rows),
                "" if part.first is None else f"{part.first}–{part.last}", str(part.next_offset),
                f"{part.kafka_first}–{part.kafka_end}", _few(part.gaps), _few(part.doubles),
                ", ".join(f"{count} {name}" for name, count in explained.items() if count),
                "yes" if part.is_exact else "no",
            )  # fmt: skip
    Console().print(table)
    for topic in found:
        if topic.seam.on_both_sides:
            seam = topic.seam
            Console().print(
                f"{topic.topic}: {seam.on_both_sides} of {seam.imported} imported events came over the topic too, "
                f"{seam.differing} of them with other contents {', '.join(seam.examples)}"
            )


def _few(found: list[Any], most: int = 5) -> str:
    shown = [f"{one[0]}–{one[1]}" if isinstance(one, tuple) else str(one) for one in found[:most]]
    return ", ".join(shown) + (f" and {len(found) - most} more" if len(found) > most else "")
