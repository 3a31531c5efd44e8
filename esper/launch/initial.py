"""The files that a run starts from, a network, a policy or a recipe, checked before anything is written."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

from esper.configs import TolariaConfig
from esper.configs.identity import checkpoints_folder
from esper.errors import ConfigError
from esper.tolaria.checkpoints.files import find_checkpoints
from esper.tolaria.checkpoints.initial import read_network
from esper.tolaria.run_folder import RunFolder, recorded_config

__all__ = ["resolve_initial", "resolve_policy"]


def resolve_initial(config: TolariaConfig, *, run_dir: Path) -> TolariaConfig:
    """Set the digest of the network in `model.init_from`.

    A run that has begun keeps the digest that it began with; once it has a checkpoint, the network may be gone.

    Raises:
        ConfigError: the network cannot be read, or is not the one with this digest.
    """
    model = config.model
    if model.init_from is None:
        return config
    expected = model.init_digest or _began_with(config, run_dir, "model", "init_digest")
    try:
        found = read_network(Path(model.init_from)).digest
    except ConfigError:
        folder = checkpoints_folder(run_dir, checkpoint_dir=config.checkpoint.checkpoint_dir)
        is_finished = RunFolder(run_dir).status().get("status") == "finished"
        if expected is None or not (is_finished or find_checkpoints(folder)):
            raise
        found = expected
    if expected not in (None, found):
        raise ConfigError(
            f"model.init_from={model.init_from}: holds another network than when this run began (digest {found}, was "
            f"{expected}); restore it, or train anew with fresh=true"
        )
    return dataclasses.replace(config, model=dataclasses.replace(model, init_digest=found))


def resolve_policy(config: TolariaConfig, *, run_dir: Path) -> TolariaConfig:
    """Set the digest of the file in `morphogenetic.recipe_path` or `tamiyo_policy_path`, if its policy reads one here.

    An arm of a comparison takes the recipe of its grown run, with which it is compared in `resolve_arm`.

    Raises:
        ConfigError: the file cannot be read, or is not the one that the run began with.
    """
    growth = config.morphogenetic
    if growth.policy == "replay" and config.comparison.arm is None:
        key, given = "recipe_path", growth.recipe_path
    elif growth.policy == "learned" and growth.tamiyo == "local":
        key, given = "tamiyo_policy_path", growth.tamiyo_policy_path
    else:
        return config
    file = Path(given or "").expanduser()
    file = file / "recipe.json" if file.is_dir() else file
    try:
        found = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise ConfigError(f"morphogenetic.{key}={given}: {error.strerror or error}") from None
    expected = growth.policy_digest or _began_with(config, run_dir, "morphogenetic", "policy_digest")
    if expected not in (None, found):
        raise ConfigError(
            f"morphogenetic.{key}={given}: has changed since this run began (digest {found}, was {expected}); restore "
            "it, give another run folder, or train anew with fresh=true"
        )
    return dataclasses.replace(config, morphogenetic=dataclasses.replace(growth, policy_digest=found))


def _began_with(config: TolariaConfig, run_dir: Path, group: str, name: str) -> str | None:
    """The digest that the run in a folder began with; None for a fresh run, and if it recorded none."""
    recorded = None if config.fresh else recorded_config(run_dir)
    digest = recorded[group].get(name) if recorded else None
    assert digest is None or isinstance(digest, str)
    return digest
