"""``headwater serve`` and ``ramp``, and what asks the running server: ``recommend``, ``search``, ``features``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwater.cli.output import JsonFlag, RepoOption, emit

if TYPE_CHECKING:
    from headwater.settings import Settings
    from serving.features import FeatureValues

User = Annotated[str, typer.Option("--user", help="Who is asking.")]
Limit = Annotated[int, typer.Option("--limit", help="At most this many items.", min=1, max=1000)]
Surface = Annotated[str, typer.Option("--surface", help="Where the list is shown.")]
Service = Annotated[str, typer.Option("--service", help="A feature service of the repository.")]
Entity = Annotated[list[str], typer.Option("--entity", help="Join key and value, once for each.", metavar="KEY=VALUE")]
Input = Annotated[
    list[str] | None, typer.Option("--input", help="Input of request-time features.", metavar="NAME=NUMBER")
]
At = Annotated[int | None, typer.Option("--at", help="Epoch milliseconds; now by default.", metavar="MS")]


def serve(
    repo: RepoOption = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", help="Processes that share the port; HEADWATER_SERVE_WORKERS, or 1.", min=1, max=256),
    ] = None,
) -> None:
    """Example: headwater serve --workers 2

    Answer gRPC until Ctrl-C: recommendations, events, features, health and reflection. `headwater up` does the same in
    the background. A core each is as many workers as help; a connection's calls all go to one of them.
    """
    from headwater.log import configure_logging
    from serving.workers import serve as run

    configure_logging("info")
    settings = _settings(repo)
    run(settings if workers is None else settings.model_copy(update={"serve_workers": workers}))


def ramp(
    shares: Annotated[
        list[str] | None, typer.Argument(help="Variant and percent of the users.", metavar="[VARIANT=PERCENT]...")
    ] = None,
    repo: RepoOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Example: headwater ramp challenger=25

    Let so many users see a variant of variants.toml; the first variant takes what the others leave. Running servers
    follow within a second, and who saw a variant that grows goes on seeing it. Without shares: those of now.
    """
    from models import variants

    folder = _settings(repo).repo
    asked = dict(_pair(one, "SHARES", "challenger=25") for one in shares or ())
    wanted = {name: _number(name, share, "SHARES") for name, share in asked.items()}
    held = variants.ramp(folder, wanted) if wanted else variants.load_experiment(folder)
    emit({"experiment": held.experiment, "shares": held.shares}, as_json, "Variants")


