"""The compose file of the separate-servers form, without a Docker engine."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "docker-compose.yml"

sys.path.insert(0, str(ROOT / "scripts"))
from check_compose import faults  # noqa: E402  # a script, not a package

sys.path.pop(0)


def test_the_compose_file_is_valid() -> None:
    assert faults(COMPOSE) == []


@pytest.mark.parametrize(
    ("right", "wrong", "fault"),
    [
        ("restart: unless-stopped", "restrat: unless-stopped", "restrat: Extra inputs are not permitted"),
        ("image: valkey/valkey:9.0", "image: valkey/valkey", "valkey: image valkey/valkey has no version"),
        ('"127.0.0.1:16379:6379"', '"16379:6379"', "valkey: port 16379:6379 is not published on loopback"),
        ("[valkey:/data]", "[valkye:/data]", "valkey: volume valkye is not declared"),
        ("valkey: {condition: service_healthy}", "redis: {condition: service_healthy}", "setup: depends on redis"),
        ("./deploy/prometheus/prometheus.yml", "./deploy/prom.yml", "prometheus: ./deploy/prom.yml does not exist"),
        ("HEADWATER_HOST:", "HEADWATER_HOTS:", "HEADWATER_HOTS is no setting"),
        ("streaming.archive]", "streaming.archives]", "archive: module streaming.archives does not exist"),
        ('    restart: "no"\n', "", "waits for setup to end, which is restarted for ever"),
    ],
)
def test_what_a_schema_cannot_see_is_found(tmp_path: Path, right: str, wrong: str, fault: str) -> None:
    text = COMPOSE.read_text()
    assert right in text
    (tmp_path / "compose.yml").write_text(text.replace(right, wrong, 1))
    assert any(fault in found for found in faults(tmp_path / "compose.yml"))


def test_services_that_wait_for_each_other_are_found(tmp_path: Path) -> None:
    service = "{{image: a/b:1, restart: always, depends_on: {{{other}: {{condition: service_started}}}}}}"
    text = f"name: x\nservices:\n  a: {service.format(other='b')}\n  b: {service.format(other='a')}\n"
    (tmp_path / "compose.yml").write_text(text)
    assert "a -> b -> a: services wait for each other" in faults(tmp_path / "compose.yml")
