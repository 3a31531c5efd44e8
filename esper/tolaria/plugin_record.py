"""`plugins.json`: the modules of the user's that a run began with, to notice that one has changed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from esper import plugins
from esper.errors import RunError
from esper.files import decoder, json_object, read_json, write_atomically

__all__ = ["changed_plugins", "write_plugins"]

_NAME = "plugins.json"
_SCHEMA = 1
_PLUGIN = json_object("Plugin", dict.fromkeys(("module", "version", "file", "digest"), str))
_PLUGINS = decoder(json_object("Plugins", {"schema": Literal[_SCHEMA], "plugins": list[_PLUGIN]}))  # type: ignore[valid-type]


def write_plugins(run_dir: Path, modules: Sequence[str]) -> None:
    """Write `plugins.json` for a run that begins, if it has plugins."""
    entries = [dataclasses.asdict(plugin) for plugin in plugins.loaded(modules)]
    if entries:
        write_atomically(run_dir / _NAME, json.dumps({"schema": _SCHEMA, "plugins": entries}, indent=1) + "\n")


def changed_plugins(run_dir: Path, modules: Sequence[str]) -> list[str]:
    """What the user should know about modules that have changed since the run began."""
    try:
        recorded = {entry["module"]: entry for entry in read_json(run_dir / _NAME, _PLUGINS)["plugins"]}
    except FileNotFoundError:
        return []
    except RunError as error:
        return [f"whether plugins have changed is not known: {error}"]
    return [
        f"plugin {plugin.module} has changed since the run began (digest {before['digest']} → {plugin.digest}, "
        f"{plugin.file}); the run is that of both versions: restore the file, or train anew with fresh=true"
        for plugin in plugins.loaded(modules)
        if (before := recorded.get(plugin.module)) is not None and before["digest"] != plugin.digest
    ]
