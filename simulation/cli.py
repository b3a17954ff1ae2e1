"""``headwater simulate``."""

from pathlib import Path
from typing import Annotated

import typer

from headwater.cli.output import JsonFlag, emit, progress


def simulate(
    out: Annotated[Path, typer.Option("--out", help="Folder of the run; one that is there is gone on with.")],
    world: Annotated[
        Path | None, typer.Option("--world", help="File that describes the world; the package's own by default.")
    ] = None,
    days: Annotated[int, typer.Option("--days", help="Simulated days in all.", min=1, max=10_000)] = 7,
    seed: Annotated[int | None, typer.Option("--seed", help="Instead of the file's.", min=0)] = None,
    users: Annotated[
        int | None, typer.Option("--users", help="So many of the data's shoppers, instead of the file's.", min=1)
    ] = None,
    side_by_side: Annotated[
        int, typer.Option("--side-by-side", help="Shoppers at the same time.", min=1, max=10_000)
    ] = 8,
    connections: Annotated[
        int, typer.Option("--connections", help="Taken in turn, so that several workers are asked.", min=1, max=1000)
    ] = 1,
    stretches: Annotated[
        int, typer.Option("--stretches", help="Of a day: how often the clock is moved.", min=1, max=96)
    ] = 4,
    as_json: JsonFlag = False,
) -> None:
    """Example: headwater simulate --days 7 --seed 1 --out runs/first --json

    Let simulated shoppers use the running server for some days of the platform's clock: they ask for lists, click, buy
    and return, by chances that the simulator knows, so that what each list was worth beside the best is exact. All
    figures are simulated. Stopped and started again, or with more days, it goes on after the last finished day.
    """
    from headwater.settings import get_settings
    from simulation.config import load_world_config
    from simulation.run import Asked
    from simulation.run import simulate as run

    config = load_world_config(world).seeded(seed).peopled(users)
    asked = Asked(config, days, out, side_by_side, connections, stretches)
    with progress() as bar:
        task = bar.add_task("fitting the world", total=None)

        def report(day: int, done: int, total: int) -> None:
            bar.update(task, description=f"simulated day {day + 1} of {days}", completed=done, total=total)

        told = run(get_settings(), asked, report)
    emit(told, as_json, "Simulated")
