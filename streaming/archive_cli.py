"""The command ``headwater archive``."""

from typing import Annotated

import typer

from headwater.cli.output import JsonFlag, RepoOption, emit


def archive(
    until_caught_up: Annotated[
        bool, typer.Option("--until-caught-up", help="End when all that Kafka holds now is archived.")
    ] = False,
    repo: RepoOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Example: headwater archive --until-caught-up --json.

    Write events and impressions from Kafka to Parquet, each record once. Without the option it goes on until Ctrl-C,
    as `headwater up` runs it.
    """
    from headwater.settings import get_settings
    from streaming.archive import catch_up, main

    settings = get_settings()
    if repo is not None:
        settings = settings.model_copy(update={"repo": repo})
    if not until_caught_up:
        raise typer.Exit(main(settings=settings))
    done = catch_up(settings)
    counts = {"archived": done.archived, "dead_letters": done.dead_letters, "partitions": done.partitions}
    emit(counts, as_json, "Archive")
