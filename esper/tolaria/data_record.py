"""`data.json`: what the dataset of a run held when the run began."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from esper.configs import TolariaConfig
from esper.configs.dataset import DATASETS
from esper.configs.identity import checkpoints_folder
from esper.data import Fingerprint
from esper.errors import RunError
from esper.files import Count, decoder, json_object, read_json, write_atomically
from esper.tolaria.checkpoints.files import has_checkpoints

__all__ = ["described", "recorded_data", "require_same_data", "write_data"]

_NAME = "data.json"
_SCHEMA = 1
_MAX_CHANGES = 4
_PARTS = dict[str, tuple[Count, str, str]]
_DATA = decoder(json_object("Data", {"schema": Literal[_SCHEMA], "parts": _PARTS, "test": str}))


def write_data(folder: Path, found: Fingerprint) -> None:
    """Write `data.json`."""
    write_atomically(folder / _NAME, json.dumps({"schema": _SCHEMA, **found.entry()}, indent=1) + "\n")


def recorded_data(folder: Path) -> Fingerprint | None:
    """What `data.json` in a folder says; None without the file.

    Raises:
        RunError: the file cannot be read.
    """
    try:
        content = read_json(folder / _NAME, _DATA)
    except FileNotFoundError:
        return None
    except RunError as error:
        raise RunError(f"{error}; remove it, and the data is not compared, or start over with fresh=true") from None
    return Fingerprint(content["parts"], test=content["test"])


def require_same_data(
    config: TolariaConfig, run_dir: Path, find: Callable[[], Fingerprint], *, is_shown: bool = False
) -> list[str]:
    """Refuse to show or to continue a run whose data has changed; returns what the user should know.

    A run without a checkpoint starts over, and test images may change until a run has its result.

    Args:
        config: the run's configuration.
        run_dir: the run folder.
        find: what the dataset holds now; called if there is a run.
        is_shown: whether the run has finished, and its result is shown.

    Raises:
        RunError: what has changed, and what to do.
        DataError: the data is missing or unreadable.
    """
    checkpoints = checkpoints_folder(run_dir, checkpoint_dir=config.checkpoint.checkpoint_dir)
    _require_same_as_grown(config, run_dir, find)
    if config.fresh or not (is_shown or has_checkpoints(checkpoints)):
        return []
    recorded, now = recorded_data(run_dir) or recorded_data(checkpoints), find()
    if recorded is None:
        return [f"whether the data has changed is not known: {run_dir.name} was begun by a version that recorded none"]
    if not (changed := recorded.changes(now)):
        return []
    if recorded.trains_like(now) and not is_shown:
        return [f"the test data have changed since the run began: {described(changed)}"]
    raise RunError(
        f"{run_dir} holds a run on other data: {described(changed)}; restore the data ({_place(config)}), give another "
        "run folder, or fresh=true, which moves the run aside"
    )


def _require_same_as_grown(config: TolariaConfig, run_dir: Path, find: Callable[[], Fingerprint]) -> None:
    """Refuse an arm of a comparison whose grown run had other data."""
    grown = config.comparison.grown_run
    recorded = recorded_data(run_dir.absolute().parent / grown) if grown is not None else None
    if recorded is not None and (changed := recorded.changes(find())):
        raise RunError(
            f"comparison.arm={config.comparison.arm}: its grown run, {grown}, had other data: {described(changed)}; "
            f"restore the data ({_place(config)}), or train the grown run anew (arm=grown fresh=true)"
        )


def described(changes: Sequence[str]) -> str:
    """The first changes, and how many more there are."""
    more = f" and {len(changes) - _MAX_CHANGES} more" if len(changes) > _MAX_CHANGES else ""
    return f"{', '.join(changes[:_MAX_CHANGES])}{more}"


def _place(config: TolariaConfig) -> str:
    has_files = DATASETS[config.dataset.name].has_files or config.dataset.name == "text"
    return f"dataset.data_dir={config.dataset.data_dir}" if has_files else f"dataset={config.dataset.name}"
