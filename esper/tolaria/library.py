"""A run's use of the blueprint library: it reads blueprints at the start, and may record outcomes at the end.

The definitions are copied into the run folder (`blueprints.json`) and into recipes, so that resuming, replaying and
exporting need no database.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from esper import plugins, urza
from esper.configs import DatabaseConfig, TolariaConfig
from esper.configs.explain import nearest
from esper.errors import ConfigError, EsperError, RunError, StoreError
from esper.files import read_json, write_atomically
from esper.urza import Blueprint
from esper.urza.records import read_outcomes

__all__ = ["declare_recorded", "record_outcomes", "with_library", "write_declared"]

_FILE = "blueprints.json"
_DEFINITIONS: TypeAdapter[list[dict[str, Any]]] = TypeAdapter(list[dict[str, Any]])


def with_library(config: TolariaConfig, *, run_dir: Path, outputs_dir: Path) -> tuple[TolariaConfig, list[str]]:
    """The configuration with its library blueprints resolved to ids, and their definitions.

    Definitions in the run folder take precedence over the library's.

    Raises:
        ConfigError: the library cannot be used, has no such blueprint, or it is quarantined.
    """
    growth = config.morphogenetic
    if not growth.enable_tamiyo or growth.policy == "replay":  # a recipe holds its definitions
        return dataclasses.replace(config, morphogenetic=dataclasses.replace(growth, library=[])), []
    own = growth.blueprint if growth.blueprint not in (None, *urza.CATALOGUE) else None
    named = dict.fromkeys([*growth.library, *([own] if own else [])])
    of_plugins = [name for name in named if plugins.find("blueprint", name) is not None]
    names = [name for name in named if name not in of_plugins]
    own = own if own not in of_plugins else None
    recorded = {alias: blueprint for blueprint in declare_recorded(run_dir) for alias in _aliases(blueprint)}
    blueprints = {name: recorded[name] for name in names if name in recorded}
    if missing := [name for name in names if name not in blueprints]:
        key = "blueprint" if missing == [own] else "library"
        blueprints |= _look_up(missing, config.database, key=key, outputs_dir=outputs_dir)
    definitions = {blueprint.blueprint_id: blueprint.definition or "" for blueprint in blueprints.values()}
    only = blueprints[own].blueprint_id if own else growth.blueprint
    growth = dataclasses.replace(growth, library=[*sorted(definitions), *of_plugins], blueprint=only)
    return dataclasses.replace(config, morphogenetic=growth), [
        definitions[blueprint_id] for blueprint_id in sorted(definitions)
    ]


def _look_up(names: Sequence[str], config: DatabaseConfig, *, key: str, outputs_dir: Path) -> dict[str, Blueprint]:
    if built_in := [name for name in names if name in urza.CATALOGUE]:
        raise ConfigError(f"morphogenetic.library: {built_in[0]!r} is built in and needs no library; leave it out")
    from esper.urza.store import Store  # lazily: only runs with a library need SQLAlchemy

    try:
        with contextlib.closing(Store(config, outputs_dir=outputs_dir)) as store:
            blueprints = {name: store.get(name) for name in names}
            reasons = {name: store.quarantined(blueprint.blueprint_id) for name, blueprint in blueprints.items()}
    except (ConfigError, StoreError) as error:
        hint = nearest(names[0], urza.CATALOGUE).removeprefix("; ") or f"there are {', '.join(urza.CATALOGUE)}"
        raise ConfigError(
            f"morphogenetic.{key}: {names[0]!r} is not built in ({hint}), and not in the library: {error}"
        ) from None
    for name, reason in reasons.items():
        if reason is not None:
            raise ConfigError(
                f"morphogenetic.{key}: {name!r} is quarantined: {reason}; leave it out, or characterise it again: "
                f"esper urza characterise {name} --again"
            )
    return blueprints


def _aliases(blueprint: Blueprint) -> tuple[str, str]:
    return blueprint.blueprint_id, blueprint.blueprint_id.partition("@")[0]


def declare_recorded(run_dir: Path) -> list[Blueprint]:
    """Declare the library blueprints recorded in a run folder; returns them.

    Raises:
        RunError: the file is damaged.
    """
    file = run_dir / _FILE
    try:
        definitions = read_json(file, _DEFINITIONS)
        return [urza.declare(json.dumps(definition), where=str(file)) for definition in definitions]
    except FileNotFoundError:
        return []
    except (RunError, ConfigError) as error:
        raise RunError(f"{file} cannot be used: {error}; start over with fresh=true") from None


def write_declared(run_dir: Path, blueprint_ids: Sequence[str]) -> None:
    """Write the definitions of a run's library blueprints, if it has any, into its folder."""
    found = [urza.get(name).definition for name in blueprint_ids]
    definitions = [json.loads(definition) for definition in found if definition is not None]  # a plugin's have none
    if definitions:
        write_atomically(run_dir / _FILE, json.dumps(definitions, indent=1) + "\n")


def record_outcomes(database: DatabaseConfig, *, run_dir: Path, outputs_dir: Path) -> str | None:
    """Record in the library, if asked to, what a run's modules gained; returns the message of a failure."""
    if not database.record_outcomes:
        return None
    from esper.urza.store import Store

    try:
        with contextlib.closing(Store(database, outputs_dir=outputs_dir, create=True)) as store:
            store.put_outcomes(read_outcomes(run_dir))
    except EsperError as error:
        return f"outcomes were not recorded: {error}; later: esper urza record {shlex.quote(str(run_dir))}"
    return None
