"""What was shown, to whom, how likely and on what grounds: topic ``impressions``, without keeping a reply waiting.

A record is JSON, keyed by user. ``items`` are those shown, each with the exact vector its score came from and the
probability that its place got it given the places above, whose product is the list's ``propensity``; ``others``
is a sample of the candidates that were not, drawn evenly without replacement by a generator seeded with the request
id, each with the ``probability`` of having been drawn. All of these are given the candidates: what only a source of
exploration proposed was one with probability ``drawn``, which is 1 of every other item. A feature that has no value is
null. ``views`` tells what each view was asked for the logged rows: its entities, each once, and of each the instant it
was read at, its newest event and, table by table, the marks of the events that were folded into it; ``rows`` has the
place of each logged row's entity, the shown items first. By these marks ``headwater audit`` computes the same vectors
from the archive.

While Kafka is away records go to a bounded file, and from there to Kafka, in order, once it is back; one that Kafka had
taken without being able to say so is there twice then, with one ``request_id``.
"""

import hashlib
import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import orjson
from numpy.typing import NDArray

from headwater import topics
from headwater.errors import UnavailableError
from headwater.log import get_logger
from headwater.online.keys import taken
from headwater.online.merge import Marks
from headwater.online.reader import Matrix, ViewRead
from serving.contracts import Ranked, Request
from serving.rerank import Arranged
from serving.shadow import Shade, settle
from serving.sources import Candidates
from serving.spill import Record, Spill
from serving.telemetry import Telemetry

log = get_logger("serving")
QUEUED = 2_000
SAMPLE = 10
BATCH = 200
SENT_S = 10.0
"""Longer than a delivery may take, after which it has failed."""
TURN_S = 0.1
GATHERED_S = 0.04
"""How long records are gathered, to be sent as one batch, which costs the log as much as one record.

In 0.1 s so many come together that requests wait while they are packed: p99 15 ms instead of 12.
"""
PAUSE_S, MOST_PAUSE_S = 0.5, 8.0


@dataclass(frozen=True, slots=True)
class Impression:
    """One reply and what it was made from; rows are places in the candidates' arrays.

    ``item_ids``, ``scores`` (n_candidates,); ``shown`` in the reply's order; ``features`` absent where the reply
    was made without them.
    """

    at_ms: int
    request: Request
    ranked: Ranked
    service: str
    schema_hash: str
    item_ids: Sequence[str]
    candidates: Candidates
    scores: NDArray[np.float32]
    shown: Arranged
    features: Matrix | None
    experiment: str = ""
    shade: Shade | None = None


class ImpressionSink(Protocol):
    """Takes impressions and never blocks."""

    def log(self, impression: Impression) -> None:
        """Keep it, or count that it was dropped."""
        ...


class Discard:
    """For evaluation, which shows nothing to anyone."""

    def log(self, impression: Impression) -> None:
        del impression


class Appender(Protocol):
    """The log's writing side."""

    def append(self, topic: str, key: str, value: bytes, timestamp_ms: int) -> "Future[None]":
        """Send without waiting; returns a future."""
        ...


