"""What the server answers with now, swapped whole while it answers: the compiled plan and the champion's funnel."""

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from headwater.errors import ConfigError, HeadwaterError, ModelError
from headwater.log import get_logger
from headwater.plan import FeaturePlan
from headwater.registry.manifest import load_plan, registry_sha256
from headwater.settings import Settings
from serving.contracts import Recommender

log = get_logger("serving")
POLL_S = 1.0
RETRY_S = 5.0
ALIAS = "champion"


@dataclass(frozen=True, slots=True)
class Loaded:
    """One consistent state; a request keeps the one it started with.

    ``why`` says what is missing; ``behind``, that the champion cannot be loaded and an earlier one answers.
    """

    plan: FeaturePlan | None = None
    recommender: Recommender | None = None
    why: str = "recommend: no model has been promoted. Run headwater train, then headwater promote."
    behind: bool = False


class Live:
    """Follows the registry's fingerprint and ``bundles/aliases.json``.

    A state that cannot be loaded leaves the one before in force, is logged and tried again. At a start, when there is
    none before, the last of the earlier champions that can be loaded answers meanwhile.
    """

    def __init__(
        self,
        settings: Settings,
        build: Callable[[FeaturePlan, Path], Recommender],
        on_swap: Callable[[Loaded], None] = lambda loaded: None,
    ) -> None:
        self._settings = settings
        self._build = build
        self._on_swap = on_swap
        self._loaded = Loaded()
        self._seen: tuple[str, str | None] | None = None
        self._retry_at = 0.0
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="bundle-poll", daemon=True)

    @property
    def now(self) -> Loaded:
        """The state to answer with."""
        return self._loaded

    @property
    def plan(self) -> FeaturePlan:
        """The compiled plan.

        Raises
        ------
        ConfigError
            Nothing has been applied, or it cannot be compiled; the message has the next step.
        """
        if self._loaded.plan is None:
            repo = self._settings.repo
            raise ConfigError(f"{repo}: no feature plan is loaded. Run feast -c {repo} apply, or see the server's log.")
        return self._loaded.plan

    @property
    def recommender(self) -> Recommender:
        """The champion's funnel.

        Raises
        ------
        ModelError
            There is none; the message has the next step.
        """
        loaded = self._loaded
        if loaded.recommender is None:
            raise ModelError(loaded.why)
        return loaded.recommender

    def start(self) -> None:
        """Load what there is, then follow it."""
        self.refresh()
        self._thread.start()

    def close(self) -> None:
        """Stop following."""
        self._closed.set()
        self._thread.join()

    def refresh(self) -> bool:
        """Swap if something new is there; whether it did."""
        wanted = (registry_sha256(self._settings.repo) if self._has_repo() else "", champion(self._settings))
        if wanted == self._seen and (not self._retry_at or time.monotonic() < self._retry_at):
            return False
        self._seen = wanted
        registry, version = wanted
        try:
            plan = load_plan(self._settings.repo) if registry else None
            self._loaded = replace(self._loaded, plan=plan)
            fresh = self._load(plan, version)
        except Exception as error:
            self._retry_at = time.monotonic() + RETRY_S
            known = isinstance(error, HeadwaterError)
            log.error("load_failed", bundle=version, reason=str(error), exc_info=None if known else error)
            why = str(error) if known else "recommend: the bundle cannot be loaded."
            self._loaded = replace(self._loaded, why=why, behind=True)
            self._stand_in()
            return False
        self._retry_at = 0.0
        self._loaded = fresh
        self._on_swap(fresh)
        log.info("loaded", bundle=version, repo=str(self._settings.repo))
        return True

    def _load(self, plan: FeaturePlan | None, version: str | None) -> Loaded:
        if plan is None or version is None:
            return Loaded(plan)
        return Loaded(plan, self._build(plan, self._settings.bundles_dir / version))

    def _stand_in(self) -> None:
        """Answer with an earlier champion where there is nothing else to answer with."""
        plan = self._loaded.plan
        if plan is None or self._loaded.recommender is not None:
            return
        for version in former_champions(self._settings):
            try:
                recommender = self._build(plan, self._settings.bundles_dir / version)
            except Exception as error:
                log.error("load_failed", bundle=version, reason=str(error))
                continue
            self._loaded = replace(self._loaded, recommender=recommender)
            self._on_swap(self._loaded)
            log.warning("stands_in", bundle=version)
            return

    def _has_repo(self) -> bool:
        return (self._settings.repo / "feature_store.yaml").is_file()

    def _follow(self) -> None:
        while not self._closed.wait(POLL_S):
            try:
                self.refresh()
            except Exception as error:  # a poll that fails is the next poll's chance
                log.error("poll_failed", exc_info=error)


def champion(settings: Settings) -> str | None:
    """Version that the alias names, ``None`` where none has been promoted."""
    version = _aliases(settings).get(ALIAS)
    return None if version is None else str(version)


def former_champions(settings: Settings) -> list[str]:
    """Versions that the alias named before, the last first."""
    return [str(version) for version in reversed(_aliases(settings).get("history", []))]


def _aliases(settings: Settings) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((settings.bundles_dir / "aliases.json").read_text())
    except FileNotFoundError:
        return {}
    return found
