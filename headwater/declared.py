"""Files in which a repository declares something: TOML, held to a model when it is read."""

import tomllib
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel, ValidationError

from headwater.errors import ConfigError

Declared = TypeVar("Declared", bound=BaseModel)


class Readable(Protocol):
    """A file, of a folder or of a package."""

    def read_text(self) -> str:
        """Its text."""
        ...


def read_declared(source: Readable | Path, model: type[Declared]) -> Declared:
    """Read a file.

    Raises
    ------
    ConfigError
        It is not TOML, or a field is unknown, out of bounds or contradicts another.
    FileNotFoundError
        There is none.
    """
    return parse_declared(source.read_text(), model, source)


def parse_declared(text: str, model: type[Declared], source: object) -> Declared:
    """Hold a text to a model; ``source`` is what an error names.

    Raises
    ------
    ConfigError
        As :func:`read_declared`.
    """
    try:
        held = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source}: not TOML, {error}. Mend that line.") from None
    return held_to(held, model, source)


def held_to(held: Any, model: type[Declared], source: object) -> Declared:
    """Hold what has been read to a model.

    Raises
    ------
    ConfigError
        A field is unknown, out of bounds or contradicts another.
    """
    try:
        return model.model_validate(held)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "whole"
        raise ConfigError(f"{source}: {field}: {first['msg'].lower()}. Mend that field.") from None
