"""``headwater recommend`` and ``headwater features`` against a server in this process."""

import json
from collections.abc import Callable, Iterator

import pytest
import redis
import typer
from typer.testing import CliRunner

from headwater.errors import DataError, NotAnswerableError, UnavailableError
from headwater.plan import DAY_MS
from headwater.settings import get_settings
from serving import cli, workers
from serving.server import Parts, Server
from serving.telemetry import Telemetry
from serving.tracking import KafkaLog

NOW = 400 * DAY_MS
runner = CliRunner()
app = typer.Typer()
for command in (cli.recommend, cli.search, cli.features, cli.serve):
    app.command()(command)


@pytest.fixture
def environment(settings, monkeypatch) -> Iterator[None]:
    """Point the commands at this test's server."""
    monkeypatch.setenv("HEADWATER_GRPC_PORT", str(settings.grpc_port))
    get_settings.cache_clear()
    yield
    get_settings.cache_clear()


@pytest.fixture
def served(settings, environment, clock, valkey, funnel, promote) -> Iterator[None]:
    store = redis.Redis.from_url(valkey)
    build_funnel: Callable[..., object] = lambda plan, folder: funnel(store)  # noqa: E731
    promote("v1")
    server = Server(settings, Parts(store, clock, KafkaLog("127.0.0.1:1"), Telemetry(), build_funnel))
    server.start()
    yield
    server.close()


@pytest.mark.integration
def test_recommend_prints_one_object_or_a_table_with_names_and_reasons(served, valkey_client, put):
    put(valkey_client, "user_item", {("u1", "i5"): 2})
    done = runner.invoke(app, ["recommend", "--user", "u1", "--limit", "3", "--json"])
    told = json.loads(done.stdout)
    assert [item["position"] for item in told["items"]] == [1, 2, 3]
    assert told["items"][0]["item_id"] == "i5"
    assert told["degraded"] == []
    shown = runner.invoke(app, ["recommend", "--user", "u1"]).stdout
    assert "Item 5" in shown
    assert "bought 2" in shown
    about = runner.invoke(app, ["recommend", "--user", "u1", "--context", "basket=i5,i7", "--json"])
    assert not {"i5", "i7"} & {item["item_id"] for item in json.loads(about.stdout)["items"]}
    wrong = runner.invoke(app, ["recommend", "--user", "u1", "--context", "basket"])
    assert wrong.exit_code == 2
    assert "--context" in wrong.stderr


@pytest.mark.integration
def test_search_prints_what_matches_and_refuses_what_is_no_query(served):
    told = json.loads(runner.invoke(app, ["search", "--query", "item 7", "--user", "u1", "--json"]).stdout)
    assert told["items"][0]["attributes"]["name"] == "Item 7"
    assert told["items"][0]["sources"][0] == "bm25"
    assert isinstance(runner.invoke(app, ["search", "--query", "?!", "--user", "u1"]).exception, DataError)
    required = ["search", "--query", "item", "--user", "u1", "--require"]
    assert runner.invoke(app, [*required, "audience"]).exit_code == 2
    only = json.loads(runner.invoke(app, [*required, "category=c2", "--json"]).stdout)
    assert {item["attributes"]["category"] for item in only["items"]} == {"c2"}


@pytest.mark.integration
def test_recommend_explains_what_is_shown_and_what_is_asked_for(served, valkey_client, put):
    put(valkey_client, "user_item", {("u1", "i5"): 2})
    asked = ["recommend", "--user", "u1", "--limit", "2", "--explain", "--why", "i31"]
    told = json.loads(runner.invoke(app, [*asked, "--json"]).stdout)
    assert [one["item_id"] for one in told["explained"]] == [*(item["item_id"] for item in told["items"]), "i31"]
    assert told["explained"][0]["position"] == 1
    assert told["explained"][0]["moved"][0]["name"] == "user_item_purchases"
    shown = runner.invoke(app, asked).stdout
    assert "i5: shown at 1" in shown
    assert "buy_it_again (its place 1)" in shown


@pytest.mark.integration
def test_features_prints_values_with_their_instant(served, valkey_client, put, clock):
    put(valkey_client, "user_activity", {("u1",): 7})
    entities = ["--entity", "user_id=u1", "--entity", "item_id=i1", "--entity", "category=c1"]
    done = runner.invoke(app, ["features", "--service", "recommend", *entities, "--json"])
    told = json.loads(done.stdout)
    assert told["user_purchases"] == 7
    assert (told["at"], told["found"]) == (clock.now_ms(), True)


@pytest.mark.integration
def test_features_of_another_repository_are_read_without_a_server(
    settings, environment, valkey, valkey_client, put, monkeypatch
):
    """Now by default; the past is refused by name, and who is unknown is not found."""
    monkeypatch.setenv("HEADWATER_REDIS", valkey)
    get_settings.cache_clear()
    put(valkey_client, "user_activity", {("u1",): 7}, newest=NOW)

    def ask(user, *more):
        entities = ["--entity", f"user_id={user}", "--entity", "item_id=i1", "--entity", "category=c1"]
        return runner.invoke(
            app, ["features", "--service", "recommend", *entities, "--repo", str(settings.repo), "--json", *more]
        )

    told = json.loads(ask("u1", "--at", str(NOW + 5)).stdout)
    assert (told["user_purchases"], told["at"], told["found"]) == (7, NOW + 5, True)
    assert json.loads(ask("u1").stdout)["at"] > NOW
    assert json.loads(ask("nobody").stdout)["found"] is False
    refused = ask("u1", "--at", str(NOW)).exception
    assert isinstance(refused, NotAnswerableError)
    assert str(NOW) in str(refused)


def test_without_a_server_one_sentence_says_what_to_start(environment):
    done = runner.invoke(app, ["recommend", "--user", "u1"])
    assert isinstance(done.exception, UnavailableError)
    assert "headwater up" in str(done.exception)


def test_an_entity_that_is_no_pair_is_misuse(environment):
    done = runner.invoke(app, ["features", "--service", "recommend", "--entity", "u1"])
    assert done.exit_code == 2


def test_the_flag_says_how_many_workers_there_are_before_the_settings_do(monkeypatch):
    monkeypatch.setenv("HEADWATER_SERVE_WORKERS", "3")
    get_settings.cache_clear()
    started: list[int] = []
    monkeypatch.setattr(workers, "serve", lambda settings: started.append(settings.serve_workers))
    for options in ([], ["--workers", "2"]):
        assert runner.invoke(app, ["serve", *options]).exit_code == 0
    assert started == [3, 2]
    assert runner.invoke(app, ["serve", "--workers", "0"]).exit_code == 2
    get_settings.cache_clear()
