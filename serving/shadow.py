"""A second bundle scores what the first one shows: logged beside it, seen by nobody, waited for by no reply.

One thread scores, behind a bounded queue. What finds the queue full, or is not done when the impression is written, is
left out and counted, so that a shadow that hangs costs the log its scores and nothing else.
"""

import queue
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any

from headwater.log import get_logger
from serving.ports import Floats
from serving.telemetry import Telemetry

log = get_logger("serving")
QUEUED = 64
PATIENCE_S = 0.25
"""How long the impression log waits for the scores of a batch."""


@dataclass(frozen=True, slots=True)
class Shade:
    """Scores to come (n_candidates,), as probabilities or worths."""

    version: str
    scores: "Future[Floats]"

    def told(self) -> Floats | None:
        """The scores, ``None`` where there are none by now."""
        done = self.scores.done() and not self.scores.cancelled() and self.scores.exception() is None
        return self.scores.result() if done else None


class Shadow:
    """The bundle, its queue and its thread.

    Parameters
    ----------
    score
        Scores of a surface's candidates (n,) from their features (n, n_features).
    """

    def __init__(
        self, version: str, score: Callable[[str, Floats], Floats], telemetry: Telemetry, queued: int = QUEUED
    ) -> None:
        self.version = version
        self._score = score
        self._telemetry = telemetry
        self._queue: queue.Queue[tuple[str, Floats, Future[Floats]]] = queue.Queue(queued)
        self._closed = threading.Event()
        threading.Thread(target=self._work, name=f"shadow {version}", daemon=True).start()

    def ask(self, surface: str, features: Floats) -> Shade:
        """Have candidates scored, unless too many wait already; never waits."""
        scores: Future[Floats] = Future()
        try:
            self._queue.put_nowait((surface, features, scores))
        except queue.Full as full:
            self._telemetry.shadow("dropped")
            scores.set_exception(full)
        return Shade(self.version, scores)

    def close(self) -> None:
        """Score no more; nobody waits for the thread, which may hang."""
        self._closed.set()

    def _work(self) -> None:
        while not self._closed.is_set():
            try:
                surface, features, scores = self._queue.get(timeout=1.0)
            except queue.Empty:
                continue
            if scores.set_running_or_notify_cancel():
                self._settle(scores, surface, features)

    def _settle(self, scores: "Future[Floats]", surface: str, features: Floats) -> None:
        try:
            found = self._score(surface, features)
            if found.shape != (len(features),):
                raise ValueError(f"{len(features)} candidates have scores of shape {found.shape}")
        except Exception as error:
            self._telemetry.shadow("failed")
            log.debug("shadow_failed", bundle=self.version, exc_info=error)
            scores.set_exception(error)
        else:
            self._telemetry.shadow("scored")
            scores.set_result(found)


def settle(shades: Iterable[Shade | None], patience_s: float = PATIENCE_S) -> int:
    """Wait for scores that are on their way, for a while, and let go of the others; how many these are."""
    asked: list[Future[Any]] = [shade.scores for shade in shades if shade is not None]
    late = wait(asked, patience_s).not_done if asked else set()
    for one in late:
        one.cancel()
    return len(late)
