"""What a run takes from the blueprint library, and leaves there.

The library is read once, when a run begins; the folder of the run then holds the definitions (`blueprints.json`), and
so does every recipe: resuming, replaying and exporting need no database.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from esper import urza
from esper.configs import DatabaseConfig, TolariaConfig
from esper.configs.explain import nearest
from esper.errors import ConfigError, EsperError, RunError, StoreError
from esper.tracking import write_atomically
from esper.urza import Blueprint
from esper.urza.records import read_outcomes

__all__ = ["declare_recorded", "record_outcomes", "with_library", "write_declared"]

_FILE = "blueprints.json"


def with_library(config: TolariaConfig, *, run_dir: Path, outputs_dir: Path) -> tuple[TolariaConfig, list[str]]:
    """The configuration with the library's blueprints by their ids, and their definitions.

    Those that the run folder holds already stay what they were, whatever the library says now.

    Raises:
        ConfigError: the library cannot be used, has no such blueprint, or it is quarantined.
    """
    growth = config.morphogenetic
    if not growth.enable_tamiyo or growth.policy == "replay":  # a recipe holds its definitions
        return dataclasses.replace(config, morphogenetic=dataclasses.replace(growth, library=[])), []
    own = growth.blueprint if growth.blueprint not in (None, *urza.CATALOGUE) else None
    asked = list(dict.fromkeys([*growth.library, *([own] if own else [])]))
    recorded = {alias: one for one in declare_recorded(run_dir) for alias in _aliases(one)}
    found = {name: recorded[name] for name in asked if name in recorded}
    if missing := [name for name in asked if name not in found]:
        key = "blueprint" if missing == [own] else "library"
        found |= _look_up(missing, config.database, key=key, outputs_dir=outputs_dir)
    definitions = {blueprint.blueprint_id: blueprint.definition or "" for blueprint in found.values()}
    only = found[own].blueprint_id if own else growth.blueprint
    growth = dataclasses.replace(growth, library=sorted(definitions), blueprint=only)
    return dataclasses.replace(config, morphogenetic=growth), [definitions[one] for one in growth.library]


def _look_up(names: Sequence[str], config: DatabaseConfig, *, key: str, outputs_dir: Path) -> dict[str, Blueprint]:
    if built_in := [name for name in names if name in urza.CATALOGUE]:
        raise ConfigError(f"morphogenetic.library: {built_in[0]!r} is built in and may grow anyway; leave it out")
    from esper.urza.store import Store  # SQLAlchemy is only needed by who has a library

    try:
        with contextlib.closing(Store(config, outputs_dir=outputs_dir)) as store:
            found = {name: store.get(name) for name in names}
            reasons = {name: store.quarantined(blueprint.blueprint_id) for name, blueprint in found.items()}
    except (ConfigError, StoreError) as error:
        hint = nearest(names[0], urza.CATALOGUE).removeprefix("; ") or f"there are {', '.join(urza.CATALOGUE)}"
        raise ConfigError(
            f"morphogenetic.{key}: {names[0]!r} is not built in ({hint}), and of the library: {error}"
        ) from None
    for name, reason in reasons.items():
        if reason is not None:
            raise ConfigError(
                f"morphogenetic.{key}: {name!r} is quarantined: {reason}; leave it out, or try again with: "
                f"esper urza characterise {name} --again"
            )
    return found


def _aliases(blueprint: Blueprint) -> tuple[str, str]:
    return blueprint.blueprint_id, blueprint.blueprint_id.partition("@")[0]


def declare_recorded(run_dir: Path) -> list[Blueprint]:
    """Make known what a run took from the library; returns it.

    Raises:
        RunError: the file is damaged.
    """
    file = run_dir / _FILE
    try:
        definitions = json.loads(file.read_text())
        return [urza.declare(json.dumps(one), where=str(file)) for one in definitions]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError) as error:  # a ConfigError is a ValueError
        raise RunError(f"{file} cannot be used: {error}; start anew with fresh=true") from None


def write_declared(run_dir: Path, blueprint_ids: Sequence[str]) -> None:
    """Write into a run folder what the run took from the library, if anything."""
    definitions = [json.loads(urza.get(one).definition or "") for one in blueprint_ids]
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
        return f"outcomes were not recorded: {error}; later: esper urza record {run_dir}"
    return None
