"""What the platform consists of on one machine, and for each part: how it starts and what proves that it works."""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from headwater import topics
from headwater.errors import ConfigError
from headwater.plan import FeaturePlan
from headwater.runtime import kafka, valkey
from headwater.runtime.java import find_java
from headwater.runtime.ready import is_marked
from headwater.settings import Settings, addresses, shown_url


@dataclass(frozen=True, slots=True)
class Spec:
    """One part.

    Attributes
    ----------
    tier
        Parts of a tier start side by side; the next tier starts once they answer.
    answers
        ``(settings, pid)``: whether the part works, not merely runs.
    existing
        The address of a server that the settings name, which is used and never started or ended.
    fault
        Why such a server does not answer, with the next step, where more can be said than that.
    lacking
        Why the part cannot start yet, with the next step; ``None`` if it can.
    """

    name: str
    tier: int
    address: Callable[[Settings], str]
    command: Callable[[Settings], list[str]]
    answers: Callable[[Settings, int], bool]
    ports: Mapping[str, Callable[[Settings], int]]
    existing: Callable[[Settings], str | None] = lambda settings: None
    fault: Callable[[Settings], str | None] = lambda settings: None
    lacking: Callable[[Settings], str | None] = lambda settings: None
    once_ready: Callable[[Settings], None] = lambda settings: None
    patience_s: float = 180.0


def environment(settings: Settings) -> dict[str, str]:
    """The settings as a child process reads them, and the Java that it is to use."""
    values = settings.model_dump() | {"state_dir": settings.state_dir.resolve(), "repo": settings.repo.resolve()}
    told = {f"HEADWATER_{name.upper()}": str(value) for name, value in values.items() if value is not None}
    return {**told, "JAVA_HOME": str(find_java().home), "PYTHONUNBUFFERED": "1"}


def find(names: list[str] | None) -> list[Spec]:
    """Return the named parts in starting order, all of them for ``None``.

    Raises
    ------
    ConfigError
        There is no part of that name.
    """
    known = {spec.name for spec in PARTS}
    if unknown := [name for name in names or () if name not in known]:
        raise ConfigError(f"{unknown[0]}: not a part. Choose from {', '.join(spec.name for spec in PARTS)}.")
    return [spec for spec in PARTS if names is None or spec.name in names]


def has_champion(settings: Settings) -> bool:
    """Whether a model bundle has been promoted, without which there is nothing to serve."""
    try:
        aliases = json.loads((settings.bundles_dir / "aliases.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(aliases, dict) and "champion" in aliases


def topics_of(settings: Settings) -> tuple[str, ...]:
    """The platform's own topics and those that the applied definitions read."""
    if not settings.manifest_path.exists():
        return topics.ALL
    read = (source.topic for source in FeaturePlan.read(settings.manifest_path).sources)
    return tuple(dict.fromkeys((*topics.ALL, *read)))


def _no_plan(settings: Settings) -> str | None:
    if settings.manifest_path.exists():
        return None
    return "no feature definitions have been applied. Run `feast -c feature_repo apply`"


def _no_stream_here(settings: Settings) -> str | None:
    if settings.flink is None:
        return _no_plan(settings)
    return f"the stream belongs on the Flink cluster at {settings.flink}. Run `headwater stream submit`"


def _no_champion(settings: Settings) -> str | None:
    if has_champion(settings):
        return None
    return "no model has been promoted. Run `headwater train` and `headwater promote`"


def _serving_answers(settings: Settings, pid: int) -> bool:
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(addresses(settings).grpc, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=2)
        except grpc.RpcError:
            return False
    return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)


def _module(name: str) -> Callable[[Settings], list[str]]:
    return lambda settings: [sys.executable, "-m", name]


def _marked(name: str) -> Callable[[Settings, int], bool]:
    return lambda settings, pid: is_marked(settings, name, pid)


PARTS = (
    Spec(
        name="kafka",
        tier=0,
        address=lambda settings: addresses(settings).kafka,
        command=lambda settings: kafka.command(
            settings.state_dir / "kafka", settings.host, settings.kafka_port, settings.kafka_heap_mb
        ),
        answers=lambda settings, pid: kafka.is_ready(addresses(settings).kafka),
        ports={"kafka_port": lambda settings: settings.kafka_port},
        existing=lambda settings: settings.kafka,
        once_ready=lambda settings: kafka.create_topics(
            addresses(settings).kafka, settings.partitions, topics_of(settings)
        ),
    ),
    Spec(
        name="valkey",
        tier=0,
        address=lambda settings: shown_url(addresses(settings).redis),
        command=lambda settings: valkey.command(settings.state_dir / "valkey", settings.host, settings.redis_port),
        answers=lambda settings, pid: valkey.is_ready(addresses(settings).redis),
        ports={"redis_port": lambda settings: settings.redis_port},
        existing=lambda settings: None if settings.redis is None else shown_url(settings.redis),
        fault=lambda settings: valkey.fault(addresses(settings).redis),
    ),
    Spec(
        name="stream",
        tier=1,
        address=lambda settings: "",
        command=_module("streaming.job"),
        answers=_marked("stream"),
        ports={"stream_metrics_port": lambda settings: settings.stream_metrics_port},
        lacking=_no_stream_here,
    ),
    Spec(
        name="archive",
        tier=1,
        address=lambda settings: str(settings.archive_dir),
        command=_module("streaming.archive"),
        answers=_marked("archive"),
        ports={},
    ),
    Spec(
        name="serve",
        tier=1,
        address=lambda settings: addresses(settings).grpc,
        command=_module("serving.workers"),
        answers=_serving_answers,
        ports={
            "grpc_port": lambda settings: settings.grpc_port,
            "metrics_port": lambda settings: settings.metrics_port,
        },
        lacking=_no_champion,
    ),
)
