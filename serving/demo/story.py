"""The demo from beginning to end, each step a command that a user could type."""

import contextlib
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from headwater.clock import StoredClock
from headwater.errors import HeadwaterError, ResourceError
from headwater.online.connect import connect
from headwater.runtime import supervisor
from headwater.settings import Settings, addresses
from serving.client import Client
from serving.demo import live
from serving.demo.resources import Meter
from serving.demo.steps import Done, Journal, Result, Runner, Step, identity_of

CELLS = 10_000
FRESHNESS_SAMPLES = 60
LATENCY_SAMPLES = 300
COUNTER = ("user_state", "user_purchases_90d")
_OWN_STATE = (
    "archive",
    "kafka",
    "valkey",
    "flink",
    "training",
    "bundles",
    "retriever",
    "ingest",
    "mlflow.db",
    "mlruns",
)


@dataclass(frozen=True)
class Outcome:
    """All that the demo saw."""

    results: Mapping[str, Result]
    steps: Mapping[str, Done]
    change: live.Change
    freshness: Mapping[str, float]
    recommend: Mapping[str, float]
    elapsed_s: float
    peak_rss_mb: float
    peaks_mb: Mapping[str, float]
    cpu_s: Mapping[str, float]

    def summary(self) -> dict[str, Any]:
        """What ``headwater demo --json`` prints."""
        replay, audit, quality = (self.results[name] for name in ("replay", "audit", "quality"))
        return {
            "events_replayed": replay["events"],
            "dead_letters": self.results["archive"]["dead_letters"],
            "online_writes": self.results["writes"]["online_writes"],
            "cells_compared": audit["cells"],
            "cells_mismatched": audit["mismatched"],
            "ndcg_at_10": quality["ndcg@10"],
            "recall_at_20": quality["recall@20"],
            "recall_at_20_repeats": quality["recall@20_repeats"],
            "recall_at_20_first": quality["recall@20_first"],
            "ndcg_at_10_gain": quality["ndcg@10_gain"],
            "freshness_ms": dict(self.freshness),
            "recommend_ms": dict(self.recommend),
            "changed_answer_ms": round(self.change.delay_ms, 1),
            "elapsed_s": self.elapsed_s,
            "peak_rss_mb": self.peak_rss_mb,
            "parts": {
                name: {"seconds": done.seconds, "peak_rss_mb": self.peaks_mb.get(name), "cpu_s": self.cpu_s.get(name)}
                for name, done in self.steps.items()
            }
            | {
                name: {"seconds": None, "peak_rss_mb": self.peaks_mb[name], "cpu_s": self.cpu_s.get(name)}
                for name in self.peaks_mb
                if name not in self.steps
            },
        }


def steps(settings: Settings, small: bool) -> list[tuple[Step, ...]]:
    """Everything before the live part, in order; the steps of one row run side by side."""
    size = ("--small",) if small else ()
    repo = str(settings.repo)
    return [
        (Step("data", "A year of grocery purchases becomes history, replay and held-out test",
              ("data", "complete-journey", *size)),
         Step("servers", "Kafka broker and Valkey server start", ("up", "--only", "kafka,valkey"), keep=False),
         Step("features", "Feature definitions are applied with the Feast CLI", ("-c", repo, "apply"),
              program="feast")),
        (Step("jobs", "The Flink job, compiled from the registry, and the archive writer start",
              ("up", "--only", "stream,archive"), keep=False),),
        (Step("replay", "The last four weeks go through Kafka and Flink", ("data", "replay")),),
        (Step("backfill", "Spark folds the history into the online store's base tiles", ("backfill", "--materialize")),
         Step("retriever", "The two-tower model and its index are trained", ("train", "retriever"))),
        (Step("stream", "Flink has written every replayed event's features", ("stream", "wait"), keep=False),
         Step("archive", "Every replayed event is in the archive", ("archive", "--until-caught-up"), keep=False)),
        (Step("writes", "How many tiles that took", ("stream", "status"), keep=False),
         Step("audit", "Online values equal what Spark computes offline", ("audit", "--fresh", "--cells", str(CELLS))),
         Step("training_set", "Spark builds point-in-time-correct training rows", ("training-set",))),
        (Step("ranker", "The ranker is trained, calibrated, bundled and promoted", ("train", "ranker", "--promote")),),
        (Step("server", "The gRPC server comes up", ("up", "--only", "serve"), keep=False),),
        (Step("quality", "Lists for every household are judged by what it bought afterwards", ("evaluate",)),),
    ]  # fmt: skip


def play(settings: Settings, small: bool, user: str | None) -> Outcome:
    """Run the demo, resuming an unfinished one.

    Raises
    ------
    HeadwaterError
        A step failed; what the demo started is ended.
    """
    journal = Journal(settings.state_dir / "demo.json", identity_of(settings.repo, small))
    kept = any(part.pid for part in supervisor.status(settings))
    if not journal.resumable:
        _start_afresh(settings)
        journal.begin()
    began = time.monotonic()
    try:
        with Meter(lambda: _pids(settings)) as meter:
            runner = Runner(journal, meter)
            for row in steps(settings, small):
                runner.run(*row)
            results = {name: done.result for name, done in runner.done.items()}
            with _parts(settings) as (client, clock):
                users = list(results["quality"]["users"])
                chosen = user or users[0]
                change, freshness, recommend = _live(runner, client, clock, chosen, users)
            outcome = Outcome(
                results, runner.done, change, freshness, recommend, round(time.monotonic() - began, 1),
                meter.peak_rss_mb, meter.peaks_mb, meter.cpu_s,
            )  # fmt: skip
        journal.finish()
        return outcome
    finally:
        if not kept:
            supervisor.stop(settings)


def _live(
    runner: Runner, client: Client, clock: StoredClock, user: str, users: list[str]
) -> tuple[live.Change, Mapping[str, float], Mapping[str, float]]:
    found: dict[str, Any] = {}

    def measure() -> Result:
        others = [other for other in users if other != user]
        found["recommend"] = live.percentiles(live.recommend_ms(client, (others * 300)[:LATENCY_SAMPLES]))
        found["change"] = live.changed_answer(client, user, clock)
        sample = (others * 60)[:FRESHNESS_SAMPLES]
        found["freshness"] = live.percentiles(live.freshness_ms(client, sample, found["change"].bought, clock, COUNTER))
        return {"changed_answer_ms": round(found["change"].delay_ms, 1)}

    runner.call("live", "A purchase is sent, and the same call answers differently", measure)
    return found["change"], found["freshness"], found["recommend"]


@contextlib.contextmanager
def _parts(settings: Settings) -> Iterator[tuple[Client, StoredClock]]:
    where = addresses(settings)
    with connect(where.redis) as store, Client(where.grpc) as client:
        yield client, StoredClock(store)


def _pids(settings: Settings) -> dict[str, int]:
    with contextlib.suppress(HeadwaterError, OSError, ValueError):
        return {part.name: part.pid for part in supervisor.recorded(settings) if part.pid}
    return {}


def _start_afresh(settings: Settings) -> None:
    """A finished demo makes way for the next one; jars stay, in the user's own cache."""
    state = settings.state_dir
    mine = (state / "demo.json").is_file()
    held = [name for name in _OWN_STATE if (state / name).exists()]
    if held and not mine:
        raise ResourceError(
            f"{state}: it holds {', '.join(held)} that the demo did not make. Keep them by running the demo with "
            "HEADWATER_STATE_DIR pointing at another folder, or delete them."
        )
    supervisor.stop(settings)
    for name in held:
        path = state / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