class ImpressionLog:
    """A bounded queue and one thread that writes JSON to Kafka, or to the file while Kafka is away.

    Parameters
    ----------
    spill
        Without one, what Kafka does not take is dropped.
    """

    def __init__(self, kafka: Appender, telemetry: Telemetry, queued: int = QUEUED, spill: Spill | None = None) -> None:
        self._kafka = kafka
        self._telemetry = telemetry
        self._spill = spill
        self._resent: list[Future[None]] = []
        self._again_at, self._pause_s = 0.0, PAUSE_S
        self._queue: queue.Queue[Impression | None] = queue.Queue(queued)
        self._thread = threading.Thread(target=self._write, name="impressions", daemon=True)
        self._thread.start()

    def log(self, impression: Impression) -> None:
        try:
            self._queue.put_nowait(impression)
        except queue.Full:
            self._telemetry.impression("dropped")

    def close(self) -> None:
        """Write what is queued; what Kafka does not take is kept for the next start."""
        self._queue.put(None)
        self._thread.join()

    def _write(self) -> None:
        more = True
        while more:
            records, more = self._next()
            for record in records if self._spill else self._refused(records):
                kept = self._spill is not None and self._spill.add(record)
                self._telemetry.impression("spilled" if kept else "dropped")
            if self._spill is not None:
                self._resend(self._spill)
        if self._spill is not None:
            wait(self._resent, SENT_S)
            self._settle(self._spill)
            self._spill.close()

    def _next(self) -> tuple[list[Record], bool]:
        """Records of what comes within a while of the first, at most ``BATCH``, and whether any can follow.

        Each is made as it comes, so that no request waits for those of many; where the shadow still scores, at last.
        """
        gathered: list[Record | Impression | None] = []
        patience, until, more = (TURN_S if self._spill else None), 0.0, True
        while more and len(gathered) < BATCH:
            try:
                impression = self._queue.get(timeout=patience)
            except queue.Empty:
                break
            if impression is None:
                more = False
            else:
                gathered.append(self._record(impression) if impression.shade is None else impression)
            until = until or time.monotonic() + GATHERED_S
            patience = max(0.0, until - time.monotonic())
        self._telemetry.shadow("late", settle(one.shade for one in gathered if isinstance(one, Impression)))
        records = [self._record(one) if isinstance(one, Impression) else one for one in gathered]
        return [record for record in records if record is not None], more

    def _record(self, impression: Impression) -> Record | None:
        try:
            value = orjson.dumps(document(impression))
        except Exception as error:
            self._telemetry.impression("failed")
            log.error("impression_failed", exc_info=error)
            return None
        return Record(impression.request.user_id, value, impression.at_ms)

    def _refused(self, records: Sequence[Record]) -> list[Record]:
        """Send them; those that Kafka was not there for, in order."""
        sent = self._sent(records)
        wait(sent, SENT_S)
        return [record for record, one in zip(records, sent, strict=True) if not self._ended(one)]

    def _resend(self, spill: Spill) -> None:
        """Have one batch of the file on its way, whenever there is something in it; never wait for it."""
        self._settle(spill)
        if spill and not self._resent and time.monotonic() >= self._again_at:
            self._resent = self._sent(spill.head(BATCH))

    def _settle(self, spill: Spill) -> None:
        if not self._resent or not all(one.done() for one in self._resent):
            return
        away = any(isinstance(one.exception(), UnavailableError) for one in self._resent)
        if away:
            self._again_at = time.monotonic() + self._pause_s
            self._pause_s = min(2 * self._pause_s, MOST_PAUSE_S)
        else:
            for one in self._resent:
                self._ended(one)
            spill.drop()
            self._pause_s = PAUSE_S
        self._resent = []

    def _sent(self, records: Sequence[Record]) -> "list[Future[None]]":
        return [self._kafka.append(topics.IMPRESSIONS, one.key, one.value, one.at_ms) for one in records]

    def _ended(self, sent: "Future[None]") -> bool:
        """Whether nothing is left to do for a record; what Kafka refuses for what it is is counted as failed."""
        if not sent.done() or isinstance(error := sent.exception(), UnavailableError):
            return False
        self._telemetry.impression("logged" if error is None else "failed")
        return True


def document(impression: Impression) -> dict[str, Any]:
    """Lay out the record of one impression."""
    shown, propensity = impression.shown.rows, impression.shown.propensity.tolist()
    others, probability = sample(len(impression.item_ids), shown, impression.ranked.request_id)
    rows = np.concatenate([shown, others])
    told = _rows(impression, rows)
    request, ranked = impression.request, impression.ranked
    return {
        "request_id": ranked.request_id,
        "time": impression.at_ms,
        "user_id": request.user_id,
        "surface": request.surface,
        "context": dict(request.context),
        "bundle_version": ranked.bundle_version,
        "experiment": impression.experiment,
        "variant": ranked.variant,
        "degraded": list(ranked.degraded),
        "feature_service": impression.service,
        "feature_schema": impression.schema_hash,
        "feature_names": [] if impression.features is None else list(impression.features.names),
        "policy": impression.shown.policy,
        "propensity": float(np.prod(propensity)),
        "items": [
            {**row, "position": at, "propensity": propensity[at - 1]}
            for at, row in enumerate(told[: len(shown)], start=1)
        ],
        "candidates": len(impression.item_ids),
        "others": [{**row, "probability": probability} for row in told[len(shown) :]],
        "shadow": None if impression.shade is None else _shadow(impression.shade, shown, others),
        "views": {} if impression.features is None else _views(impression.features, rows),
    }


