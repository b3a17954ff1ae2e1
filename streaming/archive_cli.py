"""The command ``headwater archive``."""

from typing import Annotated

import typer

from headwater.cli.output import JsonFlag, emit


def archive(
    until_caught_up: Annotated[
        bool, typer.Option("--until-caught-up", help="End when all that Kafka holds now is archived.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Example: headwater archive --until-caught-up --json.

    Write events and impressions from Kafka to Parquet, each record once. Without the option it goes on until Ctrl-C,
    as `headwater up` runs it.
    """
    from headwater.settings import get_settings
    from streaming.archive import catch_up, main

    if not until_caught_up:
        raise typer.Exit(main())
    done = catch_up(get_settings())
    counts = {"archived": done.archived, "dead_letters": done.dead_letters, "partitions": done.partitions}
    emit(counts, as_json, "Archive")
