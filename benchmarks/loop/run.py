"""One loop: generations that serve the simulated world, learn from what they showed, and serve again.

::

    first bundle ─► serve ─► Recommend, Track ─► topics ─► archive ─┐
        ▲                                                           │
        └── promoted ◄── gates ◄── the scheduled Dagster assets ◄───┘
"""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from batch.audit import audit
from batch.begun import ReadyMade
from batch.history import dagster_home
from batch.retrain import SparkSteps
from batch.retraining import SERVICE, Retraining, last_whole_day, run_once
from batch.rollout import rollouts_of
from batch.session import spark_session
from benchmarks.loop.estimates import Foretold, foretell
from benchmarks.parts import EXAMPLE
from headwater.clock import StoredClock
from headwater.datasets.complete_journey import home_of
from headwater.errors import UnavailableError
from headwater.online.connect import connect
from headwater.online.mirror import FRESH_MS
from headwater.registry.manifest import load_plan
from headwater.runtime import supervisor
from headwater.runtime.parts import environment
from headwater.settings import Settings, addresses
from models import registry
from models.gates import load_rules
from models.interactions import Interactions, read_purchases
from models.retrieval.protocol import pairs
from serving.demo.story import steps
from simulation import rules
from simulation.config import WorldConfig
from simulation.fitted import Floats, Ints
from simulation.run import Asked, simulate, world_of
from simulation.world import World
from streaming.archive import catch_up

HERE = Path(__file__).parent
DECLARED = ("labels.toml", "promotion.toml", "objectives.toml")
LEFT_OUT = {"writes", "audit", "server", "quality"}
"""Steps of the demo that measure or serve."""
PASSES = 2
"""Over the purchases, of the towers."""
SIDE_BY_SIDE, STRETCHES = 4, 2
"""Shoppers at once: more make lists late, and so degraded. How often a day the clock is moved, which takes 0.6 s."""
K = 10
LOADED_S = 2.0
"""In which a server has read a bundle, or other shares, more or less."""
Say = Callable[[str], None]
T = TypeVar("T")


@dataclass(frozen=True)
class Generation:
    """What one generation served, and what became of it.

    Attributes
    ----------
    lists
        Rows of ``simulation.rows.SCHEMA``, and ``share``, the value over the best list's; ``popular`` and ``own``, what
        two fixed rules' lists would have been worth to the same shoppers on the same days; ``buyers``, how many
        shoppers had bought what was shown, on average over the list's products.
    verdict
        Of the retraining after it, and what its ``rollout`` came to; empty after the last.
    foretold
        What the lists so far tell of the bundle that came of it, beside the truth; nothing where none was drawn.
    came
        Day on which each new product of the world comes, by id.
    """

    lists: pd.DataFrame
    verdict: dict[str, Any]
    foretold: Sequence[Foretold] = ()
    came: Mapping[str, int] = field(default_factory=dict)


def prepare(settings: Settings, say: Say) -> None:
    """History, features, online store and a first bundle, as the demo makes them; the parts are ended again.

    Raises
    ------
    UnavailableError
        A command failed; its last words are told.
    """
    shutil.copytree(EXAMPLE, settings.repo, ignore=shutil.ignore_patterns("data", "__pycache__"))
    told = {**os.environ, **environment(settings), "PYTHONWARNINGS": "ignore"}
    try:
        for row in steps(settings, small=True):
            running = [(step, _started(step.command, told)) for step in row if step.name not in LEFT_OUT]
            for step, process in running:
                say(step.title)
                _, words = process.communicate()
                if process.returncode:
                    raise UnavailableError(f"loop: {step.name}: {words.strip().splitlines()[-1]}")
    finally:
        supervisor.stop(settings)
    for name in DECLARED:
        shutil.copy(HERE / name, settings.repo / name)