def sample(n: int, shown: NDArray[np.intp], request_id: str, size: int = SAMPLE) -> tuple[NDArray[np.intp], float]:
    """Rows of candidates not shown, and the probability that each had of being drawn."""
    kept = np.ones(n, np.bool_)
    kept[shown] = False
    left = np.flatnonzero(kept)
    if not len(left):
        return left, 1.0
    taken = min(size, len(left))
    drawn = np.random.default_rng(seed_of(request_id)).choice(left, taken, replace=False)
    return np.sort(drawn).astype(np.intp), taken / len(left)


def seed_of(request_id: str) -> int:
    """What is left to chance in a request follows from its id."""
    return int.from_bytes(hashlib.blake2b(request_id.encode(), digest_size=8).digest(), "little")


def _rows(impression: Impression, rows: NDArray[np.intp]) -> list[dict[str, Any]]:
    """What is told of each logged candidate."""
    features, candidates = impression.features, impression.candidates
    vectors = [None] * len(rows) if features is None else _numbers(features.values[rows])
    scores, sources, drawn = impression.scores[rows].tolist(), candidates.of(rows), candidates.drawn(rows)
    told = zip(rows.tolist(), scores, sources, drawn, vectors, strict=True)
    return [
        {"item_id": impression.item_ids[row], "score": score, "sources": names, "drawn": chance, "features": vector}
        for row, score, names, chance, vector in told
    ]


def _shadow(shade: Shade, shown: NDArray[np.intp], others: NDArray[np.intp]) -> dict[str, Any]:
    """Its version, and its scores or null where there are none."""
    scores = shade.told()
    items, rest = (None if scores is None else _numbers(scores[rows]) for rows in (shown, others))
    return {"bundle_version": shade.version, "items": items, "others": rest}


def _numbers(numbers: NDArray[np.float32]) -> list[Any]:
    """JSON has no NaN; a float32 written as the float64 it equals reads back bit for bit."""
    values: list[Any] = numbers.tolist()
    for *row, at in np.argwhere(~np.isfinite(numbers)).tolist():
        (values[row[0]] if row else values)[at] = None
    return values


def _views(features: Matrix, rows: NDArray[np.intp]) -> dict[str, dict[str, Any]]:
    return {name: _view(view, features.rows[name][rows]) for name, view in features.views.items()}


def _view(view: ViewRead, places: NDArray[np.intp]) -> dict[str, Any]:
    """Lay out one view; a hash is sixteen hexadecimal digits, since 64 bits are more than a JSON reader may keep."""
    logged = places.tolist()
    distinct = [*dict.fromkeys(logged)]
    if len(distinct) == len(logged):
        held, rows = places, [*range(len(logged))]
    else:
        row = {place: row for row, place in enumerate(distinct)}
        held, rows = np.array(distinct, np.intp), [row[place] for place in logged]
    return {
        "keys": taken(view.keys, distinct),
        "at": view.at[held].tolist(),
        "newest": view.newest[held].tolist(),
        "marks": {table: _marks(marks) for table, marks in view.marks_of(held).items()},
        "rows": rows,
    }


def _marks(marks: Marks) -> dict[str, list[Any]]:
    hashes = marks.hash.astype(">u8").tobytes().hex(" ", marks.hash.itemsize)
    return {"count": marks.count.tolist(), "ingest": marks.ingest.tolist(), "hash": hashes.split()}
