"""The command ``headwater forget``."""

import sys
from dataclasses import asdict
from typing import Annotated, Any

import typer

from headwater.cli.output import JsonFlag, RepoOption, emit

Entity = Annotated[str, typer.Argument(help="A join key and its value.", metavar="KEY=VALUE")]


def forget(
    entity: Entity,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    repo: RepoOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Example: headwater forget user_id=42 --json

    Delete one entity from the online store, the archive and the data files, keep the stream and a replay from bringing
    its past back, and name what still holds it. Run again, it goes on where it was interrupted.
    """
    from batch.forget import forget as run
    from headwater.registry.manifest import load_plan
    from headwater.settings import get_settings

    join_key, equals, value = entity.partition("=")
    if not (join_key and equals and value):
        raise typer.BadParameter(f"{entity!r} is not KEY=VALUE, such as user_id=42.", param_hint="entity")
    settings = get_settings()
    if repo is not None:
        settings = settings.model_copy(update={"repo": repo})
    plan = load_plan(settings.repo)
    if not yes and sys.stdin.isatty():
        typer.confirm(f"Delete {entity} of project {plan.project}? It cannot be undone.", abort=True, err=True)
    done = asdict(run(settings, plan, join_key, value))
    if as_json:
        emit(done, as_json)
    else:
        _show(done)


def _show(done: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    counted = ("keys", "fields", "rows", "files", "nulls_sent")
    deleted = Table("deleted from", *(name.replace("_", " ") for name in counted), title=f"Forgotten: {done['entity']}")
    for one in done["deleted"]:
        deleted.add_row(one["place"], *(str(one[name] or "") for name in counted))
    left = Table("not reached", "why", show_lines=True)
    for one in done["not_reached"]:
        left.add_row(one["place"], one["reason"])
    for table in (deleted, left):
        Console().print(table)