def _started(command: Sequence[str], told: dict[str, str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(command, env=told, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def play(
    settings: Settings, config: WorldConfig, surfaces: Sequence[str], days: int, out: Path, say: Say
) -> list[Generation]:
    """Run a generation of so many days with each text of surfaces; every one but the last is learned from."""
    world = world_of(settings, config, len(surfaces) * days)
    came = dict(zip(world.products.ids.tolist(), world.products.day.tolist(), strict=True))
    played: list[Generation] = []
    _declare(settings, surfaces[0])
    with _up(settings), connect(addresses(settings).redis) as store:
        clock = StoredClock(store)
        schedule = _Schedule(settings, clock)
        for number, text in enumerate(surfaces):
            _declare(settings, text)
            before_ms = clock.now_ms()
            asked = Asked(config, (number + 1) * days, out, SIDE_BY_SIDE, stretches=STRETCHES)
            simulate(settings, asked, lambda day, done, total: None, schedule.look)
            catch_up(settings)
            lists = _days(out / "lists", number * days, (number + 1) * days)
            lists = lists[lists["failure"].isna()].reset_index(drop=True)
            lists["share"] = lists["value"] / lists["best"]
            lists["popular"], lists["own"], lists["buyers"] = _beside(settings, world, lists, before_ms)
            verdict = {} if number + 1 == len(surfaces) else _retrained(settings, clock)
            so_far = [*(one.lists for one in played), lists]
            foretold = foretell(settings, world, pd.concat(so_far), verdict["version"]) if verdict else ()
            played.append(Generation(lists, verdict, foretold, came))
            told = ", ".join(f"{name} {lists[name].mean():.4f}" for name in ("value", "best", "popular", "own"))
            say(f"generation {number}: {len(lists)} lists, {told}")
            say(f"  {verdict.get('decision', '')} {verdict.get('reason', '')}")
    for one in played[:-1]:
        one.verdict["rollout"] = registry.told(settings, one.verdict["version"]).get("rollout", "")
    return played


def audited(settings: Settings) -> Mapping[str, Any]:
    """What an audit says of all that a loop has served and archived; no part needs to run."""
    return audit(spark_session(settings), settings, load_plan(settings.repo)).as_dict()


def apart(work: Callable[..., T], *what: Any) -> T:
    """Do it in a process of its own, which a notebook needs that has an event loop running, and two loops at once."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *what).result()


class _Schedule:
    """What Dagster's sensors have done in between: ready-made rows are written, and what has passed comes to serve."""

    def __init__(self, settings: Settings, clock: StoredClock) -> None:
        plan = load_plan(settings.repo)
        self._settings, self._looked_ms = settings, 0
        self._views = ReadyMade(settings, plan, clock.now_ms)
        self._rollouts = rollouts_of(settings, plan.schema_hash(SERVICE), clock.now_ms)

    def look(self) -> None:
        """Write the views of which a row has begun, move on with a rollout, and wait until the server has both."""
        since_ms, self._looked_ms = self._looked_ms, self._views.now_ms()
        if begun := self._views.begun(since_ms, self._looked_ms):
            self._views.write(begun)
            time.sleep(FRESH_MS / 1000)
        if self._rollouts.standing() is not None:
            catch_up(self._settings)
            self._rollouts.look()
            time.sleep(LOADED_S)


def _declare(settings: Settings, surfaces: str) -> None:
    """Write the surfaces; the server reads them again when they have changed."""
    (settings.repo / "surfaces.toml").write_text(surfaces)


def _days(folder: Path, begin: int, end: int) -> pd.DataFrame:
    days = [pq.read_table(folder / f"day-{day:04d}.parquet") for day in range(begin, end)]
    found: pd.DataFrame = pa.concat_tables(days).to_pandas()
    return found


def _beside(settings: Settings, world: World, lists: pd.DataFrame, before_ms: int) -> tuple[Floats, Floats, Floats]:
    """Worth of the fixed rules' lists, made of what was bought before ``before_ms``, and how many had bought what was
    shown in their place (n_lists,)."""
    bought = rules.numbered(world, read_purchases(settings.events_dir, before_ms))
    users = world.users_of(lists["user_id"].to_numpy(object))
    found = []
    for rule in (rules.popular, rules.own_frequency):
        made = rule(bought, users, before_ms, K)
        worth = np.empty(len(users))
        for day in lists["day"].unique():
            there = (lists["day"] == day).to_numpy()
            worth[there] = world.value(users[there], made[there], int(day)).purchases
        found.append(worth)
    return found[0], found[1], mean_buyers(bought, lists["items"].map(world.items_of).tolist())


def mean_buyers(bought: Interactions, lists: Sequence[Ints]) -> Floats:
    """How many users had bought an item of each list, on average (n_lists,); what is unknown was bought by nobody."""
    buyers = pairs(bought).getnnz(axis=0)
    return np.array([np.where(items < 0, 0, buyers[items]).mean() if len(items) else 0.0 for items in lists])


def _retrained(settings: Settings, clock: StoredClock) -> dict[str, Any]:
    """Run the scheduled assets for the day that has ended; the server takes up what they promote by itself."""
    declared = load_rules(settings.repo)
    now_ms = clock.now_ms()
    steps_of = SparkSteps(
        settings, load_plan(settings.repo), SERVICE, home_of(settings), lambda: now_ms, declared.retraining, PASSES
    )
    return run_once(Retraining(steps_of, declared, retries=False), last_whole_day(now_ms), dagster_home(settings))


@contextmanager
def _up(settings: Settings) -> Iterator[None]:
    supervisor.start(settings)
    try:
        yield
    finally:
        supervisor.stop(settings)
