"""`recipe.json`: what grew in a network, so that another run can build it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from esper.contracts.recipe import Graft
from esper.errors import ConfigError
from esper.tracking.files import write_atomically

__all__ = ["read_recipe", "write_recipe"]

_SCHEMA = 1
_TYPES = {"str": str, "int": int, "float": float, "str | None": str}
_FIELDS = {field.name: _TYPES[str(field.type)] for field in dataclasses.fields(Graft)}
_OPTIONAL = {"definition"}


def write_recipe(path: Path, recipe: Sequence[Graft], *, host: str) -> None:
    """Write the recipe of a network that grew on a host of this name."""
    content = {"schema": _SCHEMA, "host": host, "grafts": [graft.entry() for graft in recipe]}
    write_atomically(path, json.dumps(content, indent=1) + "\n")


def read_recipe(path: Path) -> list[Graft]:
    """Read a recipe file, or that of a finished run by its folder.

    Raises:
        ConfigError: it is missing, damaged, or of a schema that this version does not know.
    """
    file = path / "recipe.json" if path.is_dir() else path
    try:
        content = json.loads(file.read_text())
    except FileNotFoundError:
        raise ConfigError(f"no recipe at {path}; give a recipe.json, or the folder of a finished run") from None
    except (OSError, ValueError):
        raise ConfigError(
            f"{file} is no recipe; morphogenetic.recipe_path takes a recipe.json, or the folder of a finished run"
        ) from None
    if not isinstance(content, dict) or content.get("schema") != _SCHEMA or not isinstance(content.get("grafts"), list):
        raise ConfigError(f"{file} is no recipe of schema {_SCHEMA}; write it anew with this version of Esper")
    return [_graft(entry, file) for entry in content["grafts"]]


def _graft(entry: Any, file: Path) -> Graft:
    if not isinstance(entry, dict) or entry.keys() | _OPTIONAL != _FIELDS.keys():
        raise ConfigError(
            f"{file}: a graft needs exactly {', '.join(name for name in _FIELDS if name not in _OPTIONAL)}"
        )
    for name, value in entry.items():
        kind = _FIELDS[name]
        if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
            raise ConfigError(f"{file}: {name}={value!r} must be of type {kind.__name__}")
    return Graft(**entry)
