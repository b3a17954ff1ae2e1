"""Import Feast for what only reads its registry, in a quarter of the time.

``python -m headwater.registry.lean`` is Feast's own command line, started so: for repositories known to be sound.
"""

import importlib
import sys
from types import ModuleType
from typing import Any
from unittest.mock import patch


def import_feast() -> Any:
    """Import Feast without torch, and without rewriting its classes to check the types of every call.

    Both are for programs that define features or make tensors of them. ``feast apply`` runs in a process of its own and
    checks as ever. What was imported before is left as it is; ``to_tensor`` imports torch when it is called.
    """
    if "feast" not in sys.modules:
        torch = ModuleType("feast.torch_wrapper")
        vars(torch).update(get_torch=lambda: importlib.import_module("torch"))
        sys.modules["feast.torch_wrapper"] = torch
        with patch("typeguard.typechecked", _unchecked):
            importlib.import_module("feast")
    return sys.modules["feast"]


def _unchecked(target: Any = None, **_options: Any) -> Any:
    """Stand in for ``typeguard.typechecked``, bare or with options."""
    return _unchecked if target is None else target


if __name__ == "__main__":
    import_feast()
    from feast.cli.cli import cli

    cli()
