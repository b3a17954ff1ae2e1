"""The commands that bring data in: ``headwater data`` and ``headwater ingest``."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from headwater.cli.output import JsonFlag, emit, progress

data = typer.Typer(no_args_is_help=True)


@data.callback()
def _group() -> None:
    """Example: headwater data complete-journey --small.

    Prepare a data set for the platform.
    """


@data.command("complete-journey")
def complete_journey(
    small: Annotated[bool, typer.Option("--small", help="200 households instead of 2,469, and what they buy.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Example: headwater data complete-journey --small.

    A year of grocery purchases becomes history in the archive, a replay and a held-out test period. Run again, it
    finds what is there.
    """
    from headwater.datasets.complete_journey import SMALL_HOUSEHOLDS, prepare
    from headwater.settings import get_settings

    with progress() as bar:
        task = bar.add_task("complete journey", total=None)
        summary = prepare(
            get_settings(),
            households=SMALL_HOUSEHOLDS if small else None,
            report=lambda done, total: bar.update(task, completed=done, total=total),
        )
    emit(asdict(summary), as_json, "Complete Journey")


def ingest(
    file: Annotated[Path, typer.Argument(help="JSON Lines (.jsonl), CSV or Parquet.")],
    column_map: Annotated[
        str | None, typer.Option("--map", help="FIELD=COLUMN,… where names differ; context.NAME=COLUMN adds context.")
    ] = None,
    event_type: Annotated[str, typer.Option(help="Of rows that carry none.")] = "purchase",
    topic: Annotated[str, typer.Option(help="Kafka topic.")] = "events",
    historic: Annotated[bool, typer.Option("--historic", help="Events were known when they happened.")] = False,
    ingest_time: Annotated[
        str | None, typer.Option(help="Column that tells when an event became known; else now.", metavar="COLUMN")
    ] = None,
    restart: Annotated[bool, typer.Option("--restart", help="From the first row, even if sent before.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Example: headwater ingest orders.csv --map event_time=ordered_at,user_id=customer,item_id=sku --historic.

    Send a file of your own events into Kafka: as the platform's, or with --topic as that topic's, whose columns the
    applied definitions declare. Stopped and started again, it goes on where the broker last answered;
    rows that are no event go to the dead letter, with the reason.
    """
    from headwater.clock import StoredClock
    from headwater.datasets.ingest import column_map as columns_of
    from headwater.datasets.ingest import ingest as ingest_file
    from headwater.online.connect import connect
    from headwater.settings import addresses, get_settings

    settings = get_settings()
    clock = StoredClock(connect(addresses(settings).redis, socket_timeout=1, socket_connect_timeout=1))
    columns = columns_of(settings, topic, column_map, event_type, ingest_time)
    with progress() as bar:
        task = bar.add_task(file.name, total=None)
        summary = ingest_file(
            settings, file, columns, clock, topic, historic, restart,
            lambda done, total: bar.update(task, completed=done, total=total),
        )  # fmt: skip
    emit(asdict(summary), as_json, f"Ingested {file.name}")


@data.command("replay")
def replay(as_json: JsonFlag = False) -> None:
    """Example: headwater data replay --json.

    Send the catalogue and the weeks before the test period through Kafka, as fast as the broker takes them, and leave
    the platform's clock just after the last of them. Run again, it goes on where it was stopped.
    """
    from headwater.clock import StoredClock
    from headwater.datasets.complete_journey import home_of
    from headwater.datasets.replay import publish_catalogue
    from headwater.datasets.replay import replay as replay_file
    from headwater.online.connect import connect
    from headwater.settings import addresses, get_settings

    settings = get_settings()
    with progress() as bar, connect(addresses(settings).redis) as store:
        task = bar.add_task("catalogue", total=None)
        catalogue = publish_catalogue(settings)
        bar.update(task, description="replay")
        summary = replay_file(
            settings, home_of(settings) / "replay.parquet", StoredClock(store),
            lambda done, total: bar.update(task, completed=done, total=total),
        )  # fmt: skip
    emit(asdict(summary) | {"catalogue": catalogue}, as_json, "Replay")
