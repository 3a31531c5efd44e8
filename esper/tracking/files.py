"""JSON files: `recipe.json` of a run (what it grew), `sweep.json` of a sweep (the overrides of its members)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from filelock import FileLock
from pydantic import TypeAdapter

from esper.contracts.recipe import Graft
from esper.errors import ConfigError, RunError
from esper.files import Count, Number, as_json, decoder, json_object, read_json, write_atomically

__all__ = [
    "GRAFT",
    "MEMBERS_FILES",
    "SWEEP_FILE",
    "forget_member",
    "read_members",
    "read_recipe",
    "write_members",
    "write_recipe",
]

SWEEP_FILE = "sweep.json"
_LOCK = f".{SWEEP_FILE}.lock"
MEMBERS_FILES = (SWEEP_FILE, _LOCK)
"""What `write_members` writes in the sweep's folder."""
_RECIPE_SCHEMA = 1
GRAFT = as_json(Graft, extra="forbid", graft_id=Count, init_seed=Count, born_step=Count, init_gain=Number)
"""Schema of an entry of a recipe."""
_RECIPE = decoder(
    json_object("Recipe", {"schema": Literal[_RECIPE_SCHEMA], "grafts": list[GRAFT]})  # type: ignore[valid-type]
)
_MEMBERS: TypeAdapter[dict[str, list[str]]] = TypeAdapter(dict[str, list[str]])


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
        content = read_json(file, _RECIPE)
    except FileNotFoundError:
        raise ConfigError(f"no recipe at {path}; give a recipe.json, or the folder of a finished run") from None
    except RunError as error:
        raise ConfigError(
            f"{error}; morphogenetic.recipe_path takes a recipe.json of schema {_RECIPE_SCHEMA}, or the folder of a "
            "finished run"
        ) from None
    return [Graft(**entry) for entry in content["grafts"]]


def write_members(sweep_dir: Path, members: Mapping[str, Sequence[str]]) -> None:
    """Add members (run name: overrides) to the sweep's file."""
    sweep_dir.mkdir(parents=True, exist_ok=True)
    with FileLock(sweep_dir / _LOCK):
        known = read_members(sweep_dir) | {name: list(overrides) for name, overrides in members.items()}
        write_atomically(sweep_dir / SWEEP_FILE, json.dumps(known, indent=1) + "\n")


def forget_member(sweep_dir: Path, name: str) -> None:
    """Remove a member from the sweep's file, where there is one."""
    if (sweep_dir / SWEEP_FILE).is_file():
        with FileLock(sweep_dir / _LOCK):
            known = {member: overrides for member, overrides in read_members(sweep_dir).items() if member != name}
            write_atomically(sweep_dir / SWEEP_FILE, json.dumps(known, indent=1) + "\n")


def read_members(sweep_dir: Path) -> dict[str, list[str]]:
    """The overrides of each member by run name; empty where no sweep was launched.

    Raises:
        RunError: the file is damaged.
    """
    file = sweep_dir / SWEEP_FILE
    try:
        return read_json(file, _MEMBERS)
    except FileNotFoundError:
        return {}
    except RunError as error:
        raise RunError(f"{error}; remove it, the sweep's command writes it again") from None
