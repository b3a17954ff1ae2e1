"""Validate ``docker-compose.yml`` without a Docker engine: ``python scripts/check_compose.py [FILE]``.

A schema would find a misspelt key. This finds what a schema cannot: a dependency that has no health check, a port open
to the network, a bind mount, module or setting that does not exist, an image that is not pinned. Where Docker's
compose plug-in is installed it is asked too.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from headwater.settings import Settings

ROOT = Path(__file__).resolve().parents[1]


class Strict(BaseModel):
    """Unknown keys are refused, which is how a misspelling shows."""

    model_config = ConfigDict(extra="forbid")


class Build(Strict):
    """How an image is made here."""

    context: str
    dockerfile: str


class Dependency(Strict):
    """What has to hold of another service first."""

    condition: Literal["service_started", "service_healthy", "service_completed_successfully"]


class Healthcheck(Strict):
    """How a service proves that it answers."""

    test: list[str]
    interval: str
    timeout: str
    retries: int


class Service(Strict):
    """The part of the compose specification that is used here."""

    image: str
    build: Build | None = None
    hostname: str | None = None
    command: list[str] = []
    environment: dict[str, str] = {}
    volumes: list[str] = []
    ports: list[str] = []
    depends_on: dict[str, Dependency] = {}
    healthcheck: Healthcheck | None = None
    restart: Literal["no", "always", "on-failure", "unless-stopped"]


class Compose(BaseModel):
    """A whole file; extensions (``x-…``) are YAML anchors and not looked at."""

    name: str
    services: dict[str, Service]
    volumes: dict[str, Any] = {}


def faults(path: Path) -> list[str]:
    """Return what is wrong with a compose file, a line each."""
    try:
        compose = Compose.model_validate(yaml.safe_load(path.read_text()))
    except ValidationError as error:
        return [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
    found = [f"{name}: {fault}" for name, service in compose.services.items() for fault in _of(service, compose)]
    return [*found, *_cycles(compose), *_docker(path)]


def _of(service: Service, compose: Compose) -> Iterator[str]:
    yield from _image(service, compose)
    yield from _ports(service)
    yield from _volumes(service, compose)
    yield from _dependencies(service, compose)
    yield from _code(service)


def _image(service: Service, compose: Compose) -> Iterator[str]:
    version = service.image.partition(":")[2]
    if not version or version == "latest":
        yield f"image {service.image} has no version"
    if service.build is not None and not (ROOT / service.build.context / service.build.dockerfile).is_file():
        yield f"{service.build.dockerfile} does not exist"
    built = {other.image for other in compose.services.values() if other.build is not None}
    if "/" not in service.image and service.image not in built:
        yield f"image {service.image} is built by no service"


def _ports(service: Service) -> Iterator[str]:
    for port in service.ports:
        if not port.startswith("127.0.0.1:") or port.count(":") != 2:
            yield f"port {port} is not published on loopback"


def _volumes(service: Service, compose: Compose) -> Iterator[str]:
    for volume in service.volumes:
        source = volume.partition(":")[0]
        if source.startswith(".") and not (ROOT / source).exists():
            yield f"{source} does not exist"
        if not source.startswith(".") and source not in compose.volumes:
            yield f"volume {source} is not declared"


def _dependencies(service: Service, compose: Compose) -> Iterator[str]:
    for name, dependency in service.depends_on.items():
        other = compose.services.get(name)
        if other is None:
            yield f"depends on {name}, which does not exist"
        elif dependency.condition == "service_healthy" and other.healthcheck is None:
            yield f"waits for {name} to be healthy, which has no health check"
        elif dependency.condition == "service_completed_successfully" and other.restart != "no":
            yield f"waits for {name} to end, which is restarted for ever"


def _code(service: Service) -> Iterator[str]:
    for variable in service.environment:
        field = variable.removeprefix("HEADWATER_").lower()
        if variable.startswith("HEADWATER_") and field not in Settings.model_fields:
            yield f"{variable} is no setting"
    if service.command[:2] == ["python", "-m"] and find_spec(service.command[2]) is None:
        yield f"module {service.command[2]} does not exist"


def _cycles(compose: Compose) -> Iterator[str]:
    def reach(name: str, path: tuple[str, ...]) -> Iterator[str]:
        if name in path:
            yield f"{' -> '.join((*path, name))}: services wait for each other"
            return
        for other in compose.services[name].depends_on:
            if other in compose.services:
                yield from reach(other, (*path, name))

    for name in compose.services:
        yield from reach(name, ())


def _docker(path: Path) -> Iterator[str]:
    """Ask Docker's own client, which needs no engine for this, where it is installed."""
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True).returncode:
        return
    asked = subprocess.run(
        [docker, "compose", "--file", str(path), "config", "--quiet"],
        capture_output=True,
        text=True,
        env={**os.environ, "GRAFANA_PASSWORD": "any"},
    )
    if asked.returncode:
        yield asked.stderr.strip()


if __name__ == "__main__":
    sys.exit("\n".join(faults(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docker-compose.yml")) or 0)
