"""One frozen settings object per process: flag, environment, file, default, in that order."""

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from headwater.errors import ConfigError


class Settings(BaseSettings):
    """Where things are and how much they may take; every field is ``HEADWATER_<NAME>`` in the environment."""

    model_config = SettingsConfigDict(env_prefix="HEADWATER_", frozen=True, extra="forbid", toml_file="headwater.toml")

    state_dir: Path = Path(".headwater")
    repo: Path = Path("feature_repo")
    kafka: str | None = None
    redis: str | None = Field(default=None, repr=False)
    flink: str | None = None
    checkpoints: str | None = None
    host: str = "127.0.0.1"
    kafka_port: int = 19092
    redis_port: int = 16379
    grpc_port: int = 18980
    metrics_port: int = 18981
    serve_workers: int = Field(default=1, ge=1, le=256)
    stream_metrics_port: int = 18982
    otlp: str | None = None
    partitions: int = 2
    kafka_heap_mb: int = 384
    flink_heap_mb: int = 1200
    state_backend: Literal["heap", "rocksdb"] = "heap"
    spark_heap_mb: int = 1024
    index_recall: float = Field(default=0.97, gt=0, le=1)
    index_memory_mb: int | None = Field(default=None, ge=1)
    max_clock_skew_s: int = 300
    max_event_bytes: int = 65_536

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    @property
    def run_dir(self) -> Path:
        return self.state_dir / "run"

    @property
    def log_dir(self) -> Path:
        return self.state_dir / "logs"

    @property
    def archive_dir(self) -> Path:
        return self.state_dir / "archive"

    @property
    def events_dir(self) -> Path:
        return self.archive_dir / "events"

    @property
    def impressions_dir(self) -> Path:
        return self.archive_dir / "impressions"

    @property
    def data_dir(self) -> Path:
        return self.state_dir / "data"

    @property
    def checkpoints_dir(self) -> Path:
        return self.state_dir / "flink" / "checkpoints"

    @property
    def rocksdb_dir(self) -> Path:
        return self.state_dir / "flink" / "rocksdb"

    @property
    def training_dir(self) -> Path:
        return self.state_dir / "training"

    @property
    def bundles_dir(self) -> Path:
        return self.state_dir / "bundles"

    @property
    def manifest_path(self) -> Path:
        return self.repo / "data" / "manifest.json"

    @property
    def mlflow_uri(self) -> str:
        return f"sqlite:///{(self.state_dir / 'mlflow.db').resolve()}"


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the servers answer: ``host:port`` for Kafka and gRPC, a URL for Redis."""

    kafka: str
    redis: str = field(repr=False)
    grpc: str


def addresses(settings: Settings) -> Addresses:
    """Existing servers where the settings name them, else the local runtime's."""
    return Addresses(
        kafka=settings.kafka or f"{settings.host}:{settings.kafka_port}",
        redis=settings.redis or f"redis://{settings.host}:{settings.redis_port}/0",
        grpc=f"{settings.host}:{settings.grpc_port}",
    )


def shown_url(url: str) -> str:
    """A Redis URL as it may be shown: without user, password and options.

    Raises
    ------
    ConfigError
        It is no Redis URL, or a character in the password cuts it short.
    """
    try:
        parts = urlsplit(url)
        cut_short = parts.scheme != "unix" and "@" in parts.path + parts.query + parts.fragment
        if parts.scheme in ("redis", "rediss", "unix") and not cut_short and (parts.port is None or parts.port > 0):
            return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
    except ValueError:
        pass  # what it says may hold a part of the password
    raise ConfigError(
        "HEADWATER_REDIS: is no URL of a Redis server. Write redis://user:password@host:port, with rediss:// for TLS, "
        "and special characters of the password as %XX, such as %2F for a slash."
    )


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """Read once, at the process's entry point.

    Raises
    ------
    ConfigError
        A setting is unknown or has a value of the wrong kind.
    """
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise ConfigError(
            f"{field}: {first.get('input')!r} is not accepted, {first['msg'].lower()}. "
            f"Mend HEADWATER_{field.upper()} in the environment or {field} in headwater.toml."
        ) from None
