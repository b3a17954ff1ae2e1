"""Files in which a repository declares something: TOML, held to a model when it is read."""

import tomllib
from pathlib import Path
from typing import Protocol, TypeVar

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
    try:
        return model.model_validate(tomllib.loads(source.read_text()))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source}: not TOML, {error}. Mend that line.") from None
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "whole"
        raise ConfigError(f"{source}: {field}: {first['msg'].lower()}. Mend that field.") from None