def recommend(
    user: User,
    limit: Limit = 10,
    surface: Surface = "home",
    explain: Annotated[bool, typer.Option("--explain", help="Tell of each item what every stage made of it.")] = False,
    why: Annotated[
        list[str] | None, typer.Option("--why", help="Explain this item, shown or not.", metavar="ITEM")
    ] = None,
    context: Annotated[
        list[str] | None,
        typer.Option("--context", help="What the request tells, such as basket=1082185,995242.", metavar="KEY=VALUE"),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Example: headwater recommend --user 42 --limit 10 --explain --why 1082185

    Ask the running server for a user's list, and why each item is in it, or one is not. What goes with a basket:
    headwater recommend --user 42 --surface basket --context basket=1082185,995242
    """
    from dataclasses import asdict

    from headwater.settings import addresses, get_settings
    from serving.client import Client

    told = dict(_pair(each, "--context", "basket=1082185,995242") for each in context or ())
    with Client(addresses(get_settings()).grpc) as client:
        ranked = client.recommend(user, surface, limit, context=told)
        items = [*(item.item_id for item in ranked.items if explain), *(why or ())]
        explained = [client.explain(user, item, surface, limit, context=told) for item in dict.fromkeys(items)]
    if as_json:
        emit(as_dict(ranked) | ({"explained": [_known(asdict(one)) for one in explained]} if items else {}), True)
    else:
        _show(ranked, user)
        _show_why(explained)


def search(
    query: Annotated[str, typer.Option("--query", help="Words of what is wanted.")],
    user: User,
    limit: Limit = 10,
    require: Annotated[
        list[str] | None,
        typer.Option(
            "--require", help="Only items with this attribute, such as audience=public.", metavar="NAME=VALUE"
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Example: headwater search --query "whole milk" --user 42

    Ask the running server for items that match a text, in the user's order.
    """
    from headwater.settings import addresses, get_settings
    from serving.client import Client

    required = dict(_pair(text, "--require", "audience=public") for text in require or ())
    with Client(addresses(get_settings()).grpc) as client:
        ranked = client.search(user, query, limit, require=required)
    if as_json:
        emit(as_dict(ranked), True)
    else:
        _show(ranked, user)


def features(
    service: Service,
    entity: Entity,
    at: At = None,
    inputs: Input = None,
    repo: RepoOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Example: headwater features --service user_state --entity user_id=42 --json

    Ask the running server for the features of one entity, or of one combination of entities. With --repo they are
    read from the online store as that repository defines them, without a server.
    """
    from headwater.settings import addresses
    from serving.client import Client

    entities, settings = dict(_pair(text, "--entity") for text in entity), _settings(repo)
    given = {name: _number(name, value) for name, value in (_pair(text, "--input") for text in inputs or ())}
    if repo is not None:
        read = _read(settings, service, entities, at, given)
        emit({**read.features, "at": read.at, "found": read.found}, as_json, title=service)
        return
    with Client(addresses(settings).grpc) as client:
        found = client.features(service, entities, at, given)
    emit({**found.values, "at": found.at, "found": found.found}, as_json, title=service)


def evaluate(
    holdout: Annotated[Path | None, typer.Option(help="Parquet of held-out purchases; the data set's own.")] = None,
    policy: Annotated[
        str | None, typer.Option(help="Instead, a new policy: a bundle's version or alias, or a Parquet table.")
    ] = None,
    log: Annotated[Path | None, typer.Option(help="What was shown: rows made from impressions.")] = None,
    reward: Annotated[str, typer.Option(help="Column of the log that is added up.")] = "label",
    temperature: Annotated[
        float, typer.Option(help="Of a bundle's draw: the lower, the closer to its order.", min=0.001)
    ] = 0.2,
    clip: Annotated[float | None, typer.Option(help="The most that a list may weigh.", min=1)] = None,
    as_json: JsonFlag = False,
) -> None:
    """Example: headwater evaluate --policy challenger --log training/shown --json

    Make every user's list with the champion's funnel, at the platform's present instant, and score it by what was
    bought in the held-out period, beside retrieval alone, own frequency and popularity. With --policy and --log: what
    the lists of another policy would have earned, from those that were shown and what came of them.
    """
    from headwater.settings import get_settings
    from serving.evaluation import in_processes, judge

    settings = get_settings()
    if policy is not None or log is not None:
        from headwater.errors import ConfigError
        from serving.policy import judge_policy

        if policy is None or log is None:
            raise ConfigError("evaluate: --policy and --log belong together. Give both, or neither.")
        emit(judge_policy(settings, policy, log, reward, temperature, clip), as_json, "Value of a list")
        return
    report = judge(settings, lambda users: in_processes(settings, users), holdout)
    shown = report if as_json else {name: value for name, value in report.items() if name != "users"}
    emit(shown, as_json, "Quality")


def load(
    qps: Annotated[float, typer.Option("--qps", help="Calls a second, sent by the clock.", min=0.01)] = 20.0,
    seconds: Annotated[float, typer.Option("--seconds", help="For how long.", min=0.1, max=86_400)] = 30.0,
    users: Annotated[
        int | None, typer.Option("--users", help="Draw from so many users; all by default.", min=1)
    ] = None,
    users_file: Annotated[
        Path | None, typer.Option("--users-file", help="Parquet with user_id; the champion's users by default.")
    ] = None,
    skew: Annotated[float, typer.Option("--skew", help="Zipf exponent of the users; 0 for evenly.", min=0)] = 1.0,
    track: Annotated[
        float, typer.Option("--track", help="Share of replies that a purchase follows.", min=0, max=1)
    ] = 0.2,
    limit: Limit = 10,
    surface: Surface = "home",
    seed: Annotated[int, typer.Option("--seed", help="Draws other users and purchases.")] = 0,
    connections: Annotated[
        int, typer.Option("--connections", help="Taken in turn, so that several workers are asked.", min=1, max=1000)
    ] = 1,
    as_json: JsonFlag = False,
) -> None:
    """Example: headwater load --qps 50 --seconds 60 --json

    Ask the running server for lists as users would, at instants set by a clock and not by its replies, and send some
    purchases back. Latency counts from the instant at which a call was due.
    """
    from headwater.clock import StoredClock
    from headwater.online.connect import connect
    from headwater.settings import addresses, get_settings
    from serving.load import Load, run

    settings = get_settings()
    wanted = Load(qps, seconds, _users(settings, users_file)[:users], skew, track, limit, surface, seed, connections)
    with connect(addresses(settings).redis) as store:
        told = run(addresses(settings).grpc, wanted, StoredClock(store))
    emit(told.as_dict(wanted), as_json, "Load")


def _users(settings: Any, file: Path | None) -> list[str]:
    import pyarrow.parquet as pq

    from headwater.errors import DataError, ModelError
    from serving.aliases import champion

    if file is None:
        version = champion(settings)
        if version is None:
            raise ModelError("load: no model has been promoted. Run headwater train, then headwater promote.")
        file = settings.bundles_dir / version / "users.parquet"
    try:
        return [str(user) for user in pq.read_table(file, columns=["user_id"])["user_id"].to_pylist()]
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: {error}. Give a Parquet file with a column user_id.") from None


def as_dict(ranked: Any) -> dict[str, Any]:
    """Lay out a reply as ``--json`` prints it."""
    return {
        "request_id": ranked.request_id,
        "items": [item._asdict() for item in ranked.items],
        "degraded": list(ranked.degraded),
        "bundle_version": ranked.bundle_version,
        "variant": ranked.variant,
    }


def _settings(repo: Path | None) -> "Settings":
    from headwater.settings import get_settings

    settings = get_settings()
    return settings if repo is None else settings.model_copy(update={"repo": repo})


def _read(
    settings: "Settings", service: str, entities: dict[str, str], at: int | None, given: dict[str, float]
) -> "FeatureValues":
    """What a server of the settings' repository would answer."""
    from headwater.clock import StoredClock
    from headwater.online.connect import connect
    from headwater.online.reader import OnlineReader
    from headwater.registry.manifest import load_plan
    from headwater.settings import addresses
    from serving.features import FeatureLookup
    from serving.telemetry import Telemetry

    plan = load_plan(settings.repo)
    with connect(addresses(settings).redis) as store:
        clock = StoredClock(store)
        return FeatureLookup(plan, OnlineReader(store, plan, clock), clock, Telemetry()).read(
            service, entities, at, given
        )


def _show(ranked: Any, user: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("", "product", "category", "score", "why", title=f"For {user}")
    for item in ranked.items:
        name = item.attributes.get("name") or item.item_id
        why = "; ".join(item.reasons)
        table.add_row(str(item.position), name, item.attributes.get("category", ""), f"{item.score:.3f}", why)
    console = Console()
    console.print(table)
    if ranked.degraded:
        console.print(f"Degraded: {', '.join(ranked.degraded)}")
    console.print(f"Bundle {ranked.bundle_version}, request {ranked.request_id}")


def _show_why(explained: list[Any]) -> None:
    from rich.console import Console

    console = Console()
    for one in explained:
        console.print(f"\n[bold]{one.item_id}[/bold]: {one.stage}{f' at {one.position}' if one.position else ''}")
        for line in one.lines:
            console.print(f"  {line}", markup=False, highlight=False)


def _known(explanation: dict[str, Any]) -> dict[str, Any]:
    """As JSON has it: a feature without a value is null."""
    moved = [{**one, "value": None if one["value"] != one["value"] else one["value"]} for one in explanation["moved"]]
    return {**explanation, "moved": moved}


def _pair(text: str, option: str, example: str = "user_id=42") -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals and value):
        raise typer.BadParameter(f"{text!r} is not NAME=VALUE, such as {example}.", param_hint=option)
    return key, value


def _number(name: str, text: str, option: str = "--input") -> float:
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"{name}={text!r} is not a number.", param_hint=option) from None
