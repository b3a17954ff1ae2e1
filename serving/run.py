"""One request's way through the funnel: which stages fell back, and what each made."""

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from headwater.log import REQUEST_ID
from headwater.online.reader import Matrix
from serving.contracts import Ranked, Request
from serving.filters import Filters
from serving.guard import Deadline, Guard, LateError
from serving.ports import Floats, Ints, UserState
from serving.rerank import Arranged
from serving.sources import Candidates
from serving.telemetry import Telemetry

_T = TypeVar("_T")


def new_request_id() -> str:
    """A name for a request that no other has."""
    return uuid.uuid4().hex


def request_id() -> str:
    """The name of the call that this thread answers, which its log lines carry; a new one outside of any."""
    return REQUEST_ID.get() or new_request_id()


@dataclass
class Trace:
    """One request's way through the stages."""

    telemetry: Telemetry
    deadline: Deadline | None = None
    request_id: str = field(default_factory=request_id)
    degraded: list[str] = field(default_factory=list)

    def attempt(
        self, stage: str, work: Callable[[], _T], otherwise: Callable[[], _T], guard: Guard | None = None,
        here: bool = False,
    ) -> _T:  # fmt: skip
        """Do the stage's work, or if that fails in any way, or its time is over, what is simpler.

        Parameters
        ----------
        guard
            Of a part that may keep the request waiting.
        here
            As :meth:`Guard.ask` has it.
        """
        try:
            with self.telemetry.stage(stage):
                self._require_time(stage)
                return work() if guard is None else guard.ask(work, self.deadline, here)
        except Exception as error:
            self.degraded.append(stage)
            self.telemetry.degraded(stage, error)
            return otherwise()

    def _require_time(self, stage: str) -> None:
        if self.deadline is not None and not self.deadline.left():
            raise LateError(f"{stage}: the request's time was over before it began.")


@dataclass(frozen=True)
class Run:
    """What each stage made of a request.

    Attributes
    ----------
    proposals
        Of each source, best first.
    removed : (n_candidates,)
        Number of the filter that removed each candidate, -1 for none.
    item_ids : (n_eligible,)
    scores, chances : (n_eligible,)
        The ranker's, and as probabilities; where it did not answer, what stands in for both.
    """

    request: Request
    user: UserState
    proposals: Mapping[str, Ints]
    candidates: Candidates
    filters: Filters
    removed: NDArray[np.int16]
    eligible: Candidates
    item_ids: Sequence[str]
    features: Matrix | None
    scores: Floats
    chances: Floats
    shown: Arranged
    ranked: Ranked
