import pytest

from headwater.errors import ConfigError
from headwater.settings import Settings, addresses, get_settings


@pytest.fixture(autouse=True)
def _fresh():
    get_settings.cache_clear()
    yield
    get_settings.cache_clear()


def test_the_environment_names_servers_to_use_instead(monkeypatch):
    monkeypatch.setenv("HEADWATER_KAFKA", "broker:9092")
    assert addresses(get_settings()).kafka == "broker:9092"
    assert addresses(Settings(kafka=None)).kafka == "127.0.0.1:19092"


def test_a_wrong_value_is_refused_by_name(monkeypatch):
    monkeypatch.setenv("HEADWATER_KAFKA_PORT", "lots")
    with pytest.raises(ConfigError, match=r"kafka_port: 'lots'.*HEADWATER_KAFKA_PORT"):
        get_settings()


def test_an_unknown_key_of_the_file_is_refused_by_name(monkeypatch, tmp_path):
    (tmp_path / "headwater.toml").write_text("kafka_prot = 1\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="kafka_prot"):
        get_settings()
