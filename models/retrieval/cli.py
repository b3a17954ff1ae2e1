"""``headwater quality``: how good a model's lists are on data of one's own; the heavy imports are inside."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from headwater.cli.output import JsonFlag, emit, progress


class Name(StrEnum):
    """Models that can be chosen."""

    popularity = "popularity"
    itemknn = "itemknn"
    ease = "ease"
    retriever = "retriever"
    pipeline = "pipeline"


class Repeats(StrEnum):
    """Whether a list may name what its user has had."""

    allow = "allow"
    forbid = "forbid"


def quality(
    train: Annotated[Path, typer.Option(help="user_id, item_id, perhaps event_time (else in order of rows).")],
    test: Annotated[Path, typer.Option(help="What is to be found, with the same columns.")],
    out: Annotated[Path, typer.Option(help="Parquet to write: user_id, rank, item_id, score.")],
    model: Annotated[Name, typer.Option(help="Which model.")] = Name.retriever,
    items: Annotated[
        Path | None, typer.Option(help="Items that may be shown too, perhaps with department, category, brand.")
    ] = None,
    users: Annotated[Path | None, typer.Option(help="Traits of users: user_id and a column each.")] = None,
    repeats: Annotated[Repeats, typer.Option(help="Whether a list may name what its user has had.")] = Repeats.forbid,
    k: Annotated[int, typer.Option(help="Places of a list.", min=1, max=1_000)] = 100,
    minutes: Annotated[float, typer.Option(help="Half of it may go into the choice of settings.", min=0.1)] = 30.0,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="Folder for what was found so far, until the lists are written; a run that was ended goes on from it. "
            "By default beside --out. Example: --checkpoint /scratch/quality"
        ),
    ] = None,
    json_: JsonFlag = False,
) -> None:
    """Example: headwater quality --train train.parquet --test test.parquet --model ease --out top.parquet --json

    Train a model on interactions of any origin, write each test user's best items for anyone to judge, and print
    metrics over the whole catalogue. Settings are chosen by what the training file ends with, never by the test file.
    The same command goes on where it was ended.
    """
    from models.retrieval.quality import checkpoint_of, run, write
    from models.retrieval.task import read_task

    may_repeat = repeats is Repeats.allow
    task = read_task(train, test, may_repeat, items, users)
    folder = checkpoint or out.with_name(f"{out.name}.checkpoint")
    kept = checkpoint_of(task, model.value, may_repeat, minutes, folder)
    with progress() as bar:
        shown = bar.add_task(model.value, total=None)
        lists, found = run(
            task, model.value, may_repeat, k, minutes,
            lambda told: bar.update(shown, description=told, advance=1), kept,
        )  # fmt: skip
    write(task, lists, out)
    kept.clear()
    emit({**found, "out": str(out)}, json_, "Quality")
