"""Collects the commands that the rooms offer under the entry-point group ``headwater.commands``."""

import sys
from importlib.metadata import entry_points

import typer
from rich.markup import escape

from headwater.cli.output import err
from headwater.errors import HeadwaterError
from headwater.log import configure_logging


def build(asked: str | None = None) -> typer.Typer:
    """One Typer application; where a known command is asked for, no other's module is imported."""
    app = typer.Typer(name="headwater", no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)
    app.callback()(_platform)
    entries = sorted(entry_points(group="headwater.commands"), key=lambda found: found.name)
    for entry in [one for one in entries if one.name == asked] or entries:
        command = entry.load()
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=entry.name)
        else:
            app.command(entry.name, context_settings=getattr(command, "context_settings", None))(command)
    return app


def _platform() -> None:
    """Example: headwater demo

    A feature store and real-time recommendation platform: one definition per feature, equal in training and serving.
    """


def run() -> None:
    """Exit 0 done, 1 refused, 2 misused."""
    configure_logging("warning")
    try:
        build(sys.argv[1] if len(sys.argv) > 1 else None)()
    except HeadwaterError as error:
        err.print(f"[red]{escape(str(error))}[/red]", soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        err.print("Stopped. Run the same command again: it resumes what it can.")
        sys.exit(130)


if __name__ == "__main__":
    run()
