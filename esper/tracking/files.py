"""JSON files: `recipe.json` of a run (what it grew), `sweep.json` of a sweep (the overrides of its members)."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from esper.contracts.recipe import Graft
from esper.errors import ConfigError, RunError

__all__ = ["SWEEP_FILE", "read_members", "read_recipe", "write_atomically", "write_members", "write_recipe"]

SWEEP_FILE = "sweep.json"
_RECIPE_SCHEMA = 1
_TYPES = {"str": str, "int": int, "float": float, "str | None": str, "tuple[str, ...]": list}
_GRAFT_TYPES = {field.name: _TYPES[str(field.type)] for field in dataclasses.fields(Graft)}
_OPTIONAL = {"copy_init", "definition", "sources"}


def write_atomically(path: Path, text: str, *, is_private: bool = False) -> None:
    """Replace a file's content; readers, and a crash, see the old content or the new, never a part of it.

    With `is_private`, only its owner can read it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)  # a link or another user's file would be written to
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if is_private else 0o666)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_recipe(path: Path, recipe: Sequence[Graft], *, host: str) -> None:
    """Write the growth recipe of a network; `host` is the name of its host."""
    content = {"schema": _RECIPE_SCHEMA, "host": host, "grafts": [graft.entry() for graft in recipe]}
    write_atomically(path, json.dumps(content, indent=1) + "\n")


def read_recipe(path: Path) -> list[Graft]:
    """Read a recipe.json, or the one in the folder of a finished run.

    Raises:
        ConfigError: it is missing, damaged, or of an unknown schema.
    """
    file = path / "recipe.json" if path.is_dir() else path
    try:
        content = json.loads(file.read_text())
    except FileNotFoundError:
        raise ConfigError(f"no recipe at {path}; give a recipe.json, or the folder of a finished run") from None
    except (OSError, ValueError):
        raise ConfigError(
            f"{file} is not a recipe; morphogenetic.recipe_path takes a recipe.json, or the folder of a finished run"
        ) from None
    is_recipe = isinstance(content, dict) and isinstance(content.get("grafts"), list)
    if not is_recipe or content.get("schema") != _RECIPE_SCHEMA:
        raise ConfigError(
            f"{file} is not a recipe of schema {_RECIPE_SCHEMA}; write it again with this version of Esper"
        )
    return [_graft(entry, file) for entry in content["grafts"]]


def _graft(entry: Any, file: Path) -> Graft:
    if not isinstance(entry, dict) or entry.keys() | _OPTIONAL != _GRAFT_TYPES.keys():
        required = ", ".join(name for name in _GRAFT_TYPES if name not in _OPTIONAL)
        raise ConfigError(f"{file}: a graft needs exactly {required}")
    for name, value in entry.items():
        kind = _GRAFT_TYPES[name]
        if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
            raise ConfigError(f"{file}: {name}={value!r} must be of type {kind.__name__}")
    return Graft(**entry)


def write_members(sweep_dir: Path, members: Mapping[str, Sequence[str]]) -> None:
    """Add members (run name: overrides) to the sweep's file."""
    sweep_dir.mkdir(parents=True, exist_ok=True)
    with FileLock(sweep_dir / f".{SWEEP_FILE}.lock"):
        known = read_members(sweep_dir) | {name: list(overrides) for name, overrides in members.items()}
        write_atomically(sweep_dir / SWEEP_FILE, json.dumps(known, indent=1) + "\n")


def read_members(sweep_dir: Path) -> dict[str, list[str]]:
    """The overrides of each member by run name; empty where no sweep was launched.

    Raises:
        RunError: the file is damaged.
    """
    file = sweep_dir / SWEEP_FILE
    try:
        content = json.loads(file.read_text())
        return {str(name): [str(override) for override in overrides] for name, overrides in content.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError, TypeError):
        raise RunError(f"{file} is unreadable; remove it, the sweep's command writes it again") from None
