"""Every command's help opens with an example that its own parser accepts; so do the examples in the documents."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from headwater.cli.main import build

ROOT = Path(__file__).parents[2]
ENDLESS = {"headwater serve", "headwater stream run"}
"""What runs until Ctrl-C has no result to print."""


def children(command: Any) -> dict[str, Any]:
    return getattr(command, "commands", {})


def commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    yield name, command
    for child, found in children(command).items():
        yield from commands(found, f"{name} {child}")


PROGRAM = typer.main.get_command(build())
ALL = dict(commands(PROGRAM, "headwater"))


def example_of(command: Any) -> str:
    first = (command.help or "").strip().splitlines()[0]
    assert first.startswith("Example: ")
    return first.removeprefix("Example: ").rstrip(".")


def parse(line: str) -> None:
    """Raise a usage error where a line is no call of the program; nothing is run."""
    program, *words = shlex.split(line, comments=True)
    command, name = PROGRAM, program
    while children(command) and words and not words[0].startswith("-"):
        name, command, words = f"{name} {words[0]}", children(command)[words[0]], words[1:]
    command.make_context(name, words)


@pytest.mark.parametrize("name", ALL)
def test_help_opens_with_an_example_of_the_command_itself(name):
    example = example_of(ALL[name])
    assert example.startswith(name)
    parse(example)


@pytest.mark.parametrize("name", [n for n, c in ALL.items() if not children(c) and n not in ENDLESS])
def test_every_result_can_be_had_as_json(name):
    assert any("--json" in option.opts for option in ALL[name].params)


def documented() -> Iterator[tuple[str, str]]:
    for page in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]):
        for block in re.findall(r"^ *```sh\n(.*?)^ *```", page.read_text(), re.DOTALL | re.MULTILINE):
            lines = (line.strip() for line in block.splitlines())
            yield from ((page.name, line) for line in lines if line.startswith("headwater"))


@pytest.mark.parametrize(("page", "line"), list(documented()))
def test_the_commands_in_the_documents_are_accepted(page, line):
    parse(line)
