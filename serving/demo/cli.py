"""``headwater demo``."""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwater.cli.output import JsonFlag, emit, err

if TYPE_CHECKING:
    from serving.demo.story import Outcome

PLAIN_WIDTH = 100
Small = Annotated[bool, typer.Option("--small", help="200 households: a few minutes.")]
User = Annotated[str | None, typer.Option("--user", help="Whose list is shown.")]


def demo(small: Small = False, user: User = None, as_json: JsonFlag = False) -> None:
    """Example: headwater demo --small

    Run the whole system on a year of real grocery purchases: Kafka, Flink, Spark, training, serving, and a purchase
    that changes the answer. Stopped midway, the next run resumes. Ends what it started.
    """
    from headwater.settings import get_settings
    from serving.demo.story import play

    outcome = play(get_settings(), small, user)
    if as_json:
        emit(outcome.summary(), True)
    else:
        _tell(outcome)


def _tell(outcome: "Outcome") -> None:
    from rich.console import Console

    console = Console() if sys.stdout.isatty() else Console(width=PLAIN_WIDTH)
    change = outcome.change
    console.print(_list(f"For household {change.user_id}", change.before))
    console.print(f"\nBought: [bold]{change.bought.attributes.get('name', change.bought.item_id)}[/bold]\n")
    console.print(_list(f"The same call, {change.delay_ms:.0f} ms after the purchase was sent", change.after))
    summary = outcome.summary()
    console.print(_quality(summary))
    console.print(_facts(summary))
    console.print(_shares(summary))
    if change.before.degraded or change.after.degraded:
        err.print(f"[yellow]Degraded: {', '.join({*change.before.degraded, *change.after.degraded})}[/yellow]")


def _list(title: str, ranked: Any) -> Any:
    from rich.table import Table

    table = Table("", "product", "score", "why", title=title, title_justify="left")
    for item in ranked.items:
        name = item.attributes.get("name") or item.item_id
        table.add_row(str(item.position), name, f"{item.score:.3f}", "; ".join(item.reasons))
    return table


def _quality(summary: dict[str, Any]) -> Any:
    from rich.table import Table

    table = Table("", "NDCG@10", "Recall@20", "repeats", "first", title="How good (test period)", title_justify="left")
    for name in summary["ndcg_at_10"]:
        columns = ("ndcg_at_10", "recall_at_20", "recall_at_20_repeats", "recall_at_20_first")
        table.add_row(name.replace("_", " "), *(f"{summary[column][name]:.3f}" for column in columns))
    return table


def _facts(summary: dict[str, Any]) -> Any:
    from rich.table import Table

    gain = summary["ndcg_at_10_gain"]
    rows = {
        "NDCG@10 over own frequency": "{mean:+.4f} [{low:+.4f}, {high:+.4f}]".format(**gain["own_frequency"]),
        "NDCG@10 over retrieval alone": "{mean:+.4f} [{low:+.4f}, {high:+.4f}]".format(**gain["retrieval_only"]),
        "events replayed": f"{summary['events_replayed']:,}, {summary['dead_letters']} dead letters",
        "online writes": f"{summary['online_writes']:,}",
        "cells online = offline": f"{summary['cells_compared']:,} compared, {summary['cells_mismatched']} mismatched",
        "event to feature": "p50 {p50} ms, p99 {p99} ms".format(**summary["freshness_ms"]),
        "recommend over gRPC": "p50 {p50} ms, p99 {p99} ms".format(**summary["recommend_ms"]),
        "whole demo": f"{summary['elapsed_s']} s, at most {summary['peak_rss_mb']:,.0f} MiB",
    }
    table = Table("", "", title="How exact and how fast", show_header=False, title_justify="left")
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _shares(summary: dict[str, Any]) -> Any:
    from rich.table import Table

    table = Table(
        "part", "time", "share", "CPU s", "peak MiB", title="Where time and memory went", title_justify="left"
    )
    total = sum(part["seconds"] or 0.0 for part in summary["parts"].values())
    for name, part in summary["parts"].items():
        seconds = part["seconds"]
        shown = ("", "") if seconds is None else (f"{seconds:.1f} s", f"{seconds / total:.0%}")
        table.add_row(name, *shown, f"{part['cpu_s'] or 0:.0f}", f"{part['peak_rss_mb'] or 0:,.0f}")
    return table
